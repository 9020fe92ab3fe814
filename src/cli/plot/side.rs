//! Beside the rows: the table of components and the log-likelihood trace.

use plotters::prelude::*;
use plotters::style::RGBColor;

use super::pen::{self, Area, Style};
use super::{Picture, short};

const LINE: i32 = 22;
const TEXT: f64 = 13.5;

pub fn draw_table(area: &Area, picture: &Picture, colors: &[RGBColor]) -> anyhow::Result<()> {
    let (width, height) = area.dim_in_pixel();
    let components = picture.components;
    let mut order: Vec<usize> = (0..components.len()).collect();
    order.sort_by(|a, b| components[*b].weight.total_cmp(&components[*a].weight));
    let room = ((height as i32 - 66) / LINE).max(1) as usize;
    let (shown, title) = if components.len() <= room {
        (components.len(), "Components".to_string())
    } else {
        (room - 1, format!("The {} heaviest of {} components", room - 1, components.len()))
    };
    pen::text(area, &title, (20, 14), Style::new(16.0).bold())?;

    // Right edges of the columns of numbers; the label's name has what is left.
    let columns = [("weight", 130), ("rows", 194), ("κ", 268)];
    let head = Style::new(12.0).color(pen::GRAY);
    pen::text(area, "#", (44, 42), head)?;
    for (name, right) in columns {
        pen::text(area, name, (right, 42), head.right())?;
    }
    if picture.labels.is_some() {
        pen::text(area, "most frequent label", (292, 42), head)?;
    }
    for (line, k) in order[..shown].iter().enumerate() {
        let component = &components[*k];
        let y = 64 + line as i32 * LINE;
        area.draw(&Circle::new((28, y), 7, colors[*k].filled()))?;
        pen::text(area, &k.to_string(), (44, y), Style::new(TEXT))?;
        let cells = [format!("{:.2} %", 100.0 * component.weight), component.size.to_string(), short(component.kappa)];
        for (cell, (_, right)) in cells.iter().zip(columns) {
            pen::text(area, cell, (right, y), Style::new(TEXT).right())?;
        }
        if let Some((name, share)) = picture.frequent_label(*k) {
            let share = format!("{:.0} %", 100.0 * share);
            pen::text(area, &share, (328, y), Style::new(TEXT).color(pen::GRAY).right())?;
            pen::text(area, &pen::fit(name, TEXT, width as i32 - 338 - 12), (338, y), Style::new(TEXT))?;
        }
    }
    if shown < components.len() {
        let rest = &order[shown..];
        let (low, high) =
            rest.iter().map(|k| components[*k].kappa).fold((f64::INFINITY, 0.0_f64), |(l, h), x| (l.min(x), h.max(x)));
        let share: f64 = rest.iter().map(|k| components[*k].weight).sum();
        let more = format!(
            "and {} more: {:.1} % of the weight, κ {} to {}",
            rest.len(),
            100.0 * share,
            short(low),
            short(high)
        );
        pen::text(area, &more, (20, 64 + shown as i32 * LINE), Style::new(TEXT).color(pen::GRAY))?;
    }
    Ok(())
}

/// What the table of that many components leaves of `height`, within reason.
pub fn height_below(components: usize, height: u32) -> u32 {
    height.saturating_sub(90 + components as u32 * LINE as u32).clamp(240, 400)
}

pub fn draw_trace(area: &Area, trace: &[f64]) -> anyhow::Result<()> {
    let (width, height) = area.dim_in_pixel();
    pen::text(area, "Mean log-likelihood of a row, after each iteration", (20, 14), Style::new(16.0).bold())?;
    let (left, top, right, bottom) = (84, 38, width as i32 - 26, height as i32 - 62);
    let (low, high) = trace.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), y| (l.min(*y), h.max(*y)));
    let span = (high - low).max(1e-12 * high.abs()).max(f64::MIN_POSITIVE);
    let last = (trace.len() - 1) as f64;
    let x_of = |i: f64| left + (f64::from(right - left) * i / last).round() as i32;
    let y_of = |y: f64| bottom - (f64::from(bottom - top) * (y - low) / span).round() as i32;

    let gray = Style::new(12.0).color(pen::GRAY);
    let decimals = (2.0 - span.log10().floor()).clamp(0.0, 9.0) as usize;
    for step in 0..=3 {
        let value = low + span * f64::from(step) / 3.0;
        let y = y_of(value);
        area.draw(&PathElement::new([(left, y), (right, y)], pen::FAINT.stroke_width(1)))?;
        pen::text(area, &format!("{value:.decimals$}"), (left - 8, y), gray.right())?;
    }
    let stride = nice_stride(trace.len());
    for number in (stride..=trace.len()).step_by(stride) {
        pen::text(area, &number.to_string(), (x_of((number - 1) as f64), bottom + 16), gray.centered())?;
    }
    pen::text(area, "iteration", ((left + right) / 2, bottom + 36), gray.centered())?;
    let line: Vec<(i32, i32)> = trace.iter().enumerate().map(|(i, y)| (x_of(i as f64), y_of(*y))).collect();
    let color = RGBColor(38, 92, 170);
    area.draw(&PathElement::new(line.clone(), color.stroke_width(2)))?;
    if line.len() <= 60 {
        for at in line {
            area.draw(&Circle::new(at, 3, color.filled()))?;
        }
    }
    Ok(())
}

/// Every how many iterations the axis has a number: at most about eight of them.
fn nice_stride(count: usize) -> usize {
    (0..).flat_map(|power| [1, 2, 5].map(|digit| digit * 10_usize.pow(power))).find(|s| count / s <= 8).unwrap_or(count)
}
