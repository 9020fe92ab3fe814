//! The picture of a fit: rows projected to two dimensions and coloured by component, a table of the components, the
//! log-likelihood trace, and with labels the confusion as a heat map. SVG; its text stays text.

mod colors;
mod confusion;
mod cosines;
mod pen;
mod projection;
pub mod retrieval;
mod scatter;
mod side;
pub mod tradeoff;

use ndarray::ArrayView2;
use plotters::prelude::*;

use super::clustering::Confusion;

/// What is known of a component.
pub struct Component {
    pub weight: f64,
    pub kappa: f64,
    pub size: usize,
}

/// The labels and their agreement with the components.
pub struct Labels<'a> {
    pub confusion: &'a Confusion,
    /// A name for each label of `confusion`.
    pub names: &'a [String],
    /// Whether the names say more than the labels' numbers.
    pub named: bool,
}

/// Everything a picture shows.
pub struct Picture<'a> {
    /// The first line, large.
    pub title: String,
    /// The second line, small.
    pub subtitle: String,
    /// Unit rows, or a sample of them.
    pub rows: ArrayView2<'a, f32>,
    /// The component of each of `rows`.
    pub assigned: &'a [u32],
    /// How many rows `rows` is a sample of.
    pub total_rows: usize,
    pub components: &'a [Component],
    /// Mean log-likelihood of a row after each iteration.
    pub trace: &'a [f64],
    pub labels: Option<Labels<'a>>,
}

impl Picture<'_> {
    /// The name of the label most rows of a component have, and their share.
    fn frequent_label(&self, component: usize) -> Option<(&str, f64)> {
        let labels = self.labels.as_ref()?;
        let counts = &labels.confusion.counts[component];
        let (best, most) = counts.iter().enumerate().fold((0, 0), |top, (j, n)| if *n > top.1 { (j, *n) } else { top });
        (most > 0).then(|| (labels.names[best].as_str(), most as f64 / counts.iter().sum::<u64>() as f64))
    }
}

/// More points than this only make the file large.
pub const MAX_POINTS: usize = 5000;

const WIDTH: u32 = 1360;
const HEADER: u32 = 88;
const UPPER: u32 = 720;
const SIDE: u32 = 540;

/// Draws it as SVG.
pub fn draw(picture: &Picture) -> anyhow::Result<String> {
    let heat = picture.labels.as_ref().map(|labels| confusion::Heat::new(labels, picture.components, WIDTH));
    let height = HEADER + UPPER + heat.as_ref().map_or(0, |heat| heat.height());
    let projection = projection::Projection::new(picture.rows, picture.assigned, picture.components.len());
    let colors = colors::by_angle(&projection.centres);

    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        root.fill(&WHITE)?;
        let (header, rest) = root.split_vertically(HEADER);
        pen::text(&header, &picture.title, (28, 27), pen::Style::new(25.0).bold())?;
        pen::text(&header, &picture.subtitle, (28, 60), pen::Style::new(16.0).color(pen::GRAY))?;
        let (upper, lower) = rest.split_vertically(UPPER);
        let (left, right) = upper.split_horizontally(WIDTH - SIDE);
        scatter::draw(&left, picture, &projection, &colors)?;
        let (table, below) = right.split_vertically(UPPER - side::height_below(picture.components.len(), UPPER));
        side::draw_table(&table, picture, &colors)?;
        match picture.trace {
            [] | [_] => cosines::draw(&below, picture.rows, picture.components[0].kappa, colors[0])?,
            trace => side::draw_trace(&below, trace)?,
        }
        if let Some(heat) = heat {
            heat.draw(&lower, &colors)?;
        }
        root.present()?;
    }
    Ok(svg)
}

/// About three significant digits, without an exponent while it stays short.
fn short(x: f64) -> String {
    match x.abs() {
        a if a == 0.0 || !a.is_finite() => format!("{x}"),
        a if !(1e-3..1e7).contains(&a) => format!("{x:.2e}"),
        a if a < 1.0 => format!("{x:.3}"),
        a if a < 10.0 => format!("{x:.2}"),
        a if a < 100.0 => format!("{x:.1}"),
        _ => format!("{x:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::Array2;

    /// Whatever the numbers are, the picture is one SVG of bounded size, and everything drawn is finite.
    #[test]
    fn every_shape_draws() {
        for (n, components, labels) in [(1, 1, 1), (3, 3, 2), (200, 2, 90), (5000, 70, 45)] {
            let rows = Array2::from_shape_fn((n, 16), |(i, j)| ((i * 31 + j * 17) as f32 * 0.37).sin());
            let assigned: Vec<u32> = (0..n).map(|i| (i % components) as u32).collect();
            let given: Vec<i64> = (0..n).map(|i| (i / 3 % labels) as i64).collect();
            let confusion = Confusion::new(&assigned, &given, components);
            let names: Vec<String> =
                confusion.labels.iter().map(|label| format!("<{label}> &\u{1}\u{0} more\u{ffff}")).collect();
            let known: Vec<Component> = (0..components)
                .map(|k| Component { weight: 1.0 / components as f64, kappa: 10.0, size: n + k })
                .collect();
            let svg = draw(&Picture {
                title: "a title".to_string(),
                subtitle: "more".to_string(),
                rows: rows.view(),
                assigned: &assigned,
                total_rows: n,
                components: &known,
                trace: &[1.0, 2.0, 2.5],
                labels: Some(Labels { confusion: &confusion, names: &names, named: true }),
            })
            .unwrap();
            assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "n = {n}");
            assert!(!svg.contains(['\u{0}', '\u{1}', '\u{ffff}']), "n = {n}");
            assert!(svg.len() < 2_000_000 && !svg.contains("NaN"), "n = {n}: {} bytes", svg.len());
        }
    }
}
