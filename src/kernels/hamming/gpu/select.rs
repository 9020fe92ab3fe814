//! The nearest of many entries in order: lists of every 1024 or 2048, then lists of lists, or sorted runs merged.

use super::base::Window;
use super::distances::{Queries, mask_window};
use super::{NONE, PLACE};
use crate::Result;
use crate::gpu::{Buffer, Constant, Gpu, Kernel, Needs, Params, View, params, shader};

params! {
    /// As in `shaders/hamming/select.wgsl`.
    SelectParams {
        count: u32,
        step: u32,
        k: u32,
        shift: u32,
        first: u32,
        in_offset: u32,
        in_stride: u32,
        ids_offset: u32,
        out_offset: u32,
        out_stride: u32,
        words: u32,
        code_offset: u32,
        tile_stride: u32,
        code_stride: u32,
        word_stride: u32,
        mask_offset: u32,
        masked: u32,
        limits_offset: u32,
        limited: u32,
        pad0: u32,
    }
}

params! {
    /// As in `shaders/hamming/merge_runs.wgsl`.
    MergeRunsParams {
        queries: u32,
        length: u32,
        run: u32,
        keep: u32,
        groups_x: u32,
        in_offset: u32,
        in_stride: u32,
        out_offset: u32,
        out_stride: u32,
        ids_offset: u32,
        out_ids_offset: u32,
        width: u32,
        bits: u32,
        pad0: u32,
        pad1: u32,
        pad2: u32,
    }
}

params! {
    /// As in `shaders/hamming/fill.wgsl`.
    FillParams {
        words: u32,
        value: u32,
        groups_x: u32,
        pad0: u32,
    }
}

macro_rules! select_kernel {
    ($name:ident, $text:literal, $from:literal) => {
        static $name: Kernel = Kernel {
            name: $text,
            sources: &[shader!("hamming/select.wgsl"), shader!($from)],
            needs: Needs::NONE,
            fields: SelectParams::FIELDS,
            params_bytes: size_of::<SelectParams>(),
        };
    };
}
select_kernel!(FROM_CODES, "hamming_from_codes", "hamming/from_codes.wgsl");
select_kernel!(FROM_DISTANCES, "hamming_from_distances", "hamming/from_distances.wgsl");
select_kernel!(FROM_KEYS, "hamming_from_keys", "hamming/from_keys.wgsl");
select_kernel!(FROM_LISTS, "hamming_from_lists", "hamming/from_lists.wgsl");

static MERGE_RUNS: Kernel = Kernel {
    name: "hamming_merge_runs",
    sources: &[shader!("hamming/merge_runs.wgsl")],
    needs: Needs::NONE,
    fields: MergeRunsParams::FIELDS,
    params_bytes: size_of::<MergeRunsParams>(),
};

static FILL: Kernel = Kernel {
    name: "hamming_fill",
    sources: &[shader!("hamming/fill.wgsl")],
    needs: Needs::NONE,
    fields: FillParams::FIELDS,
    params_bytes: size_of::<FillParams>(),
};

/// The order that keys have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keys {
    /// Below 2^16, and ids ascend with places.
    Narrow,
    /// Any u32 but the last.
    Wide,
}

impl Keys {
    /// Entries that a workgroup sorts.
    pub(super) fn tile(self) -> usize {
        if self == Self::Narrow { 2048 } else { 1024 }
    }

    fn constants(self) -> [(&'static str, Constant); 3] {
        let wide = self == Self::Wide;
        [
            ("WIDE", Constant::U32(wide.into())),
            ("TILE", Constant::U32(self.tile() as u32)),
            ("IDS", Constant::U32(if wide { 1024 } else { 1 })),
        ]
    }
}

pub(super) fn variants() -> Vec<(&'static Kernel, Vec<(&'static str, Constant)>)> {
    vec![
        (&FROM_CODES, Keys::Narrow.constants().to_vec()),
        (&FROM_DISTANCES, Keys::Narrow.constants().to_vec()),
        (&FROM_KEYS, Keys::Wide.constants().to_vec()),
        (&FROM_LISTS, Keys::Narrow.constants().to_vec()),
        (&FROM_LISTS, Keys::Wide.constants().to_vec()),
        (&MERGE_RUNS, Vec::new()),
        (&FILL, Vec::new()),
    ]
}

/// Where entries come from.
#[derive(Clone, Copy)]
pub(super) enum Source<'a> {
    /// Distances of the queries to a window of codes, computed as they are read; the first query of the block, and the mask with the window's place in it.
    Codes { queries: Queries<'a>, first_query: usize, window: &'a Window<'a>, mask: Option<(&'a Buffer, usize)> },
    /// Rows of u16 pairs, words apart.
    Distances { rows: View<'a>, stride: usize },
    /// Rows of u32.
    Keys { rows: View<'a>, stride: usize },
    /// Rows of keys and of ids.
    Lists { keys: View<'a>, ids: View<'a>, stride: usize },
}

/// Keys and ids of a block of queries, `stride` entries apart, from `offset` on.
#[derive(Clone, Copy)]
pub(super) struct Slot<'a> {
    pub(super) keys: View<'a>,
    pub(super) ids: View<'a>,
    pub(super) offset: usize,
    pub(super) ids_offset: usize,
    pub(super) stride: usize,
}

impl<'a> Slot<'a> {
    /// Whole buffers.
    pub(super) fn whole(keys: &'a Buffer, ids: &'a Buffer, stride: usize) -> Self {
        Self { keys: keys.view(), ids: ids.view(), offset: 0, ids_offset: 0, stride }
    }
}

/// Rows of entries of a block of queries.
pub(super) struct Entries<'a> {
    pub(super) gpu: &'a Gpu,
    pub(super) queries: usize,
    pub(super) keys: Keys,
    /// Bits that a narrow key has.
    pub(super) key_bits: u32,
    /// Running limits of the queries, zeros at first: none of a query's nearest is above.
    pub(super) limits: Option<&'a Buffer>,
}

/// The most neighbours that lists of lists are made of; more by sorted runs.
pub(super) const MAX_LIST: usize = 256;

impl Entries<'_> {
    /// Records the `k` nearest of every `step` of `count` entries a query. Ids of codes count from `first`. `out.offset` goes for ids too.
    fn lists(
        &self,
        source: Source<'_>,
        first: usize,
        count: usize,
        step: usize,
        k: usize,
        out: &Slot<'_>,
    ) -> Result<()> {
        let mut params = SelectParams {
            count: count as u32,
            step: step as u32,
            k: k as u32,
            // 256 bins over the range of keys.
            shift: self.key_bits.saturating_sub(8),
            first: first as u32,
            in_offset: 0,
            in_stride: 0,
            ids_offset: 0,
            out_offset: out.offset as u32,
            out_stride: out.stride as u32,
            words: 0,
            code_offset: 0,
            tile_stride: 0,
            code_stride: 0,
            word_stride: 0,
            mask_offset: 0,
            masked: 0,
            limits_offset: 0,
            limited: self.limits.is_some().into(),
            pad0: 0,
        };
        debug_assert_eq!(out.offset, out.ids_offset);
        // Something to bind where there are no limits.
        let spare = self.gpu.allocate(PLACE, 4)?;
        let mut bindings = vec![self.limits.unwrap_or(&spare).view(), out.keys, out.ids];
        let kernel = match source {
            Source::Codes { queries, first_query, window, mask } => {
                let (view, offset) = queries.window(self.gpu, &(first_query..first_query + self.queries));
                let (mask_view, mask_offset) = mask_window(
                    self.gpu,
                    mask.map(|(mask, _)| mask),
                    mask.map_or(0, |(_, first)| first),
                    window.len,
                    view,
                );
                (params.in_offset, params.in_stride, params.words) =
                    (offset, queries.words as u32, window.words as u32);
                params.code_offset = window.offset as u32;
                [params.tile_stride, params.code_stride, params.word_stride] =
                    window.strides.map(|stride| stride as u32);
                (params.mask_offset, params.masked) = (mask_offset, mask.is_some().into());
                bindings.extend([view, window.view, mask_view]);
                &FROM_CODES
            }
            Source::Distances { rows, stride } => {
                params.in_stride = stride as u32;
                bindings.push(rows);
                &FROM_DISTANCES
            }
            Source::Keys { rows, stride } => {
                params.in_stride = stride as u32;
                bindings.push(rows);
                &FROM_KEYS
            }
            Source::Lists { keys, ids, stride } => {
                params.in_stride = stride as u32;
                bindings.extend([keys, ids]);
                &FROM_LISTS
            }
        };
        let grid = [count.div_ceil(step).max(1) as u32, self.queries as u32, 1];
        self.gpu.run(kernel, &self.keys.constants(), &params, &bindings, grid)
    }

    /// Keys and ids for `entries` a query.
    fn room(&self, entries: usize) -> Result<(Buffer, Buffer)> {
        let bytes = (self.queries * entries * 4) as u64;
        Ok((self.gpu.allocate(PLACE, bytes)?, self.gpu.allocate(PLACE, bytes)?))
    }

    /// Records the `k` nearest of `count` entries a query, in order, to `out`; [`NONE`] where there are fewer.
    pub(super) fn nearest(
        &self,
        source: Source<'_>,
        first: usize,
        count: usize,
        k: usize,
        out: &Slot<'_>,
    ) -> Result<()> {
        if k > MAX_LIST {
            return self.sorted(source, first, count, k, u32::MAX, out);
        }
        let tile = self.keys.tile();
        if count <= tile {
            return self.lists(source, first, count, tile, k, out);
        }
        let mut lists = count.div_ceil(tile);
        let mut held = self.room(lists * k)?;
        self.lists(source, first, count, tile, k, &Slot::whole(&held.0, &held.1, lists * k))?;
        let fan = tile / k;
        loop {
            let source = Source::Lists { keys: held.0.view(), ids: held.1.view(), stride: lists * k };
            if lists <= fan {
                return self.lists(source, 0, lists * k, fan * k, k, out);
            }
            let fewer = lists.div_ceil(fan);
            let next = self.room(fewer * k)?;
            self.lists(source, 0, lists * k, fan * k, k, &Slot::whole(&next.0, &next.1, fewer * k))?;
            (held, lists) = (next, fewer);
        }
    }

    /// Entries a query that [`Entries::sorted`] makes room for.
    pub(super) fn sorted_room(keys: Keys, count: usize) -> usize {
        count.next_multiple_of(keys.tile())
    }

    /// The same by sorting all entries: tiles, then runs merged in pairs. `bits` of a key are kept in the end.
    pub(super) fn sorted(
        &self,
        source: Source<'_>,
        first: usize,
        count: usize,
        keep: usize,
        bits: u32,
        out: &Slot<'_>,
    ) -> Result<()> {
        let tile = self.keys.tile();
        let length = Self::sorted_room(self.keys, count.max(1));
        let mut held = self.room(length)?;
        self.lists(source, first, count, tile, tile, &Slot::whole(&held.0, &held.1, length))?;
        let mut run = tile;
        while 2 * run < length {
            let next = self.room(length)?;
            let (from, to) = (Slot::whole(&held.0, &held.1, length), Slot::whole(&next.0, &next.1, length));
            merge_runs(self.gpu, self.queries, &from, length, run, length, u32::MAX, &to)?;
            held = next;
            run *= 2;
        }
        merge_runs(self.gpu, self.queries, &Slot::whole(&held.0, &held.1, length), length, run, keep, bits, out)
    }
}

/// Records merging pairs of sorted runs of `from`, rows of `length` entries, keeping the first `keep` of a row; what lies past its end is [`NONE`].
#[allow(clippy::too_many_arguments, reason = "what a kernel's params hold")]
pub(super) fn merge_runs(
    gpu: &Gpu,
    queries: usize,
    from: &Slot<'_>,
    length: usize,
    run: usize,
    keep: usize,
    bits: u32,
    to: &Slot<'_>,
) -> Result<()> {
    let width = length.max(keep);
    let grid = gpu.grid(PLACE, (width as u64).div_ceil(256))?;
    let params = MergeRunsParams {
        queries: queries as u32,
        length: length as u32,
        run: run as u32,
        keep: keep as u32,
        groups_x: grid[0],
        in_offset: from.offset as u32,
        in_stride: from.stride as u32,
        out_offset: to.offset as u32,
        out_stride: to.stride as u32,
        ids_offset: from.ids_offset as u32,
        out_ids_offset: to.ids_offset as u32,
        width: width as u32,
        bits,
        pad0: 0,
        pad1: 0,
        pad2: 0,
    };
    let grid = [grid[0], grid[1], queries as u32];
    gpu.run(&MERGE_RUNS, &[], &params, &[from.keys, from.ids, to.keys, to.ids], grid)
}

/// Records filling `buffer`, at most a binding, with [`NONE`].
pub(super) fn fill(gpu: &Gpu, buffer: &Buffer) -> Result<()> {
    let words = buffer.bytes() / 4;
    let grid = gpu.grid(PLACE, words.div_ceil(256))?;
    let params = FillParams { words: words as u32, value: NONE, groups_x: grid[0], pad0: 0 };
    gpu.run(&FILL, &[], &params, &[buffer.view()], grid)
}
