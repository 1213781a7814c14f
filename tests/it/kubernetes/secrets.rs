//! Certificates out of Secrets.

use serde_json::json;

use super::{NAMESPACE, SECRET, Scene};
use crate::key_memory::{Traces, gone};
use crate::support::kube::{Cluster, objects};
use crate::support::load::rotation_loses_no_connection;
use crate::support::net;
use crate::support::pki::Issued;
use crate::support::proxy::{Proxy, serial_in_use};
use crate::support::scene::{NAME, introduce, visit};
use crate::support::within;

#[tokio::test]
async fn a_secret_is_the_identity_and_its_successor_is_used_within_a_second() {
    let cluster = Cluster::start().await;
    let scene = Scene::new(&cluster).await;
    let first = scene.pki.client(NAME);
    scene.put(&first).await;
    let proxy = scene.start().await;
    let (mut old, seen) = introduce(&scene.service).await;
    assert_eq!(seen.serial, first.serial());

    let second = scene.pki.client(NAME);
    scene.put(&second).await;
    let put = std::time::Instant::now();
    in_use(&proxy, &second).await;
    let took = put.elapsed();
    assert!(took.as_secs_f64() < 1.0, "{took:?}");
    assert_eq!(visit(&scene.service).await.serial, second.serial());
    old.echo(b"the connection from before goes on").await;
}

/// What is left of the answers themselves lies in the buffers of rustls, so that is looked for
/// where there is no TLS.
#[tokio::test]
async fn of_a_secret_that_was_replaced_no_key_is_left() {
    for over_http in [false, true] {
        let cluster = match over_http {
            false => Cluster::start().await,
            true => Cluster::in_process_over_http().await,
        };
        let scene = Scene::new(&cluster).await;
        let (first, second) = (scene.pki.client(NAME), scene.pki.client(NAME));
        scene.put(&first).await;
        let proxy = scene.start().await;
        let (mut open, _) = introduce(&scene.service).await;
        scene.put(&second).await;
        in_use(&proxy, &second).await;
        open.finish_sending().await;
        assert_eq!(open.ending().await, net::Ending::Fin);
        drop(open);
        gone(&proxy, &Traces::of(&first.key_pem()), "the old key").await;
        if over_http {
            for issued in [&first, &second] {
                let traces = Traces::of_base64(&issued.key_pem());
                gone(&proxy, &traces, "the answer of the API server").await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_rotations_of_a_secret_under_load_lose_no_connection() {
    let cluster = Cluster::start().await;
    let scene = Scene::new(&cluster).await;
    let generations: Vec<_> = (0..=200).map(|_| scene.pki.client(NAME)).collect();
    scene.put(&generations[0]).await;
    let proxy = scene.start().await;
    let put = async |_: usize, issued: &Issued| {
        scene.put(issued).await;
    };
    rotation_loses_no_connection(&proxy, &scene.service, &generations, put).await;
}

#[tokio::test]
async fn while_the_secret_is_missing_callers_are_refused_and_it_comes_alive_when_it_appears() {
    let cluster = Cluster::start().await;
    let scene = Scene::new(&cluster).await;
    let mut proxy = Proxy::start_degraded(&scene.pki, &scene.config).await;
    proxy
        .wait_for_service(NAME, "the Secret to be missed", |service| {
            (service["problem"]["reason"] == "identity_missing").then_some(())
        })
        .await;
    assert_eq!(proxy.get("/readyz").await.code, 503);
    assert!(
        net::Caller::try_connect(scene.service.address())
            .await
            .is_err()
    );

    let client = scene.pki.client(NAME);
    scene.put(&client).await;
    proxy.wait_until_ready().await;
    assert_eq!(visit(&scene.service).await.serial, client.serial());
}

#[tokio::test]
async fn what_is_wrong_with_a_newer_secret_is_said_everywhere_and_the_last_good_one_goes_on() {
    let cluster = Cluster::start().await;
    let scene = Scene::new(&cluster).await;
    let good = scene.pki.client(NAME);
    let secret = scene.put(&good).await;
    let proxy = scene.start().await;
    in_use(&proxy, &good).await;
    let (mut old, _) = introduce(&scene.service).await;

    let other = scene.pki.client(NAME);
    let good_pem = (good.chain_pem(), good.key_pem());
    let cases = [
        (
            "bad_pem",
            "kubernetes.io/tls",
            vec![("tls.crt", "junk"), ("tls.key", &good_pem.1)],
        ),
        (
            "bad_secret",
            "Opaque",
            vec![("certificate", &good_pem.0), ("key", &good_pem.1)],
        ),
    ];
    for (reason, kind, data) in cases {
        // A Secret's type cannot be changed: it is deleted and made anew, as an operator would.
        cluster.delete(&secret).await;
        let junk = objects::secret(NAMESPACE, SECRET, kind, &data);
        let junk = cluster.apply(&junk).await;
        expect_refused(&proxy, reason).await;
        let event = cluster.event_of(&junk, &camel(reason)).await;
        let note = event["message"].as_str().unwrap();
        assert!(note.contains(reason), "{note}");
        assert!(!note.contains("PRIVATE KEY"), "{note}");
        assert_eq!(
            visit(&scene.service).await.serial,
            good.serial(),
            "{reason}"
        );
    }

    // A certificate whose key does not fit is a rotation under way at first.
    let mismatch = objects::secret(
        NAMESPACE,
        SECRET,
        "Opaque",
        &[("tls.crt", &other.chain_pem()), ("tls.key", &good_pem.1)],
    );
    cluster.delete(&secret).await;
    cluster.apply(&mismatch).await;
    expect_refused(&proxy, "key_mismatch").await;

    cluster.delete(&secret).await;
    expect_refused(&proxy, "identity_missing").await;
    assert_eq!(visit(&scene.service).await.serial, good.serial());
    assert_eq!(proxy.get("/readyz").await.code, 200);
    old.echo(b"and the old connection never noticed").await;

    scene.put(&other).await;
    in_use(&proxy, &other).await;
}

#[tokio::test]
async fn ca_certificates_come_from_a_config_map_and_from_the_secret_itself() {
    let cluster = Cluster::start().await;
    let scene = Scene::new(&cluster).await;
    let client = scene.pki.client(NAME);
    let pem = (client.chain_pem(), client.key_pem(), scene.pki.root.pem());
    let data = [
        ("tls.crt", &*pem.0),
        ("tls.key", &pem.1),
        ("ca.crt", &pem.2),
    ];
    cluster
        .apply(&objects::secret(
            NAMESPACE,
            SECRET,
            "kubernetes.io/tls",
            &data,
        ))
        .await;
    let map = objects::config_map(NAMESPACE, "roots", &[("root.pem", &pem.2)]);
    cluster.apply(&map).await;
    scene
        .user
        .allow(NAMESPACE, json!([super::named("configmaps", "roots")]))
        .await;

    let of_secret = scene.service.clone().without_tls("ca");
    let of_map = scene
        .service
        .clone()
        .named("ledger")
        .listening_on(net::address())
        .tls(
            "ca",
            "{ configmap = \"payments/roots\", key = \"root.pem\" }",
        );
    let config = scene
        .config
        .with_services([of_secret.clone(), of_map.clone()]);
    let proxy = Proxy::start(&scene.pki, &config).await;
    for service in [&of_secret, &of_map] {
        assert_eq!(visit(service).await.serial, client.serial());
    }

    // Another CA: the server is not verified any more, and nothing is sent to it.
    let stranger = crate::support::pki::Ca::root("stranger").pem();
    cluster
        .patch(&map, &json!({ "data": { "root.pem": stranger } }))
        .await;
    proxy
        .wait_for_service("ledger", "the new CA", |service| {
            (service["trust"]["generation"] == 2).then_some(())
        })
        .await;
    let mark = scene.upstream.mark();
    net::is_reset(of_map.address()).await;
    proxy.last_failure("ledger", "untrusted_issuer").await;
    assert_eq!(visit(&of_secret).await.serial, client.serial());
    let _ = mark;
}

/// Waits until status shows this certificate in use.
pub(super) async fn in_use(proxy: &Proxy, issued: &Issued) {
    let serial = issued.serial();
    proxy
        .wait_for_service(NAME, format!("certificate {serial} in use"), |service| {
            (serial_in_use(service) == Some(&*serial)).then_some(())
        })
        .await;
}

/// That status, log and metric say that the newest Secret is not in use for this reason.
async fn expect_refused(proxy: &Proxy, reason: &str) {
    proxy
        .wait_for_service(NAME, format!("identity refused: {reason}"), |service| {
            (service["identity"]["refused"]["reason"] == reason).then_some(())
        })
        .await;
    let line = proxy
        .wait_for_log(format!("a complaint of {reason}"), |line| {
            line.has("reason", reason) && !line.has("level", "INFO")
        })
        .await;
    assert!(line.text("hint").is_some(), "{line:?}");
    let labels = [("source", "identity"), ("result", reason)];
    let counted = within("the metric", async {
        proxy.metric("tlsward_reloads_total", &labels).await
    })
    .await;
    assert!(counted >= 1.0, "{reason}");
}

/// `bad_pem` as an Event has it: `BadPem`.
fn camel(reason: &str) -> String {
    reason
        .split('_')
        .map(|word| word[..1].to_uppercase() + &word[1..])
        .collect()
}
