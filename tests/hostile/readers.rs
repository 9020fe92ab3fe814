//! The tool's readers of arrays: whatever a file holds, each reads it or says in a line what is wrong.

use std::path::Path;

use ndarray::Array2;
use orthant::kv::{Calibration, Frame, ProjectionOptions, Rope};

use super::files::{Scratch, complained, typed};
use crate::cli::files::{self, Dtype, RawArray, write_npy};
use crate::cli::kv::input::{Input, Queries};

pub fn npy(bytes: &[u8]) {
    read("npy", bytes);
}

pub fn npz(bytes: &[u8]) {
    read("npz", bytes);
}

pub fn csv(bytes: &[u8]) {
    read("csv", bytes);
}

/// As an array, and as the activations that `orthant kv` takes.
pub fn safetensors(bytes: &[u8]) {
    read("safetensors", bytes);
    let file = Scratch::of("safetensors", bytes);
    activations(file.path());
}

fn read(ending: &str, bytes: &[u8]) {
    let file = Scratch::of(ending, bytes);
    exercise(file.path(), None);
    if !matches!(ending, "npz" | "safetensors") {
        return;
    }
    for name in ["x", "arr_0", "v"] {
        exercise(file.path(), Some(name));
    }
    if ending == "safetensors"
        && let Some((names, _)) = complained(file.path(), files::contents(file.path()))
    {
        names.iter().take(4).for_each(|name| exercise(file.path(), Some(name)));
    }
}

/// Every way of reading an array.
fn exercise(path: &Path, name: Option<&str>) {
    let open = || -> Option<RawArray> { complained(path, files::open(path, name)) };
    let Some(first) = open() else { return };
    let (shape, dtype) = (first.shape.clone(), first.dtype);
    let rows = shape.first().copied().unwrap_or(0);
    let count = || shape.iter().product::<usize>();
    assert!(!first.shape_text().is_empty() && !first.dtype_name.is_empty());
    for least in [1, 2] {
        let Some(matrix) = open().and_then(|array| complained(path, array.into_matrix_of(least))) else { continue };
        assert_eq!(shape, [matrix.rows(), matrix.dim()]);
        if let Some(all) = complained(path, matrix.read_all()) {
            assert_eq!(all.dim(), (matrix.rows(), matrix.dim()));
            assert!(all.iter().all(|x| x.is_finite()));
            same_when_written_again(&all);
        }
        let mut wide = Array2::<f64>::zeros((matrix.rows(), matrix.dim()));
        if typed(matrix.read_rows(0, wide.view_mut())).is_some() {
            assert!(wide.rows().into_iter().all(|row| row.iter().any(|x| *x != 0.0)));
            let last = matrix.rows() - 1;
            let mut one = Array2::<f64>::zeros((1, matrix.dim()));
            typed(matrix.read_rows(last, one.view_mut())).expect("a row of rows that were read");
            assert_eq!(one.row(0), wide.row(last));
            let mut narrow = Array2::<f32>::zeros((matrix.rows(), matrix.dim()));
            typed(matrix.read_rows(0, narrow.view_mut())).expect("rows that f32 has room for, scaled");
            assert!(narrow.iter().all(|x| x.is_finite()));
        }
    }
    if let Some((codes, width)) = open().and_then(|array| complained(path, array.into_codes())) {
        assert!(width > 0 && codes.len() == rows * width);
    }
    if let Some(integers) = open().and_then(|array| complained(path, array.into_integers("label", rows))) {
        assert_eq!(integers.len(), rows);
    }
    if let Some(floats) = open().and_then(|array| complained(path, array.into_floats("weight", rows))) {
        assert_eq!(floats.len(), rows);
    }
    if let Some((ids, length)) = open().and_then(|array| complained(path, array.into_id_lists(rows))) {
        assert_eq!(ids.len(), rows * length);
    }
    if matches!(dtype, Dtype::F16 | Dtype::F32 | Dtype::F64)
        && let Some(floats) = complained(path, first.floats())
    {
        assert_eq!(floats.len(), count());
    }
}

fn same_when_written_again(rows: &Array2<f32>) {
    let mut bytes = Vec::new();
    let shape = [rows.nrows() as u64, rows.ncols() as u64];
    write_npy(&mut bytes, &shape, rows.as_slice().expect("row-major")).expect("into memory");
    let file = Scratch::of("again.npy", &bytes);
    let again =
        files::open(file.path(), None).and_then(|array| array.into_matrix_of(1)).and_then(|rows| rows.read_all());
    assert_eq!(&again.expect("what was written"), rows);
}

/// What `orthant kv` makes of a file: activations and calibrations of each layer, and projections of these.
fn activations(path: &Path) {
    let Some(input) = complained(path, Input::open(path)) else { return };
    let rope = input.rope();
    let layers = complained(path, input.layers(&[])).unwrap_or_default();
    assert!(complained(path, input.layers(&[usize::MAX])).is_none() || layers.contains(&usize::MAX));
    for &layer in layers.iter().take(2) {
        complained(path, input.q_heads(layer));
        let Some(d) = complained(path, input.head_dim(layer)) else { continue };
        let rope = rope
            .and_then(|(_, theta)| typed(Rope::new(orthant::kv::RopeLayout::Halves, d - d % 2, theta)))
            .unwrap_or_else(Rope::none);
        for queries in [Queries::Evaluated, Queries::Between] {
            let Some(read) = complained(path, input.activations(layer, queries, &rope)) else { continue };
            assert_eq!((read.layer(), read.dim().2), (layer, d));
        }
        let (Some(q_heads), Some(read)) = (
            complained(path, input.q_heads(layer)),
            complained(path, input.activations(layer, Queries::Evaluated, &rope)),
        ) else {
            continue;
        };
        for frame in [Frame::Pre, Frame::Post] {
            let Some(mut calibration) = typed(Calibration::new((q_heads, read.dim().0, d), rope.clone(), frame)) else {
                continue;
            };
            typed(calibration.read_moments(path, layer));
            complained(path, input.observe(layer, &rope, &mut calibration));
            super::indexes::check_calibration(&calibration, &ProjectionOptions::new());
        }
    }
}
