//! Which intermediates may issue certificates, remembered.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use crate::tls::{summary, trust};

/// A service's servers send the same few.
const REMEMBERED: usize = 8;

/// Intermediates whose keyUsage was read and allows issuing. What a certificate says of itself
/// never changes, so nothing here grows old; reading one anew for each handshake cost 14 us of
/// about 250 (`bench/`, connect-full).
#[derive(Default)]
pub(super) struct Issuers(Mutex<VecDeque<Box<[u8]>>>);

impl Issuers {
    /// Whether the certificate's keyUsage lets it issue. webpki asks basicConstraints only, which
    /// may say CA:TRUE of a key that is not to issue (RFC 5280 section 6.1.4 (n)).
    pub(super) fn may_issue(&self, der: &[u8]) -> bool {
        // A panic elsewhere leaves at worst a certificate too few.
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.iter().any(|known| **known == *der) {
            return true;
        }
        if summary::parse(der).is_ok_and(|ca| trust::is_not_to_issue(&ca)) {
            return false;
        }
        known.truncate(REMEMBERED - 1);
        known.push_front(der.into());
        true
    }
}

#[cfg(test)]
mod tests {
    use rcgen::KeyUsagePurpose;

    use super::*;
    use crate::tls::test_pki::Ca;

    #[test]
    fn a_refused_certificate_is_refused_each_time_and_the_memory_is_bounded() {
        let root = Ca::new("root");
        let bad = root.intermediate_with("bad", |params| {
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        });
        let issuers = Issuers::default();
        for n in 0..REMEMBERED + 2 {
            let good = root.intermediate(&format!("good {n}"));
            assert!(issuers.may_issue(good.der()));
            assert!(issuers.may_issue(good.der()));
            assert!(!issuers.may_issue(bad.der()));
        }
        assert_eq!(issuers.0.lock().unwrap().len(), REMEMBERED);
    }
}
