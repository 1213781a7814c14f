//! The built program, run as its users run it: pinned to one CPU, so that it has one worker, and
//! plain or under strace.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use tempfile::TempDir;

use crate::pki::{Pki, SERVER_NAME};
use crate::upstream::{BATCH, command};

/// How long anything may take that should be done at once, under strace on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// Between two looks at what no event tells of.
const POLL: Duration = Duration::from_millis(20);

/// Settings that would override the configuration written here.
const SETTINGS: [&str; 7] = [
    "TLSWARD_TLS_VERIFY",
    "TLSWARD_TLS_VERIFY_DEPTH",
    "TLSWARD_TLS_CA",
    "TLSWARD_TLS_CERT",
    "TLSWARD_TLS_KEY",
    "TLSWARD_ADMIN_LISTEN",
    "TLSWARD_LOG",
];

/// User memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Memory {
    /// Proportional set size: pages that are shared count as much as is this program's share.
    pub(crate) all: u64,
    /// The part of it that is no file's: heap, stacks, data that was written to.
    pub(crate) anonymous: u64,
}

impl Memory {
    /// Reads /proc/PID/smaps_rollup.
    fn parse(rollup: &str) -> Option<Self> {
        let bytes = |key: &str| {
            let line = rollup.lines().find_map(|line| line.strip_prefix(key))?;
            let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
            Some(kib * 1024)
        };
        Some(Self {
            all: bytes("Pss:")?,
            anonymous: bytes("Pss_Anon:")?,
        })
    }
}

/// A program that serves; killed when dropped.
pub(crate) struct Program {
    listen: SocketAddr,
    /// tlsward, or the strace that runs it.
    child: Child,
    directory: TempDir,
    traced: bool,
}

impl Program {
    /// Starts `binary` between its callers and `upstream`; returns when a first connection has
    /// gone through it.
    ///
    /// # Errors
    /// It cannot be started, ends early or does not serve in time; what it said is part of the
    /// error.
    pub(crate) fn start(
        binary: &Path,
        pki: &Pki,
        upstream: SocketAddr,
        traced: bool,
    ) -> io::Result<Self> {
        let directory = tempfile::tempdir()?;
        let listen = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let config = configure(directory.path(), pki, listen, upstream)?;
        let mut command = if traced {
            let mut strace = Command::new("strace");
            strace
                .args(["-f", "-c", "-o"])
                .arg(directory.path().join(SUMMARY))
                .arg("--")
                .arg(binary);
            strace
        } else {
            Command::new(binary)
        };
        let output = File::create(directory.path().join(OUTPUT))?;
        command
            .args(["run", "--config"])
            .arg(config)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        for setting in SETTINGS {
            command.env_remove(setting);
        }
        let mut program = Self {
            listen,
            child: spawn_pinned(command)?,
            directory,
            traced,
        };
        program.wait_until_it_serves().map_err(|error| {
            let said = program.said();
            io::Error::other(format!("{}: {error}; it said:\n{said}", binary.display()))
        })?;
        Ok(program)
    }

    /// A connection with one byte each way, held open.
    pub(crate) fn hold(&self) -> io::Result<TcpStream> {
        let mut stream = TcpStream::connect(self.listen)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(&[command::ECHO])?;
        stream.read_exact(&mut [0])?;
        Ok(stream)
    }

    /// The same, ended in good order.
    pub(crate) fn connection(&self) -> io::Result<()> {
        end(self.hold()?)
    }

    /// Sends `len` bytes to the upstream.
    pub(crate) fn send(&self, len: u64) -> io::Result<()> {
        let mut stream = self.ask(command::TAKE, len)?;
        let buffer = vec![0xa5; BATCH];
        let mut left = len;
        while left > 0 {
            let batch = usize::try_from(left).map_or(BATCH, |left| left.min(BATCH));
            stream.write_all(&buffer[..batch])?;
            left -= batch as u64;
        }
        stream.read_exact(&mut [0])?;
        end(stream)
    }

    /// Takes `len` bytes from the upstream.
    pub(crate) fn receive(&self, len: u64) -> io::Result<()> {
        let mut stream = self.ask(command::GIVE, len)?;
        let mut buffer = vec![0; BATCH];
        let mut left = len;
        while left > 0 {
            match stream.read(&mut buffer)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => left = left.saturating_sub(n as u64),
            }
        }
        end(stream)
    }

    fn ask(&self, command: u8, len: u64) -> io::Result<TcpStream> {
        let mut stream = TcpStream::connect(self.listen)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut request = [command; 9];
        request[1..].copy_from_slice(&len.to_be_bytes());
        stream.write_all(&request)?;
        Ok(stream)
    }

    /// Its memory, once that has come to rest.
    ///
    /// # Errors
    /// /proc is not what proc(5) says, or the memory never rests.
    pub(crate) fn memory(&self) -> io::Result<Memory> {
        /// Looks in a row that find the same.
        const AT_REST: usize = 10;
        let path = format!("/proc/{}/smaps_rollup", self.child.id());
        let look = || {
            Memory::parse(&fs::read_to_string(&path)?)
                .ok_or_else(|| io::Error::other(format!("{path} is not what proc(5) says")))
        };
        let began = Instant::now();
        let (mut memory, mut same) = (look()?, 0);
        while same < AT_REST {
            if began.elapsed() > PATIENCE {
                return Err(io::Error::other(
                    "the program's memory does not come to rest",
                ));
            }
            std::thread::sleep(POLL);
            let now = look()?;
            same = if now == memory { same + 1 } else { 0 };
            memory = now;
        }
        Ok(memory)
    }

    /// Ends it in good order; returns strace's summary.
    ///
    /// # Errors
    /// It does not end, or not well.
    pub(crate) fn stop(mut self) -> io::Result<String> {
        let pid = self.pid()?;
        kill_process(pid, Signal::TERM)?;
        let began = Instant::now();
        let status = loop {
            match self.child.try_wait()? {
                Some(status) => break status,
                None if began.elapsed() > PATIENCE => {
                    return Err(io::Error::other("the program does not stop"));
                }
                None => std::thread::sleep(POLL),
            }
        };
        if !status.success() {
            let said = self.said();
            return Err(io::Error::other(format!(
                "the program: {status}; it said:\n{said}"
            )));
        }
        fs::read_to_string(self.directory.path().join(SUMMARY))
    }

    /// tlsward itself, where the child is strace.
    fn pid(&self) -> io::Result<Pid> {
        let child = self.child.id();
        let pid = match self.traced {
            false => Some(child),
            true => {
                let children = fs::read_to_string(format!("/proc/{child}/task/{child}/children"))?;
                let first = children.split_whitespace().next();
                first.and_then(|pid| pid.parse().ok())
            }
        };
        pid.and_then(|pid| i32::try_from(pid).ok())
            .and_then(Pid::from_raw)
            .ok_or_else(|| io::Error::other("strace runs nothing"))
    }

    fn wait_until_it_serves(&mut self) -> io::Result<()> {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Err(io::Error::other(format!("ended early with {status}")));
            }
            match self.connection() {
                Ok(()) => return Ok(()),
                Err(error) if began.elapsed() > PATIENCE => return Err(error),
                Err(_) => std::thread::sleep(POLL),
            }
        }
    }

    fn said(&self) -> String {
        fs::read_to_string(self.directory.path().join(OUTPUT)).unwrap_or_default()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // strace does not take its program with it. All of it fails only where both have ended.
        if self.traced
            && let Ok(pid) = self.pid()
        {
            let _ = kill_process(pid, Signal::KILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const SUMMARY: &str = "strace";
const OUTPUT: &str = "output";

fn end(mut stream: TcpStream) -> io::Result<()> {
    stream.shutdown(Shutdown::Write)?;
    match stream.read(&mut [0])? {
        0 => Ok(()),
        _ => Err(io::Error::other("more came back than was sent")),
    }
}

fn configure(
    directory: &Path,
    pki: &Pki,
    listen: SocketAddr,
    upstream: SocketAddr,
) -> io::Result<PathBuf> {
    for (name, text) in [
        ("ca.pem", &pki.client.ca),
        ("chain.pem", &pki.client.chain),
        ("key.pem", &pki.client.key),
    ] {
        fs::write(directory.join(name), text)?;
    }
    let path = directory.join("config.toml");
    let text = format!(
        r#"[admin]
listen = "off"

[log]
filter = "warn"
connections = false

[services.guarded]
listen = "{listen}"
upstream = "{upstream}"

[services.guarded.tls]
ca = "ca.pem"
cert = "chain.pem"
key = "key.pem"
server_name = "{SERVER_NAME}"
"#
    );
    fs::write(&path, text)?;
    Ok(path)
}

/// On the last CPU that this program may use. Affinity is inherited from the thread that forks, so
/// one is pinned for that; pinning the child afterwards would miss threads that it has started.
fn spawn_pinned(mut command: Command) -> io::Result<Child> {
    let spawn = || {
        let allowed = sched_getaffinity(None)?;
        let last = (0..CpuSet::MAX_CPU).rfind(|cpu| allowed.is_set(*cpu));
        let mut pinned = CpuSet::new();
        pinned.set(last.unwrap_or(0));
        sched_setaffinity(None, &pinned)?;
        command.spawn().map_err(|error| {
            let program = Path::new(command.get_program()).display();
            io::Error::new(error.kind(), format!("starting {program}: {error}"))
        })
    };
    std::thread::scope(|scope| {
        let spawned = scope.spawn(spawn).join();
        spawned.unwrap_or_else(|_| Err(io::Error::other("the starting thread panicked")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_bytes() {
        let rollup = "Rss:  900 kB\nPss:      512 kB\nPss_Dirty: 9 kB\nPss_Anon:  300 kB\n";
        let expected = Memory {
            all: 512 * 1024,
            anonymous: 300 * 1024,
        };
        assert_eq!(Memory::parse(rollup), Some(expected));
        assert_eq!(Memory::parse("Rss: 900 kB\n"), None);
    }
}
