//! The composition root of `tlsward run`: makes the parts, joins them, waits for their end.
//! Decides nothing.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use rustix::io::Errno;
use rustls::crypto::aws_lc_rs;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::admin::Reloads;
use crate::cluster::Store;
use crate::control::{Control, Refused, Setup};
use crate::failure::Reason;
use crate::kubernetes;
use crate::limits::mind_memory;
use crate::metrics::Metrics;
use crate::sandbox::Sandbox;
use crate::shutdown::{Shutdown, Terms};
use crate::signal::{Stop, reload_on_hangup};
use crate::systemd::{self, Given, Notifier};
use crate::telemetry::{self, LogFormat};

/// Exit codes (CONTRACT: "Stop").
pub(crate) const FAILED_TO_START: u8 = 1;
pub(crate) const BAD_CONFIGURATION: u8 = 2;
const CONNECTIONS_LEFT: u8 = 3;

/// The version that users see.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What `tlsward run` was asked for.
#[derive(Debug)]
pub(crate) struct RunOptions {
    /// The configuration file, absolute.
    pub(crate) config: PathBuf,
    /// Fail at start where a service cannot serve.
    pub(crate) strict: bool,
    /// `None`: journald's own form where it reads standard error, text on a terminal, JSON
    /// elsewhere.
    pub(crate) log_format: Option<LogFormat>,
    pub(crate) environment: BTreeMap<String, String>,
    /// Entered before anything else.
    pub(crate) sandbox: Sandbox,
    /// What could not be done before there was a log.
    pub(crate) warnings: Vec<String>,
    /// What systemd has given.
    pub(crate) given: Given,
}

/// Runs until a signal ends it, and says how it ended.
pub(crate) async fn run(options: RunOptions) -> ExitCode {
    let RunOptions {
        config,
        strict,
        log_format,
        environment,
        sandbox,
        warnings,
        given:
            Given {
                notifier,
                sockets,
                watchdog,
                notes,
            },
    } = options;
    let to_journal = telemetry::is_journal(std::io::stderr(), &environment);
    let format = log_format.unwrap_or_else(|| {
        if to_journal {
            LogFormat::Journal
        } else if std::io::stderr().is_terminal() {
            LogFormat::Text
        } else {
            LogFormat::Json
        }
    });
    let log = match telemetry::init(format, "info", to_journal) {
        Ok(log) => log,
        Err(error) => return fail(FAILED_TO_START, &error.to_string()),
    };
    let shutdown = Shutdown::default();
    let (reloads, requests) = mpsc::channel(16);
    let reloads = Reloads::new(reloads, notifier.clone());
    let signals =
        Stop::listen().and_then(|stop| Ok((stop, reload_on_hangup(reloads.clone(), &shutdown)?)));
    let (mut stop, hangups) = match signals {
        Ok(signals) => signals,
        Err(error) => return fail(FAILED_TO_START, &format!("signals: {error}")),
    };
    for note in notes {
        warn!("{note}");
    }
    if let Err(error) = raise_open_files() {
        warn!(%error, "cannot raise the limit of open files");
    }
    info!(version = VERSION, config = %config.display(), "starting");
    for warning in warnings {
        warn!("{warning}");
    }
    tell_sandbox(&sandbox);
    notifier.status("starting: reading configuration and certificates");

    let metrics = Arc::new(Metrics::new(VERSION));
    let cluster = Store::new(kubernetes::own_namespace());
    let setup = Setup {
        path: config,
        environment,
        provider: aws_lc_rs::default_provider(),
        metrics: Arc::clone(&metrics),
        cluster: Arc::clone(&cluster),
        shutdown: shutdown.clone(),
        sandbox,
        log,
        version: VERSION,
    };
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut following = std::pin::pin!(async {
        let (cluster, provider) = (Arc::clone(&cluster), Arc::clone(&provider));
        kubernetes::run(cluster, provider, CancellationToken::new()).await;
        std::future::pending::<Infallible>().await
    });
    // Reading may take for ever (a dead network file system); a signal ends it.
    let control = tokio::select! {
        biased;
        signal = stop.next() => {
            info!(signal, "stopped before everything was read");
            return ExitCode::SUCCESS;
        }
        never = &mut following => match never {},
        started = Control::start(setup, reloads, sockets) => match started {
            Ok(control) => control,
            Err(refused) => return refuse_to_start(&refused, format, &notifier),
        },
    };
    let not_ready = control.not_ready();
    if strict && !not_ready.is_empty() {
        for (service, why) in &not_ready {
            error!(service, reason = %why.reason, detail = why.detail, hint = why.hint,
                "cannot serve, and --strict was given");
        }
        let names: Vec<&str> = not_ready.iter().map(|(name, _)| name.as_str()).collect();
        let why = format!("cannot serve, and --strict was given: {}", names.join(", "));
        notifier.failed(&why, Errno::NOENT);
        return ExitCode::from(FAILED_TO_START);
    }

    let memory = async {
        match metrics.crew() {
            Some(crew) => mind_memory(&metrics, &cluster, &crew).await,
            // Not after a start that went well.
            None => std::future::pending().await,
        }
    };
    let announcing = kubernetes::announce(
        Arc::clone(&cluster),
        Arc::clone(&provider),
        control.status(),
    );
    let telling = systemd::announce(
        notifier,
        watchdog,
        control.status(),
        Arc::clone(&metrics),
        shutdown.clone(),
    );
    let control = async {
        tokio::select! {
            stopped = control.run(requests) => stopped,
            never = memory => match never {},
            never = &mut following => match never {},
            never = announcing => match never {},
        }
    };
    let to_the_end = async {
        let (stopped, hurry, ()) = tokio::join!(control, leave(&shutdown, &mut stop), hangups);
        let drained = drain(&shutdown, hurry, &mut stop).await;
        stopped.finish().await;
        drained
    };
    let drained = tokio::select! {
        drained = to_the_end => drained,
        never = telling => match never {},
    };
    if shutdown.fault().is_cancelled() {
        return ExitCode::from(FAILED_TO_START);
    }
    if drained {
        info!("stopped: every connection had ended");
        ExitCode::SUCCESS
    } else {
        ExitCode::from(CONNECTIONS_LEFT)
    }
}

/// Waits until the process is asked to end; then says so, and after `shutdown_delay` begins the
/// drain. Returns the second signal, where that came first.
async fn leave(shutdown: &Shutdown, stop: &mut Stop) -> Option<&'static str> {
    let because = tokio::select! {
        signal = stop.next() => signal,
        () = shutdown.leaving().cancelled() => "POST /quit",
        () = shutdown.fault().cancelled() => "a fault",
    };
    let Terms { delay, timeout } = shutdown.terms();
    shutdown.leaving().cancel();
    info!(
        because,
        shutdown_delay_seconds = delay.as_secs_f64(),
        shutdown_timeout_seconds = timeout.as_secs_f64(),
        "stopping: no longer ready"
    );
    let hurry = tokio::select! {
        biased;
        // With a part of it gone, a process must not look alive: whoever watches over it starts
        // it again. What still works may end as with a signal.
        () = shutdown.fault().cancelled() => {
            error!(reason = %Reason::Internal, hint = Reason::Internal.hint(), "a part has failed");
            None
        }
        signal = stop.second() => Some(signal),
        () = tokio::time::sleep(delay) => None,
    };
    info!("draining: no new connections");
    shutdown.drain().cancel();
    hurry
}

/// Waits for connections to end by themselves; at the deadline, or at a second signal (`hurry`, if
/// it has come already), ends them. True if none was left to end.
async fn drain(shutdown: &Shutdown, hurry: Option<&'static str>, stop: &mut Stop) -> bool {
    let connections = shutdown.connections();
    connections.close();
    let second_signal = async {
        match hurry {
            Some(signal) => signal,
            None => stop.second().await,
        }
    };
    let why = tokio::select! {
        biased;
        () = connections.wait() => return true,
        signal = second_signal => signal,
        () = tokio::time::sleep(shutdown.terms().timeout) => "shutdown_timeout",
    };
    warn!(
        because = why,
        open = connections.len(),
        "ending the connections that are still open"
    );
    shutdown.abort().cancel();
    connections.wait().await;
    false
}

fn tell_sandbox(sandbox: &Sandbox) {
    let report = sandbox.report();
    let parts = report.parts().into_iter();
    let parts: Vec<&str> = parts.filter_map(|(part, on)| on.then_some(part)).collect();
    info!(
        sandbox = report.state.as_str(),
        parts = parts.join(","),
        landlock_abi = report.landlock_abi,
        connect_ports = report.connect_ports,
        bind_ports = report.bind_ports,
        why = report.why,
        "what this process gave up"
    );
    for what in &report.left_out {
        warn!("outside of the sandbox: {what}");
    }
}

fn refuse_to_start(refused: &Refused, format: LogFormat, notifier: &Notifier) -> ExitCode {
    notifier.failed(
        &format!("cannot start: {}", systemd::why(&refused.why)),
        match refused.why.reason {
            Reason::BindFailed => Errno::ADDRINUSE,
            Reason::LocalResource | Reason::Internal => Errno::AGAIN,
            _ => Errno::INVAL,
        },
    );
    error!(reason = %refused.why.reason, detail = refused.why.detail, hint = refused.why.hint,
        "cannot start");
    for problem in &refused.problems {
        match format {
            // As the file's lines stand, which show where in a line it is.
            LogFormat::Text => {
                let _ = writeln!(std::io::stderr(), "{problem}\n");
            }
            // Whoever reads this expects nothing but JSON.
            LogFormat::Json => error!(problem, "mistake"),
            // Journald keeps lines of one entry together.
            LogFormat::Journal => error!("{problem}"),
        }
    }
    ExitCode::from(match refused.why.reason {
        Reason::BindFailed | Reason::LocalResource | Reason::Internal => FAILED_TO_START,
        // The file has mistakes, or cannot be read.
        _ => BAD_CONFIGURATION,
    })
}

fn fail(code: u8, why: &str) -> ExitCode {
    eprintln!("tlsward: {why}");
    ExitCode::from(code)
}

/// Two descriptors a connection: the soft limit of 1,024 that a shell gives is for programs that
/// use select(2).
fn raise_open_files() -> std::io::Result<()> {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit)?;
    Ok(())
}
