//! What of a run is worth showing to somebody who was not there.

/// A metric in words.
pub(super) struct Headline {
    pub(super) metric: &'static str,
    pub(super) title: &'static str,
    pub(super) unit: &'static str,
    /// It has a place in the picture.
    pub(super) drawn: bool,
}

/// In the order in which they are shown. All of them are the better the smaller they are, but for
/// the share of resumed handshakes.
pub(super) const HEADLINES: [Headline; 22] = [
    drawn(
        "bulk-up-8",
        "Bulk to the upstream, 8 connections",
        "CPU-s/GiB",
    ),
    drawn(
        "bulk-down-8",
        "Bulk from the upstream, 8 connections",
        "CPU-s/GiB",
    ),
    listed(
        "bulk-up-1",
        "Bulk to the upstream, 1 connection",
        "CPU-s/GiB",
    ),
    listed(
        "bulk-down-1",
        "Bulk from the upstream, 1 connection",
        "CPU-s/GiB",
    ),
    drawn("connect-full", "New connection, full handshake", "us CPU"),
    drawn(
        "connect-resumed",
        "New connection, tickets offered",
        "us CPU",
    ),
    listed("resumed-share", "of which were resumed", "%"),
    drawn("exchange-64", "Round trip of 64 bytes", "us CPU"),
    drawn("exchange-16k", "Round trip of 16 KiB", "us CPU"),
    listed("latency-p50", "Latency at 2,000 requests/s, median", "us"),
    drawn("latency-p99", "Latency at 2,000 requests/s, p99", "us"),
    listed("latency-p99.9", "Latency at 2,000 requests/s, p99.9", "us"),
    listed(
        "scraped-ratio",
        "p99 while scraped 10 times a second",
        "x p99 alone",
    ),
    listed(
        "reloading-ratio",
        "p99 while reloaded twice a second",
        "x p99 alone",
    ),
    drawn("idle-memory", "Memory of an idle connection", "KB"),
    listed(
        "idle-memory-after-transfer",
        "the same, after 64 KiB each way",
        "KB",
    ),
    listed(
        "base-memory",
        "Memory after a first connection, before all others",
        "MB",
    ),
    listed(
        "memory-15s-after-close",
        "Memory 15 s after all have closed",
        "MB",
    ),
    listed(
        "idle-busy-ratio",
        "10 busy connections among 1,000 idle",
        "x alone",
    ),
    listed("storm-connect", "2,000 connections at once", "us CPU each"),
    listed(
        "storm-peak-memory",
        "2,000 connections at once, peak memory",
        "MB",
    ),
    listed(
        "storm-time",
        "2,000 connections at once, until all answered",
        "ms",
    ),
];

const fn drawn(metric: &'static str, title: &'static str, unit: &'static str) -> Headline {
    Headline {
        metric,
        title,
        unit,
        drawn: true,
    }
}

const fn listed(metric: &'static str, title: &'static str, unit: &'static str) -> Headline {
    Headline {
        metric,
        title,
        unit,
        drawn: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::Workload;

    #[test]
    fn every_headline_is_of_a_metric_that_some_workload_reports() {
        let reported: Vec<_> = Workload::ALL.iter().flat_map(|w| w.metrics()).collect();
        for Headline { metric, .. } in &HEADLINES {
            assert!(reported.iter().any(|(name, _)| name == metric), "{metric}");
        }
    }
}
