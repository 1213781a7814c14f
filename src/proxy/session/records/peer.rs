//! The server's end of a session of TLS 1.3 whose records are made one by one, good or bad, and
//! which reads all that a client says: for tests and fuzzers.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::{io, mem};

use rustls::crypto::cipher::{
    InboundOpaqueMessage, MessageDecrypter, MessageEncrypter, OutboundChunks, OutboundPlainMessage,
};
use rustls::kernel::KernelConnection;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, UnbufferedStatus};
use rustls::{
    ClientConnection, ConnectionTrafficSecrets, ContentType, ProtocolVersion, ServerConfig,
    SupportedCipherSuite, Tls13CipherSuite,
};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{HEADER, key_and_iv};
use crate::proxy::handshake::{LastFlight, handshake};
use crate::proxy::session::Established;
use crate::tls::client_config::Connector;

pub(crate) const DATA: u8 = 23;
pub(crate) const HANDSHAKE: u8 = 22;
pub(crate) const ALERT: u8 = 21;

pub(crate) const KEY_UPDATE: u8 = 24;
pub(crate) const NEW_SESSION_TICKET: u8 = 4;

/// What a client said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    Data(Vec<u8>),
    /// With the byte that asks for ours, or not.
    KeyUpdate(u8),
    Alert {
        level: u8,
        description: u8,
    },
}

/// The server's end after the handshake.
pub(crate) struct Peer {
    connection: KernelConnection<ServerConnectionData>,
    suite: &'static Tls13CipherSuite,
    encrypter: Box<dyn MessageEncrypter>,
    sealed: u64,
    decrypter: Box<dyn MessageDecrypter>,
    opened: u64,
    incoming: Vec<u8>,
}

impl Peer {
    /// The record with this inner content type and content, and so many zeros behind them. (Type 0
    /// is padding: there is no content type then, unless the content ends with one.)
    pub(crate) fn seal(&mut self, kind: u8, content: &[u8], padding: usize) -> Vec<u8> {
        let mut inner = content.to_vec();
        inner.push(kind);
        inner.extend(vec![0; padding]);
        // The encrypter appends the content type: so the last byte goes there.
        let last = inner.pop().unwrap_or_default();
        let message = OutboundPlainMessage {
            typ: ContentType::from(last),
            version: ProtocolVersion::TLSv1_2,
            payload: OutboundChunks::Single(&inner),
        };
        let sealed = self
            .encrypter
            .encrypt(message, self.sealed)
            .expect("a record of any size can be sealed");
        self.sealed += 1;
        sealed.encode()
    }

    pub(crate) fn data(&mut self, content: &[u8]) -> Vec<u8> {
        self.seal(DATA, content, 0)
    }

    /// A KeyUpdate, and from the next record on the new key.
    #[cfg(test)]
    pub(crate) fn key_update(&mut self, request: u8) -> Vec<u8> {
        let record = self.seal(HANDSHAKE, &message(KEY_UPDATE, &[request]), 0);
        self.renew_keys();
        record
    }

    #[cfg(test)]
    pub(crate) fn alert(&mut self, level: u8, description: u8) -> Vec<u8> {
        self.seal(ALERT, &[level, description], 0)
    }

    #[cfg(test)]
    pub(crate) fn close_notify(&mut self) -> Vec<u8> {
        self.alert(1, 0)
    }

    /// Seals from now on with the next key.
    pub(crate) fn renew_keys(&mut self) {
        let secrets = self.connection.update_tx_secret();
        let (seq, secrets) = secrets.expect("TLS 1.3 has a next key");
        (self.encrypter, self.sealed) = (encrypter(self.suite, secrets), seq);
    }

    /// Opens the records that a client wrote.
    ///
    /// # Panics
    /// If one of them is not what a client may send.
    pub(crate) fn hear(&mut self, bytes: &[u8]) -> Vec<Heard> {
        let mut incoming = mem::take(&mut self.incoming);
        incoming.extend_from_slice(bytes);
        let mut heard = Vec::new();
        let mut rest = &mut incoming[..];
        while let [DATA, 3, 3, high, low, ..] = *rest {
            let end = HEADER + usize::from(u16::from_be_bytes([high, low]));
            let Some((record, after)) = mem::take(&mut rest).split_at_mut_checked(end) else {
                self.incoming = incoming;
                return heard;
            };
            rest = after;
            heard.push(self.open(&mut record[HEADER..]));
        }
        assert!(rest.len() < HEADER, "not a sealed record: {rest:?}");
        self.incoming = rest.to_vec();
        heard
    }

    fn open(&mut self, body: &mut [u8]) -> Heard {
        let message =
            InboundOpaqueMessage::new(ContentType::ApplicationData, ProtocolVersion::TLSv1_2, body);
        let opened = self
            .decrypter
            .decrypt(message, self.opened)
            .expect("a client seals with the key that is due");
        self.opened += 1;
        let (kind, content) = (opened.typ, opened.payload.to_vec());
        match (kind, &content[..]) {
            (ContentType::ApplicationData, [_, ..]) => Heard::Data(content),
            (ContentType::Alert, &[level, description]) => Heard::Alert { level, description },
            (ContentType::Handshake, &[KEY_UPDATE, 0, 0, 1, request]) => {
                let secrets = self.connection.update_rx_secret();
                let (seq, secrets) = secrets.expect("TLS 1.3 has a next key");
                (self.decrypter, self.opened) = (decrypter(self.suite, secrets), seq);
                Heard::KeyUpdate(request)
            }
            _ => panic!("a client sent {kind:?} with {} bytes", content.len()),
        }
    }
}

/// A handshake message.
pub(crate) fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let [_, high, middle, low] = u32::try_from(body.len())
        .expect("a test's message is short")
        .to_be_bytes();
    let mut message = vec![kind, high, middle, low];
    message.extend_from_slice(body);
    message
}

/// A NewSessionTicket message whose ticket has this length.
pub(crate) fn ticket(len: u16) -> Vec<u8> {
    let mut body = vec![0, 0, 14, 16, 1, 2, 3, 4, 1, 0];
    body.extend(len.to_be_bytes());
    body.extend(vec![b't'; usize::from(len)]);
    body.extend([0, 0]);
    message(NEW_SESSION_TICKET, &body)
}

/// `config` as [`Peer`] needs it: with its secrets, and no ticket of its own.
pub(crate) fn server_of(config: &ServerConfig) -> Arc<ServerConfig> {
    let mut config = config.clone();
    config.enable_secret_extraction = true;
    config.send_tls13_tickets = 0;
    Arc::new(config)
}

/// A handshake the way the proxy makes it.
pub(crate) fn shake_hands(
    client: &Connector,
    server: &Arc<ServerConfig>,
    name: ServerName<'static>,
) -> (Established, Peer) {
    let (established, server) = through_the_proxy(client, server, name);
    (established, server.done())
}

/// The same with a server that sends tickets, and what it has said in the end: they are in it.
#[cfg(test)]
pub(crate) fn shake_hands_for_tickets(
    client: &Connector,
    server: &Arc<ServerConfig>,
    name: ServerName<'static>,
) -> (Established, Vec<u8>) {
    let (established, server) = through_the_proxy(client, server, name);
    (established, server.said)
}

fn through_the_proxy(
    client: &Connector,
    server: &Arc<ServerConfig>,
    name: ServerName<'static>,
) -> (Established, Shaking) {
    let mut stream = Shaking::new(server);
    let established = {
        let handshake = pin!(handshake(&mut stream, client, name, LastFlight::Written));
        handshake.poll(&mut Context::from_waker(Waker::noop()))
    };
    let Poll::Ready(Ok(established)) = established else {
        panic!("a good server is not taken at once");
    };
    (established, stream)
}

/// A handshake of rustls' buffered client.
pub(crate) fn shake_hands_buffered(
    client: &Connector,
    server: &Arc<ServerConfig>,
    name: ServerName<'static>,
) -> (ClientConnection, Peer) {
    let (mut client, mut provenance) = client.buffered(name).expect("a good configuration");
    client.set_buffer_limit(None);
    let mut server = Shaking::new(server);
    while client.is_handshaking() || client.wants_write() {
        let mut flight = Vec::new();
        client.write_tls(&mut flight).expect("a Vec takes it");
        server.hear(&flight);
        let said = mem::take(&mut server.said);
        let mut said = &said[..];
        while !said.is_empty() {
            client.read_tls(&mut said).expect("it is a slice");
            let processed = provenance.within(|| client.process_new_packets());
            processed.expect("a good server");
        }
    }
    (client, server.done())
}

/// A server in its handshake. It answers within the write.
struct Shaking {
    connection: UnbufferedServerConnection,
    incoming: Vec<u8>,
    said: Vec<u8>,
}

impl Shaking {
    fn new(config: &Arc<ServerConfig>) -> Self {
        let connection = UnbufferedServerConnection::new(Arc::clone(config));
        Self {
            connection: connection.expect("a good configuration"),
            incoming: Vec::new(),
            said: Vec::new(),
        }
    }

    fn hear(&mut self, bytes: &[u8]) {
        self.incoming.extend_from_slice(bytes);
        loop {
            let UnbufferedStatus { discard, state } =
                self.connection.process_tls_records(&mut self.incoming);
            let more = match state.expect("a good client") {
                ConnectionState::EncodeTlsData(mut data) => {
                    let mut record = vec![0; 1 << 15];
                    let len = data.encode(&mut record).expect("a record is smaller");
                    self.said.extend_from_slice(&record[..len]);
                    true
                }
                ConnectionState::TransmitTlsData(transmit) => {
                    transmit.done();
                    true
                }
                _ => false,
            };
            self.incoming.drain(..discard);
            if !more {
                return;
            }
        }
    }

    fn done(self) -> Peer {
        assert!(self.said.is_empty(), "the server said more than it had to");
        let (secrets, connection) = self
            .connection
            .dangerous_into_kernel_connection()
            .expect("the handshake is over");
        let SupportedCipherSuite::Tls13(suite) = connection.negotiated_cipher_suite() else {
            panic!("not TLS 1.3");
        };
        let ((sealed, seal), (opened, open)) = (secrets.tx, secrets.rx);
        Peer {
            connection,
            suite,
            encrypter: encrypter(suite, seal),
            sealed,
            decrypter: decrypter(suite, open),
            opened,
            incoming: self.incoming,
        }
    }
}

impl AsyncRead for Shaking {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let len = self.said.len().min(buffer.remaining());
        buffer.put_slice(&self.said[..len]);
        self.said.drain(..len);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Shaking {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.hear(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn encrypter(
    suite: &'static Tls13CipherSuite,
    secrets: ConnectionTrafficSecrets,
) -> Box<dyn MessageEncrypter> {
    let (key, iv) = key_and_iv(secrets).expect("an AEAD of TLS 1.3");
    suite.aead_alg.encrypter(key, iv)
}

fn decrypter(
    suite: &'static Tls13CipherSuite,
    secrets: ConnectionTrafficSecrets,
) -> Box<dyn MessageDecrypter> {
    let (key, iv) = key_and_iv(secrets).expect("an AEAD of TLS 1.3");
    suite.aead_alg.decrypter(key, iv)
}
