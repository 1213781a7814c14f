//! The annotations of a Kubernetes Service as settings of a service: those of Kong's ingress
//! controller, and `tlsward/…` for what Kong has no word for. Plain maps in, the shape of a
//! service's table out. `docs/kubernetes-annotations.md` has the same table for people.
//!
//! Whoever may edit a Service is not whoever runs this proxy. So an annotation names objects of
//! the Service's own namespace only, never a file of the proxy's machine, and opens no listener to
//! others. What cannot be understood is a mistake and not as if it were absent: absence would mean
//! less security in too many cases.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use super::document::{
    CRL_EXPIRED, GROUPS, RECORD_LAYER, ServiceTable, Slot, VERIFY, VERSIONS, verify_depth,
};
use super::identity::Said;
use super::keys::{Table, nearest, quoted};
use super::kubernetes::names::{self, PortRef};
use super::kubernetes::{CaKey, CaObject, Discovery, ObjectRef, ServiceObject};
use super::problem::{self, At, Found, Wrong};
use super::value::{self, Parsed};
use super::{CaSource, Listen, Verify};

/// The annotation by which a Service is discovered.
pub(super) const LISTEN: &str = "tlsward/listen";
/// Which port of a discovered Service.
pub(super) const PORT: &str = "tlsward/port";

const OURS: &str = "tlsward/";

/// No setting needs more; the API server allows 256 KiB for all annotations of an object.
const MOST_BYTES: usize = 8 * 1024;

/// What the annotations of one Service say.
#[derive(Debug)]
pub(super) struct Annotations {
    pub(super) table: ServiceTable,
    pub(super) identity: Said,
    pub(super) problems: Vec<Found>,
}

/// An annotation that is known, and how it is read.
pub(super) struct Annotation {
    pub(super) name: &'static str,
    /// The key that it stands for; empty where it is only checked.
    pub(super) key: &'static str,
    /// `None`: it concerns discovery, which reads it.
    read: Option<fn(&mut Reading<'_>, &Self, &str)>,
}

/// In the order in which they count where two say the same.
pub(super) const KNOWN: &[Annotation] = &[
    Annotation {
        name: "konghq.com/client-cert",
        key: "tls.secret",
        read: Some(client_cert),
    },
    Annotation {
        name: "configuration.konghq.com/client-cert",
        key: "tls.secret",
        read: Some(client_cert),
    },
    Annotation {
        name: "tlsward/client-cert",
        key: "tls.secret",
        read: Some(client_cert),
    },
    Annotation {
        name: "tlsward/client-auth",
        key: "tls.client_auth",
        read: Some(|reading, of, text| reading.set(of, boolean(text), |t| &mut t.tls.client_auth)),
    },
    Annotation {
        name: "konghq.com/tls-verify",
        key: "tls.verify",
        read: Some(|reading, of, text| {
            let verify = kongs_boolean(text).map(|on| match on {
                true => Verify::Full,
                false => Verify::None,
            });
            reading.set(of, verify, |t| &mut t.tls.verify);
        }),
    },
    Annotation {
        name: "tlsward/verify",
        key: "tls.verify",
        read: Some(|reading, of, text| {
            reading.set(of, value::choice(text, &VERIFY), |t| &mut t.tls.verify);
        }),
    },
    Annotation {
        name: "konghq.com/tls-verify-depth",
        key: "tls.verify_depth",
        read: Some(|reading, of, text| {
            reading.set(of, verify_depth(text), |t| &mut t.tls.verify_depth)
        }),
    },
    Annotation {
        name: "tlsward/verify-depth",
        key: "tls.verify_depth",
        read: Some(|reading, of, text| {
            reading.set(of, verify_depth(text), |t| &mut t.tls.verify_depth)
        }),
    },
    Annotation {
        name: "konghq.com/ca-certificates-secrets",
        key: "tls.ca",
        read: Some(|reading, of, text| {
            reading.ca(of, text, "a Secret", |object, key| CaObject::Secret {
                object,
                key,
            });
        }),
    },
    Annotation {
        name: "konghq.com/ca-certificates-configmaps",
        key: "tls.ca",
        read: Some(|reading, of, text| {
            reading.ca(of, text, "a ConfigMap", |object, key| CaObject::ConfigMap {
                object,
                key,
            });
        }),
    },
    Annotation {
        name: "konghq.com/host-header",
        key: "tls.server_name",
        read: Some(|reading, of, text| {
            reading.set(of, value::server_name(text), |t| &mut t.tls.server_name);
        }),
    },
    Annotation {
        name: "tlsward/server-name",
        key: "tls.server_name",
        read: Some(|reading, of, text| {
            reading.set(of, value::server_name(text), |t| &mut t.tls.server_name);
        }),
    },
    Annotation {
        name: "konghq.com/protocol",
        key: "",
        read: Some(protocol),
    },
    Annotation {
        name: "configuration.konghq.com/protocol",
        key: "",
        read: Some(protocol),
    },
    Annotation {
        name: "konghq.com/connect-timeout",
        key: "connect_timeout",
        read: Some(|reading, of, text| {
            reading.set(of, milliseconds(text), |t| &mut t.connect_timeout);
        }),
    },
    Annotation {
        name: "tlsward/sni",
        key: "tls.sni",
        read: Some(|reading, of, text| reading.set(of, boolean(text), |t| &mut t.tls.sni)),
    },
    Annotation {
        name: "tlsward/crl-expired",
        key: "tls.crl_expired",
        read: Some(|reading, of, text| {
            let parsed = value::choice(text, &CRL_EXPIRED);
            reading.set(of, parsed, |t| &mut t.tls.crl_expired);
        }),
    },
    Annotation {
        name: "tlsward/pins",
        key: "tls.pins",
        read: Some(|reading, of, text| {
            reading.set(of, list(text, value::pin), |t| &mut t.tls.pins)
        }),
    },
    Annotation {
        name: "tlsward/allowed-names",
        key: "tls.allowed_names",
        read: Some(|reading, of, text| {
            let parsed = list(text, value::name_pattern);
            reading.set(of, parsed, |t| &mut t.tls.allowed_names);
        }),
    },
    Annotation {
        name: "tlsward/min-version",
        key: "tls.min_version",
        read: Some(|reading, of, text| {
            let parsed = value::choice(text, &VERSIONS);
            reading.set(of, parsed, |t| &mut t.tls.min_version);
        }),
    },
    Annotation {
        name: "tlsward/max-version",
        key: "tls.max_version",
        read: Some(|reading, of, text| {
            let parsed = value::choice(text, &VERSIONS);
            reading.set(of, parsed, |t| &mut t.tls.max_version);
        }),
    },
    Annotation {
        name: "tlsward/key-exchange",
        key: "tls.key_exchange",
        read: Some(|reading, of, text| {
            let parsed = list(text, |text| value::choice(text, &GROUPS));
            reading.set(of, parsed, |t| &mut t.tls.key_exchange);
        }),
    },
    Annotation {
        name: "tlsward/alpn",
        key: "tls.alpn",
        read: Some(|reading, of, text| {
            let parsed = list(text, value::protocol);
            reading.set(of, parsed, |t| &mut t.tls.alpn);
        }),
    },
    Annotation {
        name: "tlsward/resumption",
        key: "tls.resumption",
        read: Some(|reading, of, text| reading.set(of, boolean(text), |t| &mut t.tls.resumption)),
    },
    Annotation {
        name: "tlsward/record-layer",
        key: "tls.record_layer",
        read: Some(|reading, of, text| {
            let parsed = value::choice(text, &RECORD_LAYER);
            reading.set(of, parsed, |t| &mut t.tls.record_layer);
        }),
    },
    Annotation {
        name: LISTEN,
        key: "",
        read: None,
    },
    Annotation {
        name: PORT,
        key: "",
        read: None,
    },
];

impl Annotations {
    /// Reads them. Those of others are passed over, also Kong's that have no meaning here.
    pub(super) fn read(service: &ServiceObject) -> Self {
        let mut reading = Reading {
            service,
            table: ServiceTable::default(),
            ca: Vec::new(),
            problems: Vec::new(),
        };
        for annotation in KNOWN {
            let (Some(text), Some(read)) =
                (service.annotations.get(annotation.name), annotation.read)
            else {
                continue;
            };
            if text.len() > MOST_BYTES {
                let length = text.len();
                let wrong = Wrong::new(
                    format!("the value has {length} bytes, at most {MOST_BYTES} are read"),
                    "shorten it",
                );
                reading.problem(annotation, wrong);
            } else {
                read(&mut reading, annotation, text);
            }
        }
        let ours = service.annotations.range(OURS.to_owned()..);
        for (name, _) in ours.take_while(|(name, _)| name.starts_with(OURS)) {
            if !KNOWN.iter().any(|known| known.name == name) {
                let wrong = unknown(name);
                let found = problem::in_annotation(service, name, "", wrong);
                reading.problems.push(found);
            }
        }
        let identity = reading.identity();
        Self {
            table: reading.table,
            identity,
            problems: reading.problems,
        }
    }
}

/// Annotations on their way to a table.
struct Reading<'s> {
    service: &'s ServiceObject,
    table: ServiceTable,
    ca: Vec<CaObject>,
    problems: Vec<Found>,
}

impl Reading<'_> {
    fn problem(&mut self, of: &Annotation, wrong: Wrong) {
        let found = problem::in_annotation(self.service, of.name, of.key, wrong);
        self.problems.push(found);
    }

    /// Sets what the annotation stands for. Two annotations for the same must agree.
    fn set<T: PartialEq>(
        &mut self,
        of: &Annotation,
        parsed: Parsed<T>,
        slot: impl Fn(&mut ServiceTable) -> &mut Slot<T>,
    ) {
        let value = match parsed {
            Ok(value) => value,
            Err(wrong) => {
                *slot(&mut self.table) = Slot::Invalid;
                return self.problem(of, wrong);
            }
        };
        let slot = slot(&mut self.table);
        let other = match slot {
            Slot::Absent => {
                *slot = Slot::Set(value, At::Annotation(of.name));
                return;
            }
            Slot::Set(before, At::Annotation(other)) if *before != value => *other,
            Slot::Set(..) | Slot::Invalid => return,
        };
        *slot = Slot::Invalid;
        let wrong = Wrong::new(
            format!("{other} is set too and says otherwise"),
            "remove one of the two annotations",
        );
        self.problem(of, wrong);
    }

    /// CA certificates by the names of objects. Kong's objects hold them under `cert` or `ca.crt`.
    fn ca(
        &mut self,
        of: &Annotation,
        text: &str,
        kind: &str,
        object: fn(ObjectRef, CaKey) -> CaObject,
    ) {
        let namespace = &self.service.object.namespace;
        let names = items(text).and_then(|names| {
            let names = names.into_iter();
            names
                .map(|name| own_object(name, kind, namespace))
                .collect::<Parsed<Vec<ObjectRef>>>()
        });
        match names {
            Ok(names) => {
                for name in names {
                    let ca = object(name, CaKey::CertOrCaCrt);
                    // Kong takes a name twice, too.
                    if !self.ca.contains(&ca) {
                        self.ca.push(ca);
                    }
                }
                let at = self.table.tls.ca.at();
                if self.table.tls.ca != Slot::Invalid {
                    let all = CaSource::Objects(self.ca.clone());
                    let at = at.unwrap_or(At::Annotation(of.name));
                    self.table.tls.ca = Slot::Set(all, at);
                }
            }
            Err(wrong) => {
                self.table.tls.ca = Slot::Invalid;
                self.problem(of, wrong);
            }
        }
    }

    /// Which client certificate the annotations ask for.
    fn identity(&mut self) -> Said {
        let tls = &self.table.tls;
        match (&tls.secret, &tls.client_auth) {
            (Slot::Set(_, At::Annotation(secret)), Slot::Set(false, _)) => {
                let wrong = Wrong::new(
                    format!(
                        "\"false\" says that no certificate is presented, but {secret} names one"
                    ),
                    "remove one of the two annotations",
                );
                let found = problem::in_annotation(
                    self.service,
                    "tlsward/client-auth",
                    "tls.client_auth",
                    wrong,
                );
                self.problems.push(found);
                Said::Invalid
            }
            (Slot::Set(object, at), _) => Said::Secret(object.clone(), *at),
            (Slot::Absent, Slot::Set(false, at)) => Said::None(*at),
            (Slot::Absent, Slot::Absent | Slot::Set(true, _)) => Said::Nothing,
            (Slot::Invalid, _) | (Slot::Absent, Slot::Invalid) => Said::Invalid,
        }
    }
}

// === values ===

fn client_cert(reading: &mut Reading<'_>, of: &Annotation, text: &str) {
    let secret = own_object(text, "a Secret", &reading.service.object.namespace);
    reading.set(of, secret, |t| &mut t.tls.secret);
}

/// An object of the Service's own namespace, by its name alone.
fn own_object(text: &str, kind: &str, namespace: &str) -> Parsed<ObjectRef> {
    if let Some((other, name)) = text.split_once('/') {
        let what = kind.trim_start_matches("a ");
        let fix = match other == namespace {
            true => format!("write {name:?}"),
            false => format!(
                "put the {what} into {namespace} and write its name alone; other namespaces can be named in tlsward's own configuration only"
            ),
        };
        return Err(Wrong::new(
            format!(
                "{text:?} names a namespace, but an annotation can only name {kind} of the Service's own namespace"
            ),
            fix,
        ));
    }
    names::object(text, kind).map(|name| ObjectRef::new(namespace, name))
}

/// Kong's protocols that are TLS. Nothing is set by them: tlsward speaks TLS whatever is said.
fn protocol(reading: &mut Reading<'_>, of: &Annotation, text: &str) {
    const TLS: [&str; 4] = ["https", "tls", "grpcs", "wss"];
    const CLEAR: [&str; 5] = ["http", "tcp", "grpc", "ws", "udp"];
    let reason = match text {
        _ if TLS.contains(&text) => return,
        "tls_passthrough" => {
            "\"tls_passthrough\" hands on the callers' own TLS, but tlsward begins TLS itself, towards the upstream".to_owned()
        }
        _ if CLEAR.contains(&text) => {
            format!("{text:?} asks for traffic in the clear, which tlsward never sends")
        }
        _ => format!("{text:?} is not a protocol of Kong's"),
    };
    let fix = format!("write {}, or remove the annotation", quoted(&TLS));
    reading.problem(of, Wrong::new(reason, fix));
}

/// What Kong takes for a boolean: Go's `strconv.ParseBool`.
fn kongs_boolean(text: &str) -> Parsed<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err(not_boolean(text)),
    }
}

fn boolean(text: &str) -> Parsed<bool> {
    match text {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(not_boolean(text)),
    }
}

fn not_boolean(text: &str) -> Wrong {
    Wrong::new(
        format!("{text:?} is neither true nor false"),
        "write \"true\" or \"false\"",
    )
}

/// Kong's timeouts are numbers of milliseconds.
fn milliseconds(text: &str) -> Parsed<Duration> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse::<u64>() {
        Ok(millis) if digits => value::time_limit(&format!("{millis}ms")).map_err(|wrong| {
            let fix = "write a number of milliseconds above zero, for example \"10000\"";
            Wrong::new(wrong.reason, fix)
        }),
        _ => Err(Wrong::new(
            format!("{text:?} is not a number of milliseconds"),
            "write for example \"10000\" for ten seconds",
        )),
    }
}

/// What stands between commas, without blanks around it.
fn items(text: &str) -> Parsed<Vec<&str>> {
    /// More than any list of ours needs.
    const MOST: usize = 200;
    let items: Vec<&str> = text.split(',').map(str::trim).collect();
    let wrong = match items.len() {
        _ if items.contains(&"") => Wrong::new(
            "between two commas of the list, or at its end, there is nothing",
            "remove the comma",
        ),
        length if length > MOST => Wrong::new(
            format!("the list has {length} elements, at most {MOST} are taken"),
            "shorten the list",
        ),
        _ => return Ok(items),
    };
    Err(wrong)
}

/// A list of values, none of them twice.
fn list<T: PartialEq>(text: &str, parse: impl Fn(&str) -> Parsed<T>) -> Parsed<Vec<T>> {
    let mut list = Vec::new();
    for item in items(text)? {
        let parsed = parse(item)?;
        if list.contains(&parsed) {
            return Err(Wrong::new(
                format!("the list says {item:?} twice"),
                "remove one of the two",
            ));
        }
        list.push(parsed);
    }
    Ok(list)
}

// === discovery ===

/// Where callers of a discovered Service connect.
pub(super) fn listen(text: &str, discovery: &Discovery) -> Parsed<Listen> {
    const FORM: &str = "write a port, for example \"7001\", or a socket: \"unix:billing.sock\"";
    if let Some(socket) = text.strip_prefix("unix:") {
        let Some(directory) = &discovery.socket_directory else {
            return Err(Wrong::new(
                "unix sockets are refused: tlsward's configuration has no kubernetes.discovery.socket_directory",
                "write a port, or have socket_directory set",
            ));
        };
        let path = socket.split('?').next().unwrap_or_default();
        // A file of this directory, not of one below: that might not exist.
        let file = match Path::new(path).strip_prefix(directory) {
            Ok(inside) if path.starts_with('/') => inside,
            _ => Path::new(path),
        };
        let plain = file
            .to_str()
            .is_some_and(|file| !["", ".", ".."].contains(&file) && !file.contains('/'));
        if !plain || path.ends_with('/') || path.contains("/../") {
            return Err(Wrong::new(
                format!("{path:?} is not the name of a file in the directory of sockets"),
                "write a name without a directory: \"unix:billing.sock\"",
            ));
        }
        return Listen::parse(text, directory);
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Err(Wrong::new(
            format!(
                "{text:?} names an address, which tlsward's configuration does for all Services (listen_address)"
            ),
            format!("write \"{}\"", address.port()),
        ));
    }
    match names::port(text) {
        Ok(PortRef::Number(port)) => {
            Ok(Listen::Tcp(SocketAddr::new(discovery.listen_address, port)))
        }
        Ok(PortRef::Name(_)) | Err(_) => Err(Wrong::new(
            format!("{text:?} is neither a port nor a unix socket"),
            FORM,
        )),
    }
}

// === annotations that are none ===

/// What is wrong with an annotation of ours that does not exist.
fn unknown(name: &str) -> Wrong {
    let word = name.strip_prefix(OURS).unwrap_or(name);
    let key = word.replace('-', "_");
    let (reason, fix) = match key.as_str() {
        "secret" => (
            format!("there is no annotation {name:?}"),
            "the Secret is named by konghq.com/client-cert or tlsward/client-cert".to_owned(),
        ),
        "ca" => (
            files(name),
            "name konghq.com/ca-certificates-secrets or konghq.com/ca-certificates-configmaps"
                .to_owned(),
        ),
        "cert" | "key" | "bundle" | "credential" => (
            files(name),
            "name a Secret by konghq.com/client-cert".to_owned(),
        ),
        "crl" => (
            files(name),
            "have crl set in [defaults.tls] or in the service's table".to_owned(),
        ),
        "allow_remote_callers" | "allow_callers" => (
            format!(
                "{name:?} would let whoever may edit the Service say who can reach the listener"
            ),
            format!("have {key} set in tlsward's configuration"),
        ),
        "connect_timeout" => (
            format!("there is no annotation {name:?}"),
            "it is called konghq.com/connect-timeout, in milliseconds".to_owned(),
        ),
        _ if Table::Service.key(&key).is_some() => (
            format!("{key} cannot be set by an annotation"),
            format!("have {key} set in [defaults] or in the service's table"),
        ),
        _ => {
            let ours = || KNOWN.iter().map(|known| known.name);
            let fix = match nearest(name, ours().filter(|known| known.starts_with(OURS))) {
                Some(meant) => format!("did you mean {meant}?"),
                None => "docs/kubernetes-annotations.md lists those that there are".to_owned(),
            };
            (format!("there is no annotation {name:?}"), fix)
        }
    };
    Wrong::new(reason, fix)
}

fn files(name: &str) -> String {
    format!(
        "{name:?} would let whoever may edit the Service name files of the machine on which tlsward runs"
    )
}
