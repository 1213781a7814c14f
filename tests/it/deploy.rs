//! The configurations that `deploy/` puts into ConfigMaps. That what is rendered from there holds
//! these very files is tests/deploy/check.py's to say.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use tlsward::config::Config;
use tlsward::config::kubernetes::Cluster;

/// Files called *.toml, at any depth.
fn configurations(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let path = entry.path();
        // A link is what it leads to, which is walked in its own place.
        if entry.file_type().unwrap().is_dir() {
            configurations(&path, found);
        } else if path
            .extension()
            .is_some_and(|extension| extension == "toml")
        {
            found.push(path);
        }
    }
}

#[test]
fn every_configuration_of_the_manifests_is_without_mistakes() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    configurations(&root.join("deploy"), &mut found);
    configurations(&root.join("tests/deploy"), &mut found);
    assert!(found.len() >= 7, "only {found:?}");
    let in_a_pod = Cluster {
        own_namespace: Some("shop".to_owned()),
        ..Cluster::default()
    };
    let mut wrong = String::new();
    for path in found {
        let text = fs::read_to_string(&path).unwrap();
        // Named as in the pod, which relative paths would count from.
        let place = Path::new("/etc/tlsward/config.toml");
        if let Err(problems) = Config::parse_with(&text, place, &BTreeMap::new(), &in_a_pod) {
            wrong += &format!("{}:\n{problems}\n", path.display());
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}
