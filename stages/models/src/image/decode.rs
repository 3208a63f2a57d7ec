//! Picture files to pixels: what is damaged, empty or too large is refused with the reason.
//!
//! Every form becomes 8-bit RGB: 16-bit samples are rounded to 8, a palette is looked up, transparency is dropped (as Pillow's
//! `convert("RGB")` does), CMYK is converted, and of an animation the first frame counts.

use std::io::Cursor;

use image::{ImageFormat, ImageReader, Limits, RgbImage};

use crate::error::{ModelError, Result};

/// Bytes that decoding one picture may take.
const MEMORY: u64 = 1 << 30;

/// Decodes the bytes of a picture file.
///
/// # Errors
/// When they are no picture of a known form, or a damaged one, or decoding would take over 1 GiB.
pub fn decode(bytes: &[u8]) -> Result<RgbImage> {
    let refuse = |message: String| ModelError::Picture(message);
    if bytes.is_empty() {
        return Err(refuse("the file is empty".into()));
    }
    let mut reader = ImageReader::new(Cursor::new(bytes))
        .with_guessed_format()
        .map_err(|error| refuse(format!("the first of its {} bytes cannot be read: {error}", bytes.len())))?;
    if reader.format().is_none() {
        return Err(refuse(format!("its {} bytes are no PNG, JPEG, WebP, GIF or BMP", bytes.len())));
    }
    if reader.format() == Some(ImageFormat::Jpeg) && !jpeg_ends(bytes) {
        return Err(refuse(format!("the JPEG file is cut off after {} bytes", bytes.len())));
    }
    let mut limits = Limits::default();
    limits.max_alloc = Some(MEMORY);
    reader.limits(limits);
    let decoded = reader.decode().map_err(|error| refuse(error.to_string()))?;
    Ok(decoded.into_rgb8())
}

/// Whether the end marker stands behind the last scan: the decoder itself would fill what is missing with gray.
fn jpeg_ends(bytes: &[u8]) -> bool {
    let scan = |bytes: &[u8]| bytes.windows(2).any(|pair| pair == [0xff, 0xda]);
    // The end is looked for from behind and a scan from the front, where they are, rather than through all that lies between.
    let end = bytes.windows(2).rposition(|pair| pair == [0xff, 0xd9]);
    end.is_some_and(|end| scan(&bytes[..end]) && !scan(&bytes[end..]))
}

#[cfg(test)]
mod tests {
    use image::{DynamicImage, ImageBuffer, Luma, Rgb};

    use super::*;

    fn png(image: &DynamicImage) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image.write_to(&mut bytes, ImageFormat::Png).unwrap();
        bytes.into_inner()
    }

    #[test]
    fn damaged_files_are_errors() {
        let image = DynamicImage::ImageRgb8(RgbImage::from_fn(40, 30, |x, y| Rgb([x as u8, y as u8, 7])));
        let whole = png(&image);
        assert_eq!(decode(&whole).unwrap().dimensions(), (40, 30));
        for cut in 0..whole.len() - 12 {
            assert!(decode(&whole[..cut]).is_err(), "{cut} of {} bytes", whole.len());
        }
        let mut corrupt = whole.clone();
        let middle = corrupt.len() / 2;
        corrupt[middle] ^= 0x55;
        assert!(decode(&corrupt).is_err());
        assert!(decode(b"no picture at all").unwrap_err().to_string().contains("17 bytes are no PNG"));
    }

    #[test]
    fn a_jpeg_that_is_cut_off_is_an_error_wherever_it_was_cut() {
        let whole = include_bytes!("../../tests/fixtures/images/round.jpg");
        assert_eq!(decode(whole).unwrap().dimensions(), (64, 48));
        for cut in 0..whole.len() - 1 {
            assert!(decode(&whole[..cut]).is_err(), "{cut} of {} bytes", whole.len());
        }
    }

    #[test]
    fn cmyk_becomes_rgb() {
        let image = decode(include_bytes!("../../tests/fixtures/images/cmyk.jpg")).unwrap();
        let [r, g, b] = image.get_pixel(3, 3).0;
        assert!(r > 250 && g < 5 && b < 5, "{:?}", [r, g, b]);
    }

    #[test]
    fn sixteen_bits_round_to_eight() {
        let deep = ImageBuffer::from_fn(2, 1, |x, _| Rgb([65_535u16, 32_768, 257 * 3 * x as u16]));
        let image = decode(&png(&DynamicImage::ImageRgb16(deep))).unwrap();
        assert_eq!((image.get_pixel(0, 0).0, image.get_pixel(1, 0).0), ([255, 128, 0], [255, 128, 3]));
        let gray = ImageBuffer::from_pixel(1, 1, Luma([65_535u16]));
        assert_eq!(decode(&png(&DynamicImage::ImageLuma16(gray))).unwrap().get_pixel(0, 0).0, [255; 3]);
    }

    #[test]
    fn of_an_animation_the_first_frame_counts() {
        let mut bytes = Vec::new();
        let mut encoder = image::codecs::gif::GifEncoder::new(&mut bytes);
        for shade in [10, 200] {
            let frame = image::RgbaImage::from_pixel(6, 4, image::Rgba([shade, shade, shade, 255]));
            encoder.encode_frame(image::Frame::new(frame)).unwrap();
        }
        drop(encoder);
        let image = decode(&bytes).unwrap();
        assert_eq!((image.dimensions(), image.get_pixel(5, 3).0), ((6, 4), [10; 3]));
    }
}
