//! For one distribution: how far the rows are from its mean direction, and how far it says they are.

use ndarray::{ArrayView2, Axis};
use plotters::prelude::*;
use plotters::style::RGBColor;

use super::pen::{self, Area, Style};

const BINS: usize = 48;

/// A histogram of the rows' cosines with their mean direction under the density of the fit,
/// exp(kappa t) (1 - t^2)^((d-3)/2) in t. Both are scaled to their own highest value, as only shapes are compared.
pub fn draw(area: &Area, rows: ArrayView2<'_, f32>, kappa: f64, color: RGBColor) -> anyhow::Result<()> {
    let (width, height) = area.dim_in_pixel();
    pen::text(area, "Cosine of a row with the mean direction", (20, 14), Style::new(16.0).bold())?;
    let (left, top, right, bottom) = (40, 44, width as i32 - 26, height as i32 - 74);
    let sum = rows.sum_axis(Axis(0)).mapv(f64::from);
    let mean = &sum / sum.dot(&sum).sqrt().max(f64::MIN_POSITIVE);
    let cosines: Vec<f64> =
        rows.outer_iter().map(|row| row.iter().zip(&mean).map(|(x, m)| f64::from(*x) * m).sum()).collect();
    let (low, high) = cosines.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), t| (l.min(*t), h.max(*t)));
    let margin = (0.15 * (high - low)).max(1e-6);
    let (low, high) = ((low - margin).max(-1.0), (high + margin).min(1.0));

    let x_of = |t: f64| left + (f64::from(right - left) * (t - low) / (high - low)).round() as i32;
    let y_of = |share: f64| bottom - (f64::from(bottom - top) * share).round() as i32;
    let mut counts = [0_u32; BINS];
    for t in &cosines {
        counts[(((t - low) / (high - low) * BINS as f64) as usize).min(BINS - 1)] += 1;
    }
    let most = f64::from(counts.into_iter().max().unwrap_or(1).max(1));
    let edge = |bin: usize| x_of(low + (high - low) * bin as f64 / BINS as f64);
    for (bin, count) in counts.into_iter().enumerate().filter(|(_, count)| *count > 0) {
        let bar = [(edge(bin), y_of(f64::from(count) / most)), (edge(bin + 1) - 1, bottom)];
        area.draw(&Rectangle::new(bar, color.mix(0.45).filled()))?;
    }

    let log_density = |t: f64| kappa * t + 0.5 * (rows.ncols() as f64 - 3.0) * (1.0 - t * t).max(1e-12).ln();
    let points: Vec<f64> = (0..=4 * BINS).map(|i| low + (high - low) * i as f64 / (4 * BINS) as f64).collect();
    let peak = points.iter().map(|t| log_density(*t)).fold(f64::NEG_INFINITY, f64::max);
    let curve: Vec<(i32, i32)> = points.iter().map(|t| (x_of(*t), y_of((log_density(*t) - peak).exp()))).collect();
    area.draw(&PathElement::new(curve, pen::INK.stroke_width(2)))?;

    area.draw(&PathElement::new([(left, bottom), (right, bottom)], pen::GRAY.stroke_width(1)))?;
    let gray = Style::new(12.0).color(pen::GRAY);
    for step in 0..=4 {
        let t = low + (high - low) * f64::from(step) / 4.0;
        pen::text(area, &format!("{t:.3}"), (x_of(t), bottom + 16), gray.centered())?;
    }
    let key = "bars: the rows; line: the fit; each scaled to its highest value";
    pen::text(area, key, (left, bottom + 38), gray)
}
