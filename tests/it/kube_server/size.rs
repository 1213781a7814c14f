//! A cluster of a size that matters.

use super::*;
use std::time::{Duration, Instant};

use futures_util::stream::FuturesUnordered;

/// Services, and as many Secrets.
const MANY: usize = 1_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_objects_under_two_thousand_watches_are_quick_and_small() {
    let cluster = Cluster::in_process_over_http().await;
    cluster.namespace(PAYMENTS).await;
    let start = Instant::now();
    let both = (0..MANY).flat_map(|number| {
        let name = format!("s{number}");
        let service = objects::service(PAYMENTS, &name, &[("https", 8443)]);
        [service, secret(&name, "1")]
    });
    let both: Vec<Value> = both.collect();
    let mut made = FuturesUnordered::new();
    for object in &both {
        made.push(cluster.apply(object));
        if made.len() == 16 {
            made.next().await;
        }
    }
    while made.next().await.is_some() {}
    let filled = start.elapsed();
    let before = resident();

    let mut watches = Vec::new();
    for _ in 0..2 {
        for number in 0..MANY {
            let params = WatchParams::default().disable_bookmarks();
            let params = params.fields(&format!("metadata.name=s{number}"));
            let secrets = secrets(&cluster.admin());
            let events = secrets.watch(&params, "0").await.unwrap().boxed();
            watches.push(events);
        }
    }
    cluster.server().open_watches(2 * MANY).await;
    let watched = start.elapsed();
    for object in &both {
        if object["kind"] == "Secret" {
            let patch = json!({ "data": { "value": "Mg==" } });
            cluster.patch(object, &patch).await;
        }
    }
    for (number, events) in watches.iter_mut().enumerate() {
        let name = format!("s{}", number % MANY);
        assert_eq!(next(events).await, format!("ADDED {name} 1"));
        assert_eq!(next(events).await, format!("MODIFIED {name} 2"));
    }
    let told = start.elapsed();
    let grown = resident().saturating_sub(before) / 1024;
    println!("filled in {filled:?}, watched at {watched:?}, told at {told:?}, {grown} MiB more");
    // Generous: a debug build on a machine that has other things to do. Both ends of each
    // connection are in this process.
    assert!(told < Duration::from_secs(90), "{told:?}");
    assert!(
        grown < 200,
        "{grown} MiB for 2,000 watches and their clients"
    );
}

/// KiB of this process in memory.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|it| it.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
