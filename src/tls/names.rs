//! Names in a server's certificate: which one matched, and which are allowed.

use rustls_pki_types::{CertificateDer, ServerName};
use webpki::EndEntityCert;

use super::summary::CertificateSummary;
use crate::config::NamePattern;

/// The subject alternative name by which the certificate is valid for `name`, as
/// [`CertificateSummary::names`] writes it; `None` where webpki would refuse the certificate for
/// this name. Where several match, the one that is not a wildcard.
pub(crate) fn matched_name(leaf: &CertificateDer<'_>, name: &ServerName<'_>) -> Option<String> {
    let certificate = EndEntityCert::try_from(leaf).ok()?;
    certificate.verify_is_valid_for_subject_name(name).ok()?;
    match name {
        ServerName::DnsName(wanted) => {
            let wanted = wanted.as_ref().trim_end_matches('.');
            let (_, parent) = wanted.split_once('.').unwrap_or((wanted, ""));
            let is_exact = |presented: &&str| presented.eq_ignore_ascii_case(wanted);
            let is_wildcard = |presented: &&str| {
                presented
                    .strip_prefix("*.")
                    .is_some_and(|rest| rest.eq_ignore_ascii_case(parent))
            };
            certificate
                .valid_dns_names()
                .find(is_exact)
                .or_else(|| certificate.valid_dns_names().find(is_wildcard))
                .map(|presented| format!("DNS:{presented}"))
        }
        ServerName::IpAddress(address) => {
            let wanted = format!("IP:{}", std::net::IpAddr::from(*address));
            let names = CertificateSummary::of(leaf).ok()?.names;
            names.into_iter().find(|presented| *presented == wanted)
        }
        _ => None,
    }
}

/// Whether at least one DNS name or URI of the certificate matches one of the patterns.
///
/// Names are taken as webpki reads them, so that a name which it would refuse allows nothing. A
/// wildcard in the *certificate* (`*.example.com`) is a name like another: only a pattern that
/// begins with `*` matches it.
pub(super) fn any_allowed(certificate: &EndEntityCert<'_>, patterns: &[NamePattern]) -> bool {
    patterns.iter().any(|pattern| match pattern {
        NamePattern::Dns(pattern) => certificate
            .valid_dns_names()
            .any(|name| dns_matches(pattern, name)),
        NamePattern::Uri(pattern) => certificate
            .valid_uri_names()
            .any(|uri| uri_matches(pattern, uri)),
    })
}

/// The patterns as they are written in the configuration.
pub(super) fn in_words(patterns: &[NamePattern]) -> String {
    let words: Vec<&str> = patterns
        .iter()
        .map(|pattern| match pattern {
            NamePattern::Dns(pattern) | NamePattern::Uri(pattern) => pattern.as_str(),
        })
        .collect();
    words.join(", ")
}

/// Label by label, without regard to case or to a final dot; a first label `*` of the pattern
/// stands for exactly one label.
fn dns_matches(pattern: &str, name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    let pattern = pattern.strip_suffix('.').unwrap_or(pattern);
    match pattern.strip_prefix("*.") {
        Some(parent) => name
            .split_once('.')
            .is_some_and(|(first, rest)| !first.is_empty() && rest.eq_ignore_ascii_case(parent)),
        None => name.eq_ignore_ascii_case(pattern),
    }
}

/// Scheme and authority without regard to case (RFC 3986 section 6.2.2.1), the path segment by
/// segment and exactly: `*` for one segment, a last `**` for one or more. What a wildcard stands
/// for is never empty, `.` or `..`, and holds no query or fragment.
fn uri_matches(pattern: &str, uri: &str) -> bool {
    let (pattern_origin, pattern_path) = split_uri(pattern);
    let (origin, path) = split_uri(uri);
    let same_origin = match origin.contains("://") {
        true => origin.eq_ignore_ascii_case(pattern_origin),
        // A URN, for example: only its scheme would be without case.
        false => origin == pattern_origin,
    };
    if !same_origin {
        return false;
    }
    let (Some(pattern_path), Some(path)) = (pattern_path, path) else {
        return pattern_path == path;
    };
    let mut wanted = pattern_path.split('/').peekable();
    let mut presented = path.split('/');
    while let Some(segment) = wanted.next() {
        if segment == "**" && wanted.peek().is_none() {
            let mut rest = presented.peekable();
            return rest.peek().is_some() && rest.all(is_plain_segment);
        }
        let Some(found) = presented.next() else {
            return false;
        };
        let matches = match segment {
            "*" => is_plain_segment(found),
            _ => segment == found,
        };
        if !matches {
            return false;
        }
    }
    presented.next().is_none()
}

/// `scheme://authority`, and the path after the slash.
fn split_uri(uri: &str) -> (&str, Option<&str>) {
    let authority = uri.find("://").map_or(0, |colon| colon + 3);
    match uri[authority..].find('/') {
        Some(slash) => {
            let (origin, path) = uri.split_at(authority + slash);
            (origin, Some(&path[1..]))
        }
        None => (uri, None),
    }
}

fn is_plain_segment(segment: &str) -> bool {
    !matches!(segment, "" | "." | "..") && !segment.contains(['?', '#'])
}
