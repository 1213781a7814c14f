//! The TLS engine seam: what the relay asks of an established TLS session. Bytes in, bytes out;
//! no sockets and no clock, so that another record layer can take this one's place.

use std::io;

use rustls::{ClientConnection, SupportedCipherSuite};

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
    ///
    /// # Errors
    /// Nothing of `plain` is queued.
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
/// TLS 1.2, after 2^24 records with AES-GCM. (TLS 1.3 renews keys by itself.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KeysExhausted;

/// The largest plaintext of a record (RFC 8446 section 5.1), into which rustls cuts what it seals.
const RECORD: usize = 16 * 1024;

/// Records that are not ours to count: the handshake's last one and alerts.
const OTHER_RECORDS: u64 = 8;

/// rustls with its own buffers: every TLS version and suite, and the reference for any other
/// engine. It keeps one copy of each record's plaintext; the relay's batches make up for it.
pub(crate) struct Buffered {
    connection: Box<ClientConnection>,
    peer_closed: bool,
    /// Records that the keys can still seal. Past its limit rustls only says `close_notify` and
    /// swallows what it is given, so it must not come to that.
    records_left: u64,
}

impl Buffered {
    /// Takes over after the handshake.
    pub(crate) fn new(mut connection: Box<ClientConnection>) -> Self {
        // The relay bounds what is queued: it does not read the caller while records wait.
        connection.set_buffer_limit(None);
        let limit = match connection.negotiated_cipher_suite() {
            Some(SupportedCipherSuite::Tls12(suite)) => suite.common.confidentiality_limit,
            Some(SupportedCipherSuite::Tls13(_)) | None => u64::MAX,
        };
        Self {
            connection,
            peer_closed: false,
            records_left: limit.saturating_sub(OTHER_RECORDS),
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

    fn seal(&mut self, plain: &[u8]) -> Result<(), KeysExhausted> {
        let records = plain.len().div_ceil(RECORD) as u64;
        self.records_left = self
            .records_left
            .checked_sub(records)
            .ok_or(KeysExhausted)?;
        let taken = io::Write::write(&mut self.connection.writer(), plain);
        debug_assert_eq!(
            taken.ok(),
            Some(plain.len()),
            "no limit is set, so all is taken"
        );
        Ok(())
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::{ServerConfig, Tls12CipherSuite};

    use super::*;
    use crate::config::TlsVersion;
    use crate::tls::client_config::client_config;
    use crate::tls::test_pki::{self, Ca, at, handshake, now, policy, provider, trust};

    /// TLS 1.2 with AES-GCM whose keys are worn out after `limit` records.
    fn with_limit(limit: u64) -> rustls::crypto::CryptoProvider {
        let mut provider = provider();
        let aes = provider.cipher_suites.iter().find_map(|suite| match suite {
            SupportedCipherSuite::Tls12(suite) if suite.common.confidentiality_limit < u64::MAX => {
                Some(*suite)
            }
            SupportedCipherSuite::Tls12(_) | SupportedCipherSuite::Tls13(_) => None,
        });
        let aes = aes.unwrap();
        let suite: &'static Tls12CipherSuite = Box::leak(Box::new(Tls12CipherSuite {
            common: rustls::crypto::CipherSuiteCommon {
                confidentiality_limit: limit,
                ..aes.common
            },
            prf_provider: aes.prf_provider,
            kx: aes.kx,
            sign: aes.sign,
            aead_alg: aes.aead_alg,
        }));
        provider.cipher_suites = vec![SupportedCipherSuite::Tls12(suite)];
        provider
    }

    #[test]
    fn what_worn_out_keys_cannot_seal_is_refused_and_not_swallowed() {
        const LIMIT: u64 = 40;
        let ca = Ca::new("root");
        let leaf = ca.server();
        let mut policy = policy();
        policy.min_version = TlsVersion::Tls12;
        policy.max_version = TlsVersion::Tls12;
        let client =
            client_config(&policy, None, Some(&trust(&[&ca])), &with_limit(LIMIT)).unwrap();
        let client = at(&client, i64::try_from(now().as_secs()).unwrap());
        let server = ServerConfig::builder_with_provider(Arc::new(provider()))
            .with_protocol_versions(&[&rustls::version::TLS12])
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(test_pki::server(&leaf, &[]).cert_resolver);
        let mut established = handshake(&client, server, "localhost").unwrap();
        let mut session = Buffered::new(Box::new(established.client));
        let mut accepted = 0;
        while session.seal(b"x").is_ok() {
            accepted += 1;
            assert!(accepted < LIMIT, "records are counted");
        }
        let mut wire = Vec::new();
        while session.wants_write() {
            session.write(&mut wire).unwrap();
        }
        let mut wire = &wire[..];
        let mut received = Vec::new();
        while !wire.is_empty() {
            established.server.read_tls(&mut wire).unwrap();
            let state = established.server.process_new_packets().unwrap();
            assert!(!state.peer_has_closed());
            let mut part = vec![0; state.plaintext_bytes_to_read()];
            io::Read::read_exact(&mut established.server.reader(), &mut part).unwrap();
            received.extend(part);
        }
        assert_eq!(
            received.len() as u64,
            accepted,
            "what was taken has been sent"
        );
    }
}
