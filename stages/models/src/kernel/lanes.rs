//! Vector registers behind one trait, and the choice among them at run time.

#![allow(unsafe_code, reason = "vector intrinsics; every use is behind a check that the processor has them")]

use std::ops::Index;

use half::bf16;

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
    /// The levels that this processor has, the best first.
    pub(crate) fn all() -> Vec<Level> {
        let all = [Level::Avx512, Level::Avx2, Level::Plain];
        let best = all.iter().position(|level| *level == Level::detect()).expect("one of the levels");
        all[best..].to_vec()
    }

    /// Results of some work at each of them; the work must stay on this thread.
    pub(crate) fn each<R>(work: impl Fn() -> R) -> Vec<(Level, R)> {
        let at = |level: Level| {
            PRETENDED.set(Some(level));
            let result = work();
            PRETENDED.set(None);
            (level, result)
        };
        Level::all().into_iter().map(at).collect()
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
    /// Reads `N` values of sixteen bits.
    unsafe fn load_bf16(from: *const bf16) -> Self::V;
    /// Reads `N` whole numbers of eight bits.
    unsafe fn load_i8(from: *const i8) -> Self::V;
    /// Writes `N` values.
    unsafe fn store(to: *mut f32, value: Self::V);
    /// `a * b`.
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// Eight rows of eight values, `from_row` apart, written as columns: row `i` becomes the `i`-th value of rows `to_row` apart.
    unsafe fn transpose(from: *const f32, from_row: usize, to: *mut f32, to_row: usize);
    /// `N` rows of `N` values, `from_row` apart, as columns: lane `i` of register `k` is the `k`-th value of row `i`.
    unsafe fn columns<T: Value>(from: *const T, from_row: usize) -> Self::Square;
    /// Asks for the cache line at an address, which need not be mapped, into the first cache.
    unsafe fn prefetch<T>(at: *const T);
}

/// A value that a register reads as f32.
pub(crate) trait Value: Copy {
    /// Reads as many as the register has lanes.
    unsafe fn read<L: Lanes>(from: *const Self) -> L::V;
    /// One of them.
    fn widen(self) -> f32;
}

impl Value for f32 {
    #[inline(always)]
    unsafe fn read<L: Lanes>(from: *const f32) -> L::V {
        // SAFETY: as the caller guarantees.
        unsafe { L::load(from) }
    }
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}

impl Value for bf16 {
    #[inline(always)]
    unsafe fn read<L: Lanes>(from: *const bf16) -> L::V {
        // SAFETY: as the caller guarantees.
        unsafe { L::load_bf16(from) }
    }
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
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
    unsafe fn load_bf16(from: *const bf16) -> f32 {
        // SAFETY: the caller's pointer reaches one value.
        unsafe { *from }.widen()
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> f32 {
        // SAFETY: the caller's pointer reaches one value.
        f32::from(unsafe { *from })
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, value: f32) {
        // SAFETY: the caller's pointer reaches one value.
        unsafe { *to = value }
    }
    #[inline(always)]
    unsafe fn mul(a: f32, b: f32) -> f32 {
        a * b
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
    unsafe fn columns<T: Value>(from: *const T, _from_row: usize) -> [f32; 1] {
        // SAFETY: the caller's pointer reaches one value.
        [unsafe { *from }.widen()]
    }
    #[inline(always)]
    unsafe fn prefetch<T>(_at: *const T) {}
}

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
