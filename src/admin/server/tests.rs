use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::Instant;

use super::*;
use crate::admin::tests::{applied, shared};
use crate::admin::{Client, ReloadRequest};

const ADMIN: Entrance = Entrance {
    surface: Surface::Admin,
    tcp: true,
};

fn loopback() -> Listen {
    Listen::Tcp(SocketAddr::from(([127, 0, 0, 1], 0)))
}

/// A server on a free port of the loopback, and what stops it.
fn start(shared: Arc<Shared>) -> (SocketAddr, CancellationToken, JoinSet<()>) {
    let bound = Bound::bind(&loopback(), Surface::Admin).unwrap();
    let address = bound.address().unwrap();
    let shutdown = CancellationToken::new();
    let mut serving = JoinSet::new();
    serving.spawn(bound.serve(shared, shutdown.clone()));
    (address, shutdown, serving)
}

/// Writes `request`, and reads until the server closes.
async fn exchange(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), request: &str) -> String {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn an_ipv6_endpoint_leaves_the_port_of_ipv4_to_others() {
    let Ok(v6) = Bound::bind(&Listen::Tcp("[::]:0".parse().unwrap()), Surface::Public) else {
        return; // this machine has no IPv6
    };
    let port = v6.address().unwrap().port();
    let v4 = Listen::Tcp(SocketAddr::from(([0, 0, 0, 0], port)));
    Bound::bind(&v4, Surface::Admin).unwrap();
}

#[tokio::test]
async fn head_has_the_headers_of_get_and_no_body() {
    let (shared, _status, _reloads) = shared();
    let (address, _shutdown, _serving) = start(shared);
    let ask = async |method: &str| {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request =
            format!("{method} /livez HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        exchange(&mut stream, &request).await
    };
    let (get, head) = (ask("GET").await, ask("HEAD").await);
    assert!(get.ends_with("\r\n\r\nok\n"), "{get}");
    assert!(get.contains("content-length: 3\r\n"), "{get}");
    assert!(head.contains("content-length: 3\r\n"), "{head}");
    assert!(head.ends_with("\r\n\r\n"), "{head}");
}

#[tokio::test]
async fn a_foreign_host_is_refused_over_tcp_and_not_over_unix() {
    let (shared, _status, _reloads) = shared();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("admin.sock");
    let listen = Listen::Unix {
        path: path.clone(),
        mode: Some(0o600),
    };
    let bound = Bound::bind(&listen, Surface::Admin).unwrap();
    let mut serving = JoinSet::new();
    serving.spawn(bound.serve(Arc::clone(&shared), CancellationToken::new()));
    let (address, _shutdown, _tcp) = start(shared);
    let request = "GET /livez HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n";
    let mut tcp = TcpStream::connect(address).await.unwrap();
    let mut unix = UnixStream::connect(&path).await.unwrap();
    assert!(
        exchange(&mut tcp, request)
            .await
            .starts_with("HTTP/1.1 403")
    );
    assert!(
        exchange(&mut unix, request)
            .await
            .starts_with("HTTP/1.1 200")
    );
}

#[tokio::test]
async fn an_address_in_use_is_refused_with_key_address_and_hint() {
    let first = Bound::bind(&loopback(), Surface::Public).unwrap();
    let listen = Listen::Tcp(first.address().unwrap());
    let error = Bound::bind(&listen, Surface::Public).unwrap_err();
    assert_eq!(error.reason, Reason::BindFailed);
    let expected = format!("admin.public_listen {listen}: Address already in use");
    assert!(error.detail.starts_with(&expected), "{error}");
    assert_eq!(error.hint, Reason::BindFailed.hint());
}

#[tokio::test]
async fn a_stop_closes_idle_connections_and_the_listener_and_removes_the_socket() {
    let (shared, _status, _reloads) = shared();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("admin.sock");
    let listen = Listen::Unix {
        path: path.clone(),
        mode: None,
    };
    let bound = Bound::bind(&listen, Surface::Admin).unwrap();
    let shutdown = CancellationToken::new();
    let mut serving = JoinSet::new();
    serving.spawn(bound.serve(shared, shutdown.clone()));
    let mut idle = UnixStream::connect(&path).await.unwrap();
    idle.write_all(b"GET /livez HTTP/1.1\r\n\r\n")
        .await
        .unwrap();
    let mut first = [0; 15];
    idle.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 200 OK");
    shutdown.cancel();
    serving.join_next().await.unwrap().unwrap();
    idle.read_to_end(&mut Vec::new()).await.unwrap();
    assert!(!path.exists());
}

#[tokio::test]
async fn a_stop_waits_for_the_reload_under_way() {
    let (shared, _status, mut reloads) = shared();
    let (address, shutdown, mut serving) = start(shared);
    let mut asking = JoinSet::new();
    let client = Client::new(Listen::Tcp(address), "admin.listen of config.toml");
    asking.spawn(async move { client.reload().await });
    let ReloadRequest { reply, .. } = reloads.recv().await.unwrap();
    shutdown.cancel();
    // The listener closes at once; the connection that waits stays.
    let closed = async {
        while TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), closed)
        .await
        .unwrap();
    assert!(serving.try_join_next().is_none());
    reply.send(applied()).unwrap();
    let outcome = asking.join_next().await.unwrap().unwrap().unwrap();
    assert_eq!(outcome, applied());
    serving.join_next().await.unwrap().unwrap();
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_until_one_ends() {
    let (shared, _status, mut reloads) = shared();
    let (address, _shutdown, _serving) = start(shared);
    let request = format!("POST /reload HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    let mut streams = Vec::new();
    let mut replies = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        // Each holds its place: control has it in hand.
        replies.push(reloads.recv().await.unwrap());
        streams.push(stream);
    }
    let mut late = TcpStream::connect(address).await.unwrap();
    late.write_all(request.as_bytes()).await.unwrap();
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(reloads.try_recv().is_err());
    replies.pop().unwrap().reply.send(applied()).unwrap();
    let reload = reloads.recv().await.unwrap();
    reload.reply.send(applied()).unwrap();
    let mut answer = String::new();
    late.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

/// One connection over a pipe of `size` bytes, under paused time.
fn piped(size: usize) -> (DuplexStream, JoinSet<()>) {
    let (shared, _status, _reloads) = shared();
    // Status of some 400 KiB.
    let mut status = shared.status.borrow().as_ref().clone();
    status.services[0].warnings = vec!["w".repeat(1_000); 400];
    let (_sender, reader) = tokio::sync::watch::channel(Arc::new(status));
    let shared = Arc::new(Shared {
        status: reader,
        metrics: Arc::clone(&shared.metrics),
        reload: shared.reload.clone(),
        shutdown: shared.shutdown.clone(),
    });
    let (near, far) = tokio::io::duplex(size);
    let mut serving = JoinSet::new();
    serving.spawn(connection(far, ADMIN, shared, CancellationToken::new()));
    (near, serving)
}

#[tokio::test(start_paused = true)]
async fn a_head_that_trickles_in_is_cut_off() {
    let (mut client, mut serving) = piped(1 << 20);
    let begin = Instant::now();
    client.write_all(b"GET /livez HT").await.unwrap();
    serving.join_next().await.unwrap().unwrap();
    assert_eq!(begin.elapsed().as_secs(), HEAD_TIMEOUT.as_secs());
}

#[tokio::test(start_paused = true)]
async fn a_connection_may_be_used_again_but_not_idle_for_long() {
    let (mut client, mut serving) = piped(1 << 20);
    let begin = Instant::now();
    for _ in 0..2 {
        tokio::time::sleep(HEAD_TIMEOUT / 2).await;
        client
            .write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .await
            .unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"ok\n") {
            assert_ne!(client.read_buf(&mut answer).await.unwrap(), 0);
        }
        assert!(answer.starts_with(b"HTTP/1.1 200 OK"));
    }
    serving.join_next().await.unwrap().unwrap();
    assert_eq!(begin.elapsed().as_secs(), 2 * HEAD_TIMEOUT.as_secs());
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_come_is_not_waited_for() {
    let (mut client, _serving) = piped(1 << 20);
    let begin = Instant::now();
    let request = "POST /reload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\n";
    let answer = exchange(&mut client, request).await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(begin.elapsed() < HEAD_TIMEOUT * 3);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_loses_its_place() {
    let (mut client, mut serving) = piped(4_096);
    let begin = Instant::now();
    client
        .write_all(b"GET /status HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .await
        .unwrap();
    tokio::time::timeout(STALL_TIMEOUT * 2, serving.join_next())
        .await
        .expect("the server gives up")
        .unwrap()
        .unwrap();
    assert_eq!(begin.elapsed().as_secs(), STALL_TIMEOUT.as_secs());
}

#[tokio::test(start_paused = true)]
async fn a_client_that_reads_slowly_gets_all() {
    let (mut client, mut serving) = piped(4_096);
    client
        .write_all(b"GET /status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut total = 0;
    let mut buffer = [0; 4_096];
    loop {
        tokio::time::sleep(STALL_TIMEOUT / 2).await;
        let n = client.read(&mut buffer).await.unwrap();
        if n == 0 {
            break;
        }
        total += n;
    }
    assert!(total > 400_000);
    serving.join_next().await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_endless_head_is_cut_off_by_size() {
    let (mut client, mut serving) = piped(1 << 20);
    let begin = Instant::now();
    let endless = format!("GET /livez HTTP/1.1\r\nX: {}", "x".repeat(2 * MAX_HEAD));
    let answer = exchange(&mut client, &endless).await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    serving.join_next().await.unwrap().unwrap();
    assert!(begin.elapsed() < HEAD_TIMEOUT);
}
