//! Queries absorbed into the projections of keys.

use std::ops::Range;

use super::*;

params! {
    /// As in `shaders/latent_attention/queries.wgsl`.
    QueriesParams {
        groups: u32,
        groups_x: u32,
        d: u32,
        plain: u32,
        tiles: u32,
        channels: u32,
        blocks: u32,
        first_block: u32,
        angle_offset: u32,
        heads_at: u32,
        turns: u32,
        pairs: u32,
        up_offset: u32,
        q_offset: u32,
        q_heads: u32,
        q_len: u32,
        group: u32,
        first_member: u32,
        members: u32,
        first_query: u32,
        scale: f32,
        pad0: u32,
        pad1: u32,
        pad2: u32,
    }
}

static QUERIES: Kernel = Kernel {
    name: "latent_attention_queries",
    sources: &[shader!("latent_attention/queries.wgsl"), shader!("shared/half.wgsl")],
    needs: Needs::NONE,
    fields: QueriesParams::FIELDS,
    params_bytes: size_of::<QueriesParams>(),
};

fn constants(half: bool, rows: usize) -> [(&'static str, Constant); 2] {
    [("HALF", Constant::U32(half.into())), ("R", Constant::U32(rows as u32))]
}

pub(super) fn variants() -> Vec<(&'static Kernel, Vec<(&'static str, Constant)>)> {
    [(false, 4), (false, 8), (true, 4), (true, 8)]
        .map(|(half, rows)| (&QUERIES, constants(half, rows).to_vec()))
        .to_vec()
}

/// Absorbed queries: [units, blocks, channels, rows] f32.
pub(super) struct Absorbed {
    pub(super) buffer: Buffer,
    pub(super) channels: usize,
    pub(super) blocks: Range<usize>,
}

impl Call<'_> {
    /// Records the queries of units for frame blocks, or as they are.
    pub(super) fn queries(&self, region: &Region, units: &[Unit], blocks: Option<Range<usize>>) -> Result<Absorbed> {
        let (gpu, layer, factors) = (self.gpu, self.layer, &self.store.factors);
        let d = layer.head_dim;
        let plain = blocks.is_none();
        let blocks = blocks.unwrap_or(0..1);
        let channels = if plain { d + 1 } else { self.width() };
        let buffer = gpu.allocate(PLACE, (4 * units.len() * blocks.len() * channels * self.rows) as u64)?;
        let (first, count) = region.span(self);
        let element = if self.half { 2 } else { 4 };
        let (first_byte, bytes) = ((first * d * element) as u64, (count * d * element) as u64);
        let (q, q_shift) = View::window(self.q, first_byte, bytes, gpu.binding_alignment());
        let q_offset = (q_shift as u32 / element as u32).wrapping_sub((first * d) as u32);
        let turning = layer.turns.block().is_some() && !plain;
        let pairs = if turning { layer.turns.pairs.len() } else { 0 };
        let angles = self.store.angles.up_to(gpu, if turning { blocks.end } else { 0 })?;
        let (angles, angle_offset) =
            window(gpu, &angles, 2 * pairs * blocks.start..(2 * pairs * blocks.end).max(4), 2)?;
        let fits = plain || factors.up[0].bytes() <= gpu.max_binding();
        // Where D does not fit: units of one head at a time, written where they belong.
        let runs: Vec<Range<usize>> = if fits {
            std::iter::once(0..units.len()).collect()
        } else {
            let mut end = 0;
            let of_head = units.chunk_by(|a, b| a.head == b.head && a.sequence == b.sequence);
            let run = |run: &[Unit]| {
                end += run.len();
                end - run.len()..end
            };
            of_head.map(run).collect()
        };
        for run in runs {
            let records = self.records(&units[run.clone()])?;
            let of_head = &factors.heads[0][units[run.start].head];
            let (up, up_offset) = window(gpu, &factors.up[0], if plain { 0..1 } else { of_head.clone() }, 1)?;
            let tiles = channels.div_ceil(64);
            let groups = run.len() * blocks.len() * tiles;
            let grid = gpu.grid(PLACE, groups as u64)?;
            let of_unit = 4 * blocks.len() * channels * self.rows;
            let own = if fits { None } else { Some(gpu.allocate(PLACE, (of_unit * run.len()) as u64)?) };
            let to = own.as_ref().unwrap_or(&buffer);
            let params = QueriesParams {
                groups: groups as u32,
                groups_x: grid[0],
                d: d as u32,
                plain: plain.into(),
                tiles: tiles as u32,
                channels: channels as u32,
                blocks: blocks.len() as u32,
                first_block: blocks.start as u32,
                angle_offset,
                heads_at: factors.places.packed,
                turns: factors.places.turns,
                pairs: pairs as u32,
                up_offset,
                q_offset,
                q_heads: self.q_heads as u32,
                q_len: self.q_len as u32,
                group: self.group as u32,
                first_member: region.members.start as u32,
                members: region.members.len() as u32,
                first_query: region.queries.start as u32,
                scale: self.attending.scale,
                pad0: 0,
                pad1: 0,
                pad2: 0,
            };
            let bindings = [q, records.view(), up, angles, factors.layout.view(), to.view(), self.check.view()];
            gpu.run(&QUERIES, &constants(self.half, self.rows), &params, &bindings, grid)?;
            if let Some(own) = own {
                gpu.copy(own.view(), &buffer, (run.start * of_unit) as u64);
            }
        }
        Ok(Absorbed { buffer, channels, blocks })
    }
}
