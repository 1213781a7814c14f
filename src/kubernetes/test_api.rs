//! An API server that says what a test tells it to, over pipes in memory, so that time can stand
//! still.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use hyper::body::{Body, Bytes, Frame};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::connection::Io;
use super::server::{Dial, Server};

/// The test's side.
pub(super) struct Api {
    asked: mpsc::UnboundedReceiver<Asked>,
    pub(super) line: Arc<Line>,
}

/// The way to the server.
#[derive(Default)]
pub(super) struct Line {
    /// Nobody listens.
    pub(super) down: AtomicBool,
    /// How often a connection was asked for.
    pub(super) dials: AtomicUsize,
    connections: Mutex<JoinSet<()>>,
}

impl Line {
    pub(super) fn dials(&self) -> usize {
        self.dials.load(Ordering::Relaxed)
    }

    /// Breaks all connections, and refuses new ones until [`Self::restore`].
    pub(super) fn cut(&self) {
        self.down.store(true, Ordering::Relaxed);
        self.connections.lock().unwrap().abort_all();
    }

    pub(super) fn restore(&self) {
        self.down.store(false, Ordering::Relaxed);
    }
}

/// A request that waits for its answer.
pub(super) struct Asked {
    /// With its query.
    pub(super) path: String,
    pub(super) body: Vec<u8>,
    reply: oneshot::Sender<Response<Feed>>,
}

/// A server named `https://api`, and the test's side of it.
pub(super) fn api() -> (Server, Api) {
    let (send, asked) = mpsc::unbounded_channel();
    let line = Arc::new(Line::default());
    let dial = Pipes {
        line: Arc::clone(&line),
        asked: send,
    };
    (Server::anonymous("https://api", dial), Api { asked, line })
}

impl Api {
    /// The next request.
    pub(super) async fn next(&mut self) -> Asked {
        self.asked.recv().await.expect("the server is there")
    }

    /// The next request, which must be for this path (and, after `?`, all of these parts).
    pub(super) async fn expect(&mut self, path: &str, parts: &[&str]) -> Asked {
        let asked = self.next().await;
        let (found, query) = asked.path.split_once('?').unwrap_or((&asked.path, ""));
        assert_eq!(found, path, "{}", asked.path);
        let query: Vec<&str> = query.split('&').collect();
        for part in parts {
            assert!(query.contains(part), "{} lacks {part}", asked.path);
        }
        asked
    }

    /// Whether a request waits already.
    pub(super) fn try_next(&mut self) -> Option<Asked> {
        self.asked.try_recv().ok()
    }
}

impl Asked {
    pub(super) fn is_watch(&self) -> bool {
        self.path.contains("watch=true")
    }

    pub(super) fn json(self, value: &Value) {
        self.status(200, &[], value);
    }

    /// A list of `items` at `version`.
    pub(super) fn list(self, version: &str, items: &[Value]) {
        self.json(&json!({ "metadata": { "resourceVersion": version }, "items": items }));
    }

    /// The head of a watch, and what feeds it.
    pub(super) fn watch(self) -> mpsc::UnboundedSender<Bytes> {
        let (send, feed) = mpsc::unbounded_channel();
        let _ = self.reply.send(Response::new(Feed(feed)));
        send
    }

    pub(super) fn status(self, code: u16, headers: &[(&'static str, &str)], value: &Value) {
        let (send, feed) = mpsc::unbounded_channel();
        send.send(value.to_string().into()).unwrap();
        let mut response = Response::builder().status(code);
        for (name, value) in headers {
            response = response.header(*name, *value);
        }
        let _ = self.reply.send(response.body(Feed(feed)).unwrap());
    }

    /// A refusal, in the API server's words.
    pub(super) fn refuse(self, code: u16, reason: &str, message: &str) {
        let status = refusal(code, reason, message);
        self.status(code, &[], &status);
    }
}

pub(super) fn refusal(code: u16, reason: &str, message: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    })
}

/// A line of a watch.
pub(super) fn event(kind: &str, object: &Value) -> Bytes {
    let line = json!({ "type": kind, "object": object });
    format!("{line}\n").into()
}

/// A body that a test feeds; it ends with its sender.
pub(super) struct Feed(mpsc::UnboundedReceiver<Bytes>);

impl Body for Feed {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0
            .poll_recv(cx)
            .map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
    }
}

struct Pipes {
    line: Arc<Line>,
    asked: mpsc::UnboundedSender<Asked>,
}

impl Dial for Pipes {
    fn dial(&self) -> BoxFuture<'_, Result<Box<dyn Io>, String>> {
        self.line.dials.fetch_add(1, Ordering::Relaxed);
        Box::pin(async {
            if self.line.down.load(Ordering::Relaxed) {
                return Err("connection refused".into());
            }
            let (ours, theirs) = tokio::io::duplex(64 * 1024);
            let asked = self.asked.clone();
            let mut connections = self.line.connections.lock().unwrap();
            connections.spawn(async move {
                let service = service_fn(move |request| answer(request, asked.clone()));
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(theirs), service);
                let _ = connection.await;
            });
            Ok(Box::new(ours) as Box<dyn Io>)
        })
    }
}

async fn answer(
    request: Request<hyper::body::Incoming>,
    asked: mpsc::UnboundedSender<Asked>,
) -> Result<Response<Feed>, oneshot::error::RecvError> {
    use http_body_util::BodyExt as _;
    let (reply, answer) = oneshot::channel();
    let path = request.uri().to_string();
    let body = request.into_body().collect().await;
    let body = body.map_or(Vec::new(), |body| body.to_bytes().to_vec());
    let _ = asked.send(Asked { path, body, reply });
    answer.await
}
