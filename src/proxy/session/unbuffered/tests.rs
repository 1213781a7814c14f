//! TLS 1.2, and TLS 1.3 where the records are left to rustls.

use std::io::{Read as _, Write as _};
use std::pin::{Pin, pin};
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll, Waker};

use proptest::prelude::*;
use rustls::crypto::CryptoProvider;
use rustls::crypto::cipher::{
    InboundOpaqueMessage, MessageDecrypter, MessageEncrypter, OutboundChunks, OutboundPlainMessage,
};
use rustls::{
    AlertDescription, ConnectionTrafficSecrets, ContentType, HandshakeKind, PeerMisbehaved,
    ProtocolVersion, ServerConfig, ServerConnection, Tls12CipherSuite,
};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::*;
use crate::config::{RecordLayer, TlsVersion};
use crate::proxy::handshake::{LastFlight, handshake};
use crate::proxy::scratch::WIRE;
use crate::proxy::session::records::peer::{Heard, server_of, shake_hands};
use crate::proxy::session::records::plans::plan;
use crate::proxy::session::{Engine, Established};
use crate::tls::client_config::{Connector, client_config};
use crate::tls::test_pki::{self, Ca, NOW, at, policy, provider, trust};

// === Both ends ===

struct World {
    ca: Ca,
    /// TLS 1.2 and no other.
    client: Arc<Connector>,
    server: Arc<ServerConfig>,
    /// TLS 1.3 with the records left to rustls, without resumption.
    client13: Arc<Connector>,
    server13: Arc<ServerConfig>,
}

static WORLD: LazyLock<World> = LazyLock::new(|| {
    let ca = Ca::new("root");
    let leaf = ca.server();
    let mut policy13 = policy();
    policy13.record_layer = RecordLayer::Rustls;
    policy13.resumption = false;
    World {
        client: client12(&ca, &provider()),
        server: Arc::new(server12(&ca)),
        client13: test_pki::client(&policy13, None, &trust(&[&ca])),
        server13: server_of(&test_pki::server(&leaf, &[])),
        ca,
    }
});

fn client12(ca: &Ca, provider: &CryptoProvider) -> Arc<Connector> {
    let mut policy = policy();
    policy.max_version = TlsVersion::Tls12;
    at(
        &client_config(&policy, None, Some(&trust(&[ca])), provider).unwrap(),
        NOW,
    )
}

fn server12(ca: &Ca) -> ServerConfig {
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(test_pki::server(&ca.server(), &[]).cert_resolver);
    config.enable_secret_extraction = true;
    config
}

fn name() -> ServerName<'static> {
    ServerName::try_from("localhost").unwrap()
}

/// A server that answers within the write, and may say more as soon as the handshake is over.
struct Live {
    server: ServerConnection,
    said: Vec<u8>,
    first_words: Option<fn(&mut ServerConnection)>,
    /// Handed out at once, at most.
    pace: usize,
}

impl Live {
    fn new(config: &Arc<ServerConfig>) -> Self {
        let mut server = ServerConnection::new(Arc::clone(config)).unwrap();
        server.set_buffer_limit(None);
        Self {
            server,
            said: Vec::new(),
            first_words: None,
            pace: usize::MAX,
        }
    }

    fn hear(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            self.server.read_tls(&mut bytes).unwrap();
            // What it objects to, it says in an alert.
            let _ = self.server.process_new_packets();
        }
        if !self.server.is_handshaking()
            && let Some(say) = self.first_words.take()
        {
            say(&mut self.server);
        }
        self.speak();
    }

    fn speak(&mut self) {
        while self.server.wants_write() {
            self.server.write_tls(&mut self.said).unwrap();
        }
    }

    fn shake_hands(&mut self, client: &Connector) -> Established {
        let handshake = pin!(handshake(self, client, name(), LastFlight::Written));
        match handshake.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(established) => established.unwrap(),
            Poll::Pending => panic!("a good server is not taken at once"),
        }
    }

    /// What it has received.
    fn received(&mut self) -> Vec<u8> {
        let mut plain = Vec::new();
        let _ = self.server.reader().read_to_end(&mut plain);
        plain
    }
}

impl AsyncRead for Live {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let len = self.said.len().min(buffer.remaining()).min(self.pace);
        buffer.put_slice(&self.said[..len]);
        self.said.drain(..len);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Live {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.hear(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The session the way the relay drives it.
struct Driven {
    session: Box<Unbuffered>,
    buffer: Vec<u8>,
}

impl Driven {
    fn new(established: Established) -> Self {
        let Engine::Unbuffered(session) = established.into_session().unwrap() else {
            panic!("these records are rustls'");
        };
        Self {
            session,
            // As long as the relay's.
            buffer: vec![0; HEADROOM + WIRE],
        }
    }

    fn read(&mut self, bytes: &[u8]) -> (Vec<u8>, Result<(), Error>) {
        let room = self.session.room();
        assert!(room <= HEADROOM);
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

    fn said(&mut self) -> Vec<u8> {
        let mut said = Vec::new();
        while self.session.wants_write() {
            self.session.write(&mut said).unwrap();
        }
        said
    }
}

fn numbered(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n % 251) as u8).collect()
}

// === TLS 1.2 ===

#[test]
fn tls_1_2_may_be_cut_anywhere() {
    let mut len = None;
    for at in 0.. {
        let mut live = Live::new(&WORLD.server);
        let mut driven = Driven::new(live.shake_hands(&WORLD.client));
        assert_eq!(driven.reads(&[]), b"");
        live.server.writer().write_all(b"first").unwrap();
        live.speak();
        live.server.writer().write_all(b"second").unwrap();
        live.server.send_close_notify();
        live.speak();
        let wire = &live.said;
        let mut plain = driven.reads(&wire[..at]);
        plain.extend(driven.reads(&wire[at..]));
        assert_eq!(plain, b"firstsecond", "cut at {at}");
        assert!(driven.session.peer_closed());
        if *len.get_or_insert(wire.len()) == at {
            break;
        }
    }
}

#[test]
fn what_comes_with_the_last_flight_of_tls_1_2_is_opened_first_in_any_pace() {
    for pace in [1, 7, 100, usize::MAX] {
        let mut live = Live::new(&WORLD.server);
        live.pace = pace;
        live.first_words = Some(|server| {
            server.writer().write_all(&numbered(40_000)).unwrap();
            server.send_close_notify();
        });
        let established = live.shake_hands(&WORLD.client);
        let mut driven = Driven::new(established);
        let mut plain = driven.reads(&[]);
        plain.extend(driven.reads(&live.said));
        assert!(plain == numbered(40_000), "at a pace of {pace}");
        assert!(driven.session.peer_closed());
    }
}

#[test]
fn a_close_notify_that_comes_with_the_last_flight_of_tls_1_2_is_heard() {
    let mut live = Live::new(&WORLD.server);
    live.first_words = Some(|server| server.send_close_notify());
    let established = live.shake_hands(&WORLD.client);
    assert!(live.said.is_empty(), "it came in the same read");
    let mut driven = Driven::new(established);
    assert_eq!(driven.reads(&[]), b"");
    assert!(driven.session.peer_closed());
    driven.session.seal(b"still here").unwrap();
    driven.session.close();
    live.hear(&driven.said());
    assert_eq!(live.received(), b"still here");
}

#[test]
fn bulk_goes_both_ways_over_tls_1_2_and_1_3() {
    for (client, server) in [
        (&WORLD.client, &WORLD.server),
        (&WORLD.client13, &WORLD.server13),
    ] {
        let mut live = Live::new(server);
        let mut driven = Driven::new(live.shake_hands(client));
        driven.reads(&std::mem::take(&mut live.said));
        let bulk = numbered(3 << 20);
        live.server.writer().write_all(&bulk).unwrap();
        live.speak();
        let wire = std::mem::take(&mut live.said);
        let mut down = Vec::new();
        for part in wire.chunks(WIRE) {
            down.extend(driven.reads(part));
        }
        assert!(down == bulk);
        let mut up = Vec::new();
        for part in bulk.chunks(WIRE) {
            driven.session.seal(part).unwrap();
            for part in driven.said().chunks(5_000) {
                live.hear(part);
                up.extend(live.received());
            }
        }
        assert!(up == bulk);
    }
}

#[test]
fn tls_1_2_resumes() {
    let client = client12(&WORLD.ca, &provider());
    for expected in [HandshakeKind::Full, HandshakeKind::Resumed] {
        let mut live = Live::new(&WORLD.server);
        let established = live.shake_hands(&client);
        assert_eq!(established.facts().handshake_kind(), Some(expected));
        let mut driven = Driven::new(established);
        assert_eq!(driven.reads(&[]), b"");
        driven.session.seal(b"data").unwrap();
        live.hear(&driven.said());
        assert_eq!(live.received(), b"data");
    }
}

/// TLS 1.2 with ChaCha20-Poly1305: its key does not mind that somebody else has sealed with it.
fn client_for_peer() -> Arc<Connector> {
    let mut provider = provider();
    provider.cipher_suites = vec![
        rustls::crypto::aws_lc_rs::cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    ];
    client12(&WORLD.ca, &provider)
}

/// The server's end of a session of [`client_for_peer`] whose records the test makes itself.
struct Peer12 {
    encrypter: Box<dyn MessageEncrypter>,
    sealed: u64,
    decrypter: Box<dyn MessageDecrypter>,
    opened: u64,
}

impl Peer12 {
    fn new(server: ServerConnection) -> Self {
        let Some(SupportedCipherSuite::Tls12(suite)) = server.negotiated_cipher_suite() else {
            panic!("not TLS 1.2");
        };
        let secrets = server.dangerous_extract_secrets().unwrap();
        let ((sealed, seal), (opened, open)) = (secrets.tx, secrets.rx);
        let parts = |secrets| match secrets {
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (key, iv),
            _ => panic!("not ChaCha20-Poly1305"),
        };
        let (key, iv) = parts(seal);
        let encrypter = suite.aead_alg.encrypter(key, iv.as_ref(), &[]);
        let (key, iv) = parts(open);
        let decrypter = suite.aead_alg.decrypter(key, iv.as_ref());
        Self {
            encrypter,
            sealed,
            decrypter,
            opened,
        }
    }

    fn seal(&mut self, kind: ContentType, content: &[u8]) -> Vec<u8> {
        let message = OutboundPlainMessage {
            typ: kind,
            version: ProtocolVersion::TLSv1_2,
            payload: OutboundChunks::Single(content),
        };
        let sealed = self.encrypter.encrypt(message, self.sealed).unwrap();
        self.sealed += 1;
        sealed.encode()
    }

    /// The one record in `wire`.
    fn open(&mut self, mut wire: Vec<u8>) -> (ContentType, Vec<u8>) {
        let kind = ContentType::from(wire[0]);
        let body = &mut wire[5..];
        let message = InboundOpaqueMessage::new(kind, ProtocolVersion::TLSv1_2, body);
        let opened = self.decrypter.decrypt(message, self.opened).unwrap();
        self.opened += 1;
        (opened.typ, opened.payload.to_vec())
    }
}

#[test]
fn renegotiation_is_declined_once_and_refused_after_that() {
    const HELLO_REQUEST: [u8; 4] = [0; 4];
    let mut live = Live::new(&WORLD.server);
    let mut driven = Driven::new(live.shake_hands(&client_for_peer()));
    assert_eq!(driven.reads(&[]), b"");
    let mut peer = Peer12::new(live.server);
    let mut wire = peer.seal(ContentType::ApplicationData, b"before");
    wire.extend(peer.seal(ContentType::Handshake, &HELLO_REQUEST));
    wire.extend(peer.seal(ContentType::ApplicationData, b"after"));
    assert_eq!(driven.reads(&wire), b"beforeafter");
    let no_renegotiation = vec![1, AlertDescription::NoRenegotiation.into()];
    let said = driven.said();
    assert_eq!(peer.open(said), (ContentType::Alert, no_renegotiation));
    let record = peer.seal(ContentType::Handshake, &HELLO_REQUEST);
    let error = Error::PeerMisbehaved(PeerMisbehaved::TooManyRenegotiationRequests);
    assert_eq!(driven.read(&record), (Vec::new(), Err(error.clone())));
    is_over(&mut driven, &error);
}

/// That nothing is opened or sealed any more.
#[track_caller]
fn is_over(driven: &mut Driven, error: &Error) {
    driven.said();
    assert_eq!(driven.read(b"more"), (Vec::new(), Err(error.clone())));
    assert_eq!(driven.session.seal(b"more"), Err(KeysExhausted));
    driven.session.close();
    assert!(!driven.session.wants_write(), "something is said after it");
}

#[test]
fn a_changed_byte_in_tls_1_2_is_told_and_ends_the_session() {
    let mut live = Live::new(&WORLD.server);
    let mut driven = Driven::new(live.shake_hands(&client_for_peer()));
    assert_eq!(driven.reads(&[]), b"");
    let mut peer = Peer12::new(live.server);
    let mut record = peer.seal(ContentType::ApplicationData, b"data");
    let last = record.len() - 1;
    record[last] ^= 1;
    let (plain, opened) = driven.read(&record);
    assert_eq!((plain, opened), (Vec::new(), Err(Error::DecryptError)));
    let bad_record_mac = vec![2, AlertDescription::BadRecordMac.into()];
    let said = driven.said();
    assert_eq!(peer.open(said), (ContentType::Alert, bad_record_mac));
    is_over(&mut driven, &Error::DecryptError);
}

#[test]
fn nothing_is_sealed_after_our_close_notify() {
    let mut live = Live::new(&WORLD.server);
    let mut driven = Driven::new(live.shake_hands(&client_for_peer()));
    assert_eq!(driven.reads(&[]), b"");
    driven.session.close();
    driven.session.close();
    assert_eq!(driven.session.seal(b"more"), Err(KeysExhausted));
    let mut peer = Peer12::new(live.server);
    let said = driven.said();
    assert_eq!(peer.open(said), (ContentType::Alert, vec![1, 0]));
    let record = peer.seal(ContentType::ApplicationData, b"still coming");
    assert_eq!(driven.reads(&record), b"still coming");
}

/// TLS 1.2 with AES-GCM whose keys are worn out after `limit` records.
fn with_limit(limit: u64) -> CryptoProvider {
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
        ..*aes
    }));
    provider.cipher_suites = vec![SupportedCipherSuite::Tls12(suite)];
    provider
}

#[test]
fn what_worn_out_keys_cannot_seal_is_refused_and_not_swallowed() {
    const LIMIT: u64 = 40;
    let mut live = Live::new(&WORLD.server);
    let client = client12(&WORLD.ca, &with_limit(LIMIT));
    let mut driven = Driven::new(live.shake_hands(&client));
    assert_eq!(driven.reads(&[]), b"");
    let mut accepted = 0;
    while driven.session.seal(b"x").is_ok() {
        accepted += 1;
        assert!(accepted < LIMIT, "records are counted");
    }
    live.hear(&driven.said());
    assert!(!live.server.process_new_packets().unwrap().peer_has_closed());
    assert_eq!(
        live.received().len() as u64,
        accepted,
        "what was taken is sent"
    );
    driven.session.close();
    live.hear(&driven.said());
    assert!(live.server.process_new_packets().unwrap().peer_has_closed());
}

// === TLS 1.3 with rustls' records ===

#[test]
fn rustls_answers_key_updates_once_before_our_next_data() {
    let (established, mut peer) = shake_hands(&WORLD.client13, &WORLD.server13, name());
    let mut driven = Driven::new(established);
    for _ in 0..3 {
        let mut wire = peer.key_update(1);
        wire.extend(peer.key_update(1));
        wire.extend(peer.data(b"ping"));
        for byte in wire {
            let plain = driven.reads(&[byte]);
            assert!(plain.is_empty() || plain == b"ping");
        }
        driven.session.seal(b"pong").unwrap();
        let heard = [Heard::KeyUpdate(0), Heard::Data(b"pong".to_vec())];
        assert_eq!(peer.hear(&driven.said()), heard);
    }
}

#[test]
fn a_message_in_too_small_records_is_refused_and_not_gathered_for_ever() {
    let (established, mut peer) = shake_hands(&WORLD.client13, &WORLD.server13, name());
    let mut driven = Driven::new(established);
    let long = crate::proxy::session::records::peer::ticket(60_000);
    for part in long.chunks(1) {
        let record = peer.seal(22, part, 0);
        if let (_, Err(error)) = driven.read(&record) {
            assert_eq!(error, InvalidMessage::HandshakePayloadTooLarge.into());
            is_over(&mut driven, &error);
            return;
        }
    }
    panic!("{} bytes held back", driven.session.room());
}

proptest! {
    #[test]
    fn whatever_a_server_says_rustls_makes_the_same_of_it_over_our_scratch(plan in plan()) {
        plan.compare_unbuffered(&WORLD.client13, &WORLD.server13, &name());
    }

    /// The server's certificate may take the whole of what a message may hold, in records of any
    /// size and reads of any size.
    #[test]
    fn a_long_chain_in_small_records_makes_no_handshake_panic(
        certificates in 1usize..130,
        fragment in 32usize..400,
        pace in prop_oneof![20usize..60, 60usize..2_000, Just(usize::MAX)],
        tls13 in any::<bool>(),
    ) {
        let ca = &WORLD.ca;
        let others: Vec<&Ca> = vec![ca; certificates];
        let resolver = test_pki::server(&ca.server(), &others).cert_resolver;
        let config = if tls13 { &WORLD.server13 } else { &WORLD.server };
        let mut config = ServerConfig::clone(config);
        config.cert_resolver = resolver;
        config.max_fragment_size = Some(fragment);
        let client = if tls13 { &WORLD.client13 } else { &WORLD.client };
        let mut live = Live::new(&Arc::new(config));
        live.pace = pace;
        let shaken = {
            let handshake = pin!(handshake(&mut live, client, name(), LastFlight::Written));
            handshake.poll(&mut Context::from_waker(Waker::noop()))
        };
        let Poll::Ready(shaken) = shaken else {
            panic!("it waits for a server that never waits");
        };
        // Whether so long a chain is taken is not for this test.
        if let Ok(established) = shaken {
            let mut driven = Driven::new(established);
            driven.reads(&[]);
            driven.reads(&std::mem::take(&mut live.said));
            driven.session.seal(b"data").unwrap();
            live.hear(&driven.said());
            prop_assert_eq!(live.received(), b"data");
        }
    }
}
