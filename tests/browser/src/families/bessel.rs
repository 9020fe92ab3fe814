//! ln I_v(x) and ln K_v(x) against values of 60 digits.

use ndarray::Array1;
use orthant::{Device, kernels};
use serde_json::{Value, json};

use super::{Clock, Failure};

/// Both functions at the points of `golden` (csv: v, x, ln I, ln K) that f32 holds: the largest error of each in eps of f32, relative to
/// max(|value|, hypot(v, x)), and every 64th value.
pub async fn bessel(device: &Device, golden: &[u8], now: Clock) -> Result<Value, Failure> {
    let mut points: Vec<[f64; 4]> = Vec::new();
    for line in std::str::from_utf8(golden)?.lines().skip(1) {
        let mut fields = line.split(',').map(str::parse);
        let mut point = [0.0; 4];
        for field in &mut point {
            *field = fields.next().ok_or("a row of the table is cut short")??;
        }
        let held = |value: f64| f64::from(value as f32) == value;
        if held(point[0]) && held(point[1]) {
            points.push(point);
        }
    }
    let column = |index: usize| points.iter().map(|point| point[index] as f32).collect::<Array1<f32>>();
    let start = now();
    let (order, x) = (device.tensor(&column(0))?, device.tensor(&column(1))?);
    let found =
        [kernels::log_iv(&order, &x)?.to_array_async().await?, kernels::log_kv(&order, &x)?.to_array_async().await?];
    let milliseconds = now() - start;
    let mut functions = Vec::new();
    for ((name, reference), values) in [("log_iv", 2), ("log_kv", 3)].into_iter().zip(&found) {
        let error = |(point, value): (&[f64; 4], &f32)| {
            let truth = point[reference];
            (f64::from(*value) - truth).abs() / truth.abs().max(point[0].hypot(point[1])) / f64::from(f32::EPSILON)
        };
        // NaN is larger than all.
        let largest = points.iter().zip(values).map(error).fold(0.0, |a: f64, b| if a >= b { a } else { b });
        let samples = points.iter().zip(values).step_by(64).map(|(point, value)| json!([point[0], point[1], value]));
        functions.push(json!({ "name": name, "largest_error_eps": largest, "samples": samples.collect::<Vec<_>>() }));
    }
    Ok(json!({ "points": points.len(), "functions": functions, "milliseconds": milliseconds }))
}
