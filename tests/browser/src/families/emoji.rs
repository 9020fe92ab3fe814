//! Exact search over binary codes of pictures.

use ndarray::{Array2, s};
use orthant::Device;
use orthant::hamming::{Binarizer, Codes, Index, SearchOptions, binarize};
use serde_json::{Value, json};

use super::{Clock, Failure, npy};

/// Neighbours of each drawing that [`Emoji::read`] looks for, itself among them.
const NEAREST: usize = 11;

/// Codes of drawings in an index.
pub struct Emoji {
    device: Device,
    index: Index,
    words: Array2<u32>,
    bits: usize,
}

impl Emoji {
    /// Drawings by features (n, dim), each against its median, dim bits; labels (n, 2): the emoji and who drew it.
    ///
    /// Gives the neighbours of all drawings, and for how many of them the nearest, or one of the ten nearest, is the same emoji by another hand.
    pub async fn read(device: &Device, features: &[u8], labels: &[u8], now: Clock) -> Result<(Self, Value), Failure> {
        let (features, labels) = (npy::floats(features)?, npy::integers(labels)?);
        let (n, bits) = features.dim();
        let start = now();
        let rows = device.tensor(&features)?;
        let codes = binarize(&rows, &Binarizer::median_async(&rows, bits).await?)?;
        let mut index = Index::new(device, bits)?;
        index.add(&codes)?;
        let found = index.search(&codes, &SearchOptions::new(NEAREST))?;
        let (ids, distances) = (found.ids.to_array_async().await?, found.distances.to_array_async().await?);
        let milliseconds = now() - start;
        let same = |row: usize, id: u32| id as usize != row && labels[[id as usize, 0]] == labels[[row, 0]];
        let recall = |k: usize| {
            let others = |row: usize| ids.row(row).into_iter().copied().filter(move |id| *id as usize != row).take(k);
            let hits = (0..n).filter(|row| others(*row).any(|id| same(*row, id))).count();
            hits as f64 / n as f64
        };
        let report = json!({
            "drawings": n, "bits": bits, "nearest": NEAREST, "ids": ids.iter().collect::<Vec<_>>(),
            "distances": distances.iter().collect::<Vec<_>>(), "recall_at_1": recall(1), "recall_at_10": recall(10),
            "milliseconds": milliseconds,
        });
        let words = codes.words().to_array_async().await?;
        Ok((Self { device: device.clone(), index, words, bits }, report))
    }

    /// The `k` drawings nearest to drawing `row`, itself among them.
    pub async fn search(&self, row: usize, k: usize, now: Clock) -> Result<Value, Failure> {
        if row >= self.words.nrows() {
            return Err(format!("there is no drawing {row}").into());
        }
        let start = now();
        let query = Codes::new(self.device.tensor(&self.words.slice(s![row..row + 1, ..]))?, self.bits)?;
        let found = self.index.search(&query, &SearchOptions::new(k))?;
        let (ids, distances) = (found.ids.to_array_async().await?, found.distances.to_array_async().await?);
        let milliseconds = now() - start;
        let list = |of: &Array2<u32>| of.iter().copied().collect::<Vec<u32>>();
        Ok(json!({ "ids": list(&ids), "distances": list(&distances), "milliseconds": milliseconds }))
    }
}
