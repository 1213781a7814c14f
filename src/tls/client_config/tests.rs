use rustls::{AlertDescription, Error, HandshakeKind, ServerConfig};

use super::*;
use crate::config::NamePattern;
use crate::tls::test_pki::{
    Broken, Ca, Established, Leaf, at, client, handshake, handshake_with, mtls_server, policy,
    provider, server, trust,
};

struct World {
    ca: Ca,
    leaf: Leaf,
}

impl World {
    fn new() -> Self {
        let ca = Ca::new("root");
        let leaf = ca.server();
        Self { ca, leaf }
    }

    fn client(&self, policy: &TlsPolicy) -> Arc<Connector> {
        client(policy, None, &trust(&[&self.ca]))
    }

    fn connect(&self, policy: &TlsPolicy) -> Result<Established, Box<Broken>> {
        handshake(&self.client(policy), server(&self.leaf, &[]), "localhost")
    }

    fn server_of(&self, version: &'static SupportedProtocolVersion) -> ServerConfig {
        let mut config = ServerConfig::builder_with_provider(Arc::new(provider()))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(server(&self.leaf, &[]).cert_resolver);
        config.send_tls13_tickets = 2;
        config
    }
}

fn bounded(min_version: TlsVersion, max_version: TlsVersion) -> TlsPolicy {
    TlsPolicy {
        min_version,
        max_version,
        ..policy()
    }
}

#[test]
fn the_post_quantum_hybrid_is_negotiated_by_default_and_in_one_round_trip() {
    let done = World::new().connect(&policy()).unwrap();
    let group = done.client.negotiated_key_exchange_group().unwrap();
    assert_eq!(group.name(), NamedGroup::X25519MLKEM768);
    assert_eq!(done.client.handshake_kind(), Some(HandshakeKind::Full));
    assert_eq!(
        done.client.protocol_version(),
        Some(ProtocolVersion::TLSv1_3)
    );
}

#[test]
fn key_exchange_sets_the_groups_and_their_order() {
    let world = World::new();
    for (list, expected) in [
        (vec![KeyExchange::Secp384r1], NamedGroup::secp384r1),
        (
            vec![KeyExchange::Secp256r1, KeyExchange::X25519],
            NamedGroup::secp256r1,
        ),
        (
            vec![KeyExchange::X25519MlKem768],
            NamedGroup::X25519MLKEM768,
        ),
    ] {
        let policy = TlsPolicy {
            key_exchange: list,
            ..policy()
        };
        let done = world.connect(&policy).unwrap();
        let group = done.client.negotiated_key_exchange_group().unwrap();
        assert_eq!(group.name(), expected);
        assert_eq!(done.client.handshake_kind(), Some(HandshakeKind::Full));
    }
}

#[test]
fn version_bounds_hold_on_both_sides() {
    let world = World::new();
    let (tls12, tls13) = (&rustls::version::TLS12, &rustls::version::TLS13);
    for (policy, server_version, expected) in [
        (policy(), tls12, Some(ProtocolVersion::TLSv1_2)),
        (policy(), tls13, Some(ProtocolVersion::TLSv1_3)),
        (bounded(TlsVersion::Tls13, TlsVersion::Tls13), tls12, None),
        (bounded(TlsVersion::Tls12, TlsVersion::Tls12), tls13, None),
        (
            bounded(TlsVersion::Tls12, TlsVersion::Tls12),
            tls12,
            Some(ProtocolVersion::TLSv1_2),
        ),
    ] {
        let result = handshake(
            &world.client(&policy),
            world.server_of(server_version),
            "localhost",
        );
        let negotiated = result.ok().and_then(|done| done.client.protocol_version());
        assert_eq!(negotiated, expected);
    }
}

#[test]
fn a_policy_that_leaves_nothing_to_offer_is_refused_with_the_reason() {
    let hybrid_only = TlsPolicy {
        key_exchange: vec![KeyExchange::X25519MlKem768],
        ..bounded(TlsVersion::Tls12, TlsVersion::Tls12)
    };
    let upside_down = bounded(TlsVersion::Tls13, TlsVersion::Tls12);
    for (policy, words) in [
        (hybrid_only, "needs TLS 1.3"),
        (upside_down, "above max_version"),
    ] {
        let why = client_config(&policy, None, None, &provider()).unwrap_err();
        assert_eq!(why.reason, Reason::BadConfig);
        assert!(why.detail.contains(words), "{why}");
    }
}

#[test]
fn alpn_offers_the_list_and_a_server_that_shares_none_ends_the_handshake() {
    let world = World::new();
    let policy = TlsPolicy {
        alpn: vec!["h2".into(), "http/1.1".into()],
        ..policy()
    };
    let connect = |protocols: &[&str]| {
        let mut server = server(&world.leaf, &[]);
        server.alpn_protocols = protocols.iter().map(|name| (*name).into()).collect();
        handshake(&world.client(&policy), server, "localhost")
    };
    let chosen = connect(&["http/1.1"]).unwrap();
    assert_eq!(chosen.client.alpn_protocol(), Some(&b"http/1.1"[..]));
    let broken = connect(&["imap"]).unwrap_err();
    assert_eq!(
        broken.client,
        Some(Error::AlertReceived(
            AlertDescription::NoApplicationProtocol
        ))
    );
}

#[test]
fn sni_is_sent_unless_switched_off() {
    let world = World::new();
    for sni in [true, false] {
        let done = world.connect(&TlsPolicy { sni, ..policy() }).unwrap();
        let expected = sni.then_some("localhost");
        assert_eq!(done.server.server_name(), expected);
    }
}

#[test]
fn the_identity_is_presented_with_its_chain_under_both_versions() {
    let world = World::new();
    let clients = Ca::new("clients");
    let between = clients.intermediate("between");
    let leaf = between.client();
    let identity = Identity::parse(
        &leaf.material(&[&between]),
        crate::tls::test_pki::now(),
        &provider(),
    )
    .unwrap();
    for version in [TlsVersion::Tls12, TlsVersion::Tls13] {
        let policy = bounded(version, version);
        let config = client(&policy, Some(&identity), &trust(&[&world.ca]));
        let server = mtls_server(&world.leaf, &clients, provider(), true);
        let done = handshake(&config, server, "localhost").unwrap();
        let presented = done.server.peer_certificates().unwrap();
        assert_eq!(presented, [leaf.der.clone(), between.der().clone()]);
    }
}

#[test]
fn every_kind_of_key_signs_under_both_versions() {
    let world = World::new();
    for algorithm in [
        &rcgen::PKCS_ECDSA_P256_SHA256,
        &rcgen::PKCS_ECDSA_P384_SHA384,
        &rcgen::PKCS_ECDSA_P521_SHA512,
        &rcgen::PKCS_ED25519,
        &rcgen::PKCS_RSA_SHA256,
    ] {
        let identity = world.ca.client_of(algorithm).identity();
        for version in [TlsVersion::Tls12, TlsVersion::Tls13] {
            let policy = bounded(version, version);
            let config = client(&policy, Some(&identity), &trust(&[&world.ca]));
            let server = mtls_server(&world.leaf, &world.ca, provider(), true);
            let done = handshake(&config, server, "localhost").unwrap();
            assert!(done.server.peer_certificates().is_some());
        }
    }
}

/// The server lists its CAs in the request; ours is not among them.
#[test]
fn the_identity_is_presented_to_a_server_that_lists_other_issuers() {
    let world = World::new();
    let strangers = Ca::new("strangers");
    let identity = world.ca.client().identity();
    let config = client(&policy(), Some(&identity), &trust(&[&world.ca]));
    let server = mtls_server(&world.leaf, &strangers, provider(), false);
    let broken = handshake(&config, server, "localhost").unwrap_err();
    let Some(Error::InvalidCertificate(_)) = broken.server else {
        panic!("the server should have judged our certificate: {broken:?}");
    };
}

#[test]
fn without_a_shared_signature_scheme_the_handshake_fails_instead_of_going_on_as_nobody() {
    let world = World::new();
    let identity = world.ca.client().identity();
    let mut only_ed25519 = provider();
    only_ed25519.signature_verification_algorithms = rustls::crypto::WebPkiSupportedAlgorithms {
        all: vec![webpki::aws_lc_rs::ED25519].leak(),
        mapping: vec![(
            SignatureScheme::ED25519,
            &*vec![webpki::aws_lc_rs::ED25519].leak(),
        )]
        .leak(),
    };
    for version in [TlsVersion::Tls12, TlsVersion::Tls13] {
        let policy = bounded(version, version);
        let config = client(&policy, Some(&identity), &trust(&[&world.ca]));
        // The server would take a client without a certificate.
        let server = || mtls_server(&world.leaf, &world.ca, only_ed25519.clone(), false);
        let broken = handshake(&config, server(), "localhost").unwrap_err();
        let why = broken.why.unwrap();
        assert_eq!(why.reason, Reason::NoSharedCipher);
        for part in ["ECDSA", "ED25519"] {
            assert!(why.detail.contains(part), "{part} is not in {why}");
        }
        let nobody = client(&policy, None, &trust(&[&world.ca]));
        handshake(&nobody, server(), "localhost").unwrap();
    }
}

#[test]
fn client_auth_false_presents_no_certificate() {
    let world = World::new();
    let config = world.client(&policy());
    let optional = mtls_server(&world.leaf, &world.ca, provider(), false);
    let done = handshake(&config, optional, "localhost").unwrap();
    assert_eq!(done.server.peer_certificates(), None);

    let required = mtls_server(&world.leaf, &world.ca, provider(), true);
    let broken = handshake(&config, required, "localhost").unwrap_err();
    assert_eq!(broken.server, Some(Error::NoCertificatesPresented));
}

#[test]
fn only_dangerous_policies_are_warned_of() {
    let system = Some(&CaSource::System);
    assert_eq!(warnings(&policy(), system), [""; 0]);
    let none = TlsPolicy {
        verify: Verify::None,
        crl_expired: CrlExpired::Accept,
        ..policy()
    };
    let said = warnings(&none, None);
    assert_eq!(said.len(), 2);
    assert!(said[0].contains("not verified"), "{said:?}");

    let mut chain = TlsPolicy {
        verify: Verify::Chain,
        ..policy()
    };
    let own = CaSource::Path("/ca.crt".into());
    assert_eq!(warnings(&chain, Some(&own)), [""; 0]);
    assert!(warnings(&chain, system)[0].contains("whatever its name"));
    chain.allowed_names = vec![NamePattern::Dns("billing.internal".into())];
    assert_eq!(warnings(&chain, system), [""; 0]);
}

// Resumption.

/// How each of `count` handshakes in a row went, the first included.
fn kinds(config: &Connector, server: &Arc<ServerConfig>, count: usize) -> Vec<HandshakeKind> {
    (0..count)
        .map(|_| {
            let done = handshake_with(config, server, "localhost").unwrap();
            done.client.handshake_kind().unwrap()
        })
        .collect()
}

#[test]
fn sessions_resume_within_one_configuration_under_both_versions() {
    let world = World::new();
    let identity = world.ca.client().identity();
    for version in [TlsVersion::Tls12, TlsVersion::Tls13] {
        let policy = bounded(version, version);
        let config = client(&policy, Some(&identity), &trust(&[&world.ca]));
        let server = Arc::new(mtls_server(&world.leaf, &world.ca, provider(), true));
        use HandshakeKind::{Full, Resumed};
        assert_eq!(kinds(&config, &server, 3), [Full, Resumed, Resumed]);
    }
}

#[test]
fn no_session_resumes_across_two_configurations() {
    let world = World::new();
    let server = Arc::new(server(&world.leaf, &[]));
    let trust = trust(&[&world.ca]);
    let identity = world.ca.client().identity();
    for identity in [None, Some(&identity)] {
        for version in [TlsVersion::Tls12, TlsVersion::Tls13] {
            let policy = bounded(version, version);
            let (old, new) = (
                client(&policy, identity, &trust),
                client(&policy, identity, &trust),
            );
            use HandshakeKind::{Full, Resumed};
            assert_eq!(kinds(&old, &server, 2), [Full, Resumed]);
            assert_eq!(kinds(&new, &server, 2), [Full, Resumed]);
        }
    }
}

/// Even where a session got into the wrong store: rustls compares verifier and resolver.
#[test]
fn a_session_in_the_store_of_another_configuration_does_not_resume() {
    let world = World::new();
    let server = Arc::new(server(&world.leaf, &[]));
    let old = world.client(&policy());
    assert_eq!(kinds(&old, &server, 1), [HandshakeKind::Full]);
    let new = world.client(&policy()).with_tickets(old.tickets.clone());
    assert_eq!(kinds(&new, &server, 1), [HandshakeKind::Full]);
}

#[test]
fn resumption_false_resumes_nothing() {
    let world = World::new();
    for version in [TlsVersion::Tls12, TlsVersion::Tls13] {
        let policy = TlsPolicy {
            resumption: false,
            ..bounded(version, version)
        };
        let config = world.client(&policy);
        let server = Arc::new(server(&world.leaf, &[]));
        assert_eq!(kinds(&config, &server, 2), [HandshakeKind::Full; 2]);
    }
}

#[test]
fn a_resumed_session_does_not_outlive_what_the_server_said_of_it() {
    let world = World::new();
    let config = world.client(&policy());
    let server = Arc::new(server(&world.leaf, &[]));
    assert_eq!(kinds(&config, &server, 1), [HandshakeKind::Full]);
    // rustls servers say 24 hours.
    let later = at(&config, crate::tls::test_pki::NOW + 25 * 3600);
    assert_eq!(kinds(&later, &server, 1), [HandshakeKind::Full]);
}
