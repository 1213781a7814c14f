//! A kube-apiserver and its etcd, as envtest starts them.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use ::kube::Client;
use hyper::Request;
use rcgen::KeyPair;
use tokio::net::TcpStream;
use tokio::process::Command;

use super::{ADMIN, Access};
use crate::support::pki::Pki;
use crate::support::servers::Server;
use crate::support::{POLL, net, until};

/// The directory with the programs `kube-apiserver` and `etcd`.
pub(super) const ASSETS: &str = "KUBEBUILDER_ASSETS";

/// A cold start beside others may take longer than anything else that tests wait for.
const START: Duration = Duration::from_secs(90);

/// Both are killed when this is dropped, the API server first.
pub(super) struct Real {
    /// `None` while it is away.
    api: Mutex<Option<Server>>,
    program: PathBuf,
    flags: Vec<OsString>,
    address: SocketAddr,
    _etcd: Server,
}

impl Real {
    /// Starts both on loopback with an empty store, and waits until the API server is ready.
    pub(super) async fn start(programs: &Path) -> (Self, Access) {
        let files = Pki::new();
        let (client, peer) = (net::address(), net::address());
        let mut command = bound_to_this_thread(&programs.join("etcd"));
        command
            .arg("--data-dir")
            .arg(files.path("etcd"))
            .arg(format!("--listen-client-urls=http://{client}"))
            .arg(format!("--advertise-client-urls=http://{client}"))
            .arg(format!("--listen-peer-urls=http://{peer}"))
            .arg("--unsafe-no-fsync");
        let etcd = Server::start(command, client, directory()).await;

        let address = net::address();
        let access = Access {
            url: format!("https://{address}"),
            ca: Some(files.root.pem()),
            files,
        };
        let real = Self {
            api: Mutex::new(None),
            program: programs.join("kube-apiserver"),
            flags: flags(&access.files, client, address),
            address,
            _etcd: etcd,
        };
        real.come_back(&access.client(ADMIN)).await;
        (real, access)
    }

    /// Kills the API server; etcd stays. Returns when connections are refused.
    pub(super) async fn go_away(&self) {
        // Killed by its drop.
        *self.api.lock().unwrap() = None;
        until("the API server to be gone", async || {
            TcpStream::connect(self.address).await.err()
        })
        .await;
    }

    /// Starts the API server and waits until it is ready.
    pub(super) async fn come_back(&self, client: &Client) {
        let mut command = bound_to_this_thread(&self.program);
        command.args(&self.flags);
        let api = Server::start(command, self.address, directory()).await;
        ready(client, &api).await;
        *self.api.lock().unwrap() = Some(api);
    }
}

fn flags(files: &Pki, etcd: SocketAddr, address: SocketAddr) -> Vec<OsString> {
    let issued = files.root.server().issue();
    let accounts = KeyPair::generate().unwrap();
    let write = |name: &str, text: &str| files.write(name, text);
    let named = [
        ("tls-cert-file", write("api.crt", &issued.chain_pem())),
        ("tls-private-key-file", write("api.key", &issued.key_pem())),
        (
            "service-account-key-file",
            write("accounts.pub", &accounts.public_key_pem()),
        ),
        (
            "service-account-signing-key-file",
            write("accounts.key", &accounts.serialize_pem()),
        ),
        (
            "token-auth-file",
            write("tokens", &format!("{ADMIN},admin,0,system:masters\n")),
        ),
        ("cert-dir", files.path("certificates")),
    ];
    let files = named.map(|(flag, path)| format!("--{flag}={}", path.display()));
    let rest = [
        format!("--etcd-servers=http://{etcd}"),
        format!("--bind-address={}", address.ip()),
        format!("--secure-port={}", address.port()),
        format!("--service-account-issuer=https://{address}/"),
        "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
        "--authorization-mode=RBAC".to_owned(),
        "--disable-admission-plugins=ServiceAccount".to_owned(),
        // Nobody is to find this server by the Service `kubernetes`, and loopback may not be said
        // there: an address for documentation (RFC 5737).
        "--advertise-address=192.0.2.1".to_owned(),
        "--endpoint-reconciler-type=none".to_owned(),
        "--feature-gates=ClusterTrustBundle=true".to_owned(),
        "--runtime-config=certificates.k8s.io/v1beta1/clustertrustbundles=true".to_owned(),
    ];
    files.into_iter().chain(rest).map(OsString::from).collect()
}

/// A command that is killed with the thread that starts it, should that be killed itself.
fn bound_to_this_thread(program: &Path) -> Command {
    assert!(
        program.is_file(),
        "{ASSETS} names a directory without {}",
        program.display()
    );
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

async fn ready(client: &Client, api: &Server) {
    let polled = async {
        loop {
            let request = Request::get("/readyz").body(Vec::new()).unwrap();
            if client.request_text(request).await.is_ok() {
                return;
            }
            tokio::time::sleep(POLL).await;
        }
    };
    let waited = tokio::time::timeout(START, polled).await;
    assert!(
        waited.is_ok(),
        "not ready after {START:?}: {}",
        api.output()
    );
}

fn directory() -> tempfile::TempDir {
    tempfile::Builder::new()
        .prefix("tlsward-kube-")
        .tempdir()
        .unwrap()
}
