//! Credentials of the service manager: files in one directory, by name. Which of the forms a
//! credential has is seen at every read.

use std::io;
use std::path::Path;

use super::explain::{Role, unreadable};
use super::read::{entries, file};
use crate::config::Credential;
use crate::config::credential::Form;
use crate::failure::{Explained, Reason};
use crate::material::{IdentityMaterial, Part};

/// How many names of other credentials are told.
const TOLD: usize = 20;

/// Key and chain.
pub(super) fn identity(credential: &Credential) -> Result<IdentityMaterial, Explained> {
    let forms = credential.forms().ok_or_else(|| no_directory(credential))?;
    let mut found: Option<(Form, &Path)> = None;
    let mut lacks = None;
    for form in &forms {
        let mut there = None;
        let mut absent = None;
        for path in form.files() {
            match exists(path)? {
                true => there = Some(path),
                false => absent = Some(path),
            }
        }
        match (&found, there, absent) {
            (_, None, _) => {}
            (_, Some(there), Some(absent)) => lacks = Some((there, absent)),
            (Some((_, other)), Some(there), None) => return Err(twice(credential, other, there)),
            (None, Some(there), None) => found = Some((form.clone(), there)),
        }
    }
    match (found, lacks) {
        (Some((Form::Whole(path), _)), _) => {
            file(Role::Identity, &path).map(IdentityMaterial::Bundle)
        }
        (Some((Form::Pair { cert, key }, _)), _) => Ok(IdentityMaterial::Pair {
            cert: file(Role::Identity, &cert)?,
            key: file(Role::Identity, &key)?,
        }),
        (None, Some((there, absent))) => Err(Explained::new(
            Reason::CredentialMissing,
            format!(
                "{credential} is half there: {} without {}",
                name(there),
                name(absent)
            ),
        )),
        (None, None) => {
            let forms: Vec<String> = forms
                .iter()
                .map(|form| form.files().map(name).collect::<Vec<_>>().join(" and "))
                .collect();
            Err(missing(credential, &forms.join(", nor ")))
        }
    }
}

/// CA certificates: the file of this very name.
pub(super) fn ca(credential: &Credential) -> Result<Part, Explained> {
    let path = credential.file().ok_or_else(|| no_directory(credential))?;
    match exists(&path)? {
        true => file(Role::Trust, &path),
        false => Err(missing(credential, &name(&path))),
    }
}

/// Whether there is anything of this name. A name that is too long for the file system is that of
/// nothing.
fn exists(path: &Path) -> Result<bool, Explained> {
    use io::ErrorKind::{InvalidFilename, NotADirectory, NotFound};
    match path.symlink_metadata() {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.kind(), NotFound | NotADirectory | InvalidFilename) => {
            Ok(false)
        }
        Err(error) => Err(unreadable(Role::Identity, path, &error)),
    }
}

fn name(path: &Path) -> String {
    path.file_name()
        .map_or_else(String::new, |name| name.display().to_string())
}

fn no_directory(credential: &Credential) -> Explained {
    Explained::new(
        Reason::CredentialMissing,
        format!(
            "{credential}: systemd has handed no credentials to this process (CREDENTIALS_DIRECTORY is not set)"
        ),
    )
}

fn twice(credential: &Credential, one: &Path, other: &Path) -> Explained {
    Explained::new(
        Reason::BadConfig,
        format!(
            "{credential} is there twice, as {} and as {}: keep one of them in the unit",
            name(one),
            name(other)
        ),
    )
}

/// There is no such credential: what there is instead, since it is mostly a typing error.
fn missing(credential: &Credential, wanted: &str) -> Explained {
    let Some(directory) = credential.directory.as_deref() else {
        return no_directory(credential);
    };
    let has = match entries(directory, super::read::MAX_ENTRIES) {
        Err(_) => "that directory cannot be listed".to_owned(),
        Ok((names, _)) if names.is_empty() => "it is empty".to_owned(),
        Ok((names, _)) => {
            let told: Vec<String> = names.iter().take(TOLD).map(|path| name(path)).collect();
            let more = match names.len() - told.len() {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            format!("it has {}{more}", told.join(", "))
        }
    };
    Explained::new(
        Reason::CredentialMissing,
        format!("there is no {wanted} in {}; {has}", directory.display()),
    )
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn of(name: &str, directory: Option<&Path>) -> Credential {
        Credential {
            name: name.to_owned(),
            directory: directory.map(Path::to_owned),
        }
    }

    /// A directory as systemd leaves it: files 0400, itself 0500.
    fn handed_over(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for name in files {
            let path = dir.path().join(name);
            fs::write(&path, name).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
        }
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o500)).unwrap();
        dir
    }

    /// What was read, as the names of the files that hold just their names.
    fn read(files: &[&str]) -> Result<Vec<String>, Explained> {
        let dir = handed_over(files);
        let text = |part: &Part| String::from_utf8(part.bytes.to_vec()).unwrap();
        identity(&of("b", Some(dir.path()))).map(|material| match material {
            IdentityMaterial::Bundle(part) => vec![text(&part)],
            IdentityMaterial::Pair { cert, key } => vec![text(&cert), text(&key)],
        })
    }

    #[test]
    fn one_file_or_either_pair_is_an_identity() {
        for files in [&["b"][..], &["b_tls.crt", "b_tls.key"], &["b.crt", "b.key"]] {
            let mut all = files.to_vec();
            all.extend(["c", "ca", "b_ca.crt"]);
            assert_eq!(read(&all).unwrap(), files);
        }
        // A pair of which there is only a half does not hide a whole one.
        assert_eq!(read(&["b", "b.crt"]).unwrap(), ["b"]);
    }

    #[test]
    fn two_forms_at_once_are_refused_since_nobody_said_which() {
        for files in [
            &["b", "b.crt", "b.key"][..],
            &["b", "b_tls.crt", "b_tls.key"],
            &["b.crt", "b.key", "b_tls.crt", "b_tls.key"],
        ] {
            let why = read(files).unwrap_err();
            assert_eq!(why.reason, Reason::BadConfig);
            assert!(why.detail.contains("is there twice"), "{why}");
        }
    }

    #[test]
    fn what_is_missing_is_told_with_what_there_is() {
        let why = read(&["billing", "ca"]).unwrap_err();
        assert_eq!(why.reason, Reason::CredentialMissing);
        let wanted = "there is no b, nor b_tls.crt and b_tls.key, nor b.crt and b.key in ";
        assert!(why.detail.starts_with(wanted), "{why}");
        assert!(why.detail.ends_with("; it has billing, ca"), "{why}");
        assert!(why.hint.contains("LoadCredential=NAME:/path"));

        let why = read(&["b.key"]).unwrap_err();
        assert_eq!(why.reason, Reason::CredentialMissing);
        assert!(
            why.detail.ends_with("half there: b.key without b.crt"),
            "{why}"
        );

        let why = read(&[]).unwrap_err();
        assert!(why.detail.ends_with("; it is empty"), "{why}");
        let many: Vec<String> = (0..25).map(|n| format!("x{n:02}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let why = read(&many).unwrap_err();
        assert!(why.detail.ends_with("x18, x19 and 5 more"), "{why}");
    }

    #[test]
    fn without_a_directory_the_cause_is_that_and_not_a_file() {
        for why in [
            identity(&of("b", None)).map(drop),
            ca(&of("b", None)).map(drop),
        ] {
            let why = why.unwrap_err();
            assert_eq!(why.reason, Reason::CredentialMissing);
            assert!(
                why.detail.contains("CREDENTIALS_DIRECTORY is not set"),
                "{why}"
            );
        }
        let gone = Path::new("/nonexistent/credentials");
        let why = identity(&of("b", Some(gone))).unwrap_err();
        assert!(
            why.detail.ends_with("that directory cannot be listed"),
            "{why}"
        );
    }

    #[test]
    fn the_longest_name_leaves_no_room_for_pairs_and_is_read_all_the_same() {
        let name = "x".repeat(255);
        let dir = handed_over(&[name.as_str()]);
        identity(&of(&name, Some(dir.path()))).unwrap();
    }

    #[test]
    fn a_dangling_link_is_there_and_cannot_be_read() {
        let dir = tempfile::tempdir().unwrap();
        symlink("gone", dir.path().join("b")).unwrap();
        let why = identity(&of("b", Some(dir.path()))).unwrap_err();
        assert_eq!(why.reason, Reason::IdentityMissing);
        assert!(why.detail.contains("points to gone"), "{why}");
    }

    #[test]
    fn ca_certificates_are_the_file_of_that_name_alone() {
        let dir = handed_over(&["ca", "x.crt"]);
        assert_eq!(&**ca(&of("ca", Some(dir.path()))).unwrap().bytes, b"ca");
        let why = ca(&of("x", Some(dir.path()))).unwrap_err();
        assert_eq!(why.reason, Reason::CredentialMissing);
        assert!(why.detail.ends_with("; it has ca, x.crt"), "{why}");
    }
}
