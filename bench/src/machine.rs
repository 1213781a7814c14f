//! The machine as an instrument: pinning, idle states, network namespace, and what is worth
//! knowing of it beside a result.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::thread::{CpuSet, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};

/// Generator and upstream run here.
pub(crate) const GENERATOR_CPU: usize = 0;
/// The proxy under test runs here, alone.
pub(crate) const PROXY_CPU: usize = 1;

const CONGESTION_CONTROL: &str = "/proc/sys/net/ipv4/tcp_congestion_control";

/// Confines the calling thread, and the threads and processes that it starts, to one CPU.
///
/// # Errors
/// The machine has no such CPU, or this process may not use it.
pub(crate) fn pin_this_thread(cpu: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set)
        .map_err(|error| io::Error::other(format!("cannot pin to CPU {cpu}: {error}")))
}

/// Lifts the limit of open files to what is allowed: two per connection here, two in the proxy.
pub(crate) fn raise_open_files() -> io::Result<u64> {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit)?;
    Ok(limit.current.unwrap_or(u64::MAX))
}

/// Keeps CPUs out of their idle states for as long as it lives. Waking a halted virtual CPU costs
/// the *waker* about 12 us, which would be billed to the proxy.
pub(crate) struct Awake {
    _held: File,
}

impl Awake {
    /// Needs write access to `/dev/cpu_dma_latency`, which is root's by default.
    pub(crate) fn hold() -> io::Result<Self> {
        let mut file = OpenOptions::new()
            .write(true)
            .open("/dev/cpu_dma_latency")?;
        file.write_all(&0_i32.to_ne_bytes())?;
        Ok(Self { _held: file })
    }
}

/// Runs this program again in a network namespace of its own, with Reno or CUBIC: BBR paces even
/// loopback, and firewall rules and other programs' ports stay outside. The namespace ends with
/// the program. Returns only if that cannot be done, and says why.
pub(crate) fn enter_namespace(inside: &str) -> io::Error {
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => return error,
    };
    let as_root = rustix::process::geteuid().is_root();
    let unshare = || {
        let mut unshare = Command::new("unshare");
        unshare.arg("--net");
        if !as_root {
            unshare.arg("--map-root-user");
        }
        unshare
    };
    match unshare().arg("true").output() {
        Ok(tried) if tried.status.success() => {}
        Ok(tried) => {
            let why = String::from_utf8_lossy(&tried.stderr).trim().to_owned();
            return io::Error::other(why);
        }
        Err(error) => return io::Error::other(format!("unshare (util-linux): {error}")),
    }
    unshare()
        .arg(program)
        .arg(inside)
        .args(std::env::args_os().skip(1))
        .exec()
}

/// Brings up loopback in a fresh namespace and chooses congestion control. CUBIC may be denied to
/// namespaces (`tcp_allowed_congestion_control`); Reno never is.
pub(crate) fn furnish_namespace() -> io::Result<()> {
    let up = Command::new("ip")
        .args(["link", "set", "lo", "up"])
        .output()
        .map_err(|error| io::Error::other(format!("ip (iproute2): {error}")))?;
    if !up.status.success() {
        let why = String::from_utf8_lossy(&up.stderr).trim().to_owned();
        return Err(io::Error::other(why));
    }
    let chosen = ["cubic", "reno"]
        .into_iter()
        .any(|name| fs::write(CONGESTION_CONTROL, name).is_ok());
    if !chosen {
        return Err(io::Error::other(
            "neither cubic nor reno can be set for the namespace",
        ));
    }
    // Thousands of short connections: more ports than the default 28,232. Not essential.
    let _ = fs::write("/proc/sys/net/ipv4/ip_local_port_range", "10240 65535");
    Ok(())
}

/// What was so during the run.
#[derive(Clone, Debug, serde::Serialize)]
pub(crate) struct Facts {
    pub(crate) kernel: String,
    pub(crate) cpu: String,
    pub(crate) cpus: usize,
    pub(crate) congestion_control: String,
    pub(crate) namespace: bool,
    pub(crate) kept_awake: bool,
}

impl Facts {
    pub(crate) fn gather(namespace: bool, kept_awake: bool) -> Self {
        Self {
            kernel: word_of("/proc/sys/kernel/osrelease"),
            cpu: cpu_model(),
            cpus: cpus(),
            congestion_control: word_of(CONGESTION_CONTROL),
            namespace,
            kept_awake,
        }
    }
}

/// How long a CPU has not been idle since the start, in ticks of 10 ms: whoever it was.
pub(crate) fn busy(cpu: usize) -> io::Result<Duration> {
    let text = fs::read_to_string("/proc/stat")?;
    let ticks = busy_ticks(&text, cpu)
        .ok_or_else(|| io::Error::other(format!("/proc/stat has no line for CPU {cpu}")))?;
    let per_second = rustix::param::clock_ticks_per_second();
    Ok(Duration::from_secs_f64(ticks as f64 / per_second as f64))
}

/// user, nice, system, (idle, iowait,) irq, softirq: the columns of proc_stat(5).
fn busy_ticks(stat: &str, cpu: usize) -> Option<u64> {
    let name = format!("cpu{cpu}");
    let line = stat
        .lines()
        .find_map(|line| line.strip_prefix(&name)?.strip_prefix(' '))?;
    let columns: Vec<u64> = line
        .split_whitespace()
        .map_while(|column| column.parse().ok())
        .collect();
    let [user, nice, system, _, _, irq, softirq, ..] = columns[..] else {
        return None;
    };
    Some(user + nice + system + irq + softirq)
}

/// Runnable tasks on average over the last minute.
pub(crate) fn load() -> f64 {
    let text = word_of("/proc/loadavg");
    let first = text.split(' ').next().unwrap_or_default();
    first.parse().unwrap_or(f64::NAN)
}

fn word_of(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}

/// Counted where pinning does not show.
fn cpus() -> usize {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    text.lines()
        .filter(|line| line.starts_with("processor"))
        .count()
}

fn cpu_model() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map(|rest| rest.trim_start_matches([' ', '\t', ':']).to_owned());
    model.unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

/// CPU seconds per GiB of a plain copy from one TCP socket to another on the proxy's CPU, in the
/// same places and batches as in the bulk workloads: the floor for any proxy, on this machine at
/// this moment. Floors of other days differ by half and more, so compare with this one.
///
/// `volume` is in bytes, and large enough that ticks of the scheduler do not show.
pub(crate) fn plain_copy(volume: usize) -> io::Result<f64> {
    let from = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let to = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let (from_address, to_address) = (from.local_addr()?, to.local_addr()?);
    std::thread::scope(|scope| {
        let source = scope.spawn(move || {
            pin_this_thread(GENERATOR_CPU)?;
            let mut stream = TcpStream::connect(from_address)?;
            let buffer = vec![0xa5; COPY_BATCH];
            for _ in 0..(COPY_WARM_UP + volume) / COPY_BATCH {
                stream.write_all(&buffer)?;
            }
            Ok(())
        });
        let relay = scope.spawn(move || {
            pin_this_thread(PROXY_CPU)?;
            copy(&mut from.accept()?.0, &mut TcpStream::connect(to_address)?)
        });
        pin_this_thread(GENERATOR_CPU)?;
        let mut stream = to.accept()?.0;
        let mut buffer = vec![0; COPY_BATCH];
        while stream.read(&mut buffer)? > 0 {}
        drop(stream);
        let panicked = |_| Err(io::Error::other("the plain copy panicked"));
        source.join().unwrap_or_else(panicked)?;
        relay
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the plain copy panicked")))
    })
}

const COPY_WARM_UP: usize = 32 << 20;
const COPY_BATCH: usize = 128 * 1024;

/// Copies until the end; the CPU seconds per GiB of what came after the warm-up.
fn copy(from: &mut TcpStream, to: &mut TcpStream) -> io::Result<f64> {
    let mut buffer = vec![0; COPY_BATCH];
    let mut copied = 0;
    let mut began = None;
    loop {
        let filled = from.read(&mut buffer)?;
        if filled == 0 {
            break;
        }
        to.write_all(&buffer[..filled])?;
        copied += filled;
        if began.is_none() && copied >= COPY_WARM_UP {
            began = Some((copied, thread_cpu()));
        }
    }
    let (warm, began) = began.ok_or(io::ErrorKind::UnexpectedEof)?;
    let cpu = thread_cpu() - began;
    Ok(cpu.as_secs_f64() / ((copied - warm) as f64 / (1_u64 << 30) as f64))
}

fn thread_cpu() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_cpu_is_neither_its_idle_time_nor_another_cpu() {
        let stat = "cpu  9 9 9 9 9 9 9 0 0 0\ncpu1 10 2 30 4000 500 6 7 80 0 0\ncpu10 1 1 1 1 1 1 1 0 0 0\n";
        assert_eq!(busy_ticks(stat, 1), Some(10 + 2 + 30 + 6 + 7));
        assert_eq!(busy_ticks(stat, 2), None);
    }
}
