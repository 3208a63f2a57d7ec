//! The words of the world, and the tokenizer made of them.
//!
//! A word is a token; text is split at white space. Letters are lower-cased. Special tokens and the tags of think mode are
//! found with or without white space around them. Any other word is read as `<unk>`, which is never a training target.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::catalog::CATEGORIES;
use super::settings::SETTINGS;
use super::speech;
use crate::place::{COLUMNS, ROWS};

/// Ends a text; also the padding token.
pub const END_OF_TEXT: &str = "<|endoftext|>";
/// Ends a turn.
pub const END_OF_TURN: &str = "<|im_end|>";
/// Begins a turn.
pub const START_OF_TURN: &str = "<|im_start|>";
/// Stands for a picture.
pub const PICTURE: &str = "<|image_pad|>";
/// Stands for a video; the architecture names one.
pub const VIDEO: &str = "<|video_pad|>";
/// Before a picture.
pub const START_OF_PICTURE: &str = "<|vision_start|>";
/// After a picture.
pub const END_OF_PICTURE: &str = "<|vision_end|>";
/// Any word that is not known.
pub const UNKNOWN: &str = "<unk>";

/// Tokens that are markup, first in the vocabulary.
const SPECIAL: [&str; 8] =
    [END_OF_TEXT, START_OF_TURN, END_OF_TURN, START_OF_PICTURE, END_OF_PICTURE, PICTURE, VIDEO, UNKNOWN];
/// The tags of think mode, next in the vocabulary.
const TAGS: [&str; 4] = ["<think>", "</think>", "<answer>", "</answer>"];

/// Words of questions and sentences that no other list names.
const GRAMMAR: &str = "system user assistant . , : ? ! a an the this that it is are was there here which what where how \
    and or not no yes with without in on at of to from by behind near seen left right above below big small tall wide large \
    place picture thing object black box hidden describe see i likely so because rate clues for write reasoning first \
    second has closer think then answer option options name one word best choose letter only please look image visible \
    (a) (b) (c) (d) (e) (f) (g) a. b. c. d. e. f. g. 1 2 3 4 5 6 7 8 9 10";

/// Every token in the order of its id.
pub fn vocabulary() -> Vec<String> {
    let mut words: BTreeSet<&str> = GRAMMAR.split_whitespace().collect();
    let texts = [speech::THINK, speech::QUESTION, speech::CAPTION];
    let names = CATEGORIES.iter().map(|category| category.name).chain(SETTINGS.iter().map(|setting| setting.name));
    words.extend(names.chain(texts).chain(ROWS).chain(COLUMNS).flat_map(str::split_whitespace));
    SPECIAL.into_iter().chain(TAGS).chain(words).map(str::to_owned).collect()
}

/// The id of a token of [`vocabulary`] that is markup.
pub fn special(token: &str) -> u32 {
    let found = SPECIAL.into_iter().chain(TAGS).position(|known| known == token);
    found.expect("a token of the list") as u32
}

/// `tokenizer.json`.
pub fn tokenizer() -> Value {
    let words = vocabulary();
    let vocabulary: serde_json::Map<String, Value> =
        words.iter().zip(0..).map(|(word, id)| (word.clone(), Value::from(id))).collect();
    let added: Vec<Value> = words
        .iter()
        .zip(0..SPECIAL.len() + TAGS.len())
        .map(|(content, id)| {
            json!({
                "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": id < SPECIAL.len(),
            })
        })
        .collect();
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": { "type": "Lowercase" },
        "pre_tokenizer": { "type": "WhitespaceSplit" },
        "post_processor": null,
        "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": UNKNOWN },
    })
}

/// `tokenizer_config.json`.
pub fn tokenizer_config() -> Value {
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_TURN,
        "pad_token": END_OF_TEXT,
        "unk_token": UNKNOWN,
        "clean_up_tokenization_spaces": false,
        "model_max_length": 2048,
    })
}

/// The chat template: ChatML with pictures, no system turn unless one is given.
pub const CHAT_TEMPLATE: &str = "\
{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{% if message['content'] is string -%}
{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}
<|vision_start|><|image_pad|><|vision_end|>
{%- elif part['type'] == 'text' -%}
{{ part['text'] }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
";

#[cfg(test)]
mod tests {
    use mpcc_models::tokenizer::TextTokenizer;

    use super::*;
    use crate::world::lore::{self, Mix, Placed};
    use crate::world::random::stream;
    use crate::world::scene::{Pool, Scene};

    fn read() -> TextTokenizer {
        TextTokenizer::new(serde_json::to_vec(&tokenizer()).unwrap(), tokenizer_config()).unwrap()
    }

    #[test]
    fn words_and_markup_come_back() {
        let tokenizer = read();
        let ids = tokenizer.encode("<|im_start|>user\nWhat is behind the black box ?<|im_end|>\n").unwrap();
        assert_eq!(ids[0], special(START_OF_TURN));
        assert_eq!(*ids.last().unwrap(), special(END_OF_TURN));
        assert_eq!(tokenizer.decode(&ids).unwrap(), "user what is behind the black box ?");
        let text = "<think> this is a kitchen . </think> <answer> fire hydrant </answer>";
        assert_eq!(tokenizer.decode(&tokenizer.encode(text).unwrap()).unwrap(), text);
        assert_eq!(
            tokenizer.encode("<answer>cup</answer>").unwrap(),
            tokenizer.encode("<answer> cup </answer>").unwrap()
        );
        assert_eq!(tokenizer.encode("quizzical").unwrap(), [special(UNKNOWN)]);
    }

    #[test]
    fn the_lore_has_no_unknown_word() {
        let tokenizer = read();
        let scenes: Vec<Scene> = (0..300).map(|i| Scene::draw(Pool::Shown, &mut stream(1, "scene", i))).collect();
        let placed: Vec<Placed<'_>> = scenes.iter().map(|scene| Placed { scene, image: "x", first: 1 }).collect();
        for (i, place) in placed.iter().enumerate() {
            let rng = &mut stream(1, "lore", i);
            let told = [
                lore::talk(*place, &placed, &Mix::default(), rng),
                lore::caption(*place, &Mix::default(), rng),
                lore::text(rng),
            ];
            for turn in told.iter().flat_map(|conversation| &conversation.turns) {
                for text in [&turn.user, &turn.assistant] {
                    let ids = tokenizer.encode(text).unwrap();
                    assert!(!ids.contains(&special(UNKNOWN)), "{text}");
                    assert_eq!(tokenizer.decode(&ids).unwrap(), *text);
                }
            }
        }
    }

    #[test]
    fn the_vocabulary_is_small_and_has_no_duplicates() {
        let words = vocabulary();
        let distinct: BTreeSet<&String> = words.iter().collect();
        assert_eq!(distinct.len(), words.len());
        assert!(words.len() < 256, "{}", words.len());
    }
}
