//! `${...}`: what it may name, and what it becomes.
//!
//! | variable | stands for | where |
//! |---|---|---|
//! | `${params.x}`, `${params.x.y}` | a parameter of the pipeline; inside a custom kind, of the kind | everywhere |
//! | `${matrix.k}` | a coordinate of the node | in stages with a matrix |
//! | `${inputs.p}`, `${outputs.p}` | the path of a port | in `run`, filled in when the node runs |
//! | `${inputs.p.json}` | the path of a file that lists what feeds the port | likewise |
//! | `${secrets.x}` | nothing: secrets reach a stage as environment variables only | nowhere |
//!
//! A value that is one whole `${...}` keeps the type of what it stands for (null, number, list); inside longer text a
//! scalar is written out. `$${` is a literal `${`.

use crate::spec::source::{Problems, Span};
use crate::spec::yaml::{Data, Entry, Yaml};

/// Most parameters of a pipeline: they may refer to each other in one chain, and each link is a level of recursion.
const MAX_PARAMS: usize = 1000;

/// A piece of text.
#[derive(Debug, PartialEq, Eq)]
enum Piece<'t> {
    Plain(&'t str),
    /// `$${`.
    Escape,
    /// `${...}`: as written, and the name inside.
    Variable(&'t str, &'t str),
}

/// A `${` that is never closed, from there to the end of the text.
struct Unterminated<'t>(&'t str);

fn pieces(text: &str) -> Result<Vec<Piece<'_>>, Unterminated<'_>> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        if rest[..start].ends_with('$') {
            found.push(Piece::Plain(&rest[..start - 1]));
            found.push(Piece::Escape);
            rest = &rest[start + 2..];
            continue;
        }
        found.push(Piece::Plain(&rest[..start]));
        let end = rest[start..].find('}').ok_or(Unterminated(&rest[start..]))? + start + 1;
        let raw = &rest[start..end];
        found.push(Piece::Variable(raw, raw[2..raw.len() - 1].trim()));
        rest = &rest[end..];
    }
    found.push(Piece::Plain(rest));
    found.retain(|piece| *piece != Piece::Plain(""));
    Ok(found)
}

/// Names of top-level parameters that `yaml` mentions.
fn mentioned(yaml: &Yaml, found: &mut Vec<String>) {
    match &yaml.data {
        Data::Text(text) => {
            for piece in pieces(text).unwrap_or_default() {
                if let Piece::Variable(_, name) = piece
                    && let Some(rest) = name.strip_prefix("params.")
                {
                    found.push(rest.split('.').next().unwrap_or_default().to_owned());
                }
            }
        }
        Data::List(items) => items.iter().for_each(|item| mentioned(item, found)),
        Data::Map(entries) => entries.iter().for_each(|entry| mentioned(&entry.value, found)),
        _ => {}
    }
}

/// What variables stand for at one place of the pipeline.
#[derive(Clone, Copy)]
pub(crate) struct Scope<'a> {
    /// Parameters, a map.
    pub(crate) params: &'a Yaml,
    /// Coordinates; `None` where a matrix has no meaning.
    pub(crate) matrix: Option<&'a [(String, Yaml)]>,
    /// Input and output ports, in `run` only: those variables stay as they are.
    pub(crate) ports: Option<(&'a [String], &'a [String])>,
}

impl<'a> Scope<'a> {
    /// Parameters alone.
    pub(crate) fn params(params: &'a Yaml) -> Self {
        Self { params, matrix: None, ports: None }
    }

    /// Parameters and coordinates.
    pub(crate) fn node(params: &'a Yaml, matrix: &'a [(String, Yaml)]) -> Self {
        Self { params, matrix: Some(matrix), ports: None }
    }

    /// `yaml` with every variable replaced. `None` when one cannot be, which is reported.
    pub(crate) fn resolve(&self, yaml: &Yaml, problems: &mut Problems<'_>) -> Option<Yaml> {
        let data = match &yaml.data {
            Data::Text(text) => return self.resolve_text(text, yaml.at, problems),
            Data::List(items) => {
                let items: Vec<_> = items.iter().map(|item| self.resolve(item, problems)).collect();
                Data::List(items.into_iter().collect::<Option<_>>()?)
            }
            Data::Map(entries) => {
                let entries: Vec<_> = entries.iter().map(|entry| self.resolve_entry(entry, problems)).collect();
                Data::Map(entries.into_iter().collect::<Option<_>>()?)
            }
            other => other.clone(),
        };
        Some(Yaml { at: yaml.at, data })
    }

    fn resolve_entry(&self, entry: &Entry, problems: &mut Problems<'_>) -> Option<Entry> {
        let value = self.resolve(&entry.value, problems)?;
        Some(Entry { key: entry.key.clone(), key_at: entry.key_at, value })
    }

    fn resolve_text(&self, text: &str, at: Span, problems: &mut Problems<'_>) -> Option<Yaml> {
        let pieces = self.cut(text, at, problems)?;
        if let [Piece::Variable(raw, name)] = pieces.as_slice()
            && !self.stays(name)
        {
            return self.lookup(raw, name, at, problems);
        }
        let parts: Vec<Option<String>> = pieces.iter().map(|piece| self.written(piece, at, problems)).collect();
        let text = parts.into_iter().collect::<Option<String>>()?;
        Some(Yaml { at, data: Data::Text(text) })
    }

    fn cut<'t>(&self, text: &'t str, at: Span, problems: &mut Problems<'_>) -> Option<Vec<Piece<'t>>> {
        let cut = pieces(text);
        if let Err(Unterminated(raw)) = &cut {
            problems
                .error_in(at, raw, "interpolation", "this `${` is never closed")
                .help("close it with `}`; a literal `${` is written `$${`");
        }
        cut.ok()
    }

    /// Whether this is the path of a port, filled in only when the node runs.
    fn stays(&self, name: &str) -> bool {
        self.ports.is_some() && (name.starts_with("inputs.") || name.starts_with("outputs."))
    }

    fn written(&self, piece: &Piece<'_>, at: Span, problems: &mut Problems<'_>) -> Option<String> {
        let template = self.ports.is_some();
        match piece {
            Piece::Plain(text) => Some((*text).to_owned()),
            Piece::Escape => Some(if template { "$${" } else { "${" }.to_owned()),
            Piece::Variable(raw, name) if self.stays(name) => self.port(raw, name, at, problems),
            Piece::Variable(raw, name) => {
                let value = self.lookup(raw, name, at, problems)?;
                let Some(text) = value.scalar_text() else {
                    let message = format!("`{raw}` is {}, which cannot stand inside text", value.what());
                    problems.error_in(at, raw, "interpolation", message);
                    return None;
                };
                Some(if template { text.replace("${", "$${") } else { text })
            }
        }
    }

    fn port(&self, raw: &str, name: &str, at: Span, problems: &mut Problems<'_>) -> Option<String> {
        let (inputs, outputs) = self.ports.unwrap_or_default();
        let (root, written) = name.split_once('.')?;
        let known = if root == "inputs" { inputs } else { outputs };
        let listed = written.strip_suffix(".json").filter(|_| root == "inputs");
        let port = listed.filter(|_| !known.iter().any(|known| known == written)).unwrap_or(written);
        if known.iter().any(|known| known == port) {
            return Some(format!("${{{name}}}"));
        }
        let message = format!("there is no {} port `{port}`", root.trim_end_matches('s'));
        problems.error_in(at, raw, "unknown-port", message).suggest(port, known.iter().map(String::as_str));
        None
    }

    fn lookup(&self, raw: &str, name: &str, at: Span, problems: &mut Problems<'_>) -> Option<Yaml> {
        let (root, rest) = name.split_once('.').unwrap_or((name, ""));
        match root {
            "params" if !rest.is_empty() => self.lookup_param(raw, rest, at, problems),
            "matrix" if !rest.is_empty() => self.lookup_matrix(raw, rest, at, problems),
            "secrets" => {
                problems
                    .error_in(
                        at,
                        raw,
                        "secret",
                        "a secret cannot be written into a value: it would reach logs and recipes",
                    )
                    .help(format!("list it under `secrets: [{rest}]`; the command finds it in its environment"));
                None
            }
            "inputs" | "outputs" if !rest.is_empty() => {
                let message = format!("`{raw}` is known only when the node runs");
                problems.error_in(at, raw, "interpolation", message).help("use it in `run`");
                None
            }
            _ => {
                let message = format!("`{raw}` names nothing");
                let help = self.available(name);
                problems.error_in(at, raw, "interpolation", message).help(help);
                None
            }
        }
    }

    fn available(&self, name: &str) -> String {
        let mut roots = vec!["`${params.NAME}`"];
        roots.extend(self.matrix.map(|_| "`${matrix.KEY}`"));
        roots.extend(self.ports.map(|_| "`${inputs.PORT}`, `${outputs.PORT}`"));
        format!("here you can use {}; a literal `${{{name}}}` is written `$${{{name}}}`", roots.join(", "))
    }

    fn lookup_param(&self, raw: &str, path: &str, at: Span, problems: &mut Problems<'_>) -> Option<Yaml> {
        let mut here = self.params;
        for part in path.split('.') {
            match here.get(part) {
                Some(value) => here = value,
                None => {
                    let message = format!("there is no parameter `{path}`");
                    let known = here.entries().iter().map(|entry| entry.key.as_str());
                    problems.error_in(at, raw, "unknown-param", message).suggest(part, known);
                    return None;
                }
            }
        }
        Some(here.clone().moved(at))
    }

    /// A coordinate keeps the place where the matrix says it: that is the text to change.
    fn lookup_matrix(&self, raw: &str, key: &str, at: Span, problems: &mut Problems<'_>) -> Option<Yaml> {
        let Some(matrix) = self.matrix else {
            problems.error_in(at, raw, "interpolation", "there are no matrix coordinates here");
            return None;
        };
        let found = matrix.iter().find(|(name, _)| name == key);
        if found.is_none() {
            let message = format!("the matrix of this stage has no `{key}`");
            let known = matrix.iter().map(|(name, _)| name.as_str());
            problems.error_in(at, raw, "unknown-matrix-key", message).suggest(key, known);
        }
        found.map(|(_, value)| value.clone())
    }
}

/// Parameters may refer to each other; what goes in circles is reported.
pub(crate) fn resolve_params(params: &Yaml, problems: &mut Problems<'_>) -> Yaml {
    if params.entries().len() > MAX_PARAMS {
        problems.error(params.at, "too-large", format!("a pipeline has at most {MAX_PARAMS} parameters"));
        return Yaml::empty_map(params.at);
    }
    let mut resolver = ParamResolver { raw: params, done: Yaml::empty_map(params.at), open: Vec::new() };
    for entry in params.entries() {
        resolver.visit(entry, problems);
    }
    let order = |name: &str| params.entries().iter().position(|entry| entry.key == name);
    if let Data::Map(entries) = &mut resolver.done.data {
        entries.sort_by_key(|entry| order(&entry.key));
    }
    resolver.done
}

struct ParamResolver<'a> {
    raw: &'a Yaml,
    done: Yaml,
    open: Vec<String>,
}

impl ParamResolver<'_> {
    fn visit(&mut self, entry: &Entry, problems: &mut Problems<'_>) {
        if self.done.entry(&entry.key).is_some() {
            return;
        }
        if let Some(start) = self.open.iter().position(|name| *name == entry.key) {
            let circle = [&self.open[start..], std::slice::from_ref(&entry.key)].concat().join(" -> ");
            problems.error(entry.value.at, "cycle", format!("parameters refer to each other in a circle: {circle}"));
            self.keep(entry, entry.value.clone());
            return;
        }
        self.open.push(entry.key.clone());
        let mut names = Vec::new();
        mentioned(&entry.value, &mut names);
        for other in names.iter().filter_map(|name| self.raw.entry(name)) {
            self.visit(other, problems);
        }
        self.open.pop();
        if self.done.entry(&entry.key).is_none() {
            let value = Scope::params(&self.done).resolve(&entry.value, problems);
            self.keep(entry, value.unwrap_or_else(|| entry.value.clone()));
        }
    }

    fn keep(&mut self, entry: &Entry, value: Yaml) {
        if let Data::Map(entries) = &mut self.done.data {
            entries.push(Entry { key: entry.key.clone(), key_at: entry.key_at, value });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use super::*;
    use crate::spec::source::SourceText;

    fn resolved(text: &str, ports: bool) -> Result<Value, Vec<String>> {
        let source = SourceText::new(Path::new("t"), String::new());
        let mut problems = Problems::new(&source);
        let params = Yaml::from_json(json!({"n": 3, "s": "a${b}", "list": [1], "deep": {"x": null}}), Span::START);
        let matrix = [("k".to_owned(), Yaml::from_json(json!("v"), Span::START))];
        let (inputs, outputs) = (["i".to_owned()], ["o".to_owned()]);
        let scope =
            Scope { params: &params, matrix: Some(&matrix), ports: ports.then_some((&inputs[..], &outputs[..])) };
        let yaml = Yaml { at: Span::START, data: Data::Text(text.to_owned()) };
        let value = scope.resolve(&yaml, &mut problems).map(|yaml| yaml.to_json());
        value.ok_or_else(|| problems.into_found().into_iter().map(|d| d.message).collect())
    }

    #[test]
    fn values_keep_their_type() {
        for (text, want) in [
            ("plain", json!("plain")),
            ("${params.n}", json!(3)),
            ("${ params.n }", json!(3)),
            ("${params.list}", json!([1])),
            ("${params.deep.x}", json!(null)),
            ("x${params.n}y${matrix.k}", json!("x3yv")),
            ("$${params.n}", json!("${params.n}")),
            ("$5 and $x", json!("$5 and $x")),
        ] {
            assert_eq!(resolved(text, false), Ok(want), "{text}");
        }
    }

    #[test]
    fn commands_keep_ports_and_escapes() {
        assert_eq!(resolved("cat ${inputs.i} > ${outputs.o}", true), Ok(json!("cat ${inputs.i} > ${outputs.o}")));
        assert_eq!(resolved("echo $${HOME} ${params.s}", true), Ok(json!("echo $${HOME} a$${b}")));
        assert_eq!(resolved("${inputs.i}", true), Ok(json!("${inputs.i}")));
    }

    #[test]
    fn names_what_is_wrong() {
        for (text, ports, want) in [
            ("a ${params.n", false, "this `${` is never closed"),
            ("${params.m}", false, "there is no parameter `m`"),
            ("${matrix.z}", false, "the matrix of this stage has no `z`"),
            ("${HOME}", true, "`${HOME}` names nothing"),
            ("x${params.list}", false, "`${params.list}` is a list, which cannot stand inside text"),
            ("${inputs.z}", true, "there is no input port `z`"),
            ("${inputs.i}", false, "`${inputs.i}` is known only when the node runs"),
            ("${}", false, "`${}` names nothing"),
        ] {
            assert_eq!(resolved(text, ports), Err(vec![want.to_owned()]), "{text}");
        }
    }
}
