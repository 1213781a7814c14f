//! HAProxy in mode tcp; and without TLS, as the floor of the bulk workloads.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Proxy, Role, Setup, Variants, peers};
use crate::workload::Workload;

pub(super) const DEFAULT: &str = "haproxy";
pub(super) const TUNED: &str = "haproxy-64k";
pub(super) const PLAIN: &str = "haproxy-plain";

struct Haproxy {
    name: &'static str,
    program: PathBuf,
    version: String,
    /// `tune.bufsize`; nothing is the default of 16384.
    buffer: Option<u32>,
}

/// As it comes, and with larger buffers: `tune.bufsize` is what its documentation offers for
/// throughput. The plain one copies the same bytes with the larger buffers and without TLS.
///
/// # Errors
/// The program does not start.
pub(super) fn variants(program: &Path) -> io::Result<Variants> {
    let said = peers::ask(program, &["-vv"])?;
    let variant = |name, buffer| {
        Box::new(Haproxy {
            name,
            program: program.to_owned(),
            version: version(&said),
            buffer,
        }) as Box<dyn Proxy>
    };
    Ok(vec![
        variant(DEFAULT, None),
        variant(TUNED, Some(65536)),
        variant(PLAIN, Some(65536)),
    ])
}

impl Haproxy {
    fn is_plain(&self) -> bool {
        self.name == PLAIN
    }

    fn config_text(&self, setup: &Setup) -> String {
        let Setup {
            listen,
            upstream,
            connections,
            ..
        } = setup;
        let buffer = self
            .buffer
            .map_or_else(String::new, |size| format!("    tune.bufsize {size}\n"));
        let tls = if self.is_plain() {
            String::new()
        } else {
            tls_text(setup)
        };
        format!(
            r#"global
    nbthread 1
    maxconn {connections}
    # Copying is what is compared; splicing would move the bytes inside the kernel.
    nosplice
{buffer}
defaults
    mode tcp
    # A connection that fails is to fail, and not to be tried again a second later.
    retries 0
    timeout connect 10s
    timeout client 1d
    timeout server 1d

listen bench
    bind {listen} backlog 4096
    server upstream {upstream}{tls}
"#
        )
    }
}

fn tls_text(setup: &Setup) -> String {
    let name = setup.server_name;
    let (ca, identity) = (setup.pki.ca.display(), setup.pki.identity.display());
    let reuse = if setup.resumption {
        ""
    } else {
        " no-ssl-reuse"
    };
    format!(
        " ssl ssl-min-ver TLSv1.3 verify required ca-file {ca} crt {identity} sni str({name}) \
         verifyhost {name}{reuse}"
    )
}

impl Proxy for Haproxy {
    fn name(&self) -> &'static str {
        self.name
    }

    fn version(&self) -> String {
        self.version.clone()
    }

    fn role(&self) -> Role {
        if self.is_plain() {
            Role::Floor
        } else {
            Role::Peer
        }
    }

    fn is_tuned(&self) -> bool {
        self.name == TUNED
    }

    fn sits_out(&self, workload: Workload) -> Option<&'static str> {
        (self.is_plain() && !workload.is_bulk()).then_some("without TLS only bytes can be compared")
    }

    fn prepare(&self, setup: &Setup) -> io::Result<Option<Command>> {
        let config = setup.directory.join("haproxy.cfg");
        fs::write(&config, self.config_text(setup))?;
        let mut command = Command::new(&self.program);
        command.args(["-db", "-q", "-f"]).arg(config);
        Ok(Some(command))
    }
}

fn version(said: &str) -> String {
    let version = said.lines().next().and_then(|line| {
        let words: Vec<_> = line.split_whitespace().take(3).collect();
        (words.len() == 3).then(|| words.join(" "))
    });
    let version = version.unwrap_or_else(|| "HAProxy".to_owned());
    let library = said
        .lines()
        .find(|line| line.starts_with("Running on OpenSSL") || line.starts_with("Running on SSL"))
        .and_then(|line| line.split_once(" : "))
        .map_or("unknown TLS library", |(_, library)| library);
    format!("{version}, {library}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_names_the_library_that_runs() {
        let said = "HAProxy version 2.6.12-1+deb12u4 2026/10/17 - https://haproxy.org/
Built with OpenSSL version : OpenSSL 3.0.22 25 Aug 2026
Running on OpenSSL version : OpenSSL 3.0.19 27 Jan 2026";
        assert_eq!(
            version(said),
            "HAProxy version 2.6.12-1+deb12u4, OpenSSL 3.0.19 27 Jan 2026"
        );
    }
}
