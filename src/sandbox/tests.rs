//! Every rule by attempts: the same attempts are made by a process inside the sandbox and by one
//! outside, so that none is refused for another reason.
//!
//! A sandbox cannot be left, so each test runs this very program again for one `#[ignore]`d test, with
//! a variable that says which attempts to make, and reads what it prints.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use tlsward_sys::attempts;

use super::*;

const VARIABLE: &str = "TLSWARD_SANDBOX_ATTEMPT";
const EPERM: i32 = 1;
const EACCES: i32 = 13;
const ENOSYS: i32 = 38;

/// What one run may do, as the child finds it again.
struct Place {
    _guard: tempfile::TempDir,
    base: PathBuf,
    allowed: u16,
    other: TcpListener,
    _served: TcpListener,
    _abstract: UnixListener,
    name: String,
}

impl Place {
    fn new() -> Self {
        let guard = tempfile::tempdir().unwrap();
        let base = guard.path().canonicalize().unwrap();
        for (file, text) in [("in/certs/tls.crt", "cert"), ("out/shadow", "secret")] {
            let file = base.join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        fs::create_dir(base.join("run")).unwrap();
        let loopback = (Ipv4Addr::LOCALHOST, 0);
        let served = TcpListener::bind(loopback).unwrap();
        let other = TcpListener::bind(loopback).unwrap();
        let name = format!("tlsward-{}", base.file_name().unwrap().display());
        let address = UnixAddress::from_abstract_name(&name).unwrap();
        Self {
            allowed: served.local_addr().unwrap().port(),
            other,
            _served: served,
            _abstract: UnixListener::bind_addr(&address).unwrap(),
            name,
            base,
            _guard: guard,
        }
    }

    /// What the attempts answer, by name: `None` is success, else the error's number.
    fn attempts(&self, layers: &str) -> BTreeMap<String, Option<i32>> {
        let other = self.other.local_addr().unwrap().port();
        let setting = format!(
            "{layers} {} {} {other} {}",
            self.base.display(),
            self.allowed,
            self.name
        );
        let output = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "sandbox::tests::inside",
                "--ignored",
                "--nocapture",
            ])
            .env(VARIABLE, setting)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "{text}\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let answers: BTreeMap<_, _> = text
            .lines()
            .filter_map(|line| line.strip_prefix("attempt: "))
            .map(|line| {
                let (name, answer) = line.rsplit_once(' ').unwrap();
                (name.to_owned(), answer.parse().ok())
            })
            .collect();
        assert!(answers.len() > 20, "{text}");
        answers
    }
}

#[test]
#[ignore = "made by the other tests, in a process of its own"]
fn inside() {
    #[expect(
        clippy::disallowed_methods,
        reason = "how a test tells its child what to do"
    )]
    let setting = std::env::var(VARIABLE).expect("the other tests say what to attempt");
    let mut words = setting.split(' ');
    let mut next = || words.next().unwrap().to_owned();
    let (layers, base) = (next(), PathBuf::from(next()));
    let (allowed, other): (u16, u16) = (next().parse().unwrap(), next().parse().unwrap());
    let name = next();

    let rules = Rules {
        read: BTreeSet::from([base.join("in")]),
        system: BTreeSet::from(["/usr/lib".into(), "/lib".into(), "/etc/hosts".into()]),
        sockets: BTreeSet::from([base.join("run")]),
        connect: Ports::These([allowed].into()),
        bind: Ports::These([allowed, free_port()].into()),
        kubernetes: false,
        abstract_sockets: false,
        left_out: Vec::new(),
    };
    let free = match &rules.bind {
        Ports::These(ports) => *ports.iter().find(|port| **port != allowed).unwrap(),
        Ports::Any(_) => unreachable!(),
    };
    let unbound = free_port();
    // Opened before, as a proxy's connections are not.
    let fresh = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let sandbox = match layers.as_str() {
        "none" => Sandbox::off("a test"),
        layers => Sandbox::enter_layers(
            rules,
            Layers {
                landlock: layers.contains("landlock"),
                seccomp: layers.contains("seccomp"),
            },
        ),
    };
    // Threads that are started later are bound as well.
    let attempts = move || {
        let mut tell = |name: &str, answer: io::Result<()>| {
            let answer = match answer {
                Ok(()) => "ok".to_owned(),
                Err(error) => error
                    .raw_os_error()
                    .map_or_else(|| "?".to_owned(), |it| it.to_string()),
            };
            println!("attempt: {name} {answer}");
        };
        files(&base, &mut tell);
        sockets(&base, [allowed, other, free, unbound], &name, &mut tell);
        // Without the flag it is "not connected" everywhere.
        let fresh = TcpStream::from(fresh);
        tell("send", attempts::send_and_connect(&fresh, false));
        tell("send and connect", attempts::send_and_connect(&fresh, true));
        for name in attempts::CALLS {
            tell(
                name,
                attempts::call(name, std::os::unix::process::parent_id()),
            );
        }
        tell("exec", Command::new("/bin/true").status().map(drop));
        io::stdout().flush().unwrap();
    };
    std::thread::spawn(attempts).join().unwrap();
    drop(sandbox);
}

fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}

fn files(base: &Path, tell: &mut impl FnMut(&str, io::Result<()>)) {
    let certs = base.join("in/certs");
    tell(
        "read what is named",
        fs::File::open(certs.join("tls.crt")).map(drop),
    );
    tell("list what is named", fs::read_dir(&certs).map(drop));
    tell(
        "read another file",
        fs::File::open(base.join("out/shadow")).map(drop),
    );
    tell(
        "list another directory",
        fs::read_dir(base.join("out")).map(drop),
    );
    tell(
        "read another process",
        fs::File::open("/proc/1/status").map(drop),
    );
    let write = fs::OpenOptions::new()
        .write(true)
        .open(certs.join("tls.crt"));
    tell("write what is named", write.map(drop));
    tell(
        "make a file",
        fs::File::create_new(certs.join("new")).map(drop),
    );
    let _ = fs::remove_file(certs.join("new"));
    tell("make a directory", fs::create_dir(base.join("in/new")));
    let _ = fs::remove_dir(base.join("in/new"));
    tell("rename", rename_there_and_back(&certs));
    tell("remove", remove_and_restore(&base.join("in/removable")));
}

fn rename_there_and_back(certs: &Path) -> io::Result<()> {
    fs::rename(certs.join("tls.crt"), certs.join("moved"))?;
    fs::rename(certs.join("moved"), certs.join("tls.crt"))
}

/// Made by the test itself, which is outside.
fn remove_and_restore(path: &Path) -> io::Result<()> {
    fs::remove_file(path)?;
    fs::write(path, "x")
}

fn sockets(
    base: &Path,
    [allowed, other, free, unbound]: [u16; 4],
    name: &str,
    tell: &mut impl FnMut(&str, io::Result<()>),
) {
    let at = |port| (Ipv4Addr::LOCALHOST, port);
    tell("dial", TcpStream::connect(at(allowed)).map(drop));
    tell("dial another port", TcpStream::connect(at(other)).map(drop));
    tell("listen", TcpListener::bind(at(free)).map(drop));
    tell(
        "listen on another port",
        TcpListener::bind(at(unbound)).map(drop),
    );
    tell("UDP", UdpSocket::bind(at(0)).map(drop));
    let socket = base.join("run/x.sock");
    tell("make a socket", UnixListener::bind(&socket).map(drop));
    tell("remove a socket", fs::remove_file(&socket));
    tell(
        "make a socket elsewhere",
        UnixListener::bind(base.join("out/x.sock")).map(drop),
    );
    let _ = fs::remove_file(base.join("out/x.sock"));
    let address = UnixAddress::from_abstract_name(name).unwrap();
    tell(
        "an abstract socket",
        UnixStream::connect_addr(&address).map(drop),
    );
    let pair = UnixStream::pair().and_then(|(mut one, _other)| one.write_all(b"x"));
    tell("a pair", pair);
}

/// The answers outside and inside, and what inside is to be refused with which error. What is not
/// refused inside must be answered as it is outside.
fn compare(layers: &str, refused: &[(&str, i32)]) {
    let place = Place::new();
    fs::write(place.base.join("in/removable"), "x").unwrap();
    let outside = place.attempts("none");
    let inside = place.attempts(layers);
    let mut wrong = String::new();
    for (name, answer) in &inside {
        let expected = refused
            .iter()
            .find(|(it, _)| it == name)
            .map(|(_, error)| *error);
        match expected {
            Some(error) if *answer != Some(error) => {
                wrong += &format!("{name}: {answer:?} and not {error}\n");
            }
            Some(error) if outside[name] == Some(error) => {
                wrong += &format!("{name}: refused with {error} outside too: proves nothing\n");
            }
            None if *answer != outside[name] => {
                wrong += &format!("{name}: {answer:?} inside, {:?} outside\n", outside[name]);
            }
            Some(_) | None => {}
        }
    }
    for (name, _) in refused
        .iter()
        .filter(|(name, _)| !inside.contains_key(*name))
    {
        wrong += &format!("{name}: was not attempted\n");
    }
    assert!(wrong.is_empty(), "{wrong}\noutside: {outside:?}");
}

#[test]
fn landlock_holds_files_ports_and_abstract_sockets() {
    compare(
        "landlock",
        &[
            ("read another file", EACCES),
            ("list another directory", EACCES),
            ("read another process", EACCES),
            ("write what is named", EACCES),
            ("make a file", EACCES),
            ("make a directory", EACCES),
            ("rename", EACCES),
            ("remove", EACCES),
            ("exec", EACCES),
            ("dial another port", EACCES),
            ("listen on another port", EACCES),
            ("make a socket elsewhere", EACCES),
            ("an abstract socket", EPERM),
            ("kill", EPERM),
            ("tkill", EPERM),
            ("tgkill", EPERM),
        ],
    );
}

#[test]
fn seccomp_refuses_every_call_that_is_not_in_the_list() {
    let mut refused: Vec<(&str, i32)> = attempts::CALLS
        .iter()
        .map(|name| (*name, if *name == "clone3" { ENOSYS } else { EPERM }))
        .collect();
    refused.extend([
        ("make a directory", EPERM),
        ("rename", EPERM),
        ("exec", EPERM),
        ("send and connect", EPERM),
    ]);
    compare("seccomp", &refused);
}
