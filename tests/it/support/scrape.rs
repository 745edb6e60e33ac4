//! A scrape of the metrics endpoint, and a parser of Prometheus's text format that takes nothing but what is allowed.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use super::pooler::Pooler;
use super::wait::{PATIENCE, wait_until};

type Labels = BTreeMap<String, String>;

/// What was answered to one request.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

/// Where a pooler with `metrics_listen` says that it serves them.
#[track_caller]
pub fn endpoint(pooler: &Pooler) -> SocketAddr {
    let said = || {
        let log = pooler.log();
        let (_, rest) = log.split_once("metrics at http://")?;
        Some(rest.split_once('/')?.0.to_owned())
    };
    wait_until("it says where", || said().is_some());
    said().unwrap().parse().unwrap()
}

/// Sends these bytes and reads until the end.
#[track_caller]
pub fn exchange(address: SocketAddr, request: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").expect("a head");
    let line = head.strip_prefix("HTTP/1.1 ").expect("a status line");
    let length = format!("Content-Length: {}", body.len());
    assert!(head.lines().any(|line| line == length), "{head}");
    Answer {
        status: line[..3].parse().unwrap(),
        head: head.to_owned(),
        body: body.to_owned(),
    }
}

/// Every sample of one scrape.
#[derive(Debug)]
pub struct Scrape(BTreeMap<String, Vec<(Labels, f64)>>);

impl Scrape {
    #[track_caller]
    pub fn of(pooler: &Pooler) -> Scrape {
        let request = b"GET /metrics HTTP/1.1\r\nHost: pooler\r\nAccept: text/plain\r\n\r\n";
        let answer = exchange(endpoint(pooler), request);
        assert_eq!(answer.status, 200, "{answer:?}");
        let kind = "Content-Type: text/plain; version=0.0.4; charset=utf-8";
        assert!(
            answer.head.lines().any(|line| line == kind),
            "{}",
            answer.head
        );
        parse(&answer.body)
    }

    /// The samples of this name that have these labels, among others.
    pub fn all(&self, name: &str, wanted: &[(&str, &str)]) -> Vec<&(Labels, f64)> {
        let has = |labels: &Labels, (name, value): &(&str, &str)| {
            labels.get(*name).is_some_and(|other| other == value)
        };
        let samples = self.0.get(name).into_iter().flatten();
        samples
            .filter(|(labels, _)| wanted.iter().all(|one| has(labels, one)))
            .collect()
    }

    /// The value of the only such sample.
    #[track_caller]
    pub fn value(&self, name: &str, wanted: &[(&str, &str)]) -> f64 {
        let found = self.all(name, wanted);
        assert_eq!(found.len(), 1, "{name} {wanted:?}: {found:?}");
        found[0].1
    }

    /// The sum of all such samples.
    pub fn sum(&self, name: &str, wanted: &[(&str, &str)]) -> f64 {
        self.all(name, wanted).iter().map(|(_, value)| value).sum()
    }
}

/// A text line by line: every family has its help, its kind and then its samples, each with labels of its own, and
/// every histogram adds up.
#[track_caller]
fn parse(text: &str) -> Scrape {
    assert!(text.ends_with('\n'));
    let (mut samples, mut families) = (BTreeMap::<String, Vec<_>>::new(), BTreeSet::new());
    let mut family = (String::new(), String::new());
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, words) = help.split_once(' ').expect("a help");
            assert!(is_name(name) && !words.is_empty(), "{line}");
            assert!(families.insert(name.to_owned()), "twice: {line}");
            let kind = lines
                .next()
                .and_then(|line| line.strip_prefix(&format!("# TYPE {name} ")));
            let kind = kind.unwrap_or_else(|| panic!("no type behind {line}"));
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{kind}");
            family = (name.to_owned(), kind.to_owned());
            continue;
        }
        let (name, labels, value) = sample(line);
        let of_family: &[&str] = match &*family.1 {
            "histogram" => &["_bucket", "_sum", "_count"],
            _ => &[""],
        };
        let suffix = name.strip_prefix(&family.0);
        assert!(
            suffix.is_some_and(|suffix| of_family.contains(&suffix)),
            "{line}"
        );
        assert!(family.1 == "gauge" || value >= 0.0, "{line}");
        let same: &mut Vec<(Labels, f64)> = samples.entry(name).or_default();
        assert!(same.iter().all(|(other, _)| *other != labels), "{line}");
        same.push((labels, value));
    }
    check_histograms(&samples);
    Scrape(samples)
}

fn check_histograms(samples: &BTreeMap<String, Vec<(Labels, f64)>>) {
    for (name, buckets) in samples {
        let Some(family) = name.strip_suffix("_bucket") else {
            continue;
        };
        let mut by_labels = BTreeMap::<Labels, Vec<(f64, f64)>>::new();
        for (labels, count) in buckets {
            let mut labels = labels.clone();
            let bound = labels.remove("le").expect("a bound").parse().unwrap();
            by_labels.entry(labels).or_default().push((bound, *count));
        }
        for (labels, buckets) in by_labels {
            let rises = |pair: &[(f64, f64)]| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1;
            assert!(buckets.windows(2).all(rises), "{labels:?} {buckets:?}");
            let of = |suffix| {
                let all = &samples[&format!("{family}{suffix}")];
                all.iter().find(|(own, _)| *own == labels).unwrap().1
            };
            assert_eq!(*buckets.last().unwrap(), (f64::INFINITY, of("_count")));
            assert!(of("_count") > 0.0 || of("_sum") == 0.0, "{labels:?}");
        }
    }
}

/// `name{label="value",...} number`
#[track_caller]
fn sample(line: &str) -> (String, Labels, f64) {
    let end = line.find(['{', ' ']).expect("a name");
    let (name, mut rest) = line.split_at(end);
    assert!(is_name(name), "{line}");
    let mut labels = Labels::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        loop {
            let (label, value) = rest.split_once("=\"").expect("a label");
            assert!(is_name(label) && !label.contains(':'), "{line}");
            let (value, behind) = unquoted(value);
            assert!(labels.insert(label.to_owned(), value).is_none(), "{line}");
            match behind.split_at(1) {
                (",", more) => rest = more,
                ("}", end) => break rest = end,
                _ => panic!("{line}"),
            }
        }
    }
    let number = rest.strip_prefix(' ').expect("a blank");
    let is_number = number
        .chars()
        .all(|c| c.is_ascii_digit() || ".-".contains(c));
    assert!(is_number, "{line}");
    (name.to_owned(), labels, number.parse().unwrap())
}

/// The value up to its closing quote, and what comes behind that.
fn unquoted(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &text[at + 1..]),
            '\\' => value.push(match chars.next() {
                Some((_, '\\')) => '\\',
                Some((_, '"')) => '"',
                Some((_, 'n')) => '\n',
                other => panic!("no escape: {other:?}"),
            }),
            c => value.push(c),
        }
    }
    panic!("no end: {text}");
}

fn is_name(text: &str) -> bool {
    let letter = |c: char| c.is_ascii_alphabetic() || "_:".contains(c);
    text.starts_with(letter) && text.chars().all(|c| letter(c) || c.is_ascii_digit())
}
