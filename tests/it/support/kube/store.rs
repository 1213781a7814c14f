//! Objects, their history, and who watches: what etcd and the watch cache are to the real server.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Bound;
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::resources::Resource;
use super::selector::Selector;
use super::status::Refusal;

/// Where an object lies; objects of the cluster have the empty namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) collection: &'static str,
    pub(super) namespace: String,
    pub(super) name: String,
}

/// A state of an object: never changed, only replaced.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) value: Value,
}

struct Change {
    version: u64,
    key: Key,
    old: Option<Arc<Stored>>,
    new: Option<Arc<Stored>>,
}

/// What a list or a watch reaches for.
#[derive(Clone, Debug)]
pub(super) struct Scope {
    pub(super) resource: &'static Resource,
    /// Of all namespaces where none is named.
    pub(super) namespace: Option<String>,
    pub(super) selector: Selector,
}

/// What goes down a watch.
pub(super) enum Frame {
    Event(&'static str, Arc<Stored>),
    Bookmark(u64),
    /// The end of the events with which a streaming list begins.
    InitialEnd(u64),
    Failure(Refusal),
    /// Whatever a fault wants to be read.
    Raw(Vec<u8>),
    /// The stream ends in good order.
    End,
    /// The stream breaks within its coding.
    Cut,
}

struct Watcher {
    scope: Scope,
    /// Nothing up to here is told, even where it happens later: so does a watch that was started
    /// at a version of the future.
    since: u64,
    /// The last change in the collection when it began: a bookmark of that would be no news.
    began: u64,
    bookmarks: bool,
    sink: mpsc::UnboundedSender<Frame>,
}

#[derive(Default)]
pub(super) struct Store {
    version: u64,
    /// Changes up to here are forgotten.
    compacted: u64,
    objects: BTreeMap<Key, Arc<Stored>>,
    history: Vec<Change>,
    /// The version of the last change in a collection.
    latest: HashMap<&'static str, u64>,
    watchers: HashMap<u64, Watcher>,
    /// Those that can match one name only: a change looks at nobody else's.
    by_name: HashMap<(&'static str, String), HashSet<u64>>,
    by_collection: HashMap<&'static str, HashSet<u64>>,
}

impl Store {
    pub(super) fn new() -> Self {
        Self {
            // No object has version 1: a client that believes in small numbers is found out.
            version: 100,
            ..Self::default()
        }
    }

    pub(super) fn version(&self) -> u64 {
        self.version
    }

    pub(super) fn get(&self, key: &Key) -> Option<&Arc<Stored>> {
        self.objects.get(key)
    }

    /// Everything in a collection, in the order of etcd's keys.
    pub(super) fn collection(
        &self,
        collection: &'static str,
    ) -> impl Iterator<Item = (&Key, &Arc<Stored>)> {
        let from = Key {
            collection,
            namespace: String::new(),
            name: String::new(),
        };
        self.objects
            .range((Bound::Included(from), Bound::Unbounded))
            .take_while(move |(key, _)| key.collection == collection)
    }

    /// Puts `value` in place under the next version, and tells the watchers.
    pub(super) fn put(&mut self, key: Key, mut value: Value) -> Arc<Stored> {
        self.version += 1;
        value["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let new = Arc::new(Stored { value });
        let old = self.objects.insert(key.clone(), Arc::clone(&new));
        self.record(Change {
            version: self.version,
            key,
            old,
            new: Some(Arc::clone(&new)),
        });
        new
    }

    /// Takes an object away. What is left says the version of its removal.
    pub(super) fn remove(&mut self, key: &Key) -> Option<Arc<Stored>> {
        let old = self.objects.remove(key)?;
        self.version += 1;
        let last = moved_to(&old, self.version);
        self.record(Change {
            version: self.version,
            key: key.clone(),
            old: Some(old),
            new: None,
        });
        Some(last)
    }

    fn record(&mut self, change: Change) {
        let name = (change.key.collection, change.key.name.clone());
        let by_name = self.by_name.get(&name).into_iter().flatten();
        let by_collection = self.by_collection.get(change.key.collection);
        for id in by_name.chain(by_collection.into_iter().flatten()) {
            let watcher = &self.watchers[id];
            if change.version <= watcher.since {
                continue;
            }
            if let Some((kind, object)) = change.as_seen_by(&watcher.scope) {
                // A stream that has ended is taken off the list by its own drop.
                let _ = watcher.sink.send(Frame::Event(kind, object));
            }
        }
        self.latest.insert(change.key.collection, change.version);
        self.history.push(change);
    }

    /// The objects that `scope` reaches, as they were at `version`.
    ///
    /// # Errors
    /// 410 if that has been forgotten.
    pub(super) fn list_at(&self, scope: &Scope, version: u64) -> Result<Listing, Refusal> {
        if version < self.compacted {
            return Err(Refusal::expired(
                "The resourceVersion for the provided list is too old.",
            ));
        }
        let collection = self.collection(scope.resource.collection());
        let mut then: BTreeMap<&Key, &Arc<Stored>> = collection.collect();
        let later = self.history.iter().rev();
        for change in later.take_while(|change| change.version > version) {
            if change.key.collection == scope.resource.collection() {
                match &change.old {
                    Some(old) => then.insert(&change.key, old),
                    None => then.remove(&change.key),
                };
            }
        }
        let found = then.into_iter().filter(|(key, stored)| {
            let namespace = scope.namespace.as_ref();
            namespace.is_none_or(|it| *it == key.namespace) && scope.matches(stored)
        });
        Ok(found
            .map(|(key, stored)| (key.clone(), Arc::clone(stored)))
            .collect())
    }

    /// Starts a watch.
    ///
    /// # Errors
    /// 410, as the real watch cache words it.
    pub(super) fn watch(
        &mut self,
        id: u64,
        scope: Scope,
        since: Since,
        bookmarks: bool,
    ) -> Result<mpsc::UnboundedReceiver<Frame>, Refusal> {
        let (sink, frames) = mpsc::unbounded_channel();
        let send = |frame| {
            let _ = sink.send(frame);
        };
        let told = match since {
            Since::Nothing => {
                for (_, stored) in self.list_at(&scope, self.version)? {
                    send(Frame::Event("ADDED", stored));
                }
                if bookmarks {
                    send(Frame::InitialEnd(self.version));
                }
                self.version
            }
            Since::Now => self.version,
            Since::Version(since) if since < self.compacted => {
                let compacted = self.compacted;
                return Err(Refusal::expired(format!(
                    "too old resource version: {since} ({compacted})"
                )));
            }
            // A version of the future is no error to the watch cache.
            Since::Version(since) => {
                let start = self.history.partition_point(|it| it.version <= since);
                for change in &self.history[start..] {
                    if let Some((kind, object)) = change.as_seen_by(&scope) {
                        send(Frame::Event(kind, object));
                    }
                }
                since
            }
        };
        let collection = scope.resource.collection();
        match scope.selector.exact("metadata.name") {
            Some(name) => self
                .by_name
                .entry((collection, name.to_owned()))
                .or_default()
                .insert(id),
            None => self.by_collection.entry(collection).or_default().insert(id),
        };
        let watcher = Watcher {
            scope,
            since: told,
            began: self.latest.get(collection).copied().unwrap_or_default(),
            bookmarks,
            sink,
        };
        self.watchers.insert(id, watcher);
        Ok(frames)
    }

    pub(super) fn forget_watch(&mut self, id: u64) {
        let Some(watcher) = self.watchers.remove(&id) else {
            return;
        };
        let collection = watcher.scope.resource.collection();
        match watcher.scope.selector.exact("metadata.name") {
            Some(name) => {
                let key = (collection, name.to_owned());
                if let Some(ids) = self.by_name.get_mut(&key) {
                    ids.remove(&id);
                    if ids.is_empty() {
                        self.by_name.remove(&key);
                    }
                }
            }
            None => {
                self.by_collection
                    .entry(collection)
                    .or_default()
                    .remove(&id);
            }
        }
    }

    /// The bookmark that is due to a watch before its timeout: the last change that its
    /// collection has seen, if that is news.
    pub(super) fn last_bookmark(&self, id: u64) -> Option<u64> {
        let watcher = self.watchers.get(&id).filter(|it| it.bookmarks)?;
        let latest = self.latest.get(watcher.scope.resource.collection())?;
        Some(*latest).filter(|latest| *latest > watcher.since.max(watcher.began))
    }

    /// Sends to each open watch what `frame` makes for it, told whether it takes bookmarks.
    pub(super) fn tell_watches(&self, frame: impl Fn(bool) -> Option<Frame>) {
        for watcher in self.watchers.values() {
            if let Some(frame) = frame(watcher.bookmarks) {
                let _ = watcher.sink.send(frame);
            }
        }
    }

    /// Forgets the history so far.
    pub(super) fn compact(&mut self) {
        self.compacted = self.version;
        self.history.clear();
    }

    /// Gives every object a new version, counted from `from`, as after a restore of etcd.
    pub(super) fn renumber(&mut self, from: u64) {
        self.version = from;
        for stored in self.objects.values_mut() {
            self.version += 1;
            *stored = moved_to(stored, self.version);
        }
        self.compact();
    }
}

/// Where a watch begins.
#[derive(Clone, Copy, Debug)]
pub(super) enum Since {
    /// With the present state, as initial events.
    Nothing,
    /// With whatever happens next.
    Now,
    /// After this version.
    Version(u64),
}

pub(super) type Listing = Vec<(Key, Arc<Stored>)>;

impl Scope {
    fn matches(&self, stored: &Stored) -> bool {
        self.selector.matches(&stored.value)
    }
}

impl Change {
    /// The event that this change is to one who sees `scope` only: an object that stops
    /// matching is gone, in its last state that matched.
    fn as_seen_by(&self, scope: &Scope) -> Option<(&'static str, Arc<Stored>)> {
        let elsewhere = self.key.collection != scope.resource.collection()
            || scope
                .namespace
                .as_ref()
                .is_some_and(|it| *it != self.key.namespace);
        if elsewhere {
            return None;
        }
        let matching =
            |stored: &Option<Arc<Stored>>| stored.as_ref().filter(|it| scope.matches(it)).cloned();
        match (matching(&self.old), matching(&self.new)) {
            (None, Some(new)) => Some(("ADDED", new)),
            (Some(_), Some(new)) => Some(("MODIFIED", new)),
            (Some(old), None) => Some(("DELETED", moved_to(&old, self.version))),
            (None, None) => None,
        }
    }
}

/// The same state under another version.
fn moved_to(stored: &Stored, version: u64) -> Arc<Stored> {
    let mut value = stored.value.clone();
    value["metadata"]["resourceVersion"] = json!(version.to_string());
    Arc::new(Stored { value })
}
