use std::collections::BTreeSet;

use serde_json::json;

use super::*;
use crate::cluster::DataKey;
use crate::config::kubernetes::{Discovery, Namespaces, ObjectRef, SecretWatch};
use crate::kubernetes::test_api::{Api, api};

fn key(name: &str) -> DataKey {
    DataKey::Secret(ObjectRef::new("payments", name))
}

fn secrets(names: &[&str]) -> Wanted {
    Wanted {
        data: names.iter().map(|name| key(name)).collect(),
        ..Wanted::default()
    }
}

fn secret(name: &str) -> serde_json::Value {
    json!({ "metadata": { "name": name, "namespace": "payments" }, "data": {} })
}

/// What follows the store, at a server that the test plays.
struct Scene {
    api: Api,
    store: Arc<Store>,
    following: JoinSet<()>,
}

impl Scene {
    fn of(wanted: Wanted) -> Self {
        let (server, api) = api();
        let store = Store::new(None);
        store.follow(wanted);
        let site = Arc::new(Site::new(server, Arc::clone(&store)));
        let found = Arc::new(Discovered::new(Arc::clone(&store)));
        let mut wanted = store.wanted();
        let mut following = JoinSet::new();
        following.spawn(async move {
            let mut tasks = JoinSet::new();
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            follow_at(&site, &found, &provider, &mut wanted, &mut tasks).await;
            tasks.shutdown().await;
        });
        Self {
            api,
            store,
            following,
        }
    }

    /// Answers lists of these Secrets and leaves their watches open, in whatever order they come.
    async fn settle(&mut self, names: &[&str]) -> Vec<Open> {
        let mut watches = Vec::new();
        while watches.len() < names.len() {
            let asked = self.api.next().await;
            let name = names
                .iter()
                .find(|name| asked.path.contains(&format!("metadata.name%3D{name}")))
                .unwrap_or_else(|| panic!("{} was not to be asked", asked.path));
            if asked.is_watch() {
                watches.push(Open {
                    name: (*name).to_owned(),
                    feed: asked.watch(),
                });
            } else {
                asked.list("10", &[secret(name)]);
            }
        }
        watches
    }
}

/// A watch that is open.
struct Open {
    name: String,
    feed: tokio::sync::mpsc::UnboundedSender<hyper::body::Bytes>,
}

#[tokio::test(start_paused = true)]
async fn only_what_is_new_is_begun_and_only_what_is_gone_is_ended() {
    let mut scene = Scene::of(secrets(&["a", "b"]));
    let watches = scene.settle(&["a", "b"]).await;
    scene.store.follow(secrets(&["b", "c"]));
    let mut new = scene.settle(&["c"]).await;
    for open in &watches {
        let is_over = async { open.feed.closed().await };
        let is_over = tokio::time::timeout(Duration::from_secs(1), is_over).await;
        assert_eq!(is_over.is_ok(), open.name == "a", "{}", open.name);
    }
    assert_eq!(scene.api.line.dials(), 3);

    // Nothing at all: everything ends, and this server is done with.
    scene.store.follow(Wanted::default());
    scene.following.join_next().await.unwrap().unwrap();
    new.pop().unwrap().feed.closed().await;
    for open in watches {
        open.feed.closed().await;
    }
}

#[tokio::test(start_paused = true)]
async fn another_kubeconfig_or_context_is_another_server() {
    for change in [
        Kubernetes {
            kubeconfig: Some("/other".into()),
            ..Kubernetes::default()
        },
        Kubernetes {
            context: Some("other".into()),
            ..Kubernetes::default()
        },
    ] {
        let mut scene = Scene::of(secrets(&["a"]));
        let _watches = scene.settle(&["a"]).await;
        scene.store.follow(Wanted {
            settings: Kubernetes {
                zone: Some("zone-a".into()),
                ..Kubernetes::default()
            },
            ..secrets(&["a"])
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(
            scene.following.try_join_next().is_none(),
            "a zone is no server"
        );
        scene.store.follow(Wanted {
            settings: change,
            ..secrets(&["a"])
        });
        scene.following.join_next().await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_not_wanted_for_a_moment_is_asked_for_again() {
    let mut scene = Scene::of(secrets(&["a", "b"]));
    let watches = scene.settle(&["a", "b"]).await;
    // Faster than anybody here looks.
    scene.store.follow(secrets(&["b"]));
    scene.store.follow(secrets(&["a", "b"]));
    assert_eq!(scene.store.data(&key("a")).value, None);
    let _again = scene.settle(&["a"]).await;
    while scene.store.data(&key("a")).value.is_none() {
        scene.store.data_changed().await;
        scene.store.take_changed_data();
    }
    let other = watches.iter().find(|open| open.name == "b").unwrap();
    assert!(!other.feed.is_closed());
}

#[tokio::test(start_paused = true)]
async fn one_more_in_a_watch_of_many_costs_a_list_in_which_nothing_vanishes() {
    let namespace = |names: &[&str]| {
        let mut wanted = secrets(names);
        wanted.settings.secrets = SecretWatch::Namespace;
        wanted
    };
    const PATH: &str = "/api/v1/namespaces/payments/secrets";
    let mut scene = Scene::of(namespace(&["a"]));
    let all = [secret("a"), secret("b")];
    scene.api.expect(PATH, &["limit=50"]).await.list("10", &all);
    let first = scene.api.expect(PATH, &["watch=true"]).await.watch();
    scene.store.follow(namespace(&["a", "b"]));
    let list = scene.api.expect(PATH, &["limit=50"]).await;
    first.closed().await;
    assert!(scene.store.data(&key("a")).value.is_some());
    list.list("11", &all);
    let _second = scene
        .api
        .expect(PATH, &["resourceVersion=11"])
        .await
        .watch();
    let both: BTreeSet<DataKey> = [key("a"), key("b")].into();
    let known = both
        .iter()
        .filter(|key| scene.store.data(key).value.flatten().is_some());
    assert_eq!(known.count(), 2);
}

#[tokio::test(start_paused = true)]
async fn changes_that_come_together_are_acted_on_together() {
    let mut scene = Scene::of(secrets(&["a"]));
    let _watches = scene.settle(&["a"]).await;
    let services = |count: usize| Wanted {
        endpoints: (0..count)
            .map(|number| ObjectRef::new("payments", format!("s{number}")))
            .collect(),
        ..secrets(&["a"])
    };
    for count in 5..50 {
        scene.store.follow(services(count));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    let mut lists = 0;
    while let Some(asked) = scene.api.try_next() {
        assert!(asked.path.contains("endpointslices?"), "{}", asked.path);
        lists += 1;
    }
    assert!((1..=4).contains(&lists), "{lists} lists of 45 changes");
}

#[tokio::test(start_paused = true)]
async fn another_selector_forgets_what_the_old_one_found() {
    let discovery = |selector: &str| {
        let mut wanted = Wanted::default();
        wanted.settings.discovery = Some(Discovery {
            namespaces: Namespaces::These(["payments".to_owned()].into()),
            selector: Some(selector.to_owned()),
            listen_address: Discovery::LISTEN_ADDRESS,
            socket_directory: None,
        });
        wanted
    };
    const PATH: &str = "/api/v1/namespaces/payments/services";
    let service = |name: &str| {
        json!({ "metadata": {
            "name": name, "namespace": "payments", "annotations": { "tlsward/listen": "7001" },
        } })
    };
    let names = |store: &Store| {
        let all = store.discovered().value.flatten();
        all.map(|all| {
            all.into_keys()
                .map(|object| object.name)
                .collect::<Vec<_>>()
        })
    };
    let mut scene = Scene::of(discovery("team=a"));
    let asked = scene.api.expect(PATH, &["labelSelector=team%3Da"]).await;
    asked.list("10", &[service("one")]);
    let _watch = scene.api.expect(PATH, &["watch=true"]).await.watch();
    assert_eq!(names(&scene.store).unwrap(), ["one"]);
    scene.store.follow(discovery("team=b"));
    let asked = scene.api.expect(PATH, &["labelSelector=team%3Db"]).await;
    assert_eq!(names(&scene.store), None);
    // Not even where the new one cannot be asked.
    asked.refuse(403, "Forbidden", "no");
    while scene.store.discovered().trouble.is_none() {
        scene.store.changed().await;
        scene.store.take_changes();
    }
    assert_eq!(names(&scene.store), None);
    let asked = scene.api.expect(PATH, &["labelSelector=team%3Db"]).await;
    asked.list("11", &[service("two")]);
    let _watch = scene.api.expect(PATH, &["watch=true"]).await.watch();
    assert_eq!(names(&scene.store).unwrap(), ["two"]);
}

#[tokio::test(start_paused = true)]
async fn where_no_server_is_found_all_that_is_wanted_is_in_trouble_that_says_what_was_tried() {
    let store = Store::new(None);
    let mut wanted = secrets(&["a"]);
    wanted.settings.kubeconfig = Some("/nowhere/kubeconfig".into());
    wanted
        .services
        .insert(ObjectRef::new("payments", "billing"));
    wanted
        .endpoints
        .insert(ObjectRef::new("payments", "billing"));
    let stop = CancellationToken::new();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut running = JoinSet::new();
    running.spawn(run(Arc::clone(&store), provider, stop.clone()));
    store.follow(wanted);
    while store.troubles().len() < 3 {
        store.changed().await;
        store.take_changes();
    }
    for why in store.troubles().values() {
        assert_eq!(why.reason, Reason::ApiUnavailable);
        assert!(why.detail.contains("/nowhere/kubeconfig"), "{why}");
    }
    stop.cancel();
    running.join_next().await.unwrap().unwrap();
}

/// Whom the test's server is told that we are, after somebody has replaced our token.
#[tokio::test(start_paused = true)]
async fn a_token_that_was_replaced_is_taken_up_where_the_old_one_is_refused() {
    let dir = tempfile::TempDir::new().unwrap();
    let kubeconfig = dir.path().join("kubeconfig");
    let write = |token: &str| {
        let text = format!(
            "{{apiVersion: v1, kind: Config, current-context: c, \
             clusters: [{{name: c, cluster: {{server: \"https://api:1\"}}}}], \
             contexts: [{{name: c, context: {{cluster: c, user: u}}}}], \
             users: [{{name: u, user: {{token: {token}}}}}]}}"
        );
        std::fs::write(&kubeconfig, text).unwrap();
    };
    write("old");
    let settings = Kubernetes {
        kubeconfig: Some(kubeconfig.clone()),
        ..Kubernetes::default()
    };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let server = Server::find(&settings, &provider).await.unwrap();
    let site = Site::new(server, Store::new(None));
    let token = || async {
        let headers = site.server().headers().await.unwrap();
        headers["authorization"].to_str().unwrap().to_owned()
    };
    let mut renewing = Box::pin(stay_known(&site, &settings, &provider));
    let mut wait = async |time| tokio::time::timeout(time, &mut renewing).await;
    site.unknown.notify_one();
    assert!(wait(Duration::from_secs(60)).await.is_err());
    assert_eq!(token().await, "Bearer old");
    write("new");
    site.unknown.notify_one();
    assert!(wait(Duration::from_secs(60)).await.is_err());
    assert_eq!(token().await, "Bearer new");
    // Whoever was refused is not kept waiting.
    write("newer");
    site.unknown.notify_one();
    let begun = tokio::time::Instant::now();
    tokio::select! {
        () = pause(Duration::from_secs(3600), &site.store) => {}
        () = &mut renewing => panic!("it is the same server"),
    }
    assert!(begun.elapsed() < Duration::from_secs(60));
}

#[test]
fn outside_of_a_pod_there_is_no_own_namespace() {
    assert_eq!(own_namespace(), None);
}
