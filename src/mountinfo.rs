//! The mount table that this process sees, proc_pid_mountinfo(5).

use std::ffi::OsString;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

/// Far more than any real mount table has.
const MAX_MOUNTINFO: u64 = 8 << 20;

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    /// What of the file system is mounted: a path within it.
    pub(crate) root: PathBuf,
    pub(crate) point: PathBuf,
    /// The file system's type, such as `ext4`.
    pub(crate) kind: String,
    /// The file system's own options, with commas between.
    pub(crate) options: String,
}

/// The mount table; empty where it cannot be had (no /proc).
pub(crate) fn read() -> Vec<Mount> {
    let mut text = Vec::new();
    match File::open("/proc/self/mountinfo")
        .and_then(|file| file.take(MAX_MOUNTINFO).read_to_end(&mut text))
    {
        Ok(_) => parse(&text),
        Err(_) => Vec::new(),
    }
}

/// Of each line: fields 4 and 5, and after the hyphen 1 and 3.
pub(crate) fn parse(text: &[u8]) -> Vec<Mount> {
    let path = |field: &[u8]| PathBuf::from(OsString::from_vec(unescape(field)));
    let word = |field: Option<&[u8]>| {
        field.map_or_else(String::new, |field| {
            String::from_utf8_lossy(&unescape(field)).into_owned()
        })
    };
    text.split(|byte| *byte == b'\n')
        .filter_map(|line| {
            let mut fields = line.split(|byte| *byte == b' ').skip(3);
            let (root, point) = (path(fields.next()?), path(fields.next()?));
            let mut fields = fields.skip_while(|field| *field != b"-").skip(1);
            let kind = word(fields.next());
            Some(Mount {
                root,
                point,
                kind,
                options: word(fields.nth(1)),
            })
        })
        .collect()
}

/// Space, tab, newline and backslash stand as three octal digits after a backslash.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    loop {
        rest = match *rest {
            [] => return out,
            [
                b'\\',
                a @ b'0'..=b'3',
                b @ b'0'..=b'7',
                c @ b'0'..=b'7',
                ref rest @ ..,
            ] => {
                out.push((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'));
                rest
            }
            [byte, ref rest @ ..] => {
                out.push(byte);
                rest
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_with_and_without_optional_fields_and_with_blanks_in_its_paths() {
        let text = b"36 35 98:0 / / rw,noatime master:1 - ext4 /dev/root rw,errors=continue\n\
            40 36 0:45 /..data/tls.crt /etc/my\\040certs/tls.crt ro - tmpfs tmpfs rw\n\
            \n\
            cut 1 0:1 /\n";
        let mount = |root: &str, point: &str, kind: &str, options: &str| Mount {
            root: root.into(),
            point: point.into(),
            kind: kind.into(),
            options: options.into(),
        };
        assert_eq!(
            parse(text),
            [
                mount("/", "/", "ext4", "rw,errors=continue"),
                mount("/..data/tls.crt", "/etc/my certs/tls.crt", "tmpfs", "rw"),
            ]
        );
    }

    #[test]
    fn the_mount_table_of_this_system_names_the_root() {
        assert!(read().iter().any(|mount| mount.point == *"/"));
    }
}
