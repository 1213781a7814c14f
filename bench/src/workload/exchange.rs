//! Small requests and small answers on connections that stay open.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::{Sample, World, metered};
use crate::upstream::command;

const CONNECTIONS: usize = 64;
const MESSAGE: usize = 64;

/// Round trips of each connection, times the scale.
const ROUND_TRIPS: u64 = 400;

pub(super) async fn round(world: &World<'_>, scale: u64) -> io::Result<Sample> {
    let mut streams = Vec::new();
    for _ in 0..CONNECTIONS {
        let stream = TcpStream::connect(world.running.listen).await?;
        stream.set_nodelay(true)?;
        streams.push(stream);
    }
    let streams = all(streams, ROUND_TRIPS / 4).await?;
    let each = ROUND_TRIPS * scale;
    metered(
        world,
        async {
            all(streams, each).await?;
            Ok(())
        },
        |cpu| cpu * 1e6 / (each * CONNECTIONS as u64) as f64,
    )
    .await
}

async fn all(streams: Vec<TcpStream>, round_trips: u64) -> io::Result<Vec<TcpStream>> {
    let mut tasks = JoinSet::new();
    for mut stream in streams {
        tasks.spawn(async move {
            let message = [command::ECHO; MESSAGE];
            let mut answer = [0; MESSAGE];
            for _ in 0..round_trips {
                stream.write_all(&message).await?;
                stream.read_exact(&mut answer).await?;
            }
            Ok::<_, io::Error>(stream)
        });
    }
    tasks.join_all().await.into_iter().collect()
}
