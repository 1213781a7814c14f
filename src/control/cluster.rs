//! The cluster's part in a configuration: which objects it needs followed, and how what is known
//! of Services goes into it.
//!
//! A Service whose newest annotations are wrong goes on as it was last accepted: what is bad
//! replaces nothing that is good.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::credentials::Credentials;
use super::report::Facts;
use super::state::State;
use super::text::{Refused, parse};
use crate::cluster::{Backend, Entry, Place, Store, Wanted, choose};
use crate::config::kubernetes::{self, Known, ObjectRef, ServiceObject};
use crate::config::{
    Config, IdentitySource, Obstacle, Problem, Service, ServiceName, Unbuilt, Upstream,
};
use crate::failure::{Explained, Reason};
use crate::material::Part;
use crate::route::Endpoints;
use crate::source::{SourceKey, objects};
use crate::status::KubernetesStatus;

/// The Services as they were when services were last built of them.
pub(super) type Accepted = BTreeMap<ObjectRef, Arc<ServiceObject>>;

/// A configuration, with what is to be said of its Kubernetes Services.
pub(super) struct Assembly {
    pub(super) config: Config,
    /// What is wrong with the newest state of Services, where services were built of an older one.
    pub(super) stale: BTreeMap<ServiceName, Obstacle>,
    pub(super) accepted: Accepted,
}

/// What a configuration is assembled from.
pub(super) struct Parts<'p> {
    pub(super) text: &'p Result<Part, Explained>,
    pub(super) path: &'p Path,
    pub(super) environment: &'p BTreeMap<String, String>,
    pub(super) store: &'p Store,
    pub(super) accepted: &'p Accepted,
}

/// Assembles the configuration and waits for the API server to answer what it asks, at most for
/// `limit`. Follows what is needed in addition to `keep`.
///
/// # Errors
/// The text has mistakes.
pub(super) async fn assemble(
    parts: &Parts<'_>,
    keep: &Wanted,
    limit: Duration,
) -> Result<Assembly, Refused> {
    let deadline = Instant::now() + limit;
    loop {
        let view = parts.store.view();
        let assembly = assemble_once(parts, &view)?;
        let wanted = wanted(&assembly.config, &view);
        parts.store.follow(together(&wanted, keep));
        if wanted.is_empty() {
            return Ok(assembly);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        parts.store.answered(&wanted, left).await;
        // What is known of Services decides what else is needed: the Secret that an annotation
        // names, the endpoints of a port. What changes later is told of and taken up then, or
        // Services that never rest would keep control from everything else.
        if left.is_zero() || parts.store.view() == view {
            return Ok(assembly);
        }
    }
}

/// The configuration with what is known of Services, waiting as [`assemble`] does, and with
/// nothing else asked of the API server: not what Secrets hold.
///
/// # Errors
/// The text has mistakes.
pub(super) async fn survey(parts: &Parts<'_>, limit: Duration) -> Result<Config, Refused> {
    let deadline = Instant::now() + limit;
    loop {
        let view = parts.store.view();
        let Assembly { config, .. } = assemble_once(parts, &view)?;
        let services = Wanted {
            data: BTreeSet::new(),
            endpoints: BTreeSet::new(),
            ..wanted(&config, &view)
        };
        parts.store.follow(services.clone());
        if services.is_empty() {
            return Ok(config);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        parts.store.answered(&services, left).await;
        if left.is_zero() || parts.store.view() == view {
            return Ok(config);
        }
    }
}

/// What the API server was asked by [`survey`] and has not told, and why.
pub(super) fn unanswered(config: &Config, store: &Store) -> Vec<String> {
    fn why<T>(entry: &Entry<T>) -> Option<String> {
        match (&entry.trouble, &entry.value) {
            (Some(trouble), _) => Some(format!("{trouble}; {}", trouble.hint)),
            (None, None) => Some("no answer in time".to_owned()),
            (None, Some(_)) => None,
        }
    }
    let named = config
        .backends
        .iter()
        .filter(|(name, _)| !config.is_discovered(name))
        .map(|(_, object)| object);
    let named: BTreeSet<&ObjectRef> = named.collect();
    let mut unanswered: Vec<String> = named
        .into_iter()
        .filter_map(|object| {
            let why = why(&store.service(object))?;
            Some(format!("Service {object}: {why}"))
        })
        .collect();
    if config.kubernetes.discovery.is_some() {
        let why = why(&store.discovered());
        unanswered.extend(why.map(|why| format!("discovery: {why}")));
    }
    unanswered
}

/// The configuration as the file alone has it: every Service that it names is assumed to exist,
/// and to say by annotations no more than a service cannot do without.
///
/// # Errors
/// The text has mistakes.
pub(super) fn file_alone(parts: &Parts<'_>) -> Result<Config, Refused> {
    let mut view = parts.store.view();
    let parse = |view: &kubernetes::Cluster| parse(parts.text, parts.path, parts.environment, view);
    for object in parse(&view)?.backends.into_values() {
        view.assumed.insert(object, BTreeMap::new());
    }
    // Where no file, variable or default says it, an annotation must: which certificate to
    // present, and whom to trust. Here that means none, so that the rest of the service is seen.
    for (annotation, value) in [("tlsward/client-auth", "false"), ("tlsward/verify", "none")] {
        for unbuilt in parse(&view)?.unbuilt.into_values() {
            let said = view.assumed.entry(unbuilt.object).or_default();
            said.insert(annotation.to_owned(), value.to_owned());
        }
    }
    parse(&view)
}

fn assemble_once(parts: &Parts<'_>, view: &kubernetes::Cluster) -> Result<Assembly, Refused> {
    let parse = |view: &kubernetes::Cluster| parse(parts.text, parts.path, parts.environment, view);
    let mut config = parse(view)?;
    let mut stale = BTreeMap::new();
    let mut used = view.clone();
    for (name, unbuilt) in &config.unbuilt {
        let last_good = parts.accepted.get(&unbuilt.object);
        let replaceable = match unbuilt.obstacle {
            Obstacle::Unknown | Obstacle::Missing | Obstacle::Mistakes(_) => true,
            Obstacle::ListenerTaken { .. } => false,
        };
        if let (Some(good), true) = (last_good, replaceable) {
            let good = Known::Exists(Arc::clone(good));
            if used.services.get(&unbuilt.object) != Some(&good) {
                used.services.insert(unbuilt.object.clone(), good);
                stale.insert(name.clone(), unbuilt.obstacle.clone());
            }
        }
    }
    if !stale.is_empty() {
        config = parse(&used)?;
        stale.retain(|name, _| config.services.contains_key(name));
    }
    let object = |name: &ServiceName| {
        let object = config.backends.get(name)?;
        match used.services.get(object) {
            Some(Known::Exists(service)) => Some((object.clone(), Arc::clone(service))),
            Some(Known::Missing) | None => None,
        }
    };
    let accepted = config.services.keys().filter_map(object).collect();
    Ok(Assembly {
        config,
        stale,
        accepted,
    })
}

/// What `config` needs to have followed.
pub(super) fn wanted(config: &Config, view: &kubernetes::Cluster) -> Wanted {
    let data = Credentials::sources(config)
        .iter()
        .flat_map(objects::objects)
        .collect();
    let unbuilt = config.unbuilt.values().map(|unbuilt| &unbuilt.object);
    let services = config.backends.values().chain(unbuilt);
    // Discovery tells of those that it selects.
    let services = services
        .filter(|object| !view.discovered.contains(*object))
        .cloned();
    let endpoints = config
        .services
        .values()
        .filter_map(|service| match &service.upstream {
            Upstream::Service(backend) => Some(backend.service.clone()),
            Upstream::Addresses(_) => None,
        });
    Wanted {
        settings: config.kubernetes.clone(),
        data,
        services: services.collect(),
        endpoints: endpoints.collect(),
    }
}

fn together(new: &Wanted, old: &Wanted) -> Wanted {
    Wanted {
        settings: new.settings.clone(),
        data: new.data.union(&old.data).cloned().collect(),
        services: new.services.union(&old.services).cloned().collect(),
        endpoints: new.endpoints.union(&old.endpoints).cloned().collect(),
    }
}

/// Brings the live sets of endpoints up to date: those of `services`, or all.
pub(super) fn feed(state: &State, store: &Store, services: Option<&BTreeSet<ObjectRef>>) {
    let settings = &state.config.kubernetes;
    let place = Place {
        zone: settings.zone.clone(),
        node: settings.node.clone(),
    };
    let concerned = |live: &&Arc<Endpoints>| {
        services.is_none_or(|services| services.contains(&live.backend().service))
    };
    for live in state.endpoints().filter(concerned) {
        let backend = live.backend();
        let all: Option<Arc<[Backend]>> = store.endpoints(&backend.service).value.flatten();
        // Without an answer whatever was known goes on.
        if let Some(all) = all {
            live.replace(choose(&all, &backend.port, &place));
        }
    }
}

/// Why a service could not be built, or is built of an older state of its Service.
pub(super) fn explain(obstacle: &Obstacle, object: &ObjectRef, store: &Store) -> Explained {
    match obstacle {
        Obstacle::Unknown => store.service(object).trouble.unwrap_or_else(|| {
            let detail = format!("the API server has not yet told of Service {object}");
            Explained::new(Reason::ApiUnavailable, detail)
        }),
        Obstacle::Missing => Explained::new(
            Reason::ServiceMissing,
            format!("Service {object} does not exist"),
        ),
        Obstacle::Mistakes(problems) => {
            let problems: Vec<String> = problems.iter().map(in_one_line).collect();
            Explained::new(Reason::BadAnnotation, problems.join("; "))
        }
        Obstacle::ListenerTaken { by } => Explained::new(
            Reason::ListenerTaken,
            format!("Service {object} asks for the listener of service {by}"),
        ),
    }
}

/// Where, why and what to do, without the line of the file that shows it.
fn in_one_line(problem: &Problem) -> String {
    let text = problem.to_string();
    let first = text.lines().next().unwrap_or_default();
    format!("{first}; {}", problem.fix)
}

/// What a service has to do with Kubernetes.
pub(super) fn status(facts: &Facts<'_>, service: &Service) -> Option<KubernetesStatus> {
    let object = facts.state.config.backends.get(&service.name).cloned();
    let secret = match &service.identity {
        Some(IdentitySource::Secret(secret)) => Some(secret.clone()),
        Some(
            IdentitySource::Pair { .. } | IdentitySource::Bundle(_) | IdentitySource::Credential(_),
        )
        | None => None,
    };
    if object.is_none() && secret.is_none() {
        return None;
    }
    let stale = facts.stale.get(&service.name);
    Some(KubernetesStatus {
        discovered: facts.state.config.is_discovered(&service.name),
        service: object,
        secret,
        endpoints: facts
            .state
            .endpoints_of(&service.name)
            .map(|live| live.summary(Instant::now()).chosen),
        problem: stale.map(|stale| stale.why.clone()),
    })
}

/// Why it is not known where connections of a service go, if it goes to a Kubernetes Service and
/// nothing was ever told of its endpoints.
pub(super) fn endpoints_unknown(facts: &Facts<'_>, service: &Service) -> Option<Explained> {
    let Upstream::Service(backend) = &service.upstream else {
        return None;
    };
    let entry = facts.cluster.endpoints(&backend.service);
    if entry.value.is_some() {
        return None;
    }
    Some(entry.trouble.unwrap_or_else(|| {
        let detail = format!(
            "the API server has not yet told of the endpoints of Service {}",
            backend.service
        );
        Explained::new(Reason::ApiUnavailable, detail)
    }))
}

/// Of which objects nothing newer is to be had, for standing warnings. Where nothing at all is
/// known of one, that is the service's problem already.
pub(super) fn troubles(facts: &Facts<'_>, service: &Service) -> Vec<String> {
    let store = facts.cluster;
    let mut troubles = Vec::new();
    let mut tell = |what: String, known: bool, trouble: Option<Explained>| {
        if let (true, Some(why)) = (known, trouble) {
            troubles.push(format!("what was last known of {what} goes on: {why}"));
        }
    };
    let sources = [
        service.identity.clone().map(SourceKey::Identity),
        service.trust.clone().map(SourceKey::Trust),
    ];
    for key in sources.iter().flatten().flat_map(objects::objects) {
        let entry = store.data(&key);
        tell(key.to_string(), entry.value.is_some(), entry.trouble);
    }
    if let Some(object) = facts.state.config.backends.get(&service.name) {
        let entry = store.service(object);
        tell(
            format!("Service {object}"),
            entry.value.is_some(),
            entry.trouble,
        );
        let entry = store.endpoints(object);
        let known = entry.value.is_some();
        tell(
            format!("the endpoints of Service {object}"),
            known,
            entry.trouble,
        );
    }
    troubles
}

/// A service that cannot be served, with its reason.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Hindered {
    pub(super) discovered: bool,
    pub(super) listen: Option<String>,
    pub(super) object: ObjectRef,
    pub(super) why: Explained,
}

impl Hindered {
    pub(super) fn of(
        name: &ServiceName,
        unbuilt: &Unbuilt,
        config: &Config,
        store: &Store,
    ) -> Self {
        Self {
            discovered: config.is_discovered(name),
            listen: unbuilt.listen.as_ref().map(ToString::to_string),
            object: unbuilt.object.clone(),
            why: explain(&unbuilt.obstacle, &unbuilt.object, store),
        }
    }
}
