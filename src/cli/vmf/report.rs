//! What `vmf fit` prints: a summary for people, or one JSON object.

use std::fmt::Write;

use serde_json::{Value, json};

use super::model::Model;
use crate::cli::args::Fit;
use crate::cli::clustering::Confusion;
use crate::cli::files::Matrix;
use crate::cli::plot;

/// More components than this make a long list: the heaviest are printed.
const LISTED: usize = 20;

/// A fitted model and the component of each row.
pub struct Fitted {
    pub model: Model,
    pub assigned: Vec<u32>,
    /// Mean log-likelihood of a row after each iteration; one distribution has its own only.
    pub trace: Vec<f64>,
}

/// A component as it is reported.
struct Row {
    weight: f64,
    kappa: f64,
    kappa_relative_error: f64,
    log_normalizer: f64,
    size: usize,
}

impl Fitted {
    fn rows(&self) -> Vec<Row> {
        match &self.model {
            Model::One(vmf) => vec![Row {
                weight: 1.0,
                kappa: vmf.kappa(),
                kappa_relative_error: vmf.kappa_relative_error(),
                log_normalizer: vmf.log_normalizer(),
                size: self.assigned.len(),
            }],
            Model::Mixture(mixture) => (mixture.components().iter())
                .map(|component| Row {
                    weight: component.weight,
                    kappa: component.kappa,
                    kappa_relative_error: component.kappa_relative_error,
                    log_normalizer: component.log_normalizer,
                    size: component.size,
                })
                .collect(),
        }
    }

    pub fn components(&self) -> Vec<plot::Component> {
        let component = |row: Row| plot::Component { weight: row.weight, kappa: row.kappa, size: row.size };
        self.rows().into_iter().map(component).collect()
    }

    fn log_likelihood(&self) -> f64 {
        match &self.model {
            Model::One(_) => self.trace[0],
            Model::Mixture(mixture) => mixture.log_likelihood(),
        }
    }

    /// (AIC, BIC); one distribution has d - 1 parameters of direction and kappa.
    fn criteria(&self) -> (f64, f64) {
        match &self.model {
            Model::Mixture(mixture) => (mixture.aic(), mixture.bic()),
            Model::One(vmf) => {
                let (parameters, log_likelihood) = (vmf.dim() as f64, vmf.n() * self.trace[0]);
                (2.0 * parameters - 2.0 * log_likelihood, parameters * vmf.n().ln() - 2.0 * log_likelihood)
            }
        }
    }

    fn progress(&self) -> (usize, bool) {
        match &self.model {
            Model::One(_) => (1, true),
            Model::Mixture(mixture) => (mixture.iterations(), mixture.converged()),
        }
    }
}

/// All that is said of a fit.
pub struct Summary<'a> {
    pub args: &'a Fit,
    pub matrix: &'a Matrix,
    pub device: String,
    pub fitted: &'a Fitted,
    pub confusion: Option<&'a Confusion>,
}

impl Summary<'_> {
    pub fn title(&self) -> String {
        let what =
            if self.args.components.is_some() { "von Mises-Fisher mixture of" } else { "von Mises-Fisher fit of" };
        format!("{what} {}", self.args.rows.file_name().unwrap_or_default().to_string_lossy())
    }

    pub fn subtitle(&self) -> String {
        let mut parts = vec![format!("{} rows of {}", self.matrix.rows(), self.matrix.dim())];
        if let Some(components) = self.args.components {
            parts.push(format!("{components} components"));
        }
        if self.args.center {
            parts.push("centred".to_string());
        }
        parts.push(format!("mean log-likelihood {:.2}", self.fitted.log_likelihood()));
        if let Some(confusion) = self.confusion {
            let (purity, nmi, ari) = (confusion.purity(), confusion.nmi(), confusion.ari());
            parts.push(format!("purity {purity:.3} · NMI {nmi:.3} · ARI {ari:.3}"));
        }
        parts.push(self.device.clone());
        parts.join(" · ")
    }
}

/// One line of JSON. An unknown relative error (infinite) is null.
pub fn json(summary: &Summary, seconds: f64) -> anyhow::Result<String> {
    let fitted = summary.fitted;
    let components: Vec<Value> = (fitted.rows().iter())
        .map(|row| {
            json!({
                "weight": row.weight, "kappa": row.kappa, "kappa_relative_error": row.kappa_relative_error,
                "log_normalizer": row.log_normalizer, "size": row.size,
            })
        })
        .collect();
    let ((iterations, converged), (aic, bic)) = (fitted.progress(), fitted.criteria());
    let mut report = json!({
        "rows": summary.matrix.rows(), "dim": summary.matrix.dim(), "components": components,
        "log_likelihood": fitted.log_likelihood(), "log_likelihood_trace": fitted.trace,
        "iterations": iterations, "converged": converged, "aic": aic, "bic": bic,
        "device": summary.device, "seconds": seconds,
    });
    if let Some(confusion) = summary.confusion {
        report["purity"] = confusion.purity().into();
        report["nmi"] = confusion.nmi().into();
        report["ari"] = confusion.ari().into();
    }
    Ok(serde_json::to_string(&report)? + "\n")
}

pub fn text(summary: &Summary, seconds: f64) -> String {
    let Summary { args, matrix, device, fitted, confusion } = summary;
    let mut text = String::new();
    let mut line = |words: std::fmt::Arguments| {
        let _ = writeln!(text, "{words}");
    };
    let ((iterations, converged), (aic, bic)) = (fitted.progress(), fitted.criteria());
    line(format_args!(
        "{}: {} rows of {} on {device}, {seconds:.2} s",
        args.rows.display(),
        matrix.rows(),
        matrix.dim()
    ));
    line(format_args!("mean log-likelihood of a row {:.4}, AIC {aic:.1}, BIC {bic:.1}", fitted.log_likelihood()));
    if args.components.is_some() {
        let how = if converged { "converged after" } else { "stopped, not converged, after" };
        line(format_args!("{how} {iterations} iterations"));
    }
    if let Some(confusion) = confusion {
        let (purity, nmi, ari) = (confusion.purity(), confusion.nmi(), confusion.ari());
        line(format_args!("against the labels: purity {purity:.4}, NMI {nmi:.4} (arithmetic mean), ARI {ari:.4}"));
    }
    let rows = fitted.rows();
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.sort_by(|a, b| rows[*b].weight.total_cmp(&rows[*a].weight));
    line(format_args!("\n{:>9}  {:>8}  {:>9}  {:>12}  {:>9}", "component", "weight", "rows", "kappa", "error"));
    for k in order.iter().take(LISTED) {
        let Row { weight, kappa, kappa_relative_error, size, .. } = &rows[*k];
        let kappa = if *kappa < 1e7 { format!("{kappa:.4}") } else { format!("{kappa:.4e}") };
        let error = if kappa_relative_error.is_finite() {
            format!("{:.1} %", 100.0 * kappa_relative_error)
        } else {
            "unknown".to_string()
        };
        line(format_args!("{k:>9}  {:>6.2} %  {size:>9}  {kappa:>12}  {error:>9}", 100.0 * weight));
    }
    if rows.len() > LISTED {
        line(format_args!("{:>9}  and {} lighter ones (--json lists all)", "", rows.len() - LISTED));
    }
    // The threshold of `Vmf::is_resolvable`.
    let vague = rows.iter().filter(|row| row.kappa_relative_error >= 0.5).count();
    if vague > 0 {
        line(format_args!("\nkappa is not resolvable at this number of rows for {vague} of {} components", rows.len()));
    }
    for (what, path) in [("model", &args.model), ("components of the rows", &args.assign), ("plot", &args.plot)] {
        if let Some(path) = path {
            line(format_args!("{what}: {}", path.display()));
        }
    }
    text
}
