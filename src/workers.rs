//! The threads that carry traffic: one for each CPU, each with a runtime of its own, so that a
//! connection stays on the thread that it began on and no two threads wait for one epoll instance.
//!
//! Whoever accepts a connection asks the [`Crew`] for a [`Seat`]: on the same thread, unless that
//! one has clearly more to do than the others. [`choose`] decides it without I/O.

use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::num::NonZeroUsize;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread;

use tokio::runtime::{Builder, Handle};
use tokio::sync::Notify;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::error;

/// What std gives a thread too. Only what is touched is memory.
const STACK: usize = 2 * 1024 * 1024;

/// How many workers accept at a listener. Each caller wakes all that are idle, of which one gets it:
/// with more of them that costs more than handing callers over to the rest.
const MOST_ACCEPTING: usize = 8;

/// How many more than its share of dials a worker may have before it hands callers over: a
/// hand-over costs as much as some of a handshake, and so few are done in a millisecond.
const DIALS_TO_SPARE: usize = 4;

/// The running threads. When dropped they end, and with them whatever they still carry.
#[derive(Debug)]
pub(crate) struct Workers {
    crew: Arc<Crew>,
    threads: Vec<thread::JoinHandle<()>>,
    stop: DropGuard,
}

impl Workers {
    /// Starts `count` threads; `None`: one for each CPU that the process may use, by its affinity
    /// mask and its cgroup's quota (both versions, rounded down).
    ///
    /// `fault` is cancelled where a thread ends by a bug of its runtime: what it carried is lost,
    /// and the process is to end rather than go on with a part of itself. (A bug of one
    /// connection ends that connection alone.)
    ///
    /// # Errors
    /// If the system gives no thread or no descriptor.
    pub(crate) fn start(
        count: Option<NonZeroUsize>,
        fault: &CancellationToken,
    ) -> io::Result<Self> {
        let count = count
            .or_else(|| thread::available_parallelism().ok())
            .unwrap_or(NonZeroUsize::MIN)
            .get();
        let stop = CancellationToken::new();
        let stopping = stop.clone();
        let stop = stop.drop_guard();
        let everyone = Arc::new(Load::default());
        let mut workers = Vec::with_capacity(count);
        let mut threads = Vec::with_capacity(count);
        for number in 0..count {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            workers.push(Worker::new(number, runtime.handle().clone(), &everyone));
            let (stopping, fault) = (stopping.clone(), fault.clone());
            // Linux keeps 15 letters.
            let thread = thread::Builder::new()
                .name(format!("worker-{number}"))
                .stack_size(STACK)
                .spawn(move || {
                    report_a_panic(number, &fault, || {
                        runtime.block_on(stopping.cancelled_owned());
                    });
                })?;
            threads.push(thread);
        }
        Ok(Self {
            crew: Arc::new(Crew::new(workers, everyone)),
            threads,
            stop,
        })
    }

    pub(crate) fn crew(&self) -> &Arc<Crew> {
        &self.crew
    }

    /// Ends the threads and waits for them.
    pub(crate) fn join(self) {
        drop(self.stop);
        for thread in self.threads {
            // A panic has been reported.
            let _ = thread.join();
        }
    }
}

fn report_a_panic(number: usize, fault: &CancellationToken, work: impl FnOnce()) {
    // The panic hook has said where it was.
    if std::panic::catch_unwind(AssertUnwindSafe(work)).is_err() {
        error!(
            worker = number,
            "a worker thread has ended by a bug: its connections are lost, the process ends"
        );
        fault.cancel();
    }
}

/// The workers, and what each has to do.
#[derive(Debug)]
pub(crate) struct Crew {
    workers: Box<[Arc<Worker>]>,
    everyone: Arc<Load>,
    next_listener: AtomicUsize,
    gate: Gate,
}

impl Crew {
    fn new(workers: Vec<Arc<Worker>>, everyone: Arc<Load>) -> Self {
        Self {
            workers: workers.into(),
            everyone,
            next_listener: AtomicUsize::new(0),
            gate: Gate::default(),
        }
    }

    /// The current runtime as the only worker.
    #[cfg(test)]
    pub(crate) fn of_the_current_runtime() -> Arc<Self> {
        let everyone = Arc::new(Load::default());
        let worker = Worker::new(0, Handle::current(), &everyone);
        Arc::new(Self::new(vec![worker], everyone))
    }

    /// The workers that are to accept at one more listener: all, or where there are many other
    /// ones for each listener.
    pub(crate) fn acceptors(&self) -> impl Iterator<Item = &Arc<Worker>> {
        let count = self.workers.len().min(MOST_ACCEPTING);
        let first = self.next_listener.fetch_add(count, Relaxed);
        (first..first + count).map(|n| &self.workers[n % self.workers.len()])
    }

    /// Whether callers are accepted, at any listener.
    pub(crate) fn gate(&self) -> &Gate {
        &self.gate
    }

    /// How many workers there are.
    pub(crate) fn size(&self) -> usize {
        self.workers.len()
    }

    /// A place for a connection that worker `at` accepts, counted from now on.
    pub(crate) fn seat(&self, at: &Worker, dice: &mut Dice) -> (Seat, Dialling) {
        let standing = |number: usize| self.workers[number].load.standing();
        let chosen = choose(
            at.number,
            self.workers.len(),
            self.everyone.standing(),
            standing,
            |sides| dice.throw(sides),
        );
        let worker = &self.workers[chosen];
        for load in [&worker.load, &self.everyone] {
            load.open.fetch_add(1, Relaxed);
            load.dialling.fetch_add(1, Relaxed);
        }
        (Seat(Arc::clone(worker)), Dialling(Arc::clone(worker)))
    }

    /// Gives each worker something to do, and resolves when all have done it. Where it is dropped
    /// before, [`Self::silent`] still tells who has not.
    pub(crate) async fn pulse(&self) {
        let asked: Vec<_> = self
            .workers
            .iter()
            .map(|worker| {
                worker.silent.store(true, Relaxed);
                let there = Arc::clone(worker);
                let answer = async move { there.silent.store(false, Relaxed) };
                worker.runtime.spawn(answer)
            })
            .collect();
        for answer in asked {
            // A runtime that has ended has been reported, and ends the process.
            let _ = answer.await;
        }
    }

    /// The workers that have not answered the last [`Self::pulse`], by number.
    pub(crate) fn silent(&self) -> impl Iterator<Item = usize> {
        let silent = self
            .workers
            .iter()
            .filter(|worker| worker.silent.load(Relaxed));
        silent.map(|worker| worker.number)
    }

    /// Open connections of each worker.
    pub(crate) fn open(&self) -> impl Iterator<Item = usize> {
        self.workers
            .iter()
            .map(|worker| worker.load.open.load(Relaxed))
    }
}

/// Open as a rule; closed while the process has no room for more callers, who then wait in the
/// kernel's backlog. One opens and closes it, many look.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    closed: AtomicBool,
    opened: Notify,
}

impl Gate {
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Relaxed)
    }

    pub(crate) fn set_closed(&self, closed: bool) {
        if self.closed.swap(closed, Relaxed) && !closed {
            self.opened.notify_waiters();
        }
    }

    /// Waits while it is closed. Cancel-safe.
    pub(crate) async fn pass(&self) {
        while self.is_closed() {
            let mut opened = pin!(self.opened.notified());
            opened.as_mut().enable();
            // It may have opened before we stood in line.
            if self.is_closed() {
                opened.await;
            }
        }
    }
}

/// One thread, seen from the others.
#[derive(Debug)]
pub(crate) struct Worker {
    number: usize,
    runtime: Handle,
    load: Load,
    everyone: Arc<Load>,
    /// It has not answered the last pulse.
    silent: AtomicBool,
}

impl Worker {
    fn new(number: usize, runtime: Handle, everyone: &Arc<Load>) -> Arc<Self> {
        Arc::new(Self {
            number,
            runtime,
            load: Load::default(),
            everyone: Arc::clone(everyone),
            silent: AtomicBool::new(false),
        })
    }

    /// Where to spawn what is to run on this worker.
    pub(crate) fn runtime(&self) -> &Handle {
        &self.runtime
    }
}

/// Counts; alone on its cache lines (two, as the prefetcher takes them), since it is written at
/// each connection and read by all.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Load {
    open: AtomicUsize,
    /// Those of them that have no session with their upstream yet.
    dialling: AtomicUsize,
}

impl Load {
    fn standing(&self) -> Standing {
        let dialling = self.dialling.load(Relaxed);
        Standing {
            dialling,
            carrying: self.open.load(Relaxed).saturating_sub(dialling),
        }
    }
}

/// An open connection's place on a worker; given up when dropped.
#[derive(Debug)]
pub(crate) struct Seat(Arc<Worker>);

impl Seat {
    pub(crate) fn worker(&self) -> &Arc<Worker> {
        &self.0
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        for load in [&self.0.load, &*self.0.everyone] {
            load.open.fetch_sub(1, Relaxed);
        }
    }
}

/// Counts a connection as one without a session yet, until dropped.
#[derive(Debug)]
pub(crate) struct Dialling(Arc<Worker>);

impl Drop for Dialling {
    fn drop(&mut self) {
        for load in [&self.0.load, &*self.0.everyone] {
            load.dialling.fetch_sub(1, Relaxed);
        }
    }
}

/// What a worker, or all of them together, have to do: open connections by what they are at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Standing {
    dialling: usize,
    carrying: usize,
}

impl Standing {
    fn open(self) -> usize {
        self.dialling + self.carrying
    }
}

/// The worker, of `count`, that is to serve what worker `at` has accepted: itself, unless it has
/// more than 1.25 times the mean, first of open connections and then of dials; then the better of
/// two others by `dice`, if that one has less. Two at random are nearly as good as the best of all,
/// and two accepting workers do not both run after the same one.
fn choose(
    at: usize,
    count: usize,
    everyone: Standing,
    standing: impl Fn(usize) -> Standing,
    dice: impl FnMut(usize) -> usize,
) -> usize {
    if count < 2 {
        return at;
    }
    let own = standing(at);
    let above = |own: usize, all: usize| 4 * count * own > 5 * all;
    let crowded = |it: Standing| {
        let dials = it.dialling.saturating_sub(DIALS_TO_SPARE);
        above(it.carrying + dials, everyone.open())
    };
    // Of open connections nobody knows how much work they are, and they may stay for ever.
    if crowded(own) {
        let other = better_of_two(at, count, |n| standing(n).open(), dice);
        if standing(other).open() < own.open() {
            return other;
        }
    // Dials are much work each and soon over: thousands of idle connections must not hide them.
    } else if above(
        own.dialling.saturating_sub(DIALS_TO_SPARE),
        everyone.dialling,
    ) {
        let other = better_of_two(at, count, |n| standing(n).dialling, dice);
        if standing(other).dialling < own.dialling && !crowded(standing(other)) {
            return other;
        }
    }
    at
}

/// Of two workers other than `at`, the one that has less.
fn better_of_two(
    at: usize,
    count: usize,
    measure: impl Fn(usize) -> usize,
    mut dice: impl FnMut(usize) -> usize,
) -> usize {
    // The others, in a row that leaves `at` out.
    let other = |n: usize| if n < at { n } else { n + 1 };
    let first = dice(count - 1);
    if count == 2 {
        return other(first);
    }
    let second = dice(count - 2);
    let second = if second < first { second } else { second + 1 };
    let (one, two) = (other(first), other(second));
    if measure(two) < measure(one) {
        two
    } else {
        one
    }
}

/// Random numbers for choices that nobody needs to be unable to guess (xorshift64).
#[derive(Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new() -> Self {
        // std's hasher keys are random enough; zero would stay zero.
        Self(RandomState::new().hash_one(()) | 1)
    }

    /// From 0 to `sides` - 1; 0 for none.
    fn throw(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 32) as usize % sides.max(1)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use futures_util::FutureExt as _;

    use super::*;

    fn standings(of: &[(usize, usize)]) -> (Standing, Vec<Standing>) {
        let each: Vec<Standing> = of
            .iter()
            .map(|&(dialling, carrying)| Standing { dialling, carrying })
            .collect();
        let sum = |of: fn(&Standing) -> usize| each.iter().map(of).sum();
        let everyone = Standing {
            dialling: sum(|it| it.dialling),
            carrying: sum(|it| it.carrying),
        };
        (everyone, each)
    }

    fn chosen(at: usize, of: &[(usize, usize)], throws: [usize; 2]) -> usize {
        let (everyone, each) = standings(of);
        let mut throws = throws.into_iter();
        choose(
            at,
            of.len(),
            everyone,
            |n| each[n],
            |sides| throws.next().unwrap().min(sides - 1),
        )
    }

    #[test]
    fn a_worker_keeps_what_it_accepts_up_to_a_quarter_above_the_mean() {
        assert_eq!(chosen(0, &[(0, 0)], [0, 0]), 0);
        assert_eq!(chosen(0, &[(0, 0), (0, 0)], [0, 0]), 0);
        // The mean is 100, and 125 is not more than 125.
        assert_eq!(chosen(0, &[(0, 125), (0, 75)], [0, 0]), 0);
        assert_eq!(chosen(0, &[(0, 126), (0, 75)], [0, 0]), 1);
        assert_eq!(chosen(1, &[(0, 75), (0, 126)], [0, 0]), 0);
        // The second of two bulk transfers does not share a thread with the first.
        assert_eq!(chosen(0, &[(0, 1), (0, 0)], [0, 0]), 1);
    }

    #[test]
    fn dials_count_by_themselves_and_a_few_are_no_reason_to_hand_over() {
        assert_eq!(chosen(0, &[(4, 0), (0, 0)], [0, 0]), 0);
        assert_eq!(chosen(0, &[(11, 0), (0, 0)], [0, 0]), 1);
        // Thousands of idle connections do not hide a storm.
        assert_eq!(chosen(0, &[(40, 5000), (2, 5000)], [0, 0]), 1);
        // But a worker that has many connections gets no more of them for that.
        assert_eq!(chosen(0, &[(40, 100), (2, 5000)], [0, 0]), 0);
    }

    #[test]
    fn of_two_others_the_one_with_less_to_do_is_taken_and_none_that_has_as_much() {
        let of = [(0, 90), (0, 7), (0, 8), (0, 9)];
        assert_eq!(chosen(0, &of, [2, 0]), 1);
        assert_eq!(chosen(0, &of, [2, 1]), 2);
        assert_eq!(chosen(0, &of, [1, 1]), 2);
        assert_eq!(chosen(2, &[(0, 0), (0, 0), (0, 9), (0, 0)], [2, 0]), 3);
        let of = [(0, 90), (0, 90), (0, 90), (0, 0), (0, 0)];
        assert_eq!(chosen(0, &of, [0, 0]), 0);
    }

    #[test]
    fn with_long_lived_connections_no_worker_holds_much_more_than_the_mean() {
        const CALLERS: usize = 4_000;
        for count in [2, 3, 8, 32] {
            let mut dice = Dice::new();
            let mut each = vec![
                Standing {
                    dialling: 0,
                    carrying: 0
                };
                count
            ];
            for n in 0..CALLERS {
                let everyone = Standing {
                    dialling: 0,
                    carrying: n,
                };
                // The worst case: one worker wins every race for a caller.
                let chosen = choose(0, count, everyone, |n| each[n], |sides| dice.throw(sides));
                each[chosen].carrying += 1;
            }
            let most = each.iter().map(|it| it.carrying).max().unwrap();
            let mean = CALLERS / count;
            assert!(most <= mean * 13 / 10, "{most} of {mean} with {count}");
        }
    }

    #[tokio::test]
    async fn a_seat_counts_from_the_choice_until_it_is_given_up() {
        let workers = Workers::start(NonZeroUsize::new(2), &CancellationToken::new()).unwrap();
        let crew = Arc::clone(workers.crew());
        let accepting = crew.acceptors().next().unwrap();
        let mut dice = Dice::new();
        let (first, dialling) = crew.seat(accepting, &mut dice);
        assert_eq!(first.worker().number, 0);
        drop(dialling);
        let (second, _dialling) = crew.seat(accepting, &mut dice);
        assert_eq!(second.worker().number, 1);
        assert_eq!(crew.open().collect::<Vec<_>>(), [1, 1]);
        drop(first);
        assert_eq!(crew.open().collect::<Vec<_>>(), [0, 1]);
        drop(second);
        assert_eq!(crew.everyone.open.load(Relaxed), 0);
        workers.join();
    }

    #[tokio::test]
    async fn a_closed_gate_lets_nobody_pass_until_it_opens_for_all() {
        let gate = Gate::default();
        assert!(gate.pass().now_or_never().is_some());
        gate.set_closed(true);
        gate.set_closed(true);
        let (mut one, mut other) = (pin!(gate.pass()), pin!(gate.pass()));
        assert!(one.as_mut().now_or_never().is_none());
        assert!(other.as_mut().now_or_never().is_none());
        gate.set_closed(false);
        one.await;
        // Closed again before this one looked.
        gate.set_closed(true);
        assert!(other.as_mut().now_or_never().is_none());
        gate.set_closed(false);
        other.await;
    }

    #[tokio::test]
    async fn tasks_run_on_the_thread_of_their_worker_until_the_workers_are_joined() {
        let workers = Workers::start(NonZeroUsize::new(2), &CancellationToken::new()).unwrap();
        let crew = Arc::clone(workers.crew());
        for worker in crew.acceptors() {
            let name = worker
                .runtime()
                .spawn(async { thread::current().name().map(str::to_owned) });
            let expected = format!("worker-{}", worker.number);
            assert_eq!(name.await.unwrap(), Some(expected));
        }
        let (held, gone) = mpsc::channel::<()>();
        crew.workers[1].runtime().spawn(async move {
            std::future::pending::<()>().await;
            drop(held);
        });
        workers.join();
        assert_eq!(gone.recv(), Err(mpsc::RecvError), "the task was dropped");
    }

    #[tokio::test]
    async fn many_workers_share_the_accepting_of_many_listeners() {
        let workers = Workers::start(NonZeroUsize::new(12), &CancellationToken::new()).unwrap();
        let numbers = || {
            let acceptors = workers.crew().acceptors();
            acceptors.map(|worker| worker.number).collect::<Vec<_>>()
        };
        assert_eq!(numbers(), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(numbers(), [8, 9, 10, 11, 0, 1, 2, 3]);
        workers.join();
    }

    #[test]
    fn a_worker_that_ends_by_a_bug_is_a_fault_of_the_process() {
        let fault = CancellationToken::new();
        report_a_panic(0, &fault, || {});
        assert!(!fault.is_cancelled());
        report_a_panic(0, &fault, || panic!("a bug"));
        assert!(fault.is_cancelled());
    }
}
