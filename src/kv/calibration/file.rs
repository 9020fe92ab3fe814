//! Calibrations as `.safetensors` files.

use std::path::Path;

use ndarray::{Ix1, Ix2, Ix3};

use super::*;
use crate::kv::files::{Reading, Writing};
use crate::kv::projections::{layout_name, parse_layout};

const WHAT: &str = "Calibration file";

impl Calibration {
    /// The tensor names of moments of keys and of queries in this frame.
    fn frame_names(&self) -> (String, String) {
        match self.frame {
            Frame::Pre => ("cal_k_pre".into(), "cal_q_rel".into()),
            Frame::Post => ("cal_k_post".into(), "cal_q_post".into()),
            Frame::Block(block) => (format!("cal_k_blk{block}"), format!("cal_q_blk{block}")),
        }
    }

    /// Writes it to a `.safetensors` file, beside it first. For each layer N, behind `layer.N.`: `cal_k_F_mom` (kv_heads d, kv_heads d), `cal_k_F_mean`
    /// and `cal_k_F_count` (kv_heads), with F `pre`, `post` or `blk64`; the same of `cal_v` and `cal_v_attnw` (whose counts are sums of weights);
    /// `cal_q_F_mom` (q_heads, d, d) and `cal_q_F_count`, with F `rel` for pre-RoPE keys; `wo_gram` (kv_heads, d, d); `w_k`, `w_v`; `cal_x_mean` and
    /// `cal_x_count`, of absolute inputs.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let mut file = Writing::default();
        file.note("orthant_calibration", 1);
        file.note("q_heads", self.q_heads);
        file.note("kv_heads", self.kv_heads);
        file.note("head_dim", self.head_dim);
        file.note("frame", self.frame);
        file.note("sinks", self.sinks);
        file.note("rope_layout", layout_name(self.rope.layout()));
        let frequencies = self.rope.frequencies();
        file.double("rope.frequencies", &[frequencies.len()], frequencies.iter().copied());
        let (k, q) = self.frame_names();
        for (number, layer) in &self.layers {
            let name = |what: &str| format!("layer.{number}.{what}");
            let sets = [(&k[..], &layer.keys), ("cal_v", &layer.values), ("cal_v_attnw", &layer.attended)];
            for (prefix, moments) in sets {
                let Some(moments) = moments else { continue };
                let mut write = |what: &str, shape: &[usize], elements: Vec<f64>| {
                    file.double(name(&format!("{prefix}_{what}")), shape, elements);
                };
                let (mean, moment) = (moments.mean(), moments.moment());
                write("mom", moment.shape(), moment.iter().copied().collect());
                write("mean", mean.shape(), mean.to_vec());
                write("count", moments.weights.shape(), moments.weights.to_vec());
            }
            if let Some(queries) = &layer.queries {
                let moments = queries.products.iter().map(|x| x / queries.count);
                file.double(name(&format!("{q}_mom")), queries.products.shape(), moments);
                file.double(name(&format!("{q}_count")), &[], [queries.count]);
            }
            if let Some(gram) = &layer.output_gram {
                file.double(name("wo_gram"), gram.shape(), gram.iter().copied());
            }
            for (what, weights) in ["w_k", "w_v"].into_iter().zip(&layer.weights) {
                if let Some(weights) = weights {
                    file.double(name(what), weights.shape(), weights.iter().copied());
                }
            }
            if let Some(inputs) = &layer.inputs {
                file.double(name("cal_x_mean"), inputs.sum.shape(), inputs.sum.iter().map(|x| x / inputs.count));
                file.double(name("cal_x_count"), &[], [inputs.count]);
            }
            if layer.uncounted {
                file.note(&format!("layer.{number}.uncounted"), true);
            }
        }
        file.save(path.as_ref())
    }

    /// Reads what [`Calibration::save`] wrote.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Format`] names the tensor that is missing, of another shape, or not finite.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let file = Reading::open(path.as_ref(), WHAT)?;
        file.note("orthant_calibration")?;
        let heads = (file.parsed("q_heads")?, file.parsed("kv_heads")?, file.parsed("head_dim")?);
        let frequencies = file.floats::<Ix1>("rope.frequencies")?.to_vec();
        let rope = Rope::of_frequencies(parse_layout(&file)?, frequencies)?;
        let new = Self::new(heads, rope, file.parsed("frame")?);
        let mut out = new.or_else(|error| file.format(error))?.sinks(file.parsed("sinks")?);
        let names = file.names()?;
        let numbers = names.iter().filter_map(|name| name.strip_prefix("layer.")?.split('.').next()?.parse().ok());
        for number in numbers.collect::<std::collections::BTreeSet<usize>>() {
            let mut layer = out.read_layer(&file, &format!("layer.{number}."))?;
            layer.uncounted = file.note(&format!("layer.{number}.uncounted")).is_ok();
            // A count without its mean, or a tensor of another name, makes no layer.
            if !layer.is_empty() {
                out.layers.insert(number, layer);
            }
        }
        Ok(out)
    }

    /// Reads the moments of one layer from a `.safetensors` file of any maker, in place of what is known of it: the names of [`Calibration::save`]
    /// behind `layer.N.`, or, where the file has none such, without it. Moments of this calibration's frame, of values and of queries are read where
    /// they are there, each with its mean; those without counts cannot be merged or added to.
    ///
    /// # Errors
    /// As [`Calibration::load`]; [`Error::Format`] for a file with neither moments of keys in this frame nor of values.
    pub fn read_moments(&mut self, path: impl AsRef<Path>, layer: usize) -> Result<()> {
        self.read_moments_of(&Reading::open(path.as_ref(), WHAT)?, layer)
    }

    /// [`Calibration::read_moments`] from the bytes of such a file, where there is no file system.
    ///
    /// # Errors
    /// As [`Calibration::read_moments`], but for [`Error::Io`].
    pub fn read_moments_bytes(&mut self, bytes: &[u8], layer: usize) -> Result<()> {
        self.read_moments_of(&Reading::of_bytes(bytes, WHAT)?, layer)
    }

    fn read_moments_of(&mut self, file: &Reading<'_>, layer: usize) -> Result<()> {
        let prefix = format!("layer.{layer}.");
        let prefixed = file.names()?.iter().any(|name| name.starts_with(&prefix));
        let read = self.read_layer(file, if prefixed { &prefix } else { "" })?;
        if read.keys.is_none() && read.values.is_none() && read.attended.is_none() {
            let (k, _) = self.frame_names();
            return file.format(format!("there is neither a {k}_mom nor a cal_v_mom of layer {layer}"));
        }
        self.layers.insert(layer, read);
        Ok(())
    }

    fn read_layer(&self, file: &Reading<'_>, prefix: &str) -> Result<LayerMoments> {
        let (k, q) = self.frame_names();
        let (d, kv_heads) = (self.head_dim, self.kv_heads);
        let width = kv_heads * d;
        let mut uncounted = false;
        let mut moments = |what: &str| -> Result<Option<Moments>> {
            let name = |part: &str| format!("{prefix}{what}_{part}");
            if !file.has(&name("mom"))? && !file.has(&name("mean"))? {
                return Ok(None);
            }
            let moment = file.shaped::<Ix2>(&name("mom"), &[width, width])?;
            let mean = file.shaped::<Ix1>(&name("mean"), &[width])?;
            let weights = match file.has(&name("count"))? {
                true => file.shaped::<Ix1>(&name("count"), &[kv_heads])?,
                false => {
                    uncounted = true;
                    Array1::ones(kv_heads)
                }
            };
            if let Some(head) = weights.iter().position(|weight| !is_count(*weight)) {
                return file.format(format!("{} of head {head} is {}", name("count"), weights[head]));
            }
            let moments = Moments::of_means(weights, &mean, &moment);
            sums(file, &name("mom"), moments.sums.iter().chain(&moments.products))?;
            Ok(Some(moments))
        };
        let (keys, values, attended) = (moments(&k)?, moments("cal_v")?, moments("cal_v_attnw")?);
        let count = |name: String| -> Result<Option<f64>> {
            match file.has(&name)? {
                true => match file.shaped::<ndarray::Ix0>(&name, &[])?.into_scalar() {
                    count if is_count(count) => Ok(Some(count)),
                    count => file.format(format!("{name} is {count}")),
                },
                false => Ok(None),
            }
        };
        let mut queries = None;
        if file.has(&format!("{prefix}{q}_mom"))? {
            let moment = file.shaped::<Ix3>(&format!("{prefix}{q}_mom"), &[self.q_heads, d, d])?;
            let count = count(format!("{prefix}{q}_count"))?;
            uncounted |= count.is_none();
            let count = count.filter(|count| *count > 0.0).unwrap_or(1.0);
            let products = moment * count;
            sums(file, &format!("{prefix}{q}_mom"), products.iter())?;
            queries = Some(QueryMoments { count, products });
        }
        let output_gram = match file.has(&format!("{prefix}wo_gram"))? {
            true => Some(file.shaped::<Ix3>(&format!("{prefix}wo_gram"), &[kv_heads, d, d])?),
            false => None,
        };
        let mut weights = [None, None];
        for (weights, what) in weights.iter_mut().zip(["w_k", "w_v"]) {
            let name = format!("{prefix}{what}");
            if file.has(&name)? {
                let found = file.floats::<Ix2>(&name)?;
                if found.nrows() != width {
                    return file.format(format!("{name} has shape {:?}, expected {width} rows", found.shape()));
                }
                *weights = Some(found);
            }
        }
        let mut inputs = None;
        if file.has(&format!("{prefix}cal_x_mean"))? {
            let mean = file.floats::<Ix1>(&format!("{prefix}cal_x_mean"))?;
            let count = count(format!("{prefix}cal_x_count"))?;
            uncounted |= count.is_none();
            let count = count.filter(|count| *count > 0.0).unwrap_or(1.0);
            let sum = mean * count;
            sums(file, &format!("{prefix}cal_x_mean"), sum.iter())?;
            inputs = Some(Inputs { count, sum });
        }
        Ok(LayerMoments { keys, values, attended, queries, inputs, output_gram, weights, uncounted })
    }
}

/// Whether it may be a number of rows, or a sum of weights: 0, or of a size whose square f64 has room for.
fn is_count(count: f64) -> bool {
    count == 0.0 || (1e-100..=1e100).contains(&count)
}

/// An error where means times their count are too large.
fn sums<'a>(file: &Reading, name: &str, mut sums: impl Iterator<Item = &'a f64>) -> Result<()> {
    if sums.all(|sum| sum.is_finite()) { Ok(()) } else { file.format(format!("{name} times its count is beyond f64")) }
}
