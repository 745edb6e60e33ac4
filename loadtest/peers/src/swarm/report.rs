//! What a worker measured, on its way to the parent, and what the parent makes of it.

use hdrhistogram::Histogram;
use std::fmt::Write;

/// Latencies up to a minute, to three digits.
const NANOS_MAX: u64 = 60_000_000_000;

/// What was measured in one window.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Nanoseconds from when a transaction was due to its answer.
    pub latency: Histogram<u64>,
    /// Nanoseconds from when a transaction was due to when it was sent.
    pub lag: Histogram<u64>,
    /// Transactions answered with an error, or lost.
    pub failed: u64,
    /// Transactions due in the window that had no answer when the patience was over; they count with the latency they had by then.
    pub unanswered: u64,
    /// What the first failure was.
    pub failure: String,
}

impl Default for Report {
    fn default() -> Report {
        let empty =
            || Histogram::new_with_max(NANOS_MAX, 3).expect("the range and digits are valid");
        Report {
            latency: empty(),
            lag: empty(),
            failed: 0,
            unanswered: 0,
            failure: String::new(),
        }
    }
}

impl Report {
    /// Counts one transaction.
    pub fn record(&mut self, due: u64, sent: u64, answered: u64) {
        self.latency.saturating_record(answered.saturating_sub(due));
        self.lag.saturating_record(sent.saturating_sub(due));
    }

    /// Counts a failure.
    pub fn fail(&mut self, why: &str) {
        self.failed += 1;
        if self.failure.is_empty() {
            self.failure = why.replace(['\n', '\r'], " ");
        }
    }

    /// As lines for the parent, up to and with `end`.
    pub fn lines(&self) -> String {
        let mut out = format!(
            "counts {} {}\nfailure {}\n",
            self.failed, self.unanswered, self.failure
        );
        for (name, histogram) in [("latency", &self.latency), ("lag", &self.lag)] {
            for value in histogram.iter_recorded() {
                let _ = writeln!(
                    out,
                    "{name} {} {}",
                    value.value_iterated_to(),
                    value.count_at_value()
                );
            }
        }
        out + "end\n"
    }

    /// Adds one line of another report.
    pub fn add_line(&mut self, line: &str) {
        let (name, rest) = line.split_once(' ').unwrap_or((line, ""));
        let numbers = || {
            let (first, second) = rest.split_once(' ')?;
            Some((first.parse().ok()?, second.parse().ok()?))
        };
        match (name, numbers()) {
            ("counts", Some((failed, unanswered))) => {
                self.failed += failed;
                self.unanswered += unanswered;
            }
            ("latency", Some((value, count))) => self.latency.saturating_record_n(value, count),
            ("lag", Some((value, count))) => self.lag.saturating_record_n(value, count),
            ("failure", _) if self.failure.is_empty() => self.failure = rest.to_owned(),
            _ => {}
        }
    }

    /// As JSON; times in microseconds.
    pub fn json(&self, seconds: f64) -> String {
        let micros = |nanos: u64| nanos as f64 / 1000.0;
        let at = |quantile| micros(self.latency.value_at_quantile(quantile));
        let count = self.latency.len();
        format!(
            "{{\"transactions\": {count}, \"failed\": {}, \"unanswered\": {}, \"failure\": {:?}, \"window_s\": {seconds}, \
             \"tps\": {:.1}, \"latency_avg_us\": {:.1}, \"latency_p50_us\": {:.1}, \"latency_p90_us\": {:.1}, \
             \"latency_p99_us\": {:.1}, \"latency_p999_us\": {:.1}, \"latency_max_us\": {:.1}, \"lag_avg_us\": {:.1}, \
             \"lag_p99_us\": {:.1}}}",
            self.failed,
            self.unanswered,
            self.failure
                .replace(|c: char| !c.is_ascii_graphic() && c != ' ', "?"),
            count as f64 / seconds,
            self.latency.mean() / 1000.0,
            at(0.5),
            at(0.9),
            at(0.99),
            at(0.999),
            micros(self.latency.max()),
            self.lag.mean() / 1000.0,
            micros(self.lag.value_at_quantile(0.99)),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_survives_its_way_to_the_parent() {
        let mut report = Report::default();
        (1..1000).for_each(|n| report.record(0, n * 10, n * 1000));
        report.fail("first");
        report.fail("second");
        let mut merged = Report::default();
        report
            .lines()
            .lines()
            .for_each(|line| merged.add_line(line));
        assert_eq!(merged, report);
        report
            .lines()
            .lines()
            .for_each(|line| merged.add_line(line));
        assert_eq!((merged.latency.len(), merged.failed), (1998, 4));
        assert!(merged.json(2.0).contains("\"tps\": 999.0"));
    }
}
