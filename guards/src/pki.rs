//! The throw-away certificates of one run, and the server that takes them: P-256, TLS 1.3.

use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tlsward::drivers::Credentials;

/// The name in the server's certificate.
pub(crate) const SERVER_NAME: &str = "upstream.test";

/// A CA and both ends' certificates.
pub(crate) struct Pki {
    pub(crate) client: Credentials,
    ca: CertificateDer<'static>,
    server: CertificateDer<'static>,
    server_key: KeyPair,
}

impl Pki {
    /// # Errors
    /// None that rcgen should have with what it is asked for here.
    pub(crate) fn new() -> Result<Self, rcgen::Error> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let issue = |name: &str, usage| -> Result<_, rcgen::Error> {
            let mut params = CertificateParams::new(vec![name.to_owned()])?;
            params.extended_key_usages = vec![usage];
            let key = KeyPair::generate()?;
            Ok((params.signed_by(&key, &ca)?, key))
        };
        let (client, key) = issue("client.test", ExtendedKeyUsagePurpose::ClientAuth)?;
        let (server, server_key) = issue(SERVER_NAME, ExtendedKeyUsagePurpose::ServerAuth)?;
        Ok(Self {
            client: Credentials {
                ca: ca.pem(),
                chain: client.pem(),
                key: key.serialize_pem(),
            },
            ca: ca.der().clone(),
            server: server.der().clone(),
            server_key,
        })
    }

    /// A server that demands the client's certificate, and after each handshake gives `tickets`
    /// session tickets.
    ///
    /// # Errors
    /// None that rustls should have with certificates of ours.
    pub(crate) fn server(&self, tickets: usize) -> Result<Arc<ServerConfig>, rustls::Error> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(self.ca.clone())?;
        let clients =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .build()
                .map_err(|error| rustls::Error::General(error.to_string()))?;
        let key = PrivateKeyDer::Pkcs8(self.server_key.serialize_der().into());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(clients)
            .with_single_cert(vec![self.server.clone()], key)?;
        config.send_tls13_tickets = tickets;
        // Stateless, so that no store's size decides what can be resumed.
        config.ticketer = aws_lc_rs::Ticketer::new()?;
        Ok(Arc::new(config))
    }
}
