//! What only the server in this process can do: go wrong at a test's word, and tell what it saw.

use super::*;
use crate::support::kube::{Ending, Fault, History};
use crate::support::net::{self, Caller};

const SECRETS: &str = "/api/v1/namespaces/payments/secrets";

/// A watcher of one Secret that has seen its initial state, by a client of its own.
async fn settled(cluster: &Cluster, user: &User<'_>) -> BoxStream<'static, String> {
    cluster.apply(&secret("a", "1")).await;
    let config = watcher::Config::default().fields("metadata.name=a");
    let mut seen = watched(secrets(&user.client()), config);
    let initial = events::<3>(&mut seen).await;
    assert_eq!(initial, ["Init", "InitApply(a)", "InitDone"]);
    seen
}

/// Polls the watcher until its watch is open: it does nothing by itself.
async fn watching(cluster: &Cluster, seen: &mut BoxStream<'static, String>) {
    let server = cluster.server();
    tokio::select! {
        event = seen.next() => panic!("{event:?}"),
        _ = server.watch_of("secrets", Some(PAYMENTS), Some("a")) => {}
    }
}

fn relists(cluster: &Cluster, mark: usize) -> usize {
    let since = cluster.server().requests_since(mark);
    since
        .iter()
        .filter(|it| it.is("list", "secrets", "a"))
        .count()
}

#[tokio::test]
async fn a_server_that_is_away_refuses_connections_and_is_back_at_the_same_port() {
    let cluster = Cluster::in_process().await;
    let user = reader(&cluster).await;
    let mut seen = settled(&cluster, &user).await;
    watching(&cluster, &mut seen).await;
    let mark = cluster.server().mark();
    cluster.server().go_away().await;
    let [broken, refused] = events::<2>(&mut seen).await;
    assert!(broken.contains("watch stream failed"), "{broken}");
    assert!(refused.contains("failed to start watching"), "{refused}");
    cluster.server().come_back().await;
    cluster.apply(&secret("a", "2")).await;
    let mut last = String::new();
    while last != "Apply(a)" {
        [last] = events::<1>(&mut seen).await;
    }
    assert_eq!(relists(&cluster, mark), 0, "the watch was resumed");
}

#[tokio::test]
async fn a_silent_server_accepts_and_answers_when_it_speaks_again() {
    let cluster = Cluster::in_process().await;
    let user = reader(&cluster).await;
    let mut seen = settled(&cluster, &user).await;
    watching(&cluster, &mut seen).await;
    cluster.server().fall_silent().await;
    // A new connection, so that the handshake is in it.
    let secrets = secrets(&user.client());
    let mut asking = std::pin::pin!(secrets.get("a"));
    let patience = std::time::Duration::from_millis(200);
    let answer = tokio::time::timeout(patience, &mut asking).await;
    assert!(answer.is_err(), "{answer:?}");
    cluster.server().come_back().await;
    let found = within("the answer", asking).await.unwrap();
    assert_eq!(value_of(&found), "1");
    cluster.apply(&secret("a", "2")).await;
    assert_eq!(events::<1>(&mut seen).await, ["Apply(a)"]);
}

#[tokio::test]
async fn held_requests_are_answered_one_by_one_as_they_are_released() {
    let cluster = Cluster::in_process().await;
    let user = reader(&cluster).await;
    for name in ["a", "b", "c"] {
        cluster.apply(&secret(name, "1")).await;
    }
    let hold = cluster
        .server()
        .hold(|asked| asked.is("get", "secrets", "*"));
    let secrets = secrets(&user.client());
    let mut first = std::pin::pin!(secrets.get("a"));
    let mut second = std::pin::pin!(secrets.get("b"));
    tokio::select! {
        _ = &mut first => panic!("answered before it was released"),
        asked = hold.arrived() => assert_eq!((asked.name.as_deref(), asked.status()), (Some("a"), None)),
    }
    tokio::select! {
        _ = &mut second => panic!("answered before it was released"),
        asked = hold.arrived() => assert_eq!(asked.name.as_deref(), Some("b")),
    }
    hold.release_one();
    tokio::select! {
        found = &mut first => assert_eq!(found.unwrap().name_any(), "a"),
        _ = &mut second => panic!("the other was released"),
    }
    assert_eq!(hold.count(), 2);
    drop(hold);
    assert_eq!(within("the second", second).await.unwrap().name_any(), "b");
    within("the third", secrets.get("c")).await.unwrap();
}

#[tokio::test]
async fn the_next_requests_are_answered_wrongly_and_those_after_them_are_not() {
    let cluster = Cluster::in_process().await;
    let user = reader(&cluster).await;
    cluster.apply(&secret("a", "1")).await;
    for (fault, code) in [
        (Fault::InternalError, 500),
        (Fault::Unavailable, 503),
        (Fault::TooManyRequests(7), 429),
        (Fault::Expired, 410),
    ] {
        let server = cluster.server();
        server.fail(2, fault, |asked| asked.is("get", "secrets", "a"));
        // kube-rs' client does not try again by itself.
        for _ in 0..2 {
            let Err(kube::Error::Api(refused)) = secrets(&user.client()).get("a").await else {
                panic!("{fault:?}: answered");
            };
            assert_eq!(refused.code, code);
        }
        secrets(&user.client()).get("a").await.unwrap();
    }
    let server = cluster.server();
    server.fail(1, Fault::TooManyRequests(7), |_| true);
    let request = http::Request::get(SECRETS).body(kube::client::Body::empty());
    let answer = user.client().send(request.unwrap()).await.unwrap();
    assert_eq!(answer.headers()["retry-after"], "7");
    cluster.server().fail(1, Fault::Reset, |_| true);
    let error = secrets(&user.client()).get("a").await.unwrap_err();
    assert!(!matches!(error, kube::Error::Api(_)), "{error}");
    cluster.server().fail(1, Fault::Garbage, |_| true);
    let error = secrets(&user.client()).get("a").await.unwrap_err();
    assert!(matches!(error, kube::Error::SerdeError(_)), "{error}");
}

#[tokio::test]
async fn watches_end_in_each_way_and_the_watcher_goes_on() {
    for (how, relists_expected) in [
        (Ending::Closed, 0),
        (Ending::Cut, 0),
        (Ending::Reset, 0),
        (Ending::HalfLine, 0),
        (Ending::InternalError, 0),
        (Ending::Expired, 1),
    ] {
        let cluster = Cluster::in_process().await;
        let user = reader(&cluster).await;
        let mut seen = settled(&cluster, &user).await;
        watching(&cluster, &mut seen).await;
        let mark = cluster.server().mark();
        cluster.server().end_watches(how).await;
        assert!(cluster.server().watches().is_empty());
        cluster.apply(&secret("a", "2")).await;
        let mut last = String::new();
        while !["Apply(a)", "InitApply(a)"].contains(&last.as_str()) {
            [last] = events::<1>(&mut seen).await;
        }
        assert_eq!(relists(&cluster, mark), relists_expected, "{how:?}");
    }
}

#[tokio::test]
async fn each_way_that_a_watch_ends_is_what_it_says_on_the_wire() {
    for (how, rest, ending) in [
        (Ending::Closed, "0\r\n\r\n", net::Ending::Fin),
        (Ending::Cut, "", net::Ending::Fin),
        (Ending::Reset, "", net::Ending::Reset),
    ] {
        let cluster = Cluster::in_process_over_http().await;
        let user = reader(&cluster).await;
        let since = version_of(&cluster.apply(&secret("a", "1")).await);
        let address = cluster.url().trim_start_matches("http://");
        let mut caller = Caller::connect(address.parse().unwrap()).await;
        let request = format!(
            "GET {SECRETS}?watch=true&resourceVersion={since} HTTP/1.1\r\nHost: {address}\r\n\
             Connection: close\r\nAuthorization: Bearer {}\r\n\r\n",
            user.token()
        );
        caller.send(request.as_bytes()).await;
        while caller.line().await != "\r" {}
        cluster.server().open_watches(1).await;
        cluster.server().end_watches(how).await;
        let seen = caller.rest().await;
        assert_eq!(seen, (rest.as_bytes().to_vec(), ending), "{how:?}");
    }
}

#[tokio::test]
async fn garbage_in_a_watch_is_an_error_and_the_stream_goes_on() {
    let cluster = Cluster::in_process().await;
    let user = reader(&cluster).await;
    let mut seen = settled(&cluster, &user).await;
    watching(&cluster, &mut seen).await;
    cluster.server().send_garbage();
    let [error] = events::<1>(&mut seen).await;
    assert!(error.contains("watch stream failed"), "{error}");
    cluster.apply(&secret("a", "2")).await;
    assert_eq!(events::<1>(&mut seen).await, ["Apply(a)"]);
}

#[tokio::test]
async fn a_bookmark_moves_the_watcher_on_without_an_event() {
    let cluster = Cluster::in_process().await;
    let user = reader(&cluster).await;
    let mut seen = settled(&cluster, &user).await;
    watching(&cluster, &mut seen).await;
    let newest = cluster.apply(&secret("b", "1")).await;
    cluster.server().send_bookmarks();
    let config = WatchParams::default().fields("metadata.name=b");
    let mut other = watch(&user.client(), config, &newest).await;
    cluster.server().send_bookmarks();
    assert_eq!(next(&mut other).await, "BOOKMARK {}");
    // The watcher of `a` reads its bookmarks before it notices that the watch has ended.
    cluster.server().end_watches(Ending::Closed).await;
    let mark = cluster.server().mark();
    watching(&cluster, &mut seen).await;
    let resumed = cluster.server().requests_since(mark);
    let resumed = resumed
        .iter()
        .find(|it| it.is("watch", "secrets", "a"))
        .unwrap();
    let since: u64 = resumed
        .parameter("resourceVersion")
        .unwrap()
        .parse()
        .unwrap();
    assert!(since >= version_of(&newest));
}

#[tokio::test]
async fn a_forgotten_history_is_410_as_an_event_or_as_a_status() {
    for by_status in [false, true] {
        let cluster = Cluster::in_process().await;
        let user = reader(&cluster).await;
        let mut seen = settled(&cluster, &user).await;
        watching(&cluster, &mut seen).await;
        let old = cluster.apply(&secret("b", "1")).await;
        cluster.apply(&secret("b", "2")).await;
        cluster.server().compact();
        cluster.server().expire_by_status(by_status);
        let since = version_of(&old).to_string();
        let secrets = secrets(&user.client());
        let watch = secrets.watch(&WatchParams::default(), &since).await;
        if by_status {
            let Err(kube::Error::Api(refused)) = watch.map(|_| ()) else {
                panic!("the watch was accepted");
            };
            assert_eq!((refused.code, refused.reason.as_str()), (410, "Expired"));
            let start = format!("too old resource version: {since} (");
            assert!(refused.message.starts_with(&start), "{}", refused.message);
        } else {
            let mut watch = watch.unwrap().boxed();
            assert_eq!(next(&mut watch).await, "ERROR 410 Expired");
            assert!(within("the end", watch.try_next()).await.unwrap().is_none());
            // The watcher lists anew.
            let mark = cluster.server().mark();
            cluster.server().end_watches(Ending::Closed).await;
            let [expired, init] = events::<2>(&mut seen).await;
            assert!(expired.contains("too old resource version"), "{expired}");
            assert_eq!(init, "Init");
            assert_eq!(events::<2>(&mut seen).await, ["InitApply(a)", "InitDone"]);
            assert_eq!(relists(&cluster, mark), 1);
        }
    }
}

#[tokio::test]
async fn the_next_page_of_a_forgotten_list_is_410_with_a_way_to_go_on() {
    let cluster = Cluster::in_process().await;
    for name in ["a", "b"] {
        cluster
            .apply(&objects::config_map(PAYMENTS, name, &[]))
            .await;
    }
    let base = "/api/v1/namespaces/payments/configmaps?limit=1";
    let next_page = |status: &Value| {
        let token = status["metadata"]["continue"].as_str().unwrap();
        format!("{base}&continue={token}")
    };
    let first = ask(&cluster.admin(), base).await.unwrap();
    cluster
        .apply(&objects::config_map(PAYMENTS, "c", &[]))
        .await;
    cluster.server().compact();
    let refused = ask(&cluster.admin(), &next_page(&first)).await.unwrap_err();
    assert_eq!((refused.code, refused.reason.as_str()), (410, "Expired"));
    assert!(
        refused
            .message
            .starts_with("The provided continue parameter is too old")
    );
    let status = serde_json::to_value(&refused).unwrap();
    let second = ask(&cluster.admin(), &next_page(&status)).await.unwrap();
    assert_eq!(second["items"][0]["metadata"]["name"], "b");
}

#[tokio::test]
async fn a_restarted_server_counts_as_it_is_told() {
    for history in [History::Forgotten, History::Later, History::Earlier] {
        let cluster = Cluster::in_process().await;
        let user = reader(&cluster).await;
        let old = cluster.apply(&secret("a", "1")).await;
        let then = version_of(&cluster.apply(&secret("b", "1")).await);
        cluster.server().restart(history).await;
        let new = cluster.get(&old).await.unwrap();
        assert_eq!(new["metadata"]["uid"], old["metadata"]["uid"]);
        let ordering = match history {
            History::Forgotten => std::cmp::Ordering::Equal,
            History::Later => std::cmp::Ordering::Greater,
            History::Earlier => std::cmp::Ordering::Less,
        };
        assert_eq!(version_of(&new).cmp(&version_of(&old)), ordering);
        let secrets = secrets(&user.client());
        let params = WatchParams::default().fields("metadata.name=a");
        let since = |version: u64| version.to_string();
        let first = secrets.watch(&params, &since(version_of(&old))).await;
        let mut first = first.unwrap().boxed();
        if history == History::Earlier {
            // The version is of the future: the watch hears nothing, and a list is refused.
            cluster.apply(&secret("a", "2")).await;
            cluster.server().end_watches(Ending::Closed).await;
            assert!(within("the end", first.try_next()).await.unwrap().is_none());
            let path = format!("/api/v1/namespaces/payments/secrets?resourceVersion={then}");
            assert_eq!(ask(&user.client(), &path).await.unwrap_err().code, 504);
        } else {
            assert_eq!(next(&mut first).await, "ERROR 410 Expired");
        }
    }
}

#[tokio::test]
async fn the_log_tells_who_asked_for_what_and_how_it_was_answered() {
    let cluster = Cluster::in_process().await;
    let user = reader(&cluster).await;
    let mark = cluster.server().mark();
    let mut seen = settled(&cluster, &user).await;
    watching(&cluster, &mut seen).await;
    let _ = secrets(&user.client()).get("missing").await;
    let seen_by_server = cluster.server().requests_since(mark);
    let lines: Vec<String> = seen_by_server
        .iter()
        .map(|it| {
            let (name, status) = (it.name.as_deref().unwrap(), it.status().unwrap());
            format!("{} {} {} {name} {status}", it.user, it.verb, it.resource)
        })
        .collect();
    let who = "system:serviceaccount:payments:reader";
    assert_eq!(
        lines,
        [
            format!("{who} list secrets a 200"),
            format!("{who} watch secrets a 200"),
            format!("{who} get secrets missing 404"),
        ]
    );
    assert!(seen_by_server[0].at <= seen_by_server[2].at);
    cluster.server().open_watches(1).await;
    drop(seen);
    cluster.server().open_watches(0).await;
    let missed = |it: &crate::support::kube::Asked| it.status() == Some(404) && it.verb == "get";
    let found = cluster.server().answered("a 404", missed).await;
    assert_eq!(found.path, "/api/v1/namespaces/payments/secrets/missing");
}
