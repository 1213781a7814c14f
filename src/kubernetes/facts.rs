//! What is worth telling on Kubernetes objects, from what status says. Decides without I/O.

use std::collections::BTreeSet;

use crate::clock::rfc3339;
use crate::cluster::{DataKey, Store};
use crate::config::kubernetes::ObjectRef;
use crate::failure::{Explained, Reason};
use crate::status::{KubernetesStatus, ServiceStatus, Status};

/// The most that an Event's note may hold (events.k8s.io/v1).
const LONGEST_NOTE: usize = 1024;

/// Something that stands, on one object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Fact {
    pub(super) regarding: Regarding,
    pub(super) is_warning: bool,
    /// In UpperCamelCase, as Events have it.
    pub(super) reason: String,
    /// For people; at most 1,024 bytes.
    pub(super) note: String,
}

/// What a fact is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Regarding {
    /// `Service` or `Secret`.
    pub(super) kind: &'static str,
    pub(super) object: ObjectRef,
    /// Empty where the object is not there. `kubectl describe` finds Events by it.
    pub(super) uid: String,
}

/// All that stands: which certificate is in use, and what is wrong, on the Service behind each
/// service and on the Secret of its identity.
pub(super) fn facts(status: &Status, store: &Store) -> BTreeSet<Fact> {
    let mut facts = BTreeSet::new();
    for service in &status.services {
        if let Some(objects) = &service.kubernetes {
            tell(service, objects, store, &mut facts);
        }
    }
    facts
}

fn tell(
    service: &ServiceStatus,
    objects: &KubernetesStatus,
    store: &Store,
    facts: &mut BTreeSet<Fact>,
) {
    let on_service = objects.service.as_ref().map(|object| {
        let service = store.service(object).value.flatten();
        Regarding {
            kind: "Service",
            object: object.clone(),
            uid: service.map_or(String::new(), |service| service.uid.clone()),
        }
    });
    let on_secret = objects.secret.as_ref().map(|object| {
        let secret = store.data(&DataKey::Secret(object.clone())).value.flatten();
        Regarding {
            kind: "Secret",
            object: object.clone(),
            uid: secret.map_or(String::new(), |secret| secret.uid.clone()),
        }
    });

    if let Some(identity) = &service.identity
        && let Some(leaf) = identity.chain.first()
        && service.state.serves()
    {
        let note = format!(
            "{} presents {}, valid until {} (serial {}, SHA-256 {}, generation {})",
            service.name,
            leaf.subject,
            rfc3339(leaf.not_after),
            leaf.serial,
            leaf.fingerprint,
            identity.generation,
        );
        for regarding in [&on_service, &on_secret].into_iter().flatten() {
            facts.insert(Fact {
                regarding: regarding.clone(),
                is_warning: false,
                reason: "CertificateInUse".to_owned(),
                note: cut(note.clone()),
            });
        }
    }

    let mut warn = |regarding: &Option<Regarding>, why: &Option<Explained>| {
        if let (Some(regarding), Some(why)) = (regarding, why)
            && is_worth_telling(why)
        {
            let note = format!("{}: {why}; what to do: {}", service.name, why.hint);
            facts.insert(Fact {
                regarding: regarding.clone(),
                is_warning: true,
                reason: camel_case(why.reason),
                note: cut(note),
            });
        }
    };
    let on_either = on_service.as_ref().or(on_secret.as_ref()).cloned();
    warn(&on_either, &service.problem);
    warn(&on_service, &objects.problem);
    let refused = service.identity.as_ref();
    let refused = refused.and_then(|identity| identity.refused.clone());
    warn(&on_secret, &refused);
}

/// Half of a rotation is none of anybody's business for the seconds that it lasts, and that the
/// API server is away it cannot be told.
fn is_worth_telling(why: &Explained) -> bool {
    !matches!(
        why.reason,
        Reason::RotationInProgress | Reason::ApiUnavailable
    )
}

/// `identity_missing` as `IdentityMissing`.
fn camel_case(reason: Reason) -> String {
    let mut words = String::new();
    for word in reason.as_str().split('_') {
        let mut letters = word.chars();
        words.extend(letters.next().map(|first| first.to_ascii_uppercase()));
        words.push_str(letters.as_str());
    }
    words
}

fn cut(mut note: String) -> String {
    const MORE: &str = "…";
    if note.len() > LONGEST_NOTE {
        let mut end = LONGEST_NOTE - MORE.len();
        while !note.is_char_boundary(end) {
            end -= 1;
        }
        note.truncate(end);
        note.push_str(MORE);
    }
    note
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::cluster::{ObjectData, Wanted};
    use crate::config::kubernetes::ServiceObject;
    use crate::status::ProcessState;
    use crate::status::tests::{service, status, waiting};

    fn billing() -> ObjectRef {
        ObjectRef::new("payments", "billing")
    }

    fn secret() -> ObjectRef {
        ObjectRef::new("payments", "billing-tls")
    }

    /// A cluster in which both are there.
    fn store() -> Arc<Store> {
        let store = Store::new(None);
        let key = DataKey::Secret(secret());
        store.follow(Wanted {
            services: [billing()].into(),
            data: [key.clone()].into(),
            ..Wanted::default()
        });
        let object = ServiceObject {
            object: billing(),
            uid: "uid-of-service".into(),
            created_at: 0,
            annotations: Default::default(),
            ports: Vec::new(),
            external_name: None,
        };
        store.put_service(billing(), Some(object));
        let data = ObjectData {
            uid: "uid-of-secret".into(),
            kind: String::new(),
            entries: Default::default(),
        };
        store.put_data(key, Some(data));
        store
    }

    fn of(service: ServiceStatus, objects: KubernetesStatus) -> Vec<Fact> {
        let service = ServiceStatus {
            kubernetes: Some(objects),
            ..service
        };
        let status = status(ProcessState::Ready, vec![service]);
        facts(&status, &store()).into_iter().collect()
    }

    fn both() -> KubernetesStatus {
        KubernetesStatus {
            service: Some(billing()),
            secret: Some(secret()),
            ..KubernetesStatus::default()
        }
    }

    #[test]
    fn the_certificate_in_use_stands_on_service_and_secret() {
        let facts = of(service("billing"), both());
        let [on_secret, on_service] = facts.as_slice() else {
            panic!("{facts:?}");
        };
        assert_eq!(on_secret.regarding.kind, "Secret");
        assert_eq!(on_secret.regarding.uid, "uid-of-secret");
        assert_eq!(on_service.regarding.kind, "Service");
        assert_eq!(on_service.regarding.object, billing());
        assert_eq!(on_service.regarding.uid, "uid-of-service");
        for fact in &facts {
            assert!(!fact.is_warning);
            assert_eq!(fact.reason, "CertificateInUse");
            let fingerprint = "ab".repeat(32);
            assert_eq!(
                fact.note,
                format!(
                    "billing presents CN=billing, valid until 1970-01-11T10:00:00Z \
                     (serial 01, SHA-256 {fingerprint}, generation 3)"
                )
            );
        }
    }

    #[test]
    fn what_is_wrong_stands_with_its_word_and_what_to_do() {
        let facts = of(waiting("billing"), both());
        let reasons: Vec<_> = facts
            .iter()
            .map(|fact| (fact.regarding.kind, fact.is_warning, fact.reason.as_str()))
            .collect();
        assert_eq!(
            reasons,
            [
                ("Secret", true, "IdentityMissing"),
                ("Service", true, "IdentityMissing")
            ]
        );
        let hint = Reason::IdentityMissing.hint();
        assert_eq!(
            facts[0].note,
            format!("billing: identity_missing: certs/tls.crt is not there; what to do: {hint}")
        );
    }

    #[test]
    fn a_problem_of_the_service_object_stands_on_it_alone() {
        let why = Explained::new(Reason::BadAnnotation, "konghq.com/tls-verify: \"maybe\"");
        let objects = KubernetesStatus {
            problem: Some(why),
            ..both()
        };
        let facts = of(service("billing"), objects);
        let warnings: Vec<_> = facts.iter().filter(|fact| fact.is_warning).collect();
        let [warning] = warnings.as_slice() else {
            panic!("{facts:?}");
        };
        assert_eq!(warning.regarding.kind, "Service");
        assert_eq!(warning.reason, "BadAnnotation");
    }

    #[test]
    fn without_a_service_the_secret_is_told_even_if_it_is_not_there() {
        let missing = ObjectRef::new("payments", "gone");
        let objects = KubernetesStatus {
            secret: Some(missing.clone()),
            ..KubernetesStatus::default()
        };
        let facts = of(waiting("billing"), objects);
        let [fact] = facts.as_slice() else {
            panic!("{facts:?}");
        };
        assert_eq!(fact.regarding.object, missing);
        assert_eq!(fact.regarding.uid, "");
    }

    #[test]
    fn services_without_kubernetes_and_what_passes_by_itself_are_not_told() {
        let plain = status(ProcessState::Ready, vec![service("a"), waiting("b")]);
        assert!(facts(&plain, &store()).is_empty());
        for reason in [Reason::RotationInProgress, Reason::ApiUnavailable] {
            let service = ServiceStatus {
                problem: Some(Explained::new(reason, "for now")),
                identity: None,
                ..waiting("billing")
            };
            assert_eq!(of(service, both()), []);
        }
    }

    #[test]
    fn a_note_is_cut_to_what_an_event_holds_between_two_letters() {
        let detail = "é".repeat(600);
        let service = ServiceStatus {
            problem: Some(Explained::new(Reason::BadPem, detail)),
            identity: None,
            ..waiting("billing")
        };
        let facts = of(service, both());
        let note = &facts[0].note;
        assert!((1020..=1024).contains(&note.len()), "{}", note.len());
        assert!(note.ends_with("é…"), "{note}");
    }

    #[test]
    fn reasons_are_words_that_events_take() {
        for reason in Reason::ALL {
            let words = camel_case(*reason);
            assert!(words.len() <= 128);
            assert!(words.starts_with(|it: char| it.is_ascii_uppercase()));
            assert!(words.chars().all(|it| it.is_ascii_alphabetic()), "{words}");
        }
        assert_eq!(camel_case(Reason::KeyMismatch), "KeyMismatch");
    }
}
