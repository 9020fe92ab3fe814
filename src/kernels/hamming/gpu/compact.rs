//! Histograms of distances, the k-th distance from them, and the codes below a distance gathered in the order of their ids.

use super::PLACE;
use crate::Result;
use crate::gpu::{Buffer, Constant, Gpu, Kernel, Needs, Params, View, params, shader};

params! {
    /// As in `shaders/hamming/histogram.wgsl`.
    HistogramParams {
        codes: u32,
        bins: u32,
        in_offset: u32,
        in_stride: u32,
        out_offset: u32,
        relevant_offset: u32,
        labels_offset: u32,
        query_labels_offset: u32,
    }
}

params! {
    /// As in `shaders/hamming/thresholds.wgsl`.
    ThresholdsParams {
        queries: u32,
        bins: u32,
        k: u32,
        groups_x: u32,
        counts_offset: u32,
        out_offset: u32,
        pad0: u32,
        pad1: u32,
    }
}

params! {
    /// As in `shaders/hamming/compact.wgsl`.
    CompactParams {
        codes: u32,
        first: u32,
        blocks: u32,
        in_offset: u32,
        in_stride: u32,
        thresholds_offset: u32,
        counts_offset: u32,
        rows_offset: u32,
        out_offset: u32,
        room: u32,
        exact: u32,
        tag: u32,
    }
}

params! {
    /// As in `shaders/hamming/offsets.wgsl`.
    OffsetsParams {
        blocks: u32,
        counts_offset: u32,
        carry_offset: u32,
        pad0: u32,
    }
}

static HISTOGRAM: Kernel = Kernel {
    name: "hamming_histogram",
    sources: &[shader!("hamming/histogram.wgsl"), shader!("hamming/histogram_plain.wgsl")],
    needs: Needs::NONE,
    fields: HistogramParams::FIELDS,
    params_bytes: size_of::<HistogramParams>(),
};

static HISTOGRAM_LABELS: Kernel = Kernel {
    name: "hamming_histogram_labels",
    sources: &[shader!("hamming/histogram.wgsl"), shader!("hamming/histogram_labels.wgsl")],
    needs: Needs::NONE,
    fields: HistogramParams::FIELDS,
    params_bytes: size_of::<HistogramParams>(),
};

static THRESHOLDS: Kernel = Kernel {
    name: "hamming_thresholds",
    sources: &[shader!("hamming/thresholds.wgsl")],
    needs: Needs::NONE,
    fields: ThresholdsParams::FIELDS,
    params_bytes: size_of::<ThresholdsParams>(),
};

static COUNT: Kernel = Kernel {
    name: "hamming_compact_count",
    sources: &[shader!("hamming/compact.wgsl"), shader!("hamming/compact_count.wgsl")],
    needs: Needs::NONE,
    fields: CompactParams::FIELDS,
    params_bytes: size_of::<CompactParams>(),
};

static WRITE: Kernel = Kernel {
    name: "hamming_compact_write",
    sources: &[shader!("hamming/compact.wgsl"), shader!("hamming/compact_write.wgsl")],
    needs: Needs::NONE,
    fields: CompactParams::FIELDS,
    params_bytes: size_of::<CompactParams>(),
};

static OFFSETS: Kernel = Kernel {
    name: "hamming_offsets",
    sources: &[shader!("hamming/offsets.wgsl")],
    needs: Needs::NONE,
    fields: OffsetsParams::FIELDS,
    params_bytes: size_of::<OffsetsParams>(),
};

/// Bins of a label's histogram in workgroup memory, or one place where there are no labels.
fn histogram_constants(labels: bool) -> [(&'static str, Constant); 1] {
    [("RELEVANT", Constant::U32(if labels { 1920 } else { 1 }))]
}

pub(super) fn variants() -> Vec<(&'static Kernel, Vec<(&'static str, Constant)>)> {
    vec![
        (&HISTOGRAM, histogram_constants(false).to_vec()),
        (&HISTOGRAM_LABELS, histogram_constants(true).to_vec()),
        (&THRESHOLDS, Vec::new()),
        (&COUNT, Vec::new()),
        (&WRITE, Vec::new()),
        (&OFFSETS, Vec::new()),
    ]
}

/// Labels of a window of codes and of a block of queries, and words into the views.
pub(super) struct Labels<'a> {
    pub(super) codes: (View<'a>, usize),
    pub(super) queries: (View<'a>, usize),
}

/// How many codes each query of a block has at each distance.
pub(super) struct Histogram<'a> {
    gpu: &'a Gpu,
    queries: usize,
    bins: usize,
    pub(super) counts: Buffer,
}

impl<'a> Histogram<'a> {
    pub(super) fn new(gpu: &'a Gpu, queries: usize, bins: usize) -> Result<Self> {
        let counts = gpu.allocate(PLACE, (queries * bins * 4) as u64)?;
        gpu.clear(&counts);
        Ok(Self { gpu, queries, bins, counts })
    }

    /// Records counting rows of distances of `codes` codes.
    pub(super) fn add(&self, distances: &Buffer, stride: usize, codes: usize) -> Result<()> {
        self.record(distances, stride, codes, None)
    }

    /// The same, and in `relevant` those that share a label.
    pub(super) fn add_labelled(
        &self,
        distances: &Buffer,
        stride: usize,
        codes: usize,
        labels: &Labels<'_>,
        relevant: &Self,
    ) -> Result<()> {
        self.record(distances, stride, codes, Some((labels, relevant)))
    }

    fn record(
        &self,
        distances: &Buffer,
        stride: usize,
        codes: usize,
        labels: Option<(&Labels<'_>, &Self)>,
    ) -> Result<()> {
        let params = HistogramParams {
            codes: codes as u32,
            bins: self.bins as u32,
            in_offset: 0,
            in_stride: stride as u32,
            out_offset: 0,
            relevant_offset: 0,
            labels_offset: labels.map_or(0, |(labels, _)| labels.codes.1) as u32,
            query_labels_offset: labels.map_or(0, |(labels, _)| labels.queries.1) as u32,
        };
        let grid = [codes.div_ceil(8192) as u32, self.queries as u32, 1];
        let mut bindings = vec![distances.view(), self.counts.view()];
        let kernel = match labels {
            None => &HISTOGRAM,
            Some((labels, relevant)) => {
                bindings.extend([relevant.counts.view(), labels.codes.0, labels.queries.0]);
                &HISTOGRAM_LABELS
            }
        };
        self.gpu.run(kernel, &histogram_constants(labels.is_some()), &params, &bindings, grid)
    }

    /// The distance of each query's k-th nearest, and how many at it belong to the k: (queries, 2).
    pub(super) fn thresholds(&self, k: usize) -> Result<Buffer> {
        let out = self.gpu.allocate(PLACE, (self.queries * 8) as u64)?;
        let grid = self.gpu.grid(PLACE, (self.queries as u64).div_ceil(64))?;
        let params = ThresholdsParams {
            queries: self.queries as u32,
            bins: self.bins as u32,
            k: k as u32,
            groups_x: grid[0],
            counts_offset: 0,
            out_offset: 0,
            pad0: 0,
            pad1: 0,
        };
        self.gpu.run(&THRESHOLDS, &[], &params, &[self.counts.view(), out.view()], grid)?;
        Ok(out)
    }
}

/// Gathering what lies below each query's threshold, window by window in the order of ids.
pub(super) struct Compaction<'a> {
    gpu: &'a Gpu,
    queries: usize,
    thresholds: View<'a>,
    counts: Buffer,
    /// How many so far, below and at the threshold: (queries, 2).
    pub(super) carry: Buffer,
    /// Whether only what is at the threshold counts.
    pub(super) exact: bool,
    /// Whether keys are query << 14 | distance.
    pub(super) tag: bool,
}

impl<'a> Compaction<'a> {
    /// `chunk`: codes of the largest window.
    pub(super) fn new(gpu: &'a Gpu, queries: usize, thresholds: View<'a>, chunk: usize) -> Result<Self> {
        let counts = gpu.allocate(PLACE, (queries * chunk.div_ceil(2048) * 8) as u64)?;
        let carry = gpu.allocate(PLACE, (queries * 8) as u64)?;
        gpu.clear(&carry);
        Ok(Self { gpu, queries, thresholds, counts, carry, exact: false, tag: false })
    }

    fn params(&self, codes: usize, stride: usize) -> CompactParams {
        CompactParams {
            codes: codes as u32,
            first: 0,
            blocks: codes.div_ceil(2048) as u32,
            in_offset: 0,
            in_stride: stride as u32,
            thresholds_offset: 0,
            counts_offset: 0,
            rows_offset: 0,
            out_offset: 0,
            room: 0,
            exact: self.exact.into(),
            tag: self.tag.into(),
        }
    }

    /// Records counting a window: where its blocks begin, and the carry after it.
    pub(super) fn count(&self, distances: &Buffer, stride: usize, codes: usize) -> Result<()> {
        let params = self.params(codes, stride);
        let grid = [params.blocks, self.queries as u32, 1];
        self.gpu.run(&COUNT, &[], &params, &[distances.view(), self.thresholds, self.counts.view()], grid)?;
        let params = OffsetsParams { blocks: params.blocks, counts_offset: 0, carry_offset: 0, pad0: 0 };
        self.gpu.run(&OFFSETS, &[], &params, &[self.counts.view(), self.carry.view()], [self.queries as u32, 1, 1])
    }

    /// Records writing the window just counted. Query q's entries begin at `starts[q] - skipped` of the views `keys` and `ids`, which take what falls
    /// into them.
    #[allow(clippy::too_many_arguments, reason = "what a kernel's params hold")]
    pub(super) fn write(
        &self,
        distances: &Buffer,
        stride: usize,
        codes: usize,
        first: usize,
        starts: View<'_>,
        (keys, ids): (View<'_>, View<'_>),
        skipped: u32,
    ) -> Result<()> {
        let mut params = self.params(codes, stride);
        params.first = first as u32;
        // What lies before the views wraps around and is beyond their end, too.
        params.out_offset = 0u32.wrapping_sub(skipped);
        params.room = (keys.bytes / 4) as u32;
        let grid = [params.blocks, self.queries as u32, 1];
        let bindings = [distances.view(), self.thresholds, self.counts.view(), starts, keys, ids];
        self.gpu.run(&WRITE, &[], &params, &bindings, grid)
    }
}
