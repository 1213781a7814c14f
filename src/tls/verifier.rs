//! Verification of the server's certificate.
//!
//! webpki builds and checks the path; what the policy asks beyond it (depth, pins, allowed names,
//! the validity of the anchor itself) is checked here, as part of the search for a path where
//! another path could still do. Each refusal is told twice: to rustls as the error whose alert the
//! server should see, and to whoever dialled as [`Explained`], through [`take_failure`].

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use rustls::{CertificateError, DigitallySignedStruct, OtherError, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, RevocationCheckDepth,
    RevocationOptionsBuilder, UnknownStatusPolicy, VerifiedPath,
};

use super::names;
use super::summary;
use super::trust::{self, Trust};
use crate::config::{CrlExpired, NamePattern, TlsPolicy, Verify};
use crate::failure::{Explained, Reason};

mod chains;
mod explain;

use chains::Chains;
pub(super) use chains::TTL;
use explain::Presented;

thread_local! {
    static FAILURE: RefCell<Option<Explained>> = const { RefCell::new(None) };
}

/// What was found wrong in the handshake that just failed on this thread, once: why the server's
/// certificate was refused, or why ours could not be presented. (rustls' error carries no room for
/// names, fingerprints and dates.)
///
/// To be called on the thread that drove the handshake, as soon as rustls returned the error and
/// whatever the error is. `None` means that the cause is another one. Each verification begins by
/// forgetting what an earlier one left.
pub(crate) fn take_failure() -> Option<Explained> {
    FAILURE.with_borrow_mut(Option::take)
}

pub(super) fn record_failure(failure: Explained) {
    FAILURE.set(Some(failure));
}

/// The server's certificate against one policy and one trust. Neither ever changes in it; what it
/// remembers of earlier verifications rests on that.
pub(super) struct Verifier {
    verify: Verify,
    depth: Option<u8>,
    crl_expired: CrlExpired,
    pins: Vec<[u8; 32]>,
    allowed_names: Vec<NamePattern>,
    /// `None`, where a chain is to be verified, refuses every server.
    trust: Option<Arc<Trust>>,
    algorithms: WebPkiSupportedAlgorithms,
    chains: Chains,
}

/// A refusal in both forms.
pub(super) struct Refusal {
    error: CertificateError,
    why: Explained,
}

impl Verifier {
    pub(super) fn new(
        policy: &TlsPolicy,
        trust: Option<&Arc<Trust>>,
        provider: &CryptoProvider,
    ) -> Self {
        Self {
            verify: policy.verify,
            depth: policy.verify_depth,
            crl_expired: policy.crl_expired,
            pins: policy.pins.clone(),
            allowed_names: policy.allowed_names.clone(),
            trust: trust.map(Arc::clone),
            algorithms: provider.signature_verification_algorithms,
            chains: Chains::new(),
        }
    }

    /// Whether the server is good, from memory where the same was found good a moment ago.
    fn check(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), Refusal> {
        let presented = Presented {
            end_entity,
            intermediates,
            now,
        };
        // Without a chain there is nothing to save.
        if self.verify == Verify::None {
            return self.check_anew(&presented, server_name).map(drop);
        }
        let question = self
            .chains
            .question(end_entity, intermediates, server_name, now);
        if question
            .as_ref()
            .is_some_and(|it| self.chains.known_good(it))
        {
            return Ok(());
        }
        let until = self.check_anew(&presented, server_name)?;
        if let (Some(question), Some(until)) = (&question, until) {
            self.chains.remember(question, until);
        }
        Ok(())
    }

    /// Chain, name, pins, allowed names, in this order: the first that fails is told. Pins and
    /// allowed names are held to under every `verify`, since they can only refuse.
    ///
    /// Says as [`Self::check_chain`] until when the verdict holds.
    fn check_anew(
        &self,
        presented: &Presented<'_>,
        server_name: &ServerName<'_>,
    ) -> Result<Option<i64>, Refusal> {
        let nothing_asked =
            self.verify == Verify::None && self.pins.is_empty() && self.allowed_names.is_empty();
        if nothing_asked {
            return Ok(None);
        }
        let leaf = EndEntityCert::try_from(presented.end_entity)
            .map_err(|error| presented.refusal(error, self.trust.as_deref()))?;
        let mut until = None;
        if self.verify != Verify::None {
            until = self.check_chain(&leaf, presented)?;
        }
        if self.verify == Verify::Full {
            leaf.verify_is_valid_for_subject_name(server_name)
                .map_err(|error| presented.wrong_name(error, server_name))?;
        }
        self.check_pins(&leaf, presented)?;
        self.check_allowed_names(&leaf, presented)?;
        Ok(until)
    }

    /// Until when the chain is good, in seconds since 1970; `None` where that cannot be told.
    fn check_chain(
        &self,
        leaf: &EndEntityCert<'_>,
        presented: &Presented<'_>,
    ) -> Result<Option<i64>, Refusal> {
        let Some(trust) = self.trust.as_deref() else {
            return Err(Refusal {
                error: CertificateError::UnknownIssuer,
                why: Explained::new(
                    Reason::UntrustedIssuer,
                    format!(
                        "{} cannot be verified: the service has no CA certificates",
                        presented.leaf_phrase()
                    ),
                ),
            });
        };
        let lists: Vec<&CertRevocationList<'_>> = trust.lists.iter().collect();
        let expiration = match self.crl_expired {
            CrlExpired::Refuse => ExpirationPolicy::Enforce,
            CrlExpired::Accept => ExpirationPolicy::Ignore,
        };
        // `Err` means that there are no lists: `Trust` holds none only where `crl` is not
        // configured.
        let revocation = RevocationOptionsBuilder::new(&lists).ok().map(|options| {
            options
                .with_depth(RevocationCheckDepth::Chain)
                .with_status_policy(UnknownStatusPolicy::Deny)
                .with_expiration_policy(expiration)
                .build()
        });
        // A path that leads to an anchor and is refused for the policy's sake; webpki goes on to
        // look for another.
        let refused_path = RefCell::new(None);
        let judge = |path: &VerifiedPath<'_>| {
            self.judge_path(trust, path, presented)
                .map_err(|(error, refusal)| {
                    refused_path.borrow_mut().get_or_insert(refusal);
                    error
                })
        };
        match leaf.verify_for_usage(
            self.algorithms.all,
            &trust.roots,
            presented.intermediates,
            presented.now,
            KeyUsage::server_auth(),
            revocation,
            Some(&judge),
        ) {
            Ok(path) => Ok(self.good_until(trust, &path, presented)),
            Err(error) => Err(match refused_path.take() {
                Some(refusal) => *refusal,
                None => presented.refusal(error, Some(trust)),
            }),
        }
    }

    /// What the policy asks of a path that webpki has found good.
    fn judge_path(
        &self,
        trust: &Trust,
        path: &VerifiedPath<'_>,
        presented: &Presented<'_>,
    ) -> Result<(), (webpki::Error, Box<Refusal>)> {
        // webpki knows neither the validity of an anchor, and one may expire while it is in use,
        // nor its path length.
        let Some((anchor, path_length)) = trust.known_of(path.anchor()) else {
            return Err((
                webpki::Error::UnknownIssuer,
                Box::new(presented.internal("the path ends at an anchor that is not in the trust")),
            ));
        };
        if presented.seconds() > anchor.not_after {
            let error = webpki::Error::CertExpired {
                time: presented.now,
                not_after: UnixTime::since_unix_epoch(std::time::Duration::from_secs(
                    u64::try_from(anchor.not_after).unwrap_or(0),
                )),
            };
            return Err((error, Box::new(presented.anchor_expired(anchor))));
        }
        if let Some(ca) = path
            .intermediate_certificates()
            .map(webpki::Cert::der)
            .find(|ca| !may_issue(ca))
        {
            let refusal = presented.may_not_issue(&ca);
            return Err((webpki::Error::EndEntityUsedAsCa, Box::new(refusal)));
        }
        // RFC 5280 section 4.2.1.9: self-issued CAs do not count.
        let below = path
            .intermediate_certificates()
            .filter(|ca| ca.subject() != ca.issuer())
            .count();
        if let Some(allowed) = path_length
            && u32::try_from(below).is_ok_and(|below| below > allowed)
        {
            let refusal = presented.too_many_below(below, allowed, anchor);
            return Err((webpki::Error::PathLenConstraintViolated, Box::new(refusal)));
        }
        let between = path.intermediate_certificates().count();
        match self.depth {
            Some(allowed) if between > usize::from(allowed) => Err((
                webpki::Error::MaximumPathDepthExceeded,
                Box::new(presented.too_long(between, allowed, anchor)),
            )),
            _ => Ok(()),
        }
    }

    /// The last second (since 1970) at which this path is in force: of its certificates, of its
    /// anchor, and, where an outdated list refuses, of the lists. Any list counts that is not
    /// outdated yet, on the path or not: one too many ends the verdict too early, not too late.
    fn good_until(
        &self,
        trust: &Trust,
        path: &VerifiedPath<'_>,
        presented: &Presented<'_>,
    ) -> Option<i64> {
        let (anchor, _) = trust.known_of(path.anchor())?;
        let mut until = anchor.not_after.min(not_after(presented.end_entity)?);
        for ca in path.intermediate_certificates() {
            until = until.min(not_after(&ca.der())?);
        }
        if self.crl_expired == CrlExpired::Refuse {
            for list in &trust.crls {
                let next_update = list.next_update?;
                // To webpki a list is outdated from this second on.
                if next_update > presented.seconds() {
                    until = until.min(next_update - 1);
                }
            }
        }
        Some(until)
    }

    fn check_pins(
        &self,
        leaf: &EndEntityCert<'_>,
        presented: &Presented<'_>,
    ) -> Result<(), Refusal> {
        if self.pins.is_empty() {
            return Ok(());
        }
        let spki = leaf.subject_public_key_info();
        let digest = summary::sha256(&spki);
        if self.pins.iter().any(|pin| pin == digest.as_ref()) {
            return Ok(());
        }
        Err(Refusal {
            error: CertificateError::ApplicationVerificationFailure,
            why: Explained::new(
                Reason::PinMismatch,
                format!(
                    "the key of {} is {}, which is not one of the {} in pins",
                    presented.leaf_phrase(),
                    summary::pin(&spki),
                    self.pins.len()
                ),
            ),
        })
    }

    fn check_allowed_names(
        &self,
        leaf: &EndEntityCert<'_>,
        presented: &Presented<'_>,
    ) -> Result<(), Refusal> {
        if self.allowed_names.is_empty() || names::any_allowed(leaf, &self.allowed_names) {
            return Ok(());
        }
        Err(Refusal {
            error: CertificateError::ApplicationVerificationFailure,
            why: Explained::new(
                Reason::NameNotAllowed,
                format!(
                    "{} holds {}; allowed_names: {}",
                    presented.leaf_phrase(),
                    presented.leaf_names(),
                    names::in_words(&self.allowed_names)
                ),
            ),
        })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        FAILURE.set(None);
        match self.check(end_entity, intermediates, server_name, now) {
            Ok(()) => Ok(ServerCertVerified::assertion()),
            Err(refusal) => {
                record_failure(refusal.why);
                Err(refusal.error.into())
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
            .inspect_err(|error| record_bad_handshake_signature(cert, dss, error))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
            .inspect_err(|error| record_bad_handshake_signature(cert, dss, error))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Whether the certificate's keyUsage lets it issue. webpki asks basicConstraints only, which may
/// say CA:TRUE of a key that is not to issue (RFC 5280 section 6.1.4 (n)).
fn may_issue(ca: &CertificateDer<'_>) -> bool {
    !summary::parse(ca).is_ok_and(|ca| trust::is_not_to_issue(&ca))
}

fn not_after(certificate: &CertificateDer<'_>) -> Option<i64> {
    let certificate = summary::parse(certificate).ok()?;
    Some(certificate.validity().not_after.timestamp())
}

/// The proof that the server holds its key is asked for under every `verify`. rustls reads the
/// certificate through webpki for it, so that a version 1 certificate fails here even under
/// `verify = "none"`.
fn record_bad_handshake_signature(
    cert: &CertificateDer<'_>,
    dss: &DigitallySignedStruct,
    error: &rustls::Error,
) {
    let phrase = explain::phrase(cert);
    let detail = match EndEntityCert::try_from(cert) {
        Err(problem) => format!("{phrase}: {}", explain::in_words(&problem)),
        Ok(_) => format!(
            "the server does not prove that it holds the key of {phrase}: its {:?} signature over \
             the handshake is refused ({error})",
            dss.scheme
        ),
    };
    record_failure(Explained::new(Reason::BadCertificate, detail));
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier")
            .field("verify", &self.verify)
            .field("depth", &self.depth)
            .field("chains", &self.chains)
            .finish_non_exhaustive()
    }
}

/// An error for rustls that keeps webpki's as its source.
fn other(error: webpki::Error) -> CertificateError {
    CertificateError::Other(OtherError(Arc::new(error)))
}

#[cfg(test)]
mod tests;
