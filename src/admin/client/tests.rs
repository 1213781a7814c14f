use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::admin::tests::{applied, refused, shared};
use crate::admin::{Bound, Shared, Surface};

fn start(listen: &Listen, surface: Surface, shared: Arc<Shared>) -> (Listen, JoinSet<()>) {
    let bound = Bound::bind(listen, surface).unwrap();
    let listen = bound.address().map_or_else(|| listen.clone(), Listen::Tcp);
    let mut serving = JoinSet::new();
    serving.spawn(bound.serve(shared, CancellationToken::new()));
    (listen, serving)
}

fn loopback() -> Listen {
    Listen::Tcp(SocketAddr::from(([127, 0, 0, 1], 0)))
}

fn client(listen: Listen) -> Client {
    Client::new(listen, "admin.listen of config.toml")
}

#[tokio::test]
async fn status_and_both_ends_of_a_reload_come_over_tcp_and_over_unix() {
    let dir = tempfile::tempdir().unwrap();
    let unix = Listen::Unix {
        path: dir.path().join("admin.sock"),
        mode: Some(0o600),
    };
    for listen in [loopback(), unix] {
        let (shared, _status, mut reloads) = shared();
        let (listen, _serving) = start(&listen, Surface::Admin, shared);
        let client = client(listen);
        let status = client.status().await.unwrap();
        assert_eq!(status["services"][0]["name"], "billing");
        for outcome in [applied(), refused()] {
            let control = async { reloads.recv().await.unwrap().reply.send(outcome.clone()) };
            let (got, sent) = tokio::join!(client.reload(), control);
            sent.unwrap();
            assert_eq!(got.unwrap(), outcome);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_process_that_was_asked_to_stop_is_waited_for_until_it_or_the_time_is_gone() {
    let (shared, status, _reloads) = shared();
    let (listen, mut serving) = start(&loopback(), Surface::Admin, Arc::clone(&shared));
    let client = client(listen);
    let report = client.quit().await.unwrap();
    assert!(shared.shutdown.leaving().is_cancelled());
    assert_eq!(report.outcome, crate::admin::Quit::Stopping);

    let mut stopping = shared.status.borrow().as_ref().clone();
    stopping.state = crate::status::ProcessState::Stopping;
    status.send_replace(Arc::new(stopping));
    let error = client.gone(Duration::from_secs(50)).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("still runs 60 s after"), "{text}");

    let waiting = client.gone(Duration::from_secs(50));
    let ending = async {
        serving.abort_all();
        while serving.join_next().await.is_some() {}
    };
    let (gone, ()) = tokio::join!(waiting, ending);
    gone.unwrap();
}

#[tokio::test]
async fn nobody_there_is_said_with_the_address_and_where_it_came_from() {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let error = client(Listen::Tcp(address)).status().await.unwrap_err();
    assert!(matches!(error, ClientError::NobodyAnswers { .. }));
    let text = error.to_string();
    let begin = format!("no tlsward answers at {address}: Connection refused");
    assert!(text.starts_with(&begin), "{text}");
    assert!(text.contains("is it running?"), "{text}");
    assert!(text.contains("admin.listen of config.toml says"), "{text}");

    let path = "/nonexistent/admin.sock".into();
    let error = client(Listen::Unix { path, mode: None })
        .status()
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("at unix:/nonexistent/admin.sock"), "{error}");
}

#[tokio::test]
async fn a_listener_without_the_endpoint_refuses_in_its_own_words() {
    let (shared, _status, _reloads) = shared();
    let (listen, _serving) = start(&loopback(), Surface::Public, shared);
    let error = client(listen).reload().await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("refused POST /reload (404"), "{text}");
    assert!(text.contains("no such endpoint"), "{text}");
}

/// Answers one request with `answer`, and closes.
async fn stranger(answer: &'static [u8]) -> (Listen, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 4_096];
        let n = stream.read(&mut request).await.unwrap();
        assert!(n > 0);
        stream.write_all(answer).await.unwrap();
    });
    (Listen::Tcp(address), serving)
}

#[tokio::test]
async fn a_stranger_at_the_address_is_called_one() {
    for answer in [
        &b"220 mail.example ESMTP\r\n"[..],
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{\"services\"",
    ] {
        let (listen, _serving) = stranger(answer).await;
        let error = client(listen).status().await.unwrap_err();
        let what = String::from_utf8_lossy(answer);
        assert!(
            matches!(error, ClientError::NotTlsward { .. }),
            "{what}: {error}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_process_that_is_stuck_is_not_waited_for_forever() {
    // The kernel accepts for a listener that nobody serves.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let error = client(Listen::Tcp(address)).status().await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("did not answer GET /status within 10 s"),
        "{error}"
    );
}
