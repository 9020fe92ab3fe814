//! The bodies that tests/hostile.rs gives mutated files, for a fuzzer; with the seeds they begin from.

/// The tool's readers, which are no part of the library.
#[path = "../../../src/cli"]
#[allow(dead_code, unused_imports)]
pub mod cli {
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

#[path = "../../hostile"]
#[allow(dead_code)]
pub mod hostile {
    pub mod draw;
    pub mod files;
    pub mod formats;
    pub mod heap;
    pub mod indexes;
    pub mod models;
    pub mod options;
    pub mod readers;
    pub mod seeds;
}

pub use libfuzzer_sys::fuzz_target;

/// Writes `seeds` to the folder that ORTHANT_FUZZ_SEEDS names, where it does, and ends.
pub fn seeds(seeds: Vec<Vec<u8>>) {
    let Some(folder) = std::env::var_os("ORTHANT_FUZZ_SEEDS") else { return };
    std::fs::create_dir_all(&folder).unwrap();
    for (number, seed) in seeds.iter().enumerate() {
        std::fs::write(std::path::Path::new(&folder).join(format!("seed-{number}")), seed).unwrap();
    }
    std::process::exit(0);
}

/// Fails where `body` holds more memory than its input allows.
pub fn bounded(bytes: &[u8], (multiple, more): (usize, usize), body: fn(&[u8])) {
    let ((), most) = hostile::heap::most(|| body(bytes));
    assert!(most <= multiple * bytes.len() + more, "{most} bytes held for {} of input", bytes.len());
}

/// A target: its seeds, its body and the bound of its memory.
#[macro_export]
macro_rules! target {
    ($seeds:expr, $bound:expr, $body:expr) => {
        #[global_allocator]
        static COUNTING: $crate::hostile::heap::Counting = $crate::hostile::heap::Counting;

        $crate::fuzz_target!(init: $crate::seeds($seeds), |bytes: &[u8]| {
            $crate::bounded(bytes, $bound, $body);
        });
    };
}
