//! The demo's upstream: a server that insists on a client certificate, says who called, and then
//! sends each line back.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::authority::{Authority, Issued, colon_hex};

/// What a caller can ask on an open connection; any other line comes back as it is.
pub(super) const WHO: &str = "who?";

/// A running server; it and its connections end when dropped.
pub(super) struct Upstream {
    pub(super) address: SocketAddr,
    _accepting: JoinSet<()>,
}

impl Upstream {
    /// Presents `present` on a free port of 127.0.0.1 and lets in callers with a certificate from
    /// `clients`.
    pub(super) async fn start(present: &Issued, clients: &Authority) -> io::Result<Self> {
        let acceptor = TlsAcceptor::from(server_config(present, clients)?);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let mut accepting = JoinSet::new();
        accepting.spawn(accept(listener, acceptor));
        Ok(Self {
            address,
            _accepting: accepting,
        })
    }
}

fn server_config(present: &Issued, clients: &Authority) -> io::Result<Arc<ServerConfig>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(clients.der()).map_err(io::Error::other)?;
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), Arc::clone(&provider))
        .build()
        .map_err(io::Error::other)?;
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![present.der()], present.key_der())
        .map_err(io::Error::other)?;
    Ok(Arc::new(config))
}

/// Accepts until dropped. A connection's own trouble ends that connection alone.
async fn accept(listener: TcpListener, acceptor: TlsAcceptor) {
    let mut connections = JoinSet::new();
    let mut number = 0_u64;
    while let Ok((socket, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        let acceptor = acceptor.clone();
        let next = number + 1;
        connections.spawn(async move { connection(socket, acceptor, next).await });
        number = next;
    }
}

/// Numbers are those of TCP connections; readiness of the proxy opens none.
async fn connection(socket: TcpStream, acceptor: TlsAcceptor, number: u64) -> io::Result<()> {
    let stream = acceptor.accept(socket).await?;
    let who = describe(&stream, number);
    let mut stream = BufReader::new(stream);
    say(&mut stream, &format!("hello, {who}\n")).await?;
    let mut line = String::new();
    while stream.read_line(&mut line).await? > 0 {
        if line.trim_end() == WHO {
            say(&mut stream, &format!("still {who}\n")).await?;
        } else {
            say(&mut stream, &line).await?;
        }
        line.clear();
    }
    stream.shutdown().await
}

async fn say(stream: &mut BufReader<TlsStream<TcpStream>>, text: &str) -> io::Result<()> {
    stream.write_all(text.as_bytes()).await?;
    stream.flush().await
}

/// Who called, in one line.
fn describe(stream: &TlsStream<TcpStream>, number: u64) -> String {
    let session = stream.get_ref().1;
    let leaf = session.peer_certificates().and_then(|chain| chain.first());
    let Some(leaf) = leaf else {
        return format!("nobody (connection {number})");
    };
    let (subject, serial) = match x509_parser::parse_x509_certificate(leaf) {
        Ok((_, parsed)) => (parsed.subject().to_string(), colon_hex(parsed.raw_serial())),
        Err(_) => ("unreadable".to_owned(), "unreadable".to_owned()),
    };
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, leaf);
    let fingerprint = colon_hex(&digest.as_ref()[..4]);
    format!("{subject} with certificate {serial} (SHA-256 {fingerprint}…), connection {number}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::ClientConfig;
    use tokio_rustls::TlsConnector;

    const NAME: &str = "greeter.demo";

    /// The first line that a client with this certificate reads.
    async fn greeting(upstream: &Upstream, server_ca: &Authority, client: &Issued) -> String {
        let mut roots = RootCertStore::empty();
        roots.add(server_ca.der()).expect("a CA certificate");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has its versions")
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![client.der()], client.key_der())
            .expect("the key fits");
        let socket = TcpStream::connect(upstream.address).await.expect("TCP");
        let name = NAME.try_into().expect("a name");
        let connector = TlsConnector::from(Arc::new(config));
        let stream = connector
            .connect(name, socket)
            .await
            .expect("our half of TLS");
        let mut line = String::new();
        // A server that refuses says so after our half is done (RFC 8446 section 4.4.2.4).
        let _ = BufReader::new(stream).read_line(&mut line).await;
        line
    }

    #[tokio::test]
    async fn the_upstream_names_a_caller_of_its_ca_and_says_nothing_to_others() {
        let now = time::OffsetDateTime::now_utc().into();
        let mut ca = Authority::new("CA", 0x1001, now).expect("a CA");
        let mut other = Authority::new("other CA", 0x2001, now).expect("a CA");
        let server = ca.server(NAME).expect("a certificate");
        let upstream = Upstream::start(&server, &ca).await.expect("an upstream");
        let known = ca.client("demo-app").expect("a certificate");
        let unknown = other.client("demo-app").expect("a certificate");
        let said = greeting(&upstream, &ca, &known).await;
        assert!(said.starts_with("hello, CN=demo-app"), "{said}");
        assert!(said.contains(&known.serial), "{said}");
        assert_eq!(greeting(&upstream, &ca, &unknown).await, "");
    }
}
