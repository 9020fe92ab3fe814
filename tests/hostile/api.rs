//! The public functions, by the file that has them, and that none of them is forgotten.

/// Every public function of the modules that `lib.rs` shows; each is called somewhere beside this file, but for those behind a `-`, which open a GPU or
/// look for one. The `_async` form of a function is what it waits for, and not named.
const API: &[(&str, &str)] = &[
    ("attention/efficient_local_attention.rs", "channels efficient_local_attention epsilon from_bytes load new sizes"),
    ("attention/interacting_layer.rs", "from_bytes head_dim heads input interacting_layer load maps new scale"),
    ("attention/local_activation_unit.rs", "dim from_bytes load local_activation_unit new softmax weights"),
    (
        "attention/options.rs",
        "algorithm alibi alibi_slopes bias causal key_lengths lse new ragged scale sinks softcap splits window",
    ),
    ("kv/allocate.rs", "allocate allocate_bits ranks_of"),
    (
        "kv/cache.rs",
        "append append_without_wait attend bytes clear device fork insert is_empty len new of_leading_channels remove sequences truncate",
    ),
    ("kv/cache/file.rs", "load save"),
    ("kv/cache/options.rs", "bits capacity causal exact lse new scale sinks window"),
    ("kv/calibration.rs", "input_weights layers merge new output_weights sinks"),
    ("kv/calibration/add.rs", "add add_inputs add_unrotated"),
    ("kv/calibration/file.rs", "load read_moments read_moments_bytes save"),
    ("kv/calibration/options.rs", "alpha centred joint new weighting"),
    ("kv/calibration/solve.rs", "projections"),
    ("kv/evaluate.rs", "dim error_table evaluate joint_relative_error layer new output_gram relative_error"),
    ("kv/latents.rs", "count name new quantised"),
    (
        "kv/projections.rs",
        "bases frame head_dim kv_heads layers new of ranks rope total with_layer with_rank with_ranks",
    ),
    ("kv/projections/basis.rs", "down expected_error heads mean new orthogonal rank spectrum up width"),
    ("kv/projections/file.rs", "load save to_bytes"),
    ("kv/projections/trained.rs", "load_cskv load_matryoshka matrices"),
    ("kv/rope.rs", "block dims frequencies layout new none of_frequencies scaled"),
    ("hamming/binarize.rs", "binarize bits dim hyperplanes mean median project rule sign"),
    ("hamming/binarize/file.rs", "from_bytes load save to_bytes"),
    ("hamming/binarize/itq.rs", "iterations itq new seed"),
    ("hamming/binarize/views.rs", "fuse"),
    ("hamming/codes.rs", "bits device from_bytes from_packbits is_empty len new pack to_bytes to_device unpack words"),
    ("hamming/evaluate.rs", "evaluate leave_one_out new tops"),
    ("hamming/file.rs", "bits first_id ids load map open part parts save search_parts"),
    (
        "hamming/index.rs",
        "add bits device first_id ids is_empty len new remove search search_asymmetric search_jaccard with_first_id within",
    ),
    ("hamming/neighbours.rs", "global_ids merge"),
    ("hamming/options.rs", "allowed allows count is_empty len new of_ids"),
    ("knn.rs", "local_dimension recall"),
    ("knn/dimension.rs", "local_dimension"),
    ("knn/search.rs", "rescore search"),
    (
        "vmf/distribution.rs",
        "dim entropy fit fit_in fit_weighted from_stats is_resolvable kappa kappa_relative_error kl_divergence load log_density log_density_in log_density_pairs log_normalizer mean_direction mode n new resultant_length save",
    ),
    ("vmf/kappa.rs", "new solve_kappa"),
    ("vmf/mixture.rs", "fit fit_source fit_weighted"),
    ("vmf/mixture/evaluate.rs", "predict predict_source responsibilities score score_source"),
    (
        "vmf/mixture/model.rs",
        "aic bic components converged dim iterations load log_likelihood log_likelihood_trace sample save",
    ),
    (
        "vmf/mixture/options.rs",
        "batch hard max_iterations max_kappa min_weight new progress seed starts tied_kappa tolerance",
    ),
    ("vmf/sample.rs", "sample sample_into"),
    ("vmf/stats.rs", "count dim from_rows from_source mean_resultant merge new push push_weighted resultant weight"),
    ("kernels.rs", "variants"),
    ("kernels/attention.rs", "attention"),
    ("kernels/column_sums.rs", "column_sums"),
    ("kernels/extended.rs", "column_sums_extended"),
    ("kernels/hamming.rs", "hamming hamming_histograms"),
    ("kernels/limits.rs", "copy multiply_add"),
    ("kernels/matmul.rs", "matmul"),
    ("kernels/mixture_posterior.rs", "mixture_posterior mixture_summary"),
    ("kernels/normalize_rows.rs", "normalize_rows"),
    ("kernels/sign_pack.rs", "sign_pack"),
    ("kernels/vmf_kappa.rs", "vmf_kappa"),
    ("kernels/widen.rs", "widen"),
    ("kernels/attention/backward.rs", "attention_backward"),
    ("kernels/attention/merge.rs", "merge_attention"),
    (
        "device.rs",
        "-adapters as_gpu -auto -cpu -from_env -gpu -gpu_as_in_browsers -gpu_at -gpu_small -gpu_tiled is_cpu tensor tensor_from zeros",
    ),
    ("tensor.rs", "as_host device into_shape is_empty len raw_dim shape to_array to_device to_f64_array"),
    ("double_single.rs", "high low new to_f64"),
];

/// What calls them.
const CALLERS: &str = concat!(
    include_str!("options.rs"),
    include_str!("indexes.rs"),
    include_str!("models.rs"),
    include_str!("readers.rs"),
    include_str!("seeds.rs"),
);

/// Files of rooms that `lib.rs` does not show, whose `pub fn` are for those beside them.
const INSIDE: [&str; 2] = ["knn/candidates.rs", "knn/rows.rs"];

/// The names behind `pub fn`, outside of or one step into an `impl`.
fn public(text: &str) -> Vec<String> {
    let name = |line: &str| {
        let line = line.strip_prefix("    ").unwrap_or(line).strip_prefix("pub ")?;
        let line = line.strip_prefix("const ").unwrap_or(line).strip_prefix("fn ")?;
        Some(line.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect())
    };
    let mut names: Vec<String> = text.lines().filter_map(name).collect();
    names.sort();
    names.dedup();
    names
}

/// Files that may have public functions: all of the tasks, and the rooms of kernels.
fn files() -> Vec<String> {
    let source = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found: Vec<String> =
        ["device.rs", "tensor.rs", "double_single.rs", "kernels/attention/backward.rs"].map(String::from).into();
    found.push("kernels/attention/merge.rs".into());
    let mut folders: Vec<String> = ["attention", "kv", "hamming", "knn", "vmf"].map(String::from).into();
    found.extend(folders.iter().map(|folder| format!("{folder}.rs")));
    found.push("kernels.rs".into());
    let list = |folder: &str| -> Vec<(String, bool)> {
        let entries = std::fs::read_dir(source.join(folder)).unwrap();
        let entry = |entry: std::fs::DirEntry| {
            (format!("{folder}/{}", entry.file_name().to_str().unwrap()), entry.file_type().unwrap().is_dir())
        };
        entries.map(|it| entry(it.unwrap())).collect()
    };
    found.extend(list("kernels").into_iter().filter(|(_, folder)| !folder).map(|(name, _)| name));
    while let Some(folder) = folders.pop() {
        for (name, is_folder) in list(&folder) {
            if is_folder { folders.push(name) } else { found.push(name) }
        }
    }
    found.retain(|name| !name.ends_with("tests.rs") && !INSIDE.contains(&name.as_str()));
    found
}

#[test]
fn every_public_function_is_tried() {
    for name in files() {
        let text = std::fs::read_to_string(format!("{}/src/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap();
        let found = public(&text);
        let listed = API.iter().find(|(file, _)| *file == name).map_or("", |(_, names)| names);
        let mut names: Vec<&str> = listed.split_whitespace().map(|name| name.trim_start_matches('-')).collect();
        names.sort_unstable();
        assert_eq!(found, names, "the table above lacks or has too many functions of {name}: try them, and list them");
        for name in listed.split_whitespace().filter(|name| !name.starts_with('-')) {
            let called = CALLERS.match_indices(name).any(|(at, _)| {
                let before = CALLERS[..at].chars().next_back();
                let behind = CALLERS[at + name.len()..].trim_start();
                !before.is_some_and(|c| c.is_alphanumeric() || c == '_')
                    && ["(", "::<", ","].iter().any(|mark| behind.starts_with(mark))
            });
            assert!(called, "nothing calls {name}");
        }
    }
}
