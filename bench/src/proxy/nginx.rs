//! nginx's stream module.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Proxy, Setup, Variants, peers};

pub(super) const DEFAULT: &str = "nginx";
pub(super) const TUNED: &str = "nginx-64k";

struct Nginx {
    program: PathBuf,
    version: String,
    module: Option<PathBuf>,
    /// `proxy_buffer_size`; nothing is the default of 16k.
    buffer: Option<&'static str>,
}

/// As it comes, and with larger buffers: `proxy_buffer_size` is what the module's documentation
/// offers for throughput.
///
/// # Errors
/// The program does not start, or was built without the module.
pub(super) fn variants(program: &Path) -> io::Result<Variants> {
    let said = peers::ask(program, &["-V"])?;
    let module = module(&said).map_err(io::Error::other)?;
    if let Some(file) = module.as_deref().filter(|file| !file.exists()) {
        let file = file.display();
        return Err(io::Error::other(format!(
            "{file} is missing; apt-get install libnginx-mod-stream"
        )));
    }
    let variant = |buffer| {
        Box::new(Nginx {
            program: program.to_owned(),
            version: version(&said),
            module: module.clone(),
            buffer,
        }) as Box<dyn Proxy>
    };
    Ok(vec![variant(None), variant(Some("64k"))])
}

impl Proxy for Nginx {
    fn name(&self) -> &'static str {
        if self.buffer.is_some() {
            TUNED
        } else {
            DEFAULT
        }
    }

    fn version(&self) -> String {
        self.version.clone()
    }

    fn is_tuned(&self) -> bool {
        self.buffer.is_some()
    }

    fn prepare(&self, setup: &Setup) -> io::Result<Option<Command>> {
        let config = setup.directory.join("nginx.conf");
        fs::write(&config, self.config_text(setup))?;
        let mut command = Command::new(&self.program);
        // Until it has read the configuration it would write to the system's log file.
        command.args(["-e", "stderr", "-p"]).arg(&setup.directory);
        command.arg("-c").arg(config);
        Ok(Some(command))
    }
}

impl Nginx {
    fn config_text(&self, setup: &Setup) -> String {
        let Setup {
            directory,
            listen,
            upstream,
            server_name,
            pki,
            resumption,
            connections,
            ..
        } = setup;
        let directory = directory.display();
        let (ca, cert, key) = (pki.ca.display(), pki.chain.display(), pki.key.display());
        let load = self.module.as_ref().map_or_else(String::new, |file| {
            format!("load_module {};\n", file.display())
        });
        let buffer = self.buffer.map_or_else(String::new, |size| {
            format!("    proxy_buffer_size {size};\n")
        });
        let reuse = if *resumption { "on" } else { "off" };
        // Each caller takes two, and a few are the program's own.
        let table = connections * 2 + 64;
        format!(
            r#"{load}daemon off;
# Workers would else change to a user who may not exist in the namespace's map.
user root root;
worker_processes 1;
pid {directory}/nginx.pid;
error_log stderr warn;
events {{
    worker_connections {table};
}}
stream {{
    access_log off;
    server {{
        listen {listen} backlog=4096;
        proxy_pass {upstream};
        proxy_timeout 1d;
        proxy_ssl on;
        proxy_ssl_protocols TLSv1.3;
        proxy_ssl_verify on;
        proxy_ssl_verify_depth 2;
        proxy_ssl_trusted_certificate {ca};
        proxy_ssl_certificate {cert};
        proxy_ssl_certificate_key {key};
        proxy_ssl_server_name on;
        proxy_ssl_name {server_name};
        proxy_ssl_session_reuse {reuse};
    {buffer}    }}
}}
"#
        )
    }
}

/// The first line, and the crypto library it runs with.
fn version(said: &str) -> String {
    let version = said
        .lines()
        .find_map(|line| line.strip_prefix("nginx version: "))
        .unwrap_or("nginx");
    let library = said
        .lines()
        .find_map(|line| line.strip_prefix("built with "))
        .map(|built| match built.split_once("(running with ") {
            Some((_, running)) => running.trim_end_matches(')'),
            None => built,
        })
        .unwrap_or("unknown TLS library");
    format!("{version}, {library}")
}

/// The file to load, where the module is one; nothing where it is built in.
fn module(said: &str) -> Result<Option<PathBuf>, &'static str> {
    let words = || {
        said.lines()
            .filter_map(|line| line.strip_prefix("configure arguments:"))
            .flat_map(str::split_whitespace)
    };
    if words().any(|word| word == "--with-stream") {
        return Ok(None);
    }
    if !words().any(|word| word == "--with-stream=dynamic") {
        return Err("this nginx was built without its stream module");
    }
    let directory = words().find_map(|word| word.strip_prefix("--modules-path="));
    Ok(directory.map(|path| Path::new(path).join("ngx_stream_module.so")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEBIAN: &str = "nginx version: nginx/1.22.1
built with OpenSSL 3.0.22 25 Aug 2026 (running with OpenSSL 3.0.19 27 Jan 2026)
TLS SNI support enabled
configure arguments: --prefix=/usr/share/nginx --modules-path=/usr/lib/nginx/modules --with-stream=dynamic --with-stream_ssl_module";

    #[test]
    fn the_module_is_loaded_from_where_this_build_keeps_it() {
        let file = Path::new("/usr/lib/nginx/modules/ngx_stream_module.so");
        assert_eq!(module(DEBIAN).unwrap().as_deref(), Some(file));
    }

    #[test]
    fn a_module_that_is_built_in_is_not_loaded_and_a_missing_one_is_said() {
        let built_in = "configure arguments: --with-stream --with-stream_ssl_module";
        assert_eq!(module(built_in), Ok(None));
        assert!(module("configure arguments: --with-http_ssl_module").is_err());
    }

    #[test]
    fn the_version_names_the_library_that_runs_and_not_the_one_of_the_build() {
        assert_eq!(version(DEBIAN), "nginx/1.22.1, OpenSSL 3.0.19 27 Jan 2026");
    }
}
