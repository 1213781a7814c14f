//! A Kubernetes API for tests: in this process, or the real one.
//!
//! [`Cluster::start`] gives a real kube-apiserver with its etcd where the environment variable
//! `KUBEBUILDER_ASSETS` names the directory of the two programs (envtest's convention), and an
//! imitation in this process otherwise. A test that uses the methods of [`Cluster`] and [`User`]
//! alone runs against both. [`Cluster::in_process`] always gives the imitation, whose
//! [`Server`] ([`Cluster::server`]) can do what no real one does at a test's word: go away, fall
//! silent, break watches, forget its history, count requests.
//!
//! ```ignore
//! let cluster = Cluster::start().await;
//! let user = cluster.user("payments", "tlsward").await;
//! user.allow("payments", json!([{
//!     "apiGroups": [""], "resources": ["secrets"], "verbs": ["get", "list", "watch"],
//!     "resourceNames": ["billing-tls"],
//! }])).await;
//! let secret = cluster.apply(&objects::tls_secret("payments", "billing-tls", &issued)).await;
//! let config = format!("[kubernetes]\nkubeconfig = {:?}\n", user.kubeconfig());
//! // … the proxy runs, by that file …
//! cluster.event_of(&secret, "CertificateInUse").await;
//! ```
//!
//! The imitation is strict. Whatever a client other than the kit asks that a real server would
//! refuse as malformed, or would ignore, is a **complaint**: dropping the cluster fails the test
//! unless [`Server::take_complaints`] has taken them.
//!
//! Deliberate differences from the real server: a version of the future is refused at once
//! instead of after three seconds, EndpointSlices may hold loopback addresses, only JSON and
//! merge patches are spoken, and tokens are no JWTs.

mod access;
mod api;
mod discovery;
mod faults;
pub(crate) mod objects;
mod read;
mod real;
mod request;
mod resources;
mod selector;
mod server;
mod status;
mod store;
mod user;
mod validation;
mod write;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ::kube::Client;
use ::kube::core::Status;
use ::kube::runtime::watcher::{self, watcher};
use futures_util::{StreamExt, TryStreamExt};
use hyper::{Method, Request};
use k8s_openapi::api::core::v1::Event;
use serde_json::{Value, json};

pub(crate) use faults::{Ending, Fault, Hold};
pub(crate) use request::Asked;
pub(crate) use server::{History, Server};
pub(crate) use user::User;

use self::real::Real;
use super::pki::Pki;
use super::{net, within};

/// One API server with nothing in it but what a test puts there. Gone when dropped.
pub(crate) struct Cluster {
    access: Access,
    admin: Client,
    /// `None`: the real server.
    imitation: Option<Server>,
    real: Option<Real>,
    /// Counts what the kit makes and nobody names.
    made: AtomicUsize,
}

/// How to reach an API server.
pub(crate) struct Access {
    url: String,
    /// Of the server's CA; `None` over plain HTTP.
    ca: Option<String>,
    files: Pki,
}

/// What the kit's own requests are signed with.
const ADMIN: &str = "the-kit-itself";

impl Cluster {
    /// The real server where `KUBEBUILDER_ASSETS` says so, the one in this process otherwise.
    pub(crate) async fn start() -> Self {
        match std::env::var_os(real::ASSETS) {
            None => Self::in_process().await,
            Some(programs) => {
                let (real, access) = Real::start(Path::new(&programs)).await;
                Self::new(access, None, Some(real)).await
            }
        }
    }

    /// The server in this process, over TLS with a CA of its own.
    pub(crate) async fn in_process() -> Self {
        Self::imitated(true).await
    }

    /// The server in this process, over plain HTTP.
    pub(crate) async fn in_process_over_http() -> Self {
        Self::imitated(false).await
    }

    async fn imitated(tls: bool) -> Self {
        let files = Pki::new();
        let address = net::address();
        let config = tls.then(|| {
            let issued = files.root.server().issue();
            let config = rustls::ServerConfig::builder()
                .with_no_client_auth()
                .with_single_cert(issued.chain.clone(), issued.key_der())
                .unwrap();
            Arc::new(config)
        });
        let server = Server::start(address, config, ADMIN).await;
        let access = Access {
            url: format!("{}://{address}", if tls { "https" } else { "http" }),
            ca: tls.then(|| files.root.pem()),
            files,
        };
        Self::new(access, Some(server), None).await
    }

    async fn new(access: Access, imitation: Option<Server>, real: Option<Real>) -> Self {
        let cluster = Self {
            admin: access.client(ADMIN),
            access,
            imitation,
            real,
            made: AtomicUsize::new(0),
        };
        for namespace in ["default", "kube-system"] {
            cluster.namespace(namespace).await;
        }
        cluster
    }

    /// The hand on the server in this process; `None` where the real one runs.
    pub(crate) fn imitation(&self) -> Option<&Server> {
        self.imitation.as_ref()
    }

    /// The hand on the server in this process.
    pub(crate) fn server(&self) -> &Server {
        self.imitation()
            .expect("a test of faults asks for Cluster::in_process")
    }

    /// Stops the API server: connections break, and new ones are refused when this returns.
    pub(crate) async fn go_away(&self) {
        match (&self.imitation, &self.real) {
            (Some(server), _) => server.go_away().await,
            (None, real) => real.as_ref().expect("one of the two").go_away().await,
        }
    }

    /// Starts it again, at the same port and with the same objects. It has forgotten its
    /// history, as a real one has: a watch from a version before the newest is 410.
    pub(crate) async fn come_back(&self) {
        match (&self.imitation, &self.real) {
            (Some(server), _) => server.restart(History::Forgotten).await,
            (None, real) => {
                let real = real.as_ref().expect("one of the two");
                real.come_back(&self.admin).await;
            }
        }
    }

    /// An address for an upstream of a test, of the kind that this server takes in an
    /// EndpointSlice. The real one refuses loopback, so that there the network 10.99.0.0/16 must
    /// lie on `lo`, which is best done in a network namespace around the tests:
    ///
    /// ```sh
    /// unshare --map-root-user --net sh -c 'ip link set lo up &&
    ///     ip address add 10.99.0.1/16 dev lo && exec cargo nextest run'
    /// ```
    pub(crate) fn pod_address(&self) -> SocketAddr {
        let mut address = net::address();
        if let (None, IpAddr::V4(ip)) = (&self.imitation, address.ip()) {
            let [.., c, d] = ip.octets();
            address.set_ip(IpAddr::V4(Ipv4Addr::new(10, 99, c, d)));
            if let Err(error) = TcpListener::bind((address.ip(), 0)) {
                panic!("{error}: Cluster::pod_address says how to have 10.99.0.0/16");
            }
        }
        address
    }

    pub(crate) fn url(&self) -> &str {
        &self.access.url
    }

    /// A client that may do everything.
    pub(crate) fn admin(&self) -> Client {
        self.admin.clone()
    }

    fn next_number(&self) -> usize {
        self.made.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// A client with this token; an empty one is none at all.
    pub(crate) fn client(&self, token: &str) -> Client {
        self.access.client(token)
    }

    /// A user that may do nothing yet: a ServiceAccount of this name, made where it is missing
    /// (and its namespace too).
    pub(crate) async fn user(&self, namespace: &str, name: &str) -> User<'_> {
        User::new(self, namespace, name).await
    }

    /// Makes the namespace if it is missing.
    pub(crate) async fn namespace(&self, name: &str) {
        let namespace = objects::object("v1", "Namespace", "", name);
        match self.try_create(&namespace).await {
            Ok(_) => {}
            Err(status) if status.code == 409 => {}
            Err(status) => panic!("making the namespace {name}: {status:?}"),
        }
    }

    /// Creates the object or puts it in place of the present one, and its namespace where that is
    /// missing. Returns what the server made of it.
    #[track_caller]
    pub(crate) fn apply(&self, object: &Value) -> impl Future<Output = Value> {
        let place = std::panic::Location::caller();
        async move {
            let outcome = match self.try_create(object).await {
                Err(status) if status.code == 404 => {
                    let namespace = object["metadata"]["namespace"].as_str();
                    self.namespace(namespace.unwrap_or_default()).await;
                    self.try_create(object).await
                }
                outcome => outcome,
            };
            let outcome = match outcome {
                Err(status) if status.code == 409 => self.try_replace(object).await,
                outcome => outcome,
            };
            outcome.unwrap_or_else(|status| panic!("{place}: {status:?}\n{object:#}"))
        }
    }

    pub(crate) async fn try_create(&self, object: &Value) -> Result<Value, Box<Status>> {
        let path = objects::path(object, false);
        self.ask(Method::POST, &path, Some(object)).await
    }

    /// PUT. With a `metadata.resourceVersion` it is conditional.
    pub(crate) async fn try_replace(&self, object: &Value) -> Result<Value, Box<Status>> {
        let path = objects::path(object, true);
        self.ask(Method::PUT, &path, Some(object)).await
    }

    /// A JSON merge patch of the object that `object` names.
    pub(crate) async fn patch(&self, object: &Value, patch: &Value) -> Value {
        let path = objects::path(object, true);
        let outcome = self.ask(Method::PATCH, &path, Some(patch)).await;
        outcome.unwrap_or_else(|status| panic!("{status:?}\n{patch:#}"))
    }

    /// The present state of the object that `object` names.
    pub(crate) async fn get(&self, object: &Value) -> Option<Value> {
        let path = objects::path(object, true);
        match self.ask(Method::GET, &path, None).await {
            Ok(found) => Some(found),
            Err(status) if status.code == 404 => None,
            Err(status) => panic!("{status:?}"),
        }
    }

    /// Deletes the object that `object` names.
    pub(crate) async fn delete(&self, object: &Value) {
        let path = objects::path(object, true);
        let outcome = self.ask(Method::DELETE, &path, None).await;
        outcome.unwrap_or_else(|status| panic!("{status:?}"));
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, Box<Status>> {
        let kind = match method {
            Method::PATCH => "application/merge-patch+json",
            _ => "application/json",
        };
        let body = body.map_or(Vec::new(), |body| body.to_string().into_bytes());
        let mut tries = 0;
        loop {
            let request = Request::builder()
                .method(&method)
                .uri(path)
                .header("content-type", kind)
                .body(body.clone())
                .unwrap();
            tries += 1;
            match within(path, self.admin.request::<Value>(request)).await {
                Ok(answer) => return Ok(answer),
                Err(::kube::Error::Api(status)) => return Err(status),
                // The connection that was kept from before may have been broken since.
                Err(::kube::Error::Service(_) | ::kube::Error::HyperError(_)) if tries == 1 => {}
                Err(error) => panic!("{path}: {error}"),
            }
        }
    }

    /// The Events about an object (with its uid) in the order of their names, as `v1`: what
    /// `kubectl describe` shows.
    pub(crate) async fn events_of(&self, object: &Value) -> Vec<Value> {
        let path = format!(
            "/api/v1/namespaces/{}/events?fieldSelector={}",
            event_namespace(object),
            about(object)
        );
        let list = self.ask(Method::GET, &path, None).await.unwrap();
        list["items"].as_array().cloned().unwrap_or_default()
    }

    /// Waits for an Event about an object (with its uid) that has this reason.
    #[track_caller]
    pub(crate) fn event_of(&self, object: &Value, reason: &str) -> impl Future<Output = Value> {
        let events = ::kube::Api::<Event>::namespaced(self.admin(), event_namespace(object));
        let config = watcher::Config::default().fields(&about(object));
        let reason = reason.to_owned();
        within(
            format!("an Event {reason} about {}", about(object)),
            async move {
                let mut events = watcher(events, config).boxed();
                while let Some(event) = events.try_next().await.unwrap() {
                    let (watcher::Event::Apply(event) | watcher::Event::InitApply(event)) = event
                    else {
                        continue;
                    };
                    if event.reason.as_deref() == Some(&reason) {
                        return json!(event);
                    }
                }
                panic!("a watcher does not end");
            },
        )
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let complaints = self.imitation().map_or(Vec::new(), Server::take_complaints);
        if !complaints.is_empty() && !std::thread::panicking() {
            panic!(
                "the API server was asked wrongly:\n  {}",
                complaints.join("\n  ")
            );
        }
    }
}

impl Access {
    fn client(&self, token: &str) -> Client {
        let mut config = ::kube::Config::new(self.url.parse().unwrap());
        let token = Some(token).filter(|it| !it.is_empty());
        config.auth_info.token = token.map(|it| it.to_owned().into());
        let ca = self.ca.as_ref().map(|pem| vec![objects::der(pem)]);
        config.root_cert = ca;
        // A refusal is what a test asks for; kube-rs would try 429, 503 and 504 again.
        config.default_retry = false;
        Client::try_from(config).unwrap()
    }

    /// Writes a kubeconfig. `user` is the user's part of it.
    fn kubeconfig(&self, name: &str, namespace: &str, user: &Value) -> PathBuf {
        let mut cluster = json!({ "server": self.url });
        if let Some(pem) = &self.ca {
            cluster["certificate-authority-data"] = json!(objects::base64(pem));
        }
        // JSON is YAML.
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "test", "cluster": cluster }],
            "users": [{ "name": name, "user": user }],
            "contexts": [{
                "name": "test",
                "context": { "cluster": "test", "user": name, "namespace": namespace },
            }],
            "current-context": "test",
        });
        self.files.write(
            &format!("{namespace}-{name}.kubeconfig"),
            format!("{config:#}"),
        )
    }
}

/// Objects of the cluster have their Events in `default`.
fn event_namespace(object: &Value) -> &str {
    let namespace = object["metadata"]["namespace"].as_str();
    namespace.unwrap_or("default")
}

fn about(object: &Value) -> String {
    let uid = object["metadata"]["uid"].as_str();
    let uid = uid.expect("an object that the server has returned has a uid");
    format!("involvedObject.uid={uid}")
}
