//! The built program against real sockets, real servers and a programmable upstream: one binary,
//! a module per behaviour. Each test's name is a claim of the contract with users.
//!
//! Needed beside Rust, on Debian: `nginx openssl redis-server redis-tools nghttp2-server
//! gnutls-bin golang-go default-jdk-headless iproute2 util-linux systemd
//! python3 bash stunnel4 libnginx-mod-stream`. A missing program fails the test that needs it.
//!
//! `KUBEBUILDER_ASSETS` names the directory of a real `kube-apiserver` and `etcd`, against which
//! what is said of Kubernetes is tested then (`support/kube/mod.rs` says more).
//! `TLSWARD_TEST_BULK_GIB` scales the bulk transfers (default 1).
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests play the operator: they write and read files, start tasks and programs, and fail by panicking"
)]

mod admin;
mod cli;
mod convert;
mod credentials;
mod deploy;
mod drain;
mod failures;
mod half_close;
mod handshakes;
mod interop;
mod journal;
mod key_memory;
mod kit;
#[cfg(feature = "kubernetes")]
mod kube_server;
#[cfg(feature = "kubernetes")]
mod kubernetes;
mod limits;
mod mtls;
mod real_servers;
mod reload;
mod resumption;
mod rotation;
mod sandbox;
mod sidecar;
mod support;
mod systemd;
mod workers;
