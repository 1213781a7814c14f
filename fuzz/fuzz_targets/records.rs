//! What an upstream sends, in the handshake and after it.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tlsward::fuzzing::upstream_bytes(bytes));
