//! User memory of connections on which nothing happens.

use std::io;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::bulk;
use super::{Sample, World};
use crate::process::Processes;
use crate::upstream::Handshakes;

/// What [`round`] reports. KB are 1,000 bytes and MB 1,000,000.
pub(super) const METRICS: &[(&str, &str)] = &[
    ("base-memory", "MB"),
    ("idle-memory", "KB/connection"),
    ("idle-memory-after-transfer", "KB/connection"),
    ("memory-after-close", "MB"),
];

/// The cost of a connection is the slope between these two: what the first connections make the
/// proxy allocate once is in both.
const SOME: usize = 1000;
const MANY: usize = 5000;

/// One transfer of each connection, each way.
const TRANSFER: u64 = 64 * 1024;

/// Handshakes under way at once.
const AT_A_TIME: usize = 32;

/// Until a proxy has done what no event tells of: freed a handshake's memory, closed a socket.
const SETTLE: Duration = Duration::from_millis(500);

/// Between looks at the upstream's counters, and how long they may stand still.
const POLL: Duration = Duration::from_millis(1);
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) async fn round(world: &World<'_>) -> io::Result<Sample> {
    let processes = world.running.processes();
    let began = Instant::now();
    let (cpu, waited) = (processes.cpu()?, processes.waited()?);
    let handshakes = world.upstream.handshakes();
    let bench = Processes::myself();
    let generator = bench.cpu()?;

    let none = settled(world).await?;
    let mut streams = Vec::new();
    open(world, &mut streams, SOME).await?;
    let some = settled(world).await?;
    open(world, &mut streams, MANY).await?;
    let many = settled(world).await?;
    let streams = transfer(streams).await?;
    let transferred = settled(world).await?;
    close(streams).await?;
    let closed = settled(world).await?;

    let idle = (many - some) / (MANY - SOME) as f64;
    let grown = (transferred - many) / MANY as f64;
    let handshakes = world.upstream.handshakes().since(handshakes);
    Ok(Sample {
        values: vec![none / 1e6, idle / 1e3, (idle + grown) / 1e3, closed / 1e6],
        cpu: processes.cpu()? - cpu,
        wall: began.elapsed(),
        waited: processes.waited()?.saturating_sub(waited),
        generator: bench.cpu()? - generator,
        handshakes: handshakes.done(),
        resumed: handshakes.resumed,
    })
}

async fn settled(world: &World<'_>) -> io::Result<f64> {
    tokio::time::sleep(SETTLE).await;
    Ok(world.running.processes().pss()? as f64)
}

/// Opens connections until there are `wanted`, all with their handshakes done.
async fn open(world: &World<'_>, streams: &mut Vec<TcpStream>, wanted: usize) -> io::Result<()> {
    let before = world.upstream.handshakes();
    let first = streams.len();
    while streams.len() < wanted {
        streams.push(TcpStream::connect(world.running.listen).await?);
        let opened = streams.len() - first;
        shaken(world, before, opened.saturating_sub(AT_A_TIME)).await?;
    }
    shaken(world, before, wanted - first).await
}

async fn shaken(world: &World<'_>, before: Handshakes, wanted: usize) -> io::Result<()> {
    let began = Instant::now();
    loop {
        let now = world.upstream.handshakes().since(before);
        if now.failed > 0 {
            return Err(io::Error::other("a handshake failed at the upstream"));
        }
        if now.done() >= wanted as u64 {
            return Ok(());
        }
        if began.elapsed() > PATIENCE {
            return Err(io::Error::other(format!(
                "{} of {wanted} handshakes done after {PATIENCE:?}",
                now.done()
            )));
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn transfer(streams: Vec<TcpStream>) -> io::Result<Vec<TcpStream>> {
    in_groups(streams, |mut stream| async move {
        bulk::send(&mut stream, TRANSFER).await?;
        bulk::receive(&mut stream, TRANSFER).await?;
        Ok(stream)
    })
    .await
}

/// Ends each connection in good order and waits for the proxy to do so too.
async fn close(streams: Vec<TcpStream>) -> io::Result<()> {
    let closed = in_groups(streams, |mut stream| async move {
        stream.shutdown().await?;
        stream.read_to_end(&mut Vec::new()).await?;
        Ok(stream)
    });
    closed.await.map(drop)
}

async fn in_groups<F>(
    streams: Vec<TcpStream>,
    work: impl Fn(TcpStream) -> F,
) -> io::Result<Vec<TcpStream>>
where
    F: Future<Output = io::Result<TcpStream>> + Send + 'static,
{
    let mut waiting = streams.into_iter();
    let mut done = Vec::new();
    let mut tasks = JoinSet::new();
    loop {
        while tasks.len() < AT_A_TIME {
            match waiting.next() {
                Some(stream) => tasks.spawn(work(stream)),
                None => break,
            };
        }
        match tasks.join_next().await {
            Some(ended) => done.push(ended.map_err(io::Error::other)??),
            None => return Ok(done),
        }
    }
}
