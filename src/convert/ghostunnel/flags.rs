//! The flags of ghostunnel.

use std::time::Duration;

use super::commands::{CommandLine, TWINS};
use super::words::Word;
use crate::convert::draft::{Draft, DraftService, Kind, Note};
use crate::convert::openssl::{self, origin};
use crate::convert::sources::Place;

/// Flags without a value; `--no-NAME` switches them off.
const SWITCHES: [&str; 12] = [
    "allow-unsafe-cipher-suites",
    "disable-authentication",
    "disable-landlock",
    "enable-pprof",
    "enable-shutdown",
    "keychain-require-token",
    "skip-resolve",
    "syslog",
    "unsafe-listen",
    "use-landlock",
    "use-workload-api",
    "version",
];

/// Flags with a value.
const VALUES: [&str; 42] = [
    "cacert",
    "cert",
    "cipher-suites",
    "close-timeout",
    "connect-timeout",
    "key",
    "keychain-identity",
    "keychain-issuer",
    "keystore",
    "listen",
    "max-concurrent-conns",
    "max-conn-lifetime",
    "max-tls-version",
    "metrics-graphite",
    "metrics-interval",
    "metrics-prefix",
    "metrics-url",
    "override-server-name",
    "pkcs11-module",
    "pkcs11-pin",
    "pkcs11-token-label",
    "proxy",
    "quiet",
    "shutdown-timeout",
    "status",
    "storepass",
    "target",
    "timed-reload",
    "use-workload-api-addr",
    "use-workload-api-timeout",
    "verify-cn",
    "verify-dns",
    "verify-ip",
    "verify-ou",
    "verify-policy",
    "verify-query",
    "verify-spki-pin",
    "verify-uri",
    // Older names.
    "connect-proxy",
    "verify-dns-san",
    "verify-ip-san",
    "verify-uri-san",
];

#[derive(Clone, Debug)]
pub(super) struct Flag {
    /// Without dashes; of two names the newer.
    pub(super) name: String,
    /// Empty for switches.
    pub(super) value: Word,
    pub(super) place: Place,
    /// `--no-NAME`.
    off: bool,
    /// The variable that stands for it.
    variable: Option<&'static str>,
}

/// A command line, read.
#[derive(Debug)]
pub(super) struct Flags {
    /// `client` or `server`.
    pub(super) mode: Option<String>,
    pub(super) all: Vec<Flag>,
    /// What is wrong with them.
    pub(super) notes: Vec<Note>,
}

impl Flags {
    pub(super) fn read(command: &CommandLine, draft: &mut Draft) -> Self {
        let mut flags = Self {
            mode: None,
            all: Vec::new(),
            notes: Vec::new(),
        };
        let mut words = command.arguments.iter();
        while let Some(word) = words.next() {
            let text = word.plain();
            // Where the shell sends its output.
            let behind_digit = text.trim_start_matches(|c: char| c.is_ascii_digit());
            if let Some(target) = behind_digit.strip_prefix('>') {
                if target.trim_start_matches('>').is_empty() {
                    words.next();
                }
                continue;
            }
            let Some(flag) = text.strip_prefix("--") else {
                flags.bare(word, text);
                continue;
            };
            let (name, value) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            let (switch, off) = match name.strip_prefix("no-") {
                Some(rest) if SWITCHES.contains(&rest) => (rest, true),
                _ => (name, false),
            };
            if SWITCHES.contains(&switch) {
                let off = off || value.as_deref() == Some("false");
                flags.push(
                    switch,
                    Word {
                        text: String::new(),
                        ..word.clone()
                    },
                    off,
                );
            } else if VALUES.contains(&name) {
                let value = match value {
                    Some(value) => Some(Word {
                        text: value,
                        ..word.clone()
                    }),
                    None => words.next().cloned(),
                };
                match value {
                    Some(value) => flags.push(
                        name,
                        Word {
                            place: word.place.clone(),
                            ..value
                        },
                        false,
                    ),
                    None => flags.unknown(word, name, "has no value"),
                }
            } else {
                flags.unknown(word, name, "is not a flag that is known here");
            }
        }
        flags.twins(command, draft);
        flags
    }

    fn bare(&mut self, word: &Word, text: String) {
        if self.mode.is_none() && matches!(&*text, "client" | "server" | "help" | "-h") {
            self.mode = Some(text);
        } else if !text.is_empty() {
            self.notes.push(Note::blocking(
                &word.place,
                "ghostunnel",
                "has an argument that is no flag; perhaps more flags come in through a variable or a file",
                "name them on the line itself",
            ));
        }
    }

    fn push(&mut self, name: &str, value: Word, off: bool) {
        let name = match name {
            "connect-proxy" => "proxy",
            name => name.strip_suffix("-san").unwrap_or(name),
        };
        if value.depends_on_others() {
            self.notes.push(Note::blocking(
                &value.place,
                format!("--{name}"),
                "depends on variables that are set elsewhere",
                "write the value itself, or ${NAME} with a variable of tlsward's environment",
            ));
        }
        self.all.push(Flag {
            name: name.to_owned(),
            place: value.place.clone(),
            value,
            off,
            variable: None,
        });
    }

    fn unknown(&mut self, word: &Word, name: &str, was: &str) {
        // Only the name: behind = may be a password.
        let name: String = name.chars().take(64).collect();
        self.notes.push(Note::blocking(
            &word.place,
            format!("--{name}"),
            was,
            "see in `ghostunnel --help` what it does; then remove it, or write the service by hand",
        ));
    }

    /// Flags that variables stand for, where they are not given themselves.
    fn twins(&mut self, command: &CommandLine, draft: &mut Draft) {
        for variable in TWINS {
            let Some(value) = command.environment.get(variable) else {
                continue;
            };
            let name = match variable {
                "SPIFFE_ENDPOINT_SOCKET" => "use-workload-api-addr".to_owned(),
                "KEYSTORE_PASS" => "storepass".to_owned(),
                other => other
                    .to_ascii_lowercase()
                    .replace("_path", "")
                    .replace('_', "-"),
            };
            if self.last(&name).is_some() {
                draft.note(Note::new(
                    Kind::Explained,
                    &value.place,
                    variable,
                    format!("is overridden by --{name}"),
                    "the flag counts",
                ));
                continue;
            }
            self.push(&name, value.clone(), false);
            if let Some(flag) = self.all.last_mut() {
                flag.variable = Some(variable);
            }
        }
    }

    pub(super) fn last(&self, name: &str) -> Option<&Flag> {
        self.all.iter().rev().find(|flag| flag.name == name)
    }

    pub(super) fn of(&self, names: &[&str]) -> Vec<&Flag> {
        let all = self.all.iter();
        all.filter(|flag| names.contains(&&*flag.name)).collect()
    }

    pub(super) fn is_on(&self, name: &str) -> bool {
        self.last(name).is_some_and(|flag| !flag.off)
    }

    /// A flag that takes the key from elsewhere than a file.
    pub(super) fn hardware(&self) -> Option<&Flag> {
        self.all.iter().find(|flag| {
            let begins = ["pkcs11-", "keychain-", "use-workload-api"];
            !flag.off && begins.iter().any(|begin| flag.name.starts_with(begin))
        })
    }

    /// Where a flag stands, as a remark.
    pub(super) fn origin(&self, service: &DraftService, name: &str) -> String {
        self.last(name).map_or(String::new(), |flag| {
            let shown = flag
                .variable
                .map_or_else(|| format!("--{name}"), str::to_owned);
            origin(&service.place, &shown, &flag.place)
        })
    }
}

/// Every flag that is not read where the service is made.
pub(super) fn other(flag: &Flag, service: &mut DraftService, draft: &mut Draft) {
    let shown = format!("--{}", flag.name);
    let place = &flag.place;
    let note = |kind, was: &str, now: &str| Note::new(kind, place, &shown, was, now);
    let off = |was: &str, now: &str| Note::blocking(place, &shown, was, now);
    match &*flag.name {
        "listen" | "target" | "cert" | "key" | "keystore" | "cacert" | "override-server-name"
        | "verify-dns" | "verify-uri" | "verify-cn" | "verify-ou" | "verify-ip" | "verify-policy"
        | "verify-spki-pin" | "disable-authentication" | "unsafe-listen" | "connect-timeout"
        | "close-timeout" | "max-conn-lifetime" | "max-concurrent-conns" | "shutdown-timeout" => {}
        "verify-query" => service.note(note(
            Kind::Explained,
            "belongs to --verify-policy",
            "see there",
        )),
        "proxy" => service.note(off(
            "reaches the server through a proxy, which tlsward does not",
            "let this machine reach the server directly",
        )),
        "storepass" => service.note(off(
            "unlocks a keystore, and tlsward takes keys that are not encrypted",
            "write the key into a PEM file that only tlsward's user can read, or make it a systemd credential",
        )),
        "timed-reload" => service.note(note(
            Kind::Explained,
            "reads certificates again from time to time",
            "a change is noticed by itself, within a second where the file system tells",
        )),
        "status" => service.note(note(
            Kind::NotCarried,
            "serves /_status and /_metrics",
            "/readyz, /livez and /metrics are at admin.listen (127.0.0.1:9901), and for other machines at admin.public_listen; point probes and scrapers there",
        )),
        "enable-shutdown" => service.note(note(
            Kind::NotCarried,
            "lets POST /_shutdown end the process",
            "POST /quit at admin.listen, or `tlsward stop`",
        )),
        "enable-pprof" => service.note(note(
            Kind::NotCarried,
            "serves profiles",
            "use perf; tlsward serves none",
        )),
        "metrics-graphite" | "metrics-url" => service.note(note(
            Kind::NotCarried,
            "sends metrics away",
            "let Prometheus, or an agent that speaks its format, read /metrics",
        )),
        "metrics-prefix" | "metrics-interval" => service.note(note(
            Kind::Explained,
            "is about how metrics are sent",
            "they begin with tlsward_ and are read when somebody asks",
        )),
        "quiet" => {
            if matches!(&*flag.value.plain(), "all" | "conns" | "conn-errs") {
                draft.log.set("connections", "false", format!("--quiet, {place}"));
            }
            service.note(note(
                Kind::Explained,
                "silences a part of the log",
                "log.connections and log.filter say what is logged",
            ));
        }
        "syslog" => service.note(note(
            Kind::Explained,
            "logs to syslog",
            "the log goes to standard error or the journal",
        )),
        "skip-resolve" => service.note(note(
            Kind::Explained,
            "starts before names can be looked up",
            "always: they are looked up for each connection",
        )),
        "use-landlock" | "disable-landlock" => service.note(note(
            Kind::Explained,
            "is about ghostunnel's sandbox",
            "tlsward has its own; the unit and --no-sandbox say more",
        )),
        "cipher-suites" | "allow-unsafe-cipher-suites" => {
            openssl::ciphers(service, &flag.value.plain(), &shown, place);
        }
        "max-tls-version" => super::max_version(service, &flag.value.plain(), place),
        "use-workload-api-timeout" => {}
        name if ["pkcs11-", "keychain-", "use-workload-api"].iter().any(|it| name.starts_with(it)) => {}
        _ => service.note(note(Kind::NotCarried, "has no counterpart", "see what it is for")),
    }
}

/// A duration as Go writes it: `1h15m30.5s`, `300ms`, `0`.
pub(super) fn duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut total = 0.0;
    let mut rest = text;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let is_number = |c: char| c.is_ascii_digit() || c == '.';
        let length = rest.len() - rest.trim_start_matches(is_number).len();
        let number: f64 = rest[..length].parse().ok()?;
        rest = &rest[length..];
        let length = rest.len() - rest.trim_start_matches(|c| !is_number(c)).len();
        let unit = match &rest[..length] {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        rest = &rest[length..];
        total += number * unit;
    }
    // To the millisecond, which is as fine as the configuration goes.
    Duration::try_from_secs_f64((total * 1000.0).round() / 1000.0).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_go_s() {
        for (text, millis) in [
            ("10s", Some(10_000)),
            ("1m30s", Some(90_000)),
            ("1.5h", Some(5_400_000)),
            ("300ms", Some(300)),
            ("0", Some(0)),
            ("0s", Some(0)),
            ("10", None),
            ("s", None),
            ("", None),
            ("1..2s", None),
            ("1d", None),
        ] {
            assert_eq!(duration(text), millis.map(Duration::from_millis), "{text}");
        }
    }
}
