use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::status::ProcessState;
use crate::status::tests::{service, status, waiting};

fn name(text: &str) -> ServiceName {
    ServiceName::parse(text).unwrap()
}

fn failure() -> Failure {
    Failure::new(
        Phase::Handshake,
        Side::Upstream,
        Reason::UntrustedIssuer,
        "issuer \"CN=x\"\nsecond line",
    )
}

/// Metrics with something in every family.
fn busy() -> Metrics {
    let metrics = Metrics::new("1.2.3");
    let billing = metrics.service(&name("billing"));
    std::mem::forget(billing.opened());
    billing.connected(Duration::from_micros(300));
    billing.handshaken(Duration::from_millis(3), false);
    billing.handshaken(Duration::from_secs(60), true);
    billing.sent_up(10);
    billing.sent_up(5);
    billing.sent_down(1 << 40);
    billing.ended(Ok(()), 5_000);
    billing.ended(Err(&failure()), 5_001);
    metrics.service(&name("a.b_c-d"));
    metrics.show_memory(MemoryStatus {
        in_use_bytes: 50 << 20,
        limit_bytes: Some(64 << 20),
        limited_by: None,
        callers_wait: false,
    });
    metrics.reloaded("config", Trigger::Start, "ok", 4_000);
    metrics.reloaded("identity", Trigger::Notify, "ok", 4_001);
    metrics.reloaded("identity", Trigger::Periodic, "unchanged", 4_031);
    metrics.reloaded("identity", Trigger::Request, "bad_pem", 4_040);
    metrics.mirror(&status(
        ProcessState::Degraded,
        vec![service("billing"), waiting("ledger")],
    ));
    metrics
}

/// One sample line: name, labels, value.
fn sample(line: &str) -> (&str, BTreeMap<&str, &str>, f64) {
    let (series, value) = line.rsplit_once(' ').unwrap();
    let value = value.parse().unwrap_or_else(|_| panic!("{line}"));
    let Some((name, labels)) = series.split_once('{') else {
        return (series, BTreeMap::new(), value);
    };
    let labels = labels.strip_suffix('}').unwrap_or_else(|| panic!("{line}"));
    let labels = labels
        .split(',')
        .map(|label| {
            let (key, value) = label.split_once("=\"").unwrap_or_else(|| panic!("{line}"));
            assert!(key.chars().all(|c| c.is_ascii_lowercase() || c == '_'));
            (key, value.strip_suffix('"').unwrap())
        })
        .collect();
    (name, labels, value)
}

/// The value of the one series with exactly these labels.
fn value(text: &str, series: &str) -> Option<f64> {
    let mut found = text
        .lines()
        .filter_map(|line| line.strip_prefix(series)?.strip_prefix(' '))
        .map(|value| value.parse().unwrap());
    let value = found.next();
    assert!(found.next().is_none(), "{series} stands twice");
    value
}

#[test]
fn every_family_is_described_once_before_its_samples_and_named_by_the_rules() {
    let text = busy().encode();
    let mut described = BTreeMap::new();
    let mut helped = BTreeSet::new();
    let mut series = BTreeSet::new();
    let mut current = "";
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(help.ends_with('.') && !help.contains('\\'), "{line}");
            assert!(helped.insert(name), "{name} is helped twice");
            current = name;
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert_eq!(name, current, "HELP and TYPE stand together");
            assert!(described.insert(name, kind).is_none());
            assert!(name.starts_with("tlsward_"));
            assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
            if kind == "histogram" {
                assert!(name.ends_with("_seconds"));
            }
        } else {
            assert!(!line.starts_with('#'), "{line}");
            let (name, labels, value) = sample(line);
            let family = match described[current] {
                "histogram" => ["_bucket", "_sum", "_count"]
                    .iter()
                    .find_map(|suffix| name.strip_suffix(suffix))
                    .unwrap(),
                _ => name,
            };
            assert_eq!(family, current, "a sample outside its family: {line}");
            assert!(value >= 0.0);
            let labels: Vec<_> = labels.into_iter().collect();
            assert!(series.insert((name, labels)), "{line} stands twice");
        }
    }
    let expected = [
        ("tlsward_build_info", "gauge"),
        ("tlsward_bytes_total", "counter"),
        ("tlsward_config_generation", "gauge"),
        ("tlsward_connect_seconds", "histogram"),
        ("tlsward_connections_open", "gauge"),
        ("tlsward_connections_total", "counter"),
        ("tlsward_crl_next_update_seconds", "gauge"),
        ("tlsward_endpoint_failures_total", "counter"),
        ("tlsward_endpoints", "gauge"),
        ("tlsward_handshake_seconds", "histogram"),
        ("tlsward_handshakes_queued_total", "counter"),
        ("tlsward_handshakes_total", "counter"),
        ("tlsward_handshakes_waiting", "gauge"),
        ("tlsward_identity_generation", "gauge"),
        ("tlsward_identity_not_after_seconds", "gauge"),
        ("tlsward_identity_not_before_seconds", "gauge"),
        ("tlsward_memory_bytes", "gauge"),
        ("tlsward_memory_callers_wait", "gauge"),
        ("tlsward_memory_limit_bytes", "gauge"),
        ("tlsward_memory_waits_total", "counter"),
        ("tlsward_reload_last_success_seconds", "gauge"),
        ("tlsward_reloads_total", "counter"),
        ("tlsward_sandbox", "gauge"),
        ("tlsward_service_ready", "gauge"),
        ("tlsward_start_time_seconds", "gauge"),
        ("tlsward_stopping", "gauge"),
        ("tlsward_trust_generation", "gauge"),
        ("tlsward_trust_not_after_seconds", "gauge"),
        ("tlsward_worker_connections", "gauge"),
    ];
    assert_eq!(described.into_iter().collect::<Vec<_>>(), expected);
}

#[test]
fn waits_for_memory_are_counted_as_they_begin_and_a_limit_is_shown_where_there_is_one() {
    let metrics = Metrics::new("1.2.3");
    assert_eq!(value(&metrics.encode(), "tlsward_memory_limit_bytes"), None);
    let look = |callers_wait| MemoryStatus {
        in_use_bytes: 60,
        limit_bytes: Some(64),
        limited_by: None,
        callers_wait,
    };
    for callers_wait in [false, true, true, false, true] {
        metrics.show_memory(look(callers_wait));
    }
    let text = metrics.encode();
    for (series, expected) in [
        ("tlsward_memory_bytes", 60.0),
        ("tlsward_memory_limit_bytes", 64.0),
        ("tlsward_memory_callers_wait", 1.0),
        ("tlsward_memory_waits_total", 2.0),
    ] {
        assert_eq!(value(&text, series), Some(expected), "{series}");
    }
    assert_eq!(metrics.memory(), look(true));
}

#[test]
fn openmetrics_describes_counters_by_their_stem_and_ends_with_eof() {
    let text = busy().encode_openmetrics();
    assert!(text.ends_with("\n# EOF\n"));
    assert!(text.contains("# TYPE tlsward_bytes counter\n"));
    assert!(text.contains("# TYPE tlsward_build info\n"));
    assert!(text.contains("# UNIT tlsward_connect_seconds seconds\n"));
    assert!(text.contains("\ntlsward_build_info{version=\"1.2.3\"} 1\n"));
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        sample(line);
    }
}

#[test]
fn what_a_connection_did_stands_in_the_series_of_its_service() {
    let text = busy().encode();
    for (series, expected) in [
        (r#"tlsward_connections_open{service="billing"}"#, 1.0),
        (r#"tlsward_connections_open{service="a.b_c-d"}"#, 0.0),
        (
            r#"tlsward_connections_total{service="billing",outcome="ok",phase="none",side="none",reason="none"}"#,
            1.0,
        ),
        (
            r#"tlsward_connections_total{service="billing",outcome="failed",phase="handshake",side="upstream",reason="untrusted_issuer"}"#,
            1.0,
        ),
        (
            r#"tlsward_bytes_total{service="billing",direction="up"}"#,
            15.0,
        ),
        (
            r#"tlsward_bytes_total{service="billing",direction="down"}"#,
            (1u64 << 40) as f64,
        ),
        (
            r#"tlsward_handshakes_total{service="billing",kind="full"}"#,
            1.0,
        ),
        (
            r#"tlsward_handshakes_total{service="billing",kind="resumed"}"#,
            1.0,
        ),
        (
            r#"tlsward_handshakes_total{service="a.b_c-d",kind="full"}"#,
            0.0,
        ),
    ] {
        assert_eq!(value(&text, series), Some(expected), "{series}\n{text}");
    }
}

#[test]
fn a_duration_counts_in_every_bucket_that_holds_it_and_one_beyond_the_last_only_in_infinity() {
    let text = busy().encode();
    let bucket = |le: &str| {
        value(
            &text,
            &format!(r#"tlsward_handshake_seconds_bucket{{le="{le}",service="billing"}}"#),
        )
    };
    assert_eq!(bucket("0.0025"), Some(0.0));
    assert_eq!(bucket("0.005"), Some(1.0));
    assert_eq!(bucket("10.0"), Some(1.0));
    assert_eq!(bucket("+Inf"), Some(2.0));
    let count = r#"tlsward_handshake_seconds_count{service="billing"}"#;
    assert_eq!(value(&text, count), Some(2.0));
    let sum = r#"tlsward_handshake_seconds_sum{service="billing"}"#;
    assert_eq!(value(&text, sum), Some(60.003));
}

#[test]
fn a_duration_equal_to_a_bound_is_within_it() {
    let histogram = Histogram::default();
    histogram.observe(BOUNDS[0]);
    assert_eq!(histogram.buckets[0].load(Relaxed), 1);
    histogram.observe(BOUNDS[0] + Duration::from_nanos(1));
    assert_eq!(histogram.buckets[1].load(Relaxed), 1);
}

#[test]
fn status_is_mirrored_and_a_value_that_is_not_there_has_no_series() {
    let text = busy().encode();
    for (series, expected) in [
        ("tlsward_config_generation", Some(2.0)),
        (r#"tlsward_service_ready{service="billing"}"#, Some(1.0)),
        (r#"tlsward_service_ready{service="ledger"}"#, Some(0.0)),
        (
            r#"tlsward_identity_not_before_seconds{service="billing"}"#,
            Some(1_000.0),
        ),
        (
            r#"tlsward_identity_not_after_seconds{service="billing"}"#,
            Some(900_000.0),
        ),
        (
            r#"tlsward_identity_not_after_seconds{service="ledger"}"#,
            None,
        ),
        (
            r#"tlsward_identity_generation{service="ledger"}"#,
            Some(0.0),
        ),
        (
            r#"tlsward_identity_generation{service="billing"}"#,
            Some(3.0),
        ),
        (r#"tlsward_trust_generation{service="billing"}"#, Some(1.0)),
        (
            r#"tlsward_trust_not_after_seconds{service="billing"}"#,
            Some(800_000.0),
        ),
        (
            r#"tlsward_crl_next_update_seconds{service="billing"}"#,
            Some(700_000.0),
        ),
    ] {
        assert_eq!(value(&text, series), expected, "{series}");
    }
}

#[test]
fn a_draining_service_is_not_reported_as_unready() {
    let metrics = Metrics::new("1.2.3");
    let mut draining = service("billing");
    draining.state = ServiceState::Draining;
    metrics.mirror(&status(ProcessState::Ready, vec![draining]));
    assert!(!metrics.encode().contains("billing"));
}

#[test]
fn reloads_are_counted_by_cause_and_result_and_a_refusal_is_no_success() {
    let text = busy().encode();
    for (labels, expected) in [
        (r#"source="config",trigger="start",result="ok""#, 1.0),
        (r#"source="identity",trigger="notify",result="ok""#, 1.0),
        (
            r#"source="identity",trigger="periodic",result="unchanged""#,
            1.0,
        ),
        (
            r#"source="identity",trigger="request",result="bad_pem""#,
            1.0,
        ),
    ] {
        let series = format!("tlsward_reloads_total{{{labels}}}");
        assert_eq!(value(&text, &series), Some(expected), "{series}");
    }
    let series = r#"tlsward_reload_last_success_seconds{source="identity"}"#;
    assert_eq!(value(&text, series), Some(4_031.0));
}

#[test]
fn the_last_failure_is_kept_in_full_for_status() {
    let traffic = busy().traffic("billing").unwrap();
    assert_eq!((traffic.ended_ok, traffic.failed, traffic.open), (1, 1, 1));
    let last = traffic.last_failure.unwrap();
    assert_eq!(last.at, 5_001);
    assert_eq!(last.failure, failure());
    assert_eq!(busy().traffic("unknown"), None);
}

#[test]
fn a_connection_is_open_until_its_guard_is_dropped() {
    let metrics = Metrics::new("1.2.3").service(&name("billing"));
    let first = metrics.opened();
    let second = metrics.opened();
    assert_eq!(metrics.traffic().open, 2);
    drop(first);
    assert_eq!(metrics.traffic().open, 1);
    drop(second);
    assert_eq!(metrics.traffic().open, 0);
}

#[test]
fn a_service_with_live_endpoints_shows_their_number_and_another_has_no_such_series() {
    let metrics = busy();
    let series = r#"tlsward_endpoints{service="billing"}"#;
    assert_eq!(value(&metrics.encode(), series), None);
    let billing = metrics.service(&name("billing"));
    let before = billing.endpoints();
    before.set(3);
    assert_eq!(value(&metrics.encode(), series), Some(3.0));
    // Another Service, say, and the one from before goes later.
    let now = billing.endpoints();
    drop(before);
    assert_eq!(value(&metrics.encode(), series), Some(0.0));
    drop(now);
    assert_eq!(value(&metrics.encode(), series), None);
}

#[test]
fn a_failure_after_which_another_endpoint_was_tried_is_none_of_the_connection() {
    let metrics = busy();
    let billing = metrics.service(&name("billing"));
    let failed = billing.traffic().failed;
    billing.moved_on(Reason::Refused);
    billing.moved_on(Reason::Refused);
    billing.moved_on(Reason::Timeout);
    assert_eq!(billing.traffic().failed, failed);
    let text = metrics.encode();
    for (reason, expected) in [("refused", 2.0), ("timeout", 1.0)] {
        let labels = format!(r#"service="billing",reason="{reason}""#);
        let series = format!("tlsward_endpoint_failures_total{{{labels}}}");
        assert_eq!(value(&text, &series), Some(expected), "{series}");
    }
}

#[test]
fn a_removed_service_is_shown_until_its_last_connection_has_ended() {
    let metrics = Metrics::new("1.2.3");
    let billing = metrics.service(&name("billing"));
    let open = billing.opened();
    drop(billing);
    metrics.forget(&name("billing"));
    let series = r#"tlsward_connections_open{service="billing"}"#;
    assert_eq!(value(&metrics.encode(), series), Some(1.0));
    drop(open);
    assert!(!metrics.encode().contains("billing"));
}

#[test]
fn a_service_that_is_added_again_meanwhile_goes_on_with_its_counters() {
    let metrics = Metrics::new("1.2.3");
    let old = metrics.service(&name("billing"));
    let open = old.opened();
    old.sent_up(7);
    metrics.forget(&name("billing"));
    let new = metrics.service(&name("billing"));
    assert!(Arc::ptr_eq(&old, &new));
    drop((open, old, new));
    let series = r#"tlsward_bytes_total{service="billing",direction="up"}"#;
    assert_eq!(value(&metrics.encode(), series), Some(7.0));
}

#[test]
fn a_service_that_is_added_again_afterwards_begins_anew() {
    let metrics = Metrics::new("1.2.3");
    metrics.service(&name("billing")).sent_up(7);
    metrics.forget(&name("billing"));
    assert_eq!(metrics.traffic("billing"), None);
    assert_eq!(metrics.service(&name("billing")).traffic().bytes_up, 0);
}

#[test]
fn counts_added_on_several_threads_are_all_there() {
    let metrics = Metrics::new("1.2.3").service(&name("billing"));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..1_000 {
                    metrics.sent_down(3);
                    drop(metrics.opened());
                }
            });
        }
    });
    let traffic = metrics.traffic();
    assert_eq!((traffic.bytes_down, traffic.open), (12_000, 0));
}
