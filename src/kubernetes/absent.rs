//! In a build without Kubernetes support: the configuration refuses all that would need it, so
//! nothing is ever wanted.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::cluster::Store;
use crate::config::kubernetes::Kubernetes;
use crate::sandbox::ClusterAccess;
use crate::status::Status;

/// None: this build does not look for one.
pub(crate) fn own_namespace() -> Option<String> {
    None
}

/// None is reached.
pub(crate) fn access(_: &Kubernetes, _: &BTreeMap<String, String>) -> ClusterAccess {
    ClusterAccess::default()
}

/// Waits for the end.
pub(crate) async fn run(_: Arc<Store>, _: Arc<CryptoProvider>, stop: CancellationToken) {
    stop.cancelled().await;
}

/// Tells nobody.
pub(crate) async fn announce(
    _: Arc<Store>,
    _: Arc<CryptoProvider>,
    _: watch::Receiver<Arc<Status>>,
) -> Infallible {
    std::future::pending().await
}
