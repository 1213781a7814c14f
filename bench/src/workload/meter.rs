//! What a proxy uses between two moments.

use std::io;
use std::time::{Duration, Instant};

use super::{Sample, World};
use crate::machine;
use crate::process::{Processes, Reading};
use crate::upstream::Handshakes;

/// Runs from [`Meter::start`] to [`Meter::stop`].
pub(super) struct Meter<'a> {
    world: &'a World<'a>,
    handshakes: Handshakes,
    busy: Duration,
    generator: Duration,
    reading: Reading,
    began: Instant,
}

impl<'a> Meter<'a> {
    pub(super) fn start(world: &'a World<'a>) -> io::Result<Self> {
        let processes = world.running.processes();
        Ok(Self {
            world,
            handshakes: world.upstream.handshakes(),
            busy: machine::busy(machine::PROXY_CPU)?,
            generator: Processes::myself().cpu()?,
            reading: processes.read()?,
            began: Instant::now(),
        })
    }

    /// A sample without values.
    pub(super) fn stop(self) -> io::Result<Sample> {
        let wall = self.began.elapsed();
        let processes = self.world.running.processes();
        let used = processes.read()?.since(&self.reading);
        let busy = machine::busy(machine::PROXY_CPU)?.saturating_sub(self.busy);
        let generator = Processes::myself().cpu()?.saturating_sub(self.generator);
        let handshakes = self.world.upstream.handshakes().since(self.handshakes);
        Ok(Sample {
            values: Vec::new(),
            cpu: used.cpu,
            wall,
            // Threads of the proxy also wait for each other, which is its own affair: no more
            // than what others have used can have been taken from it.
            waited: used.waited.min(busy.saturating_sub(used.cpu)),
            generator,
            handshakes: handshakes.done(),
            resumed: handshakes.resumed,
        })
    }
}

/// Measures the proxy while `work` goes on; `per` turns CPU seconds into the metric.
pub(super) async fn metered(
    world: &World<'_>,
    work: impl Future<Output = io::Result<()>>,
    per: impl Fn(f64) -> f64,
) -> io::Result<Sample> {
    let failed = world.upstream.handshakes().failed;
    let meter = Meter::start(world)?;
    work.await?;
    let mut sample = meter.stop()?;
    let failed = world.upstream.handshakes().failed - failed;
    if failed > 0 {
        return Err(io::Error::other(format!(
            "{failed} handshakes failed at the upstream"
        )));
    }
    sample.values.push(per(sample.cpu.as_secs_f64()));
    Ok(sample)
}
