//! `[sandbox]`: what the process keeps beside what its configuration needs at the start. And which
//! files the configuration names, which is what it needs.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use toml::de::DeValue;

use super::document::{ServiceTable, Slot, TlsTable, WrittenService};
use super::keys::{self, Table};
use super::problem::Wrong;
use super::reader::{Name, Reader, Value, Written};
use super::value::{self, Parsed};
use super::{CaSource, Credential, IdentitySource, Service, ServiceName, TrustSource};

/// `[sandbox]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    /// `enabled`. Default true.
    pub enabled: bool,
    /// `read` (absolute). Default none.
    pub read: Vec<PathBuf>,
    /// `connect_ports`. Default those in use.
    pub connect_ports: Ports,
    /// `bind_ports`. Default those in use.
    pub bind_ports: Ports,
}

impl Default for Sandbox {
    fn default() -> Self {
        Self {
            enabled: true,
            read: Vec::new(),
            connect_ports: Ports::Used,
            bind_ports: Ports::Used,
        }
    }
}

/// `sandbox.connect_ports` and `sandbox.bind_ports`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ports {
    /// `"used"`: those that the configuration needs at the start.
    Used,
    /// `"any"`.
    Any,
    /// Those in use, and these.
    And(Vec<RangeInclusive<u16>>),
}

/// Every file and directory that the configuration names, by the key that names it as written
/// (`services.billing.tls.cert`), whether a service uses it or not. Always equal to another: which
/// of them are in use is said elsewhere.
#[derive(Clone, Debug, Default)]
pub struct NamedFiles(pub BTreeMap<String, PathBuf>);

impl PartialEq for NamedFiles {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl NamedFiles {
    /// Those of these tables; `environment` is what the `TLSWARD_TLS_*` variables say.
    pub(super) fn of(
        environment: &ServiceTable,
        defaults: &ServiceTable,
        services: &[WrittenService],
    ) -> Self {
        let mut files = BTreeMap::new();
        let mut add = |path: &str, tls: &TlsTable| {
            let ca = match &tls.ca {
                Slot::Set(CaSource::Path(path), _) => Some(path),
                _ => None,
            };
            let slots = [
                ("ca", ca),
                ("cert", path_of(&tls.cert)),
                ("key", path_of(&tls.key)),
                ("bundle", path_of(&tls.bundle)),
                ("crl", path_of(&tls.crl)),
            ];
            for (key, file) in slots {
                if let Some(file) = file {
                    files.insert(keys::path(path, key), file.clone());
                }
            }
        };
        add("TLSWARD_TLS", &environment.tls);
        add("defaults.tls", &defaults.tls);
        for service in services {
            let path = keys::path("services", service.name.as_str());
            add(&keys::path(&path, "tls"), &service.table.tls);
        }
        Self(files)
    }
}

fn path_of(slot: &Slot<PathBuf>) -> Option<&PathBuf> {
    match slot {
        Slot::Set(path, _) => Some(path),
        Slot::Absent | Slot::Invalid => None,
    }
}

fn directory_of(credential: &Credential) -> Option<(&'static str, &Path)> {
    let directory = credential.directory.as_deref();
    directory.map(|directory| ("credential", directory))
}

impl IdentitySource {
    /// The files it is read from, each with the key that names it.
    pub(crate) fn files(&self) -> Vec<(&'static str, &Path)> {
        match self {
            Self::Pair { cert, key } => vec![("cert", cert), ("key", key)],
            Self::Bundle(path) => vec![("bundle", path)],
            Self::Credential(credential) => directory_of(credential).into_iter().collect(),
            Self::Secret(_) => Vec::new(),
        }
    }
}

impl TrustSource {
    /// The files and directories it is read from, each with the key that names it.
    pub(crate) fn files(&self) -> Vec<(&'static str, &Path)> {
        let ca = match &self.ca {
            CaSource::Path(path) => Some(("ca", path.as_path())),
            CaSource::Credential(credential) => directory_of(credential),
            CaSource::System | CaSource::Objects(_) => None,
        };
        let crl = self.crl.as_deref().map(|path| ("crl", path));
        ca.into_iter().chain(crl).collect()
    }
}

impl Service {
    /// The files and directories it reads, each with its key in `[services.NAME.tls]`.
    pub(crate) fn files(&self) -> Vec<(&'static str, &Path)> {
        let identity = self.identity.iter().flat_map(IdentitySource::files);
        identity
            .chain(self.trust.iter().flat_map(TrustSource::files))
            .collect()
    }
}

/// The key of a service as people write it.
pub(crate) fn service_key(service: &ServiceName, key: &str) -> String {
    format!("{}.{key}", keys::path("services", service.as_str()))
}

/// `[sandbox]` as written.
#[derive(Debug, Default)]
pub(super) struct SandboxTable {
    enabled: Slot<bool>,
    read: Slot<Vec<PathBuf>>,
    connect_ports: Slot<Ports>,
    bind_ports: Slot<Ports>,
}

impl SandboxTable {
    pub(super) fn set(&mut self, reader: &mut Reader<'_>, name: &Name<'_>, value: &Value<'_>) {
        let path = keys::path("sandbox", name.get_ref());
        let Some(written) = reader.written(Table::Sandbox, &path, name, value) else {
            return;
        };
        let base = reader.base;
        match written.key.name {
            "enabled" => self.enabled = reader.boolean(&written),
            "read" => self.read = reader.list(&written, |text| value::path(text, base)),
            "connect_ports" => self.connect_ports = ports(reader, &written),
            "bind_ports" => self.bind_ports = ports(reader, &written),
            unread => unreachable!("a key of the table that nobody reads: {unread}"),
        }
    }

    pub(super) fn settings(self) -> Sandbox {
        fn or<T>(slot: Slot<T>, default: T) -> T {
            match slot {
                Slot::Set(value, _) => value,
                Slot::Absent | Slot::Invalid => default,
            }
        }
        let default = Sandbox::default();
        Sandbox {
            enabled: or(self.enabled, default.enabled),
            read: or(self.read, default.read),
            connect_ports: or(self.connect_ports, default.connect_ports),
            bind_ports: or(self.bind_ports, default.bind_ports),
        }
    }
}

fn ports(reader: &mut Reader<'_>, written: &Written<'_>) -> Slot<Ports> {
    match written.value.get_ref() {
        DeValue::Array(_) => reader.list_of_ports(written, range).map(Ports::And),
        _ => reader.text(written, |text| match text {
            "used" => Ok(Ports::Used),
            "any" => Ok(Ports::Any),
            _ => match range(text) {
                Ok(_) => Err(Wrong::new(
                    "ports stand in a list",
                    format!("write [{text:?}]"),
                )),
                Err(_) => Err(Wrong::new(
                    format!("{text:?} says no ports"),
                    "write \"used\", \"any\", or a list such as [8443, \"7000-7099\"]",
                )),
            },
        }),
    }
}

/// `8443` or `7000-7099`.
fn range(text: &str) -> Parsed<RangeInclusive<u16>> {
    let number = |text: &str| text.trim().parse::<u16>().ok().filter(|port| *port > 0);
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (number(first), number(last)) {
        (Some(first), Some(last)) if first <= last => Ok(first..=last),
        _ => Err(Wrong::new(
            format!("{text:?} is neither a port nor a range of ports"),
            "write a number from 1 to 65535, or for example \"7000-7099\"",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_has_two_ends_in_order_and_a_port_is_a_range_of_one() {
        assert_eq!(range("8443").unwrap(), 8443..=8443);
        assert_eq!(range("7000-7099").unwrap(), 7000..=7099);
        for wrong in [
            "",
            "0",
            "65536",
            "7099-7000",
            "7000-",
            "-7000",
            "a",
            "1-2-3",
        ] {
            assert!(range(wrong).is_err(), "{wrong}");
        }
    }
}
