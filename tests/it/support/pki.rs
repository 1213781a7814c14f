//! A certificate authority per test, made in code: nothing expires and no key lies in a file of
//! the repository.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CustomExtension, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevokedCertParams, SanType, SerialNumber, SignatureAlgorithm,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tempfile::TempDir;
use time::{Duration, OffsetDateTime};

use super::net;

/// The name in every server certificate unless a test says otherwise.
pub(crate) const SERVER_NAME: &str = "upstream.test";

/// A root CA and the directory that its files go to; gone when dropped.
pub(crate) struct Pki {
    directory: TempDir,
    pub(crate) root: Ca,
}

impl Pki {
    pub(crate) fn new() -> Self {
        Self {
            directory: tempfile::Builder::new()
                .prefix("tlsward-test-")
                .tempdir()
                .expect("a temporary directory can be made"),
            root: Ca::root("Test Root"),
        }
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A server certificate for [`SERVER_NAME`], `localhost` and this process's loopback address.
    pub(crate) fn server(&self) -> Issued {
        self.root.server().issue()
    }

    /// A client certificate with this common name.
    pub(crate) fn client(&self, common_name: &str) -> Issued {
        self.root.client(common_name).issue()
    }

    /// `ca.crt` with the root's certificate; written at the first call only, since a running
    /// proxy may be watching it.
    pub(crate) fn ca_file(&self) -> PathBuf {
        let path = self.path("ca.crt");
        if !path.exists() {
            self.write("ca.crt", self.root.pem());
        }
        path
    }

    /// Writes a file below the directory, making folders as needed.
    pub(crate) fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        let folder = path.parent().expect("a name below the directory");
        std::fs::create_dir_all(folder).unwrap();
        std::fs::write(&path, contents).unwrap();
        path
    }

    /// Writes `NAME/tls.crt` and `NAME/tls.key`.
    pub(crate) fn identity_files(&self, name: &str, issued: &Issued) -> IdentityFiles {
        IdentityFiles {
            cert: self.write(&format!("{name}/tls.crt"), issued.chain_pem()),
            key: self.write(&format!("{name}/tls.key"), issued.key_pem()),
        }
    }
}

/// Where a certificate and its key lie.
#[derive(Clone, Debug)]
pub(crate) struct IdentityFiles {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

/// A certificate authority: a root or an intermediate.
pub(crate) struct Ca {
    params: CertificateParams,
    key: KeyPair,
    der: CertificateDer<'static>,
    /// The certificates between this one and the root, this one first; empty for a root.
    between: Vec<CertificateDer<'static>>,
}

impl Ca {
    pub(crate) fn root(common_name: &str) -> Self {
        Self::root_valid(common_name, -Duration::days(1), Duration::days(30))
    }

    /// A root with a validity relative to now.
    pub(crate) fn root_valid(common_name: &str, from: Duration, to: Duration) -> Self {
        let key = KeyPair::generate().unwrap();
        let params = ca_params(common_name, from, to);
        let der = params.self_signed(&key).unwrap().der().clone();
        Self {
            params,
            key,
            der,
            between: Vec::new(),
        }
    }

    /// A CA that this one vouches for.
    pub(crate) fn intermediate(&self, common_name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let params = ca_params(common_name, -Duration::days(1), Duration::days(30));
        let der = params
            .signed_by(&key, &self.issuer())
            .unwrap()
            .der()
            .clone();
        let mut between = vec![der.clone()];
        between.extend(self.between.iter().cloned());
        Self {
            params,
            key,
            der,
            between,
        }
    }

    /// A chain of `count` intermediates below this CA; the last one issues.
    pub(crate) fn intermediates(&self, count: usize) -> Self {
        assert!(count > 0);
        (2..=count).fold(self.intermediate("Intermediate 1"), |ca, number| {
            ca.intermediate(&format!("Intermediate {number}"))
        })
    }

    pub(crate) fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    pub(crate) fn pem(&self) -> String {
        pem("CERTIFICATE", &self.der)
    }

    /// The start of a server certificate: [`SERVER_NAME`], `localhost`, this process's address.
    pub(crate) fn server(&self) -> Request<'_> {
        self.server_for(&[SERVER_NAME, "localhost"])
            .address(net::ip())
    }

    /// The start of a server certificate for exactly these names.
    pub(crate) fn server_for(&self, names: &[&str]) -> Request<'_> {
        let mut request = Request::new(self, names.first().copied().unwrap_or("server"));
        request.params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        names
            .iter()
            .fold(request, |request, name| request.dns(name))
    }

    /// The start of a client certificate.
    pub(crate) fn client(&self, common_name: &str) -> Request<'_> {
        let mut request = Request::new(self, common_name);
        request.params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        request
    }

    /// A revocation list that is current.
    pub(crate) fn crl(&self, revoked: &[&Issued]) -> String {
        self.crl_until(revoked, Duration::days(1))
    }

    /// A revocation list whose `nextUpdate` is this far from now (negative: it has passed).
    pub(crate) fn crl_until(&self, revoked: &[&Issued], next_update: Duration) -> String {
        let serials = revoked.iter().map(|issued| issued.serial.clone());
        self.crl_of(serials.collect(), next_update)
    }

    /// A current list that revokes CAs which this one has vouched for.
    pub(crate) fn crl_of_cas(&self, revoked: &[&Self]) -> String {
        let serials = revoked.iter().map(|ca| {
            let (_, parsed) = x509_parser::parse_x509_certificate(&ca.der).unwrap();
            parsed.raw_serial().to_vec()
        });
        self.crl_of(serials.collect(), Duration::days(1))
    }

    fn crl_of(&self, serials: Vec<Vec<u8>>, next_update: Duration) -> String {
        let now = OffsetDateTime::now_utc();
        CertificateRevocationListParams {
            this_update: now - Duration::days(2),
            next_update: now + next_update,
            crl_number: SerialNumber::from(u64::from(next_serial())),
            issuing_distribution_point: None,
            revoked_certs: serials
                .into_iter()
                .map(|serial| RevokedCertParams {
                    serial_number: SerialNumber::from(serial),
                    revocation_time: now - Duration::days(1),
                    reason_code: None,
                    invalidity_date: None,
                })
                .collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        }
        .signed_by(&self.issuer())
        .unwrap()
        .pem()
        .unwrap()
    }

    fn issuer(&self) -> Issuer<'_, &KeyPair> {
        Issuer::from_params(&self.params, &self.key)
    }
}

/// A certificate about to be issued.
#[must_use]
pub(crate) struct Request<'a> {
    ca: &'a Ca,
    params: CertificateParams,
    key: Option<KeyPair>,
}

impl<'a> Request<'a> {
    fn new(ca: &'a Ca, common_name: &str) -> Self {
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, common_name);
        params.not_before = OffsetDateTime::now_utc() - Duration::days(1);
        params.not_after = OffsetDateTime::now_utc() + Duration::days(7);
        // 0x5a first, so that no reader drops leading zeros and none sees a negative number.
        let [a, b, c, d] = next_serial().to_be_bytes();
        let [e, f, g, h] = std::process::id().to_be_bytes();
        params.serial_number = Some(SerialNumber::from(vec![0x5a, e, f, g, h, a, b, c, d]));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        Self {
            ca,
            params,
            key: None,
        }
    }

    pub(crate) fn dns(mut self, name: &str) -> Self {
        self.params
            .subject_alt_names
            .push(SanType::DnsName(name.try_into().unwrap()));
        self
    }

    pub(crate) fn address(mut self, address: IpAddr) -> Self {
        self.params
            .subject_alt_names
            .push(SanType::IpAddress(address));
        self
    }

    pub(crate) fn uri(mut self, uri: &str) -> Self {
        self.params
            .subject_alt_names
            .push(SanType::URI(uri.try_into().unwrap()));
        self
    }

    /// Validity relative to now.
    pub(crate) fn valid(mut self, from: Duration, to: Duration) -> Self {
        self.params.not_before = OffsetDateTime::now_utc() + from;
        self.params.not_after = OffsetDateTime::now_utc() + to;
        self
    }

    pub(crate) fn expired(self) -> Self {
        self.valid(-Duration::days(30), -Duration::days(1))
    }

    pub(crate) fn not_yet_valid(self) -> Self {
        self.valid(Duration::days(1), Duration::days(30))
    }

    pub(crate) fn usage(mut self, usages: &[ExtendedKeyUsagePurpose]) -> Self {
        self.params.extended_key_usages = usages.to_vec();
        self
    }

    /// An extension that must be understood and is not.
    pub(crate) fn unknown_critical_extension(mut self) -> Self {
        let mut extension = unknown_extension(vec![0x05, 0x00]);
        extension.set_criticality(true);
        self.params.custom_extensions.push(extension);
        self
    }

    pub(crate) fn key_kind(mut self, algorithm: &'static SignatureAlgorithm) -> Self {
        self.key = Some(KeyPair::generate_for(algorithm).unwrap());
        self
    }

    pub(crate) fn issue(self) -> Issued {
        let key = self.key.unwrap_or_else(|| KeyPair::generate().unwrap());
        let leaf = self
            .params
            .signed_by(&key, &self.ca.issuer())
            .unwrap()
            .der()
            .clone();
        let serial = self.params.serial_number.unwrap().to_bytes();
        let mut chain = vec![leaf];
        chain.extend(self.ca.between.iter().cloned());
        Issued { chain, key, serial }
    }
}

/// A certificate with its chain and key.
#[derive(Debug)]
pub(crate) struct Issued {
    /// Leaf first, without the root.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    key: KeyPair,
    serial: Vec<u8>,
}

impl Issued {
    /// As status shows it: lower-case hex, colons between bytes.
    pub(crate) fn serial(&self) -> String {
        colon_hex(&self.serial)
    }

    /// As OpenSSL and nginx show it: upper-case hex.
    pub(crate) fn serial_openssl(&self) -> String {
        self.serial
            .iter()
            .map(|byte| format!("{byte:02X}"))
            .collect()
    }

    pub(crate) fn chain_pem(&self) -> String {
        self.chain
            .iter()
            .map(|der| pem("CERTIFICATE", der))
            .collect()
    }

    pub(crate) fn leaf_pem(&self) -> String {
        pem("CERTIFICATE", &self.chain[0])
    }

    /// PKCS#8.
    pub(crate) fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }

    /// The older encodings: SEC1 for ECDSA, PKCS#1 for RSA. The openssl program converts.
    pub(crate) fn key_pem_traditional(&self) -> String {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("key.pem");
        std::fs::write(&file, self.key_pem()).unwrap();
        let output = Command::new("openssl")
            .args(["pkey", "-traditional", "-in"])
            .arg(&file)
            .output()
            .expect("openssl is needed: apt-get install openssl");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn key_der(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::try_from(self.key.serialize_der()).expect("rcgen writes PKCS#8")
    }

    /// With a broken signature: the last byte of the leaf is another.
    pub(crate) fn forged(mut self) -> Self {
        let mut der = self.chain[0].to_vec();
        *der.last_mut().expect("a certificate has bytes") ^= 1;
        self.chain[0] = der.into();
        self
    }

    /// Appends certificates that have nothing to do with the chain until it is about `bytes`
    /// long in DER. They cost the reader memory and nothing else: no issuer among them fits.
    pub(crate) fn padded_to(mut self, bytes: usize) -> Self {
        let mut length: usize = self.chain.iter().map(|der| der.len()).sum();
        let mut number = 0;
        while length + 1024 < bytes {
            number += 1;
            let padding = (bytes - length - 700).min(8 * 1024);
            let der = unrelated(&format!("Padding {number}"), padding);
            length += der.len();
            self.chain.push(der);
        }
        self
    }
}

/// A self-signed certificate with an extension of `padding` bytes that nobody knows.
fn unrelated(common_name: &str, padding: usize) -> CertificateDer<'static> {
    let [high, low] = u16::try_from(padding)
        .expect("at most 64 KiB")
        .to_be_bytes();
    let mut octets = vec![0x04, 0x82, high, low];
    octets.resize(4 + padding, 0x55);
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    params.custom_extensions.push(unknown_extension(octets));
    let key = KeyPair::generate().unwrap();
    params.self_signed(&key).unwrap().der().clone()
}

/// With an identifier below the arc that is set aside for documentation (RFC 5612).
fn unknown_extension(content: Vec<u8>) -> CustomExtension {
    CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 32473, 1], content)
}

fn ca_params(common_name: &str, from: Duration, to: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = OffsetDateTime::now_utc() + from;
    params.not_after = OffsetDateTime::now_utc() + to;
    params
}

fn next_serial() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

pub(crate) fn colon_hex(bytes: &[u8]) -> String {
    let bytes: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    bytes.join(":")
}

pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    for line in text.as_bytes().chunks(64) {
        out.push_str(std::str::from_utf8(line).expect("base64 is ASCII"));
        out.push('\n');
    }
    out.push_str(&format!("-----END {label}-----\n"));
    out
}

/// The directory that a file is in.
pub(crate) fn path_of(file: &Path) -> &Path {
    file.parent().expect("a file in a directory")
}
