//! `upstream NAME { … }`: the servers behind a name.

use super::lexer::Directive;
use crate::convert::address;
use crate::convert::draft::{DraftService, Kind, Note};

/// Sets `upstream` to the servers of a group, backups last.
pub(super) fn group(service: &mut DraftService, group: &Directive, from: String) {
    let (mut servers, mut backups) = (Vec::new(), Vec::new());
    let mut max_conns = Vec::new();
    for directive in group.block.as_deref().unwrap_or_default() {
        if directive.name == "server" {
            let Some(endpoint) = server(service, directive, &mut max_conns) else {
                continue;
            };
            match directive.arguments.iter().any(|it| it == "backup") {
                true => backups.push(endpoint),
                false => servers.push(endpoint),
            }
        } else {
            of_group(service, directive);
        }
    }
    if servers.len() > 1 {
        service.note(Note::new(
            Kind::NotCarried,
            &group.place,
            format!("upstream {}", group.value()),
            "spreads connections over its servers",
            "tlsward tries them in the order of upstream, the first first; to spread them, name one host that resolves to all",
        ));
    }
    servers.append(&mut backups);
    match (&*max_conns, &*servers) {
        ([(limit, directive)], [_]) => {
            let place = &directive.place;
            let from = crate::convert::openssl::origin(&service.place, "max_conns", place);
            service.keys.set("max_connections", limit.to_string(), from);
        }
        (limits, _) => {
            for (_, directive) in limits {
                service.note(Note::new(
                    Kind::NotCarried,
                    &directive.place,
                    "max_conns",
                    "limits the connections to one of several servers",
                    "max_connections limits those of the service",
                ));
            }
        }
    }
    if servers.is_empty() {
        service.note(Note::blocking(
            &group.place,
            format!("upstream {}", group.value()),
            "has no server that could be written",
            "write upstream",
        ));
    } else {
        address::upstream(service, &servers, from);
    }
}

/// One server of a group, with its parameters; `None` where it cannot be an upstream, or is down.
fn server<'d>(
    service: &mut DraftService,
    directive: &'d Directive,
    max_conns: &mut Vec<(u32, &'d Directive)>,
) -> Option<String> {
    let place = &directive.place;
    let note = |kind, name: &str, was: &str, now: &str| Note::new(kind, place, name, was, now);
    for parameter in directive.arguments.iter().skip(1) {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        match name {
            "backup" | "down" => {}
            "weight" if value == "1" => {}
            "weight" => service.note(note(
                Kind::NotCarried,
                "weight",
                "gives the server more connections than others",
                "tlsward tries the servers in the order of upstream",
            )),
            "max_fails" | "fail_timeout" | "slow_start" => service.note(note(
                Kind::Explained,
                name,
                "says when a server that fails is left alone",
                "each connection tries the next where one does not answer",
            )),
            "resolve" => service.note(note(
                Kind::Explained,
                name,
                "looks the name up again while nginx runs",
                "names are looked up for each connection",
            )),
            "max_conns" => match value.parse() {
                Ok(0) => {}
                Ok(limit) => max_conns.push((limit, directive)),
                Err(_) => service.note(note(
                    Kind::NotCarried,
                    name,
                    "is not a number",
                    "write max_connections",
                )),
            },
            "service" => service.note(Note::blocking(
                place,
                name,
                "finds servers by SRV records, which tlsward does not look up",
                "write upstream with host and port",
            )),
            _ => service.note(note(
                Kind::NotCarried,
                name,
                "is a parameter that is not known here",
                "see in nginx's documentation what it does",
            )),
        }
    }
    if directive.arguments.iter().any(|it| it == "down") {
        service.note(note(
            Kind::Explained,
            "down",
            "switches the server off",
            "it is left out",
        ));
        return None;
    }
    endpoint(service, directive.value(), directive, "server")
}

/// `host:port` for `upstream`, or a note that says why not.
pub(super) fn endpoint(
    service: &mut DraftService,
    text: &str,
    directive: &Directive,
    name: &str,
) -> Option<String> {
    if text.starts_with("unix:") {
        service.note(Note::blocking(
            &directive.place,
            name,
            "is a unix socket; tlsward reaches its upstreams over TCP",
            "let the server listen on TCP, and write upstream",
        ));
        return None;
    }
    let (host, port) = address::host_and_port(text);
    match (host, address::port(port)) {
        (Some(host), Some(port)) if !host.is_empty() => Some(address::endpoint(host, port)),
        _ => {
            service.note(Note::blocking(
                &directive.place,
                name,
                format!("{text:?} is not host:port"),
                "write upstream",
            ));
            None
        }
    }
}

/// Another directive of a group.
fn of_group(service: &mut DraftService, directive: &Directive) {
    let note =
        |kind, was: &str, now: &str| Note::new(kind, &directive.place, &directive.name, was, now);
    service.note(match &*directive.name {
        "hash" | "least_conn" | "least_time" | "random" => note(
            Kind::NotCarried,
            "says which server gets a connection",
            "tlsward tries them in the order of upstream",
        ),
        "zone" | "state" => note(
            Kind::Explained,
            "shares what is known of the group between nginx's processes",
            "there is one process",
        ),
        "resolver" | "resolver_timeout" => note(
            Kind::Explained,
            "says whom nginx asks for names",
            "the system's resolver is asked, for each connection",
        ),
        _ => note(
            Kind::NotCarried,
            "is not known here",
            "see in nginx's documentation what it does",
        ),
    });
}
