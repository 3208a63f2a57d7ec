//! Where two artifacts differ first: which file, and which place in it.
//!
//! What a file is, is seen from its content, because outputs have no names of their own: tensors (the safetensors format), one JSON
//! document, lines of JSON (records), other text, or bytes. Files of any size are read as streams; only one JSON document and
//! the header of a tensor file are held in memory.

mod json;
mod records;
mod tensors;

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use serde::Serialize;

use super::AuditError;

/// The longest text of a value that is shown, in characters.
const SHOWN: usize = 80;

/// The first place in which two artifacts differ.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// The file, of a tree.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// The place in it.
    #[serde(flatten)]
    pub place: Place,
}

/// A place in a file.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "differs", rename_all = "snake_case")]
pub enum Place {
    /// The file is in one version only.
    Only {
        /// In which: 0 or 1.
        version: usize,
    },
    /// A line of a file of records.
    Record {
        /// The line, from 1.
        line: u64,
        /// The record's id, when both lines have the same.
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<String>,
        /// The value that differs, such as `.options[2].text`; none when one version has no such line.
        #[serde(skip_serializing_if = "Option::is_none")]
        path: Option<String>,
        /// Both values, or lines, shortened; empty where there is none.
        values: [String; 2],
    },
    /// A value of a JSON document.
    Value {
        /// Where, such as `.rows[3].mean`.
        path: String,
        /// Both values, shortened; empty where there is none.
        values: [String; 2],
    },
    /// A tensor.
    Tensor {
        /// Its name.
        name: String,
        /// What differs: its shape, its type, or the element at an index.
        what: String,
        /// Both, in words; empty where there is none.
        values: [String; 2],
    },
    /// A line of a text.
    Line {
        /// The line, from 1.
        line: u64,
        /// The first byte that differs, counted in the file from 0.
        byte: u64,
        /// Both lines, shortened; empty where there is none.
        values: [String; 2],
    },
    /// A byte.
    Byte {
        /// Its place in the file, from 0; the length of the shorter one, when that is where the other goes on.
        byte: u64,
    },
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{file}: ")?;
        }
        let pair = |values: &[String; 2]| {
            let shown = |text: &String| if text.is_empty() { "nothing".to_owned() } else { format!("`{text}`") };
            format!("{} and {}", shown(&values[0]), shown(&values[1]))
        };
        match &self.place {
            Place::Only { version } => write!(f, "is only in the {} of the two", ["first", "second"][*version]),
            Place::Record { line, id, path, values } => {
                let id = id.as_ref().map(|id| format!(" (id {id})")).unwrap_or_default();
                let path = path.as_ref().map(|path| format!(" at {path}")).unwrap_or_default();
                write!(f, "line {line}{id}{path}: {}", pair(values))
            }
            Place::Value { path, values } => write!(f, "{path}: {}", pair(values)),
            Place::Tensor { name, what, values } => write!(f, "tensor {name}, {what}: {}", pair(values)),
            Place::Line { line, byte, values } => write!(f, "line {line}, byte {byte}: {}", pair(values)),
            Place::Byte { byte } => write!(f, "byte {byte}"),
        }
    }
}

/// The first difference of two artifacts of different digests, two files or two directories.
///
/// # Errors
/// One cannot be read.
pub fn difference(paths: [&Path; 2]) -> Result<Difference, AuditError> {
    if !paths.iter().all(|path| path.is_dir()) {
        return Ok(Difference { file: None, place: of_files(paths)? });
    }
    let mut names = BTreeSet::new();
    for path in paths {
        collect(path, path, &mut names)?;
    }
    for name in names {
        let files = paths.map(|path| path.join(&name));
        let place = match files.iter().position(|file| !file.exists()) {
            Some(absent) => Place::Only { version: 1 - absent },
            None if same(&files)? => continue,
            None => of_files([&files[0], &files[1]])?,
        };
        return Ok(Difference { file: Some(name), place });
    }
    // The digests say otherwise: something was changed since.
    Ok(Difference { file: None, place: Place::Byte { byte: 0 } })
}

/// The files below `folder`, by their path from `root`.
fn collect(root: &Path, folder: &Path, names: &mut BTreeSet<String>) -> Result<(), AuditError> {
    let io = |error| AuditError::io(folder, error);
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.is_dir() {
            collect(root, &path, names)?;
        } else {
            names.insert(path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned());
        }
    }
    Ok(())
}

fn open(path: &Path) -> Result<BufReader<File>, AuditError> {
    File::open(path).map(|file| BufReader::with_capacity(1 << 16, file)).map_err(|error| AuditError::io(path, error))
}

fn same(files: &[std::path::PathBuf; 2]) -> Result<bool, AuditError> {
    let length = |path: &Path| path.metadata().map(|meta| meta.len()).map_err(|error| AuditError::io(path, error));
    Ok(length(&files[0])? == length(&files[1])? && first_byte([&files[0], &files[1]])?.is_none())
}

/// The first byte at which two files differ, from 0; none when they are equal.
fn first_byte(paths: [&Path; 2]) -> Result<Option<u64>, AuditError> {
    let (mut first, mut second) = (open(paths[0])?, open(paths[1])?);
    let mut at = 0;
    loop {
        let a = first.fill_buf().map_err(|error| AuditError::io(paths[0], error))?;
        let b = second.fill_buf().map_err(|error| AuditError::io(paths[1], error))?;
        let count = a.len().min(b.len());
        if let Some(offset) = a.iter().zip(b).position(|(a, b)| a != b) {
            return Ok(Some(at + offset as u64));
        }
        if count == 0 {
            return Ok((a.len() != b.len()).then_some(at));
        }
        at += count as u64;
        first.consume(count);
        second.consume(count);
    }
}

/// The first difference of two files that differ.
fn of_files(paths: [&Path; 2]) -> Result<Place, AuditError> {
    let byte = first_byte(paths)?.unwrap_or(0);
    if let Some(place) = tensors::compare(paths, byte)? {
        return Ok(place);
    }
    let place = line_at(paths, byte)?;
    let Place::Line { line, .. } = place else { return Ok(place) };
    if let Some(place) = records::compare(paths, line)? {
        return Ok(place);
    }
    Ok(json::compare(paths)?.unwrap_or(place))
}

/// The line that holds byte `byte` in both files, which are equal before; just the byte when a line is no text.
fn line_at(paths: [&Path; 2], byte: u64) -> Result<Place, AuditError> {
    let mut before = open(paths[0])?.take(byte);
    let (mut line, mut begin, mut at) = (1, 0, 0);
    let mut buffer = Vec::new();
    loop {
        buffer.clear();
        let read = before.read_until(b'\n', &mut buffer).map_err(|error| AuditError::io(paths[0], error))?;
        at += read as u64;
        if read == 0 || buffer.last() != Some(&b'\n') {
            break;
        }
        (line, begin) = (line + 1, at);
    }
    let texts = [text_of_line(paths[0], begin)?, text_of_line(paths[1], begin)?];
    let [Some(first), Some(second)] = texts else { return Ok(Place::Byte { byte }) };
    Ok(Place::Line { line, byte, values: [shortened(&first), shortened(&second)] })
}

/// The line that begins at byte `begin`, without its end; none when it is no text. Only its beginning is read.
fn text_of_line(path: &Path, begin: u64) -> Result<Option<String>, AuditError> {
    use std::io::{Seek, SeekFrom};
    let io = |error| AuditError::io(path, error);
    let mut file = open(path)?;
    file.seek(SeekFrom::Start(begin)).map_err(io)?;
    let mut line = Vec::new();
    file.take(4 * SHOWN as u64 + 4).read_until(b'\n', &mut line).map_err(io)?;
    let text = match std::str::from_utf8(&line) {
        Ok(text) => Some(text),
        // The last character may be cut.
        Err(error) if error.error_len().is_none() => std::str::from_utf8(&line[..error.valid_up_to()]).ok(),
        Err(_) => None,
    };
    Ok(text.filter(|text| !text.contains('\0')).map(|text| text.trim_end_matches('\n').to_owned()))
}

fn shortened(text: &str) -> String {
    if text.chars().count() <= SHOWN { text.to_owned() } else { text.chars().take(SHOWN).collect::<String>() + " ..." }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The difference of two files with these contents, in words.
    fn told(first: &[u8], second: &[u8]) -> String {
        let folder = tempfile::tempdir().unwrap();
        let paths = ["a", "b"].map(|name| folder.path().join(name));
        std::fs::write(&paths[0], first).unwrap();
        std::fs::write(&paths[1], second).unwrap();
        difference([&paths[0], &paths[1]]).unwrap().to_string()
    }

    #[test]
    fn text_and_bytes() {
        assert_eq!(told(b"one\ntwo\nthree\n", b"one\ntwo\nthrow\n"), "line 3, byte 11: `three` and `throw`");
        assert_eq!(told(b"one\n", b"one\ntwo\n"), "line 2, byte 4: nothing and `two`");
        assert_eq!(told(b"\0\x01\xff", b"\0\x02\xff"), "byte 1");
        assert_eq!(told(b"", b"x"), "line 1, byte 0: nothing and `x`");
        let long = "x".repeat(200);
        assert!(told(long.as_bytes(), b"y").len() < 120);
        let mut large = vec![b'a'; 200_000];
        let before = large.clone();
        large[150_000] = b'b';
        assert!(told(&before, &large).starts_with("line 1, byte 150000"));
    }

    #[test]
    fn records_and_documents() {
        let a = b"{\"id\":\"q1\",\"v\":[1,2]}\n{\"id\":\"q2\",\"v\":[1,2]}\n";
        let b = b"{\"id\":\"q1\",\"v\":[1,2]}\n{\"id\":\"q2\",\"v\":[1,3]}\n";
        assert_eq!(told(a, b), "line 2 (id q2) at .v[1]: `2` and `3`");
        assert_eq!(told(&a[..22], a), "line 2 (id q2): nothing and `{\"id\":\"q2\",\"v\":[1,2]}`");
        let swapped = b"{\"id\":\"q2\",\"v\":[1,2]}\n{\"id\":\"q1\",\"v\":[1,2]}\n";
        assert_eq!(told(a, swapped), "line 1 at .id: `\"q1\"` and `\"q2\"`");
        assert_eq!(
            told(b"{\"a\":1,\"b\":2}\n", b"{\"b\":2,\"a\":1}\n"),
            "line 1 at .: `the keys a, b` and `the keys b, a`"
        );
        assert_eq!(
            told(b"{\"a\": 1}\n", b"{\"a\":1}\n"),
            "line 1, byte 5: `{\"a\": 1}` and `{\"a\":1}`",
            "the same values"
        );
        let document = |mean: &str| format!("{{\n  \"rows\": [\n    {{ \"a b\": {mean} }}\n  ]\n}}\n");
        assert_eq!(told(document("1").as_bytes(), document("2").as_bytes()), ".rows[0][\"a b\"]: `1` and `2`");
        assert_eq!(told(b"[1, 2]", b"[1]"), "line 1 at [1]: `2` and nothing");
    }

    #[test]
    fn trees() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        for (name, text) in [("a/m/x", "1"), ("a/z", "1"), ("b/m/x", "2"), ("b/z", "2")] {
            write(name, text);
        }
        let told = || difference([&folder.path().join("a"), &folder.path().join("b")]).unwrap().to_string();
        assert_eq!(told(), "m/x: 1: `1` and `2`".replace("1: ", "line 1, byte 0: "));
        write("b/m/x", "1");
        assert_eq!(told(), "z: line 1, byte 0: `1` and `2`");
        write("b/m/w", "");
        assert_eq!(told(), "m/w: is only in the second of the two");
    }

    fn tensor_file(header: &str, data: &[u8]) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
    }

    #[test]
    fn tensor_files() {
        let header = r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"BF16","shape":[2],"data_offsets":[8,12]}}"#;
        let data = |w: f32, b: u16| {
            [&1f32.to_le_bytes()[..], &w.to_le_bytes(), &0u16.to_le_bytes(), &b.to_le_bytes()].concat()
        };
        let one = tensor_file(header, &data(0.5, 0x3f80));
        assert_eq!(told(&one, &tensor_file(header, &data(0.25, 0))), "tensor w, element 1: `0.5` and `0.25`");
        assert_eq!(told(&one, &tensor_file(header, &data(0.5, 0x4000))), "tensor b, element 1: `1` and `2`");
        let shape = header.replace("[2],\"data_offsets\":[8", "[1,2],\"data_offsets\":[8");
        let other = tensor_file(&shape, &data(0.5, 0x3f80));
        assert_eq!(told(&one, &other), "tensor b, shape and type: `BF16 [2]` and `BF16 [1, 2]`");
        let less = tensor_file(r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, &data(0.5, 0)[..8]);
        assert_eq!(told(&one, &less), "tensor b, shape and type: `BF16 [2]` and nothing");
        let noted = header.replacen('{', r#"{"__metadata__":{"format":"pt"},"#, 1);
        assert_eq!(
            told(&one, &tensor_file(&noted, &data(0.5, 0x3f80))),
            "tensor __metadata__, shape and type: nothing and `{\"format\":\"pt\"}`"
        );
        assert!(told(&one, b"abc").contains("byte"), "only one is a tensor file");
    }
}
