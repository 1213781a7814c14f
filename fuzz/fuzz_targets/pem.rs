//! Certificate, key, CA and revocation files.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tlsward::fuzzing::pem(bytes));
