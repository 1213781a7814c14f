//! Measures what tlsward and its peers cost: CPU time per GiB, per round trip and per new
//! connection, latency, and memory per idle connection. `bench/README.md` has the method and its limits.
//!
//! Generator and upstream share CPU 0, the proxy has CPU 1 for itself. [`proxy`] has tlsward and its
//! peers, [`proof`] what each must show before it is measured, [`stage`] the rounds, [`workload`]
//! the work, [`upstream`] the server, [`machine`] and [`process`] the instruments, [`report`] and
//! [`budget`] what comes of it.

use std::fmt;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, ValueEnum};
use rustls::SupportedCipherSuite;
use rustls::crypto::{SupportedKxGroup, aws_lc_rs};

use self::budget::Budget;
use self::machine::Awake;
use self::pki::Pki;
use self::proxy::peers::{self, Choice, PeerBinary};
use self::proxy::tlsward::Tlsward;
use self::proxy::{Role, Variants};
use self::report::{Conditions, Report};
use self::stage::Stage;
use self::workload::{Form, Workload};

mod budget;
mod machine;
mod pki;
mod process;
mod proof;
mod proxy;
mod report;
mod stage;
mod upstream;
mod workload;

/// Measures what tlsward costs, side by side with its peers.
///
/// Exit code: 0 when every limit of bench/budget.toml is met, 1 when one is not, or tlsward broke
/// in a workload, 2 when nothing could be measured.
#[derive(Debug, Parser)]
#[command(name = "tlsward-bench", version)]
struct Options {
    /// Under two minutes: fewer workloads, less work and 2 rounds
    #[arg(long)]
    quick: bool,
    /// Only workloads whose name begins so, also such as the quick form has not; may be repeated
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Which peers to measure beside it: none, all that are here, or names separated by commas;
    /// "nginx" is nginx and nginx-64k
    #[arg(long, value_name = "PEERS", default_value = "all")]
    peers: Choice,
    /// Where a peer's program is, such as envoy=/opt/envoy/bin/envoy; may be repeated
    #[arg(long, value_name = "PEER=FILE")]
    peer_binary: Vec<PeerBinary>,
    /// Rounds of each workload [default: 7, quick: 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    rounds: Option<u16>,
    /// Also write the results as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Also write a table in Markdown
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Also draw a picture
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Keep the configuration with which each proxy ran, by proxy and workload
    #[arg(long, value_name = "DIR")]
    keep_configs: Option<PathBuf>,
    /// The cipher suite that the upstream takes
    #[arg(long, value_enum, default_value_t = Suite::Aes128)]
    suite: Suite,
    /// The key exchange group that the upstream takes
    #[arg(long, value_enum, default_value_t = Group::X25519)]
    group: Group,
    /// Measure this tlsward instead of the release build of this workspace
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Stay in the host's network namespace
    #[arg(long)]
    no_namespace: bool,
    /// This process is already in its own namespace
    #[arg(long, hide = true)]
    in_namespace: bool,
}

/// Suites of TLS 1.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Suite {
    Aes128,
    Aes256,
}

impl Suite {
    fn rustls(self) -> SupportedCipherSuite {
        match self {
            Self::Aes128 => aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
            Self::Aes256 => aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
        }
    }

    fn tls_name(self) -> &'static str {
        match self {
            Self::Aes128 => "TLS_AES_128_GCM_SHA256",
            Self::Aes256 => "TLS_AES_256_GCM_SHA384",
        }
    }
}

/// Key exchange groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Group {
    X25519,
    X25519mlkem768,
}

impl Group {
    fn rustls(self) -> &'static dyn SupportedKxGroup {
        match self {
            Self::X25519 => aws_lc_rs::kx_group::X25519,
            Self::X25519mlkem768 => aws_lc_rs::kx_group::X25519MLKEM768,
        }
    }

    fn tls_name(self) -> &'static str {
        match self {
            Self::X25519 => "X25519",
            Self::X25519mlkem768 => "X25519MLKEM768",
        }
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    match run(&options) {
        Ok(report) => {
            print!("{}", report.text());
            if report.within_budget() {
                ExitCode::SUCCESS
            } else {
                ExitCode::from(1)
            }
        }
        Err(error) => {
            eprintln!("tlsward-bench: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(options: &Options) -> Result<Report, Failed> {
    let workloads = chosen(options)?;
    let budget = Budget::built_in().map_err(Failed::other("bench/budget.toml"))?;
    let namespace = network(options)?;
    // Before pinning: cargo may have to build, and that on all CPUs.
    let tlsward = Tlsward::find(options.binary.clone()).map_err(Failed::io("tlsward"))?;
    let (found, mut left_out) = peers::find(&options.peers, &options.peer_binary);
    let mut proxies: Variants = vec![Box::new(tlsward)];
    proxies.extend(found);
    let open_files = machine::raise_open_files().map_err(Failed::io("open files"))?;
    let awake = Awake::hold();
    if let Err(error) = &awake {
        eprintln!("/dev/cpu_dma_latency: {error}; wake-ups will be billed to the proxy");
    }
    machine::pin_this_thread(machine::GENERATOR_CPU).map_err(Failed::io("pinning"))?;

    let directory = tempfile::tempdir().map_err(Failed::io("a directory for the proxies"))?;
    let pki = Pki::new().map_err(Failed::other("making certificates"))?;
    let files = pki
        .write(directory.path())
        .map_err(Failed::io("writing certificates"))?;
    let stage = Stage {
        form: Form {
            quick: options.quick,
            open_files,
        },
        suite: options.suite,
        group: options.group,
        pki: &pki,
        files,
        directory: directory.path(),
        keep: options.keep_configs.as_deref(),
    };
    let wanted = options
        .rounds
        .map_or(if options.quick { 2 } else { 7 }, usize::from);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failed::io("the runtime"))?;
    eprintln!("proving {} ...", names(&proxies).join(", "));
    let (proxies, unproven) = runtime
        .block_on(stage.proven(proxies))
        .map_err(Failed::io("proving"))?;
    if !proxies.iter().any(|proxy| proxy.role() == Role::Subject) {
        let reasons: Vec<_> = unproven.iter().map(|out| out.reason.as_str()).collect();
        return Err(Failed(format!("tlsward: {}", reasons.join("; "))));
    }
    left_out.extend(unproven);
    let mut series = Vec::new();
    for workload in workloads {
        eprint!("{} ...", workload.name());
        let began = Instant::now();
        let rounds = workload.rounds(wanted);
        let measured = runtime.block_on(stage.measure(workload, &proxies, rounds));
        eprintln!(" {:.0} s", began.elapsed().as_secs_f64());
        let (measured, without) = measured.map_err(Failed::io(workload.name()))?;
        series.extend(measured);
        left_out.extend(without);
    }

    let conditions = Conditions {
        machine: machine::Facts::gather(namespace, awake.is_ok()),
        tls: "TLS 1.3",
        suite: options.suite.tls_name(),
        group: options.group.tls_name(),
        keys: "all keys P-256",
        server_chain_bytes: pki.server().bytes(),
        client_chain_bytes: pki.client().bytes(),
        resumption: "only in connect-resumed (2 stateless tickets per handshake); elsewhere the upstream sends no tickets",
        pinning: format!(
            "proxy on CPU {}, generator and upstream on CPU {}",
            machine::PROXY_CPU,
            machine::GENERATOR_CPU
        ),
        open_files,
        quick: options.quick,
        rounds: wanted,
        proxies: proxies
            .iter()
            .map(|proxy| (proxy.name(), proxy.version()))
            .collect(),
    };
    let report = Report::new(conditions, &series, left_out, &budget);
    write(&report, options)?;
    Ok(report)
}

fn names(proxies: &Variants) -> Vec<&'static str> {
    proxies.iter().map(|proxy| proxy.name()).collect()
}

fn write(report: &Report, options: &Options) -> Result<(), Failed> {
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&report).map_err(Failed::other("JSON"))?;
        fs::write(path, text).map_err(Failed::io("writing the JSON file"))?;
    }
    if let Some(path) = &options.markdown {
        fs::write(path, report.markdown()).map_err(Failed::io("writing the Markdown file"))?;
    }
    if let Some(path) = &options.svg {
        fs::write(path, report.picture()).map_err(Failed::io("writing the picture"))?;
    }
    Ok(())
}

fn chosen(options: &Options) -> Result<Vec<Workload>, Failed> {
    let only = &options.only;
    let names = || Workload::ALL.map(Workload::name).join(", ");
    for wanted in only {
        if !Workload::ALL.iter().any(|w| w.name().starts_with(wanted)) {
            let what = format!("no workload begins with {wanted:?}; there are {}", names());
            return Err(Failed(what));
        }
    }
    let is_chosen = |workload: &Workload| {
        if only.is_empty() {
            !options.quick || workload.is_in_quick()
        } else {
            only.iter().any(|name| workload.name().starts_with(name))
        }
    };
    Ok(Workload::ALL.into_iter().filter(is_chosen).collect())
}

/// True in a namespace of our own. Where there can be none the run goes on outside and says so.
fn network(options: &Options) -> Result<bool, Failed> {
    if options.in_namespace {
        machine::furnish_namespace().map_err(Failed::io("setting up the network namespace"))?;
        return Ok(true);
    }
    if !options.no_namespace {
        let error = machine::enter_namespace("--in-namespace");
        eprintln!("no network namespace of its own: {error}");
    }
    Ok(false)
}

/// Why nothing was measured.
#[derive(Debug)]
struct Failed(String);

impl Failed {
    fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        Self::other(what)
    }

    fn other<E: fmt::Display>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self(format!("{what}: {error}"))
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
