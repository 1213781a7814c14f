//! The way of a pod: the API server by the environment, who we are by the files of the service
//! account.

use serde_json::json;

use super::secrets::in_use;
use super::{NAMESPACE, SECRET, events, named};
use crate::support::kube::{Cluster, User, objects};
use crate::support::net;
use crate::support::pki::{Pki, SERVER_NAME};
use crate::support::proxy::{Config, Proxy, Service, command_under};
use crate::support::scene::{NAME, visit};
use crate::support::upstream::Options;

/// Starts the program where a pod's files are: a directory of the test, in a namespace of mounts.
/// Not waited for.
fn launch(user: &User<'_>, cluster: &Cluster, pki: &Pki, config: &Config) -> Proxy {
    let account = user.account_files();
    // /var/run is a link to /run, in which not everybody may make directories.
    let script = format!(
        "mount -t tmpfs tmpfs /run && \
         mkdir -p /run/secrets/kubernetes.io/serviceaccount && \
         mount --bind {} /run/secrets/kubernetes.io/serviceaccount && exec \"$@\"",
        account.display()
    );
    let mut command = command_under(&["unshare", "-r", "-m", "sh", "-c", &script, "sh"]);
    let url = cluster.url().strip_prefix("https://").unwrap();
    let (host, port) = url.rsplit_once(':').unwrap();
    command
        .env("KUBERNETES_SERVICE_HOST", host)
        .env("KUBERNETES_SERVICE_PORT", port)
        .env_remove("KUBECONFIG")
        .env("HOME", "/nowhere");
    Proxy::launch(command, pki, config)
}

async fn user(cluster: &Cluster) -> User<'_> {
    let user = cluster.user(NAMESPACE, "tlsward").await;
    let slices = json!({
        "apiGroups": ["discovery.k8s.io"],
        "resources": ["endpointslices"],
        "verbs": ["list", "watch"],
    });
    let rules = json!([
        named("secrets", SECRET),
        named("configmaps", "roots"),
        named("services", NAME),
        slices,
        events(),
    ]);
    user.allow(NAMESPACE, rules).await;
    user
}

#[tokio::test]
async fn in_a_pod_nothing_need_be_said_and_names_belong_to_its_namespace() {
    let cluster = Cluster::start().await;
    let user = user(&cluster).await;
    let pki = Pki::new();
    let server = pki.root.server_for(&["billing.payments.svc"]).issue();
    let mut options = Options::trusting(&pki.root);
    options.address = cluster.pod_address();
    let upstream = options.start(&server).await;
    let client = pki.client(NAME);
    let secret = objects::tls_secret(NAMESPACE, SECRET, &client);
    let secret = cluster.apply(&secret).await;
    let roots = objects::config_map(NAMESPACE, "roots", &[("ca.crt", &pki.root.pem())]);
    cluster.apply(&roots).await;
    let service = objects::service(NAMESPACE, NAME, &[("https", 443)]);
    cluster.apply(&service).await;
    let address = upstream.address();
    let slice = objects::endpoint_slice(
        NAMESPACE,
        "billing-1",
        NAME,
        ("https", address.port()),
        &[&address.ip().to_string()],
    );
    cluster.apply(&slice).await;

    let service = Service::new(NAME, net::address(), &pki)
        .set("upstream", "{ service = \"billing\", port = \"https\" }")
        .without_tls("server_name")
        .tls("ca", "{ configmap = \"roots\", key = \"ca.crt\" }")
        .tls_text("secret", SECRET);
    let config = Config::of([service.clone()]);
    let mut proxy = launch(&user, &cluster, &pki, &config);
    proxy.wait_until_ready().await;
    assert_eq!(visit(&service).await.serial, client.serial());
    let status = proxy.service(NAME).await;
    assert_eq!(status["kubernetes"]["secret"], "payments/billing-tls");
    assert_eq!(status["kubernetes"]["service"], "payments/billing");
    cluster.event_of(&secret, "CertificateInUse").await;
}

#[tokio::test]
async fn a_token_that_is_replaced_in_its_file_is_used_from_the_next_request_on() {
    let cluster = Cluster::start().await;
    let user = user(&cluster).await;
    let pki = Pki::new();
    let upstream = Options::trusting(&pki.root)
        .start(&pki.root.server_for(&[SERVER_NAME]).issue())
        .await;
    let service = Service::new(NAME, upstream.address(), &pki).tls_text("secret", SECRET);
    let first = pki.client(NAME);
    cluster
        .apply(&objects::tls_secret(NAMESPACE, SECRET, &first))
        .await;
    let config = Config::of([service.clone()]);
    let mut proxy = launch(&user, &cluster, &pki, &config);
    proxy.wait_until_ready().await;
    assert_eq!(visit(&service).await.serial, first.serial());

    // A watch that is open goes on with whatever it began with, so it is broken.
    for _ in 0..2 {
        user.revoke_token().await;
        user.renew_token().await;
        user.account_files();
        let mark = cluster.imitation().map(|server| server.mark());
        cluster.go_away().await;
        cluster.come_back().await;
        let next = pki.client(NAME);
        cluster
            .apply(&objects::tls_secret(NAMESPACE, SECRET, &next))
            .await;
        in_use(&proxy, &next).await;
        assert_eq!(visit(&service).await.serial, next.serial());
        if let (Some(server), Some(mark)) = (cluster.imitation(), mark) {
            let mut asked = server.requests_since(mark);
            asked.retain(|asked| asked.status() == Some(401));
            // One of the watch, and perhaps one of the Events.
            assert!(asked.len() <= 2, "{asked:#?}");
        }
    }
    assert_eq!(proxy.get("/readyz").await.code, 200);
}

#[tokio::test]
async fn without_the_files_of_a_service_account_a_pod_is_told_what_is_missing() {
    let pki = Pki::new();
    let service = Service::new(NAME, net::address(), &pki)
        .tls_text("secret", &format!("{NAMESPACE}/{SECRET}"));
    let script = "mount -t tmpfs tmpfs /run && exec \"$@\"";
    let mut command = command_under(&["unshare", "-r", "-m", "sh", "-c", script, "sh"]);
    command.env("KUBERNETES_SERVICE_HOST", "127.0.0.1");
    command.env("KUBERNETES_SERVICE_PORT", "1");
    let mut proxy = Proxy::launch(command, &pki, &Config::of([service]));
    proxy.wait_until_alive().await;
    proxy
        .wait_for_service(NAME, "to hear of the token", |service| {
            let problem = &service["problem"];
            let detail = problem["detail"].as_str()?;
            (problem["reason"] == "api_unavailable"
                && detail.contains("automountServiceAccountToken"))
            .then_some(())
        })
        .await;
}
