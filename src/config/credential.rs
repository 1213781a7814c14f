//! Credentials that the service manager hands over as files: systemd.exec(5), "Credentials".

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use super::problem::Wrong;
use super::value::Parsed;

/// The variable in which systemd names the directory.
const DIRECTORY: &str = "CREDENTIALS_DIRECTORY";

/// The longest name that systemd takes (`FDNAME_MAX`), in bytes.
const MAX_NAME: usize = 255;

/// One credential, by name. Which files it consists of is seen when it is read: `forms`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Credential {
    /// The name in `LoadCredential=NAME:…`.
    pub name: String,
    /// `$CREDENTIALS_DIRECTORY`, absolute. `None` where the service manager has handed nothing
    /// over, as outside of the service.
    pub directory: Option<PathBuf>,
}

/// The files of one credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Form {
    /// Everything in one file.
    Whole(PathBuf),
    /// A certificate chain and its key.
    Pair {
        /// The chain.
        cert: PathBuf,
        /// The key.
        key: PathBuf,
    },
}

impl Credential {
    /// Takes a name that systemd would take too, and the directory from the environment.
    pub(super) fn parse(text: &str, environment: &BTreeMap<String, String>) -> Parsed<Self> {
        let wrong = |reason: &str| {
            Wrong::new(
                format!("{text:?} is not the name of a credential: {reason}"),
                "write the name that stands before the colon in LoadCredential=NAME:/path; to name a file by its path, use cert and key, or bundle",
            )
        };
        if text.is_empty() {
            return Err(wrong("it is empty"));
        }
        if text.contains('/') {
            return Err(wrong("it is a path"));
        }
        if text == "." || text == ".." {
            return Err(wrong("it is a directory"));
        }
        if text.len() > MAX_NAME {
            return Err(wrong("it has more than 255 characters"));
        }
        if !text
            .bytes()
            .all(|byte| (b' '..=b'~').contains(&byte) && byte != b':')
        {
            return Err(wrong("it has a colon or a character outside of ASCII"));
        }
        let directory = environment.get(DIRECTORY).map(PathBuf::from);
        Ok(Self {
            name: text.to_owned(),
            directory: directory.filter(|directory| directory.is_absolute()),
        })
    }

    /// The files that this credential may consist of: one with key and chain; what
    /// `LoadCredential=NAME:/directory` makes of `tls.crt` and `tls.key`; or two credentials
    /// `NAME.crt` and `NAME.key`. `None` where there is no directory.
    pub(crate) fn forms(&self) -> Option<[Form; 3]> {
        let directory = self.directory.as_deref()?;
        let file = |end: &str| directory.join(format!("{}{end}", self.name));
        Some([
            Form::Whole(file("")),
            Form::Pair {
                cert: file("_tls.crt"),
                key: file("_tls.key"),
            },
            Form::Pair {
                cert: file(".crt"),
                key: file(".key"),
            },
        ])
    }

    /// The file of this very name. `None` where there is no directory.
    pub(crate) fn file(&self) -> Option<PathBuf> {
        Some(self.directory.as_deref()?.join(&self.name))
    }
}

impl Form {
    /// Its files.
    pub(crate) fn files(&self) -> impl Iterator<Item = &Path> {
        let (first, second) = match self {
            Self::Whole(path) => (path, None),
            Self::Pair { cert, key } => (cert, Some(key)),
        };
        [Some(first), second]
            .into_iter()
            .flatten()
            .map(PathBuf::as_path)
    }
}

/// `credential NAME`, and where it is if that is known.
impl fmt::Display for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.directory {
            Some(directory) => write!(f, "credential {} in {}", self.name, directory.display()),
            None => write!(f, "credential {}", self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, directory: Option<&str>) -> Parsed<Credential> {
        let environment = directory.map(|value| (DIRECTORY.to_owned(), value.to_owned()));
        Credential::parse(text, &environment.into_iter().collect())
    }

    #[test]
    fn a_name_is_one_that_systemd_takes() {
        let longest = "x".repeat(MAX_NAME);
        for name in [
            "billing",
            "a b",
            "tls.client-1_x",
            "...",
            "~",
            longest.as_str(),
        ] {
            assert_eq!(parse(name, None).unwrap().name, name);
        }
        let longer = "x".repeat(MAX_NAME + 1);
        for (name, reason) in [
            ("", "empty"),
            (".", "directory"),
            ("..", "directory"),
            ("/run/x", "path"),
            ("a/b", "path"),
            ("a:b", "colon"),
            ("a\nb", "colon"),
            ("a\u{7f}", "colon"),
            ("bücher", "ASCII"),
            (longer.as_str(), "255"),
        ] {
            let wrong = parse(name, None).unwrap_err();
            assert!(wrong.reason.contains(reason), "{name:?}: {}", wrong.reason);
            assert!(wrong.fix.contains("LoadCredential=NAME:"), "{name:?}");
        }
    }

    #[test]
    fn the_directory_is_what_the_service_manager_says_and_nothing_else() {
        let found = |value| parse("b", value).unwrap().directory;
        let directory = "/run/credentials/tlsward.service";
        assert_eq!(found(Some(directory)), Some(directory.into()));
        for none in [None, Some(""), Some("run/credentials")] {
            assert_eq!(found(none), None, "{none:?}");
        }
    }

    #[test]
    fn a_credential_is_one_file_or_two_in_either_of_two_spellings() {
        let credential = parse("b", Some("/c")).unwrap();
        let forms = credential.forms().unwrap();
        let files: Vec<_> = forms.iter().flat_map(Form::files).collect();
        assert_eq!(
            files,
            [
                "/c/b",
                "/c/b_tls.crt",
                "/c/b_tls.key",
                "/c/b.crt",
                "/c/b.key"
            ]
            .map(Path::new)
        );
        assert_eq!(credential.file(), Some("/c/b".into()));
        assert_eq!(parse("b", None).unwrap().forms(), None);
    }
}
