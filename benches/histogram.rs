//! What recording costs, in nanoseconds per call: `cargo bench --bench histogram`. Without the
//! `--bench` flag that `cargo bench` passes (as under `cargo test --benches`) it only proves that
//! it runs.

use std::hint::black_box;
use std::time::Instant;

use ringbouncer::stats::{Counter, Histogram};

const ROUNDS: usize = 7;

fn main() {
    let measuring = std::env::args().any(|argument| argument == "--bench");
    let calls = if measuring { 20_000_000 } else { 1_000 };
    let latencies = latencies();

    let histogram = Histogram::default();
    report("Histogram::record", calls, |i| {
        histogram.record(latencies[i % latencies.len()])
    });
    assert_eq!(histogram.count(), (calls * ROUNDS) as u64);

    let counter = Counter::default();
    report("Counter::inc", calls, |_| black_box(&counter).inc());
    assert_eq!(counter.load(), (calls * ROUNDS) as u64);

    let mut reference = hdrhistogram::Histogram::<u64>::new_with_bounds(1, 1 << 42, 2).unwrap();
    report("hdrhistogram saturating_record", calls, |i| {
        reference.saturating_record(latencies[i % latencies.len()]);
    });
    report("loop over the latencies alone", calls, |i| {
        black_box(latencies[i % latencies.len()]);
    });
}

/// Prints the median round.
fn report(name: &str, calls: usize, mut call: impl FnMut(usize)) {
    let mut rounds: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            (0..calls).for_each(|i| call(black_box(i)));
            start.elapsed().as_nanos() as f64 / calls as f64
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    println!("{name}: {:.2} ns/op", rounds[ROUNDS / 2]);
}

/// Log-uniform from 1 us to 1 s, so that neither the branch predictor nor one cache line flatters.
fn latencies() -> Box<[u64; 4096]> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    Box::new(std::array::from_fn(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let doubling = state % 20;
        (1_000 << doubling) + (state >> 32) % (1_000 << doubling)
    }))
}
