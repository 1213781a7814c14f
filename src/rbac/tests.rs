use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use super::*;
use crate::config::kubernetes::{Cluster, Known, ServiceObject, ServicePort};

fn parse(text: &str, cluster: &Cluster) -> Config {
    Config::parse_with(
        text,
        Path::new("/etc/tlsward/config.toml"),
        &BTreeMap::new(),
        cluster,
    )
    .unwrap_or_else(|problems| panic!("{problems}"))
}

/// Namespace, name and annotations.
type Described<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)]);

/// A pod of the namespace `payments`, and these Services.
fn cluster(services: &[Described<'_>]) -> Cluster {
    let known = services.iter().map(|(namespace, name, annotations)| {
        let object = ObjectRef::new(*namespace, *name);
        let annotations = annotations
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let service = ServiceObject {
            object: object.clone(),
            uid: "1".to_owned(),
            created_at: 0,
            annotations: annotations.collect(),
            ports: vec![ServicePort {
                name: "https".to_owned(),
                number: 443,
            }],
            external_name: None,
        };
        (object, Known::Exists(Arc::new(service)))
    });
    Cluster {
        own_namespace: Some("payments".to_owned()),
        services: known.collect(),
        ..Cluster::default()
    }
}

fn roles(needs: &Needs) -> Roles {
    Roles::new(needs, ObjectRef::new("payments", "tlsward"), "config.toml")
}

fn needs(text: &str, cluster: &Cluster) -> Needs {
    Needs::of(&parse(text, cluster), false)
}

const SERVICE: &str = r#"
[services.billing]
listen = "127.0.0.1:7001"
upstream = { service = "billing", port = "https" }

[services.billing.tls]
secret = "billing-client"
ca = { configmap = "shared/internal-ca" }
"#;

#[test]
fn a_service_gets_its_objects_by_name_each_with_its_reason() {
    let yaml = roles(&needs(SERVICE, &cluster(&[("payments", "billing", &[])]))).yaml();
    assert_eq!(
        yaml,
        r#"# What config.toml needs of the Kubernetes API, for the ServiceAccount payments/tlsward, as
# tlsward rbac says it. A rule with resourceNames lets these objects be read and no other:
# tlsward lists and watches each by its name.
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  name: tlsward
  namespace: payments
  labels:
    app.kubernetes.io/name: tlsward
rules:
  - apiGroups: [""]
    resources: [secrets]
    resourceNames:
      # identity of billing ([services.billing], line 7)
      - billing-client
    verbs: [get, list, watch]
  - apiGroups: [""]
    resources: [services]
    resourceNames:
      # upstream of billing
      - billing
    verbs: [get, list, watch]
  # the endpoints of billing
  # EndpointSlices have generated names, so the rule cannot name them; they hold addresses and no
  # secrets
  - apiGroups: [discovery.k8s.io]
    resources: [endpointslices]
    verbs: [list, watch]
  # what kubectl describe shows of certificates and mistakes; kubernetes.events = false does
  # without
  - apiGroups: [events.k8s.io]
    resources: [events]
    verbs: [create, patch]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: tlsward
  namespace: payments
  labels:
    app.kubernetes.io/name: tlsward
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: Role
  name: tlsward
subjects:
  - kind: ServiceAccount
    name: tlsward
    namespace: payments
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  name: tlsward-of-payments
  namespace: shared
  labels:
    app.kubernetes.io/name: tlsward
rules:
  - apiGroups: [""]
    resources: [configmaps]
    resourceNames:
      # CA certificates of billing ([services.billing], line 8)
      - internal-ca
    verbs: [get, list, watch]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: tlsward-of-payments
  namespace: shared
  labels:
    app.kubernetes.io/name: tlsward
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: Role
  name: tlsward-of-payments
subjects:
  - kind: ServiceAccount
    name: tlsward
    namespace: payments
"#
    );
}

/// What the YAML says is what the JSON says: read by the parser that kube reads kubeconfigs with.
fn documents(roles: &Roles) -> Vec<Value> {
    let yaml = roles.yaml();
    let documents: Vec<Value> = match yaml.lines().all(|line| line.starts_with('#')) {
        true => Vec::new(),
        false => yaml
            .split("\n---\n")
            .map(|one| serde_saphyr::from_str(one).unwrap_or_else(|error| panic!("{error}: {one}")))
            .collect(),
    };
    assert_eq!(roles.json()["items"], Value::from(documents.clone()));
    documents
}

/// The rules of the role in this namespace; `None`: of the ClusterRole. In the order of the role,
/// as `verbs resource: names`.
fn rules(needs: &Needs, namespace: Option<&str>) -> Vec<String> {
    let words = |value: &Value| {
        let words = value.as_array().into_iter().flatten();
        let words: Vec<&str> = words.filter_map(Value::as_str).collect();
        words.join(",")
    };
    let documents = documents(&roles(needs));
    let role = documents.iter().find(|it| {
        it["metadata"]["namespace"].as_str() == namespace
            && !it["rules"].is_null()
            && it["kind"]
                == if namespace.is_some() {
                    "Role"
                } else {
                    "ClusterRole"
                }
    });
    let rules = role.and_then(|role| role["rules"].as_array());
    rules
        .into_iter()
        .flatten()
        .map(|rule| {
            let (verbs, resources) = (words(&rule["verbs"]), words(&rule["resources"]));
            match words(&rule["resourceNames"]) {
                names if names.is_empty() => format!("{verbs} {resources}"),
                names => format!("{verbs} {resources}: {names}"),
            }
        })
        .collect()
}

#[test]
fn a_configuration_without_kubernetes_needs_no_role() {
    let text = r#"
[services.a]
listen = "127.0.0.1:7001"
upstream = "a.internal:443"
[services.a.tls]
cert = "tls.crt"
key = "tls.key"
ca = "ca.crt"
"#;
    let needs = needs(text, &Cluster::default());
    assert_eq!(needs, Needs::default());
    assert_eq!(documents(&roles(&needs)), [Value::Null; 0]);
    assert!(
        roles(&needs)
            .yaml()
            .starts_with("# config.toml needs nothing of the Kubernetes API")
    );
}

#[test]
fn what_annotations_name_is_named_with_the_annotation() {
    let annotations: &[_] = &[
        ("konghq.com/client-cert", "by-annotation"),
        ("konghq.com/ca-certificates-secrets", "ca-one,ca-two"),
        ("konghq.com/tls-verify", "true"),
    ];
    let text = SERVICE.split("[services.billing.tls]").next().unwrap();
    let needs = needs(text, &cluster(&[("payments", "billing", annotations)]));
    assert_eq!(
        rules(&needs, Some("payments"))[0],
        "get,list,watch secrets: by-annotation,ca-one,ca-two"
    );
    let yaml = roles(&needs).yaml();
    for comment in [
        "# identity of billing (annotation konghq.com/client-cert of Service payments/billing)",
        "# CA certificates of billing (annotation konghq.com/ca-certificates-secrets of Service",
    ] {
        assert!(yaml.contains(comment), "{yaml}");
    }
    assert!(!yaml.contains("NOTE"), "{yaml}");
}

#[test]
fn trust_bundles_are_named_in_a_cluster_role_of_their_own() {
    let text = SERVICE.replace(
        "{ configmap = \"shared/internal-ca\" }",
        "{ cluster_trust_bundle = \"example.com:internal:v1\" }",
    );
    let needs = needs(&text, &cluster(&[("payments", "billing", &[])]));
    assert_eq!(
        rules(&needs, None),
        ["get,list,watch clustertrustbundles: example.com:internal:v1"]
    );
    assert_eq!(rules(&needs, Some("shared")), [""; 0]);
}

#[test]
fn without_events_nothing_may_be_written() {
    let text = format!("[kubernetes]\nevents = false\n{SERVICE}");
    let needs = needs(&text, &cluster(&[("payments", "billing", &[])]));
    let yaml = roles(&needs).yaml();
    assert!(
        !yaml.contains("create") && !yaml.contains("patch"),
        "{yaml}"
    );
}

#[test]
fn secrets_that_are_watched_together_cannot_be_named_and_that_is_a_warning() {
    let text = format!("[kubernetes]\nsecrets = \"namespace\"\n{SERVICE}");
    let needs = needs(&text, &cluster(&[("payments", "billing", &[])]));
    assert_eq!(rules(&needs, Some("payments"))[0], "list,watch secrets");
    // ConfigMaps of that namespace are not needed, and Secrets of the other neither.
    assert!(!roles(&needs).yaml().contains("list,watch configmaps"));
    assert_eq!(rules(&needs, Some("shared")), ["list,watch configmaps"]);
    let yaml = roles(&needs).yaml();
    assert!(yaml.contains("# WARNING: kubernetes.secrets"), "{yaml}");
}

#[test]
fn with_many_upstreams_services_are_watched_together_as_they_are_followed() {
    let service = |n: usize| {
        format!(
            "[services.s{n}]\nlisten = \"127.0.0.1:{}\"\nupstream = {{ service = \"s{n}\" }}\ntls.client_auth = false\ntls.verify = \"none\"\n",
            7000 + n
        )
    };
    let text = |count: usize| (0..count).map(service).collect::<String>();
    let names: Vec<String> = (0..=SERVICES_BY_NAME).map(|n| format!("s{n}")).collect();
    let services: Vec<_> = names
        .iter()
        .map(|name| ("payments", name.as_str(), &[][..]))
        .collect();
    let cluster = cluster(&services);
    let few = needs(&text(SERVICES_BY_NAME), &cluster);
    assert!(rules(&few, Some("payments"))[0].starts_with("get,list,watch services: s0,s1,"));
    let many = needs(&text(SERVICES_BY_NAME + 1), &cluster);
    assert_eq!(rules(&many, Some("payments"))[0], "list,watch services");
}

#[test]
fn discovery_reads_services_and_endpoints_where_it_looks() {
    let text =
        |namespaces: &str| format!("[kubernetes.discovery]\nnamespaces = {namespaces}\n{SERVICE}");
    let cluster = cluster(&[("payments", "billing", &[])]);
    let some = needs(&text("[\"shop\", \"payments\"]"), &cluster);
    let follow = [
        "list,watch services",
        "list,watch endpointslices",
        "create,patch events",
    ];
    assert_eq!(rules(&some, Some("shop")), follow);
    assert_eq!(
        rules(&some, Some("payments")),
        [&["get,list,watch secrets: billing-client"], &follow[..]].concat()
    );
    assert_eq!(rules(&some, None), [""; 0]);

    let all = needs(&text("[\"*\"]"), &cluster);
    assert_eq!(rules(&all, None), follow);
    assert_eq!(
        rules(&all, Some("payments")),
        ["get,list,watch secrets: billing-client"]
    );
}

#[test]
fn an_external_name_has_no_endpoints() {
    let mut cluster = cluster(&[("payments", "billing", &[])]);
    for known in cluster.services.values_mut() {
        if let Known::Exists(service) = known {
            Arc::make_mut(service).external_name = Some("billing.example.com".to_owned());
        }
    }
    let needs = needs(SERVICE, &cluster);
    assert!(!roles(&needs).yaml().contains("endpointslices"));
}

#[test]
fn a_service_that_is_not_there_yet_is_noted_with_what_will_be_missing() {
    let mut cluster = Cluster {
        own_namespace: Some("payments".to_owned()),
        ..Cluster::default()
    };
    let object = ObjectRef::new("payments", "billing");
    cluster.services.insert(object, Known::Missing);
    let needs = needs(SERVICE, &cluster);
    assert_eq!(
        rules(&needs, Some("payments")),
        [
            "get,list,watch services: billing",
            "list,watch endpointslices",
            "create,patch events"
        ]
    );
    let yaml = roles(&needs).yaml();
    assert!(
        yaml.contains("# NOTE: service billing cannot be built of Service payments/billing"),
        "{yaml}"
    );
    assert!(yaml.contains("it does not exist yet"), "{yaml}");
}

#[test]
fn offline_the_text_says_what_only_the_cluster_knows() {
    let mut cluster = Cluster {
        own_namespace: Some("payments".to_owned()),
        ..Cluster::default()
    };
    let object = ObjectRef::new("payments", "billing");
    cluster.assumed.insert(object, BTreeMap::new());
    let needs = Needs::of(&parse(SERVICE, &cluster), true);
    assert_eq!(
        rules(&needs, Some("payments"))[0],
        "get,list,watch secrets: billing-client"
    );
    let yaml = roles(&needs).yaml();
    assert!(yaml.contains("# NOTE: made offline: Secrets and ConfigMaps that only annotations"));
    let off = format!("[kubernetes]\nannotations = false\n{SERVICE}");
    let needs = Needs::of(&parse(&off, &cluster), true);
    assert!(!roles(&needs).yaml().contains("NOTE"));
}

#[test]
fn a_name_that_yaml_takes_for_something_else_stands_in_quotes() {
    let text = SERVICE
        .replace("billing-client", "1e3")
        .replace("shared/internal-ca", "shared/no");
    let needs = needs(&text, &cluster(&[("payments", "billing", &[])]));
    assert_eq!(
        rules(&needs, Some("payments"))[0],
        "get,list,watch secrets: 1e3"
    );
    assert_eq!(
        rules(&needs, Some("shared")),
        ["get,list,watch configmaps: no"]
    );
}

#[test]
fn what_annotations_say_cannot_leave_a_comment() {
    let annotations: &[_] = &[(
        "konghq.com/client-cert",
        "x\nrules: [{apiGroups: ['*'], resources: ['*'], verbs: ['*']}]\u{2028}y: z",
    )];
    let text = SERVICE.split("[services.billing.tls]").next().unwrap();
    let needs = needs(text, &cluster(&[("payments", "billing", annotations)]));
    let yaml = roles(&needs).yaml();
    assert!(yaml.contains("# NOTE"), "{yaml}");
    assert_eq!(rules(&needs, Some("payments")).len(), 3, "{yaml}");
    assert!(!yaml.contains("\nrules: ["), "{yaml}");
}
