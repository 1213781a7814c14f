//! Two thousand callers in the same moment.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::{JoinHandle, JoinSet};

use super::idle::close;
use super::meter::Meter;
use super::{Metrics, Sample, World};
use crate::process::Processes;
use crate::upstream::command;

/// What [`round`] reports. MB are 1,000,000 bytes.
pub(super) const METRICS: Metrics = &[
    ("storm-connect", "us CPU/connection"),
    ("storm-peak-memory", "MB"),
    ("storm-time", "ms until all are answered"),
    ("storm-failures", "connections"),
];

pub(super) const CONNECTIONS: usize = 2000;

/// A caller who has no answer by then counts as failed: callers time out too.
const PATIENCE: Duration = Duration::from_secs(30);

/// Between looks at the proxy's memory.
const SAMPLING: Duration = Duration::from_millis(10);

pub(super) async fn round(world: &World<'_>) -> io::Result<Sample> {
    let proxy = world.running.listen;
    let peak = Peak::watch(world.running.processes().clone());
    let meter = Meter::start(world)?;
    let began = Instant::now();
    let mut callers = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let caller = async move {
            let mut stream = TcpStream::connect(proxy).await?;
            stream.set_nodelay(true)?;
            let mut byte = [command::ECHO];
            stream.write_all(&byte).await?;
            stream.read_exact(&mut byte).await?;
            Ok::<_, io::Error>(stream)
        };
        callers.spawn(tokio::time::timeout(PATIENCE, caller));
    }
    let answered: Vec<_> = callers
        .join_all()
        .await
        .into_iter()
        .filter_map(|outcome| outcome.ok()?.ok())
        .collect();
    let took = began.elapsed();
    let failures = CONNECTIONS - answered.len();
    close(answered).await?;
    let mut sample = meter.stop()?;
    sample.values = vec![
        sample.cpu.as_secs_f64() * 1e6 / CONNECTIONS as f64,
        peak.stop().await? as f64 / 1e6,
        took.as_secs_f64() * 1e3,
        failures as f64,
    ];
    Ok(sample)
}

/// Looks at the proxy's memory from a thread of its own: the runtime's is busy with the callers.
struct Peak {
    enough: Arc<AtomicBool>,
    watching: JoinHandle<io::Result<u64>>,
}

impl Peak {
    fn watch(processes: Processes) -> Self {
        let enough = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&enough);
        let watching = tokio::task::spawn_blocking(move || {
            let mut peak = 0;
            while !told.load(Ordering::Relaxed) {
                peak = peak.max(processes.pss()?);
                std::thread::sleep(SAMPLING);
            }
            Ok(peak)
        });
        Self { enough, watching }
    }

    async fn stop(mut self) -> io::Result<u64> {
        self.enough.store(true, Ordering::Relaxed);
        (&mut self.watching).await.map_err(io::Error::other)?
    }
}

impl Drop for Peak {
    /// Also where the round has failed.
    fn drop(&mut self) {
        self.enough.store(true, Ordering::Relaxed);
    }
}
