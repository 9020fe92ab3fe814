//! `orthant attention`: queries, keys and values of one file, the output as a `.npy`.

use std::path::Path;
use std::time::Instant;

use half::f16;
use ndarray::{Array4, ArrayD, Ix4, IxDyn, ShapeBuilder};
use orthant::attention::{AttentionElement, Options, alibi_slopes, attention};
use orthant::{Device, Tensor};
use serde_json::json;

use super::args::{Attention, AttentionDtype};
use super::complaint::{InFile, bad};
use super::devices;
use super::files::{self, Dtype, RawArray};
use super::output::{Outputs, print};

/// What was computed, for the report.
struct Done {
    device: Device,
    q: Vec<usize>,
    k: Vec<usize>,
    dtype: &'static str,
}

pub fn run(args: &Attention) -> anyhow::Result<()> {
    let start = Instant::now();
    let mut outputs = Outputs::beside([&args.input]);
    outputs.claim(&args.out)?;
    if let Some(lse) = &args.lse {
        outputs.claim(lse)?;
    }
    let [q, k, v] = [&args.q, &args.k, &args.v].map(|name| heads(&args.input, name));
    let (q, k, v) = (q?, k?, v?);
    let half = match args.dtype {
        Some(dtype) => dtype == AttentionDtype::F16,
        None => [&q, &k, &v].iter().all(|array| array.dtype == Dtype::F16),
    };
    let done = if half {
        compute::<f16>(args, q, k, v, &mut outputs, f16::from_f64)?
    } else {
        compute::<f32>(args, q, k, v, &mut outputs, |value| value as f32)?
    };
    outputs.commit()?;

    let (seconds, out) = (start.elapsed().as_secs_f64(), args.out.display());
    let Done { device, q, k, dtype } = done;
    if args.common.json {
        let report = json!({
            "q": q, "k": k, "dtype": dtype, "out": args.out, "device": device.to_string(), "seconds": seconds,
        });
        return print(&format!("{report}\n"));
    }
    print(&format!("attention of {q:?} to {k:?} in {dtype} to {out} ({device}, {seconds:.2} s)\n"))
}

/// One of the three, [heads, length, d] or [batch, heads, length, d], not yet read.
fn heads(path: &Path, name: &str) -> anyhow::Result<RawArray> {
    let array = files::open(path, Some(name))?;
    if !matches!(array.dtype, Dtype::F16 | Dtype::F32) {
        let found = &array.dtype_name;
        return Err(bad(path.display(), format!("the elements of {name} are {found}, expected float16 or float32")));
    }
    if !matches!(array.shape.len(), 3 | 4) {
        let shape = array.shape_text();
        return Err(bad(
            path.display(),
            format!("{name} has shape {shape}, expected (heads, length, d), or four axes"),
        ));
    }
    Ok(array)
}

/// All its elements, with the batch axis.
fn read<T: Copy>(path: &Path, array: RawArray, narrow: fn(f64) -> T) -> anyhow::Result<Array4<T>> {
    let (shape, fortran) = (array.shape.clone(), array.fortran);
    let elements: Vec<T> = array.floats()?.into_iter().map(narrow).collect();
    let whole =
        ArrayD::from_shape_vec(IxDyn(&shape).set_f(fortran), elements).map_err(|error| bad(path.display(), error))?;
    let whole = if shape.len() == 3 { whole.insert_axis(ndarray::Axis(0)) } else { whole };
    whole.into_dimensionality::<Ix4>().map_err(|error| bad(path.display(), error))
}

fn compute<T: AttentionElement + npyz::AutoSerialize + npyz::Serialize>(
    args: &Attention,
    q: RawArray,
    k: RawArray,
    v: RawArray,
    outputs: &mut Outputs,
    narrow: fn(f64) -> T,
) -> anyhow::Result<Done> {
    let path = &args.input;
    // The outputs have the axes of q.
    let without = 4 - q.shape.len();
    let axes = move |shape: &[usize]| shape[without..].iter().map(|&n| n as u64).collect::<Vec<_>>();
    let (q_shape, k_shape) = (q.shape.clone(), k.shape.clone());
    let (q, k, v) = (read(path, q, narrow)?, read(path, k, narrow)?, read(path, v, narrow)?);
    let options = options(args, q.shape()[1])?;
    let device = devices::open(args.common.device)?;
    let on = |array: Array4<T>| -> orthant::Result<Tensor<T, Ix4>> { device.tensor_from(array) };
    let result = on(q).and_then(|q| attention(&q, &on(k)?, &on(v)?, &options)).in_file(path)?;
    let output = result.output.to_array().in_file(path)?;
    outputs
        .stage(&args.out, |out| Ok(files::write_npy(out, &axes(output.shape()), output.as_slice().unwrap_or(&[]))?))?;
    if let (Some(to), Some(lse)) = (&args.lse, &result.lse) {
        let lse = lse.to_array().in_file(path)?;
        outputs.stage(to, |out| Ok(files::write_npy(out, &axes(lse.shape()), lse.as_slice().unwrap_or(&[]))?))?;
    }
    Ok(Done { device, q: q_shape, k: k_shape, dtype: T::NAME })
}

fn options(args: &Attention, q_heads: usize) -> anyhow::Result<Options> {
    let mut options = Options::new();
    if args.causal {
        options = options.causal();
    }
    if let Some(window) = args.window {
        options = options.window(window);
    }
    if let Some(cap) = args.softcap {
        options = options.softcap(cap);
    }
    if let Some(scale) = args.scale {
        options = options.scale(scale);
    }
    if args.alibi {
        options = options.alibi(alibi_slopes(q_heads));
    }
    if let Some(name) = &args.sinks {
        let sinks = files::open(&args.input, Some(name))?.into_floats("sink", q_heads)?;
        options = options.sinks(sinks.into_iter().map(|logit| logit as f32).collect());
    }
    Ok(if args.lse.is_some() { options.lse() } else { options })
}
