//! From a path to the directories that must stay readable, so that the file can be read now and
//! after it was replaced.
//!
//! Landlock holds to directories, not to their names. A directory that is made anew is another one,
//! so the one above is what counts, as long as that is no directory of the whole system.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// As the kernel counts (`MAXSYMLINKS`, path_resolution(7)).
const MAX_LINKS: usize = 40;

/// Directories of which a part is for everybody and another holds keys.
const MIXED: [&str; 2] = ["/etc/pki", "/etc/ssl"];

/// Below these stand directories that belong to somebody as a whole: a user, a package, a service.
const BROAD: [&str; 4] = ["/home", "/run/user", "/usr", "/var"];

/// A directory that other programs' files lie in too: the root, its entries, those below
/// [`BROAD`], and [`MIXED`].
pub(super) fn is_broad(path: &Path) -> bool {
    let is_in = |list: &[&str], path: &Path| list.iter().any(|it| path == Path::new(it));
    is_in(&MIXED, path)
        || path
            .parent()
            .is_none_or(|parent| parent == Path::new("/") || is_in(&BROAD, parent))
}

/// The directories (or, directly below the root, the file itself) that must be readable for `path`,
/// a file or a directory, whatever links are on its way.
///
/// # Errors
/// The existing directory nearest to a path that does not exist, where that is a broad one.
pub(super) fn roots(path: &Path) -> Result<BTreeSet<PathBuf>, PathBuf> {
    let mut roots = BTreeSet::new();
    let mut at = path.to_owned();
    for _ in 0..MAX_LINKS {
        let Some(parent) = at.parent() else {
            break;
        };
        let Ok(directory) = parent.canonicalize() else {
            // Not there, or not for us to see: what is above can be seen.
            let nearest = resolve(parent);
            if is_broad(&nearest) {
                return Err(nearest);
            }
            roots.insert(nearest);
            return Ok(without_lower(roots));
        };
        let here = match at.file_name() {
            Some(name) => directory.join(name),
            None => at.canonicalize().unwrap_or_else(|_| at.clone()),
        };
        if let Ok(target) = here.read_link() {
            add_directory(&mut roots, &directory, &here);
            at = directory.join(target);
            continue;
        }
        if here.is_dir() {
            add_directory(&mut roots, &here, &here);
        } else {
            add_directory(&mut roots, &directory, &here);
        }
        break;
    }
    Ok(without_lower(roots))
}

/// The directory, or the one above it: never the root, below which `entry` alone counts.
fn add_directory(roots: &mut BTreeSet<PathBuf>, directory: &Path, entry: &Path) {
    if directory == Path::new("/") {
        if entry != directory {
            roots.insert(entry.to_owned());
        }
        return;
    }
    let above = directory.parent().filter(|above| !is_broad(above));
    roots.insert(above.unwrap_or(directory).to_owned());
}

/// Without what lies below another one.
pub(super) fn without_lower(roots: BTreeSet<PathBuf>) -> BTreeSet<PathBuf> {
    let is_lower = |path: &Path| path.ancestors().skip(1).any(|above| roots.contains(above));
    roots
        .iter()
        .filter(|path| !is_lower(path))
        .cloned()
        .collect()
}

/// Where a path leads, or the nearest directory that exists on its way there.
pub(super) fn resolve(path: &Path) -> PathBuf {
    let mut at = path.to_owned();
    for _ in 0..MAX_LINKS {
        if let Ok(real) = at.canonicalize() {
            return real;
        }
        // A link to nothing, or nothing.
        let target = at.read_link().ok();
        at = match (target, at.parent()) {
            (Some(target), Some(parent)) => parent.join(target),
            (None, Some(parent)) => parent.to_owned(),
            (_, None) => return at,
        };
    }
    at
}

/// Files and directories by device and inode: what a directory is, by whatever name.
#[derive(Debug, Default)]
pub(super) struct Identities(BTreeSet<(u64, u64)>);

impl Identities {
    pub(super) fn add(&mut self, path: &Path) -> io::Result<()> {
        let metadata = path.metadata()?;
        self.0.insert((metadata.dev(), metadata.ino()));
        Ok(())
    }

    /// Whether `real`, on which no link is, or a directory above it, is among them: as Landlock
    /// decides. True where that cannot be seen.
    pub(super) fn holds(&self, real: &Path) -> bool {
        real.ancestors().any(|path| match path.metadata() {
            Ok(metadata) => self.0.contains(&(metadata.dev(), metadata.ino())),
            Err(_) => true,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn base() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap();
        (dir, path)
    }

    /// Below `base`, in order.
    fn below(base: &Path, path: &Path) -> Vec<String> {
        let roots = roots(&base.join(path)).unwrap();
        let roots = roots.iter().map(|root| root.strip_prefix(base).unwrap());
        roots.map(|root| root.display().to_string()).collect()
    }

    fn file(base: &Path, path: &str) {
        let path = base.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "x").unwrap();
    }

    #[test]
    fn the_directory_above_counts_so_that_one_made_anew_is_readable() {
        let (_guard, base) = base();
        file(&base, "a/certs/tls.crt");
        assert_eq!(below(&base, Path::new("a/certs/tls.crt")), ["a"]);
        assert_eq!(
            below(&base, Path::new("a/certs")),
            ["a"],
            "a directory of CAs"
        );
    }

    #[test]
    fn a_directory_of_the_whole_system_never_counts_for_what_lies_deeper() {
        for broad in [
            "/",
            "/etc",
            "/run",
            "/tmp",
            "/root",
            "/var/lib",
            "/home/alice",
            "/usr/share",
            "/etc/ssl",
        ] {
            assert!(is_broad(Path::new(broad)), "{broad}");
        }
        for own in [
            "/etc/tlsward",
            "/run/tlsward",
            "/var/lib/certs",
            "/home/alice/certs",
        ] {
            assert!(!is_broad(Path::new(own)), "{own}");
        }
        // /tmp is above.
        let (_guard, base) = base();
        file(&base, "tls.crt");
        assert_eq!(roots(&base.join("tls.crt")).unwrap(), [base.clone()].into());
    }

    #[test]
    fn each_link_on_the_way_brings_the_directory_that_it_leads_to() {
        let (_guard, base) = base();
        file(&base, "le/archive/billing/cert1.pem");
        fs::create_dir_all(base.join("le/live/billing")).unwrap();
        let link = base.join("le/live/billing/cert.pem");
        symlink("../../archive/billing/cert1.pem", link).unwrap();
        let expected = ["le/archive", "le/live"];
        assert_eq!(
            below(&base, Path::new("le/live/billing/cert.pem")),
            expected
        );

        file(&base, "secret/..2024/tls.crt");
        symlink("..2024", base.join("secret/..data")).unwrap();
        symlink("..data/tls.crt", base.join("secret/tls.crt")).unwrap();
        assert_eq!(below(&base, Path::new("secret/tls.crt")), [""]);

        file(&base, "releases/x/v1/tls.crt");
        fs::create_dir_all(base.join("etc/x")).unwrap();
        symlink(base.join("releases/x/v1"), base.join("etc/x/current")).unwrap();
        let expected = ["releases/x"];
        assert_eq!(below(&base, Path::new("etc/x/current/tls.crt")), expected);
    }

    #[test]
    fn what_is_missing_is_looked_for_below_the_nearest_directory_that_is_there() {
        let (_guard, base) = base();
        fs::create_dir_all(base.join("a/b")).unwrap();
        assert_eq!(below(&base, Path::new("a/b/c/d/tls.crt")), ["a/b"]);
        let missing = Path::new("/etc/no-such-directory/tls.crt");
        assert_eq!(roots(missing), Err("/etc".into()));
        symlink("gone/tls.crt", base.join("a/tls.crt")).unwrap();
        assert_eq!(
            below(&base, Path::new("a/tls.crt")),
            [""],
            "the one above a"
        );
    }

    #[test]
    fn a_directory_made_anew_is_another_one_unless_the_one_above_is_held() {
        let (_guard, base) = base();
        file(&base, "a/b/tls.crt");
        let (mut inner, mut outer) = (Identities::default(), Identities::default());
        inner.add(&base.join("a/b")).unwrap();
        outer.add(&base.join("a")).unwrap();
        let path = base.join("a/b/tls.crt");
        assert!(inner.holds(&path) && outer.holds(&path));
        fs::rename(base.join("a/b"), base.join("old")).unwrap();
        file(&base, "a/b/tls.crt");
        assert!(!inner.holds(&path) && outer.holds(&path));
    }
}
