//! What people want to know of a certificate.

use rustls_pki_types::UnixTime;
use serde::Serialize;

/// A certificate in words. Never holds a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct CertificateSummary {
    /// Distinguished name, RFC 4514 style.
    pub subject: String,
    /// Distinguished name of the issuer.
    pub issuer: String,
    /// DNS names, IP addresses, URIs and e-mail addresses, each with its kind (`DNS:billing`).
    pub names: Vec<String>,
    /// Serial number in lower-case hex, colons between bytes.
    pub serial: String,
    /// SHA-256 of the DER in lower-case hex.
    pub fingerprint: String,
    /// `sha256/BASE64` of the SubjectPublicKeyInfo, the form that `pins` takes.
    pub pin: String,
    /// Key algorithm, for example `ECDSA P-256`.
    pub key: String,
    /// Seconds since 1970.
    pub not_before: i64,
    /// Seconds since 1970.
    pub not_after: i64,
}

impl CertificateSummary {
    /// Reads a DER certificate.
    ///
    /// # Errors
    /// Says what is wrong with the DER.
    pub(crate) fn of(der: &[u8]) -> Result<Self, String> {
        let _ = der;
        Err("not yet".into())
    }

    /// Whole days until `not_after`, negative once it has passed.
    pub(crate) fn days_left(&self, now: UnixTime) -> i64 {
        (self.not_after - now.as_secs() as i64).div_euclid(86_400)
    }
}
