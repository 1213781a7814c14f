//! Each duty of a TLS 1.3 record layer, with a server whose records the test makes itself.

use std::sync::{Arc, LazyLock};

use proptest::prelude::*;
use rustls::crypto::{CipherSuiteCommon, CryptoProvider};
use rustls::{HandshakeKind, ServerConfig};
use rustls_pki_types::ServerName;

use super::peer::{
    ALERT, DATA, HANDSHAKE, Heard, KEY_UPDATE, NEW_SESSION_TICKET, Peer, message, server_of,
    shake_hands, shake_hands_for_tickets, ticket,
};
use super::plans::plan;
use super::*;
use crate::proxy::scratch::HEADROOM;
use crate::proxy::session::Engine;
use crate::tls::client_config::{Connector, client_config};
use crate::tls::test_pki::{self, Ca, NOW, at, policy, provider, trust};

// === Both ends ===

struct World {
    client: Arc<Connector>,
    /// Keeps no tickets.
    forgetful: Arc<Connector>,
    server: Arc<ServerConfig>,
    /// As `server`, and with tickets in fragments of a few bytes.
    with_tickets: Arc<ServerConfig>,
    ca: Ca,
}

static WORLD: LazyLock<World> = LazyLock::new(|| {
    let ca = Ca::new("root");
    let config = test_pki::server(&ca.server(), &[]);
    let mut with_tickets = config.clone();
    with_tickets.max_fragment_size = Some(32);
    let mut forgetful = policy();
    forgetful.resumption = false;
    World {
        forgetful: test_pki::client(&forgetful, None, &trust(&[&ca])),
        client: test_pki::client(&policy(), None, &trust(&[&ca])),
        server: server_of(&config),
        with_tickets: Arc::new(with_tickets),
        ca,
    }
});

fn name() -> ServerName<'static> {
    ServerName::try_from("localhost").unwrap()
}

/// An established session and its peer, the way the relay drives it.
struct Pair {
    session: Box<Records>,
    peer: Peer,
    buffer: Vec<u8>,
}

impl Pair {
    fn new() -> Self {
        Self::of(&WORLD.client)
    }

    fn of(client: &Connector) -> Self {
        let (established, peer) = shake_hands(client, &WORLD.server, name());
        let Engine::Records(session) = established.into_session().unwrap() else {
            panic!("TLS 1.3 is kept here");
        };
        Self {
            session,
            peer,
            buffer: vec![0; HEADROOM + 1024 * 1024],
        }
    }

    /// With keys that are worn out after `limit` records.
    fn with_limit(limit: u64) -> Self {
        let trust = trust(&[&WORLD.ca]);
        let client = client_config(&policy(), None, Some(&trust), &with_limit(limit)).unwrap();
        Self::of(&at(&client, NOW))
    }

    /// What comes of these bytes in one read: the plaintext, and how it went.
    fn read(&mut self, bytes: &[u8]) -> (Vec<u8>, Result<(), Error>) {
        let room = self.session.room();
        let end = room + bytes.len();
        self.buffer[room..end].copy_from_slice(bytes);
        let mut pieces = Pieces::default();
        let opened = self.session.open(&mut self.buffer[..end], &mut pieces);
        (pieces.to_vec(&self.buffer), opened)
    }

    #[track_caller]
    fn reads(&mut self, bytes: &[u8]) -> Vec<u8> {
        let (plain, opened) = self.read(bytes);
        opened.unwrap();
        plain
    }

    /// That these bytes end the session with `error`, that the peer is told `alert`, and that
    /// nothing is opened or sealed from then on. Returns what came before the error.
    #[track_caller]
    fn refuses(&mut self, bytes: &[u8], error: Error, alert: AlertDescription) -> Vec<u8> {
        let (plain, opened) = self.read(bytes);
        assert_eq!(opened, Err(error.clone()));
        assert_eq!(self.heard(), [fatal(alert)]);
        self.is_over(error);
        plain
    }

    #[track_caller]
    fn is_over(&mut self, error: Error) {
        let more = self.peer.data(b"more");
        assert_eq!(self.read(&more), (Vec::new(), Err(error)));
        assert_eq!(self.session.seal(b"more"), Err(KeysExhausted));
        self.session.close();
        assert!(!self.session.wants_write(), "something is said after it");
    }

    /// What the session has to say, as the peer reads it.
    fn heard(&mut self) -> Vec<Heard> {
        let said = self.said();
        self.peer.hear(&said)
    }

    fn said(&mut self) -> Vec<u8> {
        let mut said = Vec::new();
        while self.session.wants_write() {
            self.session.write(&mut said).unwrap();
        }
        said
    }

    /// That data still goes both ways.
    #[track_caller]
    fn goes_on(&mut self) {
        let record = self.peer.data(b"ping");
        assert_eq!(self.reads(&record), b"ping");
        self.session.seal(b"pong").unwrap();
        assert_eq!(self.heard(), [Heard::Data(b"pong".to_vec())]);
    }
}

fn fatal(alert: AlertDescription) -> Heard {
    Heard::Alert {
        level: 2,
        description: alert.into(),
    }
}

const CLOSE_NOTIFY: Heard = Heard::Alert {
    level: 1,
    description: 0,
};

/// TLS 1.3 with AES-128-GCM only, whose keys are worn out after `limit` records.
fn with_limit(limit: u64) -> CryptoProvider {
    let suite = rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256;
    let suite = suite.tls13().unwrap();
    let suite: &'static Tls13CipherSuite = Box::leak(Box::new(Tls13CipherSuite {
        common: CipherSuiteCommon {
            confidentiality_limit: limit,
            ..suite.common
        },
        ..*suite
    }));
    let mut provider = provider();
    provider.cipher_suites = vec![SupportedCipherSuite::Tls13(suite)];
    provider
}

fn misbehaved(how: PeerMisbehaved) -> Error {
    Error::PeerMisbehaved(how)
}

fn numbered(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n % 251) as u8).collect()
}

mod handshake;

// === Records ===

#[test]
fn every_suite_of_tls_1_3_carries_data_and_keys_both_ways() {
    for suite in rustls::crypto::aws_lc_rs::ALL_CIPHER_SUITES {
        let SupportedCipherSuite::Tls13(_) = suite else {
            continue;
        };
        let mut provider = provider();
        provider.cipher_suites = vec![*suite];
        let trust = trust(&[&WORLD.ca]);
        let client = client_config(&policy(), None, Some(&trust), &provider).unwrap();
        let mut pair = Pair::of(&at(&client, NOW));
        for _ in 0..3 {
            pair.goes_on();
            let record = pair.peer.key_update(1);
            assert_eq!(pair.reads(&record), b"");
            pair.session.seal(b"sealed anew").unwrap();
            let heard = [Heard::KeyUpdate(0), Heard::Data(b"sealed anew".to_vec())];
            assert_eq!(pair.heard(), heard, "{suite:?}");
        }
    }
}

#[test]
fn an_outer_type_other_than_application_data_is_unexpected() {
    for kind in [0, 20, ALERT, HANDSHAKE, 24, 255] {
        let mut pair = Pair::new();
        let mut record = pair.peer.data(b"data");
        record[0] = kind;
        let error = Error::InappropriateMessage {
            expect_types: vec![ContentType::ApplicationData, ContentType::Handshake],
            got_type: ContentType::from(kind),
        };
        pair.refuses(&record, error, AlertDescription::UnexpectedMessage);
    }
}

#[test]
fn what_is_no_record_is_not_waited_for() {
    for (junk, alert) in [
        (&b"H"[..], AlertDescription::UnexpectedMessage),
        (&[DATA, 2], AlertDescription::DecodeError),
    ] {
        let mut pair = Pair::new();
        let (_, opened) = pair.read(junk);
        assert!(opened.is_err());
        assert_eq!(pair.heard(), [fatal(alert)]);
    }
}

#[test]
fn an_alert_in_the_clear_is_not_believed() {
    let mut pair = Pair::new();
    let (plain, opened) = pair.read(&[21, 3, 3, 0, 2, 1, 0]);
    assert_eq!(plain, b"");
    assert!(matches!(opened, Err(Error::InappropriateMessage { .. })));
    assert!(!pair.session.peer_closed());
}

#[test]
fn a_header_of_another_protocol_is_refused() {
    for major in [0, 2, 4, 0xfe] {
        let mut pair = Pair::new();
        let mut record = pair.peer.data(b"data");
        record[1] = major;
        let error = InvalidMessage::UnknownProtocolVersion.into();
        pair.refuses(&record, error, AlertDescription::DecodeError);
    }
    // RFC 8446 section 5.1: the field is to be ignored.
    let mut pair = Pair::new();
    let mut record = pair.peer.data(b"data");
    record[2] = 1;
    assert_eq!(pair.reads(&record), b"data");
}

#[test]
fn an_oversized_record_is_refused_by_its_header() {
    let header = |len: usize| [DATA, 3, 3, (len >> 8) as u8, len as u8];
    for len in [MAX_SEALED + 1, 0xffff] {
        let mut pair = Pair::new();
        let error = Error::PeerSentOversizedRecord;
        pair.refuses(&header(len), error, AlertDescription::RecordOverflow);
    }
    // The largest is waited for.
    let mut pair = Pair::new();
    assert_eq!(pair.reads(&header(MAX_SEALED)), b"");
    assert_eq!(pair.session.room(), HEADER);
    let junk = vec![0; MAX_SEALED];
    pair.refuses(&junk, Error::DecryptError, AlertDescription::BadRecordMac);
}

#[test]
fn a_record_of_no_or_few_bytes_is_a_bad_one() {
    for len in [0, 1, 15, 16, 17] {
        let mut pair = Pair::new();
        let mut record = vec![DATA, 3, 3, 0, len];
        record.extend(vec![0; usize::from(len)]);
        pair.refuses(&record, Error::DecryptError, AlertDescription::BadRecordMac);
    }
}

#[test]
fn padding_is_stripped() {
    let mut pair = Pair::new();
    for (content, padding) in [
        (&b"data"[..], 1),
        (b"data", 16_000),
        (b"", 100),
        (b"\0\0", 3),
    ] {
        let record = pair.peer.seal(DATA, content, padding);
        assert_eq!(pair.reads(&record), content);
    }
    let record = pair.peer.seal(HANDSHAKE, &ticket(40), 100);
    assert_eq!(pair.reads(&record), b"");
    assert_eq!(pair.session.tickets(), 1);
    pair.goes_on();
}

#[test]
fn a_record_of_nothing_but_padding_is_refused() {
    for len in [0, 1, 100] {
        let mut pair = Pair::new();
        let record = pair.peer.seal(0, &vec![0; len], 0);
        let error = misbehaved(PeerMisbehaved::IllegalTlsInnerPlaintext);
        pair.refuses(&record, error, AlertDescription::UnexpectedMessage);
    }
}

#[test]
fn the_largest_plaintext_is_taken_and_one_byte_more_is_not() {
    let largest = numbered(MAX_PLAIN);
    let mut pair = Pair::new();
    let record = pair.peer.data(&largest);
    assert_eq!(pair.reads(&record), largest);
    let record = pair.peer.seal(DATA, b"", MAX_PLAIN);
    assert_eq!(pair.reads(&record), b"");
    let record = pair.peer.data(&numbered(MAX_PLAIN + 1));
    let error = Error::PeerSentOversizedRecord;
    pair.refuses(&record, error.clone(), AlertDescription::RecordOverflow);
    // Padding counts.
    let mut pair = Pair::new();
    let record = pair.peer.seal(DATA, b"x", MAX_PLAIN);
    pair.refuses(&record, error, AlertDescription::RecordOverflow);
}

#[test]
fn inner_types_that_have_no_place_here_are_refused() {
    let mut pair = Pair::new();
    let record = pair.peer.seal(20, &[1], 0);
    let error = misbehaved(PeerMisbehaved::IllegalMiddleboxChangeCipherSpec);
    pair.refuses(&record, error, AlertDescription::UnexpectedMessage);
    for kind in [24, 25, 255] {
        let mut pair = Pair::new();
        let record = pair.peer.seal(kind, b"x", 0);
        let error = unexpected(ContentType::from(kind)).error;
        pair.refuses(&record, error, AlertDescription::UnexpectedMessage);
    }
}

#[test]
fn empty_records_are_bounded_until_data_comes() {
    let mut pair = Pair::new();
    for _ in 0..3 {
        for _ in 0..32 {
            let record = pair.peer.data(b"");
            assert_eq!(pair.reads(&record), b"");
        }
        pair.goes_on();
    }
    for n in 0..32 {
        let record = pair.peer.data(b"");
        assert_eq!(pair.reads(&record), b"");
        // Nothing else that is not data begins the count anew.
        if n == 9 {
            let record = pair.peer.key_update(0);
            assert_eq!(pair.reads(&record), b"");
        }
    }
    let record = pair.peer.data(b"");
    let error = misbehaved(PeerMisbehaved::TooManyEmptyFragments);
    pair.refuses(&record, error, AlertDescription::UnexpectedMessage);
}

#[test]
fn a_changed_byte_anywhere_in_the_body_is_told_and_ends_the_session() {
    let body = Pair::new().peer.data(b"data").len() - HEADER;
    for at in 0..body {
        let mut pair = Pair::new();
        let mut record = pair.peer.data(b"good");
        let good = record.len();
        record.extend(pair.peer.data(b"data"));
        record[good + HEADER + at] ^= 0x40;
        let before = pair.refuses(&record, Error::DecryptError, AlertDescription::BadRecordMac);
        assert_eq!(before, b"good", "what came before it is good");
    }
}

#[test]
fn records_out_of_order_or_twice_are_refused() {
    let mut pair = Pair::new();
    let first = pair.peer.data(b"first");
    let second = pair.peer.data(b"second");
    pair.refuses(&second, Error::DecryptError, AlertDescription::BadRecordMac);
    let mut pair = Pair::new();
    let record = pair.peer.data(b"first");
    assert_eq!(pair.reads(&record), b"first");
    pair.refuses(&record, Error::DecryptError, AlertDescription::BadRecordMac);
    drop(first);
}

#[test]
fn the_alert_is_sealed_with_the_key_that_is_due() {
    let mut pair = Pair::new();
    let record = pair.peer.key_update(1);
    pair.reads(&record);
    pair.session.seal(b"with the new key").unwrap();
    let heard = [
        Heard::KeyUpdate(0),
        Heard::Data(b"with the new key".to_vec()),
    ];
    assert_eq!(pair.heard(), heard);
    let mut record = pair.peer.data(b"data");
    record[HEADER] ^= 1;
    pair.refuses(&record, Error::DecryptError, AlertDescription::BadRecordMac);
}

// === Cuts ===

/// Data, padding, tickets, key updates and an end, and the plaintext in them.
fn a_bit_of_everything(peer: &mut Peer) -> (Vec<u8>, Vec<u8>) {
    let mut wire = peer.data(b"first");
    wire.extend(peer.seal(HANDSHAKE, &ticket(300), 7));
    wire.extend(peer.data(b""));
    wire.extend(peer.data(&numbered(700)));
    let two = [ticket(10), ticket(20)].concat();
    for part in two.chunks(9) {
        wire.extend(peer.seal(HANDSHAKE, part, 0));
    }
    wire.extend(peer.key_update(1));
    wire.extend(peer.seal(DATA, b"second", 30));
    wire.extend(peer.key_update(0));
    wire.extend(peer.data(b"last"));
    wire.extend(peer.close_notify());
    let plain = [b"first", &numbered(700)[..], b"second", b"last"].concat();
    (wire, plain)
}

#[test]
fn the_wire_may_be_cut_anywhere() {
    let (wire, _) = a_bit_of_everything(&mut Pair::new().peer);
    for at in 0..=wire.len() {
        let mut pair = Pair::new();
        let (wire, expected) = a_bit_of_everything(&mut pair.peer);
        let mut plain = pair.reads(&wire[..at]);
        plain.extend(pair.reads(&wire[at..]));
        assert_eq!(plain, expected, "cut at {at}");
        assert!(pair.session.peer_closed());
        assert_eq!(pair.session.tickets(), 3);
    }
}

#[test]
fn the_wire_may_come_byte_by_byte_with_reads_of_nothing_between() {
    let mut pair = Pair::new();
    let (wire, expected) = a_bit_of_everything(&mut pair.peer);
    let mut plain = Vec::new();
    for byte in &wire {
        plain.extend(pair.reads(&[*byte]));
        plain.extend(pair.reads(&[]));
        assert!(pair.session.room() < HEADER + MAX_SEALED);
    }
    assert_eq!(plain, expected);
    assert!(pair.session.peer_closed());
}

#[test]
fn what_came_with_the_handshake_is_opened_first() {
    let (mut established, mut peer) = shake_hands(&WORLD.client, &WORLD.server, name());
    let (wire, expected) = a_bit_of_everything(&mut peer);
    established.rest = wire;
    let Engine::Records(session) = established.into_session().unwrap() else {
        panic!("TLS 1.3 is kept here");
    };
    let mut pair = Pair {
        session,
        peer,
        buffer: vec![0; HEADROOM],
    };
    assert_eq!(pair.reads(&[]), expected);
    assert!(pair.session.peer_closed());
}

#[test]
fn a_whole_record_leaves_no_memory_behind() {
    let mut pair = Pair::new();
    let record = pair.peer.data(&numbered(5_000));
    pair.reads(&record);
    for size in [5_000, 999] {
        for part in ticket(4_000).chunks(size) {
            let record = pair.peer.seal(HANDSHAKE, part, 0);
            pair.reads(&record);
        }
    }
    pair.session.seal(&numbered(100_000)).unwrap();
    pair.said();
    let session = &pair.session;
    assert_eq!(session.partial.capacity(), 0);
    assert_eq!(session.message.capacity(), 0);
    assert_eq!(session.queue.records.capacity(), 0);
}

// === Alerts and ends ===

#[test]
fn what_comes_after_close_notify_is_ignored_and_we_may_still_send() {
    for level in [1, 2, 0, 7] {
        let mut pair = Pair::new();
        let mut wire = pair.peer.data(b"last words");
        wire.extend(pair.peer.alert(level, 0));
        wire.extend(b"junk that is no record");
        assert_eq!(pair.reads(&wire), b"last words");
        assert!(pair.session.peer_closed());
        assert_eq!(pair.session.room(), 0);
        let record = pair.peer.data(b"from the grave");
        assert_eq!(pair.reads(&record), b"");
        pair.session.seal(b"still here").unwrap();
        assert_eq!(pair.heard(), [Heard::Data(b"still here".to_vec())]);
        pair.session.close();
        assert_eq!(pair.heard(), [CLOSE_NOTIFY]);
    }
}

#[test]
fn our_close_notify_is_said_once_and_nothing_is_sealed_after_it() {
    let mut pair = Pair::new();
    pair.session.close();
    pair.session.close();
    assert_eq!(pair.session.seal(b"more"), Err(KeysExhausted));
    let mut record = pair.peer.data(b"data");
    assert_eq!(pair.reads(&record), b"data");
    // Not even an alert: nobody listens any more (RFC 8446 section 6.1).
    record[HEADER] ^= 1;
    let (_, opened) = pair.read(&record);
    assert_eq!(opened, Err(Error::DecryptError));
    assert_eq!(pair.heard(), [CLOSE_NOTIFY]);
}

#[test]
fn every_other_alert_ends_the_session_whatever_its_level_and_is_not_answered() {
    for level in [1, 2, 7] {
        for description in [10, 20, 48, 80, 100, 116, 255] {
            let mut pair = Pair::new();
            let mut wire = pair.peer.data(b"before");
            wire.extend(pair.peer.alert(level, description));
            let (plain, opened) = pair.read(&wire);
            assert_eq!(plain, b"before");
            let error = Error::AlertReceived(AlertDescription::from(description));
            assert_eq!(opened, Err(error.clone()));
            assert!(!pair.session.wants_write() && !pair.session.peer_closed());
            pair.is_over(error);
        }
    }
}

#[test]
fn user_canceled_is_borne_four_times() {
    const USER_CANCELED: u8 = 90;
    let mut pair = Pair::new();
    for level in [1, 2, 1, 2] {
        let record = pair.peer.alert(level, USER_CANCELED);
        assert_eq!(pair.reads(&record), b"");
        pair.goes_on();
    }
    let record = pair.peer.alert(1, USER_CANCELED);
    let error = misbehaved(PeerMisbehaved::TooManyWarningAlertsReceived);
    pair.refuses(&record, error, AlertDescription::UnexpectedMessage);
}

#[test]
fn an_alert_of_another_length_is_refused() {
    for (alert, error) in [
        (&[1][..], InvalidMessage::MessageTooShort),
        (&[1, 0, 1], InvalidMessage::TrailingData("Alert")),
        (&[1, 0, 1, 0], InvalidMessage::TrailingData("Alert")),
    ] {
        let mut pair = Pair::new();
        let record = pair.peer.seal(ALERT, alert, 0);
        pair.refuses(&record, error.into(), AlertDescription::DecodeError);
    }
}

#[test]
fn a_session_that_sealed_records_before_is_not_taken_over() {
    let (established, _) = shake_hands(&WORLD.client, &WORLD.server, name());
    let provenance = established.provenance;
    let (mut secrets, connection) = established
        .connection
        .dangerous_into_kernel_connection()
        .unwrap();
    secrets.tx.0 = 1;
    assert!(Records::new(secrets, connection, provenance, Vec::new(), Vec::new()).is_err());
}

#[test]
fn records_that_were_opened_before_are_counted() {
    let (established, mut peer) = shake_hands(&WORLD.client, &WORLD.server, name());
    let provenance = established.provenance;
    let (mut secrets, connection) = established
        .connection
        .dangerous_into_kernel_connection()
        .unwrap();
    peer.data(b"opened by somebody else");
    secrets.rx.0 = 1;
    let mut pair = Pair {
        session: Box::new(
            Records::new(secrets, connection, provenance, Vec::new(), Vec::new()).unwrap(),
        ),
        peer,
        buffer: vec![0; HEADROOM],
    };
    pair.goes_on();
}

// === Writing ===

/// Takes so many bytes and then no more, over all slices that it is offered.
struct Narrow {
    took: Vec<u8>,
    left: usize,
}

impl io::Write for Narrow {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        if self.left == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let offered = slices.iter().flat_map(|slice| slice.iter().copied());
        let before = self.took.len();
        self.took.extend(offered.take(self.left));
        let n = self.took.len() - before;
        assert!(n > 0, "a write of nothing");
        self.left -= n;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn the_sink_may_take_any_part_of_the_queue() {
    let mut pair = Pair::new();
    for batch in [1, 10, 200] {
        pair.session.seal(&numbered(batch)).unwrap();
    }
    let len = pair.said().len();
    for first in 1..len {
        let mut pair = Pair::new();
        let mut sent = Vec::new();
        for batch in [1, 10, 200] {
            pair.session.seal(&numbered(batch)).unwrap();
            sent.push(Heard::Data(numbered(batch)));
        }
        let mut sink = Narrow {
            took: Vec::new(),
            left: first,
        };
        while sink.left > 0 {
            pair.session.write(&mut sink).unwrap();
        }
        let blocked = pair.session.write(&mut sink).unwrap_err();
        assert_eq!(blocked.kind(), io::ErrorKind::WouldBlock);
        assert!(pair.session.wants_write());
        sink.left = 1;
        pair.session.write(&mut sink).unwrap();
        sink.left = usize::MAX;
        while pair.session.wants_write() {
            pair.session.write(&mut sink).unwrap();
        }
        assert_eq!(pair.peer.hear(&sink.took), sent, "cut at {first}");
    }
}

#[test]
fn a_queue_longer_than_one_write_goes_out_whole() {
    let mut pair = Pair::new();
    let sent = numbered((3 * SLICES + 1) * MAX_PLAIN);
    pair.session.seal(&sent).unwrap();
    let mut received = Vec::new();
    for heard in pair.heard() {
        let Heard::Data(data) = heard else {
            panic!("{heard:?}");
        };
        received.extend(data);
    }
    assert!(received == sent);
}

#[test]
fn records_are_full_and_nothing_is_sealed_for_nothing() {
    let mut pair = Pair::new();
    pair.session.seal(b"").unwrap();
    assert!(!pair.session.wants_write());
    pair.session.seal(&numbered(2 * MAX_PLAIN)).unwrap();
    let said = pair.said();
    // A content type and a tag each (RFC 8446 section 5.2).
    assert_eq!(said.len(), 2 * (HEADER + MAX_PLAIN + 1 + 16));
    assert_eq!(said[..3], [DATA, 3, 3]);
}

// === Against rustls ===

proptest! {
    #[test]
    fn whatever_a_server_says_comes_out_as_with_rustls(plan in plan()) {
        plan.compare(&WORLD.forgetful, &WORLD.server, &name());
    }
}
