//! Where two files of tensors differ first. The format is safetensors: the length of a header as eight bytes, the header (JSON:
//! name -> type, shape, place of the data), the data.

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Place, open, shortened};
use crate::audit::AuditError;

/// The longest header that is believed, as in the format's own reader.
const LONGEST: u64 = 100_000_000;

/// The entry of a header that is no tensor but free text.
const NOTES: &str = "__metadata__";

/// A header, and where the data begins.
type Header = (Map<String, Value>, u64);

#[derive(Deserialize)]
struct Tensor {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// The first tensor that differs, when both are files of tensors; `byte` is the first byte that does.
pub(super) fn compare(paths: [&Path; 2], byte: u64) -> Result<Option<Place>, AuditError> {
    let [Some((first, data)), Some((second, _))] = [header(paths[0])?, header(paths[1])?] else { return Ok(None) };
    let names = first.keys().chain(second.keys().filter(|name| !first.contains_key(*name)));
    for name in names {
        let values = [&first, &second].map(|header| header.get(name).map(describe).unwrap_or_default());
        if values[0] != values[1] {
            return Ok(Some(Place::Tensor { name: name.clone(), what: "shape and type".to_owned(), values }));
        }
    }
    for (name, value) in first.iter().filter(|(name, _)| *name != NOTES) {
        let Ok(tensor) = Tensor::deserialize(value) else { return Ok(None) };
        let [begin, end] = tensor.data_offsets.map(|offset| data + offset);
        if (begin..end).contains(&byte) {
            let size = (end - begin) / tensor.shape.iter().product::<u64>().max(1);
            let element = (byte - begin) / size.max(1);
            let at = begin + element * size;
            let values =
                [element_at(paths[0], at, size, &tensor.dtype)?, element_at(paths[1], at, size, &tensor.dtype)?];
            return Ok(Some(Place::Tensor { name: name.clone(), what: format!("element {element}"), values }));
        }
    }
    // The same tensors in another order, or with other space between them.
    Ok(None)
}

/// The header and where the data begins.
fn header(path: &Path) -> Result<Option<Header>, AuditError> {
    let mut file = open(path)?;
    let mut length = [0; 8];
    if file.read_exact(&mut length).is_err() {
        return Ok(None);
    }
    let length = u64::from_le_bytes(length);
    if !(2..=LONGEST).contains(&length) {
        return Ok(None);
    }
    let mut text = Vec::new();
    file.take(length).read_to_end(&mut text).map_err(|error| AuditError::io(path, error))?;
    Ok(serde_json::from_slice(&text).ok().map(|header| (header, 8 + length)))
}

/// `F32 [2, 3]`.
fn describe(value: &Value) -> String {
    match Tensor::deserialize(value) {
        Ok(Tensor { dtype, shape, .. }) => format!("{dtype} {shape:?}"),
        Err(_) => shortened(&value.to_string()),
    }
}

/// An element as a number, or as its bytes.
fn element_at(path: &Path, at: u64, size: u64, dtype: &str) -> Result<String, AuditError> {
    let io = |error| AuditError::io(path, error);
    let mut file = open(path)?;
    file.seek(SeekFrom::Start(at)).map_err(io)?;
    let mut bytes = Vec::new();
    file.take(size.min(16)).read_to_end(&mut bytes).map_err(io)?;
    Ok(match (dtype, &bytes[..]) {
        ("F32", &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]).to_string(),
        ("BF16", &[a, b]) => f32::from_le_bytes([0, 0, a, b]).to_string(),
        ("F64", &[a, b, c, d, e, f, g, h]) => f64::from_le_bytes([a, b, c, d, e, f, g, h]).to_string(),
        ("I64", &[a, b, c, d, e, f, g, h]) => i64::from_le_bytes([a, b, c, d, e, f, g, h]).to_string(),
        _ => bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" "),
    })
}
