//! CA certificates and revocation lists, judged when they are loaded.

use std::collections::BTreeSet;
use std::fmt;

use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{CertRevocationList, OwnedCertRevocationList};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;
use x509_parser::x509::X509Version;

use super::pem;
use super::summary::{self, CertificateSummary, distinguished_name, utc};
use crate::failure::{Explained, Reason};
use crate::material::{Part, TrustMaterial};

/// At least one usable trust anchor, and the revocation lists.
pub(crate) struct Trust {
    /// The anchors in use. Never empty.
    pub(crate) anchors: Vec<CertificateSummary>,
    /// Certificates and files that were left out, each with the reason.
    pub(crate) left_out: Vec<String>,
    /// The revocation lists in use, newest first.
    pub(crate) crls: Vec<CrlSummary>,
    /// Of `anchors`, in the same order.
    pub(super) roots: Vec<TrustAnchor<'static>>,
    /// Of `anchors`, in the same order: how many CAs may stand below each (pathLenConstraint).
    path_lengths: Vec<Option<u32>>,
    /// Subject (DER) and subject key identifier of the anchors that have one.
    subject_keys: Vec<(Vec<u8>, Vec<u8>)>,
    /// Of `crls`, in the same order. webpki takes the first list that speaks for a certificate,
    /// so that the newest of one issuer decides.
    pub(super) lists: Vec<CertRevocationList<'static>>,
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
    /// Judges every certificate and list at `now`. A certificate that can be no trust anchor is
    /// left out and named in `left_out`; the same certificate twice counts once. Whether a list is
    /// past its `nextUpdate` is judged per handshake: what it means is the service's policy.
    ///
    /// # Errors
    /// [`Reason::NoTrustAnchor`] where no certificate is left, [`Reason::BadPem`] where no file
    /// holds one, where a PEM file is damaged, where `crl` is configured and holds no list, or
    /// where a list cannot be read: a failure must not look like an empty list.
    pub(crate) fn parse(material: &TrustMaterial, now: UnixTime) -> Result<Self, Explained> {
        let mut trust = Self {
            anchors: Vec::new(),
            left_out: Vec::new(),
            crls: Vec::new(),
            roots: Vec::new(),
            path_lengths: Vec::new(),
            subject_keys: Vec::new(),
            lists: Vec::new(),
        };
        trust.take_anchors(&material.ca, now)?;
        if let Some(parts) = &material.crl {
            trust.take_lists(parts)?;
        }
        Ok(trust)
    }

    /// What is known of an anchor among `roots`: its certificate, and how many CAs may stand below
    /// it. `None` for any other.
    pub(super) fn known_of(
        &self,
        anchor: &TrustAnchor<'_>,
    ) -> Option<(&CertificateSummary, Option<u32>)> {
        let mut roots = self.roots.iter();
        let index = roots.position(|root| std::ptr::eq(root, anchor))?;
        Some((self.anchors.get(index)?, *self.path_lengths.get(index)?))
    }

    /// Whether an anchor has the name of the certificate's issuer and this subject key identifier.
    pub(super) fn holds_key(&self, certificate: &X509Certificate<'_>, key_id: &[u8]) -> bool {
        let issuer = certificate.issuer().as_raw();
        let mut keys = self.subject_keys.iter();
        keys.any(|(subject, key)| subject == issuer && key == key_id)
    }

    /// The list that revokes the certificate, and when that was (seconds since 1970).
    pub(super) fn revocation_of(
        &self,
        certificate: &X509Certificate<'_>,
    ) -> Option<(&CrlSummary, i64)> {
        let issuer = distinguished_name(certificate.issuer());
        self.crls
            .iter()
            .zip(&self.lists)
            .filter(|(summary, _)| summary.issuer == issuer)
            .find_map(|(summary, list)| {
                let revoked = list.find_serial(certificate.raw_serial()).ok()??;
                Some((summary, revoked.revocation_date.as_secs() as i64))
            })
    }

    fn take_anchors(&mut self, parts: &[Part], now: UnixTime) -> Result<(), Explained> {
        let mut seen = BTreeSet::new();
        for part in parts {
            let certificates = match pem::ca_certificates(part)? {
                Ok(certificates) => certificates,
                Err(why) => {
                    self.left_out.push(format!("{}: {why}", part.place));
                    continue;
                }
            };
            for (index, der) in certificates.iter().enumerate() {
                if !seen.insert(der.to_vec()) {
                    continue;
                }
                match anchor(der, now) {
                    Ok(anchor) => {
                        self.anchors.push(anchor.summary);
                        self.roots.push(anchor.root);
                        self.path_lengths.push(anchor.path_length);
                        self.subject_keys.extend(anchor.subject_key);
                    }
                    Err(why) => {
                        let number = index + 1;
                        self.left_out
                            .push(format!("{}: certificate {number}: {why}", part.place));
                    }
                }
            }
        }
        if !self.anchors.is_empty() {
            return Ok(());
        }
        let reason = match seen.is_empty() {
            true => Reason::BadPem,
            false => Reason::NoTrustAnchor,
        };
        let detail = match self.left_out.is_empty() {
            true => "no CA certificate: there is no file in ca".to_owned(),
            false => self.left_out.join("; "),
        };
        Err(Explained::new(reason, detail))
    }

    fn take_lists(&mut self, parts: &[Part]) -> Result<(), Explained> {
        let mut read = Vec::new();
        for part in parts {
            for (index, der) in pem::revocation_lists(part)?.iter().enumerate() {
                read.push(revocation_list(der, part).map_err(|problem| {
                    let number = index + 1;
                    Explained::new(
                        Reason::BadPem,
                        format!("{}: revocation list {number}: {problem}", part.place),
                    )
                })?);
            }
        }
        if read.is_empty() {
            return Err(Explained::new(
                Reason::BadPem,
                "crl is configured, but there is no revocation list there",
            ));
        }
        read.sort_by_key(|(summary, _)| std::cmp::Reverse(summary.this_update));
        (self.crls, self.lists) = read.into_iter().unzip();
        Ok(())
    }
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trust")
            .field("anchors", &self.anchors)
            .field("left_out", &self.left_out)
            .field("crls", &self.crls)
            .finish_non_exhaustive()
    }
}

struct Anchor {
    summary: CertificateSummary,
    root: TrustAnchor<'static>,
    path_length: Option<u32>,
    subject_key: Option<(Vec<u8>, Vec<u8>)>,
}

/// The certificate as a trust anchor, or why it can be none.
fn anchor(der: &CertificateDer<'static>, now: UnixTime) -> Result<Anchor, String> {
    let parsed = summary::parse(der)?;
    let summary = CertificateSummary::from_parsed(der, &parsed);
    let refuse = |why: &str| Err(format!("{}: {why}", summary.phrase()));
    if let Some(why) = not_a_ca(&parsed) {
        return refuse(&why);
    }
    let seconds = now.as_secs() as i64;
    if seconds > summary.not_after {
        return refuse(&format!("expired on {}", utc(summary.not_after)));
    }
    if seconds < summary.not_before {
        return refuse(&format!("not valid before {}", utc(summary.not_before)));
    }
    match webpki::anchor_from_trusted_cert(der) {
        Ok(root) => Ok(Anchor {
            subject_key: summary::subject_key(&parsed)
                .map(|key| (parsed.subject().as_raw().to_vec(), key.to_vec())),
            root: root.to_owned(),
            path_length: path_length(&parsed),
            summary,
        }),
        Err(error) => refuse(&format!("cannot be read as a trust anchor: {error}")),
    }
}

/// Whether its keyUsage can be read and leaves out keyCertSign (RFC 5280 section 6.1.4 (n)).
pub(super) fn is_not_to_issue(certificate: &X509Certificate<'_>) -> bool {
    let usage = certificate.key_usage();
    usage.is_ok_and(|usage| usage.is_some_and(|usage| !usage.value.key_cert_sign()))
}

fn path_length(certificate: &X509Certificate<'_>) -> Option<u32> {
    let constraints = certificate.basic_constraints().ok()??;
    constraints.value.path_len_constraint
}

/// What RFC 5280 section 6.1.4 asks of an issuer. webpki asks nothing of an anchor, since an
/// anchor need not be a certificate at all; whoever writes a server's own certificate into `ca`
/// would get neither what they hoped for nor a word.
fn not_a_ca(certificate: &X509Certificate<'_>) -> Option<String> {
    if certificate.version() != X509Version::V3 {
        return Some("an X.509 version 1 certificate, which cannot say that it is a CA".to_owned());
    }
    for extension in certificate.extensions() {
        let oid = extension.oid.to_id_string();
        if extension.critical && !UNDERSTOOD.contains(&oid.as_str()) {
            return Some(format!(
                "carries the critical extension {oid}, which tlsward does not know"
            ));
        }
    }
    match certificate.basic_constraints() {
        Err(error) => return Some(format!("basicConstraints cannot be read: {error}")),
        Ok(Some(constraints)) if constraints.value.ca => {}
        Ok(_) => {
            let own = match certificate.subject().as_raw() == certificate.issuer().as_raw() {
                true => "; a self-signed server certificate is no CA: have it issued by one",
                false => "; put its issuer into ca instead",
            };
            return Some(format!(
                "not a CA certificate (basicConstraints does not say CA:TRUE){own}"
            ));
        }
    }
    if let Err(error) = certificate.key_usage() {
        return Some(format!("keyUsage cannot be read: {error}"));
    }
    if is_not_to_issue(certificate) {
        return Some("its keyUsage does not include keyCertSign".to_owned());
    }
    match certificate.extended_key_usage() {
        Err(error) => Some(format!("extendedKeyUsage cannot be read: {error}")),
        Ok(Some(usage)) if !usage.value.server_auth && !usage.value.any => {
            Some("its extendedKeyUsage does not allow to issue for servers".to_owned())
        }
        Ok(_) => None,
    }
}

/// Extensions that may be critical: those that are obeyed, by webpki or here, and those that ask
/// for nothing that a TLS client does (policies: we require none, and webpki checks none).
const UNDERSTOOD: &[&str] = &[
    "2.5.29.14", // subjectKeyIdentifier
    "2.5.29.15", // keyUsage
    "2.5.29.17", // subjectAltName
    "2.5.29.19", // basicConstraints
    "2.5.29.30", // nameConstraints
    "2.5.29.31", // cRLDistributionPoints
    "2.5.29.32", // certificatePolicies
    "2.5.29.35", // authorityKeyIdentifier
    "2.5.29.37", // extKeyUsage
];

fn revocation_list(
    der: &[u8],
    part: &Part,
) -> Result<(CrlSummary, CertRevocationList<'static>), String> {
    let list = OwnedCertRevocationList::from_der(der).map_err(|error| match error {
        webpki::Error::UnsupportedCrlVersion => {
            "a version 1 list; have the CA issue version 2 (with a CRL number)".to_owned()
        }
        webpki::Error::UnsupportedDeltaCrl => "a delta list; give complete lists".to_owned(),
        webpki::Error::UnsupportedIndirectCrl => {
            "an indirect list; give lists from the CA itself".to_owned()
        }
        error => format!("cannot be read: {error}"),
    })?;
    let (_, parsed) = CertificateRevocationList::from_der(der)
        .map_err(|error| format!("cannot be read: {error}"))?;
    let summary = CrlSummary {
        place: part.place.clone(),
        issuer: distinguished_name(parsed.issuer()),
        this_update: parsed.last_update().timestamp(),
        next_update: parsed.next_update().map(|time| time.timestamp()),
        revoked: parsed.iter_revoked_certificates().count(),
    };
    Ok((summary, CertRevocationList::Owned(list)))
}

#[cfg(test)]
mod tests {
    use rcgen::{CustomExtension, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose};

    use super::*;
    use crate::tls::test_pki::{Ca, DAY, NOW, date, now, pem, version_1};

    fn parse(ca: &[(&str, Vec<u8>)], crl: Option<&[(&str, Vec<u8>)]>) -> Result<Trust, Explained> {
        let parts = |files: &[(&str, Vec<u8>)]| {
            let files = files.iter();
            files
                .map(|(place, bytes)| Part::new(*place, bytes.clone()))
                .collect()
        };
        let material = TrustMaterial {
            ca: parts(ca),
            crl: crl.map(parts),
        };
        Trust::parse(&material, now())
    }

    #[track_caller]
    fn assert_refused(result: Result<Trust, Explained>, reason: Reason, parts: &[&str]) {
        let why = result.expect_err("should have been refused");
        assert_eq!(why.reason, reason, "{why}");
        for part in parts {
            assert!(why.detail.contains(part), "{part:?} is not in {why}");
        }
    }

    #[test]
    fn a_bundle_and_a_directory_give_all_their_cas_and_each_once() {
        let (one, two) = (Ca::new("one"), Ca::new("two"));
        let trust = parse(
            &[
                ("a.crt", (one.pem() + &two.pem()).into()),
                ("b.crt", one.pem().into()),
            ],
            None,
        )
        .unwrap();
        let subjects: Vec<_> = trust.anchors.iter().map(|a| a.subject.as_str()).collect();
        assert_eq!(subjects, ["CN=one", "CN=two"]);
        assert_eq!(trust.roots.len(), 2);
        assert_eq!(trust.left_out, [""; 0]);
        assert_eq!(trust.crls, []);
    }

    #[test]
    fn what_can_be_no_anchor_is_left_out_and_named_with_the_reason() {
        let good = Ca::new("good");
        let with = |change: &dyn Fn(&mut rcgen::CertificateParams)| Ca::with("bad", change).pem();
        let critical = |params: &mut rcgen::CertificateParams| {
            let mut extension = CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0]);
            extension.set_criticality(true);
            params.custom_extensions.push(extension);
        };
        let issued = good.server().pem();
        for (bad, words) in [
            (
                with(&|p| p.not_after = date(NOW - 1)),
                "expired on 2029-12-31",
            ),
            (
                with(&|p| p.not_before = date(NOW + DAY)),
                "not valid before 2030-01-02",
            ),
            (
                with(&|p| p.is_ca = IsCa::NoCa),
                "self-signed server certificate is no CA",
            ),
            (
                with(&|p| p.is_ca = IsCa::ExplicitNoCa),
                "does not say CA:TRUE",
            ),
            (with(&critical), "critical extension 1.2.3.4"),
            (
                with(&|p| p.key_usages = vec![KeyUsagePurpose::CrlSign]),
                "keyCertSign",
            ),
            (
                with(&|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]),
                "extendedKeyUsage",
            ),
            (version_1().pem(), "version 1"),
            (issued, "put its issuer into ca instead"),
            (pem("CERTIFICATE", b"nonsense"), "not an X.509 certificate"),
        ] {
            let trust = parse(&[("ca.crt", (good.pem() + &bad).into())], None).unwrap();
            assert_eq!(trust.anchors.len(), 1);
            assert_eq!(trust.anchors[0].subject, "CN=good");
            let [left_out] = trust.left_out.as_slice() else {
                panic!("{:?}", trust.left_out);
            };
            assert!(
                left_out.starts_with("ca.crt: certificate 2: "),
                "{left_out}"
            );
            assert!(left_out.contains(words), "{words:?} is not in {left_out}");

            let alone = parse(&[("ca.crt", bad.into())], None);
            assert_refused(
                alone,
                Reason::NoTrustAnchor,
                &["ca.crt: certificate 1", words],
            );
        }
    }

    #[test]
    fn files_beside_the_cas_are_left_out_and_named() {
        let ca = Ca::new("root");
        let trust = parse(
            &[
                ("README", b"hello".to_vec()),
                ("ca.crt", ca.pem().into()),
                ("ca.der", ca.der().to_vec()),
                ("list.pem", pem("X509 CRL", &ca.crl(&[], NOW)).into()),
            ],
            None,
        )
        .unwrap();
        assert_eq!(trust.anchors.len(), 1);
        let left_out = trust.left_out.join("\n");
        for words in [
            "README: no PEM block",
            "ca.der: a DER certificate, not PEM; convert it: openssl x509 -inform der -in ca.der",
            "list.pem: no certificate found, but X509 CRL",
        ] {
            assert!(left_out.contains(words), "{words:?} is not in {left_out}");
        }
    }

    #[test]
    fn nothing_that_is_a_certificate_is_bad_pem() {
        assert_refused(parse(&[], None), Reason::BadPem, &["no file in ca"]);
        assert_refused(
            parse(&[("ca.crt", Vec::new())], None),
            Reason::BadPem,
            &["ca.crt: the file is empty"],
        );
    }

    #[test]
    fn half_a_file_of_cas_does_not_pass_for_a_whole_one() {
        let text = Ca::new("one").pem() + &Ca::new("two").pem();
        let cut = text[..text.len() - 100].to_owned();
        assert_refused(
            parse(&[("ca.crt", cut.into())], None),
            Reason::BadPem,
            &["ca.crt", "cut short"],
        );
    }

    #[test]
    fn revocation_lists_are_summed_up_newest_first() {
        let ca = Ca::new("root");
        let leaf = ca.server();
        let trust = parse(
            &[("ca.crt", ca.pem().into())],
            Some(&[
                ("old.crl", ca.crl(&[], NOW - 2 * DAY)),
                (
                    "new.pem",
                    pem("X509 CRL", &ca.crl(&[&leaf.der], NOW - DAY)).into(),
                ),
            ]),
        )
        .unwrap();
        let [new, old] = trust.crls.as_slice() else {
            panic!("{:?}", trust.crls);
        };
        assert_eq!(
            *new,
            CrlSummary {
                place: "new.pem".into(),
                issuer: "CN=root".into(),
                this_update: NOW - DAY,
                next_update: Some(NOW + DAY),
                revoked: 1,
            }
        );
        assert_eq!((old.place.as_str(), old.revoked), ("old.crl", 0));
    }

    #[test]
    fn a_list_that_cannot_be_read_is_an_error_and_so_is_none_at_all() {
        let ca = Ca::new("root");
        let cas = [("ca.crt", ca.pem().into())];
        let good = ("good.crl", ca.crl(&[], NOW - DAY));
        for (bytes, words) in [
            (b"nonsense".to_vec(), "bad.crl: no revocation list found"),
            (
                pem("X509 CRL", b"nonsense").into(),
                "bad.crl: revocation list 1",
            ),
            (Vec::new(), "bad.crl: no revocation list found"),
        ] {
            let result = parse(&cas, Some(&[good.clone(), ("bad.crl", bytes)]));
            assert_refused(result, Reason::BadPem, &[words]);
        }
        assert_refused(
            parse(&cas, Some(&[])),
            Reason::BadPem,
            &["crl is configured"],
        );
    }
}
