//! Why a server's certificate was refused, with names, fingerprints and dates.
//!
//! webpki says what is wrong and mostly not with which certificate. That is found out here, after
//! the fact and only for people: nothing in this file decides whether a certificate is good.

use rustls::CertificateError;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use x509_parser::certificate::X509Certificate;

use super::{Refusal, other};
use crate::failure::{Explained, Reason};
use crate::tls::summary::{self, CertificateSummary, utc, visible};
use crate::tls::trust::{CrlSummary, Trust};

/// What the server presented, and when.
#[derive(Clone, Copy)]
pub(super) struct Presented<'a> {
    pub(super) end_entity: &'a CertificateDer<'a>,
    pub(super) intermediates: &'a [CertificateDer<'a>],
    pub(super) now: UnixTime,
}

impl Presented<'_> {
    /// What webpki's error means for people and for the server.
    pub(super) fn refusal(&self, error: webpki::Error, trust: Option<&Trust>) -> Refusal {
        use webpki::Error as E;
        match error {
            E::CertExpired { time, not_after } => Refusal {
                error: CertificateError::ExpiredContext { time, not_after },
                why: self.out_of_window(
                    Reason::Expired,
                    |certificate| certificate.not_after == not_after.as_secs() as i64,
                    &format!("expired on {}", utc(not_after.as_secs() as i64)),
                ),
            },
            E::CertNotValidYet { time, not_before } => Refusal {
                error: CertificateError::NotValidYetContext { time, not_before },
                why: self.out_of_window(
                    Reason::NotYetValid,
                    |certificate| certificate.not_before == not_before.as_secs() as i64,
                    &format!("is not valid before {}", utc(not_before.as_secs() as i64)),
                ),
            },
            E::UnknownIssuer => self.unknown_issuer(trust),
            E::InvalidSignatureForPublicKey => self.bad_signature(trust),
            E::CertRevoked => self.revoked(trust),
            E::UnknownRevocationStatus => Refusal {
                error: CertificateError::UnknownRevocationStatus,
                why: self.no_list(trust),
            },
            E::CrlExpired { time, next_update } => Refusal {
                error: CertificateError::ExpiredRevocationListContext { time, next_update },
                why: self.list_expired(trust, next_update),
            },
            E::InvalidCrlSignatureForPublicKey | E::IssuerNotCrlSigner => Refusal {
                error: CertificateError::UnknownRevocationStatus,
                why: self.about_leaf(
                    Reason::RevocationUnknown,
                    &format!(
                        "a revocation list for its chain cannot be relied on: {}",
                        in_words(&error)
                    ),
                ),
            },
            E::UnsupportedCrlSignatureAlgorithmContext(_)
            | E::UnsupportedCrlSignatureAlgorithmForPublicKeyContext(_)
            | E::UnsupportedRevocationReason
            | E::UnsupportedRevocationReasonsPartitioning
            | E::UnsupportedCrlIssuingDistributionPoint => Refusal {
                error: CertificateError::UnknownRevocationStatus,
                why: self.about_leaf(
                    Reason::RevocationUnknown,
                    &format!("a revocation list for its chain cannot be used: {error}"),
                ),
            },
            E::MaximumPathDepthExceeded => Refusal {
                error: CertificateError::UnknownIssuer,
                why: self.about_leaf(
                    Reason::ChainTooLong,
                    "no path with at most 6 intermediates, the most that is ever followed, leads \
                     to a certificate in ca",
                ),
            },
            E::RequiredEkuNotFoundContext(_) | E::EmptyEkuExtension => Refusal {
                error: CertificateError::InvalidPurpose,
                why: self.wrong_usage(),
            },
            // OpenSSL sends unknown_ca for these, too.
            E::EndEntityUsedAsCa | E::PathLenConstraintViolated => Refusal {
                error: CertificateError::UnknownIssuer,
                why: self.about_chain(&error),
            },
            E::CaUsedAsEndEntity | E::UnsupportedCertVersion => Refusal {
                error: CertificateError::InvalidPurpose,
                why: self.about_leaf(Reason::BadCertificate, &in_words(&error)),
            },
            E::UnsupportedCriticalExtension => Refusal {
                error: CertificateError::UnhandledCriticalExtension,
                why: self.critical_extension(),
            },
            E::BadDer | E::BadDerTime | E::TrailingData(_) => Refusal {
                error: CertificateError::BadEncoding,
                why: self.about_chain(&error),
            },
            E::UnsupportedSignatureAlgorithmContext(context) => Refusal {
                error: CertificateError::UnsupportedSignatureAlgorithmContext {
                    signature_algorithm_id: context.signature_algorithm_id.clone(),
                    supported_algorithms: context.supported_algorithms.clone(),
                },
                why: self.about_chain(&E::UnsupportedSignatureAlgorithmContext(context)),
            },
            error => {
                let why = self.about_chain(&error);
                Refusal {
                    error: other(error),
                    why,
                }
            }
        }
    }

    /// The certificate is good and names somebody else.
    pub(super) fn wrong_name(&self, error: webpki::Error, wanted: &ServerName<'_>) -> Refusal {
        let webpki::Error::CertNotValidForName(context) = error else {
            return self.refusal(error, None);
        };
        let wanted = wanted.to_str();
        Refusal {
            error: CertificateError::NotValidForNameContext {
                expected: context.expected,
                presented: context.presented,
            },
            why: Explained::new(
                Reason::NameMismatch,
                format!(
                    "{} is not for {wanted}; it holds {}",
                    self.leaf_phrase(),
                    self.leaf_names()
                ),
            ),
        }
    }

    pub(super) fn anchor_expired(&self, anchor: &CertificateSummary) -> Refusal {
        Refusal {
            error: CertificateError::Expired,
            why: self.about_leaf(
                Reason::Expired,
                &format!(
                    "it is issued under {} in ca, which expired on {}; now is {}",
                    anchor.phrase(),
                    utc(anchor.not_after),
                    utc(self.seconds())
                ),
            ),
        }
    }

    pub(super) fn too_long(
        &self,
        between: usize,
        allowed: u8,
        anchor: &CertificateSummary,
    ) -> Refusal {
        Refusal {
            // unknown_ca, as OpenSSL for "certificate chain too long".
            error: CertificateError::UnknownIssuer,
            why: self.about_leaf(
                Reason::ChainTooLong,
                &format!(
                    "{between} certificates stand between it and {} in ca; verify_depth is \
                     {allowed}",
                    anchor.phrase()
                ),
            ),
        }
    }

    pub(super) fn may_not_issue(&self, issuer: &CertificateDer<'_>) -> Refusal {
        Refusal {
            error: other(webpki::Error::EndEntityUsedAsCa),
            why: self.about_leaf(
                Reason::BadCertificate,
                &format!(
                    "the intermediate {} may not issue certificates: its keyUsage does not \
                     include keyCertSign",
                    phrase(issuer)
                ),
            ),
        }
    }

    pub(super) fn too_many_below(
        &self,
        below: usize,
        allowed: u32,
        anchor: &CertificateSummary,
    ) -> Refusal {
        Refusal {
            error: other(webpki::Error::PathLenConstraintViolated),
            why: self.about_leaf(
                Reason::BadCertificate,
                &format!(
                    "{below} CAs stand between it and {} in ca, whose pathLenConstraint allows \
                     {allowed}",
                    anchor.phrase()
                ),
            ),
        }
    }

    pub(super) fn internal(&self, what: &str) -> Refusal {
        Refusal {
            error: CertificateError::ApplicationVerificationFailure,
            why: self.about_leaf(Reason::Internal, what),
        }
    }

    pub(super) fn seconds(&self) -> i64 {
        self.now.as_secs() as i64
    }

    pub(super) fn leaf_phrase(&self) -> String {
        phrase(self.end_entity)
    }

    pub(super) fn leaf_names(&self) -> String {
        match CertificateSummary::of(self.end_entity) {
            Ok(leaf) => leaf.names_phrase(),
            Err(problem) => problem,
        }
    }

    fn about_leaf(&self, reason: Reason, what: &str) -> Explained {
        Explained::new(reason, format!("{}: {what}", self.leaf_phrase()))
    }

    /// Leaf first; certificates that cannot be read are passed over.
    fn summaries(&self) -> Vec<CertificateSummary> {
        std::iter::once(self.end_entity)
            .chain(self.intermediates)
            .filter_map(|der| CertificateSummary::of(der).ok())
            .collect()
    }

    /// One certificate of the chain is past its time, or before it.
    fn out_of_window(
        &self,
        reason: Reason,
        is_it: impl Fn(&CertificateSummary) -> bool,
        what: &str,
    ) -> Explained {
        let chain = self.summaries();
        let culprit = chain.iter().find(|certificate| is_it(certificate));
        let (place, who) = match culprit {
            Some(culprit) if Some(culprit) == chain.first() => {
                ("the server's certificate", culprit.phrase())
            }
            Some(culprit) => ("the server's intermediate", culprit.phrase()),
            None => ("a certificate of the chain of", self.leaf_phrase()),
        };
        Explained::new(
            reason,
            format!("{place} {who} {what}; now is {}", utc(self.seconds())),
        )
    }

    fn unknown_issuer(&self, trust: Option<&Trust>) -> Refusal {
        let chain = self.summaries();
        let mut detail = self.leaf_phrase();
        // Follow the names upwards as far as the server's certificates go.
        let mut top = chain.first();
        for _ in 0..chain.len() {
            let next = top.and_then(|below| {
                chain.iter().skip(1).find(|above| {
                    above.subject == below.issuer && above.fingerprint != below.fingerprint
                })
            });
            match next {
                Some(above) => top = Some(above),
                None => break,
            }
        }
        let sent = match self.intermediates.len() {
            0 => "the server sent no other certificate".to_owned(),
            1 => "the server sent 1 other certificate".to_owned(),
            n => format!("the server sent {n} other certificates"),
        };
        match top {
            Some(top) if top.subject == top.issuer => detail.push_str(&format!(
                " leads to the self-signed {}, which is not in ca",
                top.subject
            )),
            Some(top) => {
                detail.push_str(&format!(" needs {} as issuer, not in ca", top.issuer));
            }
            None => detail.push_str(" cannot be read"),
        }
        detail.push_str(&format!(" ({sent})"));
        if let Some(trust) = trust {
            detail.push_str(&format!("; {} searched", anchors_in_words(trust)));
            let left_out = trust.left_out.iter().find(|left_out| {
                top.is_some_and(|top| !top.issuer.is_empty() && left_out.contains(&top.issuer))
            });
            if let Some(left_out) = left_out {
                detail.push_str(&format!("; left out of ca: {left_out}"));
            }
        }
        Refusal {
            error: CertificateError::UnknownIssuer,
            why: Explained::new(Reason::UntrustedIssuer, detail),
        }
    }

    /// A signature does not verify with the key of the issuer of that name. Mostly the name was
    /// used for two CAs (a CA that was made anew), which other libraries see by the key
    /// identifiers: then it is an unknown issuer. Where the identifiers agree, the certificate was
    /// altered.
    fn bad_signature(&self, trust: Option<&Trust>) -> Refusal {
        let altered = std::iter::once(self.end_entity)
            .chain(self.intermediates)
            .filter_map(|der| summary::parse(der).ok())
            .any(|certificate| {
                let Some(wanted) = summary::authority_key(&certificate) else {
                    return false;
                };
                self.intermediates.iter().any(|issuer| {
                    summary::parse(issuer).is_ok_and(|issuer| {
                        issuer.subject().as_raw() == certificate.issuer().as_raw()
                            && summary::subject_key(&issuer) == Some(wanted)
                    })
                }) || trust.is_some_and(|trust| trust.holds_key(&certificate, wanted))
            });
        if altered {
            return Refusal {
                error: CertificateError::BadSignature,
                why: self.about_leaf(
                    Reason::BadCertificate,
                    "the issuer's signature on it, or on an intermediate, is wrong: the \
                     certificate was altered or damaged",
                ),
            };
        }
        let mut detail = format!(
            "{} is signed with another key than that of the CA of this name",
            self.leaf_phrase()
        );
        if let Some(trust) = trust {
            detail.push_str(&format!(
                " (was the CA made anew?); {} searched",
                anchors_in_words(trust)
            ));
        }
        Refusal {
            error: CertificateError::UnknownIssuer,
            why: Explained::new(Reason::UntrustedIssuer, detail),
        }
    }

    fn revoked(&self, trust: Option<&Trust>) -> Refusal {
        let found = trust.and_then(|trust| {
            self.parsed().into_iter().find_map(|(summary, parsed)| {
                let (list, when) = trust.revocation_of(&parsed)?;
                Some((summary, list, when))
            })
        });
        let detail = match found {
            Some((certificate, list, when)) => format!(
                "{}, serial {}, was revoked on {} by the list in {}",
                certificate.phrase(),
                certificate.serial,
                utc(when),
                list.place
            ),
            None => format!("{}, or an issuer of it, is revoked", self.leaf_phrase()),
        };
        Refusal {
            error: CertificateError::Revoked,
            why: Explained::new(Reason::Revoked, detail),
        }
    }

    fn no_list(&self, trust: Option<&Trust>) -> Explained {
        let lists = trust.map_or(&[][..], |trust| &trust.crls);
        let uncovered: Vec<String> = self
            .summaries()
            .into_iter()
            .filter(|certificate| certificate.subject != certificate.issuer)
            .filter(|certificate| !lists.iter().any(|list| list.issuer == certificate.issuer))
            .map(|certificate| {
                format!(
                    "{} needs one of {}",
                    certificate.subject, certificate.issuer
                )
            })
            .collect();
        let what = match uncovered.is_empty() {
            true => "no list in crl speaks for this certificate or for an issuer of it".to_owned(),
            false => format!("no revocation list: {}", uncovered.join(", ")),
        };
        self.about_leaf(Reason::RevocationUnknown, &what)
    }

    fn list_expired(&self, trust: Option<&Trust>, next_update: UnixTime) -> Explained {
        let seconds = next_update.as_secs() as i64;
        let list = trust.and_then(|trust| {
            let is_it = |list: &&CrlSummary| list.next_update == Some(seconds);
            trust.crls.iter().find(is_it)
        });
        let which = list.map_or_else(
            || "a revocation list".to_owned(),
            |list| format!("the revocation list of {} in {}", list.issuer, list.place),
        );
        self.about_leaf(
            Reason::CrlExpired,
            &format!(
                "{which} should have been replaced by {}; now is {}",
                utc(seconds),
                utc(self.seconds())
            ),
        )
    }

    fn wrong_usage(&self) -> Explained {
        let unsuited = self.parsed().into_iter().find(|(_, parsed)| {
            parsed
                .extended_key_usage()
                .is_ok_and(|usage| usage.is_some_and(|usage| !usage.value.server_auth))
        });
        let (who, client) = match unsuited {
            Some((summary, parsed)) => (
                summary.phrase(),
                parsed
                    .extended_key_usage()
                    .is_ok_and(|usage| usage.is_some_and(|usage| usage.value.client_auth)),
            ),
            None => (self.leaf_phrase(), false),
        };
        let remark = match client {
            true => "; it is a client certificate",
            false => "",
        };
        Explained::new(
            Reason::WrongUsage,
            format!("the extended key usage of {who} does not include serverAuth{remark}"),
        )
    }

    fn critical_extension(&self) -> Explained {
        // What webpki 0.103 reads in a certificate.
        const KNOWN: [&str; 7] = [
            "2.5.29.15",
            "2.5.29.17",
            "2.5.29.19",
            "2.5.29.30",
            "2.5.29.31",
            "2.5.29.37",
            "1.3.6.1.4.1.11129.2.4.2",
        ];
        for (summary, parsed) in self.parsed() {
            for extension in parsed.extensions() {
                let oid = extension.oid.to_id_string();
                if extension.critical && !KNOWN.contains(&oid.as_str()) {
                    return Explained::new(
                        Reason::BadCertificate,
                        format!(
                            "{} carries the critical extension {oid}, which tlsward does not know",
                            summary.phrase()
                        ),
                    );
                }
            }
        }
        self.about_leaf(
            Reason::BadCertificate,
            "a certificate of the chain carries a critical extension that tlsward does not know",
        )
    }

    fn about_chain(&self, error: &webpki::Error) -> Explained {
        self.about_leaf(
            Reason::BadCertificate,
            &format!("it or its chain cannot be used: {}", in_words(error)),
        )
    }

    fn parsed(&self) -> Vec<(CertificateSummary, X509Certificate<'_>)> {
        std::iter::once(self.end_entity)
            .chain(self.intermediates)
            .filter_map(|der| {
                let parsed = summary::parse(der).ok()?;
                Some((CertificateSummary::from_parsed(der, &parsed), parsed))
            })
            .collect()
    }
}

/// The certificate in one phrase, or why it cannot be read.
pub(super) fn phrase(der: &CertificateDer<'_>) -> String {
    match CertificateSummary::of(der) {
        Ok(summary) => summary.phrase(),
        Err(problem) => visible(&format!("a certificate that cannot be read ({problem})")),
    }
}

/// What webpki is strict about, in the words of whoever issues certificates.
pub(super) fn in_words(error: &webpki::Error) -> String {
    use webpki::Error as E;
    match error {
        E::CaUsedAsEndEntity => "it is a CA certificate (basicConstraints CA:TRUE, as openssl req \
            -x509 makes them) and cannot be a server's; issue a certificate with CA:FALSE"
            .to_owned(),
        E::UnsupportedCertVersion => "it is an X.509 version 1 certificate (openssl x509 -req \
            without -extfile makes them); issue a version 3 certificate with a subjectAltName"
            .to_owned(),
        E::EndEntityUsedAsCa => {
            "an issuer in the chain is not a CA (basicConstraints CA:FALSE)".to_owned()
        }
        E::PathLenConstraintViolated => {
            "a CA in the chain may not have as many CAs below it (pathLenConstraint)".to_owned()
        }
        E::NameConstraintViolation => {
            "a CA in the chain may not issue for this name (nameConstraints)".to_owned()
        }
        E::InvalidCrlSignatureForPublicKey => {
            "the list is signed with another key than that of the CA of this name".to_owned()
        }
        E::IssuerNotCrlSigner => "the CA's keyUsage does not include cRLSign".to_owned(),
        E::MaximumSignatureChecksExceeded
        | E::MaximumPathBuildCallsExceeded
        | E::MaximumNameConstraintComparisonsExceeded => {
            "checking the certificates that the server sent takes too much work".to_owned()
        }
        error => error.to_string(),
    }
}

fn anchors_in_words(trust: &Trust) -> String {
    match trust.anchors.as_slice() {
        [only] => format!("1 certificate in ca ({})", only.phrase()),
        all => format!("{} certificates in ca", all.len()),
    }
}
