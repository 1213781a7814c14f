//! rustls' own record layer: for TLS 1.2, and for every version where `record_layer` says so.
//!
//! It opens each record into memory of its own and copies what it seals once more than
//! [`Records`](super::records::Records) does; the relay's batches make up for a part of it.

use std::io;

use rustls::client::UnbufferedClientConnection;
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus,
};
use rustls::{Error, InvalidMessage, SupportedCipherSuite};

use super::{KeysExhausted, Session};
use crate::proxy::scratch::{HEADROOM, Pieces};
use crate::tls::tickets::Provenance;

/// The largest plaintext of a record (RFC 8446 section 5.1), into which rustls cuts what it seals.
const RECORD: usize = 16 * 1024;

/// Room in front of the sealed records for what came with the handshake (one record's worth) and
/// for one more: from there on each plaintext fits before the end of the record that it came from.
const ROOM: usize = 2 * RECORD;

/// The most that rustls may ask us to hold back: a handshake message has at most 64 KiB, and in
/// records of a sensible size its wrapping does not add half as much.
const MAX_HELD_BACK: usize = HEADROOM - ROOM;

/// Records that are not ours to count: the handshake's last one and alerts.
const OTHER_RECORDS: u64 = 8;

/// An established session of any TLS version.
pub(crate) struct Unbuffered {
    connection: UnbufferedClientConnection,
    /// Of the tickets that come.
    provenance: Provenance,
    /// Bytes that rustls has seen and needs again: an incomplete record or handshake message.
    partial: Vec<u8>,
    /// What came with the handshake's last flight.
    early: Vec<u8>,
    peer_closed: bool,
    /// What broke the session: nothing is opened after it.
    failure: Option<Error>,
    /// Our last alert was queued: nothing is sealed after it.
    ended: bool,
    /// Records on their way out, and how many of their bytes are out.
    queue: Vec<u8>,
    written: usize,
    /// Records that the keys can still seal. rustls renews those of TLS 1.3; past the limit of
    /// TLS 1.2 it only says `close_notify` and swallows what it is given, so it must not come to
    /// that.
    records_left: u64,
}

impl Unbuffered {
    /// Takes over after the handshake, with what it had received beyond its own messages: opened
    /// already (`early`, at most one record, and whether `close_notify` was there) and not yet
    /// (`partial`). `flight` goes out before anything else.
    pub(super) fn new(
        connection: UnbufferedClientConnection,
        provenance: Provenance,
        partial: Vec<u8>,
        early: Vec<u8>,
        flight: Vec<u8>,
        peer_closed: bool,
    ) -> Self {
        let limit = match connection.negotiated_cipher_suite() {
            Some(SupportedCipherSuite::Tls12(suite)) => suite.common.confidentiality_limit,
            Some(SupportedCipherSuite::Tls13(_)) | None => u64::MAX,
        };
        Self {
            connection,
            provenance,
            partial,
            early,
            peer_closed,
            failure: None,
            ended: false,
            queue: flight,
            written: 0,
            records_left: limit.saturating_sub(OTHER_RECORDS),
        }
    }

    /// Session tickets of TLS 1.3 that have come.
    pub(super) fn tickets(&self) -> u32 {
        self.connection.tls13_tickets_received()
    }

    /// The state in which rustls seals, and whatever it has to say before it is in that.
    fn when_writing(
        &mut self,
        write: impl Fn(
            &mut rustls::unbuffered::WriteTraffic<'_, rustls::client::ClientConnectionData>,
            &mut [u8],
        ) -> Result<usize, EncryptError>,
    ) -> Result<(), KeysExhausted> {
        loop {
            // It has seen these bytes; it keeps places in them.
            let UnbufferedStatus { state, .. } =
                self.connection.process_tls_records(&mut self.partial);
            match state.map_err(|_| KeysExhausted)? {
                ConnectionState::EncodeTlsData(mut data) => {
                    encode(&mut data, &mut self.queue);
                }
                ConnectionState::TransmitTlsData(transmit) => transmit.done(),
                ConnectionState::PeerClosed => self.peer_closed = true,
                ConnectionState::WriteTraffic(mut traffic) => {
                    return grow(&mut self.queue, |room| {
                        write(&mut traffic, room).map_err(|error| match error {
                            EncryptError::InsufficientSize(needed) => Some(needed.required_size),
                            EncryptError::EncryptExhausted => None,
                        })
                    })
                    .ok_or(KeysExhausted);
                }
                _ => return Err(KeysExhausted),
            }
        }
    }
}

impl Session for Unbuffered {
    fn room(&self) -> usize {
        ROOM + self.partial.len()
    }

    fn open(&mut self, wire: &mut [u8], pieces: &mut Pieces) -> Result<(), Error> {
        if let Some(error) = &self.failure {
            return Err(error.clone());
        }
        let partial = std::mem::take(&mut self.partial);
        wire[ROOM..ROOM + partial.len()].copy_from_slice(&partial);
        let early = std::mem::take(&mut self.early);
        let mut opened = early.len();
        wire[..opened].copy_from_slice(&early);
        let mut at = ROOM;
        let result = loop {
            let (done, rest) = wire.split_at_mut(at);
            let UnbufferedStatus { discard, state } = self
                .provenance
                .within(|| self.connection.process_tls_records(rest));
            match state {
                Err(error) => break Err(error),
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    let mut more = 0;
                    while let Some(record) = traffic.next_record() {
                        // What rustls has opened it gives without fail.
                        let Ok(record) = record else { continue };
                        let end = opened + record.payload.len();
                        done[opened..end].copy_from_slice(record.payload);
                        (opened, more) = (end, more + record.discard);
                    }
                    at += more;
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    encode(&mut data, &mut self.queue);
                }
                Ok(ConnectionState::TransmitTlsData(transmit)) => transmit.done(),
                Ok(ConnectionState::PeerClosed) => self.peer_closed = true,
                // More is needed, or nothing more will come.
                Ok(_) => {
                    at += discard;
                    break Ok(());
                }
            }
            at += discard;
        };
        pieces.push(wire, 0..opened);
        let result = result.and_then(|()| {
            if self.peer_closed {
                return Ok(());
            }
            let rest = &wire[at..];
            if rest.len() > MAX_HELD_BACK {
                return Err(InvalidMessage::HandshakePayloadTooLarge.into());
            }
            self.partial = rest.to_vec();
            Ok(())
        });
        result.inspect_err(|error| {
            // The alert that rustls has ready.
            drain(&mut self.connection, &mut [], &mut self.queue);
            (self.failure, self.ended) = (Some(error.clone()), true);
        })
    }

    fn peer_closed(&self) -> bool {
        self.peer_closed
    }

    fn seal(&mut self, plain: &[u8]) -> Result<(), KeysExhausted> {
        if self.ended {
            return Err(KeysExhausted);
        }
        let records = plain.len().div_ceil(RECORD) as u64;
        self.records_left = self
            .records_left
            .checked_sub(records)
            .ok_or(KeysExhausted)?;
        self.when_writing(|traffic, room| traffic.encrypt(plain, room))
    }

    fn close(&mut self) {
        if !std::mem::replace(&mut self.ended, true) {
            // It fails for the reasons for which `open` has failed: nobody is left to tell.
            let _ = self.when_writing(|traffic, room| traffic.queue_close_notify(room));
        }
    }

    fn wants_write(&self) -> bool {
        !self.queue.is_empty()
    }

    fn write(&mut self, sink: &mut dyn io::Write) -> io::Result<usize> {
        let n = sink.write(&self.queue[self.written..])?;
        self.written += n;
        if self.written == self.queue.len() {
            (self.queue, self.written) = (Vec::new(), 0);
        }
        Ok(n)
    }
}

/// Takes what rustls wants to send, where it has stopped: after an error, or where the handshake
/// is over.
pub(in crate::proxy) fn drain(
    connection: &mut UnbufferedClientConnection,
    incoming: &mut [u8],
    out: &mut Vec<u8>,
) {
    // Before it looks at what came in, and that it must not do now, it gives out all of it.
    while connection.wants_write() {
        match connection.process_tls_records(incoming).state {
            Ok(ConnectionState::EncodeTlsData(mut data)) => encode(&mut data, out),
            _ => return,
        }
    }
}

/// Appends a record of rustls' own to what is to be sent.
pub(in crate::proxy) fn encode(
    data: &mut EncodeTlsData<'_, rustls::client::ClientConnectionData>,
    out: &mut Vec<u8>,
) {
    // It fails for want of room only.
    let _ = grow(out, |room| {
        data.encode(room).map_err(|error| match error {
            EncodeError::InsufficientSize(needed) => Some(needed.required_size),
            EncodeError::AlreadyEncoded => None,
        })
    });
}

/// Appends what `write` writes, which says how much room it needs. `None`: it cannot write.
fn grow(
    out: &mut Vec<u8>,
    mut write: impl FnMut(&mut [u8]) -> Result<usize, Option<usize>>,
) -> Option<()> {
    let before = out.len();
    let mut room = 0;
    loop {
        out.resize(before + room, 0);
        match write(&mut out[before..]) {
            Ok(n) => {
                out.truncate(before + n);
                return Some(());
            }
            Err(Some(needed)) if needed > room => room = needed,
            Err(_) => {
                out.truncate(before);
                return None;
            }
        }
    }
}

#[cfg(test)]
mod tests;
