//! Decisions, without a runtime: text and bytes in, plans and routes out.

use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::config::{CaSource, IdentitySource, TrustSource};
use crate::control::credentials::{ROTATION_GRACE_SECONDS, Verdict};
use crate::material::{IdentityMaterial, Part, TrustMaterial};
use crate::source::{Material, Reading, SourceKey};
use crate::tls::test_pki::{Ca, Leaf, date, now, provider, unix};

/// A configuration with one line of TOML for each service: name, port, identity, more keys.
fn config(services: &[(&str, u16, &str, &str)]) -> Config {
    config_with(services, "")
}

/// The same with these keys of TLS in every service.
fn config_with(services: &[(&str, u16, &str, &str)], tls: &str) -> Config {
    let mut text = String::from("[defaults.tls]\nca = \"/ca.crt\"\n");
    for (name, port, identity, more) in services {
        text.push_str(&format!(
            "[services.{name}]\nlisten = \"127.0.0.1:{port}\"\nupstream = \"up:1\"\n{more}\n\
             [services.{name}.tls]\ncert = \"/{identity}.crt\"\nkey = \"/{identity}.key\"\n{tls}\n"
        ));
    }
    Config::parse(&text, Path::new("/config.toml"), &BTreeMap::new())
        .unwrap_or_else(|problems| panic!("{problems}"))
}

fn state() -> State {
    State::new(Config::empty(), provider(), Arc::new(Metrics::new("test")))
}

fn identity_key(name: &str) -> SourceKey {
    SourceKey::Identity(IdentitySource::Pair {
        cert: format!("/{name}.crt").into(),
        key: format!("/{name}.key").into(),
    })
}

fn identity_of(name: &str, certificate: &Leaf, key: &Leaf) -> Reading {
    let material = Material::Identity(IdentityMaterial::Pair {
        cert: Part::new("cert", certificate.pem().into()),
        key: Part::new("key", key.key.serialize_pem().into()),
    });
    Reading {
        key: identity_key(name),
        material: Ok(material),
    }
}

fn identity(name: &str, leaf: &Leaf) -> Reading {
    identity_of(name, leaf, leaf)
}

fn trust(ca: &Ca) -> Reading {
    let key = SourceKey::Trust(TrustSource {
        ca: CaSource::Path("/ca.crt".into()),
        crl: None,
    });
    let ca = vec![Part::new("ca", ca.pem().into())];
    Reading {
        key,
        material: Ok(Material::Trust(TrustMaterial { ca, crl: None })),
    }
}

fn give(state: &mut State, readings: &[Reading]) -> Vec<Verdict> {
    let judged = state.credentials.judge(readings, now(), &provider());
    judged.into_iter().map(|judged| judged.verdict).collect()
}

fn listen(port: u16) -> Listen {
    Listen::Tcp(([127, 0, 0, 1], port).into())
}

/// The names of services by port, as routed.
fn routed(state: &State) -> Vec<(u16, String)> {
    let port = |listen: &Listen| match listen {
        Listen::Tcp(address) => address.port(),
        Listen::Unix { .. } | Listen::Systemd(_) => panic!("no such listener here"),
    };
    let entries = state.routes.iter();
    entries
        .map(|(listen, entry)| (port(listen), entry.route.service.to_string()))
        .collect()
}

#[test]
fn a_service_has_a_route_once_identity_and_trust_are_there_and_not_before() {
    let ca = Ca::new("CA");
    let mut state = state();
    state.commit(config(&[("a", 1, "a", "")]));
    assert!(state.rebuild().is_empty());
    give(&mut state, &[trust(&ca)]);
    assert!(state.rebuild().is_empty());
    give(&mut state, &[identity("a", &ca.client())]);
    let routes = state.rebuild();
    assert_eq!(routes.len(), 1);
    assert!(matches!(
        routes[0].1.identity,
        Presented::Certificate { generation: 1, .. }
    ));
    assert!(
        state.rebuild().is_empty(),
        "nothing changed, so nothing is published"
    );
}

#[test]
fn one_services_missing_certificate_is_not_anothers() {
    let ca = Ca::new("CA");
    let mut state = state();
    state.commit(config(&[("a", 1, "a", ""), ("b", 2, "b", "")]));
    give(&mut state, &[trust(&ca), identity("b", &ca.client())]);
    state.rebuild();
    assert_eq!(routed(&state), [(2, "b".to_owned())]);
    let a = &state.config.services.values().next().unwrap().clone();
    assert!(matches!(
        state.readiness(a),
        Readiness::Waiting { serving: false, .. }
    ));
}

#[test]
fn a_renewed_certificate_makes_a_new_tls_configuration_for_its_services_only() {
    let ca = Ca::new("CA");
    let mut state = state();
    state.commit(config(&[("a", 1, "a", ""), ("b", 2, "b", "")]));
    give(
        &mut state,
        &[
            trust(&ca),
            identity("a", &ca.client()),
            identity("b", &ca.client()),
        ],
    );
    let before: BTreeMap<_, _> = state.rebuild().into_iter().collect();
    give(&mut state, &[identity("a", &ca.client())]);
    let after = state.rebuild();
    assert_eq!(after.len(), 1);
    assert_eq!(after[0].0, listen(1));
    assert!(
        !Arc::ptr_eq(&after[0].1.tls, &before[&listen(1)].tls),
        "sessions must not carry over"
    );
    assert!(before[&listen(1)].retired.is_cancelled());
    assert!(!before[&listen(2)].retired.is_cancelled());
}

#[test]
fn a_change_that_is_not_about_tls_keeps_the_sessions_and_retires_nobody() {
    let ca = Ca::new("CA");
    let mut state = state();
    state.commit(config(&[("a", 1, "a", "")]));
    give(&mut state, &[trust(&ca), identity("a", &ca.client())]);
    let before = state.rebuild().remove(0).1;
    state.commit(config(&[("a", 1, "a", "idle_timeout = \"5m\"")]));
    let after = state.rebuild().remove(0).1;
    assert!(Arc::ptr_eq(&before.tls, &after.tls));
    assert!(!before.retired.is_cancelled());
    give(&mut state, &[identity("a", &ca.client())]);
    state.rebuild();
    assert!(
        before.retired.is_cancelled(),
        "a later rotation still reaches the first connections"
    );
}

#[test]
fn a_rotation_also_retires_connections_from_before_a_change_of_policy_and_address() {
    let ca = Ca::new("CA");
    let mut state = state();
    state.commit(config(&[("a", 1, "a", "")]));
    give(&mut state, &[trust(&ca), identity("a", &ca.client())]);
    let before = state.rebuild().remove(0).1;
    let mut changed = config(&[("a", 2, "a", "")]);
    for service in changed.services.values_mut() {
        service.tls.alpn = vec!["http/1.1".to_owned()];
    }
    state.commit(changed);
    let after = state.rebuild().remove(0).1;
    assert!(!Arc::ptr_eq(&before.tls, &after.tls));
    assert!(!before.retired.is_cancelled());
    give(&mut state, &[identity("a", &ca.client())]);
    state.rebuild();
    assert!(after.retired.is_cancelled());
    assert!(before.retired.is_cancelled());
}

#[test]
fn a_source_that_comes_back_with_another_certificate_is_not_taken_for_the_old_one() {
    let ca = Ca::new("CA");
    let mut state = state();
    state.commit(config(&[("a", 1, "a", "")]));
    give(&mut state, &[trust(&ca), identity("a", &ca.client())]);
    let before = state.rebuild().remove(0).1;
    // The files of the other identity are not there: the old route serves on.
    state.commit(config(&[("a", 1, "not-there-yet", "")]));
    state.rebuild();
    // Back again; meanwhile nobody watched the files, and the certificate was renewed.
    give(&mut state, &[identity("a", &ca.client())]);
    state.commit(config(&[("a", 1, "a", "")]));
    let after = state.rebuild();
    assert_eq!(after.len(), 1, "the renewed certificate is in use");
    assert_ne!(before.identity, after[0].1.identity);
}

#[test]
fn two_services_with_one_certificate_have_sessions_of_their_own() {
    let ca = Ca::new("CA");
    let mut state = state();
    state.commit(config(&[("a", 1, "same", ""), ("b", 2, "same", "")]));
    give(&mut state, &[trust(&ca), identity("same", &ca.client())]);
    let routes = state.rebuild();
    assert!(!Arc::ptr_eq(&routes[0].1.tls, &routes[1].1.tls));
}

#[test]
fn a_swap_of_ports_is_a_swap_of_routes_and_binds_nothing() {
    let ca = Ca::new("CA");
    let mut state = state();
    state.commit(config(&[("a", 1, "a", ""), ("b", 2, "b", "")]));
    give(
        &mut state,
        &[
            trust(&ca),
            identity("a", &ca.client()),
            identity("b", &ca.client()),
        ],
    );
    state.rebuild();
    let swapped = config(&[("a", 2, "a", ""), ("b", 1, "b", "")]);
    let plan = state.plan(&swapped, &BTreeSet::from([listen(1), listen(2)]));
    assert!(plan.bind.is_empty() && plan.close.is_empty());
    assert_eq!(plan.changed.len(), 2);
    state.commit(swapped);
    assert_eq!(state.rebuild().len(), 2);
    assert_eq!(routed(&state), [(1, "b".to_owned()), (2, "a".to_owned())]);
}

#[test]
fn while_a_changed_service_waits_for_its_certificate_the_old_route_serves_on() {
    let ca = Ca::new("CA");
    let mut state = state();
    state.commit(config(&[("a", 1, "a", "")]));
    give(&mut state, &[trust(&ca), identity("a", &ca.client())]);
    state.rebuild();
    let changed = config(&[("a", 1, "not-there-yet", "")]);
    state.commit(changed);
    assert!(state.rebuild().is_empty());
    assert_eq!(routed(&state), [(1, "a".to_owned())]);
    let a = &state.config.services.values().next().unwrap().clone();
    assert!(matches!(
        state.readiness(a),
        Readiness::Waiting { serving: true, .. }
    ));
}

#[test]
fn the_old_route_does_not_serve_on_where_the_changed_service_asks_for_more() {
    let ca = Ca::new("CA");
    let pin = format!("pins = [\"sha256/{}=\"]", "A".repeat(43));
    for asked in [
        format!("tls.{pin}").as_str(),
        "tls.allowed_names = [\"up\"]",
        "tls.crl = \"/ca.crl\"",
        "tls.verify_depth = 1",
        "tls.min_version = \"1.3\"",
        "allow_callers = [\"127.0.0.1/32\"]",
    ] {
        let of = |identity, more: &str| {
            // The helper writes [services.a.tls] below.
            let (above, below) = match more.strip_prefix("tls.") {
                Some(tls) => ("", tls),
                None => (more, ""),
            };
            config_with(&[("a", 1, identity, above)], below)
        };
        let mut state = state();
        state.commit(of("a", ""));
        give(&mut state, &[trust(&ca), identity("a", &ca.client())]);
        state.rebuild();
        state.commit(of("not-there-yet", asked));
        assert!(state.rebuild().is_empty(), "{asked}");
        assert_eq!(state.withdraw(), [listen(1)], "{asked}");
    }
}

#[test]
fn bad_material_keeps_the_last_good_generation_and_says_why() {
    let ca = Ca::new("CA");
    let mut state = state();
    state.commit(config(&[("a", 1, "a", "")]));
    give(&mut state, &[trust(&ca), identity("a", &ca.client())]);
    let good = state.rebuild().remove(0).1;
    let junk = Material::Identity(IdentityMaterial::Pair {
        cert: Part::new("cert", b"junk".to_vec()),
        key: Part::new("key", b"junk".to_vec()),
    });
    let verdicts = give(
        &mut state,
        &[Reading {
            key: identity_key("a"),
            material: Ok(junk),
        }],
    );
    assert!(matches!(&verdicts[..], [Verdict::Refused(why)] if why.reason == Reason::BadPem));
    assert!(state.rebuild().is_empty());
    assert!(!good.retired.is_cancelled());
    let a = &state.config.services.values().next().unwrap().clone();
    assert_eq!(state.readiness(a), Readiness::Ready);
}

#[test]
fn a_certificate_ahead_of_its_time_is_taken_when_its_time_has_come_though_its_bytes_stay() {
    let ca = Ca::new("CA");
    let start = i64::try_from(now().as_secs()).unwrap() + 3600;
    let early = ca.client_with(|params| params.not_before = date(start));
    let mut state = state();
    state.commit(config(&[("a", 1, "a", "")]));
    let verdicts = give(&mut state, &[trust(&ca), identity("a", &early)]);
    assert!(
        matches!(&verdicts[..], [_, Verdict::Refused(why)] if why.reason == Reason::NotYetValid)
    );
    assert!(state.rebuild().is_empty());
    assert!(state.credentials.wait_for_the_clock());

    let too_soon = state.credentials.judge_again(unix(start - 1), &provider());
    assert!(
        too_soon.is_empty(),
        "nothing new, nothing said: {too_soon:?}"
    );
    let judged = state.credentials.judge_again(unix(start), &provider());
    let verdicts: Vec<Verdict> = judged.into_iter().map(|judged| judged.verdict).collect();
    assert!(matches!(
        verdicts[..],
        [Verdict::Published { generation: 1, .. }]
    ));
    assert_eq!(state.rebuild().len(), 1);
    assert!(!state.credentials.wait_for_the_clock());
}

#[test]
fn a_certificate_that_only_a_wrong_clock_calls_expired_is_taken_when_the_clock_is_right() {
    let ca = Ca::new("CA");
    let mut state = state();
    state.commit(config(&[("a", 1, "a", "")]));
    give(&mut state, &[trust(&ca)]);
    let far_ahead = unix(i64::try_from(now().as_secs()).unwrap() + 1_000_000_000);
    state
        .credentials
        .judge(&[identity("a", &ca.client())], far_ahead, &provider());
    assert!(state.rebuild().is_empty());
    state.credentials.judge_again(now(), &provider());
    assert_eq!(state.rebuild().len(), 1);
}

#[test]
fn a_ca_ahead_of_its_time_joins_the_others_when_its_time_has_come() {
    let start = i64::try_from(now().as_secs()).unwrap() + 3600;
    let (old, new) = (
        Ca::new("old"),
        Ca::with("new", |params| params.not_before = date(start)),
    );
    let mut reading = trust(&old);
    let Ok(Material::Trust(material)) = &mut reading.material else {
        unreachable!()
    };
    material.ca.push(Part::new("new", new.pem().into()));
    let source = match &reading.key {
        SourceKey::Trust(source) => source.clone(),
        other => panic!("{other:?}"),
    };
    let mut state = state();
    give(&mut state, &[reading]);
    let anchors = |state: &State| {
        let good = state.credentials.trust(&source).current().unwrap();
        (good.generation, good.value.anchors.len())
    };
    assert_eq!(anchors(&state), (1, 1));
    state.credentials.judge_again(unix(start - 1), &provider());
    assert_eq!(anchors(&state), (1, 1), "no news, no generation");
    state.credentials.judge_again(unix(start), &provider());
    assert_eq!(anchors(&state), (2, 2));
}

#[test]
fn the_same_bytes_after_a_broken_write_are_the_same_generation() {
    let ca = Ca::new("CA");
    let mut state = state();
    state.commit(config(&[("a", 1, "a", "on_rotation = \"drain\"")]));
    let leaf = ca.client();
    give(&mut state, &[trust(&ca), identity("a", &leaf)]);
    let route = state.rebuild().remove(0).1;
    let broken = Explained::new(Reason::IdentityMissing, "gone for a moment");
    let reading = Reading {
        key: identity_key("a"),
        material: Err(broken),
    };
    give(&mut state, &[reading]);
    let verdicts = give(&mut state, &[identity("a", &leaf)]);
    assert_eq!(verdicts, [Verdict::Restored { generation: 1 }]);
    assert!(state.rebuild().is_empty());
    assert!(!route.retired.is_cancelled(), "nothing was rotated");
    let SourceKey::Identity(source) = identity_key("a") else {
        unreachable!()
    };
    assert_eq!(state.credentials.identity(&source).refused(), None);
}

#[test]
fn a_key_that_comes_before_its_certificate_is_a_rotation_for_ten_seconds_and_then_an_error() {
    let ca = Ca::new("CA");
    let mut state = state();
    state.commit(config(&[("a", 1, "a", "")]));
    let (old, new) = (ca.client(), ca.client());
    give(&mut state, &[trust(&ca), identity("a", &old)]);
    let verdicts = give(&mut state, &[identity_of("a", &old, &new)]);
    let reason = |verdicts: &[Verdict]| match verdicts {
        [Verdict::Refused(why)] => why.reason,
        other => panic!("{other:?}"),
    };
    assert_eq!(reason(&verdicts), Reason::RotationInProgress);
    let begun = i64::try_from(now().as_secs()).unwrap();
    assert_eq!(
        state.credentials.next_expiry(),
        Some(begun + ROTATION_GRACE_SECONDS)
    );
    assert!(
        state
            .credentials
            .expire(unix(begun + ROTATION_GRACE_SECONDS - 1))
            .is_empty()
    );
    let overdue = state
        .credentials
        .expire(unix(begun + ROTATION_GRACE_SECONDS));
    let overdue: Vec<Verdict> = overdue.into_iter().map(|judged| judged.verdict).collect();
    assert_eq!(reason(&overdue), Reason::KeyMismatch);
    assert_eq!(state.credentials.next_expiry(), None);
    let verdicts = give(&mut state, &[identity("a", &new)]);
    assert!(matches!(
        verdicts[..],
        [Verdict::Published { generation: 2, .. }]
    ));
}

/// Up to six services on up to six ports, each port once.
fn any_services() -> impl Strategy<Value = Vec<(usize, u16, u8, bool)>> {
    let ports = Just((1..=6u16).collect::<Vec<_>>()).prop_shuffle();
    (
        ports,
        proptest::sample::subsequence((0..6usize).collect::<Vec<_>>(), 0..=6),
        any::<[u8; 6]>(),
        any::<[bool; 6]>(),
    )
        .prop_map(|(ports, names, identities, idle)| {
            names
                .into_iter()
                .map(|n| (n, ports[n], identities[n] % 3, idle[n]))
                .collect()
        })
}

fn any_config(services: &[(usize, u16, u8, bool)]) -> Config {
    const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
    const IDENTITIES: [&str; 3] = ["x", "y", "z"];
    let services: Vec<_> = services
        .iter()
        .map(|(name, port, identity, idle)| {
            let more = if *idle { "idle_timeout = \"5m\"" } else { "" };
            (
                NAMES[*name],
                *port,
                IDENTITIES[usize::from(*identity)],
                more,
            )
        })
        .collect();
    config(&services)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn carrying_out_a_plan_yields_the_configuration_and_touches_nothing_else(
        before in any_services(),
        after in any_services(),
    ) {
        let ca = Ca::new("CA");
        let mut state = state();
        let everything: Vec<Reading> = std::iter::once(trust(&ca))
            .chain(["x", "y", "z"].map(|name| identity(name, &ca.client())))
            .collect();
        let mut bound = BTreeSet::new();
        let mut routes = BTreeMap::new();
        for services in [before, after] {
            let config = any_config(&services);
            let plan = state.plan(&config, &bound);
            prop_assert!(plan.bind.is_disjoint(&bound));
            prop_assert!(plan.close.is_subset(&bound));
            let unchanged: BTreeMap<Listen, Arc<Route>> = routes
                .iter()
                .filter(|(_, route): &(&Listen, &Arc<Route>)| {
                    let old = state.config.services.get(&route.service);
                    old.is_some() && old == config.services.get(&route.service)
                })
                .map(|(listen, route)| (listen.clone(), Arc::clone(route)))
                .collect();

            state.commit(config.clone());
            for listen in &plan.close {
                bound.remove(listen);
                routes.remove(listen);
            }
            bound.extend(plan.bind.iter().cloned());
            let unread = state.credentials.unread(&Credentials::sources(&config));
            let readings: Vec<Reading> =
                everything.iter().filter(|reading| unread.contains(&reading.key)).cloned().collect();
            give(&mut state, &readings);
            routes.extend(state.rebuild());

            let wanted: BTreeMap<Listen, ServiceName> = config
                .services
                .values()
                .map(|service| (address(service), service.name.clone()))
                .collect();
            prop_assert_eq!(bound.iter().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>());
            let served: BTreeMap<Listen, ServiceName> = routes
                .iter()
                .map(|(listen, route)| (listen.clone(), route.service.clone()))
                .collect();
            prop_assert_eq!(served, wanted);
            for (listen, route) in unchanged {
                prop_assert!(Arc::ptr_eq(&routes[&listen], &route), "{} was touched", listen);
            }
        }
    }
}
