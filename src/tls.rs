//! From bytes of certificates and keys, and from the configured policy, to a ready
//! [`rustls::ClientConfig`]. No I/O and no clock: bytes, the time and the crypto provider are
//! arguments.

pub(crate) mod client_config;
pub(crate) mod identity;
pub(crate) mod pem;
pub(crate) mod summary;
pub(crate) mod tickets;
pub(crate) mod trust;
pub(crate) mod verifier;
