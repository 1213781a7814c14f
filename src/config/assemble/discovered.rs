//! Services that no table of the file asks for: each Kubernetes Service that discovery selects and
//! that carries `tlsward/listen`.

use std::sync::Arc;

use super::layers::{Inherited, Layers, Standing, Subject};
use super::{Services, backend};
use crate::config::annotations::{self, Annotations, LISTEN, PORT};
use crate::config::document::ServiceTable;
use crate::config::kubernetes::{Cluster, Discovery, Known, Namespaces, ServiceObject, names};
use crate::config::listeners::{Claim, Owner, Taken};
use crate::config::problem::{self, At, Findings, Found, Wrong};
use crate::config::value::Parsed;
use crate::config::{Listen, Obstacle, Origin, ServiceName, Unbuilt};

impl Services {
    /// All services of discovery. `taken` are the listeners of the file; what is left goes to the
    /// older Service.
    pub(super) fn of_discovery(
        &mut self,
        discovery: &Discovery,
        inherited: &Inherited<'_>,
        cluster: &Cluster,
        taken: &mut Taken,
        findings: &mut Findings<'_>,
    ) {
        let exists = |object| match cluster.services.get(object) {
            Some(Known::Exists(service)) => Some(Arc::as_ref(service)),
            Some(Known::Missing) | None => None,
        };
        let mut found: Vec<&ServiceObject> = cluster
            .discovered
            .iter()
            .filter(|object| match &discovery.namespaces {
                Namespaces::All => true,
                Namespaces::These(these) => these.contains(&object.namespace),
            })
            .filter_map(exists)
            .filter(|service| service.annotations.contains_key(LISTEN))
            .collect();
        found.sort_by_key(|service| (service.created_at, &service.object));
        for service in found {
            // The API server has no object with another kind of name.
            let Some(name) = ServiceName::discovered(&service.object) else {
                continue;
            };
            self.one(name, service, discovery, inherited, taken, findings);
        }
    }

    fn one(
        &mut self,
        mut name: ServiceName,
        service: &ServiceObject,
        discovery: &Discovery,
        inherited: &Inherited<'_>,
        taken: &mut Taken,
        findings: &mut Findings<'_>,
    ) {
        let mut problems = Vec::new();
        if self.has(&name) {
            let wrong = Wrong::new(
                format!(
                    "tlsward's configuration has a service of its own called {name:?}",
                    name = name.as_str()
                ),
                format!("have [services.\"{name}\"] called otherwise, or remove {LISTEN}"),
            );
            problems.push(problem::in_annotation(service, LISTEN, "", wrong));
            while self.has(&name) {
                name = name.in_full();
            }
        }
        let listen = said(service, LISTEN, &mut problems, |text| {
            annotations::listen(text, discovery)
        });
        let port = match service.annotations.contains_key(PORT) {
            true => said(service, PORT, &mut problems, names::port).map(Some),
            false => Some(None),
        };
        let upstream = port.and_then(|port| {
            let wrong = match backend::upstream(service, port.as_ref()) {
                Ok(upstream) => return Some(upstream),
                Err(wrong) => wrong,
            };
            // The place names it already.
            let itself = format!("Service {}", service.object);
            let wrong = Wrong::new(wrong.reason.replacen(&itself, "the Service", 1), wrong.fix);
            problems.push(match port {
                Some(_) => problem::in_annotation(service, PORT, "upstream", wrong),
                None => {
                    let fix = format!("say which port by the annotation {PORT}");
                    let wrong = Wrong::new(wrong.reason, fix);
                    problem::in_service(&service.object, "upstream", wrong)
                }
            });
            None
        });

        let annotations = Annotations::read(service);
        let nothing = ServiceTable::default();
        let subject = Subject {
            name: &name,
            at: At::Service,
            own: &nothing,
            standing: Standing::Discovered,
            object: Some(service),
            annotations: Some(&annotations),
        };
        let mut layers = Layers::new(subject, inherited, findings);
        let built = layers.service(listen.clone(), upstream);
        let Layers {
            mut origins, alone, ..
        } = layers;
        problems.extend(alone);

        let rival = listen
            .as_ref()
            .and_then(|listen| taken.claim(listen, &name));
        let by = match rival {
            None => None,
            Some((Owner::Service(by), _)) => Some(by),
            Some((Owner::Admin, key)) => {
                let wrong = Wrong::new(
                    format!("tlsward has its {key} there"),
                    "choose another port or socket",
                );
                problems.push(problem::in_annotation(service, LISTEN, "listen", wrong));
                None
            }
        };
        let obstacle = match (problem::in_order(problems), by) {
            (Some(problems), _) => Some(Obstacle::Mistakes(problems)),
            (None, Some(by)) => Some(Obstacle::ListenerTaken { by }),
            (None, None) => None,
        };
        self.backends.insert(name.clone(), service.object.clone());
        self.discovered.insert(name.clone());
        match (obstacle, built) {
            (Some(obstacle), _) => {
                let unbuilt = Unbuilt {
                    listen,
                    object: service.object.clone(),
                    obstacle,
                };
                self.unbuilt.insert(name, unbuilt);
            }
            (None, Some(built)) => {
                origins.insert("listen", Origin::Annotation(LISTEN));
                origins.insert("upstream", Origin::Annotation(LISTEN));
                if service.annotations.contains_key(PORT) {
                    origins.insert("upstream", Origin::Annotation(PORT));
                }
                self.origins.insert(name.clone(), origins);
                self.built.insert(name, built);
            }
            // Its reason lies in the file, and was reported there.
            (None, None) => {}
        }
    }

    fn has(&self, name: &ServiceName) -> bool {
        self.built.contains_key(name) || self.unbuilt.contains_key(name)
    }
}

/// The value of an annotation; `None` after a report.
fn said<T>(
    service: &ServiceObject,
    name: &str,
    problems: &mut Vec<Found>,
    parse: impl FnOnce(&str) -> Parsed<T>,
) -> Option<T> {
    let text = service.annotations.get(name)?;
    match parse(text.trim()) {
        Ok(value) => Some(value),
        Err(wrong) => {
            let key = name.trim_start_matches("tlsward/");
            problems.push(problem::in_annotation(service, name, key, wrong));
            None
        }
    }
}

impl Taken {
    /// Gives a listener to a service of discovery, or says who has it, and as which key.
    fn claim(&mut self, listen: &Listen, name: &ServiceName) -> Option<(Owner, String)> {
        if let Some(rival) = self.overlapping(listen) {
            return Some((rival.owner.clone(), rival.key.clone()));
        }
        self.add(Claim {
            listen: listen.clone(),
            key: format!("listen of {name}"),
            at: None,
            owner: Owner::Service(name.clone()),
        });
        None
    }
}
