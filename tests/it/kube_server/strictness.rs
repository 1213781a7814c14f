//! What a client asks wrongly is answered as the real server does, and complained of.

use super::*;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};

/// An Event about `object` that the strict API accepts.
fn event(name: &str, object: &Value) -> Value {
    let mut event = objects::object("events.k8s.io/v1", "Event", PAYMENTS, name);
    for (key, value) in [
        ("eventTime", json!("2026-01-02T03:04:05.678901Z")),
        ("reportingController", json!("tlsward.example.com/proxy")),
        ("reportingInstance", json!("proxy-0")),
        ("action", json!("Load")),
        ("reason", json!("Loaded")),
        ("type", json!("Normal")),
        ("note", json!("a note")),
    ] {
        event[key] = value;
    }
    event["regarding"] = json!({
        "apiVersion": "v1",
        "kind": object["kind"],
        "namespace": object["metadata"]["namespace"],
        "name": object["metadata"]["name"],
        "uid": object["metadata"]["uid"],
    });
    event
}

#[tokio::test]
async fn an_event_is_seen_under_both_of_its_apis() {
    let cluster = Cluster::start().await;
    let object = cluster.apply(&secret("a", "1")).await;
    cluster.apply(&event("a.1", &object)).await;
    let seen = cluster.event_of(&object, "Loaded").await;
    assert_eq!(seen["message"], "a note");
    assert_eq!(seen["involvedObject"]["name"], "a");
    assert_eq!(seen["reportingComponent"], "tlsward.example.com/proxy");
    let found = cluster.events_of(&object).await;
    assert_eq!(found.len(), 1);
    let back = cluster.get(&event("a.1", &object)).await.unwrap();
    assert_eq!(back["note"], "a note");
    assert_eq!(back["regarding"]["name"], "a");
    assert_eq!(back["message"], Value::Null);
    let other = cluster.apply(&secret("b", "1")).await;
    assert!(cluster.events_of(&other).await.is_empty());
}

#[tokio::test]
async fn an_event_that_breaks_a_rule_of_its_api_is_refused() {
    let cluster = Cluster::start().await;
    let object = cluster.apply(&secret("a", "1")).await;
    let long = |length: usize| json!("x".repeat(length));
    for (field, value, words) in [
        ("eventTime", Value::Null, "eventTime: Required value"),
        ("action", Value::Null, "action: Required value"),
        (
            "action",
            long(129),
            "action: Invalid value: \"\": can have at most 128 characters",
        ),
        (
            "reason",
            long(129),
            "reason: Invalid value: \"\": can have at most 128 characters",
        ),
        ("reason", Value::Null, "reason: Required value"),
        (
            "note",
            long(1025),
            "message: Invalid value: \"\": can have at most 1024 characters",
        ),
        (
            "reportingController",
            Value::Null,
            "reportingController: Required value",
        ),
        (
            "reportingController",
            json!("no good"),
            "reportingController: Invalid value",
        ),
        (
            "reportingInstance",
            long(129),
            "can have at most 128 characters",
        ),
        (
            "type",
            json!("Info"),
            "type: Invalid value: \"\": has invalid value: Info",
        ),
        (
            "regarding",
            json!({ "kind": "Secret" }),
            "does not match event.namespace",
        ),
        (
            "deprecatedCount",
            json!(3),
            "count: Invalid value: \"\": needs to be unset",
        ),
        (
            "series",
            json!({ "count": 1, "lastObservedTime": "2026-01-02T03:04:05.678901Z" }),
            "series.count: Invalid value: \"\": should be at least 2",
        ),
    ] {
        let mut event = event("a.1", &object);
        event[field] = value;
        let refused = cluster.try_create(&event).await.unwrap_err();
        assert_eq!(
            (refused.code, refused.reason.as_str()),
            (422, "Invalid"),
            "{field}"
        );
        assert!(
            refused.message.contains(words),
            "{field}: {}",
            refused.message
        );
    }
}

#[tokio::test]
async fn only_the_series_of_an_event_changes() {
    let cluster = Cluster::start().await;
    let object = cluster.apply(&secret("a", "1")).await;
    let event = cluster.apply(&event("a.1", &object)).await;
    let series = json!({ "count": 2, "lastObservedTime": "2026-01-02T03:05:05.678901Z" });
    let patched = cluster.patch(&event, &json!({ "series": series })).await;
    assert_eq!(patched["series"]["count"], 2);
    let mut other = patched;
    other["note"] = json!("another");
    let refused = cluster.try_replace(&other).await.unwrap_err();
    assert!(
        refused.message.contains("field is immutable"),
        "{}",
        refused.message
    );
}

#[tokio::test]
async fn the_recorder_of_kube_rs_is_at_home_here() {
    let cluster = Cluster::start().await;
    let user = reader(&cluster).await;
    let object = cluster.apply(&secret("a", "1")).await;
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let reference = ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Secret".to_owned()),
        name: Some("a".to_owned()),
        namespace: Some(PAYMENTS.to_owned()),
        uid: text(&object["metadata"]["uid"]),
        ..ObjectReference::default()
    };
    let reporter = Reporter {
        controller: "tlsward".to_owned(),
        instance: Some("proxy-0".to_owned()),
    };
    let recorder = Recorder::new(user.client(), reporter);
    let event = Event {
        type_: EventType::Warning,
        reason: "Junk".to_owned(),
        note: Some("no certificate in there".to_owned()),
        action: "Load".to_owned(),
        secondary: None,
    };
    for _ in 0..3 {
        recorder.publish(&event, &reference).await.unwrap();
    }
    let found = cluster.events_of(&object).await;
    assert_eq!(found.len(), 1);
    assert_eq!(found[0]["series"]["count"], 3);
}

#[tokio::test]
async fn what_a_client_may_is_told_when_it_asks() {
    let cluster = Cluster::start().await;
    let user = cluster.user(PAYMENTS, "tlsward").await;
    let rules = json!([{ "apiGroups": [""], "resources": ["services"], "verbs": ["list"] }]);
    user.allow(PAYMENTS, rules).await;
    for (verb, allowed) in [("list", true), ("watch", false)] {
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": { "resourceAttributes": {
                "namespace": PAYMENTS, "verb": verb, "resource": "services",
            } },
        });
        let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
        let answer = send(&user.client(), "POST", path, "application/json", &review).await;
        assert_eq!(answer.unwrap()["status"]["allowed"], allowed, "{verb}");
    }
}

/// What the server answers to a body of this type.
async fn send(
    client: &Client,
    method: &str,
    path: &str,
    kind: &str,
    body: &Value,
) -> Result<Value, Box<Status>> {
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", kind)
        .body(body.to_string().into_bytes())
        .unwrap();
    match within(path, client.request(request)).await {
        Ok(answer) => Ok(answer),
        Err(kube::Error::Api(status)) => Err(status),
        Err(error) => panic!("{path}: {error}"),
    }
}

const BASE: &str = "/api/v1/namespaces/payments/secrets";

#[tokio::test]
async fn a_body_of_an_unknown_type_and_one_that_is_no_object_are_refused() {
    let cluster = Cluster::start().await;
    let user = reader(&cluster).await;
    cluster.apply(&secret("a", "1")).await;
    let client = user.client();
    let refused = send(&client, "POST", BASE, "text/plain", &secret("b", "1")).await;
    let refused = refused.unwrap_err();
    assert_eq!(
        (refused.code, refused.reason.as_str()),
        (415, "UnsupportedMediaType")
    );
    let one = format!("{BASE}/a");
    let refused = send(&client, "PATCH", &one, "application/json", &json!({})).await;
    assert_eq!(refused.unwrap_err().code, 415);
    let refused = send(&client, "POST", BASE, "application/json", &json!("text")).await;
    assert_eq!(refused.unwrap_err().code, 400);
    let mut wrong = secret("b", "1");
    wrong["type"] = json!(7);
    let refused = send(&client, "POST", BASE, "application/json", &wrong).await;
    assert_eq!(refused.unwrap_err().code, 400);
    let request = http::Request::get(BASE)
        .header("accept", "text/html")
        .body(Vec::new())
        .unwrap();
    let Err(kube::Error::Api(refused)) = client.request::<Value>(request).await else {
        panic!("the server speaks HTML");
    };
    assert_eq!(
        (refused.code, refused.reason.as_str()),
        (406, "NotAcceptable")
    );
    if let Some(server) = cluster.imitation() {
        assert_eq!(server.take_complaints().len(), 5);
    }
}

#[tokio::test]
async fn unknown_parameters_and_fields_are_ignored_and_complained_of() {
    let cluster = Cluster::start().await;
    let user = reader(&cluster).await;
    cluster.apply(&secret("a", "1")).await;
    let client = user.client();
    ask(&client, &format!("{BASE}?feldSelector=metadata.name%3Da"))
        .await
        .unwrap();
    let mut map = objects::config_map(PAYMENTS, "b", &[]);
    map["dta"] = json!({ "key": "value" });
    let path = "/api/v1/namespaces/payments/configmaps";
    let made = send(&client, "POST", path, "application/json", &map)
        .await
        .unwrap();
    assert_eq!(made["dta"], Value::Null);
    if let Some(server) = cluster.imitation() {
        let complaints = server.take_complaints();
        assert!(
            complaints[0].ends_with("unknown parameter \"feldSelector\""),
            "{complaints:?}"
        );
        assert!(
            complaints[1].ends_with("unknown field \"dta\""),
            "{complaints:?}"
        );
        assert_eq!(complaints.len(), 2);
    }
}

#[tokio::test]
async fn a_path_that_nobody_serves_is_404_and_complained_of() {
    let cluster = Cluster::start().await;
    let user = reader(&cluster).await;
    let client = user.client();
    for path in [
        "/api/v1/namespaces/payments/widgets",
        "/apis/discovery.k8s.io/v7/namespaces/payments/endpointslices",
    ] {
        let refused = ask(&client, path).await.unwrap_err();
        assert_eq!(refused.code, 404);
    }
    if let Some(server) = cluster.imitation() {
        assert_eq!(server.take_complaints().len(), 2);
    }
}

#[tokio::test]
async fn options_that_do_not_go_together_are_refused() {
    let cluster = Cluster::start().await;
    for options in [
        "resourceVersionMatch=Exact",
        "resourceVersionMatch=Exact&resourceVersion=0",
        "resourceVersionMatch=Newer&resourceVersion=1",
        "sendInitialEvents=true",
        "watch=true&sendInitialEvents=true",
        "watch=true&resourceVersionMatch=NotOlderThan",
    ] {
        let path = format!("/api/v1/secrets?{options}");
        let refused = ask(&cluster.admin(), &path).await.unwrap_err();
        assert_eq!(
            (refused.code, refused.reason.as_str()),
            (422, "Invalid"),
            "{options}"
        );
    }
}

#[tokio::test]
async fn an_api_that_is_not_served_is_404_and_no_complaint() {
    let cluster = Cluster::in_process().await;
    let user = cluster.user(PAYMENTS, "tlsward").await;
    let rules = json!([{
        "apiGroups": ["certificates.k8s.io"],
        "resources": ["clustertrustbundles"],
        "verbs": ["list"],
    }]);
    user.allow("*", rules).await;
    let path = "/apis/certificates.k8s.io/v1beta1/clustertrustbundles";
    ask(&user.client(), path).await.unwrap();
    cluster.server().serve_trust_bundles(false);
    assert_eq!(ask(&user.client(), path).await.unwrap_err().code, 404);
    let groups = cluster.admin().list_api_groups().await.unwrap().groups;
    assert!(groups.iter().all(|it| it.name != "certificates.k8s.io"));
    assert!(cluster.server().take_complaints().is_empty());
}

#[tokio::test]
#[should_panic(expected = "the API server was asked wrongly")]
async fn a_complaint_that_nobody_took_fails_the_test() {
    let cluster = Cluster::in_process().await;
    let user = reader(&cluster).await;
    let _ = ask(&user.client(), "/api/v1/namespaces/payments/widgets").await;
}
