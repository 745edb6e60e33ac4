//! Seeded simulation of the pool over many shards: no threads, no clock, every run repeatable.
//!
//! `SIM_SEED=n` replays one seed, `SIM_SEEDS=n` runs that many; a failure prints its seed.

mod chaos;
mod model;
mod random;
mod threads;
mod timeline;
mod world;
