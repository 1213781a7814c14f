//! The few system calls that tlsward needs and that no safe crate offers.
//!
//! The only crate of the workspace in which `unsafe` is allowed; each use says why it is sound.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use tokio::io::Interest;
use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};

pub use self::heap::give_back_free_memory;
pub use self::inherited::take_inherited;

#[cfg(feature = "attempts")]
pub mod attempts;
mod heap;
mod inherited;

/// How many bytes of a socket's send queue the peer has not acknowledged yet (TCP), or not read
/// yet (unix sockets). Linux `SIOCOUTQ`, tcp(7).
///
/// # Errors
/// What `ioctl` reports; for example for a descriptor that is not a socket.
pub fn unacknowledged(socket: impl AsFd) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the descriptor is open for as long as it is borrowed, and SIOCOUTQ (the same number
    // as TIOCOUTQ) writes one `int` through the pointer, which is valid for that.
    let result = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(usize::try_from(bytes).unwrap_or(0))
}

/// Tells when a descriptor that others may hold too has something to read, or a caller to accept.
///
/// One descriptor can be watched by many runtimes, each with an epoll instance of its own; it
/// closes with its last holder.
#[derive(Debug)]
pub struct ReadWatch(AsyncFd<Arc<OwnedFd>>);

impl ReadWatch {
    /// Registers with the current runtime; undone when dropped.
    ///
    /// # Errors
    /// What `epoll_ctl` reports, for example for a regular file.
    ///
    /// # Panics
    /// Outside of a runtime that does I/O.
    pub fn new(fd: Arc<OwnedFd>) -> io::Result<Self> {
        // SAFETY: an `OwnedFd` is an open descriptor and always the same one, and the `Arc` that
        // the result holds keeps it so until the registration is undone. Nobody gets a mutable
        // reference to that `Arc`, so none can put another in its place.
        let registered = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
        Ok(Self(registered?))
    }

    /// Waits. The guard's `try_io` clears the readiness where the attempt would block.
    ///
    /// # Errors
    /// When the runtime ends.
    ///
    /// # Cancellation
    /// Loses nothing.
    pub async fn readable(&self) -> io::Result<AsyncFdReadyGuard<'_, Arc<OwnedFd>>> {
        self.0.readable().await
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn bytes_count_until_the_peer_has_read_them() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        assert_eq!(unacknowledged(&ours).unwrap(), 0);
        ours.write_all(b"hello").unwrap();
        assert!(unacknowledged(&ours).unwrap() > 0);
        theirs.read_exact(&mut [0; 5]).unwrap();
        assert_eq!(unacknowledged(&ours).unwrap(), 0);
    }

    #[test]
    fn two_runtimes_are_told_of_one_descriptor_and_the_last_holder_closes_it() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        theirs.write_all(b"!").unwrap();
        let fd = Arc::new(OwnedFd::from(ours));
        let runtimes: Vec<_> = (0..2)
            .map(|_| {
                let mut builder = tokio::runtime::Builder::new_current_thread();
                builder.enable_io().build().unwrap()
            })
            .collect();
        for runtime in &runtimes {
            runtime.block_on(async {
                let watch = ReadWatch::new(Arc::clone(&fd)).unwrap();
                let mut guard = watch.readable().await.unwrap();
                let seen = guard.try_io(|_| Ok(())).is_ok();
                assert!(seen);
            });
        }
        drop(fd);
        theirs.write_all(b"!").unwrap_err();
    }

    #[test]
    fn what_is_no_socket_is_an_error() {
        let file = std::fs::File::open("/dev/null").unwrap();
        unacknowledged(&file).unwrap_err();
    }
}
