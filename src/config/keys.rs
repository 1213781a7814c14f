//! The one table of keys. Unknown-key detection, the JSON Schema and the tests of the reference
//! and the sample file read it.

mod kubernetes;
mod sandbox;

/// One key.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) default: Default,
    /// One line for people: the reference and editors show it.
    pub(super) doc: &'static str,
    /// What other programs call it, as (program, name): for the reference, and for the hint where
    /// one of these names is written instead.
    pub(super) elsewhere: &'static [(&'static str, &'static str)],
}

/// What a key takes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `true` or `false`.
    Bool,
    /// A whole number within bounds, or `"off"` where allowed.
    Integer { min: u64, max: u64, off: bool },
    /// A duration, or `"off"` where allowed.
    Duration { off: bool },
    /// One of these words.
    Choice(&'static [&'static str]),
    /// Any of these words, in order.
    Choices(&'static [&'static str]),
    /// A string: what it is, and an example.
    Text(&'static str, &'static str),
    /// A list of strings.
    Texts(&'static str, &'static str),
    /// `"used"`, `"any"`, or a list of ports (whole numbers) and ranges of them (strings).
    Ports,
    /// A string that is a name, or a whole number that is a port.
    TextOrPort(&'static str, &'static str),
    /// A string, a list of strings, or an inline table with these keys.
    TextsOrTable(&'static str, &'static str, Table),
    /// A string, an inline table with these keys, or a list of such tables.
    TextOrTables(&'static str, &'static str, Table),
}

/// What holds where the key is not written.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Default {
    /// This value, as TOML.
    Is(&'static str),
    /// No value, which means this.
    Unset(&'static str),
    /// The key must be written.
    Required,
}

/// The tables of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Table {
    /// Outside of any table.
    Top,
    /// `[admin]`.
    Admin,
    /// `[log]`.
    Log,
    /// `[sandbox]`.
    Sandbox,
    /// `[services.NAME]`; except for what is required also `[defaults]`.
    Service,
    /// `[services.NAME.tls]` and `[defaults.tls]`.
    Tls,
    /// `[kubernetes]`.
    Kubernetes,
    /// `[kubernetes.discovery]`.
    Discovery,
    /// `upstream = { … }`: a Kubernetes Service.
    Backend,
    /// `ca = { … }`: a Kubernetes object with CA certificates, or a credential.
    Ca,
}

impl Table {
    /// In the order of the reference.
    pub(super) const ALL: [Self; 10] = [
        Self::Top,
        Self::Admin,
        Self::Log,
        Self::Sandbox,
        Self::Service,
        Self::Tls,
        Self::Kubernetes,
        Self::Discovery,
        Self::Backend,
        Self::Ca,
    ];

    /// The keys of this table, in the order of the reference.
    pub(super) fn keys(self) -> &'static [Key] {
        match self {
            Self::Top => TOP,
            Self::Admin => ADMIN,
            Self::Log => LOG,
            Self::Sandbox => sandbox::SANDBOX,
            Self::Service => SERVICE,
            Self::Tls => TLS,
            Self::Kubernetes => kubernetes::KUBERNETES,
            Self::Discovery => kubernetes::DISCOVERY,
            Self::Backend => kubernetes::BACKEND,
            Self::Ca => kubernetes::CA,
        }
    }

    /// The key of this name.
    pub(super) fn key(self, name: &str) -> Option<&'static Key> {
        self.keys().iter().find(|key| key.name == name)
    }
}

const TOP: &[Key] = &[
    Key {
        name: "shutdown_timeout",
        kind: Kind::Duration { off: false },
        default: Default::Is("\"30s\""),
        doc: "How long open connections may go on after SIGTERM or SIGINT before they are broken.",
        elsewhere: &[("nginx", "worker_shutdown_timeout")],
    },
    Key {
        name: "shutdown_delay",
        kind: Kind::Duration { off: false },
        default: Default::Is("\"0s\""),
        doc: "How long callers are still taken after SIGTERM, while readiness is denied: as long as others need to notice.",
        elsewhere: &[("HAProxy", "grace")],
    },
    Key {
        name: "workers",
        kind: Kind::Integer {
            min: 1,
            max: 1024,
            off: false,
        },
        default: Default::Unset("one for each CPU that this process may use"),
        doc: "Threads that carry connections. Counts from the next start on.",
        elsewhere: &[
            ("nginx", "worker_processes"),
            ("HAProxy", "nbthread"),
            ("Envoy", "concurrency"),
        ],
    },
];

const ADMIN: &[Key] = &[
    Key {
        name: "listen",
        kind: Kind::Text(
            "a loopback address, a unix socket or \"off\"",
            "127.0.0.1:9901",
        ),
        default: Default::Is("\"127.0.0.1:9901\""),
        doc: "Status, metrics, health and POST /reload. Only for this machine.",
        elsewhere: &[("Kong", "admin_listen")],
    },
    Key {
        name: "public_listen",
        kind: Kind::Text("an address, a unix socket or \"off\"", "0.0.0.0:9902"),
        default: Default::Is("\"off\""),
        doc: "Only /livez, /readyz and /metrics, on any address ([::] takes IPv6 alone): for a kubelet and Prometheus.",
        elsewhere: &[("Kong", "status_listen")],
    },
];

const LOG: &[Key] = &[
    Key {
        name: "filter",
        kind: Kind::Text("a log filter", "info,tlsward::proxy=debug"),
        default: Default::Is("\"info\""),
        doc: "What is logged: a level (off, error, warn, info, debug, trace), or target=level pairs.",
        elsewhere: &[("Kong", "log_level")],
    },
    Key {
        name: "connections",
        kind: Kind::Bool,
        default: Default::Is("true"),
        doc: "One line in the log for each ended connection.",
        elsewhere: &[("Kong", "proxy_access_log"), ("nginx", "access_log")],
    },
];

const SERVICE: &[Key] = &[
    Key {
        name: "listen",
        kind: Kind::Text(
            "an address with a port, a unix socket, or a name of systemd's",
            "127.0.0.1:7001",
        ),
        default: Default::Required,
        doc: "Where callers connect: \"127.0.0.1:7001\", \"[::1]:7001\", \"localhost:7001\", \"unix:/path?mode=0660\", or \"systemd:NAME\" for sockets that systemd opens.",
        elsewhere: &[("stunnel", "accept"), ("HAProxy", "bind")],
    },
    Key {
        name: "upstream",
        kind: Kind::TextsOrTable("host:port", "billing.internal:8443", Table::Backend),
        default: Default::Required,
        doc: "Where connections go: \"host:port\", a list that is tried in this order, or a Kubernetes Service.",
        elsewhere: &[("nginx", "proxy_pass"), ("ghostunnel", "target")],
    },
    Key {
        name: "connect_timeout",
        kind: Kind::Duration { off: false },
        default: Default::Is("\"10s\""),
        doc: "Look-up, TCP and TLS handshake together.",
        elsewhere: &[("nginx", "proxy_connect_timeout")],
    },
    Key {
        name: "idle_timeout",
        kind: Kind::Duration { off: true },
        default: Default::Is("\"off\""),
        doc: "Ends a connection without a byte either way. Off, because databases keep idle sessions.",
        elsewhere: &[
            ("nginx", "proxy_timeout"),
            ("Kong", "read_timeout"),
            ("nginx", "proxy_read_timeout"),
        ],
    },
    Key {
        name: "max_lifetime",
        kind: Kind::Duration { off: true },
        default: Default::Is("\"off\""),
        doc: "Ends a connection at this age.",
        elsewhere: &[("Envoy", "max_connection_duration")],
    },
    Key {
        name: "close_timeout",
        kind: Kind::Duration { off: false },
        default: Default::Is("\"60s\""),
        doc: "How long the other side may stay silent after one side has closed; data puts it off.",
        elsewhere: &[("stunnel", "TIMEOUTclose")],
    },
    Key {
        name: "max_connections",
        kind: Kind::Integer {
            min: 1,
            max: 1_000_000,
            off: true,
        },
        default: Default::Is("\"off\""),
        doc: "Open connections at once; more wait in the kernel's backlog.",
        elsewhere: &[("nginx", "max_conns"), ("nginx", "limit_conn")],
    },
    Key {
        name: "max_handshakes",
        kind: Kind::Integer {
            min: 1,
            max: 1_000_000,
            off: true,
        },
        default: Default::Is("256"),
        doc: "TLS handshakes with the upstream at once; more wait for their turn, within connect_timeout.",
        elsewhere: &[],
    },
    Key {
        name: "keepalive",
        kind: Kind::Duration { off: true },
        default: Default::Is("\"3m\""),
        doc: "Idle time before TCP keep-alive probes, on both sides: whole seconds.",
        elsewhere: &[
            ("nginx", "so_keepalive"),
            ("nginx", "proxy_socket_keepalive"),
            ("tcp(7)", "TCP_KEEPIDLE"),
        ],
    },
    Key {
        name: "on_rotation",
        kind: Kind::Choice(&["keep", "drain"]),
        default: Default::Is("\"keep\""),
        doc: "What a new certificate means to open connections: they go on, or they are ended within drain_window.",
        elsewhere: &[],
    },
    Key {
        name: "drain_window",
        kind: Kind::Duration { off: false },
        default: Default::Is("\"60s\""),
        doc: "Over how long the ends are spread where on_rotation = \"drain\"; \"0s\" ends all at once.",
        elsewhere: &[],
    },
    Key {
        name: "unclean_close",
        kind: Kind::Choice(&["reset", "fin"]),
        default: Default::Is("\"reset\""),
        doc: "What the caller sees where the upstream ends without close_notify: a break, or an ordinary end.",
        elsewhere: &[("OpenSSL", "SSL_OP_IGNORE_UNEXPECTED_EOF")],
    },
    Key {
        name: "allow_callers",
        kind: Kind::Texts("a network, an address, uid:N or gid:N", "10.0.0.0/8"),
        default: Default::Unset("whoever can reach the listener"),
        doc: "Who may connect: networks and addresses for TCP listeners, uid:N and gid:N for unix listeners.",
        elsewhere: &[("nginx", "allow")],
    },
    Key {
        name: "allow_remote_callers",
        kind: Kind::Bool,
        default: Default::Is("false"),
        doc: "Says that the listener may be reached from other machines, in the clear and with this service's certificate.",
        elsewhere: &[("ghostunnel", "unsafe-listen")],
    },
];

const TLS: &[Key] = &[
    Key {
        name: "ca",
        kind: Kind::TextOrTables("a path or \"system\"", "certs/ca.crt", Table::Ca),
        default: Default::Unset(
            "ca.crt of secret, if that is set; else required unless verify = \"none\"",
        ),
        doc: "CA certificates: a PEM file, a directory of PEM files, \"system\" for the platform's roots, or Kubernetes objects.",
        elsewhere: &[
            ("nginx", "proxy_ssl_trusted_certificate"),
            ("Kong", "lua_ssl_trusted_certificate"),
            ("Kong", "ca_certificates"),
            ("OpenSSL", "CAfile"),
            ("ghostunnel", "cacert"),
        ],
    },
    Key {
        name: "cert",
        kind: Kind::Text("a path", "certs/client/tls.crt"),
        default: Default::Unset("none; an identity, or client_auth = false, is required"),
        doc: "The client certificate: leaf first, then intermediates. Together with key.",
        elsewhere: &[
            ("nginx", "proxy_ssl_certificate"),
            ("Kong", "client_ssl_cert"),
            ("Kong", "client_certificate"),
        ],
    },
    Key {
        name: "key",
        kind: Kind::Text("a path", "certs/client/tls.key"),
        default: Default::Unset("none"),
        doc: "The private key of cert: PKCS#8, PKCS#1 or SEC1, not encrypted.",
        elsewhere: &[
            ("nginx", "proxy_ssl_certificate_key"),
            ("Kong", "client_ssl_cert_key"),
        ],
    },
    Key {
        name: "bundle",
        kind: Kind::Text("a path", "certs/client.pem"),
        default: Default::Unset("none"),
        doc: "Key and certificates in one PEM file, in either order. Instead of cert and key.",
        elsewhere: &[("ghostunnel", "keystore")],
    },
    Key {
        name: "secret",
        kind: Kind::Text("a name or \"namespace/name\"", "payments/billing-client"),
        default: Default::Unset("none"),
        doc: "A Kubernetes Secret with tls.crt, tls.key and, where ca is not set, ca.crt. Instead of cert and key.",
        elsewhere: &[
            ("Kong", "client-cert"),
            ("ingress-nginx", "proxy-ssl-secret"),
        ],
    },
    Key {
        name: "credential",
        kind: Kind::Text("a name", "billing"),
        default: Default::Unset("none"),
        doc: "A credential of systemd (LoadCredential=NAME:…) with key and certificates. Instead of cert and key.",
        elsewhere: &[("systemd", "LoadCredential")],
    },
    Key {
        name: "client_auth",
        kind: Kind::Bool,
        default: Default::Is("true"),
        doc: "false says that no certificate is presented to the upstream.",
        elsewhere: &[("Kong", "client_ssl")],
    },
    Key {
        name: "verify",
        kind: Kind::Choice(&["full", "chain", "none"]),
        default: Default::Is("\"full\""),
        doc: "What is verified of the upstream: chain and name, only the chain, or nothing (warned of).",
        elsewhere: &[("nginx", "proxy_ssl_verify"), ("Kong", "tls_verify")],
    },
    Key {
        name: "verify_depth",
        kind: Kind::Integer {
            min: 0,
            max: 6,
            off: false,
        },
        default: Default::Unset("6, the most that is supported"),
        doc: "Certificates allowed between the upstream's and the trust anchor.",
        elsewhere: &[
            ("nginx", "proxy_ssl_verify_depth"),
            ("Kong", "tls_verify_depth"),
            ("Kong", "lua_ssl_verify_depth"),
        ],
    },
    Key {
        name: "server_name",
        kind: Kind::Text("a DNS name or an address", "billing.internal"),
        default: Default::Unset("the host of the upstream that is dialled"),
        doc: "The name sent as SNI and expected in the certificate.",
        elsewhere: &[
            ("nginx", "proxy_ssl_name"),
            ("stunnel", "checkHost"),
            ("OpenSSL", "servername"),
        ],
    },
    Key {
        name: "sni",
        kind: Kind::Bool,
        default: Default::Is("true"),
        doc: "Send the name to the upstream in the handshake (an address is never sent).",
        elsewhere: &[("nginx", "proxy_ssl_server_name")],
    },
    Key {
        name: "crl",
        kind: Kind::Text("a path", "certs/crl.pem"),
        default: Default::Unset("revocation is not checked"),
        doc: "Certificate revocation lists: a PEM file, or a directory of PEM files. Checked on the whole path.",
        elsewhere: &[("nginx", "proxy_ssl_crl"), ("stunnel", "CRLfile")],
    },
    Key {
        name: "crl_expired",
        kind: Kind::Choice(&["refuse", "accept"]),
        default: Default::Is("\"refuse\""),
        doc: "What a revocation list past its nextUpdate means: refuse the upstream, or go on with the old list.",
        elsewhere: &[],
    },
    Key {
        name: "pins",
        kind: Kind::Texts(
            "\"sha256/\" and the base64 of a digest",
            "sha256/47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",
        ),
        default: Default::Is("[]"),
        doc: "SHA-256 digests of acceptable upstream keys (SubjectPublicKeyInfo), in addition to the chain.",
        elsewhere: &[("curl", "pinnedpubkey")],
    },
    Key {
        name: "allowed_names",
        kind: Kind::Texts(
            "a DNS name or a URI, with * for one part",
            "spiffe://cluster.local/ns/*/sa/billing",
        ),
        default: Default::Is("[]"),
        doc: "At least one name in the upstream's certificate must match one of these.",
        elsewhere: &[("ghostunnel", "verify-uri"), ("ghostunnel", "verify-dns")],
    },
    Key {
        name: "min_version",
        kind: Kind::Choice(&["1.2", "1.3"]),
        default: Default::Is("\"1.2\""),
        doc: "Lowest TLS version.",
        elsewhere: &[
            ("nginx", "proxy_ssl_protocols"),
            ("stunnel", "sslVersionMin"),
            ("OpenSSL", "MinProtocol"),
        ],
    },
    Key {
        name: "max_version",
        kind: Kind::Choice(&["1.2", "1.3"]),
        default: Default::Is("\"1.3\""),
        doc: "Highest TLS version.",
        elsewhere: &[("stunnel", "sslVersionMax"), ("OpenSSL", "MaxProtocol")],
    },
    Key {
        name: "key_exchange",
        kind: Kind::Choices(&[
            "X25519MLKEM768",
            "X25519",
            "secp256r1",
            "secp384r1",
            "P-256",
            "P-384",
        ]),
        default: Default::Is("[\"X25519MLKEM768\", \"X25519\", \"secp256r1\", \"secp384r1\"]"),
        doc: "Key exchange groups in order of preference; P-256 and P-384 are other names of the last two.",
        elsewhere: &[
            ("OpenSSL", "Groups"),
            ("stunnel", "curves"),
            ("stunnel", "curve"),
        ],
    },
    Key {
        name: "alpn",
        kind: Kind::Texts("a protocol name", "h2"),
        default: Default::Is("[]"),
        doc: "Protocols offered by ALPN, in order. Where some are offered, the upstream must choose one.",
        elsewhere: &[],
    },
    Key {
        name: "resumption",
        kind: Kind::Bool,
        default: Default::Is("true"),
        doc: "Resume earlier TLS sessions; never across services or certificates.",
        elsewhere: &[
            ("nginx", "proxy_ssl_session_reuse"),
            ("stunnel", "sessionResume"),
        ],
    },
    Key {
        name: "record_layer",
        kind: Kind::Choice(&["own", "rustls"]),
        default: Default::Is("\"own\""),
        doc: "Who cuts and joins the records of TLS 1.3: tlsward, which moves many at once, or rustls, at about twice the CPU per byte. Both seal and open with rustls' ciphers.",
        elsewhere: &[],
    },
];

/// The path of a key below its table, as TOML would write it.
pub(super) fn path(parent: &str, name: &str) -> String {
    let bare = !name.is_empty()
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-');
    match (parent.is_empty(), bare) {
        (true, true) => name.to_owned(),
        (true, false) => format!("{name:?}"),
        (false, true) => format!("{parent}.{name}"),
        (false, false) => format!("{parent}.{name:?}"),
    }
}

/// The candidate that `word` was most likely meant to be.
pub(super) fn nearest<'c>(
    word: &str,
    candidates: impl IntoIterator<Item = &'c str>,
) -> Option<&'c str> {
    // Both measures, because an edit is much in a short word and a common prefix is much in a
    // long one. The bounds are set by the tests below.
    let word = word.to_ascii_lowercase();
    candidates
        .into_iter()
        .map(|candidate| {
            let lower = candidate.to_ascii_lowercase();
            let edits = strsim::damerau_levenshtein(&word, &lower);
            let near =
                edits <= 1.max(lower.len() / 4) || strsim::jaro_winkler(&word, &lower) >= 0.9;
            (edits, near, candidate)
        })
        .filter(|(_, near, candidate)| *near && candidate.len() > 1)
        .min_by_key(|(edits, ..)| *edits)
        .map(|(.., candidate)| candidate)
}

/// `"a", "b" or "c"`.
pub(super) fn quoted(words: &[&str]) -> String {
    let words: Vec<String> = words.iter().map(|word| format!("{word:?}")).collect();
    match words.as_slice() {
        [] => String::new(),
        [only] => only.clone(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typing_error_finds_its_key_and_another_word_finds_none() {
        let names = || SERVICE.iter().chain(TLS).map(|key| key.name);
        for (typed, meant) in [
            ("upsteam", Some("upstream")),
            ("Listen", Some("listen")),
            ("connect-timeout", Some("connect_timeout")),
            ("connection_timeout", Some("connect_timeout")),
            ("verfiy", Some("verify")),
            ("servername", Some("server_name")),
            ("certs", Some("cert")),
            ("allow_caller", Some("allow_callers")),
            ("colour", None),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(nearest(typed, names()), meant, "{typed}");
        }
    }

    #[test]
    fn no_name_of_another_program_is_a_key_of_the_same_table_or_stands_twice() {
        for table in Table::ALL {
            let mut seen = std::collections::BTreeSet::new();
            for key in table.keys() {
                assert!(seen.insert(key.name), "{}", key.name);
                for (_, name) in key.elsewhere {
                    assert!(seen.insert(name), "{name}");
                }
            }
        }
    }
}
