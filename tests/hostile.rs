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
    pub mod draw;
    pub mod files;
    pub mod formats;
    pub mod heap;
    pub mod indexes;
    pub mod models;
    pub mod mutate;
    pub mod readers;
    pub mod seeds;
}

use std::sync::{PoisonError, RwLock};

use hostile::formats::Format;
use hostile::{heap, indexes, models, mutate, readers, seeds};
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
