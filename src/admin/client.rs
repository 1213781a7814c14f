//! How `tlsward status`, `tlsward reload` and `tlsward stop` talk to the running process.

use std::io;
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::Instant;

use super::{QuitReport, ReloadOutcome};
use crate::config::Listen;

/// To connect, and for an answer that needs no work. A process that is stuck, or stopped by a
/// signal, still has a backlog that accepts.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// For a reload, which ends when everything is in force: thousands of files on a slow disk.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(120);

/// Between two looks at a process that is to end; nothing announces it.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Status of some 50,000 services: what answers with more is not tlsward.
const MAX_ANSWER: usize = 256 * 1024 * 1024;

/// The admin endpoint of a running tlsward.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    listen: Listen,
    told_by: String,
}

/// Why there is no answer to use. Each says where it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// Nobody listens there.
    #[error(
        "no tlsward answers at {listen}: {source}; is it running? {told_by} says that its admin endpoint is there"
    )]
    NobodyAnswers {
        listen: Listen,
        told_by: String,
        source: io::Error,
    },
    /// A unix socket that this user may not use.
    #[error(
        "this user may not connect to {listen}: run the command as the user that tlsward runs as, or widen the socket's mode (?mode=0660)"
    )]
    NotAllowed { listen: Listen },
    /// Somebody listens but does not answer in time.
    #[error(
        "{listen} did not answer {request} within {} s; it may still carry it out",
        after.as_secs()
    )]
    NoAnswerYet {
        listen: Listen,
        request: &'static str,
        after: Duration,
    },
    /// It was to have ended by now.
    #[error(
        "tlsward at {listen} still runs {} s after it was asked to stop; its log says why",
        after.as_secs()
    )]
    StillRuns { listen: Listen, after: Duration },
    /// What answers is not what was asked.
    #[error(
        "what answers at {listen} is not the admin endpoint of tlsward: {reason}; {told_by} says that it is there"
    )]
    NotTlsward {
        listen: Listen,
        told_by: String,
        reason: String,
    },
    /// The endpoint refused, in its own words.
    #[error("{listen} refused {request} ({status}): {text}")]
    Refused {
        listen: Listen,
        request: &'static str,
        status: StatusCode,
        text: String,
    },
}

impl Client {
    /// `told_by` is where the address comes from, for messages: `admin.listen of config.toml`.
    pub(crate) fn new(listen: Listen, told_by: impl Into<String>) -> Self {
        Self {
            listen,
            told_by: told_by.into(),
        }
    }

    /// The answer of `/status`.
    ///
    /// # Errors
    /// There is no answer, or none of tlsward's.
    pub(crate) async fn status(&self) -> Result<Value, ClientError> {
        let request = "GET /status";
        let (status, body) = self.ask(request, Method::GET, ANSWER_TIMEOUT).await?;
        match status {
            StatusCode::OK => {
                let value: Value =
                    serde_json::from_slice(&body).map_err(|error| self.not_tlsward(&error))?;
                if value["services"].is_array() {
                    Ok(value)
                } else {
                    Err(self.not_tlsward(&"its status has no services"))
                }
            }
            _ => Err(self.refused(request, status, &body)),
        }
    }

    /// Has everything read again, and waits for the end of it.
    ///
    /// # Errors
    /// There is no answer, or none of tlsward's. A configuration that was refused is an answer.
    pub(crate) async fn reload(&self) -> Result<ReloadOutcome, ClientError> {
        let request = "POST /reload";
        let (status, body) = self.ask(request, Method::POST, RELOAD_TIMEOUT).await?;
        match status {
            StatusCode::OK | StatusCode::CONFLICT => {
                serde_json::from_slice(&body).map_err(|error| self.not_tlsward(&error))
            }
            _ => Err(self.refused(request, status, &body)),
        }
    }

    /// As [`Self::reload`], of a process that may take the endpoint within `patience`.
    ///
    /// # Errors
    /// As there.
    pub(crate) async fn reload_when_there(
        &self,
        patience: Duration,
    ) -> Result<ReloadOutcome, ClientError> {
        let until = Instant::now() + patience;
        loop {
            match self.reload().await {
                Err(ClientError::NobodyAnswers { .. }) if Instant::now() < until => {
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
                outcome => return outcome,
            }
        }
    }

    /// Asks the process to end as SIGTERM does; the answer comes when that has begun.
    ///
    /// # Errors
    /// There is no answer, or none of tlsward's.
    pub(crate) async fn quit(&self) -> Result<QuitReport, ClientError> {
        let request = "POST /quit";
        let (status, body) = self.ask(request, Method::POST, ANSWER_TIMEOUT).await?;
        match status {
            StatusCode::ACCEPTED => {
                serde_json::from_slice(&body).map_err(|error| self.not_tlsward(&error))
            }
            _ => Err(self.refused(request, status, &body)),
        }
    }

    /// Waits until a process that was asked to end no longer answers, or another has taken its
    /// place. `longest` is what it may take for its connections.
    ///
    /// # Errors
    /// It still runs some time after that.
    pub(crate) async fn gone(&self, longest: Duration) -> Result<(), ClientError> {
        let after = longest.saturating_add(ANSWER_TIMEOUT);
        let gone = async {
            while let Ok(status) = self.status().await
                && status["state"] == "stopping"
            {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        };
        tokio::time::timeout(after, gone)
            .await
            .map_err(|_| ClientError::StillRuns {
                listen: self.listen.clone(),
                after,
            })
    }

    /// `request` is method and path.
    async fn ask(
        &self,
        request: &'static str,
        method: Method,
        limit: Duration,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let path = request.split_once(' ').map_or("/", |(_, path)| path);
        let asked = async {
            match &self.listen {
                Listen::Tcp(address) => {
                    let stream = TcpStream::connect(address).await;
                    let stream = stream.map_err(|error| self.unreachable(error))?;
                    self.exchange(stream, &address.to_string(), method, path)
                        .await
                }
                Listen::Unix { path: file, .. } => {
                    let stream = UnixStream::connect(file).await;
                    let stream = stream.map_err(|error| self.unreachable(error))?;
                    self.exchange(stream, "localhost", method, path).await
                }
                Listen::Systemd(_) => Err(self.unreachable(io::ErrorKind::Unsupported.into())),
            }
        };
        tokio::time::timeout(limit, asked)
            .await
            .unwrap_or_else(|_| {
                Err(ClientError::NoAnswerYet {
                    listen: self.listen.clone(),
                    request,
                    after: limit,
                })
            })
    }

    async fn exchange(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin,
        host: &str,
        method: Method,
        path: &str,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.not_tlsward(&error))?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, host)
            .body(Empty::<Bytes>::new())
            .expect("a fixed method and path and a printed address make a request");
        let asked = async move {
            let response = sender.send_request(request).await?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_ANSWER);
            // `sender` goes with this block, and so ends the connection.
            Ok::<_, hyper::Error>((status, body.collect().await))
        };
        // The connection's own error reaches the request as well.
        let (answer, _ended) = tokio::join!(asked, connection);
        let (status, body) = answer.map_err(|error| self.not_tlsward(&error))?;
        let body = body.map_err(|error| self.not_tlsward(&error))?;
        Ok((status, body.to_bytes()))
    }

    fn unreachable(&self, source: io::Error) -> ClientError {
        let listen = self.listen.clone();
        if source.kind() == io::ErrorKind::PermissionDenied {
            return ClientError::NotAllowed { listen };
        }
        ClientError::NobodyAnswers {
            listen,
            told_by: self.told_by.clone(),
            source,
        }
    }

    fn not_tlsward(&self, reason: &dyn std::fmt::Display) -> ClientError {
        ClientError::NotTlsward {
            listen: self.listen.clone(),
            told_by: self.told_by.clone(),
            reason: reason.to_string(),
        }
    }

    fn refused(&self, request: &'static str, status: StatusCode, body: &[u8]) -> ClientError {
        ClientError::Refused {
            listen: self.listen.clone(),
            request,
            status,
            text: String::from_utf8_lossy(body).trim().to_owned(),
        }
    }
}

#[cfg(test)]
mod tests;
