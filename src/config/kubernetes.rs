//! What a configuration says of Kubernetes, and what is known of the cluster when one is read:
//! plain values, none of them of a client library.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;

pub(super) mod names;

/// An object by its namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectRef {
    /// The namespace: an RFC 1123 label.
    pub namespace: String,
    /// The name: an RFC 1123 subdomain.
    pub name: String,
}

impl ObjectRef {
    /// An object of a namespace. Does not check either.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

/// As [`fmt::Display`] writes it.
impl serde::Serialize for ObjectRef {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// `namespace/name`.
impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// An object that holds CA certificates.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CaObject {
    /// `ca = { secret = "…", key = "…" }`, an annotation's Secret, or `ca.crt` of `secret`.
    Secret {
        /// Which.
        object: ObjectRef,
        /// The entry of its data.
        key: CaKey,
    },
    /// `ca = { configmap = "…", key = "…" }`, or an annotation's ConfigMap.
    ConfigMap {
        /// Which.
        object: ObjectRef,
        /// The entry of its data.
        key: CaKey,
    },
    /// `ca = { cluster_trust_bundle = "…" }`: a ClusterTrustBundle by name
    /// (certificates.k8s.io, KEP-3257).
    TrustBundle {
        /// The object's name; it belongs to no namespace.
        name: String,
    },
}

/// `Secret namespace/name, ca.crt`.
impl fmt::Display for CaObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, object, key) = match self {
            Self::Secret { object, key } => ("Secret", object, key),
            Self::ConfigMap { object, key } => ("ConfigMap", object, key),
            Self::TrustBundle { name } => return write!(f, "ClusterTrustBundle {name}"),
        };
        match key {
            CaKey::Named(name) => write!(f, "{kind} {object}, {name}"),
            CaKey::CertOrCaCrt => write!(f, "{kind} {object}"),
        }
    }
}

/// Which entry of an object holds the certificates.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CaKey {
    /// This one. Default `ca.crt`.
    Named(String),
    /// `cert`, and where that is absent `ca.crt`: Kong's CA Secrets and ConfigMaps.
    CertOrCaCrt,
}

impl CaKey {
    /// What the entry is called where nobody says otherwise.
    pub const DEFAULT: &str = "ca.crt";
}

/// `[kubernetes]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kubernetes {
    /// `kubeconfig` (absolute). Default `None`: the service account of the pod, and outside of a
    /// cluster what `KUBECONFIG` names or `~/.kube/config`.
    pub kubeconfig: Option<PathBuf>,
    /// `context` of the kubeconfig. Default `None`: its current one.
    pub context: Option<String>,
    /// `namespace`, which names without one belong to. Default: that of the pod.
    pub namespace: Option<String>,
    /// `annotations`: whether Services' annotations are read. Default true.
    pub annotations: bool,
    /// `events`: whether Events are written. Default true.
    pub events: bool,
    /// `zone`, for the zone hints of endpoints. Default `None`: hints are not followed.
    pub zone: Option<String>,
    /// `node`, for the node hints of endpoints. Default `None`.
    pub node: Option<String>,
    /// `secrets`: how Secrets and ConfigMaps are watched. Default `named`.
    pub secrets: SecretWatch,
    /// `[kubernetes.discovery]`; `None`: the file has no such table.
    pub discovery: Option<Discovery>,
}

impl Default for Kubernetes {
    fn default() -> Self {
        Self {
            kubeconfig: None,
            context: None,
            namespace: None,
            annotations: true,
            events: true,
            zone: None,
            node: None,
            secrets: SecretWatch::Named,
            discovery: None,
        }
    }
}

/// `kubernetes.secrets`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecretWatch {
    /// One watch for each object by its name, so that the role can be limited with
    /// `resourceNames`.
    Named,
    /// One watch for each namespace and kind: for hundreds of Secrets, at the price of a role that
    /// may read every Secret of the namespace.
    Namespace,
}

/// `[kubernetes.discovery]`: each Service that carries `tlsward/listen` is a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discovery {
    /// `namespaces`. Default: the pod's own.
    pub namespaces: Namespaces,
    /// `selector`: a label selector as kubectl takes it. Default `None`: every Service.
    pub selector: Option<String>,
    /// `listen_address`, with which a port in `tlsward/listen` is completed. Default 127.0.0.1.
    pub listen_address: IpAddr,
    /// `socket_directory` (absolute), in which unix sockets of `tlsward/listen` lie. Default
    /// `None`: unix sockets are refused.
    pub socket_directory: Option<PathBuf>,
}

impl Discovery {
    /// The default of [`Self::listen_address`].
    pub const LISTEN_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
}

/// `kubernetes.discovery.namespaces`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Namespaces {
    /// `["*"]`: every one.
    All,
    /// These; never empty.
    These(BTreeSet<String>),
}

/// Where connections of a service go that names a Kubernetes Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceBackend {
    /// The Service.
    pub service: ObjectRef,
    /// The name of the Service's port; empty where its only port has none. EndpointSlices carry
    /// the same name.
    pub port: String,
}

/// `Service namespace/name, port https`.
impl fmt::Display for ServiceBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Service {}", self.service)?;
        match self.port.as_str() {
            "" => Ok(()),
            port => write!(f, ", port {port}"),
        }
    }
}

/// What is known of the cluster when a configuration is read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cluster {
    /// The namespace of the pod that this process runs in, if it runs in one.
    pub own_namespace: Option<String>,
    /// Services that the file names as upstream, and those that were discovered.
    pub services: BTreeMap<ObjectRef, Known>,
    /// Which of them match `[kubernetes.discovery]`.
    pub discovered: BTreeSet<ObjectRef>,
    /// Services that count as existing where nothing is known of them, with these annotations and
    /// whatever port is asked for: to learn what the file alone says. Default: none.
    pub assumed: BTreeMap<ObjectRef, BTreeMap<String, String>>,
}

/// What is known of one Service.
#[derive(Clone, Debug, PartialEq)]
pub enum Known {
    /// It exists, and this is its newest state.
    Exists(Arc<ServiceObject>),
    /// There is no Service of this name.
    Missing,
}

/// A Service, as far as it concerns tlsward.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceObject {
    /// Its name.
    pub object: ObjectRef,
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.creationTimestamp`, seconds since 1970.
    pub created_at: i64,
    /// `metadata.annotations`.
    pub annotations: BTreeMap<String, String>,
    /// `spec.ports` of TCP.
    pub ports: Vec<ServicePort>,
    /// `spec.externalName`, where the type is `ExternalName`.
    pub external_name: Option<String>,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name; empty where the Service gives none.
    pub name: String,
    /// `port`.
    pub number: u16,
}
