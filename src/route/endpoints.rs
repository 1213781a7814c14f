//! The endpoints of a Kubernetes Service that take new connections: a live set that routes share.
//! It changes as pods come and go; no route is built anew for that, and sessions stay.
//!
//! A connection goes to the one of two endpoints, drawn at random, that has fewer of our own
//! connections ("the power of two choices"): nearly as even as the best of all, at a cost that does
//! not grow with their number, and a pod that has just come is not overrun. One that failed is set
//! aside for a while. docs/decisions/0019-endpoints.md says why.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher as _, RandomState};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustls_pki_types::ServerName;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::config::kubernetes::ServiceBackend;
use crate::metrics::{EndpointGauge, ServiceMetrics};
use crate::tls::tickets::Partition;

/// For how long an endpoint is set aside at first; twice as long each time that it fails again.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Throws of the dice for an endpoint that can be used, before all are looked at in turn.
const THROWS: usize = 4;

/// The live set of one port of a Service. A connection that was given an endpoint keeps it.
#[derive(Debug)]
pub(crate) struct Endpoints {
    backend: ServiceBackend,
    server_name: Option<ServerName<'static>>,
    /// In order of id. Held for reading while an endpoint is picked, which takes less than 1 µs.
    current: watch::Sender<Box<[Arc<Endpoint>]>>,
    /// Random numbers that nobody needs to be unable to guess.
    dice: AtomicU64,
    gauge: EndpointGauge,
}

/// How things stand with a Service's endpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    /// Those that take new connections.
    pub(crate) chosen: usize,
    /// Those of them that failed and are avoided now.
    pub(crate) set_aside: usize,
    /// Our connections that are open to them, those that are being dialled included.
    pub(crate) open: usize,
}

/// Where a connection may go.
#[derive(Debug)]
pub(crate) enum Pick {
    /// To this endpoint; `others` more could be tried after it.
    Endpoint { held: Held, others: usize },
    /// Nowhere: there is no endpoint now.
    Empty,
    /// Nowhere: each that there is was tried.
    Exhausted,
}

impl Endpoints {
    /// Without an endpoint yet. `metrics` shows how many there are.
    pub(crate) fn new(backend: ServiceBackend, metrics: &ServiceMetrics) -> Self {
        let service = &backend.service;
        let name = format!("{}.{}.svc", service.name, service.namespace);
        Self {
            server_name: ServerName::try_from(name).ok(),
            backend,
            current: watch::Sender::new(Box::default()),
            // std's hasher keys are random enough.
            dice: AtomicU64::new(RandomState::new().hash_one(())),
            gauge: metrics.endpoints(),
        }
    }

    pub(crate) fn backend(&self) -> &ServiceBackend {
        &self.backend
    }

    /// `NAME.NAMESPACE.svc`, which is verified unless the route says otherwise. `None` where that
    /// is no name, of which Kubernetes makes no Service.
    pub(crate) fn server_name(&self) -> Option<&ServerName<'static>> {
        self.server_name.as_ref()
    }

    /// New connections go to these from now on, each given by what makes it the same as one from
    /// before, and its addresses. Those that stay keep their counts; whoever waits for the first
    /// one is woken. For one writer.
    pub(crate) fn replace(&self, endpoints: BTreeMap<String, Vec<SocketAddr>>) {
        let new: Option<Box<[Arc<Endpoint>]>> = {
            let current = self.current.borrow();
            let same = current.len() == endpoints.len()
                && current
                    .iter()
                    .zip(&endpoints)
                    .all(|(old, (id, addresses))| *old.id == **id && *old.addresses == **addresses);
            (!same).then(|| {
                let before: HashMap<&str, &Arc<Endpoint>> =
                    current.iter().map(|old| (&*old.id, old)).collect();
                let next =
                    |(id, addresses): (String, Vec<SocketAddr>)| match before.get(id.as_str()) {
                        Some(old) if *old.addresses == *addresses => Arc::clone(old),
                        old => Arc::new(Endpoint {
                            id: id.into(),
                            addresses: addresses.into(),
                            open: old.map_or_else(Arc::default, |old| Arc::clone(&old.open)),
                            sessions: Partition::new(),
                            in_trouble: AtomicBool::new(false),
                            trouble: Mutex::default(),
                        }),
                    };
                endpoints.into_iter().map(next).collect()
            })
        };
        if let Some(new) = new {
            self.gauge.set(new.len());
            self.current.send_replace(new);
        }
    }

    /// Chooses where a connection goes that has been to `tried` in vain, and counts it there.
    pub(crate) fn pick(&self, tried: &Tried, now: Instant) -> Pick {
        let all = self.current.borrow();
        if all.is_empty() {
            return Pick::Empty;
        }
        let untried = |endpoint: &Arc<Endpoint>| !tried.contains(endpoint);
        let in_favour = |endpoint: &Arc<Endpoint>| untried(endpoint) && !endpoint.is_aside(now);
        let Some(picked) = self
            .better_of_two(&all, in_favour)
            // Rather one that failed than none.
            .or_else(|| self.better_of_two(&all, untried))
        else {
            return Pick::Exhausted;
        };
        picked.begin_trial(now);
        picked.open.fetch_add(1, Relaxed);
        let left = match tried.0.as_slice() {
            [] => all.len(),
            _ => all.iter().filter(|endpoint| untried(endpoint)).count(),
        };
        Pick::Endpoint {
            held: Held(Arc::clone(picked)),
            others: left - 1,
        }
    }

    /// Waits until there is an endpoint.
    ///
    /// # Cancellation
    /// Cancel at will.
    pub(crate) async fn appear(&self) {
        let mut current = self.current.subscribe();
        // It fails where the sender is gone, which this borrows.
        let _ = current.wait_for(|all| !all.is_empty()).await;
    }

    /// For status.
    pub(crate) fn summary(&self, now: Instant) -> Summary {
        let all = self.current.borrow();
        Summary {
            chosen: all.len(),
            set_aside: all.iter().filter(|endpoint| endpoint.is_aside(now)).count(),
            open: all.iter().map(|it| it.open.load(Relaxed)).sum(),
        }
    }

    fn better_of_two<'a>(
        &self,
        all: &'a [Arc<Endpoint>],
        usable: impl Fn(&Arc<Endpoint>) -> bool,
    ) -> Option<&'a Arc<Endpoint>> {
        let one = self.draw(all, &usable)?;
        let other = match all {
            [_] => None,
            _ => self.draw(all, |it| !Arc::ptr_eq(it, one) && usable(it)),
        };
        let open = |it: &Arc<Endpoint>| it.open.load(Relaxed);
        Some(other.filter(|other| open(other) < open(one)).unwrap_or(one))
    }

    /// One of those that are usable, at random.
    fn draw<'a>(
        &self,
        all: &'a [Arc<Endpoint>],
        usable: impl Fn(&Arc<Endpoint>) -> bool,
    ) -> Option<&'a Arc<Endpoint>> {
        for _ in 0..THROWS {
            let drawn = &all[self.throw(all.len())];
            if usable(drawn) {
                return Some(drawn);
            }
        }
        // Few are: whichever comes next.
        let (before, after) = all.split_at(self.throw(all.len()));
        after.iter().chain(before).find(|it| usable(it))
    }

    /// From 0 to `sides` - 1 (splitmix64, of which any number of threads may take the next).
    fn throw(&self, sides: usize) -> usize {
        let mut dice = self.dice.fetch_add(0x9e37_79b9_7f4a_7c15, Relaxed);
        dice = (dice ^ (dice >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        dice = (dice ^ (dice >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        dice ^= dice >> 31;
        // The high bits of a product: even, and no division.
        ((u128::from(dice) * sides as u128) >> 64) as usize
    }
}

/// One endpoint, shared by all connections that go there.
#[derive(Debug)]
struct Endpoint {
    id: Box<str>,
    /// One, or two of both families.
    addresses: Box<[SocketAddr]>,
    /// Our connections, the dialled ones included; goes on where the addresses change.
    open: Arc<AtomicUsize>,
    /// Its TLS sessions, which another endpoint could not resume.
    sessions: Partition,
    /// `trouble` is to be asked.
    in_trouble: AtomicBool,
    trouble: Mutex<Trouble>,
}

/// An endpoint that failed, and has not worked since.
#[derive(Debug, Default)]
struct Trouble {
    /// In a row.
    failures: u32,
    aside_until: Option<Instant>,
    /// A connection has been let through to see whether it works again.
    on_trial: bool,
}

impl Endpoint {
    /// A panic elsewhere leaves a value that is right enough.
    fn trouble(&self) -> MutexGuard<'_, Trouble> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_aside(&self, now: Instant) -> bool {
        self.in_trouble.load(Relaxed) && self.trouble().is_aside(now)
    }

    /// When the time is over, one connection tries; the others go on avoiding it until that one
    /// knows, or for as long again.
    fn begin_trial(&self, now: Instant) {
        if !self.in_trouble.load(Relaxed) {
            return;
        }
        let mut trouble = self.trouble();
        if trouble.aside_until.is_some() && !trouble.is_aside(now) {
            trouble.set_aside(now);
            trouble.on_trial = true;
        }
    }

    fn failed(&self, now: Instant) {
        let mut trouble = self.trouble();
        // Connections that were on their way when it was set aside are no news.
        if trouble.is_aside(now) && !trouble.on_trial {
            return;
        }
        trouble.failures = trouble.failures.saturating_add(1);
        trouble.on_trial = false;
        trouble.set_aside(now);
        self.in_trouble.store(true, Relaxed);
    }

    fn worked(&self) {
        if self.in_trouble.load(Relaxed) {
            let mut trouble = self.trouble();
            *trouble = Trouble::default();
            self.in_trouble.store(false, Relaxed);
        }
    }
}

impl Trouble {
    fn is_aside(&self, now: Instant) -> bool {
        self.aside_until.is_some_and(|until| now < until)
    }

    fn set_aside(&mut self, now: Instant) {
        let doublings = self.failures.saturating_sub(1).min(5);
        let pause = (FIRST_PAUSE * 2_u32.pow(doublings)).min(LONGEST_PAUSE);
        self.aside_until = Some(now + pause);
    }
}

/// A connection's hold of its endpoint, which counts it there until dropped.
#[derive(Debug)]
pub(crate) struct Held(Arc<Endpoint>);

impl Held {
    /// Never empty.
    pub(crate) fn addresses(&self) -> &[SocketAddr] {
        &self.0.addresses
    }

    pub(crate) fn sessions(&self) -> Partition {
        self.0.sessions
    }

    /// It answered as it should: whatever there was against it is forgotten.
    pub(crate) fn worked(&self) {
        self.0.worked();
    }

    /// It failed: new connections avoid it for a while.
    pub(crate) fn failed(&self, now: Instant) {
        self.0.failed(now);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
    }
}

/// The endpoints at which a connection was in vain. Costs nothing until there is one.
#[derive(Debug, Default)]
pub(crate) struct Tried(Vec<Arc<Endpoint>>);

impl Tried {
    /// The connection goes elsewhere now.
    pub(crate) fn add(&mut self, held: Held) {
        self.0.push(Arc::clone(&held.0));
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    fn contains(&self, endpoint: &Arc<Endpoint>) -> bool {
        self.0.iter().any(|tried| Arc::ptr_eq(tried, endpoint))
    }
}

#[cfg(test)]
mod tests;
