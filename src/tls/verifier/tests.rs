use rcgen::{
    BasicConstraints, CustomExtension, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa,
    KeyUsagePurpose, NameConstraints, SanType,
};
use rustls::{AlertDescription, Error};

use super::*;
use crate::config::TlsVersion;
use crate::tls::client_config::client_config;
use crate::tls::names::matched_name;
use crate::tls::test_pki::{
    Broken, Ca, DAY, Established, Leaf, NOW, at, client, handshake, policy, provider, server,
    trust, trust_with_lists, uri, version_1,
};

/// Reason, detail, and the alert that the server sees.
fn refused(result: Result<Established, Box<Broken>>) -> (Reason, String, AlertDescription) {
    let broken = result.expect_err("the handshake should have failed");
    assert_eq!(take_failure(), None, "told once");
    let Some(Error::AlertReceived(alert)) = broken.server else {
        panic!("the server should have received an alert: {broken:?}");
    };
    let why = broken.why.expect("a failure with particulars");
    (why.reason, why.detail, alert)
}

fn verify(
    policy: &TlsPolicy,
    ca: &[&Ca],
    leaf: &Leaf,
    sent: &[&Ca],
) -> Result<Established, Box<Broken>> {
    handshake(
        &client(policy, None, &trust(ca)),
        server(leaf, sent),
        "billing.internal",
    )
}

fn with_lists(
    policy: &TlsPolicy,
    lists: &[Vec<u8>],
    (ca, leaf, sent): (&Ca, &Leaf, &[&Ca]),
) -> Result<Established, Box<Broken>> {
    handshake(
        &client(policy, None, &trust_with_lists(&[ca], Some(lists))),
        server(leaf, sent),
        "billing.internal",
    )
}

#[track_caller]
fn assert_holds(detail: &str, parts: &[&str]) {
    for part in parts {
        assert!(detail.contains(part), "{part:?} is not in {detail:?}");
    }
}

#[test]
fn a_good_server_is_accepted_by_name_and_by_address() {
    let ca = Ca::new("root");
    let config = client(&policy(), None, &trust(&[&ca]));
    for name in ["billing.internal", "BILLING.internal", "127.0.0.1"] {
        handshake(&config, server(&ca.server(), &[]), name).unwrap();
    }
}

#[test]
fn an_unknown_ca_is_untrusted_issuer_and_the_alert_is_unknown_ca() {
    let (ours, theirs) = (Ca::new("ours"), Ca::new("theirs"));
    let (reason, detail, alert) = refused(verify(&policy(), &[&ours], &theirs.server(), &[]));
    assert_eq!(reason, Reason::UntrustedIssuer);
    assert_eq!(alert, AlertDescription::UnknownCA);
    assert_holds(
        &detail,
        &[
            "CN=server",
            "needs CN=theirs as issuer",
            "sent no other certificate",
            "1 certificate in ca (CN=ours",
        ],
    );
}

#[test]
fn a_missing_intermediate_is_named() {
    let root = Ca::new("root");
    let between = root.intermediate("between");
    let (reason, detail, _) = refused(verify(&policy(), &[&root], &between.server(), &[]));
    assert_eq!(reason, Reason::UntrustedIssuer);
    assert_holds(&detail, &["needs CN=between", "sent no other certificate"]);
}

#[test]
fn a_ca_made_anew_under_the_same_name_is_untrusted_issuer() {
    let (old, new) = (Ca::new("root"), Ca::new("root"));
    let (reason, detail, alert) = refused(verify(&policy(), &[&old], &new.server(), &[]));
    assert_eq!(reason, Reason::UntrustedIssuer);
    assert_eq!(alert, AlertDescription::UnknownCA);
    assert_holds(&detail, &["another key", "made anew"]);
}

#[test]
fn an_altered_certificate_is_bad_certificate() {
    let ca = Ca::new("root");
    let mut leaf = ca.server_with(|params| params.use_authority_key_identifier_extension = true);
    let mut der = leaf.der.to_vec();
    *der.last_mut().unwrap() ^= 1;
    leaf.der = der.into();
    let (reason, detail, alert) = refused(verify(&policy(), &[&ca], &leaf, &[]));
    assert_eq!(reason, Reason::BadCertificate);
    assert_eq!(alert, AlertDescription::DecryptError);
    assert_holds(&detail, &["altered or damaged"]);
}

#[test]
fn without_any_ca_every_server_is_refused() {
    let ca = Ca::new("root");
    let config = client_config(&policy(), None, None, &provider()).unwrap();
    let (reason, detail, _) = refused(handshake(
        &at(&config, NOW),
        server(&ca.server(), &[]),
        "localhost",
    ));
    assert_eq!(reason, Reason::UntrustedIssuer);
    assert_holds(&detail, &["the service has no CA certificates"]);
}

#[test]
fn another_name_is_name_mismatch_with_both_names() {
    let ca = Ca::new("root");
    let config = client(&policy(), None, &trust(&[&ca]));
    for name in ["other.internal", "10.0.0.1"] {
        let (reason, detail, alert) = refused(handshake(&config, server(&ca.server(), &[]), name));
        assert_eq!(reason, Reason::NameMismatch);
        assert_eq!(alert, AlertDescription::BadCertificate);
        assert_holds(
            &detail,
            &[name, "DNS:localhost, DNS:billing.internal, IP:127.0.0.1"],
        );
    }
}

#[test]
fn a_certificate_with_only_a_cn_says_so() {
    let ca = Ca::new("root");
    let leaf = ca.server_with(|params| params.subject_alt_names.clear());
    let (reason, detail, _) = refused(verify(&policy(), &[&ca], &leaf, &[]));
    assert_eq!(reason, Reason::NameMismatch);
    assert_holds(
        &detail,
        &["no subject alternative name", "CN is not looked at"],
    );
}

#[test]
fn verify_chain_asks_for_no_name_but_for_the_chain() {
    let policy = TlsPolicy {
        verify: Verify::Chain,
        ..policy()
    };
    let (ca, other) = (Ca::new("root"), Ca::new("other"));
    let config = client(&policy, None, &trust(&[&ca]));
    handshake(&config, server(&ca.server(), &[]), "other.internal").unwrap();
    let result = handshake(&config, server(&other.server(), &[]), "other.internal");
    assert_eq!(refused(result).0, Reason::UntrustedIssuer);
}

#[test]
fn verify_none_accepts_any_certificate_and_no_wrong_signature() {
    let none = TlsPolicy {
        verify: Verify::None,
        ..policy()
    };
    let (ca, other) = (Ca::new("root"), Ca::new("other"));
    verify(&none, &[&ca], &other.server(), &[]).unwrap();

    // The server presents a certificate whose key it does not hold.
    let mut imposter = other.server();
    imposter.der = ca.server().der;
    for version in [TlsVersion::Tls12, TlsVersion::Tls13] {
        let none = TlsPolicy {
            min_version: version,
            max_version: version,
            ..none.clone()
        };
        let (reason, detail, alert) = refused(verify(&none, &[&ca], &imposter, &[]));
        assert_eq!(reason, Reason::BadCertificate);
        assert_eq!(alert, AlertDescription::DecryptError);
        assert_holds(
            &detail,
            &["does not prove that it holds the key", "CN=server"],
        );
    }
}

#[test]
fn an_expired_certificate_is_named_with_its_date() {
    let ca = Ca::new("root");
    let config = client(&policy(), None, &trust(&[&ca]));
    let leaf = ca.server_with(|params| {
        params.not_after = crate::tls::test_pki::date(NOW + DAY);
    });
    handshake(&config, server(&leaf, &[]), "localhost").unwrap();
    let later = at(&config, NOW + 2 * DAY);
    let (reason, detail, alert) = refused(handshake(&later, server(&leaf, &[]), "localhost"));
    assert_eq!(reason, Reason::Expired);
    assert_eq!(alert, AlertDescription::CertificateExpired);
    assert_holds(
        &detail,
        &[
            "the server's certificate CN=server",
            "expired on 2030-01-02 00:00:00 UTC",
            "now is 2030-01-03 00:00:00 UTC",
        ],
    );
}

#[test]
fn an_expired_intermediate_is_named_and_not_the_leaf() {
    let root = Ca::new("root");
    let between = root.intermediate_with("between", |params| {
        params.not_after = crate::tls::test_pki::date(NOW - DAY);
    });
    let result = verify(&policy(), &[&root], &between.server(), &[&between]);
    let (reason, detail, _) = refused(result);
    assert_eq!(reason, Reason::Expired);
    assert_holds(
        &detail,
        &["the server's intermediate CN=between", "2029-12-31"],
    );
}

#[test]
fn an_anchor_that_expires_while_in_use_is_refused() {
    let root = Ca::with("root", |params| {
        params.not_after = crate::tls::test_pki::date(NOW + DAY);
    });
    let config = client(&policy(), None, &trust(&[&root]));
    let leaf = root.server();
    handshake(&config, server(&leaf, &[]), "localhost").unwrap();
    let (reason, detail, alert) = refused(handshake(
        &at(&config, NOW + 2 * DAY),
        server(&leaf, &[]),
        "localhost",
    ));
    assert_eq!(reason, Reason::Expired);
    assert_eq!(alert, AlertDescription::CertificateExpired);
    assert_holds(&detail, &["CN=root", "in ca", "2030-01-02"]);
}

#[test]
fn a_certificate_from_the_future_is_not_yet_valid() {
    let ca = Ca::new("root");
    let leaf = ca.server_with(|params| {
        params.not_before = crate::tls::test_pki::date(NOW + DAY);
    });
    let (reason, detail, alert) = refused(verify(&policy(), &[&ca], &leaf, &[]));
    assert_eq!(reason, Reason::NotYetValid);
    assert_eq!(alert, AlertDescription::CertificateExpired);
    assert_holds(&detail, &["is not valid before 2030-01-02"]);
}

#[test]
fn verify_depth_counts_the_certificates_between_leaf_and_anchor() {
    let root = Ca::new("root");
    let upper = root.intermediate("upper");
    let lower = upper.intermediate("lower");
    let chains: [(Leaf, Vec<&Ca>); 3] = [
        (root.server(), vec![]),
        (upper.server(), vec![&upper]),
        (lower.server(), vec![&lower, &upper]),
    ];
    for allowed in 0..=2u8 {
        let policy = TlsPolicy {
            verify_depth: Some(allowed),
            ..policy()
        };
        for (between, (leaf, sent)) in chains.iter().enumerate() {
            let result = verify(&policy, &[&root], leaf, sent);
            if between <= usize::from(allowed) {
                result.unwrap();
                continue;
            }
            let (reason, detail, alert) = refused(result);
            assert_eq!(reason, Reason::ChainTooLong);
            assert_eq!(alert, AlertDescription::UnknownCA);
            assert_holds(
                &detail,
                &[
                    &format!("{between} certificates stand between"),
                    "CN=root",
                    &format!("verify_depth is {allowed}"),
                ],
            );
        }
    }
}

#[test]
fn the_depth_is_that_of_the_verified_path_not_of_what_the_server_sends() {
    let root = Ca::new("root");
    let upper = root.intermediate("upper");
    let stray = root.intermediate("stray");
    let zero = TlsPolicy {
        verify_depth: Some(0),
        ..policy()
    };
    // Useless certificates and the root itself do not count.
    verify(&zero, &[&root], &root.server(), &[&stray, &upper, &root]).unwrap();
    // An intermediate that is in `ca` is an anchor.
    verify(&zero, &[&root, &upper], &upper.server(), &[&upper]).unwrap();
}

#[test]
fn more_than_six_intermediates_are_too_many_without_verify_depth() {
    let root = Ca::new("root");
    let mut chain = vec![root.intermediate("1")];
    for number in 2..=7 {
        chain.push(chain.last().unwrap().intermediate(&number.to_string()));
    }
    let leaf = chain.last().unwrap().server();
    let sent: Vec<&Ca> = chain.iter().rev().collect();
    let (reason, ..) = refused(verify(&policy(), &[&root], &leaf, &sent));
    assert_eq!(reason, Reason::ChainTooLong);
}

#[test]
fn pins_come_on_top_of_the_chain_and_the_detail_shows_the_key_presented() {
    let (ca, other) = (Ca::new("root"), Ca::new("other"));
    let (leaf, stranger) = (ca.server(), other.server());
    let pin = |leaf: &Leaf| -> [u8; 32] {
        let parsed = summary::parse(&leaf.der).unwrap();
        summary::sha256(parsed.public_key().raw)
            .as_ref()
            .try_into()
            .unwrap()
    };
    let pinned = |pins: Vec<[u8; 32]>, verify| TlsPolicy {
        pins,
        verify,
        ..policy()
    };
    verify(
        &pinned(vec![[0; 32], pin(&leaf)], Verify::Full),
        &[&ca],
        &leaf,
        &[],
    )
    .unwrap();

    for mode in [Verify::Full, Verify::Chain, Verify::None] {
        let wrong = pinned(vec![pin(&stranger)], mode);
        let (reason, detail, alert) = refused(verify(&wrong, &[&ca], &leaf, &[]));
        assert_eq!(reason, Reason::PinMismatch);
        assert_eq!(alert, AlertDescription::AccessDenied);
        let presented = summary::CertificateSummary::of(&leaf.der).unwrap().pin;
        assert_holds(&detail, &[&presented]);
    }

    // A pin never replaces the chain.
    let result = verify(
        &pinned(vec![pin(&stranger)], Verify::Full),
        &[&ca],
        &stranger,
        &[],
    );
    assert_eq!(refused(result).0, Reason::UntrustedIssuer);
}

#[test]
fn allowed_names_hold_for_dns_and_spiffe() {
    let ca = Ca::new("root");
    let leaf = ca.server_with(|params| {
        let id = uri("spiffe://cluster.local/ns/prod/sa/billing");
        params.subject_alt_names.push(id);
    });
    let allowing = |pattern: NamePattern| TlsPolicy {
        verify: Verify::Chain,
        allowed_names: vec![NamePattern::Dns("nobody".into()), pattern],
        ..policy()
    };
    for pattern in [
        NamePattern::Dns("*.internal".into()),
        NamePattern::Uri("spiffe://cluster.local/ns/*/sa/billing".into()),
    ] {
        verify(&allowing(pattern), &[&ca], &leaf, &[]).unwrap();
    }
    let wrong = NamePattern::Uri("spiffe://cluster.local/ns/*/sa/orders".into());
    let (reason, detail, alert) = refused(verify(&allowing(wrong), &[&ca], &leaf, &[]));
    assert_eq!(reason, Reason::NameNotAllowed);
    assert_eq!(alert, AlertDescription::AccessDenied);
    assert_holds(
        &detail,
        &[
            "URI:spiffe://cluster.local/ns/prod/sa/billing",
            "allowed_names: nobody, spiffe://cluster.local/ns/*/sa/orders",
        ],
    );
}

#[test]
fn a_revoked_leaf_is_refused_with_serial_date_and_list() {
    let ca = Ca::new("root");
    let (leaf, other) = (ca.server(), ca.server());
    let lists = [ca.crl(&[&leaf.der], NOW - DAY)];
    with_lists(&policy(), &lists, (&ca, &other, &[])).unwrap();
    let (reason, detail, alert) = refused(with_lists(&policy(), &lists, (&ca, &leaf, &[])));
    assert_eq!(reason, Reason::Revoked);
    assert_eq!(alert, AlertDescription::CertificateRevoked);
    let serial = summary::CertificateSummary::of(&leaf.der).unwrap().serial;
    assert_holds(&detail, &[&serial, "on 2029-12-31", "0.crl"]);
}

#[test]
fn a_revoked_intermediate_is_refused_and_named() {
    let root = Ca::new("root");
    let between = root.intermediate("between");
    let lists = [
        between.crl(&[], NOW - DAY),
        root.crl(&[between.der()], NOW - DAY),
    ];
    let leaf = between.server();
    let result = with_lists(&policy(), &lists, (&root, &leaf, &[&between]));
    let (reason, detail, _) = refused(result);
    assert_eq!(reason, Reason::Revoked);
    assert_holds(&detail, &["CN=between", "1.crl"]);
}

#[test]
fn a_certificate_that_no_list_covers_is_refused() {
    let root = Ca::new("root");
    let between = root.intermediate("between");
    let leaf = between.server();
    let only_root = [root.crl(&[], NOW - DAY)];
    let result = with_lists(&policy(), &only_root, (&root, &leaf, &[&between]));
    let (reason, detail, alert) = refused(result);
    assert_eq!(reason, Reason::RevocationUnknown);
    assert_eq!(alert, AlertDescription::UnknownCA);
    assert_holds(&detail, &["CN=server needs one of CN=between"]);

    let both = [root.crl(&[], NOW - DAY), between.crl(&[], NOW - DAY)];
    with_lists(&policy(), &both, (&root, &leaf, &[&between])).unwrap();
}

#[test]
fn a_list_signed_by_another_key_counts_for_nothing() {
    let (ca, same_name) = (Ca::new("root"), Ca::new("root"));
    let lists = [same_name.crl(&[], NOW - DAY)];
    let (reason, ..) = refused(with_lists(&policy(), &lists, (&ca, &ca.server(), &[])));
    assert_eq!(reason, Reason::RevocationUnknown);
}

#[test]
fn an_expired_list_refuses_unless_the_policy_accepts_it() {
    let ca = Ca::new("root");
    let (leaf, revoked) = (ca.server(), ca.server());
    let lists = [ca.crl_until(&[&revoked.der], NOW - 2 * DAY, NOW - DAY)];
    let (reason, detail, alert) = refused(with_lists(&policy(), &lists, (&ca, &leaf, &[])));
    assert_eq!(reason, Reason::CrlExpired);
    assert_eq!(alert, AlertDescription::UnknownCA);
    assert_holds(&detail, &["CN=root in 0.crl", "replaced by 2029-12-31"]);

    let accept = TlsPolicy {
        crl_expired: CrlExpired::Accept,
        ..policy()
    };
    with_lists(&accept, &lists, (&ca, &leaf, &[])).unwrap();
    let result = with_lists(&accept, &lists, (&ca, &revoked, &[]));
    assert_eq!(refused(result).0, Reason::Revoked);
}

#[test]
fn of_two_lists_of_one_ca_the_newer_decides() {
    let ca = Ca::new("root");
    let leaf = ca.server();
    let old = ca.crl(&[], NOW - 2 * DAY);
    let new = ca.crl(&[&leaf.der], NOW - DAY);
    for lists in [[old.clone(), new.clone()], [new, old]] {
        let result = with_lists(&policy(), &lists, (&ca, &leaf, &[]));
        assert_eq!(refused(result).0, Reason::Revoked);
    }
}

#[test]
fn a_client_certificate_is_no_server_certificate() {
    let ca = Ca::new("root");
    let leaf = ca.server_with(|params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    });
    let (reason, detail, alert) = refused(verify(&policy(), &[&ca], &leaf, &[]));
    assert_eq!(reason, Reason::WrongUsage);
    assert_eq!(alert, AlertDescription::UnsupportedCertificate);
    assert_holds(&detail, &["CN=server", "serverAuth", "client certificate"]);
}

#[test]
fn what_webpki_is_strict_about_is_told_in_words() {
    let ca = Ca::new("root");
    let as_ca = ca.server_with(|params| {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    });
    let critical = ca.server_with(|params| {
        let mut extension = CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0]);
        extension.set_criticality(true);
        params.custom_extensions.push(extension);
    });
    for (leaf, alert_expected, words) in [
        (as_ca, AlertDescription::UnsupportedCertificate, "CA:TRUE"),
        (
            critical,
            AlertDescription::BadCertificate,
            "critical extension 1.2.3.4",
        ),
    ] {
        let (reason, detail, alert) = refused(verify(&policy(), &[&ca], &leaf, &[]));
        assert_eq!(reason, Reason::BadCertificate);
        assert_eq!(alert, alert_expected);
        assert_holds(&detail, &[words]);
    }
}

#[test]
fn a_version_1_certificate_is_refused_by_its_version_whatever_is_verified() {
    let ca = Ca::new("root");
    for verify_mode in [Verify::Full, Verify::None] {
        let policy = TlsPolicy {
            verify: verify_mode,
            ..policy()
        };
        let (reason, detail, _) = refused(verify(&policy, &[&ca], &version_1(), &[]));
        assert_eq!(reason, Reason::BadCertificate);
        assert_holds(&detail, &["X.509 version 1", "subjectAltName"]);
    }
}

#[test]
fn name_constraints_and_path_length_of_a_ca_are_held_to() {
    let root = Ca::new("root");
    let constrained = root.intermediate_with("constrained", |params| {
        params.name_constraints = Some(NameConstraints {
            permitted_subtrees: vec![GeneralSubtree::DnsName("elsewhere".into())],
            excluded_subtrees: Vec::new(),
        });
    });
    let no_more = root.intermediate_with("last", |params| {
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    });
    let below = no_more.intermediate("below");
    for (leaf, sent, words) in [
        (constrained.server(), vec![&constrained], "nameConstraints"),
        (below.server(), vec![&below, &no_more], "pathLenConstraint"),
    ] {
        let (reason, detail, _) = refused(verify(&policy(), &[&root], &leaf, &sent));
        assert_eq!(reason, Reason::BadCertificate);
        assert_holds(&detail, &[words]);
    }
}

/// OpenSSL holds to it too; webpki knows no path length of an anchor.
#[test]
fn the_path_length_of_an_anchor_is_held_to() {
    let limited = |length| {
        Ca::with("root", |params| {
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(length));
        })
    };
    let root = limited(0);
    verify(&policy(), &[&root], &root.server(), &[]).unwrap();
    let below = root.intermediate("below");
    let (reason, detail, _) = refused(verify(&policy(), &[&root], &below.server(), &[&below]));
    assert_eq!(reason, Reason::BadCertificate);
    assert_holds(&detail, &["1 CAs", "CN=root", "pathLenConstraint allows 0"]);

    let root = limited(1);
    let below = root.intermediate("below");
    verify(&policy(), &[&root], &below.server(), &[&below]).unwrap();
}

/// RFC 5280 section 6.1.4 (n); webpki takes basicConstraints alone for an answer.
#[test]
fn an_intermediate_whose_key_usage_is_not_to_sign_certificates_issues_nothing() {
    let root = Ca::new("root");
    let with = |usages: &[KeyUsagePurpose]| {
        root.intermediate_with("below", |params| params.key_usages = usages.into())
    };
    for usages in [&[][..], &[KeyUsagePurpose::KeyCertSign]] {
        let below = with(usages);
        verify(&policy(), &[&root], &below.server(), &[&below]).unwrap();
    }
    let below = with(&[KeyUsagePurpose::DigitalSignature]);
    let (reason, detail, _) = refused(verify(&policy(), &[&root], &below.server(), &[&below]));
    assert_eq!(reason, Reason::BadCertificate);
    assert_holds(&detail, &["CN=server", "CN=below", "keyCertSign"]);
}

#[test]
fn a_failure_is_forgotten_when_the_next_verification_begins() {
    let (ca, other) = (Ca::new("root"), Ca::new("other"));
    let verifier = Verifier::new(&policy(), Some(&trust(&[&ca])), &provider());
    let check = |leaf: &Leaf| {
        verifier.verify_server_cert(
            &leaf.der,
            &[],
            &"localhost".try_into().unwrap(),
            &[],
            crate::tls::test_pki::now(),
        )
    };
    check(&other.server()).unwrap_err();
    check(&ca.server()).unwrap();
    assert_eq!(take_failure(), None);
}

#[test]
fn garbage_instead_of_a_certificate_is_bad_certificate() {
    let ca = Ca::new("root");
    let verifier = Verifier::new(&policy(), Some(&trust(&[&ca])), &provider());
    let garbage = CertificateDer::from(&b"\x30\x03\x01\x02\x03"[..]);
    let error = verifier
        .verify_server_cert(
            &garbage,
            &[],
            &"localhost".try_into().unwrap(),
            &[],
            crate::tls::test_pki::now(),
        )
        .unwrap_err();
    assert_eq!(error, CertificateError::BadEncoding.into());
    assert_eq!(take_failure().unwrap().reason, Reason::BadCertificate);
}

#[test]
fn the_name_that_matched_is_told_as_it_stands_in_the_certificate() {
    let ca = Ca::new("root");
    let leaf = ca.server_with(|params| {
        let wildcard = SanType::DnsName("*.example.com".try_into().unwrap());
        params.subject_alt_names.push(wildcard);
    });
    let matched = |name: &str| matched_name(&leaf.der, &ServerName::try_from(name).unwrap());
    assert_eq!(matched("Localhost").as_deref(), Some("DNS:localhost"));
    assert_eq!(
        matched("a.example.com").as_deref(),
        Some("DNS:*.example.com")
    );
    assert_eq!(matched("127.0.0.1").as_deref(), Some("IP:127.0.0.1"));
    assert_eq!(matched("a.b.example.com"), None);
    assert_eq!(matched("10.0.0.1"), None);
}
