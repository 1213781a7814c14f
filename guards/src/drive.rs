//! The drivers: each does one thing a number of times over streams in memory, in one thread and
//! without waiting, so that the counts of two runs are those of two numbers of times and of
//! nothing else.

use std::io;
use std::sync::Arc;

use rustls::ServerConfig;
use tlsward::drivers::{Application, Client, Session};

use crate::meter::{Heap, ours};
use crate::peer::{RECORD, Server};
use crate::pki::{Pki, SERVER_NAME};

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Driver {
    /// A full mutual handshake with a server that is known, and the session's end.
    HandshakeFull,
    /// The same with a server that this client has never met.
    HandshakeFirst,
    /// A resumption, with the tickets for the next ones.
    HandshakeResumed,
    /// Records sealed.
    Seal(Layer, Size),
    /// Records opened.
    Open(Layer, Size),
    /// 64 KiB from the caller to the upstream.
    RelayUp,
    /// 64 KiB from the upstream to the caller.
    RelayDown,
    /// A session that is kept and does nothing.
    Idle,
}

/// `record_layer` of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layer {
    Own,
    Rustls,
}

/// Plaintext of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Size {
    /// 16 KiB, eight in one read or write.
    Large,
    /// 64 B, one in one read or write.
    Small,
}

/// What the relays' counts are for.
const UNIT: u64 = 64 * 1024;

impl Driver {
    pub(crate) const ALL: [Self; 14] = [
        Self::HandshakeFull,
        Self::HandshakeFirst,
        Self::HandshakeResumed,
        Self::Seal(Layer::Own, Size::Large),
        Self::Seal(Layer::Own, Size::Small),
        Self::Open(Layer::Own, Size::Large),
        Self::Open(Layer::Own, Size::Small),
        Self::Seal(Layer::Rustls, Size::Large),
        Self::Seal(Layer::Rustls, Size::Small),
        Self::Open(Layer::Rustls, Size::Large),
        Self::Open(Layer::Rustls, Size::Small),
        Self::RelayUp,
        Self::RelayDown,
        Self::Idle,
    ];

    /// For the command line and the budget.
    pub(crate) fn name(self) -> &'static str {
        use {Layer::*, Size::*};
        match self {
            Self::HandshakeFull => "handshake-full",
            Self::HandshakeFirst => "handshake-first",
            Self::HandshakeResumed => "handshake-resumed",
            Self::Seal(Own, Large) => "seal-16k",
            Self::Seal(Own, Small) => "seal-64",
            Self::Open(Own, Large) => "open-16k",
            Self::Open(Own, Small) => "open-64",
            Self::Seal(Rustls, Large) => "rustls-seal-16k",
            Self::Seal(Rustls, Small) => "rustls-seal-64",
            Self::Open(Rustls, Large) => "rustls-open-16k",
            Self::Open(Rustls, Small) => "rustls-open-64",
            Self::RelayUp => "relay-up",
            Self::RelayDown => "relay-down",
            Self::Idle => "idle-session",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|driver| driver.name() == name)
    }

    /// What is counted.
    pub(crate) fn unit(self) -> &'static str {
        match self {
            Self::HandshakeFull | Self::HandshakeFirst | Self::HandshakeResumed => "connection",
            Self::Seal(..) | Self::Open(..) => "record",
            Self::RelayUp | Self::RelayDown => "64 KiB",
            Self::Idle => "session",
        }
    }

    /// How often it is done in the shorter and in the longer run; their difference is what
    /// counts. Enough for what varies with random bytes to even out, and for what is done once in
    /// many times.
    pub(crate) fn counts(self) -> (u64, u64) {
        match self {
            Self::HandshakeFull | Self::HandshakeFirst | Self::HandshakeResumed => (8, 72),
            Self::Seal(_, Size::Large) | Self::Open(_, Size::Large) => (64, 1088),
            Self::Seal(_, Size::Small) | Self::Open(_, Size::Small) => (64, 8256),
            Self::RelayUp | Self::RelayDown => (16, 528),
            Self::Idle => (8, 72),
        }
    }

    /// Does it `count` times.
    ///
    /// # Errors
    /// In words: a handshake failed, or something was not what the driver is for.
    pub(crate) fn run(self, count: u64) -> Result<Heap, String> {
        let scene = Scene::new(self)?;
        match self {
            Self::HandshakeFull => scene.handshakes(count, false),
            Self::HandshakeFirst => scene.first_handshakes(count),
            Self::HandshakeResumed => scene.handshakes(count, true),
            Self::Seal(_, size) => scene.seal(count, size),
            Self::Open(_, size) => scene.open(count, size),
            Self::RelayUp => scene.relay_up(count * UNIT),
            Self::RelayDown => scene.relay_down(count * UNIT),
            Self::Idle => scene.idle(count),
        }
    }

    fn record_layer(self) -> &'static str {
        match self {
            Self::Seal(Layer::Rustls, _) | Self::Open(Layer::Rustls, _) => "rustls",
            _ => "own",
        }
    }
}

impl Size {
    fn bytes(self) -> usize {
        match self {
            Self::Large => RECORD,
            Self::Small => 64,
        }
    }

    /// Records in one read or write.
    fn batch(self) -> usize {
        match self {
            Self::Large => 8,
            Self::Small => 1,
        }
    }
}

/// Both ends of a driver.
struct Scene {
    pki: Pki,
    record_layer: &'static str,
    client: Client,
    server: Arc<ServerConfig>,
}

impl Scene {
    fn new(driver: Driver) -> Result<Self, String> {
        let pki = Pki::new().map_err(|error| error.to_string())?;
        // As many as rustls' and OpenSSL's servers give by default.
        let tickets = match driver {
            Driver::HandshakeResumed => 2,
            _ => 0,
        };
        let record_layer = driver.record_layer();
        Ok(Self {
            server: pki.server(tickets).map_err(|error| error.to_string())?,
            client: Client::new(&pki.client, SERVER_NAME, record_layer)?,
            record_layer,
            pki,
        })
    }

    fn server(&self) -> Result<Server, String> {
        Server::new(&self.server).map_err(|error| error.to_string())
    }

    /// A session that is ready, and its server.
    fn session(&self) -> Result<(Session, Server), String> {
        let mut server = self.server()?;
        Ok((self.client.connect(&mut server)?, server))
    }

    fn handshakes(&self, count: u64, resumed: bool) -> Result<Heap, String> {
        // The one before the first: it makes the server known, and brings its tickets.
        connection(&self.client, &mut self.server()?)?;
        let mut servers = self.servers(count)?;
        let (done, heap) = ours(|| {
            let mut servers = servers.iter_mut();
            servers.try_for_each(|server| connection(&self.client, server))
        });
        done?;
        match servers.iter().all(|server| server.resumed() == resumed) {
            true => Ok(heap),
            false => Err(format!("resumed is not {resumed} in every handshake")),
        }
    }

    fn first_handshakes(&self, count: u64) -> Result<Heap, String> {
        let mut servers = self.servers(count)?;
        let clients: Vec<_> = (0..count)
            .map(|_| Client::new(&self.pki.client, SERVER_NAME, self.record_layer))
            .collect::<Result<_, _>>()?;
        let (done, heap) = ours(|| {
            let mut pairs = clients.iter().zip(&mut servers);
            pairs.try_for_each(|(client, server)| connection(client, server))
        });
        done?;
        Ok(heap)
    }

    fn servers(&self, count: u64) -> Result<Vec<Server>, String> {
        (0..count).map(|_| self.server()).collect()
    }

    fn seal(&self, count: u64, size: Size) -> Result<Heap, String> {
        let (mut session, _) = self.session()?;
        let plain = vec![0xa5; size.bytes() * size.batch()];
        let (done, heap) = ours(|| {
            for _ in 0..count / size.batch() as u64 {
                session.send(&plain, &mut Sink)?;
            }
            Ok::<_, io::Error>(())
        });
        done.map_err(|error| error.to_string())?;
        Ok(heap)
    }

    fn open(&self, count: u64, size: Size) -> Result<Heap, String> {
        let (mut session, mut server) = self.session()?;
        server.talk(size.bytes(), size.batch());
        let (done, heap) = ours(|| {
            let mut opened = 0;
            for _ in 0..count / size.batch() as u64 {
                opened += session.receive(&mut server)?;
            }
            Ok::<_, io::Error>(opened)
        });
        let opened = done.map_err(|error| error.to_string())?;
        match opened as u64 == count * size.bytes() as u64 {
            true => Ok(heap),
            false => Err(format!("{opened} bytes are not those of {count} records")),
        }
    }

    fn relay_up(&self, bytes: u64) -> Result<Heap, String> {
        let (session, mut server) = self.session()?;
        let mut caller = Application::new(bytes);
        let (done, heap) =
            ours(|| session.relay(&mut caller, &mut server, |carried| carried.up >= bytes));
        done?;
        Ok(heap)
    }

    fn relay_down(&self, bytes: u64) -> Result<Heap, String> {
        let (session, mut server) = self.session()?;
        server.talk(RECORD, usize::MAX);
        let mut caller = Application::new(0);
        let (done, heap) =
            ours(|| session.relay(&mut caller, &mut server, |carried| carried.down >= bytes));
        done?;
        Ok(heap)
    }

    fn idle(&self, count: u64) -> Result<Heap, String> {
        let mut servers = self.servers(count)?;
        let mut sessions = Vec::with_capacity(servers.len());
        let (done, heap) = ours(|| {
            for server in &mut servers {
                sessions.push(self.client.connect(server)?);
            }
            Ok::<_, String>(())
        });
        done?;
        Ok(heap)
    }
}

/// A socket that takes everything.
struct Sink;

impl io::Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn write_vectored(&mut self, slices: &[io::IoSlice<'_>]) -> io::Result<usize> {
        Ok(slices.iter().map(|slice| slice.len()).sum())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// From the first word to the session's end, with the tickets that come in between.
fn connection(client: &Client, server: &mut Server) -> Result<(), String> {
    let mut session = client.connect(server)?;
    match session.receive(server) {
        Ok(_) => Ok(()),
        // A server without tickets has nothing to say.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_driver_does_what_it_is_for() {
        for driver in Driver::ALL {
            if let Err(error) = driver.run(16) {
                panic!("{}: {error}", driver.name());
            }
        }
    }
}
