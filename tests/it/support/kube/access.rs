//! Who asks, and what they may: bearer tokens, and RBAC as `plugin/pkg/auth/authorizer/rbac`
//! evaluates it over the Role and Binding objects in the store.

use std::collections::HashMap;

use serde_json::Value;

use super::request::Asked;
use super::store::{Key, Store};

/// A user as the server knows one.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    pub(super) name: String,
    groups: Vec<String>,
}

/// A token and what must still be there for it to count.
#[derive(Clone, Debug)]
struct Grant {
    identity: Identity,
    /// A ServiceAccount, and the Secret that the token was bound to: with their uids.
    bound: Vec<(Key, String)>,
}

#[derive(Default)]
pub(super) struct Tokens(HashMap<String, Grant>);

impl Tokens {
    /// Whoever has this token may do everything.
    pub(super) fn add_admin(&mut self, token: &str) {
        let identity = Identity {
            name: "admin".to_owned(),
            groups: vec![
                "system:masters".to_owned(),
                "system:authenticated".to_owned(),
            ],
        };
        let bound = Vec::new();
        self.0.insert(token.to_owned(), Grant { identity, bound });
    }

    /// For a ServiceAccount, as long as all that it is bound to exists.
    pub(super) fn add_service_account(
        &mut self,
        token: &str,
        namespace: &str,
        name: &str,
        bound: Vec<(Key, String)>,
    ) {
        let identity = Identity {
            name: format!("system:serviceaccount:{namespace}:{name}"),
            groups: vec![
                "system:serviceaccounts".to_owned(),
                format!("system:serviceaccounts:{namespace}"),
                "system:authenticated".to_owned(),
            ],
        };
        self.0.insert(token.to_owned(), Grant { identity, bound });
    }

    /// Who sends this `Authorization` header; `None` is 401. No credentials at all are nobody's,
    /// which is somebody: the real server lets them in to be refused by RBAC.
    pub(super) fn identify(&self, store: &Store, header: Option<&str>) -> Option<Identity> {
        let scheme = |header: &str| {
            let (scheme, token) = header.split_once(' ')?;
            scheme
                .eq_ignore_ascii_case("bearer")
                .then(|| token.trim().to_owned())
        };
        let Some(token) = header.and_then(scheme) else {
            return Some(Identity {
                name: "system:anonymous".to_owned(),
                groups: vec!["system:unauthenticated".to_owned()],
            });
        };
        let grant = self.0.get(&token)?;
        let there = |(key, uid): &(Key, String)| {
            let found = store.get(key);
            found.is_some_and(|it| it.value["metadata"]["uid"] == uid.as_str())
        };
        grant
            .bound
            .iter()
            .all(there)
            .then(|| grant.identity.clone())
    }
}

impl Identity {
    fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|it| it == group)
    }

    /// What every cluster lets this user do, or the store's roles.
    pub(super) fn may(&self, store: &Store, asked: &Asked) -> bool {
        self.is_in("system:masters")
            || self.may_as_anybody(asked)
            || bound_rules(store, self, asked).any(|rule| allows(rule, asked))
    }

    /// `system:discovery`, `system:public-info-viewer` and `system:basic-user`.
    fn may_as_anybody(&self, asked: &Asked) -> bool {
        const PUBLIC: [&str; 4] = ["/healthz", "/livez", "/readyz", "/version"];
        const DISCOVERY: [&str; 3] = ["/api", "/apis", "/openapi"];
        let within = |roots: &[&str]| {
            let path = asked.path.trim_end_matches('/');
            roots.iter().any(|root| {
                path == *root
                    || path
                        .strip_prefix(root)
                        .is_some_and(|rest| rest.starts_with('/'))
            })
        };
        if asked.resource.is_empty() {
            let read = asked.verb == "get";
            return read
                && (within(&PUBLIC) || self.is_in("system:authenticated") && within(&DISCOVERY));
        }
        self.is_in("system:authenticated")
            && asked.group == "authorization.k8s.io"
            && asked.resource == "selfsubjectaccessreviews"
            && asked.verb == "create"
    }
}

/// The rules of every role that is bound to this user where the request goes.
fn bound_rules<'a>(
    store: &'a Store,
    user: &'a Identity,
    asked: &'a Asked,
) -> impl Iterator<Item = &'a Value> {
    let everywhere = store.collection("clusterrolebindings");
    let here = store.collection("rolebindings").filter(|(key, _)| {
        let namespace = asked.namespace.as_deref();
        namespace.is_some_and(|it| it == key.namespace)
    });
    everywhere
        .chain(here)
        .filter(|(key, binding)| {
            let subjects = binding.value["subjects"].as_array();
            let mut subjects = subjects.into_iter().flatten();
            subjects.any(|subject| is_subject(user, subject, &key.namespace))
        })
        .filter_map(|(key, binding)| {
            let role = &binding.value["roleRef"];
            let name = role["name"].as_str()?.to_owned();
            store.get(&match role["kind"].as_str()? {
                "ClusterRole" => Key {
                    collection: "clusterroles",
                    namespace: String::new(),
                    name,
                },
                _ => Key {
                    collection: "roles",
                    namespace: key.namespace.clone(),
                    name,
                },
            })
        })
        .flat_map(|role| role.value["rules"].as_array().into_iter().flatten())
}

fn is_subject(user: &Identity, subject: &Value, binding_namespace: &str) -> bool {
    let name = subject["name"].as_str().unwrap_or_default();
    match subject["kind"].as_str() {
        Some("User") => user.name == name,
        Some("Group") => user.is_in(name),
        Some("ServiceAccount") => {
            let namespace = subject["namespace"].as_str().unwrap_or(binding_namespace);
            user.name == format!("system:serviceaccount:{namespace}:{name}")
        }
        _ => false,
    }
}

/// `rbac.RuleAllows`.
fn allows(rule: &Value, asked: &Asked) -> bool {
    let has = |field: &str, wanted: &str| {
        let values = rule[field].as_array().into_iter().flatten();
        values
            .filter_map(Value::as_str)
            .any(|it| it == "*" || it == wanted)
    };
    if !has("verbs", &asked.verb) {
        return false;
    }
    if asked.resource.is_empty() {
        let paths = rule["nonResourceURLs"].as_array().into_iter().flatten();
        return paths
            .filter_map(Value::as_str)
            .any(|it| match it.strip_suffix('*') {
                Some(start) => asked.path.starts_with(start),
                None => asked.path == it,
            });
    }
    let resource = match asked.subresource.as_str() {
        "" => asked.resource.clone(),
        subresource => format!("{}/{subresource}", asked.resource),
    };
    let names = rule["resourceNames"].as_array();
    let named = names.is_none_or(|names| {
        // A request that names nothing is not covered by a rule that does.
        let name = asked.name.as_deref().unwrap_or_default();
        names.is_empty() || !name.is_empty() && names.iter().any(|it| it == name)
    });
    has("apiGroups", &asked.group) && has("resources", &resource) && named
}
