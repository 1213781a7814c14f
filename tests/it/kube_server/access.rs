//! Who may do what: tokens, RBAC, and the words of a refusal.

use super::*;
use kube::Config;
use kube::config::{KubeConfigOptions, Kubeconfig};

/// A rule for one Secret by name.
fn only(name: &str) -> Value {
    json!([{
        "apiGroups": [""],
        "resources": ["secrets"],
        "resourceNames": [name],
        "verbs": ["get", "list", "watch"],
    }])
}

/// A client by a kubeconfig file, as a program finds it.
async fn by_file(path: &std::path::Path) -> Client {
    let file = Kubeconfig::read_from(path).unwrap();
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(file, &options)
        .await
        .unwrap();
    assert_eq!(config.default_namespace, PAYMENTS);
    Client::try_from(config).unwrap()
}

#[tokio::test]
async fn a_rule_with_a_name_covers_lists_and_watches_that_ask_for_that_name() {
    let cluster = Cluster::start().await;
    cluster.apply(&secret("a", "1")).await;
    cluster.apply(&secret("b", "1")).await;
    let user = cluster.user(PAYMENTS, "tlsward").await;
    user.allow(PAYMENTS, only("a")).await;
    let client = by_file(&user.kubeconfig()).await;
    assert_eq!(value_of(&secrets(&client).get("a").await.unwrap()), "1");
    let config = watcher::Config::default().fields("metadata.name=a");
    let mut seen = watched(secrets(&client), config);
    let initial = events::<3>(&mut seen).await;
    assert_eq!(initial, ["Init", "InitApply(a)", "InitDone"]);
    cluster.apply(&secret("b", "2")).await;
    cluster.apply(&secret("a", "2")).await;
    assert_eq!(events::<1>(&mut seen).await, ["Apply(a)"]);
}

#[tokio::test]
async fn whatever_no_rule_covers_is_refused_with_the_verb_that_is_missing() {
    let cluster = Cluster::start().await;
    cluster.apply(&secret("a", "1")).await;
    cluster.apply(&secret("b", "1")).await;
    let user = cluster.user(PAYMENTS, "tlsward").await;
    user.allow(PAYMENTS, only("a")).await;
    let client = user.client();
    let base = "/api/v1/namespaces/payments/secrets";
    let core = "resource \"secrets\" in API group \"\" in the namespace \"payments\"";
    for (path, what, verb, rest) in [
        (format!("{base}/b"), "secrets \"b\"", "get", core),
        (base.to_owned(), "secrets", "list", core),
        (format!("{base}?watch=true"), "secrets", "watch", core),
        (
            format!("{base}?fieldSelector=metadata.name%3Db"),
            "secrets \"b\"",
            "list",
            core,
        ),
        (
            format!("{base}?fieldSelector=metadata.name!%3Da"),
            "secrets",
            "list",
            core,
        ),
        (
            "/api/v1/secrets?fieldSelector=metadata.name%3Da".to_owned(),
            "secrets \"a\"",
            "list",
            "resource \"secrets\" in API group \"\" at the cluster scope",
        ),
        (
            "/apis/discovery.k8s.io/v1/namespaces/payments/endpointslices".to_owned(),
            "endpointslices.discovery.k8s.io",
            "list",
            "resource \"endpointslices\" in API group \"discovery.k8s.io\" in the namespace \
             \"payments\"",
        ),
    ] {
        let refused = ask(&client, &path).await.unwrap_err();
        assert_eq!((refused.code, refused.reason.as_str()), (403, "Forbidden"));
        assert_eq!(
            refused.message,
            format!(
                "{what} is forbidden: User \"system:serviceaccount:payments:tlsward\" cannot \
                 {verb} {rest}"
            )
        );
    }
}

#[tokio::test]
async fn a_role_of_the_cluster_covers_all_namespaces() {
    let cluster = Cluster::start().await;
    cluster.apply(&secret("a", "1")).await;
    cluster
        .apply(&objects::secret("other", "a", "Opaque", &[("value", "1")]))
        .await;
    let user = cluster.user(PAYMENTS, "tlsward").await;
    user.allow("*", only("a")).await;
    let path = "/api/v1/secrets?fieldSelector=metadata.name%3Da";
    let list = ask(&user.client(), path).await.unwrap();
    assert_eq!(list["items"].as_array().unwrap().len(), 2);
    let cluster_wide = json!([{
        "apiGroups": ["certificates.k8s.io"],
        "resources": ["clustertrustbundles"],
        "verbs": ["list"],
    }]);
    user.allow("*", cluster_wide).await;
    let path = "/apis/certificates.k8s.io/v1beta1/clustertrustbundles";
    ask(&user.client(), path).await.unwrap();
}

#[tokio::test]
async fn a_token_that_nobody_has_is_401_and_none_at_all_is_anonymous() {
    let cluster = Cluster::start().await;
    cluster.namespace(PAYMENTS).await;
    let path = "/api/v1/namespaces/payments/secrets";
    let refused = ask(&cluster.client("nobody-s"), path).await.unwrap_err();
    assert_eq!(
        (refused.code, refused.reason.as_str()),
        (401, "Unauthorized")
    );
    assert_eq!(refused.message, "Unauthorized");
    let refused = ask(&cluster.client(""), path).await.unwrap_err();
    assert_eq!(refused.code, 403);
    let who = "User \"system:anonymous\" cannot list resource";
    assert!(refused.message.contains(who), "{}", refused.message);
    ask(&cluster.client(""), "/version").await.unwrap();
    let refused = ask(&cluster.client(""), "/api").await.unwrap_err();
    assert_eq!(
        refused.message,
        "forbidden: User \"system:anonymous\" cannot get path \"/api\""
    );
}

#[tokio::test]
async fn a_revoked_token_is_401_and_a_renewed_one_is_found_in_its_file() {
    let cluster = Cluster::start().await;
    cluster.apply(&secret("a", "1")).await;
    let user = cluster.user(PAYMENTS, "tlsward").await;
    user.allow(PAYMENTS, only("a")).await;
    let file = user.kubeconfig_with_token_file();
    let old = by_file(&file).await;
    secrets(&old).get("a").await.unwrap();
    user.revoke_token().await;
    let Err(kube::Error::Api(refused)) = secrets(&old).get("a").await else {
        panic!("the token goes on");
    };
    assert_eq!(refused.code, 401);
    user.renew_token().await;
    secrets(&by_file(&file).await).get("a").await.unwrap();
    secrets(&user.client()).get("a").await.unwrap();
}

#[tokio::test]
async fn rules_that_are_taken_back_cover_nothing_more_but_open_watches_go_on() {
    let cluster = Cluster::start().await;
    let start = cluster.apply(&secret("a", "1")).await;
    let user = cluster.user(PAYMENTS, "tlsward").await;
    user.allow(PAYMENTS, only("a")).await;
    let params = WatchParams::default().fields("metadata.name=a");
    let mut open = watch(&user.client(), params, &start).await;
    user.forbid_everything().await;
    let Err(kube::Error::Api(refused)) = secrets(&user.client()).get("a").await else {
        panic!("still allowed");
    };
    assert_eq!(refused.code, 403);
    cluster.apply(&secret("a", "2")).await;
    assert_eq!(next(&mut open).await, "MODIFIED a 2");
    user.allow(PAYMENTS, only("a")).await;
    secrets(&user.client()).get("a").await.unwrap();
}

#[tokio::test]
async fn the_files_of_a_pod_s_account_lead_to_the_server() {
    let cluster = Cluster::start().await;
    cluster.apply(&secret("a", "1")).await;
    let user = cluster.user(PAYMENTS, "tlsward").await;
    user.allow(PAYMENTS, only("a")).await;
    let files = user.account_files();
    let text = |name: &str| std::fs::read_to_string(files.join(name)).unwrap();
    assert_eq!(text("namespace"), PAYMENTS);
    let mut config = Config::new(cluster.url().parse().unwrap());
    config.auth_info.token_file = Some(files.join("token").to_str().unwrap().to_owned());
    config.root_cert = Some(vec![objects::der(&text("ca.crt"))]);
    let client = Client::try_from(config).unwrap();
    secrets(&client).get("a").await.unwrap();
}

#[tokio::test]
async fn a_kubeconfig_reaches_the_server_over_plain_http_too() {
    let cluster = Cluster::in_process_over_http().await;
    assert!(cluster.url().starts_with("http://"));
    cluster.apply(&secret("a", "1")).await;
    let user = cluster.user(PAYMENTS, "tlsward").await;
    user.allow(PAYMENTS, only("a")).await;
    let client = by_file(&user.kubeconfig()).await;
    assert_eq!(value_of(&secrets(&client).get("a").await.unwrap()), "1");
}
