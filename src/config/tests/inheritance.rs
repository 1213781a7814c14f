//! Where a service's values come from: its own table, `TLSWARD_` variables, `[defaults]`, built in.

use super::*;

const SERVICE: &str = "[services.a]\nlisten = \"127.0.0.1:7001\"\nupstream = \"a.internal:443\"\n";

/// One service `a` with these lines in `[defaults.tls]` and in its own `tls` table.
fn with_tls(defaults: &str, own: &str) -> String {
    format!("[defaults.tls]\nca = \"ca.crt\"\n{defaults}\n{SERVICE}[services.a.tls]\n{own}\n")
}

const PAIR: &str = "cert = \"all.crt\"\nkey = \"all.key\"";

fn identity(text: &str) -> Option<String> {
    only_service(&parse(text))
        .identity
        .as_ref()
        .map(|identity| match identity {
            IdentitySource::Pair { cert, key } => format!("{} {}", cert.display(), key.display()),
            IdentitySource::Bundle(path) => path.display().to_string(),
            IdentitySource::Secret(object) => object.to_string(),
            IdentitySource::Credential(credential) => credential.to_string(),
        })
}

#[test]
fn a_service_inherits_each_key_that_it_does_not_set() {
    let text = format!(
        "[defaults]\nconnect_timeout = \"1s\"\nkeepalive = \"1m\"\n\
         tls = {{ ca = \"ca.crt\", client_auth = false, sni = false, alpn = [\"h2\"] }}\n\
         {SERVICE}connect_timeout = \"2s\"\ntls.alpn = []\n"
    );
    let config = parse(&text);
    let service = only_service(&config);
    assert_eq!(service.timeouts.connect, Duration::from_secs(2));
    assert_eq!(service.keepalive, Some(Duration::from_secs(60)));
    assert_eq!(service.timeouts.close, Duration::from_secs(60));
    assert!(!service.tls.sni);
    assert!(
        service.tls.alpn.is_empty(),
        "an empty list takes the inherited one back"
    );
}

#[test]
fn an_identity_replaces_an_inherited_one_as_a_whole() {
    for (defaults, own, expected) in [
        (PAIR, "", Some("/etc/tlsward/all.crt /etc/tlsward/all.key")),
        (
            PAIR,
            "client_auth = true",
            Some("/etc/tlsward/all.crt /etc/tlsward/all.key"),
        ),
        (
            PAIR,
            "cert = \"/a.crt\"\nkey = \"/a.key\"",
            Some("/a.crt /a.key"),
        ),
        (PAIR, "bundle = \"/a.pem\"", Some("/a.pem")),
        (PAIR, "client_auth = false", None),
        (
            "bundle = \"/all.pem\"",
            "cert = \"/a.crt\"\nkey = \"/a.key\"",
            Some("/a.crt /a.key"),
        ),
        ("client_auth = false", "bundle = \"/a.pem\"", Some("/a.pem")),
        ("client_auth = false", "", None),
        (PAIR, "credential = \"a\"", Some("credential a")),
        ("credential = \"all\"", "", Some("credential all")),
        ("credential = \"all\"", "client_auth = false", None),
        (
            "credential = \"all\"",
            "cert = \"/a.crt\"\nkey = \"/a.key\"",
            Some("/a.crt /a.key"),
        ),
    ] {
        let found = identity(&with_tls(defaults, own));
        assert_eq!(found.as_deref(), expected, "{defaults} / {own}");
    }
}

#[test]
fn variables_override_the_defaults_and_a_service_overrides_the_variables() {
    let text = with_tls(
        &format!("{PAIR}\nverify = \"chain\"\nverify_depth = 1"),
        "verify_depth = 3",
    );
    let config = parse_with(
        &text,
        [
            ("TLSWARD_TLS_VERIFY", "true"),
            ("TLSWARD_TLS_VERIFY_DEPTH", "2"),
            ("TLSWARD_TLS_CA", "system"),
            ("TLSWARD_TLS_CERT", "env.crt"),
            ("TLSWARD_TLS_KEY", "/env.key"),
        ],
    )
    .unwrap();
    let service = only_service(&config);
    assert_eq!(service.tls.verify, Verify::Full);
    assert_eq!(service.tls.verify_depth, Some(3));
    assert_eq!(service.trust.as_ref().unwrap().ca, CaSource::System);
    let pair = IdentitySource::Pair {
        cert: "/etc/tlsward/env.crt".into(),
        key: "/env.key".into(),
    };
    assert_eq!(service.identity, Some(pair));

    let own = with_tls("", "bundle = \"/own.pem\"");
    let config = parse_with(
        &own,
        [
            ("TLSWARD_TLS_CERT", "/e.crt"),
            ("TLSWARD_TLS_KEY", "/e.key"),
        ],
    );
    let config = config.unwrap();
    assert_eq!(
        only_service(&config).identity,
        Some(IdentitySource::Bundle("/own.pem".into()))
    );
}

#[test]
fn kongs_words_for_verification_are_taken_from_the_environment() {
    for (word, expected) in [
        ("on", Verify::Full),
        ("true", Verify::Full),
        ("full", Verify::Full),
        ("chain", Verify::Chain),
        ("off", Verify::None),
        ("false", Verify::None),
        ("none", Verify::None),
    ] {
        let config = parse_with(&with_tls(PAIR, ""), [("TLSWARD_TLS_VERIFY", word)]).unwrap();
        assert_eq!(only_service(&config).tls.verify, expected, "{word}");
    }
}

#[test]
fn a_service_that_verifies_nothing_drops_inherited_checks() {
    let checks = "verify_depth = 1\ncrl = \"crl.pem\"\nallowed_names = [\"a.internal\"]\n\
                  pins = [\"sha256/47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\"]";
    let config = parse(&with_tls(&format!("{PAIR}\n{checks}"), "verify = \"none\""));
    let service = only_service(&config);
    assert_eq!(service.tls.verify, Verify::None);
    assert_eq!(
        (service.tls.verify_depth, service.tls.pins.len()),
        (None, 0)
    );
    assert!(service.tls.allowed_names.is_empty());
    assert_eq!(service.trust.as_ref().unwrap().crl, None);
    // And with verification they are all there.
    let config = parse(&with_tls(&format!("{PAIR}\n{checks}"), ""));
    let service = only_service(&config);
    assert_eq!(
        (service.tls.verify_depth, service.tls.pins.len()),
        (Some(1), 1)
    );
    assert!(service.trust.as_ref().unwrap().crl.is_some());
}

#[test]
fn without_verification_no_ca_is_needed() {
    let text = format!("{SERVICE}tls = {{ client_auth = false, verify = \"none\" }}\n");
    assert_eq!(only_service(&parse(&text)).trust, None);
}

#[test]
fn the_origin_of_each_value_is_known() {
    let text = with_tls(&format!("{PAIR}\nsni = false"), "resumption = false");
    let config = parse_with(&text, [("TLSWARD_TLS_VERIFY_DEPTH", "2")]).unwrap();
    let origins = config.origins.0.values().next().unwrap();
    for (key, expected) in [
        ("listen", Origin::Service { line: 7 }),
        ("tls.ca", Origin::Defaults { line: 2 }),
        ("tls.cert", Origin::Defaults { line: 3 }),
        ("tls.key", Origin::Defaults { line: 4 }),
        ("tls.sni", Origin::Defaults { line: 5 }),
        ("tls.resumption", Origin::Service { line: 10 }),
        (
            "tls.verify_depth",
            Origin::Environment("TLSWARD_TLS_VERIFY_DEPTH"),
        ),
        ("tls.verify", Origin::BuiltIn),
        ("connect_timeout", Origin::BuiltIn),
    ] {
        assert_eq!(origins.get(key), Some(&expected), "{key}");
    }
    // Every key has one, but for those of the identities that the service does not have.
    for (table, prefix) in [(Table::Service, ""), (Table::Tls, "tls.")] {
        for key in table.keys() {
            let known = origins.contains_key(format!("{prefix}{}", key.name).as_str());
            assert!(
                known || ["bundle", "secret", "credential", "client_auth"].contains(&key.name),
                "{}",
                key.name
            );
        }
    }
}

#[test]
fn where_a_value_is_written_is_no_difference() {
    let here = format!("{SERVICE}tls = {{ ca = \"ca.crt\", client_auth = false }}\n");
    let there = with_tls("client_auth = false", "");
    assert_eq!(parse(&here), parse(&there));
}

#[test]
fn a_thousand_services_and_a_thousand_mistakes_take_little_time() {
    let mut good = "[defaults.tls]\nca = \"ca.crt\"\nclient_auth = false\n".to_owned();
    let mut bad = String::new();
    for n in 0..1_000 {
        let port = 10_000 + n;
        good += &format!(
            "[services.s{n}]\nlisten = \"127.0.0.1:{port}\"\nupstream = \"s{n}.internal:443\"\n"
        );
        bad += &format!(
            "[services.s{n}]\nlisten = \"127.0.0.1:1\"\nupstream\nkeepalive = 3m\nx = 1\n"
        );
    }
    let start = std::time::Instant::now();
    assert_eq!(parse(&good).services.len(), 1_000);
    let took_good = start.elapsed();
    assert!(parse_with(&bad, []).unwrap_err().len() > 1_000);
    let took_bad = start.elapsed() - took_good;
    // An unoptimised build on a busy machine; what grows with the square would take far longer.
    assert!(took_good < Duration::from_secs(2), "{took_good:?}");
    assert!(took_bad < Duration::from_secs(5), "{took_bad:?}");
}
