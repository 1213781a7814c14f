//! When what was read may be believed: two passes over the sources must agree, or agree with what
//! is known already.

use std::collections::{BTreeMap, BTreeSet};

use super::directories::SourceId;
use super::read::Digest;
use crate::source::Reading;

/// Passes after which sources that still change are left for later.
const ATTEMPTS: usize = 6;

/// All of some sources, read once.
#[derive(Debug, Default)]
pub(super) struct Pass {
    pub(super) digests: BTreeMap<SourceId, Digest>,
    /// Those that differ from what was last reported.
    pub(super) changed: BTreeMap<SourceId, Reading>,
}

/// The passes of one piece of work.
#[derive(Debug, Default)]
pub(super) struct Agreement {
    before: Option<BTreeMap<SourceId, Digest>>,
    passes: usize,
}

/// What is to be done after a pass.
#[derive(Debug)]
pub(super) enum Verdict {
    /// What changed in this pass may be reported; these sources did not hold still and are no
    /// longer in it.
    Believe(Pass, BTreeSet<SourceId>),
    /// Nobody is known to be writing: read again.
    Confirm,
    /// Events came during the pass: wait, then read again.
    Wait,
}

impl Agreement {
    /// Judges a pass during which events concerned the sources `disturbed`.
    pub(super) fn judge(&mut self, mut pass: Pass, disturbed: &BTreeSet<SourceId>) -> Verdict {
        self.passes += 1;
        let agrees = match &self.before {
            Some(before) => *before == pass.digests,
            // What was reported was consistent when it was read, and it has not changed.
            None => pass.changed.is_empty(),
        };
        if agrees && disturbed.is_empty() {
            return Verdict::Believe(pass, BTreeSet::new());
        }
        if self.passes >= ATTEMPTS {
            let before = self.before.take().unwrap_or_default();
            let mut restless = disturbed.clone();
            for (id, digest) in &pass.digests {
                if before.get(id) != Some(digest) {
                    restless.insert(*id);
                }
            }
            pass.changed.retain(|id, _| !restless.contains(id));
            return Verdict::Believe(pass, restless);
        }
        let verdict = if disturbed.is_empty() {
            Verdict::Confirm
        } else {
            // What others do to their files is no reason to distrust the rest.
            pass.digests.retain(|id, _| !disturbed.contains(id));
            Verdict::Wait
        };
        self.before = Some(pass.digests);
        verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::{Explained, Reason};
    use crate::source::SourceKey;

    /// A pass in which source `id` has the digest `digest`; 0 is what was reported.
    fn pass<const N: usize>(sources: [(u32, u8); N]) -> Pass {
        let reading = || Reading {
            key: SourceKey::Config("/c".into()),
            material: Err(Explained::new(Reason::BadConfig, "")),
        };
        let changed = sources.iter().filter(|(_, digest)| *digest != 0);
        Pass {
            digests: sources
                .iter()
                .map(|(id, digest)| (SourceId(*id), [*digest; 32]))
                .collect(),
            changed: changed.map(|(id, _)| (SourceId(*id), reading())).collect(),
        }
    }

    fn ids<const N: usize>(ids: [u32; N]) -> BTreeSet<SourceId> {
        ids.into_iter().map(SourceId).collect()
    }

    /// The sources that are reported and those that are left for later.
    fn believed(verdict: Verdict) -> (BTreeSet<SourceId>, BTreeSet<SourceId>) {
        match verdict {
            Verdict::Believe(pass, restless) => (pass.changed.into_keys().collect(), restless),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn one_pass_is_enough_when_nothing_has_changed() {
        let verdict = Agreement::default().judge(pass([(1, 0), (2, 0)]), &ids([]));
        assert_eq!(believed(verdict), (ids([]), ids([])));
    }

    #[test]
    fn a_change_is_believed_when_a_second_pass_agrees() {
        let mut agreement = Agreement::default();
        let first = agreement.judge(pass([(1, 5)]), &ids([]));
        assert!(matches!(first, Verdict::Confirm));
        let second = agreement.judge(pass([(1, 5)]), &ids([]));
        assert_eq!(believed(second), (ids([1]), ids([])));
    }

    #[test]
    fn sources_that_were_exchanged_between_two_reads_are_believed_only_together() {
        let mut agreement = Agreement::default();
        // The first was read before the swap, the second after it.
        let first = agreement.judge(pass([(1, 0), (2, 5)]), &ids([]));
        assert!(matches!(first, Verdict::Confirm));
        let second = agreement.judge(pass([(1, 5), (2, 5)]), &ids([]));
        assert!(matches!(second, Verdict::Confirm));
        let third = agreement.judge(pass([(1, 5), (2, 5)]), &ids([]));
        assert_eq!(believed(third), (ids([1, 2]), ids([])));
    }

    #[test]
    fn a_pass_that_events_disturbed_is_not_believed_even_if_nothing_seems_changed() {
        let mut agreement = Agreement::default();
        let first = agreement.judge(pass([(1, 0)]), &ids([1]));
        assert!(matches!(first, Verdict::Wait));
    }

    #[test]
    fn what_never_holds_still_is_left_for_later_and_holds_nothing_else_back() {
        let mut agreement = Agreement::default();
        for n in 1..6 {
            let verdict = agreement.judge(pass([(1, n), (2, 5)]), &ids([1]));
            assert!(matches!(verdict, Verdict::Wait));
        }
        let last = agreement.judge(pass([(1, 6), (2, 5)]), &ids([1]));
        assert_eq!(believed(last), (ids([2]), ids([1])));
    }

    #[test]
    fn passes_that_never_agree_report_nothing() {
        let mut agreement = Agreement::default();
        for n in 1..6 {
            let verdict = agreement.judge(pass([(1, n)]), &ids([]));
            assert!(matches!(verdict, Verdict::Confirm));
        }
        let last = agreement.judge(pass([(1, 6)]), &ids([]));
        assert_eq!(believed(last), (ids([]), ids([1])));
    }
}
