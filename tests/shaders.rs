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
