//! Every reason of the vocabulary from a real cause: the same words in log, status and metric,
//! the hint, and what the caller sees.
//!
//! Elsewhere: `caller_not_allowed`, `too_many_files`, `idle_timeout` and `max_lifetime` in
//! `limits`; `close_timeout` in `half_close`; `shutdown` in `drain`; `chain_too_long` in `mtls`;
//! `rotated` and what can be wrong with credentials in `rotation`; `bind_failed` and `bad_config`
//! in `reload`. `internal` has no cause but a bug.

use rcgen::ExtendedKeyUsagePurpose;
use rustls::NamedGroup;
use tokio::net::TcpSocket;

use crate::support::net::{self, Caller, Ending, address};
use crate::support::pki::{Ca, Pki, SERVER_NAME};
use crate::support::proxy::{Config, Proxy, Service, clean_command, command_under, path_text};
use crate::support::scene::{NAME, Scene, visit};
use crate::support::servers::{Openssl, program};
use crate::support::until;
use crate::support::upstream::{
    Behaviour, ClientAuth, End, Event, Options, TLS12, TLS13, Upstream,
};

/// That callers are reset without a byte, and that the failure is reported in these words.
async fn refused_with(scene: &Scene, words: [&str; 3], advice: &str) -> serde_json::Value {
    scene.call_is_refused().await;
    scene.proxy.expect_failure(NAME, words, advice).await
}

/// One service with an identity to an upstream that the test names; the proxy in front.
async fn towards(
    pki: &Pki,
    upstream: &str,
    shape: impl FnOnce(Service) -> Service,
) -> (Proxy, Service) {
    let files = pki.identity_files(NAME, &pki.client(NAME));
    let service = Service::new(NAME, address(), pki)
        .identity(&files)
        .text("upstream", upstream);
    let service = shape(service);
    let proxy = Proxy::start(pki, &Config::of([service.clone()])).await;
    (proxy, service)
}

async fn is_reset(service: &Service) {
    net::is_reset(service.address()).await;
}

// === accept ===

#[tokio::test]
async fn a_caller_that_leaves_during_a_stalled_handshake_frees_the_upstream_at_once() {
    let scene = Scene::shaped(Behaviour::Stall, |service| {
        // Far beyond the test's patience: it is not this that frees the connection.
        service.text("connect_timeout", "10m")
    })
    .await;
    let caller = scene.call().await;
    let number = scene.upstream.accepted_after(0).await;
    caller.reset();
    let (end, _) = scene.upstream.end_of(number).await;
    assert!(matches!(end, End::Fin | End::Reset), "{end:?}");
    scene
        .proxy
        .expect_failure(
            NAME,
            ["handshake", "caller", "caller_left"],
            "connect_timeout",
        )
        .await;
    scene.proxy.counter_becomes(NAME, "open", 0).await;
}

// === resolve ===

/// Starts the proxy where the caller's side is a unix socket and so is the admin endpoint: such
/// sockets reach into another network namespace.
async fn in_namespace(pki: &Pki, launcher: &[&str], upstream: &str) -> (Proxy, std::path::PathBuf) {
    let unshare = program("unshare", "util-linux");
    drop(unshare);
    let socket = pki.path("billing.sock");
    let files = pki.identity_files(NAME, &pki.client(NAME));
    let service = Service::new(NAME, address(), pki)
        .identity(&files)
        .text("upstream", upstream)
        .listening_on(format!("unix:{}", socket.display()));
    let admin = format!("unix:{}", pki.path("admin.sock").display());
    let config = Config::of([service]).admin(&admin);
    (Proxy::start_under(launcher, pki, &config).await, socket)
}

/// A unix socket has no RST: the end comes, and not a byte before it.
async fn ends_without_a_byte(socket: &std::path::Path) {
    let mut caller = Caller::connect_unix(socket).await;
    assert!(caller.try_line().await.is_err());
}

#[tokio::test]
async fn dns_not_found_names_a_host_that_nobody_knows() {
    let pki = Pki::new();
    // Without DNS among the sources the answer is final, whatever network the machine has.
    let sources = pki.write("nsswitch.conf", "hosts: files\n");
    let script = format!(
        "mount --bind {} /etc/nsswitch.conf && exec \"$@\"",
        sources.display()
    );
    let launcher = ["unshare", "-r", "-m", "sh", "-c", &script, "sh"];
    let (proxy, socket) = in_namespace(&pki, &launcher, "no-such-host.invalid:443").await;
    ends_without_a_byte(&socket).await;
    let failure = proxy
        .expect_failure(NAME, ["resolve", "local", "dns_not_found"], "typing error")
        .await;
    let detail = failure["detail"].as_str().expect("particulars");
    assert!(detail.contains("no-such-host.invalid"), "{detail}");
}

#[tokio::test]
async fn dns_failed_says_that_the_resolver_did_not_answer() {
    let pki = Pki::new();
    let resolver = pki.write(
        "resolv.conf",
        "nameserver 192.0.2.53\noptions attempts:1 timeout:1\n",
    );
    let sources = pki.write("nsswitch.conf", "hosts: files dns\n");
    let script = format!(
        "mount --bind {} /etc/nsswitch.conf && mount --bind {} /etc/resolv.conf && exec \"$@\"",
        sources.display(),
        resolver.display()
    );
    // A network namespace of its own has no network.
    let launcher = ["unshare", "-r", "-m", "-n", "sh", "-c", &script, "sh"];
    let (proxy, socket) = in_namespace(&pki, &launcher, "upstream.test:443").await;
    ends_without_a_byte(&socket).await;
    proxy
        .expect_failure(NAME, ["resolve", "local", "dns_failed"], "resolv.conf")
        .await;
}

// === connect ===

#[tokio::test]
async fn refused_means_that_nothing_listens_at_the_upstream() {
    let pki = Pki::new();
    let closed = address();
    let (proxy, service) = towards(&pki, &closed.to_string(), |service| service).await;
    is_reset(&service).await;
    let failure = proxy
        .expect_failure(NAME, ["connect", "upstream", "refused"], "nothing listens")
        .await;
    let detail = failure["detail"].as_str().expect("particulars");
    assert!(detail.contains(&closed.to_string()), "{detail}");
}

#[tokio::test]
async fn unreachable_means_that_there_is_no_route() {
    let pki = Pki::new();
    let launcher = ["unshare", "-r", "-n"];
    let (proxy, socket) = in_namespace(&pki, &launcher, "192.0.2.1:443").await;
    ends_without_a_byte(&socket).await;
    proxy
        .expect_failure(NAME, ["connect", "upstream", "unreachable"], "route")
        .await;
}

#[tokio::test]
async fn local_resource_means_that_this_machine_ran_out_of_ports() {
    let pki = Pki::new();
    let openssl = program("openssl", "openssl");
    let openssl = path_text(openssl.as_std().get_program().as_ref()).to_owned();
    let ip = program("ip", "iproute2");
    let ip = path_text(ip.as_std().get_program().as_ref()).to_owned();
    let server = pki.identity_files("server", &pki.server());
    // A machine of its own with a single local port, and a server on it; all gone with `unshare`.
    let script = format!(
        "{ip} link set lo up && echo 50000 50000 >/proc/sys/net/ipv4/ip_local_port_range && \
         {openssl} s_server -accept 127.0.0.1:443 -cert {cert} -key {key} -rev & exec \"$@\"",
        cert = server.cert.display(),
        key = server.key.display(),
    );
    let launcher = [
        "unshare",
        "-r",
        "-n",
        "--pid",
        "--fork",
        "--kill-child",
        "sh",
        "-c",
        &script,
        "sh",
    ];
    let (proxy, socket) = in_namespace(&pki, &launcher, "127.0.0.1:443").await;
    let _first = until("the server in the namespace", async || {
        let mut caller = Caller::connect_unix(&socket).await;
        caller.try_send(b"olleh\n").await.ok()?;
        caller.try_line().await.ok().map(|_| caller)
    })
    .await;
    ends_without_a_byte(&socket).await;
    proxy
        .expect_failure(NAME, ["connect", "local", "local_resource"], "local ports")
        .await;
}

#[tokio::test]
async fn timeout_says_that_it_hung_in_connect_where_tcp_is_not_answered() {
    let pki = Pki::new();
    // A backlog of one that is full: the kernel drops further SYNs.
    let full = address();
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(full).unwrap();
    let _listener = socket.listen(0).unwrap();
    let _waiting = Caller::connect(full).await;
    let (proxy, service) = towards(&pki, &full.to_string(), |service| {
        service.text("connect_timeout", "300ms")
    })
    .await;
    is_reset(&service).await;
    proxy
        .expect_failure(NAME, ["connect", "upstream", "timeout"], "connect_timeout")
        .await;
}

#[tokio::test]
async fn timeout_says_that_it_hung_in_the_handshake_where_the_server_is_silent() {
    let scene = Scene::shaped(Behaviour::Stall, |service| {
        service.text("connect_timeout", "300ms")
    })
    .await;
    refused_with(
        &scene,
        ["handshake", "upstream", "timeout"],
        "connect_timeout",
    )
    .await;
    let (end, _) = scene.upstream.end_of(1).await;
    assert!(matches!(end, End::Fin | End::Reset), "{end:?}");
    scene.upstream.behave(Behaviour::Identify);
    visit(&scene.service).await;
}

// === handshake: the server's certificate ===

/// A scene whose server certificate is made by `issue`, of the PKI's own root.
async fn presented(
    issue: impl FnOnce(&Pki) -> crate::support::pki::Issued,
    shape: impl FnOnce(Service) -> Service,
) -> Scene {
    let pki = Pki::new();
    let server = issue(&pki);
    Scene::presenting(pki, &server, |options| options, shape).await
}

#[tokio::test]
async fn untrusted_issuer_names_the_issuer_that_is_not_in_ca() {
    let scene = presented(
        |_| Ca::root("Stranger Root").server().issue(),
        |service| service,
    )
    .await;
    let failure = refused_with(&scene, ["handshake", "upstream", "untrusted_issuer"], "ca").await;
    let detail = failure["detail"].as_str().expect("particulars");
    assert!(detail.contains("Stranger Root"), "{detail}");
    assert!(
        scene.upstream.peers().is_empty(),
        "the server saw no complete handshake"
    );
}

#[tokio::test]
async fn a_server_that_leaves_out_its_intermediate_is_an_untrusted_issuer() {
    let scene = presented(
        |pki| {
            let mut issued = pki.root.intermediate("Issuing CA").server().issue();
            issued.chain.truncate(1);
            issued
        },
        |service| service,
    )
    .await;
    refused_with(
        &scene,
        ["handshake", "upstream", "untrusted_issuer"],
        "intermediates",
    )
    .await;
}

#[tokio::test]
async fn name_mismatch_names_both_what_was_wanted_and_what_is_there() {
    let scene = presented(
        |pki| pki.root.server_for(&["elsewhere.test"]).issue(),
        |service| service,
    )
    .await;
    let failure = refused_with(
        &scene,
        ["handshake", "upstream", "name_mismatch"],
        "server_name",
    )
    .await;
    let detail = failure["detail"].as_str().expect("particulars");
    assert!(
        detail.contains(SERVER_NAME) && detail.contains("elsewhere.test"),
        "{detail}"
    );
}

#[tokio::test]
async fn name_not_allowed_means_a_right_name_that_is_not_on_the_list() {
    let scene = Scene::shaped(Behaviour::Identify, |service| {
        service.tls("allowed_names", r#"["*.elsewhere.test"]"#)
    })
    .await;
    refused_with(
        &scene,
        ["handshake", "upstream", "name_not_allowed"],
        "allowed_names",
    )
    .await;
}

#[tokio::test]
async fn expired_names_the_date() {
    let scene = presented(|pki| pki.root.server().expired().issue(), |service| service).await;
    refused_with(&scene, ["handshake", "upstream", "expired"], "renew").await;
}

#[tokio::test]
async fn not_yet_valid_points_at_the_clocks() {
    let scene = presented(
        |pki| pki.root.server().not_yet_valid().issue(),
        |service| service,
    )
    .await;
    refused_with(&scene, ["handshake", "upstream", "not_yet_valid"], "clock").await;
}

/// A scene with a revocation list made by `list`, and these further `tls` keys.
async fn with_crl(
    list: impl FnOnce(&Pki, &crate::support::pki::Issued) -> String,
    shape: impl FnOnce(Service) -> Service,
) -> Scene {
    let pki = Pki::new();
    let server = pki.server();
    let crl = pki.write("ca.crl", list(&pki, &server));
    Scene::presenting(
        pki,
        &server,
        |options| options,
        |service| shape(service.tls_text("crl", path_text(&crl))),
    )
    .await
}

#[tokio::test]
async fn revoked_means_that_the_list_names_the_certificate() {
    let scene = with_crl(|pki, server| pki.root.crl(&[server]), |service| service).await;
    refused_with(&scene, ["handshake", "upstream", "revoked"], "revoked").await;
}

#[tokio::test]
async fn a_revoked_intermediate_is_found_on_the_whole_path() {
    let pki = Pki::new();
    let middle = pki.root.intermediate("Issuing CA");
    let server = middle.server().issue();
    let lists = pki.root.crl_of_cas(&[&middle]) + &middle.crl(&[]);
    let crl = pki.write("all.crl", lists);
    let scene = Scene::presenting(
        pki,
        &server,
        |options| options,
        |service| service.tls_text("crl", path_text(&crl)),
    )
    .await;
    refused_with(&scene, ["handshake", "upstream", "revoked"], "revoked").await;
}

#[tokio::test]
async fn revocation_unknown_means_that_no_list_covers_the_certificate() {
    let scene = with_crl(|_, _| Ca::root("Other Root").crl(&[]), |service| service).await;
    refused_with(
        &scene,
        ["handshake", "upstream", "revocation_unknown"],
        "crl",
    )
    .await;
}

#[tokio::test]
async fn a_list_past_its_next_update_refuses_unless_it_is_said_to_be_accepted() {
    let old = |pki: &Pki, _: &_| pki.root.crl_until(&[], -time::Duration::hours(1));
    let scene = with_crl(old, |service| service).await;
    refused_with(
        &scene,
        ["handshake", "upstream", "crl_expired"],
        "crl_expired",
    )
    .await;
    let scene = with_crl(old, |service| service.tls_text("crl_expired", "accept")).await;
    visit(&scene.service).await;
}

#[tokio::test]
async fn pin_mismatch_shows_the_digest_of_the_key_that_was_met() {
    let scene = Scene::shaped(Behaviour::Identify, |service| {
        service.tls(
            "pins",
            r#"["sha256/AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="]"#,
        )
    })
    .await;
    let failure = refused_with(&scene, ["handshake", "upstream", "pin_mismatch"], "pins").await;
    let detail = failure["detail"].as_str().expect("particulars");
    assert!(detail.contains("sha256/"), "{detail}");
}

#[tokio::test]
async fn wrong_usage_means_a_certificate_that_is_not_for_servers() {
    let usage = [ExtendedKeyUsagePurpose::ClientAuth];
    let scene = presented(
        |pki| pki.root.server().usage(&usage).issue(),
        |service| service,
    )
    .await;
    refused_with(
        &scene,
        ["handshake", "upstream", "wrong_usage"],
        "serverAuth",
    )
    .await;
}

#[tokio::test]
async fn a_signature_that_does_not_hold_is_an_untrusted_issuer() {
    let scene = presented(|pki| pki.server().forged(), |service| service).await;
    refused_with(&scene, ["handshake", "upstream", "untrusted_issuer"], "ca").await;
}

#[tokio::test]
async fn bad_certificate_means_one_that_asks_for_what_nobody_here_understands() {
    let pki = Pki::new();
    let server = pki.root.server().unknown_critical_extension().issue();
    // OpenSSL presents it; rustls would not.
    let openssl = Openssl::Reverse.start(&pki, &server, &[]).await;
    let (proxy, service) = towards(&pki, &openssl.address.to_string(), |service| service).await;
    is_reset(&service).await;
    proxy
        .expect_failure(
            NAME,
            ["handshake", "upstream", "bad_certificate"],
            "issued anew",
        )
        .await;
}

// === handshake: our certificate ===

#[tokio::test]
async fn client_certificate_required_where_none_is_presented() {
    for versions in [TLS12, TLS13] {
        let scene = Scene::set(
            |options| options.versions(versions),
            |service| {
                service
                    .without_tls("cert")
                    .without_tls("key")
                    .tls("client_auth", "false")
            },
        )
        .await;
        let words = ["handshake", "local", "client_certificate_required"];
        refused_with(&scene, words, "client_auth").await;
    }
}

#[tokio::test]
async fn client_certificate_rejected_carries_the_alert_in_both_versions() {
    let rejected = ["handshake", "upstream", "client_certificate_rejected"];
    for versions in [TLS12, TLS13] {
        let pki = Pki::new();
        let server = pki.server();
        let other = Ca::root("Other Root");
        let scene = Scene::presenting(
            pki,
            &server,
            |mut options| {
                options.client_cas = vec![other.der().clone()];
                options.versions(versions)
            },
            |service| service,
        )
        .await;
        // TLS 1.3 rejects after our half of the handshake is done: still the handshake's failure,
        // and never a clean end.
        let failure = refused_with(&scene, rejected, "client certificate").await;
        assert_eq!(failure["alert"], "unknown_ca", "{failure}");
        // A caller that speaks at once fares no better.
        let mut caller = scene.call().await;
        let _ = caller.try_send(b"GET / HTTP/1.0\r\n\r\n").await;
        assert_eq!(caller.ending().await, Ending::Reset);
        assert_eq!(scene.proxy.counter(NAME, "ended_ok").await, 0);
        let line = scene
            .proxy
            .failure_logged(NAME, "client_certificate_rejected")
            .await;
        assert_eq!(line.text("alert"), Some("unknown_ca"), "{line:?}");
    }
}

#[tokio::test]
async fn a_server_that_starts_to_trust_us_is_reached_without_a_restart() {
    let mut scene = Scene::new(Behaviour::Identify).await;
    let (other, server) = (Ca::root("Other Root"), scene.pki.server());
    scene.upstream.trust_clients_of(&[&other], &server);
    scene.call_is_refused().await;
    scene
        .upstream
        .trust_clients_of(&[&other, &scene.pki.root], &server);
    visit(&scene.service).await;
}

// === handshake: the protocol ===

#[tokio::test]
async fn protocol_version_where_the_server_is_too_old() {
    let scene = Scene::set(
        |options| options.versions(TLS12),
        |service| service.tls_text("min_version", "1.3"),
    )
    .await;
    refused_with(
        &scene,
        ["handshake", "upstream", "protocol_version"],
        "min_version",
    )
    .await;
}

#[tokio::test]
async fn no_shared_cipher_where_no_group_is_in_common() {
    let scene = Scene::set(
        |mut options| {
            options.groups = vec![NamedGroup::secp384r1];
            options
        },
        |service| service.tls("key_exchange", r#"["X25519"]"#),
    )
    .await;
    refused_with(
        &scene,
        ["handshake", "upstream", "no_shared_cipher"],
        "key_exchange",
    )
    .await;
}

#[tokio::test]
async fn no_shared_alpn_whether_the_server_refuses_or_ignores_the_offer() {
    for server_speaks in [&["imap"][..], &[]] {
        let scene = Scene::set(
            |options| options.alpn(server_speaks),
            |service| service.tls("alpn", r#"["h2"]"#),
        )
        .await;
        refused_with(&scene, ["handshake", "upstream", "no_shared_alpn"], "alpn").await;
    }
}

#[tokio::test]
async fn not_tls_where_the_server_speaks_plain_text() {
    for greeting in [
        "HTTP/1.1 400 Bad Request\r\n\r\n",
        "220 mail.test ESMTP\r\n",
        "-ERR\r\n",
    ] {
        let scene = Scene::new(Behaviour::Plain(greeting.as_bytes().to_vec())).await;
        refused_with(&scene, ["handshake", "upstream", "not_tls"], "STARTTLS").await;
    }
}

#[tokio::test]
async fn unrecognised_name_where_the_server_knows_no_such_host() {
    let pki = Pki::new();
    let server = pki.server();
    let sni = ["-servername", "known.test", "-servername_fatal"];
    let with_second = [&sni[..], &["-cert2", "server.crt", "-key2", "server.key"]].concat();
    let openssl = Openssl::Reverse.start(&pki, &server, &with_second).await;
    let (proxy, service) = towards(&pki, &openssl.address.to_string(), |service| service).await;
    is_reset(&service).await;
    let failure = proxy
        .expect_failure(
            NAME,
            ["handshake", "upstream", "unrecognised_name"],
            "server_name",
        )
        .await;
    assert_eq!(
        failure["alert"], "unrecognized_name",
        "RFC 6066 spells it so"
    );
}

#[tokio::test]
async fn alert_carries_the_name_of_an_alert_that_no_other_reason_covers() {
    // A fatal internal_error in a record of TLS 1.2.
    let internal_error = vec![0x15, 3, 3, 0, 2, 2, 80];
    let scene = Scene::new(Behaviour::Plain(internal_error)).await;
    let failure = refused_with(&scene, ["handshake", "upstream", "alert"], "alert").await;
    assert_eq!(failure["alert"], "internal_error");
}

#[tokio::test]
async fn protocol_error_where_the_records_are_tls_and_the_messages_are_not() {
    // A ServerHello of no length.
    let empty_hello = vec![0x16, 3, 3, 0, 4, 2, 0, 0, 0];
    let scene = Scene::new(Behaviour::Plain(empty_hello)).await;
    refused_with(&scene, ["handshake", "upstream", "protocol_error"], "TLS").await;
}

#[tokio::test]
async fn closed_in_handshake_where_the_server_ends_without_an_alert() {
    let scene = Scene::new(Behaviour::Plain(Vec::new())).await;
    let reason = ["handshake", "upstream", "closed_in_handshake"];
    refused_with(&scene, reason, "its log does").await;
}

// === relay ===

#[tokio::test]
async fn a_stream_cut_short_is_truncated_and_reset_after_all_that_came() {
    for versions in [TLS12, TLS13] {
        let behaviour = Behaviour::Cut(vec![b'x'; 300_000]);
        let scene = Scene::set(
            |options| options.behaviour(behaviour).versions(versions),
            |service| service,
        )
        .await;
        let (bytes, ending) = scene.call().await.rest().await;
        assert_eq!((bytes.len(), ending), (300_000, Ending::Reset));
        scene
            .proxy
            .expect_failure(NAME, ["relay", "upstream", "truncated"], "unclean_close")
            .await;
    }
}

#[tokio::test]
async fn unclean_close_fin_passes_a_cut_stream_on_as_an_ordinary_end() {
    let scene = Scene::shaped(Behaviour::Cut(vec![b'x'; 300_000]), |service| {
        service.text("unclean_close", "fin")
    })
    .await;
    let mut caller = scene.call().await;
    let (bytes, ending) = caller.rest().await;
    assert_eq!((bytes.len(), ending), (300_000, Ending::Fin));
}

#[tokio::test]
async fn an_upstreams_reset_reaches_the_caller_as_one_after_all_that_came() {
    let scene = Scene::new(Behaviour::Break(b"so far so good".to_vec())).await;
    let (bytes, ending) = scene.call().await.rest().await;
    assert_eq!(String::from_utf8_lossy(&bytes), "so far so good");
    assert_eq!(ending, Ending::Reset);
    scene
        .proxy
        .expect_failure(NAME, ["relay", "upstream", "reset"], "log")
        .await;
}

#[tokio::test]
async fn a_callers_reset_reaches_the_upstream_as_a_break_and_never_as_close_notify() {
    for versions in [TLS12, TLS13] {
        let scene = Scene::set(|options| options.versions(versions), |service| service).await;
        let (mut caller, _) = scene.introduce().await;
        let peer = scene.upstream.handshake_after(0).await;
        caller.echo(b"half a message, then").await;
        caller.reset();
        let (end, received) = scene.upstream.end_of(peer.number).await;
        assert_eq!((end, received), (End::Reset, 20));
        scene
            .proxy
            .expect_failure(NAME, ["relay", "caller", "reset"], "log")
            .await;
    }
}

// === credentials ===

#[tokio::test]
async fn trust_missing_where_the_ca_file_is_not_there() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let files = pki.identity_files(NAME, &pki.client(NAME));
    let missing = pki.path("missing-ca.crt");
    let service = Service::new(NAME, upstream.address(), &pki)
        .identity(&files)
        .tls_text("ca", path_text(&missing));
    let proxy = Proxy::start_degraded(&pki, &Config::of([service.clone()])).await;
    let problem = problem_of(&proxy).await;
    assert_eq!(problem["reason"], "trust_missing", "{problem}");
    std::fs::write(&missing, pki.root.pem()).unwrap();
    is_ready(&proxy).await;
    visit(&service).await;
}

#[tokio::test]
async fn unreadable_where_a_file_is_there_but_may_not_be_read() {
    use std::fs::{Permissions, set_permissions};
    use std::os::unix::fs::PermissionsExt as _;

    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let files = pki.identity_files(NAME, &pki.client(NAME));
    set_permissions(&files.key, Permissions::from_mode(0o000)).unwrap();
    let service = Service::new(NAME, upstream.address(), &pki).identity(&files);
    // Modes do not stop root, unless it goes without these capabilities (capabilities(7)).
    let without = [
        "setpriv",
        "--bounding-set",
        "-dac_override,-dac_read_search",
    ];
    let command = match rustix::process::geteuid().is_root() {
        true => command_under(&without),
        false => clean_command(),
    };
    let mut proxy = Proxy::launch(command, &pki, &Config::of([service.clone()]));
    proxy.wait_until_alive().await;
    let problem = problem_of(&proxy).await;
    assert_eq!(problem["reason"], "unreadable", "{problem}");
    let detail = problem["detail"].as_str().expect("particulars");
    assert!(detail.contains(path_text(&files.key)), "{detail}");
    set_permissions(&files.key, Permissions::from_mode(0o600)).unwrap();
    is_ready(&proxy).await;
    visit(&service).await;
}

async fn problem_of(proxy: &Proxy) -> serde_json::Value {
    proxy
        .wait_for_service(NAME, "a service that waits", |service| {
            let waits = service["state"] == "waiting" && !service["problem"].is_null();
            waits.then(|| service["problem"].clone())
        })
        .await
}

async fn is_ready(proxy: &Proxy) {
    proxy
        .wait_for_service(NAME, "the service alive", |service| {
            (service["state"] == "ready").then_some(())
        })
        .await;
}

// === and none of them is in anyone's way ===

#[tokio::test]
async fn failing_callers_do_not_disturb_others() {
    let pki = Pki::new();
    let good = Upstream::start(&pki).await;
    let stalled = Upstream::behaving(&pki, Behaviour::Stall).await;
    let stranger = Options::trusting(&pki.root)
        .client_auth(ClientAuth::NotAsked)
        .start(&Ca::root("Stranger").server().issue())
        .await;
    let files = pki.identity_files(NAME, &pki.client(NAME));
    let services = [
        ("good", &good),
        ("stalled", &stalled),
        ("stranger", &stranger),
    ]
    .map(|(name, upstream)| Service::new(name, upstream.address(), &pki).identity(&files));
    let _proxy = Proxy::start(&pki, &Config::of(services.clone())).await;
    let [good, stalled, stranger] = services;
    let mut hanging = Vec::new();
    for _ in 0..50 {
        hanging.push(Caller::connect(stalled.address()).await);
        is_reset(&stranger).await;
        visit(&good).await;
    }
    assert_eq!(hanging.len(), 50);
}

#[tokio::test]
async fn a_failed_dial_tells_the_upstream_why_and_leaves_nothing_open() {
    let scene = presented(|pki| pki.root.server().expired().issue(), |service| service).await;
    scene.call_is_refused().await;
    let (number, error) = scene
        .upstream
        .journal()
        .wait("a failed handshake at the upstream", |event| match event {
            Event::HandshakeFailed { number, error } => Some((*number, error.clone())),
            _ => None,
        })
        .await;
    assert!(
        error.contains("CertificateExpired"),
        "the alert says why: {error}"
    );
    scene.upstream.end_of(number).await;
    scene.proxy.counter_becomes(NAME, "open", 0).await;
}
