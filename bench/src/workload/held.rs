//! Very many connections on which nothing happens, all alive in the end.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::idle::{in_groups, open, settled};
use super::meter::Meter;
use super::{Form, Metrics, Sample, World};
use crate::upstream::command;

/// What [`round`] reports. MB are 1,000,000 bytes.
pub(super) const METRICS: Metrics = &[
    ("idle-10000-held", "connections"),
    ("idle-10000-share", "% of those opened"),
    ("idle-10000-memory", "MB"),
];

const WANTED: usize = 10_000;

/// Files that are open for other purposes, in the proxy and here; HAProxy counts generously.
const OTHER_FILES: u64 = 600;

/// Nothing happens for so long.
const IDLE: Duration = Duration::from_secs(10);

/// Ten thousand, or as many as the limit of open files allows.
pub(super) fn connections(form: Form) -> usize {
    let allowed = form.open_files.saturating_sub(OTHER_FILES) / 2;
    WANTED.min(usize::try_from(allowed).unwrap_or(WANTED))
}

pub(super) async fn round(world: &World<'_>, form: Form) -> io::Result<Sample> {
    let meter = Meter::start(world)?;
    let wanted = connections(form);
    let mut streams = Vec::new();
    open(world, &mut streams, wanted).await?;
    tokio::time::sleep(IDLE).await;
    let memory = settled(world).await?;
    let answered = in_groups(streams, |mut stream| async move {
        let mut byte = [command::ECHO];
        let answer = async {
            stream.write_all(&byte).await?;
            stream.read_exact(&mut byte).await
        };
        // A connection that is gone is a result here, and no reason to stop.
        let alive = answer.await.is_ok();
        Ok((alive, stream))
    });
    let held = answered.await?.iter().filter(|(alive, _)| *alive).count();
    let mut sample = meter.stop()?;
    sample.values = vec![
        held as f64,
        held as f64 / wanted as f64 * 100.0,
        memory / 1e6,
    ];
    Ok(sample)
}
