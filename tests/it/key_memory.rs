//! Private keys leave no copies in the process's memory: it is read as a debugger would read it.
//! Needs root, as a debugger does.

use std::cell::Cell;
use std::fs::File;
use std::hint::black_box;
use std::io;
use std::os::unix::fs::FileExt as _;

use memchr::memmem::Finder;
use rcgen::SignatureAlgorithm;
use rcgen::{PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256};

use crate::support::net::Ending;
use crate::support::pki::{Issued, Pki};
use crate::support::proxy::{Config, Proxy, Service, clean_command, path_text, serial_in_use};
use crate::support::scene::{NAME, introduce, visit};
use crate::support::upstream::{Behaviour, Options, Upstream};
use crate::support::{GUARD, POLL, until};

/// What would tell a key, apart by the form it is in.
pub(crate) struct Traces {
    /// Its numbers as DER and PKCS#8 have them: a copy of what was read.
    encoded: Vec<Vec<u8>>,
    /// Lines of its PEM, and pieces of the same base64 without line breaks.
    text: Vec<Vec<u8>>,
    /// Its numbers as aws-lc computes with them: the key itself, in use.
    live: Vec<Vec<u8>>,
}

impl Traces {
    /// Of a PEM file with one private key.
    pub(crate) fn of(pem: &str) -> Self {
        let body: Vec<&str> = pem
            .lines()
            .filter(|line| !line.starts_with("---"))
            .collect();
        let der = base64(&body.concat());
        let numbers = secrets(&der);
        assert!(
            numbers.iter().all(|number| number.len() >= 32),
            "a key has such numbers"
        );
        // Only lines with a good part of a secret: what else stands in a key, the public one above
        // all, is in the certificate too.
        let secret: Vec<bool> = {
            let mut marks = vec![false; der.len()];
            for number in &numbers {
                let mut windows = der.windows(number.len());
                let at = windows.position(|window| window == number.as_slice());
                let at = at.expect("it was read from there");
                marks[at..at + number.len()].fill(true);
            }
            marks
        };
        let weighty = |(index, line): &(usize, &&str)| {
            let from = index * 48;
            let bytes = secret[from..].iter().take(48);
            line.len() == 64 && bytes.filter(|secret| **secret).count() >= 8
        };
        let text = body.iter().enumerate().filter(weighty);
        let text: Vec<Vec<u8>> = text.map(|(_, line)| line.as_bytes().to_vec()).collect();
        let live = numbers
            .iter()
            .map(|number| number.iter().rev().copied().collect());
        Self {
            text,
            live: live.collect(),
            encoded: numbers,
        }
    }

    /// Of a PEM file as a Kubernetes Secret holds it.
    pub(crate) fn of_base64(pem: &str) -> Self {
        use base64::Engine as _;
        let text = base64::prelude::BASE64_STANDARD.encode(pem);
        // Behind the line with BEGIN, and within the secret of a key as rcgen makes them.
        let pieces = text.as_bytes()[60..120].chunks(30);
        Self {
            encoded: Vec::new(),
            text: pieces.map(<[u8]>::to_vec).collect(),
            live: Vec::new(),
        }
    }

    /// How often each of these forms is in the memory of a process.
    fn count(&self, memory: &Memory) -> Found {
        let count = |needles: &[Vec<u8>]| needles.iter().map(|needle| memory.count(needle)).sum();
        Found {
            encoded: count(&self.encoded),
            text: count(&self.text),
            live: count(&self.live),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Found {
    encoded: usize,
    text: usize,
    live: usize,
}

/// All that a process could have written, as of one moment.
struct Memory(Vec<Vec<u8>>);

impl Memory {
    fn of(pid: u32) -> Self {
        let at = |name: &str| format!("/proc/{pid}/{name}");
        let maps = std::fs::read_to_string(at("maps")).unwrap();
        let file = File::open(at("mem"))
            .unwrap_or_else(|error| panic!("{error}: this test needs root, as a debugger does"));
        let regions = maps.lines().filter_map(|line| {
            let mut fields = line.split_whitespace();
            let (range, mode) = (fields.next()?, fields.next()?);
            let (from, to) = range.split_once('-')?;
            let parse = |text| u64::from_str_radix(text, 16).ok();
            mode.starts_with("rw").then_some((parse(from)?, parse(to)?))
        });
        let read = regions.filter_map(|(from, to)| {
            let mut bytes = vec![0; usize::try_from(to - from).unwrap()];
            match file.read_exact_at(&mut bytes, from) {
                Ok(()) => Some(bytes),
                // Unmapped since.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => None,
                Err(error) if error.raw_os_error() == Some(5) => None,
                Err(error) => panic!("{from:x}-{to:x}: {error}"),
            }
        });
        let memory = Self(read.collect());
        assert!(memory.0.iter().map(Vec::len).sum::<usize>() > 100_000);
        memory
    }

    fn count(&self, needle: &[u8]) -> usize {
        let finder = Finder::new(needle);
        self.0
            .iter()
            .map(|region| finder.find_iter(region).count())
            .sum()
    }
}

fn base64(text: &str) -> Vec<u8> {
    use rustls_pki_types::pem::{PemObject as _, SectionKind};
    let lines: Vec<&str> = text
        .as_bytes()
        .chunks(64)
        .map(|line| std::str::from_utf8(line).unwrap())
        .collect();
    let pem = format!(
        "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n",
        lines.join("\n")
    );
    let (_, der) = <(SectionKind, Vec<u8>)>::from_pem_slice(pem.as_bytes()).unwrap();
    der
}

/// The secret numbers of a key in PKCS#8, PKCS#1 or SEC1 (RFC 5958, 8017, 5915, 8410).
fn secrets(der: &[u8]) -> Vec<Vec<u8>> {
    let fields = sequence(der);
    match fields.as_slice() {
        // RSAPrivateKey: version, n, e, d, p, q, …
        [_, _, _, (2, d), (2, p), (2, q), ..] => [d, p, q].map(|number| unsigned(number)).to_vec(),
        // PrivateKeyInfo: version, { algorithm }, privateKey
        [_, (0x30, _), (4, inner), ..] => match inner.first() {
            Some(0x30) => secrets(inner),
            // Ed25519: an OCTET STRING within.
            _ => vec![inner[2..].to_vec()],
        },
        // ECPrivateKey: version, privateKey, …
        [_, (4, number), ..] => vec![number.to_vec()],
        _ => panic!("a key of a kind that this test does not know"),
    }
}

fn unsigned(number: &[u8]) -> Vec<u8> {
    number
        .iter()
        .copied()
        .skip_while(|byte| *byte == 0)
        .collect()
}

/// Tags and contents.
fn sequence(der: &[u8]) -> Vec<(u8, &[u8])> {
    let (tag, mut rest, _) = element(der);
    assert_eq!(tag, 0x30);
    let mut fields = Vec::new();
    while !rest.is_empty() {
        let (tag, contents, after) = element(rest);
        fields.push((tag, contents));
        rest = after;
    }
    fields
}

fn element(der: &[u8]) -> (u8, &[u8], &[u8]) {
    let (tag, first) = (der[0], der[1]);
    let (length, header) = match first {
        0..0x80 => (usize::from(first), 2),
        _ => {
            let count = usize::from(first & 0x7f);
            let bytes = &der[2..2 + count];
            (
                bytes
                    .iter()
                    .fold(0, |sum, byte| sum << 8 | usize::from(*byte)),
                2 + count,
            )
        }
    };
    (tag, &der[header..header + length], &der[header + length..])
}

struct Scene {
    pki: Pki,
    upstream: Upstream,
}

impl Scene {
    async fn new() -> Self {
        let pki = Pki::new();
        let upstream = Options::trusting(&pki.root)
            .behaviour(Behaviour::Identify)
            .start(&pki.server())
            .await;
        Self { pki, upstream }
    }

    fn issue(&self, kind: &'static SignatureAlgorithm) -> Issued {
        self.pki.root.client(NAME).key_kind(kind).issue()
    }

    fn service(&self) -> Service {
        Service::new(NAME, self.upstream.address(), &self.pki)
    }
}

async fn in_use(proxy: &Proxy, issued: &Issued) {
    let serial = issued.serial();
    proxy
        .wait_for_service(NAME, "the new certificate", |service| {
            (serial_in_use(service) == Some(&serial)).then_some(())
        })
        .await;
}

/// Until a key is in a process's memory as the key in use, and in no other form: while its file is
/// being read, as every so often, it is.
pub(crate) async fn only_in_use(proxy: &Proxy, traces: &Traces, when: &str) {
    let last = Cell::new(None);
    let found = tokio::time::timeout(GUARD, async {
        loop {
            let found = traces.count(&Memory::of(proxy.pid()));
            if found.encoded == 0 && found.text == 0 {
                return found;
            }
            last.set(Some(found));
            tokio::time::sleep(POLL).await;
        }
    });
    match found.await {
        // Which shows that the search finds.
        Ok(found) => assert!(found.live > 0, "{when}: {found:?}"),
        Err(_) => panic!("{when}: copies stay: {:?}", last.get()),
    }
}

/// Until a key is in a process's memory in no form.
pub(crate) async fn gone(proxy: &Proxy, traces: &Traces, what: &str) {
    until(format!("{what} to be gone"), async || {
        let found = traces.count(&Memory::of(proxy.pid()));
        (found == Found::default()).then_some(())
    })
    .await;
}

/// A key is loaded, used, replaced under an open connection, and gone with that.
async fn lives_and_dies(
    proxy: &Proxy,
    service: &Service,
    (old, old_pem): (&Issued, &str),
    (new, new_pem): (&Issued, &str),
    replace: impl AsyncFnOnce(),
) {
    let (old_traces, new_traces) = (Traces::of(old_pem), Traces::of(new_pem));
    let (mut open, seen) = introduce(service).await;
    assert_eq!(seen.serial, old.serial());
    only_in_use(proxy, &old_traces, "loaded").await;
    gone(proxy, &new_traces, "what nobody has read").await;

    replace().await;
    in_use(proxy, new).await;
    assert_eq!(visit(service).await.serial, new.serial());
    open.echo(b"with the old one").await;
    only_in_use(proxy, &old_traces, "replaced, under an open connection").await;

    open.finish_sending().await;
    assert_eq!(open.ending().await, Ending::Fin);
    drop(open);
    gone(proxy, &old_traces, "the old key").await;
    only_in_use(proxy, &new_traces, "the new key").await;
}

#[tokio::test]
async fn the_search_finds_each_form_of_a_key_that_a_process_holds() {
    let scene = Scene::new().await;
    for kind in [&PKCS_ECDSA_P256_SHA256, &PKCS_ED25519, &PKCS_RSA_SHA256] {
        let issued = scene.issue(kind);
        let pem = issued.key_pem();
        let traces = Traces::of(&pem);
        let live = traces.live.concat();
        let found = traces.count(&Memory::of(std::process::id()));
        // The traces themselves lie in this process, too: whatever is held is found beside them.
        assert!(found.encoded > traces.encoded.len(), "{found:?}");
        assert!(found.text > traces.text.len(), "{found:?}");
        assert!(found.live > traces.live.len(), "{found:?}");
        black_box((issued, pem, live));
    }
}

#[tokio::test]
async fn of_a_pair_of_files_nothing_is_left_but_the_key_in_use_and_then_not_that() {
    for kind in [
        &PKCS_ECDSA_P256_SHA256,
        &PKCS_ECDSA_P384_SHA384,
        &PKCS_RSA_SHA256,
    ] {
        for traditional in [false, true] {
            let scene = Scene::new().await;
            let (old, new) = (scene.issue(kind), scene.issue(kind));
            let pem = |issued: &Issued| match traditional {
                true => issued.key_pem_traditional(),
                false => issued.key_pem(),
            };
            let (old_pem, new_pem) = (pem(&old), pem(&new));
            let put = |issued: &Issued, pem: &str| {
                let files = scene.pki.identity_files(NAME, issued);
                std::fs::write(&files.key, pem).unwrap();
                files
            };
            let service = scene.service().identity(&put(&old, &old_pem));
            let config = Config::of([service.clone()]);
            let proxy = Proxy::start(&scene.pki, &config).await;
            let replace = async || {
                put(&new, &new_pem);
            };
            lives_and_dies(
                &proxy,
                &service,
                (&old, &old_pem),
                (&new, &new_pem),
                replace,
            )
            .await;
        }
    }
}

#[tokio::test]
async fn of_a_bundle_and_of_a_refused_key_nothing_is_left_either() {
    let scene = Scene::new().await;
    let (old, new) = (
        scene.issue(&PKCS_ECDSA_P256_SHA256),
        scene.issue(&PKCS_ECDSA_P256_SHA256),
    );
    let (old_pem, new_pem) = (old.key_pem(), new.key_pem());
    let file = scene
        .pki
        .write("billing.pem", old_pem.clone() + &old.chain_pem());
    let service = scene.service().tls_text("bundle", path_text(&file));
    let proxy = Proxy::start(&scene.pki, &Config::of([service.clone()])).await;

    // It does not fit, and is refused.
    let stranger = scene.issue(&PKCS_ECDSA_P256_SHA256);
    let stranger_pem = stranger.key_pem();
    std::fs::write(&file, stranger_pem.clone() + &old.chain_pem()).unwrap();
    proxy
        .wait_for_service(NAME, "the refusal", |service| {
            let reason = &service["identity"]["refused"]["reason"];
            (reason == "rotation_in_progress" || reason == "key_mismatch").then_some(())
        })
        .await;
    gone(
        &proxy,
        &Traces::of(&stranger_pem),
        "the key that does not fit",
    )
    .await;

    let replace = async || {
        std::fs::write(&file, new.chain_pem() + &new_pem).unwrap();
    };
    lives_and_dies(
        &proxy,
        &service,
        (&old, &old_pem),
        (&new, &new_pem),
        replace,
    )
    .await;
}

#[tokio::test]
async fn of_a_credential_nothing_is_left_either() {
    let scene = Scene::new().await;
    let (old, new) = (
        scene.issue(&PKCS_ECDSA_P256_SHA256),
        scene.issue(&PKCS_ECDSA_P256_SHA256),
    );
    let (old_pem, new_pem) = (old.key_pem(), new.key_pem());
    let put = |issued: &Issued, pem: &str| {
        scene.pki.write("credentials/b.crt", issued.chain_pem());
        scene.pki.write("credentials/b.key", pem);
    };
    put(&old, &old_pem);
    let service = scene.service().tls_text("credential", "b");
    let mut command = clean_command();
    command.env("CREDENTIALS_DIRECTORY", scene.pki.path("credentials"));
    let mut proxy = Proxy::launch(command, &scene.pki, &Config::of([service.clone()]));
    proxy.wait_until_ready().await;
    let replace = async || put(&new, &new_pem);
    lives_and_dies(
        &proxy,
        &service,
        (&old, &old_pem),
        (&new, &new_pem),
        replace,
    )
    .await;
}
