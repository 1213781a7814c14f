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
        let key = load_key(key.into_der(), key_part, provider)?;
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

/// The key, or why not. The provider wipes the bytes in either case.
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
                other => Some(format!("a key of kind {}", summary::algorithm_name(other))),
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

#[cfg(test)]
mod tests {
    use rcgen::{ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose};

    use super::*;
    use crate::tls::test_pki::{
        Ca, DAY, Leaf, NOW, client_params, date, der, now, pair, pem, provider, version_1,
    };

    fn parse(material: &IdentityMaterial) -> Result<Identity, Explained> {
        Identity::parse(material, now(), &provider())
    }

    #[track_caller]
    fn assert_refused(material: &IdentityMaterial, reason: Reason, parts: &[&str]) {
        let why = parse(material).expect_err("should have been refused");
        assert_eq!(why.reason, reason, "{why}");
        for part in parts {
            assert!(why.detail.contains(part), "{part:?} is not in {why}");
        }
    }

    /// The third field of PrivateKeyInfo: the key in its traditional encoding.
    fn traditional(leaf: &Leaf) -> Vec<u8> {
        let pkcs8 = leaf.key.serialize_der();
        sequence(&pkcs8).unwrap()[2].as_slice().unwrap().to_vec()
    }

    #[test]
    fn every_kind_and_encoding_of_key_makes_an_identity() {
        let ca = Ca::new("root");
        for (algorithm, label, kind) in [
            (
                &rcgen::PKCS_ECDSA_P256_SHA256,
                Some("EC PRIVATE KEY"),
                "ECDSA P-256",
            ),
            (
                &rcgen::PKCS_ECDSA_P384_SHA384,
                Some("EC PRIVATE KEY"),
                "ECDSA P-384",
            ),
            (
                &rcgen::PKCS_ECDSA_P521_SHA512,
                Some("EC PRIVATE KEY"),
                "ECDSA P-521",
            ),
            (&rcgen::PKCS_RSA_SHA256, Some("RSA PRIVATE KEY"), "RSA 2048"),
            (&rcgen::PKCS_ED25519, None, "Ed25519"),
        ] {
            let leaf = ca.client_of(algorithm);
            let mut keys = vec![leaf.key_pem()];
            keys.extend(label.map(|label| pem(label, &traditional(&leaf))));
            for key in keys {
                let identity = parse(&pair(&leaf.pem(), &key)).unwrap();
                assert_eq!(identity.leaf().key, kind);
                assert_eq!(identity.warnings, [""; 0]);
            }
        }
    }

    #[test]
    fn an_ed25519_key_without_its_public_half_makes_an_identity() {
        // As OpenSSL writes them: PKCS#8 version 1 (RFC 5958), the seed alone.
        let leaf = Ca::new("root").client_of(&rcgen::PKCS_ED25519);
        let oid = der(0x30, &[0x06, 3, 0x2b, 0x65, 0x70]);
        let key = der(
            0x30,
            &[der(2, &[0]), oid, der(4, &traditional(&leaf))].concat(),
        );
        parse(&pair(&leaf.pem(), &pem("PRIVATE KEY", &key))).unwrap();
    }

    #[test]
    fn the_chain_is_summed_up_leaf_first() {
        let root = Ca::new("root");
        let between = root.intermediate("between");
        let identity = parse(&between.client().material(&[&between])).unwrap();
        let subjects: Vec<_> = identity.chain.iter().map(|c| c.subject.as_str()).collect();
        assert_eq!(subjects, ["CN=client", "CN=between"]);
        assert_eq!(identity.key.cert.len(), 2);
        assert!(
            identity
                .leaf()
                .names
                .contains(&"URI:spiffe://test/ns/apps/sa/client".to_owned())
        );
        assert_eq!(identity.leaf().days_left(now()), 365);
    }

    #[test]
    fn a_key_of_another_certificate_is_key_mismatch_with_both_keys() {
        let ca = Ca::new("root");
        let (one, two) = (ca.client(), ca.client());
        let pin = |leaf: &Leaf| CertificateSummary::of(&leaf.der).unwrap().pin;
        assert_refused(
            &pair(&one.pem(), &two.key_pem()),
            Reason::KeyMismatch,
            &["tls.crt", "tls.key", &pin(&one), &pin(&two)],
        );
    }

    #[test]
    fn a_chain_in_another_order_is_refused_with_the_fix() {
        let ca = Ca::new("root");
        let leaf = ca.client();
        assert_refused(
            &pair(&(ca.pem() + &leaf.pem()), &leaf.key_pem()),
            Reason::KeyMismatch,
            &[
                "the key fits certificate 2",
                "CN=client",
                "reorder the file",
            ],
        );
    }

    #[test]
    fn the_validity_window_of_the_leaf_is_held_to_on_both_sides() {
        let ca = Ca::new("root");
        let expired = ca.client_with(|params| params.not_after = date(NOW - 1));
        assert_refused(
            &expired.material(&[]),
            Reason::Expired,
            &[
                "tls.crt",
                "CN=client",
                "2029-12-31 23:59:59 UTC",
                "2030-01-01",
            ],
        );
        let early = ca.client_with(|params| params.not_before = date(NOW + 1));
        assert_refused(
            &early.material(&[]),
            Reason::NotYetValid,
            &["is not valid before 2030-01-01 00:00:01 UTC"],
        );
        let last_second = ca.client_with(|params| params.not_after = date(NOW));
        parse(&last_second.material(&[])).unwrap();
    }

    #[test]
    fn an_extended_key_usage_must_allow_clients() {
        let ca = Ca::new("root");
        let with = |usages: Vec<ExtendedKeyUsagePurpose>| {
            ca.client_with(|params| params.extended_key_usages = usages)
                .material(&[])
        };
        assert_refused(
            &with(vec![ExtendedKeyUsagePurpose::ServerAuth]),
            Reason::WrongUsage,
            &["does not include clientAuth", "public CAs"],
        );
        assert_refused(
            &with(vec![ExtendedKeyUsagePurpose::EmailProtection]),
            Reason::WrongUsage,
            &["does not include clientAuth"],
        );
        for usages in [
            vec![],
            vec![ExtendedKeyUsagePurpose::Any],
            vec![
                ExtendedKeyUsagePurpose::ServerAuth,
                ExtendedKeyUsagePurpose::ClientAuth,
            ],
        ] {
            parse(&with(usages)).unwrap();
        }
    }

    #[test]
    fn what_is_odd_but_not_wrong_is_warned_of() {
        let root = Ca::new("root");
        let old = root.intermediate_with("old", |params| params.not_after = date(NOW - DAY));
        let stray = root.intermediate("stray");
        let as_ca = old.client_with(|params| {
            params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        });
        let identity = parse(&as_ca.material(&[&old, &stray])).unwrap();
        let warnings = identity.warnings.join("\n");
        for words in [
            "is a CA certificate",
            "without digitalSignature",
            "the intermediate CN=old",
            "certificate 3 (CN=stray) is not the issuer",
        ] {
            assert!(warnings.contains(words), "{words:?} is not in {warnings}");
        }
        assert_eq!(identity.warnings.len(), 4, "{warnings}");
    }

    #[test]
    fn keys_that_cannot_be_used_are_named_by_their_kind() {
        let cert = Ca::new("root").client().pem();
        let pkcs8 = |oid: &[u8], parameters: Vec<u8>, key: &[u8]| {
            let algorithm = der(0x30, &[der(6, oid), parameters].concat());
            let info = [der(2, &[0]), algorithm, der(4, key)].concat();
            pem("PRIVATE KEY", &der(0x30, &info))
        };
        // Only the size is real: the key is refused for it before anything else is looked at.
        let rsa_1024 = [&[0][..], &[0xff; 128]].concat();
        let rsa_1024 = der(0x30, &[der(2, &[0]), der(2, &rsa_1024)].concat());
        let rsa = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1];
        let ec = [0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1];
        let secp256k1 = der(6, &[0x2b, 0x81, 4, 0, 10]);
        let sec1 = [der(2, &[1]), der(4, &[7; 32]), der(0xa0, &secp256k1)].concat();
        for (key, words) in [
            (pem("RSA PRIVATE KEY", &rsa_1024), "RSA key of 1024 bits"),
            (pkcs8(&rsa, der(5, &[]), &rsa_1024), "RSA key of 1024 bits"),
            (pkcs8(&ec, secp256k1, &[7; 32]), "ECDSA key, secp256k1"),
            (
                pem("EC PRIVATE KEY", &der(0x30, &sec1)),
                "ECDSA key, secp256k1",
            ),
            (pkcs8(&[0x2b, 0x65, 0x71], vec![], &[7; 57]), "Ed448"),
            (
                pem("PRIVATE KEY", b"nonsense"),
                "of an unknown kind, or damaged",
            ),
        ] {
            assert_refused(&pair(&cert, &key), Reason::BadKey, &["tls.key", words]);
        }
    }

    #[test]
    fn a_certificate_that_is_none_is_bad_certificate() {
        let key = KeyPair::generate().unwrap().serialize_pem();
        assert_refused(
            &pair(&pem("CERTIFICATE", b"nonsense"), &key),
            Reason::BadCertificate,
            &["tls.crt: certificate 1", "not an X.509 certificate"],
        );
    }

    #[test]
    fn a_version_1_certificate_is_for_the_server_to_judge() {
        parse(&version_1().material(&[])).unwrap();
    }

    #[test]
    fn debug_shows_no_key() {
        let ca = Ca::new("root");
        let identity = ca.issue(&client_params(), KeyPair::generate().unwrap());
        let shown = format!("{:?} {:?}", identity.identity(), identity.material(&[]));
        assert!(shown.contains("CN=client"));
        assert!(
            !shown.contains("PRIVATE KEY") && !shown.contains("SigningKey"),
            "{shown}"
        );
    }
}
