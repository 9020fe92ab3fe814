//! `orthant vmf score`: the log-density of every row, a block of rows at a time.

use std::time::Instant;

use ndarray::{Array2, s};
use orthant::Device;
use orthant::vmf::Rows;
use serde_json::json;

use super::model::{self, Model};
use super::prepared::Prepared;
use crate::cli::args::Score;
use crate::cli::complaint::{InFile, bad};
use crate::cli::files::{self, Scalar};
use crate::cli::output::{Outputs, print};
use crate::cli::{devices, progress};

pub fn run(args: &Score) -> anyhow::Result<()> {
    let start = Instant::now();
    let (model, center) = model::read(&args.model)?;
    let matrix = files::open(&args.rows, args.array.as_deref())?.into_matrix()?;
    if matrix.dim() != model.dim() {
        let what =
            format!("the rows have {} elements, the model {} has {}", matrix.dim(), args.model.display(), model.dim());
        return Err(bad(args.rows.display(), what));
    }
    let mut outputs = Outputs::beside([&args.rows, &args.model]);
    outputs.claim(&args.out)?;
    let rows = Prepared { matrix: &matrix, center };

    // One distribution is evaluated in f64; a mixture in f32, whatever the file has.
    let (sum, device) = if matrix.is_f64() && matches!(model, Model::One(_)) {
        score::<f64>(args, &model, &rows, &mut outputs)?
    } else {
        score::<f32>(args, &model, &rows, &mut outputs)?
    };
    outputs.commit()?;

    let (seconds, mean) = (start.elapsed().as_secs_f64(), sum / matrix.rows() as f64);
    if args.common.json {
        let report = json!({
            "rows": matrix.rows(), "dim": matrix.dim(), "mean_log_density": mean, "out": args.out,
            "device": device.to_string(), "seconds": seconds,
        });
        return print(&format!("{report}\n"));
    }
    let out = args.out.display();
    print(&format!("{} log-densities, mean {mean:.4}, to {out} ({device}, {seconds:.2} s)\n", matrix.rows()))
}

/// Writes the log-densities, as elements of `T`, and returns their sum and where they were computed.
fn score<T: Scalar + Rows<Score = T> + Into<f64> + npyz::AutoSerialize + npyz::Serialize>(
    args: &Score,
    model: &Model,
    rows: &Prepared,
    outputs: &mut Outputs,
) -> anyhow::Result<(f64, Device)> {
    let matrix = rows.matrix;
    let bar = progress::bar(matrix.rows() as u64, "scoring", "rows");
    let mut device = None;
    let mut sum = 0.0;
    outputs.stage(&args.out, |out| {
        files::write_header::<T>(out, &[matrix.rows() as u64])?;
        for (first, end) in rows.blocks::<T>() {
            let mut block = Array2::<T>::zeros((end - first, matrix.dim()));
            rows.read(first, block.slice_mut(s![.., ..])).in_file(matrix.path())?;
            let device = match &mut device {
                Some(device) => device,
                // Read and checked first: drivers may print lines of their own when a device is opened.
                none if T::DTYPE == files::Dtype::F64 => {
                    none.insert(devices::cpu_for(args.common.device, "densities in f64 are computed")?)
                }
                none => none.insert(devices::open(args.common.device)?),
            };
            let values = device.tensor_from(block).and_then(|rows| model.log_density(&rows)).in_file(matrix.path())?;
            sum += values.sum();
            let values: Vec<T> = values.iter().map(|x| T::from_f64(*x)).collect();
            out.write_all(bytemuck::cast_slice(&values))?;
            bar.set_position(end as u64);
        }
        Ok(())
    })?;
    bar.finish_and_clear();
    Ok((sum, device.unwrap_or(Device::Cpu)))
}
