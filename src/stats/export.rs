//! Prometheus's text exposition format, version 0.0.4:
//! <https://prometheus.io/docs/instrumenting/exposition_formats/>.

use super::steps::Steps;
use std::fmt::{Display, Write as _};

/// What a family's numbers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only rises, from the start of the process on.
    Counter,
    /// Rises and falls.
    Gauge,
    /// Counts below bounds, with their sum.
    Histogram,
}

impl Kind {
    const fn word(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }
}

/// Name and value of a label; the value may be any text.
pub type Label<'a> = (&'a str, &'a str);

/// A text in the making. The caller sees to it that names are valid, each family begins once, its samples
/// follow at once, and no two of them have the same labels.
#[derive(Debug, Default)]
pub struct Exposition(String);

impl Exposition {
    /// Begins a family. `help` is one line without backslashes.
    pub fn family(&mut self, name: &str, kind: Kind, help: &str) {
        let word = kind.word();
        self.line(format_args!("# HELP {name} {help}\n# TYPE {name} {word}"));
    }

    /// A sample of the family.
    pub fn sample(&mut self, name: &str, labels: &[Label<'_>], value: impl Display) {
        self.0.push_str(name);
        self.labels(labels);
        self.line(format_args!(" {value}"));
    }

    /// A family of one number without labels.
    pub fn single(&mut self, name: &str, kind: Kind, help: &str, value: impl Display) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }

    /// The samples of one histogram of the family; `le` must not be among the labels.
    pub fn histogram(&mut self, name: &str, labels: &[Label<'_>], steps: &Steps) {
        let count = steps.count();
        let bounds = steps.cumulative();
        let named = bounds.map(|(bound, count)| (bound.to_string(), count));
        for (bound, count) in named.chain([("+Inf".to_owned(), count)]) {
            let labels = [labels, &[("le", &bound)]].concat();
            self.sample(&format!("{name}_bucket"), &labels, count);
        }
        self.sample(&format!("{name}_sum"), labels, steps.sum_seconds());
        self.sample(&format!("{name}_count"), labels, count);
    }

    /// The whole text.
    pub fn into_text(self) -> String {
        self.0
    }

    fn labels(&mut self, labels: &[Label<'_>]) {
        for (at, (name, value)) in labels.iter().enumerate() {
            self.0.push(if at == 0 { '{' } else { ',' });
            self.0.push_str(name);
            self.0.push_str("=\"");
            value.chars().for_each(|c| self.escaped(c));
            self.0.push('"');
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
    }

    fn escaped(&mut self, c: char) {
        match c {
            '\\' => self.0.push_str("\\\\"),
            '"' => self.0.push_str("\\\""),
            '\n' => self.0.push_str("\\n"),
            c => self.0.push(c),
        }
    }

    fn line(&mut self, text: std::fmt::Arguments<'_>) {
        writeln!(self.0, "{text}").expect("a string takes everything");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Histogram;

    #[test]
    fn samples_follow_their_family() {
        let mut text = Exposition::default();
        text.family("servers", Kind::Gauge, "Servers open.");
        text.sample("servers", &[("database", "shop"), ("user", "ann")], 3);
        text.single("waits_total", Kind::Counter, "Waits.", 0.25);
        assert_eq!(
            text.into_text(),
            "# HELP servers Servers open.\n# TYPE servers gauge\nservers{database=\"shop\",user=\"ann\"} 3\n\
             # HELP waits_total Waits.\n# TYPE waits_total counter\nwaits_total 0.25\n"
        );
    }

    #[test]
    fn values_of_labels_are_escaped() {
        let mut text = Exposition::default();
        text.sample("x", &[("name", "a\"b\\c\nd\u{e9}}, ")], 1);
        assert_eq!(text.into_text(), "x{name=\"a\\\"b\\\\c\\nd\u{e9}}, \"} 1\n");
    }

    #[test]
    fn histogram_ends_with_infinity_sum_and_count() {
        let histogram = Histogram::default();
        histogram.record(60_000);
        histogram.record(20_000_000_000);
        let mut steps = Steps::default();
        steps.add(&histogram);
        let mut text = Exposition::default();
        text.histogram("wait", &[("user", "ann")], &steps);
        let text = text.into_text();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 17 + 3);
        assert_eq!(
            lines[..2],
            [
                "wait_bucket{user=\"ann\",le=\"0.00005\"} 0",
                "wait_bucket{user=\"ann\",le=\"0.0001\"} 1"
            ]
        );
        assert_eq!(
            lines[16..],
            [
                "wait_bucket{user=\"ann\",le=\"10\"} 1",
                "wait_bucket{user=\"ann\",le=\"+Inf\"} 2",
                "wait_sum{user=\"ann\"} 20.00006",
                "wait_count{user=\"ann\"} 2"
            ]
        );
    }
}
