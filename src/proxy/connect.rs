//! From a route to an established TLS session: look-up, TCP and handshake under one deadline.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

use rustls_pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::handshake::{LastFlight, handshake};
use super::outcome;
use super::resolve::Resolver;
use super::session::Established;
use crate::config::{Host, UpstreamAddress};
use crate::failure::{Failure, Phase, Reason, Side};
use crate::route::{Route, Upstream};
use crate::workers::Dialling;

/// Head start of an address over the next one (RFC 8305 section 5: 250 ms recommended).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// A TLS session with a verified upstream.
pub(crate) struct Connected {
    pub(crate) stream: TcpStream,
    pub(crate) session: Established,
    pub(crate) endpoint: SocketAddr,
    /// The name that was verified.
    pub(crate) server_name: ServerName<'static>,
}

/// What a connection needs until it stands.
#[derive(Debug)]
pub(crate) struct Dial {
    pub(crate) resolver: Arc<Resolver>,
    /// `connect_timeout` counts from here.
    pub(crate) accepted: Instant,
    /// Where the worker that dials counts it; to be given up then.
    pub(crate) dialling: Option<Dialling>,
}

/// How far a dial has come, readable by whoever gives it up.
#[derive(Debug)]
pub(crate) struct Progress {
    phase: AtomicU8,
    /// In line for its handshake.
    in_line: AtomicBool,
}

impl Progress {
    pub(crate) fn new() -> Self {
        Self {
            phase: AtomicU8::new(0),
            in_line: AtomicBool::new(false),
        }
    }

    fn reach(&self, phase: Phase) {
        let at = Phase::ALL.iter().position(|p| *p == phase).unwrap_or(0);
        self.phase.store(at as u8, Ordering::Relaxed);
    }

    fn stand_in_line(&self, waits: bool) {
        self.in_line.store(waits, Ordering::Relaxed);
    }

    pub(crate) fn phase(&self) -> Phase {
        match Phase::ALL.get(usize::from(self.phase.load(Ordering::Relaxed))) {
            Some(Phase::Accept) | None => Phase::Resolve,
            Some(phase) => *phase,
        }
    }
}

/// Dials the upstream of `route`, verifies it and presents the route's identity.
///
/// # Errors
/// Says in which phase it failed, on whose side and why. At `timeouts.connect` after the caller
/// was accepted it is [`Reason::Timeout`] in the phase that had been reached.
///
/// # Cancellation
/// Whatever had been opened is closed, and a place in line is given up.
pub(crate) async fn connect(
    route: &Route,
    dial: &Dial,
    progress: &Progress,
) -> Result<Connected, Failure> {
    let attempt = attempt(route, &dial.resolver, progress);
    tokio::time::timeout_at(dial.accepted + route.timeouts.connect, attempt)
        .await
        .unwrap_or_else(|_| Err(too_late(route, progress)))
}

fn too_late(route: &Route, progress: &Progress) -> Failure {
    let limit = route.timeouts.connect;
    let upstream = route.upstream.to_string();
    let phase = progress.phase();
    if progress.in_line.load(Ordering::Relaxed) {
        let places = route.handshakes.limit().map_or(0, NonZeroUsize::get);
        let detail = format!(
            "its turn did not come within connect_timeout ({limit:?}): {places} TLS handshakes \
             with {upstream} were under way before it, as many as max_handshakes allows"
        );
        return Failure::new(phase, Side::Local, Reason::Timeout, detail);
    }
    let side = if phase == Phase::Resolve {
        Side::Local
    } else {
        Side::Upstream
    };
    let detail = format!("no answer from {upstream} within connect_timeout ({limit:?})");
    Failure::new(phase, side, Reason::Timeout, detail)
}

async fn attempt(
    route: &Route,
    resolver: &Arc<Resolver>,
    progress: &Progress,
) -> Result<Connected, Failure> {
    let begun = Instant::now();
    let (mut stream, upstream, endpoint) = reach_any(route, resolver, progress).await?;
    route.metrics.connected(begun.elapsed());

    progress.reach(Phase::Handshake);
    let name = route.server_name_for(upstream);
    let _place = match route.handshakes.place_at_once() {
        Some(place) => place,
        None => {
            let _waiting = route.metrics.waiting_for_handshake();
            progress.stand_in_line(true);
            let place = route.handshakes.place().await;
            progress.stand_in_line(false);
            place
        }
    };
    let begun = Instant::now();
    let session = handshake(&mut stream, &route.tls, name.clone(), LastFlight::WithData)
        .await
        .map_err(|error| outcome::handshake_failed(error, &name, &route.identity))?;
    let resumed = session.facts().handshake_kind() == Some(rustls::HandshakeKind::Resumed);
    route.metrics.handshaken(begun.elapsed(), resumed);
    Ok(Connected {
        stream,
        session,
        endpoint,
        server_name: name,
    })
}

/// Opens a TCP connection to the first upstream that takes one. Each upstream but the last gets
/// an equal share of the time, so that one that does not answer does not keep the next from
/// being tried.
async fn reach_any<'route>(
    route: &'route Route,
    resolver: &Arc<Resolver>,
    progress: &Progress,
) -> Result<(TcpStream, &'route UpstreamAddress, SocketAddr), Failure> {
    let addresses = match &route.upstream {
        Upstream::Addresses(addresses) => addresses,
        Upstream::Endpoints(live) => {
            let detail = format!("{} has no endpoint", live.backend());
            return Err(Failure::new(
                Phase::Resolve,
                Side::Upstream,
                Reason::NoEndpoints,
                detail,
            ));
        }
    };
    let share = route.timeouts.connect / addresses.len().max(1) as u32;
    let mut failures: Option<Failure> = None;
    for (n, upstream) in addresses.iter().enumerate() {
        let reaching = reach(upstream, resolver, progress, route.keepalive);
        let result = if n + 1 == addresses.len() {
            reaching.await
        } else {
            tokio::time::timeout(share, reaching)
                .await
                .unwrap_or_else(|_| {
                    let detail = format!(
                        "{upstream} did not answer within its share of connect_timeout ({share:?})"
                    );
                    Err(Failure::new(
                        progress.phase(),
                        Side::Upstream,
                        Reason::Timeout,
                        detail,
                    ))
                })
        };
        match result {
            Ok((stream, endpoint)) => return Ok((stream, upstream, endpoint)),
            Err(mut failure) => {
                if let Some(earlier) = failures {
                    failure.why.detail = format!(
                        "{}; before that: {}",
                        failure.why.detail, earlier.why.detail
                    );
                }
                failures = Some(failure);
            }
        }
    }
    Err(failures.unwrap_or_else(|| {
        Failure::new(
            Phase::Resolve,
            Side::Local,
            Reason::Internal,
            "a route without an upstream",
        )
    }))
}

async fn reach(
    upstream: &UpstreamAddress,
    resolver: &Arc<Resolver>,
    progress: &Progress,
    keepalive: Option<Duration>,
) -> Result<(TcpStream, SocketAddr), Failure> {
    progress.reach(Phase::Resolve);
    let addresses: Arc<[IpAddr]> = match &upstream.host {
        Host::Address(address) => [*address].into(),
        Host::Name(name) => resolver
            .look_up(name.as_ref())
            .await
            .map_err(outcome::look_up_failed)?,
    };
    progress.reach(Phase::Connect);
    let addresses: Vec<SocketAddr> = alternate_families(&addresses)
        .map(|ip| SocketAddr::new(ip, upstream.port))
        .collect();
    let (stream, endpoint) = race(&addresses).await.map_err(outcome::connect_failed)?;
    // A socket that was just opened takes these; and if it did not, it would still be right.
    let _ = stream.set_nodelay(true);
    if let Some(idle) = keepalive {
        let _ = SockRef::from(&stream).set_tcp_keepalive(&keepalive_after(idle));
    }
    Ok((stream, endpoint))
}

/// Keep-alive probes after `idle`, then every third of it; three lost ones (the usual default is
/// nine) end the connection.
pub(super) fn keepalive_after(idle: Duration) -> TcpKeepalive {
    let interval = (idle / 3).max(Duration::from_secs(1));
    TcpKeepalive::new()
        .with_time(idle)
        .with_interval(interval)
        .with_retries(3)
}

/// Addresses in the resolver's order, but the families take turns (RFC 8305 section 4).
fn alternate_families(addresses: &[IpAddr]) -> impl Iterator<Item = IpAddr> {
    let first_is_v6 = addresses.first().is_some_and(IpAddr::is_ipv6);
    let (one, other): (Vec<IpAddr>, Vec<IpAddr>) = addresses
        .iter()
        .partition(|address| address.is_ipv6() == first_is_v6);
    let longer = one.len().max(other.len());
    (0..longer)
        .flat_map(move |n| [one.get(n).copied(), other.get(n).copied()])
        .flatten()
}

/// Happy Eyeballs (RFC 8305): the next address starts when the one before has failed or has had
/// its head start; the first connection wins and the others are closed.
async fn race(
    addresses: &[SocketAddr],
) -> Result<(TcpStream, SocketAddr), (SocketAddr, io::Error)> {
    let (first, rest) = match addresses {
        // The look-up never yields an empty list.
        [] => {
            let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
            return Err((nowhere, io::ErrorKind::AddrNotAvailable.into()));
        }
        [only] => return open(*only).await,
        [first, rest @ ..] => (*first, rest),
    };
    let mut waiting = rest.iter().copied();
    let mut attempts = JoinSet::new();
    attempts.spawn(open(first));
    let mut failed = None;
    loop {
        let next = async {
            if waiting.len() > 0 {
                tokio::time::sleep(ATTEMPT_DELAY).await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            biased;
            ended = attempts.join_next() => match ended {
                Some(Ok(Ok(opened))) => return Ok(opened),
                Some(Ok(Err(error))) => {
                    // The first address is the preferred one, and its failure the one to name.
                    failed.get_or_insert(error);
                    if let Some(address) = waiting.next() {
                        attempts.spawn(open(address));
                    }
                }
                Some(Err(_)) => {}
                None => {
                    return Err(failed.unwrap_or_else(|| (first, io::ErrorKind::Other.into())));
                }
            },
            () = next => {
                if let Some(address) = waiting.next() {
                    attempts.spawn(open(address));
                }
            }
        }
    }
}

async fn open(address: SocketAddr) -> Result<(TcpStream, SocketAddr), (SocketAddr, io::Error)> {
    match TcpStream::connect(address).await {
        Ok(stream) => Ok((stream, address)),
        Err(error) => Err((address, error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_take_turns_and_the_resolver_chooses_which_begins() {
        let addresses: Vec<IpAddr> = ["::1", "::2", "::3", "10.0.0.1", "10.0.0.2"]
            .map(|a| a.parse().unwrap())
            .into();
        let order: Vec<String> = alternate_families(&addresses)
            .map(|a| a.to_string())
            .collect();
        assert_eq!(order, ["::1", "10.0.0.1", "::2", "10.0.0.2", "::3"]);
        let order: Vec<IpAddr> = alternate_families(&addresses[3..]).collect();
        assert_eq!(order, addresses[3..]);
    }

    #[tokio::test]
    async fn a_refused_address_gives_way_to_the_next_at_once() {
        let closed = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let open = listener.local_addr().unwrap();
        let (_, reached) = race(&[closed, open]).await.unwrap();
        assert_eq!(reached, open);
        let (named, error) = race(&[closed, closed]).await.unwrap_err();
        assert_eq!(
            (named, error.kind()),
            (closed, io::ErrorKind::ConnectionRefused)
        );
    }
}
