//! From the tables as written to the configuration: inheritance, defaults, and whatever concerns
//! more than one key.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::time::Duration;

use super::document::{Document, ServiceTable, Slot, WrittenService};
use super::identity::Said;
use super::listeners::{self, Claim};
use super::problem::{At, Findings, Wrong};
use super::value::CallerPattern;
use super::{
    Admin, Callers, Config, CrlExpired, IdentitySource, KeyExchange, Listen, Log, OnRotation,
    Origin, Origins, RecordLayer, Service, Timeouts, TlsPolicy, TlsVersion, TrustSource,
    UncleanClose, Upstream, Verify,
};

/// Builds the configuration. What is wrong goes to `findings`; if there is anything, the result
/// is not to be used.
pub(super) fn assemble(
    document: Document,
    environment: &ServiceTable,
    findings: &mut Findings<'_>,
) -> Config {
    let Document {
        shutdown_timeout,
        workers,
        admin,
        log,
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

    let inherited = Inherited::new(environment, &defaults, findings);
    let mut services = BTreeMap::new();
    let mut origins = BTreeMap::new();
    for service in &written {
        if let Slot::Set(listen, at) = &service.table.listen {
            claims.push(Claim {
                listen: listen.clone(),
                key: format!(
                    "{}.listen",
                    super::keys::path("services", service.name.as_str())
                ),
                at: Some(*at),
            });
        }
        let mut layers = Layers::new(service, &inherited, findings);
        if let Some(built) = layers.service() {
            origins.insert(service.name.clone(), layers.origins);
            services.insert(service.name.clone(), built);
        }
    }
    listeners::report_overlaps(claims, findings);

    Config {
        admin,
        log: Log {
            filter: set_or(log.filter, "info".to_owned()),
            connections: set_or(log.connections, true),
        },
        shutdown_timeout: set_or(shutdown_timeout, Duration::from_secs(30)),
        workers: match workers {
            Slot::Set(workers, _) => Some(workers),
            Slot::Absent | Slot::Invalid => None,
        },
        shutdown_delay: Duration::ZERO,
        kubernetes: super::kubernetes::Kubernetes::default(),
        services,
        unbuilt: BTreeMap::new(),
        backends: BTreeMap::new(),
        origins: Origins(origins),
    }
}

fn set_or<T>(slot: Slot<T>, default: T) -> T {
    match slot {
        Slot::Set(value, _) => value,
        Slot::Absent | Slot::Invalid => default,
    }
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
    }));
    listen
}

/// What all services inherit.
struct Inherited<'d> {
    environment: &'d ServiceTable,
    defaults: &'d ServiceTable,
    environment_identity: Said,
    defaults_identity: Said,
}

impl<'d> Inherited<'d> {
    fn new(
        environment: &'d ServiceTable,
        defaults: &'d ServiceTable,
        findings: &mut Findings<'_>,
    ) -> Self {
        let in_defaults = Said::in_table(&defaults.tls, "defaults.tls", &[], findings);
        let in_environment =
            Said::in_table(&environment.tls, "defaults.tls", &[&in_defaults], findings);
        Self {
            environment,
            defaults,
            environment_identity: in_environment,
            defaults_identity: in_defaults,
        }
    }
}

/// The tables that one service's values come from, and where each value was found.
struct Layers<'d, 'f> {
    written: &'d WrittenService,
    inherited: &'d Inherited<'d>,
    /// `services.NAME`.
    path: String,
    origins: BTreeMap<&'static str, Origin>,
    findings: &'d mut Findings<'f>,
}

/// A table, nearest first: a nearer one wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Layer {
    Service,
    Environment,
    Defaults,
}

/// A value of a service after inheritance.
struct Found<T> {
    value: T,
    layer: Layer,
    at: At,
}

impl<'d, 'f> Layers<'d, 'f> {
    fn new(
        written: &'d WrittenService,
        inherited: &'d Inherited<'d>,
        findings: &'d mut Findings<'f>,
    ) -> Self {
        Self {
            written,
            inherited,
            path: super::keys::path("services", written.name.as_str()),
            origins: BTreeMap::new(),
            findings,
        }
    }

    /// The whole service. `None` where something was reported without which there is none.
    fn service(&mut self) -> Option<Service> {
        let listen = self.required(
            "listen",
            |table| &table.listen,
            "listen = \"127.0.0.1:7001\"",
        );
        let upstream = self.required(
            "upstream",
            |table| &table.upstream,
            "upstream = \"host:port\"",
        );
        let allow_callers = self.allow_callers(listen.as_ref());
        self.refuse_unmeant_remote_callers();
        let identity = self.identity();
        let tls = self.tls_policy();
        let trust = self.trust(tls.verify);
        let timeouts = Timeouts {
            connect: self.value(
                "connect_timeout",
                |t| &t.connect_timeout,
                Duration::from_secs(10),
            ),
            idle: self.value("idle_timeout", |t| &t.idle_timeout, None),
            max_lifetime: self.value("max_lifetime", |t| &t.max_lifetime, None),
            close: self.value(
                "close_timeout",
                |t| &t.close_timeout,
                Duration::from_secs(60),
            ),
        };
        let max_connections = self.value("max_connections", |t| &t.max_connections, None);
        let max_handshakes = self.value(
            "max_handshakes",
            |t| &t.max_handshakes,
            NonZeroUsize::new(256),
        );
        let keepalive = self.value(
            "keepalive",
            |t| &t.keepalive,
            Some(Duration::from_secs(180)),
        );
        let window = self.value("drain_window", |t| &t.drain_window, Duration::from_secs(60));
        let on_rotation = match self.value("on_rotation", |t| &t.drain_on_rotation, false) {
            true => OnRotation::Drain { window },
            false => OnRotation::Keep,
        };
        let unclean_close = self.value("unclean_close", |t| &t.unclean_close, UncleanClose::Reset);
        Some(Service {
            name: self.written.name.clone(),
            listen: listen?,
            upstream: Upstream::Addresses(upstream?),
            identity,
            trust,
            tls,
            timeouts,
            max_connections,
            max_handshakes,
            keepalive,
            on_rotation,
            unclean_close,
            allow_callers,
        })
    }

    // === look-up ===

    /// The nearest table in which the key is written, and its value if that is valid.
    fn find<T: Clone>(
        &mut self,
        key: &'static str,
        slot: impl Fn(&ServiceTable) -> &Slot<T>,
    ) -> Option<Found<T>> {
        let layers = [
            (Layer::Service, &self.written.table),
            (Layer::Environment, self.inherited.environment),
            (Layer::Defaults, self.inherited.defaults),
        ];
        for (layer, table) in layers {
            match slot(table) {
                Slot::Absent => {}
                Slot::Invalid => return None,
                Slot::Set(value, at) => {
                    self.origins.insert(key, self.origin(layer, *at));
                    return Some(Found {
                        value: value.clone(),
                        layer,
                        at: *at,
                    });
                }
            }
        }
        self.origins.insert(key, Origin::BuiltIn);
        None
    }

    fn value<T: Clone>(
        &mut self,
        key: &'static str,
        slot: impl Fn(&ServiceTable) -> &Slot<T>,
        default: T,
    ) -> T {
        self.find(key, slot).map_or(default, |found| found.value)
    }

    fn required<T: Clone>(
        &mut self,
        key: &'static str,
        slot: impl Fn(&ServiceTable) -> &Slot<T>,
        example: &str,
    ) -> Option<T> {
        if matches!(slot(&self.written.table), Slot::Absent) {
            let reason = format!("the service has no {key}");
            let fix = format!("write for example {example} in [{}]", self.path);
            self.report(self.written.at, key, Wrong::new(reason, fix));
        }
        self.find(key, slot).map(|found| found.value)
    }

    fn origin(&self, layer: Layer, at: At) -> Origin {
        match (layer, at) {
            (_, At::Variable(variable)) => Origin::Environment(variable),
            (Layer::Service, At::Span { start, .. }) => Origin::Service {
                line: self.findings.line(start),
            },
            (_, At::Span { start, .. }) => Origin::Defaults {
                line: self.findings.line(start),
            },
        }
    }

    fn report(&mut self, at: At, key: &str, wrong: Wrong) {
        self.findings
            .report(at, format!("{}.{key}", self.path), wrong);
    }

    // === who may connect ===

    /// `allow_callers`. In `[defaults]` networks and ids may stand side by side, and each listener
    /// takes those of its kind.
    fn allow_callers(&mut self, listen: Option<&Listen>) -> Callers {
        let Some(found) = self.find("allow_callers", |table| &table.allow_callers) else {
            return Callers::Anyone;
        };
        let (mut networks, mut uids, mut gids) = (Vec::new(), Vec::new(), Vec::new());
        for pattern in &found.value {
            match pattern {
                CallerPattern::Network(network) => networks.push(*network),
                CallerPattern::Uid(uid) => uids.push(*uid),
                CallerPattern::Gid(gid) => gids.push(*gid),
            }
        }
        let ids = uids.len() + gids.len();
        let (callers, fitting, kind, others, wanted) = match listen {
            None => return Callers::Anyone,
            Some(Listen::Tcp(_)) => {
                let count = networks.len();
                (
                    Callers::Networks(networks),
                    count,
                    "a TCP",
                    "uids and gids",
                    "networks such as \"10.0.0.0/8\"",
                )
            }
            Some(Listen::Unix { .. }) => (
                Callers::Peers { uids, gids },
                ids,
                "a unix",
                "networks",
                "\"uid:1000\" or \"gid:100\"",
            ),
        };
        let own = found.layer == Layer::Service;
        if fitting == 0 || (own && fitting < found.value.len()) {
            let place = if own { found.at } else { self.written.at };
            let whose = if own {
                "allow_callers".to_owned()
            } else {
                format!(
                    "the inherited allow_callers ({})",
                    self.findings.describe(found.at)
                )
            };
            self.report(
                place,
                "allow_callers",
                Wrong::new(
                    format!("{whose} lists {others}, which mean nothing on {kind} listener"),
                    format!("list {wanted} in [{}]", self.path),
                ),
            );
        }
        callers
    }

    fn refuse_unmeant_remote_callers(&mut self) {
        let allowed = self.value(
            "allow_remote_callers",
            |table| &table.allow_remote_callers,
            false,
        );
        let undecided = self.written.table.allow_remote_callers == Slot::Invalid;
        let listen = match &self.written.table.listen {
            Slot::Set(listen, at) if !listen.is_local() => Some((listen, *at)),
            _ => None,
        };
        if let (Some((listen, at)), false, false) = (listen, allowed, undecided) {
            let wrong = Wrong::new(
                format!(
                    "{listen} can be reached from other machines, whose traffic would be in the clear and get this service's certificate"
                ),
                "listen on 127.0.0.1, [::1] or a unix socket; if other machines are meant, set allow_remote_callers = true (and allow_callers)",
            );
            self.report(at, "listen", wrong);
        }
    }

    // === TLS ===

    /// The client certificate. `None` only where the operator says so, or after a report.
    fn identity(&mut self) -> Option<IdentitySource> {
        let tls = &self.written.table.tls;
        let farther = [
            &self.inherited.environment_identity,
            &self.inherited.defaults_identity,
        ];
        let own = Said::in_table(tls, &format!("{}.tls", self.path), &farther, self.findings);
        let layers = [
            (Layer::Service, &own),
            (Layer::Environment, farther[0]),
            (Layer::Defaults, farther[1]),
        ];
        let said = layers.into_iter().find(|(_, said)| **said != Said::Nothing);
        let wants_one = match tls.client_auth {
            Slot::Set(true, at) => Some(at),
            _ => None,
        };
        match said {
            None => {
                self.report(wants_one.unwrap_or(self.written.at), "tls", Wrong::new(
                    "the service has no client certificate",
                    format!(
                        "set cert and key (or bundle) in [{}.tls] or [defaults.tls]; to present none on purpose, write client_auth = false",
                        self.path
                    ),
                ));
                None
            }
            Some((_, Said::None(inherited))) if wants_one.is_some() => {
                let place = self.findings.describe(*inherited);
                let at = wants_one.unwrap_or(*inherited);
                self.report(at, "tls.client_auth", Wrong::new(
                    format!("client_auth = true asks for a client certificate, but the inherited setting is client_auth = false ({place})"),
                    format!("set cert and key, or bundle, in [{}.tls]", self.path),
                ));
                None
            }
            Some((layer, said)) => {
                for (key, at) in said.keys() {
                    self.origins.insert(key, self.origin(layer, at));
                }
                said.source()
            }
        }
    }

    fn tls_policy(&mut self) -> TlsPolicy {
        let verify = self.find("tls.verify", |t| &t.tls.verify);
        let verify_depth = self.find("tls.verify_depth", |t| &t.tls.verify_depth);
        let pins = self.find("tls.pins", |t| &t.tls.pins);
        let allowed_names = self.find("tls.allowed_names", |t| &t.tls.allowed_names);
        self.find("tls.crl", |t| &t.tls.crl);

        let mut policy = TlsPolicy {
            verify: verify.as_ref().map_or(Verify::Full, |found| found.value),
            verify_depth: verify_depth.map(|found| found.value),
            server_name: self
                .find("tls.server_name", |t| &t.tls.server_name)
                .map(|found| found.value),
            sni: self.value("tls.sni", |t| &t.tls.sni, true),
            crl_expired: self.value(
                "tls.crl_expired",
                |t| &t.tls.crl_expired,
                CrlExpired::Refuse,
            ),
            pins: pins.map_or_else(Vec::new, |found| found.value),
            allowed_names: allowed_names.map_or_else(Vec::new, |found| found.value),
            min_version: self.value("tls.min_version", |t| &t.tls.min_version, TlsVersion::Tls12),
            max_version: self.value("tls.max_version", |t| &t.tls.max_version, TlsVersion::Tls13),
            key_exchange: self.value(
                "tls.key_exchange",
                |t| &t.tls.key_exchange,
                vec![
                    KeyExchange::X25519MlKem768,
                    KeyExchange::X25519,
                    KeyExchange::Secp256r1,
                    KeyExchange::Secp384r1,
                ],
            ),
            alpn: self.value("tls.alpn", |t| &t.tls.alpn, Vec::new()),
            resumption: self.value("tls.resumption", |t| &t.tls.resumption, true),
            record_layer: self.value(
                "tls.record_layer",
                |t| &t.tls.record_layer,
                RecordLayer::Own,
            ),
        };
        if let Some(verify) = verify.filter(|found| found.value == Verify::None) {
            self.report_unchecked(&verify);
            // Inherited by a service that says in so many words that nothing is verified.
            policy.verify_depth = None;
            policy.pins = Vec::new();
            policy.allowed_names = Vec::new();
        }
        self.report_impossible_versions(&policy);
        policy
    }

    /// With `verify = "none"`, settings as near as it or nearer that would not be checked.
    fn report_unchecked(&mut self, verify: &Found<Verify>) {
        let tables = [
            (Layer::Service, &self.written.table),
            (Layer::Environment, self.inherited.environment),
            (Layer::Defaults, self.inherited.defaults),
        ];
        for (layer, table) in tables {
            if layer > verify.layer {
                continue;
            }
            let tls = &table.tls;
            let says_something = [
                ("verify_depth", tls.verify_depth.at()),
                ("crl", tls.crl.at()),
                ("pins", non_empty(&tls.pins)),
                ("allowed_names", non_empty(&tls.allowed_names)),
            ];
            for (key, at) in says_something {
                let Some(at) = at else { continue };
                let reason = format!(
                    "{key} would not be checked: verify is \"none\" ({})",
                    self.findings.describe(verify.at)
                );
                let path = match layer {
                    Layer::Service => format!("{}.tls.{key}", self.path),
                    Layer::Environment | Layer::Defaults => format!("defaults.tls.{key}"),
                };
                let fix = format!("remove {key}, or verify with \"full\" or \"chain\"");
                self.findings.report(at, path, Wrong::new(reason, fix));
            }
        }
    }

    fn report_impossible_versions(&mut self, policy: &TlsPolicy) {
        let min = self.find("tls.min_version", |t| &t.tls.min_version);
        let max = self.find("tls.max_version", |t| &t.tls.max_version);
        if policy.max_version < policy.min_version {
            // The nearer of the two is the one that was written last.
            let (Some(min), Some(max)) = (min, max) else {
                return;
            };
            let (at, key, other) = match min.layer < max.layer {
                true => (min.at, "min_version", max.at),
                false => (max.at, "max_version", min.at),
            };
            let other = self.findings.describe(other);
            self.report(
                at,
                &format!("tls.{key}"),
                Wrong::new(
                    format!("max_version is below min_version ({other})"),
                    "raise max_version or lower min_version",
                ),
            );
            return;
        }
        let only_hybrid = policy.key_exchange == [KeyExchange::X25519MlKem768];
        if policy.max_version == TlsVersion::Tls12
            && only_hybrid
            && let Some(groups) = self.find("tls.key_exchange", |t| &t.tls.key_exchange)
        {
            self.report(
                groups.at,
                "tls.key_exchange",
                Wrong::new(
                    "X25519MLKEM768 exists in TLS 1.3 only, and max_version is \"1.2\"",
                    "add \"X25519\" or \"secp256r1\", or allow TLS 1.3",
                ),
            );
        }
    }

    /// The CA certificates and revocation lists.
    fn trust(&mut self, verify: Verify) -> Option<TrustSource> {
        let crl = self
            .find("tls.crl", |t| &t.tls.crl)
            .map(|found| found.value);
        if let Some(ca) = self.find("tls.ca", |t| &t.tls.ca) {
            let crl = crl.filter(|_| verify != Verify::None);
            return Some(TrustSource { ca: ca.value, crl });
        }
        // An invalid one was reported where it stands.
        let is_absent = self.origins.get("tls.ca") == Some(&Origin::BuiltIn);
        if verify != Verify::None && is_absent {
            self.report(self.written.at, "tls.ca", Wrong::new(
                "the service has no CA certificates to verify the upstream with",
                format!(
                    "set ca in [{}.tls] or [defaults.tls]: a file, a directory, or \"system\" for the platform's roots",
                    self.path
                ),
            ));
        }
        None
    }
}

/// The place of a list that holds something; an empty one takes an inherited list back.
fn non_empty<T>(slot: &Slot<Vec<T>>) -> Option<At> {
    match slot {
        Slot::Set(list, at) if !list.is_empty() => Some(*at),
        _ => None,
    }
}
