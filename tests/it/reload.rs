//! The configuration replaced under running connections: all or nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::support::net::{Caller, Ending, address};
use crate::support::pki::Pki;
use crate::support::proxy::{ANY_PORTS, Config, Proxy, Service};
use crate::support::scene::{NAME, Scene, introduce, visit};
use crate::support::until;
use crate::support::upstream::{Behaviour, Upstream};

/// Services by name, each presenting a certificate of its name to one identifying upstream.
struct Town {
    pki: Pki,
    upstream: Upstream,
}

impl Town {
    async fn new() -> Self {
        let pki = Pki::new();
        let upstream = Upstream::start(&pki).await;
        Self { pki, upstream }
    }

    fn service(&self, name: &str) -> Service {
        let files = self.pki.identity_files(name, &self.pki.client(name));
        Service::new(name, self.upstream.address(), &self.pki).identity(&files)
    }
}

async fn is_closed(service: &Service) {
    until("the listener to be closed", async || {
        Caller::try_connect(service.address()).await.err().map(drop)
    })
    .await;
}

#[tokio::test]
async fn an_added_service_is_served_and_the_others_are_not_touched() {
    let town = Town::new().await;
    let (old, new) = (town.service("old"), town.service("new"));
    let config = Config::of([old.clone()]).top(ANY_PORTS);
    let proxy = Proxy::start(&town.pki, &config).await;
    let (mut open, _) = introduce(&old).await;
    proxy
        .adopt(&config.with_services([old.clone(), new.clone()]))
        .await;
    assert_eq!(visit(&new).await.common_name, "new");
    open.echo(b"as before").await;
    assert!(visit(&old).await.resumed, "its sessions are kept");
}

#[tokio::test]
async fn a_saved_file_is_taken_up_without_being_asked() {
    let town = Town::new().await;
    let (old, new) = (town.service("old"), town.service("new"));
    let config = Config::of([old.clone()]).top(ANY_PORTS);
    let proxy = Proxy::start(&town.pki, &config).await;
    proxy.write_config(&config.with_services([old, new.clone()]));
    proxy
        .wait_for_service("new", "the new service", |service| {
            (service["state"] == "ready").then_some(())
        })
        .await;
    assert_eq!(visit(&new).await.common_name, "new");
}

#[tokio::test]
async fn a_file_that_an_editor_puts_in_the_place_of_the_old_is_taken_up() {
    let town = Town::new().await;
    let (old, new) = (town.service("old"), town.service("new"));
    let config = Config::of([old.clone()]).top(ANY_PORTS);
    let proxy = Proxy::start(&town.pki, &config).await;
    let file = proxy.config_file();
    let draft = file.with_extension("toml.draft");
    std::fs::write(&draft, config.with_services([old, new.clone()]).render()).unwrap();
    std::fs::rename(file, file.with_extension("toml~")).unwrap();
    std::fs::rename(&draft, file).unwrap();
    proxy
        .wait_for_service("new", "the new service", |service| {
            (service["state"] == "ready").then_some(())
        })
        .await;
    visit(&new).await;
}

#[tokio::test]
async fn a_file_that_is_emptied_or_deleted_ends_nothing_and_is_said() {
    let town = Town::new().await;
    let service = town.service("only");
    let config = Config::of([service.clone()]);
    let proxy = Proxy::start(&town.pki, &config).await;
    let file = proxy.config_file();
    let refused = async |words: &str| {
        let what = format!("a refusal because it {words}");
        proxy
            .wait_for_status(&what, |status| {
                let detail = status["config"]["refused"]["detail"].as_str()?;
                detail.contains(words).then_some(())
            })
            .await;
        visit(&service).await;
    };
    std::fs::write(file, "").unwrap();
    refused("is empty").await;
    std::fs::remove_file(file).unwrap();
    refused("does not exist").await;
    proxy.write_config(&config);
    proxy
        .wait_for_status("the file that is good again", |status| {
            status["config"]["refused"].is_null().then_some(())
        })
        .await;
}

#[tokio::test]
async fn sighup_takes_up_the_file() {
    let town = Town::new().await;
    let config = Config::of([town.service("one")]);
    let proxy = Proxy::start(&town.pki, &config).await;
    proxy.signal(rustix::process::Signal::HUP);
    until("a read of the configuration on request", async || {
        let labels = [("source", "config"), ("trigger", "request")];
        (proxy.metric("tlsward_reloads_total", &labels).await >= 1.0).then_some(())
    })
    .await;
    assert_eq!(proxy.config_generation().await, 1, "nothing has changed");
}

#[tokio::test]
async fn a_removed_service_closes_its_listener_and_its_connections_go_on() {
    let town = Town::new().await;
    let (stays, goes) = (town.service("stays"), town.service("goes"));
    let config = Config::of([stays.clone(), goes.clone()]);
    let proxy = Proxy::start(&town.pki, &config).await;
    let (mut open, _) = introduce(&goes).await;
    proxy.adopt(&config.with_services([stays.clone()])).await;
    is_closed(&goes).await;
    open.echo(b"draining").await;
    open.finish_sending().await;
    assert_eq!(open.ending().await, Ending::Fin);
    visit(&stays).await;
}

#[tokio::test]
async fn a_changed_upstream_applies_to_new_connections_only() {
    let scene = Scene::topped(ANY_PORTS, Behaviour::Identify, |it| it).await;
    let (mut open, _) = scene.introduce().await;
    let other = Upstream::behaving(&scene.pki, Behaviour::Greet(b"other\n".to_vec())).await;
    let changed = scene
        .service
        .clone()
        .text("upstream", &other.address().to_string());
    scene
        .proxy
        .adopt(&scene.config.with_services([changed]))
        .await;
    assert_eq!(scene.call().await.line().await, "other");
    open.echo(b"still with the first").await;
}

#[tokio::test]
async fn a_renamed_service_keeps_its_listener_and_its_connections() {
    let scene = Scene::new(Behaviour::Identify).await;
    let (mut open, _) = scene.introduce().await;
    let renamed = scene.service.clone().named("invoices");
    scene
        .proxy
        .adopt(&scene.config.with_services([renamed]))
        .await;
    open.echo(b"as before").await;
    visit(&scene.service).await;
    scene.proxy.service("invoices").await;
}

#[tokio::test]
async fn two_services_can_swap_their_ports() {
    let town = Town::new().await;
    let (left, right) = (town.service("left"), town.service("right"));
    let config = Config::of([left.clone(), right.clone()]);
    let proxy = Proxy::start(&town.pki, &config).await;
    let (mut open, _) = introduce(&left).await;
    let swapped = [
        left.clone().listening_on(&right.listen),
        right.clone().listening_on(&left.listen),
    ];
    proxy.adopt(&config.with_services(swapped.clone())).await;
    for service in &swapped {
        assert_eq!(visit(service).await.common_name, service.name);
    }
    open.echo(b"still left").await;
}

#[tokio::test]
async fn a_port_in_use_leaves_everything_as_it_was() {
    let town = Town::new().await;
    let old = town.service("old");
    let config = Config::of([old.clone()]).top(ANY_PORTS);
    let proxy = Proxy::start(&town.pki, &config).await;
    let taken = TcpListener::bind(address()).await.unwrap();
    let fine = town.service("fine");
    let collides = town
        .service("collides")
        .listening_on(taken.local_addr().unwrap());
    let changed = old.clone().set("max_connections", "1");
    let wanted = config.with_services([changed, fine.clone(), collides]);
    let (refused, answer) = proxy.offer_in_vain(&wanted).await;
    assert_eq!(refused["reason"], "bind_failed", "{refused}");
    assert_ne!(answer.code, 200, "{answer:?}");
    is_closed(&fine).await;
    let (_first, _) = introduce(&old).await;
    let (_second, _) = introduce(&old).await; // max_connections is not in force

    drop(taken);
    proxy.adopt(&wanted).await;
    visit(&fine).await;
    assert!(proxy.status().await["config"]["refused"].is_null());
}

#[tokio::test]
async fn a_mistake_in_the_file_changes_nothing_and_is_explained() {
    let scene = Scene::new(Behaviour::Identify).await;
    let (mut open, _) = scene.introduce().await;
    let mistaken = scene.service.clone().text("idle_timeot", "5m");
    let (refused, answer) = scene
        .proxy
        .offer_in_vain(&scene.config.with_services([mistaken]))
        .await;
    assert_eq!(refused["reason"], "bad_config", "{refused}");
    assert_ne!(answer.code, 200, "{answer:?}");
    let detail = refused["detail"].as_str().expect("particulars");
    assert!(
        detail.contains("idle_timeot") || answer.body.contains("idle_timeot"),
        "{answer:?}"
    );
    assert!(
        answer.body.contains("idle_timeout"),
        "did you mean: {}",
        answer.body
    );
    open.echo(b"as before").await;
    visit(&scene.service).await;
}

#[tokio::test]
async fn a_service_that_waits_for_new_files_serves_on_as_before() {
    let scene = Scene::new(Behaviour::Identify).await;
    let missing = scene.pki.path("not-there.crt");
    let changed = scene
        .service
        .clone()
        .tls_text("cert", missing.to_str().unwrap());
    scene
        .proxy
        .write_config(&scene.config.with_services([changed]));
    scene.proxy.reload().await;
    scene
        .proxy
        .wait_for_service(NAME, "a warming service", |service| {
            (service["state"] == "warming").then_some(())
        })
        .await;
    assert_eq!(visit(&scene.service).await.serial, scene.client.serial());
    std::fs::copy(&scene.files.cert, &missing).unwrap();
    scene
        .proxy
        .wait_for_service(NAME, "the change complete", |service| {
            (service["state"] == "ready").then_some(())
        })
        .await;
    visit(&scene.service).await;
}

/// Reloads of every kind in turn while two tasks connect to a service that none of them touches
/// and two to ones that are changed all the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_reloads_under_load_lose_no_connection() {
    const RELOADS: usize = 100;
    let town = Town::new().await;
    let names = ["steady", "left", "right", "extra"];
    let [steady, left, right, extra] = names.map(|name| town.service(name));
    let taken = TcpListener::bind(address()).await.unwrap();
    let collides = town
        .service("collides")
        .listening_on(taken.local_addr().unwrap());
    let config = Config::of([steady.clone(), left.clone(), right.clone()]).top(ANY_PORTS);
    let proxy = Proxy::start(&town.pki, &config).await;
    let (mut open, _) = introduce(&steady).await;

    let stop = Arc::new(AtomicBool::new(false));
    let count = Arc::new(AtomicU64::new(0));
    let mut connecting = JoinSet::new();
    for (service, expected) in [
        (&steady, &["steady"][..]),
        (&steady, &["steady"]),
        (&left, &["left", "right"]),
        (&right, &["left", "right"]),
    ] {
        let (service, stop, count) = (service.clone(), Arc::clone(&stop), Arc::clone(&count));
        let expected = expected.to_vec();
        connecting.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let seen = visit(&service).await;
                assert!(expected.contains(&&*seen.common_name), "{seen:?}");
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    let swapped = [
        left.clone().listening_on(&right.listen),
        right.clone().listening_on(&left.listen),
    ];
    let [swapped_left, swapped_right] = swapped;
    let reloading = async {
        for round in 0..RELOADS / 5 {
            let base = [steady.clone(), left.clone(), right.clone()];
            // added
            let mut services = base.to_vec();
            services.push(extra.clone());
            proxy.adopt(&config.with_services(services)).await;
            visit(&extra).await;
            // changed, and the added one renamed
            let slower = left
                .clone()
                .text("connect_timeout", &format!("{}s", 20 + round));
            let renamed = extra.clone().named("renamed");
            proxy
                .adopt(&config.with_services([steady.clone(), slower, right.clone(), renamed]))
                .await;
            visit(&extra).await;
            // swapped, and the renamed one removed
            proxy
                .adopt(&config.with_services([
                    steady.clone(),
                    swapped_left.clone(),
                    swapped_right.clone(),
                ]))
                .await;
            // a port in use: nothing
            let mut services = base.to_vec();
            services.push(collides.clone());
            proxy.offer_in_vain(&config.with_services(services)).await;
            // and back
            proxy.adopt(&config.with_services(base)).await;
        }
    };
    tokio::select! {
        () = reloading => {}
        failed = connecting.join_next() => {
            failed.expect("four tasks").expect("a connection failed");
        }
    }
    stop.store(true, Ordering::Relaxed);
    connecting.join_all().await;
    open.echo(b"as before").await;
    let connections = count.load(Ordering::Relaxed);
    assert!(
        connections >= RELOADS as u64,
        "only {connections} connections"
    );
    for service in [&steady, &left, &right] {
        assert_eq!(proxy.counter(&service.name, "failed").await, 0);
    }
}

#[tokio::test]
async fn a_thousand_services_load_and_reload_within_a_second_of_cpu_each() {
    // A debug build is several times slower, and the promise is for the program as it is
    // released.
    let limit = if cfg!(debug_assertions) { 5.0 } else { 1.0 };
    let town = Town::new().await;
    let files = town
        .pki
        .identity_files("shared", &town.pki.client("shared"));
    let services: Vec<_> = (0..1_000)
        .map(|number| {
            Service::new(
                &format!("service-{number}"),
                town.upstream.address(),
                &town.pki,
            )
            .identity(&files)
        })
        .collect();
    let config = Config::of(services.clone());
    let proxy = Proxy::start(&town.pki, &config).await;
    let loaded = proxy.cpu_seconds();
    assert!(loaded < limit, "loading took {loaded} s of CPU");
    visit(&services[999]).await;

    let before = proxy.cpu_seconds();
    let changed = services
        .iter()
        .map(|service| service.clone().text("connect_timeout", "7s"));
    proxy.adopt(&config.with_services(changed)).await;
    let reloaded = proxy.cpu_seconds() - before;
    assert!(reloaded < limit, "reloading took {reloaded} s of CPU");
    visit(&services[999]).await;
}

#[tokio::test]
async fn keepalive_that_is_switched_on_counts_for_later_callers() {
    let town = Town::new().await;
    let silent = town.service("one").text("keepalive", "off");
    let config = Config::of([silent.clone()]);
    let proxy = Proxy::start(&town.pki, &config).await;
    let (before, _) = introduce(&silent).await;
    let probing = silent.clone().text("keepalive", "90s");
    proxy.adopt(&config.with_services([probing])).await;
    let (after, _) = introduce(&silent).await;
    let (before, after) = (before.into_tcp(), after.into_tcp());
    until("a keep-alive timer at the proxy's socket", async || {
        has_keepalive_timer(&after).then_some(())
    })
    .await;
    assert!(!has_keepalive_timer(&before));
}

/// Whether the other end of a connection within this machine waits to send a keep-alive probe:
/// timer 2 in /proc/net/tcp, proc_pid_net(5).
fn has_keepalive_timer(connection: &tokio::net::TcpStream) -> bool {
    let hex = |address: std::net::SocketAddr| {
        let std::net::IpAddr::V4(ip) = address.ip() else {
            panic!("the tests use IPv4")
        };
        let number = u32::from_ne_bytes(ip.octets());
        format!("{number:08X}:{:04X}", address.port())
    };
    let local = hex(connection.peer_addr().unwrap());
    let remote = hex(connection.local_addr().unwrap());
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let row = table
        .lines()
        .map(|row| row.split_whitespace().collect::<Vec<_>>())
        .find(|row| row[1] == local && row[2] == remote)
        .expect("the connection is in the table");
    row[5].starts_with("02:")
}

#[tokio::test]
async fn a_unix_sockets_mode_changes_with_the_configuration() {
    use std::os::unix::fs::PermissionsExt as _;
    let town = Town::new().await;
    let path = town.pki.path("one.sock");
    let with_mode = |mode: &str| {
        let listen = format!("unix:{}?mode={mode}", path.display());
        town.service("one").listening_on(listen)
    };
    let config = Config::of([with_mode("0600")]);
    let proxy = Proxy::start(&town.pki, &config).await;
    let mode = || std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(), 0o600);
    proxy
        .adopt(&config.with_services([with_mode("0660")]))
        .await;
    assert_eq!(mode(), 0o660);
    Caller::connect_unix(&path).await.line().await;
}

#[tokio::test]
async fn a_removed_service_is_not_served_in_the_name_of_its_successor() {
    let town = Town::new().await;
    let old = town.service("old");
    let config = Config::of([old.clone()]);
    let proxy = Proxy::start(&town.pki, &config).await;
    let (mut open, _) = introduce(&old).await;
    let files = town.pki.identity_files("new", &town.pki.client("new"));
    std::fs::rename(&files.cert, town.pki.path("aside")).unwrap();
    let new = Service::new("new", town.upstream.address(), &town.pki)
        .identity(&files)
        .listening_on(&old.listen);
    proxy.adopt(&config.with_services([new.clone()])).await;
    crate::support::net::is_reset(old.address()).await;
    assert_eq!(proxy.service("new").await["state"], "waiting");
    open.echo(b"as before").await;
    std::fs::rename(town.pki.path("aside"), &files.cert).unwrap();
    proxy
        .wait_for_service("new", "the successor to be ready", |service| {
            (service["state"] == "ready").then_some(())
        })
        .await;
    assert_eq!(visit(&new).await.common_name, "new");
}

#[tokio::test]
async fn a_service_that_comes_to_name_an_identity_no_longer_dials_without_one() {
    let town = Town::new().await;
    let named = town.service("one");
    let nobody = named
        .clone()
        .without_tls("cert")
        .without_tls("key")
        .tls("client_auth", "false");
    let config = Config::of([nobody]);
    let proxy = Proxy::start(&town.pki, &config).await;
    let mark = town.upstream.mark();
    std::fs::remove_file(town.pki.identity_files("one", &town.pki.client("one")).cert).unwrap();
    proxy.adopt(&config.with_services([named.clone()])).await;
    crate::support::net::is_reset(named.address()).await;
    assert_eq!(town.upstream.mark(), mark, "nothing was dialled");
}

#[tokio::test]
async fn a_removed_service_has_no_metrics_any_more() {
    let town = Town::new().await;
    let (stays, goes) = (town.service("stays"), town.service("goes"));
    let config = Config::of([stays.clone(), goes.clone()]);
    let proxy = Proxy::start(&town.pki, &config).await;
    visit(&goes).await;
    let named = |body: &str, name: &str| body.contains(&format!("service=\"{name}\""));
    assert!(named(&proxy.get("/metrics").await.body, "goes"));
    proxy.adopt(&config.with_services([stays])).await;
    let body = proxy.get("/metrics").await.body;
    assert!(named(&body, "stays"));
    assert!(!named(&body, "goes"), "{body}");
}
