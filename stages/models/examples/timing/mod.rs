//! How long work takes.

use std::time::Instant;

/// Seconds of the fastest of several repetitions, after one that is not counted.
pub(crate) fn least(times: usize, mut work: impl FnMut()) -> f64 {
    let mut timed = || {
        let start = Instant::now();
        work();
        start.elapsed().as_secs_f64()
    };
    timed();
    (0..times).map(|_| timed()).fold(f64::INFINITY, f64::min)
}
