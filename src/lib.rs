//! tlsward: plain TCP in, verified mutual TLS out.
#![allow(dead_code, unused_imports, unreachable_pub, reason = "skeleton")]

pub mod config;
mod demo;
pub mod failure;
mod material;
mod metrics;
mod source;
mod status;
mod tls;
