//! The resources that are served, and what the schema says of their objects.

use k8s_openapi::api::authorization::v1::SelfSubjectAccessReview;
use k8s_openapi::api::certificates::v1beta1::ClusterTrustBundle;
use k8s_openapi::api::core::v1::{
    ConfigMap, Event as CoreEvent, Namespace, Node, Secret, Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::status::{Refusal, qualified};

/// One row of the API.
#[derive(Debug)]
pub(super) struct Resource {
    pub(super) group: &'static str,
    pub(super) version: &'static str,
    pub(super) plural: &'static str,
    pub(super) kind: &'static str,
    pub(super) namespaced: bool,
    /// Only POST, and nothing is kept.
    pub(super) review: bool,
    /// PUT makes what is not there.
    pub(super) created_by_put: bool,
    /// Fields that can be selected by, beside the name and the namespace.
    fields: &'static [&'static str],
    /// Through the schema and out again: types are held, unknown fields fall away.
    through_schema: fn(Value) -> Result<Value, serde_json::Error>,
}

const fn resource<T: DeserializeOwned + Serialize>(
    group_version: (&'static str, &'static str),
    plural: &'static str,
    kind: &'static str,
) -> Resource {
    Resource {
        group: group_version.0,
        version: group_version.1,
        plural,
        kind,
        namespaced: true,
        review: false,
        created_by_put: false,
        fields: &[],
        through_schema: |value| serde_json::to_value(serde_json::from_value::<T>(value)?),
    }
}

impl Resource {
    const fn of_the_cluster(mut self) -> Self {
        self.namespaced = false;
        self
    }

    const fn created_by_put(mut self) -> Self {
        self.created_by_put = true;
        self
    }

    const fn selectable_by(mut self, fields: &'static [&'static str]) -> Self {
        self.fields = fields;
        self
    }
}

/// The zero of Go's clock.
pub(super) const NO_TIME: &str = "0001-01-01T00:00:00.000000Z";

const CORE: (&str, &str) = ("", "v1");
const RBAC: (&str, &str) = ("rbac.authorization.k8s.io", "v1");

/// `AddFieldLabelConversionsForEvent`.
const EVENT_FIELDS: &[&str] = &[
    "involvedObject.kind",
    "involvedObject.namespace",
    "involvedObject.name",
    "involvedObject.uid",
    "involvedObject.apiVersion",
    "involvedObject.resourceVersion",
    "involvedObject.fieldPath",
    "reason",
    "reportingComponent",
    "type",
];

pub(super) static RESOURCES: [Resource; 14] = [
    resource::<Namespace>(CORE, "namespaces", "Namespace")
        .of_the_cluster()
        .selectable_by(&["status.phase"]),
    resource::<Node>(CORE, "nodes", "Node").of_the_cluster(),
    resource::<Secret>(CORE, "secrets", "Secret").selectable_by(&["type"]),
    resource::<ConfigMap>(CORE, "configmaps", "ConfigMap"),
    resource::<Service>(CORE, "services", "Service")
        .created_by_put()
        .selectable_by(&["spec.clusterIP", "spec.type"]),
    resource::<ServiceAccount>(CORE, "serviceaccounts", "ServiceAccount"),
    resource::<CoreEvent>(CORE, "events", "Event")
        .created_by_put()
        .selectable_by(EVENT_FIELDS),
    resource::<Event>(("events.k8s.io", "v1"), "events", "Event")
        .created_by_put()
        .selectable_by(EVENT_FIELDS),
    resource::<EndpointSlice>(
        ("discovery.k8s.io", "v1"),
        "endpointslices",
        "EndpointSlice",
    ),
    resource::<ClusterTrustBundle>(
        ("certificates.k8s.io", "v1beta1"),
        "clustertrustbundles",
        "ClusterTrustBundle",
    )
    .of_the_cluster()
    .selectable_by(&["spec.signerName"]),
    resource::<Role>(RBAC, "roles", "Role").created_by_put(),
    resource::<RoleBinding>(RBAC, "rolebindings", "RoleBinding").created_by_put(),
    resource::<ClusterRole>(RBAC, "clusterroles", "ClusterRole")
        .of_the_cluster()
        .created_by_put(),
    resource::<ClusterRoleBinding>(RBAC, "clusterrolebindings", "ClusterRoleBinding")
        .of_the_cluster()
        .created_by_put(),
];

/// Asked, never kept: not among [`RESOURCES`] that the store knows.
pub(super) static ACCESS_REVIEWS: Resource = {
    let mut it = resource::<SelfSubjectAccessReview>(
        ("authorization.k8s.io", "v1"),
        "selfsubjectaccessreviews",
        "SelfSubjectAccessReview",
    )
    .of_the_cluster();
    it.review = true;
    it
};

pub(super) fn find(group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
    all().find(|it| it.group == group && it.version == version && it.plural == plural)
}

pub(super) fn all() -> impl Iterator<Item = &'static Resource> {
    RESOURCES.iter().chain([&ACCESS_REVIEWS])
}

impl Resource {
    pub(super) fn qualified(&self) -> String {
        qualified(self.group, self.plural)
    }

    pub(super) fn api_version(&self) -> String {
        match self.group {
            "" => self.version.to_owned(),
            group => format!("{group}/{}", self.version),
        }
    }

    /// The group that refusals of an object name.
    pub(super) fn group_of_kind(&self) -> &'static str {
        match self.kind {
            "Event" => "",
            _ => self.group,
        }
    }

    /// Both kinds of Event are one collection with two faces.
    pub(super) fn collection(&self) -> &'static str {
        self.plural
    }

    /// Where in the store's object this field is.
    ///
    /// # Errors
    /// The message of the real server, for a field that is not to be selected by.
    pub(super) fn selectable(&self, path: &str) -> Result<String, String> {
        let meta = ["metadata.name", "metadata.namespace"];
        let kept = match (self.group, path.split_once('.')) {
            ("events.k8s.io", Some(("regarding", rest))) => format!("involvedObject.{rest}"),
            ("events.k8s.io", None) if path == "reportingController" => {
                "reportingComponent".to_owned()
            }
            _ => path.to_owned(),
        };
        if meta.contains(&path) || self.fields.contains(&kept.as_str()) {
            return Ok(kept);
        }
        Err(if self.group.is_empty() && !self.fields.is_empty() {
            format!("field label not supported: {path}")
        } else {
            format!(
                "{path:?} is not a known field selector: only \"metadata.name\", \
                 \"metadata.namespace\""
            )
        })
    }

    /// An object as the schema has it, and the paths of what fell away.
    ///
    /// # Errors
    /// 400, for another kind or version and for values of the wrong type.
    pub(super) fn decode(&self, object: Value) -> Result<(Value, Vec<String>), Refusal> {
        let given = |key: &str| object[key].as_str().map(str::to_owned);
        let (api_version, kind) = (given("apiVersion"), given("kind"));
        let wanted = self.api_version();
        if kind.as_ref().is_some_and(|it| it != self.kind)
            || api_version.as_ref().is_some_and(|it| *it != wanted)
        {
            return Err(Refusal::bad_request(format!(
                "{} in version {:?} cannot be handled as a {}: it is not one of {wanted}",
                kind.as_deref().unwrap_or(self.kind),
                api_version.as_deref().unwrap_or(&wanted),
                self.kind
            )));
        }
        let mut object = object;
        if object.is_object() {
            object["apiVersion"] = json!(wanted);
            object["kind"] = json!(self.kind);
        }
        without_nulls(&mut object);
        if let Some(series) = object.get_mut("series").and_then(Value::as_object_mut) {
            // The schema in Rust cannot be without it; Go takes its zero.
            let zero = || json!(NO_TIME);
            series.entry("lastObservedTime").or_insert_with(zero);
        }
        let before = object.clone();
        let after = (self.through_schema)(object).map_err(|error| {
            Refusal::bad_request(format!(
                "{} in version {:?} cannot be handled as a {}: json: {error}",
                self.kind, self.version, self.kind
            ))
        })?;
        let mut dropped = Vec::new();
        fallen("", &before, &after, &mut dropped);
        Ok((after, dropped))
    }

    /// An object of the store as this resource shows it.
    pub(super) fn show(&self, object: &Value) -> Value {
        let mut shown = object.clone();
        if self.kind == "Event" {
            // Go writes these even where they are empty.
            for (field, empty) in [
                ("eventTime", Value::Null),
                ("firstTimestamp", Value::Null),
                ("lastTimestamp", Value::Null),
                ("source", json!({})),
                ("reportingComponent", json!("")),
                ("reportingInstance", json!("")),
            ] {
                let newer = !self.group.is_empty() && field.starts_with("reporting");
                if shown[field].is_null() && !newer {
                    shown[field] = empty;
                }
            }
        }
        match self.group {
            "events.k8s.io" => renamed(&shown, false),
            _ => shown,
        }
    }

    /// The reverse of [`Self::show`].
    pub(super) fn keep(&self, object: Value) -> Value {
        let mut kept = match self.group {
            "events.k8s.io" => renamed(&object, true),
            _ => object,
        };
        if let ("Event", Some(map)) = (self.kind, kept.as_object_mut()) {
            map.retain(|_, value| *value != json!({}) && *value != "");
        }
        kept
    }
}

/// What `events.k8s.io/v1` calls a field, and what `v1` does.
const EVENT_NAMES: [(&str, &str); 7] = [
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
];

fn renamed(event: &Value, to_core: bool) -> Value {
    let mut out = Map::new();
    for (key, value) in event.as_object().into_iter().flatten() {
        let name = EVENT_NAMES.iter().find_map(|(new, old)| {
            let (from, to) = if to_core { (new, old) } else { (old, new) };
            (key == from).then_some(*to)
        });
        out.insert(name.unwrap_or(key).to_owned(), value.clone());
    }
    let version = if to_core { "v1" } else { "events.k8s.io/v1" };
    out.insert("apiVersion".to_owned(), json!(version));
    Value::Object(out)
}

/// JSON's null is an absent field to Go.
fn without_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(without_nulls);
        }
        Value::Array(list) => list.iter_mut().for_each(without_nulls),
        _ => {}
    }
}

/// Which fields of `before` are not in `after`.
fn fallen(place: &str, before: &Value, after: &Value, out: &mut Vec<String>) {
    match (before, after) {
        (Value::Object(before), Value::Object(after)) => {
            for (key, value) in before {
                let place = match place {
                    "" => key.clone(),
                    place => format!("{place}.{key}"),
                };
                match after.get(key) {
                    Some(kept) => fallen(&place, value, kept, out),
                    // What is empty may be left out.
                    None if matches!(value, Value::Object(it) if it.is_empty()) => {}
                    None => out.push(place),
                }
            }
        }
        (Value::Array(before), Value::Array(after)) => {
            for (at, (before, after)) in before.iter().zip(after).enumerate() {
                fallen(&format!("{place}[{at}]"), before, after, out);
            }
        }
        _ => {}
    }
}
