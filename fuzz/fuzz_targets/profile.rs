//! Fuzzes `entries::profile`.
#![no_main]

#[path = "../entries/mod.rs"]
#[allow(dead_code, reason = "each target uses one of the entries")]
mod entries;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| entries::profile::run(bytes));
