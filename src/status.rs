//! What is going on, as a plain value: published by control, read by the admin endpoints, by
//! logs and by systemd.

use serde::Serialize;
use serde_json::Value;

use crate::config::kubernetes::ObjectRef;
use crate::failure::{Explained, Failure};
use crate::sandbox;
use crate::tls::summary::CertificateSummary;
use crate::tls::trust::CrlSummary;

mod table;

pub(crate) use table::render_table;

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
    /// Why Services are not discovered, where they should be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub discovery: Option<Explained>,
    /// What the process gave up at its start.
    pub sandbox: sandbox::Report,
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
    /// Asked to end: `shutdown_delay` passes, in which callers are still served, or the drain.
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
    /// Standing warnings, for example that its file can never change where it is mounted.
    pub warnings: Vec<String>,
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
    /// What it has to do with Kubernetes; `None`: nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<KubernetesStatus>,
}

/// The Kubernetes objects behind a service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct KubernetesStatus {
    /// It stands in no file: discovery found it. Whether it can be served is not the process's
    /// readiness, since one team's mistake must not take the others' proxy away.
    pub discovered: bool,
    /// The Service that it goes to.
    pub service: Option<ObjectRef>,
    /// The Secret of its identity.
    pub secret: Option<ObjectRef>,
    /// Endpoints that take new connections; `None` where they are not followed.
    pub endpoints: Option<usize>,
    /// Why the newest state of the Service is not in force, or nothing newer is known of it.
    pub problem: Option<Explained>,
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

impl ServiceStatus {
    /// Whether the process is not as it should be because of this service.
    pub(crate) fn lacks(&self) -> bool {
        let Some(kubernetes) = &self.kubernetes else {
            return self.state != ServiceState::Ready;
        };
        // Nor must an annotation that comes to name a Secret which is not there yet, while callers
        // are served as before, take every pod that runs this proxy out of its Service.
        !self.state.serves() && !kubernetes.discovered
    }
}

impl ServiceState {
    /// Whether new callers are served.
    pub(crate) fn serves(self) -> bool {
        match self {
            Self::Ready | Self::Warming => true,
            Self::Waiting | Self::Draining => false,
        }
    }
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

/// Memory of the process, as of the last look at it: once a second where it has a limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct MemoryStatus {
    /// The working set of its cgroup where that has a limit; else what the process itself holds.
    pub in_use_bytes: u64,
    pub limit_bytes: Option<u64>,
    /// The file that says so.
    pub limited_by: Option<String>,
    /// New callers wait in the kernel's backlog, since little of it is left.
    pub callers_wait: bool,
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

/// The answer of `/status`: the status with the process's `memory` and each service's `traffic`,
/// which is asked for by name and is `null` where there is none. Absent values are `null`; all
/// moments are in seconds since 1970.
pub(crate) fn render_json(
    status: &Status,
    memory: &MemoryStatus,
    traffic: impl Fn(&str) -> Option<Traffic>,
) -> Value {
    let mut value = serde_json::to_value(status)
        .expect("plain structs with text keys can always be written as JSON");
    value["memory"] = serde_json::to_value(memory)
        .expect("plain structs with text keys can always be written as JSON");
    let services = value["services"].as_array_mut().into_iter().flatten();
    for (service, shown) in status.services.iter().zip(services) {
        shown["traffic"] = serde_json::to_value(traffic(&service.name))
            .expect("plain structs with text keys can always be written as JSON");
    }
    value
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::failure::{Phase, Reason, Side};

    /// A certificate that is valid from 1000 to `not_after`.
    pub(crate) fn certificate(subject: &str, not_after: i64) -> CertificateSummary {
        CertificateSummary {
            subject: subject.into(),
            issuer: "CN=Test CA".into(),
            names: vec![format!("DNS:{subject}")],
            serial: "01".into(),
            fingerprint: "ab".repeat(32),
            pin: "sha256/AAAA".into(),
            key: "ECDSA P-256".into(),
            not_before: 1_000,
            not_after,
        }
    }

    /// A service that serves, with a certificate until 900,000 and a CA until 800,000.
    pub(crate) fn service(name: &str) -> ServiceStatus {
        ServiceStatus {
            name: name.into(),
            listen: "127.0.0.1:7001".into(),
            upstream: vec!["billing.internal:8443".into()],
            state: ServiceState::Ready,
            problem: None,
            identity: Some(IdentityStatus {
                source: "certs/tls.crt, certs/tls.key".into(),
                chain: vec![certificate("CN=billing", 900_000)],
                generation: 3,
                loaded_at: Some(2_000),
                refused: None,
            }),
            trust: Some(TrustStatus {
                source: "certs/ca.crt".into(),
                anchors: vec![
                    certificate("CN=Old CA", 800_000),
                    certificate("CN=New CA", 990_000),
                ],
                left_out: vec![],
                crls: vec![CrlSummary {
                    place: "certs/ca.crl".into(),
                    issuer: "CN=Old CA".into(),
                    this_update: 1_000,
                    next_update: Some(700_000),
                    revoked: 2,
                }],
                generation: 1,
                loaded_at: Some(1_500),
                refused: None,
            }),
            verify: "full",
            warnings: vec![],
            kubernetes: None,
        }
    }

    /// A service whose identity is not there yet.
    pub(crate) fn waiting(name: &str) -> ServiceStatus {
        let problem = Explained::new(Reason::IdentityMissing, "certs/tls.crt is not there");
        ServiceStatus {
            state: ServiceState::Waiting,
            problem: Some(problem.clone()),
            identity: Some(IdentityStatus {
                source: "certs/tls.crt, certs/tls.key".into(),
                chain: vec![],
                generation: 0,
                loaded_at: None,
                refused: Some(problem),
            }),
            ..service(name)
        }
    }

    /// A process with these services.
    pub(crate) fn status(state: ProcessState, services: Vec<ServiceStatus>) -> Status {
        Status {
            version: "1.2.3",
            state,
            started_at: 1_000,
            config: ConfigStatus {
                path: "/etc/tlsward/config.toml".into(),
                generation: 2,
                loaded_at: 2_000,
                refused: None,
                warnings: vec![],
            },
            services,
            discovery: None,
            sandbox: sandbox::Sandbox::off("a test").report().clone(),
        }
    }

    /// What one failed connection leaves behind.
    pub(crate) fn traffic_with_failure() -> Traffic {
        Traffic {
            open: 2,
            ended_ok: 5,
            failed: 1,
            last_failure: Some(LastFailure {
                at: 3_000,
                failure: Failure::new(
                    Phase::Handshake,
                    Side::Upstream,
                    Reason::UntrustedIssuer,
                    "issuer CN=Rogue",
                ),
            }),
            ..Traffic::default()
        }
    }

    #[test]
    fn each_service_is_shown_with_its_own_traffic() {
        let status = status(ProcessState::Ready, vec![service("a"), service("b")]);
        let value = render_json(&status, &MemoryStatus::default(), |name| {
            (name == "b").then(traffic_with_failure)
        });
        assert_eq!(value["services"][0]["name"], "a");
        assert_eq!(value["services"][0]["traffic"], Value::Null);
        assert_eq!(value["services"][1]["traffic"]["open"], 2);
        let failure = &value["services"][1]["traffic"]["last_failure"];
        assert_eq!(failure["at"], 3_000);
        assert_eq!(failure["phase"], "handshake");
        assert_eq!(failure["side"], "upstream");
        assert_eq!(failure["reason"], "untrusted_issuer");
        assert_eq!(failure["detail"], "issuer CN=Rogue");
        assert_eq!(failure["hint"], Reason::UntrustedIssuer.hint());
    }

    #[test]
    fn states_are_words_and_a_problem_comes_with_its_hint() {
        let status = status(ProcessState::Degraded, vec![waiting("a")]);
        let value = render_json(&status, &MemoryStatus::default(), |_| None);
        assert_eq!(value["state"], "degraded");
        assert_eq!(value["services"][0]["state"], "waiting");
        let problem = &value["services"][0]["problem"];
        assert_eq!(problem["reason"], "identity_missing");
        assert_eq!(problem["hint"], Reason::IdentityMissing.hint());
    }
}
