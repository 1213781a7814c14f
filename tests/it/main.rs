//! The built program against real sockets, real servers and a programmable upstream: one binary,
//! a module per behaviour. Each test's name is a claim of the contract with users.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests play the operator: they write and read files, start tasks and programs, and fail by panicking"
)]

mod support;
