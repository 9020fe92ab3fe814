//! Shapes, options and values of every public function on the CPU, drawn from bytes: a typed error or a result of the right shape, finite where what went in
//! is in the domain.

use half::f16;
use ndarray::{Array, Array1, Array2, Array3, Array4, Axis, Dimension, Ix1, Ix2, Ix4};
use orthant::attention::{
    Activation, ActivationUnitOptions, ActivationUnitWeights, Algorithm, ElaVariant, ElaWeights, HiddenLayer,
    InteractingOptions, InteractingWeights, Options, alibi_slopes, attention, attention_backward,
    efficient_local_attention, interacting_layer, local_activation_unit, merge_attention,
};
use orthant::hamming::{
    Binarizer, Codes, EvaluateOptions, Fusion, Index, ItqOptions, Mask, Neighbours, Precision as Asymmetric,
    SearchOptions, SignRule, binarize, evaluate, fuse,
};
use orthant::kernels::{self, limits};
use orthant::knn::{self, Metric};
use orthant::kv::{
    Activations, AttendOptions, Basis, Budget, CacheOptions, Calibration, Evaluation, ExactType, Frame, KvCache,
    LatentBits, ProjectionOptions, Projections, Ranks, Rope, RopeLayout, RopeScaling, Weighting, allocate,
    allocate_bits, error_table,
};
use orthant::vmf::{MAX_KAPPA, MixtureOptions, Resultant, Vmf, VmfMixture, VmfStats, log_density_pairs, solve_kappa};
use orthant::{Device, DoubleSingle, Element, Precision, Tensor};

use super::draw::Draw;
use super::files::typed;
use super::{indexes, models};

/// The families, in the order of the first byte.
pub const FAMILIES: [fn(&mut Draw<'_>); 15] = [
    bessel,
    tensors,
    matrices,
    posterior,
    codes,
    search,
    evaluation,
    neighbours,
    attend,
    layers,
    distribution,
    mixture,
    cache,
    calibration,
    allocation,
];

pub fn options(bytes: &[u8]) {
    let Some((&family, bytes)) = bytes.split_first() else { return };
    FAMILIES[usize::from(family) % FAMILIES.len()](&mut Draw::new(bytes));
}

fn on<T: Element, D: Dimension>(array: Array<T, D>) -> Tensor<T, D> {
    Device::Cpu.tensor_from(array).unwrap()
}

fn host<T: Element, D: Dimension>(tensor: &Tensor<T, D>) -> Array<T, D> {
    tensor.to_array().unwrap()
}

fn finite<D: Dimension>(tensor: &Tensor<f32, D>) -> bool {
    host(tensor).iter().all(|x| x.is_finite())
}

fn rows(draw: &mut Draw<'_>, most: usize, dim: usize) -> Array2<f32> {
    let n = draw.axis(most);
    draw.singles((n, dim))
}

fn bessel(draw: &mut Draw<'_>) {
    let n = draw.axis(6);
    let m = draw.near(n);
    let large = |draw: &mut Draw<'_>| match draw.below(4) {
        0 => draw.real(),
        1 => 1e7 * draw.unit().abs(),
        _ => 30.0 * draw.unit().abs(),
    };
    let mut list = |n: usize| -> Array1<f64> { (0..n).map(|_| large(draw)).collect() };
    let (v, x, r) = (list(n), list(m), list(m));
    type Function<T> = fn(&Tensor<T, Ix1>, &Tensor<T, Ix1>) -> orthant::Result<Tensor<T, Ix1>>;
    fn all<T: orthant::Real>() -> [(&'static str, Function<T>); 9] {
        [
            ("log_iv", kernels::log_iv),
            ("log_kv", kernels::log_kv),
            ("iv_ratio", kernels::iv_ratio),
            ("iv_ratio_complement", kernels::iv_ratio_complement),
            ("log_iv_dx", kernels::log_iv_dx),
            ("log_kv_dx", kernels::log_kv_dx),
            ("log_iv_dv", kernels::log_iv_dv),
            ("log_kv_dv", kernels::log_kv_dv),
            ("vmf_log_normalizer", kernels::vmf_log_normalizer),
        ]
    }
    let no_nan = |name: &str, values: Vec<f64>| {
        assert!(values.iter().all(|value| !value.is_nan()), "{name} of {v} and {x} is {values:?}");
    };
    for (name, function) in all::<f64>() {
        if let Some(out) = typed(function(&on(v.clone()), &on(x.clone()))) {
            no_nan(name, host(&out).to_vec());
        }
    }
    let narrow = |list: &Array1<f64>| on(list.mapv(|x| x as f32));
    for (name, function) in all::<f32>() {
        if let Some(out) = typed(function(&narrow(&v), &narrow(&x))) {
            no_nan(name, host(&out).iter().map(|x| f64::from(*x)).collect());
        }
    }
    let pair = |list: &Array1<f64>| on(list.mapv(DoubleSingle::new));
    for (name, function) in all::<DoubleSingle>() {
        if let Some(out) = typed(function(&pair(&v), &pair(&x))) {
            no_nan(name, out.to_f64_array().unwrap().to_vec());
        }
    }
    if let Some(kappa) = typed(kernels::vmf_kappa(&on(v.clone()), &on(x.clone()), &on(r))) {
        no_nan("vmf_kappa", host(&kappa).to_vec());
    }
}

fn tensors(draw: &mut Draw<'_>) {
    let device = Device::Cpu;
    let (a, b) = (draw.number(), draw.number());
    // Between a few megabytes and what no one has, memory may be had, and would be.
    if a.checked_mul(b).is_none_or(|n| n != 0 && !(1 << 24..1 << 44).contains(&n))
        && let Some(zeros) = typed(device.zeros::<f32, Ix2>((a, b)))
    {
        assert_eq!(zeros.shape(), [a, b]);
        assert!(zeros.is_empty() == zeros.shape().contains(&0) && zeros.raw_dim().ndim() == 2);
    }
    let n = draw.axis(9);
    let list = draw.singles(n);
    let tensor = on(list.clone());
    typed(tensor.clone().into_shape((a, b)));
    // By their bits, as a NaN is what it was, too.
    let bits = |tensor: orthant::Result<Tensor<f32, Ix2>>| host(&tensor.unwrap()).mapv(f32::to_bits);
    assert_eq!(host(&typed(tensor.to_device(&device)).unwrap()).mapv(f32::to_bits), list.mapv(f32::to_bits));
    assert!(tensor.device().is_cpu() && tensor.as_host().is_some() && device.as_gpu().is_none());
    // Strides of 0 and below, and columns before rows.
    let columns = draw.axis(5);
    let wide = list.broadcast((columns, n)).unwrap();
    assert_eq!(bits(device.tensor(&wide)), wide.mapv(f32::to_bits));
    assert_eq!(bits(device.tensor(&wide.t())), wide.t().mapv(f32::to_bits));
    let mut flipped = wide.view();
    flipped.invert_axis(Axis(1));
    assert_eq!(bits(device.tensor(&flipped)), flipped.mapv(f32::to_bits));
    let pair = DoubleSingle::new(draw.real());
    let _ = (pair.high(), pair.low(), pair.to_f64(), pair.to_string(), pair.partial_cmp(&pair), f64::from(pair));
    assert!(!kernels::variants().is_empty());
    typed(limits::copy(&tensor));
    typed(limits::multiply_add(&tensor));
    if let Some(wide) = typed(kernels::widen(&tensor)) {
        let same = wide.to_f64_array().unwrap().iter().zip(&list).all(|(a, b)| *a == f64::from(*b) || b.is_nan());
        assert!(same || list.iter().any(|x| !x.is_finite()));
    }
}

fn matrices(draw: &mut Draw<'_>) {
    let (m, k, n) = (draw.axis(20), draw.axis(20), draw.axis(20));
    let inner = draw.near(k);
    let (ta, tb) = (draw.flag(), draw.flag());
    let a = draw.array(if ta { (k, m) } else { (m, k) });
    let b = draw.array(if tb { (n, inner) } else { (inner, n) });
    if let Some(product) = typed(kernels::matmul(&on(a.clone()), &on(b.clone()), ta, tb)) {
        let (a, b) = (if ta { a.t() } else { a.view() }, if tb { b.t() } else { b.view() });
        let plain = a.dot(&b);
        assert_eq!(product.shape(), [m, n]);
        let scale = a.mapv(f64::abs).dot(&b.mapv(f64::abs));
        let close = host(&product)
            .iter()
            .zip(&plain)
            .zip(&scale)
            .all(|((x, y), scale)| !scale.is_finite() || *scale > 1e300 || (x - y).abs() <= 1e-12 * scale + 1e-300);
        assert!(close, "{a} times {b}");
    }
    let (a32, b16) = (a.mapv(|x| x as f32), b.mapv(f16::from_f64));
    typed(kernels::matmul(&on(a32.clone()), &on(b.mapv(|x| x as f32)), ta, tb));
    typed(kernels::matmul(&on(a.mapv(f16::from_f64)), &on(b16.clone()), ta, tb));
    if let Some(sums) = typed(kernels::column_sums(&on(a32.clone()))) {
        assert_eq!(sums.len(), a32.ncols());
    }
    if let Some(sums) = typed(kernels::column_sums_extended(&on(b16.clone()))) {
        assert_eq!(sums.len(), b16.ncols());
    }
    let fallback_rows = draw.near(a32.nrows());
    let fallback = draw.flag().then(|| on(draw.singles((fallback_rows, a32.ncols()))));
    if let Some((unit, lengths)) = typed(kernels::normalize_rows(&on(a32.clone()), fallback.as_ref())) {
        assert_eq!((unit.shape(), lengths.len()), (a32.shape(), a32.nrows()));
    }
    let count = draw.near(a32.ncols());
    let thresholds = draw.flag().then(|| on(draw.singles(count)));
    let rule = draw.of(&[SignRule::AtLeast, SignRule::Above]);
    if let Some(words) = typed(kernels::sign_pack(&on(a32.clone()), thresholds.as_ref(), rule)) {
        assert_eq!(words.shape(), [a32.nrows(), a32.ncols().div_ceil(32)]);
    }
}

fn posterior(draw: &mut Draw<'_>) {
    let (n, k) = (draw.axis(9), draw.axis(5));
    let cosines = draw.singles((n, k));
    let mut list = |n: usize| -> Vec<f32> { draw.elements(n).iter().map(|x| *x as f32).collect() };
    let (kappa, bias, weights) = (list(k), list(k), list(n));
    let reference = draw.real() as f32;
    let weights = draw.flag().then(|| on(Array1::from(weights)));
    let hard = draw.flag();
    let found = kernels::mixture_posterior(&on(cosines), &kappa, &bias, reference, weights.as_ref(), hard);
    let Some(found) = typed(found) else { return };
    assert_eq!((found.shares.shape(), found.labels.len(), found.scores.len()), (&[n, k][..], n, n));
    assert!(host(&found.labels).iter().all(|label| (*label as usize) < k.max(1)));
    typed(kernels::mixture_summary(&found));
}

fn bits(draw: &mut Draw<'_>) -> usize {
    match draw.below(8) {
        0 => draw.number(),
        _ => draw.of(&[8, 32, 40, 64, 96]),
    }
}

fn some_codes(draw: &mut Draw<'_>, bits: usize) -> Codes {
    let n = draw.axis(70);
    let flags = Array2::from_shape_fn((n, bits), |_| draw.flag());
    Codes::pack(&Device::Cpu, &flags.view()).unwrap()
}

/// The distance of each code of `b` to each of `a`, plainly.
fn plain(a: &Codes, b: &Codes) -> Array2<u32> {
    let (a, b) = (a.unpack().unwrap(), b.unpack().unwrap());
    Array2::from_shape_fn((a.nrows(), b.nrows()), |(i, j)| {
        a.row(i).iter().zip(b.row(j)).filter(|(a, b)| a != b).count() as u32
    })
}

fn codes(draw: &mut Draw<'_>) {
    let device = &Device::Cpu;
    let (width, n) = (draw.small_number(), draw.axis(5));
    let bytes = Array2::from_shape_fn((n, width), |_| draw.byte());
    if let Some(codes) = typed(Codes::from_bytes(device, &bytes.view())) {
        assert_eq!(codes.to_bytes().unwrap(), bytes);
    }
    typed(Codes::from_packbits(device, &bytes.view()));
    typed(Codes::pack(device, &bytes.mapv(|byte| byte & 1 == 1).view()));
    let of = bits(draw);
    typed(Codes::new(on(bytes.mapv(u32::from)), of));
    let dim = draw.axis(70);
    let (of, hostile) = (bits(draw), draw.number());
    typed(Binarizer::sign(hostile, of));
    if of.saturating_mul(hostile) < 1 << 20 || of.saturating_mul(hostile) > 1 << 45 {
        typed(Binarizer::hyperplanes(hostile, of, 1));
    }
    let rows = rows(draw, 12, dim);
    let rows = on(rows);
    let options = ItqOptions::new(of).iterations(draw.below(4)).seed(3);
    let made = [
        Binarizer::sign(dim, of),
        Binarizer::mean(&rows, of),
        Binarizer::median(&rows, of),
        Binarizer::hyperplanes(dim, if of > 1 << 20 { 32 } else { of }, 5),
        Binarizer::itq(&rows, &options),
    ];
    for binarizer in made.into_iter().filter_map(typed) {
        let binarizer = binarizer.rule(draw.of(&[SignRule::AtLeast, SignRule::Above]));
        typed(binarizer.project(&rows));
        let Some(codes) = typed(binarize(&rows, &binarizer)) else { continue };
        assert_eq!(
            (codes.len(), codes.bits(), codes.is_empty()),
            (rows.shape()[0], binarizer.bits(), rows.shape()[0] == 0)
        );
        assert_eq!((codes.words().shape()[0], codes.device().is_cpu()), (codes.len(), true));
        typed(codes.to_device(device));
        let other = some_codes(draw, binarizer.bits());
        let found = typed(kernels::hamming(&codes, &other)).expect("codes of one width");
        assert_eq!(host(&found).mapv(u32::from), plain(&codes, &other));
    }
    let weights: Vec<f32> = draw.elements(2).iter().map(|x| *x as f32).collect();
    let other_rows = draw.near(rows.shape()[0]);
    let other = on(draw.singles((other_rows, dim)));
    for fusion in [Fusion::Concatenate, Fusion::Sum] {
        typed(fuse(&[&rows, &other], &weights, fusion));
        typed(fuse::<f32>(&[], &[], fusion));
    }
    let labels = |draw: &mut Draw<'_>, n: usize| on(Array1::from_shape_fn(n, |_| u32::from(draw.byte() % 3)));
    let (a, b) = (some_codes(draw, 32), some_codes(draw, 32));
    let (n, m) = (draw.near(a.len()), draw.near(b.len()));
    let (of_a, of_b) = (labels(draw, n), labels(draw, m));
    if let Some((all, relevant)) = typed(kernels::hamming_histograms(&a, &of_a, &b, &of_b)) {
        assert_eq!((all.shape(), relevant.shape()), (&[b.len(), 33][..], &[b.len(), 33][..]));
        let (all, relevant) = (host(&all), host(&relevant));
        assert_eq!(all.iter().map(|x| *x as usize).sum::<usize>(), a.len() * b.len());
        assert!(relevant.iter().zip(&all).all(|(relevant, all)| relevant <= all));
    }
}

fn search(draw: &mut Draw<'_>) {
    let bits = bits(draw);
    let first = draw.of(&[0, 7, u64::MAX, u64::MAX - 5, 1 << 40]);
    let Some(index) = typed(Index::new(&Device::Cpu, bits)) else { return };
    let mut index = index.with_first_id(first);
    let base = some_codes(draw, bits);
    index.add(&base).unwrap();
    let queries = some_codes(draw, bits);
    let k = draw.number();
    let plain = plain(&queries, &base);
    let mut gone = vec![false; base.len()];
    if draw.flag() {
        let ids: Vec<u32> = (0..draw.below(6)).map(|_| u32::from(draw.byte())).collect();
        if typed(index.remove(&ids)).is_some() {
            ids.iter().for_each(|id| gone[*id as usize] = true);
        }
    }
    assert_eq!(index.len(), gone.iter().filter(|gone| !**gone).count());
    let length = draw.near(index.ids());
    let mask = Mask::new((0..length).map(|_| draw.flag()));
    assert!(mask.count() <= mask.len() && mask.is_empty() == matches!(mask.len(), 0) && !mask.allows(u32::MAX));
    typed(Mask::of_ids(length, &[draw.byte().into()]));
    let masked = draw.flag();
    let options = if masked { SearchOptions::new(k).allowed(&mask) } else { SearchOptions::new(k) };
    if let Some(found) = typed(index.search(&queries, &options)) {
        let (ids, distances) = (host(&found.ids), host(&found.distances));
        for (query, row) in plain.outer_iter().enumerate() {
            let there = |id: &usize| !gone[*id] && (!masked || mask.allows(*id as u32));
            let mut expected: Vec<(u32, usize)> = (0..base.len()).filter(there).map(|id| (row[id], id)).collect();
            expected.sort_unstable();
            expected.truncate(k);
            let (distances, ids) = (distances.row(query), ids.row(query));
            assert!(distances.iter().zip(ids).map(|(d, id)| (*d, *id as usize)).eq(expected));
        }
        typed(found.global_ids());
        typed(Neighbours::merge(&[found.clone(), found], k));
    }
    let allowed = masked.then_some(&mask);
    let radius = draw.number().min(u32::MAX as usize) as u32;
    if let Some(found) = typed(index.within(&queries, radius, allowed)) {
        assert_eq!(found.offsets.len(), queries.len() + 1);
        assert_eq!(found.ids.len() as u64, *found.offsets.last().unwrap());
    }
    typed(index.search_jaccard(&queries, &options));
    let dim = draw.near(bits);
    let rows = on(rows(draw, 4, dim));
    for precision in [Asymmetric::Float, Asymmetric::Int4] {
        typed(index.search_asymmetric(&rows, precision, &options));
    }
}

fn evaluation(draw: &mut Draw<'_>) {
    let (base, queries) = (some_codes(draw, 32), some_codes(draw, 32));
    let (n, m) = (draw.near(base.len()), draw.near(queries.len()));
    let labels: Vec<u8> = (0..n).map(|_| draw.byte() % 3).collect();
    let of_queries: Vec<u8> = (0..m).map(|_| draw.byte() % 3).collect();
    let tops = [draw.number(), draw.number()];
    let options = EvaluateOptions::new().tops(&tops).leave_one_out(draw.flag());
    if let Some(found) = typed(evaluate(&base, &labels, &queries, &of_queries, &options)) {
        let shares = [found.map_all, found.map_all_tie_aware];
        assert!(shares.iter().all(|x| (-1e-9..=1.0 + 1e-9).contains(x)), "{found:?}");
        assert_eq!((found.base, found.queries, found.bits), (base.len(), queries.len(), 32));
    }
}

fn neighbours(draw: &mut Draw<'_>) {
    let dim = draw.axis(20);
    let other = draw.near(dim);
    let (base, queries) = (rows(draw, 40, dim), rows(draw, 6, other));
    let metric = draw.of(&[Metric::L2, Metric::InnerProduct, Metric::Cosine]);
    let k = if draw.flag() { draw.number() } else { 1 + draw.below(9) };
    let (on_base, on_queries) = (on(base.clone()), on(queries.clone()));
    if let Some(found) = typed(knn::search(&on_base, &on_queries, k, metric)) {
        assert_eq!(found.ids.dim(), (queries.nrows(), k.min(base.nrows())));
        assert!(found.ids.iter().all(|id| (*id as usize) < base.nrows()));
        assert!(found.distances.iter().all(|x| !x.is_nan()), "{found:?}");
        typed(found.local_dimension());
        assert_eq!(typed(knn::recall(found.ids.view(), found.ids.view())), Some(1.0));
        if metric == Metric::L2 && base.nrows() > 0 && found.ids.ncols() > 0 {
            for (query, distances) in queries.outer_iter().zip(found.distances.outer_iter()) {
                let far = |row: ndarray::ArrayView1<'_, f32>| -> f64 {
                    row.iter().zip(query).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum()
                };
                let least = base.outer_iter().map(far).fold(f64::INFINITY, f64::min).sqrt();
                assert!((f64::from(distances[0]) - least).abs() <= 1e-6 * least || least > 3e38, "{distances} {least}");
            }
        }
    }
    let (n, m) = (draw.near(queries.nrows()), draw.axis(8));
    let candidates = Array2::from_shape_fn((n, m), |_| draw.of(&[0, 1, 2, 3, u32::MAX, 39]));
    typed(knn::rescore(&on_base, &on_queries, candidates.view(), k, metric));
    typed(knn::recall(candidates.view(), candidates.view()));
    let distances = draw.singles((n, m));
    assert_eq!(knn::local_dimension(distances.view()).len(), n);
}

fn heads(draw: &mut Draw<'_>) -> (usize, usize) {
    let kv = draw.axis(3);
    (if draw.once_in(10) { draw.axis(4) } else { kv * (1 + draw.below(2)) }, kv)
}

fn attend(draw: &mut Draw<'_>) {
    let batch = draw.axis(2);
    let (q_heads, kv_heads) = heads(draw);
    let (q_len, kv_len, d, d_v) = (draw.axis(9), draw.axis(40), draw.axis(9), draw.axis(9));
    let (d_k, kv_of_v) = (draw.near(d), draw.near(kv_len));
    let q = draw.singles((batch, q_heads, q_len, d));
    let k = draw.singles((batch, kv_heads, kv_len, d_k));
    let v = draw.singles((batch, kv_heads, kv_of_v, d_v));
    let mut options = Options::new();
    if draw.flag() {
        options = options.causal();
    }
    if draw.flag() {
        options = options.window(draw.number());
    }
    if draw.once_in(3) {
        options = options.scale(draw.real() as f32);
    }
    if draw.once_in(3) {
        options = options.softcap(draw.real() as f32);
    }
    if draw.once_in(3) {
        let n = draw.near(q_heads);
        options = options.alibi(if draw.flag() { alibi_slopes(n) } else { vec![draw.real() as f32; n] });
    }
    if draw.once_in(3) {
        let n = draw.near(q_heads);
        options = options.sinks(vec![draw.real() as f32; n]);
    }
    if draw.once_in(3) {
        let mut axis = |n: usize| if draw.flag() { 1 } else { draw.near(n) };
        let shape = (axis(batch), axis(q_heads), axis(q_len), axis(kv_len));
        options = options.bias(on(draw.singles(shape)));
    }
    match draw.below(6) {
        0 => options = options.key_lengths((0..batch).map(|_| draw.number()).collect()),
        1 => options = options.key_lengths((0..batch).map(|_| draw.below(kv_len + 1)).collect()),
        2 => {
            let (a, b) = (draw.below(q_len + 1), draw.below(kv_len + 1));
            options = options.ragged(vec![0, a, q_len], vec![0, b, kv_len]);
        }
        3 => options = options.ragged(vec![draw.number(), q_len], vec![0, draw.number()]),
        _ => {}
    }
    if draw.once_in(3) {
        options = options.splits(draw.number());
    }
    if draw.once_in(3) {
        let algorithms = [
            Algorithm::Auto,
            Algorithm::Portable,
            Algorithm::LargeTiles,
            Algorithm::Subgroups,
            Algorithm::CooperativeMatrices,
            Algorithm::EmulatedMatrices(draw.byte().into()),
        ];
        options = options.algorithm(draw.of(&algorithms));
    }
    let options = options.lse();
    let (q, k, v) = (on(q), on(k), on(v));
    if let Some(found) = typed(attention(&q, &k, &v, &options)) {
        assert_eq!(found.output.shape(), [batch, q_heads, q_len, d_v]);
        assert!(finite(&found.output), "not finite, and not said");
        let shape = found.lse.as_ref().map(|lse| lse.shape().to_vec());
        assert_eq!(shape, Some(vec![batch, q_heads, q_len]));
        // A weighted mean is between the values.
        let largest = host(&v).iter().fold(0f32, |most, x| most.max(x.abs()));
        assert!(host(&found.output).iter().all(|x| x.abs() <= largest * 1.001), "beyond the values");
        let grad = on(draw.singles((batch, q_heads, q_len, d_v)));
        if let Some(back) = typed(attention_backward(&q, &k, &v, &found, &grad, &options)) {
            assert_eq!((back.q.shape(), back.k.shape(), back.v.shape()), (q.shape(), k.shape(), v.shape()));
        }
        typed(merge_attention(&[found.clone(), found]));
    }
    typed(merge_attention::<f32>(&[]));
    let halves = |tensor: &Tensor<f32, Ix4>| on(host(tensor).mapv(f16::from_f32));
    typed(attention(&halves(&q), &halves(&k), &halves(&v), &options));
}

fn layers(draw: &mut Draw<'_>) {
    let device = &Device::Cpu;
    let (d, width, heads) = (draw.axis(6), draw.axis(8), draw.small_number());
    let mut matrix = || {
        let (d, width) = (draw.near(d), draw.near(width));
        draw.singles((d, width))
    };
    let (query, key, value, residual) = (matrix(), matrix(), matrix(), matrix());
    let residual = residual.view();
    let residual = draw.flag().then_some(&residual);
    if let Some(weights) =
        typed(InteractingWeights::new(device, &query.view(), &key.view(), &value.view(), residual, heads))
    {
        let (batch, fields, input) = (draw.axis(3), draw.axis(5), draw.near(weights.input()));
        let x = on(draw.singles((batch, fields, input)));
        let options = InteractingOptions::new().maps().scale(draw.real() as f32);
        if let Some(found) = typed(interacting_layer(&x, &weights, &options)) {
            assert!(finite(&found.output));
            assert_eq!(found.output.shape(), [batch, fields, weights.heads() * weights.head_dim()]);
        }
    }
    let units = draw.axis(5);
    let of = draw.near(4 * d);
    let mut list = |n: usize| -> Array1<f32> {
        let n = draw.near(n);
        draw.singles(n)
    };
    let activation = match units % 3 {
        0 => Activation::Sigmoid,
        1 => Activation::Prelu { alpha: list(units) },
        _ => Activation::Dice {
            mean: list(units),
            variance: list(units).mapv(f32::abs),
            alpha: list(units),
            epsilon: 1e-9,
        },
    };
    let (bias, last) = (list(units), list(units));
    let hidden = HiddenLayer { weights: draw.singles((of, units)), bias, activation };
    typed(ActivationUnitWeights::new(device, &[], &last.view(), 0.0));
    if let Some(weights) = typed(ActivationUnitWeights::new(device, &[hidden], &last.view(), draw.real() as f32)) {
        let (n, m) = (draw.axis(4), draw.axis(9));
        let (a, b) = (draw.near(weights.dim()), draw.near(weights.dim()));
        let (candidates, behaviours) = (on(draw.singles((n, a))), on(draw.singles((m, b))));
        let mut offsets: Vec<usize> = (0..draw.near(n + 1)).map(|_| draw.below(m + 1)).collect();
        if draw.flag() {
            offsets.sort_unstable();
            if let [first, .., last] = &mut offsets[..] {
                (*first, *last) = (0, m);
            }
        } else if let Some(last) = offsets.last_mut() {
            *last = draw.number();
        }
        let options = ActivationUnitOptions::new().weights();
        let options = if draw.flag() { options.softmax(draw.real() as f32) } else { options };
        if let Some(found) = typed(local_activation_unit(&candidates, &behaviours, &offsets, &weights, &options)) {
            assert!(finite(&found.output) && found.output.shape() == [n, weights.dim()]);
        }
    }
    let channels = draw.axis(8);
    let (each, kernel, groups) = (draw.axis(3), draw.axis(5), draw.small_number());
    let convolution = draw.singles((channels, each, kernel));
    let mut list = |n: usize| -> Array1<f32> {
        let n = draw.near(n);
        draw.singles(n)
    };
    let (bias, gamma, beta) = (list(channels), list(channels), list(channels));
    let bias = bias.view();
    let bias = draw.flag().then_some(&bias);
    if let Some(weights) =
        typed(ElaWeights::new(device, &convolution.view(), bias, &gamma.view(), &beta.view(), groups))
    {
        typed(weights.clone().epsilon(draw.real() as f32));
        let (batch, height, width) = (draw.axis(2), draw.axis(5), draw.axis(5));
        let channels = draw.near(weights.channels());
        let x = on(draw.singles((batch, channels, height, width)));
        if let Some(found) = typed(efficient_local_attention(&x, &weights)) {
            assert!(finite(&found) && found.shape() == x.shape());
        }
    }
    for variant in [ElaVariant::Tiny, ElaVariant::Base, ElaVariant::Small, ElaVariant::Large] {
        variant.sizes(draw.number());
    }
}

fn distribution(draw: &mut Draw<'_>) {
    let dim = draw.axis(6);
    let n = draw.axis(9);
    let rows = draw.array((n, dim));
    let count = draw.near(n);
    let weights = draw.array(count);
    let direction = draw.array(dim);
    let kappa = if draw.flag() { draw.real() } else { MAX_KAPPA * draw.unit().abs() };
    let single = on(rows.mapv(|x| x as f32));
    let made = [
        Vmf::new(direction.view(), kappa),
        Vmf::fit(&on(rows.clone())),
        Vmf::fit(&single),
        Vmf::fit(&on(rows.mapv(f16::from_f64))),
        Vmf::fit_weighted(&on(rows.clone()), weights.view()),
        Vmf::fit_in(&single, Some(weights.view()), Precision::Extended),
    ];
    for vmf in made.into_iter().filter_map(typed) {
        models::check_vmf(&vmf);
        let mut into = Array2::zeros((2, draw.near(dim)));
        let mut rng: rand_chacha::ChaCha8Rng = rand::SeedableRng::seed_from_u64(1);
        typed(vmf.sample_into(&mut into.view_mut(), &mut rng));
        typed(vmf.log_density(&single));
        typed(vmf.log_density_in(&single, Precision::Single));
        if let Some(other) = typed(Vmf::new(direction.view(), draw.real())) {
            assert!(typed(vmf.kl_divergence(&other)).is_none_or(|kl| kl >= 0.0));
        }
    }
    let kappas = on(weights.clone());
    typed(log_density_pairs(&on(rows.clone()), &on(rows.clone()), &kappas));
    typed(VmfStats::new(draw.below(3)));
    if let Some(mut stats) = typed(VmfStats::new(dim)) {
        typed(stats.push(rows.view()));
        typed(stats.push_weighted(rows.view(), weights.view()));
        // Rows of stride 0.
        typed(stats.push(direction.broadcast((n, dim)).unwrap()));
        assert_eq!(stats.count() == 0, stats.weight() == 0.0);
        models::check_stats(stats);
    }
    typed(VmfStats::from_rows(&single, None, Precision::Extended));
    typed(VmfStats::from_source(&Source(rows.mapv(|x| x as f32))));
    let length = draw.unit().abs();
    let dim = 2 + draw.number() % 100_000;
    let kappa = solve_kappa(dim, Resultant::new(length));
    assert!((0.0..=MAX_KAPPA).contains(&kappa), "kappa {kappa} of d {dim} and R {length}");
    // Out of the domain: anything, but no panic.
    solve_kappa(draw.number(), Resultant { length: draw.real(), complement: draw.real() });
}

/// Rows as a file has them.
struct Source(Array2<f32>);

impl orthant::vmf::RowSource for Source {
    fn rows(&self) -> usize {
        self.0.nrows()
    }

    fn dim(&self) -> usize {
        self.0.ncols()
    }

    fn read(&self, first: usize, mut into: ndarray::ArrayViewMut2<'_, f32>) -> orthant::Result<()> {
        let end = first + into.nrows();
        into.assign(&self.0.slice(ndarray::s![first..end, ..]));
        Ok(())
    }
}

fn mixture(draw: &mut Draw<'_>) {
    let dim = draw.axis(5);
    let rows = rows(draw, 30, dim);
    let tensor = on(rows.clone());
    let mut options = MixtureOptions::new(draw.small_number()).seed(1).max_iterations(draw.below(6));
    options = options.hard(draw.flag()).starts(draw.below(3)).tied_kappa(draw.flag());
    if draw.flag() {
        options = options.tolerance(draw.real()).max_kappa(draw.real()).min_weight(draw.real());
    }
    if draw.flag() {
        options = options.batch(Some(draw.number()));
    }
    let options = options.progress(|_, _| {});
    assert!(!format!("{options:?}").is_empty());
    let count = draw.near(rows.nrows());
    let weights = draw.array(count);
    let source = Source(rows);
    let made = [
        VmfMixture::fit(&tensor, &options),
        VmfMixture::fit_weighted(&tensor, weights.view(), &options),
        VmfMixture::fit_source(&Device::Cpu, &source, &options),
        VmfMixture::fit(&tensor, &MixtureOptions::new(draw.number())),
    ];
    for mixture in made.into_iter().filter_map(typed) {
        models::check_mixture(&mixture);
        typed(mixture.predict_source(&Device::Cpu, &source, &mut |_, _| Ok(())));
        typed(mixture.score_source(&Device::Cpu, &source, &mut |_, _| Ok(())));
        let other = draw.near(dim);
        let other = on(draw.singles((3, other)));
        typed(mixture.predict(&other));
        typed(mixture.responsibilities(&other));
        typed(mixture.score(&other));
    }
}

fn rope(draw: &mut Draw<'_>) -> Rope {
    let layout = draw.of(&[RopeLayout::Halves, RopeLayout::Adjacent]);
    let dims = if draw.once_in(4) { draw.small_number() } else { 2 };
    let made = match draw.below(3) {
        0 => Ok(Rope::none()),
        1 => Rope::of_frequencies(layout, draw.elements(dims / 2)),
        _ => Rope::new(layout, dims, if draw.flag() { 1e4 } else { draw.real() }),
    };
    let made = typed(made).unwrap_or_else(Rope::none);
    let scaling = match draw.below(3) {
        0 => RopeScaling::Linear(draw.real()),
        _ => RopeScaling::Llama3 {
            factor: draw.real(),
            low_frequency_factor: draw.real(),
            high_frequency_factor: draw.real(),
            original_context: draw.real(),
        },
    };
    let scaled = typed(made.clone().scaled(scaling)).filter(|_| draw.flag()).unwrap_or(made);
    assert!(scaled.dims() == 2 * scaled.frequencies().len());
    scaled
}

fn frame(draw: &mut Draw<'_>) -> Frame {
    let frame = draw.of(&[
        Frame::Pre,
        Frame::Post,
        Frame::Block(3),
        Frame::Block(64),
        Frame::Block(usize::MAX),
        Frame::Block(0),
    ]);
    assert!(frame.to_string().parse::<Frame>().is_ok_and(|same| same == frame) || frame == Frame::Block(0));
    let _ = frame.block();
    frame
}

fn some_projections(draw: &mut Draw<'_>, layer: usize) -> Option<Projections> {
    let (_, kv_heads) = heads(draw);
    let d = draw.axis(6);
    let of_heads = if draw.once_in(20) { draw.number() } else { kv_heads };
    let mut out = typed(Projections::new(of_heads, d, rope(draw), frame(draw)))?;
    let set = |draw: &mut Draw<'_>| -> Option<Vec<Basis>> {
        let joint = draw.flag();
        let (count, heads) = if joint { (1, kv_heads) } else { (kv_heads, 1) };
        (0..count)
            .map(|_| {
                let width = draw.near(heads * d);
                let rank = 1 + draw.below(width.max(1));
                let (mean, down) = (draw.singles(width), draw.singles((width, rank)));
                let rank = draw.near(rank);
                let up = draw.singles((rank, width));
                typed(Basis::orthogonal(heads, mean.clone(), up.clone()));
                typed(Basis::new(if draw.once_in(20) { draw.number() } else { heads }, mean, down, up))
            })
            .collect()
    };
    let (keys, values) = (set(draw)?, set(draw)?);
    out = typed(out.with_layer(layer, keys, values))?;
    Some(out)
}

fn cache_options(draw: &mut Draw<'_>) -> CacheOptions {
    let bits = [draw.of(&LatentBits::ALL), draw.of(&LatentBits::ALL)];
    typed(LatentBits::new(draw.byte().into()));
    assert!(bits[0].count() > 0 && (bits[0].quantised() || bits[0].count() > 8));
    let window = if draw.once_in(8) { draw.number() } else { draw.of(&[0, 5, 32, 40]) };
    let sinks = if draw.once_in(8) { draw.number() } else { draw.below(8) };
    let options = CacheOptions::new().bits(bits[0], bits[1]).sinks(sinks);
    // A window of 2^20 tokens is allowed, and would be had.
    let options = options.window(if window > 1000 && window <= 1 << 20 { 32 } else { window });
    let options = options.exact(draw.of(&[ExactType::Half, ExactType::Single]));
    if draw.once_in(5) { options.capacity(draw.number() as u64) } else { options }
}

fn cache(draw: &mut Draw<'_>) {
    let options = cache_options(draw);
    let (rank, d) = (draw.small_number(), draw.small_number());
    let block = draw.flag().then(|| draw.small_number());
    let made = if draw.flag() {
        // It does not check blocks: tests alone call it.
        KvCache::of_leading_channels(&Device::Cpu, (1, d), rank, block.map(|block| block.max(1)), &options)
    } else {
        let Some(projections) = some_projections(draw, 0) else { return };
        indexes::check_projections(&projections);
        assert!(projections.ranks().total() > 0 && projections.ranks().layers().eq([0]));
        typed(projections.with_rank(draw.number()));
        let ranks = Ranks::new().with_layer(draw.below(2), vec![draw.number()], vec![1]);
        typed(projections.with_ranks(&ranks));
        KvCache::new(&Device::Cpu, &projections, &options)
    };
    let Some(mut cache) = typed(made) else { return };
    let Some(a) = typed(cache.insert()) else { return };
    let mut all = vec![a];
    // What a cache was not given it does not take.
    let (mut heads, mut width) = (1, d);
    for step in 0..6 {
        let n = draw.below(50);
        let sequence = draw.of(&all);
        match draw.below(8) {
            0 => all.extend(typed(cache.insert())),
            1 => all.extend(typed(cache.fork(sequence))),
            2 => drop(typed(cache.truncate(sequence, if draw.flag() { draw.number() } else { n }))),
            3 => drop(typed(cache.remove(sequence))),
            4 => drop(typed(cache.clear(sequence))),
            _ => {
                let of = |draw: &mut Draw<'_>| on(draw.singles((1, heads, n, width)));
                let (k, v) = (of(draw), of(draw));
                let added = if draw.flag() {
                    cache.append(0, &[sequence], &k, &v)
                } else {
                    cache.append_without_wait(0, &[sequence], &k, &v)
                };
                if let Err(orthant::Error::Shape { expected, .. }) = &added {
                    let numbers: Vec<usize> =
                        expected.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse().ok()).collect();
                    if let [_, of_heads, _, d, ..] = numbers[..] {
                        (heads, width) = (of_heads, d);
                    }
                }
                typed(added);
            }
        }
        let mut asking = AttendOptions::new().lse();
        if draw.flag() {
            asking = asking.causal();
        }
        if draw.once_in(4) {
            asking = asking.scale(draw.real() as f32);
        }
        let q_len = draw.below(3);
        let q = on(draw.singles((1, heads * (1 + step % 2), q_len, width)));
        if let Some(found) = typed(cache.attend(0, &[sequence], &q, &asking)) {
            assert!(finite(&found.output) && found.output.shape() == q.shape());
        }
        typed(cache.len(0, sequence));
    }
    typed(cache.len(draw.number(), a));
    let zeros = on(Array4::<f32>::zeros((2, heads, 1, width)));
    typed(cache.append(0, &[a, a], &zeros, &zeros));
    let left: Vec<_> = cache.sequences().collect();
    left.into_iter().for_each(|sequence| cache.remove(sequence).unwrap());
    assert!(cache.is_empty() && cache.bytes() == 0 && cache.device().is_cpu());
}

fn calibration(draw: &mut Draw<'_>) {
    let (q_heads, kv_heads) = heads(draw);
    let d = draw.axis(5);
    let sizes = if draw.once_in(12) { (draw.number(), draw.number(), d) } else { (q_heads, kv_heads, d) };
    let Some(calibration) = typed(Calibration::new(sizes, rope(draw), frame(draw))) else { return };
    let mut calibration = calibration.sinks(if draw.once_in(4) { draw.number() } else { draw.below(5) });
    let layer = draw.number();
    for _ in 0..2 {
        let (batch, n) = (draw.axis(2), draw.axis(12));
        let of = |draw: &mut Draw<'_>, heads: usize| on(draw.singles((batch, heads, n, d)));
        let (q, k, v) = (of(draw, q_heads), of(draw, kv_heads), of(draw, kv_heads));
        let count = draw.near(batch);
        let starts: Vec<usize> =
            (0..count).map(|_| if draw.once_in(4) { draw.number() } else { draw.below(90) }).collect();
        if draw.flag() {
            typed(calibration.add(layer, &starts, &q, &k, &v));
        } else {
            typed(calibration.add_unrotated(layer, &starts, &q, &k, &v));
        }
        let width = draw.axis(4);
        let x: Array3<f32> = draw.singles((batch, n, width));
        typed(calibration.add_inputs(layer, &on(x)));
        let rows = draw.near(kv_heads * d);
        let weights = draw.singles((rows, width));
        typed(calibration.input_weights(layer, &weights.view(), &weights.view()));
        let columns = draw.near(q_heads * d);
        typed(calibration.output_weights(layer, &draw.singles((width, columns)).view()));
    }
    let ways = [Weighting::Pca, Weighting::Query, Weighting::Asvd];
    let options = ProjectionOptions::new().weighting(draw.of(&ways), draw.of(&ways)).centred(draw.flag());
    let options = if draw.flag() { options.joint(draw.number(), draw.small_number()) } else { options };
    let options = if draw.flag() { options.alpha(draw.real()) } else { options };
    indexes::check_calibration(&calibration, &options);
    let copy = calibration.clone();
    typed(calibration.merge(&copy));
    indexes::check_calibration(&calibration, &options);
}

fn allocation(draw: &mut Draw<'_>) {
    let (layers, sides, heads) = (draw.axis(3), draw.near(2), draw.axis(3));
    let count = draw.axis(5);
    let ranks: Vec<usize> = match draw.below(4) {
        0 => (0..count).map(|_| draw.number()).collect(),
        _ => (1..=draw.near(count)).map(|i| 2 * i).collect(),
    };
    let errors = draw.array((layers, sides, heads, count)).mapv(|x| if draw.once_in(9) { x } else { x.abs() });
    let bits = [draw.of(&LatentBits::ALL), draw.of(&LatentBits::ALL)];
    let budget = match draw.below(3) {
        0 => Budget::Kept(draw.real()),
        1 => Budget::Kept(0.5),
        _ => Budget::PageBytes { bytes: draw.number() as u64, key_bits: bits[0], value_bits: bits[1] },
    };
    if let Some(found) = typed(allocate(errors.view(), &ranks, budget)) {
        assert_eq!(found.ranks.len(), layers * 2 * heads);
        assert!(found.ranks.iter().all(|rank| ranks.contains(rank)));
        let numbers: Vec<usize> = (0..draw.near(layers)).collect();
        let of_layers = found.ranks_of(&numbers);
        of_layers.of(0, orthant::kv::Side::Keys);
        assert_eq!(orthant::kv::Side::Keys.name(), "keys");
    }
    let variances = draw.elements(count);
    typed(allocate_bits(&variances, &bits, draw.number() as u64));
    let Some(projections) = some_projections(draw, 2) else { return };
    let (kv, d) = (projections.kv_heads(), projections.head_dim());
    if kv > 8 {
        return;
    }
    let tokens = draw.axis(50);
    let q_heads = draw.near(kv);
    let positions: Vec<usize> = (0..draw.below(3)).map(|_| draw.below(tokens + 1)).collect();
    let keys: Array3<f32> = draw.singles((kv, tokens, d));
    let d_v = draw.near(d);
    let values: Array3<f32> = draw.singles((kv, tokens, d_v));
    let queries: Array3<f32> = draw.singles((q_heads, positions.len(), d));
    let layer = draw.of(&[2, 2, 2, 3]);
    let Some(activations) = typed(Activations::new(layer, keys, values, queries, positions)) else { return };
    assert_eq!((activations.layer(), activations.dim()), (layer, (kv, tokens, d)));
    typed(activations.clone().output_gram(draw.array((kv, d, d))));
    let options = cache_options(draw);
    if let Some(found) = typed(orthant::kv::evaluate(&Device::Cpu, &projections, &activations, &options)) {
        assert!(!found.relative_error().is_nan() && !Evaluation::joint_relative_error(&[found]).is_nan());
    }
    typed(error_table(&Device::Cpu, &projections, &activations, &options, &[draw.small_number(), draw.small_number()]));
}
