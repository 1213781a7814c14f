//! Messages to systemd: a datagram each, in the order in which they were sent, never waited for.
//!
//! Where systemd does not read for a moment, messages wait here: a stalled PID 1 must not stall
//! reloads and signals. Not the crate `sd-notify`: it reads the environment itself, at every
//! message, and its sends block.

use std::collections::VecDeque;
use std::fmt::{self, Write as _};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, sendmsg_addr, socket_with,
};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::Notify;
use tracing::warn;

/// How long [`Notifier::settle`] waits for systemd, and how long it sleeps between two looks.
const SETTLE: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// A line of STATUS is for people; what is longer is cut.
const LONGEST_STATUS: usize = 600;

/// The way to systemd. Cheap to clone; silent where there is none.
#[derive(Clone, Default)]
pub(crate) struct Notifier(Option<Arc<Inner>>);

struct Inner {
    address: SocketAddrUnix,
    socket: OwnedFd,
    books: Mutex<Books>,
    /// Something is left in the outbox.
    stuck: Notify,
    /// Says what is going on, in a line; set once there is something to tell.
    describe: OnceLock<Box<dyn Fn() -> String + Send + Sync>>,
}

#[derive(Default)]
struct Books {
    stage: Stage,
    /// Reloads that were announced and have not ended.
    reloads: usize,
    /// The line that systemd has.
    status: String,
    /// What systemd had no room for yet.
    outbox: VecDeque<Message>,
    /// That nothing arrives was said.
    complained: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Starting,
    Running,
    Stopping,
}

#[derive(Debug)]
struct Message {
    text: String,
    descriptor: Option<OwnedFd>,
}

impl fmt::Debug for Notifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Notifier")
            .field("speaks", &self.0.is_some())
            .finish()
    }
}

impl Notifier {
    /// # Errors
    /// If there is no descriptor for the socket.
    pub(super) fn to(address: SocketAddrUnix) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
        Ok(Self(Some(Arc::new(Inner {
            address,
            socket,
            books: Mutex::default(),
            stuck: Notify::new(),
            describe: OnceLock::new(),
        }))))
    }

    /// Whether somebody listens.
    pub(crate) fn speaks(&self) -> bool {
        self.0.is_some()
    }

    /// From now on `describe` says what is going on. Counts once.
    pub(super) fn describe_by(&self, describe: impl Fn() -> String + Send + Sync + 'static) {
        if let Some(inner) = &self.0 {
            let _ = inner.describe.set(Box::new(describe));
        }
    }

    /// One line for people, where it is not the one that systemd has. It may be left out: the next
    /// says more.
    pub(crate) fn status(&self, line: &str) {
        self.with(|inner, books| {
            let line = one_line(line);
            if books.outbox.is_empty() && books.status != line {
                books.status.clone_from(&line);
                inner.post(books, format!("STATUS={line}"), None);
            }
        });
    }

    /// The line as it is now, if it has changed.
    pub(super) fn refresh(&self) {
        if let Some(line) = self.line() {
            self.status(&line);
        }
    }

    /// The service is up. Counts once, and not after [`Self::stopping`].
    pub(super) fn ready(&self) {
        let line = self.line();
        self.with(|inner, books| {
            if books.stage != Stage::Starting {
                return;
            }
            books.stage = Stage::Running;
            inner.post(books, "READY=1".to_owned(), line);
            if books.reloads > 0 {
                inner.post(books, reloading_now(), None);
            }
        });
    }

    /// A reload begins; the guard ends it. To be called before anything else is done for it:
    /// systemd takes for the answer to its SIGHUP only what is younger than that.
    ///
    /// Where several overlap, each is announced, and only the end of the last says that what is in
    /// force is what was asked for.
    pub(crate) fn reloading(&self) -> Reloading {
        self.with(|inner, books| {
            books.reloads += 1;
            if books.stage == Stage::Running {
                inner.post(books, reloading_now(), None);
            }
        });
        Reloading(self.clone())
    }

    fn reloaded(&self) {
        let line = self.line();
        self.with(|inner, books| {
            books.reloads = books.reloads.saturating_sub(1);
            if books.reloads == 0 && books.stage == Stage::Running {
                inner.post(books, "READY=1".to_owned(), line);
            }
        });
    }

    /// The watchdog's sign of life. It may be left out where systemd does not read: it comes again.
    pub(super) fn beat(&self) {
        let line = self.line();
        self.with(|inner, books| {
            if books.outbox.is_empty() {
                inner.post(books, "WATCHDOG=1".to_owned(), line);
            }
        });
    }

    /// The process leaves, and needs so long for it. True if that is news.
    pub(super) fn stopping(&self, needs: Duration) -> bool {
        let line = self.line();
        self.with(|inner, books| {
            let is_new = books.stage != Stage::Stopping;
            if is_new {
                books.stage = Stage::Stopping;
                inner.post(books, "STOPPING=1".to_owned(), line);
                // By itself: systemd extends the time of the state that it is in by then.
                inner.post(books, extend(needs), None);
            }
            is_new
        })
        .unwrap_or(false)
    }

    /// Still at it, and so long more.
    pub(super) fn extend(&self, needs: Duration) {
        let line = self.line();
        self.with(|inner, books| {
            if books.outbox.is_empty() {
                inner.post(books, extend(needs), line);
            }
        });
    }

    /// Why the process ends without having been up.
    pub(crate) fn failed(&self, why: &str, errno: Errno) {
        self.with(|inner, books| {
            let text = format!("ERRNO={}", errno.raw_os_error());
            inner.post(books, text, Some(why.to_owned()));
        });
    }

    /// Has systemd keep a descriptor beyond the end of the process. False where nothing is kept.
    pub(super) fn keep(&self, name: &str, descriptor: BorrowedFd<'_>) -> bool {
        let Ok(descriptor) = descriptor.try_clone_to_owned() else {
            return false;
        };
        self.with(|inner, books| {
            let text = format!("FDSTORE=1\nFDNAME={name}");
            books.outbox.push_back(Message {
                text,
                descriptor: Some(descriptor),
            });
            inner.flush(books)
        })
        .unwrap_or(false)
    }

    /// Has systemd close what it keeps by that name.
    pub(super) fn forget(&self, name: &str) {
        self.with(|inner, books| {
            inner.post(books, format!("FDSTOREREMOVE=1\nFDNAME={name}"), None);
        });
    }

    /// Waits until systemd has read everything so far, for at most 2 s: an address is free only when
    /// systemd has closed its copy of the socket. Blocks nobody else.
    pub(super) async fn settle(&self) {
        if !self.speaks() {
            return;
        }
        let Ok((ours, theirs)) = pipe_with(PipeFlags::CLOEXEC) else {
            return;
        };
        self.with(|inner, books| {
            books.outbox.push_back(Message {
                text: "BARRIER=1".to_owned(),
                descriptor: Some(theirs),
            });
            inner.flush(books)
        });
        let read = async {
            while !has_ended(&ours) {
                tokio::time::sleep(LOOK_AGAIN).await;
                self.flush();
            }
        };
        if tokio::time::timeout(SETTLE, read).await.is_err() {
            warn!("systemd has not answered for {} s", SETTLE.as_secs());
        }
    }

    /// Sends what systemd had no room for. True if nothing waits any more.
    pub(super) fn flush(&self) -> bool {
        self.with(|inner, books| {
            inner.flush(books);
            books.outbox.is_empty()
        })
        .unwrap_or(true)
    }

    /// Resolves when there was no room for something.
    pub(super) async fn stuck(&self) {
        match &self.0 {
            Some(inner) => inner.stuck.notified().await,
            None => std::future::pending().await,
        }
    }

    fn line(&self) -> Option<String> {
        let describe = self.0.as_ref()?.describe.get()?;
        Some(describe())
    }

    fn with<T>(&self, act: impl FnOnce(&Inner, &mut Books) -> T) -> Option<T> {
        let inner = self.0.as_ref()?;
        Some(act(inner, &mut inner.books()))
    }
}

impl Inner {
    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn post(&self, books: &mut Books, mut text: String, line: Option<String>) {
        if let Some(line) = line {
            let line = one_line(&line);
            let _ = write!(text, "\nSTATUS={line}");
            books.status = line;
        }
        let descriptor = None;
        books.outbox.push_back(Message { text, descriptor });
        self.flush(books);
    }

    /// False where something was lost. What systemd has no room for stays.
    fn flush(&self, books: &mut Books) -> bool {
        let mut all_well = true;
        while let Some(message) = books.outbox.front() {
            match self.send(message) {
                Ok(()) => books.complained = false,
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN | Errno::NOBUFS) => {
                    self.stuck.notify_one();
                    return all_well;
                }
                Err(error) => {
                    all_well = false;
                    if !books.complained {
                        books.complained = true;
                        warn!(%error, "cannot tell systemd what is going on (NOTIFY_SOCKET)");
                    }
                }
            }
            books.outbox.pop_front();
        }
        all_well
    }

    fn send(&self, message: &Message) -> Result<(), Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let descriptors = message.descriptor.as_ref().map(|fd| [fd.as_fd()]);
        if let Some(descriptors) = &descriptors {
            ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
        }
        let text = [IoSlice::new(message.text.as_bytes())];
        let flags = SendFlags::NOSIGNAL;
        sendmsg_addr(&self.socket, &self.address, &text, &mut ancillary, flags).map(drop)
    }
}

/// A reload that systemd knows of; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Reloading(Notifier);

impl Drop for Reloading {
    fn drop(&mut self) {
        self.0.reloaded();
    }
}

fn reloading_now() -> String {
    let now = clock_gettime(ClockId::Monotonic);
    let usec = i128::from(now.tv_sec) * 1_000_000 + i128::from(now.tv_nsec) / 1_000;
    format!("RELOADING=1\nMONOTONIC_USEC={usec}")
}

fn extend(needs: Duration) -> String {
    format!("EXTEND_TIMEOUT_USEC={}", needs.as_micros())
}

/// Whether every other end of a pipe is closed.
fn has_ended(pipe: &OwnedFd) -> bool {
    let mut ends = [PollFd::new(pipe, PollFlags::empty())];
    let at_once = Timespec::default();
    match poll(&mut ends, Some(&at_once)) {
        Ok(_) => ends[0].revents().contains(PollFlags::HUP),
        Err(error) => error != Errno::INTR,
    }
}

/// Whatever stands in a message's line would be read as a message if it had an end of a line in it.
fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len().min(LONGEST_STATUS));
    for letter in text.chars() {
        if line.len() >= LONGEST_STATUS {
            line.push('…');
            break;
        }
        line.push(if letter.is_control() { ' ' } else { letter });
    }
    line
}

#[cfg(test)]
pub(in crate::systemd) mod tests;
