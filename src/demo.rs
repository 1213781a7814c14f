//! `tlsward demo`: a throw-away CA, an mTLS upstream, the proxy, traffic, and one live rotation,
//! each step checked as it is told.
//!
//! The proxy is this same program, started as a child with a real configuration file that stays
//! behind for the user to edit. Nothing needs privileges, and ports are chosen free at run time.

use std::fs;
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::SystemTime;

use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use self::application::{Application, Ending};
use self::authority::Authority;
use self::child::Proxy;
use self::files::{Files, config_text, make_directory};
use self::narrator::Narrator;
use self::upstream::{Upstream, WHO};

mod application;
mod authority;
mod child;
mod files;
mod narrator;
mod upstream;

/// What the user asked of the demo.
#[derive(Clone, Debug, Default)]
pub(crate) struct DemoOptions {
    /// Leaves everything up at the end, until SIGINT or SIGTERM. Default: ends by itself.
    pub(crate) keep_running: bool,
    /// Where the configuration and certificates are written; it must be empty or not exist.
    /// Default: `tlsward-demo` in the working directory (`tlsward-demo-2` and so on where that
    /// exists), or below the directory for temporary files if nothing can be written here.
    pub(crate) directory: Option<PathBuf>,
}

/// Why the demo ended early. Every variant means a non-zero exit code.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DemoError {
    /// The system refused something.
    #[error("{what}: {error}")]
    Io {
        /// What was being done.
        what: String,
        /// The system's answer.
        error: io::Error,
    },
    /// The directory that the user named holds something.
    #[error("{} is not empty; name another directory, or empty this one", .0.display())]
    DirectoryInUse(PathBuf),
    /// A certificate could not be made.
    #[error("making a certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// The proxy ended when it should run.
    #[error("tlsward run ended early with {0}; tlsward.log in the demo's directory says why")]
    ProxyEnded(ExitStatus),
    /// Something did not come to pass.
    #[error(
        "waited {seconds} s in vain for {what}; tlsward.log in the demo's directory may say why"
    )]
    Patience {
        /// What was awaited.
        what: &'static str,
        /// For how long.
        seconds: u64,
    },
    /// A step showed something else than it should.
    #[error("expected {expected}, but saw: {saw}")]
    NotAsPromised {
        /// The promise.
        expected: String,
        /// What happened.
        saw: String,
    },
    /// SIGINT or SIGTERM before the end.
    #[error("interrupted")]
    Interrupted,
}

impl DemoError {
    fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |error| Self::Io { what, error }
    }
}

/// Telling the story failed: stdout is gone.
impl From<io::Error> for DemoError {
    fn from(error: io::Error) -> Self {
        Self::Io {
            what: "writing to the terminal".to_owned(),
            error,
        }
    }
}

/// The name that the upstream's certificate is for.
const SERVER_NAME: &str = "greeter.demo";

/// Plays the demo and tells it on standard output. `now` dates the certificates.
///
/// # Errors
/// A step did not show what it should, the system refused something, or a signal came. The proxy
/// and the upstream are gone by then; the directory stays.
pub(crate) async fn run(options: DemoOptions, now: SystemTime) -> Result<(), DemoError> {
    let stop = stop_signal()?;
    tokio::pin!(stop);
    let story = play(&options, now, anstream::stdout());
    let (narrator, stage) = tokio::select! {
        played = story => played?,
        () = &mut stop => return Err(DemoError::Interrupted),
    };
    curtain(&options, narrator, stage, stop).await
}

/// What stands on the stage after the last act.
struct Stage {
    directory: PathBuf,
    program: PathBuf,
    admin: SocketAddr,
    listen: SocketAddr,
    proxy: Proxy,
    _upstreams: [Upstream; 2],
}

/// All steps up to the summary.
async fn play<W: Write>(
    options: &DemoOptions,
    now: SystemTime,
    out: W,
) -> Result<(Narrator<W>, Stage), DemoError> {
    let mut tell = Narrator::new(out);
    let directory = make_directory(options.directory.as_deref())?;
    let shown = directory.display();

    tell.step("Making a certificate authority that lives as long as this demo")?;
    let mut ca = Authority::new("tlsward demo CA", 0x1001, now)?;
    let server = ca.server(SERVER_NAME)?;
    let first = ca.client("demo-app")?;
    let mut other_ca = Authority::new("somebody else's CA", 0x2001, now)?;
    let stranger = other_ca.server(SERVER_NAME)?;
    let files = Files::new(&directory)?;
    files.write_ca(&ca)?;
    files.rotate_to(&first)?;
    tell.saw("CA", format_args!("{shown}/certs/ca.crt"))?;
    tell.saw(
        "client certificate",
        format_args!("{shown}/certs/client/tls.crt, serial {}", first.serial),
    )?;

    tell.step("Starting a server that lets nobody in without a certificate of this CA")?;
    let greeter = Upstream::start(&server, &ca)
        .await
        .map_err(DemoError::io("starting the upstream"))?;
    let stranger = Upstream::start(&stranger, &ca)
        .await
        .map_err(DemoError::io("starting the second upstream"))?;
    tell.saw(
        "mTLS server",
        format_args!("{} as {SERVER_NAME}", greeter.address),
    )?;

    tell.step("Starting tlsward in front of it, from an ordinary configuration file")?;
    let [admin, listen, listen_stranger] = free_addresses()?;
    let config = directory.join("config.toml");
    let text = config_text(
        admin,
        (listen, greeter.address),
        (listen_stranger, stranger.address),
    );
    fs::write(&config, text).map_err(DemoError::io("writing config.toml"))?;
    let program = std::env::current_exe().map_err(DemoError::io("finding this program"))?;
    let log = directory.join("tlsward.log");
    let proxy = Proxy::start(&program, &config, &log, admin).await?;
    tell.saw("configuration", config.display())?;
    tell.saw("plain TCP in", listen)?;

    tell.step("An application that knows nothing of TLS connects and says hello")?;
    let mut old = Application::connect(listen).await?;
    let greeting = old.line().await?;
    expect(
        "a greeting that names the first certificate",
        greeting.contains(&first.serial),
        &greeting,
    )?;
    tell.saw("the server says", &greeting)?;
    old.echo("first ping").await?;
    tell.saw("and sends back", "first ping")?;

    tell.step("The client certificate is renewed while that connection stays open")?;
    let second = ca.client("demo-app")?;
    let renewed = Instant::now();
    files.rotate_to(&second)?;
    tell.say("two files replaced by rename, nothing restarted, nobody told")?;
    wait_for_serial(&proxy, &second.serial).await?;
    let took = renewed.elapsed().as_millis();
    tell.saw(
        "in use",
        format_args!("serial {} after {took} ms", second.serial),
    )?;
    let greeting = Application::connect(listen).await?.line().await?;
    expect(
        "a greeting that names the renewed certificate",
        greeting.contains(&second.serial),
        &greeting,
    )?;
    tell.saw("the next connection", &greeting)?;
    let still = old.ask(WHO).await?;
    expect(
        "the old connection to go on with the first certificate",
        still.contains(&first.serial),
        &still,
    )?;
    tell.saw("the old connection", &still)?;

    tell.step("A broken certificate is written over the good one")?;
    files.replace("tls.crt", &second.pem()[..second.pem().len() / 2])?;
    let refused = proxy
        .wait_for(
            "greeter",
            "the broken certificate to be noticed",
            |service| {
                let refused = service["identity"].get("refused")?;
                (!refused.is_null()).then(|| refused.clone())
            },
        )
        .await?;
    tell.saw(
        "tlsward says",
        format_args!("{}: {}", word(&refused, "reason"), word(&refused, "detail")),
    )?;
    tell.saw("what to do", word(&refused, "hint"))?;
    let greeting = Application::connect(listen).await?.line().await?;
    expect(
        "new connections to go on with the last good certificate",
        greeting.contains(&second.serial),
        &greeting,
    )?;
    tell.saw("the next connection", &greeting)?;
    files.replace("tls.crt", &second.pem())?;
    proxy
        .wait_for(
            "greeter",
            "the mended certificate to be noticed",
            |service| service["identity"]["refused"].is_null().then_some(()),
        )
        .await?;
    tell.say("the good file is back, and the complaint is gone")?;

    tell.step("Another server claims the same name with a certificate of another CA")?;
    let ending = Application::ending_at(listen_stranger).await?;
    expect(
        "the application to be cut off",
        ending == Ending::Reset,
        &format!("{ending:?}"),
    )?;
    tell.saw(
        "the application sees",
        "connection reset, and not one byte from there",
    )?;
    let failure = proxy
        .wait_for("stranger", "the refusal to be counted", |service| {
            let failure = service["traffic"].get("last_failure")?;
            (!failure.is_null()).then(|| failure.clone())
        })
        .await?;
    expect(
        "a refusal in the handshake, before any data, with the reason untrusted_issuer",
        failure["phase"] == "handshake" && failure["reason"] == "untrusted_issuer",
        &failure.to_string(),
    )?;
    tell.saw(
        "tlsward says",
        format_args!("{}: {}", word(&failure, "reason"), word(&failure, "detail")),
    )?;
    tell.saw("what to do", word(&failure, "hint"))?;

    old.echo("last ping").await?;
    tell.heading("What you saw")?;
    tell.say("- plain TCP in, verified mutual TLS out, from one file of configuration")?;
    tell.say(format_args!(
        "- a renewed certificate in use after {took} ms; the connection from before still answers"
    ))?;
    tell.say("- a broken certificate changed nothing, and was reported with its cure")?;
    tell.say("- a server of another CA got no application data, and the reason was recorded")?;
    tell.saw("left for you", format_args!("{shown}/"))?;
    let stage = Stage {
        directory: directory.clone(),
        program,
        admin,
        listen,
        proxy,
        _upstreams: [greeter, stranger],
    };
    Ok((tell, stage))
}

/// What to try next; then the end, or the wait for it.
async fn curtain<W: Write>(
    options: &DemoOptions,
    mut tell: Narrator<W>,
    stage: Stage,
    stop: impl Future<Output = ()>,
) -> Result<(), DemoError> {
    let program = relative(&stage.program);
    let program = program.display();
    let directory = stage.directory.display();
    tell.heading("What to try next")?;
    if options.keep_running {
        tell.suggest(
            format_args!("nc {} {}", stage.listen.ip(), stage.listen.port()),
            "talk to the mTLS server in plain text; ask it who?",
        )?;
        tell.suggest(
            format_args!("{program} status -c {directory}/config.toml"),
            "certificates in use, days left, connections, the last failure of each service",
        )?;
        tell.suggest(
            format_args!("{program} probe stranger -c {directory}/config.toml"),
            "a real handshake that says what is wrong and how to mend it",
        )?;
        tell.suggest(
            format_args!("curl http://{}/metrics", stage.admin),
            "the same numbers for Prometheus",
        )?;
        tell.suggest(
            format_args!("$EDITOR {directory}/config.toml"),
            "changes are taken up when the file is saved; a mistake changes nothing and is explained",
        )?;
        tell.suggest(
            format_args!("tail -f {directory}/tlsward.log"),
            "what the proxy says meanwhile",
        )?;
        tell.heading("Running until Ctrl-C")?;
        stop.await;
    } else {
        tell.suggest(
            format_args!("{program} demo --keep-running"),
            "the same, and then it stays up: connect, probe, edit its configuration, watch it",
        )?;
        tell.suggest(
            format_args!("{program} check -c {directory}/config.toml"),
            "what a configuration means, and where each value comes from",
        )?;
        tell.suggest(
            format_args!("$EDITOR {directory}/config.toml"),
            "the beginning of a configuration of your own",
        )?;
    }
    let status = stage.proxy.stop().await?;
    expect(
        "tlsward to end in good order",
        status.success(),
        &status.to_string(),
    )
}

/// Resolves at SIGINT or SIGTERM.
fn stop_signal() -> Result<impl Future<Output = ()>, DemoError> {
    let handler = |kind| signal(kind).map_err(DemoError::io("watching for signals"));
    let mut interrupt = handler(SignalKind::interrupt())?;
    let mut terminate = handler(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

async fn wait_for_serial(proxy: &Proxy, serial: &str) -> Result<(), DemoError> {
    proxy
        .wait_for(
            "greeter",
            "the renewed certificate to be noticed",
            |service| (service["identity"]["chain"][0]["serial"] == serial).then_some(()),
        )
        .await
}

fn expect(expected: &str, held: bool, saw: &str) -> Result<(), DemoError> {
    if held {
        return Ok(());
    }
    Err(DemoError::NotAsPromised {
        expected: expected.to_owned(),
        saw: saw.to_owned(),
    })
}

fn word<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or("(nothing)")
}

/// The shortest way to name a file from the working directory.
fn relative(path: &Path) -> &Path {
    let here = std::env::current_dir().ok();
    here.and_then(|here| path.strip_prefix(here).ok())
        .unwrap_or(path)
}

/// Addresses on which nothing listens at this moment. All are held at once, so that no two are
/// the same.
fn free_addresses<const N: usize>() -> Result<[SocketAddr; N], DemoError> {
    let free = DemoError::io("finding a free port");
    let found: io::Result<Vec<_>> = (0..N)
        .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
        .collect();
    let addresses = found.and_then(|listeners| {
        let mut addresses = [SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)); N];
        for (address, listener) in addresses.iter_mut().zip(&listeners) {
            *address = listener.local_addr()?;
        }
        Ok(addresses)
    });
    addresses.map_err(free)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_that_are_free_are_also_different() {
        let addresses: [SocketAddr; 16] = free_addresses().expect("free ports");
        let ports: std::collections::BTreeSet<_> = addresses.iter().map(SocketAddr::port).collect();
        assert_eq!(ports.len(), addresses.len());
    }
}
