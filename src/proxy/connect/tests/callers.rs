//! What callers have of several endpoints, through the whole data path.

use tokio::sync::{Notify, watch};
use tokio_util::task::TaskTracker;

use super::*;
use crate::config::Listen;
use crate::proxy::listener::Bound;
use crate::shutdown::Shutdown;
use crate::workers::Crew;

const ENDPOINTS: usize = 100;
const ROUNDS: usize = 30;
const CALLERS: usize = 16;
/// Connections that end between two replacements.
const EACH_ROUND: usize = 30;

/// A generation of pods. Of each hundred two are dead already and two break off in the handshake:
/// fewer than a connection tries. Dropped, they take nobody any more, and whoever the kernel had let in is
/// reset; those that they serve are served on, as a pod does that terminates.
struct Pods {
    addresses: Vec<SocketAddr>,
    _accepting: JoinSet<()>,
}

impl Pods {
    async fn new(generation: usize, config: &Arc<ServerConfig>, serving: &TaskTracker) -> Self {
        let mut addresses = Vec::new();
        let mut accepting = JoinSet::new();
        for n in 0..ENDPOINTS {
            let ip = Ipv4Addr::new(127, 1, generation as u8, n as u8 + 1);
            let listener = TcpListener::bind((ip, 0)).await.unwrap();
            addresses.push(listener.local_addr().unwrap());
            let does = match n {
                0 | 1 => continue,
                2 | 3 => Does::Reset,
                _ => Does::Serve(Arc::clone(config)),
            };
            let serving = serving.clone();
            accepting.spawn(async move {
                while let Ok((socket, _)) = listener.accept().await {
                    serving.spawn(serve(socket, does.clone(), Arc::default()));
                }
            });
        }
        Self {
            addresses,
            _accepting: accepting,
        }
    }

    /// With ids that no generation has in common.
    fn set(&self) -> BTreeMap<String, Vec<SocketAddr>> {
        let addresses = self.addresses.iter();
        addresses.map(|it| (it.to_string(), vec![*it])).collect()
    }
}

/// The proxy with one route, on the current runtime.
struct Proxy {
    address: SocketAddr,
    shutdown: Shutdown,
    accepting: Vec<tokio::task::JoinHandle<()>>,
    _routes: watch::Sender<Option<Arc<Route>>>,
}

impl Proxy {
    fn start(route: &Arc<Route>) -> Self {
        let address = nobody();
        let shutdown = Shutdown::default();
        let (routes, receiver) = watch::channel(Some(Arc::clone(route)));
        let listening = Bound::bind(&Listen::Tcp(address)).unwrap().listen();
        let accepting = listening.unwrap().serve(
            receiver,
            Arc::new(Resolver::here()),
            &Crew::of_the_current_runtime(),
            &shutdown,
            &shutdown.drain().child_token(),
        );
        Self {
            address,
            shutdown,
            accepting: accepting.into_iter().collect(),
            _routes: routes,
        }
    }

    /// Waits until the last connection has ended.
    async fn drain(self) {
        self.shutdown.drain().cancel();
        for accepting in self.accepting {
            accepting.await.unwrap();
        }
        self.shutdown.connections().close();
        self.shutdown.connections().wait().await;
    }
}

/// One connection: a question, the answer, and an end in good order.
async fn call(proxy: SocketAddr) -> io::Result<()> {
    let mut caller = TcpStream::connect(proxy).await?;
    caller.write_all(b"question").await?;
    let mut answer = [0; 8];
    caller.read_exact(&mut answer).await?;
    assert_eq!(&answer, b"question");
    caller.shutdown().await?;
    match caller.read(&mut answer).await? {
        0 => Ok(()),
        n => Err(io::Error::other(format!("{n} bytes too many"))),
    }
}

#[tokio::test]
async fn no_connection_fails_while_a_hundred_endpoints_are_replaced_over_and_over() {
    let pki = Pki::new();
    let config = Arc::new(test_pki::server(&pki.leaf, &[]));
    let serving = TaskTracker::new();
    let mut pods = Pods::new(0, &config, &serving).await;
    let live = live(&[]);
    live.replace(pods.set());
    let route = Arc::new(pki.to(&live));

    let proxy = Proxy::start(&route);

    let done = Arc::new((AtomicUsize::new(0), Notify::new()));
    let stop = CancellationToken::new();
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let (done, stop, proxy) = (Arc::clone(&done), stop.clone(), proxy.address);
        callers.spawn(async move {
            while !stop.is_cancelled() {
                call(proxy).await?;
                done.0.fetch_add(1, Ordering::Relaxed);
                done.1.notify_one();
            }
            io::Result::Ok(())
        });
    }
    for round in 1..=ROUNDS {
        let so_many = round * EACH_ROUND;
        while done.0.load(Ordering::Relaxed) < so_many {
            tokio::select! {
                () = done.1.notified() => {}
                failed = callers.join_next() => panic!("round {round}: {failed:?}"),
            }
        }
        let next = Pods::new(round, &config, &serving).await;
        live.replace(next.set());
        // The old ones are gone in the same moment: harder than a pod ever goes.
        pods = next;
    }
    stop.cancel();
    while let Some(ended) = callers.join_next().await {
        ended.unwrap().unwrap();
    }

    proxy.drain().await;
    let traffic = route.metrics.traffic();
    assert_eq!((traffic.failed, traffic.open), (0, 0));
    assert!(traffic.ended_ok as usize >= ROUNDS * EACH_ROUND);
    assert_eq!(live.summary(Instant::now()).open, 0);
    // It was not for want of trouble.
    let moved_on = moved_on(&route);
    for reason in [Reason::Refused, Reason::Reset] {
        assert!(moved_on.contains_key(&reason), "{moved_on:?}");
    }
    drop(pods);
}

/// Each server has a session store of its own, as pods have that do not share ticket keys.
#[tokio::test]
async fn each_endpoints_sessions_are_resumed_after_its_first_handshake() {
    let pki = Pki::new();
    let mut servers = Vec::new();
    for _ in 0..10 {
        servers.push(Server::new(pki.server()).await);
    }
    let addresses: Vec<SocketAddr> = servers.iter().map(|it| it.address).collect();
    let live = live(&addresses);
    let route = Arc::new(pki.to(&live));
    let proxy = Proxy::start(&route);
    for _ in 0..200 {
        call(proxy.address).await.unwrap();
    }
    proxy.drain().await;
    let reached = servers.iter().filter(|it| it.accepted() > 0).count() as u64;
    let traffic = route.metrics.traffic();
    assert_eq!(traffic.handshakes_full, reached);
    assert_eq!(traffic.handshakes_resumed, 200 - reached);
}
