//! The process's allocator, and how its free memory goes back to the kernel.
//!
//! glibc's in builds for glibc, which keeps what is free until it is told; jemalloc in builds for musl,
//! whose own is slow, and with the feature `jemalloc`. aws-lc and std have the same one: jemalloc takes
//! the names `malloc` and `free`.

/// The allocator that stands in for the C library's.
#[cfg(any(target_env = "musl", feature = "jemalloc"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Gives pages that hold nothing but free memory back to the kernel, of all threads.
///
/// Takes a few hundred microseconds where little is free and some ten milliseconds for 30 MB; other
/// threads that allocate may wait for as long. Does nothing where the allocator has no such call.
pub fn give_back_free_memory() {
    imp::give_back();
}

#[cfg(any(target_env = "musl", feature = "jemalloc"))]
mod imp {
    use std::ptr;

    pub(super) fn give_back() {
        // 4096 is MALLCTL_ARENAS_ALL.
        let name = c"arena.4096.purge";
        // SAFETY: the name is a C string, and this control neither reads nor writes a value, which
        // is said by null pointers and a length of 0 (jemalloc(3), "arena.<i>.purge").
        unsafe {
            tikv_jemalloc_sys::mallctl(
                name.as_ptr(),
                ptr::null_mut(),
                ptr::null_mut(),
                ptr::null_mut(),
                0,
            );
        }
    }
}

#[cfg(all(target_env = "gnu", not(feature = "jemalloc")))]
mod imp {
    pub(super) fn give_back() {
        // SAFETY: takes a number, and locks each arena that it works on (malloc_trim(3)).
        unsafe {
            libc::malloc_trim(0);
        }
    }
}

#[cfg(not(any(target_env = "gnu", target_env = "musl", feature = "jemalloc")))]
mod imp {
    pub(super) fn give_back() {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_was_freed_goes_back_to_the_kernel() {
        const BLOCKS: usize = 16 * 1024;
        let blocks: Vec<Vec<u8>> = (0..BLOCKS).map(|_| vec![1; 2048]).collect();
        // The newest block stays, as one connection of many would: it lies above the free ones.
        let newest = vec![1_u8; 2048];
        let held = resident();
        drop(blocks);
        give_back_free_memory();
        let kept = resident();
        assert!(
            kept + BLOCKS * 2048 / 2 < held,
            "{held} bytes with the blocks, {kept} without"
        );
        drop(newest);
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "a test of memory asks the kernel"
    )]
    fn resident() -> usize {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
        pages * 4096
    }
}
