//! The buffers of a thread. A connection borrows them for one synchronous step and holds none
//! while it is idle, so memory grows with threads and not with connections.

use std::cell::RefCell;

/// Bytes read from a socket at once, at most. Reads, records and writes are batched by this, and
/// system calls are the larger part of a relay's cost: see docs/decisions/0010-scratch-of-128-kib.md.
pub(crate) const WIRE: usize = 128 * 1024;

/// What rustls may hold back of an incomplete record and hand out with a later read.
const HELD_BACK: usize = 20 * 1024;

/// Two buffers: what came from or goes to the upstream's socket, and plaintext.
pub(crate) struct Scratch {
    pub(crate) wire: Box<[u8]>,
    /// Large enough for whatever one `wire` can decrypt to.
    pub(crate) plain: Box<[u8]>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch {
        wire: vec![0; WIRE].into_boxed_slice(),
        plain: vec![0; WIRE + HELD_BACK].into_boxed_slice(),
    });
}

/// Lends this thread's buffers to `step`. What they held before is unspecified.
///
/// # Panics
/// If `step` itself borrows them: steps are synchronous and do not nest.
pub(crate) fn borrow<T>(step: impl FnOnce(&mut Scratch) -> T) -> T {
    SCRATCH.with_borrow_mut(step)
}
