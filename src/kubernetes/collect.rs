//! What becomes of the objects that a watch brings: into the store, as plain values.
//!
//! A list replaces what was known in one step for each object: what it holds is put as it comes,
//! and what it does not hold is gone once it is complete, not before.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::info;

use super::wire::{self, Bookmark, Carried, EventKind, List, ListMeta, Object, Status};
use crate::cluster::{Backend, DataKey, ObjectData, Store, Subject};
use crate::config::kubernetes::{ObjectRef, ServiceObject};
use crate::failure::Explained;

/// By this annotation a Service is discovered.
const LISTEN: &str = "tlsward/listen";

/// What is wanted of what a watch brings. Thousands of watches are for one object each.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Filter {
    /// Sorted.
    pub(super) data: Vec<DataKey>,
    /// Services, or those whose endpoints are wanted; sorted.
    pub(super) services: Vec<ObjectRef>,
}

impl Filter {
    fn has_data(&self, key: &DataKey) -> bool {
        self.data.binary_search(key).is_ok()
    }

    fn has_service(&self, object: &ObjectRef) -> bool {
        self.services.binary_search(object).is_ok()
    }
}

/// What a line of a watch was.
#[derive(Debug)]
pub(super) enum Line {
    /// An object has changed, or only the version has: go on from here.
    Version(String),
    /// The server ends the watch for this reason.
    Failed(Status),
    /// Of a kind that nobody knows.
    Other,
}

/// Takes in the JSON of one watch.
pub(super) trait Collect: Send {
    /// A list begins.
    fn begin(&mut self);
    /// A page of it.
    fn page(&mut self, json: &[u8]) -> serde_json::Result<ListMeta>;
    /// It is complete.
    fn complete(&mut self);
    /// A line of the watch.
    fn line(&mut self, json: &[u8]) -> serde_json::Result<Line>;
    /// Why nothing newer is to be had.
    fn trouble(&self, why: &Explained);
    /// It is to be had again.
    fn fine(&self);
}

/// What is done with objects of one kind.
pub(super) trait Keep: Send {
    type Object: Object;
    fn begin(&mut self);
    /// An object of a list.
    fn listed(&mut self, object: Self::Object);
    fn complete(&mut self);
    /// A new object, or a new state of one.
    fn changed(&mut self, object: Self::Object);
    fn deleted(&mut self, object: Self::Object);
    fn trouble(&self, why: &Explained);
    fn fine(&self);
}

impl<K: Keep> Collect for K {
    fn begin(&mut self) {
        Keep::begin(self);
    }

    fn page(&mut self, json: &[u8]) -> serde_json::Result<ListMeta> {
        let list: List<K::Object> = serde_json::from_slice(json)?;
        for object in list.items.into_iter().flatten() {
            self.listed(object);
        }
        Ok(list.metadata)
    }

    fn complete(&mut self) {
        Keep::complete(self);
    }

    fn line(&mut self, json: &[u8]) -> serde_json::Result<Line> {
        let EventKind { kind } = serde_json::from_slice(json)?;
        let object = || -> serde_json::Result<(K::Object, String)> {
            let Carried::<K::Object> { object } = serde_json::from_slice(json)?;
            let version = object.meta().resource_version.clone();
            Ok((object, version))
        };
        Ok(match kind.as_str() {
            "ADDED" | "MODIFIED" => {
                let (object, version) = object()?;
                self.changed(object);
                Line::Version(version)
            }
            "DELETED" => {
                let (object, version) = object()?;
                self.deleted(object);
                Line::Version(version)
            }
            "BOOKMARK" => {
                let Carried::<Bookmark> { object } = serde_json::from_slice(json)?;
                Line::Version(object.metadata.resource_version)
            }
            "ERROR" => {
                let Carried::<Status> { object } = serde_json::from_slice(json)?;
                Line::Failed(object)
            }
            _ => Line::Other,
        })
    }

    fn trouble(&self, why: &Explained) {
        Keep::trouble(self, why);
    }

    fn fine(&self) {
        Keep::fine(self);
    }
}

/// Objects with certificates and keys.
pub(super) struct DataKeep<T> {
    store: Arc<Store>,
    key: fn(&T) -> DataKey,
    data: fn(T) -> ObjectData,
    wanted: Arc<Filter>,
    seen: BTreeSet<DataKey>,
}

pub(super) fn secrets(store: Arc<Store>, wanted: Arc<Filter>) -> DataKeep<wire::Secret> {
    let key = |secret: &wire::Secret| DataKey::Secret(secret.meta().object());
    DataKeep::new(store, wanted, key, wire::Secret::into_data)
}

pub(super) fn config_maps(store: Arc<Store>, wanted: Arc<Filter>) -> DataKeep<wire::ConfigMap> {
    let key = |map: &wire::ConfigMap| DataKey::ConfigMap(map.meta().object());
    DataKeep::new(store, wanted, key, wire::ConfigMap::into_data)
}

pub(super) fn trust_bundles(store: Arc<Store>, wanted: Arc<Filter>) -> DataKeep<wire::TrustBundle> {
    let key = |bundle: &wire::TrustBundle| DataKey::TrustBundle(bundle.meta().name.clone());
    DataKeep::new(store, wanted, key, wire::TrustBundle::into_data)
}

impl<T> DataKeep<T> {
    fn new(
        store: Arc<Store>,
        wanted: Arc<Filter>,
        key: fn(&T) -> DataKey,
        data: fn(T) -> ObjectData,
    ) -> Self {
        Self {
            store,
            key,
            data,
            wanted,
            seen: BTreeSet::new(),
        }
    }
}

impl<T: Object> Keep for DataKeep<T> {
    type Object = T;

    fn begin(&mut self) {
        self.seen.clear();
    }

    fn listed(&mut self, object: T) {
        let key = (self.key)(&object);
        if self.wanted.has_data(&key) {
            self.store.put_data(key.clone(), Some((self.data)(object)));
            self.seen.insert(key);
        }
    }

    fn complete(&mut self) {
        let seen = std::mem::take(&mut self.seen);
        for key in self.wanted.data.iter().filter(|key| !seen.contains(key)) {
            self.store.put_data(key.clone(), None);
        }
    }

    fn changed(&mut self, object: T) {
        let key = (self.key)(&object);
        if self.wanted.has_data(&key) {
            self.store.put_data(key, Some((self.data)(object)));
        }
    }

    fn deleted(&mut self, object: T) {
        let key = (self.key)(&object);
        if self.wanted.has_data(&key) {
            self.store.put_data(key, None);
        }
    }

    fn trouble(&self, why: &Explained) {
        for key in &self.wanted.data {
            let subject = Subject::Data(key.clone());
            self.store.put_trouble(subject, why.clone());
        }
    }

    fn fine(&self) {
        for key in &self.wanted.data {
            self.store.clear_trouble(&Subject::Data(key.clone()));
        }
    }
}

/// Services that are followed by name.
pub(super) struct ServiceKeep {
    store: Arc<Store>,
    wanted: Arc<Filter>,
    seen: BTreeSet<ObjectRef>,
}

impl ServiceKeep {
    pub(super) fn new(store: Arc<Store>, wanted: Arc<Filter>) -> Self {
        Self {
            store,
            wanted,
            seen: BTreeSet::new(),
        }
    }
}

impl Keep for ServiceKeep {
    type Object = wire::Service;

    fn begin(&mut self) {
        self.seen.clear();
    }

    fn listed(&mut self, service: wire::Service) {
        self.seen.insert(service.meta().object());
        self.changed(service);
    }

    fn complete(&mut self) {
        let seen = std::mem::take(&mut self.seen);
        let wanted = self.wanted.services.iter();
        for object in wanted.filter(|object| !seen.contains(object)) {
            self.store.put_service(object.clone(), None);
        }
    }

    fn changed(&mut self, service: wire::Service) {
        let object = service.meta().object();
        if self.wanted.has_service(&object) {
            self.store.put_service(object, Some(service.into_object()));
        }
    }

    fn deleted(&mut self, service: wire::Service) {
        let object = service.meta().object();
        if self.wanted.has_service(&object) {
            self.store.put_service(object, None);
        }
    }

    fn trouble(&self, why: &Explained) {
        for object in &self.wanted.services {
            let subject = Subject::Service(object.clone());
            self.store.put_trouble(subject, why.clone());
        }
    }

    fn fine(&self) {
        for object in &self.wanted.services {
            self.store.clear_trouble(&Subject::Service(object.clone()));
        }
    }
}

/// The slices of each Service, by their names.
type Slices = BTreeMap<ObjectRef, BTreeMap<String, Arc<[Backend]>>>;

/// EndpointSlices, which are joined for each Service.
pub(super) struct EndpointKeep {
    store: Arc<Store>,
    wanted: Arc<Filter>,
    slices: Slices,
    /// Those of the list that is coming in.
    listed: Slices,
    /// That there are slices of names was said.
    fqdn_said: bool,
}

impl EndpointKeep {
    pub(super) fn new(store: Arc<Store>, wanted: Arc<Filter>) -> Self {
        Self {
            store,
            wanted,
            slices: Slices::new(),
            listed: Slices::new(),
            fqdn_said: false,
        }
    }

    fn put(&self, service: &ObjectRef) {
        let mut slices = self
            .slices
            .get(service)
            .into_iter()
            .flat_map(BTreeMap::values);
        let first = slices
            .next()
            .map_or_else(|| Arc::new([]) as Arc<[_]>, Arc::clone);
        let mut more = slices.peekable();
        // Most Services have one slice, which then lies here and there but once.
        let backends = match more.peek() {
            None => first,
            Some(_) => {
                let more = more.flat_map(|slice| slice.iter());
                first.iter().chain(more).cloned().collect()
            }
        };
        self.store.put_endpoints(service.clone(), backends);
    }

    /// The service, the slice's name and its endpoints, if it is of a Service that is wanted.
    fn read(&mut self, slice: wire::Slice) -> Option<(ObjectRef, String, Arc<[Backend]>)> {
        let service = slice.service()?;
        if !self.wanted.has_service(&service) {
            return None;
        }
        let name = slice.meta().name.clone();
        if slice.is_fqdn() {
            if !std::mem::replace(&mut self.fqdn_said, true) {
                info!(%service, slice = name, "EndpointSlices of type FQDN are left out");
            }
            return None;
        }
        Some((service, name, slice.into_backends().into()))
    }

    /// Takes a slice away, from whatever Service it belongs to.
    fn remove(&mut self, slice: &ObjectRef, but: Option<&ObjectRef>) {
        let mut lost = Vec::new();
        for (service, slices) in &mut self.slices {
            if service.namespace == slice.namespace
                && Some(service) != but
                && slices.remove(&slice.name).is_some()
            {
                lost.push(service.clone());
            }
        }
        for service in lost {
            self.put(&service);
        }
    }
}

impl Keep for EndpointKeep {
    type Object = wire::Slice;

    fn begin(&mut self) {
        self.listed.clear();
    }

    fn listed(&mut self, slice: wire::Slice) {
        if let Some((service, name, backends)) = self.read(slice) {
            let slices = self.listed.entry(service).or_default();
            slices.insert(name, backends);
        }
    }

    fn complete(&mut self) {
        self.slices = std::mem::take(&mut self.listed);
        for service in &self.wanted.services {
            self.put(service);
        }
    }

    fn changed(&mut self, slice: wire::Slice) {
        let object = slice.meta().object();
        let read = self.read(slice);
        // Its label may have been changed to another Service.
        self.remove(&object, read.as_ref().map(|(service, ..)| service));
        if let Some((service, name, backends)) = read {
            let slices = self.slices.entry(service.clone()).or_default();
            slices.insert(name, backends);
            self.put(&service);
        }
    }

    fn deleted(&mut self, slice: wire::Slice) {
        self.remove(&slice.meta().object(), None);
    }

    fn trouble(&self, why: &Explained) {
        for service in &self.wanted.services {
            let subject = Subject::Endpoints(service.clone());
            self.store.put_trouble(subject, why.clone());
        }
    }

    fn fine(&self) {
        for service in &self.wanted.services {
            let subject = Subject::Endpoints(service.clone());
            self.store.clear_trouble(&subject);
        }
    }
}

/// The namespaces of a watch for discovery: one, or all.
pub(super) type Scope = Option<String>;

/// What all watches for discovery have found together.
#[derive(Debug)]
pub(super) struct Discovered {
    store: Arc<Store>,
    parts: Mutex<BTreeMap<Scope, Part>>,
}

#[derive(Debug, Default)]
struct Part {
    /// `None`: not known yet.
    services: Option<Services>,
    trouble: Option<Explained>,
}

type Services = BTreeMap<ObjectRef, Arc<ServiceObject>>;

impl Discovered {
    pub(super) fn new(store: Arc<Store>) -> Self {
        Self {
            store,
            parts: Mutex::default(),
        }
    }

    fn parts(&self) -> MutexGuard<'_, BTreeMap<Scope, Part>> {
        // Each change is one assignment, so a panic elsewhere cannot leave it half made.
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These are the namespaces from now on; what was found in others is forgotten.
    pub(super) fn cover(&self, scopes: &BTreeSet<Scope>) {
        let mut parts = self.parts();
        let before = parts.len();
        parts.retain(|scope, _| scopes.contains(scope));
        let fewer = parts.len() < before;
        for scope in scopes {
            parts.entry(scope.clone()).or_default();
        }
        if fewer {
            self.publish(&parts);
        }
    }

    /// What was found is of another selector.
    pub(super) fn forget(&self) {
        self.parts().clear();
    }

    fn change(&self, scope: &Scope, change: impl FnOnce(&mut Part)) {
        let mut parts = self.parts();
        // A watch that is about to be ended may still have something to say.
        if let Some(part) = parts.get_mut(scope) {
            change(part);
            self.publish(&parts);
        }
    }

    /// All of it or nothing: with a namespace that has not answered yet, or never could, its
    /// Services are unknown, not gone.
    fn publish(&self, parts: &BTreeMap<Scope, Part>) {
        let mut troubles = parts.values().filter_map(|part| part.trouble.as_ref());
        let trouble = troubles.next();
        let answered = |part: &Part| part.services.is_some() || part.trouble.is_some();
        let known = || parts.values().filter_map(|part| part.services.as_ref());
        if !parts.values().all(answered) {
            return;
        }
        if known().next().is_some() {
            let all = known().flat_map(|services| services.iter());
            let all = all.map(|(object, service)| (object.clone(), Arc::clone(service)));
            self.store.put_discovered(all.collect(), trouble.cloned());
        } else if let Some(why) = trouble {
            self.store.put_trouble(Subject::Discovery, why.clone());
        }
    }
}

/// Services that are discovered in one namespace, or in all.
pub(super) struct DiscoveredKeep {
    found: Arc<Discovered>,
    scope: Scope,
    services: Services,
    listed: Services,
}

impl DiscoveredKeep {
    pub(super) fn new(found: Arc<Discovered>, scope: Scope) -> Self {
        Self {
            found,
            scope,
            services: Services::new(),
            listed: Services::new(),
        }
    }

    fn publish(&self) {
        self.found.change(&self.scope, |part| {
            part.services = Some(self.services.clone());
            part.trouble = None;
        });
    }
}

impl Keep for DiscoveredKeep {
    type Object = wire::Service;

    fn begin(&mut self) {
        self.listed.clear();
    }

    fn listed(&mut self, service: wire::Service) {
        if service.has_annotation(LISTEN) {
            let service = service.into_object();
            self.listed
                .insert(service.object.clone(), Arc::new(service));
        }
    }

    fn complete(&mut self) {
        self.services = std::mem::take(&mut self.listed);
        self.publish();
    }

    fn changed(&mut self, service: wire::Service) {
        if !service.has_annotation(LISTEN) {
            return self.deleted(service);
        }
        let service = Arc::new(service.into_object());
        let object = service.object.clone();
        let old = self.services.insert(object, Arc::clone(&service));
        // Most changes of a Service are in what nobody here reads.
        if old.is_none_or(|old| old != service) {
            self.publish();
        }
    }

    fn deleted(&mut self, service: wire::Service) {
        if self.services.remove(&service.meta().object()).is_some() {
            self.publish();
        }
    }

    fn trouble(&self, why: &Explained) {
        self.found
            .change(&self.scope, |part| part.trouble = Some(why.clone()));
    }

    fn fine(&self) {
        self.found.change(&self.scope, |part| part.trouble = None);
    }
}

#[cfg(test)]
mod tests;
