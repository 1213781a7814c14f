//! The log: one line per event to standard error, as text for people or as JSON for machines, with
//! times in UTC as RFC 3339; or one entry per event to journald, which has the time itself.
//!
//! Nothing that holds a private key can be logged: [`Part`](crate::material::Part) and its kin
//! print without their bytes, and [`ConnectionRecord`] takes words and numbers only.

use std::fmt;
use std::io;
use std::time::Duration;

use anstream::{AutoStream, ColorChoice};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, Registry, reload};

use crate::failure::Failure;

mod journal;

pub(crate) use journal::is_journal;
use journal::{Journal, Prefixed};

/// How a line is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogFormat {
    /// For people: in colour where standard error is a terminal and `NO_COLOR` is not set.
    Text,
    /// One JSON object per line, its fields side by side with `timestamp`, `level`, `target` and
    /// `message`.
    Json,
    /// An entry in journald's own form, its fields with the prefix `TLSWARD_`; as text to standard
    /// error while journald takes none.
    Journal,
}

/// Why the log could not be set up or changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TelemetryError {
    /// The filter is not one.
    #[error(
        "the log filter {filter:?} is not valid: {reason}; it is a level (error, warn, info, debug, trace) or a list such as info,tlsward::connection=warn"
    )]
    BadFilter {
        /// As given.
        filter: String,
        /// In the words of the filter's parser.
        reason: String,
    },
    /// The process has a log already.
    #[error("the log was already set up")]
    AlreadySet,
}

/// Changes the filter of the running log.
#[derive(Clone, Debug)]
pub(crate) struct Handle(reload::Handle<EnvFilter, Registry>);

impl Handle {
    /// Puts `filter` in force at once.
    ///
    /// # Errors
    /// The filter is not valid; the old one stays.
    pub(crate) fn set_filter(&self, filter: &str) -> Result<(), TelemetryError> {
        let filter = parse_filter(filter)?;
        // Fails only if the subscriber is gone, and then nobody is left to filter for.
        let _ = self.0.reload(filter);
        Ok(())
    }
}

/// Makes the process's log; `filter` is in the syntax of [`EnvFilter`]. `to_journal`: whether
/// standard error is read by journald ([`is_journal`]), so that lines may carry priorities. Once
/// per process.
///
/// # Errors
/// The filter is not valid, or there is a log already.
pub(crate) fn init(
    format: LogFormat,
    filter: &str,
    to_journal: bool,
) -> Result<Handle, TelemetryError> {
    let colour = AutoStream::choice(&io::stderr()) != ColorChoice::Never;
    match to_journal {
        true => start(format, colour, filter, Prefixed(io::stderr)),
        false => start(format, colour, filter, io::stderr),
    }
}

fn start<W>(
    format: LogFormat,
    colour: bool,
    filter: &str,
    writer: W,
) -> Result<Handle, TelemetryError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let (subscriber, handle) = subscriber(format, colour, filter, writer)?;
    subscriber
        .try_init()
        .map_err(|_| TelemetryError::AlreadySet)?;
    Ok(handle)
}

/// Proves that `filter` can be put in force, for the check of a configuration.
///
/// # Errors
/// Says what is wrong with it.
pub(crate) fn check_filter(filter: &str) -> Result<(), TelemetryError> {
    parse_filter(filter).map(drop)
}

/// What one connection was and did, when it ends. What is not known is `None`, and then its field
/// is absent from the line.
pub(crate) struct ConnectionRecord<'a> {
    /// The service's name.
    pub service: &'a str,
    /// The caller's address, or the uid behind a unix socket.
    pub caller: Option<&'a dyn fmt::Display>,
    /// The address that was dialled.
    pub endpoint: Option<&'a dyn fmt::Display>,
    /// From accept.
    pub duration: Duration,
    /// Payload from the caller that was written on.
    pub bytes_up: u64,
    /// Payload from the upstream that was written on.
    pub bytes_down: u64,
    /// What the handshake settled, if it was completed.
    pub tls: Option<TlsRecord<'a>>,
    /// SHA-256 of the client certificate in hex, if one was configured; its beginning is logged.
    pub identity: Option<&'a str>,
    /// How it ended.
    pub outcome: Result<(), &'a Failure>,
}

/// What a handshake settled.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TlsRecord<'a> {
    /// `1.2` or `1.3`.
    pub version: &'a str,
    /// The cipher suite's name in the IANA registry.
    pub cipher: &'a str,
    /// The key exchange group's name in the IANA registry; a resumed TLS 1.2 session has none.
    pub group: Option<&'a str>,
    /// Whether an earlier session was resumed.
    pub resumed: bool,
}

/// Logs the end of a connection in one line with target `tlsward::connection`: at level info if
/// all was well, else warn.
pub(crate) fn connection_ended(record: &ConnectionRecord<'_>) {
    let failure = record.outcome.err();
    let tls = record.tls.as_ref();
    // `line!` writes the fields once for both levels: a level is part of a call's static metadata.
    macro_rules! line {
        ($level:ident, $outcome:literal, $message:literal) => {
            tracing::$level!(
                target: "tlsward::connection",
                service = record.service,
                caller = record.caller.map(tracing::field::display),
                endpoint = record.endpoint.map(tracing::field::display),
                duration_ms = milliseconds(record.duration),
                bytes_up = record.bytes_up,
                bytes_down = record.bytes_down,
                tls_version = tls.map(|tls| tls.version),
                cipher = tls.map(|tls| tls.cipher),
                group = tls.and_then(|tls| tls.group),
                resumed = tls.map(|tls| tls.resumed),
                identity = record.identity.map(short),
                outcome = $outcome,
                phase = failure.map(|failure| failure.phase.as_str()),
                side = failure.map(|failure| failure.side.as_str()),
                reason = failure.map(|failure| failure.why.reason.as_str()),
                detail = failure.map(|failure| failure.why.detail.as_str()),
                alert = failure.and_then(|failure| failure.alert.as_deref()),
                hint = failure.map(|failure| failure.why.hint),
                $message
            )
        };
    }
    match failure {
        None => line!(info, "ok", "connection ended"),
        Some(_) => line!(warn, "failed", "connection failed"),
    }
}

/// To the microsecond: a connection on the same machine can be shorter than a millisecond.
fn milliseconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1_000.0
}

/// Enough of a fingerprint to tell one's own certificates apart.
fn short(fingerprint: &str) -> &str {
    fingerprint.get(..16).unwrap_or(fingerprint)
}

fn parse_filter(filter: &str) -> Result<EnvFilter, TelemetryError> {
    EnvFilter::builder()
        .parse(filter)
        .map_err(|error| TelemetryError::BadFilter {
            filter: filter.to_owned(),
            reason: error.to_string(),
        })
}

fn subscriber<W>(
    format: LogFormat,
    colour: bool,
    filter: &str,
    writer: W,
) -> Result<(impl tracing::Subscriber + Send + Sync, Handle), TelemetryError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let (filter, handle) = reload::Layer::new(parse_filter(filter)?);
    let lines = tracing_subscriber::fmt::layer();
    let lines = match format {
        LogFormat::Journal => Journal::new(writer).boxed(),
        LogFormat::Text => lines
            .with_writer(writer)
            .with_ansi(colour)
            .with_target(false)
            .boxed(),
        LogFormat::Json => lines
            .with_writer(writer)
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .boxed(),
    };
    let subscriber = tracing_subscriber::registry().with(filter).with(lines);
    Ok((subscriber, Handle(handle)))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use serde_json::Value;
    use time::OffsetDateTime;
    use time::format_description::well_known::Rfc3339;

    use super::*;
    use crate::failure::{Phase, Reason, Side};

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Written {
        fn take(&self) -> String {
            String::from_utf8(std::mem::take(&mut self.0.lock().unwrap())).unwrap()
        }
    }

    /// What is written while `act` runs.
    fn written(format: LogFormat, filter: &str, act: impl FnOnce(&Handle)) -> String {
        let written = Written::default();
        let writer = written.clone();
        let (subscriber, handle) =
            subscriber(format, false, filter, move || writer.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, || act(&handle));
        written.take()
    }

    fn record<'a>(outcome: Result<(), &'a Failure>) -> ConnectionRecord<'a> {
        ConnectionRecord {
            service: "billing",
            caller: Some(&"127.0.0.1:5000"),
            endpoint: None,
            duration: Duration::from_micros(12_345),
            bytes_up: 10,
            bytes_down: 20,
            tls: None,
            identity: None,
            outcome,
        }
    }

    fn failure() -> Failure {
        Failure {
            alert: Some("unknown_ca".into()),
            ..Failure::new(
                Phase::Handshake,
                Side::Upstream,
                Reason::ClientCertificateRejected,
                "by \"CN=evil\"\nlevel=ERROR \u{1b}[31m",
            )
        }
    }

    #[test]
    fn a_good_end_is_one_flat_json_object_with_what_is_known_and_no_more() {
        let text = written(LogFormat::Json, "info", |_| {
            connection_ended(&ConnectionRecord {
                endpoint: Some(&"192.0.2.1:8443"),
                tls: Some(TlsRecord {
                    version: "1.3",
                    cipher: "TLS_AES_128_GCM_SHA256",
                    group: Some("X25519MLKEM768"),
                    resumed: false,
                }),
                identity: Some(&"ab".repeat(32)),
                ..record(Ok(()))
            });
        });
        assert_eq!(text.lines().count(), 1);
        let mut line: Value = serde_json::from_str(&text).unwrap();
        let timestamp = line["timestamp"].take();
        let moment = OffsetDateTime::parse(timestamp.as_str().unwrap(), &Rfc3339).unwrap();
        assert!(moment.offset().is_utc());
        let expected = serde_json::json!({
            "timestamp": null,
            "level": "INFO",
            "target": "tlsward::connection",
            "message": "connection ended",
            "service": "billing",
            "caller": "127.0.0.1:5000",
            "endpoint": "192.0.2.1:8443",
            "duration_ms": 12.345,
            "bytes_up": 10,
            "bytes_down": 20,
            "tls_version": "1.3",
            "cipher": "TLS_AES_128_GCM_SHA256",
            "group": "X25519MLKEM768",
            "resumed": false,
            "identity": "abababababababab",
            "outcome": "ok",
        });
        assert_eq!(line, expected);
    }

    #[test]
    fn a_failure_is_a_warning_in_the_words_of_the_vocabulary() {
        let failure = failure();
        let text = written(LogFormat::Json, "info", |_| {
            connection_ended(&record(Err(&failure)));
        });
        let line: Value = serde_json::from_str(&text).unwrap();
        for (field, expected) in [
            ("level", "WARN"),
            ("outcome", "failed"),
            ("phase", "handshake"),
            ("side", "upstream"),
            ("reason", "client_certificate_rejected"),
            ("detail", failure.why.detail.as_str()),
            ("alert", "unknown_ca"),
            ("hint", Reason::ClientCertificateRejected.hint()),
        ] {
            assert_eq!(line[field], expected, "{field}");
        }
        for absent in ["endpoint", "tls_version", "cipher", "group", "resumed"] {
            assert_eq!(line.get(absent), None, "{absent}");
        }
    }

    #[test]
    fn text_is_one_line_whatever_a_stranger_put_into_a_certificate() {
        let failure = failure();
        let text = written(LogFormat::Text, "info", |_| {
            connection_ended(&record(Err(&failure)));
        });
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(!text.contains('\u{1b}'), "{text}");
        assert!(text.contains("WARN connection failed service=\"billing\" caller=127.0.0.1:5000"));
        let moment = text.split_whitespace().next().unwrap();
        assert!(OffsetDateTime::parse(moment, &Rfc3339).is_ok(), "{text}");
    }

    #[test]
    fn colours_are_written_only_where_asked_for() {
        let written = Written::default();
        let writer = written.clone();
        let (subscriber, _handle) =
            subscriber(LogFormat::Text, true, "info", move || writer.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, || tracing::info!("hello"));
        assert!(written.take().contains("\u{1b}["));
    }

    #[test]
    fn connection_lines_can_be_filtered_by_their_target() {
        let text = written(LogFormat::Json, "info,tlsward::connection=warn", |_| {
            connection_ended(&record(Ok(())));
            tracing::info!("kept");
        });
        assert!(text.contains("kept") && !text.contains("connection ended"));
    }

    #[test]
    fn a_new_filter_is_in_force_at_once_and_a_bad_one_changes_nothing() {
        let text = written(LogFormat::Text, "info", |handle| {
            tracing::debug!("first");
            handle.set_filter("debug").unwrap();
            tracing::debug!("second");
            handle.set_filter("tlsward=lots").unwrap_err();
            tracing::debug!("third");
        });
        assert!(!text.contains("first"));
        assert!(text.contains("second") && text.contains("third"));
    }

    #[test]
    fn a_bad_filter_is_refused_with_its_text_and_the_reason() {
        let error = check_filter("tlsward=lots").unwrap_err().to_string();
        assert!(error.contains("\"tlsward=lots\""), "{error}");
        assert!(error.contains("expected one of"), "{error}");
        assert!(check_filter("info,tlsward::proxy=debug").is_ok());
    }
}
