//! The log where systemd runs the program: entries in a real journald, started for the test in
//! namespaces of its own, and what is left where there is none.

use std::fs;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::net::{address, is_reset};
use crate::support::pki::Pki;
use crate::support::proxy::{Config, Proxy, Service, command_under};
use crate::support::scene::{NAME, visit};
use crate::support::servers::program;
use crate::support::upstream::{Behaviour, Options, Upstream};
use crate::support::{until, within};

const JOURNALD: &str = "/usr/lib/systemd/systemd-journald";

/// A machine's /run, and in it a journal.
struct Machine {
    pki: Pki,
    _upstream: Upstream,
    /// One service that works, one whose upstream's port is closed.
    service: Service,
    refused: Service,
    run: PathBuf,
}

impl Machine {
    async fn new() -> Self {
        drop(program("unshare", "util-linux"));
        drop(program("systemd-cat", "systemd"));
        assert!(Path::new(JOURNALD).exists(), "apt-get install systemd");
        let pki = Pki::new();
        let upstream = Options::trusting(&pki.root)
            .behaviour(Behaviour::Identify)
            .start(&pki.server())
            .await;
        let files = pki.identity_files(NAME, &pki.client(NAME));
        let service = Service::new(NAME, upstream.address(), &pki).identity(&files);
        let refused = Service::new("refused", address(), &pki).identity(&files);
        let run = pki.path("run");
        for directory in ["systemd/journal", "log/journal"] {
            fs::create_dir_all(run.join(directory)).unwrap();
        }
        Self {
            pki,
            _upstream: upstream,
            service,
            refused,
            run,
        }
    }

    fn config(&self) -> Config {
        Config::of([self.service.clone(), self.refused.clone()])
    }

    /// Runs tlsward as the end of this shell script (`"$@"`), on the machine's own /run.
    fn launch(&self, script: &str, config: &Config) -> Proxy {
        let script = format!("mount --bind {} /run && {script}", self.run.display());
        let launcher = [
            "unshare",
            "-r",
            "-m",
            "-p",
            "-f",
            "--mount-proc",
            "--kill-child",
            "sh",
            "-c",
            &script,
            "sh",
        ];
        Proxy::launch(command_under(&launcher), &self.pki, config)
    }

    /// The same with a journald that reads standard error, as of a service; `then` is the last
    /// command.
    async fn run_in_journal(&self, then: &str) -> Proxy {
        let mut proxy = self.launch(&in_journal(then), &self.config());
        proxy.wait_until_ready().await;
        proxy
    }

    /// Entries of the journal in order, as `journalctl -o json` shows them.
    async fn entries(&self, matches: &[&str]) -> Vec<Value> {
        let text = self.journalctl(&[matches, &["-o", "json"]].concat()).await;
        let lines = text.lines();
        lines
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    async fn journalctl(&self, arguments: &[&str]) -> String {
        let output = within(
            "journalctl",
            program("journalctl", "systemd")
                .arg("--no-pager")
                .arg("-D")
                .arg(self.run.join("log/journal"))
                .args(arguments)
                .output(),
        )
        .await
        .unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    /// The first entry with these fields, once it is there.
    async fn entry(&self, matches: &[&str]) -> Value {
        until(format!("an entry with {matches:?}"), async || {
            self.entries(matches).await.into_iter().next()
        })
        .await
    }
}

/// Starts journald, then tlsward with its output going there, as systemd does it.
fn in_journal(then: &str) -> String {
    format!(
        "{{ {JOURNALD} & }} && {WAIT} && exec systemd-cat --identifier=out sh -c \
         'JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2) {then}' sh \"$@\""
    )
}

/// Until journald listens.
const WAIT: &str = "until [ -S /run/systemd/journal/socket ] && [ -S /run/systemd/journal/stdout ]; do sleep 0.01; done";

#[tokio::test]
async fn in_the_journal_each_event_is_an_entry_with_fields_and_a_priority() {
    let machine = Machine::new().await;
    let proxy = machine.run_in_journal("exec \"$@\"").await;
    visit(&machine.service).await;
    is_reset(machine.refused.address()).await;

    let failed = machine
        .entry(&["TLSWARD_SERVICE=refused", "TLSWARD_REASON=refused"])
        .await;
    for (field, value) in [
        ("PRIORITY", "4"),
        ("SYSLOG_IDENTIFIER", "tlsward"),
        ("TLSWARD_SIDE", "upstream"),
        ("TLSWARD_PHASE", "connect"),
        ("TLSWARD_OUTCOME", "failed"),
        ("TLSWARD_TARGET", "tlsward::connection"),
        // journald's own word for how it came.
        ("_TRANSPORT", "journal"),
    ] {
        assert_eq!(failed[field], value, "{field}");
    }
    let message = failed["MESSAGE"].as_str().unwrap();
    assert!(message.starts_with("refused: 127."), "{message}");
    for part in [
        " failed in connect (upstream), ",
        ": refused: ",
        "; nothing listens at the upstream's address",
    ] {
        assert!(message.contains(part), "{message}");
    }
    let ended = machine
        .entry(&["TLSWARD_SERVICE=billing", "TLSWARD_OUTCOME=ok"])
        .await;
    assert_eq!(ended["PRIORITY"], "6");
    assert_eq!(ended["TLSWARD_TLS_VERSION"], "1.3");

    // As an operator would ask.
    let warnings = machine
        .journalctl(&["-t", "tlsward", "-p", "warning", "-o", "cat"])
        .await;
    assert_eq!(warnings.trim_end(), message);
    // Nothing of it came as lines of standard error.
    assert!(machine.entries(&["_TRANSPORT=stdout"]).await.is_empty());
    assert!(
        proxy
            .log()
            .all()
            .iter()
            .all(|line| !line.raw.contains("billing"))
    );
}

#[tokio::test]
async fn lines_of_text_carry_their_priority_into_the_journal() {
    let machine = Machine::new().await;
    let _proxy = machine
        .run_in_journal("exec \"$@\" --log-format text")
        .await;
    is_reset(machine.refused.address()).await;
    let line = until("the line", async || {
        let lines = machine
            .entries(&["SYSLOG_IDENTIFIER=out", "PRIORITY=4"])
            .await;
        lines.into_iter().next()
    })
    .await;
    let message = line["MESSAGE"].as_str().unwrap();
    assert!(
        message.contains(" WARN connection failed service=\"refused\""),
        "{message}"
    );
    assert!(!message.contains("<4>"), "{message}");
    assert_eq!(line["_TRANSPORT"], "stdout");
}

#[tokio::test]
async fn a_redirected_standard_error_gets_json_as_without_a_journal() {
    let machine = Machine::new().await;
    // The stream that the variable names is another one.
    let mut proxy = machine.launch("JOURNAL_STREAM=1:1 exec \"$@\"", &machine.config());
    proxy.wait_until_ready().await;
    is_reset(machine.refused.address()).await;
    proxy.failure_logged("refused", "refused").await;
}

#[tokio::test]
async fn without_a_journald_text_goes_to_standard_error_and_to_the_journal_once_it_is_there() {
    let machine = Machine::new().await;
    // journald waits for the word.
    let script = format!(
        "{{ sh -c 'until [ -e /run/go ]; do sleep 0.01; done; exec {JOURNALD}' & }} && exec \"$@\" --log-format journal"
    );
    let mut proxy = machine.launch(&script, &machine.config());
    proxy.wait_until_ready().await;
    is_reset(machine.refused.address()).await;
    let lines = proxy.log();
    let why = lines.wait("why there are lines", |line| {
        let said = "WARN the journal takes no entries at /run/systemd/journal/socket (";
        line.raw.starts_with(said).then_some(())
    });
    why.await;
    let failed = lines.wait("the failed connection", |line| {
        let text = &line.raw;
        let is_it = text.starts_with("WARN refused: 127.") && text.contains(": refused: ");
        is_it.then_some(())
    });
    failed.await;

    fs::write(machine.run.join("go"), "").unwrap();
    until("journald listens", async || {
        let socket = machine.run.join("systemd/journal/socket").metadata().ok()?;
        socket.file_type().is_socket().then_some(())
    })
    .await;
    // It may not listen yet at the first moment of its socket: lines follow until it does.
    let entry = until("an entry", async || {
        is_reset(machine.refused.address()).await;
        let entries = machine.entries(&["TLSWARD_SERVICE=refused"]).await;
        entries.into_iter().next()
    })
    .await;
    assert_eq!(entry["TLSWARD_REASON"], "refused");
}

#[tokio::test]
async fn a_refused_configuration_is_in_the_journal_with_every_mistake() {
    let machine = Machine::new().await;
    let config = machine
        .config()
        .top("shutdown_timout = \"1s\"\nworkers = 0");
    // journald goes on until its namespace ends, so that it has time to write.
    let script = format!(
        "{} ; sleep infinity",
        in_journal("exec \"$@\"").replace("exec systemd-cat", "systemd-cat")
    );
    let _proxy = machine.launch(&script, &config);
    for mistake in ["shutdown_timout", "workers"] {
        until(format!("the mistake in {mistake}"), async || {
            let entries = machine
                .entries(&["SYSLOG_IDENTIFIER=tlsward", "PRIORITY=3"])
                .await;
            let all = entries.iter().filter_map(|entry| entry["MESSAGE"].as_str());
            // Where it stands, the line itself, and what to do: in one entry.
            let mut all = all.filter(|text| text.contains("config.toml:"));
            all.any(|text| text.contains(mistake) && text.contains("fix: "))
                .then_some(())
        })
        .await;
    }
}
