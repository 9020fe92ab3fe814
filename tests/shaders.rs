//! Every shader variant, without an adapter: naga accepts it, every backend that can express it writes it, and what the host says of it is true.

use std::collections::BTreeSet;

use naga::back::{glsl, hlsl, msl, spv};
use naga::valid::{Capabilities, ShaderStages, SubgroupOperationSet, ValidationFlags, Validator};
use naga::{AddressSpace, Module, TypeInner};
use orthant::kernels::{Variant, variants};

fn parse(variant: &Variant) -> Module {
    naga::front::wgsl::parse_str(&variant.text)
        .unwrap_or_else(|error| panic!("{}: {}", variant.name, error.emit_to_string(&variant.text)))
}

fn validate(variant: &Variant, module: &Module) -> naga::valid::ModuleInfo {
    // unpack2x16float is part of WebGPU; naga asks for it by a capability of its own.
    let mut capabilities = Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    capabilities.set(Capabilities::FLOAT64, variant.needs.f64);
    capabilities.set(Capabilities::SHADER_INT64, variant.needs.f64);
    capabilities.set(Capabilities::SHADER_FLOAT16, variant.needs.f16);
    capabilities.set(Capabilities::SUBGROUP, variant.needs.subgroups);
    capabilities.set(Capabilities::COOPERATIVE_MATRIX, variant.needs.cooperative != 0);
    Validator::new(ValidationFlags::all(), capabilities)
        .subgroup_stages(ShaderStages::COMPUTE)
        .subgroup_operations(SubgroupOperationSet::all())
        .validate(module)
        .unwrap_or_else(|error| panic!("{}: {}", variant.name, error.emit_to_string(&variant.text)))
}

#[test]
fn every_variant_is_valid_and_every_backend_writes_it() {
    let (mut written, mut cooperative) = (0, 0);
    for variant in variants() {
        let module = parse(&variant);
        let info = validate(&variant, &module);
        let entry = &module.entry_points[0].name;
        let name = &variant.name;

        let options = spv::Options { lang_version: (1, 3), ..Default::default() };
        let pipeline = spv::PipelineOptions { shader_stage: naga::ShaderStage::Compute, entry_point: entry.clone() };
        let words = spv::write_vec(&module, &info, &options, Some(&pipeline))
            .unwrap_or_else(|error| panic!("{name} to SPIR-V: {error}"));
        assert_eq!(words[0], 0x0723_0203, "{name}: SPIR-V's magic number");
        written += 1;

        // Metal has no 64-bit floats, GLSL ES none either.
        if variant.needs.f64 {
            continue;
        }
        let options = msl::Options { lang_version: (2, 4), fake_missing_bindings: true, ..Default::default() };
        let (text, _) = msl::write_string(&module, &info, &options, &msl::PipelineOptions::default())
            .unwrap_or_else(|error| panic!("{name} to MSL: {error}"));
        assert!(text.contains("kernel void"), "{name}: {text}");
        written += 1;

        // HLSL and GLSL have no cooperative matrices: naga's writers panic on them, and wgpu's adapters of these backends do not offer them.
        if variant.needs.cooperative != 0 {
            assert!(text.contains(&format!("simdgroup_float{0}x{0}", variant.needs.cooperative)), "{name}: {text}");
            cooperative += 1;
            continue;
        }
        let mut text = String::new();
        let options = hlsl::Options { shader_model: hlsl::ShaderModel::V6_0, ..Default::default() };
        hlsl::Writer::new(&mut text, &options, &hlsl::PipelineOptions::default())
            .write(&module, &info, None)
            .unwrap_or_else(|error| panic!("{name} to HLSL: {error}"));
        assert!(text.contains("numthreads"), "{name}: {text}");

        let mut text = String::new();
        let options = glsl::Options {
            version: glsl::Version::new_gles(310),
            writer_flags: glsl::WriterFlags::empty(),
            ..Default::default()
        };
        let pipeline = glsl::PipelineOptions {
            shader_stage: naga::ShaderStage::Compute,
            entry_point: entry.clone(),
            multiview: None,
        };
        glsl::Writer::new(&mut text, &module, &info, &options, &pipeline, Default::default())
            .and_then(|mut writer| writer.write())
            .unwrap_or_else(|error| panic!("{name} to GLSL: {error}"));
        assert!(text.contains("void main()"), "{name}: {text}");
        written += 2;
    }
    assert_eq!(cooperative, 16, "variants by cooperative matrices: two sizes of them, eight of heads");
    assert!(written > 30, "only {written} texts were written");
}

/// HLSL can express f64 but naga cannot write all of it: where it can, it must be right; where it cannot, it must say so rather than panic.
#[test]
fn f64_variants_reach_hlsl_or_fail_cleanly() {
    for variant in variants().iter().filter(|variant| variant.needs.f64) {
        let module = parse(variant);
        let info = validate(variant, &module);
        let mut text = String::new();
        let options = hlsl::Options { shader_model: hlsl::ShaderModel::V6_0, ..Default::default() };
        if hlsl::Writer::new(&mut text, &options, &hlsl::PipelineOptions::default()).write(&module, &info, None).is_ok()
        {
            assert!(text.contains("double"), "{}", variant.name);
        }
    }
}

/// Params at binding 0 as the host lays it out; bindings without gaps and all used (`layout: None` drops the others); within the browser's limits.
#[test]
fn what_the_host_says_of_a_shader_is_true() {
    for variant in variants() {
        let module = parse(&variant);
        let info = validate(&variant, &module);
        let name = &variant.name;
        assert_eq!(module.entry_points.len(), 1, "{name}: one entry point");
        let entry = &module.entry_points[0];
        assert!(entry.workgroup_size.iter().product::<u32>() <= 256, "{name}: {:?}", entry.workgroup_size);

        let mut layouter = naga::proc::Layouter::default();
        layouter.update(module.to_ctx()).unwrap_or_else(|error| panic!("{name}: {error:?}"));
        let mut bindings = BTreeSet::new();
        let mut storage = 0;
        let mut workgroup_bytes = 0;
        for (handle, variable) in module.global_variables.iter() {
            let used = !info.get_entry_point(0)[handle].is_empty();
            if variable.space == AddressSpace::WorkGroup {
                workgroup_bytes += layouter[variable.ty].size;
                continue;
            }
            let Some(binding) = &variable.binding else { continue };
            let label = variable.name.as_deref().unwrap_or("");
            assert_eq!(binding.group, 0, "{name}: {label}");
            assert!(used, "{name}: the entry point does not use {label}");
            assert!(bindings.insert(binding.binding), "{name}: binding {} twice", binding.binding);
            match variable.space {
                AddressSpace::Uniform => {
                    assert_eq!((binding.binding, label), (0, "params"), "{name}");
                    let TypeInner::Struct { members, span } = &module.types[variable.ty].inner else {
                        panic!("{name}: params is no struct");
                    };
                    let fields: Vec<_> = members
                        .iter()
                        .map(|member| (member.name.as_deref().unwrap_or(""), member.offset as usize))
                        .collect();
                    assert_eq!(fields, variant.fields, "{name}: fields of Params");
                    assert_eq!(*span as usize, variant.params_bytes, "{name}: bytes of Params");
                }
                AddressSpace::Storage { .. } => storage += 1,
                other => panic!("{name}: {label} in {other:?}"),
            }
        }
        assert!(bindings.iter().copied().eq(0..bindings.len() as u32), "{name}: bindings {bindings:?}");
        assert!(storage <= 8, "{name}: {storage} storage buffers");
        let most = if variant.needs.large_memory { 32 << 10 } else { 16 << 10 };
        assert!(workgroup_bytes <= most, "{name}: {workgroup_bytes} bytes of workgroup memory");
    }
}

/// No shader file without a kernel, none named that is not there; shared files hold functions only.
#[test]
fn files_and_kernels_are_the_same() {
    fn walk(folder: &std::path::Path, root: &std::path::Path, files: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, root, files);
            } else {
                files.insert(path.strip_prefix(root).unwrap().to_string_lossy().replace('\\', "/"));
            }
        }
    }
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("shaders");
    let mut files = BTreeSet::new();
    walk(&root, &root, &mut files);
    let used: BTreeSet<_> =
        variants().iter().flat_map(|variant| variant.files.clone()).map(ToString::to_string).collect();
    assert_eq!(files, used);
    for file in files {
        let text = std::fs::read_to_string(root.join(&file)).unwrap();
        assert!(text.starts_with("// "), "{file} begins with its contract");
        if file.starts_with("shared/") {
            assert!(!text.contains("@group") && !text.contains("@compute"), "{file} holds functions only");
        }
    }
}

#[test]
fn names_of_variants_differ() {
    let all = variants();
    let names: BTreeSet<_> = all.iter().map(|variant| &variant.name).collect();
    assert_eq!(names.len(), all.len());
}

/// The validation sees what it must: a type error, a binding the entry point does not use, f64 where it is not declared.
#[test]
fn planted_errors_are_found() {
    let mut broken = variants().remove(0);
    broken.text += "\nfn planted() -> f32 { return 1u; }";
    assert!(std::panic::catch_unwind(|| validate(&broken, &parse(&broken))).is_err());
    let mut wide = variants().remove(0);
    wide.text += "\nfn planted(a: f64) -> f64 { return a; }";
    assert!(std::panic::catch_unwind(|| validate(&wide, &parse(&wide))).is_err());
}

/// Writes every variant to `$ORTHANT_WRITE_SHADERS/web` (or `f64`, `large`, `subgroups`, `cooperative`), and the last as SPIR-V beside it, for other compilers to read.
#[test]
#[ignore = "writes files: CI runs it for Tint"]
fn shaders_are_written_for_other_compilers() {
    let folder = std::env::var_os("ORTHANT_WRITE_SHADERS").expect("ORTHANT_WRITE_SHADERS names a folder");
    let folder = std::path::PathBuf::from(folder);
    for variant in variants() {
        let kind = match variant.needs.f64 {
            true => "f64",
            // wgpu's own.
            false if variant.needs.cooperative != 0 => "cooperative",
            // Without the `enable` that a browser asks for.
            false if variant.needs.subgroups => "subgroups",
            // A browser's device has 16 KiB unless it is asked for more.
            false if variant.needs.large_memory => "large",
            false => "web",
        };
        let kind = folder.join(kind);
        std::fs::create_dir_all(&kind).unwrap();
        std::fs::write(kind.join(format!("{}.wgsl", variant.name)), &variant.text).unwrap();
        if variant.needs.cooperative != 0 {
            let module = parse(&variant);
            let info = validate(&variant, &module);
            let options = spv::Options { lang_version: (1, 3), ..Default::default() };
            let words = spv::write_vec(&module, &info, &options, None).unwrap();
            let bytes: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
            std::fs::write(kind.join(format!("{}.spv", variant.name)), bytes).unwrap();
        }
    }
}

/// A run of one variant for a host other than wgpu: `bindings` from binding 1 on, as words; the output compared as pairs of f32 or as f32.
#[derive(serde::Serialize)]
struct Run {
    shader: String,
    params: Vec<u32>,
    bindings: Vec<Vec<u32>>,
    groups: [u32; 3],
    /// Which of the bindings is compared.
    out: usize,
    /// Whether the output is pairs of f32.
    pairs: bool,
    expected: Vec<f64>,
    tolerance: Vec<f64>,
}

impl Run {
    /// Params by the names of their fields; those not named are 0.
    fn params(variant: &Variant, values: &[(&str, u32)]) -> Vec<u32> {
        let mut words = vec![0; variant.params_bytes / 4];
        for (name, value) in values {
            let offset = variant.fields.iter().find(|(field, _)| field == name).map(|(_, offset)| offset / 4);
            words[offset.unwrap_or_else(|| panic!("{}: no {name} in Params", variant.name))] = *value;
        }
        words
    }
}

fn pair_words(values: impl IntoIterator<Item = f64>) -> Vec<u32> {
    let words = |value: f64| {
        let pair = orthant::DoubleSingle::new(value);
        [pair.high().to_bits(), pair.low().to_bits()]
    };
    values.into_iter().flat_map(words).collect()
}

fn table(name: &str) -> Vec<Vec<f64>> {
    let path = format!("{}/tests/data/{name}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    text.lines().skip(1).map(|line| line.split(',').map(|field| field.parse().unwrap_or(f64::NAN)).collect()).collect()
}

/// Pairs of f32 under Tint: the golden tables' every tenth row (1e-13, as tests/kernels/bessel.rs has it), every kappa, a sum of 3000 rows.
fn double_single_runs() -> Vec<Run> {
    let all = variants();
    let named = |start: &str, end: &str| {
        let found = all.iter().find(|variant| variant.name.starts_with(start) && variant.name.contains(end));
        found.unwrap_or_else(|| panic!("no variant {start}..{end}"))
    };
    let (logs, aux, vmf) = (table("golden_bessel.csv"), table("golden_bessel_aux.csv"), table("golden_vmf.csv"));
    let vmf: Vec<Vec<f64>> = vmf.iter().map(|row| vec![0.5 * row[0] - 1.0, row[2], row[3], 1.0 - row[1]]).collect();
    type Scale = fn(f64, f64) -> f64;
    let (hypot, relative, one): (Scale, Scale, Scale) = (f64::hypot, |_, _| 0.0, |_, _| 1.0);
    let functions = [
        ("log_iv", &logs, 2, hypot),
        ("log_kv", &logs, 3, hypot),
        ("iv_ratio", &aux, 2, relative),
        ("iv_ratio_complement", &vmf, 3, relative),
        ("log_iv_dx", &aux, 4, relative),
        ("log_kv_dx", &aux, 5, relative),
        ("log_iv_dv", &aux, 6, one),
        ("log_kv_dv", &aux, 7, one),
        ("vmf_log_normalizer", &vmf, 2, hypot),
    ];
    let mut runs = Vec::new();
    for (name, rows, column, scale) in functions {
        let rows: Vec<_> = rows.iter().step_by(if rows.len() > 1000 { 10 } else { 3 }).collect();
        let count = rows.len();
        let variant = named(&format!("bessel_double_single-{name}-"), "guard_1");
        runs.push(Run {
            shader: variant.name.clone(),
            params: Run::params(variant, &[("count", count as u32), ("groups_x", count.div_ceil(64) as u32)]),
            bindings: vec![
                pair_words(rows.iter().map(|row| row[0])),
                pair_words(rows.iter().map(|row| row[1])),
                vec![0x7fc0_dead; 2 * count],
                vec![0; 4],
            ],
            groups: [count.div_ceil(64) as u32, 1, 1],
            out: 2,
            pairs: true,
            expected: rows.iter().map(|row| row[column]).collect(),
            tolerance: rows
                .iter()
                .map(|row| (1e-13 * row[column].abs().max(scale(row[0], row[1]))).max(f64::from(f32::MIN_POSITIVE)))
                .collect(),
        });
    }
    let kappas = table("golden_vmf.csv");
    let count = kappas.len();
    let variant = named("vmf_kappa_double_single", "guard_1");
    runs.push(Run {
        shader: variant.name.clone(),
        params: Run::params(variant, &[("count", count as u32), ("groups_x", count.div_ceil(64) as u32)]),
        bindings: vec![
            pair_words(kappas.iter().map(|row| row[0])),
            pair_words(kappas.iter().map(|row| row[1])),
            pair_words(kappas.iter().map(|row| 1.0 - row[1])),
            vec![0x7fc0_dead; 2 * count],
            vec![0; 4],
        ],
        groups: [count.div_ceil(64) as u32, 1, 1],
        out: 3,
        pairs: true,
        expected: kappas.iter().map(|row| row[2]).collect(),
        tolerance: kappas.iter().map(|row| 1e-13 * row[2]).collect(),
    });
    // Values of either sign and many sizes; integers of 2^-40 hold their sums.
    let (rows, columns) = (3000, 3);
    let value = |i: usize| ((i * 7919 % 10_007) as f32 - 5000.0) * 2f32.powi((i % 13) as i32 - 20);
    let values: Vec<f32> = (0..rows * columns).map(value).collect();
    let blocks = rows.div_ceil(256);
    let mut exact = vec![(0.0, 0.0); blocks * columns];
    for (i, value) in values.iter().enumerate() {
        let (sum, size) = &mut exact[i / columns / 256 * columns + i % columns];
        *sum += f64::from(*value);
        *size += f64::from(value.abs());
    }
    let variant = named("extended_sums-", "guard_1-values-half_0");
    let sizes = [("rows", rows as u32), ("columns", columns as u32), ("groups_x", 1)];
    runs.push(Run {
        shader: variant.name.clone(),
        params: Run::params(variant, &sizes),
        bindings: vec![
            values.iter().map(|value| value.to_bits()).collect(),
            vec![0; 4],
            vec![0x7fc0_dead; 2 * blocks * columns],
        ],
        groups: [1, 1, 1],
        out: 2,
        pairs: true,
        expected: exact.iter().map(|(sum, _)| *sum).collect(),
        tolerance: exact.iter().map(|(_, size)| 1e-13 * size).collect(),
    });
    runs
}

/// Writes runs with what must come out to `$ORTHANT_WRITE_SHADERS/runs`, for `.ci/tint.mjs` to run beside the variants' own texts.
#[test]
#[ignore = "writes files: CI runs it for Tint"]
fn runs_are_written_for_other_compilers() {
    let folder = std::env::var_os("ORTHANT_WRITE_SHADERS").expect("ORTHANT_WRITE_SHADERS names a folder");
    let folder = std::path::PathBuf::from(folder).join("runs");
    std::fs::create_dir_all(&folder).unwrap();
    for run in double_single_runs() {
        assert!(run.expected.len() == run.tolerance.len() && run.expected.iter().all(|value| value.is_finite()));
        let file = std::fs::File::create(folder.join(format!("{}.json", run.shader))).unwrap();
        serde_json::to_writer(file, &run).unwrap();
    }
}
