//! A model's response taken apart: the thought, the answer, and whether the format was kept.

/// The parts of a response, borrowed from its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Response<'a> {
    /// The text between `<think>` and `</think>`, when both are there.
    pub thought: Option<&'a str>,
    /// The text inside the answer tags; without tags, what follows the thought; without a thought, everything.
    pub answer: Option<&'a str>,
    /// Whether the whole text is exactly one thought followed by one answer, each in its tags.
    pub well_formed: bool,
}

impl<'a> Response<'a> {
    /// Takes `text` apart. Never fails: a text without tags is all answer; an empty answer is `None`.
    pub fn parse(text: &'a str) -> Self {
        let thought = between(text, "<think>", "</think>");
        let after = text.split_once("</think>").map(|(_, rest)| rest);
        let answer = match text.split_once("<answer>") {
            Some((_, rest)) => rest.split("</answer>").next().unwrap_or(rest),
            None if text.contains("<think>") && after.is_none() => "",
            None => after.unwrap_or(text),
        };
        let answer = Some(answer.trim()).filter(|answer| !answer.is_empty());
        Self { thought: thought.map(str::trim), answer, well_formed: answer.is_some() && well_formed(text) }
    }

    /// The text up to and with the opening answer tag, after which an option can be scored; the tag is added when the
    /// thought was closed but no answer opened. `None` when the response has no thought: then options are scored at its start.
    pub fn answer_prefix(text: &str) -> Option<String> {
        if let Some((before, _)) = text.split_once("<answer>") {
            return Some(format!("{before}<answer>"));
        }
        text.split_once("</think>").map(|(before, _)| format!("{before}</think><answer>"))
    }
}

fn between<'a>(text: &'a str, open: &str, close: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(open)?;
    rest.split_once(close).map(|(inside, _)| inside)
}

fn well_formed(text: &str) -> bool {
    let once = |tag: &str| text.matches(tag).count() == 1;
    let Some(rest) = text.trim().strip_prefix("<think>").and_then(|rest| rest.strip_suffix("</answer>")) else {
        return false;
    };
    let Some((_, after)) = rest.split_once("</think>") else { return false };
    ["<think>", "</think>", "<answer>", "</answer>"].into_iter().all(once) && after.trim_start().starts_with("<answer>")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_a_response_apart() {
        let cases = [
            ("<think> a </think><answer> cup </answer>", Some("a"), Some("cup"), true),
            ("<think>a</think>\n<answer>stop sign</answer>\n", Some("a"), Some("stop sign"), true),
            ("<think>a</think> cup", Some("a"), Some("cup"), false),
            ("cup", None, Some("cup"), false),
            ("<think> a", None, None, false),
            ("<think>a</think><answer></answer>", Some("a"), None, false),
            ("x <think>a</think><answer>cup</answer>", Some("a"), Some("cup"), false),
            ("<think>a</think><answer>cup</answer><answer>b</answer>", Some("a"), Some("cup"), false),
            ("<think>a</think><answer>cup", Some("a"), Some("cup"), false),
        ];
        for (text, thought, answer, well_formed) in cases {
            assert_eq!(Response::parse(text), Response { thought, answer, well_formed }, "{text}");
        }
    }

    #[test]
    fn finds_where_options_are_scored() {
        assert_eq!(
            Response::answer_prefix("<think>a</think><answer>cup</answer>").unwrap(),
            "<think>a</think><answer>"
        );
        assert_eq!(Response::answer_prefix("<think>a</think> cup").unwrap(), "<think>a</think><answer>");
        assert_eq!(Response::answer_prefix("cup"), None);
    }
}
