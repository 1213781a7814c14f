//! What the process is told by signals: SIGHUP asks for a reload, SIGTERM and SIGINT for the
//! ending, and a second one of these for the end at once.

use std::io;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::info;

use crate::admin::{ReloadOutcome, Reloads};
use crate::shutdown::Shutdown;

/// More SIGHUPs than these at once are one: the kernel merges them too.
const MOST_RELOADS: usize = 16;

/// The signals that end the process.
pub(crate) struct Stop {
    term: Signal,
    int: Signal,
    received: u32,
}

impl Stop {
    /// Takes SIGTERM and SIGINT over from the default action.
    ///
    /// # Errors
    /// What the system reports.
    pub(crate) fn listen() -> io::Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            received: 0,
        })
    }

    /// The next of them, by name. Cancel-safe.
    pub(crate) async fn next(&mut self) -> &'static str {
        let signal = tokio::select! {
            _ = self.term.recv() => "SIGTERM",
            _ = self.int.recv() => "SIGINT",
        };
        self.received = self.received.saturating_add(1);
        signal
    }

    /// The next of them that is not the first. Cancel-safe.
    ///
    /// Whoever asks by `POST /quit` sends no signal: the kubelet's SIGTERM that follows a `preStop`
    /// hook is the first one, and must not cut connections off.
    pub(crate) async fn second(&mut self) -> &'static str {
        loop {
            let signal = self.next().await;
            if self.received > 1 {
                return signal;
            }
            info!(signal, "stopping already");
        }
    }
}

/// Turns each SIGHUP into a reload until the drain begins: while the process only says that it
/// leaves, connections are still made, with certificates that may be renewed.
///
/// One that comes while another reload is under way is announced at once, and is a reload of its
/// own: what it was sent for may have been written after the other had read it.
///
/// # Errors
/// What the system reports, at once.
pub(crate) fn reload_on_hangup(
    reloads: Reloads,
    shutdown: &Shutdown,
) -> io::Result<impl Future<Output = ()> + use<>> {
    let mut hangups = signal(SignalKind::hangup())?;
    let drain = shutdown.drain().clone();
    Ok(async move {
        let mut under_way = FuturesUnordered::new();
        loop {
            tokio::select! {
                () = drain.cancelled() => return,
                hangup = hangups.recv(), if under_way.len() < MOST_RELOADS => {
                    if hangup.is_none() {
                        return;
                    }
                    let end = reloads.ask();
                    info!("SIGHUP: reading configuration and certificates again");
                    under_way.push(end);
                }
                Some(end) = under_way.next() => match end {
                    Some(ReloadOutcome::Applied(_)) => info!("SIGHUP: done"),
                    // Control has said why.
                    Some(ReloadOutcome::Refused(_)) => {}
                    None => return,
                },
            }
        }
    })
}
