//! The target `sql` under libFuzzer.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| ringbouncer_fuzz::sql(data));
