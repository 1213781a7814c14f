//! The two-way relay between a caller's plain stream and an upstream's TLS session.
//!
//! Readiness first: while nothing happens a relay holds no buffer. When a socket is ready it
//! borrows the thread's [`Scratch`], reads, seals or opens, and writes in one synchronous step.
//! Only what a full socket does not take is kept (at most one batch each way), and while
//! something is kept that way is not read further: a slow reader slows its own sender and nobody
//! else.
//!
//! Each way ends by itself: the caller's FIN becomes `close_notify`, the upstream's
//! `close_notify` becomes a FIN, and data goes on flowing the other way. (No FIN follows our
//! `close_notify`: some servers take a FIN for a client that has gone away.) A break is reported
//! only after all that was received before it has been written on.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::caller::Caller;
use super::scratch::{self, Scratch};
use super::session::Session;
use crate::config::UncleanClose;

/// Batches each way in one wake, so that a fast connection does not starve its thread's others.
const ROUNDS_PER_WAKE: usize = 4;

/// Pieces of plaintext in one write to the caller, at most: a batch of full records.
const SLICES: usize = 32;

/// How often a caller is looked at that is not being read, because it has ended its way or the
/// upstream is full: its reset raises no event then.
const LOOK_AT_CALLER: Duration = Duration::from_secs(2);

/// The time limits of a relay.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Without a byte either way.
    pub(crate) idle: Option<Duration>,
    /// The moment at which the connection has lived long enough.
    pub(crate) end: Option<Instant>,
    /// Without a byte, after one way has ended and while the other has not.
    pub(crate) close: Duration,
    pub(crate) unclean_close: UncleanClose,
}

/// Why a relay broke off.
#[derive(Debug)]
pub(crate) enum Break {
    /// The caller reset the connection or went away without reading all.
    Caller(io::Error),
    /// The upstream's socket failed.
    Upstream(io::Error),
    /// The upstream's stream ended without `close_notify`.
    Truncated,
    /// The upstream sent a fatal alert, or something that is not valid TLS.
    /// In a box: each idle connection has room for a break.
    Tls(Box<rustls::Error>),
    /// The session can seal no more of what the caller sends.
    KeysExhausted,
    Idle,
    MaxLifetime,
    CloseTimeout,
}

/// What was carried; true also after a break.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Transfer {
    /// Payload bytes taken from the caller.
    pub(crate) up: u64,
    /// Payload bytes written to the caller.
    pub(crate) down: u64,
    /// The upstream has sent application data: it has accepted us.
    pub(crate) answered: bool,
}

/// One connection's relay. Drive it with [`Relay::poll`]; dropping it drops nothing but what was
/// not written yet.
pub(crate) struct Relay<'io, C, U, S> {
    caller: &'io mut C,
    upstream: &'io mut U,
    session: S,
    up: Up,
    down: Down,
    /// Plaintext that the caller's socket did not take. Empty and without memory otherwise.
    kept: Kept,
    transfer: Transfer,
    /// Application data came after our `close_notify`.
    answered_after_close: bool,
    limits: Limits,
    timer: Timer,
    /// The caller has been asked for data once.
    begun: bool,
}

/// The way from caller to upstream.
#[derive(Debug)]
enum Up {
    Open,
    /// The caller has ended; `close_notify` is queued or written.
    Closing,
    Done,
    /// The upstream takes no more. What it said before that may still be read.
    Refused(io::Error),
}

/// The way from upstream to caller.
#[derive(Debug)]
enum Down {
    Open,
    /// No more will come; what is kept is still to be written.
    Ending(Result<(), Break>),
    /// The caller has been told.
    Done,
}

enum Step {
    Moved,
    Blocked,
}

impl<'io, C, U, S> Relay<'io, C, U, S>
where
    C: Caller,
    U: AsyncRead + AsyncWrite + Unpin,
    S: Session,
{
    pub(crate) fn new(
        caller: &'io mut C,
        upstream: &'io mut U,
        session: S,
        limits: Limits,
    ) -> Self {
        Self {
            caller,
            upstream,
            session,
            up: Up::Open,
            down: Down::Open,
            kept: Kept::default(),
            transfer: Transfer::default(),
            answered_after_close: false,
            limits,
            timer: Timer::default(),
            begun: false,
        }
    }

    pub(crate) fn transfer(&self) -> Transfer {
        self.transfer
    }

    /// Takes what came with the handshake's last flight, before the first [`Self::poll`].
    pub(crate) fn prime(&mut self) {
        scratch::borrow(|scratch| {
            self.open(self.session.room(), scratch);
            self.kept.keep(scratch.pieces.to_vec(&scratch.wire));
        });
    }

    /// Relays until both ways have ended.
    ///
    /// # Errors
    /// The first break, once all that was received before it has been written to the caller.
    ///
    /// # Cancellation
    /// May be dropped between polls; counts are right, and nothing is written half.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Break>> {
        let before = self.transfer;
        let mut rounds = 0;
        loop {
            let (down, up) =
                scratch::borrow(|scratch| (self.step_down(cx, scratch), self.step_up(cx, scratch)));
            let (down, up) = match (down, up) {
                (Ok(down), Ok(up)) => (down, up),
                // What the upstream said explains more than what the caller did about it.
                (Err(error), _) | (_, Err(error)) => return Poll::Ready(Err(error)),
            };
            // An upstream that refuses more after it has said that it is done breaks nothing.
            if matches!(
                (&self.down, &self.up),
                (Down::Done, Up::Done | Up::Refused(_))
            ) {
                return Poll::Ready(Ok(()));
            }
            if matches!((down, up), (Step::Blocked, Step::Blocked)) {
                break;
            }
            rounds += 1;
            if rounds == ROUNDS_PER_WAKE {
                cx.waker().wake_by_ref();
                break;
            }
        }
        let now = Activity {
            moved: before != self.transfer,
            closing: !matches!((&self.up, &self.down), (Up::Open, Down::Open)),
            caller_unread: !matches!(self.up, Up::Open) || self.session.wants_write(),
        };
        let (caller, told_the_end) = (&*self.caller, matches!(self.down, Down::Done));
        let waited = self
            .timer
            .poll(cx, now, &self.limits, || caller.is_broken(told_the_end));
        // A break that waited in vain for its last bytes to be read is reported as itself.
        match (&mut self.down, waited) {
            (Down::Ending(end @ Err(_)), Poll::Ready(Err(_))) => {
                Poll::Ready(std::mem::replace(end, Ok(())))
            }
            (_, waited) => waited,
        }
    }

    fn step_down(&mut self, cx: &mut Context<'_>, scratch: &mut Scratch) -> Result<Step, Break> {
        if !self.kept.is_empty() {
            match self.kept.write(cx, self.caller) {
                Poll::Pending => return Ok(Step::Blocked),
                Poll::Ready(Err(error)) => return Err(Break::Caller(error)),
                Poll::Ready(Ok(n)) => {
                    self.transfer.down += n as u64;
                    return Ok(Step::Moved);
                }
            }
        }
        match &mut self.down {
            Down::Open => {}
            Down::Done => return Ok(Step::Blocked),
            Down::Ending(end) => {
                std::mem::replace(end, Ok(()))?;
                return match Pin::new(&mut *self.caller).poll_shutdown(cx) {
                    Poll::Pending => Ok(Step::Blocked),
                    // A caller that has already gone cannot be told.
                    Poll::Ready(_) => {
                        self.down = Down::Done;
                        Ok(Step::Moved)
                    }
                };
            }
        }

        let room = self.session.room();
        let mut wire = ReadBuf::new(&mut scratch.wire[room..room + scratch::WIRE]);
        match Pin::new(&mut *self.upstream).poll_read(cx, &mut wire) {
            Poll::Pending => Ok(Step::Blocked),
            Poll::Ready(Err(error)) => {
                self.down = Down::Ending(Err(Break::Upstream(error)));
                Ok(Step::Moved)
            }
            Poll::Ready(Ok(())) => {
                let n = wire.filled().len();
                if n == 0 {
                    self.down = Down::Ending(self.unannounced_end());
                    return Ok(Step::Moved);
                }
                self.open(room + n, scratch);
                self.deliver(cx, scratch)?;
                Ok(Step::Moved)
            }
        }
    }

    /// Opens the first `filled` bytes of the wire, and notes how the stream goes on.
    fn open(&mut self, filled: usize, scratch: &mut Scratch) {
        scratch.pieces.clear();
        let wire = &mut scratch.wire[..filled];
        let result = self.session.open(wire, &mut scratch.pieces);
        let some = !scratch.pieces.is_empty();
        self.transfer.answered |= some;
        self.answered_after_close |= some && !matches!(self.up, Up::Open);
        match result {
            Err(error) => self.down = Down::Ending(Err(Break::Tls(Box::new(error)))),
            Ok(()) if self.session.peer_closed() => self.down = Down::Ending(Ok(())),
            Ok(()) => {}
        }
    }

    fn deliver(&mut self, cx: &mut Context<'_>, scratch: &mut Scratch) -> Result<(), Break> {
        let Scratch { wire, pieces, .. } = scratch;
        while !pieces.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let filled = pieces.fill(wire, &mut slices);
            match Pin::new(&mut *self.caller).poll_write_vectored(cx, &slices[..filled]) {
                Poll::Pending => {
                    self.kept.keep(pieces.to_vec(wire));
                    break;
                }
                Poll::Ready(Ok(0)) => return Err(Break::Caller(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(n)) => {
                    self.transfer.down += n as u64;
                    pieces.advance(n);
                }
                Poll::Ready(Err(error)) => return Err(Break::Caller(error)),
            }
        }
        Ok(())
    }

    /// The upstream's TCP stream ended without `close_notify`.
    fn unannounced_end(&mut self) -> Result<(), Break> {
        // A reset is no end. The write that met it has taken the socket's error, so that the
        // reader finds only an end; of a stream that had ended before, it would be EPIPE.
        let reset = matches!(&self.up, Up::Refused(error) if error.kind() == io::ErrorKind::ConnectionReset);
        if self.limits.unclean_close == UncleanClose::Fin && !reset {
            return Ok(());
        }
        match std::mem::replace(&mut self.up, Up::Done) {
            Up::Refused(error) => Err(Break::Upstream(error)),
            // A server that answers the caller's end by closing without ceremony has cut nothing
            // short, unless it had begun to answer after that end was passed on.
            Up::Closing | Up::Done if !self.answered_after_close => Ok(()),
            Up::Closing | Up::Done | Up::Open => Err(Break::Truncated),
        }
    }

    fn step_up(&mut self, cx: &mut Context<'_>, scratch: &mut Scratch) -> Result<Step, Break> {
        // The handshake's last flight goes out with what the caller has said meanwhile.
        let with_flight = !std::mem::replace(&mut self.begun, true) && self.session.wants_write();
        // Also while this way is done: answers to KeyUpdate and alerts still go out.
        if !with_flight {
            match self.flush(cx) {
                Poll::Pending => return Ok(Step::Blocked),
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Ok(self.upstream_refuses(error)),
            }
        }
        match self.up {
            Up::Open => {}
            Up::Closing => {
                self.up = Up::Done;
                return Ok(Step::Moved);
            }
            Up::Done | Up::Refused(_) => return Ok(Step::Blocked),
        }
        // The session has failed, and is only kept to deliver what came before that.
        if matches!(self.down, Down::Ending(Err(Break::Tls(_)))) {
            return Ok(Step::Blocked);
        }
        let mut plain = ReadBuf::new(&mut scratch.plain);
        match Pin::new(&mut *self.caller).poll_read(cx, &mut plain) {
            // A server that speaks first waits for it.
            Poll::Pending if with_flight => Ok(Step::Moved),
            Poll::Pending => Ok(Step::Blocked),
            Poll::Ready(Err(error)) => Err(Break::Caller(error)),
            Poll::Ready(Ok(())) => {
                let plain = plain.filled();
                if plain.is_empty() {
                    self.session.close();
                    self.up = Up::Closing;
                } else {
                    if self.session.seal(plain).is_err() {
                        return Err(Break::KeysExhausted);
                    }
                    self.transfer.up += plain.len() as u64;
                }
                match self.flush(cx) {
                    Poll::Pending | Poll::Ready(Ok(())) => Ok(Step::Moved),
                    Poll::Ready(Err(error)) => Ok(self.upstream_refuses(error)),
                }
            }
        }
    }

    fn flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if matches!(self.up, Up::Refused(_)) {
            return Poll::Ready(Ok(()));
        }
        while self.session.wants_write() {
            let mut sink = Sink {
                io: &mut *self.upstream,
                cx,
            };
            match self.session.write(&mut sink) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// A write to the upstream failed. Its last words (an alert that says why) may still wait to
    /// be read, so the relay goes on until the other way ends too.
    fn upstream_refuses(&mut self, error: io::Error) -> Step {
        self.up = match self.down {
            // It had said that it is done: what the caller sends after that is nobody's.
            Down::Done | Down::Ending(Ok(())) => Up::Done,
            Down::Open | Down::Ending(Err(_)) => Up::Refused(error),
        };
        Step::Moved
    }
}

/// Bytes that a full socket did not take.
#[derive(Debug, Default)]
struct Kept {
    bytes: Vec<u8>,
    written: usize,
}

impl Kept {
    fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    fn keep(&mut self, rest: Vec<u8>) {
        debug_assert!(self.is_empty(), "nothing is read while something is kept");
        (self.bytes, self.written) = (rest, 0);
    }

    /// Writes on; gives the memory back once all is written.
    fn write<W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut W,
    ) -> Poll<io::Result<usize>> {
        let n = ready!(Pin::new(to).poll_write(cx, &self.bytes[self.written..]))?;
        if n == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.written += n;
        if self.written == self.bytes.len() {
            self.bytes = Vec::new();
        }
        Poll::Ready(Ok(n))
    }
}

/// What a wake found, as far as time limits depend on it.
struct Activity {
    moved: bool,
    closing: bool,
    caller_unread: bool,
}

/// One timer for all limits, set for the earliest of them and made only when there is one.
#[derive(Debug, Default)]
struct Timer {
    sleep: Option<Pin<Box<Sleep>>>,
    last_moved: Option<Instant>,
    closing_since: Option<Instant>,
    look_at_caller: Option<Instant>,
}

impl Timer {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        now: Activity,
        limits: &Limits,
        caller_is_broken: impl Fn() -> bool,
    ) -> Poll<Result<(), Break>> {
        if limits.idle.is_some() && (now.moved || self.last_moved.is_none()) {
            self.last_moved = Some(Instant::now());
        }
        // Data that still flows the other way puts the limit off.
        if now.closing && (now.moved || self.closing_since.is_none()) {
            self.closing_since = Some(Instant::now());
        }
        match (now.caller_unread, self.look_at_caller) {
            (true, None) => self.look_at_caller = Some(Instant::now() + LOOK_AT_CALLER),
            (false, Some(_)) => self.look_at_caller = None,
            (true, Some(_)) | (false, None) => {}
        }
        loop {
            let Some(at) = self.next(limits) else {
                return Poll::Pending;
            };
            let sleep = self
                .sleep
                .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
            // Only a nearer moment moves the timer at once; a later one is set when the old one
            // has come, so that activity costs no timer operation.
            if sleep.deadline() > at {
                sleep.as_mut().reset(at);
            }
            ready!(sleep.as_mut().poll(cx));
            if let Some(reached) = self.reached(limits, Instant::now()) {
                return Poll::Ready(Err(reached));
            }
            if self.look_at_caller.is_some_and(|at| at <= Instant::now()) {
                if caller_is_broken() {
                    let reset = io::ErrorKind::ConnectionReset;
                    return Poll::Ready(Err(Break::Caller(reset.into())));
                }
                self.look_at_caller = Some(Instant::now() + LOOK_AT_CALLER);
            }
            let next = self.next(limits);
            if let (Some(sleep), Some(at)) = (&mut self.sleep, next) {
                sleep.as_mut().reset(at);
            }
        }
    }

    fn limits(&self, limits: &Limits) -> [Option<(Instant, Break)>; 3] {
        [
            limits
                .idle
                .zip(self.last_moved)
                .map(|(idle, moved)| (moved + idle, Break::Idle)),
            limits.end.map(|end| (end, Break::MaxLifetime)),
            self.closing_since
                .map(|since| (since + limits.close, Break::CloseTimeout)),
        ]
    }

    fn reached(&self, limits: &Limits, now: Instant) -> Option<Break> {
        self.limits(limits)
            .into_iter()
            .flatten()
            .find(|(at, _)| *at <= now)
            .map(|(_, end)| end)
    }

    fn next(&self, limits: &Limits) -> Option<Instant> {
        let limits = self.limits(limits).into_iter().flatten().map(|(at, _)| at);
        limits.chain(self.look_at_caller).min()
    }
}

/// An [`AsyncWrite`] as the blocking writer that rustls expects.
pub(super) struct Sink<'a, 'cx, W> {
    pub(super) io: &'a mut W,
    pub(super) cx: &'a mut Context<'cx>,
}

impl<W: AsyncWrite + Unpin> io::Write for Sink<'_, '_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        or_would_block(Pin::new(&mut *self.io).poll_write(self.cx, bytes))
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        or_would_block(Pin::new(&mut *self.io).poll_write_vectored(self.cx, slices))
    }

    fn flush(&mut self) -> io::Result<()> {
        or_would_block(Pin::new(&mut *self.io).poll_flush(self.cx))
    }
}

fn or_would_block<T>(poll: Poll<io::Result<T>>) -> io::Result<T> {
    match poll {
        Poll::Ready(result) => result,
        Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
    }
}

#[cfg(test)]
mod tests;
