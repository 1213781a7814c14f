//! A client certificate chain with a key that provably fits it.

use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::sign::CertifiedKey;
use rustls_pki_types::UnixTime;

use super::summary::CertificateSummary;
use crate::failure::Explained;
use crate::material::IdentityMaterial;

/// A client certificate, its chain and its key. It exists only if the key fits the leaf, the
/// leaf may be used by clients and was valid when it was loaded.
pub(crate) struct Identity {
    pub(crate) key: Arc<CertifiedKey>,
    /// The leaf, then the intermediates as given.
    pub(crate) chain: Vec<CertificateSummary>,
    /// What is odd but not wrong, for the operator.
    pub(crate) warnings: Vec<String>,
}

impl Identity {
    /// Proves that the material is a usable identity at `now`.
    ///
    /// # Errors
    /// [`Reason::BadPem`], [`BadKey`], [`KeyMismatch`], [`Expired`], [`NotYetValid`],
    /// [`WrongUsage`] or [`BadCertificate`], with place and particulars.
    pub(crate) fn parse(
        material: &IdentityMaterial,
        now: UnixTime,
        provider: &CryptoProvider,
    ) -> Result<Self, Explained> {
        let _ = (material, now, provider);
        unimplemented!()
    }

    pub(crate) fn leaf(&self) -> &CertificateSummary {
        &self.chain[0]
    }
}
