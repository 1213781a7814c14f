//! One HTTP/1.1 connection to the API server. No task of its own: whoever waits for an answer
//! moves its bytes, so that it ends with whoever holds it.
//!
//! HTTP/1.1 because each watch has a connection to itself: over HTTP/2 a server allows 100 to 250
//! streams of a connection, and the next watch would wait for ever.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::Poll;

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

/// A stream of bytes to the server.
pub(super) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// How much is read at once: thousands of watches wait with a buffer of this size. Heads must fit
/// in; those of an API server have less than 1 KiB.
const READ_BUFFER: usize = 8 * 1024;

type Driver = http1::Connection<TokioIo<Box<dyn Io>>, Full<Bytes>>;

pub(super) struct Connection {
    requests: SendRequest<Full<Bytes>>,
    /// `None`: it has ended.
    driver: Option<Pin<Box<Driver>>>,
}

impl Connection {
    pub(super) async fn open(io: Box<dyn Io>) -> hyper::Result<Self> {
        let (requests, driver) = http1::Builder::new()
            .read_buf_exact_size(Some(READ_BUFFER))
            .handshake(TokioIo::new(io))
            .await?;
        Ok(Self {
            requests,
            driver: Some(Box::pin(driver)),
        })
    }

    /// Whether another request can be sent, as far as is known.
    pub(super) fn is_usable(&self) -> bool {
        self.driver.is_some() && !self.requests.is_closed()
    }

    /// Sends a request and waits for the head of the answer.
    pub(super) async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> hyper::Result<Response<Incoming>> {
        let requests = &mut self.requests;
        drive(&mut self.driver, async {
            requests.ready().await?;
            requests.send_request(request).await
        })
        .await
    }

    /// The next piece of an answer; `None` at its end. Cancel-safe.
    pub(super) async fn piece(&mut self, body: &mut Incoming) -> Option<hyper::Result<Bytes>> {
        loop {
            match drive(&mut self.driver, body.frame()).await? {
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
        match work.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(output),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}
