//! What is wrong with a pipeline: plain data, every problem at once, sorted by position.
//!
//! A [`Diagnostic`] names file, line and column, carries the source line, and may suggest what was meant. Its `Display` is
//! the text that a terminal shows, without colour:
//!
//! ```text
//! error[unknown-stage]: no stage or model is called `fliter`
//!   --> demo.yaml:9:25
//!    |
//!  9 |     inputs: { regions: fliter.regions }
//!    |                        ^^^^^^
//!    = help: did you mean `filter`?
//! ```

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

/// Longest piece of a source line that is shown, in characters; longer lines are cut around the caret.
const SHOWN: usize = 140;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// There is no plan.
    Error,
    /// There is a plan, but it is probably not what was meant.
    Warning,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
        })
    }
}

/// One problem at one place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// A stable name of the kind of problem, such as `unknown-port`.
    pub code: &'static str,
    /// Error or warning.
    pub severity: Severity,
    /// What is wrong.
    pub message: String,
    /// The pipeline file, as given; `command line` for a problem with an option.
    pub file: PathBuf,
    /// Line from 1; 0 when the problem has no line (an option, a file that cannot be read).
    pub line: usize,
    /// Column from 1, in characters; 0 when there is no line.
    pub column: usize,
    /// Characters to underline, at least 1 when there is a line.
    pub length: usize,
    /// The source line, without its line break.
    pub source: String,
    /// What to do about it.
    pub help: Option<String>,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]: {}", self.severity, self.code, self.message)?;
        let gutter = self.line.to_string().len().max(2);
        if self.line == 0 {
            write!(f, "\n{:gutter$}--> {}", "", self.file.display())?;
        } else {
            write!(f, "\n{:gutter$}--> {}:{}:{}", "", self.file.display(), self.line, self.column)?;
            let (text, before) = self.excerpt();
            let carets = "^".repeat(self.length.max(1).min(text.chars().count().saturating_sub(before).max(1)));
            write!(f, "\n{:gutter$} |\n{:>gutter$} | {text}", "", self.line)?;
            write!(f, "\n{:gutter$} | {:before$}{carets}", "", "")?;
        }
        match &self.help {
            Some(help) => write!(f, "\n{:gutter$} = help: {help}", ""),
            None => Ok(()),
        }
    }
}

impl Diagnostic {
    /// The part of the source line to show, and how many characters of it stand before the caret.
    fn excerpt(&self) -> (String, usize) {
        let line: Vec<char> = self.source.chars().map(|c| if c == '\t' { ' ' } else { c }).collect();
        let at = self.column.saturating_sub(1).min(line.len());
        if line.len() <= SHOWN {
            return (line.into_iter().collect(), at);
        }
        let first = at.saturating_sub(SHOWN / 2).min(line.len().saturating_sub(SHOWN));
        let last = (first + SHOWN).min(line.len());
        let mut text: String = line[first..last].iter().collect();
        let mut before = at - first;
        if first > 0 {
            text.insert(0, '…');
            before += 1;
        }
        if last < line.len() {
            text.push('…');
        }
        (text, before)
    }
}

/// Every problem of a pipeline, sorted by position.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnostics(Vec<Diagnostic>);

impl Diagnostics {
    /// Sorts by position and drops repetitions (the nodes of a matrix share their text).
    pub fn new(mut found: Vec<Diagnostic>) -> Self {
        fn key(d: &Diagnostic) -> (usize, usize, &str, &str) {
            (d.line, d.column, d.code, &d.message)
        }
        found.sort_by(|a, b| key(a).cmp(&key(b)));
        found.dedup_by(|a, b| key(a) == key(b));
        Self(found)
    }

    /// The problems, in order of position.
    pub fn iter(&self) -> std::slice::Iter<'_, Diagnostic> {
        self.0.iter()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Splits errors from warnings.
    pub(crate) fn split(self) -> (Vec<Diagnostic>, Vec<Diagnostic>) {
        self.0.into_iter().partition(|diagnostic| diagnostic.severity == Severity::Error)
    }
}

impl IntoIterator for Diagnostics {
    type Item = Diagnostic;
    type IntoIter = std::vec::IntoIter<Diagnostic>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, diagnostic) in self.0.iter().enumerate() {
            let gap = if index == 0 { "" } else { "\n\n" };
            write!(f, "{gap}{diagnostic}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostics {}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(line: usize, column: usize, source: &str) -> Diagnostic {
        Diagnostic {
            code: "sample",
            severity: Severity::Error,
            message: "wrong".to_owned(),
            file: PathBuf::from("a.yaml"),
            line,
            column,
            length: 3,
            source: source.to_owned(),
            help: None,
        }
    }

    #[test]
    fn carets_stand_below_the_text() {
        let text = sample(7, 3, "a bcd e").to_string();
        assert_eq!(text, "error[sample]: wrong\n  --> a.yaml:7:3\n   |\n 7 | a bcd e\n   |   ^^^");
    }

    #[test]
    fn long_lines_are_cut_around_the_caret() {
        let source = format!("{}XYZ{}", "a".repeat(500), "b".repeat(500));
        let text = sample(1, 501, &source).to_string();
        let lines: Vec<&str> = text.lines().collect();
        let caret = lines[4].chars().position(|c| c == '^').unwrap();
        let marked: String = lines[3].chars().skip(caret).take(3).collect();
        assert_eq!(marked, "XYZ");
        assert!(lines[3].chars().count() < 160);
    }

    #[test]
    fn repetitions_are_dropped() {
        let all = Diagnostics::new(vec![sample(9, 1, "x"), sample(2, 1, "x"), sample(9, 1, "x")]);
        assert_eq!(all.iter().map(|d| d.line).collect::<Vec<_>>(), [2, 9]);
    }

    #[test]
    fn positions_past_the_line_do_not_panic() {
        assert!(sample(3, 90, "short").to_string().contains('^'));
        assert!(sample(3, 1, "").to_string().contains('^'));
    }
}
