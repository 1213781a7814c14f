//! The decisions of control, without I/O: which routes follow from a configuration and the
//! credentials at hand, and what a new configuration asks of the listeners.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use tokio_util::sync::CancellationToken;

use super::credentials::Credentials;
use crate::config::{
    self, Callers, Config, CrlExpired, Listen, OnRotation, Service, ServiceName, Verify,
};
use crate::failure::{Explained, Reason};
use crate::metrics::Metrics;
use crate::route::{Endpoints, Handshakes, Presented, Route, Upstream};
use crate::tls::client_config::{Connector, client_config};

/// The configuration in force, the credentials, and the routes that follow from them.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) config: Config,
    pub(crate) credentials: Credentials,
    /// By the listener's address: a listener *is* its address, whatever its service is called.
    routes: BTreeMap<Listen, Entry>,
    /// What ends the connections of each service when its credentials are replaced, whatever else
    /// has changed about the service since they began.
    retirements: BTreeMap<ServiceName, Retirement>,
    /// Each service's handshakes: a new route of a service counts together with its earlier ones.
    handshakes: BTreeMap<ServiceName, Arc<Handshakes>>,
    /// The live sets of those services that go to a Kubernetes Service.
    endpoints: BTreeMap<ServiceName, Arc<Endpoints>>,
    provider: CryptoProvider,
    metrics: Arc<Metrics>,
}

/// What is served at one address.
#[derive(Debug)]
struct Entry {
    route: Arc<Route>,
    basis: Basis,
}

/// Cancels a token once the service has other credentials than those of `basis`.
#[derive(Debug)]
struct Retirement {
    basis: Basis,
    token: CancellationToken,
}

/// What a route was built from: while it is equal, the route stays.
#[derive(Clone, Debug, PartialEq)]
struct Basis {
    service: Service,
    /// 0 where there is none to have.
    identity: u64,
    trust: u64,
    log: bool,
}

/// Why a service has no route for what is configured.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Readiness {
    Ready,
    /// What it waits for; `serving` says whether an older route goes on meanwhile.
    Waiting {
        why: Explained,
        serving: bool,
    },
}

/// What a new configuration asks for.
#[derive(Debug, PartialEq)]
pub(crate) struct Plan {
    /// Addresses to take.
    pub(crate) bind: BTreeSet<Listen>,
    /// Addresses to give up.
    pub(crate) close: BTreeSet<Listen>,
    pub(crate) added: Vec<ServiceName>,
    pub(crate) changed: Vec<ServiceName>,
    pub(crate) removed: Vec<ServiceName>,
}

impl State {
    pub(crate) fn new(config: Config, provider: CryptoProvider, metrics: Arc<Metrics>) -> Self {
        let credentials = Credentials::default();
        Self {
            config,
            credentials,
            routes: BTreeMap::new(),
            retirements: BTreeMap::new(),
            handshakes: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            provider,
            metrics,
        }
    }

    pub(crate) fn provider(&self) -> &CryptoProvider {
        &self.provider
    }

    /// What `config` asks for, compared with what is in force.
    pub(crate) fn plan(&self, config: &Config, bound: &BTreeSet<Listen>) -> Plan {
        let wanted: BTreeSet<Listen> = config.services.values().map(address).collect();
        let names = |of: &Config, but: &Config| -> Vec<ServiceName> {
            let is_new = |name: &&ServiceName| !but.services.contains_key(*name);
            of.services.keys().filter(is_new).cloned().collect()
        };
        let changed = |(name, service): (&ServiceName, &Service)| {
            let old = self.config.services.get(name)?;
            (old != service).then(|| name.clone())
        };
        Plan {
            bind: wanted.difference(bound).cloned().collect(),
            close: bound.difference(&wanted).cloned().collect(),
            added: names(config, &self.config),
            changed: config.services.iter().filter_map(changed).collect(),
            removed: names(&self.config, config),
        }
    }

    /// Puts `config` in force. Cannot fail: what could was done before.
    pub(crate) fn commit(&mut self, config: Config) {
        let sources = Credentials::sources(&config);
        self.credentials.keep_only(&sources);
        let wanted: BTreeSet<Listen> = config.services.values().map(address).collect();
        self.routes.retain(|listen, _| wanted.contains(listen));
        self.retirements
            .retain(|name, _| config.services.contains_key(name));
        self.handshakes
            .retain(|name, _| config.services.contains_key(name));
        self.endpoints.retain(|name, live| {
            let service = config.services.get(name);
            service.is_some_and(|service| match &service.upstream {
                config::Upstream::Service(backend) => live.backend() == backend,
                config::Upstream::Addresses(_) => false,
            })
        });
        self.config = config;
    }

    /// The live set of a service's endpoints.
    pub(crate) fn endpoints_of(&self, service: &ServiceName) -> Option<&Arc<Endpoints>> {
        self.endpoints.get(service)
    }

    /// The live sets of endpoints, for whoever keeps them current.
    pub(crate) fn endpoints(&self) -> impl Iterator<Item = &Arc<Endpoints>> {
        self.endpoints.values()
    }

    /// Builds the routes that configuration and credentials now allow and that differ from those
    /// in force, each with its address. One service's trouble is not another's.
    pub(crate) fn rebuild(&mut self) -> Vec<(Listen, Arc<Route>)> {
        let mut changed = Vec::new();
        for service in self.config.services.values() {
            let listen = address(service);
            let Some(basis) = self.basis(service) else {
                continue;
            };
            let old = self.routes.get(&listen);
            if old.is_some_and(|old| old.basis == basis) {
                continue;
            }
            let same_tls = self
                .routes
                .values()
                .find(|entry| entry.basis.speaks_the_same_tls(&basis))
                .map(|entry| &entry.route);
            let Ok(tls) = self.tls(service, same_tls) else {
                continue;
            };
            let retired = match self.retirements.get(&service.name) {
                Some(now) if !now.basis.credentials_differ(&basis) => now.token.clone(),
                before => {
                    // What served until now was replaced for its credentials' sake, and says so
                    // to the connections that it has.
                    if let Some(before) = before {
                        before.token.cancel();
                    }
                    let token = CancellationToken::new();
                    let retirement = Retirement {
                        basis: basis.clone(),
                        token: token.clone(),
                    };
                    self.retirements.insert(service.name.clone(), retirement);
                    token
                }
            };
            let handshakes = match self.handshakes.get(&service.name) {
                Some(now) if now.limit() == service.max_handshakes => Arc::clone(now),
                // What went on under another limit ends under it.
                _ => {
                    let handshakes = Arc::new(Handshakes::new(service.max_handshakes));
                    let name = service.name.clone();
                    self.handshakes.insert(name, Arc::clone(&handshakes));
                    handshakes
                }
            };
            let upstream = match &service.upstream {
                config::Upstream::Addresses(addresses) => Upstream::Addresses(addresses.clone()),
                config::Upstream::Service(backend) => {
                    let live = self.endpoints.entry(service.name.clone());
                    let metrics = self.metrics.service(&service.name);
                    let new = || Arc::new(Endpoints::new(backend.clone(), &metrics));
                    Upstream::Endpoints(Arc::clone(live.or_insert_with(new)))
                }
            };
            let route = Arc::new(self.route(service, upstream, tls, retired, handshakes));
            changed.push((listen.clone(), Arc::clone(&route)));
            self.routes.insert(listen, Entry { route, basis });
        }
        changed
    }

    /// Gives up routes that may not stand in for the service that is configured at their address
    /// now, and that [`Self::rebuild`] could not replace. Returns their addresses.
    pub(crate) fn withdraw(&mut self) -> Vec<Listen> {
        let mut withdrawn = Vec::new();
        for service in self.config.services.values() {
            let listen = address(service);
            let stands_in = |entry: &Entry| stands_in_for(&entry.basis.service, service);
            if self.routes.get(&listen).is_some_and(|old| !stands_in(old)) {
                self.routes.remove(&listen);
                withdrawn.push(listen);
            }
        }
        withdrawn
    }

    /// The route in force at an address.
    pub(crate) fn route_at(&self, listen: &Listen) -> Option<Arc<Route>> {
        self.routes
            .get(listen)
            .map(|entry| Arc::clone(&entry.route))
    }

    /// The route of a service as it is configured.
    ///
    /// # Errors
    /// What the service waits for.
    pub(crate) fn route_of(&self, service: &Service) -> Result<Arc<Route>, Explained> {
        match self.readiness(service) {
            Readiness::Ready => self.route_at(&address(service)).ok_or_else(not_built),
            Readiness::Waiting { why, .. } => Err(why),
        }
    }

    /// Whether a service serves as configured, and what it waits for if not.
    pub(crate) fn readiness(&self, service: &Service) -> Readiness {
        let entry = self.routes.get(&address(service));
        if entry.is_some_and(|entry| entry.basis.service == *service) {
            return Readiness::Ready;
        }
        let why = self
            .missing(service)
            .or_else(|| self.tls(service, None).err())
            .unwrap_or_else(not_built);
        Readiness::Waiting {
            why,
            serving: entry.is_some(),
        }
    }

    /// What a service still lacks.
    fn missing(&self, service: &Service) -> Option<Explained> {
        let identity = service
            .identity
            .as_ref()
            .map(|source| self.credentials.identity(source));
        let trust = service
            .trust
            .as_ref()
            .map(|source| self.credentials.trust(source));
        let of_identity = identity
            .filter(|it| it.current().is_none())
            .map(|it| it.refused());
        let of_trust = trust
            .filter(|it| it.current().is_none())
            .map(|it| it.refused());
        let why = of_identity.or(of_trust)?;
        Some(
            why.cloned()
                .unwrap_or_else(|| Explained::new(Reason::Internal, "not read yet")),
        )
    }

    fn basis(&self, service: &Service) -> Option<Basis> {
        let identity = match &service.identity {
            Some(source) => self.credentials.identity(source).current()?.generation,
            None => 0,
        };
        let trust = match &service.trust {
            Some(source) => self.credentials.trust(source).current()?.generation,
            None => 0,
        };
        Some(Basis {
            service: service.clone(),
            identity,
            trust,
            log: self.config.log.connections,
        })
    }

    /// The TLS configuration for a service. It goes on, with the sessions that can be resumed,
    /// where neither policy nor credentials have changed.
    fn tls(
        &self,
        service: &Service,
        same: Option<&Arc<Route>>,
    ) -> Result<Arc<Connector>, Explained> {
        if let Some(route) = same {
            return Ok(Arc::clone(&route.tls));
        }
        let identity = service
            .identity
            .as_ref()
            .and_then(|it| self.credentials.identity(it).current());
        let trust = service
            .trust
            .as_ref()
            .and_then(|it| self.credentials.trust(it).current());
        client_config(
            &service.tls,
            identity.map(|good| &*good.value),
            trust.map(|good| &good.value),
            &self.provider,
        )
    }

    fn route(
        &self,
        service: &Service,
        upstream: Upstream,
        tls: Arc<Connector>,
        retired: CancellationToken,
        handshakes: Arc<Handshakes>,
    ) -> Route {
        let presented = service
            .identity
            .as_ref()
            .and_then(|source| self.credentials.identity(source).current())
            .map_or(Presented::Nothing, |good| Presented::Certificate {
                fingerprint: good.value.leaf().fingerprint.as_str().into(),
                generation: good.generation,
            });
        Route {
            service: service.name.clone(),
            upstream,
            server_name: service.tls.server_name.clone(),
            tls,
            identity: presented,
            timeouts: service.timeouts,
            keepalive: service.keepalive,
            unclean_close: service.unclean_close,
            callers: service.allow_callers.clone(),
            max_connections: service.max_connections.map(std::num::NonZero::get),
            handshakes,
            log: self.config.log.connections,
            retired,
            retire_over: match service.on_rotation {
                OnRotation::Keep => None,
                OnRotation::Drain { window } => Some(window),
            },
            metrics: self.metrics.service(&service.name),
        }
    }
}

impl Basis {
    /// Sessions of one may be resumed by the other: the same service, towards the same servers,
    /// with the same policy and the same generations of the same sources.
    fn speaks_the_same_tls(&self, other: &Self) -> bool {
        self.service.name == other.service.name
            && self.service.upstream == other.service.upstream
            && self.service.tls == other.service.tls
            && !self.credentials_differ(other)
    }

    fn credentials_differ(&self, other: &Self) -> bool {
        (self.identity, self.trust) != (other.identity, other.trust)
            || self.service.identity != other.service.identity
            || self.service.trust != other.service.trust
    }
}

/// Whether callers may be served as `old` says while `new` waits for its credentials: not where
/// that is another service, and not where `new` promises what `old` does not (an identity, a
/// verified server, a pin, fewer callers).
fn stands_in_for(old: &Service, new: &Service) -> bool {
    let strictness = |verify| match verify {
        Verify::None => 0,
        Verify::Chain => 1,
        Verify::Full => 2,
    };
    let (was, asks) = (&old.tls, &new.tls);
    let holds_to_lists = |service: &Service| {
        let crl = service.trust.as_ref().map(|trust| trust.crl.is_some());
        (crl == Some(true)).then_some(service.tls.crl_expired == CrlExpired::Refuse)
    };
    old.name == new.name
        && (old.identity.is_some() || new.identity.is_none())
        && strictness(was.verify) >= strictness(asks.verify)
        // `None` is less than anything, and `false` than `true`.
        && holds_to_lists(old) >= holds_to_lists(new)
        && (asks.pins.is_empty() || was.pins == asks.pins)
        && (asks.allowed_names.is_empty() || was.allowed_names == asks.allowed_names)
        && asks.verify_depth.is_none_or(|asked| was.verify_depth.is_some_and(|was| was <= asked))
        && was.min_version >= asks.min_version
        && (new.allow_callers == Callers::Anyone || old.allow_callers == new.allow_callers)
}

fn not_built() -> Explained {
    Explained::new(Reason::Internal, "a route is due and was not built")
}

/// The address by which a service's listener is known.
pub(crate) fn address(service: &Service) -> Listen {
    service.listen.without_mode()
}

#[cfg(test)]
mod tests;
