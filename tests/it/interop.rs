//! Both record layers of TLS 1.3 against other people's: bulk both ways, each suite, new keys while
//! data flows, and half-closed ends.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::net::{self, Caller, Ending};
use crate::support::pki::Pki;
use crate::support::proxy::{Config, Proxy, Service};
use crate::support::scene::NAME;
use crate::support::servers::{Server, files, program};
use crate::support::{until, within};

const LAYERS: [&str; 2] = ["own", "rustls"];

/// More than a scratch and both sockets' buffers hold.
const BULK: usize = 3 << 20;

/// Proxies to each of these upstreams with each record layer.
struct Fronts {
    proxy: Proxy,
    services: Vec<Service>,
}

impl Fronts {
    async fn of(pki: &Pki, upstreams: &[SocketAddr]) -> Self {
        let files = pki.identity_files(NAME, &pki.client(NAME));
        let mut services = Vec::new();
        for layer in LAYERS {
            for upstream in upstreams {
                let name = format!("{layer}-{}", upstream.port());
                let service = Service::new(&name, *upstream, pki).identity(&files);
                services.push(
                    service
                        .tls_text("record_layer", layer)
                        .tls_text("min_version", "1.3"),
                );
            }
        }
        Self {
            proxy: Proxy::start(pki, &Config::of(services.clone())).await,
            services,
        }
    }

    async fn have_no_failure(&self) {
        for service in &self.services {
            for side in ["local", "upstream"] {
                let labels = [
                    ("service", &service.name[..]),
                    ("outcome", "failed"),
                    ("side", side),
                ];
                let metric = self.proxy.metric("tlsward_connections_total", &labels);
                assert_eq!(metric.await, 0.0, "{labels:?}");
            }
        }
    }
}

/// Numbered lines: no part is like another, and none looks like a command to a server.
fn lines(len: usize) -> Vec<u8> {
    let mut lines = Vec::with_capacity(len + 16);
    let mut number = 0;
    while lines.len() < len {
        lines.extend(format!("x{number:014}\n").into_bytes());
        number += 1;
    }
    lines.truncate(len);
    lines
}

/// Sends `bytes` and reads them as they come back; then ends its way, and reads what the server has
/// to say after that.
async fn bulk_comes_back(service: &Service, bytes: Vec<u8>, farewell: &[u8]) {
    let name = &service.name;
    let caller = Caller::connect(service.address()).await.into_tcp();
    let (mut from, mut to) = caller.into_split();
    let expected = bytes.clone();
    let sending = tokio::spawn(async move {
        to.write_all(&bytes).await.expect("the proxy takes it");
        to
    });
    let mut back = vec![0; expected.len()];
    within(format!("all from {name}"), from.read_exact(&mut back))
        .await
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    assert!(back == expected, "{name}: not what was sent");
    let mut to = sending.await.expect("the sender ends");
    to.shutdown().await.expect("half-closing an open socket");
    let mut rest = Vec::new();
    within(format!("the end of {name}"), from.read_to_end(&mut rest))
        .await
        .unwrap_or_else(|error| panic!("{name}: {error} after {rest:?}"));
    assert_eq!(
        rest.escape_ascii().to_string(),
        farewell.escape_ascii().to_string()
    );
}

// === OpenSSL ===

const SUITES: [&str; 3] = [
    "TLS_AES_128_GCM_SHA256",
    "TLS_AES_256_GCM_SHA384",
    "TLS_CHACHA20_POLY1305_SHA256",
];

async fn s_server(pki: &Pki, suite: &str, more: &[&str]) -> Server {
    let directory = files(&pki.server(), &pki.root.pem());
    std::fs::write(directory.path().join("bulk"), lines(BULK)).unwrap();
    let address = net::address();
    let mut command = program("openssl", "openssl");
    command
        .current_dir(directory.path())
        .args(["s_server", "-tls1_3", "-ciphersuites", suite])
        .args(["-accept", &address.to_string()])
        .args(["-cert", "server.crt", "-key", "server.key"])
        .args(["-cert_chain", "server.crt"])
        .args(["-CAfile", "clients.crt"])
        .args(["-Verify", "1", "-verify_return_error"])
        .args(more);
    Server::start(command, address, directory).await
}

/// How many it has sent (`>>>`) or received (`<<<`).
fn updates(server: &Server, arrow: &str) -> usize {
    let said = server.output();
    let messages = said.lines().filter(|line| line.starts_with(arrow));
    messages.filter(|line| line.contains("KeyUpdate")).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openssl_changes_keys_both_ways_while_data_flows() {
    let pki = Pki::new();
    for suite in SUITES {
        let mut server = s_server(&pki, suite, &["-msg"]).await;
        let fronts = Fronts::of(&pki, &[server.address]).await;
        for (count, service) in fronts.services.iter().enumerate() {
            let mut caller = Caller::connect(service.address()).await;
            // `K` asks for our new keys too, `k` does not.
            for (round, command) in ["", "K", "k", "K", "K", "k"].into_iter().enumerate() {
                if !command.is_empty() {
                    let before = updates(&server, ">>>");
                    server.type_line(command).await;
                    until("a KeyUpdate", async || {
                        (updates(&server, ">>>") > before).then_some(())
                    })
                    .await;
                }
                let down = format!("x{}", "d".repeat(6_000 + round));
                server.type_line(&down).await;
                assert_eq!(caller.line().await, down, "{suite} {}", service.name);
                let mark = format!("the end of {round} of {}", service.name);
                let mut up = lines(40_000);
                up.extend(format!("\n{mark}\n").into_bytes());
                caller.send(&up).await;
                server.says(&mark).await;
            }
            caller.finish_sending().await;
            assert_eq!(caller.ending().await, Ending::Fin, "{suite}");
            assert_eq!(updates(&server, ">>>"), 5 * (count + 1), "{suite}");
            assert_eq!(
                updates(&server, "<<<"),
                3 * (count + 1),
                "answers to {suite}"
            );
        }
        fronts.have_no_failure().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openssl_sends_bulk_in_records_of_any_size() {
    let pki = Pki::new();
    for (suite, size) in SUITES.into_iter().zip(["512", "1000", "16384"]) {
        let server = s_server(&pki, suite, &["-WWW", "-max_send_frag", size]).await;
        let fronts = Fronts::of(&pki, &[server.address]).await;
        for service in &fronts.services {
            let mut caller = Caller::connect(service.address()).await;
            caller.send(b"GET /bulk HTTP/1.0\r\n\r\n").await;
            let (answer, ending) = caller.rest().await;
            assert_eq!(ending, Ending::Fin, "{suite} {}", service.name);
            assert!(answer.ends_with(&lines(BULK)), "{suite} {}", service.name);
        }
        fronts.have_no_failure().await;
    }
}

// === GnuTLS ===
//
// Its server has a command for new keys (`**REHANDSHAKE**`), which with TLS 1.3 ends the
// connection, whoever the client is.

/// gnutls-serv listens on all addresses: so on a port that no other test has on its own address.
fn wildcard_address() -> SocketAddr {
    let mut address = net::address();
    let process = u16::try_from(std::process::id() % 2_000).expect("it is below 2,000");
    address.set_port(address.port() + 4_000 + 4 * process);
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gnutls_echoes_lines_of_many_sizes_with_every_suite() {
    let pki = Pki::new();
    for cipher in ["AES-128-GCM", "AES-256-GCM", "CHACHA20-POLY1305"] {
        let directory = files(&pki.server(), &pki.root.pem());
        let address = wildcard_address();
        let priority = format!("NORMAL:-VERS-ALL:+VERS-TLS1.3:-CIPHER-ALL:+{cipher}");
        let mut command = program("gnutls-serv", "gnutls-bin");
        command
            .current_dir(directory.path())
            .args(["--echo", "--priority", &priority])
            .args(["--port", &address.port().to_string()])
            .args([
                "--x509certfile",
                "server.crt",
                "--x509keyfile",
                "server.key",
            ])
            .args(["--x509cafile", "clients.crt"])
            .args(["--require-client-cert", "--verify-client-cert"]);
        let server = Server::start(command, address, directory).await;
        let fronts = Fronts::of(&pki, &[server.address]).await;
        for service in &fronts.services {
            let mut caller = Caller::connect(service.address()).await;
            for round in 0..40 {
                caller.echo(&lines(16 * (1 + round * 20))).await;
            }
            caller.finish_sending().await;
            assert_eq!(caller.ending().await, Ending::Fin, "{}", server.output());
        }
        fronts.have_no_failure().await;
    }
}

// === Go ===

/// Sends back what comes, and after the end what it was.
const GO: &str = r#"
package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"os"
)

func main() {
	cert, err := tls.LoadX509KeyPair("server.crt", "server.key")
	check(err)
	pem, err := os.ReadFile("clients.crt")
	check(err)
	clients := x509.NewCertPool()
	clients.AppendCertsFromPEM(pem)
	listener, err := tls.Listen("tcp", os.Args[1], &tls.Config{
		Certificates: []tls.Certificate{cert},
		ClientCAs:    clients,
		ClientAuth:   tls.RequireAndVerifyClientCert,
		MinVersion:   tls.VersionTLS13,
	})
	check(err)
	for {
		conn, err := listener.Accept()
		check(err)
		go func() {
			defer conn.Close()
			if count, err := io.Copy(conn, conn); err == nil {
				fmt.Fprintf(conn, "received %d\n", count)
			}
		}()
	}
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn go_echoes_bulk_and_answers_after_our_end() {
    let pki = Pki::new();
    let directory = files(&pki.server(), &pki.root.pem());
    std::fs::write(directory.path().join("server.go"), GO).unwrap();
    let mut build = program("go", "golang-go");
    build
        .current_dir(directory.path())
        .args(["build", "-o", "server", "server.go"])
        .kill_on_drop(true);
    let built = tokio::time::timeout(BUILD, build.output()).await;
    let built = built.expect("go builds in time").unwrap();
    assert!(built.status.success(), "{built:?}");
    let address = net::address();
    let mut command = tokio::process::Command::new(directory.path().join("server"));
    command
        .current_dir(directory.path())
        .arg(address.to_string());
    let server = Server::start(command, address, directory).await;
    let fronts = Fronts::of(&pki, &[server.address]).await;
    for service in &fronts.services {
        let farewell = format!("received {BULK}\n");
        bulk_comes_back(service, lines(BULK), farewell.as_bytes()).await;
    }
    fronts.have_no_failure().await;
}

/// A compiler's first run, on a busy machine.
const BUILD: std::time::Duration = std::time::Duration::from_secs(120);

// === Java ===

/// As the one in Go; a port for each suite.
const JAVA: &str = r#"
import java.io.*;
import java.net.*;
import java.nio.file.*;
import java.security.*;
import java.security.cert.*;
import java.security.spec.*;
import java.util.*;
import javax.net.ssl.*;

public class Mirror {
    public static void main(String[] args) throws Exception {
        var x509 = CertificateFactory.getInstance("X.509");
        var chain = x509.generateCertificates(new FileInputStream("server.crt"));
        var pem = Files.readString(Path.of("server.key")).replaceAll("-----[^-]+-----|\\s", "");
        var key = KeyFactory.getInstance("EC")
            .generatePrivate(new PKCS8EncodedKeySpec(Base64.getDecoder().decode(pem)));
        var keys = KeyStore.getInstance("PKCS12");
        keys.load(null, null);
        keys.setKeyEntry("server", key, new char[0], chain.toArray(new java.security.cert.Certificate[0]));
        keys.setCertificateEntry("ca", x509.generateCertificate(new FileInputStream("clients.crt")));
        var ours = KeyManagerFactory.getInstance("PKIX");
        ours.init(keys, new char[0]);
        var theirs = TrustManagerFactory.getInstance("PKIX");
        theirs.init(keys);
        var context = SSLContext.getInstance("TLSv1.3");
        context.init(ours.getKeyManagers(), theirs.getTrustManagers(), null);
        var address = InetAddress.getByName(args[0]);
        for (int at = 1; at < args.length; at += 2) {
            var listener = (SSLServerSocket) context.getServerSocketFactory()
                .createServerSocket(Integer.parseInt(args[at]), 50, address);
            listener.setNeedClientAuth(true);
            listener.setEnabledProtocols(new String[] {"TLSv1.3"});
            listener.setEnabledCipherSuites(new String[] {args[at + 1]});
            new Thread(() -> { while (true) accept(listener); }).start();
        }
    }

    static void accept(ServerSocket listener) {
        try {
            var socket = listener.accept();
            new Thread(() -> mirror(socket)).start();
        } catch (IOException e) {
            e.printStackTrace();
        }
    }

    static void mirror(Socket socket) {
        try (socket) {
            var out = socket.getOutputStream();
            var count = socket.getInputStream().transferTo(out);
            out.write(("received " + count + "\n").getBytes());
            out.flush();
        } catch (IOException e) {
            System.err.println(e);
        }
    }
}
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn java_changes_keys_every_few_records_while_bulk_flows_both_ways() {
    const BYTES: usize = 1 << 19;
    let pki = Pki::new();
    let directory = files(&pki.server(), &pki.root.pem());
    std::fs::write(directory.path().join("Mirror.java"), JAVA).unwrap();
    // From these many bytes on Java sends a KeyUpdate, and asks for one.
    let limits = "jdk.tls.keyLimits=AES/GCM/NoPadding KeyUpdate 2^15, \
                  ChaCha20-Poly1305 KeyUpdate 2^15\n";
    std::fs::write(directory.path().join("limits"), limits).unwrap();
    let addresses = SUITES.map(|_| net::address());
    let mut command = program("java", "default-jdk-headless");
    command
        .current_dir(directory.path())
        .arg("-Djava.security.properties=limits")
        .arg("-Djavax.net.debug=ssl,handshake")
        .arg("Mirror.java")
        .arg(addresses[0].ip().to_string());
    for (address, suite) in addresses.iter().zip(SUITES) {
        command.arg(address.port().to_string()).arg(suite);
    }
    let server = Server::start(command, addresses[2], directory).await;
    let fronts = Fronts::of(&pki, &addresses).await;
    for service in &fronts.services {
        let farewell = format!("received {BYTES}\n");
        bulk_comes_back(service, lines(BYTES), farewell.as_bytes()).await;
    }
    fronts.have_no_failure().await;
    let said = server.output();
    let updates = |what: &str| said.matches(what).count();
    // Each asks for ours; several may be answered by one.
    let produced = updates("Produced KeyUpdate post-handshake message");
    let consumed = updates("Consuming KeyUpdate post-handshake message");
    assert!(
        produced > 6 * 10 && consumed >= 6,
        "{produced} and {consumed} KeyUpdates"
    );
}
