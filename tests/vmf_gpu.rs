//! von Mises-Fisher fits on every adapter against the CPU, on real embeddings.

mod common;

use anyhow::{Context, Result, ensure};
use common::{Case, F64};
use half::f16;
use ndarray::{Array1, Array2, ArrayView2, ArrayViewMut2, s};
use orthant::vmf::{MixtureOptions, RowSource, Vmf, VmfMixture};
use orthant::{Device, Error};

/// Speaker embeddings, (1535, 256), and every third of the sentence embeddings, (1334, 384).
fn embeddings(name: &str) -> Result<Array2<f16>> {
    let path = format!("{}/tests/data/{name}", env!("CARGO_MANIFEST_DIR"));
    let file = npyz::NpyFile::new(std::fs::File::open(&path).context(path)?)?;
    let shape = file.shape().to_vec();
    Ok(Array2::from_shape_vec((shape[0] as usize, shape[1] as usize), file.into_vec::<f16>()?)?)
}

fn speakers() -> Result<Array2<f16>> {
    embeddings("speakers_ge2e.npy")
}

fn sentences() -> Result<Array2<f16>> {
    Ok(embeddings("wordnet_minilm_4k.npy")?.slice(s![..;3, ..]).to_owned())
}

fn single_fits(device: &Device) -> Result<()> {
    for rows in [speakers()?, sentences()?] {
        let wide = rows.mapv(f16::to_f32);
        let expected = Vmf::fit(&Device::cpu().tensor(&wide)?)?;
        for actual in [Vmf::fit(&device.tensor(&wide)?)?, Vmf::fit(&device.tensor(&rows)?)?] {
            // Rows round to f32 (2^-24) at random: R, and with it kappa, to a few 1e-7.
            let error = (actual.kappa() - expected.kappa()).abs() / expected.kappa();
            ensure!(error < 2e-6, "kappa {} {}", actual.kappa(), expected.kappa());
            ensure!(actual.mean_direction().dot(&expected.mean_direction()) > 1.0 - 1e-10);
            ensure!(actual.n() == rows.nrows() as f64);
        }
        let densities = expected.log_density(&device.tensor(&rows)?)?.to_array()?;
        let others = expected.log_density(&Device::cpu().tensor(&rows)?)?.to_array()?;
        let worst = (&densities - &others).iter().fold(0.0f32, |worst, error| worst.max(error.abs()));
        // Cosines within 1e-6, times kappa of up to 400, and densities of up to 700 in f32.
        ensure!(worst < 6e-4, "densities differ by {worst}");
        let weights: Array1<f64> = (0..rows.nrows()).map(|row| (row % 4) as f64).collect();
        let expected = Vmf::fit_weighted(&Device::cpu().tensor(&wide)?, weights.view())?;
        let actual = Vmf::fit_weighted(&device.tensor(&wide)?, weights.view())?;
        ensure!((actual.kappa() / expected.kappa() - 1.0).abs() < 2e-6);
    }
    // So concentrated that f32 sums would say nothing of kappa.
    let tight =
        Array2::from_shape_fn((50, 20), |(i, j)| if j == 0 { 1.0 } else { ((i * j) as f32 * 0.7).sin() * 1e-4 });
    let (actual, expected) = (Vmf::fit(&device.tensor(&tight)?)?, Vmf::fit(&Device::cpu().tensor(&tight)?)?);
    ensure!(actual.kappa() == expected.kappa(), "{} {}", actual.kappa(), expected.kappa());
    Ok(())
}

fn bad_rows(device: &Device) -> Result<()> {
    let mut rows = speakers()?.mapv(f16::to_f32);
    let options = MixtureOptions::new(3);
    rows[[17, 5]] = f32::NAN;
    rows.row_mut(40).fill(0.0);
    let errors = |rows: &Array2<f32>| -> Result<[Option<Error>; 2]> {
        let rows = device.tensor(rows)?;
        Ok([Vmf::fit(&rows).err(), VmfMixture::fit(&rows, &options).err()])
    };
    let found = |errors: &[Option<Error>; 2], row: usize| {
        errors.iter().all(|error| matches!(error, Some(Error::Domain { quantity: "row", index, .. }) if *index == row))
    };
    let zero = {
        let mut rows = rows.clone();
        rows[[17, 5]] = 0.0;
        errors(&rows)?
    };
    ensure!(found(&zero, 40), "{zero:?}");
    rows.row_mut(40).fill(1.0);
    let nan = errors(&rows)?;
    ensure!(found(&nan, 17), "{nan:?}");
    // Rows of weight 0 are not looked at.
    let mut weights = Array1::ones(rows.nrows());
    weights[17] = 0.0;
    ensure!(VmfMixture::fit_weighted(&device.tensor(&rows)?, weights.view(), &options)?.log_likelihood().is_finite());
    ensure!(matches!(
        VmfMixture::fit(&device.tensor(&rows.slice(s![..2, ..]))?, &options),
        Err(Error::Argument { quantity: "components", .. })
    ));
    Ok(())
}

/// The share of rows that two labellings of the same components agree on.
fn agreement(a: &Array1<u32>, b: &Array1<u32>) -> f64 {
    a.iter().zip(b).filter(|(a, b)| a == b).count() as f64 / a.len() as f64
}

fn close(actual: &VmfMixture, expected: &VmfMixture, bound: f64) -> Result<()> {
    let (a, b) = (actual.log_likelihood(), expected.log_likelihood());
    ensure!((a - b).abs() <= bound * b.abs(), "log-likelihood {a} {b}");
    for (a, b) in actual.components().iter().zip(expected.components()) {
        ensure!((a.kappa / b.kappa - 1.0).abs() < 100.0 * bound, "kappa {} {}", a.kappa, b.kappa);
        ensure!((a.weight - b.weight).abs() < 100.0 * bound, "weight {} {}", a.weight, b.weight);
    }
    Ok(())
}

fn mixtures(device: &Device) -> Result<()> {
    let cpu = Device::cpu();
    let cases = [
        (speakers()?, MixtureOptions::new(7).seed(1)),
        (speakers()?, MixtureOptions::new(7).seed(2).hard(true)),
        (speakers()?, MixtureOptions::new(5).seed(3).tied_kappa(true)),
        (sentences()?, MixtureOptions::new(20).seed(4).max_iterations(15)),
    ];
    for (rows, options) in cases {
        let (near, far) = (cpu.tensor(&rows)?, device.tensor(&rows)?);
        let (expected, actual) = (VmfMixture::fit(&near, &options)?, VmfMixture::fit(&far, &options)?);
        // The same path from the same seeds, up to f32 roundings of cosines times kappa (about 100): 1e-5 a row.
        close(&actual, &expected, 1e-4)?;
        let trace = actual.log_likelihood_trace();
        // EM never goes down, but for the same roundings.
        ensure!(trace.windows(2).all(|pair| pair[1] >= pair[0] - 1e-5 * pair[0].abs()), "{trace:?}");

        // The same model on both devices.
        let (labels, others) = (expected.predict(&far)?.to_array()?, expected.predict(&near)?.to_array()?);
        ensure!(agreement(&labels, &others) > 0.999, "{}", agreement(&labels, &others));
        let (scores, others) = (expected.score(&far)?.to_array()?, expected.score(&near)?.to_array()?);
        let worst = (&scores - &others).iter().fold(0.0f32, |worst, error| worst.max(error.abs()));
        // Cosines within 1e-6, times kappa of up to 300, and scores of up to 1000 in f32.
        ensure!(worst < 1e-3, "scores differ by {worst}");
        let shares = expected.responsibilities(&far)?.to_array()?;
        let others = expected.responsibilities(&near)?.to_array()?;
        ensure!(shares.shape() == others.shape());
        let worst = (&shares - &others).iter().fold(0.0f32, |worst, error| worst.max(error.abs()));
        ensure!(worst < 1e-3, "responsibilities differ by {worst}");
    }
    Ok(())
}

fn weighted(device: &Device) -> Result<()> {
    let rows = speakers()?.mapv(f16::to_f32);
    let weights: Array1<f64> = (0..rows.nrows()).map(|row| (row % 3) as f64).collect();
    let options = MixtureOptions::new(7).seed(5);
    let expected = VmfMixture::fit_weighted(&Device::cpu().tensor(&rows)?, weights.view(), &options)?;
    let actual = VmfMixture::fit_weighted(&device.tensor(&rows)?, weights.view(), &options)?;
    close(&actual, &expected, 1e-4)
}

fn batched(device: &Device) -> Result<()> {
    // The file is sorted by speaker; batches want rows in no order.
    let rows = speakers()?.mapv(f16::to_f32);
    let order: Vec<usize> = (0..rows.nrows()).map(|row| row * 577 % rows.nrows()).collect();
    let rows = rows.select(ndarray::Axis(0), &order);
    let options = MixtureOptions::new(7).seed(6).batch(Some(400)).max_iterations(5);
    let expected = VmfMixture::fit(&Device::cpu().tensor(&rows)?, &options)?;
    let actual = VmfMixture::fit(&device.tensor(&rows)?, &options)?;
    close(&actual, &expected, 1e-3)
}

struct InMemory(Array2<f32>);

impl RowSource for InMemory {
    fn rows(&self) -> usize {
        self.0.nrows()
    }
    fn dim(&self) -> usize {
        self.0.ncols()
    }
    fn read(&self, first: usize, mut into: ArrayViewMut2<'_, f32>) -> orthant::Result<()> {
        let rows: ArrayView2<'_, f32> = self.0.slice(s![first..first + into.nrows(), ..]);
        into.assign(&rows);
        Ok(())
    }
}

fn streamed(device: &Device) -> Result<()> {
    let source = InMemory(speakers()?.mapv(f16::to_f32));
    let options = MixtureOptions::new(7).seed(8);
    let expected = VmfMixture::fit_source(&Device::cpu(), &source, &options)?;
    let actual = VmfMixture::fit_source(device, &source, &options)?;
    close(&actual, &expected, 1e-4)?;
    let mut labels = Vec::new();
    expected.predict_source(device, &source, &mut |first, part| {
        assert_eq!(first, labels.len());
        labels.extend(part);
        Ok(())
    })?;
    let others = expected.predict(&Device::cpu().tensor(&source.0)?)?.to_array()?;
    ensure!(agreement(&labels.into(), &others) > 0.999);
    Ok(())
}

/// Rows of f64 are rounded to f32 for a mixture.
fn doubles(device: &Device) -> Result<()> {
    let rows = speakers()?.mapv(f16::to_f64);
    let options = MixtureOptions::new(7).seed(1);
    let actual = VmfMixture::fit(&device.tensor(&rows)?, &options)?;
    close(&actual, &VmfMixture::fit(&Device::cpu().tensor(&rows)?, &options)?, 1e-4)?;
    let (actual, expected) = (Vmf::fit(&device.tensor(&rows)?)?, Vmf::fit(&Device::cpu().tensor(&rows)?)?);
    ensure!(actual.kappa() == expected.kappa());
    Ok(())
}

fn main() {
    let case = |name: &str, run: fn(&Device) -> Result<()>| Case::new("vmf", name, run);
    let cases = vec![
        case("single fits", single_fits),
        case("bad rows", bad_rows),
        case("mixtures", mixtures),
        case("weighted", weighted),
        case("batched", batched),
        case("streamed", streamed),
        case("doubles", doubles).needs(&[F64]),
    ];
    common::main(cases, Vec::new())
}
