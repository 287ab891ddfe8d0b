//! See `fabric_tests::fuzz::controller_events`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fabric_tests::fuzz::controller_events(data));
