use std::sync::Barrier;

use futures_util::FutureExt as _;

use super::*;
use crate::config::ServiceName;
use crate::config::kubernetes::ObjectRef;
use crate::metrics::Metrics;

fn set(ids: impl IntoIterator<Item = usize>) -> BTreeMap<String, Vec<SocketAddr>> {
    let endpoint = |id: usize| {
        let address = SocketAddr::from(([10, 0, (id >> 8) as u8, id as u8], 8443));
        (format!("pod-{id:04}"), vec![address])
    };
    ids.into_iter().map(endpoint).collect()
}

/// With dice that always fall alike.
fn live(ids: impl IntoIterator<Item = usize>) -> Endpoints {
    let backend = ServiceBackend {
        service: ObjectRef::new("payments", "billing"),
        port: "https".to_owned(),
    };
    let name = ServiceName::parse("billing").unwrap();
    let live = Endpoints::new(backend, &Metrics::new("test").service(&name));
    live.dice.store(1, Relaxed);
    live.replace(set(ids));
    live
}

fn now() -> Instant {
    Instant::now()
}

/// Where a connection goes that has been nowhere yet.
fn pick(live: &Endpoints, now: Instant) -> Held {
    match live.pick(&Tried::default(), now) {
        Pick::Endpoint { held, .. } => held,
        nowhere => panic!("{nowhere:?}"),
    }
}

fn id(held: &Held) -> String {
    held.0.id.to_string()
}

/// The one with this number, however long it takes.
fn hold(live: &Endpoints, number: usize) -> Held {
    let wanted = format!("pod-{number:04}");
    let all = live.current.borrow();
    let endpoint = all.iter().find(|it| *it.id == *wanted).unwrap();
    endpoint.open.fetch_add(1, Relaxed);
    Held(Arc::clone(endpoint))
}

fn is_aside(live: &Endpoints, number: usize, now: Instant) -> bool {
    hold(live, number).0.is_aside(now)
}

#[test]
fn a_thousand_connections_that_stay_are_spread_over_ten_endpoints_within_a_tenth() {
    let live = live(0..10);
    let held: Vec<Held> = (0..1_000).map(|_| pick(&live, now())).collect();
    let mut counts = BTreeMap::<String, usize>::new();
    for held in &held {
        *counts.entry(id(held)).or_default() += 1;
    }
    assert_eq!(counts.len(), 10);
    assert!(
        counts.values().all(|count| (90..=110).contains(count)),
        "{counts:?}"
    );
}

/// Nothing to compare: the dice alone decide.
#[test]
fn connections_that_end_at_once_are_spread_too() {
    let live = live(0..10);
    let mut counts = BTreeMap::<String, usize>::new();
    for _ in 0..10_000 {
        *counts.entry(id(&pick(&live, now()))).or_default() += 1;
    }
    assert_eq!(counts.len(), 10);
    // 1,000 of each, and a deviation of 30.
    assert!(
        counts.values().all(|count| (850..=1_150).contains(count)),
        "{counts:?}"
    );
}

#[test]
fn of_two_endpoints_the_one_with_fewer_connections_is_taken_always() {
    let live = live(0..2);
    let _crowd: Vec<Held> = (0..100).map(|_| hold(&live, 0)).collect();
    let held: Vec<Held> = (0..100).map(|_| pick(&live, now())).collect();
    assert!(held.iter().all(|held| id(held) == "pod-0001"));
}

#[test]
fn an_endpoint_that_has_just_come_is_not_overrun() {
    let live = live(0..10);
    let mut all: Vec<Held> = (0..1_000).map(|_| pick(&live, now())).collect();
    live.replace(set(0..11));
    let new: Vec<Held> = (0..100).map(|_| pick(&live, now())).collect();
    let to_the_new_one = new.iter().filter(|held| id(held) == "pod-0010").count();
    // Of two it is one with probability 2 in 11, and then it wins.
    assert!((5..=40).contains(&to_the_new_one), "{to_the_new_one}");
    all.extend(new);
}

#[test]
fn a_connection_counts_at_its_endpoint_until_it_ends() {
    let live = live(0..2);
    let one = pick(&live, now());
    let two = pick(&live, now());
    assert_ne!(id(&one), id(&two));
    let open = || live.summary(now()).open;
    assert_eq!(open(), 2);
    drop(one);
    assert_eq!(open(), 1);
    drop(two);
    assert_eq!(open(), 0);
}

#[test]
fn what_stays_keeps_its_count_and_its_past_and_what_returns_begins_anew() {
    let live = live([1, 2, 3]);
    let kept = [hold(&live, 1), hold(&live, 2), hold(&live, 2)];
    let now = now();
    kept[0].failed(now);
    live.replace(set([2, 1]));
    assert_eq!(live.summary(now).open, 3);
    assert!(is_aside(&live, 1, now));

    live.replace(set([2]));
    assert_eq!(live.summary(now).open, 2);
    live.replace(set([1, 2]));
    assert_eq!(live.summary(now).open, 2);
    assert!(!is_aside(&live, 1, now));
}

#[test]
fn an_endpoint_that_gets_its_second_address_keeps_its_count() {
    let live = live([1, 2]);
    let held = hold(&live, 1);
    held.failed(now());
    let mut both = set([1, 2]);
    let second = "[fd00::1]:8443".parse().unwrap();
    both.get_mut("pod-0001").unwrap().push(second);
    live.replace(both);
    assert_eq!(live.summary(now()).open, 1);
    let again = hold(&live, 1);
    assert_eq!(again.addresses().len(), 2);
    assert!(!again.0.is_aside(now()), "the new address may work");
    drop((held, again));
    assert_eq!(live.summary(now()).open, 0);
}

#[test]
fn a_set_that_is_the_same_again_changes_nothing() {
    let live = live(0..3);
    let mut seen = live.current.subscribe();
    seen.mark_unchanged();
    live.replace(set([2, 1, 0]));
    assert!(!seen.has_changed().unwrap());
    live.replace(set([0, 1, 3]));
    assert!(seen.has_changed().unwrap());
}

#[test]
fn the_gauge_shows_how_many_there_are_now() {
    let name = ServiceName::parse("billing").unwrap();
    let metrics = Metrics::new("test");
    let backend = live([]).backend().clone();
    let live = Endpoints::new(backend, &metrics.service(&name));
    let shows = |count: usize| {
        let line = format!("tlsward_endpoints{{service=\"billing\"}} {count}\n");
        metrics.encode().contains(&line)
    };
    assert!(shows(0));
    live.replace(set(0..3));
    assert!(shows(3));
    live.replace(set([]));
    assert!(shows(0));
}

#[test]
fn no_endpoint_is_given_to_a_connection_twice_and_those_left_are_counted() {
    let live = live(0..3);
    let mut tried = Tried::default();
    let mut seen = Vec::new();
    for left in [2, 1, 0] {
        match live.pick(&tried, now()) {
            Pick::Endpoint { held, others } => {
                assert_eq!(others, left);
                seen.push(id(&held));
                tried.add(held);
            }
            nowhere => panic!("{nowhere:?}"),
        }
    }
    seen.sort_unstable();
    assert_eq!(seen, ["pod-0000", "pod-0001", "pod-0002"]);
    assert!(matches!(live.pick(&tried, now()), Pick::Exhausted));
    live.replace(set([0, 4]));
    assert!(matches!(
        live.pick(&tried, now()),
        Pick::Endpoint { others: 0, .. }
    ));
    live.replace(set([]));
    assert!(matches!(live.pick(&tried, now()), Pick::Empty));
}

#[test]
fn one_that_failed_is_avoided_at_first_for_a_second_and_twice_as_long_each_time_up_to_thirty() {
    let live = live(0..3);
    let mut now = now();
    for seconds in [1, 2, 4, 8, 16, 30, 30] {
        hold(&live, 1).failed(now);
        let end = now + Duration::from_secs(seconds);
        let just_before = end - Duration::from_nanos(1);
        assert!(is_aside(&live, 1, just_before), "{seconds}");
        let picks = (0..100).map(|_| pick(&live, just_before));
        assert!(picks.into_iter().all(|held| id(&held) != "pod-0001"));
        assert!(!is_aside(&live, 1, end), "{seconds}");
        now = end;
    }
    hold(&live, 1).worked();
    hold(&live, 1).failed(now);
    assert!(
        !is_aside(&live, 1, now + FIRST_PAUSE),
        "its past was forgotten"
    );
}

#[test]
fn a_hundred_connections_that_fail_at_once_are_one_failure() {
    let live = live(0..2);
    let now = now();
    let all: Vec<Held> = (0..100).map(|_| hold(&live, 1)).collect();
    for held in &all {
        held.failed(now);
    }
    assert!(!is_aside(&live, 1, now + FIRST_PAUSE));
}

#[test]
fn after_its_time_one_connection_tries_it_and_the_others_wait_for_what_that_finds() {
    let live = live(0..2);
    let begun = now();
    hold(&live, 1).failed(begun);
    let _crowd: Vec<Held> = (0..10).map(|_| hold(&live, 0)).collect();

    // It has fewer connections, so that it is taken as soon as it may be.
    let then = begun + FIRST_PAUSE;
    let on_trial = pick(&live, then);
    assert_eq!(id(&on_trial), "pod-0001");
    let others: Vec<Held> = (0..20).map(|_| pick(&live, then)).collect();
    assert!(others.iter().all(|held| id(held) == "pod-0000"));

    on_trial.failed(then);
    assert!(is_aside(&live, 1, then + FIRST_PAUSE));
    let then = then + 2 * FIRST_PAUSE;
    let on_trial = pick(&live, then);
    assert_eq!(id(&on_trial), "pod-0001");
    on_trial.worked();
    assert_eq!(id(&pick(&live, then)), "pod-0001");
}

#[test]
fn a_trial_whose_caller_left_is_followed_by_another() {
    let live = live(0..2);
    let begun = now();
    hold(&live, 1).failed(begun);
    let _crowd: Vec<Held> = (0..10).map(|_| hold(&live, 0)).collect();
    let then = begun + FIRST_PAUSE;
    drop(pick(&live, then));
    assert_eq!(id(&pick(&live, then)), "pod-0000");
    assert_eq!(id(&pick(&live, then + FIRST_PAUSE)), "pod-0001");
}

#[test]
fn where_all_have_failed_none_is_avoided() {
    let live = live(0..2);
    let now = now();
    hold(&live, 0).failed(now);
    hold(&live, 1).failed(now);
    assert_eq!(live.summary(now).set_aside, 2);
    let held = [pick(&live, now), pick(&live, now)];
    assert_ne!(id(&held[0]), id(&held[1]));
}

#[test]
fn one_that_failed_is_the_last_that_a_connection_tries() {
    for _ in 0..50 {
        let live = live(0..3);
        hold(&live, 1).failed(now());
        let mut tried = Tried::default();
        let mut order = Vec::new();
        while let Pick::Endpoint { held, .. } = live.pick(&tried, now()) {
            order.push(id(&held));
            tried.add(held);
        }
        assert_eq!(order.len(), 3);
        assert_eq!(order[2], "pod-0001");
    }
}

/// The dice fall on one that cannot be used nearly always.
#[test]
fn the_one_endpoint_of_a_thousand_that_works_is_found() {
    let live = live(0..1_000);
    let now = now();
    for number in (0..1_000).filter(|number| *number != 700) {
        hold(&live, number).failed(now);
    }
    assert_eq!(id(&pick(&live, now)), "pod-0700");
    let summary = Summary {
        chosen: 1_000,
        set_aside: 999,
        open: 0,
    };
    assert_eq!(live.summary(now), summary);
}

#[tokio::test]
async fn whoever_waits_for_the_first_endpoint_is_woken_by_it() {
    let live = live([]);
    {
        let mut one = Box::pin(live.appear());
        let mut two = Box::pin(live.appear());
        assert!(one.as_mut().now_or_never().is_none());
        assert!(two.as_mut().now_or_never().is_none());
        live.replace(set([1]));
        assert!(one.now_or_never().is_some());
        assert!(two.now_or_never().is_some());
    }
    assert!(live.appear().now_or_never().is_some());
}

#[test]
fn threads_that_pick_while_the_set_changes_lose_no_count() {
    let live = live(0..100);
    let barrier = Barrier::new(5);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                barrier.wait();
                let mut held = std::collections::VecDeque::new();
                for _ in 0..10_000 {
                    held.push_back(pick(&live, now()));
                    if held.len() > 50 {
                        held.pop_front();
                    }
                }
            });
        }
        barrier.wait();
        for round in 0..200 {
            live.replace(set(round..round + 100));
        }
    });
    assert_eq!(live.summary(now()).open, 0);
    live.replace(set(0..400));
    assert_eq!(live.summary(now()).open, 0);
}

#[test]
fn the_name_that_is_verified_is_the_services_in_its_namespace() {
    let expected = ServerName::try_from("billing.payments.svc").unwrap();
    assert_eq!(live([]).server_name(), Some(&expected));
}
