//! The CPU's way: a page a task.

use ndarray::ArrayView4;
use rayon::prelude::*;

use super::*;
use crate::Error;
use crate::kernels::attention::cpu::micro::Isa;
use crate::kernels::latent_attention::HostTables;
use crate::kv::latents::{PAGE, SetLayout};
use crate::kv::layer::{ExactType, Factors};
use crate::kv::store::{HostStore, Rows};

/// A row as the layer stores it.
fn rounded<T: AttentionElement>(isa: Isa, exact: ExactType, from: &[T], to: &mut [f32]) {
    // What is not finite was refused before.
    isa.pack_row(from, 1.0, to);
    if exact == ExactType::Half && T::NAME != "f16" {
        to.iter_mut().for_each(|x| *x = half::f16::from_f32(*x).to_f32());
    }
}

fn tables(layer: &LatentLayer) -> &HostTables {
    match &layer.host {
        Some(tables) => tables,
        None => unreachable!("a layer on the CPU has its tables"),
    }
}

pub(super) fn pack<T: AttentionElement>(
    layer: &LatentLayer,
    store: &mut HostStore,
    jobs: &[PackJob],
    k: &ArrayView4<'_, T>,
    v: &ArrayView4<'_, T>,
) -> Result<()> {
    // Pages are taken out, filled side by side, and put back.
    let pages: Vec<_> = jobs.iter().map(|job| std::mem::take(&mut store.pages[job.id as usize])).collect();
    let slots = &store.slots;
    let filled: Vec<(Box<[u32]>, Result<()>)> = jobs
        .par_iter()
        .zip(pages)
        .map(|(job, mut page)| {
            let done = one(layer, &slots[job.slot as usize], job, k, v, &mut page);
            (page, done)
        })
        .collect();
    let mut all = Ok(());
    for (job, (page, done)) in jobs.iter().zip(filled) {
        store.pages[job.id as usize] = page;
        all = all.and(done);
    }
    all
}

fn one<T: AttentionElement>(
    layer: &LatentLayer,
    slot: &Rows,
    job: &PackJob,
    k: &ArrayView4<'_, T>,
    v: &ArrayView4<'_, T>,
    page: &mut [u32],
) -> Result<()> {
    let (d, heads, places) = (layer.head_dim, layer.kv_heads, layer.places());
    let first = job.page * PAGE;
    let mut rows = vec![0.0; PAGE * heads * d];
    let mut angles = Vec::new();
    let tables = tables(layer);
    let count = k.dim().2;
    for (side, from) in [k, v].into_iter().enumerate() {
        let Some(from) = from.as_slice() else { unreachable!("tensors are in row-major order") };
        for t in 0..PAGE {
            let n = first + t;
            if side == 0 && layer.turns.block().is_some() && (t == 0 || layer.turns.origin(n) == n) {
                layer.turns.angles(layer.turns.origin(n), &mut angles);
            }
            for head in 0..heads {
                let row = &mut rows[(t * heads + head) * d..][..d];
                if n >= job.len {
                    let at = ((job.sequence * heads + head) * count + n - job.len) * d;
                    rounded(tables.isa, layer.exact, &from[at..][..d], row);
                } else {
                    slot.read(((side * heads + head) * places + layer.place(n)) * d, row);
                }
                if side == 0 && layer.turns.block().is_some() {
                    layer.turns.back(row, &angles);
                }
            }
        }
        let (sets, layouts, panels, quantity) = match side {
            0 => (&layer.keys, &layer.layout.keys, &tables.key_down, "a latent of k"),
            _ => (&layer.values, &layer.layout.values, &tables.value_down, "a latent of v"),
        };
        let mut head = 0;
        for ((set, layout), down) in sets.iter().zip(layouts).zip(panels) {
            if !project(
                tables.isa,
                layout,
                set,
                down,
                &rows[head * d..],
                heads * d,
                layer.sinks.saturating_sub(first),
                page,
            ) {
                return Err(Error::Domain {
                    place: PLACE,
                    quantity,
                    index: first,
                    expected: "finite, and below 32 bits at most 65504",
                    found: "one beyond, in the 32 tokens of that position on".into(),
                });
            }
            head += set.heads;
        }
    }
    Ok(())
}

/// z = (x - mean) E of 32 rows `ld` apart, packed.
#[allow(clippy::too_many_arguments)]
fn project(
    isa: Isa,
    layout: &SetLayout,
    set: &Factors,
    down: &[f32],
    rows: &[f32],
    ld: usize,
    skip: usize,
    page: &mut [u32],
) -> bool {
    let width = set.mean.len();
    let mut x = vec![0.0; PAGE * width];
    for (x, row) in x.chunks_exact_mut(width).zip(rows.chunks(ld)) {
        x.iter_mut().zip(row).zip(&set.mean).for_each(|((x, row), mean)| *x = row - mean);
    }
    let ldz = isa.whole(set.rank);
    let mut by_token = vec![0.0; PAGE * ldz];
    isa.product(PAGE, width, set.rank, &x, width, down, 2 * isa.lanes() * width, 0, &mut by_token, ldz, false);
    let mut z = vec![0.0; set.rank * PAGE];
    for (channel, z) in z.chunks_exact_mut(PAGE).enumerate() {
        z.iter_mut().zip(by_token.chunks_exact(ldz)).for_each(|(z, of_token)| *z = of_token[channel]);
    }
    layout.encode(&z, skip, page)
}

pub(super) fn keep<T: AttentionElement>(
    layer: &LatentLayer,
    store: &mut HostStore,
    sequences: &[Appended],
    k: &ArrayView4<'_, T>,
    v: &ArrayView4<'_, T>,
) {
    let (d, heads, places, count) = (layer.head_dim, layer.kv_heads, layer.places(), k.dim().2);
    for (index, sequence) in sequences.iter().enumerate() {
        let len = sequence.len + count;
        let sinks = sequence.len..layer.sinks.min(len).max(sequence.len);
        let tail = layer.boundary(len).max(sinks.end)..len;
        let slot = &mut store.slots[sequence.slot as usize];
        for n in sinks.chain(tail) {
            for (side, from) in [k, v].into_iter().enumerate() {
                for head in 0..heads {
                    let x = from.slice(ndarray::s![index, head, n - sequence.len, ..]);
                    let at = ((side * heads + head) * places + layer.place(n)) * d;
                    slot.write(at, x.iter().map(|x| x.widen()));
                }
            }
        }
    }
}

pub(super) fn rebuild(
    layer: &LatentLayer,
    store: &mut HostStore,
    sequence: CachedSequence<'_>,
    first: usize,
    end: usize,
) {
    let (d, heads, places) = (layer.head_dim, layer.kv_heads, layer.places());
    let mut angles = Vec::new();
    for n in first..end {
        let page = &store.pages[sequence.pages[n / PAGE] as usize];
        let slot = &mut store.slots[sequence.slot as usize];
        layer.turns.angles(layer.turns.origin(n), &mut angles);
        for (side, (sets, layouts)) in
            [(&layer.keys, &layer.layout.keys), (&layer.values, &layer.layout.values)].into_iter().enumerate()
        {
            let mut head = 0;
            for (set, layout) in sets.iter().zip(layouts) {
                let mut row = set.mean.clone();
                for (channel, up) in set.up.chunks_exact(set.mean.len()).enumerate() {
                    let z = layout.decode(page, channel, n % PAGE);
                    row.iter_mut().zip(up).for_each(|(sum, up)| *sum += z * up);
                }
                for row in row.chunks_exact_mut(d) {
                    if side == 0 && layer.turns.block().is_some() {
                        layer.turns.forth(row, &angles);
                    }
                    let at = ((side * heads + head) * places + layer.place(n)) * d;
                    slot.write(at, row.iter().copied());
                    head += 1;
                }
            }
        }
    }
}
