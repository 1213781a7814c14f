//! Listeners: bind and listen.
//!
//! Three states, each a type: [`Bound`] has its address and refuses callers (a socket that is
//! bound but does not listen answers with RST), [`Listening`] lets the kernel queue them,
//! [`Listening::serve`] takes them ([`super::accept`]).

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
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
    /// Accepts callers and serves each with the route that is current then, until `stop`; then
    /// takes those that the kernel had already let in, and closes: the tasks that are returned
    /// end. Connections go on after that as tasks of `shutdown`. While there is no route, callers
    /// are reset.
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
            socket,
            file,
        }) = self;
        let keepalive = routes.borrow().as_ref().and_then(|route| route.keepalive);
        let is_unix = file.is_some();
        // Accepted sockets inherit it too.
        if let Some(idle) = keepalive
            && !is_unix
            && let Err(error) = socket.set_tcp_keepalive(&keepalive_after(idle))
        {
            warn!(%listen, %error, "cannot set keep-alive probes");
        }
        let socket = Arc::new(OwnedFd::from(socket));
        let file = Arc::new(file);
        let desk = Arc::new(Desk::new(
            routes.clone(),
            resolver,
            Arc::clone(crew),
            shutdown.clone(),
            keepalive,
        ));
        crew.acceptors()
            .map(|worker| {
                let (socket, file) = (Arc::clone(&socket), Arc::clone(&file));
                let acceptor = Acceptor::new(worker, &desk, routes.clone(), stop.clone());
                let listen = listen.clone();
                let accepting = async move {
                    let ended = if is_unix {
                        acceptor.run::<UnixStream>(socket).await
                    } else {
                        acceptor.run::<TcpStream>(socket).await
                    };
                    if let Err(error) = ended {
                        warn!(%listen, %error, "a worker cannot watch the listener");
                    }
                    // The socket is closed where this was the last; then goes its file.
                    drop(file);
                };
                let tasks = shutdown.connections();
                tasks.spawn_on(accepting, worker.runtime())
            })
            .collect()
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
}
