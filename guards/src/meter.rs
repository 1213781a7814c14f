//! What is counted, and what is not. A driver runs what is to be measured in [`ours`], and within
//! it the server at the other end, and whatever else is the driver's own, in [`not_ours`].
//!
//! Both are known by name: valgrind turns its counting on and off where they are entered and left
//! (see [`TOGGLES`]), and here they do the same with the allocator's counts.

use std::alloc::System;
use std::cell::Cell;

use serde::{Deserialize, Serialize};
use stats_alloc::{INSTRUMENTED_SYSTEM, Stats, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Patterns for the mangled names of [`ours`] and [`not_ours`], whatever they are made generic
/// with: `17h` is the length of the hash that ends such a name.
pub(crate) const TOGGLES: [&str; 2] = ["*5meter4ours17h*", "*5meter8not_ours17h*"];

/// What the Rust heap saw. Memory that aws-lc takes from C's allocator is not in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Heap {
    /// Allocations and reallocations.
    pub(crate) allocations: i64,
    /// Bytes that they asked for; of a reallocation, what it grew by.
    pub(crate) bytes: i64,
    /// Bytes that were not given back.
    pub(crate) live: i64,
}

impl Heap {
    fn now() -> Self {
        let Stats {
            allocations,
            reallocations,
            bytes_allocated,
            bytes_deallocated,
            ..
        } = ALLOCATOR.stats();
        let signed = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        Self {
            allocations: signed(allocations + reallocations),
            bytes: signed(bytes_allocated),
            live: signed(bytes_allocated) - signed(bytes_deallocated),
        }
    }

    fn plus(self, other: Self) -> Self {
        Self {
            allocations: self.allocations + other.allocations,
            bytes: self.bytes + other.bytes,
            live: self.live + other.live,
        }
    }

    fn minus(self, other: Self) -> Self {
        Self {
            allocations: self.allocations - other.allocations,
            bytes: self.bytes - other.bytes,
            live: self.live - other.live,
        }
    }
}

thread_local! {
    static NOT_OURS: Cell<Heap> = const { Cell::new(Heap { allocations: 0, bytes: 0, live: 0 }) };
}

/// Runs and measures.
#[inline(never)]
pub(crate) fn ours<T>(work: impl FnOnce() -> T) -> (T, Heap) {
    let (before, foreign) = (Heap::now(), NOT_OURS.get());
    let done = work();
    let foreign = NOT_OURS.get().minus(foreign);
    (done, Heap::now().minus(before).minus(foreign))
}

/// Runs within [`ours`] without being measured. Not to be nested.
#[inline(never)]
pub(crate) fn not_ours<T>(work: impl FnOnce() -> T) -> T {
    let before = Heap::now();
    let done = work();
    NOT_OURS.set(NOT_OURS.get().plus(Heap::now().minus(before)));
    done
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;

    use super::*;

    /// Other tests allocate at the same time, but not in this process: nextest starts one for
    /// each. Under `cargo test` this could see theirs.
    #[test]
    fn what_is_not_ours_is_not_counted() {
        let (kept, heap) = ours(|| {
            let kept = black_box(vec![0_u8; 100]);
            drop(black_box(vec![0_u8; 10]));
            not_ours(|| drop(black_box(vec![0_u8; 1000])));
            kept
        });
        assert_eq!(
            heap,
            Heap {
                allocations: 2,
                bytes: 110,
                live: 100
            }
        );
        drop(kept);
    }
}
