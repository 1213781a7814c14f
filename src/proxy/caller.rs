//! The caller's side of a connection: a TCP or unix stream, and what only the kernel knows of it.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use tokio::io::{AsyncRead, AsyncWrite, Interest};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::Instant;

/// What the proxy needs of a caller's stream besides its bytes.
pub(crate) trait Caller: AsyncRead + AsyncWrite + Unpin + Send + Sync {
    /// The caller has reset the connection or closed both of its directions. A caller that has
    /// only ended its own direction (FIN) is not broken: it may be waiting for the answer, or what
    /// it sent may still wait to be read. `told_the_end`: our own direction has ended too.
    fn is_broken(&self, told_the_end: bool) -> bool;

    /// Resolves when the caller [is broken](Self::is_broken), as soon as the kernel tells.
    /// Cancel at will.
    fn broken(&self) -> impl Future<Output = ()> + Send;

    /// Bytes that the caller has not acknowledged yet.
    fn unacknowledged(&self) -> io::Result<usize>;

    /// Makes the coming close a reset (RST). A unix socket has none: its peer sees
    /// `ECONNRESET` if it had sent what was not read, else an ordinary end.
    fn reset_on_close(&self);
}

impl Caller for TcpStream {
    fn is_broken(&self, _: bool) -> bool {
        // No hang-up: that is also said of a stream that both sides have ended in good order.
        poll_says(self, PollFlags::ERR)
    }

    async fn broken(&self) {
        loop {
            match self.ready(Interest::ERROR).await {
                Ok(ready) if ready.is_error() => return,
                Ok(_) => {}
                // The reactor is gone, and with it the runtime: nobody will ask again.
                Err(_) => return,
            }
        }
    }

    fn unacknowledged(&self) -> io::Result<usize> {
        tlsward_sys::unacknowledged(self)
    }

    fn reset_on_close(&self) {
        // Fails only for what is not an open socket.
        let _ = self.set_zero_linger();
    }
}

impl Caller for UnixStream {
    fn is_broken(&self, told_the_end: bool) -> bool {
        // A hang-up is said once both directions have ended, whoever ended them.
        !told_the_end && poll_says(self, PollFlags::HUP | PollFlags::ERR)
    }

    /// A unix socket's hang-up is no error event. It is seen at once as long as nothing waits to
    /// be read, and within 200 ms otherwise.
    async fn broken(&self) {
        const LOOK_AGAIN: Duration = Duration::from_millis(200);
        let _ = self.readable().await;
        while !self.is_broken(false) {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    fn unacknowledged(&self) -> io::Result<usize> {
        tlsward_sys::unacknowledged(self)
    }

    fn reset_on_close(&self) {}
}

fn poll_says(socket: &impl AsFd, what: PollFlags) -> bool {
    let mut fds = [PollFd::new(socket, PollFlags::empty())];
    let no_wait = rustix::event::Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    matches!(rustix::event::poll(&mut fds, Some(&no_wait)), Ok(n) if n > 0)
        && fds[0].revents().intersects(what)
}

/// Waits until the caller has acknowledged everything that was written to it, for `limit` at the
/// most, so that a reset does not throw away data. No event tells; so it looks, at growing
/// intervals of 1 to 50 ms.
pub(crate) async fn acknowledged(caller: &impl Caller, limit: Duration) {
    let deadline = Instant::now() + limit;
    let mut pause = Duration::from_millis(1);
    while matches!(caller.unacknowledged(), Ok(n) if n > 0)
        && !caller.is_broken(false)
        && Instant::now() < deadline
    {
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_caller_that_has_ended_after_we_did_is_not_broken_and_one_that_reset_is() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut theirs = TcpStream::connect(address).await.unwrap();
        let (mut ours, _) = listener.accept().await.unwrap();
        ours.shutdown().await.unwrap();
        theirs.write_all(b"last words").await.unwrap();
        theirs.shutdown().await.unwrap();
        ours.ready(Interest::READABLE).await.unwrap();
        while !ours
            .ready(Interest::READABLE)
            .await
            .unwrap()
            .is_read_closed()
        {
            tokio::task::yield_now().await;
        }
        assert!(!ours.is_broken(true));

        let theirs = TcpStream::connect(address).await.unwrap();
        let (ours, _) = listener.accept().await.unwrap();
        assert!(!ours.is_broken(false));
        theirs.set_zero_linger().unwrap();
        drop(theirs);
        ours.broken().await;
        assert!(ours.is_broken(false));
    }

    #[tokio::test]
    async fn a_unix_caller_that_has_gone_is_broken_unless_we_had_told_it_the_end() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"last words").await.unwrap();
        assert!(!ours.is_broken(false));
        ours.shutdown().await.unwrap();
        theirs.shutdown().await.unwrap();
        assert!(!ours.is_broken(true));
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        ours.broken().await;
        assert!(ours.is_broken(false));
    }
}
