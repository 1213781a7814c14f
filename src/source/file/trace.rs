//! From a path to the directories in which something must happen before the path means another
//! file: symbolic links are followed step by step, as the kernel does (path_resolution(7)).

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::OsString;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

/// The kernel's own limit (`MAXSYMLINKS`, path_resolution(7)).
const MAX_LINKS: usize = 40;

/// Device and inode: what a directory is, by whatever name.
pub(super) type Identity = (u64, u64);

/// The way from the root to what a path names.
#[derive(Debug)]
pub(super) struct Trace {
    /// The entries whose change can change what the path means.
    pub(super) steps: Vec<Step>,
    pub(super) end: End,
    /// The last symbolic link on the way, and what it says.
    pub(super) last_link: Option<(PathBuf, PathBuf)>,
}

/// One directory entry on the way. No symbolic link is left in `dir`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Step {
    pub(super) dir: PathBuf,
    pub(super) identity: Identity,
    pub(super) name: OsString,
}

/// Where the way ends.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// A file that is not a directory.
    File(PathBuf),
    Directory(PathBuf, Identity),
    /// Nothing is there; the directory above exists.
    Missing(PathBuf),
    /// It is used as a directory, but is none.
    NotADirectory(PathBuf),
    /// Links that lead in a circle.
    Loop(PathBuf),
    /// What is there cannot be told.
    Unknown(PathBuf, io::ErrorKind),
}

/// What was seen at a path, remembered for the length of one look round: a thousand services share
/// most of their directories.
#[derive(Debug, Default)]
pub(super) struct Memo(HashMap<PathBuf, Seen>);

#[derive(Clone, Debug)]
enum Seen {
    Directory(Identity),
    Link(PathBuf),
    File,
    Error(io::ErrorKind),
}

impl Trace {
    /// Follows `path`, which must be absolute.
    pub(super) fn follow(path: &Path, memo: &mut Memo) -> Self {
        let mut trace = Self {
            steps: Vec::new(),
            end: End::Missing(PathBuf::new()),
            last_link: None,
        };
        trace.end = trace.walk(path, memo);
        trace
    }

    fn walk(&mut self, path: &Path, memo: &mut Memo) -> End {
        let mut dir = PathBuf::from("/");
        let mut identities = match memo.look(&dir) {
            Seen::Directory(identity) => vec![identity],
            Seen::Error(kind) => return End::Unknown(dir, kind),
            Seen::Link(_) | Seen::File => return End::NotADirectory(dir),
        };
        let mut todo = components(path);
        let mut links = 0;
        while let Some(name) = todo.pop() {
            let identity = *identities.last().expect("the root's is never taken away");
            if name == ".." {
                if identities.len() > 1 {
                    identities.pop();
                    dir.pop();
                }
                continue;
            }
            let here = dir.join(&name);
            let seen = memo.look(&here);
            // Not the first two levels, unless the entry itself is at stake: /etc and the like
            // see thousands of events a second that concern nobody here, and only the exchange of
            // a whole top directory goes unnoticed (until the periodic check).
            let passes = matches!(seen, Seen::Directory(_)) && !todo.is_empty();
            if !passes || identities.len() > 2 {
                self.steps.push(Step {
                    dir: dir.clone(),
                    identity,
                    name,
                });
            }
            match seen {
                Seen::Directory(identity) => {
                    identities.push(identity);
                    dir = here;
                }
                Seen::Link(target) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return End::Loop(here);
                    }
                    if target.is_absolute() {
                        dir = PathBuf::from("/");
                        identities.truncate(1);
                    }
                    todo.extend(components(&target));
                    self.last_link = Some((here, target));
                }
                Seen::File if todo.is_empty() => return End::File(here),
                Seen::File => return End::NotADirectory(here),
                Seen::Error(io::ErrorKind::NotFound) => return End::Missing(here),
                Seen::Error(kind) => return End::Unknown(here, kind),
            }
        }
        let identity = *identities.last().expect("the root's is never taken away");
        End::Directory(dir, identity)
    }
}

impl Memo {
    fn look(&mut self, path: &Path) -> Seen {
        match self.0.entry(path.to_owned()) {
            Entry::Occupied(entry) => entry.get().clone(),
            Entry::Vacant(entry) => entry.insert(look(path)).clone(),
        }
    }
}

fn look(path: &Path) -> Seen {
    match path.symlink_metadata() {
        Ok(metadata) if metadata.is_symlink() => match path.read_link() {
            Ok(target) => Seen::Link(target),
            Err(error) => Seen::Error(error.kind()),
        },
        Ok(metadata) if metadata.is_dir() => Seen::Directory(identity(&metadata)),
        Ok(_) => Seen::File,
        Err(error) => Seen::Error(error.kind()),
    }
}

/// Device and inode.
pub(super) fn identity(metadata: &Metadata) -> Identity {
    (metadata.dev(), metadata.ino())
}

/// The names of a path, the last one first.
fn components(path: &Path) -> Vec<OsString> {
    path.components()
        .rev()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    /// Steps below `base`, as `dir/name`.
    fn names(trace: &Trace, base: &Path) -> Vec<String> {
        trace
            .steps
            .iter()
            .filter_map(|step| {
                let path = step.dir.join(&step.name);
                Some(path.strip_prefix(base).ok()?.display().to_string())
            })
            .filter(|name| !name.is_empty())
            .collect()
    }

    fn base() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap();
        (dir, path)
    }

    #[test]
    fn every_link_of_a_mounted_secret_and_its_target_directory_are_on_the_way() {
        let (_guard, base) = base();
        fs::create_dir(base.join("..1")).unwrap();
        fs::write(base.join("..1/tls.crt"), "x").unwrap();
        symlink("..1", base.join("..data")).unwrap();
        symlink("..data/tls.crt", base.join("tls.crt")).unwrap();
        let trace = Trace::follow(&base.join("tls.crt"), &mut Memo::default());
        assert_eq!(
            names(&trace, &base),
            ["tls.crt", "..data", "..1", "..1/tls.crt"]
        );
        assert_eq!(trace.end, End::File(base.join("..1/tls.crt")));
    }

    #[test]
    fn parent_steps_in_a_link_are_taken_from_where_the_link_led() {
        let (_guard, base) = base();
        fs::create_dir_all(base.join("archive/billing")).unwrap();
        fs::create_dir_all(base.join("live/billing")).unwrap();
        fs::write(base.join("archive/billing/cert1.pem"), "x").unwrap();
        symlink(
            "../../archive/billing/cert1.pem",
            base.join("live/billing/cert.pem"),
        )
        .unwrap();
        let trace = Trace::follow(&base.join("live/billing/cert.pem"), &mut Memo::default());
        assert_eq!(
            trace.end,
            End::File(base.join("archive/billing/cert1.pem")),
            "{trace:?}"
        );
        assert_eq!(
            names(&trace, &base),
            [
                "live",
                "live/billing",
                "live/billing/cert.pem",
                "archive",
                "archive/billing",
                "archive/billing/cert1.pem"
            ]
        );
    }

    #[test]
    fn a_way_that_breaks_off_ends_in_the_nearest_directory_that_exists() {
        let (_guard, base) = base();
        let trace = Trace::follow(&base.join("a/b/tls.crt"), &mut Memo::default());
        assert_eq!(trace.end, End::Missing(base.join("a")));
        assert_eq!(names(&trace, &base), ["a"]);
        assert_eq!(trace.steps.last().unwrap().dir, base);
    }

    #[test]
    fn a_dangling_link_ends_at_its_target() {
        let (_guard, base) = base();
        symlink("gone/tls.crt", base.join("tls.crt")).unwrap();
        let trace = Trace::follow(&base.join("tls.crt"), &mut Memo::default());
        assert_eq!(trace.end, End::Missing(base.join("gone")));
        assert_eq!(
            trace.last_link,
            Some((base.join("tls.crt"), "gone/tls.crt".into()))
        );
    }

    #[test]
    fn links_in_a_circle_and_files_used_as_directories_end_the_way() {
        let (_guard, base) = base();
        symlink("b", base.join("a")).unwrap();
        symlink("a", base.join("b")).unwrap();
        fs::write(base.join("file"), "x").unwrap();
        let mut memo = Memo::default();
        assert!(matches!(
            Trace::follow(&base.join("a"), &mut memo).end,
            End::Loop(_)
        ));
        assert_eq!(
            Trace::follow(&base.join("file/tls.crt"), &mut memo).end,
            End::NotADirectory(base.join("file"))
        );
    }

    #[test]
    fn busy_top_directories_are_not_on_the_way_to_a_file_deep_below() {
        let trace = Trace::follow(Path::new("/usr/lib/os-release"), &mut Memo::default());
        assert!(
            trace
                .steps
                .iter()
                .all(|step| step.dir != Path::new("/") || step.name != "usr"),
            "{trace:?}"
        );
    }
}
