//! The doors through which bytes from outside come in, open to fuzzers and closed in every
//! ordinary build. Each door takes any bytes, must not panic, and asserts what must hold
//! whatever the bytes are.
//!
//! `fuzz/` walks through them with libFuzzer; the tests below walk the kept corpus and a bounded
//! number of changes to it, so that an ordinary test run needs no nightly compiler.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write as _};
use std::path::Path;
use std::pin::{Pin, pin};
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, SerialNumber,
};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::config::kubernetes::{Cluster, Known, ObjectRef, ServiceObject, ServicePort};
use crate::config::{Config, IdentitySource, Obstacle, Origin, RecordLayer, TlsPolicy, Verify};
use crate::convert::{self, Product, Reader};
use crate::failure::Explained;
use crate::material::{IdentityMaterial, Part, TrustMaterial};
use crate::proxy::handshake::{LastFlight, handshake};
use crate::proxy::scratch::{HEADROOM, Pieces};
use crate::proxy::session::records::differential::Plan;
use crate::proxy::session::records::peer::server_of;
use crate::proxy::session::{Engine, Session as _};
use crate::tls::client_config::{Connector, client_config};
use crate::tls::identity::Identity;
use crate::tls::trust::Trust;

/// As much as one read of a socket hands to a handshake.
const PIECE: usize = 16 * 1024;

/// A configuration file with these bytes.
///
/// # Panics
/// If it is refused without a place, a reason and a fix.
pub fn config(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let environment: BTreeMap<String, String> = [("HOME", "/home/tlsward"), ("EMPTY", "")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
    let path = Path::new("/etc/tlsward/config.toml");
    match Config::parse(&text, path, &environment) {
        Ok(config) => {
            let mut services = config.services.values();
            assert!(services.all(|service| !service.upstream.words().is_empty()));
            assert_eq!(
                Config::parse(&text, path, &environment).as_ref(),
                Ok(&config)
            );
        }
        Err(problems) => {
            assert!(problems.len() > 0, "a refusal without a problem");
            for problem in problems.iter() {
                assert!(!problem.reason.is_empty(), "no reason: {problem:?}");
                assert!(!problem.fix.is_empty(), "no fix: {problem:?}");
            }
        }
    }
    // Its error is in words; that there is one is the claim.
    let _ = Config::admin_listen(&text, path, &environment);
}

/// Another product's file: the first byte says whose (s, n, g or k), and behind a zero byte stands the
/// one file that it may include, by any name.
///
/// # Panics
/// If what is written cannot be read back or verifies nothing, or a refusal has no reason or fix.
pub fn convert(bytes: &[u8]) {
    let Some((first, rest)) = bytes.split_first() else {
        return;
    };
    let product = match first {
        b's' => Product::Stunnel,
        b'n' => Product::Nginx,
        b'g' => Product::Ghostunnel,
        b'k' => Product::KongEnv,
        _ => return,
    };
    let mut files = rest.splitn(2, |byte| *byte == 0);
    let files = TwoFiles {
        source: files.next().unwrap_or_default(),
        included: files.next().unwrap_or_default(),
    };
    let here = Path::new("/etc/app");
    match convert::convert(product, &["source".into()], &files, here) {
        Ok(done) => {
            let path = Path::new("/etc/tlsward/config.toml");
            let config = Config::parse(&done.config, path, &BTreeMap::new());
            let config = config.unwrap_or_else(|problems| panic!("{problems}"));
            let on = done.services.iter().filter(|(_, off)| !off).count();
            assert_eq!(config.services.len(), on);
            let mut services = config.services.values();
            assert!(services.all(|service| service.tls.verify != Verify::None));
        }
        Err(mistake) => {
            assert!(
                !mistake.reason.is_empty() && !mistake.fix.is_empty(),
                "{mistake}"
            );
        }
    }
}

/// One file, and whatever it includes.
struct TwoFiles<'b> {
    source: &'b [u8],
    included: &'b [u8],
}

impl Reader for TwoFiles<'_> {
    fn read(&self, path: &Path, limit: usize) -> io::Result<Vec<u8>> {
        let bytes = match path == Path::new("/etc/app/source") {
            true => self.source,
            false => self.included,
        };
        Ok(bytes.iter().take(limit + 1).copied().collect())
    }

    fn list(&self, _: &Path) -> io::Result<Vec<String>> {
        Ok(vec!["a.conf".to_owned()])
    }
}

/// A configuration file, and behind a zero byte each what is known of a Service: a first line
/// `NAMESPACE/NAME SECONDS PORT…`, where a port is `NAME:NUMBER`, then its annotations, a line
/// `NAME VALUE` each. All of them are discovered.
///
/// # Panics
/// If the file's own services differ from what they are without the Services, a service is built of
/// a Secret that its Service could not have named, or something is refused without a reason.
pub fn annotations(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let mut parts = text.split('\0');
    let file = parts.next().unwrap_or_default();
    let services: BTreeMap<ObjectRef, Known> = parts
        .filter_map(service)
        .map(|service| (service.object.clone(), Known::Exists(Arc::new(service))))
        .collect();
    let cluster = Cluster {
        own_namespace: Some("own".to_owned()),
        discovered: services.keys().cloned().collect(),
        services,
        ..Cluster::default()
    };
    let path = Path::new("/etc/tlsward/config.toml");
    let environment = BTreeMap::new();
    let parse = |cluster: &Cluster| Config::parse_with(file, path, &environment, cluster);
    let nothing_known = Cluster {
        services: BTreeMap::new(),
        discovered: BTreeSet::new(),
        ..cluster.clone()
    };
    let (config, without) = match (parse(&cluster), parse(&nothing_known)) {
        (Ok(config), Ok(without)) => (config, without),
        (Err(one), Err(other)) => return assert_eq!(one, other, "the file's mistakes are its own"),
        (one, other) => panic!("Services decide whether the file is good: {one:?}, {other:?}"),
    };
    for (name, service) in &without.services {
        assert_eq!(config.services.get(name), Some(service));
    }
    for (name, unbuilt) in &config.unbuilt {
        assert!(!config.services.contains_key(name), "{name}: {unbuilt:?}");
        assert_eq!(config.backends.get(name), Some(&unbuilt.object));
        if let Obstacle::Mistakes(problems) = &unbuilt.obstacle {
            for problem in problems {
                assert!(!problem.reason.is_empty(), "no reason: {problem:?}");
                assert!(!problem.fix.is_empty(), "no fix: {problem:?}");
            }
        }
    }
    let annotated = |name, key| {
        let origin = config.origins.0.get(name)?.get(key)?;
        matches!(origin, Origin::Annotation(_)).then_some(())
    };
    let mut listeners = BTreeSet::new();
    for (name, service) in &config.services {
        assert!(listeners.insert(service.listen.without_mode()), "{name}");
        let object = config.backends.get(name);
        if let (Some(IdentitySource::Secret(secret)), Some(())) =
            (&service.identity, annotated(name, "tls.secret"))
        {
            let own = object.map(|object| &object.namespace);
            assert_eq!(Some(&secret.namespace), own, "{name}");
        }
    }
}

/// What a fuzzer says of a Service.
fn service(text: &str) -> Option<ServiceObject> {
    let (head, annotations) = text.split_once('\n')?;
    let mut words = head.split(' ');
    let (namespace, name) = words.next()?.split_once('/')?;
    let created_at = words.next()?.parse().ok()?;
    let (mut ports, mut external_name) = (Vec::new(), None);
    for word in words {
        match word.split_once(':') {
            Some((name, number)) => ports.push(ServicePort {
                name: name.to_owned(),
                number: number.parse().ok()?,
            }),
            None => external_name = Some(word.to_owned()),
        }
    }
    let annotations = annotations.lines().map(|line| {
        let (name, value) = line.split_once(' ').unwrap_or((line, ""));
        (name.to_owned(), value.to_owned())
    });
    Some(ServiceObject {
        object: ObjectRef::new(namespace, name),
        uid: String::new(),
        created_at,
        annotations: annotations.collect(),
        ports,
        external_name,
    })
}

/// Certificate, key, CA and revocation files. The first byte says what they are (see the match
/// below), the rest are the files, cut apart at the zero bytes. `@ca@`, `@client@`, `@key@`,
/// `@other-key@` and `@crl@` stand for material that is made when the process starts, so that no
/// key lies in a corpus.
///
/// # Panics
/// If a refusal quotes a line of a private key, or an identity or trust is accepted empty.
pub fn pem(bytes: &[u8]) {
    let Some((kind, bytes)) = bytes.split_first() else {
        return;
    };
    let material = &*MATERIAL;
    let mut files = bytes
        .split(|byte| *byte == 0)
        .enumerate()
        .map(|(n, file)| Part::new(format!("file {n}"), material.fill_in(file)));
    let first = files
        .next()
        .unwrap_or_else(|| Part::new("nothing", Vec::new()));
    let rest: Vec<Part> = files.collect();
    let identity = match kind {
        b'p' => IdentityMaterial::Pair {
            cert: first,
            key: rest
                .into_iter()
                .next()
                .unwrap_or_else(|| Part::new("nothing", Vec::new())),
        },
        b'b' => IdentityMaterial::Bundle(first),
        _ => {
            let trust = TrustMaterial {
                ca: vec![first],
                crl: (!rest.is_empty()).then_some(rest),
            };
            match Trust::parse(&trust, NOW) {
                Ok(trust) => assert!(!trust.anchors.is_empty(), "a trust without an anchor"),
                Err(why) => material.assert_no_key_in(&why),
            }
            return;
        }
    };
    match Identity::parse(&identity, NOW, &material.provider) {
        Ok(identity) => assert!(
            !identity.chain.is_empty(),
            "an identity without a certificate"
        ),
        Err(why) => material.assert_no_key_in(&why),
    }
}

/// What an upstream sends. An even first byte: all of its words in a handshake. An odd one: the
/// handshake is a good one, and then come records of a real server, changed as the bytes say (with
/// its next bit, `record_layer = "rustls"`).
///
/// # Panics
/// If anything that the server did not send comes out as plaintext, or a clean end is reported
/// for a stream that was cut or changed.
pub fn upstream_bytes(bytes: &[u8]) {
    match bytes.split_first() {
        None => {}
        Some((first, rest)) if first % 2 == 0 => in_the_handshake(rest, *first),
        Some((first, rest)) => after_the_handshake(rest, first & 2 != 0),
    }
}

/// What a server says after the handshake and how it is cut apart, as a plan of records that it
/// seals itself (`Plan::read` is the grammar).
///
/// # Panics
/// If our record layer makes something else of it than rustls'.
pub fn records_as_rustls(bytes: &[u8]) {
    let material = &*MATERIAL;
    Plan::read(bytes).compare(
        &material.client_without_sessions,
        &material.server_by_hand,
        &material.server_name,
    );
}

fn in_the_handshake(bytes: &[u8], pace: u8) {
    let mut stream = Scripted {
        bytes,
        // One byte at a time, or all that fits, or something in between.
        pace: match pace >> 1 {
            0 => usize::MAX,
            pace => usize::from(pace),
        },
    };
    let handshaken = {
        let name = MATERIAL.server_name.clone();
        let handshake = pin!(handshake(
            &mut stream,
            &MATERIAL.client,
            name,
            LastFlight::Written
        ));
        handshake.poll(&mut Context::from_waker(Waker::noop()))
    };
    match handshaken {
        Poll::Ready(result) => {
            assert!(
                result.is_err(),
                "a handshake without the server's key succeeded"
            );
        }
        Poll::Pending => panic!("a stream that never waits made the handshake wait"),
    }
}

fn after_the_handshake(script: &[u8], rustls_records: bool) {
    let material = &*MATERIAL;
    let (mut session, mut server, mut wire) = material.shake_hands(rustls_records);
    let (sizes, changes) = script.split_at(script.len().min(8));
    let mut sent = Vec::new();
    for (n, size) in sizes.iter().enumerate() {
        let size = usize::from(*size) * usize::from(*size);
        let text = vec![b'a' + u8::try_from(n).unwrap_or(0); size];
        // The server is ours, and its buffer has no limit.
        server.writer().write_all(&text).expect("rustls takes it");
        sent.extend_from_slice(&text);
    }
    server.send_close_notify();
    while server.wants_write() {
        server.write_tls(&mut wire).expect("a Vec takes it");
    }
    let intact = wire.clone();
    for change in changes.chunks_exact(4) {
        apply(change, &mut wire);
    }

    let pace = 1 + changes.iter().map(|byte| usize::from(*byte)).sum::<usize>() * 7 % PIECE;
    // The way the relay does it.
    let mut buffer = vec![0; HEADROOM + PIECE];
    let mut pieces = Pieces::default();
    let mut received = Vec::new();
    for piece in wire.chunks(pace) {
        let room = session.room();
        buffer[room..room + piece.len()].copy_from_slice(piece);
        pieces.clear();
        let result = session.open(&mut buffer[..room + piece.len()], &mut pieces);
        received.extend(pieces.to_vec(&buffer));
        if result.is_err() {
            assert!(wire != intact, "an intact stream was refused: {result:?}");
            break;
        }
    }
    assert!(
        sent.starts_with(&received),
        "plaintext that the server never sent"
    );
    if session.peer_closed() {
        assert_eq!(received.len(), sent.len(), "a clean end of a cut stream");
    } else {
        assert!(wire != intact, "the clean end of an intact stream was lost");
    }
}

/// One change to the wire: four bytes say where, and what is done there.
fn apply(change: &[u8], wire: &mut Vec<u8>) {
    let [high, low, what, value] = *change else {
        return;
    };
    if wire.is_empty() {
        return;
    }
    let at = usize::from(u16::from_be_bytes([high, low])) % wire.len();
    match what % 4 {
        0 => wire[at] ^= value,
        1 => wire.truncate(at),
        2 => {
            let end = (at + usize::from(value)).min(wire.len());
            wire.drain(at..end);
        }
        _ => wire.insert(at, value),
    }
}

/// An upstream that says what it was given, never waits and then ends; what it is told is lost.
struct Scripted<'a> {
    bytes: &'a [u8],
    pace: usize,
}

impl AsyncRead for Scripted<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let len = self.bytes.len().min(self.pace).min(buffer.remaining());
        let (now, later) = self.bytes.split_at(len);
        buffer.put_slice(now);
        self.bytes = later;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Scripted<'_> {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// 2030-01-01: rcgen's certificates are valid from 1975 to 4096.
const NOW: UnixTime = UnixTime::since_unix_epoch(Duration::from_secs(1_893_456_000));

static MATERIAL: LazyLock<Material> =
    LazyLock::new(|| Material::make().expect("rcgen and rustls make what they are asked for"));

/// A CA, both ends' certificates, and both ends of TLS; made once per process.
struct Material {
    provider: CryptoProvider,
    /// Placeholder and what stands for it.
    texts: Vec<(&'static str, String)>,
    /// Lines of private keys.
    secrets: Vec<String>,
    server_name: ServerName<'static>,
    client: Arc<Connector>,
    /// With `record_layer = "rustls"`.
    client_of_rustls: Arc<Connector>,
    /// It takes tickets of any size, and offers none: plans do not depend on each other.
    client_without_sessions: Arc<Connector>,
    server: Arc<ServerConfig>,
    /// The same, and its records are made by hand.
    server_by_hand: Arc<ServerConfig>,
}

impl Material {
    fn make() -> Result<Self, Box<dyn std::error::Error>> {
        let provider = aws_lc_rs::default_provider();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let issue = |name: &str, usage| -> Result<_, rcgen::Error> {
            let mut params = CertificateParams::new(vec![name.to_owned()])?;
            params.extended_key_usages = vec![usage];
            let key = KeyPair::generate()?;
            Ok((params.signed_by(&key, &ca)?, key))
        };
        let (client, key) = issue("client.test", ExtendedKeyUsagePurpose::ClientAuth)?;
        let (server, server_key) = issue("server.test", ExtendedKeyUsagePurpose::ServerAuth)?;
        let other_key = KeyPair::generate()?;
        let moment = |year| rcgen::date_time_ymd(year, 1, 1);
        let crl = CertificateRevocationListParams {
            this_update: moment(2020),
            next_update: moment(2040),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: Vec::new(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let texts = vec![
            ("@ca@", ca.pem()),
            ("@client@", client.pem()),
            ("@key@", key.serialize_pem()),
            ("@other-key@", other_key.serialize_pem()),
            ("@crl@", crl.signed_by(&ca)?.pem()?),
        ];

        let part = |place: &str, text: &str| Part::new(place, text.as_bytes().to_vec());
        let identity = IdentityMaterial::Pair {
            cert: part("client", &client.pem()),
            key: part("key", &key.serialize_pem()),
        };
        let trust = TrustMaterial {
            ca: vec![part("ca", &ca.pem())],
            crl: None,
        };
        let words = |why: Explained| why.to_string();
        let identity = Identity::parse(&identity, NOW, &provider).map_err(words)?;
        let trust = Arc::new(Trust::parse(&trust, NOW).map_err(words)?);
        let client = |policy| client_config(&policy, Some(&identity), Some(&trust), &provider);
        let client_of_rustls = TlsPolicy {
            record_layer: RecordLayer::Rustls,
            ..policy()
        };
        let without_sessions = TlsPolicy {
            resumption: false,
            ..policy()
        };
        let server = server_config(ca.der(), server.der(), &server_key, &provider)?;
        Ok(Self {
            secrets: [&key, &other_key]
                .iter()
                .flat_map(|key| lines_of(&key.serialize_pem()))
                .collect(),
            client_without_sessions: client(without_sessions).map_err(words)?,
            server_by_hand: server_of(&server),
            server,
            client: client(policy()).map_err(words)?,
            client_of_rustls: client(client_of_rustls).map_err(words)?,
            provider,
            texts,
            server_name: ServerName::try_from("server.test")?,
        })
    }

    fn fill_in(&self, file: &[u8]) -> Vec<u8> {
        let mut filled = file.to_vec();
        for (placeholder, text) in &self.texts {
            let placeholder = placeholder.as_bytes();
            // One of each: a file of placeholders must not grow without end.
            let found = filled
                .windows(placeholder.len())
                .position(|at| at == placeholder);
            if let Some(at) = found {
                filled.splice(at..at + placeholder.len(), text.bytes());
            }
        }
        filled
    }

    fn assert_no_key_in(&self, why: &Explained) {
        for secret in &self.secrets {
            assert!(
                !why.detail.contains(secret),
                "a message quotes a private key"
            );
        }
    }

    /// Both ends after a good handshake, and what the server has said since.
    fn shake_hands(&self, rustls_records: bool) -> (Engine, ServerConnection, Vec<u8>) {
        let client = match rustls_records {
            true => &self.client_of_rustls,
            false => &self.client,
        };
        let server = ServerConnection::new(Arc::clone(&self.server));
        let mut stream = Live {
            server: server.expect("the configuration is good"),
            said: Vec::new(),
        };
        stream.server.set_buffer_limit(None);
        let established = {
            let handshake = pin!(handshake(
                &mut stream,
                client,
                self.server_name.clone(),
                LastFlight::Written
            ));
            handshake.poll(&mut Context::from_waker(Waker::noop()))
        };
        let Poll::Ready(Ok(established)) = established else {
            panic!("a good server is not taken at once");
        };
        let session = established.into_session().expect("the handshake is over");
        (session, stream.server, stream.said)
    }
}

/// A server that answers within the write.
struct Live {
    server: ServerConnection,
    said: Vec<u8>,
}

impl AsyncRead for Live {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let len = self.said.len().min(buffer.remaining());
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
        let this = &mut *self;
        let mut rest = bytes;
        while !rest.is_empty() {
            this.server.read_tls(&mut rest)?;
            this.server
                .process_new_packets()
                .map_err(io::Error::other)?;
        }
        while this.server.wants_write() {
            this.server.write_tls(&mut this.said)?;
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// What a configuration says that leaves everything else at its default.
fn policy() -> TlsPolicy {
    let text = "[services.fuzzed]\nlisten = \"127.0.0.1:7001\"\nupstream = \"server.test:443\"\n\
                tls = { ca = \"ca\", cert = \"cert\", key = \"key\" }\n";
    Config::parse(text, Path::new("/fuzzed.toml"), &BTreeMap::new())
        .ok()
        .and_then(|config| config.services.into_values().next())
        .expect("the text above is a configuration of one service")
        .tls
}

fn lines_of(pem: &str) -> impl Iterator<Item = String> + use<> {
    let lines: Vec<String> = pem
        .lines()
        .filter(|line| !line.starts_with('-') && line.len() > 16)
        .map(str::to_owned)
        .collect();
    lines.into_iter()
}

fn server_config(
    ca: &CertificateDer<'static>,
    certificate: &CertificateDer<'static>,
    key: &KeyPair,
    provider: &CryptoProvider,
) -> Result<Arc<ServerConfig>, Box<dyn std::error::Error>> {
    let provider = Arc::new(provider.clone());
    let mut roots = RootCertStore::empty();
    roots.add(ca.clone())?;
    let clients =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()?;
    let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(clients)
        .with_single_cert(vec![certificate.clone()], key)?;
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Changes to each seed. Together with the seeds this takes a second or two unoptimised.
    const CHANGES: usize = 64;

    /// The same where two handshakes come before each.
    const FEW_CHANGES: usize = 16;

    /// The seeds of a target, each with its name.
    #[expect(clippy::disallowed_methods, reason = "a test reads its corpus")]
    fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("fuzz/corpus")
            .join(target);
        let mut seeds: Vec<_> = std::fs::read_dir(directory)
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let name = entry.file_name().to_string_lossy().into_owned();
                (name, std::fs::read(entry.path()).unwrap())
            })
            .collect();
        seeds.sort();
        assert!(!seeds.is_empty(), "no corpus for {target}");
        seeds
    }

    /// The same numbers at every run: xorshift64.
    struct Numbers(u64);

    impl Numbers {
        fn below(&mut self, end: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 % end.max(1) as u64) as usize
        }

        /// Flips, removes, repeats or inserts somewhere, up to four times.
        fn change(&mut self, seed: &[u8]) -> Vec<u8> {
            let mut bytes = seed.to_vec();
            for _ in 0..=self.below(4) {
                let at = self.below(bytes.len());
                let end = (at + self.below(32)).min(bytes.len());
                match self.below(4) {
                    0 if !bytes.is_empty() => bytes[at] ^= 1 << self.below(8),
                    1 => drop(bytes.drain(at..end)),
                    2 => {
                        let again = bytes[at..end].to_vec();
                        bytes.splice(at..at, again);
                    }
                    _ => bytes.insert(at, self.below(256) as u8),
                }
            }
            bytes
        }
    }

    fn walk(target: &str, changes: usize, door: fn(&[u8])) {
        let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
        for (name, seed) in corpus(target) {
            let walk = |bytes: &[u8]| {
                let walked = std::panic::catch_unwind(|| door(bytes));
                assert!(
                    walked.is_ok(),
                    "{target}/{name}, as {:?}",
                    bytes.escape_ascii().to_string()
                );
            };
            walk(&seed);
            for _ in 0..changes {
                walk(&numbers.change(&seed));
            }
        }
    }

    #[test]
    fn no_configuration_text_makes_the_parser_panic() {
        walk("config", CHANGES, config);
    }

    #[test]
    fn no_file_of_another_product_makes_a_converter_panic_or_verify_nothing() {
        walk("convert", CHANGES, convert);
    }

    #[test]
    fn no_annotation_makes_the_parser_panic_or_reaches_beyond_its_service() {
        walk("annotations", CHANGES, annotations);
    }

    #[test]
    fn no_certificate_or_key_file_makes_the_parser_panic_or_quote_a_key() {
        walk("pem", CHANGES, pem);
    }

    #[test]
    fn nothing_an_upstream_sends_makes_the_session_panic_or_invent_data() {
        walk("records", CHANGES, upstream_bytes);
    }

    #[test]
    fn no_plan_of_records_tells_our_record_layer_from_that_of_rustls() {
        walk("differential", FEW_CHANGES, records_as_rustls);
    }

    /// Otherwise the walks above would only ever see refusals.
    #[test]
    fn the_material_for_placeholders_is_good() {
        let filled = |text: &str| Part::new("test", MATERIAL.fill_in(text.as_bytes()));
        let bundle = IdentityMaterial::Bundle(filled("@key@\n@client@"));
        Identity::parse(&bundle, NOW, &MATERIAL.provider).unwrap();
        let trust = TrustMaterial {
            ca: vec![filled("@ca@")],
            crl: Some(vec![filled("@crl@")]),
        };
        assert_eq!(Trust::parse(&trust, NOW).unwrap().crls.len(), 1);
    }
}
