//! The session store of one client configuration: of one service with one identity generation and
//! one trust generation. Never shared, so that no session outlives the certificate or the CAs
//! under which it began.
//!
//! rustls' own store keeps 8 tickets of each name; a server hands out one or two per connection,
//! so that of a burst of new connections at most 8 could resume.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustls::NamedGroup;
use rustls::client::{ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls_pki_types::ServerName;

/// Tickets kept of each name. At 64 nearly every connection resumed with 32 opened at a time;
/// at 8 a little more than half.
const TICKETS_PER_NAME: usize = 64;

/// Server names kept. A service has one per upstream host.
const NAMES: usize = 32;

/// How old a session may be. A resumed session repeats neither the checks of the server's
/// certificate nor those of the revocation lists, so this bounds how long an expired or revoked
/// certificate goes unnoticed where nothing is reloaded. RFC 8446 allows 7 days.
const MAX_AGE: Duration = Duration::from_secs(60 * 60);

/// TLS 1.3 tickets (single-use, newest first), TLS 1.2 sessions and the key exchange group that
/// each server chose. Bounded; the oldest goes first. Age is measured by the monotonic clock, so
/// that a step of the wall clock neither ages nor rejuvenates a session; the lifetime that the
/// server gave is judged by rustls.
pub(super) struct Tickets {
    clock: Box<dyn Fn() -> Instant + Send + Sync>,
    /// Oldest name first.
    servers: Mutex<VecDeque<(ServerName<'static>, Server)>>,
}

#[derive(Default)]
struct Server {
    group: Option<NamedGroup>,
    tls12: Option<Aged<Tls12ClientSessionValue>>,
    /// Oldest first.
    tls13: VecDeque<Aged<Tls13ClientSessionValue>>,
}

struct Aged<T> {
    since: Instant,
    session: T,
}

impl Tickets {
    pub(super) fn new() -> Self {
        Self::with_clock(Instant::now)
    }

    fn with_clock(clock: impl Fn() -> Instant + Send + Sync + 'static) -> Self {
        Self {
            clock: Box::new(clock),
            servers: Mutex::new(VecDeque::new()),
        }
    }

    /// A panic of another thread leaves at worst a ticket too few.
    fn servers(&self) -> MutexGuard<'_, VecDeque<(ServerName<'static>, Server)>> {
        self.servers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read<T>(
        &self,
        name: &ServerName<'_>,
        read: impl FnOnce(&mut Server) -> Option<T>,
    ) -> Option<T> {
        let mut servers = self.servers();
        let (_, server) = servers.iter_mut().find(|(known, _)| known == name)?;
        read(server)
    }

    fn write(&self, name: ServerName<'static>, write: impl FnOnce(&mut Server)) {
        let mut servers = self.servers();
        if let Some((_, server)) = servers.iter_mut().find(|(known, _)| *known == name) {
            return write(server);
        }
        if servers.len() >= NAMES {
            servers.pop_front();
        }
        let mut server = Server::default();
        write(&mut server);
        servers.push_back((name, server));
    }

    fn aged<T>(&self, session: T) -> Aged<T> {
        Aged {
            since: (self.clock)(),
            session,
        }
    }

    fn is_fresh(&self, since: Instant) -> bool {
        (self.clock)().saturating_duration_since(since) <= MAX_AGE
    }
}

impl ClientSessionStore for Tickets {
    fn set_kx_hint(&self, server_name: ServerName<'static>, group: NamedGroup) {
        self.write(server_name, |server| server.group = Some(group));
    }

    fn kx_hint(&self, server_name: &ServerName<'_>) -> Option<NamedGroup> {
        self.read(server_name, |server| server.group)
    }

    fn set_tls12_session(&self, server_name: ServerName<'static>, value: Tls12ClientSessionValue) {
        let session = self.aged(value);
        self.write(server_name, |server| server.tls12 = Some(session));
    }

    fn tls12_session(&self, server_name: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.read(server_name, |server| {
            server
                .tls12
                .take_if(|session| !self.is_fresh(session.since));
            server.tls12.as_ref().map(|aged| aged.session.clone())
        })
    }

    fn remove_tls12_session(&self, server_name: &ServerName<'static>) {
        self.read(server_name, |server| server.tls12.take());
    }

    fn insert_tls13_ticket(
        &self,
        server_name: ServerName<'static>,
        value: Tls13ClientSessionValue,
    ) {
        let ticket = self.aged(value);
        self.write(server_name, |server| {
            if server.tls13.len() >= TICKETS_PER_NAME {
                server.tls13.pop_front();
            }
            server.tls13.push_back(ticket);
        });
    }

    fn take_tls13_ticket(
        &self,
        server_name: &ServerName<'static>,
    ) -> Option<Tls13ClientSessionValue> {
        self.read(server_name, |server| {
            let newest = server.tls13.pop_back()?;
            if self.is_fresh(newest.since) {
                return Some(newest.session);
            }
            // What is older than the newest is too old as well.
            server.tls13.clear();
            None
        })
    }
}

/// Without the sessions: they hold keys.
impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tickets").finish_non_exhaustive()
    }
}
