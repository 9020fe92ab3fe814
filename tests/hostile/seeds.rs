//! Small files, all valid, that mutations begin from; made here, for a committed one would go stale.
#![allow(dead_code, reason = "the fuzz targets use the rest")]

use std::io::{Cursor, Write};

use half::f16;
use ndarray::{Array1, Array2, Array3, Array4, array};
use orthant::Device;
use orthant::hamming::{Binarizer, Codes, Index};
use orthant::kv::{
    Basis, CacheOptions, Calibration, ExactType, Frame, KvCache, LatentBits, ProjectionOptions, Projections, Rope,
    RopeLayout, Weighting,
};
use orthant::vmf::{MixtureOptions, Vmf, VmfMixture, VmfStats};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use super::files::Scratch;

/// What came of `save` to a file.
fn saved(save: impl FnOnce(&std::path::Path) -> orthant::Result<()>) -> Vec<u8> {
    let file = Scratch::new("seed");
    save(file.path()).unwrap();
    std::fs::read(file.path()).unwrap()
}

/// Numbers between -1 and 1 that look like no pattern.
pub fn number(i: usize) -> f32 {
    ((i as f32 + 1.0) * 0.618_034).fract() * 2.0 - 1.0
}

pub fn rows(n: usize, dim: usize) -> Array2<f32> {
    Array2::from_shape_fn((n, dim), |(i, j)| number(i * dim + j))
}

/// A .npy of that header and those bytes.
pub fn npy_of(descr: &str, fortran: bool, shape: &str, bytes: &[u8]) -> Vec<u8> {
    let order = if fortran { "True" } else { "False" };
    let mut header = format!("{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}");
    header.push_str(&" ".repeat(63 - (10 + header.len()) % 64));
    header.push('\n');
    let mut file = b"\x93NUMPY\x01\x00".to_vec();
    file.extend_from_slice(&(header.len() as u16).to_le_bytes());
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(bytes);
    file
}

fn singles(n: usize) -> Vec<u8> {
    (0..n).flat_map(|i| number(i).to_le_bytes()).collect()
}

pub fn npy() -> Vec<Vec<u8>> {
    let halves: Vec<u8> = (0..6).flat_map(|i| f16::from_f32(number(i)).to_le_bytes()).collect();
    let doubles: Vec<u8> = (0..6).flat_map(|i| f64::from(number(i)).to_be_bytes()).collect();
    vec![
        npy_of("'<f4'", false, "(3, 4)", &singles(12)),
        npy_of("'<f4'", true, "(3, 4)", &singles(12)),
        npy_of("'<f2'", false, "(2, 3)", &halves),
        npy_of("'>f8'", false, "(2, 3)", &doubles),
        npy_of("'<u4'", false, "(3, 2)", &[7; 24]),
        npy_of("'|u1'", true, "(3, 4)", &[9; 12]),
        npy_of("'>i8'", false, "(2,)", &[0; 16]),
        npy_of("'|b1'", false, "(2,)", &[0; 2]),
        npy_of("[('a', '<f4', (2,)), ('b', '<i8')]", false, "(2,)", &[0; 32]),
    ]
}

/// Archives of those entries; `deflated` or as they are.
pub fn npz_of(entries: &[(&str, &[u8])], deflated: bool) -> Vec<u8> {
    let mut archive = npyz::zip::ZipWriter::new(Cursor::new(Vec::new()));
    let method = if deflated { npyz::zip::CompressionMethod::Deflated } else { npyz::zip::CompressionMethod::Stored };
    for (name, bytes) in entries {
        archive.start_file(*name, npyz::zip::write::FileOptions::default().compression_method(method)).unwrap();
        archive.write_all(bytes).unwrap();
    }
    archive.finish().unwrap().into_inner()
}

pub fn npz() -> Vec<Vec<u8>> {
    let [a, b] = [&npy()[0], &npy()[4]];
    vec![
        npz_of(&[("x.npy", a)], true),
        npz_of(&[("x.npy", a), ("arr_0.npy", b)], false),
        npz_of(&[("x.npy", a), ("arr_0.npy", b), ("about.txt", b"hello")], true),
    ]
}

pub fn csv() -> Vec<Vec<u8>> {
    [
        "a,b,c\n1,2,3\n4,5.5,-6e-3\n",
        "1,2\n3,4\n# so much\n\n5,6",
        "\"1\" , 2\r\n3,nan\r\n",
        "v\n1\n2\n",
        "\u{feff}1;2\n",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

/// A .safetensors of those tensors and notes.
pub fn safetensors_of(tensors: &[(&str, Dtype, &[usize], Vec<u8>)], notes: &[(&str, &str)]) -> Vec<u8> {
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        (*name, TensorView::new(*dtype, shape.to_vec(), bytes).expect("as long as its shape says"))
    });
    let notes = notes.iter().map(|(name, note)| (name.to_string(), note.to_string())).collect();
    safetensors::serialize(views, Some(notes)).unwrap()
}

pub fn safetensors() -> Vec<Vec<u8>> {
    let of = |shape: &[usize]| singles(shape.iter().product());
    let wide = |n: usize| (0..n).flat_map(|i| f64::from(number(i)).to_le_bytes()).collect::<Vec<u8>>();
    let eye =
        |n: usize| (0..n * n).flat_map(|i| f64::from(u8::from(i / n == i % n)).to_le_bytes()).collect::<Vec<u8>>();
    let layer = vec![
        ("k_post", Dtype::F32, &[1, 6, 2][..], of(&[1, 6, 2])),
        ("v", Dtype::F32, &[1, 6, 2][..], of(&[1, 6, 2])),
        ("q_post_last4", Dtype::F32, &[2, 4, 2][..], of(&[2, 4, 2])),
        ("wo_gram", Dtype::F64, &[1, 2, 2][..], eye(2)),
    ];
    let moments = vec![
        ("layer.3.k_pre", Dtype::F16, &[1, 3, 2][..], vec![60; 12]),
        ("layer.3.v", Dtype::F16, &[1, 3, 2][..], vec![61; 12]),
        ("layer.3.q_post", Dtype::F32, &[1, 3, 2][..], of(&[1, 3, 2])),
        ("layer.3.cal_k_pre_mom", Dtype::F64, &[2, 2][..], eye(2)),
        ("layer.3.cal_k_pre_mean", Dtype::F64, &[2][..], wide(2)),
        ("layer.3.cal_v_mom", Dtype::F64, &[2, 2][..], eye(2)),
        ("layer.3.cal_v_mean", Dtype::F64, &[2][..], wide(2)),
        ("layer.3.cal_q_rel_mom", Dtype::F64, &[1, 2, 2][..], eye(2)),
    ];
    vec![
        safetensors_of(&[("x", Dtype::F32, &[3, 4], of(&[3, 4]))], &[]),
        safetensors_of(&[("x", Dtype::U32, &[3, 2], vec![5; 24]), ("i", Dtype::I64, &[2], vec![0; 16])], &[("a", "b")]),
        safetensors_of(&layer, &[("layer", "2"), ("rope", "rotate-half, theta 1e5")]),
        safetensors_of(&moments, &[("rope", "adjacent, theta = 10000")]),
    ]
}

pub fn vmf() -> Vmf {
    Vmf::fit(&Device::Cpu.tensor_from(rows(8, 3)).unwrap()).unwrap()
}

pub fn mixture() -> VmfMixture {
    let rows = Device::Cpu.tensor_from(rows(24, 3)).unwrap();
    VmfMixture::fit(&rows, &MixtureOptions::new(2).max_iterations(5)).unwrap()
}

/// Of models: a distribution given and one fitted, a mixture, statistics, and one with a centre.
pub fn models() -> Vec<Vec<u8>> {
    let given = Vmf::new(array![0.6, 0.8].view(), 3.0).unwrap();
    let mut stats = VmfStats::new(3).unwrap();
    stats.push(rows(5, 3).view()).unwrap();
    let mut centred: serde_json::Value = serde_json::to_value(vmf()).unwrap();
    centred["center"] = serde_json::json!([0.25, -0.5, 0.125]);
    vec![
        serde_json::to_vec(&given).unwrap(),
        serde_json::to_vec(&vmf()).unwrap(),
        saved(|path| mixture().save(path)),
        serde_json::to_vec(&stats).unwrap(),
        serde_json::to_vec(&centred).unwrap(),
    ]
}

pub fn codes(n: usize, bits: usize) -> Codes {
    let flags = Array2::from_shape_fn((n, bits), |(i, j)| number(i * bits + j) > 0.0);
    Codes::pack(&Device::Cpu, &flags.view()).unwrap()
}

/// One with ids removed, or not.
pub fn index(removed: bool) -> Index {
    let mut index = Index::new(&Device::Cpu, 32).unwrap().with_first_id(1000);
    index.add(&codes(5, 32)).unwrap();
    if removed {
        index.remove(&[1, 3]).unwrap();
    }
    index
}

pub fn indices() -> Vec<Vec<u8>> {
    let more = {
        let mut index = index(true);
        index.add(&codes(70, 32)).unwrap();
        index
    };
    let empty = Index::new(&Device::Cpu, 64).unwrap();
    [index(false), index(true), more, empty].map(|index| saved(|path| index.save(path))).to_vec()
}

pub fn binarizers() -> Vec<Vec<u8>> {
    let rows = Device::Cpu.tensor_from(rows(6, 32)).unwrap();
    [Binarizer::sign(40, 32).unwrap(), Binarizer::hyperplanes(3, 32, 1).unwrap(), Binarizer::median(&rows, 32).unwrap()]
        .map(|binarizer| binarizer.to_bytes().unwrap())
        .to_vec()
}

pub const HEADS: (usize, usize, usize) = (2, 1, 4);

pub fn rope() -> Rope {
    Rope::new(RopeLayout::Halves, 4, 1e4).unwrap()
}

pub fn projections() -> Projections {
    let (_, kv_heads, d) = HEADS;
    let basis = || {
        let turn = |i: usize, j: usize| match (i, j) {
            (0, 0) | (1, 1) => 0.6,
            (0, 1) => 0.8,
            (1, 0) => -0.8,
            _ => f32::from(u8::from(i == j)),
        };
        Basis::orthogonal(1, Array1::from_elem(d, 0.25), Array2::from_shape_fn((3, d), |(i, j)| turn(i, j))).unwrap()
    };
    let sets = || (0..kv_heads).map(|_| basis()).collect();
    Projections::new(kv_heads, d, rope(), Frame::Pre).unwrap().with_layer(5, sets(), sets()).unwrap()
}

fn tokens(heads: usize, n: usize) -> Array4<f32> {
    let d = HEADS.2;
    Array4::from_shape_fn((1, heads, n, d), |(_, h, t, i)| number((h * n + t) * d + i))
}

pub fn calibration() -> Calibration {
    let on = |array: Array4<f32>| Device::Cpu.tensor_from(array).unwrap();
    let (q_heads, kv_heads, _) = HEADS;
    let mut calibration = Calibration::new(HEADS, rope(), Frame::Pre).unwrap();
    let (q, k, v) = (on(tokens(q_heads, 12)), on(tokens(kv_heads, 12)), on(tokens(kv_heads, 12)));
    calibration.add(5, &[0], &q, &k, &v).unwrap();
    let x = Array3::from_shape_fn((1, 12, 6), |(_, t, i)| number(t * 6 + i));
    calibration.add_inputs(5, &Device::Cpu.tensor_from(x).unwrap()).unwrap();
    let weights = Array2::from_shape_fn((4, 6), |(i, j)| number(i * 6 + j));
    calibration.input_weights(5, &weights.view(), &weights.view()).unwrap();
    calibration.output_weights(5, &Array2::from_shape_fn((6, 8), |(i, j)| number(i * 8 + j)).view()).unwrap();
    calibration
}

/// The kinds of caches whose files are tried.
pub fn caches() -> Vec<KvCache> {
    let options = [
        CacheOptions::new().window(32).sinks(2),
        CacheOptions::new()
            .bits(LatentBits::Sixteen, LatentBits::ThirtyTwo)
            .window(0)
            .sinks(0)
            .exact(ExactType::Single),
        CacheOptions::new().bits(LatentBits::Two, LatentBits::Eight).window(32).sinks(0),
    ];
    options.iter().map(|options| KvCache::new(&Device::Cpu, &projections(), options).unwrap()).collect()
}

pub fn cache_files() -> Vec<Vec<u8>> {
    caches()
        .into_iter()
        .map(|mut cache| {
            let on = |array: Array4<f32>| Device::Cpu.tensor_from(array).unwrap();
            let (a, _) = (cache.insert().unwrap(), cache.insert().unwrap());
            cache.append(5, &[a], &on(tokens(1, 70)), &on(tokens(1, 70))).unwrap();
            cache.fork(a).unwrap();
            saved(|path| cache.save(path))
        })
        .collect()
}

pub fn projection_files() -> Vec<Vec<u8>> {
    let options = ProjectionOptions::new().weighting(Weighting::Pca, Weighting::Pca).centred(true);
    [projections(), calibration().projections(&options).unwrap()].map(|it| it.to_bytes().unwrap()).to_vec()
}

pub fn calibration_files() -> Vec<Vec<u8>> {
    vec![saved(|path| calibration().save(path))]
}

/// Weights as MatryoshkaKV and CSKV train them.
pub fn trained() -> Vec<Vec<u8>> {
    let d = HEADS.2;
    let of = |shape: &[usize]| singles(shape.iter().product());
    let name = |what: &str| format!("model.layers.0.self_attn.{what}");
    let names = ["key_unitary_transform_weights", "value_unitary_transform_weights", "mean_key_weights"].map(name);
    let matryoshka: Vec<(&str, Dtype, &[usize], Vec<u8>)> = vec![
        (&names[0], Dtype::F32, &[1, 4, 4], of(&[1, 4, 4])),
        (&names[1], Dtype::F32, &[1, 4, 4], of(&[1, 4, 4])),
        (&names[2], Dtype::F32, &[1, 4], of(&[1, 4])),
    ];
    let factors =
        ["k_proj_a", "k_proj_b", "v_proj_a", "v_proj_b", "v_proj"].map(|what| name(&format!("{what}.weight")));
    let cskv: Vec<(&str, Dtype, &[usize], Vec<u8>)> = vec![
        (&factors[0], Dtype::F32, &[6, 5], of(&[6, 5])),
        (&factors[1], Dtype::F32, &[4, 2], of(&[4, 2])),
        (&factors[2], Dtype::F32, &[2, 5], of(&[2, 5])),
        (&factors[3], Dtype::F32, &[4, 2], of(&[4, 2])),
        (&factors[4], Dtype::F32, &[4, 5], of(&[4, 5])),
    ];
    assert_eq!(d, 4);
    vec![safetensors_of(&matryoshka, &[]), safetensors_of(&cskv, &[])]
}

/// Weights of an interacting layer, an activation unit and an ELA, under one name.
pub fn weights() -> Vec<Vec<u8>> {
    let of = |shape: &[usize]| singles(shape.iter().product());
    let tensor = |name: &'static str, shape: &'static [usize]| (name, Dtype::F32, shape, of(shape));
    let interacting = ["l.W_query", "l.W_key", "l.W_value", "l.W_res"].map(|name| tensor(name, &[3, 4]));
    let unit = [
        tensor("l.W1", &[8, 3]),
        tensor("l.b1", &[3]),
        tensor("l.alpha1", &[3]),
        tensor("l.mean1", &[3]),
        ("l.variance1", Dtype::F32, &[3][..], [1f32; 3].iter().flat_map(|x| x.to_le_bytes()).collect()),
        tensor("l.W2", &[3, 1]),
        tensor("l.b2", &[1]),
    ];
    let ela = |kernel: &'static [usize]| {
        [tensor("l.conv.weight", kernel), tensor("l.gn.weight", &[32]), tensor("l.gn.bias", &[32])]
    };
    vec![
        safetensors_of(&interacting, &[]),
        safetensors_of(&unit, &[]),
        safetensors_of(&ela(&[32, 1, 5]), &[]),
        safetensors_of(&ela(&[32, 8, 7]), &[]),
    ]
}

/// All that [`super::indexes::indexes`] reads, each behind the byte of its kind.
pub fn indexes() -> Vec<Vec<u8>> {
    let kinds = [indices(), binarizers(), cache_files(), projection_files(), calibration_files(), trained(), weights()];
    let of_kind = |(kind, files): (u8, Vec<Vec<u8>>)| {
        files.into_iter().map(move |file| [&[kind][..], &file].concat()).collect::<Vec<_>>()
    };
    (0..).zip(kinds).flat_map(of_kind).collect()
}

/// Of [`super::options::options`], which draws all it needs from any bytes: one for each family.
pub fn options() -> Vec<Vec<u8>> {
    (0..16).map(|family| vec![family; 8]).collect()
}
