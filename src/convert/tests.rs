//! What every converter must hold to, over files in memory.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use super::*;
use crate::config::{Config, Service, Verify};

mod ghostunnel;
mod kong_env;
mod nginx;
mod stunnel;

/// Files by their absolute paths.
#[derive(Default)]
struct Memory(BTreeMap<PathBuf, Vec<u8>>);

impl Memory {
    fn with(mut self, path: &str, text: &str) -> Self {
        self.0.insert(path.into(), text.into());
        self
    }
}

impl Reader for Memory {
    fn read(&self, path: &Path, limit: usize) -> io::Result<Vec<u8>> {
        let bytes = self.0.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(bytes.iter().take(limit + 1).copied().collect())
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        let inside = self.0.keys().filter(|it| it.parent() == Some(directory));
        let names: Vec<String> = inside
            .filter_map(|it| Some(it.file_name()?.to_str()?.to_owned()))
            .collect();
        match names.is_empty() {
            true => Err(io::ErrorKind::NotFound.into()),
            false => Ok(names),
        }
    }
}

/// A conversion that succeeds, of `/etc/app/source` and other files.
fn converted(product: Product, text: &str, others: Memory) -> Converted {
    let files = others.with("/etc/app/source", text);
    convert(product, &["source".into()], &files, Path::new("/etc/app"))
        .unwrap_or_else(|mistake| panic!("{mistake}"))
}

/// One that fails, in words.
fn refused(product: Product, text: &str, others: Memory) -> String {
    let files = others.with("/etc/app/source", text);
    convert(product, &["source".into()], &files, Path::new("/etc/app"))
        .expect_err("it cannot be understood")
        .to_string()
}

impl Converted {
    /// The file as tlsward reads it.
    fn parsed(&self) -> Config {
        Config::parse(
            &self.config,
            Path::new("/etc/tlsward/config.toml"),
            &BTreeMap::new(),
        )
        .unwrap_or_else(|problems| {
            let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
            panic!("{}\nin:\n{}", problems.join("\n"), self.config)
        })
    }

    /// The only service that is on.
    fn service(&self) -> Service {
        let services: Vec<Service> = self.parsed().services.into_values().collect();
        match <[Service; 1]>::try_from(services) {
            Ok([service]) => service,
            Err(services) => panic!("{} services are on:\n{}", services.len(), self.config),
        }
    }

    /// The notes on a directive.
    fn notes_on(&self, directive: &str) -> Vec<&draft::Note> {
        let notes = self.notes.iter().map(|(_, note)| note);
        notes.filter(|note| note.directive == directive).collect()
    }

    #[track_caller]
    fn note_on(&self, directive: &str) -> &draft::Note {
        match &*self.notes_on(directive) {
            [note] => note,
            notes => panic!("not one note on {directive}: {notes:?}\n{}", self.report()),
        }
    }
}

#[test]
fn text_of_the_source_stays_text_whatever_is_in_it() {
    let awkward = "a\"b\\c\n\t${HOME} $${x} \u{1}é";
    let text = format!(
        "[services.a]\nlisten = \"127.0.0.1:1\"\nupstream = \"a:1\"\n[services.a.tls]\nca = \"/x\"\ncert = {}\nkey = \"/k\"\n",
        draft::quoted(awkward)
    );
    let path = Path::new("/etc/tlsward/config.toml");
    let config = Config::parse(&text, path, &BTreeMap::new()).unwrap();
    let identity = config.services.into_values().next().unwrap().identity;
    assert!(
        format!("{identity:?}").contains(&format!("{:?}", Path::new("/etc/tlsward").join(awkward))),
        "{identity:?}"
    );
}

#[test]
fn too_large_too_many_and_too_deep_are_refused_with_a_fix() {
    let large = "#".repeat(sources::MAX_FILE + 1);
    let said = refused(Product::Stunnel, &large, Memory::default());
    assert!(
        said.contains("too large") && said.contains("fix: "),
        "{said}"
    );

    let itself = "include = /etc/app/d\n";
    let said = refused(
        Product::Stunnel,
        itself,
        Memory::default().with("/etc/app/d/a", itself),
    );
    assert!(said.contains("includes itself"), "{said}");

    let deep = (0..40).fold(Memory::default(), |files, n| {
        files.with(&format!("/d{n}/a"), &format!("include = /d{}\n", n + 1))
    });
    let said = refused(Product::Stunnel, "include = /d0\n", deep);
    assert!(said.contains("more than 16 deep"), "{said}");

    let many = (0..1001).map(|n| {
        format!(
            "[s{n}]\nclient = yes\naccept = 127.0.0.1:{}\nconnect = a:1\n",
            n + 1
        )
    });
    let said = refused(
        Product::Stunnel,
        &many.collect::<String>(),
        Memory::default(),
    );
    assert!(said.contains("more than 1000 services"), "{said}");

    let said = convert(
        Product::Stunnel,
        &["nowhere".into()],
        &Memory::default(),
        Path::new("/"),
    );
    let said = said.expect_err("there is no such file").to_string();
    assert!(said.starts_with("nowhere: cannot read /nowhere"), "{said}");
}

#[test]
fn two_that_want_one_listener_are_not_both_switched_on() {
    let text = "[a]\nclient=yes\naccept=0.0.0.0:1\nconnect=a:1\n[b]\nclient=yes\naccept=127.0.0.1:1\nconnect=b:1\n";
    let done = converted(Product::Stunnel, text, Memory::default());
    assert_eq!(done.service().name.as_str(), "a");
    assert!(done.needs_somebody());
    assert!(
        done.report()
            .contains("listens on 127.0.0.1:1, which a has already"),
        "{}",
        done.report()
    );
}

#[test]
fn a_service_may_have_the_admin_endpoint_s_usual_port() {
    let text = "[a]\nclient=yes\naccept=0.0.0.0:9901\nconnect=a:1\n[b]\nclient=yes\naccept=127.0.0.1:9902\nconnect=b:1\n";
    let config = converted(Product::Stunnel, text, Memory::default()).parsed();
    assert_eq!(config.services.len(), 2);
    let listen = config.admin.listen.map(|listen| listen.to_string());
    assert_eq!(listen.as_deref(), Some("127.0.0.1:9903"));
}

#[test]
fn names_become_plain_and_unique() {
    let section = |name: &str, port: u16| {
        format!("[{name}]\nclient=yes\naccept=127.0.0.1:{port}\nconnect=a:1\n")
    };
    let long = "x".repeat(80);
    let names = ["a.b", "a b", "a-b", "é", "[]", &long, &long];
    let text: String = names
        .iter()
        .zip(1..)
        .map(|(name, port)| section(name, port))
        .collect();
    let done = converted(Product::Stunnel, &text, Memory::default());
    let names: Vec<&str> = done
        .services
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    let (full, second) = (&long[..63], format!("{}-2", &long[..61]));
    assert_eq!(
        names,
        [
            "a-b",
            "a-b-2",
            "a-b-3",
            "service",
            "service-2",
            full,
            &second
        ]
    );
    assert_eq!(done.parsed().services.len(), 7);
}

#[test]
fn nothing_is_ever_written_that_verifies_nothing() {
    let text = "[a]\nclient=yes\naccept=127.0.0.1:1\nconnect=a:1\nverify = 0\n";
    let done = converted(Product::Stunnel, text, Memory::default());
    assert_eq!(done.service().tls.verify, Verify::Full);
    assert!(!done.config.contains("verify = \"none\""));
}

/// Text out of pieces that mean something to one of the products, and of any characters.
fn scrap() -> impl proptest::strategy::Strategy<Value = String> {
    use proptest::prelude::*;
    let pieces = prop::sample::select(vec![
        "[a]\n",
        "client = yes\n",
        "accept = ",
        "connect = ",
        "127.0.0.1:1\n",
        ":::",
        "CAfile = /c\n",
        "verify = 3\n",
        "include = /i\n",
        "stream {",
        "server {",
        "listen ",
        "proxy_pass ",
        "proxy_ssl on;",
        "proxy_ssl_name $x;",
        "set $x $x$x;",
        "}",
        "{",
        ";",
        "\"",
        "'",
        "\\",
        "$",
        "${",
        "\n",
        " ",
        "include i;",
        "upstream u {",
        "ghostunnel client ",
        "--listen ",
        "--listen=",
        "--target=a:1 ",
        "--cert ",
        "--no-syslog ",
        "[Service]\nExecStart=",
        "EnvironmentFile=/i\n",
        "FROM ghostunnel\n",
        "CMD [\"client\"]\n",
        "args:\n- --listen\n",
        "command: [",
        "env:\n- name: CERT_PATH\n",
        "  value: x\n",
        "KONG_CLIENT_SSL=on\n",
        "KONG_NGINX_PROXY_PROXY_SSL_VERIFY_DEPTH=",
        "KONG_NGINX_PROXY_PROXY_SSL_CRL=/\u{0}\n",
        "export ",
        "%i",
        "[::1]:1",
        "allow 10.0.0.1;",
        "deny all;",
        "unix:/a",
        "= ",
        ": ",
        "#",
        "- ",
        "-1",
        "99999999999",
        "é",
    ]);
    let piece = prop_oneof![9 => pieces.prop_map(str::to_owned), 1 => any::<String>()];
    prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(2000))]

    /// What comes out can be read, verifies, and says the same again; or it is refused in words.
    #[test]
    fn no_text_breaks_a_converter_and_none_makes_it_write_what_cannot_be_read(text in scrap(), other in scrap()) {
        let files = Memory::default()
            .with("/etc/app/source", &text)
            .with("/etc/app/i", &other)
            .with("/i", &other);
        for product in [Product::Stunnel, Product::Nginx, Product::Ghostunnel, Product::KongEnv] {
            match convert(product, &["source".into()], &files, Path::new("/etc/app")) {
                Ok(done) => {
                    let config = done.parsed();
                    let on = done.services.iter().filter(|(_, off)| !off).count();
                    assert_eq!(config.services.len(), on, "{}", done.config);
                    for service in config.services.values() {
                        assert_ne!(service.tls.verify, Verify::None, "{}", done.config);
                    }
                    for (_, note) in &done.notes {
                        assert!(!note.was.is_empty() && !note.now.is_empty(), "{note:?}");
                    }
                }
                Err(mistake) => assert!(!mistake.reason.is_empty() && !mistake.fix.is_empty(), "{mistake}"),
            }
        }
    }
}
