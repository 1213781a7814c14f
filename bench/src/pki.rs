//! The throw-away certificates of one run: root, intermediate, and two P-256 leaves.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

/// The name that the upstream's certificate is for.
pub(crate) const SERVER_NAME: &str = "upstream.bench";

/// Certificates and keys; both chains are leaf and intermediate, as most are in practice.
pub(crate) struct Pki {
    root: rcgen::Certificate,
    intermediate: rcgen::Certificate,
    server: Leaf,
    client: Leaf,
}

struct Leaf {
    certificate: rcgen::Certificate,
    key: KeyPair,
}

/// Where the proxy finds what it needs.
#[derive(Clone, Debug)]
pub(crate) struct PkiFiles {
    /// The root certificate.
    pub(crate) ca: PathBuf,
    /// The client's chain, leaf first.
    pub(crate) chain: PathBuf,
    /// The client's key, PKCS#8.
    pub(crate) key: PathBuf,
}

impl Pki {
    pub(crate) fn new() -> Result<Self, rcgen::Error> {
        let root_params = ca("tlsward-bench root");
        let root_key = KeyPair::generate()?;
        let root = root_params.self_signed(&root_key)?;
        let root_issuer = Issuer::new(root_params, root_key);

        let params = ca("tlsward-bench intermediate");
        let key = KeyPair::generate()?;
        let intermediate = params.signed_by(&key, &root_issuer)?;
        let issuer = Issuer::new(params, key);

        let mut server = leaf(SERVER_NAME, ExtendedKeyUsagePurpose::ServerAuth);
        server.subject_alt_names =
            CertificateParams::new([SERVER_NAME.to_owned()])?.subject_alt_names;
        Ok(Self {
            root,
            intermediate,
            server: Leaf::issue(&server, &issuer)?,
            client: Leaf::issue(
                &leaf("bench-client", ExtendedKeyUsagePurpose::ClientAuth),
                &issuer,
            )?,
        })
    }

    pub(crate) fn root(&self) -> CertificateDer<'static> {
        self.root.der().clone()
    }

    pub(crate) fn server_chain(&self) -> Vec<CertificateDer<'static>> {
        vec![
            self.server.certificate.der().clone(),
            self.intermediate.der().clone(),
        ]
    }

    pub(crate) fn server_key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.server.key.serialize_der()).into()
    }

    /// DER bytes of each side's chain, server first.
    pub(crate) fn chain_bytes(&self) -> (usize, usize) {
        let intermediate = self.intermediate.der().len();
        (
            self.server.certificate.der().len() + intermediate,
            self.client.certificate.der().len() + intermediate,
        )
    }

    /// Writes what the proxy under test reads.
    pub(crate) fn write(&self, directory: &Path) -> io::Result<PkiFiles> {
        let files = PkiFiles {
            ca: directory.join("ca.crt"),
            chain: directory.join("client.crt"),
            key: directory.join("client.key"),
        };
        fs::write(&files.ca, self.root.pem())?;
        let chain = self.client.certificate.pem() + &self.intermediate.pem();
        fs::write(&files.chain, chain)?;
        fs::write(&files.key, self.client.key.serialize_pem())?;
        Ok(files)
    }
}

impl Leaf {
    fn issue(
        params: &CertificateParams,
        issuer: &Issuer<'_, KeyPair>,
    ) -> Result<Self, rcgen::Error> {
        let key = KeyPair::generate()?;
        Ok(Self {
            certificate: params.signed_by(&key, issuer)?,
            key,
        })
    }
}

fn ca(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

fn leaf(name: &str, usage: ExtendedKeyUsagePurpose) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    params
}
