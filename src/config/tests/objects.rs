//! Objects of Kubernetes: what the file says of them, and what becomes of it once they are known.

use super::kubernetes::{CaKey, CaObject, ServiceBackend};
use super::*;

/// A service `billing` whose upstream is a Service, with these lines in its `tls` table.
fn by_service(upstream: &str, tls: &str) -> String {
    format!(
        "[services.billing]\nlisten = \"127.0.0.1:7001\"\nupstream = {{ {upstream} }}\n\
         [services.billing.tls]\n{tls}\n"
    )
}

const BILLING: &str = "service = \"billing\", namespace = \"payments\"";
const FILES: &str = "ca = \"/ca.crt\"\ncert = \"/c.crt\"\nkey = \"/c.key\"";

fn in_cluster(text: &str, cluster: &Cluster) -> Config {
    parse_in(text, [], cluster).unwrap_or_else(|problems| panic!("{text}\n{problems}"))
}

/// What is in the way of the only service, which is not built.
fn obstacle(config: &Config) -> &Obstacle {
    assert!(config.services.is_empty(), "{config:?}");
    assert_eq!(config.unbuilt.len(), 1);
    &config.unbuilt.values().next().unwrap().obstacle
}

fn mistakes(config: &Config) -> String {
    mistakes_of(config, "billing").to_string()
}

fn ca_crt(object: &str) -> CaObject {
    let (namespace, name) = object.split_once('/').unwrap();
    CaObject::Secret {
        object: ObjectRef::new(namespace, name),
        key: CaKey::Named("ca.crt".to_owned()),
    }
}

#[test]
fn a_name_without_a_namespace_is_in_the_files_then_in_the_pods() {
    let text = |namespace: &str| {
        format!(
            "[kubernetes]\n{namespace}\n[services.a]\nlisten = \"127.0.0.1:1\"\n\
             upstream = \"a:1\"\ntls.secret = \"client\"\n"
        )
    };
    let pod = Cluster {
        own_namespace: Some("pod".to_owned()),
        ..Cluster::default()
    };
    for (namespace, cluster, expected) in [
        ("", &pod, Some("pod/client")),
        ("namespace = \"file\"", &pod, Some("file/client")),
        (
            "namespace = \"file\"",
            &Cluster::default(),
            Some("file/client"),
        ),
        ("", &Cluster::default(), None),
    ] {
        match (parse_in(&text(namespace), [], cluster), expected) {
            (Ok(config), Some(expected)) => {
                let (namespace, name) = expected.split_once('/').unwrap();
                let secret = IdentitySource::Secret(ObjectRef::new(namespace, name));
                assert_eq!(only_service(&config).identity, Some(secret));
            }
            (Err(problems), None) => {
                assert_eq!(problems.len(), 1, "{problems}");
                let said = problems.to_string();
                assert!(
                    said.contains("tls.secret") && said.contains("set namespace in [kubernetes]")
                );
            }
            (result, _) => panic!("{namespace}: {result:?}"),
        }
    }
}

#[test]
fn without_a_ca_the_ca_is_that_of_the_secret_and_only_of_a_secret() {
    let service = "[services.a]\nlisten = \"127.0.0.1:1\"\nupstream = \"a:1\"\n";
    let ca = |defaults: &str, own: &str| {
        let text = format!("[defaults.tls]\n{defaults}\n{service}[services.a.tls]\n{own}\n");
        let config = parse(&text);
        only_service(&config)
            .trust
            .clone()
            .map(|trust| (trust.ca, trust.crl))
    };
    let own = CaSource::Objects(vec![ca_crt("p/client")]);
    let file = CaSource::Path("/ca.crt".into());
    assert_eq!(ca("", "secret = \"p/client\""), Some((own.clone(), None)));
    assert_eq!(
        ca("secret = \"p/client\"\ncrl = \"/crl\"", ""),
        Some((own, Some("/crl".into())))
    );
    assert_eq!(
        ca("ca = \"/ca.crt\"", "secret = \"p/client\""),
        Some((file.clone(), None)),
        "an inherited ca counts"
    );
    assert_eq!(
        ca("secret = \"p/client\"", "ca = \"/ca.crt\""),
        Some((file, None))
    );
    assert_eq!(ca("", "secret = \"p/client\"\nverify = \"none\""), None);
    // Whose identity is another has no such CA, whatever is inherited.
    let other = format!(
        "[defaults.tls]\nsecret = \"p/client\"\n{service}[services.a.tls]\nbundle = \"/b.pem\"\n"
    );
    let problems = parse_in(&other, [], &Cluster::default()).unwrap_err();
    assert!(problems.to_string().contains("no CA certificates"));
}

#[test]
fn the_ca_of_a_secret_comes_from_where_the_secret_is_said() {
    let text = "[services.a]\nlisten = \"127.0.0.1:1\"\nupstream = \"a:1\"\ntls.secret = \"p/c\"\n";
    let config = parse(text);
    let origins = config.origins.0.values().next().unwrap();
    assert_eq!(origins.get("tls.ca"), Some(&Origin::Service { line: 4 }));
    assert_eq!(origins.get("tls.ca"), origins.get("tls.secret"));
}

#[test]
fn a_service_whose_kubernetes_service_is_not_known_waits() {
    for tls in ["", FILES, "secret = \"p/c\"", "min_version = \"1.3\""] {
        let text = by_service(BILLING, tls);
        let config = in_cluster(&text, &Cluster::default());
        assert_eq!(obstacle(&config), &Obstacle::Unknown, "{tls}");

        let mut gone = Cluster::default();
        let object = ObjectRef::new("payments", "billing");
        gone.services.insert(object.clone(), Known::Missing);
        let config = in_cluster(&text, &gone);
        assert_eq!(obstacle(&config), &Obstacle::Missing, "{tls}");
        let unbuilt = config.unbuilt.values().next().unwrap();
        assert_eq!(unbuilt.object, object);
        assert_eq!(
            unbuilt.listen.as_ref().unwrap().to_string(),
            "127.0.0.1:7001"
        );
        let name = ServiceName::parse("billing").unwrap();
        assert_eq!(config.backends.get(&name), Some(&object));
    }
}

#[test]
fn what_is_wrong_in_the_file_is_told_before_its_service_is_known() {
    for (tls, said) in [
        ("cert = \"c.crt\"", "cert is set here and key is not"),
        (
            "verify = \"none\"\nverify_depth = 1",
            "would not be checked",
        ),
        (
            "min_version = \"1.3\"\nmax_version = \"1.2\"",
            "max_version is below",
        ),
        ("secret = \"Client\"", "capital letters"),
    ] {
        let problems = parse_in(&by_service(BILLING, tls), [], &Cluster::default()).unwrap_err();
        assert!(problems.to_string().contains(said), "{tls}: {problems}");
        assert_eq!(problems.len(), 1, "{problems}");
    }
    let text = by_service(BILLING, FILES).replace("listen = \"127.0.0.1:7001\"\n", "");
    let problems = parse_in(&text, [], &Cluster::default()).unwrap_err();
    assert!(problems.to_string().contains("has no listen"));
}

#[test]
fn a_service_has_the_endpoints_port_and_name_of_its_kubernetes_service() {
    for (port, ports, expected) in [
        ("", &["https 443"][..], "https"),
        ("", &["443"][..], ""),
        (", port = \"https\"", &["http 80", "https 443"][..], "https"),
        (", port = 443", &["http 80", "https 443"][..], "https"),
        (", port = \"443\"", &["http 80", "https 443"][..], "https"),
        (", port = 443", &["443"][..], ""),
    ] {
        let text = by_service(&format!("{BILLING}{port}"), FILES);
        let config = in_cluster(&text, &cluster([service("payments/billing", ports, [])]));
        let built = only_service(&config);
        let backend = ServiceBackend {
            service: ObjectRef::new("payments", "billing"),
            port: expected.to_owned(),
        };
        assert_eq!(built.upstream, Upstream::Service(backend), "{port}");
        let name = built.tls.server_name.as_ref().unwrap().to_str();
        assert_eq!(name, "billing.payments.svc");
        assert!(config.unbuilt.is_empty());
        assert_eq!(config.backends.len(), 1);
    }
}

#[test]
fn a_server_name_that_is_said_counts_before_that_of_the_service() {
    let billing = cluster([service("payments/billing", &["443"], [])]);
    let own = by_service(BILLING, &format!("{FILES}\nserver_name = \"own.internal\""));
    let inherited = format!(
        "[defaults.tls]\nserver_name = \"all.internal\"\n{}",
        by_service(BILLING, FILES)
    );
    for (text, expected) in [(own, "own.internal"), (inherited, "all.internal")] {
        let config = in_cluster(&text, &billing);
        let name = only_service(&config).tls.server_name.clone().unwrap();
        assert_eq!(name.to_str(), expected);
    }
}

#[test]
fn a_port_that_the_service_does_not_have_is_named_with_those_that_it_has() {
    for (port, ports, said) in [
        (
            ", port = \"https\"",
            &["http 80", "grpc 9000"][..],
            "has no TCP port \"https\"; it has http (80), grpc (9000)",
        ),
        (
            ", port = 443",
            &["80"][..],
            "has no TCP port 443; it has 80",
        ),
        (
            "",
            &["http 80", "grpc 9000"][..],
            "has several ports: http (80), grpc (9000)",
        ),
        ("", &[][..], "has no TCP port"),
        (
            ", port = 1",
            &[][..],
            "has no TCP port 1; it has no TCP port",
        ),
    ] {
        let text = by_service(&format!("{BILLING}{port}"), FILES);
        let config = in_cluster(&text, &cluster([service("payments/billing", ports, [])]));
        let found = mistakes(&config);
        assert!(found.contains(said), "{port}: {found}");
        assert!(found.contains("Service payments/billing"), "{found}");
        assert!(found.starts_with("/etc/tlsward/config.toml:3:12: services.billing.upstream: "));
    }
}

#[test]
fn an_external_name_is_an_address_and_its_own_server_name() {
    for (port, ports, expected) in [
        (", port = 8443", &[][..], Some("db.example.com:8443")),
        (
            ", port = 8443",
            &["https 443"][..],
            Some("db.example.com:8443"),
        ),
        (
            ", port = \"https\"",
            &["https 443"][..],
            Some("db.example.com:443"),
        ),
        ("", &["443"][..], Some("db.example.com:443")),
        ("", &[][..], None),
        (", port = \"https\"", &[][..], None),
    ] {
        let mut external = service("payments/billing", ports, []);
        external.external_name = Some("DB.example.com.".to_owned());
        let text = by_service(&format!("{BILLING}{port}"), FILES);
        let config = in_cluster(&text, &cluster([external]));
        let Some(expected) = expected else {
            mistakes(&config);
            continue;
        };
        let built = only_service(&config);
        assert_eq!(built.upstream.words(), [expected], "{port}");
        assert_eq!(built.tls.server_name, None, "that of the address");
    }
    let mut external = service("payments/billing", &["443"], []);
    external.external_name = Some("not a name".to_owned());
    let config = in_cluster(&by_service(BILLING, FILES), &cluster([external]));
    assert!(mistakes(&config).contains("correct spec.externalName"));
}

#[test]
fn a_service_without_an_identity_is_wrong_once_its_annotations_are_known_and_alone() {
    let other = "[services.other]\nlisten = \"127.0.0.1:7002\"\nupstream = \"o:1\"\n\
                 tls = { ca = \"/ca\", client_auth = false }\n";
    let text = format!("{}{other}", by_service(BILLING, ""));
    let billing = cluster([service("payments/billing", &["443"], [])]);
    let config = in_cluster(&text, &billing);
    assert_eq!(only_service(&config).name.as_str(), "other");
    let problems = mistakes_of(&config, "billing");
    assert_eq!(problems.len(), 2, "identity and CA: {problems}");
    assert!(
        problems
            .to_string()
            .contains("annotation konghq.com/client-cert")
    );
    // Where annotations do not count, it is a mistake of the file, known or not.
    let text = format!("[kubernetes]\nannotations = false\n{text}");
    for cluster in [billing, Cluster::default()] {
        let problems = parse_in(&text, [], &cluster).unwrap_err();
        assert_eq!(problems.len(), 2, "{problems}");
    }
}

#[test]
fn a_build_without_kubernetes_says_so_wherever_it_would_be_needed() {
    let path = Path::new("/etc/tlsward/config.toml");
    let service = "[services.a]\nlisten = \"127.0.0.1:1\"\n";
    let upstream = "upstream = \"a:1\"\n";
    for (text, key) in [
        ("[kubernetes]\nzone = \"z\"\n".to_owned(), "kubernetes"),
        ("kubernetes.discovery = {}\n".to_owned(), "kubernetes"),
        (
            format!("{service}{upstream}tls = {{ secret = \"p/c\", ca = \"/ca\" }}\n"),
            "services.a.tls.secret",
        ),
        (
            format!("{service}{upstream}tls = {{ secret = \"c\" }}\n"),
            "services.a.tls.secret",
        ),
        (
            format!(
                "{service}{upstream}tls = {{ client_auth = false, ca = {{ secret = \"p/c\" }} }}\n"
            ),
            "services.a.tls.ca",
        ),
        (
            format!(
                "{service}tls = {{ client_auth = false, ca = \"/ca\" }}\nupstream.service = \"x\"\n"
            ),
            "services.a.upstream",
        ),
    ] {
        let problems =
            Config::read(&text, path, &BTreeMap::new(), &Cluster::default(), false).unwrap_err();
        let keys: Vec<&str> = problems
            .iter()
            .map(|problem| problem.key.as_str())
            .collect();
        assert_eq!(keys, [key], "{text}\n{problems}");
        assert!(problems.to_string().contains("no Kubernetes support"));
    }
    let plain = format!(
        "shutdown_delay = \"1s\"\n{service}{upstream}tls = {{ client_auth = false, ca = \"/ca\" }}\n"
    );
    let without = Config::read(&plain, path, &BTreeMap::new(), &Cluster::default(), false);
    assert_eq!(without, parse_in(&plain, [], &Cluster::default()));
    assert_eq!(without.unwrap().shutdown_delay, Duration::from_secs(1));
}
