//! How the process ends: drain, then abort, with every task waited for.

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Handles to the two signals of an ending and to the tasks that obey them. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shutdown {
    drain: CancellationToken,
    abort: CancellationToken,
    fault: CancellationToken,
    connections: TaskTracker,
}

impl Shutdown {
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
}
