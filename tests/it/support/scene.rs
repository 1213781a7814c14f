//! The usual set: one upstream, one service with a client certificate, the proxy between.

use serde_json::Value;

use super::net::{self, Caller, Ending};
use super::pki::{IdentityFiles, Issued, Pki};
use super::proxy::{Answer, Config, Proxy, Service, traffic};
use super::until;
use super::upstream::{Behaviour, Options, Seen, Upstream};

/// The name of the one service, and of its client certificate.
pub(crate) const NAME: &str = "billing";

pub(crate) struct Scene {
    pub(crate) pki: Pki,
    pub(crate) upstream: Upstream,
    pub(crate) client: Issued,
    pub(crate) files: IdentityFiles,
    pub(crate) service: Service,
    pub(crate) config: Config,
    pub(crate) proxy: Proxy,
}

impl Scene {
    pub(crate) async fn new(behaviour: Behaviour) -> Self {
        Self::shaped(behaviour, |service| service).await
    }

    /// With further keys in the service.
    pub(crate) async fn shaped(
        behaviour: Behaviour,
        shape: impl FnOnce(Service) -> Service,
    ) -> Self {
        Self::set(|options| options.behaviour(behaviour), shape).await
    }

    /// With further lines at the top of the file.
    pub(crate) async fn topped(
        top: &str,
        behaviour: Behaviour,
        shape: impl FnOnce(Service) -> Service,
    ) -> Self {
        let pki = Pki::new();
        let server = pki.server();
        let options = |options: Options| options.behaviour(behaviour);
        Self::complete(pki, &server, options, shape, |config| config.top(top)).await
    }

    /// With an upstream and a service of the test's own shape.
    pub(crate) async fn set(
        options: impl FnOnce(Options) -> Options,
        shape: impl FnOnce(Service) -> Service,
    ) -> Self {
        let pki = Pki::new();
        let server = pki.server();
        Self::presenting(pki, &server, options, shape).await
    }

    /// With a server certificate of the test's own making.
    pub(crate) async fn presenting(
        pki: Pki,
        server: &Issued,
        options: impl FnOnce(Options) -> Options,
        shape: impl FnOnce(Service) -> Service,
    ) -> Self {
        Self::complete(pki, server, options, shape, |config| config).await
    }

    async fn complete(
        pki: Pki,
        server: &Issued,
        options: impl FnOnce(Options) -> Options,
        shape: impl FnOnce(Service) -> Service,
        file: impl FnOnce(Config) -> Config,
    ) -> Self {
        let upstream = options(Options::trusting(&pki.root)).start(server).await;
        let client = pki.client(NAME);
        let files = pki.identity_files(NAME, &client);
        let service = shape(Service::new(NAME, upstream.address(), &pki).identity(&files));
        let config = file(Config::of([service.clone()]));
        let proxy = Proxy::start(&pki, &config).await;
        Self {
            pki,
            upstream,
            client,
            files,
            service,
            config,
            proxy,
        }
    }

    pub(crate) async fn call(&self) -> Caller {
        Caller::connect(self.service.address()).await
    }

    /// Connects and reads who the upstream says is calling ([`Behaviour::Identify`]).
    pub(crate) async fn introduce(&self) -> (Caller, Seen) {
        introduce(&self.service).await
    }

    /// Connects and expects to be cut off without a byte.
    pub(crate) async fn call_is_refused(&self) {
        net::is_reset(self.service.address()).await;
    }
}

/// Connects to a service and reads who the upstream says is calling ([`Behaviour::Identify`]).
pub(crate) async fn introduce(service: &Service) -> (Caller, Seen) {
    let mut caller = Caller::connect(service.address()).await;
    let seen = Seen::parse(&caller.line().await);
    (caller, seen)
}

/// A connection in good order from begin to end: who was seen at the upstream.
pub(crate) async fn visit(service: &Service) -> Seen {
    let (mut caller, seen) = introduce(service).await;
    caller.echo(b"ping").await;
    caller.finish_sending().await;
    assert_eq!(caller.ending().await, Ending::Fin);
    seen
}

impl Proxy {
    /// That a connection of `service` failed with these words, the same in the log, in status and
    /// in the metric, and that the hint contains `advice`. Returns the failure from status.
    pub(crate) async fn expect_failure(
        &self,
        service: &str,
        [phase, side, reason]: [&str; 3],
        advice: &str,
    ) -> Value {
        let logged = self.failure_logged(service, reason).await;
        let failure = self.last_failure(service, reason).await;
        for (field, expected) in [("phase", phase), ("side", side)] {
            assert_eq!(failure[field], expected, "{field} in status: {failure}");
            assert_eq!(
                logged.text(field),
                Some(expected),
                "{field} in the log: {logged:?}"
            );
        }
        let hint = failure["hint"].as_str().expect("status carries a hint");
        assert!(
            hint.contains(advice),
            "{advice:?} is not in the hint {hint:?}"
        );
        assert_eq!(logged.text("hint"), Some(hint), "the hint in the log");
        assert_eq!(
            logged.get("detail"),
            failure.get("detail"),
            "the detail in the log"
        );
        let labels = [
            ("service", service),
            ("outcome", "failed"),
            ("phase", phase),
            ("side", side),
            ("reason", reason),
        ];
        let count = self.metric("tlsward_connections_total", &labels).await;
        assert!(count >= 1.0, "no metric with {labels:?}");
        failure
    }

    /// Puts a configuration in force and waits until status says so.
    pub(crate) async fn adopt(&self, config: &Config) {
        let before = self.config_generation().await;
        self.write_config(config);
        let answer = self.reload().await;
        let adopted = self.wait_for_status("the new configuration in force", |status| {
            let refused = &status["config"]["refused"];
            assert!(refused.is_null(), "refused: {refused}; {answer:?}");
            (status["config"]["generation"].as_u64()? > before).then_some(())
        });
        adopted.await;
    }

    /// Offers a configuration that cannot be taken; returns why, and the answer to the request.
    pub(crate) async fn offer_in_vain(&self, config: &Config) -> (Value, Answer) {
        let before = self.config_generation().await;
        let answer = self.reconfigure(config).await;
        let refused = self
            .wait_for_status("the refusal of the configuration", |status| {
                let refused = &status["config"]["refused"];
                (!refused.is_null()).then(|| refused.clone())
            })
            .await;
        assert_eq!(
            self.config_generation().await,
            before,
            "a refused configuration is not in force"
        );
        (refused, answer)
    }

    pub(crate) async fn config_generation(&self) -> u64 {
        self.status().await["config"]["generation"]
            .as_u64()
            .expect("status counts configurations")
    }

    /// One of the live counters of a service.
    pub(crate) async fn counter(&self, service: &str, name: &str) -> u64 {
        let part = self.service(service).await;
        traffic(&part)
            .and_then(|traffic| traffic[name].as_u64())
            .unwrap_or_else(|| panic!("no traffic.{name} in {part:#}"))
    }

    /// Waits until a counter reaches a value.
    #[track_caller]
    pub(crate) fn counter_becomes(
        &self,
        service: &str,
        name: &'static str,
        value: u64,
    ) -> impl Future<Output = ()> {
        self.wait_for_service(
            service,
            format!("traffic.{name} = {value}"),
            move |service| (traffic(service)?[name].as_u64()? == value).then_some(()),
        )
    }

    /// Waits until a counter has moved and then stands still: for how long nobody announces, so
    /// it is looked at many times in a row.
    pub(crate) async fn counter_stands_still(&self, service: &str, name: &'static str) -> u64 {
        const LOOKS: usize = 25;
        let mut last = 0;
        let mut same = 0;
        until(format!("traffic.{name} to stand still"), async || {
            let now = self.counter(service, name).await;
            same = if now == last { same + 1 } else { 0 };
            last = now;
            (now > 0 && same >= LOOKS).then_some(now)
        })
        .await
    }
}
