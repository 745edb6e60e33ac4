//! The command line.

use crate::config::reference_toml;
use crate::process::{self, Options, StartError};
use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

/// A PostgreSQL connection pooler: one io_uring executor per core, one exact pool over all of them.
#[derive(Debug, Parser)]
#[command(name = "ringbouncer", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the pooler.
    Run {
        /// The configuration file (TOML).
        file: PathBuf,
        /// Number of shards (cores used), over that of the file; 0 is one per physical core.
        #[arg(long, env = "RINGBOUNCER_SHARDS", value_name = "N")]
        shards: Option<usize>,
    },
    /// Check a configuration file and the files it names, and say everything that is wrong.
    Check {
        /// The configuration file (TOML).
        file: PathBuf,
    },
    /// Print every setting with its meaning and default, as a configuration file.
    Defaults,
}

/// Does what the arguments of this process say.
pub fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Run { file, shards } => finish(process::run(&Options { path: file, shards })),
        Command::Check { file } => {
            let checked = process::load(&file).map(|_| println!("{} is fine", file.display()));
            finish(checked)
        }
        Command::Defaults => {
            print!("{}", reference_toml());
            ExitCode::SUCCESS
        }
    }
}

fn finish(result: Result<(), StartError>) -> ExitCode {
    let Err(error) = result else {
        return ExitCode::SUCCESS;
    };
    eprintln!("ringbouncer: {error}");
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        eprintln!("  because: {error}");
        cause = error.source();
    }
    ExitCode::FAILURE
}
