//! What the container around the process decides: its memory, its CPUs, its mounts.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::net::Caller;
use crate::support::pki::Pki;
use crate::support::proxy::{Config, LogLine, Proxy, Service, series};
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
