//! Do a scrape and a reload delay traffic?

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::MissedTickBehavior;

use super::latency::{latencies, micros};
use super::meter::Meter;
use super::openloop::percentile;
use super::{Metrics, Sample, World};

/// What [`round`] reports.
pub(super) const METRICS: Metrics = &[
    ("latency-p99-alone", "us"),
    ("latency-p99-scraped", "us"),
    ("latency-p99-reloading", "us"),
    ("scraped-ratio", "p99 scraped / alone"),
    ("reloading-ratio", "p99 reloading / alone"),
];

/// Times the scale.
const SECONDS: u64 = 2;

/// Many times what Prometheus asks for.
const SCRAPES: (&str, Duration) = ("GET /metrics", Duration::from_millis(100));
const RELOADS: (&str, Duration) = ("POST /reload", Duration::from_millis(500));

/// Half of the time alone comes before and half after, so that a machine which becomes slower or
/// faster meanwhile does not look like an effect.
pub(super) async fn round(world: &World<'_>, scale: u64) -> io::Result<Sample> {
    let admin = world.running.admin.ok_or(io::ErrorKind::AddrNotAvailable)?;
    let length = Duration::from_secs(SECONDS * scale);
    let meter = Meter::start(world)?;
    let mut alone = latencies(world, length / 2).await?;
    let scraped = beside(admin, SCRAPES, latencies(world, length)).await?;
    let reloading = beside(admin, RELOADS, latencies(world, length)).await?;
    alone.extend(latencies(world, length / 2).await?);
    alone.sort_unstable();
    let mut sample = meter.stop()?;
    let [alone, scraped, reloading] =
        [alone, scraped, reloading].map(|sorted| micros(percentile(&sorted, 990)));
    sample.values = vec![
        alone,
        scraped,
        reloading,
        scraped / alone,
        reloading / alone,
    ];
    Ok(sample)
}

/// Asks again and again while `work` goes on; a refusal ends both.
async fn beside<T>(
    admin: SocketAddr,
    (request, interval): (&str, Duration),
    work: impl Future<Output = io::Result<T>>,
) -> io::Result<T> {
    let asking = async {
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if let Err(error) = ask(admin, request).await {
                return io::Error::new(error.kind(), format!("{request}: {error}"));
            }
        }
    };
    tokio::select! {
        done = work => done,
        error = asking => Err(error),
    }
}

async fn ask(admin: SocketAddr, request: &str) -> io::Result<()> {
    let mut stream = TcpStream::connect(admin).await?;
    let head = format!("{request} HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    if answer.starts_with(b"HTTP/1.1 200 ") {
        return Ok(());
    }
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.lines().next().unwrap_or("no answer");
    Err(io::Error::other(status.to_owned()))
}
