//! A churn soak: what one tlsward process keeps of its memory while connections come and go.
//!
//! Three phases on one process, each bounded in count and time: a burst that is opened, used, held
//! and closed; waves of connections, of which a few outlive many waves (what fragments a heap); and
//! a second burst. Memory is looked at between them and some time after. It judges nothing: its
//! table is for comparing builds and allocators, see docs/decisions/0015-allocator.md.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener as StdListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

/// Handshakes, transfers and closes under way at once.
const AT_A_TIME: usize = 32;

/// What each connection carries each way.
const PAYLOAD: usize = 1024;

/// One of so many connections of a wave lives on for [`LIVES`] waves.
const SURVIVOR: usize = 20;
const LIVES: usize = 10;

/// Longer than any single step takes on a busy machine; past that something hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// Opens, uses and closes connections through one tlsward, and prints what memory it keeps.
///
/// Exit code: 0, or 2 when it could not be carried out. Needs some 12,000 open files.
#[derive(Debug, Parser)]
#[command(name = "soak", version)]
struct Options {
    /// The tlsward to run
    #[arg(long, value_name = "FILE", default_value = "target/release/tlsward")]
    binary: PathBuf,
    /// CPUs that it may use, as taskset(1) writes them
    #[arg(long, value_name = "LIST", default_value = "1")]
    cpus: String,
    /// Connections of each burst
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    burst: u32,
    /// Waves of churn
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(2..=10_000))]
    waves: u32,
    /// Connections of each wave
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    wave: u32,
    /// Churn ends after so many seconds, however many waves are left
    #[arg(long, default_value_t = 300)]
    seconds: u64,
    /// Only how long to wait after a burst before its last look, in seconds
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(15..=600))]
    rest: u64,
    /// Added to tlsward's environment, such as MALLOC_ARENA_MAX=1; may be repeated
    #[arg(long, value_name = "NAME=VALUE")]
    env: Vec<String>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    match runtime.and_then(|runtime| runtime.block_on(soak(&options))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("soak: {error}");
            ExitCode::from(2)
        }
    }
}

async fn soak(options: &Options) -> io::Result<()> {
    let directory = tempfile::tempdir()?;
    let upstream = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let acceptor = authority(directory.path()).map_err(io::Error::other)?;
    let mut proxy = Proxy::start(options, directory.path(), upstream.local_addr()?)?;
    let mut upstream_task = JoinSet::new();
    upstream_task.spawn(echo(upstream, acceptor));

    proxy.serves().await?;
    println!("{}", options.binary.display());
    println!(
        "{:<28} {:>9} {:>9} {:>9}",
        "KiB", "PSS", "anonymous", "file"
    );
    tokio::time::sleep(Duration::from_secs(1)).await;
    let base = proxy.look("after one connection")?;

    burst(&proxy, options, "burst 1", base).await?;
    churn(&proxy, options).await?;
    burst(&proxy, options, "burst 2", base).await
}

/// Opens, uses and holds connections, closes them all, and looks again after a while.
async fn burst(proxy: &Proxy, options: &Options, name: &str, base: u64) -> io::Result<()> {
    let count = options.burst as usize;
    let cpu = proxy.cpu()?;
    let held = in_turns(vec![(); count], |()| used(proxy.listen)).await?;
    let cpu = proxy.cpu()? - cpu;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let now = proxy.look(&format!("{name}: {count} held"))?;
    let each = now.saturating_sub(base) as f64 * 1.024 / count as f64;
    let micros = cpu.as_secs_f64() * 1e6 / count as f64;
    println!(
        "  {each:.2} KB and {micros:.0} us CPU per connection (no ticket, {PAYLOAD} B each way)"
    );
    in_turns(held, ended).await?;
    let mut passed = 0;
    for at in [1, 15, options.rest] {
        tokio::time::sleep(Duration::from_secs(at - passed)).await;
        passed = at;
        proxy.look(&format!("{name}: {at} s after close"))?;
    }
    Ok(())
}

/// Waves of connections; the slope of memory over the second half of them.
async fn churn(proxy: &Proxy, options: &Options) -> io::Result<()> {
    let began = Instant::now();
    let cpu = proxy.cpu()?;
    let mut survivors = VecDeque::new();
    let mut samples = Vec::new();
    let mut done = 0;
    for wave in 1..=options.waves {
        let mut opened = in_turns(vec![(); options.wave as usize], |()| used(proxy.listen)).await?;
        let stay = opened.split_off(opened.len() - opened.len() / SURVIVOR);
        in_turns(opened, ended).await?;
        survivors.push_back(stay);
        if survivors.len() > LIVES {
            in_turns(survivors.pop_front().unwrap_or_default(), ended).await?;
        }
        done += u64::from(options.wave);
        samples.push((done as f64, proxy.memory()?.pss as f64));
        if wave % 10 == 0 {
            proxy.look(&format!("churn: {done} connections"))?;
        }
        if began.elapsed() > Duration::from_secs(options.seconds) {
            break;
        }
    }
    let late = samples.get(samples.len() / 2..).unwrap_or_default();
    println!(
        "  {:+.2} KiB per 1,000 connections over the last {} waves, {:.0} us CPU per connection, {:.0} s",
        slope(late) * 1e3,
        late.len(),
        (proxy.cpu()? - cpu).as_secs_f64() * 1e6 / done as f64,
        began.elapsed().as_secs_f64(),
    );
    for stay in survivors {
        in_turns(stay, ended).await?;
    }
    tokio::time::sleep(Duration::from_secs(15)).await;
    proxy.look("churn: 15 s after close")?;
    Ok(())
}

/// A connection that has carried its payload both ways.
async fn used(listen: SocketAddr) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(listen).await?;
    let mut payload = [7; PAYLOAD];
    stream.write_all(&payload).await?;
    stream.read_exact(&mut payload).await?;
    Ok(stream)
}

/// Ends a connection in good order.
async fn ended(mut stream: TcpStream) -> io::Result<()> {
    stream.shutdown().await?;
    stream.read_to_end(&mut Vec::new()).await.map(drop)
}

/// Carries out `work` on each of `items`, [`AT_A_TIME`].
async fn in_turns<I, O, F>(items: Vec<I>, work: impl Fn(I) -> F) -> io::Result<Vec<O>>
where
    O: Send + 'static,
    F: Future<Output = io::Result<O>> + Send + 'static,
{
    let mut waiting = items.into_iter();
    let mut done = Vec::new();
    let mut tasks = JoinSet::new();
    loop {
        while tasks.len() < AT_A_TIME {
            match waiting.next() {
                Some(item) => tasks.spawn(tokio::time::timeout(PATIENCE, work(item))),
                None => break,
            };
        }
        match tasks.join_next().await {
            Some(ended) => done.push(ended.map_err(io::Error::other)???),
            None => return Ok(done),
        }
    }
}

/// Least squares.
fn slope(points: &[(f64, f64)]) -> f64 {
    let n = points.len() as f64;
    let (x, y) = points
        .iter()
        .fold((0.0, 0.0), |(x, y), p| (x + p.0, y + p.1));
    let (x, y) = (x / n, y / n);
    let over: f64 = points.iter().map(|p| (p.0 - x) * (p.1 - y)).sum();
    let under: f64 = points.iter().map(|p| (p.0 - x).powi(2)).sum();
    over / under
}

/// The upstream: TLS 1.3 that demands a client certificate, gives no tickets, and echoes.
async fn echo(listener: TcpListener, acceptor: TlsAcceptor) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((tcp, _)) = listener.accept() => {
                let acceptor = acceptor.clone();
                connections.spawn(async move {
                    let mut tls = acceptor.accept(tcp).await?;
                    let mut buffer = vec![0; PAYLOAD];
                    loop {
                        let n = tls.read(&mut buffer).await?;
                        if n == 0 {
                            return tls.shutdown().await;
                        }
                        tls.write_all(buffer.get(..n).unwrap_or_default()).await?;
                    }
                });
            }
            // A connection that failed shows at the caller, whose echo does not come.
            Some(_) = connections.join_next() => {}
        }
    }
}

/// One root that signs both leaves; writes what the proxy reads.
fn authority(directory: &Path) -> Result<TlsAcceptor, Box<dyn std::error::Error + Send + Sync>> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root_key = KeyPair::generate()?;
    let root = params.self_signed(&root_key)?;
    let issuer = Issuer::new(params, root_key);
    let leaf = |name: &str| -> Result<_, rcgen::Error> {
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new([name.to_owned()])?.signed_by(&key, &issuer)?;
        Ok((certificate, key))
    };
    let (client, client_key) = leaf("client.soak")?;
    fs::write(directory.join("ca.crt"), root.pem())?;
    fs::write(directory.join("client.crt"), client.pem())?;
    fs::write(directory.join("client.key"), client_key.serialize_pem())?;

    let mut roots = RootCertStore::empty();
    roots.add(root.der().clone())?;
    let (server, server_key) = leaf("upstream.soak")?;
    let mut config = ServerConfig::builder()
        .with_client_cert_verifier(WebPkiClientVerifier::builder(Arc::new(roots)).build()?)
        .with_single_cert(
            vec![server.der().clone()],
            PrivatePkcs8KeyDer::from(server_key.serialize_der()).into(),
        )?;
    config.send_tls13_tickets = 0;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// The tlsward that is looked at; stopped when dropped.
struct Proxy {
    child: Child,
    listen: SocketAddr,
}

/// KiB, from smaps_rollup.
struct Memory {
    pss: u64,
    anonymous: u64,
    file: u64,
}

impl Proxy {
    fn start(options: &Options, directory: &Path, upstream: SocketAddr) -> io::Result<Self> {
        let (listen, admin) = (free_address()?, free_address()?);
        let config = directory.join("config.toml");
        let path = directory.display();
        fs::write(
            &config,
            format!(
                r#"[admin]
listen = "{admin}"
[log]
filter = "warn"
connections = false
[services.soak]
listen = "{listen}"
upstream = "{upstream}"
[services.soak.tls]
ca = "{path}/ca.crt"
cert = "{path}/client.crt"
key = "{path}/client.key"
server_name = "upstream.soak"
"#
            ),
        )?;
        let mut command = Command::new("taskset");
        command.args(["-c", &options.cpus]).arg(&options.binary);
        command.arg("run").arg("--config").arg(config);
        for pair in &options.env {
            let (name, value) = pair
                .split_once('=')
                .ok_or_else(|| io::Error::other(format!("--env {pair}: not NAME=VALUE")))?;
            command.env(name, value);
        }
        // taskset becomes tlsward, so the child is tlsward.
        let child = command.stdin(Stdio::null()).spawn()?;
        Ok(Self { child, listen })
    }

    async fn serves(&mut self) -> io::Result<()> {
        let began = Instant::now();
        loop {
            match used(self.listen).await {
                Ok(stream) => return ended(stream).await,
                Err(error) if began.elapsed() > PATIENCE => return Err(error),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
            if let Some(status) = self.child.try_wait()? {
                return Err(io::Error::other(format!("tlsward ended: {status}")));
            }
        }
    }

    /// Prints a line and returns the PSS in KiB.
    fn look(&self, when: &str) -> io::Result<u64> {
        let Memory {
            pss,
            anonymous,
            file,
        } = self.memory()?;
        println!("{when:<28} {pss:>9} {anonymous:>9} {file:>9}");
        Ok(pss)
    }

    fn memory(&self) -> io::Result<Memory> {
        let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.child.id()))?;
        let kib = |name: &str| -> io::Result<u64> {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|line| line.trim().strip_suffix(" kB"));
            number
                .and_then(|number| number.parse().ok())
                .ok_or_else(|| io::Error::other(format!("no {name} in smaps_rollup")))
        };
        Ok(Memory {
            pss: kib("Pss:")?,
            anonymous: kib("Pss_Anon:")?,
            file: kib("Pss_File:")?,
        })
    }

    /// User and system time so far, in ticks of 10 ms.
    fn cpu(&self) -> io::Result<Duration> {
        let text = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // Fields 14 and 15 of proc_pid_stat(5); the command, field 2, may hold blanks.
        let after = text.rsplit_once(") ").map_or("", |(_, after)| after);
        let ticks: u64 = after
            .split(' ')
            .skip(11)
            .take(2)
            .filter_map(|field| field.parse::<u64>().ok())
            .sum();
        let per_second = rustix::param::clock_ticks_per_second();
        Ok(Duration::from_secs_f64(ticks as f64 / per_second as f64))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An address that was free a moment ago.
fn free_address() -> io::Result<SocketAddr> {
    StdListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}
