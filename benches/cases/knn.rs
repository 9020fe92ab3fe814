//! The nearest rows of floats: a product of queries and base, candidates by it, distances of those again in f64.
//!
//! Operations: 2 d a pair of rows, those of the product. Bytes: the base, once a call. The floor is that of `matmul` at the same shape; what a search takes beside is the
//! selection, a comparison a pair, and on a GPU the products read back, 4 bytes a pair: they are selected from on the host.

use anyhow::{Result, ensure};
use ndarray::{Array2, ArrayView1, Ix2};
use orthant::knn::{Metric, Neighbours, search};
use orthant::{Device, Tensor};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::harness::{Bench, Case, Effort, Place, Traffic, Work, host};

/// Rows of the base, d, queries, k.
const SHAPES: &[[usize; 4]] = &[[100_000, 384, 256, 10], [100_000, 384, 256, 1000], [20_000, 1536, 256, 10]];

pub fn run(bench: &mut Bench, places: &[Place]) -> Result<()> {
    let (shapes, divisor) = match bench.effort {
        Effort::Smoke => (&SHAPES[..1], 100),
        Effort::Quick => (SHAPES, 10),
        Effort::Full => (SHAPES, 1),
    };
    for &[n, d, queries, k] in shapes {
        let inputs = Inputs::new(n / divisor, d, queries, k);
        for metric in [Metric::L2, Metric::Cosine] {
            let cases = places.iter().map(|place| inputs.case(place, metric)).collect::<Result<Vec<_>>>()?;
            bench.time("knn", cases);
        }
    }
    Ok(())
}

struct Inputs {
    k: usize,
    base: Array2<f32>,
    queries: Array2<f32>,
}

impl Inputs {
    fn new(n: usize, d: usize, queries: usize, k: usize) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let mut noise = |n| Array2::from_shape_simple_fn((n, d), || random.random_range(-1.0f32..1.0));
        Self { k, base: noise(n), queries: noise(queries) }
    }

    fn case<'a>(&'a self, place: &'a Place, metric: Metric) -> Result<Case<'a>> {
        let ((n, d), queries) = (self.base.dim(), self.queries.nrows());
        let on = |device: &Device, rows: &Array2<f32>| -> Result<Tensor<f32, Ix2>> { Ok(device.tensor(rows)?) };
        let (base, rows) = (on(&place.device, &self.base)?, on(&place.device, &self.queries)?);
        let work = Work {
            kernel: format!("knn {metric:?}"),
            shape: format!("{queries} x {n} x {d}, k {}", self.k),
            dtype: "f32",
            flops: 2.0 * (queries * n * d) as f64,
            bytes: (4 * n * d) as f64,
            traffic: Some(Traffic::Read),
        };
        let run = move || host(|| search(&base, &rows, self.k, metric));
        Ok(Case::new(work, place, run, move |found: &Neighbours| self.check(found, metric)))
    }

    /// The first and the last query against all rows, in f64, sorted.
    fn check(&self, found: &Neighbours, metric: Metric) -> Result<String> {
        let dot = |a: ArrayView1<f32>, b: ArrayView1<f32>| -> f64 {
            a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
        };
        for query in [0, self.queries.nrows() - 1] {
            let q = self.queries.row(query);
            let distance = |b: ArrayView1<f32>| match metric {
                Metric::Cosine => 1.0 - dot(q, b) / (dot(q, q) * dot(b, b)).sqrt(),
                _ => q.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum::<f64>().sqrt(),
            };
            let mut expected: Vec<(f64, u32)> = (0..).zip(self.base.rows()).map(|(id, b)| (distance(b), id)).collect();
            expected.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            let ids = expected.iter().take(self.k).map(|(_, id)| id);
            ensure!(found.ids.row(query).iter().eq(ids), "ids of query {query} differ from those of all, sorted");
        }
        Ok("ids of two queries equal to those of all, sorted in f64".into())
    }
}
