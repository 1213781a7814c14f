//! `/version`, `/healthz` and what `/api` and `/apis` say of the resources.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::resources::{self, Resource};

pub(super) enum Known {
    Object(Value),
    Text(&'static str),
}

/// The version that this server says it is.
pub(super) const VERSION: &str = "v1.36.0";

/// What is at a path that is no resource.
pub(super) fn answer(path: &str, trust_bundles: bool) -> Option<Known> {
    let served: Vec<&Resource> = resources::all()
        .filter(|it| trust_bundles || it.plural != "clustertrustbundles")
        .collect();
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    Some(Known::Object(match parts.as_slice() {
        ["healthz" | "livez" | "readyz"] => return Some(Known::Text("ok")),
        ["version"] => json!({
            "major": "1",
            "minor": "36",
            "gitVersion": VERSION,
            "gitCommit": "0000000000000000000000000000000000000000",
            "gitTreeState": "clean",
            "buildDate": "2026-04-22T00:00:00Z",
            "goVersion": "go1.26.2",
            "compiler": "gc",
            "platform": "linux/amd64",
        }),
        ["api"] => json!({
            "kind": "APIVersions",
            "versions": ["v1"],
            "serverAddressByClientCIDRs": [],
        }),
        ["apis"] => {
            let groups: BTreeSet<&str> = served
                .iter()
                .map(|it| it.group)
                .filter(|group| !group.is_empty())
                .collect();
            let groups = groups.into_iter().map(|group| entry(group, &served));
            json!({
                "kind": "APIGroupList",
                "apiVersion": "v1",
                "groups": groups.collect::<Vec<_>>(),
            })
        }
        ["apis", group] if served.iter().any(|it| it.group == *group) => {
            let mut entry = entry(group, &served);
            entry["kind"] = json!("APIGroup");
            entry["apiVersion"] = json!("v1");
            entry
        }
        ["api", version] => list("", version, &served)?,
        ["apis", group, version] => list(group, version, &served)?,
        _ => return None,
    }))
}

/// Whether there is such a group, be its resources among those here or not.
pub(super) fn is_group(name: &str) -> bool {
    [
        "",
        "apps",
        "batch",
        "certificates.k8s.io",
        "networking.k8s.io",
    ]
    .contains(&name)
        || resources::all().any(|it| it.group == name)
}

fn entry(group: &str, served: &[&Resource]) -> Value {
    let versions: BTreeSet<&str> = served
        .iter()
        .filter(|it| it.group == group)
        .map(|it| it.version)
        .collect();
    let versions: Vec<Value> = versions
        .into_iter()
        .map(|it| json!({ "groupVersion": format!("{group}/{it}"), "version": it }))
        .collect();
    json!({ "name": group, "versions": versions, "preferredVersion": versions[0] })
}

fn list(group: &str, version: &str, served: &[&Resource]) -> Option<Value> {
    let verbs = |it: &Resource| match it.review {
        true => json!(["create"]),
        false => json!([
            "create",
            "delete",
            "deletecollection",
            "get",
            "list",
            "patch",
            "update",
            "watch"
        ]),
    };
    let resources: Vec<Value> = served
        .iter()
        .filter(|it| it.group == group && it.version == version)
        .map(|it| {
            json!({
                "name": it.plural,
                "singularName": it.kind.to_lowercase(),
                "namespaced": it.namespaced,
                "kind": it.kind,
                "verbs": verbs(it),
            })
        })
        .collect();
    let group_version = match group {
        "" => version.to_owned(),
        group => format!("{group}/{version}"),
    };
    (!resources.is_empty()).then(|| {
        json!({
            "kind": "APIResourceList",
            "apiVersion": "v1",
            "groupVersion": group_version,
            "resources": resources,
        })
    })
}
