//! CA certificates and revocation lists, judged when they are loaded.

use super::summary::CertificateSummary;
use crate::failure::Explained;
use crate::material::TrustMaterial;
use rustls_pki_types::UnixTime;

/// At least one usable trust anchor, and the revocation lists.
pub(crate) struct Trust {
    /// The anchors in use.
    pub(crate) anchors: Vec<CertificateSummary>,
    /// Certificates that were left out, each with the reason.
    pub(crate) left_out: Vec<String>,
    /// The revocation lists in use.
    pub(crate) crls: Vec<CrlSummary>,
}

/// A revocation list in words.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub(crate) struct CrlSummary {
    /// Where it was read from.
    pub place: String,
    /// Distinguished name of the issuer.
    pub issuer: String,
    /// Seconds since 1970.
    pub this_update: i64,
    /// Seconds since 1970, if the list says.
    pub next_update: Option<i64>,
    /// How many certificates it revokes.
    pub revoked: usize,
}

impl Trust {
    /// # Errors
    /// ...
    pub(crate) fn parse(material: &TrustMaterial, now: UnixTime) -> Result<Self, Explained> {
        let _ = (material, now);
        unimplemented!()
    }
}
