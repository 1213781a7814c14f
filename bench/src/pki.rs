//! The throw-away certificates of one run: root, intermediate and P-256 leaves,
//! among them those of two servers that a proxy must refuse.

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

/// The name of a server that is somebody else's, of the same CA.
const OTHER_NAME: &str = "elsewhere.bench";

/// Certificates and keys; all chains are leaf and intermediate, as most are in practice.
pub(crate) struct Pki {
    root: rcgen::Certificate,
    server: Chain,
    misnamed: Chain,
    impostor: Chain,
    client: Chain,
}

/// A leaf with its intermediate, and the leaf's key.
pub(crate) struct Chain {
    leaf: rcgen::Certificate,
    intermediate: rcgen::Certificate,
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
    /// Chain and key in one file, for programs that want it so.
    pub(crate) identity: PathBuf,
}

impl Pki {
    pub(crate) fn new() -> Result<Self, rcgen::Error> {
        let authority = Authority::new()?;
        // The same names in another CA: only the signatures tell the two apart.
        let stranger = Authority::new()?;
        Ok(Self {
            server: authority.server(SERVER_NAME)?,
            misnamed: authority.server(OTHER_NAME)?,
            impostor: stranger.server(SERVER_NAME)?,
            client: authority.issue(&leaf("bench-client", ExtendedKeyUsagePurpose::ClientAuth))?,
            root: authority.root,
        })
    }

    pub(crate) fn root(&self) -> CertificateDer<'static> {
        self.root.der().clone()
    }

    /// The server that every proxy is to trust.
    pub(crate) fn server(&self) -> &Chain {
        &self.server
    }

    /// A server of the right CA with a name that is not [`SERVER_NAME`].
    pub(crate) fn misnamed(&self) -> &Chain {
        &self.misnamed
    }

    /// A server with the right name, of a CA that no proxy is told to trust.
    pub(crate) fn impostor(&self) -> &Chain {
        &self.impostor
    }

    /// What every proxy is to present.
    pub(crate) fn client(&self) -> &Chain {
        &self.client
    }

    /// Writes what the proxy under test reads.
    pub(crate) fn write(&self, directory: &Path) -> io::Result<PkiFiles> {
        let files = PkiFiles {
            ca: directory.join("ca.crt"),
            chain: directory.join("client.crt"),
            key: directory.join("client.key"),
            identity: directory.join("client.pem"),
        };
        fs::write(&files.ca, self.root.pem())?;
        let chain = self.client.leaf.pem() + &self.client.intermediate.pem();
        let key = self.client.key.serialize_pem();
        fs::write(&files.identity, chain.clone() + &key)?;
        fs::write(&files.chain, chain)?;
        fs::write(&files.key, key)?;
        Ok(files)
    }
}

impl Chain {
    pub(crate) fn leaf(&self) -> CertificateDer<'static> {
        self.leaf.der().clone()
    }

    pub(crate) fn certificates(&self) -> Vec<CertificateDer<'static>> {
        vec![self.leaf(), self.intermediate.der().clone()]
    }

    pub(crate) fn key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.serialize_der()).into()
    }

    /// DER bytes of both certificates.
    pub(crate) fn bytes(&self) -> usize {
        self.leaf.der().len() + self.intermediate.der().len()
    }
}

/// A root, and the intermediate that issues.
struct Authority {
    root: rcgen::Certificate,
    intermediate: rcgen::Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Result<Self, rcgen::Error> {
        let root_params = ca("tlsward-bench root");
        let root_key = KeyPair::generate()?;
        let root = root_params.self_signed(&root_key)?;
        let root_issuer = Issuer::new(root_params, root_key);

        let params = ca("tlsward-bench intermediate");
        let key = KeyPair::generate()?;
        let intermediate = params.signed_by(&key, &root_issuer)?;
        Ok(Self {
            root,
            intermediate,
            issuer: Issuer::new(params, key),
        })
    }

    fn server(&self, name: &str) -> Result<Chain, rcgen::Error> {
        let mut params = leaf(name, ExtendedKeyUsagePurpose::ServerAuth);
        params.subject_alt_names = CertificateParams::new([name.to_owned()])?.subject_alt_names;
        self.issue(&params)
    }

    fn issue(&self, params: &CertificateParams) -> Result<Chain, rcgen::Error> {
        let key = KeyPair::generate()?;
        Ok(Chain {
            leaf: params.signed_by(&key, &self.issuer)?,
            intermediate: self.intermediate.clone(),
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
