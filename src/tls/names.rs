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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_dns_star_stands_for_exactly_one_label() {
        for (pattern, name, expected) in [
            ("billing.internal", "billing.internal", true),
            ("billing.internal", "BILLING.Internal.", true),
            ("billing.internal", "xbilling.internal", false),
            ("*.internal", "billing.internal", true),
            ("*.internal", "a.billing.internal", false),
            ("*.internal", "internal", false),
            ("*.internal", ".internal", false),
            ("*.internal", "*.internal", true),
            // A wildcard in the certificate is no wildcard here.
            ("billing.internal", "*.internal", false),
        ] {
            assert_eq!(dns_matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn a_uri_star_stands_for_one_segment_and_a_last_double_star_for_the_rest() {
        for (pattern, uri, expected) in [
            ("spiffe://td/ns/a", "spiffe://td/ns/a", true),
            ("spiffe://td/ns/a", "SPIFFE://TD/ns/a", true),
            ("spiffe://td/ns/a", "spiffe://td/ns/A", false),
            ("spiffe://td/ns/a", "spiffe://td/ns/a/", false),
            ("spiffe://td/ns/*/sa/b", "spiffe://td/ns/x/sa/b", true),
            ("spiffe://td/ns/*/sa/b", "spiffe://td/ns/x/y/sa/b", false),
            ("spiffe://td/ns/*/sa/b", "spiffe://td/ns//sa/b", false),
            ("spiffe://td/ns/*/sa/b", "spiffe://td/ns/../sa/b", false),
            ("spiffe://td/ns/*/sa/b", "spiffe://evil/ns/x/sa/b", false),
            ("spiffe://td/*", "spiffe://td/x?y", false),
            ("spiffe://td/*", "spiffe://td/x#y", false),
            ("spiffe://td/**", "spiffe://td/x", true),
            ("spiffe://td/**", "spiffe://td/x/y/z", true),
            ("spiffe://td/**", "spiffe://td/", false),
            ("spiffe://td/**", "spiffe://td", false),
            ("spiffe://td/**", "spiffe://td/x/..", false),
            ("spiffe://td/**/x", "spiffe://td/a/x", false),
            // The host is no segment.
            ("spiffe://*/x", "spiffe://td/x", false),
            ("spiffe://td", "spiffe://td", true),
            ("spiffe://td", "spiffe://td.evil", false),
            ("urn:a:b", "urn:a:b", true),
            ("urn:a:b", "urn:A:b", false),
        ] {
            assert_eq!(uri_matches(pattern, uri), expected, "{pattern} {uri}");
        }
    }

    proptest! {
        #[test]
        fn a_name_without_stars_matches_itself_and_no_other(
            one in "[a-z]{1,5}(\\.[a-z]{1,5}){0,3}", two in "[a-z]{1,5}(\\.[a-z]{1,5}){0,3}",
        ) {
            prop_assert!(dns_matches(&one, &one.to_uppercase()));
            prop_assert_eq!(dns_matches(&one, &two), one == two);
        }

        #[test]
        fn replacing_a_segment_by_a_star_still_matches(
            segments in proptest::collection::vec("[A-Za-z0-9]{1,4}", 1..6), at in any::<proptest::sample::Index>(),
        ) {
            let uri = format!("spiffe://td/{}", segments.join("/"));
            let mut pattern = segments.clone();
            let at = at.index(segments.len());
            pattern[at] = "*".to_owned();
            let starred = format!("spiffe://td/{}", pattern.join("/"));
            prop_assert!(uri_matches(&starred, &uri));
            pattern.truncate(at);
            pattern.push("**".to_owned());
            let double_starred = format!("spiffe://td/{}", pattern.join("/"));
            prop_assert!(uri_matches(&double_starred, &uri));
        }

        #[test]
        fn no_uri_and_no_pattern_make_it_panic(pattern in ".{0,30}", uri in ".{0,30}") {
            let _ = uri_matches(&pattern, &uri);
            let _ = uri_matches(&format!("spiffe://{pattern}"), &format!("spiffe://{uri}"));
            let _ = dns_matches(&pattern, &uri);
        }
    }
}
