//! The files that the demo writes: certificates, keys and a configuration for the user to edit.

use std::fs;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::authority::{Authority, Issued};
use super::{DemoError, SERVER_NAME};

/// Where the demo writes; the directory exists and is empty afterwards.
pub(super) fn make_directory(wanted: Option<&Path>) -> Result<PathBuf, DemoError> {
    if let Some(wanted) = wanted {
        let failed = || DemoError::io(format!("making {}", wanted.display()));
        fs::create_dir_all(wanted).map_err(failed())?;
        let mut entries = fs::read_dir(wanted).map_err(failed())?;
        return match entries.next() {
            None => Ok(wanted.to_owned()),
            Some(_) => Err(DemoError::DirectoryInUse(wanted.to_owned())),
        };
    }
    new_directory(Path::new(""))
        .or_else(|_| new_directory(&std::env::temp_dir()))
        .map_err(DemoError::io("making a directory for the demo"))
}

/// The first of `tlsward-demo`, `tlsward-demo-2`, … in `parent` that does not exist yet: what a
/// user has edited there is never touched.
fn new_directory(parent: &Path) -> io::Result<PathBuf> {
    let mut path = parent.join("tlsward-demo");
    for number in 2..=1000 {
        match fs::create_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                path.set_file_name(format!("tlsward-demo-{number}"));
            }
            made => return made.map(|()| path),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// The files that an issuer of certificates would write.
pub(super) struct Files {
    certs: PathBuf,
}

impl Files {
    pub(super) fn new(directory: &Path) -> Result<Self, DemoError> {
        let certs = directory.join("certs");
        fs::create_dir_all(certs.join("client")).map_err(DemoError::io("making certs/client"))?;
        Ok(Self { certs })
    }

    pub(super) fn write_ca(&self, ca: &Authority) -> Result<(), DemoError> {
        fs::write(self.certs.join("ca.crt"), ca.pem()).map_err(DemoError::io("writing ca.crt"))
    }

    /// Key first, then certificate: between the two they do not fit, and tlsward waits.
    pub(super) fn rotate_to(&self, issued: &Issued) -> Result<(), DemoError> {
        self.replace("tls.key", &issued.key_pem())?;
        self.replace("tls.crt", &issued.pem())
    }

    /// Writes aside and renames over, so that no reader ever sees half a file.
    pub(super) fn replace(&self, name: &str, text: &str) -> Result<(), DemoError> {
        let target = self.certs.join("client").join(name);
        let aside = target.with_extension("new");
        let written = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&aside)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .and_then(|()| fs::rename(&aside, &target));
        written.map_err(DemoError::io(format!("writing {name}")))
    }
}

/// The configuration that stays behind. Each pair is a listener and its upstream.
pub(super) fn config_text(
    admin: SocketAddr,
    (listen, upstream): (SocketAddr, SocketAddr),
    (listen_stranger, stranger): (SocketAddr, SocketAddr),
) -> String {
    format!(
        r#"# Written by `tlsward demo`. Save a change and it is in force; paths are relative to this file.

[admin]
listen = "{admin}"

# Every service inherits these.
[defaults.tls]
ca   = "certs/ca.crt"
cert = "certs/client/tls.crt"
key  = "certs/client/tls.key"

# Plain TCP on `listen` becomes mutual TLS to `upstream`.
[services.greeter]
listen   = "{listen}"
upstream = "{upstream}"

[services.greeter.tls]
server_name = "{SERVER_NAME}"     # the upstream is an address; this is the name to verify

# A server whose certificate is from another CA: callers of this one are refused.
[services.stranger]
listen   = "{listen_stranger}"
upstream = "{stranger}"

[services.stranger.tls]
server_name = "{SERVER_NAME}"
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_holds_something_is_never_written_to() {
        let parent = tempfile::tempdir().expect("a temporary directory");
        let first = new_directory(parent.path()).expect("a directory");
        let second = new_directory(parent.path()).expect("a second directory");
        assert_ne!(first, second);
        fs::write(first.join("config.toml"), "mine").expect("a file");
        assert!(matches!(
            make_directory(Some(&first)),
            Err(DemoError::DirectoryInUse(named)) if named == first
        ));
        assert_eq!(make_directory(Some(&second)).expect("it is empty"), second);
    }
}
