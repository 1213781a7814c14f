//! The guards: what is counted, and how.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use crate::callgrind::{self, Profile};
use crate::drive::Driver;
use crate::meter::Heap;
use crate::outside::{self, Connection};

/// One thing that has a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Guard {
    /// Instructions outside the crypto library.
    Instructions(Driver),
    /// Calls of the Rust allocator.
    Allocations(Driver),
    /// Bytes that they ask for.
    Allocated(Driver),
    /// Bytes of Rust's heap that an idle session keeps.
    Kept,
    /// System calls of the built program; of a connection, without those that wait.
    SystemCalls(Scene),
    /// Waits for readiness of a connection through the built program.
    Waits { resumed: bool },
    /// Its memory.
    Memory(Of),
}

/// What the built program does under strace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scene {
    ConnectionFull,
    ConnectionResumed,
    RelayUp,
    RelayDown,
}

/// Whose memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Of {
    Start,
    StartAnonymous,
    IdleConnection,
}

/// What a guard found.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    pub(crate) guard: Guard,
    pub(crate) value: f64,
    /// What it consists of, the largest first, where that is known.
    pub(crate) parts: Vec<(String, f64)>,
}

impl Guard {
    pub(crate) fn all() -> Vec<Self> {
        let counted = || Driver::ALL.into_iter().filter(|it| *it != Driver::Idle);
        let sized = counted().filter(|it| !matches!(it, Driver::Open(..)));
        let mut all = Vec::new();
        all.extend(counted().map(Self::Instructions));
        all.extend(counted().map(Self::Allocations));
        all.extend(sized.map(Self::Allocated));
        all.push(Self::Kept);
        all.extend(
            [
                Scene::ConnectionFull,
                Scene::ConnectionResumed,
                Scene::RelayUp,
                Scene::RelayDown,
            ]
            .map(Self::SystemCalls),
        );
        all.extend([false, true].map(|resumed| Self::Waits { resumed }));
        all.extend([Of::Start, Of::StartAnonymous, Of::IdleConnection].map(Self::Memory));
        all
    }

    /// Its name in the budget.
    pub(crate) fn name(self) -> String {
        let (what, of) = match self {
            Self::Instructions(driver) => ("instructions", driver.name()),
            Self::Allocations(driver) => ("allocations", driver.name()),
            Self::Allocated(driver) => ("allocated", driver.name()),
            Self::Kept => ("heap", Driver::Idle.name()),
            Self::SystemCalls(Scene::ConnectionFull) => ("system-calls", "connection-full"),
            Self::SystemCalls(Scene::ConnectionResumed) => ("system-calls", "connection-resumed"),
            Self::SystemCalls(Scene::RelayUp) => ("system-calls", "relay-up"),
            Self::SystemCalls(Scene::RelayDown) => ("system-calls", "relay-down"),
            Self::Waits { resumed: false } => ("waits", "connection-full"),
            Self::Waits { resumed: true } => ("waits", "connection-resumed"),
            Self::Memory(Of::Start) => ("memory", "start"),
            Self::Memory(Of::StartAnonymous) => ("memory", "start-anonymous"),
            Self::Memory(Of::IdleConnection) => ("memory", "idle-connection"),
        };
        format!("{what}.{of}")
    }

    pub(crate) fn unit(self) -> String {
        match self {
            Self::Instructions(driver) => format!("instructions per {}", driver.unit()),
            Self::Allocations(driver) => format!("allocations per {}", driver.unit()),
            Self::Allocated(driver) => format!("bytes per {}", driver.unit()),
            Self::Kept => "bytes per session".to_owned(),
            Self::SystemCalls(Scene::ConnectionFull | Scene::ConnectionResumed) => {
                "system calls per connection".to_owned()
            }
            Self::SystemCalls(Scene::RelayUp | Scene::RelayDown) => {
                "system calls per 64 KiB".to_owned()
            }
            Self::Waits { .. } => "waits per connection".to_owned(),
            Self::Memory(Of::Start | Of::StartAnonymous) => "bytes".to_owned(),
            Self::Memory(Of::IdleConnection) => "bytes per connection".to_owned(),
        }
    }

    /// It needs the built program.
    pub(crate) fn is_outside(self) -> bool {
        matches!(
            self,
            Self::SystemCalls(_) | Self::Waits { .. } | Self::Memory(_)
        )
    }

    /// The limit for what was measured: with as much room as repetitions need, and no more. (See
    /// README.md.)
    pub(crate) fn limit_for(self, measured: f64) -> f64 {
        let share = match self {
            Self::Instructions(_) => 1.02,
            // One more for each handshake is over it.
            Self::Allocations(_) => 1.003,
            Self::Allocated(_) | Self::Kept => 1.005,
            Self::SystemCalls(Scene::ConnectionFull | Scene::ConnectionResumed) => 1.02,
            Self::SystemCalls(Scene::RelayUp | Scene::RelayDown) => 1.25,
            Self::Waits { .. } => 1.15,
            Self::Memory(Of::Start) => 1.12,
            Self::Memory(Of::StartAnonymous) => 1.1,
            Self::Memory(Of::IdleConnection) => 1.03,
        };
        rounded_up(measured * share)
    }
}

/// To four digits, or to a whole number where that has more.
fn rounded_up(value: f64) -> f64 {
    if value <= 0.0 {
        return 0.0;
    }
    let digits = 3 - value.log10().floor() as i32;
    let scale = 10_f64.powi(digits.max(0));
    // What floating point adds is not to become a digit.
    ((value * scale - 1e-6).ceil()) / scale
}

/// Measures `guards`; `binary` is the built program.
///
/// # Errors
/// Something that is needed is not there or does not work.
pub(crate) fn measure(guards: &[Guard], binary: &Path) -> io::Result<Vec<Measured>> {
    // Instructions are the same whatever else runs, so all CPUs work at them, and are done before
    // anything is looked at from outside: that would find other things ready at once.
    let mut meters = Meters {
        binary,
        profiles: profiles(guards.iter().filter_map(|guard| match guard {
            Guard::Instructions(driver) => Some(*driver),
            _ => None,
        }))?,
        connections: [None, None],
        memory: None,
    };
    let measure = |guard: &Guard| {
        eprintln!("{}", guard.name());
        let (value, parts) = meters.measure(*guard)?;
        Ok(Measured {
            guard: *guard,
            value,
            parts,
        })
    };
    guards.iter().map(measure).collect()
}

/// A value, and what it consists of.
type Sum = (f64, Vec<(String, f64)>);

fn in_all(parts: Vec<(String, f64)>) -> Sum {
    (parts.iter().map(|(_, cost)| cost).sum(), parts)
}

/// What was measured once, for all guards that look at it.
struct Meters<'b> {
    binary: &'b Path,
    /// Of each driver, the profile of the shorter and of the longer run.
    profiles: BTreeMap<&'static str, [Profile; 2]>,
    /// Full, and resumed.
    connections: [Option<Connection>; 2],
    memory: Option<outside::Memory>,
}

impl Meters<'_> {
    fn measure(&mut self, guard: Guard) -> io::Result<Sum> {
        Ok(match guard {
            Guard::Instructions(driver) => {
                let [shorter, longer] = &self.profiles[driver.name()];
                let (fewer, more) = driver.counts();
                in_all(longer.slope(shorter, more - fewer))
            }
            Guard::Allocations(driver) => (heap(driver, |heap| heap.allocations)?, Vec::new()),
            Guard::Allocated(driver) => (heap(driver, |heap| heap.bytes)?, Vec::new()),
            Guard::Kept => (heap(Driver::Idle, |heap| heap.live)?, Vec::new()),
            Guard::SystemCalls(Scene::ConnectionFull) => {
                in_all(self.connection(false)?.calls.clone())
            }
            Guard::SystemCalls(Scene::ConnectionResumed) => {
                in_all(self.connection(true)?.calls.clone())
            }
            Guard::SystemCalls(Scene::RelayUp) => in_all(outside::transfer(self.binary, true)?),
            Guard::SystemCalls(Scene::RelayDown) => in_all(outside::transfer(self.binary, false)?),
            Guard::Waits { resumed } => (self.connection(resumed)?.waits, Vec::new()),
            Guard::Memory(of) => {
                let memory = match self.memory {
                    Some(memory) => memory,
                    None => *self.memory.insert(outside::memory(self.binary)?),
                };
                let value = match of {
                    Of::Start => memory.start,
                    Of::StartAnonymous => memory.start_anonymous,
                    Of::IdleConnection => memory.connection,
                };
                (value, Vec::new())
            }
        })
    }

    fn connection(&mut self, resumed: bool) -> io::Result<&Connection> {
        let found = &mut self.connections[usize::from(resumed)];
        Ok(match found {
            Some(found) => found,
            None => found.insert(outside::connections(self.binary, resumed)?),
        })
    }
}

/// What one time of `driver` costs the heap.
fn heap(driver: Driver, what: impl Fn(Heap) -> i64) -> io::Result<f64> {
    let run = |count: u64| {
        // A process of its own, so that nothing but the driver is in it.
        let said = Command::new(std::env::current_exe()?)
            .args(["drive", driver.name(), &count.to_string()])
            .output()?;
        if !said.status.success() {
            let why = String::from_utf8_lossy(&said.stderr).into_owned();
            return Err(io::Error::other(why));
        }
        serde_json::from_slice(&said.stdout)
            .map(&what)
            .map_err(io::Error::other)
    };
    let (fewer, more) = driver.counts();
    // Without valgrind eight times as many are done in no time, and random lengths even out more.
    let times = (more - fewer) * 8;
    Ok((run(fewer + times)? - run(fewer)?) as f64 / times as f64)
}

/// Of each driver, the profile of the shorter and of the longer run.
fn profiles(
    drivers: impl Iterator<Item = Driver>,
) -> io::Result<BTreeMap<&'static str, [Profile; 2]>> {
    let directory = tempfile::tempdir()?;
    // The long ones first, so that no CPU is left alone with one in the end.
    let mut jobs: Vec<_> = drivers.collect();
    jobs.reverse();
    let jobs = Mutex::new(jobs);
    let next = || jobs.lock().ok().and_then(|mut jobs| jobs.pop());
    let work = || -> io::Result<Vec<_>> {
        let mut done = Vec::new();
        while let Some(driver) = next() {
            eprintln!("instructions.{}", driver.name());
            let (fewer, more) = driver.counts();
            let run = |count| callgrind::run(driver, count, directory.path());
            done.push((driver.name(), [run(fewer)?, run(more)?]));
        }
        Ok(done)
    };
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        let mut profiles = BTreeMap::new();
        for worker in workers {
            let panicked = |_| Err(io::Error::other("a worker panicked"));
            profiles.extend(worker.join().unwrap_or_else(panicked)?);
        }
        Ok(profiles)
    })
}

/// The release build in the directory where this program was built, which cargo is asked to bring
/// up to date first: a number from a stale build is worse than none.
///
/// # Errors
/// It cannot be built.
pub(crate) fn built() -> io::Result<PathBuf> {
    let here = std::env::current_exe()?;
    // target/PROFILE/tlsward-guards
    let target = here
        .parent()
        .and_then(Path::parent)
        .ok_or_else(|| io::Error::other("this program is not in a target directory"))?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    // Without this program beside it, cargo builds it as it is shipped: without `drivers`.
    let status = Command::new(cargo)
        .args(["build", "--release", "--locked", "--quiet"])
        .args(["--package", "tlsward", "--bin", "tlsward", "--target-dir"])
        .arg(target)
        .arg("--manifest-path")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml"))
        .status()
        .map_err(|error| io::Error::new(error.kind(), format!("starting cargo: {error}")))?;
    match status.success() {
        true => Ok(target.join("release").join("tlsward")),
        false => Err(io::Error::other(format!(
            "building tlsward: cargo: {status}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_keep_four_digits_and_do_not_grow_by_rounding() {
        assert_eq!(rounded_up(0.0), 0.0);
        assert_eq!(rounded_up(1.25), 1.25);
        assert_eq!(rounded_up(1.2501), 1.251);
        assert_eq!(rounded_up(0.25012), 0.2502);
        assert_eq!(rounded_up(123_456.1), 123_457.0);
    }
}
