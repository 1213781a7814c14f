//! A list that only grows, and that a test can wait on.

use std::fmt::Debug;
use std::sync::{Arc, Mutex};

use tokio::sync::watch;

use super::GUARD;

/// What happened, in order. Clones share the list.
#[derive(Debug)]
pub(crate) struct Journal<T> {
    entries: Arc<Mutex<Vec<T>>>,
    grown: watch::Sender<usize>,
}

impl<T> Clone for Journal<T> {
    fn clone(&self) -> Self {
        Self {
            entries: Arc::clone(&self.entries),
            grown: self.grown.clone(),
        }
    }
}

impl<T: Clone + Debug> Journal<T> {
    pub(crate) fn new() -> Self {
        Self {
            entries: Arc::default(),
            grown: watch::Sender::new(0),
        }
    }

    pub(crate) fn push(&self, entry: T) {
        let mut entries = self.entries.lock().unwrap();
        entries.push(entry);
        self.grown.send_replace(entries.len());
    }

    /// How much has happened: a mark for [`Self::wait_after`].
    pub(crate) fn mark(&self) -> usize {
        self.entries.lock().unwrap().len()
    }

    pub(crate) fn all(&self) -> Vec<T> {
        self.entries.lock().unwrap().clone()
    }

    /// Waits for the first entry, from the very beginning, of which `pick` makes something.
    #[track_caller]
    pub(crate) fn wait<R>(
        &self,
        what: impl Into<String>,
        pick: impl FnMut(&T) -> Option<R>,
    ) -> impl Future<Output = R> {
        self.wait_after(0, what, pick)
    }

    /// The same among the entries that came after `mark` was taken.
    #[track_caller]
    pub(crate) fn wait_after<R>(
        &self,
        mark: usize,
        what: impl Into<String>,
        mut pick: impl FnMut(&T) -> Option<R>,
    ) -> impl Future<Output = R> {
        let place = std::panic::Location::caller();
        let what = what.into();
        async move {
            let mut grown = self.grown.subscribe();
            let mut seen = mark;
            let search = async {
                loop {
                    {
                        let entries = self.entries.lock().unwrap();
                        if let Some(found) = entries.iter().skip(seen).find_map(&mut pick) {
                            return found;
                        }
                        seen = entries.len().max(seen);
                    }
                    grown
                        .wait_for(|length| *length > seen)
                        .await
                        .expect("this journal keeps a sender");
                }
            };
            match tokio::time::timeout(GUARD, search).await {
                Ok(found) => found,
                Err(_) => panic!(
                    "{place}: waited {GUARD:?} in vain for {what}; the last entries:\n{}",
                    self.tail(20)
                ),
            }
        }
    }

    /// The last entries, for messages.
    pub(crate) fn tail(&self, how_many: usize) -> String {
        let entries = self.entries.lock().unwrap();
        let from = entries.len().saturating_sub(how_many);
        entries[from..]
            .iter()
            .map(|entry| format!("  {entry:?}\n"))
            .collect()
    }
}
