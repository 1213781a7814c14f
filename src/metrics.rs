//! Counters, gauges and histograms, each resolved once and then only added to.

use std::sync::Arc;
use std::time::Duration;

use crate::config::ServiceName;
use crate::failure::Failure;
use crate::source::Trigger;
use crate::status::{Status, Traffic};

/// All metrics of the process.
#[derive(Debug)]
pub(crate) struct Metrics {}

/// The metrics of one service, for the data path: no look-up, no lock but for a failure.
#[derive(Debug)]
pub(crate) struct ServiceMetrics {}

impl Metrics {
    pub(crate) fn new(version: &str) -> Self {
        let _ = version;
        Self {}
    }
    /// The handles of a service, made at its first use and the same from then on.
    pub(crate) fn service(&self, name: &ServiceName) -> Arc<ServiceMetrics> {
        let _ = name;
        Arc::new(ServiceMetrics {})
    }
    /// Drops a removed service's series once its last connection has ended.
    pub(crate) fn forget(&self, name: &ServiceName) {
        let _ = name;
    }
    /// A configuration or credential was read again: `source` is `config`, `identity` or `trust`,
    /// `result` is `ok`, `unchanged` or a reason's word.
    pub(crate) fn reloaded(
        &self,
        source: &'static str,
        trigger: Trigger,
        result: &'static str,
        now: i64,
    ) {
        let _ = (source, trigger, result, now);
    }
    /// Sets the gauges that mirror status (expiry, generations, readiness).
    pub(crate) fn mirror(&self, status: &Status) {
        let _ = status;
    }
    /// In Prometheus' text format.
    pub(crate) fn encode(&self) -> String {
        String::new()
    }
}

impl ServiceMetrics {
    /// A connection was accepted; it is open until the guard is dropped.
    pub(crate) fn opened(self: &Arc<Self>) -> Open {
        Open(Arc::clone(self))
    }
    /// TCP to the upstream stands; `took` counts from accept.
    pub(crate) fn connected(&self, took: Duration) {
        let _ = took;
    }
    /// The handshake is done; `took` is its own time.
    pub(crate) fn handshaken(&self, took: Duration, resumed: bool) {
        let _ = (took, resumed);
    }
    /// Bytes of payload were written on.
    pub(crate) fn sent_up(&self, bytes: u64) {
        let _ = bytes;
    }
    pub(crate) fn sent_down(&self, bytes: u64) {
        let _ = bytes;
    }
    /// A connection ended; `now` in seconds since 1970.
    pub(crate) fn ended(&self, outcome: Result<(), &Failure>, now: i64) {
        let _ = (outcome, now);
    }
    /// For status.
    pub(crate) fn traffic(&self) -> Traffic {
        Traffic::default()
    }
}

/// Counts a connection as open until dropped.
#[derive(Debug)]
pub(crate) struct Open(Arc<ServiceMetrics>);
