//! One gate for all who want something of the API server: while it does not answer, one of them
//! tries and the others wait, and once it does they go on a few at a time.

use std::hash::{BuildHasher as _, RandomState};
use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, SemaphorePermit};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::cluster::Store;
use crate::failure::Explained;

/// How many may ask at once: enough to hide the way there and back, few enough that a server that
/// has just come back is not run over.
const AT_ONCE: usize = 16;

/// Over how long those who waited go on, where there are more than [`AT_ONCE`].
const SPREAD: Duration = Duration::from_secs(1);

/// The waits between attempts at a server that does not answer. With a look-out of 2 s for each
/// attempt and [`SPREAD`], everything is right within 5 s of its return.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// A random share of `most`: what many do at once is spread by it.
pub(super) fn some_of(most: Duration) -> Duration {
    // std's hasher keys are random enough to spread by.
    let share = RandomState::new().hash_one(()) as f64 / u64::MAX as f64;
    most.mul_f64(share)
}

/// Waits that double with each attempt, and whose second half is random, so that those who failed
/// together do not try again together.
#[derive(Debug)]
pub(super) struct Backoff {
    first: Duration,
    longest: Duration,
    attempts: u32,
}

impl Backoff {
    pub(super) fn new(first: Duration, longest: Duration) -> Self {
        Self {
            first,
            longest,
            attempts: 0,
        }
    }

    /// How long to wait now.
    pub(super) fn next(&mut self) -> Duration {
        let factor = 2_u32.saturating_pow(self.attempts);
        self.attempts = self.attempts.saturating_add(1);
        let due = self.first.saturating_mul(factor).min(self.longest);
        due / 2 + some_of(due / 2)
    }

    pub(super) fn reset(&mut self) {
        self.attempts = 0;
    }
}

/// Waits for `time`, or until somebody asks for fresh news.
pub(super) async fn pause(time: Duration, store: &Store) {
    tokio::select! {
        () = tokio::time::sleep(time) => {}
        () = store.hurried() => {}
    }
}

/// The gate. Open until an attempt fails for want of a server.
#[derive(Debug)]
pub(super) struct Gate {
    /// The server, for the log.
    server: String,
    state: Mutex<State>,
    /// It has opened, or whoever was trying has gone.
    news: Notify,
    slots: Semaphore,
}

#[derive(Debug, Default)]
struct State {
    closed: Option<Closed>,
    waiting: usize,
}

#[derive(Debug)]
struct Closed {
    why: Explained,
    since: Instant,
    next: Instant,
    backoff: Backoff,
    /// Somebody is trying, or about to.
    tried: bool,
}

/// Leave to ask the server; to be given back with how it went. Dropped, it says nothing of the
/// server.
#[derive(Debug)]
#[must_use]
pub(super) struct Pass<'g> {
    gate: &'g Gate,
    /// Others wait for what becomes of this attempt.
    probe: bool,
    _slot: Option<SemaphorePermit<'g>>,
}

/// How long to wait for a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Patience {
    /// For the connection, its TLS handshake included.
    pub(super) connect: Duration,
    /// For the head of an answer, and for each piece of a list.
    pub(super) answer: Duration,
}

impl Patience {
    pub(super) const FULL: Self = Self {
        connect: Duration::from_secs(5),
        answer: Duration::from_secs(10),
    };
    const SHORT: Self = Self {
        connect: Duration::from_secs(2),
        answer: Duration::from_secs(3),
    };
}

impl Gate {
    pub(super) fn new(server: String) -> Self {
        Self {
            server,
            state: Mutex::default(),
            news: Notify::new(),
            slots: Semaphore::new(AT_ONCE),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is one assignment, so a panic elsewhere cannot leave it half made.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the server answered when it was last asked.
    pub(super) fn is_open(&self) -> bool {
        self.state().closed.is_none()
    }

    /// Waits for leave to ask the server. While the gate is closed, `closed` is told why, once for
    /// each reason. Cancel-safe.
    pub(super) async fn pass(&self, store: &Store, mut closed: impl FnMut(&Explained)) -> Pass<'_> {
        let mut told = None;
        loop {
            let mut news = pin!(self.news.notified());
            // From here on nothing is missed, whatever happens before the wait below.
            news.as_mut().enable();
            let turn = self.turn(|why| {
                if told.as_ref() != Some(why) {
                    closed(why);
                    told = Some(why.clone());
                }
            });
            match turn {
                Turn::Enter => {
                    let slot = self.slots.acquire().await;
                    // It may have closed while this one stood in line.
                    if self.is_open() {
                        return Pass {
                            gate: self,
                            probe: false,
                            // The semaphore is never closed.
                            _slot: slot.ok(),
                        };
                    }
                }
                Turn::Try { at } => {
                    let pass = Pass {
                        gate: self,
                        probe: true,
                        _slot: None,
                    };
                    pause(at.saturating_duration_since(Instant::now()), store).await;
                    return pass;
                }
                Turn::Wait => {
                    let waiting = Waiting::new(self);
                    news.await;
                    if self.is_open() && waiting.are_many() {
                        pause(some_of(SPREAD), store).await;
                    }
                }
            }
        }
    }

    fn turn(&self, tell: impl FnOnce(&Explained)) -> Turn {
        let mut state = self.state();
        let Some(closed) = &mut state.closed else {
            return Turn::Enter;
        };
        tell(&closed.why);
        if closed.tried {
            return Turn::Wait;
        }
        closed.tried = true;
        Turn::Try { at: closed.next }
    }
}

enum Turn {
    /// It is open.
    Enter,
    /// It is closed, and this one is to try at this moment.
    Try { at: Instant },
    /// It is closed, and another tries.
    Wait,
}

/// One of those who wait for the gate to open.
struct Waiting<'g>(&'g Gate);

impl<'g> Waiting<'g> {
    fn new(gate: &'g Gate) -> Self {
        gate.state().waiting += 1;
        Self(gate)
    }

    fn are_many(&self) -> bool {
        self.0.state().waiting > AT_ONCE
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.state().waiting -= 1;
    }
}

impl Pass<'_> {
    /// Whether the gate is closed and others wait for this attempt.
    pub(super) fn is_probe(&self) -> bool {
        self.probe
    }

    /// How much time the attempt has. Those who wait for it are not to wait long; but a server may
    /// be slow and yet alive, so each fourth of these attempts has as long as any other.
    pub(super) fn patience(&self) -> Patience {
        let state = self.gate.state();
        match &state.closed {
            Some(closed) if self.probe && closed.backoff.attempts % 4 != 0 => Patience::SHORT,
            _ => Patience::FULL,
        }
    }

    /// The server answered: whatever it said, it is there.
    pub(super) fn answered(mut self) {
        self.probe = false;
        let Some(closed) = self.gate.state().closed.take() else {
            return;
        };
        info!(
            server = self.gate.server,
            away_seconds = closed.since.elapsed().as_secs(),
            "the Kubernetes API server answers again"
        );
        self.gate.news.notify_waiters();
    }

    /// The server did not answer, or is in no state to; `after` is how long it wants to be left
    /// alone, if it said so.
    pub(super) fn failed(mut self, why: &Explained, after: Option<Duration>) {
        let mut state = self.gate.state();
        let now = Instant::now();
        match &mut state.closed {
            None => {
                warn!(
                    server = self.gate.server,
                    reason = %why.reason, detail = why.detail, hint = why.hint,
                    "the Kubernetes API server does not answer; what is known goes on"
                );
                let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
                state.closed = Some(Closed {
                    why: why.clone(),
                    since: now,
                    next: now + backoff.next().max(after.unwrap_or_default()),
                    backoff,
                    tried: false,
                });
            }
            Some(closed) if self.probe => {
                closed.why = why.clone();
                closed.next = now + closed.backoff.next().max(after.unwrap_or_default());
                closed.tried = false;
            }
            // Begun before it closed: says nothing new.
            Some(_) => {}
        }
        drop(state);
        if std::mem::take(&mut self.probe) {
            // Whoever tried may not come back.
            self.gate.news.notify_one();
        }
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if self.probe {
            if let Some(closed) = &mut self.gate.state().closed {
                closed.tried = false;
            }
            self.gate.news.notify_one();
        }
    }
}

#[cfg(test)]
mod tests;
