//! Holds the Kubernetes API of the tests against kube-rs' own client and watcher. What is here
//! runs against a real kube-apiserver too: see [`Cluster::start`].

mod access;
mod faults;
mod size;
mod strictness;
mod twins;

use std::fmt::Debug;

use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{Api, DeleteParams, ListParams, Preconditions, WatchEvent, WatchParams};
use kube::core::{PartialObjectMeta, Status};
use kube::runtime::watcher::{self, watcher};
use kube::{Client, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::support::kube::{Cluster, User, objects};
use crate::support::within;

/// The namespace of these tests.
const PAYMENTS: &str = "payments";

type Watch<K> = BoxStream<'static, kube::Result<WatchEvent<K>>>;

fn secret(name: &str, value: &str) -> Value {
    objects::secret(PAYMENTS, name, "Opaque", &[("value", value)])
}

fn secrets(client: &Client) -> Api<Secret> {
    Api::namespaced(client.clone(), PAYMENTS)
}

fn value_of(secret: &Secret) -> String {
    let value = &secret.data.as_ref().unwrap()["value"].0;
    String::from_utf8(value.clone()).unwrap()
}

fn version_of(object: &Value) -> u64 {
    let version = object["metadata"]["resourceVersion"].as_str();
    version.unwrap().parse().unwrap()
}

/// A user that may do everything with the Secrets and ConfigMaps of the namespace.
async fn reader(cluster: &Cluster) -> User<'_> {
    let user = cluster.user(PAYMENTS, "reader").await;
    let rules = json!([{
        "apiGroups": ["*"],
        "resources": ["*"],
        "verbs": ["*"],
    }]);
    user.allow(PAYMENTS, rules).await;
    user
}

/// What the server answers to a GET.
async fn ask(client: &Client, path: &str) -> Result<Value, Box<Status>> {
    let request = http::Request::get(path).body(Vec::new()).unwrap();
    match within(path, client.request(request)).await {
        Ok(answer) => Ok(answer),
        Err(kube::Error::Api(status)) => Err(status),
        Err(error) => panic!("{path}: {error}"),
    }
}

/// Waits until the server's watch cache knows of this state: from there it answers to version 0,
/// and a real one may be behind.
async fn cached(cluster: &Cluster, object: &Value) {
    let mut collection = objects::path(object, false);
    collection += &format!("?resourceVersion={}", version_of(object));
    ask(&cluster.admin(), &collection).await.unwrap();
}

/// `ADDED name` and the like, with the value of a Secret.
async fn next(watch: &mut Watch<Secret>) -> String {
    let event = within("an event of the watch", watch.try_next()).await;
    match event.unwrap().expect("the watch goes on") {
        WatchEvent::Added(it) => format!("ADDED {} {}", it.name_any(), value_of(&it)),
        WatchEvent::Modified(it) => format!("MODIFIED {} {}", it.name_any(), value_of(&it)),
        WatchEvent::Deleted(it) => format!("DELETED {} {}", it.name_any(), value_of(&it)),
        WatchEvent::Bookmark(it) => format!("BOOKMARK {:?}", it.metadata.annotations),
        WatchEvent::Error(it) => format!("ERROR {} {}", it.code, it.reason),
    }
}

async fn watch(client: &Client, params: WatchParams, since: &Value) -> Watch<Secret> {
    let since = version_of(since).to_string();
    let secrets = secrets(client);
    let watch = within("a watch", secrets.watch(&params, &since)).await;
    watch.unwrap().boxed()
}

/// Events of kube-rs' watcher; its errors are events too.
fn watched<K>(api: Api<K>, config: watcher::Config) -> BoxStream<'static, String>
where
    K: kube::Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let events = watcher(api, config).map(|event| match event {
        Ok(event) => event.to_string(),
        Err(error) => format!("Error({error})"),
    });
    events.boxed()
}

async fn events<const N: usize>(watcher: &mut BoxStream<'static, String>) -> [String; N] {
    let mut seen = Vec::new();
    while seen.len() < N {
        let event = within(format!("event after {seen:?}"), watcher.next()).await;
        seen.push(event.unwrap());
    }
    seen.try_into().unwrap()
}

#[tokio::test]
async fn a_created_object_has_a_uid_a_date_and_a_version_that_is_newer_than_any_before() {
    let cluster = Cluster::start().await;
    let first = cluster.apply(&secret("a", "1")).await;
    let second = cluster
        .apply(&objects::config_map(PAYMENTS, "b", &[("key", "value")]))
        .await;
    assert!(version_of(&second) > version_of(&first));
    assert_ne!(first["metadata"]["uid"], second["metadata"]["uid"]);
    let meta = &first["metadata"];
    assert_eq!(meta["uid"].as_str().unwrap().len(), 36);
    assert!(meta["creationTimestamp"].as_str().unwrap().ends_with('Z'));
    assert_eq!(meta["managedFields"][0]["operation"], "Update");
    assert_eq!(cluster.get(&secret("a", "")).await, Some(first));
}

#[tokio::test]
async fn a_put_with_an_old_version_is_a_conflict_and_one_without_is_not() {
    let cluster = Cluster::start().await;
    let old = cluster.apply(&secret("a", "1")).await;
    let mut new = cluster.apply(&secret("a", "2")).await;
    assert_eq!(new["metadata"]["uid"], old["metadata"]["uid"]);
    let refused = cluster.try_replace(&old).await.unwrap_err();
    assert_eq!((refused.code, refused.reason.as_str()), (409, "Conflict"));
    assert_eq!(
        refused.message,
        "Operation cannot be fulfilled on secrets \"a\": the object has been modified; please \
         apply your changes to the latest version and try again"
    );
    new["data"]["value"] = json!("Mw==");
    let newest = cluster.try_replace(&new).await.unwrap();
    assert!(version_of(&newest) > version_of(&new));
}

#[tokio::test]
async fn a_second_object_of_the_same_name_is_refused_and_so_is_a_missing_one() {
    let cluster = Cluster::start().await;
    cluster.apply(&secret("a", "1")).await;
    let refused = cluster.try_create(&secret("a", "2")).await.unwrap_err();
    assert_eq!(
        (refused.code, refused.reason.as_str()),
        (409, "AlreadyExists")
    );
    assert_eq!(refused.message, "secrets \"a\" already exists");
    let refused = cluster.try_replace(&secret("b", "1")).await.unwrap_err();
    assert_eq!((refused.code, refused.reason.as_str()), (404, "NotFound"));
    assert_eq!(refused.message, "secrets \"b\" not found");
    let details = refused.details.unwrap();
    assert_eq!(
        (details.name.as_str(), details.kind.as_str()),
        ("b", "secrets")
    );
    let elsewhere = objects::secret("nowhere", "a", "Opaque", &[]);
    let refused = cluster.try_create(&elsewhere).await.unwrap_err();
    assert_eq!(refused.message, "namespaces \"nowhere\" not found");
}

#[tokio::test]
async fn a_put_that_changes_nothing_is_not_written_and_no_watch_hears_of_it() {
    let cluster = Cluster::start().await;
    let first = cluster.apply(&secret("a", "1")).await;
    let mut events = watch(&cluster.admin(), WatchParams::default(), &first).await;
    let again = cluster.apply(&secret("a", "1")).await;
    assert_eq!(version_of(&again), version_of(&first));
    cluster.apply(&secret("a", "2")).await;
    assert_eq!(next(&mut events).await, "MODIFIED a 2");
}

#[tokio::test]
async fn pages_of_a_list_are_of_one_moment() {
    let cluster = Cluster::start().await;
    for number in 0..5 {
        cluster.apply(&secret(&format!("a{number}"), "1")).await;
    }
    let secrets = secrets(&cluster.admin());
    let named = ListParams::default().fields("type=Opaque").limit(2);
    let first = secrets.list(&named).await.unwrap();
    cluster.delete(&secret("a3", "")).await;
    cluster.apply(&secret("a4", "2")).await;
    cluster.apply(&secret("a5", "1")).await;
    let mut names: Vec<String> = Vec::new();
    let mut page = first.clone();
    loop {
        names.extend(page.items.iter().map(|it| {
            assert_eq!(value_of(it), "1");
            it.name_any()
        }));
        let Some(token) = page.metadata.continue_.clone().filter(|it| !it.is_empty()) else {
            break;
        };
        page = secrets
            .list(&named.clone().continue_token(&token))
            .await
            .unwrap();
        assert_eq!(
            page.metadata.resource_version,
            first.metadata.resource_version
        );
    }
    assert_eq!(names, ["a0", "a1", "a2", "a3", "a4"]);
}

#[tokio::test]
async fn a_list_says_how_many_objects_remain_and_its_items_do_not_say_what_they_are() {
    let cluster = Cluster::start().await;
    for name in ["a", "b", "c"] {
        let map = objects::config_map(PAYMENTS, name, &[]);
        cached(&cluster, &cluster.apply(&map).await).await;
    }
    let path = "/api/v1/namespaces/payments/configmaps?limit=1";
    let list = ask(&cluster.admin(), path).await.unwrap();
    assert_eq!(list["kind"], "ConfigMapList");
    assert_eq!(list["metadata"]["remainingItemCount"], 2);
    assert_eq!(list["items"][0]["metadata"]["name"], "a");
    assert_eq!(list["items"][0]["kind"], Value::Null);
    // From the watch cache there are no pages.
    let path = "/api/v1/namespaces/payments/configmaps?limit=1&resourceVersion=0";
    let list = ask(&cluster.admin(), path).await.unwrap();
    assert_eq!(list["items"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn a_list_at_a_version_of_the_past_shows_the_past() {
    let cluster = Cluster::start().await;
    cluster
        .apply(&objects::config_map(PAYMENTS, "a", &[("key", "1")]))
        .await;
    let then = cluster
        .apply(&objects::config_map(PAYMENTS, "b", &[("key", "1")]))
        .await;
    cluster
        .delete(&objects::config_map(PAYMENTS, "a", &[]))
        .await;
    cluster
        .apply(&objects::config_map(PAYMENTS, "b", &[("key", "2")]))
        .await;
    let maps = Api::<ConfigMap>::namespaced(cluster.admin(), PAYMENTS);
    let exact = ListParams::default()
        .at(&version_of(&then).to_string())
        .matching(kube::api::VersionMatch::Exact);
    let list = maps.list(&exact).await.unwrap();
    let seen = list
        .items
        .iter()
        .map(|it| (it.name_any(), it.data.clone().unwrap()["key"].clone()));
    let expected = [("a", "1"), ("b", "1")].map(|(name, key)| (name.to_owned(), key.to_owned()));
    assert!(seen.eq(expected));
}

#[tokio::test]
async fn fields_select_by_name_namespace_and_type_and_no_other() {
    let cluster = Cluster::start().await;
    cluster.apply(&secret("a", "1")).await;
    cluster.apply(&secret("b", "1")).await;
    cluster
        .apply(&objects::secret("other", "a", "example.com/x", &[]))
        .await;
    let all = Api::<Secret>::all(cluster.admin());
    let names = async |fields: &str| {
        let list = all
            .list(&ListParams::default().fields(fields))
            .await
            .unwrap();
        let names = list.items.iter();
        let names = names.map(|it| format!("{}/{}", it.namespace().unwrap(), it.name_any()));
        names.collect::<Vec<_>>()
    };
    assert_eq!(names("metadata.name=a").await, ["other/a", "payments/a"]);
    assert_eq!(
        names("metadata.name==a,metadata.namespace!=other").await,
        ["payments/a"]
    );
    assert_eq!(names("type=example.com/x").await, ["other/a"]);
    let refused = ask(&cluster.admin(), "/api/v1/secrets?fieldSelector=data=x").await;
    let refused = refused.unwrap_err();
    assert_eq!((refused.code, refused.reason.as_str()), (400, "BadRequest"));
    assert_eq!(refused.message, "field label not supported: data");
}

#[tokio::test]
async fn labels_select_by_value_by_set_and_by_presence() {
    let cluster = Cluster::start().await;
    for (name, tier) in [("a", "front"), ("b", "back"), ("c", "")] {
        let map = objects::config_map(PAYMENTS, name, &[]);
        let map = match tier {
            "" => map,
            tier => objects::labelled(map, "tier", tier),
        };
        cluster.apply(&map).await;
    }
    let maps = Api::<ConfigMap>::namespaced(cluster.admin(), PAYMENTS);
    for (selector, expected) in [
        ("tier=front", "a"),
        ("tier==back", "b"),
        ("tier!=front", "bc"),
        ("tier in (front, back)", "ab"),
        ("tier notin (front)", "bc"),
        ("tier", "ab"),
        ("!tier", "c"),
        ("tier,tier!=back", "a"),
    ] {
        let list = maps
            .list(&ListParams::default().labels(selector))
            .await
            .unwrap();
        let names: String = list.items.iter().map(ResourceExt::name_any).collect();
        assert_eq!(names, expected, "{selector}");
    }
    let path = "/api/v1/namespaces/payments/configmaps?labelSelector=tier+in+front";
    assert_eq!(ask(&cluster.admin(), path).await.unwrap_err().code, 400);
}

#[tokio::test]
async fn a_watch_tells_what_came_after_its_version_and_goes_on() {
    let cluster = Cluster::start().await;
    let start = cluster.apply(&secret("a", "1")).await;
    cluster.apply(&secret("a", "2")).await;
    cluster.apply(&secret("b", "1")).await;
    cluster.delete(&secret("a", "")).await;
    let mut events = watch(&cluster.admin(), WatchParams::default(), &start).await;
    assert_eq!(next(&mut events).await, "MODIFIED a 2");
    assert_eq!(next(&mut events).await, "ADDED b 1");
    assert_eq!(next(&mut events).await, "DELETED a 2");
    cluster.apply(&secret("a", "3")).await;
    assert_eq!(next(&mut events).await, "ADDED a 3");
}

#[tokio::test]
async fn a_watch_of_one_namespace_hears_nothing_of_another() {
    let cluster = Cluster::start().await;
    let start = cluster.apply(&secret("a", "1")).await;
    let elsewhere = |value| objects::secret("other", "a", "Opaque", &[("value", value)]);
    cluster.apply(&elsewhere("1")).await;
    let mut events = watch(&cluster.admin(), WatchParams::default(), &start).await;
    cluster.apply(&elsewhere("2")).await;
    cluster.delete(&elsewhere("")).await;
    cluster.apply(&secret("a", "2")).await;
    assert_eq!(next(&mut events).await, "MODIFIED a 2");
}

#[tokio::test]
async fn a_deleted_object_has_the_version_of_its_deletion() {
    let cluster = Cluster::start().await;
    let start = cluster.apply(&secret("a", "1")).await;
    cluster.delete(&secret("a", "")).await;
    let since = version_of(&start).to_string();
    let secrets = secrets(&cluster.admin());
    let events = secrets
        .watch(&WatchParams::default(), &since)
        .await
        .unwrap();
    let event = within("the event", events.boxed().try_next())
        .await
        .unwrap();
    let Some(WatchEvent::Deleted(last)) = event else {
        panic!("{event:?}");
    };
    assert!(last.resource_version().unwrap().parse::<u64>().unwrap() > version_of(&start));
}

#[tokio::test]
async fn an_object_that_stops_matching_is_deleted_and_one_that_begins_to_is_added() {
    let cluster = Cluster::start().await;
    let chosen = |value: &str| objects::labelled(secret("a", value), "chosen", "yes");
    let start = cluster.apply(&secret("a", "1")).await;
    let params = WatchParams::default().labels("chosen=yes");
    let mut events = watch(&cluster.admin(), params, &start).await;
    cluster.apply(&chosen("2")).await;
    assert_eq!(next(&mut events).await, "ADDED a 2");
    cluster.apply(&chosen("3")).await;
    assert_eq!(next(&mut events).await, "MODIFIED a 3");
    // It is shown as it last was when it matched.
    cluster.apply(&secret("a", "4")).await;
    assert_eq!(next(&mut events).await, "DELETED a 3");
    cluster.apply(&chosen("5")).await;
    assert_eq!(next(&mut events).await, "ADDED a 5");
    cluster.delete(&secret("a", "")).await;
    assert_eq!(next(&mut events).await, "DELETED a 5");
}

#[tokio::test]
async fn a_watch_from_nowhere_begins_with_what_is_there() {
    let cluster = Cluster::start().await;
    cluster.apply(&secret("a", "1")).await;
    let mut newest = cluster.apply(&secret("b", "1")).await;
    // Which is a streaming list to one who takes bookmarks.
    let end = "BOOKMARK {\"k8s.io/initial-events-end\": \"true\"}";
    for (since, bookmarks) in [("0", true), ("", true), ("0", false), ("", false)] {
        let secrets = secrets(&cluster.admin());
        let mut params = WatchParams::default().fields("type=Opaque");
        params.bookmarks = bookmarks;
        cached(&cluster, &newest).await;
        let mut events = secrets.watch(&params, since).await.unwrap().boxed();
        assert_eq!(next(&mut events).await, "ADDED a 1");
        assert_eq!(next(&mut events).await, "ADDED b 1");
        if bookmarks {
            assert_eq!(next(&mut events).await, end);
        }
        cluster.apply(&secret("b", since)).await;
        assert_eq!(next(&mut events).await, format!("MODIFIED b {since}"));
        newest = cluster.apply(&secret("b", "1")).await;
    }
}

#[tokio::test]
async fn a_watch_ends_at_its_timeout_and_says_how_far_it_came() {
    let cluster = Cluster::start().await;
    let start = cluster.apply(&secret("a", "1")).await;
    // The real server sends its bookmark two seconds before.
    let params = WatchParams::default().fields("metadata.name=a").timeout(3);
    let secrets = secrets(&cluster.admin());
    let since = version_of(&start).to_string();
    let mut events = secrets.watch(&params, &since).await.unwrap().boxed();
    // Nothing that it was asked for, but in the same collection.
    let newest = cluster.apply(&secret("b", "1")).await;
    let mut last = None;
    while let Some(event) = within("the end", events.try_next()).await.unwrap() {
        let WatchEvent::Bookmark(bookmark) = event else {
            panic!("{event:?}");
        };
        last = Some(bookmark.metadata.resource_version);
    }
    let last: u64 = last.expect("a bookmark before the end").parse().unwrap();
    assert_eq!(last, version_of(&newest));
}

#[tokio::test]
async fn a_streaming_list_says_where_the_initial_events_end() {
    let cluster = Cluster::start().await;
    cached(&cluster, &cluster.apply(&secret("a", "1")).await).await;
    let params = WatchParams::default()
        .fields("type=Opaque")
        .initial_events();
    let secrets = secrets(&cluster.admin());
    let mut events = secrets.watch(&params, "0").await.unwrap().boxed();
    assert_eq!(next(&mut events).await, "ADDED a 1");
    let end = next(&mut events).await;
    assert_eq!(end, "BOOKMARK {\"k8s.io/initial-events-end\": \"true\"}");
    cluster.apply(&secret("a", "2")).await;
    assert_eq!(next(&mut events).await, "MODIFIED a 2");
}

#[tokio::test]
async fn the_watcher_of_kube_rs_sees_the_same_by_lists_pages_and_streams() {
    let cluster = Cluster::start().await;
    for name in ["a", "b", "c"] {
        cached(&cluster, &cluster.apply(&secret(name, "1")).await).await;
    }
    let config = watcher::Config::default().fields("type=Opaque");
    for config in [
        config.clone(),
        config.clone().any_semantic(),
        config.clone().page_size(2),
        config.streaming_lists(),
    ] {
        let mut seen = watched(secrets(&cluster.admin()), config);
        let initial = events::<5>(&mut seen).await;
        assert_eq!(
            initial,
            [
                "Init",
                "InitApply(a)",
                "InitApply(b)",
                "InitApply(c)",
                "InitDone"
            ]
        );
        cluster.apply(&secret("d", "1")).await;
        cluster.delete(&secret("d", "")).await;
        assert_eq!(events::<2>(&mut seen).await, ["Apply(d)", "Delete(d)"]);
    }
}

#[tokio::test]
async fn a_watch_of_metadata_brings_no_data() {
    let cluster = Cluster::start().await;
    cluster.apply(&secret("a", "1")).await;
    let config = watcher::Config::default().fields("metadata.name=a");
    let api: Api<PartialObjectMeta<Secret>> = Api::namespaced(cluster.admin(), PAYMENTS);
    let mut seen = watcher(api, config).boxed();
    let mut found = None;
    while found.is_none() {
        let event = within("the object", seen.try_next())
            .await
            .unwrap()
            .unwrap();
        if let watcher::Event::InitApply(object) = event {
            found = Some(object);
        }
    }
    let found = serde_json::to_value(found.unwrap()).unwrap();
    assert_eq!(found["metadata"]["name"], "a");
    assert_eq!(found["data"], Value::Null);
}

#[tokio::test]
async fn a_watch_that_wants_no_initial_events_begins_now() {
    let cluster = Cluster::start().await;
    cluster.apply(&secret("a", "1")).await;
    let path = "/api/v1/namespaces/payments/secrets?watch=true&timeoutSeconds=30\
         &sendInitialEvents=false&resourceVersionMatch=NotOlderThan";
    let request = http::Request::get(path).body(Vec::new()).unwrap();
    let events = cluster.admin().request_events::<Secret>(request).await;
    let mut events = events.unwrap().boxed();
    cluster.apply(&secret("a", "2")).await;
    assert_eq!(next(&mut events).await, "MODIFIED a 2");
}

#[tokio::test]
async fn a_server_that_comes_back_has_forgotten_its_history_and_the_watcher_lists_anew() {
    let cluster = Cluster::start().await;
    let old = cluster.apply(&secret("a", "1")).await;
    let config = watcher::Config::default().fields("metadata.name=a");
    let mut seen = watched(secrets(&cluster.admin()), config);
    let initial = events::<3>(&mut seen).await;
    assert_eq!(initial, ["Init", "InitApply(a)", "InitDone"]);
    // Were its version the newest, the watch could be resumed.
    cluster.apply(&secret("b", "1")).await;
    cluster.go_away().await;
    let [refused] = events::<1>(&mut seen).await;
    assert!(refused.contains("watch"), "{refused}");
    cluster.come_back().await;
    assert_eq!(cluster.get(&old).await.as_ref(), Some(&old));
    let mut last = refused;
    while last != "Init" {
        [last] = events::<1>(&mut seen).await;
    }
    assert_eq!(events::<2>(&mut seen).await, ["InitApply(a)", "InitDone"]);
    let since = version_of(&old).to_string();
    let secrets = secrets(&cluster.admin());
    let watch = secrets.watch(&WatchParams::default(), &since).await;
    let event = within("the error", watch.unwrap().boxed().try_next()).await;
    let Some(WatchEvent::Error(expired)) = event.unwrap() else {
        panic!("the history is there");
    };
    assert_eq!((expired.code, expired.reason.as_str()), (410, "Expired"));
    let start = format!("too old resource version: {since} (");
    assert!(expired.message.starts_with(&start), "{}", expired.message);
}

#[tokio::test]
async fn a_list_from_the_future_is_refused_with_504() {
    let cluster = Cluster::start().await;
    let now = cluster.apply(&secret("a", "1")).await;
    let future = version_of(&now) + 1_000_000;
    let path = format!("/api/v1/namespaces/payments/secrets?resourceVersion={future}");
    let refused = ask(&cluster.admin(), &path).await.unwrap_err();
    assert_eq!((refused.code, refused.reason.as_str()), (504, "Timeout"));
    let start = format!("Timeout: Too large resource version: {future}, current: ");
    assert!(refused.message.starts_with(&start), "{}", refused.message);
    let details = refused.details.unwrap();
    assert_eq!(details.retry_after_seconds, 1);
    assert_eq!(details.causes[0].reason, "ResourceVersionTooLarge");
}

#[tokio::test]
async fn the_type_of_a_secret_does_not_change_and_an_immutable_one_does_not_at_all() {
    let cluster = Cluster::start().await;
    cluster.apply(&secret("a", "1")).await;
    let other = objects::secret(PAYMENTS, "a", "example.com/x", &[("value", "1")]);
    let refused = cluster.try_replace(&other).await.unwrap_err();
    assert_eq!((refused.code, refused.reason.as_str()), (422, "Invalid"));
    assert_eq!(
        refused.message,
        "Secret \"a\" is invalid: type: Invalid value: \"example.com/x\": field is immutable"
    );
    let mut fixed = secret("b", "1");
    fixed["immutable"] = json!(true);
    cluster.apply(&fixed).await;
    fixed["data"]["value"] = json!("Mg==");
    let refused = cluster.try_replace(&fixed).await.unwrap_err();
    assert_eq!(
        refused.message,
        "Secret \"b\" is invalid: data: Forbidden: field is immutable when `immutable` is set"
    );
    // The way out is another object of the name.
    cluster.delete(&fixed).await;
    cluster
        .apply(&objects::secret(PAYMENTS, "b", "example.com/x", &[]))
        .await;
}

#[tokio::test]
async fn a_tls_secret_has_both_its_keys_and_text_becomes_data() {
    let cluster = Cluster::start().await;
    cluster.namespace(PAYMENTS).await;
    let half = objects::secret(PAYMENTS, "a", "kubernetes.io/tls", &[("tls.crt", "x")]);
    let refused = cluster.try_create(&half).await.unwrap_err();
    assert_eq!(
        refused.message,
        "Secret \"a\" is invalid: data[tls.key]: Required value"
    );
    let pki = crate::support::pki::Pki::new();
    let whole = objects::tls_secret(PAYMENTS, "a", &pki.client("billing"));
    assert_eq!(cluster.apply(&whole).await["data"], whole["data"]);
    let mut text = objects::object("v1", "Secret", PAYMENTS, "b");
    text["stringData"]["key"] = json!("value");
    let made = cluster.apply(&text).await;
    assert_eq!(made["data"]["key"], "dmFsdWU=");
    assert_eq!(made["stringData"], Value::Null);
    assert_eq!(made["type"], "Opaque");
    let mut junk = secret("c", "1");
    junk["data"]["value"] = json!("%");
    let refused = cluster.try_create(&junk).await.unwrap_err();
    assert_eq!((refused.code, refused.reason.as_str()), (400, "BadRequest"));
}

#[tokio::test]
async fn a_merge_patch_changes_what_it_names_and_removes_what_is_null() {
    let cluster = Cluster::start().await;
    let map = objects::config_map(PAYMENTS, "a", &[("keep", "1"), ("drop", "1")]);
    let old = cluster.apply(&map).await;
    let patch = json!({ "data": { "drop": null, "new": "2" } });
    let new = cluster.patch(&map, &patch).await;
    assert_eq!(new["data"], json!({ "keep": "1", "new": "2" }));
    assert!(version_of(&new) > version_of(&old));
    assert_eq!(new["metadata"]["uid"], old["metadata"]["uid"]);
}

#[tokio::test]
async fn a_deletion_holds_its_preconditions_and_waits_for_finalizers() {
    let cluster = Cluster::start().await;
    let object = cluster.apply(&secret("a", "1")).await;
    let secrets = secrets(&cluster.admin());
    let other = DeleteParams::default().preconditions(Preconditions {
        uid: Some("00000000-0000-4000-8000-000000000000".to_owned()),
        resource_version: None,
    });
    let Err(kube::Error::Api(refused)) = secrets.delete("a", &other).await else {
        panic!("another object was deleted");
    };
    assert_eq!((refused.code, refused.reason.as_str()), (409, "Conflict"));
    let patch = |finalizers: Value| json!({ "metadata": { "finalizers": finalizers } });
    cluster
        .patch(&object, &patch(json!(["example.com/wait"])))
        .await;
    cluster.delete(&object).await;
    let dying = cluster.get(&object).await.expect("it waits");
    assert!(dying["metadata"]["deletionTimestamp"].is_string());
    cluster.patch(&object, &patch(Value::Null)).await;
    assert_eq!(cluster.get(&object).await, None);
}

#[tokio::test]
async fn a_service_is_filled_in_and_keeps_its_address() {
    let cluster = Cluster::start().await;
    let service = objects::service(PAYMENTS, "billing", &[("https", 8443)]);
    let made = cluster.apply(&service).await;
    let spec = &made["spec"];
    assert_eq!(spec["type"], "ClusterIP");
    assert_eq!(
        spec["ports"],
        json!([{ "name": "https", "port": 8443, "protocol": "TCP", "targetPort": 8443 }])
    );
    assert!(spec["clusterIP"].as_str().unwrap().contains('.'));
    assert_eq!(spec["clusterIPs"], json!([spec["clusterIP"]]));
    let annotated = objects::annotated(service, "example.com/a", "b");
    let again = cluster.apply(&annotated).await;
    assert_eq!(again["spec"]["clusterIP"], spec["clusterIP"]);
    let mut two = objects::service(PAYMENTS, "two", &[("a", 1), ("a", 2)]);
    let refused = cluster.try_create(&two).await.unwrap_err();
    assert_eq!(
        refused.message,
        "Service \"two\" is invalid: spec.ports[1].name: Duplicate value: \"a\""
    );
    two["spec"] = json!({ "type": "ExternalName", "externalName": "billing.example.com" });
    let made = cluster.apply(&two).await;
    assert_eq!(made["spec"]["clusterIP"], Value::Null);
}

#[tokio::test]
async fn an_endpoint_slice_counts_its_generations() {
    let cluster = Cluster::start().await;
    let slice = |address: &str| {
        objects::endpoint_slice(
            PAYMENTS,
            "billing-1",
            "billing",
            ("https", 8443),
            &[address],
        )
    };
    let made = cluster.apply(&slice("10.1.0.1")).await;
    assert_eq!(made["metadata"]["generation"], 1);
    assert_eq!(made["ports"][0]["protocol"], "TCP");
    let annotated = objects::annotated(slice("10.1.0.1"), "example.com/a", "b");
    let again = cluster.apply(&annotated).await;
    assert_eq!(again["metadata"]["generation"], 1);
    let again = cluster.apply(&slice("10.1.0.2")).await;
    assert_eq!(again["metadata"]["generation"], 2);
    let pod = cluster.pod_address().ip().to_string();
    cluster.apply(&slice(&pod)).await;
    let mut other = slice("10.1.0.1");
    other["addressType"] = json!("IPv6");
    let refused = cluster.try_replace(&other).await.unwrap_err();
    assert_eq!((refused.code, refused.reason.as_str()), (422, "Invalid"));
}

#[tokio::test]
async fn a_trust_bundle_is_an_object_of_the_cluster_and_its_name_says_its_signer() {
    let cluster = Cluster::start().await;
    let pem = crate::support::pki::Pki::new().root.pem();
    let made = cluster.apply(&objects::trust_bundle("roots", &pem)).await;
    assert_eq!(made["metadata"]["namespace"], Value::Null);
    assert_eq!(made["spec"]["trustBundle"], pem.as_str());
    let mut signed = objects::trust_bundle("roots", &pem);
    signed["metadata"]["name"] = json!("example.com:mine:roots");
    signed["spec"]["signerName"] = json!("example.com/mine");
    cluster.apply(&signed).await;
    let selected = "/apis/certificates.k8s.io/v1beta1/clustertrustbundles\
         ?fieldSelector=spec.signerName%3Dexample.com%2Fmine";
    let list = ask(&cluster.admin(), selected).await.unwrap();
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
    signed["metadata"]["name"] = json!("other");
    assert_eq!(cluster.try_create(&signed).await.unwrap_err().code, 422);
    let empty = objects::trust_bundle("empty", "");
    assert_eq!(cluster.try_create(&empty).await.unwrap_err().code, 422);
}

#[tokio::test]
async fn the_api_can_be_discovered() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let version = client.apiserver_version().await.unwrap();
    assert_eq!(version.major, "1");
    let groups = client.list_api_groups().await.unwrap().groups;
    let names: Vec<_> = groups.iter().map(|it| it.name.as_str()).collect();
    assert!(names.contains(&"discovery.k8s.io"), "{names:?}");
    let core = client
        .list_core_api_resources("v1")
        .await
        .unwrap()
        .resources;
    let secrets = core.iter().find(|it| it.name == "secrets").unwrap();
    assert!(secrets.namespaced && secrets.verbs.contains(&"watch".to_owned()));
    let bundles = client
        .list_api_group_resources("certificates.k8s.io/v1beta1")
        .await
        .unwrap();
    assert!(
        bundles
            .resources
            .iter()
            .any(|it| it.kind == "ClusterTrustBundle")
    );
}
