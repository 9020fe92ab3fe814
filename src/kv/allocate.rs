//! Ranks, and bits of components, under a budget: the lower convex hull of what each gains for its cost.

use ndarray::ArrayView4;

use super::latents::{PAGE, PageLayout};
use super::{LatentBits, Ranks};
use crate::{Error, Result};

const PLACE: &str = "kv::allocate";
/// More than heads side by side have elements, and few enough that no sum of sizes overflows.
const MAX_RANK: usize = 1 << 28;

/// What [`allocate`] may spend.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Budget {
    /// The part of the latents of full rank that is kept: the sum of the ranks over `full` for each layer, side and head. Above 0, at most 1.
    Kept(f64),
    /// Bytes of a packed page of 32 tokens, over all layers: codes, and minima and scales, of so many bits for keys and for values.
    PageBytes {
        /// Bytes.
        bytes: u64,
        /// Of latents of keys.
        key_bits: LatentBits,
        /// Of latents of values.
        value_bits: LatentBits,
    },
}

/// What [`allocate`] chose.
#[derive(Debug, Clone, PartialEq)]
pub struct Allocation {
    /// Which of the ranks, [layers, 2 (keys, values), heads] in row-major order.
    pub ranks: Vec<usize>,
    /// The sum of the errors at these ranks.
    pub error: f64,
    /// Latents of a token, over all layers: the sum of the ranks.
    pub elements: u64,
    /// What was spent, in the budget's unit (latents of a token, or bytes of a page).
    pub used: u64,
}

impl Allocation {
    /// For [`Projections::with_ranks`](super::Projections::with_ranks): `layers` are the numbers, in their order, of those that errors were given of.
    pub fn ranks_of(&self, layers: &[usize]) -> Ranks {
        let bases = self.ranks.len() / (2 * layers.len()).max(1);
        let sides = self.ranks.chunks(bases.max(1)).map(<[usize]>::to_vec).collect::<Vec<_>>();
        let of_layer = |ranks: Ranks, (layer, sides): (&usize, &[Vec<usize>])| match sides {
            [keys, values] => ranks.with_layer(*layer, keys.clone(), values.clone()),
            _ => ranks,
        };
        layers.iter().zip(sides.chunks(2)).fold(Ranks::new(), of_layer)
    }
}

/// Ranks for each layer, side and head whose errors add up to the least that a budget allows.
///
/// * `errors`: [layers, 2 (keys, values), heads, ranks], the error with that one rank in place of the full one, finite: what errors add up to is what is
///   made small, so squared errors of outputs, as [`error_table`](super::error_table) measures them
/// * `ranks`: ascending, without duplicates; the last is the full rank
/// * returns ranks of the grid. What is left of the budget at the end goes to the largest gain that fits
///
/// Steps along the lower convex hull of each curve of error over cost, steepest first: the optimum wherever the budget ends between two steps, and within
/// one step's gain of it elsewhere (Shoham and Gersho 1988).
///
/// # Errors
/// [`Error::Shape`] and [`Error::Argument`] where `errors` and `ranks` do not fit, or for a budget that not even the smallest ranks meet: it says what they
/// need; [`Error::Domain`] names the first error that is not finite.
pub fn allocate(errors: ArrayView4<'_, f64>, ranks: &[usize], budget: Budget) -> Result<Allocation> {
    let shape = errors.shape();
    if shape[1] != 2 || shape[3] != ranks.len() {
        let expected = format!("[layers, 2, heads, {}]", ranks.len());
        return Err(Error::Shape { place: PLACE, quantity: "errors", expected, found: shape.to_vec() });
    }
    let fine = |full: &&usize| **full <= MAX_RANK && ranks.is_sorted_by(|a, b| a < b);
    let Some(&full) = ranks.last().filter(fine) else {
        return argument("ranks", format!("one or more, ascending, at most {MAX_RANK}"), format!("{ranks:?}"));
    };
    if let Some((index, found)) = errors.iter().enumerate().find(|(_, error)| !error.is_finite()) {
        let found = found.to_string();
        return Err(Error::Domain { place: PLACE, quantity: "errors", index, expected: "finite", found });
    }
    let curves = errors.len() / ranks.len();
    let limit = match budget {
        Budget::Kept(part) if part > 0.0 && part <= 1.0 => (part * (curves * full) as f64).round() as u64,
        Budget::Kept(part) => return argument("budget", "above 0, at most 1".into(), part.to_string()),
        Budget::PageBytes { bytes, .. } => bytes,
    };
    let cost = |side: usize, rank: usize| match budget {
        Budget::Kept(_) => rank as u64,
        Budget::PageBytes { key_bits, value_bits, .. } if side == 0 => {
            PageLayout::new(&[rank], key_bits, &[], value_bits).bytes()
        }
        Budget::PageBytes { key_bits, value_bits, .. } => PageLayout::new(&[], key_bits, &[rank], value_bits).bytes(),
    };
    let costs = [0, 1].map(|side| ranks.iter().map(|rank| cost(side, *rank)).collect::<Vec<u64>>());
    let choices: Vec<Vec<Choice>> = (errors.rows().into_iter().enumerate())
        .map(|(curve, errors)| {
            let costs = &costs[curve / shape[2] % 2];
            costs.iter().zip(errors).map(|(cost, error)| Choice { cost: *cost, error: *error }).collect()
        })
        .collect();
    let chosen = match spend(&choices, limit) {
        Ok(chosen) => chosen,
        Err(least) => {
            let (expected, found) = match budget {
                Budget::Kept(part) => {
                    let smallest = least as f64 / (curves * full) as f64;
                    // Rounded up, so that what it says can be asked for.
                    let smallest = (smallest * 1e6).ceil() / 1e6;
                    (format!("at least {smallest}, of rank {} everywhere", ranks[0]), part.to_string())
                }
                Budget::PageBytes { bytes, .. } => (
                    format!("at least {least} bytes for {PAGE} tokens, of rank {} everywhere", ranks[0]),
                    bytes.to_string(),
                ),
            };
            return argument("budget", expected, found);
        }
    };
    let picked: Vec<usize> = chosen.iter().map(|index| ranks[*index]).collect();
    let of_choice = || choices.iter().zip(&chosen).map(|(curve, index)| &curve[*index]);
    Ok(Allocation {
        error: of_choice().map(|choice| choice.error).sum(),
        elements: picked.iter().map(|rank| *rank as u64).sum(),
        used: of_choice().map(|choice| choice.cost).sum(),
        ranks: picked,
    })
}

/// Bits for each component of latents, fewest where it varies least, none where it is better dropped (water-filling).
///
/// * `variances`: of the components, finite, not negative
/// * `widths`: bits that may be given
/// * `budget`: bits of a token, over all components; a component of 8 bits or fewer takes one more for its share of a minimum and a scale
/// * returns one entry a component, none for one that is dropped
///
/// A component of variance s^2 errs by s^2 where it is dropped, else by that of 2^bits even steps over the range of 32 normal deviates,
/// (4.14 s / (2^bits - 1))^2 / 12; 16 and 32 bits by s^2 2^-2p / 3, p the bits of their significands.
///
/// A [`KvCache`](super::KvCache) has one width for all components of a side: this is for who plans widths.
///
/// # Errors
/// [`Error::Domain`] names the first variance that is not one.
///
/// Source: Cover and Thomas 2006, 10.3.3, for the rule; Tippett 1925 for the range.
pub fn allocate_bits(variances: &[f64], widths: &[LatentBits], budget: u64) -> Result<Vec<Option<LatentBits>>> {
    if let Some((index, found)) = variances.iter().enumerate().find(|(_, s)| !(s.is_finite() && **s >= 0.0)) {
        let (expected, found) = ("finite, not negative", found.to_string());
        return Err(Error::Domain { place: "kv::allocate_bits", quantity: "variances", index, expected, found });
    }
    let mut widths = widths.to_vec();
    widths.sort();
    widths.dedup();
    let choices: Vec<Vec<Choice>> = (variances.iter())
        .map(|&variance| {
            let of = |bits: &LatentBits| Choice {
                cost: u64::from(bits.count()) + u64::from(bits.quantised()),
                error: variance * relative_error(*bits),
            };
            [Choice { cost: 0, error: variance }].into_iter().chain(widths.iter().map(of)).collect()
        })
        .collect();
    // Dropping all costs nothing.
    let chosen = spend(&choices, budget).unwrap_or_else(|_| vec![0; variances.len()]);
    Ok(chosen.into_iter().map(|index| index.checked_sub(1).map(|width| widths[width])).collect())
}

/// Mean squared error of a component of unit variance.
fn relative_error(bits: LatentBits) -> f64 {
    match bits {
        LatentBits::ThirtyTwo => f64::powi(2.0, -48) / 3.0,
        LatentBits::Sixteen => f64::powi(2.0, -22) / 3.0,
        _ => (4.14 / ((1u32 << bits.count()) - 1) as f64).powi(2) / 12.0,
    }
}

fn argument<T>(quantity: &'static str, expected: String, found: String) -> Result<T> {
    Err(Error::Argument { place: PLACE, quantity, expected, found })
}

/// One way to have a thing: costs ascend along a list of them.
#[derive(Debug, Clone, Copy)]
struct Choice {
    cost: u64,
    error: f64,
}

/// Which choice of each, with the least sum of errors that steps along hulls reach within `limit`; else what the cheapest cost together.
fn spend(choices: &[Vec<Choice>], limit: u64) -> std::result::Result<Vec<usize>, u64> {
    let least: u64 = choices.iter().map(|curve| curve[0].cost).sum();
    if least > limit {
        return Err(least);
    }
    let hulls: Vec<Vec<usize>> = choices.iter().map(|curve| lower_hull(curve)).collect();
    let mut chosen: Vec<usize> = hulls.iter().map(|hull| hull[0]).collect();
    let mut left = limit - least;
    // (gain for a unit of cost, whose, to which choice)
    let mut steps: Vec<(f64, usize, usize)> = Vec::new();
    for (curve, (of_curve, hull)) in choices.iter().zip(&hulls).enumerate() {
        steps.extend(hull.windows(2).map(|pair| (slope(of_curve, pair[0], pair[1]), curve, pair[1])));
    }
    // Stable: the steps of one curve stay in their order.
    steps.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut stuck = vec![false; choices.len()];
    for (_, curve, to) in steps {
        let cost = choices[curve][to].cost - choices[curve][chosen[curve]].cost;
        if stuck[curve] || cost > left {
            stuck[curve] = true;
            continue;
        }
        left -= cost;
        chosen[curve] = to;
    }
    while let Some((curve, to)) = largest_gain(choices, &chosen, left) {
        left -= choices[curve][to].cost - choices[curve][chosen[curve]].cost;
        chosen[curve] = to;
    }
    Ok(chosen)
}

/// The gain of going from one choice to a dearer one, for a unit of cost.
fn slope(curve: &[Choice], from: usize, to: usize) -> f64 {
    (curve[from].error - curve[to].error) / (curve[to].cost - curve[from].cost) as f64
}

/// The choices on the lower convex hull, from the cheapest to that of the least error.
fn lower_hull(curve: &[Choice]) -> Vec<usize> {
    let mut hull: Vec<usize> = vec![0];
    for to in 1..curve.len() {
        // Of equal costs the first counts, unless this is better.
        if curve[to].error >= curve[hull[hull.len() - 1]].error {
            continue;
        }
        while hull.len() > 1 {
            let (last, before) = (hull[hull.len() - 1], hull[hull.len() - 2]);
            let steeper = curve[to].cost == curve[last].cost || slope(curve, last, to) >= slope(curve, before, last);
            if !steeper {
                break;
            }
            hull.pop();
        }
        if hull.len() == 1 && curve[to].cost == curve[hull[0]].cost {
            hull[0] = to;
        } else {
            hull.push(to);
        }
    }
    hull
}

/// The one change to a dearer choice that fits and lessens the error most.
fn largest_gain(choices: &[Vec<Choice>], chosen: &[usize], left: u64) -> Option<(usize, usize)> {
    let mut best = None;
    let mut most = 0.0;
    for (curve, of_curve) in choices.iter().enumerate() {
        let now = of_curve[chosen[curve]];
        for (to, choice) in of_curve.iter().enumerate() {
            let gain = now.error - choice.error;
            if choice.cost >= now.cost && choice.cost - now.cost <= left && gain > most {
                (best, most) = (Some((curve, to)), gain);
            }
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use ndarray::Array4;
    use proptest::prelude::*;

    use super::*;

    /// The least error of all combinations.
    fn exhaustive(choices: &[Vec<Choice>], limit: u64) -> Option<f64> {
        let Some((first, rest)) = choices.split_first() else { return Some(0.0) };
        let with = |choice: &Choice| {
            let left = limit.checked_sub(choice.cost)?;
            Some(choice.error + exhaustive(rest, left)?)
        };
        first.iter().filter_map(with).min_by(f64::total_cmp)
    }

    proptest! {
        /// Never above the limit, never below the optimum, and above it by less than the largest gain of one step.
        #[test]
        fn spending_is_close_to_the_optimum(
            curves in prop::collection::vec(prop::collection::vec((0u64..9, 0.0f64..1.0), 1..5), 1..6), limit in 0u64..60
        ) {
            let choices: Vec<Vec<Choice>> = curves
                .iter()
                .map(|curve| {
                    let mut cost = 0;
                    curve.iter().map(|(more, error)| { cost += more; Choice { cost, error: *error } }).collect()
                })
                .collect();
            match (spend(&choices, limit), exhaustive(&choices, limit)) {
                (Err(least), None) => prop_assert!(least > limit),
                (Ok(chosen), Some(optimum)) => {
                    let spent: u64 = choices.iter().zip(&chosen).map(|(curve, index)| curve[*index].cost).sum();
                    let error: f64 = choices.iter().zip(&chosen).map(|(curve, index)| curve[*index].error).sum();
                    let step = choices.iter().flat_map(|curve| {
                        let hull = lower_hull(curve);
                        hull.windows(2).map(|pair| curve[pair[0]].error - curve[pair[1]].error).collect::<Vec<_>>()
                    });
                    prop_assert!(spent <= limit);
                    prop_assert!(error >= optimum - 1e-12 && error <= optimum + step.fold(0.0, f64::max) + 1e-12);
                }
                (spent, optimum) => prop_assert!(false, "{spent:?} {optimum:?}"),
            }
        }
    }

    #[test]
    fn what_a_page_costs_counts_minima_and_scales() {
        let errors = Array4::from_shape_fn((1, 2, 1, 2), |(_, _, _, rank)| 1.0 - rank as f64);
        let budget = |bytes| Budget::PageBytes { bytes, key_bits: LatentBits::Four, value_bits: LatentBits::Four };
        // Rank 8: keys 8 parameters and 32 words, values 32 and 32. Rank 16: 16 and 64, 32 and 64.
        let least = 4 * (8 + 32 + 32 + 32);
        let error = allocate(errors.view(), &[8, 16], budget(least - 1)).unwrap_err().to_string();
        assert!(error.contains("at least 416 bytes for 32 tokens"), "{error}");
        let found = allocate(errors.view(), &[8, 16], budget(least)).unwrap();
        assert_eq!((found.ranks, found.used, found.elements), (vec![8, 8], least, 16));
        // Values gain as much for less.
        let found = allocate(errors.view(), &[8, 16], budget(least + 4 * 32)).unwrap();
        assert_eq!((found.ranks, found.used), (vec![8, 16], least + 4 * 32));
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let errors = Array4::from_elem((2, 2, 3, 2), 1.0);
        let refused =
            |ranks: &[usize], part| allocate(errors.view(), ranks, Budget::Kept(part)).unwrap_err().to_string();
        assert!(refused(&[4, 8, 16], 0.5).contains("errors has shape [2, 2, 3, 2], expected [layers, 2, heads, 3]"));
        assert!(refused(&[8, 8], 0.5).contains("ranks is [8, 8], expected one or more, ascending"));
        assert!(refused(&[8, 64], 0.1).contains("budget is 0.1, expected at least 0.125, of rank 8 everywhere"));
        for part in [0.0, -1.0, 1.1, f64::NAN] {
            assert!(refused(&[8, 64], part).contains("expected above 0, at most 1"), "{part}");
        }
        let mut errors = errors.clone();
        errors[[1, 0, 2, 1]] = f64::NAN;
        let error = allocate(errors.view(), &[8, 64], Budget::Kept(1.0)).unwrap_err();
        assert!(matches!(error, Error::Domain { index: 17, .. }), "{error}");
    }

    #[test]
    fn bits_follow_variances() {
        use LatentBits::*;
        let widths = [Eight, Two, Four];
        let variances = [1e4, 100.0, 1.0, 1e-3];
        assert_eq!(allocate_bits(&variances, &widths, 0).unwrap(), [None; 4]);
        let bits = allocate_bits(&variances, &widths, 9 + 5 + 3).unwrap();
        assert_eq!(bits, [Some(Eight), Some(Four), Some(Two), None]);
        assert_eq!(allocate_bits(&variances, &widths, 1000).unwrap(), [Some(Eight); 4]);
        assert!(matches!(allocate_bits(&[1.0, -1.0], &widths, 9), Err(Error::Domain { index: 1, .. })));
    }
}
