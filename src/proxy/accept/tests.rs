use std::io::{Read as _, Write as _};

use rustls_pki_types::ServerName;
use tokio::io::AsyncReadExt as _;

use super::*;
use crate::config::{Host, Listen, ServiceName, Timeouts, UncleanClose, UpstreamAddress};
use crate::metrics::Metrics;
use crate::proxy::connect::{Progress, connect};
use crate::proxy::listener::Bound;
use crate::route::{Handshakes, Presented, Upstream};
use crate::tls::client_config::Connector;
use crate::tls::test_pki::{self, Ca, Leaf, client, policy, trust};
use crate::workers::Workers;

#[test]
fn callers_are_admitted_by_network_or_by_the_ids_that_the_kernel_vouches_for() {
    let networks = Callers::Networks(vec!["10.0.0.0/8".parse().unwrap()]);
    let tcp = |ip: &str| CallerAddress::Tcp(SocketAddr::new(ip.parse().unwrap(), 1));
    let unix = |uid, gid| CallerAddress::Unix {
        uid,
        gid,
        pid: None,
    };
    assert!(admits(&networks, &tcp("10.1.2.3")));
    assert!(admits(&networks, &tcp("::ffff:10.1.2.3")));
    assert!(!admits(&networks, &tcp("11.1.2.3")));
    assert!(!admits(&networks, &unix(0, 0)));
    let peers = Callers::Peers {
        uids: vec![1000],
        gids: vec![20],
    };
    assert!(admits(&peers, &unix(1000, 1)));
    assert!(admits(&peers, &unix(1, 20)));
    assert!(!admits(&peers, &unix(0, 0)));
    assert!(!admits(&peers, &tcp("127.0.0.1")));
    assert!(admits(&Callers::Anyone, &unix(5, 5)));
    let either = Callers::Either {
        networks: vec!["10.0.0.0/8".parse().unwrap()],
        uids: vec![1000],
        gids: vec![],
    };
    assert!(admits(&either, &tcp("10.1.2.3")));
    assert!(!admits(&either, &tcp("11.1.2.3")));
    assert!(admits(&either, &unix(1000, 1)));
    assert!(!admits(&either, &unix(1, 1000)));
}

/// A session store with a bug, met as soon as a handshake begins.
#[derive(Debug)]
struct Buggy;

impl rustls::client::ClientSessionStore for Buggy {
    fn set_kx_hint(&self, _: ServerName<'static>, _: rustls::NamedGroup) {}
    fn kx_hint(&self, _: &ServerName<'_>) -> Option<rustls::NamedGroup> {
        panic!("a bug")
    }
    fn set_tls12_session(
        &self,
        _: ServerName<'static>,
        _: rustls::client::Tls12ClientSessionValue,
    ) {
    }
    fn tls12_session(&self, _: &ServerName<'_>) -> Option<rustls::client::Tls12ClientSessionValue> {
        None
    }
    fn remove_tls12_session(&self, _: &ServerName<'static>) {}
    fn insert_tls13_ticket(
        &self,
        _: ServerName<'static>,
        _: rustls::client::Tls13ClientSessionValue,
    ) {
    }
    fn take_tls13_ticket(
        &self,
        _: &ServerName<'static>,
    ) -> Option<rustls::client::Tls13ClientSessionValue> {
        None
    }
}

fn route(to: SocketAddr, tls: Arc<Connector>) -> Route {
    let service = ServiceName::parse("buggy").unwrap();
    let metrics = Metrics::new("test").service(&service);
    Route {
        service,
        upstream: Upstream::Addresses(vec![UpstreamAddress {
            host: Host::Address(to.ip()),
            port: to.port(),
        }]),
        server_name: None,
        tls,
        identity: Presented::Nothing,
        timeouts: Timeouts {
            connect: Duration::from_secs(10),
            idle: None,
            max_lifetime: None,
            close: Duration::from_secs(60),
        },
        keepalive: None,
        unclean_close: UncleanClose::Reset,
        callers: Callers::Anyone,
        max_connections: None,
        handshakes: Arc::new(Handshakes::new(None)),
        log: false,
        retired: CancellationToken::new(),
        retire_over: None,
        metrics,
    }
}

#[tokio::test]
async fn one_connections_bug_is_a_reset_and_counted_as_internal_and_the_next_is_served() {
    let upstream = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let ca = Ca::new("CA");
    let mut policy = policy();
    policy.resumption = false;
    let connector = client(&policy, None, &trust(&[&ca])).changed(|config| {
        config.resumption = rustls::client::Resumption::store(Arc::new(Buggy));
    });
    let route = Arc::new(route(upstream.local_addr().unwrap(), connector));

    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let listening = Bound::bind(&Listen::Tcp(address))
        .unwrap()
        .listen()
        .unwrap();
    let (_routes, receiver) = watch::channel(Some(Arc::clone(&route)));
    let shutdown = Shutdown::default();
    let serving = listening.serve(
        receiver,
        Arc::new(Resolver::here()),
        &Crew::of_the_current_runtime(),
        &shutdown,
        &shutdown.drain().child_token(),
    );
    {
        for _ in 0..2 {
            // The reset may come before connect() has returned.
            let ended = async {
                let mut caller = TcpStream::connect(address).await?;
                caller.read(&mut [0]).await
            };
            let ended = ended.await.map_err(|error| error.kind());
            assert_eq!(ended, Err(io::ErrorKind::ConnectionReset));
        }
        shutdown.drain().cancel();
    }
    for accepting in serving {
        accepting.await.unwrap();
    }
    shutdown.connections().close();
    shutdown.connections().wait().await;

    let traffic = route.metrics.traffic();
    assert_eq!((traffic.open, traffic.failed), (0, 2));
    let reason = traffic.last_failure.map(|last| last.failure.why.reason);
    assert_eq!(reason, Some(Reason::Internal));
}

/// Greets callers until the test ends, on threads of std's.
fn greeter(leaf: &Leaf) -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let config = Arc::new(test_pki::server(leaf, &[]));
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let session = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
            let mut stream = rustls::StreamOwned::new(session, socket.unwrap());
            stream.write_all(b"hello").unwrap();
            stream.conn.send_close_notify();
            stream.flush().unwrap();
        }
    });
    address
}

#[test]
fn while_the_main_thread_is_busy_callers_are_served_and_names_are_looked_up() {
    let ca = Ca::new("CA");
    let to = greeter(&ca.server());
    let mut route = route(to, client(&policy(), None, &trust(&[&ca])));
    route.upstream = Upstream::Addresses(vec![UpstreamAddress {
        host: Host::Name("localhost".try_into().unwrap()),
        port: to.port(),
    }]);
    let address = std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|free| free.local_addr())
        .unwrap();
    let shutdown = Shutdown::default();
    let workers = Workers::start(std::num::NonZeroUsize::new(2), shutdown.fault()).unwrap();
    let main = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let (_routes, receiver) = watch::channel(Some(Arc::new(route)));
    let accepting = main.block_on(async {
        let listening = Bound::bind(&Listen::Tcp(address)).unwrap().listen();
        listening.unwrap().serve(
            receiver,
            Arc::new(Resolver::here()),
            workers.crew(),
            &shutdown,
            &shutdown.drain().child_token(),
        )
    });

    // From here on nothing drives the main runtime: this thread is busy with a caller's part.
    for _ in 0..10 {
        let mut caller = std::net::TcpStream::connect(address).unwrap();
        caller
            .set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        let mut heard = String::new();
        caller.read_to_string(&mut heard).unwrap();
        assert_eq!(heard, "hello");
    }

    shutdown.drain().cancel();
    shutdown.connections().close();
    main.block_on(async {
        for accepting in accepting {
            accepting.await.unwrap();
        }
        shutdown.connections().wait().await;
    });
    workers.join();
    std::net::TcpStream::connect(address).unwrap_err();
}

#[tokio::test]
async fn behind_a_closed_gate_callers_wait_at_every_listener_until_it_opens() {
    let ca = Ca::new("CA");
    let to = greeter(&ca.server());
    let route = Arc::new(route(to, client(&policy(), None, &trust(&[&ca]))));
    let shutdown = Shutdown::default();
    let crew = Crew::of_the_current_runtime();
    let listen = || {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let listening = Bound::bind(&Listen::Tcp(address)).unwrap().listen();
        let (routes, receiver) = watch::channel(Some(Arc::clone(&route)));
        let resolver = Arc::new(Resolver::here());
        let stop = shutdown.drain().child_token();
        let serving = listening
            .unwrap()
            .serve(receiver, resolver, &crew, &shutdown, &stop);
        (address, routes, serving)
    };
    let listeners = [listen(), listen()];
    let serve = async |address: SocketAddr| {
        let mut caller = TcpStream::connect(address).await.unwrap();
        let mut heard = String::new();
        caller.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "hello");
    };
    // Each acceptor waits for a caller when the gate closes.
    for (address, ..) in &listeners {
        serve(*address).await;
    }
    crew.gate().set_closed(true);
    let mut waiting = Vec::new();
    for (address, ..) in &listeners {
        waiting.push(TcpStream::connect(address).await.unwrap());
    }
    // More turns than an acceptor needs, on this one thread: nobody is taken.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    let seen = route.metrics.traffic();
    assert_eq!((seen.open, seen.ended_ok, seen.failed), (0, 2, 0));
    crew.gate().set_closed(false);
    for mut caller in waiting {
        let mut heard = String::new();
        caller.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "hello");
    }

    // At the end, with no room for them, those who wait are reset and not taken.
    crew.gate().set_closed(true);
    let (address, _, _) = &listeners[0];
    let mut late = TcpStream::connect(address).await.unwrap();
    shutdown.drain().cancel();
    let ended = late.read(&mut [0]).await.map_err(|error| error.kind());
    assert_eq!(ended, Err(io::ErrorKind::ConnectionReset));
    for accepting in listeners.into_iter().flat_map(|(_, _, serving)| serving) {
        accepting.await.unwrap();
    }
}

#[tokio::test]
async fn a_caller_that_no_worker_serves_is_reset() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut caller = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    drop(accept(listener.as_fd()).unwrap());
    let ended = caller.read(&mut [0]).await.map_err(|error| error.kind());
    assert_eq!(ended, Err(io::ErrorKind::ConnectionReset));
}

#[tokio::test]
async fn a_limit_is_never_passed_however_many_ask_at_once_and_all_waiting_get_what_is_freed() {
    let slots = Arc::new(Slots::default());
    let mut held: Vec<Slot> = (0..3).map_while(|_| slots.take_below(2)).collect();
    assert_eq!(held.len(), 2);
    let ca = Ca::new("CA");
    let mut limited = route(
        ([127, 0, 0, 1], 1).into(),
        client(&policy(), None, &trust(&[&ca])),
    );
    limited.max_connections = Some(2);
    let (_routes, receiver) = watch::channel(Some(Arc::new(limited)));
    let [mut one, mut two, mut three] = [0; 3].map(|_| receiver.clone());
    let mut one = pin!(slots.wait(&mut one));
    let mut two = pin!(slots.wait(&mut two));
    let mut three = pin!(slots.wait(&mut three));
    for waits in [&mut one, &mut two, &mut three] {
        assert!(waits.as_mut().now_or_never().is_none());
    }
    held.clear();
    // Both at once: the first to wake does not swallow the second's.
    let one = one.await;
    let two = two.await;
    assert!(three.as_mut().now_or_never().is_none());
    drop(one);
    let three = three.await;
    assert_eq!(slots.open.load(Ordering::Relaxed), 2);
    drop((two, three));
}

#[tokio::test(start_paused = true)]
async fn connect_timeout_counts_from_the_accept() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let ca = Ca::new("CA");
    let tls = client(&policy(), None, &trust(&[&ca]));
    let route = route(silent.local_addr().unwrap(), tls);
    let dial = Dial {
        resolver: Arc::new(Resolver::here()),
        accepted: Instant::now(),
        dialling: None,
    };
    // The worker was busy.
    tokio::time::advance(Duration::from_secs(9)).await;
    let failure = connect(&route, &dial, &Progress::new()).await;
    let failure = failure.err().expect("nobody answers");
    assert_eq!(dial.accepted.elapsed().as_secs(), 10);
    assert_eq!(failure.why.reason, Reason::Timeout);
    assert_eq!(
        (failure.phase, failure.side),
        (Phase::Handshake, Side::Upstream)
    );
}
