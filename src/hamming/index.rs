//! [`Index`]: codes to search among.

use std::fmt;

use ndarray::Ix2;

use crate::gpu::block_on;
use crate::hamming::codes::{check_bits, width};
use crate::hamming::{Codes, Mask, Neighbours, Precision, Ranges, SearchOptions, asymmetric};
use crate::kernels::hamming::{self, Store};
use crate::{Device, Error, Result, Tensor};

pub(super) const PLACE: &str = "hamming::Index";

/// Codes of one width on a device, searched exactly.
///
/// Ids are given in order of adding and stay: what is removed leaves a gap. They are 32 bits, counted from [`Index::first_id`].
pub struct Index {
    pub(super) device: Device,
    pub(super) bits: usize,
    pub(super) first_id: u64,
    pub(super) store: Store,
    /// Ids that are still there; None while none was removed.
    pub(super) present: Option<Mask>,
}

impl Index {
    /// An empty index of codes of `bits`.
    ///
    /// # Errors
    /// [`Error::Argument`] unless `bits` is a multiple of 8 from 8 to 8192.
    pub fn new(device: &Device, bits: usize) -> Result<Self> {
        check_bits(PLACE, bits)?;
        Ok(Self { device: device.clone(), bits, first_id: 0, store: Store::new(device, bits)?, present: None })
    }

    /// The same index with ids counted from `first_id`.
    pub fn with_first_id(mut self, first_id: u64) -> Self {
        self.first_id = first_id;
        self
    }

    /// What ids count from.
    pub fn first_id(&self) -> u64 {
        self.first_id
    }

    /// Bits of a code.
    pub fn bits(&self) -> usize {
        self.bits
    }

    /// The device it is on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Ids given so far, those removed too.
    pub fn ids(&self) -> usize {
        self.store.len()
    }

    /// Number of codes that are there.
    pub fn len(&self) -> usize {
        self.present.as_ref().map_or(self.ids(), Mask::count)
    }

    /// Whether no code is there.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds codes, with the next ids. Nothing is added on an error.
    ///
    /// # Errors
    /// [`Error::DeviceMismatch`]; [`Error::Argument`] for codes of another width; [`Error::TooLarge`] beyond 2^32 codes; the device's own.
    pub fn add(&mut self, codes: &Codes) -> Result<()> {
        self.check("codes", codes)?;
        let ids = self.ids() as u64 + codes.len() as u64;
        if ids > 1 << 32 {
            let device = self.device.to_string();
            return Err(Error::TooLarge { place: PLACE, quantity: "codes", needed: ids, limit: 1 << 32, device });
        }
        self.store.append(codes)?;
        if let Some(present) = self.present.take() {
            let (old, new) = (present.len(), self.ids());
            let mut words = present.words().to_vec();
            words.resize(new.div_ceil(32), 0);
            (old..new).for_each(|id| words[id / 32] |= 1 << (id % 32));
            self.present = Some(Mask::of(words, new));
        }
        Ok(())
    }

    /// Removes ids, counted from the index's first; gives how many of them were there.
    ///
    /// # Errors
    /// [`Error::Domain`] names the first id that was never given; nothing is removed then.
    pub fn remove(&mut self, ids: &[u32]) -> Result<usize> {
        let gone = Mask::of_ids(self.ids(), ids)?;
        let before = self.len();
        let words = match &self.present {
            Some(present) => present.words().iter().zip(gone.words()).map(|(present, gone)| present & !gone).collect(),
            None => {
                let all = all_words(self.ids());
                all.iter().zip(gone.words()).map(|(all, gone)| all & !gone).collect()
            }
        };
        self.present = Some(Mask::of(words, self.ids()));
        Ok(before - self.len())
    }

    /// The nearest of each query by Hamming distance, (queries, min(k, codes that are there and allowed)).
    ///
    /// # Errors
    /// [`Error::Argument`] for k = 0, codes of another width, a mask of another length; [`Error::DeviceMismatch`]; the device's own.
    pub fn search(&self, queries: &Codes, options: &SearchOptions) -> Result<Neighbours<u32>> {
        self.check("queries", queries)?;
        let (k, allowed) = self.admit(options)?;
        let mut found = hamming::nearest(&self.store, queries, k, allowed.as_ref().map(Mask::words))?;
        found.first_id = self.first_id;
        Ok(found)
    }

    /// As [`Index::search`] by Jaccard distance, 1 - intersection / union of the bits set; 0 for two codes without any. Order and ties are exact:
    /// fractions are compared as integers, then rounded to f32.
    ///
    /// # Errors
    /// As [`Index::search`].
    pub fn search_jaccard(&self, queries: &Codes, options: &SearchOptions) -> Result<Neighbours<f32>> {
        self.check("queries", queries)?;
        let (k, allowed) = self.admit(options)?;
        let mut found = hamming::nearest_jaccard(&self.store, queries, k, allowed.as_ref().map(Mask::words))?;
        found.first_id = self.first_id;
        Ok(found)
    }

    /// As [`Index::search`] for queries that are not binary, (queries, bits): the distance of a code is the sum of |q_j| over the components whose sign
    /// (>= 0 or not) differs from its bit j. With bits as signs s = 1 or -1 that is (sum |q_j| - q's) / 2: the order is that of the inner product.
    ///
    /// Sums in f32 are within bits / 8 roundings of exact; those of int4 are exact for the query as it was rounded. Waits for the queries.
    ///
    /// # Errors
    /// As [`Index::search`]; [`Error::Shape`] for another number of components; [`Error::Domain`] names the first that is not finite.
    pub fn search_asymmetric(
        &self,
        queries: &Tensor<f32, Ix2>,
        precision: Precision,
        options: &SearchOptions,
    ) -> Result<Neighbours<f32>> {
        self.device.same(PLACE, "queries", queries.device())?;
        let (k, allowed) = self.admit(options)?;
        let rows = asymmetric::admit(queries, self.bits)?;
        let allowed = allowed.as_ref().map(Mask::words);
        let mut found = match precision {
            Precision::Float => hamming::nearest_float(&self.store, queries, k, allowed)?,
            Precision::Int4 => {
                let queries = asymmetric::quantise(&self.device, &rows)?;
                hamming::nearest_int4(&self.store, &queries, k, allowed)?
            }
        };
        found.first_id = self.first_id;
        Ok(found)
    }

    /// All codes at most `radius` bits from each query; waits for their number.
    ///
    /// # Errors
    /// As [`Index::search`].
    pub fn within(&self, queries: &Codes, radius: u32, allowed: Option<&Mask>) -> Result<Ranges> {
        block_on(self.within_async(queries, radius, allowed))
    }

    /// [`Index::within`] where a thread must not block.
    ///
    /// # Errors
    /// As [`Index::within`].
    pub async fn within_async(&self, queries: &Codes, radius: u32, allowed: Option<&Mask>) -> Result<Ranges> {
        self.check("queries", queries)?;
        let allowed = self.among(allowed)?;
        let mut found = hamming::within(&self.store, queries, radius, allowed.as_ref().map(Mask::words)).await?;
        found.first_id = self.first_id;
        Ok(found)
    }

    fn check(&self, quantity: &'static str, codes: &Codes) -> Result<()> {
        self.device.same(PLACE, quantity, codes.device())?;
        if codes.bits() == self.bits { Ok(()) } else { Err(width(PLACE, quantity, self.bits, codes.bits())) }
    }

    /// k as far as there are codes, and which may be found if not all.
    fn admit(&self, options: &SearchOptions) -> Result<(usize, Option<Mask>)> {
        if options.k == 0 {
            let expected = "1 or more".into();
            return Err(Error::Argument { place: PLACE, quantity: "k", expected, found: "0".into() });
        }
        let allowed = self.among(options.allowed.as_ref())?;
        Ok((options.k.min(allowed.as_ref().map_or(self.ids(), Mask::count)), allowed))
    }

    fn among(&self, allowed: Option<&Mask>) -> Result<Option<Mask>> {
        if let Some(mask) = allowed
            && mask.len() != self.ids()
        {
            return Err(Error::Argument {
                place: PLACE,
                quantity: "mask",
                expected: format!("{} ids", self.ids()),
                found: format!("of {}", mask.len()),
            });
        }
        Ok(match (&self.present, allowed) {
            (None, None) => None,
            (Some(mask), None) | (None, Some(mask)) => Some(mask.clone()),
            (Some(a), Some(b)) => {
                Some(Mask::of(a.words().iter().zip(b.words()).map(|(a, b)| a & b).collect(), self.ids()))
            }
        })
    }
}

impl fmt::Debug for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Index of {} codes of {} bits on {}", self.len(), self.bits, self.device)
    }
}

/// A mask that allows all of `len`.
pub(super) fn all_words(len: usize) -> Vec<u32> {
    let mut words = vec![u32::MAX; len.div_ceil(32)];
    if let Some(last) = words.last_mut()
        && !len.is_multiple_of(32)
    {
        *last = (1 << (len % 32)) - 1;
    }
    words
}
