//! The TLS handshake with an upstream.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustls::{ClientConfig, ClientConnection};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::relay::Sink;
use super::scratch;
use crate::failure::Explained;
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
    config: Arc<ClientConfig>,
    server_name: ServerName<'static>,
) -> Result<Box<ClientConnection>, HandshakeError> {
    let alpn_offered = !config.alpn_protocols.is_empty();
    let connection =
        ClientConnection::new(config, server_name).map_err(|error| HandshakeError::Tls {
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
        ready!(flush(stream, connection, cx)).map_err(HandshakeError::Io)?;
        if !connection.is_handshaking() {
            return Poll::Ready(Ok(()));
        }
        ready!(scratch::borrow(|scratch| {
            let mut wire = ReadBuf::new(&mut scratch.wire[..READ]);
            ready!(Pin::new(&mut *stream).poll_read(cx, &mut wire)).map_err(HandshakeError::Io)?;
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
        }))
        .inspect_err(|_| {
            // The alert goes out in one piece or not at all: it is a handful of bytes.
            let _ = flush(stream, connection, cx);
        })?;
    }
}

fn take(connection: &mut ClientConnection, mut wire: &[u8]) -> Result<(), HandshakeError> {
    while !wire.is_empty() {
        connection
            .read_tls(&mut wire)
            .map_err(|_| HandshakeError::Tls {
                error: rustls::Error::PeerSentOversizedRecord,
                verdict: None,
                server_accepted: false,
            })?;
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
