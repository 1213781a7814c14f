//! The API server goes away, refuses, forgets, or speaks nonsense: what was known goes on.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::json;

use super::secrets::in_use;
use super::{NAMESPACE, SECRET, Scene, named, reached_by};
use crate::support::kube::{Asked, Cluster, Ending, Fault, History, Hold, User, objects};
use crate::support::net;
use crate::support::pki::{Issued, Pki};
use crate::support::proxy::{Config, Proxy, Service, serial_in_use};
use crate::support::scene::{NAME, introduce, visit};
use crate::support::until;
use crate::support::upstream::Upstream;

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
    let cluster = Cluster::start().await;
    let scene = Scene::new(&cluster).await;
    let client = scene.pki.client(NAME);
    scene.put(&client).await;
    cluster.go_away().await;
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
    cluster.come_back().await;
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
    let config = Config::of([scene.service.clone()]).top(&reached_by(&other));
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
    let cluster = Cluster::start().await;
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
    // A watch that is open goes on with whatever it began with.
    cluster.go_away().await;
    cluster.come_back().await;
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

/// As many Secrets, each followed by its name.
const CROWD: usize = 200;

/// How many may ask the API server at once.
const AT_ONCE: usize = 16;

/// A proxy with so many services, each with a Secret of its own.
struct Crowd<'c> {
    cluster: &'c Cluster,
    _user: User<'c>,
    pki: Pki,
    _upstream: Upstream,
    services: Vec<Service>,
    proxy: Proxy,
}

impl<'c> Crowd<'c> {
    async fn new(cluster: &'c Cluster) -> Self {
        let pki = Pki::new();
        let upstream = Upstream::start(&pki).await;
        let user = cluster.user(NAMESPACE, "tlsward").await;
        let names: Vec<String> = (0..CROWD).map(|number| format!("s{number}")).collect();
        let rule = json!({
            "apiGroups": [""],
            "resources": ["secrets"],
            "verbs": ["get", "list", "watch"],
            "resourceNames": names,
        });
        user.allow(NAMESPACE, json!([rule])).await;
        let services = names.iter().map(|name| {
            let service = Service::new(name, upstream.address(), &pki);
            service.tls_text("secret", &format!("{NAMESPACE}/{name}"))
        });
        let services: Vec<Service> = services.collect();
        let config = Config::of(services.clone()).top(&reached_by(&user));
        let config = config.top("kubernetes.events = false");
        put(cluster, &services, &pki.client("first")).await;
        let proxy = Proxy::start(&pki, &config).await;
        cluster.server().open_watches(CROWD).await;
        Self {
            cluster,
            _user: user,
            pki,
            _upstream: upstream,
            services,
            proxy,
        }
    }

    /// Waits until each service uses this certificate.
    async fn all_use(&self, issued: &Issued) {
        let serial = issued.serial();
        let what = format!("{serial} in use everywhere");
        self.proxy
            .wait_for_status(what, |status| {
                let services = status["services"].as_array()?;
                let mut in_use = services.iter().filter_map(serial_in_use);
                in_use.all(|it| it == serial).then_some(())
            })
            .await;
    }

    /// Goes from service to service as long as `other` takes; each answers.
    async fn is_served_during<T>(&self, other: impl Future<Output = T>) -> T {
        let mut visits = 0;
        let visiting = async {
            for service in self.services.iter().cycle() {
                visit(service).await;
                visits += 1;
            }
        };
        let value = tokio::select! {
            value = other => value,
            () = visiting => unreachable!("it goes in circles"),
        };
        assert!(visits > 20, "{visits} visits");
        value
    }

    /// What tlsward has asked since then, and how often each object was listed.
    fn asked_since(&self, mark: usize) -> (Vec<Asked>, BTreeMap<String, usize>) {
        let asked = self.cluster.server().requests_since(mark);
        let mut lists = BTreeMap::new();
        for asked in asked.iter().filter(|asked| asked.verb == "list") {
            *lists.entry(asked.name.clone().unwrap()).or_default() += 1;
        }
        (asked, lists)
    }

    /// Requests for Secrets wait for the test from now on.
    fn hold(&self) -> Hold {
        let is_ours = |asked: &Asked| asked.user.ends_with(":tlsward");
        self.cluster.server().hold(is_ours)
    }
}

async fn put(cluster: &Cluster, services: &[Service], issued: &Issued) {
    for service in services {
        let secret = objects::tls_secret(NAMESPACE, &service.name, issued);
        cluster.apply(&secret).await;
    }
}

/// Lets requests go on one by one until all watches are open again; says how many had come at most
/// without an answer.
async fn let_through(hold: Hold, cluster: &Cluster) -> usize {
    // The first of all finds out whether the server is there, by a list and a watch.
    for _ in 0..2 {
        hold.arrived().await;
        hold.release_one();
    }
    // Then the others come within a second: as many as may, and in real time.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let (mut released, mut most) = (2, 0);
    let mut tick = tokio::time::interval(Duration::from_millis(2));
    while cluster.server().watches().len() < CROWD {
        let waiting = hold.count() - released;
        most = most.max(waiting);
        if waiting > 0 {
            hold.release_one();
            released += 1;
        }
        tick.tick().await;
    }
    most
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_secrets_that_changed_meanwhile_are_in_use_soon_after_one_list_each() {
    let cluster = Cluster::in_process().await;
    let crowd = Crowd::new(&cluster).await;
    for history in [History::Later, History::Forgotten] {
        let next = crowd.pki.client("next");
        let mark = crowd
            .is_served_during(async {
                cluster.server().go_away().await;
                let missed = "what is known to go on, with a warning";
                crowd
                    .proxy
                    .wait_for_status(missed, |status| {
                        let services = status["services"].as_array()?;
                        let warned = |service: &serde_json::Value| {
                            service["warnings"].to_string().contains("api_unavailable")
                        };
                        services.iter().all(warned).then_some(())
                    })
                    .await;
                // For tlsward it is back once all has changed.
                let hold = crowd.hold();
                cluster.server().restart(history).await;
                put(&cluster, &crowd.services, &next).await;
                let (mark, back) = (cluster.server().mark(), Instant::now());
                drop(hold);
                crowd.all_use(&next).await;
                let took = back.elapsed();
                println!("{history:?}: all in use after {took:?}");
                assert!(took < RECOVERY, "{history:?}: {took:?}");
                mark
            })
            .await;
        cluster.server().open_watches(CROWD).await;
        let (asked, lists) = crowd.asked_since(mark);
        println!("{history:?}: {} requests", asked.len());
        // Whoever knows the newest version of a server that has forgotten its history needs none,
        // and one has asked before.
        if history == History::Later {
            assert!(lists.len() >= CROWD - 1, "{}", lists.len());
        }
        assert!(lists.values().all(|count| *count == 1), "{lists:?}");
        for service in &crowd.services {
            assert_eq!(visit(service).await.serial, next.serial());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_watches_go_on_without_a_list_and_never_more_than_sixteen_ask_at_once() {
    let cluster = Cluster::in_process().await;
    let crowd = Crowd::new(&cluster).await;
    cluster.server().go_away().await;
    crowd
        .proxy
        .wait_for_log("the API server to be missed", |line| {
            line.raw.contains("does not answer")
        })
        .await;
    let mark = cluster.server().mark();
    let most = crowd
        .is_served_during(async {
            let hold = crowd.hold();
            cluster.server().come_back().await;
            let_through(hold, &cluster).await
        })
        .await;
    assert_eq!(most, AT_ONCE);
    let (asked, lists) = crowd.asked_since(mark);
    // One list for all shows whether the server was set back.
    assert!(lists.values().sum::<usize>() <= 1, "{lists:?}");
    assert!(asked.len() <= CROWD + 1, "{}", asked.len());
}
