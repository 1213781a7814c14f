//! Chains that were found good, remembered for a few minutes.
//!
//! Of the client's part in a full handshake, verifying the two signatures of a common chain is
//! more than a third, and a service's servers present the same few chains again and again.
//!
//! What a verdict depends on is in the key, or bounds the entry's time, or belongs to the
//! [`Verifier`](super::Verifier) that owns the memory: policy, anchors and revocation lists, none
//! of which ever changes in it. Whatever changes one of them makes a new verifier, which knows
//! nothing, and what the old one knew goes with it. So there is no generation in the key that
//! could be forgotten. OCSP responses are not looked at, hence not in the key either.
//!
//! The proof that the server holds its key (CertificateVerify) is no part of this and is asked for
//! in every handshake.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{Context, SHA256, SHA256_OUTPUT_LEN};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

/// For how long a verdict is good where nothing ends it earlier. All that could make it wrong is
/// in the key or ends the entry, so this is a second line; and it need not be long: at a
/// connection a second, one handshake in 300 verifies. It is also taken off the life of sessions
/// (`tickets.rs`).
pub(in crate::tls) const TTL: Duration = Duration::from_secs(5 * 60);

/// Chains kept: an upstream of many endpoints, each with a certificate of its own, and 10 KiB at
/// most. A server that varies its chain can push out others of its service, which are verified
/// then; it cannot make the memory grow.
const REMEMBERED: usize = 128;

/// Positive verdicts only. The lock is held for a look through the entries, never for a
/// verification: two threads that ask for the same new chain both verify it.
pub(super) struct Chains {
    clock: Box<dyn Fn() -> Instant + Send + Sync>,
    memory: Mutex<Memory>,
}

#[derive(Default)]
struct Memory {
    /// In the order in which they were added.
    good: VecDeque<Good>,
    hits: u64,
    misses: u64,
}

/// SHA-256 of what the server presented and of the name that it is to have.
type Key = [u8; SHA256_OUTPUT_LEN];

/// What a server presented, to whom, and when: the key that is remembered is the one that was
/// asked for.
pub(super) struct Question {
    key: Key,
    /// Seconds since 1970.
    now: i64,
    /// The same moment by the monotonic clock.
    asked: Instant,
}

struct Good {
    key: Key,
    /// The verification began then, in seconds since 1970.
    from: i64,
    /// The last second of it.
    until: i64,
    /// `from` by the monotonic clock.
    since: Instant,
}

impl Chains {
    pub(super) fn new() -> Self {
        Self::with_clock(Instant::now)
    }

    fn with_clock(clock: impl Fn() -> Instant + Send + Sync + 'static) -> Self {
        Self {
            clock: Box::new(clock),
            memory: Mutex::default(),
        }
    }

    /// `None` for a kind of name that is not known here: such a server is verified each time.
    pub(super) fn question(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        now: UnixTime,
    ) -> Option<Question> {
        Some(Question {
            key: key(end_entity, intermediates, server_name)?,
            now: now.as_secs() as i64,
            asked: (self.clock)(),
        })
    }

    /// Whether the same question was answered with yes, at a time from which that still holds.
    ///
    /// Never before the moment of that verification: a wall clock that was set back may have left
    /// the validity of a certificate. And never for longer than [`TTL`] by either clock: one of
    /// them can be set back, the other stands still while the machine sleeps.
    pub(super) fn known_good(&self, question: &Question) -> bool {
        let mut memory = self.memory();
        let known = memory.good.iter().any(|good| {
            good.key == question.key
                && (good.from..=good.until).contains(&question.now)
                && question.asked.saturating_duration_since(good.since) <= TTL
        });
        match known {
            true => memory.hits += 1,
            false => memory.misses += 1,
        }
        known
    }

    /// The question was answered with yes, and would be until the end of this second (since 1970)
    /// if it were asked again. Not kept for longer than [`TTL`].
    pub(super) fn remember(&self, question: &Question, until: i64) {
        let ttl = TTL.as_secs() as i64;
        let good = Good {
            key: question.key,
            from: question.now,
            until: until.min(question.now.saturating_add(ttl)),
            since: question.asked,
        };
        let mut memory = self.memory();
        memory.good.retain(|known| known.key != good.key);
        if memory.good.len() >= REMEMBERED {
            memory.good.pop_front();
        }
        memory.good.push_back(good);
    }

    /// A panic elsewhere leaves at worst an entry too few.
    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How often `known_good` said yes, and no.
    #[cfg(test)]
    pub(super) fn counts(&self) -> (u64, u64) {
        let memory = self.memory();
        (memory.hits, memory.misses)
    }
}

impl fmt::Debug for Chains {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let memory = self.memory();
        f.debug_struct("Chains")
            .field("remembered", &memory.good.len())
            .field("hits", &memory.hits)
            .field("misses", &memory.misses)
            .finish_non_exhaustive()
    }
}

/// Unambiguous: each part is preceded by its length, and only the last kind of part repeats.
fn key(
    end_entity: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    server_name: &ServerName<'_>,
) -> Option<Key> {
    let kind = match server_name {
        ServerName::DnsName(_) => 0,
        ServerName::IpAddress(_) => 1,
        _ => return None,
    };
    let mut digest = Context::new(&SHA256);
    let mut part = |bytes: &[u8]| {
        digest.update(&(bytes.len() as u64).to_be_bytes());
        digest.update(bytes);
    };
    part(&[kind]);
    part(server_name.to_str().as_bytes());
    part(end_entity);
    for intermediate in intermediates {
        part(intermediate);
    }
    digest.finish().as_ref().try_into().ok()
}

#[cfg(test)]
mod tests;
