//! From what went wrong to the one vocabulary of [`failure`](crate::failure).

use std::io;
use std::net::SocketAddr;

use rustls::{AlertDescription, CertificateError, Error as TlsError, PeerIncompatible};
use rustls_pki_types::ServerName;

use super::handshake::HandshakeError;
use super::relay::{Break, Transfer};
use super::resolve::ResolveError;
use crate::failure::{Explained, Failure, Phase, Reason, Side};
use crate::route::Presented;

/// A look-up failed.
pub(super) fn look_up_failed(error: ResolveError) -> Failure {
    match error {
        // The name is ours to get right.
        ResolveError::NotFound(detail) => {
            Failure::new(Phase::Resolve, Side::Local, Reason::DnsNotFound, detail)
        }
        ResolveError::Failed(detail) => {
            Failure::new(Phase::Resolve, Side::Local, Reason::DnsFailed, detail)
        }
    }
}

/// No address took a TCP connection.
pub(super) fn connect_failed((address, error): (SocketAddr, io::Error)) -> Failure {
    let (side, reason) = match error.kind() {
        io::ErrorKind::ConnectionRefused => (Side::Upstream, Reason::Refused),
        io::ErrorKind::ConnectionReset => (Side::Upstream, Reason::Reset),
        io::ErrorKind::TimedOut => (Side::Upstream, Reason::Timeout),
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
            (Side::Upstream, Reason::Unreachable)
        }
        _ if out_of_descriptors(&error) => (Side::Local, Reason::TooManyFiles),
        _ => (Side::Local, Reason::LocalResource),
    };
    Failure::new(Phase::Connect, side, reason, format!("{address}: {error}"))
}

/// This process (EMFILE) or the machine (ENFILE) has no file descriptor left.
pub(super) fn out_of_descriptors(error: &io::Error) -> bool {
    let errno = error
        .raw_os_error()
        .map(rustix::io::Errno::from_raw_os_error);
    matches!(
        errno,
        Some(rustix::io::Errno::MFILE | rustix::io::Errno::NFILE)
    )
}

/// A handshake failed.
pub(super) fn handshake_failed(
    error: HandshakeError,
    server_name: &ServerName<'_>,
    identity: &Presented,
) -> Failure {
    let upstream =
        |reason, detail: String| Failure::new(Phase::Handshake, Side::Upstream, reason, detail);
    match error {
        HandshakeError::Io(error) => upstream(
            Reason::Reset,
            format!("the connection broke during the handshake: {error}"),
        ),
        HandshakeError::Ended => upstream(
            Reason::ClosedInHandshake,
            "the server closed the connection during the handshake without an alert".into(),
        ),
        HandshakeError::NotTls(said) => upstream(
            Reason::NotTls,
            format!("the server said {:?}", String::from_utf8_lossy(&said)),
        ),
        HandshakeError::NoAlpn => upstream(
            Reason::NoSharedAlpn,
            "the server chose none of the protocols offered in alpn".into(),
        ),
        HandshakeError::Tls {
            error,
            verdict,
            server_accepted,
        } => tls_failed(Phase::Handshake, &error, verdict, server_accepted, identity)
            .unwrap_or_else(|| {
                upstream(
                    Reason::ProtocolError,
                    format!("{error} (server name {server_name:?})"),
                )
            }),
    }
}

/// No session could be made of a finished handshake.
pub(crate) fn no_session(error: TlsError) -> Failure {
    let detail = format!("the session that was agreed on cannot be used: {error}");
    Failure::new(Phase::Handshake, Side::Local, Reason::Internal, detail)
}

/// A relay broke off.
pub(crate) fn relay_broke(broken: Break, transfer: &Transfer, identity: &Presented) -> Failure {
    let relay = |side, reason, detail: String| Failure::new(Phase::Relay, side, reason, detail);
    match broken {
        Break::Caller(error) => relay(
            Side::Caller,
            Reason::Reset,
            format!("the caller broke the connection: {error}"),
        ),
        Break::Upstream(error) => relay(
            Side::Upstream,
            Reason::Reset,
            format!("the upstream broke the connection: {error}"),
        ),
        Break::Truncated => relay(
            Side::Upstream,
            Reason::Truncated,
            format!(
                "the upstream ended without close_notify after {} bytes",
                transfer.down
            ),
        ),
        // A TLS 1.3 server judges our certificate after the handshake is over for us. Until it
        // has sent data of its own, its alert is part of the handshake.
        Break::Tls(error) => {
            let late = matches!(*error, TlsError::AlertReceived(_)) && !transfer.answered;
            let phase = if late { Phase::Handshake } else { Phase::Relay };
            tls_failed(phase, &error, None, true, identity).unwrap_or_else(|| {
                Failure::new(
                    phase,
                    Side::Upstream,
                    Reason::ProtocolError,
                    error.to_string(),
                )
            })
        }
        Break::KeysExhausted => relay(
            Side::Local,
            Reason::MaxLifetime,
            "the session's keys have sealed as many records as they safely can".into(),
        ),
        Break::Idle => relay(
            Side::Local,
            Reason::IdleTimeout,
            "no byte either way".into(),
        ),
        Break::MaxLifetime => relay(
            Side::Local,
            Reason::MaxLifetime,
            "the connection has lived long enough".into(),
        ),
        Break::CloseTimeout => relay(
            Side::Local,
            Reason::CloseTimeout,
            "one way ended, and the other was silent and did not".into(),
        ),
    }
}

/// rustls' errors in our words. `None`: the peer broke the protocol, in a way that only rustls'
/// own text describes.
fn tls_failed(
    phase: Phase,
    error: &TlsError,
    verdict: Option<Explained>,
    server_accepted: bool,
    identity: &Presented,
) -> Option<Failure> {
    let why = match error {
        TlsError::AlertReceived(alert) => {
            let (side, reason) = alert_reason(*alert, server_accepted, identity);
            let name = alert_name(*alert);
            let mut failure =
                Failure::new(phase, side, reason, alert_detail(&name, reason, identity));
            failure.alert = Some(name);
            return Some(failure);
        }
        // Before rustls' own words: where our key cannot sign, for example, it has none that fit.
        _ if verdict.is_some() => verdict?,
        TlsError::InvalidCertificate(error) => {
            Explained::new(certificate_reason(error), format!("{error:?}"))
        }
        TlsError::PeerIncompatible(
            incompatible @ (PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
            | PeerIncompatible::SupportedVersionsExtensionRequired),
        ) => Explained::new(Reason::ProtocolVersion, format!("{incompatible:?}")),
        TlsError::PeerIncompatible(incompatible) => {
            Explained::new(Reason::NoSharedCipher, format!("{incompatible:?}"))
        }
        TlsError::NoApplicationProtocol => Explained::new(
            Reason::NoSharedAlpn,
            "the server speaks none of the protocols in alpn",
        ),
        TlsError::NoCertificatesPresented => Explained::new(
            Reason::BadCertificate,
            "the server presented no certificate",
        ),
        TlsError::InvalidMessage(_)
        | TlsError::PeerMisbehaved(_)
        | TlsError::DecryptError
        | TlsError::PeerSentOversizedRecord
        | TlsError::InappropriateMessage { .. }
        | TlsError::InappropriateHandshakeMessage { .. } => return None,
        // Everything else is about our own use of rustls, or of this machine's clock and random
        // source: rustls' list is open, so the wildcard cannot be avoided.
        other => {
            return Some(Failure::new(
                phase,
                Side::Local,
                Reason::Internal,
                other.to_string(),
            ));
        }
    };
    Some(Failure {
        phase,
        side: Side::Upstream,
        why,
        alert: None,
    })
}

/// What an alert says, given what we had presented when it came.
fn alert_reason(
    alert: AlertDescription,
    server_accepted: bool,
    identity: &Presented,
) -> (Side, Reason) {
    use AlertDescription as A;
    let presented = matches!(identity, Presented::Certificate { .. });
    let reason = match alert {
        A::CertificateRequired | A::NoCertificate if !presented => {
            Reason::ClientCertificateRequired
        }
        A::BadCertificate
        | A::UnsupportedCertificate
        | A::CertificateRevoked
        | A::CertificateExpired
        | A::CertificateUnknown
        | A::UnknownCA
        | A::AccessDenied
        | A::CertificateRequired
        | A::NoCertificate
            if presented =>
        {
            Reason::ClientCertificateRejected
        }
        // TLS 1.2 has no alert for a missing certificate; servers use this one (RFC 5246
        // section 7.4.6). It comes after theirs was accepted.
        A::HandshakeFailure | A::BadCertificate if server_accepted && !presented => {
            Reason::ClientCertificateRequired
        }
        A::HandshakeFailure if server_accepted => Reason::ClientCertificateRejected,
        A::HandshakeFailure | A::InsufficientSecurity => Reason::NoSharedCipher,
        A::ProtocolVersion | A::InappropriateFallback => Reason::ProtocolVersion,
        A::UnrecognisedName => Reason::UnrecognisedName,
        A::NoApplicationProtocol => Reason::NoSharedAlpn,
        // The peer's list is open, and so is rustls'.
        _ => Reason::Alert,
    };
    // Which certificate we present, or that we present none, is our configuration.
    let ours = matches!(reason, Reason::ClientCertificateRequired);
    (if ours { Side::Local } else { Side::Upstream }, reason)
}

fn alert_detail(alert: &str, reason: Reason, identity: &Presented) -> String {
    match (reason, identity) {
        (Reason::ClientCertificateRejected, Presented::Certificate { fingerprint, .. }) => format!(
            "upstream rejected our certificate (sha256 {}…): {alert}",
            fingerprint.get(..16).unwrap_or(fingerprint)
        ),
        (Reason::ClientCertificateRequired, Presented::Nothing) => {
            format!("upstream wants a client certificate and client_auth is false: {alert}")
        }
        _ => format!("upstream sent the alert {alert}"),
    }
}

/// The name of an alert as RFC 8446 section 6 and RFC 5246 section 7.2 write it.
fn alert_name(alert: AlertDescription) -> String {
    use AlertDescription as A;
    let known = match alert {
        A::CloseNotify => "close_notify",
        A::UnexpectedMessage => "unexpected_message",
        A::BadRecordMac => "bad_record_mac",
        A::DecryptionFailed => "decryption_failed",
        A::RecordOverflow => "record_overflow",
        A::DecompressionFailure => "decompression_failure",
        A::HandshakeFailure => "handshake_failure",
        A::NoCertificate => "no_certificate",
        A::BadCertificate => "bad_certificate",
        A::UnsupportedCertificate => "unsupported_certificate",
        A::CertificateRevoked => "certificate_revoked",
        A::CertificateExpired => "certificate_expired",
        A::CertificateUnknown => "certificate_unknown",
        A::IllegalParameter => "illegal_parameter",
        A::UnknownCA => "unknown_ca",
        A::AccessDenied => "access_denied",
        A::DecodeError => "decode_error",
        A::DecryptError => "decrypt_error",
        A::ExportRestriction => "export_restriction",
        A::ProtocolVersion => "protocol_version",
        A::InsufficientSecurity => "insufficient_security",
        A::InternalError => "internal_error",
        A::InappropriateFallback => "inappropriate_fallback",
        A::UserCanceled => "user_canceled",
        A::NoRenegotiation => "no_renegotiation",
        A::MissingExtension => "missing_extension",
        A::UnsupportedExtension => "unsupported_extension",
        A::CertificateUnobtainable => "certificate_unobtainable",
        A::UnrecognisedName => "unrecognized_name",
        A::BadCertificateStatusResponse => "bad_certificate_status_response",
        A::BadCertificateHashValue => "bad_certificate_hash_value",
        A::UnknownPSKIdentity => "unknown_psk_identity",
        A::CertificateRequired => "certificate_required",
        A::NoApplicationProtocol => "no_application_protocol",
        A::EncryptedClientHelloRequired => "ech_required",
        other => return format!("alert {}", u8::from(other)),
    };
    known.into()
}

/// For a certificate error of which our verifier has not said more.
fn certificate_reason(error: &CertificateError) -> Reason {
    use CertificateError as E;
    match error {
        E::Expired | E::ExpiredContext { .. } => Reason::Expired,
        E::NotValidYet | E::NotValidYetContext { .. } => Reason::NotYetValid,
        E::Revoked => Reason::Revoked,
        E::UnknownIssuer => Reason::UntrustedIssuer,
        E::UnknownRevocationStatus => Reason::RevocationUnknown,
        E::ExpiredRevocationList | E::ExpiredRevocationListContext { .. } => Reason::CrlExpired,
        E::NotValidForName | E::NotValidForNameContext { .. } => Reason::NameMismatch,
        E::InvalidPurpose | E::InvalidPurposeContext { .. } => Reason::WrongUsage,
        // rustls' list is open.
        _ => Reason::BadCertificate,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate() -> Presented {
        Presented::Certificate {
            fingerprint: "ab".repeat(32).into(),
            generation: 1,
        }
    }

    #[test]
    fn an_alert_before_the_first_byte_is_the_handshakes_and_after_it_the_relays() {
        let alert = || {
            Break::Tls(Box::new(TlsError::AlertReceived(
                AlertDescription::UnknownCA,
            )))
        };
        let silent = Transfer::default();
        let failure = relay_broke(alert(), &silent, &certificate());
        assert_eq!(failure.phase, Phase::Handshake);
        assert_eq!(failure.why.reason, Reason::ClientCertificateRejected);
        assert_eq!(failure.alert.as_deref(), Some("unknown_ca"));
        assert!(
            failure.why.detail.contains("rejected our certificate"),
            "{failure}"
        );

        let answered = Transfer {
            answered: true,
            ..silent
        };
        assert_eq!(
            relay_broke(alert(), &answered, &certificate()).phase,
            Phase::Relay
        );
    }

    #[test]
    fn a_missing_certificate_is_told_from_a_rejected_one() {
        use AlertDescription as A;
        let reason =
            |alert, accepted, identity: &Presented| alert_reason(alert, accepted, identity).1;
        let nothing = Presented::Nothing;
        assert_eq!(
            reason(A::CertificateRequired, true, &nothing),
            Reason::ClientCertificateRequired
        );
        assert_eq!(
            reason(A::HandshakeFailure, true, &nothing),
            Reason::ClientCertificateRequired
        );
        assert_eq!(
            reason(A::HandshakeFailure, false, &nothing),
            Reason::NoSharedCipher
        );
        assert_eq!(
            reason(A::BadCertificate, true, &certificate()),
            Reason::ClientCertificateRejected
        );
        assert_eq!(
            reason(A::HandshakeFailure, false, &certificate()),
            Reason::NoSharedCipher
        );
        assert_eq!(
            reason(A::InternalError, true, &certificate()),
            Reason::Alert
        );
    }

    #[test]
    fn what_was_found_wrong_in_the_handshake_is_told_whatever_rustls_calls_it() {
        // How it looks where our key makes no signature that the server takes.
        let error = HandshakeError::Tls {
            error: TlsError::General("cannot sign".into()),
            verdict: Some(Explained::new(Reason::NoSharedCipher, "our client key …")),
            server_accepted: true,
        };
        let name = ServerName::try_from("localhost").unwrap();
        let failure = handshake_failed(error, &name, &certificate());
        assert_eq!(failure.side, Side::Upstream);
        assert_eq!(failure.why.reason, Reason::NoSharedCipher, "{failure}");
        assert_eq!(failure.why.detail, "our client key …");
    }

    #[test]
    fn an_alert_of_no_known_name_keeps_its_number() {
        assert_eq!(alert_name(AlertDescription::Unknown(200)), "alert 200");
    }
}
