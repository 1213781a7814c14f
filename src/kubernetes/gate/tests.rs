use std::sync::Arc;

use tokio::task::JoinSet;
use tokio::time::timeout;

use super::*;
use crate::failure::Reason;

const MOMENT: Duration = Duration::from_millis(1);

fn away(detail: &str) -> Explained {
    Explained::new(Reason::ApiUnavailable, detail)
}

fn gate() -> (Arc<Gate>, Arc<Store>) {
    (Arc::new(Gate::new("https://api".into())), Store::new(None))
}

/// A gate that has just closed.
async fn closed() -> (Arc<Gate>, Arc<Store>) {
    let (gate, store) = gate();
    gate.pass(&store, |_| {}).await.failed(&away("gone"), None);
    assert!(!gate.is_open());
    (gate, store)
}

#[tokio::test(start_paused = true)]
async fn sixteen_ask_at_once_and_the_next_when_one_is_done() {
    let (gate, store) = gate();
    let mut passes = Vec::new();
    for _ in 0..AT_ONCE {
        passes.push(gate.pass(&store, |_| {}).await);
    }
    let mut next = Box::pin(gate.pass(&store, |_| {}));
    assert!(timeout(Duration::from_secs(60), &mut next).await.is_err());
    passes.pop().unwrap().answered();
    next.await.answered();
}

#[tokio::test(start_paused = true)]
async fn whoever_stands_in_line_when_it_closes_does_not_ask() {
    let (gate, store) = gate();
    let mut passes = Vec::new();
    for _ in 0..AT_ONCE {
        passes.push(gate.pass(&store, |_| {}).await);
    }
    let mut told = Vec::new();
    let mut next = Box::pin(gate.pass(&store, |why| told.push(why.detail.clone())));
    assert!(timeout(MOMENT, &mut next).await.is_err());
    for pass in passes {
        pass.failed(&away("gone"), None);
    }
    // It is the first to be let through afterwards, to try.
    let begun = Instant::now();
    let pass = next.await;
    assert!(begun.elapsed() >= FIRST_WAIT / 2 - MOMENT && begun.elapsed() <= FIRST_WAIT);
    assert_eq!(pass.patience(), Patience::SHORT);
    drop(pass);
    assert_eq!(told, ["gone"]);
}

#[tokio::test(start_paused = true)]
async fn while_it_is_closed_one_tries_at_longer_and_longer_intervals() {
    let (gate, store) = closed().await;
    let mut waits = Vec::new();
    for _ in 0..12 {
        let begun = Instant::now();
        let pass = gate.pass(&store, |_| {}).await;
        waits.push(begun.elapsed());
        // Nobody else is let through.
        let other = gate.pass(&store, |_| {});
        assert!(timeout(Duration::from_secs(60), other).await.is_err());
        pass.failed(&away("still gone"), None);
    }
    for (number, wait) in waits.iter().enumerate() {
        let due = (FIRST_WAIT * 2_u32.pow(number as u32)).min(LONGEST_WAIT);
        // Each was due from the failure before it, and a minute has passed since only in the
        // other's wait.
        assert!(*wait <= due + MOMENT, "{number}: {wait:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_intervals_double_to_two_seconds_and_their_second_half_is_random() {
    let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
    let mut due = FIRST_WAIT;
    for _ in 0..100 {
        let wait = backoff.next();
        assert!((due / 2..=due).contains(&wait), "{wait:?} of {due:?}");
        due = (due * 2).min(LONGEST_WAIT);
    }
    backoff.reset();
    assert!(backoff.next() <= FIRST_WAIT);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_asks_for_time_has_it() {
    let (gate, store) = gate();
    let pass = gate.pass(&store, |_| {}).await;
    pass.failed(&away("429"), Some(Duration::from_secs(20)));
    let begun = Instant::now();
    let pass = gate.pass(&store, |_| {}).await;
    assert_eq!(begun.elapsed(), Duration::from_secs(20));
    pass.failed(&away("429"), Some(Duration::from_secs(5)));
    let begun = Instant::now();
    gate.pass(&store, |_| {}).await.answered();
    assert_eq!(begun.elapsed(), Duration::from_secs(5));
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_is_given_up_passes_to_another() {
    let (gate, store) = closed().await;
    let trying = gate.pass(&store, |_| {}).await;
    let mut other = Box::pin(gate.pass(&store, |_| {}));
    assert!(timeout(Duration::from_secs(60), &mut other).await.is_err());
    drop(trying);
    let trying = other.await;

    // One that is given up before it has even begun, too.
    trying.failed(&away("gone"), None);
    let mut waiting = Box::pin(gate.pass(&store, |_| {}));
    assert!(timeout(MOMENT, &mut waiting).await.is_err());
    let mut other = Box::pin(gate.pass(&store, |_| {}));
    assert!(timeout(MOMENT, &mut other).await.is_err());
    drop(waiting);
    other.await.answered();
    assert!(gate.is_open());
}

#[tokio::test(start_paused = true)]
async fn somebody_who_asks_for_news_ends_the_wait() {
    let (gate, store) = gate();
    let pass = gate.pass(&store, |_| {}).await;
    pass.failed(&away("503"), Some(Duration::from_secs(3600)));
    let begun = Instant::now();
    let pass = async { gate.pass(&store, |_| {}).await.answered() };
    tokio::join!(pass, async {
        tokio::time::sleep(MOMENT).await;
        store.hurry();
    });
    assert!(begun.elapsed() <= MOMENT);
}

#[tokio::test(start_paused = true)]
async fn when_it_opens_few_go_on_at_once_and_many_within_a_second() {
    for (count, spread) in [(5, Duration::ZERO), (200, SPREAD)] {
        let (gate, store) = closed().await;
        let mut waiting = JoinSet::new();
        let trying = gate.pass(&store, |_| {}).await;
        for _ in 0..count {
            let (gate, store) = (Arc::clone(&gate), Arc::clone(&store));
            waiting.spawn(async move {
                gate.pass(&store, |_| {}).await.answered();
                Instant::now()
            });
        }
        tokio::time::sleep(Duration::from_secs(60)).await;
        let opened = Instant::now();
        trying.answered();
        let mut went = Vec::new();
        while let Some(at) = waiting.join_next().await {
            went.push(at.unwrap() - opened);
        }
        assert_eq!(went.len(), count);
        let last = went.iter().max().unwrap();
        assert!(*last <= spread, "{last:?}");
        assert!(*last >= spread / 2, "{last:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_comes_after_it_has_closed_opens_it() {
    let (gate, store) = gate();
    let late = gate.pass(&store, |_| {}).await;
    gate.pass(&store, |_| {}).await.failed(&away("gone"), None);
    late.answered();
    assert!(gate.is_open());
}

#[tokio::test(start_paused = true)]
async fn those_who_wait_are_told_why_and_again_when_the_reason_changes() {
    let (gate, store) = closed().await;
    let trying = gate.pass(&store, |_| {}).await;
    let mut told = Vec::new();
    let waiting = gate.pass(&store, |why| told.push(why.detail.clone()));
    let trying_on = async {
        tokio::time::sleep(MOMENT).await;
        trying.failed(&away("refused"), None);
        for _ in 0..3 {
            let pass = gate.pass(&store, |_| {}).await;
            tokio::task::yield_now().await;
            pass.failed(&away("refused"), None);
        }
    };
    tokio::select! {
        _ = waiting => {}
        () = trying_on => {}
    }
    assert_eq!(told, ["gone", "refused"]);
}

#[tokio::test(start_paused = true)]
async fn each_fourth_attempt_has_time_for_a_slow_server() {
    let (gate, store) = closed().await;
    let mut patience = Vec::new();
    for _ in 0..8 {
        let pass = gate.pass(&store, |_| {}).await;
        patience.push(pass.patience());
        pass.failed(&away("gone"), None);
    }
    let (short, full) = (Patience::SHORT, Patience::FULL);
    assert_eq!(
        patience,
        [short, short, short, full, short, short, short, full]
    );
}
