//! Where certificates, keys and the configuration are read from, and how a change is noticed.
//! Reads bytes and parses nothing.

use std::collections::BTreeSet;
use std::path::PathBuf;

use crate::config::{IdentitySource, TrustSource};
use crate::failure::Explained;
use crate::material::{IdentityMaterial, Part, TrustMaterial};

pub(crate) mod file;

/// What can be watched.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum SourceKey {
    /// The configuration file.
    Config(PathBuf),
    /// A client certificate and key.
    Identity(IdentitySource),
    /// CA certificates and revocation lists.
    Trust(TrustSource),
}

/// One consistent read of all parts of one source.
#[derive(Clone, Debug)]
pub(crate) struct Reading {
    pub(crate) key: SourceKey,
    pub(crate) material: Result<Material, Explained>,
}

/// What was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Material {
    Config(Part),
    Identity(IdentityMaterial),
    Trust(TrustMaterial),
}

/// Why a source was read again: the label of reload metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Trigger {
    /// First read.
    Start,
    /// An event from the file system.
    Notify,
    /// The periodic check.
    Periodic,
    /// SIGHUP, `tlsward reload` or `POST /reload`.
    Request,
}

/// The set of sources to watch.
pub(crate) type SourceSet = BTreeSet<SourceKey>;
