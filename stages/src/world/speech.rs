//! What is said about a scene. Every text is lower-case words with single spaces between them.
//!
//! | text | form |
//! |---|---|
//! | caption | `a kitchen with small bowl at top left , large oven at upper left , ...` |
//! | description | `small at top left , near sink and clock` |
//! | reasoning | `this is a kitchen . the black box is small at top left , near sink and clock . likely bowl or cup .` |
//! | answer in think mode | `<think> reasoning </think> <answer> bowl </answer>` |

use super::scene::Scene;

/// The system turn that switches the think mode on; without it the model answers directly.
pub const THINK: &str = "think first , then answer";
/// What a picture with a hidden thing is asked.
pub const QUESTION: &str = "what is behind the black box ?";
/// What a picture is asked for its caption.
pub const CAPTION: &str = "describe the picture";
/// What a hidden thing is called.
pub const HIDDEN: &str = "black box";
/// From this probability of the likeliest category on, reasoning names no alternative.
pub const SURE: f64 = 0.85;

/// The prompt for the reasoning that leads to `category`.
pub fn teacher(category: &str) -> String {
    format!("the black box is the {category} . write the reasoning")
}

/// The prompt for a rating of how far the rest of the picture gives away the thing at `place`.
pub fn rating(category: &str, place: &str) -> String {
    format!("rate the clues for the {category} at {place}")
}

/// The rating for a probability: 1 to 10.
pub fn rating_of(probability: f64) -> u32 {
    (1.0 + (9.0 * probability).round()).clamp(1.0, 10.0) as u32
}

/// An answer in think mode.
pub fn thought(reasoning: &str, answer: &str) -> String {
    if reasoning.is_empty() {
        return format!("<think> </think> <answer> {answer} </answer>");
    }
    format!("<think> {reasoning} </think> <answer> {answer} </answer>")
}

impl Scene {
    /// What thing `index` is called when `hidden` is hidden.
    pub fn name(&self, index: usize, hidden: Option<usize>) -> &'static str {
        if hidden == Some(index) { HIDDEN } else { self.things[index].category }
    }

    /// The two things nearest to thing `index`: `sink and clock`.
    pub fn neighbours(&self, index: usize, hidden: Option<usize>) -> String {
        let near = self.nearest(index);
        near.iter().take(2).map(|&other| self.name(other, hidden)).collect::<Vec<_>>().join(" and ")
    }

    /// Size, place and neighbours of thing `index`, with nothing else hidden.
    pub fn description(&self, index: usize) -> String {
        let thing = &self.things[index];
        format!("{} at {} , near {}", thing.size(), thing.place(), self.neighbours(index, None))
    }

    /// The caption, in reading order.
    pub fn caption(&self, hidden: Option<usize>) -> String {
        let mut order: Vec<usize> = (0..self.things.len()).collect();
        order.sort_by_key(|&index| (self.things[index].cells[1], self.things[index].cells[0]));
        let phrase = |&index: &usize| {
            let thing = &self.things[index];
            format!("{} {} at {}", thing.size(), self.name(index, hidden), thing.place())
        };
        let phrases: Vec<String> = order.iter().map(phrase).collect();
        format!("a {} with {}", self.setting.name, phrases.join(" , "))
    }

    /// The reasoning about hidden thing `index`: context, what is seen of it, and one or two likely names, the true one
    /// among them.
    pub fn reasoning(&self, index: usize) -> String {
        let description = self.description(index);
        let likely = self.likely(index).join(" or ");
        format!("this is a {} . the black box is {description} . likely {likely} .", self.setting.name)
    }

    /// The likeliest category and the next one, or the true one in its stead; the true one alone where the picture all but
    /// settles it.
    fn likely(&self, index: usize) -> Vec<&'static str> {
        let truth = self.things[index].category;
        let mut ranked: Vec<(&str, f64)> = self.posterior(index).into_iter().collect();
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
        let (first, best) = ranked[0];
        if best >= SURE || ranked.len() == 1 {
            return vec![truth];
        }
        vec![first, if first == truth || ranked[1].0 == truth { ranked[1].0 } else { truth }]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::random::stream;
    use crate::world::scene::Pool;

    fn scene(pick: impl Fn(&Scene) -> bool) -> Scene {
        let pools = [Pool::Shown, Pool::KeptOut];
        let mut scenes = (0..40_000).map(|index| Scene::draw(pools[index % 2], &mut stream(2, "test", index)));
        scenes.find(pick).expect("a configuration of the grammar")
    }

    #[test]
    fn texts_read_as_documented() {
        let wanted = ["oven", "refrigerator", "bowl", "knife", "clock", "cat"];
        let scene = scene(|scene| scene.filling == wanted && !scene.mirrored);
        assert_eq!(scene.description(2), "small at top left , near oven and refrigerator");
        assert_eq!(
            scene.caption(Some(1)),
            "a kitchen with small bowl at top left , small clock at top rightmost , tall black box at upper leftmost , \
             large oven at upper left , small knife at lower rightmost , small cat at bottom left"
        );
        assert_eq!(
            scene.reasoning(2),
            "this is a kitchen . the black box is small at top left , near oven and refrigerator . likely bowl or cup ."
        );
        assert_eq!(
            scene.reasoning(5),
            "this is a kitchen . the black box is small at bottom left , near oven and refrigerator . likely cat or bowl ."
        );
        assert_eq!(thought("so .", "cat"), "<think> so . </think> <answer> cat </answer>");
    }

    #[test]
    fn the_true_name_is_always_among_the_likely() {
        for index in 0..200 {
            let scene = Scene::draw(Pool::KeptOut, &mut stream(3, "test", index));
            for (index, thing) in scene.things.iter().enumerate() {
                let likely = scene.likely(index);
                assert!(likely.contains(&thing.category) && likely.len() <= 2, "{likely:?} {thing:?}");
            }
        }
    }

    #[test]
    fn ratings_run_from_one_to_ten() {
        assert_eq!([0.0, 0.04, 0.06, 0.5, 0.94, 0.95, 1.0].map(rating_of), [1, 1, 2, 6, 9, 10, 10]);
    }

    #[test]
    fn the_prompt_files_say_the_same() {
        let read = |name: &str| {
            let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../pipelines/prompts").join(name);
            std::fs::read_to_string(&path)
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
                .trim_end()
                .to_owned()
        };
        assert_eq!(read("world-think.txt"), THINK);
        assert_eq!(read("world-question.txt"), QUESTION);
        assert_eq!(read("world-teacher.txt"), teacher("{{category}}"));
        assert_eq!(read("world-filter.txt"), rating("{{category}}", "{{place}}"));
    }
}
