use std::fs::File;
use std::sync::{Arc, Mutex};

use tracing_subscriber::layer::SubscriberExt as _;

use super::*;
use crate::failure::{Failure, Phase, Reason, Side};
use crate::telemetry::{ConnectionRecord, TlsRecord, connection_ended};

/// What was written instead of an entry.
#[derive(Clone, Debug, Default)]
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

/// A journald of the test's own, and what is logged to it.
struct Scene {
    dir: tempfile::TempDir,
    written: Written,
}

impl Scene {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            written: Written::default(),
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    fn listen(&self) -> UnixDatagram {
        let _ = std::fs::remove_file(self.path());
        let socket = UnixDatagram::bind(self.path()).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket
    }

    /// Runs `act` with a log that goes there.
    fn log(&self, act: impl FnOnce()) {
        let written = self.written.clone();
        let journal = Journal::at(self.path(), Prefixed(move || written.clone()));
        let subscriber = tracing_subscriber::registry().with(journal);
        tracing::subscriber::with_default(subscriber, act);
    }

    /// The entries of `act`.
    fn entries(&self, act: impl FnOnce()) -> Vec<BTreeMap<String, String>> {
        let socket = self.listen();
        self.log(act);
        let mut entries = Vec::new();
        let mut buffer = vec![0; 1 << 16];
        while let Ok(length) = socket.recv(&mut buffer) {
            entries.push(parse(&buffer[..length]));
        }
        assert_eq!(self.written.take(), "");
        entries
    }
}

/// As journald reads it (`journald-native.c`).
fn parse(mut entry: &[u8]) -> BTreeMap<String, String> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let mut fields = BTreeMap::new();
    while !entry.is_empty() {
        let end = entry.iter().position(|byte| *byte == b'\n').unwrap();
        let (line, rest) = (&entry[..end], &entry[end + 1..]);
        let (name, value, rest) = match line.iter().position(|byte| *byte == b'=') {
            Some(equals) => (&line[..equals], &line[equals + 1..], rest),
            None => {
                let (length, rest) = rest.split_first_chunk::<8>().unwrap();
                let length = usize::try_from(u64::from_le_bytes(*length)).unwrap();
                assert_eq!(rest[length], b'\n');
                (line, &rest[..length], &rest[length + 1..])
            }
        };
        let name = text(name);
        assert!(name.len() <= 64 && name.starts_with(|c: char| c.is_ascii_uppercase()));
        assert!(
            name.bytes()
                .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_'),
            "{name}"
        );
        assert_eq!(fields.insert(name, text(value)), None, "no field twice");
        entry = rest;
    }
    fields
}

fn record<'a>(outcome: Result<(), &'a Failure>) -> ConnectionRecord<'a> {
    ConnectionRecord {
        service: "billing",
        caller: Some(&"127.0.0.1:5000"),
        endpoint: Some(&"192.0.2.1:8443"),
        duration: std::time::Duration::from_micros(12_345),
        bytes_up: 10,
        bytes_down: 20,
        tls: None,
        identity: None,
        outcome,
    }
}

#[test]
fn a_failed_connection_is_a_warning_with_a_field_for_each_word_and_a_sentence() {
    let failure = Failure {
        alert: Some("unknown_ca".into()),
        ..Failure::new(
            Phase::Handshake,
            Side::Upstream,
            Reason::ClientCertificateRejected,
            "by \"CN=evil\"\nPRIORITY=0\n\u{1b}[31m",
        )
    };
    let entries = Scene::new().entries(|| connection_ended(&record(Err(&failure))));
    let [entry] = entries.as_slice() else {
        panic!("one entry: {entries:?}");
    };
    let hint = Reason::ClientCertificateRejected.hint();
    for (name, value) in [
        ("PRIORITY", "4"),
        ("SYSLOG_IDENTIFIER", "tlsward"),
        ("TLSWARD_TARGET", "tlsward::connection"),
        ("TLSWARD_SERVICE", "billing"),
        ("TLSWARD_CALLER", "127.0.0.1:5000"),
        ("TLSWARD_ENDPOINT", "192.0.2.1:8443"),
        ("TLSWARD_DURATION_MS", "12.345"),
        ("TLSWARD_BYTES_UP", "10"),
        ("TLSWARD_BYTES_DOWN", "20"),
        ("TLSWARD_OUTCOME", "failed"),
        ("TLSWARD_PHASE", "handshake"),
        ("TLSWARD_SIDE", "upstream"),
        ("TLSWARD_REASON", "client_certificate_rejected"),
        // Whole, and what looks like a field in it is none.
        ("TLSWARD_DETAIL", failure.why.detail.as_str()),
        ("TLSWARD_ALERT", "unknown_ca"),
        ("TLSWARD_HINT", hint),
    ] {
        assert_eq!(entry[name], value, "{name}");
    }
    assert_eq!(entry.len(), 17, "and nothing else: {entry:?}");
    let sentence = format!(
        "billing: 127.0.0.1:5000 -> 192.0.2.1:8443 failed in handshake (upstream), 12.345 ms, \
         10 B up, 20 B down: client_certificate_rejected: by \"CN=evil\"\\nPRIORITY=0\\n\\u{{1b}}[31m; {hint}"
    );
    assert_eq!(entry["MESSAGE"], sentence);
}

#[test]
fn a_good_end_is_information_in_few_words() {
    let tls = TlsRecord {
        version: "1.3",
        cipher: "TLS_AES_128_GCM_SHA256",
        group: Some("X25519MLKEM768"),
        resumed: false,
    };
    let entries = Scene::new().entries(|| {
        connection_ended(&ConnectionRecord {
            tls: Some(tls),
            endpoint: None,
            ..record(Ok(()))
        });
    });
    assert_eq!(entries[0]["PRIORITY"], "6");
    assert_eq!(entries[0]["TLSWARD_RESUMED"], "false");
    assert_eq!(
        entries[0]["MESSAGE"],
        "billing: 127.0.0.1:5000 ended well, 12.345 ms, 10 B up, 20 B down, TLS 1.3"
    );
}

#[test]
fn other_events_say_all_that_they_hold_in_their_message() {
    let reason = Reason::BadConfig;
    let entries = Scene::new().entries(|| {
        tracing::error!(reason = %reason, detail = "line 1", hint = "mend it", trigger = "request", "refused");
        tracing::warn!(service = "a", generation = 2_u64, good = true, depth = -1_i64, "not taken");
        tracing::debug!(error = ?"quoted", "two\nlines");
        tracing::trace!(r#type = "a\tb", "last");
    });
    let said: Vec<(&str, &str)> = entries
        .iter()
        .map(|entry| (entry["PRIORITY"].as_str(), entry["MESSAGE"].as_str()))
        .collect();
    assert_eq!(
        said,
        [
            ("3", "refused trigger=request: bad_config: line 1; mend it"),
            ("4", "a: not taken generation=2 good=true depth=-1"),
            ("7", "two\nlines error=\"quoted\""),
            ("7", "last type=a\\tb"),
        ]
    );
    assert_eq!(entries[1]["TLSWARD_GENERATION"], "2");
    assert_eq!(entries[3]["TLSWARD_TYPE"], "a\tb");
}

#[test]
fn what_journald_does_not_take_is_a_line_on_standard_error_and_it_is_tried_again() {
    let scene = Scene::new();
    let after = Mutex::new(None);
    scene.log(|| {
        tracing::warn!(service = "a", "first");
        let told = scene.written.take();
        let mut lines = told.lines();
        let why = lines.next().unwrap();
        assert!(
            why.starts_with("<4>WARN the journal takes no entries at "),
            "{why}"
        );
        assert!(why.contains("No such file"), "{why}");
        assert_eq!(lines.next(), Some("<4>WARN a: first"));
        assert_eq!(lines.next(), None);

        tracing::error!("second");
        assert_eq!(
            scene.written.take(),
            "<3>ERROR second\n",
            "the cause is told once"
        );

        let socket = scene.listen();
        tracing::info!("third");
        assert_eq!(scene.written.take(), "");
        let mut buffer = [0; 4096];
        let length = socket.recv(&mut buffer).unwrap();
        assert_eq!(parse(&buffer[..length])["MESSAGE"], "third");

        // Larger than any datagram.
        let large = "x".repeat(4 << 20);
        tracing::info!(large, "fourth");
        let told = scene.written.take();
        assert!(told.contains("Message too long"), "{}", &told[..200]);
        assert!(told.ends_with(&format!("<6>INFO fourth large={large}\n")));
        *after.lock().unwrap() = Some(socket);
    });
}

#[test]
fn names_are_what_journald_takes_and_none_is_systemd_s() {
    assert_eq!(name("service"), "TLSWARD_SERVICE");
    assert_eq!(name("tls.version-2é"), "TLSWARD_TLS_VERSION_2_");
    assert_eq!(name(&"x".repeat(100)).len(), 64);
}

#[test]
fn a_stream_is_the_journal_if_device_and_inode_are_those_that_systemd_names() {
    let dir = tempfile::tempdir().unwrap();
    let file = File::create(dir.path().join("stream")).unwrap();
    let found = rustix::fs::fstat(&file).unwrap();
    let environment = |value: String| BTreeMap::from([("JOURNAL_STREAM".to_owned(), value)]);
    let (device, inode) = (found.st_dev, found.st_ino);
    assert!(is_journal(&file, &environment(format!("{device}:{inode}"))));
    for other in [
        format!("{device}:{}", inode + 1),
        format!("{}:{inode}", device + 1),
        format!("{device}"),
        "a:b".to_owned(),
        String::new(),
    ] {
        assert!(!is_journal(&file, &environment(other.clone())), "{other}");
    }
    assert!(!is_journal(&file, &BTreeMap::new()));
}
