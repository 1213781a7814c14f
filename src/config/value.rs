//! From the text of one value to the value: durations, paths, names, pins, patterns.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ipnet::IpNet;
use rustls_pki_types::{DnsName, ServerName};

use super::keys::{self, nearest};
use super::problem::Wrong;
use super::{CaSource, NamePattern};

/// A value, or what is wrong with its text.
pub(super) type Parsed<T> = Result<T, Wrong>;

// === durations ===

/// Units, longest first, each with its length in milliseconds.
const UNITS: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1_000),
    ("ms", 1),
];

/// Longer than any connection is meant to last, and far below what timers can count.
const MAX_DURATION: Duration = Duration::from_secs(365 * 86_400);

/// The longest idle time before a keep-alive probe that Linux takes (`MAX_TCP_KEEPIDLE`).
const MAX_KEEPALIVE: Duration = Duration::from_secs(32_767);

/// Reads `10s`, `250ms`, `1h30m`: whole numbers, each with its unit, the longest unit first.
pub(super) fn duration(text: &str) -> Parsed<Duration> {
    let wrong = |reason: String| {
        Wrong::new(
            reason,
            "write whole numbers with units, for example \"10s\", \"250ms\", \"5m\" or \"1h30m\"",
        )
    };
    if text == "off" {
        return Err(Wrong::new(
            "this time limit cannot be switched off",
            "write a duration, for example \"10s\"",
        ));
    }
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Wrong::new(
            format!("{text:?} has no unit"),
            format!("write \"{text}s\" for seconds"),
        ));
    }
    if text.is_empty() {
        return Err(wrong("the duration is empty".into()));
    }
    let mut total: u64 = 0;
    let mut rest = text;
    let mut allowed = &UNITS[..];
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, after) = rest.split_at(digits);
        let letters = after.len()
            - after
                .trim_start_matches(|c: char| c.is_ascii_alphabetic())
                .len();
        let (unit, after) = after.split_at(letters);
        let Some(position) = allowed.iter().position(|(name, _)| *name == unit) else {
            return Err(wrong(format!("{text:?} is not a duration")));
        };
        let millis = number
            .parse::<u64>()
            .map_err(|_| wrong(format!("{text:?} is not a duration")))?;
        total = millis
            .checked_mul(allowed[position].1)
            .and_then(|part| total.checked_add(part))
            .unwrap_or(u64::MAX);
        allowed = &allowed[position + 1..];
        rest = after;
    }
    let duration = Duration::from_millis(total);
    if duration > MAX_DURATION {
        return Err(Wrong::new(
            format!("{text:?} is longer than a year"),
            "write a shorter duration, or \"off\" where the key allows it",
        ));
    }
    Ok(duration)
}

/// A duration that is not zero.
pub(super) fn time_limit(text: &str) -> Parsed<Duration> {
    match duration(text)? {
        Duration::ZERO => Err(Wrong::new(
            format!("with {text:?} nothing could ever succeed"),
            "write a duration above zero, for example \"10s\"",
        )),
        limit => Ok(limit),
    }
}

/// A duration that is not zero, or `off`.
pub(super) fn time_limit_or_off(text: &str) -> Parsed<Option<Duration>> {
    if text == "off" {
        return Ok(None);
    }
    match duration(text)? {
        Duration::ZERO => Err(Wrong::new(
            format!("with {text:?} every connection would end at once"),
            "write \"off\" for no limit",
        )),
        limit => Ok(Some(limit)),
    }
}

/// `off`, or what `TCP_KEEPIDLE` takes: whole seconds.
pub(super) fn keepalive(text: &str) -> Parsed<Option<Duration>> {
    if text == "off" {
        return Ok(None);
    }
    let idle = duration(text)?;
    if idle < Duration::from_secs(1) || idle > MAX_KEEPALIVE || idle.subsec_nanos() != 0 {
        return Err(Wrong::new(
            format!(
                "the system takes whole seconds from 1s to {}s, not {text:?}",
                MAX_KEEPALIVE.as_secs()
            ),
            "write for example \"3m\", or \"off\"",
        ));
    }
    Ok(Some(idle))
}

// === words ===

/// One of a closed list of words.
pub(super) fn choice<T: Copy>(text: &str, choices: &[(&str, T)]) -> Parsed<T> {
    if let Some((_, value)) = choices.iter().find(|(word, _)| *word == text) {
        return Ok(*value);
    }
    let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
    let fix = match nearest(text, words.iter().copied()) {
        Some(word) => format!("did you mean {word:?}? Possible: {}", keys::quoted(&words)),
        None => format!("write {}", keys::quoted(&words)),
    };
    Err(Wrong::new(format!("{text:?} is not a possible value"), fix))
}

/// A log filter in the syntax of `EnvFilter`.
pub(super) fn log_filter(text: &str) -> Parsed<String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let fix = "write a level (error, warn, info, debug, trace, off), or target=level pairs with commas between them";
    if text.trim().is_empty() {
        return Err(Wrong::new("the filter is empty", fix));
    }
    if let Err(error) = tracing_subscriber::EnvFilter::builder().parse(text) {
        return Err(Wrong::new(
            format!("{text:?} is not a log filter: {error}"),
            fix,
        ));
    }
    // A bare word that is no level is taken as the name of a target, so a typing error in a level
    // would silence the log.
    for word in text
        .split(',')
        .map(|directive| directive.trim().to_ascii_lowercase())
    {
        if LEVELS.contains(&word.as_str()) {
            continue;
        }
        if let Some(level) = nearest(&word, LEVELS) {
            return Err(Wrong::new(
                format!("{word:?} is not a log level"),
                format!("did you mean {level:?}?"),
            ));
        }
    }
    Ok(text.to_owned())
}

/// A protocol name of ALPN (RFC 7301 section 3.1): 1 to 255 bytes.
pub(super) fn protocol(text: &str) -> Parsed<String> {
    if (1..=255).contains(&text.len()) {
        Ok(text.to_owned())
    } else {
        Err(Wrong::new(
            format!(
                "a protocol name has 1 to 255 bytes, this one has {}",
                text.len()
            ),
            "write the name registered with IANA, for example \"h2\" or \"postgresql\"",
        ))
    }
}

// === files ===

/// A path; a relative one counts from `base`.
pub(super) fn path(text: &str, base: &Path) -> Parsed<PathBuf> {
    if text.is_empty() {
        return Err(Wrong::new(
            "an empty path names no file",
            "write the path of the file",
        ));
    }
    if let Some(rest) = text.strip_prefix('~') {
        return Err(Wrong::new(
            format!("~ is not expanded, so {text:?} would be looked for beside the configuration"),
            format!("write \"${{HOME}}{rest}\", or the whole path"),
        ));
    }
    if text.contains('\0') {
        return Err(Wrong::new(
            "a path cannot contain a zero byte",
            "write the path of the file",
        ));
    }
    // Collecting the components drops `.` and doubled slashes, so that equal files compare equal;
    // `..` stays, as it may lead through a symbolic link.
    Ok(base.join(text).components().collect())
}

/// `ca`.
pub(super) fn ca(text: &str, base: &Path) -> Parsed<CaSource> {
    if text == "system" {
        return Ok(CaSource::System);
    }
    path(text, base).map(CaSource::Path)
}

// === names ===

/// A DNS name, in lower case.
pub(super) fn dns_name(text: &str) -> Parsed<DnsName<'static>> {
    if text.is_empty() {
        return Err(Wrong::new(
            "the host is empty",
            "write a host name or an address",
        ));
    }
    if !text.is_ascii() {
        return Err(Wrong::new(
            format!("{text:?} has characters outside ASCII"),
            "write the name in its ASCII form (xn--…)",
        ));
    }
    DnsName::try_from(text.to_ascii_lowercase()).map_err(|_| {
        Wrong::new(
            format!("{text:?} is not a host name"),
            "write a name of letters, digits, '-' and '.', for example \"billing.internal\", or an address",
        )
    })
}

/// `server_name`: a DNS name or an address.
pub(super) fn server_name(text: &str) -> Parsed<ServerName<'static>> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(ServerName::IpAddress(address.into()));
    }
    let inside = text
        .strip_prefix('[')
        .and_then(|rest| rest.split(']').next());
    if let Some(address) = inside.and_then(|inside| inside.parse::<IpAddr>().ok()) {
        return Err(Wrong::new(
            "server_name is an address without brackets and port",
            format!("write \"{address}\""),
        ));
    }
    if text.contains('*') {
        return Err(Wrong::new(
            "server_name is one name, not a pattern",
            "write the name that the certificate must be valid for; patterns go into allowed_names",
        ));
    }
    if let Some((host, _)) = text
        .split_once(':')
        .filter(|(host, _)| dns_name(host).is_ok())
    {
        return Err(Wrong::new(
            "server_name is a name without a port",
            format!("write {host:?}"),
        ));
    }
    dns_name(text).map(ServerName::DnsName)
}

/// One of `allowed_names`.
pub(super) fn name_pattern(text: &str) -> Parsed<NamePattern> {
    if text.parse::<IpAddr>().is_ok() {
        return Err(Wrong::new(
            "addresses cannot be listed here",
            "write a DNS name or a URI; server_name may be an address",
        ));
    }
    match text.split_once("://") {
        Some((scheme, rest)) => uri_pattern(text, scheme, rest),
        None => dns_pattern(text),
    }
}

fn dns_pattern(text: &str) -> Parsed<NamePattern> {
    let fixed = text.strip_prefix("*.").unwrap_or(text);
    if fixed.contains('*') {
        return Err(Wrong::new(
            format!("in {text:?} the asterisk is not the whole first label"),
            "write a name such as \"*.internal\": the asterisk stands for exactly one label, and only the first",
        ));
    }
    dns_name(fixed)?;
    Ok(NamePattern::Dns(text.to_ascii_lowercase()))
}

fn uri_pattern(text: &str, scheme: &str, rest: &str) -> Parsed<NamePattern> {
    let wrong = |reason: &str| {
        Wrong::new(
            format!("{text:?} {reason}"),
            "write for example \"spiffe://cluster.local/ns/*/sa/billing\": * stands for one path segment, ** at the end for one or more",
        )
    };
    let scheme_is_plain = scheme.starts_with(|c: char| c.is_ascii_lowercase())
        && scheme
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+-.".contains(&b));
    if !scheme_is_plain {
        return Err(wrong("does not begin with a scheme in lower case"));
    }
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(wrong("has characters that a URI cannot have"));
    }
    let mut parts = rest.split('/');
    let authority = parts.next().unwrap_or_default();
    if authority.is_empty() || authority.contains('*') {
        return Err(wrong("must name its host (the trust domain) in full"));
    }
    let mut segments = parts.peekable();
    while let Some(segment) = segments.next() {
        match segment {
            "*" => {}
            "**" if segments.peek().is_none() => {}
            _ if segment.contains('*') => {
                return Err(wrong("has an asterisk that is not a whole path segment"));
            }
            _ => {}
        }
    }
    Ok(NamePattern::Uri(text.to_owned()))
}

// === keys of servers ===

/// `sha256/BASE64`: the SHA-256 digest of a `SubjectPublicKeyInfo`, as in HPKP (RFC 7469) and
/// curl's `--pinnedpubkey`.
pub(super) fn pin(text: &str) -> Parsed<[u8; 32]> {
    let wrong = |reason: String| {
        Wrong::new(
            reason,
            "write \"sha256/\" and the base64 of the key's SHA-256 digest: openssl x509 -in server.crt -noout -pubkey | openssl pkey -pubin -outform der | openssl dgst -sha256 -binary | base64",
        )
    };
    let Some(encoded) = text.strip_prefix("sha256/") else {
        return Err(wrong(format!("{text:?} does not begin with sha256/")));
    };
    // curl writes two slashes; no digest of 32 bytes needs the second one.
    let encoded = match encoded.strip_prefix('/') {
        Some(rest) if encoded.len() > ENCODED_DIGEST => rest,
        _ => encoded,
    };
    let bytes = STANDARD
        .decode(encoded)
        .map_err(|_| wrong(format!("{encoded:?} is not base64")))?;
    let length = bytes.len();
    bytes.try_into().map_err(|_| {
        wrong(format!(
            "a SHA-256 digest has 32 bytes, this one has {length}"
        ))
    })
}

/// Characters of a base64-encoded SHA-256 digest.
const ENCODED_DIGEST: usize = 44;

// === callers ===

/// One of `allow_callers`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CallerPattern {
    /// A network, or a single address as a network of one.
    Network(IpNet),
    /// A user on a unix listener.
    Uid(u32),
    /// A group on a unix listener.
    Gid(u32),
}

/// Reads `10.0.0.0/8`, `192.0.2.7`, `uid:1000` or `gid:100`.
pub(super) fn caller(text: &str) -> Parsed<CallerPattern> {
    for (prefix, look_up, make) in [
        (
            "uid:",
            "id -u",
            CallerPattern::Uid as fn(u32) -> CallerPattern,
        ),
        ("gid:", "id -g", CallerPattern::Gid),
    ] {
        if let Some(id) = text.strip_prefix(prefix) {
            return match id.parse() {
                Ok(number) if !id.starts_with('+') => Ok(make(number)),
                _ => Err(Wrong::new(
                    format!("{id:?} is not a numeric id"),
                    format!("write the number, which `{look_up} NAME` prints"),
                )),
            };
        }
    }
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(CallerPattern::Network(address.to_canonical().into()));
    }
    match text.parse::<IpNet>() {
        Ok(network) if network.trunc() == network => Ok(CallerPattern::Network(network)),
        Ok(network) => Err(Wrong::new(
            format!("{text:?} has bits set behind its prefix"),
            format!(
                "write \"{}\" for the network, or \"{}\" for the one address",
                network.trunc(),
                network.addr()
            ),
        )),
        Err(_) => Err(Wrong::new(
            format!("{text:?} is not a network, an address, a uid or a gid"),
            "write for example \"10.0.0.0/8\" or \"192.0.2.7\"; for a unix listener \"uid:1000\" or \"gid:100\"",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What was wrong and what to do, of a value that must be refused.
    fn refused<T: std::fmt::Debug>(parsed: Parsed<T>) -> String {
        let wrong = parsed.unwrap_err();
        format!("{} | {}", wrong.reason, wrong.fix)
    }

    #[test]
    fn a_duration_is_the_sum_of_its_parts() {
        for (text, millis) in [
            ("0s", 0),
            ("250ms", 250),
            ("10s", 10_000),
            ("1h30m", 5_400_000),
            ("1d1h1m1s1ms", 90_061_001),
            ("90m", 5_400_000),
            ("365d", 31_536_000_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn a_duration_that_could_be_misread_is_refused() {
        for (text, message) in [
            ("", "empty"),
            ("10", "write \"10s\""),
            ("s", "not a duration"),
            ("10S", "not a duration"),
            ("10 s", "not a duration"),
            ("-10s", "not a duration"),
            ("+1s", "not a duration"),
            ("1.5s", "not a duration"),
            ("10sec", "not a duration"),
            ("30m1h", "not a duration"),
            ("1s1s", "not a duration"),
            ("1h30", "not a duration"),
            ("١s", "not a duration"),
            ("366d", "longer than a year"),
            ("99999999999999999d", "longer than a year"),
            ("99999999999999999999s", "not a duration"),
            ("off", "cannot be switched off"),
        ] {
            let error = refused(duration(text));
            assert!(error.contains(message), "{text}: {error}");
        }
    }

    #[test]
    fn limits_take_no_zero_and_only_some_can_be_switched_off() {
        assert!(refused(time_limit("0ms")).contains("nothing could ever succeed"));
        assert!(refused(time_limit("off")).contains("cannot be switched off"));
        assert_eq!(time_limit_or_off("off"), Ok(None));
        assert!(refused(time_limit_or_off("0s")).contains("write \"off\""));
    }

    #[test]
    fn keepalive_takes_what_the_system_takes() {
        assert_eq!(keepalive("off"), Ok(None));
        assert_eq!(keepalive("1s"), Ok(Some(Duration::from_secs(1))));
        assert_eq!(keepalive("32767s"), Ok(Some(Duration::from_secs(32_767))));
        for text in ["0s", "999ms", "1s500ms", "32768s"] {
            assert!(refused(keepalive(text)).contains("whole seconds"), "{text}");
        }
    }

    #[test]
    fn a_log_filter_with_a_misspelt_level_is_refused() {
        for text in [
            "info",
            "WARN",
            "off",
            "info,tlsward=debug",
            "tlsward::proxy=trace",
            "hyper",
        ] {
            assert_eq!(log_filter(text).as_deref(), Ok(text));
        }
        for (text, message) in [
            ("", "empty"),
            ("inof", "did you mean \"info\""),
            ("tlsward=debug,wran", "did you mean \"warn\""),
            ("tlsward=loud", "is not a log filter"),
        ] {
            let error = refused(log_filter(text));
            assert!(error.contains(message), "{text}: {error}");
        }
    }

    #[test]
    fn paths_count_from_the_base_and_equal_files_compare_equal() {
        let base = Path::new("/etc/tlsward");
        for (text, expected) in [
            ("/a/b.crt", "/a/b.crt"),
            ("a.crt", "/etc/tlsward/a.crt"),
            ("./certs//a.crt", "/etc/tlsward/certs/a.crt"),
            ("certs/", "/etc/tlsward/certs"),
            ("../a.crt", "/etc/tlsward/../a.crt"),
        ] {
            let found = path(text, base).unwrap();
            assert_eq!(found.as_os_str(), expected, "{text}");
        }
        assert_eq!(ca("system", base), Ok(CaSource::System));
        assert_eq!(
            ca("./system", base),
            Ok(CaSource::Path("/etc/tlsward/system".into()))
        );
    }

    #[test]
    fn a_server_name_is_a_name_or_an_address_and_nothing_more() {
        for text in ["billing.internal", "127.0.0.1", "::1", "a_b.internal"] {
            assert_eq!(server_name(text).unwrap().to_str(), text);
        }
        for (text, message) in [
            ("", "empty"),
            ("a.internal:443", "write \"a.internal\""),
            ("[::1]:443", "write \"::1\""),
            ("*.internal", "not a pattern"),
            ("bücher.example", "xn--"),
            ("a..b", "not a host name"),
        ] {
            let error = refused(server_name(text));
            assert!(error.contains(message), "{text}: {error}");
        }
    }

    #[test]
    fn a_name_pattern_is_a_dns_name_or_a_uri_with_whole_parts_open() {
        for (text, expected) in [
            (
                "Billing.Internal",
                NamePattern::Dns("billing.internal".into()),
            ),
            ("*.internal", NamePattern::Dns("*.internal".into())),
            (
                "spiffe://x/ns/*/**",
                NamePattern::Uri("spiffe://x/ns/*/**".into()),
            ),
            ("spiffe://x", NamePattern::Uri("spiffe://x".into())),
        ] {
            assert_eq!(name_pattern(text), Ok(expected), "{text}");
        }
        for text in [
            "*",
            "*.",
            "a*.internal",
            "*.*.internal",
            "",
            "10.0.0.1",
            "spiffe:///x",
            "spiffe://*.x/y",
            "spiffe://x/**/y",
            "spiffe://x/y*",
            "Spiffe://x/y",
            "://x",
            "spiffe://x/a b",
        ] {
            refused(name_pattern(text));
        }
    }

    #[test]
    fn a_pin_is_a_digest_of_32_bytes() {
        let digest = STANDARD.encode([0xff; 32]);
        assert!(
            digest.starts_with('/'),
            "so that one slash and two are told apart"
        );
        for text in [format!("sha256/{digest}"), format!("sha256//{digest}")] {
            assert_eq!(pin(&text), Ok([0xff; 32]), "{text}");
        }
        for text in [
            format!("sha256/{}", STANDARD.encode([1; 31])),
            format!("sha256/{}", STANDARD.encode([1; 33])),
            format!("sha256/{}", digest.trim_end_matches('=')),
            format!("sha1/{digest}"),
            digest,
        ] {
            assert!(refused(pin(&text)).contains("write \"sha256/\""), "{text}");
        }
    }

    #[test]
    fn callers_are_networks_addresses_and_ids() {
        let network = |text: &str| CallerPattern::Network(text.parse().unwrap());
        for (text, expected) in [
            ("10.0.0.0/8", network("10.0.0.0/8")),
            ("10.1.2.3", network("10.1.2.3/32")),
            ("::1", network("::1/128")),
            ("::ffff:10.1.2.3", network("10.1.2.3/32")),
            ("uid:0", CallerPattern::Uid(0)),
            ("gid:4294967295", CallerPattern::Gid(u32::MAX)),
        ] {
            assert_eq!(caller(text), Ok(expected), "{text}");
        }
        for text in [
            "10.0.0.1/8",
            "10.0.0.0/33",
            "uid:",
            "uid:+1",
            "uid:-1",
            "gid:4294967296",
            "x",
            "",
        ] {
            refused(caller(text));
        }
    }
}
