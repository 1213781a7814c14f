//! Users: ServiceAccounts with the rules that a test gives them.

use std::path::PathBuf;
use std::sync::Mutex;

use ::kube::Client;
use hyper::Method;
use serde_json::{Value, json};

use super::{Cluster, objects};
use crate::support::until;

/// `system:serviceaccount:NAMESPACE:NAME`.
pub(crate) struct User<'a> {
    cluster: &'a Cluster,
    namespace: String,
    name: String,
    token: Mutex<Token>,
    /// The bindings to the roles that [`Self::allow`] has made, and their first rules.
    bindings: Mutex<Vec<(Value, Value)>>,
}

/// A token is bound to a Secret, so that it dies with that.
struct Token {
    text: String,
    bound_to: Value,
    number: usize,
}

impl<'a> User<'a> {
    pub(super) async fn new(cluster: &'a Cluster, namespace: &str, name: &str) -> Self {
        cluster
            .apply(&objects::object("v1", "ServiceAccount", namespace, name))
            .await;
        let token = request(cluster, namespace, name, 1).await;
        Self {
            cluster,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            token: Mutex::new(token),
            bindings: Mutex::default(),
        }
    }

    /// Allows `rules` (of a Role: `apiGroups`, `resources`, `verbs`, `resourceNames`) within a
    /// namespace, which is made where it is missing, or with `"*"` in the whole cluster. Returns
    /// when the server acts on it.
    pub(crate) async fn allow(&self, namespace: &str, rules: Value) {
        let number = self.cluster.next_number();
        let name = format!("{}-{number}", self.name);
        let (role, binding, place) = match namespace {
            "*" => ("ClusterRole", "ClusterRoleBinding", ""),
            namespace => ("Role", "RoleBinding", namespace),
        };
        let version = "rbac.authorization.k8s.io/v1";
        let mut object = objects::object(version, role, place, &name);
        object["rules"] = rules.clone();
        self.cluster.apply(&object).await;
        let mut object = objects::object(version, binding, place, &name);
        object["roleRef"] = json!({
            "apiGroup": "rbac.authorization.k8s.io",
            "kind": role,
            "name": name,
        });
        object["subjects"] = json!([{
            "kind": "ServiceAccount",
            "namespace": self.namespace,
            "name": self.name,
        }]);
        let binding = self.cluster.apply(&object).await;
        let what = format!("{} to be allowed {rules}", self.name);
        until(what, async || {
            let allowed = self.may(place, &rules[0]).await;
            allowed.then_some(())
        })
        .await;
        self.bindings.lock().unwrap().push((binding, rules));
    }

    /// Takes back all that [`Self::allow`] has given. Returns when the server acts on it; watches
    /// that are open go on, as with the real one.
    pub(crate) async fn forbid_everything(&self) {
        let bindings = std::mem::take(&mut *self.bindings.lock().unwrap());
        for (binding, _) in &bindings {
            self.cluster.delete(binding).await;
        }
        for (binding, rules) in &bindings {
            let place = binding["metadata"]["namespace"].as_str();
            until("the rules to be gone", async || {
                let allowed = self.may(place.unwrap_or_default(), &rules[0]).await;
                (!allowed).then_some(())
            })
            .await;
        }
    }

    /// Asks the server whether the first verb of a rule is allowed by now, of the first object that
    /// the rule names. No namespace: in the whole cluster.
    pub(crate) async fn may(&self, namespace: &str, rule: &Value) -> bool {
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": { "resourceAttributes": {
                "namespace": namespace,
                "verb": rule["verbs"][0],
                "group": rule["apiGroups"][0],
                "resource": rule["resources"][0],
                "name": rule["resourceNames"][0],
            } },
        });
        let request = hyper::Request::post(objects::path(&review, false))
            .header("content-type", "application/json")
            .body(review.to_string().into_bytes())
            .unwrap();
        let answer: Value = self.client().request(request).await.unwrap();
        answer["status"]["allowed"] == true
    }

    /// A kubeconfig with the present token in it. The same file at every call, written anew.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        let user = json!({ "token": self.token() });
        self.cluster
            .access
            .kubeconfig(&self.name, &self.namespace, &user)
    }

    /// A kubeconfig that names a file with the present token, see [`Self::renew_token`].
    pub(crate) fn kubeconfig_with_token_file(&self) -> PathBuf {
        let user = json!({ "tokenFile": self.write_token() });
        self.cluster
            .access
            .kubeconfig(&self.name, &self.namespace, &user)
    }

    /// A directory with `token`, `ca.crt` and `namespace`, as a pod finds them below
    /// `/var/run/secrets/kubernetes.io/serviceaccount`. Replaced at every call, each at once.
    pub(crate) fn account_files(&self) -> PathBuf {
        let access = &self.cluster.access;
        let ca = access.ca.as_deref().expect("a pod speaks TLS");
        let write = |name: &str, text: &str| {
            let name = format!("{}-{}/{name}", self.namespace, self.name);
            let new = access.files.write(&format!("{name}.new"), text);
            let file = access.files.path(&name);
            std::fs::rename(new, &file).unwrap();
            file
        };
        write("token", &self.token());
        write("ca.crt", ca);
        let file = write("namespace", &self.namespace);
        crate::support::pki::path_of(&file).to_owned()
    }

    fn write_token(&self) -> PathBuf {
        let name = format!("{}-{}.token", self.namespace, self.name);
        self.cluster.access.files.write(&name, self.token())
    }

    /// The present token.
    pub(crate) fn token(&self) -> String {
        self.token.lock().unwrap().text.clone()
    }

    /// A client of this user, with the present token.
    pub(crate) fn client(&self) -> Client {
        self.cluster.access.client(&self.token())
    }

    /// Makes the token that is in use worthless: from then on it is answered with 401. Returns
    /// when it is so; the real server goes on with it for some seconds.
    pub(crate) async fn revoke_token(&self) {
        let (client, bound_to) = {
            let token = self.token.lock().unwrap();
            (
                self.cluster.access.client(&token.text),
                token.bound_to.clone(),
            )
        };
        self.cluster.delete(&bound_to).await;
        until("401 for the token", async || {
            let refused = client.apiserver_version().await;
            // Anybody may read the version, but a token that is nobody's is refused.
            match refused {
                Err(::kube::Error::Api(status)) if status.code == 401 => Some(()),
                _ => None,
            }
        })
        .await;
    }

    /// Gets another token, which [`Self::client`] and the kubeconfigs have from now on; in the
    /// token file it takes the place of the old one, which goes on being worth what it was.
    pub(crate) async fn renew_token(&self) {
        let number = self.token.lock().unwrap().number + 1;
        let token = request(self.cluster, &self.namespace, &self.name, number).await;
        *self.token.lock().unwrap() = token;
        self.write_token();
    }
}

/// `TokenRequest`.
async fn request(cluster: &Cluster, namespace: &str, name: &str, number: usize) -> Token {
    let bound_to = objects::secret(namespace, &format!("{name}-token-{number}"), "Opaque", &[]);
    let bound_to = cluster.apply(&bound_to).await;
    let request = json!({
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {
            "audiences": [],
            "boundObjectRef": {
                "apiVersion": "v1",
                "kind": "Secret",
                "name": bound_to["metadata"]["name"],
                "uid": bound_to["metadata"]["uid"],
            },
        },
    });
    let account = objects::object("v1", "ServiceAccount", namespace, name);
    let path = format!("{}/token", objects::path(&account, true));
    let answer = cluster.ask(Method::POST, &path, Some(&request)).await;
    let answer = answer.unwrap_or_else(|status| panic!("{status:?}"));
    Token {
        text: answer["status"]["token"].as_str().unwrap().to_owned(),
        bound_to,
        number,
    }
}
