use serde_json::{Value, json};

use super::*;
use crate::cluster::Wanted;
use crate::config::kubernetes::{Discovery, Kubernetes, Namespaces};
use crate::failure::Reason;

fn billing() -> ObjectRef {
    ObjectRef::new("payments", "billing")
}

fn of_services(services: BTreeSet<ObjectRef>) -> Arc<Filter> {
    Arc::new(Filter {
        services: services.into_iter().collect(),
        ..Filter::default()
    })
}

fn list(version: &str, items: &[Value]) -> Vec<u8> {
    json!({ "metadata": { "resourceVersion": version }, "items": items })
        .to_string()
        .into_bytes()
}

/// A whole list.
fn listed(collect: &mut impl Collect, items: &[Value]) {
    collect.begin();
    collect.page(&list("1", items)).unwrap();
    collect.complete();
}

fn event(collect: &mut impl Collect, kind: &str, object: &Value) {
    let line = json!({ "type": kind, "object": object }).to_string();
    collect.line(line.as_bytes()).unwrap();
}

fn slice(name: &str, service: &str, addresses: &[&str]) -> Value {
    let endpoints: Vec<Value> = addresses
        .iter()
        .map(|address| json!({ "addresses": [address] }))
        .collect();
    json!({
        "metadata": {
            "name": name, "namespace": "payments",
            "labels": { "kubernetes.io/service-name": service },
        },
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{ "name": "https", "port": 8443 }],
    })
}

fn following(services: &[ObjectRef]) -> (Arc<Store>, EndpointKeep) {
    let store = Store::new(None);
    let services: BTreeSet<ObjectRef> = services.iter().cloned().collect();
    store.follow(Wanted {
        endpoints: services.clone(),
        ..Wanted::default()
    });
    let keep = EndpointKeep::new(Arc::clone(&store), of_services(services));
    (store, keep)
}

fn addresses(store: &Store, service: &ObjectRef) -> Option<Vec<String>> {
    let backends = store.endpoints(service).value??;
    let addresses = backends
        .iter()
        .flat_map(|backend| backend.addresses.clone());
    Some(addresses.map(|address| address.to_string()).collect())
}

#[test]
fn endpoints_of_a_service_are_those_of_all_its_slices() {
    let (store, mut keep) = following(&[billing()]);
    Collect::begin(&mut keep);
    let page = list(
        "1",
        &[
            slice("a", "billing", &["10.0.0.1"]),
            slice("other", "ledger", &["10.9.9.9"]),
        ],
    );
    keep.page(&page).unwrap();
    assert_eq!(
        addresses(&store, &billing()),
        None,
        "half a list is no answer"
    );
    keep.page(&list("1", &[slice("b", "billing", &["10.0.0.2"])]))
        .unwrap();
    Collect::complete(&mut keep);
    assert_eq!(
        addresses(&store, &billing()).unwrap(),
        ["10.0.0.1", "10.0.0.2"]
    );

    event(
        &mut keep,
        "MODIFIED",
        &slice("a", "billing", &["10.0.0.1", "10.0.0.3"]),
    );
    assert_eq!(
        addresses(&store, &billing()).unwrap(),
        ["10.0.0.1", "10.0.0.3", "10.0.0.2"]
    );
    event(&mut keep, "DELETED", &slice("b", "billing", &[]));
    assert_eq!(
        addresses(&store, &billing()).unwrap(),
        ["10.0.0.1", "10.0.0.3"]
    );
    // A relist without the slice.
    listed(&mut keep, &[slice("c", "billing", &["10.0.0.4"])]);
    assert_eq!(addresses(&store, &billing()).unwrap(), ["10.0.0.4"]);
}

#[test]
fn a_service_without_slices_has_no_endpoints_once_the_list_is_complete() {
    let (store, mut keep) = following(&[billing()]);
    listed(&mut keep, &[]);
    assert_eq!(addresses(&store, &billing()).unwrap(), [""; 0]);
    event(&mut keep, "ADDED", &slice("a", "billing", &["10.0.0.1"]));
    event(&mut keep, "DELETED", &slice("a", "billing", &["10.0.0.1"]));
    assert_eq!(addresses(&store, &billing()).unwrap(), [""; 0]);
}

#[test]
fn a_slice_that_changes_its_service_leaves_the_old_one() {
    let ledger = ObjectRef::new("payments", "ledger");
    let (store, mut keep) = following(&[billing(), ledger.clone()]);
    listed(&mut keep, &[slice("a", "billing", &["10.0.0.1"])]);
    event(&mut keep, "MODIFIED", &slice("a", "ledger", &["10.0.0.1"]));
    assert_eq!(addresses(&store, &billing()).unwrap(), [""; 0]);
    assert_eq!(addresses(&store, &ledger).unwrap(), ["10.0.0.1"]);
    // To one that nobody wants.
    event(&mut keep, "MODIFIED", &slice("a", "other", &["10.0.0.1"]));
    assert_eq!(addresses(&store, &ledger).unwrap(), [""; 0]);
}

#[test]
fn slices_of_names_are_left_out() {
    let (store, mut keep) = following(&[billing()]);
    let mut fqdn = slice("a", "billing", &["billing.example"]);
    fqdn["addressType"] = "FQDN".into();
    listed(&mut keep, &[fqdn, slice("b", "billing", &["10.0.0.1"])]);
    assert_eq!(addresses(&store, &billing()).unwrap(), ["10.0.0.1"]);
}

#[test]
fn services_by_name_come_change_and_go() {
    let store = Store::new(None);
    let wanted: BTreeSet<ObjectRef> = [billing()].into();
    store.follow(Wanted {
        services: wanted.clone(),
        ..Wanted::default()
    });
    let mut keep = ServiceKeep::new(Arc::clone(&store), of_services(wanted));
    listed(&mut keep, &[]);
    assert_eq!(store.service(&billing()).value, Some(None));
    event(
        &mut keep,
        "ADDED",
        &service("payments", "billing", Some("7001")),
    );
    assert!(store.service(&billing()).value.unwrap().is_some());
    listed(&mut keep, &[service("payments", "billing", None)]);
    let found = store.service(&billing()).value.unwrap().unwrap();
    assert!(found.annotations.is_empty());
    event(&mut keep, "DELETED", &service("payments", "billing", None));
    assert_eq!(store.service(&billing()).value, Some(None));
}

fn service(namespace: &str, name: &str, listen: Option<&str>) -> Value {
    let annotations = match listen {
        Some(listen) => json!({ "tlsward/listen": listen }),
        None => json!({ "other": "x" }),
    };
    json!({
        "metadata": { "name": name, "namespace": namespace, "uid": name, "annotations": annotations },
        "spec": { "ports": [{ "port": 443 }] },
    })
}

/// Discovery in these namespaces: the store, what all have found, and a watch for each.
fn discovering(namespaces: &[&str]) -> (Arc<Store>, Arc<Discovered>, Vec<DiscoveredKeep>) {
    let store = Store::new(None);
    let these: BTreeSet<String> = namespaces.iter().map(|it| (*it).to_owned()).collect();
    let discovery = Discovery {
        namespaces: Namespaces::These(these.clone()),
        selector: None,
        listen_address: Discovery::LISTEN_ADDRESS,
        socket_directory: None,
    };
    store.follow(Wanted {
        settings: Kubernetes {
            discovery: Some(discovery),
            ..Kubernetes::default()
        },
        ..Wanted::default()
    });
    let found = Arc::new(Discovered::new(Arc::clone(&store)));
    let scopes: BTreeSet<Scope> = these.into_iter().map(Some).collect();
    found.cover(&scopes);
    let keeps = scopes.into_iter();
    let keeps = keeps.map(|scope| DiscoveredKeep::new(Arc::clone(&found), scope));
    let keeps = keeps.collect();
    (store, found, keeps)
}

fn names(store: &Store) -> Option<Vec<String>> {
    let all = store.discovered().value??;
    Some(all.keys().map(ToString::to_string).collect())
}

fn forbidden() -> Explained {
    Explained::new(Reason::Forbidden, "may not list services in namespace b")
}

#[test]
fn services_with_the_annotation_are_discovered_and_no_others() {
    let (store, _found, mut keeps) = discovering(&["a"]);
    let keep = &mut keeps[0];
    listed(
        keep,
        &[service("a", "one", Some("7001")), service("a", "two", None)],
    );
    assert_eq!(names(&store).unwrap(), ["a/one"]);
    event(keep, "MODIFIED", &service("a", "two", Some("7002")));
    assert_eq!(names(&store).unwrap(), ["a/one", "a/two"]);
    event(keep, "MODIFIED", &service("a", "one", None));
    assert_eq!(names(&store).unwrap(), ["a/two"]);
    event(keep, "DELETED", &service("a", "two", Some("7002")));
    assert_eq!(names(&store).unwrap(), [""; 0]);
}

#[test]
fn a_change_of_what_nobody_reads_is_no_news() {
    let (store, _found, mut keeps) = discovering(&["a"]);
    listed(&mut keeps[0], &[service("a", "one", Some("7001"))]);
    store.take_changes();
    let mut changed = service("a", "one", Some("7001"));
    changed["metadata"]["annotations"]["example.com/touched"] = "now".into();
    event(&mut keeps[0], "MODIFIED", &changed);
    assert!(store.take_changes().is_empty());
}

#[test]
fn nothing_is_said_before_every_namespace_has_answered_and_none_is_taken_for_empty() {
    let (store, _found, mut keeps) = discovering(&["a", "b"]);
    listed(&mut keeps[0], &[service("a", "one", Some("7001"))]);
    assert_eq!(store.discovered().value, None);
    Collect::trouble(&keeps[1], &forbidden());
    let discovered = store.discovered();
    assert_eq!(names(&store).unwrap(), ["a/one"]);
    assert_eq!(discovered.trouble, Some(forbidden()));

    // What the other finds does not hide it.
    event(&mut keeps[0], "ADDED", &service("a", "two", Some("7002")));
    assert_eq!(store.discovered().trouble, Some(forbidden()));
    listed(&mut keeps[1], &[service("b", "three", Some("7003"))]);
    assert_eq!(names(&store).unwrap(), ["a/one", "a/two", "b/three"]);
    assert_eq!(store.discovered().trouble, None);
    // Trouble later on: what was found there stays.
    Collect::trouble(&keeps[1], &forbidden());
    assert_eq!(names(&store).unwrap(), ["a/one", "a/two", "b/three"]);
    Collect::fine(&keeps[1]);
    assert_eq!(store.discovered().trouble, None);
}

#[test]
fn where_no_namespace_can_be_listed_that_is_trouble_and_no_empty_set() {
    let (store, _found, keeps) = discovering(&["a", "b"]);
    for keep in &keeps {
        Collect::trouble(keep, &forbidden());
    }
    assert_eq!(store.discovered().value, None);
    assert_eq!(store.discovered().trouble, Some(forbidden()));
}

#[test]
fn what_was_found_outlives_the_watch_that_found_it_but_not_its_namespace() {
    let (store, found, mut keeps) = discovering(&["a", "b"]);
    listed(&mut keeps[0], &[service("a", "one", Some("7001"))]);
    listed(&mut keeps[1], &[service("b", "two", Some("7002"))]);
    // Another connection to the server: nothing is known there yet.
    let again = DiscoveredKeep::new(Arc::clone(&found), Some("b".into()));
    Collect::trouble(&again, &forbidden());
    assert_eq!(names(&store).unwrap(), ["a/one", "b/two"]);
    found.cover(&[Some("a".to_owned())].into());
    assert_eq!(names(&store).unwrap(), ["a/one"]);
    // A watch that is being ended has nothing more to say.
    Collect::trouble(&again, &forbidden());
    assert_eq!(store.discovered().trouble, None);
}

#[test]
fn lines_of_an_unknown_kind_are_passed_over() {
    let (_store, mut keep) = following(&[billing()]);
    let line = br#"{"type":"RENAMED","object":{"anything":1}}"#;
    assert!(matches!(keep.line(line).unwrap(), Line::Other));
    assert!(keep.line(b"{").is_err());
}
