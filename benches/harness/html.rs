//! A page that needs nothing else: for each place a roofline (operations a second over operations a byte, both in logarithms), then every row.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};

use super::report::{Run, seconds, sentence};
use super::{Bench, Limits, Row};

const STYLE: &str = include_str!("page.css");

/// Of a plot, in its own units.
const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 26.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 46.0;

/// Writes the page of a run.
pub fn write(path: &Path, run: &Run, bench: &Bench) -> Result<()> {
    let mut page = format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'><title>orthant: benches</title>\
         <style>{STYLE}</style><h1>orthant {} on {}</h1><p>{}, <code>{}</code>{}</p>",
        run.version,
        escape(&run.machine),
        run.date,
        escape(&run.command),
        run.commit.as_ref().map_or(String::new(), |commit| format!(", commit {}", escape(commit))),
    );
    if !bench.goals.is_empty() {
        page += "<ul>";
        for goal in &bench.goals {
            let _ = write!(page, "<li>{}", escape(&sentence(goal)));
        }
        page += "</ul>";
    }
    for (name, limits) in &run.places {
        let rows: Vec<&Row> = bench
            .rows
            .iter()
            .filter(|row| row.device == *name && row.gflops.is_some_and(|rate| rate > 0.0) && row.intensity > 0.0)
            .collect();
        if !rows.is_empty() {
            let _ = write!(page, "<h2>{}</h2>{}", escape(name), roofline(limits, &rows));
        }
    }
    page += "<h2>Every row</h2>";
    table(&mut page, &bench.rows);
    std::fs::write(path, page + "</html>\n").with_context(|| path.display().to_string())
}

/// A logarithmic axis in whole decades.
struct Axis {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Axis {
    fn new(values: impl Iterator<Item = f64>, from: f64, to: f64) -> Self {
        let (low, high) = values.fold((f64::INFINITY, 0.0f64), |(low, high), value| (low.min(value), high.max(value)));
        Self { low: low.log10().floor(), high: (high * 1.05).log10().ceil(), from, to }
    }

    fn at(&self, value: f64) -> f64 {
        self.from + (value.log10() - self.low) / (self.high - self.low) * (self.to - self.from)
    }

    fn decades(&self) -> impl Iterator<Item = i32> + use<> {
        self.low as i32..=self.high as i32
    }
}

fn roofline(limits: &Limits, rows: &[&Row]) -> String {
    let roofs: Vec<(f64, &str, &str)> = [(Some(limits.fma_f32), "f32", "single"), (limits.fma_f64, "f64", "double")]
        .into_iter()
        .filter_map(|(rate, name, class)| Some((rate? * 1e-9, name, class)))
        .collect();
    let bandwidth = limits.copy.max(limits.read) * 1e-9;
    let name = if limits.read > limits.copy { "read" } else { "copy" };
    let peak = roofs[0].0;
    let x = Axis::new(
        rows.iter().map(|row| row.intensity).chain([peak / bandwidth / 10.0, peak / bandwidth * 10.0]),
        LEFT,
        WIDTH - RIGHT,
    );
    let rates = rows.iter().filter_map(|row| row.gflops);
    let y = Axis::new(rates.chain([peak, bandwidth * 10f64.powf(x.low)]), HEIGHT - BOTTOM, TOP);

    let mut svg = format!("<svg viewBox='0 0 {WIDTH} {HEIGHT}' role=img aria-label='roofline'>");
    for decade in x.decades() {
        let at = x.at(10f64.powi(decade));
        let _ = write!(svg, "<line class=grid x1={at:.1} x2={at:.1} y1={TOP} y2={:.1} />", HEIGHT - BOTTOM);
        let _ = write!(
            svg,
            "<text class=tick x={at:.1} y={:.1} text-anchor=middle>{}</text>",
            HEIGHT - BOTTOM + 16.0,
            power(decade)
        );
    }
    for decade in y.decades() {
        let at = y.at(10f64.powi(decade));
        let _ = write!(svg, "<line class=grid x1={LEFT} x2={:.1} y1={at:.1} y2={at:.1} />", WIDTH - RIGHT);
        let _ = write!(
            svg,
            "<text class=tick x={:.1} y={:.1} text-anchor=end>{}</text>",
            LEFT - 6.0,
            at + 4.0,
            power(decade)
        );
    }
    let middle = (TOP + HEIGHT - BOTTOM) / 2.0;
    let _ = write!(
        svg,
        "<text class=axis x={:.1} y={:.1} text-anchor=middle>operations a byte</text>",
        (LEFT + WIDTH - RIGHT) / 2.0,
        HEIGHT - 8.0
    );
    let _ = write!(
        svg,
        "<text class=axis x=14 y={middle:.1} text-anchor=middle transform='rotate(-90 14 {middle:.1})'>GFLOP/s</text>"
    );

    let mut labels = Labels::default();
    let low = 10f64.powf(y.low) / bandwidth;
    let start = 10f64.powf(x.low).max(low);
    for (rate, name, class) in &roofs {
        let (knee, end) = (rate / bandwidth, 10f64.powf(x.high));
        let _ = write!(
            svg,
            "<line class='roof {class}' x1={:.1} y1={:.1} x2={:.1} y2={:.1} />",
            x.at(knee),
            y.at(*rate),
            x.at(end),
            y.at(*rate)
        );
        labels.put(
            &mut svg,
            "roof-label",
            WIDTH - RIGHT,
            y.at(*rate) - 6.0,
            &format!("fma {name}, {rate:.0} GFLOP/s"),
            true,
        );
    }
    let _ = write!(
        svg,
        "<line class=roof x1={:.1} y1={:.1} x2={:.1} y2={:.1} />",
        x.at(start),
        y.at(start * bandwidth),
        x.at(peak / bandwidth),
        y.at(peak)
    );
    let label = format!("{name}, {bandwidth:.0} GB/s");
    labels.put(&mut svg, "roof-label", x.at(2.0 * start) + 8.0, y.at(2.0 * start * bandwidth) + 12.0, &label, false);

    let mut texts = String::new();
    let mut sorted = rows.to_vec();
    // The best first: where labels would overlap, theirs stay.
    sorted.sort_by(|a, b| b.gflops.unwrap_or(0.0).total_cmp(&a.gflops.unwrap_or(0.0)));
    for row in &sorted {
        labels.taken.push((x.at(row.intensity) - 4.0, y.at(row.gflops.unwrap_or(1.0)) - 4.0, 8.0, 8.0));
    }
    for row in sorted {
        let (at_x, at_y) = (x.at(row.intensity), y.at(row.gflops.unwrap_or(1.0)));
        let class = if row.dtype == "f64" { "double" } else { "single" };
        let _ = write!(
            svg,
            "<circle class='dot {class}' cx={at_x:.1} cy={at_y:.1} r=4><title>{}, {}, {}: {:.2} GFLOP/s, {:.1} GB/s, {:.0} % of {}</title></circle>",
            escape(&row.kernel),
            escape(&row.shape),
            row.dtype,
            row.gflops.unwrap_or(0.0),
            row.gbytes_per_s.unwrap_or(0.0),
            row.share_of_limit.unwrap_or(0.0) * 100.0,
            row.limit
        );
        if labels.once.insert(row.kernel.clone()) {
            labels.put(&mut texts, "label", at_x + 7.0, at_y + 4.0, &row.kernel, false);
        }
    }
    svg + &texts
        + "</svg><p class=legend><span class='key single'></span> f32 <span class='key double'></span> f64; a dot is a row: point at it for its numbers.</p>"
}

/// Where text stands already, so that no label covers another or a dot.
#[derive(Default)]
struct Labels {
    taken: Vec<(f64, f64, f64, f64)>,
    once: std::collections::HashSet<String>,
}

impl Labels {
    /// Text at (x, y), or to the left of x (`end`), if there is room.
    fn put(&mut self, out: &mut String, class: &str, x: f64, y: f64, text: &str, end: bool) {
        let width = text.chars().count() as f64 * 6.4;
        for (end, shift) in [(end, 0.0), (end, -11.0), (end, 11.0), (!end, 0.0), (!end, -11.0), (!end, 11.0)] {
            let anchor = if end { x - if class == "label" { 14.0 } else { 0.0 } } else { x };
            let left = if end { anchor - width } else { anchor };
            let area = (left, y + shift - 10.0, width, 12.0);
            let apart = |other: &(f64, f64, f64, f64)| {
                area.0 > other.0 + other.2
                    || other.0 > area.0 + area.2
                    || area.1 > other.1 + other.3
                    || other.1 > area.1 + area.3
            };
            if left >= LEFT && left + width <= WIDTH - RIGHT + 1.0 && self.taken.iter().all(apart) {
                let side = if end { " text-anchor=end" } else { "" };
                let _ =
                    write!(out, "<text class={class} x={anchor:.1} y={:.1}{side}>{}</text>", y + shift, escape(text));
                self.taken.push(area);
                return;
            }
        }
    }
}

fn power(decade: i32) -> String {
    match decade {
        -2..=4 => format!("{}", 10f64.powi(decade)),
        _ => format!("1e{decade}"),
    }
}

fn table(page: &mut String, rows: &[Row]) {
    *page += "<div class=wide><table><tr>";
    let names = [
        "family",
        "kernel",
        "shape",
        "dtype",
        "device",
        "time",
        "±",
        "GFLOP/s",
        "GB/s",
        "share",
        "of limit",
        "upload",
        "kernel",
        "readback",
        "checked against",
    ];
    for name in names {
        let _ = write!(page, "<th>{name}");
    }
    let number = |value: Option<f64>| value.map_or(String::new(), |value| format!("{value:.2}"));
    let percent = |value: Option<f64>| value.map_or(String::new(), |value| format!("{:.0} %", value * 100.0));
    let time = |value: Option<f64>| value.map_or(String::new(), seconds);
    for row in rows {
        let _ = write!(page, "<tr{}>", if row.checked { "" } else { " class=wrong" });
        for text in [row.family, &row.kernel, &row.shape, row.dtype, &row.device] {
            let _ = write!(page, "<td>{}", escape(text));
        }
        let numbers = [
            time(row.seconds),
            percent(row.spread),
            number(row.gflops),
            number(row.gbytes_per_s),
            percent(row.share_of_limit),
        ];
        let stages = [time(row.upload_seconds), time(row.kernel_seconds), time(row.readback_seconds)];
        for text in numbers {
            let _ = write!(page, "<td class=number>{text}");
        }
        let _ = write!(page, "<td>{}", row.limit);
        for text in stages {
            let _ = write!(page, "<td class=number>{text}");
        }
        let _ = write!(page, "<td>{}", escape(&row.check));
    }
    *page += "</table></div>";
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('\'', "&#39;")
}
