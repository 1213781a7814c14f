//! `tlsward convert`: another product's configuration to ours, with everything that it did less
//! safely, and everything that did not come along.
//!
//! The rule: every directive that is read is carried, explained as needless, or named as something
//! to decide or left behind. What is verified is never less than in the source; where that cannot be
//! written, the service is written switched off. No I/O here: files come through [`Reader`].

use std::path::{Path, PathBuf};

mod address;
mod disk;
mod draft;
mod ghostunnel;
mod kong_env;
mod nginx;
mod openssl;
mod sources;
mod stunnel;

pub(crate) use disk::{Disk, write};
pub(crate) use draft::Converted;
use draft::Draft;
use sources::Sources;
pub(crate) use sources::{Mistake, Reader};

/// Whose configuration it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Product {
    /// stunnel.conf: services in client mode.
    Stunnel,
    /// Command lines of `ghostunnel client`: a script, a systemd unit, a Dockerfile, YAML, or flags.
    Ghostunnel,
    /// Environment variables of Kong: a file with KEY=VALUE lines, or a manifest.
    KongEnv,
    /// nginx.conf: servers of `stream` with `proxy_ssl`.
    Nginx,
}

impl Product {
    /// As on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Stunnel => "stunnel",
            Self::Ghostunnel => "ghostunnel",
            Self::KongEnv => "kong-env",
            Self::Nginx => "nginx",
        }
    }
}

/// Converts `files` into one configuration. They are named in messages as they are given; relative
/// ones count from `here`.
///
/// # Errors
/// The first thing that makes a file impossible to understand.
pub(crate) fn convert(
    product: Product,
    files: &[PathBuf],
    reader: &dyn Reader,
    here: &Path,
) -> Result<Converted, Mistake> {
    let mut sources = Sources::new(reader, here);
    let mut draft = Draft::default();
    let mut named = Vec::new();
    let mut environments = Vec::new();
    for file in files {
        let source = sources.named(file)?;
        match product {
            Product::Stunnel => stunnel::convert(&source, &mut sources, &mut draft)?,
            Product::Ghostunnel => ghostunnel::convert(&source, &mut sources, &mut draft)?,
            Product::Nginx => nginx::convert(&source, &mut sources, &mut draft)?,
            // Together they are one environment.
            Product::KongEnv => environments.push(source),
        }
        named.push(file.display().to_string());
    }
    if product == Product::KongEnv {
        kong_env::convert(&environments, &mut draft)?;
    }
    let made_by = format!(
        "tlsward convert --from {} {}",
        product.name(),
        named.join(" ")
    );
    draft.finish(&made_by)
}

#[cfg(test)]
mod tests;
