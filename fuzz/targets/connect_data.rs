//! See `fabric_tests::fuzz::connect_data`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fabric_tests::fuzz::connect_data(data));
