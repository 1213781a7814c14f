//! The listener of the admin endpoints and its connections.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinSet;
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;

use super::routes::{self, Entrance};
use super::{Shared, Surface};
use crate::config::Listen;
use crate::failure::{Explained, Reason};
use crate::unix_socket::{self, SocketFile};

/// Open connections at once; more wait in the kernel's backlog. A scraper, a few probes and a few
/// people need far fewer, and this many cannot exhaust files or memory.
const MAX_CONNECTIONS: usize = 64;

/// Clients that the kernel queues: as many as can be served.
const BACKLOG: i32 = MAX_CONNECTIONS as i32;

/// For the head of a request, from accept or from the answer before it: so it also ends idle
/// connections, which hold one of the places.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a client may leave an answer unread: it holds one of the places.
const STALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Requests here have short heads; hyper's own limit of about 400 KiB would be held by each of
/// the places.
const MAX_HEAD: usize = 16 * 1024;

/// Before the next try where the system refuses to accept (no file descriptor left).
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// A bound listener: clients wait until it is served. A unix socket's file goes when this, or the
/// serving of it, ends.
#[derive(Debug)]
pub(crate) struct Bound {
    listener: Listener,
    surface: Surface,
    file: Option<SocketFile>,
}

#[derive(Debug)]
enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Bound {
    /// Binds and listens. Within a tokio runtime only.
    ///
    /// # Errors
    /// [`Reason::BindFailed`], naming the key, the address and the cause.
    pub(crate) fn bind(listen: &Listen, surface: Surface) -> Result<Self, Explained> {
        let refuse = |cause: String| {
            let place = surface.key();
            Explained::new(Reason::BindFailed, format!("{place} {listen}: {cause}"))
        };
        match listen {
            Listen::Tcp(address) => bind_tcp(*address)
                .map(|listener| Self {
                    listener: Listener::Tcp(listener),
                    surface,
                    file: None,
                })
                .map_err(|error| refuse(error.to_string())),
            Listen::Unix { path, mode } => {
                let (socket, file) = unix_socket::bind(path, *mode).map_err(refuse)?;
                let listener = socket
                    .listen(BACKLOG)
                    .and_then(|()| UnixListener::from_std(socket.into()))
                    .map_err(|error| refuse(error.to_string()))?;
                Ok(Self {
                    listener: Listener::Unix(listener),
                    surface,
                    file: Some(file),
                })
            }
            Listen::Systemd(_) => Err(refuse("an admin endpoint opens its own socket".into())),
        }
    }

    /// The address with the port that the kernel chose; `None` for a unix socket.
    #[cfg(test)]
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        match &self.listener {
            Listener::Tcp(listener) => listener.local_addr().ok(),
            Listener::Unix(_) => None,
        }
    }

    /// Serves until `shutdown`; then closes the listener and returns when the last request under
    /// way is answered. A reload under way may take long: who awaits this sets the limit. Dropping
    /// the future ends all connections at once.
    pub(crate) async fn serve(self, shared: Arc<Shared>, shutdown: CancellationToken) {
        let Self {
            listener,
            surface,
            file,
        } = self;
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                Some(ended) = connections.join_next() => report(ended),
                accepted = accept(&listener), if connections.len() < MAX_CONNECTIONS => {
                    match accepted {
                        Ok((stream, tcp)) => {
                            let entrance = Entrance { surface, tcp };
                            let shared = Arc::clone(&shared);
                            let shutdown = shutdown.clone();
                            connections.spawn(connection(stream, entrance, shared, shutdown));
                        }
                        // Gone before we took it: the client's affair.
                        Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                        Err(error) => {
                            let place = surface.key();
                            tracing::warn!("{place}: cannot accept: {error}; trying again");
                            let _ = tokio::time::timeout(ACCEPT_PAUSE, shutdown.cancelled()).await;
                        }
                    }
                }
            }
        }
        drop((listener, file));
        while let Some(ended) = connections.join_next().await {
            report(ended);
        }
    }
}

fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    // A restart must not wait for connections in TIME_WAIT.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // As the services' listeners: "[::]" leaves IPv4's port to whoever names it.
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// The other end of a connection, of either kind.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// The stream, and whether it is TCP.
async fn accept(listener: &Listener) -> io::Result<(Box<dyn Stream>, bool)> {
    Ok(match listener {
        Listener::Tcp(listener) => (Box::new(listener.accept().await?.0), true),
        Listener::Unix(listener) => (Box::new(listener.accept().await?.0), false),
    })
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!("a bug in tlsward ended an admin connection: {error}");
    }
}

/// Serves one connection until either side ends it, or until `shutdown` and the end of the request
/// under way.
async fn connection(
    stream: impl Stream,
    entrance: Entrance,
    shared: Arc<Shared>,
    shutdown: CancellationToken,
) {
    let service = service_fn(move |request| {
        let shared = Arc::clone(&shared);
        async move { Ok::<_, Infallible>(routes::respond(request, entrance, &shared).await) }
    });
    let stream = TokioIo::new(StallGuard::new(stream));
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(MAX_HEAD)
            .serve_connection(stream, service)
    );
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        // Port scanners, and clients that leave: ordinary life.
        tracing::debug!("admin connection ended: {error}");
    }
}

/// Fails a write that has made no progress for [`STALL_TIMEOUT`].
struct StallGuard<S> {
    stream: S,
    /// Runs while a write waits.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> StallGuard<S> {
    fn new(stream: S) -> Self {
        Self {
            stream,
            stalled: None,
        }
    }

    fn watch<T>(
        &mut self,
        context: &mut Context<'_>,
        progress: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if progress.is_ready() {
            self.stalled = None;
            return progress;
        }
        let sleep = self
            .stalled
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(STALL_TIMEOUT)));
        ready!(sleep.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the client does not read its answer",
        )))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for StallGuard<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for StallGuard<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let progress = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watch(context, progress)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let progress = Pin::new(&mut self.stream).poll_flush(context);
        self.watch(context, progress)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let progress = Pin::new(&mut self.stream).poll_shutdown(context);
        self.watch(context, progress)
    }
}

#[cfg(test)]
mod tests;
