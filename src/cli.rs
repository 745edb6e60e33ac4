//! The command line: commands of our own, and PgBouncer's (`ringbouncer [OPTION]... FILE`).

use crate::base::limit::SCRAM_ITERATIONS;
use crate::config::{Config, convert, reference_toml};
use crate::process::{self, Options};
use clap::error::ErrorKind;
use clap::{ArgAction, Args, Parser, Subcommand};
use std::panic;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, abort};

/// A PostgreSQL connection pooler: one io_uring executor per core, one exact pool over all of them.
#[derive(Debug, Parser)]
#[command(name = "ringbouncer", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: Run,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the pooler; the word may be left out.
    Run(Run),
    /// Check a configuration file and the files it names, and say everything that is wrong.
    Check {
        /// The configuration file (TOML, or PgBouncer's).
        file: PathBuf,
    },
    /// Print PgBouncer's configuration file as one of ours, and on standard error what differs.
    Convert {
        /// The configuration file.
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

/// How to run: PgBouncer's options, and the number of shards.
#[derive(Debug, Args)]
struct Run {
    /// The configuration file: TOML if its name ends in .toml, PgBouncer's if it ends in .ini or has a section
    /// [pgbouncer].
    file: Option<PathBuf>,
    /// Run in the background; needs logfile (or syslog) and pidfile.
    #[arg(short, long)]
    daemon: bool,
    /// Do not log to standard error.
    #[arg(short, long)]
    quiet: bool,
    /// Log more; may be given several times.
    #[arg(short, long, action = ArgAction::Count)]
    verbose: u8,
    /// Become this user, over that of the file.
    #[arg(short, long, value_name = "NAME")]
    user: Option<String>,
    /// Restart online: take the place of the process that serves with this file, which goes with its last client.
    #[arg(short = 'R', long)]
    reboot: bool,
    /// Number of shards (cores used), over that of the file; 0 is one per physical core.
    #[arg(long, env = "RINGBOUNCER_SHARDS", value_name = "N")]
    shards: Option<usize>,
}

/// A panic of one thread ends the process, however it was built: a shard that is gone would leave its clients hanging.
fn abort_on_panic() {
    let tell = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        tell(panic);
        abort();
    }));
}

/// Does what the arguments of this process say.
pub fn main() -> ExitCode {
    abort_on_panic();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    match cli.command.unwrap_or(Command::Run(cli.run)) {
        Command::Run(run) => start(run),
        Command::Check { file } => {
            let checked = process::load(&file, None).map(|snapshot| {
                let remarks = snapshot.remarks.iter().map(String::from);
                let ignored = snapshot.config.ignored.iter();
                let ignored = ignored.map(|option| format!("{option} has no effect"));
                for note in remarks.chain(ignored) {
                    eprintln!("{}: {note}", file.display());
                }
                println!("{} is fine", file.display());
            });
            finish(checked)
        }
        Command::Convert { file } => finish(print_converted(&file)),
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

/// Help and version go to standard output; wrong arguments end with PgBouncer's exit code.
fn refuse(error: &clap::Error) -> ExitCode {
    // Nobody reading it is no reason to fail.
    let _ = error.print();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
        _ => hint(),
    }
}

fn hint() -> ExitCode {
    eprintln!("Try \"ringbouncer --help\" for more information.");
    ExitCode::FAILURE
}

fn start(run: Run) -> ExitCode {
    let Some(path) = run.file else {
        eprintln!("ringbouncer: no configuration file specified");
        return hint();
    };
    finish(process::run(&Options {
        path,
        shards: run.shards,
        daemon: run.daemon,
        quiet: run.quiet,
        verbose: run.verbose,
        user: run.user,
        reboot: run.reboot,
    }))
}

fn print_converted(file: &Path) -> Result<(), process::StartError> {
    let config = Config::load(file)?;
    let here = process::working_directory()?;
    let converted = convert(&config, &here);
    print!("{}", converted.toml);
    for difference in converted.differences {
        eprintln!("ringbouncer: {difference}");
    }
    Ok(())
}

fn finish<E: std::error::Error>(result: Result<(), E>) -> ExitCode {
    let Err(error) = result else {
        return ExitCode::SUCCESS;
    };
    let told = error.to_string();
    for line in told.lines() {
        eprintln!("ringbouncer: {line}");
    }
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        let text = error.to_string();
        if !told.contains(&text) {
            eprintln!("  because: {text}");
        }
        cause = error.source();
    }
    ExitCode::FAILURE
}
