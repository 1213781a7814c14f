//! Mounts and file systems on which a change cannot be noticed, so that the operator is told
//! before a rotation is missed.

use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use crate::mountinfo;

/// What is mounted, as of one look.
#[derive(Debug, Default)]
pub(super) struct Mounts {
    /// By mount point: what of the file system is mounted there.
    roots: HashMap<PathBuf, PathBuf>,
    /// The name of the file system of a device, where it reports no events.
    silent: HashMap<u64, Option<&'static str>>,
}

impl Mounts {
    /// Looks up the mount points. Where they cannot be had (no /proc), there are none.
    pub(super) fn now() -> Self {
        let mounts = mountinfo::read().into_iter();
        // Of those at one place the last hides the others.
        let roots = mounts.map(|mount| (mount.point, mount.root)).collect();
        Self {
            roots,
            silent: HashMap::new(),
        }
    }

    /// A note for a file or directory, without symbolic links in its path, that will never change:
    /// it is one version of a Kubernetes volume, or a file that is a mount of its own.
    pub(super) fn note_on(&self, path: &Path, is_file: bool) -> Option<String> {
        let (point, root) = path
            .ancestors()
            .find_map(|at| Some((at, self.roots.get(at)?)))?;
        // The kernel's word for what was removed since it was mounted.
        let replaced = root.as_os_str().as_bytes().ends_with(b"//deleted");
        let shown = path.display();
        if root.iter().any(|part| is_version(part.as_bytes())) {
            let newer = match replaced {
                true => "; the volume has a newer version by now, and this is an old one",
                false => "",
            };
            return Some(format!(
                "{shown} is mounted by subPath from a Kubernetes volume, and such a mount is never \
                 updated: mount the whole volume as a directory (a volumeMount without subPath), \
                 and name the file in it{newer}"
            ));
        }
        if !is_file || point != path {
            return None;
        }
        let newer = match replaced {
            true => "; another has taken its place already, and this is the old one",
            false => "",
        };
        Some(format!(
            "{shown} is a mount of its own (a Kubernetes subPath, or a bind mount of one file): a \
             file that is put in its place is never seen here; mount its directory instead{newer}"
        ))
    }

    /// A note for a directory, on the device `device`, whose file system reports no events.
    pub(super) fn note_on_directory(&mut self, dir: &Path, device: u64) -> Option<String> {
        let silent = self.silent.entry(device).or_insert_with(|| {
            let found = rustix::fs::statfs(dir).ok()?;
            silent(found.f_type.cast_unsigned() & 0xffff_ffff)
        });
        silent.map(|name| {
            format!(
                "{} is on {name}, which reports no changes made elsewhere: they are seen by the \
                 periodic check only",
                dir.display()
            )
        })
    }
}

/// Whether a directory of this name holds one version of a volume, as the kubelet writes them
/// (`k8s.io/kubernetes/pkg/volume/util/atomic_writer.go`): `..2026_02_03_04_05_06.123456789`.
fn is_version(name: &[u8]) -> bool {
    let Some(name) = name.strip_prefix(b"..") else {
        return false;
    };
    let shape = b"0000_00_00_00_00_00.";
    let like = |(letter, pattern): (&u8, &u8)| match pattern {
        b'0' => letter.is_ascii_digit(),
        other => letter == other,
    };
    name.len() > shape.len() && name.iter().zip(shape).all(like)
}

/// File systems whose files change without an inotify event on this machine, by their number in
/// `linux/magic.h` or, where it is not listed there, in statfs(2).
fn silent(kind: u64) -> Option<&'static str> {
    Some(match kind {
        0x6969 => "NFS",
        0x517b => "SMB",
        0xff53_4d42 => "CIFS",
        0xfe53_4d42 => "SMB2",
        0x6573_5546 => "FUSE",
        0x0102_1997 => "9P",
        0x00c3_6400 => "Ceph",
        0x5346_414f => "AFS",
        0x0bd0_0bd0 => "Lustre",
        0x4750_4653 => "GPFS",
        0x786f_4256 => "a VirtualBox shared folder",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mounted(root: &str, point: &str) -> Mounts {
        Mounts {
            roots: HashMap::from([("/".into(), "/".into()), (point.into(), root.into())]),
            silent: HashMap::new(),
        }
    }

    #[test]
    fn a_file_that_is_a_mount_point_is_pointed_out() {
        let mounts = mounted("/srv/tls.crt", "/etc/certs/tls.crt");
        let note = mounts.note_on(Path::new("/etc/certs/tls.crt"), true);
        assert!(note.unwrap().ends_with("mount its directory instead"));
        assert_eq!(mounts.note_on(Path::new("/etc/certs/ca.crt"), true), None);
        let mounts = mounted("/srv/tls.crt//deleted", "/etc/certs/tls.crt");
        let note = mounts.note_on(Path::new("/etc/certs/tls.crt"), true);
        assert!(note.unwrap().contains("another has taken its place"));
    }

    #[test]
    fn a_version_of_a_kubernetes_volume_is_called_that_whether_file_or_directory() {
        const VERSION: &str = "..2026_02_03_04_05_06.123456789";
        let volume = "/var/lib/kubelet/pods/4f/volumes/kubernetes.io~configmap/conf";
        for (root, point, path, is_file) in [
            // A Secret's volume is a file system of its own.
            (
                format!("/{VERSION}/tls.crt"),
                "/certs/a.crt",
                "/certs/a.crt",
                true,
            ),
            (
                format!("{volume}/{VERSION}/tls.crt"),
                "/certs/a.crt",
                "/certs/a.crt",
                true,
            ),
            (format!("/{VERSION}/sub"), "/certs", "/certs/tls.crt", true),
            (format!("/{VERSION}/sub"), "/certs", "/certs", false),
        ] {
            let note = mounted(&root, point).note_on(Path::new(path), is_file);
            let note = note.unwrap_or_else(|| panic!("{root}"));
            assert!(
                note.contains("by subPath from a Kubernetes volume"),
                "{note}"
            );
            assert!(!note.contains("newer"), "{note}");
            let mounts = mounted(&format!("{root}//deleted"), point);
            let note = mounts.note_on(Path::new(path), is_file).unwrap();
            assert!(note.contains("newer version"), "{note}");
        }
        // The whole volume, as it should be.
        for root in ["/", volume] {
            let mounts = mounted(root, "/certs");
            let file = format!("/certs/{VERSION}/tls.crt");
            assert_eq!(mounts.note_on(Path::new(&file), true), None);
            assert_eq!(mounts.note_on(Path::new("/certs"), false), None);
        }
    }

    #[test]
    fn network_file_systems_are_silent_and_local_ones_are_not() {
        for (kind, name) in [
            (0x6969, "NFS"),
            (0xff53_4d42, "CIFS"),
            (0x6573_5546, "FUSE"),
        ] {
            assert_eq!(silent(kind), Some(name));
        }
        for local in [
            0xef53,      /* ext4 */
            0x0102_1994, /* tmpfs */
            0x794c_7630, /* overlay */
        ] {
            assert_eq!(silent(local), None);
        }
    }

    #[test]
    fn a_directory_on_a_local_disk_gets_no_note() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Mounts::default().note_on_directory(dir.path(), 1), None);
    }
}
