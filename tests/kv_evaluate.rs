//! What is lost in a low-rank cache and what it takes: ranks against a table measured elsewhere and the optimum that dynamic programming found there,
//! errors against the definition, bytes against what keys and values take. Against real errors measured elsewhere: tests/cli/kv.rs.

use half::f16;
use ndarray::{Array1, Array2, Array3, Array4, ArrayView1, Axis, s};
use orthant::Device;
use orthant::kv::{
    Activations, Basis, Budget, CacheOptions, Calibration, Frame, KvCache, LatentBits, ProjectionOptions, Projections,
    Rope, RopeLayout, Side, Weighting, allocate, error_table, evaluate,
};
use safetensors::SafeTensors;

const TABLE: &[u8] = include_bytes!("data/kv_alloc_table.safetensors");

/// Errors [30 layers, 2, 3 heads, 13 ranks], and the ranks.
fn table() -> (Array4<f64>, Vec<usize>) {
    let file = SafeTensors::deserialize(TABLE).unwrap();
    let errors = file.tensor("err2").unwrap();
    let values = errors.data().chunks_exact(8).map(|x| f64::from_le_bytes(x.try_into().unwrap())).collect();
    let shape: [usize; 4] = errors.shape().try_into().unwrap();
    (Array4::from_shape_vec(shape, values).unwrap(), ranks(&file, "rank_grid"))
}

fn ranks(file: &SafeTensors, name: &str) -> Vec<usize> {
    let of_bytes = |x: &[u8]| i32::from_le_bytes(x.try_into().unwrap()) as usize;
    file.tensor(name).unwrap().data().chunks_exact(4).map(of_bytes).collect()
}

#[test]
fn ranks_are_those_of_the_table() {
    let (errors, grid) = table();
    let file = SafeTensors::deserialize(TABLE).unwrap();
    let (_, header) = SafeTensors::read_metadata(TABLE).unwrap();
    let expected: serde_json::Value = serde_json::from_str(&header.metadata().as_ref().unwrap()["expected"]).unwrap();
    for part in [0.75, 0.5, 0.4, 0.25, 0.2] {
        let found = allocate(errors.view(), &grid, Budget::Kept(part)).unwrap();
        assert_eq!(found.ranks, ranks(&file, &format!("ranks_keep_{part}")), "{part}");
        let expected = &expected[part.to_string()];
        assert_eq!((found.used, found.elements), (expected["used"].as_u64().unwrap(), found.used));
        // The sum of 180 in another order; and what the table's own greedy is above the optimum, 1e-7 of it at 0.75.
        let (greedy, optimum) = (expected["greedy"].as_f64().unwrap(), expected["optimum"].as_f64().unwrap());
        assert!((found.error - greedy).abs() <= 1e-13 * greedy, "{part}: {} {greedy}", found.error);
        assert!((found.error - optimum).abs() <= 2e-7 * optimum, "{part}: {} {optimum}", found.error);
    }
}

/// A budget in bytes is met by what pages of these ranks take, and buys no less than the ranks of the table at the same bytes.
#[test]
fn bytes_buy_what_ranks_do() {
    let (errors, grid) = table();
    let of_bytes = |bytes| {
        let budget = Budget::PageBytes { bytes, key_bits: LatentBits::Eight, value_bits: LatentBits::Four };
        allocate(errors.view(), &grid, budget)
    };
    // Words of a page of 32 tokens: rank and 8 a channel; 32 for each 32 channels and 4 a channel.
    let bytes = |ranks: &[usize]| -> u64 {
        let words = |(index, &rank): (usize, &usize)| match index / 3 % 2 {
            0 => rank + rank.div_ceil(4) * 32,
            _ => rank.div_ceil(32) * 32 + rank.div_ceil(8) * 32,
        };
        4 * ranks.iter().enumerate().map(words).sum::<usize>() as u64
    };
    for part in [0.75, 0.5, 0.25] {
        let by_rank = allocate(errors.view(), &grid, Budget::Kept(part)).unwrap();
        let limit = bytes(&by_rank.ranks);
        let found = of_bytes(limit).unwrap();
        assert_eq!(found.used, bytes(&found.ranks));
        assert!(found.used <= limit && found.error <= by_rank.error, "{part}: {found:?}");
    }
    let error = of_bytes(0).map(|found| found.used);
    assert_eq!(error, Ok(0), "rank 0 is in the table and takes no page");
    let smallest = errors.slice(ndarray::s![.., .., .., 1..]);
    let budget = Budget::PageBytes { bytes: 1000, key_bits: LatentBits::Four, value_bits: LatentBits::Four };
    let error = allocate(smallest, &grid[1..], budget).unwrap_err().to_string();
    // 90 keys of 4 + 32 words, 90 values of 32 + 32.
    assert!(error.contains(&format!("at least {} bytes", 4 * 90 * (36 + 64))), "{error}");
}

/// Half the rank and 4 bits at 32768 tokens hold 84 % less than f16, with minima, scales, sinks and window: 5 bits of 32 for two latents, and the exact
/// rows of at most 68 tokens.
#[test]
fn half_rank_and_4_bits_hold_84_percent_less() {
    const TOKENS: usize = 32768;
    for (heads, d) in [(3, 64), (8, 128)] {
        let mut cache =
            KvCache::of_leading_channels(&Device::Cpu, (heads, d), d / 2, Some(64), &CacheOptions::new()).unwrap();
        let sequence = cache.insert().unwrap();
        let rows =
            Array4::from_shape_fn((1, heads, 4096, d), |(_, h, n, c)| f16::from_f32(((h + 3 * n + c) % 7) as f32));
        let rows = Device::Cpu.tensor_from(rows).unwrap();
        for _ in 0..TOKENS / 4096 {
            cache.append(0, &[sequence], &rows, &rows).unwrap();
        }
        assert_eq!(cache.len(0, sequence), Ok(TOKENS));
        let uncompressed = (2 * 2 * heads * d * TOKENS) as f64;
        let cut = 1.0 - cache.bytes() as f64 / uncompressed;
        assert!((0.84..0.845).contains(&cut), "{heads} heads of {d}: {cut}");
    }
}

fn noise(seed: u64, i: usize) -> f64 {
    let x = ((seed << 32) ^ i as u64).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((x ^ (x >> 31)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 40) as f64 / 8_388_608.0 - 1.0
}

fn cube(seed: u64, shape: (usize, usize, usize)) -> Array3<f32> {
    let mut i = 0;
    Array3::from_shape_simple_fn(shape, || {
        i += 1;
        noise(seed, i) as f32
    })
}

/// `rank` orthonormal rows of `width`, by Gram and Schmidt.
fn orthonormal(seed: u64, rank: usize, width: usize) -> Array2<f32> {
    let mut rows: Array2<f64> = Array2::from_shape_fn((rank, width), |(i, j)| noise(seed, i * width + j));
    for i in 0..rank {
        for _ in 0..2 {
            for j in 0..i {
                let (done, mut row) = (rows.row(j).to_owned(), rows.row_mut(i));
                let along = row.dot(&done);
                row.scaled_add(-along, &done);
            }
        }
        let norm = rows.row(i).dot(&rows.row(i)).sqrt();
        rows.row_mut(i).mapv_inplace(|x| x / norm);
    }
    rows.mapv(|x| x as f32)
}

const TOKENS: usize = 150;
const D: usize = 16;

/// 2 KV heads of 16, joint keys or not, 4 query heads at some positions.
fn setup(joint: bool, rank: usize) -> (Projections, Activations) {
    let rope = Rope::new(RopeLayout::Halves, D, 1e4).unwrap();
    let basis = |seed: u64, heads: usize, rank: usize| {
        let mean = Array1::from_shape_fn(heads * D, |i| 0.3 * noise(seed + 50, i) as f32);
        Basis::orthogonal(heads, mean, orthonormal(seed, rank, heads * D)).unwrap()
    };
    let keys = if joint { vec![basis(1, 2, 2 * rank)] } else { vec![basis(1, 1, rank), basis(2, 1, rank)] };
    let values = vec![basis(3, 1, rank), basis(4, 1, rank)];
    let whole = Projections::new(2, D, rope, Frame::Block(64)).unwrap().with_layer(7, keys, values).unwrap();
    let positions = vec![3, 40, 77, 149];
    let (keys, values) = (cube(10, (2, TOKENS, D)), cube(11, (2, TOKENS, D)));
    let queries = cube(12, (4, 4, D)) * 4.0;
    (whole, Activations::new(7, keys, values, queries, positions).unwrap())
}

/// R_angle row.
fn turn(row: &mut [f64], position: f64) {
    for i in 0..D / 2 {
        let (sin, cos) = (position * 1e4f64.powf(-2.0 * i as f64 / D as f64)).sin_cos();
        (row[i], row[i + D / 2]) = (row[i] * cos - row[i + D / 2] * sin, row[i + D / 2] * cos + row[i] * sin);
    }
}

/// mean + ((x - mean) down) up.
fn through(basis: &Basis, row: &[f64]) -> Vec<f64> {
    let wide = |x: ArrayView1<f32>| x.mapv(f64::from);
    let mean = wide(basis.mean().view());
    let z = (Array1::from_vec(row.to_vec()) - &mean).dot(&basis.down().mapv(f64::from));
    (z.dot(&basis.up().mapv(f64::from)) + mean).to_vec()
}

/// Keys and values [2][kv_heads][tokens] as latents leave them.
fn rebuilt(projections: &Projections, keys: &Array3<f32>, values: &Array3<f32>) -> [Array3<f64>; 2] {
    let mut out = [keys.mapv(f64::from), values.mapv(f64::from)];
    for (side, all) in [Side::Keys, Side::Values].into_iter().zip(&mut out) {
        for n in 0..TOKENS {
            let origin = if side == Side::Keys { (n / 64 * 64) as f64 } else { 0.0 };
            let mut head = 0;
            for basis in projections.bases(7, side).unwrap() {
                let mut row = Vec::new();
                for of in head..head + basis.heads() {
                    let mut part = all.slice(s![of, n, ..]).to_vec();
                    turn(&mut part, -origin);
                    row.extend(part);
                }
                for (part, of) in through(basis, &row).chunks_mut(D).zip(head..) {
                    turn(part, origin);
                    all.slice_mut(s![of, n, ..]).assign(&ArrayView1::from(&*part));
                }
                head += basis.heads();
            }
        }
    }
    out
}

/// Attention of one query to the tokens up to m, of which `exact` says where what was given counts.
fn attend(
    q: ArrayView1<f32>,
    m: usize,
    keys: [&Array3<f64>; 2],
    values: [&Array3<f64>; 2],
    head: usize,
    exact: impl Fn(usize) -> bool,
) -> Array1<f64> {
    let q = q.mapv(f64::from);
    let of = |sides: [&Array3<f64>; 2], n: usize| sides[usize::from(!exact(n))].slice(s![head, n, ..]).to_owned();
    let weights: Vec<f64> = (0..=m).map(|n| (q.dot(&of(keys, n)) / (D as f64).sqrt()).exp()).collect();
    let sum: f64 = weights.iter().sum();
    (0..=m).map(|n| of(values, n) * (weights[n] / sum)).fold(Array1::zeros(D), |a, b| a + b)
}

/// Every error is that of the definition, for a head, for both, and by rank; with sinks and a window, joint keys too.
#[test]
fn errors_are_those_of_the_definition() {
    for (joint, rank, window, sinks) in [(false, 5, 32, 4), (false, 16, 10, 0), (true, 6, 0, 3)] {
        let (projections, activations) = setup(joint, rank);
        let options =
            CacheOptions::new().bits(LatentBits::ThirtyTwo, LatentBits::ThirtyTwo).window(window).sinks(sinks);
        let found = evaluate(&Device::Cpu, &projections, &activations, &options).unwrap();
        let table = error_table(&Device::Cpu, &projections, &activations, &options, &[2, rank]);
        let (given_keys, given_values) = (cube(10, (2, TOKENS, D)), cube(11, (2, TOKENS, D)));
        let queries = cube(12, (4, 4, D)) * 4.0;
        let [keys, values] = rebuilt(&projections, &given_keys, &given_values);
        let (given_keys, given_values) = (given_keys.mapv(f64::from), given_values.mapv(f64::from));
        // The last tokens fill no page.
        let packed = (TOKENS - window) / 32 * 32;
        let (mut norm, mut both, mut of_heads) = ([0.0; 2], 0.0, [[0.0; 2]; 2]);
        for (head, of_head) in queries.outer_iter().enumerate() {
            for (q, m) in of_head.outer_iter().zip([3, 40, 77, 149]) {
                let exact = |n: usize| m - n < window || n < sinks || n >= packed;
                let (k, v) = ([&given_keys, &keys], [&given_values, &values]);
                let (all_k, all_v) = ([&given_keys; 2], [&given_values; 2]);
                let squared = |x: &Array1<f64>| x.dot(x);
                let output = attend(q, m, all_k, all_v, head / 2, exact);
                let off = |k, v| squared(&(attend(q, m, k, v, head / 2, exact) - &output));
                norm[head / 2] += squared(&output);
                both += off(k, v);
                of_heads[0][head / 2] += off(k, all_v);
                of_heads[1][head / 2] += off(all_k, v);
            }
        }
        // Latents and their products are f32: 1e-6 of the output, and of a squared error that relative to its root.
        let close = |a: f64, b: f64| (a.sqrt() - b.sqrt()).abs() <= 2e-6 * (norm[0] + norm[1]).sqrt();
        assert!(close(found.squared_norm, norm[0] + norm[1]), "{found:?}");
        assert!(close(found.squared_error, both), "{joint} {rank}: {} {both}", found.squared_error);
        for (index, head) in found.heads.iter().enumerate() {
            let expected = of_heads[index / 2][index % 2];
            let error = head.relative_error.powi(2) * norm[index % 2];
            assert!(close(error, expected), "{joint} {rank} {head:?}: {error} {expected}");
            assert_eq!((head.head, head.side == Side::Keys), (index % 2, index < 2));
            assert_eq!(head.rank, if joint && index < 2 { 2 * rank } else { rank });
        }
        assert_eq!(found.heads.iter().map(|head| head.bytes).sum::<u64>(), found.bytes);
        assert_eq!(found.bytes_uncompressed, 2 * 2 * 2 * 150 * 16);
        match table {
            Err(error) => assert!(joint && error.to_string().contains("bases"), "{error}"),
            Ok(table) => {
                let last = table.index_axis(Axis(2), 1);
                for (index, expected) in of_heads.iter().flatten().enumerate() {
                    let error = last[[index / 2, index % 2]] * (norm[0] + norm[1]);
                    assert!(close(error, *expected), "{index}: {error} {expected}");
                }
                assert!(rank == 2 || table.index_axis(Axis(2), 0).sum() > last.sum());
            }
        }
    }
}

/// Through W_o: a metric that sees one element of values alone counts what that is off by.
#[test]
fn tables_are_measured_through_the_output_projection() {
    let (projections, activations) = setup(false, 8);
    let options = CacheOptions::new();
    let table =
        |activations: &Activations| error_table(&Device::Cpu, &projections, activations, &options, &[4, 8]).unwrap();
    let plain = table(&activations);
    // Twice the identity, for each of the two query heads its half: the same.
    let twice = Array3::from_shape_fn((2, D, D), |(_, i, j)| if i == j { 2.0 } else { 0.0 });
    let same = table(&activations.clone().output_gram(twice).unwrap());
    assert!(plain.iter().zip(&same).all(|(a, b)| (a - b).abs() <= 1e-12 * a), "{plain} {same}");
    let one = Array3::from_shape_fn((2, D, D), |(_, i, j)| f64::from(u8::from(i == 5 && j == 5)));
    assert_ne!(table(&activations.clone().output_gram(one).unwrap()), plain);
    assert!(activations.output_gram(Array3::zeros((2, D, D + 1))).is_err());
}

#[test]
fn activations_that_do_not_fit_are_named() {
    let new = |keys, values, queries, positions| {
        Activations::new(0, keys, values, queries, positions).unwrap_err().to_string()
    };
    let fine = || cube(1, (2, 40, 8));
    let error = new(fine(), cube(1, (2, 41, 8)), fine(), vec![0; 40]);
    assert!(error.contains("values has shape [2, 41, 8]"), "{error}");
    let error = new(fine(), fine(), cube(1, (3, 1, 8)), vec![0]);
    assert!(error.contains("queries has shape [3, 1, 8], expected [a multiple of 2, 1, 8]"), "{error}");
    let error = new(fine(), fine(), cube(1, (2, 1, 8)), vec![40]);
    assert!(error.contains("a query's position is 40, expected below the 40 tokens"), "{error}");
    let mut bad = fine();
    bad[[1, 0, 3]] = f32::INFINITY;
    let error = new(fine(), bad, cube(1, (2, 1, 8)), vec![39]);
    assert!(error.contains("values at index 323 is inf, expected finite"), "{error}");
}

/// Which columns of the golden table's bases have their largest element above 0 (column j in bit j), of the keys and of the values of 3 heads. An
/// eigenvector may as well be its negative, but a token's values share a minimum and a scale with 31 others, and with other signs that range is another:
/// errors of quantised latents of full rank differ by up to 16 %, below it by less than 1 %. These are LAPACK's.
#[rustfmt::skip]
const GOLDEN_SIGNS: [(&str, [[u64; 3]; 2]); 9] = [
    ("layer1/mkv", [[0x1d31_5e08_baa5_7d98, 0xca36_be8f_b33f_cdc7, 0x6890_c82a_d0d1_833a], [0x71ba_3781_e204_542a, 0x7954_2d2f_48ca_b4aa, 0xa9cd_2a00_e24e_d5c8]]),
    ("layer1/postq", [[0x3643_7aa4_e785_6fe0, 0x66d8_6204_8f57_c430, 0xd3af_9db2_68c9_2ec7], [0x8db7_b7bd_155d_a7dd, 0xfd34_433e_e25b_9bcb, 0x59ed_5eaf_b769_0782]]),
    ("layer1/blk64q", [[0x9e7c_a947_f785_b849, 0xf24d_0fee_5270_ce4b, 0xbe53_06b1_6a04_840f], [0x8db7_b7bd_155d_a7dd, 0xfd34_433e_e25b_9bcb, 0x59ed_5eaf_b769_0782]]),
    ("layer8/mkv", [[0xbc2c_3da4_9146_efe2, 0x9e00_f173_52eb_4fed, 0x8be2_e145_2764_720d], [0xc302_b332_dd88_561a, 0x73a1_9f98_150c_db2a, 0xaf4e_418f_4832_c4d3]]),
    ("layer8/postq", [[0x56cf_24d6_f245_27d8, 0x731e_a92e_99fe_e879, 0x5fc0_d946_a8ab_16fd], [0x6012_94fb_ed22_7779, 0x7ebd_ff74_8fc8_c1c5, 0x3c4a_2a77_2a4e_fe9b]]),
    ("layer8/blk64q", [[0x37ba_14ea_2718_1115, 0x915b_df03_5b51_9f4d, 0xec53_2a8c_93dc_e620], [0x6012_94fb_ed22_7779, 0x7ebd_ff74_8fc8_c1c5, 0x3c4a_2a77_2a4e_fe9b]]),
    ("layer22/mkv", [[0x4933_45a3_9078_4ad9, 0x4a20_fe16_38d1_01cf, 0xc027_a32c_70a9_86ec], [0x6f0b_884b_949e_bc89, 0x8ac8_1639_7972_95e3, 0x7c72_8633_31f6_a727]]),
    ("layer22/postq", [[0x172c_f40b_b600_547c, 0x92cb_113b_62b0_7424, 0xdaa1_cd58_8953_66e3], [0x469c_66ae_04cc_85e3, 0x2028_49bb_e80c_e3ad, 0x062c_203a_24df_3ebb]]),
    ("layer22/blk64q", [[0x688f_a72b_b8ec_a7a4, 0x02cd_a08e_599a_875f, 0xc6bc_d0cf_def9_54db], [0x469c_66ae_04cc_85e3, 0x2028_49bb_e80c_e3ad, 0x062c_203a_24df_3ebb]]),
];

/// The same bases with the signs of the table.
fn signed(projections: &Projections, layer: usize, signs: [[u64; 3]; 2]) -> Projections {
    let of_side = |side: Side| -> Vec<Basis> {
        let flip = |(basis, bits): (&Basis, &u64)| {
            let (mut down, mut up) = (basis.down().clone(), basis.up().clone());
            for (j, mut column) in down.columns_mut().into_iter().enumerate() {
                let largest = column.iter().fold(0.0f32, |most, x| if x.abs() > most.abs() { *x } else { most });
                if (largest > 0.0) != (bits >> j & 1 == 1) {
                    column.mapv_inplace(|x| -x);
                    up.row_mut(j).mapv_inplace(|x| -x);
                }
            }
            Basis::new(1, basis.mean().clone(), down, up).unwrap()
        };
        projections.bases(layer, side).unwrap().iter().zip(&signs[side as usize]).map(flip).collect()
    };
    let (rope, frame) = (projections.rope().clone(), projections.frame());
    Projections::new(3, 64, rope, frame).unwrap().with_layer(layer, of_side(Side::Keys), of_side(Side::Values)).unwrap()
}

/// Compares quantised latents of full rank of a file's layer; returns the worst of what is allowed.
fn golden_of_full_rank(path: &str, layer: usize) -> f64 {
    let golden = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/golden_kv.json")).unwrap();
    let golden: serde_json::Value = serde_json::from_slice(&golden).unwrap();
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let cube = |name: &str| {
        let tensor = file.tensor(name).unwrap();
        let elements = tensor.data().chunks_exact(4).map(|x| f32::from_le_bytes(x.try_into().unwrap())).collect();
        let shape: [usize; 3] = tensor.shape().try_into().unwrap();
        Array3::from_shape_vec(shape, elements).unwrap()
    };
    let (name, first) = if file.tensor("q_post").is_ok() { ("q_post", 0) } else { ("q_post_last256", 1792) };
    let positions: Vec<usize> = (1792..2048).step_by(4).collect();
    let rows: Vec<usize> = positions.iter().map(|position| position - first).collect();
    let queries = cube(name).select(Axis(1), &rows);
    let activations = Activations::new(layer, cube("k_post"), cube("v"), queries, positions).unwrap();
    let rope = Rope::new(RopeLayout::Halves, 64, 1e5).unwrap();
    let mut worst = 0.0f64;
    for (way, frame, weighting) in [
        ("mkv", Frame::Post, Weighting::Pca),
        ("postq", Frame::Post, Weighting::Query),
        ("blk64q", Frame::Block(64), Weighting::Query),
    ] {
        let mut calibration = Calibration::new((9, 3, 64), rope.clone(), frame).unwrap();
        calibration.read_moments(path, layer).unwrap();
        let found = calibration.projections(&ProjectionOptions::new().weighting(weighting, weighting)).unwrap();
        let name = format!("layer{layer}/{way}");
        let signs = GOLDEN_SIGNS.iter().find(|(of, _)| *of == name).unwrap().1;
        let projections = signed(&found, layer, signs);
        for (bits, sinks) in
            [(LatentBits::Eight, 0), (LatentBits::Eight, 4), (LatentBits::Four, 0), (LatentBits::Four, 4)]
        {
            let options = CacheOptions::new().bits(bits, bits).sinks(sinks);
            let found = evaluate(&Device::Cpu, &projections, &activations, &options).unwrap().relative_error();
            let name = format!("{name}/r64/{}bit/sink{sinks}", bits.count());
            let expected = golden[&name].as_f64().unwrap();
            // 2 %: the cache leaves sinks out of minima and maxima, the table does not, which is 1.6 % at most. And the table's fifth digit.
            let off = (found - expected).abs() / (0.02 * expected + 5.1e-6);
            assert!(off <= 1.0, "{name}: {found}, expected {expected}");
            worst = worst.max(off);
        }
    }
    worst
}

#[test]
fn quantised_latents_of_full_rank_are_those_of_the_golden_table() {
    golden_of_full_rank(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/smollm2_kv_layer08.safetensors"), 8);
}

#[test]
#[ignore = "needs the files of three layers, 24 MB, in the folder ORTHANT_KV_DATA"]
fn quantised_latents_of_full_rank_are_those_of_the_golden_table_in_all_layers() {
    let folder = std::env::var("ORTHANT_KV_DATA").unwrap();
    for layer in [1, 8, 22] {
        let worst = golden_of_full_rank(&format!("{folder}/smollm2_kv_layer{layer:02}.safetensors"), layer);
        println!("layer {layer}: the worst {worst:.3} of what is allowed");
    }
}
