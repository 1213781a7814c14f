//! What the process needs to reach the API server: known before it looks for one, so that a sandbox
//! leaves it that much.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kube::config::Kubeconfig;

use crate::config::kubernetes::Kubernetes;
use crate::sandbox::ClusterAccess;

/// As `configuration` looks for a server: the pod's service account, or a kubeconfig.
pub(in crate::kubernetes) fn access(
    settings: &Kubernetes,
    environment: &BTreeMap<String, String>,
) -> ClusterAccess {
    let named = settings.kubeconfig.is_some() || settings.context.is_some();
    if !named && environment.contains_key("KUBERNETES_SERVICE_HOST") {
        let port = environment.get("KUBERNETES_SERVICE_PORT");
        return ClusterAccess {
            port: port.and_then(|port| port.parse().ok()),
            ..ClusterAccess::default()
        };
    }
    let mut access = ClusterAccess::default();
    let paths = match &settings.kubeconfig {
        Some(path) => vec![path.clone()],
        None => usual_places(environment),
    };
    for path in paths {
        let base = path.parent().unwrap_or(&path);
        if let Ok(kubeconfig) = Kubeconfig::read_from(&path) {
            add(&kubeconfig, base, &mut access);
        }
        access.files.push(path.clone());
    }
    access
}

fn usual_places(environment: &BTreeMap<String, String>) -> Vec<PathBuf> {
    match environment.get("KUBECONFIG") {
        Some(list) => list
            .split(':')
            .filter(|path| !path.is_empty())
            .map(PathBuf::from)
            .collect(),
        None => {
            let home = environment.get("HOME");
            home.map(|home| Path::new(home).join(".kube/config"))
                .into_iter()
                .collect()
        }
    }
}

/// The files that it names; relative paths count from its directory.
fn add(kubeconfig: &Kubeconfig, base: &Path, access: &mut ClusterAccess) {
    let mut file = |path: &Option<String>| {
        access.files.extend(path.iter().map(|path| base.join(path)));
    };
    let clusters = kubeconfig.clusters.iter();
    for cluster in clusters.filter_map(|named| named.cluster.as_ref()) {
        file(&cluster.certificate_authority);
    }
    let users = kubeconfig.auth_infos.iter();
    for user in users.clone().filter_map(|named| named.auth_info.as_ref()) {
        file(&user.client_certificate);
        file(&user.client_key);
        file(&user.token_file);
    }
    access.runs_a_program |= users
        .filter_map(|named| named.auth_info.as_ref())
        .any(|user| user.exec.is_some());
}
