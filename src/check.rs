//! `tlsward check`: everything that a start would read, judged, and shown in a table.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use comfy_table::{Table, presets};
use rustls_pki_types::UnixTime;
use serde::Serialize;

use crate::config::{CaSource, Config, Credential, IdentitySource, Service};
use crate::control::{State, source_name};
use crate::failure::{Explained, Reason};
use crate::sandbox::{self, Rules};
use crate::source::SourceKey;
use crate::table;
use crate::tls::client_config;
use crate::tls::summary::CertificateSummary;

/// How the origins begin that lie outside of the file: variables, and annotations of Services.
const OUTSIDE: [&str; 2] = ["TLSWARD_", "annotation "];

/// What a check found, service by service.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) services: Vec<ServiceReport>,
    /// What `tlsward run` would go on to be allowed; nothing of it is in force here.
    pub(crate) sandbox: SandboxReport,
}

#[derive(Debug, Serialize)]
pub(crate) struct SandboxReport {
    /// Whether the configuration asks for one.
    pub(crate) enabled: bool,
    /// What the configuration names.
    pub(crate) read: Vec<String>,
    /// What every process needs.
    pub(crate) read_system: Vec<String>,
    /// Directories in which unix sockets may be made and removed.
    pub(crate) sockets: Vec<String>,
    pub(crate) connect_ports: String,
    pub(crate) bind_ports: String,
    /// What the configuration names and the sandbox would not hold.
    pub(crate) left_out: Vec<String>,
}

impl SandboxReport {
    fn of(config: &Config, rules: &Rules) -> Self {
        let report = sandbox::Report::of(rules);
        Self {
            enabled: config.sandbox.enabled,
            read: report.read,
            read_system: report.read_system,
            sockets: report.sockets,
            connect_ports: report.connect_ports,
            bind_ports: report.bind_ports,
            left_out: report.left_out,
        }
    }

    fn text(&self) -> String {
        if !self.enabled {
            return "\nsandbox: off (sandbox.enabled = false)\n".to_owned();
        }
        let mut text = "\nsandbox: tlsward run may\n".to_owned();
        let mut list = |what: &str, items: &[String]| {
            if !items.is_empty() {
                let _ = writeln!(text, "  {what} {}", items.join(", "));
            }
        };
        list("read", &self.read);
        list("make sockets in", &self.sockets);
        list("listen on port", std::slice::from_ref(&self.bind_ports));
        list("dial port", std::slice::from_ref(&self.connect_ports));
        text.push_str("  and read what every process needs (--json lists it)\n");
        for what in &self.left_out {
            let _ = writeln!(text, "  but: {what}");
        }
        text
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct ServiceReport {
    pub(crate) service: String,
    pub(crate) listen: String,
    pub(crate) upstream: Vec<String>,
    /// The client certificate; `None` where there is none, or none that can be used.
    pub(crate) identity: Option<CertificateSummary>,
    pub(crate) identity_source: Option<String>,
    pub(crate) days_left: Option<i64>,
    /// The CA certificates.
    pub(crate) anchors: Vec<CertificateSummary>,
    pub(crate) trust_source: Option<String>,
    pub(crate) problems: Vec<Explained>,
    /// Credentials that only the running service sees: nothing is known of them here.
    pub(crate) unseen: Vec<String>,
    pub(crate) warnings: Vec<String>,
    /// Where each value comes from, by key.
    pub(crate) values: BTreeMap<&'static str, String>,
}

impl Report {
    /// The report on everything in `state` at `now`.
    pub(crate) fn of(state: &State, rules: &Rules, now: UnixTime) -> Self {
        let services = state
            .config
            .services
            .values()
            .map(|service| one(state, service, now));
        Self {
            services: services.collect(),
            sandbox: SandboxReport::of(&state.config, rules),
        }
    }

    /// Every service could serve.
    pub(crate) fn is_good(&self) -> bool {
        self.services
            .iter()
            .all(|service| service.problems.is_empty())
    }

    /// What does not stand in the file: variable or annotation, key, and the services concerned.
    fn set_outside(&self) -> BTreeMap<(&str, &str), Vec<&str>> {
        let mut set: BTreeMap<_, Vec<&str>> = BTreeMap::new();
        for service in &self.services {
            for (key, origin) in &service.values {
                // That a discovered service is discovered goes without saying.
                let is_its_own = ["listen", "upstream"].contains(key);
                if OUTSIDE.iter().any(|begin| origin.starts_with(begin)) && !is_its_own {
                    let services = set.entry((origin.as_str(), *key)).or_default();
                    services.push(&service.service);
                }
            }
        }
        set
    }

    /// For people: a table, then what environment and annotations set, problems and warnings.
    pub(crate) fn text(&self) -> String {
        if self.services.is_empty() {
            let text = "the configuration is good; it has no services\n";
            return text.to_owned() + &self.sandbox.text();
        }
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header([
            "SERVICE",
            "LISTEN",
            "UPSTREAM",
            "IDENTITY",
            "ISSUER",
            "DAYS LEFT",
            "SET IN",
        ]);
        for service in &self.services {
            let (identity, issuer) = match (&service.identity, &service.identity_source) {
                (Some(leaf), _) => {
                    let name = leaf
                        .names
                        .first()
                        .map_or(String::new(), |name| format!(" ({name})"));
                    (format!("{}{name}", leaf.subject), leaf.issuer.clone())
                }
                (None, Some(source)) if service.unseen.contains(source) => (
                    format!("not to be seen from here: {source}"),
                    "-".to_owned(),
                ),
                (None, None) => ("none (client_auth = false)".to_owned(), "-".to_owned()),
                (None, Some(source)) => (format!("NOT USABLE: {source}"), "-".to_owned()),
            };
            table.add_row([
                service.service.clone(),
                service.listen.clone(),
                service.upstream.join("\n"),
                identity,
                issuer,
                service
                    .days_left
                    .map_or_else(|| "-".to_owned(), |days| days.to_string()),
                service.identity_set_in().to_owned(),
            ]);
        }
        let mut text = table::render(&table);
        for ((origin, key), services) in self.set_outside() {
            let services = services.join(", ");
            let _ = write!(text, "\n{origin} sets {key} of: {services}\n");
        }
        for service in &self.services {
            for problem in &service.problems {
                let _ = write!(
                    text,
                    "\nproblem in services.{}: {problem}\n  fix: {}\n",
                    service.service, problem.hint
                );
            }
            for credential in &service.unseen {
                let _ = write!(
                    text,
                    "\nnot checked for services.{}: {credential}, which systemd hands to the service alone; \
                     to check it: systemd-run -P -p LoadCredential=NAME:/path tlsward check -c FILE, \
                     or as root while tlsward.service runs\n",
                    service.service
                );
            }
            for warning in &service.warnings {
                let _ = write!(
                    text,
                    "\nwarning for services.{}: {warning}\n",
                    service.service
                );
            }
        }
        text + &self.sandbox.text()
    }
}

impl ServiceReport {
    fn identity_set_in(&self) -> &str {
        [
            "tls.cert",
            "tls.bundle",
            "tls.secret",
            "tls.credential",
            "tls.client_auth",
        ]
        .iter()
        .find_map(|key| self.values.get(key))
        .map_or("-", String::as_str)
    }
}

/// The credentials of a service that were not handed over to this process.
fn unseen(service: &Service) -> Vec<&Credential> {
    let identity = match &service.identity {
        Some(IdentitySource::Credential(credential)) => Some(credential),
        _ => None,
    };
    let ca = match service.ca() {
        Some(CaSource::Credential(credential)) => Some(credential),
        _ => None,
    };
    let all = identity.into_iter().chain(ca);
    all.filter(|credential| credential.directory.is_none())
        .collect()
}

fn one(state: &State, service: &Service, now: UnixTime) -> ServiceReport {
    let identity = service
        .identity
        .as_ref()
        .map(|source| state.credentials.identity(source));
    let trust = service
        .trust
        .as_ref()
        .map(|source| state.credentials.trust(source));
    let good_identity = identity
        .and_then(|loaded| loaded.current())
        .map(|good| &good.value);
    let good_trust = trust
        .and_then(|loaded| loaded.current())
        .map(|good| &good.value);
    let refused_identity = identity.and_then(|loaded| loaded.refused());
    let refused_trust = trust.and_then(|loaded| loaded.refused());
    let unseen = unseen(service);
    let mut problems: Vec<Explained> = refused_identity
        .into_iter()
        .chain(refused_trust)
        .filter(|why| unseen.is_empty() || why.reason != Reason::CredentialMissing)
        .cloned()
        .collect();
    // What cannot be seen makes no route, which is no news.
    if problems.is_empty() && unseen.is_empty() {
        problems.extend(state.route_of(service).err());
    }
    let mut warnings = client_config::warnings(&service.tls, service.ca());
    warnings.extend(
        good_identity
            .into_iter()
            .flat_map(|identity| identity.warnings.clone()),
    );
    warnings.extend(
        good_trust
            .into_iter()
            .flat_map(|trust| trust.left_out.clone()),
    );
    let leaf = good_identity.map(|identity| identity.leaf());
    ServiceReport {
        service: service.name.to_string(),
        listen: service.listen.to_string(),
        upstream: service.upstream.words(),
        identity: leaf.cloned(),
        identity_source: service
            .identity
            .clone()
            .map(SourceKey::Identity)
            .as_ref()
            .map(source_name),
        days_left: leaf.map(|leaf| leaf.days_left(now)),
        anchors: good_trust.map_or(Vec::new(), |trust| trust.anchors.clone()),
        trust_source: service
            .trust
            .clone()
            .map(SourceKey::Trust)
            .as_ref()
            .map(source_name),
        problems,
        unseen: unseen.iter().map(ToString::to_string).collect(),
        warnings,
        values: values(&state.config, service),
    }
}

/// Where each value of a service comes from, in words.
fn values(config: &Config, service: &Service) -> BTreeMap<&'static str, String> {
    let Some(origins) = config.origins.0.get(&service.name) else {
        return BTreeMap::new();
    };
    origins
        .iter()
        .map(|(key, origin)| (*key, config.origin(&service.name, origin)))
        .collect()
}

#[cfg(all(test, feature = "kubernetes"))]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::config::kubernetes::{Cluster, Known, ObjectRef, ServiceObject, ServicePort};

    #[test]
    fn a_value_from_an_annotation_names_it_and_its_service() {
        let object = ObjectRef::new("payments", "billing");
        let service = ServiceObject {
            object: object.clone(),
            uid: String::new(),
            created_at: 0,
            annotations: BTreeMap::from([(
                "konghq.com/client-cert".to_owned(),
                "client".to_owned(),
            )]),
            ports: vec![ServicePort {
                name: String::new(),
                number: 443,
            }],
            external_name: None,
        };
        let mut cluster = Cluster::default();
        let known = Known::Exists(Arc::new(service));
        cluster.services.insert(object, known);
        let text = "[services.a]\nlisten = \"127.0.0.1:7001\"\n\
                    upstream = { service = \"billing\", namespace = \"payments\" }\n";
        let path = Path::new("/etc/tlsward/config.toml");
        let config = Config::parse_with(text, path, &BTreeMap::new(), &cluster).unwrap();
        let service = config.services.values().next().unwrap();
        let values = values(&config, service);
        let annotation = "annotation konghq.com/client-cert of Service payments/billing";
        assert_eq!(values["tls.secret"], annotation);
        assert_eq!(values["tls.ca"], annotation, "its ca.crt");
        assert_eq!(values["listen"], "[services.a], line 2");
        assert_eq!(values["tls.verify"], "built-in default");
    }
}
