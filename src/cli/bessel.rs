//! `orthant bessel`: a function at the points of a CSV file, a block of lines at a time.

use std::io::Write;
use std::time::Instant;

use ndarray::{Array1, Ix1};
use orthant::{Device, DoubleSingle, Real, Result, Tensor, kernels};
use serde_json::json;

use super::args::{Bessel, BesselDtype, BesselFunction};
use super::complaint::bad;
use super::files::{csv_error, open_file};
use super::output::{Outputs, print};
use super::{devices, progress};

/// Lines of a block: enough to keep a GPU busy, little enough to hold beside any file.
const BLOCK: usize = 1 << 18;

/// Lines read and not yet computed: v and x, and their text as it stands.
#[derive(Default)]
struct Block {
    text: Vec<(String, String)>,
    points: Vec<(f64, f64)>,
}

pub fn run(args: &Bessel) -> anyhow::Result<()> {
    let start = Instant::now();
    let mut outputs = Outputs::beside([&args.input]);
    outputs.claim(&args.out)?;
    let (file, length) = open_file(&args.input)?;
    let mut device = None;
    let bar = progress::bar(length, "bessel", "bytes");

    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).comment(Some(b'#')).from_reader(file);
    let headers = reader.headers().map_err(|error| bad(args.input.display(), csv_error(&error)))?.clone();
    let column = |name: &str| {
        headers.iter().position(|header| header == name).ok_or_else(|| {
            let found = headers.iter().collect::<Vec<_>>().join(",");
            bad(args.input.display(), format!("the first line has no column {name}: it is {found:?}, expected v,x"))
        })
    };
    let (v, x) = (column("v")?, column("x")?);

    let mut rows = 0;
    outputs.stage(&args.out, |out| {
        writeln!(out, "v,x,value")?;
        let mut block = Block::default();
        for record in reader.records() {
            let record = record.map_err(|error| bad(args.input.display(), csv_error(&error)))?;
            let line = record.position().map_or(0, csv::Position::line);
            let number = |column: usize| {
                let field = &record[column];
                field
                    .parse::<f64>()
                    .map_err(|_| bad(args.input.display(), format!("line {line}: {field:?} is not a number")))
            };
            let point = (number(v)?, number(x)?);
            check_domain(point).map_err(|quantity| {
                let (v, x) = (&record[v], &record[x]);
                bad(args.input.display(), format!("line {line}: v = {v}, x = {x} is out of the domain: {quantity}"))
            })?;
            block.points.push(point);
            block.text.push((record[v].to_string(), record[x].to_string()));
            rows += 1;
            if block.points.len() == BLOCK {
                compute(args, opened(&mut device, args)?, &std::mem::take(&mut block), out)?;
                bar.set_position(record.position().map_or(0, csv::Position::byte));
            }
        }
        compute(args, opened(&mut device, args)?, &block, out)
    })?;
    outputs.commit()?;
    let device = opened(&mut device, args)?;
    bar.finish_and_clear();

    let seconds = start.elapsed().as_secs_f64();
    let dtype = args.dtype.name();
    if args.common.json {
        let name = clap::ValueEnum::to_possible_value(&args.function).map(|value| value.get_name().to_string());
        let report = json!({
            "function": name, "rows": rows, "dtype": dtype, "out": args.out, "device": device.to_string(), "seconds": seconds,
        });
        return print(&format!("{report}\n"));
    }
    print(&format!("{rows} values in {dtype} to {} ({device}, {seconds:.2} s)\n", args.out.display()))
}

/// The device, opened when a block of good points is there: drivers may print lines of their own.
fn opened<'a>(device: &'a mut Option<Device>, args: &Bessel) -> anyhow::Result<&'a Device> {
    if device.is_none() {
        *device = Some(devices::open(args.common.device)?);
    }
    Ok(device.get_or_insert(Device::Cpu))
}

/// The library's own domain, of the numbers as they were given: in f32 a small x would become 0.
fn check_domain((v, x): (f64, f64)) -> std::result::Result<(), &'static str> {
    if !(0.0..=1e7).contains(&v) {
        return Err("order, expected 0 to 1e7");
    }
    if x != 0.0 && !(1e-15..=1e9).contains(&x) {
        return Err("x, expected 0, or 1e-15 to 1e9");
    }
    Ok(())
}

fn compute(args: &Bessel, device: &Device, block: &Block, out: &mut dyn Write) -> anyhow::Result<()> {
    if block.points.is_empty() {
        return Ok(());
    }
    match args.dtype {
        BesselDtype::F32 => compute_in(args, device, block, out, |x| x as f32),
        BesselDtype::F64 => compute_in(args, device, block, out, |x| x),
        BesselDtype::Extended => compute_in(args, device, block, out, DoubleSingle::new),
    }
}

fn compute_in<T: Real>(
    args: &Bessel,
    device: &Device,
    block: &Block,
    out: &mut dyn Write,
    convert: impl Fn(f64) -> T,
) -> anyhow::Result<()> {
    let value = || -> Result<Array1<T>> {
        let order = device.tensor_from(block.points.iter().map(|(v, _)| convert(*v)).collect::<Array1<T>>())?;
        let x = device.tensor_from(block.points.iter().map(|(_, x)| convert(*x)).collect::<Array1<T>>())?;
        function::<T>(args.function)(&order, &x)?.to_array()
    };
    let values = value().map_err(|error| match error {
        error @ orthant::Error::Unsupported { .. } => {
            let other = if args.dtype == BesselDtype::F64 { "extended or f32" } else { "f32" };
            bad(args.input.display(), format!("{error}; try --dtype {other}"))
        }
        error => error.into(),
    })?;
    for ((v, x), value) in block.text.iter().zip(&values) {
        writeln!(out, "{v},{x},{value}")?;
    }
    Ok(())
}

type Kernel<T> = fn(&Tensor<T, Ix1>, &Tensor<T, Ix1>) -> Result<Tensor<T, Ix1>>;

fn function<T: Real>(function: BesselFunction) -> Kernel<T> {
    match function {
        BesselFunction::LogIv => kernels::log_iv,
        BesselFunction::LogKv => kernels::log_kv,
        BesselFunction::Ratio => kernels::iv_ratio,
        BesselFunction::RatioComplement => kernels::iv_ratio_complement,
        BesselFunction::LogIvDx => kernels::log_iv_dx,
        BesselFunction::LogKvDx => kernels::log_kv_dx,
        BesselFunction::LogIvDv => kernels::log_iv_dv,
        BesselFunction::LogKvDv => kernels::log_kv_dv,
        BesselFunction::LogNormalizer => kernels::vmf_log_normalizer,
    }
}
