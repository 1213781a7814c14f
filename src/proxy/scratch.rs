//! The buffers of a thread. A connection borrows them for one synchronous step and holds none
//! while it is idle, so memory grows with threads and not with connections.

use std::cell::RefCell;
use std::io::IoSlice;
use std::ops::Range;

/// Bytes read from a socket at once, at most. Reads, records and writes are batched by this, and
/// system calls are the larger part of a relay's cost: see docs/decisions/0010-scratch-of-256-kib.md.
pub(crate) const WIRE: usize = 256 * 1024;

/// What a session may put before the bytes of one read: the incomplete record or handshake message
/// that it kept, and room in which to open the first record. (Memory that is never touched costs
/// nothing.)
pub(crate) const HEADROOM: usize = 128 * 1024;

/// Plaintext of at most this size moves next to what lies before it, so that a batch of small
/// records goes out in few pieces; moving more costs as much as a piece of its own.
const SMALL: usize = 4 * 1024;

/// Two buffers: what comes from the upstream's socket, and plaintext on its way there.
pub(crate) struct Scratch {
    pub(crate) wire: Box<[u8]>,
    /// Where in `wire` the opened plaintext lies.
    pub(crate) pieces: Pieces,
    pub(crate) plain: Box<[u8]>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch {
        wire: vec![0; HEADROOM + WIRE].into_boxed_slice(),
        pieces: Pieces::default(),
        plain: vec![0; WIRE].into_boxed_slice(),
    });
}

/// Lends this thread's buffers to `step`. What they held before is unspecified.
///
/// # Panics
/// If `step` itself borrows them: steps are synchronous and do not nest.
pub(crate) fn borrow<T>(step: impl FnOnce(&mut Scratch) -> T) -> T {
    SCRATCH.with_borrow_mut(step)
}

/// Parts of a buffer, in order and apart from each other: where plaintext lies that was opened in
/// place, between the headers and tags of its records.
#[derive(Debug, Default)]
pub(crate) struct Pieces {
    ranges: Vec<Range<usize>>,
    /// Bytes in all.
    len: usize,
}

impl Pieces {
    pub(crate) fn clear(&mut self) {
        self.ranges.clear();
        self.len = 0;
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds a part that lies behind all others.
    pub(crate) fn push(&mut self, buffer: &mut [u8], piece: Range<usize>) {
        if piece.is_empty() {
            return;
        }
        self.len += piece.len();
        match self.ranges.last_mut() {
            Some(last) if piece.len() <= SMALL => {
                let end = last.end + piece.len();
                buffer.copy_within(piece, last.end);
                last.end = end;
            }
            _ => self.ranges.push(piece),
        }
    }

    /// Takes `n` bytes off the front.
    pub(crate) fn advance(&mut self, mut n: usize) {
        self.len -= n;
        let whole = self.ranges.iter().take_while(|piece| {
            let taken = piece.len() <= n;
            if taken {
                n -= piece.len();
            }
            taken
        });
        let whole = whole.count();
        self.ranges.drain(..whole);
        if let Some(first) = self.ranges.first_mut() {
            first.start += n;
        }
    }

    /// Fills `slices` with the first parts; returns how many they are.
    pub(crate) fn fill<'b>(&self, buffer: &'b [u8], slices: &mut [IoSlice<'b>]) -> usize {
        let mut filled = 0;
        for (slice, piece) in slices.iter_mut().zip(&self.ranges) {
            *slice = IoSlice::new(&buffer[piece.clone()]);
            filled += 1;
        }
        filled
    }

    /// All of it in one piece of its own.
    pub(crate) fn to_vec(&self, buffer: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.len);
        for piece in &self.ranges {
            bytes.extend_from_slice(&buffer[piece.clone()]);
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pieces_yield_their_bytes_in_order_however_they_are_taken(
            parts in vec((0usize..40, 0usize..3 * SMALL), 0..12),
            takes in vec(0usize..2 * SMALL, 0..12),
        ) {
            let size = parts.iter().map(|(gap, len)| gap + len).sum();
            let mut buffer: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
            let mut pieces = Pieces::default();
            let mut expected = Vec::new();
            let mut at = 0;
            for (gap, len) in parts {
                at += gap;
                expected.extend_from_slice(&buffer[at..at + len]);
                pieces.push(&mut buffer, at..at + len);
                at += len;
            }
            prop_assert_eq!(&pieces.to_vec(&buffer), &expected);
            let mut taken = 0;
            for take in takes {
                let mut slices = [IoSlice::new(&[]); 2];
                let filled = pieces.fill(&buffer, &mut slices);
                let offered = slices[..filled].iter().flat_map(|slice| slice.to_vec()).collect::<Vec<_>>();
                prop_assert!(expected[taken..].starts_with(&offered));
                prop_assert_eq!(offered.is_empty(), pieces.is_empty());
                let take = take.min(offered.len());
                pieces.advance(take);
                taken += take;
                prop_assert_eq!(pieces.len, expected.len() - taken);
                prop_assert_eq!(&pieces.to_vec(&buffer), &expected[taken..]);
            }
        }
    }
}
