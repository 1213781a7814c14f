//! tlsward: plain TCP in, verified mutual TLS out.

mod admin;
mod app;
mod check;
mod cli;
mod clock;
pub mod config;
mod control;
mod demo;
pub mod failure;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod material;
mod metrics;
mod probe;
mod proxy;
mod route;
mod shutdown;
mod signal;
mod source;
mod status;
mod table;
mod telemetry;
mod tls;
mod unix_socket;

pub use cli::main;
