//! One connection, from accept to its line in the log.

use std::fmt;
use std::future::poll_fn;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ProtocolVersion::TLSv1_3;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::caller::{Caller, acknowledged};
use super::connect::{Connected, Dial, Progress, connect};
use super::outcome;
use super::relay::{Break, Limits, Relay, Transfer};
use super::session::Engine;
use crate::clock;
use crate::failure::{Failure, Phase, Reason, Side};
use crate::route::{Held, Presented, Route};
use crate::telemetry::{self, ConnectionRecord, TlsRecord};

/// Who called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CallerAddress {
    Tcp(SocketAddr),
    /// A peer on a unix socket, as the kernel vouches for it.
    Unix {
        uid: u32,
        gid: u32,
        pid: Option<i32>,
    },
}

impl fmt::Display for CallerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix {
                uid,
                gid,
                pid: Some(pid),
            } => write!(f, "unix uid={uid} gid={gid} pid={pid}"),
            Self::Unix {
                uid,
                gid,
                pid: None,
            } => write!(f, "unix uid={uid} gid={gid}"),
        }
    }
}

/// What is known of the TLS session, for the log.
#[derive(Debug)]
struct SessionFacts {
    endpoint: SocketAddr,
    version: Option<rustls::ProtocolVersion>,
    cipher: Option<rustls::CipherSuite>,
    group: Option<rustls::NamedGroup>,
    resumed: bool,
    /// Counts the connection at its endpoint.
    #[expect(dead_code, reason = "held")]
    held: Option<Held>,
}

/// Serves one caller: dials, relays until both ways have ended, tells the caller by FIN or RST
/// how it ended, and writes the line in the log. `abort` ends it at once.
///
/// Not an `async fn`, and nor is what it waits for while data flows: that would have room for each
/// argument twice.
pub(crate) fn run<C: Caller>(
    caller: C,
    address: CallerAddress,
    route: Arc<Route>,
    mut how: Dial,
    abort: CancellationToken,
) -> impl Future<Output = ()> + Send {
    let mut caller = ResetUnlessClean {
        stream: caller,
        clean: false,
    };
    async move {
        // The handshake's state is many times the relay's: it lives in a box of its own and is
        // gone before the relay begins.
        let dialled = Box::pin(dial(&caller.stream, &route, &how, &abort)).await;
        how.dialling = None;
        let (facts, upstream, session) = match dialled.and_then(split) {
            Ok(open) => open,
            Err(failure) => {
                drop(caller);
                let (duration, nothing) = (how.accepted.elapsed(), Transfer::default());
                record(&route, &address, duration, nothing, None, Some(&failure));
                return;
            }
        };
        let stream = &mut caller.stream;
        let (result, transfer) =
            relay(stream, upstream, session, &route, how.accepted, &abort).await;
        caller.clean = result.is_ok();
        drop(caller);
        let (duration, failure) = (how.accepted.elapsed(), result.as_ref().err());
        record(&route, &address, duration, transfer, Some(&facts), failure);
    }
}

fn split(connected: Connected) -> Result<(SessionFacts, TcpStream, Engine), Failure> {
    let Connected {
        stream,
        session,
        endpoint,
        server_name: _,
        held,
    } = connected;
    let agreed = session.facts();
    let facts = SessionFacts {
        endpoint,
        version: agreed.protocol_version(),
        cipher: agreed.negotiated_cipher_suite().map(|suite| suite.suite()),
        group: agreed
            .negotiated_key_exchange_group()
            .map(|group| group.name()),
        resumed: agreed.handshake_kind() == Some(rustls::HandshakeKind::Resumed),
        held,
    };
    let session = session.into_session().map_err(outcome::no_session)?;
    Ok((facts, stream, session))
}

/// A caller's stream that closes with a reset unless its end was proven clean: a panic on the way
/// must not look like a complete answer.
struct ResetUnlessClean<C: Caller> {
    stream: C,
    clean: bool,
}

impl<C: Caller> Drop for ResetUnlessClean<C> {
    fn drop(&mut self) {
        if !self.clean {
            self.stream.reset_on_close();
        }
    }
}

async fn dial<C: Caller>(
    caller: &C,
    route: &Route,
    how: &Dial,
    abort: &CancellationToken,
) -> Result<Connected, Failure> {
    let progress = Progress::new();
    tokio::select! {
        biased;
        () = abort.cancelled() => Err(stopped(progress.phase())),
        result = connect(route, how, &progress) => result,
        () = caller.broken() => Err(Failure::new(
            progress.phase(),
            Side::Caller,
            Reason::CallerLeft,
            "the caller left before the upstream was ready",
        )),
    }
}

#[expect(clippy::manual_async_fn, reason = "see run")]
fn relay<C: Caller>(
    caller: &mut C,
    mut upstream: TcpStream,
    session: Engine,
    route: &Route,
    accepted: Instant,
    abort: &CancellationToken,
) -> impl Future<Output = (Result<(), Failure>, Transfer)> + Send {
    async move {
        let (ended, transfer) = carry(caller, &mut upstream, session, route, accepted, abort).await;
        let Err(ended) = ended else {
            return (Ok(()), transfer);
        };

        // An alert of ours is on its way: a reset would throw it away.
        let alert_sent = matches!(&ended, Ended::Broken(Break::Tls(_)));
        if !alert_sent {
            upstream.reset_on_close();
        }
        drop(upstream);
        let caller_broke = matches!(&ended, Ended::Broken(Break::Caller(_)));
        if !caller_broke {
            // In a box: an open connection has no use for it, and each would have room for it.
            Box::pin(async {
                tokio::select! {
                    biased;
                    () = abort.cancelled() => {}
                    () = acknowledged(caller, route.timeouts.close) => {}
                }
            })
            .await;
        }
        let failure = match ended {
            Ended::Broken(broken) => outcome::relay_broke(broken, &transfer, &route.identity),
            Ended::Stopped => stopped(Phase::Relay),
            Ended::Retired => Failure::new(
                Phase::Relay,
                Side::Local,
                Reason::Rotated,
                "the certificate that this connection began with was replaced",
            ),
        };
        (Err(failure), transfer)
    }
}

/// Relays until the relay itself, the process or the service's rotation policy ends it.
fn carry<'io, C: Caller>(
    caller: &'io mut C,
    upstream: &'io mut TcpStream,
    session: Engine,
    route: &Route,
    accepted: Instant,
    abort: &CancellationToken,
) -> impl Future<Output = (Result<(), Ended>, Transfer)> + Send {
    let limits = Limits {
        idle: route.timeouts.idle,
        end: route
            .timeouts
            .max_lifetime
            .map(|lifetime| accepted + lifetime),
        close: route.timeouts.close,
        unclean_close: route.unclean_close,
    };
    let mut relay = Relay::new(caller, upstream, session, limits);
    relay.prime();
    async move {
        let carried = poll_fn(|cx| {
            let before = relay.transfer();
            let polled = relay.poll(cx);
            let now = relay.transfer();
            if now.up != before.up {
                route.metrics.sent_up(now.up - before.up);
            }
            if now.down != before.down {
                route.metrics.sent_down(now.down - before.down);
            }
            polled
        });
        let result = tokio::select! {
            biased;
            () = abort.cancelled() => Err(Ended::Stopped),
            result = carried => result.map_err(Ended::Broken),
            () = retired(route) => Err(Ended::Retired),
        };
        (result, relay.transfer())
    }
}

enum Ended {
    Broken(Break),
    Stopped,
    Retired,
}

fn stopped(phase: Phase) -> Failure {
    Failure::new(phase, Side::Local, Reason::Shutdown, "tlsward is stopping")
}

/// Resolves at a random moment of the window after the route's certificate was replaced, so that
/// applications do not all reconnect at once. Never, where connections outlive rotations.
async fn retired(route: &Route) {
    let Some(window) = route.retire_over else {
        return std::future::pending().await;
    };
    // In a box: most connections have no use for it, and each would have room for it.
    Box::pin(async {
        route.retired.cancelled().await;
        // std's hasher keys are random enough to spread ends over a window.
        let share = RandomState::new().hash_one(()) as f64 / u64::MAX as f64;
        tokio::time::sleep(window.mul_f64(share)).await;
    })
    .await;
}

fn record(
    route: &Route,
    caller: &CallerAddress,
    duration: Duration,
    transfer: Transfer,
    facts: Option<&SessionFacts>,
    failure: Option<&Failure>,
) {
    route
        .metrics
        .ended(failure.map_or(Ok(()), Err), clock::unix_seconds());
    if !route.log {
        return;
    }
    let words = facts.map(|facts| {
        (
            // "TLSv1_3" and "TLS13_AES_128_GCM_SHA256" are rustls' spellings.
            facts
                .version
                .map(|version| if version == TLSv1_3 { "1.3" } else { "1.2" }),
            facts
                .cipher
                .map(|cipher| format!("{cipher:?}").replace("TLS13_", "TLS_")),
            facts.group.map(|group| format!("{group:?}")),
        )
    });
    let tls = match (&words, facts) {
        (Some((Some(version), Some(cipher), group)), Some(facts)) => Some(TlsRecord {
            version,
            cipher,
            group: group.as_deref(),
            resumed: facts.resumed,
        }),
        _ => None,
    };
    let endpoint = facts.map(|facts| facts.endpoint);
    telemetry::connection_ended(&ConnectionRecord {
        service: route.service.as_str(),
        caller: Some(caller),
        endpoint: endpoint
            .as_ref()
            .map(|endpoint| endpoint as &dyn fmt::Display),
        duration,
        bytes_up: transfer.up,
        bytes_down: transfer.down,
        tls,
        identity: match &route.identity {
            Presented::Certificate { fingerprint, .. } => Some(fingerprint),
            Presented::Nothing => None,
        },
        outcome: failure.map_or(Ok(()), Err),
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every open connection holds this for its whole life; `bench/` shows what it adds up to.
    #[test]
    fn a_connections_future_stays_within_704_bytes() {
        fn size<F>(
            _: impl FnOnce(TcpStream, CallerAddress, Arc<Route>, Dial, CancellationToken) -> F,
        ) -> usize {
            size_of::<F>()
        }
        let size = size(run::<TcpStream>);
        assert!(size <= 704, "{size} bytes");
    }
}
