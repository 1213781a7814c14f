//! The one vocabulary of failure: the same words in the log, in metric labels, in status and from
//! `tlsward probe`.

use std::fmt;

use serde::Serialize;

/// What was being done when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Taking the caller's connection.
    Accept,
    /// Looking up the upstream's name.
    Resolve,
    /// Opening the TCP connection to the upstream.
    Connect,
    /// The TLS handshake, a TLS 1.3 server's late verdict on our certificate included.
    Handshake,
    /// Carrying bytes.
    Relay,
}

impl Phase {
    /// Every phase, in the order of a connection's life.
    pub const ALL: [Self; 5] = [
        Self::Accept,
        Self::Resolve,
        Self::Connect,
        Self::Handshake,
        Self::Relay,
    ];

    /// The word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::Resolve => "resolve",
            Self::Connect => "connect",
            Self::Handshake => "handshake",
            Self::Relay => "relay",
        }
    }
}

/// Whose side it was on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// The application that connected to us.
    Caller,
    /// This machine, or our own configuration.
    Local,
    /// The server.
    Upstream,
}

impl Side {
    /// Every side.
    pub const ALL: [Self; 3] = [Self::Caller, Self::Local, Self::Upstream];

    /// The word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Caller => "caller",
            Self::Local => "local",
            Self::Upstream => "upstream",
        }
    }
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $word:literal, $hint:literal;)+) => {
        /// Why a connection failed, or why a credential or configuration was refused: a closed list.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason { $($(#[doc = $doc])+ $variant,)+ }

        impl Reason {
            /// Every reason.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The word for logs, metric labels, status and probe.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }

            /// What the operator can do about it.
            #[must_use]
            pub fn hint(self) -> &'static str {
                match self { $(Self::$variant => $hint,)+ }
            }
        }
    };
}

reasons! {
    // accept
    /// The listener is not for this caller (`allow_callers`).
    CallerNotAllowed = "caller_not_allowed",
        "this caller is not in allow_callers of the service; add its network, uid or gid if it should be";
    /// No file descriptor was left for another connection.
    TooManyFiles = "too_many_files",
        "raise the limit of open files (LimitNOFILE= in the unit, ulimit -n): each connection needs two";
    /// The kernel refused for want of memory, ports or another local resource.
    LocalResource = "local_resource",
        "this machine ran out of memory, local ports or another resource; the detail names it";
    /// The caller went away before the upstream was ready.
    CallerLeft = "caller_left",
        "the application closed before the upstream answered; compare its connect timeout with connect_timeout";
    // resolve
    /// The name does not exist.
    DnsNotFound = "dns_not_found",
        "check the host in upstream for a typing error, and that this machine's resolver knows the name";
    /// The look-up failed for another cause.
    DnsFailed = "dns_failed",
        "this machine's resolver did not answer properly; check /etc/resolv.conf and the name server";
    /// The Kubernetes Service has no endpoint that takes connections.
    NoEndpoints = "no_endpoints",
        "no pod behind the Kubernetes Service is ready: see kubectl get endpointslices -l kubernetes.io/service-name=NAME, and the pods' readiness";
    // connect
    /// The upstream's port is closed.
    Refused = "refused",
        "nothing listens at the upstream's address; check host and port, and that the server runs";
    /// No way to the upstream.
    Unreachable = "unreachable",
        "no route to the upstream, or a firewall refuses; check routing and firewall on this machine";
    /// It took longer than allowed.
    Timeout = "timeout",
        "look-up, TCP and handshake together took longer than connect_timeout; the phase says where it hung, and in the handshake side local means in line for its turn: raise max_handshakes or connect_timeout, or help the upstream";
    // handshake: the server's certificate
    /// The chain does not end at one of our trust anchors.
    UntrustedIssuer = "untrusted_issuer",
        "the server's certificate is not issued by a CA in ca; add the issuer's certificate to ca, or have the server send its intermediates";
    /// The certificate is for another name.
    NameMismatch = "name_mismatch",
        "set server_name to one of the names in the server's certificate, if that is the server you mean";
    /// The name is right but not among `allowed_names`.
    NameNotAllowed = "name_not_allowed",
        "no name in the server's certificate matches allowed_names; check the pattern, or which server answered";
    /// The certificate, or its issuer, has expired.
    Expired = "expired",
        "renew the certificate that the detail names; if it looks valid, check this machine's clock";
    /// The certificate is not valid yet.
    NotYetValid = "not_yet_valid",
        "check the clocks of this machine and of the one that issued the certificate";
    /// The certificate is on a revocation list.
    Revoked = "revoked",
        "the issuer has revoked this certificate; the server needs a new one";
    /// No revocation list covers this certificate.
    RevocationUnknown = "revocation_unknown",
        "crl must hold a list from each CA of the server's chain; add the missing one";
    /// The revocation list is past its `nextUpdate`.
    CrlExpired = "crl_expired",
        "fetch the current list into crl; crl_expired = \"accept\" goes on with an old one";
    /// More intermediates than `verify_depth` allows.
    ChainTooLong = "chain_too_long",
        "verify_depth counts the certificates between the server's and the CA; raise it, or add the intermediate to ca";
    /// The server's key is not pinned.
    PinMismatch = "pin_mismatch",
        "the server's key is not in pins; add the digest that the detail shows, if the change of key was meant";
    /// The certificate may not be used by a server (or, for our own, by a client).
    WrongUsage = "wrong_usage",
        "the certificate's extended key usage does not allow this use; have it issued with serverAuth (servers) or clientAuth (ours)";
    /// The certificate is malformed, or its signature is wrong or of a kind not supported.
    BadCertificate = "bad_certificate",
        "the certificate cannot be used as it is; the detail says why: have it issued anew";
    // handshake: our certificate
    /// The server wants a client certificate and we presented none.
    ClientCertificateRequired = "client_certificate_required",
        "the server asks for a client certificate: give the service tls.cert and tls.key and remove client_auth = false";
    /// The server did not accept our client certificate.
    ClientCertificateRejected = "client_certificate_rejected",
        "the server refused our client certificate: it must be issued by a CA that the server trusts, be current, and be the one mapped at the server";
    // handshake: the protocol
    /// No TLS version in common.
    ProtocolVersion = "protocol_version",
        "the server does not speak a TLS version between min_version and max_version";
    /// No cipher suite, group or signature scheme in common.
    NoSharedCipher = "no_shared_cipher",
        "no cipher suite, key exchange group or signature scheme in common; check key_exchange and the server's settings";
    /// No ALPN protocol in common.
    NoSharedAlpn = "no_shared_alpn",
        "the server speaks none of the protocols in alpn; correct the list or remove it";
    /// The server answered something that is not TLS.
    NotTls = "not_tls",
        "the upstream's port does not speak TLS; check the port, or whether the server expects STARTTLS";
    /// The server knows no host of the name that we sent as SNI.
    UnrecognisedName = "unrecognised_name",
        "the server has no host of this name; check server_name, or set sni = false";
    /// The server ended the connection in the middle of the handshake, without an alert.
    ClosedInHandshake = "closed_in_handshake",
        "the server closed before it had taken us and did not say why; its log does: suspect a client certificate that it wants, a name that it does not know, or a limit";
    /// The server sent an alert that no other reason covers.
    Alert = "alert",
        "the server ended TLS with the alert in the detail; its log says why";
    /// The server broke the TLS protocol, or tampering was found.
    ProtocolError = "protocol_error",
        "what the server sent is not valid TLS; suspect a middlebox, or a fault in the server";
    // relay
    /// The stream ended without close_notify: it may be cut short.
    Truncated = "truncated",
        "the connection ended without TLS close_notify; if the server always does that, set unclean_close = \"fin\"";
    /// The connection was reset.
    Reset = "reset",
        "the peer reset the connection; its log says why";
    /// No byte passed for `idle_timeout`.
    IdleTimeout = "idle_timeout",
        "no byte passed for idle_timeout; raise it, or have the application send keep-alives";
    /// The connection was older than `max_lifetime`.
    MaxLifetime = "max_lifetime",
        "the connection reached max_lifetime; raise it if applications cannot reconnect";
    /// One side had closed and the other was silent for `close_timeout`.
    CloseTimeout = "close_timeout",
        "one side closed, and the other was silent for close_timeout without closing too; raise it if answers take longer";
    /// Ended by `on_rotation = "drain"`.
    Rotated = "rotated",
        "ended because the certificate was replaced and on_rotation is \"drain\"; the next connection uses the new one";
    /// Ended by the shutdown deadline.
    Shutdown = "shutdown",
        "still open when shutdown_timeout passed; raise it if connections need longer to end";
    // credentials and configuration
    /// A file of the identity is not there.
    IdentityMissing = "identity_missing",
        "put the certificate and key where the configuration says; the service comes alive by itself";
    /// systemd has not handed over a credential that the configuration names.
    CredentialMissing = "credential_missing",
        "add LoadCredential=NAME:/path (or LoadCredentialEncrypted=) to the unit (systemctl edit), and restart: credentials are handed over at start; by hand: systemd-run -p LoadCredential=NAME:/path tlsward …";
    /// A file of the CA certificates or revocation lists is not there.
    TrustMissing = "trust_missing",
        "put the CA certificates where the configuration says; the service comes alive by itself";
    /// A file is there but cannot be read.
    Unreadable = "unreadable",
        "let the user that tlsward runs as read the file (mode, owner, or fsGroup and defaultMode in Kubernetes)";
    /// A file is not PEM, or holds something else than is needed.
    BadPem = "bad_pem",
        "the file must hold PEM blocks of the kind that the detail names";
    /// The key is of a kind that cannot be used.
    BadKey = "bad_key",
        "use an unencrypted ECDSA (P-256, P-384, P-521), Ed25519 or RSA (2048 bits or more) key in PKCS#8, PKCS#1 or SEC1";
    /// Key and certificate do not belong together.
    KeyMismatch = "key_mismatch",
        "the key does not fit the first certificate; write both anew, from the same issue";
    /// Key and certificate do not fit yet: one of them has just changed.
    RotationInProgress = "rotation_in_progress",
        "waiting for the other file of the pair; after 10 s this becomes key_mismatch";
    /// None of the CA certificates can be used.
    NoTrustAnchor = "no_trust_anchor",
        "no certificate in ca can be a trust anchor; the detail says why for each";
    /// A Kubernetes object lacks the entries that are needed.
    BadSecret = "bad_secret",
        "the object must hold tls.crt and tls.key (an identity), or ca.crt or the entry named by key (a CA), each not empty";
    /// The Kubernetes API server refuses to tell.
    Forbidden = "forbidden",
        "the service account may not read this object: tlsward rbac -c FILE prints the role that the configuration needs";
    /// The Kubernetes API server does not answer.
    ApiUnavailable = "api_unavailable",
        "the Kubernetes API server does not answer; what was last known goes on, and it is tried again by itself: check the network, kubeconfig and NetworkPolicy";
    /// There is no such Kubernetes Service.
    ServiceMissing = "service_missing",
        "create the Service, or correct service and namespace in upstream; tlsward takes it up by itself";
    /// An annotation of a Kubernetes Service is wrong, or its port is not there.
    BadAnnotation = "bad_annotation",
        "correct the annotation that the detail names, on the Service; the other services are not concerned";
    /// Another service has the listener that this one asks for.
    ListenerTaken = "listener_taken",
        "give the Service another port or path in tlsward/listen; the older Service keeps the one that both ask for";
    /// The configuration was refused.
    BadConfig = "bad_config",
        "run tlsward check: it lists every mistake with its place";
    /// The sandbox that was entered at the start does not hold what is needed now.
    Sandboxed = "sandboxed",
        "restart tlsward, which enters the sandbox for the files and ports of its new configuration; or widen [sandbox] for reloads to come (docs/sandbox.md)";
    /// The listener's address cannot be bound.
    BindFailed = "bind_failed",
        "another program has the address, or it is not this machine's; ss -ltnp shows who listens";
    /// A bug in tlsward.
    Internal = "internal",
        "this is a bug in tlsward; please report it with the detail";
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Reason {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// A reason with the particulars of this case: names, fingerprints, dates, addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explained {
    /// Why.
    pub reason: Reason,
    /// The particulars, for people.
    pub detail: String,
    /// What to do: the reason's hint.
    pub hint: &'static str,
}

impl Explained {
    /// A reason with its particulars.
    pub fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self {
            reason,
            detail: detail.into(),
            hint: reason.hint(),
        }
    }
}

impl fmt::Display for Explained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason, self.detail)
    }
}

/// How a connection failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// What was being done.
    pub phase: Phase,
    /// Whose side it was on.
    pub side: Side,
    /// Why, with particulars and what to do.
    #[serde(flatten)]
    pub why: Explained,
    /// The TLS alert that was received, by its name in RFC 8446 section 6 (or RFC 5246).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alert: Option<String>,
}

impl Failure {
    /// A failure without an alert.
    pub fn new(phase: Phase, side: Side, reason: Reason, detail: impl Into<String>) -> Self {
        Self {
            phase,
            side,
            why: Explained::new(reason, detail),
            alert: None,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ({}): {}",
            self.phase.as_str(),
            self.side.as_str(),
            self.why
        )
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_reason_has_a_word_of_its_own_and_a_hint() {
        let words: BTreeSet<_> = Reason::ALL.iter().map(|r| r.as_str()).collect();
        assert_eq!(words.len(), Reason::ALL.len());
        for reason in Reason::ALL {
            assert!(reason.hint().len() > 20, "{reason} needs a hint");
            assert!(
                reason
                    .as_str()
                    .chars()
                    .all(|c| c.is_ascii_lowercase() || c == '_')
            );
        }
    }
}
