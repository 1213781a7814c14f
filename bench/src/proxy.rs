//! The proxy under test, whichever it is.

use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::Group;
use crate::machine;
use crate::pki::PkiFiles;
use crate::process::Processes;
use crate::upstream::command;

pub(crate) mod tlsward;

/// How long a proxy may take until it serves.
const PATIENCE: Duration = Duration::from_secs(15);

/// Between two attempts to get a byte through a proxy that starts.
const POLL: Duration = Duration::from_millis(20);

/// A proxy that takes plain TCP and speaks mutual TLS to one upstream.
///
/// An implementation writes the program's configuration and says how it is started; pinning,
/// starting, waiting and measuring are the same for all. It must ask for one worker, verification
/// of chain and name, the client certificate, no log of connections, and tickets as
/// [`Setup::resumption`] says.
pub(crate) trait Proxy {
    /// A word for the table.
    fn name(&self) -> &'static str;

    /// What exactly was measured: version, build, crypto library where it is known.
    fn version(&self) -> String;

    /// Writes the configuration to `setup.directory`, and returns the command that runs the
    /// program *in the foreground*, so that it ends when it is killed.
    ///
    /// # Errors
    /// The configuration cannot be written.
    fn prepare(&self, setup: &Setup) -> io::Result<Command>;
}

/// What a proxy is to do.
#[derive(Debug)]
pub(crate) struct Setup {
    /// An empty directory for the proxy's files.
    pub(crate) directory: PathBuf,
    pub(crate) listen: SocketAddr,
    pub(crate) upstream: SocketAddr,
    /// The name in the upstream's certificate.
    pub(crate) server_name: &'static str,
    pub(crate) pki: PkiFiles,
    /// The only group that the upstream takes.
    pub(crate) group: Group,
    /// Resume sessions where the upstream gave tickets.
    pub(crate) resumption: bool,
}

/// A proxy that serves; killed when dropped.
pub(crate) struct Running {
    pub(crate) listen: SocketAddr,
    child: Child,
    processes: Processes,
}

impl Running {
    /// Starts `proxy` pinned to its CPU and returns when a byte has gone through it both ways.
    ///
    /// # Errors
    /// It cannot be started, ends early or does not serve in time; then the end of what it said
    /// is part of the error.
    pub(crate) async fn start(proxy: &dyn Proxy, setup: &Setup) -> io::Result<Self> {
        let log = setup.directory.join("output.log");
        let output = File::create(&log)?;
        let mut command = proxy.prepare(setup)?;
        command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        let child = spawn_pinned(command)?;
        let mut running = Self {
            listen: setup.listen,
            processes: Processes::of(child.id())?,
            child,
        };
        if let Err(error) = running.serves().await {
            let said = fs::read_to_string(&log).unwrap_or_default();
            let tail: Vec<_> = said.lines().rev().take(10).collect();
            let tail: Vec<_> = tail.into_iter().rev().collect();
            let name = proxy.name();
            return Err(io::Error::other(format!(
                "{name} {error}; it said:\n{}",
                tail.join("\n")
            )));
        }
        // Workers exist by now.
        running.processes = Processes::of(running.child.id())?;
        Ok(running)
    }

    pub(crate) fn processes(&self) -> &Processes {
        &self.processes
    }

    async fn serves(&mut self) -> io::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let mut interval = tokio::time::interval(POLL);
        loop {
            interval.tick().await;
            if let Some(status) = self.child.try_wait()? {
                return Err(io::Error::other(format!("ended early with {status}")));
            }
            let attempt = tokio::time::timeout(Duration::from_secs(1), one_byte(self.listen));
            match attempt.await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(_)) | Err(_) if Instant::now() < deadline => {}
                Ok(Err(error)) => {
                    return Err(io::Error::other(format!("does not serve: {error}")));
                }
                Err(_) => return Err(io::Error::other("does not answer")),
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only where it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A connection with one byte each way, ended in good order.
pub(crate) async fn one_byte(proxy: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect(proxy).await?;
    stream.set_nodelay(true)?;
    stream.write_all(&[command::ECHO]).await?;
    let mut byte = [0];
    stream.read_exact(&mut byte).await?;
    stream.shutdown().await?;
    match stream.read(&mut byte).await? {
        0 => Ok(()),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "more came back than was sent",
        )),
    }
}

/// An address at which nothing listens at this moment.
pub(crate) fn free_address() -> io::Result<SocketAddr> {
    std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}

/// Affinity is inherited from the thread that forks: so a thread of its own is pinned and forks.
/// Pinning the child afterwards would miss threads that it has already started.
fn spawn_pinned(mut command: Command) -> io::Result<Child> {
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                machine::pin_this_thread(machine::PROXY_CPU)?;
                command.spawn().map_err(|error| {
                    let program = Path::new(command.get_program()).display().to_string();
                    io::Error::new(error.kind(), format!("starting {program}: {error}"))
                })
            })
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the starting thread panicked")))
    })
}
