//! The files that `kv` reads: activations and moments of one layer, or of several whose names begin with `layer.N.`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use ndarray::{Array3, ArrayD, Axis, IxDyn, ShapeBuilder};
use orthant::Device;
use orthant::kv::{Activations, Calibration, Rope, RopeLayout};

use crate::cli::complaint::{InFile, bad};
use crate::cli::files::{self, Dtype};

/// Queries are those of so many of the last positions.
const LAST: usize = 256;
/// Of these, one in so many.
const STEP: usize = 4;

/// Which of the queries.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Queries {
    /// Those an evaluation is of.
    Evaluated,
    /// Those between them, for who chooses ranks.
    Between,
}

/// An open file.
pub struct Input {
    path: PathBuf,
    names: Vec<String>,
    metadata: HashMap<String, String>,
    /// The layer's number, where names have no prefix.
    single: Option<usize>,
}

impl Input {
    pub fn open(path: &Path) -> anyhow::Result<Input> {
        let (names, metadata) = files::contents(path)?;
        let prefixed = names.iter().any(|name| split(name).is_some());
        let layer = metadata.get("layer").and_then(|layer| layer.parse().ok());
        let single = (!prefixed).then(|| layer.unwrap_or(0));
        Ok(Input { path: path.to_path_buf(), names, metadata, single })
    }

    /// The layers asked for, or all there are; ascending.
    pub fn layers(&self, wanted: &[usize]) -> anyhow::Result<Vec<usize>> {
        let mut known: Vec<usize> = match self.single {
            Some(layer) => vec![layer],
            None => self.names.iter().filter_map(|name| Some(split(name)?.0)).collect(),
        };
        known.sort_unstable();
        known.dedup();
        if let Some(missing) = wanted.iter().find(|layer| !known.contains(layer)) {
            let known: Vec<String> = known.iter().map(usize::to_string).collect();
            let what = format!("layer {missing} is not in it; there are: {}", known.join(", "));
            return Err(bad(self.path.display(), what));
        }
        if !wanted.is_empty() {
            known.retain(|layer| wanted.contains(layer));
        }
        Ok(known)
    }

    /// What a tensor of a layer is called in this file.
    fn full(&self, layer: usize, name: &str) -> String {
        if self.single.is_some() { name.to_string() } else { format!("layer.{layer}.{name}") }
    }

    /// Whether a layer has a tensor of that name.
    pub fn has(&self, layer: usize, name: &str) -> bool {
        self.names.contains(&self.full(layer, name))
    }

    /// A tensor that is needed and not there.
    pub fn missing(&self, layer: usize, name: &str) -> anyhow::Error {
        bad(self.path.display(), format!("tensor {} is missing", self.full(layer, name)))
    }

    /// A tensor of a layer; every element finite.
    pub fn tensor(&self, layer: usize, name: &str) -> anyhow::Result<ArrayD<f64>> {
        let full = self.full(layer, name);
        if !self.names.contains(&full) {
            return Err(self.missing(layer, name));
        }
        let array = files::open(&self.path, Some(&full))?;
        if !matches!(array.dtype, Dtype::F16 | Dtype::F32 | Dtype::F64) {
            let found = &array.dtype_name;
            return Err(bad(self.path.display(), format!("the elements of {full} are {found}, expected floats")));
        }
        let (shape, fortran) = (array.shape.clone(), array.fortran);
        let elements = array.floats()?;
        if let Some(index) = elements.iter().position(|x| !x.is_finite()) {
            let what = format!("{full} at index {index} is {}, expected finite numbers", elements[index]);
            return Err(bad(self.path.display(), what));
        }
        ArrayD::from_shape_vec(IxDyn(&shape).set_f(fortran), elements).map_err(|error| bad(self.path.display(), error))
    }

    /// One with three axes.
    pub fn cube(&self, layer: usize, name: &str) -> anyhow::Result<Array3<f64>> {
        let tensor = self.tensor(layer, name)?;
        let shape = format!("{:?}", tensor.shape());
        tensor.into_dimensionality().map_err(|_| {
            let what = format!("{} has shape {shape}, expected three axes", self.full(layer, name));
            bad(self.path.display(), what)
        })
    }

    /// Elements of a head.
    pub fn head_dim(&self, layer: usize) -> anyhow::Result<usize> {
        Ok(self.cube(layer, "v")?.dim().2)
    }

    /// Keys, values and queries of a layer.
    pub fn activations(&self, layer: usize, queries: Queries, rope: &Rope) -> anyhow::Result<Activations> {
        let keys = self.keys(layer, rope)?;
        let values = narrow(self.cube(layer, "v")?);
        let tokens = keys.dim().1;
        let (of_queries, first) = self.queries(layer, tokens)?;
        // The last positions of which there are queries.
        let start = first.max(tokens.saturating_sub(LAST));
        let offset = if queries == Queries::Between { STEP / 2 } else { 0 };
        let mut positions: Vec<usize> = (start + offset..tokens).step_by(STEP).collect();
        if positions.is_empty() {
            positions.push(tokens - 1);
        }
        let rows: Vec<usize> = positions.iter().map(|position| position - first).collect();
        let of_queries = narrow(of_queries.select(Axis(1), &rows));
        let activations = Activations::new(layer, keys, values, of_queries, positions).in_file(&self.path)?;
        if !self.has(layer, "wo_gram") {
            return Ok(activations);
        }
        activations.output_gram(self.cube(layer, "wo_gram")?).in_file(&self.path)
    }

    /// How many query heads a layer has.
    pub fn q_heads(&self, layer: usize) -> anyhow::Result<usize> {
        let tokens = self.cube(layer, "v")?.dim().1;
        Ok(self.queries(layer, tokens)?.0.dim().0)
    }

    /// Adds the moments of a layer's keys, values and queries.
    pub fn observe(&self, layer: usize, rope: &Rope, calibration: &mut Calibration) -> anyhow::Result<()> {
        let keys = self.keys(layer, rope)?;
        let (queries, _) = self.queries(layer, keys.dim().1)?;
        let values = narrow(self.cube(layer, "v")?);
        let on = |rows: Array3<f32>| Device::Cpu.tensor_from(rows.insert_axis(Axis(0)));
        let (queries, keys, values) = (on(narrow(queries)), on(keys), on(values));
        let add = queries.and_then(|queries| calibration.add(layer, &[0], &queries, &keys?, &values?));
        add.in_file(&self.path)
    }

    /// Keys after rotary embedding.
    fn keys(&self, layer: usize, rope: &Rope) -> anyhow::Result<Array3<f32>> {
        if self.has(layer, "k_post") || !self.has(layer, "k_pre") {
            return Ok(narrow(self.cube(layer, "k_post")?));
        }
        let mut keys = narrow(self.cube(layer, "k_pre")?);
        if rope.dims() > keys.dim().2 {
            let what = format!("rotary embedding turns {} elements of {}", rope.dims(), keys.dim().2);
            return Err(bad(self.path.display(), what));
        }
        turned(&mut keys, rope);
        Ok(keys)
    }

    /// All queries that the file has of a layer, and the position of the first.
    fn queries(&self, layer: usize, tokens: usize) -> anyhow::Result<(Array3<f64>, usize)> {
        let wrong = |name: &str, found: usize, expected: String| {
            let what = format!("{} has queries of {found} positions, expected {expected}", self.full(layer, name));
            bad(self.path.display(), what)
        };
        if self.has(layer, "q_post") {
            let queries = self.cube(layer, "q_post")?;
            return match queries.dim().1 {
                found if found == tokens => Ok((queries, 0)),
                found => Err(wrong("q_post", found, format!("the {tokens} of k_post"))),
            };
        }
        let prefix = self.full(layer, "q_post_last");
        let last = self.names.iter().find_map(|name| {
            let count: usize = name.strip_prefix(&prefix)?.parse().ok()?;
            Some((format!("q_post_last{count}"), count))
        });
        let Some((name, count)) = last else {
            let full = self.full(layer, "q_post");
            return Err(bad(self.path.display(), format!("tensor {full} is missing, or {full}_lastN")));
        };
        let queries = self.cube(layer, &name)?;
        match queries.dim().1 {
            found if found == count && count <= tokens && count > 0 => Ok((queries, tokens - count)),
            found => Err(wrong(&name, found, format!("{count}, at most the {tokens} of k_post"))),
        }
    }

    /// What the metadata say of rotary embedding: `rotate-half, theta 1e5`.
    pub fn rope(&self) -> Option<(bool, f64)> {
        let text = self.metadata.get("rope")?;
        let adjacent = text.contains("adjacent") || text.contains("interleaved");
        let after = text.split("theta").nth(1)?;
        let number = after.trim_start_matches([' ', '=', ':']);
        let end = number.find([',', ';', ' ']).unwrap_or(number.len());
        Some((adjacent, number[..end].parse().ok()?))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn narrow(cube: Array3<f64>) -> Array3<f32> {
    cube.mapv(|x| x as f32)
}

/// `layer.N.rest`.
fn split(name: &str) -> Option<(usize, &str)> {
    let (number, rest) = name.strip_prefix("layer.")?.split_once('.')?;
    Some((number.parse().ok()?, rest))
}

/// Rotary embedding of every token by its position.
fn turned(keys: &mut Array3<f32>, rope: &Rope) {
    let half = rope.frequencies().len();
    let pair = |i: usize| match rope.layout() {
        RopeLayout::Halves => [i, i + half],
        RopeLayout::Adjacent => [2 * i, 2 * i + 1],
    };
    for mut head in keys.outer_iter_mut() {
        for (position, mut row) in head.outer_iter_mut().enumerate() {
            for (i, frequency) in rope.frequencies().iter().enumerate() {
                let (sin, cos) = (position as f64 * frequency).sin_cos();
                let [a, b] = pair(i);
                let (x, y) = (f64::from(row[a]), f64::from(row[b]));
                (row[a], row[b]) = ((x * cos - y * sin) as f32, (y * cos + x * sin) as f32);
            }
        }
    }
}
