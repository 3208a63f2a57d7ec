//! Where everything is: a tree of places, built from parse events without recursion.
//!
//! It also holds the bounds of what a pipeline file may be, before any value is built: at most [`MAX_DEPTH`] levels, and at
//! most [`MAX_REPEATED`] values more than are written out once aliases are followed (an anchor is stored once and shared,
//! so a bomb of aliases costs nothing to detect). Duplicate keys and keys that are no plain text are found here too.

use std::collections::BTreeMap;
use std::rc::Rc;

use saphyr_parser::{Event, Parser, Span as EventSpan, StrInput};

use super::source::{Problems, Span};

/// Deepest nesting.
pub(crate) const MAX_DEPTH: usize = 64;
/// Most values that following aliases may add to those written out.
pub(crate) const MAX_REPEATED: usize = 100_000;
/// Maps up to this many keys are searched one by one.
const SMALL_MAP: usize = 8;

/// The place of a value and of what is in it.
#[derive(Debug, Default)]
pub(crate) struct Place {
    /// Where the value starts.
    pub(crate) at: Span,
    /// Values in it, itself included, aliases followed.
    size: usize,
    depth: usize,
    keys: Keys,
    items: Vec<Rc<Place>>,
}

/// The keys of a map in the order written.
#[derive(Debug, Default)]
struct Keys {
    list: Vec<(String, Span, Rc<Place>)>,
    /// Where each key is in the list, once there are more than [`SMALL_MAP`].
    index: BTreeMap<String, usize>,
}

impl Keys {
    fn push(&mut self, key: String, at: Span, place: Rc<Place>) {
        self.list.push((key, at, place));
        match self.list.len() {
            0..=SMALL_MAP => {}
            len if self.index.is_empty() => {
                self.index = self.list[..len].iter().enumerate().map(|(at, (key, ..))| (key.clone(), at)).collect();
            }
            len => {
                self.index.insert(self.list[len - 1].0.clone(), len - 1);
            }
        }
    }

    fn get(&self, key: &str) -> Option<&(String, Span, Rc<Place>)> {
        match self.list.len() {
            0..=SMALL_MAP => self.list.iter().find(|(name, ..)| name == key),
            _ => self.index.get(key).map(|at| &self.list[*at]),
        }
    }
}

impl Place {
    /// The places of `key` and of its value; keys that come in through `<<` are found too.
    pub(crate) fn key(&self, key: &str) -> Option<(Span, &Rc<Place>)> {
        let own = self.keys.get(key).map(|(_, at, place)| (*at, place));
        own.or_else(|| {
            let (_, _, merged) = self.keys.get("<<")?;
            merged.key(key).or_else(|| merged.items.iter().find_map(|item| item.key(key)))
        })
    }

    /// The place of item `index` of a list.
    pub(crate) fn item(&self, index: usize) -> Option<&Rc<Place>> {
        self.items.get(index)
    }
}

/// A collection that is being read.
struct Open {
    place: Place,
    anchor: usize,
    map: bool,
    key: Option<(String, Span)>,
}

/// Reads the events of `text`. `None` when a problem was reported or the text is no YAML (serde_yaml then says why).
pub(crate) fn index(text: &str, problems: &mut Problems<'_>) -> Option<Rc<Place>> {
    let mut builder = Builder { text, open: Vec::new(), anchors: BTreeMap::new(), root: None, written: 0, sound: true };
    let mut parser: Parser<'_, StrInput<'_>> = Parser::new_from_str(text);
    while let Some(event) = parser.next_event() {
        let (event, span) = match event {
            Ok(event) => event,
            Err(error) => {
                let at = Span { line: error.marker().line(), column: error.marker().col() + 1, length: 1 };
                let culprit = Noticed { text, at, index: error.marker().index(), info: error.info() };
                culprit.report(builder.flow(), problems);
                return None;
            }
        };
        if !builder.take(event, &span, problems) {
            return None;
        }
    }
    builder.root.filter(|_| builder.sound)
}

struct Builder<'t> {
    text: &'t str,
    open: Vec<Open>,
    anchors: BTreeMap<usize, Rc<Place>>,
    root: Option<Rc<Place>>,
    /// Values written out so far.
    written: usize,
    sound: bool,
}

impl Builder<'_> {
    /// The innermost `{` or `[` that is open, and where it is.
    fn flow(&self) -> Option<(char, Span)> {
        let bracket = |open: &Open| Some((char_at(self.text, open.place.at)?, open.place.at));
        self.open.iter().rev().filter_map(bracket).find(|(c, _)| "{[".contains(*c))
    }

    /// Takes one event; false stops.
    fn take(&mut self, event: Event<'_>, span: &EventSpan, problems: &mut Problems<'_>) -> bool {
        let at = place_of(span);
        self.written +=
            usize::from(matches!(event, Event::Scalar(..) | Event::SequenceStart(..) | Event::MappingStart(..)));
        match event {
            Event::Scalar(text, _, anchor, _) => {
                if self.wants_key() {
                    return self.take_key(text.into_owned(), at, problems);
                }
                self.close(Place { at, size: 1, depth: 0, ..Place::default() }, anchor, problems)
            }
            Event::Alias(anchor) => {
                let shared = self.anchors.get(&anchor).cloned();
                match shared {
                    Some(place) if !self.wants_key() => self.attach(place, at, problems),
                    _ => self.stop(at, "alias", "this alias stands for nothing that is complete", problems),
                }
            }
            Event::SequenceStart(anchor, _) => self.start(at, anchor, false, problems),
            Event::MappingStart(anchor, _) => self.start(at, anchor, true, problems),
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(done) => self.close(done.place, done.anchor, problems),
                None => false,
            },
            _ => true,
        }
    }

    fn wants_key(&self) -> bool {
        self.open.last().is_some_and(|open| open.map && open.key.is_none())
    }

    fn stop(&mut self, at: Span, code: &'static str, message: &str, problems: &mut Problems<'_>) -> bool {
        problems.error(at, code, message);
        self.sound = false;
        false
    }

    fn take_key(&mut self, key: String, at: Span, problems: &mut Problems<'_>) -> bool {
        let open = self.open.last_mut().expect("a key stands in a map");
        if let Some((_, first, _)) = open.place.keys.get(&key) {
            let line = first.line;
            problems
                .error(at, "duplicate-key", format!("`{key}` is written twice in the same map"))
                .help(format!("the first one is on line {line}; keep one of them"));
            self.sound = false;
        }
        open.key = Some((key, at));
        true
    }

    fn start(&mut self, at: Span, anchor: usize, map: bool, problems: &mut Problems<'_>) -> bool {
        if self.wants_key() {
            self.stop(at, "key", "a key must be plain text, not a list or a map", problems);
            if let Some((bracket, open)) = self.flow() {
                let Span { line, column, .. } = open;
                problems.help(format!(
                    "or is the `{bracket}` of line {line}, column {column} not closed where it should be?"
                ));
            }
            return false;
        }
        if self.open.len() >= MAX_DEPTH {
            let message = format!("nested deeper than {MAX_DEPTH} levels");
            return self.stop(at, "too-deep", &message, problems);
        }
        self.open.push(Open { place: Place { at, size: 1, depth: 1, ..Place::default() }, anchor, map, key: None });
        true
    }

    /// A value is complete.
    fn close(&mut self, place: Place, anchor: usize, problems: &mut Problems<'_>) -> bool {
        let at = place.at;
        let place = Rc::new(place);
        if anchor != 0 {
            self.anchors.insert(anchor, place.clone());
        }
        self.attach(place, at, problems)
    }

    /// Puts a complete value into the collection around it.
    fn attach(&mut self, place: Rc<Place>, at: Span, problems: &mut Problems<'_>) -> bool {
        let depth = self.open.len() + place.depth;
        let Some(open) = self.open.last_mut() else {
            self.root.get_or_insert(place);
            return true;
        };
        open.place.size = open.place.size.saturating_add(place.size);
        open.place.depth = open.place.depth.max(place.depth + 1);
        let size = open.place.size;
        match open.key.take() {
            Some((key, key_at)) => open.place.keys.push(key, key_at, place),
            None => open.place.items.push(place),
        }
        if size > MAX_REPEATED + self.written {
            let message = format!("following its aliases adds more than {MAX_REPEATED} values to this file");
            return self.stop(at, "too-large", &message, problems);
        }
        if depth > MAX_DEPTH {
            let message = format!("with its aliases followed, this is nested deeper than {MAX_DEPTH} levels");
            return self.stop(at, "too-deep", &message, problems);
        }
        true
    }
}

fn char_at(text: &str, at: Span) -> Option<char> {
    text.lines().nth(at.line.checked_sub(1)?)?.chars().nth(at.column.checked_sub(1)?)
}

/// The place where a parser noticed that the text is no YAML. The mistake is often somewhere before it.
struct Noticed<'t> {
    text: &'t str,
    at: Span,
    /// In characters of the whole text.
    index: usize,
    info: &'t str,
}

impl Noticed<'_> {
    /// Reports the mistake where it was probably made; `flow` is the innermost bracket that is open.
    fn report(&self, flow: Option<(char, Span)>, problems: &mut Problems<'_>) {
        let (here, info) = (format!("line {}, column {}", self.at.line, self.at.column), self.info);
        if let Some(tab) = self.tab() {
            let message = "this is not YAML: a tab in the indentation of a line";
            problems.error(tab, "syntax", message).help("indent with spaces");
        } else if let Some((quote, open)) = self.quote() {
            let message = "this is not YAML: the text in quotes that begins here does not end well";
            problems
                .error(open, "syntax", message)
                .help(format!("is a closing `{quote}` missing? the parser says: {info}"));
        } else if let Some((bracket, open)) =
            flow.filter(|(bracket, open)| self.is_left_open(*bracket, *open)).or_else(|| self.left_open_before())
        {
            let message = format!("this is not YAML: the `{bracket}` here is not closed before {here}");
            problems.error(open, "syntax", message).help(format!("the parser says there: {info}"));
        } else {
            let (at, ending) = self.inside();
            problems.error(at, "syntax", format!("this is not YAML: {info}{ending}"));
        }
    }

    /// The place itself; behind the end of the file, the last line that says something.
    fn inside(&self) -> (Span, &'static str) {
        if self.at.line <= self.text.lines().count() {
            return (self.at, "");
        }
        let last = self.text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).last();
        let at = last.map_or(Span::START, |(index, line)| {
            let column = line.chars().take_while(|c| c.is_whitespace()).count() + 1;
            Span { line: index + 1, column, length: line.trim().chars().count() }
        });
        (at, ", and the file ends here")
    }

    /// A tab in the indentation of the line of the problem, or of the next one: the parser looks ahead.
    fn tab(&self) -> Option<Span> {
        let lines = self.text.lines().enumerate().skip(self.at.line.saturating_sub(1)).take(2);
        let tab = |(index, line): (usize, &str)| {
            let column = line.chars().take_while(|c| c.is_whitespace()).position(|c| c == '\t')? + 1;
            Some(Span { line: index + 1, column, length: 1 })
        };
        lines.filter(|(_, line)| !line.trim().is_empty()).find_map(tab)
    }

    /// The quote that opened the text in quotes that ended right before the problem.
    fn quote(&self) -> Option<(char, Span)> {
        if !self.info.contains("quoted scalar") {
            return None;
        }
        // Of text over several lines the parser names the beginning, of text on one line the end.
        if let Some(quote) = char_at(self.text, self.at).filter(|c| matches!(c, '"' | '\'')) {
            return Some((quote, self.at));
        }
        let before: Vec<char> = self.text.chars().take(self.index).collect();
        let is_quote = |c: &char| matches!(c, '"' | '\'');
        let close = before.iter().rposition(is_quote)?;
        let quote = before[close];
        let open = before[..close].iter().rposition(|c| *c == quote)?;
        let line = before[..open].iter().filter(|c| **c == '\n').count() + 1;
        let column = before[..open].iter().rev().take_while(|c| **c != '\n').count() + 1;
        Some((quote, Span { line, column, length: 1 }))
    }

    /// A bracket that one of the lines right before the problem opens and does not close. The parser reads ahead before it
    /// tells of brackets that might begin a key.
    fn left_open_before(&self) -> Option<(char, Span)> {
        let lines = self.text.lines().enumerate().take(self.at.line.saturating_sub(1));
        let mut near: Vec<(usize, &str)> = lines.collect();
        near.drain(..near.len().saturating_sub(2));
        near.into_iter().find_map(|(index, line)| {
            let (mut open, mut quote, mut before) = (Vec::new(), None, ' ');
            for (column, c) in line.chars().enumerate() {
                match (quote, c) {
                    (Some(closing), c) if closing == c => quote = None,
                    (Some(_), _) => {}
                    (None, '"' | '\'') => quote = Some(c),
                    (None, '{' | '[') if " [{".contains(before) => open.push((c, column + 1)),
                    (None, '}' | ']') => drop(open.pop()),
                    _ => {}
                }
                before = c;
            }
            open.pop().map(|(bracket, column)| (bracket, Span { line: index + 1, column, length: 1 }))
        })
    }

    /// Whether the problem is that a bracket was not closed: another line has begun, or another bracket closes.
    fn is_left_open(&self, bracket: char, open: Span) -> bool {
        let wrong = if bracket == '{' { ']' } else { '}' };
        open.line < self.at.line || char_at(self.text, self.at) == Some(wrong)
    }
}

fn place_of(span: &EventSpan) -> Span {
    let same_line = span.start.line() == span.end.line();
    let length = if same_line { span.end.index().saturating_sub(span.start.index()) } else { 1 };
    Span { line: span.start.line().max(1), column: span.start.col() + 1, length: length.max(1) }
}
