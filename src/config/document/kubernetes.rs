//! What the file says of Kubernetes, as written: `[kubernetes]`, and the inline tables that name a
//! Kubernetes object.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use toml::de::DeValue;

use super::{Slot, report_unknown};
use crate::config::keys::{self, Table};
use crate::config::kubernetes::names::{self, Named, PortRef};
use crate::config::kubernetes::{CaKey, CaObject, Namespaces, ObjectRef, SecretWatch};
use crate::config::problem::{At, Wrong};
use crate::config::reader::{Home, Name, Reader, Value, Written, mismatch};
use crate::config::value;
use crate::config::{CaSource, Credential};

/// `[kubernetes]`.
#[derive(Debug, Default)]
pub(in crate::config) struct KubernetesTable {
    pub(in crate::config) kubeconfig: Slot<PathBuf>,
    pub(in crate::config) context: Slot<String>,
    pub(in crate::config) namespace: Slot<String>,
    pub(in crate::config) annotations: Slot<bool>,
    pub(in crate::config) events: Slot<bool>,
    pub(in crate::config) zone: Slot<Option<String>>,
    pub(in crate::config) node: Slot<Option<String>>,
    pub(in crate::config) secrets: Slot<SecretWatch>,
    /// The table with the place of its name.
    pub(in crate::config) discovery: Option<(DiscoveryTable, At)>,
}

/// `[kubernetes.discovery]`.
#[derive(Debug, Default)]
pub(in crate::config) struct DiscoveryTable {
    pub(in crate::config) namespaces: Slot<Namespaces>,
    pub(in crate::config) selector: Slot<String>,
    pub(in crate::config) listen_address: Slot<IpAddr>,
    pub(in crate::config) socket_directory: Slot<PathBuf>,
}

const SECRETS: [(&str, SecretWatch); 2] = [
    ("named", SecretWatch::Named),
    ("namespace", SecretWatch::Namespace),
];

impl KubernetesTable {
    /// Reads the table. From then on the reader knows the namespace that is set here.
    pub(super) fn read(reader: &mut Reader<'_>, name: &Name<'_>, value: &Value<'_>) -> Self {
        let mut table = Self::default();
        if !reader.can_kubernetes(name.span().into(), "kubernetes") {
            // What is named without a namespace is reported for this reason already.
            reader.home = Home::Unreadable;
            return table;
        }
        if !matches!(value.get_ref(), DeValue::Table(_)) {
            reader.home = Home::Unreadable;
        }
        reader.table("kubernetes", value, |reader, name, value| {
            table.set(reader, name, value);
        });
        match &table.namespace {
            Slot::Set(namespace, _) if reader.home != Home::Unreadable => {
                reader.home = Home::Known(namespace.clone());
            }
            Slot::Invalid => reader.home = Home::Unreadable,
            Slot::Set(..) | Slot::Absent => {}
        }
        table
    }

    fn set(&mut self, reader: &mut Reader<'_>, name: &Name<'_>, value: &Value<'_>) {
        let path = keys::path("kubernetes", name.get_ref());
        if name.get_ref() == "discovery" {
            let mut discovery = DiscoveryTable::default();
            reader.table(&path, value, |reader, name, value| {
                discovery.set(reader, &path, name, value);
            });
            self.discovery = Some((discovery, name.span().into()));
            return;
        }
        let Some(written) = reader.written(Table::Kubernetes, &path, name, value) else {
            return;
        };
        let base = reader.base;
        match written.key.name {
            "kubeconfig" => self.kubeconfig = reader.text(&written, |text| value::path(text, base)),
            "context" => self.context = reader.text(&written, context),
            "namespace" => self.namespace = reader.text(&written, names::namespace),
            "annotations" => self.annotations = reader.boolean(&written),
            "events" => self.events = reader.boolean(&written),
            "zone" => self.zone = reader.text(&written, names::place),
            "node" => self.node = reader.text(&written, names::place),
            "secrets" => self.secrets = reader.choice(&written, &SECRETS),
            unread => unreachable!("a key of the table that nobody reads: {unread}"),
        }
    }
}

impl DiscoveryTable {
    fn set(&mut self, reader: &mut Reader<'_>, parent: &str, name: &Name<'_>, value: &Value<'_>) {
        let path = keys::path(parent, name.get_ref());
        let Some(written) = reader.written(Table::Discovery, &path, name, value) else {
            return;
        };
        let base = reader.base;
        match written.key.name {
            "namespaces" => self.namespaces = namespaces(reader, &written),
            "selector" => self.selector = reader.text(&written, names::selector),
            "listen_address" => self.listen_address = reader.text(&written, listen_address),
            "socket_directory" => {
                self.socket_directory = reader.text(&written, |text| value::path(text, base));
            }
            unread => unreachable!("a key of the table that nobody reads: {unread}"),
        }
    }
}

fn context(text: &str) -> value::Parsed<String> {
    match text.is_empty() {
        true => Err(Wrong::new(
            "the name of the context is empty",
            "write a name that `kubectl config get-contexts` shows, or remove the key",
        )),
        false => Ok(text.to_owned()),
    }
}

fn namespaces(reader: &mut Reader<'_>, written: &Written<'_>) -> Slot<Namespaces> {
    const ALL: &str = "*";
    let list = reader.list(written, |text| match text {
        ALL => Ok(ALL.to_owned()),
        _ => names::namespace(text),
    });
    let Slot::Set(list, at) = list else {
        return Slot::Invalid;
    };
    match list.as_slice() {
        [] => reader.invalid(
            written,
            Wrong::new(
                "in no namespace nothing would be discovered",
                "list namespaces, or write [\"*\"] for all; remove the key for tlsward's own",
            ),
        ),
        [all] if all == ALL => Slot::Set(Namespaces::All, at),
        several if several.iter().any(|name| name == ALL) => reader.invalid(
            written,
            Wrong::new(
                "\"*\" stands for every namespace, so the others say nothing",
                "write [\"*\"], or list the namespaces",
            ),
        ),
        _ => Slot::Set(Namespaces::These(list.into_iter().collect()), at),
    }
}

fn listen_address(text: &str) -> value::Parsed<IpAddr> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Err(Wrong::new(
            "listen_address has no port: each Service names its own in tlsward/listen",
            format!("write \"{}\"", address.ip()),
        ));
    }
    let plain = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    plain.unwrap_or(text).parse().map_err(|_| {
        Wrong::new(
            format!("{text:?} is not an IP address"),
            "write an address of this machine, for example \"127.0.0.1\" or \"::1\"",
        )
    })
}

/// `upstream = { service = …, namespace = …, port = … }`.
pub(super) fn backend(
    reader: &mut Reader<'_>,
    written: &Written<'_>,
) -> Slot<(ObjectRef, Option<PortRef>)> {
    if reader.is_broken(written) || !reader.can_kubernetes(written.at(), written.path) {
        return Slot::Invalid;
    }
    let (mut service, mut namespace, mut port) = (Slot::Absent, Slot::Absent, Slot::Absent);
    let at = written.at();
    reader.table(written.path, written.value, |reader, name, value| {
        let path = keys::path(written.path, name.get_ref());
        let Some(written) = reader.written(Table::Backend, &path, name, value) else {
            return;
        };
        match written.key.name {
            "service" => service = reader.text(&written, names::service),
            "namespace" => namespace = reader.text(&written, names::namespace),
            "port" => port = reader.port(&written),
            unread => unreachable!("a key of the table that nobody reads: {unread}"),
        }
    });
    let namespace = match namespace {
        Slot::Set(namespace, _) => Some(namespace),
        Slot::Absent => None,
        Slot::Invalid => return Slot::Invalid,
    };
    let port = match port {
        Slot::Set(port, _) => Some(port),
        Slot::Absent => None,
        Slot::Invalid => return Slot::Invalid,
    };
    let (name, at_name) = match service {
        Slot::Set(service, at) => (service, at),
        Slot::Invalid => return Slot::Invalid,
        Slot::Absent => {
            let wrong = Wrong::new(
                "the table names no Service",
                "write for example upstream = { service = \"billing\", namespace = \"payments\" }",
            );
            return reader.invalid(written, wrong);
        }
    };
    match reader.at_home(Named { namespace, name }, at_name, written.path) {
        Slot::Set(object, _) => Slot::Set((object, port), at),
        Slot::Absent => Slot::Absent,
        Slot::Invalid => Slot::Invalid,
    }
}

/// `ca`: a text, a table or a list of tables.
pub(super) fn ca(reader: &mut Reader<'_>, written: &Written<'_>) -> Slot<CaSource> {
    let base = reader.base;
    let tables = match written.value.get_ref() {
        DeValue::Table(_) => vec![written.value],
        DeValue::Array(list) => list.iter().collect(),
        _ => return reader.text(written, |text| value::ca(text, base)),
    };
    let is_credential = |table: &&Value<'_>| match table.get_ref() {
        DeValue::Table(table) => table.contains_key("credential"),
        _ => false,
    };
    let credentials = tables.iter().filter(|table| is_credential(table)).count();
    let kubernetes = credentials == 0 || credentials < tables.len();
    if reader.is_broken(written)
        || (kubernetes && !reader.can_kubernetes(written.at(), written.path))
    {
        return Slot::Invalid;
    }
    if credentials > 0 && tables.len() > 1 {
        let wrong = Wrong::new(
            "a credential with CA certificates stands alone",
            "write ca = { credential = \"…\" }; its file may hold several certificates",
        );
        return reader.invalid(written, wrong);
    }
    if tables.is_empty() {
        let wrong = Wrong::new(
            "an empty list names no CA certificates",
            "remove the key, or name a Secret, a ConfigMap or a ClusterTrustBundle",
        );
        return reader.invalid(written, wrong);
    }
    let mut objects: Vec<CaObject> = Vec::with_capacity(tables.len());
    let mut seen = BTreeSet::new();
    let mut valid = true;
    for table in tables {
        let object = match ca_object(reader, written, table) {
            Some(CaTable::Object(object)) => object,
            Some(CaTable::Credential(credential)) => {
                return Slot::Set(CaSource::Credential(credential), written.at());
            }
            None => {
                valid = false;
                continue;
            }
        };
        if seen.insert(object.clone()) {
            objects.push(object);
        } else {
            valid = false;
            let wrong = Wrong::new("the list says this twice", "remove one of the two");
            reader
                .findings
                .report(table.span().into(), written.path, wrong);
        }
    }
    match valid {
        true => Slot::Set(CaSource::Objects(objects), written.at()),
        false => Slot::Invalid,
    }
}

/// What one table of `ca` names.
enum CaTable {
    Object(CaObject),
    Credential(Credential),
}

/// One table of `ca`; `None` after a report.
fn ca_object(reader: &mut Reader<'_>, ca: &Written<'_>, table: &Value<'_>) -> Option<CaTable> {
    let at = At::from(table.span());
    if !matches!(table.get_ref(), DeValue::Table(_)) {
        let wrong = match table.get_ref() {
            DeValue::String(_) => Wrong::new(
                "a list of ca holds tables, each of a Kubernetes object",
                "name a file or a directory alone: ca = \"certs/ca.crt\"; several files can lie in a directory",
            ),
            other => mismatch(ca.key, other),
        };
        reader.findings.report(at, ca.path, wrong);
        return None;
    }
    let (mut secret, mut configmap) = (Slot::Absent, Slot::Absent);
    let (mut bundle, mut key) = (Slot::Absent, Slot::Absent);
    let mut credential = Slot::Absent;
    let mut unknown = false;
    reader.table(ca.path, table, |reader, name, value| {
        let path = keys::path(ca.path, name.get_ref());
        let Some(known) = Table::Ca.key(name.get_ref()) else {
            unknown = true;
            report_unknown(reader, Table::Ca, &path, name);
            return;
        };
        let written = Written {
            key: known,
            path: &path,
            value,
        };
        match known.name {
            "secret" => secret = reader.object(&written, "a Secret"),
            "configmap" => configmap = reader.object(&written, "a ConfigMap"),
            "cluster_trust_bundle" => bundle = reader.text(&written, names::trust_bundle),
            "credential" => credential = reader.credential(&written),
            "key" => key = reader.text(&written, names::entry),
            unread => unreachable!("a key of the table that nobody reads: {unread}"),
        }
    });
    let named = [
        secret.is_written(),
        configmap.is_written(),
        bundle.is_written(),
        credential.is_written(),
    ];
    let wrong = match named.iter().filter(|written| **written).count() {
        // What was meant may be the unknown key.
        0 if unknown => return None,
        0 => Some(Wrong::new(
            "the table names no object",
            "write { secret = \"…\" }, { configmap = \"…\" }, { cluster_trust_bundle = \"…\" } or { credential = \"…\" }",
        )),
        1 if credential.is_written() && key.is_written() => Some(Wrong::new(
            "a credential has no entries of which key could name one",
            "remove key",
        )),
        1 if bundle.is_written() && key.is_written() => Some(Wrong::new(
            "a ClusterTrustBundle has no entries of which key could name one",
            "remove key",
        )),
        1 => None,
        _ => Some(Wrong::new(
            "the table names more than one object",
            "write a list of tables, one for each: ca = [{ secret = \"…\" }, { configmap = \"…\" }]",
        )),
    };
    if let Some(wrong) = wrong {
        reader.findings.report(at, ca.path, wrong);
        return None;
    }
    let key = match key {
        Slot::Set(key, _) => CaKey::Named(key),
        Slot::Absent => CaKey::Named(CaKey::DEFAULT.to_owned()),
        Slot::Invalid => return None,
    };
    if let Slot::Set(credential, _) = credential {
        return Some(CaTable::Credential(credential));
    }
    let object = match (secret, configmap, bundle) {
        (Slot::Set(object, _), ..) => CaObject::Secret { object, key },
        (_, Slot::Set(object, _), _) => CaObject::ConfigMap { object, key },
        (.., Slot::Set(name, _)) => CaObject::TrustBundle { name },
        _ => return None,
    };
    Some(CaTable::Object(object))
}
