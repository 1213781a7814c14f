//! The API server goes away, refuses, forgets, or speaks nonsense: what was known goes on.

use std::time::{Duration, Instant};

use serde_json::json;

use super::secrets::in_use;
use super::{NAMESPACE, SECRET, Scene, named};
use crate::support::kube::{Cluster, Ending, Fault, History};
use crate::support::net;
use crate::support::proxy::{Config, Proxy, serial_in_use};
use crate::support::scene::{NAME, introduce, visit};
use crate::support::until;

/// In which everything is right again once the API server is back.
const RECOVERY: Duration = Duration::from_secs(5);

#[tokio::test]
async fn while_the_api_server_is_away_service_goes_on_and_news_is_taken_up_when_it_is_back() {
    let cluster = Cluster::in_process().await;
    let scene = Scene::new(&cluster).await;
    let mut current = scene.pki.client(NAME);
    scene.put(&current).await;
    let proxy = scene.start().await;
    in_use(&proxy, &current).await;
    let (mut old, _) = introduce(&scene.service).await;

    for history in [History::Later, History::Earlier, History::Forgotten] {
        cluster.server().go_away().await;
        proxy
            .wait_for_service(NAME, "a warning that nothing newer is known", |service| {
                let warnings = service["warnings"].to_string();
                warnings.contains("api_unavailable").then_some(())
            })
            .await;
        assert_eq!(visit(&scene.service).await.serial, current.serial());
        assert_eq!(proxy.get("/readyz").await.code, 200, "{history:?}");
        old.echo(b"goes on").await;

        let mark = cluster.server().mark();
        cluster.server().restart(history).await;
        current = scene.pki.client(NAME);
        scene.put(&current).await;
        let back = Instant::now();
        in_use(&proxy, &current).await;
        assert!(
            back.elapsed() < RECOVERY,
            "{history:?}: {:?}",
            back.elapsed()
        );
        proxy
            .wait_for_service(NAME, "the warning to end", |service| {
                service["warnings"].as_array()?.is_empty().then_some(())
            })
            .await;
        let lists = cluster.server().requests_since(mark);
        let lists = lists
            .iter()
            .filter(|asked| asked.is("list", "secrets", "*"));
        assert!(lists.count() <= 2, "{history:?}");
    }
}

#[tokio::test]
async fn a_start_without_an_api_server_serves_when_it_comes() {
    let cluster = Cluster::in_process().await;
    let scene = Scene::new(&cluster).await;
    let client = scene.pki.client(NAME);
    scene.put(&client).await;
    cluster.server().go_away().await;
    let mut proxy = Proxy::start_degraded(&scene.pki, &scene.config).await;
    proxy
        .wait_for_service(NAME, "the API server to be missed", |service| {
            (service["problem"]["reason"] == "api_unavailable").then_some(())
        })
        .await;
    assert!(
        net::Caller::try_connect(scene.service.address())
            .await
            .is_err()
    );
    cluster.server().come_back().await;
    let back = Instant::now();
    proxy.wait_until_ready().await;
    assert!(back.elapsed() < RECOVERY, "{:?}", back.elapsed());
    assert_eq!(visit(&scene.service).await.serial, client.serial());
}

#[tokio::test]
async fn a_silent_api_server_holds_up_neither_the_start_for_long_nor_a_reload() {
    let cluster = Cluster::in_process().await;
    let scene = Scene::new(&cluster).await;
    let client = scene.pki.client(NAME);
    scene.put(&client).await;
    cluster.server().fall_silent().await;
    let mut proxy = Proxy::start_degraded(&scene.pki, &scene.config).await;
    let asked = Instant::now();
    let answer = proxy.reload().await;
    assert!(asked.elapsed() < Duration::from_secs(5), "{answer:?}");
    cluster.server().come_back().await;
    proxy.wait_until_ready().await;
    assert_eq!(visit(&scene.service).await.serial, client.serial());
}

#[tokio::test]
async fn watches_that_end_in_whatever_way_are_taken_up_again() {
    let cluster = Cluster::in_process().await;
    let scene = Scene::new(&cluster).await;
    scene.put(&scene.pki.client(NAME)).await;
    let proxy = scene.start().await;
    for how in [
        Ending::Closed,
        Ending::Cut,
        Ending::Reset,
        Ending::HalfLine,
        Ending::Expired,
        Ending::InternalError,
    ] {
        cluster
            .server()
            .watch_of("secrets", Some(NAMESPACE), Some(SECRET))
            .await;
        cluster.server().end_watches(how).await;
        let next = scene.pki.client(NAME);
        scene.put(&next).await;
        let put = Instant::now();
        in_use(&proxy, &next).await;
        assert!(put.elapsed() < RECOVERY, "{how:?}: {:?}", put.elapsed());
    }
    cluster
        .server()
        .watch_of("secrets", Some(NAMESPACE), Some(SECRET))
        .await;
    cluster.server().send_garbage();
    for fault in [
        Fault::InternalError,
        Fault::Unavailable,
        Fault::Reset,
        Fault::Garbage,
    ] {
        cluster.server().fail(2, fault, |asked| {
            asked.user.ends_with(":tlsward") && asked.is("*", "secrets", SECRET)
        });
        cluster.server().end_watches(Ending::Closed).await;
    }
    let next = scene.pki.client(NAME);
    scene.put(&next).await;
    // What has failed several times waits longer each time, but not for an operator.
    until("the next certificate", async || {
        proxy.reload().await;
        let service = proxy.service(NAME).await;
        (serial_in_use(&service) == Some(&*next.serial())).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_is_not_allowed_is_named_by_verb_and_object_and_taken_up_once_it_is() {
    let cluster = Cluster::start().await;
    let scene = Scene::new(&cluster).await;
    let other = scene.cluster.user(NAMESPACE, "nobody").await;
    let client = scene.pki.client(NAME);
    scene.put(&client).await;
    let config = Config::of([scene.service.clone()]).top(&super::reached_by(&other));
    let mut proxy = Proxy::start_degraded(&scene.pki, &config).await;
    let problem = proxy
        .wait_for_service(NAME, "a refusal", |service| {
            let problem = &service["problem"];
            (problem["reason"] == "forbidden").then(|| problem.clone())
        })
        .await;
    let detail = problem["detail"].as_str().unwrap();
    assert!(
        detail.contains("list") && detail.contains("secrets"),
        "{detail}"
    );
    assert!(
        detail.contains(SECRET) && detail.contains(NAMESPACE),
        "{detail}"
    );
    assert!(problem["hint"].as_str().unwrap().contains("tlsward rbac"));

    other
        .allow(NAMESPACE, json!([named("secrets", SECRET)]))
        .await;
    // A reload asks at once.
    until("the Secret to be read", async || {
        proxy.reload().await;
        let ready = proxy.get("/readyz").await.code == 200;
        ready.then_some(())
    })
    .await;
    proxy.wait_until_ready().await;
    assert_eq!(visit(&scene.service).await.serial, client.serial());
}

#[tokio::test]
async fn a_token_that_is_revoked_leaves_the_last_certificate_in_use_and_says_so() {
    let cluster = Cluster::in_process().await;
    let scene = Scene::new(&cluster).await;
    let client = scene.pki.client(NAME);
    scene.put(&client).await;
    let kubeconfig = scene.user.kubeconfig_with_token_file();
    let config = Config::of([scene.service.clone()]).top(&format!(
        "kubernetes.kubeconfig = {:?}",
        kubeconfig.display().to_string()
    ));
    let proxy = Proxy::start(&scene.pki, &config).await;
    in_use(&proxy, &client).await;
    scene.user.revoke_token().await;
    cluster.server().end_watches(Ending::Closed).await;
    proxy
        .wait_for_service(NAME, "a warning of the token", |service| {
            let warnings = service["warnings"].to_string();
            warnings.contains("forbidden").then_some(())
        })
        .await;
    assert_eq!(visit(&scene.service).await.serial, client.serial());

    scene.user.renew_token().await;
    let next = scene.pki.client(NAME);
    scene.put(&next).await;
    until("the new certificate", async || {
        proxy.reload().await;
        let service = proxy.service(NAME).await;
        let serial = next.serial();
        (serial_in_use(&service) == Some(&*serial)).then_some(())
    })
    .await;
}
