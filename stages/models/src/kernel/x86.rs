//! The registers of x86-64: AVX2 with fused multiply-add, and AVX-512.

#![allow(unsafe_code, reason = "vector intrinsics; every use is behind a check that the processor has them")]

use std::arch::x86_64::{__m256, __m512};

use half::bf16;

use super::lanes::{Lanes, Value};

/// A register over a module of its operations.
macro_rules! register {
    ($name:ident, $ops:ident, $register:ident, $count:literal, $doc:literal) => {
        #[doc = $doc]
        pub(crate) struct $name;

        impl Lanes for $name {
            type V = $register;
            const N: usize = $count;
            type Square = [Self::V; $count];
            #[inline(always)]
            unsafe fn splat(value: f32) -> Self::V {
                // SAFETY: the caller has checked the processor.
                unsafe { $ops::splat(value) }
            }
            #[inline(always)]
            unsafe fn load(from: *const f32) -> Self::V {
                // SAFETY: the caller has checked the processor and the pointer.
                unsafe { $ops::load(from) }
            }
            #[inline(always)]
            unsafe fn load_bf16(from: *const bf16) -> Self::V {
                // SAFETY: the caller has checked the processor and the pointer.
                unsafe { $ops::load_bf16(from) }
            }
            #[inline(always)]
            unsafe fn load_i8(from: *const i8) -> Self::V {
                // SAFETY: the caller has checked the processor and the pointer.
                unsafe { $ops::load_i8(from) }
            }
            #[inline(always)]
            unsafe fn store(to: *mut f32, value: Self::V) {
                // SAFETY: the caller has checked the processor and the pointer.
                unsafe { $ops::store(to, value) }
            }
            #[inline(always)]
            unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
                // SAFETY: the caller has checked the processor.
                unsafe { $ops::mul(a, b) }
            }
            #[inline(always)]
            unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
                // SAFETY: the caller has checked the processor.
                unsafe { $ops::fma(a, b, c) }
            }
            #[inline(always)]
            unsafe fn transpose(from: *const f32, from_row: usize, to: *mut f32, to_row: usize) {
                // SAFETY: the caller has checked the processor and the pointers.
                unsafe { avx::transpose(from, from_row, to, to_row) }
            }
            #[inline(always)]
            unsafe fn columns<T: Value>(from: *const T, from_row: usize) -> Self::Square {
                // SAFETY: the caller has checked the processor and the pointer.
                unsafe { $ops::columns(from, from_row) }
            }
            #[inline(always)]
            unsafe fn prefetch<T>(at: *const T) {
                use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
                // SAFETY: a hint never faults.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
            }
        }
    };
}

register!(Avx2, avx, __m256, 8, "Eight lanes.");
register!(Avx512, avx512, __m512, 16, "Sixteen lanes.");

mod avx {
    use std::arch::x86_64::*;
    pub(super) use std::arch::x86_64::{
        _mm256_fmadd_ps as fma, _mm256_loadu_ps as load, _mm256_mul_ps as mul, _mm256_set1_ps as splat,
        _mm256_storeu_ps as store,
    };

    use half::bf16;

    use super::{Avx2, Value};

    /// Widened, and shifted to the place of an f32's upper half.
    #[inline(always)]
    pub(super) unsafe fn load_bf16(from: *const bf16) -> __m256 {
        // SAFETY: the caller has checked the processor and the pointer.
        unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast())))) }
    }

    #[inline(always)]
    pub(super) unsafe fn load_i8(from: *const i8) -> __m256 {
        // SAFETY: the caller has checked the processor and the pointer.
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast()))) }
    }

    /// Eight by eight: pairs, then quads, then halves.
    #[inline(always)]
    pub(super) unsafe fn columns<T: Value>(from: *const T, from_row: usize) -> [__m256; 8] {
        // SAFETY: the caller has checked the processor and the pointer.
        unsafe {
            // Not `array::from_fn`, which is no function of this level and would be called, the registers through memory.
            let mut r = [_mm256_setzero_ps(); 8];
            for (i, r) in r.iter_mut().enumerate() {
                *r = T::read::<Avx2>(from.add(i * from_row));
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

    #[inline(always)]
    pub(super) unsafe fn transpose(from: *const f32, from_row: usize, to: *mut f32, to_row: usize) {
        // SAFETY: the caller has checked the processor and the pointers.
        unsafe {
            for (i, column) in columns(from, from_row).into_iter().enumerate() {
                store(to.add(i * to_row), column);
            }
        }
    }
}

mod avx512 {
    use std::arch::x86_64::*;
    pub(super) use std::arch::x86_64::{
        _mm512_fmadd_ps as fma, _mm512_loadu_ps as load, _mm512_mul_ps as mul, _mm512_set1_ps as splat,
        _mm512_storeu_ps as store,
    };

    use half::bf16;

    use super::{Avx512, Value};

    /// Widened, and shifted to the place of an f32's upper half.
    #[inline(always)]
    pub(super) unsafe fn load_bf16(from: *const bf16) -> __m512 {
        // SAFETY: the caller has checked the processor and the pointer.
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast())))) }
    }

    #[inline(always)]
    pub(super) unsafe fn load_i8(from: *const i8) -> __m512 {
        // SAFETY: the caller has checked the processor and the pointer.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()))) }
    }

    /// Sixteen by sixteen: pairs, then quads, then the quarters twice.
    #[inline(always)]
    pub(super) unsafe fn columns<T: Value>(from: *const T, from_row: usize) -> [__m512; 16] {
        // SAFETY: the caller has checked the processor and the pointer.
        unsafe {
            let mut r = [_mm512_setzero_ps(); 16];
            for (i, r) in r.iter_mut().enumerate() {
                *r = T::read::<Avx512>(from.add(i * from_row));
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
                let (a, b, c, d) = (quads[i], quads[4 + i], quads[8 + i], quads[12 + i]);
                let (low, high) = (_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xee>(a, b));
                let (low2, high2) = (_mm512_shuffle_f32x4::<0x44>(c, d), _mm512_shuffle_f32x4::<0xee>(c, d));
                columns[i] = _mm512_shuffle_f32x4::<0x88>(low, low2);
                columns[4 + i] = _mm512_shuffle_f32x4::<0xdd>(low, low2);
                columns[8 + i] = _mm512_shuffle_f32x4::<0x88>(high, high2);
                columns[12 + i] = _mm512_shuffle_f32x4::<0xdd>(high, high2);
            }
            columns
        }
    }
}
