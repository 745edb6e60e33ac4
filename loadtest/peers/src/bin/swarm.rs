//! `swarm`: see [`ringbouncer_peers::swarm`].

use clap::Parser;
use ringbouncer_peers::swarm::options::Options;
use ringbouncer_peers::swarm::{parent, worker};

fn main() -> std::io::Result<()> {
    let options = Options::parse();
    match options.worker {
        Some(number) => worker::run(options, number),
        None => parent::run(&options),
    }
}
