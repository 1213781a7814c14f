//! Rounds made into results: medians, a table for people, JSON for programs.

use std::fmt::Write as _;

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use crate::budget::Budget;
use crate::machine::Facts;
use crate::workload::{Sample, Workload};

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
    pub(crate) rounds: Vec<Round>,
}

/// One line of the table.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Line {
    pub(crate) metric: &'static str,
    pub(crate) proxy: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
    /// All rounds, in order, slow ones too.
    pub(crate) values: Vec<f64>,
    pub(crate) limit: Option<f64>,
    /// The median is not above the limit.
    pub(crate) met: Option<bool>,
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
    pub(crate) proxies: Vec<String>,
}

/// The whole of a run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) conditions: Conditions,
    pub(crate) lines: Vec<Line>,
    /// CPU-s/GiB of a plain copy beside the rounds: least, median, most.
    pub(crate) plain_copy: [f64; 3],
    /// One-minute load average: lowest, median, highest.
    pub(crate) load: [f64; 3],
}

impl Report {
    pub(crate) fn new(conditions: Conditions, series: &[Series], budget: &Budget) -> Self {
        let rounds = || series.iter().flat_map(|series| &series.rounds);
        let plain_copy = spread(rounds().map(|round| round.plain_copy));
        let load = spread(rounds().map(|round| round.load));
        let lines = series
            .iter()
            .flat_map(|series| lines_of(series, plain_copy[1], budget))
            .collect();
        Self {
            conditions,
            lines,
            plain_copy,
            load,
        }
    }

    /// No limit is exceeded.
    pub(crate) fn within_budget(&self) -> bool {
        self.lines.iter().all(|line| line.met != Some(false))
    }

    /// For people.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        self.conditions.describe(&mut text);
        let [cheapest, median, dearest] = self.plain_copy;
        let [low, usual, high] = self.load;
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "plain copy   {cheapest:.3} / {median:.3} / {dearest:.3} CPU-s/GiB without TLS, the floor of this run (least / median / most)\nload         {low:.2} / {usual:.2} / {high:.2}\n"
        );
        let _ = writeln!(text, "{}", self.table());
        let missed: Vec<_> = self.lines.iter().filter(|l| l.met == Some(false)).collect();
        if missed.is_empty() {
            let _ = writeln!(text, "\nEvery limit of bench/budget.toml is met.");
        }
        for line in missed {
            let _ = writeln!(
                text,
                "\nOver the limit: {} {:.3} {}, limit {:.3}",
                line.metric,
                line.median,
                line.unit,
                line.limit.unwrap_or_default()
            );
        }
        text
    }

    fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header([
            "metric",
            "proxy",
            "median",
            "min",
            "max",
            "unit",
            "limit",
            "met",
            "busy",
            "waited",
            "generator",
            "resumed",
            "rounds",
        ]);
        for line in &self.lines {
            table.add_row([
                line.metric.to_owned(),
                line.proxy.to_owned(),
                number(line.median),
                number(line.min),
                number(line.max),
                line.unit.to_owned(),
                line.limit.map_or_else(String::new, number),
                match line.met {
                    Some(true) => "yes",
                    Some(false) => "NO",
                    None => "",
                }
                .to_owned(),
                format!("{:.0} %", line.busy_percent),
                format!("{:.0} %", line.waited_percent),
                format!("{:.0} %", line.generator_percent),
                line.resumed_percent
                    .map_or_else(String::new, |percent| format!("{percent:.0} %")),
                if line.disturbed {
                    format!("{} (disturbed)", line.rounds)
                } else {
                    format!("{}/{}", line.rounds_used, line.rounds)
                },
            ]);
        }
        for column in [2, 3, 4, 6, 8, 9, 10, 11, 12] {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        table
    }
}

impl Conditions {
    fn describe(&self, text: &mut String) {
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
            proxies,
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
        let lines = [
            ("proxies", proxies.join(", ")),
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
                    "server {server_chain_bytes} bytes, client {client_chain_bytes} bytes, 2 certificates each"
                ),
            ),
            ("resumption", (*resumption).to_owned()),
            (
                "rounds",
                format!("{rounds} ({size}), after a warm-up each; up to {open_files} open files"),
            ),
        ];
        for (name, value) in lines {
            let _ = writeln!(text, "{name:<12} {value}");
        }
    }
}

fn lines_of(series: &Series, usual_copy: f64, budget: &Budget) -> Vec<Line> {
    let Series {
        workload,
        proxy,
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
        .map(|(n, (metric, unit))| {
            let [min, median, max] = spread(used.iter().map(|round| round.sample.values[n]));
            let limit = budget.limit(metric).filter(|_| *proxy == "tlsward");
            Line {
                metric,
                proxy,
                unit,
                median,
                min,
                max,
                values: rounds.iter().map(|round| round.sample.values[n]).collect(),
                limit,
                met: limit.map(|limit| median <= limit),
                busy_percent: cpu / wall * 100.0,
                waited_percent: waited / cpu * 100.0,
                resumed_percent: (handshakes > 0.0).then(|| resumed / handshakes * 100.0),
                generator_percent: generator / wall * 100.0,
                disturbed,
                rounds_used: used.len(),
                rounds: rounds.len(),
            }
        })
        .collect()
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
            rounds: rounds.iter().map(|(v, c, w)| round(*v, *c, *w)).collect(),
        };
        let budget = Budget::built_in().expect("the file is well-formed");
        lines_of(&series, 0.16, &budget).remove(0)
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
    fn a_limit_is_met_by_the_median_and_up_to_its_value() {
        assert_eq!(
            line(&[(0.5, 0.16, 0), (0.5, 0.16, 0), (0.9, 0.16, 0)]).met,
            Some(true)
        );
        assert_eq!(
            line(&[(0.5, 0.16, 0), (0.51, 0.16, 0), (0.9, 0.16, 0)]).met,
            Some(false)
        );
    }
}
