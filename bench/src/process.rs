//! A process tree's CPU time and memory, from /proc.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// A proxy's processes: the one that was started, and its descendants (workers). Threads are in a
/// process's own figures.
#[derive(Clone, Debug)]
pub(crate) struct Processes(Vec<u32>);

impl Processes {
    /// Those that exist now.
    pub(crate) fn of(root: u32) -> io::Result<Self> {
        let mut parents = Vec::new();
        for entry in fs::read_dir("/proc")? {
            let name = entry?.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
                continue;
            };
            // A process that ends meanwhile is none of ours.
            if let Ok(fields) = stat(pid) {
                parents.push((pid, field(&fields, STAT_PARENT)?));
            }
        }
        let mut found = vec![root];
        let mut next = 0;
        while let Some(&parent) = found.get(next) {
            next += 1;
            let children = parents.iter().filter(|(_, of)| *of == u64::from(parent));
            found.extend(children.map(|(pid, _)| *pid));
        }
        Ok(Self(found))
    }

    /// This process alone.
    pub(crate) fn myself() -> Self {
        Self(vec![std::process::id()])
    }

    /// No process: where callers go straight to the upstream.
    pub(crate) fn none() -> Self {
        Self(Vec::new())
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = u32> {
        self.0.iter().copied()
    }

    /// User and system time so far, also of threads that have ended. Whole ticks of 10 ms.
    pub(crate) fn cpu(&self) -> io::Result<Duration> {
        let ticks_per_second = rustix::param::clock_ticks_per_second();
        let mut ticks = 0;
        for pid in &self.0 {
            let fields = stat(*pid)?;
            ticks += field(&fields, STAT_USER)? + field(&fields, STAT_SYSTEM)?;
        }
        Ok(Duration::from_secs_f64(
            ticks as f64 / ticks_per_second as f64,
        ))
    }

    /// What the processes and each of their threads have used so far.
    pub(crate) fn read(&self) -> io::Result<Reading> {
        let mut threads = HashMap::new();
        for pid in &self.0 {
            for task in fs::read_dir(format!("/proc/{pid}/task"))? {
                let path = task?.path().join("schedstat");
                // A thread that has ended meanwhile has none.
                let text = fs::read_to_string(&path).unwrap_or_default();
                if let Some(thread) = thread_of(&text) {
                    threads.insert(path, thread);
                }
            }
        }
        Ok(Reading {
            ticks: self.cpu()?,
            threads,
        })
    }

    /// Proportional set size in bytes: user memory, with pages that are shared divided by the
    /// number of those who share them.
    pub(crate) fn pss(&self) -> io::Result<u64> {
        let mut bytes = 0;
        for pid in &self.0 {
            let path = format!("/proc/{pid}/smaps_rollup");
            let text = fs::read_to_string(&path)?;
            bytes += pss_of(&text).ok_or_else(|| malformed(&path))?;
        }
        Ok(bytes)
    }
}

/// [`Processes::read`] at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Reading {
    ticks: Duration,
    threads: HashMap<PathBuf, Thread>,
}

#[derive(Clone, Copy, Debug)]
struct Thread {
    ran: Duration,
    waited: Duration,
}

/// Between two readings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Used {
    pub(crate) cpu: Duration,
    /// How long threads waited for their CPU, for each other or for other programs.
    pub(crate) waited: Duration,
}

/// Whole ticks of user and of system time may each be one off at both ends.
const TICKS_ERROR: Duration = Duration::from_millis(40);

impl Reading {
    /// Threads' own counters are exact, but forget threads that have ended: where the processes'
    /// ticks say that something is missing, the ticks are the answer.
    pub(crate) fn since(&self, earlier: &Self) -> Used {
        let difference = |of: fn(&Thread) -> Duration| {
            self.threads
                .iter()
                .map(|(id, now)| {
                    let before = earlier.threads.get(id).map_or(Duration::ZERO, of);
                    of(now).saturating_sub(before)
                })
                .sum::<Duration>()
        };
        let ticks = self.ticks.saturating_sub(earlier.ticks);
        let exact = difference(|thread| thread.ran);
        let ended = earlier
            .threads
            .keys()
            .any(|id| !self.threads.contains_key(id));
        let cpu = if ended || exact.abs_diff(ticks) > TICKS_ERROR {
            ticks
        } else {
            exact
        };
        Used {
            cpu,
            waited: difference(|thread| thread.waited),
        }
    }
}

/// The first two numbers of /proc/PID/task/TID/schedstat.
fn thread_of(schedstat: &str) -> Option<Thread> {
    let mut nanos = schedstat.split_whitespace().map(str::parse);
    let mut next = || nanos.next()?.ok().map(Duration::from_nanos);
    Some(Thread {
        ran: next()?,
        waited: next()?,
    })
}

/// Indices into the fields after the command (proc_pid_stat(5) numbers them from 1, and the
/// command is 2).
const STAT_PARENT: usize = 4 - 3;
const STAT_USER: usize = 14 - 3;
const STAT_SYSTEM: usize = 15 - 3;

/// Everything after the command, which may itself contain blanks and parentheses.
fn stat(pid: u32) -> io::Result<String> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path)?;
    let fields = text.rsplit_once(") ").map(|(_, fields)| fields.to_owned());
    fields.ok_or_else(|| malformed(&path))
}

fn field(fields: &str, index: usize) -> io::Result<u64> {
    let field = fields.split(' ').nth(index);
    field
        .and_then(|field| field.trim().parse().ok())
        .ok_or_else(|| malformed("/proc/PID/stat"))
}

fn pss_of(rollup: &str) -> Option<u64> {
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib * 1024)
}

fn malformed(path: &str) -> io::Error {
    let what = format!("{path} is not what proc(5) says");
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_with_parentheses_does_not_shift_the_fields() {
        let fields = "S 7 1 1 0 -1 4194560 10 0 0 0 123 45 0 0";
        assert_eq!(field(fields, STAT_PARENT).unwrap(), 7);
        assert_eq!(field(fields, STAT_USER).unwrap(), 123);
        assert_eq!(field(fields, STAT_SYSTEM).unwrap(), 45);
    }

    #[test]
    fn pss_is_read_in_bytes_and_not_taken_from_its_parts() {
        let rollup = "Rss:  900 kB\nPss:      512 kB\nPss_Anon:  300 kB\n";
        assert_eq!(pss_of(rollup), Some(512 * 1024));
        assert_eq!(pss_of("Rss: 900 kB\n"), None);
    }

    fn reading(ticks_ms: u64, threads: &[(&str, u64, u64)]) -> Reading {
        let thread = |&(id, ran, waited): &(&str, u64, u64)| {
            let thread = Thread {
                ran: Duration::from_micros(ran),
                waited: Duration::from_micros(waited),
            };
            (PathBuf::from(id), thread)
        };
        Reading {
            ticks: Duration::from_millis(ticks_ms),
            threads: threads.iter().map(thread).collect(),
        }
    }

    fn used(cpu: u64, waited: u64) -> Used {
        Used {
            cpu: Duration::from_micros(cpu),
            waited: Duration::from_micros(waited),
        }
    }

    #[test]
    fn threads_that_live_on_are_counted_exactly_and_new_ones_from_their_beginning() {
        let before = reading(100, &[("1", 100_000, 500)]);
        let after = reading(190, &[("1", 180_123, 700), ("2", 7, 1)]);
        assert_eq!(after.since(&before), used(80_130, 201));
    }

    #[test]
    fn where_a_thread_has_ended_or_came_and_went_the_ticks_are_counted() {
        let before = reading(100, &[("1", 100_000, 0), ("2", 0, 0)]);
        let after = reading(190, &[("1", 180_123, 0)]);
        assert_eq!(after.since(&before), used(90_000, 0));
        let before = reading(100, &[("1", 100_000, 0)]);
        let after = reading(400, &[("1", 180_123, 0)]);
        assert_eq!(after.since(&before), used(300_000, 0));
    }

    #[test]
    fn what_is_no_schedstat_is_no_thread() {
        assert!(thread_of("12 34 5\n").is_some());
        assert!(thread_of("").is_none() && thread_of("12\n").is_none());
    }

    #[test]
    fn this_process_has_cpu_time_and_memory() {
        let me = Processes::of(std::process::id()).unwrap();
        let before = me.cpu().unwrap();
        let mut x = 0_u64;
        // Ends when the clock that is under test has moved.
        while me.cpu().unwrap() == before {
            x = std::hint::black_box(x + 1);
        }
        assert!(me.pss().unwrap() > 0);
    }
}
