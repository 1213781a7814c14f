//! The sandbox as an operator meets it: what is in force, what a reload may not come to need, and
//! how to widen it. What each rule stops, `src/sandbox/tests.rs` tries out.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

use serde_json::Value;

use crate::support::net::address;
use crate::support::pki::Pki;
use crate::support::proxy::{ANY_PORTS, Config, Proxy, Service, clean_command, tlsward};
use crate::support::scene::{NAME, Scene, introduce, visit};
use crate::support::until;
use crate::support::upstream::{Behaviour, Upstream};

/// A line of the status of each thread, from /proc.
fn of_each_thread(proxy: &Proxy, field: &str) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", proxy.pid())).unwrap();
    tasks
        .map(|task| {
            let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix(field));
            line.unwrap().trim().to_owned()
        })
        .collect()
}

async fn sandbox(proxy: &Proxy) -> Value {
    proxy.status().await["sandbox"].clone()
}

#[tokio::test]
async fn every_thread_is_confined_and_status_and_metrics_say_so() {
    let scene = Scene::new(Behaviour::Identify).await;
    visit(&scene.service).await;
    let filtered = of_each_thread(&scene.proxy, "Seccomp:");
    assert!(
        filtered.len() > 1 && filtered.iter().all(|mode| mode == "2"),
        "{filtered:?}"
    );
    let privileges = of_each_thread(&scene.proxy, "NoNewPrivs:");
    assert!(privileges.iter().all(|set| set == "1"), "{privileges:?}");

    let sandbox = sandbox(&scene.proxy).await;
    assert_eq!(sandbox["state"], "on", "{sandbox}");
    for part in ["files", "tcp", "signals", "abstract_sockets", "seccomp"] {
        assert_eq!(sandbox[part], true, "{part}: {sandbox}");
        let metric = scene
            .proxy
            .metric("tlsward_sandbox", &[("part", part)])
            .await;
        assert_eq!(metric, 1.0, "{part}");
    }
    let file = scene.proxy.config_file().to_str().unwrap().to_owned();
    let output = tlsward(["status", "-c", &file]).await;
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains("\nsandbox on: files, TCP ports, signals, "),
        "{text}"
    );
}

#[tokio::test]
async fn memory_with_keys_is_neither_dumped_nor_traced_with_or_without_a_sandbox() {
    for without in [false, true] {
        let pki = Pki::new();
        let upstream = Upstream::start(&pki).await;
        let files = pki.identity_files(NAME, &pki.client(NAME));
        let service = Service::new(NAME, upstream.address(), &pki).identity(&files);
        let top = format!("sandbox.enabled = {}", !without);
        let config = Config::of([service.clone()]).top(&top);
        // As a user of its own, who could dump it and trace it.
        let everybody = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(pki.directory(), everybody).unwrap();
        let nobody = [
            "prlimit",
            "--core=unlimited",
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
        ];
        let proxy = Proxy::start_under(&nobody, &pki, &config).await;
        visit(&service).await;
        let proc = |name: &str| format!("/proc/{}/{name}", proxy.pid());
        let limits = std::fs::read_to_string(proc("limits")).unwrap();
        let core = limits
            .lines()
            .find(|line| line.starts_with("Max core file size"));
        let core: Vec<&str> = core.unwrap().split_whitespace().collect();
        assert_eq!(core[4..6], ["0", "0"]);
        // The kernel gives to root what concerns a process that nobody may look into
        // (proc_pid(5)); the directory shows who it is.
        let owner = |name| std::fs::metadata(proc(name)).unwrap().uid();
        assert_eq!((owner(""), owner("maps")), (65534, 0));
        let state = sandbox(&proxy).await;
        assert_eq!(
            state["state"],
            if without { "off" } else { "on" },
            "{state}"
        );
        let expected = if without { "0" } else { "2" };
        assert!(
            of_each_thread(&proxy, "Seccomp:")
                .iter()
                .all(|mode| mode == expected)
        );
    }
}

#[tokio::test]
async fn a_reload_that_needs_another_port_is_refused_whole_and_names_both_fixes() {
    let scene = Scene::new(Behaviour::Identify).await;
    let (mut open, _) = scene.introduce().await;
    let other = Upstream::start(&scene.pki).await;
    let port = other.address().port();
    let new = address();
    let added = scene.service.clone().named("added").listening_on(new);
    let moved = scene
        .service
        .clone()
        .text("upstream", &other.address().to_string());
    let limited = moved.set("max_connections", "1");
    let wanted = scene.config.with_services([limited, added]);
    let (refused, answer) = scene.proxy.offer_in_vain(&wanted).await;
    assert_eq!(refused["reason"], "sandboxed", "{refused}");
    let detail = refused["detail"].as_str().unwrap();
    for what in [
        format!("services.{NAME}.upstream: dialling port {port}"),
        format!("services.added.listen: listening on port {}", new.port()),
    ] {
        assert!(detail.contains(&what), "{detail}");
    }
    for fix in [
        "restart tlsward".to_owned(),
        format!("connect_ports = [{port}]"),
        format!("bind_ports = [{}]", new.port()),
    ] {
        assert!(answer.body.contains(&fix), "{fix}: {}", answer.body);
    }
    open.echo(b"as before").await;
    visit(&scene.service).await;
    let (_one, _) = introduce(&scene.service).await; // max_connections is not in force
    scene.proxy.adopt(&scene.config).await;
}

#[tokio::test]
async fn ports_and_directories_that_sandbox_names_can_be_taken_up_by_a_reload() {
    let elsewhere = tempfile::tempdir().unwrap();
    let pki = Pki::new();
    let (first, second) = (Upstream::start(&pki).await, Upstream::start(&pki).await);
    let new = address();
    let top = format!(
        "sandbox = {{ read = [{:?}], connect_ports = [{}], bind_ports = [\"{}-{}\"] }}",
        elsewhere.path(),
        second.address().port(),
        new.port(),
        new.port(),
    );
    let files = pki.identity_files(NAME, &pki.client(NAME));
    let service = Service::new(NAME, first.address(), &pki).identity(&files);
    let config = Config::of([service.clone()]).top(&top);
    let proxy = Proxy::start(&pki, &config).await;
    let (cert, key) = (
        elsewhere.path().join("c.crt"),
        elsewhere.path().join("c.key"),
    );
    std::fs::copy(&files.cert, &cert).unwrap();
    std::fs::copy(&files.key, &key).unwrap();
    let added = Service::new("added", second.address(), &pki)
        .listening_on(new)
        .tls_text("cert", cert.to_str().unwrap())
        .tls_text("key", key.to_str().unwrap());
    proxy
        .adopt(&config.with_services([service, added.clone()]))
        .await;
    visit(&added).await;
}

#[tokio::test]
async fn a_file_outside_of_the_sandbox_is_refused_by_a_reload_and_named() {
    let elsewhere = tempfile::tempdir().unwrap();
    let scene = Scene::new(Behaviour::Identify).await;
    let cert = elsewhere.path().join("c.crt");
    let key = elsewhere.path().join("c.key");
    std::fs::copy(&scene.files.cert, &cert).unwrap();
    std::fs::copy(&scene.files.key, &key).unwrap();
    let changed = scene
        .service
        .clone()
        .tls_text("cert", cert.to_str().unwrap())
        .tls_text("key", key.to_str().unwrap());
    let wanted = scene.config.with_services([changed]);
    let (refused, _) = scene.proxy.offer_in_vain(&wanted).await;
    assert_eq!(refused["reason"], "sandboxed", "{refused}");
    let expected = format!("services.{NAME}.tls.key: reading {}", key.display());
    assert!(
        refused["detail"].as_str().unwrap().contains(&expected),
        "{refused}"
    );
    visit(&scene.service).await;
}

#[tokio::test]
async fn a_link_that_comes_to_lead_outside_is_told_and_the_last_good_goes_on() {
    let elsewhere = tempfile::tempdir().unwrap();
    let scene = Scene::new(Behaviour::Identify).await;
    let renewed = scene.pki.client(NAME);
    let target = elsewhere.path().join("tls.crt");
    std::fs::write(&target, renewed.chain_pem()).unwrap();
    let aside = scene.files.cert.with_extension("new");
    symlink(&target, &aside).unwrap();
    std::fs::rename(&aside, &scene.files.cert).unwrap();
    let problem = until("the refusal", async || {
        let service = scene.proxy.service(NAME).await;
        let refused = service["identity"]["refused"].clone();
        (!refused.is_null()).then_some(refused)
    })
    .await;
    assert_eq!(problem["reason"], "sandboxed", "{problem}");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains(target.to_str().unwrap()), "{detail}");
    assert!(
        problem["hint"]
            .as_str()
            .unwrap()
            .contains("restart tlsward"),
        "{problem}"
    );
    assert_eq!(visit(&scene.service).await.serial, scene.client.serial());
}

#[tokio::test]
async fn check_tells_what_a_start_would_be_allowed() {
    let pki = Pki::new();
    let files = pki.identity_files(NAME, &pki.client(NAME));
    let upstream = address();
    let service = Service::new(NAME, upstream, &pki).identity(&files);
    let config = Config::of([service.clone()]);
    let file = pki.write("config.toml", config.render());
    let file = file.to_str().unwrap();
    let output = tlsward(["check", "-c", file]).await;
    let text = String::from_utf8(output.stdout).unwrap();
    let dial = format!("  dial port 53, {}\n", upstream.port());
    assert!(
        text.contains("\nsandbox: tlsward run may\n") && text.contains(&dial),
        "{text}"
    );
    let output = tlsward(["check", "--json", "-c", file]).await;
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    let ports = json["sandbox"]["bind_ports"].as_str().unwrap();
    assert!(
        ports.contains(&service.address().port().to_string()),
        "{json}"
    );

    pki.write("config.toml", config.top(ANY_PORTS).render());
    let output = tlsward(["check", "-c", file]).await;
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains("  dial port any (sandbox.connect_ports)\n"),
        "{text}"
    );
}

#[tokio::test]
async fn no_sandbox_is_said_and_a_directory_that_cannot_be_held_is_warned_of() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let files = pki.identity_files(NAME, &pki.client(NAME));
    let service = Service::new(NAME, upstream.address(), &pki).identity(&files);
    let missing = service
        .clone()
        .named("missing")
        .listening_on(address())
        .tls_text("ca", "/etc/no-such-directory/ca.crt");
    let config = Config::of([service.clone(), missing]);
    let proxy = Proxy::start_degraded(&pki, &config).await;
    let left_out = sandbox(&proxy).await["left_out"].to_string();
    assert!(
        left_out.contains("services.missing.tls.ca: /etc/no-such-directory"),
        "{left_out}"
    );

    let mut command = clean_command();
    command
        .args(["run", "--no-sandbox", "-c"])
        .arg(proxy.config_file());
    // Its addresses are free when it has ended.
    proxy.stop().await;
    let mut child = command.spawn().unwrap();
    let admin = config.admin_address().to_owned();
    let state = until("the second process", async || {
        let answer = crate::support::proxy::http(&admin, "GET", "/status", "")
            .await
            .ok()?;
        let status: Value = serde_json::from_str(&answer.body).ok()?;
        Some(status["sandbox"].clone())
    })
    .await;
    assert_eq!(
        (&state["state"], &state["why"]),
        (&"off".into(), &"--no-sandbox".into()),
        "{state}"
    );
    child.kill().await.unwrap();
}
