//! M-RoPE positions: text counts on, equally on all axes; a picture's tokens take its time, row and column, offset by where it starts;
//! text after a picture goes on behind the largest position so far.

use crate::error::{ModelError, Result};

/// The three position lists of a sequence of ids whose pictures have these grids of merged tokens.
///
/// # Errors
/// When the runs of image tokens do not match the pictures.
pub fn positions(ids: &[u32], image_token: u32, merged: &[[usize; 3]]) -> Result<[Vec<u32>; 3]> {
    let mut out: [Vec<u32>; 3] = std::array::from_fn(|_| Vec::with_capacity(ids.len()));
    let (mut row, mut next, mut images) = (0, 0u32, merged.iter());
    while row < ids.len() {
        if ids[row] != image_token {
            out.iter_mut().for_each(|axis| axis.push(next));
            (row, next) = (row + 1, next + 1);
            continue;
        }
        let grid @ [time, height, width] = *images.next().ok_or_else(|| mismatch("more image tokens than pictures"))?;
        let tokens = time * height * width;
        if !ids[row..].iter().take(tokens).eq(std::iter::repeat_n(&image_token, tokens)) {
            return Err(mismatch("a picture has fewer image tokens than merged patches"));
        }
        for index in 0..tokens {
            let place = [index / (height * width), index / width % height, index % width];
            out.iter_mut().zip(place).for_each(|(axis, at)| axis.push(next + at as u32));
        }
        (row, next) = (row + tokens, next + grid.into_iter().max().unwrap_or(0) as u32);
    }
    if images.next().is_some() {
        return Err(mismatch("more pictures than image tokens"));
    }
    Ok(out)
}

fn mismatch(message: &str) -> ModelError {
    ModelError::Prompt(message.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_goes_on_behind_a_picture() {
        let got = positions(&[1, 9, 9, 9, 9, 9, 9, 2, 3], 9, &[[1, 2, 3]]).unwrap();
        assert_eq!(got[0], [0, 1, 1, 1, 1, 1, 1, 4, 5]);
        assert_eq!(got[1], [0, 1, 1, 1, 2, 2, 2, 4, 5]);
        assert_eq!(got[2], [0, 1, 2, 3, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn counts_must_match() {
        for (ids, grids) in [(vec![9, 9], vec![]), (vec![9], vec![[1, 1, 2]]), (vec![1], vec![[1, 1, 1]])] {
            assert!(positions(&ids, 9, &grids).is_err(), "{ids:?}");
        }
    }
}
