//! Addresses and times as the products write them.

use std::net::IpAddr;
use std::time::Duration;

use super::draft::{DraftService, Kind, Note};
use super::openssl::origin;
use super::sources::Place;

/// Sets `listen` to a TCP address.
///
/// `host` is what stands before the port: an address, `localhost`, or nothing, which is every
/// address of the machine to the products. Others than loopback are carried where they are written;
/// what is every address by default is not.
pub(super) fn listen_tcp(
    service: &mut DraftService,
    host: Option<&str>,
    port: u16,
    directive: &str,
    place: &Place,
    product: &str,
) {
    let from = origin(&service.place, directive, place);
    let Some(host) = host else {
        service
            .keys
            .text("listen", &format!("127.0.0.1:{port}"), from);
        service
            .keys
            .remark("To take callers of other machines too:");
        service.keys.hint(format!("listen = \"0.0.0.0:{port}\""));
        service.keys.hint("allow_remote_callers = true");
        service.keys.hint("allow_callers = [\"192.0.2.0/24\"]");
        service.note(Note::new(
            Kind::Decide,
            place,
            directive,
            format!("without an address, {product} listens on every address of the machine, in the clear"),
            format!("callers of this machine reach 127.0.0.1:{port}; for others switch on the lines below listen, and say who may"),
        ));
        return;
    };
    if host.eq_ignore_ascii_case("localhost") {
        service
            .keys
            .text("listen", &format!("localhost:{port}"), from);
        return;
    }
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let Ok(address) = bare.parse::<IpAddr>() else {
        service.note(Note::blocking(
            place,
            directive,
            format!("{host:?} is a name, which {product} looks up at its start"),
            "write listen with an address of this machine",
        ));
        return;
    };
    let listen = std::net::SocketAddr::new(address, port).to_string();
    service.keys.text("listen", &listen, from);
    if !address.to_canonical().is_loopback() {
        service.keys.set("allow_remote_callers", "true", "");
        service.keys.hint("allow_callers = [\"192.0.2.0/24\"]");
        service.note(Note::new(
            Kind::Unsafe,
            place,
            directive,
            format!("whoever can reach {listen} speaks to the server in the clear, with this service's certificate"),
            "carried as it is, with allow_remote_callers = true; restrict it with allow_callers",
        ));
    }
}

/// Sets `listen` to a unix socket.
pub(super) fn listen_unix(service: &mut DraftService, path: &str, directive: &str, place: &Place) {
    let from = origin(&service.place, directive, place);
    service.keys.text("listen", &format!("unix:{path}"), from);
    service
        .keys
        .remark("Who may connect: ?mode=0660 behind the path, and");
    service.keys.hint("allow_callers = [\"uid:1000\"]");
}

/// `host:port`, `[v6]:port` or `port`: host and port as they are written.
pub(super) fn host_and_port(text: &str) -> (Option<&str>, &str) {
    match text.rsplit_once(':') {
        Some((host, port)) => (Some(host), port),
        None => (None, text),
    }
}

/// A port by its number, or by a name from /etc/services that tunnels are made for.
pub(super) fn port(text: &str) -> Option<u16> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().ok().filter(|port| *port != 0);
    }
    let port = match &*text.to_ascii_lowercase() {
        "smtp" => 25,
        "http" => 80,
        "pop3" => 110,
        "nntp" => 119,
        "imap" | "imap2" => 143,
        "ldap" => 389,
        "https" => 443,
        "submissions" | "smtps" | "ssmtp" => 465,
        "nntps" => 563,
        "ldaps" => 636,
        "domain-s" => 853,
        "rsync" => 873,
        "ftps" => 990,
        "telnets" => 992,
        "imaps" => 993,
        "pop3s" => 995,
        "mysql" => 3306,
        "postgresql" => 5432,
        "amqps" => 5671,
        "redis" => 6379,
        "ircs-u" => 6697,
        "syslog-tls" => 6514,
        "secure-mqtt" => 8883,
        _ => return None,
    };
    Some(port)
}

/// `host:port` for `upstream`, with brackets where the host is an IPv6 address.
pub(super) fn endpoint(host: &str, port: u16) -> String {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    match bare.parse::<IpAddr>() {
        Ok(address) => std::net::SocketAddr::new(address, port).to_string(),
        Err(_) => format!("{}:{port}", host.trim_end_matches('.')),
    }
}

/// Sets `upstream`; of several the first is tried first.
pub(super) fn upstream(service: &mut DraftService, endpoints: &[String], from: String) {
    match endpoints {
        [one] => service.keys.text("upstream", one, from),
        many => service.keys.list("upstream", many, from),
    }
}

/// A duration as the configuration writes it.
pub(super) fn duration(duration: Duration) -> String {
    let mut millis = duration.as_millis();
    if millis == 0 {
        return "0s".to_owned();
    }
    let mut text = String::new();
    for (unit, length) in [
        ("d", 86_400_000),
        ("h", 3_600_000),
        ("m", 60_000),
        ("s", 1000),
        ("ms", 1),
    ] {
        let count = millis / length;
        if count > 0 {
            text.push_str(&format!("{count}{unit}"));
        }
        millis %= length;
    }
    text
}

/// The longest duration that the configuration takes.
pub(super) const LONGEST: Duration = Duration::from_secs(365 * 86_400);

/// A time limit for `key`; none where it is longer than what can be said.
pub(super) fn limit(
    service: &mut DraftService,
    key: &'static str,
    time: Duration,
    directive: &str,
    place: &Place,
) {
    if time > LONGEST {
        service.note(Note::new(
            Kind::NotCarried,
            place,
            directive,
            "is longer than the 365 days that tlsward takes",
            format!("see whether the default of {key} will do"),
        ));
        return;
    }
    let from = origin(&service.place, directive, place);
    service.keys.text(key, &duration(time), from);
}
