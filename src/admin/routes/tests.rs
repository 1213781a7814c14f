use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

use super::*;
use crate::admin::tests::{applied, refused, shared};
use crate::status::tests::{service, status, waiting};
use crate::status::{ServiceStatus, Status};

const ADMIN: Entrance = Entrance {
    surface: Surface::Admin,
    tcp: true,
};
const UNIX: Entrance = Entrance {
    surface: Surface::Admin,
    tcp: false,
};
const PUBLIC: Entrance = Entrance {
    surface: Surface::Public,
    tcp: true,
};

/// `GET /livez` with headers, one a line (`Host: localhost`).
fn request(line: &str, headers: &[(&str, &str)]) -> Request<Full<Bytes>> {
    let (method, uri) = line.split_once(' ').unwrap();
    let mut request = Request::builder().method(method).uri(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Full::default()).unwrap()
}

struct Got {
    status: u16,
    headers: HeaderMap,
    body: String,
}

impl Got {
    fn header(&self, name: &str) -> &str {
        self.headers[name].to_str().unwrap()
    }
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

async fn ask_of(shared: &Shared, entrance: Entrance, request: Request<Full<Bytes>>) -> Got {
    let (head, body) = respond(request, entrance, shared).await.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Got {
        status: head.status.as_u16(),
        headers: head.headers,
        body: String::from_utf8(body.to_vec()).unwrap(),
    }
}

/// Asks a process with one ready service; a reload is answered by `applied()`.
async fn ask(entrance: Entrance, line: &str, headers: &[(&str, &str)]) -> Got {
    let (shared, _status, mut reloads) = shared();
    let control = async {
        if let Some(request) = reloads.recv().await {
            request.reply.send(applied()).unwrap();
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        got = ask_of(&shared, entrance, request(line, headers)) => got,
        () = control => unreachable!(),
    }
}

#[tokio::test]
async fn every_answer_is_guarded_against_caches_and_sniffing() {
    for line in [
        "GET /",
        "GET /livez",
        "GET /metrics",
        "GET /status",
        "GET /nothing",
        "DELETE /status",
        "POST /reload",
        "POST /quit",
    ] {
        let got = ask(ADMIN, line, &[]).await;
        assert_eq!(got.header("cache-control"), "no-store", "{line}");
        assert_eq!(got.header("x-content-type-options"), "nosniff", "{line}");
        assert!(got.body.ends_with('\n'), "{line}");
    }
}

#[tokio::test]
async fn the_list_names_every_endpoint_that_the_listener_has() {
    let got = ask(ADMIN, "GET /", &[]).await;
    assert_eq!(got.status, 200);
    for endpoint in Endpoint::ALL {
        assert!(got.body.contains(endpoint.path()));
    }
    assert!(got.body.contains("POST /reload") && got.body.contains("POST /quit"));
}

#[tokio::test]
async fn an_unknown_path_is_answered_with_what_there_is() {
    let got = ask(ADMIN, "GET /healthz", &[]).await;
    assert_eq!(got.status, 404);
    assert!(got.body.contains("/livez") && got.body.contains("/reload"));
}

#[tokio::test]
async fn a_wrong_method_is_answered_with_the_right_ones() {
    for (line, allow) in [
        ("POST /metrics", "GET, HEAD"),
        ("OPTIONS /status", "GET, HEAD"),
        ("GET /reload", "POST"),
        ("HEAD /reload", "POST"),
        ("OPTIONS /reload", "POST"),
        ("GET /quit", "POST"),
        ("HEAD /quit", "POST"),
    ] {
        let got = ask(ADMIN, line, &[]).await;
        assert_eq!(got.status, 405, "{line}");
        assert_eq!(got.header("allow"), allow, "{line}");
    }
}

#[tokio::test]
async fn the_public_listener_has_health_and_metrics_only() {
    for (line, status) in [
        ("GET /livez", 200),
        ("GET /readyz", 200),
        ("GET /metrics", 200),
        ("GET /", 404),
        ("GET /status", 404),
        ("POST /reload", 404),
        ("POST /quit", 404),
    ] {
        let got = ask(PUBLIC, line, &[("host", "tlsward.example.com")]).await;
        assert_eq!(got.status, status, "{line}");
    }
    let got = ask(PUBLIC, "GET /nothing", &[]).await;
    assert!(!got.body.contains("/reload") && !got.body.contains("/status"));
}

#[tokio::test]
async fn livez_is_ok_even_where_nothing_is_ready() {
    let got = ask(ADMIN, "GET /livez", &[]).await;
    assert_eq!((got.status, got.body.as_str()), (200, "ok\n"));
}

async fn readyz_of(process: Status, entrance: Entrance, line: &str) -> Got {
    let (shared, status, _reloads) = shared();
    status.send(process.into()).unwrap();
    ask_of(&shared, entrance, request(line, &[])).await
}

fn degraded() -> Vec<ServiceStatus> {
    vec![service("billing"), waiting("ledger")]
}

#[tokio::test]
async fn readyz_is_200_in_state_ready_only() {
    for (state, code) in [
        (ProcessState::Starting, 503),
        (ProcessState::Ready, 200),
        (ProcessState::Degraded, 503),
        (ProcessState::Stopping, 503),
    ] {
        let got = readyz_of(status(state, vec![]), ADMIN, "GET /readyz").await;
        assert_eq!(got.status, code, "{state:?}");
    }
}

#[tokio::test]
async fn verbose_readiness_says_of_each_service_why_not_and_what_to_do() {
    let process = status(ProcessState::Degraded, degraded());
    for line in ["GET /readyz?verbose", "GET /readyz?a=b&verbose=1"] {
        let got = readyz_of(process.clone(), ADMIN, line).await;
        assert_eq!(got.status, 503);
        assert_eq!(got.header("content-type"), "application/json");
        let hint = crate::failure::Reason::IdentityMissing.hint();
        assert_eq!(
            got.json(),
            json!({
                "ready": false,
                "state": "degraded",
                "config": { "generation": 2 },
                "services": [
                    { "name": "billing", "state": "ready", "ready": true },
                    {
                        "name": "ledger", "state": "waiting", "ready": false,
                        "reason": "identity_missing", "hint": hint,
                        "detail": "certs/tls.crt is not there",
                    },
                ],
            })
        );
    }
}

#[tokio::test]
async fn the_public_listener_keeps_particulars_to_itself() {
    let process = status(ProcessState::Degraded, degraded());
    let got = readyz_of(process, PUBLIC, "GET /readyz?verbose").await;
    assert_eq!(got.json()["services"][1]["reason"], "identity_missing");
    assert!(!got.body.contains("certs/"), "{}", got.body);
}

#[tokio::test]
async fn metrics_are_in_the_format_that_the_client_prefers() {
    let prometheus = "application/openmetrics-text;version=1.0.0,\
        application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
    for (accept, openmetrics) in [
        (Some(prometheus), true),
        (Some("application/openmetrics-text"), true),
        (
            Some("text/plain;q=0.9, Application/OpenMetrics-Text; q=0.9"),
            true,
        ),
        (
            Some("text/plain, application/openmetrics-text;q=0.5"),
            false,
        ),
        (Some("application/openmetrics-text;q=0"), false),
        (Some("*/*"), false),
        (None, false),
    ] {
        let headers: Vec<_> = accept
            .map(|accept| ("accept", accept))
            .into_iter()
            .collect();
        let got = ask(ADMIN, "GET /metrics", &headers).await;
        let expected = if openmetrics { OPENMETRICS } else { CLASSIC };
        assert_eq!(got.header("content-type"), expected, "{accept:?}");
        assert_eq!(got.body.ends_with("# EOF\n"), openmetrics, "{accept:?}");
        assert!(got.body.contains("tlsward_build_info{version=\"1.2.3\"} 1"));
    }
}

#[tokio::test]
async fn status_shows_live_traffic() {
    let (shared, _status, _reloads) = shared();
    let billing = crate::config::ServiceName::parse("billing").unwrap();
    shared.metrics.service(&billing).sent_up(42);
    let got = ask_of(&shared, ADMIN, request("GET /status", &[])).await;
    assert_eq!(got.header("content-type"), "application/json");
    assert_eq!(got.json()["services"][0]["traffic"]["bytes_up"], 42);
    assert_eq!(got.json()["version"], "1.2.3");
}

#[tokio::test]
async fn a_reload_is_answered_when_control_says_that_it_has_ended() {
    let (shared, _status, mut reloads) = shared();
    for (outcome, code) in [(applied(), 200), (refused(), 409)] {
        let asked = request("POST /reload", &[]);
        let mut asked = std::pin::pin!(ask_of(&shared, ADMIN, asked));
        let reload = tokio::select! {
            biased;
            _ = &mut asked => panic!("answered before control was"),
            reload = reloads.recv() => reload.unwrap(),
        };
        // Control is at work: there is no answer yet, however often it is looked for.
        for _ in 0..10 {
            assert!(poll_once(asked.as_mut()).await.is_none());
        }
        reload.reply.send(outcome.clone()).unwrap();
        let got = asked.await;
        assert_eq!(got.status, code);
        let read: ReloadOutcome = serde_json::from_str(&got.body).unwrap();
        assert_eq!(read, outcome);
    }
}

async fn poll_once<F: Future>(mut future: Pin<&mut F>) -> Option<F::Output> {
    poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

#[tokio::test]
async fn reloads_reach_control_in_the_order_in_which_they_were_asked() {
    let (shared, _status, mut reloads) = shared();
    let first = ask_of(&shared, ADMIN, request("POST /reload", &[]));
    let second = ask_of(&shared, ADMIN, request("POST /reload", &[]));
    let control = async {
        let (first, second) = (reloads.recv().await.unwrap(), reloads.recv().await.unwrap());
        second.reply.send(applied()).unwrap();
        first.reply.send(refused()).unwrap();
    };
    let (first, second, ()) = tokio::join!(biased; first, second, control);
    assert_eq!((first.status, second.status), (409, 200));
}

#[tokio::test]
async fn a_reload_while_the_process_stops_is_an_answer_too() {
    let (shared, _status, reloads) = shared();
    drop(reloads);
    let got = ask_of(&shared, ADMIN, request("POST /reload", &[])).await;
    assert_eq!(got.status, 503);
    assert!(got.body.contains("stopping"));
}

#[tokio::test]
async fn a_reload_that_control_drops_is_an_answer_too() {
    let (shared, _status, mut reloads) = shared();
    let control = async { drop(reloads.recv().await) };
    let asked = ask_of(&shared, ADMIN, request("POST /reload", &[]));
    let (got, ()) = tokio::join!(asked, control);
    assert_eq!(got.status, 503);
}

#[tokio::test]
async fn a_name_that_could_have_been_rebound_is_refused_on_every_admin_route() {
    for line in [
        "GET /",
        "GET /livez",
        "GET /metrics",
        "GET /status",
        "POST /reload",
    ] {
        for host in [
            "evil.example",
            "evil.example:9901",
            "localhost.evil.example",
            "127.0.0.1.nip.io",
            "user@127.0.0.1",
            "[::1].evil.example",
            "127.0.0.1, evil.example",
            "localhost:80@evil.example",
            "localhost.",
        ] {
            let got = ask(ADMIN, line, &[("host", host)]).await;
            assert_eq!(got.status, 403, "{line} {host}");
            assert!(got.body.contains("public_listen"), "{}", got.body);
        }
        let twice = [("host", "127.0.0.1"), ("host", "evil.example")];
        assert_eq!(ask(ADMIN, line, &twice).await.status, 403);
    }
    let absolute = "GET http://evil.example/status";
    assert_eq!(ask(ADMIN, absolute, &[]).await.status, 403);
}

#[tokio::test]
async fn an_address_localhost_and_no_name_are_let_in() {
    for host in [
        "127.0.0.1:9901",
        "192.0.2.7",
        "[::1]:9901",
        "[2001:db8::1]",
        "localhost",
        "LocalHost:9901",
        "",
    ] {
        let got = ask(ADMIN, "GET /status", &[("host", host)]).await;
        assert_eq!(got.status, 200, "{host:?}");
    }
    assert_eq!(ask(ADMIN, "GET /status", &[]).await.status, 200);
}

#[tokio::test]
async fn any_name_is_let_in_on_a_unix_socket() {
    let got = ask(UNIX, "GET /status", &[("host", "tlsward")]).await;
    assert_eq!(got.status, 200);
}

#[tokio::test]
async fn a_browser_may_not_reload_or_quit_for_another_sites_page() {
    const HOST: (&str, &str) = ("host", "127.0.0.1:9901");
    for (header, value) in [
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-site", "same-site"),
        ("sec-fetch-site", "something new"),
        ("origin", "https://evil.example"),
        ("origin", "http://127.0.0.1:8080"),
        ("origin", "http://127.0.0.1"),
        ("origin", "null"),
        ("origin", ""),
    ] {
        for (entrance, line) in [ADMIN, UNIX]
            .into_iter()
            .flat_map(|entrance| [(entrance, "POST /reload"), (entrance, "POST /quit")])
        {
            let got = ask(entrance, line, &[HOST, (header, value)]).await;
            assert_eq!(got.status, 403, "{line}: {header}: {value}");
        }
    }
    let origin_without_host = [("origin", "http://127.0.0.1:9901")];
    let got = ask(ADMIN, "POST /reload", &origin_without_host).await;
    assert_eq!(got.status, 403);
}

#[tokio::test]
async fn a_browser_may_reload_for_our_own_page_and_for_its_user() {
    const HOST: (&str, &str) = ("host", "LOCALHOST:9901");
    let own_page = [
        HOST,
        ("sec-fetch-site", "same-origin"),
        ("origin", "http://localhost:9901"),
    ];
    for headers in [&own_page[..], &[HOST, ("sec-fetch-site", "none")], &[HOST]] {
        let got = ask(ADMIN, "POST /reload", headers).await;
        assert_eq!(got.status, 200, "{headers:?}");
    }
}

#[tokio::test]
async fn a_refused_reload_never_reaches_control() {
    let (shared, _status, mut reloads) = shared();
    let cross = request("POST /reload", &[("sec-fetch-site", "cross-site")]);
    ask_of(&shared, ADMIN, cross).await;
    assert!(reloads.try_recv().is_err());
}

#[tokio::test]
async fn a_quit_is_heard_once_and_a_refused_one_never() {
    let (shared, _status, _reloads) = shared();
    shared.shutdown.set_terms(crate::shutdown::Terms {
        delay: Duration::from_millis(1_500),
        timeout: Duration::from_secs(30),
    });
    let cross = request("POST /quit", &[("sec-fetch-site", "cross-site")]);
    assert_eq!(ask_of(&shared, ADMIN, cross).await.status, 403);
    let public = ask_of(&shared, PUBLIC, request("POST /quit", &[])).await;
    assert_eq!(public.status, 404);
    assert!(!shared.shutdown.leaving().is_cancelled());
    for outcome in ["stopping", "stopping_already"] {
        let got = ask_of(&shared, ADMIN, request("POST /quit", &[])).await;
        assert_eq!(got.status, 202);
        assert_eq!(
            got.json(),
            json!({
                "outcome": outcome,
                "connections_open": 0,
                "shutdown_delay_seconds": 1.5,
                "shutdown_timeout_seconds": 30.0,
            })
        );
        assert!(shared.shutdown.leaving().is_cancelled());
        assert!(!shared.shutdown.abort().is_cancelled());
    }
}

#[tokio::test]
async fn a_body_beyond_the_limit_is_refused_and_one_within_it_is_ignored() {
    let (shared, _status, mut reloads) = shared();
    let with_body = |length| {
        let body = Full::new(Bytes::from(vec![b'x'; length]));
        Request::post("/reload").body(body).unwrap()
    };
    let got = ask_of(&shared, ADMIN, with_body(MAX_BODY + 1)).await;
    assert_eq!(got.status, 413);
    assert!(reloads.try_recv().is_err());
    let control = async { reloads.recv().await.unwrap().reply.send(applied()) };
    let (got, _) = tokio::join!(ask_of(&shared, ADMIN, with_body(MAX_BODY)), control);
    assert_eq!(got.status, 200);
}
