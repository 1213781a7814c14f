//! Command lines of `ghostunnel client`.

use std::path::Path;
use std::time::Duration;

use super::address;
use super::draft::{Draft, DraftService, Kind, Note};
use super::openssl::{self, Version, origin};
use super::sources::{Mistake, Place, Source, Sources};

mod commands;
mod flags;
mod words;

use commands::CommandLine;
use flags::Flags;

/// Reads a file and adds a service for each start of ghostunnel as a client.
pub(super) fn convert(
    source: &Source,
    sources: &mut Sources<'_>,
    draft: &mut Draft,
) -> Result<(), Mistake> {
    let found = commands::find(source, sources)?;
    draft.note(Note::new(
        Kind::Explained,
        &source.at(0),
        "the rest of the file",
        "says how ghostunnel is run (user, restarts, limits), not what it does",
        "tlsward comes with a systemd unit and with manifests of its own",
    ));
    for command in found {
        let flags = Flags::read(&command, draft);
        match flags.mode.as_deref() {
            Some("client") => {
                let service = service(&command, &flags, source, draft);
                draft.services.push(service);
            }
            Some("server") => draft.note(Note::new(
                Kind::NotCarried,
                &command.place,
                "ghostunnel server",
                "takes TLS, and tlsward only makes it",
                "leave it with ghostunnel",
            )),
            _ => draft.note(Note::new(
                Kind::NotCarried,
                &command.place,
                "ghostunnel",
                "is started neither as client nor as server",
                "nothing to do, if it is for --help or --version",
            )),
        }
    }
    Ok(())
}

fn service(
    command: &CommandLine,
    flags: &Flags,
    source: &Source,
    draft: &mut Draft,
) -> DraftService {
    let target = flags.last("target").map(|flag| flag.value.plain());
    let name = target.as_deref().unwrap_or_default();
    let name = name.rsplit_once(':').map_or(name, |(host, _)| host);
    let mut service = DraftService::new(name, &command.place);
    for note in &flags.notes {
        service.note(note.clone());
    }
    listen(&mut service, flags);
    match target.as_deref().map(address::host_and_port) {
        Some((Some(host), port)) if address::port(port).is_some() && !host.is_empty() => {
            let port = address::port(port).unwrap_or_default();
            let from = flags.origin(&service, "target");
            address::upstream(&mut service, &[address::endpoint(host, port)], from);
        }
        _ => {
            let place = service.place.clone();
            service.note(Note::blocking(
                &place,
                "--target",
                "is not host:port",
                "write upstream",
            ));
        }
    }
    times(&mut service, flags, draft);
    trust(&mut service, flags, source);
    identity(&mut service, flags, source);
    for flag in &flags.all {
        flags::other(flag, &mut service, draft);
    }
    service
}

fn listen(service: &mut DraftService, flags: &Flags) {
    let Some(flag) = flags.last("listen") else {
        let place = service.place.clone();
        service.note(Note::blocking(
            &place,
            "--listen",
            "is missing",
            "write listen",
        ));
        return;
    };
    let text = flag.value.plain();
    if let Some(path) = text.strip_prefix("unix:") {
        return address::listen_unix(service, path, "--listen", &flag.place);
    }
    if text.starts_with("systemd:") {
        let from = origin(&service.place, "--listen", &flag.place);
        service.keys.text("listen", &text, from);
        return;
    }
    if text.starts_with("launchd:") {
        service.note(Note::blocking(
            &flag.place,
            "--listen",
            "is a socket of macOS",
            "write listen",
        ));
        return;
    }
    let (host, port) = address::host_and_port(&text);
    let port = address::port(port);
    let unsafe_listen = flags.is_on("unsafe-listen");
    match (host, port) {
        (Some(""), Some(port)) if unsafe_listen => {
            // Every address, and it was said: IPv6 too, which is another listener here.
            let host = Some("0.0.0.0");
            address::listen_tcp(service, host, port, "--listen", &flag.place, "ghostunnel");
            service.note(Note::new(
                Kind::NotCarried,
                &flag.place,
                "--listen",
                "takes IPv6 too",
                format!("if callers come that way, add a service that listens on [::]:{port}"),
            ));
        }
        (Some(host), Some(port)) if !host.is_empty() => {
            address::listen_tcp(
                service,
                Some(host),
                port,
                "--listen",
                &flag.place,
                "ghostunnel",
            );
        }
        (_, Some(port)) => {
            address::listen_tcp(service, None, port, "--listen", &flag.place, "ghostunnel");
        }
        (_, None) => service.note(Note::blocking(
            &flag.place,
            "--listen",
            "is not host:port",
            "write listen",
        )),
    }
}

fn times(service: &mut DraftService, flags: &Flags, draft: &mut Draft) {
    for (name, ours) in [
        ("connect-timeout", "connect_timeout"),
        ("close-timeout", "close_timeout"),
        ("max-conn-lifetime", "max_lifetime"),
        ("shutdown-timeout", "shutdown_timeout"),
    ] {
        let Some(flag) = flags.last(name) else {
            continue;
        };
        let shown = format!("--{name}");
        match (flags::duration(&flag.value.plain()), name) {
            (Some(Duration::ZERO), "max-conn-lifetime") => {}
            (Some(time), "shutdown-timeout") => {
                let from = format!("--shutdown-timeout, {}", flag.place);
                draft
                    .top
                    .text(ours, &address::duration(time.min(address::LONGEST)), from);
            }
            (Some(Duration::ZERO), _) => service.note(Note::new(
                Kind::NotCarried,
                &flag.place,
                shown,
                "0 ends a connection at once, and tlsward does not do that",
                format!("see whether the default of {ours} will do"),
            )),
            (Some(time), _) => address::limit(service, ours, time, &shown, &flag.place),
            (None, _) => service.note(Note::blocking(
                &flag.place,
                shown,
                "is no duration that is known here",
                format!("write {ours}"),
            )),
        }
    }
    if flags.last("shutdown-timeout").is_none() {
        let from = "ghostunnel's default; tlsward's is 30s";
        draft.top.text_unless_set("shutdown_timeout", "5m", from);
    }
    if let Some(flag) = flags.last("max-concurrent-conns") {
        match flag.value.plain().parse::<u32>() {
            Ok(0) => {}
            Ok(limit) => {
                let from = flags.origin(service, "max-concurrent-conns");
                service.keys.set("max_connections", limit.to_string(), from);
            }
            Err(_) => service.note(Note::blocking(
                &flag.place,
                "--max-concurrent-conns",
                "is not a number",
                "write max_connections",
            )),
        }
    }
}

fn trust(service: &mut DraftService, flags: &Flags, source: &Source) {
    match flags.last("cacert") {
        Some(flag) => {
            let path = path_of(service, flag, source);
            let from = flags.origin(service, "cacert");
            service.tls.text("ca", &path, from);
        }
        None => service
            .tls
            .text("ca", "system", "as ghostunnel does without --cacert"),
    }
    if let Some(flag) = flags.last("override-server-name") {
        let from = flags.origin(service, "override-server-name");
        service.tls.text("server_name", &flag.value.plain(), from);
    }
    let names: Vec<_> = flags.of(&["verify-dns", "verify-uri"]);
    let others = flags.of(&["verify-cn", "verify-ou", "verify-ip", "verify-policy"]);
    let pins = flags.of(&["verify-spki-pin"]);
    if let Some(first) = names.first() {
        let from = origin(&service.place, &format!("--{}", first.name), &first.place);
        let texts: Vec<String> = names.iter().map(|flag| flag.value.plain()).collect();
        service.tls.list("allowed_names", &texts, from);
    }
    for flag in &others {
        let shown = format!("--{}", flag.name);
        let was =
            "is another mark of the server that ghostunnel takes, and tlsward does not look at it";
        service.note(match names.is_empty() {
            true => Note::blocking(
                &flag.place,
                shown,
                was,
                "write into allowed_names a DNS name or URI that only this server has",
            ),
            false => Note::new(
                Kind::Decide,
                &flag.place,
                shown,
                was,
                "only allowed_names count; add a name there if a server has none of them",
            ),
        });
    }
    let mut digests = Vec::new();
    for flag in &pins {
        match flag.value.plain().strip_prefix("sha256:") {
            Some(digest) => digests.push(format!("sha256/{digest}")),
            None => service.note(Note::blocking(
                &flag.place,
                "--verify-spki-pin",
                "is not a SHA-256 digest",
                "write pins with the SHA-256 of the same key",
            )),
        }
    }
    if let (Some(first), false) = (pins.first(), digests.is_empty()) {
        let from = flags.origin(service, "verify-spki-pin");
        service.tls.list("pins", &digests, from);
        service.note(Note::new(
            Kind::Unsafe,
            &first.place,
            "--verify-spki-pin",
            "takes the key for everything: neither chain nor name nor dates are verified",
            "the key must fit, and chain and name are verified too",
        ));
        if flags.last("cacert").is_none() {
            service.note(Note::new(
                Kind::Decide,
                &first.place,
                "--verify-spki-pin",
                "needs no CA with ghostunnel",
                "name the CA in ca that has issued the server's certificate",
            ));
        }
    }
}

fn identity(service: &mut DraftService, flags: &Flags, source: &Source) {
    if flags.is_on("disable-authentication") {
        let from = flags.origin(service, "disable-authentication");
        service.tls.set("client_auth", "false", from);
        return;
    }
    if let Some(keystore) = flags.last("keystore") {
        let path = keystore.value.plain().to_ascii_lowercase();
        let binary = [".p12", ".pfx", ".jceks", ".jks"]
            .iter()
            .any(|it| path.ends_with(it));
        if binary {
            service.note(Note::blocking(
                &keystore.place,
                "--keystore",
                "is no PEM file, and tlsward reads PEM",
                "openssl pkcs12 -in FILE -nodes -out bundle.pem, and write bundle = \"…/bundle.pem\"",
            ));
            return;
        }
        let path = path_of(service, keystore, source);
        let from = flags.origin(service, "keystore");
        openssl::pair(&mut service.tls, (&path, from), None);
        return;
    }
    if let Some(flag) = flags.hardware() {
        service.note(Note::blocking(
            &flag.place,
            format!("--{}", flag.name),
            "takes the key from elsewhere than a file",
            "give the service files: cert and key; for SPIFFE let spiffe-helper write them",
        ));
        return;
    }
    match (flags.last("cert"), flags.last("key")) {
        (Some(cert), Some(key)) => {
            let (cert_path, key_path) = (
                path_of(service, cert, source),
                path_of(service, key, source),
            );
            let cert_from = flags.origin(service, "cert");
            let key_from = flags.origin(service, "key");
            openssl::pair(
                &mut service.tls,
                (&cert_path, cert_from),
                Some((&key_path, key_from)),
            );
        }
        _ => {
            let place = service.place.clone();
            service.note(Note::blocking(
                &place,
                "--cert",
                "there is no certificate with a key, and ghostunnel would not start",
                "write cert and key, or client_auth = false",
            ));
        }
    }
}

/// The file that a flag names. Where it is relative nobody knows from where.
fn path_of(service: &mut DraftService, flag: &flags::Flag, source: &Source) -> String {
    let value = flag.value.plain();
    if Path::new(&value).is_absolute() {
        return value;
    }
    let path = source.directory().join(&value);
    service.note(Note::new(
        Kind::Decide,
        &flag.place,
        format!("--{}", flag.name),
        format!("{value:?} counts from the directory that ghostunnel is started in"),
        format!(
            "taken as {}; mend it if that is another file",
            path.display()
        ),
    ));
    path.display().to_string()
}

/// `--max-tls-version`.
fn max_version(service: &mut DraftService, value: &str, place: &Place) {
    match Version::parse(value) {
        Some(version) => openssl::max_version(service, version, "--max-tls-version", place),
        None => service.note(Note::blocking(
            place,
            "--max-tls-version",
            "is not a version that is known here",
            "write max_version",
        )),
    }
}
