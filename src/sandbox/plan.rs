//! Which rules follow from a configuration and its surroundings.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::{Ports, Rules, ways};
use crate::config::{CaSource, Config, IdentitySource, Listen, Upstream, sandbox};
use crate::mountinfo;

const DNS: u16 = 53;

/// Where a pod finds who it is to the API server.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Certificates that everybody may read: `ca = "system"`, now or after a reload.
const SYSTEM_ROOTS: [&str; 11] = [
    "/etc/ssl/certs",
    "/etc/ssl/cert.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/certs",
    "/etc/pki/tls/cert.pem",
    "/etc/pki/ca-trust/extracted",
    "/etc/ca-certificates",
    "/usr/lib/ssl",
    "/usr/share/ca-certificates",
    "/usr/local/share/ca-certificates",
    "/var/lib/ca-certificates",
];

/// What getaddrinfo(3) reads. Where one of these is replaced, it is another file.
const NAME_SERVICE: [&str; 6] = [
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/nsswitch.conf",
    "/etc/gai.conf",
    "/etc/host.conf",
    "/etc/services",
];

/// Where others keep what /etc/resolv.conf points to, and what the modules of name services ask.
const NAME_SERVICE_DIRECTORIES: [&str; 6] = [
    "/run/systemd/resolve",
    "/run/NetworkManager",
    "/run/resolvconf",
    "/run/nscd",
    "/var/lib/sss/mc",
    "/var/lib/sss/pipes",
];

/// Libraries: getaddrinfo(3) opens its modules when they are first needed.
const LIBRARIES: [&str; 6] = [
    "/etc/ld.so.cache",
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
];

/// What the kernel says of this process and its limits, to us (mountinfo, cgroup, status) and to
/// the C library.
const KERNEL: [&str; 8] = [
    "/proc/self",
    "/proc/stat",
    "/proc/sys/vm/overcommit_memory",
    "/proc/sys/net/core/somaxconn",
    "/sys/fs/cgroup",
    "/sys/devices/system/cpu",
    "/sys/kernel/mm/transparent_hugepage",
    "/dev/urandom",
];

/// What a plan needs to know beside the configuration.
#[derive(Clone, Debug)]
pub(crate) struct Facts<'f> {
    /// The configuration file, absolute.
    pub(crate) path: &'f Path,
    pub(crate) environment: &'f BTreeMap<String, String>,
    /// Whether file modes guard nothing against this process.
    pub(crate) is_root: bool,
    pub(crate) cluster: ClusterAccess,
}

/// How the API server would be reached.
#[derive(Clone, Debug, Default)]
pub(crate) struct ClusterAccess {
    /// Its port; `None` where that is not known, or may change.
    pub(crate) port: Option<u16>,
    /// Files beside those of a service account.
    pub(crate) files: Vec<PathBuf>,
    /// Whether a program would be asked who we are, which the sandbox refuses.
    pub(crate) runs_a_program: bool,
}

/// The rules for this configuration. Looks at the file system, to find what links lead to.
pub(crate) fn rules(config: &Config, facts: &Facts<'_>) -> Rules {
    let mut reading = Reading::default();
    reading.named("the configuration file", facts.path);
    for (key, path) in &config.named_files.0 {
        reading.named(key, path);
    }
    for path in &config.sandbox.read {
        reading.named("sandbox.read", path);
    }
    if let Some(directory) = facts.environment.get("CREDENTIALS_DIRECTORY") {
        // systemd may mount it anew on reload.
        reading.named("CREDENTIALS_DIRECTORY", Path::new(directory));
    }
    for variable in ["SSL_CERT_FILE", "SSL_CERT_DIR"] {
        // A list of directories, as OpenSSL takes it.
        let value = facts.environment.get(variable);
        for path in value.iter().flat_map(|value| value.split(':')) {
            let path = Path::new(path);
            // A file is replaced in its directory.
            let directory = path.parent().filter(|_| !path.is_dir());
            reading.of_all(directory.unwrap_or(path));
        }
    }
    reading.of_system(facts);
    let kubernetes = needs_kubernetes(config);
    if kubernetes {
        if let Some(path) = &config.kubernetes.kubeconfig {
            reading.named("kubernetes.kubeconfig", path);
        }
        for path in &facts.cluster.files {
            reading.named("the kubeconfig", path);
        }
        if facts.cluster.runs_a_program {
            reading.left_out.push(
                "the kubeconfig's user is told by a program (exec), and the sandbox runs none: use a token or a certificate, or sandbox.enabled = false".to_owned(),
            );
        }
    }

    let mut sockets = BTreeSet::new();
    for path in socket_directories(config) {
        match path.canonicalize() {
            Ok(directory) => drop(sockets.insert(directory)),
            Err(_) => reading.left_out.push(format!(
                "the directory {} of a unix socket is not there",
                path.display()
            )),
        }
    }
    let bind = match (&config.sandbox.bind_ports, &config.kubernetes.discovery) {
        (sandbox::Ports::Any, _) => Ports::Any("sandbox.bind_ports"),
        (_, Some(_)) => Ports::Any("discovered Services name theirs"),
        (more, None) => these(
            listeners(config).filter_map(|listen| match listen {
                Listen::Tcp(address) => Some(address.port()),
                Listen::Unix { .. } | Listen::Systemd(_) => None,
            }),
            more,
        ),
    };
    let (in_pod, api) = (in_pod(facts), facts.cluster.port);
    let connect = match &config.sandbox.connect_ports {
        sandbox::Ports::Any => Ports::Any("sandbox.connect_ports"),
        _ if dials_services(config) => Ports::Any("Kubernetes names the endpoints' ports"),
        _ if kubernetes && api.is_none() => Ports::Any("a kubeconfig names the API server's port"),
        more => these(upstream_ports(config).chain([DNS]).chain(api), more),
    };
    Rules {
        read: ways::without_lower(reading.roots),
        system: ways::without_lower(reading.system),
        sockets: ways::without_lower(sockets),
        connect,
        bind,
        kubernetes: kubernetes || in_pod,
        abstract_sockets: facts
            .environment
            .get("NOTIFY_SOCKET")
            .is_some_and(|socket| socket.starts_with('@')),
        left_out: reading.left_out,
    }
}

/// What may be read, as it comes together.
#[derive(Default)]
struct Reading {
    roots: BTreeSet<PathBuf>,
    system: BTreeSet<PathBuf>,
    left_out: Vec<String>,
}

impl Reading {
    /// What the configuration names, so that it can be replaced.
    fn named(&mut self, key: &str, path: &Path) {
        match ways::roots(path) {
            Ok(roots) => self.roots.extend(roots),
            Err(nearest) => self.left_out.push(format!(
                "{key}: {} is not there, and no more than {} above it: make the directory and restart tlsward",
                path.display(),
                nearest.display()
            )),
        }
    }

    /// What is there, for every process.
    fn of_all(&mut self, path: &Path) {
        if path.starts_with("/proc") {
            self.system.insert(path.to_owned());
        } else if let Ok(real) = path.canonicalize() {
            self.system.insert(real);
        }
    }

    /// What a process needs whatever it is configured to do.
    fn of_system(&mut self, facts: &Facts<'_>) {
        for path in SYSTEM_ROOTS
            .iter()
            .chain(&NAME_SERVICE_DIRECTORIES)
            .chain(&LIBRARIES)
            .chain(&KERNEL)
        {
            self.of_all(Path::new(path));
        }
        for mount in mountinfo::read() {
            if ["cgroup", "cgroup2"].contains(&mount.kind.as_str()) {
                self.of_all(&mount.point);
            }
        }
        self.of_all(Path::new(SERVICE_ACCOUNT));
        for path in NAME_SERVICE {
            let path = Path::new(path);
            self.of_all(path);
            // A DHCP client replaces /etc/resolv.conf by a new file, an editor /etc/hosts: without
            // that directory names could no longer be looked up. Modes guard what is in it.
            let directory = path.canonicalize();
            let directory = directory.as_deref().ok().and_then(Path::parent);
            match directory {
                Some(etc) if etc == Path::new("/etc") && facts.is_root => {}
                Some(directory) => self.of_all(directory),
                None => {}
            }
        }
    }
}

fn these(used: impl Iterator<Item = u16>, more: &sandbox::Ports) -> Ports {
    let mut ports: BTreeSet<u16> = used.collect();
    if let sandbox::Ports::And(ranges) = more {
        ports.extend(ranges.iter().cloned().flatten());
    }
    Ports::These(ports)
}

/// Every listener that is known, admin endpoints included.
pub(super) fn listeners(config: &Config) -> impl Iterator<Item = &Listen> {
    let admin = [&config.admin.listen, &config.admin.public_listen];
    let unbuilt = config.unbuilt.values();
    let unbuilt = unbuilt.filter_map(|unbuilt| unbuilt.listen.as_ref());
    let services = config.services.values().map(|service| &service.listen);
    let admin = admin.into_iter().flatten();
    admin.chain(services).chain(unbuilt)
}

/// The directories in which unix sockets are to be made.
fn socket_directories(config: &Config) -> impl Iterator<Item = &Path> {
    let discovery = config.kubernetes.discovery.as_ref();
    let discovery = discovery.and_then(|discovery| discovery.socket_directory.as_deref());
    let sockets = listeners(config).filter_map(|listen| match listen {
        Listen::Tcp(_) | Listen::Systemd(_) => None,
        Listen::Unix { path, .. } => path.parent(),
    });
    sockets.chain(discovery)
}

fn upstream_ports(config: &Config) -> impl Iterator<Item = u16> {
    let addresses = config
        .services
        .values()
        .flat_map(|service| match &service.upstream {
            Upstream::Addresses(addresses) => addresses.as_slice(),
            Upstream::Service(_) => &[],
        });
    addresses.map(|address| address.port)
}

/// Whether connections go where a Kubernetes Service says.
fn dials_services(config: &Config) -> bool {
    !config.backends.is_empty()
        || !config.unbuilt.is_empty()
        || config.kubernetes.discovery.is_some()
}

/// Whether the API server is asked for anything.
pub(crate) fn needs_kubernetes(config: &Config) -> bool {
    dials_services(config)
        || config.services.values().any(|service| {
            matches!(service.identity, Some(IdentitySource::Secret(_)))
                || matches!(service.ca(), Some(CaSource::Objects(_)))
        })
}

fn in_pod(facts: &Facts<'_>) -> bool {
    facts.environment.contains_key("KUBERNETES_SERVICE_HOST")
}
