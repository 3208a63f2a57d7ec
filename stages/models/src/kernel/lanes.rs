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
