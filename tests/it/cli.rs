//! The commands, their exit codes and what they print.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Output;

use serde_json::Value;
use tokio::net::TcpListener;

use crate::support::net::address;
use crate::support::pki::{Ca, IdentityFiles, Pki};
use crate::support::proxy::{Config, Proxy, Service, clean_command, tlsward};
use crate::support::scene::{NAME, Scene, visit};
use crate::support::upstream::{Behaviour, Upstream};
use crate::support::within;

/// `tlsward COMMAND… -c FILE`.
async fn with_file(command: &[&str], file: &Path) -> Output {
    let mut arguments: Vec<&OsStr> = command.iter().map(OsStr::new).collect();
    arguments.push("-c".as_ref());
    arguments.push(file.as_os_str());
    tlsward(arguments).await
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Both streams: which one a message goes to is not what these tests are about.
fn all_said(output: &Output) -> String {
    stdout(output) + &String::from_utf8_lossy(&output.stderr)
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("not JSON: {error}: {}", all_said(output)))
}

/// A configuration file that is fine, with an upstream that answers.
async fn fine() -> (Pki, Upstream, Config, std::path::PathBuf) {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let files = pki.identity_files(NAME, &pki.client(NAME));
    let service = Service::new(NAME, upstream.address(), &pki).identity(&files);
    let config = Config::of([service]);
    let file = pki.write("config.toml", config.render());
    (pki, upstream, config, file)
}

// === mistakes ===

#[tokio::test]
async fn every_mistake_is_reported_at_once_with_its_place_and_the_exit_code_is_2() {
    let pki = Pki::new();
    let file = pki.write(
        "config.toml",
        r#"[services.billing]
lisen = "127.0.0.1:7001"
upstream = "billing.test"

[services.orders]
listen = "127.0.0.1:7002"
upstream = "orders.test:8443"
idle_timeout = "5 parsecs"

[services.orders.tls]
verify = "maybe"
"#,
    );
    for command in ["run", "check"] {
        let output = with_file(&[command], &file).await;
        assert_eq!(output.status.code(), Some(2), "{command}");
        let said = all_said(&output);
        for part in [
            "config.toml:2:",
            "lisen",
            "listen",
            "config.toml:3:",
            "port",
            "config.toml:8:",
            "parsecs",
            "config.toml:11:",
            "maybe",
        ] {
            assert!(said.contains(part), "{command}: no {part:?} in:\n{said}");
        }
    }
}

#[tokio::test]
async fn a_file_that_is_not_there_is_named_and_the_exit_code_is_2() {
    let pki = Pki::new();
    let output = with_file(&["run"], &pki.path("nowhere.toml")).await;
    assert_eq!(output.status.code(), Some(2));
    assert!(
        all_said(&output).contains("nowhere.toml"),
        "{}",
        all_said(&output)
    );
}

#[tokio::test]
async fn what_is_no_configuration_file_is_said_with_a_fix_and_the_exit_code_is_2() {
    let pki = Pki::new();
    let directory = pki.path("directory.toml");
    std::fs::create_dir(&directory).unwrap();
    let not_text = pki.write("binary.toml", "");
    std::fs::write(&not_text, b"\xff\xfe").unwrap();
    for (file, words) in [
        (pki.path("nowhere.toml"), "does not exist"),
        (directory, "is a directory"),
        (not_text, "is not UTF-8"),
        (pki.write("empty.toml", "\n"), "is empty"),
    ] {
        for command in ["run", "check"] {
            let output = with_file(&[command], &file).await;
            let said = all_said(&output);
            assert_eq!(output.status.code(), Some(2), "{command}: {said}");
            assert!(said.contains(words) && said.contains("fix: "), "{said}");
        }
    }
}

#[tokio::test]
async fn a_start_that_is_refused_writes_nothing_but_json_to_a_json_log() {
    let pki = Pki::new();
    let file = pki.write("config.toml", "lisen = 1\nworkers = true\n");
    let output = with_file(&["run", "--log-format", "json"], &file).await;
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    for line in said.lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"));
        assert!(line["message"].is_string(), "{line}");
    }
    assert!(
        said.contains("config.toml:1:") && said.contains("config.toml:2:"),
        "{said}"
    );
}

#[tokio::test]
async fn output_that_cannot_be_written_is_exit_code_1_and_no_panic() {
    let (_pki, _upstream, _, file) = fine().await;
    let file = file.to_str().unwrap();
    for arguments in [
        &["schema"][..],
        &["completions", "bash"],
        &["check", "-c", file],
    ] {
        let full = std::fs::File::options()
            .write(true)
            .open("/dev/full")
            .unwrap();
        let output = clean_command()
            .args(arguments)
            .stdout(full)
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap()
            .wait_with_output()
            .await
            .unwrap();
        let said = all_said(&output);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
        assert!(said.starts_with("tlsward: standard output: "), "{said}");
    }
}

#[tokio::test]
async fn a_reader_that_has_gone_is_no_failure() {
    for arguments in [&["schema"][..], &["completions", "bash"], &["--help"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = clean_command()
            .args(arguments)
            .stdout(writer)
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap()
            .wait_with_output()
            .await
            .unwrap();
        let said = all_said(&output);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {said}");
        assert_eq!(said, "", "{arguments:?}");
    }
}

#[tokio::test]
async fn wrong_usage_is_exit_code_2() {
    for arguments in [&["frobnicate"][..], &["run", "--no-such-flag"], &["probe"]] {
        let output = tlsward(arguments).await;
        assert_eq!(
            output.status.code(),
            Some(2),
            "{arguments:?}: {}",
            all_said(&output)
        );
    }
}

#[tokio::test]
async fn a_service_with_neither_identity_nor_client_auth_false_is_refused() {
    let pki = Pki::new();
    let service = Service::new(NAME, address(), &pki);
    let file = pki.write("config.toml", Config::of([service]).render());
    let output = with_file(&["check"], &file).await;
    assert_eq!(output.status.code(), Some(2));
    assert!(
        all_said(&output).contains("client_auth"),
        "{}",
        all_said(&output)
    );
}

// === run ===

#[tokio::test]
async fn a_port_in_use_at_start_is_exit_code_1_and_is_named() {
    let (pki, upstream, ..) = fine().await;
    let taken = TcpListener::bind(address()).await.unwrap();
    let taken = taken.local_addr().map(|address| (taken, address)).unwrap();
    let files = pki.identity_files("other", &pki.client("other"));
    let service = Service::new("other", upstream.address(), &pki)
        .identity(&files)
        .listening_on(taken.1);
    let file = pki.write("config.toml", Config::of([service]).render());
    let output = with_file(&["run"], &file).await;
    assert_eq!(output.status.code(), Some(1), "{}", all_said(&output));
    assert!(
        all_said(&output).contains(&taken.1.to_string()),
        "{}",
        all_said(&output)
    );
    assert!(
        all_said(&output).contains("bind_failed"),
        "{}",
        all_said(&output)
    );
}

#[tokio::test]
async fn strict_turns_missing_files_at_start_into_exit_code_1() {
    let (pki, upstream, ..) = fine().await;
    let missing = IdentityFiles {
        cert: pki.path("missing.crt"),
        key: pki.path("missing.key"),
    };
    let service = Service::new("other", upstream.address(), &pki).identity(&missing);
    let file = pki.write("config.toml", Config::of([service]).render());
    let output = with_file(&["run", "--strict"], &file).await;
    assert_eq!(output.status.code(), Some(1), "{}", all_said(&output));
    assert!(
        all_said(&output).contains("missing.crt"),
        "{}",
        all_said(&output)
    );
}

#[tokio::test]
async fn environment_variables_override_the_defaults_table() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let issued = pki.client("from-the-environment");
    let files = pki.identity_files("from-the-environment", &issued);
    let service = Service::new(NAME, upstream.address(), &pki).without_tls("ca");
    let mut command = clean_command();
    command
        .env("TLSWARD_TLS_CA", pki.ca_file())
        .env("TLSWARD_TLS_CERT", &files.cert)
        .env("TLSWARD_TLS_KEY", &files.key);
    let mut proxy = Proxy::launch(command, &pki, &Config::of([service.clone()]));
    proxy.wait_until_ready().await;
    assert_eq!(visit(&service).await.serial, issued.serial());
}

#[tokio::test]
async fn variables_in_strings_are_expanded() {
    let (pki, upstream, ..) = fine().await;
    let files = pki.identity_files("expanded", &pki.client("expanded"));
    let service = Service::new("expanded", upstream.address(), &pki)
        .identity(&files)
        .text("connect_timeout", "${PATIENCE:-9s}")
        .tls_text("cert", "${CERTS}/tls.crt");
    let mut command = clean_command();
    command.env("CERTS", files.cert.parent().unwrap());
    let mut proxy = Proxy::launch(command, &pki, &Config::of([service.clone()]));
    proxy.wait_until_ready().await;
    assert_eq!(visit(&service).await.common_name, "expanded");
}

// === check ===

#[tokio::test]
async fn check_shows_service_listener_upstream_and_certificate() {
    let (_pki, upstream, config, file) = fine().await;
    let output = with_file(&["check"], &file).await;
    assert_eq!(output.status.code(), Some(0), "{}", all_said(&output));
    let said = stdout(&output);
    let listen = config.services()[0].listen.clone();
    for part in [NAME, &listen, &upstream.address().to_string(), "Test Root"] {
        assert!(said.contains(part), "no {part:?} in:\n{said}");
    }
    assert!(!said.contains('\u{1b}'), "colour only on a terminal");
    let output = with_file(&["check", "--json"], &file).await;
    assert!(json(&output).to_string().contains(NAME));
    assert!(upstream.peers().is_empty(), "check dials nobody");
}

#[tokio::test]
async fn check_says_what_the_environment_sets() {
    let (_pki, _upstream, _, file) = fine().await;
    let output = clean_command()
        .args(["check", "-c"])
        .arg(&file)
        .env("TLSWARD_TLS_VERIFY_DEPTH", "2")
        .output()
        .await
        .unwrap();
    let said = stdout(&output);
    let words = format!("\nTLSWARD_TLS_VERIFY_DEPTH sets tls.verify_depth of: {NAME}\n");
    assert!(said.contains(&words), "{said}");
    let said = stdout(&with_file(&["check"], &file).await);
    assert!(!said.contains("TLSWARD_"), "{said}");
}

#[tokio::test]
async fn check_finds_a_certificate_that_would_not_load() {
    let (pki, upstream, ..) = fine().await;
    let expired = pki.root.client("old").expired().issue();
    let files = pki.identity_files("old", &expired);
    let service = Service::new("old", upstream.address(), &pki).identity(&files);
    let file = pki.write("config.toml", Config::of([service]).render());
    let output = with_file(&["check"], &file).await;
    assert_ne!(output.status.code(), Some(0));
    assert!(
        all_said(&output).contains("expired"),
        "{}",
        all_said(&output)
    );
}

// === probe ===

#[tokio::test]
async fn probe_says_that_the_upstream_accepted_us() {
    let (_pki, upstream, _, file) = fine().await;
    let output = with_file(&["probe", NAME], &file).await;
    assert_eq!(output.status.code(), Some(0), "{}", all_said(&output));
    let said = stdout(&output);
    for part in [
        NAME,
        &upstream.address().to_string(),
        "1.3",
        "X25519MLKEM768",
        "accepted",
    ] {
        assert!(said.contains(part), "no {part:?} in:\n{said}");
    }
    let output = with_file(&["probe", "--all", "--json"], &file).await;
    assert!(json(&output).to_string().contains("accepted"));
}

#[tokio::test]
async fn probe_waits_out_the_late_rejection_and_says_how_to_mend_it() {
    let (pki, mut upstream, _, file) = fine().await;
    let other = Ca::root("Other Root");
    upstream.trust_clients_of(&[&other], &pki.server());
    let output = with_file(&["probe", NAME], &file).await;
    assert_eq!(output.status.code(), Some(1), "{}", all_said(&output));
    let said = all_said(&output);
    for part in [
        "client_certificate_rejected",
        "unknown_ca",
        "refused our client certificate",
    ] {
        assert!(said.contains(part), "no {part:?} in:\n{said}");
    }
}

#[tokio::test]
async fn probe_names_the_server_certificate_that_it_does_not_trust() {
    let (_pki, upstream, _, file) = fine().await;
    upstream.present(&Ca::root("Stranger Root").server().issue());
    let output = with_file(&["probe", NAME], &file).await;
    assert_eq!(output.status.code(), Some(1), "{}", all_said(&output));
    let said = all_said(&output);
    for part in ["untrusted_issuer", "Stranger Root"] {
        assert!(said.contains(part), "no {part:?} in:\n{said}");
    }
}

// === status and reload ===

#[tokio::test]
async fn status_and_reload_ask_the_running_process() {
    let scene = Scene::new(Behaviour::Identify).await;
    let file = scene.proxy.config_file();
    let output = with_file(&["status"], file).await;
    assert_eq!(output.status.code(), Some(0), "{}", all_said(&output));
    let said = stdout(&output);
    assert!(said.contains(NAME) && said.contains("ready"), "{said}");
    let output = with_file(&["status", "--json"], file).await;
    assert_eq!(json(&output)["state"], "ready");

    let new = scene.pki.client(NAME);
    scene.pki.identity_files(NAME, &new);
    let output = with_file(&["reload"], file).await;
    assert_eq!(output.status.code(), Some(0), "{}", all_said(&output));
    assert_eq!(visit(&scene.service).await.serial, new.serial());

    std::fs::write(file, "this is = not = toml").unwrap();
    let output = with_file(
        &["reload", "--admin", scene.config.admin_address()],
        Path::new("config.toml"),
    )
    .await;
    assert_ne!(
        output.status.code(),
        Some(0),
        "a refused reload is a failure"
    );
    visit(&scene.service).await;
}

#[tokio::test]
async fn a_reload_names_the_services_whose_certificate_was_refused() {
    let scene = Scene::new(Behaviour::Identify).await;
    let expired = scene.pki.root.client(NAME).expired().issue();
    scene.pki.identity_files(NAME, &expired);
    let output = with_file(&["reload"], scene.proxy.config_file()).await;
    let said = all_said(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let stays = format!("the last good one stays in use for: {NAME}\n");
    for part in [": expired: ", &stays, "fix: renew"] {
        assert!(said.contains(part), "no {part:?} in:\n{said}");
    }
    let output = with_file(&["reload", "--json"], scene.proxy.config_file()).await;
    let told = json(&output);
    let refused = told["credentials"]
        .as_array()
        .unwrap()
        .iter()
        .find(|credential| credential["result"] == "expired")
        .expect("the identity");
    assert_eq!(refused["services"][0], NAME);
    assert_eq!(refused["refused"]["last_good_in_use"], true);
    visit(&scene.service).await;
}

#[tokio::test]
async fn stop_ends_the_running_process_and_waits_for_its_end() {
    let mut scene = Scene::new(Behaviour::Identify).await;
    let file = scene.proxy.config_file().to_owned();
    let output = with_file(&["stop", "--wait"], &file).await;
    assert_eq!(output.status.code(), Some(0), "{}", all_said(&output));
    let said = stdout(&output);
    assert!(said.starts_with("stopping: 0 open connections"), "{said}");
    assert!(std::net::TcpStream::connect(scene.config.admin_address()).is_err());
    assert_eq!(scene.proxy.exit().await.code(), Some(0));
    let output = with_file(&["stop"], &file).await;
    assert_eq!(output.status.code(), Some(1), "{}", all_said(&output));
}

#[tokio::test]
async fn stop_returns_with_what_is_still_open_unless_told_to_wait() {
    let scene = Scene::new(Behaviour::Identify).await;
    let (mut caller, _) = scene.introduce().await;
    let output = with_file(&["stop", "--json"], scene.proxy.config_file()).await;
    assert_eq!(output.status.code(), Some(0), "{}", all_said(&output));
    let told = json(&output);
    assert_eq!(told["outcome"], "stopping");
    assert_eq!(told["connections_open"], 1);
    assert_eq!(told["shutdown_timeout_seconds"], 30.0);
    caller.echo(b"still here").await;
}

#[tokio::test]
async fn status_of_nobody_says_where_it_asked() {
    let (_pki, _upstream, config, file) = fine().await;
    let output = with_file(&["status"], &file).await;
    assert_eq!(output.status.code(), Some(1), "{}", all_said(&output));
    let said = all_said(&output);
    assert!(said.contains(config.admin_address()), "{said}");
}

// === rbac ===

/// As [`with_file`], with nobody there who could be asked.
async fn rbac_offline(arguments: &[&str], text: &str) -> Output {
    let pki = Pki::new();
    let file = pki.write("config.toml", text);
    let command = [&["rbac", "--offline"], arguments].concat();
    with_file(&command, &file).await
}

#[tokio::test]
async fn rbac_says_offline_what_the_file_alone_says_even_where_annotations_must_say_the_rest() {
    // The certificate, and whether to verify, would come from annotations.
    let text = r#"
[services.billing]
listen = "127.0.0.1:7001"
upstream = { service = "billing", namespace = "payments", port = "https" }
tls.ca = { secret = "shared/internal-ca" }

[services.orders]
listen = "127.0.0.1:7002"
upstream = { service = "orders", namespace = "payments", port = 8443 }
"#;
    let arguments = ["--namespace", "home", "--service-account", "proxy"];
    let output = rbac_offline(&arguments, text).await;
    assert_eq!(output.status.code(), Some(0), "{}", all_said(&output));
    let said = stdout(&output);
    for part in [
        "# NOTE: made offline",
        "kind: Role\nmetadata:\n  name: proxy-of-home\n  namespace: shared\n",
        "      - internal-ca\n    verbs: [get, list, watch]\n",
        "      - billing\n      # upstream of orders\n      - orders\n",
        "  - kind: ServiceAccount\n    name: proxy\n    namespace: home\n",
    ] {
        assert!(said.contains(part), "no {part:?} in:\n{said}");
    }
    let output = rbac_offline(&[&arguments[..], &["--json"]].concat(), text).await;
    let list = json(&output);
    assert_eq!(list["kind"], "List");
    let items = list["items"].as_array().unwrap();
    let places = items.iter().map(|it| {
        let text = |place| it.pointer(place).and_then(Value::as_str).unwrap();
        (text("/kind"), text("/metadata/namespace"))
    });
    assert_eq!(
        places.collect::<Vec<_>>(),
        [
            ("Role", "payments"),
            ("RoleBinding", "payments"),
            ("Role", "shared"),
            ("RoleBinding", "shared"),
        ]
    );
}

#[tokio::test]
async fn rbac_refuses_what_check_refuses_and_wants_to_know_whose_rights_they_are() {
    let output = rbac_offline(&[], "[services.billing]\nlisen = 1\n").await;
    assert_eq!(output.status.code(), Some(2), "{}", all_said(&output));
    assert!(
        all_said(&output).contains("listen"),
        "{}",
        all_said(&output)
    );
    let text = "[services.a]\nlisten = \"127.0.0.1:7001\"\nupstream = \"a.test:1\"\n\
        tls.secret = \"payments/a\"\ntls.verify = \"none\"\n";
    let output = rbac_offline(&[], text).await;
    assert_eq!(output.status.code(), Some(2), "{}", all_said(&output));
    assert!(
        all_said(&output).contains("--namespace"),
        "{}",
        all_said(&output)
    );
}

#[tokio::test]
async fn rbac_of_a_file_without_kubernetes_prints_no_role() {
    let (_pki, _upstream, _, file) = fine().await;
    let output = with_file(&["rbac"], &file).await;
    assert_eq!(output.status.code(), Some(0), "{}", all_said(&output));
    let said = stdout(&output);
    assert!(
        said.contains("needs nothing of the Kubernetes API"),
        "{said}"
    );
    assert!(said.lines().all(|line| line.starts_with('#')), "{said}");
}

// === what is printed for others ===

#[tokio::test]
async fn schema_is_a_json_schema_that_takes_a_real_file() {
    let output = tlsward(["schema"]).await;
    assert_eq!(output.status.code(), Some(0));
    let schema = json(&output);
    assert!(schema["$schema"].is_string(), "{schema:#}");
    let validator = jsonschema::validator_for(&schema).expect("a valid schema");
    let (_pki, _upstream, config, _) = fine().await;
    let document: Value = toml::from_str(&config.render()).unwrap();
    assert!(validator.is_valid(&document));
    let mistaken = config.render().replace("listen", "lisen");
    let document: Value = toml::from_str(&mistaken).unwrap();
    assert!(!validator.is_valid(&document));
}

#[tokio::test]
async fn completions_are_written_for_the_usual_shells() {
    for shell in ["bash", "zsh", "fish"] {
        let output = tlsward(["completions", shell]).await;
        assert_eq!(output.status.code(), Some(0), "{shell}");
        assert!(stdout(&output).contains("tlsward"), "{shell}");
    }
}

#[tokio::test]
async fn version_and_help_are_exit_code_0() {
    let output = tlsward(["--version"]).await;
    assert_eq!(output.status.code(), Some(0));
    assert!(stdout(&output).contains(env!("CARGO_PKG_VERSION")));
    let output = tlsward(["--help"]).await;
    assert_eq!(output.status.code(), Some(0));
    for command in [
        "run", "check", "probe", "reload", "status", "stop", "rbac", "demo", "schema",
    ] {
        assert!(stdout(&output).contains(command), "{command}");
    }
}

// === demo ===

#[tokio::test]
async fn the_demo_shows_all_that_it_promises_and_leaves_its_files_behind() {
    let home = tempfile::tempdir().unwrap();
    let output = within(
        "the demo to end",
        clean_command()
            .arg("demo")
            .current_dir(home.path())
            .output(),
    )
    .await
    .expect("tlsward can be started");
    let said = stdout(&output);
    assert_eq!(output.status.code(), Some(0), "{}", all_said(&output));
    for part in [
        "10:02",
        "10:03",
        "untrusted_issuer",
        "bad_pem",
        "What to try next",
    ] {
        assert!(said.contains(part), "no {part:?} in:\n{said}");
    }
    assert!(!said.contains('\u{1b}'), "colour only on a terminal");
    for file in ["config.toml", "certs/ca.crt", "certs/client/tls.crt"] {
        assert!(
            home.path().join("tlsward-demo").join(file).is_file(),
            "{file}"
        );
    }
    let file = home.path().join("tlsward-demo/config.toml");
    let output = with_file(&["check"], &file).await;
    assert_eq!(output.status.code(), Some(0), "{}", all_said(&output));
}
