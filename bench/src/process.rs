//! A process tree's CPU time and memory, from /proc.

use std::fs;
use std::io;
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
    ///
    /// Not the sum of `task/*/schedstat`, which is finer but forgets ended threads: a proxy with
    /// a thread for each connection would seem to cost nothing.
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

    /// How long the threads that exist now have waited for their CPU: the share of others in it.
    /// An indication of noise; the threads of the proxy among each other count too.
    pub(crate) fn waited(&self) -> io::Result<Duration> {
        let mut waited = 0;
        for pid in &self.0 {
            for task in fs::read_dir(format!("/proc/{pid}/task"))? {
                let path = task?.path().join("schedstat");
                let text = fs::read_to_string(path).unwrap_or_default();
                let nanos = text.split_whitespace().nth(1);
                waited += nanos.and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
            }
        }
        Ok(Duration::from_nanos(waited))
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
