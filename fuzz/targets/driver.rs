//! See `fabric_tests::fuzz::driver`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fabric_tests::fuzz::driver(data));
