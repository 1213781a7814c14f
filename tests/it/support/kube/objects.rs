//! Objects, as a manifest would have them.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};

use super::resources;
use crate::support::pki::Issued;

/// The start of any object. Objects of the cluster have the empty namespace.
pub(crate) fn object(api_version: &str, kind: &str, namespace: &str, name: &str) -> Value {
    let mut object = json!({
        "apiVersion": api_version,
        "kind": kind,
        "metadata": { "name": name },
    });
    if !namespace.is_empty() {
        object["metadata"]["namespace"] = json!(namespace);
    }
    object
}

/// A Secret of this type; the values are not yet base64.
pub(crate) fn secret(namespace: &str, name: &str, kind: &str, data: &[(&str, &str)]) -> Value {
    let mut secret = object("v1", "Secret", namespace, name);
    secret["type"] = json!(kind);
    for (key, value) in data {
        secret["data"][key] = json!(base64(value));
    }
    secret
}

/// A `kubernetes.io/tls` Secret.
pub(crate) fn tls_secret(namespace: &str, name: &str, issued: &Issued) -> Value {
    let data = [
        ("tls.crt", issued.chain_pem()),
        ("tls.key", issued.key_pem()),
    ];
    let data = data.each_ref().map(|(key, value)| (*key, value.as_str()));
    secret(namespace, name, "kubernetes.io/tls", &data)
}

pub(crate) fn config_map(namespace: &str, name: &str, data: &[(&str, &str)]) -> Value {
    let mut map = object("v1", "ConfigMap", namespace, name);
    for (key, value) in data {
        map["data"][key] = json!(value);
    }
    map
}

/// A Service with a cluster IP and these named ports.
pub(crate) fn service(namespace: &str, name: &str, ports: &[(&str, u16)]) -> Value {
    let mut service = object("v1", "Service", namespace, name);
    let ports = ports
        .iter()
        .map(|(name, port)| json!({ "name": name, "port": port }));
    service["spec"]["ports"] = ports.collect();
    service
}

/// `object` with an annotation more.
pub(crate) fn annotated(mut object: Value, key: &str, value: &str) -> Value {
    object["metadata"]["annotations"][key] = json!(value);
    object
}

/// `object` with a label more.
pub(crate) fn labelled(mut object: Value, key: &str, value: &str) -> Value {
    object["metadata"]["labels"][key] = json!(value);
    object
}

/// An IPv4 EndpointSlice of a Service: ready addresses, one named port.
pub(crate) fn endpoint_slice(
    namespace: &str,
    name: &str,
    service: &str,
    port: (&str, u16),
    addresses: &[&str],
) -> Value {
    let slice = object("discovery.k8s.io/v1", "EndpointSlice", namespace, name);
    let mut slice = labelled(slice, "kubernetes.io/service-name", service);
    slice["addressType"] = json!("IPv4");
    slice["ports"] = json!([{ "name": port.0, "port": port.1 }]);
    let endpoints = addresses.iter().map(|address| {
        json!({
            "addresses": [address],
            "conditions": { "ready": true, "serving": true, "terminating": false },
        })
    });
    slice["endpoints"] = endpoints.collect();
    slice
}

/// A ClusterTrustBundle without a signer.
pub(crate) fn trust_bundle(name: &str, pem: &str) -> Value {
    let version = "certificates.k8s.io/v1beta1";
    let mut bundle = object(version, "ClusterTrustBundle", "", name);
    bundle["spec"]["trustBundle"] = json!(pem);
    bundle
}

pub(super) fn base64(text: &str) -> String {
    STANDARD.encode(text)
}

/// The first certificate of a PEM file.
pub(crate) fn der(pem: &str) -> Vec<u8> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    der.to_vec()
}

/// Where an object lies, or its collection.
pub(crate) fn path(object: &Value, with_name: bool) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (version, kind) = (text(&object["apiVersion"]), text(&object["kind"]));
    let resource = resources::all()
        .find(|it| it.api_version() == version && it.kind == kind)
        .unwrap_or_else(|| panic!("{version} {kind} is not among the resources of the kit"));
    let mut path = match resource.group {
        "" => format!("/api/{version}"),
        _ => format!("/apis/{version}"),
    };
    if resource.namespaced {
        let namespace = text(&object["metadata"]["namespace"]);
        assert!(!namespace.is_empty(), "a {kind} has a namespace");
        path += &format!("/namespaces/{namespace}");
    }
    path += &format!("/{}", resource.plural);
    if with_name {
        path += &format!("/{}", text(&object["metadata"]["name"]));
    }
    path
}
