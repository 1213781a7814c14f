//! tlsward in a cluster: Secrets, Services, endpoints and Events of an API server. The one in this
//! process by default, the real one where `KUBEBUILDER_ASSETS` names its programs.

mod discovery;
mod faults;
mod in_cluster;
mod rbac;
mod roles;
mod secrets;
mod services;

use serde_json::{Value, json};

use crate::support::kube::{Cluster, User, objects};
use crate::support::pki::{Issued, Pki};
use crate::support::proxy::{Config, Proxy, Service, quoted};
use crate::support::scene::NAME;
use crate::support::upstream::Upstream;

/// Where the application's objects are.
const NAMESPACE: &str = "payments";
/// The Secret of the client certificate.
const SECRET: &str = "billing-tls";

/// An API server, a user for tlsward, an upstream, and a service whose certificate is a Secret.
struct Scene<'c> {
    cluster: &'c Cluster,
    user: User<'c>,
    pki: Pki,
    upstream: Upstream,
    service: Service,
    config: Config,
}

impl<'c> Scene<'c> {
    /// With a user that may read the Secret and write Events, and no Secret yet.
    async fn new(cluster: &'c Cluster) -> Self {
        let pki = Pki::new();
        let upstream = Upstream::start(&pki).await;
        let user = cluster.user(NAMESPACE, "tlsward").await;
        user.allow(NAMESPACE, json!([named("secrets", SECRET), events()]))
            .await;
        let service = Service::new(NAME, upstream.address(), &pki)
            .tls_text("secret", &format!("{NAMESPACE}/{SECRET}"));
        let config = Config::of([service.clone()]).top(&reached_by(&user));
        Self {
            cluster,
            user,
            pki,
            upstream,
            service,
            config,
        }
    }

    /// Puts this identity into the Secret.
    async fn put(&self, issued: &Issued) -> Value {
        let secret = objects::tls_secret(NAMESPACE, SECRET, issued);
        self.cluster.apply(&secret).await
    }

    async fn start(&self) -> Proxy {
        Proxy::start(&self.pki, &self.config).await
    }
}

/// A rule that lets one object be followed by its name.
fn named(resource: &str, name: &str) -> Value {
    json!({
        "apiGroups": [""],
        "resources": [resource],
        "verbs": ["get", "list", "watch"],
        "resourceNames": [name],
    })
}

/// A rule that lets Events be written.
fn events() -> Value {
    json!({
        "apiGroups": ["events.k8s.io"],
        "resources": ["events"],
        "verbs": ["create", "patch"],
    })
}

/// The lines that say how the API server is reached.
fn reached_by(user: &User<'_>) -> String {
    let kubeconfig = user.kubeconfig();
    format!(
        "kubernetes.kubeconfig = {}",
        quoted(kubeconfig.to_str().unwrap())
    )
}
