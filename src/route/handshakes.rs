//! How many TLS handshakes of one service are in flight at once.
//!
//! A handshake holds 10 to 15 KB and costs 0.1 to 0.3 ms of CPU. Thousands of callers at once
//! would otherwise hold thousands of half-done ones, all of them late; in line, each is done soon
//! after its turn has come. Look-up and TCP are cheap to hold and are not counted.

use std::num::NonZeroUsize;

use tokio::sync::{Semaphore, SemaphorePermit};

/// A service's handshakes, over all of its connections. A service that hangs takes no other's.
#[derive(Debug)]
pub(crate) struct Handshakes {
    limit: Option<NonZeroUsize>,
    places: Semaphore,
}

/// A handshake that may go on; its place is free when this is dropped.
#[derive(Debug)]
pub(crate) struct Place<'a>(#[expect(dead_code, reason = "held")] Option<SemaphorePermit<'a>>);

impl Handshakes {
    /// At most `limit` at once; `None`: as many as come.
    pub(crate) fn new(limit: Option<NonZeroUsize>) -> Self {
        Self {
            limit,
            places: Semaphore::new(limit.map_or(0, NonZeroUsize::get)),
        }
    }

    pub(crate) fn limit(&self) -> Option<NonZeroUsize> {
        self.limit
    }

    /// A place, if one is free and nobody waits for it.
    pub(crate) fn place_at_once(&self) -> Option<Place<'_>> {
        match self.limit {
            None => Some(Place(None)),
            Some(_) => Some(Place(Some(self.places.try_acquire().ok()?))),
        }
    }

    /// A place in the order of asking.
    ///
    /// # Cancellation
    /// Gives the turn to the next.
    pub(crate) async fn place(&self) -> Place<'_> {
        match self.limit {
            None => Place(None),
            // It fails where the semaphore was closed, which nobody does.
            Some(_) => Place(self.places.acquire().await.ok()),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn whoever_waits_longest_is_next_and_who_gives_up_is_left_out() {
        let handshakes = Handshakes::new(NonZeroUsize::new(1));
        let first = handshakes.place_at_once().unwrap();
        let mut second = Box::pin(handshakes.place());
        let mut third = Box::pin(handshakes.place());
        assert!(second.as_mut().now_or_never().is_none());
        assert!(third.as_mut().now_or_never().is_none());
        drop(first);
        assert!(
            handshakes.place_at_once().is_none(),
            "nobody jumps the line"
        );
        assert!(third.as_mut().now_or_never().is_none());
        drop(second);
        let third = third.now_or_never().unwrap();
        assert!(handshakes.place_at_once().is_none());
        drop(third);
        assert!(handshakes.place_at_once().is_some());
    }

    #[test]
    fn without_a_limit_nobody_waits() {
        let handshakes = Handshakes::new(None);
        let _held: Vec<_> = (0..1000)
            .map(|_| handshakes.place_at_once().unwrap())
            .collect();
        assert!(handshakes.place().now_or_never().is_some());
    }
}
