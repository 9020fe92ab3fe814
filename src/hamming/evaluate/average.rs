//! Average precision and its like from the two histograms of a query: exact expectations under a random order of codes at equal distance.
//!
//! Of a group of `n` codes at one distance, `r` of them relevant, behind `a` nearer ones with `b` relevant: position j = 1..n of the group holds a relevant one with
//! probability r/n, and then (j - 1)(r - 1)/(n - 1) of those before it in the group are relevant on average. So the group's share of
//! sum_i rel_i P@i is r/n sum_j (b + 1 + (j - 1)(r - 1)/(n - 1)) / (a + j) on average.
//!
//! Source: McSherry and Najork, Computing Information Retrieval Performance Measures Efficiently in the Presence of Tied Scores, ECIR 2008.

/// Codes at one distance.
#[derive(Clone, Copy, Debug)]
pub(super) struct Group {
    /// Nearer codes, and relevant ones among them.
    pub before: u64,
    pub relevant_before: u64,
    pub size: u64,
    pub relevant: u64,
}

/// The groups of a query that are not empty, nearest first; `counts` holds (all, relevant) for each distance.
pub(super) fn groups(counts: &[[u32; 2]]) -> impl Iterator<Item = Group> + '_ {
    counts
        .iter()
        .scan((0, 0), |(before, relevant_before), &[all, relevant]| {
            let (size, relevant) = (u64::from(all), u64::from(relevant));
            let group = Group { before: *before, relevant_before: *relevant_before, size, relevant };
            *before += size;
            *relevant_before += relevant;
            Some(group)
        })
        .filter(|group| group.size > 0)
}

/// 1/(a + 1) + ... + 1/(a + n).
fn harmonic(a: u64, n: u64) -> f64 {
    if n <= 64 {
        return (1..=n).map(|j| 1.0 / (a + j) as f64).sum();
    }
    // H(m) = ln m + gamma + 1/2m - 1/12m^2 + 1/120m^4 - ..., within 1/252m^6: the first terms one by one, so that m is 32 at least.
    let head: u64 = 32u64.saturating_sub(a);
    let (from, to) = ((a + head) as f64, (a + n) as f64);
    let rest = |m: f64| 0.5 / m - 1.0 / (12.0 * m * m) + 1.0 / (120.0 * m.powi(4));
    let tail = ((to - from) / from).ln_1p() + rest(to) - rest(from);
    (1..=head).map(|j| 1.0 / (a + j) as f64).sum::<f64>() + tail
}

/// The expected share of the first `m` positions of a group in sum_i rel_i P@i, where `x` of these positions are relevant.
fn share(group: &Group, m: u64, x: u64) -> f64 {
    if x == 0 {
        return 0.0;
    }
    let (a, b, m_f, x_f) = (group.before as f64, group.relevant_before as f64, m as f64, x as f64);
    let sum = harmonic(group.before, m);
    let others = if m > 1 { (x_f - 1.0) / (m_f - 1.0) * (m_f - (a + 1.0) * sum) } else { 0.0 };
    x_f / m_f * ((b + 1.0) * sum + others)
}

/// The expected average precision over the whole base; 0 where nothing is relevant.
pub(super) fn expected(counts: &[[u32; 2]]) -> f64 {
    let (sum, relevant) = groups(counts).fold((0.0, 0), |(sum, relevant), group| {
        (sum + share(&group, group.size, group.relevant), relevant + group.relevant)
    });
    if relevant == 0 { 0.0 } else { sum / relevant as f64 }
}

/// What the first N of a query's codes are like, over all orders of ties.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Top {
    /// Expected AP@N = (1 / R_N) sum_{i <= N} rel_i P@i, R_N the relevant ones among the first N.
    pub average_precision: f64,
    /// Expected R_N / N.
    pub precision: f64,
    /// The probability that one at least is relevant.
    pub hit: f64,
    /// Whether one is, whatever the order.
    pub sure: bool,
}

/// Of the first `n` codes, `n` at most the base.
pub(super) fn expected_top(counts: &[[u32; 2]], n: u64) -> Top {
    let mut sum = 0.0;
    for group in groups(counts) {
        if group.before + group.size < n {
            sum += share(&group, group.size, group.relevant);
            continue;
        }
        // This group is the last: `taken` of its codes are among the first n, x of these relevant with hypergeometric probability.
        let taken = n - group.before;
        let (b, mut top) = (group.relevant_before as f64, Top::default());
        for (x, probability) in hypergeometric(group.size, group.relevant, taken) {
            let found = b + x as f64;
            if found > 0.0 {
                top.average_precision += probability * (sum + share(&group, taken, x)) / found;
                top.precision += probability * found / n as f64;
                top.hit += probability;
            }
        }
        top.sure = group.relevant_before > 0 || group.relevant > group.size - taken;
        return top;
    }
    Top::default()
}

/// How many of `taken` of `size` things, `marked` of them marked, are marked: every count and its probability. From the likeliest outwards, or the
/// first would underflow.
fn hypergeometric(size: u64, marked: u64, taken: u64) -> Vec<(u64, f64)> {
    let low = (taken + marked).saturating_sub(size);
    let high = taken.min(marked);
    let mode = (((taken + 1) as f64 * (marked + 1) as f64 / (size + 2) as f64) as u64).clamp(low, high);
    // p(x + 1) / p(x)
    let ratio = |x: u64| {
        let unmarked_left = (size + x + 1 - marked - taken) as f64;
        ((marked - x) as f64 * (taken - x) as f64) / ((x + 1) as f64 * unmarked_left)
    };
    let mut all = vec![(mode, 1.0)];
    let mut p = 1.0;
    for x in mode..high {
        p *= ratio(x);
        if p < 1e-18 {
            break;
        }
        all.push((x + 1, p));
    }
    p = 1.0;
    for x in (low..mode).rev() {
        p /= ratio(x);
        if p < 1e-18 {
            break;
        }
        all.push((x, p));
    }
    let total: f64 = all.iter().map(|(_, p)| p).sum();
    all.iter_mut().for_each(|(_, p)| *p /= total);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn harmonic_sums_are_sums() {
        for a in [0, 1, 5, 31, 32, 33, 1000, 1_000_000] {
            for n in [0, 1, 2, 63, 64, 65, 66, 100, 5000] {
                let naive: f64 = (1..=n).rev().map(|j| 1.0 / (a + j) as f64).sum();
                let found = harmonic(a, n);
                // The series' first missing term at 32 is 4e-12 / 1000 of the sum; the rest is rounding.
                assert!((found - naive).abs() <= 2e-11 * naive, "{a} {n}: {found}, expected {naive}");
            }
        }
    }

    #[test]
    fn probabilities_add_up_and_have_their_mean() {
        for (size, marked, taken) in
            [(1, 0, 1), (1, 1, 1), (5, 2, 3), (10, 10, 4), (10, 3, 10), (90_000, 40_000, 5_000), (50, 1, 0)]
        {
            let all = hypergeometric(size, marked, taken);
            let sum: f64 = all.iter().map(|(_, p)| p).sum();
            let mean: f64 = all.iter().map(|(x, p)| *x as f64 * p).sum();
            let expected = taken as f64 * marked as f64 / size as f64;
            assert!((sum - 1.0).abs() < 1e-12 && (mean - expected).abs() <= 1e-9 * expected, "{size} {marked} {taken}");
        }
        // By hand: 2 of 4, one of them marked of two.
        let mut all = hypergeometric(4, 2, 2);
        all.sort_by_key(|(x, _)| *x);
        for ((x, p), expected) in all.iter().zip([1.0 / 6.0, 4.0 / 6.0, 1.0 / 6.0]) {
            assert!((p - expected).abs() < 1e-15, "{x}");
        }
    }

    /// Every order of up to seven codes, one by one.
    #[test]
    fn expectations_are_means_over_all_orders() {
        let cases: [&[[u32; 2]]; 6] = [
            &[[3, 1], [0, 0], [4, 2]],
            &[[7, 3]],
            &[[1, 0], [5, 5], [1, 0]],
            &[[2, 0], [2, 1], [3, 0]],
            &[[4, 0], [3, 0]],
            &[[1, 1], [1, 0], [5, 1]],
        ];
        for counts in cases {
            let total: u32 = counts.iter().map(|[all, _]| all).sum();
            let mut codes: Vec<(usize, bool)> = Vec::new();
            for (distance, [all, relevant]) in counts.iter().enumerate() {
                codes.extend((0..*all).map(|i| (distance, i < *relevant)));
            }
            let (mut orders, mut sums) = (0.0, vec![[0.0; 3]; total as usize + 1]);
            let mut surely = vec![true; total as usize + 1];
            let mut permutation: Vec<usize> = (0..codes.len()).collect();
            permute(&mut permutation, 0, &mut |order| {
                if order.windows(2).any(|pair| codes[pair[0]].0 > codes[pair[1]].0) {
                    return;
                }
                orders += 1.0;
                for n in 1..=order.len() {
                    let (mut found, mut sum) = (0.0, 0.0);
                    for (i, at) in order[..n].iter().enumerate() {
                        if codes[*at].1 {
                            found += 1.0;
                            sum += found / (i + 1) as f64;
                        }
                    }
                    sums[n][0] += if found > 0.0 { sum / found } else { 0.0 };
                    sums[n][1] += found / n as f64;
                    sums[n][2] += f64::from(found > 0.0);
                    surely[n] &= found > 0.0;
                }
            });
            for n in 1..=total as usize {
                let top = expected_top(counts, n as u64);
                let naive = sums[n].map(|sum| sum / orders);
                for (found, naive) in [top.average_precision, top.precision, top.hit].iter().zip(naive) {
                    assert!((found - naive).abs() < 1e-12, "{counts:?} first {n}: {top:?}, expected {naive:?}");
                }
                assert_eq!(top.sure, surely[n], "{counts:?} first {n}");
            }
            assert!((expected(counts) - sums[total as usize][0] / orders).abs() < 1e-12, "{counts:?}");
        }
    }

    fn permute(items: &mut Vec<usize>, first: usize, visit: &mut impl FnMut(&[usize])) {
        if first == items.len() {
            return visit(items);
        }
        for at in first..items.len() {
            items.swap(first, at);
            permute(items, first + 1, visit);
            items.swap(first, at);
        }
    }
}
