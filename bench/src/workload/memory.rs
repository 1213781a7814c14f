//! User memory of connections on which nothing happens.

use std::io;
use std::time::Duration;

use tokio::net::TcpStream;

use super::idle::{close, in_groups, open, settled};
use super::meter::Meter;
use super::{Form, Metrics, Sample, World, bulk};

/// What [`round`] reports. KB are 1,000 bytes and MB 1,000,000.
pub(super) const METRICS: Metrics = &[
    ("base-memory", "MB"),
    ("idle-memory", "KB/connection"),
    ("idle-memory-after-transfer", "KB/connection"),
    ("memory-after-close", "MB"),
    ("memory-15s-after-close", "MB"),
];

/// The cost of a connection is the slope between two numbers of them: what the first connections
/// make the proxy allocate once is in both.
fn some_and_many(form: Form) -> (usize, usize) {
    if form.quick {
        (500, 2000)
    } else {
        (1000, 5000)
    }
}

/// One transfer of each connection, each way.
const TRANSFER: u64 = 64 * 1024;

/// Longer than allocators take to give back what they keep for the next burst.
const LATER: Duration = Duration::from_secs(15);

pub(super) fn connections(form: Form) -> usize {
    some_and_many(form).1
}

pub(super) async fn round(world: &World<'_>, form: Form) -> io::Result<Sample> {
    let (few, all) = some_and_many(form);
    let meter = Meter::start(world)?;
    let none = settled(world).await?;
    let mut streams = Vec::new();
    open(world, &mut streams, few).await?;
    let some = settled(world).await?;
    open(world, &mut streams, all).await?;
    let many = settled(world).await?;
    let streams = transfer(streams).await?;
    let transferred = settled(world).await?;
    close(streams).await?;
    let closed = settled(world).await?;
    let mut sample = meter.stop()?;
    let later = if form.quick {
        f64::NAN
    } else {
        tokio::time::sleep(LATER).await;
        settled(world).await?
    };

    let idle = (many - some) / (all - few) as f64;
    let grown = (transferred - many) / all as f64;
    sample.values = vec![
        none / 1e6,
        idle / 1e3,
        (idle + grown) / 1e3,
        closed / 1e6,
        later / 1e6,
    ];
    Ok(sample)
}

async fn transfer(streams: Vec<TcpStream>) -> io::Result<Vec<TcpStream>> {
    in_groups(streams, |mut stream| async move {
        bulk::send(&mut stream, TRANSFER).await?;
        bulk::receive(&mut stream, TRANSFER).await?;
        Ok(stream)
    })
    .await
}
