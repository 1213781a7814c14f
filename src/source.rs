//! Where certificates, keys and the configuration are read from, and how a change is noticed.
//! Reads bytes and parses nothing.
//!
//! [`read_all`] reads a set of sources now. [`watch`] goes on watching it and hands out
//! [`Batch`]es: whatever changed together is reported together, once, and only if the bytes (or
//! the error) differ from what was last reported.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch as latest};
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::cluster::Store;
use crate::config::{IdentitySource, TrustSource};
use crate::failure::Explained;
use crate::material::{IdentityMaterial, Part, TrustMaterial};

pub(crate) mod file;
pub(crate) mod objects;

pub(crate) use file::read::{Digest, digest, read_all};

/// What can be watched.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum SourceKey {
    /// The configuration file.
    Config(PathBuf),
    /// A client certificate and key.
    Identity(IdentitySource),
    /// CA certificates and revocation lists.
    Trust(TrustSource),
}

/// One consistent read of all parts of one source.
#[derive(Clone, Debug)]
pub(crate) struct Reading {
    pub(crate) key: SourceKey,
    pub(crate) material: Result<Material, Explained>,
}

/// What was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Material {
    Config(Part),
    Identity(IdentityMaterial),
    Trust(TrustMaterial),
}

/// Why a source was read again: the label of reload metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Trigger {
    /// First read.
    Start,
    /// An event from the file system, or a change of a Kubernetes object.
    Notify,
    /// A change of a Kubernetes Service.
    Cluster,
    /// The periodic check.
    Periodic,
    /// SIGHUP, `tlsward reload` or `POST /reload`.
    Request,
}

impl Trigger {
    /// The word for logs and metric labels.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Notify => "notify",
            Self::Cluster => "cluster",
            Self::Periodic => "periodic",
            Self::Request => "request",
        }
    }
}

/// The set of sources to watch.
pub(crate) type SourceSet = BTreeSet<SourceKey>;

/// Sources that changed together, and the requests that are hereby answered.
#[derive(Debug)]
pub(crate) struct Batch {
    /// Why they were read.
    pub(crate) trigger: Trigger,
    /// Only what differs from what was last reported, in order of key. Empty where a request
    /// found nothing changed.
    pub(crate) readings: Vec<Reading>,
    /// The requests whose files are all read: no reading that was due before them is still to
    /// come.
    pub(crate) answers: Vec<Ticket>,
    /// The set under which the sources were read; see [`Current`].
    epoch: u64,
}

/// A request to read everything again, as [`Batch::answers`] names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Ticket(u64);

/// How sources are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WatchOptions {
    /// Time between two checks of all contents, whatever the file system reports. Default 30 s.
    pub(crate) periodic: Duration,
    /// The same while the file system's events are not to be had. Default 5 s.
    pub(crate) polling: Duration,
    /// A change is read once no event has come for this long. Default 50 ms: longer than a
    /// program takes between two writes to one file, short against the second that is promised.
    pub(crate) quiet: Duration,
    /// A change is read after this time even if events go on. Default 500 ms.
    pub(crate) settle: Duration,
    /// Whether to ask for the file system's events at all. Default true.
    pub(crate) notify: bool,
}

impl Default for WatchOptions {
    fn default() -> Self {
        Self {
            periodic: Duration::from_secs(30),
            polling: Duration::from_secs(5),
            quiet: Duration::from_millis(50),
            settle: Duration::from_millis(500),
            notify: true,
        }
    }
}

/// How well changes are noticed: for status, logs and metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Health {
    pub(crate) noticing: Noticing,
    /// What the operator should know about single sources, for example that a file is a mount of
    /// its own and therefore never replaced.
    pub(crate) notes: BTreeMap<SourceKey, Vec<String>>,
}

/// By what means changes are noticed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Noticing {
    /// The file system reports every change in this many directories.
    Notify { directories: usize },
    /// It reports changes in some directories, the others (with the reason) are polled.
    Partly {
        directories: usize,
        polled: BTreeMap<PathBuf, String>,
        every: Duration,
    },
    /// It reports nothing; everything is read at this interval.
    Polling { every: Duration, why: String },
}

impl fmt::Display for Noticing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Notify { directories } => {
                write!(f, "inotify watches {directories} directories")
            }
            Self::Partly {
                directories,
                polled,
                every,
            } => {
                write!(
                    f,
                    "inotify watches {directories} directories; {} more are read every {every:?}",
                    polled.len()
                )?;
                match polled.first_key_value() {
                    Some((path, why)) => write!(f, " ({}: {why})", path.display()),
                    None => Ok(()),
                }
            }
            Self::Polling { every, why } => {
                write!(f, "no inotify ({why}): all files are read every {every:?}")
            }
        }
    }
}

/// Begins to watch `sources`, and to report what differs from `known`: the readings that the
/// caller already has. A source without a known reading is read and reported at once.
///
/// Must be called within a tokio runtime. File work runs on the runtime's blocking threads.
pub(crate) fn watch(
    sources: SourceSet,
    known: &[Reading],
    options: WatchOptions,
    store: Arc<Store>,
) -> (Watch, Batches) {
    let current = Arc::new(Mutex::new(Current::default()));
    let (commands, receive_commands) = mpsc::unbounded_channel();
    // Few: while the receiver is busy, changes add up and are read when it has time again.
    let (send_batches, batches) = mpsc::channel(4);
    let (send_health, health) = latest::channel(Health {
        noticing: Noticing::Notify { directories: 0 },
        notes: BTreeMap::new(),
    });
    let stop = CancellationToken::new();
    let watcher = file::Watcher::new(options, store, receive_commands, send_batches, send_health);
    let mut tasks = JoinSet::new();
    let stopped = stop.clone();
    tasks.spawn(async move {
        let _ = stopped.run_until_cancelled_owned(watcher.run()).await;
    });
    let watch = Watch {
        commands,
        current: Arc::clone(&current),
        health,
        stop: stop.drop_guard(),
        tasks,
    };
    watch.replace(sources, known);
    (watch, Batches { batches, current })
}

/// The handle on a running watch. Dropping it ends the watch; [`Watch::stop`] also waits for the
/// end.
#[derive(Debug)]
pub(crate) struct Watch {
    commands: mpsc::UnboundedSender<Command>,
    current: Arc<Mutex<Current>>,
    health: latest::Receiver<Health>,
    stop: DropGuard,
    tasks: JoinSet<()>,
}

impl Watch {
    /// Watches `sources` from now on, and nothing else. What `known` holds counts as reported,
    /// also for a source that was watched before: after this call, [`Batches`] yields nothing that
    /// was read earlier than those readings, and nothing of removed sources. A source that is new
    /// and not known is read and reported at once.
    ///
    /// Does not wait, so that the one who also receives the batches may call it.
    pub(crate) fn replace(&self, sources: SourceSet, known: &[Reading]) {
        let known: HashMap<SourceKey, Digest> = known
            .iter()
            .map(|reading| (reading.key.clone(), digest(&reading.material)))
            .collect();
        let mut current = lock(&self.current);
        let epoch = current.replace(&sources, &known);
        // Within the lock, so that commands are in order of their epochs. An error means that the
        // runtime is shutting down and has dropped the task: nothing is left to be told.
        let _ = self.commands.send(Command::Replace {
            epoch,
            sources,
            known,
        });
    }

    /// Reads everything again. A later batch names the ticket in its answers, even if nothing
    /// changed; it comes in order with all other batches.
    pub(crate) fn request(&self) -> Ticket {
        let mut current = lock(&self.current);
        current.tickets += 1;
        let ticket = Ticket(current.tickets);
        let _ = self.commands.send(Command::Request(ticket)); // as in `replace`
        ticket
    }

    /// How well changes are noticed, now and as it changes.
    pub(crate) fn health(&self) -> latest::Receiver<Health> {
        self.health.clone()
    }

    /// Ends the watch and waits until its task is gone. A read that hangs in the kernel (a dead
    /// network file system) is not waited for.
    pub(crate) async fn stop(mut self) {
        drop(self.stop);
        while self.tasks.join_next().await.is_some() {}
    }
}

/// The receiving end of a watch.
#[derive(Debug)]
pub(crate) struct Batches {
    batches: mpsc::Receiver<Batch>,
    current: Arc<Mutex<Current>>,
}

impl Batches {
    /// The next batch; `None` once the watch has ended. Cancel-safe.
    pub(crate) async fn recv(&mut self) -> Option<Batch> {
        loop {
            let mut batch = self.batches.recv().await?;
            let current = lock(&self.current);
            batch
                .readings
                .retain(|reading| current.wants(&reading.key, batch.epoch));
            if !batch.readings.is_empty() || !batch.answers.is_empty() {
                return Some(batch);
            }
        }
    }
}

/// What the watching task is told.
#[derive(Debug)]
pub(crate) enum Command {
    Replace {
        epoch: u64,
        sources: SourceSet,
        known: HashMap<SourceKey, Digest>,
    },
    Request(Ticket),
}

/// The present set, shared by both ends so that a batch which was under way during a
/// [`Watch::replace`] cannot bring back what has been superseded.
#[derive(Debug, Default)]
struct Current {
    epoch: u64,
    tickets: u64,
    /// Since when a reading of the source is wanted.
    since: HashMap<SourceKey, u64>,
}

impl Current {
    fn replace(&mut self, sources: &SourceSet, known: &HashMap<SourceKey, Digest>) -> u64 {
        self.epoch += 1;
        let old = std::mem::take(&mut self.since);
        self.since = sources
            .iter()
            .map(|key| {
                let since = match old.get(key) {
                    Some(since) if !known.contains_key(key) => *since,
                    _ => self.epoch,
                };
                (key.clone(), since)
            })
            .collect();
        self.epoch
    }

    fn wants(&self, key: &SourceKey, epoch: u64) -> bool {
        self.since.get(key).is_some_and(|since| *since <= epoch)
    }
}

/// A panic elsewhere cannot leave the set half changed: each change is one assignment.
fn lock(current: &Mutex<Current>) -> MutexGuard<'_, Current> {
    current.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
