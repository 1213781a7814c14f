//! What is going on, as a plain value: published by control, read by the admin endpoints, by
//! logs and by systemd.

use serde::Serialize;

use crate::failure::{Explained, Failure};
use crate::tls::summary::CertificateSummary;
use crate::tls::trust::CrlSummary;

/// The state of the whole process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Status {
    /// Of the program.
    pub version: &'static str,
    pub state: ProcessState,
    /// Seconds since 1970.
    pub started_at: i64,
    pub config: ConfigStatus,
    /// By name.
    pub services: Vec<ServiceStatus>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ProcessState {
    /// Before the first configuration is in force.
    Starting,
    /// Every listener is bound and every service has its identity and trust.
    Ready,
    /// Running, but some service cannot serve.
    Degraded,
    /// Draining; no new connections.
    Stopping,
}

/// The configuration in force and what became of the last attempt to replace it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct ConfigStatus {
    pub path: String,
    /// Counts the configurations that came into force, from 1.
    pub generation: u64,
    /// Seconds since 1970, when the present one came into force.
    pub loaded_at: i64,
    /// Why the newest one is not in force, if it is not.
    pub refused: Option<Explained>,
}

/// One service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct ServiceStatus {
    pub name: String,
    pub listen: String,
    pub upstream: Vec<String>,
    pub state: ServiceState,
    /// Why it does not serve, or serves with something older than configured.
    pub problem: Option<Explained>,
    /// `None` for `client_auth = false`.
    pub identity: Option<IdentityStatus>,
    pub trust: Option<TrustStatus>,
    /// `full`, `chain` or `none`.
    pub verify: &'static str,
    /// Standing warnings, for example that verification is off.
    pub warnings: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ServiceState {
    /// Callers are served.
    Ready,
    /// Waiting for identity, trust or the listener's address; callers are refused.
    Waiting,
    /// Callers are served as before a change that is not complete yet.
    Warming,
    /// Removed from the configuration; open connections end by themselves.
    Draining,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct IdentityStatus {
    /// Where it is read from.
    pub source: String,
    /// The certificates in use, leaf first; empty while there is none.
    pub chain: Vec<CertificateSummary>,
    /// Counts the identities from this source that came into use, from 1; 0 while there is none.
    pub generation: u64,
    /// Seconds since 1970, when the present one came into use.
    pub loaded_at: Option<i64>,
    /// Why the newest material is not in use, if it is not.
    pub refused: Option<Explained>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct TrustStatus {
    pub source: String,
    /// The anchors in use.
    pub anchors: Vec<CertificateSummary>,
    /// Certificates left out, each with the reason.
    pub left_out: Vec<String>,
    pub crls: Vec<CrlSummary>,
    pub generation: u64,
    pub loaded_at: Option<i64>,
    pub refused: Option<Explained>,
}

/// What connections did, read from the live counters when the answer is rendered.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Traffic {
    pub open: u64,
    /// Ended without failure.
    pub ended_ok: u64,
    pub failed: u64,
    pub bytes_up: u64,
    pub bytes_down: u64,
    pub handshakes_full: u64,
    pub handshakes_resumed: u64,
    pub last_failure: Option<LastFailure>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct LastFailure {
    /// Seconds since 1970.
    pub at: i64,
    #[serde(flatten)]
    pub failure: Failure,
}
