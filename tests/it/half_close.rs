//! FIN and `close_notify`, each way by itself; bulk, and readers that stop.

use crate::support::net::{Caller, Ending};
use crate::support::scene::{NAME, Scene};
use crate::support::upstream::{Behaviour, End, Event, TLS12, TLS13};

#[tokio::test]
async fn a_callers_fin_becomes_close_notify_and_the_answer_still_comes_back() {
    for versions in [TLS12, TLS13] {
        let scene = Scene::set(
            |options| options.behaviour(Behaviour::ReplyAtEnd).versions(versions),
            |service| service,
        )
        .await;
        let mut caller = scene.call().await;
        caller.send(&[7; 100_000]).await;
        caller.finish_sending().await;
        let (answer, ending) = caller.rest().await;
        assert_eq!(String::from_utf8_lossy(&answer), "received 100000\n");
        assert_eq!(ending, Ending::Fin);
        assert_eq!(scene.upstream.end_of(1).await, (End::CloseNotify, 100_000));
    }
}

#[tokio::test]
async fn an_upstreams_close_notify_becomes_fin_and_the_caller_can_still_send() {
    let scene = Scene::set(
        |options| {
            options
                .behaviour(Behaviour::CloseFirst(b"goodbye".to_vec()))
                .versions(TLS13)
        },
        |service| service,
    )
    .await;
    let mut caller = scene.call().await;
    let (said, ending) = caller.rest().await;
    assert_eq!((said.as_slice(), ending), (&b"goodbye"[..], Ending::Fin));
    caller.send(&[7; 100_000]).await;
    caller.finish_sending().await;
    assert_eq!(scene.upstream.end_of(1).await, (End::CloseNotify, 100_000));
}

#[tokio::test]
async fn a_caller_that_ends_at_once_leaves_a_clean_end_at_the_upstream() {
    let scene = Scene::new(Behaviour::Sink).await;
    let mut caller = scene.call().await;
    caller.finish_sending().await;
    assert_eq!(caller.ending().await, Ending::Fin);
    assert_eq!(scene.upstream.end_of(1).await, (End::CloseNotify, 0));
    scene.proxy.counter_becomes(NAME, "ended_ok", 1).await;
}

#[tokio::test]
async fn close_timeout_ends_a_connection_whose_other_side_never_closes() {
    let scene = Scene::shaped(Behaviour::Hold, |service| {
        service.text("close_timeout", "200ms")
    })
    .await;
    let mut caller = scene.call().await;
    caller.finish_sending().await;
    assert_eq!(caller.ending().await, Ending::Reset);
    scene
        .proxy
        .expect_failure(NAME, ["relay", "local", "close_timeout"], "close_timeout")
        .await;
}

/// How much the bulk tests carry: `TLSWARD_TEST_BULK_GIB`, 1 by default so that an ordinary run
/// stays short; 10 shows that no counter or limit of 32 bits or of 4 GiB is in the way.
fn bulk_bytes() -> u64 {
    let gib = std::env::var("TLSWARD_TEST_BULK_GIB").unwrap_or_else(|_| "1".to_owned());
    let gib: u64 = gib
        .parse()
        .expect("TLSWARD_TEST_BULK_GIB is a whole number");
    gib << 30
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bulk_transfer_to_the_caller_arrives_to_the_last_byte() {
    let bytes = bulk_bytes();
    let scene = Scene::new(Behaviour::Source(bytes)).await;
    let mut caller = scene.call().await;
    let mut arrived = 0;
    loop {
        let part = caller.some().await.expect("a clean stream");
        if part.is_empty() {
            break;
        }
        arrived += part.len() as u64;
    }
    assert_eq!(arrived, bytes);
    caller.finish_sending().await;
    scene.proxy.counter_becomes(NAME, "bytes_down", bytes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bulk_transfer_to_the_upstream_arrives_to_the_last_byte() {
    let bytes = bulk_bytes();
    let scene = Scene::new(Behaviour::Sink).await;
    let mut caller = scene.call().await;
    let part = vec![7; 1 << 20];
    for _ in 0..bytes / part.len() as u64 {
        caller.send(&part).await;
    }
    caller.finish_sending().await;
    assert_eq!(caller.ending().await, Ending::Fin);
    assert_eq!(scene.upstream.end_of(1).await, (End::CloseNotify, bytes));
}

/// Resident memory may move by this much while a peer does not read: less than a thousandth of
/// what the other side would push through.
const FLAT_KIB: u64 = 2 * 1024;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_stops_reading_costs_no_memory_and_loses_nothing() {
    let bytes = 256 << 20;
    let scene = Scene::new(Behaviour::Source(bytes)).await;
    let mut caller = scene.call().await;
    scene.upstream.handshake_after(0).await;
    let before = scene.proxy.memory_kib("VmRSS");
    let stuck_at = scene.proxy.counter_stands_still(NAME, "bytes_down").await;
    assert!(
        stuck_at < bytes,
        "the sockets' buffers swallowed everything"
    );
    let grown = scene.proxy.memory_kib("VmRSS").saturating_sub(before);
    assert!(
        grown < FLAT_KIB,
        "{grown} KiB for one caller that does not read"
    );
    let mut arrived = 0;
    while let Ok(part) = caller.some().await {
        if part.is_empty() {
            break;
        }
        arrived += part.len() as u64;
    }
    assert_eq!(arrived, bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_that_stops_reading_stops_the_caller_and_costs_no_memory() {
    let scene = Scene::new(Behaviour::Hold).await;
    let caller = scene.call().await;
    scene.upstream.handshake_after(0).await;
    let before = scene.proxy.memory_kib("VmRSS");
    let pushing = tokio::spawn(push_forever(caller));
    scene.proxy.counter_stands_still(NAME, "bytes_up").await;
    let grown = scene.proxy.memory_kib("VmRSS").saturating_sub(before);
    assert!(
        grown < FLAT_KIB,
        "{grown} KiB for one upstream that does not read"
    );
    assert!(!pushing.is_finished(), "the caller should be held back");
    pushing.abort();
}

async fn push_forever(caller: Caller) {
    use tokio::io::AsyncWriteExt as _;
    let mut socket = caller.into_tcp();
    let part = vec![7; 1 << 16];
    while socket.write_all(&part).await.is_ok() {}
}

#[tokio::test]
async fn a_full_direction_does_not_hold_up_the_other() {
    let scene = Scene::new(Behaviour::Flood).await;
    let mut caller = scene.call().await;
    scene.proxy.counter_stands_still(NAME, "bytes_down").await;
    caller.send(b"can you hear me?\n").await;
    let line = scene
        .upstream
        .journal()
        .wait("the caller's line at the upstream", |event| match event {
            Event::Heard { line } => Some(line.clone()),
            _ => None,
        })
        .await;
    assert_eq!(line, "can you hear me?\n");
}
