//! Error against memory: a curve over ranks, the configuration on it, and what it is compared with.

use plotters::prelude::*;
use plotters::style::RGBColor;

use super::pen::{self, Style};

const WIDTH: u32 = 900;
const HEIGHT: u32 = 620;
const CURVE: RGBColor = RGBColor(38, 92, 170);
const CHOSEN: RGBColor = RGBColor(196, 68, 34);

/// A cache: what it takes, of what all tokens take in f16, and how far attention over it is off.
#[derive(Clone)]
pub struct Point {
    pub label: String,
    pub share: f64,
    pub error: f64,
}

/// Everything the picture shows.
pub struct Tradeoff {
    pub title: String,
    pub subtitle: String,
    /// Over ranks, each with its rank as label.
    pub curve: Vec<Point>,
    pub curve_name: String,
    /// The configuration asked for.
    pub chosen: Point,
    /// What is there without it.
    pub baselines: Vec<Point>,
}

/// Draws it as SVG.
pub fn draw(picture: &Tradeoff) -> anyhow::Result<String> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (WIDTH, HEIGHT)).into_drawing_area();
        root.fill(&WHITE)?;
        pen::text(&root, &picture.title, (28, 27), Style::new(22.0).bold())?;
        pen::text(&root, &picture.subtitle, (28, 56), Style::new(14.0).color(pen::GRAY))?;
        let (left, top, right, bottom) = (84, 92, WIDTH as i32 - 40, HEIGHT as i32 - 70);

        let points = || picture.curve.iter().chain([&picture.chosen]).chain(&picture.baselines);
        let finite = |most: f64, x: f64| if x.is_finite() { most.max(x) } else { most };
        let (x_step, x_most) = scale(points().map(|point| 100.0 * point.share).fold(100.0, finite));
        let (y_step, y_most) = scale(points().map(|point| point.error).fold(1e-6, finite));
        let x_of = |share: f64| left + (f64::from(right - left) * 100.0 * share / x_most).round() as i32;
        let y_of = |error: f64| bottom - (f64::from(bottom - top) * error / y_most).round() as i32;

        let gray = Style::new(12.0).color(pen::GRAY);
        let decimals = (-y_step.log10().floor()).max(0.0) as usize;
        for i in 0..=(y_most / y_step).round() as usize {
            let error = i as f64 * y_step;
            let y = y_of(error);
            root.draw(&PathElement::new([(left, y), (right, y)], pen::FAINT.stroke_width(1)))?;
            pen::text(&root, &format!("{error:.decimals$}"), (left - 8, y), gray.right())?;
        }
        for i in 0..=(x_most / x_step).round() as usize {
            let percent = i as f64 * x_step;
            let x = x_of(percent / 100.0);
            root.draw(&PathElement::new([(x, bottom), (x, bottom + 4)], pen::GRAY.stroke_width(1)))?;
            pen::text(&root, &format!("{percent:.0} %"), (x, bottom + 16), gray.centered())?;
        }
        let across = "bytes held, of those of all keys and values in f16";
        pen::text(&root, across, ((left + right) / 2, bottom + 42), Style::new(13.0).centered())?;
        let up = "relative error of the attention output";
        pen::text(&root, up, (24, (top + bottom) / 2), Style::new(13.0).centered().upright())?;

        let at = |point: &Point| (x_of(point.share), y_of(point.error));
        let line: Vec<(i32, i32)> = picture.curve.iter().map(at).collect();
        root.draw(&PathElement::new(line, CURVE.stroke_width(2)))?;
        for point in &picture.curve {
            let (x, y) = at(point);
            root.draw(&Circle::new((x, y), 3, CURVE.filled()))?;
            pen::text(&root, &point.label, (x + 6, y - 9), Style::new(11.0).color(CURVE))?;
        }
        for point in &picture.baselines {
            let (x, y) = at(point);
            root.draw(&Rectangle::new([(x - 5, y - 5), (x + 5, y + 5)], pen::INK.filled()))?;
            // Near the right edge there is no room beside it.
            let wide = pen::width(&point.label, 12.5);
            let (x, style) = match x + 10 + wide > right + 30 {
                true => (x + 5, Style::new(12.5).right()),
                false => (x - 5, Style::new(12.5)),
            };
            pen::text(&root, &point.label, (x, y - 16), style)?;
        }
        let (x, y) = at(&picture.chosen);
        root.draw(&Circle::new((x, y), 7, CHOSEN.stroke_width(3)))?;

        // The key, in the corner where a curve that falls is not.
        let key = right - 330;
        root.draw(&PathElement::new([(key, top + 8), (key + 24, top + 8)], CURVE.stroke_width(2)))?;
        root.draw(&Circle::new((key + 12, top + 8), 3, CURVE.filled()))?;
        pen::text(&root, &pen::fit(&picture.curve_name, 12.5, 296), (key + 34, top + 8), Style::new(12.5))?;
        root.draw(&Circle::new((key + 12, top + 30), 6, CHOSEN.stroke_width(3)))?;
        pen::text(&root, &pen::fit(&picture.chosen.label, 12.5, 296), (key + 34, top + 30), Style::new(12.5))?;
        root.draw(&Rectangle::new([(key + 7, top + 47), (key + 17, top + 57)], pen::INK.filled()))?;
        pen::text(&root, "without ranks", (key + 34, top + 52), Style::new(12.5))?;
        root.present()?;
    }
    Ok(svg)
}

/// Steps of 1, 2 or 5 times a power of ten, about six of them, and the first that is not below `most`.
fn scale(most: f64) -> (f64, f64) {
    let power = 10f64.powf((most / 6.0).log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|digit| digit * power).into_iter().find(|step| most / step <= 6.0);
    let step = step.unwrap_or(10.0 * power);
    (step, step * (most / step - 1e-9).ceil().max(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_hold_what_they_are_of() {
        for most in [1e-6, 0.01, 0.31, 0.6, 1.0, 59.0, 100.0, 117.0] {
            let (step, end) = scale(most);
            let steps = (end / step).round();
            assert!(end >= most * (1.0 - 1e-8) && (1.0..=7.0).contains(&steps), "{most}: {step} {end}");
        }
    }

    #[test]
    fn any_errors_draw() {
        for error in [0.0, 1e-9, 0.3, 7.0] {
            let point = |label: &str, share: f64, error: f64| Point { label: label.into(), share, error };
            let svg = draw(&Tradeoff {
                title: "a <title>".into(),
                subtitle: "more".into(),
                curve: vec![point("4", 0.1, error), point("64", 0.3, error / 2.0)],
                curve_name: "over ranks".into(),
                chosen: point("rank 32", 0.2, error),
                baselines: vec![point("4 bits", 0.33, error / 3.0), point("uncompressed", 1.0, 0.0)],
            })
            .unwrap();
            assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>") && !svg.contains("NaN"), "{error}");
            assert!(svg.contains("uncompressed") && svg.contains("4 bits") && svg.contains("rank 32"));
        }
    }
}
