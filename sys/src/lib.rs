//! The few system calls that tlsward needs and that no safe crate offers.
//!
//! The only crate of the workspace in which `unsafe` is allowed; each use says why it is sound.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

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
    fn what_is_no_socket_is_an_error() {
        let file = std::fs::File::open("/dev/null").unwrap();
        unacknowledged(&file).unwrap_err();
    }
}
