//! Connections that have shaken hands and carry nothing.

use std::io;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::World;
use crate::upstream::Handshakes;

/// Handshakes under way at once.
const AT_A_TIME: usize = 32;

/// Until a proxy has done what no event tells of: freed a handshake's memory, closed a socket.
const SETTLE: Duration = Duration::from_millis(500);

/// Between looks at the upstream's counters, and how long they may stand still.
const POLL: Duration = Duration::from_millis(1);
const PATIENCE: Duration = Duration::from_secs(10);

/// User memory of the proxy once it has come to rest.
pub(super) async fn settled(world: &World<'_>) -> io::Result<f64> {
    tokio::time::sleep(SETTLE).await;
    Ok(world.running.processes().pss()? as f64)
}

/// Opens connections until there are `wanted`, all with their handshakes done.
pub(super) async fn open(
    world: &World<'_>,
    streams: &mut Vec<TcpStream>,
    wanted: usize,
) -> io::Result<()> {
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

/// Ends each connection in good order and waits for the proxy to do so too.
pub(super) async fn close(streams: Vec<TcpStream>) -> io::Result<()> {
    let closed = in_groups(streams, |mut stream| async move {
        stream.shutdown().await?;
        stream.read_to_end(&mut Vec::new()).await?;
        Ok(stream)
    });
    closed.await.map(drop)
}

/// Some at a time.
pub(super) async fn in_groups<T, F>(
    streams: Vec<TcpStream>,
    work: impl Fn(TcpStream) -> F,
) -> io::Result<Vec<T>>
where
    T: Send + 'static,
    F: Future<Output = io::Result<T>> + Send + 'static,
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
