//! One service out of the tables that its values come from.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::time::Duration;

use super::backend;
use crate::config::annotations::Annotations;
use crate::config::document::{ServiceTable, Slot, WrittenUpstream};
use crate::config::identity::Said;
use crate::config::kubernetes::{CaKey, CaObject, ObjectRef, ServiceObject};
use crate::config::problem::{At, Findings, Found as Alone, Wrong};
use crate::config::value::{self, CallerPattern};
use crate::config::{
    CaSource, Callers, CrlExpired, IdentitySource, KeyExchange, Listen, OnRotation, Origin,
    RecordLayer, Service, ServiceName, Timeouts, TlsPolicy, TlsVersion, TrustSource, UncleanClose,
    Upstream, Verify, keys,
};

/// What all services inherit.
pub(super) struct Inherited<'d> {
    environment: &'d ServiceTable,
    defaults: &'d ServiceTable,
    environment_identity: Said,
    defaults_identity: Said,
}

impl<'d> Inherited<'d> {
    pub(super) fn new(
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
pub(super) struct Layers<'d, 'f> {
    subject: Subject<'d>,
    inherited: &'d Inherited<'d>,
    /// `services.NAME`.
    path: String,
    pub(super) origins: BTreeMap<&'static str, Origin>,
    /// Mistakes that concern this service alone.
    pub(super) alone: Vec<Alone>,
    findings: &'d mut Findings<'f>,
}

/// A service that is asked for, and what is said of it alone.
pub(super) struct Subject<'d> {
    pub(super) name: &'d ServiceName,
    /// Its header in the file, or its Kubernetes Service.
    pub(super) at: At,
    /// Its own table; of a discovered service empty.
    pub(super) own: &'d ServiceTable,
    pub(super) standing: Standing,
    /// Its Kubernetes Service, where that is known.
    pub(super) object: Option<&'d ServiceObject>,
    pub(super) annotations: Option<&'d Annotations>,
}

/// Who asks for a service, and hence whose mistakes are mistakes of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// The file: all of them.
    File,
    /// The file, and annotations count too. What an annotation may cause or cure concerns this
    /// service alone, whether or not its Service is known yet.
    Annotated,
    /// Annotations: none of them.
    Discovered,
}

/// A table, nearest first: a nearer one wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Layer {
    Service,
    Annotation,
    Environment,
    Defaults,
}

/// A value of a service after inheritance.
struct Found<T> {
    value: T,
    layer: Layer,
    at: At,
}

/// Which client certificate, if that can be told.
enum Identity {
    /// None only where that is said.
    Known(Option<IdentitySource>),
    /// Nothing is said of it, which was reported.
    Missing,
    /// Something that is said of it is wrong, which was reported.
    Wrong,
}

impl<'d, 'f> Layers<'d, 'f> {
    pub(super) fn new(
        subject: Subject<'d>,
        inherited: &'d Inherited<'d>,
        findings: &'d mut Findings<'f>,
    ) -> Self {
        let alone = subject.annotations.map(|all| all.problems.clone());
        Self {
            path: keys::path("services", subject.name.as_str()),
            subject,
            inherited,
            origins: BTreeMap::new(),
            alone: alone.unwrap_or_default(),
            findings,
        }
    }

    /// `listen` of the service's own table.
    pub(super) fn listen(&mut self) -> Option<Listen> {
        self.required(
            "listen",
            |table| &table.listen,
            "listen = \"127.0.0.1:7001\"",
        )
    }

    /// `upstream` of the service's own table. `None` after a report, and where it is a Kubernetes
    /// Service of which nothing is known.
    pub(super) fn upstream(&mut self) -> Option<Upstream> {
        let written = self.required(
            "upstream",
            |table| &table.upstream,
            "upstream = \"host:port\"",
        )?;
        let (object, port) = match written {
            WrittenUpstream::Addresses(addresses) => return Some(Upstream::Addresses(addresses)),
            WrittenUpstream::Service(_, port) => (self.subject.object?, port),
        };
        match backend::upstream(object, port.as_ref()) {
            Ok(upstream) => Some(upstream),
            Err(wrong) => {
                let at = self.subject.own.upstream.at().unwrap_or(self.subject.at);
                self.report_alone(at, &format!("{}.upstream", self.path), wrong);
                None
            }
        }
    }

    /// The whole service. `None` where something was reported without which there is none.
    pub(super) fn service(
        &mut self,
        listen: Option<Listen>,
        upstream: Option<Upstream>,
    ) -> Option<Service> {
        let allow_callers = self.allow_callers(listen.as_ref());
        let allow_remote_callers = self.allow_remote_callers();
        let identity = self.identity();
        let tls = self.tls_policy(upstream.as_ref());
        let trust = self.trust(tls.verify, &identity);
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
        // Whatever is missing here was reported, so that nobody uses the result; but nothing is
        // built that dials without its certificate, or without what it verifies with.
        let Identity::Known(identity) = identity else {
            return None;
        };
        if trust.is_none() && tls.verify != Verify::None {
            return None;
        }
        Some(Service {
            name: self.subject.name.clone(),
            listen: listen?,
            upstream: upstream?,
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
            allow_remote_callers,
        })
    }

    // === look-up ===

    /// The tables, nearest first.
    fn tables(&self) -> impl Iterator<Item = (Layer, &'d ServiceTable)> + use<'d> {
        let annotations = self
            .subject
            .annotations
            .map(|annotations| (Layer::Annotation, &annotations.table));
        [(Layer::Service, self.subject.own)]
            .into_iter()
            .chain(annotations)
            .chain([
                (Layer::Environment, self.inherited.environment),
                (Layer::Defaults, self.inherited.defaults),
            ])
    }

    /// The nearest table in which the key is written, and its value if that is valid.
    fn find<T: Clone>(
        &mut self,
        key: &'static str,
        slot: impl Fn(&ServiceTable) -> &Slot<T>,
    ) -> Option<Found<T>> {
        for (layer, table) in self.tables() {
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
        if matches!(slot(self.subject.own), Slot::Absent) {
            let reason = format!("the service has no {key}");
            let fix = format!("write for example {example} in [{}]", self.path);
            self.report(self.subject.at, key, Wrong::new(reason, fix));
        }
        self.find(key, slot).map(|found| found.value)
    }

    fn origin(&self, layer: Layer, at: At) -> Origin {
        match (layer, at) {
            (_, At::Variable(variable)) => Origin::Environment(variable),
            (_, At::Annotation(annotation)) => Origin::Annotation(annotation),
            (_, At::Service) => Origin::BuiltIn,
            (Layer::Service, At::Span { start, .. }) => Origin::Service {
                line: self.findings.line(start),
            },
            (_, At::Span { start, .. }) => Origin::Defaults {
                line: self.findings.line(start),
            },
        }
    }

    /// A mistake of whoever asks for the service.
    fn report(&mut self, at: At, key: &str, wrong: Wrong) {
        let key = format!("{}.{key}", self.path);
        match self.subject.standing {
            Standing::File | Standing::Annotated => self.findings.report(at, key, wrong),
            Standing::Discovered => self.report_alone(at, &key, wrong),
        }
    }

    /// A mistake that takes values of several layers, or that none of them says something. What
    /// stands in the service's own table no annotation can cure.
    fn report_combined(&mut self, layers: &[Layer], at: At, key: String, wrong: Wrong) {
        let own = !layers.is_empty() && layers.iter().all(|layer| *layer == Layer::Service);
        match self.subject.standing {
            Standing::Annotated if own => self.findings.report(at, key, wrong),
            Standing::File => self.findings.report(at, key, wrong),
            Standing::Annotated | Standing::Discovered => self.report_alone(at, &key, wrong),
        }
    }

    /// A mistake that concerns this service alone. While nothing is known of its Kubernetes
    /// Service, nothing is wrong with it yet.
    fn report_alone(&mut self, at: At, key: &str, wrong: Wrong) {
        if let Some(object) = self.subject.object {
            let problem = self.findings.problem(at, key, wrong, Some(object));
            self.alone.extend(problem);
        }
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
            // Which kind it is turns out when the sockets are taken.
            Some(Listen::Systemd(_)) => {
                return Callers::Either {
                    networks,
                    uids,
                    gids,
                };
            }
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
            let place = if own { found.at } else { self.subject.at };
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

    /// `allow_remote_callers`.
    fn allow_remote_callers(&mut self) -> bool {
        let allowed = self.value(
            "allow_remote_callers",
            |table| &table.allow_remote_callers,
            false,
        );
        let undecided = self.subject.own.allow_remote_callers == Slot::Invalid;
        let listen = match &self.subject.own.listen {
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
        allowed
    }

    // === TLS ===

    /// The client certificate.
    fn identity(&mut self) -> Identity {
        let tls = &self.subject.own.tls;
        let in_annotations = self
            .subject
            .annotations
            .map_or(&Said::Nothing, |annotations| &annotations.identity);
        let farther = [
            in_annotations,
            &self.inherited.environment_identity,
            &self.inherited.defaults_identity,
        ];
        let own = Said::in_table(tls, &format!("{}.tls", self.path), &farther, self.findings);
        let layers = [
            (Layer::Service, &own),
            (Layer::Annotation, farther[0]),
            (Layer::Environment, farther[1]),
            (Layer::Defaults, farther[2]),
        ];
        let said = layers.into_iter().find(|(_, said)| **said != Said::Nothing);
        let asks = |layer: Layer, table: &ServiceTable| match table.tls.client_auth {
            Slot::Set(true, at) => Some((layer, at)),
            _ => None,
        };
        let wants_one = asks(Layer::Service, self.subject.own).or_else(|| {
            let annotations = self.subject.annotations?;
            asks(Layer::Annotation, &annotations.table)
        });
        match said {
            None => {
                let wrong =
                    Wrong::new("the service has no client certificate", self.identity_fix());
                let at = wants_one.map_or(self.subject.at, |(_, at)| at);
                self.report_combined(&[], at, format!("{}.tls", self.path), wrong);
                Identity::Missing
            }
            Some((_, Said::Invalid)) => Identity::Wrong,
            Some((layer, said)) => {
                if let (Said::None(inherited), Some((wants, at))) = (said, wants_one)
                    && wants < layer
                {
                    let place = self.findings.describe(*inherited);
                    let wrong = Wrong::new(
                        format!(
                            "client_auth = true asks for a client certificate, but the inherited setting is client_auth = false ({place})"
                        ),
                        match self.subject.standing {
                            Standing::File => {
                                format!("set cert and key, or bundle, in [{}.tls]", self.path)
                            }
                            Standing::Annotated | Standing::Discovered => self.identity_fix(),
                        },
                    );
                    let key = format!("{}.tls.client_auth", self.path);
                    self.report_combined(&[layer], at, key, wrong);
                    return Identity::Wrong;
                }
                for (key, at) in said.keys() {
                    self.origins.insert(key, self.origin(layer, at));
                }
                Identity::Known(said.source())
            }
        }
    }

    /// What to do where a service has no client certificate.
    fn identity_fix(&self) -> String {
        let path = &self.path;
        match (self.subject.standing, self.subject.object) {
            (Standing::Discovered, _) => "name a Secret of the Service's namespace, with tls.crt and tls.key, in the annotation konghq.com/client-cert; or set an identity in [defaults.tls]; to present none on purpose, annotate tlsward/client-auth: \"false\"".to_owned(),
            (Standing::Annotated, Some(object)) => format!(
                "name a Secret in the annotation konghq.com/client-cert of Service {}, or set secret, or cert and key, in [{path}.tls] or [defaults.tls]; to present none on purpose, write client_auth = false",
                object.object
            ),
            (Standing::File | Standing::Annotated, _) => format!(
                "set cert and key (or bundle) in [{path}.tls] or [defaults.tls]; to present none on purpose, write client_auth = false"
            ),
        }
    }

    fn tls_policy(&mut self, upstream: Option<&Upstream>) -> TlsPolicy {
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
                .map(|found| found.value)
                .or_else(|| upstream.and_then(service_name)),
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
        for (layer, table) in self.tables() {
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
                    Layer::Service | Layer::Annotation => format!("{}.tls.{key}", self.path),
                    Layer::Environment | Layer::Defaults => format!("defaults.tls.{key}"),
                };
                let fix = format!("remove {key}, or verify with \"full\" or \"chain\"");
                let wrong = Wrong::new(reason, fix);
                self.report_combined(&[layer, verify.layer], at, path, wrong);
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
            self.report_combined(
                &[min.layer, max.layer],
                at,
                format!("{}.tls.{key}", self.path),
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
            let max = max.map_or(Layer::Defaults, |max| max.layer);
            self.report_combined(
                &[groups.layer, max],
                groups.at,
                format!("{}.tls.key_exchange", self.path),
                Wrong::new(
                    "X25519MLKEM768 exists in TLS 1.3 only, and max_version is \"1.2\"",
                    "add \"X25519\" or \"secp256r1\", or allow TLS 1.3",
                ),
            );
        }
    }

    /// The CA certificates and revocation lists.
    fn trust(&mut self, verify: Verify, identity: &Identity) -> Option<TrustSource> {
        let crl = self
            .find("tls.crl", |t| &t.tls.crl)
            .map(|found| found.value);
        if let Some(ca) = self.find("tls.ca", |t| &t.tls.ca) {
            let crl = crl.filter(|_| verify != Verify::None);
            return Some(TrustSource { ca: ca.value, crl });
        }
        // An invalid one was reported where it stands.
        let is_absent = self.origins.get("tls.ca") == Some(&Origin::BuiltIn);
        if verify == Verify::None || !is_absent {
            return None;
        }
        match identity {
            Identity::Known(Some(IdentitySource::Secret(object))) => {
                if let Some(origin) = self.origins.get("tls.secret").cloned() {
                    self.origins.insert("tls.ca", origin);
                }
                let ca = CaObject::Secret {
                    object: object.clone(),
                    key: CaKey::Named(CaKey::DEFAULT.to_owned()),
                };
                let ca = CaSource::Objects(vec![ca]);
                return Some(TrustSource { ca, crl });
            }
            // It may be meant to come from the Secret whose name could not be read.
            Identity::Wrong if self.names_a_secret() => {}
            Identity::Known(_) | Identity::Missing | Identity::Wrong => {
                let wrong = Wrong::new(
                    "the service has no CA certificates to verify the upstream with",
                    self.ca_fix(),
                );
                self.report_combined(&[], self.subject.at, format!("{}.tls.ca", self.path), wrong);
            }
        }
        None
    }

    fn names_a_secret(&self) -> bool {
        self.tables()
            .any(|(_, table)| table.tls.secret.is_written())
    }

    /// What to do where a service has no CA certificates.
    fn ca_fix(&self) -> String {
        let path = &self.path;
        match (self.subject.standing, self.subject.object) {
            (Standing::Discovered, _) => "name them in the annotation konghq.com/ca-certificates-secrets or konghq.com/ca-certificates-configmaps, put ca.crt into the Secret of konghq.com/client-cert, or set ca in [defaults.tls]".to_owned(),
            (Standing::Annotated, Some(object)) => format!(
                "name them in the annotation konghq.com/ca-certificates-secrets of Service {}, or set ca in [{path}.tls] or [defaults.tls]",
                object.object
            ),
            (Standing::File | Standing::Annotated, _) => format!(
                "set ca in [{path}.tls] or [defaults.tls]: a file, a directory, or \"system\" for the platform's roots"
            ),
        }
    }
}

/// The name that a Service has in the cluster's DNS: what its certificate is expected to say,
/// whichever endpoint answers.
fn service_name(upstream: &Upstream) -> Option<rustls_pki_types::ServerName<'static>> {
    let Upstream::Service(backend) = upstream else {
        return None;
    };
    let ObjectRef { namespace, name } = &backend.service;
    let name = value::dns_name(&format!("{name}.{namespace}.svc")).ok()?;
    Some(rustls_pki_types::ServerName::DnsName(name))
}

/// The place of a list that holds something; an empty one takes an inherited list back.
fn non_empty<T>(slot: &Slot<Vec<T>>) -> Option<At> {
    match slot {
        Slot::Set(list, at) if !list.is_empty() => Some(*at),
        _ => None,
    }
}
