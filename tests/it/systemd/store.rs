//! Listeners of our own that systemd keeps.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::process::Signal;
use tokio::task::JoinSet;

use super::Stage;
use crate::support::net::{Caller, Ending, address};
use crate::support::scene::{introduce, visit};
use crate::support::systemd::Systemd;
use crate::support::until;

/// Calls again and again, each call with a whole conversation, until told to stop. Returns how
/// many calls there were; the first that fails fails the test.
fn callers(stage: &Stage, stop: &Arc<AtomicBool>, count: &Arc<AtomicU64>) -> JoinSet<()> {
    let mut calling = JoinSet::new();
    for _ in 0..4 {
        let service = stage.service.clone();
        let (stop, count) = (Arc::clone(stop), Arc::clone(count));
        calling.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                visit(&service).await;
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    calling
}

#[tokio::test]
async fn restarts_under_load_refuse_and_reset_nobody() {
    let stage = Stage::new().await;
    let systemd = Systemd::new(&stage.pki);
    let mut proxy = systemd.start(&stage.pki, &stage.config).await;
    let (stop, count) = (Arc::default(), Arc::default());
    let calling = callers(&stage, &stop, &count);
    for _ in 0..3 {
        let before = count.load(Ordering::Relaxed);
        until("calls", async || {
            (count.load(Ordering::Relaxed) > before + 20).then_some(())
        })
        .await;
        proxy.signal(Signal::TERM);
        assert_eq!(proxy.exit().await.code(), Some(0));
        // Nobody runs, and the address is open.
        Caller::connect(stage.service.address()).await;
        proxy = systemd.start(&stage.pki, &stage.config).await;
        proxy
            .wait_for_log("the listener to be taken over", |line| {
                line.has("message", "taken over from the process before")
            })
            .await;
    }
    stop.store(true, Ordering::Relaxed);
    calling.join_all().await;
    assert_eq!(systemd.kept().len(), 1, "{:?}", systemd.kept());
}

#[tokio::test]
async fn after_a_crash_whoever_waits_is_served_by_the_next_process() {
    let stage = Stage::new().await;
    let path = stage.pki.path("second.sock");
    let second = stage
        .service
        .clone()
        .named("second")
        .listening_on(format!("unix:{}", path.display()));
    let config = stage.config.clone().service(second);
    let systemd = Systemd::new(&stage.pki);
    let mut proxy = systemd.start(&stage.pki, &config).await;
    until("two listeners to be kept", async || {
        (systemd.kept().len() == 2).then_some(())
    })
    .await;
    for signal in [Signal::KILL, Signal::TERM] {
        proxy.signal(signal);
        proxy.exit().await;
        let mut tcp = Caller::connect(stage.service.address()).await;
        let mut unix = Caller::connect_unix(&path).await;
        proxy = systemd.start(&stage.pki, &config).await;
        tcp.line().await;
        unix.line().await;
    }
    assert_eq!(systemd.kept().len(), 2, "{:?}", systemd.kept());
    // What is given up goes, with its file.
    proxy.adopt(&stage.config).await;
    assert!(!path.exists());
    assert_eq!(systemd.kept().len(), 1, "{:?}", systemd.kept());
}

#[tokio::test]
async fn an_address_that_a_reload_gives_up_is_free_when_the_reload_returns() {
    let stage = Stage::new().await;
    let second = stage
        .service
        .clone()
        .named("second")
        .listening_on(address());
    let both = stage.config.clone().service(second.clone());
    let systemd = Systemd::new(&stage.pki);
    let proxy = systemd.start(&stage.pki, &both).await;
    visit(&second).await;
    for _ in 0..3 {
        assert_eq!(proxy.reconfigure(&stage.config).await.code, 200);
        let error = Caller::try_connect(second.address()).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
        assert_eq!(systemd.kept().len(), 1, "{:?}", systemd.kept());
        // Bound anew, not refused for systemd's copy.
        assert_eq!(proxy.reconfigure(&both).await.code, 200);
        visit(&second).await;
    }
}

#[tokio::test]
async fn what_the_configuration_no_longer_names_is_closed_at_the_start() {
    let stage = Stage::new().await;
    let second = stage
        .service
        .clone()
        .named("second")
        .listening_on(address());
    let systemd = Systemd::new(&stage.pki);
    let mut proxy = systemd
        .start(&stage.pki, &stage.config.clone().service(second.clone()))
        .await;
    visit(&second).await;
    proxy.signal(Signal::TERM);
    proxy.exit().await;
    assert_eq!(systemd.kept().len(), 2);
    let _proxy = systemd.start(&stage.pki, &stage.config).await;
    until("the leftover to be given up", async || {
        (systemd.kept().len() == 1).then_some(())
    })
    .await;
    let error = Caller::try_connect(second.address()).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    visit(&stage.service).await;
}

#[tokio::test]
async fn a_start_that_fails_leaves_what_is_kept_for_the_next() {
    let stage = Stage::new().await;
    let path = stage.pki.path("billing.sock");
    let service = stage.service.clone();
    let unix = service
        .clone()
        .listening_on(format!("unix:{}", path.display()));
    let config = stage.config.with_services([unix]);
    let systemd = Systemd::new(&stage.pki);
    let mut proxy = systemd.start(&stage.pki, &config).await;
    proxy.signal(Signal::TERM);
    proxy.exit().await;
    let mut waits = Caller::connect_unix(&path).await;
    let taken = std::net::TcpListener::bind(service.address()).unwrap();
    let both = config.clone().service(service.named("second"));
    let mut failing = systemd.launch(&stage.pki, &both);
    assert_eq!(failing.exit().await.code(), Some(1));
    drop(taken);
    assert!(path.exists());
    let _proxy = systemd.start(&stage.pki, &both).await;
    waits.line().await;
}

#[tokio::test]
async fn another_s_socket_at_the_path_is_not_taken_for_ours() {
    let stage = Stage::new().await;
    let path = stage.pki.path("billing.sock");
    let unix = stage
        .service
        .clone()
        .listening_on(format!("unix:{}", path.display()));
    let config = stage.config.with_services([unix]);
    let systemd = Systemd::new(&stage.pki);
    let mut proxy = systemd.start(&stage.pki, &config).await;
    proxy.signal(Signal::TERM);
    proxy.exit().await;
    // Somebody cleaned up: nobody can reach the socket that is kept.
    std::fs::remove_file(&path).unwrap();
    let proxy = systemd.start(&stage.pki, &config).await;
    Caller::connect_unix(&path).await.line().await;
    until("the old one to be given up", async || {
        (systemd.kept().len() == 1).then_some(())
    })
    .await;
    drop(proxy);
}

#[tokio::test]
async fn where_nothing_is_kept_a_stop_serves_whoever_the_kernel_let_in_and_closes() {
    let stage = Stage::new().await;
    let systemd = Systemd::new(&stage.pki).keeping_nothing();
    let config = stage.config.clone().top("shutdown_timeout = \"30s\"");
    let mut proxy = systemd.start(&stage.pki, &config).await;
    let (mut caller, _) = introduce(&stage.service).await;
    proxy.signal(Signal::TERM);
    until("the listener to be closed", async || {
        Caller::try_connect(stage.service.address()).await.err()
    })
    .await;
    caller.finish_sending().await;
    assert_eq!(caller.ending().await, Ending::Fin);
    assert_eq!(proxy.exit().await.code(), Some(0));
    assert!(systemd.kept().is_empty());
    assert!(
        !systemd
            .messages()
            .all()
            .iter()
            .any(|it| it.says("FDSTORE=1"))
    );
}

#[tokio::test]
async fn whoever_waits_when_the_process_stops_is_left_to_the_next() {
    let stage = Stage::new().await;
    let service = stage.service.clone().set("max_connections", "1");
    let config = stage
        .config
        .with_services([service])
        .top("shutdown_timeout = \"100ms\"");
    let systemd = Systemd::new(&stage.pki);
    let mut proxy = systemd.start(&stage.pki, &config).await;
    let (mut first, _) = introduce(&stage.service).await;
    // Over the limit, so nobody accepts it.
    let mut second = Caller::connect(stage.service.address()).await;
    proxy.signal(Signal::TERM);
    assert_eq!(first.ending().await, Ending::Reset);
    assert_eq!(proxy.exit().await.code(), Some(3));
    let _next = systemd.start(&stage.pki, &config).await;
    second.line().await;
    // Not a line that the one before had sent before its end.
    second.echo(b"served by the next").await;
}
