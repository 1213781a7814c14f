//! Files as they lie on the disk.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::Path;

use super::Reader;

/// The machine's files, and standard input by the name `-`.
pub(crate) struct Disk;

impl Reader for Disk {
    fn read(&self, path: &Path, limit: usize) -> io::Result<Vec<u8>> {
        let limit = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
        let mut bytes = Vec::new();
        if path == Path::new("-") {
            io::stdin().lock().take(limit).read_to_end(&mut bytes)?;
        } else {
            File::open(path)?.take(limit).read_to_end(&mut bytes)?;
        }
        Ok(bytes)
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(directory)? {
            let entry = entry?;
            // Through links, as the products do. What is gone meanwhile is no file.
            let is_file = std::fs::metadata(entry.path()).is_ok_and(|it| it.is_file());
            if is_file {
                names.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        Ok(names)
    }
}

/// Writes the configuration; a file that is there is replaced at once and only with `force`, so that
/// a running tlsward never reads half of it.
///
/// # Errors
/// As the system says; `AlreadyExists` without `force`.
pub(crate) fn write(path: &Path, text: &str, force: bool) -> io::Result<()> {
    if !force {
        let mut file = File::create_new(path).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => io::Error::new(
                error.kind(),
                "there is such a file already; --force replaces it",
            ),
            _ => error,
        })?;
        return file.write_all(text.as_bytes());
    }
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let mut file = File::create(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&new, path)
}
