//! One small job of every family, whose result is words: the same on every run of one device, bit for bit.

use ndarray::{Array1, Array2, Array4, Axis, Slice, arr0};
use orthant::attention::{Options, attention, attention_backward, merge_attention};
use orthant::hamming::{Binarizer, Codes, Index, Mask, SearchOptions, binarize};
use orthant::knn::{self, Metric};
use orthant::kv::{
    AttendOptions, Basis, CacheOptions, ExactType, Frame, KvCache, LatentBits, Projections, Rope, RopeLayout,
};
use orthant::vmf::{MixtureOptions, Vmf, VmfMixture};
use orthant::{Device, Error, Result, Tensor, kernels};

/// What a family's job gives.
pub type Words = Vec<u32>;

/// A family and its job.
pub type Family = (&'static str, fn(&Device) -> Result<Words>);

/// All of them.
pub const FAMILIES: [Family; 9] = [
    ("bessel", bessel),
    ("extended", extended),
    ("matrix", matrix),
    ("vmf", vmf),
    ("mixture", mixture),
    ("attention", dense_attention),
    ("kv", cache),
    ("hamming", hamming),
    ("knn", neighbours),
];

/// Those with few shaders: every device opened anew compiles its own.
pub const SMALL: [Family; 4] = [("bessel", bessel), ("matrix", matrix), ("vmf", vmf), ("knn", neighbours)];

/// Repeatable values in [-1, 1).
pub fn noise(seed: u64, index: usize) -> f32 {
    let mut state = (seed * 1_000_003 + index as u64).wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
    state ^= state >> 29;
    state = state.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
}

pub fn matrix_of(seed: u64, rows: usize, columns: usize) -> Array2<f32> {
    Array2::from_shape_fn((rows, columns), |(i, j)| noise(seed, i * columns + j))
}

pub fn four(seed: u64, shape: [usize; 4]) -> Array4<f32> {
    let [_, b, c, d] = shape;
    Array4::from_shape_fn(shape, |(i, j, k, l)| noise(seed, ((i * b + j) * c + k) * d + l))
}

fn bits<D: ndarray::Dimension>(words: &mut Words, tensor: &Tensor<f32, D>) -> Result<()> {
    words.extend(tensor.to_array()?.iter().map(|x| x.to_bits()));
    Ok(())
}

fn wide(words: &mut Words, value: f64) {
    words.extend([value.to_bits() as u32, (value.to_bits() >> 32) as u32]);
}

fn bessel(device: &Device) -> Result<Words> {
    let mut words = Words::new();
    let order = device.tensor(&Array1::from_shape_fn(700, |i| (i % 40) as f32))?;
    let x = device.tensor(&Array1::from_shape_fn(700, |i| 0.1 + i as f32))?;
    bits(&mut words, &kernels::log_iv(&order, &x)?)?;
    bits(&mut words, &kernels::iv_ratio(&device.tensor(&arr0(2.0f32))?, &kernels::iv_ratio(&order, &x)?)?)?;
    Ok(words)
}

/// Pairs of f32, where the adapter has arithmetic for them.
fn extended(device: &Device) -> Result<Words> {
    let mut words = Words::new();
    match kernels::column_sums_extended(&device.tensor(&matrix_of(30, 300, 5))?) {
        Err(Error::Unsupported { .. }) => {}
        sums => sums?.iter().for_each(|x| wide(&mut words, *x)),
    }
    Ok(words)
}

fn matrix(device: &Device) -> Result<Words> {
    let mut words = Words::new();
    let (a, b) = (device.tensor(&matrix_of(1, 70, 33))?, device.tensor(&matrix_of(2, 33, 20))?);
    let product = kernels::matmul(&a, &b, false, false)?;
    let (unit, norms) = kernels::normalize_rows(&product, None)?;
    bits(&mut words, &kernels::matmul(&unit, &product, true, false)?)?;
    bits(&mut words, &kernels::column_sums(&unit)?)?;
    bits(&mut words, &norms)?;
    // Split over a long sum.
    let long = device.tensor(&matrix_of(3, 3000, 3))?;
    bits(&mut words, &kernels::matmul(&long, &long, true, false)?)?;
    Ok(words)
}

fn vmf(device: &Device) -> Result<Words> {
    let mut words = Words::new();
    let rows = device.tensor(&matrix_of(4, 200, 12).mapv(|x| x + 0.4))?;
    let fitted = Vmf::fit(&rows)?;
    wide(&mut words, fitted.kappa());
    fitted.mean_direction().iter().for_each(|x| wide(&mut words, *x));
    bits(&mut words, &fitted.log_density(&rows)?)?;
    Ok(words)
}

fn mixture(device: &Device) -> Result<Words> {
    let mut words = Words::new();
    let rows = Array2::from_shape_fn((150, 6), |(i, j)| noise(5, i * 6 + j) * 0.3 + f32::from(u8::from(i % 3 == j)));
    let rows = device.tensor(&rows)?;
    let fitted = VmfMixture::fit(&rows, &MixtureOptions::new(3).seed(1).max_iterations(3))?;
    wide(&mut words, fitted.log_likelihood());
    fitted.components().iter().for_each(|component| wide(&mut words, component.kappa));
    words.extend(fitted.predict(&rows)?.to_array()?);
    bits(&mut words, &fitted.responsibilities(&rows)?)?;
    Ok(words)
}

fn dense_attention(device: &Device) -> Result<Words> {
    let mut words = Words::new();
    let q = device.tensor(&four(6, [1, 4, 9, 8]))?;
    let (k, v) = (four(7, [1, 2, 90, 8]), four(8, [1, 2, 90, 8]));
    let bias = device.tensor(&four(9, [1, 1, 9, 90]))?;
    let options = Options::new().causal().softcap(3.0).bias(bias).sinks(vec![0.1, 0.2, 0.3, 0.4]).lse().splits(2);
    let (keys, values) = (device.tensor(&k)?, device.tensor(&v)?);
    let output = attention(&q, &keys, &values, &options)?;
    bits(&mut words, &output.output)?;
    let gradients = attention_backward(&q, &keys, &values, &output, &q, &options)?;
    for gradient in [&gradients.q, &gradients.k, &gradients.v] {
        bits(&mut words, gradient)?;
    }
    let part = |range: std::ops::Range<usize>| {
        let part = |x: &Array4<f32>| device.tensor(&x.slice_axis(Axis(2), Slice::from(range.clone())));
        attention(&q, &part(&k)?, &part(&v)?, &Options::new().lse())
    };
    let merged = merge_attention(&[part(0..40)?, part(40..90)?])?;
    bits(&mut words, &merged.output)?;
    Ok(words)
}

/// A cache of two layers, 0 and 1, of two heads of 12 elements.
pub fn two_layers(device: &Device) -> Result<KvCache> {
    let rope = Rope::new(RopeLayout::Halves, 12, 1e4)?;
    let mut projections = Projections::new(2, 12, rope, Frame::Block(32))?;
    for (layer, rank) in [(0, 5), (1, 9)] {
        let basis = |seed: u64| {
            let mut up = matrix_of(seed, rank, 12);
            up.rows_mut().into_iter().for_each(|mut row| row /= row.dot(&row).sqrt());
            Basis::new(
                1,
                Array1::from_shape_fn(12, |i| noise(seed + 50, i)),
                up.t().as_standard_layout().into_owned(),
                up,
            )
        };
        let side = |seed| (0..2).map(|head| basis(seed + head)).collect::<Result<Vec<_>>>();
        projections = projections.with_layer(layer, side(100 + 10 * layer as u64)?, side(105 + 10 * layer as u64)?)?;
    }
    let options = CacheOptions::new().bits(LatentBits::Eight, LatentBits::Four).exact(ExactType::Single);
    KvCache::new(device, &projections, &options)
}

fn cache(device: &Device) -> Result<Words> {
    let mut words = Words::new();
    let mut cache = two_layers(device)?;
    let one = cache.insert()?;
    for (layer, count) in [(0, 100), (1, 100), (0, 30)] {
        let rows = |seed| device.tensor(&four(seed, [1, 2, count, 12]));
        cache.append(layer, &[one], &rows(11)?, &rows(12)?)?;
    }
    let two = cache.fork(one)?;
    cache.truncate(two, 50)?;
    let step = |seed| device.tensor(&four(seed, [2, 2, 1, 12]));
    cache.append_without_wait(0, &[one, two], &step(13)?, &step(14)?)?;
    for (layer, q_len) in [(0, 1), (1, 7)] {
        let q = device.tensor(&four(15, [2, 4, q_len, 12]))?;
        let output = cache.attend(layer, &[one, two], &q, &AttendOptions::new().causal().lse())?;
        bits(&mut words, &output.output)?;
        output.lse.iter().try_for_each(|lse| bits(&mut words, lse))?;
    }
    Ok(words)
}

/// An index of 500 codes of 64 bits, added in two parts.
pub fn index(device: &Device) -> Result<Index> {
    let mut index = Index::new(device, 64)?;
    for seed in [16, 17] {
        index.add(&codes(device, seed, 250)?)?;
    }
    Ok(index)
}

pub fn codes(device: &Device, seed: u64, count: usize) -> Result<Codes> {
    let words = Array2::from_shape_fn((count, 2), |(i, j)| noise(seed, 2 * i + j).to_bits().wrapping_mul(0x9e37_79b1));
    Codes::new(device.tensor(&words)?, 64)
}

fn hamming(device: &Device) -> Result<Words> {
    let mut words = Words::new();
    let index = index(device)?;
    let queries = codes(device, 18, 7)?;
    let options = SearchOptions::new(9).allowed(&Mask::new((0..500).map(|id| id % 3 != 1)));
    let found = index.search(&queries, &options)?;
    words.extend(found.ids.to_array()?);
    words.extend(found.distances.to_array()?);
    let found = index.within(&queries, 27, None)?;
    words.extend(found.ids.to_array()?);
    let found = index.search_jaccard(&queries, &SearchOptions::new(5))?;
    words.extend(found.ids.to_array()?);
    let rows = device.tensor(&matrix_of(19, 90, 64))?;
    words.extend(binarize(&rows, &Binarizer::hyperplanes(64, 64, 3)?)?.words().to_array()?);
    words.extend(kernels::hamming(&queries, &queries)?.to_array()?.iter().map(|x| u32::from(*x)));
    Ok(words)
}

fn neighbours(device: &Device) -> Result<Words> {
    let (base, queries) = (device.tensor(&matrix_of(20, 300, 10))?, device.tensor(&matrix_of(21, 8, 10))?);
    let found = knn::search(&base, &queries, 5, Metric::Cosine)?;
    Ok(found.ids.iter().copied().chain(found.distances.iter().map(|x| x.to_bits())).collect())
}
