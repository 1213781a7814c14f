use std::time::Duration;

use rustix::process::Signal;
use rustix::time::{ClockId, clock_gettime};

use super::Stage;
use crate::support::net::{Caller, Ending, address};
use crate::support::proxy::{path_text, tlsward};
use crate::support::scene::{NAME, introduce, visit};
use crate::support::systemd::{Message, Systemd};
use crate::support::{until, within};

fn monotonic_usec() -> i64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec * 1_000_000 + now.tv_nsec / 1_000
}

fn status(message: &Message) -> &str {
    message
        .get("STATUS")
        .unwrap_or_else(|| panic!("no status in {message:?}"))
}

#[tokio::test]
async fn ready_is_told_when_callers_are_served_with_counts_and_the_nearest_expiry() {
    let stage = Stage::new().await;
    let systemd = Systemd::new(&stage.pki);
    let proxy = systemd.launch(&stage.pki, &stage.config);
    let ready = systemd.told("READY=1").await;
    visit(&stage.service).await;
    let line = status(&ready);
    assert!(
        line.starts_with("1 of 1 services ready, 0 connections; nearest expiry: billing, "),
        "{line}"
    );
    assert!(line.ends_with(" days)"), "{line}");
    let all = systemd.messages().all();
    assert_eq!(all.iter().filter(|it| it.says("READY=1")).count(), 1);
    assert!(status(&all[0]).starts_with("starting"), "{all:?}");
    // Connections are counted some seconds later.
    let (_caller, _) = introduce(&stage.service).await;
    systemd
        .messages()
        .wait("a connection in the line", |message| {
            message
                .get("STATUS")?
                .contains(", 1 connection;")
                .then_some(())
        })
        .await;
    drop(proxy);
}

#[tokio::test]
async fn readiness_waits_for_a_service_whose_certificate_is_on_its_way() {
    let stage = Stage::new().await;
    let systemd = Systemd::new(&stage.pki);
    let late = stage.pki.path("on-its-way");
    let service = stage
        .service
        .clone()
        .named("late")
        .listening_on(address())
        .tls_text("cert", path_text(&late.join("tls.crt")))
        .tls_text("key", path_text(&late.join("tls.key")));
    std::fs::create_dir(&late).unwrap();
    let config = stage.config.clone().service(service.clone());
    let proxy = systemd.launch(&stage.pki, &config);
    let degraded = systemd
        .messages()
        .wait("the line of a service that waits", |message| {
            let line = message.get("STATUS")?;
            line.contains("degraded: 1 of 2").then(|| message.clone())
        })
        .await;
    assert!(status(&degraded).contains("late: identity_missing"));
    let told = systemd.messages().all();
    assert!(!told.iter().any(|it| it.says("READY=1")), "{told:?}");
    let files = stage.pki.identity_files("late", &stage.pki.client("late"));
    std::fs::copy(&files.key, late.join("tls.key")).unwrap();
    std::fs::copy(&files.cert, late.join("tls.crt")).unwrap();
    let ready = systemd.told("READY=1").await;
    assert!(
        status(&ready).starts_with("2 of 2 services ready"),
        "{ready:?}"
    );
    visit(&service).await;
    drop(proxy);
}

#[tokio::test]
async fn a_hangup_is_announced_with_the_time_and_ends_when_the_new_configuration_serves() {
    let stage = Stage::new().await;
    let systemd = Systemd::new(&stage.pki);
    let proxy = systemd.start(&stage.pki, &stage.config).await;
    let other = stage.service.clone().named("other").listening_on(address());
    // The watch would take it up by itself, which is no reload that anybody asked for.
    let before = systemd.messages().mark();
    proxy.write_config(&stage.config.clone().service(other.clone()));
    let asked = monotonic_usec();
    proxy.signal(Signal::HUP);
    let reloading = systemd.told_after(before, "RELOADING=1").await;
    let usec: i64 = reloading.get("MONOTONIC_USEC").unwrap().parse().unwrap();
    assert!((asked..=monotonic_usec()).contains(&usec), "{asked} {usec}");
    let ready = systemd.told_after(before, "READY=1").await;
    assert!(ready.at >= reloading.at);
    // At once, without waiting for anything else.
    visit(&other).await;
    assert!(
        status(&ready).starts_with("2 of 2 services ready"),
        "{ready:?}"
    );
}

#[tokio::test]
async fn a_refused_reload_ends_too_and_the_line_says_why_without_the_file_s_text() {
    let stage = Stage::new().await;
    let systemd = Systemd::new(&stage.pki);
    let proxy = systemd.start(&stage.pki, &stage.config).await;
    let mark = systemd.messages().mark();
    proxy.write_config(
        &stage
            .config
            .clone()
            .service(stage.service.clone().named("x").listening_on("hunter2")),
    );
    proxy.signal(Signal::HUP);
    systemd.told_after(mark, "RELOADING=1").await;
    let ready = systemd.told_after(mark, "READY=1").await;
    let line = status(&ready);
    assert!(
        line.contains("configuration refused (bad_config: "),
        "{line}"
    );
    assert!(line.contains("services.x.listen"), "{line}");
    assert!(line.contains("1 of 1 services ready"), "{line}");
    assert!(!line.contains("hunter2"), "{line}");
    visit(&stage.service).await;
    // Whoever is right is told so, too.
    let mark = systemd.messages().mark();
    proxy.write_config(&stage.config);
    proxy.signal(Signal::HUP);
    let ready = systemd.told_after(mark, "READY=1").await;
    assert!(!status(&ready).contains("refused"), "{ready:?}");
}

#[tokio::test]
async fn a_reload_by_command_is_announced_and_over_before_the_command_returns() {
    let stage = Stage::new().await;
    let systemd = Systemd::new(&stage.pki);
    let proxy = systemd.start(&stage.pki, &stage.config).await;
    let mark = systemd.messages().mark();
    let file = proxy.config_file().to_str().unwrap();
    let output = tlsward(["reload", "-c", file]).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    systemd.told_after(mark, "RELOADING=1").await;
    let ready = systemd.told_after(mark, "READY=1").await;
    let seen = std::time::Instant::now();
    assert!(ready.at <= seen);
    // What systemd has read by now was sent before the command returned.
    proxy.write_config_text("[services.x]\n");
    let mark = systemd.messages().mark();
    let output = tlsward([
        "reload",
        "-c",
        file,
        "--admin",
        stage.config.admin_address(),
    ])
    .await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let ready = systemd.told_after(mark, "READY=1").await;
    assert!(status(&ready).contains("refused"), "{ready:?}");
}

#[tokio::test]
async fn where_nobody_can_be_asked_the_process_named_gets_a_signal() {
    let stage = Stage::new().await;
    let systemd = Systemd::new(&stage.pki);
    let config = stage.config.clone().admin("off");
    let proxy = systemd.start(&stage.pki, &config).await;
    let (file, pid) = (
        proxy.config_file().to_str().unwrap(),
        proxy.pid().to_string(),
    );
    let mark = systemd.messages().mark();
    let output = tlsward(["reload", "-c", file, "--pid", &pid]).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(
        told.contains(&format!("process {pid} was sent SIGHUP")),
        "{told}"
    );
    systemd.told_after(mark, "RELOADING=1").await;
    systemd.told_after(mark, "READY=1").await;
    let output = tlsward(["reload", "-c", file]).await;
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    // A file that names another endpoint than the process has: it is taken, then asked.
    let moved = stage.config.clone();
    proxy.write_config(&moved);
    let output = tlsward(["reload", "-c", file, "--pid", &pid]).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(told.contains("configuration: "), "{told}");
}

#[tokio::test]
async fn a_start_that_fails_tells_why_without_the_file_s_text() {
    let stage = Stage::new().await;
    let systemd = Systemd::new(&stage.pki);
    let service = stage.service.clone().listening_on("hunter2");
    let mut proxy = systemd.launch(&stage.pki, &stage.config.with_services([service]));
    let failed = systemd.told("ERRNO=22").await;
    let line = status(&failed);
    assert!(
        line.starts_with("cannot start: bad_config: 1 mistake"),
        "{line}"
    );
    assert!(line.contains("services.billing.listen"), "{line}");
    assert!(!line.contains("hunter2"), "{line}");
    assert_eq!(proxy.exit().await.code(), Some(2));
    assert!(!systemd.messages().all().iter().any(|it| it.says("READY=1")));
}

#[tokio::test]
async fn an_address_in_use_fails_the_start_and_is_named() {
    let stage = Stage::new().await;
    let systemd = Systemd::new(&stage.pki);
    let _taken = std::net::TcpListener::bind(stage.service.address()).unwrap();
    let mut proxy = systemd.launch(&stage.pki, &stage.config);
    let failed = systemd.told("ERRNO=98").await;
    let address = stage.service.address().to_string();
    assert!(status(&failed).contains(&address), "{failed:?}");
    assert_eq!(proxy.exit().await.code(), Some(1));
}

/// What is granted in this message, counted from when it came.
fn grant(message: &Message) -> Option<Duration> {
    let usec = message.get("EXTEND_TIMEOUT_USEC")?.parse().ok()?;
    Some(Duration::from_micros(usec))
}

#[tokio::test]
async fn a_drain_says_that_it_stops_and_extends_its_time_before_it_runs_out() {
    let stage = Stage::new().await;
    let systemd = Systemd::new(&stage.pki);
    let config = stage.config.clone().top("shutdown_timeout = \"60s\"");
    let mut proxy = systemd.start(&stage.pki, &config).await;
    let (mut caller, _) = introduce(&stage.service).await;
    let mark = systemd.messages().mark();
    proxy.signal(Signal::TERM);
    let stopping = systemd.told_after(mark, "STOPPING=1").await;
    assert_eq!(status(&stopping), "stopping: 1 connection open");
    let grants = async || {
        let all = systemd.messages().all();
        let grants = all.into_iter().skip(mark).filter(|it| grant(it).is_some());
        let grants: Vec<Message> = grants.collect();
        (grants.len() >= 4).then_some(grants)
    };
    let grants = until("four extensions", grants).await;
    for pair in grants.windows(2) {
        let granted = grant(&pair[0]).unwrap();
        let passed = pair[1].at - pair[0].at;
        assert!(passed < granted / 2, "{passed:?} of {granted:?}");
    }
    caller.echo(b"still here").await;
    caller.finish_sending().await;
    assert_eq!(caller.ending().await, Ending::Fin);
    assert_eq!(proxy.exit().await.code(), Some(0));
    let all = systemd.messages().all();
    let after = all.iter().skip(mark);
    assert!(after.clone().filter(|it| it.says("STOPPING=1")).count() == 1);
    assert!(!after.clone().any(|it| it.says("READY=1")));
}

#[tokio::test]
async fn stop_by_the_admin_endpoint_is_told_and_no_reload_after_it() {
    let stage = Stage::new().await;
    let systemd = Systemd::new(&stage.pki);
    let config = stage.config.clone().top("shutdown_delay = \"5m\"");
    let proxy = systemd.start(&stage.pki, &config).await;
    let mark = systemd.messages().mark();
    proxy.post("/quit").await;
    systemd.told_after(mark, "STOPPING=1").await;
    // Served and reloaded all the same, but systemd would take READY=1 for the end of the end.
    assert_eq!(proxy.reload().await.code, 200);
    visit(&stage.service).await;
    let all = systemd.messages().all();
    let wrong = |it: &&Message| it.says("RELOADING=1") || it.says("READY=1");
    assert_eq!(all.iter().skip(mark).find(wrong).map(|it| &it.text), None);
}

#[tokio::test]
async fn a_socket_that_nobody_reads_or_that_is_not_there_stops_nothing() {
    let stage = Stage::new().await;
    for bound in [false, true] {
        let path = stage.pki.path(&format!("silent-{bound}"));
        let _silent = bound.then(|| std::os::unix::net::UnixDatagram::bind(&path).unwrap());
        let mut command = crate::support::proxy::clean_command();
        command.env("NOTIFY_SOCKET", &path).env("FDSTORE", "10");
        let mut proxy = crate::support::proxy::Proxy::launch(command, &stage.pki, &stage.config);
        proxy.wait_until_ready().await;
        // More than the kernel queues for a datagram socket.
        for _ in 0..30 {
            assert_eq!(proxy.reload().await.code, 200);
        }
        visit(&stage.service).await;
        proxy.signal(Signal::TERM);
        assert_eq!(within("the end", proxy.exit()).await.code(), Some(0));
    }
}

#[tokio::test]
async fn without_systemd_there_is_no_word_of_it() {
    let stage = Stage::new().await;
    let proxy = crate::support::proxy::Proxy::start(&stage.pki, &stage.config).await;
    let mut caller = Caller::connect(stage.service.address()).await;
    caller.line().await;
    let log = proxy.log().all();
    let word = log.iter().find(|line| line.raw.contains("systemd"));
    assert!(word.is_none(), "{word:?}");
    assert_eq!(proxy.counter(NAME, "failed").await, 0);
}
