//! Vector registers behind one trait, and the choice among them at run time.

#![allow(unsafe_code, reason = "vector intrinsics; every use is behind a check that the processor has them")]

/// What the processor offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// 16 lanes.
    Avx512,
    /// 8 lanes with fused multiply-add.
    Avx2,
    /// No vector unit that this crate uses.
    Plain,
}

impl Level {
    /// The best level of this processor.
    pub fn detect() -> Level {
        #[cfg(test)]
        if let Some(level) = PRETENDED.get() {
            return level;
        }
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("fma") {
                return Level::Avx512;
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                return Level::Avx2;
            }
        }
        Level::Plain
    }
}

#[cfg(test)]
thread_local! {
    static PRETENDED: std::cell::Cell<Option<Level>> = const { std::cell::Cell::new(None) };
}

#[cfg(test)]
impl Level {
    /// Results of some work at each level that this processor has, the best first; the work must stay on this thread.
    pub(crate) fn each<R>(work: impl Fn() -> R) -> Vec<(Level, R)> {
        let all = [Level::Avx512, Level::Avx2, Level::Plain];
        let best = all.iter().position(|level| *level == Level::detect()).expect("one of the levels");
        let at = |level: Level| {
            PRETENDED.set(Some(level));
            let result = work();
            PRETENDED.set(None);
            (level, result)
        };
        all[best..].iter().map(|level| at(*level)).collect()
    }
}

/// A register of `N` f32 lanes. Callers guarantee that the processor has the instructions and that pointers reach `N` values.
pub(crate) trait Lanes {
    /// The register.
    type V: Copy;
    /// Lanes of a register.
    const N: usize;
    /// All lanes equal.
    unsafe fn splat(value: f32) -> Self::V;
    /// Reads `N` values.
    unsafe fn load(from: *const f32) -> Self::V;
    /// Writes `N` values.
    unsafe fn store(to: *mut f32, value: Self::V);
    /// `a * b + c`, rounded once.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// Eight rows of eight values, `from_row` apart, written as columns: row `i` becomes the `i`-th value of rows `to_row` apart.
    unsafe fn transpose(from: *const f32, from_row: usize, to: *mut f32, to_row: usize);
}

/// One lane, fused by the standard library.
pub(crate) struct Plain;

impl Lanes for Plain {
    type V = f32;
    const N: usize = 1;
    #[inline(always)]
    unsafe fn splat(value: f32) -> f32 {
        value
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> f32 {
        // SAFETY: the caller's pointer reaches one value.
        unsafe { *from }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, value: f32) {
        // SAFETY: the caller's pointer reaches one value.
        unsafe { *to = value }
    }
    #[inline(always)]
    unsafe fn fma(a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }
    #[inline(always)]
    unsafe fn transpose(from: *const f32, from_row: usize, to: *mut f32, to_row: usize) {
        for i in 0..8 {
            for j in 0..8 {
                // SAFETY: the caller's pointers reach eight rows of eight values.
                unsafe { *to.add(j * to_row + i) = *from.add(i * from_row + j) };
            }
        }
    }
}

/// Eight by eight in registers: pairs, then quads, then halves.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn transpose_avx(from: *const f32, from_row: usize, to: *mut f32, to_row: usize) {
    use std::arch::x86_64::*;
    // SAFETY: the caller has checked the processor and the pointers.
    unsafe {
        let r: [__m256; 8] = std::array::from_fn(|i| _mm256_loadu_ps(from.add(i * from_row)));
        let mut pairs = r;
        for i in 0..4 {
            pairs[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
            pairs[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
        }
        let mut quads = r;
        for i in 0..2 {
            let p = &pairs[4 * i..4 * i + 4];
            quads[4 * i] = _mm256_shuffle_ps::<0x44>(p[0], p[2]);
            quads[4 * i + 1] = _mm256_shuffle_ps::<0xee>(p[0], p[2]);
            quads[4 * i + 2] = _mm256_shuffle_ps::<0x44>(p[1], p[3]);
            quads[4 * i + 3] = _mm256_shuffle_ps::<0xee>(p[1], p[3]);
        }
        for i in 0..4 {
            _mm256_storeu_ps(to.add(i * to_row), _mm256_permute2f128_ps::<0x20>(quads[i], quads[i + 4]));
            _mm256_storeu_ps(to.add((i + 4) * to_row), _mm256_permute2f128_ps::<0x31>(quads[i], quads[i + 4]));
        }
    }
}

#[cfg(target_arch = "x86_64")]
macro_rules! x86_lanes {
    ($name:ident, $register:ident, $count:literal, $splat:ident, $load:ident, $store:ident, $fma:ident, $doc:literal) => {
        #[doc = $doc]
        pub(crate) struct $name;

        impl Lanes for $name {
            type V = std::arch::x86_64::$register;
            const N: usize = $count;
            #[inline(always)]
            unsafe fn splat(value: f32) -> Self::V {
                // SAFETY: the caller has checked the processor.
                unsafe { std::arch::x86_64::$splat(value) }
            }
            #[inline(always)]
            unsafe fn load(from: *const f32) -> Self::V {
                // SAFETY: the caller has checked the processor and the pointer.
                unsafe { std::arch::x86_64::$load(from) }
            }
            #[inline(always)]
            unsafe fn store(to: *mut f32, value: Self::V) {
                // SAFETY: the caller has checked the processor and the pointer.
                unsafe { std::arch::x86_64::$store(to, value) }
            }
            #[inline(always)]
            unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
                // SAFETY: the caller has checked the processor.
                unsafe { std::arch::x86_64::$fma(a, b, c) }
            }
            #[inline(always)]
            unsafe fn transpose(from: *const f32, from_row: usize, to: *mut f32, to_row: usize) {
                // SAFETY: the caller has checked the processor and the pointers.
                unsafe { transpose_avx(from, from_row, to, to_row) }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
x86_lanes!(Avx2, __m256, 8, _mm256_set1_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_fmadd_ps, "Eight lanes.");
#[cfg(target_arch = "x86_64")]
x86_lanes!(Avx512, __m512, 16, _mm512_set1_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_fmadd_ps, "Sixteen lanes.");

/// Compiles a function of plain loops once a level and calls the best one: `wide!(fn name(args) { body })`.
macro_rules! wide {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $body:block) => {
        $(#[$meta])*
        #[allow(unsafe_code, reason = "calls a copy compiled for the level that was detected")]
        $vis fn $name($($arg: $ty),*) {
            #[inline(always)]
            fn body($($arg: $ty),*) $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,fma")]
                fn wide512($($arg: $ty),*) { body($($arg),*) }
                #[target_feature(enable = "avx2,fma")]
                fn wide256($($arg: $ty),*) { body($($arg),*) }
                match $crate::kernel::lanes::Level::detect() {
                    // SAFETY: the level was detected.
                    $crate::kernel::lanes::Level::Avx512 => return unsafe { wide512($($arg),*) },
                    // SAFETY: the level was detected.
                    $crate::kernel::lanes::Level::Avx2 => return unsafe { wide256($($arg),*) },
                    $crate::kernel::lanes::Level::Plain => {}
                }
            }
            body($($arg),*)
        }
    };
}
pub(crate) use wide;
