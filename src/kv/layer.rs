//! One layer of a cache as kernels see it, but for its memory: what never changes.

use multiversion::multiversion;

use super::latents::{PAGE, PageLayout};
use crate::kernels::latent_attention::HostTables;

/// One projection: z = (x - mean) down, x^ = mean + z up, of the rows of `heads` consecutive KV heads side by side.
#[derive(Debug, Clone)]
pub(crate) struct Factors {
    pub(crate) heads: usize,
    pub(crate) rank: usize,
    /// [heads * d].
    pub(crate) mean: Vec<f32>,
    /// [heads * d, rank].
    pub(crate) down: Vec<f32>,
    /// [rank, heads * d].
    pub(crate) up: Vec<f32>,
}

/// The rotary embedding, and which part of it latents of keys are free of.
#[derive(Debug, Clone, Default)]
pub(crate) struct Turns {
    /// Keys of a block have the origin of its first token: 1 takes the rotation away, none leaves it.
    pub(crate) block: Option<usize>,
    /// Two elements of a head, and by what angle a position turns them.
    pub(crate) pairs: Vec<(usize, usize, f64)>,
}

impl Turns {
    /// The block, if anything turns.
    pub(crate) fn block(&self) -> Option<usize> {
        self.block.filter(|_| !self.pairs.is_empty())
    }

    /// The position that the latent of key `n` is relative to.
    pub(crate) fn origin(&self, n: usize) -> usize {
        self.block().map_or(0, |block| n / block * block)
    }

    /// Cosine and sine of each pair's angle at a position: in f64, rounded once.
    pub(crate) fn angles(&self, position: usize, to: &mut Vec<(f32, f32)>) {
        to.clear();
        to.extend(self.pairs.iter().map(|&(_, _, frequency)| {
            let (sin, cos) = (position as f64 * frequency).sin_cos();
            (cos as f32, sin as f32)
        }));
    }

    /// R_{-n} row, of the angles of n.
    pub(crate) fn back(&self, row: &mut [f32], angles: &[(f32, f32)]) {
        self.turn(row, angles, 1.0);
    }

    /// R_n row.
    pub(crate) fn forth(&self, row: &mut [f32], angles: &[(f32, f32)]) {
        self.turn(row, angles, -1.0);
    }

    fn turn(&self, row: &mut [f32], angles: &[(f32, f32)], sign: f32) {
        if let Some((i, j)) = self.halves() {
            let (front, behind) = row.split_at_mut(j);
            return turn_halves(&mut front[i..], behind, angles, sign);
        }
        for (&(i, j, _), &(cos, sin)) in self.pairs.iter().zip(angles) {
            let sin = sign * sin;
            (row[i], row[j]) = (row[i] * cos + row[j] * sin, row[j] * cos - row[i] * sin);
        }
    }

    /// Where the first and the second elements of pairs begin, if both lie side by side.
    fn halves(&self) -> Option<(usize, usize)> {
        let (&(i, j, _), &(last_i, last_j, _)) = (self.pairs.first()?, self.pairs.last()?);
        let count = self.pairs.len();
        let halves = last_i == i + count - 1 && last_j == j + count - 1 && j >= i + count;
        // Of a rotary embedding's layouts the ends tell which it is.
        debug_assert!(!halves || (0..count).all(|p| (self.pairs[p].0, self.pairs[p].1) == (i + p, j + p)));
        halves.then_some((i, j))
    }
}

#[multiversion(targets("x86_64+avx2+fma"))]
fn turn_halves(a: &mut [f32], b: &mut [f32], angles: &[(f32, f32)], sign: f32) {
    for ((a, b), &(cos, sin)) in a.iter_mut().zip(b).zip(angles) {
        let sin = sign * sin;
        (*a, *b) = (*a * cos + *b * sin, *b * cos - *a * sin);
    }
}

/// What exact rows are stored as; what is appended is rounded to it before anything else is done with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ExactType {
    /// f16.
    #[default]
    Half,
    /// f32.
    Single,
}

impl ExactType {
    /// Bytes of an element.
    pub(crate) fn bytes(self) -> u64 {
        match self {
            Self::Half => 2,
            Self::Single => 4,
        }
    }
}

/// One layer of a cache: shapes, projections, and where the tokens of a sequence of `len` are.
///
/// Packed are the pages 0..pages(len). Exact are the tokens n < sinks, in place n of the sequence's slot, and those from 32 pages(len) on, in place
/// sinks + n mod ring. A slot is [2 (k, v), kv_heads, places, d].
#[derive(Debug)]
pub(crate) struct LatentLayer {
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) turns: Turns,
    pub(crate) keys: Vec<Factors>,
    pub(crate) values: Vec<Factors>,
    pub(crate) layout: PageLayout,
    pub(crate) sinks: usize,
    pub(crate) window: usize,
    pub(crate) exact: ExactType,
    /// The projections as the CPU's kernels have them; none for a GPU.
    pub(crate) host: Option<HostTables>,
}

impl LatentLayer {
    /// How many pages of a sequence are packed.
    pub(crate) fn pages(&self, len: usize) -> usize {
        len.saturating_sub(self.window) / PAGE
    }

    /// The first token behind the packed ones.
    pub(crate) fn boundary(&self, len: usize) -> usize {
        PAGE * self.pages(len)
    }

    /// Places of the ring: more than are ever exact behind the boundary.
    pub(crate) fn ring(&self) -> usize {
        self.window + PAGE
    }

    /// Rows of a head in a slot.
    pub(crate) fn places(&self) -> usize {
        self.sinks + self.ring()
    }

    /// The place of exact token `n`.
    pub(crate) fn place(&self, n: usize) -> usize {
        if n < self.sinks { n } else { self.sinks + n % self.ring() }
    }

    /// Elements of a slot.
    pub(crate) fn slot_elements(&self) -> usize {
        2 * self.kv_heads * self.places() * self.head_dim
    }

    /// Bytes of a slot.
    pub(crate) fn slot_bytes(&self) -> u64 {
        self.slot_elements() as u64 * self.exact.bytes()
    }

    /// The set of a head, and which of its heads it is.
    pub(crate) fn set_of(sets: &[Factors], head: usize) -> (usize, usize) {
        let mut first = 0;
        for (index, set) in sets.iter().enumerate() {
            if head < first + set.heads {
                return (index, head - first);
            }
            first += set.heads;
        }
        unreachable!("the sets cover all heads")
    }
}

/// One sequence's part of a layer: the ids of its packed pages, the id of its slot, its tokens.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CachedSequence<'a> {
    pub(crate) pages: &'a [u32],
    pub(crate) slot: u32,
    pub(crate) len: usize,
}
