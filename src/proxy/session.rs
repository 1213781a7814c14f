//! The TLS engine seam: what the relay asks of an established TLS session. Bytes in, bytes out;
//! no sockets and no clock, so that another record layer can take this one's place.

use std::io;

use rustls::ClientConnection;

/// An established TLS session with the upstream.
pub(crate) trait Session {
    /// Takes `wire` (all of it) and writes the plaintext that it yields, and that was left over
    /// from before, to the front of `plain`, which must be at least [`scratch::WIRE`] and one
    /// record larger than `wire` can be.
    ///
    /// Returns how many bytes of plaintext there are; they are good even where an error follows
    /// them.
    ///
    /// [`scratch::WIRE`]: super::scratch::WIRE
    fn open(&mut self, wire: &[u8], plain: &mut [u8]) -> (usize, Result<(), rustls::Error>);

    /// The peer has said `close_notify`: no plaintext will follow.
    fn peer_closed(&self) -> bool;

    /// Seals `plain` and queues the records.
    fn seal(&mut self, plain: &[u8]);

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

/// rustls with its own buffers: every TLS version and suite, and the reference for any other
/// engine. It keeps one copy of each record's plaintext; the relay's batches make up for it.
pub(crate) struct Buffered {
    connection: Box<ClientConnection>,
    peer_closed: bool,
}

impl Buffered {
    /// Takes over after the handshake.
    pub(crate) fn new(mut connection: Box<ClientConnection>) -> Self {
        // The relay bounds what is queued: it does not read the caller while records wait.
        connection.set_buffer_limit(None);
        Self {
            connection,
            peer_closed: false,
        }
    }

    /// rustls' input buffer grows to a whole record (18 KiB) and shrinks only when the next read
    /// begins, which for an idle connection may be never.
    fn give_back_memory(&mut self) {
        struct NothingYet;
        impl io::Read for NothingYet {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::ErrorKind::WouldBlock.into())
            }
        }
        let _ = self.connection.read_tls(&mut NothingYet);
    }

    fn drain_plaintext(&mut self, plain: &mut [u8]) -> usize {
        let mut len = 0;
        while len < plain.len() {
            match io::Read::read(&mut self.connection.reader(), &mut plain[len..]) {
                Ok(0) => break,
                Ok(n) => len += n,
                // Nothing more for now; every other state of the stream is reported by
                // `process_new_packets`.
                Err(_) => break,
            }
        }
        len
    }
}

impl Session for Buffered {
    fn open(&mut self, mut wire: &[u8], plain: &mut [u8]) -> (usize, Result<(), rustls::Error>) {
        let mut len = 0;
        loop {
            // An empty read would tell rustls that the stream has ended.
            if !wire.is_empty() {
                match self.connection.read_tls(&mut wire) {
                    // After close_notify rustls takes nothing more; RFC 8446 section 6.1: data
                    // received after it is ignored.
                    Ok(0) => wire = &[],
                    Ok(_) => {}
                    // The record announces more bytes than a record can have.
                    Err(_) => return (len, Err(rustls::Error::PeerSentOversizedRecord)),
                }
            }
            let state = self.connection.process_new_packets();
            len += self.drain_plaintext(&mut plain[len..]);
            match state {
                Ok(state) => self.peer_closed = state.peer_has_closed(),
                Err(error) => return (len, Err(error)),
            }
            if wire.is_empty() || self.peer_closed {
                self.give_back_memory();
                return (len, Ok(()));
            }
        }
    }

    fn peer_closed(&self) -> bool {
        self.peer_closed
    }

    fn seal(&mut self, plain: &[u8]) {
        let taken = io::Write::write(&mut self.connection.writer(), plain);
        debug_assert_eq!(
            taken.ok(),
            Some(plain.len()),
            "no limit is set, so all is taken"
        );
    }

    fn close(&mut self) {
        self.connection.send_close_notify();
    }

    fn wants_write(&self) -> bool {
        self.connection.wants_write()
    }

    fn write(&mut self, sink: &mut dyn io::Write) -> io::Result<usize> {
        self.connection.write_tls(sink)
    }
}
