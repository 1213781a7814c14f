//! `server { … }` within `stream`.

use std::collections::BTreeMap;
use std::path::Path;

use super::lexer::Directive;
use super::{Paths, time, upstream, without_variables};
use crate::convert::address;
use crate::convert::draft::{Draft, DraftService, Kind, Note};
use crate::convert::openssl::{self, Version, origin};

/// The contents of `stream { … }`.
pub(super) struct Stream {
    /// What servers inherit, and what is about all of them.
    settings: Vec<Directive>,
    groups: BTreeMap<String, Directive>,
    servers: Vec<Directive>,
    paths: Paths,
}

impl Stream {
    pub(super) fn new(directives: Vec<Directive>, paths: Paths) -> Self {
        let mut stream = Self {
            settings: Vec::new(),
            groups: BTreeMap::new(),
            servers: Vec::new(),
            paths,
        };
        for directive in directives {
            match &*directive.name {
                "server" => stream.servers.push(directive),
                "upstream" => drop(
                    stream
                        .groups
                        .insert(directive.value().to_owned(), directive),
                ),
                _ => stream.settings.push(directive),
            }
        }
        stream
    }

    pub(super) fn convert(&self, draft: &mut Draft) {
        for setting in self.settings.iter().filter(|it| !is_inherited(&it.name)) {
            of_stream(setting, draft);
        }
        let mut used = Vec::new();
        for server in &self.servers {
            self.server(server, draft, &mut used);
        }
        for (name, group) in &self.groups {
            if !used.contains(name) {
                draft.note(Note::new(
                    Kind::Explained,
                    &group.place,
                    format!("upstream {name}"),
                    "is used by no server that is carried",
                    "it is left out",
                ));
            }
        }
    }

    /// One service for each `listen`.
    fn server(&self, server: &Directive, draft: &mut Draft, used: &mut Vec<String>) {
        let own = server.block.as_deref().unwrap_or_default();
        let effective = self.effective(own);
        let find = |name: &str| effective.iter().rev().find(|it| it.name == name).copied();
        let left =
            |was: &str, now: &str| Note::new(Kind::NotCarried, &server.place, "server", was, now);
        if own.iter().any(|it| it.name == "location") {
            draft.note(left(
                "is a server of HTTP",
                "leave it with nginx: tlsward works below HTTP",
            ));
            return;
        }
        let Some(pass) = find("proxy_pass") else {
            draft.note(left("passes nothing on", "leave it with nginx"));
            return;
        };
        if !find("proxy_ssl").is_some_and(Directive::is_on) {
            draft.note(left(
                "speaks no TLS to its upstream (proxy_ssl is off)",
                "leave it with nginx; if callers speak TLS themselves, they need no tlsward",
            ));
            return;
        }
        let base = self.service(server, pass, &effective, used);
        let listens: Vec<&Directive> = own.iter().filter(|it| it.name == "listen").collect();
        if listens.is_empty() {
            draft.note(left("listens nowhere", "remove it"));
        }
        for listen in listens {
            let mut service = base.clone();
            // The listener stands first.
            let rest = std::mem::take(&mut service.keys);
            let is_one = Self::listen(listen, &mut service, draft);
            service.keys.append(rest);
            if is_one {
                callers(&mut service, &effective);
                draft.services.push(service);
            }
        }
    }

    /// The server's own directives, and before them those that it inherits.
    fn effective<'d>(&'d self, own: &'d [Directive]) -> Vec<&'d Directive> {
        let says = |names: &[&str]| own.iter().any(|it| names.contains(&&*it.name));
        let inherited = self.settings.iter().filter(|setting| {
            let overridden = match &*setting.name {
                "allow" | "deny" => says(&["allow", "deny"]),
                name => says(&[name]),
            };
            is_inherited(&setting.name) && !overridden
        });
        inherited.chain(own).collect()
    }

    /// The service that it passes on to, but for the listener.
    fn service(
        &self,
        server: &Directive,
        pass: &Directive,
        effective: &[&Directive],
        used: &mut Vec<String>,
    ) -> DraftService {
        let mut constants = BTreeMap::new();
        for set in effective.iter().filter(|it| it.name == "set") {
            if let [name, value] = &*set.arguments
                && let (Some(name), Some(value)) =
                    (name.strip_prefix('$'), without_variables(value, &constants))
            {
                constants.insert(name.to_owned(), value);
            }
        }
        let target = without_variables(pass.value(), &constants);
        let name = match &target {
            Some(target) => target.rsplit_once(':').map_or(&**target, |(host, _)| host),
            None => "service",
        };
        let mut service = DraftService::new(name.trim_start_matches("unix:"), &server.place);
        let mut group = None;
        match &target {
            None => service.note(Note::blocking(
                &pass.place,
                "proxy_pass",
                "depends on variables that change from one connection to the next",
                "write upstream, and a service for each server",
            )),
            Some(target) => match self.groups.get(target) {
                Some(directive) => {
                    used.push(target.clone());
                    group = Some(target.as_str());
                    let from = origin(&service.place, "proxy_pass", &pass.place);
                    upstream::group(&mut service, directive, from);
                }
                None => {
                    let endpoint = upstream::endpoint(&mut service, target, pass, "proxy_pass");
                    if let Some(endpoint) = endpoint {
                        let from = origin(&service.place, "proxy_pass", &pass.place);
                        address::upstream(&mut service, &[endpoint], from);
                    }
                }
            },
        }
        self.times(&mut service, effective);
        self.tls(&mut service, effective, &constants, group);
        for directive in effective {
            of_server(directive, &mut service);
        }
        service
    }

    fn times(&self, service: &mut DraftService, effective: &[&Directive]) {
        for (name, ours, default) in [
            ("proxy_connect_timeout", "connect_timeout", "1m"),
            ("proxy_timeout", "idle_timeout", "10m"),
        ] {
            match effective.iter().rev().find(|it| it.name == name) {
                None => service
                    .keys
                    .text(ours, default, format!("nginx's default for {name}")),
                Some(directive) => match time(directive.value()) {
                    Some(time) if !time.is_zero() => {
                        address::limit(service, ours, time, name, &directive.place);
                    }
                    _ => service.note(Note::new(
                        Kind::NotCarried,
                        &directive.place,
                        name,
                        "is no time that tlsward takes",
                        format!("see whether the default of {ours} will do"),
                    )),
                },
            }
        }
    }

    fn tls(
        &self,
        service: &mut DraftService,
        effective: &[&Directive],
        constants: &BTreeMap<String, String>,
        group: Option<&str>,
    ) {
        let find = |name: &str| effective.iter().rev().find(|it| it.name == name).copied();
        let verify = find("proxy_ssl_verify");
        let verifies = verify.is_some_and(Directive::is_on);
        match find("proxy_ssl_trusted_certificate") {
            Some(ca) => {
                let path = self.path(service, ca);
                let from = origin(&service.place, &ca.name, &ca.place);
                service.tls.text("ca", &path, from);
            }
            None => openssl::no_ca(service, "proxy_ssl_trusted_certificate", "nginx"),
        }
        if !verifies {
            let place = verify.map_or_else(|| service.place.clone(), |it| it.place.clone());
            service.note(Note::new(
                Kind::Unsafe,
                &place,
                "proxy_ssl_verify",
                match verify {
                    Some(_) => "is off: any server is taken, whoever it is",
                    None => "is off, nginx's default: any server is taken, whoever it is",
                },
                "chain and name are verified; see with `tlsward probe` whether the server passes",
            ));
        }
        if let Some(crl) = find("proxy_ssl_crl") {
            let path = self.path(service, crl);
            let from = origin(&service.place, &crl.name, &crl.place);
            service.tls.text("crl", &path, from);
        }
        depth(service, find("proxy_ssl_verify_depth"), verifies);
        self.name(service, find("proxy_ssl_name"), constants, group, verifies);
        let sni = find("proxy_ssl_server_name");
        if !sni.is_some_and(Directive::is_on) {
            let from = sni.map_or_else(
                || "nginx's default; remove it if the server shows a wrong certificate".to_owned(),
                |sni| origin(&service.place, &sni.name, &sni.place),
            );
            service.tls.set("sni", "false", from);
        }
        self.identity(
            service,
            find("proxy_ssl_certificate"),
            find("proxy_ssl_certificate_key"),
        );
    }

    fn name(
        &self,
        service: &mut DraftService,
        name: Option<&Directive>,
        constants: &BTreeMap<String, String>,
        group: Option<&str>,
        verifies: bool,
    ) {
        match (name, group) {
            (Some(directive), _) => match without_variables(directive.value(), constants) {
                Some(name) => {
                    let from = origin(&service.place, &directive.name, &directive.place);
                    service.tls.text("server_name", &name, from);
                }
                None => service.note(Note::blocking(
                    &directive.place,
                    &directive.name,
                    "depends on variables that change from one connection to the next",
                    "write server_name, and a service for each name",
                )),
            },
            (None, Some(group)) if verifies => {
                service.tls.text(
                    "server_name",
                    group,
                    "nginx verifies the upstream's name where proxy_ssl_name is not set",
                );
            }
            (None, _) => {}
        }
    }

    fn identity(
        &self,
        service: &mut DraftService,
        cert: Option<&Directive>,
        key: Option<&Directive>,
    ) {
        let set = |it: Option<&Directive>| it.is_some_and(|it| !it.value().is_empty());
        let (Some(cert), true) = (cert, set(cert)) else {
            service
                .tls
                .set("client_auth", "false", "nginx presents no certificate");
            return;
        };
        for directive in [Some(cert), key].into_iter().flatten() {
            let value = directive.value();
            if value.contains('$') {
                service.note(Note::blocking(
                    &directive.place,
                    &directive.name,
                    "has variables in the name of the file",
                    "write cert and key; a renewed file is taken up without a variable",
                ));
            } else if value.starts_with("engine:") || value.starts_with("store:") {
                service.note(Note::blocking(
                    &directive.place,
                    &directive.name,
                    "takes the key from a hardware engine or provider",
                    "give the service a key in a file",
                ));
            }
        }
        let cert_path = self.path(service, cert);
        let cert_from = origin(&service.place, &cert.name, &cert.place);
        let (Some(key), true) = (key, set(key)) else {
            service.note(Note::blocking(
                &cert.place,
                "proxy_ssl_certificate_key",
                "is missing, and nginx needs it",
                "write key",
            ));
            return;
        };
        let key_path = self.path(service, key);
        let key_from = origin(&service.place, &key.name, &key.place);
        openssl::pair(
            &mut service.tls,
            (&cert_path, cert_from),
            Some((&key_path, key_from)),
        );
    }

    /// The file that a directive names.
    fn path(&self, service: &mut DraftService, directive: &Directive) -> String {
        let value = directive.value();
        let path = self.paths.base.join(value);
        if self.paths.is_part && !Path::new(value).is_absolute() {
            service.note(Note::new(
                Kind::Decide,
                &directive.place,
                &directive.name,
                format!("{value:?} counts from the directory of nginx.conf, which this file is only a part of"),
                format!("taken as {}; mend it if that is another file", path.display()),
            ));
        }
        path.display().to_string()
    }

    /// Sets the listener; `false` where the server listens for something else than TCP.
    fn listen(listen: &Directive, service: &mut DraftService, draft: &mut Draft) -> bool {
        let place = &listen.place;
        let parameters = listen.arguments.get(1..).unwrap_or_default();
        if parameters.iter().any(|it| it == "udp") {
            draft.note(Note::new(
                Kind::NotCarried,
                place,
                "listen",
                "takes datagrams (udp)",
                "leave it with nginx",
            ));
            return false;
        }
        Self::address(listen, service);
        for parameter in parameters {
            of_listen(parameter, listen, service);
        }
        true
    }

    fn address(listen: &Directive, service: &mut DraftService) {
        let place = &listen.place;
        let text = listen.value();
        if let Some(path) = text.strip_prefix("unix:") {
            return address::listen_unix(service, path, "listen", place);
        }
        // Without a port of its own, [::1] has colons all the same.
        let (host, port) = match text.ends_with(']') {
            true => (Some(text), ""),
            false => address::host_and_port(text),
        };
        match address::port(port) {
            Some(port) => {
                let host = host.filter(|host| *host != "*");
                address::listen_tcp(service, host, port, "listen", place, "nginx");
            }
            None => service.note(Note::blocking(
                place,
                "listen",
                match port.contains('-') {
                    true => format!(
                        "{text:?} is a range of ports; tlsward has one listener for each service"
                    ),
                    false => format!("{text:?} has no port that is known here"),
                },
                "write listen with an address and a port, and a service for each port",
            )),
        }
    }
}

/// Whether servers inherit it from `stream`.
fn is_inherited(name: &str) -> bool {
    name.starts_with("proxy_")
        || name.starts_with("limit_conn") && name != "limit_conn_zone"
        || matches!(
            name,
            "allow" | "deny" | "preread_buffer_size" | "preread_timeout" | "ssl_preread"
        )
}

/// A directive of `stream` that servers do not inherit.
fn of_stream(directive: &Directive, draft: &mut Draft) {
    let note =
        |kind, was: &str, now: &str| Note::new(kind, &directive.place, &directive.name, was, now);
    draft.note(match &*directive.name {
        "access_log" | "error_log" | "log_format" | "open_log_file_cache" => note(
            Kind::Explained,
            "is about nginx's log",
            "one line for each connection, on standard error or in the journal",
        ),
        "resolver" | "resolver_timeout" => note(
            Kind::Explained,
            "says whom nginx asks for names",
            "the system's resolver is asked, for each connection",
        ),
        "tcp_nodelay" => note(Kind::Explained, "is about small packets", "always on"),
        "map"
        | "geo"
        | "split_clients"
        | "map_hash_bucket_size"
        | "map_hash_max_size"
        | "variables_hash_bucket_size"
        | "variables_hash_max_size" => note(
            Kind::Explained,
            "makes variables",
            "where a server depends on one, its service is switched off",
        ),
        "limit_conn_zone" => note(
            Kind::Explained,
            "counts for limit_conn",
            "max_connections limits a service",
        ),
        "server_names_hash_bucket_size"
        | "server_names_hash_max_size"
        | "proxy_protocol_timeout" => note(
            Kind::Explained,
            "is about servers that take TLS",
            "tlsward takes plain TCP",
        ),
        name if name.starts_with("ssl_") => note(
            Kind::Explained,
            "is about servers that take TLS",
            "tlsward takes plain TCP",
        ),
        _ => note(
            Kind::NotCarried,
            "is not known here",
            "see in nginx's documentation what it does",
        ),
    });
}

fn depth(service: &mut DraftService, directive: Option<&Directive>, verifies: bool) {
    let from = |service: &DraftService, it: &Directive| origin(&service.place, &it.name, &it.place);
    match directive.map(|it| (it, it.value().parse::<u32>())) {
        None if verifies => {
            service
                .tls
                .set("verify_depth", "1", "nginx's default; tlsward's is 6");
        }
        None => {}
        Some((it, Ok(depth @ 0..=6))) => {
            let from = from(service, it);
            service.tls.set("verify_depth", depth.to_string(), from);
        }
        Some((it, Ok(_))) => service.note(Note::new(
            Kind::Explained,
            &it.place,
            &it.name,
            "allows more than 6 certificates between the server's and the CA's",
            "6 is the most that is supported",
        )),
        Some((it, Err(_))) => service.note(Note::blocking(
            &it.place,
            &it.name,
            "is not a number",
            "write verify_depth",
        )),
    }
}

/// `allow` and `deny`: the first that fits counts.
fn callers(service: &mut DraftService, effective: &[&Directive]) {
    let rules: Vec<&&Directive> = effective
        .iter()
        .filter(|it| matches!(&*it.name, "allow" | "deny"))
        .collect();
    let Some(first) = rules.first() else {
        return;
    };
    let ends_closed = rules
        .iter()
        .position(|it| it.name == "deny" && it.value() == "all");
    let before = &rules[..ends_closed.unwrap_or(rules.len())];
    let is_open = before
        .iter()
        .any(|it| it.name == "allow" && it.value() == "all");
    let denies = before.iter().any(|it| it.name == "deny");
    if denies || (is_open && ends_closed.is_none() && before.len() > 1) {
        service.note(Note::blocking(
            &first.place,
            &first.name,
            "rules that take some callers out of others cannot be written: allow_callers is a list of those who may",
            "write allow_callers",
        ));
        return;
    }
    if is_open || ends_closed.is_none() {
        service.note(Note::new(
            Kind::Explained,
            &first.place,
            &first.name,
            "keeps nobody away",
            "whoever reaches the listener may connect",
        ));
        return;
    }
    let networks: Vec<&str> = before
        .iter()
        .map(|it| it.value())
        .filter(|network| *network != "unix:")
        .collect();
    if networks.is_empty() || networks.len() < before.len() {
        service.note(Note::blocking(
            &first.place,
            &first.name,
            "lets in callers of unix sockets, or nobody",
            "write allow_callers",
        ));
        return;
    }
    let from = origin(&service.place, &first.name, &first.place);
    service.keys.drop_hints("allow_callers");
    service.keys.list("allow_callers", &networks, from);
}

/// A parameter of `listen`.
fn of_listen(parameter: &str, listen: &Directive, service: &mut DraftService) {
    let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
    let shown = format!("listen {name}");
    let place = &listen.place;
    let note = |kind, was: &str, now: &str| Note::new(kind, place, &shown, was, now);
    let off = |was: &str, now: &str| Note::blocking(place, &shown, was, now);
    match name {
        "ssl" => service.note(off(
            "callers speak TLS to nginx; tlsward takes plain TCP from them",
            "keep nginx in front (without proxy_ssl, and proxy_pass to the listener below), or let callers speak plain TCP on this machine",
        )),
        "proxy_protocol" => service.note(off(
            "callers begin with a PROXY header, which tlsward would pass on as data",
            "let callers connect without it",
        )),
        "so_keepalive" => {
            let idle = value.split(':').next().unwrap_or_default();
            match (value, time(idle)) {
                ("on" | "off", _) | (_, None) => service.note(note(
                    Kind::Explained,
                    "switches TCP keep-alive",
                    "keepalive, 3m unless said otherwise",
                )),
                (_, Some(idle)) => {
                    let from = origin(&service.place, &shown, place);
                    service.keys.text("keepalive", &address::duration(idle), from);
                }
            }
        }
        "ipv6only" if value == "off" => service.note(note(
            Kind::NotCarried,
            "takes IPv4 on the same socket",
            "add a service that listens on the IPv4 address",
        )),
        "bind" | "reuseport" | "backlog" | "rcvbuf" | "sndbuf" | "fastopen" | "deferred"
        | "setfib" | "accept_filter" | "default_server" | "ipv6only" => service.note(note(
            Kind::Explained,
            "is about the listening socket",
            "tlsward sets what it needs",
        )),
        _ => service.note(note(
            Kind::NotCarried,
            "is not known here",
            "see in nginx's documentation what it does",
        )),
    }
}

/// A directive of a server, its own or inherited.
fn of_server(directive: &Directive, service: &mut DraftService) {
    let value = directive.value();
    let name = &*directive.name;
    let place = &directive.place;
    let note = |kind, was: &str, now: &str| Note::new(kind, place, name, was, now);
    let explained = |was: &str, now: &str| note(Kind::Explained, was, now);
    let off = |was: &str, now: &str| Note::blocking(place, name, was, now);
    match name {
        // Read where the services are made.
        "listen" | "proxy_pass" | "proxy_ssl" | "proxy_ssl_verify" | "proxy_ssl_verify_depth"
        | "proxy_ssl_trusted_certificate" | "proxy_ssl_crl" | "proxy_ssl_name"
        | "proxy_ssl_server_name" | "proxy_ssl_certificate" | "proxy_ssl_certificate_key"
        | "proxy_connect_timeout" | "proxy_timeout" | "allow" | "deny" => {}
        "set" => service.note(explained("names a value", "it is put in where it is used")),
        "proxy_ssl_protocols" => versions(directive, service),
        "proxy_ssl_ciphers" => openssl::ciphers(service, value, name, place),
        "proxy_ssl_conf_command" => {
            let second = directive.arguments.get(1).map_or("", String::as_str);
            openssl::conf_command(service, value, second, name, place);
        }
        "proxy_ssl_session_reuse" => {
            if value == "off" {
                let from = origin(&service.place, name, place);
                service.tls.set("resumption", "false", from);
            }
        }
        "proxy_ssl_alpn" => {
            let from = origin(&service.place, name, place);
            service.tls.list("alpn", &directive.arguments, from);
            service.note(explained("offers protocols", "the server must choose one of alpn"));
        }
        "proxy_ssl_password_file" => service.note(off(
            "unlocks an encrypted key, and tlsward takes keys that are not encrypted",
            "openssl pkey -in KEY -out PLAIN, in a file that only tlsward's user can read, or as a systemd credential",
        )),
        "proxy_ssl_certificate_cache" => service.note(explained(
            "keeps certificates of variable names",
            "certificates are read once and when they change",
        )),
        "proxy_ssl_key_log" => service.note(note(
            Kind::NotCarried,
            "writes the keys of sessions into a file",
            "tlsward never does",
        )),
        "proxy_protocol" if value == "on" => service.note(off(
            "sends a PROXY header to the server, which tlsward does not",
            "let the server take connections without it",
        )),
        "proxy_protocol" => {}
        "proxy_bind" if value != "off" => service.note(note(
            Kind::NotCarried,
            "binds connections to the server to an address of this machine",
            "tlsward lets the kernel choose it; set a source address on the route",
        )),
        "proxy_download_rate" | "proxy_upload_rate" if value != "0" => service.note(note(
            Kind::NotCarried,
            "limits the rate of a connection",
            "nothing limits it here; shape traffic in the kernel, if you must",
        )),
        "proxy_next_upstream" if value == "off" => service.note(note(
            Kind::NotCarried,
            "keeps a connection from being tried at the next server",
            "tlsward tries the next where one does not answer; name only one upstream to keep it from that",
        )),
        "proxy_next_upstream_tries" | "proxy_next_upstream_timeout" if value != "0" => {
            service.note(note(
                Kind::NotCarried,
                "limits how often or how long the next server is tried",
                "connect_timeout covers all tries together",
            ));
        }
        "proxy_half_close" => service.note(explained(
            "says whether each direction ends by itself",
            "always",
        )),
        "proxy_bind" | "proxy_download_rate" | "proxy_upload_rate" | "proxy_next_upstream"
        | "proxy_next_upstream_tries" | "proxy_next_upstream_timeout" => {
            service.note(explained("says what is nginx's default", "nothing to do"));
        }
        "proxy_buffer_size" | "proxy_requests" | "proxy_responses" | "proxy_session_drop"
        | "proxy_socket_keepalive" | "proxy_socket_rcvbuf" | "proxy_socket_sndbuf"
        | "proxy_bind_dynamic" | "proxy_protocol_timeout" | "preread_buffer_size"
        | "preread_timeout" | "tcp_nodelay" | "resolver" | "resolver_timeout" | "access_log"
        | "error_log" | "status_zone" | "server_name" => {
            service.note(explained("is about nginx's own ways", "tlsward has its own"));
        }
        "ssl_preread" => service.note(explained(
            "looks into the first bytes for variables",
            "where the service depends on one, it is switched off",
        )),
        "limit_conn" | "limit_conn_log_level" | "limit_conn_dry_run" => service.note(note(
            Kind::NotCarried,
            "limits connections by a key, for example each caller's address",
            "max_connections limits those of the service",
        )),
        "health_check" | "health_check_timeout" => service.note(note(
            Kind::NotCarried,
            "asks servers whether they are well",
            "each connection tries the next where one does not answer",
        )),
        name if name.starts_with("ssl_") => {
            service.note(explained("is about callers that speak TLS", "tlsward takes plain TCP"));
        }
        _ => service.note(off(
            "is not a directive that is known here",
            "see in nginx's documentation what it does; then remove it, or write the service by hand",
        )),
    }
}

fn versions(directive: &Directive, service: &mut DraftService) {
    let (name, place) = (&*directive.name, &directive.place);
    let versions: Vec<Version> = directive
        .arguments
        .iter()
        .filter_map(|it| Version::parse(it))
        .collect();
    if let (Some(min), Some(max)) = (versions.iter().min(), versions.iter().max()) {
        openssl::versions(service, *min, *max, name, place);
    } else {
        service.note(Note::blocking(
            place,
            name,
            "names no version that is known here",
            "write min_version and max_version",
        ));
    }
}
