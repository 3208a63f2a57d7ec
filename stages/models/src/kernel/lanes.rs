//! Vector registers behind one trait, and the choice among them at run time.

#![allow(unsafe_code, reason = "vector intrinsics; every use is behind a check that the processor has them")]

use std::ops::Index;

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
    /// `N` registers.
    type Square: Index<usize, Output = Self::V>;
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
    /// `N` rows of `N` values, `from_row` apart, as columns: lane `i` of register `k` is the `k`-th value of row `i`.
    unsafe fn columns(from: *const f32, from_row: usize) -> Self::Square;
    /// Asks for the cache line at an address, which need not be mapped, into the first cache.
    unsafe fn prefetch(at: *const f32);
}

/// One lane, fused by the standard library.
pub(crate) struct Plain;

impl Lanes for Plain {
    type V = f32;
    const N: usize = 1;
    type Square = [f32; 1];
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
    #[inline(always)]
    unsafe fn columns(from: *const f32, _from_row: usize) -> [f32; 1] {
        // SAFETY: the caller's pointer reaches one value.
        [unsafe { *from }]
    }
    #[inline(always)]
    unsafe fn prefetch(_at: *const f32) {}
}

/// Eight by eight in registers: pairs, then quads, then halves.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn columns_avx(from: *const f32, from_row: usize) -> [std::arch::x86_64::__m256; 8] {
    use std::arch::x86_64::*;
    // SAFETY: the caller has checked the processor and the pointer.
    unsafe {
        // Not `from_fn`, which is no function of this level and would be called, the registers through memory.
        let mut r = [_mm256_setzero_ps(); 8];
        for (i, r) in r.iter_mut().enumerate() {
            *r = _mm256_loadu_ps(from.add(i * from_row));
        }
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
        let mut columns = r;
        for i in 0..4 {
            columns[i] = _mm256_permute2f128_ps::<0x20>(quads[i], quads[i + 4]);
            columns[i + 4] = _mm256_permute2f128_ps::<0x31>(quads[i], quads[i + 4]);
        }
        columns
    }
}

/// Sixteen by sixteen in registers: pairs, then quads, then the quarters twice.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn columns_avx512(from: *const f32, from_row: usize) -> [std::arch::x86_64::__m512; 16] {
    use std::arch::x86_64::*;
    // SAFETY: the caller has checked the processor and the pointer.
    unsafe {
        let mut r = [_mm512_setzero_ps(); 16];
        for (i, r) in r.iter_mut().enumerate() {
            *r = _mm512_loadu_ps(from.add(i * from_row));
        }
        let mut pairs = r;
        for i in 0..8 {
            pairs[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
            pairs[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
        }
        let mut quads = r;
        for i in 0..4 {
            let p = &pairs[4 * i..4 * i + 4];
            quads[4 * i] = _mm512_shuffle_ps::<0x44>(p[0], p[2]);
            quads[4 * i + 1] = _mm512_shuffle_ps::<0xee>(p[0], p[2]);
            quads[4 * i + 2] = _mm512_shuffle_ps::<0x44>(p[1], p[3]);
            quads[4 * i + 3] = _mm512_shuffle_ps::<0xee>(p[1], p[3]);
        }
        let mut columns = r;
        for i in 0..4 {
            let halves =
                |a: __m512, b: __m512| (_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xee>(a, b));
            let (low, high) = halves(quads[i], quads[4 + i]);
            let (low2, high2) = halves(quads[8 + i], quads[12 + i]);
            columns[i] = _mm512_shuffle_f32x4::<0x88>(low, low2);
            columns[4 + i] = _mm512_shuffle_f32x4::<0xdd>(low, low2);
            columns[8 + i] = _mm512_shuffle_f32x4::<0x88>(high, high2);
            columns[12 + i] = _mm512_shuffle_f32x4::<0xdd>(high, high2);
        }
        columns
    }
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn transpose_avx(from: *const f32, from_row: usize, to: *mut f32, to_row: usize) {
    // SAFETY: the caller has checked the processor and the pointers.
    unsafe {
        for (i, column) in columns_avx(from, from_row).into_iter().enumerate() {
            std::arch::x86_64::_mm256_storeu_ps(to.add(i * to_row), column);
        }
    }
}

#[cfg(target_arch = "x86_64")]
macro_rules! x86_lanes {
    ($name:ident, $register:ident, $count:literal, $splat:ident, $load:ident, $store:ident, $fma:ident, $columns:ident, $doc:literal) => {
        #[doc = $doc]
        pub(crate) struct $name;

        impl Lanes for $name {
            type V = std::arch::x86_64::$register;
            const N: usize = $count;
            type Square = [Self::V; $count];
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
            #[inline(always)]
            unsafe fn columns(from: *const f32, from_row: usize) -> Self::Square {
                // SAFETY: the caller has checked the processor and the pointer.
                unsafe { $columns(from, from_row) }
            }
            #[inline(always)]
            unsafe fn prefetch(at: *const f32) {
                use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
                // SAFETY: a hint never faults.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
x86_lanes!(
    Avx2,
    __m256,
    8,
    _mm256_set1_ps,
    _mm256_loadu_ps,
    _mm256_storeu_ps,
    _mm256_fmadd_ps,
    columns_avx,
    "Eight lanes."
);
#[cfg(target_arch = "x86_64")]
x86_lanes!(
    Avx512,
    __m512,
    16,
    _mm512_set1_ps,
    _mm512_loadu_ps,
    _mm512_storeu_ps,
    _mm512_fmadd_ps,
    columns_avx512,
    "Sixteen lanes."
);

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
