//! From the bytes of a file to certificates, a private key or revocation lists.
//!
//! What `rustls-pki-types` reads is read by it, but for private keys, of which it leaves copies in
//! memory. A scan of our own goes before, because that parser
//! passes in silence over what an operator must hear of: blocks of another kind, an `END` and a
//! `BEGIN` glued together where files were joined without a line break (the second certificate
//! would be lost), encrypted keys. No message ever quotes the file: a line may be a key.
#![warn(clippy::indexing_slicing)]

use std::ops::Range;

use base64ct::{Base64, Base64Unpadded, Encoding as _};
use rustls_pki_types::pem::{PemObject, SectionKind};
use rustls_pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer, PrivatePkcs1KeyDer,
    PrivatePkcs8KeyDer, PrivateSec1KeyDer,
};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;
use zeroize::Zeroizing;

use crate::failure::{Explained, Reason};
use crate::material::{IdentityMaterial, Part};

/// Certificates as given, and the one private key.
pub(super) struct ChainAndKey {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: Key,
    /// What is odd but not wrong.
    pub(super) warnings: Vec<String>,
}

/// A private key as DER, wiped when dropped.
pub(super) struct Key {
    der: Zeroizing<Vec<u8>>,
    encoding: Encoding,
}

#[derive(Clone, Copy)]
enum Encoding {
    Pkcs8,
    Pkcs1,
    Sec1,
}

impl Key {
    /// The same bytes, for one who wipes them: rustls' `KeyProvider` does.
    pub(super) fn into_der(mut self) -> PrivateKeyDer<'static> {
        let der = std::mem::take(&mut *self.der);
        match self.encoding {
            Encoding::Pkcs8 => PrivatePkcs8KeyDer::from(der).into(),
            Encoding::Pkcs1 => PrivatePkcs1KeyDer::from(der).into(),
            Encoding::Sec1 => PrivateSec1KeyDer::from(der).into(),
        }
    }
}

/// How a block holds a private key, if it holds one.
fn encoding(kind: SectionKind) -> Option<Encoding> {
    match kind {
        SectionKind::PrivateKey => Some(Encoding::Pkcs8),
        SectionKind::RsaPrivateKey => Some(Encoding::Pkcs1),
        SectionKind::EcPrivateKey => Some(Encoding::Sec1),
        _ => None,
    }
}

/// The base64 between a `BEGIN` and an `END`, as `rustls-pki-types` takes it: in time that does not
/// depend on the key, and within one buffer, which is wiped. `None` where it is none.
fn decode(body: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let mut text = Zeroizing::new(Vec::with_capacity(body.len()));
    text.extend(body.iter().filter(|byte| !byte.is_ascii_whitespace()));
    let decoded = match text.len() % 4 {
        0 => Base64::decode_in_place(&mut text),
        _ => Base64Unpadded::decode_in_place(&mut text),
    };
    let length = decoded.ok()?.len();
    text.truncate(length);
    Some(text)
}

/// The chain and the key of an identity.
///
/// # Errors
/// [`Reason::BadPem`] where a file is not PEM or holds something else than it should;
/// [`Reason::BadKey`] where the key is encrypted.
pub(super) fn chain_and_key(material: &IdentityMaterial) -> Result<ChainAndKey, Explained> {
    match material {
        IdentityMaterial::Bundle(part) => {
            let blocks = Blocks::read(part)?;
            let what = "a bundle holds the private key and the certificate chain";
            if blocks.certificates.is_empty() {
                return Err(blocks.lacks(part, "certificate", what));
            }
            let (blocks, key) = blocks.take_key(part, what)?;
            Ok(ChainAndKey {
                chain: blocks.certificates,
                key,
                warnings: Vec::new(),
            })
        }
        IdentityMaterial::Pair { cert, key } => {
            let certificates = Blocks::read(cert)?;
            let keys = Blocks::read(key)?;
            if certificates.certificates.is_empty() {
                let swapped = certificates.holds_key() && !keys.certificates.is_empty();
                let fix = if swapped {
                    "cert and key are swapped"
                } else {
                    "cert must name the certificate chain"
                };
                return Err(certificates.lacks(cert, "certificate", fix));
            }
            let mut warnings = Vec::new();
            if certificates.holds_key() && cert.place != key.place {
                warnings.push(format!(
                    "{}: holds a private key beside the certificates; it is not used, and \
                     certificate files are often readable by more people than keys",
                    cert.place
                ));
            }
            let (_, key) = keys.take_key(key, "key must name the private key")?;
            Ok(ChainAndKey {
                chain: certificates.certificates,
                key,
                warnings,
            })
        }
    }
}

/// The certificates of a CA file, or, where the file is not PEM or holds none, why.
///
/// # Errors
/// [`Reason::BadPem`] where the file is PEM but damaged: half a list of CAs must not pass for a
/// whole one.
pub(super) fn ca_certificates(
    part: &Part,
) -> Result<Result<Vec<CertificateDer<'static>>, String>, Explained> {
    if !contains(&part.bytes, BEGIN) {
        return Ok(Err(not_pem(part)));
    }
    let blocks = Blocks::read(part)?;
    if blocks.certificates.is_empty() {
        let fix = "ca takes CERTIFICATE blocks";
        return Ok(Err(blocks.lacks_in_words("certificate", fix)));
    }
    Ok(Ok(blocks.certificates))
}

/// The revocation lists of a file: PEM, or one list in DER. Never empty.
///
/// # Errors
/// [`Reason::BadPem`] where the file holds none, or is damaged.
pub(super) fn revocation_lists(
    part: &Part,
) -> Result<Vec<CertificateRevocationListDer<'static>>, Explained> {
    if !contains(&part.bytes, BEGIN) {
        return match CertificateRevocationList::from_der(&part.bytes) {
            Ok(([], _)) => Ok(vec![CertificateRevocationListDer::from(
                part.bytes.to_vec(),
            )]),
            Ok((rest, _)) => Err(bad_pem(
                part,
                &format!("{} bytes follow the end of the DER list", rest.len()),
            )),
            Err(_) => Err(bad_pem(
                part,
                "no revocation list found, neither PEM (X509 CRL) nor DER",
            )),
        };
    }
    let blocks = Blocks::read(part)?;
    if blocks.lists.is_empty() {
        return Err(blocks.lacks(part, "revocation list", "crl takes X509 CRL blocks"));
    }
    Ok(blocks.lists)
}

/// Everything that a PEM file holds, in order.
#[derive(Default)]
struct Blocks {
    certificates: Vec<CertificateDer<'static>>,
    keys: Vec<Key>,
    lists: Vec<CertificateRevocationListDer<'static>>,
    /// An encrypted private key, by the line of its `BEGIN`.
    encrypted: Option<usize>,
    /// The kinds of block found, in order, each once.
    kinds: Vec<String>,
}

impl Blocks {
    fn read(part: &Part) -> Result<Self, Explained> {
        // Windows editors put a byte order mark first; the parser would miss the first block.
        let bytes = part
            .bytes
            .strip_prefix(b"\xef\xbb\xbf")
            .unwrap_or(&part.bytes);
        if !contains(bytes, BEGIN) {
            return Err(bad_pem(part, &not_pem(part)));
        }
        let scan = scan(bytes).map_err(|problem| bad_pem(part, &problem))?;
        let mut blocks = Self {
            encrypted: scan.encrypted,
            kinds: scan.kinds,
            ..Self::default()
        };
        for block in scan.known {
            if Some(block.line) == scan.encrypted {
                // Its header lines are no base64; `take_key` says why.
                continue;
            }
            // Not the parsers' own words: they may quote the file.
            let damaged = || {
                let line = block.line;
                let problem = format!(
                    "the block that starts on line {line} is damaged: it is not valid base64"
                );
                bad_pem(part, &problem)
            };
            let piece = |range: Range<usize>| bytes.get(range).ok_or_else(damaged);
            if let Some(encoding) = encoding(block.kind) {
                let der = decode(piece(block.body.clone())?).ok_or_else(damaged)?;
                blocks.keys.push(Key { der, encoding });
                continue;
            }
            let (kind, der) = <(SectionKind, Vec<u8>)>::from_pem_slice(piece(block.whole.clone())?)
                .map_err(|_| damaged())?;
            match kind {
                SectionKind::Certificate => blocks.certificates.push(der.into()),
                SectionKind::Crl => blocks.lists.push(der.into()),
                _ => {}
            }
        }
        Ok(blocks)
    }

    fn holds_key(&self) -> bool {
        self.encrypted.is_some() || !self.keys.is_empty()
    }

    /// The only key.
    fn take_key(mut self, part: &Part, fix: &str) -> Result<(Self, Key), Explained> {
        if let Some(line) = self.encrypted {
            return Err(Explained::new(
                Reason::BadKey,
                format!(
                    "{}: the private key on line {line} is encrypted; decrypt it with: openssl \
                     pkey -in {} -out FILE",
                    part.place, part.place
                ),
            ));
        }
        let Some(key) = self.keys.pop() else {
            return Err(self.lacks(part, "private key", fix));
        };
        if !self.keys.is_empty() {
            return Err(bad_pem(
                part,
                &format!(
                    "holds {} private keys, and which one belongs to the certificate is not \
                     certain; leave one",
                    self.keys.len() + 1
                ),
            ));
        }
        Ok((self, key))
    }

    fn lacks(&self, part: &Part, wanted: &str, fix: &str) -> Explained {
        bad_pem(part, &self.lacks_in_words(wanted, fix))
    }

    fn lacks_in_words(&self, wanted: &str, fix: &str) -> String {
        // Never empty: a file without any block is not read.
        format!("no {wanted} found, but {}; {fix}", self.kinds.join(", "))
    }
}

const BEGIN: &[u8] = b"-----BEGIN ";
const END: &[u8] = b"-----END ";

/// What a walk over the lines finds.
#[derive(Debug, Default, PartialEq)]
struct Scan {
    /// The kinds of block, in order, each once.
    kinds: Vec<String>,
    /// The blocks of kinds that are known, in order.
    known: Vec<Block>,
    /// The line of an encrypted private key.
    encrypted: Option<usize>,
}

/// A block, by where it is in the bytes.
#[derive(Debug, PartialEq)]
struct Block {
    /// That of its `BEGIN`, from 1.
    line: usize,
    kind: SectionKind,
    /// From its `BEGIN` to its `END`.
    whole: Range<usize>,
    /// What stands between those lines.
    body: Range<usize>,
}

/// Walks over the lines: text between blocks is allowed (RFC 7468 section 2), everything that
/// makes blocks get lost is not.
fn scan(bytes: &[u8]) -> Result<Scan, String> {
    let mut found = Scan::default();
    let mut open: Option<(&[u8], usize)> = None;
    // Of a block that is open.
    let (mut begin, mut body) = (0, 0);
    for (index, (at, line)) in lines(bytes).enumerate() {
        let number = index + 1;
        let line = line.trim_ascii_end();
        let end = at + line.len();
        match open {
            None if line.starts_with(BEGIN) => {
                let label = label(line, BEGIN).ok_or_else(|| {
                    format!("line {number}: a BEGIN line must end after its five hyphens")
                })?;
                let kind = kind_in_words(label);
                if label == b"ENCRYPTED PRIVATE KEY" {
                    found.encrypted.get_or_insert(number);
                }
                if !found.kinds.contains(&kind) {
                    found.kinds.push(kind);
                }
                (begin, body) = (at, end);
                open = Some((label, number));
            }
            None => {
                if contains(line, BEGIN) {
                    return Err(format!(
                        "line {number}: BEGIN does not stand at the start of the line (files \
                         joined without a line break, or an indent): the block would be lost"
                    ));
                }
                if contains(line, END) {
                    return Err(format!("line {number}: END without BEGIN"));
                }
                if line.iter().any(|byte| *byte < b' ' && *byte != b'\t') {
                    return Err(format!(
                        "line {number}: bytes outside of the PEM blocks that are not text"
                    ));
                }
            }
            Some((label_open, started)) if line.starts_with(END) => {
                let closed = label(line, END);
                if closed != Some(label_open) {
                    return Err(format!(
                        "line {number}: this END does not match the BEGIN of line {started}, or \
                         something follows it on the line (files joined without a line break?)"
                    ));
                }
                if let Ok(kind) = SectionKind::try_from(label_open) {
                    found.known.push(Block {
                        line: started,
                        kind,
                        whole: begin..end,
                        body: body..at,
                    });
                }
                open = None;
            }
            Some((_, started)) => {
                if line.starts_with(BEGIN) || contains(line, END) {
                    return Err(format!(
                        "the block that starts on line {started} has no END before line {number}"
                    ));
                }
                if line.starts_with(b"Proc-Type:") && contains(line, b"ENCRYPTED") {
                    found.encrypted.get_or_insert(started);
                }
            }
        }
    }
    match open {
        None => Ok(found),
        Some((_, started)) => Err(format!(
            "the block that starts on line {started} has no END: the file is cut short"
        )),
    }
}

/// Lines, and where they begin. They end with LF, CR LF or CR.
fn lines(bytes: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let mut at = 0;
    let lines = bytes.split(|byte| *byte == b'\n').flat_map(|line| {
        let is_last_cr = line.ends_with(b"\r");
        let inner = line.strip_suffix(b"\r").unwrap_or(line);
        let count = inner.split(|byte| *byte == b'\r').count();
        let pieces = inner.split(|byte| *byte == b'\r').enumerate();
        // The end of a piece: CR, or CR LF, or LF.
        pieces.map(move |(index, piece)| {
            let crlf = index + 1 == count && is_last_cr;
            (piece, 1 + usize::from(crlf))
        })
    });
    lines.map(move |(line, end)| {
        let begins = at;
        at += line.len() + end;
        (begins, line)
    })
}

/// The label of a BEGIN or END line that holds nothing else.
fn label<'a>(line: &'a [u8], marker: &[u8]) -> Option<&'a [u8]> {
    let label = line.strip_prefix(marker)?.strip_suffix(b"-----")?;
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b' ';
    label.iter().all(plain).then_some(label)
}

/// A label for messages; only what is known to be a label is repeated.
fn kind_in_words(label: &[u8]) -> String {
    match std::str::from_utf8(label) {
        Ok(label) if label.len() <= 40 => label.to_owned(),
        _ => "a block of unknown kind".to_owned(),
    }
}

/// Why a file without any PEM block is not PEM, and what to do.
fn not_pem(part: &Part) -> String {
    let bytes = part.bytes.as_slice();
    let place = &part.place;
    if bytes.trim_ascii().is_empty() {
        "the file is empty".to_owned()
    } else if X509Certificate::from_der(bytes).is_ok() {
        format!(
            "a DER certificate, not PEM; convert it: openssl x509 -inform der -in {place} -out FILE"
        )
    } else if CertificateRevocationList::from_der(bytes).is_ok() {
        format!(
            "a DER revocation list, not PEM; convert it: openssl crl -inform der -in {place} -out FILE"
        )
    } else if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        "UTF-16 text, not PEM; save it as UTF-8 or ASCII".to_owned()
    } else if bytes.first() == Some(&0x30)
        && contains(bytes.get(..24).unwrap_or(bytes), PKCS12_DATA)
    {
        format!("PKCS#12, not PEM; convert it: openssl pkcs12 -in {place} -nodes -out FILE")
    } else if bytes.first() == Some(&0x30) && PrivateKeyDer::try_from(bytes).is_ok() {
        format!(
            "a DER private key, not PEM; convert it: openssl pkey -inform der -in {place} -out FILE"
        )
    } else {
        "no PEM block found: nothing starts with -----BEGIN".to_owned()
    }
}

/// `version 3` and the content type `pkcs7-data` or `pkcs7-signedData` without its last number:
/// how a PFX begins (RFC 7292 section 4).
const PKCS12_DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07];

fn bad_pem(part: &Part, problem: &str) -> Explained {
    Explained::new(Reason::BadPem, format!("{}: {problem}", part.place))
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack
        .windows(needle.len())
        .any(|window| window == needle)
}

#[cfg(test)]
mod tests;
