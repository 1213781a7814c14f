//! The threads that carry connections: how many, and that each has its share.

use rustix::process::Signal;
use tokio::task::JoinSet;

use crate::support::net::Caller;
use crate::support::pki::Pki;
use crate::support::proxy::{Config, Proxy, Service, series};
use crate::support::scene::{NAME, Scene, introduce};
use crate::support::upstream::{Behaviour, Upstream};

/// The names of the process's worker threads.
fn worker_threads(proxy: &Proxy) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", proxy.pid())).unwrap();
    let names = tasks.filter_map(|task| {
        let name = std::fs::read_to_string(task.ok()?.path().join("comm")).ok()?;
        name.starts_with("worker-")
            .then(|| name.trim_end().to_owned())
    });
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

async fn connections_by_worker(proxy: &Proxy) -> Vec<f64> {
    let metrics = proxy.get("/metrics").await.body;
    series(&metrics, "tlsward_worker_connections", &[])
}

#[tokio::test]
async fn there_are_as_many_workers_as_the_file_says_until_the_next_start() {
    let scene = Scene::topped("workers = 3", Behaviour::Identify, |service| service).await;
    let three = ["worker-0", "worker-1", "worker-2"];
    assert_eq!(worker_threads(&scene.proxy), three);
    let services = scene.config.services().to_vec();
    let other = Config::of(services)
        .admin(scene.config.admin_address())
        .top("workers = 5");
    scene.proxy.adopt(&other).await;
    scene
        .proxy
        .wait_for_log("the hint that it counts later", |line| {
            line.raw.contains("counts from the next start on")
        })
        .await;
    assert_eq!(worker_threads(&scene.proxy), three);
}

#[tokio::test]
async fn without_the_key_there_is_one_worker_for_each_cpu_that_the_process_may_use() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let files = pki.identity_files(NAME, &pki.client(NAME));
    let service = Service::new(NAME, upstream.address(), &pki).identity(&files);
    let config = Config::of([service.clone()]);
    let first_cpu = "taskset -p -c $(taskset -p -c $$ | sed 's/.*: //; s/[-,].*//') $$ > /dev/null";
    let proxy = Proxy::start_after(first_cpu, &pki, &config).await;
    assert_eq!(worker_threads(&proxy), ["worker-0"]);
    introduce(&service).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_lived_connections_are_spread_over_all_workers() {
    const CALLERS: usize = 240;
    const WORKERS: usize = 4;
    let top = format!("workers = {WORKERS}");
    let scene = Scene::topped(&top, Behaviour::Identify, |service| service).await;
    let mut opening = JoinSet::new();
    for _ in 0..CALLERS {
        let service = scene.service.clone();
        opening.spawn(async move { introduce(&service).await.0 });
    }
    let mut callers = opening.join_all().await;
    let each = connections_by_worker(&scene.proxy).await;
    assert_eq!(each.len(), WORKERS);
    assert_eq!(each.iter().sum::<f64>(), CALLERS as f64, "{each:?}");
    let most = each.iter().copied().fold(0.0, f64::max);
    // A quarter above the mean, and what was dialled at the same moment.
    let bound = 1.25 * (CALLERS / WORKERS) as f64 + 8.0;
    assert!(most <= bound, "{each:?}");
    for caller in &mut callers {
        caller.echo(b"on whichever thread").await;
    }
    drop(callers);
    scene.proxy.counter_becomes(NAME, "open", 0).await;
    assert_eq!(connections_by_worker(&scene.proxy).await, [0.0; WORKERS]);
}

#[tokio::test]
async fn two_long_lived_connections_have_a_thread_each() {
    let scene = Scene::topped("workers = 2", Behaviour::Identify, |service| service).await;
    // More than once, since chance has a part in who accepts.
    for _ in 0..8 {
        let (first, _) = scene.introduce().await;
        let (second, _) = scene.introduce().await;
        assert_eq!(connections_by_worker(&scene.proxy).await, [1.0, 1.0]);
        drop((first, second));
        scene.proxy.counter_becomes(NAME, "open", 0).await;
    }
}

#[tokio::test]
async fn max_connections_counts_over_all_workers() {
    const LIMIT: usize = 10;
    let scene = Scene::topped("workers = 4", Behaviour::Identify, |service| {
        service.set("max_connections", &LIMIT.to_string())
    })
    .await;
    let mut served = Vec::new();
    for _ in 0..LIMIT {
        served.push(scene.introduce().await.0);
    }
    let mark = scene.upstream.mark();
    let mut waiting = Vec::new();
    for _ in 0..LIMIT {
        waiting.push(scene.call().await);
    }
    for caller in &mut served {
        caller.echo(b"the workers have had their turn").await;
    }
    assert_eq!(scene.proxy.counter(NAME, "open").await, LIMIT as u64);
    assert_eq!(
        scene.upstream.mark(),
        mark,
        "nothing was dialled for those that wait"
    );
    for (done, next) in served.into_iter().zip(&mut waiting) {
        drop(done);
        next.line().await;
    }
}

#[tokio::test]
async fn callers_that_were_let_in_are_served_though_the_drain_hands_them_to_other_workers() {
    const WAITING: usize = 300;
    let mut scene = Scene::topped("workers = 4", Behaviour::Identify, |service| {
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
    let each = connections_by_worker(&scene.proxy).await;
    assert!(each.iter().all(|count| *count > 0.0), "{each:?}");
    drop((first, waiting));
    assert_eq!(scene.proxy.exit().await.code(), Some(0));
}

/// Callers of a unix listener are handed over as bare descriptors too.
#[tokio::test]
async fn callers_of_a_unix_listener_are_spread_and_known_by_their_uid_on_every_worker() {
    const CALLERS: usize = 40;
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let files = pki.identity_files(NAME, &pki.client(NAME));
    let uid = rustix::process::getuid().as_raw();
    let path = pki.path("callers");
    let service = Service::new(NAME, upstream.address(), &pki)
        .identity(&files)
        .listening_on(format!("unix:{}", path.display()))
        .set("allow_callers", &format!("[\"uid:{uid}\"]"));
    let mut proxy = Proxy::start(&pki, &Config::of([service]).top("workers = 4")).await;
    let mut callers = Vec::new();
    for _ in 0..CALLERS {
        let mut caller = Caller::connect_unix(&path).await;
        caller.line().await;
        callers.push(caller);
    }
    let each = connections_by_worker(&proxy).await;
    assert!(each.iter().all(|count| *count > 0.0), "{each:?}");
    assert_eq!(each.iter().sum::<f64>(), CALLERS as f64);
    drop(callers);
    proxy.signal(Signal::TERM);
    assert_eq!(proxy.exit().await.code(), Some(0));
    assert!(!path.exists(), "the last worker has removed the socket");
}
