//! The admin endpoints.

use serde_json::Value;

use crate::support::net::address;
use crate::support::pki::{IdentityFiles, Pki};
use crate::support::proxy::{Config, Proxy, Service, http, quoted, series};
use crate::support::scene::{NAME, Scene, visit};
use crate::support::upstream::{Behaviour, Upstream};

#[tokio::test]
async fn livez_readyz_metrics_and_status_answer() {
    let scene = Scene::new(Behaviour::Identify).await;
    for path in ["/livez", "/readyz", "/metrics", "/status"] {
        let answer = scene.proxy.get(path).await;
        assert_eq!(answer.code, 200, "{path}: {answer:?}");
        assert!(!answer.body.is_empty() || path == "/livez", "{path}");
    }
    assert_eq!(scene.proxy.get("/no-such-page").await.code, 404);
}

#[tokio::test]
async fn readyz_verbose_names_the_service_that_is_not_ready_and_why() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let missing = IdentityFiles {
        cert: pki.path("missing.crt"),
        key: pki.path("missing.key"),
    };
    let present = pki.identity_files("fine", &pki.client("fine"));
    let services = [("waits", &missing), ("fine", &present)]
        .map(|(name, files)| Service::new(name, upstream.address(), &pki).identity(files));
    let proxy = Proxy::start_degraded(&pki, &Config::of(services)).await;
    proxy
        .wait_for_service("fine", "the other service", |service| {
            (service["state"] == "ready").then_some(())
        })
        .await;
    let answer = proxy.get("/readyz?verbose").await;
    assert_eq!(answer.code, 503);
    let detail: Value = serde_json::from_str(&answer.body).expect("JSON");
    let text = detail.to_string();
    assert!(
        text.contains("waits") && text.contains("identity_missing"),
        "{detail:#}"
    );
}

#[tokio::test]
async fn status_tells_who_we_are_whom_we_trust_and_what_passed() {
    let scene = Scene::new(Behaviour::Identify).await;
    visit(&scene.service).await;
    scene.proxy.counter_becomes(NAME, "ended_ok", 1).await;
    let status = scene.proxy.status().await;
    assert_eq!(status["state"], "ready");
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(status["config"]["generation"], 1);
    let service = scene.proxy.service(NAME).await;
    assert_eq!(service["state"], "ready");
    assert_eq!(service["listen"], scene.service.listen);
    assert_eq!(service["upstream"][0], scene.upstream.address().to_string());
    assert_eq!(service["verify"], "full");
    let leaf = &service["identity"]["chain"][0];
    assert_eq!(leaf["serial"], scene.client.serial());
    assert!(
        leaf["subject"]
            .as_str()
            .is_some_and(|subject| subject.contains(NAME)),
        "{leaf}"
    );
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &scene.client.chain[0]);
    let hex: String = digest
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert_eq!(leaf["fingerprint"], hex);
    let anchor = &service["trust"]["anchors"][0];
    assert!(
        anchor["subject"]
            .as_str()
            .is_some_and(|subject| subject.contains("Test Root"))
    );
    assert_eq!(scene.proxy.counter(NAME, "bytes_up").await, 4);
}

#[tokio::test]
async fn metrics_count_what_status_counts() {
    let scene = Scene::new(Behaviour::Identify).await;
    visit(&scene.service).await;
    visit(&scene.service).await;
    scene.proxy.counter_becomes(NAME, "ended_ok", 2).await;
    let (_open, _) = scene.introduce().await;
    let text = scene.proxy.get("/metrics").await.body;
    let value = |name: &str, labels: &[(&str, &str)]| {
        let labels = [&[("service", NAME)], labels].concat();
        series(&text, name, &labels).iter().sum::<f64>()
    };
    assert_eq!(value("tlsward_connections_open", &[]), 1.0);
    assert_eq!(
        value("tlsward_connections_total", &[("outcome", "ok")]),
        2.0
    );
    assert_eq!(value("tlsward_bytes_total", &[("direction", "up")]), 8.0);
    assert_eq!(value("tlsward_handshakes_total", &[("kind", "full")]), 1.0);
    assert_eq!(
        value("tlsward_handshakes_total", &[("kind", "resumed")]),
        2.0
    );
    assert_eq!(value("tlsward_handshake_seconds_count", &[]), 3.0);
    assert_eq!(value("tlsward_service_ready", &[]), 1.0);
    assert_eq!(value("tlsward_identity_generation", &[]), 1.0);
    let service = scene.proxy.service(NAME).await;
    let not_after = service["identity"]["chain"][0]["not_after"].as_f64();
    assert_eq!(
        Some(value("tlsward_identity_not_after_seconds", &[])),
        not_after
    );
}

#[tokio::test]
async fn a_state_changing_request_from_another_site_is_refused() {
    let scene = Scene::new(Behaviour::Identify).await;
    let admin = scene.config.admin_address();
    for headers in [
        "Origin: https://evil.test\r\n",
        "Sec-Fetch-Site: cross-site\r\n",
        "Origin: null\r\n",
    ] {
        let answer = http(admin, "POST", "/reload", headers).await.unwrap();
        assert_eq!(answer.code, 403, "{headers}{answer:?}");
    }
    let labels = [("trigger", "request")];
    assert_eq!(
        scene.proxy.metric("tlsward_reloads_total", &labels).await,
        0.0
    );
    assert_eq!(
        scene.proxy.get("/reload").await.code,
        405,
        "a GET changes nothing"
    );
    assert_eq!(scene.proxy.reload().await.code, 200, "and a tool is served");
    assert!(scene.proxy.metric("tlsward_reloads_total", &labels).await >= 1.0);
}

#[tokio::test]
async fn no_answer_and_no_log_line_holds_key_material() {
    let scene = Scene::new(Behaviour::Identify).await;
    visit(&scene.service).await;
    let key = scene.client.key_pem();
    // A key that is refused is no reason to show it.
    let half = key.len() / 2;
    std::fs::write(&scene.files.key, &key[..half]).unwrap();
    scene.proxy.reload().await;
    let mut said: Vec<String> = scene
        .proxy
        .log()
        .all()
        .into_iter()
        .map(|line| line.raw)
        .collect();
    for path in ["/", "/livez", "/readyz?verbose", "/metrics", "/status"] {
        said.push(scene.proxy.get(path).await.body);
    }
    said.push(scene.proxy.reload().await.body);
    let secret: Vec<_> = key.lines().filter(|line| !line.starts_with('-')).collect();
    assert!(!secret.is_empty());
    for text in &said {
        for line in &secret {
            assert!(!text.contains(line), "key material in: {text}");
        }
    }
}

#[tokio::test]
async fn the_admin_endpoint_can_be_a_unix_socket() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let files = pki.identity_files(NAME, &pki.client(NAME));
    let service = Service::new(NAME, upstream.address(), &pki).identity(&files);
    let admin = format!("unix:{}", pki.path("admin.sock").display());
    let proxy = Proxy::start(&pki, &Config::of([service]).admin(&admin)).await;
    assert_eq!(proxy.get("/livez").await.code, 200);
    assert_eq!(proxy.reload().await.code, 200);
}

#[tokio::test]
async fn public_listen_has_health_and_metrics_and_nothing_else() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let files = pki.identity_files(NAME, &pki.client(NAME));
    let service = Service::new(NAME, upstream.address(), &pki).identity(&files);
    let public = address().to_string();
    let config = Config::of([service]).admin_key("public_listen", &quoted(&public));
    let _proxy = Proxy::start(&pki, &config).await;
    for path in ["/livez", "/readyz", "/metrics"] {
        assert_eq!(
            http(&public, "GET", path, "").await.unwrap().code,
            200,
            "{path}"
        );
    }
    for (method, path) in [("GET", "/status"), ("POST", "/reload")] {
        assert_eq!(
            http(&public, method, path, "").await.unwrap().code,
            404,
            "{path}"
        );
    }
}

#[tokio::test]
async fn the_mode_of_the_admin_socket_changes_with_the_configuration() {
    use std::os::unix::fs::PermissionsExt as _;
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let files = pki.identity_files(NAME, &pki.client(NAME));
    let service = Service::new(NAME, upstream.address(), &pki).identity(&files);
    let path = pki.path("admin.sock");
    let config = Config::of([service]).admin(&format!("unix:{}", path.display()));
    let proxy = Proxy::start(&pki, &config).await;
    let text = config.render();
    let wanted = text.replace("admin.sock", "admin.sock?mode=0640");
    proxy.write_config_text(&wanted);
    let answer = proxy.reload().await;
    assert_eq!(answer.code, 200, "{answer:?}");
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o640);
}
