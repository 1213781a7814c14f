use std::fs;
use std::path::Path;

use rustls::ServerConfig;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::tls::test_pki::{Ca, Leaf, date, provider};

/// Valid whenever the test runs.
fn ca(name: &str) -> Ca {
    Ca::with(name, |params| {
        params.not_before = date(0);
        params.not_after = date(4_000_000_000);
    })
}

fn server_leaf(ca: &Ca) -> Leaf {
    ca.server_with(|params| {
        params.not_before = date(0);
        params.not_after = date(4_000_000_000);
    })
}

fn acceptor(leaf: &Leaf) -> TlsAcceptor {
    let chain = vec![CertificateDer::from_pem_slice(leaf.pem().as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(leaf.key_pem().as_bytes()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

/// A kubeconfig with two contexts: `one`, which is the current one, and `two`.
fn kubeconfig(dir: &Path, url: &str, cluster: &str, user: &str) -> Kubernetes {
    let text = format!(
        "apiVersion: v1
kind: Config
current-context: one
clusters:
- name: here
  cluster: {{ server: \"{url}\", {cluster} }}
- name: there
  cluster: {{ server: \"https://there.example:6443\" }}
contexts:
- name: one
  context: {{ cluster: here, user: me }}
- name: two
  context: {{ cluster: there, user: me }}
users:
- name: me
  user: {{ {user} }}
"
    );
    let path = dir.join("kubeconfig");
    fs::write(&path, text).unwrap();
    Kubernetes {
        kubeconfig: Some(path),
        ..Kubernetes::default()
    }
}

async fn find(settings: &Kubernetes) -> Result<Server, String> {
    Server::find(settings, &Arc::new(provider())).await
}

async fn refused(settings: &Kubernetes) -> String {
    find(settings).await.expect_err("it cannot be used")
}

#[tokio::test]
async fn the_server_and_who_we_are_come_from_the_kubeconfig_and_its_context() {
    let dir = TempDir::new().unwrap();
    let settings = kubeconfig(
        dir.path(),
        "http://127.0.0.1:8001/k8s/c1/",
        "",
        "token: t0ken",
    );
    let server = find(&settings).await.unwrap();
    assert_eq!(server.name, "http://127.0.0.1:8001/k8s/c1");
    let target = server.target("/api/v1/secrets?a=b");
    assert_eq!(target, "/k8s/c1/api/v1/secrets?a=b");
    let headers = server.headers().await.unwrap();
    assert_eq!(headers["authorization"], "Bearer t0ken");
    assert!(headers["authorization"].is_sensitive());
    assert_eq!(headers["host"], "127.0.0.1:8001");
    assert_eq!(headers["accept"], "application/json");
    assert!(
        headers["user-agent"]
            .to_str()
            .unwrap()
            .starts_with("tlsward/")
    );

    let settings = Kubernetes {
        context: Some("two".into()),
        ..settings
    };
    assert_eq!(
        find(&settings).await.unwrap().name,
        "https://there.example:6443"
    );
}

#[tokio::test]
async fn what_is_wrong_with_a_kubeconfig_is_said_with_its_place() {
    let dir = TempDir::new().unwrap();
    let missing = Kubernetes {
        kubeconfig: Some(dir.path().join("missing")),
        ..Kubernetes::default()
    };
    let why = refused(&missing).await;
    assert!(
        why.contains("missing") && why.contains("No such file"),
        "{why}"
    );

    let settings = kubeconfig(dir.path(), "https://127.0.0.1:1", "", "");
    let unknown = Kubernetes {
        context: Some("three".into()),
        ..settings
    };
    let why = refused(&unknown).await;
    assert!(
        why.contains("kubeconfig: ") && why.contains("three"),
        "{why}"
    );

    for (url, cluster, user, expected) in [
        (
            "http://10.0.0.1:8080",
            "",
            "",
            "without https Secrets would pass in the clear",
        ),
        ("http://api.example", "", "", "without https"),
        (
            "https://127.0.0.1:1",
            "proxy-url: \"http://proxy:3128\"",
            "",
            "proxy-url http://proxy:3128",
        ),
        (
            "https://127.0.0.1:1",
            "",
            "tokenFile: /nowhere/token",
            "/nowhere/token",
        ),
        (
            "https://127.0.0.1:1",
            "",
            "client-key: /nowhere/key",
            "client-key /nowhere/key",
        ),
        (
            "https://127.0.0.1:1",
            "",
            "client-certificate-data: QUJD",
            "it takes both",
        ),
        (
            "https://127.0.0.1:1",
            "certificate-authority-data: QUJD",
            "",
            "can be used",
        ),
        (
            "https://127.0.0.1:1",
            "",
            "exec: { apiVersion: client.authentication.k8s.io/v1, command: \"/bin/sh\", \
             args: [\"-c\", \"echo S3CRET; exit 3\"] }",
            "exit status: 3",
        ),
    ] {
        let why = refused(&kubeconfig(dir.path(), url, cluster, user)).await;
        assert!(why.contains(expected), "{why}");
        assert!(!why.contains("S3CRET"), "{why}");
    }
}

#[tokio::test]
async fn a_change_of_who_we_are_shows() {
    let dir = TempDir::new().unwrap();
    let token = dir.path().join("token");
    let (one, two) = (server_leaf(&ca("a")), server_leaf(&ca("b")));
    let certificate = |leaf: &Leaf| {
        format!(
            "client-certificate-data: {}, client-key-data: {}",
            BASE64_STANDARD.encode(leaf.pem()),
            BASE64_STANDARD.encode(leaf.key_pem())
        )
    };
    let file = format!("tokenFile: {}", token.display());
    let mut seen = Vec::new();
    for (user, text) in [
        ("token: a".to_owned(), "x"),
        ("token: b".to_owned(), "x"),
        (file.clone(), "x"),
        (file, "y"),
        (certificate(&one), "y"),
        (certificate(&two), "y"),
    ] {
        fs::write(&token, text).unwrap();
        let settings = kubeconfig(dir.path(), "https://127.0.0.1:1", "", &user);
        let who = find(&settings).await.unwrap().who;
        assert_eq!(find(&settings).await.unwrap().who, who, "{user}");
        seen.push(who);
    }
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), 6);
}

#[tokio::test]
async fn no_error_shows_what_stands_in_a_kubeconfig() {
    let dir = TempDir::new().unwrap();
    for user in [
        "token: S3CRET, token: S3CRET",
        "token: [S3CRET]",
        "token: S3CRET, client-key-data: S3CRET, client-certificate-data: S3CRET",
        "token: S3CRET }, {",
        "tokenFile: { S3CRET: 1 }",
        "token: \"S3CRET\\n\"",
    ] {
        let settings = kubeconfig(dir.path(), "https://127.0.0.1:1", "", user);
        if let Err(why) = find(&settings).await {
            assert!(!why.contains("S3CRET"), "{why}");
            assert!(why.contains("kubeconfig"), "{why}");
        }
    }
}

#[tokio::test]
async fn a_plugin_says_who_we_are_and_one_that_gives_no_token_is_refused() {
    let dir = TempDir::new().unwrap();
    let plugin = |status: &str| {
        let answer = format!(
            "{{\\\"apiVersion\\\": \\\"client.authentication.k8s.io/v1\\\", \\\"kind\\\": \
             \\\"ExecCredential\\\", \\\"status\\\": {status}}}"
        );
        let user = format!(
            "exec: {{ apiVersion: client.authentication.k8s.io/v1, command: \"/bin/sh\", \
             args: [\"-c\", \"echo '{answer}'\"], interactiveMode: Never }}"
        );
        kubeconfig(dir.path(), "https://127.0.0.1:1", "", &user)
    };
    let server = find(&plugin("{\\\"token\\\": \\\"t0ken\\\"}"))
        .await
        .unwrap();
    let headers = server.headers().await.unwrap();
    assert_eq!(headers["authorization"], "Bearer t0ken");
    let why = refused(&plugin("{}")).await;
    assert!(why.contains("gave no token"), "{why}");
    let why = refused(&plugin("{\\\"token\\\": S3CRET: ]")).await;
    assert!(
        why.contains("cannot be read") && !why.contains("S3CRET"),
        "{why}"
    );
}

/// Accepts until it is dropped; a server that `leaf` proves to be.
async fn serve(leaf: &Leaf) -> (u16, tokio::task::JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let acceptor = acceptor(leaf);
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _ = acceptor.accept(stream).await;
        }
    });
    (port, tasks)
}

#[tokio::test]
async fn the_server_is_verified_by_the_ca_and_name_that_the_kubeconfig_gives() {
    let dir = TempDir::new().unwrap();
    let (right, wrong) = (ca("right"), ca("wrong"));
    let (port, _server) = serve(&server_leaf(&right)).await;
    let url = format!("https://127.0.0.1:{port}");
    let of = |ca: &Ca| {
        format!(
            "certificate-authority-data: {}",
            BASE64_STANDARD.encode(ca.pem())
        )
    };
    let dial = async |cluster: String| {
        let settings = kubeconfig(dir.path(), &url, &cluster, "");
        find(&settings).await.unwrap().dial().await.map(drop)
    };
    dial(of(&right)).await.unwrap();
    let why = dial(of(&wrong)).await.unwrap_err();
    assert!(
        why.contains("TLS: ") && why.contains("certificate"),
        "{why}"
    );
    dial(format!("{}, tls-server-name: billing.internal", of(&right)))
        .await
        .unwrap();
    let why = dial(format!("{}, tls-server-name: other", of(&right)))
        .await
        .unwrap_err();
    assert!(why.contains("not valid for name"), "{why}");
    dial("insecure-skip-tls-verify: true".to_owned())
        .await
        .unwrap();
    assert!(CryptoProvider::get_default().is_none(), "nothing is global");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_said_in_the_system_s_words() {
    let dir = TempDir::new().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let settings = kubeconfig(dir.path(), &format!("http://127.0.0.1:{port}"), "", "");
    let why = find(&settings)
        .await
        .unwrap()
        .dial()
        .await
        .map(drop)
        .unwrap_err();
    assert!(why.contains("Connection refused"), "{why}");
}

#[tokio::test(start_paused = true)]
async fn cas_of_the_service_account_are_read_again_after_a_minute_and_kept_where_that_fails() {
    let dir = TempDir::new().unwrap();
    let (old, new) = (ca("old"), ca("new"));
    let path = dir.path().join("ca.crt");
    let mut config = Config::new("https://127.0.0.1".parse().unwrap());
    config.root_cert = Some(vec![old.der().to_vec()]);
    config.root_cert_file = Some(path.clone());
    let tls = Tls::new(&config, "127.0.0.1", None, &Arc::new(provider())).unwrap();
    let leaf = server_leaf(&new);
    let accepted = async || {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let acceptor = acceptor(&leaf);
        let (ours, _) = tokio::join!(
            tls.connector().connect(tls.name.clone(), ours),
            acceptor.accept(theirs)
        );
        ours.is_ok()
    };
    fs::write(&path, new.pem()).unwrap();
    assert!(!accepted().await, "within the minute the old ones hold");
    tokio::time::advance(CA_FRESH + Duration::from_secs(1)).await;
    assert!(accepted().await);
    fs::write(&path, "half a file").unwrap();
    tokio::time::advance(CA_FRESH + Duration::from_secs(1)).await;
    assert!(accepted().await);
}

#[test]
fn plain_http_is_for_this_machine() {
    for (host, expected) in [
        ("localhost", true),
        ("127.0.0.1", true),
        ("::1", true),
        ("10.0.0.1", false),
        ("localhost.example", false),
    ] {
        assert_eq!(is_this_machine(host), expected, "{host}");
    }
}
