//! Verification of the server's certificate.

use crate::failure::Explained;

/// What the verifier found wrong in the handshake that just failed on this thread, once.
/// (rustls' error carries no room for names, fingerprints and dates.)
pub(crate) fn take_failure() -> Option<Explained> {
    None
}
