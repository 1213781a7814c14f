//! The demo's throw-away certificate authority.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SerialNumber,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

const DAY: Duration = Duration::from_secs(86_400);

/// A CA that lives as long as the demo; its key is never written anywhere.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: rcgen::Certificate,
    now: SystemTime,
    /// The serial number of the next certificate: small, so that people can tell them apart.
    next_serial: u64,
}

/// A certificate with its key.
pub(super) struct Issued {
    certificate: rcgen::Certificate,
    key: KeyPair,
    /// Lower-case hex, colons between bytes, as status shows it.
    pub(super) serial: String,
}

impl Authority {
    /// A new root, valid from an hour before `now` (clocks differ) for a day.
    pub(super) fn new(
        name: &str,
        first_serial: u64,
        now: SystemTime,
    ) -> Result<Self, rcgen::Error> {
        let mut params = params(name, now);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        Ok(Self {
            issuer: Issuer::new(params, key),
            certificate,
            now,
            next_serial: first_serial,
        })
    }

    pub(super) fn pem(&self) -> String {
        self.certificate.pem()
    }

    pub(super) fn der(&self) -> CertificateDer<'static> {
        self.certificate.der().clone()
    }

    /// A certificate for the server of this name.
    pub(super) fn server(&mut self, name: &str) -> Result<Issued, rcgen::Error> {
        let mut params = params(name, self.now);
        params.subject_alt_names = CertificateParams::new([name.to_owned()])?.subject_alt_names;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.issue(params)
    }

    /// A certificate for the client of this name.
    pub(super) fn client(&mut self, name: &str) -> Result<Issued, rcgen::Error> {
        let mut params = params(name, self.now);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(params)
    }

    fn issue(&mut self, mut params: CertificateParams) -> Result<Issued, rcgen::Error> {
        let serial = self.next_serial.to_be_bytes();
        self.next_serial += 1;
        // Two bytes are enough and short to read; the first is never 0 nor above 0x7f, so that
        // the encoding is as it stands here.
        let serial = &serial[6..];
        params.serial_number = Some(SerialNumber::from_slice(serial));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate()?;
        Ok(Issued {
            certificate: params.signed_by(&key, &self.issuer)?,
            key,
            serial: colon_hex(serial),
        })
    }
}

impl Issued {
    pub(super) fn pem(&self) -> String {
        self.certificate.pem()
    }

    pub(super) fn der(&self) -> CertificateDer<'static> {
        self.certificate.der().clone()
    }

    pub(super) fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }

    pub(super) fn key_der(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.serialize_der()).into()
    }
}

fn params(name: &str, now: SystemTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = (now - DAY / 24).into();
    params.not_after = (now + DAY).into();
    params
}

/// Lower-case hex with colons between bytes.
pub(super) fn colon_hex(bytes: &[u8]) -> String {
    let bytes: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    bytes.join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_certificate_carries_the_serial_that_it_is_announced_with() {
        let mut authority =
            Authority::new("Test CA", 0x1001, SystemTime::UNIX_EPOCH + 20_000 * DAY)
                .expect("a CA can be made");
        for announced in ["10:01", "10:02"] {
            let issued = authority.client("app").expect("a certificate can be made");
            let der = issued.der();
            let (_, parsed) = x509_parser::parse_x509_certificate(&der).expect("it is X.509");
            assert_eq!(colon_hex(parsed.raw_serial()), announced);
            assert_eq!(issued.serial, announced);
        }
    }
}
