//! Colours of components: the hue goes round with the direction of a component's centre in the projection, so that
//! neighbours are of one family, and lightness alternates, so that they differ all the same.

use plotters::style::RGBColor;

/// A colour for each of the centres.
pub fn by_angle(centres: &[Option<[f64; 2]>]) -> Vec<RGBColor> {
    let angle = |i: &usize| centres[*i].map_or(f64::INFINITY, |[x, y]| y.atan2(x));
    let mut order: Vec<usize> = (0..centres.len()).collect();
    order.sort_by(|a, b| angle(a).total_cmp(&angle(b)));
    let mut colors = vec![RGBColor(0, 0, 0); centres.len()];
    for (rank, component) in order.into_iter().enumerate() {
        let hue = 360.0 * rank as f64 / centres.len() as f64 + 25.0;
        let (lightness, chroma) = [(0.58, 0.16), (0.74, 0.14), (0.66, 0.17)][rank % 3];
        colors[component] = oklch(lightness, chroma, hue);
    }
    colors
}

/// A colour of even steps to the eye (Ottosson 2020), the hue in degrees.
pub fn oklch(lightness: f64, chroma: f64, hue: f64) -> RGBColor {
    let (sin, cos) = hue.to_radians().sin_cos();
    let (a, b) = (chroma * cos, chroma * sin);
    let l = (lightness + 0.396_337_777_4 * a + 0.215_803_757_3 * b).powi(3);
    let m = (lightness - 0.105_561_345_8 * a - 0.063_854_172_8 * b).powi(3);
    let s = (lightness - 0.089_484_177_5 * a - 1.291_485_548 * b).powi(3);
    let encode = |linear: f64| {
        let linear = linear.clamp(0.0, 1.0);
        let x = if linear <= 0.003_130_8 { 12.92 * linear } else { 1.055 * linear.powf(1.0 / 2.4) - 0.055 };
        (255.0 * x).round() as u8
    };
    RGBColor(
        encode(4.076_741_662_1 * l - 3.307_711_591_3 * m + 0.230_969_929_2 * s),
        encode(-1.268_438_004_6 * l + 2.609_757_401_1 * m - 0.341_319_396_5 * s),
        encode(-0.004_196_086_3 * l - 0.703_418_614_7 * m + 1.707_614_701 * s),
    )
}
