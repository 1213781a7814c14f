//! A throw-away PKI and handshakes without sockets, for tests.

use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams,
    SanType, SerialNumber, SignatureAlgorithm,
};
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::time_provider::TimeProvider;
use rustls::{ClientConnection, RootCertStore, ServerConfig, ServerConnection};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use time::OffsetDateTime;

use super::client_config::{Connector, client_config};
use super::identity::Identity;
use super::trust::Trust;
use super::verifier::take_failure;
use crate::config::{CrlExpired, KeyExchange, RecordLayer, TlsPolicy, TlsVersion, Verify};
use crate::failure::Explained;
use crate::material::{IdentityMaterial, Part, TrustMaterial};

/// The moment at which tests take place (2030-01-01), in seconds since 1970. Certificates are
/// valid from a year before to a year after, unless a test says otherwise.
pub(crate) const NOW: i64 = 1_893_456_000;
pub(crate) const DAY: i64 = 86_400;

pub(crate) fn now() -> UnixTime {
    unix(NOW)
}

pub(crate) fn unix(secs: i64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(secs as u64))
}

pub(crate) fn date(secs: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(secs).unwrap()
}

pub(crate) fn provider() -> CryptoProvider {
    rustls::crypto::aws_lc_rs::default_provider()
}

/// The defaults of the configuration.
pub(crate) fn policy() -> TlsPolicy {
    TlsPolicy {
        verify: Verify::Full,
        verify_depth: None,
        server_name: None,
        sni: true,
        crl_expired: CrlExpired::Refuse,
        pins: Vec::new(),
        allowed_names: Vec::new(),
        min_version: TlsVersion::Tls12,
        max_version: TlsVersion::Tls13,
        key_exchange: vec![
            KeyExchange::X25519MlKem768,
            KeyExchange::X25519,
            KeyExchange::Secp256r1,
            KeyExchange::Secp384r1,
        ],
        alpn: Vec::new(),
        resumption: true,
        record_layer: RecordLayer::Own,
    }
}

/// A CA: root or intermediate.
pub(crate) struct Ca(CertifiedIssuer<'static, KeyPair>);

impl Ca {
    /// A self-signed CA.
    pub(crate) fn new(name: &str) -> Self {
        Self::with(name, |_| {})
    }

    /// A self-signed CA, changed by the closure.
    pub(crate) fn with(name: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::self_signed(ca_params(name, change), key).unwrap())
    }

    /// A CA issued by this one.
    pub(crate) fn intermediate(&self, name: &str) -> Self {
        self.intermediate_with(name, |_| {})
    }

    /// A CA issued by this one, changed by the closure.
    pub(crate) fn intermediate_with(
        &self,
        name: &str,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Self {
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::signed_by(ca_params(name, change), key, &self.0).unwrap())
    }

    /// A server's certificate for `localhost`, `billing.internal` and 127.0.0.1.
    pub(crate) fn server(&self) -> Leaf {
        self.server_with(|_| {})
    }

    /// The same, changed by the closure.
    pub(crate) fn server_with(&self, change: impl FnOnce(&mut CertificateParams)) -> Leaf {
        let names = ["localhost", "billing.internal", "127.0.0.1"].map(str::to_owned);
        let mut params = leaf_params("server", names.into());
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        change(&mut params);
        self.issue(&params, KeyPair::generate().unwrap())
    }

    /// A client's certificate.
    pub(crate) fn client(&self) -> Leaf {
        self.client_with(|_| {})
    }

    /// The same, changed by the closure.
    pub(crate) fn client_with(&self, change: impl FnOnce(&mut CertificateParams)) -> Leaf {
        let mut params = client_params();
        change(&mut params);
        self.issue(&params, KeyPair::generate().unwrap())
    }

    /// A client's certificate with a key of this kind.
    pub(crate) fn client_of(&self, algorithm: &'static SignatureAlgorithm) -> Leaf {
        let key = KeyPair::generate_for(algorithm).unwrap();
        self.issue(&client_params(), key)
    }

    pub(crate) fn issue(&self, params: &CertificateParams, key: KeyPair) -> Leaf {
        Leaf {
            der: params.signed_by(&key, &self.0).unwrap().der().clone(),
            key,
        }
    }

    pub(crate) fn der(&self) -> &CertificateDer<'static> {
        self.0.der()
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    /// A list that revokes these certificates (DER) and is good from `this_update` to a day after
    /// [`NOW`].
    pub(crate) fn crl(&self, revoked: &[&CertificateDer<'_>], this_update: i64) -> Vec<u8> {
        self.crl_until(revoked, this_update, NOW + DAY)
    }

    pub(crate) fn crl_until(
        &self,
        revoked: &[&CertificateDer<'_>],
        this_update: i64,
        next_update: i64,
    ) -> Vec<u8> {
        let revoked = revoked.iter().map(|der| RevokedCertParams {
            serial_number: SerialNumber::from_slice(
                super::summary::parse(der).unwrap().raw_serial(),
            ),
            revocation_time: date(this_update),
            reason_code: None,
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: date(this_update),
            next_update: date(next_update),
            crl_number: SerialNumber::from(this_update as u64),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.0).unwrap().der().to_vec()
    }
}

/// An end entity's certificate and key.
pub(crate) struct Leaf {
    pub(crate) der: CertificateDer<'static>,
    pub(crate) key: KeyPair,
}

impl Leaf {
    pub(crate) fn pem(&self) -> String {
        pem("CERTIFICATE", &self.der)
    }

    pub(crate) fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }

    /// Certificate and key as an identity's files, with intermediates after the leaf.
    pub(crate) fn material(&self, intermediates: &[&Ca]) -> IdentityMaterial {
        let chain: Vec<String> = std::iter::once(self.pem())
            .chain(intermediates.iter().map(|ca| ca.pem()))
            .collect();
        pair(&chain.concat(), &self.key_pem())
    }

    pub(crate) fn identity(&self) -> Identity {
        Identity::parse(&self.material(&[]), now(), &provider()).unwrap()
    }

    fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::try_from(self.key.serialize_der()).unwrap()
    }
}

pub(crate) fn pair(cert: &str, key: &str) -> IdentityMaterial {
    IdentityMaterial::Pair {
        cert: Part::new("tls.crt", cert.into()),
        key: Part::new("tls.key", key.into()),
    }
}

/// These CAs as the only file in `ca`, and no `crl`.
pub(crate) fn trust(cas: &[&Ca]) -> Arc<Trust> {
    trust_with_lists(cas, None)
}

pub(crate) fn trust_with_lists(cas: &[&Ca], lists: Option<&[Vec<u8>]>) -> Arc<Trust> {
    let bundle: Vec<String> = cas.iter().map(|ca| ca.pem()).collect();
    let material = TrustMaterial {
        ca: vec![Part::new("ca.crt", bundle.concat().into())],
        crl: lists.map(|lists| {
            let parts = lists.iter().enumerate();
            parts
                .map(|(index, der)| Part::new(format!("{index}.crl"), der.clone()))
                .collect()
        }),
    };
    Arc::new(Trust::parse(&material, now()).unwrap())
}

pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> = text
        .as_bytes()
        .chunks(64)
        .map(|line| std::str::from_utf8(line).unwrap())
        .collect();
    format!(
        "-----BEGIN {label}-----\n{}\n-----END {label}-----\n",
        lines.join("\n")
    )
}

/// What [`client_config`] makes of these, at [`NOW`].
pub(crate) fn client(
    policy: &TlsPolicy,
    identity: Option<&Identity>,
    trust: &Arc<Trust>,
) -> Arc<Connector> {
    let config = client_config(policy, identity, Some(trust), &provider()).unwrap();
    at(&config, NOW)
}

/// The same configuration (verifier, resolver and session store included) at another time.
pub(crate) fn at(config: &Connector, secs: i64) -> Arc<Connector> {
    config.changed(|config| config.time_provider = Arc::new(Stopped(secs)))
}

#[derive(Debug)]
struct Stopped(i64);

impl TimeProvider for Stopped {
    fn current_time(&self) -> Option<UnixTime> {
        Some(unix(self.0))
    }
}

/// A server that presents `leaf` and `intermediates` and asks for no certificate.
pub(crate) fn server(leaf: &Leaf, intermediates: &[&Ca]) -> ServerConfig {
    server_of(
        ServerConfig::builder_with_provider(Arc::new(provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth(),
        leaf,
        intermediates,
    )
}

/// A server that requires a certificate of `clients`; the second value is its provider.
pub(crate) fn mtls_server(
    leaf: &Leaf,
    clients: &Ca,
    provider: CryptoProvider,
    required: bool,
) -> ServerConfig {
    let provider = Arc::new(provider);
    let mut roots = RootCertStore::empty();
    roots.add(clients.der().clone()).unwrap();
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let verifier = match required {
        true => verifier,
        false => verifier.allow_unauthenticated(),
    };
    let mut config = server_of(
        ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier.build().unwrap()),
        leaf,
        &[],
    );
    config.time_provider = Arc::new(Stopped(NOW));
    config
}

fn server_of(
    builder: rustls::ConfigBuilder<ServerConfig, rustls::server::WantsServerCert>,
    leaf: &Leaf,
    intermediates: &[&Ca],
) -> ServerConfig {
    let mut chain = vec![leaf.der.clone()];
    chain.extend(intermediates.iter().map(|ca| ca.der().clone()));
    // Without rustls' check that they fit and can be read: bad servers are wanted too.
    let key = provider().key_provider.load_private_key(leaf.private_key());
    let certified = CertifiedKey::new(chain, key.unwrap());
    builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)))
}

/// Both ends of a finished handshake.
#[derive(Debug)]
pub(crate) struct Established {
    pub(crate) client: ClientConnection,
    pub(crate) server: ServerConnection,
}

/// A handshake that the client broke off, or that the server did.
#[derive(Debug)]
pub(crate) struct Broken {
    /// What [`take_failure`] had to say.
    pub(crate) why: Option<Explained>,
    pub(crate) client: Option<rustls::Error>,
    /// What the server made of it; an alert from the client, mostly.
    pub(crate) server: Option<rustls::Error>,
}

/// Runs a handshake in memory, until nobody has anything more to say (tickets included).
pub(crate) fn handshake(
    client: &Connector,
    server: ServerConfig,
    name: &str,
) -> Result<Established, Box<Broken>> {
    handshake_with(client, &Arc::new(server), name)
}

/// The same with a server that outlives it, as resumption needs.
pub(crate) fn handshake_with(
    client: &Connector,
    server: &Arc<ServerConfig>,
    name: &str,
) -> Result<Established, Box<Broken>> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let (mut client, mut provenance) = client.buffered(name).unwrap();
    let mut server = ServerConnection::new(Arc::clone(server)).unwrap();
    loop {
        let (mut up, mut down) = (Vec::new(), Vec::new());
        while client.wants_write() {
            client.write_tls(&mut up).unwrap();
        }
        let server_error = feed_server(&mut server, &up);
        while server.wants_write() {
            server.write_tls(&mut down).unwrap();
        }
        let client_error = provenance.within(|| feed_client(&mut client, &down));
        if client_error.is_some() || server_error.is_some() {
            let why = take_failure();
            let mut alert = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut alert).unwrap();
            }
            return Err(Box::new(Broken {
                why,
                client: client_error,
                server: server_error.or_else(|| feed_server(&mut server, &alert)),
            }));
        }
        if up.is_empty() && down.is_empty() {
            assert!(!client.is_handshaking() && !server.is_handshaking());
            return Ok(Established { client, server });
        }
    }
}

fn feed_server(server: &mut ServerConnection, mut bytes: &[u8]) -> Option<rustls::Error> {
    while !bytes.is_empty() {
        server.read_tls(&mut bytes).unwrap();
        if let Err(error) = server.process_new_packets() {
            return Some(error);
        }
    }
    None
}

fn feed_client(client: &mut ClientConnection, mut bytes: &[u8]) -> Option<rustls::Error> {
    while !bytes.is_empty() {
        client.read_tls(&mut bytes).unwrap();
        if let Err(error) = client.process_new_packets() {
            return Some(error);
        }
    }
    None
}

fn ca_params(name: &str, change: impl FnOnce(&mut CertificateParams)) -> CertificateParams {
    let mut params = leaf_params(name, Vec::new());
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    change(&mut params);
    params
}

pub(crate) fn client_params() -> CertificateParams {
    let mut params = leaf_params("client", Vec::new());
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.subject_alt_names = vec![uri("spiffe://test/ns/apps/sa/client")];
    params
}

fn leaf_params(name: &str, names: Vec<String>) -> CertificateParams {
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = date(NOW - 365 * DAY);
    params.not_after = date(NOW + 365 * DAY);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params
}

pub(crate) fn uri(uri: &str) -> SanType {
    SanType::URI(uri.try_into().unwrap())
}

/// A TLV of DER, for what rcgen does not make.
pub(crate) fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut tlv = vec![tag];
    match content.len() {
        short @ 0..=127 => tlv.push(short as u8),
        byte @ 128..=255 => tlv.extend([0x81, byte as u8]),
        long => tlv.extend([0x82, (long >> 8) as u8, long as u8]),
    }
    tlv.extend(content);
    tlv
}

/// A self-signed X.509 version 1 certificate, as old tools make them.
pub(crate) fn version_1() -> Leaf {
    let key = KeyPair::generate().unwrap();
    let model = Ca::new("old").issue(&client_params(), KeyPair::generate().unwrap());
    let model = super::summary::parse(&model.der)
        .unwrap()
        .subject()
        .as_raw()
        .to_vec();
    // ecdsa-with-SHA256
    let algorithm = der(
        0x30,
        &der(0x06, &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02]),
    );
    let validity = [der(0x17, b"290101000000Z"), der(0x17, b"310101000000Z")].concat();
    let spki = rcgen::PublicKeyData::subject_public_key_info(&key);
    let tbs = der(
        0x30,
        &[
            der(0x02, &[1]),
            algorithm.clone(),
            model.clone(),
            der(0x30, &validity),
            model,
            spki,
        ]
        .concat(),
    );
    let signature = rcgen::SigningKey::sign(&key, &tbs).unwrap();
    let signature = der(0x03, &[&[0][..], &signature].concat());
    Leaf {
        der: der(0x30, &[tbs, algorithm, signature].concat()).into(),
        key,
    }
}
