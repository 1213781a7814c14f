//! The file as written: each table with the values that stand in it, each value with its place.
//! Inheritance, defaults and whatever concerns two keys come later, in `assemble`.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustls_pki_types::ServerName;
use toml::de::{DeTable, DeValue};

use super::keys::{self, Default as KeyDefault, Table, nearest};
use super::kubernetes::ObjectRef;
use super::kubernetes::names::PortRef;
use super::problem::{At, Wrong};
use super::reader::{Home, Name, Reader, Value, Written};
use super::sandbox::SandboxTable;
use super::value::{self, CallerPattern};
use super::{
    CaSource, Credential, CrlExpired, KeyExchange, Listen, NamePattern, RecordLayer, ServiceName,
    TlsVersion, UncleanClose, UpstreamAddress, Verify,
};

mod kubernetes;

pub(super) use kubernetes::{DiscoveryTable, KubernetesTable};

/// What one key of one table was set to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Slot<T> {
    /// Not written.
    #[default]
    Absent,
    /// Written, and already reported as wrong: nothing that follows from it is worth a report.
    Invalid,
    /// Written here.
    Set(T, At),
}

impl<T> Slot<T> {
    pub(super) fn map<U>(self, into: impl FnOnce(T) -> U) -> Slot<U> {
        match self {
            Self::Absent => Slot::Absent,
            Self::Invalid => Slot::Invalid,
            Self::Set(value, at) => Slot::Set(into(value), at),
        }
    }

    pub(super) fn is_written(&self) -> bool {
        !matches!(self, Self::Absent)
    }

    pub(super) fn at(&self) -> Option<At> {
        match self {
            Self::Set(_, at) => Some(*at),
            Self::Absent | Self::Invalid => None,
        }
    }
}

/// The whole file.
#[derive(Debug)]
pub(super) struct Document {
    pub(super) shutdown_timeout: Slot<Duration>,
    pub(super) shutdown_delay: Slot<Duration>,
    pub(super) workers: Slot<NonZeroUsize>,
    pub(super) admin: AdminTable,
    pub(super) log: LogTable,
    pub(super) sandbox: SandboxTable,
    pub(super) kubernetes: KubernetesTable,
    pub(super) home: Home,
    pub(super) defaults: ServiceTable,
    pub(super) services: Vec<WrittenService>,
}

#[derive(Debug, Default)]
pub(super) struct AdminTable {
    pub(super) listen: Slot<Option<Listen>>,
    pub(super) public_listen: Slot<Option<Listen>>,
}

#[derive(Debug, Default)]
pub(super) struct LogTable {
    pub(super) filter: Slot<String>,
    pub(super) connections: Slot<bool>,
}

/// `[services.NAME]`.
#[derive(Debug)]
pub(super) struct WrittenService {
    pub(super) name: ServiceName,
    /// The name in the table's header.
    pub(super) at: At,
    pub(super) table: ServiceTable,
}

/// The keys of a service, in its own table or in `[defaults]`.
#[derive(Debug, Default)]
pub(super) struct ServiceTable {
    pub(super) listen: Slot<Listen>,
    pub(super) upstream: Slot<WrittenUpstream>,
    pub(super) connect_timeout: Slot<Duration>,
    pub(super) idle_timeout: Slot<Option<Duration>>,
    pub(super) max_lifetime: Slot<Option<Duration>>,
    pub(super) close_timeout: Slot<Duration>,
    pub(super) max_connections: Slot<Option<NonZeroUsize>>,
    pub(super) max_handshakes: Slot<Option<NonZeroUsize>>,
    pub(super) keepalive: Slot<Option<Duration>>,
    /// Whether it is `drain`.
    pub(super) drain_on_rotation: Slot<bool>,
    pub(super) drain_window: Slot<Duration>,
    pub(super) unclean_close: Slot<UncleanClose>,
    pub(super) allow_callers: Slot<Vec<CallerPattern>>,
    pub(super) allow_remote_callers: Slot<bool>,
    pub(super) tls: TlsTable,
}

/// `upstream` as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum WrittenUpstream {
    /// Never empty.
    Addresses(Vec<UpstreamAddress>),
    /// A Kubernetes Service, and which of its ports.
    Service(ObjectRef, Option<PortRef>),
}

/// The keys of a `tls` table.
#[derive(Debug, Default)]
pub(super) struct TlsTable {
    pub(super) ca: Slot<CaSource>,
    pub(super) cert: Slot<PathBuf>,
    pub(super) key: Slot<PathBuf>,
    pub(super) bundle: Slot<PathBuf>,
    pub(super) secret: Slot<ObjectRef>,
    pub(super) credential: Slot<Credential>,
    pub(super) client_auth: Slot<bool>,
    pub(super) verify: Slot<Verify>,
    pub(super) verify_depth: Slot<u8>,
    pub(super) server_name: Slot<ServerName<'static>>,
    pub(super) sni: Slot<bool>,
    pub(super) crl: Slot<PathBuf>,
    pub(super) crl_expired: Slot<CrlExpired>,
    pub(super) pins: Slot<Vec<[u8; 32]>>,
    pub(super) allowed_names: Slot<Vec<NamePattern>>,
    pub(super) min_version: Slot<TlsVersion>,
    pub(super) max_version: Slot<TlsVersion>,
    pub(super) key_exchange: Slot<Vec<KeyExchange>>,
    pub(super) alpn: Slot<Vec<String>>,
    pub(super) resumption: Slot<bool>,
    pub(super) record_layer: Slot<RecordLayer>,
}

// === words and what they mean ===

pub(super) const VERIFY: [(&str, Verify); 3] = [
    ("full", Verify::Full),
    ("chain", Verify::Chain),
    ("none", Verify::None),
];
const ON_ROTATION: [(&str, bool); 2] = [("keep", false), ("drain", true)];
pub(super) const RECORD_LAYER: [(&str, RecordLayer); 2] =
    [("own", RecordLayer::Own), ("rustls", RecordLayer::Rustls)];
const UNCLEAN_CLOSE: [(&str, UncleanClose); 2] =
    [("reset", UncleanClose::Reset), ("fin", UncleanClose::Fin)];
pub(super) const CRL_EXPIRED: [(&str, CrlExpired); 2] = [
    ("refuse", CrlExpired::Refuse),
    ("accept", CrlExpired::Accept),
];
pub(super) const VERSIONS: [(&str, TlsVersion); 2] =
    [("1.2", TlsVersion::Tls12), ("1.3", TlsVersion::Tls13)];
/// IANA's names first; then those that OpenSSL takes too.
pub(super) const GROUPS: [(&str, KeyExchange); 6] = [
    ("X25519MLKEM768", KeyExchange::X25519MlKem768),
    ("X25519", KeyExchange::X25519),
    ("secp256r1", KeyExchange::Secp256r1),
    ("secp384r1", KeyExchange::Secp384r1),
    ("P-256", KeyExchange::Secp256r1),
    ("P-384", KeyExchange::Secp384r1),
];

// === reading ===

impl Document {
    /// Reads the root table; what is wrong in it goes to the reader's findings.
    pub(super) fn read(root: &DeTable<'_>, reader: &mut Reader<'_>) -> Self {
        // First, because it says in which namespace the others' objects are.
        let kubernetes = root
            .get_key_value("kubernetes")
            .map(|(name, value)| KubernetesTable::read(reader, name, value));
        let mut document = Self {
            shutdown_timeout: Slot::Absent,
            shutdown_delay: Slot::Absent,
            workers: Slot::Absent,
            admin: AdminTable::default(),
            log: LogTable::default(),
            sandbox: SandboxTable::default(),
            kubernetes: kubernetes.unwrap_or_default(),
            home: reader.home.clone(),
            defaults: ServiceTable::default(),
            services: Vec::new(),
        };
        for (name, value) in root {
            let path = keys::path("", name.get_ref());
            match name.get_ref().as_ref() {
                "shutdown_timeout" => {
                    let Some(written) = reader.written(Table::Top, &path, name, value) else {
                        continue;
                    };
                    document.shutdown_timeout = reader.text(&written, value::duration);
                }
                "shutdown_delay" => {
                    let Some(written) = reader.written(Table::Top, &path, name, value) else {
                        continue;
                    };
                    document.shutdown_delay = reader.text(&written, value::duration);
                }
                "kubernetes" => {}
                "workers" => {
                    let Some(written) = reader.written(Table::Top, &path, name, value) else {
                        continue;
                    };
                    document.workers = reader.above_zero(&written);
                }
                "admin" => reader.table(&path, value, |reader, name, value| {
                    document.admin.set(reader, "admin", name, value);
                }),
                "log" => reader.table(&path, value, |reader, name, value| {
                    document.log.set(reader, "log", name, value);
                }),
                "sandbox" => reader.table(&path, value, |reader, name, value| {
                    document.sandbox.set(reader, name, value);
                }),
                "defaults" => reader.table(&path, value, |reader, name, value| {
                    document.defaults.set(reader, "defaults", name, value);
                }),
                "services" => reader.table(&path, value, |reader, name, value| {
                    document
                        .services
                        .extend(WrittenService::read(reader, name, value));
                }),
                _ => report_unknown(reader, Table::Top, &path, name),
            }
        }
        document
    }
}

impl WrittenService {
    fn read(reader: &mut Reader<'_>, name: &Name<'_>, value: &Value<'_>) -> Option<Self> {
        let at = At::from(name.span());
        let path = keys::path("services", name.get_ref());
        if !matches!(value.get_ref(), DeValue::Table(_))
            && let Some(key) = Table::Service.key(name.get_ref())
        {
            reader.findings.report(
                at,
                path,
                Wrong::new(
                    format!("{} is a key of one service", key.name),
                    "put it below [services.NAME], or below [defaults] for all services",
                ),
            );
            return None;
        }
        let parsed = match ServiceName::parse(name.get_ref()) {
            Ok(parsed) => Some(parsed),
            Err(reason) => {
                let fix =
                    "use letters, digits, '-', '_' and '.'; the name appears in logs and metrics";
                reader
                    .findings
                    .report(at, path.as_str(), Wrong::new(reason, fix));
                None
            }
        };
        let mut table = ServiceTable::default();
        reader.table(&path, value, |reader, name, value| {
            table.set(reader, &path, name, value)
        });
        // Without a table there is nothing to miss in it.
        let is_table = matches!(value.get_ref(), DeValue::Table(_));
        parsed
            .filter(|_| is_table)
            .map(|name| Self { name, at, table })
    }
}

impl AdminTable {
    fn set(&mut self, reader: &mut Reader<'_>, parent: &str, name: &Name<'_>, value: &Value<'_>) {
        let path = keys::path(parent, name.get_ref());
        let Some(written) = reader.written(Table::Admin, &path, name, value) else {
            return;
        };
        let base = reader.base;
        match written.key.name {
            "listen" => self.listen = reader.text(&written, |text| admin_listen(text, base)),
            "public_listen" => {
                self.public_listen = reader.text(&written, |text| listen_or_off(text, base));
            }
            unread => unreachable!("a key of the table that nobody reads: {unread}"),
        }
    }
}

/// `[admin] listen`: only for this machine, because it changes state.
pub(super) fn admin_listen(text: &str, base: &Path) -> value::Parsed<Option<Listen>> {
    match listen_or_off(text, base)? {
        Some(listen) if !listen.is_local() => Err(Wrong::new(
            format!(
                "{listen} can be reached from other machines, and POST /reload is served there without a password"
            ),
            "write a loopback address or \"unix:/path\" here; public_listen offers health and metrics to others",
        )),
        listen => Ok(listen),
    }
}

fn listen_or_off(text: &str, base: &Path) -> value::Parsed<Option<Listen>> {
    if text == "off" {
        return Ok(None);
    }
    Listen::parse_address(text, base).map(Some)
}

impl LogTable {
    fn set(&mut self, reader: &mut Reader<'_>, parent: &str, name: &Name<'_>, value: &Value<'_>) {
        let path = keys::path(parent, name.get_ref());
        let Some(written) = reader.written(Table::Log, &path, name, value) else {
            return;
        };
        match written.key.name {
            "filter" => self.filter = reader.text(&written, value::log_filter),
            "connections" => self.connections = reader.boolean(&written),
            unread => unreachable!("a key of the table that nobody reads: {unread}"),
        }
    }
}

impl ServiceTable {
    fn set(&mut self, reader: &mut Reader<'_>, parent: &str, name: &Name<'_>, value: &Value<'_>) {
        let path = keys::path(parent, name.get_ref());
        if name.get_ref() == "tls" {
            if !matches!(value.get_ref(), DeValue::Table(_)) {
                // What would have stood in it is not missing.
                self.tls.cert = Slot::Invalid;
                self.tls.ca = Slot::Invalid;
            }
            reader.table(&path, value, |reader, name, value| {
                self.tls.set(reader, &path, name, value);
            });
            return;
        }
        let Some(written) = reader.written(Table::Service, &path, name, value) else {
            return;
        };
        if parent == "defaults" && written.key.default == KeyDefault::Required {
            reader.findings.report(
                name.span().into(),
                path.as_str(),
                Wrong::new(
                    format!(
                        "{} cannot be inherited: every service has its own",
                        written.key.name
                    ),
                    "write it in [services.NAME]",
                ),
            );
            return;
        }
        let base = reader.base;
        match written.key.name {
            "listen" => self.listen = reader.text(&written, |text| Listen::parse(text, base)),
            "upstream" => {
                self.upstream = match written.value.get_ref() {
                    DeValue::Table(_) => kubernetes::backend(reader, &written)
                        .map(|(object, port)| WrittenUpstream::Service(object, port)),
                    _ => reader
                        .one_or_more(&written, UpstreamAddress::parse)
                        .map(WrittenUpstream::Addresses),
                };
            }
            "connect_timeout" => self.connect_timeout = reader.text(&written, value::time_limit),
            "idle_timeout" => self.idle_timeout = reader.text(&written, value::time_limit_or_off),
            "max_lifetime" => self.max_lifetime = reader.text(&written, value::time_limit_or_off),
            "close_timeout" => self.close_timeout = reader.text(&written, value::time_limit),
            "max_connections" => {
                self.max_connections = reader.integer_or_off(&written);
            }
            "max_handshakes" => {
                self.max_handshakes = reader.integer_or_off(&written);
            }
            "keepalive" => self.keepalive = reader.text(&written, value::keepalive),
            "on_rotation" => self.drain_on_rotation = reader.choice(&written, &ON_ROTATION),
            "drain_window" => self.drain_window = reader.text(&written, value::duration),
            "unclean_close" => self.unclean_close = reader.choice(&written, &UNCLEAN_CLOSE),
            "allow_callers" => {
                self.allow_callers = reader.list(&written, value::caller);
                if matches!(&self.allow_callers, Slot::Set(callers, _) if callers.is_empty()) {
                    self.allow_callers = reader.invalid(&written, Wrong::new(
                        "an empty list would keep everyone out",
                        "list who may connect, or remove the key to admit whoever can reach the listener",
                    ));
                }
            }
            "allow_remote_callers" => self.allow_remote_callers = reader.boolean(&written),
            unread => unreachable!("a key of the table that nobody reads: {unread}"),
        }
    }
}

impl TlsTable {
    fn set(&mut self, reader: &mut Reader<'_>, parent: &str, name: &Name<'_>, value: &Value<'_>) {
        let path = keys::path(parent, name.get_ref());
        let Some(written) = reader.written(Table::Tls, &path, name, value) else {
            return;
        };
        let base = reader.base;
        let path = |text: &str| value::path(text, base);
        match written.key.name {
            "ca" => self.ca = kubernetes::ca(reader, &written),
            "cert" => self.cert = reader.text(&written, path),
            "key" => self.key = reader.text(&written, path),
            "bundle" => self.bundle = reader.text(&written, path),
            "secret" => {
                self.secret = match reader.can_kubernetes(name.span().into(), written.path) {
                    true => reader.object(&written, "a Secret"),
                    false => Slot::Invalid,
                };
            }
            "credential" => self.credential = reader.credential(&written),
            "client_auth" => self.client_auth = reader.boolean(&written),
            "verify" => self.verify = verify(reader, &written),
            "verify_depth" => self.verify_depth = written_depth(reader, &written),
            "server_name" => self.server_name = reader.text(&written, value::server_name),
            "sni" => self.sni = reader.boolean(&written),
            "crl" => self.crl = reader.text(&written, path),
            "crl_expired" => self.crl_expired = reader.choice(&written, &CRL_EXPIRED),
            "pins" => self.pins = reader.list(&written, value::pin),
            "allowed_names" => self.allowed_names = reader.list(&written, value::name_pattern),
            "min_version" => self.min_version = reader.choice(&written, &VERSIONS),
            "max_version" => self.max_version = reader.choice(&written, &VERSIONS),
            "key_exchange" => {
                self.key_exchange = reader.list(&written, |text| value::choice(text, &GROUPS));
                if matches!(&self.key_exchange, Slot::Set(groups, _) if groups.is_empty()) {
                    self.key_exchange = reader.invalid(
                        &written,
                        Wrong::new(
                            "without a key exchange group no handshake can succeed",
                            "list at least one, or remove the key for the default",
                        ),
                    );
                }
            }
            "alpn" => self.alpn = reader.list(&written, value::protocol),
            "resumption" => self.resumption = reader.boolean(&written),
            "record_layer" => self.record_layer = reader.choice(&written, &RECORD_LAYER),
            unread => unreachable!("a key of the table that nobody reads: {unread}"),
        }
    }
}

/// `verify`, with the spelling for those who know a switch from nginx or Kong.
fn verify(reader: &mut Reader<'_>, written: &Written<'_>) -> Slot<Verify> {
    let switch = match written.value.get_ref() {
        DeValue::Boolean(on) => Some(*on),
        DeValue::String(text) if text == "on" => Some(true),
        DeValue::String(text) if text == "off" => Some(false),
        _ => None,
    };
    match switch {
        Some(on) => {
            let (word, meaning) = match on {
                true => ("full", "chain and name"),
                false => ("none", "nothing"),
            };
            let fix = format!(
                "write \"{word}\" to verify {meaning}; possible are \"full\", \"chain\" and \"none\""
            );
            reader.invalid(
                written,
                Wrong::new("verify says what is verified, it is not a switch", fix),
            )
        }
        None => reader.choice(written, &VERIFY),
    }
}

/// `verify_depth`. Kong's guide to upstream mTLS shows `tls_verify_depth=on`.
fn written_depth(reader: &mut Reader<'_>, written: &Written<'_>) -> Slot<u8> {
    match written.value.get_ref() {
        DeValue::String(text) if is_switch(text) => {
            reader.invalid(written, depth_is_no_switch(text))
        }
        DeValue::Boolean(on) => reader.invalid(written, depth_is_no_switch(&on.to_string())),
        _ => reader.integer(written),
    }
}

/// `verify_depth` as the text of a variable or an annotation.
pub(super) fn verify_depth(text: &str) -> value::Parsed<u8> {
    if is_switch(text) {
        return Err(depth_is_no_switch(text));
    }
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(depth @ 0..=6) if digits => Ok(depth),
        _ => Err(Wrong::new(
            format!("{text:?} is not a number from 0 to 6"),
            "write the number of certificates allowed between the upstream's and the trust anchor",
        )),
    }
}

fn is_switch(text: &str) -> bool {
    matches!(text, "on" | "off" | "true" | "false")
}

fn depth_is_no_switch(text: &str) -> Wrong {
    Wrong::new(
        format!(
            "verify_depth is a number of certificates, so {text:?} says nothing here (although Kong's guide shows \"on\")"
        ),
        "write a number from 0 to 6, for example 2; remove the key for the default",
    )
}

// === keys that are not there ===

/// Reports a name that is no key of this table, with the key that was most likely meant.
pub(super) fn report_unknown(reader: &mut Reader<'_>, table: Table, path: &str, name: &Name<'_>) {
    let word = name.get_ref().as_ref();
    let wrong = if word == "namespace" && matches!(table, Table::Tls | Table::Ca) {
        Wrong::new(
            "a namespace stands before the name that it belongs to",
            "write for example secret = \"payments/billing-client\"",
        )
    } else {
        Wrong::new(
            format!("there is no key {word:?} here"),
            suggestion(table, word),
        )
    };
    reader.findings.report(name.span().into(), path, wrong);
}

/// What to write instead of an unknown key.
fn suggestion(table: Table, word: &str) -> String {
    // Known elsewhere: in another table of ours, or in another program.
    const ELSEWHERE: [Table; 6] = [
        Table::Top,
        Table::Service,
        Table::Tls,
        Table::Sandbox,
        Table::Kubernetes,
        Table::Discovery,
    ];
    for other in &ELSEWHERE[..4] {
        if *other != table && other.key(word).is_some() {
            return format!("{word} belongs {}", place_of(*other));
        }
    }
    for other in [
        table,
        Table::Service,
        Table::Tls,
        Table::Admin,
        Table::Log,
        Table::Top,
        Table::Sandbox,
        Table::Kubernetes,
        Table::Discovery,
    ] {
        for key in other.keys() {
            if let Some((program, _)) = key.elsewhere.iter().find(|(_, name)| *name == word) {
                let name = key.name;
                return match other == table {
                    true => format!("{program}'s {word} is called {name} here"),
                    false => format!(
                        "{program}'s {word} is called {name} here, {}",
                        place_of(other)
                    ),
                };
            }
        }
    }
    let mut names: Vec<&str> = table.keys().iter().map(|key| key.name).collect();
    match table {
        Table::Top => names.extend([
            "admin",
            "log",
            "sandbox",
            "kubernetes",
            "defaults",
            "services",
        ]),
        Table::Service => names.push("tls"),
        Table::Kubernetes => names.push("discovery"),
        Table::Admin
        | Table::Log
        | Table::Sandbox
        | Table::Tls
        | Table::Discovery
        | Table::Backend
        | Table::Ca => {}
    }
    if let Some(name) = nearest(word, names.iter().copied()) {
        return format!("did you mean {name}?");
    }
    for other in ELSEWHERE {
        if let Some(name) = nearest(word, other.keys().iter().map(|key| key.name)) {
            return format!("did you mean {name}? It belongs {}", place_of(other));
        }
    }
    format!("possible are {}", names.join(", "))
}

fn place_of(table: Table) -> &'static str {
    match table {
        Table::Top => "outside of any table",
        Table::Admin => "in [admin]",
        Table::Log => "in [log]",
        Table::Sandbox => "in [sandbox]",
        Table::Service => "in [services.NAME] or [defaults]",
        Table::Tls => "in [services.NAME.tls] or [defaults.tls]",
        Table::Kubernetes => "in [kubernetes]",
        Table::Discovery => "in [kubernetes.discovery]",
        Table::Backend => "in upstream = { … }",
        Table::Ca => "in ca = { … }",
    }
}
