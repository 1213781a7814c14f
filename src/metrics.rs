//! Counters, gauges and histograms, each resolved once and then only added to.
//!
//! Names, labels and units are in `metrics/text.rs`; this file holds the numbers. They are plain
//! atomics, added to with relaxed order: each is right by itself, and a scrape may see a
//! connection's bytes before its end.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use prometheus_client::registry::Registry;

use crate::clock;
use crate::config::ServiceName;
use crate::failure::{Failure, Phase, Reason, Side};
use crate::source::Trigger;
use crate::status::{LastFailure, MemoryStatus, ProcessState, ServiceState, Status, Traffic};
use crate::workers::Crew;

mod text;

/// All metrics of the process.
#[derive(Debug)]
pub(crate) struct Metrics {
    inner: Arc<Inner>,
    /// Knows the prefix and the one collector, `inner`.
    registry: Registry,
}

/// The metrics of one service, for the data path: no look-up, no lock but for a failure.
#[derive(Debug, Default)]
pub(crate) struct ServiceMetrics {
    open: AtomicI64,
    ended_ok: AtomicU64,
    bytes_up: AtomicU64,
    bytes_down: AtomicU64,
    handshakes_full: AtomicU64,
    handshakes_resumed: AtomicU64,
    handshakes_waiting: AtomicI64,
    handshakes_queued: AtomicU64,
    connect: Histogram,
    handshake: Histogram,
    failures: Mutex<Failures>,
    /// As long as whoever keeps them holds the gauge.
    endpoints: Mutex<Weak<AtomicUsize>>,
}

/// Counts a connection as open until dropped.
#[derive(Debug)]
pub(crate) struct Open(Arc<ServiceMetrics>);

/// Shows how many endpoints a service has, until dropped or until another takes its place.
#[derive(Debug)]
pub(crate) struct EndpointGauge(Arc<AtomicUsize>);

/// Counts a connection as one that waits for its handshake until dropped.
#[derive(Debug)]
pub(crate) struct Waiting<'a>(&'a ServiceMetrics);

impl Metrics {
    /// No services yet; the process starts now.
    pub(crate) fn new(version: &str) -> Self {
        let inner = Arc::new(Inner {
            version: version.to_owned(),
            started_at: clock::unix_seconds(),
            services: Mutex::default(),
            reloads: Mutex::default(),
            mirror: Mutex::default(),
            memory: Mutex::default(),
            crew: OnceLock::new(),
        });
        let mut registry = Registry::with_prefix("tlsward");
        registry.register_collector(Box::new(Arc::clone(&inner)));
        Self { inner, registry }
    }

    /// The handles of a service, made at its first use and the same from then on. A service that
    /// is added again before its last connection from earlier has ended gets its old handles, and
    /// its counters go on.
    pub(crate) fn service(&self, name: &ServiceName) -> Arc<ServiceMetrics> {
        let mut services = lock(&self.inner.services);
        let entry = services.entry(name.clone()).or_default();
        entry.forgotten = false;
        Arc::clone(&entry.metrics)
    }

    /// Drops a removed service's series once the last holder of its handles is gone: its listener
    /// and each of its connections.
    pub(crate) fn forget(&self, name: &ServiceName) {
        if let Some(entry) = lock(&self.inner.services).get_mut(name) {
            entry.forgotten = true;
        }
        self.inner.prune();
    }

    /// How many connections are open now, of all services.
    pub(crate) fn open(&self) -> u64 {
        let services = lock(&self.inner.services);
        services.values().map(|entry| entry.metrics.open()).sum()
    }

    /// How many connections have ended so far, of all services that are known.
    pub(crate) fn ended(&self) -> u64 {
        let services = lock(&self.inner.services);
        let ended = services.values().map(|entry| entry.metrics.traffic());
        ended.map(|traffic| traffic.ended_ok + traffic.failed).sum()
    }

    /// What a service's connections did; `None` if nobody has asked for its handles yet.
    pub(crate) fn traffic(&self, name: &str) -> Option<Traffic> {
        let name = ServiceName::parse(name).ok()?;
        let metrics = lock(&self.inner.services)
            .get(&name)
            .map(|entry| Arc::clone(&entry.metrics))?;
        Some(metrics.traffic())
    }

    /// A configuration or credential was read again: `source` is `config`, `identity` or `trust`,
    /// `result` is `ok`, `unchanged` (equal to what is in use) or a reason's word. `now` in
    /// seconds since 1970.
    pub(crate) fn reloaded(
        &self,
        source: &'static str,
        trigger: Trigger,
        result: &'static str,
        now: i64,
    ) {
        let mut reloads = lock(&self.inner.reloads);
        *reloads
            .counts
            .entry((source, trigger.as_str(), result))
            .or_default() += 1;
        if matches!(result, "ok" | "unchanged") {
            reloads.last_success.insert(source, now);
        }
    }

    /// From now on the workers are shown too; those of the first call.
    pub(crate) fn show_workers(&self, crew: &Arc<Crew>) {
        self.inner.crew.get_or_init(|| Arc::clone(crew));
    }

    /// The workers, once they are shown.
    pub(crate) fn crew(&self) -> Option<Arc<Crew>> {
        self.inner.crew.get().cloned()
    }

    /// Sets the gauges that mirror status (expiry, generations, readiness).
    pub(crate) fn mirror(&self, status: &Status) {
        *lock(&self.inner.mirror) = Mirror::of(status);
    }

    /// A look at the process's memory.
    pub(crate) fn show_memory(&self, status: MemoryStatus) {
        let mut memory = lock(&self.inner.memory);
        if status.callers_wait && !memory.status.callers_wait {
            memory.waits += 1;
        }
        memory.status = status;
    }

    /// The last look at the process's memory.
    pub(crate) fn memory(&self) -> MemoryStatus {
        lock(&self.inner.memory).status.clone()
    }

    /// In Prometheus' text format, version 0.0.4.
    pub(crate) fn encode(&self) -> String {
        text::classic(&self.encode_openmetrics())
    }

    /// In OpenMetrics' text format, version 1.0.0.
    pub(crate) fn encode_openmetrics(&self) -> String {
        self.inner.prune();
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)
            .expect("writing to a String cannot fail");
        text
    }
}

impl ServiceMetrics {
    /// A connection was accepted; it is open until the guard is dropped.
    pub(crate) fn opened(self: &Arc<Self>) -> Open {
        self.open.fetch_add(1, Relaxed);
        Open(Arc::clone(self))
    }

    /// TCP to the upstream stands; `took` counts from accept.
    pub(crate) fn connected(&self, took: Duration) {
        self.connect.observe(took);
    }

    /// `max_handshakes` keeps a connection from beginning its handshake; it waits until the guard
    /// is dropped.
    pub(crate) fn waiting_for_handshake(&self) -> Waiting<'_> {
        self.handshakes_queued.fetch_add(1, Relaxed);
        self.handshakes_waiting.fetch_add(1, Relaxed);
        Waiting(self)
    }

    /// The handshake is done; `took` is its own time.
    pub(crate) fn handshaken(&self, took: Duration, resumed: bool) {
        self.handshake.observe(took);
        if resumed {
            self.handshakes_resumed.fetch_add(1, Relaxed);
        } else {
            self.handshakes_full.fetch_add(1, Relaxed);
        }
    }

    /// Bytes of payload were written on to the upstream.
    pub(crate) fn sent_up(&self, bytes: u64) {
        self.bytes_up.fetch_add(bytes, Relaxed);
    }

    /// Bytes of payload were written on to the caller.
    pub(crate) fn sent_down(&self, bytes: u64) {
        self.bytes_down.fetch_add(bytes, Relaxed);
    }

    /// From now on the service is shown as one with endpoints that come and go; none yet.
    pub(crate) fn endpoints(&self) -> EndpointGauge {
        let gauge = Arc::new(AtomicUsize::new(0));
        *lock(&self.endpoints) = Arc::downgrade(&gauge);
        EndpointGauge(gauge)
    }

    /// An endpoint failed for this reason, and the connection goes on to another.
    pub(crate) fn moved_on(&self, reason: Reason) {
        let mut failures = lock(&self.failures);
        *failures.moved_on.entry(reason).or_default() += 1;
    }

    /// How often [`Self::moved_on`] was told of each reason.
    #[cfg(test)]
    pub(crate) fn moves(&self) -> BTreeMap<Reason, u64> {
        lock(&self.failures).moved_on.clone()
    }

    /// A connection ended; `now` in seconds since 1970.
    pub(crate) fn ended(&self, outcome: Result<(), &Failure>, now: i64) {
        let Err(failure) = outcome else {
            self.ended_ok.fetch_add(1, Relaxed);
            return;
        };
        let mut failures = lock(&self.failures);
        *failures
            .counts
            .entry((failure.phase, failure.side, failure.why.reason))
            .or_default() += 1;
        failures.last = Some(LastFailure {
            at: now,
            failure: failure.clone(),
        });
    }

    /// For status.
    pub(crate) fn traffic(&self) -> Traffic {
        let failures = lock(&self.failures);
        Traffic {
            open: self.open(),
            ended_ok: self.ended_ok.load(Relaxed),
            failed: failures.counts.values().sum(),
            bytes_up: self.bytes_up.load(Relaxed),
            bytes_down: self.bytes_down.load(Relaxed),
            handshakes_full: self.handshakes_full.load(Relaxed),
            handshakes_resumed: self.handshakes_resumed.load(Relaxed),
            last_failure: failures.last.clone(),
        }
    }

    fn open(&self) -> u64 {
        u64::try_from(self.open.load(Relaxed)).unwrap_or(0)
    }
}

impl EndpointGauge {
    /// So many take new connections.
    pub(crate) fn set(&self, endpoints: usize) {
        self.0.store(endpoints, Relaxed);
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.handshakes_waiting.fetch_sub(1, Relaxed);
    }
}

#[derive(Debug)]
struct Inner {
    version: String,
    started_at: i64,
    services: Mutex<BTreeMap<ServiceName, Entry>>,
    reloads: Mutex<Reloads>,
    mirror: Mutex<Mirror>,
    memory: Mutex<Memory>,
    crew: OnceLock<Arc<Crew>>,
}

impl Inner {
    /// Lets go of forgotten services whose handles nobody else holds. The lock makes the count
    /// final: handles are only given out under it.
    fn prune(&self) {
        lock(&self.services)
            .retain(|_, entry| !entry.forgotten || Arc::strong_count(&entry.metrics) > 1);
    }
}

#[derive(Debug, Default)]
struct Entry {
    metrics: Arc<ServiceMetrics>,
    forgotten: bool,
}

#[derive(Debug, Default)]
struct Failures {
    /// Of connections.
    counts: BTreeMap<(Phase, Side, Reason), u64>,
    last: Option<LastFailure>,
    /// Of endpoints, where the connection went on to another.
    moved_on: BTreeMap<Reason, u64>,
}

#[derive(Debug, Default)]
struct Reloads {
    /// By source, trigger and result.
    counts: BTreeMap<(&'static str, &'static str, &'static str), u64>,
    /// By source; seconds since 1970.
    last_success: BTreeMap<&'static str, i64>,
}

#[derive(Debug, Default)]
struct Memory {
    status: MemoryStatus,
    /// How often callers have begun to wait.
    waits: u64,
}

/// The numbers that stand in status already.
#[derive(Debug, Default)]
struct Mirror {
    stopping: bool,
    sandbox: Vec<(&'static str, bool)>,
    config_generation: u64,
    services: Vec<MirroredService>,
}

#[derive(Debug)]
struct MirroredService {
    name: String,
    ready: bool,
    identity_generation: Option<u64>,
    /// Of the leaf, in seconds since 1970.
    identity_not_before: Option<i64>,
    identity_not_after: Option<i64>,
    trust_generation: Option<u64>,
    /// Of the anchor that expires first.
    trust_not_after: Option<i64>,
    /// Of the list that is due first.
    crl_next_update: Option<i64>,
}

impl Mirror {
    fn of(status: &Status) -> Self {
        let services = status
            .services
            .iter()
            // A removed service has no readiness to watch, and its certificates may expire.
            .filter(|service| service.state != ServiceState::Draining)
            .map(|service| {
                let identity = service.identity.as_ref();
                let leaf = identity.and_then(|identity| identity.chain.first());
                let trust = service.trust.as_ref();
                MirroredService {
                    name: service.name.clone(),
                    ready: service.state.serves(),
                    identity_generation: identity.map(|identity| identity.generation),
                    identity_not_before: leaf.map(|leaf| leaf.not_before),
                    identity_not_after: leaf.map(|leaf| leaf.not_after),
                    trust_generation: trust.map(|trust| trust.generation),
                    trust_not_after: trust
                        .and_then(|trust| trust.anchors.iter().map(|a| a.not_after).min()),
                    crl_next_update: trust
                        .and_then(|trust| trust.crls.iter().filter_map(|c| c.next_update).min()),
                }
            })
            .collect();
        Self {
            sandbox: status.sandbox.parts().to_vec(),
            stopping: status.state == ProcessState::Stopping,
            config_generation: status.config.generation,
            services,
        }
    }
}

/// Durations, in buckets of a fixed layout.
#[derive(Debug, Default)]
struct Histogram {
    /// One more than there are bounds: the last has no upper bound.
    buckets: [AtomicU64; BOUNDS.len() + 1],
    /// A `u64` of nanoseconds holds 584 years.
    sum_nanos: AtomicU64,
}

/// Upper bounds. From what a handshake on the same machine takes to the default of
/// `connect_timeout`, in steps of 1, 2.5 and 5 so that a quantile is off by a factor of 2.5 at
/// most; the same for all services, so that their histograms can be added.
const BOUNDS: [Duration; 16] = [
    Duration::from_micros(100),
    Duration::from_micros(250),
    Duration::from_micros(500),
    Duration::from_millis(1),
    Duration::from_micros(2_500),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(25),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_millis(2_500),
    Duration::from_secs(5),
    Duration::from_secs(10),
];

impl Histogram {
    fn observe(&self, took: Duration) {
        let bucket = BOUNDS.partition_point(|bound| *bound < took);
        self.buckets[bucket].fetch_add(1, Relaxed);
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.sum_nanos.fetch_add(nanos, Relaxed);
    }
}

/// A panic elsewhere leaves whole numbers behind, so its poison is no reason to fail here.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
