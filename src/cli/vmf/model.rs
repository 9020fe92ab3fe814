//! A model file: the library's JSON of a distribution or a mixture, with the mean that `--center` subtracted.

use std::io::Write;
use std::path::Path;

use ndarray::{Array1, Array2, Ix2};
use orthant::vmf::{Rows, Vmf, VmfMixture};
use orthant::{Result, Tensor};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use crate::cli::complaint::{InFile, bad};

/// What was fitted.
pub enum Model {
    One(Vmf),
    Mixture(VmfMixture),
}

impl Model {
    pub fn dim(&self) -> usize {
        match self {
            Model::One(vmf) => vmf.dim(),
            Model::Mixture(mixture) => mixture.dim(),
        }
    }

    /// ln of the density at each row.
    pub fn log_density<T: Rows<Score = T> + Into<f64>>(&self, rows: &Tensor<T, Ix2>) -> Result<Array1<f64>> {
        match self {
            Model::One(vmf) => Ok(vmf.log_density(rows)?.to_array()?.mapv(Into::into)),
            Model::Mixture(mixture) => Ok(mixture.score(rows)?.to_array()?.mapv(Into::into)),
        }
    }

    pub fn sample(&self, n: usize, seed: u64) -> Array2<f32> {
        match self {
            Model::One(vmf) => vmf.sample(n, seed),
            Model::Mixture(mixture) => mixture.sample(n, seed).0,
        }
    }
}

#[derive(Serialize)]
struct Saved<'a, M> {
    #[serde(flatten)]
    model: &'a M,
    #[serde(skip_serializing_if = "Option::is_none")]
    center: Option<&'a [f64]>,
}

/// What tells the two kinds of model apart.
#[derive(Deserialize)]
struct Kind {
    components: Option<IgnoredAny>,
    mean_direction: Option<IgnoredAny>,
    center: Option<Vec<f64>>,
}

/// Writes `model`, and the mean of the rows if they were centred.
pub fn write(model: &Model, center: Option<&[f64]>, to: &mut dyn Write) -> anyhow::Result<()> {
    let written = match model {
        Model::One(vmf) => serde_json::to_writer(&mut *to, &Saved { model: vmf, center }),
        Model::Mixture(mixture) => serde_json::to_writer(&mut *to, &Saved { model: mixture, center }),
    };
    written.map_err(std::io::Error::from)?;
    Ok(writeln!(to)?)
}

/// Reads what [`write`] wrote, or what the library saved.
pub fn read(path: &Path) -> anyhow::Result<(Model, Option<Array1<f64>>)> {
    let text = std::fs::read_to_string(path).in_file(path)?;
    let not_a_model =
        |why: &dyn std::fmt::Display| bad(path.display(), format!("not a model of `orthant vmf fit --model`: {why}"));
    let kind: Kind = serde_json::from_str(&text).map_err(|error| not_a_model(&error))?;
    let model = match (&kind.components, &kind.mean_direction) {
        (Some(_), _) => Model::Mixture(serde_json::from_str(&text).map_err(|error| not_a_model(&error))?),
        (None, Some(_)) => Model::One(serde_json::from_str(&text).map_err(|error| not_a_model(&error))?),
        (None, None) => return Err(not_a_model(&"it has neither components nor a mean_direction")),
    };
    // The mean of unit rows, to a rounding; a NaN is not below either.
    if let Some(center) = &kind.center
        && !(center.len() == model.dim() && center.iter().all(|x| x.abs() < 1.0 + 1e-9))
    {
        return Err(not_a_model(&format!("center is not {} numbers from -1 to 1", model.dim())));
    }
    Ok((model, kind.center.map(Array1::from)))
}
