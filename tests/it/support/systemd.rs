//! systemd, as the process sees it: a socket for its messages, a store of descriptors, and sockets
//! that are passed at start.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};
use tokio::process::Command;

use super::journal::Journal;
use super::pki::Pki;
use super::proxy::{Config, Proxy, TLSWARD, without_settings};

/// One message.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) text: String,
    pub(crate) at: Instant,
}

impl Message {
    /// The value of a variable in it.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let lines = self.text.lines();
        let value = |line: &str| Some(line.split_once('=')?.0 == name);
        let line = lines.into_iter().find(|line| value(line) == Some(true))?;
        line.split_once('=').map(|(_, value)| value)
    }

    pub(crate) fn says(&self, line: &str) -> bool {
        self.text.lines().any(|it| it == line)
    }
}

/// The manager of one service, over its restarts.
pub(crate) struct Systemd {
    path: PathBuf,
    messages: Journal<Message>,
    store: Store,
    /// Sockets of `.socket` units.
    units: Vec<(String, OwnedFd)>,
    variables: Vec<(&'static str, String)>,
}

type Store = Arc<Mutex<Vec<(String, OwnedFd)>>>;

impl Systemd {
    /// Keeps up to 100 descriptors.
    pub(crate) fn new(pki: &Pki) -> Self {
        let path = pki.path("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let messages = Journal::new();
        let store = Store::default();
        let (log, kept) = (messages.clone(), Arc::clone(&store));
        // It ends with the test's process.
        std::thread::spawn(move || {
            while let Ok((text, descriptors)) = receive(&socket) {
                keep(&kept, &text, descriptors);
                let at = Instant::now();
                log.push(Message { text, at });
            }
        });
        Self {
            path,
            messages,
            store,
            units: Vec::new(),
            variables: vec![("FDSTORE", "100".to_owned())],
        }
    }

    /// Without a store.
    pub(crate) fn keeping_nothing(mut self) -> Self {
        self.variables.retain(|(name, _)| *name != "FDSTORE");
        self
    }

    pub(crate) fn with_watchdog(mut self, time: Duration) -> Self {
        let usec = time.as_micros().to_string();
        self.variables.push(("WATCHDOG_USEC", usec));
        self
    }

    /// Passes a socket from now on.
    pub(crate) fn pass(&mut self, name: &str, socket: impl Into<OwnedFd>) {
        self.units.push((name.to_owned(), socket.into()));
    }

    /// Passes a TCP listener from now on, and tells its address.
    pub(crate) fn listen(&mut self, name: &str) -> std::net::SocketAddr {
        let listener = TcpListener::bind(super::net::address()).unwrap();
        let address = listener.local_addr().unwrap();
        self.pass(name, listener);
        address
    }

    /// Starts the program as systemd does: what is passed is what the units have and what the
    /// store keeps. Waits for nothing.
    pub(crate) fn launch(&self, pki: &Pki, config: &Config) -> Proxy {
        let (command, _until_it_is_started) = self.command();
        Proxy::launch(command, pki, config)
    }

    /// The same, and waits until it is ready.
    pub(crate) async fn start(&self, pki: &Pki, config: &Config) -> Proxy {
        let mark = self.messages.mark();
        let proxy = self.launch(pki, config);
        self.told_after(mark, "READY=1").await;
        proxy
    }

    fn command(&self) -> (Command, Vec<OwnedFd>) {
        let store = self.store.lock().unwrap();
        let passed: Vec<_> = self.units.iter().chain(&*store).collect();
        let mut script = String::new();
        let mut copies = Vec::new();
        for (number, (_, socket)) in passed.iter().enumerate() {
            // Far from the numbers that are passed.
            let copy = fcntl_dupfd_cloexec(socket, 100).unwrap();
            fcntl_setfd(&copy, FdFlags::empty()).unwrap();
            let from = copy.as_raw_fd();
            script.push_str(&format!("exec {}<&{from} {from}<&-; ", 3 + number));
            copies.push(copy);
        }
        // `$$` stays through exec. Bash: other shells know descriptors of one digit only.
        script.push_str("LISTEN_PID=$$ exec \"$@\"");
        let names: Vec<&str> = passed.iter().map(|(name, _)| name.as_str()).collect();
        let mut command = without_settings(Command::new("bash"));
        command.args(["-c", &script, "bash", TLSWARD]);
        command.env("NOTIFY_SOCKET", &self.path);
        if !passed.is_empty() {
            command.env("LISTEN_FDS", passed.len().to_string());
            command.env("LISTEN_FDNAMES", names.join(":"));
        }
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        (command, copies)
    }

    pub(crate) fn messages(&self) -> &Journal<Message> {
        &self.messages
    }

    /// Waits for a message with this line, from the beginning on.
    #[track_caller]
    pub(crate) fn told(&self, line: &str) -> impl Future<Output = Message> {
        self.told_after(0, line)
    }

    /// The same among those that came after a mark of [`Self::messages`].
    #[track_caller]
    pub(crate) fn told_after(&self, mark: usize, line: &str) -> impl Future<Output = Message> {
        let line = line.to_owned();
        self.messages
            .wait_after(mark, format!("the message {line}"), move |message| {
                message.says(&line).then(|| message.clone())
            })
    }

    /// The names of what is kept.
    pub(crate) fn kept(&self) -> Vec<String> {
        let store = self.store.lock().unwrap();
        store.iter().map(|(name, _)| name.clone()).collect()
    }
}

fn receive(socket: &UnixDatagram) -> io::Result<(String, Vec<OwnedFd>)> {
    let mut bytes = vec![0; 64 * 1024];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut buffers = [IoSliceMut::new(&mut bytes)];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = recvmsg(socket, &mut buffers, &mut ancillary, flags)?;
    assert!(!received.flags.contains(ReturnFlags::TRUNC));
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(passed) = message {
            descriptors.extend(passed);
        }
    }
    bytes.truncate(received.bytes);
    Ok((String::from_utf8(bytes).unwrap(), descriptors))
}

/// FDSTORE=1 and FDSTOREREMOVE=1; a barrier's pipe is closed with `descriptors`.
fn keep(store: &Store, text: &str, descriptors: Vec<OwnedFd>) {
    let name = text.lines().find_map(|line| line.strip_prefix("FDNAME="));
    let mut store = store.lock().unwrap();
    if text.contains("FDSTORE=1") {
        let name = name.expect("what is kept has a name").to_owned();
        store.extend(descriptors.into_iter().map(|it| (name.clone(), it)));
    } else if text.contains("FDSTOREREMOVE=1") {
        store.retain(|(kept, _)| Some(kept.as_str()) != name);
    }
}
