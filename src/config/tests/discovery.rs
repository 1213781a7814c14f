//! Services that discovery finds: their names, listeners, upstreams, and who gives way to whom.

use super::*;

const FILE: &str = "[kubernetes.discovery]\nnamespaces = [\"*\"]\nsocket_directory = \"/run/s\"\n\
                    [defaults.tls]\nca = \"/ca.crt\"\nclient_auth = false\n";

/// What is known where discovery has found these Services.
fn discovered(services: impl IntoIterator<Item = ServiceObject>) -> Cluster {
    let mut cluster = cluster(services);
    cluster.discovered = cluster.services.keys().cloned().collect();
    cluster
}

fn listens(object: &str, listen: &str) -> ServiceObject {
    service(object, &["443"], [("tlsward/listen", listen)])
}

fn created(mut service: ServiceObject, at: i64) -> ServiceObject {
    service.created_at = at;
    service
}

fn discover(file: &str, services: impl IntoIterator<Item = ServiceObject>) -> Config {
    parse_in(file, [], &discovered(services)).unwrap_or_else(|problems| panic!("{problems}"))
}

fn names(config: &Config) -> Vec<&str> {
    config.services.keys().map(ServiceName::as_str).collect()
}

fn obstacle<'c>(config: &'c Config, name: &str) -> &'c Obstacle {
    let found = config.unbuilt.iter().find(|(key, _)| key.as_str() == name);
    &found
        .unwrap_or_else(|| panic!("{name}: {config:?}"))
        .1
        .obstacle
}

fn taken_by(name: &str) -> Obstacle {
    Obstacle::ListenerTaken {
        by: ServiceName::parse(name).unwrap(),
    }
}

#[test]
fn a_service_that_says_where_it_listens_is_discovered_and_another_is_not() {
    let config = discover(
        FILE,
        [
            service(
                "payments/billing",
                &["http 80", "https 443"],
                [
                    ("tlsward/listen", "7001"),
                    ("tlsward/port", "https"),
                    ("konghq.com/client-cert", "client"),
                ],
            ),
            service(
                "payments/quiet",
                &["443"],
                [("konghq.com/client-cert", "c")],
            ),
        ],
    );
    assert_eq!(names(&config), ["billing.payments"]);
    assert!(config.unbuilt.is_empty());
    let built = only_service(&config);
    assert_eq!(built.listen.to_string(), "127.0.0.1:7001");
    assert_eq!(
        built.upstream.words(),
        ["Service payments/billing, port https"]
    );
    assert_eq!(
        built.tls.server_name.as_ref().unwrap().to_str(),
        "billing.payments.svc"
    );
    assert_eq!(
        built.identity,
        Some(IdentitySource::Secret(ObjectRef::new("payments", "client")))
    );
    assert_eq!(
        config.backends.get(&built.name),
        Some(&ObjectRef::new("payments", "billing"))
    );
    let origins = &config.origins.0[&built.name];
    for (key, annotation) in [
        ("listen", "tlsward/listen"),
        ("upstream", "tlsward/port"),
        ("tls.secret", "konghq.com/client-cert"),
    ] {
        assert_eq!(
            origins.get(key),
            Some(&Origin::Annotation(annotation)),
            "{key}"
        );
    }
    assert_eq!(origins.get("tls.ca"), Some(&Origin::Defaults { line: 5 }));
}

#[test]
fn a_listener_is_a_port_or_a_socket_in_its_directory() {
    for (listen, expected) in [
        ("7001", "127.0.0.1:7001"),
        (" 7001 ", "127.0.0.1:7001"),
        ("unix:billing.sock", "unix:/run/s/billing.sock"),
        ("unix:billing.sock?mode=0660", "unix:/run/s/billing.sock"),
        ("unix:/run/s/billing.sock", "unix:/run/s/billing.sock"),
    ] {
        let config = discover(FILE, [listens("p/billing", listen)]);
        assert_eq!(
            only_service(&config).listen.to_string(),
            expected,
            "{listen}"
        );
    }
    for (listen, said) in [
        ("", "neither a port nor a unix socket"),
        ("0", "neither a port"),
        ("65536", "neither a port"),
        ("https", "neither a port"),
        ("off", "neither a port"),
        ("systemd:x", "neither a port"),
        (
            "0.0.0.0:7001",
            "names an address, which tlsward's configuration does for all Services (listen_address)\n  fix: write \"7001\"",
        ),
        ("127.0.0.1:7001", "names an address"),
        ("unix:", "not the name of a file"),
        ("unix:.", "not the name of a file"),
        ("unix:..", "not the name of a file"),
        ("unix:../x.sock", "not the name of a file"),
        ("unix:a/x.sock", "not the name of a file"),
        ("unix:/run/x.sock", "not the name of a file"),
        ("unix:/run/s/../x.sock", "not the name of a file"),
        ("unix:/run/s", "not the name of a file"),
        ("unix:/run/s/", "not the name of a file"),
        ("unix:/run/sx/a", "not the name of a file"),
        ("unix:@x", "abstract"),
        ("unix:~", "~"),
        ("unix:a\0", "zero byte"),
        ("unix:a?mode=x", "not a file mode"),
    ] {
        let config = discover(FILE, [listens("p/billing", listen)]);
        let said_of = mistakes_of(&config, "billing.p").to_string();
        assert!(said_of.contains(said), "{listen}: {said_of}");
        assert!(
            said_of.starts_with("Service p/billing, annotation tlsward/listen: "),
            "{said_of}"
        );
    }
    let without = FILE.replace("socket_directory = \"/run/s\"\n", "");
    let config = discover(&without, [listens("p/billing", "unix:a.sock")]);
    let said = mistakes_of(&config, "billing.p").to_string();
    assert!(said.contains("unix sockets are refused"), "{said}");
}

#[test]
fn the_listen_address_is_that_of_the_file() {
    let file = FILE.replace("[defaults.tls]", "listen_address = \"::1\"\n[defaults.tls]");
    let config = discover(&file, [listens("p/billing", "7001")]);
    assert_eq!(only_service(&config).listen.to_string(), "[::1]:7001");

    let file = FILE.replace(
        "[defaults.tls]",
        "listen_address = \"0.0.0.0\"\n[defaults.tls]",
    );
    let problems = parse_in(&file, [], &Cluster::default()).unwrap_err();
    assert_eq!(problems.len(), 1);
    let said = problems.to_string();
    assert!(said.contains("kubernetes.discovery.listen_address: listeners at 0.0.0.0 can be reached from other machines"), "{said}");
    let file = format!("{file}[defaults]\nallow_remote_callers = true\n");
    let config = discover(&file, [listens("p/billing", "7001")]);
    assert_eq!(only_service(&config).listen.to_string(), "0.0.0.0:7001");
}

#[test]
fn of_several_ports_one_must_be_said_and_it_must_be_there() {
    let two = ["http 80", "https 443"];
    for (annotations, port) in [
        ([("tlsward/listen", "1"), ("tlsward/port", "443")], "https"),
        ([("tlsward/listen", "1"), ("tlsward/port", "http")], "http"),
    ] {
        let config = discover(FILE, [service("p/a", &two, annotations)]);
        let words = only_service(&config).upstream.words();
        assert_eq!(words, [format!("Service p/a, port {port}")]);
    }
    let config = discover(FILE, [service("p/a", &two, [("tlsward/listen", "1")])]);
    assert_eq!(
        mistakes_of(&config, "a.p").to_string(),
        "Service p/a: the Service has several ports: http (80), https (443)\n  \
         fix: say which port by the annotation tlsward/port"
    );
    for (port, said) in [
        (
            "grpc",
            "no TCP port \"grpc\"; it has http (80), https (443)",
        ),
        ("", "neither the name nor"),
    ] {
        let annotations = [("tlsward/listen", "1"), ("tlsward/port", port)];
        let config = discover(FILE, [service("p/a", &two, annotations)]);
        let found = mistakes_of(&config, "a.p").to_string();
        assert!(
            found.starts_with("Service p/a, annotation tlsward/port: "),
            "{found}"
        );
        assert!(found.contains(said), "{found}");
    }
}

#[test]
fn of_two_services_that_want_one_listener_the_older_has_it() {
    let older = || created(listens("z/z", "7001"), 1);
    let younger = || created(listens("a/a", "7001"), 2);
    for services in [[older(), younger()], [younger(), older()]] {
        let config = discover(FILE, services);
        assert_eq!(names(&config), ["z.z"]);
        assert_eq!(obstacle(&config, "a.a"), &taken_by("z.z"));
        let unbuilt = config.unbuilt.values().next().unwrap();
        assert_eq!(unbuilt.object, ObjectRef::new("a", "a"));
        assert_eq!(
            unbuilt.listen.as_ref().unwrap().to_string(),
            "127.0.0.1:7001"
        );
        assert_eq!(config.backends.len(), 2, "the loser too has its Service");
    }
    // Of the same age: by namespace, then by name.
    let config = discover(
        FILE,
        [
            listens("b/a", "1"),
            listens("a/c", "1"),
            listens("a/b", "1"),
        ],
    );
    assert_eq!(names(&config), ["b.a"]);
    // Where the older goes, or goes elsewhere, the younger has it.
    let config = discover(FILE, [created(listens("z/z", "7002"), 1), younger()]);
    assert_eq!(names(&config), ["a.a", "z.z"]);
    // Sockets are listeners too.
    let config = discover(
        FILE,
        [listens("a/a", "unix:x"), listens("b/b", "unix:x?mode=600")],
    );
    assert_eq!(obstacle(&config, "b.b"), &taken_by("a.a"));
}

#[test]
fn an_older_service_with_a_mistake_keeps_its_listener() {
    let wrong = service(
        "z/z",
        &["443"],
        [("tlsward/listen", "7001"), ("tlsward/verify", "x")],
    );
    let config = discover(FILE, [wrong, created(listens("a/a", "7001"), 2)]);
    assert!(config.services.is_empty());
    assert_eq!(
        obstacle(&config, "a.a"),
        &taken_by("z.z"),
        "its last good state may serve on there"
    );
    mistakes_of(&config, "z.z");
}

#[test]
fn a_listener_of_the_file_wins_over_discovery_also_where_it_only_overlaps() {
    for (listen, remote) in [("127.0.0.1:7001", false), ("0.0.0.0:7001", true)] {
        let file = format!(
            "{FILE}[services.own]\nlisten = \"{listen}\"\nallow_remote_callers = {remote}\nupstream = \"a:1\"\n"
        );
        let config = discover(&file, [listens("a/a", "7001"), listens("b/b", "7002")]);
        assert_eq!(names(&config), ["b.b", "own"], "{listen}");
        assert_eq!(obstacle(&config, "a.a"), &taken_by("own"));
    }
    // Also where the file's service is not built.
    let file = format!(
        "{FILE}[services.own]\nlisten = \"127.0.0.1:7001\"\nupstream = {{ service = \"x\", namespace = \"x\" }}\n"
    );
    let config = discover(&file, [listens("a/a", "7001")]);
    assert_eq!(obstacle(&config, "a.a"), &taken_by("own"));
    // The other way round: a wide listen_address over a narrow listener of the file.
    let wide = FILE.replace(
        "[defaults.tls]",
        "listen_address = \"0.0.0.0\"\n[defaults]\nallow_remote_callers = true\n[defaults.tls]",
    );
    let file = format!("{wide}[services.own]\nlisten = \"127.0.0.2:7001\"\nupstream = \"a:1\"\n");
    let config = discover(&file, [listens("a/a", "7001")]);
    assert_eq!(obstacle(&config, "a.a"), &taken_by("own"));
    // The admin endpoints are no service.
    let config = discover(FILE, [listens("a/a", "9901")]);
    let said = mistakes_of(&config, "a.a").to_string();
    assert!(
        said.contains("tlsward has its admin.listen there"),
        "{said}"
    );
}

#[test]
fn a_name_of_the_file_wins_over_discovery_and_the_other_is_told_under_its_full_name() {
    let file = format!(
        "{FILE}[services.\"billing.payments\"]\nlisten = \"127.0.0.1:7002\"\nupstream = \"a:1\"\n"
    );
    let config = discover(&file, [listens("payments/billing", "7001")]);
    assert_eq!(only_service(&config).upstream.words(), ["a:1"]);
    let said = mistakes_of(&config, "billing.payments.svc").to_string();
    assert!(
        said.contains("a service of its own called \"billing.payments\""),
        "{said}"
    );
    assert_eq!(config.backends.len(), 1);
}

#[test]
fn a_service_of_the_file_for_the_same_kubernetes_service_does_not_stop_its_discovery() {
    let file = format!(
        "{FILE}[services.own]\nlisten = \"127.0.0.1:7002\"\nupstream = {{ service = \"billing\", namespace = \"payments\" }}\n"
    );
    let config = discover(&file, [listens("payments/billing", "7001")]);
    assert_eq!(names(&config), ["billing.payments", "own"]);
    let discovered: Vec<&ServiceName> = config
        .services
        .keys()
        .filter(|name| config.is_discovered(name))
        .collect();
    assert_eq!(
        discovered,
        [&ServiceName::parse("billing.payments").unwrap()]
    );
    let objects: Vec<&ObjectRef> = config.backends.values().collect();
    assert_eq!(objects[0], objects[1]);
}

#[test]
fn only_what_is_selected_exists_and_is_in_a_namespace_of_the_file_is_discovered() {
    let file = FILE.replace("[\"*\"]", "[\"payments\"]");
    let all = || [listens("payments/a", "1"), listens("other/b", "2")];
    assert_eq!(names(&discover(&file, all())), ["a.payments"]);

    let mut gone = discovered(all());
    gone.services
        .insert(ObjectRef::new("payments", "a"), Known::Missing);
    gone.services.remove(&ObjectRef::new("other", "b"));
    let config = parse_in(FILE, [], &gone).unwrap();
    assert!(config.services.is_empty() && config.unbuilt.is_empty());

    let mut unselected = discovered(all());
    unselected.discovered.clear();
    assert!(parse_in(FILE, [], &unselected).unwrap().services.is_empty());

    let without = "[defaults.tls]\nca = \"/ca.crt\"\nclient_auth = false\n";
    assert!(
        discover(without, all()).services.is_empty(),
        "no discovery was asked for"
    );
}

#[test]
fn discovery_without_annotations_or_a_namespace_is_a_mistake_of_the_file() {
    let text = "[kubernetes]\nannotations = false\n[kubernetes.discovery]\nnamespaces = [\"*\"]\n";
    let said = parse_in(text, [], &Cluster::default())
        .unwrap_err()
        .to_string();
    assert!(
        said.contains("3:13: kubernetes.discovery: discovery goes by the annotation"),
        "{said}"
    );
    let said = parse_in("[kubernetes.discovery]\n", [], &Cluster::default()).unwrap_err();
    assert!(
        said.to_string()
            .contains("set namespaces in [kubernetes.discovery]"),
        "{said}"
    );
    assert!(
        parse_in(
            "[kubernetes]\nnamespace = \"a\"\n[kubernetes.discovery]\n",
            [],
            &Cluster::default()
        )
        .is_ok()
    );
}

#[test]
fn what_is_missing_for_a_discovered_service_concerns_it_alone_and_says_which_annotation() {
    let file = "[kubernetes.discovery]\nnamespaces = [\"*\"]\n";
    let config = discover(file, [listens("p/a", "7001")]);
    let problems = mistakes_of(&config, "a.p");
    assert_eq!(problems.len(), 2, "{problems}");
    let said = problems.to_string();
    assert!(said.contains("Service p/a: the service has no client certificate\n  fix: name a Secret of the Service's namespace"), "{said}");
    assert!(
        said.contains("Service p/a: the service has no CA certificates"),
        "{said}"
    );
    // Whom the defaults let connect is not who connects to a socket.
    let file = format!("{FILE}[defaults]\nallow_callers = [\"10.0.0.0/8\"]\n");
    let config = discover(&file, [listens("p/a", "unix:a"), listens("p/b", "7001")]);
    assert_eq!(names(&config), ["b.p"]);
    let said = mistakes_of(&config, "a.p").to_string();
    assert!(said.contains("mean nothing on a unix listener"), "{said}");
}

#[test]
fn an_external_name_can_be_discovered() {
    let mut external = service(
        "p/a",
        &[],
        [("tlsward/listen", "7001"), ("tlsward/port", "8443")],
    );
    external.external_name = Some("db.example.com".to_owned());
    let config = discover(FILE, [external]);
    assert_eq!(
        only_service(&config).upstream.words(),
        ["db.example.com:8443"]
    );
}

#[test]
fn a_thousand_discovered_services_take_little_time_also_where_all_want_one_listener() {
    let services = |listen: fn(usize) -> String| {
        discovered((0..1_000).map(|n| {
            service(
                &format!("ns{}/s{n}", n % 10),
                &["https 443"],
                [
                    ("tlsward/listen", listen(n).as_str()),
                    ("konghq.com/client-cert", "client"),
                    ("konghq.com/tls-verify-depth", "2"),
                    ("konghq.com/ca-certificates-secrets", "ca"),
                ],
            )
        }))
    };
    let apart = services(|n| (10_000 + n).to_string());
    let together = services(|_| "7001".to_owned());
    let start = std::time::Instant::now();
    assert_eq!(parse_in(FILE, [], &apart).unwrap().services.len(), 1_000);
    let took_apart = start.elapsed();
    let config = parse_in(FILE, [], &together).unwrap();
    assert_eq!((config.services.len(), config.unbuilt.len()), (1, 999));
    let took_together = start.elapsed() - took_apart;
    // An unoptimised build on a busy machine; what grows with the square would take far longer.
    assert!(took_apart < Duration::from_secs(2), "{took_apart:?}");
    assert!(took_together < Duration::from_secs(2), "{took_together:?}");
}
