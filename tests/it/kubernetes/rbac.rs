//! `tlsward rbac`: the roles that it prints are enough, and no more than enough.

use std::path::PathBuf;
use std::process::Output;

use hyper::Request;
use serde_json::{Value, json};

use super::{NAMESPACE, SECRET};
use crate::support::kube::{Cluster, User, objects};
use crate::support::pki::{Issued, Pki};
use crate::support::proxy::{Config, Proxy, Service, clean_command, quoted};
use crate::support::scene::{NAME, visit};
use crate::support::upstream::{Behaviour, Options, Upstream};
use crate::support::{net, until, within};

/// Runs `tlsward rbac -c FILE …` as whoever `operator` says.
async fn rbac(file: &PathBuf, operator: &PathBuf, arguments: &[&str]) -> Output {
    let mut command = clean_command();
    command
        .args(["rbac", "--namespace", NAMESPACE, "-c"])
        .arg(file)
        .args(arguments)
        .env("KUBECONFIG", operator);
    within("tlsward rbac to end", command.output())
        .await
        .expect("tlsward can be started")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// What kubectl would make of the output.
fn documents(output: &Output) -> Vec<Value> {
    assert_eq!(output.status.code(), Some(0), "{}", said(output));
    let yaml = String::from_utf8(output.stdout.clone()).unwrap();
    yaml.split("\n---\n")
        .map(|one| serde_saphyr::from_str(one).unwrap_or_else(|error| panic!("{error}: {one}")))
        .collect()
}

/// Somebody who may read Services, and no Secret.
async fn operator(cluster: &Cluster) -> User<'_> {
    let operator = cluster.user("ops", "operator").await;
    let rules = json!([{
        "apiGroups": [""],
        "resources": ["services"],
        "verbs": ["get", "list", "watch"],
    }]);
    operator.allow("*", rules).await;
    operator
}

/// The code of the answer to a user's request.
async fn asked(user: &User<'_>, path: &str) -> u16 {
    let request = Request::get(path).body(Vec::new()).unwrap();
    match within(path, user.client().request::<Value>(request)).await {
        Ok(_) => 200,
        Err(::kube::Error::Api(status)) => status.code,
        Err(error) => panic!("{path}: {error}"),
    }
}

/// A Service whose annotations name the certificate and the CA, its endpoint, and a configuration
/// that says neither.
struct Scene {
    pki: Pki,
    client: Issued,
    service: Service,
    config: Config,
    _pod: Upstream,
}

impl Scene {
    async fn new(cluster: &Cluster) -> Self {
        let pki = Pki::new();
        let server = pki.root.server_for(&["billing.payments.svc"]).issue();
        let pod = Options::trusting(&pki.root)
            .behaviour(Behaviour::Identify)
            .start(&server)
            .await;
        let client = pki.client(NAME);
        for name in [SECRET, "other-tls"] {
            let secret = objects::tls_secret(NAMESPACE, name, &client);
            cluster.apply(&secret).await;
        }
        let ca = objects::config_map(NAMESPACE, "internal-ca", &[("ca.crt", &pki.root.pem())]);
        cluster.apply(&ca).await;
        let (ip, port) = (pod.address().ip().to_string(), pod.address().port());
        let slice = objects::endpoint_slice(NAMESPACE, "billing-1", NAME, ("https", port), &[&ip]);
        cluster.apply(&slice).await;
        let mut object = objects::service(NAMESPACE, NAME, &[("https", 443)]);
        for (annotation, value) in [
            ("konghq.com/client-cert", SECRET),
            ("konghq.com/ca-certificates-configmaps", "internal-ca"),
            ("konghq.com/tls-verify", "true"),
        ] {
            object = objects::annotated(object, annotation, value);
        }
        cluster.apply(&object).await;
        let upstream = format!(
            "{{ service = {}, namespace = {}, port = \"https\" }}",
            quoted(NAME),
            quoted(NAMESPACE)
        );
        let service = Service::new(NAME, net::address(), &pki)
            .set("upstream", &upstream)
            .without_tls("ca")
            .without_tls("server_name");
        let config = Config::of([service.clone()]);
        Self {
            pki,
            client,
            service,
            config,
            _pod: pod,
        }
    }
}

#[tokio::test]
async fn with_the_roles_that_rbac_prints_everything_works_and_no_other_secret_can_be_read() {
    let cluster = Cluster::in_process().await;
    let scene = Scene::new(&cluster).await;
    let file = scene.pki.write("config.toml", scene.config.render());
    let operator = operator(&cluster).await;
    let user = cluster.user(NAMESPACE, "tlsward").await;

    let output = rbac(&file, &operator.kubeconfig(), &[]).await;
    let asked_for = cluster.server().requests().into_iter();
    let mut asked_for = asked_for.filter(|it| it.user.ends_with(":operator"));
    assert!(
        asked_for.all(|it| it.resource == "services" || it.resource == "selfsubjectaccessreviews"),
        "Secrets are none of the operator's business"
    );
    for object in documents(&output) {
        cluster.apply(&object).await;
    }
    let text = said(&output);
    assert!(
        text.contains("annotation konghq.com/client-cert of Service payments/billing"),
        "{text}"
    );
    let in_use = format!("/api/v1/namespaces/{NAMESPACE}/secrets/{SECRET}");
    until("the server to act on the roles", async || {
        (asked(&user, &in_use).await == 200).then_some(())
    })
    .await;

    let begin = cluster.server().mark();
    let mut command = clean_command();
    command.env("KUBECONFIG", user.kubeconfig());
    let mut proxy = Proxy::launch(command, &scene.pki, &scene.config);
    proxy.wait_until_ready().await;
    assert_eq!(visit(&scene.service).await.serial, scene.client.serial());
    let service = objects::service(NAMESPACE, NAME, &[]);
    let service = cluster.get(&service).await.unwrap();
    cluster.event_of(&service, "CertificateInUse").await;
    let refused = cluster.server().requests_since(begin).into_iter();
    let refused: Vec<String> = refused
        .filter(|it| it.status() == Some(403))
        .map(|it| format!("{} {}", it.verb, it.path))
        .collect();
    assert_eq!(refused, [""; 0], "with these rights tlsward lacks none");

    for path in [
        "secrets/other-tls",
        "secrets",
        "secrets?fieldSelector=metadata.name%3Dother-tls",
        "configmaps",
        "services",
        "pods",
    ] {
        let path = format!("/api/v1/namespaces/{NAMESPACE}/{path}");
        assert_eq!(asked(&user, &path).await, 403, "{path}");
    }
    assert_eq!(asked(&user, "/api/v1/secrets").await, 403);
}

#[tokio::test]
async fn the_roles_of_a_configuration_that_names_its_secret_are_enough_for_it() {
    let cluster = Cluster::start().await;
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let user = cluster.user(NAMESPACE, "tlsward").await;
    let service = Service::new(NAME, upstream.address(), &pki).tls_text("secret", SECRET);
    let config =
        Config::of([service.clone()]).top(&format!("kubernetes.namespace = {}", quoted(NAMESPACE)));
    let file = pki.write("config.toml", config.render());
    let client = pki.client(NAME);
    let secret = objects::tls_secret(NAMESPACE, SECRET, &client);
    let secret = cluster.apply(&secret).await;
    cluster
        .apply(&objects::tls_secret(NAMESPACE, "other-tls", &client))
        .await;
    // There is nobody to ask, and nothing needs to be: no Service is named.
    let nobody = pki.path("no-kubeconfig");
    for object in documents(&rbac(&file, &nobody, &[]).await) {
        cluster.apply(&object).await;
    }
    let in_use = format!("/api/v1/namespaces/{NAMESPACE}/secrets/{SECRET}");
    until("the server to act on the roles", async || {
        (asked(&user, &in_use).await == 200).then_some(())
    })
    .await;
    let mut command = clean_command();
    command.env("KUBECONFIG", user.kubeconfig());
    let mut proxy = Proxy::launch(command, &pki, &config);
    proxy.wait_until_ready().await;
    assert_eq!(visit(&service).await.serial, client.serial());
    cluster.event_of(&secret, "CertificateInUse").await;
    let other = format!("/api/v1/namespaces/{NAMESPACE}/secrets/other-tls");
    assert_eq!(asked(&user, &other).await, 403);
}

#[tokio::test]
async fn discovered_services_bring_the_secrets_of_their_annotations() {
    let cluster = Cluster::in_process().await;
    let scene = Scene::new(&cluster).await;
    let service = objects::service(NAMESPACE, NAME, &[("https", 443)]);
    let annotations = json!({ "metadata": { "annotations": { "tlsward/listen": "7001" } } });
    cluster.patch(&service, &annotations).await;
    let config = Config::new().top("kubernetes.discovery.namespaces = [\"*\"]");
    let file = scene.pki.write("config.toml", config.render());
    let operator = operator(&cluster).await;
    let documents = documents(&rbac(&file, &operator.kubeconfig(), &[]).await);
    let of = |kind: &str| documents.iter().find(|it| it["kind"] == kind).unwrap();
    assert_eq!(of("Role")["metadata"]["namespace"], NAMESPACE);
    assert_eq!(of("Role")["rules"][0]["resourceNames"], json!([SECRET]));
    assert_eq!(
        of("ClusterRole")["rules"][0]["resources"],
        json!(["services"])
    );
}

#[tokio::test]
async fn where_the_cluster_cannot_be_asked_rbac_says_why_and_that_it_can_do_without() {
    let cluster = Cluster::in_process().await;
    let scene = Scene::new(&cluster).await;
    let file = scene.pki.write("config.toml", scene.config.render());
    let stranger = cluster.user("ops", "stranger").await.kubeconfig();
    let output = rbac(&file, &stranger, &[]).await;
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    for part in ["Service payments/billing", "forbidden", "--offline"] {
        assert!(said(&output).contains(part), "{part}: {}", said(&output));
    }
    assert!(output.stdout.is_empty(), "nothing that could be applied");

    let output = rbac(&file, &stranger, &["--offline"]).await;
    let documents = documents(&output);
    assert_eq!(
        documents[0]["rules"][0]["resourceNames"],
        json!([NAME]),
        "the Service, and no Secret"
    );
    let text = said(&output);
    assert!(text.contains("# NOTE: made offline"), "{text}");
}
