//! Plain TCP in, verified mutual TLS out.

use rcgen::{
    PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ECDSA_P521_SHA512, PKCS_ED25519,
    PKCS_RSA_SHA256, SignatureAlgorithm,
};
use rustls::{NamedGroup, ProtocolVersion};

use crate::support::net::{Caller, Ending};
use crate::support::pki::{Ca, IdentityFiles, Issued, Pki, SERVER_NAME};
use crate::support::proxy::{Config, Proxy, Service, path_text};
use crate::support::scene::{NAME, Scene, introduce, visit};
use crate::support::upstream::{Behaviour, ClientAuth, Options, Seen, TLS12, TLS13, Upstream};

#[tokio::test]
async fn a_caller_reaches_the_upstream_as_the_mapped_client_certificate() {
    let scene = Scene::new(Behaviour::Identify).await;
    let (mut caller, seen) = scene.introduce().await;
    assert_eq!(seen.common_name, NAME);
    assert_eq!(seen.serial, scene.client.serial());
    caller.echo(b"plain text in, plain text out").await;
    caller.finish_sending().await;
    assert_eq!(caller.ending().await, Ending::Fin);
    let ended = scene
        .proxy
        .wait_for_log("the line at the end of the connection", |line| {
            line.has("service", NAME) && line.has("outcome", "ok")
        })
        .await;
    assert_eq!(ended.text("tls_version"), Some("1.3"));
    assert_eq!(ended.get("resumed"), Some(&false.into()));
    assert_eq!(ended.get("bytes_up"), Some(&29.into()));
}

#[tokio::test]
async fn each_service_presents_its_own_certificate_to_the_same_upstream() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let services = ["billing", "orders", "stock"].map(|name| {
        let files = pki.identity_files(name, &pki.client(name));
        Service::new(name, upstream.address(), &pki).identity(&files)
    });
    let _proxy = Proxy::start(&pki, &Config::of(services.clone())).await;
    for service in &services {
        assert_eq!(visit(service).await.common_name, service.name);
    }
}

#[tokio::test]
async fn a_session_is_never_resumed_by_another_service_of_the_same_upstream() {
    for versions in [TLS12, TLS13] {
        let pki = Pki::new();
        let upstream = Options::trusting(&pki.root)
            .versions(versions)
            .start(&pki.server())
            .await;
        let [first, second] = ["first", "second"].map(|name| {
            let files = pki.identity_files(name, &pki.client(name));
            Service::new(name, upstream.address(), &pki).identity(&files)
        });
        let _proxy = Proxy::start(&pki, &Config::of([first.clone(), second.clone()])).await;
        assert!(!visit(&first).await.resumed);
        assert!(
            visit(&first).await.resumed,
            "the test needs a session to tempt with"
        );
        let seen = visit(&second).await;
        assert_eq!((seen.common_name.as_str(), seen.resumed), ("second", false));
        let seen = visit(&first).await;
        assert_eq!(seen.common_name, "first");
    }
}

#[tokio::test]
async fn a_later_connection_of_a_service_resumes_its_session() {
    let scene = Scene::new(Behaviour::Identify).await;
    assert!(!visit(&scene.service).await.resumed);
    assert!(visit(&scene.service).await.resumed);
    assert_eq!(scene.proxy.counter(NAME, "handshakes_full").await, 1);
    assert_eq!(scene.proxy.counter(NAME, "handshakes_resumed").await, 1);
}

#[tokio::test]
async fn resumption_false_makes_every_handshake_a_full_one() {
    let scene = Scene::shaped(Behaviour::Identify, |service| {
        service.tls("resumption", "false")
    })
    .await;
    for _ in 0..3 {
        assert!(!visit(&scene.service).await.resumed);
    }
}

/// One service per identity, all to the same upstream; each must be seen as itself.
async fn every_identity_is_accepted(pki: &Pki, identities: Vec<(&str, Issued, IdentityFiles)>) {
    let upstream = Upstream::start(pki).await;
    let services: Vec<_> = identities
        .iter()
        .map(|(name, _, files)| Service::new(name, upstream.address(), pki).identity(files))
        .collect();
    let _proxy = Proxy::start(pki, &Config::of(services.clone())).await;
    for (service, (name, issued, _)) in services.iter().zip(&identities) {
        assert_eq!(visit(service).await.serial, issued.serial(), "{name}");
    }
}

const KEY_KINDS: [(&str, &SignatureAlgorithm); 5] = [
    ("p256", &PKCS_ECDSA_P256_SHA256),
    ("p384", &PKCS_ECDSA_P384_SHA384),
    ("p521", &PKCS_ECDSA_P521_SHA512),
    ("ed25519", &PKCS_ED25519),
    ("rsa", &PKCS_RSA_SHA256),
];

#[tokio::test]
async fn keys_of_every_kind_in_pkcs8_are_taken() {
    let pki = Pki::new();
    let identities = KEY_KINDS
        .into_iter()
        .map(|(name, kind)| {
            let issued = pki.root.client(name).key_kind(kind).issue();
            let files = pki.identity_files(name, &issued);
            (name, issued, files)
        })
        .collect();
    every_identity_is_accepted(&pki, identities).await;
}

#[tokio::test]
async fn sec1_and_pkcs1_keys_are_taken() {
    let pki = Pki::new();
    let identities = KEY_KINDS
        .into_iter()
        .filter(|(name, _)| *name != "ed25519") // it has no older encoding
        .map(|(name, kind)| {
            let issued = pki.root.client(name).key_kind(kind).issue();
            let files = pki.identity_files(name, &issued);
            let key = issued.key_pem_traditional();
            assert!(
                key.contains("EC PRIVATE KEY") || key.contains("RSA PRIVATE KEY"),
                "{key}"
            );
            std::fs::write(&files.key, key).unwrap();
            (name, issued, files)
        })
        .collect();
    every_identity_is_accepted(&pki, identities).await;
}

#[tokio::test]
async fn a_bundle_holds_key_and_chain_in_either_order() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let first = pki.client("key-first");
    let last = pki.client("key-last");
    let services = [
        ("key-first", first.key_pem() + &first.chain_pem()),
        ("key-last", last.chain_pem() + &last.key_pem()),
    ]
    .map(|(name, text)| {
        let bundle = pki.write(&format!("{name}.pem"), text);
        Service::new(name, upstream.address(), &pki).tls_text("bundle", path_text(&bundle))
    });
    let _proxy = Proxy::start(&pki, &Config::of(services.clone())).await;
    for service in &services {
        assert_eq!(visit(service).await.common_name, service.name);
    }
}

#[tokio::test]
async fn intermediates_of_the_client_certificate_are_sent_along() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await; // knows the root alone
    let issued = pki.root.intermediates(2).client("deep").issue();
    let files = pki.identity_files("deep", &issued);
    let service = Service::new("deep", upstream.address(), &pki).identity(&files);
    let _proxy = Proxy::start(&pki, &Config::of([service.clone()])).await;
    assert_eq!(visit(&service).await.serial, issued.serial());
}

#[tokio::test]
async fn verify_depth_counts_the_certificates_between_leaf_and_anchor() {
    let pki = Pki::new();
    let server = pki.root.intermediates(2).server().issue();
    let scene = Scene::presenting(
        pki,
        &server,
        |options| options,
        |service| service.tls("verify_depth", "2"),
    )
    .await;
    visit(&scene.service).await;
    let shallow = scene.service.clone().tls("verify_depth", "1");
    scene
        .proxy
        .adopt(&scene.config.with_services([shallow]))
        .await;
    scene.call_is_refused().await;
    scene
        .proxy
        .expect_failure(
            NAME,
            ["handshake", "upstream", "chain_too_long"],
            "verify_depth",
        )
        .await;
}

#[tokio::test]
async fn a_directory_of_ca_certificates_is_trust() {
    let pki = Pki::new();
    pki.write("anchors/ours.crt", pki.root.pem());
    pki.write("anchors/another.crt", Ca::root("Another Root").pem());
    let anchors = pki.path("anchors");
    let server = pki.server();
    let scene = Scene::presenting(
        pki,
        &server,
        |options| options,
        |service| service.tls_text("ca", path_text(&anchors)),
    )
    .await;
    visit(&scene.service).await;
    let trust = scene.proxy.service(NAME).await["trust"].clone();
    assert_eq!(
        trust["anchors"].as_array().map(Vec::len),
        Some(2),
        "{trust:#}"
    );
}

#[tokio::test]
async fn a_ca_certificate_that_cannot_be_an_anchor_is_left_out_and_named() {
    let pki = Pki::new();
    let leaf = pki.client("not-a-ca");
    let bundle = pki.write("bundle.crt", pki.root.pem() + &leaf.leaf_pem());
    let server = pki.server();
    let scene = Scene::presenting(
        pki,
        &server,
        |options| options,
        |service| service.tls_text("ca", path_text(&bundle)),
    )
    .await;
    visit(&scene.service).await;
    let trust = scene.proxy.service(NAME).await["trust"].clone();
    assert_eq!(
        trust["anchors"].as_array().map(Vec::len),
        Some(1),
        "{trust:#}"
    );
    let left_out = trust["left_out"][0].as_str().expect("one is left out");
    assert!(left_out.contains("not-a-ca"), "{left_out}");
}

#[tokio::test]
async fn without_server_name_the_upstreams_address_is_verified_and_no_sni_is_sent() {
    let scene = Scene::shaped(Behaviour::Identify, |service| {
        service.without_tls("server_name")
    })
    .await;
    visit(&scene.service).await; // the certificate names the address
    // RFC 6066 section 3: no addresses in SNI.
    assert_eq!(scene.upstream.peers()[0].server_name, None);
}

#[tokio::test]
async fn server_name_goes_out_as_sni_unless_sni_is_false() {
    let scene = Scene::new(Behaviour::Identify).await;
    visit(&scene.service).await;
    let silent = scene.service.clone().tls("sni", "false");
    scene
        .proxy
        .adopt(&scene.config.with_services([silent]))
        .await;
    visit(&scene.service).await;
    let names: Vec<_> = scene
        .upstream
        .peers()
        .into_iter()
        .map(|peer| peer.server_name)
        .collect();
    assert_eq!(names, [Some(SERVER_NAME.to_owned()), None]);
}

#[tokio::test]
async fn verify_chain_asks_for_no_name_but_still_for_the_issuer() {
    let pki = Pki::new();
    let server = pki.root.server_for(&["elsewhere.test"]).issue();
    let scene = Scene::presenting(
        pki,
        &server,
        |options| options,
        |service| service.tls_text("verify", "chain"),
    )
    .await;
    visit(&scene.service).await;
    scene
        .upstream
        .present(&Ca::root("Stranger").server().issue());
    scene.call_is_refused().await;
    scene
        .proxy
        .expect_failure(NAME, ["handshake", "upstream", "untrusted_issuer"], "ca")
        .await;
}

#[tokio::test]
async fn verify_none_takes_any_server_and_warns_in_log_and_status() {
    let pki = Pki::new();
    let stranger = Ca::root("Stranger").server_for(&["elsewhere.test"]).issue();
    let scene = Scene::presenting(
        pki,
        &stranger,
        |options| options,
        |service| service.tls_text("verify", "none"),
    )
    .await;
    visit(&scene.service).await;
    scene
        .proxy
        .wait_for_log("a warning that verification is off", |line| {
            line.has("level", "WARN") && line.raw.contains("verif") && line.raw.contains(NAME)
        })
        .await;
    let status = scene.proxy.service(NAME).await;
    assert_eq!(status["verify"], "none");
    let warnings = status["warnings"].as_array().expect("a list of warnings");
    assert!(!warnings.is_empty(), "{status:#}");
}

#[tokio::test]
async fn client_auth_false_presents_no_certificate() {
    let scene = Scene::set(
        |options| options.client_auth(ClientAuth::Optional),
        |service| {
            service
                .without_tls("cert")
                .without_tls("key")
                .tls("client_auth", "false")
        },
    )
    .await;
    assert_eq!(visit(&scene.service).await.common_name, "-");
    assert!(scene.proxy.service(NAME).await["identity"].is_null());
}

#[tokio::test]
async fn version_bounds_hold_in_both_directions() {
    let scene = Scene::shaped(Behaviour::Identify, |service| {
        service.tls_text("max_version", "1.2")
    })
    .await;
    visit(&scene.service).await;
    let new = scene
        .service
        .clone()
        .tls_text("max_version", "1.3")
        .tls_text("min_version", "1.3");
    scene.proxy.adopt(&scene.config.with_services([new])).await;
    visit(&scene.service).await;
    let versions: Vec<_> = scene
        .upstream
        .peers()
        .into_iter()
        .map(|peer| peer.version)
        .collect();
    assert_eq!(
        versions,
        [ProtocolVersion::TLSv1_2, ProtocolVersion::TLSv1_3]
    );
}

#[tokio::test]
async fn the_post_quantum_group_is_first_and_key_exchange_can_ask_for_another() {
    let scene = Scene::new(Behaviour::Identify).await;
    visit(&scene.service).await;
    let other = scene
        .service
        .clone()
        .tls("key_exchange", r#"["secp384r1"]"#);
    scene
        .proxy
        .adopt(&scene.config.with_services([other]))
        .await;
    visit(&scene.service).await;
    let groups: Vec<_> = scene
        .upstream
        .peers()
        .into_iter()
        .map(|peer| peer.group)
        .collect();
    assert_eq!(
        groups,
        [
            Some(NamedGroup::X25519MLKEM768),
            Some(NamedGroup::secp384r1)
        ]
    );
}

#[tokio::test]
async fn alpn_is_negotiated_as_configured() {
    let scene = Scene::set(
        |options| options.alpn(&["postgresql", "h2"]),
        |service| service.tls("alpn", r#"["h2"]"#),
    )
    .await;
    visit(&scene.service).await;
    assert_eq!(scene.upstream.peers()[0].alpn.as_deref(), Some("h2"));
}

#[tokio::test]
async fn a_pinned_key_is_accepted_in_addition_to_the_chain() {
    let pki = Pki::new();
    let server = pki.server();
    let pin = pin_of(&server);
    let scene = Scene::presenting(
        pki,
        &server,
        |options| options,
        |service| service.tls("pins", &format!("[\"{pin}\"]")),
    )
    .await;
    visit(&scene.service).await;
    // The same key from another CA: the pin is never instead of the chain.
    let stranger = Ca::root("Stranger").server().issue();
    let pinned = scene
        .service
        .clone()
        .tls("pins", &format!("[\"{}\"]", pin_of(&stranger)));
    scene
        .proxy
        .adopt(&scene.config.with_services([pinned]))
        .await;
    scene.upstream.present(&stranger);
    scene.call_is_refused().await;
    scene
        .proxy
        .expect_failure(NAME, ["handshake", "upstream", "untrusted_issuer"], "ca")
        .await;
}

/// The form of `pins`, from the certificate's SubjectPublicKeyInfo.
fn pin_of(issued: &Issued) -> String {
    use base64::Engine as _;
    let (_, leaf) = x509_parser::parse_x509_certificate(&issued.chain[0]).unwrap();
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, leaf.public_key().raw);
    let text = base64::engine::general_purpose::STANDARD.encode(digest);
    format!("sha256/{text}")
}

#[tokio::test]
async fn allowed_names_match_a_spiffe_id() {
    let pki = Pki::new();
    let server = pki
        .root
        .server()
        .uri("spiffe://cluster.test/ns/prod/sa/billing")
        .issue();
    let scene = Scene::presenting(
        pki,
        &server,
        |options| options,
        |service| {
            service.tls(
                "allowed_names",
                r#"["spiffe://cluster.test/ns/*/sa/billing"]"#,
            )
        },
    )
    .await;
    visit(&scene.service).await;
}

#[tokio::test]
async fn a_server_that_speaks_first_is_heard_before_the_caller_says_anything() {
    let scene = Scene::new(Behaviour::Greet(b"220 ready\r\n".to_vec())).await;
    let mut caller = scene.call().await;
    assert_eq!(caller.exactly(11).await, b"220 ready\r\n");
    caller.echo(b"EHLO caller\r\n").await;
}

#[tokio::test]
async fn records_of_one_byte_arrive_whole_and_in_order() {
    let text: Vec<u8> = (0..2000u32).map(|number| (number % 251) as u8).collect();
    for versions in [TLS12, TLS13] {
        let behaviour = Behaviour::OneByteRecords(text.clone());
        let scene = Scene::set(
            |options| options.behaviour(behaviour).versions(versions),
            |service| service,
        )
        .await;
        assert_eq!(scene.call().await.exactly(text.len()).await, text);
    }
}

#[tokio::test]
async fn records_of_16_kib_go_both_ways() {
    let text: Vec<u8> = (0..1u32 << 20)
        .map(|number| (number * 7 % 251) as u8)
        .collect();
    let scene = Scene::new(Behaviour::Echo).await;
    let mut caller = scene.call().await;
    for part in text.chunks(16 * 1024) {
        caller.echo(part).await;
    }
}

#[tokio::test]
async fn key_updates_asked_for_by_the_server_are_followed() {
    let scene = Scene::set(
        |options| options.behaviour(Behaviour::KeyUpdates).versions(TLS13),
        |service| service,
    )
    .await;
    let mut caller = scene.call().await;
    for round in 0..20 {
        caller.echo(format!("round {round}").as_bytes()).await;
    }
    caller.finish_sending().await;
    assert_eq!(caller.ending().await, Ending::Fin);
}

#[tokio::test]
async fn a_server_chain_of_60_kib_is_taken() {
    for versions in [TLS12, TLS13] {
        let pki = Pki::new();
        let server = pki.server().padded_to(60 * 1024);
        let length: usize = server.chain.iter().map(|der| der.len()).sum();
        assert!(
            (55_000..62_000).contains(&length),
            "the chain has {length} bytes"
        );
        let scene = Scene::presenting(
            pki,
            &server,
            |options| options.versions(versions),
            |service| service,
        )
        .await;
        visit(&scene.service).await;
    }
}

#[tokio::test]
async fn the_second_address_of_an_upstream_is_used_when_the_first_is_closed() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let files = pki.identity_files(NAME, &pki.client(NAME));
    let closed = crate::support::net::address();
    let service = Service::new(NAME, upstream.address(), &pki)
        .identity(&files)
        .set(
            "upstream",
            &format!("[\"{closed}\", \"{}\"]", upstream.address()),
        );
    let _proxy = Proxy::start(&pki, &Config::of([service.clone()])).await;
    visit(&service).await;
}

#[tokio::test]
async fn a_name_that_is_looked_up_is_the_name_that_is_verified() {
    let pki = Pki::new();
    // `localhost` is in every hosts file; it means 127.0.0.1 and not this process's address.
    let mut options = Options::trusting(&pki.root);
    options.address = ([127, 0, 0, 1], 0).into();
    options.address = free_port_of(options.address);
    let upstream = options.start(&pki.server()).await;
    let files = pki.identity_files(NAME, &pki.client(NAME));
    let service = Service::new(NAME, upstream.address(), &pki)
        .identity(&files)
        .without_tls("server_name")
        .text(
            "upstream",
            &format!("localhost:{}", upstream.address().port()),
        );
    let _proxy = Proxy::start(&pki, &Config::of([service.clone()])).await;
    visit(&service).await;
    assert_eq!(
        upstream.peers()[0].server_name.as_deref(),
        Some("localhost")
    );
}

fn free_port_of(address: std::net::SocketAddr) -> std::net::SocketAddr {
    std::net::TcpListener::bind(address)
        .and_then(|listener| listener.local_addr())
        .unwrap()
}

#[tokio::test]
async fn a_unix_listener_has_the_mode_that_was_asked_for_and_serves() {
    use std::os::unix::fs::PermissionsExt as _;

    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let files = pki.identity_files(NAME, &pki.client(NAME));
    let socket = pki.path("billing.sock");
    let service = Service::new(NAME, upstream.address(), &pki)
        .identity(&files)
        .listening_on(format!("unix:{}?mode=0620", socket.display()));
    let proxy = Proxy::start(&pki, &Config::of([service])).await;
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o620);
    let mut caller = Caller::connect_unix(&socket).await;
    assert_eq!(Seen::parse(&caller.line().await).common_name, NAME);
    caller.echo(b"through a unix socket").await;
    caller.finish_sending().await;
    assert_eq!(caller.ending().await, Ending::Fin);
    proxy.stop().await;
    assert!(!socket.exists(), "the socket file is removed at the end");
}

#[tokio::test]
async fn one_callers_bytes_never_reach_anothers_connection() {
    let scene = Scene::new(Behaviour::Identify).await;
    let mut callers = Vec::new();
    for number in 0..50 {
        let (caller, _) = introduce(&scene.service).await;
        callers.push((number, caller));
    }
    for (number, caller) in &mut callers {
        caller.send(format!("from {number}\n").as_bytes()).await;
    }
    for (number, caller) in callers.iter_mut().rev() {
        assert_eq!(caller.line().await, format!("from {number}"));
    }
}
