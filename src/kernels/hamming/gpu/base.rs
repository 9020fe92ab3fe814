//! Codes in device memory, in groups of 64 word by word, and the windows of them that a kernel sees.

use std::sync::Arc;

use ndarray::Array2;

use super::{PLACE, too_large};
use crate::Result;
use crate::gpu::{Buffer, Check, Constant, Gpu, Kernel, Needs, Params, View, block_on, params, shader};
use crate::hamming::Codes;
use crate::tensor::Storage;

params! {
    /// As in `shaders/hamming/interleave.wgsl`.
    InterleaveParams {
        codes: u32,
        words: u32,
        first: u32,
        groups_x: u32,
        in_offset: u32,
        out_offset: u32,
        pad0: u32,
        pad1: u32,
    }
}

static INTERLEAVE: Kernel = Kernel {
    name: "hamming_interleave",
    sources: &[shader!("hamming/interleave.wgsl")],
    needs: Needs::NONE,
    fields: InterleaveParams::FIELDS,
    params_bytes: size_of::<InterleaveParams>(),
};

pub(super) fn variants() -> Vec<(&'static Kernel, Vec<(&'static str, Constant)>)> {
    vec![(&INTERLEAVE, Vec::new())]
}

/// Codes of a group.
pub(super) const GROUP: usize = 64;
/// Bytes of a piece: so much is copied at most when a piece grows, and a base may be as large as the device's memory.
const PIECE: usize = 1 << 30;

/// Codes on a GPU: pieces, all full but the last.
pub(crate) struct Store {
    pub(super) gpu: Gpu,
    pub(super) words: usize,
    pub(super) bits: usize,
    pieces: Vec<Piece>,
    pub(super) checks: Vec<Arc<Check>>,
}

struct Piece {
    buffer: Buffer,
    len: usize,
    room: usize,
}

impl Store {
    /// An empty one.
    pub(crate) fn new(gpu: &Gpu, bits: usize) -> Result<Self> {
        let words = bits.div_ceil(32);
        if gpu.max_binding() < (GROUP * words * 4) as u64 {
            return Err(too_large(gpu, "64 codes", GROUP * words * 4));
        }
        Ok(Self { gpu: gpu.clone(), words, bits, pieces: Vec::new(), checks: Vec::new() })
    }

    /// Number of codes.
    pub(crate) fn len(&self) -> usize {
        self.pieces.iter().map(|piece| piece.len).sum()
    }

    /// The pieces with the number of codes before each.
    pub(super) fn bases(&self) -> impl Iterator<Item = (usize, Base<'_>)> {
        let mut before = 0;
        self.pieces.iter().map(move |piece| {
            let first = before;
            before += piece.len;
            (first, Base { buffer: &piece.buffer, len: piece.len, words: self.words, grouped: true })
        })
    }

    /// Adds codes of its width and device; on an error none.
    pub(crate) fn append(&mut self, codes: &Codes) -> Result<()> {
        let Storage::Gpu(_, rows) = codes.words().storage() else { unreachable!("only called for a GPU") };
        let full = self.full();
        let (kept, mut done) = (self.pieces.last().map(|piece| piece.len), 0);
        // What is new lies beyond the old end, or in pieces of its own, so that an error can take it back.
        let count = self.pieces.len();
        let result = (|| {
            while done < codes.len() {
                let last = self.pieces.last().filter(|piece| piece.len < full).map_or(0, |piece| piece.len);
                let part = (codes.len() - done).min(full - last);
                let at = self.grow(last, part)?;
                let (piece, old) = (&self.pieces[at], last);
                interleave(&self.gpu, rows, self.words, done, &piece.buffer, old, part)?;
                self.pieces[at].len = old + part;
                done += part;
            }
            Ok(())
        })();
        match result {
            Ok(()) => self.checks = crate::kernels::inherit(&[&self.checks, codes.words().checks()]),
            Err(_) => {
                self.pieces.truncate(count);
                if let (Some(piece), Some(len)) = (self.pieces.last_mut(), kept) {
                    piece.len = len;
                }
            }
        }
        result
    }

    /// Codes `first..end`, (end - first, words). Waits.
    pub(crate) fn codes(&self, first: usize, end: usize) -> Result<Array2<u32>> {
        let mut rows = Array2::zeros((end - first, self.words));
        for (before, base) in self.bases() {
            let (from, to) = (first.max(before), end.min(before + base.len));
            if from >= to {
                continue;
            }
            let group = GROUP * self.words;
            let groups = (from - before) / GROUP..(to - before).div_ceil(GROUP);
            let mut words = vec![0u32; groups.len() * group];
            let (offset, bytes) = ((groups.start * group * 4) as u64, (words.len() * 4) as u64);
            let view = View { buffer: base.buffer, offset, bytes };
            block_on(self.gpu.read(view, &self.checks, bytemuck::cast_slice_mut(&mut words)))?;
            for id in from..to {
                let place = id - before - groups.start * GROUP;
                let code = place / GROUP * group + place % GROUP;
                let of_code = words[code..].iter().step_by(GROUP);
                rows.row_mut(id - first).iter_mut().zip(of_code).for_each(|(to, from)| *to = *from);
            }
        }
        Ok(rows)
    }

    /// Codes of a full piece.
    fn full(&self) -> usize {
        let group = GROUP * self.words * 4;
        (PIECE.min(self.gpu.max_buffer() as usize) / group).max(1) * GROUP
    }

    /// The piece with room for `more` codes after its `last`: the last one, or a new one.
    fn grow(&mut self, last: usize, more: usize) -> Result<usize> {
        let bytes = |room: usize| (room * self.words * 4) as u64;
        if last == 0 {
            let room = more.next_multiple_of(GROUP);
            let buffer = self.gpu.allocate(PLACE, bytes(room))?;
            self.pieces.push(Piece { buffer, len: 0, room });
            return Ok(self.pieces.len() - 1);
        }
        let at = self.pieces.len() - 1;
        let piece = &self.pieces[at];
        if piece.room < last + more {
            // Doubling: codes are copied once on average.
            let room = (last + more).max(2 * piece.room).min(self.full()).next_multiple_of(GROUP);
            let buffer = self.gpu.allocate(PLACE, bytes(room))?;
            self.gpu.copy(View { buffer: &piece.buffer, offset: 0, bytes: bytes(piece.room) }, &buffer, 0);
            self.pieces[at] = Piece { buffer, len: last, room };
        }
        Ok(at)
    }
}

/// Records the copy of `count` rows from `from` on to the places from `to` on of a piece.
fn interleave(
    gpu: &Gpu,
    rows: &Buffer,
    words: usize,
    from: usize,
    piece: &Buffer,
    to: usize,
    count: usize,
) -> Result<()> {
    let code = words * 4;
    let alignment = gpu.binding_alignment();
    // Whole groups of the piece a window, and as many rows.
    let groups = (gpu.max_binding() as usize / (GROUP * code)).min(gpu.rows_per_window(PLACE, code)? / GROUP);
    // A window of few wide rows takes a part of a group at a time.
    let step = if groups == 0 { gpu.rows_per_window(PLACE, code)? } else { groups * GROUP };
    let mut done = 0;
    while done < count {
        let group = (to + done) / GROUP;
        let inside = (to + done) % GROUP;
        let part = (count - done).min(if groups == 0 { step.min(GROUP - inside) } else { step - inside });
        let (rows, rows_shift) = View::window(rows, ((from + done) * code) as u64, (part * code) as u64, alignment);
        let bytes = (inside + part).next_multiple_of(GROUP) * code;
        let (out, out_shift) = View::window(piece, (group * GROUP * code) as u64, bytes as u64, alignment);
        let grid = gpu.grid(PLACE, ((part * words) as u64).div_ceil(256))?;
        let params = InterleaveParams {
            codes: part as u32,
            words: words as u32,
            first: inside as u32,
            groups_x: grid[0],
            in_offset: rows_shift as u32 / 4,
            out_offset: out_shift as u32 / 4,
            pad0: 0,
            pad1: 0,
        };
        gpu.run(&INTERLEAVE, &[], &params, &[rows, out], grid)?;
        done += part;
    }
    Ok(())
}

/// Codes in a buffer: rows, or groups of 64.
#[derive(Clone, Copy)]
pub(super) struct Base<'a> {
    pub(super) buffer: &'a Buffer,
    pub(super) len: usize,
    pub(super) words: usize,
    grouped: bool,
}

/// Some codes of a base as a kernel sees them.
pub(super) struct Window<'a> {
    pub(super) view: View<'a>,
    /// Number of the first code in its base, a multiple of 64.
    pub(super) first: usize,
    pub(super) len: usize,
    pub(super) words: usize,
    /// Words into the view.
    pub(super) offset: usize,
    /// Words between groups, codes and words.
    pub(super) strides: [usize; 3],
}

impl<'a> Base<'a> {
    /// Codes row by row.
    pub(super) fn rows(buffer: &'a Buffer, len: usize, words: usize) -> Self {
        Self { buffer, len, words, grouped: false }
    }

    /// The base in windows of `chunk` codes, a multiple of 64.
    pub(super) fn windows(self, gpu: &Gpu, chunk: usize) -> impl Iterator<Item = Window<'a>> + use<'a> {
        let alignment = gpu.binding_alignment();
        (0..self.len).step_by(chunk).map(move |first| {
            let len = chunk.min(self.len - first);
            let code = self.words * 4;
            let held = if self.grouped { len.next_multiple_of(GROUP) } else { len };
            let (view, shift) = View::window(self.buffer, (first * code) as u64, (held * code) as u64, alignment);
            let strides =
                if self.grouped { [GROUP * self.words, 1, GROUP] } else { [GROUP * self.words, self.words, 1] };
            Window { view, first, len, words: self.words, offset: shift as usize / 4, strides }
        })
    }
}

/// Codes a window at most, with keys of `key_bytes` in rows that fit a binding and a large cache, or without keys (0).
pub(super) fn chunk(gpu: &Gpu, words: usize, key_bytes: usize) -> Result<usize> {
    let binding = gpu.max_binding() as usize;
    let groups = binding / (GROUP * words * 4);
    if groups == 0 {
        return Err(too_large(gpu, "64 codes", GROUP * words * 4));
    }
    // Offsets of groups are multiples of 256 bytes, the largest alignment there is.
    let codes = match key_bytes {
        0 => (groups * GROUP).min(gpu.max_groups() * 2048).min(1 << 31),
        _ => (groups * GROUP).min(binding / key_bytes).min(gpu.max_groups() * 256).min(1 << 18),
    };
    Ok(if codes >= 2048 { codes / 2048 * 2048 } else { codes / GROUP * GROUP })
}
