//! The picture of an evaluation: precision against recall over the radius, and how far pairs of one label and of two are apart. Two panels; SVG.

use orthant::hamming::Evaluation;
use plotters::prelude::*;
use plotters::style::RGBColor;

use super::pen::{self, Area, Style};

/// Everything a picture shows.
pub struct Picture<'a> {
    /// The first line, large.
    pub title: String,
    /// The second line, small.
    pub subtitle: String,
    pub evaluation: &'a Evaluation,
}

const WIDTH: u32 = 1200;
const HEIGHT: u32 = 560;
const HEADER: u32 = 88;

const SAME: RGBColor = RGBColor(38, 92, 170);
const DIFFERENT: RGBColor = RGBColor(214, 120, 40);

/// Draws it as SVG.
pub fn draw(picture: &Picture) -> anyhow::Result<String> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (WIDTH, HEIGHT)).into_drawing_area();
        root.fill(&WHITE)?;
        let (header, rest) = root.split_vertically(HEADER);
        pen::text(&header, &picture.title, (28, 27), Style::new(25.0).bold())?;
        pen::text(&header, &picture.subtitle, (28, 60), Style::new(16.0).color(pen::GRAY))?;
        let (left, right) = rest.split_horizontally(WIDTH / 2);
        draw_curve(&left, picture.evaluation)?;
        draw_distances(&right, picture.evaluation)?;
        root.present()?;
    }
    Ok(svg)
}

/// Where a panel's axes go: left, top, right, bottom.
fn frame(area: &Area) -> (i32, i32, i32, i32) {
    let (width, height) = area.dim_in_pixel();
    (74, 44, width as i32 - 30, height as i32 - 64)
}

/// Each radius at which something is within is a point, joined to the next.
fn draw_curve(area: &Area, evaluation: &Evaluation) -> anyhow::Result<()> {
    let (left, top, right, bottom) = frame(area);
    pen::text(area, "Precision and recall within each radius", (28, 14), Style::new(16.0).bold())?;
    let x_of = |recall: f64| left + (f64::from(right - left) * recall).round() as i32;
    let y_of = |precision: f64| bottom - (f64::from(bottom - top) * precision).round() as i32;
    let gray = Style::new(12.0).color(pen::GRAY);
    for step in 0..=5 {
        let share = f64::from(step) / 5.0;
        area.draw(&PathElement::new([(left, y_of(share)), (right, y_of(share))], pen::FAINT.stroke_width(1)))?;
        pen::text(area, &format!("{share:.1}"), (left - 8, y_of(share)), gray.right())?;
        pen::text(area, &format!("{share:.1}"), (x_of(share), bottom + 16), gray.centered())?;
    }
    pen::text(area, "recall", ((left + right) / 2, bottom + 38), gray.centered())?;
    pen::text(area, "precision", (22, (top + bottom) / 2), gray.centered().upright())?;

    let shown: Vec<_> = evaluation.radii.iter().filter(|within| within.empty_balls < 1.0).collect();
    let line: Vec<(i32, i32)> = shown.iter().map(|within| (x_of(within.recall), y_of(within.precision))).collect();
    area.draw(&PathElement::new(line.clone(), SAME.stroke_width(2)))?;
    if line.len() <= 70 {
        for at in &line {
            area.draw(&Circle::new(*at, 3, SAME.filled()))?;
        }
    }
    // Some radii by name, a readable distance apart.
    let mut named: Vec<(i32, i32)> = Vec::new();
    for (within, (x, y)) in shown.iter().zip(line) {
        if named.iter().all(|(a, b)| (a - x).abs() + (b - y).abs() > 56) {
            pen::text(area, &within.radius.to_string(), ((x + 7).min(right - 8), y - 10), gray)?;
            named.push((x, y));
        }
    }
    Ok(())
}

/// Two histograms, each of area 1.
fn draw_distances(area: &Area, evaluation: &Evaluation) -> anyhow::Result<()> {
    let (left, top, right, bottom) = frame(area);
    pen::text(area, "Distances of pairs of one label and of two", (28, 14), Style::new(16.0).bold())?;
    let series = [(&evaluation.same_label, SAME, "one label"), (&evaluation.different_label, DIFFERENT, "two labels")];
    let last = series.iter().filter_map(|(counts, ..)| counts.iter().rposition(|n| *n > 0)).max().unwrap_or(0);
    // At most about 80 bars, each of so many bits.
    let wide = (last + 1).div_ceil(80);
    let bars = (last + 1).div_ceil(wide);
    let shares: Vec<Vec<f64>> = (series.iter())
        .map(|(counts, ..)| {
            let total = counts.iter().sum::<u64>().max(1) as f64;
            counts[..=last].chunks(wide).map(|bar| bar.iter().sum::<u64>() as f64 / total).collect()
        })
        .collect();
    let most = shares.iter().flatten().copied().fold(f64::MIN_POSITIVE, f64::max);
    let x_of = |bar: usize| left + (f64::from(right - left) * bar as f64 / bars as f64).round() as i32;
    let y_of = |share: f64| bottom - (f64::from(bottom - top) * share / most).round() as i32;
    let gray = Style::new(12.0).color(pen::GRAY);
    for step in 0..=4 {
        let share = most * f64::from(step) / 4.0;
        area.draw(&PathElement::new([(left, y_of(share)), (right, y_of(share))], pen::FAINT.stroke_width(1)))?;
        pen::text(area, &format!("{:.1} %", 100.0 * share), (left - 8, y_of(share)), gray.right())?;
    }
    for (shares, (_, color, _)) in shares.iter().zip(&series) {
        for (bar, share) in shares.iter().enumerate().filter(|(_, share)| **share > 0.0) {
            area.draw(&Rectangle::new([(x_of(bar), y_of(*share)), (x_of(bar + 1), bottom)], color.mix(0.45).filled()))?;
        }
    }
    area.draw(&PathElement::new([(left, bottom), (right, bottom)], pen::GRAY.stroke_width(1)))?;
    for step in 0..=4 {
        let bar = bars * step / 4;
        pen::text(area, &(bar * wide).to_string(), (x_of(bar), bottom + 16), gray.centered())?;
    }
    pen::text(area, "bits that differ", ((left + right) / 2, bottom + 38), gray.centered())?;
    for (line, (counts, color, name)) in series.iter().enumerate() {
        let y = top + 12 + 20 * line as i32;
        area.draw(&Rectangle::new([(left + 12, y - 6), (left + 24, y + 6)], color.mix(0.45).filled()))?;
        let pairs = counts.iter().sum::<u64>();
        pen::text(area, &format!("{name}: {pairs} pairs"), (left + 32, y), Style::new(13.0))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::Array2;
    use orthant::Device;
    use orthant::hamming::{Codes, EvaluateOptions, evaluate};

    /// Whatever the numbers are, everything drawn is finite, and the picture stays small.
    #[test]
    fn every_shape_draws() {
        for (codes, bits, labels) in [(1, 8, 1), (2, 8, 2), (200, 64, 3), (50, 8192, 50)] {
            let rows = Array2::from_shape_fn((codes, bits), |(i, j)| (i * 7 + j * i) % 5 < 2);
            let codes = Codes::pack(&Device::cpu(), &rows.view()).unwrap();
            let of: Vec<usize> = (0..codes.len()).map(|i| i % labels).collect();
            let evaluation = evaluate(&codes, &of, &codes, &of, &EvaluateOptions::new()).unwrap();
            let (title, subtitle) = ("a title".to_string(), "more".to_string());
            let svg = draw(&Picture { title, subtitle, evaluation: &evaluation }).unwrap();
            assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{bits} bits");
            assert!(svg.len() < 1_000_000 && !svg.contains("NaN"), "{bits} bits: {} bytes", svg.len());
        }
    }
}
