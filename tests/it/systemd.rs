//! What systemd gives and is told: over a socket as systemd's own, with its tools, and the units
//! that are shipped.

mod messages;
mod sockets;
mod store;
mod units;
mod watchdog;

use crate::support::pki::Pki;
use crate::support::proxy::{ANY_PORTS, Config, Service};
use crate::support::scene::NAME;
use crate::support::upstream::{Behaviour, Options, Upstream};

/// One upstream and one service, and nobody who runs it yet.
struct Stage {
    pki: Pki,
    _upstream: Upstream,
    service: Service,
    config: Config,
}

impl Stage {
    async fn new() -> Self {
        let pki = Pki::new();
        let server = pki.server();
        let options = Options::trusting(&pki.root).behaviour(Behaviour::Identify);
        let upstream = options.start(&server).await;
        let files = pki.identity_files(NAME, &pki.client(NAME));
        let service = Service::new(NAME, upstream.address(), &pki).identity(&files);
        // Its later versions use other ports.
        let config = Config::of([service.clone()]).top(ANY_PORTS);
        Self {
            pki,
            _upstream: upstream,
            service,
            config,
        }
    }

    /// The service on the sockets that systemd has under its name.
    fn on_systemd(mut self, name: &str) -> Self {
        let service = self.service.clone().listening_on(format!("systemd:{name}"));
        self.config = self.config.with_services([service]);
        self
    }
}
