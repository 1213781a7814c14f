//! What each option of stunnel means here, but for those that the services are made of.

use super::{Directive, is_yes, version};
use crate::convert::draft::{Draft, DraftService, Kind, Note};
use crate::convert::openssl::{self, origin};

/// Options that may stand several times in a section, each adding to the others.
pub(super) const ADD_UP: [&str; 10] = [
    "caengine",
    "checkemail",
    "checkhost",
    "checkip",
    "config",
    "connect",
    "ocspflag",
    "options",
    "protocolheader",
    "socket",
];

/// Options of the program as a whole, and why tlsward needs none of them.
const GLOBAL: [(&str, &str); 24] = [
    (
        "chroot",
        "the sandbox of `tlsward run` holds the process to the files that it needs",
    ),
    ("compression", "TLS compression is never used"),
    ("egd", "random numbers come from the kernel"),
    ("enginectrl", "hardware engines are not supported"),
    ("enginedefault", "hardware engines are not supported"),
    ("fips", "see below"),
    ("foreground", "tlsward stays in the foreground, for systemd"),
    ("iconactive", "tlsward has no window"),
    ("iconerror", "tlsward has no window"),
    ("iconidle", "tlsward has no window"),
    ("log", "the log goes to standard error or the journal"),
    ("output", "the log goes to standard error or the journal"),
    ("pid", "systemd knows the process; there is no PID file"),
    ("rndbytes", "random numbers come from the kernel"),
    ("rndfile", "random numbers come from the kernel"),
    ("rndoverwrite", "random numbers come from the kernel"),
    (
        "service",
        "names the program in syslog; the journal knows the unit",
    ),
    (
        "setgid",
        "systemd runs it as the user and group of the unit",
    ),
    (
        "setuid",
        "systemd runs it as the user and group of the unit",
    ),
    ("stack", "there is no thread for each connection"),
    ("syslog", "the log goes to standard error or the journal"),
    ("taskbar", "tlsward has no window"),
    ("debug", "the log's filter is log.filter"),
    ("engine", "hardware engines are not supported"),
];

/// Whether an option above the first section is about the program, and no default of services.
/// (`debug` is both; here it changes only the log.)
pub(super) fn is_global(key: &str) -> bool {
    GLOBAL.iter().any(|(name, _)| *name == key)
}

/// An option above the first section.
pub(super) fn global(option: &Directive, draft: &mut Draft) {
    let Some((_, why)) = GLOBAL.iter().find(|(name, _)| *name == option.key) else {
        return;
    };
    let note = |kind, was: &str, now: &str| Note::new(kind, &option.place, &option.name, was, now);
    draft.note(match &*option.key {
        "fips" if is_yes(&option.value) => note(
            Kind::NotCarried,
            "asks for OpenSSL's FIPS mode",
            "tlsward's cryptography is aws-lc; it has no FIPS mode here",
        ),
        "fips" => note(Kind::Explained, "is off", "tlsward has no FIPS mode"),
        "engine" | "enginectrl" | "enginedefault" => note(
            Kind::NotCarried,
            "makes OpenSSL use a hardware engine",
            "sections that take their key from it are switched off; give them a key in a file",
        ),
        "chroot" => note(
            Kind::Decide,
            "CApath, CRLpath, pid and exec count from that directory",
            "mend the paths of ca and crl below, if they are directories",
        ),
        "compression" => note(
            Kind::Unsafe,
            "switches TLS compression on, which leaks (CRIME)",
            why,
        ),
        _ => note(Kind::Explained, "is about stunnel's own process", why),
    });
}

/// An option of a service, or a default of all.
pub(super) fn of_service(option: &Directive, service: &mut DraftService) {
    let value = &*option.value;
    let from = origin(&service.place, &option.name, &option.place);
    let note = |kind, was: &str, now: &str| Note::new(kind, &option.place, &option.name, was, now);
    let off = |was: &str, now: &str| Note::blocking(&option.place, &option.name, was, now);
    let explained = |was: &str, now: &str| note(Kind::Explained, was, now);
    match &*option.key {
        // Read where the services are made.
        "client" | "accept" | "connect" | "cafile" | "capath" | "crlfile" | "crlpath"
        | "checkhost" | "checkip" | "cert" | "key" | "sni" | "timeoutconnect" | "timeoutidle"
        | "timeoutclose" | "verifychain" | "verifypeer" | "failover" => {}
        "verify" => {
            if !matches!(value, "0" | "1" | "2" | "3" | "4") {
                service.note(off("is no level that is known here", "chain and name are verified; check the rest by hand"));
            }
        }
        "sslversion" | "sslversionmin" | "sslversionmax" => version(option, service),
        "ciphers" | "ciphersuites" => openssl::ciphers(service, value, &option.name, &option.place),
        "curves" | "curve" => openssl::groups(service, value, &option.name, &option.place),
        "config" => {
            let (name, value) = value.split_once(':').unwrap_or((value, ""));
            openssl::conf_command(service, name, value, &option.name, &option.place);
        }
        "options" => library(option, service),
        "socket" => socket(option, service),
        "sessionresume" => {
            if !is_yes(value) {
                service.tls.set("resumption", "false", from);
            }
        }
        "protocol" => service.note(off(
            "speaks another protocol before TLS (STARTTLS, or a proxy's), which tlsward does not",
            "reach the server where it speaks TLS from the first byte, or leave this section with stunnel",
        )),
        "protocolauthentication" | "protocoldomain" | "protocolheader" | "protocolhost"
        | "protocolpassword" | "protocolusername" => {
            service.note(off("belongs to protocol", "see protocol"));
        }
        "psksecrets" | "pskidentity" => service.note(off(
            "authenticates both sides by a shared secret, which tlsward does not",
            "give both sides certificates",
        )),
        "engineid" | "enginenum" | "caengine" => service.note(off(
            "takes keys or certificates from a hardware engine",
            "give the service files: cert, key, ca",
        )),
        "exec" | "execargs" | "pty" => service.note(off(
            "runs a program for each connection",
            "let the program listen on TCP or on a unix socket",
        )),
        "ocsp" | "ocspaia" if is_yes(value) || option.key == "ocsp" => service.note(off(
            "asks an OCSP server whether the certificate is revoked, which tlsward does not",
            "give it revocation lists (crl), or decide to do without",
        )),
        "ocsprequire" if is_yes(value) => service.note(off(
            "refuses servers of which OCSP says nothing",
            "give it revocation lists (crl), or decide to do without",
        )),
        "ocspaia" | "ocspflag" | "ocspnonce" | "ocsprequire" | "timeoutocsp" => {
            service.note(explained("is about OCSP", "tlsward asks no OCSP server"));
        }
        "checkemail" => service.note(off(
            "looks for an email address in the server's certificate, which tlsward does not",
            "write the name that the certificate must be valid for into server_name",
        )),
        "libwrap" if is_yes(value) => service.note(off(
            "lets /etc/hosts.allow and hosts.deny say who may connect",
            "write those networks into allow_callers",
        )),
        "libwrap" => service.note(explained("is off", "allow_callers says who may connect")),
        "ident" => service.note(off(
            "asks the caller's machine for its user",
            "use a unix listener with allow_callers = [\"uid:…\"]",
        )),
        "transparent" if value.eq_ignore_ascii_case("none") => {
            service.note(explained("is off", "tlsward connects from its own address"));
        }
        "transparent" => service.note(off(
            "takes the caller's address or destination for its own",
            "tlsward connects from its own address, to upstream",
        )),
        "local" => service.note(note(
            Kind::NotCarried,
            "binds connections to the server to an address of this machine",
            "tlsward lets the kernel choose it; set a source address on the route",
        )),
        "securitylevel" => match value.parse::<u8>() {
            Ok(0 | 1) => service.note(note(
                Kind::Unsafe,
                "allows keys and algorithms that are too weak",
                "tlsward has none of them",
            )),
            Ok(2) => service.note(explained("is OpenSSL's default", "tlsward's algorithms are those of aws-lc")),
            _ => service.note(off(
                "refuses keys that tlsward would take",
                "decide whether the server's key is good enough, or pin it (pins)",
            )),
        },
        "delay" => service.note(explained("says when names are looked up", "for each connection, always")),
        "renegotiation" => service.note(explained("is about renegotiation", "there is none")),
        "reset" => service.note(explained("says whether errors reach callers as a reset", "always")),
        "retry" => service.note(explained("is for sections with exec", "there are none")),
        "timeoutbusy" => service.note(explained(
            "limits the wait for expected data",
            "connect_timeout covers look-up, TCP and TLS; idle_timeout the rest",
        )),
        "logid" | "debug" => service.note(explained("is about stunnel's log", "log.filter, and one line for each connection")),
        "sessioncachesize" | "sessioncachetimeout" => {
            service.note(explained("is about stunnel's cache of sessions", "tlsward keeps a few for each server, an hour at most"));
        }
        "sessiond" | "ticketkeysecret" | "ticketmacsecret" | "requirecert" | "redirect" | "dh" => {
            service.note(explained("is for servers", "this service is a client"));
        }
        "setuid" | "setgid" => service.note(note(
            Kind::NotCarried,
            "owns the unix socket of accept",
            "the socket belongs to tlsward's user; open it with ?mode=0660 and allow_callers",
        )),
        "stack" | "service" => service.note(explained("is about stunnel's own process", "nothing")),
        _ => service.note(off(
            "is not an option that is known here",
            "see in stunnel's manual what it does; then remove it from the file, or write the service by hand",
        )),
    }
}

/// `options = NAME`: an option of OpenSSL.
fn library(option: &Directive, service: &mut DraftService) {
    let shown = format!("{} {}", option.name, option.value);
    let from = origin(&service.place, &shown, &option.place);
    let place = &option.place;
    let note = |kind, was: &str, now: &str| Note::new(kind, place, &shown, was, now);
    let name = option.value.to_ascii_uppercase();
    match &*name {
        "NO_TLSV1.3" | "NO_TLSV1_3" => service.tls.text("max_version", "1.2", from),
        "NO_TLSV1.2" | "NO_TLSV1_2" => service.tls.text("min_version", "1.3", from),
        "NO_SSLV2" | "NO_SSLV3" | "NO_TLSV1" | "NO_TLSV1.1" | "NO_TLSV1_1" => {
            service.note(note(
                Kind::Explained,
                "switches an old version off",
                "TLS 1.2 is the lowest",
            ));
        }
        "-NO_SSLV2" | "-NO_SSLV3" | "-NO_TLSV1" | "-NO_TLSV1.1" | "-NO_TLSV1_1" => {
            service.note(note(
                Kind::Unsafe,
                "switches an old version on",
                "TLS 1.2 is the lowest",
            ));
        }
        "IGNORE_UNEXPECTED_EOF" => {
            service.keys.text("unclean_close", "fin", from);
            service.note(note(
                Kind::Unsafe,
                "takes an end without close_notify for a clean one, so a cut stream passes for a whole one",
                "carried as unclean_close = \"fin\"; remove it if the server sends close_notify",
            ));
        }
        "ALLOW_UNSAFE_LEGACY_RENEGOTIATION" | "LEGACY_SERVER_CONNECT" => service.note(note(
            Kind::Unsafe,
            "takes servers without secure renegotiation (RFC 5746)",
            "there is no renegotiation",
        )),
        "ALL"
        | "CIPHER_SERVER_PREFERENCE"
        | "COOKIE_EXCHANGE"
        | "DONT_INSERT_EMPTY_FRAGMENTS"
        | "NO_COMPRESSION"
        | "NO_RENEGOTIATION"
        | "NO_TICKET"
        | "SINGLE_DH_USE"
        | "SINGLE_ECDH_USE"
        | "NO_ENCRYPT_THEN_MAC"
        | "NO_SESSION_RESUMPTION_ON_RENEGOTIATION"
        | "PRIORITIZE_CHACHA"
        | "ENABLE_MIDDLEBOX_COMPAT"
        | "NO_ANTI_REPLAY"
        | "-NO_TICKET"
        | "-ALL"
        | "ENABLE_KTLS" => {
            service.note(note(
                Kind::Explained,
                "is about OpenSSL's own ways",
                "tlsward does not use OpenSSL",
            ));
        }
        _ => service.note(note(
            Kind::NotCarried,
            "is an option of OpenSSL that tlsward does not have",
            "see in SSL_CTX_set_options(3) what it does",
        )),
    }
}

/// `socket = a|l|r:OPTION=VALUE`.
fn socket(option: &Directive, service: &mut DraftService) {
    let shown = format!("{} {}", option.name, option.value);
    let place = &option.place;
    let (name, value) = option.value.split_once('=').unwrap_or((&option.value, ""));
    let name = name
        .split_once(':')
        .map_or(name, |(_, name)| name)
        .trim()
        .to_ascii_uppercase();
    match &*name {
        "SO_BINDTODEVICE" => service.note(Note::blocking(
            place,
            shown,
            "binds the socket to a network interface",
            "listen on an address of that interface, and say in allow_callers who may connect",
        )),
        "TCP_KEEPIDLE" => match value.trim().parse::<u16>() {
            Ok(seconds @ 1..=32767) => {
                let from = origin(&service.place, &shown, place);
                service.keys.text("keepalive", &format!("{seconds}s"), from);
            }
            _ => service.note(Note::new(
                Kind::NotCarried,
                place,
                shown,
                "is not a number of seconds that the system takes",
                "see whether the default of keepalive, 3m, will do",
            )),
        },
        "SO_KEEPALIVE" | "TCP_NODELAY" | "SO_REUSEADDR" | "SO_LINGER" | "SO_OOBINLINE"
        | "TCP_KEEPINTVL" | "TCP_KEEPCNT" | "SO_SNDTIMEO" | "SO_RCVTIMEO" => service.note(Note::new(
            Kind::Explained,
            place,
            shown,
            "is an option of the socket",
            "tlsward sets what it needs: no delay, keep-alive after keepalive, a reset unless the end was clean",
        )),
        _ => service.note(Note::new(
            Kind::NotCarried,
            place,
            shown,
            "is an option of the socket that tlsward does not set",
            "see in socket(7) and tcp(7) whether the kernel's default will do",
        )),
    }
}
