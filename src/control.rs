//! The single writer. Whatever changes comes in here as an event, is decided by [`state`] without
//! I/O, and goes out as finished values: a route to each listener that it concerns, a status to
//! whoever reads it.
//!
//! A reload is parse, plan, prepare (take every new address), commit: all or nothing. Starting is
//! a reload from the empty configuration, so there is one path.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::CryptoProvider;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::{error, info, warn};

use crate::admin::{
    Change, CredentialRefusal, CredentialReload, ReloadOutcome, ReloadRefusal, ReloadReport,
    ReloadRequest, ServiceChanges,
};
use crate::clock;
use crate::cluster::Store;
use crate::config::{Config, Listen, Service};
use crate::failure::{Explained, Reason};
use crate::material::Part;
use crate::metrics::Metrics;
use crate::proxy::listener::Bound;
use crate::shutdown::{Shutdown, Terms};
use crate::source::{
    self, Batch, Batches, Material, Reading, SourceKey, Ticket, Trigger, Watch, WatchOptions,
};
use crate::status::{ConfigStatus, ProcessState, ServiceState, Status};
use crate::telemetry;
use crate::unix_socket;
use crate::workers::Workers;

mod credentials;
mod endpoints;
mod listeners;
mod report;
mod state;

use credentials::{Credentials, Judged, Verdict};
use endpoints::Endpoints;
use listeners::Listeners;
pub(crate) use report::source_name;
pub(crate) use state::State;
use state::{Plan, address};

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
    pub(crate) log: telemetry::Handle,
    pub(crate) version: &'static str,
}

/// Why a configuration did not come into force.
#[derive(Clone, Debug)]
pub(crate) struct Refused {
    pub(crate) why: Explained,
    /// Every mistake, each with its place.
    pub(crate) problems: Vec<String>,
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
        reloads: mpsc::Sender<ReloadRequest>,
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
            },
            services: Vec::new(),
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
        let listeners = Listeners::new(setup.shutdown.clone());
        let mut control = Self {
            state: State::new(Config::empty(), provider, metrics),
            setup,
            listeners,
            endpoints,
            watch,
            batches,
            text,
            refused: None,
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

    /// Services that do not serve as configured, each with the reason.
    pub(crate) fn not_ready(&self) -> Vec<(String, Explained)> {
        let status = self.status.borrow();
        let waiting = status
            .services
            .iter()
            .filter(|service| service.state != ServiceState::Ready);
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
                    self.requests.push((self.watch.request(), request));
                },
                Ok(()) = health.changed() => {
                    info!(how = %health.borrow_and_update().noticing, "changes are noticed by");
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
            self.text = config_text(Some(reading));
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
        let judged = self.state.credentials.judge(readings, now, &provider);
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

    /// Brings the newest text into force, or leaves everything as it is.
    async fn reload(&mut self, trigger: Trigger) -> Result<ServiceChanges, Refused> {
        let result = self.attempt().await;
        let now = clock::unix_seconds();
        match result {
            Ok(changes) => {
                self.refused = None;
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

    /// Parse, plan, prepare, commit.
    async fn attempt(&mut self) -> Result<ServiceChanges, Refused> {
        let config = parse(&self.text, &self.setup.path, &self.setup.environment)?;
        let held = self.listeners.held();
        let plan = self.state.plan(&config, &held);

        self.start_workers(&config)?;
        let prepared = self.prepare(&plan, &config)?;
        let sources = Credentials::sources(&config);
        let unread = self.state.credentials.unread(&sources);
        let readings = read(unread, &self.setup.cluster).await;
        Ok(self.commit(config, plan, prepared, &readings).await)
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

    /// Takes every new address; on any failure gives all of them back.
    fn prepare(&self, plan: &Plan, config: &Config) -> Result<Prepared, Refused> {
        let mut failures = Vec::new();
        let mut listeners = Vec::new();
        for listen in &plan.bind {
            let service = config
                .services
                .values()
                .find(|service| address(service) == *listen);
            // The listener's own key, with what the plan leaves out (a unix socket's mode).
            let listen = service.map_or(listen, |service| &service.listen);
            match Bound::bind(listen) {
                Ok(bound) => listeners.push(bound),
                Err(why) => {
                    let name = service.map_or("", |service| service.name.as_str());
                    failures.push(format!("services.{name}.listen: {}", why.detail));
                }
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
        let words = |names: &[crate::config::ServiceName]| {
            names.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let changes = ServiceChanges {
            added: words(&plan.added),
            changed: words(&plan.changed),
            removed: words(&plan.removed),
        };
        if self.generation > 0 && config.workers != self.state.config.workers {
            warn!("workers was changed: it counts from the next start on");
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

    /// Hands every changed route to its listener, and takes those that may no longer serve.
    fn publish_routes(&mut self) {
        for (listen, route) in self.state.rebuild() {
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

    fn publish(&self) {
        let unbound = self.listeners.failed();
        let services = report::services(&self.state, &unbound, &self.watch.health().borrow());
        let state = if self.setup.shutdown.leaving().is_cancelled() {
            ProcessState::Stopping
        } else if self.generation == 0 {
            ProcessState::Starting
        } else if services
            .iter()
            .all(|service| service.state == ServiceState::Ready)
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
            },
            services,
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
) -> Result<State, Refused> {
    let cluster = Store::new(None);
    let readings = read(BTreeSet::from([SourceKey::Config(path.clone())]), &cluster).await;
    let text = config_text(readings.first());
    let config = parse(&text, &path, environment)?;
    let readings = read(Credentials::sources(&config), &cluster).await;
    let metrics = Arc::new(Metrics::new(""));
    let mut state = State::new(config, provider, metrics);
    let provider = state.provider().clone();
    state
        .credentials
        .judge(&readings, clock::unix_now(), &provider);
    state.rebuild();
    Ok(state)
}

fn parse(
    text: &Result<Part, Explained>,
    path: &Path,
    environment: &BTreeMap<String, String>,
) -> Result<Config, Refused> {
    let text = text.as_ref().map_err(|why| {
        let fix = match why.reason {
            Reason::BadConfig => "name the configuration file with -c FILE, or put it there",
            _ => why.hint,
        };
        Refused::of(why.clone(), fix)
    })?;
    let bad =
        |detail: String, fix: &str| Refused::of(Explained::new(Reason::BadConfig, detail), fix);
    let text = std::str::from_utf8(&text.bytes).map_err(|error| {
        let detail = format!("{} is not UTF-8: {error}", path.display());
        bad(detail, "save the file as UTF-8 text")
    })?;
    if text.trim().is_empty() {
        // Cut short by a full disk, or by a writer that is not done: nobody means "no services"
        // by it, and it must not end all of them.
        let detail = format!("{} is empty", path.display());
        return Err(bad(
            detail,
            "write the configuration; one without services needs a line such as [services]",
        ));
    }
    let config = Config::parse(text, path, environment)
        .map_err(|problems| Refused::by_problems(&problems))?;
    telemetry::check_filter(&config.log.filter)
        .map_err(|error| bad(error.to_string(), "correct log.filter"))?;
    Ok(config)
}

struct Prepared {
    listeners: Vec<Bound>,
    endpoints: endpoints::Prepared,
}

impl Refused {
    fn of(why: Explained, fix: &str) -> Self {
        let problems = vec![format!("{}\n  fix: {fix}", why.detail)];
        Self { why, problems }
    }

    fn by_problems(problems: &crate::config::Problems) -> Self {
        let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
        let count = match problems.len() {
            1 => "1 mistake".to_owned(),
            n => format!("{n} mistakes"),
        };
        let first = problems
            .first()
            .map_or("", |first| first.lines().next().unwrap_or(""));
        let detail = format!("{count}; the first: {first}");
        Self {
            why: Explained::new(Reason::BadConfig, detail),
            problems,
        }
    }
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

fn config_text(reading: Option<&Reading>) -> Result<Part, Explained> {
    match reading.map(|reading| &reading.material) {
        Some(Ok(Material::Config(part))) => Ok(part.clone()),
        Some(Err(why)) => Err(why.clone()),
        Some(Ok(Material::Identity(_) | Material::Trust(_))) | None => Err(Explained::new(
            Reason::Internal,
            "the configuration was not read",
        )),
    }
}
