//! Entries in journald's own form, with a field for each value: systemd's `JOURNAL_NATIVE_PROTOCOL`
//! and systemd.journal-fields(7).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::io::{self, Write as _};
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Context, Layer};

/// Where journald takes entries.
const SOCKET: &str = "/run/systemd/journal/socket";

/// What the names of our fields begin with, so that none is one of systemd's.
const PREFIX: &str = "TLSWARD_";

/// The longest name of a field that journald takes.
const MAX_NAME: usize = 64;

/// Whether `stream` is the journal's end of a service's output: systemd says in `JOURNAL_STREAM`
/// which device and inode that has, and a stream that was redirected since has others.
pub(crate) fn is_journal(stream: impl AsFd, environment: &BTreeMap<String, String>) -> bool {
    let Some((device, inode)) = environment
        .get("JOURNAL_STREAM")
        .and_then(|text| text.split_once(':'))
    else {
        return false;
    };
    let Ok(found) = rustix::fs::fstat(stream) else {
        return false;
    };
    device.parse() == Ok(found.st_dev) && inode.parse() == Ok(found.st_ino)
}

/// A level as syslog counts.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

/// The layer that writes entries.
///
/// Waits where journald's queue is full, as writing to standard error does. What journald does not
/// take goes to `fallback` as one line of text, the reason before the first.
#[derive(Debug)]
pub(super) struct Journal<W> {
    socket: io::Result<UnixDatagram>,
    path: PathBuf,
    /// Whether the last entry was taken.
    well: AtomicBool,
    fallback: W,
}

impl<W> Journal<W> {
    pub(super) fn new(fallback: W) -> Self {
        Self::at(SOCKET.into(), fallback)
    }

    fn at(path: PathBuf, fallback: W) -> Self {
        Self {
            socket: UnixDatagram::unbound(),
            path,
            well: AtomicBool::new(true),
            fallback,
        }
    }

    fn send(&self, entry: &[u8]) -> io::Result<()> {
        let socket = self
            .socket
            .as_ref()
            .map_err(|error| io::Error::new(error.kind(), error.to_string()))?;
        loop {
            // By its path each time: another journald may listen there by now.
            match socket.send_to(entry, &self.path) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                sent => return sent.map(drop),
            }
        }
    }
}

impl<S, W> Layer<S> for Journal<W>
where
    S: Subscriber,
    W: for<'w> MakeWriter<'w> + 'static,
{
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let metadata = event.metadata();
        let mut fields = Fields::default();
        event.record(&mut fields);
        let message = fields.sentence();
        let sent = self.send(&fields.entry(metadata, &message));
        let was_well = self.well.swap(sent.is_ok(), Ordering::Relaxed);
        let Err(error) = sent else {
            return;
        };
        // Where this cannot be written either, nobody is left to be told.
        let mut out = self.fallback.make_writer_for(metadata);
        if was_well {
            let path = self.path.display();
            let _ = writeln!(
                out,
                "WARN the journal takes no entries at {path} ({error}); they follow here"
            );
        }
        let _ = out.write_all(format!("{} {message}\n", metadata.level()).as_bytes());
    }
}

/// The fields of one event, in order.
#[derive(Default)]
struct Fields {
    message: String,
    all: Vec<(&'static str, String)>,
}

impl Fields {
    fn put(&mut self, field: &Field, value: String) {
        match field.name() {
            "message" => self.message = value,
            name => self
                .all
                .push((name.strip_prefix("r#").unwrap_or(name), value)),
        }
    }

    fn get(&self, name: &str) -> Option<&str> {
        let found = self.all.iter().find(|(field, _)| *field == name);
        found.map(|(_, value)| value.as_str())
    }

    /// What `journalctl` shows: all that must be read, and the service first.
    ///
    /// `billing: connection failed: refused: …; nothing listens at …`
    fn sentence(&self) -> String {
        let mut text = String::new();
        if let Some(service) = self.get("service") {
            text.push_str(&one_line(service));
            text.push_str(": ");
        }
        if self.get("outcome").is_some() {
            self.connection(&mut text);
        } else {
            text.push_str(&self.message);
            const SAID: [&str; 4] = ["service", "reason", "detail", "hint"];
            for (name, value) in &self.all {
                if !SAID.contains(name) {
                    let _ = write!(text, " {name}={}", one_line(value));
                }
            }
        }
        for (before, name) in [(": ", "reason"), (": ", "detail"), ("; ", "hint")] {
            if let Some(value) = self.get(name) {
                text.push_str(before);
                text.push_str(&one_line(value));
            }
        }
        text
    }

    /// The end of a connection:
    /// `127.0.0.1:5000 -> 192.0.2.1:8443 failed in handshake (upstream), 1.985 ms, 0 B up, 0 B down`.
    fn connection(&self, text: &mut String) {
        text.push_str(self.get("caller").unwrap_or("a caller"));
        if let Some(endpoint) = self.get("endpoint") {
            let _ = write!(text, " -> {endpoint}");
        }
        match (self.get("phase"), self.get("side")) {
            (Some(phase), Some(side)) => {
                let _ = write!(text, " failed in {phase} ({side})");
            }
            _ => text.push_str(" ended well"),
        }
        for (name, unit) in [
            ("duration_ms", " ms"),
            ("bytes_up", " B up"),
            ("bytes_down", " B down"),
        ] {
            if let Some(value) = self.get(name) {
                let _ = write!(text, ", {value}{unit}");
            }
        }
        if let Some(version) = self.get("tls_version") {
            let _ = write!(text, ", TLS {version}");
        }
    }

    /// The datagram.
    fn entry(&self, metadata: &Metadata<'_>, message: &str) -> Vec<u8> {
        let mut entry = Vec::with_capacity(512);
        add(&mut entry, "MESSAGE", message);
        add(
            &mut entry,
            "PRIORITY",
            &priority(*metadata.level()).to_string(),
        );
        add(&mut entry, "SYSLOG_IDENTIFIER", "tlsward");
        add(&mut entry, &name("target"), metadata.target());
        for (field, value) in &self.all {
            add(&mut entry, &name(field), value);
        }
        entry
    }
}

/// With control characters escaped: a name in a stranger's certificate must not look like a line
/// of ours.
fn one_line(value: &str) -> Cow<'_, str> {
    if !value.chars().any(char::is_control) {
        return Cow::Borrowed(value);
    }
    let mut text = String::with_capacity(value.len() + 8);
    for letter in value.chars() {
        match letter.is_control() {
            true => text.extend(letter.escape_default()),
            false => text.push(letter),
        }
    }
    Cow::Owned(text)
}

/// `TLSWARD_SERVICE` for `service`. Letters, digits and underscores are all that journald takes.
fn name(field: &str) -> String {
    let letter = |letter: char| match letter.is_ascii_alphanumeric() {
        true => letter.to_ascii_uppercase(),
        false => '_',
    };
    let name: String = PREFIX.chars().chain(field.chars().map(letter)).collect();
    name.chars().take(MAX_NAME).collect()
}

/// `NAME=value`; or, where the value has several lines, its length before it.
fn add(entry: &mut Vec<u8>, name: &str, value: &str) {
    entry.extend_from_slice(name.as_bytes());
    if value.contains('\n') {
        entry.push(b'\n');
        entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        entry.push(b'=');
    }
    entry.extend_from_slice(value.as_bytes());
    entry.push(b'\n');
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.to_string());
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.to_string());
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.to_string());
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.to_string());
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.to_owned());
    }
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}"));
    }
}

/// Begins each line with its priority, `<4>`, as journald takes it from a service's output
/// (sd-daemon(3), `SyslogLevelPrefix=`).
#[derive(Clone, Debug)]
pub(super) struct Prefixed<W>(pub(super) W);

impl<'w, W: MakeWriter<'w>> MakeWriter<'w> for Prefixed<W> {
    type Writer = Line<W::Writer>;

    fn make_writer(&'w self) -> Self::Writer {
        Line {
            prefix: None,
            inner: self.0.make_writer(),
        }
    }

    fn make_writer_for(&'w self, metadata: &Metadata<'_>) -> Self::Writer {
        Line {
            prefix: Some(priority(*metadata.level())),
            inner: self.0.make_writer_for(metadata),
        }
    }
}

/// One event on its way; whoever writes it writes whole lines.
#[derive(Debug)]
pub(super) struct Line<W> {
    prefix: Option<u8>,
    inner: W,
}

impl<W: io::Write> io::Write for Line<W> {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        let Some(prefix) = self.prefix else {
            return self.inner.write(lines);
        };
        let mut text = Vec::with_capacity(lines.len() + 3);
        for line in lines.split_inclusive(|byte| *byte == b'\n') {
            text.extend_from_slice(format!("<{prefix}>").as_bytes());
            text.extend_from_slice(line);
        }
        // At once, so that lines of several threads do not mix.
        self.inner.write_all(&text)?;
        Ok(lines.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests;
