//! `tlsward rbac`: what a configuration needs of the Kubernetes API, as the roles that allow it
//! and nothing more.
//!
//! [`Needs::of`] finds out, [`Roles`] says it; neither asks anybody. That list and watch can be
//! limited to one object by `resourceNames` where the request names it by a field selector is
//! documented in "Using RBAC Authorization", "Referring to resources".

use std::collections::{BTreeMap, BTreeSet};

use crate::cluster::SERVICES_BY_NAME;
use crate::config::kubernetes::{CaObject, Discovery, Namespaces, ObjectRef, SecretWatch};
use crate::config::{CaSource, Config, IdentitySource, Obstacle, Service, ServiceName, Upstream};

mod roles;

pub(crate) use roles::Roles;

/// What is asked of the API server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Needs {
    namespaces: BTreeMap<String, Namespaced>,
    everywhere: Everywhere,
    /// What could not be found out, and what to know beside the rules.
    notes: Vec<String>,
}

/// In one namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Namespaced {
    secrets: Objects,
    config_maps: Objects,
    services: Objects,
    /// EndpointSlices: of whom. Empty: they are not needed.
    slices: BTreeSet<String>,
    events: bool,
}

/// In all namespaces, or of objects that are in none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Everywhere {
    services: bool,
    slices: bool,
    events: bool,
    /// ClusterTrustBundles by name: what for.
    trust_bundles: BTreeMap<String, BTreeSet<String>>,
}

/// Objects of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Objects {
    /// By name: what for.
    named: BTreeMap<String, BTreeSet<String>>,
    /// They are read all together, for this reason.
    together: Option<String>,
}

impl Objects {
    fn name(&mut self, name: &str, what_for: String) {
        self.named
            .entry(name.to_owned())
            .or_default()
            .insert(what_for);
    }
}

impl Needs {
    /// What `config` needs. `offline`: nothing was asked of the cluster, so what annotations say
    /// is missing.
    pub(crate) fn of(config: &Config, offline: bool) -> Self {
        let mut needs = Self::default();
        for service in config.services.values() {
            needs.add_service(config, service);
        }
        for (name, object) in &config.backends {
            needs.add_backend(config, name, object);
        }
        for (name, unbuilt) in &config.unbuilt {
            needs.slices_of(name, &unbuilt.object);
            needs.note_unbuilt(name, &unbuilt.object, &unbuilt.obstacle);
        }
        if let Some(discovery) = &config.kubernetes.discovery {
            needs.add_discovery(config, discovery);
        }
        needs.widen(config);
        if offline {
            needs.note_what_is_missing(config);
        }
        needs
    }

    /// Whether no rights are needed.
    pub(crate) fn is_empty(&self) -> bool {
        self.namespaces.is_empty() && self.everywhere == Everywhere::default()
    }

    fn add_service(&mut self, config: &Config, service: &Service) {
        let name = &service.name;
        let why = |what: &str, key: &str| {
            let origins = config.origins.0.get(name);
            match origins.and_then(|origins| origins.get(key)) {
                Some(origin) => format!("{what} of {name} ({})", config.origin(name, origin)),
                None => format!("{what} of {name}"),
            }
        };
        if let Some(IdentitySource::Secret(secret)) = &service.identity {
            let namespace = self.namespace(&secret.namespace);
            namespace
                .secrets
                .name(&secret.name, why("identity", "tls.secret"));
            namespace.events |= config.kubernetes.events;
        }
        if let Some(CaSource::Objects(objects)) = service.ca() {
            let why = why("CA certificates", "tls.ca");
            for object in objects {
                match object {
                    CaObject::Secret { object, .. } => {
                        let secrets = &mut self.namespace(&object.namespace).secrets;
                        secrets.name(&object.name, why.clone());
                    }
                    CaObject::ConfigMap { object, .. } => {
                        let config_maps = &mut self.namespace(&object.namespace).config_maps;
                        config_maps.name(&object.name, why.clone());
                    }
                    CaObject::TrustBundle { name } => {
                        let bundles = &mut self.everywhere.trust_bundles;
                        bundles.entry(name.clone()).or_default().insert(why.clone());
                    }
                }
            }
        }
        if let Upstream::Service(backend) = &service.upstream {
            self.slices_of(name, &backend.service);
        }
    }

    /// The Service behind a service: its annotations and ports, and Events on it.
    fn add_backend(&mut self, config: &Config, name: &ServiceName, object: &ObjectRef) {
        let namespace = self.namespace(&object.namespace);
        namespace.events |= config.kubernetes.events;
        // Discovery tells of those that it finds.
        if !config.is_discovered(name) {
            let what_for = format!("upstream of {name}");
            namespace.services.name(&object.name, what_for);
        }
    }

    fn slices_of(&mut self, name: &ServiceName, object: &ObjectRef) {
        let slices = &mut self.namespace(&object.namespace).slices;
        slices.insert(name.to_string());
    }

    fn add_discovery(&mut self, config: &Config, discovery: &Discovery) {
        match &discovery.namespaces {
            Namespaces::All => {
                self.everywhere.services = true;
                self.everywhere.slices = true;
                self.everywhere.events = config.kubernetes.events;
            }
            Namespaces::These(these) => {
                for namespace in these {
                    let needs = self.namespace(namespace);
                    needs.services.together = Some("discovery".to_owned());
                    needs.slices.insert("discovered Services".to_owned());
                    needs.events |= config.kubernetes.events;
                    if config.kubernetes.secrets == SecretWatch::Namespace {
                        needs.secrets.together = Some(TOGETHER.to_owned());
                        needs.config_maps.together = Some(TOGETHER.to_owned());
                    }
                }
            }
        }
    }

    /// Where the configuration, or the number of objects, has them read all together.
    fn widen(&mut self, config: &Config) {
        for needs in self.namespaces.values_mut() {
            if config.kubernetes.secrets == SecretWatch::Namespace {
                for objects in [&mut needs.secrets, &mut needs.config_maps] {
                    if !objects.named.is_empty() {
                        objects.together = Some(TOGETHER.to_owned());
                    }
                }
            }
            let many = needs.services.named.len();
            if many > SERVICES_BY_NAME && needs.services.together.is_none() {
                needs.services.together = Some(format!(
                    "{many} Services are upstreams, and more than {SERVICES_BY_NAME} are watched together"
                ));
            }
            // What may be read everywhere may be read here.
            if self.everywhere.services {
                needs.services = Objects::default();
            }
            if self.everywhere.slices {
                needs.slices.clear();
            }
            needs.events &= !self.everywhere.events;
        }
        self.namespaces
            .retain(|_, needs| *needs != Namespaced::default());
    }

    fn note_unbuilt(&mut self, name: &ServiceName, object: &ObjectRef, obstacle: &Obstacle) {
        let why = match obstacle {
            Obstacle::Unknown => "nothing is known of it".to_owned(),
            Obstacle::Missing => "it does not exist yet".to_owned(),
            Obstacle::Mistakes(problems) => {
                let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
                problems.join("; ")
            }
            Obstacle::ListenerTaken { by } => format!("service {by} has its listener"),
        };
        self.notes.push(format!(
            "service {name} cannot be built of Service {object}, so the Secrets and ConfigMaps that \
             it would need are missing here: {why}"
        ));
    }

    fn note_what_is_missing(&mut self, config: &Config) {
        let file_alone = |services: &[&ServiceName]| {
            let services: Vec<&str> = services.iter().map(|name| name.as_str()).collect();
            format!(
                "made offline: Secrets and ConfigMaps that only annotations name, on the Services \
                 behind {}, are missing here; without --offline the cluster is asked for them",
                services.join(", ")
            )
        };
        let annotated: Vec<&ServiceName> = match config.kubernetes.annotations {
            true => config.backends.keys().collect(),
            false => Vec::new(),
        };
        if !annotated.is_empty() {
            self.notes.push(file_alone(&annotated));
        }
        if config.kubernetes.discovery.is_some() {
            self.notes.push(
                "made offline: Secrets and ConfigMaps of discovered Services are missing here; \
                 without --offline the cluster is asked for them"
                    .to_owned(),
            );
        }
    }

    fn namespace(&mut self, name: &str) -> &mut Namespaced {
        self.namespaces.entry(name.to_owned()).or_default()
    }
}

/// Why a rule has no names.
const TOGETHER: &str = "WARNING: kubernetes.secrets = \"namespace\": whoever has this role reads every one of the namespace";

#[cfg(test)]
mod tests;
