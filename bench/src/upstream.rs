//! The mutual-TLS server behind the proxy: a thread of its own, pinned beside the generator.
//! Others stand in its place where a proxy has to show that it refuses them, and a plain one is
//! behind what has no TLS.
//!
//! It decides what every proxy negotiates (version, suite, group, tickets), so that no proxy
//! gains by asking for something cheaper.
//!
//! A connection's first byte says what it is for; see [`command`].

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::CertificateDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{HandshakeKind, RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

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
    /// Followed by a u64 in network order: every so many bytes are answered with as many, until
    /// the end.
    pub(crate) const EXCHANGE: u8 = b'X';

    /// [`TAKE`], [`GIVE`] or [`EXCHANGE`] with its length.
    pub(crate) fn with_length(command: u8, length: u64) -> [u8; 9] {
        let mut bytes = [command; 9];
        bytes[1..].copy_from_slice(&length.to_be_bytes());
        bytes
    }
}

/// Bytes that the upstream writes at once: large, so that a proxy finds full sockets and shows
/// its own batching and not that of this server.
const BATCH: usize = 256 * 1024;

/// As many connections as a storm brings at once: what the standard library asks for (128) would
/// be billed to the proxy in SYNs that are repeated after a second.
const BACKLOG: i32 = 4096;

/// Which server it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Guise {
    /// The one that proxies are to trust; it demands a client certificate.
    Genuine,
    /// The right name, certified by another CA. It asks for no client certificate: it must be the
    /// proxy that refuses, and not this server.
    Impostor,
    /// The right CA, another name. It asks for no client certificate either.
    Misnamed,
    /// No TLS at all.
    Plain,
}

/// What the upstream lets a proxy negotiate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Policy {
    pub(crate) guise: Guise,
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
    /// Connections on which data of a caller has arrived.
    spoken: AtomicU64,
    /// Connections that are over, whatever became of them.
    ended: AtomicU64,
    /// The first client's certificate.
    client: OnceLock<CertificateDer<'static>>,
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
        Self::start_at(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), pki, policy)
    }

    /// At an address of which a proxy has already been told.
    pub(crate) fn start_at(address: SocketAddr, pki: &Pki, policy: Policy) -> io::Result<Self> {
        let acceptor = match policy.guise {
            Guise::Plain => None,
            _ => Some(TlsAcceptor::from(server_config(pki, policy)?)),
        };
        let listener = std::net::TcpListener::bind(address)?;
        rustix::net::listen(&listener, BACKLOG)?;
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

    /// Connections on which data of a caller has arrived.
    pub(crate) fn spoken(&self) -> u64 {
        self.counters.spoken.load(Ordering::Relaxed)
    }

    /// Connections that are over; what they did is in the other counters.
    pub(crate) fn ended(&self) -> u64 {
        self.counters.ended.load(Ordering::Acquire)
    }

    /// The certificate that the first client has presented.
    pub(crate) fn client(&self) -> Option<&CertificateDer<'static>> {
        self.counters.client.get()
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
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(io::Error::other)?;
    let (builder, chain) = match policy.guise {
        Guise::Genuine => {
            let mut roots = RootCertStore::empty();
            roots.add(pki.root()).map_err(io::Error::other)?;
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            let verifier = verifier.map_err(io::Error::other)?;
            (builder.with_client_cert_verifier(verifier), pki.server())
        }
        Guise::Impostor => (builder.with_no_client_auth(), pki.impostor()),
        Guise::Misnamed | Guise::Plain => (builder.with_no_client_auth(), pki.misnamed()),
    };
    let mut config = builder
        .with_single_cert(chain.certificates(), chain.key())
        .map_err(io::Error::other)?;
    config.send_tls13_tickets = policy.tickets;
    // Stateless tickets, as large servers use them: a session store of limited size would decide
    // how many handshakes can be resumed.
    config.ticketer = aws_lc_rs::Ticketer::new().map_err(io::Error::other)?;
    Ok(Arc::new(config))
}

fn run(
    listener: std::net::TcpListener,
    acceptor: Option<TlsAcceptor>,
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
    acceptor: Option<TlsAcceptor>,
    counters: Arc<Counters>,
) -> io::Result<()> {
    let mut connections = JoinSet::new();
    loop {
        let (socket, _) = listener.accept().await?;
        while connections.try_join_next().is_some() {}
        let acceptor = acceptor.clone();
        let counters = Arc::clone(&counters);
        connections.spawn(async move {
            // A caller that breaks off is noticed by the workload that it belongs to.
            let _ = match acceptor {
                Some(acceptor) => secured(socket, acceptor, &counters).await,
                None => plain(socket, &counters).await,
            };
            counters.ended.fetch_add(1, Ordering::Release);
        });
    }
}

async fn plain(socket: TcpStream, counters: &Counters) -> io::Result<()> {
    socket.set_nodelay(true)?;
    serve(socket, counters).await
}

async fn secured(socket: TcpStream, acceptor: TlsAcceptor, counters: &Counters) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let mut stream = match Box::pin(acceptor.accept(socket)).await {
        Ok(stream) => stream,
        Err(error) => {
            counters.failed.fetch_add(1, Ordering::Relaxed);
            return Err(error);
        }
    };
    let connection = stream.get_mut().1;
    let kind = match connection.handshake_kind() {
        Some(HandshakeKind::Resumed) => &counters.resumed,
        _ => &counters.full,
    };
    kind.fetch_add(1, Ordering::Relaxed);
    if let Some([leaf, ..]) = connection.peer_certificates() {
        counters.client.get_or_init(|| leaf.clone());
    }
    // Else rustls takes no more than 64 KiB at once.
    connection.set_buffer_limit(None);
    serve(stream, counters).await
}

async fn serve<S>(mut stream: S, counters: &Counters) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut head = [0; 512];
    let mut silent = true;
    loop {
        let mut filled = stream.read(&mut head).await?;
        if filled > 0 && silent {
            silent = false;
            counters.spoken.fetch_add(1, Ordering::Relaxed);
        }
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
            asked @ (command::TAKE | command::GIVE | command::EXCHANGE) => {
                while filled < 9 {
                    match stream.read(&mut head[filled..]).await? {
                        0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                        n => filled += n,
                    }
                }
                let mut length = [0; 8];
                length.copy_from_slice(&head[1..9]);
                let length = u64::from_be_bytes(length);
                match asked {
                    command::TAKE => {
                        let came = filled as u64 - 9;
                        take(&mut stream, length.saturating_sub(came)).await?;
                    }
                    command::GIVE => give(&mut stream, length).await?,
                    _ => {
                        exchange(&mut stream, &head[9..filled], length as usize).await?;
                        break;
                    }
                }
            }
            _ => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
    stream.shutdown().await
}

/// `came` is what has already arrived of the first message.
async fn exchange<S>(stream: &mut S, came: &[u8], length: usize) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut message = vec![0; length];
    let mut filled = came.len();
    match message.get_mut(..filled) {
        Some(start) => start.copy_from_slice(came),
        // Callers of this command wait for each answer.
        None => return Err(io::ErrorKind::InvalidData.into()),
    }
    loop {
        while filled < length {
            match stream.read(&mut message[filled..]).await? {
                0 => return Ok(()),
                n => filled += n,
            }
        }
        stream.write_all(&message).await?;
        stream.flush().await?;
        filled = 0;
    }
}

async fn take<S>(stream: &mut S, length: u64) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
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

async fn give<S>(stream: &mut S, length: u64) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let buffer = vec![0x5a; BATCH.min(length as usize)];
    let mut left = length as usize;
    while left > 0 {
        let batch = left.min(buffer.len());
        stream.write_all(&buffer[..batch]).await?;
        left -= batch;
    }
    stream.flush().await
}
