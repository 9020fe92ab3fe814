//! The CPU path.

/// Which function of the order and the argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Function {
    LogIv,
    LogKv,
    IvRatio,
    IvRatioComplement,
    LogIvDx,
    LogKvDx,
    LogIvDv,
    LogKvDv,
    VmfLogNormalizer,
}
/// f32 and f64.
pub trait CpuReal: Sized {
    /// Evaluates.
    fn bessel(function: Function, order: &[Self], x: &[Self], out: &mut [Self]);
}
impl CpuReal for f32 {
    fn bessel(_: Function, order: &[Self], x: &[Self], out: &mut [Self]) {
        for i in 0..out.len() {
            out[i] = order[i] + 2.0 * x[i];
        }
    }
}
impl CpuReal for f64 {
    fn bessel(_: Function, order: &[Self], x: &[Self], out: &mut [Self]) {
        for i in 0..out.len() {
            out[i] = order[i] + 2.0 * x[i];
        }
    }
}
