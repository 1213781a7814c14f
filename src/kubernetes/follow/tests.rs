use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::*;
use crate::cluster::{DataKey, Subject, Wanted};
use crate::config::kubernetes::ObjectRef;
use crate::failure::Reason;
use crate::kubernetes::collect::{Filter, secrets, trust_bundles};
use crate::kubernetes::plan::{DataKind, Watch};
use crate::kubernetes::test_api::{Api, api, event, refusal};

const SECRETS: &str = "/api/v1/namespaces/payments/secrets";

fn key(name: &str) -> DataKey {
    DataKey::Secret(ObjectRef::new("payments", name))
}

fn secret(name: &str, version: &str, text: &str) -> Value {
    json!({
        "metadata": {
            "name": name, "namespace": "payments", "uid": "u1", "resourceVersion": version,
            "managedFields": [{ "manager": "kubectl" }],
        },
        "type": "kubernetes.io/tls",
        "data": { "tls.crt": BASE64_STANDARD.encode(text) },
    })
}

struct Scene {
    api: Api,
    store: Arc<Store>,
    site: Arc<Site>,
    tasks: JoinSet<Infallible>,
}

impl Scene {
    /// Secrets of these names are wanted, and nobody follows them yet.
    fn new(names: &[&str]) -> Self {
        let (server, api) = api();
        let store = Store::new(None);
        store.follow(Wanted {
            data: names.iter().map(|name| key(name)).collect(),
            ..Wanted::default()
        });
        Self {
            api,
            site: Arc::new(Site::new(server, Arc::clone(&store))),
            store,
            tasks: JoinSet::new(),
        }
    }

    /// Each is followed by a watch of its own.
    fn following(names: &[&str]) -> Self {
        let mut scene = Self::new(names);
        for name in names {
            scene.follow(&Watch::Data(key(name)), &[name]);
        }
        scene
    }

    fn follow(&mut self, watch: &Watch, names: &[&str]) {
        let wanted = Filter {
            data: names.iter().map(|name| key(name)).collect(),
            ..Filter::default()
        };
        let collect = secrets(Arc::clone(&self.store), Arc::new(wanted));
        let site = Arc::clone(&self.site);
        let follower = Follower::new(site, watch.target(), Box::new(collect), Arc::default());
        self.tasks.spawn(follower.run());
    }

    async fn expect_list(&mut self) -> crate::kubernetes::test_api::Asked {
        let asked = self.api.expect(SECRETS, &[]).await;
        assert!(!asked.is_watch(), "{}", asked.path);
        asked
    }

    async fn expect_watch(&mut self, version: &str) -> crate::kubernetes::test_api::Asked {
        let version = format!("resourceVersion={version}");
        self.api
            .expect(SECRETS, &["watch=true", version.as_str()])
            .await
    }

    /// What is known: `None`: nothing, `Some(None)`: that it does not exist.
    fn text(&self, name: &str) -> Option<Option<String>> {
        let value = self.store.data(&key(name)).value?;
        Some(value.map(|data| String::from_utf8(data.entries["tls.crt"].to_vec()).unwrap()))
    }

    async fn until_text(&self, name: &str, text: Option<&str>) {
        let text = Some(text.map(ToOwned::to_owned));
        while self.text(name) != text {
            self.store.data_changed().await;
            self.store.take_changed_data();
        }
    }

    fn trouble(&self, name: &str) -> Option<Explained> {
        let subject = Subject::Data(key(name));
        self.store.troubles().remove(&subject)
    }

    async fn until_trouble(&self, name: &str, there: bool) -> Option<Explained> {
        while self.trouble(name).is_some() != there {
            self.store.changed().await;
            self.store.take_changes();
        }
        self.trouble(name)
    }
}

#[tokio::test(start_paused = true)]
async fn one_object_is_asked_for_by_name_and_what_becomes_of_it_is_known() {
    let mut scene = Scene::following(&["billing"]);
    let by_name = "fieldSelector=metadata.name%3Dbilling";
    let asked = scene.api.expect(SECRETS, &[by_name]).await;
    assert!(!asked.is_watch());
    asked.list("10", &[secret("billing", "9", "one")]);
    let watch = scene
        .api
        .expect(
            SECRETS,
            &[
                by_name,
                "watch=true",
                "resourceVersion=10",
                "allowWatchBookmarks=true",
            ],
        )
        .await
        .watch();
    scene.until_text("billing", Some("one")).await;
    let data = scene.store.data(&key("billing")).value.unwrap().unwrap();
    assert_eq!(
        (data.uid.as_str(), data.kind.as_str()),
        ("u1", "kubernetes.io/tls")
    );

    watch
        .send(event("MODIFIED", &secret("billing", "11", "two")))
        .unwrap();
    scene.until_text("billing", Some("two")).await;
    watch
        .send(event("DELETED", &secret("billing", "12", "two")))
        .unwrap();
    scene.until_text("billing", None).await;
    watch
        .send(event("ADDED", &secret("billing", "13", "three")))
        .unwrap();
    scene.until_text("billing", Some("three")).await;
    assert_eq!(scene.api.line.dials(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_object_that_no_list_holds_is_known_not_to_exist() {
    let mut scene = Scene::following(&["billing"]);
    scene.expect_list().await.list("10", &[]);
    let _watch = scene.expect_watch("10").await.watch();
    scene.until_text("billing", None).await;
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_ends_goes_on_from_the_last_bookmark_on_the_same_connection() {
    let mut scene = Scene::following(&["billing"]);
    scene.expect_list().await.list("10", &[]);
    let watch = scene.expect_watch("10").await.watch();
    let bookmark = json!({
        "kind": "Secret", "apiVersion": "v1",
        "metadata": { "resourceVersion": "20", "creationTimestamp": null },
    });
    watch.send(event("BOOKMARK", &bookmark)).unwrap();
    drop(watch);
    let watch = scene.expect_watch("20").await.watch();
    // In two pieces, the first of which ends in the middle.
    let line = event("ADDED", &secret("billing", "21", "one"));
    watch.send(line.slice(..50)).unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    watch.send(line.slice(50..)).unwrap();
    scene.until_text("billing", Some("one")).await;
    drop(watch);
    scene.expect_watch("21").await;
    assert_eq!(scene.api.line.dials(), 1);
    assert_eq!(scene.trouble("billing"), None);
}

#[tokio::test(start_paused = true)]
async fn a_watch_is_ended_in_some_minutes_and_one_that_is_silent_longer_is_given_up() {
    let mut scene = Scene::following(&["billing"]);
    scene.expect_list().await.list("10", &[]);
    let asked = scene.expect_watch("10").await;
    let (_, rest) = asked.path.split_once("timeoutSeconds=").unwrap();
    let seconds: u64 = rest.split('&').next().unwrap().parse().unwrap();
    assert!((240..=360).contains(&seconds), "{seconds}");
    let _silent = asked.watch();
    let begun = Instant::now();
    let asked = scene.expect_watch("10").await;
    let waited = begun.elapsed().as_secs();
    assert!((seconds..=seconds + 15).contains(&waited), "{waited}");
    assert_eq!(scene.api.line.dials(), 2);
    drop(asked);
}

#[tokio::test(start_paused = true)]
async fn a_broken_connection_costs_no_list_and_no_trouble() {
    let mut scene = Scene::following(&["billing"]);
    scene
        .expect_list()
        .await
        .list("10", &[secret("billing", "9", "one")]);
    let _watch = scene.expect_watch("10").await.watch();
    scene.until_text("billing", Some("one")).await;
    scene.api.line.cut();
    scene.api.line.restore();
    scene.expect_watch("10").await.watch();
    assert_eq!(scene.trouble("billing"), None);
}

#[tokio::test(start_paused = true)]
async fn a_version_that_is_too_old_or_too_new_costs_a_list_in_whatever_form_it_is_said() {
    let too_old = refusal(410, "Expired", "too old resource version: 10 (20)");
    let too_large = json!({
        "kind": "Status", "status": "Failure", "code": 504, "reason": "Timeout",
        "message": "Timeout: Too large resource version: 10, current: 5",
        "details": { "causes": [{ "reason": "ResourceVersionTooLarge" }], "retryAfterSeconds": 1 },
    });
    for (in_watch, status) in [
        (true, &too_old),
        (false, &too_old),
        (true, &too_large),
        (false, &too_large),
    ] {
        let mut scene = Scene::following(&["billing"]);
        scene
            .expect_list()
            .await
            .list("10", &[secret("billing", "9", "one")]);
        let asked = scene.expect_watch("10").await;
        let code = status["code"].as_u64().unwrap().try_into().unwrap();
        if in_watch {
            asked.watch().send(event("ERROR", status)).unwrap();
        } else {
            asked.status(code, &[], status);
        }
        let again = scene.expect_list().await;
        // Nothing vanishes meanwhile, and nothing is called trouble.
        assert_eq!(scene.text("billing"), Some(Some("one".into())));
        assert_eq!(scene.trouble("billing"), None);
        again.list("30", &[]);
        let _watch = scene.expect_watch("30").await.watch();
        scene.until_text("billing", None).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_was_set_back_is_listed_anew() {
    let mut scene = Scene::following(&["billing"]);
    scene.expect_list().await.list("1000", &[]);
    let watch = scene.expect_watch("1000").await.watch();
    let bookmark = json!({ "metadata": { "resourceVersion": "999" } });
    watch.send(event("BOOKMARK", &bookmark)).unwrap();
    scene.expect_list().await.list("999", &[]);
    scene.expect_watch("999").await;
}

#[tokio::test(start_paused = true)]
async fn a_list_in_pages_replaces_what_was_known_when_it_is_complete_and_not_before() {
    let mut scene = Scene::new(&["a", "b", "c"]);
    let watch = Watch::DataOf(DataKind::Secrets, "payments".into());
    scene.follow(&watch, &["a", "b", "c"]);
    let items = ["a", "b", "other"].map(|name| secret(name, "9", "one"));
    scene
        .api
        .expect(SECRETS, &["limit=50"])
        .await
        .list("10", &items);
    let watch = scene.expect_watch("10").await.watch();
    scene.until_text("c", None).await;
    assert_eq!(scene.text("other"), None, "nobody wants it");

    let too_old = refusal(410, "Expired", "too old");
    watch.send(event("ERROR", &too_old)).unwrap();
    let page = |token: &str, item: Value| {
        json!({
            "metadata": { "resourceVersion": "30", "continue": token, "remainingItemCount": 1 },
            "items": [item],
        })
    };
    let asked = scene.api.expect(SECRETS, &["limit=50"]).await;
    asked.json(&page("a=b", secret("c", "25", "two")));
    let asked = scene
        .api
        .expect(SECRETS, &["limit=50", "continue=a%3Db"])
        .await;
    assert_eq!(scene.text("a"), Some(Some("one".into())));
    // The pages are too old as well: it begins anew, and what the first page said is no answer.
    asked.refuse(410, "Expired", "The provided continue parameter is too old");
    let asked = scene.api.expect(SECRETS, &["limit=50"]).await;
    assert!(!asked.path.contains("continue"), "{}", asked.path);
    asked.json(&page("", secret("a", "26", "two")));
    let _watch = scene.expect_watch("30").await.watch();
    scene.until_text("a", Some("two")).await;
    assert_eq!(scene.text("b"), Some(None));
    assert_eq!(scene.text("c"), Some(None));
}

#[tokio::test(start_paused = true)]
async fn a_refusal_names_verb_object_and_user_and_is_tried_again_for_this_object_alone() {
    let mut scene = Scene::following(&["billing"]);
    let message = "secrets \"billing\" is forbidden: User \"system:serviceaccount:payments:tlsward\" \
                   cannot list resource \"secrets\" in API group \"\" in the namespace \"payments\"";
    scene.expect_list().await.refuse(403, "Forbidden", message);
    let why = scene.until_trouble("billing", true).await.unwrap();
    assert_eq!(why.reason, Reason::Forbidden);
    assert_eq!(
        why.detail,
        "may not list secrets \"billing\" in namespace payments as system:serviceaccount:payments:tlsward"
    );
    assert!(scene.site.gate.is_open());

    let begun = Instant::now();
    for _ in 0..10 {
        scene.expect_list().await.refuse(403, "Forbidden", message);
    }
    let waited = begun.elapsed().as_secs();
    assert!((60..=250).contains(&waited), "{waited}");

    // Somebody has corrected the role, and says so.
    let begun = Instant::now();
    while scene.api.try_next().is_none_or(|asked| {
        asked.list("10", &[secret("billing", "9", "one")]);
        false
    }) {
        scene.store.hurry();
        tokio::task::yield_now().await;
    }
    let _watch = scene.expect_watch("10").await.watch();
    scene.until_text("billing", Some("one")).await;
    assert_eq!(begun.elapsed(), Duration::ZERO);
    assert_eq!(scene.trouble("billing"), None);
}

#[tokio::test(start_paused = true)]
async fn trouble_ends_when_a_watch_works_again_though_nothing_has_changed() {
    let mut scene = Scene::following(&["billing"]);
    scene
        .expect_list()
        .await
        .list("10", &[secret("billing", "9", "one")]);
    let forbidden = refusal(403, "Forbidden", "no");
    let watch = scene.expect_watch("10").await.watch();
    watch.send(event("ERROR", &forbidden)).unwrap();
    let why = scene.until_trouble("billing", true).await.unwrap();
    assert_eq!(
        why.detail,
        "may not watch secrets \"billing\" in namespace payments"
    );
    let _watch = scene.expect_watch("10").await.watch();
    scene.until_trouble("billing", false).await;
    assert_eq!(scene.text("billing"), Some(Some("one".into())));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_know_us_is_said_and_told_to_whoever_can_change_it() {
    let mut scene = Scene::following(&["billing"]);
    scene
        .expect_list()
        .await
        .refuse(401, "Unauthorized", "Unauthorized");
    let why = scene.until_trouble("billing", true).await.unwrap();
    assert_eq!(why.reason, Reason::Forbidden);
    assert_eq!(
        why.detail,
        "https://api: the API server does not know our token (401)"
    );
    scene.site.unknown.notified().await;
}

#[tokio::test(start_paused = true)]
async fn a_version_of_the_api_that_is_not_served_gives_way_to_the_next() {
    let name = "example.com:mtls:roots";
    let (server, mut api) = api();
    let store = Store::new(None);
    let bundle = DataKey::TrustBundle(name.into());
    store.follow(Wanted {
        data: [bundle.clone()].into(),
        ..Wanted::default()
    });
    let site = Arc::new(Site::new(server, Arc::clone(&store)));
    let wanted = Filter {
        data: vec![bundle.clone()],
        ..Filter::default()
    };
    let collect = trust_bundles(Arc::clone(&store), Arc::new(wanted));
    let target = Watch::Data(bundle.clone()).target();
    let mut tasks = JoinSet::new();
    tasks.spawn(Follower::new(site, target, Box::new(collect), Arc::default()).run());

    let path = |version| format!("/apis/certificates.k8s.io/{version}/clustertrustbundles");
    let by_name = "fieldSelector=metadata.name%3Dexample.com%3Amtls%3Aroots";
    for version in ["v1", "v1beta1", "v1alpha1"] {
        let asked = api.expect(&path(version), &[by_name]).await;
        asked.status(404, &[], &json!("404 page not found"));
    }
    while store.troubles().is_empty() {
        store.changed().await;
    }
    let why = &store.troubles()[&Subject::Data(bundle.clone())];
    assert_eq!(
        why.detail,
        "https://api: this API server does not serve ClusterTrustBundles"
    );
    // It may do so after an upgrade.
    api.expect(&path("v1"), &[by_name])
        .await
        .refuse(404, "NotFound", "");
    let asked = api.expect(&path("v1beta1"), &[by_name]).await;
    let item =
        json!({ "metadata": { "name": name, "uid": "u" }, "spec": { "trustBundle": "PEM" } });
    asked.list("10", &[item]);
    let _watch = api
        .expect(&path("v1beta1"), &[by_name, "watch=true"])
        .await
        .watch();
    while store.data(&bundle).value.is_none() {
        store.data_changed().await;
    }
    let data = store.data(&bundle).value.unwrap().unwrap();
    assert_eq!(&data.entries["ca.crt"][..], b"PEM");
}

#[tokio::test(start_paused = true)]
async fn a_silent_server_is_given_up_and_tried_again() {
    let mut scene = Scene::following(&["billing"]);
    let begun = Instant::now();
    let silent = scene.expect_list().await;
    let why = scene.until_trouble("billing", true).await.unwrap();
    assert_eq!(begun.elapsed(), Duration::from_secs(10));
    assert_eq!(why.reason, Reason::ApiUnavailable);
    assert_eq!(why.detail, "https://api: no answer within 10s");
    drop(silent);
    scene.expect_list().await.list("10", &[]);
    let _watch = scene.expect_watch("10").await.watch();
    scene.until_trouble("billing", false).await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_overrun_is_left_alone_for_as_long_as_it_says() {
    for code in [429, 503] {
        let mut scene = Scene::following(&["billing"]);
        let status = refusal(code, "TooManyRequests", "please try again later");
        let asked = scene.expect_list().await;
        asked.status(code, &[("retry-after", "7")], &status);
        let why = scene.until_trouble("billing", true).await.unwrap();
        assert!(why.detail.contains("please try again later"), "{why}");
        let begun = Instant::now();
        scene.expect_list().await;
        assert_eq!(begun.elapsed(), Duration::from_secs(7), "{code}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_ends_as_soon_as_it_has_begun_is_slowed_down() {
    let mut scene = Scene::following(&["billing"]);
    scene.expect_list().await.list("10", &[]);
    let begun = Instant::now();
    for _ in 0..10 {
        drop(scene.expect_watch("10").await.watch());
    }
    assert!(
        begun.elapsed() > Duration::from_secs(10),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_is_no_answer_and_is_not_quoted() {
    let mut scene = Scene::following(&["billing"]);
    let mut junk = secret("billing", "9", "one");
    junk["data"] = json!({ "tls.key": "S3CRET!" });
    scene.expect_list().await.list("10", &[junk.clone()]);
    let why = scene.until_trouble("billing", true).await.unwrap();
    assert_eq!(why.reason, Reason::ApiUnavailable);
    assert!(why.detail.contains("secrets \"billing\""), "{why}");
    assert!(!why.detail.contains("S3CRET"), "{why}");
    assert_eq!(scene.text("billing"), None);

    scene.expect_list().await.list("10", &[]);
    let watch = scene.expect_watch("10").await.watch();
    scene.until_trouble("billing", false).await;
    watch.send(event("ADDED", &junk)).unwrap();
    let why = scene.until_trouble("billing", true).await.unwrap();
    assert!(!why.detail.contains("S3CRET"), "{why}");
    // Whatever was meant, a list tells.
    scene.expect_list().await;
}

#[tokio::test(start_paused = true)]
async fn while_the_server_is_away_one_tries_and_when_it_is_back_all_go_on_from_where_they_were() {
    const WATCHES: usize = 100;
    let names: Vec<String> = (0..WATCHES).map(|number| format!("s{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut scene = Scene::following(&names);
    let mut watches = Vec::new();
    let mut open = 0;
    while watches.len() < WATCHES {
        let asked = scene.api.next().await;
        if asked.is_watch() {
            open -= 1;
            watches.push(asked.watch());
        } else {
            open += 1;
            assert!(open <= 16, "{open} lists at once");
            asked.list("10", &[]);
        }
    }
    let dials = scene.api.line.dials();
    assert_eq!(dials, WATCHES);

    scene.api.line.cut();
    let away = Duration::from_secs(180);
    tokio::time::sleep(away).await;
    let attempts = scene.api.line.dials() - dials;
    // 16 that went through the gate before it closed, then one every 1 to 2 s.
    assert!((90..220).contains(&attempts), "{attempts} attempts");
    for name in &names {
        let why = scene.trouble(name).expect("all are told");
        assert_eq!(why.reason, Reason::ApiUnavailable);
        assert_eq!(why.detail, "https://api: connection refused");
        assert_eq!(scene.text(name), Some(None), "what was known stays");
    }

    scene.api.line.restore();
    let back = Instant::now();
    let mut resumed = Vec::new();
    // Whoever tries looks whether the server is still the same.
    scene.expect_list().await.list("12", &[]);
    resumed.push(scene.expect_watch("12").await.watch());
    let mut first = None;
    while resumed.len() < WATCHES {
        let asked = scene.expect_watch("10").await;
        first.get_or_insert_with(Instant::now);
        resumed.push(asked.watch());
    }
    assert!(
        back.elapsed() < Duration::from_secs(4),
        "{:?}",
        back.elapsed()
    );
    // Not all in one moment.
    assert!(first.unwrap().elapsed() > Duration::from_millis(500));
    for name in &names {
        scene.until_trouble(name, false).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_comes_back_with_an_older_memory_is_listed_anew_by_all() {
    let mut scene = Scene::following(&["a", "b"]);
    let mut watches = Vec::new();
    while watches.len() < 2 {
        let asked = scene.api.next().await;
        if asked.is_watch() {
            watches.push(asked.watch());
        } else {
            asked.list("1000", &[]);
        }
    }
    scene.api.line.cut();
    tokio::time::sleep(Duration::from_secs(60)).await;
    scene.api.line.restore();
    for _ in 0..2 {
        scene.expect_list().await.list("400", &[]);
        watches.push(scene.expect_watch("400").await.watch());
    }
    // And that is it: the next time each goes on from where it was.
    watches.clear();
    for _ in 0..2 {
        scene.expect_watch("400").await;
    }
}
