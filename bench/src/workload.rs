//! What a proxy is made to do, and what is read off it.

use std::io;
use std::time::{Duration, Instant};

use crate::process::Processes;
use crate::proxy::Running;
use crate::upstream::Upstream;

mod bulk;
mod connections;
mod exchange;
mod memory;

/// One kind of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Workload {
    BulkUp1,
    BulkUp8,
    BulkDown1,
    BulkDown8,
    Exchange,
    ConnectFull,
    ConnectResumed,
    Memory,
}

/// A proxy and its upstream, both serving.
pub(crate) struct World<'a> {
    pub(crate) running: &'a Running,
    pub(crate) upstream: &'a Upstream,
}

/// What one round showed.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    /// A value for each of [`Workload::metrics`], in that order.
    pub(crate) values: Vec<f64>,
    /// CPU time of the proxy while it was measured.
    pub(crate) cpu: Duration,
    pub(crate) wall: Duration,
    /// How long the proxy's threads waited for their CPU.
    pub(crate) waited: Duration,
    /// CPU time of generator and upstream, which share one CPU.
    pub(crate) generator: Duration,
    /// Handshakes that the upstream saw, and how many of them it resumed.
    pub(crate) handshakes: u64,
    pub(crate) resumed: u64,
}

/// Payload of the bulk workloads is counted in this unit.
const GIB: f64 = (1_u64 << 30) as f64;

impl Workload {
    pub(crate) const ALL: [Self; 8] = [
        Self::BulkUp1,
        Self::BulkUp8,
        Self::BulkDown1,
        Self::BulkDown8,
        Self::Exchange,
        Self::ConnectFull,
        Self::ConnectResumed,
        Self::Memory,
    ];

    /// A name for `--only`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::BulkUp1 => "bulk-up-1",
            Self::BulkUp8 => "bulk-up-8",
            Self::BulkDown1 => "bulk-down-1",
            Self::BulkDown8 => "bulk-down-8",
            Self::Exchange => "exchange-64",
            Self::ConnectFull => "connect-full",
            Self::ConnectResumed => "connect-resumed",
            Self::Memory => "memory",
        }
    }

    /// Names and units of what it measures.
    pub(crate) fn metrics(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::BulkUp1 => &[("bulk-up-1", "CPU-s/GiB")],
            Self::BulkUp8 => &[("bulk-up-8", "CPU-s/GiB")],
            Self::BulkDown1 => &[("bulk-down-1", "CPU-s/GiB")],
            Self::BulkDown8 => &[("bulk-down-8", "CPU-s/GiB")],
            Self::Exchange => &[("exchange-64", "us CPU/round trip")],
            Self::ConnectFull => &[("connect-full", "us CPU/connection")],
            Self::ConnectResumed => &[
                ("connect-resumed", "us CPU/connection"),
                ("resumed-share", "%"),
            ],
            Self::Memory => memory::METRICS,
        }
    }

    /// The upstream gives tickets and the proxy uses them.
    pub(crate) fn resumes(self) -> bool {
        self == Self::ConnectResumed
    }

    /// Every round needs a proxy that has done nothing yet.
    pub(crate) fn needs_fresh_proxy(self) -> bool {
        self == Self::Memory
    }

    /// Rounds that are worth taking of `wanted`: memory hardly varies, and takes long.
    pub(crate) fn rounds(self, wanted: usize) -> usize {
        match self {
            Self::Memory => wanted.div_ceil(3),
            _ => wanted,
        }
    }

    /// One round. In a quick one the proxy's CPU time is at least about a third of a second, of
    /// which a tick of /proc is 3 %; otherwise more than a second.
    ///
    /// # Errors
    /// A connection broke, or the upstream saw other handshakes than it should.
    pub(crate) async fn round(self, world: &World<'_>, quick: bool) -> io::Result<Sample> {
        let scale = if quick { 1 } else { 3 };
        match self {
            Self::BulkUp1 => bulk::round(world, bulk::Way::Up, 1, scale).await,
            Self::BulkUp8 => bulk::round(world, bulk::Way::Up, 8, scale).await,
            Self::BulkDown1 => bulk::round(world, bulk::Way::Down, 1, scale).await,
            Self::BulkDown8 => bulk::round(world, bulk::Way::Down, 8, scale).await,
            Self::Exchange => exchange::round(world, scale).await,
            Self::ConnectFull => connections::full(world, scale).await,
            Self::ConnectResumed => connections::resumed(world, scale).await,
            Self::Memory => memory::round(world).await,
        }
    }
}

/// Measures the proxy while `work` goes on; `per` turns CPU seconds into the metric.
async fn metered(
    world: &World<'_>,
    work: impl Future<Output = io::Result<()>>,
    per: impl Fn(f64) -> f64,
) -> io::Result<Sample> {
    let processes = world.running.processes();
    let handshakes = world.upstream.handshakes();
    let waited = processes.waited()?;
    let cpu = processes.cpu()?;
    let bench = Processes::myself();
    let generator = bench.cpu()?;
    let began = Instant::now();
    work.await?;
    let wall = began.elapsed();
    let cpu = processes.cpu()? - cpu;
    let waited = processes.waited()?.saturating_sub(waited);
    let handshakes = world.upstream.handshakes().since(handshakes);
    if handshakes.failed > 0 {
        return Err(io::Error::other(format!(
            "{} handshakes failed at the upstream",
            handshakes.failed
        )));
    }
    Ok(Sample {
        values: vec![per(cpu.as_secs_f64())],
        cpu,
        wall,
        waited,
        generator: bench.cpu()? - generator,
        handshakes: handshakes.done(),
        resumed: handshakes.resumed,
    })
}
