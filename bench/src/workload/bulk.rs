//! Much data one way.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::meter::metered;
use super::{GIB, Sample, World};
use crate::upstream::command;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Up,
    Down,
}

/// Bytes of all connections together, times the scale.
const VOLUME: u64 = 512 << 20;

/// Before each round, by each connection: fills socket buffers to the size that the kernel's
/// autotuning gives them, and faults in the proxy's buffers.
const WARM_UP: u64 = 64 << 20;

/// The generator's own batch: large, so that the proxy shows its batching and not this one.
const BATCH: usize = 256 * 1024;

pub(super) async fn round(
    world: &World<'_>,
    way: Way,
    connections: usize,
    scale: u64,
) -> io::Result<Sample> {
    let mut streams = Vec::new();
    for _ in 0..connections {
        streams.push(TcpStream::connect(world.running.listen).await?);
    }
    let streams = all(streams, way, WARM_UP / connections as u64).await?;
    let each = VOLUME * scale / connections as u64;
    let total = (each * connections as u64) as f64 / GIB;
    metered(
        world,
        async {
            all(streams, way, each).await?;
            Ok(())
        },
        |cpu| cpu / total,
    )
    .await
}

async fn all(streams: Vec<TcpStream>, way: Way, bytes: u64) -> io::Result<Vec<TcpStream>> {
    let mut tasks = JoinSet::new();
    for mut stream in streams {
        tasks.spawn(async move {
            match way {
                Way::Up => send(&mut stream, bytes).await?,
                Way::Down => receive(&mut stream, bytes).await?,
            }
            Ok::<_, io::Error>(stream)
        });
    }
    tasks.join_all().await.into_iter().collect()
}

/// Returns when the upstream has said that it has everything.
pub(super) async fn send(stream: &mut TcpStream, bytes: u64) -> io::Result<()> {
    let buffer = vec![0xa5; BATCH.min(bytes as usize)];
    stream
        .write_all(&command::with_length(command::TAKE, bytes))
        .await?;
    let mut left = bytes as usize;
    while left > 0 {
        let batch = left.min(buffer.len());
        stream.write_all(&buffer[..batch]).await?;
        left -= batch;
    }
    let mut answer = [0];
    stream.read_exact(&mut answer).await?;
    Ok(())
}

pub(super) async fn receive(stream: &mut TcpStream, bytes: u64) -> io::Result<()> {
    let mut buffer = vec![0; BATCH.min(bytes as usize)];
    stream
        .write_all(&command::with_length(command::GIVE, bytes))
        .await?;
    let mut left = bytes as usize;
    while left > 0 {
        let batch = left.min(buffer.len());
        match stream.read(&mut buffer[..batch]).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => left -= n,
        }
    }
    Ok(())
}
