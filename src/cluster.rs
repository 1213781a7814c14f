//! What is known of a Kubernetes cluster: the store between `kubernetes`, which fills it from the
//! API server, and `source` and `control`, which read it. Plain values, no client library.
//!
//! Whatever was once known stays known until the API server says otherwise: where it cannot be
//! reached, or refuses, that is an entry's *trouble*, beside its last value.

#![cfg_attr(
    not(feature = "kubernetes"),
    allow(
        dead_code,
        reason = "nobody fills the store in a build without Kubernetes"
    )
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use zeroize::Zeroizing;

use crate::config::kubernetes::{self, Kubernetes, ObjectRef, ServiceObject};
use crate::failure::Explained;

mod endpoints;

pub(crate) use endpoints::{Backend, Place, choose};

/// Up to so many Services of one namespace are followed one by one, so that a role can name them;
/// with more, all Services of the namespace are watched together.
pub(crate) const SERVICES_BY_NAME: usize = 32;

/// An object that holds certificates or keys.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum DataKey {
    Secret(ObjectRef),
    ConfigMap(ObjectRef),
    /// A ClusterTrustBundle by name.
    TrustBundle(String),
}

/// `Secret namespace/name`.
impl fmt::Display for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Secret(object) => write!(f, "Secret {object}"),
            Self::ConfigMap(object) => write!(f, "ConfigMap {object}"),
            Self::TrustBundle(name) => write!(f, "ClusterTrustBundle {name}"),
        }
    }
}

/// One state of such an object. A trust bundle has the one entry `ca.crt`.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct ObjectData {
    pub(crate) uid: String,
    /// A Secret's type; empty for other kinds.
    pub(crate) kind: String,
    /// Wiped when dropped.
    pub(crate) entries: BTreeMap<String, Zeroizing<Vec<u8>>>,
}

/// Without the bytes: they may be a key.
impl fmt::Debug for ObjectData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys: Vec<&String> = self.entries.keys().collect();
        write!(f, "ObjectData({}, {}, {keys:?})", self.uid, self.kind)
    }
}

/// What is known of one object.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry<T> {
    /// `None`: no answer yet. `Some(None)`: it does not exist.
    pub(crate) value: Option<Option<T>>,
    /// Why nothing newer is known, while that is so.
    pub(crate) trouble: Option<Explained>,
}

impl<T> Default for Entry<T> {
    fn default() -> Self {
        Self {
            value: None,
            trouble: None,
        }
    }
}

/// What is to be followed.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Wanted {
    /// How to reach the API server, and what to discover.
    pub(crate) settings: Kubernetes,
    pub(crate) data: BTreeSet<DataKey>,
    /// Services for their annotations and ports.
    pub(crate) services: BTreeSet<ObjectRef>,
    /// Services for their endpoints.
    pub(crate) endpoints: BTreeSet<ObjectRef>,
}

impl Wanted {
    /// Whether an API server is needed at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.data.is_empty()
            && self.services.is_empty()
            && self.endpoints.is_empty()
            && self.settings.discovery.is_none()
    }
}

/// What trouble is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Subject {
    Data(DataKey),
    Service(ObjectRef),
    Endpoints(ObjectRef),
    Discovery,
}

/// What has changed since control last asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    /// Services, or which of them are discovered.
    pub(crate) services: bool,
    pub(crate) endpoints: BTreeSet<ObjectRef>,
    /// Only what is said of it.
    pub(crate) troubles: bool,
}

impl Changes {
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The store. Shared; every method is short and does not wait but for those that say so.
#[derive(Debug)]
pub(crate) struct Store {
    own_namespace: Option<String>,
    known: Mutex<Known>,
    wanted: watch::Sender<Arc<Wanted>>,
    /// Counts writes, for whoever waits for an answer.
    writes: watch::Sender<u64>,
    data_changed: Notify,
    changed: Notify,
    /// Somebody asks for fresh news: waits between attempts are to end.
    hurry: Notify,
}

#[derive(Debug, Default)]
struct Known {
    data: BTreeMap<DataKey, Entry<Arc<ObjectData>>>,
    services: BTreeMap<ObjectRef, Entry<Arc<ServiceObject>>>,
    endpoints: BTreeMap<ObjectRef, Entry<Arc<[Backend]>>>,
    /// All Services that discovery selects.
    discovered: Entry<BTreeMap<ObjectRef, Arc<ServiceObject>>>,
    changed_data: BTreeSet<DataKey>,
    changes: Changes,
}

impl Store {
    /// `own_namespace` is that of the pod, if this process runs in one.
    pub(crate) fn new(own_namespace: Option<String>) -> Arc<Self> {
        Arc::new(Self {
            own_namespace,
            known: Mutex::default(),
            wanted: watch::Sender::new(Arc::default()),
            writes: watch::Sender::new(0),
            data_changed: Notify::new(),
            changed: Notify::new(),
            hurry: Notify::new(),
        })
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // A panic elsewhere cannot leave it half changed: each change is one insertion.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // === for control and source ===

    /// Follows `wanted` from now on, and forgets what is no longer in it.
    pub(crate) fn follow(&self, wanted: Wanted) {
        let mut known = self.known();
        known.data.retain(|key, _| wanted.data.contains(key));
        known
            .services
            .retain(|key, _| wanted.services.contains(key));
        known
            .endpoints
            .retain(|key, _| wanted.endpoints.contains(key));
        let before = self.wanted.borrow().settings.discovery.clone();
        if before != wanted.settings.discovery {
            known.discovered = Entry::default();
        }
        drop(known);
        self.wanted.send_if_modified(|now| {
            let differs = **now != wanted;
            if differs {
                *now = Arc::new(wanted);
            }
            differs
        });
    }

    /// Ends waits between attempts to reach the API server.
    pub(crate) fn hurry(&self) {
        self.hurry.notify_waiters();
    }

    pub(crate) fn data(&self, key: &DataKey) -> Entry<Arc<ObjectData>> {
        self.known().data.get(key).cloned().unwrap_or_default()
    }

    pub(crate) fn service(&self, object: &ObjectRef) -> Entry<Arc<ServiceObject>> {
        let known = self.known();
        match known.services.get(object) {
            Some(entry) if entry.value.is_some() => entry.clone(),
            entry => match known.discovered.value.as_ref().and_then(Option::as_ref) {
                Some(all) if all.contains_key(object) => Entry {
                    value: Some(all.get(object).cloned()),
                    trouble: known.discovered.trouble.clone(),
                },
                _ => entry.cloned().unwrap_or_default(),
            },
        }
    }

    pub(crate) fn endpoints(&self, service: &ObjectRef) -> Entry<Arc<[Backend]>> {
        self.known()
            .endpoints
            .get(service)
            .cloned()
            .unwrap_or_default()
    }

    /// All Services that discovery selects.
    pub(crate) fn discovered(&self) -> Entry<BTreeMap<ObjectRef, Arc<ServiceObject>>> {
        self.known().discovered.clone()
    }

    /// What a configuration may know of the cluster.
    pub(crate) fn view(&self) -> kubernetes::Cluster {
        let known = self.known();
        let all = known.discovered.value.as_ref().and_then(Option::as_ref);
        let discovered = all.into_iter().flatten();
        let mut services: BTreeMap<ObjectRef, kubernetes::Known> = known
            .services
            .iter()
            .filter_map(|(object, entry)| {
                let service = match entry.value.as_ref()? {
                    Some(service) => kubernetes::Known::Exists(Arc::clone(service)),
                    None => kubernetes::Known::Missing,
                };
                Some((object.clone(), service))
            })
            .collect();
        services.extend(discovered.clone().map(|(object, service)| {
            let service = kubernetes::Known::Exists(Arc::clone(service));
            (object.clone(), service)
        }));
        kubernetes::Cluster {
            own_namespace: self.own_namespace.clone(),
            discovered: discovered.map(|(object, _)| object.clone()).collect(),
            services,
            assumed: BTreeMap::new(),
        }
    }

    /// What is in trouble, with the reason.
    #[cfg(test)]
    pub(crate) fn troubles(&self) -> BTreeMap<Subject, Explained> {
        fn of<'k, K: 'k + Clone, V: 'k>(
            entries: &'k BTreeMap<K, Entry<V>>,
            subject: impl Fn(K) -> Subject + 'k,
        ) -> impl Iterator<Item = (Subject, Explained)> + 'k {
            entries.iter().filter_map(move |(key, entry)| {
                let why = entry.trouble.clone()?;
                Some((subject(key.clone()), why))
            })
        }
        let known = self.known();
        let discovery = known.discovered.trouble.clone();
        of(&known.data, Subject::Data)
            .chain(of(&known.services, Subject::Service))
            .chain(of(&known.endpoints, Subject::Endpoints))
            .chain(discovery.map(|why| (Subject::Discovery, why)))
            .collect()
    }

    /// Waits for changes of objects with certificates, and names them. Cancel-safe: what was not
    /// taken is named next time. For one reader.
    pub(crate) async fn data_changed(&self) {
        loop {
            let notified = self.data_changed.notified();
            if !self.known().changed_data.is_empty() {
                return;
            }
            notified.await;
        }
    }

    /// The objects with certificates that have changed since the last call.
    pub(crate) fn take_changed_data(&self) -> BTreeSet<DataKey> {
        std::mem::take(&mut self.known().changed_data)
    }

    /// Waits until [`Self::take_changes`] has something to tell. Cancel-safe; for one reader.
    pub(crate) async fn changed(&self) {
        loop {
            let notified = self.changed.notified();
            if !self.known().changes.is_empty() {
                return;
            }
            notified.await;
        }
    }

    pub(crate) fn take_changes(&self) -> Changes {
        std::mem::take(&mut self.known().changes)
    }

    /// Waits until all of `wanted` has an answer or trouble, at most for `limit`.
    pub(crate) async fn answered(&self, wanted: &Wanted, limit: Duration) {
        let mut writes = self.writes.subscribe();
        let everything = async {
            while !self.is_answered(wanted) {
                if writes.changed().await.is_err() {
                    return;
                }
            }
        };
        // What is not answered by then says so itself.
        let _ = tokio::time::timeout(limit, everything).await;
    }

    fn is_answered(&self, wanted: &Wanted) -> bool {
        let known = self.known();
        let mut data = wanted.data.iter();
        let mut services = wanted.services.iter();
        let mut endpoints = wanted.endpoints.iter();
        data.all(|key| is_answered(known.data.get(key)))
            && services.all(|key| is_answered(known.services.get(key)))
            && endpoints.all(|key| is_answered(known.endpoints.get(key)))
            && (wanted.settings.discovery.is_none() || is_answered(Some(&known.discovered)))
    }

    // === for kubernetes ===

    /// What is to be followed, now and as it changes.
    pub(crate) fn wanted(&self) -> watch::Receiver<Arc<Wanted>> {
        self.wanted.subscribe()
    }

    /// How much was written so far: what comes in bursts leaves memory behind.
    pub(crate) fn writes(&self) -> u64 {
        *self.writes.borrow()
    }

    /// Completes when somebody asks for fresh news after the call. Cancel-safe.
    pub(crate) async fn hurried(&self) {
        self.hurry.notified().await;
    }

    /// The newest state of an object with certificates; `None`: it does not exist.
    pub(crate) fn put_data(&self, key: DataKey, value: Option<ObjectData>) {
        let mut known = self.known();
        if !self.wanted.borrow().data.contains(&key) {
            return;
        }
        let entry = known.data.entry(key.clone()).or_default();
        let recovered = entry.trouble.take().is_some();
        let differs = match (&entry.value, &value) {
            (Some(Some(old)), Some(new)) => **old != *new,
            (Some(None), None) => false,
            (_, _) => true,
        };
        if differs {
            entry.value = Some(value.map(Arc::new));
            known.changed_data.insert(key);
            self.data_changed.notify_one();
        }
        self.wrote(known, |changes| changes.troubles |= recovered);
    }

    /// The newest state of a Service that is followed by name.
    pub(crate) fn put_service(&self, object: ObjectRef, value: Option<ServiceObject>) {
        let mut known = self.known();
        if !self.wanted.borrow().services.contains(&object) {
            return;
        }
        let entry = known.services.entry(object).or_default();
        let recovered = entry.trouble.take().is_some();
        let value = Some(value.map(Arc::new));
        let differs = entry.value != value;
        entry.value = value;
        self.wrote(known, |changes| {
            changes.services |= differs;
            changes.troubles |= recovered;
        });
    }

    /// All endpoints of a Service, whatever slices they stand in.
    pub(crate) fn put_endpoints(&self, service: ObjectRef, endpoints: impl Into<Arc<[Backend]>>) {
        let mut known = self.known();
        if !self.wanted.borrow().endpoints.contains(&service) {
            return;
        }
        let entry = known.endpoints.entry(service.clone()).or_default();
        let recovered = entry.trouble.take().is_some();
        let value: Option<Option<Arc<[Backend]>>> = Some(Some(endpoints.into()));
        let differs = entry.value != value;
        entry.value = value;
        self.wrote(known, |changes| {
            if differs {
                changes.endpoints.insert(service);
            }
            changes.troubles |= recovered;
        });
    }

    /// All Services that discovery selects, and why those of some namespaces may be missing.
    pub(crate) fn put_discovered(
        &self,
        all: BTreeMap<ObjectRef, Arc<ServiceObject>>,
        trouble: Option<Explained>,
    ) {
        let mut known = self.known();
        if self.wanted.borrow().settings.discovery.is_none() {
            return;
        }
        let troubles = known.discovered.trouble != trouble;
        known.discovered.trouble = trouble;
        let value = Some(Some(all));
        let differs = known.discovered.value != value;
        known.discovered.value = value;
        self.wrote(known, |changes| {
            changes.services |= differs;
            changes.troubles |= troubles;
        });
    }

    /// Why nothing newer is to be had of `subject`. What was known of it stays.
    pub(crate) fn put_trouble(&self, subject: Subject, why: Explained) {
        let mut known = self.known();
        let wanted = self.wanted.borrow();
        let trouble = match &subject {
            Subject::Data(key) if wanted.data.contains(key) => {
                &mut known.data.entry(key.clone()).or_default().trouble
            }
            Subject::Service(object) if wanted.services.contains(object) => {
                &mut known.services.entry(object.clone()).or_default().trouble
            }
            Subject::Endpoints(object) if wanted.endpoints.contains(object) => {
                &mut known.endpoints.entry(object.clone()).or_default().trouble
            }
            Subject::Discovery if wanted.settings.discovery.is_some() => {
                &mut known.discovered.trouble
            }
            _ => return,
        };
        if trouble.as_ref() == Some(&why) {
            return;
        }
        *trouble = Some(why);
        drop(wanted);
        // A source that was never read says why by its reading.
        if let Subject::Data(key) = subject
            && known
                .data
                .get(&key)
                .is_some_and(|entry| entry.value.is_none())
        {
            known.changed_data.insert(key);
            self.data_changed.notify_one();
        }
        self.wrote(known, |changes| changes.troubles = true);
    }

    /// News of `subject` are to be had again, and there are none.
    pub(crate) fn clear_trouble(&self, subject: &Subject) {
        let mut known = self.known();
        let trouble = match subject {
            Subject::Data(key) => known.data.get_mut(key).map(|it| &mut it.trouble),
            Subject::Service(object) => known.services.get_mut(object).map(|it| &mut it.trouble),
            Subject::Endpoints(object) => known.endpoints.get_mut(object).map(|it| &mut it.trouble),
            Subject::Discovery => Some(&mut known.discovered.trouble),
        };
        if trouble.is_some_and(|trouble| trouble.take().is_some()) {
            self.wrote(known, |changes| changes.troubles = true);
        }
    }

    /// Whether there is an answer about `subject`, or trouble.
    pub(crate) fn is_known(&self, subject: &Subject) -> bool {
        let known = self.known();
        match subject {
            Subject::Data(key) => is_answered(known.data.get(key)),
            Subject::Service(object) => is_answered(known.services.get(object)),
            Subject::Endpoints(object) => is_answered(known.endpoints.get(object)),
            Subject::Discovery => is_answered(Some(&known.discovered)),
        }
    }

    fn wrote(&self, mut known: MutexGuard<'_, Known>, change: impl FnOnce(&mut Changes)) {
        change(&mut known.changes);
        let tell = !known.changes.is_empty();
        drop(known);
        if tell {
            self.changed.notify_one();
        }
        self.writes.send_modify(|writes| *writes += 1);
    }
}

fn is_answered<T>(entry: Option<&Entry<T>>) -> bool {
    entry.is_some_and(|entry| entry.value.is_some() || entry.trouble.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Reason;

    fn secret(name: &str) -> DataKey {
        DataKey::Secret(ObjectRef::new("payments", name))
    }

    fn data(text: &str) -> ObjectData {
        let bytes = Zeroizing::new(text.as_bytes().to_vec());
        ObjectData {
            uid: "1".into(),
            kind: "kubernetes.io/tls".into(),
            entries: [("tls.crt".to_owned(), bytes)].into(),
        }
    }

    fn store(names: &[&str]) -> Arc<Store> {
        let store = Store::new(Some("payments".into()));
        store.follow(Wanted {
            data: names.iter().map(|name| secret(name)).collect(),
            endpoints: [ObjectRef::new("payments", "billing")].into(),
            ..Wanted::default()
        });
        store
    }

    fn trouble() -> Explained {
        Explained::new(Reason::ApiUnavailable, "away")
    }

    #[test]
    fn what_is_not_wanted_is_neither_kept_nor_told() {
        let store = store(&["billing"]);
        store.put_data(secret("other"), Some(data("1")));
        store.put_trouble(Subject::Data(secret("other")), trouble());
        assert_eq!(store.data(&secret("other")), Entry::default());
        assert!(store.take_changed_data().is_empty() && store.take_changes().is_empty());

        store.put_data(secret("billing"), Some(data("1")));
        assert_eq!(store.take_changed_data(), [secret("billing")].into());
        store.follow(Wanted::default());
        assert_eq!(store.data(&secret("billing")), Entry::default());
    }

    #[test]
    fn equal_news_is_no_news_but_ends_trouble() {
        let store = store(&["billing"]);
        store.put_data(secret("billing"), Some(data("1")));
        store.take_changed_data();
        store.put_trouble(Subject::Data(secret("billing")), trouble());
        assert!(store.take_changes().troubles);
        // What was known stays, beside the trouble.
        let entry = store.data(&secret("billing"));
        assert!(entry.value.flatten().is_some() && entry.trouble.is_some());
        assert!(store.take_changed_data().is_empty());

        store.put_data(secret("billing"), Some(data("1")));
        assert!(store.data(&secret("billing")).trouble.is_none());
        assert!(store.take_changes().troubles);
        assert!(store.take_changed_data().is_empty());
        store.put_data(secret("billing"), Some(data("2")));
        assert_eq!(store.take_changed_data(), [secret("billing")].into());
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_waited_for_and_so_is_trouble_but_not_for_ever() {
        let store = store(&["a", "b"]);
        let wanted = Wanted {
            data: [secret("a"), secret("b")].into(),
            ..Wanted::default()
        };
        let limit = Duration::from_secs(5);
        let begun = tokio::time::Instant::now();
        store.answered(&wanted, limit).await;
        assert_eq!(begun.elapsed(), limit);

        let begun = tokio::time::Instant::now();
        tokio::join!(store.answered(&wanted, limit), async {
            store.put_data(secret("a"), None);
            tokio::task::yield_now().await;
            store.put_trouble(Subject::Data(secret("b")), trouble());
        });
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }

    #[tokio::test]
    async fn whoever_waits_for_changes_is_woken_by_each_kind() {
        let store = store(&["a"]);
        tokio::join!(store.data_changed(), async {
            store.put_data(secret("a"), Some(data("1")));
        });
        let service = ObjectRef::new("payments", "billing");
        tokio::join!(store.changed(), async {
            store.put_endpoints(service.clone(), Vec::new());
        });
        let changes = store.take_changes();
        assert_eq!(changes.endpoints, [service].into());
        assert!(store.take_changes().is_empty());
    }

    #[test]
    fn no_bytes_stand_in_debug_text() {
        let text = format!("{:?}", data("SECRET"));
        assert!(
            !text.contains("SECRET") && text.contains("tls.crt"),
            "{text}"
        );
    }
}
