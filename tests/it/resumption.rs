//! What a handshake is spared: sessions that are resumed, as both sides count them, and chains
//! that are remembered; and what ends that.

use std::future::Future;

use tokio::task::JoinSet;

use crate::support::net::Caller;
use crate::support::pki::{Ca, Issued, Pki};
use crate::support::proxy::{Config, Proxy, Service, path_text};
use crate::support::scene::{NAME, Scene, visit};
use crate::support::servers::{Nginx, Openssl, Server};
use crate::support::upstream::{TLS12, TLS13};

/// Callers at a time.
const CALLERS: usize = 32;

/// Connections of each caller before counting begins, and then.
const WARM_UP: usize = 2;
const COUNTED: usize = 10;

/// How many handshakes there were of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Kinds {
    full: usize,
    resumed: usize,
}

impl Kinds {
    fn of(resumed: impl IntoIterator<Item = bool>) -> Self {
        resumed
            .into_iter()
            .fold(Self::default(), |kinds, resumed| Self {
                full: kinds.full + usize::from(!resumed),
                resumed: kinds.resumed + usize::from(resumed),
            })
    }
}

/// Connections of all callers at the same time, `rounds` of each one; `call` makes one and says
/// whether the upstream saw a resumed session.
async fn storm<C>(rounds: usize, call: impl Fn() -> C + Clone + Send + 'static) -> Kinds
where
    C: Future<Output = bool> + Send + 'static,
{
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let call = call.clone();
        callers.spawn(async move {
            let mut resumed = Vec::with_capacity(rounds);
            for _ in 0..rounds {
                resumed.push(call().await);
            }
            resumed
        });
    }
    Kinds::of(callers.join_all().await.into_iter().flatten())
}

/// Once there is a ticket for each caller, nearly every connection resumes, and the proxy has counted from the beginning what
/// the upstream counted.
async fn assert_resumes<C>(proxy: &Proxy, call: impl Fn() -> C + Clone + Send + 'static)
where
    C: Future<Output = bool> + Send + 'static,
{
    let cold = storm(WARM_UP, call.clone()).await;
    let warm = storm(COUNTED, call).await;
    let Kinds { full, resumed } = warm;
    assert_eq!(full + resumed, CALLERS * COUNTED);
    // Each caller may come once when all tickets are out. How many of these fall into the warm-up is
    // a matter of how many handshakes happen to overlap there.
    assert!(
        cold.full + full <= CALLERS + (full + resumed) / 100,
        "{cold:?}, then {warm:?}"
    );
    let ours = async |kind| {
        let labels = [("service", NAME), ("kind", kind)];
        proxy.metric("tlsward_handshakes_total", &labels).await as usize
    };
    let ours = Kinds {
        full: ours("full").await,
        resumed: ours("resumed").await,
    };
    let theirs = Kinds {
        full: cold.full + full,
        resumed: cold.resumed + resumed,
    };
    assert_eq!(ours, theirs);
}

#[tokio::test]
async fn of_32_connections_at_a_time_99_in_100_resume_whatever_the_upstream_gives_tickets_for() {
    for (versions, tickets) in [(TLS13, 2), (TLS13, 1), (TLS12, 1)] {
        let scene = Scene::set(
            |options| options.versions(versions).giving_tickets(tickets),
            |service| service,
        )
        .await;
        let service = scene.service.clone();
        assert_resumes(&scene.proxy, move || {
            let service = service.clone();
            async move { visit(&service).await.resumed }
        })
        .await;
        // What each line said, the server itself has counted too.
        let seen = scene.upstream.peers();
        let full = seen.iter().filter(|peer| !peer.resumed).count();
        let counted = scene.proxy.counter(NAME, "handshakes_full").await;
        assert_eq!(counted, full as u64);
        assert_eq!(seen.len(), CALLERS * (WARM_UP + COUNTED));
    }
}

/// An HTTP request on a connection of its own; the answer.
async fn get(service: &Service) -> String {
    let mut caller = Caller::connect(service.address()).await;
    let request = b"GET / HTTP/1.0\r\nConnection: close\r\n\r\n";
    caller.send(request).await;
    let (answer, _) = caller.rest().await;
    String::from_utf8_lossy(&answer).into_owned()
}

/// The same of a server that says in its answer which kind of handshake it saw.
async fn assert_resumes_at(pki: &Pki, server: &Server, [resumed, full]: [&'static str; 2]) {
    let files = pki.identity_files(NAME, &pki.client(NAME));
    let service = Service::new(NAME, server.address, pki).identity(&files);
    let proxy = Proxy::start(pki, &Config::of([service.clone()])).await;
    assert_resumes(&proxy, move || {
        let service = service.clone();
        async move {
            let answer = get(&service).await;
            match [resumed, full].map(|word| answer.contains(word)) {
                [true, false] => true,
                [false, true] => false,
                _ => panic!("neither {resumed:?} nor {full:?}: {answer}"),
            }
        }
    })
    .await;
}

#[tokio::test]
async fn of_32_connections_at_a_time_99_in_100_resume_at_nginx() {
    for nginx in [Nginx::TLS12, Nginx::TLS13] {
        let pki = Pki::new();
        let server = nginx.start(&pki, &pki.server()).await;
        assert_resumes_at(&pki, &server, ["resumed=r ", "resumed=. "]).await;
    }
}

#[tokio::test]
async fn of_32_connections_at_a_time_99_in_100_resume_at_openssl_s_server() {
    for flags in [
        &["-tls1_3"][..],
        &["-tls1_3", "-num_tickets", "1"],
        &["-tls1_2"],
    ] {
        let pki = Pki::new();
        let server = Openssl::Www.start(&pki, &pki.server(), flags).await;
        assert_resumes_at(&pki, &server, ["Reused, TLS", "New, TLS"]).await;
    }
}

// === the end of what is remembered ===

/// A service that resumes nothing, so that its upstream's chain is looked at in every handshake,
/// and that has found it good a few times.
async fn remembered() -> (Scene, Issued) {
    const CONNECTIONS: u64 = 3;
    let pki = Pki::new();
    let server = pki.server();
    let crl = pki.write("ca.crl", pki.root.crl(&[]));
    let scene = Scene::presenting(
        pki,
        &server,
        |options| options,
        |service| {
            let service = service.tls("resumption", "false");
            service.tls_text("crl", path_text(&crl))
        },
    )
    .await;
    for _ in 0..CONNECTIONS {
        visit(&scene.service).await;
    }
    let full = scene.proxy.counter(NAME, "handshakes_full").await;
    assert_eq!(full, CONNECTIONS, "no session is resumed");
    (scene, server)
}

/// Replaces a file of the service's trust and waits until it is in use.
async fn replace(scene: &Scene, name: &str, text: &str) {
    let new = scene.pki.write("new", text);
    std::fs::rename(new, scene.pki.path(name)).unwrap();
    let in_use = scene
        .proxy
        .wait_for_service(NAME, "the new trust", |service| {
            (service["trust"]["generation"].as_u64()? == 2).then_some(())
        });
    in_use.await;
}

#[tokio::test]
async fn a_chain_found_good_a_moment_ago_is_refused_once_it_is_revoked() {
    let (scene, server) = remembered().await;
    replace(&scene, "ca.crl", &scene.pki.root.crl(&[&server])).await;
    scene.call_is_refused().await;
    let words = ["handshake", "upstream", "revoked"];
    scene.proxy.expect_failure(NAME, words, "revoked").await;
}

#[tokio::test]
async fn a_chain_found_good_a_moment_ago_is_refused_once_its_ca_is_gone() {
    let (scene, _) = remembered().await;
    replace(&scene, "ca.crt", &Ca::root("Next Root").pem()).await;
    scene.call_is_refused().await;
    let words = ["handshake", "upstream", "untrusted_issuer"];
    scene.proxy.expect_failure(NAME, words, "ca").await;
}

#[tokio::test]
async fn a_chain_found_good_a_moment_ago_is_refused_once_the_policy_asks_for_more() {
    let (scene, _) = remembered().await;
    let pin = format!(r#"["sha256/{}="]"#, "A".repeat(43));
    let pinned = scene.service.clone().tls("pins", &pin);
    let config = scene.config.with_services([pinned]);
    scene.proxy.adopt(&config).await;
    scene.call_is_refused().await;
    let words = ["handshake", "upstream", "pin_mismatch"];
    scene.proxy.expect_failure(NAME, words, "pins").await;
}
