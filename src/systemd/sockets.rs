//! Sockets that outlive the process: those that `.socket` units open, and our own, which systemd
//! keeps for the next process (its file descriptor store).

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::net::{SocketType, sockopt};
use socket2::SockRef;
use tracing::{info, warn};

use super::notify::Notifier;
use crate::config::{Callers, Listen, Service};
use crate::failure::{Explained, Reason};
use crate::unix_socket::SocketFile;

/// Begins the names of our own in the store; no `.socket` unit has such a name by chance.
const OURS: &str = "tlsward-kept-";

/// The sockets that the process was given, and what it has given systemd to keep.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    notifier: Notifier,
    /// Of `.socket` units, by name. They stay open for as long as the process lives: a reload may
    /// begin to use one.
    units: BTreeMap<String, Vec<Handed>>,
    /// Kept by systemd since an earlier process, and not taken up yet.
    kept: BTreeMap<Listen, Kept>,
    /// Names in the store of what is of no use.
    useless: Vec<String>,
    /// The names under which systemd keeps what is in use.
    stored: BTreeMap<Listen, String>,
    /// How many systemd keeps at most.
    room: usize,
    /// The names of which it was said that nobody listens on them.
    unused: BTreeSet<String>,
    /// It was said that there is no room.
    complained: bool,
}

#[derive(Debug)]
struct Handed {
    socket: OwnedFd,
    kind: Result<Kind, String>,
}

/// What a listening stream socket listens on.
#[derive(Debug)]
enum Kind {
    Tcp(SocketAddr),
    /// With its path; an abstract one has none.
    Unix(Option<PathBuf>),
}

#[derive(Debug)]
struct Kept {
    name: String,
    socket: OwnedFd,
}

impl Sockets {
    /// `given` in the order in which they were passed; `room`: how many systemd keeps.
    pub(super) fn new(
        given: impl IntoIterator<Item = (String, OwnedFd)>,
        room: usize,
        notifier: Notifier,
    ) -> Self {
        let mut sockets = Self {
            notifier,
            room,
            ..Self::default()
        };
        for (name, socket) in given {
            let kind = kind_of(socket.as_fd());
            if !name.starts_with(OURS) {
                let unit = sockets.units.entry(name).or_default();
                unit.push(Handed { socket, kind });
                continue;
            }
            let listen = match kind {
                Ok(Kind::Tcp(address)) => Some(Listen::Tcp(address)),
                Ok(Kind::Unix(Some(path))) => Some(Listen::Unix { path, mode: None }),
                Ok(Kind::Unix(None)) | Err(_) => None,
            };
            match listen {
                Some(listen) => {
                    let earlier = sockets.kept.insert(listen, Kept { name, socket });
                    sockets.useless.extend(earlier.map(|it| it.name));
                }
                None => sockets.useless.push(name),
            }
        }
        sockets
    }

    // === sockets of units ===

    /// The sockets of the name that a service listens on, for it to use besides us.
    ///
    /// # Errors
    /// [`Reason::BindFailed`]: there is none, or one that this service cannot have. See [`Self::check`].
    pub(crate) fn of_unit(&self, name: &str, service: &Service) -> Result<Vec<OwnedFd>, Explained> {
        let failed = |why: String| Explained::new(Reason::BindFailed, why);
        let handed = self.named(name).map_err(failed)?;
        for socket in handed {
            socket
                .may_serve(service)
                .map_err(|why| failed(format!("the socket {name:?} of systemd {why}")))?;
        }
        handed
            .iter()
            .map(|handed| {
                let copy = handed.socket.try_clone();
                copy.map_err(|error| failed(format!("cannot use the socket {name:?}: {error}")))
            })
            .collect()
    }

    /// Whether a service may serve callers of the name that it listens on, where that is a name of
    /// systemd's. What the name stands for is known here alone, so rules about addresses are held
    /// here too.
    ///
    /// # Errors
    /// As [`Self::of_unit`].
    pub(crate) fn check(&self, service: &Service) -> Result<(), Explained> {
        match &service.listen {
            Listen::Systemd(name) => self.of_unit(name, service).map(drop),
            Listen::Tcp(_) | Listen::Unix { .. } => Ok(()),
        }
    }

    /// What a name stands for, for people.
    pub(crate) fn addresses(&self, name: &str) -> Option<String> {
        let handed = self.units.get(name)?;
        let addresses: Vec<String> = handed
            .iter()
            .filter_map(|handed| handed.kind.as_ref().ok().map(Kind::words))
            .collect();
        Some(addresses.join(", "))
    }

    /// The name under which systemd holds an address, which nobody else can bind then.
    pub(crate) fn holder(&self, listen: &Listen) -> Option<&str> {
        let holds = |handed: &Handed| match (&handed.kind, listen) {
            (Ok(Kind::Tcp(one)), Listen::Tcp(other)) => one == other,
            (Ok(Kind::Unix(Some(one))), Listen::Unix { path, .. }) => one == path,
            _ => false,
        };
        let mut units = self.units.iter();
        let (name, _) = units.find(|(_, handed)| handed.iter().any(holds))?;
        Some(name)
    }

    /// Says which names nobody listens on: their callers wait in vain.
    pub(crate) fn tell_unused<'c>(&mut self, services: impl Iterator<Item = &'c Service>) {
        if self.units.is_empty() {
            return;
        }
        let names = services.filter_map(|service| match &service.listen {
            Listen::Systemd(name) => Some(name.as_str()),
            Listen::Tcp(_) | Listen::Unix { .. } => None,
        });
        let used: BTreeSet<&str> = names.collect();
        let is_unused = |name: &&String| !used.contains(name.as_str());
        let unused: BTreeSet<String> = self.units.keys().filter(is_unused).cloned().collect();
        let known = std::mem::replace(&mut self.unused, unused);
        for name in &self.unused {
            if !known.contains(name) {
                let addresses = self.addresses(name);
                warn!(
                    name,
                    addresses,
                    "no service listens on this socket of systemd: its callers wait in vain; write listen = \"systemd:{name}\", or stop its .socket unit"
                );
            }
        }
    }

    fn named(&self, name: &str) -> Result<&[Handed], String> {
        if let Some(handed) = self.units.get(name) {
            return Ok(handed);
        }
        if self.units.is_empty() {
            return Err(format!(
                "systemd has passed no sockets to this process, so there is none called {name:?}: start it by its .socket unit (systemctl start NAME.socket, with Service= naming this service), or write an address"
            ));
        }
        let names: Vec<String> = self.units.keys().map(|name| format!("{name:?}")).collect();
        Err(format!(
            "systemd has passed no socket called {name:?}; there are: {}. The name is FileDescriptorName= of the .socket unit, or else the unit's own name; a unit that was started later passes its sockets at the next restart",
            names.join(", ")
        ))
    }

    // === our own, kept by systemd ===

    /// The listener that an earlier process had at this address, once.
    pub(crate) fn take_kept(&mut self, listen: &Listen) -> Option<(OwnedFd, Option<SocketFile>)> {
        let Kept { name, socket } = self.kept.remove(listen)?;
        let file = match listen {
            Listen::Unix { path, .. } => {
                // Somebody may have removed the path meanwhile, or put another socket there: nobody
                // can reach this one then.
                let file = SocketFile::at(path).ok();
                let file = file.inspect(|file| file.stays(true));
                let Some(file) = file.filter(|file| kept_name(listen, Some(file.id())) == name)
                else {
                    self.useless.push(name);
                    return None;
                };
                Some(file)
            }
            Listen::Tcp(_) | Listen::Systemd(_) => None,
        };
        self.stored.insert(listen.clone(), name);
        info!(%listen, "taken over from the process before");
        Some((socket, file))
    }

    /// Has systemd keep a listener of ours; `file` is its device and inode where it has one. True if
    /// it is kept: then it is not to be shut down or removed when the process ends.
    pub(crate) fn keep(
        &mut self,
        listen: &Listen,
        socket: BorrowedFd<'_>,
        file: Option<(u64, u64)>,
    ) -> bool {
        if self.stored.contains_key(listen) {
            return true;
        }
        if self.stored.len() >= self.room {
            if self.room > 0 && !self.complained {
                self.complained = true;
                warn!(
                    room = self.room,
                    "systemd keeps no more listeners for the next process: raise FileDescriptorStoreMax="
                );
            }
            return false;
        }
        let name = kept_name(listen, file);
        let kept = self.notifier.keep(&name, socket);
        if kept {
            self.stored.insert(listen.clone(), name);
        }
        kept
    }

    /// Has systemd close what it keeps of an address that is given up, and waits for it: the address
    /// may be wanted by another at once.
    pub(crate) async fn give_up(&mut self, listen: &Listen) {
        if let Some(name) = self.stored.remove(listen) {
            self.notifier.forget(&name);
            self.notifier.settle().await;
        }
    }

    /// Closes what an earlier process had and this configuration does not name.
    pub(crate) fn give_up_the_rest(&mut self) {
        for (listen, kept) in std::mem::take(&mut self.kept) {
            info!(%listen, "given up: no service listens there any more");
            self.useless.push(kept.name);
        }
        for name in self.useless.drain(..) {
            if !self.stored.values().any(|stored| *stored == name) {
                self.notifier.forget(&name);
            }
        }
    }
}

impl Handed {
    fn may_serve(&self, service: &Service) -> Result<(), String> {
        let kind = self.kind.as_ref().map_err(Clone::clone)?;
        if let Kind::Tcp(address) = kind
            && !address.ip().to_canonical().is_loopback()
            && !service.allow_remote_callers
        {
            return Err(format!(
                "is {address}, which can be reached from other machines, whose traffic would be in the clear and get this service's certificate: set ListenStream= to a loopback address or a path; if other machines are meant, set allow_remote_callers = true (and allow_callers)"
            ));
        }
        let Callers::Either {
            networks,
            uids,
            gids,
        } = &service.allow_callers
        else {
            return Ok(());
        };
        match kind {
            Kind::Tcp(address) if networks.is_empty() => Err(format!(
                "is {address}, and allow_callers lists uids and gids, which mean nothing there: list networks such as \"10.0.0.0/8\""
            )),
            Kind::Unix(_) if uids.is_empty() && gids.is_empty() => Err(format!(
                "is {}, and allow_callers lists networks, which mean nothing there: list \"uid:1000\" or \"gid:100\"",
                kind.words()
            )),
            Kind::Tcp(_) | Kind::Unix(_) => Ok(()),
        }
    }
}

impl Kind {
    fn words(&self) -> String {
        match self {
            Self::Tcp(address) => address.to_string(),
            Self::Unix(Some(path)) => format!("unix:{}", path.display()),
            Self::Unix(None) => "an abstract unix socket".to_owned(),
        }
    }
}

fn kind_of(socket: BorrowedFd<'_>) -> Result<Kind, String> {
    let Ok(kind) = sockopt::socket_type(socket) else {
        return Err("is not a socket: a .socket unit needs ListenStream=".to_owned());
    };
    if kind != SocketType::STREAM {
        let what = match kind {
            SocketType::DGRAM => "is a datagram socket",
            SocketType::SEQPACKET => "is a socket of sequential packets",
            _ => "is no stream socket",
        };
        return Err(format!("{what}: its .socket unit needs ListenStream="));
    }
    if sockopt::socket_acceptconn(socket) != Ok(true) {
        return Err("is a connection and not a listener: its .socket unit needs Accept=no".into());
    }
    let address = SockRef::from(&socket)
        .local_addr()
        .map_err(|error| format!("has no address: {error}"))?;
    if let Some(address) = address.as_socket() {
        return Ok(Kind::Tcp(address));
    }
    if address.is_unix() {
        return Ok(Kind::Unix(address.as_pathname().map(Into::into)));
    }
    Err("is neither TCP nor unix: its .socket unit needs an address and a port, or a path".into())
}

/// The name of a listener of ours in the store: what systemd allows, no two alike, and for a unix
/// socket which file it is.
fn kept_name(listen: &Listen, file: Option<(u64, u64)>) -> String {
    match (listen, file) {
        (Listen::Unix { .. }, Some((device, inode))) => {
            format!("{OURS}unix-{device:x}-{inode:x}")
        }
        _ => {
            let address = listen.to_string();
            let letter = |letter: char| match letter {
                ':' => '_',
                '[' | ']' => '-',
                other if other.is_ascii_graphic() => other,
                _ => '.',
            };
            format!("{OURS}{}", address.chars().map(letter).collect::<String>())
        }
    }
}

#[cfg(test)]
mod tests;
