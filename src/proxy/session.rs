//! The TLS engine seam: what the relay asks of an established TLS session. Bytes in, bytes out;
//! no sockets and no clock, so that one record layer can take another's place.

use std::io;

use rustls::client::UnbufferedClientConnection;
use rustls::{Error, ProtocolVersion};

use self::records::Records;
use self::unbuffered::Unbuffered;
use super::scratch::Pieces;
use crate::tls::tickets::Provenance;

pub(crate) mod records;
pub(super) mod unbuffered;

/// An established TLS session with the upstream.
pub(crate) trait Session {
    /// How much room it needs in front of the bytes that are read next, at most
    /// [`scratch::HEADROOM`]: for the incomplete record that it kept, for one.
    ///
    /// [`scratch::HEADROOM`]: super::scratch::HEADROOM
    fn room(&self) -> usize;

    /// Opens what it kept and what was read behind [its room](Self::room) (`wire` is both), and
    /// adds to `pieces` where the plaintext lies. What is there is good even where an error
    /// follows it.
    ///
    /// # Errors
    /// The peer broke the protocol or sent a fatal alert; ours, if one is due, is queued. Nothing
    /// is opened or sealed after that: the error stays.
    fn open(&mut self, wire: &mut [u8], pieces: &mut Pieces) -> Result<(), Error>;

    /// The peer has said `close_notify`: no plaintext will follow.
    fn peer_closed(&self) -> bool;

    /// Seals `plain` and queues the records.
    ///
    /// # Errors
    /// Not all of it is queued, and nothing more will be: the keys are worn out, or the session
    /// has failed or was closed.
    fn seal(&mut self, plain: &[u8]) -> Result<(), KeysExhausted>;

    /// Queues `close_notify`. Nothing is sealed after it.
    fn close(&mut self);

    /// There are queued records to write.
    fn wants_write(&self) -> bool;

    /// Writes queued records; what `sink` does not take stays queued.
    ///
    /// # Errors
    /// Those of `sink`, `WouldBlock` among them.
    fn write(&mut self, sink: &mut dyn io::Write) -> io::Result<usize>;
}

/// The session's keys have sealed as many records as they safely can, and cannot be renewed: so in
/// TLS 1.2, after 2^24 records with AES-GCM. (Those of TLS 1.3 are renewed in time.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KeysExhausted;

/// What a finished handshake leaves behind.
pub(crate) struct Established {
    pub(super) connection: UnbufferedClientConnection,
    pub(super) provenance: Provenance,
    /// Received after the handshake's last message, and not looked at.
    pub(super) rest: Vec<u8>,
    /// Received with it, and opened already.
    pub(super) early: Vec<u8>,
    /// Our last flight, if it is not out yet.
    pub(super) flight: Vec<u8>,
    /// The server's `close_notify` came with it too (TLS 1.2).
    pub(super) peer_closed: bool,
    /// rustls is to keep the records too.
    pub(super) rustls_records: bool,
}

impl Established {
    /// What was agreed on, and whom with.
    pub(crate) fn facts(&self) -> &rustls::CommonState {
        &self.connection
    }

    /// The session, for whoever carries data over it.
    ///
    /// # Errors
    /// None that a finished handshake of this program should meet.
    pub(crate) fn into_session(self) -> Result<Engine, Error> {
        let Self {
            connection,
            provenance,
            rest,
            early,
            flight,
            peer_closed,
            rustls_records,
        } = self;
        if rustls_records || connection.protocol_version() != Some(ProtocolVersion::TLSv1_3) {
            return Ok(Engine::Unbuffered(Box::new(Unbuffered::new(
                connection,
                provenance,
                rest,
                early,
                flight,
                peer_closed,
            ))));
        }
        debug_assert!(early.is_empty(), "TLS 1.3 stops at its Finished");
        let (secrets, connection) = connection.dangerous_into_kernel_connection()?;
        let session = Records::new(secrets, connection, provenance, rest, flight)?;
        Ok(Engine::Records(Box::new(session)))
    }
}

/// The record layer of one session.
pub(crate) enum Engine {
    /// TLS 1.3, with records cut and joined here.
    Records(Box<Records>),
    /// TLS 1.2, or as configured.
    Unbuffered(Box<Unbuffered>),
}

impl Engine {
    /// Session tickets of TLS 1.3 that have come.
    pub(crate) fn tickets(&self) -> u32 {
        match self {
            Self::Records(session) => session.tickets(),
            Self::Unbuffered(session) => session.tickets(),
        }
    }
}

impl Session for Engine {
    fn room(&self) -> usize {
        match self {
            Self::Records(session) => session.room(),
            Self::Unbuffered(session) => session.room(),
        }
    }

    fn open(&mut self, wire: &mut [u8], pieces: &mut Pieces) -> Result<(), Error> {
        match self {
            Self::Records(session) => session.open(wire, pieces),
            Self::Unbuffered(session) => session.open(wire, pieces),
        }
    }

    fn peer_closed(&self) -> bool {
        match self {
            Self::Records(session) => session.peer_closed(),
            Self::Unbuffered(session) => session.peer_closed(),
        }
    }

    fn seal(&mut self, plain: &[u8]) -> Result<(), KeysExhausted> {
        match self {
            Self::Records(session) => session.seal(plain),
            Self::Unbuffered(session) => session.seal(plain),
        }
    }

    fn close(&mut self) {
        match self {
            Self::Records(session) => session.close(),
            Self::Unbuffered(session) => session.close(),
        }
    }

    fn wants_write(&self) -> bool {
        match self {
            Self::Records(session) => session.wants_write(),
            Self::Unbuffered(session) => session.wants_write(),
        }
    }

    fn write(&mut self, sink: &mut dyn io::Write) -> io::Result<usize> {
        match self {
            Self::Records(session) => session.write(sink),
            Self::Unbuffered(session) => session.write(sink),
        }
    }
}
