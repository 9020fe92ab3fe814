//! Which kernel computes a call, in tiles of which size.

use super::{ForwardParams, PLACE};
use crate::attention::{Algorithm, Options, Problem};
use crate::gpu::{Constant, Gpu, Kernel, Needs, Params, shader};
use crate::{AdapterKind, Error, Result};

/// The kernel of tiles, its rows reduced by the functions of two files.
const fn tiles(name: &'static str, sources: &'static [(&'static str, &'static str)], needs: Needs) -> Kernel {
    Kernel { name, sources, needs, fields: ForwardParams::FIELDS, params_bytes: size_of::<ForwardParams>() }
}

const BY_WORKGROUP: &[(&str, &str)] = &[
    shader!("attention/forward.wgsl"),
    shader!("attention/by_workgroup.wgsl"),
    shader!("attention/problem.wgsl"),
    shader!("shared/math_f32.wgsl"),
];
const BY_SUBGROUP: &[(&str, &str)] = &[
    shader!("attention/forward.wgsl"),
    shader!("attention/by_subgroup.wgsl"),
    shader!("attention/subgroups.wgsl"),
    shader!("attention/problem.wgsl"),
    shader!("shared/math_f32.wgsl"),
];
const BY_MATRICES_16: &[(&str, &str)] = &[
    shader!("attention/matrices.wgsl"),
    shader!("attention/cooperative.wgsl"),
    shader!("attention/cooperative_16.wgsl"),
    shader!("attention/problem.wgsl"),
    shader!("shared/math_f32.wgsl"),
];
const BY_MATRICES_8: &[(&str, &str)] = &[
    shader!("attention/matrices.wgsl"),
    shader!("attention/cooperative.wgsl"),
    shader!("attention/cooperative_8.wgsl"),
    shader!("attention/problem.wgsl"),
    shader!("shared/math_f32.wgsl"),
];
const BY_EMULATED_MATRICES: &[(&str, &str)] = &[
    shader!("attention/matrices.wgsl"),
    shader!("attention/emulated.wgsl"),
    shader!("attention/problem.wgsl"),
    shader!("shared/math_f32.wgsl"),
];
const LARGE_MEMORY: Needs = Needs { large_memory: true, ..Needs::NONE };

static FORWARD: Kernel = tiles("attention", BY_WORKGROUP, Needs::NONE);
static FORWARD_LARGE: Kernel = tiles("attention_large", BY_WORKGROUP, LARGE_MEMORY);
static FORWARD_SUBGROUPS: Kernel = tiles("attention_subgroups", BY_SUBGROUP, Needs { subgroups: true, ..Needs::NONE });
static FORWARD_SUBGROUPS_LARGE: Kernel =
    tiles("attention_subgroups_large", BY_SUBGROUP, Needs { subgroups: true, ..LARGE_MEMORY });

/// Tiles by matrix units, of f16.
const MATRICES: Needs = Needs { f16: true, subgroups: true, ..LARGE_MEMORY };
static MATRICES_16: Kernel = tiles("attention_matrices_16", BY_MATRICES_16, Needs { cooperative: 16, ..MATRICES });
static MATRICES_8: Kernel = tiles("attention_matrices_8", BY_MATRICES_8, Needs { cooperative: 8, ..MATRICES });
static MATRICES_EMULATED: Kernel = tiles("attention_matrices_emulated", BY_EMULATED_MATRICES, LARGE_MEMORY);

/// Few rows, each key by as many invocations as hold it.
static DECODE: Kernel = Kernel {
    name: "attention_decode",
    sources: &[
        shader!("attention/decode.wgsl"),
        shader!("attention/subgroups.wgsl"),
        shader!("attention/problem.wgsl"),
        shader!("shared/math_f32.wgsl"),
    ],
    needs: Needs { subgroups: true, ..Needs::NONE },
    fields: ForwardParams::FIELDS,
    params_bytes: size_of::<ForwardParams>(),
};

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

/// (d, rows, keys) of matrix units, within 32 KiB; two invocations a row.
const MATRIX: [(u32, u32, u32); 8] =
    [(16, 64, 32), (32, 64, 32), (64, 64, 32), (80, 64, 32), (96, 64, 16), (128, 64, 16), (192, 32, 16), (256, 32, 16)];

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
        let unsupported = |feature| Error::Unsupported { place: PLACE, feature, device: gpu.to_string() };
        let size = problem.d.max(problem.d_v);
        let longest = problem.sequences.iter().map(|sequence| sequence.q_len).max().unwrap_or(0);
        let rows = problem.group() * longest;
        let large = gpu.has_large_memory();
        let hardware = gpu.info().kind != AdapterKind::Software;
        let choice = match options.algorithm {
            Algorithm::Auto if hardware && gpu.has_subgroups() && rows <= DECODE_ROWS => Self::decode(size, rows, half),
            Algorithm::Auto if hardware && half && gpu.cooperative() != 0 && large => {
                Self::matrices(size, gpu.cooperative(), false)
            }
            Algorithm::Auto if hardware && large => Self::tiles(&FORWARD_LARGE, size, half),
            Algorithm::Auto | Algorithm::Portable => Self::tiles(&FORWARD, size, half),
            Algorithm::LargeTiles => Self::tiles(&FORWARD_LARGE, size, half),
            Algorithm::Subgroups if rows <= DECODE_ROWS => Self::decode(size, rows, half),
            Algorithm::Subgroups if large => Self::tiles(&FORWARD_SUBGROUPS_LARGE, size, half),
            Algorithm::Subgroups => Self::tiles(&FORWARD_SUBGROUPS, size, half),
            Algorithm::CooperativeMatrices | Algorithm::EmulatedMatrices(_) if !half => {
                return Err(unsupported("f32 by matrices of f16, which would round it"));
            }
            Algorithm::CooperativeMatrices => Self::matrices(size, gpu.cooperative(), false),
            Algorithm::EmulatedMatrices(units @ (8 | 16)) => Self::matrices(size, units, true),
            Algorithm::EmulatedMatrices(_) => return Err(unsupported("emulated matrices of other than 8 or 16 rows")),
        };
        gpu.require(PLACE, choice.kernel.needs)?;
        Ok(choice)
    }

    /// Heads of `size`, by the table of the kernel's memory.
    fn tiles(kernel: &'static Kernel, size: usize, half: bool) -> Self {
        let (table, lanes) = if kernel.needs.large_memory { (LARGE, 16) } else { (PORTABLE, 8) };
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

    /// Matrix units of `units` rows, or loops in their place.
    fn matrices(size: usize, units: u32, emulated: bool) -> Self {
        let found = MATRIX.into_iter().find(|tile| tile.0 as usize >= size);
        let Some((d, rows, keys)) = found else { unreachable!("head sizes are checked") };
        let kernel = match (emulated, units) {
            (true, _) => &MATRICES_EMULATED,
            (false, 8) => &MATRICES_8,
            (false, _) => &MATRICES_16,
        };
        let mut constants = vec![
            ("D", Constant::U32(d)),
            ("HALF", Constant::U32(1)),
            ("BQ", Constant::U32(rows)),
            ("BK", Constant::U32(keys)),
        ];
        if emulated {
            constants.push(("T", Constant::U32(units)));
        }
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
            let kernels = [&FORWARD, &FORWARD_LARGE, &FORWARD_SUBGROUPS, &FORWARD_SUBGROUPS_LARGE];
            all.extend(kernels.map(|kernel| Choice::tiles(kernel, size, half)));
            all.extend([1, 4, 8].map(|rows| Choice::decode(size, rows, half)));
        }
    }
    for (d, ..) in MATRIX {
        for (units, emulated) in [(16, false), (8, false), (16, true), (8, true)] {
            all.push(Choice::matrices(d as usize, units, emulated));
        }
    }
    all.into_iter().map(|choice| (choice.kernel, choice.constants)).collect()
}
