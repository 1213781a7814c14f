//! The endpoints of a Kubernetes Service that take new connections: a live set that routes share.
//! It changes as pods come and go; no route is built anew for that, and sessions stay.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use crate::config::kubernetes::ServiceBackend;

/// The live set of one port of a Service. A connection that was given an endpoint keeps it.
#[derive(Debug)]
pub(crate) struct Endpoints {
    backend: ServiceBackend,
    current: Mutex<Arc<[Vec<SocketAddr>]>>,
}

impl Endpoints {
    /// Without an endpoint yet.
    pub(crate) fn new(backend: ServiceBackend) -> Self {
        Self {
            backend,
            current: Mutex::new(Arc::new([])),
        }
    }

    pub(crate) fn backend(&self) -> &ServiceBackend {
        &self.backend
    }

    /// New connections go to these from now on, each given by its addresses.
    pub(crate) fn replace(&self, endpoints: Vec<Vec<SocketAddr>>) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        *current = endpoints.into();
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.len()
    }
}
