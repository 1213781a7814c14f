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
//! The endpoints of a Kubernetes Service all have its name, and mostly each its own ticket keys: a
//! session of one is of no use to another. So their sessions are kept apart ([`Partition`]), which
//! the provenance tells too.
//!
//! rustls' own store keeps 8 tickets of each name; a server hands out one or two per connection,
//! so that of a burst of new connections at most 8 could resume.
//!
//! A TLS 1.3 ticket is used once, as RFC 8446 appendix C.4 asks (and rustls has no second copy of
//! one). Nearly every connection resumes all the same, from a server that gives a single ticket
//! too: each resumed connection takes one and brings at least one, and each that found none brings
//! one to the stock, which so grows to the number of connections that are opened at a time.

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
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

/// Endpoints kept. Of a Service with more, those that were dialled last are resumed.
const ENDPOINTS: usize = 512;

/// Tickets kept of all endpoints together, two of each at least. Each has its share of the
/// connections that are opened at a time, and twice that is room for chance.
const TICKETS_OF_ALL_ENDPOINTS: usize = 2 * TICKETS_PER_NAME;

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
    stock: Mutex<Stock>,
}

#[derive(Default)]
struct Stock {
    /// Where the name alone says which server it is, and the group of every name.
    servers: Servers,
    endpoints: HashMap<Partition, Endpoint>,
}

struct Endpoint {
    used_at: Instant,
    servers: Servers,
}

/// Of each name, the one that was added first goes when there are too many.
#[derive(Default)]
struct Servers(VecDeque<(ServerName<'static>, Server)>);

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
            stock: Mutex::default(),
        }
    }

    /// A panic of another thread leaves at worst a ticket too few.
    fn stock(&self) -> MutexGuard<'_, Stock> {
        self.stock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read<T>(
        &self,
        of: Option<Partition>,
        name: &ServerName<'_>,
        read: impl FnOnce(&mut Server) -> Option<T>,
    ) -> Option<T> {
        let mut stock = self.stock();
        let servers = match of {
            None => &mut stock.servers,
            Some(partition) => {
                let endpoint = stock.endpoints.get_mut(&partition)?;
                endpoint.used_at = (self.clock)();
                &mut endpoint.servers
            }
        };
        let (_, server) = servers.0.iter_mut().find(|(known, _)| known == name)?;
        read(server)
    }

    /// `write` is told how many tickets it may leave.
    fn write(
        &self,
        of: Option<Partition>,
        name: ServerName<'static>,
        write: impl FnOnce(&mut Server, usize),
    ) {
        let mut stock = self.stock();
        match of {
            None => write(stock.servers.of(name), TICKETS_PER_NAME),
            Some(partition) => {
                let (endpoint, tickets) = stock.endpoint(partition, (self.clock)());
                write(endpoint.servers.of(name), tickets);
            }
        }
    }

    /// What is still to be given now. Looks at the clock once, however many tickets there are.
    fn fresh(&self) -> impl Fn(Instant) -> bool + use<> {
        let now = (self.clock)();
        move |since| now.saturating_duration_since(since) <= MAX_AGE
    }
}

impl Stock {
    /// An endpoint, and how many tickets of it are kept. Whether it is gone nobody says: what was
    /// not used for so long that it has no session any more goes when another comes, and what was
    /// used least recently where there are too many.
    fn endpoint(&mut self, partition: Partition, now: Instant) -> (&mut Endpoint, usize) {
        let endpoints = &mut self.endpoints;
        if !endpoints.contains_key(&partition) {
            let unused = |it: &Endpoint| now.saturating_duration_since(it.used_at);
            endpoints.retain(|_, it| unused(it) <= MAX_AGE);
            if endpoints.len() >= ENDPOINTS {
                let last = endpoints.iter().max_by_key(|(_, it)| unused(it));
                if let Some(last) = last.map(|(partition, _)| *partition) {
                    endpoints.remove(&last);
                }
            }
            let keep = tickets_of_each(endpoints.len() + 1);
            for (_, server) in endpoints.values_mut().flat_map(|it| &mut it.servers.0) {
                let surplus = server.tls13.len().saturating_sub(keep);
                server.tls13.drain(..surplus);
            }
        }
        let keep = tickets_of_each(endpoints.len().max(1));
        let endpoint = endpoints.entry(partition).or_insert_with(|| Endpoint {
            used_at: now,
            servers: Servers::default(),
        });
        endpoint.used_at = now;
        (endpoint, keep)
    }
}

fn tickets_of_each(endpoints: usize) -> usize {
    (TICKETS_OF_ALL_ENDPOINTS / endpoints).clamp(2, TICKETS_PER_NAME)
}

impl Servers {
    fn of(&mut self, name: ServerName<'static>) -> &mut Server {
        let known = self.0.iter().position(|(known, _)| *known == name);
        let at = known.unwrap_or_else(|| {
            if self.0.len() >= NAMES {
                self.0.pop_front();
            }
            self.0.push_back((name, Server::default()));
            self.0.len() - 1
        });
        &mut self.0[at].1
    }
}

/// The sessions of one of several endpoints that have a name in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Partition(NonZeroU32);

impl Partition {
    /// Another one than all before it (of the last 2^32).
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let number = || NonZeroU32::new(NEXT.fetch_add(1, Relaxed));
        // One of two in a row is not zero.
        Self(number().or_else(number).unwrap_or(NonZeroU32::MIN))
    }
}

/// Where the sessions of a connection come from and go to, and since when the server at its other
/// end is verified, by which they are aged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Provenance {
    /// When the full handshake was: this connection's, which begins with it, or that of the session
    /// that was given. Whether the server took the session is not known here; if it did not, its new
    /// sessions end too early, not too late.
    since: Instant,
    given: bool,
    of: Option<Partition>,
}

thread_local! {
    static AT_WORK: Cell<Option<Provenance>> = const { Cell::new(None) };
}

impl Provenance {
    /// Of a connection that begins now.
    pub(super) fn now(tickets: Option<&Tickets>, of: Option<Partition>) -> Self {
        Self {
            since: tickets.map_or_else(Instant::now, |tickets| (tickets.clock)()),
            given: false,
            of,
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
        if !at_work.given {
            (at_work.since, at_work.given) = (aged.since, true);
        }
        AT_WORK.set(Some(at_work));
        Some(aged.session)
    }

    fn aged<T>(session: T) -> Option<(Aged<T>, Option<Partition>)> {
        let Provenance { since, of, .. } = AT_WORK.get()?;
        Some((Aged { since, session }, of))
    }
}

impl ClientSessionStore for Tickets {
    fn set_kx_hint(&self, server_name: ServerName<'static>, group: NamedGroup) {
        // Endpoints of one name choose alike.
        self.write(None, server_name, |server, _| server.group = Some(group));
    }

    fn kx_hint(&self, server_name: &ServerName<'_>) -> Option<NamedGroup> {
        self.read(None, server_name, |server| server.group)
    }

    fn set_tls12_session(&self, server_name: ServerName<'static>, value: Tls12ClientSessionValue) {
        if let Some((session, of)) = Self::aged(value) {
            self.write(of, server_name, |server, _| server.tls12 = Some(session));
        }
    }

    fn tls12_session(&self, server_name: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        let of = AT_WORK.get()?.of;
        let fresh = self.fresh();
        let session = self.read(of, server_name, |server| {
            server.tls12.take_if(|session| !fresh(session.since));
            server.tls12.clone()
        })?;
        Self::give(session)
    }

    fn remove_tls12_session(&self, server_name: &ServerName<'static>) {
        let of = AT_WORK.get().and_then(|at_work| at_work.of);
        self.read(of, server_name, |server| server.tls12.take());
    }

    fn insert_tls13_ticket(
        &self,
        server_name: ServerName<'static>,
        value: Tls13ClientSessionValue,
    ) {
        let Some((ticket, of)) = Self::aged(value) else {
            return;
        };
        self.write(of, server_name, |server, most| {
            while server.tls13.len() >= most {
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
        let of = AT_WORK.get()?.of;
        let fresh = self.fresh();
        let ticket = self.read(of, server_name, |server| {
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
    use std::sync::atomic::AtomicU64;

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
        let now = move || start + Duration::from_secs(told.load(Relaxed));
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
        new_connection_to(store, None)
    }

    fn new_connection_to(store: &Arc<Tickets>, of: Option<Partition>) -> Connection {
        Connection {
            store: Arc::clone(store),
            provenance: Provenance::now(Some(store), of),
        }
    }

    /// As connections to those endpoints do that bring so many tickets each.
    fn fill_endpoints(store: &Arc<Tickets>, endpoints: &[Partition], tickets: usize) {
        let ca = Ca::new("root");
        let mut server = server(&ca.server(), &[]);
        server.send_tls13_tickets = tickets;
        let server = Arc::new(server);
        let client = client(&policy(), None, &trust(&[&ca]));
        for of in endpoints {
            // What it has already is not for this connection, which is to bring new ones.
            let source = Arc::new(Tickets::new());
            let client = client.with_tickets(Some(Arc::clone(&source)));
            handshake_with(&client, &server, "localhost").unwrap();
            let mut connection = new_connection_to(store, Some(*of));
            while let Some(ticket) = new_connection(&source).take("localhost") {
                connection.insert("one", ticket);
            }
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
        seconds.store(60, Relaxed);
        let mut inner = new_connection(&store);
        let young = inner.provenance;
        outer.provenance.within(|| inner.take("source"));
        assert!(!outer.provenance.given);
        assert!(inner.provenance.given);
        assert_ne!(inner.provenance.since, young.since);
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
        seconds.store(60, Relaxed);
        let mut young = new_connection(&store);
        old.insert("one", first);
        young.insert("one", second);
        let mut third = new_connection(&store);
        assert!(third.take("one").is_some());
        assert!(third.provenance.given);
        assert_eq!(third.provenance.since, young.provenance.since);
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
            seconds.store(3_300, Relaxed);
            assert!(given(&store));
            seconds.store(3_301, Relaxed);
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
                seconds.store(moment, Relaxed);
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
            seconds.store(moment as u64, Relaxed);
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
        seconds.store(3_301, Relaxed);
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
        assert_eq!(store.stock().servers.0.len(), NAMES);
    }

    /// How many of 200 connections resume that go to one of ten servers, whichever comes.
    fn resumed(apart: bool, version: TlsVersion) -> usize {
        let policy = TlsPolicy {
            min_version: version,
            max_version: version,
            ..policy()
        };
        let ca = Ca::new("root");
        let leaf = ca.server();
        let client = client(&policy, None, &trust(&[&ca]));
        // Each has a session store of its own.
        let servers: Vec<_> = (0..10)
            .map(|_| {
                let partition = Partition::new();
                let client = match apart {
                    true => Arc::new(client.towards(partition)),
                    false => Arc::clone(&client),
                };
                (client, Arc::new(server(&leaf, &[])))
            })
            .collect();
        let mut dice = 1_u32;
        let resumes = |_: &i32| {
            dice = dice.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let (client, server) = &servers[(dice >> 24) as usize % servers.len()];
            let done = handshake_with(client, server, "localhost").unwrap();
            done.client.handshake_kind() == Some(HandshakeKind::Resumed)
        };
        (0..200).filter(resumes).count()
    }

    #[test]
    fn of_ten_endpoints_with_their_own_keys_each_is_resumed_after_its_first_handshake() {
        for version in [TlsVersion::Tls12, TlsVersion::Tls13] {
            assert_eq!(resumed(true, version), 190, "{version:?}");
            // Which they are not where all are taken for one.
            let by_chance = resumed(false, version);
            assert!(by_chance < 60, "{by_chance} {version:?}");
        }
    }

    #[test]
    fn a_session_of_one_endpoint_is_given_to_no_other_and_to_no_name() {
        let (store, _) = store();
        let (one, two) = (Partition::new(), Partition::new());
        fill_endpoints(&store, &[one], 1);
        assert!(new_connection(&store).take("one").is_none());
        assert!(new_connection_to(&store, Some(two)).take("one").is_none());
        let mut connection = new_connection_to(&store, Some(one));
        assert!(connection.take("two").is_none());
        assert!(connection.take("one").is_some());
    }

    fn kept(store: &Arc<Tickets>) -> Vec<usize> {
        let stock = store.stock();
        let endpoints = stock.endpoints.values();
        endpoints
            .map(|endpoint| {
                endpoint
                    .servers
                    .0
                    .iter()
                    .map(|(_, it)| it.tls13.len())
                    .sum()
            })
            .collect()
    }

    #[test]
    fn the_more_endpoints_there_are_the_fewer_tickets_are_kept_of_each() {
        let (store, _) = store();
        for (endpoints, each) in [(1, 64), (2, 64), (4, 32), (10, 12), (100, 2)] {
            let more: Vec<_> = (kept(&store).len()..endpoints)
                .map(|_| Partition::new())
                .collect();
            fill_endpoints(&store, &more, 64);
            let kept = kept(&store);
            assert!(kept.iter().all(|kept| *kept <= each), "{kept:?}");
            assert!(kept.contains(&each));
        }
    }

    #[test]
    fn where_there_are_too_many_endpoints_the_one_that_was_used_least_recently_goes() {
        let (store, seconds) = store();
        let all: Vec<Partition> = (0..=ENDPOINTS).map(|_| Partition::new()).collect();
        fill_endpoints(&store, &all[..ENDPOINTS], 1);
        for (second, of) in all[..ENDPOINTS].iter().enumerate() {
            seconds.store(second as u64, Relaxed);
            assert!(new_connection_to(&store, Some(*of)).take("two").is_none());
        }
        // The oldest is used once more.
        seconds.store(ENDPOINTS as u64, Relaxed);
        assert!(
            new_connection_to(&store, Some(all[0]))
                .take("one")
                .is_some()
        );
        fill_endpoints(&store, &all[ENDPOINTS..], 1);
        let endpoints = &store.stock().endpoints;
        assert_eq!(endpoints.len(), ENDPOINTS);
        assert!(endpoints.contains_key(&all[0]));
        assert!(!endpoints.contains_key(&all[1]));
    }

    #[test]
    fn endpoints_that_were_not_used_for_55_minutes_go_when_another_comes() {
        let (store, seconds) = store();
        let [gone, stays, new] = [(); 3].map(|()| Partition::new());
        fill_endpoints(&store, &[gone, stays], 2);
        seconds.store(1, Relaxed);
        assert!(new_connection_to(&store, Some(stays)).take("one").is_some());
        seconds.store(3_301, Relaxed);
        fill_endpoints(&store, &[new], 1);
        let endpoints = &store.stock().endpoints;
        assert!(!endpoints.contains_key(&gone));
        assert!(endpoints.contains_key(&stays));
    }

    /// Each new pod would cost a round trip otherwise, where servers want another group.
    #[test]
    fn the_group_that_one_endpoint_chose_is_offered_to_the_next() {
        let (store, _) = store();
        let mut one = new_connection_to(&store, Some(Partition::new()));
        let hint = || store.set_kx_hint(name("one"), NamedGroup::secp256r1);
        one.provenance.within(hint);
        let mut two = new_connection_to(&store, Some(Partition::new()));
        let hint = two.provenance.within(|| store.kx_hint(&name("one")));
        assert_eq!(hint, Some(NamedGroup::secp256r1));
    }

    #[test]
    fn debug_shows_no_session() {
        let (store, _) = store();
        fill(&store, &policy(), "one", 2);
        assert_eq!(format!("{store:?}"), "Tickets { .. }");
    }
}
