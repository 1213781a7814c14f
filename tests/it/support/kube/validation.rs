//! Defaults and validation of the kinds that tests use: `pkg/apis/*/validation` and
//! `pkg/apis/*/defaults.go` of Kubernetes, as far as a client can run into them.

use std::net::IpAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::resources::{NO_TIME, Resource};
use super::status::Mistake;

const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters \
     or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', \
     regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric \
     characters, '-' or '.', and must start and end with an alphanumeric character (e.g. \
     'example.com', regex used for validation is \
     '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const QUALIFIED: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and \
     must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or \
     '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric \
     characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. \
     'MyValue',  or 'my_value',  or '12345', regex used for validation is \
     '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const PORT: &str = "must be between 1 and 65535, inclusive";
const KEY: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' \
     (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is \
     '[-._a-zA-Z0-9]+')";

/// The most that a Secret or a ConfigMap may hold.
const MOST_DATA: usize = 1024 * 1024;

/// Fills in what the real server fills in.
pub(super) fn default(resource: &Resource, object: &mut Value, number: u64) {
    match resource.kind {
        "Secret" => {
            if let Some(texts) = object["stringData"].take().as_object() {
                for (key, text) in texts {
                    let text = text.as_str().unwrap_or_default();
                    object["data"][key] = json!(STANDARD.encode(text));
                }
            }
            remove(object, "stringData");
            set_if_absent(object, "type", json!("Opaque"));
        }
        "Service" => default_service(object, number),
        "EndpointSlice" => {
            for port in each(object, "ports") {
                set_if_absent(port, "name", json!(""));
                set_if_absent(port, "protocol", json!("TCP"));
            }
            if list(&object["endpoints"]).is_empty() {
                object["endpoints"] = Value::Null;
            }
        }
        "Namespace" => {
            let name = object["metadata"]["name"].clone();
            object["metadata"]["labels"]["kubernetes.io/metadata.name"] = name;
            object["spec"]["finalizers"] = json!(["kubernetes"]);
            object["status"]["phase"] = json!("Active");
        }
        _ => {}
    }
}

fn default_service(service: &mut Value, number: u64) {
    let spec = &mut service["spec"];
    set_if_absent(spec, "type", json!("ClusterIP"));
    set_if_absent(spec, "sessionAffinity", json!("None"));
    let external_name = spec["type"] == "ExternalName";
    for port in each(spec, "ports") {
        set_if_absent(port, "protocol", json!("TCP"));
        let number = port["port"].clone();
        if !external_name {
            set_if_absent(port, "targetPort", number);
        }
    }
    if !external_name {
        set_if_absent(spec, "internalTrafficPolicy", json!("Cluster"));
        // Whoever names neither addresses nor endpoints may have them of any kind.
        let (families, policy) = match spec["clusterIP"] == "None" && spec["selector"].is_null() {
            true => (json!(["IPv4", "IPv6"]), "RequireDualStack"),
            false => (json!(["IPv4"]), "SingleStack"),
        };
        set_if_absent(spec, "ipFamilies", families);
        set_if_absent(spec, "ipFamilyPolicy", json!(policy));
        if spec["clusterIP"].as_str().unwrap_or_default().is_empty() {
            let [.., c, d] = number.to_be_bytes();
            spec["clusterIP"] = json!(format!("10.96.{c}.{d}"));
        }
        let address = spec["clusterIP"].clone();
        set_if_absent(spec, "clusterIPs", json!([address]));
    }
    service["status"]["loadBalancer"] = json!({});
}

/// Takes over what a PUT may leave out: the server's own fields of a Service.
pub(super) fn inherit(resource: &Resource, new: &mut Value, old: &Value) {
    if resource.kind == "Service" && new["spec"]["type"] != "ExternalName" {
        for key in ["clusterIP", "clusterIPs"] {
            if new["spec"][key].is_null() && !old["spec"][key].is_null() {
                new["spec"][key] = old["spec"][key].clone();
            }
        }
    }
}

/// What is wrong with `new`, which takes the place of `old`, as this resource's strategy sees it.
/// The object is as the store keeps it.
pub(super) fn mistakes(resource: &Resource, new: &Value, old: Option<&Value>) -> Vec<Mistake> {
    let mut found = Vec::new();
    if !(resource.kind == "Event" && resource.group.is_empty()) {
        metadata(resource, new, &mut found);
    }
    match resource.kind {
        "Secret" => secret(new, old, &mut found),
        "ConfigMap" => config_map(new, old, &mut found),
        "Event" => event(resource, new, old, &mut found),
        "EndpointSlice" => endpoint_slice(new, old, &mut found),
        "Service" => service(new, old, &mut found),
        "ClusterTrustBundle" => trust_bundle(new, old, &mut found),
        _ => {}
    }
    found
}

fn metadata(resource: &Resource, object: &Value, found: &mut Vec<Mistake>) {
    let meta = &object["metadata"];
    let name = &meta["name"];
    let text = name.as_str().unwrap_or_default();
    let why = match resource.kind {
        "Namespace" | "Service" => (!is_label(text)).then_some(LABEL),
        "Role" | "RoleBinding" | "ClusterRole" | "ClusterRoleBinding" | "ClusterTrustBundle" => {
            (text.contains('/') || text.contains('%')).then_some("may not contain '/'")
        }
        _ => (!is_subdomain(text)).then_some(SUBDOMAIN),
    };
    if text.is_empty() {
        let why = "name or generateName is required";
        found.push(Mistake::required("metadata.name", why));
    } else if let Some(why) = why {
        found.push(Mistake::invalid("metadata.name", name, why));
    }
    for (key, value) in meta["labels"].as_object().into_iter().flatten() {
        let text = value.as_str().unwrap_or_default();
        if !is_qualified(key) {
            found.push(Mistake::invalid("metadata.labels", &json!(key), QUALIFIED));
        }
        if text.len() > 63 || !(text.is_empty() || is_name_part(text)) {
            found.push(Mistake::invalid("metadata.labels", value, LABEL_VALUE));
        }
    }
    for (key, _) in meta["annotations"].as_object().into_iter().flatten() {
        if !is_qualified(&key.to_lowercase()) {
            found.push(Mistake::invalid(
                "metadata.annotations",
                &json!(key),
                QUALIFIED,
            ));
        }
    }
}

fn secret(new: &Value, old: Option<&Value>, found: &mut Vec<Mistake>) {
    let size = data_keys(new, "data", found);
    if size > MOST_DATA {
        found.push(Mistake::too_long("data", MOST_DATA));
    }
    if new["type"] == "kubernetes.io/tls" {
        for key in ["tls.crt", "tls.key"] {
            if new["data"][key].is_null() {
                found.push(Mistake::required(&format!("data[{key}]"), ""));
            }
        }
    }
    let Some(old) = old else { return };
    immutable("type", &new["type"], &old["type"], found);
    kept_if_immutable(new, old, &["data"], found);
}

fn config_map(new: &Value, old: Option<&Value>, found: &mut Vec<Mistake>) {
    let size = data_keys(new, "data", found) + data_keys(new, "binaryData", found);
    if size > MOST_DATA {
        found.push(Mistake::too_long("", MOST_DATA));
    }
    let Some(old) = old else { return };
    kept_if_immutable(new, old, &["data", "binaryData"], found);
}

/// Holds the keys, and returns how many bytes the values have.
fn data_keys(object: &Value, field: &str, found: &mut Vec<Mistake>) -> usize {
    let mut size = 0;
    for (key, value) in object[field].as_object().into_iter().flatten() {
        let plain = |it: char| it.is_ascii_alphanumeric() || "-_.".contains(it);
        if key.is_empty() || !key.chars().all(plain) || [".", ".."].contains(&key.as_str()) {
            found.push(Mistake::invalid(
                &format!("{field}[{key}]"),
                &json!(key),
                KEY,
            ));
        }
        let text = value.as_str().unwrap_or_default();
        size += STANDARD.decode(text).map_or(text.len(), |it| it.len());
    }
    size
}

fn kept_if_immutable(new: &Value, old: &Value, fields: &[&str], found: &mut Vec<Mistake>) {
    if old["immutable"] != true {
        return;
    }
    let why = "field is immutable when `immutable` is set";
    if new["immutable"] != true {
        found.push(Mistake::forbidden("immutable", why));
    }
    for field in fields {
        if new[*field] != old[*field] {
            found.push(Mistake::forbidden(field, why));
        }
    }
}

fn immutable(field: &str, new: &Value, old: &Value, found: &mut Vec<Mistake>) {
    if new != old {
        found.push(Mistake::invalid(field, new, "field is immutable"));
    }
}

/// `pkg/apis/core/validation/events.go`: the strict part is for `events.k8s.io/v1` only. Fields
/// are named as the core version has them, whichever was asked.
fn event(resource: &Resource, new: &Value, old: Option<&Value>, found: &mut Vec<Mistake>) {
    let text = |field: &str| new[field].as_str().unwrap_or_default();
    let involved = new["involvedObject"]["namespace"]
        .as_str()
        .unwrap_or_default();
    let namespace = new["metadata"]["namespace"].as_str().unwrap_or_default();
    let mismatch = || {
        let value = json!(involved);
        Mistake::invalid(
            "involvedObject.namespace",
            &value,
            "does not match event.namespace",
        )
    };
    if new["eventTime"].is_null() {
        let elsewhere = match involved {
            "" => !["", "default"].contains(&namespace),
            involved => involved != namespace,
        };
        if elsewhere {
            found.push(mismatch());
        }
    } else {
        if involved.is_empty() && !["default", "kube-system"].contains(&namespace) {
            found.push(mismatch());
        }
        let controller = text("reportingComponent");
        if controller.is_empty() {
            found.push(Mistake::required("reportingController", ""));
        }
        if !is_qualified(controller) {
            let value = json!(controller);
            found.push(Mistake::invalid("reportingController", &value, QUALIFIED));
        }
        for field in ["reportingInstance", "action", "reason"] {
            if text(field).is_empty() {
                found.push(Mistake::required(field, ""));
            }
            too_long(field, text(field), 128, found);
        }
        too_long("message", text("message"), 1024, found);
    }
    if resource.group.is_empty() {
        return;
    }
    if new["series"] != old.map_or(Value::Null, |old| old["series"].clone()) {
        series(new, found);
    }
    match old {
        None => strict_event(new, found),
        Some(old) => {
            for field in [
                "involvedObject",
                "reason",
                "message",
                "source",
                "firstTimestamp",
                "lastTimestamp",
                "count",
                "type",
                "eventTime",
                "action",
                "related",
                "reportingComponent",
                "reportingInstance",
            ] {
                immutable(field, &new[field], &old[field], found);
            }
        }
    }
}

fn strict_event(new: &Value, found: &mut Vec<Mistake>) {
    if new["eventTime"].is_null() {
        found.push(Mistake::required("eventTime", ""));
    }
    let kind = new["type"].as_str().unwrap_or_default();
    if !["Normal", "Warning"].contains(&kind) {
        let why = format!("has invalid value: {kind}");
        found.push(Mistake::invalid("type", &json!(""), &why));
    }
    for field in ["firstTimestamp", "lastTimestamp", "count", "source"] {
        let empty = match &new[field] {
            Value::Null => true,
            Value::Number(number) => number.as_u64() == Some(0),
            Value::Object(map) => map.is_empty(),
            _ => false,
        };
        if !empty {
            found.push(Mistake::invalid(field, &json!(""), "needs to be unset"));
        }
    }
}

fn series(new: &Value, found: &mut Vec<Mistake>) {
    let series = &new["series"];
    if series.is_null() {
        return;
    }
    if series["count"].as_i64().unwrap_or_default() < 2 {
        found.push(Mistake::invalid(
            "series.count",
            &json!(""),
            "should be at least 2",
        ));
    }
    if series["lastObservedTime"] == NO_TIME {
        found.push(Mistake::required("series.lastObservedTime", ""));
    }
}

fn too_long(field: &str, text: &str, most: usize, found: &mut Vec<Mistake>) {
    if text.len() > most {
        let why = format!("can have at most {most} characters");
        found.push(Mistake::invalid(field, &json!(""), &why));
    }
}

/// Loopback addresses pass here, and do not pass the real server: upstreams of tests live there.
fn endpoint_slice(new: &Value, old: Option<&Value>, found: &mut Vec<Mistake>) {
    let kinds = ["FQDN", "IPv4", "IPv6"];
    let kind = new["addressType"].as_str().unwrap_or_default();
    if kind.is_empty() {
        found.push(Mistake::required("addressType", ""));
    } else if !kinds.contains(&kind) {
        found.push(Mistake::not_supported(
            "addressType",
            &new["addressType"],
            &kinds,
        ));
    }
    for (at, endpoint) in list(&new["endpoints"]).iter().enumerate() {
        let all = format!("endpoints[{at}].addresses");
        let addresses = list(&endpoint["addresses"]);
        if addresses.is_empty() {
            found.push(Mistake::required(&all, "must contain at least 1 address"));
        }
        for (number, address) in addresses.iter().enumerate() {
            let place = format!("{all}[{number}]");
            let text = address.as_str().unwrap_or_default();
            let ip = text.parse::<IpAddr>();
            match (kind, ip) {
                ("IPv4" | "IPv6", Err(_)) => {
                    let why = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
                    found.push(Mistake::invalid(&place, address, why));
                }
                ("IPv4", Ok(IpAddr::V6(_))) | ("IPv6", Ok(IpAddr::V4(_))) => {
                    let why = format!("must be an {kind} address");
                    found.push(Mistake::invalid(&all, address, &why));
                }
                _ => {}
            }
        }
    }
    let mut names = Vec::new();
    for (at, port) in list(&new["ports"]).iter().enumerate() {
        let place = format!("ports[{at}].name");
        let name = port["name"].as_str().unwrap_or_default();
        if !name.is_empty() && !is_label(name) {
            found.push(Mistake::invalid(&place, &port["name"], LABEL));
        }
        if names.contains(&name) {
            found.push(Mistake::duplicate(&place, &port["name"]));
        }
        names.push(name);
    }
    if let Some(old) = old {
        immutable(
            "addressType",
            &new["addressType"],
            &old["addressType"],
            found,
        );
    }
}

fn service(new: &Value, old: Option<&Value>, found: &mut Vec<Mistake>) {
    let spec = &new["spec"];
    let external_name = spec["type"] == "ExternalName";
    let headless = spec["clusterIP"] == "None";
    let ports = list(&spec["ports"]);
    if ports.is_empty() && !external_name && !headless {
        found.push(Mistake::required("spec.ports", ""));
    }
    let target = spec["externalName"].as_str().unwrap_or_default();
    if external_name && target.is_empty() {
        found.push(Mistake::required("spec.externalName", ""));
    } else if external_name && !is_subdomain(target) {
        found.push(Mistake::invalid(
            "spec.externalName",
            &spec["externalName"],
            SUBDOMAIN,
        ));
    }
    let mut names = Vec::new();
    for (at, port) in ports.iter().enumerate() {
        let place = format!("spec.ports[{at}].name");
        let name = port["name"].as_str().unwrap_or_default();
        if name.is_empty() && ports.len() > 1 {
            found.push(Mistake::required(&place, ""));
        } else if !name.is_empty() && !is_label(name) {
            found.push(Mistake::invalid(&place, &port["name"], LABEL));
        }
        if names.contains(&name) && !name.is_empty() {
            found.push(Mistake::duplicate(&place, &port["name"]));
        }
        names.push(name);
        if !(1..=65535).contains(&port["port"].as_i64().unwrap_or_default()) {
            let place = format!("spec.ports[{at}].port");
            found.push(Mistake::invalid(&place, &port["port"], PORT));
        }
        let target = &port["targetPort"];
        if target.as_i64().is_some_and(|it| !(1..=65535).contains(&it)) {
            let place = format!("spec.ports[{at}].targetPort");
            found.push(Mistake::invalid(&place, target, PORT));
        }
    }
    if let Some(old) = old {
        let both = |it: &Value| it["spec"]["type"] != "ExternalName";
        if both(new) && both(old) && spec["clusterIP"] != old["spec"]["clusterIP"] {
            let why = "may not change once set";
            found.push(Mistake::invalid(
                "spec.clusterIPs[0]",
                &json!([spec["clusterIP"]]),
                why,
            ));
        }
    }
}

fn trust_bundle(new: &Value, old: Option<&Value>, found: &mut Vec<Mistake>) {
    let spec = &new["spec"];
    let name = new["metadata"]["name"].as_str().unwrap_or_default();
    let signer = spec["signerName"].as_str().unwrap_or_default();
    let wanted = format!("{}:", signer.replace('/', ":"));
    if signer.is_empty() {
        if name.contains(':') {
            let why = "ClusterTrustBundle without signer name must not have \":\" in its name";
            found.push(Mistake::invalid("metadata.name", &json!(name), why));
        }
    } else if !name.starts_with(&wanted) {
        let why = format!(
            "ClusterTrustBundle for signerName {signer} must be named with prefix {wanted}"
        );
        found.push(Mistake::invalid("metadata.name", &json!(name), &why));
    }
    let bundle = spec["trustBundle"].as_str().unwrap_or_default();
    if !bundle.contains("-----BEGIN CERTIFICATE-----") {
        let why = "at least one trust anchor must be provided";
        found.push(Mistake::invalid(
            "spec.trustBundle",
            &json!("<value omitted>"),
            why,
        ));
    }
    if let Some(old) = old {
        immutable(
            "spec.signerName",
            &spec["signerName"],
            &old["spec"]["signerName"],
            found,
        );
    }
}

pub(super) fn is_label(text: &str) -> bool {
    let inner = |it: u8| it.is_ascii_lowercase() || it.is_ascii_digit() || it == b'-';
    (1..=63).contains(&text.len())
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

fn is_subdomain(text: &str) -> bool {
    text.len() <= 253
        && text
            .split('.')
            .all(|part| is_label(part) || part.len() > 63)
}

/// `prefix/name`, the prefix being a domain and not needed.
fn is_qualified(text: &str) -> bool {
    match text.split_once('/') {
        Some((prefix, name)) => is_subdomain(prefix) && is_name_part(name),
        None => is_name_part(text),
    }
}

fn is_name_part(text: &str) -> bool {
    let inner = |it: u8| it.is_ascii_alphanumeric() || b"-_.".contains(&it);
    let edge = |it: Option<&u8>| it.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    bytes.len() <= 63
        && bytes.iter().all(|it| inner(*it))
        && edge(bytes.first())
        && edge(bytes.last())
}

fn set_if_absent(object: &mut Value, key: &str, value: Value) {
    if object[key].is_null() {
        object[key] = value;
    }
}

fn remove(object: &mut Value, key: &str) {
    if let Some(map) = object.as_object_mut() {
        map.remove(key);
    }
}

fn each<'a>(object: &'a mut Value, field: &str) -> impl Iterator<Item = &'a mut Value> {
    let list = object.get_mut(field).and_then(Value::as_array_mut);
    list.into_iter().flatten()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}
