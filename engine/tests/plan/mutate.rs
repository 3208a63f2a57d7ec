//! Sound pipelines damaged in one known place: what the compiler must say, where, and what it must suggest.
//!
//! The parse events of a file give every key and scalar with its place and its path; the path tells what it is (a stage's
//! key, a port, a kind, a selector, ..), and so which damage can be done to it and what must be said about it. The damage
//! itself is drawn from a seed. This file knows no kinds and no fixtures: tests of other packages include it by its path.

use std::collections::{BTreeMap, BTreeSet};

use mpcc_engine::diagnostic::{Diagnostic, Diagnostics};
use mpcc_engine::plan::Plan;
use saphyr_parser::{Event, Parser};

/// A key or scalar of a pipeline file.
#[derive(Clone, Debug)]
struct Token {
    /// Keys and list indices that lead to it, itself included when it is a key; `profiles.NAME` is cut off.
    path: Vec<String>,
    /// The profile it is written in.
    profile: Option<String>,
    key: bool,
    text: String,
    /// In characters of the whole text.
    start: usize,
    end: usize,
    quoted: bool,
}

/// A damaged pipeline.
pub(crate) struct Mutation {
    /// The class of damage.
    pub(crate) class: &'static str,
    /// What was done.
    what: String,
    /// The file.
    pub(crate) bytes: Vec<u8>,
    /// The profile to compile with.
    pub(crate) profile: Option<String>,
    /// Line and one of the columns, from 1, of one of the diagnostics; no columns are any.
    at: (usize, Vec<usize>),
    /// The name that one of the diagnostics there must suggest.
    suggestion: Option<String>,
    /// Whether a plan may come out.
    may_be_harmless: bool,
}

/// How the mutations of a file went.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Mutations by class.
    pub(crate) classes: BTreeMap<&'static str, usize>,
    /// How many of them had a suggestion to make.
    pub(crate) suggested: usize,
    /// How many made no difference.
    pub(crate) harmless: usize,
}

impl Tally {
    pub(crate) fn total(&self) -> usize {
        self.classes.values().sum()
    }
}

/// Numbers from a seed.
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % limit.max(1)
    }
}

struct Open {
    map: bool,
    key: Option<String>,
    items: usize,
}

/// Every key and scalar of `text`, in order.
fn tokens(text: &str) -> Vec<Token> {
    let (mut found, mut open): (Vec<Token>, Vec<Open>) = (Vec::new(), Vec::new());
    let chars: Vec<char> = text.chars().collect();
    for event in Parser::new_from_str(text) {
        let (event, span) = event.expect("a sound file");
        let mut path: Vec<String> =
            open.iter().filter_map(|o| if o.map { o.key.clone() } else { Some(o.items.to_string()) }).collect();
        match event {
            Event::Scalar(scalar, ..) => {
                let key = open.last().is_some_and(|o| o.map && o.key.is_none());
                if key {
                    path.push(scalar.to_string());
                    open.last_mut().expect("a map").key = Some(scalar.to_string());
                }
                let (start, end) = (span.start.index(), span.end.index());
                let quoted = matches!(chars.get(start), Some('"' | '\''));
                // The span of a quoted scalar reaches over the blanks behind it.
                let last = chars[start..end].iter().rposition(|c| *c == chars[start]).filter(|_| quoted);
                let end = last.map_or(end, |last| start + last + 1);
                let inside = path.first().is_some_and(|first| first == "profiles") && path.len() > 2;
                let profile = inside.then(|| path[1].clone());
                let path = if inside { path[2..].to_vec() } else { path };
                found.push(Token { path, profile, key, text: scalar.into_owned(), start, end, quoted });
                if !key {
                    done(&mut open);
                }
            }
            Event::Alias(_) => done(&mut open),
            Event::MappingStart(..) => open.push(Open { map: true, key: None, items: 0 }),
            Event::SequenceStart(..) => open.push(Open { map: false, key: None, items: 0 }),
            Event::MappingEnd | Event::SequenceEnd => {
                open.pop();
                done(&mut open);
            }
            _ => {}
        }
    }
    found
}

/// A value is complete.
fn done(open: &mut [Open]) {
    if let Some(last) = open.last_mut() {
        last.key = None;
        last.items += usize::from(!last.map);
    }
}

/// The file being damaged.
struct Bench<'t> {
    text: &'t str,
    chars: Vec<char>,
    tokens: Vec<Token>,
    words: BTreeSet<String>,
    rng: Rng,
    made: Vec<Mutation>,
}

impl Bench<'_> {
    /// Line and column of a character.
    fn place(&self, index: usize) -> (usize, usize) {
        let before = &self.chars[..index];
        let line = before.iter().filter(|c| **c == '\n').count() + 1;
        let column = before.iter().rev().take_while(|c| **c != '\n').count() + 1;
        (line, column)
    }

    fn spliced(&self, start: usize, end: usize, with: &str) -> String {
        self.chars[..start].iter().copied().chain(with.chars()).chain(self.chars[end..].iter().copied()).collect()
    }

    /// One letter more, one less, or two swapped; short names only get one more, or nothing would be near them.
    fn misspelt(&mut self, name: &str) -> Option<String> {
        let letters: Vec<char> = name.chars().collect();
        for _ in 0..20 {
            let mut wrong = letters.clone();
            let at = 1 + self.rng.below(letters.len().saturating_sub(2));
            match self.rng.below(if letters.len() < 5 { 1 } else { 3 }) {
                1 => drop(wrong.remove(at)),
                2 => wrong.swap(at, (at + 1).min(letters.len() - 1)),
                _ => wrong.insert(at.min(letters.len()), letters[at.min(letters.len() - 1)]),
            }
            let wrong: String = wrong.into_iter().collect();
            if wrong != name && !self.words.contains(&wrong) && wrong.chars().any(char::is_alphabetic) {
                return Some(wrong);
            }
        }
        None
    }

    fn add(
        &mut self,
        class: &'static str,
        token: &Token,
        range: (usize, usize),
        with: &str,
        at: usize,
    ) -> &mut Mutation {
        let (line, column) = self.place(at);
        let was: String = self.chars[range.0..range.1].iter().take(40).collect();
        let stage = token.path.get(1).cloned().unwrap_or_default();
        let optional = self.tokens.iter().any(|t| t.key && t.path == ["stages", stage.as_str(), "when"]);
        self.made.push(Mutation {
            class,
            what: format!("{}: `{was}` -> `{with}`", token.path.join(".")),
            bytes: self.spliced(range.0, range.1, with).into_bytes(),
            profile: token.profile.clone(),
            at: (line, vec![column]),
            suggestion: None,
            // A stage that is switched off is not looked at; one that a profile adds whole may have any name.
            may_be_harmless: optional || class == "misspelt stage in a profile",
        });
        self.made.last_mut().expect("one was just pushed")
    }

    /// Misspells the characters from `start` on that spell `name`; the problem is expected at `at`.
    fn misspell(&mut self, class: &'static str, token: &Token, name: &str, start: usize, at: usize) {
        let Some(wrong) = self.misspelt(name) else { return };
        let end = start + name.chars().count();
        let made = self.add(class, token, (start, end), &wrong, at);
        made.suggestion = Some(name.to_owned());
    }

    /// The first character of a scalar's text.
    fn inside(token: &Token) -> usize {
        token.start + usize::from(token.quoted)
    }

    fn misspell_whole(&mut self, class: &'static str, token: &Token) {
        let start = Self::inside(token);
        self.misspell(class, token, &token.text.clone(), start, token.start);
    }

    fn uses(&self, stage: &str) -> bool {
        self.tokens.iter().any(|token| token.key && token.path == ["stages", stage, "uses"])
    }

    fn is_in_base(&self, stage: &str) -> bool {
        self.tokens.iter().any(|token| token.key && token.profile.is_none() && token.path == ["stages", stage])
    }

    fn key(&mut self, token: &Token) {
        let path: Vec<&str> = token.path.iter().map(String::as_str).collect();
        let class = match path.as_slice() {
            [_] => "misspelt key of the pipeline",
            ["stages", stage] if token.profile.is_some() && self.is_in_base(stage) => "misspelt stage in a profile",
            ["stages", _, _] => "misspelt key of a stage",
            ["stages", stage, "inputs", _] if self.uses(stage) => "misspelt input",
            ["stages", stage, "with", _] if self.uses(stage) => "misspelt parameter",
            ["stages", _, "with", _, ..] => "misspelt key in a parameter",
            ["stages", _, "resources", _] | ["kinds", _, "resources", _] => "misspelt resource",
            ["stages", _, "publish", _] => "misspelt output",
            ["stages", _, "matrix", "exclude", _, _] => "misspelt matrix key",
            ["stages", _, "inputs", _, _] => "misspelt source",
            ["stages", _, "outputs", _, _] => "misspelt key of an output",
            ["models", _, _] => "misspelt key of a model",
            ["models", _, "from", _] => "misspelt source",
            ["kinds", _, _] => "misspelt key of a kind",
            ["kinds", _, "params" | "inputs" | "outputs", _, _] => "misspelt key of a port",
            _ => return,
        };
        let harmless = class == "misspelt key in a parameter";
        self.misspell_whole(class, token);
        if let Some(made) = self.made.last_mut().filter(|made| made.class == class) {
            made.may_be_harmless |= harmless;
        }
    }

    fn scalar(&mut self, token: &Token) {
        let path: Vec<&str> = token.path.iter().map(String::as_str).collect();
        let literal = !token.text.contains("${") && token.text.chars().any(char::is_alphabetic);
        match path.as_slice() {
            ["stages", _, "uses"] => self.misspell_whole("misspelt kind", token),
            ["models", _, "provider"] => self.misspell_whole("misspelt provider", token),
            ["models", _, "from"] if token.text != "null" => self.selector(token),
            ["stages", _, "inputs", _] | ["stages", _, "inputs", _, _] | ["stages", _, "needs", _] => {
                let outside = ["file", "dir", "glob"].contains(path.last().expect("a path"));
                if !outside {
                    self.selector(token);
                }
            }
            ["kinds", _, "params" | "inputs" | "outputs", _]
            | ["kinds", _, "params" | "inputs" | "outputs", _, "type"]
            | ["stages", _, "outputs", _]
            | ["stages", _, "outputs", _, "type"] => self.misspell_whole("misspelt type", token),
            ["stages", _, "with", ..] if literal && !["null", "true", "false"].contains(&token.text.as_str()) => {
                self.choice(token);
            }
            _ => {}
        }
        self.variables(token);
        self.wrong_type(token, &path);
    }

    /// A word that may be one of a parameter's choices, or any text.
    fn choice(&mut self, token: &Token) {
        self.misspell_whole("misspelt choice", token);
        if let Some(made) = self.made.last_mut().filter(|made| made.class == "misspelt choice") {
            made.may_be_harmless = true;
        }
    }

    /// `stage[key=value].port`, each part.
    fn selector(&mut self, token: &Token) {
        let (text, from) = (token.text.clone(), Self::inside(token));
        if text.starts_with("${") || text.starts_with("models.") {
            return;
        }
        let at = |byte: usize| from + text[..byte].chars().count();
        let stage = text.split(['[', '.']).next().unwrap_or_default();
        self.misspell("misspelt stage or model", token, stage, from, from);
        let open = text.find('[').map_or(0, |open| open + 1);
        let close = text.find(']').unwrap_or(open);
        if let Some((key, value)) = text[open..close].split_once('=').filter(|(_, value)| !value.contains(['$', ','])) {
            self.misspell("misspelt matrix key", token, key, at(open), at(open));
            let place = at(open + key.len() + 1);
            self.misspell("misspelt matrix value", token, value, place, place);
        }
        let tail = if close > 0 { close } else { stage.len() };
        if let Some(port) = text[tail..].find('.').map(|dot| tail + dot + 1).filter(|port| !text[*port..].contains('$'))
        {
            self.misspell("misspelt output", token, &text[port..], at(port), at(port));
        }
        for broken in ["[", "[]", "[x", ".a.b", "[k=v]x", " x"] {
            let end = from + text.chars().count();
            if self.rng.below(4) == 0 && !text.contains('[') && token.quoted {
                self.add("wrong selector", token, (end, end), broken, token.start);
            }
        }
    }

    /// `${params.NAME}` and `${matrix.KEY}`: misspelt, unknown, unclosed.
    fn variables(&mut self, token: &Token) {
        let text = token.text.clone();
        let Some(byte) = text.find("${").filter(|byte| !text[..*byte].ends_with('$')) else { return };
        let from = Self::inside(token) + text[..byte].chars().count();
        let Some(close) = text[byte..].find('}') else { return };
        let name = &text[byte + 2..byte + close];
        let Some((root, rest)) = name.split_once('.').filter(|(root, _)| ["params", "matrix"].contains(root)) else {
            return;
        };
        self.misspell("misspelt variable", token, rest, from + 3 + root.len(), from);
        let end = from + name.len() + 3;
        self.add("unknown variable", token, (from, end), "${nothing.here}", from);
        if !text[byte + close + 1..].contains('}') {
            self.add("unclosed variable", token, (end - 1, end), "", from);
        }
    }

    /// A value of a type that nothing of this name can have.
    fn wrong_type(&mut self, token: &Token, path: &[&str]) {
        let with = match path {
            ["mpcc"] => "2",
            ["stages", _, "uses"] => "[a, b]",
            ["stages", _, "seed" | "retries" | "timeout" | "cache" | "executor"] => "[x]",
            ["stages", _, "resources", _] | ["kinds", _, "resources", _] => "plenty",
            ["stages", _, "inputs", _] => "7",
            ["stages", _, "publish", _] => "[a]",
            ["stages", _, "run"] => "7",
            ["models", _, "provider"] => "[x]",
            ["models", _, "max_concurrency" | "rpm" | "tpm"] => "many",
            ["stages", _, "with", ..] if token.text.parse::<f64>().is_ok() && !token.quoted => "six-ish",
            _ => return,
        };
        self.add("wrong type", token, (token.start, token.end), with, token.start);
    }

    /// What breaks the YAML itself, at a key or a scalar.
    fn syntax(&mut self, token: &Token) {
        let middle = (token.start + token.end).div_ceil(2).min(token.end);
        if token.end > token.start + 1 && self.rng.below(6) == 0 {
            let odd = ["\u{1}", "\u{0}", "\u{1b}", "\u{7f}", "\u{90}"][self.rng.below(5)];
            self.add("control character", token, (middle, middle), odd, middle);
        }
        if self.rng.below(8) == 0 {
            let made = self.add("not UTF-8", token, (middle, middle), "", middle);
            made.what += "0xff";
            let byte = self.chars[..middle].iter().map(|c| c.len_utf8()).sum();
            self.made.last_mut().expect("one was just pushed").bytes.insert(byte, 0xff);
        }
        if token.quoted && self.rng.below(3) == 0 {
            self.add("unclosed quote", token, (token.end - 1, token.end), "", token.start);
        }
    }

    fn whole(&self) -> Token {
        let (path, text) = (vec!["file".to_owned()], String::new());
        Token { path, profile: None, key: false, text, start: 0, end: 0, quoted: false }
    }

    /// The lines as (first character, length, text).
    fn lines(&self) -> Vec<(usize, String)> {
        let mut start = 0;
        let mut lines = Vec::new();
        for line in self.text.lines() {
            lines.push((start, line.to_owned()));
            start += line.chars().count() + 1;
        }
        lines
    }

    fn line_damage(&mut self) {
        let lines = self.lines();
        let indent = |line: &str| line.len() - line.trim_start().len();
        for (index, (start, line)) in lines.iter().enumerate() {
            let text = line.trim_start();
            let is_entry = text.split_once(": ").is_some_and(|(key, value)| {
                key.chars().all(|c| c.is_alphanumeric() || "._-".contains(c))
                    && !value.trim().is_empty()
                    && !value.contains('&')
            });
            let next = lines.get(index + 1).map_or(0, |(_, next)| indent(next));
            if is_entry && next <= indent(line) && self.rng.below(2) == 0 {
                let end = start + line.chars().count() + 1;
                let at = start + indent(line);
                let whole = self.whole();
                let copy = format!("{line}\n");
                let made = self.add("duplicate key", &whole, (end, end), &copy, at);
                made.at.0 += 1;
            }
            if is_entry && indent(line) > 0 && self.rng.below(4) == 0 {
                let whole = self.whole();
                let made = self.add("tab", &whole, (*start, start + indent(line)), "\t", *start);
                made.at.1.clear();
            }
            self.brackets(*start, line);
        }
    }

    /// Takes closing brackets away.
    fn brackets(&mut self, start: usize, line: &str) {
        let mut open: Vec<(char, usize)> = Vec::new();
        let mut quote = None;
        for (at, c) in line.chars().enumerate() {
            match (quote, c) {
                (Some(q), c) if q == c => quote = None,
                (Some(_), _) => {}
                (None, '"' | '\'') => quote = Some(c),
                (None, '#') => return,
                (None, '{' | '[') => open.push((c, at)),
                (None, '}' | ']') => {
                    let Some((bracket, from)) = open.pop() else { return };
                    // `${` and the brackets of plain selectors are no YAML.
                    let flow = from > 0 && line.chars().nth(from - 1).is_some_and(|before| " [{".contains(before));
                    if flow && self.rng.below(3) == 0 {
                        let whole = self.whole();
                        let class = if bracket == '{' { "unclosed map" } else { "unclosed list" };
                        let around: Vec<usize> = open.iter().map(|(_, from)| from + 1).collect();
                        let made = self.add(class, &whole, (start + at, start + at + 1), "", start + from);
                        // What closes around it closes it instead, so that it may be one of those around it that stays open.
                        made.at.1.extend(around);
                    }
                }
                _ => {}
            }
        }
    }

    /// What is added at the end, and what is cut off.
    fn ends(&mut self) {
        let whole = self.whole();
        let end = self.chars.len();
        let deep = format!("\ndeep: {}{}\n", "[".repeat(80), "]".repeat(80));
        // The 65th level is the 64th bracket.
        let made = self.add("deep nesting", &whole, (end, end), &deep, end);
        made.at = (made.at.0 + 1, vec!["deep: ".len() + 64]);
        let mut bomb = String::from("\nb0: &b0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..8 {
            bomb += &format!("b{level}: &b{level} [{}]\n", vec![format!("*b{}", level - 1); 10].join(", "));
        }
        let made = self.add("alias bomb", &whole, (end, end), &bomb, end);
        // The fifth list holds 111,111 values; it has them when its 9th alias is read.
        made.at = (made.at.0 + 5, Vec::new());
        let made = self.add("unknown anchor", &whole, (end, end), "\nq: *nobody\n", end);
        made.at = (made.at.0 + 1, vec![4]);
        for _ in 0..20 {
            let at = self.rng.below(end);
            let made = self.add("cut off", &whole, (at, end), "", 0);
            made.at = (0, Vec::new());
            made.may_be_harmless = true;
        }
    }

    /// An upstream stage that is made to wait for one below it: the cycle is named.
    fn cycles(&mut self) {
        let inputs: Vec<Token> = self.tokens.iter().filter(|t| !t.key && t.profile.is_none()).cloned().collect();
        for token in inputs {
            let [stages, below, inputs, ..] = token.path.as_slice() else { continue };
            let above = token.text.split(['[', '.']).next().unwrap_or_default().to_owned();
            let base = |t: &&Token| t.key && t.profile.is_none() && t.path == ["stages", above.as_str()];
            let name = self.tokens.iter().find(base).cloned();
            let Some(name) = name.filter(|_| stages == "stages" && inputs == "inputs" && !below.is_empty()) else {
                continue;
            };
            // Only where the stage is a map on lines of its own, which has room for one more line.
            let (_, column) = self.place(name.start);
            let block = self.chars.get(name.end..name.end + 2) == Some(&[':', '\n']);
            if !block || self.rng.below(4) > 0 {
                continue;
            }
            let with = format!("\n{}needs: {below}", " ".repeat(column + 1));
            let made = self.add("cycle", &token, (name.end + 1, name.end + 1), &with, name.start);
            // Any stage of the circle will do.
            made.at = (0, Vec::new());
        }
    }
}

/// Every mutation of `text`, drawn from `seed`.
pub(crate) fn mutations(text: &str, seed: u64) -> Vec<Mutation> {
    let tokens = tokens(text);
    let words = tokens.iter().flat_map(|token| token.text.split(|c: char| !(c.is_alphanumeric() || "-_+".contains(c))));
    let words = words.map(str::to_owned).collect();
    let chars = text.chars().collect();
    let mut bench = Bench { text, chars, tokens: tokens.clone(), words, rng: Rng::new(seed), made: Vec::new() };
    for token in &tokens {
        if token.key {
            bench.key(token)
        } else {
            bench.scalar(token)
        }
        bench.syntax(token);
    }
    bench.line_damage();
    bench.ends();
    bench.cycles();
    bench.made
}

/// Whether a diagnostic of the right line is about the right column: it begins there or, of a bracket, names it.
fn is_at(diagnostic: &Diagnostic, column: usize) -> bool {
    let named = diagnostic.help.as_ref().is_some_and(|help| help.contains(&format!("column {column} not closed")));
    diagnostic.column == column || named
}

/// What is wrong with what was said about a mutation; `None` when it is right.
fn complaint(mutation: &Mutation, result: &Result<Plan, Diagnostics>) -> Option<String> {
    let found = match result {
        Ok(_) if mutation.may_be_harmless => return None,
        Ok(_) => return Some("it compiles".to_owned()),
        Err(found) => found,
    };
    let lines = mutation.bytes.iter().filter(|byte| **byte == b'\n').count() + 1;
    if let Some(outside) = found.iter().find(|d| d.line == 0 || d.line > lines || d.column == 0 || d.message.is_empty())
    {
        return Some(format!("a diagnostic outside of the file: {outside}"));
    }
    let (line, columns) = &mutation.at;
    let line = *line;
    let fits =
        |d: &Diagnostic| d.line == line && (columns.is_empty() || columns.iter().any(|column| is_at(d, *column)));
    let here = || found.iter().filter(|d| line == 0 || fits(d));
    if here().next().is_none() {
        return Some(format!("nothing is said at {line}:{columns:?} but\n{found}"));
    }
    if mutation.class == "cycle" && !found.iter().any(|d| d.code == "cycle") {
        return Some(format!("no cycle is named but\n{found}"));
    }
    let wanted = mutation.suggestion.as_ref().map(|name| format!("did you mean `{name}`?"));
    // Free text in a parameter has no neighbours to suggest.
    let free = mutation.class == "misspelt choice" && !here().any(|d| d.help.is_some());
    match wanted {
        Some(wanted) if !free && !here().any(|d| d.help.as_deref() == Some(&wanted)) => {
            Some(format!("`{wanted}` is not said at {line}:{columns:?} but\n{found}"))
        }
        _ => None,
    }
}

/// Compiles every mutation of `text` and holds what is said to what was done.
pub(crate) fn hold(
    name: &str,
    text: &str,
    seed: u64,
    compile: impl Fn(&[u8], Option<&str>) -> Result<Plan, Diagnostics>,
) -> Tally {
    let mut tally = Tally::default();
    let mut complaints = Vec::new();
    for mutation in mutations(text, seed) {
        let result = compile(&mutation.bytes, mutation.profile.as_deref());
        *tally.classes.entry(mutation.class).or_default() += 1;
        tally.harmless += usize::from(result.is_ok());
        tally.suggested += usize::from(mutation.suggestion.is_some());
        if let Some(complaint) = complaint(&mutation, &result) {
            complaints.push(format!("{name}, {}, {}: {complaint}", mutation.class, mutation.what));
        }
    }
    println!("{name}: {} mutations, {} harmless, {:?}", tally.total(), tally.harmless, tally.classes);
    assert!(complaints.is_empty(), "{} of {}:\n\n{}", complaints.len(), tally.total(), complaints.join("\n\n"));
    tally
}
