//! See `fabric_tests::fuzz::uri_and_config`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fabric_tests::fuzz::uri_and_config(data));
