//! From slices to SIMD loops: points are sorted by region, block by block, so that each loop runs one formula.
//!
//! A block's points are classed by hypot(v, x) (how many terms of the Debye expansion) and, below its reach, by x (how many terms
//! of the series), gathered class by class with each class padded to whole vectors, computed, and scattered back. A block of one
//! class skips the sorting.

use super::family::Family;
use super::real::{Fused, Real};
use super::series::Precision;
use multiversion::multiversion;
use multiversion::target::target_cfg_f;

/// Points sorted together: the arrays of a block stay in the first two levels of cache.
const BLOCK: usize = 1024;
/// Points computed together: two AVX-512 registers of f64 or one of f32. Classes are padded to multiples of it.
const LANES: usize = 16;
/// x = 0; then four by x, below the reach of the Debye expansion; then four by its number of terms.
const CLASSES: usize = 9;
const SERIES: usize = 1;
const DEBYE: usize = 5;
/// A power of two, so that an index modulo it needs no check.
const SORTED: usize = (BLOCK + CLASSES * LANES).next_power_of_two();
const STREAMS: usize = 4;

/// An element type: f32 or f64.
pub(super) trait Element: Copy + Default + PartialEq + Into<f64> {
    /// x from which the classes below the Debye expansion's reach begin
    const SERIES_FROM: [f64; 4];
    /// hypot(v, x) from which the classes within it begin
    const DEBYE_FROM: [f64; 4];
    const PRECISION: Precision;
    /// Its number for the formulas, with and without fused multiply-add.
    type Fused: Real;
    type Plain: Real;
    fn from_f64(value: f64) -> Self;
    /// The Debye expansion with the number of terms of a class.
    fn debye<F: Family, T: Real>(class: usize, order: &[Self], x: &[Self], out: &mut [Self]);
}

impl Element for f64 {
    const SERIES_FROM: [f64; 4] = [0.0, 1.5, 6.0, 15.0];
    const DEBYE_FROM: [f64; 4] = [34.0, 93.0, 468.0, 6713.0];
    const PRECISION: Precision = Precision::Double;
    type Fused = Fused<f64>;
    type Plain = f64;
    #[inline(always)]
    fn from_f64(value: f64) -> Self {
        value
    }
    #[inline(always)]
    fn debye<F: Family, T: Real>(class: usize, order: &[Self], x: &[Self], out: &mut [Self]) {
        match class - DEBYE {
            0 => debye::<F, Self, T, 13>(order, x, out),
            1 => debye::<F, Self, T, 8>(order, x, out),
            2 => debye::<F, Self, T, 5>(order, x, out),
            _ => debye::<F, Self, T, 3>(order, x, out),
        }
    }
}

impl Element for f32 {
    const SERIES_FROM: [f64; 4] = [0.0, 1.5, 6.0, 15.0];
    const DEBYE_FROM: [f64; 4] = [17.0, 136.0, f64::INFINITY, f64::INFINITY];
    const PRECISION: Precision = Precision::Single;
    type Fused = Fused<f32>;
    type Plain = f32;
    #[inline(always)]
    fn from_f64(value: f64) -> Self {
        value as f32
    }
    #[inline(always)]
    fn debye<F: Family, T: Real>(class: usize, order: &[Self], x: &[Self], out: &mut [Self]) {
        match class - DEBYE {
            0 => debye::<F, Self, T, 5>(order, x, out),
            _ => debye::<F, Self, T, 2>(order, x, out),
        }
    }
}

/// `out[i]` = the function at (`order[i]`, `x[i]`).
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512cd+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub(super) fn run<F: Family, E: Element>(order: &[E], x: &[E], out: &mut [E]) {
    let fused = target_cfg_f!(target_feature = "fma");
    let mut sorted = [[E::default(); SORTED]; 3];
    for ((order, x), out) in order.chunks(BLOCK).zip(x.chunks(BLOCK)).zip(out.chunks_mut(BLOCK)) {
        if fused {
            block::<F, E, E::Fused, Fused<f64>>(order, x, out, &mut sorted);
        } else {
            block::<F, E, E::Plain, f64>(order, x, out, &mut sorted);
        }
    }
}

/// `T`: the number of the Debye expansion; `D`: that of everything below its reach, always of 64 bits.
#[inline(always)]
fn block<F: Family, E: Element, T: Real, D: Real>(order: &[E], x: &[E], out: &mut [E], sorted: &mut [[E; SORTED]; 3]) {
    let n = out.len();
    let mut class = [0_u8; BLOCK];
    for ((class, &v), &x) in class.iter_mut().zip(order).zip(x) {
        *class = classify::<E, T>(v, x);
    }
    // Each of the streams i, i + STREAMS, .. counts for itself, so that one counter's increments do not wait for each other.
    let mut counts = [[0_u16; STREAMS]; CLASSES];
    for (i, &class) in class[..n].iter().enumerate() {
        counts[usize::from(class)][i % STREAMS] += 1;
    }
    let total = |class: usize| counts[class].iter().map(|&count| usize::from(count)).sum::<usize>();
    let first = usize::from(class[0]);
    if total(first) == n && n.is_multiple_of(LANES) {
        segment::<F, E, T, D>(first, order, x, out);
        return;
    }

    // A counting sort: `next` is where each class's points of each stream go on.
    let mut next = counts;
    let mut end = 0;
    for (next, counts) in next.iter_mut().zip(&counts) {
        for (next, count) in next.iter_mut().zip(counts) {
            *next = end;
            end += count;
        }
        end = end.next_multiple_of(LANES as u16);
    }
    let mut place = [0_u16; BLOCK];
    let [v_sorted, x_sorted, out_sorted] = sorted;
    for (i, (((&class, place), &v), &x)) in class.iter().zip(&mut place).zip(order).zip(x).enumerate() {
        let next = &mut next[usize::from(class)][i % STREAMS];
        *place = *next;
        *next += 1;
        let at = usize::from(*place) % SORTED;
        v_sorted[at] = v;
        x_sorted[at] = x;
    }
    let mut start = 0;
    for class in 0..CLASSES {
        let count = total(class);
        if count == 0 {
            continue;
        }
        // The padding repeats the last point.
        let (last, end) = (start + count - 1, start + count.next_multiple_of(LANES));
        let (v, x) = (v_sorted[last], x_sorted[last]);
        v_sorted[last..end].fill(v);
        x_sorted[last..end].fill(x);
        segment::<F, E, T, D>(class, &v_sorted[start..end], &x_sorted[start..end], &mut out_sorted[start..end]);
        start = end;
    }
    for (out, &place) in out.iter_mut().zip(&place) {
        *out = out_sorted[usize::from(place) % SORTED];
    }
}

/// Without a branch: the sum of the thresholds reached.
#[inline(always)]
fn classify<E: Element, T: Real>(v: E, x: E) -> u8 {
    let (v, x) = (T::of(v.into()), T::of(x.into()));
    let square = v.madd(v, x * x);
    let reached = |value: T, from: f64| !value.below(T::of(from));
    let [_, a, b, c] = E::SERIES_FROM;
    let series = SERIES as u8 + u8::from(reached(x, a)) + u8::from(reached(x, b)) + u8::from(reached(x, c));
    let [d, e, f, g] = E::DEBYE_FROM;
    let debye = DEBYE as u8
        + u8::from(reached(square, e * e))
        + u8::from(reached(square, f * f))
        + u8::from(reached(square, g * g));
    let inside = if reached(square, d * d) { debye } else { series };
    if T::of(0.0).below(x) { inside } else { 0 }
}

/// Points of one class, a multiple of `LANES` of them.
#[inline(always)]
fn segment<F: Family, E: Element, T: Real, D: Real>(class: usize, order: &[E], x: &[E], out: &mut [E]) {
    if class >= DEBYE {
        E::debye::<F, T>(class, order, x, out);
    } else if class >= SERIES {
        below::<F, E, D>(order, x, out);
    } else {
        for (out, &v) in out.iter_mut().zip(order) {
            *out = E::from_f64(F::at_0(v.into()));
        }
    }
}

/// The loop where most points spend their time: the compiler makes it one straight line of SIMD instructions.
///
/// ln I in f64 with 13 terms takes 175 additions, multiplications and fused ones (104 of them the polynomials; 115 with 8 terms, 91
/// with 5, 80 with 3), 4 divisions and a square root. On a Zen 4 core at 3.6 GHz, measured at 29e9 vector operations, 3.3e9
/// divisions and 1.8e9 roots a second, that is 6.0 + 1.2 + 0.6 = 7.8 ns a point at best; it takes 9.1 ns, 86 % of that peak (3 terms:
/// 4.6 and 5.1 ns, 90 %). Sorting adds about 2 ns. f32 with 5 terms: 79 operations, 2.5 ns.
#[inline(always)]
fn debye<F: Family, E: Element, T: Real, const TERMS: usize>(order: &[E], x: &[E], out: &mut [E]) {
    for ((out, &v), &x) in out.iter_mut().zip(order).zip(x) {
        *out = E::from_f64(F::debye::<T, TERMS>(T::of(v.into()), T::of(x.into())).value());
    }
}

#[inline(always)]
fn below<F: Family, E: Element, D: Real>(order: &[E], x: &[E], out: &mut [E]) {
    for ((out, order), x) in out.chunks_exact_mut(LANES).zip(order.chunks_exact(LANES)).zip(x.chunks_exact(LANES)) {
        let v: [D; LANES] = std::array::from_fn(|l| D::of(order[l].into()));
        let x: [D; LANES] = std::array::from_fn(|l| D::of(x[l].into()));
        let value = F::below(v, x, E::PRECISION);
        for l in 0..LANES {
            out[l] = E::from_f64(value[l].value());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::family::*;
    use super::*;

    /// The build without fused multiply-add, which this machine would not choose: within the same few eps of the other.
    #[test]
    fn plain_arithmetic_agrees() {
        fn both<F: Family>() {
            let v: Vec<f64> = (0..BLOCK).map(|i| (i * 7919 % 613) as f64 / 7.0).collect();
            let x: Vec<f64> = (0..BLOCK).map(|i| (i * 104_729 % 1009) as f64 / 9.0 + 0.01).collect();
            let mut fused = vec![f64::NAN; BLOCK];
            let mut plain = fused.clone();
            run::<F, f64>(&v, &x, &mut fused);
            block::<F, f64, f64, f64>(&v, &x, &mut plain, &mut [[0.0; SORTED]; 3]);
            for i in 0..BLOCK {
                // Each within 4 eps of the larger of the value and s.
                let unit = f64::EPSILON * plain[i].abs().max(v[i].hypot(x[i]));
                assert!((fused[i] - plain[i]).abs() <= 8.0 * unit, "{}, {}: {} {}", v[i], x[i], fused[i], plain[i]);
            }
        }
        both::<LogIv>();
        both::<LogKv>();
        both::<IvRatio>();
        both::<LogIvDv>();
        both::<VmfLogNormalizer>();
    }
}
