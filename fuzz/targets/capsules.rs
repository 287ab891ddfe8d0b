//! See `fabric_tests::fuzz::capsules`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fabric_tests::fuzz::capsules(data));
