//! The admin endpoints: health, metrics and status for machines, status, reload and the end for
//! `tlsward status`, `tlsward reload` and `tlsward stop`.
//!
//! Nothing here decides: answers are read from the published [`Status`] and the live counters, a
//! reload is asked of control, which owns the configuration, and the end of the process is asked
//! of whoever waits for [`Shutdown::leaving`].

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};

use crate::clock;
use crate::metrics::Metrics;
use crate::shutdown::Shutdown;
use crate::status::Status;
use crate::systemd::{Notifier, Reloading};

pub(crate) mod client;
mod routes;
mod server;

pub(crate) use client::Client;
pub(crate) use server::Bound;

/// What the endpoints read and ask.
#[derive(Debug)]
pub(crate) struct Shared {
    /// The newest status.
    pub status: watch::Receiver<Arc<Status>>,
    /// The live counters.
    pub metrics: Arc<Metrics>,
    /// To ask control for a reload.
    pub reload: Reloads,
    /// To ask for the end.
    pub shutdown: Shutdown,
}

/// Which endpoints a listener has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Surface {
    /// `admin.listen`: all.
    Admin,
    /// `admin.public_listen`: `/livez`, `/readyz` and `/metrics`, without particulars.
    Public,
}

impl Surface {
    /// The key of the configuration.
    pub(crate) fn key(self) -> &'static str {
        match self {
            Self::Admin => "admin.listen",
            Self::Public => "admin.public_listen",
        }
    }
}

/// Asks control to read the configuration and all credentials again.
#[derive(Debug)]
pub(crate) struct ReloadRequest {
    /// Told when the reload has truly ended: everything is in force, or nothing is. Dropped
    /// unanswered where the process stops first.
    pub reply: oneshot::Sender<ReloadOutcome>,
    /// Systemd knows of it until this is dropped: before the reply is sent, so that who gets the
    /// reply finds it over.
    pub announced: Reloading,
}

/// The way to control for whoever wants a reload. Each is carried out after the ones before it.
#[derive(Clone, Debug)]
pub(crate) struct Reloads {
    queue: mpsc::Sender<ReloadRequest>,
    notifier: Notifier,
}

impl Reloads {
    /// `notifier` is told of each, before anything else is done for it.
    pub(crate) fn new(queue: mpsc::Sender<ReloadRequest>, notifier: Notifier) -> Self {
        Self { queue, notifier }
    }

    /// Tells systemd at once; what is returned asks control, and resolves with the end. Once asked
    /// for, a reload goes on where that is dropped. `None`: the process stops.
    pub(crate) fn ask(&self) -> impl Future<Output = Option<ReloadOutcome>> + use<> {
        let announced = self.notifier.reloading();
        let (reply, answer) = oneshot::channel();
        let queue = self.queue.clone();
        async move {
            queue.send(ReloadRequest { reply, announced }).await.ok()?;
            answer.await.ok()
        }
    }
}

/// How a reload ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub(crate) enum ReloadOutcome {
    /// The configuration as it stands in the file is in force.
    Applied(ReloadReport),
    /// The configuration that was in force still is.
    Refused(ReloadRefusal),
}

/// What a reload changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ReloadReport {
    pub config: Change,
    /// Of the configuration that is in force now: counts those that came into force.
    pub generation: u64,
    /// Seconds since 1970, when it came into force. A file that was saved just before the request
    /// may have been taken up by then, which is why it is "unchanged".
    pub in_force_since: i64,
    /// Each identity and trust that was read again.
    pub credentials: Vec<CredentialReload>,
    pub services: ServiceChanges,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Change {
    Changed,
    Unchanged,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CredentialReload {
    /// Where it is read from.
    pub source: String,
    /// `ok`, `unchanged` or, where it was refused, a reason's word.
    pub result: String,
    /// The services that use it.
    #[serde(default)]
    pub services: Vec<String>,
    /// Why it was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<CredentialRefusal>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CredentialRefusal {
    /// The particulars of the reason.
    pub detail: String,
    /// What to do.
    pub hint: String,
    /// Whether an older one stays in use; if not, callers of its services are refused.
    pub last_good_in_use: bool,
}

/// Names of services.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ServiceChanges {
    pub added: Vec<String>,
    pub changed: Vec<String>,
    pub removed: Vec<String>,
}

/// Why a reload changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ReloadRefusal {
    /// A reason's word.
    pub reason: String,
    /// What to do.
    pub hint: String,
    /// Every mistake, each with its place.
    pub problems: Vec<String>,
}

/// What `POST /quit` has begun.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct QuitReport {
    pub outcome: Quit,
    pub connections_open: u64,
    /// From the first request or signal to the drain.
    pub shutdown_delay_seconds: f64,
    /// From the drain to the end of whatever is still open then.
    pub shutdown_timeout_seconds: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Quit {
    /// From this request on.
    Stopping,
    /// From an earlier request or signal on; this one changes nothing.
    StoppingAlready,
}

impl QuitReport {
    /// By when the process has ended, counted from the request that began it.
    pub(crate) fn longest(&self) -> Duration {
        let seconds = self.shutdown_delay_seconds + self.shutdown_timeout_seconds;
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    }
}

/// For people; one line without an end.
impl fmt::Display for QuitReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.outcome {
            Quit::Stopping => "stopping",
            Quit::StoppingAlready => "stopping already",
        })?;
        match self.connections_open {
            1 => write!(f, ": 1 open connection"),
            open => write!(f, ": {open} open connections"),
        }?;
        if self.shutdown_delay_seconds > 0.0 {
            let delay = self.shutdown_delay_seconds;
            write!(f, "; new ones are served for {delay} s (shutdown_delay)")?;
        }
        let timeout = self.shutdown_timeout_seconds;
        write!(
            f,
            "; what is open {timeout} s into the drain is ended (shutdown_timeout)"
        )
    }
}

impl ReloadOutcome {
    /// Whether everything that was read is in use now: the question of a script.
    pub(crate) fn is_good(&self) -> bool {
        match self {
            Self::Refused(_) => false,
            Self::Applied(report) => report.credentials.iter().all(CredentialReload::is_good),
        }
    }
}

impl CredentialReload {
    fn is_good(&self) -> bool {
        matches!(self.result.as_str(), "ok" | "unchanged")
    }
}

/// For people; several lines, the last without an end.
impl fmt::Display for ReloadOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Applied(report) => report.fmt(f),
            Self::Refused(refusal) => refusal.fmt(f),
        }
    }
}

impl fmt::Display for ReloadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.config {
            Change::Changed => write!(
                f,
                "configuration: changed, generation {} in force now",
                self.generation
            )?,
            Change::Unchanged => write!(
                f,
                "configuration: unchanged, generation {} in force since {}",
                self.generation,
                clock::rfc3339(self.in_force_since)
            )?,
        }
        let services = &self.services;
        for (word, names) in [
            ("added", &services.added),
            ("changed", &services.changed),
            ("removed", &services.removed),
        ] {
            if !names.is_empty() {
                write!(f, "\n  {word}: {}", names.join(", "))?;
            }
        }
        for credential in &self.credentials {
            write!(f, "\n{}: {}", credential.source, credential.result)?;
            if let Some(refused) = &credential.refused {
                write!(f, ": {}", refused.detail)?;
                let services = credential.services.join(", ");
                match refused.last_good_in_use {
                    true => write!(f, "\n  the last good one stays in use for: {services}")?,
                    false => write!(f, "\n  nothing to use, callers are refused by: {services}")?,
                }
                write!(f, "\n  fix: {}", refused.hint)?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for ReloadRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "refused: {}; the configuration from before stays in force",
            self.reason
        )?;
        for problem in &self.problems {
            write!(f, "\n  {problem}")?;
        }
        write!(f, "\nhint: {}", self.hint)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::status::ProcessState;
    use crate::status::tests::{service, status};

    /// Shared state with one ready service, and the other ends: of status and of reloads.
    pub(crate) fn shared() -> (
        Arc<Shared>,
        watch::Sender<Arc<Status>>,
        mpsc::Receiver<ReloadRequest>,
    ) {
        let ready = status(ProcessState::Ready, vec![service("billing")]);
        let (status, status_read) = watch::channel(Arc::new(ready));
        let (reload, reloads) = mpsc::channel(4);
        let shared = Arc::new(Shared {
            status: status_read,
            metrics: Arc::new(Metrics::new("1.2.3")),
            reload: Reloads::new(reload, Notifier::default()),
            shutdown: Shutdown::default(),
        });
        (shared, status, reloads)
    }

    pub(crate) fn applied() -> ReloadOutcome {
        ReloadOutcome::Applied(ReloadReport {
            config: Change::Changed,
            generation: 2,
            in_force_since: 1_770_091_506,
            credentials: vec![CredentialReload {
                source: "certs/tls.crt".into(),
                result: "unchanged".into(),
                services: vec!["a".into()],
                refused: None,
            }],
            services: ServiceChanges {
                added: vec!["a".into(), "b".into()],
                changed: vec![],
                removed: vec!["c".into()],
            },
        })
    }

    pub(crate) fn refused() -> ReloadOutcome {
        ReloadOutcome::Refused(ReloadRefusal {
            reason: "bad_config".into(),
            hint: "run tlsward check".into(),
            problems: vec!["config.toml:3:1: unknown key lisen".into()],
        })
    }

    #[test]
    fn an_outcome_survives_the_way_to_the_client() {
        for outcome in [applied(), refused()] {
            let json = serde_json::to_string(&outcome).unwrap();
            let read: ReloadOutcome = serde_json::from_str(&json).unwrap();
            assert_eq!(read, outcome);
        }
        let json = serde_json::to_value(applied()).unwrap();
        assert_eq!(json["outcome"], "applied");
        assert_eq!(json["config"], "changed");
        assert_eq!(json["services"]["added"][1], "b");
    }

    #[test]
    fn an_outcome_is_good_only_if_all_that_was_read_is_in_use() {
        assert!(applied().is_good());
        assert!(!refused().is_good());
        let ReloadOutcome::Applied(mut report) = applied() else {
            unreachable!()
        };
        report.credentials[0].result = "key_mismatch".into();
        assert!(!ReloadOutcome::Applied(report).is_good());
    }

    #[test]
    fn a_refused_credential_is_told_with_its_services_and_what_they_use_now() {
        let ReloadOutcome::Applied(mut report) = applied() else {
            unreachable!()
        };
        report.config = Change::Unchanged;
        report.services = ServiceChanges::default();
        report.credentials[0] = CredentialReload {
            source: "certs/tls.crt".into(),
            result: "expired".into(),
            services: vec!["a".into(), "b".into()],
            refused: Some(CredentialRefusal {
                detail: "it expired yesterday".into(),
                hint: "renew it".into(),
                last_good_in_use: true,
            }),
        };
        assert_eq!(
            report.to_string(),
            "configuration: unchanged, generation 2 in force since 2026-02-03T04:05:06Z\n\
             certs/tls.crt: expired: it expired yesterday\n\
             \x20 the last good one stays in use for: a, b\n\
             \x20 fix: renew it"
        );
        report.credentials[0]
            .refused
            .as_mut()
            .unwrap()
            .last_good_in_use = false;
        let text = report.to_string();
        assert!(
            text.contains("\n  nothing to use, callers are refused by: a, b\n"),
            "{text}"
        );
    }

    #[test]
    fn an_ending_tells_people_what_is_open_and_how_long_it_may_take() {
        let mut report = QuitReport {
            outcome: Quit::Stopping,
            connections_open: 1,
            shutdown_delay_seconds: 0.0,
            shutdown_timeout_seconds: 30.0,
        };
        assert_eq!(
            report.to_string(),
            "stopping: 1 open connection; what is open 30 s into the drain is ended \
             (shutdown_timeout)"
        );
        report.outcome = Quit::StoppingAlready;
        report.connections_open = 2;
        report.shutdown_delay_seconds = 1.5;
        assert_eq!(
            report.to_string(),
            "stopping already: 2 open connections; new ones are served for 1.5 s \
             (shutdown_delay); what is open 30 s into the drain is ended (shutdown_timeout)"
        );
        assert_eq!(report.longest(), Duration::from_millis(31_500));
    }

    #[test]
    fn a_refusal_tells_people_what_stays_and_what_to_do() {
        assert_eq!(
            refused().to_string(),
            "refused: bad_config; the configuration from before stays in force\n\
             \x20 config.toml:3:1: unknown key lisen\n\
             hint: run tlsward check"
        );
        assert_eq!(
            applied().to_string(),
            "configuration: changed, generation 2 in force now\n\
             \x20 added: a, b\n\
             \x20 removed: c\n\
             certs/tls.crt: unchanged"
        );
    }
}
