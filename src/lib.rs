//! tlsward: plain TCP in, verified mutual TLS out.
#![allow(dead_code, unused_imports, unreachable_pub, reason = "skeleton")]

mod admin;
mod clock;
pub mod config;
mod demo;
pub mod failure;
mod material;
mod metrics;
mod proxy;
mod route;
mod shutdown;
mod source;
mod status;
mod telemetry;
mod tls;
