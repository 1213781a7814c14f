//! ghostunnel in client mode.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Proxy, Setup, Variants, peers};

pub(super) const NAME: &str = "ghostunnel";

struct Ghostunnel {
    program: PathBuf,
    version: String,
}

/// One: it has no buffers to tune.
///
/// # Errors
/// The program does not start.
pub(super) fn variants(program: &Path) -> io::Result<Variants> {
    let said = peers::ask(program, &["--version"])?;
    let version = said
        .split_whitespace()
        .next()
        .unwrap_or("of an unknown version");
    Ok(vec![Box::new(Ghostunnel {
        program: program.to_owned(),
        version: format!("ghostunnel {version}, Go"),
    })])
}

impl Proxy for Ghostunnel {
    fn name(&self) -> &'static str {
        NAME
    }

    fn version(&self) -> String {
        self.version.clone()
    }

    fn prepare(&self, setup: &Setup) -> io::Result<Option<Command>> {
        let mut command = Command::new(&self.program);
        // It cannot resume sessions; the report shows the share. GOMAXPROCS follows from the
        // pinning.
        command.arg("client");
        command.arg(format!("--listen={}", setup.listen));
        command.arg(format!("--target={}", setup.upstream));
        command.arg(format!("--override-server-name={}", setup.server_name));
        command.arg("--cacert").arg(&setup.pki.ca);
        command.arg("--cert").arg(&setup.pki.chain);
        command.arg("--key").arg(&setup.pki.key);
        command.args(["--quiet=conns", "--quiet=handshake-errs"]);
        Ok(Some(command))
    }
}
