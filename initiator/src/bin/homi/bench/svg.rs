//! Plots as SVG: axes, grid, lines and stepped areas, in the classes that the report's style sheet colours.

use std::fmt::Write as _;

/// Size of a plot in its own units; the page scales it.
const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 74.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 46.0;
/// Room at the right, with and without a second axis.
const RIGHT_PLAIN: f64 = 34.0;
const RIGHT_AXIS: f64 = 74.0;

/// How numbers become positions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Scale {
    /// Equal steps are equal distances.
    Linear(f64, f64),
    /// Equal factors are equal distances. Both ends are above zero.
    Log(f64, f64),
}

impl Scale {
    /// A linear scale from zero to a round number not below `most`.
    pub(super) fn from_zero(most: f64) -> Self {
        let step = round_step(most / 8.0);
        Self::Linear(0.0, ((most * 1.02 / step).ceil() * step).max(step))
    }

    /// A logarithmic scale whose ends are 1, 2 or 5 times a power of ten.
    pub(super) fn around(least: f64, most: f64) -> Self {
        let least = least.max(1e-3);
        let most = most.max(least);
        let below = |value: f64| {
            let decade = 10_f64.powf(value.log10().floor());
            let factor = [5.0, 2.0, 1.0]
                .into_iter()
                .find(|factor| factor * decade <= value * 1.000_001);
            factor.unwrap_or(1.0) * decade
        };
        let above = |value: f64| {
            let decade = 10_f64.powf(value.log10().floor());
            let factor = [1.0, 2.0, 5.0, 10.0]
                .into_iter()
                .find(|factor| factor * decade >= value * 0.999_999);
            factor.unwrap_or(10.0) * decade
        };
        let (from, to) = (below(least), above(most));
        Self::Log(from, if to > from { to } else { from * 10.0 })
    }

    /// Where a number lies, from 0 to 1.
    fn position(self, value: f64) -> f64 {
        let position = match self {
            Self::Linear(from, to) => (value - from) / (to - from),
            Self::Log(from, to) => (value.max(from).ln() - from.ln()) / (to.ln() - from.ln()),
        };
        if position.is_finite() {
            position.clamp(0.0, 1.0)
        } else {
            0.0
        }
    }

    /// Round numbers along the scale.
    pub(super) fn ticks(self) -> Vec<f64> {
        match self {
            Self::Linear(from, to) => {
                let step = round_step((to - from) / 8.0);
                let mut ticks = Vec::new();
                let mut tick = (from / step).ceil() * step;
                while tick <= to + step * 1e-6 && ticks.len() < 20 {
                    ticks.push(tick);
                    tick += step;
                }
                ticks
            }
            Self::Log(from, to) => {
                // Few decades have room for steps between them.
                let factors: &[f64] = if to / from <= 2e4 {
                    &[1.0, 2.0, 5.0]
                } else {
                    &[1.0]
                };
                let mut ticks = Vec::new();
                let mut decade = 10_f64.powf(from.log10().floor());
                while decade <= to * 1.000_001 && ticks.len() < 40 {
                    let inside = |tick: &f64| (from * 0.999_999..=to * 1.000_001).contains(tick);
                    ticks.extend(factors.iter().map(|factor| factor * decade).filter(inside));
                    decade *= 10.0;
                }
                ticks
            }
        }
    }
}

/// 1, 2 or 5 times a power of ten, not below the step wanted.
fn round_step(step: f64) -> f64 {
    if !step.is_finite() || step <= 0.0 {
        return 1.0;
    }
    let decade = 10_f64.powf(step.log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .find(|factor| factor * decade >= step * 0.999_999);
    factor.unwrap_or(10.0) * decade
}

/// An axis: its scale, where it is marked, and what it means.
#[derive(Debug, Clone)]
pub(super) struct Axis {
    pub(super) scale: Scale,
    pub(super) ticks: Vec<(f64, String)>,
    pub(super) title: &'static str,
}

impl Axis {
    /// An axis marked at round numbers.
    pub(super) fn new(scale: Scale, title: &'static str, label: impl Fn(f64) -> String) -> Self {
        Self {
            scale,
            ticks: scale
                .ticks()
                .into_iter()
                .map(|tick| (tick, label(tick)))
                .collect(),
            title,
        }
    }
}

/// How a series is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    /// A line through the points.
    Line,
    /// From each point to the next one's place at the same height, filled to the bottom.
    Steps,
}

/// One line or area.
#[derive(Debug, Clone)]
pub(super) struct Series {
    /// Class that gives the colour.
    pub(super) class: &'static str,
    pub(super) style: Style,
    pub(super) points: Vec<(f64, f64)>,
    /// What to say about each point when it is pointed at; may be empty.
    pub(super) notes: Vec<String>,
}

/// A plot. `right` is a second axis with the same scale as `y`, marked in another unit.
pub(super) fn plot(label: &str, x: &Axis, y: &Axis, right: Option<&Axis>, series: &[Series]) -> String {
    let right_margin = if right.is_some() { RIGHT_AXIS } else { RIGHT_PLAIN };
    let (plot_width, plot_height) = (WIDTH - LEFT - right_margin, HEIGHT - TOP - BOTTOM);
    let (end_x, end_y) = (LEFT + plot_width, TOP + plot_height);
    let at_x = |value: f64| LEFT + x.scale.position(value) * plot_width;
    let at_y = |value: f64| end_y - y.scale.position(value) * plot_height;
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\" preserveAspectRatio=\"xMidYMid meet\">\n",
        escape(label)
    );
    let out = &mut svg;
    for (value, text) in &y.ticks {
        let y = at_y(*value);
        line(out, "grid", (LEFT, y), (end_x, y));
        words(out, "tick end", (LEFT - 8.0, y + 4.0), text);
    }
    for (value, text) in right.map_or(&[][..], |axis| &axis.ticks) {
        words(out, "tick", (end_x + 8.0, at_y(*value) + 4.0), text);
    }
    for (value, text) in &x.ticks {
        let x = at_x(*value);
        line(out, "grid faint", (x, TOP), (x, end_y));
        words(out, "tick middle", (x, end_y + 18.0), text);
    }
    line(out, "axis", (LEFT, end_y), (end_x, end_y));
    words(
        out,
        "title middle",
        (LEFT + plot_width / 2.0, HEIGHT - 6.0),
        x.title,
    );
    turned(out, (14.0, TOP + plot_height / 2.0), y.title);
    if let Some(right) = right {
        turned(out, (WIDTH - 8.0, TOP + plot_height / 2.0), right.title);
    }
    for series in series {
        let mut path = String::new();
        let mut height = end_y;
        for (number, (x, y)) in series.points.iter().enumerate() {
            let (x, y) = (at_x(*x), at_y(*y));
            match (series.style, number) {
                (Style::Line, 0) => push(&mut path, format_args!("M{x:.1} {y:.1}")),
                (Style::Line, _) => push(&mut path, format_args!("L{x:.1} {y:.1}")),
                (Style::Steps, 0) => push(&mut path, format_args!("M{x:.1} {end_y:.1}V{y:.1}")),
                (Style::Steps, _) => push(&mut path, format_args!("H{x:.1}V{y:.1}")),
            }
            height = y;
        }
        let class = series.class;
        if series.style == Style::Steps {
            if height < end_y {
                push(&mut path, format_args!("H{end_x:.1}V{end_y:.1}"));
            }
            push(
                out,
                format_args!("<path class=\"area {class}\" d=\"{path}Z\"/>\n"),
            );
        }
        push(out, format_args!("<path class=\"line {class}\" d=\"{path}\"/>\n"));
        for ((x, y), note) in series.points.iter().zip(&series.notes) {
            push(
                out,
                format_args!(
                    "<circle class=\"dot {class}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"5\"><title>{}</title></circle>\n",
                    at_x(*x),
                    at_y(*y),
                    escape(note)
                ),
            );
        }
    }
    svg.push_str("</svg>\n");
    svg
}

fn line(out: &mut String, class: &str, from: (f64, f64), to: (f64, f64)) {
    push(
        out,
        format_args!(
            "<line class=\"{class}\" x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\"/>\n",
            from.0, from.1, to.0, to.1
        ),
    );
}

fn words(out: &mut String, class: &str, at: (f64, f64), text: &str) {
    push(
        out,
        format_args!(
            "<text class=\"{class}\" x=\"{:.1}\" y=\"{:.1}\">{}</text>\n",
            at.0,
            at.1,
            escape(text)
        ),
    );
}

fn turned(out: &mut String, at: (f64, f64), text: &str) {
    push(
        out,
        format_args!(
            "<text class=\"title middle\" transform=\"translate({:.1} {:.1}) rotate(-90)\">{}</text>\n",
            at.0,
            at.1,
            escape(text)
        ),
    );
}

fn push(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = out.write_fmt(text);
}

/// Text that means nothing to an HTML parser.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() <= 1e-9 * b.abs().max(1.0)
    }

    #[test]
    fn linear_scales_are_round_and_start_at_zero() {
        let Scale::Linear(from, to) = Scale::from_zero(437_000.0) else {
            panic!("linear")
        };
        assert!(close(from, 0.0) && close(to, 500_000.0), "{from} {to}");
        assert!(matches!(Scale::from_zero(0.0), Scale::Linear(_, to) if to > 0.0));
        assert!(Scale::from_zero(437_000.0).ticks().len() >= 4);
    }

    #[test]
    fn logarithmic_scales_enclose_and_have_ticks() {
        for (least, most) in [(17.0, 430.0), (1.0, 1.0), (3.0e3, 9.0e8), (0.0, 0.0)] {
            let scale = Scale::around(least, most);
            let Scale::Log(from, to) = scale else {
                panic!("logarithmic")
            };
            assert!(
                from <= f64::max(least, 1e-3) * 1.001 && to * 1.001 >= most && from < to,
                "{from} {to}"
            );
            let ticks = scale.ticks();
            assert!(ticks.len() >= 2 && ticks.len() < 40, "{least} {most}: {ticks:?}");
            assert!(ticks.iter().all(|tick| (from * 0.99..=to * 1.01).contains(tick)));
        }
        assert!(close(Scale::Log(1.0, 100.0).position(10.0), 0.5));
    }

    #[test]
    fn plots_have_a_path_for_each_series() {
        let axis = |title| Axis::new(Scale::from_zero(10.0), title, |value| format!("{value}"));
        let series = |style| Series {
            class: "read",
            style,
            points: vec![(0.0, 1.0), (5.0, 7.0), (10.0, f64::NAN)],
            notes: vec!["a < b".to_owned()],
        };
        let svg = plot(
            "x",
            &axis("a"),
            &axis("b"),
            Some(&axis("c")),
            &[series(Style::Line), series(Style::Steps)],
        );
        assert_eq!(svg.matches("<path").count(), 3);
        assert!(svg.contains("a &lt; b") && !svg.contains("NaN"));
    }
}
