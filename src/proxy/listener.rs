//! Listeners: bind and listen.
//!
//! Three states, each a type: [`Bound`] has its address and refuses callers (a socket that is
//! bound but does not listen answers with RST), [`Listening`] lets the kernel queue them,
//! [`Listening::serve`] takes them ([`super::accept`]).

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use socket2::{Domain, Socket, Type};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::accept::{Acceptor, BACKLOG, Desk};
use super::connect::keepalive_after;
use super::resolve::Resolver;
use crate::config::Listen;
use crate::failure::{Explained, Reason};
use crate::route::Route;
use crate::shutdown::Shutdown;
use crate::unix_socket::{self, SocketFile};
use crate::workers::Crew;

/// A listener that has its address. Callers are refused, except where it listens already: then they
/// wait.
#[derive(Debug)]
pub(crate) struct Bound {
    listen: Listen,
    /// One, except where systemd passes several under one name.
    sockets: Vec<Place>,
    origin: Origin,
}

#[derive(Debug)]
struct Place {
    socket: Socket,
    file: Option<SocketFile>,
}

/// Who opened a listener's sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// This process.
    Here,
    /// This process, and systemd keeps it for the next.
    Kept,
    /// An earlier process, or systemd: it listens already, and goes on when this process has ended.
    Handed,
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
                Ok(Self::of(listen, socket, None))
            }
            Listen::Unix { path, mode } => {
                let (socket, file) = unix_socket::bind(path, *mode).map_err(failed)?;
                Ok(Self::of(listen, socket, Some(file)))
            }
            Listen::Systemd(_) => Err(failed("its sockets are opened by systemd".to_owned())),
        }
    }

    fn of(listen: &Listen, socket: Socket, file: Option<SocketFile>) -> Self {
        Self {
            listen: listen.clone(),
            sockets: vec![Place { socket, file }],
            origin: Origin::Here,
        }
    }

    /// A listener that outlives this process: opened by systemd, or by an earlier process. `file` is
    /// the path's where this process is to remove it.
    ///
    /// # Errors
    /// [`Reason::BindFailed`]: it cannot be made fit for use.
    pub(crate) fn handed(
        listen: &Listen,
        sockets: impl IntoIterator<Item = OwnedFd>,
        mut file: Option<SocketFile>,
    ) -> Result<Self, Explained> {
        let prepare = |socket: OwnedFd| {
            let socket = Socket::from(socket);
            socket.set_nonblocking(true)?;
            if !is_unix(&socket) {
                // Accepted sockets inherit both; the first route says whether there are probes.
                socket.set_tcp_nodelay(true)?;
                socket.set_keepalive(false)?;
            }
            let file = file.take().inspect(|file| file.stays(true));
            Ok(Place { socket, file })
        };
        let sockets: io::Result<Vec<Place>> = sockets.into_iter().map(prepare).collect();
        let sockets = sockets.map_err(|error| {
            let why = format!("cannot use {listen}: {error}");
            Explained::new(Reason::BindFailed, why)
        })?;
        if let Listen::Unix {
            path,
            mode: Some(mode),
        } = listen
        {
            unix_socket::set_mode(path, *mode);
        }
        Ok(Self {
            listen: listen.clone(),
            sockets,
            origin: Origin::Handed,
        })
    }

    /// Whether callers wait in it already.
    pub(crate) fn listens(&self) -> bool {
        self.origin == Origin::Handed
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
        if self.listens() {
            return Ok(Listening(self));
        }
        let mut sockets = self.sockets.iter();
        match sockets.try_for_each(|place| place.socket.listen(BACKLOG)) {
            Ok(()) => Ok(Listening(self)),
            Err(error) => {
                let why = format!("cannot listen on {}: {error}", self.listen);
                Err(Box::new((self, Explained::new(Reason::BindFailed, why))))
            }
        }
    }
}

fn is_unix(socket: &Socket) -> bool {
    socket.domain().is_ok_and(|domain| domain == Domain::UNIX)
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
    pub(crate) fn address(&self) -> &Listen {
        &self.0.listen
    }

    /// The socket that this process opened, with its file's device and inode, for somebody to keep.
    pub(crate) fn own(&self) -> Option<(BorrowedFd<'_>, Option<(u64, u64)>)> {
        match (self.0.origin, self.0.sockets.first()) {
            (Origin::Here, Some(Place { socket, file })) => {
                Some((socket.as_fd(), file.as_ref().map(SocketFile::id)))
            }
            _ => None,
        }
    }

    /// Somebody keeps the socket open beyond the end of this process.
    pub(crate) fn is_kept(&mut self) {
        self.0.origin = Origin::Kept;
        for file in self.0.sockets.iter().filter_map(|it| it.file.as_ref()) {
            file.stays(true);
        }
    }

    /// Accepts callers and serves each with the route that is current then, until `stop`; then
    /// takes those that the kernel had already let in, and closes: the tasks that are returned
    /// end. Connections go on after that as tasks of `shutdown`. While there is no route, callers
    /// are reset.
    ///
    /// Where the sockets outlive the process and it is the process that ends, whoever the kernel
    /// has let in waits for the next one.
    ///
    /// The one socket is watched by several workers of `crew`, and none of them loses what it
    /// holds when another ends: it closes with the last.
    pub(crate) fn serve(
        self,
        routes: watch::Receiver<Option<Arc<Route>>>,
        resolver: Arc<Resolver>,
        crew: &Arc<Crew>,
        shutdown: &Shutdown,
        stop: &CancellationToken,
    ) -> Vec<JoinHandle<()>> {
        let Self(Bound {
            listen,
            sockets,
            origin,
        }) = self;
        let keepalive = routes.borrow().as_ref().and_then(|route| route.keepalive);
        let outlives = origin != Origin::Here;
        let desk = Arc::new(Desk::new(
            routes.clone(),
            resolver,
            Arc::clone(crew),
            shutdown.clone(),
            keepalive,
            outlives,
        ));
        let mut tasks = Vec::new();
        for Place { socket, file } in sockets {
            let is_unix = is_unix(&socket);
            // Accepted sockets inherit it too.
            if let Some(idle) = keepalive
                && !is_unix
                && let Err(error) = socket.set_tcp_keepalive(&keepalive_after(idle))
            {
                warn!(%listen, %error, "cannot set keep-alive probes");
            }
            let socket = Arc::new(OwnedFd::from(socket));
            let file = Arc::new(file);
            tasks.extend(crew.acceptors().map(|worker| {
                let (socket, file) = (Arc::clone(&socket), Arc::clone(&file));
                let acceptor = Acceptor::new(worker, &desk, routes.clone(), stop.clone());
                let listen = listen.clone();
                let drain = shutdown.drain().clone();
                let accepting = async move {
                    let ended = if is_unix {
                        acceptor.run::<UnixStream>(socket).await
                    } else {
                        acceptor.run::<TcpStream>(socket).await
                    };
                    if let Err(error) = ended {
                        warn!(%listen, %error, "a worker cannot watch the listener");
                    }
                    if outlives
                        && !drain.is_cancelled()
                        && let Some(file) = &*file
                    {
                        file.stays(false);
                    }
                    // The socket is closed where this was the last; then goes its file.
                    drop(file);
                };
                let tasks = shutdown.connections();
                tasks.spawn_on(accepting, worker.runtime())
            }));
        }
        tasks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn a_listener_that_was_handed_over_has_our_options_and_not_those_of_before() {
        let before = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let listen = Listen::Tcp(before.local_addr().unwrap());
        let options = Socket::from(before.try_clone().unwrap());
        options.set_keepalive(true).unwrap();
        let bound = Bound::handed(&listen, [before.into()], None).unwrap();
        assert!(bound.listens());
        assert!(options.nonblocking().unwrap());
        assert!(options.tcp_nodelay().unwrap());
        assert!(!options.keepalive().unwrap());
        let listening = bound.listen().unwrap();
        assert!(listening.own().is_none(), "it is kept already");
    }

    #[test]
    fn listeners_of_ipv6_and_ipv4_share_a_port() {
        let any = |address: &str| Bound::bind(&Listen::Tcp(address.parse().unwrap()));
        let Ok(v6) = any("[::]:0") else {
            return; // this machine has no IPv6
        };
        let port = v6.sockets[0]
            .socket
            .local_addr()
            .unwrap()
            .as_socket()
            .unwrap()
            .port();
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
}
