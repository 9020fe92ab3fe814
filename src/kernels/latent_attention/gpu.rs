//! The GPU's way. Rows (queries times heads of a group) of a KV head are cut in units of 4 or 8; each unit's pages in splits, a workgroup each, whose parts a
//! second dispatch merges in their order.
//!
//! Per call: queries absorbed, attention over packed pages; queries as they are, attention over exact rows; the merge. Where something exceeds a binding,
//! more of each: regions of the queries ([`Region`]), ranges of pages whose absorbed queries fit, chunks of pages. A part goes on from dispatch to dispatch, so
//! there are no more parts than splits of one.

mod pages;
mod queries;
mod region;

use half::f16;
use ndarray::{Ix3, Ix4};

use super::*;
use crate::gpu::{Buffer, Check, Constant, Finding, Gpu, Kernel, Needs, Params, View, params, shader};
use crate::kernels::inherit;
use crate::kv::latents::LatentBits;
use crate::kv::store::DeviceStore;
use crate::kv::store::device::arena::window;
use crate::tensor::Element;
use region::{Region, Unit};

params! {
    /// As in `shaders/latent_attention/merge.wgsl`.
    MergeParams {
        groups: u32,
        groups_x: u32,
        d: u32,
        rows_of_unit: u32,
        tiles: u32,
        first_tile: u32,
        heads_at: u32,
        up_offset: u32,
        part_stride: u32,
        part_tiles: u32,
        exact_stride: u32,
        exact_tiles: u32,
        out_offset: u32,
        lse_offset: u32,
        q_heads: u32,
        q_len: u32,
        group: u32,
        first_member: u32,
        members: u32,
        first_query: u32,
    }
}

static MERGE: Kernel = Kernel {
    name: "latent_attention_merge",
    sources: &[shader!("latent_attention/merge.wgsl"), shader!("shared/half.wgsl")],
    needs: Needs::NONE,
    fields: MergeParams::FIELDS,
    params_bytes: size_of::<MergeParams>(),
};

pub(crate) fn variants() -> Vec<(&'static Kernel, Vec<(&'static str, Constant)>)> {
    let merges = [false, true].map(|half| (&MERGE, vec![("HALF", Constant::U32(half.into()))]));
    queries::variants().into_iter().chain(pages::variants()).chain(merges).collect()
}

static FINDINGS: [Finding; 3] = [
    Finding { quantity: "q", expected: "finite", found: "not finite" },
    Finding { quantity: "output", expected: "finite", found: "not finite" },
    Finding { quantity: "a score", expected: "finite", found: "not finite" },
];

/// One call: everything that its dispatches share.
struct Call<'a> {
    layer: &'a LatentLayer,
    store: &'a DeviceStore,
    gpu: &'a Gpu,
    sequences: &'a [CachedSequence<'a>],
    attending: Attending,
    q: &'a Buffer,
    half: bool,
    q_heads: usize,
    q_len: usize,
    /// Query heads of a KV head.
    group: usize,
    /// Rows of a unit.
    rows: usize,
    out: &'a Buffer,
    half_out: bool,
    lse: &'a Buffer,
    check: &'a Check,
    /// Bytes that a binding and a scratch buffer may have.
    limit: usize,
}

/// Output and log-sum-exp, not waited for.
pub(super) fn forward<T: AttentionElement>(
    layer: &LatentLayer,
    store: &DeviceStore,
    sequences: &[CachedSequence<'_>],
    q: &Tensor<T, Ix4>,
    attending: Attending,
) -> Result<Output<T>> {
    let Storage::Gpu(gpu, q_buffer) = q.storage() else { unreachable!("all are on one device") };
    let &[batch, q_heads, q_len, d] = q.shape() else { unreachable!("four axes") };
    let half = T::NAME == f16::NAME;
    // Rows of an odd length share words of f16: they go through f32, and a pass over words.
    let odd = half && d % 2 == 1;
    let count = batch * q_heads * q_len;
    let out = gpu.allocate(PLACE, (count * d * size_of::<T>()) as u64)?;
    let wide = odd.then(|| gpu.allocate(PLACE, (count * d * 4) as u64)).transpose()?;
    let lse = gpu.allocate(PLACE, (count * 4) as u64)?;
    let check = gpu.check(PLACE, &FINDINGS)?;
    let group = q_heads / layer.kv_heads;
    let two_bits = layer.layout.values.first().is_some_and(|set| set.bits == LatentBits::Two);
    let call = Call {
        layer,
        store,
        gpu,
        sequences,
        attending,
        q: q_buffer,
        half,
        q_heads,
        q_len,
        group,
        // 16 sums a row and invocation at 2 bits: fewer rows, so that they stay in registers.
        rows: if group * q_len <= 4 || two_bits { 4 } else { 8 },
        out: wide.as_ref().unwrap_or(&out),
        half_out: half && !odd,
        lse: &lse,
        check: &check,
        limit: (gpu.max_binding() - gpu.binding_alignment() - 4).min(1 << 28) as usize,
    };
    let mut narrowed = None;
    if count > 0 {
        call.region(&Region::whole(&call))?;
        if let Some(wide) = &wide {
            let check = gpu.check(PLACE, &FINDINGS[1..2])?;
            crate::kernels::attention::narrow(gpu, PLACE, d, (wide, &lse), &out, count * d, &check)?;
            narrowed = Some(check);
        }
    }
    let unwaited = store.unwaited.as_slice();
    let checks = inherit(&[std::slice::from_ref(&check), narrowed.as_slice(), q.checks(), unwaited]);
    let lse = Tensor::on_gpu(gpu, lse, Ix3(batch, q_heads, q_len), checks.clone());
    let output = Tensor::on_gpu(gpu, out, Ix4(batch, q_heads, q_len, d), checks);
    Ok(Output { output, lse: attending.lse.then_some(lse) })
}

/// Parts of the units of a region: [parts, rows, stride] f32.
struct Parts {
    buffer: Buffer,
    /// Of each sequence of the region, how many each of its units has.
    of_unit: Vec<usize>,
    stride: usize,
    tiles: usize,
}

impl Call<'_> {
    /// Records a region, whose queries and output can be bound.
    fn fitting(&self, region: &Region) -> Result<()> {
        let mut units = region.units(self);
        let packed = self.packed(region, &mut units)?;
        let exact = self.exact(region, &mut units)?;
        self.merge(region, &units, packed.as_ref(), &exact)
    }

    fn merge(&self, region: &Region, units: &[Unit], packed: Option<&Parts>, exact: &Parts) -> Result<()> {
        let (gpu, d, factors) = (self.gpu, self.layer.head_dim, &self.store.factors);
        let records = self.records(units)?;
        let (first, count) = region.span(self);
        let element = if self.half_out { 2 } else { 4 };
        let alignment = gpu.binding_alignment();
        let (out, out_shift) =
            View::window(self.out, (first * d * element) as u64, (count * d * element) as u64, alignment);
        let (lse, lse_shift) = View::window(self.lse, 4 * first as u64, 4 * count as u64, alignment);
        let of_packed = packed.unwrap_or(exact);
        let tiles = d.div_ceil(64);
        let fits = factors.up[1].bytes() <= gpu.max_binding();
        // Where D does not fit: a head and 64 columns at a time.
        let heads = if fits { vec![None] } else { region.heads.clone().map(Some).collect() };
        for head in heads {
            let own;
            let records = match head {
                None => &records,
                Some(head) => {
                    let units: Vec<Unit> = units.iter().filter(|unit| unit.head == head).cloned().collect();
                    own = self.records(&units)?;
                    &own
                }
            };
            let count = records.bytes() as usize / 32;
            for first_tile in if fits { 0..1 } else { 0..tiles } {
                let of_head = &factors.heads[1][head.unwrap_or(0)];
                let tile_words = of_head.len() / tiles;
                let begin = of_head.start + first_tile * tile_words;
                let (up, up_offset) = window(gpu, &factors.up[1], begin..begin + tile_words, 1)?;
                let own_tiles = if fits { tiles } else { 1 };
                let groups = count * self.rows * own_tiles;
                let grid = gpu.grid(PLACE, groups as u64)?;
                let params = MergeParams {
                    groups: groups as u32,
                    groups_x: grid[0],
                    d: d as u32,
                    rows_of_unit: self.rows as u32,
                    tiles: own_tiles as u32,
                    first_tile: first_tile as u32,
                    heads_at: factors.places.packed,
                    up_offset,
                    part_stride: of_packed.stride as u32,
                    part_tiles: of_packed.tiles as u32,
                    exact_stride: exact.stride as u32,
                    exact_tiles: exact.tiles as u32,
                    out_offset: (out_shift as u32 / element as u32).wrapping_sub((first * d) as u32),
                    lse_offset: (lse_shift as u32 / 4).wrapping_sub(first as u32),
                    q_heads: self.q_heads as u32,
                    q_len: self.q_len as u32,
                    group: self.group as u32,
                    first_member: region.members.start as u32,
                    members: region.members.len() as u32,
                    first_query: region.queries.start as u32,
                };
                let (parts, exacts) = (of_packed.buffer.view(), exact.buffer.view());
                let bindings = [records.view(), factors.layout.view(), up, parts, exacts, out, lse, self.check.view()];
                gpu.run(&MERGE, &[("HALF", Constant::U32(self.half_out.into()))], &params, &bindings, grid)?;
            }
        }
        Ok(())
    }

    /// Units as shaders read them.
    fn records(&self, units: &[Unit]) -> Result<Buffer> {
        let record = |unit: &Unit| {
            let numbers = [unit.head, unit.row, unit.rows, unit.sequence];
            numbers.into_iter().chain(unit.packed).chain(unit.exact).map(|x| x as u32)
        };
        let words: Vec<u32> = units.iter().flat_map(record).collect();
        self.gpu.upload(PLACE, bytemuck::cast_slice(&words))
    }
}
