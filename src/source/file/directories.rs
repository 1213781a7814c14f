//! Which directories the file system is asked to report on, and which sources an event concerns.
//!
//! Directories are watched, never files: a watch on a file dies with the file that is replaced. A
//! directory is watched once, however many sources or names lead to it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::OsString;
use std::fmt;
use std::ops::Bound;
use std::path::{Path, PathBuf};

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};

use super::events::{Changes, Events};
use super::trace::{Identity, Memo, Step};

/// A watch that is set may make another one necessary (a directory appeared below): so many times
/// the way is traced anew before the rest is left to the next look.
const ROUNDS: usize = 8;

/// Stands for one source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct SourceId(pub(super) u32);

/// What one source needs to have watched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Needs {
    /// Single entries of directories.
    pub(super) entries: HashSet<Step>,
    /// Directories of which any entry counts.
    pub(super) whole: HashMap<PathBuf, Identity>,
}

/// The watched directories.
pub(super) struct Directories {
    events: Events,
    events_wanted: bool,
    watcher: Option<RecommendedWatcher>,
    /// Why there is no watcher.
    missing: String,
    needs: HashMap<SourceId, Needs>,
    index: HashMap<PathBuf, Directory>,
    /// What is watched, under the one path by which the watcher knows it.
    watched: BTreeMap<PathBuf, Identity>,
    by_identity: HashMap<Identity, Watched>,
    /// Directories that cannot be watched, with the reason.
    refused: BTreeMap<PathBuf, String>,
    /// Paths that no longer lead to what the watcher still watches by their names.
    stale: Vec<PathBuf>,
    /// Events were lost, and with them perhaps the end of a watch.
    suspect: bool,
}

/// Who is interested in a directory.
#[derive(Debug)]
struct Directory {
    identity: Identity,
    entries: HashMap<OsString, BTreeSet<SourceId>>,
    whole: BTreeSet<SourceId>,
}

#[derive(Debug)]
struct Watched {
    path: PathBuf,
    /// Every path that leads to this directory: more than one where it is mounted twice.
    names: BTreeSet<PathBuf>,
}

impl fmt::Debug for Directories {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Directories")
            .field("sources", &self.needs.len())
            .field("watched", &self.watched)
            .field("refused", &self.refused)
            .finish_non_exhaustive()
    }
}

impl Directories {
    /// With `events_wanted` false nothing is ever watched.
    pub(super) fn new(events: Events, events_wanted: bool) -> Self {
        Self {
            events,
            events_wanted,
            watcher: None,
            missing: "switched off".into(),
            needs: HashMap::new(),
            index: HashMap::new(),
            watched: BTreeMap::new(),
            by_identity: HashMap::new(),
            refused: BTreeMap::new(),
            stale: Vec::new(),
            suspect: false,
        }
    }

    /// Looks up what the given sources need and watches it, so that whatever happens from now on
    /// is reported. Blocks.
    pub(super) fn follow(
        &mut self,
        sources: &[SourceId],
        mut trace: impl FnMut(SourceId, &mut Memo) -> Needs,
    ) {
        for path in std::mem::take(&mut self.stale) {
            self.unwatch(&path);
        }
        if std::mem::take(&mut self.suspect) {
            self.renew();
        }
        self.begin();
        for _ in 0..ROUNDS {
            let mut memo = Memo::default();
            for &id in sources {
                let needs = trace(id, &mut memo);
                self.set(id, needs);
            }
            if !self.watch_missing() {
                return;
            }
        }
    }

    /// No longer watches what only this source needed.
    pub(super) fn forget(&mut self, id: SourceId) {
        self.set(id, Needs::default());
        self.needs.remove(&id);
    }

    /// Asks for every watch again: a watch that was lost without a word (an unmounted file
    /// system, an overflow) comes back, one that stands is not touched. Blocks.
    pub(super) fn renew(&mut self) {
        self.refused.clear();
        self.begin();
        let Some(watcher) = &mut self.watcher else {
            return;
        };
        let lost: Vec<PathBuf> = self
            .watched
            .keys()
            .filter(|path| watcher.watch(path, RecursiveMode::NonRecursive).is_err())
            .cloned()
            .collect();
        for path in lost {
            self.unwatch(&path);
        }
    }

    /// The sources that the changes concern. To be followed again: their watches may be gone.
    pub(super) fn concerned(&mut self, changes: &Changes) -> BTreeSet<SourceId> {
        if changes.lost {
            self.suspect = true;
            return self.needs.keys().copied().collect();
        }
        let mut concerned = BTreeSet::new();
        for path in &changes.paths {
            // The directory itself: its mode, its removal.
            self.collect(path, None, &mut concerned);
            if let (Some(dir), Some(name)) = (path.parent(), path.file_name()) {
                self.collect(dir, Some(&name.to_owned()), &mut concerned);
            }
        }
        for path in &changes.gone {
            // The watcher drops its watches on a directory that is gone and on all below.
            let below: Vec<PathBuf> = self
                .watched
                .range::<Path, _>((Bound::Included(path.as_path()), Bound::Unbounded))
                .map(|(watched, _)| watched)
                .take_while(|watched| watched.starts_with(path))
                .cloned()
                .collect();
            for dir in below {
                self.collect(&dir, None, &mut concerned);
                if let Some(identity) = self.watched.remove(&dir) {
                    self.by_identity.remove(&identity);
                }
                self.stale.push(dir);
            }
        }
        concerned
    }

    /// The number of directories that are watched.
    pub(super) fn watched(&self) -> usize {
        self.watched.len()
    }

    /// The directories that cannot be watched, with the reasons.
    pub(super) fn refused(&self) -> &BTreeMap<PathBuf, String> {
        &self.refused
    }

    /// Why nothing is watched at all, if so.
    pub(super) fn blind(&self) -> Option<&str> {
        match self.watcher {
            Some(_) => None,
            None => Some(&self.missing),
        }
    }

    fn begin(&mut self) {
        if !self.events_wanted || self.watcher.is_some() {
            return;
        }
        let events = self.events.clone();
        let made = notify::recommended_watcher(move |event| events.add(event));
        match made {
            Ok(watcher) => self.watcher = Some(watcher),
            Err(error) => self.missing = explain(&error),
        }
    }

    fn set(&mut self, id: SourceId, needs: Needs) {
        let old = self.needs.get(&id);
        if old == Some(&needs) {
            return;
        }
        let mut left = BTreeSet::new();
        if let Some(old) = self.needs.remove(&id) {
            for step in old.entries {
                if let Some(directory) = self.index.get_mut(&step.dir)
                    && let Some(sources) = directory.entries.get_mut(&step.name)
                {
                    sources.remove(&id);
                    if sources.is_empty() {
                        directory.entries.remove(&step.name);
                    }
                }
                left.insert(step.dir);
            }
            for dir in old.whole.into_keys() {
                if let Some(directory) = self.index.get_mut(&dir) {
                    directory.whole.remove(&id);
                }
                left.insert(dir);
            }
        }
        for step in &needs.entries {
            let directory = self.enter(&step.dir, step.identity);
            let sources = directory.entries.entry(step.name.clone()).or_default();
            sources.insert(id);
        }
        for (dir, identity) in &needs.whole {
            self.enter(dir, *identity).whole.insert(id);
        }
        self.needs.insert(id, needs);
        for dir in left {
            if let Some(directory) = self.index.get(&dir)
                && directory.entries.is_empty()
                && directory.whole.is_empty()
            {
                let identity = directory.identity;
                self.index.remove(&dir);
                self.refused.remove(&dir);
                self.leave(&dir, identity);
            }
        }
    }

    /// The directory of this path, which may have become another one since.
    fn enter(&mut self, dir: &Path, identity: Identity) -> &mut Directory {
        if let Some(known) = self.index.get(dir)
            && known.identity != identity
        {
            let old = known.identity;
            self.leave(dir, old);
        }
        let directory = self
            .index
            .entry(dir.to_owned())
            .or_insert_with(|| Directory {
                identity,
                entries: HashMap::new(),
                whole: BTreeSet::new(),
            });
        directory.identity = identity;
        directory
    }

    /// The path no longer leads to this directory, or nobody asks for it by this path.
    fn leave(&mut self, dir: &Path, identity: Identity) {
        let Some(watched) = self.by_identity.get_mut(&identity) else {
            return;
        };
        watched.names.remove(dir);
        // Without the path by which the watcher knows it, the watch is dropped and, if another
        // path still leads there, set again by `watch_missing`.
        if watched.path == dir {
            self.unwatch(dir);
        }
    }

    fn unwatch(&mut self, path: &Path) {
        if let Some(identity) = self.watched.remove(path) {
            self.by_identity.remove(&identity);
        }
        if let Some(watcher) = &mut self.watcher {
            // An error means that the watch is gone already.
            let _ = watcher.unwatch(path);
        }
    }

    /// Sets the watches that are not there yet; says whether there were any.
    fn watch_missing(&mut self) -> bool {
        let Some(watcher) = &mut self.watcher else {
            return false;
        };
        let mut any = false;
        for (dir, directory) in &self.index {
            if self.refused.contains_key(dir) {
                continue;
            }
            if let Some(watched) = self.by_identity.get_mut(&directory.identity) {
                watched.names.insert(dir.clone());
                continue;
            }
            match watcher.watch(dir, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    any = true;
                    self.watched.insert(dir.clone(), directory.identity);
                    let watched = Watched {
                        path: dir.clone(),
                        names: BTreeSet::from([dir.clone()]),
                    };
                    self.by_identity.insert(directory.identity, watched);
                }
                // Gone since it was traced: the next round traces it anew.
                Err(error) if is_not_found(&error) => any = true,
                Err(error) => {
                    self.refused.insert(dir.clone(), explain(&error));
                }
            }
        }
        any
    }

    /// Who is concerned by an entry of this directory, or, without a name, by the directory.
    fn collect(&self, dir: &Path, name: Option<&OsString>, concerned: &mut BTreeSet<SourceId>) {
        let Some(identity) = self.watched.get(dir) else {
            return;
        };
        let Some(watched) = self.by_identity.get(identity) else {
            return;
        };
        for directory in watched.names.iter().filter_map(|name| self.index.get(name)) {
            concerned.extend(&directory.whole);
            match name {
                Some(name) => concerned.extend(directory.entries.get(name).into_iter().flatten()),
                None => concerned.extend(directory.entries.values().flatten()),
            }
        }
    }
}

fn is_not_found(error: &notify::Error) -> bool {
    match &error.kind {
        notify::ErrorKind::PathNotFound => true,
        notify::ErrorKind::Io(error) => error.kind() == std::io::ErrorKind::NotFound,
        _ => false,
    }
}

/// In the operator's words; the two limits are those of inotify(7).
fn explain(error: &notify::Error) -> String {
    match &error.kind {
        notify::ErrorKind::MaxFilesWatch => {
            "the limit of inotify watches is reached; raise fs.inotify.max_user_watches".into()
        }
        notify::ErrorKind::Io(error)
            if error.raw_os_error() == Some(rustix::io::Errno::MFILE.raw_os_error()) =>
        {
            "the limit of inotify instances or open files is reached; \
             raise fs.inotify.max_user_instances"
                .into()
        }
        notify::ErrorKind::Io(error) => error.to_string(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Directories that hold `needs` as source 1, 2, …, each watched as if inotify had agreed.
    fn directories(needs: Vec<Needs>) -> Directories {
        let mut directories = Directories::new(Events::default(), true);
        let ids: Vec<SourceId> = (1..).map(SourceId).take(needs.len()).collect();
        directories.follow(&ids, |id, _| needs[id.0 as usize - 1].clone());
        directories
    }

    fn needs(dir: &Path, name: &str) -> Needs {
        use std::fs::metadata;
        Needs {
            entries: HashSet::from([Step {
                dir: dir.to_owned(),
                identity: super::super::trace::identity(&metadata(dir).unwrap()),
                name: name.into(),
            }]),
            whole: HashMap::new(),
        }
    }

    fn changed(path: PathBuf) -> Changes {
        Changes {
            paths: HashSet::from([path]),
            ..Changes::default()
        }
    }

    #[test]
    fn an_event_concerns_only_the_sources_that_depend_on_its_entry() {
        let dir = tempfile::tempdir().unwrap();
        let mut directories =
            directories(vec![needs(dir.path(), "a.crt"), needs(dir.path(), "b.crt")]);
        assert_eq!(directories.watched(), 1);
        assert_eq!(
            directories.concerned(&changed(dir.path().join("b.crt"))),
            BTreeSet::from([SourceId(2)])
        );
        assert_eq!(
            directories.concerned(&changed(dir.path().join("c.crt"))),
            BTreeSet::new()
        );
        assert_eq!(
            directories.concerned(&changed(dir.path().to_owned())),
            BTreeSet::from([SourceId(1), SourceId(2)])
        );
        assert_eq!(
            directories
                .concerned(&Changes {
                    lost: true,
                    ..Changes::default()
                })
                .len(),
            2
        );
    }

    #[test]
    fn a_directory_that_nobody_needs_any_more_is_no_longer_watched() {
        let dir = tempfile::tempdir().unwrap();
        let mut directories =
            directories(vec![needs(dir.path(), "a.crt"), needs(dir.path(), "b.crt")]);
        directories.forget(SourceId(1));
        assert_eq!(directories.watched(), 1);
        directories.forget(SourceId(2));
        assert_eq!(directories.watched(), 0);
        assert!(directories.index.is_empty());
    }

    #[test]
    fn one_directory_by_two_paths_is_watched_once_and_reports_to_both() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().join("real");
        std::fs::create_dir(&real).unwrap();
        // A link stands in for a second mount of the same directory.
        let other = dir.path().join("other");
        std::os::unix::fs::symlink(&real, &other).unwrap();
        let mut directories = directories(vec![needs(&real, "a"), needs(&other, "a")]);
        assert_eq!(directories.watched(), 1);
        let path = directories.watched.keys().next().unwrap().join("a");
        assert_eq!(directories.concerned(&changed(path)).len(), 2);

        // The one that is left is watched still, by its own path if need be.
        directories.forget(SourceId(1));
        directories.follow(&[SourceId(2)], |_, _| needs(&other, "a"));
        assert_eq!(directories.watched(), 1);
        let path = directories.watched.keys().next().unwrap().join("a");
        assert_eq!(
            directories.concerned(&changed(path)),
            BTreeSet::from([SourceId(2)])
        );
    }

    #[test]
    fn a_watch_is_set_again_after_its_directory_was_removed() {
        let dir = tempfile::tempdir().unwrap();
        let certs = dir.path().join("certs");
        std::fs::create_dir(&certs).unwrap();
        let mut directories = directories(vec![needs(&certs, "a")]);
        let gone = Changes {
            gone: HashSet::from([certs.clone()]),
            ..Changes::default()
        };
        assert_eq!(
            directories.concerned(&gone),
            BTreeSet::from([SourceId(1)]),
            "the source must be traced anew"
        );
        assert_eq!(directories.watched(), 0);
        directories.follow(&[SourceId(1)], |_, _| needs(&certs, "a"));
        assert_eq!(directories.watched(), 1);
    }

    #[test]
    fn limits_of_inotify_are_explained_by_the_setting_to_raise() {
        let watches = notify::Error::new(notify::ErrorKind::MaxFilesWatch);
        assert!(explain(&watches).contains("max_user_watches"));
        let instances = notify::Error::io(rustix::io::Errno::MFILE.into());
        assert!(explain(&instances).contains("max_user_instances"));
    }
}
