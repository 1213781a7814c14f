//! From bytes of certificates and keys, and from the configured policy, to a ready
//! [`Connector`](client_config::Connector). No I/O and no clock: bytes, the time and the crypto provider are
//! arguments. (The age of resumable sessions and of remembered verdicts is measured by the
//! monotonic clock.)

pub(crate) mod client_config;
pub(crate) mod identity;
pub(crate) mod names;
mod pem;
pub(crate) mod summary;
pub(crate) mod tickets;
pub(crate) mod trust;
pub(crate) mod verifier;

#[cfg(test)]
pub(crate) mod test_pki;
