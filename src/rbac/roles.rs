//! Roles and their bindings, as YAML with the reason of each rule, or as JSON.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde_json::{Value, json};

use super::{Needs, Objects};
use crate::config::kubernetes::ObjectRef;

const GROUP: &str = "rbac.authorization.k8s.io";

/// The roles that allow what is needed, each with the binding that gives it to a ServiceAccount.
#[derive(Clone, Debug)]
pub(crate) struct Roles {
    account: ObjectRef,
    /// Where the needs come from, for people.
    file: String,
    roles: Vec<Role>,
    notes: Vec<String>,
}

#[derive(Clone, Debug)]
struct Role {
    /// `None`: a ClusterRole.
    namespace: Option<String>,
    rules: Vec<Rule>,
}

#[derive(Clone, Debug)]
struct Rule {
    why: Vec<String>,
    group: &'static str,
    resource: &'static str,
    /// By name: what for. Empty: every object.
    names: BTreeMap<String, BTreeSet<String>>,
    verbs: &'static [&'static str],
}

/// Of an object by its name.
const READ: &[&str] = &["get", "list", "watch"];
/// Of a collection, which is never read object by object.
const FOLLOW: &[&str] = &["list", "watch"];
const WRITE: &[&str] = &["create", "patch"];

impl Roles {
    /// For the ServiceAccount `account`. `file` is what the configuration is called.
    pub(crate) fn new(needs: &Needs, account: ObjectRef, file: &str) -> Self {
        let mut roles = Vec::new();
        let everywhere = rules_of_the_cluster(needs);
        for (namespace, needs) in &needs.namespaces {
            let mut rules = Vec::new();
            rules.extend(data("secrets", &needs.secrets));
            rules.extend(data("configmaps", &needs.config_maps));
            rules.extend(data("services", &needs.services));
            if !needs.slices.is_empty() {
                let of: Vec<&str> = needs.slices.iter().map(String::as_str).collect();
                let of = format!("the endpoints of {}", of.join(", "));
                rules.push(slices(of));
            }
            if needs.events {
                rules.push(events());
            }
            roles.push(Role {
                namespace: Some(namespace.clone()),
                rules,
            });
        }
        if !everywhere.is_empty() {
            roles.push(Role {
                namespace: None,
                rules: everywhere,
            });
        }
        Self {
            account,
            file: file.to_owned(),
            roles,
            notes: needs.notes.clone(),
        }
    }

    /// For people and for `kubectl apply -f -`. The same needs give the same text.
    pub(crate) fn yaml(&self) -> String {
        let mut text = String::new();
        let account = &self.account;
        let file = &self.file;
        if self.roles.is_empty() {
            comment(
                &mut text,
                "",
                &format!(
                    "{file} needs nothing of the Kubernetes API: no role, and no token in the pod \
                     (automountServiceAccountToken: false)."
                ),
            );
        } else {
            comment(
                &mut text,
                "",
                &format!(
                    "What {file} needs of the Kubernetes API, for the ServiceAccount {account}, as \
                     tlsward rbac says it. A rule with resourceNames lets these objects be read and \
                     no other: tlsward lists and watches each by its name."
                ),
            );
        }
        for note in &self.notes {
            comment(&mut text, "", &format!("NOTE: {note}."));
        }
        for (n, role) in self.roles.iter().enumerate() {
            if n > 0 {
                text.push_str("---\n");
            }
            self.write_role(&mut text, role);
            text.push_str("---\n");
            self.write_binding(&mut text, role);
        }
        text
    }

    /// A `List`, which kubectl takes as well.
    pub(crate) fn json(&self) -> Value {
        let items: Vec<Value> = self
            .roles
            .iter()
            .flat_map(|role| [self.role_json(role), self.binding_json(role)])
            .collect();
        json!({ "apiVersion": "v1", "kind": "List", "items": items })
    }

    /// Roles of one name in one namespace would be the same: those of another account, whose home
    /// is elsewhere, must not be overwritten.
    fn name(&self, role: &Role) -> String {
        let ObjectRef { namespace, name } = &self.account;
        if role.namespace.as_ref() == Some(namespace) {
            name.clone()
        } else {
            format!("{name}-of-{namespace}")
        }
    }

    fn write_role(&self, text: &mut String, role: &Role) {
        self.write_head(text, role, "");
        text.push_str("rules:\n");
        for rule in &role.rules {
            for why in &rule.why {
                comment(text, "  ", why);
            }
            let group = quoted(rule.group);
            line(text, &format!("  - apiGroups: [{group}]"));
            line(text, &format!("    resources: [{}]", rule.resource));
            if !rule.names.is_empty() {
                line(text, "    resourceNames:");
            }
            for (name, what_for) in &rule.names {
                for what in what_for {
                    comment(text, "      ", what);
                }
                line(text, &format!("      - {}", quoted(name)));
            }
            line(text, &format!("    verbs: [{}]", rule.verbs.join(", ")));
        }
    }

    fn write_binding(&self, text: &mut String, role: &Role) {
        self.write_head(text, role, "Binding");
        line(text, "roleRef:");
        line(text, &format!("  apiGroup: {GROUP}"));
        line(text, &format!("  kind: {}", role.kind()));
        line(text, &format!("  name: {}", quoted(&self.name(role))));
        line(text, "subjects:");
        line(text, "  - kind: ServiceAccount");
        line(text, &format!("    name: {}", quoted(&self.account.name)));
        let namespace = quoted(&self.account.namespace);
        line(text, &format!("    namespace: {namespace}"));
    }

    fn write_head(&self, text: &mut String, role: &Role, suffix: &str) {
        line(text, &format!("apiVersion: {GROUP}/v1"));
        line(text, &format!("kind: {}{suffix}", role.kind()));
        line(text, "metadata:");
        line(text, &format!("  name: {}", quoted(&self.name(role))));
        if let Some(namespace) = &role.namespace {
            line(text, &format!("  namespace: {}", quoted(namespace)));
        }
        line(text, "  labels:");
        line(text, "    app.kubernetes.io/name: tlsward");
    }

    fn role_json(&self, role: &Role) -> Value {
        let rules = role.rules.iter().map(|rule| {
            let mut value = json!({
                "apiGroups": [rule.group],
                "resources": [rule.resource],
                "verbs": rule.verbs,
            });
            if !rule.names.is_empty() {
                let names: Vec<&String> = rule.names.keys().collect();
                value["resourceNames"] = json!(names);
            }
            value
        });
        let rules: Vec<Value> = rules.collect();
        let mut value = self.head_json(role, "");
        value["rules"] = json!(rules);
        value
    }

    fn binding_json(&self, role: &Role) -> Value {
        let mut value = self.head_json(role, "Binding");
        value["roleRef"] = json!({
            "apiGroup": GROUP,
            "kind": role.kind(),
            "name": self.name(role),
        });
        value["subjects"] = json!([{
            "kind": "ServiceAccount",
            "name": self.account.name,
            "namespace": self.account.namespace,
        }]);
        value
    }

    fn head_json(&self, role: &Role, suffix: &str) -> Value {
        let mut metadata = json!({
            "name": self.name(role),
            "labels": { "app.kubernetes.io/name": "tlsward" },
        });
        if let Some(namespace) = &role.namespace {
            metadata["namespace"] = json!(namespace);
        }
        json!({
            "apiVersion": format!("{GROUP}/v1"),
            "kind": format!("{}{suffix}", role.kind()),
            "metadata": metadata,
        })
    }
}

impl Role {
    fn kind(&self) -> &'static str {
        match self.namespace {
            Some(_) => "Role",
            None => "ClusterRole",
        }
    }
}

/// Objects of the core group. `None` where none are needed: a rule without names is for all.
fn data(resource: &'static str, objects: &Objects) -> Option<Rule> {
    let (why, names, verbs) = match &objects.together {
        Some(why) => (vec![why.clone()], BTreeMap::new(), FOLLOW),
        None if objects.named.is_empty() => return None,
        None => (Vec::new(), objects.named.clone(), READ),
    };
    Some(Rule {
        why,
        group: "",
        resource,
        names,
        verbs,
    })
}

fn rules_of_the_cluster(needs: &Needs) -> Vec<Rule> {
    let everywhere = &needs.everywhere;
    let mut rules = Vec::new();
    if everywhere.services {
        rules.push(Rule {
            why: vec!["discovery in every namespace".to_owned()],
            group: "",
            resource: "services",
            names: BTreeMap::new(),
            verbs: FOLLOW,
        });
    }
    if everywhere.slices {
        rules.push(slices("the endpoints of discovered Services".to_owned()));
    }
    if !everywhere.trust_bundles.is_empty() {
        rules.push(Rule {
            why: vec!["ClusterTrustBundles are in no namespace".to_owned()],
            group: "certificates.k8s.io",
            resource: "clustertrustbundles",
            names: everywhere.trust_bundles.clone(),
            verbs: READ,
        });
    }
    if everywhere.events {
        rules.push(events());
    }
    rules
}

fn slices(what_for: String) -> Rule {
    Rule {
        why: vec![
            what_for,
            "EndpointSlices have generated names, so the rule cannot name them; they hold addresses \
             and no secrets"
                .to_owned(),
        ],
        group: "discovery.k8s.io",
        resource: "endpointslices",
        names: BTreeMap::new(),
        verbs: FOLLOW,
    }
}

fn events() -> Rule {
    Rule {
        why: vec![
            "what kubectl describe shows of certificates and mistakes; kubernetes.events = false does without"
                .to_owned(),
        ],
        group: "events.k8s.io",
        resource: "events",
        names: BTreeMap::new(),
        verbs: WRITE,
    }
}

/// A comment, in lines of some 100 letters. What annotations say stands in some: nothing in it ends
/// a comment.
fn comment(text: &mut String, indent: &str, words: &str) {
    const WIDTH: usize = 96;
    let mut row = String::new();
    for word in words.split(|c: char| c.is_whitespace() || c.is_control()) {
        if !row.is_empty() && row.chars().count() + word.chars().count() >= WIDTH {
            line(text, &format!("{indent}#{row}"));
            row.clear();
        }
        if !word.is_empty() {
            row.push(' ');
            row.push_str(word);
        }
    }
    line(text, &format!("{indent}#{row}"));
}

fn line(text: &mut String, line: &str) {
    writeln!(text, "{line}").expect("writing to a String cannot fail");
}

/// A name as a YAML scalar: as it is where no YAML 1.1 or 1.2 could take it for something else (a
/// number, `no`), else in quotes.
fn quoted(name: &str) -> String {
    const WORDS: [&str; 9] = ["y", "n", "yes", "no", "on", "off", "true", "false", "null"];
    let plain = name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(|byte| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte)
        })
        && !WORDS.contains(&name);
    match plain {
        true => name.to_owned(),
        // JSON's strings are YAML's.
        false => Value::from(name).to_string(),
    }
}
