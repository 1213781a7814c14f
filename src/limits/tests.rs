use super::*;

const MIB: u64 = 1 << 20;

/// A hierarchy in a directory of its own: files by path.
struct Tree(tempfile::TempDir);

impl Tree {
    fn of(files: &[(&str, &str)]) -> Self {
        let tree = Self(tempfile::tempdir().unwrap());
        for (path, text) in files {
            let path = tree.at(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        tree
    }

    fn at(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    /// A mount at `point` of the part `root` of a file system.
    fn mount(&self, root: &str, point: &str, kind: &str, options: &str) -> Mount {
        Mount {
            root: root.into(),
            point: self.at(point),
            kind: kind.into(),
            options: options.into(),
        }
    }

    fn v2(&self, root: &str) -> [Mount; 2] {
        [
            self.mount("/", "", "tmpfs", "rw"),
            self.mount(root, "cgroup", "cgroup2", "rw,nsdelegate"),
        ]
    }
}

#[test]
fn in_a_container_the_limit_is_that_of_the_root_that_it_sees() {
    let tree = Tree::of(&[
        ("cgroup/memory.max", "67108864\n"),
        ("cgroup/memory.high", "max\n"),
        ("cgroup/memory.current", "20971520\n"),
        (
            "cgroup/memory.stat",
            "anon 8388608\nfile 12582912\ninactive_file 4194304\n",
        ),
    ]);
    let cgroup = Cgroup::find("0::/\n", &tree.v2("/")).unwrap();
    let limit = cgroup.limit().unwrap();
    assert_eq!(limit.bytes, 64 * MIB);
    assert_eq!(limit.file, tree.at("cgroup/memory.max"));
    let usage = cgroup.usage().unwrap();
    assert_eq!(usage.working_set, 16 * MIB);
    // What this very process holds is its own.
    assert_eq!(usage.others, (8 * MIB).saturating_sub(own_anonymous()));
}

#[test]
fn of_all_limits_around_the_process_the_smallest_holds() {
    let tree = Tree::of(&[
        ("cgroup/kube/memory.max", "max\n"),
        ("cgroup/kube/pod/memory.max", "52428800\n"),
        ("cgroup/kube/pod/memory.high", "max\n"),
        ("cgroup/kube/pod/own/memory.max", "67108864\n"),
        ("cgroup/kube/pod/own/memory.high", "62914560\n"),
        ("cgroup/kube/other/memory.max", "1024\n"),
    ]);
    let cgroup = Cgroup::find("0::/kube/pod/own\n", &tree.v2("/")).unwrap();
    let limit = cgroup.limit().unwrap();
    assert_eq!(limit.file, tree.at("cgroup/kube/pod/memory.max"));
    assert_eq!(limit.bytes, 50 * MIB);
    std::fs::write(tree.at("cgroup/kube/pod/memory.max"), "max\n").unwrap();
    let limit = cgroup.limit().unwrap();
    assert_eq!(limit.file, tree.at("cgroup/kube/pod/own/memory.high"));
}

#[test]
fn a_limit_is_read_anew_each_time_and_none_is_none() {
    let tree = Tree::of(&[("cgroup/memory.max", "max\n")]);
    let cgroup = Cgroup::find("0::/\n", &tree.v2("/")).unwrap();
    assert_eq!(cgroup.limit(), None);
    assert_eq!(cgroup.usage(), None);
    std::fs::write(tree.at("cgroup/memory.max"), "4096\n").unwrap();
    assert_eq!(cgroup.limit().unwrap().bytes, 4096);
}

#[test]
fn version_1_is_read_where_it_has_the_memory_controller() {
    let tree = Tree::of(&[
        ("memory/docker/own/memory.limit_in_bytes", "67108864\n"),
        (
            "memory/docker/memory.limit_in_bytes",
            "9223372036854771712\n",
        ),
        ("memory/memory.limit_in_bytes", "9223372036854771712\n"),
        ("memory/docker/own/memory.usage_in_bytes", "20971520\n"),
        (
            "memory/docker/own/memory.stat",
            "inactive_file 1\nrss 1\ntotal_rss 0\ntotal_inactive_file 4194304\n",
        ),
        ("unified/memory.max", "1\n"),
    ]);
    let mounts = [
        tree.mount("/", "unified", "cgroup2", "rw"),
        tree.mount("/", "cpu", "cgroup", "rw,cpu,cpuacct"),
        tree.mount("/", "memory", "cgroup", "rw,memory"),
    ];
    let cgroups = "3:cpu,cpuacct:/docker/own\n2:memory:/docker/own\n0::/\n";
    let cgroup = Cgroup::find(cgroups, &mounts).unwrap();
    assert_eq!(cgroup.limit().unwrap().bytes, 64 * MIB);
    let usage = cgroup.usage().unwrap();
    assert_eq!((usage.working_set, usage.others), (16 * MIB, 0));
}

#[test]
fn a_path_of_the_host_counts_within_the_part_that_is_mounted() {
    let tree = Tree::of(&[
        ("cgroup/memory.max", "4096\n"),
        ("cgroup/inner/memory.max", "max\n"),
    ]);
    // The container's own part at the usual place, or a directory within it.
    for cgroups in ["0::/docker/abc\n", "0::/docker/abc/inner\n"] {
        let cgroup = Cgroup::find(cgroups, &tree.v2("/docker/abc")).unwrap();
        assert_eq!(cgroup.limit().unwrap().bytes, 4096, "{cgroups}");
    }
}

#[test]
fn where_path_and_mount_do_not_fit_together_what_is_mounted_counts() {
    let tree = Tree::of(&[("cgroup/memory.max", "4096\n")]);
    for (cgroups, root) in [
        ("0::/../../elsewhere\n", "/"),
        ("0::/docker/abc\n", "/"),
        ("0::/docker/abc\n", "/docker/xyz"),
        ("0::/\n", "/../.."),
    ] {
        let cgroup = Cgroup::find(cgroups, &tree.v2(root)).unwrap();
        assert_eq!(cgroup.limit().unwrap().bytes, 4096, "{cgroups} {root}");
    }
}

#[test]
fn without_a_hierarchy_there_is_no_limit() {
    let tree = Tree::of(&[("cgroup/memory.max", "4096\n")]);
    assert_eq!(Cgroup::find("", &tree.v2("/")), None);
    assert_eq!(Cgroup::find("0::/\n", &[]), None);
    assert_eq!(Cgroup::find("junk\n::\n7\n", &tree.v2("/")), None);
    // Version 1 without a mount of the memory controller.
    assert_eq!(Cgroup::find("2:memory:/\n", &tree.v2("/")), None);
}

#[test]
fn this_process_holds_memory() {
    let held = unlimited().in_use_bytes;
    assert!(held > MIB);
    assert!((1..=held).contains(&own_anonymous()));
}

fn all_ours(working_set: u64) -> Usage {
    Usage {
        working_set,
        others: 0,
    }
}

#[test]
fn callers_wait_from_above_90_per_cent_until_below_85_and_it_is_told_once() {
    let mut pressure = Pressure::default();
    let mut looks = Vec::new();
    for used in [100, 900, 901, 950, 890, 851, 850, 890, 901, 0] {
        let verdict = pressure.judge(1_000, all_ours(used), 5);
        looks.push((used, verdict.hold, verdict.turned));
    }
    assert_eq!(
        looks,
        [
            (100, false, None),
            (900, false, None),
            (901, true, Some(true)),
            (950, true, None),
            (890, true, None),
            (851, true, None),
            (850, false, Some(false)),
            (890, false, None),
            (901, true, Some(true)),
            (0, false, Some(false)),
        ]
    );
}

#[test]
fn without_open_connections_nobody_waits_since_that_would_free_nothing() {
    let mut pressure = Pressure::default();
    let verdict = pressure.judge(1_000, all_ours(990), 0);
    assert_eq!((verdict.hold, verdict.turned), (false, Some(true)));
    let verdict = pressure.judge(1_000, all_ours(990), 1);
    assert_eq!((verdict.hold, verdict.turned), (true, None));
    let verdict = pressure.judge(1_000, all_ours(990), 0);
    assert_eq!((verdict.hold, verdict.turned), (false, None));
}

#[test]
fn where_others_fill_the_cgroup_nobody_waits() {
    let mut pressure = Pressure::default();
    let usage = |others| Usage {
        working_set: 990,
        others,
    };
    assert!(!pressure.judge(1_000, usage(496), 5).hold);
    assert!(pressure.judge(1_000, usage(495), 5).hold);
    let verdict = pressure.judge(1_000, usage(700), 5);
    assert_eq!((verdict.hold, verdict.turned), (false, Some(false)));
}

#[test]
fn the_largest_numbers_are_no_overflow() {
    let mut pressure = Pressure::default();
    assert!(pressure.judge(1, all_ours(u64::MAX), 1).hold);
    assert!(!Pressure::default().judge(u64::MAX, all_ours(1), 1).hold);
}
