//! What a configuration needs and the sandbox in force does not allow.

use std::fmt;
use std::path::Path;

use super::{Ports, Sandbox, plan};
use crate::config::sandbox::service_key;
use crate::config::{Config, Listen, Service, ServiceName, Upstream};
use crate::failure::{Explained, Reason};

/// One thing that is lacking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lacking {
    /// The service that needs it; `None`: the whole process.
    pub(crate) service: Option<ServiceName>,
    /// The key that asks for it, as written.
    key: String,
    /// What it is.
    what: String,
    /// What `[sandbox]` would have to say.
    widen: String,
    file: bool,
}

impl Lacking {
    /// Whether it is a certificate, a key or the like: what a service waits for.
    pub(crate) fn is_of_a_file(&self) -> bool {
        self.file
    }

    /// For status and the log.
    pub(crate) fn explained(&self) -> Explained {
        Explained::new(Reason::Sandboxed, self.to_string())
    }

    /// Where, why and both fixes.
    pub(crate) fn problem(&self) -> String {
        format!(
            "{self}\n  fix: restart tlsward, which then enters its sandbox for the new configuration; or let a later reload do it: {} in [sandbox], and restart once",
            self.widen
        )
    }
}

impl fmt::Display for Lacking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} is outside of the sandbox that was entered at the start",
            self.key, self.what
        )
    }
}

impl Sandbox {
    /// What `config` needs and the sandbox in force does not allow: nothing, as a rule.
    pub(crate) fn lacks(&self, config: &Config) -> Vec<Lacking> {
        let Some(rules) = &self.0.rules else {
            return Vec::new();
        };
        let mut lacking = Vec::new();
        for service in config.services.values() {
            self.service_lacks(service, &mut lacking);
        }
        let admin = &config.admin;
        for (key, listen) in [
            ("admin.listen", &admin.listen),
            ("admin.public_listen", &admin.public_listen),
        ] {
            let listen = listen.as_ref();
            lacking.extend(listen.and_then(|listen| self.listener_lacks(None, key, listen)));
        }
        let any_port = |ports: &Ports| matches!(ports, Ports::Any(_)) || !self.0.report.tcp;
        if plan::needs_kubernetes(config) && !rules.kubernetes && !any_port(&rules.connect) {
            lacking.push(Lacking {
                service: None,
                key: "kubernetes".to_owned(),
                what: "the API server".to_owned(),
                widen: "connect_ports = \"any\"".to_owned(),
                file: false,
            });
        }
        if config.kubernetes.discovery.is_some() && !any_port(&rules.bind) {
            lacking.push(Lacking {
                service: None,
                key: "kubernetes.discovery".to_owned(),
                what: "listening on whatever port a Service names".to_owned(),
                widen: "bind_ports = \"any\"".to_owned(),
                file: false,
            });
        }
        lacking
    }

    fn service_lacks(&self, service: &Service, lacking: &mut Vec<Lacking>) {
        let name = Some(&service.name);
        if self.0.report.files {
            for (key, path) in service.files() {
                if !self.may_read(path) {
                    lacking.push(file(&service.name, key, path));
                }
            }
        }
        let key = service_key(&service.name, "listen");
        lacking.extend(self.listener_lacks(name, &key, &service.listen));
        let Some(rules) = self.0.rules.as_ref().filter(|_| self.0.report.tcp) else {
            return;
        };
        let key = service_key(&service.name, "upstream");
        match &service.upstream {
            Upstream::Addresses(addresses) => {
                for address in addresses {
                    if !rules.connect.has(address.port) {
                        lacking.push(Lacking {
                            service: Some(service.name.clone()),
                            key: key.clone(),
                            what: format!("dialling port {}", address.port),
                            widen: format!("connect_ports = [{}] or \"any\"", address.port),
                            file: false,
                        });
                    }
                }
            }
            Upstream::Service(_) if matches!(rules.connect, Ports::These(_)) => {
                lacking.push(Lacking {
                    service: Some(service.name.clone()),
                    key,
                    what: "dialling whatever port a Kubernetes Service's endpoints have".to_owned(),
                    widen: "connect_ports = \"any\"".to_owned(),
                    file: false,
                });
            }
            Upstream::Service(_) => {}
        }
    }

    fn listener_lacks(
        &self,
        service: Option<&ServiceName>,
        key: &str,
        listen: &Listen,
    ) -> Option<Lacking> {
        let rules = self.0.rules.as_ref()?;
        let (what, widen) = match listen {
            Listen::Tcp(address) if self.0.report.tcp && !rules.bind.has(address.port()) => (
                format!("listening on port {}", address.port()),
                format!("bind_ports = [{}] or \"any\"", address.port()),
            ),
            Listen::Unix { path, .. } if self.0.report.files && !self.may_make_socket(path) => (
                format!("making the socket {}", path.display()),
                "enabled = false".to_owned(),
            ),
            Listen::Tcp(_) | Listen::Unix { .. } | Listen::Systemd(_) => return None,
        };
        Some(Lacking {
            service: service.cloned(),
            key: key.to_owned(),
            what,
            widen,
            file: false,
        })
    }
}

fn file(service: &ServiceName, key: &str, path: &Path) -> Lacking {
    let directory = path.parent().unwrap_or(path);
    Lacking {
        service: Some(service.clone()),
        key: service_key(service, &format!("tls.{key}")),
        what: format!("reading {}", path.display()),
        widen: format!("read = [\"{}\"]", directory.display()),
        file: true,
    }
}
