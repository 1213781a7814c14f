//! One reload: assemble, plan, prepare, commit. For a new text of the configuration, and for what
//! has changed about the Kubernetes Services that it names.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{error, info, warn};

use super::cluster::{self, Assembly, Hindered, Parts};
use super::credentials::Credentials;
use super::state::{Plan, address};
use super::text::Refused;
use super::{Control, endpoints, read};
use crate::admin::ServiceChanges;
use crate::clock;
use crate::cluster::Wanted;
use crate::config::{Config, Listen, Obstacle, Service, ServiceName};
use crate::failure::{Explained, Reason};
use crate::material::Part;
use crate::proxy::listener::Bound;
use crate::shutdown::Terms;
use crate::source::{Reading, SourceKey, Trigger};
use crate::unix_socket;

/// How long a start waits for the API server to answer. It mostly takes milliseconds; what is not
/// answered by then is reported, and taken up when it comes.
pub(super) const ASK_AT_START: Duration = Duration::from_secs(5);
/// The same in a running process, where other events wait meanwhile.
const ASK: Duration = Duration::from_secs(2);
/// Changes in the cluster that come together are taken up and told together: a list of a thousand
/// Services, or one rollout.
const TOGETHER: Duration = Duration::from_millis(50);
/// How soon it is tried again to listen where a discovered Service asks for it.
const LISTEN_AGAIN: Duration = Duration::from_secs(5);

/// What was taken for a configuration that is not in force yet.
struct Prepared {
    listeners: Vec<Bound>,
    endpoints: endpoints::Prepared,
    /// Discovered services that need what the sandbox does not hold.
    outside: BTreeMap<ServiceName, Hindered>,
    /// Discovered services whose listeners are not to be had.
    no_listener: BTreeMap<ServiceName, Hindered>,
}

impl Control {
    /// What the cluster's store has to tell: endpoints at once, the rest soon.
    pub(super) fn cluster_changed(&mut self) {
        let changes = self.setup.cluster.take_changes();
        if !changes.endpoints.is_empty() {
            let store = &self.setup.cluster;
            cluster::feed(&self.state, store, Some(&changes.endpoints));
        }
        let soon = Instant::now() + TOGETHER;
        // What is said of a service that cannot be built may be another thing now.
        if changes.services || (changes.troubles && !self.hindered.is_empty()) {
            self.assemble_at = Some(self.assemble_at.map_or(soon, |at| at.min(soon)));
        }
        self.publish_at.get_or_insert(soon);
    }

    /// Takes up what has changed about Services. The text in force counts: one that was refused
    /// is not tried again for that.
    pub(super) async fn assemble_again(&mut self) {
        self.assemble_at = None;
        let text = self.in_force.clone();
        let result = self.attempt(&text, ASK).await;
        match result {
            Ok(Some(changes)) => self.tell_in_force(&changes, Trigger::Cluster),
            Ok(None) => {}
            // It was in force, so this is a local resource, or a bug.
            Err(refused) => error!(
                reason = %refused.why.reason, detail = refused.why.detail, hint = refused.why.hint,
                "changes in the cluster are not taken up"
            ),
        }
        self.publish();
    }

    fn tell_in_force(&mut self, changes: &ServiceChanges, trigger: Trigger) {
        let now = clock::unix_seconds();
        self.generation += 1;
        self.loaded_at = now;
        self.setup.metrics.reloaded("config", trigger, "ok", now);
        info!(
            generation = self.generation,
            trigger = trigger.as_str(),
            services = self.state.config.services.len(),
            added = changes.added.len(),
            changed = changes.changed.len(),
            removed = changes.removed.len(),
            "configuration in force"
        );
    }

    /// Brings the newest text into force, or leaves everything as it is.
    pub(super) async fn reload(&mut self, trigger: Trigger) -> Result<ServiceChanges, Refused> {
        let text = self.text.clone();
        let limit = match trigger {
            Trigger::Start => ASK_AT_START,
            _ => ASK,
        };
        let result = self.attempt(&text, limit).await;
        let now = clock::unix_seconds();
        match result {
            Ok(changes) => {
                let changes = changes.unwrap_or_default();
                self.refused = None;
                self.in_force = text;
                self.tell_in_force(&changes, trigger);
                self.publish();
                Ok(changes)
            }
            Err(refused) => {
                let reason = refused.why.reason;
                self.setup
                    .metrics
                    .reloaded("config", trigger, reason.as_str(), now);
                if trigger != Trigger::Start {
                    error!(
                        reason = %reason, detail = refused.why.detail, hint = refused.why.hint,
                        trigger = trigger.as_str(),
                        "configuration refused; the one in force goes on"
                    );
                }
                self.refused = Some(refused.clone());
                self.publish();
                Err(refused)
            }
        }
    }

    /// Assemble, plan, prepare, commit. `None`: it is what is in force already.
    async fn attempt(
        &mut self,
        text: &Result<Part, Explained>,
        limit: Duration,
    ) -> Result<Option<ServiceChanges>, Refused> {
        let store = Arc::clone(&self.setup.cluster);
        let followed = cluster::wanted(&self.state.config, &store.view());
        let result = self.assemble_and_prepare(text, &followed, limit).await;
        let (assembly, prepared) = match result {
            Ok(prepared) => prepared,
            Err(refused) => {
                store.follow(followed);
                return Err(refused);
            }
        };
        let Assembly {
            config,
            stale,
            accepted,
        } = assembly;
        let explain = |(name, obstacle): (ServiceName, Obstacle)| {
            let object = config.backends.get(&name)?.clone();
            let why = cluster::explain(&obstacle, &object, &store);
            let (listen, discovered) = (None, config.is_discovered(&name));
            Some((
                name,
                Hindered {
                    discovered,
                    listen,
                    object,
                    why,
                },
            ))
        };
        let stale = stale.into_iter().filter_map(explain).collect();
        let mut hindered: BTreeMap<ServiceName, Hindered> = config
            .unbuilt
            .iter()
            .map(|(name, unbuilt)| (name.clone(), Hindered::of(name, unbuilt, &config, &store)))
            .collect();
        if !prepared.no_listener.is_empty() {
            self.assemble_at = Some(Instant::now() + LISTEN_AGAIN);
        }
        hindered.extend(prepared.no_listener.clone());
        hindered.extend(prepared.outside.clone());
        self.tell_hindered(&stale, &hindered);
        self.stale = stale;
        self.hindered = hindered;
        self.accepted = accepted;
        store.follow(cluster::wanted(&config, &store.view()));
        if self.generation > 0 && config == self.state.config {
            return Ok(None);
        }
        let plan = self.state.plan(&config, &self.listeners.held());
        let sources = Credentials::sources(&config);
        let unread = self.state.credentials.unread(&sources);
        let readings = read(unread, &store).await;
        Ok(Some(self.commit(config, plan, prepared, &readings).await))
    }

    async fn assemble_and_prepare(
        &mut self,
        text: &Result<Part, Explained>,
        followed: &Wanted,
        limit: Duration,
    ) -> Result<(Assembly, Prepared), Refused> {
        let parts = Parts {
            text,
            path: &self.setup.path,
            environment: &self.setup.environment,
            store: &self.setup.cluster,
            accepted: &self.accepted,
        };
        let mut assembly = cluster::assemble(&parts, followed, limit).await?;
        let outside = self.confine(&mut assembly.config)?;
        self.start_workers(&assembly.config)?;
        let plan = self.state.plan(&assembly.config, &self.listeners.held());
        let mut prepared = self.prepare(&plan, &mut assembly.config)?;
        prepared.outside = outside;
        Ok((assembly, prepared))
    }

    /// One line for each service that something new is to be said of.
    fn tell_hindered(
        &self,
        stale: &BTreeMap<ServiceName, Hindered>,
        hindered: &BTreeMap<ServiceName, Hindered>,
    ) {
        let is_new = |old: &BTreeMap<ServiceName, Hindered>, name, new: &Hindered| {
            old.get(name).is_none_or(|old| old.why != new.why)
        };
        for (name, Hindered { object, why, .. }) in stale {
            if is_new(&self.stale, name, &stale[name]) {
                error!(
                    service = %name, object = %object, reason = %why.reason, detail = why.detail,
                    hint = why.hint, "not taken; the service goes on as before"
                );
            }
        }
        for (name, Hindered { object, why, .. }) in hindered {
            if is_new(&self.hindered, name, &hindered[name]) {
                warn!(
                    service = %name, object = %object, reason = %why.reason, detail = why.detail,
                    hint = why.hint, "not served"
                );
            }
        }
    }

    /// Starts the workers with the first configuration; a later one cannot change their number.
    fn start_workers(&mut self, config: &Config) -> Result<(), Refused> {
        match self.listeners.workers(config.workers) {
            Ok(workers) => self.setup.metrics.show_workers(workers.crew()),
            Err(error) => {
                let detail = format!("cannot start worker threads: {error}");
                let fix = "set workers to a smaller number, or raise the limits of threads (ulimit -u, TasksMax=) and of open files";
                return Err(Refused::of(
                    Explained::new(Reason::LocalResource, detail),
                    fix,
                ));
            }
        }
        Ok(())
    }

    /// Takes every new address; on any failure gives all of them back. A discovered Service whose
    /// listener is not to be had is taken out of `config`: it concerns nobody else.
    fn prepare(&mut self, plan: &Plan, config: &mut Config) -> Result<Prepared, Refused> {
        let mut failures = Vec::new();
        let mut listeners = Vec::new();
        let mut no_listener = BTreeMap::new();
        for listen in &plan.bind {
            let service = config
                .services
                .values()
                .find(|service| address(service) == *listen);
            // With what the plan leaves out (a unix socket's mode).
            let Some(service) = service else { continue };
            let listen = &service.listen;
            let why = match self.listeners.take(service) {
                Ok(bound) => {
                    listeners.push(bound);
                    continue;
                }
                Err(why) => why,
            };
            let name = service.name.clone();
            let object = config.backends.get(&name);
            let discovered = object.filter(|_| config.is_discovered(&name)).cloned();
            if let Some(object) = discovered {
                let (listen, discovered) = (Some(listen.to_string()), true);
                no_listener.insert(
                    name,
                    Hindered {
                        discovered,
                        listen,
                        object,
                        why,
                    },
                );
            } else {
                failures.push(format!("services.{name}.listen: {}", why.detail));
            }
        }
        config
            .services
            .retain(|name, _| !no_listener.contains_key(name));
        // What is held already was checked as another configuration asked for it.
        let held = config.services.values();
        for service in held.filter(|service| !plan.bind.contains(&address(service))) {
            if let Err(why) = self.listeners.check(service) {
                failures.push(format!("services.{}.listen: {}", service.name, why.detail));
            }
        }
        let endpoints = match self.endpoints.prepare(&config.admin) {
            Ok(endpoints) => Some(endpoints),
            Err(whys) => {
                failures.extend(whys.into_iter().map(|why| why.detail));
                None
            }
        };
        match endpoints {
            Some(endpoints) if failures.is_empty() => Ok(Prepared {
                listeners,
                endpoints,
                outside: BTreeMap::new(),
                no_listener,
            }),
            Some(_) | None => Err(Refused {
                why: Explained::new(Reason::BindFailed, failures.join("; ")),
                problems: failures,
            }),
        }
    }

    async fn commit(
        &mut self,
        config: Config,
        plan: Plan,
        prepared: Prepared,
        readings: &[Reading],
    ) -> ServiceChanges {
        let words =
            |names: &[ServiceName]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        let changes = ServiceChanges {
            added: words(&plan.added),
            changed: words(&plan.changed),
            removed: words(&plan.removed),
        };
        if self.generation > 0 && config.workers != self.state.config.workers {
            warn!("workers was changed: it counts from the next start on");
        }
        if self.generation > 0 && config.sandbox != self.state.config.sandbox {
            warn!("[sandbox] was changed: it counts from the next start on");
        }
        if config.log != self.state.config.log {
            // Checked before.
            let _ = self.setup.log.set_filter(&config.log.filter);
        }
        self.judge(readings, Trigger::Start);
        self.change_modes(&config);
        self.setup.shutdown.set_terms(Terms {
            delay: config.shutdown_delay,
            timeout: config.shutdown_timeout,
        });
        self.state.commit(config);
        for listen in &plan.close {
            self.listeners.close(listen).await;
        }
        for bound in prepared.listeners {
            self.listeners.add(bound);
        }
        self.endpoints.commit(prepared.endpoints);
        self.publish_routes();
        self.listeners.settle(self.state.config.services.values());
        for name in &plan.removed {
            self.setup.metrics.forget(name);
        }
        for service in self.state.config.services.values() {
            for warning in crate::tls::client_config::warnings(&service.tls, service.ca()) {
                warn!(service = %service.name, "{warning}");
            }
        }
        let mut sources = Credentials::sources(&self.state.config);
        sources.insert(SourceKey::Config(self.setup.path.clone()));
        self.watch.replace(sources, readings);
        changes
    }

    /// Gives the unix sockets that stay the modes that they have in `config`. A mode that is no
    /// longer given stays as it is.
    fn change_modes(&self, config: &Config) {
        for service in config.services.values() {
            let Listen::Unix {
                path,
                mode: Some(mode),
            } = &service.listen
            else {
                continue;
            };
            let of_old = |old: &Service| old.listen == service.listen;
            let held = self.listeners.hold(&address(service));
            if held && !self.state.config.services.values().any(of_old) {
                unix_socket::set_mode(path, *mode);
            }
        }
    }
}
