//! The demo's application: it speaks plain TCP, line by line, and knows nothing of TLS.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::{Duration, timeout};

use super::{DemoError, expect};

/// How long an exchange on an open connection may take.
const PATIENCE: Duration = Duration::from_secs(15);

/// A client that speaks plain TCP, line by line.
pub(super) struct Application {
    stream: BufReader<TcpStream>,
}

/// How a connection ended for the application.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// In good order.
    Closed,
    Reset,
    /// It did not end: bytes came.
    Bytes,
}

impl Application {
    pub(super) async fn connect(to: SocketAddr) -> Result<Self, DemoError> {
        let connected = patiently(TcpStream::connect(to)).await;
        Ok(Self {
            stream: BufReader::new(connected.map_err(DemoError::io("connecting to the listener"))?),
        })
    }

    pub(super) async fn line(&mut self) -> Result<String, DemoError> {
        let mut line = String::new();
        patiently(self.stream.read_line(&mut line))
            .await
            .map_err(DemoError::io("reading through tlsward"))?;
        expect("a whole line", line.ends_with('\n'), &line)?;
        line.pop();
        Ok(line)
    }

    /// Sends a line and returns the answer.
    pub(super) async fn ask(&mut self, question: &str) -> Result<String, DemoError> {
        let question = format!("{question}\n");
        patiently(self.stream.write_all(question.as_bytes()))
            .await
            .map_err(DemoError::io("writing through tlsward"))?;
        self.line().await
    }

    pub(super) async fn echo(&mut self, text: &str) -> Result<(), DemoError> {
        let answer = self.ask(text).await?;
        expect(&format!("{text:?} to come back"), answer == text, &answer)
    }

    /// How a connection ends on which nothing is sent. The reset may come so soon that it is
    /// connecting that fails.
    pub(super) async fn ending_at(to: SocketAddr) -> Result<Ending, DemoError> {
        let ended = async {
            let mut stream = BufReader::new(TcpStream::connect(to).await?);
            Ok(if stream.fill_buf().await?.is_empty() {
                Ending::Closed
            } else {
                Ending::Bytes
            })
        };
        match patiently(ended).await {
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(Ending::Reset),
            ended => ended.map_err(DemoError::io("waiting for the refusal")),
        }
    }
}

async fn patiently<T>(what: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(PATIENCE, what)
        .await
        .unwrap_or_else(|elapsed| Err(io::Error::new(io::ErrorKind::TimedOut, elapsed)))
}
