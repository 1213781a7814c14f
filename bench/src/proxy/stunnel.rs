//! stunnel in client mode: a thread for each connection.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Proxy, Setup, Variants, peers};
use crate::workload::Workload;

pub(super) const NAME: &str = "stunnel";

struct Stunnel {
    program: PathBuf,
    version: String,
}

/// One: its documentation offers no tuning of buffers, which are of a record's size.
///
/// # Errors
/// The program does not start.
pub(super) fn variants(program: &Path) -> io::Result<Variants> {
    let said = peers::ask(program, &["-version"])?;
    Ok(vec![Box::new(Stunnel {
        program: program.to_owned(),
        version: version(&said),
    })])
}

impl Proxy for Stunnel {
    fn name(&self) -> &'static str {
        NAME
    }

    fn version(&self) -> String {
        self.version.clone()
    }

    fn sits_out(&self, workload: Workload) -> Option<&'static str> {
        (workload == Workload::Held).then_some("it would take 10,000 threads")
    }

    fn prepare(&self, setup: &Setup) -> io::Result<Option<Command>> {
        let config = setup.directory.join("stunnel.conf");
        fs::write(&config, config_text(setup))?;
        let mut command = Command::new(&self.program);
        command.arg(config);
        Ok(Some(command))
    }
}

fn config_text(setup: &Setup) -> String {
    let Setup {
        listen,
        upstream,
        server_name,
        pki,
        resumption,
        ..
    } = setup;
    let (ca, cert, key) = (pki.ca.display(), pki.chain.display(), pki.key.display());
    let resume = if *resumption { "yes" } else { "no" };
    format!(
        r#"foreground = yes
pid =
syslog = no
; Warnings and worse: connections are told of at a lower level.
debug = warning

[bench]
client = yes
accept = {listen}
connect = {upstream}
sslVersion = TLSv1.3
verifyChain = yes
CAfile = {ca}
checkHost = {server_name}
sni = {server_name}
cert = {cert}
key = {key}
sessionResume = {resume}
TIMEOUTidle = 86400
"#
    )
}

fn version(said: &str) -> String {
    let version = said
        .lines()
        .find(|line| line.starts_with("stunnel "))
        .and_then(|line| line.split(" on ").next())
        .unwrap_or("stunnel");
    let library = said
        .lines()
        .find_map(|line| line.trim_start().strip_prefix("Running  with "))
        .or_else(|| {
            said.lines()
                .find_map(|line| line.strip_prefix("Compiled/running with "))
        })
        .unwrap_or("unknown TLS library");
    format!("{version}, {library}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_names_the_library_that_runs() {
        let said = "Initializing inetd mode configuration
stunnel 5.68 on x86_64-pc-linux-gnu platform
Compiled with OpenSSL 3.0.9 30 May 2023
Running  with OpenSSL 3.0.19 27 Jan 2026";
        assert_eq!(version(said), "stunnel 5.68, OpenSSL 3.0.19 27 Jan 2026");
    }
}
