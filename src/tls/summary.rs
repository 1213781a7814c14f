//! What people want to know of a certificate.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rustls_pki_types::UnixTime;
use serde::Serialize;
use time::OffsetDateTime;
use time::macros::format_description;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::{AttributeTypeAndValue, SubjectPublicKeyInfo, X509Name};

/// A certificate in words. Never holds a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct CertificateSummary {
    /// Distinguished name, RFC 4514 style.
    pub subject: String,
    /// Distinguished name of the issuer.
    pub issuer: String,
    /// DNS names, IP addresses, URIs and e-mail addresses, each with its kind (`DNS:billing`).
    pub names: Vec<String>,
    /// Serial number in lower-case hex, colons between bytes.
    pub serial: String,
    /// SHA-256 of the DER in lower-case hex.
    pub fingerprint: String,
    /// `sha256/BASE64` of the SubjectPublicKeyInfo, the form that `pins` takes.
    pub pin: String,
    /// Key algorithm, for example `ECDSA P-256`.
    pub key: String,
    /// Seconds since 1970.
    pub not_before: i64,
    /// Seconds since 1970.
    pub not_after: i64,
}

impl CertificateSummary {
    /// Reads a DER certificate.
    ///
    /// # Errors
    /// Says what is wrong with the DER.
    pub(crate) fn of(der: &[u8]) -> Result<Self, String> {
        parse(der).map(|certificate| Self::from_parsed(der, &certificate))
    }

    /// The summary of `der`, which `certificate` was parsed from.
    pub(super) fn from_parsed(der: &[u8], certificate: &X509Certificate<'_>) -> Self {
        Self {
            subject: distinguished_name(certificate.subject()),
            issuer: distinguished_name(certificate.issuer()),
            names: alternative_names(certificate),
            serial: hex(certificate.raw_serial(), ":"),
            fingerprint: hex(sha256(der).as_ref(), ""),
            pin: pin(certificate.public_key().raw),
            key: key_algorithm(certificate.public_key()),
            not_before: certificate.validity().not_before.timestamp(),
            not_after: certificate.validity().not_after.timestamp(),
        }
    }

    /// Whole days until `not_after`, negative once it has passed.
    pub(crate) fn days_left(&self, now: UnixTime) -> i64 {
        (self.not_after - now.as_secs() as i64).div_euclid(86_400)
    }

    /// The certificate in one phrase: enough to find it among others.
    pub(crate) fn phrase(&self) -> String {
        let subject = match self.subject.as_str() {
            "" => "without a subject",
            subject => subject,
        };
        format!(
            "{subject} (issuer {}, SHA-256 {})",
            self.issuer, self.fingerprint
        )
    }

    /// The names, or that there are none.
    pub(crate) fn names_phrase(&self) -> String {
        if self.names.is_empty() {
            "no subject alternative name (a CN is not looked at)".to_owned()
        } else {
            self.names.join(", ")
        }
    }
}

/// Parses a DER certificate that ends where it says.
///
/// # Errors
/// Says what is wrong with the DER.
pub(super) fn parse(der: &[u8]) -> Result<X509Certificate<'_>, String> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok((rest, _)) => Err(format!(
            "{} bytes follow the end of the certificate",
            rest.len()
        )),
        Err(error) => Err(format!("not an X.509 certificate: {error}")),
    }
}

/// A moment in UTC, for people: `2026-01-31 12:00:00 UTC`.
pub(crate) fn utc(secs: i64) -> String {
    OffsetDateTime::from_unix_timestamp(secs)
        .ok()
        .and_then(|moment| {
            moment
                .format(format_description!(
                    "[year]-[month]-[day] [hour]:[minute]:[second] UTC"
                ))
                .ok()
        })
        .unwrap_or_else(|| format!("{secs} s after 1970"))
}

/// `sha256/BASE64` of a DER SubjectPublicKeyInfo.
pub(super) fn pin(spki: &[u8]) -> String {
    format!("sha256/{}", BASE64.encode(sha256(spki)))
}

pub(super) fn sha256(bytes: &[u8]) -> aws_lc_rs::digest::Digest {
    aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes)
}

pub(super) fn hex(bytes: &[u8], separator: &str) -> String {
    let mut text = String::with_capacity(bytes.len() * (2 + separator.len()));
    for (index, byte) in bytes.iter().enumerate() {
        if index > 0 {
            text.push_str(separator);
        }
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// A distinguished name as RFC 4514 writes it: last RDN first, special characters escaped.
/// Control characters are escaped too, so that a name cannot forge a line of the log.
pub(super) fn distinguished_name(name: &X509Name<'_>) -> String {
    let mut rdns: Vec<String> = name
        .iter_rdn()
        .map(|rdn| {
            let attributes: Vec<String> = rdn.iter().map(attribute).collect();
            attributes.join("+")
        })
        .collect();
    rdns.reverse();
    rdns.join(",")
}

fn attribute(attribute: &AttributeTypeAndValue<'_>) -> String {
    let oid = attribute.attr_type().to_id_string();
    // RFC 4514 section 3; the last two are what OpenSSL prints.
    let label = match oid.as_str() {
        "2.5.4.3" => "CN",
        "2.5.4.7" => "L",
        "2.5.4.8" => "ST",
        "2.5.4.10" => "O",
        "2.5.4.11" => "OU",
        "2.5.4.6" => "C",
        "2.5.4.9" => "STREET",
        "0.9.2342.19200300.100.1.25" => "DC",
        "0.9.2342.19200300.100.1.1" => "UID",
        "2.5.4.5" => "serialNumber",
        "1.2.840.113549.1.9.1" => "emailAddress",
        other => other,
    };
    match attribute.as_str() {
        Ok(value) => format!("{label}={}", escaped(value)),
        Err(_) => format!("{label}=#{}", hex(attribute.as_slice(), "")),
    }
}

/// RFC 4514 section 2.4.
fn escaped(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    let last = value.chars().count().saturating_sub(1);
    for (index, char) in value.chars().enumerate() {
        let special = matches!(char, '"' | '+' | ',' | ';' | '<' | '>' | '\\')
            || (char == '#' && index == 0)
            || (char == ' ' && (index == 0 || index == last));
        if special {
            text.push('\\');
            text.push(char);
        } else {
            push_visible(&mut text, char);
        }
    }
    text
}

/// The text with control characters and invisible direction marks as `\XX` hex pairs.
pub(super) fn visible(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    for char in value.chars() {
        push_visible(&mut text, char);
    }
    text
}

fn push_visible(text: &mut String, char: char) {
    let misleading =
        matches!(char, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    if char.is_control() || misleading {
        for byte in char.encode_utf8(&mut [0; 4]).bytes() {
            let _ = write!(text, "\\{byte:02x}");
        }
    } else {
        text.push(char);
    }
}

/// Every name, of every subject alternative name extension that can be read.
fn alternative_names(certificate: &X509Certificate<'_>) -> Vec<String> {
    certificate
        .extensions()
        .iter()
        .filter_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
            _ => None,
        })
        .flatten()
        .map(general_name)
        .collect()
}

fn general_name(name: &GeneralName<'_>) -> String {
    match name {
        GeneralName::DNSName(name) => format!("DNS:{}", visible(name)),
        GeneralName::URI(uri) => format!("URI:{}", visible(uri)),
        GeneralName::RFC822Name(mail) => format!("email:{}", visible(mail)),
        GeneralName::IPAddress(bytes) => {
            if let Ok(v4) = <[u8; 4]>::try_from(*bytes) {
                format!("IP:{}", Ipv4Addr::from(v4))
            } else if let Ok(v6) = <[u8; 16]>::try_from(*bytes) {
                format!("IP:{}", Ipv6Addr::from(v6))
            } else {
                format!("IP:#{}", hex(bytes, ""))
            }
        }
        GeneralName::DirectoryName(name) => format!("DirName:{}", distinguished_name(name)),
        GeneralName::RegisteredID(oid) => format!("RID:{}", oid.to_id_string()),
        GeneralName::OtherName(oid, _) => format!("otherName:{}", oid.to_id_string()),
        GeneralName::X400Address(_) => "X400:…".to_owned(),
        GeneralName::EDIPartyName(_) => "EDI:…".to_owned(),
        GeneralName::Invalid(_, bytes) => format!("invalid:#{}", hex(bytes, "")),
    }
}

/// The key identifier of the issuer's key, if the certificate names it.
pub(super) fn authority_key<'a>(certificate: &'a X509Certificate<'_>) -> Option<&'a [u8]> {
    let mut extensions = certificate.extensions().iter();
    extensions.find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(authority) => {
            authority.key_identifier.as_ref().map(|key| key.0)
        }
        _ => None,
    })
}

/// The identifier of the certificate's own key, if it names it.
pub(super) fn subject_key<'a>(certificate: &'a X509Certificate<'_>) -> Option<&'a [u8]> {
    let mut extensions = certificate.extensions().iter();
    extensions.find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(key) => Some(key.0),
        _ => None,
    })
}

/// The kind of a public key in the words that people use.
fn key_algorithm(spki: &SubjectPublicKeyInfo<'_>) -> String {
    let algorithm = spki.algorithm.algorithm.to_id_string();
    match algorithm.as_str() {
        "1.2.840.10045.2.1" => {
            let curve = spki
                .algorithm
                .parameters
                .as_ref()
                .and_then(|parameters| parameters.as_oid().ok())
                .map(|oid| oid.to_id_string());
            match curve {
                Some(oid) => format!("ECDSA {}", curve_name(&oid)),
                None => "ECDSA with explicit parameters".to_owned(),
            }
        }
        "1.2.840.113549.1.1.1" | "1.2.840.113549.1.1.10" => match spki.parsed() {
            Ok(PublicKey::RSA(key)) => format!("RSA {}", rsa_bits(key.modulus)),
            _ => "RSA".to_owned(),
        },
        other => algorithm_name(other),
    }
}

/// The number of bits of an unsigned big-endian number.
pub(super) fn rsa_bits(modulus: &[u8]) -> usize {
    let significant = modulus.iter().skip_while(|byte| **byte == 0);
    match significant.clone().next() {
        Some(first) => significant.count() * 8 - first.leading_zeros() as usize,
        None => 0,
    }
}

/// The name of an elliptic curve, by its OID.
pub(super) fn curve_name(oid: &str) -> String {
    match oid {
        "1.2.840.10045.3.1.7" => "P-256".to_owned(),
        "1.3.132.0.34" => "P-384".to_owned(),
        "1.3.132.0.35" => "P-521".to_owned(),
        "1.3.132.0.33" => "P-224".to_owned(),
        "1.3.132.0.10" => "secp256k1".to_owned(),
        other => format!("on curve {other}"),
    }
}

/// The name of a public key algorithm without parameters, by its OID.
pub(super) fn algorithm_name(oid: &str) -> String {
    match oid {
        "1.3.101.112" => "Ed25519".to_owned(),
        "1.3.101.113" => "Ed448".to_owned(),
        "1.3.101.110" => "X25519".to_owned(),
        "1.3.101.111" => "X448".to_owned(),
        "1.2.840.10040.4.1" => "DSA".to_owned(),
        "2.16.840.1.101.3.4.3.17" => "ML-DSA-44".to_owned(),
        "2.16.840.1.101.3.4.3.18" => "ML-DSA-65".to_owned(),
        "2.16.840.1.101.3.4.3.19" => "ML-DSA-87".to_owned(),
        "1.2.840.113549.1.1.10" => "RSA-PSS".to_owned(),
        other => format!("algorithm {other}"),
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{DnType, SanType};

    use super::*;
    use crate::tls::test_pki::{Ca, DAY, NOW, now, unix, uri};

    fn summary(change: impl FnOnce(&mut rcgen::CertificateParams)) -> CertificateSummary {
        CertificateSummary::of(&Ca::new("root").server_with(change).der).unwrap()
    }

    #[test]
    fn names_stand_with_their_kind() {
        let summary = summary(|params| {
            params.subject_alt_names = vec![
                SanType::DnsName("*.billing".try_into().unwrap()),
                SanType::IpAddress("10.0.0.1".parse().unwrap()),
                SanType::IpAddress("2001:db8::1".parse().unwrap()),
                uri("spiffe://td/ns/a"),
                SanType::Rfc822Name("ops@example.com".try_into().unwrap()),
            ];
        });
        assert_eq!(
            summary.names,
            [
                "DNS:*.billing",
                "IP:10.0.0.1",
                "IP:2001:db8::1",
                "URI:spiffe://td/ns/a",
                "email:ops@example.com",
            ]
        );
        assert_eq!(summary.issuer, "CN=root");
    }

    #[test]
    fn a_subject_reads_as_rfc_4514_and_cannot_forge_a_log_line() {
        let summary = summary(|params| {
            let name = &mut params.distinguished_name;
            *name = rcgen::DistinguishedName::new();
            name.push(DnType::OrganizationName, "Example, Inc.");
            name.push(DnType::CustomDnType(vec![1, 2, 3]), "x");
            name.push(DnType::CommonName, "# a\nb\u{202e}c ");
        });
        assert_eq!(
            summary.subject,
            "CN=\\# a\\0ab\\e2\\80\\aec\\ ,1.2.3=x,O=Example\\, Inc."
        );
    }

    #[test]
    fn serial_fingerprint_and_pin_are_those_that_openssl_shows() {
        let leaf = Ca::new("root").server_with(|params| {
            params.serial_number = Some(rcgen::SerialNumber::from_slice(&[0x0a, 0xff]));
        });
        let summary = CertificateSummary::of(&leaf.der).unwrap();
        assert_eq!(summary.serial, "0a:ff");
        assert_eq!(summary.fingerprint.len(), 64);
        assert_eq!(summary.fingerprint, hex(sha256(&leaf.der).as_ref(), ""));
        let spki = rcgen::PublicKeyData::subject_public_key_info(&leaf.key);
        assert_eq!(
            summary.pin,
            format!("sha256/{}", BASE64.encode(sha256(&spki)))
        );
    }

    #[test]
    fn days_left_are_whole_days_and_negative_after_the_end() {
        let summary = summary(|_| {});
        assert_eq!(summary.days_left(now()), 365);
        assert_eq!(summary.days_left(unix(NOW + 365 * DAY + 1)), -1);
        assert_eq!(summary.days_left(unix(NOW + 365 * DAY)), 0);
    }

    #[test]
    fn what_is_no_certificate_is_an_error() {
        let der = Ca::new("root").der().to_vec();
        assert!(CertificateSummary::of(b"").is_err());
        assert!(CertificateSummary::of(&der[..der.len() - 1]).is_err());
        let longer = [&der[..], b"x"].concat();
        let why = CertificateSummary::of(&longer).unwrap_err();
        assert_eq!(why, "1 bytes follow the end of the certificate");
    }

    #[test]
    fn a_moment_is_written_in_utc() {
        assert_eq!(utc(NOW), "2030-01-01 00:00:00 UTC");
        assert_eq!(utc(i64::MAX), format!("{} s after 1970", i64::MAX));
    }
}
