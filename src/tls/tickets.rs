//! The session store of one client configuration: of one service with one identity generation and
//! one trust generation. Never shared, so that no session outlives the certificate or the CAs
//! under which it began.
//!
//! rustls does not say from which connection a session comes, and one that was resumed gets new
//! tickets in turn: were their age counted from their arrival, a server that is never idle for
//! [`MAX_AGE`] would be verified once and never again. So whoever lets rustls work for a connection
//! does so within the connection's [`Provenance`], which the store finds on its thread. Outside of
//! one it neither gives nor takes: forgetting it costs a full handshake, and nothing else.
//!
//! rustls' own store keeps 8 tickets of each name; a server hands out one or two per connection,
//! so that of a burst of new connections at most 8 could resume.
//!
//! A TLS 1.3 ticket is used once, as RFC 8446 appendix C.4 asks (and rustls has no second copy of
//! one). Nearly every connection resumes all the same, from a server that gives a single ticket
//! too: each resumed connection takes one and brings at least one, and each that found none brings
//! one to the stock, which so grows to the number of connections that are opened at a time.

use std::cell::Cell;
use std::collections::VecDeque;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustls::NamedGroup;
use rustls::client::{ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls_pki_types::ServerName;

use super::verifier;

/// Tickets kept of each name. At 64 nearly every connection resumed with 32 opened at a time;
/// at 8 a little more than half.
const TICKETS_PER_NAME: usize = 64;

/// Server names kept. A service has one per upstream host.
const NAMES: usize = 32;

/// For how long after the server's chain was verified its sessions, and those that follow from
/// them, are resumed. A resumed session repeats neither the checks of the server's certificate nor
/// those of the revocation lists, so this bounds how long an expired or revoked certificate goes
/// unnoticed where nothing is reloaded. RFC 8446 allows 7 days.
const VERIFIED_WITHIN: Duration = Duration::from_secs(60 * 60);

/// The same counted from the full handshake, which may have had its verdict from memory: it is
/// taken as the oldest that it can be.
const MAX_AGE: Duration = VERIFIED_WITHIN.saturating_sub(verifier::TTL);

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

#[derive(Clone)]
struct Aged<T> {
    /// The connection whose handshake was a full one began then.
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

    /// What is still to be given now. Looks at the clock once, however many tickets there are.
    fn fresh(&self) -> impl Fn(Instant) -> bool + use<> {
        let now = (self.clock)();
        move |since| now.saturating_duration_since(since) <= MAX_AGE
    }
}

/// Since when the server at the other end of a connection is verified: what its sessions are aged
/// by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Provenance {
    began: Instant,
    /// When the full handshake was that the session comes from that was given. Whether the server
    /// took the session is not known here; if it did not, its new sessions end too early, not too late.
    given: Option<Instant>,
}

thread_local! {
    static AT_WORK: Cell<Option<Provenance>> = const { Cell::new(None) };
}

impl Provenance {
    /// Of a connection that begins now.
    pub(super) fn now(tickets: Option<&Tickets>) -> Self {
        Self {
            began: tickets.map_or_else(Instant::now, |tickets| (tickets.clock)()),
            given: None,
        }
    }

    /// Does what may store or ask for the connection's sessions.
    pub(crate) fn within<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let before = AT_WORK.replace(Some(*self));
        let done = work();
        if let Some(after) = AT_WORK.replace(before) {
            *self = after;
        }
        done
    }
}

impl Tickets {
    fn give<T>(aged: Aged<T>) -> Option<T> {
        let mut at_work = AT_WORK.get()?;
        at_work.given.get_or_insert(aged.since);
        AT_WORK.set(Some(at_work));
        Some(aged.session)
    }

    fn aged<T>(session: T) -> Option<Aged<T>> {
        let Provenance { began, given } = AT_WORK.get()?;
        let since = given.unwrap_or(began);
        Some(Aged { since, session })
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
        if let Some(session) = Self::aged(value) {
            self.write(server_name, |server| server.tls12 = Some(session));
        }
    }

    fn tls12_session(&self, server_name: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        let fresh = self.fresh();
        let session = self.read(server_name, |server| {
            server.tls12.take_if(|session| !fresh(session.since));
            server.tls12.clone()
        })?;
        Self::give(session)
    }

    fn remove_tls12_session(&self, server_name: &ServerName<'static>) {
        self.read(server_name, |server| server.tls12.take());
    }

    fn insert_tls13_ticket(
        &self,
        server_name: ServerName<'static>,
        value: Tls13ClientSessionValue,
    ) {
        let Some(ticket) = Self::aged(value) else {
            return;
        };
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
        // Nobody to give it to: it would be lost.
        AT_WORK.get()?;
        let fresh = self.fresh();
        let ticket = self.read(server_name, |server| {
            // Not in order of `since`: a resumed connection adds old ones.
            server.tls13.retain(|ticket| fresh(ticket.since));
            server.tls13.pop_back()
        })?;
        Self::give(ticket)
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

    use rustls::HandshakeKind;

    use super::*;
    use crate::config::{TlsPolicy, TlsVersion};
    use crate::tls::test_pki::{
        Ca, NOW, at, client, handshake, handshake_with, policy, server, trust,
    };

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
        let client = client(policy, None, &trust(&[&ca])).with_tickets(Some(Arc::clone(store)));
        let leaf = ca.server_with(|params| {
            let name = name.to_owned().try_into().unwrap();
            params.subject_alt_names = vec![rcgen::SanType::DnsName(name)];
        });
        let mut server = server(&leaf, &[]);
        server.send_tls13_tickets = tickets;
        handshake(&client, server, name).unwrap();
    }

    fn name(name: &str) -> ServerName<'static> {
        ServerName::try_from(name.to_owned()).unwrap()
    }

    /// The store as a connection that begins now sees it.
    struct Connection {
        store: Arc<Tickets>,
        provenance: Provenance,
    }

    fn new_connection(store: &Arc<Tickets>) -> Connection {
        Connection {
            store: Arc::clone(store),
            provenance: Provenance::now(Some(store)),
        }
    }

    impl Connection {
        fn take(&mut self, server: &str) -> Option<Tls13ClientSessionValue> {
            let take = || self.store.take_tls13_ticket(&name(server));
            self.provenance.within(take)
        }

        fn insert(&mut self, server: &str, ticket: Tls13ClientSessionValue) {
            let insert = || self.store.insert_tls13_ticket(name(server), ticket);
            self.provenance.within(insert);
        }
    }

    fn count(store: &Arc<Tickets>, server: &str) -> usize {
        let mut connection = new_connection(store);
        std::iter::from_fn(|| connection.take(server)).count()
    }

    #[test]
    fn outside_of_a_connection_tickets_are_neither_given_nor_taken() {
        let (store, _) = store();
        fill(&store, &policy(), "one", 1);
        assert!(store.take_tls13_ticket(&name("one")).is_none());
        let ticket = new_connection(&store).take("one").unwrap();
        store.insert_tls13_ticket(name("one"), ticket);
        assert_eq!(count(&store, "one"), 0);
    }

    #[test]
    fn connections_that_take_turns_on_a_thread_age_their_own_sessions() {
        let (store, seconds) = store();
        fill(&store, &policy(), "source", 2);
        let mut outer = new_connection(&store);
        seconds.store(60, Ordering::Relaxed);
        let mut inner = new_connection(&store);
        let young = inner.provenance;
        outer.provenance.within(|| inner.take("source"));
        assert_eq!(outer.provenance.given, None);
        assert!(inner.provenance.given.is_some());
        assert_ne!(inner.provenance.given, Some(young.began));
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
        fill(&store, &policy(), "source", 2);
        let ticket = || new_connection(&store).take("source");
        let (first, second) = (ticket().unwrap(), ticket().unwrap());
        let mut old = new_connection(&store);
        seconds.store(60, Ordering::Relaxed);
        let mut young = new_connection(&store);
        old.insert("one", first);
        young.insert("one", second);
        let mut third = new_connection(&store);
        assert!(third.take("one").is_some());
        assert_eq!(third.provenance.given, Some(young.provenance.began));
    }

    #[test]
    fn sessions_older_than_55_minutes_are_not_resumed() {
        for version in [TlsVersion::Tls12, TlsVersion::Tls13] {
            let policy = TlsPolicy {
                min_version: version,
                max_version: version,
                ..policy()
            };
            let given = |store: &Arc<Tickets>| {
                let mut connection = new_connection(store);
                connection.take("one").is_some()
                    || connection
                        .provenance
                        .within(|| store.tls12_session(&name("one")))
                        .is_some()
            };
            let (store, seconds) = store();
            fill(&store, &policy, "one", 2);
            seconds.store(3_300, Ordering::Relaxed);
            assert!(given(&store));
            seconds.store(3_301, Ordering::Relaxed);
            assert!(!given(&store));
        }
    }

    #[test]
    fn a_chain_of_resumptions_ends_55_minutes_after_the_full_handshake() {
        for version in [TlsVersion::Tls12, TlsVersion::Tls13] {
            let policy = TlsPolicy {
                min_version: version,
                max_version: version,
                ..policy()
            };
            let ca = Ca::new("root");
            let server = Arc::new(server(&ca.server(), &[]));
            let (store, seconds) = store();
            let client = client(&policy, None, &trust(&[&ca])).with_tickets(Some(store));
            let kind_at = |moment: u64| {
                seconds.store(moment, Ordering::Relaxed);
                let done = handshake_with(&client, &server, "localhost").unwrap();
                done.client.handshake_kind().unwrap()
            };
            use HandshakeKind::{Full, Resumed};
            for (moment, kind) in [
                (0, Full),
                (2_400, Resumed),
                (3_300, Resumed),
                (3_301, Full),
                (6_601, Resumed),
                (6_602, Full),
            ] {
                assert_eq!(kind_at(moment), kind, "{version:?} after {moment} s");
            }
        }
    }

    /// The later of two full handshakes has its verdict from memory, as late as it can: what is
    /// resumed from it ends an hour after the signatures were verified, not an hour after it.
    #[test]
    fn a_verdict_from_memory_and_a_session_together_end_within_an_hour() {
        let ca = Ca::new("root");
        let server = Arc::new(server(&ca.server(), &[]));
        let client = client(&policy(), None, &trust(&[&ca]));
        let (store, seconds) = store();
        let kind_at = |store: &Arc<Tickets>, moment: i64| {
            seconds.store(moment as u64, Ordering::Relaxed);
            let client = at(&client, NOW + moment).with_tickets(Some(Arc::clone(store)));
            let done = handshake_with(&client, &server, "localhost").unwrap();
            done.client.handshake_kind().unwrap()
        };
        let remembered = |what: &str| {
            let verifier = format!("{client:?}");
            assert!(verifier.contains(what), "{what:?} is not in {verifier}");
        };
        let other = Arc::new(Tickets::new());
        assert_eq!(kind_at(&other, 0), HandshakeKind::Full);
        remembered("hits: 0, misses: 1");
        let last = verifier::TTL.as_secs() as i64;
        assert_eq!(kind_at(&store, last), HandshakeKind::Full);
        remembered("hits: 1, misses: 1");
        assert_eq!(kind_at(&store, 3_600), HandshakeKind::Resumed);
        assert_eq!(kind_at(&store, 3_601), HandshakeKind::Full);
        remembered("hits: 1, misses: 2");
    }

    #[test]
    fn a_ticket_that_comes_late_on_an_old_connection_is_not_younger_than_that() {
        let (store, seconds) = store();
        let mut old = new_connection(&store);
        fill(&store, &policy(), "one", 1);
        let ticket = new_connection(&store).take("one");
        seconds.store(3_301, Ordering::Relaxed);
        old.insert("one", ticket.unwrap());
        assert_eq!(count(&store, "one"), 0);
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
