//! `stunnel.conf`: its services in client mode.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use super::address;
use super::draft::{Draft, DraftService, Kind, Note};
use super::openssl::{self, Version, origin};
use super::sources::{Mistake, Place, Source, Sources};

mod options;

/// `name = value`.
#[derive(Clone, Debug)]
struct Directive {
    /// As it is written.
    name: String,
    /// In lower case: stunnel does not tell them apart.
    key: String,
    value: String,
    place: Place,
}

/// What stands below `[name]`.
#[derive(Debug)]
struct Section {
    name: String,
    place: Place,
    options: Vec<Directive>,
}

/// A file with all that it includes.
#[derive(Debug, Default)]
struct File {
    /// Above the first section: global options, and defaults of the sections.
    top: Vec<Directive>,
    sections: Vec<Section>,
}

/// Reads a file and adds its services.
pub(super) fn convert(
    source: &Source,
    sources: &mut Sources<'_>,
    draft: &mut Draft,
) -> Result<(), Mistake> {
    let mut file = File::default();
    sources.begin_at(source);
    read(source, sources, &mut file)?;
    if file.sections.is_empty() {
        return Err(Mistake::new(
            &source.at(0),
            "has no [service], so stunnel would run it from inetd",
            "name the file with the services; for inetd, write a section with accept and connect",
        ));
    }
    for option in &file.top {
        options::global(option, draft);
    }
    let defaults: Vec<Directive> = file
        .top
        .into_iter()
        .filter(|option| !options::is_global(&option.key))
        .collect();
    for section in file.sections {
        let options: Vec<Directive> = defaults.iter().cloned().chain(section.options).collect();
        let is_client = last(&options, "client").is_some_and(|option| is_yes(&option.value));
        if !is_client {
            draft.note(Note::new(
                Kind::NotCarried,
                &section.place,
                format!("[{}]", section.name),
                "is a server: stunnel takes TLS there, and tlsward only makes it",
                "leave this section with stunnel",
            ));
            continue;
        }
        draft
            .services
            .push(service(&section.name, &section.place, &options, source));
    }
    Ok(())
}

/// The lines of one file, and of those that it includes.
fn read(source: &Source, sources: &mut Sources<'_>, file: &mut File) -> Result<(), Mistake> {
    for (number, line) in source.text.lines().enumerate() {
        let place = source.at(number + 1);
        let line = line.trim();
        if line.is_empty() || line.starts_with([';', '#']) {
            continue;
        }
        if let Some(name) = line
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
        {
            file.sections.push(Section {
                name: name.to_owned(),
                place,
                options: Vec::new(),
            });
            continue;
        }
        let Some((name, value)) = line.split_once('=') else {
            return Err(Mistake::new(
                &place,
                "is neither an option (name = value), nor a [section], nor a comment",
                "mend the line; stunnel refuses it too",
            ));
        };
        let (name, value) = (name.trim(), value.trim());
        if name.eq_ignore_ascii_case("include") {
            include(value, &place, sources, file)?;
            continue;
        }
        let option = Directive {
            name: name.to_owned(),
            key: name.to_ascii_lowercase(),
            value: value.to_owned(),
            place,
        };
        match file.sections.last_mut() {
            Some(section) => section.options.push(option),
            None => file.top.push(option),
        }
    }
    Ok(())
}

/// Every file of the directory, by their names, as if they stood here.
fn include(
    directory: &str,
    place: &Place,
    sources: &mut Sources<'_>,
    file: &mut File,
) -> Result<(), Mistake> {
    let directory = Path::new(directory);
    if !directory.is_absolute() {
        return Err(Mistake::new(
            place,
            format!(
                "includes {}, which counts from the directory that stunnel was started in",
                directory.display()
            ),
            "write the whole path",
        ));
    }
    let names = sources.list(directory).map_err(|error| {
        Mistake::new(
            place,
            format!("cannot list {}: {error}", directory.display()),
            "name a directory that can be read",
        )
    })?;
    for name in names {
        sources.included(&directory.join(&name), place, |sources, source| {
            read(&source, sources, file)
        })?;
    }
    Ok(())
}

fn last<'o>(options: &'o [Directive], key: &str) -> Option<&'o Directive> {
    options.iter().rev().find(|option| option.key == key)
}

fn all<'o>(options: &'o [Directive], key: &str) -> Vec<&'o Directive> {
    options.iter().filter(|option| option.key == key).collect()
}

fn is_yes(value: &str) -> bool {
    value.eq_ignore_ascii_case("yes")
}

/// A section with `client = yes`.
fn service(name: &str, place: &Place, options: &[Directive], source: &Source) -> DraftService {
    let mut service = DraftService::new(name, place);
    let mut seen = BTreeSet::new();
    listen(&mut service, options);
    connect(&mut service, options);
    times(&mut service, options);
    verification(&mut service, options, source);
    identity(&mut service, options, source);
    for option in options {
        // Of an option that is set twice the last counts, but for those that add up.
        let counts = options::ADD_UP.contains(&&*option.key)
            || last(options, &option.key).is_some_and(|it| std::ptr::eq(it, option));
        if counts {
            options::of_service(option, &mut service);
        } else if seen.insert(&option.key) {
            service.note(Note::new(
                Kind::Explained,
                &option.place,
                &option.name,
                "is set again further down",
                "the last one counts, as with stunnel",
            ));
        }
    }
    service
}

fn listen(service: &mut DraftService, options: &[Directive]) {
    let Some(accept) = last(options, "accept") else {
        let place = service.place.clone();
        service.note(Note::blocking(
            &place,
            "accept",
            "is missing",
            "write listen",
        ));
        return;
    };
    if accept.value.starts_with('/') {
        return address::listen_unix(service, &accept.value, &accept.name, &accept.place);
    }
    let (host, port) = address::host_and_port(&accept.value);
    match address::port(port) {
        Some(port) => {
            let host = host.filter(|host| !host.is_empty());
            address::listen_tcp(service, host, port, &accept.name, &accept.place, "stunnel");
        }
        None => service.note(Note::blocking(
            &accept.place,
            &accept.name,
            format!("{port:?} is not a port that is known here"),
            "write listen with the port's number",
        )),
    }
}

fn connect(service: &mut DraftService, options: &[Directive]) {
    let mut endpoints = Vec::new();
    let connects = all(options, "connect");
    for connect in &connects {
        if connect.value.starts_with('/') {
            service.note(Note::blocking(
                &connect.place,
                &connect.name,
                "is a unix socket; tlsward reaches its upstreams over TCP",
                "let the server listen on TCP, and write upstream",
            ));
            continue;
        }
        let (host, port) = address::host_and_port(&connect.value);
        match address::port(port) {
            Some(port) => endpoints.push(address::endpoint(host.unwrap_or("localhost"), port)),
            None => service.note(Note::blocking(
                &connect.place,
                &connect.name,
                format!("{port:?} is not a port that is known here"),
                "write upstream with the port's number",
            )),
        }
    }
    let Some(first) = connects.first() else {
        let place = service.place.clone();
        service.note(Note::blocking(
            &place,
            "connect",
            "is missing",
            "write upstream",
        ));
        return;
    };
    if !endpoints.is_empty() {
        let from = origin(&service.place, &first.name, &first.place);
        address::upstream(service, &endpoints, from);
    }
    let spreads = last(options, "failover").filter(|it| it.value.eq_ignore_ascii_case("rr"));
    if let Some(failover) = spreads.filter(|_| endpoints.len() > 1) {
        service.note(Note::new(
            Kind::NotCarried,
            &failover.place,
            &failover.name,
            "spreads connections over the servers in turn",
            "tlsward tries them in the order of upstream, the first first; to spread them, name one host that resolves to all",
        ));
    }
}

fn times(service: &mut DraftService, options: &[Directive]) {
    for (key, ours) in [
        ("timeoutconnect", "connect_timeout"),
        ("timeoutidle", "idle_timeout"),
        ("timeoutclose", "close_timeout"),
    ] {
        let Some(option) = last(options, key) else {
            continue;
        };
        match option.value.parse::<u32>() {
            Ok(0) if key == "timeoutclose" => service.note(Note::new(
                Kind::Decide,
                &option.place,
                &option.name,
                "0 lets stunnel go on without the server's close_notify, for servers that never send it",
                "if this is such a server, say unclean_close = \"fin\"; else callers see a reset where it ends",
            )),
            Ok(0) => service.note(Note::new(
                Kind::NotCarried,
                &option.place,
                &option.name,
                "0 is no time limit that tlsward takes",
                format!("see whether the default of {ours} will do"),
            )),
            Ok(seconds) => address::limit(service, ours, Duration::from_secs(seconds.into()), &option.name, &option.place),
            Err(_) => service.note(Note::blocking(
                &option.place,
                &option.name,
                "is not a number of seconds",
                format!("write {ours}"),
            )),
        }
    }
    if last(options, "timeoutidle").is_none() {
        service
            .keys
            .text("idle_timeout", "12h", "stunnel's default; tlsward's is off");
    }
}

/// What the legacy option `verify` asks for: the chain, the certificate itself.
fn legacy_level(options: &[Directive]) -> (bool, bool) {
    match last(options, "verify").map(|option| &*option.value) {
        Some("1" | "2") => (true, false),
        Some("3") => (true, true),
        Some("4") => (false, true),
        _ => (false, false),
    }
}

fn verification(service: &mut DraftService, options: &[Directive], source: &Source) {
    let (legacy_chain, legacy_peer) = legacy_level(options);
    let asked = |key| last(options, key).is_some_and(|option| is_yes(&option.value));
    let chain = asked("verifychain") || legacy_chain;
    let peer = asked("verifypeer") || legacy_peer;
    let place = service.place.clone();

    ca(service, options, source);
    crl(service, options, source);
    let checks = names(service, options);
    if !chain && !peer {
        service.note(Note::new(
            Kind::Unsafe,
            &place,
            "verifyChain",
            "is off, stunnel's default: any server is taken, whoever it is",
            "chain and name are verified; see with `tlsward probe` whether the server passes",
        ));
    } else if peer {
        let option = last(options, "verifypeer").or_else(|| last(options, "verify"));
        let (place, name) = option.map_or((&place, "verifyPeer"), |it| (&it.place, &*it.name));
        service.note(Note::blocking(
            place,
            name,
            "takes exactly the certificates in CAfile, and tlsward has no such list",
            "put the CA that issued the server's certificate into ca, and the digest of its key into pins; then chain, name and key are verified",
        ));
    } else if !checks {
        service.note(Note::new(
            Kind::Unsafe,
            &place,
            "checkHost",
            "is not set: any server with a certificate of the CA is taken",
            "the certificate must also be valid for the host in upstream, or for server_name",
        ));
    }
    if last(options, "sslversionmin").is_none() && last(options, "sslversion").is_none() {
        service.note(Note::new(
            Kind::Unsafe,
            &place,
            "sslVersionMin",
            "is TLSv1 by stunnel's default",
            "TLS 1.2 is the lowest",
        ));
    }
}

fn ca(service: &mut DraftService, options: &[Directive], source: &Source) {
    let file = last(options, "cafile").filter(|it| !it.value.is_empty());
    let directory = last(options, "capath").filter(|it| !it.value.is_empty());
    let Some(chosen) = file.or(directory) else {
        return openssl::no_ca(service, "CAfile", "stunnel");
    };
    let path = path_of(service, chosen, source);
    let from = origin(&service.place, &chosen.name, &chosen.place);
    service.tls.text("ca", &path, from);
    if let (Some(_), Some(directory)) = (file, directory) {
        service.note(Note::new(
            Kind::Decide,
            &directory.place,
            &directory.name,
            "stunnel trusts the CAs of CAfile and of CApath together; ca is one of both",
            "only CAfile counts; if the server's CA is in CApath, put it into that file",
        ));
    }
}

fn crl(service: &mut DraftService, options: &[Directive], source: &Source) {
    let file = last(options, "crlfile").filter(|it| !it.value.is_empty());
    let directory = last(options, "crlpath").filter(|it| !it.value.is_empty());
    let Some(chosen) = file.or(directory) else {
        return;
    };
    let path = path_of(service, chosen, source);
    let from = origin(&service.place, &chosen.name, &chosen.place);
    service.tls.text("crl", &path, from);
    if let (Some(_), Some(directory)) = (file, directory) {
        service.note(Note::blocking(
            &directory.place,
            &directory.name,
            "stunnel asks the lists of CRLfile and of CRLpath; crl is one of both",
            "put all lists into one file or directory",
        ));
    }
}

/// Sets the name that is sent and the name that is verified; whether the source checks any.
fn names(service: &mut DraftService, options: &[Directive]) -> bool {
    let hosts = all(options, "checkhost");
    let addresses = all(options, "checkip");
    let sni = last(options, "sni");
    let from = |service: &DraftService, option: &Directive| {
        origin(&service.place, &option.name, &option.place)
    };

    if let Some(sni) = sni.filter(|sni| sni.value.is_empty()) {
        let from = from(service, sni);
        service.tls.set("sni", "false", from);
    }
    let sni = sni.filter(|sni| !sni.value.is_empty());
    match (&*hosts, sni) {
        ([], _) => {}
        ([host], None) => {
            let from = from(service, host);
            service.tls.text("server_name", &host.value, from);
        }
        ([host], Some(sni)) if host.value.eq_ignore_ascii_case(&sni.value) => {
            let from = from(service, host);
            service.tls.text("server_name", &host.value, from);
        }
        (many, sni) => {
            // One name is sent and another, or any of several, is looked for.
            let names: Vec<&str> = many.iter().map(|option| &*option.value).collect();
            let (list_from, first) = (from(service, many[0]), &many[0]);
            if let Some(sni) = sni {
                let from = from(service, sni);
                service.tls.text("server_name", &sni.value, from);
            }
            service
                .tls
                .text("verify", "chain", "and one of allowed_names");
            service.tls.list("allowed_names", &names, list_from);
            service.note(Note::new(
                Kind::Explained,
                &first.place,
                &first.name,
                "any of these names will do, whatever name is sent",
                "verify = \"chain\" with allowed_names; a wildcard in the certificate counts only where allowed_names has the same one",
            ));
        }
    }
    match (&*addresses, hosts.is_empty()) {
        ([], _) => {}
        ([address], true) if sni.is_none() => {
            let from = from(service, address);
            service.tls.text("server_name", &address.value, from);
        }
        ([address, ..], _) => service.note(Note::blocking(
            &address.place,
            &address.name,
            "is one of several names that stunnel takes; tlsward looks for one address, or for DNS names and URIs",
            "write the one name that the certificate must be valid for into server_name",
        )),
    }
    if let (true, true, Some(sni)) = (hosts.is_empty(), addresses.is_empty(), sni) {
        let from = from(service, sni);
        service.tls.text("server_name", &sni.value, from);
    }
    !hosts.is_empty() || !addresses.is_empty()
}

fn identity(service: &mut DraftService, options: &[Directive], source: &Source) {
    let Some(cert) = last(options, "cert").filter(|it| !it.value.is_empty()) else {
        service
            .tls
            .set("client_auth", "false", "stunnel presents no certificate");
        return;
    };
    if is_pkcs12(&cert.value) {
        service.note(Note::blocking(
            &cert.place,
            &cert.name,
            "is a PKCS#12 file, and tlsward reads PEM",
            "openssl pkcs12 -in FILE -nodes -out bundle.pem, and write bundle = \"…/bundle.pem\"",
        ));
        return;
    }
    let cert_path = path_of(service, cert, source);
    let cert_from = origin(&service.place, &cert.name, &cert.place);
    let key = last(options, "key").filter(|it| !it.value.is_empty());
    let key_path = key.map(|key| path_of(service, key, source));
    let key_from = key.map(|key| origin(&service.place, &key.name, &key.place));
    let key = key_path.as_deref().zip(key_from);
    openssl::pair(&mut service.tls, (&cert_path, cert_from), key);
}

fn is_pkcs12(file: &str) -> bool {
    let file = file.to_ascii_lowercase();
    file.ends_with(".p12") || file.ends_with(".pfx")
}

/// The file that an option names. Where it is relative nobody knows from where.
fn path_of(service: &mut DraftService, option: &Directive, source: &Source) -> String {
    if Path::new(&option.value).is_absolute() {
        return option.value.clone();
    }
    let path = source.directory().join(&option.value);
    service.note(Note::new(
        Kind::Decide,
        &option.place,
        &option.name,
        format!(
            "{:?} counts from the directory that stunnel was started in",
            option.value
        ),
        format!(
            "taken as {}; mend it if that is another file",
            path.display()
        ),
    ));
    path.display().to_string()
}

/// `sslVersion…` of a service.
fn version(option: &Directive, service: &mut DraftService) {
    if option.value.eq_ignore_ascii_case("all") {
        if option.key != "sslversionmax" {
            openssl::min_version(service, Version::Old, &option.name, &option.place);
        }
        return;
    }
    let Some(version) = Version::parse(&option.value) else {
        service.note(Note::blocking(
            &option.place,
            &option.name,
            "is not a version that is known here",
            "write min_version and max_version",
        ));
        return;
    };
    let (name, place) = (&option.name, &option.place);
    match &*option.key {
        "sslversionmin" => openssl::min_version(service, version, name, place),
        "sslversionmax" => openssl::max_version(service, version, name, place),
        _ => openssl::versions(service, version, version, name, place),
    }
}
