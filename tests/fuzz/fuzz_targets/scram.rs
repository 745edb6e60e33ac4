//! The target `scram` under libFuzzer.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| ringbouncer_fuzz::scram(data));
