//! How long a small request takes at a fixed rate that no proxy is strained by.

use std::io;
use std::time::Duration;

use super::meter::Meter;
use super::openloop::{self, RATE, percentile};
use super::{Metrics, Sample, World};

/// What [`round`] reports; from the moment at which a request was meant to be sent.
pub(super) const METRICS: Metrics = &[
    ("latency-p50", "us"),
    ("latency-p99", "us"),
    ("latency-p99.9", "us"),
    ("latency-cpu", "us CPU/request"),
];

/// Times the scale.
const SECONDS: u64 = 2;

pub(super) async fn round(world: &World<'_>, scale: u64) -> io::Result<Sample> {
    let meter = Meter::start(world)?;
    let length = Duration::from_secs(SECONDS * scale);
    let latencies = latencies(world, length).await?;
    let mut sample = meter.stop()?;
    let requests = f64::from(RATE) * length.as_secs_f64();
    let cpu = if world.running.processes().ids().next().is_some() {
        sample.cpu.as_secs_f64() * 1e6 / requests
    } else {
        f64::NAN
    };
    sample.values = [500, 990, 999]
        .map(|per_mille| micros(percentile(&latencies, per_mille)))
        .to_vec();
    sample.values.push(cpu);
    Ok(sample)
}

/// Sorted; from a thread of its own, which keeps time better than the runtime's timers do.
pub(super) async fn latencies(world: &World<'_>, length: Duration) -> io::Result<Vec<Duration>> {
    let proxy = world.running.listen;
    let run = tokio::task::spawn_blocking(move || openloop::run(proxy, length));
    let mut latencies = run.await.map_err(io::Error::other)??;
    latencies.sort_unstable();
    Ok(latencies)
}

pub(super) fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}
