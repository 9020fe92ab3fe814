//! Files, shapes and options that no one means well with: an error or a sound result, no panic, no hang, and no more memory than said.

#![allow(missing_docs)]

/// The tool's readers, which are no part of the library.
#[path = "../src/cli"]
#[allow(dead_code, unused_imports)]
mod cli {
    pub mod complaint;
    pub mod files;
    pub mod memory;
    pub mod kv {
        pub mod input;
    }
    pub mod vmf {
        pub mod model;
    }
}

mod hostile {
    mod api;
    pub mod draw;
    pub mod files;
    pub mod formats;
    pub mod heap;
    pub mod indexes;
    pub mod models;
    pub mod mutate;
    pub mod options;
    pub mod readers;
    pub mod seeds;
}

use std::sync::{PoisonError, RwLock};

use hostile::formats::Format;
use hostile::{heap, indexes, models, mutate, options, readers, seeds};
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestCaseError, TestRng, TestRunner};

#[global_allocator]
static COUNTING: heap::Counting = heap::Counting;

/// Whoever measures memory is alone.
static ROOM: RwLock<()> = RwLock::new(());

/// The same cases every time, or those of ORTHANT_HOSTILE_SEED, and ORTHANT_HOSTILE_TIMES as many.
fn runner(cases: u32) -> TestRunner {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u32>().ok());
    let cases = cases * number("ORTHANT_HOSTILE_TIMES").unwrap_or(1);
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let mut seed = [7; 32];
    seed[..4].copy_from_slice(&number("ORTHANT_HOSTILE_SEED").unwrap_or(0).to_le_bytes());
    TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &seed))
}

/// `body` of `cases` mutations of the seeds.
fn mutations(format: Format, seeds: &[Vec<u8>], cases: u32, body: fn(&[u8])) {
    let _shared = ROOM.read().unwrap_or_else(PoisonError::into_inner);
    seeds.iter().for_each(|seed| body(seed));
    let strategy = (0..seeds.len(), mutate::edits(), any::<bool>());
    let run = runner(cases).run(&strategy, |(seed, edits, right)| {
        let bytes = mutate::mutated(format, &seeds[seed], &edits, right);
        std::panic::catch_unwind(|| body(&bytes)).map_err(|_| {
            TestCaseError::fail(format!("it panicked, see above, of: {}", String::from_utf8_lossy(&bytes)))
        })
    });
    if let Err(error) = run {
        panic!("{error}");
    }
}

/// `body` of every beginning of the seeds.
fn beginnings(seeds: &[Vec<u8>], body: fn(&[u8])) {
    let _shared = ROOM.read().unwrap_or_else(PoisonError::into_inner);
    for seed in seeds {
        let step = seed.len().div_ceil(600);
        (0..seed.len()).step_by(step).for_each(|end| body(&seed[..end]));
    }
}

#[test]
fn npy_files() {
    mutations(Format::Npy, &seeds::npy(), 3000, readers::npy);
    beginnings(&seeds::npy(), readers::npy);
}

#[test]
fn npz_files() {
    mutations(Format::Npz, &seeds::npz(), 2000, readers::npz);
    beginnings(&seeds::npz(), readers::npz);
}

#[test]
fn safetensors_files() {
    mutations(Format::Safetensors, &seeds::safetensors(), 2000, readers::safetensors);
    beginnings(&seeds::safetensors(), readers::safetensors);
}

#[test]
fn csv_files() {
    mutations(Format::Csv, &seeds::csv(), 3000, readers::csv);
    beginnings(&seeds::csv(), readers::csv);
}

#[test]
fn model_files() {
    mutations(Format::Json, &seeds::models(), 2000, models::models);
    beginnings(&seeds::models(), models::models);
}

#[test]
fn index_files() {
    mutations(Format::Index, &seeds::indices(), 1000, indexes::index);
    beginnings(&seeds::indices(), indexes::index);
}

#[test]
fn binarizer_files() {
    mutations(Format::Safetensors, &seeds::binarizers(), 1000, indexes::binarizer);
    beginnings(&seeds::binarizers(), indexes::binarizer);
}

#[test]
fn cache_files() {
    mutations(Format::Safetensors, &seeds::cache_files(), 1000, indexes::cache);
    beginnings(&seeds::cache_files(), indexes::cache);
}

#[test]
fn projection_files() {
    mutations(Format::Safetensors, &seeds::projection_files(), 1000, indexes::projections);
    beginnings(&seeds::projection_files(), indexes::projections);
}

#[test]
fn calibration_files() {
    mutations(Format::Safetensors, &seeds::calibration_files(), 1000, indexes::calibration);
    beginnings(&seeds::calibration_files(), indexes::calibration);
}

#[test]
fn trained_projections() {
    mutations(Format::Safetensors, &seeds::trained(), 1000, indexes::trained);
    beginnings(&seeds::trained(), indexes::trained);
}

#[test]
fn weights_of_layers() {
    mutations(Format::Safetensors, &seeds::weights(), 1000, indexes::weights);
    beginnings(&seeds::weights(), indexes::weights);
}

/// Each family of public functions by itself, so that none is left out by chance.
#[test]
fn shapes_options_and_values() {
    let _shared = ROOM.read().unwrap_or_else(PoisonError::into_inner);
    let strategy = (0..options::FAMILIES.len() as u8, proptest::collection::vec(any::<u8>(), 4..64));
    let run = runner(6000).run(&strategy, |(family, bytes)| {
        let bytes = [&[family][..], &bytes].concat();
        std::panic::catch_unwind(|| options::options(&bytes))
            .map_err(|_| TestCaseError::fail(format!("it panicked, see above, of {bytes:?}")))
    });
    if let Err(error) = run {
        panic!("{error}");
    }
}

/// Mutations, and the worst that is known, hold no more memory than `heap` says.
#[test]
fn memory_is_bounded_by_the_length_of_a_file() {
    let _alone = ROOM.write().unwrap_or_else(PoisonError::into_inner);
    // Threads, and what is made once.
    seeds::indexes().iter().for_each(|seed| indexes::indexes(seed));
    let bounded = |what: &str, bytes: &[u8], (multiple, more): (usize, usize), body: fn(&[u8])| {
        let ((), most) = heap::most(|| body(bytes));
        let limit = multiple * bytes.len() + more;
        assert!(most <= limit, "{what}: {most} bytes held for a file of {}, expected at most {limit}", bytes.len());
        most / bytes.len().max(1)
    };
    type Kind = (Format, Vec<Vec<u8>>, (usize, usize), fn(&[u8]));
    let kinds: [Kind; 6] = [
        (Format::Npy, seeds::npy(), heap::READERS, readers::npy),
        (Format::Npz, seeds::npz(), heap::ARCHIVES, readers::npz),
        (Format::Safetensors, seeds::safetensors(), heap::READERS, readers::safetensors),
        (Format::Csv, seeds::csv(), heap::READERS, readers::csv),
        (Format::Json, seeds::models(), heap::READERS, models::models),
        (Format::Index, seeds::indexes(), heap::READERS, indexes::indexes),
    ];
    for (format, seeds, bound, body) in kinds {
        let strategy = (0..seeds.len(), mutate::edits(), any::<bool>());
        let run = runner(300).run(&strategy, |(seed, edits, right)| {
            bounded("a mutation", &mutate::mutated(format, &seeds[seed], &edits, right), bound, body);
            Ok(())
        });
        run.unwrap_or_else(|error| panic!("{error}"));
    }
    // Lengths beyond all memory in headers of files that are short, or long enough for a multiple to count.
    let huge = ["(4611686018427387904, 4)", "(99999999, 99)", "(1000000000, 1)", "(1, 4294967295)"];
    for shape in huge {
        for descr in ["'<f4'", "'<f8'", "'|u1'", "'<i8'"] {
            let npy = seeds::npy_of(descr, false, shape, &[0; 64]);
            bounded(shape, &npy, (1, 1 << 16), readers::npy);
            for deflated in [false, true] {
                bounded(shape, &seeds::npz_of(&[("x.npy", &npy)], deflated), (heap::ARCHIVES.0, 1 << 18), readers::npz);
            }
        }
    }
    let mut long = u64::MAX.to_le_bytes().to_vec();
    bounded("safetensors", &long, (1, 1 << 16), readers::safetensors);
    long[..8].copy_from_slice(&99_000_000u64.to_le_bytes());
    bounded("safetensors", &long, (1, 1 << 16), readers::safetensors);
    for ids in [1u64 << 32, 1 << 31, u64::MAX, 1 << 20] {
        let mut index = seeds::indices()[1].clone();
        index[16..24].copy_from_slice(&ids.to_le_bytes());
        hostile::formats::put_right(Format::Index, &mut index);
        bounded("index", &index, (1, 1 << 16), indexes::index);
    }
    // What packs best, and is all there: a million zeros.
    let bomb = seeds::npz_of(&[("x.npy", &seeds::npy_of("'<f4'", false, "(1000, 1000)", &[0; 4_000_000]))], true);
    assert!(bomb.len() < 8000);
    bounded("a bomb", &bomb, heap::ARCHIVES, readers::npz);
    // Text of which each number is short, nested or alone.
    let numbers =
        |n: usize, before: &str, each: &str, behind: &str| format!("{before}{}0{behind}", each.repeat(n)).into_bytes();
    let texts = [
        ("csv of one line", numbers(150_000, "", "1,", "\n"), readers::csv as fn(&[u8])),
        ("csv of one column", numbers(150_000, "", "1\n", "\n"), readers::csv),
        ("a long direction", numbers(150_000, "{\"kappa\":1,\"mean_direction\":[", "0,", "]}"), models::models),
        ("a long trace", numbers(150_000, "{\"log_likelihood_trace\":[", "0,", "]}"), models::models),
        ("many components", numbers(100_000, "{\"components\":[", "{},", "]}"), models::models),
        ("an unknown member", numbers(150_000, "{\"x\":[", "0,", "]}"), models::models),
        ("deep brackets", numbers(150_000, "", "[", ""), models::models),
        ("deep braces", numbers(150_000, "", "{\"a\":", ""), models::models),
    ];
    for (what, text, body) in texts {
        bounded(what, &text, heap::READERS, body);
    }
    let header = |text: Vec<u8>| [&(text.len() as u64).to_le_bytes()[..], &text].concat();
    let tensor = "{\"dtype\":\"U8\",\"data_offsets\":[0,0],\"shape\":[";
    let many: String =
        (0..20_000).map(|i| format!("\"{i}\":{{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}},")).collect();
    let headers = [
        ("a shape of many axes", numbers(150_000, &format!("{{\"x\":{tensor}"), "0,", "]}}")),
        ("many tensors", format!("{{{many}\"__metadata__\":{{}}}}").into_bytes()),
        (
            "many notes",
            numbers(0, &format!("{{\"__metadata__\":{{{}\"a\":\"", "\"b\":\"\",".repeat(50_000)), "", "\"}}"),
        ),
    ];
    for (what, text) in headers {
        bounded(what, &header(text.clone()), heap::READERS, readers::safetensors);
        for kind in 1..indexes::KINDS {
            bounded(what, &[&[kind][..], &header(text.clone())].concat(), heap::READERS, indexes::indexes);
        }
    }
}

/// Nested as deep as a header may be: what parses it must not run out of stack.
#[test]
fn deep_headers_are_refused() {
    for open in ["(", "[", "{", "{'a':", "'", "\\'", "'\"'(", "-", "+", "(1,),", "'',"] {
        for length in [20, 1000, 60_000, 1 << 20] {
            let mut header = b"\x93NUMPY\x02\x00".to_vec();
            let text = open.repeat(length / open.len());
            header.extend_from_slice(&(text.len() as u32).to_le_bytes());
            header.extend_from_slice(text.as_bytes());
            readers::npy(&header);
            let npz = seeds::npz_of(&[("x.npy", &header)], true);
            readers::npz(&npz);
        }
    }
}

/// What mutations and drawn arguments found once, each by itself.
mod found {
    use super::*;
    use orthant::hamming::{Binarizer, Index};
    use orthant::kv::{Calibration, Frame, Projections, Rope};
    use orthant::vmf::VmfStats;
    use orthant::{Device, Error};
    use safetensors::tensor::TensorView;
    use safetensors::{Dtype, SafeTensors};

    #[test]
    fn counts_of_statistics_do_not_wrap() {
        let text = r#"{"count":18446744073709551615,"weight":5.0,"resultant":[1.0,2.0]}"#;
        let mut stats: VmfStats = serde_json::from_str(text).unwrap();
        let other = stats.clone();
        assert!(matches!(stats.merge(&other), Err(Error::Argument { quantity: "rows", .. })));
    }

    /// It was one that the file it was saved to did not have.
    #[test]
    fn a_count_alone_is_no_layer() {
        let bytes = &seeds::calibration_files()[0];
        let (_, header) = SafeTensors::read_metadata(bytes).unwrap();
        let file = SafeTensors::deserialize(bytes).unwrap();
        let count = 3f64.to_le_bytes();
        let mut tensors = file.tensors();
        tensors.push(("layer.6.cal_x_count".into(), TensorView::new(Dtype::F64, Vec::new(), &count).unwrap()));
        let bytes = safetensors::serialize(tensors, header.metadata().clone()).unwrap();
        let path = tempfile::tempdir().unwrap();
        let path = path.path().join("calibration.safetensors");
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(Calibration::load(&path).unwrap().layers().collect::<Vec<_>>(), [5]);
        indexes::calibration(&bytes);
    }

    #[test]
    fn a_resultant_longer_than_its_weight_is_none() {
        for text in [
            r#"{"count":2,"weight":2.0,"resultant":[1.5,2.0]}"#,
            r#"{"count":0,"weight":2.0,"resultant":[0.5,0.5]}"#,
            r#"{"count":2,"weight":0.0,"resultant":[0.0,0.0]}"#,
        ] {
            assert!(serde_json::from_str::<VmfStats>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn ids_of_an_index_end_at_2_to_the_64() {
        let mut index = Index::new(&Device::Cpu, 32).unwrap().with_first_id(u64::MAX - 2);
        index.add(&seeds::codes(5, 32)).unwrap();
        let found = index.search(&seeds::codes(1, 32), &orthant::hamming::SearchOptions::new(5)).unwrap();
        assert!(matches!(found.global_ids(), Err(Error::Argument { quantity: "first_id", .. })));
        let file = hostile::files::Scratch::new("index");
        assert!(matches!(index.save(file.path()), Err(Error::Argument { quantity: "first_id", .. })));
        let mut bytes = seeds::indices()[0].clone();
        bytes[24..32].copy_from_slice(&(u64::MAX - 2).to_le_bytes());
        hostile::formats::put_right(Format::Index, &mut bytes);
        std::fs::write(file.path(), &bytes).unwrap();
        assert!(matches!(Index::load(&Device::Cpu, file.path()), Err(Error::Format { .. })));
    }

    #[test]
    fn planes_beyond_memory_are_an_error() {
        for (dim, bits) in [(usize::MAX, 32), (usize::MAX / 2, 8192), (1 << 60, 8)] {
            assert!(matches!(Binarizer::hyperplanes(dim, bits, 1), Err(Error::OutOfMemory { .. })));
        }
    }

    #[test]
    fn frames_and_heads_have_an_end() {
        for (heads, frame) in [(1, Frame::Block(usize::MAX)), (1, Frame::Block(0)), (usize::MAX / 2, Frame::Pre)] {
            assert!(matches!(Projections::new(heads, 4, Rope::none(), frame), Err(Error::Argument { .. })));
        }
    }

    #[test]
    fn a_cache_with_elements_that_are_not_finite_is_damaged() {
        for (mut cache, file) in seeds::caches().into_iter().zip(seeds::cache_files()) {
            let header = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
            // NaN as f16, as f32, and as both halves of a parameter: in the middle of what is held, again and again.
            let damaged = (8 + header..file.len() - 4).step_by(256).any(|at| {
                let mut bytes = file.clone();
                let at = at / 4 * 4;
                bytes[at..at + 4].copy_from_slice(&0x7fff_7fffu32.to_le_bytes());
                let file = hostile::files::Scratch::of("safetensors", &bytes);
                let loaded = cache.load(file.path());
                loaded.iter().flatten().for_each(|sequence| cache.remove(*sequence).unwrap());
                matches!(loaded, Err(Error::Format { reason, .. }) if reason.contains("not finite"))
            });
            assert!(damaged);
        }
    }

    #[test]
    fn sizes_of_calls_have_an_end() {
        use ndarray::{Array2, Array4};
        use orthant::kv::{Budget, LatentBits, allocate};
        let errors = Array4::zeros((1, 2, 1, 2));
        for budget in [
            Budget::Kept(0.5),
            Budget::PageBytes { bytes: 9, key_bits: LatentBits::Two, value_bits: LatentBits::Eight },
        ] {
            let found = allocate(errors.view(), &[1, usize::MAX], budget);
            assert!(matches!(found, Err(Error::Argument { quantity: "ranks", .. })));
        }
        let on = |heads| Device::Cpu.tensor_from(Array4::<f32>::zeros((1, heads, 3, 4))).unwrap();
        let starts = seeds::calibration().add_unrotated(5, &[usize::MAX], &on(2), &on(1), &on(1));
        assert!(matches!(starts, Err(Error::Argument { quantity: "starts", .. })));
        let empty = Device::Cpu.tensor_from(Array2::<f32>::zeros((0, 3))).unwrap();
        assert!(matches!(empty.into_shape((0, usize::MAX)), Err(Error::Shape { .. })));
    }
}
