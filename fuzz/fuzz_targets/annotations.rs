//! Annotations of Kubernetes Services, beside a configuration file.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tlsward::fuzzing::annotations(bytes));
