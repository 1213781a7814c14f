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

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use rustls::ClientConfig;
    use rustls::client::Resumption;

    use super::*;
    use crate::config::{TlsPolicy, TlsVersion};
    use crate::tls::test_pki::{Ca, client, handshake, policy, server, trust};

    /// A store with a clock that stands still until it is told.
    fn store() -> (Arc<Tickets>, Arc<AtomicU64>) {
        let seconds = Arc::new(AtomicU64::new(0));
        let (start, told) = (Instant::now(), Arc::clone(&seconds));
        let now = move || start + Duration::from_secs(told.load(Ordering::Relaxed));
        (Arc::new(Tickets::with_clock(now)), seconds)
    }

    /// Fills the store as a server that sends `tickets` after one handshake does.
    fn fill(store: &Arc<Tickets>, policy: &TlsPolicy, name: &str, tickets: usize) {
        let ca = Ca::new("root");
        let mut config = ClientConfig::clone(&client(policy, None, &trust(&[&ca])));
        config.resumption = Resumption::store(Arc::clone(store) as Arc<dyn ClientSessionStore>);
        let leaf = ca.server_with(|params| {
            let name = name.to_owned().try_into().unwrap();
            params.subject_alt_names = vec![rcgen::SanType::DnsName(name)];
        });
        let mut server = server(&leaf, &[]);
        server.send_tls13_tickets = tickets;
        handshake(&Arc::new(config), server, name).unwrap();
    }

    fn name(name: &str) -> ServerName<'static> {
        ServerName::try_from(name.to_owned()).unwrap()
    }

    fn count(store: &Tickets, server: &str) -> usize {
        std::iter::from_fn(|| store.take_tls13_ticket(&name(server))).count()
    }

    #[test]
    fn sixty_four_tickets_of_a_name_are_kept_and_each_is_given_once() {
        let (store, _) = store();
        fill(&store, &policy(), "one", 70);
        fill(&store, &policy(), "two", 3);
        assert_eq!(count(&store, "two"), 3);
        assert_eq!(count(&store, "one"), 64);
        assert_eq!(count(&store, "one"), 0);
    }

    #[test]
    fn the_newest_ticket_is_given_first() {
        let (store, seconds) = store();
        fill(&store, &policy(), "one", 1);
        seconds.store(3_000, Ordering::Relaxed);
        fill(&store, &policy(), "one", 1);
        // By now the first is too old and the second is not.
        seconds.store(4_000, Ordering::Relaxed);
        assert!(store.take_tls13_ticket(&name("one")).is_some());
        assert!(store.take_tls13_ticket(&name("one")).is_none());
    }

    #[test]
    fn sessions_older_than_an_hour_are_not_resumed() {
        for version in [TlsVersion::Tls12, TlsVersion::Tls13] {
            let policy = TlsPolicy {
                min_version: version,
                max_version: version,
                ..policy()
            };
            let given = |store: &Tickets| {
                store.take_tls13_ticket(&name("one")).is_some()
                    || store.tls12_session(&name("one")).is_some()
            };
            let (store, seconds) = store();
            fill(&store, &policy, "one", 2);
            seconds.store(3_600, Ordering::Relaxed);
            assert!(given(&store));
            seconds.store(3_601, Ordering::Relaxed);
            assert!(!given(&store));
        }
    }

    #[test]
    fn the_name_that_was_added_first_goes_when_there_are_too_many() {
        let (store, _) = store();
        for number in 0..=NAMES {
            store.set_kx_hint(name(&format!("host{number}")), NamedGroup::X25519);
        }
        assert_eq!(store.kx_hint(&name("host0")), None);
        assert_eq!(store.kx_hint(&name("host1")), Some(NamedGroup::X25519));
        assert_eq!(store.servers().len(), NAMES);
    }

    #[test]
    fn debug_shows_no_session() {
        let (store, _) = store();
        fill(&store, &policy(), "one", 2);
        assert_eq!(format!("{store:?}"), "Tickets { .. }");
    }
}
