//! `tlsward convert`: what it writes, what it says, and that the result carries traffic and refuses
//! at least what the original refuses.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use tokio::process::Command;

use crate::support::net::{self, Caller};
use crate::support::pki::{Ca, Issued, Pki};
use crate::support::proxy::{Proxy, clean_command};
use crate::support::servers::{Server, program};
use crate::support::upstream::{Behaviour, ClientAuth, Options, Seen, Upstream};
use crate::support::within;

mod guides;

/// The examples of `tests/convert`, by product.
const PRODUCTS: [&str; 4] = ["stunnel", "nginx", "ghostunnel", "kong-env"];

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/convert")
}

async fn convert(directory: &Path, arguments: &[&str]) -> Output {
    let mut command = clean_command();
    command
        .arg("convert")
        .args(arguments)
        .current_dir(directory);
    within("tlsward to end", command.output())
        .await
        .expect("tlsward can be started")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("tlsward writes UTF-8")
}

/// Both streams and the exit code, without the directory's name.
fn shown(output: &Output, directory: &Path) -> String {
    let code = output.status.code().expect("it ended by itself");
    let all = format!(
        "exit code {code}\n\n=== standard error\n{}\n=== standard output\n{}",
        text(&output.stderr),
        text(&output.stdout)
    );
    all.replace(&format!("{}/", directory.display()), "./")
}

/// A file named on the command line is shown as it is named, so the examples are converted in their
/// own directory. With `TLSWARD_TEST_UPDATE` set, what is expected is written anew, to be reviewed.
#[tokio::test]
async fn every_example_becomes_what_stands_beside_it() {
    let mut wrong = String::new();
    let mut count = 0;
    for product in PRODUCTS {
        let directory = examples().join(product);
        let mut names: Vec<String> = std::fs::read_dir(&directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| !name.ends_with(".expected"))
            .collect();
        names.sort();
        for name in names {
            count += 1;
            let output = convert(&directory, &["--from", product, &name]).await;
            let shown = shown(&output, &directory);
            let file = directory.join(format!("{name}.expected"));
            if std::env::var_os("TLSWARD_TEST_UPDATE").is_some() {
                std::fs::write(&file, &shown).unwrap();
            }
            if std::fs::read_to_string(&file).unwrap_or_default() != shown {
                let _ = write!(wrong, "{product}/{name}: now it is\n{shown}\n");
            }
        }
    }
    assert!(count >= 18, "only {count} examples");
    assert!(wrong.is_empty(), "{wrong}");
}

#[tokio::test]
async fn output_goes_into_a_file_that_is_not_there_yet() {
    let home = tempfile::tempdir().unwrap();
    let source = examples().join("stunnel/mtls.conf");
    std::fs::copy(source, home.path().join("stunnel.conf")).unwrap();
    let arguments = [
        "--from",
        "stunnel",
        "stunnel.conf",
        "--output",
        "config.toml",
    ];
    let output = convert(home.path(), &arguments).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(output.stdout.is_empty(), "it went into the file");
    let file = home.path().join("config.toml");
    let written = std::fs::read_to_string(&file).unwrap();
    assert!(written.contains("[services.billing]"), "{written}");

    std::fs::write(&file, "# mine\n").unwrap();
    let output = convert(home.path(), &arguments).await;
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(text(&output.stderr).contains("--force"), "{output:?}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "# mine\n");
    let output = convert(home.path(), &[&arguments[..], &["--force"]].concat()).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), written);
    let left: Vec<_> = std::fs::read_dir(home.path()).unwrap().collect();
    assert_eq!(left.len(), 2, "no half file is left behind: {left:?}");
}

#[tokio::test]
async fn json_has_every_note_with_its_place_and_the_configuration() {
    let directory = examples().join("stunnel");
    let output = convert(
        &directory,
        &["--from", "stunnel", "--json", "defaults.conf"],
    )
    .await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["whole"], false);
    assert_eq!(report["services"][0]["service"], "redis");
    assert_eq!(report["services"][0]["switched_off"], false);
    let is_it = |note: &&serde_json::Value| note["directive"] == "accept";
    let note = report["notes"]
        .as_array()
        .unwrap()
        .iter()
        .find(is_it)
        .unwrap();
    assert_eq!(note["kind"], "decide");
    assert_eq!(note["file"], "defaults.conf");
    assert_eq!(note["line"], 10);
    assert_eq!(note["service"], "ldap");
    let plain = convert(&directory, &["--from", "stunnel", "defaults.conf"]).await;
    let config = report["config"].as_str().unwrap();
    assert_eq!(config, text(&plain.stdout));
}

#[tokio::test]
async fn what_cannot_be_understood_is_exit_code_2_and_nothing_is_written() {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("nginx.conf"), "stream {\n  server {\n").unwrap();
    let arguments = ["--from", "nginx", "nginx.conf", "--output", "config.toml"];
    let output = convert(home.path(), &arguments).await;
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let said = text(&output.stderr);
    assert!(said.starts_with("nginx.conf:2: "), "{said}");
    assert!(said.contains("fix: "), "{said}");
    assert!(!home.path().join("config.toml").exists());
    let output = convert(home.path(), &["--from", "apache", "nginx.conf"]).await;
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}

#[tokio::test]
async fn a_file_may_come_in_by_standard_input() {
    let mut command = clean_command();
    command
        .args(["convert", "--from", "ghostunnel", "-"])
        .stdin(std::fs::File::open(examples().join("ghostunnel/run.sh")).unwrap());
    let output = within("tlsward to end", command.output()).await.unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(text(&output.stdout).contains("[services.billing-internal]"));
}

// === traffic ===

/// The name in the examples, and in the certificate of the upstream.
const NAME: &str = "billing.internal";

/// An example with the addresses and files of a test in it.
fn adapted(pki: &Pki, example: &str, listen: &str, upstream: &str) -> String {
    let source = std::fs::read_to_string(examples().join(example)).unwrap();
    with_places(pki, &source, listen, upstream)
}

fn with_places(pki: &Pki, source: &str, listen: &str, upstream: &str) -> String {
    let file = |name: &str| pki.path(name).display().to_string();
    source
        .replace("127.0.0.1:7001", listen)
        .replace("localhost:7001", listen)
        .replace("billing.internal:8443", upstream)
        .replace("/etc/tls/ca.pem", &pki.ca_file().display().to_string())
        .replace("/etc/tls/client.crt", &file("client/tls.crt"))
        .replace("/etc/tls/client.key", &file("client/tls.key"))
}

fn client(pki: &Pki) -> Issued {
    let client = pki.client("me");
    pki.identity_files("client", &client);
    client
}

/// The result of a conversion, running; `more` is put behind it.
async fn running(pki: &Pki, product: &str, source: &str, more: &str) -> (Proxy, String) {
    pki.write("source", source);
    let output = convert(pki.directory(), &["--from", product, "source"]).await;
    assert!(matches!(output.status.code(), Some(0 | 1)), "{output:?}");
    let config = text(&output.stdout) + more;
    let mut proxy = Proxy::launch_text(clean_command(), pki, &net::address().to_string(), &config);
    proxy.wait_until_ready().await;
    (proxy, config)
}

/// The line with which the upstream names its caller, or `None` where nothing comes through.
async fn greeting(listen: std::net::SocketAddr) -> Option<Seen> {
    let mut caller = Caller::try_connect(listen).await.ok()?;
    let line = caller.try_line().await.ok()?;
    Some(Seen::parse(&line))
}

#[tokio::test]
async fn the_results_carry_traffic_with_the_client_certificate_and_refuse_wrong_servers() {
    for (product, example) in [
        ("stunnel", "stunnel/mtls.conf"),
        ("nginx", "nginx/mtls.conf"),
        ("ghostunnel", "ghostunnel/run.sh"),
        ("kong-env", "kong-env/guide.env"),
    ] {
        let pki = Pki::new();
        let client = client(&pki);
        let good = pki.root.server_for(&[NAME]).issue();
        let upstream = Options::trusting(&pki.root).start(&good).await;
        let listen = net::address();
        let source = adapted(
            &pki,
            example,
            &listen.to_string(),
            &upstream.address().to_string(),
        );
        // Kong's variables name no service; the example at the end of the result is switched on.
        let more = match product {
            "kong-env" => format!(
                "\n[services.billing]\nlisten = \"{listen}\"\nupstream = \"{}\"\ntls.server_name = \"{NAME}\"\n",
                upstream.address()
            ),
            _ => String::new(),
        };
        let (proxy, config) = running(&pki, product, &source, &more).await;
        let mut caller = Caller::connect(listen).await;
        let seen = Seen::parse(&caller.line().await);
        assert_eq!(seen.serial, client.serial(), "{product}:\n{config}");
        caller.echo(&[7; 100_000]).await;

        let name = proxy.status().await["services"][0]["name"].clone();
        let name = name.as_str().expect("status names the service").to_owned();
        for (wrong, reason) in [
            (
                Ca::root("Stranger").server_for(&[NAME]).issue(),
                "untrusted_issuer",
            ),
            (
                pki.root.server_for(&["elsewhere.test"]).issue(),
                "name_mismatch",
            ),
            (pki.root.server_for(&[NAME]).expired().issue(), "expired"),
        ] {
            upstream.present(&wrong);
            net::is_reset(listen).await;
            proxy.failure_logged(&name, reason).await;
        }
        upstream.present(&good);
        assert!(greeting(listen).await.is_some(), "{product}");
    }
}

// === beside the originals ===

/// A server that the original and the result are sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    Good,
    OtherCa,
    WrongName,
    Expired,
    NoCertificateWanted,
}

const ALL: [Which; 5] = [
    Which::Good,
    Which::OtherCa,
    Which::WrongName,
    Which::Expired,
    Which::NoCertificateWanted,
];

async fn server(which: Which, pki: &Pki) -> Upstream {
    let present = match which {
        Which::Good | Which::NoCertificateWanted => pki.root.server_for(&[NAME]).issue(),
        Which::OtherCa => Ca::root("Stranger").server_for(&[NAME]).issue(),
        Which::WrongName => pki.root.server_for(&["elsewhere.test"]).issue(),
        Which::Expired => pki.root.server_for(&[NAME]).expired().issue(),
    };
    let wanted = match which {
        Which::NoCertificateWanted => ClientAuth::NotAsked,
        _ => ClientAuth::Required,
    };
    Options::trusting(&pki.root)
        .behaviour(Behaviour::Identify)
        .client_auth(wanted)
        .start(&present)
        .await
}

/// Sends a caller through the original and through the result of its conversion, to each server.
/// `original` starts the product with a file. `accepted`: the servers that the original takes.
///
/// The result takes only the good ones, whatever the original takes; and refuses all that it refuses.
async fn beside<F: Future<Output = Server>>(
    product: &str,
    source: &str,
    accepted: &[Which],
    original: impl Fn(PathBuf, std::net::SocketAddr) -> F,
) {
    let pki = Pki::new();
    client(&pki);
    for which in ALL {
        let upstream = server(which, &pki).await;
        let to = upstream.address().to_string();
        let (theirs, ours) = (net::address(), net::address());
        let file = pki.write(
            "original",
            with_places(&pki, source, &theirs.to_string(), &to),
        );
        let running_original = original(file, theirs).await;
        let taken = greeting(theirs).await.is_some();
        let said = running_original.output();
        assert_eq!(
            taken,
            accepted.contains(&which),
            "{product}, {which:?}: {source}\n{said}"
        );
        let source = with_places(&pki, source, &ours.to_string(), &to);
        // Where the source has no name, the one that is verified is the operator's to write.
        let more = match source.contains(NAME) {
            true => "",
            false => "server_name = \"billing.internal\"\n",
        };
        let (_proxy, config) = running(&pki, product, &source, more).await;
        let ours_taken = greeting(ours).await.is_some();
        let good = matches!(which, Which::Good | Which::NoCertificateWanted);
        assert_eq!(ours_taken, good && taken, "{product}, {which:?}:\n{config}");
    }
}

async fn stunnel(file: PathBuf, listen: std::net::SocketAddr) -> Server {
    let mut command = program("stunnel4", "stunnel4");
    command.arg(file).stdin(Stdio::null());
    Server::start(command, listen, tempfile::tempdir().unwrap()).await
}

const STUNNEL: &str = "foreground = yes\npid =\nsyslog = no\nsslVersionMin = TLSv1.2\n\
    [billing]\nclient = yes\naccept = 127.0.0.1:7001\nconnect = billing.internal:8443\n\
    CAfile = /etc/tls/ca.pem\ncert = /etc/tls/client.crt\nkey = /etc/tls/client.key\n";

#[tokio::test]
async fn beside_stunnel_that_verifies_nothing_the_result_takes_only_the_right_server() {
    beside("stunnel", STUNNEL, &ALL, stunnel).await;
}

#[tokio::test]
async fn beside_stunnel_that_verifies_the_chain_the_result_verifies_the_name_too() {
    let source = format!("{STUNNEL}verifyChain = yes\n");
    let accepted = [Which::Good, Which::WrongName, Which::NoCertificateWanted];
    beside("stunnel", &source, &accepted, stunnel).await;
}

#[tokio::test]
async fn beside_stunnel_that_verifies_chain_and_name_the_result_takes_the_same_servers() {
    let source = format!("{STUNNEL}verifyChain = yes\ncheckHost = billing.internal\n");
    let accepted = [Which::Good, Which::NoCertificateWanted];
    beside("stunnel", &source, &accepted, stunnel).await;
    // Another name on the wire than in the certificate.
    let source = format!("{source}sni = other.internal\n");
    beside("stunnel", &source, &accepted, stunnel).await;
}

#[tokio::test]
async fn beside_stunnel_without_a_certificate_both_reach_only_who_wants_none() {
    let source = STUNNEL
        .replace("cert = /etc/tls/client.crt\n", "")
        .replace("key = /etc/tls/client.key\n", "");
    let source = format!("{source}verifyChain = yes\ncheckHost = billing.internal\n");
    beside("stunnel", &source, &[Which::NoCertificateWanted], stunnel).await;
}

/// nginx's modules lie where Debian puts them.
const STREAM_MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

async fn nginx(file: PathBuf, listen: std::net::SocketAddr) -> Server {
    assert!(
        Path::new(STREAM_MODULE).exists(),
        "{STREAM_MODULE} is needed for this test: apt-get install libnginx-mod-stream"
    );
    let directory = tempfile::tempdir().unwrap();
    let mut command: Command = program("nginx", "nginx");
    command
        .arg("-c")
        .arg(file)
        .arg("-p")
        .arg(directory.path())
        .stdin(Stdio::null());
    Server::start(command, listen, directory).await
}

/// A server of nginx with these lines for TLS.
fn stream(lines: &str) -> String {
    format!(
        "load_module {STREAM_MODULE};\ndaemon off;\nmaster_process off;\npid nginx.pid;\nerror_log stderr info;\n\
         events {{ worker_connections 64; }}\nstream {{ server {{ listen 127.0.0.1:7001;\n\
         proxy_pass billing.internal:8443;\nproxy_ssl on;\nproxy_ssl_trusted_certificate /etc/tls/ca.pem;\n\
         proxy_ssl_certificate /etc/tls/client.crt;\nproxy_ssl_certificate_key /etc/tls/client.key;\n{lines} }} }}\n"
    )
}

#[tokio::test]
async fn beside_nginx_that_verifies_nothing_the_result_takes_only_the_right_server() {
    beside(
        "nginx",
        &stream("proxy_ssl_name billing.internal;"),
        &ALL,
        nginx,
    )
    .await;
    beside("nginx", &stream(""), &ALL, nginx).await;
}

#[tokio::test]
async fn beside_nginx_that_verifies_the_result_takes_the_same_servers() {
    let lines = "proxy_ssl_verify on; proxy_ssl_name billing.internal; proxy_ssl_server_name on;";
    let accepted = [Which::Good, Which::NoCertificateWanted];
    beside("nginx", &stream(lines), &accepted, nginx).await;
}

#[tokio::test]
async fn beside_nginx_a_chain_that_is_too_long_for_it_is_too_long_for_the_result() {
    for (intermediates, taken) in [(1, true), (2, false)] {
        let pki = Pki::new();
        client(&pki);
        let ca = pki.root.intermediates(intermediates);
        let present = ca.server_for(&[NAME]).issue();
        let upstream = Options::trusting(&pki.root).start(&present).await;
        let to = upstream.address().to_string();
        let source = stream("proxy_ssl_verify on; proxy_ssl_name billing.internal;");
        let (theirs, ours) = (net::address(), net::address());
        let file = pki.write(
            "original",
            with_places(&pki, &source, &theirs.to_string(), &to),
        );
        let original = nginx(file, theirs).await;
        assert_eq!(
            greeting(theirs).await.is_some(),
            taken,
            "{}",
            original.output()
        );
        let source = with_places(&pki, &source, &ours.to_string(), &to);
        let (_proxy, config) = running(&pki, "nginx", &source, "").await;
        assert_eq!(greeting(ours).await.is_some(), taken, "{config}");
    }
}

#[tokio::test]
async fn beside_the_originals_a_revoked_server_is_refused_and_another_one_is_not() {
    for product in ["stunnel", "nginx"] {
        let pki = Pki::new();
        client(&pki);
        let revoked = pki.root.server_for(&[NAME]).issue();
        let good = pki.root.server_for(&[NAME]).issue();
        let list = pki.write("crl.pem", pki.root.crl(&[&revoked]));
        let upstream = Options::trusting(&pki.root).start(&good).await;
        let to = upstream.address().to_string();
        let source = match product {
            "stunnel" => format!(
                "{STUNNEL}verifyChain = yes\ncheckHost = billing.internal\nCRLfile = {}\n",
                list.display()
            ),
            _ => stream(&format!(
                "proxy_ssl_verify on; proxy_ssl_name billing.internal; proxy_ssl_crl {};",
                list.display()
            )),
        };
        let (theirs, ours) = (net::address(), net::address());
        let places =
            |listen: std::net::SocketAddr| with_places(&pki, &source, &listen.to_string(), &to);
        let file = pki.write("original", places(theirs));
        let _original = match product {
            "stunnel" => stunnel(file, theirs).await,
            _ => nginx(file, theirs).await,
        };
        let (proxy, config) = running(&pki, product, &places(ours), "").await;
        for (present, taken) in [(&good, true), (&revoked, false)] {
            upstream.present(present);
            for listen in [theirs, ours] {
                let is_taken = greeting(listen).await.is_some();
                assert_eq!(is_taken, taken, "{product} on {listen}:\n{config}");
            }
        }
        let name = proxy.status().await["services"][0]["name"].clone();
        proxy
            .failure_logged(name.as_str().unwrap(), "revoked")
            .await;
    }
}
