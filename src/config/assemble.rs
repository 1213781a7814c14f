//! From the tables as written to the configuration: inheritance, defaults, and whatever concerns
//! more than one key.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::annotations::Annotations;
use super::document::{
    DiscoveryTable, Document, KubernetesTable, ServiceTable, Slot, WrittenService, WrittenUpstream,
};
use super::kubernetes::{
    Cluster, Discovery, Known, Kubernetes, Namespaces, ObjectRef, SecretWatch,
};
use super::listeners::{Claim, Owner, Taken};
use super::problem::{self, At, Findings, Wrong};
use super::reader::Home;
use super::sandbox::NamedFiles;
use super::{Admin, Config, Listen, Log, Obstacle, Origins, ServiceName, Unbuilt};

mod backend;
mod discovered;
mod layers;

use layers::{Inherited, Layers, Standing, Subject};

/// Builds the configuration. What is wrong in the file or the environment goes to `findings`; if
/// there is anything, the result is not to be used.
pub(super) fn assemble(
    document: Document,
    environment: &ServiceTable,
    cluster: &Cluster,
    findings: &mut Findings<'_>,
) -> Config {
    let Document {
        shutdown_timeout,
        shutdown_delay,
        workers,
        admin,
        log,
        sandbox,
        kubernetes,
        home,
        defaults,
        services: written,
    } = document;

    let mut claims = Vec::new();
    let admin = Admin {
        listen: endpoint(
            "admin.listen",
            admin.listen,
            Some(default_admin_listen()),
            &mut claims,
        ),
        public_listen: endpoint(
            "admin.public_listen",
            admin.public_listen,
            None,
            &mut claims,
        ),
    };
    for service in &written {
        claims.extend(claim(service));
    }
    let mut taken = Taken::by(claims, findings);

    let kubernetes = settings(kubernetes, &home, &defaults, findings);
    let inherited = Inherited::new(environment, &defaults, findings);
    let mut services = Services::default();
    for service in &written {
        services.of_file(service, &inherited, &kubernetes, cluster, findings);
    }
    if let Some(discovery) = &kubernetes.discovery {
        services.of_discovery(discovery, &inherited, cluster, &mut taken, findings);
    }

    Config {
        sandbox: sandbox.settings(),
        named_files: NamedFiles::of(environment, &defaults, &written),
        admin,
        log: Log {
            filter: set_or(log.filter, "info".to_owned()),
            connections: set_or(log.connections, true),
        },
        shutdown_timeout: set_or(shutdown_timeout, Duration::from_secs(30)),
        workers: set(workers),
        shutdown_delay: set_or(shutdown_delay, Duration::ZERO),
        kubernetes,
        services: services.built,
        unbuilt: services.unbuilt,
        backends: services.backends,
        discovered: services.discovered,
        origins: Origins(services.origins),
    }
}

fn set<T>(slot: Slot<T>) -> Option<T> {
    match slot {
        Slot::Set(value, _) => Some(value),
        Slot::Absent | Slot::Invalid => None,
    }
}

fn set_or<T>(slot: Slot<T>, default: T) -> T {
    set(slot).unwrap_or(default)
}

fn default_admin_listen() -> Listen {
    Listen::Tcp(([127, 0, 0, 1], 9901).into())
}

fn endpoint(
    key: &str,
    slot: Slot<Option<Listen>>,
    default: Option<Listen>,
    claims: &mut Vec<Claim>,
) -> Option<Listen> {
    let (listen, at) = match slot {
        Slot::Set(listen, at) => (listen, Some(at)),
        Slot::Absent => (default, None),
        Slot::Invalid => (None, None),
    };
    claims.extend(listen.clone().map(|listen| Claim {
        listen,
        key: key.to_owned(),
        at,
        owner: Owner::Admin,
    }));
    listen
}

/// What a service of the file says of its listener.
fn claim(service: &WrittenService) -> Option<Claim> {
    let Slot::Set(listen, at) = &service.table.listen else {
        return None;
    };
    let path = super::keys::path("services", service.name.as_str());
    Some(Claim {
        listen: listen.clone(),
        key: format!("{path}.listen"),
        at: Some(*at),
        owner: Owner::Service(service.name.clone()),
    })
}

/// `[kubernetes]`.
fn settings(
    table: KubernetesTable,
    home: &Home,
    defaults: &ServiceTable,
    findings: &mut Findings<'_>,
) -> Kubernetes {
    let annotations = set_or(table.annotations, true);
    let discovery = table.discovery.map(|(table, at)| {
        if !annotations {
            let wrong = Wrong::new(
                "discovery goes by the annotation tlsward/listen, and annotations = false says that annotations are not read",
                "remove [kubernetes.discovery], or annotations = false",
            );
            findings.report(at, "kubernetes.discovery", wrong);
        }
        discovery(table, at, home, defaults, findings)
    });
    Kubernetes {
        kubeconfig: set(table.kubeconfig),
        context: set(table.context),
        namespace: set(table.namespace),
        annotations,
        events: set_or(table.events, true),
        zone: set_or(table.zone, None),
        node: set_or(table.node, None),
        secrets: set_or(table.secrets, SecretWatch::Named),
        discovery,
    }
}

fn discovery(
    table: DiscoveryTable,
    at: At,
    home: &Home,
    defaults: &ServiceTable,
    findings: &mut Findings<'_>,
) -> Discovery {
    if table.namespaces == Slot::Absent && *home == Home::Unknown {
        let wrong = Wrong::new(
            "outside of a pod there is no own namespace in which to discover",
            "set namespaces in [kubernetes.discovery]: a list, or [\"*\"] for all",
        );
        findings.report(at, "kubernetes.discovery", wrong);
    }
    let own = match home {
        Home::Known(own) => Namespaces::These(BTreeSet::from([own.clone()])),
        // Reported.
        Home::Unknown | Home::Unreadable => Namespaces::All,
    };
    if let Slot::Set(address, at) = &table.listen_address
        && !address.to_canonical().is_loopback()
        && matches!(
            defaults.allow_remote_callers,
            Slot::Absent | Slot::Set(false, _)
        )
    {
        let wrong = Wrong::new(
            format!(
                "listeners at {address} can be reached from other machines, whose traffic would be in the clear and get the services' certificates"
            ),
            "write a loopback address, or use unix sockets; if other machines are meant, set allow_remote_callers = true (and allow_callers) in [defaults]",
        );
        findings.report(*at, "kubernetes.discovery.listen_address", wrong);
    }
    Discovery {
        namespaces: set_or(table.namespaces, own),
        selector: set(table.selector),
        listen_address: set_or(table.listen_address, Discovery::LISTEN_ADDRESS),
        socket_directory: set(table.socket_directory),
    }
}

/// All services, as far as they are assembled.
#[derive(Default)]
struct Services {
    built: BTreeMap<ServiceName, super::Service>,
    unbuilt: BTreeMap<ServiceName, Unbuilt>,
    backends: BTreeMap<ServiceName, ObjectRef>,
    discovered: BTreeSet<ServiceName>,
    origins: BTreeMap<ServiceName, BTreeMap<&'static str, super::Origin>>,
}

impl Services {
    /// A service of the file.
    fn of_file(
        &mut self,
        service: &WrittenService,
        inherited: &Inherited<'_>,
        kubernetes: &Kubernetes,
        cluster: &Cluster,
        findings: &mut Findings<'_>,
    ) {
        let (object, assumed) = match &service.table.upstream {
            Slot::Set(WrittenUpstream::Service(object, port), _) => {
                let annotations = cluster.assumed.get(object);
                let assumed = annotations.map(|it| backend::assumed(object, port.as_ref(), it));
                (Some(object), assumed.map(Arc::new).map(Known::Exists))
            }
            _ => (None, None),
        };
        let known = object.and_then(|object| cluster.services.get(object));
        let known = known.or(assumed.as_ref());
        let exists = match known {
            Some(Known::Exists(exists)) => Some(exists),
            _ => None,
        };
        let standing = match object {
            Some(_) if kubernetes.annotations => Standing::Annotated,
            _ => Standing::File,
        };
        let annotations = exists
            .filter(|_| kubernetes.annotations)
            .map(|exists| Annotations::read(exists));
        let subject = Subject {
            name: &service.name,
            at: service.at,
            own: &service.table,
            standing,
            object: exists.map(Arc::as_ref),
            annotations: annotations.as_ref(),
        };
        let mut layers = Layers::new(subject, inherited, findings);
        let listen = layers.listen();
        let upstream = layers.upstream();
        let built = layers.service(listen.clone(), upstream);
        let Layers { origins, alone, .. } = layers;

        if let Some(object) = object {
            self.backends.insert(service.name.clone(), object.clone());
            let obstacle = match known {
                None => Some(Obstacle::Unknown),
                Some(Known::Missing) => Some(Obstacle::Missing),
                Some(Known::Exists(_)) => problem::in_order(alone).map(Obstacle::Mistakes),
            };
            if let Some(obstacle) = obstacle {
                let unbuilt = Unbuilt {
                    listen,
                    object: object.clone(),
                    obstacle,
                };
                self.unbuilt.insert(service.name.clone(), unbuilt);
                return;
            }
        }
        if let Some(built) = built {
            self.origins.insert(service.name.clone(), origins);
            self.built.insert(service.name.clone(), built);
        }
    }
}
