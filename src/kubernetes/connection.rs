//! Requests to the API server, over one connection that is made when it is needed. No task and no
//! buffer of its own: whoever waits for an answer moves its bytes, and an idle watch holds its
//! socket and TLS session and nothing else.
//!
//! HTTP/1.1 because each watch has a connection to itself: over HTTP/2 a server allows 100 to 250
//! streams of a connection, and the next watch would wait for ever.

use std::error::Error;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Poll, ready};

use hyper::Method;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::time::timeout;
use zeroize::{Zeroize as _, Zeroizing};

use super::gate::Patience;
use super::http::{self, Body, Head};
use super::server::Server;

/// A stream of bytes to the server.
pub(super) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// How much is read at once, on the stack.
const AT_ONCE: usize = 8 * 1024;

/// Requests, one after the other.
#[derive(Default)]
pub(super) struct Conversation {
    connection: Option<Connection>,
}

/// A connection that has at least begun to answer, or is about to.
struct Connection {
    io: Box<dyn Io>,
    /// What is still to come of the last answer.
    body: Body,
    /// Of that body, read with its head.
    early: Zeroizing<Vec<u8>>,
    keeps_alive: bool,
}

impl Conversation {
    /// Sends a request and waits for the head of the answer, whatever it says.
    ///
    /// # Errors
    /// There is no answer; says why.
    pub(super) async fn ask(
        &mut self,
        server: &Server,
        method: Method,
        path: &str,
        body: &[u8],
        patience: Patience,
    ) -> Result<Head, String> {
        loop {
            // Again for each attempt, and wiped: a token stands in it.
            let headers = server.headers().await?;
            let request = http::request(&method, &server.target(path), &headers, body);
            let request = Zeroizing::new(request);
            let used = self.connection.take().filter(Connection::is_free);
            let is_used = used.is_some();
            let mut connection = match used {
                Some(connection) => connection,
                None => Connection::open(server, patience).await?,
            };
            match timeout(patience.answer, connection.ask(&request)).await {
                Ok(Ok(head)) => {
                    self.connection = Some(connection);
                    return Ok(head);
                }
                // A server may close a connection that has been idle, at any moment.
                Ok(Err(_)) if is_used => {}
                Ok(Err(why)) => return Err(why),
                Err(_) => return Err(format!("no answer within {:?}", patience.answer)),
            }
        }
    }

    /// The whole of the body that follows the last head.
    ///
    /// # Errors
    /// It breaks off, or has more than `most` bytes.
    pub(super) async fn whole(
        &mut self,
        most: usize,
        patience: Patience,
    ) -> Result<Zeroizing<Vec<u8>>, String> {
        let mut whole = Zeroizing::default();
        let broken = loop {
            match timeout(patience.answer, self.piece()).await {
                Ok(Ok(None)) => return Ok(whole),
                Ok(Ok(Some(piece))) if whole.len() + piece.len() <= most => {
                    append(&mut whole, &piece);
                }
                Ok(Ok(Some(_))) => break format!("an answer of more than {most} bytes"),
                Ok(Err(why)) => break why,
                Err(_) => break format!("an answer that stopped for {:?}", patience.answer),
            }
        };
        self.hang_up();
        Err(broken)
    }

    /// The next piece of that body, not empty; `None` at its end. Cancel-safe.
    ///
    /// # Errors
    /// It breaks off.
    pub(super) async fn piece(&mut self) -> Result<Option<Zeroizing<Vec<u8>>>, String> {
        match &mut self.connection {
            Some(connection) => connection.piece().await,
            None => Ok(None),
        }
    }

    /// The next request is to have a connection of its own.
    pub(super) fn hang_up(&mut self) {
        self.connection = None;
    }
}

impl Connection {
    async fn open(server: &Server, patience: Patience) -> Result<Self, String> {
        let io = timeout(patience.connect, server.dial())
            .await
            .map_err(|_| format!("no connection within {:?}", patience.connect))??;
        Ok(Self {
            io,
            body: Body::Length(0),
            early: Zeroizing::default(),
            keeps_alive: true,
        })
    }

    /// Whether another request can be sent, as far as is known.
    fn is_free(&self) -> bool {
        self.keeps_alive && self.body.is_complete() && self.early.is_empty()
    }

    async fn ask(&mut self, request: &[u8]) -> Result<Head, String> {
        let sent = async {
            self.io.write_all(request).await?;
            self.io.flush().await
        };
        sent.await.map_err(|error| words(&error))?;
        let mut bytes: Zeroizing<Vec<u8>> = Zeroizing::default();
        loop {
            let more = self.read().await?;
            if more.is_empty() {
                return Err("the connection was closed without an answer".into());
            }
            append(&mut bytes, &more);
            if let Some((head, length)) = http::head(&bytes)? {
                self.body = head.body;
                self.keeps_alive = head.keeps_alive;
                let early = bytes.get(length..).unwrap_or_default();
                self.early = Zeroizing::new(early.to_vec());
                return Ok(head);
            }
        }
    }

    async fn piece(&mut self) -> Result<Option<Zeroizing<Vec<u8>>>, String> {
        loop {
            let bytes = if !self.early.is_empty() {
                std::mem::take(&mut self.early)
            } else if self.body.is_complete() {
                return Ok(None);
            } else {
                self.read().await?
            };
            if bytes.is_empty() {
                self.keeps_alive = false;
                return match self.body {
                    Body::UntilClose => {
                        self.body = Body::Length(0);
                        Ok(None)
                    }
                    _ => Err("the connection was closed within an answer".into()),
                };
            }
            let mut piece = Zeroizing::new(Vec::with_capacity(bytes.len()));
            let taken = self
                .body
                .read(&bytes, |part| piece.extend_from_slice(part))?;
            if taken < bytes.len() {
                // Nothing was asked that this could answer.
                self.keeps_alive = false;
            }
            if !piece.is_empty() {
                return Ok(Some(piece));
            }
        }
    }

    /// What comes next; empty at the end. Cancel-safe.
    async fn read(&mut self) -> Result<Zeroizing<Vec<u8>>, String> {
        let io = &mut self.io;
        let read = poll_fn(|cx| {
            let mut stack = [0; AT_ONCE];
            let mut buffer = ReadBuf::new(&mut stack);
            ready!(Pin::new(&mut *io).poll_read(cx, &mut buffer))?;
            let bytes = Zeroizing::new(buffer.filled().to_vec());
            // It may have been a key.
            buffer.filled_mut().zeroize();
            Poll::Ready(Ok(bytes))
        });
        read.await.map_err(|error: std::io::Error| words(&error))
    }
}

/// Appends without leaving a copy behind where the bytes lay before.
pub(super) fn append(bytes: &mut Zeroizing<Vec<u8>>, more: &[u8]) {
    let needed = bytes.len() + more.len();
    if needed > bytes.capacity() {
        let mut larger = Zeroizing::new(Vec::with_capacity(needed.max(2 * bytes.capacity())));
        larger.extend_from_slice(bytes);
        *bytes = larger;
    }
    bytes.extend_from_slice(more);
}

/// An error with what caused it.
pub(super) fn words(error: &dyn Error) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_words = cause.to_string();
        if !words.contains(&cause_words) {
            words.push_str(": ");
            words.push_str(&cause_words);
        }
        source = cause.source();
    }
    words
}

#[cfg(test)]
mod tests;
