//! Which kernel computes a call, in tiles of which size.

use super::{ForwardParams, PLACE};
use crate::attention::{Algorithm, Options, Problem};
use crate::gpu::{Constant, Gpu, Kernel, Needs, Params, shader};
use crate::{AdapterKind, Error, Result};

static FORWARD: Kernel = Kernel {
    name: "attention",
    sources: &[
        shader!("attention/forward.wgsl"),
        shader!("attention/by_workgroup.wgsl"),
        shader!("attention/problem.wgsl"),
    ],
    needs: Needs { f64: false, f16: false, subgroups: false },
    fields: ForwardParams::FIELDS,
    params_bytes: size_of::<ForwardParams>(),
};

/// The same in 32 KiB of workgroup memory.
static FORWARD_LARGE: Kernel = Kernel {
    name: "attention_large",
    sources: &[
        shader!("attention/forward.wgsl"),
        shader!("attention/by_workgroup.wgsl"),
        shader!("attention/problem.wgsl"),
    ],
    needs: Needs { f64: false, f16: false, subgroups: false },
    fields: ForwardParams::FIELDS,
    params_bytes: size_of::<ForwardParams>(),
};

/// Rows reduced by subgroups, in either memory.
static FORWARD_SUBGROUPS: Kernel = Kernel {
    name: "attention_subgroups",
    sources: &[
        shader!("attention/forward.wgsl"),
        shader!("attention/by_subgroup.wgsl"),
        shader!("attention/subgroups.wgsl"),
        shader!("attention/problem.wgsl"),
    ],
    needs: Needs { f64: false, f16: false, subgroups: true },
    fields: ForwardParams::FIELDS,
    params_bytes: size_of::<ForwardParams>(),
};

/// Few rows, each key by as many invocations as hold it.
static DECODE: Kernel = Kernel {
    name: "attention_decode",
    sources: &[
        shader!("attention/decode.wgsl"),
        shader!("attention/subgroups.wgsl"),
        shader!("attention/problem.wgsl"),
    ],
    needs: Needs { f64: false, f16: false, subgroups: true },
    fields: ForwardParams::FIELDS,
    params_bytes: size_of::<ForwardParams>(),
};

const LARGE_BYTES: u32 = 32 << 10;
/// Rows of a key head that [`DECODE`] is for.
const DECODE_ROWS: usize = 16;
/// Invocations of a workgroup of [`DECODE`].
const DECODE_LANES: u32 = 128;

/// (d, rows, keys, columns, values) within 16 KiB, 64 invocations.
const PORTABLE: [(u32, u32, u32, u32, u32); 8] = [
    (16, 32, 32, 16, 32),
    (32, 32, 32, 32, 32),
    (64, 32, 16, 64, 16),
    (80, 16, 16, 80, 16),
    (96, 16, 16, 96, 16),
    (128, 16, 16, 64, 8),
    (192, 8, 16, 64, 4),
    (256, 8, 16, 64, 4),
];
/// The same within 32 KiB, 128 invocations.
const LARGE: [(u32, u32, u32, u32, u32); 8] = [
    (16, 64, 32, 16, 32),
    (32, 64, 32, 32, 32),
    (64, 32, 32, 64, 32),
    (80, 32, 32, 80, 32),
    (96, 32, 16, 96, 16),
    (128, 32, 16, 64, 8),
    (192, 16, 16, 64, 4),
    (256, 16, 16, 64, 4),
];

/// A kernel, the rows and keys of its tile, and its constants.
#[derive(Debug)]
pub(super) struct Choice {
    pub(super) kernel: &'static Kernel,
    pub(super) rows: u32,
    pub(super) keys: u32,
    pub(super) constants: Vec<(&'static str, Constant)>,
}

impl Choice {
    /// By the algorithm asked for, the adapter and the shape.
    pub(super) fn new(gpu: &Gpu, problem: &Problem, options: &Options, half: bool) -> Result<Self> {
        let unsupported = |feature| Err(Error::Unsupported { place: PLACE, feature, device: gpu.to_string() });
        let size = problem.d.max(problem.d_v);
        let longest = problem.sequences.iter().map(|sequence| sequence.q_len).max().unwrap_or(0);
        let rows = problem.group() * longest;
        let large = gpu.workgroup_memory() >= LARGE_BYTES;
        let hardware = gpu.info().kind != AdapterKind::Software;
        match options.algorithm {
            Algorithm::Auto if hardware && gpu.has_subgroups() && rows <= DECODE_ROWS => {
                Ok(Self::decode(size, rows, half))
            }
            Algorithm::Auto if hardware && large => Ok(Self::tiles(&FORWARD_LARGE, size, true, half)),
            Algorithm::Auto | Algorithm::Portable => Ok(Self::tiles(&FORWARD, size, false, half)),
            Algorithm::LargeTiles if large => Ok(Self::tiles(&FORWARD_LARGE, size, true, half)),
            Algorithm::LargeTiles => unsupported("32 KiB of workgroup memory"),
            Algorithm::Subgroups if !gpu.has_subgroups() => unsupported("subgroups"),
            Algorithm::Subgroups if rows <= DECODE_ROWS => Ok(Self::decode(size, rows, half)),
            Algorithm::Subgroups => Ok(Self::tiles(&FORWARD_SUBGROUPS, size, large, half)),
            Algorithm::CooperativeMatrices => unsupported("attention by cooperative matrices"),
        }
    }

    /// Heads of `size`, by one of the tables.
    fn tiles(kernel: &'static Kernel, size: usize, large: bool, half: bool) -> Self {
        let (table, lanes) = if large { (LARGE, 16) } else { (PORTABLE, 8) };
        let found = table.into_iter().find(|tile| tile.0 as usize >= size);
        let Some((d, rows, keys, columns, values)) = found else { unreachable!("head sizes are checked") };
        let constants = vec![
            ("D", Constant::U32(d)),
            ("HALF", Constant::U32(half.into())),
            ("BQ", Constant::U32(rows)),
            ("BK", Constant::U32(keys)),
            ("DC", Constant::U32(columns)),
            ("BKV", Constant::U32(values)),
            ("TR", Constant::U32(lanes)),
        ];
        Self { kernel, rows, keys, constants }
    }

    /// Up to 8 rows at a time; 8 columns an invocation, so that rows, keys and values stay in registers.
    fn decode(size: usize, rows: usize, half: bool) -> Self {
        let found = PORTABLE.into_iter().find(|tile| tile.0 as usize >= size);
        let Some((d, ..)) = found else { unreachable!("head sizes are checked") };
        let run = (d / 8).next_power_of_two().max(4);
        let (rows, flight) = match rows {
            0..=1 => (1, 4),
            2..=4 => (4, 2),
            _ => (8, 2),
        };
        let constants = vec![
            ("D", Constant::U32(d)),
            ("HALF", Constant::U32(half.into())),
            ("R", Constant::U32(rows)),
            ("U", Constant::U32(flight)),
            ("L", Constant::U32(run)),
        ];
        Self { kernel: &DECODE, rows, keys: DECODE_LANES / run * flight, constants }
    }
}

pub(super) fn variants() -> Vec<(&'static Kernel, Vec<(&'static str, Constant)>)> {
    let mut all = Vec::new();
    for half in [false, true] {
        for (d, ..) in PORTABLE {
            let size = d as usize;
            all.push(Choice::tiles(&FORWARD, size, false, half));
            all.push(Choice::tiles(&FORWARD_LARGE, size, true, half));
            all.extend([false, true].map(|large| Choice::tiles(&FORWARD_SUBGROUPS, size, large, half)));
            all.extend([1, 4, 8].map(|rows| Choice::decode(size, rows, half)));
        }
    }
    all.into_iter().map(|choice| (choice.kernel, choice.constants)).collect()
}
