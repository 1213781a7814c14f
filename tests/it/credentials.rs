//! Credentials of systemd: what `LoadCredential=` leaves in `$CREDENTIALS_DIRECTORY`, here made by
//! the test or by systemd's own `systemd-creds`.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::Value;

use crate::support::net::is_reset;
use crate::support::pki::{Issued, Pki};
use crate::support::proxy::{
    Config, Proxy, Service, clean_command, command_under, path_text, serial_in_use,
};
use crate::support::scene::{NAME, introduce, visit};
use crate::support::servers::program;
use crate::support::upstream::{Behaviour, Options, Upstream};
use crate::support::within;

const VARIABLE: &str = "CREDENTIALS_DIRECTORY";

/// An upstream, and the directory in which systemd would leave credentials.
struct Handed {
    pki: Pki,
    upstream: Upstream,
    directory: PathBuf,
}

impl Handed {
    async fn new() -> Self {
        let pki = Pki::new();
        let upstream = Options::trusting(&pki.root)
            .behaviour(Behaviour::Identify)
            .start(&pki.server())
            .await;
        let directory = pki.path("credentials");
        fs::create_dir(&directory).unwrap();
        let handed = Self {
            pki,
            upstream,
            directory,
        };
        handed.leave("ca", handed.pki.root.pem());
        handed
    }

    /// A file as systemd leaves it: mode 0400, replaced as a whole.
    fn leave(&self, name: &str, contents: impl AsRef<[u8]>) {
        leave(&self.directory, name, contents);
    }

    /// The service with everything from credentials.
    fn service(&self, name: &str) -> Service {
        Service::new(name, self.upstream.address(), &self.pki)
            .tls("ca", "{ credential = \"ca\" }")
            .tls_text("credential", name)
    }

    /// Runs with the directory in the environment.
    async fn run(&self, config: &Config) -> Proxy {
        let mut command = clean_command();
        command.env(VARIABLE, &self.directory);
        let mut proxy = Proxy::launch(command, &self.pki, config);
        proxy.wait_until_ready().await;
        proxy
    }
}

fn leave(directory: &Path, name: &str, contents: impl AsRef<[u8]>) {
    let aside = directory.join(format!(".{name}"));
    fs::write(&aside, contents).unwrap();
    fs::set_permissions(&aside, fs::Permissions::from_mode(0o400)).unwrap();
    fs::rename(aside, directory.join(name)).unwrap();
}

fn bundle(issued: &Issued) -> String {
    issued.key_pem() + &issued.chain_pem()
}

fn said(output: &Output) -> String {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

#[tokio::test]
async fn a_credential_is_a_bundle_a_pair_or_a_directory() {
    let handed = Handed::new().await;
    let issue = |name: &str| handed.pki.client(name);
    let (whole, pair, directory) = (issue("whole"), issue("pair"), issue("directory"));
    handed.leave("whole", bundle(&whole));
    handed.leave("pair.crt", pair.chain_pem());
    handed.leave("pair.key", pair.key_pem());
    handed.leave("directory_tls.crt", directory.chain_pem());
    handed.leave("directory_tls.key", directory.key_pem());
    let names = ["whole", "pair", "directory"];
    let services = names.map(|name| handed.service(name));
    let config = Config::of(services.clone());
    let proxy = handed.run(&config).await;
    for (service, issued) in services.iter().zip([&whole, &pair, &directory]) {
        let seen = visit(service).await;
        assert_eq!(seen.common_name, service.name);
        assert_eq!(seen.serial, issued.serial());
    }
    let status = proxy.service("whole").await;
    let source = format!("credential whole in {}", handed.directory.display());
    assert_eq!(status["identity"]["source"], source.as_str());
    assert!(
        status["warnings"].as_array().unwrap().is_empty(),
        "{status}"
    );
}

#[tokio::test]
async fn what_systemd_did_not_hand_over_is_named_and_the_other_services_serve() {
    let handed = Handed::new().await;
    handed.leave("billings", bundle(&handed.pki.client(NAME)));
    let files = handed
        .pki
        .identity_files("plain", &handed.pki.client("plain"));
    let plain = Service::new("plain", handed.upstream.address(), &handed.pki).identity(&files);
    let billing = handed.service(NAME);
    let config = Config::of([billing.clone(), plain.clone()]);
    // Without the variable, and with a directory that lacks it.
    for (directory, detail) in [
        (None, "systemd has handed no credentials to this process"),
        (Some(&handed.directory), "; it has billings, ca"),
    ] {
        let mut command = clean_command();
        if let Some(directory) = directory {
            command.env(VARIABLE, directory);
        }
        let mut proxy = Proxy::launch(command, &handed.pki, &config);
        proxy.wait_until_alive().await;
        let line = proxy
            .wait_for_log("a line on the credential", |line| {
                line.has("reason", "credential_missing")
                    && line
                        .text("detail")
                        .is_some_and(|text| text.contains(detail))
            })
            .await;
        assert_eq!(line.text("level"), Some("ERROR"), "{line:?}");
        let hint = line.text("hint").unwrap();
        assert!(hint.contains("LoadCredential=NAME:/path"), "{hint}");
        assert!(hint.contains("systemd-run -p LoadCredential="), "{hint}");
        let problem = proxy
            .wait_for_service(NAME, "the waiting service", |service| {
                (service["state"] == "waiting").then(|| service["problem"].clone())
            })
            .await;
        assert_eq!(problem["reason"], "credential_missing", "{problem}");
        is_refused(&billing).await;
        assert_eq!(visit(&plain).await.common_name, "plain");
        proxy.stop().await;
    }
    let strict = within(
        "the end",
        clean_command()
            .args([
                "run",
                "--strict",
                "-c",
                path_text(&handed.pki.path("config.toml")),
            ])
            .output(),
    )
    .await
    .unwrap();
    assert_eq!(strict.status.code(), Some(1), "{}", said(&strict));
}

/// Refused by the kernel, or reset: in any case not a byte.
async fn is_refused(service: &Service) {
    match tokio::net::TcpStream::connect(service.address()).await {
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused),
        Ok(_) => is_reset(service.address()).await,
    }
}

#[tokio::test]
async fn a_credential_that_is_replaced_is_in_use_within_moments_and_junk_is_not() {
    let handed = Handed::new().await;
    let old = handed.pki.client(NAME);
    handed.leave(NAME, bundle(&old));
    let service = handed.service(NAME);
    let proxy = handed.run(&Config::of([service.clone()])).await;
    let (mut open, seen) = introduce(&service).await;
    assert_eq!(seen.serial, old.serial());

    handed.leave(NAME, "not PEM");
    proxy
        .wait_for_service(NAME, "the refusal", |service| {
            (service["identity"]["refused"]["reason"] == "bad_pem").then_some(())
        })
        .await;
    assert_eq!(visit(&service).await.serial, old.serial());

    // Even in another form.
    let new = handed.pki.client(NAME);
    fs::remove_file(handed.directory.join(NAME)).unwrap();
    handed.leave("billing.crt", new.chain_pem());
    handed.leave("billing.key", new.key_pem());
    in_use(&proxy, &new).await;
    assert_eq!(visit(&service).await.serial, new.serial());
    open.echo(b"still here").await;
}

async fn in_use(proxy: &Proxy, issued: &Issued) {
    let serial = issued.serial();
    proxy
        .wait_for_service(NAME, "the new certificate", |service| {
            (serial_in_use(service) == Some(&serial)).then_some(())
        })
        .await;
}

/// systemd mounts the directory read-only, and where it refreshes credentials on reload
/// (RefreshOnReload=) it mounts another one in its place: no file event tells of that.
#[tokio::test]
async fn another_mount_in_place_of_the_directory_is_seen_on_reload() {
    drop(program("nsenter", "util-linux"));
    let handed = Handed::new().await;
    let (old, new) = (handed.pki.client(NAME), handed.pki.client(NAME));
    handed.leave(NAME, bundle(&old));
    let fresh = handed.pki.path("fresh");
    fs::create_dir(&fresh).unwrap();
    leave(&fresh, "ca", handed.pki.root.pem());
    leave(&fresh, NAME, bundle(&new));
    let at = handed.pki.path("mounted");
    fs::create_dir(&at).unwrap();
    let mount = |from: &Path| {
        let (from, at) = (from.display(), at.display());
        format!("mount --bind {from} {at} && mount -o remount,bind,ro {at}")
    };
    let service = handed.service(NAME);
    let script = format!("{} && exec \"$@\"", mount(&handed.directory));
    let mut command = command_under(&["unshare", "-r", "-m", "sh", "-c", &script, "sh"]);
    command.env(VARIABLE, &at);
    let config = Config::of([service.clone()]);
    let mut proxy = Proxy::launch(command, &handed.pki, &config);
    proxy.wait_until_ready().await;
    assert_eq!(visit(&service).await.serial, old.serial());

    let pid = proxy.pid().to_string();
    let enter = ["-t", &pid, "-U", "-m", "--preserve-credentials", "sh", "-c"];
    let mounted = program("nsenter", "util-linux")
        .args(enter)
        .arg(mount(&fresh))
        .output()
        .await
        .unwrap();
    assert!(mounted.status.success(), "{}", said(&mounted));
    let answer = proxy.reload().await;
    assert_eq!(answer.code, 200, "{answer:?}");
    // The answer comes when what was asked for is in force.
    let status = proxy.service(NAME).await;
    assert_eq!(serial_in_use(&status), Some(new.serial().as_str()));
    assert_eq!(visit(&service).await.serial, new.serial());
}

#[tokio::test]
async fn an_encrypted_credential_serves_once_systemd_creds_has_decrypted_it() {
    drop(program("systemd-creds", "systemd"));
    let handed = Handed::new().await;
    let issued = handed.pki.client(NAME);
    let plain = handed.pki.write("billing.pem", bundle(&issued));
    let encrypted = handed.pki.path("billing.cred");
    // The host's secret is made on a file system that goes with the namespace. What the service
    // manager does for LoadCredentialEncrypted= is `decrypt`.
    let script = format!(
        "mount -t tmpfs tmpfs /var/lib/systemd \
         && systemd-creds encrypt --with-key=host --name={NAME} {plain} {encrypted} \
         && systemd-creds decrypt --name={NAME} {encrypted} {directory}/{NAME} \
         && rm {plain} && exec \"$@\"",
        plain = plain.display(),
        encrypted = encrypted.display(),
        directory = handed.directory.display(),
    );
    let mut command = command_under(&["unshare", "-r", "-m", "sh", "-c", &script, "sh"]);
    command.env(VARIABLE, &handed.directory);
    let service = handed.service(NAME);
    let mut proxy = Proxy::launch(command, &handed.pki, &Config::of([service.clone()]));
    proxy.wait_until_ready().await;
    assert_eq!(visit(&service).await.serial, issued.serial());
    let secret = fs::read_to_string(&encrypted).unwrap();
    assert!(!secret.contains("PRIVATE KEY"), "it was encrypted");
}

#[tokio::test]
async fn names_are_taken_as_systemd_takes_them() {
    let pki = Pki::new();
    let directory = pki.path("credentials");
    fs::create_dir(&directory).unwrap();
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o700)).unwrap();
    let service = |name: &str| {
        Service::new("a", crate::support::net::address(), &pki).tls_text("credential", name)
    };
    let (longest, longer) = ("x".repeat(255), "x".repeat(256));
    let names = [
        "billing", "a b", "a.b_c-1", "...", "~", "a:b", "a\u{e9}", "a\tb", "..", &longest, &longer,
    ];
    for name in names {
        let theirs = program("systemd-creds", "systemd")
            .args(["cat", name])
            .env(VARIABLE, &directory)
            .output()
            .await
            .unwrap();
        // Neither is there a file of this name: only the words of the refusal tell.
        let theirs = !said(&theirs).contains("is not valid");
        let file = pki.write("config.toml", Config::of([service(name)]).render());
        let ours = clean_command()
            .args(["check", "-c", path_text(&file)])
            .env(VARIABLE, &directory)
            .output()
            .await
            .unwrap();
        let code = if theirs { 1 } else { 2 };
        assert_eq!(ours.status.code(), Some(code), "{name:?}: {}", said(&ours));
    }
}

// === check ===

/// `tlsward check` where /run is empty but for what `prepare` puts there.
async fn check(handed: &Handed, prepare: &str, arguments: &[&str]) -> Output {
    let script = format!("mount -t tmpfs tmpfs /run && {prepare} && exec \"$@\"");
    let file = handed.pki.path("config.toml");
    let mut command = command_under(&["unshare", "-r", "-m", "sh", "-c", &script, "sh"]);
    command
        .args(["check", "-c", path_text(&file)])
        .args(arguments);
    within("the check", command.output()).await.unwrap()
}

#[tokio::test]
async fn check_names_what_only_the_service_can_see_and_judges_the_rest() {
    let handed = Handed::new().await;
    let service = handed.service(NAME);
    handed
        .pki
        .write("config.toml", Config::of([service.clone()]).render());
    let output = check(&handed, "true", &[]).await;
    let text = said(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    for part in [
        "not to be seen from here: credential billing",
        "not checked for services.billing: credential billing,",
        "not checked for services.billing: credential ca,",
    ] {
        let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(flat.contains(part), "no {part:?} in:\n{text}");
    }
    let output = check(&handed, "true", &["--json"]).await;
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        report["services"][0]["unseen"],
        serde_json::json!(["credential billing", "credential ca"])
    );

    // What is wrong with the rest is still wrong.
    let missing = service.tls_text("ca", "no-such-file.crt");
    handed
        .pki
        .write("config.toml", Config::of([missing]).render());
    let output = check(&handed, "true", &[]).await;
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("trust_missing"), "{}", said(&output));
}

#[tokio::test]
async fn check_looks_at_the_credentials_of_the_running_service_where_it_may() {
    let handed = Handed::new().await;
    handed.leave(NAME, bundle(&handed.pki.client(NAME)));
    handed
        .pki
        .write("config.toml", Config::of([handed.service(NAME)]).render());
    let copy = format!(
        "mkdir -p /run/credentials && cp -r {} /run/credentials/tlsward.service",
        handed.directory.display()
    );
    let output = check(&handed, &copy, &[]).await;
    let text = said(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(
        text.contains("Test Root") && !text.contains("not to be seen"),
        "{text}"
    );
    // And then it is judged.
    let lacking = format!("{copy} && rm /run/credentials/tlsward.service/billing");
    let output = check(&handed, &lacking, &[]).await;
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let text = said(&output);
    assert!(
        text.contains("credential_missing") && text.contains("; it has ca"),
        "{text}"
    );
}
