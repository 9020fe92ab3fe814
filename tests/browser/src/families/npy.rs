//! The `.npy` files of the page: little-endian, row-major, of f16 or i32.

use half::f16;
use ndarray::Array2;

use super::Failure;

/// The elements behind the header of a file of `dtype`, and the shape, a vector being a column.
fn parts<'a>(bytes: &'a [u8], dtype: &str) -> Result<(&'a [u8], [usize; 2]), Failure> {
    let length = bytes.get(8..10).ok_or("a .npy file is cut short")?;
    let end = 10 + usize::from(u16::from_le_bytes([length[0], length[1]]));
    let header = std::str::from_utf8(bytes.get(10..end).ok_or("a .npy file is cut short")?)?;
    if !header.contains(&format!("'descr': '{dtype}'")) || !header.contains("'fortran_order': False") {
        return Err(format!("a .npy file is not row-major of {dtype}: {header}").into());
    }
    let shape = header.split_once("'shape': (").and_then(|(_, rest)| rest.split_once(')')).ok_or("no shape")?.0;
    let axes: Vec<usize> =
        shape.split(',').map(str::trim).filter(|axis| !axis.is_empty()).map(str::parse).collect::<Result<_, _>>()?;
    match axes[..] {
        [rows] => Ok((&bytes[end..], [rows, 1])),
        [rows, columns] => Ok((&bytes[end..], [rows, columns])),
        _ => Err(format!("a .npy file has {} axes", axes.len()).into()),
    }
}

/// A matrix of f16, widened.
pub fn floats(bytes: &[u8]) -> Result<Array2<f32>, Failure> {
    let (data, shape) = parts(bytes, "<f2")?;
    let elements = data.chunks_exact(2).map(|x| f16::from_le_bytes([x[0], x[1]]).to_f32()).collect();
    Ok(Array2::from_shape_vec(shape, elements)?)
}

/// A matrix of i32.
pub fn integers(bytes: &[u8]) -> Result<Array2<i32>, Failure> {
    let (data, shape) = parts(bytes, "<i4")?;
    let elements = data.chunks_exact(4).map(|x| i32::from_le_bytes([x[0], x[1], x[2], x[3]])).collect();
    Ok(Array2::from_shape_vec(shape, elements)?)
}
