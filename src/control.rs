//! The single writer. Whatever changes comes in here as an event, is decided by [`state`] without
//! I/O, and goes out as finished values: a route to each listener that it concerns, a status to
//! whoever reads it.
//!
//! A reload is parse, plan, prepare (take every new address), commit: all or nothing. Starting is
//! a reload from the empty configuration, so there is one path.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::CryptoProvider;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::{error, info, warn};

use crate::admin::{
    Change, CredentialRefusal, CredentialReload, ReloadOutcome, ReloadRefusal, ReloadReport,
    ReloadRequest, Reloads, ServiceChanges,
};
use crate::clock;
use crate::cluster::{Store, Wanted};
use crate::config::{Config, Service, ServiceName};
use crate::failure::{Explained, Reason};
use crate::material::Part;
use crate::metrics::Metrics;
use crate::sandbox::Sandbox;
use crate::shutdown::Shutdown;
use crate::source::{
    self, Batch, Batches, Reading, SourceKey, Ticket, Trigger, Watch, WatchOptions,
};
use crate::status::{ConfigStatus, ProcessState, ServiceState, ServiceStatus, Status};
use crate::systemd::Sockets;
use crate::telemetry;
use crate::workers::Workers;

mod cluster;
mod confined;
mod credentials;
mod endpoints;
mod listeners;
mod reload;
mod report;
mod state;
mod text;

use cluster::{Accepted, Assembly, Hindered, Parts};
pub(crate) use confined::outline;
use credentials::{Credentials, Judged, Verdict};
use endpoints::Endpoints;
use listeners::Listeners;
use reload::ASK_AT_START;
pub(crate) use report::source_name;
pub(crate) use state::State;
pub(crate) use text::Refused;
use text::config_text;

/// How often what the clock refused is judged again: a machine's clock may be set right after the
/// start, and a certificate may be handed out before it becomes valid.
const JUDGE_AGAIN: Duration = Duration::from_secs(30);

/// What control is made with.
pub(crate) struct Setup {
    /// The configuration file, absolute.
    pub(crate) path: PathBuf,
    /// The environment, for `${VAR}` and `TLSWARD_*`.
    pub(crate) environment: BTreeMap<String, String>,
    pub(crate) provider: CryptoProvider,
    pub(crate) metrics: Arc<Metrics>,
    /// What is known of the Kubernetes cluster.
    pub(crate) cluster: Arc<Store>,
    pub(crate) shutdown: Shutdown,
    pub(crate) sandbox: Sandbox,
    pub(crate) log: telemetry::Handle,
    pub(crate) version: &'static str,
}

/// The running whole.
pub(crate) struct Control {
    setup: Setup,
    state: State,
    listeners: Listeners,
    endpoints: Endpoints,
    watch: Watch,
    batches: Batches,
    /// The newest text of the configuration file, in force or not.
    text: Result<Part, Explained>,
    /// Why that text is not in force, if it is not.
    refused: Option<Refused>,
    /// The text in force.
    in_force: Result<Part, Explained>,
    /// The Services as they are in force.
    accepted: Accepted,
    /// What is wrong with the newest state of Services whose services go on as before.
    stale: BTreeMap<ServiceName, Hindered>,
    /// Services that are asked for and cannot be served.
    hindered: BTreeMap<ServiceName, Hindered>,
    /// When the configuration is assembled anew for what has changed in the cluster.
    assemble_at: Option<Instant>,
    /// When status is published for what has changed in the cluster.
    publish_at: Option<Instant>,
    generation: u64,
    loaded_at: i64,
    started_at: i64,
    requests: Vec<(Ticket, ReloadRequest)>,
    /// When what the clock refused was last judged again.
    judged_again: Instant,
    status: watch::Sender<Arc<Status>>,
}

/// What is left when control has stopped.
pub(crate) struct Stopped {
    endpoints: Endpoints,
    watch: Watch,
    workers: Option<Workers>,
}

impl Stopped {
    /// Ends the endpoints, which answer until the last connection has ended, and the workers.
    pub(crate) async fn finish(self) {
        self.endpoints.stop().await;
        self.watch.stop().await;
        if let Some(workers) = self.workers {
            workers.join();
        }
    }
}

impl Control {
    /// Reads configuration and credentials, takes all addresses and begins to serve what can be
    /// served.
    ///
    /// # Errors
    /// The configuration has mistakes, or an address is not to be had. Missing or bad
    /// credentials are no error: [`Self::not_ready`] tells of them.
    pub(crate) async fn start(
        setup: Setup,
        reloads: Reloads,
        sockets: Sockets,
    ) -> Result<Self, Refused> {
        let now = clock::unix_seconds();
        let metrics = Arc::clone(&setup.metrics);
        let provider = setup.provider.clone();
        let first = Status {
            version: setup.version,
            state: ProcessState::Starting,
            started_at: now,
            config: ConfigStatus {
                path: setup.path.display().to_string(),
                generation: 0,
                loaded_at: now,
                refused: None,
                warnings: Vec::new(),
            },
            services: Vec::new(),
            discovery: None,
            sandbox: setup.sandbox.report().clone(),
        };
        let (status, published) = watch::channel(Arc::new(first));
        let shutdown = setup.shutdown.clone();
        let endpoints = Endpoints::new(published, Arc::clone(&metrics), reloads, shutdown);
        let config = BTreeSet::from([SourceKey::Config(setup.path.clone())]);
        let readings = read(config, &setup.cluster).await;
        let text = config_text(readings.first());
        let (watch, batches) = source::watch(
            BTreeSet::from([SourceKey::Config(setup.path.clone())]),
            &readings,
            WatchOptions::default(),
            Arc::clone(&setup.cluster),
        );
        let listeners = Listeners::new(setup.shutdown.clone(), sockets);
        let mut control = Self {
            state: State::new(Config::empty(), provider, metrics),
            setup,
            listeners,
            endpoints,
            watch,
            batches,
            in_force: text.clone(),
            text,
            refused: None,
            accepted: Accepted::new(),
            stale: BTreeMap::new(),
            hindered: BTreeMap::new(),
            assemble_at: None,
            publish_at: None,
            generation: 0,
            loaded_at: now,
            started_at: now,
            requests: Vec::new(),
            judged_again: Instant::now(),
            status,
        };
        control.reload(Trigger::Start).await?;
        Ok(control)
    }

    /// What is going on, now and as it changes.
    pub(crate) fn status(&self) -> watch::Receiver<Arc<Status>> {
        self.status.subscribe()
    }

    /// Services that do not serve as configured, each with the reason.
    pub(crate) fn not_ready(&self) -> Vec<(String, Explained)> {
        let status = self.status.borrow();
        let waiting = status.services.iter().filter(|service| service.lacks());
        waiting
            .filter_map(|service| Some((service.name.clone(), service.problem.clone()?)))
            .collect()
    }

    /// Carries out what happens until the drain begins; then stops accepting.
    pub(crate) async fn run(self, reloads: mpsc::Receiver<ReloadRequest>) -> Stopped {
        let leaving = self.setup.shutdown.leaving().clone();
        let (status, metrics) = (self.status.clone(), Arc::clone(&self.setup.metrics));
        // Readiness is denied at once, even while a reading hangs (a dead network file system).
        let deny_readiness = async move {
            leaving.cancelled().await;
            status.send_modify(|status| Arc::make_mut(status).state = ProcessState::Stopping);
            metrics.mirror(&status.borrow());
            std::future::pending::<Infallible>().await
        };
        tokio::select! {
            stopped = self.carry_on(reloads) => stopped,
            never = deny_readiness => match never {},
        }
    }

    async fn carry_on(mut self, mut reloads: mpsc::Receiver<ReloadRequest>) -> Stopped {
        let drain = self.setup.shutdown.drain().clone();
        let mut health = self.watch.health();
        let mut told = None;
        let cluster = Arc::clone(&self.setup.cluster);
        let mut watching = true;
        loop {
            let timer = self.next_timer();
            tokio::select! {
                biased;
                () = drain.cancelled() => break,
                batch = self.batches.recv(), if watching => match batch {
                    // Reading may take for ever (a dead network file system), and the drain does
                    // not wait for it. What a reload leaves half done then ends with the rest.
                    Some(batch) => tokio::select! {
                        biased;
                        () = drain.cancelled() => break,
                        () = self.take(batch) => {}
                    },
                    // It ends only with us, or by a bug of its own. What is served is served on.
                    None => {
                        watching = false;
                        self.requests.clear();
                        error!(
                            reason = %Reason::Internal, hint = Reason::Internal.hint(),
                            "files are no longer watched: restart tlsward to take up changes"
                        );
                    }
                },
                // A request that nobody can carry out is dropped, which its asker is told.
                Some(request) = reloads.recv() => if watching {
                    // Objects tell of their changes; what keeps them from it is tried again now.
                    cluster.hurry();
                    self.requests.push((self.watch.request(), request));
                },
                () = cluster.changed() => self.cluster_changed(),
                () = at(self.publish_at) => {
                    self.publish_at = None;
                    self.publish();
                }
                () = at(self.assemble_at) => tokio::select! {
                    biased;
                    () = drain.cancelled() => break,
                    () = self.assemble_again() => {}
                },
                Ok(()) = health.changed() => {
                    let now = health.borrow_and_update().clone();
                    report::log_health(told.as_ref(), &now);
                    told = Some(now);
                    self.publish();
                }
                () = timer => self.timer_fired(),
            }
        }
        self.stop().await
    }

    async fn stop(mut self) -> Stopped {
        // Dropped requests are told that the process stops.
        self.requests.clear();
        self.publish();
        let workers = self.listeners.close_all().await;
        Stopped {
            endpoints: self.endpoints,
            watch: self.watch,
            workers,
        }
    }

    /// What was read again because it changed, or because it was asked for.
    async fn take(&mut self, batch: Batch) {
        let Batch {
            trigger,
            readings,
            answers,
            ..
        } = batch;
        let config = SourceKey::Config(self.setup.path.clone());
        let new_text = readings.iter().find(|reading| reading.key == config);
        // Credentials first: a new configuration may depend on those that changed with it.
        let judged = self.judge(&readings, trigger);
        self.publish_routes();
        let mut result = None;
        if let Some(reading) = new_text {
            self.text = config_text(Some(&self.explained(reading)));
            result = Some(self.reload(trigger).await);
        } else if !answers.is_empty() && self.refused.is_some() {
            // The cause may be gone although the file is the same: an address that is free now.
            result = Some(self.reload(trigger).await);
        }
        self.publish();
        if answers.is_empty() {
            return;
        }
        self.count_unchanged(&judged, result.is_some(), trigger);
        let outcome = self.outcome(result, &judged);
        let answered = |(ticket, _): &mut (Ticket, ReloadRequest)| answers.contains(ticket);
        for (_, request) in self.requests.extract_if(.., answered) {
            drop(request.announced);
            // Whoever asked may have gone.
            let _ = request.reply.send(outcome.clone());
        }
    }

    /// A request also succeeds where there is nothing new, and its metrics say so.
    fn count_unchanged(&self, judged: &[Judged], config_read: bool, trigger: Trigger) {
        let now = clock::unix_seconds();
        if !config_read && self.refused.is_none() {
            self.setup
                .metrics
                .reloaded("config", trigger, "unchanged", now);
        }
        for key in Credentials::sources(&self.state.config) {
            let is_new = judged.iter().any(|judged| judged.key == key);
            if !is_new && self.refusal(&key).is_none() {
                let kind = report::source_kind(&key);
                self.setup.metrics.reloaded(kind, trigger, "unchanged", now);
            }
        }
    }

    fn outcome(
        &self,
        result: Option<Result<ServiceChanges, Refused>>,
        judged: &[Judged],
    ) -> ReloadOutcome {
        let (config, services) = match result {
            Some(Err(refused)) => {
                return ReloadOutcome::Refused(ReloadRefusal {
                    reason: refused.why.reason.to_string(),
                    hint: refused.why.hint.to_owned(),
                    problems: refused.problems,
                });
            }
            Some(Ok(services)) => (Change::Changed, services),
            None => (Change::Unchanged, ServiceChanges::default()),
        };
        let credentials = Credentials::sources(&self.state.config)
            .into_iter()
            .map(|key| {
                let changed = judged.iter().any(|judged| judged.key == key);
                let refused = self.refusal(&key);
                let result = match refused {
                    Some(why) => why.reason.as_str(),
                    None if changed => "ok",
                    None => "unchanged",
                };
                CredentialReload {
                    source: source_name(&key),
                    result: result.to_owned(),
                    services: self.users_of(&key),
                    refused: refused.map(|why| CredentialRefusal {
                        detail: why.detail.clone(),
                        hint: why.hint.to_owned(),
                        last_good_in_use: self.state.credentials.is_in_use(&key),
                    }),
                }
            })
            .collect();
        ReloadOutcome::Applied(ReloadReport {
            config,
            generation: self.generation,
            in_force_since: self.loaded_at,
            credentials,
            services,
        })
    }

    /// The services that use a source.
    fn users_of(&self, key: &SourceKey) -> Vec<String> {
        let uses = |service: &&Service| match key {
            SourceKey::Identity(source) => service.identity.as_ref() == Some(source),
            SourceKey::Trust(source) => service.trust.as_ref() == Some(source),
            SourceKey::Config(_) => false,
        };
        let services = self.state.config.services.values().filter(uses);
        services.map(|service| service.name.to_string()).collect()
    }

    fn refusal(&self, key: &SourceKey) -> Option<&Explained> {
        match key {
            SourceKey::Identity(source) => self.state.credentials.identity(source).refused(),
            SourceKey::Trust(source) => self.state.credentials.trust(source).refused(),
            SourceKey::Config(_) => None,
        }
    }

    /// Proves credentials and says what became of each.
    fn judge(&mut self, readings: &[Reading], trigger: Trigger) -> Vec<Judged> {
        let now = clock::unix_now();
        let provider = self.state.provider().clone();
        let explained: Vec<Reading> = readings
            .iter()
            .map(|reading| self.explained(reading).into_owned())
            .collect();
        let judged = self.state.credentials.judge(&explained, now, &provider);
        self.tell(&judged, trigger);
        judged
    }

    fn tell(&self, judged: &[Judged], trigger: Trigger) {
        let now = clock::unix_seconds();
        for judged in judged {
            report::log_judged(judged, &self.state, trigger);
            let result = match &judged.verdict {
                Verdict::Published { .. } => "ok",
                Verdict::Restored { .. } => "unchanged",
                Verdict::Refused(why) => why.reason.as_str(),
            };
            let kind = report::source_kind(&judged.key);
            self.setup.metrics.reloaded(kind, trigger, result, now);
        }
    }

    /// Hands every changed route to its listener, and takes those that may no longer serve.
    fn publish_routes(&mut self) {
        let changed = self.state.rebuild();
        // Before somebody dials them.
        cluster::feed(&self.state, &self.setup.cluster, None);
        for (listen, route) in changed {
            self.listeners.publish(listen, route);
        }
        for listen in self.state.withdraw() {
            self.listeners.withdraw(&listen);
        }
    }

    /// When there is something to do although nothing happened.
    fn next_timer(&self) -> impl Future<Output = ()> + use<> {
        let rotation =
            self.state.credentials.next_expiry().map(|at| {
                Duration::from_secs(u64::try_from(at - clock::unix_seconds()).unwrap_or(0))
            });
        let listen = self.listeners.due();
        let again = self.state.credentials.wait_for_the_clock().then(|| {
            let at = self.judged_again + JUDGE_AGAIN;
            at.saturating_duration_since(Instant::now())
        });
        let next = rotation.into_iter().chain(listen).chain(again).min();
        async move {
            match next {
                Some(next) => tokio::time::sleep(next).await,
                None => std::future::pending().await,
            }
        }
    }

    fn timer_fired(&mut self) {
        let overdue = self.state.credentials.expire(clock::unix_now());
        self.tell(&overdue, Trigger::Periodic);
        self.judge_again();
        self.listeners.try_again();
        self.publish();
    }

    fn judge_again(&mut self) {
        if self.judged_again.elapsed() < JUDGE_AGAIN {
            return;
        }
        self.judged_again = Instant::now();
        let provider = self.state.provider().clone();
        let judged = self
            .state
            .credentials
            .judge_again(clock::unix_now(), &provider);
        self.tell(&judged, Trigger::Periodic);
        self.publish_routes();
    }

    /// Why Services are not discovered, or not any more.
    fn discovery_trouble(&self) -> Option<Explained> {
        self.state.config.kubernetes.discovery.as_ref()?;
        let discovered = self.setup.cluster.discovered();
        discovered.trouble.or_else(|| {
            let unanswered = discovered.value.is_none();
            unanswered.then(|| {
                let detail = "the API server has not yet told which Services there are";
                Explained::new(Reason::ApiUnavailable, detail)
            })
        })
    }

    fn publish(&self) {
        let unbound = self.listeners.failed();
        let discovery = self.discovery_trouble();
        let health = self.watch.health();
        let health = health.borrow();
        let file = SourceKey::Config(self.setup.path.clone());
        let services = report::services(&report::Facts {
            state: &self.state,
            listeners: &self.listeners,
            unbound: &unbound,
            health: &health,
            cluster: &self.setup.cluster,
            stale: &self.stale,
            hindered: &self.hindered,
        });
        let state = if self.setup.shutdown.leaving().is_cancelled() {
            ProcessState::Stopping
        } else if self.generation == 0 {
            ProcessState::Starting
        } else if !services.iter().any(ServiceStatus::lacks)
            && (discovery.is_none() || self.setup.cluster.discovered().value.is_some())
        {
            ProcessState::Ready
        } else {
            ProcessState::Degraded
        };
        let status = Arc::new(Status {
            version: self.setup.version,
            state,
            started_at: self.started_at,
            config: ConfigStatus {
                path: self.setup.path.display().to_string(),
                generation: self.generation,
                loaded_at: self.loaded_at,
                refused: self.refused.as_ref().map(|refused| refused.why.clone()),
                warnings: health.notes.get(&file).cloned().unwrap_or_default(),
            },
            services,
            discovery,
            sandbox: self.setup.sandbox.report().clone(),
        });
        self.setup.metrics.mirror(&status);
        let before = self.status.send_replace(Arc::clone(&status));
        if before.state != status.state {
            log_state(&status);
        }
    }
}

/// Reads configuration and credentials as [`Control`] would, and touches nothing else: for
/// `tlsward check` and `tlsward probe`.
///
/// # Errors
/// The configuration has mistakes.
pub(crate) async fn examine(
    path: PathBuf,
    environment: &BTreeMap<String, String>,
    provider: CryptoProvider,
    cluster: Arc<Store>,
) -> Result<State, Refused> {
    let readings = read(BTreeSet::from([SourceKey::Config(path.clone())]), &cluster).await;
    let text = config_text(readings.first());
    let parts = Parts {
        text: &text,
        path: &path,
        environment,
        store: &cluster,
        accepted: &Accepted::new(),
    };
    let Assembly { config, .. } =
        cluster::assemble(&parts, &Wanted::default(), ASK_AT_START).await?;
    let readings = read(Credentials::sources(&config), &cluster).await;
    let metrics = Arc::new(Metrics::new(""));
    let mut state = State::new(config, provider, metrics);
    let provider = state.provider().clone();
    state
        .credentials
        .judge(&readings, clock::unix_now(), &provider);
    state.rebuild();
    cluster::feed(&state, &cluster, None);
    Ok(state)
}

/// A configuration and what is known of the Services in it, for `tlsward rbac`.
pub(crate) struct Survey {
    pub(crate) config: Config,
    /// What could not be asked of the API server, and why.
    pub(crate) unanswered: Vec<String>,
}

/// Reads the configuration, and asks the API server for its Services alone; `offline`: asks
/// nothing and says what stands in the file.
///
/// # Errors
/// The configuration has mistakes.
pub(crate) async fn survey(
    path: PathBuf,
    environment: &BTreeMap<String, String>,
    store: Arc<Store>,
    offline: bool,
) -> Result<Survey, Refused> {
    let readings = read(BTreeSet::from([SourceKey::Config(path.clone())]), &store).await;
    let parts = Parts {
        text: &config_text(readings.first()),
        path: &path,
        environment,
        store: &store,
        accepted: &Accepted::new(),
    };
    if offline {
        return Ok(Survey {
            config: cluster::file_alone(&parts)?,
            unanswered: Vec::new(),
        });
    }
    let config = cluster::survey(&parts, ASK_AT_START).await?;
    let unanswered = cluster::unanswered(&config, &store);
    Ok(Survey { config, unanswered })
}

fn log_state(status: &Status) {
    let waiting = status
        .services
        .iter()
        .filter(|service| service.state != ServiceState::Ready);
    match status.state {
        // Whoever asked for the end says so.
        ProcessState::Starting | ProcessState::Stopping => {}
        ProcessState::Ready => info!(services = status.services.len(), "ready"),
        ProcessState::Degraded => {
            for service in waiting {
                let why = service.problem.as_ref();
                warn!(
                    service = service.name,
                    reason = why.map(|why| why.reason.as_str()),
                    detail = why.map(|why| why.detail.as_str()),
                    hint = why.map(|why| why.hint),
                    "not serving as configured"
                );
            }
        }
    }
}

/// Waits for that moment, or for ever.
async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// File work off the runtime's threads.
async fn read(sources: BTreeSet<SourceKey>, cluster: &Arc<Store>) -> Vec<Reading> {
    if sources.is_empty() {
        return Vec::new();
    }
    // A panic while reading is a bug, and has been reported; whatever was to be read counts as
    // unread and is reported by the watch.
    let cluster = Arc::clone(cluster);
    tokio::task::spawn_blocking(move || source::read_all(&sources, &cluster))
        .await
        .unwrap_or_default()
}
