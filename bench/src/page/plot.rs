//! Renders one chart: a row per method with its samples as marks on a common axis in seconds.

use std::fmt::{self, Write};

use super::text::Escaped;
use super::{NOTHING, as_f64, number};
use crate::method::HostState;
use crate::report::{Cell, Sample};
use crate::stats::Spread;

/// Width of the time axis in percent; the rest leaves room for marks and labels at the end.
const WIDTH: f64 = 97.0;
/// Maximum marks in a row; more would merge into a line.
const MARKS_MAX: usize = 400;

/// One method in a chart.
pub(super) struct Row<'a> {
    pub(super) cell: &'a Cell,
    /// CSS class of the marks, from the owner of the method.
    pub(super) class: &'static str,
    pub(super) about: &'a str,
}

/// Time axis of a plot, in seconds.
struct Axis {
    most: f64,
    step: f64,
}

/// Writes the chart of one state, with its reference.
pub(super) fn chart(
    state: HostState,
    rows: &[Row<'_>],
    reference: Option<(f64, &str)>,
    out: &mut dyn Write,
) -> fmt::Result {
    let axis = Axis::of(rows, reference.map(|(seconds, _)| seconds));
    let limit = if state == HostState::Cold { "× ideal" } else { "× native" };
    write!(
        out,
        "<div class=\"wide\"><table class=\"chart\" data-state=\"{state}\">\n<thead><tr><th scope=\"col\">{state} host</th>\
         <th class=\"plot\" aria-hidden=\"true\">"
    )?;
    axis.labels(reference, out)?;
    writeln!(
        out,
        "</th><th scope=\"col\" class=\"seconds\">seconds</th><th scope=\"col\" class=\"spread\">least–most</th>\
         <th scope=\"col\" class=\"times\">{limit}</th><th scope=\"col\" class=\"bytes\">MB</th>\
         <th scope=\"col\" class=\"requests\">requests</th></tr></thead>\n<tbody>"
    )?;
    for row in rows {
        row.html(&axis, reference, out)?;
    }
    out.write_str("</tbody></table></div>\n")
}

impl Axis {
    fn of(rows: &[Row<'_>], reference: Option<f64>) -> Self {
        let samples =
            rows.iter().filter(|row| number(row.cell).is_some()).flat_map(|row| &row.cell.samples);
        let times = samples.map(|sample| sample.seconds).chain(reference);
        let most = times.filter(|seconds| seconds.is_finite()).fold(0.0_f64, f64::max);
        let most = if most > 0.0 { most } else { 1.0 };
        // Step of 1, 2 or 5 times a power of ten, which yields three to eight ticks.
        let power = 10.0_f64.powf((most / 8.0).log10().floor());
        let step =
            [1.0, 2.0, 5.0, 10.0].map(|n| n * power).into_iter().find(|step| most / step <= 8.0);
        Self { most, step: step.unwrap_or(most) }
    }

    /// Returns the position of a time on the axis, in percent of the width.
    fn place(&self, seconds: f64) -> f64 {
        let place = seconds / self.most * WIDTH;
        if place.is_finite() { place.clamp(0.0, 100.0) } else { 100.0 }
    }

    fn ticks(&self) -> impl Iterator<Item = f64> {
        (0..=8_u32).map(|n| f64::from(n) * self.step).filter(|at| *at <= self.most * 1.001)
    }

    fn labels(&self, reference: Option<(f64, &str)>, out: &mut dyn Write) -> fmt::Result {
        let digits = if self.step >= 1.0 {
            0
        } else if self.step >= 0.1 {
            1
        } else if self.step >= 0.01 {
            2
        } else {
            3
        };
        out.write_str("<svg role=\"presentation\">")?;
        let named = reference.map(|(seconds, _)| self.place(seconds));
        for at in self.ticks() {
            let place = self.place(at);
            let label = if at > 0.0 { format!("{at:.digits$} s") } else { "0".to_owned() };
            // No tick label where the name of the reference goes.
            if named.is_none_or(|named| (named - place).abs() > 6.0) {
                write!(out, "<text class=\"tick\" x=\"{place:.2}%\" y=\"17\">{label}</text>")?;
            }
        }
        if let (Some((_, name)), Some(place)) = (reference, named) {
            let anchor = if place > 90.0 { "end" } else { "middle" };
            write!(
                out,
                "<text class=\"reference-name\" x=\"{place:.2}%\" y=\"17\" text-anchor=\"{anchor}\">{name}</text>"
            )?;
        }
        out.write_str("</svg>")
    }
}

impl Row<'_> {
    fn html(
        &self,
        axis: &Axis,
        reference: Option<(f64, &str)>,
        out: &mut dyn Write,
    ) -> fmt::Result {
        let (name, about) = (Escaped(&self.cell.method), Escaped(self.about));
        let Some(seconds) = number(self.cell) else {
            let why = self.cell.failure.as_deref().unwrap_or("not measured");
            return writeln!(
                out,
                "<tr class=\"failed\"><th scope=\"row\" title=\"{about}\">{name}</th>\
                 <td class=\"failed\" colspan=\"6\">failed: {}</td></tr>",
                Escaped(why)
            );
        };
        let class = self.class;
        write!(
            out,
            "<tr><th scope=\"row\" class=\"{class}\" title=\"{about}\">{name}</th><td class=\"plot\">"
        )?;
        self.plot(axis, seconds, reference, out)?;
        let ratio = self.cell.ratio.map_or(NOTHING.to_owned(), |ratio| format!("{ratio:.2}"));
        writeln!(
            out,
            "</td><td>{:.3}</td><td>{:.3}–{:.3}</td><td>{ratio}</td><td>{}</td><td>{}</td></tr>",
            seconds.median,
            seconds.least,
            seconds.most,
            self.median(|sample| as_f64(sample.bytes) / 1e6, 1),
            self.median(|sample| as_f64(sample.requests), 0),
        )
    }

    fn median(&self, of: impl Fn(&Sample) -> f64, digits: usize) -> String {
        let spread = Spread::of(self.cell.samples.iter().map(of));
        spread.map_or(NOTHING.to_owned(), |spread| format!("{:.digits$}", spread.median))
    }

    fn plot(
        &self,
        axis: &Axis,
        seconds: Spread,
        reference: Option<(f64, &str)>,
        out: &mut dyn Write,
    ) -> fmt::Result {
        let (class, number) = (self.class, self.cell.samples.len());
        let name = Escaped(&self.cell.method);
        write!(
            out,
            "<svg role=\"img\" aria-label=\"{name}: {number} samples, median {:.3} s\">",
            seconds.median
        )?;
        for at in axis.ticks() {
            upright(out, "grid", axis.place(at), (0, 26))?;
        }
        if let Some((at, _)) = reference {
            upright(out, "reference", axis.place(at), (0, 26))?;
        }
        let (least, most) = (axis.place(seconds.least), axis.place(seconds.most));
        write!(
            out,
            "<line class=\"whisker {class}\" x1=\"{least:.2}%\" x2=\"{most:.2}%\" y1=\"13\" y2=\"13\"/>"
        )?;
        for sample in self.cell.samples.iter().take(MARKS_MAX) {
            mark(out, class, axis.place(sample.seconds), sample.seconds)?;
        }
        upright(out, &format!("median {class}"), axis.place(seconds.median), (4, 22))?;
        out.write_str("</svg>")
    }
}

fn upright(out: &mut dyn Write, class: &str, x: f64, (from, to): (u8, u8)) -> fmt::Result {
    write!(out, "<line class=\"{class}\" x1=\"{x:.2}%\" x2=\"{x:.2}%\" y1=\"{from}\" y2=\"{to}\"/>")
}

/// Draws one sample: a circle for inlay, a square for other methods.
fn mark(out: &mut dyn Write, class: &str, x: f64, seconds: f64) -> fmt::Result {
    let title = format!("<title>{seconds:.3} s</title>");
    match class {
        "inlay" => write!(
            out,
            "<circle class=\"dot {class}\" cx=\"{x:.2}%\" cy=\"13\" r=\"4\">{title}</circle>"
        ),
        _ => write!(
            out,
            "<svg x=\"{x:.2}%\" y=\"13\"><rect class=\"dot {class}\" x=\"-3.5\" y=\"-3.5\" width=\"7\" height=\"7\">{title}</rect></svg>"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_has_some_round_ticks() {
        for most in [0.0004, 0.09, 0.8, 1.0, 7.9, 8.1, 123.0, 5e6] {
            let cell = Cell {
                link: String::new(),
                scenario: String::new(),
                method: String::new(),
                state: HostState::Cold,
                samples: Vec::new(),
                seconds: None,
                ratio: None,
                failure: None,
            };
            let axis = Axis::of(&[Row { cell: &cell, class: "inlay", about: "" }], Some(most));
            let ticks = axis.ticks().count();
            assert!((3..=9).contains(&ticks), "{most}: {ticks}");
            assert!((axis.place(most) - WIDTH).abs() < 1e-9);
        }
        let axis = Axis { most: 1.0, step: 0.2 };
        assert!(axis.place(f64::NAN).is_finite() && axis.place(f64::INFINITY) <= 100.0);
    }
}
