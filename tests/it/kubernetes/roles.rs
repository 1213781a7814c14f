//! The roles that `tlsward rbac` prints: enough for all that its configuration does, and no object
//! more.

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Api;
use kube::api::ListParams;
use serde_json::{Value, json};

use super::{NAMESPACE, SECRET};
use crate::support::kube::{Cluster, User, objects};
use crate::support::net;
use crate::support::pki::{Issued, Pki, SERVER_NAME};
use crate::support::proxy::{Config, Proxy, Service, clean_command, quoted, serial_in_use};
use crate::support::scene::{NAME, visit};
use crate::support::upstream::{Options, Upstream};
use crate::support::{until, within};

/// The Secret that only an annotation names.
const ANNOTATED: &str = "annotated-tls";
/// Nobody names this one.
const OTHER: &str = "nobody-s";
/// The ConfigMap with the CA certificates.
const ROOTS: &str = "roots";

/// What stands in the cluster, and who asks for it.
struct Scene<'c> {
    cluster: &'c Cluster,
    pki: Pki,
    client: Issued,
    upstream: Upstream,
    /// Who asks for the roles: reads Services and nothing else.
    operator: User<'c>,
    /// Who is given them.
    account: User<'c>,
}

impl<'c> Scene<'c> {
    async fn new(cluster: &'c Cluster) -> Self {
        let pki = Pki::new();
        let server = pki.root.server_for(&["billing.payments.svc", SERVER_NAME]);
        let mut options = Options::trusting(&pki.root);
        options.address = cluster.pod_address();
        let upstream = options.start(&server.issue()).await;
        let operator = cluster.user("kube-system", "operator").await;
        let services = json!([{
            "apiGroups": [""], "resources": ["services"], "verbs": ["list", "watch"],
        }]);
        operator.allow("*", services).await;
        let client = pki.client(NAME);
        for secret in [SECRET, ANNOTATED, OTHER] {
            let secret = objects::tls_secret(NAMESPACE, secret, &client);
            cluster.apply(&secret).await;
        }
        let elsewhere = objects::tls_secret("elsewhere", SECRET, &client);
        cluster.apply(&elsewhere).await;
        for map in [ROOTS, OTHER] {
            let map = objects::config_map(NAMESPACE, map, &[("root.pem", &pki.root.pem())]);
            cluster.apply(&map).await;
        }
        let address = upstream.address();
        let slice = objects::endpoint_slice(
            NAMESPACE,
            "billing-1",
            NAME,
            ("https", address.port()),
            &[&address.ip().to_string()],
        );
        cluster.apply(&slice).await;
        Self {
            cluster,
            pki,
            client,
            upstream,
            operator,
            account: cluster.user(NAMESPACE, "tlsward").await,
        }
    }

    /// The Service with the annotation that names a Secret, and others.
    async fn service_object(&self, further: &[(&str, &str)]) {
        let service = objects::service(NAMESPACE, NAME, &[("https", 443)]);
        let service = objects::annotated(service, "konghq.com/client-cert", ANNOTATED);
        let service = further.iter().fold(service, |service, (key, value)| {
            objects::annotated(service, key, value)
        });
        self.cluster.apply(&service).await;
    }

    /// Two services of a file: one with a Service as upstream, whose annotation names its identity,
    /// and one with a Secret.
    async fn file(&self) -> (Config, [Service; 2]) {
        self.service_object(&[]).await;
        let roots = format!("{{ configmap = \"{NAMESPACE}/{ROOTS}\", key = \"root.pem\" }}");
        let upstream =
            format!("{{ service = \"{NAME}\", namespace = \"{NAMESPACE}\", port = \"https\" }}");
        let annotated = Service::new(NAME, net::address(), &self.pki)
            .set("upstream", &upstream)
            .tls("ca", &roots)
            .without_tls("server_name");
        let named = Service::new("ledger", self.upstream.address(), &self.pki)
            .tls("ca", &roots)
            .tls_text("secret", &format!("{NAMESPACE}/{SECRET}"));
        let services = [annotated, named];
        (Config::of(services.clone()), services)
    }

    /// The same Service, discovered.
    async fn discovery(&self) -> (Config, [Service; 1]) {
        let listen = net::address();
        let port = listen.port().to_string();
        self.service_object(&[("tlsward/listen", &port)]).await;
        let config = Config::new().top(&format!(
            "kubernetes.discovery.namespaces = [\"{NAMESPACE}\"]\n\
             kubernetes.discovery.listen_address = {}\n\
             defaults.tls.ca = {{ configmap = \"{NAMESPACE}/{ROOTS}\", key = \"root.pem\" }}",
            quoted(&listen.ip().to_string()),
        ));
        let name = format!("{NAME}.{NAMESPACE}");
        let service = Service::new(&name, listen, &self.pki).listening_on(listen);
        (config, [service])
    }

    /// What an operator sees of `tlsward rbac`.
    async fn printed(&self, config: &Config, json: bool) -> String {
        let file = self.pki.write("config.toml", config.render());
        let mut command = clean_command();
        command
            .env("KUBECONFIG", self.operator.kubeconfig())
            .args(["rbac", "--namespace", NAMESPACE, "-c"])
            .arg(file);
        if json {
            command.arg("--json");
        }
        let output = within("the roles", command.output()).await.unwrap();
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{complaint}");
        String::from_utf8(output.stdout).unwrap()
    }

    async fn roles(&self, config: &Config) -> Value {
        serde_json::from_str(&self.printed(config, true).await).unwrap()
    }

    /// `kubectl apply`; returns when the server acts on it.
    async fn grant(&self, roles: &Value) {
        for object in roles["items"].as_array().unwrap() {
            self.cluster.apply(object).await;
        }
        for (namespace, rule) in rules(roles) {
            until(format!("to be allowed {rule}"), async || {
                self.account.may(namespace, rule).await.then_some(())
            })
            .await;
        }
    }

    /// Starts tlsward with the account's rights and waits for nothing.
    fn launch(&self, config: &Config) -> Proxy {
        let mut command = clean_command();
        command.env("KUBECONFIG", self.account.kubeconfig());
        Proxy::launch(command, &self.pki, config)
    }

    /// All that the configuration is for works, and no request was refused.
    async fn everything_works(&self, config: &Config, services: &[Service]) {
        let mut proxy = self.launch(config);
        proxy.wait_until_ready().await;
        for service in services {
            // What is discovered is no condition of being ready.
            proxy
                .wait_for_service(&service.name, "to serve", |service| {
                    (service["state"] == "ready").then_some(())
                })
                .await;
            assert_eq!(visit(service).await.serial, self.client.serial());
        }
        let next = self.pki.client(NAME);
        for name in [SECRET, ANNOTATED] {
            let secret = objects::tls_secret(NAMESPACE, name, &next);
            self.cluster.apply(&secret).await;
        }
        let serial = next.serial();
        for service in services {
            proxy
                .wait_for_service(&service.name, "the next certificate", |service| {
                    (serial_in_use(service) == Some(&*serial)).then_some(())
                })
                .await;
            assert_eq!(visit(service).await.serial, serial);
        }
        let secret = objects::tls_secret(NAMESPACE, ANNOTATED, &next);
        let secret = self.cluster.get(&secret).await.unwrap();
        self.cluster.event_of(&secret, "CertificateInUse").await;
        if let Some(server) = self.cluster.imitation() {
            let mut requests = server.requests_since(0);
            requests.retain(|asked| asked.user.ends_with(":tlsward"));
            let watches = requests.iter().filter(|asked| asked.verb == "watch");
            assert!(watches.count() >= 3, "{requests:#?}");
            requests.retain(|asked| asked.status().is_some_and(|status| status >= 400));
            assert!(requests.is_empty(), "{requests:#?}");
        }
        proxy.stop().await;
    }

    /// With the account's token, nothing else can be read.
    async fn nothing_else_can_be_read(&self) {
        let client = || self.account.client();
        let secrets = Api::<Secret>::namespaced(client(), NAMESPACE);
        assert!(secrets.get(ANNOTATED).await.is_ok());
        refused(secrets.get(OTHER).await);
        refused(secrets.list(&ListParams::default()).await);
        let of_other = ListParams::default().fields(&format!("metadata.name={OTHER}"));
        refused(secrets.list(&of_other).await);
        refused(secrets.delete(ANNOTATED, &Default::default()).await);
        let elsewhere = Api::<Secret>::namespaced(client(), "elsewhere");
        refused(elsewhere.get(SECRET).await);
        refused(
            Api::<Secret>::all(client())
                .list(&ListParams::default())
                .await,
        );
        let maps = Api::<ConfigMap>::namespaced(client(), NAMESPACE);
        assert!(maps.get(ROOTS).await.is_ok());
        refused(maps.get(OTHER).await);
        refused(maps.list(&ListParams::default()).await);
    }

    /// Without any one of the rules, what it is for does not work, and that is said.
    async fn no_rule_is_too_much(&self, config: &Config, roles: &Value) {
        for (n, (namespace, rule)) in rules(roles).enumerate() {
            let mut fewer = roles.clone();
            let role = fewer["items"]
                .as_array_mut()
                .unwrap()
                .iter_mut()
                .find(|object| object["kind"] == "Role")
                .unwrap();
            role["rules"].as_array_mut().unwrap().remove(n);
            self.cluster.apply(role).await;
            until(format!("to be forbidden {rule}"), async || {
                (!self.account.may(namespace, rule).await).then_some(())
            })
            .await;
            let mut proxy = self.launch(config);
            proxy.wait_until_alive().await;
            let resource = rule["resources"][0].as_str().unwrap();
            let said = format!("may not {} {resource}", verb_of(resource));
            proxy
                .wait_for_log(format!("{said:?}, without {rule}"), |line| {
                    line.raw.contains(&said)
                })
                .await;
            if resource != "events" {
                proxy
                    .wait_for_status(format!("{said:?}, without {rule}"), |status| {
                        let status = status.to_string();
                        let told = status.contains("forbidden") && status.contains(&said);
                        told.then_some(())
                    })
                    .await;
            }
            proxy.stop().await;
            self.grant(roles).await;
        }
    }
}

/// What is tried first of a resource.
fn verb_of(resource: &str) -> &'static str {
    match resource {
        "events" => "create",
        _ => "list",
    }
}

/// Each rule, and where it holds.
fn rules(roles: &Value) -> impl Iterator<Item = (&str, &Value)> {
    let objects = roles["items"].as_array().unwrap().iter();
    objects.flat_map(|object| {
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default();
        let rules = object["rules"].as_array().into_iter().flatten();
        rules.map(move |rule| (namespace, rule))
    })
}

#[track_caller]
fn refused<T>(asked: kube::Result<T>) {
    match asked {
        Err(kube::Error::Api(status)) => assert_eq!(status.code, 403, "{status:?}"),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("this is allowed"),
    }
}

#[tokio::test]
async fn with_the_printed_roles_a_file_s_services_work_and_no_other_secret_can_be_read() {
    let cluster = Cluster::start().await;
    let scene = Scene::new(&cluster).await;
    let (config, services) = scene.file().await;
    let roles = scene.roles(&config).await;
    scene.grant(&roles).await;
    scene.everything_works(&config, &services).await;
    scene.nothing_else_can_be_read().await;
}

#[tokio::test]
async fn with_the_printed_roles_discovery_works_and_no_other_secret_can_be_read() {
    let cluster = Cluster::start().await;
    let scene = Scene::new(&cluster).await;
    let (config, services) = scene.discovery().await;
    let roles = scene.roles(&config).await;
    scene.grant(&roles).await;
    scene.everything_works(&config, &services).await;
    scene.nothing_else_can_be_read().await;
}

#[tokio::test]
async fn each_of_the_printed_rules_is_needed() {
    let cluster = Cluster::start().await;
    let scene = Scene::new(&cluster).await;
    let (config, _) = scene.file().await;
    let roles = scene.roles(&config).await;
    let resources: Vec<&str> = rules(&roles)
        .map(|(_, rule)| rule["resources"][0].as_str().unwrap())
        .collect();
    let expected = [
        "secrets",
        "configmaps",
        "services",
        "endpointslices",
        "events",
    ];
    assert_eq!(resources, expected);
    scene.grant(&roles).await;
    scene.no_rule_is_too_much(&config, &roles).await;
}

#[tokio::test]
async fn the_roles_are_the_same_for_people_and_for_programs() {
    let cluster = Cluster::in_process().await;
    let scene = Scene::new(&cluster).await;
    let (config, _) = scene.file().await;
    let (discovery, _) = scene.discovery().await;
    for config in [config, discovery] {
        let json = scene.roles(&config).await;
        let yaml = scene.printed(&config, false).await;
        let objects: Vec<Value> = yaml
            .split("---\n")
            .map(|one| serde_saphyr::from_str(one).unwrap_or_else(|error| panic!("{error}: {one}")))
            .collect();
        assert_eq!(json["items"], json!(objects), "{yaml}");
        assert!(yaml.contains(ANNOTATED), "{yaml}");
        assert!(!yaml.contains(OTHER), "{yaml}");
    }
}
