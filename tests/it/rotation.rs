//! Certificates, CAs and revocation lists replaced under running connections.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use rcgen::ExtendedKeyUsagePurpose;

use crate::support::load::rotation_loses_no_connection;
use crate::support::net::{Caller, Ending};
use crate::support::pki::{Ca, IdentityFiles, Issued, Pki, path_of};
use crate::support::proxy::{Config, Proxy, Service, path_text, serial_in_use};
use crate::support::scene::{NAME, Scene, visit};
use crate::support::upstream::{Behaviour, Upstream};

// === under load ===

/// How a program that issues certificates puts them in place.
#[derive(Clone, Copy, Debug)]
enum Style {
    /// A mounted Kubernetes Secret: `tls.crt -> ..data/tls.crt`, `..data -> ..N`, and one rename.
    DataSwap,
    /// Written aside, then renamed over, file by file.
    RenameOver,
    /// Truncated and written in place.
    InPlace,
    /// The whole directory removed and made anew.
    DeleteAndRecreate,
    /// The key renamed over, and the certificate two seconds later.
    KeyTwoSecondsFirst,
    /// certbot: `live/` holds links into `archive/`, unlinked and made anew one by one.
    LiveLinks,
}

impl Style {
    fn files(self, directory: &Path) -> IdentityFiles {
        let at = match self {
            Self::LiveLinks => directory.join("live/billing"),
            _ => directory.join("mounted"),
        };
        IdentityFiles {
            cert: at.join("tls.crt"),
            key: at.join("tls.key"),
        }
    }

    /// Puts generation `number` in place, the first (0) as well as every later one.
    async fn put(self, directory: &Path, number: usize, issued: &Issued) {
        let files = self.files(directory);
        let folder = path_of(&files.cert);
        let contents = [
            (&files.key, issued.key_pem()),
            (&files.cert, issued.chain_pem()),
        ];
        match self {
            Self::DataSwap => {
                let version = format!("..{number}");
                let data = folder.join("..data");
                fs::create_dir_all(folder.join(&version)).unwrap();
                for (path, text) in contents {
                    let name = path.file_name().unwrap();
                    fs::write(folder.join(&version).join(name), text).unwrap();
                    if number == 0 {
                        symlink(Path::new("..data").join(name), path).unwrap();
                    }
                }
                symlink(&version, folder.join("..data_tmp")).unwrap();
                fs::rename(folder.join("..data_tmp"), &data).unwrap();
                if let Some(before) = number.checked_sub(1) {
                    fs::remove_dir_all(folder.join(format!("..{before}"))).unwrap();
                }
            }
            Self::RenameOver | Self::KeyTwoSecondsFirst => {
                fs::create_dir_all(folder).unwrap();
                for (path, text) in contents {
                    rename_over(path, &text);
                    let is_key = path == &files.key;
                    if is_key && number > 0 && matches!(self, Self::KeyTwoSecondsFirst) {
                        // The time between the two files is what this style is about.
                        tokio::time::sleep(std::time::Duration::from_secs(2)).await;
                    }
                }
            }
            Self::InPlace => {
                fs::create_dir_all(folder).unwrap();
                for (path, text) in contents {
                    fs::write(path, text).unwrap();
                }
            }
            Self::DeleteAndRecreate => {
                if number > 0 {
                    fs::remove_dir_all(folder).unwrap();
                }
                fs::create_dir_all(folder).unwrap();
                for (path, text) in contents {
                    fs::write(path, text).unwrap();
                }
            }
            Self::LiveLinks => {
                let archive = directory.join("archive/billing");
                fs::create_dir_all(&archive).unwrap();
                fs::create_dir_all(folder).unwrap();
                for (path, text) in contents {
                    let name = format!("{number}-{}", path.file_name().unwrap().display());
                    fs::write(archive.join(&name), text).unwrap();
                    if number > 0 {
                        fs::remove_file(path).unwrap();
                    }
                    symlink(Path::new("../../archive/billing").join(&name), path).unwrap();
                }
            }
        }
    }
}

fn rename_over(path: &Path, text: &str) {
    let aside = path.with_extension("new");
    fs::write(&aside, text).unwrap();
    fs::rename(&aside, path).unwrap();
}

async fn rotate_under_load(style: Style, rotations: usize) {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let generations: Vec<_> = (0..=rotations).map(|_| pki.client(NAME)).collect();
    style.put(pki.directory(), 0, &generations[0]).await;
    let service =
        Service::new(NAME, upstream.address(), &pki).identity(&style.files(pki.directory()));
    let proxy = Proxy::start(&pki, &Config::of([service.clone()])).await;
    let put =
        async |number: usize, issued: &Issued| style.put(pki.directory(), number, issued).await;
    rotation_loses_no_connection(&proxy, &service, &generations, put).await;
}

/// Each is written as soon as a handshake has shown the one before, so this is as fast as
/// changes are noticed.
const ROTATIONS: usize = 200;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secrets_data_swap_loses_no_connection() {
    rotate_under_load(Style::DataSwap, ROTATIONS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn renaming_over_loses_no_connection() {
    rotate_under_load(Style::RenameOver, ROTATIONS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writing_in_place_loses_no_connection() {
    rotate_under_load(Style::InPlace, ROTATIONS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleting_and_recreating_the_directory_loses_no_connection() {
    rotate_under_load(Style::DeleteAndRecreate, ROTATIONS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certbots_live_links_lose_no_connection() {
    rotate_under_load(Style::LiveLinks, ROTATIONS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_two_seconds_ahead_of_its_certificate_loses_no_connection() {
    // Five only: each takes its two seconds of real time.
    rotate_under_load(Style::KeyTwoSecondsFirst, 5).await;
}

// === bad material ===

/// Waits until status names `reason` for what was found last in place of the identity.
async fn identity_refused(scene: &Scene, reason: &str) -> serde_json::Value {
    scene
        .proxy
        .wait_for_service(NAME, format!("identity refused: {reason}"), |service| {
            let refused = &service["identity"]["refused"];
            (refused["reason"] == reason).then(|| refused.clone())
        })
        .await
}

#[tokio::test]
async fn a_broken_certificate_changes_nothing_but_status_metric_and_log() {
    let scene = Scene::new(Behaviour::Identify).await;
    let good = scene.client.serial();
    let (mut old, _) = scene.introduce().await;
    let usable = scene.pki.client(NAME);
    let half = usable.chain_pem();
    let half = half[..half.len() / 2].to_owned();
    let server_only = [ExtendedKeyUsagePurpose::ServerAuth];
    let issue =
        |reason: &'static str, issued: Issued| (reason, issued.chain_pem(), issued.key_pem());
    let client = || scene.pki.root.client(NAME);
    let cases = [
        (
            "bad_pem",
            "this is no certificate\n".to_owned(),
            usable.key_pem(),
        ),
        ("bad_pem", half, usable.key_pem()),
        ("bad_pem", usable.chain_pem(), "this is no key\n".to_owned()),
        issue("expired", client().expired().issue()),
        issue("not_yet_valid", client().not_yet_valid().issue()),
        issue("wrong_usage", client().usage(&server_only).issue()),
        ("bad_key", usable.chain_pem(), encrypted(&usable)),
    ];
    for (reason, cert, key) in cases {
        rename_over(&scene.files.key, &key);
        rename_over(&scene.files.cert, &cert);
        let refused = identity_refused(&scene, reason).await;
        let hint = refused["hint"].as_str().expect("a hint");
        let line = scene
            .proxy
            .wait_for_log(format!("a complaint of {reason}"), |line| {
                line.has("reason", reason) && !line.has("level", "INFO")
            })
            .await;
        assert_eq!(line.text("hint"), Some(hint), "{line:?}");
        let labels = [("source", "identity"), ("result", reason)];
        assert!(
            scene.proxy.metric("tlsward_reloads_total", &labels).await >= 1.0,
            "{reason}"
        );
        assert_eq!(
            serial_in_use(&scene.proxy.service(NAME).await),
            Some(&*good),
            "{reason}"
        );
        assert_eq!(visit(&scene.service).await.serial, good, "{reason}");
        assert_eq!(scene.proxy.get("/readyz").await.code, 200, "{reason}");
    }
    old.echo(b"and the old connection never noticed").await;

    rename_over(&scene.files.key, &usable.key_pem());
    rename_over(&scene.files.cert, &usable.chain_pem());
    in_use(&scene, &usable).await;
    assert!(scene.proxy.service(NAME).await["identity"]["refused"].is_null());
    assert_eq!(visit(&scene.service).await.serial, usable.serial());
}

/// The key behind a passphrase; the openssl program encrypts it.
fn encrypted(issued: &Issued) -> String {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("key.pem");
    fs::write(&file, issued.key_pem()).unwrap();
    let output = std::process::Command::new("openssl")
        .args(["pkey", "-aes256", "-passout", "pass:secret", "-in"])
        .arg(&file)
        .output()
        .expect("openssl is needed: apt-get install openssl");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

async fn in_use(scene: &Scene, issued: &Issued) {
    let serial = issued.serial();
    scene
        .proxy
        .wait_for_service(NAME, "the new certificate in use", |service| {
            (serial_in_use(service) == Some(&*serial)).then_some(())
        })
        .await;
}

#[tokio::test]
async fn a_key_that_does_not_fit_is_a_rotation_in_progress_and_after_10_s_an_error() {
    let scene = Scene::new(Behaviour::Identify).await;
    rename_over(&scene.files.key, &scene.pki.client(NAME).key_pem());
    identity_refused(&scene, "rotation_in_progress").await;
    assert_eq!(visit(&scene.service).await.serial, scene.client.serial());
    let refused = identity_refused(&scene, "key_mismatch").await;
    assert!(
        refused["hint"]
            .as_str()
            .is_some_and(|hint| hint.contains("fit"))
    );
    assert_eq!(visit(&scene.service).await.serial, scene.client.serial());
}

#[tokio::test]
async fn equal_bytes_written_anew_are_not_a_new_generation() {
    let scene = Scene::new(Behaviour::Identify).await;
    visit(&scene.service).await;
    rename_over(&scene.files.key, &scene.client.key_pem());
    rename_over(&scene.files.cert, &scene.client.chain_pem());
    assert_eq!(scene.proxy.reload().await.code, 200);
    let identity = scene.proxy.service(NAME).await["identity"].clone();
    assert_eq!(identity["generation"], 1, "{identity:#}");
    assert!(visit(&scene.service).await.resumed, "the sessions are kept");
}

#[tokio::test]
async fn a_new_certificate_is_never_used_with_a_session_of_the_old_one() {
    let scene = Scene::new(Behaviour::Identify).await;
    visit(&scene.service).await;
    assert!(visit(&scene.service).await.resumed);
    let new = scene.pki.client(NAME);
    rename_over(&scene.files.key, &new.key_pem());
    rename_over(&scene.files.cert, &new.chain_pem());
    in_use(&scene, &new).await;
    let seen = visit(&scene.service).await;
    assert_eq!((seen.serial, seen.resumed), (new.serial(), false));
}

// === files that are not there ===

#[tokio::test]
async fn a_service_without_its_files_refuses_callers_and_comes_alive_when_they_appear() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let issued = pki.client("late");
    let missing = IdentityFiles {
        cert: pki.path("late/tls.crt"),
        key: pki.path("late/tls.key"),
    };
    let present = pki.identity_files("early", &pki.client("early"));
    let [late, early] = [("late", &missing), ("early", &present)]
        .map(|(name, files)| Service::new(name, upstream.address(), &pki).identity(files));
    let config = Config::of([late.clone(), early.clone()]);
    let proxy = Proxy::start_degraded(&pki, &config).await;
    let problem = proxy
        .wait_for_service("late", "a waiting service", |service| {
            (service["state"] == "waiting").then(|| service["problem"].clone())
        })
        .await;
    assert_eq!(problem["reason"], "identity_missing", "{problem}");
    assert_eq!(proxy.get("/readyz").await.code, 503);
    assert_refuses(&late).await;
    proxy
        .wait_for_service("early", "the other service", |service| {
            (service["state"] == "ready").then_some(())
        })
        .await;
    assert_eq!(visit(&early).await.common_name, "early");

    pki.identity_files("late", &issued);
    proxy
        .wait_for_service("late", "the service alive", |service| {
            (service["state"] == "ready").then_some(())
        })
        .await;
    assert_eq!(visit(&late).await.serial, issued.serial());
    assert_eq!(proxy.get("/readyz").await.code, 200);
}

/// The connection is refused or reset, and no byte comes.
async fn assert_refuses(service: &Service) {
    use std::io::ErrorKind::{ConnectionRefused, ConnectionReset};
    match Caller::try_connect(service.address()).await {
        Err(error) => assert!(
            matches!(error.kind(), ConnectionRefused | ConnectionReset),
            "{error}"
        ),
        Ok(mut caller) => assert_eq!(caller.ending().await, Ending::Reset),
    }
}

#[tokio::test]
async fn removed_files_leave_the_last_good_identity_in_use() {
    let scene = Scene::new(Behaviour::Identify).await;
    fs::remove_dir_all(path_of(&scene.files.cert)).unwrap();
    identity_refused(&scene, "identity_missing").await;
    assert_eq!(visit(&scene.service).await.serial, scene.client.serial());
    let new = scene.pki.client(NAME);
    scene.pki.identity_files(NAME, &new);
    in_use(&scene, &new).await;
    assert_eq!(visit(&scene.service).await.serial, new.serial());
}

// === trust ===

#[tokio::test]
async fn a_new_ca_bundle_is_in_force_for_the_next_connection_and_old_ones_go_on() {
    let scene = Scene::new(Behaviour::Identify).await;
    let (mut old, _) = scene.introduce().await;
    let next = Ca::root("Next Root");
    let server = next.server().issue();
    scene.upstream.present(&server);
    scene.call_is_refused().await;
    let ca = scene.pki.path("ca.crt");
    rename_over(&ca, &(scene.pki.root.pem() + &next.pem()));
    trust_generation(&scene, 2).await;
    visit(&scene.service).await;
    old.echo(b"as before").await;
}

async fn trust_generation(scene: &Scene, generation: u64) {
    scene
        .proxy
        .wait_for_service(NAME, "a new generation of trust", |service| {
            (service["trust"]["generation"].as_u64()? >= generation).then_some(())
        })
        .await;
}

#[tokio::test]
async fn a_ca_that_is_taken_out_cannot_be_resumed_either() {
    let scene = Scene::new(Behaviour::Identify).await;
    visit(&scene.service).await;
    assert!(
        visit(&scene.service).await.resumed,
        "a session to tempt with"
    );
    rename_over(&scene.pki.path("ca.crt"), &Ca::root("Next Root").pem());
    trust_generation(&scene, 2).await;
    scene.call_is_refused().await;
    scene
        .proxy
        .expect_failure(NAME, ["handshake", "upstream", "untrusted_issuer"], "ca")
        .await;
}

#[tokio::test]
async fn a_ca_bundle_without_an_anchor_leaves_the_last_good_one_in_force() {
    let scene = Scene::new(Behaviour::Identify).await;
    rename_over(&scene.pki.path("ca.crt"), &scene.client.leaf_pem());
    scene
        .proxy
        .wait_for_service(NAME, "the refusal of the bundle", |service| {
            (service["trust"]["refused"]["reason"] == "no_trust_anchor").then_some(())
        })
        .await;
    visit(&scene.service).await;
}

#[tokio::test]
async fn a_certificate_on_a_new_revocation_list_is_refused_at_the_next_connection() {
    let pki = Pki::new();
    let server = pki.server();
    let crl = pki.write("ca.crl", pki.root.crl(&[]));
    let scene = Scene::presenting(
        pki,
        &server,
        |options| options,
        |service| service.tls_text("crl", path_text(&crl)),
    )
    .await;
    visit(&scene.service).await;
    rename_over(&crl, &scene.pki.root.crl(&[&server]));
    trust_generation(&scene, 2).await;
    scene.call_is_refused().await;
    scene
        .proxy
        .expect_failure(NAME, ["handshake", "upstream", "revoked"], "revoked")
        .await;
}

// === what asks for it ===

#[tokio::test]
async fn sighup_reads_certificates_again() {
    let scene = Scene::new(Behaviour::Identify).await;
    scene.proxy.signal(rustix::process::Signal::HUP);
    crate::support::until("a read that was requested", async || {
        let labels = [("source", "identity"), ("trigger", "request")];
        (scene.proxy.metric("tlsward_reloads_total", &labels).await >= 1.0).then_some(())
    })
    .await;
    visit(&scene.service).await;
}

#[tokio::test]
async fn post_reload_answers_when_the_new_certificate_is_in_use() {
    let scene = Scene::new(Behaviour::Identify).await;
    let new = scene.pki.client(NAME);
    rename_over(&scene.files.key, &new.key_pem());
    rename_over(&scene.files.cert, &new.chain_pem());
    assert_eq!(scene.proxy.reload().await.code, 200);
    assert_eq!(visit(&scene.service).await.serial, new.serial());
}

#[tokio::test]
async fn on_rotation_drain_ends_open_connections_and_says_why() {
    let scene = Scene::shaped(Behaviour::Identify, |service| {
        service
            .text("on_rotation", "drain")
            .text("drain_window", "200ms")
    })
    .await;
    let (mut old, _) = scene.introduce().await;
    let new = scene.pki.client(NAME);
    rename_over(&scene.files.key, &new.key_pem());
    rename_over(&scene.files.cert, &new.chain_pem());
    assert_eq!(old.ending().await, Ending::Reset);
    scene
        .proxy
        .expect_failure(NAME, ["relay", "local", "rotated"], "on_rotation")
        .await;
    assert_eq!(visit(&scene.service).await.serial, new.serial());
}
