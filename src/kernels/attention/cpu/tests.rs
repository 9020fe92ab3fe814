//! Every instruction set of this machine against plain loops in f64.

use half::f16;

use super::*;
use crate::Device;

/// Pseudo-random elements in -1..1.
fn values(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

fn array<T: AttentionElement>(shape: [usize; 4], seed: u32) -> Array4<T> {
    let values = values(shape.iter().product(), seed).into_iter().map(T::narrow).collect();
    Array4::from_shape_vec(shape, values).unwrap()
}

#[test]
fn products_are_those_of_plain_loops() {
    for isa in Isa::available() {
        for (rows, k, columns) in [(1, 1, 1), (5, 3, 17), (12, 16, 32), (13, 7, 33), (24, 100, 47), (25, 64, 128)] {
            let (a, b) = (values(rows * k, 1), values(columns * k, 2));
            let whole = isa.whole(columns);
            let mut packed = vec![f32::NAN; k * whole];
            let mut pack = [0.0; micro::PACK];
            let check = |packed: &[f32], b: &dyn Fn(usize, usize) -> f32| {
                let mut c = vec![0.5; rows * whole];
                isa.product(rows, k, columns, &a, k, packed, isa.panel() * k, 0, &mut c, whole, true);
                for row in 0..rows {
                    for column in 0..columns {
                        let want: f64 = (0..k).map(|p| f64::from(a[row * k + p]) * f64::from(b(p, column))).sum();
                        let error = f64::from(c[row * whole + column]) - want - 0.5;
                        // 100 terms of at most 1, summed in turn.
                        assert!(error.abs() < 5e-6, "{isa:?} {rows} {k} {columns}: {error:e} at {row}, {column}");
                    }
                }
            };
            let largest = b.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
            assert_eq!(isa.pack_keys(&b, columns, k, &mut packed, &mut pack), largest);
            check(&packed, &|p, column| b[column * k + p]);
            assert!(isa.pack_values(&b, k, columns, &mut packed));
            check(&packed, &|p, column| b[p * columns + column]);
        }
    }
}

#[test]
fn weights_are_exponentials() {
    for isa in Isa::available() {
        let mut s: Vec<f32> = (0..128).map(|i| -0.7 * i as f32).collect();
        let (mut m, mut l, mut fade) = ([NO_KEY], [0.0], [0.0; micro::SOFTMAX_ROWS]);
        isa.softmax(1, 128, &mut s, 128, &[(0, 100)], &mut m, &mut l, &mut fade);
        assert_eq!((m, fade[0]), ([0.0], 0.0));
        for (i, weight) in s.into_iter().enumerate() {
            let want = f64::from(-0.7 * i as f32).exp();
            let want = if i < 100 { want } else { 0.0 };
            // 2 ulp of exp.
            assert!((f64::from(weight) - want).abs() <= 2.4e-7 * want, "{isa:?} exp(-0.7 {i}): {weight} {want}");
        }
        // Down to where a weight is 0: of the smallest normal number the last digit, for below it there are no others.
        let mut s: Vec<f32> = (0..128).map(|i| if i == 0 { 0.0 } else { -86.5 - i as f32 / 64.0 }).collect();
        let exact: Vec<f64> = s.iter().map(|x| f64::from(*x).exp()).collect();
        isa.softmax(1, 128, &mut s, 128, &[(0, 128)], &mut [NO_KEY], &mut [0.0], &mut fade);
        for (i, (weight, want)) in s.into_iter().zip(exact).enumerate() {
            let zero = -86.5 - i as f64 / 64.0 < -87.68;
            let fine = (f64::from(weight) - want).abs() <= 2.4e-7 * want + 2e-45;
            assert!(fine || (zero && weight == 0.0), "{isa:?} {i}: {weight:e} {want:e}");
        }
        // What is not a number makes the sum so, wherever it stands.
        for at in [0, 5, 15, 16, 47] {
            let (mut s, mut l) = (vec![1.0; 48], [0.0]);
            s[at] = f32::NAN;
            isa.softmax(1, 48, &mut s, 48, &[(0, 48)], &mut [NO_KEY], &mut l, &mut fade);
            assert!(l[0].is_nan(), "{isa:?} NaN at {at}");
        }
        let mut s = vec![NO_KEY; 16];
        isa.softmax(1, 16, &mut s, 16, &[(0, 16)], &mut [NO_KEY], &mut [0.0], &mut fade);
        assert_eq!((s, fade[0]), (vec![0.0; 16], 1.0), "{isa:?}: no key seen");
        let mut s: Vec<f32> = (-64..64).map(|i| i as f32).collect();
        isa.soft_cap(&mut s, 20.0);
        for (i, capped) in (-64..64).zip(s) {
            let want = 20.0 * (f64::from(i) / 20.0).tanh();
            // 3 ulp of 20.
            assert!((f64::from(capped) - want).abs() < 6e-6, "{isa:?} 20 tanh({i} / 20): {capped} {want}");
        }
    }
}

fn check<T: AttentionElement>([heads, kv_heads, q_len, kv_len, d, d_v]: [usize; 6], options: &Options, bound: f64) {
    let q = array::<T>([2, heads, q_len, d], 3).mapv(|x| T::narrow(x.widen() * 4.0));
    let (k, v) = (array::<T>([2, kv_heads, kv_len, d], 4), array::<T>([2, kv_heads, kv_len, d_v], 5));
    let problem = Problem::new(PLACE, &Device::cpu(), q.shape(), k.shape(), v.shape(), options).unwrap();
    for isa in Isa::available() {
        let (output, lse) = forward_on(isa, &problem, options, &q.view(), &k.view(), &v.view()).unwrap();
        for ((b, h, i), lse) in lse.indexed_iter() {
            let mut weights = Vec::new();
            for j in problem.keys(&problem.sequences[b], i) {
                let products = (0..d)
                    .map(|c| f64::from(q[[b, h, i, c]].widen()) * f64::from(k[[b, h / problem.group(), j, c]].widen()));
                weights.push((j, products.sum::<f64>() * f64::from(problem.scale)));
            }
            let largest = weights.iter().fold(f64::from(NO_KEY), |largest, weight| largest.max(weight.1));
            let total: f64 = weights.iter().map(|weight| (weight.1 - largest).exp()).sum();
            let want = if weights.is_empty() { f64::from(NO_KEY) } else { largest + total.ln() };
            let name = format!("{isa:?} {} {heads}/{kv_heads} {q_len} {kv_len} {d} {d_v}: {b} {h} {i}", T::NAME);
            assert!((f64::from(*lse) - want).abs() <= 2e-6 * want.abs().max(1.0), "{name}: {lse} {want}");
            for c in 0..d_v {
                let value = |j: usize| f64::from(v[[b, h / problem.group(), j, c]].widen());
                let want: f64 = weights.iter().map(|&(j, s)| (s - largest).exp() / total * value(j)).sum();
                let found = f64::from(output[[b, h, i, c]].widen());
                assert!((found - want).abs() < bound, "{name}: {found} {want}");
            }
        }
    }
}

#[test]
fn every_instruction_set_gives_attention() {
    let plain = Options::new().lse();
    let masked = Options::new().lse().causal().window(9).key_lengths(vec![1, 37]);
    for sizes in [
        [1, 1, 1, 37, 3, 5],
        [4, 2, 5, 37, 16, 16],
        [4, 2, 30, 37, 16, 16],
        [2, 1, 40, 37, 65, 33],
        [3, 3, 13, 1100, 20, 7],
        [6, 1, 2, 1100, 64, 80],
    ] {
        // Values of at most 1; scores of at most 10 are off by 1e-6, and f16 outputs by half an ulp.
        check::<f32>(sizes, &plain, 3e-6);
        check::<f16>(sizes, &plain, 5e-4);
        if sizes[3] == 37 {
            check::<f32>(sizes, &masked, 3e-6);
        }
    }
}

#[test]
fn what_is_not_finite_is_named() {
    for (q_len, quantity, index) in [(1, "k", 5), (40, "k", 5), (1, "v", 7), (40, "v", 7), (1, "q", 2), (40, "q", 30)] {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut arrays = [array::<f32>([1, 1, q_len, 4], 1), array([1, 1, 9, 4], 2), array([1, 1, 9, 4], 3)];
            let of = ["q", "k", "v"].iter().position(|name| *name == quantity).unwrap();
            arrays[of].as_slice_mut().unwrap()[index] = bad;
            // Behind the length anything may lie.
            arrays[1].as_slice_mut().unwrap()[35] = f32::NAN;
            arrays[2].as_slice_mut().unwrap()[35] = f32::NAN;
            let options = Options::new().key_lengths(vec![8]);
            let [q, k, v] = &arrays;
            let problem = Problem::new(PLACE, &Device::cpu(), q.shape(), k.shape(), v.shape(), &options).unwrap();
            for isa in Isa::available() {
                let found = forward_on(isa, &problem, &options, &q.view(), &k.view(), &v.view());
                let named = matches!(&found, Err(Error::Domain { quantity: found, index: at, .. }) if *found == quantity && *at == index);
                assert!(named, "{isa:?} {quantity} {q_len} {bad}: {found:?}");
            }
        }
    }
}

/// Scores of -inf would pass for hidden keys: of finite elements too they are an error, where a query sees them.
#[test]
fn scores_that_overflow_are_named() {
    for (q_len, d) in [(1, 4), (40, 4), (40, 33), (40, 70)] {
        let variants: [fn(Options) -> Options; 4] = [
            |options| options,
            |options| options.softcap(2.0),
            |options| options.alibi(vec![0.5; 2]),
            |options| options.bias(Device::cpu().tensor(&Array4::<f32>::zeros((1, 1, 1, 1))).unwrap()),
        ];
        for (sign, change) in [1.0, -1.0].into_iter().flat_map(|sign| variants.map(|change| (sign, change))) {
            let mut q = array::<f32>([2, 2, q_len, d], 1);
            let (mut k, v) = (array::<f32>([2, 1, 50, d], 2), array::<f32>([2, 1, 50, 5], 3));
            q[[1, 1, q_len - 1, 2]] = 3e30;
            k[[1, 0, 49, 2]] = sign * 3e30;
            let options = change(Options::new().causal());
            let run = |q: &Array4<f32>, k: &Array4<f32>, isa| {
                let problem = Problem::new(PLACE, &Device::cpu(), q.shape(), k.shape(), v.shape(), &options).unwrap();
                forward_on(isa, &problem, &options, &q.view(), &k.view(), &v.view())
            };
            for isa in Isa::available() {
                let found = run(&q, &k, isa);
                let row = 4 * q_len - 1;
                let named = matches!(found, Err(Error::Domain { quantity: "a score", index, .. }) if index == row);
                assert!(named, "{isa:?} {q_len} {d} {sign}: {:?}", found.err());
            }
        }
        // A key that the mask hides from the only row for which it is too large.
        if q_len > 1 {
            let (mut q, mut k) = (array::<f32>([1, 2, q_len, d], 1), array::<f32>([1, 1, 50, d], 2));
            let v = array::<f32>([1, 1, 50, 5], 3);
            q[[0, 0, 0, 2]] = 3e30;
            k[[0, 0, 49, 2]] = -3e30;
            let options = Options::new().causal();
            let problem = Problem::new(PLACE, &Device::cpu(), q.shape(), k.shape(), v.shape(), &options).unwrap();
            for isa in Isa::available() {
                assert!(forward_on(isa, &problem, &options, &q.view(), &k.view(), &v.view()).is_ok(), "{isa:?}");
            }
        }
    }
    // ALiBi's own.
    let (q, k) = (array::<f32>([1, 1, 20, 4], 1), array::<f32>([1, 1, 20, 4], 2));
    let options = Options::new().alibi(vec![3e38]);
    let problem = Problem::new(PLACE, &Device::cpu(), q.shape(), k.shape(), k.shape(), &options).unwrap();
    let found = forward_on(Isa::best(), &problem, &options, &q.view(), &k.view(), &k.view());
    assert!(matches!(found, Err(Error::Domain { quantity: "a score", index: 0, .. })), "{:?}", found.err());
}
