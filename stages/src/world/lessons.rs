//! From lore to sequences that a model learns from.

use std::collections::BTreeMap;
use std::path::Path;

use image::RgbImage;
use mpcc_engine::stage::StageError;
use mpcc_models::chat::{Part, Role, Turn};
use mpcc_models::train::lm::Sequence;
use mpcc_models::vlm::Vlm;
use mpcc_models::{ModelError, Result};

use super::lore::{Conversation, Kind, Shown};
use super::speech;
use super::words::{END_OF_TURN, START_OF_TURN, special};
use crate::dataset::Dataset;
use crate::mask::{Mask, MaskedImage};

/// The lore of a dataset, by kind, with the pictures it has needed so far.
pub struct Lessons {
    dataset: Dataset,
    mask: Mask,
    by_kind: BTreeMap<Kind, Vec<Conversation>>,
    pictures: BTreeMap<String, RgbImage>,
}

impl Lessons {
    /// Reads the lore at `path`, which speaks of the pictures of `dataset`.
    pub fn read(path: &Path, dataset: Dataset) -> std::result::Result<Self, StageError> {
        let text = std::fs::read_to_string(path).map_err(|error| StageError::io(path, error))?;
        let mut by_kind: BTreeMap<Kind, Vec<Conversation>> = BTreeMap::new();
        for (line, number) in text.lines().zip(1..) {
            let wrong = |cause: String| StageError::invalid(format!("{}:{number}: {cause}", path.display()));
            let conversation: Conversation =
                serde_json::from_str(line).map_err(|error| wrong(format!("no conversation: {error}")))?;
            check(&conversation, &dataset).map_err(wrong)?;
            by_kind.entry(conversation.kind).or_default().push(conversation);
        }
        if by_kind.is_empty() {
            let hint = "the lore is empty; only `part: pretrain` of scenes.generate has any";
            return Err(StageError::invalid(format!("{}: {hint}", path.display())));
        }
        Ok(Self { dataset, mask: Mask::default(), by_kind, pictures: BTreeMap::new() })
    }

    /// How many conversations of `kind` there are.
    pub fn len(&self, kind: Kind) -> usize {
        self.by_kind.get(&kind).map_or(0, Vec::len)
    }

    /// Conversation `index` of `kind` as `vlm` reads it: the assistant's words and ends of turn weigh 1 or, in short
    /// answers, [`SHORT`], all else 0.
    ///
    /// # Errors
    /// When a picture cannot be opened or the model's tokenizer or template refuses a text.
    pub fn sequence(&mut self, vlm: &Vlm, kind: Kind, index: usize) -> Result<Sequence> {
        let conversation = self.by_kind[&kind][index].clone();
        let images: Result<Vec<RgbImage>> = conversation.images.iter().map(|shown| self.picture(shown)).collect();
        let prompt = vlm.prompt(&turns(&conversation), &images?, false)?;
        let assistant = vlm.encode(Role::Assistant.name())?;
        let mut weights = weights(&prompt.ids, &assistant);
        stress(&prompt.ids, &mut weights);
        Ok(Sequence { prompt, weights })
    }

    fn picture(&mut self, shown: &Shown) -> Result<RgbImage> {
        let failed = |error: String| ModelError::Setting(error);
        if !self.pictures.contains_key(&shown.image) {
            let picture = self.dataset.open_rgb(&shown.image).map_err(|error| failed(error.to_string()))?;
            self.pictures.insert(shown.image.clone(), picture);
        }
        let picture = self.pictures[&shown.image].clone();
        Ok(match shown.hidden.and_then(|id| self.dataset.annotation(id)) {
            Some(annotation) => MaskedImage::hide(picture, annotation.bbox, None, &self.mask).into_rgb(),
            None => picture,
        })
    }
}

fn check(conversation: &Conversation, dataset: &Dataset) -> std::result::Result<(), String> {
    for shown in &conversation.images {
        let picture =
            dataset.picture(&shown.image).ok_or_else(|| format!("the dataset has no picture `{}`", shown.image))?;
        if let Some(id) = shown.hidden
            && !dataset.annotations_of(picture).any(|annotation| annotation.id == id)
        {
            return Err(format!("`{}` has no annotation {id}", shown.image));
        }
    }
    Ok(())
}

/// A conversation as chat turns: the system turn of think mode if it is on, the pictures before the first question.
fn turns(conversation: &Conversation) -> Vec<Turn> {
    let mut turns = Vec::with_capacity(2 * conversation.turns.len() + 1);
    if conversation.think {
        turns.push(Turn::text(Role::System, speech::THINK));
    }
    for (index, turn) in conversation.turns.iter().enumerate() {
        let pictures = if index == 0 { conversation.images.len() } else { 0 };
        let mut parts = vec![Part::Image; pictures];
        parts.push(Part::Text(turn.user.clone()));
        turns.push(Turn { role: Role::User, parts });
        turns.push(Turn::text(Role::Assistant, turn.assistant.clone()));
    }
    turns
}

/// What a token of a short answer weighs beside one of a longer text.
const SHORT: f32 = 2.0;
/// Words of a short answer at most.
const FEW: usize = 4;

/// Gives the tokens of short answers, alone or between answer tags, the weight [`SHORT`]: a name is one word among dozens that
/// describe, and the one that matters.
fn stress(ids: &[u32], weights: &mut [f32]) {
    let (open, close, end) = (special("<answer>"), special("</answer>"), special(END_OF_TURN));
    let mut start = None;
    for index in 0..ids.len() {
        if weights[index] == 0.0 {
            start = None;
        } else if start.is_none() || ids[index] == open {
            start = Some(index + usize::from(ids[index] == open));
        } else if let Some(first) = start.filter(|_| ids[index] == close || ids[index] == end) {
            if index - first <= FEW {
                weights[first..index].fill(SHORT);
            }
            start = Some(index + 1);
        }
    }
}

/// 1 for every token of an assistant's turn after its opening, its end included.
fn weights(ids: &[u32], assistant: &[u32]) -> Vec<f32> {
    let (start, end) = (special(START_OF_TURN), special(END_OF_TURN));
    let mut weights = vec![0.0; ids.len()];
    let mut speaking = false;
    for index in 0..ids.len() {
        if speaking {
            weights[index] = 1.0;
            speaking = ids[index] != end;
        } else if index > 0 {
            speaking = ids[index - 1] == start && ids[index..].starts_with(assistant);
        }
    }
    weights
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_assistant_is_learned_from() {
        let (start, end) = (special(START_OF_TURN), special(END_OF_TURN));
        let (user, assistant) = (50, 51);
        let ids = [
            start, user, 60, end, start, assistant, 61, 62, end, start, user, assistant, end, start, assistant, 63, end,
        ];
        let wanted = [0, 0, 0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 1, 1].map(|w| w as f32);
        assert_eq!(weights(&ids, &[assistant]), wanted);
    }

    #[test]
    fn short_answers_weigh_more() {
        let end = special(END_OF_TURN);
        let (open, close) = (special("<answer>"), special("</answer>"));
        let stressed = |ids: &[u32], weights: &[f32]| {
            let mut weights = weights.to_vec();
            stress(ids, &mut weights);
            weights
        };
        assert_eq!(stressed(&[50, 60, 61, end], &[0.0, 1.0, 1.0, 1.0]), [0.0, SHORT, SHORT, 1.0]);
        let thought = [50, 70, 71, 72, 73, 74, open, 60, close, end];
        let weights = [0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0];
        assert_eq!(stressed(&thought, &weights), [0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, SHORT, 1.0, 1.0]);
    }
}
