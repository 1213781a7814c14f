//! Bytes of certificates and keys on their way from a source to the parser. Whatever was read
//! together stands here together.

use std::fmt;

use zeroize::Zeroizing;

/// One file, or one entry of a secret.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Part {
    /// Where the bytes come from, for messages: usually a path.
    pub place: String,
    /// The bytes; wiped when dropped, since they may hold a private key.
    pub bytes: Zeroizing<Vec<u8>>,
}

impl Part {
    /// A part with its place.
    pub(crate) fn new(place: impl Into<String>, bytes: Vec<u8>) -> Self {
        Self {
            place: place.into(),
            bytes: Zeroizing::new(bytes),
        }
    }
}

/// Without the bytes: they may be a key.
impl fmt::Debug for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Part({}, {} bytes)", self.place, self.bytes.len())
    }
}

/// All parts of one identity, read together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum IdentityMaterial {
    /// Chain and key apart.
    Pair {
        /// PEM certificates.
        cert: Part,
        /// PEM private key.
        key: Part,
    },
    /// Chain and key in one.
    Bundle(Part),
}

/// All parts of one trust, read together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TrustMaterial {
    /// PEM certificates; in order of place.
    pub ca: Vec<Part>,
    /// PEM or DER revocation lists; in order of place. `None`: no `crl` configured.
    pub crl: Option<Vec<Part>>,
}
