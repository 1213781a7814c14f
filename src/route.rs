//! All that one connection may know: finished, immutable, shared.
//!
//! There is no route without a TLS configuration and no plaintext variant of one, so the proxy
//! cannot forward in the clear by mistake.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::ServerName;
use tokio_util::sync::CancellationToken;

mod endpoints;
mod handshakes;

pub(crate) use endpoints::{Endpoints, Held, Pick, Tried};
pub(crate) use handshakes::Handshakes;

use crate::config::{Callers, ServiceName, Timeouts, UncleanClose, UpstreamAddress};
use crate::metrics::ServiceMetrics;
use crate::tls::client_config::Connector;

/// The way of a connection: where to, how, and with which identity.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) service: ServiceName,
    pub(crate) upstream: Upstream,
    /// SNI and verified name; `None`: the host that is dialled, or the Kubernetes Service's name.
    pub(crate) server_name: Option<ServerName<'static>>,
    /// Presents the service's identity and verifies as configured.
    pub(crate) tls: Arc<Connector>,
    /// The client certificate that `tls` presents, or that it was said to present none.
    pub(crate) identity: Presented,
    pub(crate) timeouts: Timeouts,
    pub(crate) keepalive: Option<Duration>,
    pub(crate) unclean_close: UncleanClose,
    pub(crate) callers: Callers,
    pub(crate) max_connections: Option<usize>,
    /// The service's own, over all of its routes.
    pub(crate) handshakes: Arc<Handshakes>,
    /// Log a line when a connection ends.
    pub(crate) log: bool,
    /// Cancelled when this route's certificate was replaced and the service drains on rotation.
    pub(crate) retired: CancellationToken,
    /// Over how long the ends of retired connections are spread; `None`: they stay.
    pub(crate) retire_over: Option<Duration>,
    pub(crate) metrics: Arc<ServiceMetrics>,
}

/// Where connections go.
#[derive(Clone, Debug)]
pub(crate) enum Upstream {
    /// Tried in this order; never empty.
    Addresses(Vec<UpstreamAddress>),
    /// Spread over the endpoints of a Kubernetes Service.
    Endpoints(Arc<Endpoints>),
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Addresses(addresses) => {
                let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
                f.write_str(&addresses.join(", "))
            }
            Self::Endpoints(live) => live.backend().fmt(f),
        }
    }
}

/// What a route presents to the upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Presented {
    /// A client certificate, by its SHA-256 fingerprint in hex.
    Certificate {
        /// SHA-256 of the leaf.
        fingerprint: Arc<str>,
        /// Which load of this identity it is, from 1.
        generation: u64,
    },
    /// None: the file says `client_auth = false`.
    Nothing,
}

impl Route {
    /// The name for SNI and verification when `upstream` is dialled.
    pub(crate) fn server_name_for(&self, upstream: &UpstreamAddress) -> ServerName<'static> {
        self.server_name
            .clone()
            .unwrap_or_else(|| upstream.host.server_name())
    }
}
