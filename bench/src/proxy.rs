//! The proxy under test, whichever it is.

use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::Group;
use crate::machine;
use crate::pki::PkiFiles;
use crate::process::Processes;
use crate::upstream::command;
use crate::workload::Workload;

mod direct;
mod envoy;
mod ghostunnel;
mod haproxy;
mod nginx;
pub(crate) mod peers;
mod stunnel;
pub(crate) mod tlsward;

/// The peer that copies without TLS, which limits are given against.
pub(crate) const PLAIN_COPIER: &str = haproxy::PLAIN;

/// How long a proxy may take until it serves.
const PATIENCE: Duration = Duration::from_secs(15);

/// Between two attempts to get a byte through a proxy that starts.
const POLL: Duration = Duration::from_millis(20);

/// What a contender is in the comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    /// What is measured, and has limits: tlsward.
    Subject,
    /// Another product that does the same work.
    Peer,
    /// Moves the bytes without TLS: what no proxy is expected to beat.
    Floor,
}

/// A proxy that takes plain TCP and speaks mutual TLS to one upstream.
///
/// An implementation writes the program's configuration and says how it is started; pinning,
/// starting, proving, waiting and measuring are the same for all. It must ask for one worker,
/// verification of chain and name, the client certificate, no log of connections, and tickets as
/// [`Setup::resumption`] says.
pub(crate) trait Proxy {
    /// A word for the table: product, and what is tuned where that is not the default.
    fn name(&self) -> &'static str;

    /// What exactly was measured: version, build, crypto library where it is known.
    fn version(&self) -> String;

    fn role(&self) -> Role {
        Role::Peer
    }

    /// The same program is also here in its default configuration.
    fn is_tuned(&self) -> bool {
        false
    }

    /// Why it takes no part in a workload, for the report.
    fn sits_out(&self, _workload: Workload) -> Option<&'static str> {
        None
    }

    /// Writes the configuration to `setup.directory`, and returns the command that runs the
    /// program *in the foreground*, so that it ends when it is killed; or nothing where callers
    /// are to go straight to the upstream.
    ///
    /// # Errors
    /// The configuration cannot be written.
    fn prepare(&self, setup: &Setup) -> io::Result<Option<Command>>;
}

/// A program as all that it is measured as.
pub(crate) type Variants = Vec<Box<dyn Proxy>>;

/// What a proxy is to do.
#[derive(Debug)]
pub(crate) struct Setup {
    /// An empty directory for the proxy's files.
    pub(crate) directory: PathBuf,
    pub(crate) listen: SocketAddr,
    /// Where tlsward's admin endpoint is wanted; else it has none.
    pub(crate) admin: Option<SocketAddr>,
    pub(crate) upstream: SocketAddr,
    /// The name in the upstream's certificate.
    pub(crate) server_name: &'static str,
    pub(crate) pki: PkiFiles,
    /// The only group that the upstream takes.
    pub(crate) group: Group,
    /// Resume sessions where the upstream gave tickets.
    pub(crate) resumption: bool,
    /// Callers' connections at once, at most: for programs that size their tables in advance.
    pub(crate) connections: usize,
}

/// A proxy that serves; killed when dropped.
pub(crate) struct Running {
    pub(crate) listen: SocketAddr,
    pub(crate) admin: Option<SocketAddr>,
    /// Nothing where callers go straight to the upstream.
    child: Option<Child>,
    processes: Processes,
}

impl Running {
    /// Starts `proxy` pinned to its CPU and returns when a byte has gone through it both ways.
    ///
    /// # Errors
    /// It cannot be started, ends early or does not serve in time; then the end of what it said
    /// is part of the error.
    pub(crate) async fn start(proxy: &dyn Proxy, setup: &Setup) -> io::Result<Self> {
        let Some(mut command) = proxy.prepare(setup)? else {
            return Ok(Self {
                listen: setup.upstream,
                admin: None,
                child: None,
                processes: Processes::none(),
            });
        };
        write_command(&setup.directory, &command)?;
        let log = setup.directory.join(LOG);
        let output = File::create(&log)?;
        command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        let child = spawn_pinned(command)?;
        let root = child.id();
        let mut running = Self {
            listen: setup.listen,
            admin: setup.admin,
            child: Some(child),
            processes: Processes::none(),
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
        running.processes = Processes::of(root)?;
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
            let ended = self.child.as_mut().map(Child::try_wait).transpose()?;
            if let Some(status) = ended.flatten() {
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
        let Some(child) = &mut self.child else {
            return;
        };
        // A master that is killed cannot end its workers: those of HAProxy and nginx notice, but
        // in their own time. All of this fails only where they have ended already.
        for process in self.processes.ids().filter(|id| *id != child.id()) {
            if let Some(process) = i32::try_from(process).ok().and_then(Pid::from_raw) {
                let _ = rustix::process::kill_process(process, Signal::KILL);
            }
        }
        let _ = child.kill();
        let _ = child.wait();
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

/// Files of [`Setup::directory`] that are the bench's own.
const LOG: &str = "output.log";
const COMMAND: &str = "command";

/// Copies what a proxy was configured with, and the command that started it.
///
/// # Errors
/// A file cannot be read or written.
pub(crate) fn keep_configuration(of: &Setup, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(&of.directory)? {
        let entry = entry?;
        // Only what was written for the program, and not what it has written itself.
        if entry.file_type()?.is_file() && entry.file_name() != LOG {
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

fn write_command(directory: &Path, command: &Command) -> io::Result<()> {
    let words: Vec<_> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect();
    fs::write(directory.join(COMMAND), words.join(" ") + "\n")
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
