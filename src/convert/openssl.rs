//! Settings of OpenSSL that several products pass on: versions, groups, `SSL_CONF_cmd`.

use super::draft::{DraftService, Keys, Kind, Note};
use super::sources::Place;

/// A protocol version, as far as tlsward tells them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Version {
    /// SSL, TLS 1.0 and 1.1.
    Old,
    Tls12,
    Tls13,
}

impl Version {
    /// Reads `TLSv1.2`, and `TLS1.2` as Go writes it.
    pub(super) fn parse(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase();
        let number = name
            .strip_prefix("tlsv")
            .or_else(|| name.strip_prefix("tls"));
        match number {
            Some("1.2") => Some(Self::Tls12),
            Some("1.3") => Some(Self::Tls13),
            Some("1" | "1.0" | "1.1") => Some(Self::Old),
            _ if ["sslv2", "sslv3"].contains(&&*name) => Some(Self::Old),
            _ => None,
        }
    }
}

/// Sets `min_version`; below 1.2 nothing is spoken.
pub(super) fn min_version(
    service: &mut DraftService,
    version: Version,
    directive: &str,
    place: &Place,
) {
    match version {
        Version::Tls13 => service.tls.text(
            "min_version",
            "1.3",
            origin(&service.place, directive, place),
        ),
        Version::Tls12 => {}
        Version::Old => service.note(Note::new(
            Kind::Unsafe,
            place,
            directive,
            "allows versions before TLS 1.2",
            "TLS 1.2 is the lowest; a server that speaks only older ones is refused",
        )),
    }
}

/// Sets `max_version`.
pub(super) fn max_version(
    service: &mut DraftService,
    version: Version,
    directive: &str,
    place: &Place,
) {
    match version {
        Version::Tls13 => {}
        Version::Tls12 => service.tls.text(
            "max_version",
            "1.2",
            origin(&service.place, directive, place),
        ),
        Version::Old => service.note(Note::blocking(
            place,
            directive,
            "allows nothing later than TLS 1.1, which tlsward does not speak",
            "let the server speak TLS 1.2 or 1.3, then remove this limit",
        )),
    }
}

/// Sets both ends of a range; where all of it is too old, only that is said.
pub(super) fn versions(
    service: &mut DraftService,
    min: Version,
    max: Version,
    directive: &str,
    place: &Place,
) {
    if max != Version::Old {
        min_version(service, min, directive, place);
    }
    max_version(service, max, directive, place);
}

/// Sets `key_exchange` from a list with colons.
pub(super) fn groups(service: &mut DraftService, list: &str, directive: &str, place: &Place) {
    let mut known: Vec<&str> = Vec::new();
    let mut unknown: Vec<&str> = Vec::new();
    for name in list
        .split(':')
        .map(str::trim)
        .filter(|name| !name.is_empty())
    {
        // A question mark says that OpenSSL may leave the group out.
        let plain = name.trim_start_matches(['?', '*']).to_ascii_lowercase();
        let group = match &*plain {
            "x25519mlkem768" => "X25519MLKEM768",
            "x25519" => "X25519",
            "p-256" | "prime256v1" | "secp256r1" => "secp256r1",
            "p-384" | "secp384r1" => "secp384r1",
            _ => {
                unknown.push(name);
                continue;
            }
        };
        if !known.contains(&group) {
            known.push(group);
        }
    }
    if !unknown.is_empty() {
        service.note(Note::new(
            Kind::NotCarried,
            place,
            directive,
            format!("names groups that tlsward does not have: {}", unknown.join(", ")),
            match known.is_empty() {
                true => "check that the server takes one of tlsward's: X25519MLKEM768, X25519, P-256, P-384",
                false => "check that the server takes one of those in key_exchange",
            },
        ));
    }
    if !known.is_empty() {
        let from = origin(&service.place, directive, place);
        service.tls.list("key_exchange", &known, from);
    }
}

/// A restriction of cipher suites, which tlsward does not take.
pub(super) fn ciphers(service: &mut DraftService, list: &str, directive: &str, place: &Place) {
    if list.eq_ignore_ascii_case("default") {
        service.note(Note::new(
            Kind::Explained,
            place,
            directive,
            "is OpenSSL's own list",
            "tlsward has its own",
        ));
        return;
    }
    service.note(Note::new(
        Kind::NotCarried,
        place,
        directive,
        "restricts cipher suites, which tlsward does not let anybody set",
        "its suites are all forward secret and authenticated (AES-GCM, ChaCha20); check that the server takes one, with `tlsward probe`",
    ));
}

/// A command of `SSL_CONF_cmd(3)`.
pub(super) fn conf_command(
    service: &mut DraftService,
    name: &str,
    value: &str,
    directive: &str,
    place: &Place,
) {
    let shown = format!("{directive} {name}");
    match (&*name.to_ascii_lowercase(), Version::parse(value)) {
        ("minprotocol", Some(version)) => min_version(service, version, &shown, place),
        ("maxprotocol", Some(version)) => max_version(service, version, &shown, place),
        ("groups" | "curves", _) => groups(service, value, &shown, place),
        ("cipherstring" | "ciphersuites", _) => ciphers(service, value, &shown, place),
        ("verifycafile" | "verifycapath" | "chaincafile" | "chaincapath" | "verifymode", _) => {
            service.note(Note::blocking(
                place,
                shown,
                "sets by OpenSSL's own command what is verified",
                "write ca, crl and verify by hand",
            ));
        }
        _ => service.note(Note::new(
            Kind::NotCarried,
            place,
            shown,
            "is a command of OpenSSL, which tlsward does not use",
            "see in docs/configuration.md whether a key does the same",
        )),
    }
}

/// Where a value comes from, as a remark behind it.
pub(super) fn origin(home: &Place, directive: &str, place: &Place) -> String {
    match home.file == place.file {
        true => format!("{directive}, line {}", place.line),
        false => format!("{directive}, {place}"),
    }
}

/// `ca = "system"` where the source names no CA.
pub(super) fn no_ca(service: &mut DraftService, directive: &str, product: &str) {
    let place = service.place.clone();
    service
        .tls
        .remark("Put the file with the CA here that has issued the server's certificate:");
    service
        .tls
        .text("ca", "system", format!("{product} had none"));
    service.note(Note::new(
        Kind::Decide,
        &place,
        directive,
        format!("{product} was given no CA to verify the server with"),
        "name the CA in ca; until then the platform's roots count, so a server with a certificate of a private CA is refused",
    ));
}

/// Client certificate and key by their files.
pub(super) fn pair(tls: &mut Keys, cert: (&str, String), key: Option<(&str, String)>) {
    match key {
        Some((key, from)) if key != cert.0 => {
            tls.text("cert", cert.0, cert.1);
            tls.text("key", key, from);
        }
        _ => tls.text("bundle", cert.0, cert.1),
    }
}
