//! Puts paths where `${inputs.x}` and `${outputs.y}` stand in a command.
//!
//! | written | in an argv list | in a script for `sh -c` |
//! |---|---|---|
//! | `${inputs.x}`, one artifact | its path | its path, quoted as the place needs |
//! | `${inputs.x}`, a list | a word for each, when it is a whole word; else an error | the paths with spaces between |
//! | `${inputs.x}`, nothing connected | no word, when it is a whole word; else an empty text | an empty text |
//! | `${inputs.x.json}` | path of a file with `[{"node", "matrix", "path"}]` | likewise |
//! | `${outputs.y}` | the path to write | likewise |
//!
//! In a script the place matters: inside `"..."` a path is escaped, inside `'...'` and in the open it is quoted, and only
//! when it holds anything a shell would see. `$${` is a plain `${`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::job::Job;
use crate::plan::Command;
use crate::stage::{Bound, Context};

/// The paths of a stage's ports.
pub struct Ports<'a> {
    inputs: &'a BTreeMap<String, Vec<Bound>>,
    outputs: BTreeMap<&'a str, &'a Path>,
    scratch: PathBuf,
}

impl<'a> Ports<'a> {
    /// As the stage sees them.
    pub fn of(ctx: &'a Context) -> Self {
        let outputs = ctx.outputs.iter().map(|(port, path)| (port.as_str(), path.as_path())).collect();
        Self { inputs: &ctx.inputs, outputs, scratch: ctx.scratch.clone() }
    }

    /// As the job states them.
    pub fn of_job(job: &'a Job) -> Self {
        let outputs = job.outputs.iter().map(|(port, output)| (port.as_str(), output.path.as_path())).collect();
        Self { inputs: &job.inputs, outputs, scratch: job.scratch() }
    }
}

/// Why a placeholder cannot be filled.
#[derive(Debug, thiserror::Error)]
pub enum SubstituteError {
    /// No such port.
    #[error("`${{{0}}}` in the command names no input or output of this stage")]
    Unknown(String),
    /// A list inside a longer word.
    #[error("`${{{name}}}` is a list of {count}: make it a word of its own in `{word}`, or use `${{{name}.json}}`")]
    List {
        /// The placeholder.
        name: String,
        /// How many artifacts it has.
        count: usize,
        /// The word it stands in.
        word: String,
    },
    /// A model without files.
    #[error("`${{{name}}}` is the model `{model}`, which is served and has no files; use `${{{name}.json}}`")]
    Served {
        /// The placeholder.
        name: String,
        /// The model.
        model: String,
    },
    /// The list file cannot be written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// The words to execute: a script becomes `sh -c SCRIPT`.
pub fn words(command: &Command, ports: &Ports<'_>) -> Result<Vec<String>, SubstituteError> {
    if command.shell {
        let script = script(&command.argv.join(" "), ports)?;
        return Ok(vec!["sh".to_owned(), "-c".to_owned(), script]);
    }
    let mut words = Vec::new();
    for word in &command.argv {
        expand(word, ports, &mut words)?;
    }
    Ok(words)
}

/// A piece of a text with placeholders.
enum Piece<'a> {
    Text(&'a str),
    Name(&'a str),
}

/// Cuts `text` at its placeholders. What does not start with `inputs.` or `outputs.` stays text: it belongs to the shell.
fn pieces(text: &str) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    let mut rest = text;
    let mut from = 0;
    while let Some(at) = rest[from..].find("${").map(|at| at + from) {
        let end = rest[at..].find('}').map(|end| at + end);
        let name = end
            .map(|end| &rest[at + 2..end])
            .filter(|name| name.starts_with("inputs.") || name.starts_with("outputs."));
        if rest[..at].ends_with('$') {
            pieces.extend([Piece::Text(&rest[..at - 1]), Piece::Text("${")]);
            rest = &rest[at + 2..];
            from = 0;
        } else if let (Some(name), Some(end)) = (name, end) {
            pieces.extend([Piece::Text(&rest[..at]), Piece::Name(name)]);
            rest = &rest[end + 1..];
            from = 0;
        } else {
            from = at + 2;
        }
    }
    pieces.push(Piece::Text(rest));
    pieces
}

fn expand(word: &str, ports: &Ports<'_>, words: &mut Vec<String>) -> Result<(), SubstituteError> {
    let pieces = pieces(word);
    if let [Piece::Text(""), Piece::Name(name), Piece::Text("")] = pieces[..] {
        words.extend(paths(name, ports)?);
        return Ok(());
    }
    let mut text = String::new();
    for piece in pieces {
        match piece {
            Piece::Text(part) => text.push_str(part),
            Piece::Name(name) => {
                let paths = paths(name, ports)?;
                if paths.len() > 1 {
                    let (name, word) = (name.to_owned(), word.to_owned());
                    return Err(SubstituteError::List { name, count: paths.len(), word });
                }
                text.extend(paths);
            }
        }
    }
    words.push(text);
    Ok(())
}

fn script(text: &str, ports: &Ports<'_>) -> Result<String, SubstituteError> {
    let mut out = String::new();
    let mut place = Place::Open;
    for piece in pieces(text) {
        match piece {
            Piece::Text(part) => {
                place = place.after(part);
                out.push_str(part);
            }
            Piece::Name(name) => {
                let quoted: Vec<String> = paths(name, ports)?.iter().map(|path| place.quote(path)).collect();
                out.push_str(&quoted.join(" "));
            }
        }
    }
    Ok(out)
}

/// Where in a script a placeholder stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Open,
    Single,
    Double,
}

impl Place {
    /// The place after `text`.
    fn after(self, text: &str) -> Self {
        let mut place = self;
        let mut characters = text.chars();
        while let Some(character) = characters.next() {
            place = match (place, character) {
                (Self::Open, '\'') => Self::Single,
                (Self::Open, '"') => Self::Double,
                (Self::Single, '\'') | (Self::Double, '"') => Self::Open,
                (Self::Open | Self::Double, '\\') => {
                    characters.next();
                    place
                }
                _ => place,
            };
        }
        place
    }

    fn quote(self, path: &str) -> String {
        let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=,@:%".contains(c);
        if !path.is_empty() && path.chars().all(plain) {
            return path.to_owned();
        }
        let single = path.replace('\'', r"'\''");
        match self {
            Self::Open => format!("'{single}'"),
            Self::Single => single,
            Self::Double => {
                let special = |c: char| if "$`\"\\".contains(c) { vec!['\\', c] } else { vec![c] };
                path.chars().flat_map(special).collect()
            }
        }
    }
}

/// The paths behind `inputs.x`, `inputs.x.json` or `outputs.y`.
fn paths(name: &str, ports: &Ports<'_>) -> Result<Vec<String>, SubstituteError> {
    let unknown = || SubstituteError::Unknown(name.to_owned());
    if let Some(port) = name.strip_prefix("outputs.") {
        return Ok(vec![text(ports.outputs.get(port).ok_or_else(unknown)?)]);
    }
    let port = name.strip_prefix("inputs.").ok_or_else(unknown)?;
    if let Some(bound) = ports.inputs.get(port) {
        return bound.iter().map(|bound| path(name, bound)).collect();
    }
    let port = port.strip_suffix(".json").ok_or_else(unknown)?;
    let bound = ports.inputs.get(port).ok_or_else(unknown)?;
    Ok(vec![text(&list_file(port, bound, ports)?)])
}

fn path(name: &str, bound: &Bound) -> Result<String, SubstituteError> {
    match bound {
        Bound::Artifact(input) => Ok(text(&input.path)),
        Bound::Model(model) => model
            .dir
            .as_deref()
            .map(text)
            .ok_or_else(|| SubstituteError::Served { name: name.to_owned(), model: model.name.clone() }),
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Writes `[{"node", "matrix", "path"}]` of an input port to the scratch folder.
fn list_file(port: &str, bound: &[Bound], ports: &Ports<'_>) -> Result<PathBuf, SubstituteError> {
    let matrix = |coordinates: &crate::stage::Coordinates| -> serde_json::Map<String, serde_json::Value> {
        coordinates.iter().cloned().collect()
    };
    let entry = |bound: &Bound| match bound {
        Bound::Artifact(input) => json!({"node": input.node, "matrix": matrix(&input.matrix), "path": input.path}),
        Bound::Model(model) => json!({
            "node": model.name, "matrix": matrix(&model.matrix), "path": model.dir,
            "provider": model.provider, "settings": model.settings,
        }),
    };
    let list: Vec<serde_json::Value> = bound.iter().map(entry).collect();
    let path = ports.scratch.join(format!("inputs.{port}.json"));
    let text = serde_json::to_vec_pretty(&list).expect("plain data");
    let written = std::fs::create_dir_all(&ports.scratch).and_then(|()| std::fs::write(&path, text));
    written.map_err(|source| SubstituteError::Io { path: path.clone(), source })?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use mpcc_cache::{Artifact, ArtifactKind, Digest};

    use super::*;
    use crate::harness::{MemoryMemo, NoteLog};
    use crate::stage::Input;

    fn context(folder: &Path, inputs: &[(&str, &[&str])]) -> Context {
        let artifact = Artifact { kind: ArtifactKind::File, digest: Digest::of(b""), bytes: 0 };
        let input = |path: &&str| {
            let matrix = vec![("split".to_owned(), json!("full"))];
            Bound::Artifact(Input { node: "n".into(), matrix, artifact, path: path.into() })
        };
        Context {
            node: "stats".into(),
            matrix: Vec::new(),
            seed: 1,
            threads: 1,
            devices: Vec::new(),
            inputs: inputs
                .iter()
                .map(|(port, paths)| ((*port).to_owned(), paths.iter().map(input).collect()))
                .collect(),
            outputs: BTreeMap::from([("y".to_owned(), "/store/out put".into())]),
            scratch: folder.to_owned(),
            partial: folder.to_owned(),
            memo: Arc::new(MemoryMemo::default()),
            asking: crate::asking::Asking::alone(),
            notes: Arc::new(NoteLog::default()),
            cancel: Arc::default(),
        }
    }

    fn command(shell: bool, argv: &[&str]) -> Command {
        Command {
            kind: None,
            argv: argv.iter().map(|&word| word.to_owned()).collect(),
            shell,
            params: json!({}),
            each: None,
            env: BTreeMap::new(),
            code: Vec::new(),
            cwd: "/".into(),
        }
    }

    fn filled(shell: bool, argv: &[&str]) -> Result<Vec<String>, String> {
        let folder = tempfile::tempdir().unwrap();
        let ctx =
            context(folder.path(), &[("x", &["/a"]), ("many", &["/b", "/c d"]), ("none", &[]), ("q", &["/it's $5"])]);
        words(&command(shell, argv), &Ports::of(&ctx)).map_err(|error| error.to_string())
    }

    #[test]
    fn words_of_an_argv_list() {
        let argv =
            ["cp", "${inputs.x}", "--to=${outputs.y}", "${inputs.many}", "${inputs.none}", "$${inputs.x}", "${HOME}"];
        let words = filled(false, &argv).unwrap();
        assert_eq!(words, ["cp", "/a", "--to=/store/out put", "/b", "/c d", "${inputs.x}", "${HOME}"]);
    }

    #[test]
    fn a_script_is_quoted_where_it_must_be() {
        for (script, expected) in [
            ("wc -l < ${inputs.x} > ${outputs.y}", "wc -l < /a > '/store/out put'"),
            ("cat ${inputs.many}", "cat /b '/c d'"),
            ("cat ${inputs.none};", "cat ;"),
            (r#"cat "${inputs.q}" ${inputs.q}"#, r#"cat "/it's \$5" '/it'\''s $5'"#),
            (r"cat '${inputs.q}'", r"cat '/it'\''s $5'"),
            (r#"echo \" ${outputs.y}"#, r#"echo \" '/store/out put'"#),
            ("echo ${HOME} $${inputs.x} ${unclosed", "echo ${HOME} ${inputs.x} ${unclosed"),
        ] {
            assert_eq!(filled(true, &[script]).unwrap(), ["sh", "-c", expected], "{script}");
        }
    }

    #[test]
    fn what_cannot_be_filled_is_named() {
        assert!(filled(false, &["${inputs.z}"]).unwrap_err().contains("${inputs.z}"));
        assert!(filled(true, &["${outputs.x}"]).unwrap_err().contains("${outputs.x}"));
        let error = filled(false, &["--in=${inputs.many}"]).unwrap_err();
        assert!(error.contains("a list of 2") && error.contains("${inputs.many.json}"), "{error}");
    }

    #[test]
    fn a_list_file_holds_nodes_and_coordinates() {
        let folder = tempfile::tempdir().unwrap();
        let ctx = context(folder.path(), &[("many", &["/b", "/c d"])]);
        let words = words(&command(false, &["${inputs.many.json}"]), &Ports::of(&ctx)).unwrap();
        let list: serde_json::Value = serde_json::from_slice(&std::fs::read(&words[0]).unwrap()).unwrap();
        assert_eq!(list[1], json!({"node": "n", "matrix": {"split": "full"}, "path": "/c d"}));
    }
}
