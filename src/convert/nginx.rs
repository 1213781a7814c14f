//! `nginx.conf`: the servers of `stream` that speak TLS to their upstream.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::address;
use super::draft::{Draft, Kind, Note};
use super::sources::{Mistake, Source, Sources};

mod lexer;
mod server;
mod upstream;

use lexer::Directive;
use server::Stream;

/// Directives of the whole program, and why none is needed.
const MAIN: [(&str, &str); 20] = [
    ("daemon", "tlsward stays in the foreground, for systemd"),
    ("debug_points", "there are none"),
    ("env", "the unit says what the environment is"),
    ("error_log", "the log goes to standard error or the journal"),
    (
        "events",
        "workers are one for each CPU; max_connections limits a service",
    ),
    ("load_module", "there are no modules"),
    ("lock_file", "there is none"),
    ("master_process", "there is one process"),
    ("pcre_jit", "there are no regular expressions"),
    ("pid", "systemd knows the process; there is no PID file"),
    ("ssl_engine", "hardware engines are not supported"),
    ("thread_pool", "workers are one for each CPU"),
    ("timer_resolution", "timers are the kernel's"),
    ("user", "systemd runs it as the user and group of the unit"),
    ("worker_cpu_affinity", "the unit says which CPUs it may use"),
    ("worker_priority", "the unit says how nice it is"),
    (
        "worker_processes",
        "workers are one for each CPU that the process may use",
    ),
    ("worker_rlimit_core", "core dumps are off"),
    (
        "worker_rlimit_nofile",
        "the limit of open files is raised at start",
    ),
    ("working_directory", "there is none"),
];

/// Reads a file and adds its services.
pub(super) fn convert(
    source: &Source,
    sources: &mut Sources<'_>,
    draft: &mut Draft,
) -> Result<(), Mistake> {
    sources.begin_at(source);
    let base = source.directory().to_owned();
    let (directives, unread) = lexer::read(source, sources, &base)?;
    for mistake in unread {
        draft.note(Note::new(
            Kind::NotCarried,
            &mistake.place,
            "include",
            format!(
                "what it names within http or mail is not known: {}",
                mistake.reason
            ),
            "nothing of http and mail is carried",
        ));
    }
    let has = |names: &[&str]| directives.iter().any(|it| names.contains(&&*it.name));
    if !has(&["stream", "http", "mail", "server", "upstream"]) {
        return Err(Mistake::new(
            &source.at(0),
            "has no stream, and no server",
            "name nginx.conf, or a file that it includes within stream",
        ));
    }
    // A file that nginx.conf includes within stream has no stream of its own.
    let loose: Vec<Directive> = match has(&["stream", "http", "mail", "events"]) {
        true => Vec::new(),
        false => directives.clone(),
    };
    let is_part = !loose.is_empty();
    if is_part {
        add_stream(loose, &base, true, draft);
    } else {
        for directive in directives {
            main(directive, &base, draft);
        }
    }
    Ok(())
}

fn add_stream(directives: Vec<Directive>, base: &Path, is_part: bool, draft: &mut Draft) {
    let paths = Paths {
        base: base.to_owned(),
        is_part,
    };
    Stream::new(directives, paths).convert(draft);
}

/// How relative paths are read.
#[derive(Clone, Debug)]
struct Paths {
    /// The directory of nginx.conf.
    base: PathBuf,
    /// It is that of a file which nginx.conf includes, so nobody knows.
    is_part: bool,
}

fn main(directive: Directive, base: &Path, draft: &mut Draft) {
    let explained = MAIN.iter().find(|(name, _)| *name == directive.name);
    let place = directive.place.clone();
    match (&*directive.name, explained) {
        ("stream", _) => add_stream(directive.block.unwrap_or_default(), base, false, draft),
        ("http", _) => http(&directive.block.unwrap_or_default(), draft),
        ("mail", _) => draft.note(Note::new(
            Kind::NotCarried,
            &place,
            "mail",
            "is nginx's mail proxy",
            "leave it with nginx",
        )),
        ("worker_shutdown_timeout", _) => match time(directive.value()) {
            Some(time) if !time.is_zero() && time <= address::LONGEST => {
                let from = format!("worker_shutdown_timeout, {place}");
                draft
                    .top
                    .text("shutdown_timeout", &address::duration(time), from);
            }
            _ => draft.note(Note::new(
                Kind::NotCarried,
                &place,
                "worker_shutdown_timeout",
                "is no time that tlsward takes",
                "see whether the default of shutdown_timeout, 30s, will do",
            )),
        },
        (name, Some((_, why))) => draft.note(Note::new(
            Kind::Explained,
            &place,
            name,
            "is about nginx's own process",
            *why,
        )),
        (name, None) => draft.note(Note::new(
            Kind::NotCarried,
            &place,
            name,
            "is not known here",
            "see in nginx's documentation what it does",
        )),
    }
}

/// Nothing of http is carried: it is listed.
fn http(directives: &[Directive], draft: &mut Draft) {
    for directive in directives {
        let block = directive.block.as_deref().unwrap_or_default();
        match &*directive.name {
            "server" => {
                let listens: Vec<&str> = block
                    .iter()
                    .filter(|it| it.name == "listen")
                    .map(Directive::value)
                    .collect();
                let what = match listens.is_empty() {
                    true => "is a server of HTTP".to_owned(),
                    false => format!("is a server of HTTP, on {}", listens.join(", ")),
                };
                draft.note(Note::new(
                    Kind::NotCarried,
                    &directive.place,
                    "http server",
                    what,
                    "leave it with nginx: tlsward works below HTTP",
                ));
                upstreams_of_http(block, draft);
            }
            _ => upstreams_of_http(block, draft),
        }
    }
}

/// `proxy_pass https://…` wherever it stands.
fn upstreams_of_http(directives: &[Directive], draft: &mut Draft) {
    for directive in directives {
        if directive.name == "proxy_pass"
            && let Some(rest) = directive.value().strip_prefix("https://")
        {
            let target = rest.split('/').next().unwrap_or_default();
            draft.note(Note::new(
                Kind::NotCarried,
                &directive.place,
                "proxy_pass",
                format!("nginx itself speaks TLS to {target}"),
                "to let tlsward do it, add a service with that upstream, and write proxy_pass http://127.0.0.1:PORT with its listener; keep proxy_set_header Host",
            ));
        }
        upstreams_of_http(directive.block.as_deref().unwrap_or_default(), draft);
    }
}

/// A time as nginx writes it: `10m`, `1h 30m`, `500ms`; without a unit seconds.
fn time(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = text.trim();
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let number: u64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let (millis, length) = if rest.starts_with("ms") {
            (1, 2)
        } else {
            match rest.chars().next() {
                None | Some(' ') => (1000, 0),
                Some('s') => (1000, 1),
                Some('m') => (60_000, 1),
                Some('h') => (3_600_000, 1),
                Some('d') => (86_400_000, 1),
                Some('w') => (7 * 86_400_000, 1),
                Some('M') => (30 * 86_400_000, 1),
                Some('y') => (365 * 86_400_000, 1),
                Some(_) => return None,
            }
        };
        rest = rest[length..].trim_start();
        total = total.checked_add(Duration::from_millis(number.checked_mul(millis)?))?;
    }
    Some(total)
}

/// Puts what `set` says in place of its variables; `None` where another one is left.
fn without_variables(text: &str, constants: &BTreeMap<String, String>) -> Option<String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let name = match rest.strip_prefix('{') {
            Some(braced) => {
                let (name, after) = braced.split_once('}')?;
                rest = after;
                name
            }
            None => {
                let length = rest.len() - rest.trim_start_matches(is_name).len();
                let (name, after) = rest.split_at(length);
                rest = after;
                name
            }
        };
        out.push_str(constants.get(name)?);
        // No configuration of a person's hand is longer; a chain of doublings could be.
        if out.len() > 4096 {
            return None;
        }
    }
    out.push_str(rest);
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_nginx_s() {
        for (text, millis) in [
            ("60", Some(60_000)),
            ("60s", Some(60_000)),
            ("10m", Some(600_000)),
            ("500ms", Some(500)),
            ("1h 30m", Some(5_400_000)),
            ("1h30m", Some(5_400_000)),
            ("1M", Some(30 * 86_400_000)),
            ("", None),
            ("m", None),
            ("1x", None),
            ("99999999999999999999y", None),
        ] {
            let expected = millis.map(Duration::from_millis);
            assert_eq!(time(text), expected, "{text:?}");
        }
    }

    #[test]
    fn constants_take_the_place_of_variables_and_nothing_else_does() {
        let constants = BTreeMap::from([("a".to_owned(), "x".to_owned())]);
        for (text, expected) in [
            ("plain", Some("plain")),
            ("$a:1", Some("x:1")),
            ("${a}b", Some("xb")),
            ("$ab", None),
            ("$host", None),
            ("${a", None),
            ("$", None),
        ] {
            assert_eq!(
                without_variables(text, &constants).as_deref(),
                expected,
                "{text}"
            );
        }
    }
}
