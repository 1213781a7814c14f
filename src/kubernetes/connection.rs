//! Requests to the API server, over one HTTP/1.1 connection that is made when it is needed. No task
//! of its own: whoever waits for an answer moves its bytes, so that it ends with whoever holds it.
//!
//! HTTP/1.1 because each watch has a connection to itself: over HTTP/2 a server allows 100 to 250
//! streams of a connection, and the next watch would wait for ever.

use std::error::Error;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::gate::Patience;
use super::server::Server;

/// A stream of bytes to the server.
pub(super) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// How much is read at once: thousands of watches wait with a buffer of this size. Heads must fit
/// in; those of an API server have less than 1 KiB.
const READ_BUFFER: usize = 8 * 1024;

type Driver = http1::Connection<TokioIo<Box<dyn Io>>, Full<Bytes>>;

/// Requests, one after the other.
#[derive(Default)]
pub(super) struct Conversation {
    connection: Option<Connection>,
}

/// One connection.
struct Connection {
    requests: SendRequest<Full<Bytes>>,
    /// `None`: it has ended.
    driver: Option<Pin<Box<Driver>>>,
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
        body: Bytes,
        patience: Patience,
    ) -> Result<Response<Incoming>, String> {
        loop {
            let request = server.request(method.clone(), path).await?;
            let request = request.map(|()| Full::new(body.clone()));
            let used = self.connection.take().filter(Connection::is_usable);
            let is_used = used.is_some();
            let connection = match used {
                Some(connection) => connection,
                None => Connection::open(server, patience).await?,
            };
            let connection = self.connection.insert(connection);
            match timeout(patience.answer, connection.send(request)).await {
                Ok(Ok(response)) => return Ok(response),
                // A server may close a connection that has been idle, at any moment.
                Ok(Err(_)) if is_used => self.connection = None,
                Ok(Err(error)) => {
                    self.connection = None;
                    return Err(words(&error));
                }
                Err(_) => {
                    self.connection = None;
                    return Err(format!("no answer within {:?}", patience.answer));
                }
            }
        }
    }

    /// The whole of an answer's body.
    ///
    /// # Errors
    /// It breaks off, or has more than `most` bytes.
    pub(super) async fn whole(
        &mut self,
        response: Response<Incoming>,
        most: usize,
        patience: Patience,
    ) -> Result<Zeroizing<Vec<u8>>, String> {
        let mut body = response.into_body();
        let mut whole = Zeroizing::default();
        let broken = loop {
            match timeout(patience.answer, self.piece(&mut body)).await {
                Ok(None) => return Ok(whole),
                Ok(Some(Ok(piece))) if whole.len() + piece.len() <= most => {
                    append(&mut whole, &piece);
                }
                Ok(Some(Ok(_))) => break format!("an answer of more than {most} bytes"),
                Ok(Some(Err(error))) => break words(&error),
                Err(_) => break format!("an answer that stopped for {:?}", patience.answer),
            }
        };
        self.connection = None;
        Err(broken)
    }

    /// The next piece of an answer; `None` at its end. Cancel-safe.
    pub(super) async fn piece(&mut self, body: &mut Incoming) -> Option<hyper::Result<Bytes>> {
        let driver = &mut self.connection.as_mut()?.driver;
        loop {
            match drive(driver, body.frame()).await? {
                Ok(frame) => {
                    // Trailers say nothing of interest.
                    if let Ok(piece) = frame.into_data() {
                        return Some(Ok(piece));
                    }
                }
                Err(error) => return Some(Err(error)),
            }
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
        let (requests, driver) = http1::Builder::new()
            .read_buf_exact_size(Some(READ_BUFFER))
            .handshake(TokioIo::new(io))
            .await
            .map_err(|error| words(&error))?;
        Ok(Self {
            requests,
            driver: Some(Box::pin(driver)),
        })
    }

    /// Whether another request can be sent, as far as is known.
    fn is_usable(&self) -> bool {
        self.driver.is_some() && !self.requests.is_closed()
    }

    async fn send(&mut self, request: Request<Full<Bytes>>) -> hyper::Result<Response<Incoming>> {
        let requests = &mut self.requests;
        drive(&mut self.driver, async {
            requests.ready().await?;
            requests.send_request(request).await
        })
        .await
    }
}

/// Does `work`, and moves the connection's bytes meanwhile.
async fn drive<F: Future>(driver: &mut Option<Pin<Box<Driver>>>, work: F) -> F::Output {
    let mut work = pin!(work);
    poll_fn(|cx| {
        if let Some(running) = driver
            && running.as_mut().poll(cx).is_ready()
        {
            // Why it ended, whoever waits for an answer is told.
            *driver = None;
        }
        work.as_mut().poll(cx)
    })
    .await
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
