//! Requests and answers of equal size on connections that stay open.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::meter::metered;
use super::{Sample, World};
use crate::upstream::command;

const CONNECTIONS: usize = 64;

/// Round trips of each connection, times the scale.
const SMALL_ROUND_TRIPS: u64 = 400;
const LARGE_ROUND_TRIPS: u64 = 200;

const SMALL: usize = 64;
/// The payload of one TLS record.
const LARGE: usize = 16 * 1024;

pub(super) async fn small(world: &World<'_>, scale: u64) -> io::Result<Sample> {
    round(world, SMALL, SMALL_ROUND_TRIPS, scale).await
}

pub(super) async fn large(world: &World<'_>, scale: u64) -> io::Result<Sample> {
    round(world, LARGE, LARGE_ROUND_TRIPS, scale).await
}

async fn round(
    world: &World<'_>,
    message: usize,
    round_trips: u64,
    scale: u64,
) -> io::Result<Sample> {
    let streams = open(world, CONNECTIONS, message).await?;
    let streams = all(streams, message, round_trips / 4).await?;
    let each = round_trips * scale;
    metered(
        world,
        async {
            all(streams, message, each).await?;
            Ok(())
        },
        |cpu| cpu * 1e6 / (each * CONNECTIONS as u64) as f64,
    )
    .await
}

/// Connections on which messages of one size are answered.
pub(super) async fn open(
    world: &World<'_>,
    connections: usize,
    message: usize,
) -> io::Result<Vec<TcpStream>> {
    let head = command::with_length(command::EXCHANGE, message as u64);
    let mut streams = Vec::new();
    for _ in 0..connections {
        let mut stream = TcpStream::connect(world.running.listen).await?;
        stream.set_nodelay(true)?;
        stream.write_all(&head).await?;
        streams.push(stream);
    }
    Ok(streams)
}

/// On all connections at once, each waiting for its answer before it asks again.
pub(super) async fn all(
    streams: Vec<TcpStream>,
    message: usize,
    round_trips: u64,
) -> io::Result<Vec<TcpStream>> {
    let mut tasks = JoinSet::new();
    for mut stream in streams {
        tasks.spawn(async move {
            let mut bytes = vec![0xa5; message];
            for _ in 0..round_trips {
                stream.write_all(&bytes).await?;
                stream.read_exact(&mut bytes).await?;
            }
            Ok::<_, io::Error>(stream)
        });
    }
    tasks.join_all().await.into_iter().collect()
}
