//! Which client certificate a service presents. `cert` and `key`, `bundle`, `secret`,
//! `credential` and `client_auth = false` are one setting in several keys: a table that says one of them replaces
//! what would be inherited as a whole, because half of it would mix two identities.

use std::path::PathBuf;

use super::document::{Slot, TlsTable};
use super::kubernetes::ObjectRef;
use super::problem::{At, Findings, Wrong};
use super::{Credential, IdentitySource};

/// What one table says of the identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// Nothing: it is inherited.
    Nothing,
    /// Something that was reported as wrong.
    Invalid,
    /// `cert` and `key`.
    Pair {
        cert: (PathBuf, At),
        key: (PathBuf, At),
    },
    /// `bundle`.
    Bundle(PathBuf, At),
    /// `secret`, or the annotation for it.
    Secret(ObjectRef, At),
    /// `credential`.
    Credential(Credential, At),
    /// `client_auth = false`.
    None(At),
}

impl Said {
    /// Reads the identity keys of one table, which is called `path`; `farther` is what it would
    /// inherit.
    pub(super) fn in_table(
        tls: &TlsTable,
        path: &str,
        farther: &[&Self],
        findings: &mut Findings<'_>,
    ) -> Self {
        let none = match &tls.client_auth {
            Slot::Set(false, at) => Some(*at),
            _ => None,
        };
        fn written<T>(name: &'static str, slot: &Slot<T>) -> Option<&'static str> {
            slot.is_written().then_some(name)
        }
        let named: Vec<&str> = [
            written("cert", &tls.cert),
            written("key", &tls.key),
            written("bundle", &tls.bundle),
            written("secret", &tls.secret),
            written("credential", &tls.credential),
        ]
        .into_iter()
        .flatten()
        .collect();

        if let (Some(at), [first, ..]) = (none, named.as_slice()) {
            return report(
                findings,
                at,
                format!("{path}.client_auth"),
                Wrong::new(
                    format!("client_auth = false presents no certificate, but {first} names one"),
                    format!(
                        "remove one of the two: client_auth, or {}",
                        named.join(" and ")
                    ),
                ),
            );
        }
        let wholes: Vec<&str> = ["secret", "credential", "bundle"]
            .into_iter()
            .filter(|whole| named.contains(whole))
            .collect();
        for (at, whole, what) in [
            (
                tls.secret.at(),
                "secret",
                "is a Secret with key and certificates",
            ),
            (
                tls.credential.at(),
                "credential",
                "holds key and certificates",
            ),
            (tls.bundle.at(), "bundle", "holds key and certificates"),
        ] {
            if let (Some(at), true) = (at, named.len() > 1) {
                let other = named.iter().find(|name| **name != whole);
                let wrong = Wrong::new(
                    format!(
                        "{whole} {what}, but {} is there too",
                        other.unwrap_or(&"key")
                    ),
                    match wholes.as_slice() {
                        [_] => format!("keep either {whole}, or cert and key"),
                        wholes => format!("keep one of {}, or cert and key", wholes.join(", ")),
                    },
                );
                return report(findings, at, format!("{path}.{whole}"), wrong);
            }
        }
        match (&tls.secret, &tls.credential) {
            (Slot::Set(object, at), Slot::Absent) => return Self::Secret(object.clone(), *at),
            (Slot::Absent, Slot::Set(credential, at)) => {
                return Self::Credential(credential.clone(), *at);
            }
            (Slot::Absent, Slot::Absent) => {}
            _ => return Self::Invalid,
        }
        match (&tls.cert, &tls.key, &tls.bundle, none) {
            (Slot::Absent, Slot::Absent, Slot::Absent, Some(at)) => Self::None(at),
            (Slot::Absent, Slot::Absent, Slot::Absent, None)
                if tls.client_auth == Slot::Invalid =>
            {
                Self::Invalid
            }
            (Slot::Absent, Slot::Absent, Slot::Absent, None) => Self::Nothing,
            (Slot::Absent, Slot::Absent, Slot::Set(bundle, at), _) => {
                Self::Bundle(bundle.clone(), *at)
            }
            (Slot::Set(cert, cert_at), Slot::Set(key, key_at), Slot::Absent, _) => Self::Pair {
                cert: (cert.clone(), *cert_at),
                key: (key.clone(), *key_at),
            },
            (Slot::Set(_, at), Slot::Absent, Slot::Absent, _) => report(
                findings,
                *at,
                format!("{path}.cert"),
                half(*at, "cert", "key", farther),
            ),
            (Slot::Absent, Slot::Set(_, at), Slot::Absent, _) => report(
                findings,
                *at,
                format!("{path}.key"),
                half(*at, "key", "cert", farther),
            ),
            _ => Self::Invalid,
        }
    }

    /// What to read, if anything.
    pub(super) fn source(&self) -> Option<IdentitySource> {
        match self {
            Self::Nothing | Self::Invalid | Self::None(_) => None,
            Self::Pair { cert, key } => Some(IdentitySource::Pair {
                cert: cert.0.clone(),
                key: key.0.clone(),
            }),
            Self::Bundle(path, _) => Some(IdentitySource::Bundle(path.clone())),
            Self::Secret(object, _) => Some(IdentitySource::Secret(object.clone())),
            Self::Credential(credential, _) => Some(IdentitySource::Credential(credential.clone())),
        }
    }

    /// The keys that say it, and where.
    pub(super) fn keys(&self) -> Vec<(&'static str, At)> {
        match self {
            Self::Nothing | Self::Invalid => Vec::new(),
            Self::Pair { cert, key } => vec![("tls.cert", cert.1), ("tls.key", key.1)],
            Self::Bundle(_, at) => vec![("tls.bundle", *at)],
            Self::Secret(_, at) => vec![("tls.secret", *at)],
            Self::Credential(_, at) => vec![("tls.credential", *at)],
            Self::None(at) => vec![("tls.client_auth", *at)],
        }
    }
}

fn report(findings: &mut Findings<'_>, at: At, key: String, wrong: Wrong) -> Said {
    findings.report(at, key, wrong);
    Said::Invalid
}

/// A certificate without its key, or the reverse.
fn half(at: At, here: &str, missing: &str, farther: &[&Said]) -> Wrong {
    if let At::Variable(variable) = at {
        return Wrong::new(
            format!(
                "{variable} is set and the variable for the {missing} is not; a {missing} from elsewhere would not fit"
            ),
            "set both TLSWARD_TLS_CERT and TLSWARD_TLS_KEY, or neither",
        );
    }
    let inherited = farther.iter().find(|said| !matches!(said, Said::Nothing));
    match inherited {
        Some(Said::Pair { .. }) => Wrong::new(
            format!(
                "{here} is set here and {missing} is not; the inherited {missing} belongs to another {here}, so the two would not fit"
            ),
            format!("set {missing} here too, or remove {here} to inherit both"),
        ),
        _ => Wrong::new(
            format!("{here} is set here and {missing} is not"),
            format!("set {missing} here too; where one file holds both, name it in bundle instead"),
        ),
    }
}
