//! Starts the workers, passes commands on, merges answers.

use super::now_nanos;
use super::options::{Drive, Options, nanos};
use super::report::Report;
use crate::files;
use std::io::{self, BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

/// Descriptors of a worker that are not connections.
const SPARE_FILES: u64 = 50;
/// From a command to the moment at which all workers begin.
const START_NANOS: u64 = 100_000_000;

struct Worker {
    child: Child,
    orders: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

/// Runs the swarm until stdin ends.
///
/// # Errors
/// If a worker cannot be started or ends too soon.
pub fn run(options: &Options) -> io::Result<()> {
    let limit = files::allow(1 << 20);
    let per_process = usize::try_from(limit.saturating_sub(SPARE_FILES))
        .unwrap_or(usize::MAX)
        .max(1);
    let processes = options
        .processes
        .unwrap_or_else(|| options.clients.div_ceil(per_process))
        .max(1);
    let mut workers = Vec::new();
    for number in 0..processes {
        workers.push(start(options, number, processes)?);
    }
    holding(options, limit, &mut workers)?;
    for line in io::stdin().lock().lines() {
        let line = line?;
        match line.split_once(' ').unwrap_or((&line, "")) {
            ("quit", _) => break,
            ("check", _) => check(&mut workers)?,
            ("drive", words) => match Drive::parse(words) {
                Ok(drive) => drive_all(&mut workers, drive)?,
                Err(problem) => say(&format!("error {problem}"))?,
            },
            (other, _) => say(&format!("error unknown command {other}"))?,
        }
    }
    for mut worker in workers {
        drop(worker.orders);
        worker.child.wait()?;
    }
    Ok(())
}

/// The part of `whole` that falls to one of `parts`.
fn share(whole: usize, part: usize, parts: usize) -> usize {
    whole * (part + 1) / parts - whole * part / parts
}

fn start(options: &Options, number: usize, processes: usize) -> io::Result<Worker> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args([
            "--connect",
            &options.connect.to_string(),
            "--user",
            &options.user,
        ])
        .args(["--database", &options.database, "--query", &options.query])
        .args([
            "--clients",
            &share(options.clients, number, processes).to_string(),
        ])
        .args([
            "--connecting",
            &share(options.connecting, number, processes)
                .max(1)
                .to_string(),
        ])
        .args([
            "--worker",
            &number.to_string(),
            "--processes",
            &processes.to_string(),
        ])
        .args(options.tls.then_some("--tls"));
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let (Some(orders), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(io::Error::other("a worker has no pipes"));
    };
    Ok(Worker {
        child,
        orders,
        answers: BufReader::new(answers).lines(),
    })
}

impl Worker {
    fn answer(&mut self) -> io::Result<String> {
        let gone = || io::Error::other("a worker has ended");
        self.answers.next().unwrap_or_else(|| Err(gone()))
    }
}

fn holding(options: &Options, limit: u64, workers: &mut [Worker]) -> io::Result<()> {
    let (mut clients, mut obstacle) = (0, String::new());
    for worker in &mut *workers {
        let line = worker.answer()?;
        let mut words = line.splitn(3, ' ').skip(1);
        clients += words
            .next()
            .and_then(|count| count.parse().ok())
            .unwrap_or(0);
        if let Some(text) = words.next().filter(|text| !text.is_empty()) {
            obstacle = text.to_owned();
        }
    }
    say(&format!(
        "holding {{\"clients\": {clients}, \"wanted\": {}, \"processes\": {}, \"files_per_process_max\": {limit}, \"obstacle\": {obstacle:?}}}",
        options.clients,
        workers.len(),
    ))
}

fn check(workers: &mut [Worker]) -> io::Result<()> {
    let mut alive = 0;
    for worker in workers {
        writeln!(worker.orders, "check")?;
        let line = worker.answer()?;
        alive += line
            .strip_prefix("alive ")
            .and_then(|count| count.parse().ok())
            .unwrap_or(0usize);
    }
    say(&format!("alive {alive}"))
}

fn drive_all(workers: &mut [Worker], mut drive: Drive) -> io::Result<()> {
    drive.start_nanos = now_nanos() + START_NANOS;
    let parts = workers.len();
    for (part, worker) in workers.iter_mut().enumerate() {
        let clients = share(drive.clients, part, parts);
        let rate = drive.rate * clients as f64 / drive.clients as f64;
        writeln!(
            worker.orders,
            "drive {}",
            Drive {
                clients,
                rate,
                ..drive
            }
            .words()
        )?;
    }
    let window = drive.window();
    sleep_until(window.0);
    say("open")?;
    sleep_until(window.1);
    say("close")?;
    let mut report = Report::default();
    for worker in workers {
        loop {
            let line = worker.answer()?;
            if line == "end" {
                break;
            }
            report.add_line(&line);
        }
    }
    say(&format!(
        "result {}",
        report.json(nanos(drive.seconds) as f64 / 1e9)
    ))
}

fn sleep_until(moment: u64) {
    std::thread::sleep(Duration::from_nanos(moment.saturating_sub(now_nanos())));
}

fn say(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_add_up() {
        for parts in 1..7 {
            assert_eq!(
                (0..parts)
                    .map(|part| share(100, part, parts))
                    .sum::<usize>(),
                100
            );
        }
    }
}
