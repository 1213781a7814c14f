//! The relay over scripted sockets that do at each step what sockets may do: take or give a
//! little, wait, end, fail.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::proxy::scratch::Pieces;
use crate::proxy::session::KeysExhausted;

// === scripted sockets ===

#[derive(Clone, Debug)]
enum Read {
    Data(Vec<u8>),
    /// Pending once; the task is woken at once.
    Wait,
    End,
    Fail(io::ErrorKind),
}

#[derive(Clone, Copy, Debug)]
enum Write {
    AtMost(usize),
    Wait,
    Fail(io::ErrorKind),
    /// Pending, and nothing will ever come.
    Never,
}

/// A socket that follows its script. When that ends, reads wait for ever and writes take all.
#[derive(Debug, Default)]
struct Scripted {
    reads: VecDeque<Read>,
    writes: VecDeque<Write>,
    written: Vec<u8>,
    /// How often something was written.
    taken: usize,
    bytes_read: usize,
    shut: bool,
    broken: bool,
}

impl Scripted {
    fn new(reads: impl IntoIterator<Item = Read>, writes: impl IntoIterator<Item = Write>) -> Self {
        Self {
            reads: reads.into_iter().collect(),
            writes: writes.into_iter().collect(),
            ..Self::default()
        }
    }
}

impl AsyncRead for Scripted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.reads.pop_front() {
            None => Poll::Pending,
            Some(Read::Wait) => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Some(Read::End) => {
                self.reads.push_front(Read::End);
                Poll::Ready(Ok(()))
            }
            Some(Read::Fail(kind)) => Poll::Ready(Err(kind.into())),
            Some(Read::Data(mut data)) => {
                let n = data.len().min(buf.remaining());
                buf.put_slice(&data[..n]);
                self.bytes_read += n;
                if n < data.len() {
                    self.reads.push_front(Read::Data(data.split_off(n)));
                }
                Poll::Ready(Ok(()))
            }
        }
    }
}

impl AsyncWrite for Scripted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        assert!(!self.shut, "written after the end");
        let n = match self.writes.pop_front() {
            None => bytes.len(),
            Some(Write::AtMost(n)) => n.min(bytes.len()),
            Some(Write::Wait) => {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Some(Write::Never) => {
                self.writes.push_front(Write::Never);
                return Poll::Pending;
            }
            Some(Write::Fail(kind)) => {
                self.writes.push_front(Write::Fail(kind));
                return Poll::Ready(Err(kind.into()));
            }
        };
        self.written.extend_from_slice(&bytes[..n]);
        self.taken += 1;
        Poll::Ready(Ok(n))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        assert!(!self.shut, "shut twice");
        self.shut = true;
        Poll::Ready(Ok(()))
    }
}

impl Caller for Scripted {
    fn is_broken(&self, _: bool) -> bool {
        self.broken
    }

    async fn broken(&self) {
        std::future::pending().await
    }

    fn unacknowledged(&self) -> io::Result<usize> {
        Ok(0)
    }

    fn reset_on_close(&self) {}
}

// === a session whose records can be read by eye ===

const DATA: u8 = b'd';
const CLOSE: u8 = b'c';
const ALERT: u8 = b'a';

/// Records of a type, a length and as many bytes.
#[derive(Debug, Default)]
struct Plain {
    partial: Vec<u8>,
    queue: Vec<u8>,
    peer_closed: bool,
    closed: bool,
}

fn record(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut record = vec![kind, u8::try_from(payload.len()).unwrap()];
    record.extend_from_slice(payload);
    record
}

impl Session for Plain {
    fn room(&self) -> usize {
        self.partial.len()
    }

    fn open(&mut self, wire: &mut [u8], pieces: &mut Pieces) -> Result<(), rustls::Error> {
        wire[..self.partial.len()].copy_from_slice(&self.partial);
        let mut at = 0;
        while let [kind, size, rest @ ..] = &wire[at..] {
            let size = usize::from(*size);
            if rest.len() < size {
                break;
            }
            match *kind {
                DATA => pieces.push(wire, at + 2..at + 2 + size),
                CLOSE => self.peer_closed = true,
                _ => {
                    let alert = rustls::AlertDescription::UnknownCA;
                    return Err(rustls::Error::AlertReceived(alert));
                }
            }
            at += 2 + size;
        }
        self.partial = wire[at..].to_vec();
        Ok(())
    }

    fn peer_closed(&self) -> bool {
        self.peer_closed
    }

    fn seal(&mut self, plain: &[u8]) -> Result<(), KeysExhausted> {
        assert!(!self.closed, "sealed after close_notify");
        for chunk in plain.chunks(200) {
            self.queue.extend(record(DATA, chunk));
        }
        Ok(())
    }

    fn close(&mut self) {
        assert!(!self.closed, "closed twice");
        self.closed = true;
        self.queue.extend(record(CLOSE, &[]));
    }

    fn wants_write(&self) -> bool {
        !self.queue.is_empty()
    }

    fn write(&mut self, sink: &mut dyn io::Write) -> io::Result<usize> {
        let n = sink.write(&self.queue)?;
        self.queue.drain(..n);
        Ok(n)
    }
}

/// What the upstream received: its data, and how many times it was told of the end.
fn unseal(wire: &[u8]) -> (Vec<u8>, usize) {
    let mut session = Plain::default();
    let mut wire = wire.to_vec();
    let mut pieces = Pieces::default();
    session.open(&mut wire, &mut pieces).unwrap();
    (pieces.to_vec(&wire), usize::from(session.peer_closed))
}

// === running a relay ===

const LIMITS: Limits = Limits {
    idle: None,
    end: None,
    close: Duration::from_secs(60),
    unclean_close: UncleanClose::Reset,
};

/// Runs a relay to its end on paused time. One that waits for ever fails by its close timeout or,
/// where nothing has closed, here.
fn run(
    caller: &mut Scripted,
    upstream: &mut Scripted,
    limits: Limits,
) -> (Result<(), Break>, Transfer) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut relay = Relay::new(caller, upstream, Plain::default(), limits);
        relay.prime();
        let patience = Duration::from_secs(3600);
        let result = tokio::time::timeout(patience, poll_fn(|cx| relay.poll(cx)))
            .await
            .expect("the relay ends");
        (result, relay.transfer())
    })
}

fn cut(bytes: &[u8], cuts: &[usize]) -> Vec<Read> {
    let mut reads = Vec::new();
    let mut rest = bytes;
    for cut in cuts {
        if rest.is_empty() {
            break;
        }
        let (now, later) = rest.split_at((*cut).clamp(1, rest.len()));
        reads.push(Read::Data(now.into()));
        reads.push(Read::Wait);
        rest = later;
    }
    if !rest.is_empty() {
        reads.push(Read::Data(rest.into()));
    }
    reads
}

fn writes() -> impl Strategy<Value = Vec<Write>> {
    vec(
        prop_oneof![(1usize..300).prop_map(Write::AtMost), Just(Write::Wait)],
        0..20,
    )
}

fn payloads() -> impl Strategy<Value = Vec<Vec<u8>>> {
    vec(vec(any::<u8>(), 0..200), 0..12)
}

/// How the upstream's stream ends.
#[derive(Clone, Copy, Debug)]
enum UpstreamEnd {
    Truncated,
    Alert,
    Reset,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn whatever_the_sockets_do_both_ways_arrive_whole_and_end_once(
        up in payloads(),
        down in payloads(),
        up_cuts in vec(1usize..500, 0..20),
        down_cuts in vec(1usize..500, 0..20),
        caller_writes in writes(),
        upstream_writes in writes(),
    ) {
        let sent_up = up.concat();
        let sent_down = down.concat();
        let mut wire: Vec<u8> = down.iter().flat_map(|payload| record(DATA, payload)).collect();
        wire.extend(record(CLOSE, &[]));
        let mut caller_reads = cut(&sent_up, &up_cuts);
        caller_reads.push(Read::End);
        let mut caller = Scripted::new(caller_reads, caller_writes);
        let mut upstream = Scripted::new(cut(&wire, &down_cuts), upstream_writes);

        let (result, transfer) = run(&mut caller, &mut upstream, LIMITS);

        prop_assert!(result.is_ok(), "{:?}", result);
        prop_assert!(caller.shut);
        prop_assert!(!upstream.shut, "close_notify, and no FIN after it");
        prop_assert_eq!(&caller.written, &sent_down);
        prop_assert_eq!(unseal(&upstream.written), (sent_up.clone(), 1));
        prop_assert_eq!(transfer.up, sent_up.len() as u64);
        prop_assert_eq!(transfer.down, sent_down.len() as u64);
        prop_assert_eq!(transfer.answered, !sent_down.is_empty());
    }

    #[test]
    fn everything_before_a_break_of_the_upstream_reaches_the_caller_and_no_end_does(
        down in payloads(),
        down_cuts in vec(1usize..500, 0..20),
        caller_writes in writes(),
        end in prop_oneof![
            Just(UpstreamEnd::Truncated), Just(UpstreamEnd::Alert), Just(UpstreamEnd::Reset)
        ],
    ) {
        let sent_down = down.concat();
        let mut wire: Vec<u8> = down.iter().flat_map(|payload| record(DATA, payload)).collect();
        if matches!(end, UpstreamEnd::Alert) {
            wire.extend(record(ALERT, &[]));
        }
        let mut reads = cut(&wire, &down_cuts);
        reads.push(match end {
            UpstreamEnd::Reset => Read::Fail(io::ErrorKind::ConnectionReset),
            UpstreamEnd::Truncated | UpstreamEnd::Alert => Read::End,
        });
        let mut caller = Scripted::new([], caller_writes);
        let mut upstream = Scripted::new(reads, []);

        let (result, transfer) = run(&mut caller, &mut upstream, LIMITS);

        let as_expected = matches!(
            (end, &result),
            (UpstreamEnd::Truncated, Err(Break::Truncated))
                | (UpstreamEnd::Alert, Err(Break::Tls(_)))
                | (UpstreamEnd::Reset, Err(Break::Upstream(_)))
        );
        prop_assert!(as_expected, "{:?}: {:?}", end, result);
        prop_assert!(!caller.shut, "the caller must not see an end");
        prop_assert_eq!(&caller.written, &sent_down);
        prop_assert_eq!(transfer.down, sent_down.len() as u64);
    }

    #[test]
    fn a_caller_that_breaks_at_any_step_is_never_passed_on_as_an_end(
        up in payloads(),
        up_cuts in vec(1usize..500, 0..20),
        upstream_writes in writes(),
        break_by_write in any::<bool>(),
    ) {
        let sent_up = up.concat();
        let mut reads = cut(&sent_up, &up_cuts);
        let reset = io::ErrorKind::ConnectionReset;
        let mut upstream_reads = Vec::new();
        let mut caller_writes = Vec::new();
        if break_by_write {
            upstream_reads.push(Read::Data(record(DATA, b"answer")));
            caller_writes.push(Write::Fail(reset));
        } else {
            reads.push(Read::Fail(reset));
        }
        let mut caller = Scripted::new(reads, caller_writes);
        let mut upstream = Scripted::new(upstream_reads, upstream_writes);

        let (result, _) = run(&mut caller, &mut upstream, LIMITS);

        prop_assert!(matches!(result, Err(Break::Caller(_))), "{:?}", result);
        let mut whole = Plain::default();
        let mut pieces = Pieces::default();
        prop_assert!(whole.open(&mut upstream.written, &mut pieces).is_ok());
        prop_assert!(!whole.peer_closed, "close_notify would say that all is well");
        prop_assert!(sent_up.starts_with(&pieces.to_vec(&upstream.written)));
    }
}

/// One poll of a relay whose session still has the handshake's last flight to send.
fn poll_with_a_flight(caller: &mut Scripted, upstream: &mut Scripted) {
    let session = Plain {
        queue: b"flight".into(),
        ..Plain::default()
    };
    let mut relay = Relay::new(caller, upstream, session, LIMITS);
    let mut context = Context::from_waker(std::task::Waker::noop());
    assert!(relay.poll(&mut context).is_pending());
}

#[test]
fn the_handshakes_last_flight_and_the_callers_first_data_go_out_in_one_piece() {
    let mut caller = Scripted::new([Read::Data(b"hello".into())], []);
    let mut upstream = Scripted::default();
    poll_with_a_flight(&mut caller, &mut upstream);
    let expected = [b"flight".to_vec(), record(DATA, b"hello")].concat();
    assert_eq!((upstream.written, upstream.taken), (expected, 1));
}

#[test]
fn the_last_flight_goes_out_at_once_where_the_caller_says_nothing() {
    let mut upstream = Scripted::default();
    poll_with_a_flight(&mut Scripted::default(), &mut upstream);
    assert_eq!(upstream.written, b"flight");
}

#[test]
fn an_alert_behind_a_refused_write_is_what_is_reported() {
    let mut caller = Scripted::new([Read::Data(b"hello".into())], []);
    let reads = [
        Read::Wait,
        Read::Wait,
        Read::Data(record(ALERT, &[])),
        Read::End,
    ];
    let mut upstream = Scripted::new(reads, [Write::Fail(io::ErrorKind::BrokenPipe)]);
    let (result, transfer) = run(&mut caller, &mut upstream, LIMITS);
    assert!(
        matches!(&result, Err(Break::Tls(error)) if matches!(**error, rustls::Error::AlertReceived(_))),
        "{result:?}"
    );
    assert!(!transfer.answered);
}

#[test]
fn a_refused_write_without_a_word_is_the_upstreams_break() {
    let mut caller = Scripted::new([Read::Data(b"hello".into())], []);
    let mut upstream = Scripted::new(
        [Read::Wait, Read::End],
        [Write::Fail(io::ErrorKind::BrokenPipe)],
    );
    let (result, _) = run(&mut caller, &mut upstream, LIMITS);
    assert!(matches!(result, Err(Break::Upstream(_))), "{result:?}");
}

#[test]
fn what_a_caller_sends_to_an_upstream_that_is_done_breaks_nothing() {
    let mut caller = Scripted::new(
        [
            Read::Wait,
            Read::Wait,
            Read::Data(b"too late".into()),
            Read::End,
        ],
        [],
    );
    let mut upstream = Scripted::new(
        [Read::Data(
            [record(DATA, b"bye"), record(CLOSE, &[])].concat(),
        )],
        [Write::Fail(io::ErrorKind::BrokenPipe)],
    );
    let (result, _) = run(&mut caller, &mut upstream, LIMITS);
    assert!(result.is_ok(), "{result:?}");
    assert_eq!(caller.written, b"bye");
    assert!(caller.shut);
}

#[test]
fn an_end_without_close_notify_is_an_end_only_where_the_configuration_says_so() {
    let reads = || [Read::Data(record(DATA, b"all of it?")), Read::End];
    let mut caller = Scripted::new([Read::Wait, Read::Wait, Read::Wait, Read::End], []);
    let mut upstream = Scripted::new(reads(), []);
    let limits = Limits {
        unclean_close: UncleanClose::Fin,
        ..LIMITS
    };
    let (result, _) = run(&mut caller, &mut upstream, limits);
    assert!(result.is_ok(), "{result:?}");
    assert!(caller.shut);
}

#[test]
fn a_server_that_closes_without_ceremony_after_the_callers_end_has_cut_nothing_short() {
    let mut caller = Scripted::new([Read::Data(b"QUIT".into()), Read::End], []);
    let mut upstream = Scripted::new([Read::Wait, Read::Wait, Read::Wait, Read::End], []);
    let (result, _) = run(&mut caller, &mut upstream, LIMITS);
    assert!(result.is_ok(), "{result:?}");
    assert!(caller.shut);
}

#[test]
fn an_answer_cut_short_after_the_callers_end_is_still_a_break() {
    let mut caller = Scripted::new([Read::Data(b"GET".into()), Read::End], []);
    let reads = [
        Read::Wait,
        Read::Wait,
        Read::Wait,
        Read::Data(record(DATA, b"half")),
        Read::End,
    ];
    let mut upstream = Scripted::new(reads, []);
    let (result, _) = run(&mut caller, &mut upstream, LIMITS);
    assert!(matches!(result, Err(Break::Truncated)), "{result:?}");
    assert_eq!(caller.written, b"half");
    assert!(!caller.shut);
}

#[test]
fn a_caller_that_does_not_read_holds_one_batch_and_stops_its_own_upstream() {
    let flood: Vec<Read> = (0..2_000)
        .map(|_| Read::Data(record(DATA, &[7; 250]).repeat(500)))
        .collect();
    let mut caller = Scripted::new([], [Write::Never]);
    let mut upstream = Scripted::new(flood, []);
    let limits = Limits {
        idle: Some(Duration::from_secs(1)),
        ..LIMITS
    };
    let (result, _) = run(&mut caller, &mut upstream, limits);
    assert!(matches!(result, Err(Break::Idle)), "{result:?}");
    assert!(
        upstream.bytes_read <= scratch::WIRE,
        "{} bytes were read",
        upstream.bytes_read
    );
}

#[test]
fn unclean_close_fin_forgives_a_missing_close_notify_and_not_a_reset() {
    let limits = Limits {
        unclean_close: UncleanClose::Fin,
        ..LIMITS
    };
    let end_after = |failure| {
        let mut caller = Scripted::new([Read::Data(b"question".into())], []);
        // Whoever writes first takes the socket's error; the reader then finds only the end.
        let mut upstream = Scripted::new([Read::Wait, Read::End], [Write::Fail(failure)]);
        run(&mut caller, &mut upstream, limits).0
    };
    let reset = end_after(io::ErrorKind::ConnectionReset);
    assert!(matches!(reset, Err(Break::Upstream(_))), "{reset:?}");
    // The upstream had ended before it refused more.
    let ended = end_after(io::ErrorKind::BrokenPipe);
    assert!(ended.is_ok(), "{ended:?}");
}

#[test]
fn an_upstream_that_does_not_read_stops_its_own_caller_after_one_batch() {
    let flood: Vec<Read> = (0..2_000).map(|_| Read::Data(vec![7; 100_000])).collect();
    let mut caller = Scripted::new(flood, []);
    let mut upstream = Scripted::new([], [Write::Never]);
    let limits = Limits {
        idle: Some(Duration::from_secs(1)),
        ..LIMITS
    };
    let (result, _) = run(&mut caller, &mut upstream, limits);
    assert!(matches!(result, Err(Break::Idle)), "{result:?}");
    assert!(
        caller.bytes_read <= scratch::WIRE,
        "{} bytes were read",
        caller.bytes_read
    );
}

#[test]
fn a_caller_that_is_reset_while_it_is_not_being_read_is_noticed() {
    let mut caller = Scripted::new([Read::Data(b"stuck".into())], []);
    caller.broken = true;
    let mut upstream = Scripted::new([], [Write::Never]);
    let (result, _) = run(&mut caller, &mut upstream, LIMITS);
    assert!(matches!(result, Err(Break::Caller(_))), "{result:?}");
}

#[test]
fn each_limit_ends_a_relay_by_its_own_name() {
    let silent = || (Scripted::default(), Scripted::default());
    let (mut caller, mut upstream) = silent();
    let limits = Limits {
        idle: Some(Duration::from_secs(5)),
        ..LIMITS
    };
    let (result, _) = run(&mut caller, &mut upstream, limits);
    assert!(matches!(result, Err(Break::Idle)), "{result:?}");

    let (mut caller, mut upstream) = (Scripted::new([Read::End], []), Scripted::default());
    let (result, _) = run(&mut caller, &mut upstream, LIMITS);
    assert!(matches!(result, Err(Break::CloseTimeout)), "{result:?}");
}

#[tokio::test(start_paused = true)]
async fn a_relay_ends_when_it_has_lived_long_enough_however_busy_it_is() {
    let end = Instant::now() + Duration::from_secs(10);
    let (mut caller, mut upstream) = (Scripted::default(), Scripted::default());
    let limits = Limits {
        end: Some(end),
        idle: Some(Duration::from_secs(60)),
        ..LIMITS
    };
    let mut relay = Relay::new(&mut caller, &mut upstream, Plain::default(), limits);
    let result = poll_fn(|cx| relay.poll(cx)).await;
    assert!(matches!(result, Err(Break::MaxLifetime)), "{result:?}");
    assert!(Instant::now() >= end);
}

#[tokio::test(start_paused = true)]
async fn a_download_after_the_callers_end_is_ended_only_by_silence() {
    let (mut caller, mut upstream) = (Scripted::new([Read::End], []), Scripted::default());
    let mut relay = Relay::new(&mut caller, &mut upstream, Plain::default(), LIMITS);
    for _ in 0..10 {
        let soon = tokio::time::timeout(LIMITS.close / 2, poll_fn(|cx| relay.poll(cx)));
        assert!(soon.await.is_err());
        relay
            .upstream
            .reads
            .push_back(Read::Data(record(DATA, b"more")));
    }
    let last = Instant::now();
    let result = poll_fn(|cx| relay.poll(cx)).await;
    assert!(matches!(result, Err(Break::CloseTimeout)), "{result:?}");
    assert_eq!(last.elapsed(), LIMITS.close);
}

#[test]
fn a_break_that_waits_in_vain_for_the_caller_to_read_is_reported_as_itself() {
    let mut caller = Scripted::new([], [Write::Never]);
    let last_words = [record(DATA, b"unread"), record(ALERT, &[])].concat();
    let mut upstream = Scripted::new([Read::Data(last_words)], []);
    let (result, _) = run(&mut caller, &mut upstream, LIMITS);
    assert!(matches!(result, Err(Break::Tls(_))), "{result:?}");
}

#[tokio::test(start_paused = true)]
async fn bytes_put_the_idle_limit_off() {
    let (mut caller, mut upstream) = (Scripted::default(), Scripted::default());
    let limits = Limits {
        idle: Some(Duration::from_secs(10)),
        ..LIMITS
    };
    let mut relay = Relay::new(&mut caller, &mut upstream, Plain::default(), limits);
    let begun = Instant::now();
    let soon = tokio::time::timeout(Duration::from_secs(8), poll_fn(|cx| relay.poll(cx)));
    assert!(soon.await.is_err());
    relay
        .caller
        .reads
        .push_back(Read::Data(b"still here".into()));
    let result = poll_fn(|cx| relay.poll(cx)).await;
    assert!(matches!(result, Err(Break::Idle)), "{result:?}");
    assert_eq!(begun.elapsed(), Duration::from_secs(18));
}

#[test]
fn one_wake_moves_a_bounded_amount_and_then_lets_others_run() {
    let flood: Vec<Read> = (0..100)
        .map(|_| Read::Data(vec![7; scratch::WIRE]))
        .collect();
    let mut caller = Scripted::new(flood, []);
    let mut upstream = Scripted::default();
    let mut relay = Relay::new(&mut caller, &mut upstream, Plain::default(), LIMITS);
    let mut cx = Context::from_waker(std::task::Waker::noop());
    assert!(relay.poll(&mut cx).is_pending());
    assert_eq!(
        relay.transfer().up,
        (ROUNDS_PER_WAKE * scratch::WIRE) as u64
    );
}
