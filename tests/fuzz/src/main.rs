//! `fuzz-smoke SECONDS [TARGET]`, `fuzz-smoke replay TARGET HEX`: see the library.

use ringbouncer_fuzz::{Rng, TARGETS, Target, mutated};
use std::error::Error;
use std::process::exit;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use std::{env, panic, thread};

/// No input, of at most 70,000 bytes, may take longer than this.
const HANG_AFTER: Duration = Duration::from_secs(5);

const USAGE: &str = "usage: fuzz-smoke SECONDS [TARGET] | fuzz-smoke replay TARGET HEX";

/// What runs now, for whoever has to report it.
struct Running {
    target: &'static str,
    input: Vec<u8>,
    since: Option<Instant>,
}

static RUNNING: Mutex<Running> = Mutex::new(Running {
    target: "",
    input: Vec::new(),
    since: None,
});

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    report_panics();
    thread::spawn(report_hangs);
    match args[..] {
        ["replay", name, hex] => replay(target(name)?, hex),
        [seconds] => smoke(seconds.parse()?, TARGETS),
        [seconds, name] => smoke(seconds.parse()?, &[target(name)?]),
        _ => Err(USAGE.into()),
    }
}

/// Runs each of `targets` for so many seconds.
fn smoke(seconds: u64, targets: &[Target]) -> Result<(), Box<dyn Error>> {
    let seed = seed()?;
    println!("FUZZ_SEED={seed}");
    for target in targets {
        let corpus = target
            .corpus()
            .map_err(|e| format!("corpus of {}: {e}", target.name))?;
        let mut rng = Rng::new(seed);
        let end = Instant::now() + Duration::from_secs(seconds);
        let mut inputs = 0_u64;
        corpus.iter().for_each(|input| run(*target, input));
        while Instant::now() < end {
            run(*target, &mutated(&corpus, &mut rng));
            inputs += 1;
        }
        println!("{}: {inputs} inputs, no panic", target.name);
    }
    Ok(())
}

/// Runs one input.
fn replay(target: Target, hex: &str) -> Result<(), Box<dyn Error>> {
    run(target, &unhex(hex)?);
    println!("{}: no panic", target.name);
    Ok(())
}

fn run(target: Target, input: &[u8]) {
    let mut running = running();
    running.target = target.name;
    running.input.clear();
    running.input.extend_from_slice(input);
    running.since = Some(Instant::now());
    drop(running);
    (target.run)(input);
    self::running().since = None;
}

fn running() -> MutexGuard<'static, Running> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

fn report_panics() {
    let default = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        default(info);
        report("panic");
    }));
}

fn report_hangs() {
    loop {
        let now = Instant::now();
        let overdue_at = running().since.unwrap_or(now) + HANG_AFTER;
        if overdue_at <= now {
            report("hang");
            exit(1);
        }
        // What begins meanwhile is overdue later than what runs now.
        thread::sleep(overdue_at - now);
    }
}

fn report(what: &str) {
    let running = running();
    let hex: String = running
        .input
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    eprintln!(
        "{what} in {0}; again: fuzz-smoke replay {0} {hex}",
        running.target
    );
}

fn target(name: &str) -> Result<Target, String> {
    let found = TARGETS.iter().find(|target| target.name == name);
    found.copied().ok_or_else(|| {
        let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
        format!("no target {name}; there are: {}", names.join(", "))
    })
}

fn seed() -> Result<u64, Box<dyn Error>> {
    match env::var("FUZZ_SEED") {
        Ok(seed) => Ok(seed.parse()?),
        Err(_) => Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs()),
    }
}

fn unhex(hex: &str) -> Result<Vec<u8>, Box<dyn Error>> {
    let pairs = hex.as_bytes().chunks(2);
    let byte =
        |pair| -> Result<u8, Box<dyn Error>> { Ok(u8::from_str_radix(str::from_utf8(pair)?, 16)?) };
    pairs.map(byte).collect()
}
