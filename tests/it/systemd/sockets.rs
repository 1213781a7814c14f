//! `listen = "systemd:NAME"`.

use std::net::TcpListener;
use std::os::unix::net::{UnixDatagram, UnixListener};

use rustix::process::Signal;
use serde_json::json;
use tokio::process::Command;

use super::Stage;
use crate::support::net::{self, Caller, address, ip};
use crate::support::pki::Pki;
use crate::support::proxy::{Proxy, TLSWARD, tlsward, without_settings};
use crate::support::scene::{NAME, visit};
use crate::support::systemd::Systemd;

/// What a start that fails says, in the log.
async fn refusal(mut proxy: Proxy) -> String {
    assert_eq!(proxy.exit().await.code(), Some(1));
    let line = proxy
        .wait_for_log("the refusal", |line| line.has("message", "cannot start"))
        .await;
    line.text("detail").unwrap().to_owned()
}

#[tokio::test]
async fn the_first_caller_starts_the_program_and_is_served() {
    let stage = Stage::new().await.on_systemd(NAME);
    let file = stage.pki.write("config.toml", stage.config.render());
    let service = stage.service.clone().listening_on(address());
    let mut activate = without_settings(Command::new("systemd-socket-activate"));
    let _activate = activate
        .arg(format!("--listen={}", service.listen))
        .arg(format!("--fdname={NAME}"))
        .args([TLSWARD, "run", "-c"])
        .arg(&file)
        .spawn()
        .expect("systemd-socket-activate is there: apt install systemd");
    crate::support::until("the socket to be open", async || {
        // A connection would start the program: look without one.
        TcpListener::bind(service.address()).err().map(drop)
    })
    .await;
    visit(&service).await;
    visit(&service).await;
}

#[tokio::test]
async fn all_sockets_of_a_name_serve_tcp_and_unix_and_status_names_them() {
    let stage = Stage::new().await.on_systemd(NAME);
    let mut systemd = Systemd::new(&stage.pki);
    let one = systemd.listen(NAME);
    systemd.listen("not-ours");
    let two = systemd.listen(NAME);
    let path = stage.pki.path("billing.sock");
    systemd.pass(NAME, UnixListener::bind(&path).unwrap());
    let proxy = systemd.start(&stage.pki, &stage.config).await;
    for address in [one, two] {
        visit(&stage.service.clone().listening_on(address)).await;
    }
    let mut caller = Caller::connect_unix(&path).await;
    caller.line().await;
    let listen = &proxy.service(NAME).await["listen"];
    assert_eq!(
        *listen,
        json!(format!(
            "systemd:billing ({one}, {two}, unix:{})",
            path.display()
        ))
    );
    proxy
        .wait_for_log("a word about the socket that nobody uses", |line| {
            line.has("name", "not-ours") && line.has("level", "WARN")
        })
        .await;
    drop(caller);
    // What systemd opened it also removes.
    proxy.stop().await;
    assert!(path.exists());
}

#[tokio::test]
async fn a_name_that_is_not_there_is_refused_with_those_that_are() {
    let stage = Stage::new().await.on_systemd("biling");
    let mut systemd = Systemd::new(&stage.pki);
    systemd.listen("billing");
    systemd.listen("audit");
    let why = refusal(systemd.launch(&stage.pki, &stage.config)).await;
    assert!(why.contains("no socket called \"biling\""), "{why}");
    assert!(why.contains("there are: \"audit\", \"billing\""), "{why}");

    // Without systemd the configuration can be checked, and not run.
    let file = stage.pki.write("config.toml", stage.config.render());
    let output = tlsward(["check", "-c", file.to_str().unwrap()]).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let clean = crate::support::proxy::clean_command();
    let why = refusal(Proxy::launch(clean, &stage.pki, &stage.config)).await;
    assert!(
        why.contains("has passed no sockets to this process"),
        "{why}"
    );
}

#[tokio::test]
async fn what_is_no_listener_is_refused_with_the_key_of_the_unit() {
    let stage = Stage::new().await.on_systemd(NAME);
    let refused = async |socket: std::os::fd::OwnedFd| {
        let mut systemd = Systemd::new(&Pki::new());
        systemd.pass(NAME, socket);
        refusal(systemd.launch(&stage.pki, &stage.config)).await
    };
    let why = refused(std::net::UdpSocket::bind((ip(), 0)).unwrap().into()).await;
    assert!(
        why.contains("datagram socket: its .socket unit needs ListenStream="),
        "{why}"
    );
    let datagrams = UnixDatagram::unbound().unwrap();
    assert!(refused(datagrams.into()).await.contains("datagram"));
    let listener = TcpListener::bind((ip(), 0)).unwrap();
    let connection = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let why = refused(connection.into()).await;
    assert!(
        why.contains("a connection and not a listener: its .socket unit needs Accept=no"),
        "{why}"
    );
    let file = std::fs::File::open("/dev/null").unwrap();
    assert!(refused(file.into()).await.contains("is not a socket"));
}

#[tokio::test]
async fn a_socket_that_others_can_reach_needs_the_words_for_it() {
    let stage = Stage::new().await.on_systemd(NAME);
    let mut systemd = Systemd::new(&stage.pki);
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    systemd.pass(NAME, listener);
    let why = refusal(systemd.launch(&stage.pki, &stage.config)).await;
    assert!(
        why.contains(&format!("is 0.0.0.0:{port}, which can be reached")),
        "{why}"
    );
    let meant = stage.config.services()[0]
        .clone()
        .set("allow_remote_callers", "true");
    let proxy = systemd
        .start(&stage.pki, &stage.config.with_services([meant]))
        .await;
    let here = std::net::SocketAddr::new(ip(), port);
    visit(&stage.service.clone().listening_on(here)).await;
    // Nor may a reload take the words away while the socket stays.
    let (refused, answer) = proxy.offer_in_vain(&stage.config).await;
    assert_eq!(refused["reason"], "bind_failed", "{answer:?}");
    visit(&stage.service.clone().listening_on(here)).await;
}

#[tokio::test]
async fn callers_are_held_against_the_list_of_the_socket_s_kind() {
    let stage = Stage::new().await.on_systemd(NAME);
    let mut systemd = Systemd::new(&stage.pki);
    let tcp = systemd.listen(NAME);
    let path = stage.pki.path("billing.sock");
    systemd.pass(NAME, UnixListener::bind(&path).unwrap());
    let service = stage.config.services()[0].clone();
    let allowing = |list: &str| {
        let service = service.clone().set("allow_callers", list);
        stage.config.with_services([service])
    };
    let why = refusal(systemd.launch(&stage.pki, &allowing("[\"127.0.0.0/8\"]"))).await;
    assert!(why.contains(&path.display().to_string()), "{why}");
    assert!(why.contains("list \"uid:1000\""), "{why}");
    let uid = rustix::process::getuid().as_raw();
    let proxy = systemd
        .start(
            &stage.pki,
            &allowing(&format!("[\"10.0.0.0/8\", \"uid:{uid}\"]")),
        )
        .await;
    Caller::connect_unix(&path).await.line().await;
    net::is_reset(tcp).await;
    proxy.failure_logged(NAME, "caller_not_allowed").await;
}

#[tokio::test]
async fn a_reload_begins_and_ends_the_use_of_a_name_and_the_socket_stays() {
    let stage = Stage::new().await;
    let mut systemd = Systemd::new(&stage.pki);
    let address = systemd.listen("second");
    let proxy = systemd.start(&stage.pki, &stage.config).await;
    let second = stage
        .service
        .clone()
        .named("second")
        .listening_on("systemd:second");
    let at = second.clone().listening_on(address);
    for _ in 0..2 {
        // Whoever came before the service is there is served when it is.
        let mut early = Caller::connect(address).await;
        proxy
            .adopt(&stage.config.clone().service(second.clone()))
            .await;
        early.line().await;
        visit(&at).await;
        proxy.adopt(&stage.config).await;
    }
    let mut waits = Caller::connect(address).await;
    proxy.adopt(&stage.config.clone().service(second)).await;
    waits.line().await;
    // An address that systemd holds is nobody else's, and the refusal says whose it is.
    let taken = stage.service.clone().named("third").listening_on(address);
    let (refused, _) = proxy
        .offer_in_vain(&stage.config.clone().service(taken))
        .await;
    let detail = refused["detail"].as_str().unwrap();
    assert!(
        detail.contains("write listen = \"systemd:second\""),
        "{detail}"
    );
}

#[tokio::test]
async fn a_restart_through_a_socket_of_systemd_loses_nobody_who_waits() {
    let stage = Stage::new().await.on_systemd(NAME);
    let mut systemd = Systemd::new(&stage.pki);
    let address = systemd.listen(NAME);
    let mut proxy = systemd.start(&stage.pki, &stage.config).await;
    visit(&stage.service.clone().listening_on(address)).await;
    proxy.signal(Signal::TERM);
    assert_eq!(proxy.exit().await.code(), Some(0));
    let mut between = Caller::connect(address).await;
    let _next = systemd.start(&stage.pki, &stage.config).await;
    between.line().await;
}

#[tokio::test]
async fn without_a_route_callers_of_a_passed_socket_are_reset_and_not_kept_waiting() {
    let stage = Stage::new().await.on_systemd(NAME);
    let mut systemd = Systemd::new(&stage.pki);
    let address = systemd.listen(NAME);
    let missing = stage.pki.path("missing.crt");
    let service = stage.config.services()[0].clone();
    let service = service.tls_text("cert", missing.to_str().unwrap());
    let mut proxy = systemd.launch(&stage.pki, &stage.config.with_services([service]));
    proxy.wait_until_alive().await;
    net::is_reset(address).await;
}
