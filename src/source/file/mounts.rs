//! Mounts and file systems on which a change cannot be noticed, so that the operator is told
//! before a rotation is missed.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use crate::mountinfo;

/// What is mounted, as of one look.
#[derive(Debug, Default)]
pub(super) struct Mounts {
    points: HashSet<PathBuf>,
    /// The name of the file system of a device, where it reports no events.
    silent: HashMap<u64, Option<&'static str>>,
}

impl Mounts {
    /// Looks up the mount points. Where they cannot be had (no /proc), there are none.
    pub(super) fn now() -> Self {
        let mounts = mountinfo::read().into_iter();
        let points = mounts.map(|mount| mount.point).collect();
        Self {
            points,
            silent: HashMap::new(),
        }
    }

    /// A note for a file that is a mount of its own.
    pub(super) fn note_on_file(&self, file: &Path) -> Option<String> {
        self.points.contains(file).then(|| {
            format!(
                "{} is a mount of its own (a Kubernetes subPath, or a bind mount of one file): a \
                 file that is put in its place is never seen here; mount its directory instead",
                file.display()
            )
        })
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

    #[test]
    fn a_file_that_is_a_mount_point_is_pointed_out() {
        let mounts = Mounts {
            points: HashSet::from(["/etc/certs/tls.crt".into()]),
            silent: HashMap::new(),
        };
        let note = mounts.note_on_file(Path::new("/etc/certs/tls.crt"));
        assert!(note.unwrap().contains("subPath"));
        assert_eq!(mounts.note_on_file(Path::new("/etc/certs/ca.crt")), None);
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
