//! How the process ends: it says that it leaves, then drains, then aborts, with every task waited
//! for.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Handles to the steps of an ending and to the tasks that obey them. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shutdown {
    leaving: CancellationToken,
    drain: CancellationToken,
    abort: CancellationToken,
    fault: CancellationToken,
    connections: TaskTracker,
    terms: Arc<Mutex<Terms>>,
}

/// How long the steps of an ending may take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Terms {
    /// `shutdown_delay`: from leaving to the drain.
    pub(crate) delay: Duration,
    /// `shutdown_timeout`: from the drain to the abort.
    pub(crate) timeout: Duration,
}

impl Shutdown {
    /// Cancelled when the process is asked to end: readiness is denied, and everything else goes
    /// on until the drain.
    pub(crate) fn leaving(&self) -> &CancellationToken {
        &self.leaving
    }

    /// Cancelled when nothing new is to begin: listeners close, open connections go on.
    pub(crate) fn drain(&self) -> &CancellationToken {
        &self.drain
    }

    /// Cancelled when whatever is still open is to end at once.
    pub(crate) fn abort(&self) -> &CancellationToken {
        &self.abort
    }

    /// Cancelled when a part has ended by a bug that the process cannot do without.
    pub(crate) fn fault(&self) -> &CancellationToken {
        &self.fault
    }

    /// Where connection tasks are spawned, so that the drain can wait for them.
    pub(crate) fn connections(&self) -> &TaskTracker {
        &self.connections
    }

    /// What the configuration in force says; zero before the first.
    pub(crate) fn terms(&self) -> Terms {
        *self.terms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For each configuration that comes into force.
    pub(crate) fn set_terms(&self, terms: Terms) {
        *self.terms.lock().unwrap_or_else(PoisonError::into_inner) = terms;
    }
}
