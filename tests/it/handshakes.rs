//! `max_handshakes`: how many TLS handshakes with one upstream are under way at once.

use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::support::net::{Caller, Ending};
use crate::support::pki::Pki;
use crate::support::proxy::{Config, Proxy, Service};
use crate::support::scene::{NAME, Scene, visit};
use crate::support::until;
use crate::support::upstream::{Behaviour, Event, Options, Upstream};

/// An upstream that answers a ClientHello when the gate has a permit for it.
async fn gated(gate: &Arc<Semaphore>, max_handshakes: usize) -> Scene {
    Scene::set(
        |options| options.gate(gate),
        |service| service.set("max_handshakes", &max_handshakes.to_string()),
    )
    .await
}

fn hellos(upstream: &Upstream) -> Vec<usize> {
    let journal = upstream.journal().all();
    let hello = |event: &Event| match event {
        Event::Hello { number } => Some(*number),
        _ => None,
    };
    journal.iter().filter_map(hello).collect()
}

/// The most ClientHellos that waited for an answer at the same time.
fn most_at_once(upstream: &Upstream) -> usize {
    let (mut now, mut most) = (0_usize, 0);
    for event in upstream.journal().all() {
        match event {
            Event::Hello { .. } => now += 1,
            Event::Answered => now -= 1,
            _ => {}
        }
        most = most.max(now);
    }
    most
}

impl Scene {
    async fn waiting_becomes(&self, service: &str, count: usize) {
        let labels = [("service", service)];
        until(format!("{count} in line at {service}"), async || {
            let waiting = self.proxy.metric("tlsward_handshakes_waiting", &labels);
            (waiting.await == count as f64).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_300_callers_no_more_than_max_handshakes_are_in_one_and_all_are_served() {
    const CALLERS: usize = 300;
    const AT_ONCE: usize = 16;
    let gate = Arc::new(Semaphore::new(0));
    let scene = gated(&gate, AT_ONCE).await;
    let mut callers = Vec::new();
    for _ in 0..CALLERS {
        callers.push(scene.call().await);
    }
    scene.waiting_becomes(NAME, CALLERS - AT_ONCE).await;
    until("the first handshakes", async || {
        (hellos(&scene.upstream).len() == AT_ONCE).then_some(())
    })
    .await;
    gate.add_permits(CALLERS);
    for caller in &mut callers {
        caller.line().await;
        caller.echo(b"served").await;
    }
    assert_eq!(most_at_once(&scene.upstream), AT_ONCE);
    let queued = "tlsward_handshakes_queued_total";
    let queued = scene.proxy.metric(queued, &[("service", NAME)]).await;
    assert_eq!(queued, (CALLERS - AT_ONCE) as f64);
    scene.waiting_becomes(NAME, 0).await;
    assert_eq!(scene.proxy.counter(NAME, "failed").await, 0);
}

#[tokio::test]
async fn the_line_for_a_handshake_is_in_the_order_of_coming() {
    const CALLERS: usize = 20;
    let gate = Arc::new(Semaphore::new(0));
    let scene = gated(&gate, 1).await;
    let mut callers = Vec::new();
    for ahead in 0..CALLERS {
        callers.push(scene.call().await);
        scene.waiting_becomes(NAME, ahead).await;
    }
    gate.add_permits(CALLERS);
    for caller in &mut callers {
        caller.line().await;
    }
    let in_order: Vec<usize> = (1..=CALLERS).collect();
    assert_eq!(hellos(&scene.upstream), in_order);
    assert_eq!(most_at_once(&scene.upstream), 1);
}

#[tokio::test]
async fn connect_timeout_counts_in_line_too_and_the_failure_says_so() {
    let gate = Arc::new(Semaphore::new(0));
    let scene = gated(&gate, 1).await;
    let mut first = scene.call().await;
    until("the first handshake", async || {
        (hellos(&scene.upstream).len() == 1).then_some(())
    })
    .await;
    // The first goes on under its own limit of 10 s, and holds the service's only place.
    let hasty = scene.service.clone().text("connect_timeout", "300ms");
    scene
        .proxy
        .adopt(&scene.config.with_services([hasty]))
        .await;
    let mut second = scene.call().await;
    assert_eq!(second.ending().await, Ending::Reset);
    let failure = scene
        .proxy
        .expect_failure(NAME, ["handshake", "local", "timeout"], "max_handshakes")
        .await;
    let detail = failure["detail"].as_str().expect("a detail");
    assert!(
        detail.contains("1 TLS handshakes with") && detail.contains("max_handshakes"),
        "{detail}"
    );
    assert_eq!(hellos(&scene.upstream).len(), 1, "no ClientHello was sent");
    gate.add_permits(1);
    first.line().await;
}

#[tokio::test]
async fn a_caller_that_leaves_the_line_frees_the_upstream_connection_and_its_turn() {
    let gate = Arc::new(Semaphore::new(0));
    let scene = gated(&gate, 1).await;
    let mut first = scene.call().await;
    until("the first handshake", async || {
        (hellos(&scene.upstream).len() == 1).then_some(())
    })
    .await;
    let second = scene.call().await;
    scene.waiting_becomes(NAME, 1).await;
    let mut third = scene.call().await;
    scene.waiting_becomes(NAME, 2).await;
    second.reset();
    scene
        .proxy
        .expect_failure(
            NAME,
            ["handshake", "caller", "caller_left"],
            "connect_timeout",
        )
        .await;
    scene.waiting_becomes(NAME, 1).await;
    scene.upstream.end_of(2).await;
    gate.add_permits(2);
    first.line().await;
    third.line().await;
    assert_eq!(hellos(&scene.upstream), [1, 3]);
}

#[tokio::test]
async fn an_upstream_that_hangs_with_its_line_full_delays_no_other_service() {
    let pki = Pki::new();
    let hangs = Upstream::behaving(&pki, Behaviour::Stall).await;
    let works = Options::trusting(&pki.root).start(&pki.server()).await;
    let files = pki.identity_files(NAME, &pki.client(NAME));
    let service = |name: &str, upstream: &Upstream| {
        Service::new(name, upstream.address(), &pki)
            .identity(&files)
            .set("max_handshakes", "1")
    };
    let (stuck, free) = (service("stuck", &hangs), service("free", &works));
    let proxy = Proxy::start(&pki, &Config::of([stuck.clone(), free.clone()])).await;
    let mut callers = Vec::new();
    for _ in 0..20 {
        callers.push(Caller::connect(stuck.address()).await);
    }
    let labels = [("service", "stuck")];
    until("a full line", async || {
        let waiting = proxy.metric("tlsward_handshakes_waiting", &labels).await;
        (waiting == 19.0).then_some(())
    })
    .await;
    for _ in 0..10 {
        visit(&free).await;
    }
    let waiting = proxy.metric("tlsward_handshakes_waiting", &labels).await;
    assert_eq!(waiting, 19.0, "all that was while the line stood");
}
