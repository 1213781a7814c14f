use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::sync::atomic::AtomicUsize;

use rustls::ServerConfig;
use socket2::{Domain, SockRef, Socket, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::config::kubernetes::{ObjectRef, ServiceBackend};
use crate::config::{Callers, Host, ServiceName, Timeouts, UncleanClose};
use crate::metrics::Metrics;
use crate::route::{Handshakes, Presented};
use crate::tls::test_pki::{self, Ca, Leaf, client, policy, trust};

mod callers;

const TIMEOUT: Duration = Duration::from_secs(10);
const NAME: &str = "billing.payments.svc";

/// What a server does with a connection.
#[derive(Clone)]
enum Does {
    /// Takes us, and echoes what it is sent.
    Serve(Arc<ServerConfig>),
    /// Takes the connection and never says anything.
    Nothing,
    /// Reads our hello, says this, and closes.
    Say(&'static [u8]),
    /// Reads our hello and resets.
    Reset,
    /// Shakes hands until it has had our last flight, and closes instead of its own.
    Break(Arc<ServerConfig>),
}

/// One server; ends when dropped.
struct Server {
    address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    /// Content types of the records that it was sent, where it does [`Does::Break`].
    records: Arc<std::sync::Mutex<Vec<u8>>>,
    _task: JoinSet<()>,
}

impl Server {
    async fn new(does: Does) -> Self {
        Self::at(Ipv4Addr::LOCALHOST, does).await
    }

    async fn at(ip: Ipv4Addr, does: Does) -> Self {
        let listener = TcpListener::bind((ip, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let accepted = Arc::new(AtomicUsize::new(0));
        let records = Arc::default();
        let mut task = JoinSet::new();
        let (count, seen) = (Arc::clone(&accepted), Arc::clone(&records));
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                connections.spawn(serve(socket, does.clone(), Arc::clone(&seen)));
            }
        });
        Self {
            address,
            accepted,
            records,
            _task: task,
        }
    }

    fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }
}

async fn serve(mut socket: TcpStream, does: Does, records: Arc<std::sync::Mutex<Vec<u8>>>) {
    match does {
        Does::Serve(config) => {
            socket.set_nodelay(true).unwrap();
            let Ok(mut tls) = TlsAcceptor::from(config).accept(socket).await else {
                return;
            };
            let mut buffer = [0; 1024];
            while let Ok(n @ 1..) = tls.read(&mut buffer).await {
                if tls.write_all(&buffer[..n]).await.is_err() {
                    return;
                }
            }
            let _ = tls.shutdown().await;
        }
        Does::Nothing => {
            // Until the client leaves.
            let _ = socket.read_to_end(&mut Vec::new()).await;
        }
        Does::Say(words) => {
            let _ = socket.read(&mut [0; 4096]).await;
            let _ = socket.write_all(words).await;
        }
        Does::Reset => {
            let _ = socket.read(&mut [0; 4096]).await;
            SockRef::from(&socket)
                .set_linger(Some(Duration::ZERO))
                .unwrap();
        }
        Does::Break(config) => {
            let mut session = rustls::ServerConnection::new(config).unwrap();
            let mut received = Vec::new();
            while session.is_handshaking() {
                let mut out = Vec::new();
                while session.wants_write() {
                    session.write_tls(&mut out).unwrap();
                }
                socket.write_all(&out).await.unwrap();
                let mut buffer = [0; 4096];
                let n = socket.read(&mut buffer).await.unwrap_or(0);
                if n == 0 {
                    break;
                }
                received.extend_from_slice(&buffer[..n]);
                session.read_tls(&mut &buffer[..n]).unwrap();
                session.process_new_packets().unwrap();
            }
            *records.lock().unwrap() = content_types(&received);
        }
    }
}

fn content_types(mut records: &[u8]) -> Vec<u8> {
    let mut types = Vec::new();
    while let [kind, _, _, high, low, rest @ ..] = records {
        types.push(*kind);
        let len = usize::from(u16::from_be_bytes([*high, *low]));
        records = rest.get(len..).unwrap_or_default();
    }
    types
}

/// An address where nothing listens.
fn nobody() -> SocketAddr {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    free.local_addr().unwrap()
}

/// An address that answers no SYN: its backlog is full. Lasts as long as what it returns.
fn black_hole() -> (SocketAddr, Vec<Socket>) {
    let tcp = || Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let listener = tcp();
    listener
        .bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())
        .unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    // A backlog of none has room for one.
    let first = tcp();
    first.connect(&address).unwrap();
    (address.as_socket().unwrap(), vec![listener, first])
}

struct Pki {
    ca: Ca,
    leaf: Leaf,
}

impl Pki {
    fn new() -> Self {
        let ca = Ca::new("CA");
        let leaf = for_the_service(&ca);
        Self { ca, leaf }
    }

    fn server(&self) -> Does {
        Does::Serve(Arc::new(test_pki::server(&self.leaf, &[])))
    }

    /// A server whose certificate is another CA's.
    fn impostor(&self) -> Does {
        let leaf = for_the_service(&Ca::new("other"));
        Does::Serve(Arc::new(test_pki::server(&leaf, &[])))
    }

    fn route(&self, upstream: Upstream) -> Route {
        route(upstream, client(&policy(), None, &trust(&[&self.ca])))
    }

    fn to(&self, live: &Arc<Endpoints>) -> Route {
        self.route(Upstream::Endpoints(Arc::clone(live)))
    }

    fn to_addresses(&self, addresses: &[SocketAddr]) -> Route {
        let address = |address: &SocketAddr| UpstreamAddress {
            host: Host::Address(address.ip()),
            port: address.port(),
        };
        let mut route = self.route(Upstream::Addresses(addresses.iter().map(address).collect()));
        route.server_name = Some(NAME.try_into().unwrap());
        route
    }
}

fn for_the_service(ca: &Ca) -> Leaf {
    ca.server_with(|params| {
        params.subject_alt_names = vec![rcgen::SanType::DnsName(NAME.try_into().unwrap())];
    })
}

fn route(upstream: Upstream, tls: Arc<crate::tls::client_config::Connector>) -> Route {
    let service = ServiceName::parse("billing").unwrap();
    Route {
        metrics: Metrics::new("test").service(&service),
        service,
        upstream,
        server_name: None,
        tls,
        identity: Presented::Nothing,
        timeouts: Timeouts {
            connect: TIMEOUT,
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
    }
}

/// `/a`, `/b` and so on in the order of `addresses`.
fn set(addresses: &[SocketAddr]) -> BTreeMap<String, Vec<SocketAddr>> {
    let names = ('a'..).map(String::from);
    names.zip(addresses.iter().map(|it| vec![*it])).collect()
}

fn live(addresses: &[SocketAddr]) -> Arc<Endpoints> {
    let backend = ServiceBackend {
        service: ObjectRef::new("payments", "billing"),
        port: "https".to_owned(),
    };
    let name = ServiceName::parse("billing").unwrap();
    let live = Endpoints::new(backend, &Metrics::new("test").service(&name));
    live.replace(set(addresses));
    Arc::new(live)
}

/// Sets one aside, so that the others are tried before it.
fn put_last(live: &Endpoints, last: SocketAddr) {
    let mut tried = Tried::default();
    while let Pick::Endpoint { held, .. } = live.pick(&tried, Instant::now()) {
        if held.addresses() == [last] {
            held.failed(Instant::now());
        }
        tried.add(held);
    }
}

async fn dial(route: &Route) -> Result<Connected, Failure> {
    let dial = Dial {
        resolver: Arc::new(Resolver::here()),
        accepted: Instant::now(),
        dialling: None,
    };
    connect(route, &dial, &Progress::new()).await
}

/// What went on to another endpoint, as metrics have it.
fn moved_on(route: &Route) -> BTreeMap<Reason, u64> {
    route.metrics.moves()
}

fn failed(result: Result<Connected, Failure>) -> Failure {
    result.err().expect("connected to somebody")
}

#[tokio::test]
async fn a_dead_endpoint_gives_way_to_another_and_is_avoided_from_then_on() {
    let pki = Pki::new();
    let good = Server::new(pki.server()).await;
    let dead = nobody();
    let live = live(&[dead, good.address]);
    put_last(&live, good.address);
    let route = pki.to(&live);
    let connected = dial(&route).await.unwrap();
    assert_eq!(connected.endpoint, good.address);
    assert_eq!(moved_on(&route), BTreeMap::from([(Reason::Refused, 1)]));
    // The good one has worked, and the dead one has not.
    let summary = live.summary(Instant::now());
    assert_eq!((summary.set_aside, summary.open), (1, 1));
    drop(connected);
    assert_eq!(live.summary(Instant::now()).open, 0);
    for _ in 0..20 {
        dial(&route).await.unwrap();
    }
    assert_eq!(moved_on(&route).len(), 1);
    assert_eq!(moved_on(&route)[&Reason::Refused], 1);
}

#[tokio::test]
async fn an_endpoint_that_breaks_off_in_the_handshake_gives_way_to_another() {
    let pki = Pki::new();
    let good = Server::new(pki.server()).await;
    for (does, reason) in [
        (Does::Say(b""), Reason::ClosedInHandshake),
        (Does::Reset, Reason::Reset),
    ] {
        let bad = Server::new(does).await;
        let live = live(&[bad.address, good.address]);
        put_last(&live, good.address);
        let route = pki.to(&live);
        let connected = dial(&route).await.unwrap();
        assert_eq!(connected.endpoint, good.address);
        assert_eq!(moved_on(&route), BTreeMap::from([(reason, 1)]));
        assert_eq!(bad.accepted(), 1);
        assert_eq!(live.summary(Instant::now()).set_aside, 1);

        // And so with a list of addresses.
        let route = pki.to_addresses(&[bad.address, good.address]);
        let connected = dial(&route).await.unwrap();
        assert_eq!(connected.endpoint, good.address);
        assert_eq!(moved_on(&route), BTreeMap::from([(reason, 1)]));
    }
}

/// In TLS 1.2 the server has its say after our last flight: the latest moment for this.
#[tokio::test]
async fn an_endpoint_that_breaks_off_has_seen_no_byte_of_application_data() {
    let pki = Pki::new();
    let mut config = test_pki::server(&pki.leaf, &[]);
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    let old = ServerConfig::builder_with_provider(Arc::new(test_pki::provider()))
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::clone(&config.cert_resolver));
    let good = Server::new(pki.server()).await;
    let bad = Server::new(Does::Break(Arc::new(old))).await;
    let route = pki.to_addresses(&[bad.address, good.address]);
    let connected = dial(&route).await.unwrap();
    assert_eq!(connected.endpoint, good.address);
    const CHANGE_CIPHER_SPEC: u8 = 20;
    const HANDSHAKE: u8 = 22;
    let seen = bad.records.lock().unwrap().clone();
    // Hello, key exchange, change of cipher, Finished.
    assert_eq!(seen, [HANDSHAKE, HANDSHAKE, CHANGE_CIPHER_SPEC, HANDSHAKE]);
}

#[tokio::test]
async fn a_verdict_stands_and_no_other_endpoint_is_asked() {
    const HANDSHAKE_FAILURE: &[u8] = &[21, 3, 3, 0, 2, 2, 40];
    let pki = Pki::new();
    let good = Server::new(pki.server()).await;
    for (does, reason) in [
        (pki.impostor(), Reason::UntrustedIssuer),
        (Does::Say(HANDSHAKE_FAILURE), Reason::NoSharedCipher),
        (Does::Say(b"220 smtp.example ESMTP\r\n"), Reason::NotTls),
    ] {
        let bad = Server::new(does).await;
        let live = live(&[bad.address, good.address]);
        put_last(&live, good.address);
        let of_service = pki.to(&live);
        let of_list = pki.to_addresses(&[bad.address, good.address]);
        for route in [&of_service, &of_list] {
            let failure = failed(dial(route).await);
            assert_eq!(failure.why.reason, reason);
            let names_it = failure.why.detail.starts_with(&bad.address.to_string());
            assert!(names_it, "{failure}");
            assert_eq!(moved_on(route), BTreeMap::new());
        }
        // The next connection need not meet the same.
        assert_eq!(live.summary(Instant::now()).set_aside, 2);
    }
    assert_eq!(good.accepted(), 0);
}

#[tokio::test]
async fn a_verdict_after_others_failed_names_them_too() {
    let pki = Pki::new();
    let impostor = Server::new(pki.impostor()).await;
    let dead = nobody();
    let route = pki.to_addresses(&[dead, impostor.address, nobody()]);
    let failure = failed(dial(&route).await);
    assert_eq!(failure.why.reason, Reason::UntrustedIssuer);
    let detail = &failure.why.detail;
    assert!(detail.starts_with(&format!("{}: ", impostor.address)));
    assert!(
        detail.contains(&format!("; before that: {dead}: ")),
        "{detail}"
    );
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_says_nothing_has_half_of_the_time_and_a_list_of_one_all_of_it() {
    let pki = Pki::new();
    let good = Server::new(pki.server()).await;
    let silent = Server::new(Does::Nothing).await;
    let live = live(&[silent.address, good.address]);
    put_last(&live, good.address);
    let route = pki.to(&live);
    let begun = Instant::now();
    let connected = dial(&route).await.unwrap();
    assert_eq!(connected.endpoint, good.address);
    assert_eq!(begun.elapsed().as_secs(), 5);
    assert_eq!(moved_on(&route), BTreeMap::from([(Reason::Timeout, 1)]));

    let route = pki.to_addresses(&[silent.address]);
    let begun = Instant::now();
    let failure = failed(dial(&route).await);
    assert_eq!(begun.elapsed().as_secs(), 10);
    assert_eq!(failure.phase, Phase::Handshake);
    assert_eq!(
        failure.why.detail,
        format!(
            "no answer from {} within connect_timeout (10s)",
            silent.address
        )
    );
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_answers_no_syn_has_its_share_of_the_time() {
    let pki = Pki::new();
    let good = Server::new(pki.server()).await;
    let (nowhere, _held) = black_hole();
    let rest = [nobody(), nobody(), nobody(), nobody(), nobody()];
    // Five are tried at most, so that it has a fifth.
    let all = [&[nowhere, good.address][..], &rest].concat();
    let live = live(&all);
    for last in &all[1..] {
        put_last(&live, *last);
    }
    live.replace(set(&all[..5]));
    let route = pki.to(&live);
    let begun = Instant::now();
    let connected = dial(&route).await.unwrap();
    assert_eq!(connected.endpoint, good.address);
    assert_eq!(begun.elapsed().as_secs(), 2);
    assert_eq!(moved_on(&route)[&Reason::Timeout], 1);
}

#[tokio::test]
async fn five_endpoints_are_tried_each_once_and_the_failure_names_them_all() {
    let pki = Pki::new();
    let mut servers = Vec::new();
    for _ in 0..8 {
        servers.push(Server::new(Does::Say(b"")).await);
    }
    let addresses: Vec<SocketAddr> = servers.iter().map(|it| it.address).collect();
    let live = live(&addresses);
    let route = pki.to(&live);
    let failure = failed(dial(&route).await);
    assert_eq!(failure.phase, Phase::Handshake);
    assert_eq!(failure.why.reason, Reason::ClosedInHandshake);
    let tried: Vec<&Server> = servers.iter().filter(|it| it.accepted() > 0).collect();
    assert_eq!(tried.len(), MOST_ENDPOINTS);
    for server in tried {
        assert_eq!(server.accepted(), 1);
        let named = format!("{}: ", server.address);
        assert!(failure.why.detail.contains(&named), "{failure}");
    }
    assert_eq!(moved_on(&route)[&Reason::ClosedInHandshake], 4);
    let summary = live.summary(Instant::now());
    assert_eq!((summary.set_aside, summary.open), (5, 0));
}

#[tokio::test]
async fn an_endpoint_that_was_removed_meanwhile_is_not_dialled() {
    let pki = Pki::new();
    let (removed, new) = (
        Server::new(pki.server()).await,
        Server::new(pki.server()).await,
    );
    // Says when it is tried, and breaks off when it is told.
    let first = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = first.local_addr().unwrap();
    let live = live(&[address, removed.address]);
    put_last(&live, removed.address);
    let route = pki.to(&live);
    let meanwhile = async {
        let (socket, _) = first.accept().await.unwrap();
        live.replace(set(&[address, new.address]));
        drop(socket);
    };
    let (connected, ()) = tokio::join!(dial(&route), meanwhile);
    assert_eq!(connected.unwrap().endpoint, new.address);
    assert_eq!(removed.accepted(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_service_without_an_endpoint_is_waited_for() {
    let pki = Pki::new();
    let live = live(&[]);
    let route = pki.to(&live);
    let good = Server::new(pki.server()).await;
    let appears = async {
        tokio::time::sleep(Duration::from_secs(9)).await;
        live.replace(set(&[good.address]));
    };
    let begun = Instant::now();
    let (connected, ()) = tokio::join!(dial(&route), appears);
    assert_eq!(connected.unwrap().endpoint, good.address);
    assert_eq!(begun.elapsed().as_secs(), 9);
}

#[tokio::test(start_paused = true)]
async fn a_service_whose_last_endpoint_failed_and_went_is_waited_for() {
    let pki = Pki::new();
    let good = Server::new(pki.server()).await;
    let first = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let live = live(&[first.local_addr().unwrap()]);
    let route = pki.to(&live);
    let meanwhile = async {
        let (socket, _) = first.accept().await.unwrap();
        live.replace(set(&[]));
        drop(socket);
        tokio::time::sleep(Duration::from_secs(3)).await;
        live.replace(set(&[good.address]));
    };
    let (connected, ()) = tokio::join!(dial(&route), meanwhile);
    assert_eq!(connected.unwrap().endpoint, good.address);
}

#[tokio::test(start_paused = true)]
async fn where_no_endpoint_appears_the_failure_says_so_at_the_timeout() {
    let pki = Pki::new();
    let route = pki.to(&live(&[]));
    let begun = Instant::now();
    let failure = failed(dial(&route).await);
    assert_eq!(begun.elapsed().as_secs(), 10);
    assert_eq!(
        (failure.phase, failure.side, failure.why.reason),
        (Phase::Resolve, Side::Upstream, Reason::NoEndpoints)
    );
    assert_eq!(
        failure.why.detail,
        "Service payments/billing, port https had no endpoint within connect_timeout (10s)"
    );
}

/// It is this machine's line, and no fault of the endpoint's.
#[tokio::test(start_paused = true)]
async fn time_in_line_for_the_handshake_is_not_held_against_an_endpoint() {
    let pki = Pki::new();
    let (one, two) = (
        Server::new(pki.server()).await,
        Server::new(pki.server()).await,
    );
    let live = live(&[one.address, two.address]);
    let mut route = pki.to(&live);
    route.handshakes = Arc::new(Handshakes::new(NonZeroUsize::new(1)));
    let ahead = Arc::clone(&route.handshakes);
    let place = ahead.place_at_once().unwrap();
    let leaves = async {
        tokio::time::sleep(Duration::from_millis(9_990)).await;
        drop(place);
    };
    let (connected, ()) = tokio::join!(dial(&route), leaves);
    connected.unwrap();
    assert_eq!(one.accepted() + two.accepted(), 1);
    assert_eq!(moved_on(&route), BTreeMap::new());

    let _place = ahead.place_at_once().unwrap();
    let failure = failed(dial(&route).await);
    assert_eq!(failure.side, Side::Local);
    assert_eq!(failure.why.reason, Reason::Timeout);
    assert!(failure.why.detail.contains("max_handshakes"), "{failure}");
    assert_eq!(live.summary(Instant::now()).set_aside, 0);
}

/// Its handshake had 10 ms, and says nothing of it.
#[tokio::test(start_paused = true)]
async fn an_endpoint_that_had_hardly_any_time_is_not_set_aside() {
    let pki = Pki::new();
    let silent = Server::new(Does::Nothing).await;
    let live = live(&[]);
    let route = pki.to(&live);
    for (late, set_aside) in [(9_990, 0), (8_000, 1)] {
        live.replace(set(&[]));
        let appears = async {
            tokio::time::sleep(Duration::from_millis(late)).await;
            live.replace(set(&[silent.address]));
        };
        let (result, ()) = tokio::join!(dial(&route), appears);
        assert_eq!(failed(result).why.reason, Reason::Timeout);
        assert_eq!(live.summary(Instant::now()).set_aside, set_aside);
    }

    // It had answered the SYN long ago, and we were in line.
    live.replace(set(&[]));
    live.replace(set(&[silent.address]));
    let mut route = pki.to(&live);
    route.handshakes = Arc::new(Handshakes::new(NonZeroUsize::new(1)));
    let ahead = Arc::clone(&route.handshakes);
    let place = ahead.place_at_once().unwrap();
    let leaves = async {
        tokio::time::sleep(Duration::from_millis(9_990)).await;
        drop(place);
    };
    let (result, ()) = tokio::join!(dial(&route), leaves);
    assert_eq!(failed(result).side, Side::Upstream);
    assert_eq!(live.summary(Instant::now()).set_aside, 0);
}

#[tokio::test]
async fn the_second_address_of_an_endpoint_is_no_second_endpoint() {
    let pki = Pki::new();
    let good = Server::new(pki.server()).await;
    let live = live(&[]);
    let both = vec![nobody(), good.address];
    live.replace(BTreeMap::from([("a".to_owned(), both)]));
    let route = pki.to(&live);
    let connected = dial(&route).await.unwrap();
    assert_eq!(connected.endpoint, good.address);
    assert_eq!(moved_on(&route), BTreeMap::new());
    assert_eq!(live.summary(Instant::now()).set_aside, 0);
}

#[tokio::test]
async fn a_dial_that_is_given_up_is_not_counted_any_more() {
    let pki = Pki::new();
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let live = live(&[silent.local_addr().unwrap()]);
    let route = pki.to(&live);
    {
        let dialled = pin!(dial(&route));
        tokio::select! {
            _ = dialled => panic!("connected to nobody"),
            accepted = silent.accept() => drop(accepted.unwrap()),
        }
        assert_eq!(live.summary(Instant::now()).open, 1);
    }
    assert_eq!(live.summary(Instant::now()).open, 0);
}
