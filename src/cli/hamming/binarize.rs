//! `orthant hamming binarize`.

use std::fmt::Display;
use std::path::Path;
use std::time::Instant;

use ndarray::{Array2, Ix2};
use orthant::hamming::{Binarizer, Fusion, ItqOptions, SignRule, binarize, fuse};
use orthant::{Device, Tensor};
use serde_json::json;

use crate::cli::args::{Binarize, Method, Rule, ViewFusion};
use crate::cli::complaint::{InFile, bad};
use crate::cli::output::{Outputs, print};
use crate::cli::{devices, files};

pub fn run(args: &Binarize) -> anyhow::Result<()> {
    let start = Instant::now();
    let first = rows(args, &args.rows, args.array.as_deref())?;
    let mut views = vec![first];
    for path in &args.view {
        views.push(rows(args, path, None)?);
        if views[0].nrows() != views[views.len() - 1].nrows() {
            let (found, expected) = (views[views.len() - 1].nrows(), views[0].nrows());
            let what = format!("it has {found} rows, {} has {expected}", args.rows.display());
            return Err(bad(path.display(), what));
        }
    }
    let learned_from = args.fit.as_ref().map(|path| rows(args, path, None)).transpose()?;
    let read = [Some(&args.rows), args.fit.as_ref(), args.with.as_ref()];
    let mut outputs = Outputs::beside(read.into_iter().flatten().chain(&args.view));
    outputs.claim(&args.out)?;
    if let Some(model) = &args.model {
        outputs.claim(model)?;
    }
    let saved = args.with.as_ref().map(|path| Binarizer::load(path).in_file(path)).transpose()?;
    if saved.is_none() {
        check_bits(args, &views)?;
    }

    let device = devices::open(args.common.device)?;
    let path = &args.rows;
    let fused = one_view(args, &device, views)?;
    let binarizer = match saved {
        Some(saved) => saved,
        None => match learned_from {
            Some(rows) => learn(args, &device.tensor_from(rows).in_file(path)?)?,
            None => learn(args, &fused)?,
        },
    };
    let codes = binarize(&fused, &binarizer).in_file(path)?;
    let words = codes.words().to_array().in_file(path)?;
    let shape = [words.nrows() as u64, words.ncols() as u64];
    outputs.stage(&args.out, |to| Ok(files::write_npy(to, &shape, words.as_slice().unwrap_or(&[]))?))?;
    if let Some(model) = &args.model {
        let bytes = binarizer.to_bytes().in_file(model)?;
        outputs.stage(model, |to| Ok(to.write_all(&bytes)?))?;
    }
    outputs.commit()?;

    let (bits, out, seconds) = (binarizer.bits(), args.out.display(), start.elapsed().as_secs_f64());
    if args.common.json {
        let report = json!({
            "rows": words.nrows(), "dim": binarizer.dim(), "bits": bits, "out": args.out, "model": args.model,
            "device": device.to_string(), "seconds": seconds,
        });
        return print(&format!("{report}\n"));
    }
    print(&format!("{} codes of {bits} bits to {out} ({device}, {seconds:.2} s)\n", words.nrows()))
}

/// All rows of a file, of unit length where that is asked for.
fn rows(args: &Binarize, path: &Path, array: Option<&str>) -> anyhow::Result<Array2<f32>> {
    let mut rows = files::open(path, array)?.into_matrix_of(1)?.read_all()?;
    if args.normalize {
        for (i, mut row) in rows.outer_iter_mut().enumerate() {
            let length = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
            if length == 0.0 {
                return Err(bad(
                    path.display(),
                    format!("row {i} is zero, which has no direction (rows count from 0)"),
                ));
            }
            row.mapv_inplace(|x| (f64::from(x) / length) as f32);
        }
    }
    Ok(rows)
}

/// Says what is wrong with `--bits` before a device is opened, whose drivers may print lines of their own.
fn check_bits(args: &Binarize, views: &[Array2<f32>]) -> anyhow::Result<()> {
    let dim: usize = match args.fusion {
        ViewFusion::Concatenate => views.iter().map(Array2::ncols).sum(),
        ViewFusion::Sum => views[0].ncols(),
    };
    let bits = args.bits.unwrap_or(dim);
    let wrong = |what: &dyn Display| Err(bad(args.rows.display(), what));
    if bits == 0 || !bits.is_multiple_of(8) || bits > 8192 {
        let default = if args.bits.is_none() { ", one for each feature: give --bits" } else { "" };
        return wrong(&format!("codes of {bits} bits{default}; expected a multiple of 8 from 8 to 8192"));
    }
    if args.method != Method::Hyperplane && bits > dim {
        return wrong(&format!("the rows have {dim} features, too few for {bits} bits"));
    }
    Ok(())
}

fn one_view(args: &Binarize, device: &Device, views: Vec<Array2<f32>>) -> anyhow::Result<Tensor<f32, Ix2>> {
    let tensors: Vec<Tensor<f32, Ix2>> =
        views.into_iter().map(|view| device.tensor_from(view)).collect::<orthant::Result<_>>().in_file(&args.rows)?;
    if args.view.is_empty() {
        return Ok(tensors[0].clone());
    }
    let weights = if args.weights.is_empty() { vec![1.0; tensors.len()] } else { args.weights.clone() };
    let fusion = match args.fusion {
        ViewFusion::Concatenate => Fusion::Concatenate,
        ViewFusion::Sum => Fusion::Sum,
    };
    fuse(&tensors.iter().collect::<Vec<_>>(), &weights, fusion).in_file(&args.rows)
}

fn learn(args: &Binarize, rows: &Tensor<f32, Ix2>) -> anyhow::Result<Binarizer> {
    let dim = rows.shape()[1];
    let bits = args.bits.unwrap_or(dim);
    let binarizer = match args.method {
        Method::Sign => Binarizer::sign(dim, bits),
        Method::Mean => Binarizer::mean(rows, bits),
        Method::Median => Binarizer::median(rows, bits),
        Method::Hyperplane => Binarizer::hyperplanes(dim, bits, args.seed),
        Method::Itq => Binarizer::itq(rows, &ItqOptions::new(bits).iterations(args.iterations).seed(args.seed)),
    };
    let rule = match args.rule {
        Rule::AtLeast => SignRule::AtLeast,
        Rule::Above => SignRule::Above,
    };
    Ok(binarizer.in_file(args.fit.as_ref().unwrap_or(&args.rows))?.rule(rule))
}
