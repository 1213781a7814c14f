//! What the file system reports, between the thread that hears it and the task that looks.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind, RenameMode};
use tokio::sync::Notify;

/// More changed paths than this are not kept apart: everything is read again instead.
const MAX_CHANGED: usize = 4096;

/// What the file system has reported and nobody has looked at yet. Bounded.
#[derive(Clone, Debug, Default)]
pub(super) struct Events(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    changes: Mutex<Changes>,
    arrived: Notify,
}

/// Changes since the last look.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// Entries that were created, written, renamed, removed or given another mode.
    pub(super) paths: HashSet<PathBuf>,
    /// Those that are no longer there.
    pub(super) gone: HashSet<PathBuf>,
    /// Some events are lost: anything may have changed.
    pub(super) lost: bool,
}

impl Events {
    /// Waits until something has changed. Cancel-safe.
    pub(super) async fn arrived(&self) {
        self.0.arrived.notified().await;
    }

    /// Takes what has changed.
    pub(super) fn take(&self) -> Changes {
        let mut changes = self
            .0
            .changes
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *changes)
    }

    /// Called on the thread of the watcher.
    pub(super) fn add(&self, event: notify::Result<notify::Event>) {
        {
            let mut changes = self
                .0
                .changes
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            if !changes.add(event) {
                return;
            }
        }
        self.0.arrived.notify_one();
    }
}

impl Changes {
    /// Says whether the event is one that counts.
    fn add(&mut self, event: notify::Result<notify::Event>) -> bool {
        let event = match event {
            Ok(event) if event.need_rescan() => {
                self.lost = true;
                return true;
            }
            Ok(event) => event,
            Err(_) => {
                self.lost = true;
                return true;
            }
        };
        let gone = match event.kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => false,
            // Reading changes nothing; and our own reading must not make us read.
            EventKind::Access(_) => return false,
            EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(RenameMode::From)) => true,
            EventKind::Any | EventKind::Create(_) | EventKind::Modify(_) | EventKind::Other => {
                false
            }
        };
        if self.lost {
            return true;
        }
        if gone {
            self.gone.extend(event.paths.iter().cloned());
        }
        self.paths.extend(event.paths);
        if self.paths.len() > MAX_CHANGED {
            *self = Self {
                lost: true,
                ..Self::default()
            };
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    use notify::event::{CreateKind, Flag};

    fn event(kind: EventKind, path: &str) -> notify::Result<notify::Event> {
        Ok(notify::Event::new(kind).add_path(path.into()))
    }

    #[test]
    fn reading_a_file_is_no_change_and_writing_one_is() {
        let mut changes = Changes::default();
        for kind in [
            AccessKind::Read,
            AccessKind::Open(AccessMode::Any),
            AccessKind::Close(AccessMode::Read),
        ] {
            assert!(!changes.add(event(EventKind::Access(kind), "/a")));
        }
        assert_eq!(changes, Changes::default());
        let closed = AccessKind::Close(AccessMode::Write);
        assert!(changes.add(event(EventKind::Access(closed), "/a")));
        assert!(changes.paths.contains(Path::new("/a")));
    }

    #[test]
    fn an_overflown_queue_an_error_and_a_flood_mean_that_anything_may_have_changed() {
        let mut overflow = Changes::default();
        overflow.add(Ok(
            notify::Event::new(EventKind::Other).set_flag(Flag::Rescan)
        ));
        assert!(overflow.lost);

        let mut error = Changes::default();
        error.add(Err(notify::Error::generic("broken")));
        assert!(error.lost);

        let mut flood = Changes::default();
        for n in 0..=MAX_CHANGED {
            let created = EventKind::Create(CreateKind::File);
            flood.add(event(created, &format!("/{n}")));
        }
        assert!(flood.lost);
        assert!(flood.paths.is_empty(), "a flood must not be kept");
    }
}
