//! What the container around the process decides: its memory, its CPUs, its mounts.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::net::Caller;
use crate::support::pki::{IdentityFiles, Pki};
use crate::support::proxy::{
    Config, LogLine, Proxy, Service, clean_command, command_under, series,
};
use crate::support::scene::{NAME, introduce};
use crate::support::upstream::Upstream;

const MIB: u64 = 1 << 20;

/// A cgroup as the process is made to see it: files that a test writes, where the kernel's would
/// be.
struct Cgroup {
    /// What begins the program within it, in a namespace of mounts: `/proc/self` is told by the
    /// process id, which exec keeps.
    script: String,
    directory: PathBuf,
}

impl Cgroup {
    /// In the way of a container with a namespace of its own, version 2.
    fn new(pki: &Pki) -> Self {
        let directory = pki.path("cgroup");
        std::fs::create_dir_all(&directory).unwrap();
        let mounts = format!(
            "30 1 0:26 / {} ro,nosuid - cgroup2 cgroup rw\n",
            directory.display()
        );
        let mountinfo = pki.write("proc.mountinfo", mounts);
        let membership = pki.write("proc.cgroup", "0::/\n");
        let script = format!(
            "mount --bind {} /proc/$$/mountinfo && mount --bind {} /proc/$$/cgroup && exec \"$@\"",
            mountinfo.display(),
            membership.display()
        );
        Self { script, directory }
    }

    /// As the kernel writes: the whole file or nothing of it is seen.
    fn write(&self, file: &str, text: &str) {
        let new = self.directory.join("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(&new, self.directory.join(file)).unwrap();
    }

    fn in_use(&self, mebibytes: u64) {
        self.write("memory.current", &format!("{}\n", mebibytes * MIB));
    }
}

/// One service and the program in `script`'s surroundings.
async fn within(script: &str, pki: &Pki) -> (Proxy, Service, Upstream) {
    let upstream = Upstream::start(pki).await;
    let files = pki.identity_files(NAME, &pki.client(NAME));
    let service = Service::new(NAME, upstream.address(), pki).identity(&files);
    let launcher = ["unshare", "-r", "-m", "sh", "-c", script, "sh"];
    let proxy = Proxy::start_under(&launcher, pki, &Config::of([service.clone()])).await;
    (proxy, service, upstream)
}

async fn memory_becomes(proxy: &Proxy, what: &str, is_it: impl Fn(&Value) -> bool) -> Value {
    proxy
        .wait_for_status(what, |status| {
            is_it(&status["memory"]).then(|| status["memory"].clone())
        })
        .await
}

#[tokio::test]
async fn before_memory_runs_out_new_callers_wait_and_open_connections_go_on() {
    let pki = Pki::new();
    let cgroup = Cgroup::new(&pki);
    cgroup.write("memory.max", &format!("{}\n", 1000 * MIB));
    cgroup.write("memory.high", "max\n");
    cgroup.write(
        "memory.stat",
        &format!("anon 0\ninactive_file {}\n", 20 * MIB),
    );
    cgroup.in_use(120);
    let (proxy, service, _upstream) = within(&cgroup.script, &pki).await;
    let line = proxy
        .wait_for_log("the limits", |line| {
            line.has("message", "limits of this process")
        })
        .await;
    assert_eq!(line.get("memory_limit_bytes"), Some(&(1000 * MIB).into()));
    let file = cgroup.directory.join("memory.max");
    assert_eq!(line.text("memory_limited_by"), file.to_str());
    let memory = memory_becomes(&proxy, "the first look", |memory| {
        memory["in_use_bytes"] == 100 * MIB
    })
    .await;
    assert_eq!(memory["limit_bytes"], 1000 * MIB);
    assert_eq!(memory["callers_wait"], false);
    let (mut open, _) = introduce(&service).await;

    // Without what the kernel would give up first it is below 90 % yet; then it is not.
    cgroup.in_use(920);
    memory_becomes(&proxy, "the second look", |memory| {
        memory["in_use_bytes"] == 900 * MIB
    })
    .await;
    let (mut other, _) = introduce(&service).await;
    cgroup.in_use(930);
    memory_becomes(&proxy, "callers to wait", |memory| {
        memory["callers_wait"] == true
    })
    .await;
    let mut waiting = Caller::connect(service.address()).await;
    for _ in 0..20 {
        open.echo(b"still here").await;
        other.echo(b"still here").await;
    }
    assert_eq!(proxy.counter(NAME, "open").await, 2);
    assert_eq!(proxy.get("/readyz").await.code, 200, "it serves, slowly");
    assert_eq!(proxy.metric("tlsward_memory_callers_wait", &[]).await, 1.0);

    // Below 90 % again is not enough.
    cgroup.in_use(890);
    memory_becomes(&proxy, "a look between the marks", |memory| {
        memory["in_use_bytes"] == 870 * MIB
    })
    .await;
    assert_eq!(proxy.status().await["memory"]["callers_wait"], true);
    cgroup.in_use(860);
    waiting.line().await;
    let served =
        |line: &LogLine| line.has("message", "there is memory again: new callers are served");
    proxy.wait_for_log("the end of it", served).await;
    assert_eq!(proxy.metric("tlsward_memory_callers_wait", &[]).await, 0.0);
    assert_eq!(proxy.metric("tlsward_memory_waits_total", &[]).await, 1.0);
    assert_eq!(
        proxy.metric("tlsward_memory_limit_bytes", &[]).await,
        (1000 * MIB) as f64
    );
    let all = proxy.log().all();
    let told = all
        .iter()
        .filter(|line| line.raw.contains("memory is nearly used up"));
    assert_eq!(told.count(), 1);
}

#[tokio::test]
async fn without_a_memory_limit_status_says_what_the_process_holds() {
    let pki = Pki::new();
    let cgroup = Cgroup::new(&pki);
    cgroup.write("memory.max", "max\n");
    let (proxy, ..) = within(&cgroup.script, &pki).await;
    let memory = memory_becomes(&proxy, "the first look", |memory| {
        memory["in_use_bytes"].as_u64() > Some(MIB)
    })
    .await;
    assert_eq!(memory["limit_bytes"], Value::Null);
    let text = proxy.get("/metrics").await.body;
    assert!(text.contains("tlsward_memory_bytes") && !text.contains("tlsward_memory_limit_bytes"));
}

/// The program where /sys/fs/cgroup is `tree` and the process is in the cgroup that `membership`
/// tells.
async fn worker_count(pki: &Pki, tree: &Path, membership: &str) -> usize {
    let membership = pki.write("proc.cgroup", membership);
    let script = format!(
        "mount --bind {} /sys/fs/cgroup && mount --bind {} /proc/$$/cgroup && exec \"$@\"",
        tree.display(),
        membership.display()
    );
    let (proxy, service, _upstream) = within(&script, pki).await;
    introduce(&service).await;
    let metrics = proxy.get("/metrics").await.body;
    series(&metrics, "tlsward_worker_connections", &[]).len()
}

#[tokio::test]
async fn a_cpu_quota_of_either_version_bounds_the_number_of_workers() {
    let pki = Pki::new();
    let tree = |name: &str, files: &[(&str, &str)]| {
        let tree = pki.path(name);
        for (file, text) in files {
            let file = tree.join(file);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, text).unwrap();
        }
        tree
    };
    // The quota of the pod around the container counts too. 1.9 CPUs are one worker.
    let v2 = tree(
        "v2",
        &[
            ("pod/own/cgroup.controllers", "cpu memory\n"),
            ("pod/cpu.max", "190000 100000\n"),
            ("pod/own/cpu.max", "max 100000\n"),
        ],
    );
    assert_eq!(worker_count(&pki, &v2, "0::/pod/own\n").await, 1);
    let v1 = tree(
        "v1",
        &[
            ("cpu/pod/own/cpu.cfs_quota_us", "-1\n"),
            ("cpu/pod/own/cpu.cfs_period_us", "100000\n"),
            ("cpu/pod/cpu.cfs_quota_us", "50000\n"),
            ("cpu/pod/cpu.cfs_period_us", "100000\n"),
        ],
    );
    assert_eq!(worker_count(&pki, &v1, "4:cpu:/pod/own\n0::/\n").await, 1);
    // Without one there is a worker for each CPU.
    let none = tree("none", &[("cgroup.controllers", "\n")]);
    let cpus = std::thread::available_parallelism().unwrap().get();
    assert_eq!(worker_count(&pki, &none, "0::/\n").await, cpus);
}

// === mounted volumes ===

/// A Kubernetes volume: the links to a version, and the directory with the version's files.
struct Volume {
    directory: PathBuf,
}

impl Volume {
    const FIRST: &str = "..2026_02_03_04_05_06.1234567";

    fn new(pki: &Pki, name: &str, files: &[(&str, &str)]) -> Self {
        let directory = pki.path(name);
        let volume = Self { directory };
        volume.swap(Self::FIRST, files);
        for (file, _) in files {
            let link = volume.directory.join(file);
            symlink(Path::new("..data").join(file), link).unwrap();
        }
        volume
    }

    /// As the kubelet does: a new directory, the link by rename, and the old directory goes.
    fn swap(&self, version: &str, files: &[(&str, &str)]) {
        let new = self.directory.join(version);
        std::fs::create_dir_all(&new).unwrap();
        for (file, text) in files {
            std::fs::write(new.join(file), text).unwrap();
        }
        let (aside, data) = (
            self.directory.join("..data_tmp"),
            self.directory.join("..data"),
        );
        let old = std::fs::read_link(&data);
        symlink(version, &aside).unwrap();
        std::fs::rename(&aside, &data).unwrap();
        if let Ok(old) = old {
            std::fs::remove_dir_all(self.directory.join(old)).unwrap();
        }
    }
}

#[tokio::test]
async fn what_is_mounted_by_sub_path_is_named_as_the_reason_why_nothing_changes() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let old = pki.client(NAME);
    let (chain, key) = (old.chain_pem(), old.key_pem());
    let secret = Volume::new(&pki, "secret", &[("tls.crt", &chain), ("tls.key", &key)]);
    // The container's side: a file for each mount.
    let files = pki.identity_files("mounted", &old);
    let service = Service::new(NAME, upstream.address(), &pki).identity(&files);
    let config = Config::of([service.clone()]);
    let text = config.render();
    let map = Volume::new(&pki, "map", &[("config.toml", &text)]);
    let mounts = [
        (secret.directory.join("tls.crt"), files.cert.clone()),
        (secret.directory.join("tls.key"), files.key.clone()),
        (map.directory.join("config.toml"), pki.path("config.toml")),
    ];
    let script: String = mounts
        .iter()
        .map(|(from, to)| format!("mount --bind {} {} && ", from.display(), to.display()))
        .collect();
    let script = format!("{script} exec \"$@\"");
    let launcher = ["unshare", "-r", "-m", "sh", "-c", &script, "sh"];
    let proxy = Proxy::start_under(&launcher, &pki, &config).await;

    let warns = |value: &Value, file: &Path, words: &str| {
        let all = value["warnings"].as_array().into_iter().flatten();
        let mut all = all.filter_map(Value::as_str);
        all.any(|it| it.starts_with(file.to_str().unwrap()) && it.contains(words))
    };
    let by_sub_path = "is mounted by subPath from a Kubernetes volume";
    let status = proxy
        .wait_for_status("the warnings", |status| {
            let service = &status["services"][0];
            let told = warns(service, &files.cert, by_sub_path)
                && warns(service, &files.key, by_sub_path)
                && warns(&status["config"], &mounts[2].1, by_sub_path);
            told.then(|| status.clone())
        })
        .await;
    assert!(!status.to_string().contains("newer version"), "{status:#}");
    for file in [&files.cert, &mounts[2].1] {
        let file = file.to_str().unwrap();
        let it = |line: &LogLine| {
            line.text("message")
                .is_some_and(|it| it.starts_with(file) && it.contains(by_sub_path))
        };
        proxy.wait_for_log("it in the log", it).await;
    }

    // A rotation that the kubelet carries out, and that never arrives here.
    let new = pki.client(NAME);
    let (chain, key) = (new.chain_pem(), new.key_pem());
    secret.swap(
        "..2026_02_04_04_05_06.7654321",
        &[("tls.crt", &chain), ("tls.key", &key)],
    );
    assert_eq!(proxy.reload().await.code, 200);
    proxy
        .wait_for_service(NAME, "the rotation to be missed", |service| {
            warns(service, &files.cert, "has a newer version").then_some(())
        })
        .await;
    let (_caller, seen) = introduce(&service).await;
    assert_eq!(
        seen.serial,
        old.serial(),
        "nothing changes: that is the point"
    );
}

#[tokio::test]
async fn a_key_in_a_volume_that_may_not_be_read_is_explained_with_owner_mode_and_cure() {
    use std::fs::Permissions;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let issued = pki.client(NAME);
    let (chain, key) = (issued.chain_pem(), issued.key_pem());
    let volume = Volume::new(&pki, "secret", &[("tls.crt", &chain), ("tls.key", &key)]);
    let files = IdentityFiles {
        cert: volume.directory.join("tls.crt"),
        key: volume.directory.join("tls.key"),
    };
    let service = Service::new(NAME, upstream.address(), &pki).identity(&files);
    // As root owns what the kubelet writes while the container runs as somebody else: here it is
    // the other way round, since only root can give files away, and root is stopped by modes only
    // without these capabilities (capabilities(7)). Whoever is not root shuts himself out.
    let is_root = rustix::process::geteuid().is_root();
    let mode = match is_root {
        true => {
            std::os::unix::fs::chown(&files.key, Some(1234), Some(1234)).unwrap();
            0o400
        }
        false => 0o000,
    };
    std::fs::set_permissions(&files.key, Permissions::from_mode(mode)).unwrap();
    let without = [
        "setpriv",
        "--bounding-set",
        "-dac_override,-dac_read_search",
    ];
    let command = match is_root {
        true => command_under(&without),
        false => clean_command(),
    };
    let mut proxy = Proxy::launch(command, &pki, &Config::of([service.clone()]));
    proxy.wait_until_alive().await;
    let problem = proxy
        .wait_for_service(NAME, "a service that waits", |service| {
            let problem = &service["problem"];
            (problem["reason"] == "unreadable").then(|| problem.clone())
        })
        .await;
    let detail = problem["detail"].as_str().unwrap();
    let owner = std::fs::metadata(&files.key).unwrap();
    for part in [
        format!("{} may not be read", files.key.display()),
        format!("mode {mode:04o}, owner {}:{}", owner.uid(), owner.gid()),
        format!(
            "runs as {}:{}",
            rustix::process::geteuid().as_raw(),
            rustix::process::getegid().as_raw()
        ),
        "fsGroup: ".to_owned(),
        "defaultMode: 0440".to_owned(),
    ] {
        assert!(detail.contains(&part), "no {part:?} in: {detail}");
    }
    // The cure, as fsGroup brings it about.
    if is_root {
        std::os::unix::fs::chown(&files.key, Some(1234), Some(0)).unwrap();
    }
    let cured = if is_root { 0o440 } else { 0o400 };
    std::fs::set_permissions(&files.key, Permissions::from_mode(cured)).unwrap();
    proxy.wait_until_ready().await;
    introduce(&service).await;
}
