//! What no caller and no upstream can exceed.

use std::sync::Arc;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::support::net::{Caller, Ending, address};
use crate::support::pki::Pki;
use crate::support::proxy::{Config, Proxy, Service};
use crate::support::scene::{NAME, Scene, introduce, visit};
use crate::support::upstream::{Behaviour, Upstream};

#[tokio::test]
async fn a_caller_beyond_max_connections_waits_in_the_backlog_and_is_served_later() {
    let scene = Scene::shaped(Behaviour::Identify, |service| {
        service.set("max_connections", "2")
    })
    .await;
    let (mut first, _) = scene.introduce().await;
    let (_second, _) = scene.introduce().await;
    let mark = scene.upstream.mark();
    let mut third = scene.call().await; // the kernel takes it
    first.echo(b"the proxy has had its turn").await;
    assert_eq!(scene.proxy.counter(NAME, "open").await, 2);
    assert_eq!(
        scene.upstream.mark(),
        mark,
        "nothing was dialled for the third"
    );
    first.finish_sending().await;
    assert_eq!(first.ending().await, Ending::Fin);
    third.line().await;
    third.echo(b"my turn").await;
}

#[tokio::test]
async fn a_lowered_limit_counts_for_the_very_next_caller() {
    let scene = Scene::shaped(Behaviour::Identify, |service| {
        service.set("max_connections", "3")
    })
    .await;
    let (mut first, _) = scene.introduce().await;
    let (_second, _) = scene.introduce().await;
    let lowered = scene.service.clone().set("max_connections", "2");
    scene
        .proxy
        .adopt(&scene.config.with_services([lowered]))
        .await;
    let mark = scene.upstream.mark();
    let _third = scene.call().await; // the kernel takes it
    first.echo(b"the proxy has had its turn").await;
    assert_eq!(scene.proxy.counter(NAME, "open").await, 2);
    assert_eq!(scene.upstream.mark(), mark);
}

#[tokio::test]
async fn a_caller_outside_allow_callers_is_reset_and_nothing_is_dialled() {
    let scene = Scene::shaped(Behaviour::Identify, |service| {
        service.set("allow_callers", r#"["192.0.2.0/24"]"#)
    })
    .await;
    scene.call_is_refused().await;
    scene
        .proxy
        .expect_failure(
            NAME,
            ["accept", "caller", "caller_not_allowed"],
            "allow_callers",
        )
        .await;
    assert_eq!(scene.upstream.mark(), 0);
    let open = scene
        .service
        .clone()
        .set("allow_callers", r#"["127.0.0.0/8"]"#);
    scene.proxy.adopt(&scene.config.with_services([open])).await;
    visit(&scene.service).await;
}

#[tokio::test]
async fn a_unix_listener_admits_by_the_uid_that_the_kernel_vouches_for() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let files = pki.identity_files(NAME, &pki.client(NAME));
    let uid = rustix::process::getuid().as_raw();
    let [ours, others] = [("ours", uid), ("others", uid + 1)].map(|(name, uid)| {
        Service::new(name, upstream.address(), &pki)
            .identity(&files)
            .listening_on(format!("unix:{}", pki.path(name).display()))
            .set("allow_callers", &format!("[\"uid:{uid}\"]"))
    });
    let proxy = Proxy::start(&pki, &Config::of([ours, others])).await;
    let mut caller = Caller::connect_unix(&pki.path("ours")).await;
    caller.line().await;
    let mut refused = Caller::connect_unix(&pki.path("others")).await;
    // A unix socket knows no RST: the end comes without a byte.
    assert!(refused.try_line().await.is_err());
    proxy.failure_logged("others", "caller_not_allowed").await;
}

#[tokio::test]
async fn idle_timeout_resets_a_connection_on_which_nothing_passes() {
    let scene = Scene::shaped(Behaviour::Identify, |service| {
        service.text("idle_timeout", "300ms")
    })
    .await;
    let (mut caller, _) = scene.introduce().await;
    assert_eq!(caller.ending().await, Ending::Reset);
    scene
        .proxy
        .expect_failure(NAME, ["relay", "local", "idle_timeout"], "idle_timeout")
        .await;
}

#[tokio::test]
async fn bytes_in_one_direction_keep_a_connection_from_being_idle() {
    let scene = Scene::shaped(Behaviour::Sink, |service| {
        service.text("idle_timeout", "400ms")
    })
    .await;
    let mut caller = scene.call().await;
    // The time between two bytes is the thing under test, so it has to pass: eight gaps of a
    // quarter of the limit are twice the limit.
    let mut gap = tokio::time::interval(std::time::Duration::from_millis(100));
    for _ in 0..8 {
        gap.tick().await;
        caller.send(b".").await;
    }
    caller.finish_sending().await;
    assert_eq!(caller.ending().await, Ending::Fin);
}

#[tokio::test]
async fn max_lifetime_resets_a_busy_connection() {
    let scene = Scene::shaped(Behaviour::Source(u64::MAX), |service| {
        service.text("max_lifetime", "300ms")
    })
    .await;
    let (bytes, ending) = scene.call().await.rest().await;
    assert!(!bytes.is_empty());
    assert_eq!(ending, Ending::Reset);
    scene
        .proxy
        .expect_failure(NAME, ["relay", "local", "max_lifetime"], "max_lifetime")
        .await;
}

#[tokio::test]
async fn running_out_of_descriptors_backs_off_and_recovers() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let files = pki.identity_files(NAME, &pki.client(NAME));
    let service = Service::new(NAME, upstream.address(), &pki).identity(&files);
    let config = Config::of([service.clone()]);
    let proxy = Proxy::start_after("ulimit -n 64", &pki, &config).await;
    let mut callers = Vec::new();
    for _ in 0..100 {
        callers.push(Caller::connect(service.address()).await);
    }
    let line = proxy.failure_logged(NAME, "too_many_files").await;
    assert_eq!(line.text("side"), Some("local"), "{line:?}");
    let hint = line.text("hint").expect("a hint");
    assert!(hint.contains("ulimit"), "{hint}");
    drop(callers);
    // Those that waited in the backlog may still be taken and found gone; a later one is served.
    crate::support::until("a caller to be served again", async || {
        let mut caller = Caller::try_connect(service.address()).await.ok()?;
        caller.try_line().await.ok()
    })
    .await;
    proxy.last_failure(NAME, "too_many_files").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_thousand_idle_connections_are_held_and_all_still_answer() {
    const CONNECTIONS: usize = 5_000;
    // Debug builds and both allocators' slack included; the bench measures the real figure.
    const KIB_EACH: u64 = 64;
    allow_descriptors(3 * CONNECTIONS as u64);

    let scene = Scene::new(Behaviour::Identify).await;
    visit(&scene.service).await;
    let before = scene.proxy.memory_kib("VmRSS");
    let turns = Arc::new(Semaphore::new(64));
    let mut opening = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let turn = Arc::clone(&turns).acquire_owned().await.unwrap();
        let service = scene.service.clone();
        opening.spawn(async move {
            let (caller, _) = introduce(&service).await;
            drop(turn);
            caller
        });
    }
    let mut callers = opening.join_all().await;
    assert_eq!(scene.proxy.counter(NAME, "open").await, CONNECTIONS as u64);
    let each = scene.proxy.memory_kib("VmRSS").saturating_sub(before) / CONNECTIONS as u64;
    assert!(each < KIB_EACH, "{each} KiB for each idle connection");
    for caller in &mut callers {
        caller.echo(b"awake").await;
    }
    drop(callers);
    scene.proxy.counter_becomes(NAME, "open", 0).await;
    assert_eq!(scene.proxy.counter(NAME, "failed").await, 0);
}

/// Raises this process's limit of open files; programs that it starts inherit it.
fn allow_descriptors(wanted: u64) {
    let limit = getrlimit(Resource::Nofile);
    let possible = limit.maximum.unwrap_or(u64::MAX);
    assert!(
        possible >= wanted,
        "this test needs a hard limit of {wanted} open files (ulimit -Hn), it is {possible}"
    );
    let new = Rlimit {
        current: Some(wanted.max(limit.current.unwrap_or(0))),
        maximum: limit.maximum,
    };
    setrlimit(Resource::Nofile, new).expect("the soft limit may be raised to the hard one");
}

#[tokio::test]
async fn a_listener_outside_loopback_needs_allow_remote_callers() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let files = pki.identity_files(NAME, &pki.client(NAME));
    let service = Service::new(NAME, upstream.address(), &pki)
        .identity(&files)
        .listening_on(format!("0.0.0.0:{}", address().port()));
    let file = pki.write("remote.toml", Config::of([service]).render());
    let output =
        crate::support::proxy::tlsward(["check".as_ref(), "-c".as_ref(), file.as_os_str()]).await;
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr).into_owned()
        + &String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("allow_remote_callers"), "{said}");
}
