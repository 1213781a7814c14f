//! The imitation beside the real server, answer by answer. Without `KUBEBUILDER_ASSETS` both are
//! the imitation.

use super::*;
use http_body_util::BodyExt;

/// One request: method, path, type of the body, body.
type Step = (&'static str, &'static str, &'static str, Value);

const JSON: &str = "application/json";
const MERGE: &str = "application/merge-patch+json";
const SECRETS: &str = "/api/v1/namespaces/payments/secrets";
const SERVICES: &str = "/api/v1/namespaces/payments/services";
const MAPS: &str = "/api/v1/namespaces/payments/configmaps";
const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/payments/endpointslices";
const BUNDLES: &str = "/apis/certificates.k8s.io/v1beta1/clustertrustbundles";
const EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/payments/events";

/// What the server makes of `steps`, one after the other.
async fn answers(client: &Client, steps: &[Step]) -> Vec<String> {
    let mut out = Vec::new();
    for (method, path, kind, body) in steps {
        let mut request = http::Request::builder().method(*method).uri(*path);
        if !kind.is_empty() {
            request = request.header("content-type", *kind);
        }
        let body = match body {
            Value::Null => Vec::new(),
            Value::String(text) => text.clone().into_bytes(),
            body => body.to_string().into_bytes(),
        };
        let request = request.body(kube::client::Body::from(body)).unwrap();
        let answer = within(*path, client.send(request)).await.unwrap();
        let (head, body) = answer.into_parts();
        let header = |name: &str| {
            let value = head.headers.get(name);
            value.map_or(String::new(), |it| it.to_str().unwrap().to_owned())
        };
        let text = within("the body", body.collect()).await.unwrap().to_bytes();
        // A watch is many values; what is none stands as it is.
        let values = serde_json::Deserializer::from_slice(&text).into_iter::<Value>();
        let text = match values.collect::<Result<Vec<_>, _>>() {
            Ok(mut values) => {
                let values = values.iter_mut().map(|value| {
                    without_chance("", value);
                    format!("{value:#}\n")
                });
                values.collect()
            }
            Err(_) => String::from_utf8_lossy(&text).into_owned(),
        };
        out.push(format!(
            "{method} {path}\n{} {} {}\n{text}",
            head.status.as_u16(),
            header("content-type"),
            header("retry-after"),
        ));
    }
    out
}

/// Takes out what differs from run to run.
fn without_chance(key: &str, value: &mut Value) {
    match value {
        Value::Object(map) => {
            // What the imitation keeps of it has the size of the real thing, not its details.
            if let Some(managed) = map.get_mut("managedFields") {
                *managed = json!("…");
            }
            for (key, value) in map {
                without_chance(key, value);
            }
        }
        Value::Array(list) => {
            for value in list {
                without_chance(key, value);
            }
        }
        value => {
            let chance = [
                "uid",
                "resourceVersion",
                "creationTimestamp",
                "deletionTimestamp",
                "time",
                "clusterIP",
                "clusterIPs",
                "continue",
            ];
            if chance.contains(&key) {
                *value = json!("…");
            }
            // The words of Go's parsers are their own.
            if let ("message", Some(text)) = (key, value.as_str()) {
                for start in [
                    "Invalid value: \"{",
                    "cannot be handled as a",
                    "json parse error:",
                    "error decoding patch:",
                    "unable to parse requirement:",
                    "Too large resource version: 1000000,",
                ] {
                    if let Some((head, _)) = text.split_once(start) {
                        *value = json!(format!("{head}{start} …"));
                        break;
                    }
                }
            }
        }
    }
}

async fn twins(steps: &[Step]) {
    let real = Cluster::start().await;
    let imitation = Cluster::in_process().await;
    for cluster in [&real, &imitation] {
        cluster.namespace(PAYMENTS).await;
    }
    let real = answers(&real.admin(), steps).await;
    let imitation = answers(&imitation.admin(), steps).await;
    let differing: Vec<String> = real
        .into_iter()
        .zip(imitation)
        .filter(|(real, imitation)| real != imitation)
        .map(|(real, imitation)| format!("REAL {real}\nIMITATION {imitation}"))
        .collect();
    assert!(differing.is_empty(), "{}", differing.join("\n\n"));
}

#[tokio::test]
async fn secrets_and_config_maps() {
    let mut fixed = secret("fixed", "1");
    fixed["immutable"] = json!(true);
    let mut loose = fixed.clone();
    loose["immutable"] = json!(false);
    let mut versioned = secret("v", "1");
    versioned["metadata"]["resourceVersion"] = json!("1");
    let mut elsewhere = secret("a", "1");
    elsewhere["metadata"]["namespace"] = json!("other");
    let mut numbers = secret("n", "1");
    numbers["data"]["value"] = json!(7);
    let mut alien = secret("x", "1");
    alien["kind"] = json!("ConfigMap");
    let mut newer = secret("x", "1");
    newer["apiVersion"] = json!("v2");
    let mut labels = objects::config_map(PAYMENTS, "l", &[]);
    labels["metadata"]["labels"] = json!({ "a b": "c", "d": "e f" });
    let mut notes = objects::config_map(PAYMENTS, "m", &[]);
    notes["metadata"]["annotations"] = json!({ "a b": "c" });
    let one = "/api/v1/namespaces/payments/secrets/a";
    twins(&[
        ("POST", SECRETS, JSON, secret("a", "1")),
        ("POST", SECRETS, JSON, secret("a", "1")),
        ("GET", one, "", Value::Null),
        ("PUT", one, JSON, secret("a", "2")),
        ("PUT", one, JSON, secret("b", "2")),
        (
            "PUT",
            "/api/v1/namespaces/payments/secrets/b",
            JSON,
            secret("b", "2"),
        ),
        ("PATCH", one, MERGE, json!({ "data": { "more": "Mw==" } })),
        (
            "PATCH",
            one,
            MERGE,
            json!({ "metadata": { "resourceVersion": "1" } }),
        ),
        ("PATCH", one, MERGE, json!({ "type": "other/type" })),
        ("PATCH", one, MERGE, json!({ "data": { "more": 7 } })),
        ("PATCH", one, "text/plain", json!({})),
        ("PATCH", one, MERGE, json!("{")),
        (
            "PATCH",
            "/api/v1/namespaces/payments/secrets/none",
            MERGE,
            json!({}),
        ),
        ("POST", SECRETS, JSON, fixed.clone()),
        (
            "PUT",
            "/api/v1/namespaces/payments/secrets/fixed",
            JSON,
            loose,
        ),
        ("POST", SECRETS, JSON, versioned),
        ("POST", SECRETS, JSON, elsewhere),
        ("POST", SECRETS, JSON, numbers),
        ("POST", SECRETS, JSON, alien),
        ("POST", SECRETS, JSON, newer),
        ("POST", SECRETS, JSON, json!("no object")),
        ("POST", SECRETS, JSON, json!("{")),
        ("POST", SECRETS, "", secret("untyped", "1")),
        ("POST", SECRETS, "text/plain", secret("text", "1")),
        ("POST", SECRETS, JSON, secret("Big_Name", "1")),
        ("POST", SECRETS, JSON, secret("dots.and.more", "1")),
        (
            "POST",
            SECRETS,
            JSON,
            objects::secret(PAYMENTS, "k", "Opaque", &[("no/key", "")]),
        ),
        (
            "POST",
            SECRETS,
            JSON,
            objects::secret(PAYMENTS, "t", "kubernetes.io/tls", &[]),
        ),
        ("POST", SECRETS, JSON, json!({ "metadata": {} })),
        (
            "POST",
            "/api/v1/namespaces/nowhere/secrets",
            JSON,
            objects::secret("nowhere", "a", "Opaque", &[]),
        ),
        ("POST", "/api/v1/secrets", JSON, secret("c", "1")),
        ("POST", MAPS, JSON, labels),
        ("POST", MAPS, JSON, notes),
        (
            "POST",
            MAPS,
            JSON,
            objects::config_map(PAYMENTS, "a", &[("key", "value")]),
        ),
        (
            "POST",
            "/api/v1/namespaces/payments/configmaps?dryRun=All",
            JSON,
            objects::config_map(PAYMENTS, "dry", &[]),
        ),
        (
            "GET",
            "/api/v1/namespaces/payments/configmaps/dry",
            "",
            Value::Null,
        ),
        ("GET", MAPS, "", Value::Null),
        ("DELETE", one, "", Value::Null),
        ("DELETE", one, "", Value::Null),
        (
            "DELETE",
            "/api/v1/namespaces/payments/configmaps/a",
            JSON,
            json!({}),
        ),
        ("DELETE", MAPS, "", Value::Null),
    ])
    .await;
}

#[tokio::test]
async fn services_and_their_endpoints() {
    let service = objects::service(PAYMENTS, "billing", &[("https", 8443), ("http", 80)]);
    let mut headless = objects::service(PAYMENTS, "headless", &[("https", 8443)]);
    headless["spec"]["clusterIP"] = json!("None");
    let mut external = objects::object("v1", "Service", PAYMENTS, "external");
    external["spec"] = json!({ "type": "ExternalName", "externalName": "a.example.com" });
    let mut nowhere = external.clone();
    nowhere["spec"]["externalName"] = json!("");
    let mut unnamed = objects::service(PAYMENTS, "unnamed", &[("", 1), ("", 2)]);
    unnamed["spec"]["ports"][1]["port"] = json!(70_000);
    let slice = |name: &str, addresses: &[&str]| {
        objects::endpoint_slice(PAYMENTS, name, "billing", ("https", 8443), addresses)
    };
    let mut six = slice("six", &["10.1.0.1"]);
    six["addressType"] = json!("IPv6");
    let mut untyped = slice("untyped", &[]);
    untyped["addressType"] = Value::Null;
    let mut strange = slice("strange", &[]);
    strange["addressType"] = json!("IPX");
    let mut ports = slice("ports", &["10.1.0.1"]);
    ports["ports"] =
        json!([{ "name": "a", "port": 1 }, { "name": "a", "port": 2 }, { "name": "A_b" }]);
    let mut empty = slice("empty", &["10.1.0.1"]);
    empty["endpoints"] = json!([{ "addresses": [] }]);
    let mut zones = slice("zones", &["10.1.0.1"]);
    zones["endpoints"][0]["zone"] = json!("a");
    zones["endpoints"][0]["hints"] = json!({ "forZones": [{ "name": "a" }] });
    zones["endpoints"][0]["nodeName"] = json!("node-1");
    twins(&[
        ("POST", SERVICES, JSON, service.clone()),
        ("PUT", "/api/v1/namespaces/payments/services/billing", JSON, service.clone()),
        ("PATCH", "/api/v1/namespaces/payments/services/billing", MERGE, json!({ "metadata": { "annotations": { "a": "b" } } })),
        ("PATCH", "/api/v1/namespaces/payments/services/billing", MERGE, json!({ "spec": { "clusterIP": "10.96.200.200" } })),
        ("PATCH", "/api/v1/namespaces/payments/services/billing", MERGE, json!({ "spec": { "selector": { "app": "billing" } } })),
        ("PUT", "/api/v1/namespaces/payments/services/put", JSON, objects::service(PAYMENTS, "put", &[("https", 1)])),
        ("POST", SERVICES, JSON, headless),
        ("POST", SERVICES, JSON, external),
        ("POST", SERVICES, JSON, nowhere),
        ("POST", SERVICES, JSON, unnamed),
        ("POST", SERVICES, JSON, objects::object("v1", "Service", PAYMENTS, "bare")),
        ("POST", SERVICES, JSON, objects::service(PAYMENTS, "Capital", &[("a", 1)])),
        ("POST", SERVICES, JSON, objects::service(PAYMENTS, "9", &[("Bad_port", 1)])),
        ("GET", "/api/v1/namespaces/payments/services?fieldSelector=spec.type%3DExternalName", "", Value::Null),
        ("POST", SLICES, JSON, slice("a", &["10.1.0.1", "10.1.0.2"])),
        ("PUT", "/apis/discovery.k8s.io/v1/namespaces/payments/endpointslices/a", JSON, slice("a", &["10.1.0.3"])),
        ("POST", SLICES, JSON, slice("b", &[])),
        ("POST", SLICES, JSON, slice("c", &["not an address"])),
        ("POST", SLICES, JSON, six),
        ("POST", SLICES, JSON, untyped),
        ("POST", SLICES, JSON, strange),
        ("POST", SLICES, JSON, ports),
        ("POST", SLICES, JSON, empty),
        ("POST", SLICES, JSON, zones),
        ("GET", "/apis/discovery.k8s.io/v1/namespaces/payments/endpointslices?labelSelector=kubernetes.io%2Fservice-name%3Dbilling", "", Value::Null),
        ("GET", "/apis/discovery.k8s.io/v1/namespaces/payments/endpointslices?fieldSelector=addressType%3DIPv4", "", Value::Null),
        ("DELETE", "/api/v1/namespaces/payments/services/billing", "", Value::Null),
        ("DELETE", "/apis/discovery.k8s.io/v1/namespaces/payments/endpointslices/a", "", Value::Null),
    ])
    .await;
}

#[tokio::test]
async fn events_and_trust_bundles() {
    let pem = crate::support::pki::Pki::new().root.pem();
    let mut event = objects::object("events.k8s.io/v1", "Event", PAYMENTS, "a.1");
    for (key, value) in [
        ("eventTime", json!("2026-01-02T03:04:05.678901Z")),
        ("reportingController", json!("example.com/tlsward")),
        ("reportingInstance", json!("proxy-0")),
        ("action", json!("Load")),
        ("reason", json!("Loaded")),
        ("type", json!("Normal")),
        ("note", json!("a note")),
        (
            "regarding",
            json!({ "kind": "Secret", "namespace": PAYMENTS, "name": "a" }),
        ),
    ] {
        event[key] = value;
    }
    let named = |name: &str| {
        let mut event = event.clone();
        event["metadata"]["name"] = json!(name);
        event
    };
    let mut elsewhere = named("b.1");
    elsewhere["regarding"]["namespace"] = json!("other");
    let mut bare = objects::object("events.k8s.io/v1", "Event", PAYMENTS, "c.1");
    bare["note"] = json!("x".repeat(1025));
    let mut series = named("d.1");
    series["series"] = json!({ "count": 1 });
    let mut undated = named("e.1");
    undated["eventTime"] = json!("yesterday");
    let mut old = objects::object("v1", "Event", PAYMENTS, "f.1");
    old["involvedObject"] = json!({ "kind": "Secret", "namespace": PAYMENTS, "name": "a" });
    old["message"] = json!("an old one");
    let one = "/apis/events.k8s.io/v1/namespaces/payments/events/a.1";
    let mut signed = objects::trust_bundle("example.com:mine:roots", &pem);
    signed["spec"]["signerName"] = json!("example.com/mine");
    let mut misnamed = signed.clone();
    misnamed["metadata"]["name"] = json!("roots");
    twins(&[
        ("POST", EVENTS, JSON, event.clone()),
        ("GET", "/api/v1/namespaces/payments/events/a.1", "", Value::Null),
        ("PATCH", one, MERGE, json!({ "series": { "count": 2, "lastObservedTime": "2026-01-02T03:04:06.000000Z" } })),
        ("PATCH", one, MERGE, json!({ "note": "another" })),
        ("POST", EVENTS, JSON, elsewhere),
        ("POST", EVENTS, JSON, bare),
        ("POST", EVENTS, JSON, series),
        ("POST", EVENTS, JSON, undated),
        ("POST", "/api/v1/namespaces/payments/events", JSON, old),
        ("GET", EVENTS, "", Value::Null),
        ("GET", "/api/v1/namespaces/payments/events?fieldSelector=involvedObject.name%3Da,reason%3DLoaded", "", Value::Null),
        ("GET", "/apis/events.k8s.io/v1/namespaces/payments/events?fieldSelector=regarding.name%3Da", "", Value::Null),
        ("POST", BUNDLES, JSON, objects::trust_bundle("roots", &pem)),
        ("POST", BUNDLES, JSON, objects::trust_bundle("a:b", &pem)),
        ("POST", BUNDLES, JSON, objects::trust_bundle("junk", "junk")),
        ("POST", BUNDLES, JSON, signed),
        ("POST", BUNDLES, JSON, misnamed),
        ("GET", "/apis/certificates.k8s.io/v1beta1/clustertrustbundles?fieldSelector=spec.signerName%3Dexample.com%2Fmine", "", Value::Null),
        ("PATCH", "/apis/certificates.k8s.io/v1beta1/clustertrustbundles/roots", MERGE, json!({ "spec": { "trustBundle": "" } })),
        ("DELETE", "/apis/certificates.k8s.io/v1beta1/clustertrustbundles/roots", "", Value::Null),
    ])
    .await;
}

#[tokio::test]
async fn lists_watches_and_paths() {
    let list = |query: &'static str| ("GET", query, "", Value::Null);
    twins(&[
        ("POST", MAPS, JSON, objects::config_map(PAYMENTS, "a", &[("key", "value")])),
        ("POST", MAPS, JSON, objects::config_map(PAYMENTS, "b", &[("key", "value")])),
        list("/api/v1/namespaces/payments/configmaps?limit=1"),
        list("/api/v1/namespaces/payments/configmaps?limit=-1"),
        list("/api/v1/namespaces/payments/configmaps?limit=x"),
        list("/api/v1/namespaces/payments/configmaps?continue=x"),
        list("/api/v1/namespaces/payments/configmaps?resourceVersion=x"),
        list("/api/v1/namespaces/payments/configmaps?resourceVersion=1&resourceVersionMatch=Exact"),
        list("/api/v1/namespaces/payments/configmaps?resourceVersion=0&resourceVersionMatch=Exact"),
        list("/api/v1/namespaces/payments/configmaps?resourceVersionMatch=Exact"),
        list("/api/v1/namespaces/payments/configmaps?resourceVersionMatch=x&resourceVersion=1"),
        list("/api/v1/namespaces/payments/configmaps?sendInitialEvents=true"),
        list("/api/v1/namespaces/payments/configmaps?labelSelector=a%20in%20b"),
        list("/api/v1/namespaces/payments/configmaps?labelSelector=a%20b"),
        list("/api/v1/namespaces/payments/configmaps?labelSelector=(a)"),
        list("/api/v1/namespaces/payments/configmaps?fieldSelector=a"),
        list("/api/v1/namespaces/payments/configmaps?fieldSelector=data%3Da"),
        list("/api/v1/namespaces/payments/services?fieldSelector=data%3Da"),
        list("/api/v1/namespaces/payments/configmaps?fieldSelector=metadata.name%3Da"),
        list("/api/v1/namespaces/payments/configmaps?unknown=x"),
        list("/api/v1/namespaces/payments/configmaps?resourceVersion=1000000"),
        list("/api/v1/namespaces/payments/configmaps/a?resourceVersion=1000000"),
        list("/api/v1/namespaces/payments/configmaps?watch=true&resourceVersion=x"),
        list("/api/v1/namespaces/payments/configmaps?watch=true&timeoutSeconds=x"),
        list("/api/v1/namespaces/payments/configmaps?watch=true&timeoutSeconds=1&fieldSelector=metadata.name%3Da"),
        list("/api/v1/namespaces/payments/configmaps?watch=true&timeoutSeconds=1&resourceVersion=1"),
        list("/api/v1/namespaces/payments/configmaps?watch=true&timeoutSeconds=1&resourceVersion=0&fieldSelector=metadata.name%3Da&allowWatchBookmarks=true"),
        list("/api/v1/namespaces/payments/configmaps?watch=true&timeoutSeconds=1&sendInitialEvents=true"),
        list("/api/v1/namespaces/payments/configmaps?watch=true&resourceVersionMatch=NotOlderThan"),
        list("/api/v1/namespaces/payments/configmaps/a?resourceVersion=x"),
        list("/api/v1/namespaces/nowhere/configmaps"),
        list("/api/v1/namespaces/nowhere"),
        list("/api/v1/namespaces/payments"),
        list("/api/v1/widgets"),
        list("/apis/widgets.example.com/v1/widgets"),
        list("/apis/discovery.k8s.io/v7/endpointslices"),
        list("/apis/certificates.k8s.io/v1/clustertrustbundles"),
        list("/widgets"),
        list("/healthz"),
        list("/readyz"),
        ("PUT", MAPS, JSON, json!({})),
        ("PUT", "/api/v1/configmaps/a", JSON, json!({})),
        ("POST", "/api/v1/namespaces/payments/configmaps/a", JSON, json!({})),
        list("/api/v1/configmaps/a"),
    ])
    .await;
}
