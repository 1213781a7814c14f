//! Configurations of other products.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tlsward::fuzzing::convert(bytes));
