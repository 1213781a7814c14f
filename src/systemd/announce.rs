//! When systemd is told what.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tracing::{info, warn};

use super::notify::Notifier;
use super::words;
use crate::clock;
use crate::metrics::Metrics;
use crate::shutdown::{Shutdown, Terms};
use crate::status::{ProcessState, Status};
use crate::workers::Crew;

/// How long a service that cannot serve yet keeps the whole from being called ready. Its file may be
/// on its way; the others' callers must not wait for it.
const PATIENCE: Duration = Duration::from_secs(10);

/// The line is told again this often at most, and looked at this often for what no event tells:
/// the number of connections, days that pass.
const QUIET: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_secs(5);

/// How often a drain says that it goes on, how long that counts, and what is granted beyond
/// `shutdown_timeout` for the end itself.
const EXTEND_EVERY: Duration = Duration::from_secs(3);
const EXTEND_BY: Duration = Duration::from_secs(15);
const TO_END: Duration = Duration::from_secs(10);

/// How soon a message is sent again that systemd had no room for.
const SEND_AGAIN: Duration = Duration::from_millis(100);

/// Tells systemd what is going on until the process ends; to be run beside everything else, from
/// when control has started. It tells of the main thread's life by running there.
pub(crate) async fn announce(
    notifier: Notifier,
    watchdog: Option<Duration>,
    mut status: watch::Receiver<Arc<Status>>,
    metrics: Arc<Metrics>,
    shutdown: Shutdown,
) -> Infallible {
    if !notifier.speaks() {
        return std::future::pending().await;
    }
    let (seen, counted) = (status.clone(), Arc::clone(&metrics));
    let leaving = shutdown.leaving().clone();
    notifier.describe_by(move || {
        // Status follows a moment later.
        if leaving.is_cancelled() {
            return words::stopping(counted.open());
        }
        let status = Arc::clone(&seen.borrow());
        words::line(&status, counted.open(), clock::unix_seconds())
    });
    let crew = metrics.crew();
    let ready = readiness(&notifier, status.clone(), &shutdown);
    let ending = ending(&notifier, &shutdown);
    let refresh = refresh(&notifier, &mut status);
    let beats = beats(&notifier, watchdog, crew);
    let again = async {
        loop {
            notifier.stuck().await;
            while !notifier.flush() {
                sleep(SEND_AGAIN).await;
            }
        }
    };
    tokio::select! {
        never = ready => never,
        never = ending => never,
        never = refresh => never,
        never = beats => never,
        never = again => never,
    }
}

async fn readiness(
    notifier: &Notifier,
    mut status: watch::Receiver<Arc<Status>>,
    shutdown: &Shutdown,
) -> Infallible {
    let patient = Instant::now() + PATIENCE;
    let all_serve = status.wait_for(|status| status.state == ProcessState::Ready);
    let in_time = tokio::select! {
        biased;
        // It was asked to end before it was up.
        () = shutdown.leaving().cancelled() => return std::future::pending().await,
        in_time = timeout_at(patient, all_serve) => in_time.is_ok(),
    };
    if !in_time {
        warn!(
            waited_seconds = PATIENCE.as_secs(),
            "systemd is told that the service is up, although not every service can serve"
        );
    }
    notifier.ready();
    std::future::pending().await
}

/// From the moment that the process leaves: that it does, and that it is still within its time.
async fn ending(notifier: &Notifier, shutdown: &Shutdown) -> Infallible {
    shutdown.leaving().cancelled().await;
    let began = Instant::now();
    loop {
        // A reload during shutdown_delay may change them.
        let Terms { delay, timeout } = shutdown.terms();
        let end = (delay + timeout).saturating_add(TO_END);
        let left = end.saturating_sub(began.elapsed());
        if left.is_zero() {
            // Something hangs. systemd's own limit counts from here on.
            return std::future::pending().await;
        }
        let needs = left.min(EXTEND_BY);
        if !notifier.stopping(needs) {
            notifier.extend(needs);
        }
        sleep(EXTEND_EVERY.min(left)).await;
    }
}

async fn refresh(notifier: &Notifier, status: &mut watch::Receiver<Arc<Status>>) -> Infallible {
    loop {
        notifier.refresh();
        sleep(QUIET).await;
        tokio::select! {
            changed = status.changed() => if changed.is_err() {
                // Control has ended; the drain goes on.
                sleep(LOOK).await;
            },
            () = sleep(LOOK) => {}
        }
    }
}

/// A sign of life at twice the rate that is asked for, each after every worker has run a task of
/// ours. A worker that does not is named, and systemd hears nothing until it does again.
async fn beats(
    notifier: &Notifier,
    watchdog: Option<Duration>,
    crew: Option<Arc<Crew>>,
) -> Infallible {
    let (Some(watchdog), Some(crew)) = (watchdog, crew) else {
        return std::future::pending().await;
    };
    let half = watchdog / 2;
    let mut next = Instant::now();
    loop {
        sleep_until(next).await;
        let asked = Instant::now();
        next = asked + half;
        let mut pulse = std::pin::pin!(crew.pulse());
        if timeout_at(next, &mut pulse).await.is_err() {
            for worker in crew.silent() {
                warn!(
                    worker,
                    seconds = half.as_secs_f64(),
                    "a worker thread does not run what it is given; without it systemd is not told that the process is alive, and restarts it"
                );
            }
            pulse.await;
            info!(
                seconds = asked.elapsed().as_secs_f64(),
                "every worker thread runs again"
            );
        }
        notifier.beat();
    }
}

#[cfg(test)]
mod tests;
