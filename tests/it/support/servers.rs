//! Servers that nobody here wrote, each asking for a client certificate, as child processes.
//!
//! A missing program is a failure that names its Debian package, never a skipped test.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;

use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use super::pki::{Issued, Pki};
use super::{net, until, within};

/// A server on an address of its own; killed when dropped.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    child: Child,
    directory: TempDir,
}

impl Server {
    /// Waits until it listens on `address`.
    pub(crate) async fn start(
        mut command: Command,
        address: SocketAddr,
        directory: TempDir,
    ) -> Self {
        let log = std::fs::File::create(directory.path().join("output")).unwrap();
        let child = command
            .stdin(Stdio::piped())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let mut server = Self {
            address,
            child,
            directory,
        };
        server.wait_until_it_listens().await;
        server
    }

    async fn wait_until_it_listens(&mut self) {
        let address = self.address;
        let (child, directory) = (&mut self.child, self.directory.path());
        within("a server to listen", async {
            loop {
                if TcpStream::connect(address).await.is_ok() {
                    return;
                }
                let ended = child.try_wait().expect("a child can be waited for");
                assert!(ended.is_none(), "{ended:?}: {}", output(directory));
                tokio::time::sleep(super::POLL).await;
            }
        })
        .await;
    }

    /// Types a line into the server's standard input.
    pub(crate) async fn type_line(&mut self, line: &str) {
        let stdin = self.child.stdin.as_mut().expect("stdin is piped");
        stdin
            .write_all(format!("{line}\n").as_bytes())
            .await
            .expect("the server reads its standard input");
    }

    /// What it wrote to stdout and stderr.
    pub(crate) fn output(&self) -> String {
        output(self.directory.path())
    }

    /// Waits until the server's own words contain `text`.
    #[track_caller]
    pub(crate) fn says(&self, text: &str) -> impl Future<Output = ()> {
        until(format!("the server to say {text:?}"), async move || {
            self.output().contains(text).then_some(())
        })
    }
}

fn output(directory: &Path) -> String {
    ["output", "error.log"]
        .iter()
        .filter_map(|name| std::fs::read_to_string(directory.join(name)).ok())
        .collect()
}

/// The command, or a failure that says how to get it.
pub(crate) fn program(name: &str, debian_package: &str) -> Command {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(name))
        .find(|candidate| candidate.is_file());
    match found {
        Some(found) => Command::new(found),
        None => panic!("{name} is needed for this test: apt-get install {debian_package}"),
    }
}

/// The certificate, key and client CA as files in a directory of the server's own.
pub(crate) fn files(present: &Issued, client_ca: &str) -> TempDir {
    let directory = tempfile::Builder::new()
        .prefix("tlsward-server-")
        .tempdir()
        .unwrap();
    let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
    write("server.crt", &present.chain_pem());
    write("server.key", &present.key_pem());
    write("clients.crt", client_ca);
    directory
}

/// How nginx is set up.
#[derive(Clone, Debug)]
pub(crate) struct Nginx {
    /// As in `ssl_protocols`.
    pub(crate) protocols: &'static str,
    pub(crate) http2: bool,
}

impl Nginx {
    pub(crate) const TLS12: Self = Self {
        protocols: "TLSv1.2",
        http2: false,
    };
    pub(crate) const TLS13: Self = Self {
        protocols: "TLSv1.3",
        http2: false,
    };
    pub(crate) const HTTP2: Self = Self {
        protocols: "TLSv1.2 TLSv1.3",
        http2: true,
    };

    /// Answers every request with one line on the caller, and ends the connection where HTTP/1.1
    /// asks for it.
    pub(crate) async fn start(self, pki: &Pki, present: &Issued) -> Server {
        let directory = files(present, &pki.root.pem());
        let address = net::address();
        let root = directory.path().display();
        let http2 = if self.http2 { " http2" } else { "" };
        let protocols = self.protocols;
        let config = format!(
            r#"
daemon off;
master_process off;
pid {root}/nginx.pid;
error_log {root}/error.log info;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {root}/body;
    proxy_temp_path {root}/proxy;
    fastcgi_temp_path {root}/fastcgi;
    uwsgi_temp_path {root}/uwsgi;
    scgi_temp_path {root}/scgi;
    server {{
        listen {address} ssl{http2};
        ssl_certificate {root}/server.crt;
        ssl_certificate_key {root}/server.key;
        ssl_client_certificate {root}/clients.crt;
        ssl_verify_client on;
        ssl_verify_depth 4;
        ssl_protocols {protocols};
        ssl_session_cache builtin;
        default_type text/plain;
        location / {{
            return 200 "dn=$ssl_client_s_dn serial=$ssl_client_serial protocol=$ssl_protocol resumed=$ssl_session_reused http=$server_protocol\n";
        }}
    }}
}}
"#
        );
        let file = directory.path().join("nginx.conf");
        std::fs::write(&file, config).unwrap();
        let mut command = program("nginx", "nginx");
        command.arg("-c").arg(file).arg("-p").arg(directory.path());
        Server::start(command, address, directory).await
    }
}

/// What `openssl s_server` does with a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Openssl {
    /// Sends each line back reversed (`-rev`).
    Reverse,
    /// Answers HTTP requests with the state of TLS (`-www`).
    Www,
    /// Shows what comes and sends what is typed ([`Server::type_line`]); a line that begins with
    /// `r` asks for a renegotiation.
    Console,
}

impl Openssl {
    /// `version` is a flag: `-tls1_2` or `-tls1_3`. Client certificates are required and verified.
    pub(crate) async fn start(self, pki: &Pki, present: &Issued, more: &[&str]) -> Server {
        let directory = files(present, &pki.root.pem());
        let address = net::address();
        let mut command = program("openssl", "openssl");
        command
            .current_dir(directory.path())
            .args(["s_server", "-accept", &address.to_string()])
            .args(["-cert", "server.crt", "-key", "server.key"])
            .args(["-cert_chain", "server.crt"])
            .args(["-CAfile", "clients.crt"])
            .args(["-Verify", "1", "-verify_return_error"])
            .args(more)
            .args(match self {
                Self::Reverse => Some("-rev"),
                Self::Www => Some("-www"),
                Self::Console => None,
            });
        Server::start(command, address, directory).await
    }
}

/// redis-server that speaks TLS only and insists on client certificates.
pub(crate) async fn redis(pki: &Pki, present: &Issued) -> Server {
    let directory = files(present, &pki.root.pem());
    let address = net::address();
    let mut command = program("redis-server", "redis-server");
    command
        .current_dir(directory.path())
        .args(["--port", "0", "--bind", &address.ip().to_string()])
        .args(["--tls-port", &address.port().to_string()])
        .args(["--tls-cert-file", "server.crt"])
        .args(["--tls-key-file", "server.key"])
        .args(["--tls-ca-cert-file", "clients.crt"])
        .args(["--tls-auth-clients", "yes"])
        .args(["--save", "", "--appendonly", "no"])
        .args(["--protected-mode", "no"]);
    Server::start(command, address, directory).await
}

/// nghttp2's HTTP/2 server, with ALPN h2 and client certificates required. Serves `/index.html`
/// with [`NGHTTPD_BODY`]. (It asks for a certificate but, as its manual says, does not check it.)
pub(crate) async fn nghttpd(pki: &Pki, present: &Issued) -> Server {
    let directory = files(present, &pki.root.pem());
    std::fs::write(directory.path().join("index.html"), NGHTTPD_BODY).unwrap();
    let address = net::address();
    let mut command = program("nghttpd", "nghttp2-server");
    command
        .current_dir(directory.path())
        .args(["--address", &address.ip().to_string()])
        .args(["--htdocs", "."])
        .arg("--verify-client")
        .arg(address.port().to_string())
        .args(["server.key", "server.crt"]);
    Server::start(command, address, directory).await
}

pub(crate) const NGHTTPD_BODY: &str = "served by nghttpd\n";
