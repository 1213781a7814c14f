//! A plan of TLS 1.3 records, to our record layer and to that of rustls.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tlsward::fuzzing::records_as_rustls(bytes));
