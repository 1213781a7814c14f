//! Reading all parts of a source, within limits and without ever waiting for a writer.

use std::collections::{BTreeMap, HashSet};
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use zeroize::Zeroizing;

use super::credential;
use super::explain::{Role, missing, refused, unreadable};
use super::trace::{Identity, identity};
use crate::cluster::Store;
use crate::config::{CaSource, IdentitySource, TrustSource};
use crate::failure::{Explained, Reason};
use crate::material::{IdentityMaterial, Part, TrustMaterial};
use crate::source::{Material, Reading, SourceKey, SourceSet, objects};

/// A file beyond this is no certificate, and reading it again and again would cost.
pub(crate) const MAX_FILE: usize = 16 << 20;

/// Files of one directory; the system's own directories of roots hold a few hundred.
pub(super) const MAX_ENTRIES: usize = 4096;

/// All files of one directory together.
const MAX_DIRECTORY: usize = 64 << 20;

/// Passes of [`read_all`] after which the last one counts.
const ATTEMPTS: usize = 6;

/// Where the platform's roots come from, as a place.
const SYSTEM: &str = "system roots";

/// SHA-256 of all that was read, or of the error: enough to know it again, and no key.
pub(crate) type Digest = [u8; 32];

/// Reads the sources now, in order of key. Blocks.
///
/// Read again until two passes over the whole set agree, so that nothing half-written and no
/// mixture of two generations is returned if it can be avoided; after a few attempts the last pass
/// counts.
pub(crate) fn read_all(sources: &SourceSet, store: &Store) -> Vec<Reading> {
    until_agreed(|| sources.iter().map(|key| read(key, store)).collect())
}

fn until_agreed(mut pass: impl FnMut() -> Vec<Reading>) -> Vec<Reading> {
    let digests = |readings: &[Reading]| -> Vec<Digest> {
        readings.iter().map(|r| digest(&r.material)).collect()
    };
    let mut before = digests(&pass());
    let mut readings = pass();
    for _ in 2..ATTEMPTS {
        let now = digests(&readings);
        if now == before {
            break;
        }
        // Somebody is writing. Long enough for a small file, short enough at start.
        std::thread::sleep(Duration::from_millis(10));
        before = now;
        readings = pass();
    }
    readings
}

/// Reads one source once. Blocks.
pub(super) fn read(key: &SourceKey, store: &Store) -> Reading {
    let material = match key {
        SourceKey::Config(path) => file(Role::Config, path).map(Material::Config),
        SourceKey::Identity(source) => identity_material(source, store).map(Material::Identity),
        SourceKey::Trust(source) => trust_material(source, store).map(Material::Trust),
    };
    Reading {
        key: key.clone(),
        material,
    }
}

/// The digest by which what was read is known again.
pub(crate) fn digest(material: &Result<Material, Explained>) -> Digest {
    // Every piece with its length, so that no two different contents look alike.
    fn add(context: &mut Context, bytes: &[u8]) {
        context.update(&(bytes.len() as u64).to_be_bytes());
        context.update(bytes);
    }
    fn add_parts<'a>(context: &mut Context, parts: impl IntoIterator<Item = &'a Part>) {
        for part in parts {
            add(context, part.place.as_bytes());
            add(context, &part.bytes);
        }
    }
    let mut context = Context::new(&SHA256);
    match material {
        Ok(Material::Config(part) | Material::Identity(IdentityMaterial::Bundle(part))) => {
            add_parts(&mut context, [part]);
        }
        Ok(Material::Identity(IdentityMaterial::Pair { cert, key })) => {
            add_parts(&mut context, [cert, key]);
        }
        Ok(Material::Trust(TrustMaterial { ca, crl })) => {
            add_parts(&mut context, ca);
            add(&mut context, if crl.is_some() { b"crl" } else { b"no crl" });
            add_parts(&mut context, crl.iter().flatten());
        }
        Err(error) => {
            add(&mut context, b"error");
            add(&mut context, error.reason.as_str().as_bytes());
            add(&mut context, error.detail.as_bytes());
        }
    }
    let mut digest = Digest::default();
    digest.copy_from_slice(context.finish().as_ref());
    digest
}

fn identity_material(
    source: &IdentitySource,
    store: &Store,
) -> Result<IdentityMaterial, Explained> {
    match source {
        IdentitySource::Pair { cert, key } => {
            match (file(Role::Identity, cert), file(Role::Identity, key)) {
                (Ok(cert), Ok(key)) => Ok(IdentityMaterial::Pair { cert, key }),
                (Err(error), Ok(_)) | (Ok(_), Err(error)) => Err(error),
                (Err(cert), Err(key)) if cert.reason == key.reason => Err(Explained::new(
                    cert.reason,
                    format!("{}; {}", cert.detail, key.detail),
                )),
                (Err(cert), Err(_)) => Err(cert),
            }
        }
        IdentitySource::Bundle(path) => file(Role::Identity, path).map(IdentityMaterial::Bundle),
        IdentitySource::Secret(object) => objects::identity(object, store),
        IdentitySource::Credential(credential) => credential::identity(credential),
    }
}

fn trust_material(source: &TrustSource, store: &Store) -> Result<TrustMaterial, Explained> {
    let ca = match &source.ca {
        CaSource::Path(path) => file_or_directory(path)?,
        CaSource::System => vec![system_roots()?],
        CaSource::Credential(credential) => vec![credential::ca(credential)?],
        CaSource::Objects(all) => {
            let parts = all.iter().map(|object| objects::ca(object, store));
            parts.collect::<Result<_, _>>()?
        }
    };
    let crl = match &source.crl {
        Some(path) => Some(file_or_directory(path)?),
        None => None,
    };
    Ok(TrustMaterial { ca, crl })
}

fn file_or_directory(path: &Path) -> Result<Vec<Part>, Explained> {
    match path.metadata() {
        Ok(metadata) if metadata.is_dir() => directory(path, MAX_ENTRIES),
        Ok(_) => Ok(vec![file(Role::Trust, path)?]),
        Err(error) => Err(unreadable(Role::Trust, path, &error)),
    }
}

/// All regular files of a directory, in order of name, each once. Without those whose name begins
/// with a dot: Kubernetes keeps its generations under such names, editors their copies.
fn directory(dir: &Path, limit: usize) -> Result<Vec<Part>, Explained> {
    let (names, _) = entries(dir, limit).map_err(|error| match error {
        ListError::Io(error) => unreadable(Role::Trust, dir, &error),
        ListError::TooMany => refused(
            Role::Trust,
            format!("{} has more than {limit} entries", dir.display()),
        ),
    })?;
    let mut parts = Vec::new();
    let mut seen: HashSet<Identity> = HashSet::new();
    let mut total = 0;
    for path in names {
        match path.metadata() {
            // `openssl rehash` gives each file a second name.
            Ok(metadata) if metadata.is_file() && seen.insert(identity(&metadata)) => {
                let part = file(Role::Trust, &path)?;
                total += part.bytes.len();
                parts.push(part);
            }
            Ok(_) => {}
            // A dangling link; the watch notes it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(unreadable(Role::Trust, &path, &error)),
        }
        if total > MAX_DIRECTORY {
            return Err(refused(
                Role::Trust,
                format!(
                    "the files in {} are together larger than {} MiB",
                    dir.display(),
                    MAX_DIRECTORY >> 20
                ),
            ));
        }
    }
    if parts.is_empty() {
        return Err(missing(
            Role::Trust,
            format!("there is no file in the directory {}", dir.display()),
        ));
    }
    Ok(parts)
}

#[derive(Debug)]
pub(super) enum ListError {
    Io(io::Error),
    TooMany,
}

/// The entries of a directory that count, in order of name; and those among them that are
/// symbolic links.
pub(super) fn entries(dir: &Path, limit: usize) -> Result<(Vec<PathBuf>, Vec<PathBuf>), ListError> {
    let mut found = BTreeMap::new();
    for entry in dir.read_dir().map_err(ListError::Io)? {
        let entry = entry.map_err(ListError::Io)?;
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let is_link = entry.file_type().is_ok_and(|kind| kind.is_symlink());
        found.insert(entry.path(), is_link);
        if found.len() > limit {
            return Err(ListError::TooMany);
        }
    }
    let links = found.iter().filter(|(_, is_link)| **is_link);
    let links = links.map(|(path, _)| path.clone()).collect();
    Ok((found.into_keys().collect(), links))
}

/// One regular file.
pub(super) fn file(role: Role, path: &Path) -> Result<Part, Explained> {
    let fail = |error: io::Error| unreadable(role, path, &error);
    // Looked at before it is opened: opening a device can do things by itself.
    require_regular(role, path, &path.metadata().map_err(fail)?)?;
    let file = OpenOptions::new()
        .read(true)
        // Should it be a FIFO by now, opening must not wait for a writer.
        .custom_flags((rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY).bits() as i32)
        .open(path)
        .map_err(fail)?;
    let metadata = file.metadata().map_err(fail)?;
    require_regular(role, path, &metadata)?;
    match contents(file, metadata.len()).map_err(fail)? {
        Some(mut bytes) => Ok(Part::new(
            path.display().to_string(),
            std::mem::take(&mut *bytes),
        )),
        None => Err(refused(
            role,
            format!("{} is larger than {} MiB", path.display(), MAX_FILE >> 20),
        )),
    }
}

fn require_regular(role: Role, path: &Path, metadata: &Metadata) -> Result<(), Explained> {
    let kind = metadata.file_type();
    let what = if kind.is_file() {
        return Ok(());
    } else if kind.is_dir() {
        "a directory"
    } else if kind.is_fifo() {
        "a FIFO"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a device"
    };
    Err(refused(
        role,
        format!("{} is {what}, not a regular file", path.display()),
    ))
}

/// The contents, or `None` if they are too large. Leaves no copy behind that is not wiped.
fn contents(mut file: File, expected: u64) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
    let expected = usize::try_from(expected).unwrap_or(usize::MAX);
    if expected > MAX_FILE {
        return Ok(None);
    }
    // One more, so that the end is seen without growing.
    let mut bytes = Zeroizing::new(vec![0; expected + 1]);
    let mut filled = 0;
    loop {
        if filled > MAX_FILE {
            return Ok(None);
        }
        if filled == bytes.len() {
            let mut larger = Zeroizing::new(vec![0; filled * 2]);
            larger[..filled].copy_from_slice(&bytes);
            bytes = larger;
        }
        match file.read(&mut bytes[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(filled);
    Ok(Some(bytes))
}

/// The platform's roots as PEM (RFC 7468).
fn system_roots() -> Result<Part, Explained> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        let why = match found.errors.first() {
            Some(error) => format!("the platform's root certificates cannot be read: {error}"),
            None => "this system has no root certificates (package ca-certificates)".into(),
        };
        return Err(Explained::new(Reason::TrustMissing, why));
    }
    let mut pem = String::new();
    for certificate in &found.certs {
        pem.push_str("-----BEGIN CERTIFICATE-----\n");
        let text = BASE64_STANDARD.encode(certificate);
        let mut rest = text.as_str();
        while !rest.is_empty() {
            let (line, after) = rest.split_at(rest.len().min(64));
            pem.push_str(line);
            pem.push('\n');
            rest = after;
        }
        pem.push_str("-----END CERTIFICATE-----\n");
    }
    Ok(Part::new(SYSTEM, pem.into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn pair(dir: &Path) -> SourceKey {
        SourceKey::Identity(IdentitySource::Pair {
            cert: dir.join("tls.crt"),
            key: dir.join("tls.key"),
        })
    }

    fn trust(ca: PathBuf, crl: Option<PathBuf>) -> SourceKey {
        SourceKey::Trust(TrustSource {
            ca: CaSource::Path(ca),
            crl,
        })
    }

    fn error(key: &SourceKey) -> Explained {
        read(key, &Store::new(None)).material.unwrap_err()
    }

    #[test]
    fn both_missing_files_of_a_pair_and_the_missing_directory_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = error(&pair(&dir.path().join("billing")));
        assert_eq!(error.reason, Reason::IdentityMissing);
        for name in ["tls.crt", "tls.key", "there is no billing in "] {
            assert!(error.detail.contains(name), "{error}");
        }
    }

    #[test]
    fn a_dangling_link_is_named_with_its_target() {
        let dir = tempfile::tempdir().unwrap();
        symlink("gone.crt", dir.path().join("ca.crt")).unwrap();
        let error = error(&trust(dir.path().join("ca.crt"), None));
        assert_eq!(error.reason, Reason::TrustMissing);
        assert!(error.detail.contains("points to gone.crt"), "{error}");
    }

    #[test]
    fn a_missing_configuration_is_a_bad_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let error = error(&SourceKey::Config(dir.path().join("config.toml")));
        assert_eq!(error.reason, Reason::BadConfig);
    }

    #[test]
    fn a_fifo_a_socket_a_device_and_a_directory_are_refused_without_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        let socket = dir.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        for (path, what) in [
            (fifo, "is a FIFO"),
            (socket, "is a socket"),
            ("/dev/zero".into(), "is a device"),
            (dir.path().to_owned(), "is a directory"),
        ] {
            let error = error(&SourceKey::Identity(IdentitySource::Bundle(path)));
            assert_eq!(error.reason, Reason::BadPem);
            assert!(error.detail.contains(what), "{error}");
        }
    }

    #[test]
    fn a_file_of_the_largest_size_is_read_and_a_larger_one_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.crt");
        File::create(&path)
            .unwrap()
            .set_len(MAX_FILE as u64)
            .unwrap();
        let Ok(Material::Trust(read)) =
            read(&trust(path.clone(), None), &Store::new(None)).material
        else {
            panic!("{MAX_FILE} bytes are allowed");
        };
        assert_eq!(read.ca[0].bytes.len(), MAX_FILE);

        File::create(&path)
            .unwrap()
            .set_len(MAX_FILE as u64 + 1)
            .unwrap();
        let error = error(&trust(path, None));
        assert!(
            error.detail.ends_with("ca.crt is larger than 16 MiB"),
            "{error}"
        );
    }

    #[test]
    fn a_file_that_is_longer_than_it_said_is_read_to_its_end_within_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        fs::write(&path, vec![7; 10_000]).unwrap();
        let read = contents(File::open(&path).unwrap(), 3).unwrap().unwrap();
        assert_eq!(*read, vec![7; 10_000]);

        File::create(&path)
            .unwrap()
            .set_len(MAX_FILE as u64 + 1)
            .unwrap();
        assert!(contents(File::open(&path).unwrap(), 3).unwrap().is_none());
    }

    #[test]
    fn a_directory_is_its_regular_files_in_order_without_dotfiles_and_second_names() {
        let dir = tempfile::tempdir().unwrap();
        let ca = dir.path().join("ca");
        fs::create_dir_all(ca.join("sub")).unwrap();
        fs::create_dir(ca.join("..2026")).unwrap();
        fs::write(ca.join("..2026/b.crt"), "b").unwrap();
        symlink("..2026", ca.join("..data")).unwrap();
        symlink("..data/b.crt", ca.join("b.crt")).unwrap();
        fs::write(ca.join("a.crt"), "a").unwrap();
        fs::write(ca.join(".a.crt.swp"), "editor").unwrap();
        symlink("a.crt", ca.join("deadbeef.0")).unwrap();
        symlink("gone", ca.join("c.crt")).unwrap();
        let Ok(Material::Trust(read)) =
            read(&trust(ca.clone(), Some(ca.clone())), &Store::new(None)).material
        else {
            panic!("readable");
        };
        let places: Vec<_> = read.ca.iter().map(|part| part.place.clone()).collect();
        let expected = [ca.join("a.crt"), ca.join("b.crt")].map(|p| p.display().to_string());
        assert_eq!(places, expected);
        assert_eq!(read.crl.map(|parts| parts.len()), Some(2));
    }

    #[test]
    fn an_empty_directory_is_missing_trust_and_not_trust_in_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let error = error(&trust(dir.path().to_owned(), None));
        assert_eq!(error.reason, Reason::TrustMissing);
        assert!(error.detail.contains("no file in the directory"), "{error}");
    }

    #[test]
    fn a_directory_with_too_many_entries_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..3 {
            fs::write(dir.path().join(n.to_string()), "x").unwrap();
        }
        fs::write(dir.path().join(".hidden"), "does not count").unwrap();
        assert_eq!(directory(dir.path(), 3).unwrap().len(), 3);
        let error = directory(dir.path(), 2).unwrap_err();
        assert_eq!(error.reason, Reason::BadPem);
        assert!(error.detail.ends_with("more than 2 entries"), "{error}");
    }

    #[test]
    fn digests_differ_wherever_contents_places_or_errors_differ() {
        let part = |place: &str, bytes: &str| Part::new(place, bytes.as_bytes().to_vec());
        let trust = |ca: Vec<Part>, crl| Ok(Material::Trust(TrustMaterial { ca, crl }));
        let pair = |cert, key| {
            Ok(Material::Identity(IdentityMaterial::Pair {
                cert: part("c", cert),
                key: part("k", key),
            }))
        };
        let all = [
            pair("ab", "c"),
            pair("a", "bc"),
            trust(vec![part("x", "1")], None),
            trust(vec![part("x", "1")], Some(vec![])),
            trust(vec![part("y", "1")], None),
            trust(vec![part("x", "1"), part("y", "1")], None),
            trust(vec![part("x", "1")], Some(vec![part("y", "1")])),
            Err(Explained::new(Reason::BadPem, "1")),
            Err(Explained::new(Reason::TrustMissing, "1")),
            Err(Explained::new(Reason::TrustMissing, "2")),
        ];
        let digests: HashSet<Digest> = all.iter().map(digest).collect();
        assert_eq!(digests.len(), all.len());
    }

    #[test]
    fn system_roots_are_one_part_of_pem_certificates() {
        // A machine without any is told so.
        match system_roots() {
            Ok(part) => {
                let text = std::str::from_utf8(&part.bytes).unwrap();
                assert!(text.starts_with("-----BEGIN CERTIFICATE-----\n"));
                assert!(text.lines().all(|line| line.len() <= 64));
                assert_eq!(part.place, "system roots");
            }
            Err(error) => assert_eq!(error.reason, Reason::TrustMissing),
        }
    }

    #[test]
    fn passes_are_repeated_until_two_agree_but_not_for_ever() {
        let scripted = |script: &'static [u8]| {
            let mut passes = script.iter();
            let readings = until_agreed(|| {
                let n = passes.next().expect("no more passes than that").to_string();
                let part = Part::new("/c", n.into_bytes());
                vec![Reading {
                    key: SourceKey::Config("/c".into()),
                    material: Ok(Material::Config(part)),
                }]
            });
            assert_eq!(passes.next(), None, "fewer passes than that");
            digest(&readings[0].material)
        };
        assert_eq!(scripted(&[1, 2, 2]), scripted(&[2, 2]));
        assert_eq!(scripted(&[1, 2, 3, 1, 1]), scripted(&[1, 1]));
        assert_eq!(scripted(&[1, 2, 3, 4, 5, 6]), scripted(&[6, 6]));
    }

    #[test]
    fn all_sources_are_read_in_order_of_their_keys() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("config.toml");
        fs::write(&config, "").unwrap();
        let keys = [SourceKey::Config(config), pair(dir.path())];
        let readings = read_all(&SourceSet::from(keys.clone()), &Store::new(None));
        assert_eq!(readings.len(), 2);
        assert_eq!(readings[0].key, keys[0]);
        assert!(readings[0].material.is_ok());
        assert!(readings[1].material.is_err());
    }
}
