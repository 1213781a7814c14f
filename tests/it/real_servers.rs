//! Servers that nobody here wrote, all of which require a client certificate.

use std::process::Output;

use bytes::Bytes;
use h2::client::SendRequest;
use http::Request;

use crate::support::net::{self, Caller, Ending};
use crate::support::pki::{Ca, Issued, Pki};
use crate::support::proxy::{Config, Proxy, Service};
use crate::support::scene::NAME;
use crate::support::servers::{NGHTTPD_BODY, Nginx, Openssl, Server, nghttpd, program, redis};
use crate::support::within;

/// The proxy in front of one of the servers, with a client certificate from the test's root.
struct Front {
    client: Issued,
    service: Service,
    proxy: Proxy,
}

impl Front {
    async fn of(pki: &Pki, server: &Server, shape: impl FnOnce(Service) -> Service) -> Self {
        let client = pki.client(NAME);
        Self::presenting(pki, server, client, shape).await
    }

    async fn presenting(
        pki: &Pki,
        server: &Server,
        client: Issued,
        shape: impl FnOnce(Service) -> Service,
    ) -> Self {
        let files = pki.identity_files(NAME, &client);
        let service = shape(Service::new(NAME, server.address, pki).identity(&files));
        let proxy = Proxy::start(pki, &Config::of([service.clone()])).await;
        Self {
            client,
            service,
            proxy,
        }
    }

    async fn call(&self) -> Caller {
        Caller::connect(self.service.address()).await
    }

    /// One HTTP/1.1 request on a connection of its own; the whole answer.
    async fn http(&self) -> String {
        let mut caller = self.call().await;
        caller
            .send(b"GET / HTTP/1.1\r\nHost: upstream.test\r\nConnection: close\r\n\r\n")
            .await;
        let (answer, ending) = caller.rest().await;
        assert_eq!(ending, Ending::Fin, "the server ends with close_notify");
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// That callers are reset without a byte, for this reason.
    async fn refuses(&self, words: [&str; 3], advice: &str) -> serde_json::Value {
        net::is_reset(self.service.address()).await;
        self.proxy.expect_failure(NAME, words, advice).await
    }

    /// No connection failed on our side or the upstream's. (Clients may break theirs off.)
    async fn has_no_failure(&self) {
        for side in ["local", "upstream"] {
            let labels = [("service", NAME), ("outcome", "failed"), ("side", side)];
            let count = self
                .proxy
                .metric("tlsward_connections_total", &labels)
                .await;
            assert_eq!(count, 0.0, "failures on side {side}");
        }
    }
}

// === nginx ===

#[tokio::test]
async fn nginx_sees_the_client_certificate_over_tls_1_2_and_1_3() {
    for nginx in [Nginx::TLS12, Nginx::TLS13] {
        let protocol = nginx.protocols;
        let pki = Pki::new();
        let server = nginx.start(&pki, &pki.server()).await;
        let front = Front::of(&pki, &server, |service| service).await;
        for _ in 0..3 {
            let answer = front.http().await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            assert!(answer.contains(&format!("dn=CN={NAME} ")), "{answer}");
            let serial = format!("serial={} ", front.client.serial_openssl());
            assert!(answer.contains(&serial), "{answer}");
            assert!(
                answer.contains(&format!("protocol={protocol} ")),
                "{answer}"
            );
        }
        front.has_no_failure().await;
    }
}

#[tokio::test]
async fn nginx_resumes_our_sessions() {
    let pki = Pki::new();
    let server = Nginx::TLS13.start(&pki, &pki.server()).await;
    let front = Front::of(&pki, &server, |service| service).await;
    assert!(front.http().await.contains("resumed=. "));
    assert!(front.http().await.contains("resumed=r "));
}

#[tokio::test]
async fn nginx_with_a_certificate_of_another_ca_is_refused() {
    for nginx in [Nginx::TLS12, Nginx::TLS13] {
        let pki = Pki::new();
        let stranger = Ca::root("Stranger Root").server().issue();
        let server = nginx.start(&pki, &stranger).await;
        let front = Front::of(&pki, &server, |service| service).await;
        front
            .refuses(["handshake", "upstream", "untrusted_issuer"], "ca")
            .await;
    }
}

#[tokio::test]
async fn nginx_with_an_expired_certificate_is_refused() {
    for nginx in [Nginx::TLS12, Nginx::TLS13] {
        let pki = Pki::new();
        let expired = pki.root.server().expired().issue();
        let server = nginx.start(&pki, &expired).await;
        let front = Front::of(&pki, &server, |service| service).await;
        front
            .refuses(["handshake", "upstream", "expired"], "renew")
            .await;
    }
}

#[tokio::test]
async fn nginx_with_a_certificate_for_another_name_is_refused() {
    for nginx in [Nginx::TLS12, Nginx::TLS13] {
        let pki = Pki::new();
        let elsewhere = pki.root.server_for(&["elsewhere.test"]).issue();
        let server = nginx.start(&pki, &elsewhere).await;
        let front = Front::of(&pki, &server, |service| service).await;
        front
            .refuses(["handshake", "upstream", "name_mismatch"], "server_name")
            .await;
    }
}

#[tokio::test]
async fn nginx_tells_the_caller_itself_that_our_certificate_is_of_another_ca() {
    // nginx completes the handshake and answers 400 in HTTP: this is data, and passes.
    let pki = Pki::new();
    let server = Nginx::TLS13.start(&pki, &pki.server()).await;
    let unknown = Ca::root("Other Root").client(NAME).issue();
    let front = Front::presenting(&pki, &server, unknown, |service| service).await;
    let answer = front.http().await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert!(answer.contains("SSL certificate"), "{answer}");
}

// === OpenSSL ===

#[tokio::test]
async fn openssl_s_server_takes_our_certificate_over_tls_1_2_and_1_3() {
    for version in ["-tls1_2", "-tls1_3"] {
        let pki = Pki::new();
        let server = Openssl::Reverse
            .start(&pki, &pki.server(), &[version])
            .await;
        let front = Front::of(&pki, &server, |service| service).await;
        let mut caller = front.call().await;
        for word in ["drawslt", "emosewa"] {
            caller.send(format!("{word}\n").as_bytes()).await;
            let reversed: String = word.chars().rev().collect();
            assert_eq!(caller.line().await, reversed, "{version}");
        }
    }
}

#[tokio::test]
async fn openssl_s_server_shows_the_client_certificate() {
    for version in ["-tls1_2", "-tls1_3"] {
        let pki = Pki::new();
        let server = Openssl::Www.start(&pki, &pki.server(), &[version]).await;
        let front = Front::of(&pki, &server, |service| service).await;
        let mut caller = front.call().await;
        caller.send(b"GET / HTTP/1.0\r\n\r\n").await;
        let (page, _) = caller.rest().await;
        let page = String::from_utf8_lossy(&page).into_owned();
        assert!(page.contains("Client certificate"), "{page}");
        assert!(page.contains(&format!("Subject: CN={NAME}")), "{page}");
    }
}

#[tokio::test]
async fn openssl_s_server_that_does_not_know_our_ca_is_a_failed_handshake_in_both_versions() {
    for version in ["-tls1_2", "-tls1_3"] {
        let pki = Pki::new();
        let server = Openssl::Reverse
            .start(&pki, &pki.server(), &[version])
            .await;
        let unknown = Ca::root("Other Root").client(NAME).issue();
        let front = Front::presenting(&pki, &server, unknown, |service| service).await;
        let failure = front
            .refuses(
                ["handshake", "upstream", "client_certificate_rejected"],
                "client certificate",
            )
            .await;
        assert_eq!(failure["alert"], "unknown_ca", "{version}: {failure}");
    }
}

#[tokio::test]
async fn openssl_s_server_gets_no_renegotiation_from_us() {
    let pki = Pki::new();
    let mut server = Openssl::Console
        .start(&pki, &pki.server(), &["-tls1_2"])
        .await;
    let front = Front::of(&pki, &server, |service| service).await;
    let mut caller = front.call().await;
    caller.send(b"hello from the caller\n").await;
    server.says("hello from the caller").await;
    server.type_line("hello from the server").await;
    assert_eq!(caller.line().await, "hello from the server");
    server.type_line("r").await;
    server.says("no renegotiation").await;
    assert_eq!(caller.ending().await, Ending::Reset);
}

// === Redis ===

async fn run(name: &str, service: &Service, arguments: &[&str]) -> Output {
    let address = service.address();
    let mut command = program(name, "redis-tools");
    command
        .args(["-h", &address.ip().to_string()])
        .args(["-p", &address.port().to_string()])
        .args(arguments)
        .kill_on_drop(true);
    within(format!("{name} to end"), command.output())
        .await
        .expect("the program can be started")
}

#[tokio::test]
async fn redis_cli_speaks_to_redis_with_required_client_certificates() {
    let pki = Pki::new();
    let server = redis(&pki, &pki.server()).await;
    let front = Front::of(&pki, &server, |service| service).await;
    for (arguments, expected) in [
        (&["PING"][..], "PONG"),
        (&["SET", "greeting", "hello"], "OK"),
        (&["GET", "greeting"], "hello"),
    ] {
        let output = run("redis-cli", &front.service, arguments).await;
        assert!(output.status.success(), "{output:?}");
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), expected);
    }
    front.has_no_failure().await;
}

#[tokio::test]
async fn redis_benchmark_runs_through_the_proxy_without_an_error() {
    let pki = Pki::new();
    let server = redis(&pki, &pki.server()).await;
    let front = Front::of(&pki, &server, |service| service).await;
    let arguments = ["-q", "-n", "2000", "-c", "10"];
    let output = run("redis-benchmark", &front.service, &arguments).await;
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("requests per second"), "{said}");
    assert!(!said.contains("Error"), "{said}");
    front.has_no_failure().await;
}

#[tokio::test]
async fn redis_does_not_let_in_a_proxy_without_a_certificate() {
    let pki = Pki::new();
    let server = redis(&pki, &pki.server()).await;
    let front = Front::of(&pki, &server, |service| {
        service
            .without_tls("cert")
            .without_tls("key")
            .tls("client_auth", "false")
    })
    .await;
    front
        .refuses(
            ["handshake", "local", "client_certificate_required"],
            "client_auth",
        )
        .await;
}

// === HTTP/2 ===

/// A client with prior knowledge: HTTP/2 from the first byte, in plain text.
async fn h2_client(service: &Service) -> (SendRequest<Bytes>, tokio::task::JoinHandle<()>) {
    let socket = Caller::connect(service.address()).await.into_tcp();
    let (client, connection) = within("the HTTP/2 preface", h2::client::handshake(socket))
        .await
        .expect("the proxy takes the preface");
    let driver = tokio::spawn(async move {
        // Ends with the client; what the test asserts is in the answers.
        let _ = connection.await;
    });
    (client, driver)
}

async fn h2_get(client: &SendRequest<Bytes>, path: &str) -> (u16, String) {
    let request = Request::get(format!("https://upstream.test{path}"))
        .body(())
        .expect("a valid request");
    let mut client = client.clone().ready().await.expect("an open connection");
    let (answer, _) = client
        .send_request(request, true)
        .expect("room for a stream");
    let answer = within("an HTTP/2 answer", answer).await.expect("an answer");
    let code = answer.status().as_u16();
    let mut body = answer.into_body();
    let mut text = Vec::new();
    while let Some(part) = body.data().await {
        let part = part.expect("a whole body");
        text.extend_from_slice(&part);
        body.flow_control()
            .release_capacity(part.len())
            .expect("what was received can be released");
    }
    (code, String::from_utf8_lossy(&text).into_owned())
}

#[tokio::test]
async fn nginx_speaks_http_2_with_a_prior_knowledge_client_through_alpn_h2() {
    let pki = Pki::new();
    let server = Nginx::HTTP2.start(&pki, &pki.server()).await;
    let front = Front::of(&pki, &server, |service| service.tls("alpn", r#"["h2"]"#)).await;
    let (client, driver) = h2_client(&front.service).await;
    let requests = (0..20).map(|_| h2_get(&client, "/"));
    for (code, body) in join_all(requests).await {
        assert_eq!(code, 200, "{body}");
        assert!(body.contains(&format!("dn=CN={NAME} ")), "{body}");
        assert!(body.contains("http=HTTP/2.0"), "{body}");
    }
    drop(client);
    driver.await.unwrap();
    front.has_no_failure().await;
}

#[tokio::test]
async fn nghttpd_speaks_http_2_with_a_prior_knowledge_client_through_alpn_h2() {
    let pki = Pki::new();
    let server = nghttpd(&pki, &pki.server()).await;
    let front = Front::of(&pki, &server, |service| service.tls("alpn", r#"["h2"]"#)).await;
    let (client, driver) = h2_client(&front.service).await;
    let requests = (0..20).map(|_| h2_get(&client, "/index.html"));
    for answer in join_all(requests).await {
        assert_eq!(answer, (200, NGHTTPD_BODY.to_owned()));
    }
    drop(client);
    driver.await.unwrap();
    assert_eq!(front.proxy.counter(NAME, "handshakes_full").await, 1);
}

#[tokio::test]
async fn nghttpd_does_not_let_in_a_proxy_without_a_certificate() {
    let pki = Pki::new();
    let server = nghttpd(&pki, &pki.server()).await;
    let front = Front::of(&pki, &server, |service| {
        service
            .tls("alpn", r#"["h2"]"#)
            .without_tls("cert")
            .without_tls("key")
            .tls("client_auth", "false")
    })
    .await;
    front
        .refuses(
            ["handshake", "local", "client_certificate_required"],
            "client_auth",
        )
        .await;
}

/// Awaits all at once on one task: the streams of one connection run side by side.
async fn join_all<T>(futures: impl IntoIterator<Item = impl Future<Output = T>>) -> Vec<T> {
    use std::pin::Pin;
    use std::task::Poll;
    let mut waiting: Vec<Pin<Box<_>>> = futures.into_iter().map(Box::pin).collect();
    let mut done: Vec<Option<T>> = waiting.iter().map(|_| None).collect();
    std::future::poll_fn(move |context| {
        for (future, slot) in waiting.iter_mut().zip(&mut done) {
            if slot.is_none()
                && let Poll::Ready(value) = future.as_mut().poll(context)
            {
                *slot = Some(value);
            }
        }
        if done.iter().all(Option::is_some) {
            Poll::Ready(done.iter_mut().filter_map(Option::take).collect())
        } else {
            Poll::Pending
        }
    })
    .await
}
