//! Measures what tlsward costs: CPU time per GiB, per round trip and per new connection, and
//! memory per idle connection. `bench/README.md` has the method and its limits.
//!
//! Generator and upstream share CPU 0, the proxy has CPU 1 for itself; see [`machine`],
//! [`upstream`], [`proxy`], [`workload`] and [`report`].

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use rustls::SupportedCipherSuite;
use rustls::crypto::{SupportedKxGroup, aws_lc_rs};

use self::budget::Budget;
use self::machine::Awake;
use self::pki::{Pki, PkiFiles, SERVER_NAME};
use self::proxy::tlsward::Tlsward;
use self::proxy::{Proxy, Running, Setup, free_address};
use self::report::{Conditions, Report, Round, Series};
use self::upstream::{Policy, Upstream};
use self::workload::{Workload, World};

mod budget;
mod machine;
mod pki;
mod process;
mod proxy;
mod report;
mod upstream;
mod workload;

/// Many times what the longest round takes on a busy machine; past that something hangs.
const ROUND_DEADLINE: Duration = Duration::from_secs(180);

/// Measures what tlsward costs.
///
/// Exit code: 0 when every limit of bench/budget.toml is met, 1 when one is exceeded, 2 when
/// nothing could be measured.
#[derive(Debug, Parser)]
#[command(name = "tlsward-bench", version)]
struct Options {
    /// Under two minutes: less work and 3 rounds
    #[arg(long)]
    quick: bool,
    /// Only workloads whose name begins so; may be repeated
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Rounds of each workload [default: 7, quick: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    rounds: Option<u16>,
    /// Also write the results as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
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
    let workloads = chosen(&options.only)?;
    let budget = Budget::built_in().map_err(Failed::other("bench/budget.toml"))?;
    let namespace = network(options)?;
    // Before pinning: cargo may have to build, and that on all CPUs.
    let proxies: Vec<Box<dyn Proxy>> = vec![Box::new(
        Tlsward::find(options.binary.clone()).map_err(Failed::io("tlsward"))?,
    )];
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
        options,
        pki: &pki,
        files,
        directory: directory.path(),
    };
    let wanted = options
        .rounds
        .map_or(if options.quick { 3 } else { 7 }, usize::from);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failed::io("the runtime"))?;
    let mut series = Vec::new();
    for workload in workloads {
        eprintln!("{} ...", workload.name());
        let rounds = workload.rounds(wanted);
        let measured = runtime.block_on(stage.measure(workload, &proxies, rounds));
        series.extend(measured.map_err(Failed::io(workload.name()))?);
    }

    let (server_chain_bytes, client_chain_bytes) = pki.chain_bytes();
    let conditions = Conditions {
        machine: machine::Facts::gather(namespace, awake.is_ok()),
        tls: "TLS 1.3",
        suite: options.suite.tls_name(),
        group: options.group.tls_name(),
        keys: "all keys P-256",
        server_chain_bytes,
        client_chain_bytes,
        resumption: "only in connect-resumed (2 stateless tickets per handshake); elsewhere the upstream sends no tickets",
        pinning: format!(
            "proxy on CPU {}, generator and upstream on CPU {}",
            machine::PROXY_CPU,
            machine::GENERATOR_CPU
        ),
        open_files,
        quick: options.quick,
        rounds: wanted,
        proxies: proxies.iter().map(|proxy| proxy.version()).collect(),
    };
    let report = Report::new(conditions, &series, &budget);
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&report).map_err(Failed::other("JSON"))?;
        fs::write(path, text).map_err(Failed::io("writing the JSON file"))?;
    }
    Ok(report)
}

fn chosen(only: &[String]) -> Result<Vec<Workload>, Failed> {
    let names = || Workload::ALL.map(Workload::name).join(", ");
    for wanted in only {
        if !Workload::ALL.iter().any(|w| w.name().starts_with(wanted)) {
            let what = format!("no workload begins with {wanted:?}; there are {}", names());
            return Err(Failed(what));
        }
    }
    let is_chosen =
        |w: &Workload| only.is_empty() || only.iter().any(|o| w.name().starts_with(o.as_str()));
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

/// What all series share.
struct Stage<'a> {
    options: &'a Options,
    pki: &'a Pki,
    files: PkiFiles,
    directory: &'a Path,
}

impl Stage<'_> {
    /// The rounds of the proxies take turns, so that a slow phase of the machine meets all.
    async fn measure(
        &self,
        workload: Workload,
        proxies: &[Box<dyn Proxy>],
        rounds: usize,
    ) -> io::Result<Vec<Series>> {
        let mut contenders = Vec::new();
        for proxy in proxies {
            let series = Series {
                workload,
                proxy: proxy.name(),
                rounds: Vec::new(),
            };
            contenders.push((
                proxy.as_ref(),
                self.start(workload, proxy.as_ref()).await?,
                series,
            ));
        }
        for number in 0..rounds {
            for (proxy, started, series) in &mut contenders {
                if number > 0 && workload.needs_fresh_proxy() {
                    *started = self.start(workload, *proxy).await?;
                }
                let world = World {
                    running: &started.running,
                    upstream: &started.upstream,
                };
                let before = machine::plain_copy()?;
                let round = workload.round(&world, self.options.quick);
                let sample = tokio::time::timeout(ROUND_DEADLINE, round)
                    .await
                    .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "a round hangs"))??;
                let after = machine::plain_copy()?;
                series.rounds.push(Round {
                    sample,
                    plain_copy: before.max(after),
                    load: machine::load(),
                });
            }
        }
        Ok(contenders.into_iter().map(|(.., series)| series).collect())
    }

    async fn start(&self, workload: Workload, proxy: &dyn Proxy) -> io::Result<Started> {
        let policy = Policy {
            suite: self.options.suite,
            group: self.options.group,
            tickets: if workload.resumes() { 2 } else { 0 },
        };
        let upstream = Upstream::start(self.pki, policy)?;
        let directory = self.directory.join(proxy.name());
        if directory.exists() {
            fs::remove_dir_all(&directory)?;
        }
        fs::create_dir(&directory)?;
        let setup = Setup {
            directory,
            listen: free_address()?,
            upstream: upstream.address,
            server_name: SERVER_NAME,
            pki: self.files.clone(),
            group: self.options.group,
            resumption: workload.resumes(),
        };
        let running = Running::start(proxy, &setup).await?;
        Ok(Started { running, upstream })
    }
}

/// In this order they are dropped: the proxy first.
struct Started {
    running: Running,
    upstream: Upstream,
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
