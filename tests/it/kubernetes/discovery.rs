//! Services that stand in no file: found by their annotations.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{NAMESPACE, events, reached_by};
use crate::support::kube::{Cluster, User, objects};
use crate::support::net::{self, Caller};
use crate::support::pki::{Issued, Pki};
use crate::support::proxy::{Config, Proxy, Service, quoted};
use crate::support::scene::visit;
use crate::support::upstream::{Behaviour, Options, Upstream};

/// A proxy that serves what it discovers in one namespace.
struct Scene<'c> {
    cluster: &'c Cluster,
    pki: Pki,
    client: Issued,
    upstream: Upstream,
    config: Config,
    _user: User<'c>,
}

impl<'c> Scene<'c> {
    async fn new(cluster: &'c Cluster, secrets: &str) -> Self {
        let pki = Pki::new();
        let user = cluster.user(NAMESPACE, "tlsward").await;
        let read = ["get", "list", "watch"];
        let rules = json!([
            { "apiGroups": [""], "resources": ["services", "secrets"], "verbs": read },
            { "apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": read },
            events(),
        ]);
        user.allow(NAMESPACE, rules).await;
        let server = pki.root.server_for(&["every.payments.svc"]).issue();
        let mut options = Options::trusting(&pki.root).behaviour(Behaviour::Identify);
        options.address = cluster.pod_address();
        let upstream = options.start(&server).await;
        let client = pki.client("discovered");
        let config = Config::new().top(&format!(
            "{}\nkubernetes.secrets = \"{secrets}\"\n\
             kubernetes.discovery.namespaces = [\"{NAMESPACE}\"]\n\
             kubernetes.discovery.listen_address = \"{}\"\n\
             defaults.tls.ca = {}\ndefaults.tls.server_name = \"every.payments.svc\"",
            reached_by(&user),
            net::ip(),
            quoted(pki.ca_file().to_str().unwrap()),
        ));
        Self {
            cluster,
            pki,
            client,
            upstream,
            config,
            _user: user,
        }
    }

    /// A Service that asks for a listener and names its certificate, with the upstream behind it.
    async fn discoverable(&self, name: &str, listen: u16) -> Value {
        let secret = format!("{name}-tls");
        self.cluster
            .apply(&objects::tls_secret(NAMESPACE, &secret, &self.client))
            .await;
        let address = self.upstream.address();
        let ip = address.ip().to_string();
        let slice = objects::endpoint_slice(
            NAMESPACE,
            &format!("{name}-1"),
            name,
            ("https", address.port()),
            &[&ip],
        );
        self.cluster.apply(&slice).await;
        let service = objects::service(NAMESPACE, name, &[("https", 443)]);
        let service = objects::annotated(service, "konghq.com/client-cert", &secret);
        let service = objects::annotated(service, "tlsward/listen", &listen.to_string());
        self.cluster.apply(&service).await
    }

    /// The discovered service as the tests' kit calls services.
    fn at(&self, name: &str, listen: u16) -> Service {
        let address = std::net::SocketAddr::new(net::ip(), listen);
        Service::new(&format!("{name}.{NAMESPACE}"), address, &self.pki).listening_on(address)
    }
}

#[tokio::test]
async fn a_service_that_asks_for_a_listener_is_served_while_it_exists() {
    let cluster = Cluster::start().await;
    let scene = Scene::new(&cluster, "named").await;
    let proxy = Proxy::start(&scene.pki, &scene.config).await;
    let (billing, ledger) = (net::address().port(), net::address().port());
    let object = scene.discoverable("billing", billing).await;
    scene.discoverable("ledger", ledger).await;
    for (name, port) in [("billing", billing), ("ledger", ledger)] {
        let service = scene.at(name, port);
        proxy
            .wait_for_service(&format!("{name}.{NAMESPACE}"), "discovered", |service| {
                (service["state"] == "ready").then_some(())
            })
            .await;
        assert_eq!(visit(&service).await.serial, scene.client.serial());
    }

    // It moves to another listener, and goes.
    let moved = net::address().port();
    let listen = json!({ "metadata": { "annotations": { "tlsward/listen": moved.to_string() } } });
    cluster.patch(&object, &listen).await;
    proxy
        .wait_for_service("billing.payments", "the new listener", |service| {
            let listen = service["listen"].as_str()?;
            listen.ends_with(&format!(":{moved}")).then_some(())
        })
        .await;
    assert_eq!(
        visit(&scene.at("billing", moved)).await.serial,
        scene.client.serial()
    );
    assert!(
        Caller::try_connect(scene.at("billing", billing).address())
            .await
            .is_err()
    );
    cluster.delete(&object).await;
    proxy
        .wait_for_status("the service to be gone", |status| {
            let services = status["services"].as_array()?;
            (services.len() == 1).then_some(())
        })
        .await;
    assert!(
        Caller::try_connect(scene.at("billing", moved).address())
            .await
            .is_err()
    );
    assert_eq!(
        visit(&scene.at("ledger", ledger)).await.serial,
        scene.client.serial()
    );
}

#[tokio::test]
async fn of_two_services_that_claim_one_listener_the_older_has_it_and_the_other_is_told() {
    let cluster = Cluster::start().await;
    let scene = Scene::new(&cluster, "named").await;
    let port = net::address().port();
    let older = scene.discoverable("older", port).await;
    // Creation is known to the second.
    crate::support::until("the next second", async || {
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap();
        let created = older["metadata"]["creationTimestamp"].as_str().unwrap();
        let second = &created[17..19];
        (format!("{:02}", now.as_secs() % 60) != second).then_some(())
    })
    .await;
    let younger = scene.discoverable("younger", port).await;
    let proxy = Proxy::start(&scene.pki, &scene.config).await;
    let told = async |name: &str| {
        proxy
            .wait_for_service(name, "to be told", |service| {
                (service["problem"]["reason"] == "listener_taken").then_some(())
            })
            .await;
    };
    told("younger.payments").await;
    let event = cluster.event_of(&younger, "ListenerTaken").await;
    assert!(
        event["message"]
            .as_str()
            .unwrap()
            .contains("older.payments"),
        "{event:#}"
    );
    assert_eq!(
        visit(&scene.at("older", port)).await.serial,
        scene.client.serial()
    );
    // It is nobody else's trouble.
    assert_eq!(proxy.get("/readyz").await.code, 200);

    cluster.delete(&older).await;
    proxy
        .wait_for_service("younger.payments", "to have it", |service| {
            (service["state"] == "ready").then_some(())
        })
        .await;
    assert_eq!(
        visit(&scene.at("younger", port)).await.serial,
        scene.client.serial()
    );
}

#[tokio::test]
async fn a_discovered_services_mistake_and_a_taken_port_concern_it_alone() {
    let cluster = Cluster::start().await;
    let scene = Scene::new(&cluster, "named").await;
    let (good, bad) = (net::address().port(), net::address().port());
    scene.discoverable("good", good).await;
    let object = scene.discoverable("bad", bad).await;
    let verify = json!({ "metadata": { "annotations": { "konghq.com/tls-verify": "ture" } } });
    cluster.patch(&object, &verify).await;
    let occupied = std::net::TcpListener::bind((net::ip(), 0)).unwrap();
    let taken = occupied.local_addr().unwrap().port();
    scene.discoverable("late", taken).await;

    let proxy = Proxy::start(&scene.pki, &scene.config).await;
    proxy
        .wait_for_service("bad.payments", "the mistake", |service| {
            let problem = &service["problem"];
            let detail = problem["detail"].as_str()?;
            (problem["reason"] == "bad_annotation" && detail.contains("ture")).then_some(())
        })
        .await;
    proxy
        .wait_for_service("late.payments", "the port", |service| {
            (service["problem"]["reason"] == "bind_failed").then_some(())
        })
        .await;
    assert_eq!(
        visit(&scene.at("good", good)).await.serial,
        scene.client.serial()
    );
    assert_eq!(proxy.get("/readyz").await.code, 200);

    drop(occupied);
    proxy
        .wait_for_service("late.payments", "the port is free", |service| {
            (service["state"] == "ready").then_some(())
        })
        .await;
    let right = json!({ "metadata": { "annotations": { "konghq.com/tls-verify": "true" } } });
    cluster.patch(&object, &right).await;
    proxy
        .wait_for_service("bad.payments", "the mistake to end", |service| {
            (service["state"] == "ready").then_some(())
        })
        .await;
}

/// For 1,000 Services, each with a Secret, a watch and a TLS session to the API server of its own. The
/// build of tests is not optimised and its program is large, so the bounds are wider there:
/// docs/kubernetes.md says what a release build takes.
const CPU_SECONDS: f64 = if cfg!(debug_assertions) { 20.0 } else { 2.0 };
const MEMORY_KIB: u64 = if cfg!(debug_assertions) {
    120 << 10
} else {
    64 << 10
};
/// Of a CPU, while Events still go out one by one.
const IDLE_SHARE: f64 = if cfg!(debug_assertions) { 0.05 } else { 0.02 };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_services_are_discovered_within_bounds_of_cpu_and_memory() {
    let cluster = Cluster::in_process().await;
    let scene = Scene::new(&cluster, "named").await;
    let ports = crowd(&scene, 1_000).await;
    let before = Instant::now();
    let proxy = Proxy::start(&scene.pki, &scene.config).await;
    proxy
        .wait_for_status("all to be ready", |status| {
            let services = status["services"].as_array()?;
            let ready = services.iter().filter(|it| it["state"] == "ready").count();
            (ready == ports.len()).then_some(())
        })
        .await;
    let (cpu, memory) = (proxy.cpu_seconds(), proxy.memory_kib("VmHWM"));
    println!(
        "1,000 Services after {:?}: {cpu} s CPU, {memory} KiB",
        before.elapsed()
    );
    assert!(cpu < CPU_SECONDS, "{cpu} s");
    assert!(memory < MEMORY_KIB, "{memory} KiB");
    for name in [0, 499, 999] {
        let service = scene.at(&format!("s{name}"), ports[name]);
        assert_eq!(visit(&service).await.serial, scene.client.serial());
    }
    // Idle: real time must pass to see what it costs.
    let (at, used) = (Instant::now(), proxy.cpu_seconds());
    tokio::time::sleep(Duration::from_secs(5)).await;
    let share = (proxy.cpu_seconds() - used) / at.elapsed().as_secs_f64();
    println!("idle: {share} of a CPU");
    assert!(share < IDLE_SHARE, "{share} of a CPU while nothing happens");
}

/// So many discoverable Services, each with a Secret and endpoints of its own; returns their ports.
async fn crowd(scene: &Scene<'_>, count: usize) -> Vec<u16> {
    let mut ports = Vec::new();
    for number in 0..count {
        let port = 21_000 + u16::try_from(number).unwrap();
        scene.discoverable(&format!("s{number}"), port).await;
        ports.push(port);
    }
    ports
}
