//! Text, and colours of everything that is not a component.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

pub type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

pub const INK: RGBColor = RGBColor(32, 36, 44);
pub const GRAY: RGBColor = RGBColor(104, 112, 124);
pub const FAINT: RGBColor = RGBColor(222, 226, 232);

/// How a text looks; `size` is in pixels, anchored at the left and vertically centred unless told otherwise.
#[derive(Clone, Copy)]
pub struct Style {
    size: f64,
    color: RGBColor,
    bold: bool,
    align: HPos,
    upright: bool,
}

impl Style {
    pub fn new(size: f64) -> Style {
        Style { size, color: INK, bold: false, align: HPos::Left, upright: false }
    }
    pub fn color(self, color: RGBColor) -> Style {
        Style { color, ..self }
    }
    pub fn bold(self) -> Style {
        Style { bold: true, ..self }
    }
    pub fn right(self) -> Style {
        Style { align: HPos::Right, ..self }
    }
    pub fn centered(self) -> Style {
        Style { align: HPos::Center, ..self }
    }
    /// Written from the bottom up.
    pub fn upright(self) -> Style {
        Style { upright: true, ..self }
    }
}

/// Writes `text` at `at`.
pub fn text(area: &Area, text: &str, at: (i32, i32), style: Style) -> anyhow::Result<()> {
    // XML has no place for these, escaped or not.
    let text = text.replace(|c: char| c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}'), "");
    // The backend divides a font's size by 1.24.
    let font = FontDesc::new(
        FontFamily::Name("Helvetica, Arial, sans-serif"),
        style.size * 1.24,
        if style.bold { FontStyle::Bold } else { FontStyle::Normal },
    );
    let font = if style.upright { font.transform(FontTransform::Rotate270) } else { font };
    let look = TextStyle::from(font).color(&style.color).pos(Pos::new(style.align, VPos::Center));
    area.draw(&Text::new(text, at, look))?;
    Ok(())
}

/// About how wide a text is drawn: the mean width of Helvetica's letters, rounded up.
pub fn width(text: &str, size: f64) -> i32 {
    (text.chars().count() as f64 * size * 0.58).ceil() as i32
}

/// `text`, cut to that many pixels.
pub fn fit(text: &str, size: f64, pixels: i32) -> String {
    let most = (f64::from(pixels.max(0)) / (size * 0.58)) as usize;
    if text.chars().count() <= most {
        return text.to_string();
    }
    let kept: String = text.chars().take(most.saturating_sub(1)).collect();
    format!("{}…", kept.trim_end())
}
