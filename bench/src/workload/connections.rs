//! New connections with one byte each way, some at a time.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;

use tokio::task::LocalSet;

use super::meter::metered;
use super::{Sample, World};
use crate::proxy::one_byte;

const AT_A_TIME: u64 = 32;

/// Connections, times the scale.
const CONNECTIONS: u64 = 1000;

/// Every handshake a full one.
pub(super) async fn full(world: &World<'_>, scale: u64) -> io::Result<Sample> {
    let sample = round(world, scale).await?;
    if sample.resumed > 0 {
        return Err(io::Error::other(format!(
            "{} handshakes were resumed where all should be full ones",
            sample.resumed
        )));
    }
    Ok(sample)
}

/// As many handshakes resumed as the proxy brings about; the share is reported beside the cost.
pub(super) async fn resumed(world: &World<'_>, scale: u64) -> io::Result<Sample> {
    let mut sample = round(world, scale).await?;
    let share = sample.resumed as f64 / sample.handshakes.max(1) as f64;
    sample.values.push(share * 100.0);
    Ok(sample)
}

async fn round(world: &World<'_>, scale: u64) -> io::Result<Sample> {
    let proxy = world.running.listen;
    let connections = CONNECTIONS * scale;
    // Also fills the proxy's ticket store, where it has one.
    all(proxy, AT_A_TIME * 4).await?;
    let sample = metered(world, all(proxy, connections), |cpu| {
        cpu * 1e6 / connections as f64
    })
    .await?;
    if sample.handshakes != connections {
        return Err(io::Error::other(format!(
            "{connections} connections made {} handshakes",
            sample.handshakes
        )));
    }
    Ok(sample)
}

async fn all(proxy: SocketAddr, connections: u64) -> io::Result<()> {
    let left = Rc::new(Cell::new(connections));
    let tasks = LocalSet::new();
    let callers: Vec<_> = (0..AT_A_TIME)
        .map(|_| {
            let left = Rc::clone(&left);
            tasks.spawn_local(async move {
                while let Some(rest) = left.get().checked_sub(1) {
                    left.set(rest);
                    one_byte(proxy).await?;
                }
                Ok::<_, io::Error>(())
            })
        })
        .collect();
    tasks
        .run_until(async {
            for caller in callers {
                caller.await.map_err(io::Error::other)??;
            }
            Ok(())
        })
        .await
}
