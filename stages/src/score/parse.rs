//! Parsers: which option a text chose.
//!
//! | parser | choice | true/false |
//! |---|---|---|
//! | `strict` | the answer is a letter, an option's text, or a letter with its own option's text | it starts with yes, no, true or false |
//! | `authors` | the first of a, b, c, ... that is a substring of the answer in lower case: "D. backpack" is A | yes, else no, as a substring: "I do not know" is no |
//! | `free` | what `strict` finds; else the only letter that stands alone, else the last one stated as the answer, else the only option text that occurs | what `strict` finds, else the only one of yes and no that occurs |
//!
//! "The answer" is what stands inside the answer tags; without tags what follows the thought; without a thought everything
//! ([`crate::response::Response`]).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::record::{Form, Question};
use crate::response::Response;

/// How texts are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Parser {
    /// Only clear answers count; the others are unparsed.
    #[default]
    Strict,
    /// As the authors' script does it.
    Authors,
    /// Reads free prose.
    Free,
}

impl Parser {
    /// The option that `text` chose, or none. For true/false 0 is yes and 1 is no.
    pub fn read(self, question: &Question, text: &str) -> Option<usize> {
        let answer = Response::parse(text).answer?;
        match (self, question.form) {
            (Self::Strict, Form::TrueFalse) => first_word(answer),
            (Self::Strict, _) => choice(answer, &question.options),
            (Self::Authors, Form::TrueFalse) => substring(answer, &["yes", "no"]),
            (Self::Authors, _) => {
                let letters: Vec<String> = ('a'..='z').take(question.options.len()).map(String::from).collect();
                substring(answer, &letters)
            }
            (Self::Free, Form::TrueFalse) => {
                first_word(answer).or_else(|| only(&["yes", "no"].map(|word| mentions(answer, word))))
            }
            (Self::Free, _) => free(answer, &question.options),
        }
    }
}

fn substring<T: AsRef<str>>(answer: &str, wanted: &[T]) -> Option<usize> {
    let answer = answer.to_lowercase();
    wanted.iter().position(|wanted| answer.contains(wanted.as_ref()))
}

fn first_word(answer: &str) -> Option<usize> {
    let word: String =
        answer.trim_start_matches(['*', '"', '\'', '(']).chars().take_while(char::is_ascii_alphabetic).collect();
    match word.to_lowercase().as_str() {
        "yes" | "true" => Some(0),
        "no" | "false" => Some(1),
        _ => None,
    }
}

/// A letter, an option's text, or both in agreement.
fn choice(answer: &str, options: &[String]) -> Option<usize> {
    let answer = answer.trim().trim_matches(['*', '"', '`']).trim();
    let named = |text: &str| options.iter().position(|option| plain(option) == plain(text));
    if let Some(index) = named(answer) {
        return Some(index);
    }
    let (letter, rest) = leading_letter(answer, options.len())?;
    match rest.trim_start_matches([')', '.', ':', ',', '-', ']', ' ']).trim() {
        "" => Some(letter),
        text => named(text).filter(|index| *index == letter),
    }
}

/// A letter of the first `count` at the start, in brackets or not, and what follows it.
fn leading_letter(answer: &str, count: usize) -> Option<(usize, &str)> {
    let open = answer.trim_start_matches(['(', '[']);
    let letter = open.chars().next().filter(char::is_ascii_alphabetic)?;
    let rest = &open[1..];
    let index = letter.to_ascii_uppercase() as usize - 'A' as usize;
    let alone = rest.chars().next().is_none_or(|next| !next.is_alphanumeric());
    (index < count && alone).then_some((index, rest))
}

/// Lower case, single spaces, without article and closing punctuation.
fn plain(text: &str) -> String {
    let lower = text.trim().trim_end_matches(['.', ',', '!', ';']).to_lowercase();
    let words: Vec<&str> = lower.split_whitespace().collect();
    let skip = usize::from(words.len() > 1 && matches!(words[0], "a" | "an" | "the"));
    words[skip..].join(" ")
}

fn free(answer: &str, options: &[String]) -> Option<usize> {
    let letters = standing_letters(answer, options.len());
    let distinct: Vec<bool> =
        (0..options.len()).map(|index| letters.iter().any(|(_, letter)| *letter == index)).collect();
    choice(answer, options)
        .or_else(|| only(&distinct))
        .or_else(|| stated(answer, &letters))
        .or_else(|| only_text(answer, options))
}

/// The index of the only `true`.
fn only(found: &[bool]) -> Option<usize> {
    let mut indices = found.iter().enumerate().filter(|(_, found)| **found).map(|(index, _)| index);
    indices.next().filter(|_| indices.next().is_none())
}

/// Capital letters that stand alone, with their byte positions. An A before a lower-case word is an article.
fn standing_letters(text: &str, count: usize) -> Vec<(usize, usize)> {
    let bytes = text.as_bytes();
    let word = |at: Option<&u8>| at.is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'\'' || *byte >= 0x80);
    let alone = |at: &usize| !word(at.checked_sub(1).and_then(|before| bytes.get(before))) && !word(bytes.get(at + 1));
    let article = |at: usize| {
        bytes[at] == b'A' && bytes.get(at + 1) == Some(&b' ') && bytes.get(at + 2).is_some_and(u8::is_ascii_lowercase)
    };
    let letter = |at: usize| (bytes[at] as usize).checked_sub(b'A' as usize).filter(|index| *index < count);
    (0..bytes.len()).filter(alone).filter(|at| !article(*at)).filter_map(|at| Some((at, letter(at)?))).collect()
}

/// The last letter that follows the word "answer" or "option is" within a few words.
fn stated(text: &str, letters: &[(usize, usize)]) -> Option<usize> {
    let lower = text.to_ascii_lowercase();
    let announced = |at: usize| {
        let start = (0..=at.saturating_sub(40)).rev().find(|start| lower.is_char_boundary(*start)).unwrap_or(0);
        let before = lower[start..at].rsplit(['.', '\n', ';']).next().unwrap_or_default();
        ["answer", "correct option", "correct choice", "choose"].iter().any(|word| before.contains(word))
    };
    letters.iter().rev().find(|(at, _)| announced(*at)).map(|(_, letter)| *letter)
}

/// The only option whose text occurs, texts inside longer ones that occur aside.
fn only_text(text: &str, options: &[String]) -> Option<usize> {
    let mut found: Vec<bool> = options.iter().map(|option| mentions(text, option)).collect();
    for short in 0..options.len() {
        let covered = |long: usize| {
            found[long]
                && long != short
                && options[long].len() > options[short].len()
                && mentions(&options[long], &options[short])
        };
        if found[short] && (0..options.len()).any(covered) {
            found[short] = false;
        }
    }
    only(&found)
}

/// Whether `phrase` occurs in `text` as whole words, case aside.
fn mentions(text: &str, phrase: &str) -> bool {
    let (text, phrase) = (text.to_lowercase(), phrase.to_lowercase());
    let edge = |character: Option<char>| character.is_none_or(|character| !character.is_alphanumeric());
    !phrase.is_empty()
        && text
            .match_indices(&phrase)
            .any(|(at, found)| edge(text[..at].chars().next_back()) && edge(text[at + found.len()..].chars().next()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(form: Form, options: &[&str]) -> Question {
        let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
        let kinds = vec!["choice".to_owned(); options.len()];
        Question {
            id: "q".into(),
            item: None,
            form,
            group: "g".into(),
            images: vec![],
            prompt: String::new(),
            options,
            kinds,
            answer: 0,
            seed: 0,
        }
    }

    fn read(parser: Parser, text: &str) -> Option<usize> {
        let options = ["cup", "teddy bear", "bear", "backpack", "clock", "kite", "bench"];
        parser.read(&question(Form::ChoiceHard, &options), text)
    }

    #[test]
    fn strict_takes_clear_answers_only() {
        for (text, chosen) in [
            ("<think>B or C</think><answer>D</answer>", Some(3)),
            ("<answer> (D) </answer>", Some(3)),
            ("D.", Some(3)),
            ("D. backpack", Some(3)),
            ("G.bench", Some(6)),
            ("d) Backpack.", Some(3)),
            ("a teddy bear", Some(1)),
            ("A cup", Some(0)),
            ("The clock.", Some(4)),
            ("**E**", Some(4)),
            ("D. clock", None),
            ("H", None),
            ("it is D", None),
            ("backpack or clock", None),
            ("", None),
        ] {
            assert_eq!(read(Parser::Strict, text), chosen, "{text}");
        }
    }

    #[test]
    fn the_authors_quirks_are_kept() {
        for (text, chosen) in
            [("D. backpack", Some(0)), ("G.bench", Some(1)), ("<answer>D</answer>", Some(3)), ("xyz", None)]
        {
            assert_eq!(read(Parser::Authors, text), chosen, "{text}");
        }
        let name = question(Form::TrueFalse, &["cup"]);
        for (text, chosen) in [("Yes", Some(0)), ("I do not", Some(1)), ("know", Some(1)), ("maybe", None)] {
            assert_eq!(Parser::Authors.read(&name, text), chosen, "{text}");
        }
    }

    #[test]
    fn free_reads_prose() {
        for (text, chosen) in [
            ("I think the right option is (D), given the strap.", Some(3)),
            ("A bag is likely, so D", Some(3)),
            ("It may be B or D. The answer is D", Some(3)),
            ("Answer: B. D would be wrong", Some(1)),
            ("probably the teddy bear on the bed", Some(1)),
            ("a cup or a clock", None),
            ("B or D", None),
        ] {
            assert_eq!(read(Parser::Free, text), chosen, "{text}");
        }
    }

    #[test]
    fn true_false_is_read_from_the_first_word() {
        let name = question(Form::TrueFalse, &["cup"]);
        for (text, strict, free) in [
            ("Yes, it is.", Some(0), Some(0)),
            ("False", Some(1), Some(1)),
            ("It is not; no", None, Some(1)),
            ("nothing", None, None),
        ] {
            assert_eq!((Parser::Strict.read(&name, text), Parser::Free.read(&name, text)), (strict, free), "{text}");
        }
    }
}
