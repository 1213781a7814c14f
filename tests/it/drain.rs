//! How the process ends.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::net::{Caller, Ending, address};
use crate::support::proxy::{ANY_PORTS, LogLine};
use crate::support::scene::{NAME, Scene, visit};
use crate::support::until;
use crate::support::upstream::Behaviour;

/// A scene whose process may take `shutdown_timeout` to drain.
async fn scene_with(shutdown_timeout: &str) -> Scene {
    scene_ending(&format!("shutdown_timeout = \"{shutdown_timeout}\"")).await
}

/// A scene with these lines at the top of the file, since a reload.
async fn scene_ending(lines: &str) -> Scene {
    let mut scene = Scene::new(Behaviour::Identify).await;
    scene.config = scene.config.top(lines);
    scene.proxy.adopt(&scene.config).await;
    scene
}

async fn denies_readiness(scene: &Scene) {
    until("readiness to be taken back", async || {
        (scene.proxy.get("/readyz").await.code == 503).then_some(())
    })
    .await;
}

async fn refuses_new_callers(scene: &Scene) {
    until("the listener to be closed", async || {
        match Caller::try_connect(scene.service.address()).await {
            Err(_) => Some(()),
            // Taken in by the kernel before the listener closed.
            Ok(_) => None,
        }
    })
    .await;
}

#[tokio::test]
async fn without_connections_sigterm_and_sigint_end_the_process_with_0() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut scene = Scene::new(Behaviour::Identify).await;
        scene.proxy.signal(signal);
        assert_eq!(scene.proxy.exit().await.code(), Some(0), "{signal:?}");
    }
}

#[tokio::test]
async fn open_connections_go_on_until_they_end_and_then_the_exit_code_is_0() {
    let mut scene = scene_with("30s").await;
    let (mut caller, _) = scene.introduce().await;
    scene.proxy.signal(Signal::TERM);
    refuses_new_callers(&scene).await;
    caller.echo(b"still here").await;
    caller.finish_sending().await;
    assert_eq!(caller.ending().await, Ending::Fin);
    assert_eq!(scene.proxy.exit().await.code(), Some(0));
}

#[tokio::test]
async fn past_the_deadline_connections_are_reset_and_the_exit_code_is_3() {
    let mut scene = scene_with("200ms").await;
    let (mut caller, _) = scene.introduce().await;
    scene.proxy.signal(Signal::TERM);
    assert_eq!(caller.ending().await, Ending::Reset);
    assert_eq!(scene.proxy.exit().await.code(), Some(3));
    let line = scene.proxy.failure_logged(NAME, "shutdown").await;
    assert!(
        line.text("hint")
            .is_some_and(|hint| hint.contains("shutdown_timeout"))
    );
}

#[tokio::test]
async fn a_second_signal_ends_open_connections_at_once() {
    let mut scene = scene_with("5m").await;
    let (mut caller, _) = scene.introduce().await;
    scene.proxy.signal(Signal::TERM);
    refuses_new_callers(&scene).await;
    scene.proxy.signal(Signal::TERM);
    assert_eq!(caller.ending().await, Ending::Reset);
    assert_eq!(scene.proxy.exit().await.code(), Some(3));
}

#[tokio::test]
async fn while_draining_the_process_is_alive_but_not_ready() {
    let scene = scene_with("5m").await;
    let (_caller, _) = scene.introduce().await;
    assert_eq!(scene.proxy.metric("tlsward_stopping", &[]).await, 0.0);
    scene.proxy.signal(Signal::TERM);
    denies_readiness(&scene).await;
    assert_eq!(scene.proxy.get("/livez").await.code, 200);
    assert_eq!(scene.proxy.status().await["state"], "stopping");
    assert_eq!(scene.proxy.metric("tlsward_stopping", &[]).await, 1.0);
}

#[tokio::test]
async fn during_shutdown_delay_readiness_is_denied_and_new_callers_are_served() {
    let mut scene = scene_ending("shutdown_delay = \"5m\"").await;
    scene.proxy.signal(Signal::TERM);
    denies_readiness(&scene).await;
    let process = scene.proxy.status().await;
    assert_eq!(process["state"], "stopping");
    assert_eq!(process["services"][0]["state"], "ready");
    assert_eq!(scene.proxy.metric("tlsward_stopping", &[]).await, 1.0);
    visit(&scene.service).await;
    scene.proxy.counter_becomes(NAME, "open", 0).await;
    // Nobody is connected, but somebody may want to be.
    scene.proxy.signal(Signal::TERM);
    assert_eq!(scene.proxy.exit().await.code(), Some(0));
}

#[tokio::test]
async fn during_shutdown_delay_certificates_and_configuration_are_renewed() {
    let top = format!("{ANY_PORTS}\nshutdown_delay = \"5m\"");
    let scene = Scene::topped(&top, Behaviour::Identify, |it| it).await;
    scene.proxy.signal(Signal::TERM);
    denies_readiness(&scene).await;
    let renewed = scene.pki.client(NAME);
    scene.pki.identity_files(NAME, &renewed);
    assert_eq!(scene.proxy.reload().await.code, 200);
    assert_eq!(visit(&scene.service).await.serial, renewed.serial());
    let other = scene.service.clone().named("other").listening_on(address());
    let config = scene.config.clone().service(other.clone());
    scene.proxy.adopt(&config).await;
    visit(&other).await;
    assert_eq!(scene.proxy.get("/readyz").await.code, 503);
}

#[tokio::test]
async fn the_drain_begins_after_shutdown_delay_and_shutdown_timeout_counts_from_there() {
    const DELAY: Duration = Duration::from_millis(400);
    let mut scene = scene_ending("shutdown_delay = \"400ms\"\nshutdown_timeout = \"200ms\"").await;
    let (mut caller, _) = scene.introduce().await;
    let asked = Instant::now();
    scene.proxy.signal(Signal::TERM);
    refuses_new_callers(&scene).await;
    assert!(asked.elapsed() >= DELAY, "{:?}", asked.elapsed());
    // It would have been over before the delay.
    assert_eq!(caller.ending().await, Ending::Reset);
    assert!(asked.elapsed() >= DELAY + Duration::from_millis(200));
    assert_eq!(scene.proxy.exit().await.code(), Some(3));
}

#[tokio::test]
async fn a_second_signal_during_shutdown_delay_ends_open_connections_at_once() {
    let mut scene = scene_ending("shutdown_delay = \"5m\"\nshutdown_timeout = \"5m\"").await;
    let (mut caller, _) = scene.introduce().await;
    scene.proxy.signal(Signal::TERM);
    denies_readiness(&scene).await;
    caller.echo(b"still here").await;
    scene.proxy.signal(Signal::INT);
    assert_eq!(caller.ending().await, Ending::Reset);
    assert_eq!(scene.proxy.exit().await.code(), Some(3));
}

/// The answer to `POST /quit`.
async fn quit(scene: &Scene) -> Value {
    let answer = scene.proxy.post("/quit").await;
    assert_eq!(answer.code, 202, "{answer:?}");
    serde_json::from_str(&answer.body).expect("JSON")
}

#[tokio::test]
async fn quit_ends_the_process_like_sigterm_and_says_what_happens() {
    let mut scene = scene_ending("shutdown_delay = \"400ms\"\nshutdown_timeout = \"5m\"").await;
    let (mut caller, _) = scene.introduce().await;
    let said = quit(&scene).await;
    assert_eq!(
        said,
        json!({
            "outcome": "stopping",
            "connections_open": 1,
            "shutdown_delay_seconds": 0.4,
            "shutdown_timeout_seconds": 300.0,
        })
    );
    denies_readiness(&scene).await;
    refuses_new_callers(&scene).await;
    caller.echo(b"still here").await;
    caller.finish_sending().await;
    assert_eq!(caller.ending().await, Ending::Fin);
    assert_eq!(scene.proxy.exit().await.code(), Some(0));
}

#[tokio::test]
async fn neither_a_second_quit_nor_the_first_signal_after_it_ends_open_connections() {
    let mut scene = scene_with("5m").await;
    let (mut caller, _) = scene.introduce().await;
    quit(&scene).await;
    refuses_new_callers(&scene).await;
    assert_eq!(quit(&scene).await["outcome"], "stopping_already");
    // A preStop hook that asks by /quit is followed by the kubelet's SIGTERM.
    scene.proxy.signal(Signal::TERM);
    let heard = |line: &LogLine| line.has("message", "stopping already");
    scene
        .proxy
        .wait_for_log("the signal to be heard", heard)
        .await;
    caller.echo(b"still here").await;
    scene.proxy.signal(Signal::TERM);
    assert_eq!(caller.ending().await, Ending::Reset);
    assert_eq!(scene.proxy.exit().await.code(), Some(3));
}

#[tokio::test]
async fn all_callers_that_the_kernel_has_let_in_are_served_before_the_listener_closes() {
    const WAITING: usize = 300;
    let mut scene = Scene::shaped(Behaviour::Identify, |service| {
        service.set("max_connections", "1")
    })
    .await;
    let (first, _) = scene.introduce().await;
    let mut waiting = Vec::new();
    for _ in 0..WAITING {
        waiting.push(scene.call().await);
    }
    scene.proxy.signal(Signal::TERM);
    for (n, caller) in waiting.iter_mut().enumerate() {
        if let Err(error) = caller.try_line().await {
            panic!("caller {n} was let in and not served: {error}");
        }
    }
    drop((first, waiting));
    assert_eq!(scene.proxy.exit().await.code(), Some(0));
}
