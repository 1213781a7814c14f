use super::super::notify::tests::{pair, told};
use super::*;
use crate::status::tests::{service, status, waiting};

struct Told {
    status: watch::Sender<Arc<Status>>,
    shutdown: Shutdown,
    metrics: Arc<Metrics>,
}

impl Told {
    fn new(state: ProcessState) -> Self {
        let services = match state {
            ProcessState::Ready => vec![service("a")],
            _ => vec![service("a"), waiting("b")],
        };
        Self {
            status: watch::Sender::new(Arc::new(status(state, services))),
            shutdown: Shutdown::default(),
            metrics: Arc::new(Metrics::new("1.2.3")),
        }
    }

    fn run(
        &self,
        notifier: &Notifier,
        watchdog: Option<Duration>,
    ) -> impl Future<Output = Infallible> {
        announce(
            notifier.clone(),
            watchdog,
            self.status.subscribe(),
            Arc::clone(&self.metrics),
            self.shutdown.clone(),
        )
    }
}

/// Runs for so long.
async fn after(time: Duration, mut task: impl Future<Output = Infallible> + Unpin) {
    let _ = tokio::time::timeout(time, &mut task).await;
}

#[tokio::test(start_paused = true)]
async fn a_service_that_cannot_serve_holds_readiness_up_for_ten_seconds() {
    let (socket, notifier, _directory) = pair();
    let parts = Told::new(ProcessState::Degraded);
    let mut telling = std::pin::pin!(parts.run(&notifier, None));
    after(PATIENCE - Duration::from_millis(10), &mut telling).await;
    let before = told(&socket);
    assert!(!before.iter().any(|it| it == "READY=1"), "{before:?}");
    assert!(
        before[0].starts_with("STATUS=degraded: 1 of 2"),
        "{before:?}"
    );
    after(Duration::from_millis(20), &mut telling).await;
    assert_eq!(told(&socket), ["READY=1"]);
    after(PATIENCE * 3, &mut telling).await;
    assert_eq!(told(&socket), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn whoever_is_asked_to_end_before_it_was_up_never_says_that_it_is() {
    let (socket, notifier, _directory) = pair();
    let parts = Told::new(ProcessState::Degraded);
    let mut telling = std::pin::pin!(parts.run(&notifier, None));
    after(Duration::from_secs(1), &mut telling).await;
    told(&socket);
    parts.shutdown.leaving().cancel();
    after(PATIENCE * 2, &mut telling).await;
    let all = told(&socket);
    assert_eq!(all[0], "STOPPING=1");
    assert!(!all.iter().any(|it| it == "READY=1"), "{all:?}");
}

#[tokio::test(start_paused = true)]
async fn time_is_asked_for_until_the_deadline_and_not_for_what_hangs_beyond() {
    let (socket, notifier, _directory) = pair();
    let parts = Told::new(ProcessState::Ready);
    parts.shutdown.set_terms(Terms {
        delay: Duration::from_secs(20),
        timeout: Duration::from_secs(40),
    });
    let mut telling = std::pin::pin!(parts.run(&notifier, None));
    after(Duration::from_secs(1), &mut telling).await;
    parts.shutdown.leaving().cancel();
    told(&socket);
    let (mut granted, mut passed) = (Duration::ZERO, Duration::ZERO);
    let step = Duration::from_secs(1);
    while passed < Duration::from_secs(300) {
        after(step, &mut telling).await;
        for line in told(&socket) {
            if let Some(usec) = line.strip_prefix("EXTEND_TIMEOUT_USEC=") {
                assert!(
                    granted.is_zero() || passed < granted,
                    "too late at {passed:?}"
                );
                let until = passed + Duration::from_micros(usec.parse().unwrap());
                granted = granted.max(until);
            }
        }
        passed += step;
    }
    // 20 s and 40 s, and some for the end itself.
    assert!((65..=75).contains(&granted.as_secs()), "{granted:?}");
}

#[tokio::test(start_paused = true)]
async fn the_line_follows_what_changes_at_most_once_a_second() {
    let (socket, notifier, _directory) = pair();
    let parts = Told::new(ProcessState::Ready);
    let mut telling = std::pin::pin!(parts.run(&notifier, None));
    after(Duration::from_secs(20), &mut telling).await;
    told(&socket);
    for n in 0..100_u64 {
        parts.status.send_modify(|status| {
            let status = Arc::make_mut(status);
            status.services = (0..n).map(|n| service(&n.to_string())).collect();
        });
        after(Duration::from_millis(50), &mut telling).await;
    }
    // Five seconds.
    let lines = told(&socket);
    assert!((4..=6).contains(&lines.len()), "{lines:?}");
    after(Duration::from_secs(2), &mut telling).await;
    let all = [lines, told(&socket)].concat();
    let last = all.last().unwrap();
    assert!(last.starts_with("STATUS=99 of 99"), "{all:?}");
}

/// The worker is the runtime of this test, so it runs whatever it is given.
#[tokio::test(start_paused = true)]
async fn beats_come_at_half_the_time_and_carry_the_line() {
    let (socket, notifier, _directory) = pair();
    let parts = Told::new(ProcessState::Ready);
    parts.metrics.show_workers(&Crew::of_the_current_runtime());
    let watchdog = Some(Duration::from_secs(30));
    let mut telling = std::pin::pin!(parts.run(&notifier, watchdog));
    after(Duration::from_millis(1), &mut telling).await;
    let first = told(&socket);
    assert!(first.contains(&"WATCHDOG=1".to_owned()), "{first:?}");
    for _ in 0..4 {
        after(Duration::from_secs(14), &mut telling).await;
        let between = told(&socket);
        assert!(!between.contains(&"WATCHDOG=1".to_owned()), "{between:?}");
        after(Duration::from_secs(1), &mut telling).await;
        assert!(told(&socket).contains(&"WATCHDOG=1".to_owned()));
    }
}

#[tokio::test]
async fn without_systemd_nothing_runs() {
    let parts = Told::new(ProcessState::Ready);
    let nobody = Notifier::default();
    let mut telling = std::pin::pin!(parts.run(&nobody, None));
    after(Duration::ZERO, &mut telling).await;
}
