//! tlsward itself.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Proxy, Role, Setup};

/// Settings that would override the benchmark's configuration.
const SETTINGS: [&str; 7] = [
    "TLSWARD_TLS_VERIFY",
    "TLSWARD_TLS_VERIFY_DEPTH",
    "TLSWARD_TLS_CA",
    "TLSWARD_TLS_CERT",
    "TLSWARD_TLS_KEY",
    "TLSWARD_ADMIN_LISTEN",
    "TLSWARD_LOG",
];

/// A release build of tlsward.
pub(crate) struct Tlsward {
    program: PathBuf,
    version: String,
}

impl Tlsward {
    /// The program at `path`; or else the release build in the directory where this program was
    /// built, which cargo is asked to bring up to date first.
    ///
    /// # Errors
    /// There is no such program, or it cannot be built.
    pub(crate) fn find(path: Option<PathBuf>) -> io::Result<Self> {
        let program = match path {
            Some(path) => path,
            None => built()?,
        };
        let said = Command::new(&program)
            .arg("--version")
            .output()
            .map_err(|error| {
                let shown = program.display();
                io::Error::new(error.kind(), format!("starting {shown}: {error}"))
            })?;
        let version = String::from_utf8_lossy(&said.stdout).trim().to_owned();
        eprintln!("measuring {}", program.display());
        Ok(Self { program, version })
    }
}

/// A number from a stale build is worse than none, so cargo decides whether there is work to do.
fn built() -> io::Result<PathBuf> {
    let here = std::env::current_exe()?;
    // target/PROFILE/tlsward-bench
    let target = here
        .parent()
        .and_then(Path::parent)
        .ok_or_else(|| io::Error::other("this program is not in a target directory"))?;
    let program = target.join("release").join("tlsward");
    eprintln!(
        "bringing {} up to date (takes minutes where it is missing; --binary FILE avoids it)",
        program.display()
    );
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml");
    let status = Command::new(cargo)
        .args([
            "build",
            "--release",
            "--quiet",
            "--package",
            "tlsward",
            "--bin",
            "tlsward",
        ])
        .arg("--target-dir")
        .arg(target)
        .arg("--manifest-path")
        .arg(manifest)
        .status();
    match status {
        Ok(status) if status.success() => Ok(program),
        Ok(status) => Err(io::Error::other(format!(
            "building tlsward: cargo ended with {status}"
        ))),
        Err(error) if program.exists() => {
            eprintln!("cargo cannot be started ({error}): measuring what is there");
            Ok(program)
        }
        Err(error) => Err(io::Error::new(
            error.kind(),
            format!("building tlsward: {error}"),
        )),
    }
}

impl Proxy for Tlsward {
    fn name(&self) -> &'static str {
        "tlsward"
    }

    fn version(&self) -> String {
        self.version.clone()
    }

    fn role(&self) -> Role {
        Role::Subject
    }

    fn prepare(&self, setup: &Setup) -> io::Result<Option<Command>> {
        let config = setup.directory.join("config.toml");
        fs::write(&config, config_text(setup))?;
        let mut command = Command::new(&self.program);
        // One worker follows from the pinning: tlsward starts as many as it has CPUs.
        command.arg("run").arg("--config").arg(config);
        for name in SETTINGS {
            command.env_remove(name);
        }
        Ok(Some(command))
    }
}

fn config_text(setup: &Setup) -> String {
    let Setup {
        listen,
        admin,
        upstream,
        server_name,
        pki,
        group,
        resumption,
        ..
    } = setup;
    let admin = admin.map_or_else(|| "off".to_owned(), |address| address.to_string());
    let group = group.tls_name();
    let (ca, cert, key) = (pki.ca.display(), pki.chain.display(), pki.key.display());
    format!(
        r#"[admin]
listen = "{admin}"

[log]
filter = "warn"
connections = false

[services.bench]
listen = "{listen}"
upstream = "{upstream}"

[services.bench.tls]
ca = "{ca}"
cert = "{cert}"
key = "{key}"
server_name = "{server_name}"
key_exchange = ["{group}"]
resumption = {resumption}
"#
    )
}
