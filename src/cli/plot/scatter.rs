//! The rows in two dimensions, each component's centre on top.

use plotters::prelude::*;
use plotters::style::RGBColor;

use super::pen::{self, Area};
use super::projection::Projection;
use super::{Picture, short};

const TOP: i32 = 34;
const BOTTOM: i32 = 56;
const LEFT: i32 = 28;
const RIGHT: i32 = 12;

/// A rectangle of the picture that is taken: left, top, right, bottom.
type Taken = (i32, i32, i32, i32);

pub fn draw(area: &Area, picture: &Picture, projection: &Projection, colors: &[RGBColor]) -> anyhow::Result<()> {
    let (width, height) = area.dim_in_pixel();
    let frame = (LEFT, TOP, width as i32 - RIGHT, height as i32 - BOTTOM);
    let shown = projection.points.len();
    let what = if shown < picture.total_rows {
        format!("{shown} of {} rows, coloured by component", picture.total_rows)
    } else {
        "Rows, coloured by component".to_string()
    };
    pen::text(area, &what, (LEFT, 14), pen::Style::new(16.0).bold())?;
    let axes = match picture.components.len() {
        1 => "axes: the two of widest scatter about the mean direction".to_string(),
        2 => "axes: across, from mean to mean; up, the widest scatter about the means".to_string(),
        _ => format!(
            "axes: the two along which the components' means differ most ({:.0} % of the scatter between them)",
            100.0 * projection.share
        ),
    };
    let discs = "discs: the mean of each component's rows, its area their number";
    for (line, note) in [axes.as_str(), discs].into_iter().enumerate() {
        let y = height as i32 - BOTTOM + 18 + 17 * line as i32;
        pen::text(area, note, (LEFT, y), pen::Style::new(12.0).color(pen::GRAY))?;
    }
    area.draw(&Rectangle::new([(frame.0, frame.1), (frame.2, frame.3)], pen::FAINT.stroke_width(1)))?;

    let place = placement(&projection.points, frame);
    let radius = if shown <= 600 { 3 } else { 2 };
    let alpha = if shown <= 600 { 0.65 } else { 0.45 };
    for (point, component) in projection.points.iter().zip(picture.assigned) {
        area.draw(&Circle::new(place(point), radius, colors[*component as usize].mix(alpha).filled()))?;
    }
    draw_centres(area, picture, projection, colors, place, frame)
}

/// The map from the plane to pixels: both axes on one scale. Of many points the outermost half per cent at each side do
/// not decide the scale; they are drawn at the frame.
fn placement(points: &[[f64; 2]], frame: Taken) -> impl Fn(&[f64; 2]) -> (i32, i32) + Copy {
    const MARGIN: f64 = 18.0;
    let bounds = |a: usize| {
        let mut values: Vec<f64> = points.iter().map(|p| p[a]).collect();
        values.sort_by(f64::total_cmp);
        let cut = if values.len() > 1000 { values.len() / 200 } else { 0 };
        let (low, high) = (values[cut], values[values.len() - 1 - cut]);
        (0.5 * (low + high), (high - low).max(1e-9))
    };
    let ((x0, x_span), (y0, y_span)) = (bounds(0), bounds(1));
    let scale_x = (f64::from(frame.2 - frame.0) - 2.0 * MARGIN) / x_span;
    let scale = scale_x.min((f64::from(frame.3 - frame.1) - 2.0 * MARGIN) / y_span);
    let middle = (f64::from(frame.0 + frame.2) / 2.0, f64::from(frame.1 + frame.3) / 2.0);
    move |p| {
        let x = (middle.0 + scale * (p[0] - x0)).round() as i32;
        let y = (middle.1 - scale * (p[1] - y0)).round() as i32;
        (x.clamp(frame.0 + 4, frame.2 - 4), y.clamp(frame.1 + 4, frame.3 - 4))
    }
}

fn draw_centres(
    area: &Area,
    picture: &Picture,
    projection: &Projection,
    colors: &[RGBColor],
    place: impl Fn(&[f64; 2]) -> (i32, i32),
    frame: Taken,
) -> anyhow::Result<()> {
    let heaviest = picture.components.iter().map(|c| c.weight).fold(0.0, f64::max).max(f64::MIN_POSITIVE);
    let few = picture.components.len() <= 12;
    let (largest, text_size) = if few { (13.0, 13.5) } else { (6.0, 11.5) };
    let mut order: Vec<usize> = (0..picture.components.len()).collect();
    order.sort_by(|a, b| picture.components[*b].weight.total_cmp(&picture.components[*a].weight));
    let radius = |k: usize| 3 + (largest * (picture.components[k].weight / heaviest).sqrt()).round() as i32;

    let mut taken: Vec<Taken> = Vec::new();
    for k in &order {
        let Some((x, y)) = projection.centres[*k].as_ref().map(&place) else { continue };
        let r = radius(*k);
        area.draw(&Circle::new((x, y), r + 2, WHITE.filled()))?;
        area.draw(&Circle::new((x, y), r, colors[*k].filled()))?;
        area.draw(&Circle::new((x, y), r, pen::INK.stroke_width(1)))?;
        taken.push((x - r, y - r, x + r, y + r));
    }
    // The largest components choose their place for the text first; who finds none is in the table only.
    for k in &order {
        let Some((x, y)) = projection.centres[*k].as_ref().map(&place) else { continue };
        let named = picture.labels.as_ref().is_some_and(|labels| labels.named);
        let label = match picture.frequent_label(*k).filter(|_| named) {
            Some((name, _)) => format!("{name} κ {}", short(picture.components[*k].kappa)),
            None => format!("{k}: κ {}", short(picture.components[*k].kappa)),
        };
        let (w, h, gap) = (pen::width(&label, text_size), text_size as i32, radius(*k) + 5);
        let corners = [
            (x + gap, y - h / 2),
            (x - gap - w, y - h / 2),
            (x - w / 2, y - gap - h),
            (x - w / 2, y + gap),
            (x + gap - 4, y - gap - h / 2),
            (x + gap - 4, y + gap - h / 2),
            (x - gap + 4 - w, y - gap - h / 2),
            (x - gap + 4 - w, y + gap - h / 2),
        ];
        let free = corners.into_iter().map(|(left, top)| (left, top, left + w, top + h)).find(|own| {
            let inside = own.0 > frame.0 + 3 && own.1 > frame.1 + 3 && own.2 < frame.2 - 3 && own.3 < frame.3 - 3;
            inside && taken.iter().all(|t| own.0 > t.2 || own.2 < t.0 || own.1 > t.3 || own.3 < t.1)
        });
        if let Some(own) = free {
            let plate = [(own.0 - 2, own.1 - 2), (own.2 + 1, own.3 + 2)];
            area.draw(&Rectangle::new(plate, WHITE.mix(0.78).filled()))?;
            pen::text(area, &label, (own.0, (own.1 + own.3) / 2), pen::Style::new(text_size))?;
            taken.push(own);
        }
    }
    Ok(())
}
