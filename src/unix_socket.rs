//! Unix sockets to listen on: a stale file is replaced, a living one is not, and none is left
//! behind.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use socket2::{Domain, SockAddr, Socket, Type};
use tracing::warn;

/// A socket's file; removed when this is dropped, unless another program's is there by then.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
    stays: AtomicBool,
}

/// Binds at `path`; clients are refused until the socket listens. A socket that was left behind there by a program that is gone is
/// replaced; nothing else ever is. The file has `mode` before the first client can connect; `None`
/// leaves it to the umask. The socket does not block.
///
/// # Errors
/// In words for the operator: what is in the way at `path`, or the system's reason.
pub(crate) fn bind(path: &Path, mode: Option<u32>) -> Result<(Socket, SocketFile), String> {
    let in_words = |error: io::Error| error.to_string();
    let address = SockAddr::unix(path).map_err(in_words)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(in_words)?;
    socket.set_nonblocking(true).map_err(in_words)?;
    if let Err(error) = socket.bind(&address) {
        if error.kind() != io::ErrorKind::AddrInUse {
            return Err(in_words(error));
        }
        remove_stale(path, &address)?;
        socket.bind(&address).map_err(in_words)?;
    }
    let file = SocketFile::at(path).map_err(in_words)?;
    if let Some(mode) = mode {
        // Until `listen`, clients are refused: no one slips in under the umask's mode.
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(in_words)?;
    }
    Ok((socket, file))
}

/// Changes the mode of a socket that stays. A failure is reported and changes nothing: whoever
/// was let in before still is.
pub(crate) fn set_mode(path: &Path, mode: u32) {
    if let Err(error) = fs::set_permissions(path, fs::Permissions::from_mode(mode)) {
        warn!(path = %path.display(), mode = format!("{mode:04o}"), %error,
            "cannot change the mode of a socket");
    }
}

/// Removes the file at `path` if it is a socket on which nobody listens.
fn remove_stale(path: &Path, address: &SockAddr) -> Result<(), String> {
    let in_words = |error: io::Error| error.to_string();
    let kind = fs::symlink_metadata(path).map_err(in_words)?.file_type();
    if !kind.is_socket() {
        return Err(
            "a file that is no socket is in the way; move it or choose another path".into(),
        );
    }
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(in_words)?;
    // A full backlog is an answer too; a blocking connect would wait for it to empty.
    probe.set_nonblocking(true).map_err(in_words)?;
    match probe.connect(address) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(in_words)
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(
            "a socket that this user may not connect to is in the way; remove it if no program uses it"
                .into(),
        ),
        Ok(()) | Err(_) => Err("another program listens there".into()),
    }
}

impl SocketFile {
    /// What lies at `path`, to be removed when this is dropped.
    ///
    /// # Errors
    /// Nothing is there, or it cannot be looked at.
    pub(crate) fn at(path: &Path) -> io::Result<Self> {
        let metadata = fs::symlink_metadata(path)?;
        Ok(Self {
            path: path.to_owned(),
            device: metadata.dev(),
            inode: metadata.ino(),
            stays: AtomicBool::new(false),
        })
    }

    /// Device and inode.
    pub(crate) fn id(&self) -> (u64, u64) {
        (self.device, self.inode)
    }

    /// Whether the file stays when this is dropped, since its socket is open elsewhere.
    pub(crate) fn stays(&self, stays: bool) {
        self.stays.store(stays, Ordering::Relaxed);
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if *self.stays.get_mut() {
            return;
        }
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == (self.device, self.inode));
        if ours {
            // Gone already, or the directory became read-only: the next start copes with either.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    fn listen(path: &Path, mode: Option<u32>) -> Result<(Socket, SocketFile), String> {
        let (socket, file) = bind(path, mode)?;
        socket.listen(1).unwrap();
        Ok((socket, file))
    }

    fn mode_of(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn the_file_has_the_mode_and_is_gone_afterwards() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        let (listener, file) = listen(&path, Some(0o666)).unwrap();
        assert_eq!(mode_of(&path), 0o666);
        UnixStream::connect(&path).unwrap();
        drop((listener, file));
        assert!(!path.exists());
    }

    #[test]
    fn a_socket_left_behind_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let _kept = listen(&path, None).unwrap();
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_socket_that_answers_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        let _first = listen(&path, None).unwrap();
        let error = listen(&path, None).unwrap_err();
        assert_eq!(error, "another program listens there");
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_file_that_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("precious");
        fs::write(&path, "data").unwrap();
        let error = listen(&path, None).unwrap_err();
        assert!(error.contains("no socket"), "{error}");
        assert_eq!(fs::metadata(&path).unwrap().len(), 4);
    }

    #[test]
    fn a_successors_socket_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        let (_old, file) = listen(&path, None).unwrap();
        // The successor's file comes first, so that it cannot get the old one's inode.
        let (_new, _kept) = listen(&dir.path().join("new.sock"), None).unwrap();
        fs::rename(dir.path().join("new.sock"), &path).unwrap();
        drop(file);
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_directory_that_is_not_there_is_said() {
        let error = listen(Path::new("/nonexistent/admin.sock"), None).unwrap_err();
        assert!(error.contains("No such file"), "{error}");
    }
}
