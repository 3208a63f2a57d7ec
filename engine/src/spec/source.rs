//! The text of a pipeline file, places in it, and the collector of problems.

use std::path::{Path, PathBuf};

use crate::diagnostic::{Diagnostic, Severity};

/// A place in the pipeline file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Span {
    /// From 1; 0 is the command line.
    pub(crate) line: usize,
    /// From 1, in characters.
    pub(crate) column: usize,
    /// In characters, on that line.
    pub(crate) length: usize,
}

impl Span {
    /// A value that came from the command line.
    pub(crate) const COMMAND_LINE: Span = Span { line: 0, column: 0, length: 0 };
    /// The first character of the file.
    pub(crate) const START: Span = Span { line: 1, column: 1, length: 1 };
}

/// A pipeline file.
pub(crate) struct SourceText {
    /// As given by the user.
    pub(crate) file: PathBuf,
    /// The whole text.
    pub(crate) text: String,
}

impl SourceText {
    pub(crate) fn new(file: &Path, text: String) -> Self {
        Self { file: file.to_owned(), text }
    }

    /// Text from bytes; the problem names the first byte that is none.
    pub(crate) fn decode(file: &Path, bytes: Vec<u8>) -> Result<Self, Box<Diagnostic>> {
        let error = match String::from_utf8(bytes) {
            Ok(text) => return Ok(Self::new(file, text)),
            Err(error) => error,
        };
        let at = error.utf8_error().valid_up_to();
        let (byte, lossy) = (error.as_bytes()[at], String::from_utf8_lossy(error.as_bytes()).into_owned());
        // What precedes the first bad byte is the same in both texts.
        let (line, column) = position(&lossy, at);
        let source = Self::new(file, lossy);
        let mut problems = Problems::new(&source);
        let span = Span { line, column, length: 1 };
        problems
            .error(span, "encoding", format!("byte 0x{byte:02x} here is not UTF-8"))
            .help("save the file as UTF-8; a place that looks fine may hold a letter in another encoding");
        Err(Box::new(problems.into_found().remove(0)))
    }

    fn line(&self, number: usize) -> &str {
        if number == 0 { "" } else { self.text.lines().nth(number - 1).unwrap_or_default() }
    }

    /// The place of `fragment` inside the value at `at`; `at` itself when it is not found there literally.
    fn within(&self, at: Span, fragment: &str) -> Span {
        let chars: Vec<char> = self.line(at.line).chars().collect();
        let from = at.column.saturating_sub(1).min(chars.len());
        let to = (from + at.length).min(chars.len());
        let value: String = chars[from..to].iter().collect();
        match value.find(fragment) {
            Some(bytes) if !fragment.is_empty() => {
                let before = value[..bytes].chars().count();
                Span { line: at.line, column: at.column + before, length: fragment.chars().count() }
            }
            _ => at,
        }
    }
}

/// Line and column, both from 1, of the character at byte `at`.
pub(crate) fn position(text: &str, at: usize) -> (usize, usize) {
    let before = &text[..at];
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().map_or(0, |rest| rest.chars().count()) + 1;
    (line, column)
}

/// Collects problems while a pipeline is read.
pub(crate) struct Problems<'s> {
    source: &'s SourceText,
    found: Vec<Diagnostic>,
}

impl<'s> Problems<'s> {
    pub(crate) fn new(source: &'s SourceText) -> Self {
        Self { source, found: Vec::new() }
    }

    /// Whether anything is wrong so far.
    pub(crate) fn any_error(&self) -> bool {
        self.found.iter().any(|found| found.severity == Severity::Error)
    }

    /// Everything found.
    pub(crate) fn into_found(self) -> Vec<Diagnostic> {
        self.found
    }

    /// Adds an error at `at`; the help can be filled in on what is returned.
    pub(crate) fn error(&mut self, at: Span, code: &'static str, message: impl Into<String>) -> &mut Diagnostic {
        self.push(at, code, Severity::Error, message.into())
    }

    /// Says what to do about the last problem.
    pub(crate) fn help(&mut self, text: impl Into<String>) {
        if let Some(last) = self.found.last_mut() {
            last.help(text);
        }
    }

    /// Adds an error at `fragment` inside the value at `at`.
    pub(crate) fn error_in(
        &mut self,
        at: Span,
        fragment: &str,
        code: &'static str,
        message: impl Into<String>,
    ) -> &mut Diagnostic {
        let at = self.source.within(at, fragment);
        self.push(at, code, Severity::Error, message.into())
    }

    /// Adds a warning at `at`.
    pub(crate) fn warning(&mut self, at: Span, code: &'static str, message: impl Into<String>) -> &mut Diagnostic {
        self.push(at, code, Severity::Warning, message.into())
    }

    fn push(&mut self, at: Span, code: &'static str, severity: Severity, message: String) -> &mut Diagnostic {
        let file = if at.line == 0 { PathBuf::from("command line") } else { self.source.file.clone() };
        let source = self.source.line(at.line).to_owned();
        let Span { line, column, length } = at;
        self.found.push(Diagnostic { code, severity, message, file, line, column, length, source, help: None });
        self.found.last_mut().expect("one was just pushed")
    }
}

impl Diagnostic {
    /// Says what to do.
    pub(crate) fn help(&mut self, text: impl Into<String>) {
        self.help = Some(text.into());
    }

    /// Suggests the nearest of `known` to `wrong`, or lists what there is.
    pub(crate) fn suggest<'n>(&mut self, wrong: &str, known: impl IntoIterator<Item = &'n str>) {
        let known: Vec<&str> = known.into_iter().collect();
        self.help = suggestion(wrong, &known);
    }
}

/// "did you mean", or what there is when nothing is near; `None` when there is nothing at all.
pub(crate) fn suggestion(wrong: &str, known: &[&str]) -> Option<String> {
    const LISTED: usize = 12;
    match nearest(wrong, known) {
        Some(near) => Some(format!("did you mean `{near}`?")),
        None if known.is_empty() => None,
        None => {
            let names: Vec<String> = known.iter().take(LISTED).map(|name| format!("`{name}`")).collect();
            let more = if known.len() > LISTED { ", ..." } else { "" };
            Some(format!("there is {}{more}", names.join(", ")))
        }
    }
}

/// The name among `known` that `wrong` most likely means.
fn nearest<'n>(wrong: &str, known: &[&'n str]) -> Option<&'n str> {
    let folded = wrong.to_lowercase();
    let score = |name: &str| {
        let name = name.to_lowercase();
        let tail = name.rsplit('.').next() == Some(folded.as_str());
        if tail {
            1.0
        } else {
            strsim::jaro_winkler(&folded, &name).max(strsim::normalized_damerau_levenshtein(&folded, &name))
        }
    };
    let best = known.iter().map(|name| (score(name), *name)).max_by(|a, b| a.0.total_cmp(&b.0))?;
    (best.0 > 0.8).then_some(best.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggests_what_was_meant() {
        assert_eq!(suggestion("fliter", &["filter", "mine"]).unwrap(), "did you mean `filter`?");
        assert_eq!(suggestion("sft", &["train.sft", "train.grpo"]).unwrap(), "did you mean `train.sft`?");
        assert_eq!(suggestion("zzz", &["filter", "mine"]).unwrap(), "there is `filter`, `mine`");
        assert_eq!(suggestion("zzz", &[]), None);
    }

    #[test]
    fn names_the_first_byte_that_is_no_text() {
        let problem = SourceText::decode(Path::new("a"), b"a: 1\n\xc3\xa9: x\xfey\n".to_vec()).err().unwrap();
        assert_eq!((problem.code, problem.line, problem.column), ("encoding", 2, 5));
        assert!(problem.message.contains("0xfe"), "{}", problem.message);
        assert_eq!(SourceText::decode(Path::new("a"), "é".into()).ok().unwrap().text, "é");
    }

    #[test]
    fn finds_a_fragment_inside_a_value() {
        let source = SourceText::new(Path::new("a"), "k: \"pre ${x} post\"\n".to_owned());
        let at = Span { line: 1, column: 4, length: 15 };
        assert_eq!(source.within(at, "${x}"), Span { line: 1, column: 9, length: 4 });
        assert_eq!(source.within(at, "${y}"), at);
    }
}
