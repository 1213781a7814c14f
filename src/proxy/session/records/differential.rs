//! The same words to [`Records`] and to rustls' buffered connection: both must make the same of
//! them. For tests and fuzzers.

use std::io::{Read as _, Write as _};
use std::sync::Arc;

use rustls::{ClientConnection, Error, InvalidMessage, PeerMisbehaved, ServerConfig};
use rustls_pki_types::ServerName;

use super::peer::{
    ALERT, DATA, HANDSHAKE, Heard, KEY_UPDATE, Peer, message, shake_hands, shake_hands_buffered,
    ticket,
};
use crate::proxy::scratch::{HEADROOM, Pieces};
use crate::proxy::session::{Engine, Session as _};
use crate::tls::client_config::Connector;

/// What a server does after the handshake, and how its bytes are cut apart on the way.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) steps: Vec<Step>,
    /// Sizes of what is read at once, in turn; none: all of it.
    pub(crate) cuts: Vec<u16>,
    /// In the end the client closes.
    pub(crate) close: bool,
}

#[derive(Clone, Debug)]
pub(crate) enum Step {
    Data {
        len: u16,
        padding: u16,
    },
    /// Handshake messages, one after another, in records of so many bytes (0: in one).
    Messages {
        messages: Vec<Message>,
        fragment: u16,
    },
    Alert(Vec<u8>),
    /// A record with this inner content type, and of this length.
    Inner {
        kind: u8,
        len: u16,
    },
    /// A good record with this header in front.
    Outer {
        kind: u8,
        version: u16,
        longer: u16,
    },
    /// A record with one byte changed.
    Flipped {
        len: u16,
        at: u16,
    },
    Junk(Vec<u8>),
    /// The client sends so much.
    Answer {
        len: u16,
    },
}

#[derive(Clone, Debug)]
pub(crate) enum Message {
    Ticket(u16),
    KeyUpdate(Vec<u8>),
    /// This type and this much of a body that announces so many bytes.
    Other {
        kind: u8,
        announced: u32,
        len: u16,
    },
}

impl Message {
    fn encode(&self) -> Vec<u8> {
        match self {
            Self::Ticket(len) => ticket(*len),
            Self::KeyUpdate(body) => message(KEY_UPDATE, body),
            Self::Other {
                kind,
                announced,
                len,
            } => {
                let [_, high, middle, low] = announced.to_be_bytes();
                let mut bytes = vec![*kind, high, middle, low];
                bytes.extend(vec![1; usize::from(*len)]);
                bytes
            }
        }
    }
}

impl Plan {
    /// The plan that these bytes stand for; any will do. First the cuts, then steps: kind and
    /// number of times in one byte, then sizes and the like.
    pub(crate) fn read(mut bytes: &[u8]) -> Self {
        /// So that a fuzzer does not gather plans that take seconds.
        const MAX_STEPS: usize = 128;
        /// More than any limit on repetitions.
        const MANY: usize = 34;
        let bytes = &mut bytes;
        let (cuts, close) = match byte(bytes) {
            0 => (Vec::new(), true),
            first => {
                let more = u16::from(byte(bytes) / 2);
                (vec![u16::from(first), more * more + 1], first % 2 == 0)
            }
        };
        let mut steps = Vec::new();
        while !bytes.is_empty() && steps.len() < MAX_STEPS {
            let first = byte(bytes);
            let step = match first % 8 {
                0 => Step::Data {
                    len: word(bytes) % 16_390,
                    padding: word(bytes) % 16_390,
                },
                1 => Step::Messages {
                    fragment: word(bytes) % 2_000,
                    messages: vec![Message::KeyUpdate(vec![byte(bytes) % 3])],
                },
                2 => {
                    let fragment = word(bytes) % 2_000;
                    let mut messages = Vec::new();
                    for _ in 0..1 + byte(bytes) % 4 {
                        messages.push(match byte(bytes) % 4 {
                            0 => Message::Ticket(u16::from_be_bytes([byte(bytes), byte(bytes)])),
                            1 => {
                                Message::KeyUpdate(vec![byte(bytes); usize::from(byte(bytes) % 3)])
                            }
                            _ => Message::Other {
                                kind: byte(bytes),
                                announced: u32::from_be_bytes([
                                    0,
                                    byte(bytes) % 2,
                                    byte(bytes),
                                    byte(bytes),
                                ]),
                                len: u16::from(byte(bytes)),
                            },
                        });
                    }
                    Step::Messages { messages, fragment }
                }
                3 => Step::Alert((0..byte(bytes) % 4).map(|_| byte(bytes)).collect()),
                4 => Step::Inner {
                    kind: byte(bytes),
                    len: word(bytes) % 16_390,
                },
                5 => Step::Outer {
                    kind: byte(bytes),
                    version: word(bytes),
                    longer: word(bytes),
                },
                6 => Step::Flipped {
                    len: word(bytes) % 16_390,
                    at: word(bytes),
                },
                _ if first & 0x10 == 0 => Step::Answer { len: word(bytes) },
                _ => Step::Junk((0..byte(bytes)).map(|_| byte(bytes)).collect()),
            };
            let times = if first >= 0xf0 { MANY } else { 1 };
            steps.extend(vec![step; times]);
        }
        Self { steps, cuts, close }
    }

    /// Plays the plan to our record layer and to that of rustls.
    ///
    /// # Panics
    /// If the two make different things of it, but for [`DIFFERENCES`].
    pub(crate) fn compare(
        &self,
        client: &Connector,
        server: &Arc<ServerConfig>,
        name: &ServerName<'static>,
    ) {
        let (ours, theirs) = self.outcomes(client, server, name);
        if let Err(why) = judge(&ours, &theirs) {
            panic!("{why}\nours: {ours:?}\nrustls: {theirs:?}\nplan: {self:?}");
        }
    }

    /// The same where `client` leaves the records to rustls: it differs from itself by the size of
    /// its buffers only.
    #[cfg(test)]
    pub(crate) fn compare_unbuffered(
        &self,
        client: &Connector,
        server: &Arc<ServerConfig>,
        name: &ServerName<'static>,
    ) {
        let (unbuffered, buffered) = self.outcomes(client, server, name);
        let full = matches!(buffered.error, Some(Error::General(_)));
        let same = unbuffered.error == buffered.error
            && unbuffered.plain == buffered.plain
            && unbuffered.data == buffered.data
            && unbuffered.alerts == buffered.alerts;
        assert!(
            full || same,
            "unbuffered: {unbuffered:?}\nbuffered: {buffered:?}\nplan: {self:?}"
        );
    }

    fn outcomes(
        &self,
        client: &Connector,
        server: &Arc<ServerConfig>,
        name: &ServerName<'static>,
    ) -> (Outcome, Outcome) {
        let (established, peer) = shake_hands(client, server, name.clone());
        let session = established.into_session().expect("the handshake is over");
        let ours = self.play(Ours::new(session), peer);
        let (connection, peer) = shake_hands_buffered(client, server, name.clone());
        (ours, self.play(Theirs(connection), peer))
    }

    fn play(&self, client: impl Client, peer: Peer) -> Outcome {
        let mut stage = Stage {
            client,
            peer,
            wire: Vec::new(),
            numbers: 0,
            cuts: &self.cuts,
            cut: 0,
            outcome: Outcome::default(),
        };
        for step in &self.steps {
            stage.step(step);
        }
        stage.deliver();
        if stage.outcome.error.is_none() && self.close {
            stage.client.close();
        }
        stage.listen();
        stage.outcome
    }
}

fn byte(bytes: &mut &[u8]) -> u8 {
    match bytes.split_first() {
        Some((first, rest)) => {
            *bytes = rest;
            *first
        }
        None => 0,
    }
}

fn word(bytes: &mut &[u8]) -> u16 {
    u16::from_be_bytes([byte(bytes), byte(bytes)])
}

/// What came of it.
#[derive(Debug, Default)]
struct Outcome {
    plain: Vec<u8>,
    closed: bool,
    error: Option<Error>,
    /// What the server heard.
    data: Vec<u8>,
    alerts: Vec<u8>,
}

trait Client {
    /// # Errors
    /// The session failed.
    fn open(&mut self, piece: &[u8], plain: &mut Vec<u8>) -> Result<(), Error>;
    fn closed(&mut self) -> bool;
    fn send(&mut self, data: &[u8]);
    fn close(&mut self);
    fn said(&mut self) -> Vec<u8>;
}

struct Stage<'p, C> {
    client: C,
    peer: Peer,
    /// Said by the server, and not delivered.
    wire: Vec<u8>,
    /// Application data is made of it, so that no two parts are alike.
    numbers: u32,
    cuts: &'p [u16],
    cut: usize,
    outcome: Outcome,
}

impl<C: Client> Stage<'_, C> {
    fn step(&mut self, step: &Step) {
        match step {
            Step::Data { len, padding } => {
                let content = self.content(usize::from(*len));
                self.say(DATA, &content, usize::from(*padding));
            }
            Step::Messages { messages, fragment } => self.messages(messages, *fragment),
            Step::Alert(content) => self.say(ALERT, content, 0),
            Step::Inner { kind, len } => {
                let content = self.content(usize::from(*len));
                self.say(*kind, &content, 0);
            }
            Step::Outer {
                kind,
                version,
                longer,
            } => {
                let content = self.content(16);
                let mut record = self.peer.data(&content);
                record[0] = *kind;
                record[1..3].copy_from_slice(&version.to_be_bytes());
                let len = u16::from_be_bytes([record[3], record[4]]).saturating_add(*longer);
                record[3..5].copy_from_slice(&len.to_be_bytes());
                record.extend(vec![0; usize::from(*longer)]);
                self.wire.extend(record);
            }
            Step::Flipped { len, at } => {
                let content = self.content(usize::from(*len));
                let mut record = self.peer.data(&content);
                let body = record.len() - super::HEADER;
                record[super::HEADER + usize::from(*at) % body] ^= 1;
                self.wire.extend(record);
            }
            Step::Junk(bytes) => self.wire.extend(bytes),
            Step::Answer { len } => {
                self.deliver();
                let content = self.content(usize::from(*len));
                if self.outcome.error.is_none() {
                    self.client.send(&content);
                }
                self.listen();
            }
        }
    }

    /// Messages in fragments. The key changes with the record that ends a KeyUpdate.
    fn messages(&mut self, messages: &[Message], fragment: u16) {
        let mut bytes = Vec::new();
        let mut changes = Vec::new();
        for message in messages {
            bytes.extend(message.encode());
            if let Message::KeyUpdate(_) = message {
                changes.push(bytes.len());
            }
        }
        let size = match fragment {
            // A record's worth.
            0 => super::MAX_PLAIN,
            // What takes thousands of records takes minutes.
            size => usize::from(size).max(bytes.len() / 512),
        };
        let mut said = 0;
        for part in bytes.chunks(size) {
            self.say(HANDSHAKE, part, 0);
            let ended = said + part.len();
            for _ in changes.iter().filter(|at| (said + 1..=ended).contains(at)) {
                self.peer.renew_keys();
            }
            said = ended;
        }
    }

    fn say(&mut self, kind: u8, content: &[u8], padding: usize) {
        let record = self.peer.seal(kind, content, padding);
        self.wire.extend(record);
    }

    fn content(&mut self, len: usize) -> Vec<u8> {
        let words = (0..len.div_ceil(4)).flat_map(|_| {
            self.numbers += 1;
            self.numbers.to_be_bytes()
        });
        words.take(len).collect()
    }

    /// Lets the client have what the server has said, piece by piece.
    fn deliver(&mut self) {
        let wire = std::mem::take(&mut self.wire);
        let mut wire = &wire[..];
        while !wire.is_empty() && self.outcome.error.is_none() && !self.outcome.closed {
            let len = match self.cuts.get(self.cut % self.cuts.len().max(1)) {
                Some(cut) => usize::from(*cut).clamp(1, wire.len()),
                None => wire.len(),
            };
            self.cut += 1;
            let (piece, rest) = wire.split_at(len);
            wire = rest;
            let opened = self.client.open(piece, &mut self.outcome.plain);
            self.outcome.error = opened.err();
            self.outcome.closed = self.client.closed();
        }
    }

    fn listen(&mut self) {
        for heard in self.peer.hear(&self.client.said()) {
            match heard {
                Heard::Data(data) => self.outcome.data.extend(data),
                Heard::Alert { description, .. } => self.outcome.alerts.push(description),
                Heard::KeyUpdate(request) => assert_eq!(request, 0, "an answer asks for nothing"),
            }
        }
    }
}

/// The way the relay does it.
struct Ours {
    session: Engine,
    buffer: Vec<u8>,
    pieces: Pieces,
}

impl Ours {
    fn new(session: Engine) -> Self {
        Self {
            session,
            buffer: vec![0; HEADROOM + (1 << 20)],
            pieces: Pieces::default(),
        }
    }
}

impl Client for Ours {
    fn open(&mut self, piece: &[u8], plain: &mut Vec<u8>) -> Result<(), Error> {
        for piece in piece.chunks(1 << 20) {
            let room = self.session.room();
            let end = room + piece.len();
            self.buffer[room..end].copy_from_slice(piece);
            self.pieces.clear();
            let opened = self.session.open(&mut self.buffer[..end], &mut self.pieces);
            plain.extend(self.pieces.to_vec(&self.buffer));
            opened?;
        }
        Ok(())
    }

    fn closed(&mut self) -> bool {
        self.session.peer_closed()
    }

    fn send(&mut self, data: &[u8]) {
        self.session.seal(data).expect("keys are renewed");
    }

    fn close(&mut self) {
        self.session.close();
    }

    fn said(&mut self) -> Vec<u8> {
        let mut said = Vec::new();
        while self.session.wants_write() {
            self.session.write(&mut said).expect("a Vec takes it");
        }
        said
    }
}

struct Theirs(ClientConnection);

impl Client for Theirs {
    fn open(&mut self, mut piece: &[u8], plain: &mut Vec<u8>) -> Result<(), Error> {
        while !piece.is_empty() && !self.closed() {
            if let Err(full) = self.0.read_tls(&mut piece) {
                return Err(Error::General(full.to_string()));
            }
            let processed = self.0.process_new_packets();
            // It ends with an error where more may come.
            let _ = self.0.reader().read_to_end(plain);
            processed?;
        }
        Ok(())
    }

    fn closed(&mut self) -> bool {
        let state = self.0.process_new_packets();
        state.is_ok_and(|state| state.peer_has_closed())
    }

    fn send(&mut self, data: &[u8]) {
        self.0.writer().write_all(data).expect("it has no limit");
    }

    fn close(&mut self) {
        self.0.send_close_notify();
    }

    fn said(&mut self) -> Vec<u8> {
        let mut said = Vec::new();
        while self.0.wants_write() {
            self.0.write_tls(&mut said).expect("a Vec takes it");
        }
        said
    }
}

/// Where we mean to differ from rustls: what we say, what it says, and why. One of the two goes
/// on longer than the other then; what it has read in excess is not held against it.
#[rustfmt::skip]
const DIFFERENCES: &[(Verdict, Verdict, &str)] = &[
    (|e| matches!(e, Some(Error::InappropriateMessage { .. })), |_| true,
     "outer content types other than application data, and inner ones that do not exist, are an \
      unexpected_message (RFC 8446 sections 5 and 5.2); rustls opens the former whatever their \
      type, and calls both a decode_error where it does not know them"),
    (|e| matches!(e, Some(Error::PeerSentOversizedRecord)), |_| true,
     "a record's length is judged by its header (section 5.2), and at 2^14 + 256; rustls waits for \
      the record, and takes 2^14 + 2048"),
    (|e| matches!(e, Some(Error::InvalidMessage(InvalidMessage::InvalidEmptyPayload))), |_| true,
     "empty handshake fragments and alerts are an unexpected_message (section 5.4); rustls takes \
      the former, and calls the latter a decode_error"),
    (|e| matches!(e, Some(Error::InvalidMessage(InvalidMessage::UnknownProtocolVersion))), |_| true,
     "legacy_record_version has a first byte of 3; rustls lets through those of SSL 2 and DTLS"),
    (|e| matches!(e, Some(Error::InappropriateHandshakeMessage { .. })), |_| true,
     "a message of the wrong type is refused by its header; rustls waits for the rest and parses it"),
    (|e| matches!(e, Some(Error::PeerMisbehaved(PeerMisbehaved::TooManyEmptyFragments))), |_| true,
     "empty records count until data comes; with rustls other messages reset the count"),
    (|e| matches!(e, Some(Error::PeerMisbehaved(PeerMisbehaved::TooManyKeyUpdateRequests))), |_| true,
     "KeyUpdates count until data comes; with rustls an empty record will do"),
    (|e| matches!(e, Some(Error::PeerMisbehaved(PeerMisbehaved::KeyEpochWithPendingFragment))),
     |e| matches!(e, Some(Error::InvalidMessage(_))),
     "rustls looks into a KeyUpdate, and at the length of what follows, before where it stands"),
    (|e| matches!(e, Some(Error::InvalidMessage(_))),
     |e| matches!(e, Some(Error::PeerMisbehaved(PeerMisbehaved::TooManyKeyUpdateRequests))),
     "rustls counts a KeyUpdate before it looks into it"),
    (|e| matches!(e, Some(Error::AlertReceived(_))),
     |e| matches!(e, Some(Error::PeerMisbehaved(PeerMisbehaved::TooManyWarningAlertsReceived))),
     "what is counted is user_canceled; with rustls, whatever comes at the level of a warning"),
    (|_| true, |e| matches!(e, Some(Error::General(_))),
     "a message in many fragments is joined as it comes; rustls keeps the fragments' headers and \
      tags until it is whole, and has 64 KiB for both"),
    (|_| true, |e| matches!(e, Some(Error::AlertReceived(_))),
     "an alert is what its description says, and user_canceled is nothing (section 6: the level \
      can safely be ignored); rustls refuses unknown levels, and user_canceled as fatal"),
];

type Verdict = fn(Option<&Error>) -> bool;

/// Errors of which rustls does not tell the peer. We do.
fn silent(error: &Error) -> bool {
    matches!(
        error,
        Error::PeerMisbehaved(_)
            | Error::InvalidMessage(InvalidMessage::HandshakePayloadTooLarge)
            | Error::AlertReceived(_)
    )
}

fn judge(ours: &Outcome, theirs: &Outcome) -> Result<(), String> {
    let told = match &ours.error {
        None => ours.alerts.iter().all(|alert| *alert == 0),
        Some(Error::AlertReceived(_)) => ours.alerts.is_empty(),
        Some(_) => ours.alerts.len() == 1 && ours.alerts[0] != 0,
    };
    if !told {
        return Err("an error has one alert of ours, but for an alert of the peer's".into());
    }
    let (a, b) = (ours.error.as_ref(), theirs.error.as_ref());
    let same = match (a, b) {
        // Which part of a message is missing is in the words only.
        (Some(Error::InvalidMessage(_)), Some(Error::InvalidMessage(_))) => true,
        (a, b) => a == b,
    };
    let whole = ours.plain == theirs.plain && ours.data == theirs.data;
    if same && whole && ours.closed == theirs.closed {
        let quiet = a.is_some_and(silent) || b.is_some_and(silent);
        return match quiet || ours.alerts == theirs.alerts {
            true => Ok(()),
            false => excused(a, b, "other alerts"),
        };
    }
    let one_is_ahead = |a: &[u8], b: &[u8]| a.starts_with(b) || b.starts_with(a);
    if !one_is_ahead(&ours.plain, &theirs.plain) || !one_is_ahead(&ours.data, &theirs.data) {
        return Err("other data".into());
    }
    excused(a, b, "another end")
}

fn excused(ours: Option<&Error>, theirs: Option<&Error>, what: &str) -> Result<(), String> {
    let mut known = DIFFERENCES.iter();
    match known.any(|(we, they, _)| we(ours) && they(theirs)) {
        true => Ok(()),
        false => Err(what.into()),
    }
}
