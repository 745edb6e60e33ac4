//! The command line.

use crate::base::limit::SCRAM_ITERATIONS;
use crate::config::reference_toml;
use crate::process::{self, Options};
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
    /// Print a line for userlist.txt with the SCRAM-SHA-256 secret of a password.
    ScramVerifier {
        /// The user's name.
        user: String,
        /// The password; everybody who can list processes sees it here. Without it: asked for, or the first line of
        /// standard input.
        password: Option<String>,
        /// Take the password from the first line of this file.
        #[arg(long, value_name = "FILE", conflicts_with = "password")]
        password_file: Option<PathBuf>,
        /// PBKDF2 iterations (PostgreSQL's scram_iterations).
        #[arg(long, value_name = "N", default_value_t = SCRAM_ITERATIONS, value_parser = clap::value_parser!(u32).range(1..))]
        iterations: u32,
    },
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
        Command::ScramVerifier {
            user,
            password,
            password_file,
            iterations,
        } => {
            let line =
                process::scram_user_line(&user, password, password_file.as_deref(), iterations);
            finish(line.map(|line| println!("{line}")))
        }
    }
}

fn finish<E: std::error::Error>(result: Result<(), E>) -> ExitCode {
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
