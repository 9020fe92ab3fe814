//! A kernel as its room describes it, the text it becomes, and the pipeline made of that.

use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use super::{Gpu, View, lock};
use crate::{Error, Result};

/// A shader and what its host knows of it. One a room, in a `static`.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// The name in errors and timings; unique.
    pub(crate) name: &'static str,
    /// File (below `shaders/`) and text of the kernel, then of the shared functions it names.
    pub(crate) sources: &'static [(&'static str, &'static str)],
    pub(crate) needs: Needs,
    /// Names and offsets of the fields of `Params`, checked against the shader by a test.
    pub(crate) fields: &'static [(&'static str, usize)],
    /// Bytes of `Params`.
    pub(crate) params_bytes: usize,
}

/// The `(file, text)` of a file below `shaders/`.
macro_rules! shader {
    ($file:literal) => {
        ($file, include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/", $file)))
    };
}
pub(crate) use shader;

/// Features of an adapter that a shader cannot do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Needs {
    /// 64-bit floats: Vulkan only.
    pub f64: bool,
    /// 16-bit floats, `enable f16;`.
    pub f16: bool,
    /// Subgroups of any size. Natively: naga knows no `enable subgroups;`.
    pub subgroups: bool,
    /// 32 KiB of workgroup memory; WebGPU promises 16.
    pub large_memory: bool,
    /// Cooperative matrices with so many rows, 16 or 8, of f16, summed in f32, in subgroups of 32; 0 for none. wgpu's own, native.
    pub cooperative: u32,
}

impl Needs {
    /// What every adapter has.
    pub const NONE: Self = Self { f64: false, f16: false, subgroups: false, large_memory: false, cooperative: 0 };
}

/// A compile-time constant appended to a shader's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Constant {
    /// `const NAME: u32 = value;`
    U32(u32),
    /// The same, for one of the values that a [`Constant::Choice`] chooses from; not part of the variant's name.
    Option(u32),
    /// `const NAME: u32 = OPTION;`
    Choice(&'static str),
    /// `alias Name = type;`
    Type(&'static str),
}

/// The uniform at binding 0.
pub(crate) trait Params: bytemuck::Pod {
    /// Name and offset of every field.
    const FIELDS: &'static [(&'static str, usize)];
}

/// Declares a kernel's `Params` with the same field names as the WGSL struct, and notes them for the test that compares the two.
macro_rules! params {
    ($(#[$meta:meta])* $name:ident { $($(#[$field_meta:meta])* $field:ident : $type:ty),* $(,)? }) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
        pub(crate) struct $name { $($(#[$field_meta])* pub(crate) $field: $type),* }
        impl crate::gpu::Params for $name {
            const FIELDS: &'static [(&'static str, usize)] = &[$((stringify!($field), std::mem::offset_of!($name, $field))),*];
        }
    };
}
pub(crate) use params;

/// Constants in the order in which they are appended.
pub(crate) type Constants<'a> = &'a [(&'static str, Constant)];

pub(crate) type Key = (&'static str, Vec<(&'static str, Constant)>);

/// One shader as it is compiled: for tests, tools, and hosts other than orthant's.
#[derive(Debug, Clone)]
pub struct Variant {
    /// The kernel's name and its constants, as a file name could hold them.
    pub name: String,
    /// The kernel's name.
    pub kernel: &'static str,
    /// Files below `shaders/` that the text is made of, the kernel's own first.
    pub files: Vec<&'static str>,
    /// WGSL.
    pub text: String,
    /// What an adapter must have to compile it.
    pub needs: Needs,
    /// Names and offsets of the fields of the host's `Params`.
    pub fields: &'static [(&'static str, usize)],
    /// Bytes of the host's `Params`.
    pub params_bytes: usize,
}

/// A shader file and the text that stands for it.
static MUTANT: OnceLock<(String, String)> = OnceLock::new();

/// Compiles `text` in place of the file `file` below `shaders/` from here on, once a process: what tests of the tests break. Pipelines made before
/// stay.
#[doc(hidden)]
pub fn mutate(file: &str, text: &str) {
    let _ = MUTANT.set((file.to_string(), text.to_string()));
}

impl Kernel {
    /// The kernel with `constants`.
    pub(crate) fn variant(&self, constants: Constants<'_>) -> Variant {
        let mut name = self.name.to_string();
        for (constant, value) in constants {
            match value {
                Constant::U32(value) => name += &format!("-{}_{value}", constant.to_lowercase()),
                Constant::Option(_) => {}
                Constant::Choice(value) => name += &format!("-{}", value.to_lowercase()),
                Constant::Type(value) => name += &format!("-{value}"),
            }
        }
        Variant {
            name,
            kernel: self.name,
            files: self.sources.iter().map(|(file, _)| *file).collect(),
            text: self.text(constants),
            needs: self.needs,
            fields: self.fields,
            params_bytes: self.params_bytes,
        }
    }

    /// The kernel file first, so that a compiler's line numbers are those of the file; then the shared files, then the constants.
    fn text(&self, constants: Constants<'_>) -> String {
        let mut text = String::new();
        if self.needs.f16 {
            // On the first line, before the file's own first comment: line numbers stay.
            text += "enable f16; ";
        }
        if self.needs.cooperative != 0 {
            text += "enable wgpu_cooperative_matrix; ";
        }
        for (file, source) in self.sources {
            text += match MUTANT.get() {
                Some((mutated, other)) if mutated == file => other,
                _ => source,
            };
            text += "\n";
        }
        for (name, value) in constants {
            text += &match value {
                Constant::U32(value) | Constant::Option(value) => format!("const {name}: u32 = {value}u;\n"),
                Constant::Choice(value) => format!("const {name}: u32 = {value};\n"),
                Constant::Type(value) => format!("alias {name} = {value};\n"),
            };
        }
        text
    }
}

/// A compiled kernel.
pub(crate) struct Pipeline {
    pub(crate) kernel: &'static Kernel,
    pub(crate) constants: Vec<(&'static str, Constant)>,
    pub(crate) raw: wgpu::ComputePipeline,
    pub(crate) layout: wgpu::BindGroupLayout,
}

impl Gpu {
    /// [`Error::Unsupported`] with the first of `needs` that is not here.
    pub(crate) fn require(&self, place: &'static str, needs: Needs) -> Result<()> {
        let missing = [
            (needs.f64 && !self.has_f64(), "f64 (SHADER_F64)"),
            (
                needs.cooperative != 0 && needs.cooperative != self.cooperative(),
                "cooperative matrices (where there are some, ORTHANT_COOPERATIVE_MATRICES=1 opens devices with them)",
            ),
            (needs.f16 && !self.inner.features.contains(wgpu::Features::SHADER_F16), "f16 (SHADER_F16)"),
            (needs.subgroups && !self.has_subgroups(), "subgroups"),
            (needs.large_memory && !self.has_large_memory(), "32 KiB of workgroup memory"),
        ];
        match missing.into_iter().find(|(lacks, _)| *lacks) {
            None => Ok(()),
            Some((_, feature)) => Err(Error::Unsupported { place, feature, device: self.to_string() }),
        }
    }

    /// The pipeline of `kernel` with `constants`, compiled on first use.
    pub(crate) fn pipeline(&self, kernel: &'static Kernel, constants: Constants<'_>) -> Result<Arc<Pipeline>> {
        let key: Key = (kernel.name, constants.to_vec());
        if let Some(pipeline) = lock(&self.inner.pipelines).get(&key) {
            return Ok(pipeline.clone());
        }
        self.require(kernel.name, kernel.needs)?;
        let device = &self.inner.device;
        let descriptor = wgpu::ShaderModuleDescriptor {
            label: Some(kernel.name),
            source: wgpu::ShaderSource::Wgsl(kernel.text(constants).into()),
        };
        let module = self.guarded(kernel.name, 0, || device.create_shader_module(descriptor))?;
        let descriptor = wgpu::ComputePipelineDescriptor {
            label: Some(kernel.name),
            layout: None,
            module: &module,
            entry_point: None,
            // Kernels write their workgroup memory before they read it.
            compilation_options: wgpu::PipelineCompilationOptions {
                zero_initialize_workgroup_memory: false,
                ..Default::default()
            },
            cache: self.inner.disk.cache.as_ref(),
        };
        let (raw, layout) = self.guarded(kernel.name, 0, || {
            let raw = device.create_compute_pipeline(&descriptor);
            let layout = raw.get_bind_group_layout(0);
            (raw, layout)
        })?;
        self.inner.disk.dirty.store(true, Ordering::Relaxed);
        let pipeline = Arc::new(Pipeline { kernel, constants: constants.to_vec(), layout, raw });
        lock(&self.inner.pipelines).insert(key, pipeline.clone());
        Ok(pipeline)
    }

    /// Records one dispatch of `kernel`; `bindings` are its storage buffers, from binding 1 on.
    pub(crate) fn run<P: Params>(
        &self,
        kernel: &'static Kernel,
        constants: Constants<'_>,
        params: &P,
        bindings: &[View<'_>],
        groups: [u32; 3],
    ) -> Result<()> {
        if groups.contains(&0) {
            return Ok(());
        }
        let pipeline = self.pipeline(kernel, constants)?;
        self.guarded(kernel.name, 0, || {
            lock(&self.inner.recorder).dispatch(&self.inner, &pipeline, bytemuck::bytes_of(params), bindings, groups);
        })
    }

    /// Compiles `kernels` of [`crate::kernels::variants`] ahead of their first use, by the kernels' names; an empty list compiles all that this
    /// adapter can run. Saves the pipeline cache.
    ///
    /// # Errors
    /// [`Error::Argument`] for a name that is no kernel's; [`Error::Unsupported`] for a kernel of the list that this adapter cannot run;
    /// [`Error::Backend`] when the driver refuses one.
    pub fn warm_up(&self, kernels: &[&str]) -> Result<()> {
        let known = crate::kernels::registry();
        if let Some(unknown) = kernels.iter().find(|name| !known.iter().any(|(kernel, _)| kernel.name == **name)) {
            return Err(Error::Argument {
                place: "warm_up",
                quantity: "kernel",
                expected: "a name in kernels::variants()".into(),
                found: (*unknown).into(),
            });
        }
        // Of double-single arithmetic only the form that this adapter uses.
        let guard = self.extended().guard.unwrap_or(1);
        let used = |constants: &[(&str, Constant)]| {
            constants.iter().all(|(name, value)| *name != "GUARD" || *value == Constant::U32(guard))
        };
        for (kernel, constants) in known.iter().filter(|(_, constants)| used(constants)) {
            if kernels.is_empty() || kernels.contains(&kernel.name) {
                match self.pipeline(kernel, constants) {
                    Err(Error::Unsupported { .. }) if kernels.is_empty() => {}
                    other => drop(other?),
                }
            }
        }
        self.inner.disk.save();
        Ok(())
    }
}
