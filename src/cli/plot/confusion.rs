//! Components against labels as a heat map, the components ordered so that the diagonal shows.

use plotters::prelude::*;
use plotters::style::RGBColor;

use super::pen::{self, Area, Style};
use super::{Component, Labels, short};

const LEFT: i32 = 170;
const RIGHT: i32 = 130;
const TOP: i32 = 50;
/// Below this a text beside a cell does not fit.
const LEGIBLE: i32 = 10;

/// Where everything goes.
pub struct Heat<'a> {
    labels: &'a Labels<'a>,
    components: &'a [Component],
    /// The components from top to bottom.
    order: Vec<usize>,
    /// Cell width and height.
    cell: (i32, i32),
    names_height: i32,
}

impl<'a> Heat<'a> {
    pub fn new(labels: &'a Labels<'a>, components: &'a [Component], width: u32) -> Heat<'a> {
        let columns = labels.names.len().max(1) as i32;
        let rows = components.len() as i32;
        let cell_width = ((width as i32 - LEFT - RIGHT) / columns).clamp(2, 90);
        let cell_height = (900 / rows).clamp(3, 34).min(cell_width.max(14));
        let longest = labels.names.iter().map(|name| pen::width(name, 12.0)).max().unwrap_or(0);
        let names_height = if cell_width >= LEGIBLE { longest.min(220) + 12 } else { 12 };
        Heat {
            labels,
            components,
            order: order(&labels.confusion.counts),
            cell: (cell_width, cell_height),
            names_height,
        }
    }

    pub fn height(&self) -> u32 {
        // The scale beside the cells needs some height too.
        (TOP + (self.components.len() as i32 * self.cell.1 + self.names_height).max(160) + 34) as u32
    }

    pub fn draw(&self, area: &Area, colors: &[RGBColor]) -> anyhow::Result<()> {
        let Heat { labels, components, order, cell: (w, h), .. } = self;
        let counts = &labels.confusion.counts;
        let (columns, rows) = (labels.names.len() as i32, order.len() as i32);
        pen::text(area, "Components against labels", (28, 14), Style::new(16.0).bold())?;
        let text_size = f64::from((h - 2).clamp(8, 13));
        let with_numbers = *w >= 30 && *h >= 16;
        for (i, k) in order.iter().enumerate() {
            let top = TOP + i as i32 * h;
            let total = counts[*k].iter().sum::<u64>();
            for (j, n) in counts[*k].iter().enumerate().filter(|(_, n)| **n > 0) {
                let share = *n as f64 / total as f64;
                let left = LEFT + j as i32 * w;
                area.draw(&Rectangle::new([(left, top), (left + w, top + h)], shade(share).filled()))?;
                if with_numbers {
                    let ink = if share > 0.55 { WHITE } else { pen::INK };
                    let at = (left + w / 2, top + h / 2);
                    pen::text(area, &n.to_string(), at, Style::new(12.0).color(ink).centered())?;
                }
            }
            if *h >= LEGIBLE {
                let y = top + h / 2;
                area.draw(&Circle::new((LEFT - 12, y), (h / 2 - 2).clamp(2, 6), colors[*k].filled()))?;
                let name = format!("{k}: κ {}", short(components[*k].kappa));
                pen::text(area, &name, (LEFT - 24, y), Style::new(text_size).right())?;
            }
        }
        let (right, bottom) = (LEFT + columns * w, TOP + rows * h);
        self.draw_grid(area, right, bottom)?;
        if *w >= LEGIBLE {
            for (j, name) in labels.names.iter().enumerate() {
                let x = LEFT + j as i32 * w + w / 2;
                let name = pen::fit(name, 12.0, self.names_height - 8);
                if pen::width(&name, 12.0) < w - 4 {
                    pen::text(area, &name, (x, bottom + 14), Style::new(12.0).centered())?;
                } else {
                    pen::text(area, &name, (x, bottom + 6), Style::new(12.0).right().upright())?;
                }
            }
        }
        draw_scale(area, right + 24, TOP)
    }

    fn draw_grid(&self, area: &Area, right: i32, bottom: i32) -> anyhow::Result<()> {
        let (w, h) = self.cell;
        let faint = pen::FAINT.mix(0.6).stroke_width(1);
        if w.min(h) >= LEGIBLE {
            for x in (LEFT..=right).step_by(w as usize) {
                area.draw(&PathElement::new([(x, TOP), (x, bottom)], faint))?;
            }
            for y in (TOP..=bottom).step_by(h as usize) {
                area.draw(&PathElement::new([(LEFT, y), (right, y)], faint))?;
            }
        }
        area.draw(&Rectangle::new([(LEFT, TOP), (right, bottom)], pen::GRAY.stroke_width(1)))?;
        Ok(())
    }
}

/// What the colours mean.
fn draw_scale(area: &Area, left: i32, top: i32) -> anyhow::Result<()> {
    const HEIGHT: i32 = 100;
    let gray = Style::new(12.0).color(pen::GRAY);
    for (line, text) in ["share of the", "component's", "rows"].into_iter().enumerate() {
        pen::text(area, text, (left, top + 8 + 14 * line as i32), gray)?;
    }
    let top = top + 56;
    for y in 0..HEIGHT {
        let share = 1.0 - f64::from(y) / f64::from(HEIGHT - 1);
        area.draw(&Rectangle::new([(left, top + y), (left + 14, top + y + 1)], shade(share).filled()))?;
    }
    for (share, y) in [("100 %", top + 3), ("50 %", top + HEIGHT / 2), ("0 %", top + HEIGHT - 3)] {
        pen::text(area, share, (left + 20, y), gray)?;
    }
    Ok(())
}

/// White to deep blue; the root shows small shares.
fn shade(share: f64) -> RGBColor {
    let x = share.clamp(0.0, 1.0).sqrt();
    super::colors::oklch(1.0 - 0.62 * x, 0.13 * (std::f64::consts::PI * 0.62 * x).sin(), 255.0)
}

/// The components from top to bottom: each where its most frequent label is, the purer first.
fn order(counts: &[Vec<u64>]) -> Vec<usize> {
    let place = |k: usize| {
        let total = counts[k].iter().sum::<u64>().max(1) as f64;
        let (column, most) =
            (0..).zip(&counts[k]).fold((usize::MAX, 0), |top, (j, n)| if *n > top.1 { (j, *n) } else { top });
        (column, -(most as f64) / total)
    };
    let mut order: Vec<usize> = (0..counts.len()).collect();
    order.sort_by(|a, b| place(*a).partial_cmp(&place(*b)).unwrap_or(std::cmp::Ordering::Equal));
    order
}

#[cfg(test)]
mod tests {
    use super::order;

    #[test]
    fn the_diagonal_shows() {
        assert_eq!(order(&[vec![0, 9, 1], vec![8, 0, 0], vec![0, 0, 5]]), [1, 0, 2]);
        // Two components of label 0, the purer first; an empty one comes last.
        assert_eq!(order(&[vec![0, 0], vec![9, 1], vec![5, 0]]), [2, 1, 0]);
    }
}
