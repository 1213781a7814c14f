//! The mutual-TLS server behind the built program: a thread of its own.
//!
//! A connection's first byte says what it is for; see [`command`].

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use rustls::{HandshakeKind, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// What a caller asks for.
pub(crate) mod command {
    /// This byte comes back.
    pub(crate) const ECHO: u8 = b'E';
    /// Followed by a u64 in network order: that many bytes come; one byte answers them all.
    pub(crate) const TAKE: u8 = b'T';
    /// Followed by a u64 in network order: that many bytes are wanted.
    pub(crate) const GIVE: u8 = b'G';
}

/// Bytes written at once: large, so that the program finds full sockets and shows its own
/// batching and not this server's.
pub(crate) const BATCH: usize = 256 * 1024;

/// Handshakes since the start.
#[derive(Debug, Default)]
struct Counters {
    all: AtomicU64,
    resumed: AtomicU64,
}

/// A running upstream; ends when dropped.
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    counters: Arc<Counters>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Upstream {
    /// # Errors
    /// No port, or no thread.
    pub(crate) fn start(config: Arc<ServerConfig>) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let counters = Arc::new(Counters::default());
        let (stop, stopped) = oneshot::channel();
        let count = Arc::clone(&counters);
        let serve = move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener)?;
                tokio::select! {
                    _ = stopped => Ok(()),
                    ended = accept(listener, config.into(), count) => ended,
                }
            })
        };
        let thread = std::thread::Builder::new()
            .name("upstream".to_owned())
            .spawn(move || {
                if let Err(error) = serve() {
                    eprintln!("tlsward-guards: the upstream has ended: {error}");
                }
            })?;
        Ok(Self {
            address,
            counters,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Handshakes since the start, and how many of them were resumptions.
    pub(crate) fn handshakes(&self) -> (u64, u64) {
        let Counters { all, resumed } = &*self.counters;
        (all.load(Ordering::Relaxed), resumed.load(Ordering::Relaxed))
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed by the hook.
            let _ = thread.join();
        }
    }
}

async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    counters: Arc<Counters>,
) -> io::Result<()> {
    let mut connections = JoinSet::new();
    loop {
        let (socket, _) = listener.accept().await?;
        while connections.try_join_next().is_some() {}
        let acceptor = acceptor.clone();
        let counters = Arc::clone(&counters);
        connections.spawn(async move {
            // A connection that breaks off is noticed by its caller.
            let _ = connection(socket, acceptor, &counters).await;
        });
    }
}

async fn connection(
    socket: TcpStream,
    acceptor: TlsAcceptor,
    counters: &Counters,
) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let mut stream = acceptor.accept(socket).await?;
    let session = &mut stream.get_mut().1;
    // Else rustls takes no more than 64 KiB at once.
    session.set_buffer_limit(None);
    if session.handshake_kind() == Some(HandshakeKind::Resumed) {
        counters.resumed.fetch_add(1, Ordering::Relaxed);
    }
    counters.all.fetch_add(1, Ordering::Relaxed);
    match stream.read_u8().await? {
        command::ECHO => {
            stream.write_all(&[command::ECHO]).await?;
            stream.flush().await?;
        }
        command::TAKE => {
            let len = stream.read_u64().await?;
            take(&mut stream, len).await?;
            stream.write_all(&[command::TAKE]).await?;
            stream.flush().await?;
        }
        command::GIVE => {
            let len = stream.read_u64().await?;
            give(&mut stream, len).await?;
        }
        _ => return Err(io::ErrorKind::InvalidData.into()),
    }
    // The caller ends first.
    match stream.read(&mut [0]).await? {
        0 => stream.shutdown().await,
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

async fn take(stream: &mut TlsStream<TcpStream>, mut left: u64) -> io::Result<()> {
    let mut buffer = vec![0; BATCH];
    while left > 0 {
        let wanted = usize::try_from(left).map_or(BATCH, |left| left.min(BATCH));
        match stream.read(&mut buffer[..wanted]).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => left -= n as u64,
        }
    }
    Ok(())
}

async fn give(stream: &mut TlsStream<TcpStream>, mut left: u64) -> io::Result<()> {
    let buffer = vec![0x5a; BATCH];
    while left > 0 {
        let batch = usize::try_from(left).map_or(BATCH, |left| left.min(BATCH));
        stream.write_all(&buffer[..batch]).await?;
        left -= batch as u64;
    }
    stream.flush().await
}
