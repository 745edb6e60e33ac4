//! `nullserver`: see [`ringbouncer_peers::nullserver`].

use clap::Parser;
use ringbouncer_peers::files;
use ringbouncer_peers::nullserver::{Answers, listen, serve};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

/// Answers every query at once with the same row, to everybody. Prints `ready tcp=ADDRESS:PORT pid=PID` when it listens.
#[derive(Parser)]
struct Arguments {
    /// Where to listen; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Threads, each with a listener of its own.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Bytes of the one column of the one row.
    #[arg(long, default_value_t = 1)]
    answer_bytes: usize,
}

fn main() -> io::Result<()> {
    let arguments = Arguments::parse();
    files::allow(1 << 20);
    let first = listen(arguments.listen)?;
    let address = first.local_addr()?;
    let mut listeners = vec![first];
    for _ in 1..arguments.threads {
        listeners.push(listen(address)?);
    }
    println!("ready tcp={address} pid={}", std::process::id());
    let answers = Arc::new(Answers::new(arguments.answer_bytes));
    let threads: Vec<_> = listeners
        .into_iter()
        .map(|listener| {
            let answers = answers.clone();
            std::thread::spawn(move || serve(&listener, &answers))
        })
        .collect();
    threads.into_iter().try_for_each(|thread| {
        thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("a thread panicked")))
    })
}
