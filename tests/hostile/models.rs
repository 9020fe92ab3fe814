//! Models and statistics as JSON: what is read is a model, and the same when written and read again.

use ndarray::{Array2, Axis};
use orthant::vmf::{Vmf, VmfMixture, VmfStats};
use orthant::{Device, Precision};

use super::files::{Scratch, complained, typed};
use crate::cli::vmf::model::{self, Model};

pub fn models(bytes: &[u8]) {
    let file = Scratch::of("json", bytes);
    if let Some(vmf) = typed(Vmf::load(file.path())) {
        check_vmf(&vmf);
    }
    if let Some(mixture) = typed(VmfMixture::load(file.path())) {
        check_mixture(&mixture);
    }
    if let Ok(stats) = serde_json::from_slice::<VmfStats>(bytes) {
        check_stats(stats);
    }
    if let Some((model, center)) = complained(file.path(), model::read(file.path())) {
        let dim = model.dim();
        assert!(center.as_ref().is_none_or(|center| center.len() == dim));
        let rows = Device::Cpu.tensor_from(rows(dim)).unwrap();
        assert_eq!(model.log_density(&rows).unwrap().len(), rows.shape()[0]);
        assert_eq!(model.sample(2, 1).dim(), (2, dim));
        let mut written = Vec::new();
        model::write(&model, center.as_ref().and_then(|center| center.as_slice()), &mut written).unwrap();
        let again = Scratch::of("again.json", &written);
        let (again, same_center) = model::read(again.path()).expect("what was written");
        assert_eq!(center, same_center);
        match (&model, &again) {
            (Model::One(a), Model::One(b)) => assert_eq!(a, b),
            (Model::Mixture(a), Model::Mixture(b)) => assert_eq!(a, b),
            _ => panic!("another kind of model"),
        }
    }
}

/// e1, -e1 and a row of ones, of any length.
fn rows(dim: usize) -> Array2<f32> {
    let mut rows = Array2::zeros((3, dim));
    (rows[[0, 0]], rows[[1, 0]]) = (2.0, -0.5);
    rows.row_mut(2).fill(1.0);
    rows
}

pub fn check_vmf(vmf: &Vmf) {
    let dim = vmf.dim();
    assert!(dim >= 2 && vmf.kappa().is_finite());
    let length = vmf.mean_direction().iter().map(|x| x * x).sum::<f64>().sqrt();
    assert!((length - 1.0).abs() < 2e-6, "a direction of length {length}");
    assert_eq!(vmf.mode(), vmf.mean_direction());
    assert!(vmf.log_normalizer().is_finite() && vmf.entropy().is_finite(), "{vmf:?}");
    assert!((0.0..=1.0).contains(&vmf.resultant_length()), "{vmf:?}");
    assert!(!vmf.kappa_relative_error().is_nan() && !vmf.n().is_nan(), "{vmf:?}");
    assert!(vmf.is_resolvable() || vmf.n() > 0.0, "{vmf:?}");
    let rows = Device::Cpu.tensor_from(rows(dim).mapv(f64::from)).unwrap();
    assert!(vmf.log_density(&rows).unwrap().to_array().unwrap().iter().all(|x| x.is_finite()), "{vmf:?}");
    vmf.log_density_in(&rows, Precision::Extended).unwrap();
    assert_eq!(vmf.kl_divergence(vmf).unwrap(), 0.0, "{vmf:?}");
    for row in vmf.sample(2, 3).axis_iter(Axis(0)) {
        assert!((row.dot(&row) - 1.0).abs() < 1e-5, "{vmf:?} gave {row}");
    }
    let file = Scratch::new("saved.json");
    vmf.save(file.path()).unwrap();
    assert_eq!(&Vmf::load(file.path()).expect("what was saved"), vmf);
}

pub fn check_mixture(mixture: &VmfMixture) {
    let (dim, count) = (mixture.dim(), mixture.components().len());
    for component in mixture.components() {
        assert!(component.log_normalizer.is_finite() && component.kappa.is_finite(), "{component:?}");
        assert!(!component.kappa_relative_error.is_nan(), "{component:?}");
        assert_eq!(component.mean_direction.len(), dim);
    }
    assert!(!mixture.aic().is_nan() && !mixture.bic().is_nan(), "{mixture:?}");
    assert!(!mixture.log_likelihood().is_nan());
    let _ = mixture.converged();
    assert_eq!(mixture.iterations(), mixture.log_likelihood_trace().len());
    let rows = Device::Cpu.tensor_from(rows(dim)).unwrap();
    let labels = mixture.predict(&rows).unwrap().to_array().unwrap();
    assert!(labels.iter().all(|label| (*label as usize) < count));
    assert!(mixture.score(&rows).unwrap().to_array().unwrap().iter().all(|x| x.is_finite()), "{mixture:?}");
    let shares = mixture.responsibilities(&rows).unwrap().to_array().unwrap();
    assert!(shares.sum_axis(Axis(1)).iter().all(|sum| (sum - 1.0).abs() < 1e-4), "{mixture:?} gave {shares}");
    let (sample, labels) = mixture.sample(3, 1);
    assert!(sample.iter().all(|x| x.is_finite()) && labels.iter().all(|label| (*label as usize) < count));
    let file = Scratch::new("saved.json");
    mixture.save(file.path()).unwrap();
    assert_eq!(&VmfMixture::load(file.path()).expect("what was saved"), mixture);
}

pub fn check_stats(mut stats: VmfStats) {
    let dim = stats.dim();
    assert!(dim >= 2 && stats.weight() >= 0.0 && stats.weight().is_finite());
    let length = stats.resultant().iter().map(|x| x * x).sum::<f64>().sqrt();
    assert!(length <= stats.weight() * 1.0001, "{stats:?}");
    let resultant = stats.mean_resultant();
    assert!((0.0..=1.0).contains(&resultant.length) && (0.0..=1.0).contains(&resultant.complement), "{stats:?}");
    if let Some(vmf) = typed(Vmf::from_stats(&stats)) {
        check_vmf(&vmf);
    }
    let text = serde_json::to_string(&stats).unwrap();
    assert_eq!(serde_json::from_str::<VmfStats>(&text).expect("what was written"), stats);
    let other = stats.clone();
    typed(stats.merge(&other));
    typed(stats.push(rows(dim).view()));
    typed(Vmf::from_stats(&stats));
}
