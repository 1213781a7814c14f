//! What the other tests rely on: the servers really insist on client certificates, and the
//! programmable upstream does and reports what it says. No proxy here: a TLS client connects.

use std::net::SocketAddr;
use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::support::net;
use crate::support::pki::{Ca, Issued, Pki, SERVER_NAME};
use crate::support::servers::{Nginx, Openssl, Server, nghttpd, redis};
use crate::support::upstream::{
    Behaviour, End, Options, Seen, TLS12, TLS12_AND_13, TLS13, Upstream,
};
use crate::support::within;

type Client = TlsStream<TcpStream>;

/// A TLS connection with this certificate, or none.
async fn connect(
    to: SocketAddr,
    ca: &Ca,
    client: Option<&Issued>,
    versions: &[&'static rustls::SupportedProtocolVersion],
    alpn: &[&str],
) -> std::io::Result<Client> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match client {
        None => builder.with_no_client_auth(),
        Some(issued) => builder
            .with_client_auth_cert(issued.chain.clone(), issued.key_der())
            .unwrap(),
    };
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    let socket = TcpStream::connect(to).await?;
    let name = SERVER_NAME.try_into().unwrap();
    TlsConnector::from(Arc::new(config))
        .connect(name, socket)
        .await
}

/// Sends `question` and reads until `answer` has come, the stream ended or broke.
async fn ask(mut stream: Client, question: &[u8], answer: &str) -> String {
    let mut said = Vec::new();
    let exchange = async {
        stream.write_all(question).await?;
        let mut buffer = [0; 4096];
        while !String::from_utf8_lossy(&said).contains(answer) {
            match stream.read(&mut buffer).await? {
                0 => break,
                count => said.extend_from_slice(&buffer[..count]),
            }
        }
        std::io::Result::Ok(())
    };
    let _ = within("an answer or an end", exchange).await;
    String::from_utf8_lossy(&said).into_owned()
}

/// With a certificate of the PKI the server answers; without one, or with one of another CA where
/// the server checks that, it does not.
async fn insists(pki: &Pki, server: &Server, question: &[u8], answer: &str, alpn: &[&str]) {
    let known = pki.client("known");
    let unknown = Ca::root("Other Root").client("unknown").issue();
    let to = server.address;
    let stream = connect(to, &pki.root, Some(&known), TLS12_AND_13, alpn)
        .await
        .unwrap();
    let said = ask(stream, question, answer).await;
    assert!(said.contains(answer), "{said:?}; {}", server.output());
    for client in [None, Some(&unknown)] {
        if let Ok(stream) = connect(to, &pki.root, client, TLS12_AND_13, alpn).await {
            let said = ask(stream, question, answer).await;
            assert!(!said.contains(answer), "{client:?}: {said:?}");
        }
    }
}

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: upstream.test\r\nConnection: close\r\n\r\n";

#[tokio::test]
async fn nginx_insists_on_a_client_certificate() {
    for nginx in [Nginx::TLS12, Nginx::TLS13] {
        let pki = Pki::new();
        let server = nginx.start(&pki, &pki.server()).await;
        insists(&pki, &server, GET, "dn=CN=known ", &[]).await;
    }
}

#[tokio::test]
async fn openssl_s_server_insists_on_a_client_certificate() {
    for version in ["-tls1_2", "-tls1_3"] {
        let pki = Pki::new();
        let server = Openssl::Reverse
            .start(&pki, &pki.server(), &[version])
            .await;
        insists(&pki, &server, b"drawslt\n", "tlsward", &[]).await;
    }
}

#[tokio::test]
async fn redis_insists_on_a_client_certificate() {
    let pki = Pki::new();
    let server = redis(&pki, &pki.server()).await;
    insists(&pki, &server, b"PING\r\n", "+PONG", &[]).await;
}

#[tokio::test]
async fn nghttpd_insists_on_a_client_certificate_of_any_ca() {
    let pki = Pki::new();
    let server = nghttpd(&pki, &pki.server()).await;
    // The preface and empty SETTINGS; the server's own SETTINGS begin with this header.
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let alpn = &["h2"];
    let answers = async |client: Option<&Issued>| match connect(
        server.address,
        &pki.root,
        client,
        TLS12_AND_13,
        alpn,
    )
    .await
    {
        Ok(stream) => !ask(stream, preface, "\x04").await.is_empty(),
        Err(_) => false,
    };
    assert!(answers(Some(&pki.client("known"))).await);
    assert!(!answers(None).await);
}

#[tokio::test]
async fn the_upstream_names_its_caller_and_reports_how_each_connection_ended() {
    for versions in [TLS12, TLS13] {
        let pki = Pki::new();
        let upstream = Upstream::start(&pki).await;
        let client = pki.client("someone");
        let call = async || {
            let to = upstream.address();
            let mut stream = connect(to, &pki.root, Some(&client), versions, &[])
                .await
                .unwrap();
            let mut line = Vec::new();
            while line.last() != Some(&b'\n') {
                line.push(stream.read_u8().await.unwrap());
            }
            let line = String::from_utf8(line).unwrap();
            let seen = Seen::parse(line.trim_end());
            assert_eq!(seen.serial, client.serial());
            stream
        };

        let mut clean = call().await;
        clean.write_all(b"four").await.unwrap();
        clean.shutdown().await.unwrap();
        assert_eq!(upstream.end_of(1).await, (End::CloseNotify, 4));

        let (mut cut, _) = call().await.into_inner();
        cut.shutdown().await.unwrap();
        assert_eq!(upstream.end_of(2).await, (End::Fin, 0));

        net::reset(call().await.into_inner().0);
        assert_eq!(upstream.end_of(3).await, (End::Reset, 0));
    }
}

#[tokio::test]
async fn the_upstream_ends_as_it_was_told() {
    let pki = Pki::new();
    let client = pki.client("someone");
    for (behaviour, expected) in [
        (Behaviour::CloseFirst(b"bye".to_vec()), None),
        (
            Behaviour::Cut(b"bye".to_vec()),
            Some(std::io::ErrorKind::UnexpectedEof),
        ),
        (
            Behaviour::Break(b"bye".to_vec()),
            Some(std::io::ErrorKind::ConnectionReset),
        ),
    ] {
        let upstream = Upstream::behaving(&pki, behaviour.clone()).await;
        let mut stream = connect(upstream.address(), &pki.root, Some(&client), TLS13, &[])
            .await
            .unwrap();
        let mut said = Vec::new();
        let ended = within("the end", stream.read_to_end(&mut said)).await;
        assert_eq!(said, b"bye", "{behaviour:?}");
        assert_eq!(
            ended.err().map(|error| error.kind()),
            expected,
            "{behaviour:?}"
        );
    }
}

#[tokio::test]
async fn a_padded_chain_is_long_and_still_verifies() {
    let pki = Pki::new();
    let server = pki
        .root
        .intermediates(2)
        .server()
        .issue()
        .padded_to(60 * 1024);
    let upstream = Options::trusting(&pki.root).start(&server).await;
    let client = pki.client("someone");
    for versions in [TLS12, TLS13] {
        connect(upstream.address(), &pki.root, Some(&client), versions, &[])
            .await
            .unwrap();
    }
}
