//! The TLS handshake with an upstream.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustls::client::UnbufferedClientConnection;
use rustls::unbuffered::{ConnectionState, UnbufferedStatus};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::scratch;
use super::session::Established;
use super::session::unbuffered::{drain, encode};
use crate::failure::Explained;
use crate::tls::client_config::Connector;
use crate::tls::tickets::Provenance;
use crate::tls::verifier;

/// Read at once, at most. What follows the handshake in the same read has to be kept.
const READ: usize = 16 * 1024;

/// What may wait for the rest of a handshake message, at most. A message has at most 64 KiB
/// (rustls), and no server wraps it into records so small that they double it.
const MAX_KEPT: usize = 128 * 1024;

/// Why a handshake failed.
#[derive(Debug)]
pub(crate) enum HandshakeError {
    /// The socket failed.
    Io(io::Error),
    /// The server closed the connection in the middle.
    Ended,
    /// The server's first bytes, which are not TLS.
    NotTls(Vec<u8>),
    /// The server chose none of the protocols that were offered.
    NoAlpn,
    /// Everything that rustls and our verifier object to, and alerts.
    Tls {
        error: rustls::Error,
        /// What our verifier says of the server's certificate.
        verdict: Option<Explained>,
        /// The server's certificate had been accepted when this happened.
        server_accepted: bool,
    },
}

/// What becomes of our last flight, with which the handshake is over for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LastFlight {
    /// It is left to the session, to go out in one piece with the first data: a segment, a wake-up
    /// of the server and a system call less. Whoever has no data yet is to write it at once.
    WithData,
    /// It has been written.
    #[cfg_attr(
        not(any(test, fuzzing, feature = "drivers")),
        expect(dead_code, reason = "for those who look at a handshake by itself")
    )]
    Written,
}

/// Shakes hands over `stream`. On failure the alert that tells the server why has been written,
/// as far as its socket took it at once.
///
/// # Errors
/// See [`HandshakeError`].
///
/// # Cancellation
/// The session is lost; close the stream.
pub(crate) async fn handshake<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    connector: &Connector,
    server_name: ServerName<'static>,
    last_flight: LastFlight,
) -> Result<Established, HandshakeError> {
    let (connection, provenance) =
        connector
            .connection(server_name)
            .map_err(|error| HandshakeError::Tls {
                error,
                verdict: None,
                server_accepted: false,
            })?;
    let mut shaking = Shaking {
        connection,
        provenance,
        begun: false,
        incoming: Vec::new(),
        early: Vec::new(),
        peer_closed: false,
        outgoing: Vec::new(),
        written: 0,
        last_flight,
    };
    shaking.advance(&mut [])?;
    poll_fn(|cx| shaking.poll(stream, cx)).await?;
    // RFC 7301 section 3.2 lets a server ignore the extension; then nobody knows what is spoken.
    if connector.offers_alpn() && shaking.connection.alpn_protocol().is_none() {
        return Err(HandshakeError::NoAlpn);
    }
    Ok(Established {
        connection: shaking.connection,
        provenance: shaking.provenance,
        rest: shaking.incoming,
        early: shaking.early,
        flight: shaking.outgoing,
        peer_closed: shaking.peer_closed,
        rustls_records: connector.rustls_records(),
    })
}

/// A handshake on its way.
struct Shaking {
    connection: UnbufferedClientConnection,
    provenance: Provenance,
    /// The server has said something, and it looked like TLS.
    begun: bool,
    /// Received, and not used up: an incomplete message; in the end, what follows the handshake.
    incoming: Vec<u8>,
    /// Application data that was opened with the last flight (TLS 1.2).
    early: Vec<u8>,
    /// `close_notify` came with it: rustls says so once (TLS 1.2).
    peer_closed: bool,
    outgoing: Vec<u8>,
    /// Bytes of `outgoing` that are out.
    written: usize,
    last_flight: LastFlight,
}

impl Shaking {
    fn poll<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), HandshakeError>> {
        loop {
            // Nothing of it is out: what was before it has been.
            if self.last_flight == LastFlight::WithData && !self.connection.is_handshaking() {
                return Poll::Ready(Ok(()));
            }
            if let Err(error) = ready!(self.flush(stream, cx)) {
                let said = self.last_words(stream, cx);
                return Poll::Ready(Err(said.unwrap_or(HandshakeError::Io(error))));
            }
            if !self.connection.is_handshaking() {
                return Poll::Ready(Ok(()));
            }
            ready!(self.receive(stream, cx)).inspect_err(|_| {
                // The alert goes out in one piece or not at all: it is a handful of bytes.
                let _ = self.flush(stream, cx);
            })?;
        }
    }

    /// A server that takes no more may have said why before that.
    fn last_words<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
    ) -> Option<HandshakeError> {
        loop {
            match self.receive(stream, cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(
                    said @ (HandshakeError::Tls { .. } | HandshakeError::NotTls(_)),
                )) => {
                    return Some(said);
                }
                Poll::Ready(Err(_)) | Poll::Pending => return None,
            }
        }
    }

    fn receive<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), HandshakeError>> {
        scratch::borrow(|scratch| {
            let kept = self.incoming.len();
            let mut read = ReadBuf::new(&mut scratch.wire[kept..kept + READ]);
            ready!(Pin::new(stream).poll_read(cx, &mut read)).map_err(HandshakeError::Io)?;
            let came = read.filled();
            if came.is_empty() {
                return Poll::Ready(Err(HandshakeError::Ended));
            }
            if !self.begun && !looks_like_tls(came) {
                return Poll::Ready(Err(HandshakeError::NotTls(
                    came[..came.len().min(64)].into(),
                )));
            }
            self.begun = true;
            let end = kept + came.len();
            scratch.wire[..kept].copy_from_slice(&self.incoming);
            self.incoming = Vec::new();
            let wire = &mut scratch.wire[..end];
            let used = self.advance(wire)?;
            if end - used > MAX_KEPT {
                let error = rustls::InvalidMessage::HandshakePayloadTooLarge.into();
                return Poll::Ready(Err(self.failed(error)));
            }
            self.incoming = wire[used..].to_vec();
            Poll::Ready(Ok(()))
        })
    }

    /// Lets rustls have what came and say what it has to say; returns how much it has used up. It
    /// stops as soon as the handshake is over: what follows is not its business.
    fn advance(&mut self, wire: &mut [u8]) -> Result<usize, HandshakeError> {
        let mut provenance = self.provenance;
        let advanced = provenance.within(|| self.advance_within(wire));
        self.provenance = provenance;
        advanced
    }

    fn advance_within(&mut self, wire: &mut [u8]) -> Result<usize, HandshakeError> {
        let mut at = 0;
        loop {
            let UnbufferedStatus { discard, state } =
                self.connection.process_tls_records(&mut wire[at..]);
            let more = match state {
                Err(error) => {
                    let failed = self.failed(error);
                    drain(&mut self.connection, &mut [], &mut self.outgoing);
                    return Err(failed);
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    encode(&mut data, &mut self.outgoing);
                    true
                }
                // What is to be sent is written before anything else is read.
                Ok(ConnectionState::TransmitTlsData(transmit)) => {
                    transmit.done();
                    true
                }
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(Ok(record)) = traffic.next_record() {
                        self.early.extend_from_slice(record.payload);
                    }
                    true
                }
                Ok(ConnectionState::PeerClosed) => {
                    self.peer_closed = true;
                    false
                }
                Ok(_) => false,
            };
            at += discard;
            if !self.connection.is_handshaking() {
                drain(&mut self.connection, &mut wire[at..], &mut self.outgoing);
                return Ok(at);
            }
            if !more {
                return Ok(at);
            }
        }
    }

    fn failed(&self, error: rustls::Error) -> HandshakeError {
        HandshakeError::Tls {
            error,
            verdict: verifier::take_failure(),
            server_accepted: self.connection.peer_certificates().is_some(),
        }
    }

    fn flush<S: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while self.written < self.outgoing.len() {
            let rest = &self.outgoing[self.written..];
            match ready!(Pin::new(&mut *stream).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => self.written += n,
            }
        }
        (self.outgoing, self.written) = (Vec::new(), 0);
        Poll::Ready(Ok(()))
    }
}

/// A TLS record begins with its content type and major version 3 (RFC 8446 section 5.1). The
/// first that a server sends is a handshake message or an alert.
fn looks_like_tls(first: &[u8]) -> bool {
    const ALERT: u8 = 21;
    const HANDSHAKE: u8 = 22;
    matches!(first, [ALERT | HANDSHAKE] | [ALERT | HANDSHAKE, 3, ..])
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::io::{Read as _, Write as _};
    use std::sync::Arc;

    use rustls::{AlertDescription, ServerConnection};

    use super::*;
    use crate::proxy::scratch::Pieces;
    use crate::proxy::session::Session as _;
    use crate::tls::test_pki::{Ca, client, policy, server, trust};

    /// A socket whose other end is a server in this thread: what it says on a flight of ours is
    /// there to be read at once, and in one piece.
    struct Wire {
        server: ServerConnection,
        /// With its first flight the server says this, ends the session, and sends junk.
        goodbye: Option<&'static [u8]>,
        to_client: VecDeque<u8>,
        /// Writes still to be taken; then the connection is broken.
        writes: usize,
    }

    impl AsyncRead for Wire {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            let mut bytes = vec![0; buf.remaining()];
            let n = self.to_client.read(&mut bytes)?;
            buf.put_slice(&bytes[..n]);
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Wire {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            mut bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            let this = &mut *self;
            if this.writes == 0 {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            this.writes -= 1;
            let len = bytes.len();
            while !bytes.is_empty() {
                this.server.read_tls(&mut bytes)?;
                // What it objects to, it says in an alert.
                let _ = this.server.process_new_packets();
            }
            let goodbye = this.goodbye.take();
            if let Some(goodbye) = goodbye {
                this.server.writer().write_all(goodbye)?;
                this.server.send_close_notify();
            }
            while this.server.wants_write() {
                this.server.write_tls(&mut this.to_client)?;
            }
            if goodbye.is_some() {
                this.to_client.extend([b'x'; 8_000]);
            }
            Poll::Ready(Ok(len))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn bytes_after_a_close_notify_that_comes_with_the_handshake_are_ignored() {
        let ca = Ca::new("root");
        let mut config = server(&ca.server(), &[]);
        config.send_half_rtt_data = true;
        let mut wire = Wire {
            server: ServerConnection::new(Arc::new(config)).unwrap(),
            goodbye: Some(b"goodbye"),
            to_client: VecDeque::new(),
            writes: usize::MAX,
        };
        let client = client(&policy(), None, &trust(&[&ca]));
        let name = ServerName::try_from("localhost").unwrap();
        let established = handshake(&mut wire, &client, name, LastFlight::Written)
            .await
            .unwrap();
        let mut session = established.into_session().unwrap();
        let mut buffer = vec![0; 256 * 1024];
        let filled = session.room();
        let mut pieces = Pieces::default();
        session.open(&mut buffer[..filled], &mut pieces).unwrap();
        assert_eq!(pieces.to_vec(&buffer), b"goodbye");
        assert!(session.peer_closed());
    }

    #[tokio::test]
    async fn a_servers_alert_is_heard_although_it_takes_no_more_of_our_flight() {
        let ca = Ca::new("root");
        let config = server(&ca.server(), &[]);
        let mut alert = vec![21, 3, 3, 0, 2, 2];
        alert.push(AlertDescription::HandshakeFailure.into());
        let mut wire = Wire {
            server: ServerConnection::new(Arc::new(config)).unwrap(),
            goodbye: None,
            to_client: alert.into(),
            writes: 0,
        };
        let client = client(&policy(), None, &trust(&[&ca]));
        let name = ServerName::try_from("localhost").unwrap();
        let error = handshake(&mut wire, &client, name, LastFlight::Written)
            .await
            .err()
            .unwrap();
        let HandshakeError::Tls { error, .. } = error else {
            panic!("{error:?}")
        };
        assert_eq!(
            error,
            rustls::Error::AlertReceived(AlertDescription::HandshakeFailure)
        );
    }
}
