//! Cooperative matrices: which of them an adapter has, and the door that wgpu keeps before them.
//!
//! Devices have them only where the environment says `ORTHANT_COOPERATIVE_MATRICES=1`: wgpu calls them experimental, and orthant's kernel has not met an
//! adapter with them yet.
//! naga 30 does not declare `VulkanMemoryModelDeviceScope` in the SPIR-V of such a kernel, which its atomic status word needs (wgpu enables the feature
//! all the same): spirv-val refuses that SPIR-V. With the declaration added it accepts it as SPIR-V 1.3 and 1.6, but not for Vulkan 1.3, where arrays in
//! workgroup memory may have no stride (VUID 10684). Drivers that validate may refuse it too.

/// Rows of the matrices that kernels use on `adapter`, 16 or 8; 0 where there are none, or nobody asked for them.
///
/// Kernels multiply f16 and sum in f32, keep f16 in workgroup memory, and count on subgroups of 32.
pub(super) fn rows(adapter: &wgpu::Adapter) -> u32 {
    let features =
        wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX | wgpu::Features::SHADER_F16 | wgpu::Features::SUBGROUP;
    let info = adapter.get_info();
    let asked = std::env::var_os("ORTHANT_COOPERATIVE_MATRICES").is_some_and(|value| value == "1");
    if !asked || !adapter.features().contains(features) || (info.subgroup_min_size, info.subgroup_max_size) != (32, 32)
    {
        return 0;
    }
    let known = adapter.cooperative_matrix_properties();
    let has = |size| {
        known.iter().any(|shape| {
            (shape.m_size, shape.n_size, shape.k_size) == (size, size, size)
                && shape.ab_type == wgpu::wgt::CooperativeScalarType::F16
                && shape.cr_type == wgpu::wgt::CooperativeScalarType::F32
        })
    };
    [16, 8].into_iter().find(|size| has(*size)).unwrap_or(0)
}

/// The feature and wgpu's token for it, or nothing where `rows` is 0.
#[allow(unsafe_code)]
pub(super) fn request(rows: u32) -> (wgpu::Features, wgpu::ExperimentalFeatures) {
    if rows == 0 {
        return (wgpu::Features::empty(), wgpu::ExperimentalFeatures::disabled());
    }
    // SAFETY: the caller must accept that wgpu's experimental features may have bugs with undefined behaviour. Whoever set the environment variable
    // does. What can reach them is one shader of orthant's own: callers cannot bring WGSL, every shader is validated by naga, and shaders without
    // cooperative matrices are compiled as without the feature.
    let token = unsafe { wgpu::ExperimentalFeatures::enabled() };
    (wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX, token)
}
