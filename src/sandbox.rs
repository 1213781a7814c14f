//! What the process gives up before it begins: files that it will not read, ports that it will not
//! use, system calls that it never makes. Landlock for the first two, seccomp for the third.
//!
//! [`rules`] plans, out of the configuration and its surroundings; [`Sandbox::enter`] carries the
//! plan out, as far as the kernel can, and cannot be undone. Both bind the calling thread and those
//! that it starts later, so that they come first. A later configuration is held against what is in
//! force ([`Sandbox::lacks`]) before it counts.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use serde::Serialize;

use crate::failure::{Explained, Reason};

mod calls;
mod lacking;
mod landlock;
mod plan;
mod ways;

#[cfg(test)]
mod tests;

pub(crate) use lacking::Lacking;
pub(crate) use plan::{ClusterAccess, Facts, needs_kubernetes, rules};

/// What the process may go on to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rules {
    /// Files, and directories with all below, that may be read because the configuration names
    /// them.
    pub(crate) read: BTreeSet<PathBuf>,
    /// The same, because every process needs them: name service, libraries, roots, limits.
    pub(crate) system: BTreeSet<PathBuf>,
    /// Directories in which, and below which, unix sockets may be made and files removed.
    pub(crate) sockets: BTreeSet<PathBuf>,
    /// TCP ports that may be dialled.
    pub(crate) connect: Ports,
    /// TCP ports that may be listened on.
    pub(crate) bind: Ports,
    /// Whether it reckons with a Kubernetes API server.
    pub(crate) kubernetes: bool,
    /// Whether the supervisor listens on an abstract socket, which then must be reached.
    pub(crate) abstract_sockets: bool,
    /// What the configuration names and the rules do not hold, and why.
    pub(crate) left_out: Vec<String>,
}

/// TCP ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ports {
    /// Every one, and why.
    Any(&'static str),
    /// These.
    These(BTreeSet<u16>),
}

impl Ports {
    fn has(&self, port: u16) -> bool {
        match self {
            Self::Any(_) => true,
            Self::These(ports) => ports.contains(&port),
        }
    }
}

/// `any (…)`, or ports and ranges with commas between.
impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ports = match self {
            Self::Any(why) => return write!(f, "any ({why})"),
            Self::These(ports) if ports.is_empty() => return f.write_str("none"),
            Self::These(ports) => ports,
        };
        let mut ranges: Vec<(u16, u16)> = Vec::new();
        for &port in ports {
            match ranges.last_mut() {
                Some((_, last)) if *last + 1 == port => *last = port,
                _ => ranges.push((port, port)),
            }
        }
        for (n, (first, last)) in ranges.iter().enumerate() {
            let comma = if n == 0 { "" } else { ", " };
            match first == last {
                true => write!(f, "{comma}{first}")?,
                false => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

/// What is in force, for status and `tlsward check`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Report {
    pub(crate) state: State,
    /// Why it is not wholly on.
    pub(crate) why: Option<String>,
    /// The version of Landlock's interface that is used; `None`: no Landlock.
    pub(crate) landlock_abi: Option<u8>,
    /// Reading other files than `read` and `read_system`, writing and executing any are refused.
    pub(crate) files: bool,
    /// Listening on other TCP ports than `bind_ports` and dialling others than `connect_ports` is
    /// refused.
    pub(crate) tcp: bool,
    /// Signals to other processes are refused.
    pub(crate) signals: bool,
    /// Connections to abstract unix sockets of other processes are refused.
    pub(crate) abstract_sockets: bool,
    /// System calls that tlsward never makes are refused.
    pub(crate) seccomp: bool,
    /// What the configuration names.
    pub(crate) read: Vec<String>,
    /// What every process needs.
    pub(crate) read_system: Vec<String>,
    /// Directories in which unix sockets may be made and removed.
    pub(crate) sockets: Vec<String>,
    pub(crate) connect_ports: String,
    pub(crate) bind_ports: String,
    /// What the configuration names and the sandbox does not hold.
    pub(crate) left_out: Vec<String>,
}

/// How much of the sandbox there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum State {
    /// Everything of it.
    On,
    /// As much as the kernel can.
    Partly,
    Off,
}

impl State {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::On => "on",
            Self::Partly => "partly on",
            Self::Off => "off",
        }
    }
}

impl Report {
    /// Of rules that nothing enforces yet.
    pub(crate) fn of(rules: &Rules) -> Self {
        let words = |paths: &BTreeSet<PathBuf>| {
            let paths = paths.iter();
            paths.map(|path| path.display().to_string()).collect()
        };
        Self {
            state: State::Off,
            why: None,
            landlock_abi: None,
            files: false,
            tcp: false,
            signals: false,
            abstract_sockets: false,
            seccomp: false,
            read: words(&rules.read),
            read_system: words(&rules.system),
            sockets: words(&rules.sockets),
            connect_ports: rules.connect.to_string(),
            bind_ports: rules.bind.to_string(),
            left_out: rules.left_out.clone(),
        }
    }

    /// The parts, each with whether it is in force.
    pub(crate) fn parts(&self) -> [(&'static str, bool); 5] {
        [
            ("files", self.files),
            ("tcp", self.tcp),
            ("signals", self.signals),
            ("abstract_sockets", self.abstract_sockets),
            ("seccomp", self.seccomp),
        ]
    }
}

/// The sandbox of this process.
#[derive(Clone, Debug)]
pub(crate) struct Sandbox(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    rules: Option<Rules>,
    /// What Landlock holds to, by device and inode.
    known: landlock::Known,
    report: Report,
}

/// Parts of the sandbox, for tests that prove each by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layers {
    landlock: bool,
    seccomp: bool,
}

impl Sandbox {
    /// None, because of this.
    pub(crate) fn off(why: &str) -> Self {
        let nothing = Rules {
            read: BTreeSet::new(),
            system: BTreeSet::new(),
            sockets: BTreeSet::new(),
            connect: Ports::Any("no sandbox"),
            bind: Ports::Any("no sandbox"),
            kubernetes: true,
            abstract_sockets: true,
            left_out: Vec::new(),
        };
        Self(Arc::new(Inner {
            rules: None,
            known: landlock::Known::default(),
            report: Report {
                why: Some(why.to_owned()),
                ..Report::of(&nothing)
            },
        }))
    }

    /// Gives up, for good, what `rules` do not allow, as far as the kernel can. To be called before
    /// the first thread is started. What a kernel lacks is no error: [`Self::report`] tells.
    pub(crate) fn enter(rules: Rules) -> Self {
        let all = Layers {
            landlock: true,
            seccomp: true,
        };
        Self::enter_layers(rules, all)
    }

    fn enter_layers(rules: Rules, layers: Layers) -> Self {
        let mut report = Report::of(&rules);
        let mut lacking = Vec::new();
        let mut known = landlock::Known::default();
        if layers.landlock {
            match landlock::restrict(&rules) {
                Ok(entered) => {
                    report.landlock_abi = Some(entered.abi);
                    report.files = true;
                    report.tcp = entered.abi >= landlock::TCP
                        && !matches!(
                            (&rules.bind, &rules.connect),
                            (Ports::Any(_), Ports::Any(_))
                        );
                    report.signals = entered.abi >= landlock::SCOPES;
                    report.abstract_sockets =
                        entered.abi >= landlock::SCOPES && !rules.abstract_sockets;
                    if entered.abi < landlock::SCOPES {
                        lacking.push(format!(
                            "the kernel's Landlock is of version {}; TCP ports need {}, signals and abstract sockets {}",
                            entered.abi,
                            landlock::TCP,
                            landlock::SCOPES
                        ));
                    }
                    known = entered.known;
                }
                Err(why) => lacking.push(why),
            }
        }
        if layers.seccomp {
            match calls::restrict() {
                Ok(()) => {
                    report.seccomp = true;
                    // Of those to other processes none is left.
                    report.signals = true;
                }
                Err(why) => lacking.push(format!("seccomp: {why}")),
            }
        }
        report.state = match (lacking.is_empty(), report.files || report.seccomp) {
            (true, _) => State::On,
            (false, true) => State::Partly,
            (false, false) => State::Off,
        };
        report.why = (!lacking.is_empty()).then(|| lacking.join("; "));
        Self(Arc::new(Inner {
            rules: Some(rules),
            known,
            report,
        }))
    }

    /// What is in force.
    pub(crate) fn report(&self) -> &Report {
        &self.0.report
    }

    /// The same reason, or what the sandbox has to do with it where one of `files` could not be
    /// read: its link leads elsewhere than at the start, or its directory was made anew.
    pub(crate) fn explain<'f>(
        &self,
        why: &Explained,
        mut files: impl Iterator<Item = &'f Path>,
    ) -> Option<Explained> {
        let because_of_rights = matches!(why.reason, Reason::Unreadable | Reason::BadConfig);
        if !because_of_rights || !self.0.report.files {
            return None;
        }
        let file = files.find(|file| !self.may_read(file))?;
        let real = ways::resolve(file);
        let detail = format!(
            "the sandbox was entered without {} ({}): what is there now, or the directory, is new since the start",
            file.display(),
            real.display()
        );
        Some(Explained::new(Reason::Sandboxed, detail))
    }

    /// Whether Landlock lets the process read what this path leads to now. Where that cannot be
    /// told, yes: then something else is in the way.
    fn may_read(&self, path: &Path) -> bool {
        self.0.known.read.holds(&ways::resolve(path))
    }

    fn may_make_socket(&self, path: &Path) -> bool {
        let directory = path.parent().unwrap_or(path);
        self.0.known.sockets.holds(&ways::resolve(directory))
    }
}

/// Makes memory with keys unreadable to others: no core dumps, and no other process of the same
/// user may trace this one or read its memory through /proc.
///
/// # Errors
/// What the kernel says.
pub(crate) fn keep_memory_private() -> std::io::Result<()> {
    let nothing = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, nothing)?;
    // Also for a core_pattern that pipes, which asks for no limit.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}
