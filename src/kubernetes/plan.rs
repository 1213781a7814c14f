//! Which watches follow what is wanted. Decides without I/O.
//!
//! Each watch is a connection, on both sides, so what may be read together is watched together
//! once there is much of it. EndpointSlices cost no rights by that: a role cannot be limited to
//! the slices of one Service. Secrets and ConfigMaps would, and are watched one by one unless
//! `kubernetes.secrets` says otherwise.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::collect::{
    self, Collect, Discovered, DiscoveredKeep, EndpointKeep, Filter, Scope, ServiceKeep,
};
use super::target::{Select, Target};
use super::wire::SERVICE_NAME;
use crate::cluster::{DataKey, SERVICES_BY_NAME, Store, Subject, Wanted};
use crate::config::kubernetes::{Namespaces, ObjectRef, SecretWatch};

/// With more Services than this in one namespace, one watch follows all EndpointSlices of it; with
/// so few that a change back would not come at once, each Service has its own again.
const SLICES_TOGETHER_FROM: usize = 5;
const SLICES_APART_UNTIL: usize = 2;

/// Objects in one page of a list. A Service has some 2 KB of JSON, a slice of 100 endpoints 40 KB,
/// a Secret up to 1.4 MB.
const PAGE: u32 = 500;
const PAGE_OF_DATA: u32 = 50;

/// Objects that are watched by name or namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum DataKind {
    Secrets,
    ConfigMaps,
}

/// One watch.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Watch {
    /// One object.
    Data(DataKey),
    /// The objects of a namespace.
    DataOf(DataKind, String),
    /// One Service.
    Service(ObjectRef),
    /// The Services of a namespace.
    ServicesOf(String),
    /// The EndpointSlices of one Service.
    Slices(ObjectRef),
    /// All EndpointSlices.
    SlicesOf(Scope),
    /// Services that match a selector, for discovery.
    Discovery(Scope, Option<String>),
}

/// The watches that follow `wanted`, when those of `running` are there already.
pub(super) fn plan(wanted: &Wanted, running: impl Fn(&Watch) -> bool) -> BTreeMap<Watch, Filter> {
    let mut plan: BTreeMap<Watch, Filter> = BTreeMap::new();
    let together = wanted.settings.secrets == SecretWatch::Namespace;
    for key in &wanted.data {
        let watch = match key {
            DataKey::Secret(object) if together => {
                Watch::DataOf(DataKind::Secrets, object.namespace.clone())
            }
            DataKey::ConfigMap(object) if together => {
                Watch::DataOf(DataKind::ConfigMaps, object.namespace.clone())
            }
            key => Watch::Data(key.clone()),
        };
        plan.entry(watch).or_default().data.push(key.clone());
    }

    for (namespace, services) in by_namespace(&wanted.services) {
        if services.len() > SERVICES_BY_NAME {
            let filter = plan.entry(Watch::ServicesOf(namespace)).or_default();
            filter.services = services.into_iter().collect();
        } else {
            for service in services {
                let filter = plan.entry(Watch::Service(service.clone())).or_default();
                filter.services.push(service);
            }
        }
    }

    let discovery = wanted.settings.discovery.as_ref();
    let everywhere = discovery.is_some_and(|it| it.namespaces == Namespaces::All);
    for (namespace, services) in by_namespace(&wanted.endpoints) {
        let watch = if everywhere {
            Watch::SlicesOf(None)
        } else {
            Watch::SlicesOf(Some(namespace))
        };
        let many = services.len() >= SLICES_TOGETHER_FROM
            || services.len() > SLICES_APART_UNTIL && running(&watch);
        if everywhere || many {
            plan.entry(watch).or_default().services.extend(services);
        } else {
            for service in services {
                let filter = plan.entry(Watch::Slices(service.clone())).or_default();
                filter.services.push(service);
            }
        }
    }

    if let Some(discovery) = discovery {
        for scope in scopes(&discovery.namespaces) {
            let watch = Watch::Discovery(scope, discovery.selector.clone());
            plan.insert(watch, Filter::default());
        }
    }
    plan
}

/// The watches that discovery needs.
pub(super) fn scopes(namespaces: &Namespaces) -> BTreeSet<Scope> {
    match namespaces {
        Namespaces::All => BTreeSet::from([None]),
        Namespaces::These(these) => these.iter().cloned().map(Some).collect(),
    }
}

fn by_namespace(objects: &BTreeSet<ObjectRef>) -> BTreeMap<String, BTreeSet<ObjectRef>> {
    let mut by_namespace: BTreeMap<String, BTreeSet<ObjectRef>> = BTreeMap::new();
    for object in objects {
        let namespace = by_namespace.entry(object.namespace.clone()).or_default();
        namespace.insert(object.clone());
    }
    by_namespace
}

impl Watch {
    /// What it asks the API server for.
    pub(super) fn target(&self) -> Target {
        let core = |resource, kind, namespace: &str, select, page| Target {
            resource,
            kind,
            versions: &["/api/v1"],
            namespace: Some(namespace.to_owned()),
            select,
            page,
        };
        let slices = |namespace, selector| Target {
            resource: "endpointslices",
            kind: "EndpointSlices",
            versions: &["/apis/discovery.k8s.io/v1"],
            namespace,
            select: Select::Labels(selector),
            page: PAGE,
        };
        match self {
            Self::Data(DataKey::Secret(object)) => {
                let select = Select::Name(object.name.clone());
                core("secrets", "Secrets", &object.namespace, select, 0)
            }
            Self::Data(DataKey::ConfigMap(object)) => {
                let select = Select::Name(object.name.clone());
                core("configmaps", "ConfigMaps", &object.namespace, select, 0)
            }
            Self::Data(DataKey::TrustBundle(name)) => Target {
                resource: "clustertrustbundles",
                kind: "ClusterTrustBundles",
                versions: &[
                    "/apis/certificates.k8s.io/v1",
                    "/apis/certificates.k8s.io/v1beta1",
                    "/apis/certificates.k8s.io/v1alpha1",
                ],
                namespace: None,
                select: Select::Name(name.clone()),
                page: 0,
            },
            Self::DataOf(DataKind::Secrets, namespace) => {
                core("secrets", "Secrets", namespace, Select::All, PAGE_OF_DATA)
            }
            Self::DataOf(DataKind::ConfigMaps, namespace) => core(
                "configmaps",
                "ConfigMaps",
                namespace,
                Select::All,
                PAGE_OF_DATA,
            ),
            Self::Service(object) => {
                let select = Select::Name(object.name.clone());
                core("services", "Services", &object.namespace, select, 0)
            }
            Self::ServicesOf(namespace) => {
                core("services", "Services", namespace, Select::All, PAGE)
            }
            Self::Slices(service) => {
                let namespace = Some(service.namespace.clone());
                slices(namespace, format!("{SERVICE_NAME}={}", service.name))
            }
            Self::SlicesOf(scope) => slices(scope.clone(), SERVICE_NAME.to_owned()),
            Self::Discovery(scope, selector) => Target {
                resource: "services",
                kind: "Services",
                versions: &["/api/v1"],
                namespace: scope.clone(),
                select: match selector {
                    Some(selector) => Select::Labels(selector.clone()),
                    None => Select::All,
                },
                page: PAGE,
            },
        }
    }

    /// What is known by it.
    pub(super) fn subjects(&self, filter: &Filter) -> impl Iterator<Item = Subject> {
        let data = filter.data.iter().cloned().map(Subject::Data);
        let (services, endpoints) = match self {
            Self::Slices(_) | Self::SlicesOf(_) => (None, Some(&filter.services)),
            _ => (Some(&filter.services), None),
        };
        let services = services.into_iter().flatten().cloned();
        let endpoints = endpoints.into_iter().flatten().cloned();
        let discovery = match self {
            Self::Discovery(..) => Some(Subject::Discovery),
            _ => None,
        };
        data.chain(services.map(Subject::Service))
            .chain(endpoints.map(Subject::Endpoints))
            .chain(discovery)
    }

    /// What becomes of what it brings.
    pub(super) fn collect(
        &self,
        filter: Arc<Filter>,
        store: &Arc<Store>,
        found: &Arc<Discovered>,
    ) -> Box<dyn Collect> {
        let store = Arc::clone(store);
        match self {
            Self::Data(DataKey::Secret(_)) | Self::DataOf(DataKind::Secrets, _) => {
                Box::new(collect::secrets(store, filter))
            }
            Self::Data(DataKey::ConfigMap(_)) | Self::DataOf(DataKind::ConfigMaps, _) => {
                Box::new(collect::config_maps(store, filter))
            }
            Self::Data(DataKey::TrustBundle(_)) => Box::new(collect::trust_bundles(store, filter)),
            Self::Service(_) | Self::ServicesOf(_) => Box::new(ServiceKeep::new(store, filter)),
            Self::Slices(_) | Self::SlicesOf(_) => Box::new(EndpointKeep::new(store, filter)),
            Self::Discovery(scope, _) => {
                Box::new(DiscoveredKeep::new(Arc::clone(found), scope.clone()))
            }
        }
    }
}

#[cfg(test)]
mod tests;
