//! Which endpoints of a Service take new connections.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

/// An endpoint of a Service, as its EndpointSlices say (discovery.k8s.io/v1). One that stands in
/// several slices, or with addresses of both families, is one backend for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Backend {
    /// What makes two entries one: the pod's uid, or else its address.
    pub(crate) id: String,
    /// `addresses`; of one family.
    pub(crate) addresses: Vec<IpAddr>,
    /// The slice's ports of TCP, by name (empty where it has none).
    pub(crate) ports: BTreeMap<String, u16>,
    /// `conditions.ready`; absent means true.
    pub(crate) ready: bool,
    /// `conditions.serving`; absent means as `ready`.
    pub(crate) serving: bool,
    /// `conditions.terminating`; absent means false.
    pub(crate) terminating: bool,
    /// `hints.forZones`.
    pub(crate) zones: BTreeSet<String>,
    /// `hints.forNodes`.
    pub(crate) nodes: BTreeSet<String>,
}

/// Where this process runs, as far as it was told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) zone: Option<String>,
    pub(crate) node: Option<String>,
}

/// The endpoints that take new connections, each with the addresses of `port` at which it can be
/// reached (one or, with two families, two), in an order that does not depend on that of `all`.
pub(crate) fn choose(all: &[Backend], port: &str, place: &Place) -> Vec<Vec<SocketAddr>> {
    let _ = place;
    let mut chosen: BTreeMap<&str, BTreeSet<SocketAddr>> = BTreeMap::new();
    for backend in all.iter().filter(|backend| backend.ready) {
        if let Some(port) = backend.ports.get(port) {
            let addresses = backend
                .addresses
                .iter()
                .map(|ip| SocketAddr::new(*ip, *port));
            chosen.entry(&backend.id).or_default().extend(addresses);
        }
    }
    chosen
        .into_values()
        .map(|addresses| addresses.into_iter().collect())
        .collect()
}
