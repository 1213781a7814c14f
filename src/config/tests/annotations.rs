//! Annotations of a Service: what each one means, what is refused, and who wins.

use super::*;
use crate::config::annotations::KNOWN;

const HEAD: &str = "[services.billing]\nlisten = \"127.0.0.1:7001\"\n\
                    upstream = { service = \"billing\", namespace = \"payments\" }\n";

/// The file's service `billing`, with these lines in `[defaults.tls]` and in its own `tls` table,
/// where its Service has these annotations.
fn annotated<const N: usize>(
    defaults: &str,
    own: &str,
    annotations: [(&str, &str); N],
) -> Result<Config, Problems> {
    let text = format!("[defaults.tls]\n{defaults}\n{HEAD}[services.billing.tls]\n{own}\n");
    let billing = service("payments/billing", &["443"], annotations);
    parse_in(&text, [], &cluster([billing]))
}

const ALL: &str = "ca = \"/ca.crt\"\nclient_auth = false";

/// What becomes of one annotation beside a complete `[defaults.tls]`.
fn one(name: &str, value: &str) -> Config {
    annotated(ALL, "", [(name, value)]).unwrap()
}

const PIN: &str = "sha256/47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";

/// Annotation, value, and what the service then says of itself.
const GOOD: &[(&str, &str, &str)] = &[
    (
        "konghq.com/client-cert",
        "client",
        "identity: Some(Secret(ObjectRef { namespace: \"payments\", name: \"client\" }))",
    ),
    (
        "configuration.konghq.com/client-cert",
        "a.b",
        "identity: Some(Secret(ObjectRef { namespace: \"payments\", name: \"a.b\" }))",
    ),
    (
        "tlsward/client-cert",
        "client",
        "identity: Some(Secret(ObjectRef { namespace: \"payments\", name: \"client\" }))",
    ),
    ("tlsward/client-auth", "false", "identity: None"),
    ("konghq.com/tls-verify", "true", "verify: Full"),
    ("konghq.com/tls-verify", "false", "verify: None"),
    ("konghq.com/tls-verify", "0", "verify: None"),
    ("konghq.com/tls-verify", "T", "verify: Full"),
    ("tlsward/verify", "full", "verify: Full"),
    ("tlsward/verify", "chain", "verify: Chain"),
    ("tlsward/verify", "none", "verify: None"),
    ("konghq.com/tls-verify-depth", "0", "verify_depth: Some(0)"),
    ("tlsward/verify-depth", "6", "verify_depth: Some(6)"),
    (
        "konghq.com/ca-certificates-secrets",
        "a , b,a",
        "ca: Objects([Secret { object: ObjectRef { namespace: \"payments\", name: \"a\" }, key: CertOrCaCrt }, Secret { object: ObjectRef { namespace: \"payments\", name: \"b\" }, key: CertOrCaCrt }])",
    ),
    (
        "konghq.com/ca-certificates-configmaps",
        " a",
        "ca: Objects([ConfigMap { object: ObjectRef { namespace: \"payments\", name: \"a\" }, key: CertOrCaCrt }])",
    ),
    (
        "konghq.com/host-header",
        "Billing.internal",
        "server_name: Some(DnsName(\"billing.internal\"))",
    ),
    (
        "tlsward/server-name",
        "billing.internal",
        "server_name: Some(DnsName(\"billing.internal\"))",
    ),
    (
        "konghq.com/protocol",
        "https",
        "server_name: Some(DnsName(\"billing.payments.svc\"))",
    ),
    ("konghq.com/protocol", "tls", "verify: Full"),
    ("konghq.com/protocol", "grpcs", "verify: Full"),
    ("configuration.konghq.com/protocol", "wss", "verify: Full"),
    ("konghq.com/connect-timeout", "2500", "connect: 2.5s"),
    ("tlsward/sni", "false", "sni: false"),
    ("tlsward/crl-expired", "accept", "crl_expired: Accept"),
    ("tlsward/pins", PIN, "pins: [[227, 176"),
    (
        "tlsward/allowed-names",
        "*.Internal, spiffe://x/**",
        "allowed_names: [Dns(\"*.internal\"), Uri(\"spiffe://x/**\")]",
    ),
    ("tlsward/min-version", "1.3", "min_version: Tls13"),
    ("tlsward/max-version", "1.2", "max_version: Tls12"),
    (
        "tlsward/key-exchange",
        "X25519,P-256",
        "key_exchange: [X25519, Secp256r1]",
    ),
    (
        "tlsward/alpn",
        "h2, http/1.1",
        "alpn: [\"h2\", \"http/1.1\"]",
    ),
    ("tlsward/resumption", "false", "resumption: false"),
    ("tlsward/record-layer", "rustls", "record_layer: Rustls"),
    // Of discovery: says nothing of a service of the file.
    ("tlsward/listen", "nonsense", "listen: Tcp(127.0.0.1:7001)"),
    ("tlsward/port", "nonsense", "listen: Tcp(127.0.0.1:7001)"),
    // Kong's words that mean nothing here, and others'.
    ("konghq.com/read-timeout", "1", "idle: None"),
    ("konghq.com/write-timeout", "x", "idle: None"),
    ("konghq.com/retries", "x", "verify: Full"),
    ("konghq.com/plugins", "a", "verify: Full"),
    ("configuration.konghq.com/tls-verify", "x", "verify: Full"),
    ("prometheus.io/scrape", "true", "verify: Full"),
    ("tlsward.io/verify", "none", "verify: Full"),
];

/// Annotation, value, and what is said of it: reason and fix.
const BAD: &[(&str, &str, &str)] = &[
    (
        "konghq.com/client-cert",
        "",
        "it is empty | write the name as `kubectl get secrets` shows it",
    ),
    ("konghq.com/client-cert", "Client", "capital letters"),
    (
        "configuration.konghq.com/client-cert",
        "a b",
        "cannot contain ' '",
    ),
    (
        "tlsward/client-cert",
        "payments/client",
        "own namespace | write \"client\"",
    ),
    (
        "konghq.com/client-cert",
        "other/client",
        "\"other/client\" names a namespace, but an annotation can only name a Secret of the Service's own namespace | put the Secret into payments",
    ),
    (
        "tlsward/client-auth",
        "no",
        "\"no\" is neither true nor false",
    ),
    (
        "konghq.com/tls-verify",
        "ture",
        "\"ture\" is neither true nor false | write \"true\" or \"false\"",
    ),
    (
        "konghq.com/tls-verify",
        "",
        "\"\" is neither true nor false",
    ),
    ("konghq.com/tls-verify", "on", "\"on\" is neither"),
    ("konghq.com/tls-verify", " true", "\" true\" is neither"),
    (
        "tlsward/verify",
        "true",
        "not a possible value | write \"full\"",
    ),
    ("konghq.com/tls-verify-depth", "on", "says nothing here"),
    (
        "konghq.com/tls-verify-depth",
        "-1",
        "not a number from 0 to 6",
    ),
    (
        "konghq.com/tls-verify-depth",
        "7",
        "not a number from 0 to 6",
    ),
    ("tlsward/verify-depth", "", "not a number from 0 to 6"),
    (
        "konghq.com/ca-certificates-secrets",
        "a,,b",
        "there is nothing | remove the comma",
    ),
    (
        "konghq.com/ca-certificates-secrets",
        "other/ca",
        "own namespace",
    ),
    (
        "konghq.com/ca-certificates-configmaps",
        "a,B",
        "\"B\" is not the name of a ConfigMap",
    ),
    (
        "konghq.com/ca-certificates-configmaps",
        "other/ca",
        "put the ConfigMap into payments",
    ),
    ("konghq.com/host-header", "*.internal", "not a pattern"),
    ("tlsward/server-name", "a:443", "write \"a\""),
    (
        "konghq.com/protocol",
        "http",
        "\"http\" asks for traffic in the clear, which tlsward never sends | write \"https\", \"tls\", \"grpcs\" or \"wss\", or remove",
    ),
    ("konghq.com/protocol", "tcp", "in the clear"),
    ("configuration.konghq.com/protocol", "grpc", "in the clear"),
    ("konghq.com/protocol", "ws", "in the clear"),
    ("konghq.com/protocol", "tls_passthrough", "callers' own TLS"),
    ("konghq.com/protocol", "HTTPS", "not a protocol of Kong's"),
    (
        "konghq.com/connect-timeout",
        "0",
        "nothing could ever succeed | write a number of milliseconds",
    ),
    (
        "konghq.com/connect-timeout",
        "10s",
        "not a number of milliseconds",
    ),
    (
        "konghq.com/connect-timeout",
        "+1",
        "not a number of milliseconds",
    ),
    (
        "konghq.com/connect-timeout",
        "99999999999999",
        "longer than a year",
    ),
    ("tlsward/sni", "1", "neither true nor false"),
    ("tlsward/crl-expired", "acept", "did you mean \"accept\""),
    ("tlsward/pins", "sha256/AAAA", "32 bytes"),
    ("tlsward/allowed-names", "a.*", "asterisk"),
    ("tlsward/min-version", "1.1", "not a possible value"),
    ("tlsward/max-version", "", "not a possible value"),
    (
        "tlsward/key-exchange",
        "X25519,X25519",
        "says \"X25519\" twice",
    ),
    ("tlsward/alpn", "h2,", "there is nothing"),
    ("tlsward/resumption", "yes", "neither true nor false"),
    ("tlsward/record-layer", "kernel", "not a possible value"),
    // What may not be said by an annotation, or is not one.
    (
        "tlsward/cert",
        "/c",
        "files of the machine on which tlsward runs | name a Secret",
    ),
    ("tlsward/key", "/c", "files of the machine"),
    ("tlsward/bundle", "/c", "files of the machine"),
    (
        "tlsward/ca",
        "/c",
        "files of the machine on which tlsward runs | name konghq.com/ca-certificates-secrets",
    ),
    ("tlsward/crl", "/c", "files of the machine"),
    (
        "tlsward/allow-remote-callers",
        "true",
        "who can reach the listener | have allow_remote_callers set",
    ),
    (
        "tlsward/allow-callers",
        "0.0.0.0/0",
        "who can reach the listener",
    ),
    (
        "tlsward/secret",
        "client",
        "named by konghq.com/client-cert",
    ),
    (
        "tlsward/connect-timeout",
        "1s",
        "it is called konghq.com/connect-timeout",
    ),
    (
        "tlsward/idle-timeout",
        "1s",
        "idle_timeout cannot be set by an annotation",
    ),
    (
        "tlsward/upstream",
        "x:1",
        "upstream cannot be set by an annotation",
    ),
    (
        "tlsward/server_name",
        "x",
        "did you mean tlsward/server-name?",
    ),
    ("tlsward/verfiy", "none", "did you mean tlsward/verify?"),
    (
        "tlsward/colour",
        "red",
        "there is no annotation \"tlsward/colour\"",
    ),
];

#[test]
fn every_annotation_means_what_the_table_says() {
    for (name, value, said) in GOOD {
        let config = one(name, value);
        let service = only_service(&config);
        let shown = format!("{service:?}");
        assert!(
            shown.contains(said),
            "{name}: {value}: no {said} in {shown}"
        );
    }
    for known in KNOWN {
        assert!(
            GOOD.iter().any(|(name, ..)| *name == known.name),
            "{}",
            known.name
        );
    }
}

#[test]
fn what_cannot_be_understood_is_a_mistake_of_that_service_with_place_reason_and_fix() {
    for (name, value, said) in BAD {
        let config = one(name, value);
        assert!(config.services.is_empty(), "{name}: {value} was taken");
        let problems = mistakes_of(&config, "billing");
        assert_eq!(problems.len(), 1, "{name}: {value}: {problems}");
        let problem = problems.iter().next().unwrap();
        let place = Place::Service {
            service: "payments/billing".to_owned(),
            annotation: Some((*name).to_owned()),
        };
        assert_eq!(problem.place, place);
        assert_eq!(problem.text, *value);
        let found = format!("{} | {}", problem.reason, problem.fix);
        assert!(found.contains(said), "{name}: {value}: {found}");
    }
    let of_discovery = ["tlsward/listen", "tlsward/port"];
    for known in KNOWN
        .iter()
        .filter(|known| !of_discovery.contains(&known.name))
    {
        assert!(
            BAD.iter().any(|(name, ..)| *name == known.name),
            "{}",
            known.name
        );
    }
}

#[test]
fn a_mistake_is_printed_with_service_annotation_and_fix() {
    let config = one("konghq.com/tls-verify", "ture");
    assert_eq!(
        mistakes_of(&config, "billing").to_string(),
        "Service payments/billing, annotation konghq.com/tls-verify: \"ture\" is neither true nor false\n  \
         fix: write \"true\" or \"false\""
    );
    let json = serde_json::to_value(mistakes_of(&config, "billing")).unwrap();
    assert_eq!(
        json,
        serde_json::json!([{
            "service": "payments/billing", "annotation": "konghq.com/tls-verify",
            "key": "tls.verify", "text": "ture", "reason": "\"ture\" is neither true nor false",
            "fix": "write \"true\" or \"false\"",
        }])
    );
}

#[test]
fn all_mistakes_of_a_service_are_told_at_once() {
    let config = annotated(
        "",
        "min_version = \"1.3\"",
        [
            ("konghq.com/tls-verify", "x"),
            ("konghq.com/connect-timeout", "x"),
            ("tlsward/max-version", "1.2"),
            ("tlsward/nonsense", "x"),
        ],
    )
    .unwrap();
    let problems = mistakes_of(&config, "billing");
    let said = problems.to_string();
    for part in [
        "tls-verify: \"x\"",
        "connect-timeout: \"x\"",
        "max_version is below min_version (annotation tlsward/max-version)",
        "tlsward/nonsense",
        "no client certificate",
        "no CA certificates",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert_eq!(problems.len(), 6, "{said}");
}

#[test]
fn two_annotations_for_the_same_must_agree() {
    for (one, other, agree) in [
        (
            ("konghq.com/client-cert", "a"),
            ("configuration.konghq.com/client-cert", "a"),
            true,
        ),
        (
            ("konghq.com/client-cert", "a"),
            ("configuration.konghq.com/client-cert", "b"),
            false,
        ),
        (
            ("konghq.com/client-cert", "a"),
            ("tlsward/client-cert", "b"),
            false,
        ),
        (
            ("konghq.com/tls-verify", "true"),
            ("tlsward/verify", "full"),
            true,
        ),
        (
            ("konghq.com/tls-verify", "true"),
            ("tlsward/verify", "chain"),
            false,
        ),
        (
            ("konghq.com/tls-verify-depth", "2"),
            ("tlsward/verify-depth", "2"),
            true,
        ),
        (
            ("konghq.com/tls-verify-depth", "2"),
            ("tlsward/verify-depth", "3"),
            false,
        ),
        (
            ("konghq.com/host-header", "a.b"),
            ("tlsward/server-name", "A.b"),
            true,
        ),
        (
            ("konghq.com/host-header", "a.b"),
            ("tlsward/server-name", "b.a"),
            false,
        ),
        (
            ("konghq.com/client-cert", "a"),
            ("tlsward/client-auth", "true"),
            true,
        ),
        (
            ("konghq.com/client-cert", "a"),
            ("tlsward/client-auth", "false"),
            false,
        ),
    ] {
        let config = annotated(ALL, "", [one, other]).unwrap();
        assert_eq!(config.services.len() == 1, agree, "{one:?} {other:?}");
        if !agree {
            let problems = mistakes_of(&config, "billing");
            assert_eq!(problems.len(), 1, "{problems}");
            let said = problems.to_string();
            assert!(said.contains(one.0) && said.contains(other.0), "{said}");
            assert!(said.contains("remove one of the two annotations"));
        }
    }
}

#[test]
fn secrets_and_configmaps_of_cas_count_together() {
    let config = annotated(
        "client_auth = false",
        "",
        [
            ("konghq.com/ca-certificates-secrets", "a,b"),
            ("konghq.com/ca-certificates-configmaps", "c"),
        ],
    )
    .unwrap();
    let Some(CaSource::Objects(objects)) = only_service(&config).ca() else {
        panic!("{config:?}");
    };
    let shown: Vec<String> = objects.iter().map(ToString::to_string).collect();
    assert_eq!(
        shown,
        [
            "Secret payments/a",
            "Secret payments/b",
            "ConfigMap payments/c"
        ]
    );
    // One that is wrong leaves none of the others in force.
    let config = annotated(
        ALL,
        "",
        [
            ("konghq.com/ca-certificates-secrets", "a/b"),
            ("konghq.com/ca-certificates-configmaps", "c"),
        ],
    )
    .unwrap();
    assert_eq!(mistakes_of(&config, "billing").len(), 1);
}

#[test]
fn a_client_cert_brings_its_ca_unless_one_is_named() {
    let cert = ("konghq.com/client-cert", "client");
    let alone = annotated("", "", [cert]).unwrap();
    let Some(CaSource::Objects(objects)) = only_service(&alone).ca() else {
        panic!("{alone:?}");
    };
    assert_eq!(objects[0].to_string(), "Secret payments/client, ca.crt");
    let named = annotated("", "", [cert, ("konghq.com/ca-certificates-secrets", "ca")]).unwrap();
    let Some(CaSource::Objects(objects)) = only_service(&named).ca() else {
        panic!("{named:?}");
    };
    assert_eq!(objects[0].to_string(), "Secret payments/ca");
    let inherited = annotated("ca = \"/ca.crt\"", "", [cert]).unwrap();
    assert_eq!(
        only_service(&inherited).ca(),
        Some(&CaSource::Path("/ca.crt".into()))
    );
}

#[test]
fn the_file_wins_over_annotations_and_annotations_over_environment_and_defaults() {
    let sources = |own: &str| {
        let defaults = "verify = \"none\"\nverify_depth = 1\nserver_name = \"d\"\nca = \"/d\"\n\
                        cert = \"/d.crt\"\nkey = \"/d.key\"\nsni = false";
        let defaults = defaults.replace("verify_depth = 1\n", "");
        let text = format!("[defaults.tls]\n{defaults}\n{HEAD}[services.billing.tls]\n{own}\n");
        let billing = service(
            "payments/billing",
            &["443"],
            [
                ("konghq.com/client-cert", "annotated"),
                ("konghq.com/tls-verify", "true"),
                ("konghq.com/tls-verify-depth", "2"),
                ("konghq.com/host-header", "annotated"),
                ("konghq.com/ca-certificates-secrets", "annotated"),
                ("konghq.com/connect-timeout", "2000"),
            ],
        );
        let variables = [
            ("TLSWARD_TLS_VERIFY_DEPTH", "5"),
            ("TLSWARD_TLS_CA", "/e"),
            ("TLSWARD_TLS_CERT", "/e.crt"),
            ("TLSWARD_TLS_KEY", "/e.key"),
            ("TLSWARD_TLS_VERIFY", "chain"),
        ];
        parse_in(&text, variables, &cluster([billing])).unwrap()
    };
    let config = sources("");
    let built = only_service(&config);
    assert_eq!(
        built.identity,
        Some(IdentitySource::Secret(ObjectRef::new(
            "payments",
            "annotated"
        )))
    );
    assert_eq!(built.tls.verify, Verify::Full);
    assert_eq!(built.tls.verify_depth, Some(2));
    assert_eq!(
        built.tls.server_name.as_ref().unwrap().to_str(),
        "annotated"
    );
    assert!(!built.tls.sni, "what no annotation says is inherited");
    assert_eq!(built.timeouts.connect, Duration::from_secs(2));
    let origins = &config.origins.0[&built.name];
    for (key, expected) in [
        ("tls.secret", Origin::Annotation("konghq.com/client-cert")),
        ("tls.verify", Origin::Annotation("konghq.com/tls-verify")),
        (
            "tls.ca",
            Origin::Annotation("konghq.com/ca-certificates-secrets"),
        ),
        (
            "connect_timeout",
            Origin::Annotation("konghq.com/connect-timeout"),
        ),
        ("tls.sni", Origin::Defaults { line: 7 }),
        ("listen", Origin::Service { line: 9 }),
    ] {
        assert_eq!(origins.get(key), Some(&expected), "{key}");
    }

    let own = "bundle = \"/o.pem\"\nverify = \"chain\"\nverify_depth = 3\nserver_name = \"o\"\nca = \"/o\"";
    let config = sources(own);
    let built = only_service(&config);
    assert_eq!(
        built.identity,
        Some(IdentitySource::Bundle("/o.pem".into()))
    );
    assert_eq!(built.tls.verify, Verify::Chain);
    assert_eq!(built.tls.verify_depth, Some(3));
    assert_eq!(built.tls.server_name.as_ref().unwrap().to_str(), "o");
    assert_eq!(built.ca(), Some(&CaSource::Path("/o".into())));
}

#[test]
fn client_auth_is_a_setting_of_the_identity_in_every_layer() {
    let cert = ("konghq.com/client-cert", "client");
    let none = ("tlsward/client-auth", "false");
    let some = ("tlsward/client-auth", "true");
    let identity =
        |config: Result<Config, Problems>| only_service(&config.unwrap()).identity.clone();
    let pair = "ca = \"/ca\"\ncert = \"/c\"\nkey = \"/k\"";
    assert_eq!(identity(annotated(pair, "", [none])), None);
    assert!(identity(annotated(pair, "", [some])).is_some());
    assert_eq!(
        identity(annotated(pair, "client_auth = false", [cert])),
        None
    );
    assert_eq!(
        identity(annotated(pair, "client_auth = false", [some])),
        None,
        "the file wins"
    );
    assert!(identity(annotated(ALL, "client_auth = true", [cert])).is_some());
    // Asked for nearer than refused, and named nowhere.
    let config = annotated(ALL, "", [some]).unwrap();
    let said = mistakes_of(&config, "billing").to_string();
    assert!(
        said.contains("asks for a client certificate") && said.contains("(line 3)"),
        "{said}"
    );
    let config = annotated(pair, "client_auth = true", [none]).unwrap();
    let said = mistakes_of(&config, "billing").to_string();
    assert!(said.contains("(annotation tlsward/client-auth)"), "{said}");
}

#[test]
fn checks_beside_no_verification_are_mistakes_of_the_annotations_too() {
    let off = ("konghq.com/tls-verify", "false");
    let config = annotated(ALL, "", [off, ("konghq.com/tls-verify-depth", "1")]).unwrap();
    let said = mistakes_of(&config, "billing").to_string();
    assert!(said.contains("verify_depth would not be checked: verify is \"none\" (annotation konghq.com/tls-verify)"), "{said}");
    // Of farther tables they are dropped.
    let config = annotated(&format!("{ALL}\nverify_depth = 1"), "", [off]).unwrap();
    assert_eq!(only_service(&config).tls.verify_depth, None);
    // And the file's own table is contradicted by none.
    let config = annotated(
        ALL,
        "verify = \"none\"",
        [("konghq.com/tls-verify-depth", "1")],
    )
    .unwrap();
    assert_eq!(only_service(&config).tls.verify_depth, None);
}

#[test]
fn an_annotation_may_cure_what_the_file_combines() {
    let defaults = format!("{ALL}\nmax_version = \"1.2\"");
    let own = "min_version = \"1.3\"";
    let config = annotated(&defaults, own, []).unwrap();
    let said = mistakes_of(&config, "billing").to_string();
    assert!(said.contains("max_version is below min_version"), "{said}");
    let config = annotated(&defaults, own, [("tlsward/max-version", "1.3")]).unwrap();
    assert_eq!(only_service(&config).tls.max_version, TlsVersion::Tls13);
}

#[test]
fn annotations_do_not_count_where_the_file_says_so() {
    let text = format!("[kubernetes]\nannotations = false\n[defaults.tls]\n{ALL}\n{HEAD}");
    let billing = service(
        "payments/billing",
        &["443"],
        [
            ("konghq.com/tls-verify", "false"),
            ("tlsward/nonsense", "x"),
        ],
    );
    let config = parse_in(&text, [], &cluster([billing])).unwrap();
    assert_eq!(only_service(&config).tls.verify, Verify::Full);
}

#[test]
fn two_services_of_the_file_share_the_annotations_of_one_service() {
    let second = HEAD.replace("billing]", "second]").replace("7001", "7002");
    let text = format!("[defaults.tls]\n{ALL}\n{HEAD}{second}");
    let billing = |verify| {
        cluster([service(
            "payments/billing",
            &["443"],
            [("konghq.com/tls-verify", verify)],
        )])
    };
    let config = parse_in(&text, [], &billing("false")).unwrap();
    assert_eq!(config.services.len(), 2);
    assert!(
        config
            .services
            .values()
            .all(|service| service.tls.verify == Verify::None)
    );
    assert_eq!(parse_in(&text, [], &billing("x")).unwrap().unbuilt.len(), 2);
}

#[test]
fn a_huge_or_wild_annotation_is_told_in_few_and_plain_characters() {
    let long = "x".repeat(200_000);
    for (name, value) in [
        ("konghq.com/client-cert", long.as_str()),
        ("tlsward/verify", &long[..8_000]),
        ("konghq.com/ca-certificates-secrets", &"a,".repeat(4_000)),
        ("konghq.com/tls-verify", "\u{1b}[31m\n\r"),
        (&format!("tlsward/{}", &long[..1_000]), "x"),
    ] {
        let config = one(name, value);
        let said = mistakes_of(&config, "billing").to_string();
        assert!(said.len() < 2_000, "{}", said.len());
        assert!(!said.contains(['\u{1b}', '\r']), "{said:?}");
    }
}

#[test]
fn the_page_for_people_has_a_row_for_every_annotation() {
    let page = read("docs/kubernetes-annotations.md");
    for known in KNOWN {
        let row = format!("| `{}` | ", known.name);
        let rows: Vec<&str> = page.lines().filter(|line| line.starts_with(&row)).collect();
        assert_eq!(rows.len(), 1, "{}", known.name);
        let key = known.key.trim_start_matches("tls.");
        assert!(
            rows[0].contains(&format!("`{key}`")) || key.is_empty(),
            "{}",
            rows[0]
        );
    }
    let rows = page.lines().filter(|line| {
        line.starts_with("| `konghq")
            || line.starts_with("| `configuration.")
            || line.starts_with("| `tlsward/")
    });
    for row in rows {
        let name = row.split('`').nth(1).unwrap();
        let known = KNOWN.iter().any(|known| known.name == name);
        assert!(known, "{name} is no annotation");
    }
}
