//! The JSON of the API server, as far as it is used: everything else is skipped while it is read,
//! so that no object lies about in full.
//!
//! The shapes are those of the API reference (v1 of core and discovery.k8s.io, v1beta1 and
//! v1alpha1 of certificates.k8s.io); a test holds them against `k8s-openapi`.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::de::{DeserializeOwned, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use zeroize::Zeroizing;

use crate::cluster::{Backend, ObjectData};
use crate::config::kubernetes::{ObjectRef, ServiceObject, ServicePort};

/// Which Service an EndpointSlice belongs to (label; KEP-0752).
pub(super) const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// The annotations that anybody here reads: Kong's, its old ones, ours.
const ANNOTATIONS: [&str; 3] = ["konghq.com/", "configuration.konghq.com/", "tlsward/"];

/// What each object has.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Meta {
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) uid: String,
    pub(super) resource_version: String,
    creation_timestamp: Option<String>,
    #[serde(deserialize_with = "service_label")]
    labels: Option<String>,
    #[serde(deserialize_with = "known_annotations")]
    annotations: BTreeMap<String, String>,
}

impl Meta {
    pub(super) fn object(&self) -> ObjectRef {
        ObjectRef::new(self.namespace.clone(), self.name.clone())
    }
}

/// An object of one kind.
pub(super) trait Object: DeserializeOwned + Send {
    fn meta(&self) -> &Meta;
}

macro_rules! objects {
    ($($object:ident),+) => {
        $(impl Object for $object {
            fn meta(&self) -> &Meta {
                &self.metadata
            }
        })+
    };
}

objects!(Secret, ConfigMap, TrustBundle, Service, Slice);

/// v1 Secret.
#[derive(Deserialize)]
pub(super) struct Secret {
    #[serde(default)]
    metadata: Meta,
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    data: Option<BTreeMap<String, Bytes>>,
}

impl Secret {
    pub(super) fn into_data(self) -> ObjectData {
        ObjectData {
            uid: self.metadata.uid,
            kind: self.kind,
            entries: entries(self.data),
        }
    }
}

/// v1 ConfigMap.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ConfigMap {
    #[serde(default)]
    metadata: Meta,
    #[serde(default)]
    data: Option<BTreeMap<String, String>>,
    #[serde(default)]
    binary_data: Option<BTreeMap<String, Bytes>>,
}

impl ConfigMap {
    pub(super) fn into_data(self) -> ObjectData {
        let mut all = entries(self.binary_data);
        let texts = self.data.unwrap_or_default().into_iter();
        all.extend(texts.map(|(key, text)| (key, Zeroizing::new(text.into_bytes()))));
        ObjectData {
            uid: self.metadata.uid,
            kind: String::new(),
            entries: all,
        }
    }
}

/// certificates.k8s.io ClusterTrustBundle (KEP-3257).
#[derive(Deserialize)]
pub(super) struct TrustBundle {
    #[serde(default)]
    metadata: Meta,
    #[serde(default)]
    spec: TrustBundleSpec,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct TrustBundleSpec {
    trust_bundle: String,
}

impl TrustBundle {
    pub(super) fn into_data(self) -> ObjectData {
        let pem = Zeroizing::new(self.spec.trust_bundle.into_bytes());
        ObjectData {
            uid: self.metadata.uid,
            kind: String::new(),
            entries: BTreeMap::from([("ca.crt".to_owned(), pem)]),
        }
    }
}

fn entries(data: Option<BTreeMap<String, Bytes>>) -> BTreeMap<String, Zeroizing<Vec<u8>>> {
    let data = data.unwrap_or_default().into_iter();
    data.map(|(key, bytes)| (key, bytes.0)).collect()
}

/// A value in base64, which may be a key. `null` is an empty one, as the API server has it.
struct Bytes(Zeroizing<Vec<u8>>);

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        json.deserialize_option(Base64)
    }
}

/// Decodes where the text lies, so that no copy of it is made.
struct Base64;

impl<'de> Visitor<'de> for Base64 {
    type Value = Bytes;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text in base64")
    }

    fn visit_none<E>(self) -> Result<Bytes, E> {
        Ok(Bytes(Zeroizing::default()))
    }

    fn visit_some<D: Deserializer<'de>>(self, json: D) -> Result<Bytes, D::Error> {
        json.deserialize_str(self)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Bytes, E> {
        // In one allocation: one that grows leaves copies behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(text.len() / 4 * 3 + 3));
        // Without the reason, which would show a piece of it.
        BASE64_STANDARD
            .decode_vec(text, &mut bytes)
            .map_err(|_| E::custom("a value is not base64"))?;
        Ok(Bytes(bytes))
    }
}

/// v1 Service.
#[derive(Deserialize)]
pub(super) struct Service {
    #[serde(default)]
    metadata: Meta,
    #[serde(default)]
    spec: ServiceSpec,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ServiceSpec {
    #[serde(rename = "type")]
    kind: Option<String>,
    ports: Option<Vec<ServiceSpecPort>>,
    external_name: Option<String>,
}

#[derive(Deserialize)]
struct ServiceSpecPort {
    #[serde(default)]
    name: Option<String>,
    port: u16,
    #[serde(default)]
    protocol: Option<String>,
}

impl Service {
    /// Whether it has this annotation; of those that are kept.
    pub(super) fn has_annotation(&self, name: &str) -> bool {
        self.metadata.annotations.contains_key(name)
    }

    pub(super) fn into_object(self) -> ServiceObject {
        let external = self.spec.kind.as_deref() == Some("ExternalName");
        let ports = self.spec.ports.unwrap_or_default().into_iter();
        ServiceObject {
            object: self.metadata.object(),
            created_at: seconds(self.metadata.creation_timestamp.as_deref()),
            uid: self.metadata.uid,
            annotations: self.metadata.annotations,
            ports: ports
                .filter(|port| is_tcp(port.protocol.as_deref()))
                .map(|port| ServicePort {
                    name: port.name.unwrap_or_default(),
                    number: port.port,
                })
                .collect(),
            external_name: self.spec.external_name.filter(|_| external),
        }
    }
}

/// The API server writes RFC 3339; what is not counts as the oldest.
fn seconds(timestamp: Option<&str>) -> i64 {
    timestamp
        .and_then(|text| OffsetDateTime::parse(text, &Rfc3339).ok())
        .map_or(0, OffsetDateTime::unix_timestamp)
}

/// Absent means TCP, for Services and for slices.
fn is_tcp(protocol: Option<&str>) -> bool {
    protocol.is_none_or(|protocol| protocol == "TCP")
}

/// discovery.k8s.io/v1 EndpointSlice.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Slice {
    #[serde(default)]
    metadata: Meta,
    #[serde(default)]
    address_type: String,
    #[serde(default)]
    endpoints: Option<Vec<Endpoint>>,
    #[serde(default)]
    ports: Option<Vec<SlicePort>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Endpoint {
    #[serde(default)]
    addresses: Vec<String>,
    #[serde(default)]
    conditions: Option<Conditions>,
    #[serde(default)]
    hints: Option<Hints>,
    #[serde(default)]
    target_ref: Option<TargetRef>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Conditions {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Hints {
    for_zones: Option<Vec<Named>>,
    for_nodes: Option<Vec<Named>>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

#[derive(Deserialize)]
struct TargetRef {
    #[serde(default)]
    uid: Option<String>,
}

#[derive(Deserialize)]
struct SlicePort {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    port: Option<u16>,
    #[serde(default)]
    protocol: Option<String>,
}

impl Slice {
    /// The Service that it belongs to; `None`: to none.
    pub(super) fn service(&self) -> Option<ObjectRef> {
        let name = self.metadata.labels.clone()?;
        Some(ObjectRef::new(self.metadata.namespace.clone(), name))
    }

    /// Whether its addresses are names, which no Service with pods has.
    pub(super) fn is_fqdn(&self) -> bool {
        self.address_type == "FQDN"
    }

    /// Its endpoints; those of an address type that has no IP addresses are left out.
    pub(super) fn into_backends(self) -> Vec<Backend> {
        let ports: BTreeMap<String, u16> = self
            .ports
            .unwrap_or_default()
            .into_iter()
            .filter(|port| is_tcp(port.protocol.as_deref()))
            .filter_map(|port| Some((port.name.unwrap_or_default(), port.port?)))
            .collect();
        let endpoints = self.endpoints.unwrap_or_default().into_iter();
        endpoints
            .filter_map(|endpoint| endpoint.into_backend(&ports))
            .collect()
    }
}

impl Endpoint {
    fn into_backend(self, ports: &BTreeMap<String, u16>) -> Option<Backend> {
        let addresses: Vec<IpAddr> = self
            .addresses
            .iter()
            .filter_map(|address| address.parse().ok())
            .collect();
        let first = addresses.first()?;
        let Conditions {
            ready,
            serving,
            terminating,
        } = self.conditions.unwrap_or_default();
        // "A nil value should be interpreted as true", and "defers to the ready condition".
        let ready = ready.unwrap_or(true);
        let names = |named: Option<Vec<Named>>| {
            let named = named.unwrap_or_default().into_iter();
            named.map(|named| named.name).collect()
        };
        let hints = self.hints.unwrap_or_default();
        Some(Backend {
            id: self
                .target_ref
                .and_then(|target| target.uid)
                .filter(|uid| !uid.is_empty())
                .unwrap_or_else(|| format!("{first} {ports:?}")),
            addresses,
            ports: ports.clone(),
            ready,
            serving: serving.unwrap_or(ready),
            terminating: terminating.unwrap_or(false),
            zones: names(hints.for_zones),
            nodes: names(hints.for_nodes),
        })
    }
}

/// A page of a list.
#[derive(Deserialize)]
pub(super) struct List<T> {
    #[serde(default)]
    pub(super) metadata: ListMeta,
    #[serde(default = "nothing")]
    pub(super) items: Option<Vec<T>>,
}

fn nothing<T>() -> Option<T> {
    None
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ListMeta {
    pub(super) resource_version: String,
    #[serde(rename = "continue")]
    pub(super) continue_token: String,
}

/// What kind of line of a watch it is; the object is read by another pass, as the kind says.
#[derive(Deserialize)]
pub(super) struct EventKind {
    #[serde(rename = "type")]
    pub(super) kind: String,
}

/// The object of a line of a watch.
#[derive(Deserialize)]
pub(super) struct Carried<T> {
    pub(super) object: T,
}

/// A bookmark's object.
#[derive(Deserialize)]
pub(super) struct Bookmark {
    pub(super) metadata: Meta,
}

/// v1 Status: why a request was refused.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Status {
    pub(super) message: String,
    pub(super) reason: String,
    pub(super) code: u16,
    pub(super) details: Option<StatusDetails>,
}

impl Status {
    /// What stands between us and the server may answer with something else; then that is the
    /// message.
    pub(super) fn parse(json: &[u8]) -> Self {
        serde_json::from_slice(json).unwrap_or_else(|_| Self {
            message: String::from_utf8_lossy(json).into_owned(),
            ..Self::default()
        })
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct StatusDetails {
    pub(super) causes: Option<Vec<StatusCause>>,
    pub(super) retry_after_seconds: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct StatusCause {
    pub(super) reason: String,
}

/// The Service's name among the labels.
fn service_label<'de, D: Deserializer<'de>>(json: D) -> Result<Option<String>, D::Error> {
    let mut labels = json.deserialize_option(Picked(|key: &str| key == SERVICE_NAME))?;
    Ok(labels.remove(SERVICE_NAME))
}

fn known_annotations<'de, D: Deserializer<'de>>(
    json: D,
) -> Result<BTreeMap<String, String>, D::Error> {
    json.deserialize_option(Picked(|key: &str| {
        ANNOTATIONS.iter().any(|prefix| key.starts_with(prefix))
    }))
}

/// Reads those entries of a map of texts that are asked for.
struct Picked<F>(F);

impl<'de, F: Fn(&str) -> bool> Visitor<'de> for Picked<F> {
    type Value = BTreeMap<String, String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of texts")
    }

    fn visit_none<E>(self) -> Result<Self::Value, E> {
        Ok(BTreeMap::new())
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(BTreeMap::new())
    }

    fn visit_some<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_map(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut picked = BTreeMap::new();
        while let Some(key) = map.next_key::<String>()? {
            if (self.0)(&key) {
                picked.insert(key, map.next_value()?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(picked)
    }
}

#[cfg(test)]
mod tests;
