//! The files of a conversion: read once each, within limits, and named as the user named them.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The largest file that is read, in bytes. Configuration files are a hundredth of that.
pub(crate) const MAX_FILE: usize = 1024 * 1024;
/// The most bytes of one conversion, included files counted each time.
const MAX_TOTAL: usize = 8 * MAX_FILE;
/// The most files of one conversion, included ones too.
const MAX_FILES: usize = 1000;
/// How deep files may include others.
const MAX_DEPTH: usize = 16;

/// How files get in; the converters do no I/O themselves.
pub(crate) trait Reader {
    /// The bytes of a file, at most `limit + 1` of them.
    ///
    /// # Errors
    /// As the system says.
    fn read(&self, path: &Path, limit: usize) -> io::Result<Vec<u8>>;

    /// The names in a directory, in any order.
    ///
    /// # Errors
    /// As the system says.
    fn list(&self, directory: &Path) -> io::Result<Vec<String>>;
}

/// A line of a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Place {
    /// The file, as the user or an `include` named it.
    pub(crate) file: Arc<str>,
    /// From 1; 0 means the file as a whole.
    pub(crate) line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        match self.line {
            0 => Ok(()),
            line => write!(f, ":{line}"),
        }
    }
}

/// Why a source cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mistake {
    pub(crate) place: Place,
    pub(crate) reason: String,
    pub(crate) fix: String,
}

impl Mistake {
    pub(crate) fn new(place: &Place, reason: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            place: place.clone(),
            reason: reason.into(),
            fix: fix.into(),
        }
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}\n  fix: {}", self.place, self.reason, self.fix)
    }
}

/// A file that was read.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    /// What the user or an `include` called it.
    pub(crate) name: Arc<str>,
    /// Absolute, but for standard input.
    pub(crate) path: PathBuf,
    pub(crate) text: String,
}

impl Source {
    pub(crate) fn at(&self, line: usize) -> Place {
        Place {
            file: Arc::clone(&self.name),
            line,
        }
    }

    /// The directory from which relative paths of this file count.
    pub(crate) fn directory(&self) -> &Path {
        self.path.parent().unwrap_or(&self.path)
    }
}

/// Reads files and counts them.
pub(crate) struct Sources<'r> {
    reader: &'r dyn Reader,
    /// The working directory.
    here: PathBuf,
    files: usize,
    bytes: usize,
    /// The files that are being read, each included by the one before.
    open: Vec<PathBuf>,
}

impl<'r> Sources<'r> {
    pub(crate) fn new(reader: &'r dyn Reader, here: &Path) -> Self {
        Self {
            reader,
            here: here.to_owned(),
            files: 0,
            bytes: 0,
            open: Vec::new(),
        }
    }

    /// Reads a file that the user named; `-` is standard input.
    ///
    /// # Errors
    /// Too large, not text, or as the system says.
    pub(crate) fn named(&mut self, file: &Path) -> Result<Source, Mistake> {
        let name = match file.to_str() {
            Some("-") => "standard input".to_owned(),
            _ => file.display().to_string(),
        };
        let path = match file.to_str() {
            Some("-") => file.to_owned(),
            _ => self.here.join(file),
        };
        let place = Place {
            file: name.into(),
            line: 0,
        };
        self.read(path, &place, &place)
    }

    /// Reads a file that another one includes at `place`, hands it to `inside`, and forgets it.
    ///
    /// # Errors
    /// As [`Self::named`]; a file that includes itself, or too many of them.
    pub(crate) fn included<T>(
        &mut self,
        path: &Path,
        place: &Place,
        inside: impl FnOnce(&mut Self, Source) -> Result<T, Mistake>,
    ) -> Result<T, Mistake> {
        let path: PathBuf = path.components().collect();
        if self.open.contains(&path) {
            return Err(Mistake::new(
                place,
                format!("{} includes itself", path.display()),
                "remove the include that leads back",
            ));
        }
        if self.open.len() >= MAX_DEPTH {
            return Err(Mistake::new(
                place,
                format!("files include each other more than {MAX_DEPTH} deep"),
                "put the innermost parts into the files that include them",
            ));
        }
        let its_own = Place {
            file: path.display().to_string().into(),
            line: 0,
        };
        let source = self.read(path.clone(), &its_own, place)?;
        self.open.push(path);
        let result = inside(self, source);
        self.open.pop();
        result
    }

    /// The names in a directory, sorted.
    ///
    /// # Errors
    /// As the system says.
    pub(crate) fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        let mut names = self.reader.list(directory)?;
        names.sort();
        Ok(names)
    }

    /// Begins with the file from which others are included.
    pub(crate) fn begin_at(&mut self, source: &Source) {
        self.open = vec![source.path.components().collect()];
    }

    fn read(&mut self, path: PathBuf, name: &Place, place: &Place) -> Result<Source, Mistake> {
        self.files += 1;
        if self.files > MAX_FILES {
            return Err(Mistake::new(
                place,
                format!("more than {MAX_FILES} files"),
                "convert them in parts",
            ));
        }
        let bytes = self.reader.read(&path, MAX_FILE).map_err(|error| {
            Mistake::new(
                place,
                format!("cannot read {}: {error}", path.display()),
                "name a file that can be read",
            )
        })?;
        self.bytes = self.bytes.saturating_add(bytes.len());
        if bytes.len() > MAX_FILE || self.bytes > MAX_TOTAL {
            return Err(Mistake::new(
                place,
                format!(
                    "too large: a file may have {} KiB and all together {} KiB",
                    MAX_FILE / 1024,
                    MAX_TOTAL / 1024
                ),
                "name the configuration file; convert many in parts",
            ));
        }
        let text = String::from_utf8(bytes).map_err(|_| {
            Mistake::new(
                place,
                format!("{} is not UTF-8", path.display()),
                "name a text file; save it as UTF-8",
            )
        })?;
        // Editors of another system put it there; none of the formats takes it for content.
        let text = match text.strip_prefix('\u{feff}') {
            Some(rest) => rest.to_owned(),
            None => text,
        };
        Ok(Source {
            name: Arc::clone(&name.file),
            path,
            text,
        })
    }
}
