//! What tlsward may cost at most, and at most of what others cost.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::proxy::{PLAIN_COPIER, Role};
use crate::report::Line;

type Limits = BTreeMap<String, f64>;

/// Limits by metric name.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Budget {
    at_most: Limits,
    at_least: Limits,
    at_most_of_best_peer: Limits,
    at_most_of_haproxy_plain: Limits,
}

/// One limit, compared.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Verdict {
    pub(crate) metric: &'static str,
    /// The metric's own value, or the ratio to [`Verdict::other`]'s.
    pub(crate) measured: f64,
    pub(crate) limit: f64,
    /// The limit is a lower one.
    pub(crate) at_least: bool,
    /// Whose value the ratio is to; nothing where the limit is absolute.
    pub(crate) other: Option<&'static str>,
    pub(crate) met: bool,
    /// One of the values comes from a series without a quiet round.
    pub(crate) disturbed: bool,
}

impl Budget {
    /// The limits of `bench/budget.toml`, as they were when this program was built.
    ///
    /// # Errors
    /// The file is not what it should be.
    pub(crate) fn built_in() -> Result<Self, toml::de::Error> {
        toml::from_str(include_str!("../budget.toml"))
    }

    /// All limits of what was measured. A ratio to what was not measured is not judged.
    pub(crate) fn judge(&self, lines: &[Line]) -> Vec<Verdict> {
        let mut verdicts = Vec::new();
        for own in lines.iter().filter(|line| line.role == Role::Subject) {
            let limit = |limits: &Limits| limits.get(own.metric).copied();
            let absolute = |limit, at_least| Verdict::new(own, None, limit, at_least);
            verdicts.extend(limit(&self.at_most).map(|limit| absolute(limit, false)));
            verdicts.extend(limit(&self.at_least).map(|limit| absolute(limit, true)));
            let ratio = |limit, other| Verdict::new(own, Some(other), limit, false);
            let others = || lines.iter().filter(|line| line.metric == own.metric);
            if let Some(limit) = limit(&self.at_most_of_best_peer) {
                let peers = others().filter(|line| line.role == Role::Peer);
                let best = peers.min_by(|a, b| a.median.total_cmp(&b.median));
                verdicts.extend(best.map(|best| ratio(limit, best)));
            }
            if let Some(limit) = limit(&self.at_most_of_haproxy_plain) {
                let plain = others().find(|line| line.proxy == PLAIN_COPIER);
                verdicts.extend(plain.map(|plain| ratio(limit, plain)));
            }
        }
        verdicts
    }

    #[cfg(test)]
    fn metrics(&self) -> impl Iterator<Item = &str> {
        [
            &self.at_most,
            &self.at_least,
            &self.at_most_of_best_peer,
            &self.at_most_of_haproxy_plain,
        ]
        .into_iter()
        .flat_map(|limits| limits.keys().map(String::as_str))
    }
}

impl Verdict {
    fn new(own: &Line, other: Option<&Line>, limit: f64, at_least: bool) -> Self {
        let measured = own.median / other.map_or(1.0, |other| other.median);
        Self {
            metric: own.metric,
            measured,
            limit,
            at_least,
            other: other.map(|other| other.proxy),
            met: if at_least {
                measured >= limit
            } else {
                measured <= limit
            },
            disturbed: own.disturbed || other.is_some_and(|other| other.disturbed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::Workload;

    fn budget(text: &str) -> Budget {
        let tables = [
            "at_most",
            "at_least",
            "at_most_of_best_peer",
            "at_most_of_haproxy_plain",
        ];
        let rest: String = tables
            .iter()
            .filter(|table| !text.contains(&format!("[{table}]")))
            .map(|table| format!("[{table}]\n"))
            .collect();
        toml::from_str(&format!("{text}\n{rest}")).unwrap()
    }

    fn line(proxy: &'static str, role: Role, median: f64) -> Line {
        Line::of_median("bulk-up-8", proxy, role, median)
    }

    fn others(nginx: f64, envoy: f64, plain: f64) -> [Line; 3] {
        [
            line("nginx", Role::Peer, nginx),
            line("envoy", Role::Peer, envoy),
            line(PLAIN_COPIER, Role::Floor, plain),
        ]
    }

    fn judged(budget: &Budget, own: f64, others: &[Line]) -> Vec<Verdict> {
        let mut lines = vec![line("tlsward", Role::Subject, own)];
        lines.extend(others.iter().cloned());
        budget.judge(&lines)
    }

    #[test]
    fn every_limit_is_of_a_metric_that_some_workload_reports() {
        let reported: Vec<_> = Workload::ALL.iter().flat_map(|w| w.metrics()).collect();
        let budget = Budget::built_in().expect("the file is well-formed");
        for metric in budget.metrics() {
            assert!(
                reported.iter().any(|(name, _)| *name == metric),
                "{metric} is not reported by any workload"
            );
        }
    }

    #[test]
    fn an_upper_limit_is_kept_up_to_its_value_and_a_lower_one_from_it() {
        let upper = budget("[at_most]\n\"bulk-up-8\" = 0.5");
        assert!(judged(&upper, 0.5, &[])[0].met && !judged(&upper, 0.51, &[])[0].met);
        let lower = budget("[at_least]\n\"bulk-up-8\" = 0.5");
        assert!(judged(&lower, 0.5, &[])[0].met && !judged(&lower, 0.49, &[])[0].met);
    }

    #[test]
    fn the_best_peer_is_the_cheapest_one_and_no_floor() {
        let budget = budget("[at_most_of_best_peer]\n\"bulk-up-8\" = 0.6");
        let verdict = &judged(&budget, 0.3, &others(0.9, 0.4, 0.1))[0];
        assert_eq!((verdict.other, verdict.met), (Some("envoy"), false));
        assert!(judged(&budget, 0.3, &others(0.9, 0.5, 0.1))[0].met);
    }

    #[test]
    fn a_ratio_to_what_was_not_measured_is_not_judged() {
        let budget = budget(
            "[at_most_of_best_peer]\n\"bulk-up-8\" = 0.6\n[at_most_of_haproxy_plain]\n\"bulk-up-8\" = 0.9",
        );
        assert!(judged(&budget, 9.0, &[]).is_empty());
        let verdicts = judged(&budget, 0.3, &others(0.9, 0.5, 0.3)[2..]);
        assert_eq!(verdicts.len(), 1);
        assert_eq!(
            (verdicts[0].other, verdicts[0].met),
            (Some(PLAIN_COPIER), false)
        );
    }
}
