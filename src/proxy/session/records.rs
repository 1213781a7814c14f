//! TLS 1.3 records (RFC 8446 section 5) of a session whose handshake is over.
//!
//! rustls keeps what is secret and hard: the handshake, the key schedule, tickets, and the sealing
//! and opening of each record with its nonce and tag (`MessageEncrypter`, `MessageDecrypter`).
//! Here is the rest: cutting the stream into records, sequence numbers, content types, handshake
//! messages that come after the handshake, alerts, and the limits that protect against a peer that
//! means ill. Records are opened where they were read to, and many go out in one write: that is
//! what makes it worth having beside rustls' own record layer.
//!
//! No I/O, no clock. Errors are those of rustls, and their alerts are those of RFC 8446: where
//! the two differ is told in `records/differential.rs`, which holds this against rustls.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::ops::Range;

use rustls::client::ClientConnectionData;
use rustls::crypto::cipher::{
    AeadKey, InboundOpaqueMessage, Iv, MessageDecrypter, MessageEncrypter, OutboundChunks,
    OutboundPlainMessage,
};
use rustls::kernel::KernelConnection;
use rustls::{
    AlertDescription, ConnectionTrafficSecrets, ContentType, Error, ExtractedSecrets,
    HandshakeType, InvalidMessage, PeerMisbehaved, ProtocolVersion, SupportedCipherSuite,
    Tls13CipherSuite,
};

use super::{KeysExhausted, Session};
use crate::proxy::scratch::Pieces;
use crate::tls::tickets::Provenance;

/// Content type, legacy version and length.
const HEADER: usize = 5;

/// The largest plaintext of a record (RFC 8446 section 5.1).
const MAX_PLAIN: usize = 1 << 14;

/// The largest sealed body of a record (section 5.2).
const MAX_SEALED: usize = MAX_PLAIN + 256;

/// The longest handshake message that is taken: a ticket has at most 64 KiB.
const MAX_MESSAGE: usize = 0xffff;

/// The longest ticket message that is kept. rustls would put one of 64 KiB into a ClientHello that
/// cannot hold it, and write a wrong length; those of real servers are a tenth of this at most,
/// the client's certificates included.
const MAX_TICKET: usize = 1 << 14;

/// Records of application data without a byte in them, until one with a byte comes. (rustls lets
/// any other message reset the count, so that it has no end.)
const MAX_EMPTY: u8 = 32;

/// KeyUpdates until application data comes; as rustls and BoringSSL, where empty records count as
/// data.
const MAX_KEY_UPDATES: u8 = 32;

/// `user_canceled` alerts, which mean nothing in TLS 1.3 and which old Java versions send; as
/// rustls and BoringSSL.
const MAX_WARNINGS: u8 = 4;

/// Records that are left for a KeyUpdate and for alerts where the others have used up a key.
const RESERVED: u64 = 8;

/// Sealed records that go out in one write, at most: a batch of the relay's.
const SLICES: usize = 32;

/// An established session of TLS 1.3.
pub(crate) struct Records {
    connection: KernelConnection<ClientConnectionData>,
    /// Of the tickets that come.
    provenance: Provenance,
    sealer: Sealer,
    opener: Opener,
    /// The beginning of a record whose end has not come.
    partial: Vec<u8>,
    /// The beginning of a handshake message whose end has not come.
    message: Vec<u8>,
    queue: Queue,
    peer_closed: bool,
    /// What broke the session: nothing is opened after it. In a box: an idle session has no use
    /// for the room.
    failure: Option<Box<Error>>,
    /// Our last alert was queued: nothing is sealed after it.
    ended: bool,
    /// The peer asked for new keys of ours and has not got them yet.
    key_update_due: bool,
    empties: u8,
    key_updates: u8,
    warnings: u8,
    tickets: u32,
}

impl Records {
    /// Takes over from `connection` with the secrets that were extracted from it, at the record
    /// that `partial` begins. `flight` goes out before anything else.
    ///
    /// # Errors
    /// The session is not one of TLS 1.3, or has sealed records already: AES-GCM's keys count
    /// theirs, and must be there from the first.
    pub(super) fn new(
        secrets: ExtractedSecrets,
        connection: KernelConnection<ClientConnectionData>,
        provenance: Provenance,
        partial: Vec<u8>,
        flight: Vec<u8>,
    ) -> Result<Self, Error> {
        let suite = tls13(&connection)?;
        let ExtractedSecrets {
            tx: (sealed, seal),
            rx: (opened, open),
        } = secrets;
        if sealed != 0 {
            return Err(Error::General("the session has sealed records".into()));
        }
        Ok(Self {
            sealer: Sealer::new(suite, seal)?,
            opener: Opener::new(suite, opened, open)?,
            connection,
            provenance,
            partial,
            message: Vec::new(),
            queue: Queue::beginning_with(flight),
            peer_closed: false,
            failure: None,
            ended: false,
            key_update_due: false,
            empties: 0,
            key_updates: 0,
            warnings: 0,
            tickets: 0,
        })
    }

    /// Session tickets that have come.
    pub(super) fn tickets(&self) -> u32 {
        self.tickets
    }

    /// Opens the records of `wire` one after another; returns where the last whole one ends.
    fn open_whole(&mut self, wire: &mut [u8], pieces: &mut Pieces) -> Result<usize, Fatal> {
        let mut at = 0;
        // RFC 8446 section 6.1: what comes after close_notify is ignored.
        while !self.peer_closed
            && let Some(body) = body(&wire[at..])?
        {
            let body = at + body.start..at + body.end;
            at = body.end;
            let (kind, plain) = self.opener.open(wire, body)?;
            if kind != ContentType::Handshake && !self.message.is_empty() {
                return Err(PeerMisbehaved::MessageInterleavedWithHandshakeMessage.into());
            }
            match kind {
                ContentType::ApplicationData => {
                    self.count_data(plain.len())?;
                    pieces.push(wire, plain);
                }
                ContentType::Handshake => self.take_handshake(&wire[plain])?,
                ContentType::Alert => self.take_alert(&wire[plain])?,
                kind => return Err(unexpected(kind)),
            }
        }
        Ok(if self.peer_closed { wire.len() } else { at })
    }

    fn count_data(&mut self, len: usize) -> Result<(), Fatal> {
        if len > 0 {
            (self.empties, self.key_updates) = (0, 0);
            return Ok(());
        }
        count(&mut self.empties, MAX_EMPTY).ok_or(PeerMisbehaved::TooManyEmptyFragments)?;
        Ok(())
    }

    /// Part of a handshake message, or several of them (RFC 8446 section 5.1).
    fn take_handshake(&mut self, fragment: &[u8]) -> Result<(), Fatal> {
        if fragment.is_empty() {
            return Err(empty());
        }
        if self.message.is_empty() {
            let rest = self.take_messages(fragment)?;
            self.message = rest.to_vec();
            return Ok(());
        }
        let mut bytes = std::mem::take(&mut self.message);
        bytes.extend_from_slice(fragment);
        let rest = self.take_messages(&bytes)?.len();
        // In place: a message in a thousand fragments is not copied a thousand times.
        bytes.drain(..bytes.len() - rest);
        if !bytes.is_empty() {
            self.message = bytes;
        }
        Ok(())
    }

    /// Handles every whole message; returns what is left.
    fn take_messages<'m>(&mut self, mut bytes: &'m [u8]) -> Result<&'m [u8], Fatal> {
        while let [kind, high, middle, low, rest @ ..] = bytes {
            let len = u32::from_be_bytes([0, *high, *middle, *low]) as usize;
            if len > MAX_MESSAGE {
                return Err(InvalidMessage::HandshakePayloadTooLarge.into());
            }
            let kind = HandshakeType::from(*kind);
            // None of the others is waited for.
            let expected = [HandshakeType::NewSessionTicket, HandshakeType::KeyUpdate];
            if !expected.contains(&kind) {
                let error = Error::InappropriateHandshakeMessage {
                    expect_types: expected.into(),
                    got_type: kind,
                };
                return Err(Fatal::new(AlertDescription::UnexpectedMessage, error));
            }
            let Some((body, after)) = rest.split_at_checked(len) else {
                break;
            };
            if kind == HandshakeType::NewSessionTicket {
                if len <= MAX_TICKET {
                    self.provenance
                        .within(|| self.connection.handle_new_session_ticket(body))?;
                }
                self.tickets = self.tickets.saturating_add(1);
            } else if after.is_empty() {
                self.take_key_update(body)?;
            } else {
                // Bytes under the old key would become part of a message under the new one.
                return Err(PeerMisbehaved::KeyEpochWithPendingFragment.into());
            }
            bytes = after;
        }
        Ok(bytes)
    }

    /// RFC 8446 section 4.6.3. Our own new keys, if they are asked for, come before the next data
    /// or end that we send, however often they are asked for until then.
    fn take_key_update(&mut self, body: &[u8]) -> Result<(), Fatal> {
        const NOT_REQUESTED: u8 = 0;
        const REQUESTED: u8 = 1;
        let requested = match *body {
            [NOT_REQUESTED] => false,
            [REQUESTED] => true,
            [_] => {
                let error = InvalidMessage::InvalidKeyUpdate.into();
                return Err(Fatal::new(AlertDescription::IllegalParameter, error));
            }
            _ => return Err(InvalidMessage::InvalidKeyUpdate.into()),
        };
        count(&mut self.key_updates, MAX_KEY_UPDATES)
            .ok_or(PeerMisbehaved::TooManyKeyUpdateRequests)?;
        let (seq, secrets) = self.connection.update_rx_secret()?;
        self.opener = Opener::new(tls13(&self.connection)?, seq, secrets)?;
        self.key_update_due |= requested;
        Ok(())
    }

    /// RFC 8446 section 6. The level says nothing that the description does not.
    fn take_alert(&mut self, alert: &[u8]) -> Result<(), Fatal> {
        let description = match *alert {
            [_, description] => AlertDescription::from(description),
            [] => return Err(empty()),
            // An alert has a record for itself (section 5.1).
            [_] => return Err(InvalidMessage::MessageTooShort.into()),
            _ => return Err(InvalidMessage::TrailingData("Alert").into()),
        };
        match description {
            AlertDescription::CloseNotify => {
                self.peer_closed = true;
                Ok(())
            }
            AlertDescription::UserCanceled => {
                count(&mut self.warnings, MAX_WARNINGS)
                    .ok_or(PeerMisbehaved::TooManyWarningAlertsReceived)?;
                Ok(())
            }
            description => Err(Fatal {
                alert: None,
                error: Error::AlertReceived(description),
            }),
        }
    }

    /// Says that from the next record on we seal with new keys, and does so.
    fn renew_keys(&mut self) -> Result<(), Error> {
        const KEY_UPDATE: [u8; 5] = [24, 0, 0, 1, 0];
        self.queue(ContentType::Handshake, &KEY_UPDATE)?;
        let (_, secrets) = self.connection.update_tx_secret()?;
        self.sealer = Sealer::new(tls13(&self.connection)?, secrets)?;
        self.key_update_due = false;
        Ok(())
    }

    fn seal_data(&mut self, plain: &[u8]) -> Result<(), Error> {
        if self.key_update_due {
            self.renew_keys()?;
        }
        for fragment in plain.chunks(MAX_PLAIN) {
            if self.sealer.is_worn_out() {
                self.renew_keys()?;
            }
            self.queue(ContentType::ApplicationData, fragment)?;
        }
        Ok(())
    }

    fn queue(&mut self, kind: ContentType, plain: &[u8]) -> Result<(), Error> {
        let record = self.sealer.seal(kind, plain)?;
        self.queue.records.push_back(record);
        Ok(())
    }

    /// Our last words, once.
    fn queue_alert(&mut self, level: u8, description: AlertDescription) {
        if !std::mem::replace(&mut self.ended, true) {
            // Alerts have records kept for them, and there is nobody left to tell.
            let _ = self.queue(ContentType::Alert, &[level, description.into()]);
        }
    }
}

impl Session for Records {
    fn room(&self) -> usize {
        self.partial.len()
    }

    fn open(&mut self, wire: &mut [u8], pieces: &mut Pieces) -> Result<(), Error> {
        if let Some(error) = &self.failure {
            return Err(Error::clone(error));
        }
        let partial = std::mem::take(&mut self.partial);
        wire[..partial.len()].copy_from_slice(&partial);
        match self.open_whole(wire, pieces) {
            Ok(end) => {
                self.partial = wire[end..].to_vec();
                Ok(())
            }
            Err(Fatal { alert, error }) => {
                const FATAL: u8 = 2;
                if let Some(alert) = alert {
                    self.queue_alert(FATAL, alert);
                }
                // An error of the peer's own making is not answered, and ends us all the same.
                self.ended = true;
                self.failure = Some(Box::new(error.clone()));
                Err(error)
            }
        }
    }

    fn peer_closed(&self) -> bool {
        self.peer_closed
    }

    fn seal(&mut self, plain: &[u8]) -> Result<(), KeysExhausted> {
        if self.ended {
            return Err(KeysExhausted);
        }
        self.seal_data(plain).map_err(|_| {
            self.ended = true;
            KeysExhausted
        })
    }

    fn close(&mut self) {
        const WARNING: u8 = 1;
        // Java takes a close_notify in place of the new keys that it has asked for as an offence.
        if self.key_update_due && !self.ended {
            // Without new keys there is still an end.
            let _ = self.renew_keys();
        }
        self.queue_alert(WARNING, AlertDescription::CloseNotify);
    }

    fn wants_write(&self) -> bool {
        !self.queue.records.is_empty()
    }

    fn write(&mut self, sink: &mut dyn io::Write) -> io::Result<usize> {
        self.queue.write(sink)
    }
}

/// A record's body, once all of it is there: what comes after the header that `wire` begins with.
fn body(wire: &[u8]) -> Result<Option<Range<usize>>, Fatal> {
    // From the handshake on every record is sealed, and looks like application data (RFC 8446
    // section 5.2). An alert in the clear may come from anybody. What is not TLS is not waited for.
    if let Some(kind) = wire.first().copied().map(ContentType::from)
        && kind != ContentType::ApplicationData
    {
        return Err(unexpected(kind));
    }
    if wire.get(1).is_some_and(|major| *major != 3) {
        return Err(InvalidMessage::UnknownProtocolVersion.into());
    }
    let [_, _, _, high, low, rest @ ..] = wire else {
        return Ok(None);
    };
    let len = usize::from(u16::from_be_bytes([*high, *low]));
    if len > MAX_SEALED {
        let error = Error::PeerSentOversizedRecord;
        return Err(Fatal::new(AlertDescription::RecordOverflow, error));
    }
    Ok((rest.len() >= len).then_some(HEADER..HEADER + len))
}

/// Counts one more, unless there have been `max`.
fn count(counted: &mut u8, max: u8) -> Option<()> {
    let more = *counted < max;
    *counted += u8::from(more);
    more.then_some(())
}

/// What ends the session, and the alert that tells the peer. `None` where it was the peer that
/// told us.
struct Fatal {
    alert: Option<AlertDescription>,
    error: Error,
}

impl Fatal {
    fn new(alert: AlertDescription, error: Error) -> Self {
        Self {
            alert: Some(alert),
            error,
        }
    }
}

fn unexpected(got_type: ContentType) -> Fatal {
    let error = Error::InappropriateMessage {
        expect_types: vec![ContentType::ApplicationData, ContentType::Handshake],
        got_type,
    };
    Fatal::new(AlertDescription::UnexpectedMessage, error)
}

/// Neither a handshake fragment nor an alert may be empty (RFC 8446 section 5.4).
fn empty() -> Fatal {
    let error = InvalidMessage::InvalidEmptyPayload.into();
    Fatal::new(AlertDescription::UnexpectedMessage, error)
}

impl From<InvalidMessage> for Fatal {
    fn from(invalid: InvalidMessage) -> Self {
        Error::from(invalid).into()
    }
}

impl From<PeerMisbehaved> for Fatal {
    fn from(misbehaved: PeerMisbehaved) -> Self {
        Error::from(misbehaved).into()
    }
}

impl From<Error> for Fatal {
    fn from(error: Error) -> Self {
        let alert = match &error {
            Error::DecryptError => AlertDescription::BadRecordMac,
            Error::PeerSentOversizedRecord => AlertDescription::RecordOverflow,
            Error::InvalidMessage(invalid) => (*invalid).into(),
            Error::PeerMisbehaved(_) => AlertDescription::UnexpectedMessage,
            // Nothing that a peer can bring about.
            _ => AlertDescription::InternalError,
        };
        Self::new(alert, error)
    }
}

/// Seals records under one key.
struct Sealer {
    cipher: Box<dyn MessageEncrypter>,
    /// Records sealed so far.
    seq: u64,
    limit: u64,
}

impl Sealer {
    fn new(
        suite: &'static Tls13CipherSuite,
        secrets: ConnectionTrafficSecrets,
    ) -> Result<Self, Error> {
        let (key, iv) = key_and_iv(secrets)?;
        // Only AES-GCM has a limit that can be reached (RFC 8446 section 5.5).
        let limit = suite.common.confidentiality_limit.min(1 << 48);
        Ok(Self {
            cipher: suite.aead_alg.encrypter(key, iv),
            seq: 0,
            limit,
        })
    }

    /// What it can still seal is kept for a KeyUpdate and alerts.
    fn is_worn_out(&self) -> bool {
        self.seq.saturating_add(RESERVED) >= self.limit
    }

    /// A whole record with its header.
    fn seal(&mut self, kind: ContentType, plain: &[u8]) -> Result<Vec<u8>, Error> {
        let message = OutboundPlainMessage {
            typ: kind,
            version: ProtocolVersion::TLSv1_2,
            payload: OutboundChunks::Single(plain),
        };
        // Not before it has been renewed, whatever the callers do.
        if self.seq >= self.limit {
            return Err(Error::EncryptError);
        }
        let sealed = self.cipher.encrypt(message, self.seq)?;
        self.seq += 1;
        Ok(sealed.encode())
    }
}

/// Opens records under one key.
struct Opener {
    cipher: Box<dyn MessageDecrypter>,
    /// Records opened so far.
    seq: u64,
}

impl Opener {
    fn new(
        suite: &'static Tls13CipherSuite,
        seq: u64,
        secrets: ConnectionTrafficSecrets,
    ) -> Result<Self, Error> {
        let (key, iv) = key_and_iv(secrets)?;
        Ok(Self {
            cipher: suite.aead_alg.decrypter(key, iv),
            seq,
        })
    }

    /// Opens the record whose body is at `body`, in place; returns its inner content type and
    /// where its plaintext lies, without padding.
    fn open(
        &mut self,
        wire: &mut [u8],
        body: Range<usize>,
    ) -> Result<(ContentType, Range<usize>), Error> {
        let base = wire.as_ptr().addr();
        let message = InboundOpaqueMessage::new(
            ContentType::ApplicationData,
            ProtocolVersion::TLSv1_2,
            &mut wire[body],
        );
        let opened = self.cipher.decrypt(message, self.seq)?;
        self.seq += 1;
        let start = opened.payload.as_ptr().addr() - base;
        Ok((opened.typ, start..start + opened.payload.len()))
    }
}

/// Sealed records on their way out.
#[derive(Default)]
struct Queue {
    records: VecDeque<Vec<u8>>,
    /// Bytes of the first that are out.
    written: usize,
}

impl Queue {
    fn beginning_with(bytes: Vec<u8>) -> Self {
        let mut queue = Self::default();
        if !bytes.is_empty() {
            queue.records.push_back(bytes);
        }
        queue
    }

    fn write(&mut self, sink: &mut dyn io::Write) -> io::Result<usize> {
        let mut slices = [IoSlice::new(&[]); SLICES];
        let mut skip = self.written;
        let mut filled = 0;
        for (slice, record) in slices.iter_mut().zip(&self.records) {
            *slice = IoSlice::new(&record[skip..]);
            (skip, filled) = (0, filled + 1);
        }
        let n = sink.write_vectored(&slices[..filled])?;
        self.written += n;
        while let Some(first) = self.records.front()
            && first.len() <= self.written
        {
            self.written -= first.len();
            self.records.pop_front();
        }
        if self.records.is_empty() {
            // An idle session holds none of it.
            self.records = VecDeque::new();
        }
        Ok(n)
    }
}

fn tls13(
    connection: &KernelConnection<ClientConnectionData>,
) -> Result<&'static Tls13CipherSuite, Error> {
    match connection.negotiated_cipher_suite() {
        SupportedCipherSuite::Tls13(suite) => Ok(suite),
        SupportedCipherSuite::Tls12(_) => Err(Error::General("not a session of TLS 1.3".into())),
    }
}

fn key_and_iv(secrets: ConnectionTrafficSecrets) -> Result<(AeadKey, Iv), Error> {
    match secrets {
        ConnectionTrafficSecrets::Aes128Gcm { key, iv }
        | ConnectionTrafficSecrets::Aes256Gcm { key, iv }
        | ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => Ok((key, iv)),
        _ => Err(Error::General("an AEAD that is not known here".into())),
    }
}

#[cfg(any(test, fuzzing))]
pub(crate) mod differential;
#[cfg(any(test, fuzzing))]
pub(crate) mod peer;
#[cfg(test)]
pub(crate) mod plans;
#[cfg(test)]
mod tests;
