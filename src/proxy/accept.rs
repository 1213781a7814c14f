//! Accepting: from a listening socket to a task on the worker that serves the caller.
//!
//! Several workers watch one socket ([`Acceptor`]); what they know of it in common is the
//! [`Desk`]. A caller is accepted as a bare descriptor, which is registered with the runtime that
//! serves it and with no other.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::FutureExt as _;
use rustix::net::{SocketAddrAny, SocketFlags, acceptfrom_with};
use socket2::SockRef;
use tlsward_sys::ReadWatch;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::caller::Caller;
use super::connect::{Dial, keepalive_after};
use super::connection::{self, CallerAddress};
use super::outcome::out_of_descriptors;
use super::resolve::Resolver;
use crate::clock;
use crate::config::Callers;
use crate::failure::{Failure, Phase, Reason, Side};
use crate::route::Route;
use crate::shutdown::Shutdown;
use crate::workers::{Crew, Dialling, Dice, Seat, Worker};

/// Connections that the kernel queues for us, if `net.core.somaxconn` allows as many.
pub(super) const BACKLOG: i32 = 4096;

/// First and longest pause after a failed accept (as ghostunnel: doubling, back to the first
/// after a success).
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Callers that are taken in a row before the worker's other tasks have their turn (HAProxy's
/// `tune.maxaccept`).
const IN_A_ROW: u8 = 4;

/// What TCP and unix listeners do not have in common.
pub(super) trait Kind: Caller + Sized + 'static {
    /// Registers an accepted socket with the current runtime.
    fn adopt(socket: OwnedFd) -> io::Result<Self>;

    /// Who called; `peer` is what accept(2) said.
    fn caller(&self, peer: Option<SocketAddrAny>) -> io::Result<CallerAddress>;

    /// Changes keep-alive probes from what the listener gave.
    fn set_keepalive(&self, idle: Option<Duration>) -> io::Result<()>;
}

impl Kind for TcpStream {
    fn adopt(socket: OwnedFd) -> io::Result<Self> {
        Self::from_std(socket.into())
    }

    fn caller(&self, peer: Option<SocketAddrAny>) -> io::Result<CallerAddress> {
        match peer.map(SocketAddr::try_from) {
            Some(Ok(address)) => Ok(CallerAddress::Tcp(address)),
            Some(Err(_)) | None => self.peer_addr().map(CallerAddress::Tcp),
        }
    }

    fn set_keepalive(&self, idle: Option<Duration>) -> io::Result<()> {
        let socket = SockRef::from(self);
        match idle {
            Some(idle) => socket.set_tcp_keepalive(&keepalive_after(idle)),
            None => socket.set_keepalive(false),
        }
    }
}

impl Kind for UnixStream {
    fn adopt(socket: OwnedFd) -> io::Result<Self> {
        Self::from_std(socket.into())
    }

    fn caller(&self, _: Option<SocketAddrAny>) -> io::Result<CallerAddress> {
        let peer = self.peer_cred()?;
        Ok(CallerAddress::Unix {
            uid: peer.uid(),
            gid: peer.gid(),
            pid: peer.pid(),
        })
    }

    /// A unix socket needs none: its kernel knows both ends.
    fn set_keepalive(&self, _: Option<Duration>) -> io::Result<()> {
        Ok(())
    }
}

/// One worker that accepts at a listener.
pub(super) struct Acceptor {
    worker: Arc<Worker>,
    desk: Arc<Desk>,
    routes: watch::Receiver<Option<Arc<Route>>>,
    stop: CancellationToken,
    dice: Dice,
}

impl Acceptor {
    pub(super) fn new(
        worker: &Arc<Worker>,
        desk: &Arc<Desk>,
        routes: watch::Receiver<Option<Arc<Route>>>,
        stop: CancellationToken,
    ) -> Self {
        Self {
            worker: Arc::clone(worker),
            desk: Arc::clone(desk),
            routes,
            stop,
            dice: Dice::new(),
        }
    }

    /// Accepts until the end, on its own worker; then takes whoever the kernel has let in, unless the
    /// next process will.
    ///
    /// # Errors
    /// If the runtime cannot watch the socket.
    pub(super) async fn run<K: Kind>(mut self, listener: Arc<OwnedFd>) -> io::Result<()> {
        let watch = ReadWatch::new(Arc::clone(&listener))?;
        self.accept_until_the_end::<K>(&watch).await?;
        drop(watch);
        if self.desk.outlives && self.desk.shutdown.drain().is_cancelled() {
            return Ok(());
        }
        // Closing the socket would reset callers that the kernel has let in already. No more than
        // the backlog can be there, and none can be waited for. Where they would be the end of all
        // connections, for want of memory, they are reset.
        for n in 1..=BACKLOG {
            if self.desk.crew.gate().is_closed() {
                break;
            }
            match accept(listener.as_fd()) {
                Ok(arrival) => self.take::<K>(arrival, self.desk.slots.take()),
                Err(error) if is_of_one_caller(&error) => {}
                Err(_) => break,
            }
            if n % i32::from(IN_A_ROW) == 0 {
                tokio::task::yield_now().await;
            }
        }
        Ok(())
    }

    async fn accept_until_the_end<K: Kind>(&mut self, watch: &ReadWatch) -> io::Result<()> {
        let stop = self.stop.clone();
        let mut pause = FIRST_PAUSE;
        let mut turn = Turn::new();
        'next: loop {
            // The slot first: a caller beyond the limit waits in the kernel's backlog.
            let slot = tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                slot = self.desk.room(&mut self.routes) => slot,
            };
            let accepted = loop {
                let mut ready = tokio::select! {
                    biased;
                    () = stop.cancelled() => return Ok(()),
                    // The limit may be lower now: the slot is given back and asked for again.
                    () = changed(&mut self.routes) => continue 'next,
                    ready = watch.readable() => ready?,
                };
                // Memory may have run short while we waited.
                if self.desk.crew.gate().is_closed() {
                    continue 'next;
                }
                match ready.try_io(|listener| accept(listener.get_ref().as_fd())) {
                    Ok(accepted) => break accepted,
                    // Nobody was there, or another worker was faster.
                    Err(_) => turn = Turn::new(),
                }
            };
            match accepted {
                Ok(arrival) => {
                    pause = FIRST_PAUSE;
                    self.take::<K>(arrival, slot);
                    if turn.is_over() {
                        tokio::task::yield_now().await;
                    }
                }
                Err(error) if is_of_one_caller(&error) => {}
                Err(error) => {
                    let pausing = self.desk.pausing(&error, pause);
                    tokio::select! {
                        () = stop.cancelled() => return Ok(()),
                        () = tokio::time::sleep(pause) => {}
                    }
                    drop(pausing);
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    /// Passes a caller to the worker that is to serve it: this one, as a rule.
    fn take<K: Kind>(&mut self, arrival: Arrival, slot: Slot) {
        let (seat, dialling) = self.desk.crew.seat(&self.worker, &mut self.dice);
        let stays = Arc::ptr_eq(seat.worker(), &self.worker);
        if stays {
            self.desk.receive::<K>(arrival, slot, seat, dialling);
            return;
        }
        let there = Arc::clone(seat.worker());
        let desk = Arc::clone(&self.desk);
        // A task of the drain too, so that it ends after the connection's own has begun.
        let tasks = self.desk.shutdown.connections();
        tasks.spawn_on(
            async move { desk.receive::<K>(arrival, slot, seat, dialling) },
            there.runtime(),
        );
    }
}

/// How many callers are taken in a row. The first turn after a wake is for one: most wakes are for
/// one caller, and to ask for a second at once would be a system call in vain as a rule. By the
/// next turn more have come if there is a crowd, and then they are taken in numbers.
struct Turn {
    taken: u8,
    allowed: u8,
}

impl Turn {
    fn new() -> Self {
        Self {
            taken: 0,
            allowed: 1,
        }
    }

    /// One more was taken: is it another task's turn?
    fn is_over(&mut self) -> bool {
        self.taken += 1;
        let over = self.taken == self.allowed;
        if over {
            (self.taken, self.allowed) = (0, IN_A_ROW);
        }
        over
    }
}

/// A caller that was accepted and that nobody serves yet: reset if nobody ever does.
struct Arrival {
    socket: Option<OwnedFd>,
    peer: Option<SocketAddrAny>,
    at: Instant,
}

impl Drop for Arrival {
    fn drop(&mut self) {
        if let Some(socket) = &self.socket {
            // Fails for unix sockets, which know no reset.
            let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
        }
    }
}

/// One caller, ready for any runtime.
fn accept(listener: BorrowedFd<'_>) -> io::Result<Arrival> {
    let (socket, peer) = acceptfrom_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC)?;
    Ok(Arrival {
        socket: Some(socket),
        peer,
        at: Instant::now(),
    })
}

/// Where callers of one listener are received.
pub(super) struct Desk {
    routes: watch::Receiver<Option<Arc<Route>>>,
    resolver: Arc<Resolver>,
    crew: Arc<Crew>,
    shutdown: Shutdown,
    slots: Arc<Slots>,
    /// What accepted sockets inherit from the listener.
    keepalive: Option<Duration>,
    /// The listener is there for the next process too.
    outlives: bool,
    /// One of the acceptors pauses after a failure, and has said so.
    pausing: AtomicBool,
}

impl Desk {
    pub(super) fn new(
        routes: watch::Receiver<Option<Arc<Route>>>,
        resolver: Arc<Resolver>,
        crew: Arc<Crew>,
        shutdown: Shutdown,
        keepalive: Option<Duration>,
        outlives: bool,
    ) -> Self {
        Self {
            routes,
            resolver,
            crew,
            shutdown,
            slots: Arc::default(),
            keepalive,
            outlives,
            pausing: AtomicBool::new(false),
        }
    }

    /// Waits until there is room for one more caller, in the process and at this listener.
    async fn room(&self, routes: &mut watch::Receiver<Option<Arc<Route>>>) -> Slot {
        self.crew.gate().pass().await;
        self.slots.wait(routes).await
    }

    /// Begins to serve a caller, on the current worker.
    fn receive<K: Kind>(&self, mut arrival: Arrival, slot: Slot, seat: Seat, dialling: Dialling) {
        let Some(route) = self.routes.borrow().clone() else {
            return;
        };
        let adopted = arrival.socket.take().map(|socket| {
            let stream = K::adopt(socket)?;
            let address = stream.caller(arrival.peer.take())?;
            io::Result::Ok((stream, address))
        });
        let (stream, address) = match adopted {
            Some(Ok(adopted)) => adopted,
            Some(Err(error)) => {
                self.accept_failed(&error, "cannot serve a caller that was accepted");
                return;
            }
            None => return,
        };
        let open = route.metrics.opened();
        if !admits(&route.callers, &address) {
            stream.reset_on_close();
            drop(stream);
            let detail = format!("{address} is not in allow_callers");
            let failure = Failure::new(
                Phase::Accept,
                Side::Caller,
                Reason::CallerNotAllowed,
                detail,
            );
            route.metrics.ended(Err(&failure), clock::unix_seconds());
            warn!(service = %route.service, caller = %address, phase = "accept", side = "caller",
                reason = %failure.why.reason, detail = failure.why.detail,
                hint = failure.why.hint, "caller refused");
            return;
        }
        if route.keepalive != self.keepalive {
            // A socket that was just accepted takes it; without it, it would still be right.
            let _ = stream.set_keepalive(route.keepalive);
        }
        let dial = Dial {
            resolver: Arc::clone(&self.resolver),
            accepted: arrival.at,
            dialling: Some(dialling),
        };
        let abort = self.shutdown.abort().clone();
        let metrics = Arc::clone(&route.metrics);
        let serving = connection::run(stream, address, route, dial, abort);
        let serving = AssertUnwindSafe(serving).catch_unwind().map(move |ended| {
            // One connection's bug ends one connection, and is counted. The panic hook has said
            // where it was.
            if ended.is_err() {
                let bug = Failure::new(Phase::Relay, Side::Local, Reason::Internal, "panic");
                metrics.ended(Err(&bug), clock::unix_seconds());
            }
            drop((seat, slot, open));
        });
        // In a box, and joined without async blocks, so that it is held once: a future that is moved
        // into another has room there twice, and a task is made in steps of 128 bytes.
        self.shutdown.connections().spawn(Box::pin(serving));
    }

    /// Says that accepting pauses, once for all acceptors that meet the same.
    fn pausing(&self, error: &io::Error, pause: Duration) -> Option<Pausing<'_>> {
        if self.pausing.swap(true, Ordering::Relaxed) {
            return None;
        }
        let what = format!(
            "cannot accept; callers wait in the backlog for {} ms",
            pause.as_millis()
        );
        self.accept_failed(error, &what);
        Some(Pausing(&self.pausing))
    }

    fn accept_failed(&self, error: &io::Error, what: &str) {
        let reason = if out_of_descriptors(error) {
            Reason::TooManyFiles
        } else {
            Reason::LocalResource
        };
        let failure = Failure::new(Phase::Accept, Side::Local, reason, error.to_string());
        let route = self.routes.borrow();
        if let Some(route) = &*route {
            route.metrics.ended(Err(&failure), clock::unix_seconds());
        }
        let service = route.as_ref().map(|route| route.service.as_str());
        warn!(service, phase = "accept", side = "local", reason = %reason,
            detail = failure.why.detail, hint = failure.why.hint, "{what}");
    }
}

struct Pausing<'desk>(&'desk AtomicBool);

impl Drop for Pausing<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// Resolves when there is a route that was not looked at yet, or none any more.
async fn changed(routes: &mut watch::Receiver<Option<Arc<Route>>>) {
    if routes.changed().await.is_err() {
        // Control is gone; the process's drain ends this listener.
        std::future::pending::<()>().await;
    }
}

/// Errors that accept(2) reports of the one connection that it took, and that say nothing of the
/// next.
fn is_of_one_caller(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(
        errno,
        Some(
            Errno::CONNABORTED
                | Errno::CONNRESET
                | Errno::INTR
                | Errno::PROTO
                | Errno::NETDOWN
                | Errno::HOSTDOWN
                | Errno::HOSTUNREACH
                | Errno::NETUNREACH
        )
    )
}

fn admits(callers: &Callers, address: &CallerAddress) -> bool {
    match (callers, address) {
        (Callers::Anyone, _) => true,
        (
            Callers::Networks(networks) | Callers::Either { networks, .. },
            CallerAddress::Tcp(address),
        ) => {
            let ip = address.ip().to_canonical();
            networks.iter().any(|network| network.contains(&ip))
        }
        (
            Callers::Peers { uids, gids } | Callers::Either { uids, gids, .. },
            CallerAddress::Unix { uid, gid, .. },
        ) => uids.contains(uid) || gids.contains(gid),
        // The configuration gives each kind of listener its kind of list.
        (Callers::Networks(_), CallerAddress::Unix { .. })
        | (Callers::Peers { .. }, CallerAddress::Tcp(_)) => false,
    }
}

/// Counts open connections of a listener, over all workers, against its limit. A worker that waits
/// for a caller holds the caller's slot already.
#[derive(Debug, Default)]
struct Slots {
    open: AtomicUsize,
    freed: Notify,
}

impl Slots {
    /// Waits until the current route's `max_connections` leaves room for one more.
    async fn wait(self: &Arc<Self>, routes: &mut watch::Receiver<Option<Arc<Route>>>) -> Slot {
        loop {
            let max = routes
                .borrow_and_update()
                .as_ref()
                .and_then(|route| route.max_connections)
                .unwrap_or(usize::MAX);
            if let Some(slot) = self.take_below(max) {
                return slot;
            }
            let mut freed = pin!(self.freed.notified());
            freed.as_mut().enable();
            // What was freed before we stood in line.
            if let Some(slot) = self.take_below(max) {
                return slot;
            }
            tokio::select! {
                () = freed => {}
                () = changed(routes) => {}
            }
        }
    }

    /// In one step, since other workers do the same.
    fn take_below(self: &Arc<Self>, max: usize) -> Option<Slot> {
        let one_more = |open: usize| (open < max).then(|| open + 1);
        self.open
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more)
            .ok()
            .map(|_| Slot(Arc::clone(self)))
    }

    /// Whatever the limit.
    fn take(self: &Arc<Self>) -> Slot {
        self.open.fetch_add(1, Ordering::Relaxed);
        Slot(Arc::clone(self))
    }
}

/// One open connection, or the place for it; makes room when dropped.
#[derive(Debug)]
struct Slot(Arc<Slots>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
        self.0.freed.notify_one();
    }
}

#[cfg(test)]
mod tests;
