//! Does a connection cost more because there are others on which nothing happens?

use std::io;

use super::idle::{close, open};
use super::meter::{Meter, metered};
use super::{Metrics, Sample, World, exchange};

/// What [`round`] reports.
pub(super) const METRICS: Metrics = &[
    ("busy-alone", "us CPU/round trip"),
    ("busy-among-idle", "us CPU/round trip"),
    ("idle-busy-ratio", "among idle / alone"),
];

pub(super) const IDLE: usize = 1000;
pub(super) const BUSY: usize = 10;

const MESSAGE: usize = 64;

/// Round trips of each busy connection, times the scale.
const ROUND_TRIPS: u64 = 2400;

/// Half of the busy time alone, then among idle connections, then the other half alone: so that a
/// machine which becomes slower or faster meanwhile does not look like an effect.
pub(super) async fn round(world: &World<'_>, scale: u64) -> io::Result<Sample> {
    let each = ROUND_TRIPS * scale;
    let whole = Meter::start(world)?;
    let before = busy(world, each / 2).await?;
    let mut idle = Vec::new();
    open(world, &mut idle, IDLE).await?;
    let among = busy(world, each).await?;
    close(idle).await?;
    let after = busy(world, each / 2).await?;
    let alone = f64::midpoint(before, after);
    let mut sample = whole.stop()?;
    sample.values = vec![alone, among, among / alone];
    Ok(sample)
}

async fn busy(world: &World<'_>, round_trips: u64) -> io::Result<f64> {
    let streams = exchange::open(world, BUSY, MESSAGE).await?;
    let streams = exchange::all(streams, MESSAGE, round_trips / 10).await?;
    let work = async {
        exchange::all(streams, MESSAGE, round_trips).await?;
        Ok(())
    };
    let sample = metered(world, work, |cpu| {
        cpu * 1e6 / (round_trips * BUSY as u64) as f64
    });
    Ok(sample.await?.values[0])
}
