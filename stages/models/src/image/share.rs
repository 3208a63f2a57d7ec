//! Work on a picture, shared by the threads that the caller has.

use rayon::prelude::*;

/// Fewest bytes that are worth waking another thread for.
const WORTH: usize = 1 << 16;

/// Calls `work` with a buffer, the index and the values of each chunk of `out`, in the pool that the caller runs in; outside of any pool
/// on the caller's thread alone, so that nobody takes more processors than it was given.
pub(super) fn share<T: Send, B>(
    out: &mut [T],
    chunk: usize,
    buffer: impl Fn() -> B + Send + Sync,
    work: impl Fn(&mut B, usize, &mut [T]) + Send + Sync,
) {
    let pooled = rayon::current_thread_index().is_some() && rayon::current_num_threads() > 1;
    if pooled && size_of_val(out) >= WORTH {
        let chunks = out.par_chunks_mut(chunk).enumerate();
        chunks.for_each_init(buffer, |buffer, (index, chunk)| work(buffer, index, chunk));
    } else {
        let mut buffer = buffer();
        out.chunks_mut(chunk).enumerate().for_each(|(index, chunk)| work(&mut buffer, index, chunk));
    }
}
