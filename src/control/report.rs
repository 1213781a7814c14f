//! The state in words: status for the endpoints, lines for the log.

use std::collections::BTreeMap;

use tracing::{error, info, warn};

use super::cluster::{self, Hindered};
use super::credentials::{Judged, Loaded, Verdict};
use super::listeners::Listeners;
use super::state::{Readiness, State};
use crate::cluster::Store;
use crate::config::{CaSource, IdentitySource, Listen, Service, ServiceName, TrustSource, Verify};
use crate::failure::{Explained, Reason};
use crate::source::{Health, SourceKey, Trigger};
use crate::status::{IdentityStatus, KubernetesStatus, ServiceState, ServiceStatus, TrustStatus};
use crate::tls::client_config;
use crate::tls::identity::Identity;
use crate::tls::trust::Trust;

/// What status is made of.
pub(super) struct Facts<'f> {
    pub(super) state: &'f State,
    pub(super) listeners: &'f Listeners,
    /// Listeners that have no address yet and why.
    pub(super) unbound: &'f BTreeMap<Listen, Explained>,
    pub(super) health: &'f Health,
    pub(super) cluster: &'f Store,
    /// Services that go on as their Kubernetes Services were before.
    pub(super) stale: &'f BTreeMap<ServiceName, Hindered>,
    /// Services that are asked for and not served.
    pub(super) hindered: &'f BTreeMap<ServiceName, Hindered>,
}

/// All services of the configuration in force, and those that Kubernetes keeps out of it.
pub(super) fn services(facts: &Facts<'_>) -> Vec<ServiceStatus> {
    let served = facts.state.config.services.values();
    let mut services: Vec<ServiceStatus> = served.map(|service| one(facts, service)).collect();
    let hindered = facts.hindered.iter();
    services.extend(hindered.map(|(name, hindered)| not_served(name, hindered)));
    services.sort_by(|one, other| one.name.cmp(&other.name));
    services
}

/// A service that is not in the configuration in force, because of its Kubernetes Service.
fn not_served(name: &ServiceName, hindered: &Hindered) -> ServiceStatus {
    ServiceStatus {
        name: name.to_string(),
        listen: hindered.listen.clone().unwrap_or_else(|| "-".to_owned()),
        upstream: vec![format!("Service {}", hindered.object)],
        state: ServiceState::Waiting,
        problem: Some(hindered.why.clone()),
        identity: None,
        trust: None,
        verify: "full",
        warnings: Vec::new(),
        kubernetes: Some(KubernetesStatus {
            discovered: hindered.discovered,
            service: Some(hindered.object.clone()),
            problem: Some(hindered.why.clone()),
            ..KubernetesStatus::default()
        }),
    }
}

fn one(facts: &Facts<'_>, service: &Service) -> ServiceStatus {
    let Facts {
        state,
        listeners,
        unbound,
        health,
        ..
    } = facts;
    let identity = service
        .identity
        .as_ref()
        .map(|source| (source, state.credentials.identity(source)));
    let trust = service
        .trust
        .as_ref()
        .map(|source| (source, state.credentials.trust(source)));
    let (serving, mut problem) = match state.readiness(service) {
        Readiness::Ready => (ServiceState::Ready, None),
        Readiness::Waiting { why, serving: true } => (ServiceState::Warming, Some(why)),
        Readiness::Waiting {
            why,
            serving: false,
        } => (ServiceState::Waiting, Some(why)),
    };
    let no_address = unbound.get(&super::state::address(service));
    let serving = if no_address.is_some() {
        ServiceState::Waiting
    } else {
        serving
    };
    problem = no_address.cloned().or(problem);
    let nowhere = cluster::endpoints_unknown(facts, service);
    let serving = match nowhere {
        Some(_) => ServiceState::Waiting,
        None => serving,
    };
    problem = problem.or(nowhere);
    // It serves, but with something older than what lies in the files.
    let refused = identity
        .and_then(|(_, loaded)| loaded.refused())
        .or_else(|| trust.and_then(|(_, loaded)| loaded.refused()));
    problem = problem.or_else(|| refused.cloned());
    let kubernetes = cluster::status(facts, service);
    let of_service = kubernetes.as_ref().and_then(|it| it.problem.clone());
    problem = problem.or(of_service);

    let mut warnings = client_config::warnings(&service.tls, service.ca());
    if let Some(good) = identity.and_then(|(_, loaded)| loaded.current()) {
        warnings.extend(good.value.warnings.iter().cloned());
    }
    let notes = |key: SourceKey| health.notes.get(&key).into_iter().flatten().cloned();
    warnings.extend(
        service
            .identity
            .clone()
            .map(SourceKey::Identity)
            .into_iter()
            .flat_map(notes),
    );
    warnings.extend(
        service
            .trust
            .clone()
            .map(SourceKey::Trust)
            .into_iter()
            .flat_map(notes),
    );

    warnings.extend(cluster::troubles(facts, service));
    ServiceStatus {
        name: service.name.to_string(),
        listen: listeners.words(&service.listen),
        upstream: service.upstream.words(),
        state: serving,
        problem,
        identity: identity.map(|(source, loaded)| identity_status(source, loaded)),
        trust: trust.map(|(source, loaded)| trust_status(source, loaded)),
        verify: match service.tls.verify {
            Verify::Full => "full",
            Verify::Chain => "chain",
            Verify::None => "none",
        },
        warnings,
        kubernetes,
    }
}

fn identity_status(source: &IdentitySource, loaded: &Loaded<Identity>) -> IdentityStatus {
    let good = loaded.current();
    IdentityStatus {
        source: identity_source(source),
        chain: good.map_or(Vec::new(), |good| good.value.chain.clone()),
        generation: good.map_or(0, |good| good.generation),
        loaded_at: good.map(|good| good.loaded_at),
        refused: loaded.refused().cloned(),
    }
}

fn trust_status(source: &TrustSource, loaded: &Loaded<Trust>) -> TrustStatus {
    let good = loaded.current();
    TrustStatus {
        source: trust_source(source),
        anchors: good.map_or(Vec::new(), |good| good.value.anchors.clone()),
        left_out: good.map_or(Vec::new(), |good| good.value.left_out.clone()),
        crls: good.map_or(Vec::new(), |good| good.value.crls.clone()),
        generation: good.map_or(0, |good| good.generation),
        loaded_at: good.map(|good| good.loaded_at),
        refused: loaded.refused().cloned(),
    }
}

/// A source as an operator would name it.
pub(crate) fn source_name(key: &SourceKey) -> String {
    match key {
        SourceKey::Config(path) => path.display().to_string(),
        SourceKey::Identity(source) => identity_source(source),
        SourceKey::Trust(source) => trust_source(source),
    }
}

fn identity_source(source: &IdentitySource) -> String {
    match source {
        IdentitySource::Pair { cert, key } => format!("{} + {}", cert.display(), key.display()),
        IdentitySource::Bundle(path) => path.display().to_string(),
        IdentitySource::Secret(object) => format!("Secret {object}"),
        IdentitySource::Credential(credential) => credential.to_string(),
    }
}

fn trust_source(source: &TrustSource) -> String {
    let ca = match &source.ca {
        CaSource::Path(path) => path.display().to_string(),
        CaSource::System => "system".to_owned(),
        CaSource::Credential(credential) => credential.to_string(),
        CaSource::Objects(objects) => {
            let names: Vec<String> = objects.iter().map(ToString::to_string).collect();
            names.join(" + ")
        }
    };
    match &source.crl {
        Some(crl) => format!("{ca} + {}", crl.display()),
        None => ca,
    }
}

/// `identity`, `trust` or `config`: the label of reload metrics.
pub(super) fn source_kind(key: &SourceKey) -> &'static str {
    match key {
        SourceKey::Config(_) => "config",
        SourceKey::Identity(_) => "identity",
        SourceKey::Trust(_) => "trust",
    }
}

/// How changes are noticed, where that is new, and what is new of single sources.
pub(super) fn log_health(before: Option<&Health>, now: &Health) {
    if before.is_none_or(|before| before.noticing != now.noticing) {
        info!(how = %now.noticing, "changes are noticed by");
    }
    for (key, notes) in &now.notes {
        let known = before.and_then(|before| before.notes.get(key));
        let is_known = |note: &&String| known.is_some_and(|known| known.contains(note));
        for note in notes.iter().filter(|note| !is_known(note)) {
            let (source, kind) = (source_name(key), source_kind(key));
            warn!(source, kind, "{note}");
        }
    }
}

/// One line for what became of a reading.
pub(super) fn log_judged(judged: &Judged, state: &State, trigger: Trigger) {
    let source = source_name(&judged.key);
    let kind = source_kind(&judged.key);
    let trigger = trigger.as_str();
    match &judged.verdict {
        Verdict::Published {
            generation,
            warnings,
        } => {
            let leaf = match &judged.key {
                SourceKey::Identity(source) => state.credentials.identity(source).current(),
                SourceKey::Config(_) | SourceKey::Trust(_) => None,
            };
            match leaf.map(|good| good.value.leaf()) {
                Some(leaf) => info!(
                    source,
                    kind,
                    trigger,
                    generation,
                    subject = leaf.subject,
                    issuer = leaf.issuer,
                    serial = leaf.serial,
                    fingerprint = leaf.fingerprint,
                    not_after = crate::clock::rfc3339(leaf.not_after),
                    "in use from now on"
                ),
                None => info!(source, kind, trigger, generation, "in use from now on"),
            }
            for warning in warnings {
                warn!(source, kind, "{warning}");
            }
        }
        Verdict::Restored { generation } => info!(
            source,
            kind, trigger, generation, "what is in use lies in the files again"
        ),
        Verdict::Refused(why) if why.reason == Reason::RotationInProgress => info!(
            source, kind, trigger, reason = %why.reason, detail = why.detail, hint = why.hint,
            "waiting for the other half of a rotation"
        ),
        Verdict::Refused(why) => error!(
            source, kind, trigger, reason = %why.reason, detail = why.detail, hint = why.hint,
            in_use = in_use(&judged.key, state),
            "not taken"
        ),
    }
}

/// What goes on instead, for the line that says that something was not taken.
fn in_use(key: &SourceKey, state: &State) -> String {
    match key {
        SourceKey::Identity(source) => match state.credentials.identity(source).current() {
            Some(good) => format!(
                "generation {} goes on; it is valid until {}",
                good.generation,
                crate::clock::rfc3339(good.value.leaf().not_after)
            ),
            None => "nothing yet: callers are refused".into(),
        },
        SourceKey::Trust(source) => match state.credentials.trust(source).current() {
            Some(good) => format!("generation {} goes on", good.generation),
            None => "nothing yet: callers are refused".into(),
        },
        SourceKey::Config(_) => "the configuration in force goes on".into(),
    }
}
