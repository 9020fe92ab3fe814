//! A cache as a `.safetensors` file: packed words and exact rows as they are in memory, and who holds them.

use std::collections::HashMap;
use std::path::Path;

use half::f16;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use super::*;

const WHAT: &str = "KvCache file";

fn format<T>(reason: impl ToString) -> Result<T> {
    Err(Error::Format { what: WHAT, reason: reason.to_string() })
}

fn io(path: &Path, error: &dyn std::fmt::Display) -> Error {
    Error::Io { what: path.display().to_string(), reason: error.to_string() }
}

impl KvCache {
    /// What must agree between who saves and who loads.
    fn kind(&self) -> String {
        let CacheOptions { key_bits, value_bits, window, sinks, exact, .. } = &self.options;
        let layers: Vec<_> = self
            .layers
            .iter()
            .map(|layer| {
                let shape = &layer.shape;
                let ranks =
                    |sets: &[Factors]| sets.iter().map(|set| set.rank.to_string()).collect::<Vec<_>>().join(",");
                format!("{}:{}/{}", layer.number, ranks(&shape.keys), ranks(&shape.values))
            })
            .collect();
        let (heads, d) = self.layers.first().map_or((0, 0), |layer| (layer.shape.kv_heads, layer.shape.head_dim));
        let block = self.layers.first().and_then(|layer| layer.shape.turns.block());
        format!(
            "{heads} heads of {d}, frame block {block:?}, {} and {} bits, window {window}, sinks {sinks}, exact {exact:?}, ranks {}",
            key_bits.count(),
            value_bits.count(),
            layers.join(" ")
        )
    }

    /// Writes all sequences to a `.safetensors` file: for each layer `layer.N.pages` [pages, words] (u32), `layer.N.exact` [sequences, bytes],
    /// `layer.N.lengths` (one a sequence) and `layer.N.tables` (rows of the pages each sequence holds, one sequence after the other). Projections are not in
    /// it. Waits for a GPU.
    ///
    /// # Errors
    /// [`Error::Io`]; the device's own.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let mut tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
        for (index, layer) in self.layers.iter().enumerate() {
            let mut rows: HashMap<u32, u32> = HashMap::new();
            let (mut ids, mut exact, mut lengths, mut tables) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
            for held in self.sequences.values().map(|held| &held[index]) {
                for &id in &held.pages {
                    let next = rows.len() as u32;
                    let row = *rows.entry(id).or_insert(next);
                    if row == next {
                        ids.push(id);
                    }
                    tables.extend(row.to_le_bytes());
                }
                exact.extend(layer.store.read_slot(&layer.shape, held.slot)?);
                lengths.extend((held.len as u64).to_le_bytes());
            }
            let pages = layer.store.read_pages(&ids)?.iter().flat_map(|word| word.to_le_bytes()).collect();
            let count = self.sequences.len();
            let name = |what: &str| format!("layer.{}.{what}", layer.number);
            tensors.push((name("pages"), Dtype::U32, vec![rows.len(), layer.shape.layout.words], pages));
            tensors.push((name("exact"), Dtype::U8, vec![count, layer.shape.slot_bytes() as usize], exact));
            tensors.push((name("lengths"), Dtype::U64, vec![count], lengths));
            tensors.push((name("tables"), Dtype::U32, vec![tables.len() / 4], tables));
        }
        let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
            let view = TensorView::new(*dtype, shape.clone(), bytes).map_err(|error| io(path, &error))?;
            Ok((name.as_str(), view))
        });
        let views = views.collect::<Result<Vec<_>>>()?;
        let metadata = HashMap::from([("orthant_kv_cache".to_string(), self.kind())]);
        let mut name = path.file_name().unwrap_or_default().to_os_string();
        name.push(format!(".{}.partial", std::process::id()));
        let beside = path.with_file_name(name);
        let written = safetensors::serialize_to_file(views, Some(metadata), &beside).map_err(|error| io(path, &error));
        let renamed = written.and_then(|()| std::fs::rename(&beside, path).map_err(|error| io(path, &error)));
        if renamed.is_err() {
            // Nothing to report beyond the first error.
            let _ = std::fs::remove_file(&beside);
        }
        renamed
    }

    /// Adds the sequences of a file that a cache of the same projections and options saved, in their order.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Format`] where the file is not of such a cache, or damaged; [`Error::TooLarge`] where it exceeds the capacity; the device's
    /// own. The cache is then as before.
    pub fn load(&mut self, path: impl AsRef<Path>) -> Result<Vec<Sequence>> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(|error| io(path, &error))?;
        let not_one = |error: safetensors::SafeTensorError| format::<()>(format!("{}: {error}", path.display()));
        let (_, header) = match SafeTensors::read_metadata(&bytes) {
            Ok(read) => read,
            Err(error) => return not_one(error).map(|()| Vec::new()),
        };
        let kind = header.metadata().as_ref().and_then(|metadata| metadata.get("orthant_kv_cache"));
        match kind {
            None => return format(format!("{} holds no cache", path.display())),
            Some(kind) if *kind != self.kind() => {
                return format(format!("{} holds a cache of {kind}; this one is of {}", path.display(), self.kind()));
            }
            _ => {}
        }
        let file = match SafeTensors::deserialize(&bytes) {
            Ok(file) => file,
            Err(error) => return not_one(error).map(|()| Vec::new()),
        };
        let mut of_layers = Vec::new();
        let mut more = 0;
        for layer in &self.layers {
            let read = OfLayer::read(&file, layer)?;
            more += read.pages.len() as u64 + read.exact.len() as u64;
            of_layers.push(read);
        }
        let count = of_layers.first().map_or(0, |of_layer| of_layer.lengths.len());
        if of_layers.iter().any(|of_layer| of_layer.lengths.len() != count) {
            return format("layers have different numbers of sequences");
        }
        self.allow(more)?;
        let mut taken: Vec<(Vec<u32>, Vec<u32>)> = Vec::new();
        for (index, of_layer) in of_layers.iter().enumerate() {
            taken.push((Vec::new(), Vec::new()));
            if let Err(error) = of_layer.fill(&mut self.layers[index], &mut taken[index]) {
                for (layer, (pages, slots)) in self.layers.iter_mut().zip(&taken) {
                    layer.release_pages(pages);
                    slots.iter().for_each(|slot| layer.release_slot(*slot));
                }
                return Err(error);
            }
        }
        let mut sequences = Vec::new();
        let mut used = vec![0; self.layers.len()];
        for number in 0..count {
            let mut held = Vec::new();
            for (index, of_layer) in of_layers.iter().enumerate() {
                let (ids, slots) = &taken[index];
                let len = of_layer.lengths[number];
                let table = &of_layer.tables[used[index]..][..self.layers[index].shape.pages(len)];
                used[index] += table.len();
                let pages: Vec<u32> = table.iter().map(|row| ids[*row as usize]).collect();
                pages.iter().for_each(|page| self.layers[index].references[*page as usize] += 1);
                held.push(Held { pages, slot: slots[number], len });
            }
            sequences.push(self.enter(held));
        }
        // They were taken with one holder, this function.
        self.layers.iter_mut().zip(&taken).for_each(|(layer, (pages, _))| layer.release_pages(pages));
        Ok(sequences)
    }
}

/// One layer of a file.
struct OfLayer<'a> {
    pages: &'a [u8],
    exact: &'a [u8],
    lengths: Vec<usize>,
    tables: Vec<u32>,
}

impl<'a> OfLayer<'a> {
    fn read(file: &SafeTensors<'a>, layer: &Layer) -> Result<Self> {
        let tensor = |what: &str, dtype: Dtype, row: Option<usize>| -> Result<&'a [u8]> {
            let name = format!("layer.{}.{what}", layer.number);
            let Ok(tensor) = file.tensor(&name) else { return format(format!("{name} is missing")) };
            if tensor.dtype() != dtype || tensor.shape().get(1).copied() != row {
                return format(format!("{name} is {:?} of {:?}", tensor.dtype(), tensor.shape()));
            }
            Ok(tensor.data())
        };
        let pages = tensor("pages", Dtype::U32, Some(layer.shape.layout.words))?;
        let exact = tensor("exact", Dtype::U8, Some(layer.shape.slot_bytes() as usize))?;
        let lengths = tensor("lengths", Dtype::U64, None)?;
        let tables = tensor("tables", Dtype::U32, None)?;
        let lengths: Vec<usize> =
            lengths.chunks_exact(8).map(|x| u64::from_le_bytes(x.try_into().unwrap_or_default()) as usize).collect();
        let tables: Vec<u32> =
            tables.chunks_exact(4).map(|x| u32::from_le_bytes(x.try_into().unwrap_or_default())).collect();
        let count = pages.len() / layer.shape.layout.bytes().max(1) as usize;
        let held = lengths.iter().try_fold(0usize, |held, len| held.checked_add(layer.shape.pages(*len)));
        if held != Some(tables.len())
            || tables.iter().any(|row| *row as usize >= count)
            || exact.len() as u64 != lengths.len() as u64 * layer.shape.slot_bytes()
        {
            return format(format!("the tables of layer {} do not fit its lengths and pages", layer.number));
        }
        let read = Self { pages, exact, lengths, tables };
        if !read.is_finite(&layer.shape) {
            return format(format!("layer {} has elements that are not finite", layer.number));
        }
        Ok(read)
    }

    /// Whether every row held is finite. Packed sinks count for nothing: they are held exactly beside.
    fn is_finite(&self, shape: &LatentLayer) -> bool {
        let exact = match shape.exact {
            ExactType::Half => self.exact.as_chunks().0.iter().all(|x| f16::from_le_bytes(*x).is_finite()),
            ExactType::Single => self.exact.as_chunks().0.iter().all(|x| f32::from_le_bytes(*x).is_finite()),
        };
        let bytes = shape.layout.bytes().max(1) as usize;
        // A page with sinks is the first of a sequence, and nothing else.
        let mut skips = vec![shape.sinks; self.pages.len() / bytes];
        let mut tables = &self.tables[..];
        for len in &self.lengths {
            let (table, rest) = tables.split_at(shape.pages(*len));
            table.iter().skip(1).for_each(|row| skips[*row as usize] = 0);
            tables = rest;
        }
        let words = |page: &[u8]| page.as_chunks().0.iter().map(|x| u32::from_le_bytes(*x)).collect::<Vec<u32>>();
        let sets = || shape.layout.keys.iter().chain(&shape.layout.values);
        let fine = |(page, &skip): (&[u8], &usize)| {
            let page = words(page);
            sets().all(|set| set.is_finite(&page, skip))
        };
        exact && self.pages.chunks_exact(bytes).zip(&skips).all(fine)
    }

    /// Pages and slots of their own, with what the file has.
    fn fill(&self, layer: &mut Layer, taken: &mut (Vec<u32>, Vec<u32>)) -> Result<()> {
        let bytes = layer.shape.layout.bytes() as usize;
        taken.0 = layer.take_pages(self.pages.len() / bytes.max(1))?;
        for (&id, page) in taken.0.iter().zip(self.pages.chunks_exact(bytes.max(1))) {
            let words: Vec<u32> =
                page.chunks_exact(4).map(|x| u32::from_le_bytes(x.try_into().unwrap_or_default())).collect();
            layer.store.write_page(id, &words)?;
        }
        for rows in self.exact.chunks_exact(layer.shape.slot_bytes().max(1) as usize) {
            let slot = layer.take_slot()?;
            taken.1.push(slot);
            layer.store.write_slot(&layer.shape, slot, rows)?;
        }
        Ok(())
    }
}
