//! Upstreams by Service: its endpoints, its annotations.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{NAMESPACE, SECRET, events, named, reached_by};
use crate::support::kube::{Cluster, User, objects};
use crate::support::net::{self, Caller};
use crate::support::pki::{Issued, Pki};
use crate::support::proxy::{Config, Proxy, Service, quoted};
use crate::support::scene::{NAME, visit};
use crate::support::upstream::{Behaviour, Options, Upstream};
use crate::support::{until, within};

/// The name that servers behind the Service are verified by.
const VERIFIED: &str = "billing.payments.svc";

/// A service of the file whose upstream is the Service `billing`.
struct Scene<'c> {
    cluster: &'c Cluster,
    pki: Pki,
    server: Issued,
    client: Issued,
    service: Service,
    config: Config,
    _user: User<'c>,
}

impl<'c> Scene<'c> {
    async fn new(cluster: &'c Cluster, identity: &str) -> Self {
        let pki = Pki::new();
        let user = cluster.user(NAMESPACE, "tlsward").await;
        let slices = json!({
            "apiGroups": ["discovery.k8s.io"],
            "resources": ["endpointslices"],
            "verbs": ["list", "watch"],
        });
        let rules = json!([
            named("services", NAME),
            named("secrets", SECRET),
            named("secrets", "other-tls"),
            slices,
            events(),
        ]);
        user.allow(NAMESPACE, rules).await;
        let server = pki.root.server_for(&[VERIFIED]).issue();
        let client = pki.client(NAME);
        let tls = objects::tls_secret(NAMESPACE, SECRET, &client);
        cluster.apply(&tls).await;
        let upstream = format!(
            "{{ service = {}, namespace = {}, port = \"https\" }}",
            quoted(NAME),
            quoted(NAMESPACE)
        );
        let mut service = Service::new(NAME, net::address(), &pki)
            .set("upstream", &upstream)
            .without_tls("server_name");
        if !identity.is_empty() {
            service = service.tls_text("secret", identity);
        }
        let config = Config::of([service.clone()]).top(&reached_by(&user));
        Self {
            cluster,
            pki,
            server,
            client,
            service,
            config,
            _user: user,
        }
    }

    /// An upstream at `ip` and the port that all endpoints share.
    async fn pod(&self, behaviour: Behaviour) -> Upstream {
        let mut options = Options::trusting(&self.pki.root).behaviour(behaviour);
        options.address = self.cluster.pod_address();
        options.start(&self.server).await
    }

    async fn service_object(&self, annotations: &[(&str, &str)]) -> Value {
        let mut object = objects::service(NAMESPACE, NAME, &[("http", 80), ("https", 443)]);
        for (key, value) in annotations {
            object = objects::annotated(object, key, value);
        }
        self.cluster.apply(&object).await
    }

    /// One slice for each pod, since each has a port of its own here.
    async fn endpoints(&self, number: usize, pod: Option<&Upstream>) {
        let name = format!("{NAME}-{number}");
        let address = pod.map(|pod| pod.address().ip().to_string());
        let addresses: Vec<&str> = address.as_deref().into_iter().collect();
        let port = pod.map_or(1, |pod| pod.address().port());
        let slice = objects::endpoint_slice(NAMESPACE, &name, NAME, ("https", port), &addresses);
        self.cluster.apply(&slice).await;
    }
}

#[tokio::test]
async fn connections_go_to_the_endpoints_of_the_service_and_the_service_s_name_is_verified() {
    let cluster = Cluster::start().await;
    let scene = Scene::new(&cluster, "payments/billing-tls").await;
    scene.service_object(&[]).await;
    let pods = [
        scene.pod(Behaviour::Identify).await,
        scene.pod(Behaviour::Identify).await,
    ];
    for (number, pod) in pods.iter().enumerate() {
        scene.endpoints(number, Some(pod)).await;
    }
    let proxy = Proxy::start(&scene.pki, &scene.config).await;
    let mut callers = JoinSet::new();
    for _ in 0..40 {
        let service = scene.service.clone();
        callers.spawn(async move { visit(&service).await });
    }
    for seen in within("all callers", callers.join_all()).await {
        assert_eq!(seen.serial, scene.client.serial());
    }
    for pod in &pods {
        let served = pod.peers().len();
        assert!((5..=35).contains(&served), "{served} of 40");
    }
    let status = proxy.service(NAME).await;
    assert_eq!(status["kubernetes"]["endpoints"], 2, "{status:#}");
    assert_eq!(status["kubernetes"]["service"], "payments/billing");
}

#[tokio::test]
async fn the_certificate_that_the_annotation_names_is_presented_and_changes_with_it() {
    let cluster = Cluster::start().await;
    let scene = Scene::new(&cluster, "").await;
    let pod = scene.pod(Behaviour::Identify).await;
    scene.endpoints(0, Some(&pod)).await;
    let object = scene
        .service_object(&[("konghq.com/client-cert", SECRET)])
        .await;
    let proxy = Proxy::start(&scene.pki, &scene.config).await;
    assert_eq!(visit(&scene.service).await.serial, scene.client.serial());

    let other = scene.pki.client("other");
    cluster
        .apply(&objects::tls_secret(NAMESPACE, "other-tls", &other))
        .await;
    let patch = |value: Value| {
        let annotations = json!({ "konghq.com/client-cert": value });
        json!({ "metadata": { "annotations": annotations } })
    };
    cluster.patch(&object, &patch(json!("other-tls"))).await;
    until("the other certificate", async || {
        (visit(&scene.service).await.serial == other.serial()).then_some(())
    })
    .await;

    // Neither a wrong annotation nor none takes the certificate away: never nobody.
    for wrong in [json!("elsewhere/other-tls"), Value::Null] {
        cluster.patch(&object, &patch(wrong.clone())).await;
        proxy
            .wait_for_service(NAME, format!("{wrong} to be refused"), |service| {
                (service["problem"]["reason"] == "bad_annotation").then_some(())
            })
            .await;
        assert_eq!(visit(&scene.service).await.serial, other.serial());
        assert_eq!(proxy.get("/readyz").await.code, 200);
        cluster.patch(&object, &patch(json!("other-tls"))).await;
        proxy
            .wait_for_service(NAME, "the problem to end", |service| {
                service["problem"].is_null().then_some(())
            })
            .await;
    }
}

#[tokio::test]
async fn before_the_service_exists_callers_are_refused_and_nobody_is_dialled() {
    let cluster = Cluster::start().await;
    let scene = Scene::new(&cluster, "payments/billing-tls").await;
    let mut proxy = Proxy::start_degraded(&scene.pki, &scene.config).await;
    proxy
        .wait_for_service(NAME, "the Service to be missed", |service| {
            (service["problem"]["reason"] == "service_missing").then_some(())
        })
        .await;
    assert!(Caller::try_connect(scene.service.address()).await.is_err());
    let pod = scene.pod(Behaviour::Identify).await;
    scene.endpoints(0, Some(&pod)).await;
    scene.service_object(&[]).await;
    proxy.wait_until_ready().await;
    assert_eq!(visit(&scene.service).await.serial, scene.client.serial());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_that_come_and_go_ten_times_a_second_fail_no_connection() {
    let cluster = Cluster::start().await;
    let scene = Scene::new(&cluster, "payments/billing-tls").await;
    scene.service_object(&[]).await;
    let mut pods = Vec::new();
    for number in 0..10 {
        let pod = scene.pod(Behaviour::Identify).await;
        scene.endpoints(number, Some(&pod)).await;
        pods.push(pod);
    }
    let proxy = Proxy::start(&scene.pki, &scene.config).await;
    let stop = Arc::new(AtomicBool::new(false));
    let served = Arc::new(AtomicUsize::new(0));
    let mut callers = JoinSet::new();
    for _ in 0..4 {
        let (stop, served, service) = (
            Arc::clone(&stop),
            Arc::clone(&served),
            scene.service.clone(),
        );
        callers.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                visit(&service).await;
                served.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    // What is replaced ten times a second is real time.
    let mut tick = tokio::time::interval(std::time::Duration::from_millis(100));
    for number in 10..110 {
        tick.tick().await;
        let pod = scene.pod(Behaviour::Identify).await;
        scene.endpoints(number, Some(&pod)).await;
        let gone = objects::endpoint_slice(
            NAMESPACE,
            &format!("{NAME}-{}", number - 10),
            NAME,
            ("https", 1),
            &[],
        );
        cluster.delete(&gone).await;
        pods.push(pod);
        // A pod that nobody is told of any more refuses, once what it had is over.
        if pods.len() > 12 {
            drop(pods.remove(0));
        }
    }
    stop.store(true, Ordering::Relaxed);
    callers.join_all().await;
    let served = served.load(Ordering::Relaxed);
    assert!(served >= 500, "only {served} connections");
    assert_eq!(proxy.counter(NAME, "failed").await, 0);
    let status = proxy.service(NAME).await;
    assert_eq!(status["identity"]["generation"], 1, "{status:#}");
}

#[tokio::test]
async fn a_service_whose_endpoints_may_not_be_read_is_not_ready_and_says_so() {
    let cluster = Cluster::in_process().await;
    let scene = Scene::new(&cluster, "payments/billing-tls").await;
    scene.service_object(&[]).await;
    let pod = scene.pod(Behaviour::Identify).await;
    scene.endpoints(0, Some(&pod)).await;
    let account = cluster.user(NAMESPACE, "without-slices").await;
    account
        .allow(
            NAMESPACE,
            json!([named("services", NAME), named("secrets", SECRET), events()]),
        )
        .await;
    let config = Config::of([scene.service.clone()]).top(&reached_by(&account));
    let mut proxy = Proxy::start_degraded(&scene.pki, &config).await;
    proxy
        .wait_for_service(NAME, "the refusal", |service| {
            let problem = &service["problem"];
            let detail = problem["detail"].as_str()?;
            (problem["reason"] == "forbidden" && detail.contains("endpointslices")).then_some(())
        })
        .await;
    assert_eq!(proxy.get("/readyz").await.code, 503);

    let slices = json!({
        "apiGroups": ["discovery.k8s.io"],
        "resources": ["endpointslices"],
        "verbs": ["list", "watch"],
    });
    account.allow(NAMESPACE, json!([slices])).await;
    proxy.reload().await;
    proxy.wait_until_ready().await;
    assert_eq!(visit(&scene.service).await.serial, scene.client.serial());
}
