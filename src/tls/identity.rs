//! A client certificate chain with a key that provably fits it.

use std::fmt;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::sign::{CertifiedKey, SigningKey};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use x509_parser::certificate::X509Certificate;
use x509_parser::der_parser::der::{DerObject, parse_der};

use super::pem;
use super::summary::{self, CertificateSummary, utc};
use crate::failure::{Explained, Reason};
use crate::material::{IdentityMaterial, Part};

/// A client certificate, its chain and its key. It exists only if the key fits the leaf, the
/// leaf may be used by clients and was valid when it was loaded.
pub(crate) struct Identity {
    pub(crate) key: Arc<CertifiedKey>,
    /// The leaf, then the intermediates as given. Never empty.
    pub(crate) chain: Vec<CertificateSummary>,
    /// What is odd but not wrong, for the operator.
    pub(crate) warnings: Vec<String>,
}

impl Identity {
    /// Proves that the material is a usable identity at `now`.
    ///
    /// # Errors
    /// [`Reason::BadPem`], [`BadKey`](Reason::BadKey), [`KeyMismatch`](Reason::KeyMismatch),
    /// [`Expired`](Reason::Expired), [`NotYetValid`](Reason::NotYetValid),
    /// [`WrongUsage`](Reason::WrongUsage) or [`BadCertificate`](Reason::BadCertificate), with
    /// place and particulars.
    pub(crate) fn parse(
        material: &IdentityMaterial,
        now: UnixTime,
        provider: &CryptoProvider,
    ) -> Result<Self, Explained> {
        let (cert_part, key_part) = match material {
            IdentityMaterial::Pair { cert, key } => (cert, key),
            IdentityMaterial::Bundle(part) => (part, part),
        };
        let pem::ChainAndKey {
            chain,
            key,
            mut warnings,
        } = pem::chain_and_key(material)?;
        let key = load_key(key, key_part, provider)?;
        let certificates = read_chain(&chain, cert_part)?;
        check_key_fits(&certificates, key.as_ref(), cert_part, key_part)?;
        let (leaf, _) = &certificates[0];
        check_window(leaf, cert_part, now)?;
        check_client_usage(&certificates[0], cert_part)?;
        warn_of_oddities(&certificates, cert_part, now, &mut warnings);

        let summaries = certificates.into_iter().map(|(summary, _)| summary);
        Ok(Self {
            chain: summaries.collect(),
            key: Arc::new(CertifiedKey::new(chain, key)),
            warnings,
        })
    }

    /// The certificate that the key belongs to.
    pub(crate) fn leaf(&self) -> &CertificateSummary {
        &self.chain[0]
    }
}

/// Without the key.
impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("chain", &self.chain)
            .field("warnings", &self.warnings)
            .finish_non_exhaustive()
    }
}

type Parsed<'a> = (CertificateSummary, X509Certificate<'a>);

fn load_key(
    key: PrivateKeyDer<'static>,
    part: &Part,
    provider: &CryptoProvider,
) -> Result<Arc<dyn SigningKey>, Explained> {
    let kind = key_kind(&key);
    provider.key_provider.load_private_key(key).map_err(|_| {
        // Not the provider's words: they name every format that was tried.
        let what = kind.unwrap_or_else(|| "of an unknown kind, or damaged".to_owned());
        Explained::new(
            Reason::BadKey,
            format!(
                "{}: the private key is {what}, which cannot be used",
                part.place
            ),
        )
    })
}

/// Never empty: [`pem::chain_and_key`] yields at least one certificate.
fn read_chain<'a>(
    chain: &'a [CertificateDer<'static>],
    part: &Part,
) -> Result<Vec<Parsed<'a>>, Explained> {
    let mut certificates = Vec::with_capacity(chain.len());
    for (index, der) in chain.iter().enumerate() {
        let certificate = summary::parse(der).map_err(|problem| {
            Explained::new(
                Reason::BadCertificate,
                format!("{}: certificate {}: {problem}", part.place, index + 1),
            )
        })?;
        certificates.push((
            CertificateSummary::from_parsed(der, &certificate),
            certificate,
        ));
    }
    Ok(certificates)
}

/// Compares public keys as DER. (Not with rustls' `keys_match`: it wants the certificate to pass
/// webpki, which is the server's business here.)
fn check_key_fits(
    certificates: &[Parsed<'_>],
    key: &dyn SigningKey,
    cert_part: &Part,
    key_part: &Part,
) -> Result<(), Explained> {
    let Some(public) = key.public_key() else {
        return Err(Explained::new(
            Reason::BadKey,
            format!("{}: the key does not tell its public key", key_part.place),
        ));
    };
    let fits = |(_, certificate): &Parsed<'_>| certificate.public_key().raw == public.as_ref();
    match certificates.iter().position(fits) {
        Some(0) => Ok(()),
        Some(index) => Err(Explained::new(
            Reason::KeyMismatch,
            format!(
                "{}: the key fits certificate {} of the file, {}, not the first; the leaf must \
                 come first, then its issuer, and so on: reorder the file",
                cert_part.place,
                index + 1,
                certificates[index].0.phrase(),
            ),
        )),
        None => Err(Explained::new(
            Reason::KeyMismatch,
            format!(
                "the key in {} ({}) does not fit the certificate in {}: {} has {}",
                key_part.place,
                summary::pin(public.as_ref()),
                cert_part.place,
                certificates[0].0.phrase(),
                certificates[0].0.pin,
            ),
        )),
    }
}

fn check_window(leaf: &CertificateSummary, part: &Part, now: UnixTime) -> Result<(), Explained> {
    let now = now.as_secs() as i64;
    if now > leaf.not_after {
        return Err(Explained::new(
            Reason::Expired,
            format!(
                "{}: {} expired on {}; now is {}",
                part.place,
                leaf.phrase(),
                utc(leaf.not_after),
                utc(now)
            ),
        ));
    }
    if now < leaf.not_before {
        return Err(Explained::new(
            Reason::NotYetValid,
            format!(
                "{}: {} is not valid before {}; now is {}",
                part.place,
                leaf.phrase(),
                utc(leaf.not_before),
                utc(now)
            ),
        ));
    }
    Ok(())
}

/// An extended key usage, where there is one, must allow clients (RFC 5280 section 4.2.1.12).
fn check_client_usage((leaf, parsed): &Parsed<'_>, part: &Part) -> Result<(), Explained> {
    let unreadable = |error| {
        Explained::new(
            Reason::BadCertificate,
            format!(
                "{}: {}: the extended key usage cannot be read: {error}",
                part.place,
                leaf.phrase()
            ),
        )
    };
    let Some(usage) = parsed.extended_key_usage().map_err(unreadable)? else {
        return Ok(());
    };
    let usage = usage.value;
    if usage.client_auth || usage.any {
        return Ok(());
    }
    let remark = if usage.server_auth {
        "; it is a server certificate, and public CAs no longer issue certificates for clients: \
         use a private CA"
    } else {
        ""
    };
    Err(Explained::new(
        Reason::WrongUsage,
        format!(
            "{}: {}: the extended key usage does not include clientAuth{remark}",
            part.place,
            leaf.phrase()
        ),
    ))
}

fn warn_of_oddities(
    certificates: &[Parsed<'_>],
    part: &Part,
    now: UnixTime,
    warnings: &mut Vec<String>,
) {
    let place = &part.place;
    let seconds = now.as_secs() as i64;
    for (index, (summary, parsed)) in certificates.iter().enumerate() {
        if index == 0 {
            if parsed.is_ca() {
                warnings.push(format!(
                    "{place}: {} is a CA certificate; some servers refuse it from a client",
                    summary.phrase()
                ));
            }
            let unsuited = parsed.key_usage().ok().flatten();
            if unsuited.is_some_and(|usage| !usage.value.digital_signature()) {
                warnings.push(format!(
                    "{place}: {} has a key usage without digitalSignature; many servers refuse it",
                    summary.phrase()
                ));
            }
        } else {
            if seconds > summary.not_after || seconds < summary.not_before {
                warnings.push(format!(
                    "{place}: the intermediate {} is valid only from {} to {}; servers will refuse \
                     the chain if they need it",
                    summary.phrase(),
                    utc(summary.not_before),
                    utc(summary.not_after)
                ));
            }
            let (before, before_parsed) = &certificates[index - 1];
            if before_parsed.issuer().as_raw() != parsed.subject().as_raw() {
                warnings.push(format!(
                    "{place}: certificate {} ({}) is not the issuer of the one before it, which \
                     names {}; servers may not find the chain",
                    index + 1,
                    summary.subject,
                    before.issuer
                ));
            }
        }
    }
}

/// What a private key is, read from its outside alone; `None` where that cannot be seen.
fn key_kind(key: &PrivateKeyDer<'_>) -> Option<String> {
    match key {
        PrivateKeyDer::Pkcs1(key) => rsa_kind(key.secret_pkcs1_der()),
        // ECPrivateKey ::= { version, privateKey, [0] parameters OPTIONAL, … } (RFC 5915).
        PrivateKeyDer::Sec1(key) => {
            let fields = sequence(key.secret_sec1_der())?;
            let curve = fields.iter().skip(2).find_map(|field| {
                let (_, inner) = parse_der(field.as_slice().ok()?).ok()?;
                Some(inner.as_oid().ok()?.to_id_string())
            });
            Some(match curve {
                Some(oid) => format!("an ECDSA key, {}", summary::curve_name(&oid)),
                None => "an ECDSA key of a curve that is not named".to_owned(),
            })
        }
        // PrivateKeyInfo ::= { version, { algorithm, parameters }, privateKey, … } (RFC 5958).
        PrivateKeyDer::Pkcs8(key) => {
            let fields = sequence(key.secret_pkcs8_der())?;
            let algorithm = fields.get(1)?.as_sequence().ok()?;
            let oid = algorithm.first()?.as_oid().ok()?.to_id_string();
            match oid.as_str() {
                "1.2.840.113549.1.1.1" => rsa_kind(fields.get(2)?.as_slice().ok()?),
                "1.2.840.10045.2.1" => {
                    let curve = algorithm.get(1)?.as_oid().ok()?.to_id_string();
                    Some(format!("an ECDSA key, {}", summary::curve_name(&curve)))
                }
                other => Some(format!("a key {}", summary::algorithm_name(other))),
            }
        }
        _ => None,
    }
}

/// RSAPrivateKey ::= { version, modulus, … } (RFC 8017 appendix A.1.2).
fn rsa_kind(der: &[u8]) -> Option<String> {
    let fields = sequence(der)?;
    let bits = summary::rsa_bits(fields.get(1)?.as_slice().ok()?);
    Some(if bits < 2048 {
        format!("an RSA key of {bits} bits, less than 2048")
    } else {
        format!("an RSA key of {bits} bits that is damaged")
    })
}

fn sequence(der: &[u8]) -> Option<Vec<DerObject<'_>>> {
    let (_, object) = parse_der(der).ok()?;
    object.as_sequence().ok().cloned()
}
