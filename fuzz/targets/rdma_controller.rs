//! See `fabric_tests::fuzz::rdma_controller`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fabric_tests::fuzz::rdma_controller(data));
