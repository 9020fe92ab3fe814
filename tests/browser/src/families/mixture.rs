//! A mixture of von Mises-Fisher distributions, and the plane to draw it in.

use ndarray::{Array1, Array2, Axis};
use orthant::Device;
use orthant::vmf::{MixtureOptions, VmfMixture};
use serde_json::{Value, json};

use super::{Clock, Failure, npy};

/// Fits rows (n, d) in so many iterations at most; labels (n) only say how well components agree with them.
///
/// `assigned` is the component of each row, `points` its place in the plane in which the components' mean directions lie furthest apart.
pub async fn mixture(
    device: &Device,
    rows: &[u8],
    labels: &[u8],
    (components, iterations): (usize, usize),
    now: Clock,
) -> Result<Value, Failure> {
    let (rows, labels) = (npy::floats(rows)?, npy::integers(labels)?);
    let options = MixtureOptions::new(components).seed(7).max_iterations(iterations);
    let start = now();
    let on_device = device.tensor(&rows)?;
    let model = VmfMixture::fit_async(&on_device, &options).await?;
    let fitted = now();
    let assigned = model.predict(&on_device)?.to_array_async().await?;
    let milliseconds = now() - start;
    let counts = confusion(&assigned, labels.column(0).iter().copied(), components);
    let most = |row: ndarray::ArrayView1<'_, f64>| {
        let mut order: Vec<usize> = (0..row.len()).collect();
        order.sort_by(|a, b| row[*b].total_cmp(&row[*a]));
        order.truncate(3);
        order
    };
    let list: Vec<Value> = (model.components().iter().zip(counts.outer_iter()))
        .map(|(of, counts)| json!({ "weight": of.weight, "kappa": of.kappa, "size": of.size, "labels": most(counts) }))
        .collect();
    let (purity, nmi) = agreement(&counts);
    let points = rows.dot(&plane(&model)).mapv(|x| (f64::from(x) * 1e4).round() / 1e4);
    Ok(json!({
        "rows": rows.nrows(), "dim": rows.ncols(), "log_likelihood": model.log_likelihood(), "iterations": model.iterations(),
        "converged": model.converged(), "components": list, "purity": purity, "nmi": nmi,
        "assigned": assigned.iter().collect::<Vec<_>>(), "points": points.iter().collect::<Vec<_>>(),
        "milliseconds": milliseconds, "milliseconds_fit": fitted - start,
    }))
}

/// How many rows each (component, label) has.
fn confusion(assigned: &Array1<u32>, labels: impl Iterator<Item = i32> + Clone, components: usize) -> Array2<f64> {
    let distinct = labels.clone().max().unwrap_or(0) as usize + 1;
    let mut counts = Array2::zeros((components, distinct));
    for (component, label) in assigned.iter().zip(labels) {
        counts[[*component as usize, label as usize]] += 1.0;
    }
    counts
}

/// Purity, and mutual information over the mean of the two entropies.
fn agreement(counts: &Array2<f64>) -> (f64, f64) {
    let total = counts.sum();
    let (of_component, of_label) = (counts.sum_axis(Axis(1)), counts.sum_axis(Axis(0)));
    let entropy = |sizes: &Array1<f64>| -> f64 {
        sizes.iter().filter(|n| **n > 0.0).map(|n| -n / total * (n / total).ln()).sum()
    };
    let mutual: f64 = (counts.indexed_iter().filter(|(_, n)| **n > 0.0))
        .map(|((k, label), n)| n / total * (n * total / of_component[k] / of_label[label]).ln())
        .sum();
    let best: f64 = counts.outer_iter().map(|row| row.iter().copied().fold(0.0, f64::max)).sum();
    (best / total, mutual / (0.5 * (entropy(&of_component) + entropy(&of_label))))
}

/// (d, 2): the two leading eigenvectors of the scatter of the components' mean directions, by weight.
fn plane(model: &VmfMixture) -> Array2<f32> {
    let k = model.components().len();
    let mut means = Array2::<f64>::zeros((k, model.dim()));
    for (mut row, of) in means.outer_iter_mut().zip(model.components()) {
        row.assign(&of.mean_direction.mapv(f64::from));
    }
    let weights: Array1<f64> = model.components().iter().map(|of| of.weight).collect();
    let centre = weights.dot(&means);
    means -= &centre;
    for (mut row, weight) in means.outer_iter_mut().zip(&weights) {
        row *= weight.sqrt();
    }
    // Of the Gram matrix (K, K), by power iteration, the second without the first.
    let gram = means.dot(&means.t());
    let mut axes = Array2::zeros((model.dim(), 2));
    let mut first: Option<Array1<f64>> = None;
    for mut axis in axes.columns_mut() {
        let mut vector = Array1::from_shape_fn(k, |i| 1.0 + (i as f64).sin());
        for _ in 0..300 {
            vector = gram.dot(&vector);
            if let Some(first) = &first {
                let along = first.dot(&vector);
                vector.scaled_add(-along, first);
            }
            vector /= vector.dot(&vector).sqrt().max(f64::MIN_POSITIVE);
        }
        let direction = means.t().dot(&vector);
        axis.assign(&(&direction / direction.dot(&direction).sqrt().max(f64::MIN_POSITIVE)));
        first = Some(vector);
    }
    axes.mapv(|x| x as f32)
}
