use super::*;
use crate::config::kubernetes::{Discovery, Kubernetes};

fn services(namespace: &str, count: usize) -> BTreeSet<ObjectRef> {
    (0..count)
        .map(|number| ObjectRef::new(namespace, format!("s{number}")))
        .collect()
}

fn watches(wanted: &Wanted, running: &[Watch]) -> Vec<Watch> {
    plan(wanted, |watch| running.contains(watch))
        .into_keys()
        .collect()
}

fn discovery(namespaces: Namespaces, selector: Option<&str>) -> Kubernetes {
    Kubernetes {
        discovery: Some(Discovery {
            namespaces,
            selector: selector.map(Into::into),
            listen_address: Discovery::LISTEN_ADDRESS,
            socket_directory: None,
        }),
        ..Kubernetes::default()
    }
}

#[test]
fn objects_with_keys_are_watched_by_name_so_that_a_role_can_name_them() {
    let data = BTreeSet::from([
        DataKey::Secret(ObjectRef::new("payments", "a")),
        DataKey::Secret(ObjectRef::new("payments", "b")),
        DataKey::ConfigMap(ObjectRef::new("payments", "a")),
        DataKey::TrustBundle("roots".into()),
    ]);
    let mut wanted = Wanted {
        data,
        ..Wanted::default()
    };
    let plan = plan(&wanted, |_| false);
    assert_eq!(plan.len(), 4);
    for (watch, filter) in &plan {
        assert_eq!(*watch, Watch::Data(filter.data.first().unwrap().clone()));
        assert_eq!(filter.data.len(), 1);
    }

    wanted.settings.secrets = SecretWatch::Namespace;
    let secrets = Watch::DataOf(DataKind::Secrets, "payments".into());
    assert_eq!(
        watches(&wanted, &[]),
        [
            Watch::Data(DataKey::TrustBundle("roots".into())),
            secrets.clone(),
            Watch::DataOf(DataKind::ConfigMaps, "payments".into()),
        ]
    );
    let plan = super::plan(&wanted, |_| false);
    assert_eq!(plan[&secrets].data.len(), 2);
}

#[test]
fn slices_are_watched_together_from_five_services_of_a_namespace_on() {
    let wanted = |count| Wanted {
        endpoints: services("payments", count),
        ..Wanted::default()
    };
    let together = Watch::SlicesOf(Some("payments".into()));
    let is_together = |count, running: &[Watch]| {
        let watches = watches(&wanted(count), running);
        if watches == [together.clone()] {
            return true;
        }
        assert_eq!(watches.len(), count);
        assert!(
            watches
                .iter()
                .all(|watch| matches!(watch, Watch::Slices(_)))
        );
        false
    };
    assert!(!is_together(4, &[]));
    assert!(is_together(5, &[]));
    // One Service more or less does not turn everything around.
    let running = [together.clone()];
    assert!(is_together(4, &running));
    assert!(is_together(3, &running));
    assert!(!is_together(2, &running));
    assert_eq!(plan(&wanted(5), |_| false)[&together].services.len(), 5);
}

#[test]
fn with_discovery_everywhere_all_slices_are_one_watch() {
    let mut endpoints = services("a", 1);
    endpoints.extend(services("b", 10));
    let wanted = Wanted {
        settings: discovery(Namespaces::All, None),
        endpoints,
        ..Wanted::default()
    };
    let plan = plan(&wanted, |_| false);
    let watches: Vec<_> = plan.keys().cloned().collect();
    assert_eq!(
        watches,
        [Watch::SlicesOf(None), Watch::Discovery(None, None)]
    );
    assert_eq!(plan[&Watch::SlicesOf(None)].services.len(), 11);
}

#[test]
fn a_thousand_discovered_services_of_a_namespace_are_two_watches_and_their_secrets() {
    let names = services("payments", 1000);
    let wanted = Wanted {
        settings: discovery(
            Namespaces::These(["payments".to_owned()].into()),
            Some("a=b"),
        ),
        data: names.iter().cloned().map(DataKey::Secret).collect(),
        endpoints: names,
        ..Wanted::default()
    };
    let watches = watches(&wanted, &[]);
    assert_eq!(watches.len(), 1000 + 2);
    assert!(watches.contains(&Watch::Discovery(
        Some("payments".into()),
        Some("a=b".into())
    )));
}

#[test]
fn services_are_watched_by_name_up_to_a_limit_that_roles_know() {
    let watches = |count| {
        let wanted = Wanted {
            services: services("payments", count),
            ..Wanted::default()
        };
        watches(&wanted, &[])
    };
    assert_eq!(watches(SERVICES_BY_NAME).len(), SERVICES_BY_NAME);
    assert_eq!(
        watches(SERVICES_BY_NAME + 1),
        [Watch::ServicesOf("payments".into())]
    );
}

#[test]
fn each_watch_asks_for_what_it_is_to_bring() {
    let billing = ObjectRef::new("payments", "billing");
    let path = |watch: &Watch| watch.target().list(0, "");
    for (watch, expected) in [
        (
            Watch::Data(DataKey::ConfigMap(billing.clone())),
            "/api/v1/namespaces/payments/configmaps?fieldSelector=metadata.name%3Dbilling",
        ),
        (
            Watch::DataOf(DataKind::Secrets, "payments".into()),
            "/api/v1/namespaces/payments/secrets?limit=50",
        ),
        (
            Watch::Service(billing.clone()),
            "/api/v1/namespaces/payments/services?fieldSelector=metadata.name%3Dbilling",
        ),
        (
            Watch::ServicesOf("payments".into()),
            "/api/v1/namespaces/payments/services?limit=500",
        ),
        (
            Watch::Slices(billing.clone()),
            "/apis/discovery.k8s.io/v1/namespaces/payments/endpointslices\
             ?labelSelector=kubernetes.io%2Fservice-name%3Dbilling&limit=500",
        ),
        (
            Watch::SlicesOf(None),
            "/apis/discovery.k8s.io/v1/endpointslices\
             ?labelSelector=kubernetes.io%2Fservice-name&limit=500",
        ),
        (
            Watch::Discovery(None, Some("team in (a,b)".into())),
            "/api/v1/services?labelSelector=team%20in%20%28a%2Cb%29&limit=500",
        ),
        (
            Watch::Discovery(Some("payments".into()), None),
            "/api/v1/namespaces/payments/services?limit=500",
        ),
    ] {
        assert_eq!(path(&watch), expected);
    }
    let watch = Watch::Service(billing).target();
    let lasts = std::time::Duration::from_secs(300);
    assert_eq!(
        watch.watch(0, "42", lasts),
        "/api/v1/namespaces/payments/services?fieldSelector=metadata.name%3Dbilling\
         &watch=true&allowWatchBookmarks=true&timeoutSeconds=300&resourceVersion=42"
    );
}
