//! What is fuzzed, as plain functions that panic when a claim does not hold. They run
//!
//! - on stable Rust, for some seconds each, in every CI run, with random mutations of the corpus:
//!   `cargo run --bin fuzz-smoke -- 10` (all targets) or `-- 60 startup` (one). It prints its seed; at the
//!   first panic or hang it prints the input in hexadecimal and fails. `-- replay startup 0000..`
//!   runs one input again, `FUZZ_SEED=n` a whole sequence;
//! - on nightly Rust, guided by coverage, for as long as somebody likes:
//!   `cargo +nightly fuzz run --fuzz-dir tests/fuzz --features libfuzzer startup`.
//!
//! A new target is a function here, a row in [`TARGETS`], a folder of a few small inputs in
//! `corpus/`, and, for libFuzzer, a file in `fuzz_targets/` with its `[[bin]]` in `Cargo.toml`.

mod mutate;
mod parsers;
mod wire;

pub use mutate::{Rng, mutated};
pub use parsers::{certificate, command, config, frame, hba, login, replies, scram, sql, userlist};
pub use wire::{backend, frontend, options, startup};

use std::path::PathBuf;
use std::{fs, io};

/// One thing to fuzz.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name, also of its corpus folder.
    pub name: &'static str,
    /// Panics if `data` breaks what the target claims.
    pub run: fn(data: &[u8]),
}

/// All targets.
pub const TARGETS: &[Target] = &[
    Target {
        name: "startup",
        run: startup,
    },
    Target {
        name: "options",
        run: options,
    },
    Target {
        name: "frontend",
        run: frontend,
    },
    Target {
        name: "backend",
        run: backend,
    },
    Target {
        name: "frame",
        run: frame,
    },
    Target {
        name: "replies",
        run: replies,
    },
    Target {
        name: "sql",
        run: sql,
    },
    Target {
        name: "command",
        run: command,
    },
    Target {
        name: "config",
        run: config,
    },
    Target {
        name: "userlist",
        run: userlist,
    },
    Target {
        name: "hba",
        run: hba,
    },
    Target {
        name: "scram",
        run: scram,
    },
    Target {
        name: "login",
        run: login,
    },
    Target {
        name: "certificate",
        run: certificate,
    },
];

impl Target {
    /// The committed inputs, in the order of their file names.
    ///
    /// # Errors
    /// If the folder is missing, empty or cannot be read.
    pub fn corpus(&self) -> io::Result<Vec<Vec<u8>>> {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus");
        let entries = fs::read_dir(root.join(self.name))?.collect::<io::Result<Vec<_>>>()?;
        let mut paths: Vec<PathBuf> = entries.iter().map(|entry| entry.path()).collect();
        paths.sort();
        if paths.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "empty corpus"));
        }
        paths.iter().map(fs::read).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_committed_input_passes_its_target() {
        for target in TARGETS {
            let corpus = target.corpus().expect(target.name);
            corpus.iter().for_each(|input| (target.run)(input));
        }
    }
}
