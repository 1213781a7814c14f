//! What a proxy is made to do, and what is read off it.

use std::io;
use std::time::Duration;

use crate::proxy::{Role, Running};
use crate::upstream::Upstream;

mod admin;
mod bulk;
mod busy;
mod connections;
mod exchange;
mod held;
mod idle;
mod latency;
mod memory;
mod meter;
mod openloop;
mod storm;

/// One kind of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Workload {
    BulkUp1,
    BulkUp8,
    BulkDown1,
    BulkDown8,
    BulkUp200,
    BulkDown200,
    Exchange,
    ExchangeLarge,
    Latency,
    LatencyAdmin,
    ConnectFull,
    ConnectResumed,
    Storm,
    IdleBusy,
    Memory,
    Held,
}

/// How much of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Form {
    pub(crate) quick: bool,
    /// Each connection takes two, here and in the proxy.
    pub(crate) open_files: u64,
}

/// A proxy and its upstream, both serving.
pub(crate) struct World<'a> {
    pub(crate) running: &'a Running,
    pub(crate) upstream: &'a Upstream,
}

/// What one round showed.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    /// A value for each of [`Workload::metrics`], in that order; not a number where there is
    /// nothing to measure.
    pub(crate) values: Vec<f64>,
    /// CPU time of the proxy while it was measured.
    pub(crate) cpu: Duration,
    pub(crate) wall: Duration,
    /// How long the proxy's threads waited for their CPU while others used it.
    pub(crate) waited: Duration,
    /// CPU time of generator and upstream, which share one CPU.
    pub(crate) generator: Duration,
    /// Handshakes that the upstream saw, and how many of them it resumed.
    pub(crate) handshakes: u64,
    pub(crate) resumed: u64,
}

/// Names and units.
pub(crate) type Metrics = &'static [(&'static str, &'static str)];

/// Payload of the bulk workloads is counted in this unit.
const GIB: f64 = (1_u64 << 30) as f64;

impl Workload {
    pub(crate) const ALL: [Self; 16] = [
        Self::BulkUp1,
        Self::BulkUp8,
        Self::BulkDown1,
        Self::BulkDown8,
        Self::BulkUp200,
        Self::BulkDown200,
        Self::Exchange,
        Self::ExchangeLarge,
        Self::Latency,
        Self::LatencyAdmin,
        Self::ConnectFull,
        Self::ConnectResumed,
        Self::Storm,
        Self::IdleBusy,
        Self::Memory,
        Self::Held,
    ];

    /// A name for `--only`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::BulkUp1 => "bulk-up-1",
            Self::BulkUp8 => "bulk-up-8",
            Self::BulkDown1 => "bulk-down-1",
            Self::BulkDown8 => "bulk-down-8",
            Self::BulkUp200 => "bulk-up-200",
            Self::BulkDown200 => "bulk-down-200",
            Self::Exchange => "exchange-64",
            Self::ExchangeLarge => "exchange-16k",
            Self::Latency => "latency",
            Self::LatencyAdmin => "latency-admin",
            Self::ConnectFull => "connect-full",
            Self::ConnectResumed => "connect-resumed",
            Self::Storm => "storm",
            Self::IdleBusy => "idle-busy",
            Self::Memory => "memory",
            Self::Held => "idle-10000",
        }
    }

    /// Names and units of what it measures.
    pub(crate) fn metrics(self) -> Metrics {
        match self {
            Self::BulkUp1 => &[("bulk-up-1", "CPU-s/GiB")],
            Self::BulkUp8 => &[("bulk-up-8", "CPU-s/GiB")],
            Self::BulkDown1 => &[("bulk-down-1", "CPU-s/GiB")],
            Self::BulkDown8 => &[("bulk-down-8", "CPU-s/GiB")],
            Self::BulkUp200 => &[("bulk-up-200", "CPU-s/GiB")],
            Self::BulkDown200 => &[("bulk-down-200", "CPU-s/GiB")],
            Self::Exchange => &[("exchange-64", "us CPU/round trip")],
            Self::ExchangeLarge => &[("exchange-16k", "us CPU/round trip")],
            Self::Latency => latency::METRICS,
            Self::LatencyAdmin => admin::METRICS,
            Self::ConnectFull => &[("connect-full", "us CPU/connection")],
            Self::ConnectResumed => &[
                ("connect-resumed", "us CPU/connection"),
                ("resumed-share", "%"),
            ],
            Self::Storm => storm::METRICS,
            Self::IdleBusy => busy::METRICS,
            Self::Memory => memory::METRICS,
            Self::Held => held::METRICS,
        }
    }

    pub(crate) fn is_bulk(self) -> bool {
        matches!(
            self,
            Self::BulkUp1
                | Self::BulkUp8
                | Self::BulkUp200
                | Self::BulkDown1
                | Self::BulkDown8
                | Self::BulkDown200
        )
    }

    /// The quick form has it too; the others tell little that is not in these.
    pub(crate) fn is_in_quick(self) -> bool {
        !matches!(
            self,
            Self::BulkUp1
                | Self::BulkDown1
                | Self::BulkUp200
                | Self::BulkDown200
                | Self::ExchangeLarge
                | Self::Held
        )
    }

    /// It measures what only tlsward has.
    pub(crate) fn is_only_for(self) -> Option<Role> {
        (self == Self::LatencyAdmin).then_some(Role::Subject)
    }

    /// The upstream gives tickets and the proxy uses them.
    pub(crate) fn resumes(self) -> bool {
        self == Self::ConnectResumed
    }

    /// Every round needs a proxy that has done nothing yet, and no other beside it: proxies share
    /// the pages of libraries, and PSS divides those by the number of those who share.
    pub(crate) fn needs_fresh_proxy(self) -> bool {
        matches!(self, Self::Storm | Self::Memory | Self::Held)
    }

    /// Callers at once, at most.
    pub(crate) fn connections(self, form: Form) -> usize {
        match self {
            Self::Storm => storm::CONNECTIONS,
            Self::IdleBusy => busy::IDLE + busy::BUSY,
            Self::Memory => memory::connections(form),
            Self::Held => held::connections(form),
            _ => 128,
        }
    }

    /// Rounds that are worth taking of `wanted`: memory hardly varies, and takes long.
    pub(crate) fn rounds(self, wanted: usize) -> usize {
        match self {
            Self::Memory => wanted.div_ceil(3),
            // A round has several measurements, or takes long.
            Self::Latency | Self::LatencyAdmin | Self::Storm | Self::IdleBusy => wanted.div_ceil(2),
            Self::Held => 1,
            _ => wanted,
        }
    }

    /// One round. In a quick one the proxy's CPU time is some tenths of a second: enough for exact
    /// counters, but of one that starts a thread for each connection only ticks are known, and one
    /// of those is then 5 %.
    ///
    /// # Errors
    /// A connection broke, or the upstream saw other handshakes than it should.
    pub(crate) async fn round(self, world: &World<'_>, form: Form) -> io::Result<Sample> {
        let scale = if form.quick { 1 } else { 3 };
        match self {
            Self::BulkUp1 => bulk::round(world, bulk::Way::Up, 1, scale).await,
            Self::BulkUp8 => bulk::round(world, bulk::Way::Up, 8, scale).await,
            Self::BulkDown1 => bulk::round(world, bulk::Way::Down, 1, scale).await,
            Self::BulkDown8 => bulk::round(world, bulk::Way::Down, 8, scale).await,
            Self::BulkUp200 => bulk::round(world, bulk::Way::Up, 200, scale).await,
            Self::BulkDown200 => bulk::round(world, bulk::Way::Down, 200, scale).await,
            Self::Exchange => exchange::small(world, scale).await,
            Self::ExchangeLarge => exchange::large(world, scale).await,
            Self::Latency => latency::round(world, scale).await,
            Self::LatencyAdmin => admin::round(world, scale).await,
            Self::ConnectFull => connections::full(world, scale).await,
            Self::ConnectResumed => connections::resumed(world, scale).await,
            Self::Storm => storm::round(world).await,
            Self::IdleBusy => busy::round(world, scale).await,
            Self::Memory => memory::round(world, form).await,
            Self::Held => held::round(world, form).await,
        }
    }
}
