//! The one place that configures rustls.

use std::sync::Arc;

use rustls::ClientConfig;
use rustls::crypto::CryptoProvider;

use super::identity::Identity;
use super::trust::Trust;
use crate::config::TlsPolicy;

/// A client configuration that presents `identity`, trusts `trust` and holds to `policy`.
pub(crate) fn client_config(
    policy: &TlsPolicy,
    identity: Option<&Identity>,
    trust: Option<&Arc<Trust>>,
    provider: &CryptoProvider,
) -> Arc<ClientConfig> {
    let _ = (policy, identity, trust, provider);
    unimplemented!()
}
