//! Vectors of f32 on each instruction set: what the micro-kernels are written in.
//!
//! Every function is `unsafe` for one reason: it may only run where its instruction set is there. They are inlined into callers that have it
//! enabled ([`super::micro`]), so a vector never crosses a call.
#![allow(unsafe_code)]

use half::f16;

/// An instruction set.
pub(crate) trait Simd {
    type V: Copy;
    const LANES: usize;
    /// Rows of a tile of the product, beside two vectors: as many as registers hold.
    const ROWS: usize;
    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn load(from: *const f32) -> Self::V;
    unsafe fn load_half(from: *const f16) -> Self::V;
    unsafe fn store(to: *mut f32, x: Self::V);
    /// a b + c.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    /// The larger; not a number where `b` is not, any of the two where only `a` is not.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// `x` where `a < b`, else `y` (also where one is not a number).
    unsafe fn select_less(a: Self::V, b: Self::V, x: Self::V, y: Self::V) -> Self::V;
    /// The bits, shifted left by 23.
    unsafe fn into_exponent(x: Self::V) -> Self::V;
    /// Words and `mask`, which has not the highest bit, as numbers.
    unsafe fn masked(from: *const u32, mask: u32) -> Self::V;
    /// Words shifted down by `shift` > 0, as numbers.
    unsafe fn shifted(from: *const u32, shift: u32) -> Self::V;
    /// The low and the high halves of `LANES` words, each an f16.
    #[inline(always)]
    unsafe fn halves(from: *const u32) -> (Self::V, Self::V) {
        let (mut low, mut high) = ([f16::ZERO; 16], [f16::ZERO; 16]);
        // SAFETY: the caller's.
        unsafe {
            for lane in 0..Self::LANES {
                let word = *from.add(lane);
                (low[lane], high[lane]) = (f16::from_bits(word as u16), f16::from_bits((word >> 16) as u16));
            }
            (Self::load_half(low.as_ptr()), Self::load_half(high.as_ptr()))
        }
    }
    unsafe fn sum(x: Self::V) -> f32;
    unsafe fn largest(x: Self::V) -> f32;
    /// Asks for the cache line of an address, which need not be of anything.
    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}
    /// `LANES` rows of `LANES` elements, `from_stride` apart, turned into columns `to_stride` apart.
    unsafe fn transpose(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
        for row in 0..Self::LANES {
            for column in 0..Self::LANES {
                // SAFETY: the caller's.
                unsafe { *to.add(column * to_stride + row) = *from.add(row * from_stride + column) };
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::*;

    /// avx512f.
    pub(crate) struct Avx512;

    impl Simd for Avx512 {
        type V = __m512;
        const LANES: usize = 16;
        const ROWS: usize = 12;
        #[inline(always)]
        unsafe fn prefetch(at: *const u8) {
            unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
        }
        #[inline(always)]
        unsafe fn splat(x: f32) -> __m512 {
            unsafe { _mm512_set1_ps(x) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> __m512 {
            unsafe { _mm512_loadu_ps(from) }
        }
        #[inline(always)]
        unsafe fn load_half(from: *const f16) -> __m512 {
            unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
        }
        #[inline(always)]
        unsafe fn store(to: *mut f32, x: __m512) {
            unsafe { _mm512_storeu_ps(to, x) }
        }
        #[inline(always)]
        unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn add(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_add_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn sub(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_sub_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn mul(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_mul_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn div(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_div_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn max(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_max_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn select_less(a: __m512, b: __m512, x: __m512, y: __m512) -> __m512 {
            unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), y, x) }
        }
        #[inline(always)]
        unsafe fn into_exponent(x: __m512) -> __m512 {
            unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_castps_si512(x))) }
        }
        #[inline(always)]
        unsafe fn masked(from: *const u32, mask: u32) -> __m512 {
            unsafe {
                let words = _mm512_loadu_si512(from.cast());
                _mm512_cvtepi32_ps(_mm512_and_si512(words, _mm512_set1_epi32(mask as i32)))
            }
        }
        #[inline(always)]
        unsafe fn shifted(from: *const u32, shift: u32) -> __m512 {
            unsafe {
                let words = _mm512_loadu_si512(from.cast());
                _mm512_cvtepi32_ps(_mm512_srl_epi32(words, _mm_cvtsi32_si128(shift as i32)))
            }
        }
        #[inline(always)]
        unsafe fn halves(from: *const u32) -> (__m512, __m512) {
            unsafe {
                let words = _mm512_loadu_si512(from.cast());
                let half = |words| _mm512_cvtph_ps(_mm512_cvtepi32_epi16(words));
                (half(words), half(_mm512_srli_epi32::<16>(words)))
            }
        }
        #[inline(always)]
        unsafe fn sum(x: __m512) -> f32 {
            unsafe { _mm512_reduce_add_ps(x) }
        }
        #[inline(always)]
        unsafe fn largest(x: __m512) -> f32 {
            unsafe { _mm512_reduce_max_ps(x) }
        }
        #[inline(always)]
        unsafe fn transpose(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
            unsafe {
                let mut rows = [_mm512_setzero_ps(); 16];
                for (row, x) in rows.iter_mut().enumerate() {
                    *x = _mm512_loadu_ps(from.add(row * from_stride));
                }
                // 4 x 4 blocks within the quarters of four rows, then the quarters themselves.
                let mut quads = [_mm512_setzero_ps(); 16];
                for i in 0..4 {
                    let [a, b, c, d] = [rows[4 * i], rows[4 * i + 1], rows[4 * i + 2], rows[4 * i + 3]];
                    let (ab, cd) = (_mm512_unpacklo_ps(a, b), _mm512_unpacklo_ps(c, d));
                    let (ab_high, cd_high) = (_mm512_unpackhi_ps(a, b), _mm512_unpackhi_ps(c, d));
                    quads[i] = _mm512_shuffle_ps::<0x44>(ab, cd);
                    quads[4 + i] = _mm512_shuffle_ps::<0xee>(ab, cd);
                    quads[8 + i] = _mm512_shuffle_ps::<0x44>(ab_high, cd_high);
                    quads[12 + i] = _mm512_shuffle_ps::<0xee>(ab_high, cd_high);
                }
                for j in 0..4 {
                    let [a, b, c, d] = [quads[4 * j], quads[4 * j + 1], quads[4 * j + 2], quads[4 * j + 3]];
                    let (ab, cd) = (_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0x88>(c, d));
                    let (ab_odd, cd_odd) = (_mm512_shuffle_f32x4::<0xdd>(a, b), _mm512_shuffle_f32x4::<0xdd>(c, d));
                    _mm512_storeu_ps(to.add(j * to_stride), _mm512_shuffle_f32x4::<0x88>(ab, cd));
                    _mm512_storeu_ps(to.add((4 + j) * to_stride), _mm512_shuffle_f32x4::<0x88>(ab_odd, cd_odd));
                    _mm512_storeu_ps(to.add((8 + j) * to_stride), _mm512_shuffle_f32x4::<0xdd>(ab, cd));
                    _mm512_storeu_ps(to.add((12 + j) * to_stride), _mm512_shuffle_f32x4::<0xdd>(ab_odd, cd_odd));
                }
            }
        }
    }

    /// avx2, fma and f16c.
    pub(crate) struct Avx2;

    impl Simd for Avx2 {
        type V = __m256;
        const LANES: usize = 8;
        const ROWS: usize = 6;
        #[inline(always)]
        unsafe fn prefetch(at: *const u8) {
            unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
        }
        #[inline(always)]
        unsafe fn splat(x: f32) -> __m256 {
            unsafe { _mm256_set1_ps(x) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> __m256 {
            unsafe { _mm256_loadu_ps(from) }
        }
        #[inline(always)]
        unsafe fn load_half(from: *const f16) -> __m256 {
            unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
        }
        #[inline(always)]
        unsafe fn store(to: *mut f32, x: __m256) {
            unsafe { _mm256_storeu_ps(to, x) }
        }
        #[inline(always)]
        unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
            unsafe { _mm256_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn add(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_add_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn sub(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_sub_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn mul(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_mul_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn div(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_div_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn max(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_max_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn select_less(a: __m256, b: __m256, x: __m256, y: __m256) -> __m256 {
            unsafe { _mm256_blendv_ps(y, x, _mm256_cmp_ps::<_CMP_LT_OQ>(a, b)) }
        }
        #[inline(always)]
        unsafe fn into_exponent(x: __m256) -> __m256 {
            unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_castps_si256(x))) }
        }
        #[inline(always)]
        unsafe fn masked(from: *const u32, mask: u32) -> __m256 {
            unsafe {
                let words = _mm256_loadu_si256(from.cast());
                _mm256_cvtepi32_ps(_mm256_and_si256(words, _mm256_set1_epi32(mask as i32)))
            }
        }
        #[inline(always)]
        unsafe fn shifted(from: *const u32, shift: u32) -> __m256 {
            unsafe {
                let words = _mm256_loadu_si256(from.cast());
                _mm256_cvtepi32_ps(_mm256_srl_epi32(words, _mm_cvtsi32_si128(shift as i32)))
            }
        }
        #[inline(always)]
        unsafe fn halves(from: *const u32) -> (__m256, __m256) {
            unsafe {
                let words = _mm256_loadu_si256(from.cast());
                let low = _mm256_and_si256(words, _mm256_set1_epi32(0xffff));
                // Within each half of the register first, then in order.
                let packed = _mm256_packus_epi32(low, _mm256_srli_epi32::<16>(words));
                let packed = _mm256_permute4x64_epi64::<0b11_01_10_00>(packed);
                (
                    _mm256_cvtph_ps(_mm256_castsi256_si128(packed)),
                    _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(packed)),
                )
            }
        }
        #[inline(always)]
        unsafe fn sum(x: __m256) -> f32 {
            unsafe {
                let four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
                let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
                _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
            }
        }
        #[inline(always)]
        unsafe fn largest(x: __m256) -> f32 {
            unsafe {
                let four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
                let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
                _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
            }
        }
    }
}

#[cfg(target_arch = "aarch64")]
pub(crate) use arm::Neon;

#[cfg(target_arch = "aarch64")]
mod arm {
    use std::arch::aarch64::*;

    use super::*;

    /// What every 64-bit ARM has.
    pub(crate) struct Neon;

    impl Simd for Neon {
        type V = float32x4_t;
        const LANES: usize = 4;
        const ROWS: usize = 8;
        #[inline(always)]
        unsafe fn splat(x: f32) -> float32x4_t {
            unsafe { vdupq_n_f32(x) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> float32x4_t {
            unsafe { vld1q_f32(from) }
        }
        #[inline(always)]
        unsafe fn load_half(from: *const f16) -> float32x4_t {
            unsafe {
                let values = [0, 1, 2, 3].map(|i| (*from.add(i)).to_f32());
                vld1q_f32(values.as_ptr())
            }
        }
        #[inline(always)]
        unsafe fn store(to: *mut f32, x: float32x4_t) {
            unsafe { vst1q_f32(to, x) }
        }
        #[inline(always)]
        unsafe fn fma(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
            unsafe { vfmaq_f32(c, a, b) }
        }
        #[inline(always)]
        unsafe fn add(a: float32x4_t, b: float32x4_t) -> float32x4_t {
            unsafe { vaddq_f32(a, b) }
        }
        #[inline(always)]
        unsafe fn sub(a: float32x4_t, b: float32x4_t) -> float32x4_t {
            unsafe { vsubq_f32(a, b) }
        }
        #[inline(always)]
        unsafe fn mul(a: float32x4_t, b: float32x4_t) -> float32x4_t {
            unsafe { vmulq_f32(a, b) }
        }
        #[inline(always)]
        unsafe fn div(a: float32x4_t, b: float32x4_t) -> float32x4_t {
            unsafe { vdivq_f32(a, b) }
        }
        #[inline(always)]
        unsafe fn max(a: float32x4_t, b: float32x4_t) -> float32x4_t {
            unsafe { vmaxq_f32(a, b) }
        }
        #[inline(always)]
        unsafe fn select_less(a: float32x4_t, b: float32x4_t, x: float32x4_t, y: float32x4_t) -> float32x4_t {
            unsafe { vbslq_f32(vcltq_f32(a, b), x, y) }
        }
        #[inline(always)]
        unsafe fn into_exponent(x: float32x4_t) -> float32x4_t {
            unsafe { vreinterpretq_f32_u32(vshlq_n_u32::<23>(vreinterpretq_u32_f32(x))) }
        }
        #[inline(always)]
        unsafe fn masked(from: *const u32, mask: u32) -> float32x4_t {
            unsafe { vcvtq_f32_u32(vandq_u32(vld1q_u32(from), vdupq_n_u32(mask))) }
        }
        #[inline(always)]
        unsafe fn shifted(from: *const u32, shift: u32) -> float32x4_t {
            unsafe { vcvtq_f32_u32(vshlq_u32(vld1q_u32(from), vdupq_n_s32(-(shift as i32)))) }
        }
        #[inline(always)]
        unsafe fn sum(x: float32x4_t) -> f32 {
            unsafe { vaddvq_f32(x) }
        }
        #[inline(always)]
        unsafe fn largest(x: float32x4_t) -> f32 {
            unsafe { vmaxvq_f32(x) }
        }
    }
}

/// Plain loops over four elements, for every other machine; without fused products, which are calls where the hardware has none.
pub(crate) struct Portable;

#[inline(always)]
fn four(f: impl Fn(usize) -> f32) -> [f32; 4] {
    [f(0), f(1), f(2), f(3)]
}

impl Simd for Portable {
    type V = [f32; 4];
    const LANES: usize = 4;
    const ROWS: usize = 4;
    #[inline(always)]
    unsafe fn splat(x: f32) -> [f32; 4] {
        [x; 4]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> [f32; 4] {
        unsafe { from.cast::<[f32; 4]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_half(from: *const f16) -> [f32; 4] {
        let halves = unsafe { from.cast::<[f16; 4]>().read_unaligned() };
        four(|i| halves[i].to_f32())
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, x: [f32; 4]) {
        unsafe { to.cast::<[f32; 4]>().write_unaligned(x) }
    }
    #[inline(always)]
    unsafe fn fma(a: [f32; 4], b: [f32; 4], c: [f32; 4]) -> [f32; 4] {
        four(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    unsafe fn add(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        four(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn sub(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        four(|i| a[i] - b[i])
    }
    #[inline(always)]
    unsafe fn mul(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        four(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn div(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        four(|i| a[i] / b[i])
    }
    #[inline(always)]
    unsafe fn max(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        four(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn select_less(a: [f32; 4], b: [f32; 4], x: [f32; 4], y: [f32; 4]) -> [f32; 4] {
        four(|i| if a[i] < b[i] { x[i] } else { y[i] })
    }
    #[inline(always)]
    unsafe fn into_exponent(x: [f32; 4]) -> [f32; 4] {
        four(|i| f32::from_bits(x[i].to_bits() << 23))
    }
    #[inline(always)]
    unsafe fn masked(from: *const u32, mask: u32) -> [f32; 4] {
        let words = unsafe { from.cast::<[u32; 4]>().read_unaligned() };
        four(|i| (words[i] & mask) as f32)
    }
    #[inline(always)]
    unsafe fn shifted(from: *const u32, shift: u32) -> [f32; 4] {
        let words = unsafe { from.cast::<[u32; 4]>().read_unaligned() };
        four(|i| (words[i] >> shift) as f32)
    }
    #[inline(always)]
    unsafe fn sum(x: [f32; 4]) -> f32 {
        (x[0] + x[2]) + (x[1] + x[3])
    }
    #[inline(always)]
    unsafe fn largest(x: [f32; 4]) -> f32 {
        x.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
}
