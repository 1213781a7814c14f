//! Watching files: an event names the sources it may concern; once the file system is quiet they
//! are read together; what differs from what was last reported is reported, once.
//!
//! Events only say *when* to look, never *what* changed, and every so often everything is looked
//! at without one. So a missed event delays a change and never loses it.

mod agreement;
mod credential;
mod directories;
mod events;
mod explain;
mod mounts;
pub(super) mod read;
mod trace;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};

use self::agreement::{Agreement, Pass, Verdict};
use self::directories::{Directories, Needs, SourceId};
use self::events::Events;
use self::mounts::Mounts;
use self::read::{Digest, digest};
use self::trace::{End, Memo, Trace};
use super::{
    Batch, Command, Health, Noticing, Reading, SourceKey, Ticket, Trigger, WatchOptions, objects,
};
use crate::cluster::Store;
use crate::config::{CaSource, IdentitySource};

/// How soon sources are looked at again that would not hold still.
const RETRY: Duration = Duration::from_secs(1);

/// The task behind a [`super::Watch`].
#[derive(Debug)]
pub(super) struct Watcher {
    options: WatchOptions,
    commands: mpsc::UnboundedReceiver<Command>,
    batches: mpsc::Sender<Batch>,
    health: watch::Sender<Health>,
    events: Events,
    store: Arc<Store>,
    /// `None` only while a blocking thread has it.
    directories: Option<Directories>,
    sources: HashMap<SourceId, Source>,
    ids: HashMap<Arc<SourceKey>, SourceId>,
    next_id: u32,
    epoch: u64,
    /// When everything is looked at, event or not.
    next_check: Instant,
    /// Sources that changed while they were read; looked at again at `retry_at`.
    restless: BTreeSet<SourceId>,
    retry_at: Instant,
}

#[derive(Debug)]
struct Source {
    key: Arc<SourceKey>,
    /// What was last reported, or known by other ways.
    reported: Option<Digest>,
    notes: Vec<String>,
}

/// What is to be looked at, and why.
#[derive(Debug)]
struct Work {
    sources: BTreeSet<SourceId>,
    trigger: Trigger,
    /// Whether somebody may be writing at this moment.
    eventful: bool,
    /// Whether everything is to be looked at and every watch to be asked for again.
    renew: bool,
    answers: Vec<Ticket>,
    forget: Vec<SourceId>,
}

impl Work {
    fn new(trigger: Trigger, sources: BTreeSet<SourceId>) -> Self {
        Self {
            sources,
            trigger,
            eventful: false,
            renew: false,
            answers: Vec::new(),
            forget: Vec::new(),
        }
    }
}

impl Watcher {
    pub(super) fn new(
        options: WatchOptions,
        store: Arc<Store>,
        commands: mpsc::UnboundedReceiver<Command>,
        batches: mpsc::Sender<Batch>,
        health: watch::Sender<Health>,
    ) -> Self {
        let events = Events::default();
        let now = Instant::now();
        Self {
            options,
            commands,
            batches,
            health,
            directories: Some(Directories::new(events.clone(), options.notify)),
            events,
            store,
            sources: HashMap::new(),
            ids: HashMap::new(),
            next_id: 0,
            epoch: 0,
            next_check: now + options.periodic,
            restless: BTreeSet::new(),
            retry_at: now,
        }
    }

    /// Runs until the watch or the receiver of its batches is dropped.
    pub(super) async fn run(mut self) {
        while let Some(work) = self.next_work().await {
            if self.carry_out(work).await.is_none() {
                return;
            }
        }
    }

    async fn next_work(&mut self) -> Option<Work> {
        loop {
            let retry = !self.restless.is_empty();
            tokio::select! {
                biased;
                command = self.commands.recv() => return Some(self.obey(command?)),
                // Before the events: those may come without end.
                () = sleep_until(self.retry_at), if retry => {
                    return Some(Work::new(Trigger::Notify, std::mem::take(&mut self.restless)));
                }
                () = sleep_until(self.next_check) => {
                    let mut work = Work::new(Trigger::Periodic, BTreeSet::new());
                    work.renew = true;
                    return Some(work);
                }
                () = news(&self.events, &self.store) => {
                    let sources = self.concerned()?;
                    if !sources.is_empty() {
                        let mut work = Work::new(Trigger::Notify, sources);
                        work.eventful = true;
                        return Some(work);
                    }
                }
            }
        }
    }

    fn all(&self) -> BTreeSet<SourceId> {
        self.sources.keys().copied().collect()
    }

    /// The sources that the events since the last call concern.
    fn concerned(&mut self) -> Option<BTreeSet<SourceId>> {
        let changes = self.events.take();
        let mut concerned = self.directories.as_mut()?.concerned(&changes);
        let objects = self.store.take_changed_data();
        if !objects.is_empty() {
            let read_from_them = |key: &SourceKey| !objects::objects(key).is_disjoint(&objects);
            let ids = self.ids.iter().filter(|(key, _)| read_from_them(key));
            concerned.extend(ids.map(|(_, id)| *id));
        }
        Some(concerned)
    }

    /// Takes this command and all that wait behind it.
    fn obey(&mut self, first: Command) -> Work {
        let mut work = Work::new(Trigger::Notify, BTreeSet::new());
        let mut next = Ok(first);
        loop {
            match next {
                Ok(Command::Request(ticket)) => {
                    work.answers.push(ticket);
                    work.renew = true;
                }
                Ok(Command::Replace {
                    epoch,
                    sources,
                    known,
                }) => {
                    self.epoch = epoch;
                    self.ids.retain(|key, id| {
                        let stays = sources.contains(&**key);
                        if !stays {
                            self.sources.remove(id);
                            work.forget.push(*id);
                        }
                        stays
                    });
                    for key in sources {
                        let known = known.get(&key).copied();
                        self.add(key, known, &mut work);
                    }
                }
                // Where the watch is dropped, the next `recv` says so.
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
            }
            next = self.commands.try_recv();
        }
        if !work.answers.is_empty() {
            work.trigger = Trigger::Request;
        }
        work.sources.retain(|id| self.sources.contains_key(id));
        work
    }

    fn add(&mut self, key: SourceKey, known: Option<Digest>, work: &mut Work) {
        if let Some(id) = self.ids.get(&key) {
            if let (Some(_), Some(source)) = (known, self.sources.get_mut(id)) {
                source.reported = known;
                work.sources.insert(*id);
            }
            return;
        }
        if known.is_none() {
            work.trigger = Trigger::Start;
        }
        self.next_id += 1;
        let id = SourceId(self.next_id);
        let key = Arc::new(key);
        self.ids.insert(Arc::clone(&key), id);
        self.sources.insert(
            id,
            Source {
                key,
                reported: known,
                notes: Vec::new(),
            },
        );
        // Also if known: it may have changed before its watch was set.
        work.sources.insert(id);
    }

    /// Looks at the sources and reports what has changed. `None` when nobody is there to hear it.
    async fn carry_out(&mut self, mut work: Work) -> Option<()> {
        let latest = Instant::now() + self.options.settle;
        if work.eventful {
            self.wait_until_quiet(&mut work.sources, latest).await?;
        }
        self.look_round(&mut work).await?;

        // After a quiet time nobody is half-way through writing a file, and reading again at once
        // shows whether files were exchanged under the first read.
        let mut quiet = work.eventful;
        let mut agreement = Agreement::default();
        loop {
            let pass = self.read(&work.sources).await?;
            let mut disturbed = self.concerned()?;
            match agreement.judge(pass, &disturbed) {
                Verdict::Believe(pass, restless) => {
                    self.postpone(restless);
                    return self.report(work, pass).await;
                }
                Verdict::Confirm => {
                    if !quiet {
                        sleep(self.options.quiet).await;
                    }
                    quiet = false;
                }
                Verdict::Wait => {
                    self.wait_until_quiet(&mut disturbed, latest).await?;
                    quiet = true;
                    work.sources.extend(disturbed);
                    self.look_round(&mut work).await?;
                }
            }
        }
    }

    /// Waits until no event has come for a while, and adds the sources that events concern.
    async fn wait_until_quiet(
        &mut self,
        sources: &mut BTreeSet<SourceId>,
        latest: Instant,
    ) -> Option<()> {
        let mut quiet = Instant::now() + self.options.quiet;
        loop {
            tokio::select! {
                () = news(&self.events, &self.store) => {
                    let more = self.concerned()?;
                    if !more.is_empty() {
                        sources.extend(more);
                        quiet = Instant::now() + self.options.quiet;
                    }
                }
                () = sleep_until(quiet.min(latest)) => return Some(()),
            }
        }
    }

    /// Sees to it that the sources' directories, as they are now, are watched.
    async fn look_round(&mut self, work: &mut Work) -> Option<()> {
        let renew = std::mem::take(&mut work.renew);
        if renew {
            work.sources = self.all();
        }
        let forget = std::mem::take(&mut work.forget);
        let wanted: Vec<(SourceId, Arc<SourceKey>)> = self.named(&work.sources);
        let mut directories = self.directories.take()?;
        let (directories, notes) = blocking(move || {
            for id in forget {
                directories.forget(id);
            }
            if renew {
                directories.renew();
            }
            let ids: Vec<SourceId> = wanted.iter().map(|(id, _)| *id).collect();
            let keys: HashMap<SourceId, Arc<SourceKey>> = wanted.into_iter().collect();
            let mut mounts = Mounts::now();
            let mut notes = BTreeMap::new();
            directories.follow(&ids, |id, memo| {
                let (needs, on_source) = match keys.get(&id) {
                    Some(key) => survey(key, memo, &mut mounts),
                    None => (Needs::default(), Vec::new()),
                };
                notes.insert(id, on_source);
                needs
            });
            (directories, notes)
        })
        .await?;
        self.directories = Some(directories);
        for (id, notes) in notes {
            if let Some(source) = self.sources.get_mut(&id) {
                source.notes = notes;
            }
        }
        let every = self.publish_health()?;
        if renew {
            self.next_check = Instant::now() + every;
        } else {
            self.next_check = self.next_check.min(Instant::now() + every);
        }
        Some(())
    }

    fn named(&self, ids: &BTreeSet<SourceId>) -> Vec<(SourceId, Arc<SourceKey>)> {
        ids.iter()
            .filter_map(|id| Some((*id, Arc::clone(&self.sources.get(id)?.key))))
            .collect()
    }

    /// Says how often everything must be read.
    fn publish_health(&self) -> Option<Duration> {
        let directories = self.directories.as_ref()?;
        let every = self.options.polling.min(self.options.periodic);
        let noticing = match directories.blind() {
            Some(why) => Noticing::Polling {
                every,
                why: why.into(),
            },
            None if directories.refused().is_empty() => Noticing::Notify {
                directories: directories.watched(),
            },
            None => Noticing::Partly {
                directories: directories.watched(),
                polled: directories.refused().clone(),
                every,
            },
        };
        let every = match noticing {
            Noticing::Notify { .. } => self.options.periodic,
            Noticing::Partly { .. } | Noticing::Polling { .. } => every,
        };
        let noted = self.sources.values().filter(|s| !s.notes.is_empty());
        let health = Health {
            noticing,
            notes: noted
                .map(|source| ((*source.key).clone(), source.notes.clone()))
                .collect(),
        };
        self.health.send_if_modified(|old| {
            let changed = *old != health;
            *old = health;
            changed
        });
        Some(every)
    }

    async fn read(&self, ids: &BTreeSet<SourceId>) -> Option<Pass> {
        let wanted: Vec<_> = self
            .named(ids)
            .into_iter()
            .map(|(id, key)| {
                let reported = self.sources.get(&id).and_then(|source| source.reported);
                (id, key, reported)
            })
            .collect();
        let store = Arc::clone(&self.store);
        blocking(move || {
            let mut pass = Pass::default();
            for (id, key, reported) in wanted {
                let reading = read::read(&key, &store);
                let digest = digest(&reading.material);
                pass.digests.insert(id, digest);
                if reported != Some(digest) {
                    pass.changed.insert(id, reading);
                }
            }
            pass
        })
        .await
    }

    /// Has the sources looked at again soon.
    fn postpone(&mut self, sources: BTreeSet<SourceId>) {
        if self.restless.is_empty() {
            self.retry_at = Instant::now() + RETRY;
        }
        self.restless.extend(sources);
    }

    async fn report(&mut self, work: Work, pass: Pass) -> Option<()> {
        if pass.changed.is_empty() && work.answers.is_empty() {
            return Some(());
        }
        for id in pass.changed.keys() {
            if let Some(source) = self.sources.get_mut(id) {
                source.reported = pass.digests.get(id).copied();
            }
        }
        let mut readings: Vec<Reading> = pass.changed.into_values().collect();
        readings.sort_by(|a, b| a.key.cmp(&b.key));
        let batch = Batch {
            trigger: work.trigger,
            readings,
            answers: work.answers,
            epoch: self.epoch,
        };
        self.batches.send(batch).await.ok()
    }
}

/// Waits for an event of the file system or a change in the cluster. Cancel-safe.
async fn news(events: &Events, store: &Store) {
    tokio::select! {
        () = events.arrived() => {}
        () = store.data_changed() => {}
    }
}

/// What must be watched for a source, and what the operator should know about it.
fn survey(key: &SourceKey, memo: &mut Memo, mounts: &mut Mounts) -> (Needs, Vec<String>) {
    let mut needs = Needs::default();
    let mut notes = Vec::new();
    for place in places(key) {
        let (path, may_be_directory) = match place {
            Place::File(path) => (path, false),
            Place::FileOrDirectory(path) => (path, true),
        };
        match add_way(&path, memo, mounts, &mut needs, &mut notes) {
            End::Directory(dir, identity) if may_be_directory => {
                // Dangling or not, a link may come to point to something else.
                for link in read::entries(&dir, read::MAX_ENTRIES)
                    .map(|(_, links)| links)
                    .unwrap_or_default()
                {
                    let end = add_way(&link, memo, mounts, &mut needs, &mut notes);
                    if let End::Missing(_) | End::Loop(_) = end {
                        notes.push(format!(
                            "{} is a symbolic link to nothing and is left out",
                            link.display()
                        ));
                    }
                }
                notes.extend(mounts.note_on(&dir, false));
                notes.extend(mounts.note_on_directory(&dir, identity.0));
                needs.whole.insert(dir, identity);
            }
            _ => {}
        }
    }
    notes.sort();
    notes.dedup();
    (needs, notes)
}

fn add_way(
    path: &Path,
    memo: &mut Memo,
    mounts: &mut Mounts,
    needs: &mut Needs,
    notes: &mut Vec<String>,
) -> End {
    let trace = Trace::follow(path, memo);
    if let End::File(file) = &trace.end {
        notes.extend(mounts.note_on(file, true));
    }
    if let Some(last) = trace.steps.last() {
        notes.extend(mounts.note_on_directory(&last.dir, last.identity.0));
    }
    needs.entries.extend(trace.steps);
    trace.end
}

/// One configured path.
enum Place<'a> {
    File(Cow<'a, Path>),
    FileOrDirectory(Cow<'a, Path>),
}

fn places(key: &SourceKey) -> Vec<Place<'_>> {
    match key {
        SourceKey::Config(path) | SourceKey::Identity(IdentitySource::Bundle(path)) => {
            vec![Place::File(path.into())]
        }
        SourceKey::Identity(IdentitySource::Pair { cert, key }) => {
            vec![Place::File(cert.into()), Place::File(key.into())]
        }
        SourceKey::Identity(IdentitySource::Secret(_)) => Vec::new(),
        SourceKey::Identity(IdentitySource::Credential(credential)) => {
            let forms = credential.forms().into_iter().flatten();
            let files = forms.flat_map(|form| form.files().map(Path::to_owned).collect::<Vec<_>>());
            files.map(|path| Place::File(path.into())).collect()
        }
        SourceKey::Trust(trust) => {
            let ca = match &trust.ca {
                CaSource::Path(path) => Some(Place::FileOrDirectory(path.into())),
                CaSource::Credential(credential) => {
                    credential.file().map(|path| Place::File(path.into()))
                }
                // Wherever the platform keeps them: seen by the periodic check. And objects tell
                // of their changes themselves.
                CaSource::System | CaSource::Objects(_) => None,
            };
            let crl = trust.crl.iter();
            let crl = crl.map(|path| Place::FileOrDirectory(path.into()));
            ca.into_iter().chain(crl).collect()
        }
    }
}

/// Runs file work where it delays nobody. `None` if the runtime is shutting down.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => Some(done),
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => None,
        },
    }
}
