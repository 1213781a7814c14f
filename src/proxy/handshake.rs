//! The TLS handshake with an upstream.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustls::ClientConnection;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::relay::Sink;
use super::scratch;
use crate::failure::Explained;
use crate::tls::client_config::Connector;
use crate::tls::verifier;

/// Read at once, at most. What follows the handshake in the same read is plaintext that rustls
/// keeps for us, and it keeps 16 KiB.
const READ: usize = 16 * 1024;

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
) -> Result<Box<ClientConnection>, HandshakeError> {
    let alpn_offered = connector.offers_alpn();
    let connection = connector
        .connection(server_name)
        .map_err(|error| HandshakeError::Tls {
            error,
            verdict: None,
            server_accepted: false,
        })?;
    let mut connection = Box::new(connection);
    let mut begun = false;
    poll_fn(|cx| poll(stream, &mut connection, &mut begun, cx)).await?;
    // RFC 7301 section 3.2 lets a server ignore the extension; then nobody knows what is spoken.
    if alpn_offered && connection.alpn_protocol().is_none() {
        return Err(HandshakeError::NoAlpn);
    }
    Ok(connection)
}

fn poll<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    connection: &mut ClientConnection,
    begun: &mut bool,
    cx: &mut Context<'_>,
) -> Poll<Result<(), HandshakeError>> {
    loop {
        if let Err(error) = ready!(flush(stream, connection, cx)) {
            return Poll::Ready(Err(
                last_words(stream, connection, begun, cx).unwrap_or(HandshakeError::Io(error))
            ));
        }
        if !connection.is_handshaking() {
            return Poll::Ready(Ok(()));
        }
        ready!(receive(stream, connection, begun, cx)).inspect_err(|_| {
            // The alert goes out in one piece or not at all: it is a handful of bytes.
            let _ = flush(stream, connection, cx);
        })?;
    }
}

/// A server that takes no more may have said why before that.
fn last_words<S: AsyncRead + Unpin>(
    stream: &mut S,
    connection: &mut ClientConnection,
    begun: &mut bool,
    cx: &mut Context<'_>,
) -> Option<HandshakeError> {
    loop {
        match receive(stream, connection, begun, cx) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(said @ (HandshakeError::Tls { .. } | HandshakeError::NotTls(_)))) => {
                return Some(said);
            }
            Poll::Ready(Err(_)) | Poll::Pending => return None,
        }
    }
}

fn receive<S: AsyncRead + Unpin>(
    stream: &mut S,
    connection: &mut ClientConnection,
    begun: &mut bool,
    cx: &mut Context<'_>,
) -> Poll<Result<(), HandshakeError>> {
    scratch::borrow(|scratch| {
        let mut wire = ReadBuf::new(&mut scratch.wire[..READ]);
        ready!(Pin::new(stream).poll_read(cx, &mut wire)).map_err(HandshakeError::Io)?;
        let wire = wire.filled();
        if wire.is_empty() {
            return Poll::Ready(Err(HandshakeError::Ended));
        }
        if !*begun && !looks_like_tls(wire) {
            return Poll::Ready(Err(HandshakeError::NotTls(
                wire[..wire.len().min(64)].into(),
            )));
        }
        *begun = true;
        Poll::Ready(take(connection, wire))
    })
}

fn take(connection: &mut ClientConnection, mut wire: &[u8]) -> Result<(), HandshakeError> {
    while !wire.is_empty() {
        let taken = connection
            .read_tls(&mut wire)
            .map_err(|_| HandshakeError::Tls {
                error: rustls::Error::PeerSentOversizedRecord,
                verdict: None,
                server_accepted: false,
            })?;
        // After close_notify rustls takes nothing more; RFC 8446 section 6.1: data received after
        // it is ignored.
        if taken == 0 {
            return Ok(());
        }
        if let Err(error) = connection.process_new_packets() {
            return Err(HandshakeError::Tls {
                error,
                verdict: verifier::take_failure(),
                server_accepted: connection.peer_certificates().is_some(),
            });
        }
    }
    Ok(())
}

fn flush<S: AsyncWrite + Unpin>(
    stream: &mut S,
    connection: &mut ClientConnection,
    cx: &mut Context<'_>,
) -> Poll<io::Result<()>> {
    while connection.wants_write() {
        match connection.write_tls(&mut Sink { io: stream, cx }) {
            Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
            Err(error) => return Poll::Ready(Err(error)),
        }
    }
    Poll::Ready(Ok(()))
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
        let mut session = handshake(&mut wire, &client, name).await.unwrap();
        let mut said = String::new();
        session.reader().read_to_string(&mut said).unwrap();
        assert_eq!(said, "goodbye");
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
        let error = handshake(&mut wire, &client, name).await.unwrap_err();
        let HandshakeError::Tls { error, .. } = error else {
            panic!("{error:?}")
        };
        assert_eq!(
            error,
            rustls::Error::AlertReceived(AlertDescription::HandshakeFailure)
        );
    }
}
