//! The mutual-TLS server behind the proxy: a thread of its own, pinned beside the generator.
//!
//! It decides what every proxy negotiates (version, suite, group, tickets), so that no proxy
//! gains by asking for something cheaper.
//!
//! A connection's first byte says what it is for; see [`command`].

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::WebPkiClientVerifier;
use rustls::{HandshakeKind, RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::machine;
use crate::pki::Pki;
use crate::{Group, Suite};

/// What a caller asks for.
pub(crate) mod command {
    /// Followed by a u64 in network order: that many bytes come; one byte answers them all.
    pub(crate) const TAKE: u8 = b'T';
    /// Followed by a u64 in network order: that many bytes are wanted.
    pub(crate) const GIVE: u8 = b'G';
    /// Everything comes back until the end, this byte too.
    pub(crate) const ECHO: u8 = b'E';

    /// [`TAKE`] or [`GIVE`] with its length.
    pub(crate) fn with_length(command: u8, length: u64) -> [u8; 9] {
        let mut bytes = [command; 9];
        bytes[1..].copy_from_slice(&length.to_be_bytes());
        bytes
    }
}

/// Bytes that the upstream writes at once: large, so that a proxy finds full sockets and shows
/// its own batching and not that of this server.
const BATCH: usize = 256 * 1024;

/// What the upstream lets a proxy negotiate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Policy {
    pub(crate) suite: Suite,
    pub(crate) group: Group,
    /// Tickets sent after each full handshake and each resumption; 0 means that every handshake
    /// is a full one.
    pub(crate) tickets: usize,
}

/// Counted by the upstream, so that no proxy's own word has to be taken.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    full: AtomicU64,
    resumed: AtomicU64,
    failed: AtomicU64,
}

/// Handshakes since the start.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Handshakes {
    pub(crate) full: u64,
    pub(crate) resumed: u64,
    pub(crate) failed: u64,
}

impl Handshakes {
    pub(crate) fn done(self) -> u64 {
        self.full + self.resumed
    }

    pub(crate) fn since(self, earlier: Self) -> Self {
        Self {
            full: self.full - earlier.full,
            resumed: self.resumed - earlier.resumed,
            failed: self.failed - earlier.failed,
        }
    }
}

/// A running upstream; ends when dropped.
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    counters: Arc<Counters>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Upstream {
    pub(crate) fn start(pki: &Pki, policy: Policy) -> io::Result<Self> {
        let acceptor = TlsAcceptor::from(server_config(pki, policy)?);
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let counters = Arc::new(Counters::default());
        let (stop, stopped) = oneshot::channel();
        let count = Arc::clone(&counters);
        let thread = std::thread::Builder::new()
            .name("upstream".to_owned())
            .spawn(move || {
                if let Err(error) = run(listener, acceptor, count, stopped) {
                    eprintln!("tlsward-bench: the upstream has ended: {error}");
                }
            })?;
        Ok(Self {
            address,
            counters,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    pub(crate) fn handshakes(&self) -> Handshakes {
        Handshakes {
            full: self.counters.full.load(Ordering::Relaxed),
            resumed: self.counters.resumed.load(Ordering::Relaxed),
            failed: self.counters.failed.load(Ordering::Relaxed),
        }
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

fn server_config(pki: &Pki, policy: Policy) -> io::Result<Arc<ServerConfig>> {
    let provider = Arc::new(CryptoProvider {
        cipher_suites: vec![policy.suite.rustls()],
        kx_groups: vec![policy.group.rustls()],
        ..aws_lc_rs::default_provider()
    });
    let mut roots = RootCertStore::empty();
    roots.add(pki.root()).map_err(io::Error::other)?;
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .map_err(io::Error::other)?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .and_then(|builder| {
            builder
                .with_client_cert_verifier(verifier)
                .with_single_cert(pki.server_chain(), pki.server_key())
        })
        .map_err(io::Error::other)?;
    config.send_tls13_tickets = policy.tickets;
    // Stateless tickets, as large servers use them: a session store of limited size would decide
    // how many handshakes can be resumed.
    config.ticketer = aws_lc_rs::Ticketer::new().map_err(io::Error::other)?;
    Ok(Arc::new(config))
}

fn run(
    listener: std::net::TcpListener,
    acceptor: TlsAcceptor,
    counters: Arc<Counters>,
    stopped: oneshot::Receiver<()>,
) -> io::Result<()> {
    machine::pin_this_thread(machine::GENERATOR_CPU)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let listener = TcpListener::from_std(listener)?;
        tokio::select! {
            _ = stopped => Ok(()),
            ended = accept(listener, acceptor, counters) => ended,
        }
    })
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
            let Ok(stream) = socket
                .set_nodelay(true)
                .map(|()| acceptor.accept(socket))
                .map(Box::pin)
            else {
                return;
            };
            let Ok(stream) = stream.await else {
                counters.failed.fetch_add(1, Ordering::Relaxed);
                return;
            };
            let resumed = stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed);
            let kind = if resumed {
                &counters.resumed
            } else {
                &counters.full
            };
            kind.fetch_add(1, Ordering::Relaxed);
            // A caller that breaks off is noticed by the workload that it belongs to.
            let _ = serve(stream).await;
        });
    }
}

async fn serve(mut stream: TlsStream<TcpStream>) -> io::Result<()> {
    // Else rustls takes no more than 64 KiB at once.
    stream.get_mut().1.set_buffer_limit(None);
    let mut head = [0; 512];
    loop {
        let mut filled = stream.read(&mut head).await?;
        match head[0] {
            _ if filled == 0 => break,
            command::ECHO => {
                while filled > 0 {
                    stream.write_all(&head[..filled]).await?;
                    stream.flush().await?;
                    filled = stream.read(&mut head).await?;
                }
                break;
            }
            asked @ (command::TAKE | command::GIVE) => {
                while filled < 9 {
                    match stream.read(&mut head[filled..]).await? {
                        0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                        n => filled += n,
                    }
                }
                let mut length = [0; 8];
                length.copy_from_slice(&head[1..9]);
                let length = u64::from_be_bytes(length);
                if asked == command::TAKE {
                    take(&mut stream, length.saturating_sub(filled as u64 - 9)).await?;
                } else {
                    give(&mut stream, length).await?;
                }
            }
            _ => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
    stream.shutdown().await
}

async fn take(stream: &mut TlsStream<TcpStream>, length: u64) -> io::Result<()> {
    let mut buffer = vec![0; BATCH.min(length as usize)];
    let mut left = length as usize;
    while left > 0 {
        let batch = left.min(buffer.len());
        match stream.read(&mut buffer[..batch]).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => left -= n,
        }
    }
    stream.write_all(&[command::TAKE]).await?;
    stream.flush().await
}

async fn give(stream: &mut TlsStream<TcpStream>, length: u64) -> io::Result<()> {
    let buffer = vec![0x5a; BATCH.min(length as usize)];
    let mut left = length as usize;
    while left > 0 {
        let batch = left.min(buffer.len());
        stream.write_all(&buffer[..batch]).await?;
        left -= batch;
    }
    stream.flush().await
}
