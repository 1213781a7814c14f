//! Messages that come after the handshake: tickets and new keys.

use super::*;

#[test]
fn messages_may_share_a_record() {
    let mut pair = Pair::new();
    let three = [ticket(1), ticket(100), ticket(7)].concat();
    let record = pair.peer.seal(HANDSHAKE, &three, 0);
    pair.reads(&record);
    assert_eq!(pair.session.tickets(), 3);
    // A KeyUpdate, if it is the last of them.
    let four = [three, message(KEY_UPDATE, &[0])].concat();
    let record = pair.peer.seal(HANDSHAKE, &four, 0);
    pair.peer.renew_keys();
    pair.reads(&record);
    assert_eq!(pair.session.tickets(), 6);
    pair.goes_on();
}

#[test]
fn a_message_may_be_split_over_records_of_any_size() {
    let messages = [ticket(50), ticket(33), message(KEY_UPDATE, &[1])].concat();
    for size in 1..messages.len() {
        let mut pair = Pair::new();
        for part in messages.chunks(size) {
            let record = pair.peer.seal(HANDSHAKE, part, 0);
            pair.reads(&record);
        }
        pair.peer.renew_keys();
        assert_eq!(pair.session.tickets(), 2, "in parts of {size}");
        assert!(pair.session.message.is_empty());
        let record = pair.peer.data(b"data");
        assert_eq!(pair.reads(&record), b"data", "in parts of {size}");
    }
}

#[test]
fn nothing_may_come_between_the_parts_of_a_message() {
    for kind in [DATA, ALERT] {
        for whole in [ticket(50), message(KEY_UPDATE, &[0])] {
            for at in 1..whole.len() {
                let mut pair = Pair::new();
                let part = pair.peer.seal(HANDSHAKE, &whole[..at], 0);
                pair.reads(&part);
                let record = pair.peer.seal(kind, &[1, 0], 0);
                let error = misbehaved(PeerMisbehaved::MessageInterleavedWithHandshakeMessage);
                pair.refuses(&record, error, AlertDescription::UnexpectedMessage);
                assert!(!pair.session.peer_closed());
            }
        }
    }
}

#[test]
fn an_empty_handshake_fragment_or_alert_is_refused() {
    for (kind, before) in [(HANDSHAKE, &b""[..]), (HANDSHAKE, &[4, 0]), (ALERT, b"")] {
        let mut pair = Pair::new();
        if !before.is_empty() {
            let record = pair.peer.seal(HANDSHAKE, before, 0);
            pair.reads(&record);
        }
        let record = pair.peer.seal(kind, b"", 10);
        let error = InvalidMessage::InvalidEmptyPayload.into();
        pair.refuses(&record, error, AlertDescription::UnexpectedMessage);
    }
}

#[test]
fn a_message_of_64_kib_is_taken_and_a_longer_one_refused_by_its_header() {
    let mut pair = Pair::new();
    // The body around a ticket has 14 bytes.
    let longest = ticket(0xffff - 14);
    for part in longest.chunks(MAX_PLAIN) {
        let record = pair.peer.seal(HANDSHAKE, part, 0);
        pair.reads(&record);
    }
    assert_eq!(pair.session.tickets(), 1);
    let record = pair.peer.seal(HANDSHAKE, &[NEW_SESSION_TICKET, 1, 0, 0], 0);
    let error = InvalidMessage::HandshakePayloadTooLarge.into();
    pair.refuses(&record, error, AlertDescription::DecodeError);
}

#[test]
fn other_messages_are_refused_by_their_header() {
    // ClientHello, ServerHello, EncryptedExtensions, Certificate, CertificateRequest (we offer no
    // post-handshake authentication), Finished, HelloRequest, one that does not exist.
    for kind in [1, 2, 8, 11, 13, 20, 0, 99] {
        let mut pair = Pair::new();
        let record = pair.peer.seal(HANDSHAKE, &[kind, 0, 0, 9], 0);
        let error = Error::InappropriateHandshakeMessage {
            expect_types: vec![HandshakeType::NewSessionTicket, HandshakeType::KeyUpdate],
            got_type: HandshakeType::from(kind),
        };
        pair.refuses(&record, error, AlertDescription::UnexpectedMessage);
    }
}

#[test]
fn tickets_in_small_records_and_reads_make_the_next_session_a_resumed_one() {
    // A connector of its own: it remembers.
    let client = test_pki::client(&policy(), None, &trust(&[&WORLD.ca]));
    for expected in [HandshakeKind::Full, HandshakeKind::Resumed] {
        let (established, said) = shake_hands_for_tickets(&client, &WORLD.with_tickets, name());
        assert_eq!(established.facts().handshake_kind(), Some(expected));
        let mut session = established.into_session().unwrap();
        let mut buffer = vec![0; HEADROOM];
        let mut pieces = Pieces::default();
        for byte in said {
            let room = session.room();
            buffer[room] = byte;
            session.open(&mut buffer[..=room], &mut pieces).unwrap();
        }
        assert!(pieces.is_empty());
        assert!(session.tickets() >= 2);
    }
}

#[test]
fn a_ticket_too_long_for_a_client_hello_is_not_kept() {
    let client = test_pki::client(&policy(), None, &trust(&[&WORLD.ca]));
    for (len, kept) in [
        (MAX_TICKET as u16 - 13, false),
        (MAX_TICKET as u16 - 14, true),
    ] {
        let mut pair = Pair::of(&client);
        let whole = ticket(len);
        for part in whole.chunks(MAX_PLAIN) {
            let record = pair.peer.seal(HANDSHAKE, part, 0);
            pair.reads(&record);
        }
        assert_eq!(pair.session.tickets(), 1, "it has come all the same");
        pair.goes_on();
        // What a client sends first, with or without a ticket in it.
        let mut hello = Vec::new();
        let (mut next, _) = client.buffered(name()).unwrap();
        next.write_tls(&mut hello).unwrap();
        assert_eq!(hello.len() > usize::from(len), kept);
    }
}

#[test]
fn a_bad_ticket_is_refused() {
    let body = ticket(4).split_off(4);
    let extension_twice = [
        &body[..body.len() - 2],
        &[0, 16, 0, 42, 0, 4, 0, 0, 0, 0, 0, 42, 0, 4, 0, 0, 0, 0],
    ]
    .concat();
    for (body, error, alert) in [
        (&body[..3], None, AlertDescription::DecodeError),
        (&body[..body.len() - 1], None, AlertDescription::DecodeError),
        (
            &[&body[..], b"x"].concat(),
            None,
            AlertDescription::DecodeError,
        ),
        (
            &ticket(0).split_off(4),
            Some(InvalidMessage::EmptyTicketValue),
            AlertDescription::DecodeError,
        ),
        (
            &extension_twice,
            Some(InvalidMessage::DuplicateExtension(42)),
            AlertDescription::IllegalParameter,
        ),
    ] {
        let mut pair = Pair::new();
        let record = pair
            .peer
            .seal(HANDSHAKE, &message(NEW_SESSION_TICKET, body), 0);
        let (_, opened) = pair.read(&record);
        let Err(Error::InvalidMessage(invalid)) = opened else {
            panic!("{opened:?}");
        };
        if let Some(error) = error {
            assert_eq!(invalid, error);
        }
        assert_eq!(pair.heard(), [fatal(alert)]);
        assert_eq!(pair.session.tickets(), 0);
        pair.is_over(invalid.into());
    }
}

// === New keys ===

#[test]
fn a_key_update_that_asks_is_answered_once_before_our_next_data() {
    let mut pair = Pair::new();
    for _ in 0..5 {
        let record = pair.peer.key_update(1);
        pair.reads(&record);
        assert!(!pair.session.wants_write(), "an answer without data");
    }
    pair.session.seal(b"data").unwrap();
    let heard = [Heard::KeyUpdate(0), Heard::Data(b"data".to_vec())];
    assert_eq!(pair.heard(), heard);
    pair.goes_on();
}

#[test]
fn a_key_update_that_does_not_ask_is_not_answered() {
    let mut pair = Pair::new();
    let record = pair.peer.key_update(0);
    pair.reads(&record);
    pair.goes_on();
    // And does not take back what was asked for before.
    for request in [1, 0] {
        let record = pair.peer.key_update(request);
        pair.reads(&record);
    }
    pair.session.seal(b"data").unwrap();
    assert_eq!(pair.heard()[0], Heard::KeyUpdate(0));
}

#[test]
fn a_key_update_that_asks_is_answered_before_our_close_notify() {
    let mut pair = Pair::new();
    let record = pair.peer.key_update(1);
    pair.reads(&record);
    pair.session.close();
    assert_eq!(pair.heard(), [Heard::KeyUpdate(0), CLOSE_NOTIFY]);
}

#[test]
fn a_key_update_after_our_close_notify_is_not_answered() {
    let mut pair = Pair::new();
    pair.session.close();
    assert_eq!(pair.heard(), [CLOSE_NOTIFY]);
    let mut wire = pair.peer.key_update(1);
    wire.extend(pair.peer.data(b"still coming"));
    assert_eq!(pair.reads(&wire), b"still coming");
    pair.session.close();
    assert!(!pair.session.wants_write());
}

#[test]
fn nothing_may_follow_a_key_update_in_its_record() {
    for rest in [&ticket(1)[..], &ticket(1)[..1], &message(KEY_UPDATE, &[0])] {
        let mut pair = Pair::new();
        let both = [&message(KEY_UPDATE, &[0]), rest].concat();
        let record = pair.peer.seal(HANDSHAKE, &both, 0);
        let error = misbehaved(PeerMisbehaved::KeyEpochWithPendingFragment);
        let (_, opened) = pair.read(&record);
        assert_eq!(opened, Err(error.clone()));
        assert_eq!(pair.heard(), [fatal(AlertDescription::UnexpectedMessage)]);
        pair.is_over(error);
    }
}

#[test]
fn a_key_update_of_another_form_is_refused() {
    for (body, alert) in [
        (&[2][..], AlertDescription::IllegalParameter),
        (&[255], AlertDescription::IllegalParameter),
        (&[], AlertDescription::DecodeError),
        (&[0, 0], AlertDescription::DecodeError),
    ] {
        let mut pair = Pair::new();
        let record = pair.peer.seal(HANDSHAKE, &message(KEY_UPDATE, body), 0);
        pair.refuses(&record, InvalidMessage::InvalidKeyUpdate.into(), alert);
    }
}

#[test]
fn key_updates_are_bounded_until_data_comes() {
    let mut pair = Pair::new();
    for _ in 0..2 {
        for _ in 0..32 {
            let mut wire = pair.peer.key_update(1);
            // An empty record is no data.
            wire.extend(pair.peer.data(b""));
            pair.reads(&wire);
        }
        let record = pair.peer.data(b"data");
        assert_eq!(pair.reads(&record), b"data");
    }
    for _ in 0..32 {
        let mut wire = pair.peer.key_update(0);
        wire.extend(pair.peer.data(b""));
        pair.reads(&wire);
    }
    let record = pair.peer.seal(HANDSHAKE, &message(KEY_UPDATE, &[0]), 0);
    let error = misbehaved(PeerMisbehaved::TooManyKeyUpdateRequests);
    pair.refuses(&record, error, AlertDescription::UnexpectedMessage);
}

#[test]
fn what_was_sealed_with_the_old_key_is_refused_after_a_key_update() {
    let mut pair = Pair::new();
    let record = pair.peer.seal(HANDSHAKE, &message(KEY_UPDATE, &[0]), 0);
    pair.reads(&record);
    let record = pair.peer.data(b"old");
    let (_, opened) = pair.read(&record);
    assert_eq!(opened, Err(Error::DecryptError));
}

#[test]
fn our_keys_are_renewed_before_they_are_worn_out_and_the_peer_reads_all() {
    const LIMIT: u64 = 20;
    let mut pair = Pair::with_limit(LIMIT);
    let sent = numbered(100 * MAX_PLAIN + 5);
    // In batches of several records, and of one.
    let mut rest = &sent[..];
    let mut received = Vec::new();
    let (mut under_one_key, mut renewed) = (0, 0);
    for batch in [1, 7 * MAX_PLAIN, 100, 16 * MAX_PLAIN].iter().cycle() {
        let (now, later) = rest.split_at(rest.len().min(*batch));
        pair.session.seal(now).unwrap();
        for heard in pair.heard() {
            under_one_key += 1;
            assert!(under_one_key < LIMIT, "a key is overworked");
            match heard {
                Heard::Data(data) => received.extend(data),
                Heard::KeyUpdate(0) => (under_one_key, renewed) = (0, renewed + 1),
                other => panic!("{other:?}"),
            }
        }
        rest = later;
        if rest.is_empty() {
            break;
        }
    }
    assert!(received == sent);
    // 8 records of the 20 are kept for the rest; the last of them for the KeyUpdate.
    assert!(renewed >= 100 / (LIMIT - RESERVED), "{renewed} renewals");
    pair.session.close();
    assert_eq!(pair.heard(), [CLOSE_NOTIFY]);
}

#[test]
fn no_record_is_sealed_beyond_the_limit_whoever_asks() {
    const LIMIT: u64 = 20;
    let mut pair = Pair::with_limit(LIMIT);
    let sealer = &mut pair.session.sealer;
    for _ in 0..LIMIT {
        sealer.seal(ContentType::ApplicationData, b"x").unwrap();
    }
    let beyond = sealer.seal(ContentType::Alert, &[1, 0]);
    assert_eq!(beyond.err(), Some(Error::EncryptError));
    // Not even a KeyUpdate: the session ends instead.
    assert_eq!(pair.session.seal(b"x"), Err(KeysExhausted));
    assert!(!pair.session.wants_write());
}

#[test]
fn a_limit_below_what_is_kept_back_still_carries_data() {
    let mut pair = Pair::with_limit(2);
    for _ in 0..5 {
        pair.session.seal(b"data").unwrap();
        let heard = [Heard::KeyUpdate(0), Heard::Data(b"data".to_vec())];
        assert_eq!(pair.heard(), heard);
    }
}

#[test]
fn an_answer_that_is_due_and_a_renewal_are_one_key_update() {
    let mut pair = Pair::with_limit(RESERVED + 1);
    pair.session.seal(b"one").unwrap();
    let record = pair.peer.key_update(1);
    pair.reads(&record);
    pair.session.seal(b"two").unwrap();
    let heard = [
        Heard::Data(b"one".to_vec()),
        Heard::KeyUpdate(0),
        Heard::Data(b"two".to_vec()),
    ];
    assert_eq!(pair.heard(), heard);
}
