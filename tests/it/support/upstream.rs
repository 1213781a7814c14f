//! An mTLS server within the test process that does as it is told and writes down what it saw.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion, version};
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::journal::Journal;
use super::net;
use super::pki::{Ca, Issued, Pki, colon_hex};

/// What the server does with a connection. Unless it says otherwise it goes on until the other
/// side ends, answers a clean end with its own, and reports how it ended.
#[derive(Clone, Debug)]
pub(crate) enum Behaviour {
    /// Sends back what comes.
    Echo,
    /// Names the caller in a first line (see [`Peer`]'s `Display`), then echoes.
    Identify,
    /// Speaks first, then echoes.
    Greet(Vec<u8>),
    /// Discards what comes.
    Sink,
    /// Sends this many zero bytes in full records, then ends cleanly.
    Source(u64),
    /// Reads to the clean end, then says `received N\n` and ends.
    ReplyAtEnd,
    /// Sends, ends its own direction cleanly, and goes on reading.
    CloseFirst(Vec<u8>),
    /// Sends these bytes, each in a record of its own, then echoes.
    OneByteRecords(Vec<u8>),
    /// Echoes, and asks for new traffic keys with every answer (RFC 8446 section 4.6.3).
    KeyUpdates,
    /// Sends and ends TCP without `close_notify`.
    Cut(Vec<u8>),
    /// Sends and resets.
    Break(Vec<u8>),
    /// Sends without end, and meanwhile listens for a line ([`Event::Heard`]).
    Flood,
    /// Finishes the handshake and then neither reads nor writes.
    Hold,
    /// Takes the TCP connection and never answers the ClientHello.
    Stall,
    /// Answers the ClientHello with bytes that are not TLS.
    Plain(Vec<u8>),
}

/// What happened at the server, in order.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// TCP stands.
    Accepted { number: usize },
    /// The ClientHello of a connection has come, and waits for the gate ([`Options::gate`]).
    Hello { number: usize },
    /// The gate let it pass: it is answered from now on.
    Answered,
    /// TLS stands.
    Handshaken(Peer),
    /// A line came ([`Behaviour::Flood`]).
    Heard { line: String },
    /// The server refused, or the other side did.
    HandshakeFailed { number: usize, error: String },
    /// The connection's other side has ended.
    Ended {
        number: usize,
        how: End,
        /// Bytes of payload.
        received: u64,
    },
}

/// How the proxy ended its direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    CloseNotify,
    /// FIN without `close_notify`.
    Fin,
    Reset,
    /// A TLS error, an alert for example.
    Failed(String),
}

/// Who connected, and how.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    /// Counts TCP connections from 1.
    pub(crate) number: usize,
    /// The client certificate's common name; `-` without a certificate.
    pub(crate) common_name: String,
    /// In the form of [`Issued::serial`]; `-` without a certificate.
    pub(crate) serial: String,
    pub(crate) resumed: bool,
    pub(crate) server_name: Option<String>,
    pub(crate) alpn: Option<String>,
    pub(crate) version: rustls::ProtocolVersion,
    pub(crate) group: Option<rustls::NamedGroup>,
}

/// The first line of [`Behaviour::Identify`].
impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = if self.resumed { "resumed" } else { "full" };
        write!(f, "{} {} {kind}", self.common_name, self.serial)
    }
}

/// The three words of [`Behaviour::Identify`]'s line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) common_name: String,
    pub(crate) serial: String,
    pub(crate) resumed: bool,
}

impl Seen {
    pub(crate) fn parse(line: &str) -> Self {
        let mut words = line.split(' ');
        let mut word = || {
            words
                .next()
                .unwrap_or_else(|| panic!("not a greeting: {line}"))
        };
        Self {
            common_name: word().to_owned(),
            serial: word().to_owned(),
            resumed: match word() {
                "resumed" => true,
                "full" => false,
                other => panic!("neither full nor resumed: {other}"),
            },
        }
    }
}

/// Whether the server asks for a client certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClientAuth {
    Required,
    Optional,
    NotAsked,
}

/// How the server speaks TLS.
pub(crate) struct Options {
    pub(crate) address: SocketAddr,
    pub(crate) behaviour: Behaviour,
    pub(crate) client_auth: ClientAuth,
    pub(crate) client_cas: Vec<CertificateDer<'static>>,
    pub(crate) versions: &'static [&'static SupportedProtocolVersion],
    pub(crate) alpn: Vec<Vec<u8>>,
    /// Groups on offer; empty: all.
    pub(crate) groups: Vec<rustls::NamedGroup>,
    /// Cipher suites on offer; empty: all.
    pub(crate) suites: Vec<rustls::CipherSuite>,
    /// TLS 1.3 tickets sent with each handshake; 0: no sessions at all.
    pub(crate) tickets: usize,
    /// Each ClientHello waits for a permit of this, and uses it up, before it is answered.
    pub(crate) gate: Option<Arc<Semaphore>>,
}

pub(crate) const TLS12: &[&SupportedProtocolVersion] = &[&version::TLS12];
pub(crate) const TLS13: &[&SupportedProtocolVersion] = &[&version::TLS13];
pub(crate) const TLS12_AND_13: &[&SupportedProtocolVersion] = &[&version::TLS12, &version::TLS13];

impl Options {
    /// Identifies callers whose certificate `ca` issued; an address of its own.
    pub(crate) fn trusting(ca: &Ca) -> Self {
        Self {
            address: net::address(),
            behaviour: Behaviour::Identify,
            client_auth: ClientAuth::Required,
            client_cas: vec![ca.der().clone()],
            versions: TLS12_AND_13,
            alpn: Vec::new(),
            groups: Vec::new(),
            suites: Vec::new(),
            tickets: 2,
            gate: None,
        }
    }

    pub(crate) fn behaviour(mut self, behaviour: Behaviour) -> Self {
        self.behaviour = behaviour;
        self
    }

    pub(crate) fn gate(mut self, gate: &Arc<Semaphore>) -> Self {
        self.gate = Some(Arc::clone(gate));
        self
    }

    pub(crate) fn versions(
        mut self,
        versions: &'static [&'static SupportedProtocolVersion],
    ) -> Self {
        self.versions = versions;
        self
    }

    pub(crate) fn client_auth(mut self, client_auth: ClientAuth) -> Self {
        self.client_auth = client_auth;
        self
    }

    /// As in [`Self::tickets`].
    pub(crate) fn giving_tickets(mut self, tickets: usize) -> Self {
        self.tickets = tickets;
        self
    }

    pub(crate) fn alpn(mut self, protocols: &[&str]) -> Self {
        self.alpn = protocols
            .iter()
            .map(|name| name.as_bytes().to_vec())
            .collect();
        self
    }

    pub(crate) async fn start(self, present: &Issued) -> Upstream {
        let listener = TcpListener::bind(self.address)
            .await
            .unwrap_or_else(|error| panic!("binding {}: {error}", self.address));
        let shared = Arc::new(Shared {
            config: Mutex::new(self.server_config(present)),
            behaviour: Mutex::new(self.behaviour.clone()),
            journal: Journal::new(),
            gate: self.gate.clone(),
        });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Upstream {
            options: self,
            shared,
            accepting,
        }
    }

    fn server_config(&self, present: &Issued) -> Arc<ServerConfig> {
        let mut provider = rustls::crypto::aws_lc_rs::default_provider();
        if !self.groups.is_empty() {
            provider
                .kx_groups
                .retain(|group| self.groups.contains(&group.name()));
        }
        if !self.suites.is_empty() {
            provider
                .cipher_suites
                .retain(|suite| self.suites.contains(&suite.suite()));
        }
        let provider = Arc::new(provider);
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(self.versions)
            .expect("the provider supports these versions");
        let builder = if self.client_auth == ClientAuth::NotAsked {
            builder.with_no_client_auth()
        } else {
            let mut roots = RootCertStore::empty();
            for ca in &self.client_cas {
                roots.add(ca.clone()).expect("a CA certificate");
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
            let verifier = if self.client_auth == ClientAuth::Optional {
                verifier.allow_unauthenticated()
            } else {
                verifier
            };
            builder.with_client_cert_verifier(verifier.build().expect("at least one CA"))
        };
        let mut config = builder
            .with_single_cert(present.chain.clone(), present.key_der())
            .expect("the key fits the certificate");
        config.alpn_protocols.clone_from(&self.alpn);
        config.send_tls13_tickets = self.tickets;
        if self.tickets == 0 {
            config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        }
        Arc::new(config)
    }
}

/// The running server; stops when dropped.
pub(crate) struct Upstream {
    options: Options,
    shared: Arc<Shared>,
    accepting: tokio::task::JoinHandle<()>,
}

struct Shared {
    config: Mutex<Arc<ServerConfig>>,
    behaviour: Mutex<Behaviour>,
    journal: Journal<Event>,
    gate: Option<Arc<Semaphore>>,
}

impl Upstream {
    /// Identifies its callers; both sides' certificates are from `pki.root`.
    pub(crate) async fn start(pki: &Pki) -> Self {
        Options::trusting(&pki.root).start(&pki.server()).await
    }

    /// The same with another behaviour.
    pub(crate) async fn behaving(pki: &Pki, behaviour: Behaviour) -> Self {
        Options::trusting(&pki.root)
            .behaviour(behaviour)
            .start(&pki.server())
            .await
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.options.address
    }

    /// What the next connections meet.
    pub(crate) fn behave(&self, behaviour: Behaviour) {
        *self.shared.behaviour.lock().unwrap() = behaviour;
    }

    /// The certificate that the next connections see. Sessions begun before are forgotten.
    pub(crate) fn present(&self, issued: &Issued) {
        *self.shared.config.lock().unwrap() = self.options.server_config(issued);
    }

    /// The CAs whose client certificates the next connections may use.
    pub(crate) fn trust_clients_of(&mut self, cas: &[&Ca], present: &Issued) {
        self.options.client_cas = cas.iter().map(|ca| ca.der().clone()).collect();
        self.present(present);
    }

    pub(crate) fn journal(&self) -> &Journal<Event> {
        &self.shared.journal
    }

    pub(crate) fn mark(&self) -> usize {
        self.shared.journal.mark()
    }

    /// Everyone who completed a handshake.
    pub(crate) fn peers(&self) -> Vec<Peer> {
        self.shared
            .journal
            .all()
            .into_iter()
            .filter_map(|event| match event {
                Event::Handshaken(peer) => Some(peer),
                _ => None,
            })
            .collect()
    }

    #[track_caller]
    pub(crate) fn accepted_after(&self, mark: usize) -> impl Future<Output = usize> {
        self.shared.journal.wait_after(
            mark,
            "a TCP connection at the upstream",
            |event| match event {
                Event::Accepted { number } => Some(*number),
                _ => None,
            },
        )
    }

    #[track_caller]
    pub(crate) fn handshake_after(&self, mark: usize) -> impl Future<Output = Peer> {
        self.shared
            .journal
            .wait_after(mark, "a handshake at the upstream", |event| match event {
                Event::Handshaken(peer) => Some(peer.clone()),
                _ => None,
            })
    }

    /// How connection `number` ended, and how many bytes of payload it had brought.
    #[track_caller]
    pub(crate) fn end_of(&self, number: usize) -> impl Future<Output = (End, u64)> {
        self.shared.journal.wait(
            "the end of a connection at the upstream",
            move |event| match event {
                Event::Ended {
                    number: ended,
                    how,
                    received,
                } if *ended == number => Some((how.clone(), *received)),
                _ => None,
            },
        )
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    for number in 1.. {
        let (socket, _) = listener.accept().await.expect("the test has descriptors");
        socket.set_nodelay(true).unwrap();
        shared.journal.push(Event::Accepted { number });
        connections.spawn(connection(socket, number, Arc::clone(&shared)));
        while connections.try_join_next().is_some() {}
    }
}

async fn connection(mut socket: TcpStream, number: usize, shared: Arc<Shared>) {
    let behaviour = shared.behaviour.lock().unwrap().clone();
    let config = Arc::clone(&shared.config.lock().unwrap());
    let report = |how, received| {
        shared.journal.push(Event::Ended {
            number,
            how,
            received,
        });
    };
    match behaviour {
        Behaviour::Stall => return report(drain_tcp(&mut socket).await, 0),
        Behaviour::Plain(bytes) => {
            let mut hello = [0; 1];
            let _ = socket.peek(&mut hello).await;
            let _ = socket.write_all(&bytes).await;
            let _ = socket.shutdown().await;
            return report(drain_tcp(&mut socket).await, 0);
        }
        _ => {}
    }
    if let Some(gate) = &shared.gate {
        if !matches!(socket.peek(&mut [0]).await, Ok(1)) {
            return report(drain_tcp(&mut socket).await, 0);
        }
        shared.journal.push(Event::Hello { number });
        gate.acquire().await.expect("never closed").forget();
        shared.journal.push(Event::Answered);
    }
    let mut stream = match TlsAcceptor::from(config)
        .accept(socket)
        .into_fallible()
        .await
    {
        Ok(stream) => stream,
        Err((error, mut socket)) => {
            // Reads what is left, so that closing does not turn into a reset that overtakes the
            // alert.
            let _ = socket.shutdown().await;
            shared.journal.push(Event::HandshakeFailed {
                number,
                error: error.to_string(),
            });
            return report(drain_tcp(&mut socket).await, 0);
        }
    };
    let peer = peer(&stream, number);
    shared.journal.push(Event::Handshaken(peer.clone()));
    let mut received = 0;
    let how = match behave(
        &mut stream,
        behaviour,
        &peer,
        &mut received,
        &shared.journal,
    )
    .await
    {
        Ok(Next::End) => {
            let _ = stream.shutdown().await;
            drain(&mut stream, &mut received).await
        }
        Ok(Next::Cut) => {
            let (mut socket, _) = stream.into_inner();
            let _ = socket.shutdown().await;
            drain_tcp(&mut socket).await
        }
        Ok(Next::Break) => {
            net::reset(stream.into_inner().0);
            return;
        }
        Err(error) => end_of(&error),
    };
    report(how, received);
}

/// What follows once the behaviour's own part is done.
enum Next {
    /// `close_notify`, then read to the end.
    End,
    /// FIN alone, then read to the end.
    Cut,
    Break,
}

async fn behave(
    stream: &mut TlsStream<TcpStream>,
    behaviour: Behaviour,
    peer: &Peer,
    received: &mut u64,
    journal: &Journal<Event>,
) -> io::Result<Next> {
    match behaviour {
        Behaviour::Echo => echo(stream, received, false).await?,
        Behaviour::KeyUpdates => echo(stream, received, true).await?,
        Behaviour::Identify => {
            send(stream, format!("{peer}\n").as_bytes()).await?;
            echo(stream, received, false).await?;
        }
        Behaviour::Greet(bytes) => {
            send(stream, &bytes).await?;
            echo(stream, received, false).await?;
        }
        Behaviour::OneByteRecords(bytes) => {
            for byte in bytes {
                send(stream, &[byte]).await?;
            }
            echo(stream, received, false).await?;
        }
        Behaviour::Sink => {
            read_to_end(stream, received).await?;
        }
        Behaviour::ReplyAtEnd => {
            read_to_end(stream, received).await?;
            send(stream, format!("received {received}\n").as_bytes()).await?;
        }
        Behaviour::Source(mut bytes) => {
            let zeros = vec![0; 256 * 1024];
            while bytes > 0 {
                let part = bytes.min(zeros.len() as u64) as usize;
                stream.write_all(&zeros[..part]).await?;
                bytes -= part as u64;
            }
            stream.flush().await?;
        }
        Behaviour::CloseFirst(bytes) => send(stream, &bytes).await?,
        Behaviour::Cut(bytes) => {
            send(stream, &bytes).await?;
            return Ok(Next::Cut);
        }
        Behaviour::Break(bytes) => {
            send(stream, &bytes).await?;
            return Ok(Next::Break);
        }
        Behaviour::Flood => flood(stream, journal).await?,
        Behaviour::Hold => {
            // Until the proxy has gone; the payload stays unread in the socket.
            stream.get_ref().0.ready(tokio::io::Interest::ERROR).await?;
        }
        Behaviour::Stall | Behaviour::Plain(_) => unreachable!("these never begin TLS"),
    }
    Ok(Next::End)
}

async fn send(stream: &mut TlsStream<TcpStream>, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await
}

async fn echo(
    stream: &mut TlsStream<TcpStream>,
    received: &mut u64,
    new_keys: bool,
) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        *received += count as u64;
        if new_keys {
            let session = stream.get_mut().1;
            session.refresh_traffic_keys().map_err(io::Error::other)?;
        }
        send(stream, &buffer[..count]).await?;
    }
}

async fn flood(stream: &mut TlsStream<TcpStream>, journal: &Journal<Event>) -> io::Result<()> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let zeros = vec![0; 64 * 1024];
    let sending = async {
        loop {
            writer.write_all(&zeros).await?;
        }
    };
    let listening = async {
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            line.push(reader.read_u8().await?);
        }
        let line = String::from_utf8_lossy(&line).into_owned();
        journal.push(Event::Heard { line });
        std::future::pending().await
    };
    tokio::select! {
        result = sending => result,
        result = listening => result,
    }
}

async fn read_to_end(stream: &mut TlsStream<TcpStream>, received: &mut u64) -> io::Result<()> {
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok(()),
            count => *received += count as u64,
        }
    }
}

async fn drain(stream: &mut TlsStream<TcpStream>, received: &mut u64) -> End {
    match read_to_end(stream, received).await {
        Ok(()) => End::CloseNotify,
        Err(error) => end_of(&error),
    }
}

async fn drain_tcp(socket: &mut TcpStream) -> End {
    match tokio::io::copy(socket, &mut tokio::io::sink()).await {
        Ok(_) => End::Fin,
        Err(error) => end_of(&error),
    }
}

fn end_of(error: &io::Error) -> End {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => End::Fin,
        // A write to a connection that the other side has reset.
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => End::Reset,
        _ => End::Failed(error.to_string()),
    }
}

fn peer(stream: &TlsStream<TcpStream>, number: usize) -> Peer {
    let session = stream.get_ref().1;
    let (common_name, serial) = match session.peer_certificates() {
        None => ("-".to_owned(), "-".to_owned()),
        Some(chain) => {
            let (_, leaf) = x509_parser::parse_x509_certificate(&chain[0])
                .expect("a certificate that rustls took");
            let common_name = leaf
                .subject()
                .iter_common_name()
                .next()
                .and_then(|name| name.as_str().ok())
                .unwrap_or("-")
                .to_owned();
            (common_name, colon_hex(leaf.raw_serial()))
        }
    };
    Peer {
        number,
        common_name,
        serial,
        resumed: session.handshake_kind() == Some(rustls::HandshakeKind::Resumed),
        server_name: session.server_name().map(str::to_owned),
        alpn: session
            .alpn_protocol()
            .map(|name| String::from_utf8_lossy(name).into_owned()),
        version: session.protocol_version().expect("after the handshake"),
        group: session
            .negotiated_key_exchange_group()
            .map(|group| group.name()),
    }
}
