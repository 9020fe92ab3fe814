//! Queries that are not binary, as the kernels take them.

use ndarray::{Array2, Ix2};

use super::codes::words_of;
use super::index::PLACE;
use crate::hamming::Codes;
use crate::kernels::hamming::{INT4, Int4Queries};
use crate::{Device, Error, Result, Tensor};

/// Magnitudes of an int4 query go to this.
const LARGEST: f32 = 7.0;

/// The queries on the host, if they are finite and have a component a bit.
pub(super) fn admit(queries: &Tensor<f32, Ix2>, bits: usize) -> Result<Array2<f32>> {
    if queries.shape()[1] != bits {
        return Err(Error::Shape {
            place: PLACE,
            quantity: "queries",
            expected: format!("(n, {bits})"),
            found: queries.shape().to_vec(),
        });
    }
    let rows = queries.to_array()?;
    match rows.iter().position(|value| !value.is_finite()) {
        None => Ok(rows),
        Some(index) => Err(Error::Domain {
            place: PLACE,
            quantity: "queries",
            index,
            expected: "finite",
            found: rows[[index / bits, index % bits]].to_string(),
        }),
    }
}

/// Signs, and magnitudes rounded to sevenths of the query's largest.
pub(super) fn quantise(device: &Device, rows: &Array2<f32>) -> Result<Int4Queries> {
    let bits = rows.ncols();
    let mut words = Array2::<u32>::zeros((rows.nrows() * INT4, words_of(bits)));
    let (mut totals, mut scales) = (Vec::new(), Vec::new());
    for (query, row) in rows.rows().into_iter().enumerate() {
        let largest = row.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
        let mut total = 0;
        for (j, value) in row.iter().enumerate() {
            // Divided first: 7 times the largest may be beyond f32.
            let magnitude = if largest > 0.0 { (value.abs() / largest * LARGEST).round() as u32 } else { 0 };
            let sign = u32::from(*value >= 0.0);
            total += magnitude;
            for plane in 0..INT4 {
                let turned = if plane == 0 { 0 } else { magnitude >> (plane - 1) & 1 };
                words[[query * INT4 + plane, j / 32]] |= (sign ^ turned) << (j % 32);
            }
        }
        totals.push(total);
        scales.push(largest / LARGEST);
    }
    Ok(Int4Queries { planes: Codes::trusted(device.tensor_from(words)?, bits), totals, scales })
}
