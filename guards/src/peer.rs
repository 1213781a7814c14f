//! The other end of a driver's session: a TLS server in memory. None of its work is counted.

use std::io::{self, IoSlice, Write as _};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls::{HandshakeKind, ServerConfig, ServerConnection};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::meter::not_ours;

/// The largest plaintext of a record (RFC 8446 section 5.1).
pub(crate) const RECORD: usize = 1 << 14;

/// A server that shakes hands within the write, and can be made to talk without end.
pub(crate) struct Server {
    connection: ServerConnection,
    /// What it has said and nobody has read, from `read` on.
    said: Vec<u8>,
    read: usize,
    /// What each read finds, once the handshake is over.
    speech: Speech,
    /// The most that one read takes.
    pace: usize,
}

/// What a server says.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Speech {
    /// No more than its handshake.
    Nothing,
    /// Records of this much plaintext, without end.
    Records(usize),
}

impl Server {
    /// # Errors
    /// As [`ServerConnection::new`].
    pub(crate) fn new(config: &Arc<ServerConfig>) -> Result<Self, rustls::Error> {
        let mut connection = ServerConnection::new(Arc::clone(config))?;
        connection.set_buffer_limit(None);
        Ok(Self {
            connection,
            said: Vec::new(),
            read: 0,
            speech: Speech::Nothing,
            pace: usize::MAX,
        })
    }

    /// Says records of `size` bytes from now on, of which each read takes at most `records`.
    pub(crate) fn talk(&mut self, size: usize, records: usize) {
        /// Header, content type and tag of a record of TLS 1.3.
        const OVERHEAD: usize = 5 + 1 + 16;
        self.speech = Speech::Records(size);
        self.pace = (size + OVERHEAD).saturating_mul(records);
    }

    /// The last handshake was a resumption.
    pub(crate) fn resumed(&self) -> bool {
        self.connection.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    fn say(&mut self, len: usize) -> io::Result<()> {
        let Speech::Records(size) = self.speech else {
            return Ok(());
        };
        let plain = [0x5a; RECORD];
        while self.said.len() - self.read < len {
            self.connection.writer().write_all(&plain[..size])?;
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.read == self.said.len() {
            self.said.clear();
            self.read = 0;
        }
        while self.connection.wants_write() {
            self.connection.write_tls(&mut self.said)?;
        }
        Ok(())
    }

    /// Takes what the client says; answers a handshake. Records after it go unread: opening them
    /// is the server's business and would only take time.
    fn hear(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        if !self.connection.is_handshaking() {
            return Ok(());
        }
        while !bytes.is_empty() {
            self.connection.read_tls(&mut bytes)?;
            self.connection
                .process_new_packets()
                .map_err(io::Error::other)?;
        }
        self.flush()
    }
}

impl AsyncRead for Server {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        not_ours(|| {
            let this = &mut *self;
            let wanted = buffer.remaining().min(this.pace);
            this.say(wanted)?;
            let unread = &this.said[this.read..];
            if unread.is_empty() {
                return Poll::Pending;
            }
            let len = unread.len().min(wanted);
            buffer.put_slice(&unread[..len]);
            this.read += len;
            Poll::Ready(Ok(()))
        })
    }
}

impl AsyncWrite for Server {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        not_ours(|| self.hear(bytes))?;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        not_ours(|| {
            let mut heard = 0;
            for slice in slices {
                self.hear(slice)?;
                heard += slice.len();
            }
            Poll::Ready(Ok(heard))
        })
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
