//! The configuration as the rest of the program sees it: validated, every reference resolved,
//! nothing in it that can still be wrong.
//!
//! [`Config::parse`] is the only way in. It finds every mistake in one pass and names the place,
//! the reason and the fix of each. No I/O and no clock here: the text and the environment are
//! arguments.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use rustls_pki_types::ServerName;
use toml::de::DeTable;

mod annotations;
mod assemble;
pub mod credential;
mod document;
pub mod endpoint;
mod environment;
mod expand;
mod identity;
mod keys;
pub mod kubernetes;
mod listeners;
pub mod name;
mod problem;
mod reader;
pub mod reference;
pub mod sandbox;
mod schema;
mod syntax;
mod value;

#[cfg(test)]
mod tests;

pub use credential::Credential;
pub use endpoint::{Host, Listen, UpstreamAddress};
pub use name::ServiceName;
pub use problem::{Place, Problem, Problems};
pub use schema::schema;

/// A whole configuration. Two configurations are equal when they ask for the same behaviour;
/// where a value was written does not count.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The admin endpoints.
    pub admin: Admin,
    /// What is logged, and how.
    pub log: Log,
    /// `[sandbox]`: counts at the start of the process.
    pub sandbox: sandbox::Sandbox,
    /// Every file that it names, for the sandbox.
    pub named_files: sandbox::NamedFiles,
    /// How long open connections may go on after SIGTERM. Default 30 s.
    pub shutdown_timeout: Duration,
    /// Threads that carry connections; counts at the start of the process. Default: one for each
    /// CPU that it may use.
    pub workers: Option<NonZeroUsize>,
    /// How long callers are still taken after SIGTERM, while readiness is denied. Default 0 s.
    pub shutdown_delay: Duration,
    /// `[kubernetes]`.
    pub kubernetes: kubernetes::Kubernetes,
    /// All services, by name. No two have the same listener.
    pub services: BTreeMap<ServiceName, Service>,
    /// Services that are asked for and cannot be built, for a reason that lies in the cluster and
    /// concerns them alone.
    pub unbuilt: BTreeMap<ServiceName, Unbuilt>,
    /// For each service of the file or of discovery that has one, its Kubernetes Service.
    pub backends: BTreeMap<ServiceName, kubernetes::ObjectRef>,
    /// Which of them discovery has found.
    pub discovered: BTreeSet<ServiceName>,
    /// Where each value of each service comes from, for `tlsward check`.
    pub origins: Origins,
}

impl Config {
    /// Reads a configuration.
    ///
    /// `path` is the file that `text` was read from, absolute: problems name it, and relative
    /// paths in the configuration count from its directory. `environment` is used for `${VAR}` in
    /// string values and for the variables that begin with `TLSWARD_`.
    ///
    /// # Errors
    /// Every mistake that can be found, not only the first. Where the text is not TOML, so that
    /// some keys may not have been seen, nothing is reported as missing.
    pub fn parse(
        text: &str,
        path: &Path,
        environment: &BTreeMap<String, String>,
    ) -> Result<Self, Problems> {
        Self::parse_with(text, path, environment, &kubernetes::Cluster::default())
    }

    /// Reads a configuration, with what is known of the Kubernetes Services that it names or
    /// discovers. What is wrong with one of those is no error: see [`Self::unbuilt`].
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn parse_with(
        text: &str,
        path: &Path,
        environment: &BTreeMap<String, String>,
        cluster: &kubernetes::Cluster,
    ) -> Result<Self, Problems> {
        let kubernetes = cfg!(feature = "kubernetes");
        Self::read(text, path, environment, cluster, kubernetes)
    }

    /// `kubernetes`: whether the build can speak with Kubernetes.
    fn read(
        text: &str,
        path: &Path,
        environment: &BTreeMap<String, String>,
        cluster: &kubernetes::Cluster,
        kubernetes: bool,
    ) -> Result<Self, Problems> {
        let base = path.parent().unwrap_or(path);
        let (root, errors) = DeTable::parse_recoverable(text);
        let repaired;
        let (root, syntax) = if errors.is_empty() {
            (root, syntax::Syntax::intact())
        } else {
            let (readable, syntax) = syntax::repair(text);
            repaired = readable;
            (DeTable::parse_recoverable(&repaired).0, syntax)
        };

        let findings = problem::Findings::new(path, text, environment);
        let mut reader = reader::Reader::new(
            findings,
            base,
            environment,
            syntax,
            cluster.own_namespace.as_deref(),
            kubernetes,
        );
        let mut document = document::Document::read(root.get_ref(), &mut reader);
        let (mut findings, all_keys_were_read) = reader.finish();
        let overrides = environment::read(
            environment,
            base,
            &mut document.admin,
            &mut document.log,
            &mut findings,
        );
        if !all_keys_were_read {
            return Err(findings
                .into_problems()
                .expect("the syntax error was reported"));
        }
        let config = assemble::assemble(document, &overrides, cluster, &mut findings);
        match findings.into_problems() {
            Some(problems) => Err(problems),
            None => Ok(config),
        }
    }
}

impl Config {
    /// The configuration before the first one: no listener, no service.
    pub(crate) fn empty() -> Self {
        Self {
            admin: Admin {
                listen: None,
                public_listen: None,
            },
            log: Log {
                filter: "info".to_owned(),
                connections: true,
            },
            sandbox: sandbox::Sandbox::default(),
            named_files: sandbox::NamedFiles::default(),
            shutdown_timeout: Duration::ZERO,
            workers: None,
            shutdown_delay: Duration::ZERO,
            kubernetes: kubernetes::Kubernetes::default(),
            services: BTreeMap::new(),
            unbuilt: BTreeMap::new(),
            backends: BTreeMap::new(),
            discovered: BTreeSet::new(),
            origins: Origins::default(),
        }
    }

    /// Whether a service, built or not, stands in no file but follows from a Kubernetes Service.
    pub(crate) fn is_discovered(&self, name: &ServiceName) -> bool {
        self.discovered.contains(name)
    }

    /// Where a value of a service was written, in words.
    pub(crate) fn origin(&self, service: &ServiceName, origin: &Origin) -> String {
        match origin {
            Origin::BuiltIn => "built-in default".to_owned(),
            Origin::Defaults { line } => format!("[defaults], line {line}"),
            Origin::Service { line } => format!("[services.{service}], line {line}"),
            Origin::Environment(variable) => (*variable).to_owned(),
            Origin::Annotation(annotation) => match self.backends.get(service) {
                Some(object) => format!("annotation {annotation} of Service {object}"),
                None => format!("annotation {annotation}"),
            },
        }
    }

    /// Only `admin.listen`, from a configuration that may have mistakes elsewhere: for commands
    /// that ask the running process. `None` is `"off"`.
    ///
    /// # Errors
    /// What is wrong with this one key, in words.
    pub(crate) fn admin_listen(
        text: &str,
        path: &Path,
        environment: &BTreeMap<String, String>,
    ) -> Result<Option<Listen>, String> {
        const DEFAULT: &str = "127.0.0.1:9901";
        let (root, _) = DeTable::parse_recoverable(text);
        let written = root
            .get_ref()
            .get("admin")
            .and_then(|admin| admin.get_ref().get("listen"))
            .and_then(|listen| listen.get_ref().as_str());
        let written = match environment.get("TLSWARD_ADMIN_LISTEN") {
            Some(value) => Cow::Borrowed(value.as_str()),
            None => expand::expand(written.unwrap_or(DEFAULT), environment)
                .map_err(|wrong| format!("admin.listen: {}", wrong.reason))?,
        };
        let base = path.parent().unwrap_or(path);
        document::admin_listen(&written, base)
            .map_err(|wrong| format!("admin.listen: {}", wrong.reason))
    }
}

impl Listen {
    /// `HOST:PORT` or `unix:PATH`; a relative path counts from the working directory.
    ///
    /// # Errors
    /// In words.
    pub(crate) fn of_argument(text: &str) -> Result<Self, String> {
        let here = std::path::absolute(".").unwrap_or_default();
        Self::parse_address(text, &here).map_err(|wrong| format!("{}; {}", wrong.reason, wrong.fix))
    }
}

/// `[admin]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// All endpoints, `POST /reload` included. Default `127.0.0.1:9901`; `None` is `"off"`.
    pub listen: Option<Listen>,
    /// Only `/livez`, `/readyz` and `/metrics`. Default off.
    pub public_listen: Option<Listen>,
}

/// `[log]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// A filter in the syntax of `tracing_subscriber::EnvFilter`. Default `info`.
    pub filter: String,
    /// One line per ended connection. Default true.
    pub connections: bool,
}

/// A service that is asked for and cannot be built.
#[derive(Clone, Debug, PartialEq)]
pub struct Unbuilt {
    /// Where callers would connect, if that much is clear.
    pub listen: Option<Listen>,
    /// The Kubernetes Service that it is about.
    pub object: kubernetes::ObjectRef,
    /// What is in the way.
    pub obstacle: Obstacle,
}

/// What is in the way of a service.
#[derive(Clone, Debug, PartialEq)]
pub enum Obstacle {
    /// Nothing is known of the Service yet.
    Unknown,
    /// There is no such Service.
    Missing,
    /// Mistakes in its annotations, or a port that it does not have.
    Mistakes(Problems),
    /// Another service has the listener: the file's, or an older Service's.
    ListenerTaken {
        /// The service that has it.
        by: ServiceName,
    },
}

/// One listener and the upstream that its callers reach.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// The service's name.
    pub name: ServiceName,
    /// Where callers connect.
    pub listen: Listen,
    /// Where connections go.
    pub upstream: Upstream,
    /// The client certificate, or `None` where the file says `client_auth = false`.
    pub identity: Option<IdentitySource>,
    /// The CA certificates and revocation lists; `None` where `verify = "none"` and no `ca`.
    pub trust: Option<TrustSource>,
    /// How TLS is spoken and what is verified.
    pub tls: TlsPolicy,
    /// Time limits.
    pub timeouts: Timeouts,
    /// Open connections at once; more wait in the kernel's backlog. Default no limit.
    pub max_connections: Option<NonZeroUsize>,
    /// TLS handshakes with the upstream at once; more wait in order. Default 256.
    pub max_handshakes: Option<NonZeroUsize>,
    /// Idle time before TCP keep-alive probes, on both sides. Default 3 minutes; `None` is off.
    pub keepalive: Option<Duration>,
    /// What a new certificate means to open connections.
    pub on_rotation: OnRotation,
    /// What the caller sees where the upstream ends without `close_notify`.
    pub unclean_close: UncleanClose,
    /// Who may connect to the listener.
    pub allow_callers: Callers,
    /// That other machines may reach the listener is meant. Default no. Held against the addresses
    /// of systemd's sockets when they are taken; others were held against it before.
    pub allow_remote_callers: bool,
}

impl Service {
    /// Where the CA certificates come from, if servers are verified.
    pub(crate) fn ca(&self) -> Option<&CaSource> {
        self.trust.as_ref().map(|trust| &trust.ca)
    }
}

/// `upstream`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upstream {
    /// Tried in this order. Never empty.
    Addresses(Vec<UpstreamAddress>),
    /// The endpoints of a Kubernetes Service, over which connections are spread.
    Service(kubernetes::ServiceBackend),
}

impl Upstream {
    /// Each address, or the Service, for people.
    pub(crate) fn words(&self) -> Vec<String> {
        match self {
            Self::Addresses(addresses) => addresses.iter().map(ToString::to_string).collect(),
            Self::Service(backend) => vec![backend.to_string()],
        }
    }
}

/// Time limits of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Look-up, TCP and TLS handshake together. Default 10 s.
    pub connect: Duration,
    /// Without a byte either way. Default `None`: databases keep idle sessions.
    pub idle: Option<Duration>,
    /// From accept. Default `None`.
    pub max_lifetime: Option<Duration>,
    /// Without a byte after one side has closed, or until a broken connection's last bytes are
    /// acknowledged. Default 60 s.
    pub close: Duration,
}

/// `on_rotation`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnRotation {
    /// Open connections go on with the certificate that they began with.
    Keep,
    /// Open connections are ended, each at a random moment within `window` (`drain_window`,
    /// default 60 s).
    Drain {
        /// Over how long the ends are spread.
        window: Duration,
    },
}

/// `unclean_close`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UncleanClose {
    /// The caller sees a reset: the data may be cut short. The default.
    Reset,
    /// The caller sees an ordinary end: for servers that never send `close_notify`.
    Fin,
}

/// `allow_callers`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Callers {
    /// Whoever can reach the listener.
    Anyone,
    /// TCP callers from these networks.
    Networks(Vec<IpNet>),
    /// Callers on a unix socket with one of these user or group ids.
    Peers {
        /// User ids.
        uids: Vec<u32>,
        /// Primary group ids.
        gids: Vec<u32>,
    },
    /// On sockets of systemd, which may be of both kinds: each as above.
    Either {
        /// For TCP callers.
        networks: Vec<IpNet>,
        /// For callers on a unix socket.
        uids: Vec<u32>,
        /// For the same.
        gids: Vec<u32>,
    },
}

/// Where a client certificate and its key are read from. Paths are absolute.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IdentitySource {
    /// `cert` and `key`.
    Pair {
        /// Leaf first, then intermediates.
        cert: PathBuf,
        /// PKCS#8, PKCS#1 or SEC1.
        key: PathBuf,
    },
    /// `bundle`: key and chain in one file, in either order.
    Bundle(PathBuf),
    /// `secret`, or the annotation `konghq.com/client-cert`: `tls.crt` and `tls.key` of a
    /// Kubernetes Secret.
    Secret(kubernetes::ObjectRef),
    /// `credential`: handed over by the service manager.
    Credential(Credential),
}

/// Where CA certificates and revocation lists are read from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrustSource {
    /// The CA certificates.
    pub ca: CaSource,
    /// `crl`: a file, or a directory of files (absolute).
    pub crl: Option<PathBuf>,
}

/// `ca`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CaSource {
    /// A PEM file, or a directory of PEM files (absolute).
    Path(PathBuf),
    /// `"system"`: the platform's roots.
    System,
    /// Kubernetes objects; never empty.
    Objects(Vec<kubernetes::CaObject>),
    /// `ca = { credential = "…" }`: a file that the service manager has handed over.
    Credential(Credential),
}

/// How TLS is spoken to an upstream and what is verified of it.
#[derive(Clone, Debug, PartialEq)]
pub struct TlsPolicy {
    /// What is verified.
    pub verify: Verify,
    /// Certificates allowed *between* leaf and trust anchor, as OpenSSL, nginx and Kong count
    /// (`proxy_ssl_verify_depth`). Default `None`: webpki's own limit of 6.
    pub verify_depth: Option<u8>,
    /// SNI and verified name. Default `None`: the host of the upstream that is dialled; of a
    /// Kubernetes Service `NAME.NAMESPACE.svc`, and never `None`.
    pub server_name: Option<ServerName<'static>>,
    /// Send SNI. Default true.
    pub sni: bool,
    /// What a revocation list past its `nextUpdate` means. Default: refuse.
    pub crl_expired: CrlExpired,
    /// SHA-256 digests of acceptable server keys (`SubjectPublicKeyInfo`), in addition to the
    /// chain. Empty: no pinning.
    pub pins: Vec<[u8; 32]>,
    /// At least one of the server's SANs must match one of these. Empty: not asked.
    pub allowed_names: Vec<NamePattern>,
    /// Lowest TLS version. Default 1.2.
    pub min_version: TlsVersion,
    /// Highest TLS version. Default 1.3.
    pub max_version: TlsVersion,
    /// Key exchange groups in order of preference. Never empty.
    pub key_exchange: Vec<KeyExchange>,
    /// Protocols offered by ALPN, in order; empty: none. Where some are offered, the server must
    /// choose one.
    pub alpn: Vec<String>,
    /// Resume earlier sessions. Default true.
    pub resumption: bool,
    /// Who cuts and joins the records of TLS 1.3. Default: tlsward.
    pub record_layer: RecordLayer,
}

/// `record_layer`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordLayer {
    /// tlsward, with rustls' ciphers: many records in one read or write.
    Own,
    /// rustls, as for TLS 1.2.
    Rustls,
}

/// `verify`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verify {
    /// Chain and name.
    Full,
    /// Chain only.
    Chain,
    /// Nothing; must be said, and is warned of.
    None,
}

/// `crl_expired`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrlExpired {
    /// Refuse the server.
    Refuse,
    /// Go on as if the list were current.
    Accept,
}

/// A TLS version that tlsward speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// TLS 1.2 (RFC 5246).
    Tls12,
    /// TLS 1.3 (RFC 8446).
    Tls13,
}

/// A key exchange group, by its name in the IANA registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyExchange {
    /// Hybrid of X25519 and ML-KEM-768.
    X25519MlKem768,
    /// X25519.
    X25519,
    /// NIST P-256.
    Secp256r1,
    /// NIST P-384.
    Secp384r1,
}

/// A pattern for a name in a server certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NamePattern {
    /// A DNS name in lower case; a first label `*` stands for exactly one label.
    Dns(String),
    /// A URI, for example `spiffe://cluster.local/ns/*/sa/billing`: `*` stands for one path
    /// segment, a last segment `**` for one or more.
    Uri(String),
}

/// Where the value of a key was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The built-in default.
    BuiltIn,
    /// `[defaults]` or `[defaults.tls]`, on this line of the file.
    Defaults {
        /// Line, from 1.
        line: usize,
    },
    /// The service's own table, on this line of the file.
    Service {
        /// Line, from 1.
        line: usize,
    },
    /// An environment variable.
    Environment(&'static str),
    /// An annotation of the service's Kubernetes Service, which [`Config::backends`] names.
    Annotation(&'static str),
}

/// The origin of each value of each service, by key as written (`"tls.cert"`, `"listen"`).
/// Always equal to another, so that moving a line is not a change.
#[derive(Clone, Debug, Default)]
pub struct Origins(pub BTreeMap<ServiceName, BTreeMap<&'static str, Origin>>);

impl PartialEq for Origins {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}
