//! The log-Bessel family: one elementwise kernel, nine functions of an order and an argument that broadcast against each other.

pub(crate) mod cpu;

use std::borrow::Cow;

use ndarray::{ArrayView, ArrayViewD, DimMax, Dimension, Zip};
use rayon::prelude::*;

use crate::gpu::{Arithmetic, Constant, Finding, Gpu, Kernel, Needs, Params, View, params, shader};
use crate::tensor::{Real, Storage, Tensor};
use crate::{Error, Result};
pub(crate) use cpu::Function;

/// What a broadcast pair of inputs gives.
pub type Broadcast<A, B> = <A as DimMax<B>>::Output;

macro_rules! functions {
    ($($(#[$doc:meta])* $name:ident = $function:ident;)*) => {
        $(
            $(#[$doc])*
            ///
            /// * `order`: v, 0 to 1e7; `x`: 0, or 1e-15 to 1e9. The stated accuracy is for v to 1e6 and x from 1e-8 to 1e8. They broadcast as in NumPy.
            /// * `T`: f32; f64 (on GPUs with `SHADER_F64`); or [`DoubleSingle`](crate::DoubleSingle), extended precision on every GPU: within
            ///   1e-13, scaled (README)
            ///
            /// # Errors
            /// [`Error::Domain`] names the first element out of the domain (on a GPU it comes at the wait for the result, or for anything
            /// computed from it); [`Error::Shape`] where the shapes do not broadcast; [`Error::DeviceMismatch`].
            pub fn $name<T, A, B>(order: &Tensor<T, A>, x: &Tensor<T, B>) -> Result<Tensor<T, Broadcast<A, B>>>
            where
                T: Real,
                A: Dimension + DimMax<B>,
                B: Dimension,
            {
                elementwise(Function::$function, order, x)
            }
        )*

        impl Function {
            /// Every function.
            pub(crate) const ALL: &'static [Self] = &[$(Self::$function),*];

            /// Its public name.
            pub(crate) fn name(self) -> &'static str {
                match self { $(Self::$function => stringify!($name)),* }
            }
        }
    };
}

functions! {
    /// ln I_v(x), the log of the modified Bessel function of the first kind, elementwise. At x = 0: 0 for v = 0, else -inf.
    log_iv = LogIv;
    /// ln K_v(x), the log of the modified Bessel function of the second kind, elementwise. At x = 0: +inf.
    log_kv = LogKv;
    /// I_{v+1}(x) / I_v(x), elementwise, in [0, 1). At x = 0: 0.
    iv_ratio = IvRatio;
    /// 1 - I_{v+1}(x) / I_v(x), elementwise, without cancellation. At x = 0: 1.
    iv_ratio_complement = IvRatioComplement;
    /// d/dx ln I_v(x) = v/x + I_{v+1}/I_v, elementwise. At x = 0: 0 for v = 0, else +inf.
    log_iv_dx = LogIvDx;
    /// d/dx ln K_v(x) = v/x - K_{v+1}/K_v, elementwise. At x = 0: -inf.
    log_kv_dx = LogKvDx;
    /// d/dv ln I_v(x), elementwise. At x = 0: -inf.
    log_iv_dv = LogIvDv;
    /// d/dv ln K_v(x), elementwise. At x = 0: 0 for v = 0, else +inf.
    log_kv_dv = LogKvDv;
    /// ln C_d(kappa) = v ln(kappa) - (d/2) ln(2 pi) - ln I_v(kappa), the log of the von Mises-Fisher normaliser, with v = d/2 - 1 as the order
    /// and kappa as the argument, elementwise. At kappa = 0: minus the log of the area of the sphere.
    vmf_log_normalizer = VmfLogNormalizer;
}

params! {
    /// As in `shaders/bessel.wgsl`.
    BesselParams {
        count: u32,
        rank: u32,
        order_offset: u32,
        x_offset: u32,
        out_start: u32,
        groups_x: u32,
        out_offset: u32,
        zero: u32,
        shape: [u32; MAX_RANK],
        order_stride: [u32; MAX_RANK],
        x_stride: [u32; MAX_RANK],
    }
}

/// Axes that can broadcast on a GPU, after neighbours that broadcast alike are joined.
const MAX_RANK: usize = 8;

static BESSEL_F32: Kernel = Kernel {
    name: "bessel_f32",
    sources: &[
        shader!("bessel.wgsl"),
        shader!("shared/bessel_f32.wgsl"),
        shader!("shared/math_f32.wgsl"),
        shader!("shared/real_f32.wgsl"),
    ],
    needs: Needs::NONE,
    fields: BesselParams::FIELDS,
    params_bytes: size_of::<BesselParams>(),
};

static BESSEL_F64: Kernel = Kernel {
    name: "bessel_f64",
    sources: &[
        shader!("bessel.wgsl"),
        shader!("shared/bessel_f64.wgsl"),
        shader!("shared/math_f64.wgsl"),
        shader!("shared/stored_f64.wgsl"),
    ],
    needs: Needs { f64: true, ..Needs::NONE },
    fields: BesselParams::FIELDS,
    params_bytes: size_of::<BesselParams>(),
};

/// [`DoubleSingle`](crate::DoubleSingle) elements, computed in f64 where that is the faster.
static BESSEL_PAIRS_F64: Kernel = Kernel {
    name: "bessel_pairs_f64",
    sources: &[
        shader!("bessel.wgsl"),
        shader!("shared/bessel_f64.wgsl"),
        shader!("shared/math_f64.wgsl"),
        shader!("shared/stored_pairs.wgsl"),
    ],
    needs: Needs { f64: true, ..Needs::NONE },
    fields: BesselParams::FIELDS,
    params_bytes: size_of::<BesselParams>(),
};

static BESSEL_DOUBLE_SINGLE: Kernel = Kernel {
    name: "bessel_double_single",
    sources: &[
        shader!("bessel.wgsl"),
        shader!("shared/bessel_double_single.wgsl"),
        shader!("shared/double_single.wgsl"),
        shader!("shared/math_f32.wgsl"),
        shader!("shared/real_pairs.wgsl"),
    ],
    needs: Needs::NONE,
    fields: BesselParams::FIELDS,
    params_bytes: size_of::<BesselParams>(),
};

const WORKGROUP: u32 = 64;

/// `real`: what is computed in; `stored`: what elements are, in WGSL's words; `guard`: 0 for kernels without double-single arithmetic.
pub(super) fn constants(
    function: Function,
    real: &'static str,
    stored: &'static str,
    guard: u32,
) -> Vec<(&'static str, Constant)> {
    let mut all: Vec<_> = NAMES.into_iter().zip((0..).map(Constant::Option)).collect();
    all.push(("FUNCTION", Constant::Choice(NAMES[function as usize])));
    all.push(("Real", Constant::Type(real)));
    all.push(("Stored", Constant::Type(stored)));
    if guard > 0 {
        all.push(("GUARD", Constant::U32(guard)));
    }
    all.push(("WORKGROUP", Constant::U32(WORKGROUP)));
    all
}

/// The functions as the shader calls them, in the order of [`Function`].
const NAMES: [&str; 9] = [
    "LOG_IV",
    "LOG_KV",
    "IV_RATIO",
    "IV_RATIO_COMPLEMENT",
    "LOG_IV_DX",
    "LOG_KV_DX",
    "LOG_IV_DV",
    "LOG_KV_DV",
    "VMF_LOG_NORMALIZER",
];

/// The kernel as it is compiled, for every function and element type.
pub(crate) fn variants() -> Vec<(&'static Kernel, Vec<(&'static str, Constant)>)> {
    let of = |kernel, real, stored, guard| {
        Function::ALL.iter().map(move |&function| (kernel, constants(function, real, stored, guard)))
    };
    of(&BESSEL_F32, "f32", "f32", 0)
        .chain(of(&BESSEL_F64, "f64", "f64", 0))
        .chain(of(&BESSEL_PAIRS_F64, "f64", "vec2f", 0))
        .chain(of(&BESSEL_DOUBLE_SINGLE, "vec2f", "vec2f", 1))
        .chain(of(&BESSEL_DOUBLE_SINGLE, "vec2f", "vec2f", 2))
        .collect()
}

/// Where the functions are defined: x is 0 or in [1e-15, 1e9], the order in [0, 1e7]. The shaders test the same bounds.
fn in_domain(value: f64, smallest: f64, largest: f64) -> bool {
    (value == 0.0) | ((value >= smallest) & (value <= largest))
}

const ORDER: Finding = Finding { quantity: "order", expected: "0 to 1e7", found: "out of the domain, or not finite" };
const ARGUMENT: Finding =
    Finding { quantity: "x", expected: "0, or 1e-15 to 1e9", found: "out of the domain, or not finite" };

fn elementwise<T, A, B>(
    function: Function,
    order: &Tensor<T, A>,
    x: &Tensor<T, B>,
) -> Result<Tensor<T, Broadcast<A, B>>>
where
    T: Real,
    A: Dimension + DimMax<B>,
    B: Dimension,
{
    let place = function.name();
    order.device().same(place, "x", x.device())?;
    let shape = broadcast(place, order.shape(), x.shape())?;
    let mut dim = Broadcast::<A, B>::zeros(shape.len());
    dim.slice_mut().copy_from_slice(&shape);
    match (order.storage(), x.storage()) {
        (Storage::Host(order), Storage::Host(x)) => {
            let values = on_cpu(function, &order.into_dyn(), &x.into_dyn(), &shape)?;
            match ndarray::Array::from_shape_vec(dim, values) {
                Ok(array) => Ok(Tensor::host(array)),
                Err(_) => unreachable!("as many values as the shape has"),
            }
        }
        (Storage::Gpu(gpu, order_buffer), Storage::Gpu(_, x_buffer)) => {
            let layout = Layout::new(place, &shape, order.shape(), x.shape())?;
            let check = gpu.check(place, &[ORDER, ARGUMENT])?;
            let out = gpu.allocate(place, (dim.size() * size_of::<T>()) as u64)?;
            layout.run::<T>(function, gpu, order_buffer, x_buffer, &out, check.view())?;
            let checks = super::inherit(&[&[check], order.checks(), x.checks()]);
            Ok(Tensor::on_gpu(gpu, out, dim, checks))
        }
        _ => unreachable!("both are on one device"),
    }
}

/// NumPy's rule: shapes aligned at their last axes, an axis of 1 repeats.
fn broadcast(place: &'static str, a: &[usize], b: &[usize]) -> Result<Vec<usize>> {
    let rank = a.len().max(b.len());
    let at = |shape: &[usize], axis: usize| (axis + shape.len()).checked_sub(rank).map_or(1, |axis| shape[axis]);
    (0..rank)
        .map(|axis| match (at(a, axis), at(b, axis)) {
            (1, size) | (size, 1) => Ok(size),
            (size, other) if size == other => Ok(size),
            _ => Err(Error::Shape {
                place,
                quantity: "x",
                expected: format!("one that broadcasts with order's {a:?}"),
                found: b.to_vec(),
            }),
        })
        .collect()
}

/// Elements that one CPU task computes: enough to fill every region's vectors, small enough to stay in its cache.
const TASK: usize = 8192;

fn on_cpu<T: Real>(
    function: Function,
    order: &ArrayViewD<'_, T>,
    x: &ArrayViewD<'_, T>,
    shape: &[usize],
) -> Result<Vec<T>> {
    let order = spread(order, shape);
    let x = spread(x, shape);
    let mut out = vec![T::zeroed(); order.len()];
    let bad = |finding: Finding, index: usize, value: T| Error::Domain {
        place: function.name(),
        quantity: finding.quantity,
        index,
        expected: finding.expected,
        found: value.to_string(),
    };
    let worst = (out.par_chunks_mut(TASK), order.par_chunks(TASK), x.par_chunks(TASK))
        .into_par_iter()
        .enumerate()
        .filter_map(|(task, (out, order, x))| {
            let first = |values: &[T], smallest, largest| {
                // Without an early exit this is a SIMD loop, and the search runs only where it finds.
                let inside = values.iter().fold(true, |all, value| all & in_domain(value.to_f64(), smallest, largest));
                (!inside).then(|| values.iter().position(|value| !in_domain(value.to_f64(), smallest, largest)))?
            };
            if let Some(at) = first(order, 0.0, 1e7) {
                return Some((task * TASK + at, bad(ORDER, task * TASK + at, order[at])));
            }
            if let Some(at) = first(x, 1e-15, 1e9) {
                return Some((task * TASK + at, bad(ARGUMENT, task * TASK + at, x[at])));
            }
            T::bessel(function, order, x, out);
            None
        })
        .min_by_key(|(index, _)| *index);
    match worst {
        Some((_, error)) => Err(error),
        None => Ok(out),
    }
}

/// The elements of `view` in row-major order, repeated to `shape`; borrowed where they lie so already.
fn spread<'a, T: Real>(view: &'a ArrayViewD<'a, T>, shape: &[usize]) -> Cow<'a, [T]> {
    match view.as_slice() {
        Some(elements) if view.shape() == shape => Cow::Borrowed(elements),
        _ => {
            let wide: ArrayView<'_, T, _> =
                view.broadcast(shape).unwrap_or_else(|| unreachable!("shapes were checked"));
            let mut out = ndarray::ArrayD::from_elem(shape, T::zeroed());
            Zip::from(&mut out).and_broadcast(&wide).for_each(|out, value| *out = *value);
            Cow::Owned(out.into_raw_vec_and_offset().0)
        }
    }
}

/// How the elements of two inputs meet on a GPU: axes joined where both inputs step through them alike.
struct Layout {
    place: &'static str,
    count: usize,
    /// Empty where both inputs are as long as the output.
    axes: Vec<Axis>,
}

#[derive(Clone, Copy)]
struct Axis {
    size: usize,
    order_stride: usize,
    x_stride: usize,
}

impl Layout {
    fn new(place: &'static str, shape: &[usize], order: &[usize], x: &[usize]) -> Result<Self> {
        let count = shape.iter().product();
        let too_large = |needed: usize, limit: u64| Error::TooLarge {
            place,
            quantity: "elements",
            needed: needed as u64,
            limit,
            device: "a 32-bit index".into(),
        };
        if count > u32::MAX as usize {
            return Err(too_large(count, u64::from(u32::MAX)));
        }
        let strides = |input: &[usize]| {
            let mut stride = 1;
            let mut strides = vec![0; shape.len()];
            for (slot, &size) in strides.iter_mut().rev().zip(input.iter().rev()) {
                *slot = if size == 1 { 0 } else { stride };
                stride *= size;
            }
            strides
        };
        let mut axes: Vec<Axis> = Vec::new();
        for ((&size, order_stride), x_stride) in shape.iter().zip(strides(order)).zip(strides(x)) {
            if size == 1 {
                continue;
            }
            match axes.last_mut() {
                Some(outer) if outer.order_stride == order_stride * size && outer.x_stride == x_stride * size => {
                    *outer = Axis { size: outer.size * size, order_stride, x_stride };
                }
                _ => axes.push(Axis { size, order_stride, x_stride }),
            }
        }
        if matches!(axes[..], [] | [Axis { order_stride: 1, x_stride: 1, .. }]) {
            axes.clear();
        }
        if axes.len() > MAX_RANK {
            return Err(Error::Shape {
                place,
                quantity: "x",
                expected: format!("at most {MAX_RANK} axes that broadcast in turn"),
                found: x.to_vec(),
            });
        }
        Ok(Self { place, count, axes })
    }

    /// First and one past the last element that outputs `[start, end)` touch in an input, by its stride along each axis.
    fn touched(&self, start: usize, end: usize, stride: impl Fn(&Axis) -> usize) -> (usize, usize) {
        if self.axes.is_empty() {
            return (start, end);
        }
        let (mut low, mut high) = (0, 0);
        let mut inner: usize = self.axes.iter().map(|axis| axis.size).product();
        let (mut from, mut to) = (start, end - 1);
        let mut split = false;
        for axis in &self.axes {
            inner /= axis.size;
            let step = stride(axis);
            if split {
                // The run crosses an outer step: it may touch all of this axis.
                high += (axis.size - 1) * step;
                continue;
            }
            low += from / inner * step;
            high += to / inner * step;
            split = from / inner != to / inner;
            (from, to) = (from % inner, to % inner);
        }
        (low, high + 1)
    }

    /// Records the dispatches: as many windows as bindings and grids need.
    fn run<T: Real>(
        &self,
        function: Function,
        gpu: &Gpu,
        order: &crate::gpu::Buffer,
        x: &crate::gpu::Buffer,
        out: &crate::gpu::Buffer,
        status: View<'_>,
    ) -> Result<()> {
        let element = size_of::<T>() as u64;
        let alignment = gpu.binding_alignment().max(element);
        let limit = gpu.max_binding();
        let (kernel, constants) = match T::NAME {
            "f32" => (&BESSEL_F32, constants(function, "f32", "f32", 0)),
            "f64" => (&BESSEL_F64, constants(function, "f64", "f64", 0)),
            _ => match gpu.arithmetic(self.place)? {
                (Arithmetic::F64, _) => (&BESSEL_PAIRS_F64, constants(function, "f64", "vec2f", 0)),
                (Arithmetic::DoubleSingle, guard) => {
                    (&BESSEL_DOUBLE_SINGLE, constants(function, "vec2f", "vec2f", guard))
                }
            },
        };
        // A window may begin below its first element, by less than an alignment.
        let largest = ((limit - alignment) / element) as usize;
        let mut start = 0;
        while start < self.count {
            let mut end = (start + largest).min(self.count);
            let (order_window, x_window) = loop {
                let window = |buffer, (first, last): (usize, usize)| {
                    let (view, shift) =
                        View::window(buffer, first as u64 * element, (last - first) as u64 * element, alignment);
                    (view, (shift / element) as u32, first)
                };
                let order = window(order, self.touched(start, end, |axis| axis.order_stride));
                let x = window(x, self.touched(start, end, |axis| axis.x_stride));
                if order.0.bytes <= limit && x.0.bytes <= limit {
                    break (order, x);
                }
                // One element always fits, so this ends.
                end = start + (end - start) / 2;
            };
            let count = end - start;
            let grid = gpu.grid(self.place, (count as u64).div_ceil(u64::from(WORKGROUP)))?;
            // With strides the kernel counts from the start of the input, so its index may wrap below zero and back.
            let offset = |(_, shift, first): &(View<'_>, u32, usize)| {
                if self.axes.is_empty() { *shift } else { shift.wrapping_sub(*first as u32) }
            };
            let (out_view, out_shift) = View::window(out, start as u64 * element, count as u64 * element, alignment);
            let mut params = BesselParams {
                count: count as u32,
                rank: self.axes.len() as u32,
                order_offset: offset(&order_window),
                x_offset: offset(&x_window),
                out_start: start as u32,
                groups_x: grid[0],
                out_offset: (out_shift / element) as u32,
                zero: 0,
                shape: [1; MAX_RANK],
                order_stride: [0; MAX_RANK],
                x_stride: [0; MAX_RANK],
            };
            for (at, axis) in self.axes.iter().enumerate() {
                params.shape[at] = axis.size as u32;
                params.order_stride[at] = axis.order_stride as u32;
                params.x_stride[at] = axis.x_stride as u32;
            }
            gpu.run(kernel, &constants, &params, &[order_window.0, x_window.0, out_view, status], grid)?;
            start = end;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn touched_is_the_exact_hull_or_wider() {
        let cases: [(&[usize], &[usize], &[usize]); 5] = [
            (&[3, 4, 5], &[3, 1, 5], &[1, 4, 1]),
            (&[7, 3], &[7, 1], &[7, 3]),
            (&[2, 3, 2, 3], &[2, 1, 2, 1], &[1, 3, 1, 3]),
            (&[12], &[1], &[12]),
            (&[5, 6], &[5, 6], &[5, 6]),
        ];
        for (shape, order, x) in cases {
            let layout = Layout::new("test", shape, order, x).unwrap();
            let index = |i: usize| {
                let (mut i, mut at) = (i, 0);
                if layout.axes.is_empty() {
                    return i;
                }
                for axis in layout.axes.iter().rev() {
                    at += i % axis.size * axis.order_stride;
                    i /= axis.size;
                }
                at
            };
            for start in 0..layout.count {
                for end in start + 1..=layout.count {
                    let (low, high) = layout.touched(start, end, |axis| axis.order_stride);
                    for i in start..end {
                        assert!((low..high).contains(&index(i)), "{shape:?} {start}..{end}: {i} -> {}", index(i));
                    }
                    assert!(high <= order.iter().product(), "{shape:?} {start}..{end} reaches {high}");
                }
            }
        }
    }

    #[test]
    fn the_shader_knows_the_functions_by_their_names() {
        for &function in Function::ALL {
            assert_eq!(NAMES[function as usize], function.name().to_uppercase());
        }
    }

    #[test]
    fn shapes_broadcast_as_in_numpy() {
        assert_eq!(broadcast("t", &[3, 1], &[4]).unwrap(), [3, 4]);
        assert_eq!(broadcast("t", &[], &[2, 0]).unwrap(), [2, 0]);
        assert_eq!(broadcast("t", &[1, 0], &[5, 1]).unwrap(), [5, 0]);
        assert!(matches!(broadcast("t", &[3], &[4]), Err(Error::Shape { .. })));
    }
}
