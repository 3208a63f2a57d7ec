//! Width and height from the head of a picture file: what is asked before a stranger's picture is given memory.

use std::io::Cursor;

use image::ImageReader;

use crate::error::{ModelError, Result};

/// Width and height of a picture file, its pixels undecoded.
///
/// # Errors
/// When the bytes are no picture of a known form, or its head is damaged.
pub fn measure(bytes: &[u8]) -> Result<(u32, u32)> {
    let refuse = |error: &dyn std::fmt::Display| ModelError::Picture(error.to_string());
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|error| refuse(&error))?;
    if reader.format().is_none() {
        return Err(refuse(&format_args!("its {} bytes are no PNG, JPEG, WebP, GIF or BMP", bytes.len())));
    }
    reader.into_dimensions().map_err(|error| refuse(&error))
}
