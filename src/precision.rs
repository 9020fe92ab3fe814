//! [`Precision`]: how many digits a call asks a GPU for.

/// How a call that returns f64 to the host computes on a GPU; on the CPU it is f64 throughout, whatever is asked.
///
/// Kernels take the same choice as the type of their elements: f32, or [`DoubleSingle`](crate::DoubleSingle).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum Precision {
    /// f32.
    #[default]
    Single,
    /// f64 class: pairs of f32, or the adapter's own f64 where that is the faster ([`Gpu::extended`](crate::Gpu::extended) says which). An error where
    /// neither will do.
    Extended,
}
