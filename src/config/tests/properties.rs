//! Properties: nothing panics, what is rendered is read back, and annotations reach no further than
//! their own service and namespace.

use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::*;
use crate::config::annotations::KNOWN;

/// Every problem points into the text, and printing works.
fn check(text: &str) {
    if let Err(problems) = parse_with(text, [("HOST", "h"), ("TLSWARD_TLS_CA", "x")]) {
        assert!(problems.len() > 0);
        let lines = text.split('\n').count();
        for problem in &problems {
            assert!(
                !problem.reason.is_empty() && !problem.fix.is_empty(),
                "{problem:?}"
            );
            if let Place::File { line, column, .. } = &problem.place {
                let length = text.split('\n').nth(line - 1).unwrap().chars().count();
                assert!(
                    (1..=lines).contains(line) && (1..=length + 1).contains(column),
                    "{problem:?}"
                );
            }
        }
        let _ = problems.to_string();
    }
}

/// Pieces from which a random text comes close to a configuration.
const PIECES: [&str; 51] = [
    "\n",
    "\n",
    "\n",
    " = ",
    "=",
    "[",
    "]",
    "[[",
    "]]",
    "{",
    "}",
    ",",
    ".",
    "\"",
    "'",
    "\"\"\"",
    "#",
    "\\",
    "${",
    "$${",
    "}",
    "ü",
    "\r\n",
    "\0",
    "true",
    "7",
    "1979-05-27",
    "1.2",
    "[services.a]\n",
    "[defaults.tls]\n",
    "[services]\n",
    "listen",
    "tls",
    "upstream = \"a:1\"\n",
    "listen = \"127.0.0.1:1\"\n",
    "verify = \"none\"\n",
    "cert = \"${HOST}\"\n",
    "client_auth = false\n",
    "secret = \"p/c\"\n",
    "secret = ",
    "credential = \"c\"\n",
    "ca = { credential = \"c\" }\n",
    "ca = { configmap = \"p/c\", key = \"k\" }\n",
    "upstream = { service = \"s\", namespace = \"n\" }\n",
    "service = ",
    "port = 443",
    "[kubernetes]\n",
    "[kubernetes.discovery]\n",
    "namespace = \"n\"\n",
    "namespaces = [\"*\"]\n",
    "selector = \"a in (b)\"\n",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_text_makes_it_panic(text in "\\PC{0,60}|(?s).{0,60}") {
        check(&text);
    }

    #[test]
    fn no_mixture_of_pieces_makes_it_panic(pieces in prop::collection::vec(select(&PIECES[..]), 0..40)) {
        check(&pieces.concat());
    }

    #[test]
    fn no_damage_to_the_sample_makes_it_panic(
        cut in any::<Index>(), length in 0..80usize, piece in select(&PIECES[..]),
    ) {
        let sample = read("config.toml").replace("\n#", "\n");
        let start = floor(&sample, cut.index(sample.len()));
        let end = floor(&sample, start + length);
        check(&format!("{}{piece}{}", &sample[..start], &sample[end..]));
    }

    #[test]
    fn a_rendered_configuration_is_read_back(
        defaults in table(),
        services in prop::collection::vec(table(), 0..4),
    ) {
        let mut text = String::from("[defaults]\n");
        text += &render(&defaults, "[defaults.tls]\nca = \"/ca.crt\"\nclient_auth = false\n");
        for (n, service) in services.iter().enumerate() {
            text += &format!("[services.s{n}]\nlisten = \"127.0.0.1:{}\"\nupstream = \"s{n}:1\"\n", 7_000 + n);
            text += &render(service, &format!("[services.s{n}.tls]\n"));
        }
        let config = parse_with(&text, []).map_err(|problems| {
            TestCaseError::fail(format!("{text}\n{problems}"))
        })?;
        prop_assert_eq!(config.services.len(), services.len());
        for (own, service) in services.iter().zip(config.services.values()) {
            let expected = |n: usize| own[n].or(defaults[n]);
            for (n, key) in KEYS.iter().enumerate() {
                let value = expected(n).map_or(key.default, |choice| key.values[choice].1);
                prop_assert_eq!((key.shown)(service), value, "{} in\n{}", key.name, text);
            }
        }
    }
}

/// Words that are the value of some annotation, and some that are of none.
const VALUES: [&str; 40] = [
    "",
    "true",
    "false",
    "1",
    "True",
    "ture",
    "0",
    "6",
    "7",
    "-1",
    "on",
    "https",
    "http",
    "tls",
    "client",
    "a.b",
    "a,b",
    " a , b,",
    "other/client",
    "victim/client",
    "/etc/passwd",
    "full",
    "none",
    "chain",
    "1.2",
    "1.3",
    "h2",
    "X25519,P-256",
    "unix:a.sock",
    "unix:/etc/a",
    "unix:../a",
    "7001",
    "7002",
    "0.0.0.0:7001",
    "443",
    "billing.internal",
    "*.internal",
    "10000",
    "sha256/47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",
    "\u{1b}[31mü\n",
];

fn annotations() -> impl Strategy<Value = BTreeMap<String, String>> {
    let known: Vec<String> = KNOWN.iter().map(|known| known.name.to_owned()).collect();
    let name = prop_oneof![
        8 => select(known),
        1 => select(vec!["tlsward/ca".to_owned(), "tlsward/nonsense".to_owned(), "konghq.com/retries".to_owned()]),
        1 => "tlsward/\\PC{0,10}|konghq.com/[a-z-]{0,12}",
    ];
    let value = prop_oneof![
        9 => select(&VALUES[..]).prop_map(str::to_owned),
        1 => "\\PC{0,30}",
    ];
    // Near enough to a service that one is often built.
    let listen = select(
        &[
            "7001",
            "7004",
            "7005",
            "unix:a.sock",
            "unix:/etc/a",
            "unix:../a",
        ][..],
    );
    let client = select(&["client", "client", "victim/client", ""][..]);
    (
        listen,
        client,
        prop::collection::btree_map(name, value, 0..4),
    )
        .prop_map(|(listen, client, mut annotations)| {
            for (name, value) in [
                ("tlsward/listen", listen),
                ("tlsward/port", "443"),
                ("konghq.com/client-cert", client),
            ] {
                let name = name.to_owned();
                annotations.entry(name).or_insert_with(|| value.to_owned());
            }
            annotations
        })
}

/// A file with a service of its own, one whose upstream is the Service `payments/billing`, and
/// discovery of all.
const AROUND: &str = "[kubernetes.discovery]\nnamespaces = [\"*\"]\nsocket_directory = \"/run/s\"\n\
    [defaults.tls]\nca = \"/ca.crt\"\nserver_name = \"inherited\"\n\
    [services.own]\nlisten = \"127.0.0.1:7002\"\nupstream = \"own:1\"\ntls.client_auth = false\n\
    [services.named]\nlisten = \"127.0.0.1:7003\"\n\
    upstream = { service = \"billing\", namespace = \"payments\", port = 443 }\n";

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn annotations_reach_their_own_service_and_namespace_and_nothing_else(
        annotations in annotations(),
    ) {
        // The older, so that its listener is not to be had.
        let mut neighbour = service(
            "victim/ledger",
            &["https 443"],
            [("tlsward/listen", "7001"), ("konghq.com/client-cert", "client")],
        );
        neighbour.created_at = -1;
        let known = |annotations: BTreeMap<String, String>| {
            let mut billing = service("payments/billing", &["http 80", "https 443"], []);
            billing.annotations = annotations;
            let mut known = cluster([neighbour.clone(), billing]);
            known.discovered = known.services.keys().cloned().collect();
            known
        };
        let plain = parse_in(AROUND, [], &known(BTreeMap::new())).unwrap();
        let config = parse_in(AROUND, [], &known(annotations.clone())).unwrap();
        for name in ["own", "ledger.victim"] {
            let name = plain.services.keys().find(|key| key.as_str() == name).unwrap();
            prop_assert_eq!(config.services.get(name), plain.services.get(name));
        }
        for (name, service) in &config.services {
            prop_assert!(!config.unbuilt.contains_key(name));
            if ["own", "ledger.victim"].contains(&name.as_str()) {
                continue;
            }
            prop_assert_eq!(config.backends[name].to_string(), "payments/billing");
            // No certificate of another namespace, no file but what is inherited, no way in for
            // others.
            let identity = match &service.identity {
                Some(IdentitySource::Secret(object)) => object.namespace == "payments",
                None => annotations.contains_key("tlsward/client-auth"),
                Some(_) => false,
            };
            prop_assert!(identity, "{:?}", service);
            match service.trust.as_ref() {
                None => prop_assert_eq!(service.tls.verify, Verify::None),
                Some(trust) => {
                    prop_assert_eq!(&trust.crl, &None);
                    match &trust.ca {
                        CaSource::Path(path) => prop_assert_eq!(path, Path::new("/ca.crt")),
                        CaSource::System | CaSource::Credential(_) => prop_assert!(false),
                        CaSource::Objects(objects) => {
                            let shown = format!("{objects:?}");
                            let own = shown.matches("namespace: \"payments\"").count();
                            prop_assert_eq!(own, objects.len());
                        }
                    }
                }
            }
            let local = match &service.listen {
                Listen::Tcp(address) => address.ip().is_loopback(),
                Listen::Unix { path, .. } => path.parent() == Some(Path::new("/run/s")),
                Listen::Systemd(_) => false,
            };
            prop_assert!(local, "{}", service.listen);
        }
        for unbuilt in config.unbuilt.values() {
            prop_assert_eq!(unbuilt.object.to_string(), "payments/billing");
            if let Obstacle::Mistakes(problems) = &unbuilt.obstacle {
                for problem in problems {
                    prop_assert!(!problem.reason.is_empty() && !problem.fix.is_empty());
                    let printed = problem.to_string();
                    prop_assert!(!printed.contains('\u{1b}'), "{}", printed);
                }
            }
        }
        // Neither the order nor the place of what is said makes a difference.
        prop_assert_eq!(parse_in(AROUND, [], &known(annotations)).unwrap(), config);
    }
}

fn floor(text: &str, index: usize) -> usize {
    (0..=index.min(text.len()))
        .rev()
        .find(|i| text.is_char_boundary(*i))
        .unwrap_or(0)
}

/// For each of `KEYS`, which of its values a table sets, if any.
type Choices = Vec<Option<usize>>;

fn table() -> impl Strategy<Value = Choices> {
    KEYS.iter()
        .map(|key| prop::option::of(0..key.values.len()))
        .collect::<Vec<_>>()
}

fn render(choices: &Choices, tls_header: &str) -> String {
    let lines = |tls: bool| -> String {
        let set = KEYS
            .iter()
            .zip(choices)
            .filter(|(key, _)| key.name.starts_with("tls.") == tls);
        set.filter_map(|(key, choice)| {
            let name = key.name.trim_start_matches("tls.");
            choice.map(|choice| format!("{name} = {}\n", key.values[choice].0))
        })
        .collect()
    };
    format!("{}{tls_header}{}", lines(false), lines(true))
}

/// A key, some of its values as TOML and as the model shows them, and the built-in default.
struct KeyModel {
    name: &'static str,
    values: &'static [(&'static str, &'static str)],
    default: &'static str,
    shown: fn(&Service) -> String,
}

const KEYS: &[KeyModel] = &[
    KeyModel {
        name: "connect_timeout",
        values: &[
            ("\"1s\"", "1s"),
            ("\"1m30s\"", "90s"),
            ("\"250ms\"", "250ms"),
        ],
        default: "10s",
        shown: |s| format!("{:?}", s.timeouts.connect),
    },
    KeyModel {
        name: "idle_timeout",
        values: &[("\"off\"", "None"), ("\"1d\"", "Some(86400s)")],
        default: "None",
        shown: |s| format!("{:?}", s.timeouts.idle),
    },
    KeyModel {
        name: "keepalive",
        values: &[("'off'", "None"), ("\"5s\"", "Some(5s)")],
        default: "Some(180s)",
        shown: |s| format!("{:?}", s.keepalive),
    },
    KeyModel {
        name: "max_connections",
        values: &[
            ("\"off\"", "None"),
            ("1_000", "Some(1000)"),
            ("0x10", "Some(16)"),
        ],
        default: "None",
        shown: |s| format!("{:?}", s.max_connections),
    },
    KeyModel {
        name: "unclean_close",
        values: &[("\"fin\"", "Fin"), ("\"reset\"", "Reset")],
        default: "Reset",
        shown: |s| format!("{:?}", s.unclean_close),
    },
    KeyModel {
        name: "on_rotation",
        values: &[("\"keep\"", "Keep"), ("\"drain\"", "Drain")],
        default: "Keep",
        shown: |s| match s.on_rotation {
            OnRotation::Keep => "Keep".to_owned(),
            OnRotation::Drain { .. } => "Drain".to_owned(),
        },
    },
    KeyModel {
        name: "allow_callers",
        values: &[
            ("[\"10.0.0.0/8\"]", "Networks([10.0.0.0/8])"),
            ("[\"::1\"]", "Networks([::1/128])"),
        ],
        default: "Anyone",
        shown: |s| format!("{:?}", s.allow_callers),
    },
    KeyModel {
        name: "tls.verify",
        values: &[("\"full\"", "Full"), ("\"chain\"", "Chain")],
        default: "Full",
        shown: |s| format!("{:?}", s.tls.verify),
    },
    KeyModel {
        name: "tls.verify_depth",
        values: &[("0", "Some(0)"), ("6", "Some(6)")],
        default: "None",
        shown: |s| format!("{:?}", s.tls.verify_depth),
    },
    KeyModel {
        name: "tls.min_version",
        values: &[("\"1.2\"", "Tls12"), ("\"1.3\"", "Tls13")],
        default: "Tls12",
        shown: |s| format!("{:?}", s.tls.min_version),
    },
    KeyModel {
        name: "tls.key_exchange",
        values: &[("[\"P-384\", \"X25519\"]", "[Secp384r1, X25519]")],
        default: "[X25519MlKem768, X25519, Secp256r1, Secp384r1]",
        shown: |s| format!("{:?}", s.tls.key_exchange),
    },
    KeyModel {
        name: "tls.alpn",
        values: &[
            ("[]", "[]"),
            ("[\"h2\", 'http/1.1']", "[\"h2\", \"http/1.1\"]"),
        ],
        default: "[]",
        shown: |s| format!("{:?}", s.tls.alpn),
    },
    KeyModel {
        name: "tls.server_name",
        values: &[
            ("\"X.internal\"", "Some(DnsName(\"x.internal\"))"),
            ("\"::1\"", "IP"),
        ],
        default: "None",
        shown: |s| match &s.tls.server_name {
            Some(ServerName::IpAddress(_)) => "IP".to_owned(),
            other => format!("{other:?}"),
        },
    },
    KeyModel {
        name: "tls.resumption",
        values: &[("true", "true"), ("false", "false")],
        default: "true",
        shown: |s| s.tls.resumption.to_string(),
    },
    KeyModel {
        name: "tls.record_layer",
        values: &[("\"own\"", "Own"), ("\"rustls\"", "Rustls")],
        default: "Own",
        shown: |s| format!("{:?}", s.tls.record_layer),
    },
];
