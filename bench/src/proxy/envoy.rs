//! Envoy's TCP proxy.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Proxy, Setup, Variants, peers};

pub(super) const NAME: &str = "envoy";

struct Envoy {
    program: PathBuf,
    version: String,
}

/// One: its buffers may already grow to 1 MiB by default, and what its documentation recommends is
/// to lower that.
///
/// # Errors
/// The program does not start.
pub(super) fn variants(program: &Path) -> io::Result<Variants> {
    let said = peers::ask(program, &["--version"])?;
    Ok(vec![Box::new(Envoy {
        program: program.to_owned(),
        version: version(&said),
    })])
}

impl Proxy for Envoy {
    fn name(&self) -> &'static str {
        NAME
    }

    fn version(&self) -> String {
        self.version.clone()
    }

    fn prepare(&self, setup: &Setup) -> io::Result<Option<Command>> {
        let config = setup.directory.join("envoy.yaml");
        fs::write(&config, config_text(setup))?;
        let mut command = Command::new(&self.program);
        command.arg("-c").arg(config);
        // Hot restart shares memory between Envoys of one machine; several are running here.
        command.args(["--concurrency", "1", "--disable-hot-restart"]);
        command.args(["--log-level", "warn"]);
        Ok(Some(command))
    }
}

fn config_text(setup: &Setup) -> String {
    let Setup {
        listen,
        upstream,
        server_name,
        pki,
        group,
        resumption,
        connections,
        ..
    } = setup;
    let (listen_host, listen_port) = (listen.ip(), listen.port());
    let (upstream_host, upstream_port) = (upstream.ip(), upstream.port());
    let (ca, cert, key) = (pki.ca.display(), pki.chain.display(), pki.key.display());
    let group = group.tls_name();
    // A TLS 1.3 ticket is used once: the default of one would serve one of 32 callers.
    let sessions = if *resumption { 128 } else { 0 };
    format!(
        r#"overload_manager:
  resource_monitors:
  - name: envoy.resource_monitors.global_downstream_max_connections
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig
      max_active_downstream_connections: {connections}
static_resources:
  listeners:
  - name: bench
    address:
      socket_address: {{ address: "{listen_host}", port_value: {listen_port} }}
    tcp_backlog_size: 4096
    filter_chains:
    - filters:
      - name: envoy.filters.network.tcp_proxy
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: bench
          cluster: upstream
          idle_timeout: 0s
  clusters:
  - name: upstream
    type: STATIC
    connect_timeout: 10s
    # The default of 1,024 connections would refuse the rest.
    circuit_breakers:
      thresholds:
      - max_connections: {connections}
        max_pending_requests: {connections}
    load_assignment:
      cluster_name: upstream
      endpoints:
      - lb_endpoints:
        - endpoint:
            address:
              socket_address: {{ address: "{upstream_host}", port_value: {upstream_port} }}
    transport_socket:
      name: envoy.transport_sockets.tls
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        sni: "{server_name}"
        max_session_keys: {sessions}
        common_tls_context:
          tls_params:
            tls_minimum_protocol_version: TLSv1_3
            tls_maximum_protocol_version: TLSv1_3
            ecdh_curves: ["{group}"]
          tls_certificates:
          - certificate_chain: {{ filename: "{cert}" }}
            private_key: {{ filename: "{key}" }}
          validation_context:
            trusted_ca: {{ filename: "{ca}" }}
            match_typed_subject_alt_names:
            - san_type: DNS
              matcher: {{ exact: "{server_name}" }}
"#
    )
}

/// `…/bin/envoy  version: COMMIT/1.40.0/Clean/RELEASE/BoringSSL`
fn version(said: &str) -> String {
    let build = said
        .lines()
        .find_map(|line| line.split_once(" version: "))
        .map_or("", |(_, build)| build.trim());
    let mut parts = build.split('/');
    match (parts.nth(1), parts.next_back()) {
        (Some(version), Some(library)) => format!("Envoy {version}, {library}"),
        _ => "Envoy of an unknown version".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_and_library_are_taken_from_the_build_s_name() {
        let said = "/opt/bin/envoy  version: 9e5580/1.40.0/Clean/RELEASE/BoringSSL\n";
        assert_eq!(version(said), "Envoy 1.40.0, BoringSSL");
    }
}
