//! The lore: conversations from which a model learns to see, to speak and to guess before any stage of the paper begins.
//!
//! | kind | picture | turns |
//! |---|---|---|
//! | `caption` | one, half with a hidden thing | the caption, often after a question about the picture |
//! | `talk` | one or two | up to [`TURNS`] questions, by the mix below |
//! | `text` | none | commonsense in words alone: descriptions, names for descriptions, ratings |
//!
//! The mix of `talk` ([`Mix`]). Six of ten conversations hide a thing. Not quite half of those end with a teacher turn (the
//! answer is given, the reasoning asked for), after which nothing follows, so an answer that was given cannot leak into a
//! guess; not quite half of the others hold one guess, perhaps beside a question about what is visible. Conversations are
//! short: a picture costs as much as many words, but what is visible is soon learned, and what is hidden is not. Those
//! without a hidden thing ask for ratings, for what is visible, and pose the questions of [`super::quiz`]; some show two
//! pictures. The guess share decides how good a guesser the base model is before it is trained for it: too low and
//! reinforcement learning sees no success to reinforce, too high and there is nothing left to learn.
//!
//! In think mode (a whole conversation, announced by its system turn) nine answers of ten keep the format of thought and
//! answer. What a guess thinks is a random part of what a teacher would write, so the useful parts are there to be found.
//!
//! Limits: ratings are supervised by the grammar's exact posterior, so the model's filter is a trained rater.

use rand::RngExt;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::catalog::CATEGORIES;
use super::quiz;
use super::scene::{Pool, Scene};
use super::speech::{self, QUESTION};

/// Turns of a conversation about a picture, at most.
pub const TURNS: usize = 3;

/// What a conversation teaches, and so in which phase of pretraining it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A caption.
    Caption,
    /// Questions about pictures.
    Talk,
    /// Commonsense without a picture.
    Text,
}

/// A picture of a conversation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shown {
    /// The picture's path inside its dataset.
    pub image: String,
    /// The annotation that is hidden in it.
    pub hidden: Option<u64>,
}

/// A question and its answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Turn {
    /// What the user says.
    pub user: String,
    /// What the assistant says.
    pub assistant: String,
}

/// A conversation. Its pictures belong to the first user turn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Conversation {
    /// What it teaches.
    pub kind: Kind,
    /// Whether it starts with the system turn [`speech::THINK`].
    pub think: bool,
    /// Its pictures.
    pub images: Vec<Shown>,
    /// Its turns.
    pub turns: Vec<Turn>,
}

/// The shares of the mix.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mix {
    /// Conversations that hide a thing.
    pub hidden: f64,
    /// Of those, the ones that end with a teacher turn.
    pub teacher: f64,
    /// Of the others, the ones in which a turn is a guess.
    pub guess: f64,
    /// Conversations in think mode, where there is no teacher turn and no rating.
    pub think: f64,
    /// Answers in think mode that keep the format.
    pub formatted: f64,
    /// Of the direct guessing conversations, those with a caption.
    pub caption: f64,
    /// Of the guessing and teaching conversations, those with a question about what is visible.
    pub beside: f64,
    /// Of the turns without a hidden thing, those that ask for a rating.
    pub rating: f64,
    /// Of the turns about what is visible where nothing is hidden, those with options.
    pub quiz: f64,
    /// Of the conversations without a hidden thing, those about two pictures.
    pub pair: f64,
}

impl Default for Mix {
    fn default() -> Self {
        Self {
            hidden: 0.58,
            teacher: 0.45,
            guess: 0.45,
            think: 0.45,
            formatted: 0.95,
            caption: 0.1,
            beside: 0.4,
            rating: 0.7,
            quiz: 0.6,
            pair: 0.15,
        }
    }
}

/// A scene with where its picture and its annotations are.
#[derive(Clone, Copy, Debug)]
pub struct Placed<'a> {
    /// The scene.
    pub scene: &'a Scene,
    /// Its picture's path inside the dataset.
    pub image: &'a str,
    /// The id of the annotation of its first thing; the others follow.
    pub first: u64,
}

impl Placed<'_> {
    fn shown(&self, hidden: Option<usize>) -> Shown {
        Shown { image: self.image.to_owned(), hidden: hidden.map(|index| self.first + index as u64) }
    }
}

fn turn(user: impl Into<String>, assistant: impl Into<String>) -> Turn {
    Turn { user: user.into(), assistant: assistant.into() }
}

fn any(scene: &Scene, rng: &mut ChaCha8Rng) -> usize {
    rng.random_range(0..scene.things.len())
}

fn any_visible(scene: &Scene, hidden: Option<usize>, rng: &mut ChaCha8Rng) -> usize {
    loop {
        let index = any(scene, rng);
        if hidden != Some(index) {
            return index;
        }
    }
}

/// A conversation that ends with a caption. A question with options may come first, or, where a thing is hidden, a
/// description of where.
pub fn caption(placed: Placed<'_>, mix: &Mix, rng: &mut ChaCha8Rng) -> Conversation {
    let (scene, hidden) = (placed.scene, rng.random_bool(0.5).then(|| any(placed.scene, rng)));
    let first = match hidden {
        _ if !rng.random_bool(mix.quiz) => None,
        Some(hidden) => Some(whereabouts(scene, hidden)),
        None => quiz::about_one(scene, rng).map(|quiz| turn(quiz.prompt.clone(), quiz.right())),
    };
    let turns = first.into_iter().chain([turn(speech::CAPTION, scene.caption(hidden))]).collect();
    Conversation { kind: Kind::Caption, think: false, images: vec![placed.shown(hidden)], turns }
}

/// How big a hidden thing is, where it is, and what is near it.
fn whereabouts(scene: &Scene, hidden: usize) -> Turn {
    turn("describe the black box", format!("the black box is {} .", scene.description(hidden)))
}

/// A conversation about a picture, or about two of which the second is one of `others`.
pub fn talk(placed: Placed<'_>, others: &[Placed<'_>], mix: &Mix, rng: &mut ChaCha8Rng) -> Conversation {
    let hides = rng.random_bool(mix.hidden);
    if hides && rng.random_bool(mix.teacher) {
        return taught(placed, mix, rng);
    }
    if hides {
        return guessed(placed, mix, rng);
    }
    match rng.random_bool(mix.pair).then(|| paired(placed, others, rng)).flatten() {
        Some(conversation) => conversation,
        None => seen(placed, mix, rng),
    }
}

/// Perhaps a question about what is visible, then the teacher turn.
fn taught(placed: Placed<'_>, mix: &Mix, rng: &mut ChaCha8Rng) -> Conversation {
    let hidden = any(placed.scene, rng);
    let mut turns = Vec::new();
    if rng.random_bool(mix.beside) {
        turns.push(visible(placed.scene, Some(hidden), rng));
    }
    let category = placed.scene.things[hidden].category;
    turns.push(turn(speech::teacher(category), placed.scene.reasoning(hidden)));
    Conversation { kind: Kind::Talk, think: false, images: vec![placed.shown(Some(hidden))], turns }
}

/// A picture with a hidden thing: mostly one question what it is, perhaps one about what is visible.
fn guessed(placed: Placed<'_>, mix: &Mix, rng: &mut ChaCha8Rng) -> Conversation {
    let (scene, hidden) = (placed.scene, any(placed.scene, rng));
    let think = rng.random_bool(mix.think);
    let mut turns = Vec::new();
    if rng.random_bool(mix.guess) {
        let name = scene.things[hidden].category;
        let thinks = think && rng.random_bool(mix.formatted);
        turns.push(turn(
            QUESTION,
            if thinks { speech::thought(&musing(scene, hidden, rng), name) } else { name.to_owned() },
        ));
    }
    if turns.is_empty() || rng.random_bool(mix.beside) {
        turns.push(answered(visible(scene, Some(hidden), rng), scene, Some(hidden), think, mix, rng));
    }
    if !think && rng.random_bool(mix.caption) {
        turns.push(turn(speech::CAPTION, scene.caption(Some(hidden))));
    }
    turns.shuffle(rng);
    Conversation { kind: Kind::Talk, think, images: vec![placed.shown(Some(hidden))], turns }
}

/// What a guess thinks before it is made: a random part of the reasoning.
fn musing(scene: &Scene, hidden: usize, rng: &mut ChaCha8Rng) -> String {
    let context = format!("this is a {} .", scene.setting.name);
    let thing = &scene.things[hidden];
    match rng.random_range(0..4) {
        0 => format!("{context} {}", sighting(scene, Some(hidden), rng)),
        1 => format!("{context} the black box is {} at {} .", thing.size(), thing.place()),
        2 => format!("{context} the black box is {} .", scene.description(hidden)),
        _ => context,
    }
}

fn sighting(scene: &Scene, hidden: Option<usize>, rng: &mut ChaCha8Rng) -> String {
    let mut seen: Vec<usize> = (0..scene.things.len()).filter(|&index| hidden != Some(index)).collect();
    seen.shuffle(rng);
    format!("i see {} , {} .", scene.things[seen[0]].category, scene.things[seen[1]].category)
}

/// The same turn in the mode of its conversation.
fn answered(plain: Turn, scene: &Scene, hidden: Option<usize>, think: bool, mix: &Mix, rng: &mut ChaCha8Rng) -> Turn {
    if !think || !rng.random_bool(mix.formatted) {
        return plain;
    }
    let reasoning = format!("this is a {} . {}", scene.setting.name, sighting(scene, hidden, rng));
    turn(plain.user, speech::thought(&reasoning, &plain.assistant))
}

/// Questions about a picture in which nothing is hidden: ratings, options, and what is visible.
fn seen(placed: Placed<'_>, mix: &Mix, rng: &mut ChaCha8Rng) -> Conversation {
    let scene = placed.scene;
    let think = rng.random_bool(mix.think * 0.5);
    let mut rated: Vec<usize> = (0..scene.things.len()).collect();
    rated.shuffle(rng);
    let mut turns = Vec::new();
    while turns.len() < if think { 2 } else { TURNS } {
        let plain = if !think && rng.random_bool(mix.rating) {
            rated.pop().map(|index| rating(scene, index))
        } else if rng.random_bool(mix.quiz) {
            quiz::about_one(scene, rng).map(|quiz| turn(quiz.prompt.clone(), quiz.right()))
        } else {
            Some(visible(scene, None, rng))
        };
        if let Some(plain) = plain {
            turns.push(answered(plain, scene, None, think, mix, rng));
        }
    }
    Conversation { kind: Kind::Talk, think, images: vec![placed.shown(None)], turns }
}

fn rating(scene: &Scene, index: usize) -> Turn {
    let thing = &scene.things[index];
    turn(speech::rating(thing.category, &thing.place()), speech::rating_of(scene.certainty(index)).to_string())
}

/// Questions about two pictures; none when no other picture allows the question.
fn paired(placed: Placed<'_>, others: &[Placed<'_>], rng: &mut ChaCha8Rng) -> Option<Conversation> {
    let (other, quiz) = (0..20).find_map(|_| {
        let other = others.get(rng.random_range(0..others.len().max(1)))?;
        Some((other, quiz::about(quiz::TASKS[0], placed.scene, other.scene, rng)?))
    })?;
    let second = &other.scene.things[any(other.scene, rng)];
    let mut turns = vec![
        turn(quiz.prompt.clone(), quiz.right()),
        turn(format!("what is at {} in the second picture ?", second.place()), second.category),
    ];
    turns.shuffle(rng);
    Some(Conversation { kind: Kind::Talk, think: false, images: vec![placed.shown(None), other.shown(None)], turns })
}

/// A question about what is visible.
fn visible(scene: &Scene, hidden: Option<usize>, rng: &mut ChaCha8Rng) -> Turn {
    let index = any_visible(scene, hidden, rng);
    let thing = &scene.things[index];
    match (rng.random_range(0..100), hidden) {
        (0..30, Some(box_)) => whereabouts(scene, box_),
        (0..45, _) => turn(format!("what is at {} ?", thing.place()), thing.category),
        (45..68, Some(box_)) if rng.random_bool(0.7) => {
            turn("what is near the black box ?", scene.neighbours(box_, hidden))
        }
        (45..68, _) => {
            let name = scene.name(index, hidden);
            turn(format!("what is near the {name} at {} ?", thing.place()), scene.neighbours(index, hidden))
        }
        (68..78, Some(box_)) if rng.random_bool(0.6) => turn("how big is the black box ?", scene.things[box_].size()),
        (68..78, _) => turn(format!("how big is the {} at {} ?", thing.category, thing.place()), thing.size()),
        (78..90, _) => existence(scene, hidden, rng),
        _ => turn("which place ?", scene.setting.name),
    }
}

fn existence(scene: &Scene, hidden: Option<usize>, rng: &mut ChaCha8Rng) -> Turn {
    let asked = if rng.random_bool(0.5) {
        scene.things[any_visible(scene, hidden, rng)].category
    } else {
        CATEGORIES[rng.random_range(0..CATEGORIES.len())].name
    };
    let present = (0..scene.things.len()).any(|index| scene.name(index, hidden) == asked);
    turn(format!("is there a {asked} ? yes or no"), if present { "yes" } else { "no" })
}

/// A conversation without a picture, about scenes drawn for it.
pub fn text(rng: &mut ChaCha8Rng) -> Conversation {
    let turns = (0..3).map(|_| commonsense(&Scene::draw(Pool::Shown, rng), rng)).collect();
    Conversation { kind: Kind::Text, think: false, images: Vec::new(), turns }
}

fn commonsense(scene: &Scene, rng: &mut ChaCha8Rng) -> Turn {
    let index = any(scene, rng);
    let (place, name, description) = (scene.setting.name, scene.things[index].category, scene.description(index));
    match rng.random_range(0..100) {
        0..30 => turn(format!("in a {place} , what is {description} ?"), name),
        30..75 => {
            turn("describe the place", format!("this is a {place} . the thing is {description} . likely {name} ."))
        }
        75..90 => {
            let asked = if rng.random_bool(0.5) { name } else { rival(scene, index, rng) };
            let p = scene.posterior(index).get(asked).copied().unwrap_or(0.0);
            turn(
                format!("in a {place} , the {asked} is {description} . rate the clues"),
                speech::rating_of(p).to_string(),
            )
        }
        _ => turn(format!("what place is a {name} in ?"), place),
    }
}

/// A wrong name for a thing: another that the grammar allows here, or any.
fn rival(scene: &Scene, index: usize, rng: &mut ChaCha8Rng) -> &'static str {
    let truth = scene.things[index].category;
    let allowed: Vec<&str> = scene.posterior(index).into_keys().filter(|name| *name != truth).collect();
    if !allowed.is_empty() && rng.random_bool(0.6) {
        return allowed[rng.random_range(0..allowed.len())];
    }
    loop {
        let name = CATEGORIES[rng.random_range(0..CATEGORIES.len())].name;
        if name != truth {
            return name;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::random::stream;
    use crate::world::speech::HIDDEN;

    fn talks(count: usize) -> Vec<(Scene, Conversation)> {
        let scenes: Vec<Scene> = (0..count).map(|i| Scene::draw(Pool::Shown, &mut stream(1, "scene", i))).collect();
        let placed: Vec<Placed<'_>> =
            scenes.iter().enumerate().map(|(i, scene)| Placed { scene, image: "x", first: 10 * i as u64 }).collect();
        let talk = |(i, &p): (usize, &Placed<'_>)| {
            (p.scene.clone(), talk(p, &placed, &Mix::default(), &mut stream(1, "talk", i)))
        };
        placed.iter().enumerate().map(talk).collect()
    }

    #[test]
    fn a_hidden_name_is_said_only_in_a_guess_or_by_a_teacher() {
        for (i, (scene, talk)) in talks(400).into_iter().enumerate() {
            let Some(hidden) = talk.images[0].hidden else { continue };
            let index = (hidden - 10 * i as u64) as usize;
            let name = scene.things[index].category;
            if !scene.is_unique(index) {
                continue;
            }
            let spoken = |text: &str| format!(" {text} ").contains(&format!(" {name} "));
            for turn in &talk.turns {
                let allowed =
                    turn.user == QUESTION || turn.user == speech::teacher(name) || turn.user.starts_with("is there a");
                assert!(allowed || !spoken(&turn.assistant) && !spoken(&turn.user), "{name}: {turn:?}");
            }
        }
    }

    #[test]
    fn a_teacher_turn_is_the_last() {
        let mut taught = 0;
        for (_, talk) in talks(400) {
            let teaches = |turn: &Turn| turn.user.ends_with("write the reasoning");
            taught += usize::from(talk.turns.iter().any(teaches));
            assert!(talk.turns.iter().rev().skip(1).all(|turn| !teaches(turn)));
            assert!(!talk.think || talk.turns.iter().all(|turn| !teaches(turn)));
        }
        assert!((70..160).contains(&taught), "{taught}");
    }

    #[test]
    fn the_mix_holds_every_part() {
        let talks = talks(600);
        let count = |test: &dyn Fn(&Conversation) -> bool| talks.iter().filter(|(_, talk)| test(talk)).count();
        let any = |test: fn(&Turn) -> bool| count(&|talk: &Conversation| talk.turns.iter().any(test));
        assert!(any(|turn| turn.user == QUESTION) > 50);
        assert!(any(|turn| turn.user.starts_with("rate the clues")) > 80);
        assert!(any(|turn| turn.user.contains("(b)")) > 60);
        assert!(count(&|talk| talk.images.len() == 2) > 15);
        assert!(count(&|talk| talk.think) > 60);
    }

    #[test]
    fn every_text_is_single_spaced_lower_case() {
        let mut texts: Vec<Turn> = talks(200).into_iter().flat_map(|(_, talk)| talk.turns).collect();
        texts.extend((0..100).flat_map(|i| text(&mut stream(1, "text", i)).turns));
        for text in texts.iter().flat_map(|turn| [&turn.user, &turn.assistant]) {
            assert_eq!(*text, text.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase());
        }
    }

    #[test]
    fn a_hidden_thing_has_no_name_in_a_caption() {
        let scene = Scene::draw(Pool::Shown, &mut stream(1, "scene", 0));
        assert!(scene.caption(Some(0)).contains(HIDDEN));
    }
}
