//! From a route to an established TLS session: look-up, TCP and handshake at one endpoint, and
//! where that fails at the next, all under one deadline.
//!
//! Another endpoint is tried only while nothing of the caller's can have been sent: its data go
//! out with our last flight at the earliest, when this is over. And only where an endpoint did not
//! answer, broke off or took too long. What it said (an alert) and what we found (a certificate
//! that does not verify) is a verdict, and stands: docs/decisions/0019-endpoints.md.

use std::fmt;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::Poll;
use std::time::Duration;

use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use super::handshake::{HandshakeError, LastFlight, handshake};
use super::outcome;
use super::resolve::Resolver;
use super::session::Established;
use crate::config::UpstreamAddress;
use crate::failure::{Failure, Phase, Reason, Side};
use crate::route::{Endpoints, Held, Pick, Route, Tried, Upstream};
use crate::workers::Dialling;

mod tcp;

pub(super) use tcp::keepalive_after;

/// Endpoints of a Kubernetes Service that one connection tries, at most. Where five in a row fail,
/// so will most of the others, and each has had its connections.
const MOST_ENDPOINTS: usize = 5;

/// A TLS session with a verified upstream.
pub(crate) struct Connected {
    pub(crate) stream: TcpStream,
    pub(crate) session: Established,
    pub(crate) endpoint: SocketAddr,
    /// The name that was verified.
    pub(crate) server_name: ServerName<'static>,
    /// Counts the connection at its endpoint, if that is one of a live set; for as long as it is
    /// open.
    pub(crate) held: Option<Held>,
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
pub(crate) struct Progress(AtomicU8);

impl Progress {
    pub(crate) fn new() -> Self {
        Self(AtomicU8::new(0))
    }

    fn reach(&self, phase: Phase) {
        let at = Phase::ALL.iter().position(|p| *p == phase).unwrap_or(0);
        self.0.store(at as u8, Ordering::Relaxed);
    }

    pub(crate) fn phase(&self) -> Phase {
        match Phase::ALL.get(usize::from(self.0.load(Ordering::Relaxed))) {
            Some(Phase::Accept) | None => Phase::Resolve,
            Some(phase) => *phase,
        }
    }
}

/// Dials the upstream of `route`, verifies it and presents the route's identity.
///
/// Addresses are tried in their order, endpoints as [`Endpoints::pick`] has it, each once. Where a
/// Service has none, this waits for the first.
///
/// # Errors
/// Says in which phase it failed, on whose side and why: the last that was tried, and in its detail
/// those before it. At `timeouts.connect` after the caller was accepted it is [`Reason::Timeout`]
/// in the phase that had been reached, or [`Reason::NoEndpoints`].
///
/// # Cancellation
/// Whatever had been opened is closed, and a place in line is given up.
pub(crate) async fn connect(
    route: &Route,
    dial: &Dial,
    progress: &Progress,
) -> Result<Connected, Failure> {
    let deadline = dial.accepted + route.timeouts.connect;
    let timer = pin!(tokio::time::sleep_until(deadline));
    let dialler = Dialler {
        route,
        resolver: &dial.resolver,
        progress,
        clock: Clock { deadline, timer },
        begun: Instant::now(),
        failed: Vec::new(),
    };
    match &route.upstream {
        Upstream::Addresses(addresses) => dialler.in_order(addresses).await,
        Upstream::Endpoints(live) => dialler.spread(live).await,
    }
}

/// A dial on its way.
struct Dialler<'a> {
    route: &'a Route,
    resolver: &'a Arc<Resolver>,
    progress: &'a Progress,
    clock: Clock<'a>,
    /// What is told of TCP counts from here.
    begun: Instant,
    /// Why each that was tried so far is not it.
    failed: Vec<Failure>,
}

/// An attempt that came to nothing.
struct Broken {
    failure: Failure,
    /// Another may be tried: this was no verdict, and there is time.
    go_on: bool,
    /// It says something of the endpoint: it does not lie with this machine, and there was time to
    /// answer.
    of_endpoint: bool,
}

impl Dialler<'_> {
    async fn in_order(mut self, addresses: &[UpstreamAddress]) -> Result<Connected, Failure> {
        for (n, upstream) in addresses.iter().enumerate() {
            let name = self.route.server_name_for(upstream);
            let others = addresses.len() - 1 - n;
            match self.attempt(Target::Address(upstream), name, others).await {
                Ok(connected) => return Ok(connected),
                Err(broken) => self.note(broken)?,
            }
        }
        Err(self.nothing_left())
    }

    async fn spread(mut self, live: &Endpoints) -> Result<Connected, Failure> {
        let name = self
            .route
            .server_name
            .as_ref()
            .or_else(|| live.server_name());
        let Some(name) = name else {
            let detail = format!("{} makes no name to verify", live.backend());
            return Err(local(Phase::Resolve, Reason::Internal, detail));
        };
        let mut tried = Tried::default();
        while tried.len() < MOST_ENDPOINTS {
            self.progress.reach(Phase::Resolve);
            let (held, others) = match live.pick(&tried, Instant::now()) {
                Pick::Endpoint { held, others } => (held, others),
                Pick::Empty => {
                    self.first_of(live).await?;
                    continue;
                }
                Pick::Exhausted => break,
            };
            let others = others.min(MOST_ENDPOINTS - 1 - tried.len());
            match self
                .attempt(Target::Endpoint(&held), name.clone(), others)
                .await
            {
                Ok(connected) => {
                    held.worked();
                    return Ok(Connected {
                        held: Some(held),
                        ..connected
                    });
                }
                Err(broken) => {
                    if broken.of_endpoint {
                        held.failed(Instant::now());
                    }
                    tried.add(held);
                    self.note(broken)?;
                }
            }
        }
        Err(self.nothing_left())
    }

    /// Waits for a Service's first endpoint.
    async fn first_of(&mut self, live: &Endpoints) -> Result<(), Failure> {
        let appear = pin!(live.appear());
        let deadline = self.clock.deadline;
        if self.clock.until(deadline, appear).await.is_some() {
            return Ok(());
        }
        let detail = format!(
            "{} had no endpoint within connect_timeout ({:?})",
            live.backend(),
            self.route.timeouts.connect
        );
        let (phase, side) = (Phase::Resolve, Side::Upstream);
        let failure = Failure::new(phase, side, Reason::NoEndpoints, detail);
        Err(self.with_those_before(failure))
    }

    /// TCP and the handshake with one of several; `others` could be tried after it.
    async fn attempt(
        &mut self,
        to: Target<'_>,
        name: ServerName<'static>,
        others: usize,
    ) -> Result<Connected, Broken> {
        let (route, resolver, progress) = (self.route, self.resolver, self.progress);
        if let Some(before) = self.failed.last() {
            route.metrics.moved_on(before.why.reason);
        }
        // A kernel answers at once or not at all, so that each has the same share of the time.
        let share = self.clock.share(others + 1);
        let begun = Instant::now();
        let opening = pin!(open(to, resolver, progress, route.keepalive));
        let (mut stream, endpoint) = match self.clock.until(share, opening).await {
            Some(Ok(opened)) => opened,
            Some(Err(failure)) => return Err(Broken::new(failure, true)),
            None => return Err(self.too_late(to, begun, share)),
        };
        route.metrics.connected(self.begun.elapsed());

        progress.reach(Phase::Handshake);
        let _place = match route.handshakes.place_at_once() {
            Some(place) => place,
            None => {
                let _waiting = route.metrics.waiting_for_handshake();
                let place = pin!(route.handshakes.place());
                let deadline = self.clock.deadline;
                match self.clock.until(deadline, place).await {
                    Some(place) => place,
                    None => return Err(Broken::new(turn_did_not_come(route), false)),
                }
            }
        };
        // A server under load may need long. Were each given up after its share, to begin anew at
        // the next, they would all have the more to do, and none would be done.
        let share = self.clock.share(if others > 0 { 2 } else { 1 });
        let begun = Instant::now();
        let shaken = {
            let of_endpoint;
            let tls = match to {
                Target::Address(_) => &*route.tls,
                Target::Endpoint(held) => {
                    of_endpoint = route.tls.towards(held.sessions());
                    &of_endpoint
                }
            };
            let shaking = handshake(&mut stream, tls, name.clone(), LastFlight::WithData);
            self.clock.until(share, pin!(shaking)).await
        };
        let session = match shaken {
            Some(Ok(session)) => session,
            Some(Err(error)) => {
                let go_on = broke_off(&error);
                let mut failure = outcome::handshake_failed(error, &name, &route.identity);
                if to.is_one_of_several(others) || !self.failed.is_empty() {
                    failure.why.detail = format!("{endpoint}: {}", failure.why.detail);
                }
                self.begun = Instant::now();
                return Err(Broken::new(failure, go_on));
            }
            None => {
                self.begun = Instant::now();
                return Err(self.too_late(to, begun, share));
            }
        };
        let resumed = session.facts().handshake_kind() == Some(rustls::HandshakeKind::Resumed);
        route.metrics.handshaken(begun.elapsed(), resumed);
        Ok(Connected {
            stream,
            session,
            endpoint,
            server_name: name,
            held: None,
        })
    }

    /// Keeps an attempt's failure, if another attempt may follow.
    fn note(&mut self, broken: Broken) -> Result<(), Failure> {
        if !broken.go_on {
            return Err(self.with_those_before(broken.failure));
        }
        self.failed.push(broken.failure);
        Ok(())
    }

    fn nothing_left(mut self) -> Failure {
        match self.failed.pop() {
            Some(last) => self.with_those_before(last),
            None => {
                let detail = "a route without an upstream";
                local(Phase::Resolve, Reason::Internal, detail.to_owned())
            }
        }
    }

    fn with_those_before(&self, mut failure: Failure) -> Failure {
        for (n, earlier) in self.failed.iter().rev().enumerate() {
            let joint = if n == 0 { "; before that: " } else { ", " };
            failure.why.detail += joint;
            failure.why.detail += &earlier.why.detail;
        }
        failure
    }

    /// A step that began then did not come to its end by `end`: its share, or the deadline.
    fn too_late(&self, to: Target<'_>, begun: Instant, end: Instant) -> Broken {
        let phase = self.progress.phase();
        let limit = self.route.timeouts.connect;
        let in_time = end < self.clock.deadline;
        let share = if in_time { "its share of " } else { "" };
        let detail = format!("no answer from {to} within {share}connect_timeout ({limit:?})");
        let side = match phase {
            Phase::Resolve => Side::Local,
            _ => Side::Upstream,
        };
        let broken = Broken::new(Failure::new(phase, side, Reason::Timeout, detail), in_time);
        Broken {
            of_endpoint: broken.of_endpoint && begun.elapsed() >= limit / 10,
            ..broken
        }
    }
}

impl Broken {
    fn new(failure: Failure, go_on: bool) -> Self {
        Self {
            of_endpoint: failure.side == Side::Upstream,
            failure,
            go_on,
        }
    }
}

/// The connection ended without a word on why, before anything of the caller's could be sent.
fn broke_off(error: &HandshakeError) -> bool {
    match error {
        HandshakeError::Io(_) | HandshakeError::Ended => true,
        HandshakeError::NotTls(_) | HandshakeError::NoAlpn | HandshakeError::Tls { .. } => false,
    }
}

fn local(phase: Phase, reason: Reason, detail: String) -> Failure {
    Failure::new(phase, Side::Local, reason, detail)
}

fn turn_did_not_come(route: &Route) -> Failure {
    let limit = route.timeouts.connect;
    let places = route.handshakes.limit().map_or(0, NonZeroUsize::get);
    let detail = format!(
        "its turn did not come within connect_timeout ({limit:?}): {places} TLS handshakes \
         with {} were under way before it, as many as max_handshakes allows",
        route.upstream
    );
    local(Phase::Handshake, Reason::Timeout, detail)
}

/// Where an attempt goes.
#[derive(Clone, Copy)]
enum Target<'a> {
    Address(&'a UpstreamAddress),
    Endpoint(&'a Held),
}

impl Target<'_> {
    fn is_one_of_several(self, others: usize) -> bool {
        matches!(self, Self::Endpoint(_)) || others > 0
    }
}

impl fmt::Display for Target<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(upstream) => upstream.fmt(f),
            Self::Endpoint(held) => {
                for (n, address) in held.addresses().iter().enumerate() {
                    let joint = if n == 0 { "" } else { " or " };
                    write!(f, "{joint}{address}")?;
                }
                Ok(())
            }
        }
    }
}

async fn open(
    to: Target<'_>,
    resolver: &Arc<Resolver>,
    progress: &Progress,
    keepalive: Option<Duration>,
) -> Result<(TcpStream, SocketAddr), Failure> {
    let looked_up;
    let addresses = match to {
        Target::Address(upstream) => {
            progress.reach(Phase::Resolve);
            looked_up = tcp::addresses(upstream, resolver).await?;
            &looked_up[..]
        }
        Target::Endpoint(held) => held.addresses(),
    };
    progress.reach(Phase::Connect);
    tcp::open_any(addresses, keepalive).await
}

/// Until when a dial may go on: one timer, however many steps it takes.
struct Clock<'a> {
    deadline: Instant,
    timer: Pin<&'a mut Sleep>,
}

impl Clock<'_> {
    /// The end of one of so many equal parts of the time that is left.
    fn share(&self, parts: usize) -> Instant {
        if parts <= 1 {
            return self.deadline;
        }
        let now = Instant::now();
        let left = self.deadline.saturating_duration_since(now);
        now + left / u32::try_from(parts).unwrap_or(u32::MAX)
    }

    /// What `work` yields, or `None` if that is not there at `end`.
    async fn until<F: Future>(&mut self, end: Instant, mut work: Pin<&mut F>) -> Option<F::Output> {
        if self.timer.deadline() != end {
            self.timer.as_mut().reset(end);
        }
        poll_fn(|cx| match work.as_mut().poll(cx) {
            Poll::Ready(done) => Poll::Ready(Some(done)),
            Poll::Pending => self.timer.as_mut().poll(cx).map(|()| None),
        })
        .await
    }
}

#[cfg(test)]
mod tests;
