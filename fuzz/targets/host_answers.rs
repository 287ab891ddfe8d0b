//! See `fabric_tests::fuzz::host_answers`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fabric_tests::fuzz::host_answers(data));
