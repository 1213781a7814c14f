//! The one place that configures rustls.

use std::sync::Arc;

use rustls::client::{
    ClientSessionStore, ResolvesClientCert, Resumption, UnbufferedClientConnection,
};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::sign::{CertifiedKey, Signer, SigningKey};
use rustls::{
    ClientConfig, NamedGroup, ProtocolVersion, SignatureAlgorithm, SignatureScheme,
    SupportedProtocolVersion,
};
use rustls_pki_types::ServerName;

use super::identity::Identity;
use super::tickets::{Partition, Provenance, Tickets};
use super::trust::Trust;
use super::verifier::{Verifier, record_failure};
use crate::config::{
    CaSource, CrlExpired, KeyExchange, RecordLayer, TlsPolicy, TlsVersion, Verify,
};
use crate::failure::{Explained, Reason};

/// Makes the connections of one service, identity generation and trust generation.
#[derive(Debug)]
pub(crate) struct Connector {
    /// With `tickets` as its session store.
    config: Arc<ClientConfig>,
    /// `None` where the policy wants no resumption.
    tickets: Option<Arc<Tickets>>,
    /// The sessions that are resumed, where one name stands for several servers.
    partition: Option<Partition>,
    records: RecordLayer,
}

impl Connector {
    /// The same towards one of several endpoints that have a name in common: it resumes the
    /// sessions of that one.
    pub(crate) fn towards(&self, partition: Partition) -> Self {
        Self {
            config: Arc::clone(&self.config),
            tickets: self.tickets.clone(),
            partition: Some(partition),
            records: self.records,
        }
    }

    /// A connection that has made its hello, and where its sessions come from: whatever rustls
    /// does for it from now on is to be done within that.
    ///
    /// # Errors
    /// As [`UnbufferedClientConnection::new`].
    pub(crate) fn connection(
        &self,
        server_name: ServerName<'static>,
    ) -> Result<(UnbufferedClientConnection, Provenance), rustls::Error> {
        self.begin(|config| UnbufferedClientConnection::new(config, server_name))
    }

    /// The same over rustls' own buffers, for tests and fuzzers.
    ///
    /// # Errors
    /// As [`rustls::ClientConnection::new`].
    #[cfg(any(test, fuzzing))]
    pub(crate) fn buffered(
        &self,
        server_name: ServerName<'static>,
    ) -> Result<(rustls::ClientConnection, Provenance), rustls::Error> {
        self.begin(|config| rustls::ClientConnection::new(config, server_name))
    }

    fn begin<T>(
        &self,
        connection: impl FnOnce(Arc<ClientConfig>) -> Result<T, rustls::Error>,
    ) -> Result<(T, Provenance), rustls::Error> {
        let mut provenance = Provenance::now(self.tickets.as_deref(), self.partition);
        let connection = provenance.within(|| connection(Arc::clone(&self.config)))?;
        Ok((connection, provenance))
    }

    /// Whether rustls is to keep the records of TLS 1.3 too.
    pub(crate) fn rustls_records(&self) -> bool {
        self.records == RecordLayer::Rustls
    }

    /// Whether application protocols are offered.
    pub(crate) fn offers_alpn(&self) -> bool {
        !self.config.alpn_protocols.is_empty()
    }

    /// The same, verifier, resolver and sessions included, with another configuration.
    #[cfg(test)]
    pub(crate) fn changed(&self, change: impl FnOnce(&mut ClientConfig)) -> Arc<Self> {
        let mut config = ClientConfig::clone(&self.config);
        change(&mut config);
        Arc::new(Self {
            config: Arc::new(config),
            tickets: self.tickets.clone(),
            partition: self.partition,
            records: self.records,
        })
    }

    /// The same with the sessions of this store.
    #[cfg(test)]
    pub(super) fn with_tickets(&self, tickets: Option<Arc<Tickets>>) -> Arc<Self> {
        let mut config = ClientConfig::clone(&self.config);
        config.resumption = resumption(tickets.as_ref());
        Arc::new(Self {
            config: Arc::new(config),
            tickets,
            partition: self.partition,
            records: self.records,
        })
    }
}

/// A client configuration that presents `identity` (`None`: no certificate at all), trusts `trust`
/// and holds to `policy`. To be made once per service, identity generation and trust generation:
/// sessions resume within one configuration and never across two.
///
/// 0-RTT is off (it can be replayed, and an opaque proxy cannot know what may be), so are ECH and
/// certificate compression; records have their full size.
///
/// # Errors
/// [`Reason::BadConfig`] where versions and key exchange groups leave nothing to offer.
pub(crate) fn client_config(
    policy: &TlsPolicy,
    identity: Option<&Identity>,
    trust: Option<&Arc<Trust>>,
    provider: &CryptoProvider,
) -> Result<Arc<Connector>, Explained> {
    let verifier = Arc::new(Verifier::new(policy, trust, provider));
    let versions = versions(policy)?;
    let provider = CryptoProvider {
        kx_groups: kx_groups(policy, &versions, provider)?,
        ..provider.clone()
    };
    let builder = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&versions)
        .map_err(|error| Explained::new(Reason::BadConfig, error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match identity {
        Some(identity) => {
            builder.with_client_cert_resolver(Arc::new(Presents(Arc::clone(&identity.key))))
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = policy.alpn.iter().map(|name| name.clone().into()).collect();
    config.enable_sni = policy.sni;
    let tickets = policy.resumption.then(|| Arc::new(Tickets::new()));
    config.resumption = resumption(tickets.as_ref());
    config.enable_early_data = false;
    // The record layer of TLS 1.3 takes the keys over: see proxy/session/records.rs.
    config.enable_secret_extraction = policy.record_layer == RecordLayer::Own;
    config.cert_compressors = Vec::new();
    config.cert_decompressors = Vec::new();
    config.max_fragment_size = None;
    Ok(Arc::new(Connector {
        config: Arc::new(config),
        tickets,
        partition: None,
        records: policy.record_layer,
    }))
}

fn resumption(tickets: Option<&Arc<Tickets>>) -> Resumption {
    match tickets {
        Some(tickets) => Resumption::store(Arc::clone(tickets) as Arc<dyn ClientSessionStore>),
        None => Resumption::disabled(),
    }
}

/// What is dangerous about a policy towards servers that `ca` vouches for: to be said at every
/// start and in status.
pub(crate) fn warnings(policy: &TlsPolicy, ca: Option<&CaSource>) -> Vec<String> {
    let mut warnings = Vec::new();
    if policy.verify == Verify::None {
        warnings.push(
            "verify = \"none\": the server's certificate is not verified; whoever is in between \
             can read and change everything"
                .to_owned(),
        );
    }
    let any_name =
        policy.verify == Verify::Chain && policy.pins.is_empty() && policy.allowed_names.is_empty();
    if any_name && ca == Some(&CaSource::System) {
        warnings.push(
            "verify = \"chain\" with ca = \"system\": any server with a public certificate is \
             accepted, whatever its name; add allowed_names or pins"
                .to_owned(),
        );
    }
    if policy.crl_expired == CrlExpired::Accept {
        warnings.push(
            "crl_expired = \"accept\": certificates revoked since the last list go unnoticed"
                .to_owned(),
        );
    }
    warnings
}

fn versions(policy: &TlsPolicy) -> Result<Vec<&'static SupportedProtocolVersion>, Explained> {
    let versions: Vec<_> = [
        (TlsVersion::Tls12, &rustls::version::TLS12),
        (TlsVersion::Tls13, &rustls::version::TLS13),
    ]
    .into_iter()
    .filter(|(version, _)| (policy.min_version..=policy.max_version).contains(version))
    .map(|(_, version)| version)
    .collect();
    if versions.is_empty() {
        return Err(Explained::new(
            Reason::BadConfig,
            "min_version is above max_version",
        ));
    }
    Ok(versions)
}

/// The provider's groups that the policy names, in the policy's order.
fn kx_groups(
    policy: &TlsPolicy,
    versions: &[&'static SupportedProtocolVersion],
    provider: &CryptoProvider,
) -> Result<Vec<&'static dyn SupportedKxGroup>, Explained> {
    let groups: Vec<_> = policy
        .key_exchange
        .iter()
        .filter_map(|wanted| {
            let wanted = match wanted {
                KeyExchange::X25519MlKem768 => NamedGroup::X25519MLKEM768,
                KeyExchange::X25519 => NamedGroup::X25519,
                KeyExchange::Secp256r1 => NamedGroup::secp256r1,
                KeyExchange::Secp384r1 => NamedGroup::secp384r1,
            };
            let mut groups = provider.kx_groups.iter().copied();
            groups.find(|group| group.name() == wanted)
        })
        .collect();
    let usable =
        |version: ProtocolVersion| groups.iter().any(|group| group.usable_for_version(version));
    if !versions.iter().any(|version| usable(version.version)) {
        return Err(Explained::new(
            Reason::BadConfig,
            "no group of key_exchange can be used with the TLS versions between min_version and \
             max_version (X25519MLKEM768 needs TLS 1.3)",
        ));
    }
    Ok(groups)
}

/// Presents one identity whenever a server asks for a certificate, whatever issuers it lists: it
/// is for the server to say no, and lists are often incomplete.
///
/// Where no signature scheme that the server takes fits our key, rustls would present *no*
/// certificate and go on; a server that merely prefers a certificate would then serve us as a
/// stranger. So we claim a scheme and refuse to sign: the handshake fails before anything of ours
/// is finished. A server that asks for no certificate gets none: TLS has no way to offer one.
#[derive(Debug)]
struct Presents(Arc<CertifiedKey>);

impl ResolvesClientCert for Presents {
    fn resolve(
        &self,
        _root_hint_subjects: &[&[u8]],
        sigschemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        if self.0.key.choose_scheme(sigschemes).is_some() {
            return Some(Arc::clone(&self.0));
        }
        let refusal = CannotSign {
            algorithm: self.0.key.algorithm(),
            accepted: sigschemes.to_vec(),
        };
        Some(Arc::new(CertifiedKey::new(
            self.0.cert.clone(),
            Arc::new(refusal),
        )))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// A key that signs nothing: ours is of no use to the server.
#[derive(Clone, Debug)]
struct CannotSign {
    algorithm: SignatureAlgorithm,
    accepted: Vec<SignatureScheme>,
}

impl SigningKey for CannotSign {
    fn choose_scheme(&self, _offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        Some(Box::new(self.clone()))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        self.algorithm
    }
}

impl Signer for CannotSign {
    fn sign(&self, _message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        let accepted: Vec<String> = self
            .accepted
            .iter()
            .map(|scheme| format!("{scheme:?}"))
            .collect();
        let detail = format!(
            "our client key ({:?}) makes none of the signatures that the server accepts: {}",
            self.algorithm,
            accepted.join(", ")
        );
        record_failure(Explained::new(Reason::NoSharedCipher, detail.clone()));
        Err(rustls::Error::General(detail))
    }

    fn scheme(&self) -> SignatureScheme {
        // Never sent: nothing is signed.
        SignatureScheme::Unknown(0)
    }
}

#[cfg(test)]
mod tests;
