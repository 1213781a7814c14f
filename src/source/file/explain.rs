//! Why a file could not be read, in the operator's words: the path, what exactly is missing or
//! who may not do what.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::trace::{End, Memo, Trace};
use crate::failure::{Explained, Reason};

/// What a file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Config,
    Identity,
    Trust,
}

/// The file, or what leads to it, is not there.
pub(super) fn missing(role: Role, detail: String) -> Explained {
    let reason = match role {
        Role::Config => Reason::BadConfig,
        Role::Identity => Reason::IdentityMissing,
        Role::Trust => Reason::TrustMissing,
    };
    Explained::new(reason, detail)
}

/// What is there is not a file of the kind that is needed.
pub(super) fn refused(role: Role, detail: String) -> Explained {
    let reason = match role {
        Role::Config => Reason::BadConfig,
        Role::Identity | Role::Trust => Reason::BadPem,
    };
    Explained::new(reason, detail)
}

/// Looking at, opening or reading `path` failed with `error`.
pub(super) fn unreadable(role: Role, path: &Path, error: &io::Error) -> Explained {
    use io::ErrorKind::{NotADirectory, NotFound, PermissionDenied};

    let looped = error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error());
    match error.kind() {
        NotFound | NotADirectory => missing(role, what_is_missing(path)),
        _ if looped => missing(role, what_is_missing(path)),
        PermissionDenied => Explained::new(Reason::Unreadable, who_may_not(path)),
        _ => Explained::new(Reason::Unreadable, format!("{}: {error}", path.display())),
    }
}

/// The place where the way to `path` breaks off.
fn what_is_missing(path: &Path) -> String {
    let shown = path.display();
    let trace = Trace::follow(path, &mut Memo::default());
    let why = match &trace.end {
        End::Missing(at) if at == path => match path.parent() {
            Some(parent) => format!(
                "{shown} does not exist (its directory {} does)",
                parent.display()
            ),
            None => format!("{shown} does not exist"),
        },
        End::Missing(at) => format!("{shown} does not exist: there is no {}", entry(at)),
        End::NotADirectory(at) => {
            format!("{shown} cannot exist: {} is not a directory", at.display())
        }
        End::Loop(at) => format!(
            "{shown} leads nowhere: the symbolic links at {} point in a circle",
            at.display()
        ),
        // It came or changed since the error.
        End::File(_) | End::Directory(..) | End::Unknown(..) => format!("{shown} does not exist"),
    };
    match trace.last_link {
        Some((link, target)) if matches!(trace.end, End::Missing(_)) => format!(
            "{why}; the symbolic link {} points to {}",
            link.display(),
            target.display()
        ),
        _ => why,
    }
}

/// `billing in /etc/certs`.
fn entry(path: &Path) -> String {
    match (path.file_name(), path.parent()) {
        (Some(name), Some(dir)) => format!("{} in {}", name.display(), dir.display()),
        _ => path.display().to_string(),
    }
}

/// Whose permission is lacking, and on what.
fn who_may_not(path: &Path) -> String {
    let uid = rustix::process::geteuid().as_raw();
    let gid = rustix::process::getegid().as_raw();
    // If the file itself can be looked at, it is the file that cannot be read; otherwise the
    // directory in which the way breaks off cannot be searched.
    let (at, metadata) = match path.metadata() {
        Ok(metadata) => (path.to_owned(), Some(metadata)),
        Err(_) => {
            let at = match Trace::follow(path, &mut Memo::default()).end {
                End::Unknown(at, _) => at.parent().unwrap_or(&at).to_owned(),
                _ => path.to_owned(),
            };
            let metadata = at.metadata().ok();
            (at, metadata)
        }
    };
    let mut why = denied(path, &at, metadata.as_ref().map(Owned::of), uid, gid);
    // The link that the kubelet swaps.
    let steps = Trace::follow(path, &mut Memo::default()).steps;
    if steps.iter().any(|step| step.name == "..data") {
        why.push_str(&in_kubernetes(gid));
    }
    why
}

/// What decides over access to a file (path_resolution(7)).
#[derive(Clone, Copy, Debug)]
struct Owned {
    mode: u32,
    uid: u32,
    gid: u32,
}

impl Owned {
    fn of(metadata: &Metadata) -> Self {
        Self {
            mode: metadata.mode() & 0o7777,
            uid: metadata.uid(),
            gid: metadata.gid(),
        }
    }
}

fn denied(path: &Path, at: &Path, owned: Option<Owned>, uid: u32, gid: u32) -> String {
    let what = if path == at {
        format!("{} may not be read", path.display())
    } else {
        format!(
            "{} cannot be reached: the directory {} may not be searched",
            path.display(),
            at.display()
        )
    };
    let owner = match owned {
        Some(Owned { mode, uid, gid }) => format!(" (mode {mode:04o}, owner {uid}:{gid})"),
        None => String::new(),
    };
    format!("{what}{owner} by tlsward, which runs as {uid}:{gid}")
}

/// With `fsGroup` the kubelet gives a volume's files to that group, of which every container of the
/// pod is then a member, and lets the group read them.
fn in_kubernetes(gid: u32) -> String {
    let group = match gid {
        // Not the group that owns everything.
        0 => "65532".to_owned(),
        gid => gid.to_string(),
    };
    format!(
        " (runAsUser and runAsGroup of the container); it is in a Kubernetes volume: set fsGroup: \
         {group} in the pod's securityContext, and defaultMode: 0440 at the volume"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_a_kubernetes_volume_the_cure_has_our_group_in_it() {
        let cure = in_kubernetes(1001);
        assert!(cure.contains("fsGroup: 1001 in the pod's securityContext"));
        assert!(cure.contains("defaultMode: 0440"));
        assert!(in_kubernetes(0).contains("fsGroup: 65532 "));
    }

    #[test]
    fn a_lack_of_permission_names_mode_owner_and_us() {
        let path = Path::new("/etc/certs/tls.key");
        let owned = Owned {
            mode: 0o600,
            uid: 0,
            gid: 4,
        };
        assert_eq!(
            denied(path, path, Some(owned), 1000, 1001),
            "/etc/certs/tls.key may not be read (mode 0600, owner 0:4) by tlsward, which runs as \
             1000:1001"
        );
        assert_eq!(
            denied(path, Path::new("/etc/certs"), Some(owned), 1000, 1001),
            "/etc/certs/tls.key cannot be reached: the directory /etc/certs may not be searched \
             (mode 0600, owner 0:4) by tlsward, which runs as 1000:1001"
        );
    }

    #[test]
    fn errors_map_to_reasons_by_what_the_operator_must_do() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tls.crt");
        for (error, role, reason) in [
            (
                io::ErrorKind::NotFound,
                Role::Identity,
                Reason::IdentityMissing,
            ),
            (
                io::ErrorKind::NotADirectory,
                Role::Trust,
                Reason::TrustMissing,
            ),
            (io::ErrorKind::NotFound, Role::Config, Reason::BadConfig),
            (
                io::ErrorKind::PermissionDenied,
                Role::Config,
                Reason::Unreadable,
            ),
            (
                io::ErrorKind::PermissionDenied,
                Role::Identity,
                Reason::Unreadable,
            ),
            (
                io::ErrorKind::StaleNetworkFileHandle,
                Role::Trust,
                Reason::Unreadable,
            ),
        ] {
            let explained = unreadable(role, &path, &error.into());
            assert_eq!(explained.reason, reason, "{error} for {role:?}");
            assert!(explained.detail.contains("tls.crt"), "{explained}");
        }
    }

    #[test]
    fn links_in_a_circle_are_called_that() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::os::unix::fs::symlink("a", &path).unwrap();
        let error = path.metadata().unwrap_err();
        let explained = unreadable(Role::Identity, &path, &error);
        assert_eq!(explained.reason, Reason::IdentityMissing);
        assert!(explained.detail.contains("in a circle"), "{explained}");
    }
}
