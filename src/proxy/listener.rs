//! Listeners: bind, listen, accept.
//!
//! Three states, each a type: [`Bound`] has its address and refuses callers (a socket that is
//! bound but does not listen answers with RST), [`Listening`] lets the kernel queue them,
//! [`Listening::serve`] takes them.

use std::io;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::FutureExt as _;
use socket2::{Domain, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::caller::Caller;
use super::connect::keepalive_after;
use super::connection::{self, CallerAddress};
use super::outcome::out_of_descriptors;
use super::resolve::Resolver;
use crate::clock;
use crate::config::{Callers, Listen};
use crate::failure::{Explained, Failure, Phase, Reason, Side};
use crate::route::Route;
use crate::shutdown::Shutdown;
use crate::unix_socket::{self, SocketFile};

/// Connections that the kernel queues for us, if `net.core.somaxconn` allows as many.
const BACKLOG: i32 = 4096;

/// First and longest pause after a failed accept (as ghostunnel: doubling, back to the first
/// after a success).
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A listener that has its address; callers are refused.
#[derive(Debug)]
pub(crate) struct Bound {
    listen: Listen,
    socket: Socket,
    file: Option<SocketFile>,
}

impl Bound {
    /// Takes the address.
    ///
    /// # Errors
    /// [`Reason::BindFailed`] with address and cause.
    pub(crate) fn bind(listen: &Listen) -> Result<Self, Explained> {
        let failed = |error: String| {
            Explained::new(Reason::BindFailed, format!("cannot bind {listen}: {error}"))
        };
        match listen {
            Listen::Tcp(address) => {
                let socket = tcp(*address).map_err(|error| failed(error.to_string()))?;
                Ok(Self {
                    listen: listen.clone(),
                    socket,
                    file: None,
                })
            }
            Listen::Unix { path, mode } => {
                let (socket, file) = unix_socket::bind(path, *mode).map_err(failed)?;
                Ok(Self {
                    listen: listen.clone(),
                    socket,
                    file: Some(file),
                })
            }
        }
    }

    pub(crate) fn address(&self) -> &Listen {
        &self.listen
    }

    /// Lets the kernel queue callers.
    ///
    /// # Errors
    /// The listener as it was, with [`Reason::BindFailed`]: Linux lets two sockets bind the same
    /// address until one of them listens.
    pub(crate) fn listen(self) -> Result<Listening, Box<(Self, Explained)>> {
        match self.socket.listen(BACKLOG) {
            Ok(()) => Ok(Listening(self)),
            Err(error) => {
                let why = format!("cannot listen on {}: {error}", self.listen);
                Err(Box::new((self, Explained::new(Reason::BindFailed, why))))
            }
        }
    }
}

fn tcp(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    // A restart must not wait for connections in TIME_WAIT.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // "[::]" would take IPv4's port too, depending on a sysctl.
        socket.set_only_v6(true)?;
    }
    // Accepted sockets inherit it, which saves a system call for each.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// A listener whose callers the kernel queues.
#[derive(Debug)]
pub(crate) struct Listening(Bound);

impl Listening {
    /// Accepts callers and serves each with the route that is current then, until `stop` (or the
    /// process's drain); then takes those that the kernel had already let in, and closes.
    /// Connections go on after that as tasks of `shutdown`. While there is no route, callers are
    /// reset.
    ///
    /// # Errors
    /// If the runtime cannot take the socket.
    pub(crate) async fn serve(
        self,
        routes: watch::Receiver<Option<Arc<Route>>>,
        resolver: Arc<Resolver>,
        shutdown: Shutdown,
        stop: CancellationToken,
    ) -> io::Result<()> {
        let Self(Bound {
            listen: _,
            socket,
            file,
        }) = self;
        let keepalive = routes.borrow().as_ref().and_then(|route| route.keepalive);
        let mut desk = Desk {
            routes,
            resolver,
            shutdown,
            slots: Arc::default(),
            keepalive,
        };
        if file.is_some() {
            desk.serve(&UnixListener::from_std(socket.into())?, &stop)
                .await;
        } else {
            // Accepted sockets inherit it too.
            if let Some(idle) = keepalive {
                socket.set_tcp_keepalive(&keepalive_after(idle))?;
            }
            desk.serve(&TcpListener::from_std(socket.into())?, &stop)
                .await;
        }
        Ok(())
    }
}

/// What TCP and unix listeners have in common.
trait Accept {
    type Stream: Caller + 'static;

    async fn accept(&self) -> io::Result<(Self::Stream, CallerAddress)>;

    /// Changes keep-alive probes from what the listener gave to the stream.
    fn set_keepalive(stream: &Self::Stream, idle: Option<Duration>) -> io::Result<()>;
}

impl Accept for TcpListener {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<(TcpStream, CallerAddress)> {
        let (stream, address) = Self::accept(self).await?;
        Ok((stream, CallerAddress::Tcp(address)))
    }

    fn set_keepalive(stream: &TcpStream, idle: Option<Duration>) -> io::Result<()> {
        let socket = SockRef::from(stream);
        match idle {
            Some(idle) => socket.set_tcp_keepalive(&keepalive_after(idle)),
            None => socket.set_keepalive(false),
        }
    }
}

impl Accept for UnixListener {
    type Stream = UnixStream;

    async fn accept(&self) -> io::Result<(UnixStream, CallerAddress)> {
        let (stream, _) = Self::accept(self).await?;
        let peer = stream.peer_cred()?;
        let address = CallerAddress::Unix {
            uid: peer.uid(),
            gid: peer.gid(),
            pid: peer.pid(),
        };
        Ok((stream, address))
    }

    /// A unix socket needs none: its kernel knows both ends.
    fn set_keepalive(_: &UnixStream, _: Option<Duration>) -> io::Result<()> {
        Ok(())
    }
}

/// Where callers of one listener are received.
struct Desk {
    routes: watch::Receiver<Option<Arc<Route>>>,
    resolver: Arc<Resolver>,
    shutdown: Shutdown,
    slots: Arc<Slots>,
    /// What accepted sockets inherit from the listener.
    keepalive: Option<Duration>,
}

impl Desk {
    async fn serve<L: Accept>(&mut self, listener: &L, stop: &CancellationToken) {
        let drain = self.shutdown.drain().clone();
        let mut pause = FIRST_PAUSE;
        loop {
            // The slot first: a caller beyond the limit waits in the kernel's backlog.
            let slot = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = drain.cancelled() => break,
                slot = self.slot() => slot,
            };
            let accepted = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = drain.cancelled() => break,
                // The limit may be lower now: the slot is given back and asked for again.
                () = changed(&mut self.routes) => continue,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, address)) => {
                    pause = FIRST_PAUSE;
                    self.receive::<L>(stream, address, slot);
                }
                Err(error) if is_of_one_caller(&error) => {}
                Err(error) => {
                    self.accept_failed(&error, pause);
                    tokio::select! {
                        () = stop.cancelled() => break,
                        () = drain.cancelled() => break,
                        () = tokio::time::sleep(pause) => {}
                    }
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
        // Closing the socket would reset callers that the kernel has let in already. No more than
        // the backlog can be there, and none can be waited for.
        for _ in 0..BACKLOG {
            let now = std::future::ready(());
            tokio::select! {
                biased;
                accepted = listener.accept() => match accepted {
                    Ok((stream, address)) => {
                        self.receive::<L>(stream, address, self.slots.take());
                    }
                    Err(error) if is_of_one_caller(&error) => {}
                    Err(_) => break,
                },
                () = now => break,
            }
        }
    }

    /// Waits until the current route's `max_connections` leaves room for one more.
    async fn slot(&mut self) -> Slot {
        loop {
            let max = self
                .routes
                .borrow_and_update()
                .as_ref()
                .and_then(|route| route.max_connections);
            let freed = self.slots.freed.notified();
            if max.is_none_or(|max| self.slots.open.load(Ordering::Relaxed) < max) {
                return self.slots.take();
            }
            tokio::select! {
                () = freed => {}
                () = changed(&mut self.routes) => {}
            }
        }
    }

    fn receive<L: Accept>(&self, stream: L::Stream, address: CallerAddress, slot: Slot) {
        let Some(route) = self.routes.borrow().clone() else {
            stream.reset_on_close();
            return;
        };
        let open = route.metrics.opened();
        if !admits(&route.callers, &address) {
            stream.reset_on_close();
            drop(stream);
            let detail = format!("{address} is not in allow_callers");
            let failure = Failure::new(
                Phase::Accept,
                Side::Caller,
                Reason::CallerNotAllowed,
                detail,
            );
            route.metrics.ended(Err(&failure), clock::unix_seconds());
            warn!(service = %route.service, caller = %address, phase = "accept", side = "caller",
                reason = %failure.why.reason, detail = failure.why.detail,
                hint = failure.why.hint, "caller refused");
            return;
        }
        if route.keepalive != self.keepalive {
            // A socket that was just accepted takes it; without it, it would still be right.
            let _ = L::set_keepalive(&stream, route.keepalive);
        }
        let resolver = Arc::clone(&self.resolver);
        let abort = self.shutdown.abort().clone();
        let metrics = Arc::clone(&route.metrics);
        // In a box, so that it is held once: a future that is moved into another has room there
        // twice.
        let serving = Box::pin(connection::run(stream, address, route, resolver, abort));
        self.shutdown.connections().spawn(async move {
            // One connection's bug ends one connection, and is counted. The panic hook has said
            // where it was.
            if AssertUnwindSafe(serving).catch_unwind().await.is_err() {
                let bug = Failure::new(Phase::Relay, Side::Local, Reason::Internal, "panic");
                metrics.ended(Err(&bug), clock::unix_seconds());
            }
            drop((open, slot));
        });
    }

    fn accept_failed(&self, error: &io::Error, pause: Duration) {
        let reason = if out_of_descriptors(error) {
            Reason::TooManyFiles
        } else {
            Reason::LocalResource
        };
        let failure = Failure::new(Phase::Accept, Side::Local, reason, error.to_string());
        let route = self.routes.borrow();
        if let Some(route) = &*route {
            route.metrics.ended(Err(&failure), clock::unix_seconds());
        }
        let service = route.as_ref().map(|route| route.service.as_str());
        warn!(service, phase = "accept", side = "local", reason = %reason,
            detail = failure.why.detail, hint = failure.why.hint,
            pause_ms = pause.as_millis() as u64, "cannot accept; callers wait in the backlog");
    }
}

/// Resolves when there is a route that was not looked at yet, or none any more.
async fn changed(routes: &mut watch::Receiver<Option<Arc<Route>>>) {
    if routes.changed().await.is_err() {
        // Control is gone; the drain token ends this listener.
        std::future::pending::<()>().await;
    }
}

/// Errors that accept(2) reports of the one connection that it took, and that say nothing of the
/// next.
fn is_of_one_caller(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(
        errno,
        Some(
            Errno::CONNABORTED
                | Errno::CONNRESET
                | Errno::INTR
                | Errno::PROTO
                | Errno::NETDOWN
                | Errno::HOSTDOWN
                | Errno::HOSTUNREACH
                | Errno::NETUNREACH
        )
    )
}

fn admits(callers: &Callers, address: &CallerAddress) -> bool {
    match (callers, address) {
        (Callers::Anyone, _) => true,
        (Callers::Networks(networks), CallerAddress::Tcp(address)) => {
            let ip = address.ip().to_canonical();
            networks.iter().any(|network| network.contains(&ip))
        }
        (Callers::Peers { uids, gids }, CallerAddress::Unix { uid, gid, .. }) => {
            uids.contains(uid) || gids.contains(gid)
        }
        // The configuration gives each kind of listener its kind of list.
        (Callers::Networks(_), CallerAddress::Unix { .. })
        | (Callers::Peers { .. }, CallerAddress::Tcp(_)) => false,
    }
}

/// Counts open connections of a listener against its limit.
#[derive(Debug, Default)]
struct Slots {
    open: AtomicUsize,
    freed: Notify,
}

impl Slots {
    fn take(self: &Arc<Self>) -> Slot {
        self.open.fetch_add(1, Ordering::Relaxed);
        Slot(Arc::clone(self))
    }
}

/// One open connection; makes room when dropped.
#[derive(Debug)]
struct Slot(Arc<Slots>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
        self.0.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use rustls_pki_types::ServerName;
    use tokio::io::AsyncReadExt as _;

    use super::*;
    use crate::config::{Host, ServiceName, Timeouts, UncleanClose, UpstreamAddress};
    use crate::metrics::Metrics;
    use crate::route::Presented;
    use crate::tls::client_config::Connector;
    use crate::tls::test_pki::{Ca, client, policy, trust};

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
    }

    #[test]
    fn a_bound_listener_refuses_callers_until_it_listens() {
        let free = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let bound = Bound::bind(&Listen::Tcp(free)).unwrap();
        let refused = std::net::TcpStream::connect(free).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        let _listening = bound.listen().unwrap();
        std::net::TcpStream::connect(free).unwrap();
    }

    #[test]
    fn listeners_of_ipv6_and_ipv4_share_a_port() {
        let any = |address: &str| Bound::bind(&Listen::Tcp(address.parse().unwrap()));
        let Ok(v6) = any("[::]:0") else {
            return; // this machine has no IPv6
        };
        let port = v6.socket.local_addr().unwrap().as_socket().unwrap().port();
        let v6 = v6.listen().unwrap();
        let v4 = any(&format!("0.0.0.0:{port}")).unwrap();
        v4.listen().unwrap();
        drop(v6);
    }

    #[test]
    fn an_address_in_use_is_named_with_the_reason() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let why = Bound::bind(&Listen::Tcp(address)).unwrap_err();
        assert_eq!(why.reason, Reason::BindFailed);
        assert!(why.detail.contains(&address.to_string()), "{why}");
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
        fn tls12_session(
            &self,
            _: &ServerName<'_>,
        ) -> Option<rustls::client::Tls12ClientSessionValue> {
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
            upstream: vec![UpstreamAddress {
                host: Host::Address(to.ip()),
                port: to.port(),
            }],
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
            Arc::default(),
            shutdown.clone(),
            CancellationToken::new(),
        );
        let callers = async {
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
        };
        let (served, ()) = tokio::join!(serving, callers);
        served.unwrap();
        shutdown.connections().close();
        shutdown.connections().wait().await;

        let traffic = route.metrics.traffic();
        assert_eq!((traffic.open, traffic.failed), (0, 2));
        let reason = traffic.last_failure.map(|last| last.failure.why.reason);
        assert_eq!(reason, Some(Reason::Internal));
    }
}
