//! Memory: given back to the kernel after a burst, and held against what the cgroup of this
//! process allows. Before the kernel kills it with all its connections, new callers wait.
//!
//! [`Cgroup`] reads, [`Pressure`] decides, [`mind_memory`] acts.

use std::convert::Infallible;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use crate::cluster::Store;
use crate::metrics::Metrics;
use crate::mountinfo::{self, Mount};
use crate::status::MemoryStatus;
use crate::workers::Crew;

/// How often it is seen whether memory can be given back, and after how many connections, or pieces
/// of news of a cluster, it is worth the search: half a megabyte, against a few hundred
/// microseconds.
const GIVE_BACK_EVERY: Duration = Duration::from_secs(10);
const WORTH_GIVING_BACK: u64 = 100;

/// How often memory is held against its limit, where there is one: a handful of small files.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// An episode begins where more than this part of the limit is in use, and ends below the second:
/// a kernel that has nothing left to reclaim kills at 100 %, and between two looks a burst of
/// handshakes takes some per cent of a small limit.
const HIGH_PERCENT: u64 = 90;
const LOW_PERCENT: u64 = 85;

/// Files of a cgroup have a few hundred bytes, `memory.stat` some thousands.
const MAX_FILE: u64 = 1 << 20;

/// From here on a number of cgroup v1 means "no limit" (the largest multiple of a page in 63 bits).
const NO_LIMIT: u64 = 1 << 62;

/// Looks after memory for as long as it is awaited.
///
/// What connections have left behind glibc keeps for itself, some 6 KB for each of the most that
/// were ever open at once (docs/decisions/0015-allocator.md), and 10 MB after a thousand watches of
/// a cluster have begun: the kernel gets it back. Where memory is limited and nearly used up, the
/// gate of `crew` is closed until there is some.
pub(crate) async fn mind_memory(metrics: &Metrics, cluster: &Store, crew: &Crew) -> Infallible {
    let cgroup = Cgroup::of_this_process();
    let limit = cgroup.as_ref().and_then(Cgroup::limit);
    info!(
        workers = crew.size(),
        memory_limit_bytes = limit.as_ref().map(|limit| limit.bytes),
        memory_limited_by = limit.as_ref().map(|limit| limit.file.display().to_string()),
        "limits of this process"
    );
    // Without a limit at the start none is looked for later.
    let cgroup = cgroup.filter(|_| limit.is_some());
    let mut pressure = Pressure::default();
    let (mut before, mut gave_back) = (0, Instant::now());
    loop {
        match &cgroup {
            Some(cgroup) => look(cgroup, &mut pressure, metrics, crew),
            None => metrics.show_memory(unlimited()),
        }
        let every = match cgroup {
            Some(_) => LOOK_EVERY,
            None => GIVE_BACK_EVERY,
        };
        tokio::time::sleep(every).await;
        if gave_back.elapsed() >= GIVE_BACK_EVERY {
            gave_back = Instant::now();
            let now = metrics.ended() + cluster.writes();
            // The series of a removed service are dropped, so it can fall.
            if now.abs_diff(before) >= WORTH_GIVING_BACK {
                before = now;
                tlsward_sys::give_back_free_memory();
            }
        }
    }
}

/// Holds memory against its limit, and opens or closes the gate.
fn look(cgroup: &Cgroup, pressure: &mut Pressure, metrics: &Metrics, crew: &Crew) {
    let (Some(limit), Some(mut usage)) = (cgroup.limit(), cgroup.usage()) else {
        // The limit was lifted.
        *pressure = Pressure::default();
        crew.gate().set_closed(false);
        metrics.show_memory(unlimited());
        return;
    };
    if pressure.is_near(limit.bytes, usage) {
        tlsward_sys::give_back_free_memory();
        usage = cgroup.usage().unwrap_or(usage);
    }
    let open = metrics.open();
    let verdict = pressure.judge(limit.bytes, usage, open);
    crew.gate().set_closed(verdict.hold);
    let (limit_bytes, in_use_bytes) = (limit.bytes, usage.working_set);
    match verdict.turned {
        Some(true) => warn!(
            limit_bytes,
            in_use_bytes,
            open,
            hint = "raise the memory limit, or bound the connections with max_connections",
            "memory is nearly used up: new callers wait while connections are open"
        ),
        Some(false) => info!(
            limit_bytes,
            in_use_bytes, open, "there is memory again: new callers are served"
        ),
        None => {}
    }
    metrics.show_memory(MemoryStatus {
        in_use_bytes,
        limit_bytes: Some(limit_bytes),
        limited_by: Some(limit.file.display().to_string()),
        callers_wait: verdict.hold,
    });
}

fn unlimited() -> MemoryStatus {
    MemoryStatus {
        in_use_bytes: own_status("VmRSS:"),
        ..MemoryStatus::default()
    }
}

/// Where the kernel accounts for this process's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Cgroup {
    version: Version,
    /// This process's own first, then those around it as far as they can be seen: in a container
    /// that is as a rule its own alone.
    directories: Vec<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

/// The smallest limit that holds for the process.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Limit {
    bytes: u64,
    /// The file that says so.
    file: PathBuf,
}

/// Memory of the process's own cgroup at one moment, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Usage {
    /// The working set as the kubelet counts it: all that is accounted for, without the file cache
    /// that the kernel gives up first.
    working_set: u64,
    /// Of that, anonymous memory of other processes in the cgroup.
    others: u64,
}

impl Cgroup {
    /// The cgroup that accounts for this process's memory; `None` where there is none to be seen.
    fn of_this_process() -> Option<Self> {
        let cgroups = read(Path::new("/proc/self/cgroup"))?;
        Self::find(&cgroups, &mountinfo::read())
    }

    /// `cgroups` is what /proc/self/cgroup says (cgroups(7)).
    fn find(cgroups: &str, mounts: &[Mount]) -> Option<Self> {
        let membership = |is_it: &dyn Fn(&str, &str) -> bool| {
            cgroups.lines().find_map(|line| {
                let (number, rest) = line.split_once(':')?;
                let (controllers, path) = rest.split_once(':')?;
                is_it(number, controllers).then_some(path)
            })
        };
        let is_memory = |list: &str| list.split(',').any(|controller| controller == "memory");
        // With both versions about, a controller belongs to one of them.
        let (version, path, kind) = match membership(&|_, controllers| is_memory(controllers)) {
            Some(path) => (Version::V1, path, "cgroup"),
            None => {
                let path =
                    membership(&|number, controllers| number == "0" && controllers.is_empty())?;
                (Version::V2, path, "cgroup2")
            }
        };
        let mut mounts = mounts
            .iter()
            .filter(|mount| mount.kind == kind)
            .filter(|mount| version == Version::V2 || is_memory(&mount.options))
            .peekable();
        let first = mounts.peek().copied()?;
        // Without a namespace of its own a container sees the path of the host, and has a part of
        // the hierarchy mounted: the path within that part counts. Where they do not fit together,
        // what is mounted is all that can be seen, and a container's own as a rule.
        let within = mounts.find_map(|mount| {
            let rest = Path::new(path).strip_prefix(&mount.root).ok()?;
            let own = mount.point.join(rest);
            own.is_dir().then_some((mount, own))
        });
        let (mount, own) = within.unwrap_or_else(|| (first, first.point.clone()));
        let directories = own
            .ancestors()
            .take_while(|directory| directory.starts_with(&mount.point))
            .map(Path::to_owned)
            .collect();
        Some(Self {
            version,
            directories,
        })
    }

    /// The smallest limit of those around the process, as it stands now: it may be changed while
    /// the process runs (a pod that is resized in place, `systemctl set-property`).
    fn limit(&self) -> Option<Limit> {
        let names: &[&str] = match self.version {
            Version::V1 => &["memory.limit_in_bytes"],
            // Past `memory.high` the kernel slows the process down until it stands still.
            Version::V2 => &["memory.max", "memory.high"],
        };
        let files = self
            .directories
            .iter()
            .flat_map(|directory| names.iter().map(|name| directory.join(name)));
        files
            .filter_map(|file| {
                // "max" is no number.
                let bytes = number(&file).filter(|bytes| *bytes < NO_LIMIT)?;
                Some(Limit { bytes, file })
            })
            .min_by_key(|limit| limit.bytes)
    }

    /// What is in use now; `None` where the files cannot be read.
    fn usage(&self) -> Option<Usage> {
        let (current, inactive_file, anonymous) = match self.version {
            Version::V1 => ("memory.usage_in_bytes", "total_inactive_file", "total_rss"),
            Version::V2 => ("memory.current", "inactive_file", "anon"),
        };
        let own = self.directories.first()?;
        let current = number(&own.join(current))?;
        let stat = read(&own.join("memory.stat"))?;
        let anonymous = field(&stat, anonymous).unwrap_or(0);
        Some(Usage {
            working_set: current.saturating_sub(field(&stat, inactive_file).unwrap_or(0)),
            others: anonymous.saturating_sub(own_anonymous()),
        })
    }
}

/// What this process holds of anonymous memory.
fn own_anonymous() -> u64 {
    own_status("RssAnon:")
}

/// A size from /proc/self/status (proc_pid_status(5)), which is in KiB; 0 where it cannot be read.
fn own_status(name: &str) -> u64 {
    read(Path::new("/proc/self/status"))
        .and_then(|status| field(&status, name))
        .map_or(0, |kib| kib * 1024)
}

/// The number after `name` at the begin of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some(name)).then(|| words.next()?.parse().ok())?
    })
}

fn number(file: &Path) -> Option<u64> {
    read(file)?.trim().parse().ok()
}

/// Files of the kernel, which are made as they are read.
fn read(file: &Path) -> Option<String> {
    let mut text = String::new();
    let file = File::open(file).ok()?;
    file.take(MAX_FILE).read_to_string(&mut text).ok()?;
    Some(text)
}

/// Whether memory is about to run out, as of the last look.
#[derive(Debug, Default)]
struct Pressure {
    /// An episode: from above the high mark to below the low one.
    high: bool,
}

/// What follows from a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Verdict {
    /// Callers are to wait.
    hold: bool,
    /// An episode has begun (`true`) or ended (`false`) with this look.
    turned: Option<bool>,
}

impl Pressure {
    /// Whether this look would begin an episode or lets one go on, so that it is worth giving free
    /// memory back and looking again.
    fn is_near(&self, limit: u64, usage: Usage) -> bool {
        let percent = if self.high { LOW_PERCENT } else { HIGH_PERCENT };
        // In 128 bits, since a limit may be any number.
        let above = u128::from(usage.working_set) * 100 > u128::from(limit) * u128::from(percent);
        // Where it is others who fill the cgroup, it would help nobody that our callers wait.
        above && usage.others <= usage.working_set / 2
    }

    /// Judges a look, with `open` connections.
    fn judge(&mut self, limit: u64, usage: Usage, open: u64) -> Verdict {
        let before = self.high;
        self.high = self.is_near(limit, usage);
        Verdict {
            // Without connections nothing more would be freed by waiting: a limit that is too small
            // even for an idle process must not keep callers waiting for ever.
            hold: self.high && open > 0,
            turned: (self.high != before).then_some(self.high),
        }
    }
}

#[cfg(test)]
mod tests;
