//! The keys that speak of Kubernetes.

use super::{Default, Key, Kind};

pub(super) const KUBERNETES: &[Key] = &[
    Key {
        name: "kubeconfig",
        kind: Kind::Text("a path", "/etc/tlsward/kubeconfig"),
        default: Default::Unset(
            "the pod's service account; outside of a cluster KUBECONFIG or ~/.kube/config",
        ),
        doc: "How to reach the API server, and as whom.",
        elsewhere: &[],
    },
    Key {
        name: "context",
        kind: Kind::Text("the name of a context", "staging"),
        default: Default::Unset("the kubeconfig's current one"),
        doc: "Which context of the kubeconfig counts.",
        elsewhere: &[],
    },
    Key {
        name: "namespace",
        kind: Kind::Text("the name of a namespace", "payments"),
        default: Default::Unset("the pod's own"),
        doc: "Where objects are that are named without a namespace.",
        elsewhere: &[],
    },
    Key {
        name: "annotations",
        kind: Kind::Bool,
        default: Default::Is("true"),
        doc: "Whether annotations of Services that are upstreams count: konghq.com/… and tlsward/….",
        elsewhere: &[],
    },
    Key {
        name: "events",
        kind: Kind::Bool,
        default: Default::Is("true"),
        doc: "Whether Events are written, which kubectl describe shows.",
        elsewhere: &[],
    },
    Key {
        name: "zone",
        kind: Kind::Text("the name of a zone, or nothing", "${ZONE:-}"),
        default: Default::Unset("hints for zones are not followed"),
        doc: "The zone in which tlsward runs: endpoints that are meant for it are preferred.",
        elsewhere: &[],
    },
    Key {
        name: "node",
        kind: Kind::Text("the name of a node, or nothing", "${NODE_NAME:-}"),
        default: Default::Unset("hints for nodes are not followed"),
        doc: "The node on which tlsward runs: endpoints that are meant for it are preferred.",
        elsewhere: &[],
    },
    Key {
        name: "secrets",
        kind: Kind::Choice(&["named", "namespace"]),
        default: Default::Is("\"named\""),
        doc: "How Secrets and ConfigMaps are watched: each by its name, or all of a namespace at once, for hundreds of them; the role must then allow reading all.",
        elsewhere: &[],
    },
];

pub(super) const DISCOVERY: &[Key] = &[
    Key {
        name: "namespaces",
        kind: Kind::Texts("a namespace, or \"*\" alone for all", "payments"),
        default: Default::Unset("that of [kubernetes], or the pod's own"),
        doc: "Where Services are discovered.",
        elsewhere: &[("Kong", "watch-namespace")],
    },
    Key {
        name: "selector",
        kind: Kind::Text("a label selector", "app.kubernetes.io/part-of=shop"),
        default: Default::Unset("every Service"),
        doc: "Which Services are discovered, by their labels, in kubectl's syntax.",
        elsewhere: &[],
    },
    Key {
        name: "listen_address",
        kind: Kind::Text("an IP address", "127.0.0.1"),
        default: Default::Is("\"127.0.0.1\""),
        doc: "The address of listeners of which tlsward/listen names the port. Others than loopback need allow_remote_callers = true in [defaults].",
        elsewhere: &[],
    },
    Key {
        name: "socket_directory",
        kind: Kind::Text("a path", "/run/tlsward/services"),
        default: Default::Unset("unix sockets are refused"),
        doc: "The directory of listeners of which tlsward/listen names a unix socket.",
        elsewhere: &[],
    },
];

pub(super) const BACKEND: &[Key] = &[
    Key {
        name: "service",
        kind: Kind::Text("the name of a Service", "billing"),
        default: Default::Required,
        doc: "The Kubernetes Service over whose endpoints connections are spread.",
        elsewhere: &[],
    },
    Key {
        name: "namespace",
        kind: Kind::Text("the name of a namespace", "payments"),
        default: Default::Unset("that of [kubernetes], or the pod's own"),
        doc: "Where the Service is.",
        elsewhere: &[],
    },
    Key {
        name: "port",
        kind: Kind::TextOrPort("the name or number of a port", "https"),
        default: Default::Unset("the Service's only one"),
        doc: "Which port of the Service.",
        elsewhere: &[],
    },
];

pub(super) const CA: &[Key] = &[
    Key {
        name: "secret",
        kind: Kind::Text("a name or \"namespace/name\"", "payments/ca"),
        default: Default::Unset("one of these four is needed"),
        doc: "A Secret with CA certificates.",
        elsewhere: &[],
    },
    Key {
        name: "configmap",
        kind: Kind::Text("a name or \"namespace/name\"", "payments/ca"),
        default: Default::Unset("one of these four is needed"),
        doc: "A ConfigMap with CA certificates.",
        elsewhere: &[("Kubernetes", "configMap"), ("Kubernetes", "config_map")],
    },
    Key {
        name: "cluster_trust_bundle",
        kind: Kind::Text("a name", "example.com:ca:v1"),
        default: Default::Unset("one of these four is needed"),
        doc: "A ClusterTrustBundle, where the API server has them.",
        elsewhere: &[
            ("Kubernetes", "clusterTrustBundle"),
            ("Kubernetes", "trust_bundle"),
        ],
    },
    Key {
        name: "credential",
        kind: Kind::Text("a name", "ca"),
        default: Default::Unset("one of these four is needed"),
        doc: "A credential of systemd (LoadCredential=NAME:…): one PEM file.",
        elsewhere: &[("systemd", "LoadCredential")],
    },
    Key {
        name: "key",
        kind: Kind::Text("the name of an entry", "ca.crt"),
        default: Default::Is("\"ca.crt\""),
        doc: "Which entry of the Secret or ConfigMap; a trust bundle has only one.",
        elsewhere: &[],
    },
];
