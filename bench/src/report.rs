//! Rounds made into results: medians and ratios; as a table for people, JSON for programs, and a
//! table and a picture for documents.

use serde::Serialize;

use crate::budget::{Budget, Verdict};
use crate::machine::Facts;
use crate::proxy::Role;
use crate::proxy::peers::LeftOut;
use crate::workload::{Sample, Workload};

mod headlines;
mod markdown;
mod picture;
mod terminal;

/// A round beside which a plain copy cost this much more than the run's median is left out.
const SLOW: f64 = 1.15;

/// So is a round in which the proxy waited longer for its CPU than this share of its CPU time:
/// others were there and in its caches. (Beside compile jobs bulk-up-1 read 0.31 instead of 0.19
/// CPU-s/GiB, and a short reference before and after saw nothing of it.)
const CROWDED: f64 = 0.15;

/// One round of one proxy.
#[derive(Clone, Debug)]
pub(crate) struct Round {
    pub(crate) sample: Sample,
    /// [`machine::plain_copy`](crate::machine::plain_copy) before and after: the dearer one.
    pub(crate) plain_copy: f64,
    pub(crate) load: f64,
}

impl Round {
    fn is_quiet(&self, usual_copy: f64) -> bool {
        let Sample { cpu, waited, .. } = &self.sample;
        self.plain_copy <= usual_copy * SLOW && *waited <= cpu.mul_f64(CROWDED)
    }
}

/// All rounds of one workload with one proxy.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    pub(crate) workload: Workload,
    pub(crate) proxy: &'static str,
    pub(crate) role: Role,
    pub(crate) rounds: Vec<Round>,
}

/// One line of the table.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Line {
    pub(crate) metric: &'static str,
    pub(crate) proxy: &'static str,
    pub(crate) role: Role,
    pub(crate) unit: &'static str,
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
    /// All rounds, in order, slow ones too.
    pub(crate) values: Vec<f64>,
    /// The median as a multiple of tlsward's, where both were measured and tlsward's is not 0.
    pub(crate) ratio_to_tlsward: Option<f64>,
    /// The proxy's CPU time in percent of the time that passed.
    pub(crate) busy_percent: f64,
    /// Time that the proxy waited for its CPU, in percent of its CPU time.
    pub(crate) waited_percent: f64,
    /// Handshakes that the upstream resumed, in percent; nothing where there were none.
    pub(crate) resumed_percent: Option<f64>,
    /// CPU time of generator and upstream in percent of the time that passed.
    pub(crate) generator_percent: f64,
    pub(crate) rounds_used: usize,
    pub(crate) rounds: usize,
    /// No round was quiet, so all were used: read the numbers as upper bounds.
    pub(crate) disturbed: bool,
}

/// What was so in all rounds.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Conditions {
    pub(crate) machine: Facts,
    pub(crate) tls: &'static str,
    pub(crate) suite: &'static str,
    pub(crate) group: &'static str,
    pub(crate) keys: &'static str,
    pub(crate) server_chain_bytes: usize,
    pub(crate) client_chain_bytes: usize,
    pub(crate) resumption: &'static str,
    pub(crate) pinning: String,
    pub(crate) open_files: u64,
    pub(crate) quick: bool,
    pub(crate) rounds: usize,
    /// Name and version of each proxy.
    pub(crate) proxies: Vec<(&'static str, String)>,
}

/// The whole of a run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) conditions: Conditions,
    /// By metric, and in that by proxy, tlsward first.
    pub(crate) lines: Vec<Line>,
    pub(crate) verdicts: Vec<Verdict>,
    /// Who was not measured, or not in everything, and why.
    pub(crate) left_out: Vec<LeftOut>,
    /// CPU-s/GiB of a plain copy beside the rounds: least, median, most.
    pub(crate) plain_copy: [f64; 3],
    /// One-minute load average: lowest, median, highest.
    pub(crate) load: [f64; 3],
}

impl Report {
    pub(crate) fn new(
        conditions: Conditions,
        series: &[Series],
        left_out: Vec<LeftOut>,
        budget: &Budget,
    ) -> Self {
        let rounds = || series.iter().flat_map(|series| &series.rounds);
        let plain_copy = spread(rounds().map(|round| round.plain_copy));
        let load = spread(rounds().map(|round| round.load));
        let mut lines: Vec<_> = series
            .iter()
            .flat_map(|series| lines_of(series, plain_copy[1]))
            .collect();
        let order: Vec<_> = Workload::ALL.iter().flat_map(|w| w.metrics()).collect();
        // Stable: proxies stay in their order.
        lines.sort_by_key(|line| order.iter().position(|(metric, _)| *metric == line.metric));
        compare(&mut lines);
        Self {
            conditions,
            verdicts: budget.judge(&lines),
            lines,
            left_out,
            plain_copy,
            load,
        }
    }

    /// No limit is exceeded, and tlsward broke in no workload.
    pub(crate) fn within_budget(&self) -> bool {
        let broke = self.left_out.iter().any(|out| out.name == "tlsward");
        !broke && self.verdicts.iter().all(|verdict| verdict.met)
    }

    fn line(&self, metric: &str, proxy: &str) -> Option<&Line> {
        self.lines
            .iter()
            .find(|line| line.metric == metric && line.proxy == proxy)
    }

    /// One sentence for each proxy and reason, with the workloads that it is about.
    fn absences(&self) -> Vec<String> {
        let mut grouped: Vec<(&LeftOut, Vec<&str>)> = Vec::new();
        for out in &self.left_out {
            let same = grouped
                .iter_mut()
                .find(|(first, _)| first.name == out.name && first.reason == out.reason);
            match same {
                Some((_, workloads)) => workloads.extend(out.workload),
                None => grouped.push((out, out.workload.into_iter().collect())),
            }
        }
        let sentence = |(out, workloads): &(&LeftOut, Vec<&str>)| {
            let LeftOut { name, reason, .. } = out;
            if workloads.is_empty() {
                format!("{name}: {reason}")
            } else {
                format!("{name}, not in {}: {reason}", workloads.join(", "))
            }
        };
        grouped.iter().map(sentence).collect()
    }
}

impl Conditions {
    /// Names and values, without the proxies.
    fn describe(&self) -> Vec<(&'static str, String)> {
        let Self {
            machine,
            tls,
            suite,
            group,
            keys,
            server_chain_bytes,
            client_chain_bytes,
            resumption,
            pinning,
            open_files,
            quick,
            rounds,
            proxies: _,
        } = self;
        let namespace = if machine.namespace {
            "own network namespace"
        } else {
            "the host's network namespace"
        };
        let awake = if machine.kept_awake {
            "kept out of idle states"
        } else {
            "idle states as usual: wake-ups are billed to the proxy"
        };
        let size = if *quick { "quick" } else { "full" };
        vec![
            (
                "machine",
                format!(
                    "{}, {} CPUs, Linux {}",
                    machine.cpu, machine.cpus, machine.kernel
                ),
            ),
            ("pinning", format!("{pinning}; {awake}")),
            (
                "network",
                format!("loopback, {namespace}, {}", machine.congestion_control),
            ),
            ("TLS", format!("{tls}, {suite}, {group}, {keys}")),
            (
                "chains",
                format!(
                    "server {server_chain_bytes} bytes, client {client_chain_bytes} bytes, 2 certificates each, verified with the name"
                ),
            ),
            ("resumption", (*resumption).to_owned()),
            (
                "rounds",
                format!("{rounds} ({size}), after a warm-up each; up to {open_files} open files"),
            ),
        ]
    }
}

fn lines_of(series: &Series, usual_copy: f64) -> Vec<Line> {
    let Series {
        workload,
        proxy,
        role,
        rounds,
    } = series;
    let quiet: Vec<_> = rounds
        .iter()
        .filter(|round| round.is_quiet(usual_copy))
        .collect();
    let disturbed = quiet.is_empty();
    // Where no round was quiet there is nothing better than what there is, and the line says so.
    let used = if disturbed {
        rounds.iter().collect()
    } else {
        quiet
    };
    let sum = |of: fn(&Sample) -> f64| used.iter().map(|round| of(&round.sample)).sum::<f64>();
    let cpu = sum(|sample| sample.cpu.as_secs_f64());
    let wall = sum(|sample| sample.wall.as_secs_f64());
    let waited = sum(|sample| sample.waited.as_secs_f64());
    let generator = sum(|sample| sample.generator.as_secs_f64());
    let handshakes = sum(|sample| sample.handshakes as f64);
    let resumed = sum(|sample| sample.resumed as f64);
    let metrics = workload.metrics().iter().enumerate();
    metrics
        // What there is nothing to measure of has no line.
        .filter(|(n, _)| used.iter().all(|round| round.sample.values[*n].is_finite()))
        .map(|(n, (metric, unit))| {
            let [min, median, max] = spread(used.iter().map(|round| round.sample.values[n]));
            Line {
                metric,
                proxy,
                role: *role,
                unit,
                median,
                min,
                max,
                values: rounds.iter().map(|round| round.sample.values[n]).collect(),
                ratio_to_tlsward: None,
                busy_percent: cpu / wall * 100.0,
                waited_percent: waited / cpu.max(f64::MIN_POSITIVE) * 100.0,
                resumed_percent: (handshakes > 0.0).then(|| resumed / handshakes * 100.0),
                generator_percent: generator / wall * 100.0,
                disturbed,
                rounds_used: used.len(),
                rounds: rounds.len(),
            }
        })
        .collect()
}

fn compare(lines: &mut [Line]) {
    let own: Vec<_> = lines
        .iter()
        .filter(|line| line.role == Role::Subject && line.median > 0.0)
        .map(|line| (line.metric, line.median))
        .collect();
    for line in lines {
        let base = own.iter().find(|(metric, _)| *metric == line.metric);
        line.ratio_to_tlsward = base.map(|(_, base)| line.median / base);
    }
}

/// Least, median, most.
fn spread(values: impl Iterator<Item = f64>) -> [f64; 3] {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    let (Some(min), Some(max)) = (values.first(), values.last()) else {
        return [f64::NAN; 3];
    };
    let middle = values.len() / 2;
    let median = if values.len() % 2 == 1 {
        values[middle]
    } else {
        f64::midpoint(values[middle - 1], values[middle])
    };
    [*min, median, *max]
}

/// Three digits that matter.
fn number(value: f64) -> String {
    let digits = match value.abs() {
        v if v < 1.0 => 3,
        v if v < 10.0 => 2,
        v if v < 100.0 => 1,
        _ => 0,
    };
    format!("{value:.digits$}")
}

#[cfg(test)]
impl Line {
    /// One quiet round.
    pub(crate) fn of_median(
        metric: &'static str,
        proxy: &'static str,
        role: Role,
        median: f64,
    ) -> Self {
        Self {
            metric,
            proxy,
            role,
            unit: "CPU-s/GiB",
            median,
            min: median,
            max: median,
            values: vec![median],
            ratio_to_tlsward: None,
            busy_percent: 50.0,
            waited_percent: 0.0,
            resumed_percent: None,
            generator_percent: 50.0,
            rounds_used: 1,
            rounds: 1,
            disturbed: false,
        }
    }
}

#[cfg(test)]
impl Conditions {
    fn example() -> Self {
        Self {
            machine: Facts {
                kernel: "6.1".to_owned(),
                cpu: "Some <CPU> & Co".to_owned(),
                cpus: 2,
                congestion_control: "cubic".to_owned(),
                namespace: true,
                kept_awake: true,
            },
            tls: "TLS 1.3",
            suite: "TLS_AES_128_GCM_SHA256",
            group: "X25519",
            keys: "all keys P-256",
            server_chain_bytes: 700,
            client_chain_bytes: 600,
            resumption: "none",
            pinning: "proxy on CPU 1".to_owned(),
            open_files: 1024,
            quick: true,
            rounds: 1,
            proxies: vec![("tlsward", "tlsward 0.1".to_owned())],
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn round(value: f64, plain_copy: f64, waited_ms: u64) -> Round {
        let second = Duration::from_secs(1);
        Round {
            sample: Sample {
                values: vec![value],
                cpu: second,
                wall: second * 2,
                waited: Duration::from_millis(waited_ms),
                generator: second,
                handshakes: 8,
                resumed: 2,
            },
            plain_copy,
            load: 0.5,
        }
    }

    /// Where a plain copy usually costs 0.16.
    fn line(rounds: &[(f64, f64, u64)]) -> Line {
        let series = Series {
            workload: Workload::BulkUp1,
            proxy: "tlsward",
            role: Role::Subject,
            rounds: rounds.iter().map(|(v, c, w)| round(*v, *c, *w)).collect(),
        };
        lines_of(&series, 0.16).remove(0)
    }

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_two() {
        assert_eq!(spread([4.0, 1.0, 3.0, 2.0].into_iter()), [1.0, 2.5, 4.0]);
    }

    #[test]
    fn a_round_beside_a_dear_plain_copy_does_not_count() {
        let line = line(&[(0.4, 0.16, 0), (0.9, 0.24, 0), (0.3, 0.17, 0)]);
        assert_eq!((line.max, line.rounds_used, line.rounds), (0.4, 2, 3));
        assert_eq!(line.values, [0.4, 0.9, 0.3]);
    }

    #[test]
    fn a_round_that_waited_for_its_cpu_does_not_count() {
        let line = line(&[(0.2, 0.16, 10), (0.31, 0.16, 5250)]);
        assert_eq!(
            (line.max, line.rounds_used, line.disturbed),
            (0.2, 1, false)
        );
    }

    #[test]
    fn where_no_round_was_quiet_all_count_and_the_line_says_so() {
        let line = line(&[(0.4, 0.3, 0), (0.5, 0.16, 900)]);
        assert_eq!((line.rounds_used, line.disturbed), (2, true));
    }

    #[test]
    fn a_value_that_is_no_number_was_not_measured_and_has_no_line() {
        let series = Series {
            workload: Workload::BulkUp1,
            proxy: "direct",
            role: Role::Floor,
            rounds: vec![round(f64::NAN, 0.16, 0)],
        };
        assert!(lines_of(&series, 0.16).is_empty());
    }

    #[test]
    fn ratios_are_to_tlsward_in_the_same_metric() {
        let mut lines = [
            Line::of_median("bulk-up-1", "tlsward", Role::Subject, 0.2),
            Line::of_median("bulk-up-1", "nginx", Role::Peer, 0.5),
            Line::of_median("connect-full", "nginx", Role::Peer, 500.0),
        ];
        compare(&mut lines);
        let ratios = lines.map(|line| line.ratio_to_tlsward);
        assert_eq!(ratios, [Some(1.0), Some(2.5), None]);
    }

    #[test]
    fn a_reason_is_given_once_for_all_the_workloads_that_it_is_about() {
        let out = |name, workload, reason: &str| LeftOut {
            name,
            workload,
            reason: reason.to_owned(),
        };
        let left_out = vec![
            out("envoy", None, "absent"),
            out("stunnel", Some("storm"), "it broke"),
            out("stunnel", Some("memory"), "it broke"),
            out("stunnel", Some("idle-busy"), "threads"),
        ];
        let report = Report::new(
            Conditions::example(),
            &[],
            left_out,
            &Budget::built_in().unwrap(),
        );
        assert_eq!(
            report.absences(),
            [
                "envoy: absent",
                "stunnel, not in storm, memory: it broke",
                "stunnel, not in idle-busy: threads"
            ]
        );
        assert!(report.within_budget());
    }

    #[test]
    fn a_run_in_which_tlsward_broke_is_not_within_budget() {
        let broke = LeftOut {
            name: "tlsward",
            workload: Some("storm"),
            reason: "it broke".to_owned(),
        };
        let budget = Budget::built_in().unwrap();
        assert!(!Report::new(Conditions::example(), &[], vec![broke], &budget).within_budget());
    }
}
