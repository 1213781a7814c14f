//! The proxy as a child process, and questions to its admin endpoint.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::{Instant, interval_at};

use super::DemoError;

/// Between two looks at the admin endpoint: short beside what people notice.
const POLL: Duration = Duration::from_millis(20);

/// How long anything may take that should take a moment.
const PATIENCE: Duration = Duration::from_secs(15);

/// Settings that would override the demo's own configuration.
const SETTINGS: [&str; 7] = [
    "TLSWARD_TLS_VERIFY",
    "TLSWARD_TLS_VERIFY_DEPTH",
    "TLSWARD_TLS_CA",
    "TLSWARD_TLS_CERT",
    "TLSWARD_TLS_KEY",
    "TLSWARD_ADMIN_LISTEN",
    "TLSWARD_LOG",
];

/// A running `tlsward run`; killed when dropped.
pub(super) struct Proxy {
    child: Child,
    admin: SocketAddr,
}

impl Proxy {
    /// Starts this very program with `config` and waits until it is ready. Its log goes to `log`.
    pub(super) async fn start(
        program: &Path,
        config: &Path,
        log: &Path,
        admin: SocketAddr,
    ) -> Result<Self, DemoError> {
        let log_file = File::create(log).map_err(DemoError::io("creating the log"))?;
        let mut command = Command::new(program);
        command
            .arg("run")
            .arg("-c")
            .arg(config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log_file);
        for name in SETTINGS {
            command.env_remove(name);
        }
        let child = command.spawn().map_err(DemoError::io("starting tlsward"))?;
        let mut proxy = Self { child, admin };
        proxy.wait_until_ready().await?;
        Ok(proxy)
    }

    async fn wait_until_ready(&mut self) -> Result<(), DemoError> {
        let mut ticks = ticks();
        loop {
            ticks.tick("tlsward to be ready").await?;
            if let Some(status) = self
                .child
                .try_wait()
                .map_err(DemoError::io("waiting for tlsward"))?
            {
                return Err(DemoError::ProxyEnded(status));
            }
            // Before the endpoint is bound this is an error; that is what the wait is for.
            if let Ok((200, _)) = get(self.admin, "/readyz").await {
                return Ok(());
            }
        }
    }

    /// Asks for status until `pick` finds what it looks for in the part of `service`.
    pub(super) async fn wait_for<T>(
        &self,
        service: &str,
        what: &'static str,
        pick: impl Fn(&Value) -> Option<T>,
    ) -> Result<T, DemoError> {
        let mut ticks = ticks();
        loop {
            ticks.tick(what).await?;
            let (_, body) = get(self.admin, "/status")
                .await
                .map_err(DemoError::io("asking tlsward for its status"))?;
            let status: Value = serde_json::from_slice(&body)
                .map_err(|error| DemoError::io("reading the status")(error.into()))?;
            let part = status["services"]
                .as_array()
                .and_then(|services| services.iter().find(|part| part["name"] == service));
            if let Some(found) = part.and_then(&pick) {
                return Ok(found);
            }
        }
    }

    /// SIGTERM, then waits for the end.
    pub(super) async fn stop(mut self) -> Result<ExitStatus, DemoError> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)
            .map_err(|error| DemoError::io("stopping tlsward")(error.into()))?;
        let mut ticks = ticks();
        loop {
            ticks.tick("tlsward to end").await?;
            if let Some(status) = self
                .child
                .try_wait()
                .map_err(DemoError::io("waiting for tlsward"))?
            {
                return Ok(status);
            }
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // Both fail only where it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One look after the other, up to [`PATIENCE`].
struct Ticks {
    interval: tokio::time::Interval,
    deadline: Instant,
}

fn ticks() -> Ticks {
    let now = Instant::now();
    Ticks {
        interval: interval_at(now, POLL),
        deadline: now + PATIENCE,
    }
}

impl Ticks {
    async fn tick(&mut self, what: &'static str) -> Result<(), DemoError> {
        if Instant::now() > self.deadline {
            return Err(DemoError::Patience {
                what,
                seconds: PATIENCE.as_secs(),
            });
        }
        self.interval.tick().await;
        Ok(())
    }
}

/// One request on a connection of its own.
async fn get(admin: SocketAddr, path: &str) -> io::Result<(u16, Bytes)> {
    let exchange = async {
        let stream = TcpStream::connect(admin).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(io::Error::other)?;
        let request = Request::get(path)
            .header("host", admin.to_string())
            .body(Empty::<Bytes>::new())
            .map_err(io::Error::other)?;
        let answer = async move {
            let answer = sender.send_request(request).await?;
            let code = answer.status().as_u16();
            let body = answer.into_body().collect().await?.to_bytes();
            // The sender goes here, and with it the connection ends.
            Ok::<_, hyper::Error>((code, body))
        };
        let (answer, _) = tokio::join!(answer, connection);
        answer.map_err(io::Error::other)
    };
    tokio::time::timeout(PATIENCE, exchange)
        .await
        .unwrap_or_else(|elapsed| Err(io::Error::new(io::ErrorKind::TimedOut, elapsed)))
}
