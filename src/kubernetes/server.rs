//! Where the API server is, who we are to it, and how it is reached.

use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures_util::future::BoxFuture;
use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::header::{ACCEPT, ACCEPT_ENCODING, HOST, HeaderMap, HeaderValue, USER_AGENT};
use hyper::http::uri::Scheme;
use hyper::{Request, Response};
use kube::client::{AuthError, ConfigExt as _};
use kube::config::{AuthInfo, Config, KubeConfigOptions, Kubeconfig, KubeconfigError};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use secrecy::ExposeSecret as _;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tower::util::BoxCloneSyncService;
use tower::{BoxError, ServiceBuilder, ServiceExt as _, service_fn};
use tracing::warn;

use super::connection::Io;

mod access;

pub(super) use access::access;

use crate::config::kubernetes::Kubernetes;

/// A peer that has gone without a word is noticed after 30 s: by then a watch is begun anew, which
/// is sooner than the server's own repetitions would come through.
const KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(15))
    .with_interval(Duration::from_secs(5))
    .with_retries(3);

/// How often the CA certificates of the service account are read again.
const CA_FRESH: Duration = Duration::from_secs(60);

/// Opens streams of bytes to the server.
pub(super) trait Dial: Send + Sync {
    /// A new one, its TLS handshake done.
    fn dial(&self) -> BoxFuture<'_, Result<Box<dyn Io>, String>>;
}

/// The API server.
pub(super) struct Server {
    /// As people know it: `https://10.0.0.1:443`.
    pub(super) name: String,
    /// A number for who we are to it, to see whether that has changed.
    pub(super) who: u64,
    host: HeaderValue,
    /// What stands before each path; without a slash at its end.
    prefix: String,
    dial: Box<dyn Dial>,
    credentials: Credentials,
}

/// Puts into a request's head who we are, and answers with that head.
type Credentials = BoxCloneSyncService<Request<Empty<Bytes>>, Response<()>, BoxError>;

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Server({})", self.name)
    }
}

impl Server {
    /// Finds the server: in `kubeconfig` where it is named, else as a pod does, else in what
    /// `KUBECONFIG` names or in `~/.kube/config`.
    ///
    /// # Errors
    /// Says what was tried and why it did not do.
    pub(super) async fn find(
        settings: &Kubernetes,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, String> {
        let settings = settings.clone();
        let provider = Arc::clone(provider);
        // Reads files, and may run a program that the kubeconfig names.
        let found =
            tokio::task::spawn_blocking(move || Self::of(&configuration(&settings)?, &provider));
        let mut server = found.await.unwrap_or_else(|error| {
            Err(format!("the search for the API server failed: {error}"))
        })?;
        // A token shows in the head of a request, wherever it comes from.
        let mut who = DefaultHasher::new();
        server.who.hash(&mut who);
        for (name, value) in &server.headers().await? {
            (name.as_str(), value.as_bytes()).hash(&mut who);
        }
        server.who = who.finish();
        Ok(server)
    }

    fn of(config: &Config, provider: &Arc<CryptoProvider>) -> Result<Self, String> {
        let url = &config.cluster_url;
        let name = url.to_string().trim_end_matches('/').to_owned();
        let authority = url
            .authority()
            .ok_or_else(|| format!("{name}: a URL of an API server has a host"))?;
        let of_this = |why| format!("{name}: {why}");
        let certificate = client_certificate(&config.auth_info).map_err(of_this)?;
        let mut who = DefaultHasher::new();
        if let Some((chain, key)) = &certificate {
            (chain, key.secret_der()).hash(&mut who);
        }
        let dial = Direct::to(config, certificate, provider).map_err(of_this)?;
        Ok(Self {
            host: HeaderValue::from_str(authority.as_str())
                .map_err(|_| format!("{name}: the host is not one"))?,
            prefix: url.path().trim_end_matches('/').to_owned(),
            dial: Box::new(dial),
            credentials: credentials(config)?,
            who: who.finish(),
            name,
        })
    }

    /// A server behind `dial`, to which we are nobody.
    #[cfg(test)]
    pub(super) fn anonymous(name: &str, dial: impl Dial + 'static) -> Self {
        Self {
            name: name.to_owned(),
            who: 0,
            host: HeaderValue::from_static("test"),
            prefix: String::new(),
            dial: Box::new(dial),
            credentials: BoxCloneSyncService::new(service_fn(async |_| Ok(Response::new(())))),
        }
    }

    /// Opens a connection.
    ///
    /// # Errors
    /// Says why, without naming the server.
    pub(super) async fn dial(&self) -> Result<Box<dyn Io>, String> {
        self.dial.dial().await
    }

    /// What stands in a request for `path`, which begins with a slash.
    pub(super) fn target(&self, path: &str) -> String {
        format!("{}{path}", self.prefix)
    }

    /// The head of any request: who we are, and what we take.
    ///
    /// # Errors
    /// Our credentials cannot be read.
    pub(super) async fn headers(&self) -> Result<HeaderMap, String> {
        let head = Request::new(Empty::new());
        let credentials = self.credentials.clone().oneshot(head).await;
        let credentials = credentials.map_err(|error| {
            let why = match error.downcast_ref() {
                Some(error) => without_secrets(error),
                None => error.to_string(),
            };
            format!("our credentials cannot be used: {why}")
        })?;
        let mut headers = credentials.into_parts().0.headers;
        headers.insert(HOST, self.host.clone());
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        // From 1.37 on watches are compressed where that is not said.
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let agent = concat!("tlsward/", env!("CARGO_PKG_VERSION"));
        headers.insert(USER_AGENT, HeaderValue::from_static(agent));
        Ok(headers)
    }
}

/// What kube makes of the surroundings.
fn configuration(settings: &Kubernetes) -> Result<Config, String> {
    // `context` is a word of kubeconfigs.
    let named = settings.kubeconfig.is_some() || settings.context.is_some();
    let outside = if named {
        None
    } else {
        match Config::incluster() {
            Ok(config) => return Ok(config),
            Err(kube::config::InClusterError::ReadEnvironmentVariable(_)) => {
                Some("not in a pod (KUBERNETES_SERVICE_HOST is not set)")
            }
            Err(error) => {
                return Err(format!(
                    "in a pod (KUBERNETES_SERVICE_HOST is set), but {error}: it needs the token \
                     of its service account (automountServiceAccountToken)"
                ));
            }
        }
    };
    let (place, kubeconfig) = match &settings.kubeconfig {
        Some(path) => (path.display().to_string(), Kubeconfig::read_from(path)),
        None => (
            "KUBECONFIG or ~/.kube/config".to_owned(),
            Kubeconfig::read(),
        ),
    };
    let fail = |error: &dyn fmt::Display| match outside {
        Some(outside) => format!("{outside}; and {place}: {error}"),
        None => format!("{place}: {error}"),
    };
    let kubeconfig = kubeconfig.map_err(|error| match &error {
        // Its text shows the lines around the mistake, in which a token may stand.
        KubeconfigError::Parse(error) => {
            let place = error.location();
            let place = place.map_or(String::new(), |at| {
                format!(" (line {}, column {})", at.line(), at.column())
            });
            fail(&format!("not the YAML of a kubeconfig{place}"))
        }
        error => fail(error),
    })?;
    let options = KubeConfigOptions {
        context: settings.context.clone(),
        ..KubeConfigOptions::default()
    };
    let proxy = proxy_of(&kubeconfig, &options);
    // It is async in name only.
    let config = tokio::runtime::Handle::current()
        .block_on(Config::from_custom_kubeconfig(kubeconfig, &options))
        .map_err(|error| fail(&error))?;
    if let Some(token) = &config.auth_info.token {
        // kube would panic.
        let text = token.expose_secret();
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(fail(
                &"token: holds blanks, line ends or other letters that no token has",
            ));
        }
    }
    if let Some(proxy) = proxy {
        return Err(fail(&format!(
            "proxy-url {proxy}: proxies to the API server are not supported"
        )));
    }
    Ok(config)
}

/// `proxy-url` of the cluster; what `HTTPS_PROXY` says is not followed.
fn proxy_of(kubeconfig: &Kubeconfig, options: &KubeConfigOptions) -> Option<String> {
    let context = options.context.as_ref();
    let context = context.or(kubeconfig.current_context.as_ref())?;
    let contexts = &mut kubeconfig.contexts.iter();
    let context = contexts.find(|named| named.name == *context)?;
    let cluster = &context.context.as_ref()?.cluster;
    let clusters = &mut kubeconfig.clusters.iter();
    let cluster = clusters.find(|named| named.name == *cluster)?;
    let proxy = cluster.cluster.as_ref()?.proxy_url.clone();
    proxy.filter(|proxy| !proxy.is_empty())
}

/// Tokens, token files (read again each minute), plugins, impersonation: all kube's.
fn credentials(config: &Config) -> Result<Credentials, String> {
    let fail = |error: &dyn fmt::Display| format!("our credentials cannot be used: {error}");
    let auth = config.auth_layer().map_err(|error| match &error {
        kube::Error::Auth(error) => fail(&without_secrets(error)),
        error => fail(error),
    })?;
    if auth.is_none() && config.auth_info.exec.is_some() {
        return Err(fail(
            &"the plugin of the kubeconfig gave no token (client certificates of plugins are not \
              supported)",
        ));
    }
    let extra = config.extra_headers_layer().map_err(|error| fail(&error))?;
    let service = ServiceBuilder::new()
        .layer(extra)
        .option_layer(auth)
        .map_err(BoxError::from)
        .service(service_fn(
            async |request: Request<Empty<Bytes>>| -> Result<_, BoxError> {
                let mut head = Response::new(());
                *head.headers_mut() = request.into_parts().0.headers;
                Ok(head)
            },
        ));
    Ok(BoxCloneSyncService::new(service))
}

/// What went wrong, without what a plugin was told and what it printed, which may be a token.
fn without_secrets(error: &AuthError) -> String {
    match error {
        AuthError::AuthExecRun { out, .. } => {
            format!("the plugin of the kubeconfig failed: {}", out.status)
        }
        AuthError::AuthExecParse(_) | AuthError::ParseTokenKey(_) => {
            "what the plugin of the kubeconfig printed cannot be read".to_owned()
        }
        error => error.to_string(),
    }
}

/// TCP, and TLS on top of it.
struct Direct {
    host: String,
    port: u16,
    /// `None`: plain HTTP, to this machine.
    tls: Option<Tls>,
}

struct Tls {
    name: ServerName<'static>,
    /// Read again when older than [`CA_FRESH`].
    ca_file: Option<PathBuf>,
    current: Mutex<(TlsConnector, Instant)>,
}

impl Direct {
    fn to(
        config: &Config,
        certificate: Option<ClientCertificate>,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, String> {
        let url = &config.cluster_url;
        let host = url.host().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let tls = if url.scheme() == Some(&Scheme::HTTPS) {
            Some(Tls::new(config, host, certificate, provider)?)
        } else if is_this_machine(host) {
            None
        } else {
            return Err("without https Secrets would pass in the clear".into());
        };
        let default = if tls.is_some() { 443 } else { 80 };
        Ok(Self {
            host: host.to_owned(),
            port: url.port_u16().unwrap_or(default),
            tls,
        })
    }

    async fn tcp(&self) -> io::Result<TcpStream> {
        let mut failed = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
        for address in tokio::net::lookup_host((self.host.as_str(), self.port)).await? {
            match TcpStream::connect(address).await {
                Ok(stream) => {
                    let socket = SockRef::from(&stream);
                    socket.set_tcp_keepalive(&KEEPALIVE)?;
                    socket.set_tcp_nodelay(true)?;
                    return Ok(stream);
                }
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }
}

fn is_this_machine(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

impl Dial for Direct {
    fn dial(&self) -> BoxFuture<'_, Result<Box<dyn Io>, String>> {
        Box::pin(async {
            let stream = self.tcp().await.map_err(|error| error.to_string())?;
            let Some(tls) = &self.tls else {
                return Ok(Box::new(stream) as Box<dyn Io>);
            };
            let stream = tls.connector().connect(tls.name.clone(), stream).await;
            match stream {
                Ok(stream) => Ok(Box::new(stream) as Box<dyn Io>),
                Err(error) => Err(format!("TLS: {error}")),
            }
        })
    }
}

impl Tls {
    fn new(
        config: &Config,
        host: &str,
        certificate: Option<ClientCertificate>,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, String> {
        let name = config.tls_server_name.as_deref().unwrap_or(host);
        let name = ServerName::try_from(name.to_owned())
            .map_err(|_| format!("{name:?} can stand in no certificate"))?;
        let roots = match &config.root_cert {
            Some(roots) => {
                let roots = roots.iter().cloned();
                roots.map(CertificateDer::from).collect()
            }
            None => rustls_native_certs::load_native_certs().certs,
        };
        let builder = ClientConfig::builder_with_provider(Arc::clone(provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?;
        let builder = if config.accept_invalid_certs {
            warn!(
                server = %config.cluster_url,
                "the kubeconfig says insecure-skip-tls-verify: anybody on the way can pass for \
                 the API server and hand out certificates"
            );
            let anybody = Anybody(Arc::clone(provider));
            builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(anybody))
        } else {
            builder.with_webpki_verifier(verifier(roots, provider)?)
        };
        let mut client = match certificate {
            Some((chain, key)) => builder
                .with_client_auth_cert(chain, key)
                .map_err(|error| format!("our client certificate: {error}"))?,
            None => builder.with_no_client_auth(),
        };
        // See `connection`.
        client.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            name,
            ca_file: config.root_cert_file.clone(),
            current: Mutex::new((TlsConnector::from(Arc::new(client)), Instant::now())),
        })
    }

    /// With the CA certificates of now: those of a service account are replaced in its files.
    fn connector(&self) -> TlsConnector {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(path) = &self.ca_file
            && current.1.elapsed() > CA_FRESH
        {
            current.1 = Instant::now();
            match with_roots(current.0.config(), path) {
                Ok(fresh) => current.0 = TlsConnector::from(Arc::new(fresh)),
                Err(why) => warn!(
                    file = %path.display(), why,
                    "the CA certificates of the API server cannot be read again; the old ones go on"
                ),
            }
        }
        current.0.clone()
    }
}

/// The same with the CA certificates that stand in a file now.
fn with_roots(old: &ClientConfig, path: &std::path::Path) -> Result<ClientConfig, String> {
    #[expect(
        clippy::disallowed_methods,
        reason = "public certificates, a few KB on a memory file system; not a source of ours"
    )]
    let pem = std::fs::read(path).map_err(|error| error.to_string())?;
    let roots: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let roots = roots.map_err(|error| error.to_string())?;
    let verifier = verifier(roots, old.crypto_provider())?;
    let mut fresh = old.clone();
    fresh.dangerous().set_certificate_verifier(verifier);
    Ok(fresh)
}

fn verifier(
    roots: Vec<CertificateDer<'static>>,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<WebPkiServerVerifier>, String> {
    let mut store = RootCertStore::empty();
    let (_, unusable) = store.add_parsable_certificates(roots);
    if store.is_empty() {
        return Err(format!(
            "none of the CA certificates of the API server can be used ({unusable} cannot)"
        ));
    }
    WebPkiServerVerifier::builder_with_provider(Arc::new(store), Arc::clone(provider))
        .build()
        .map_err(|error| error.to_string())
}

type ClientCertificate = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// What `client-certificate` and `client-key` of a kubeconfig's user say, in the file or as data.
fn client_certificate(user: &AuthInfo) -> Result<Option<ClientCertificate>, String> {
    let key = user.client_key_data.as_ref();
    let key = key.map(|data| data.expose_secret());
    let key = pem("client-key", key, user.client_key.as_deref())?;
    let data = user.client_certificate_data.as_deref();
    let certificate = user.client_certificate.as_deref();
    let chain = pem("client-certificate", data, certificate)?;
    let (chain, key) = match (chain, key) {
        (None, None) => return Ok(None),
        (Some(chain), Some(key)) => (chain, key),
        (_, _) => {
            return Err(
                "the kubeconfig's user has one of client-certificate and client-key; it takes both"
                    .into(),
            );
        }
    };
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&chain).collect();
    let certificates =
        certificates.map_err(|_| "client-certificate of the kubeconfig is not PEM")?;
    let key = PrivateKeyDer::from_pem_slice(&key)
        .map_err(|_| "client-key of the kubeconfig is not a PEM private key")?;
    Ok(Some((certificates, key)))
}

fn pem(
    what: &str,
    data: Option<&str>,
    path: Option<&str>,
) -> Result<Option<zeroize::Zeroizing<Vec<u8>>>, String> {
    let bytes = match (data, path) {
        (Some(data), _) if !data.is_empty() => BASE64_STANDARD
            .decode(data)
            .map_err(|_| format!("{what}-data of the kubeconfig is not base64"))?,
        (_, Some(path)) =>
        {
            #[expect(
                clippy::disallowed_methods,
                reason = "who we are to the API server; not a source of ours"
            )]
            std::fs::read(path).map_err(|error| format!("{what} {path}: {error}"))?
        }
        (_, None) => return Ok(None),
    };
    Ok(Some(zeroize::Zeroizing::new(bytes)))
}

/// Takes any certificate: `insecure-skip-tls-verify` of a kubeconfig.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests;
