//! tlsward: plain TCP in, verified mutual TLS out.
//!
//! The map, from the top: [`main`] parses arguments (`cli`) and runs `app`, `check`, `probe`,
//! `demo` or a question to the running process (`admin`'s client). `app` makes the parts and waits
//! for their end. `control` is the single writer: what `source` reads and `signal` or `admin` ask
//! comes in as events, is decided without I/O (`control/state.rs`), and goes out as a finished
//! `route` to each listener of `proxy`, and as `status` to whoever reads it. `proxy` is the data
//! path, runs on the threads of `workers` and knows nothing of configuration. All of it stands on `tls` (bytes and policy to a
//! connector), [`config`] (text to a value that cannot be wrong) and [`failure`] (the one
//! vocabulary of what went wrong).
//!
//! `docs/architecture.md` says more, and what is absent on purpose; a test holds its table of
//! imports against this tree. Other programs cannot build on this crate: what is public here is
//! for its own binary and fuzzers.

mod admin;
mod app;
mod check;
mod cli;
mod clock;
mod cluster;
pub mod config;
mod control;
mod convert;
mod demo;
#[cfg(feature = "drivers")]
#[doc(hidden)]
pub mod drivers;
pub mod failure;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
#[cfg(feature = "kubernetes")]
mod kubernetes;
#[cfg(not(feature = "kubernetes"))]
#[path = "kubernetes/absent.rs"]
mod kubernetes;
mod limits;
mod manual;
mod material;
mod metrics;
mod mountinfo;
mod probe;
mod proxy;
mod rbac;
mod route;
mod sandbox;
mod shutdown;
mod signal;
mod source;
mod status;
mod systemd;
mod table;
mod telemetry;
mod tls;
mod unix_socket;
mod workers;

pub use cli::main;
