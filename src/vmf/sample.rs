//! Exact samples of a von Mises-Fisher distribution.

use ndarray::{Array2, ArrayViewMut2, Axis};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Beta, Distribution, StandardNormal};
use rayon::prelude::*;

use super::distribution::Vmf;
use crate::{Error, Result};

/// Rows of a block that draws from a stream of its own: a constant, so that samples depend on the seed alone.
const BLOCK: usize = 256;

impl Vmf {
    /// `n` rows drawn from the distribution, (n, d), unit length. The same seed gives the same rows, whatever the number of threads.
    pub fn sample(&self, n: usize, seed: u64) -> Array2<f32> {
        let mut rows = Array2::zeros((n, self.dim()));
        let sampler = Sampler::new(self);
        rows.axis_chunks_iter_mut(Axis(0), BLOCK).into_par_iter().enumerate().for_each(|(block, mut rows)| {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream(block as u64);
            sampler.fill(&mut rows, &mut rng);
        });
        rows
    }

    /// Fills `rows`, (n, d), with draws that take their randomness from `rng`.
    ///
    /// # Errors
    /// [`Error::Shape`] if the rows do not have d elements.
    pub fn sample_into(&self, rows: &mut ArrayViewMut2<'_, f32>, rng: &mut impl Rng) -> Result<()> {
        if rows.ncols() != self.dim() {
            let expected = format!("(any, {})", self.dim());
            return Err(Error::Shape { place: "Vmf", quantity: "rows", expected, found: rows.shape().to_vec() });
        }
        Sampler::new(self).fill(rows, rng);
        Ok(())
    }
}

/// Draws W = mu'x by rejection from a Beta envelope, and the tangent uniformly.
///
/// Everything is said in T = 1 - W, which keeps its digits when kappa is large and W rounds to 1. With b = (d-1) / (2 kappa + sqrt(4
/// kappa^2 + (d-1)^2)), Z ~ Beta((d-1)/2, (d-1)/2): T = 2bZ / (1 - (1-b)Z), accepted with probability exp((d-1) (ln(1+y) - y)),
/// y = kappa (T - 2b/(1+b)) / (d-1).
///
/// Source: Ulrich 1984, Wood 1994; the acceptance rewritten with kappa = (d-1)(1-b^2)/(4b).
pub(crate) struct Sampler<'a> {
    mean: &'a [f64],
    kappa: f64,
    b: f64,
    beta: Beta<f64>,
    /// 1 / (1 + |mu_1|): Householder's reflection takes -+e1 to mu with the sign that adds, never subtracts.
    reflection: f64,
    sign: f64,
}

impl<'a> Sampler<'a> {
    pub(crate) fn new(vmf: &'a Vmf) -> Self {
        let mean = match vmf.mean_direction().to_slice() {
            Some(mean) => mean,
            None => unreachable!("the mean direction is a vector"),
        };
        let m = mean.len() as f64 - 1.0;
        let kappa = vmf.kappa();
        let Ok(beta) = Beta::new(m / 2.0, m / 2.0) else { unreachable!("the dimension is at least 2") };
        Sampler {
            mean,
            kappa,
            b: m / (2.0 * kappa + (2.0 * kappa).hypot(m)),
            beta,
            reflection: 1.0 / (1.0 + mean[0].abs()),
            sign: if mean[0] < 0.0 { -1.0 } else { 1.0 },
        }
    }

    /// 1 - mu'x of a draw.
    pub(crate) fn complement(&self, rng: &mut impl Rng) -> f64 {
        let (b, m) = (self.b, self.mean.len() as f64 - 1.0);
        loop {
            let z = self.beta.sample(rng);
            let t = 2.0 * b * z / (1.0 - (1.0 - b) * z);
            let y = self.kappa * (t - 2.0 * b / (1.0 + b)) / m;
            // 1 - u is in (0, 1]
            let u: f64 = rng.random();
            if m * (y.ln_1p() - y) >= (-u).ln_1p() {
                return t.min(2.0);
            }
        }
    }

    pub(crate) fn fill(&self, rows: &mut ArrayViewMut2<'_, f32>, rng: &mut impl Rng) {
        let mut point = vec![0.0f64; self.mean.len()];
        for mut row in rows.rows_mut() {
            self.draw(&mut point, rng);
            row.iter_mut().zip(&point).for_each(|(out, &value)| *out = value as f32);
        }
    }

    /// One draw, in f64.
    pub(crate) fn draw(&self, point: &mut [f64], rng: &mut impl Rng) {
        let t = self.complement(rng);
        // a uniform direction among those orthogonal to e1
        let mut squared = 0.0;
        while squared == 0.0 {
            for value in &mut point[1..] {
                *value = StandardNormal.sample(rng);
                squared += *value * *value;
            }
        }
        let radius = (t * (2.0 - t) / squared).sqrt();
        point[1..].iter_mut().for_each(|value| *value *= radius);
        point[0] = 1.0 - t;
        // Reflecting at u = e1 + sign mu takes e1 to -sign mu; times -sign it arrives at mu. u'u = 2 (1 + |mu_1|) >= 2.
        let along = point[0] + self.sign * point.iter().zip(self.mean).map(|(p, m)| p * m).sum::<f64>();
        let factor = along * self.reflection;
        point[0] -= factor;
        for (value, mean) in point.iter_mut().zip(self.mean) {
            *value = -self.sign * (*value - factor * self.sign * mean);
        }
    }
}
