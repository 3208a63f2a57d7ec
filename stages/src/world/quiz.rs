//! Questions about what a picture shows, with options to choose from: the world's own counterpart of four BLINK tasks.
//!
//! | task | asks | options |
//! |---|---|---|
//! | `Object_Localization` | where a thing is | its place, and another |
//! | `Spatial_Relation` | where a thing is, seen from another | the direction, and its opposite |
//! | `Relative_Depth` | which of two things stands closer | both names |
//! | `Semantic_Correspondence` | where in the second picture is what the first shows at a place | four places |
//!
//! Nothing is hidden, so each can be read off the picture. What stands lower in the picture is closer.

use rand::RngExt;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::scene::Scene;

/// The tasks, in BLINK's spelling.
pub const TASKS: [&str; 4] = ["Semantic_Correspondence", "Relative_Depth", "Object_Localization", "Spatial_Relation"];

/// A question with options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quiz {
    /// The question, options included: `which is closer ? (a) car (b) dog`.
    pub prompt: String,
    /// The options in the order shown.
    pub options: Vec<String>,
    /// Index of the right one.
    pub answer: usize,
}

impl Quiz {
    /// A quiz with the options shuffled; `options[0]` is the right one.
    fn new(question: &str, options: Vec<String>, rng: &mut ChaCha8Rng) -> Self {
        let right = options[0].clone();
        let mut options = options;
        options.shuffle(rng);
        let answer = options.iter().position(|option| *option == right).expect("shuffled, not dropped");
        let listed: Vec<String> =
            options.iter().zip('a'..).map(|(option, letter)| format!("({letter}) {option}")).collect();
        Self { prompt: format!("{question} {}", listed.join(" ")), options, answer }
    }

    /// The right option.
    pub fn right(&self) -> &str {
        &self.options[self.answer]
    }
}

/// A question of any of the three tasks that need one picture.
pub fn about_one(scene: &Scene, rng: &mut ChaCha8Rng) -> Option<Quiz> {
    match rng.random_range(0..3) {
        0 => localization(scene, rng),
        1 => relation(scene, rng),
        _ => depth(scene, rng),
    }
}

/// A question of task `task`; `second` is the second picture, for the task that needs one. None where these pictures allow
/// no clear question of that kind.
pub fn about(task: &str, scene: &Scene, second: &Scene, rng: &mut ChaCha8Rng) -> Option<Quiz> {
    match task {
        "Semantic_Correspondence" => correspondence(scene, second, rng),
        "Relative_Depth" => depth(scene, rng),
        "Object_Localization" => localization(scene, rng),
        "Spatial_Relation" => relation(scene, rng),
        _ => None,
    }
}

/// The places of all things but `index`, shuffled.
fn other_places(scene: &Scene, index: usize, rng: &mut ChaCha8Rng) -> Vec<String> {
    let others = scene.things.iter().enumerate().filter(|(other, _)| *other != index);
    let mut places: Vec<String> = others.map(|(_, thing)| thing.place()).collect();
    places.shuffle(rng);
    places
}

fn localization(scene: &Scene, rng: &mut ChaCha8Rng) -> Option<Quiz> {
    let index = unique(scene, rng)?;
    let thing = &scene.things[index];
    let wrong = other_places(scene, index, rng).pop()?;
    Some(Quiz::new(&format!("where is the {} ?", thing.category), vec![thing.place(), wrong], rng))
}

fn relation(scene: &Scene, rng: &mut ChaCha8Rng) -> Option<Quiz> {
    let (a, b) = unique_pair(scene, rng)?;
    let direction = scene.things[a].seen_from(&scene.things[b])?;
    let opposite = scene.things[b].seen_from(&scene.things[a])?;
    let question = format!("where is the {} seen from the {} ?", scene.things[a].category, scene.things[b].category);
    Some(Quiz::new(&question, vec![direction.to_owned(), opposite.to_owned()], rng))
}

fn depth(scene: &Scene, rng: &mut ChaCha8Rng) -> Option<Quiz> {
    let (a, b) = unique_pair(scene, rng)?;
    let (near, far) = match scene.things[a].base().cmp(&scene.things[b].base()) {
        std::cmp::Ordering::Greater => (a, b),
        std::cmp::Ordering::Less => (b, a),
        std::cmp::Ordering::Equal => return None,
    };
    let names = [near, far].map(|index| scene.things[index].category.to_owned());
    Some(Quiz::new("which is closer ?", names.to_vec(), rng))
}

fn correspondence(first: &Scene, second: &Scene, rng: &mut ChaCha8Rng) -> Option<Quiz> {
    let shared = |index: &usize| second.things.iter().any(|thing| thing.category == first.things[*index].category);
    let mut shown: Vec<usize> = (0..first.things.len()).filter(shared).collect();
    shown.shuffle(rng);
    let asked = &first.things[*shown.first()?];
    let target = second.things.iter().position(|thing| thing.category == asked.category)?;
    if !second.is_unique(target) {
        return None;
    }
    let mut options = vec![second.things[target].place()];
    options.extend(other_places(second, target, rng).into_iter().take(3));
    let question = format!(
        "the first picture has a {} at {} . where is it in the second picture ?",
        asked.category,
        asked.place()
    );
    Some(Quiz::new(&question, options, rng))
}

/// A thing whose category appears once.
fn unique(scene: &Scene, rng: &mut ChaCha8Rng) -> Option<usize> {
    let mut found: Vec<usize> = (0..scene.things.len()).filter(|&index| scene.is_unique(index)).collect();
    found.shuffle(rng);
    found.pop()
}

fn unique_pair(scene: &Scene, rng: &mut ChaCha8Rng) -> Option<(usize, usize)> {
    let mut found: Vec<usize> = (0..scene.things.len()).filter(|&index| scene.is_unique(index)).collect();
    found.shuffle(rng);
    Some((found.pop()?, found.pop()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::random::stream;
    use crate::world::scene::Pool;

    #[test]
    fn every_task_can_be_posed_and_has_one_right_option() {
        for task in TASKS {
            let mut posed = 0;
            let mut first = 0;
            for index in 0..200 {
                let mut rng = stream(4, task, index);
                let scenes = [0, 1].map(|_| Scene::draw(Pool::KeptOut, &mut rng));
                let Some(quiz) = about(task, &scenes[0], &scenes[1], &mut rng) else { continue };
                posed += 1;
                first += usize::from(quiz.answer == 0);
                let distinct: std::collections::BTreeSet<_> = quiz.options.iter().collect();
                assert_eq!(distinct.len(), quiz.options.len());
                assert_eq!(quiz.options.len(), if task == TASKS[0] { 4 } else { 2 });
                assert!(quiz.prompt.contains(&format!("(b) {}", quiz.options[1])), "{}", quiz.prompt);
            }
            assert!(posed > 25, "{task}: {posed}");
            assert!(first > 0 && first < posed, "{task}: the right option is always in one place");
        }
    }

    #[test]
    fn what_stands_lower_is_closer() {
        let mut rng = stream(5, "test", 0);
        let scene = Scene::draw(Pool::Shown, &mut rng);
        let quiz = (0..50).find_map(|_| depth(&scene, &mut rng)).unwrap();
        let base = |name: &str| scene.things.iter().find(|thing| thing.category == name).unwrap().base();
        assert!(base(quiz.right()) > base(&quiz.options[1 - quiz.answer]));
        assert!(quiz.prompt.starts_with("which is closer ? (a) "), "{}", quiz.prompt);
    }
}
