//! What tlsward may cost at most.

use std::collections::BTreeMap;

use serde::Deserialize;

/// Limits by metric name.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Budget {
    limits: BTreeMap<String, f64>,
}

impl Budget {
    /// The limits of `bench/budget.toml`, as they were when this program was built.
    ///
    /// # Errors
    /// The file is not what it should be.
    pub(crate) fn built_in() -> Result<Self, toml::de::Error> {
        toml::from_str(include_str!("../budget.toml"))
    }

    /// The limit of a metric, in the metric's own unit.
    pub(crate) fn limit(&self, metric: &str) -> Option<f64> {
        self.limits.get(metric).copied()
    }

    #[cfg(test)]
    pub(crate) fn metrics(&self) -> impl Iterator<Item = &str> {
        self.limits.keys().map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::Workload;

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
}
