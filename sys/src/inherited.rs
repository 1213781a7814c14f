//! Descriptors that the process was started with.

use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};

/// The first that `sd_listen_fds(3)` speaks of: 0 to 2 are the standard streams.
const FIRST: RawFd = 3;

/// Takes the descriptors 3, 4, … that the process was started with, `count` of them, and marks them
/// close-on-exec. To be called once, before any thread is started.
///
/// What the program opens itself is close-on-exec from the beginning (std, tokio and rustix see to
/// it), and what came through `execve` cannot be: so a descriptor with that mark is never given
/// out, nor is any a second time.
///
/// # Errors
/// One of them is not open, or was not inherited, with its number in the text. Nothing is taken then.
pub fn take_inherited(count: usize) -> io::Result<Vec<OwnedFd>> {
    let beyond = || io::Error::other(format!("{count} descriptors are more than there can be"));
    let count = RawFd::try_from(count).map_err(|_| beyond())?;
    let end = FIRST.checked_add(count).ok_or_else(beyond)?;
    for fd in FIRST..end {
        // SAFETY: F_GETFD takes any number and touches no memory.
        let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
        if flags == -1 {
            let error = io::Error::last_os_error();
            return Err(io::Error::new(
                error.kind(),
                format!("descriptor {fd}: {error}"),
            ));
        }
        if flags & libc::FD_CLOEXEC != 0 {
            let error = format!("descriptor {fd} was not passed to this process, or is taken");
            return Err(io::Error::other(error));
        }
    }
    (FIRST..end)
        .map(|fd| {
            // SAFETY: as above.
            if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } == -1 {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: it is open, and nobody owns it: what this program opens carries the mark that
            // it did not have, and what is given out here carries it from now on.
            Ok(unsafe { OwnedFd::from_raw_fd(fd) })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The test's process has descriptors of its own, all of them with the mark; what is inherited
    /// for real is tested with the built program (tests/it/systemd.rs).
    #[test]
    fn what_the_program_opened_itself_is_never_given_out() {
        let files: Vec<_> = (0..8)
            .map(|_| std::fs::File::open("/dev/null").unwrap())
            .collect();
        let refused = take_inherited(32).unwrap_err().to_string();
        assert!(refused.starts_with("descriptor "), "{refused}");
        drop(files);
    }

    #[test]
    fn numbers_that_cannot_be_are_refused_and_none_is_nothing() {
        assert!(take_inherited(0).unwrap().is_empty());
        take_inherited(usize::MAX).unwrap_err();
        let refused = take_inherited(1_000_000).unwrap_err().to_string();
        assert!(refused.starts_with("descriptor "), "{refused}");
    }
}
