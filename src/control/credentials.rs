//! What was loaded from each source: the last good generation, and why a newer one is not in use.

use std::collections::BTreeMap;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls_pki_types::UnixTime;

use crate::config::{Config, IdentitySource, TrustSource};
use crate::failure::{Explained, Reason};
use crate::source::{self, Digest, Material, Reading, SourceKey, SourceSet};
use crate::tls::identity::Identity;
use crate::tls::trust::Trust;

/// How long a key that does not fit its certificate is taken for a rotation under way.
pub(crate) const ROTATION_GRACE_SECONDS: i64 = 10;

/// All identities and trusts that the configuration names.
#[derive(Debug, Default)]
pub(crate) struct Credentials {
    identities: BTreeMap<IdentitySource, Loaded<Identity>>,
    trusts: BTreeMap<TrustSource, Loaded<Trust>>,
    /// How many generations sources have had that are not named at present. A source that comes
    /// back goes on counting: a route may still hold its last generation, and must not take
    /// another one for it.
    forgotten: BTreeMap<SourceKey, u64>,
}

/// What is known of one source.
#[derive(Debug)]
pub(crate) struct Loaded<T> {
    /// The last good one.
    current: Option<Good<T>>,
    /// Why the newest is not the current one.
    refused: Option<Refused>,
    /// The newest reading, where another time may judge the same bytes otherwise.
    untimely: Option<Reading>,
    /// How many generations there have been.
    generations: u64,
}

/// A generation that was proven good.
#[derive(Debug)]
pub(crate) struct Good<T> {
    pub(crate) value: Arc<T>,
    /// Counts the generations of this source, from 1.
    pub(crate) generation: u64,
    /// Seconds since 1970.
    pub(crate) loaded_at: i64,
    /// Of the bytes.
    digest: Digest,
}

/// Why something is judged.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Occasion {
    /// It was read.
    News,
    /// Time has passed.
    Time,
}

#[derive(Debug)]
struct Refused {
    why: Explained,
    /// Since when key and certificate have not fitted, while that may still be a rotation.
    rotating_since: Option<i64>,
}

/// What became of one reading.
#[derive(Debug)]
pub(crate) struct Judged {
    pub(crate) key: SourceKey,
    pub(crate) verdict: Verdict,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// In use from now on, as this generation.
    Published {
        generation: u64,
        warnings: Vec<String>,
    },
    /// What is in use lies in the files again, after something that was refused.
    Restored { generation: u64 },
    /// Not in use; what was, goes on.
    Refused(Explained),
}

/// What [`Loaded::judge`] made of something good.
enum Taken {
    New(u64),
    Same(u64),
}

impl<T> Loaded<T> {
    const EMPTY: Self = Self {
        current: None,
        refused: None,
        untimely: None,
        generations: 0,
    };

    /// Of a source that has had this many generations before.
    fn after(generations: Option<u64>) -> Self {
        Self {
            generations: generations.unwrap_or(0),
            ..Self::EMPTY
        }
    }

    pub(crate) fn current(&self) -> Option<&Good<T>> {
        self.current.as_ref()
    }

    pub(crate) fn refused(&self) -> Option<&Explained> {
        self.refused.as_ref().map(|refused| &refused.why)
    }

    /// `digest` is that of the bytes, if equal bytes are the same generation.
    fn judge(
        &mut self,
        parsed: Result<T, Explained>,
        digest: Digest,
        occasion: Occasion,
        now: i64,
    ) -> Result<Taken, Explained> {
        match parsed {
            Ok(value) => {
                // The clock may have changed what follows from the same bytes.
                if let Some(current) = &self.current
                    && current.digest == digest
                    && occasion == Occasion::News
                {
                    self.refused = None;
                    return Ok(Taken::Same(current.generation));
                }
                self.generations += 1;
                let generation = self.generations;
                self.current = Some(Good {
                    value: Arc::new(value),
                    generation,
                    loaded_at: now,
                    digest,
                });
                self.refused = None;
                Ok(Taken::New(generation))
            }
            Err(why) if why.reason == Reason::KeyMismatch => {
                let since = self
                    .refused
                    .as_ref()
                    .and_then(|refused| refused.rotating_since);
                let since = since.unwrap_or(now);
                let why = if now - since < ROTATION_GRACE_SECONDS {
                    Explained::new(Reason::RotationInProgress, why.detail)
                } else {
                    why
                };
                self.refused = Some(Refused {
                    why: why.clone(),
                    rotating_since: Some(since),
                });
                Err(why)
            }
            Err(why) => {
                self.refused = Some(Refused {
                    why: why.clone(),
                    rotating_since: None,
                });
                Err(why)
            }
        }
    }

    /// Whether there is nothing new to say of it.
    fn is_refused_like(&self, parsed: &Result<T, Explained>) -> bool {
        match (parsed, &self.refused) {
            (Err(why), Some(refused)) => why.reason == refused.why.reason,
            (Ok(_), _) | (Err(_), None) => false,
        }
    }

    /// A rotation that took too long becomes an error.
    fn expire(&mut self, now: i64) -> Option<Explained> {
        let refused = self.refused.as_mut()?;
        let overdue = refused.rotating_since? + ROTATION_GRACE_SECONDS <= now;
        if !overdue || refused.why.reason != Reason::RotationInProgress {
            return None;
        }
        refused.why = Explained::new(Reason::KeyMismatch, refused.why.detail.clone());
        Some(refused.why.clone())
    }

    fn grace_ends(&self) -> Option<i64> {
        let refused = self.refused.as_ref()?;
        (refused.why.reason == Reason::RotationInProgress).then(|| {
            refused
                .rotating_since
                .map(|since| since + ROTATION_GRACE_SECONDS)
        })?
    }
}

impl Loaded<Trust> {
    /// Whether no further anchor has become usable. One in use is not dropped by the clock alone:
    /// trust is judged when it is loaded.
    fn holds_as_many_anchors(&self, parsed: &Result<Trust, Explained>) -> bool {
        match (parsed, &self.current, &self.refused) {
            (Ok(trust), Some(good), None) => trust.anchors.len() <= good.value.anchors.len(),
            (Ok(_) | Err(_), _, _) => false,
        }
    }
}

impl Credentials {
    pub(crate) fn identity(&self, source: &IdentitySource) -> &Loaded<Identity> {
        self.identities
            .get(source)
            .unwrap_or(const { &Loaded::EMPTY })
    }

    pub(crate) fn trust(&self, source: &TrustSource) -> &Loaded<Trust> {
        self.trusts.get(source).unwrap_or(const { &Loaded::EMPTY })
    }

    /// Whether a generation of the source was good.
    pub(crate) fn is_in_use(&self, key: &SourceKey) -> bool {
        match key {
            SourceKey::Identity(source) => self.identity(source).current.is_some(),
            SourceKey::Trust(source) => self.trust(source).current.is_some(),
            SourceKey::Config(_) => false,
        }
    }

    /// The sources that `config` names.
    pub(crate) fn sources(config: &Config) -> SourceSet {
        let mut sources = SourceSet::new();
        for service in config.services.values() {
            sources.extend(service.identity.clone().map(SourceKey::Identity));
            sources.extend(service.trust.clone().map(SourceKey::Trust));
        }
        sources
    }

    /// Those of `wanted` that were never read.
    pub(crate) fn unread(&self, wanted: &SourceSet) -> SourceSet {
        let unread = |key: &&SourceKey| match key {
            SourceKey::Config(_) => false,
            SourceKey::Identity(source) => !self.identities.contains_key(source),
            SourceKey::Trust(source) => !self.trusts.contains_key(source),
        };
        wanted.iter().filter(unread).cloned().collect()
    }

    /// Proves what was read and takes it if it is good; what is bad changes nothing but what is
    /// said of it.
    pub(crate) fn judge(
        &mut self,
        readings: &[Reading],
        now: UnixTime,
        provider: &CryptoProvider,
    ) -> Vec<Judged> {
        let judge = |reading| self.judge_one(reading, now, provider, Occasion::News);
        readings.iter().filter_map(judge).collect()
    }

    /// Judges what was too early or too late by the clock of its time once more, by the clock of
    /// now: the bytes may be right and the clock have been wrong, or a start have been agreed on
    /// that is reached by now. Names only what is judged otherwise than before.
    pub(crate) fn judge_again(&mut self, now: UnixTime, provider: &CryptoProvider) -> Vec<Judged> {
        let readings: Vec<Reading> = self.untimely().cloned().collect();
        let judge = |reading| self.judge_one(reading, now, provider, Occasion::Time);
        readings.iter().filter_map(judge).collect()
    }

    /// Whether [`Self::judge_again`] has something to judge.
    pub(crate) fn wait_for_the_clock(&self) -> bool {
        self.untimely().next().is_some()
    }

    fn untimely(&self) -> impl Iterator<Item = &Reading> {
        let identities = self
            .identities
            .values()
            .filter_map(|it| it.untimely.as_ref());
        let trusts = self.trusts.values().filter_map(|it| it.untimely.as_ref());
        identities.chain(trusts)
    }

    fn judge_one(
        &mut self,
        reading: &Reading,
        now: UnixTime,
        provider: &CryptoProvider,
        occasion: Occasion,
    ) -> Option<Judged> {
        let seconds = seconds(now);
        let digest = source::digest(&reading.material);
        let (verdict, warnings) = match &reading.key {
            SourceKey::Config(_) => return None,
            SourceKey::Identity(source) => {
                let parsed = match &reading.material {
                    Ok(Material::Identity(material)) => Identity::parse(material, now, provider),
                    Ok(Material::Trust(_) | Material::Config(_)) => Err(mixed_up()),
                    Err(why) => Err(why.clone()),
                };
                let loaded = self
                    .identities
                    .entry(source.clone())
                    .or_insert_with(|| Loaded::after(self.forgotten.remove(&reading.key)));
                if occasion == Occasion::Time && loaded.is_refused_like(&parsed) {
                    return None;
                }
                let untimely = matches!(&parsed, Err(why)
                    if matches!(why.reason, Reason::NotYetValid | Reason::Expired));
                loaded.untimely = untimely.then(|| reading.clone());
                let warnings = parsed.as_ref().map_or(Vec::new(), |it| it.warnings.clone());
                (loaded.judge(parsed, digest, occasion, seconds), warnings)
            }
            SourceKey::Trust(source) => {
                let parsed = match &reading.material {
                    Ok(Material::Trust(material)) => Trust::parse(material, now),
                    Ok(Material::Identity(_) | Material::Config(_)) => Err(mixed_up()),
                    Err(why) => Err(why.clone()),
                };
                let loaded = self
                    .trusts
                    .entry(source.clone())
                    .or_insert_with(|| Loaded::after(self.forgotten.remove(&reading.key)));
                if occasion == Occasion::Time
                    && (loaded.is_refused_like(&parsed) || loaded.holds_as_many_anchors(&parsed))
                {
                    return None;
                }
                let untimely = match &parsed {
                    Ok(trust) => !trust.left_out.is_empty(),
                    Err(why) => why.reason == Reason::NoTrustAnchor,
                };
                loaded.untimely = untimely.then(|| reading.clone());
                let left_out = parsed.as_ref().map_or(Vec::new(), |it| it.left_out.clone());
                (loaded.judge(parsed, digest, occasion, seconds), left_out)
            }
        };
        let verdict = match verdict {
            Ok(Taken::New(generation)) => Verdict::Published {
                generation,
                warnings,
            },
            Ok(Taken::Same(generation)) => Verdict::Restored { generation },
            Err(why) => Verdict::Refused(why),
        };
        Some(Judged {
            key: reading.key.clone(),
            verdict,
        })
    }

    /// Turns rotations that took too long into errors, and names them.
    pub(crate) fn expire(&mut self, now: UnixTime) -> Vec<Judged> {
        let now = seconds(now);
        let overdue = |(source, loaded): (&IdentitySource, &mut Loaded<Identity>)| {
            let why = loaded.expire(now)?;
            let key = SourceKey::Identity(source.clone());
            Some(Judged {
                key,
                verdict: Verdict::Refused(why),
            })
        };
        self.identities.iter_mut().filter_map(overdue).collect()
    }

    /// When the next rotation under way becomes an error, in seconds since 1970.
    pub(crate) fn next_expiry(&self) -> Option<i64> {
        self.identities
            .values()
            .filter_map(Loaded::grace_ends)
            .min()
    }

    /// Forgets sources that are no longer named, but for how many generations they have had.
    pub(crate) fn keep_only(&mut self, sources: &SourceSet) {
        let forgotten = &mut self.forgotten;
        let mut keeps = |key: SourceKey, generations| {
            let keep = sources.contains(&key);
            if !keep {
                forgotten.insert(key, generations);
            }
            keep
        };
        self.identities.retain(|source, loaded| {
            keeps(SourceKey::Identity(source.clone()), loaded.generations)
        });
        self.trusts
            .retain(|source, loaded| keeps(SourceKey::Trust(source.clone()), loaded.generations));
    }
}

pub(crate) fn seconds(now: UnixTime) -> i64 {
    i64::try_from(now.as_secs()).unwrap_or(i64::MAX)
}

fn mixed_up() -> Explained {
    Explained::new(
        Reason::Internal,
        "a reading of another kind than its source",
    )
}
