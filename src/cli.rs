//! Arguments and subcommands. The only reader of the environment.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};
use rustix::process::{Pid, Signal, kill_process};
use rustls::crypto::aws_lc_rs;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::admin::client::ClientError;
use crate::admin::{Client, ReloadOutcome};
use crate::app::{self, BAD_CONFIGURATION, FAILED_TO_START, RunOptions};
use crate::cluster::Store;
use crate::config::kubernetes::ObjectRef;
use crate::config::{Config, Listen, ServiceName};
use crate::control::{self, Refused, State, Survey};
use crate::demo::{self, DemoOptions};
use crate::rbac::{Needs, Roles};
use crate::sandbox::{self, Sandbox};
use crate::systemd::Given;
use crate::telemetry::LogFormat;
use crate::{check, clock, convert, kubernetes, manual, probe, status};

/// How long a process may take to answer at an admin endpoint that its file newly names.
const TAKES_THE_ENDPOINT: Duration = Duration::from_secs(20);

/// Plain TCP in, verified mutual TLS out: each service with its own client certificate, renewed
/// while it runs.
#[derive(Debug, Parser)]
#[command(name = "tlsward", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the proxy until SIGTERM or SIGINT.
    Run {
        #[command(flatten)]
        file: ConfigFile,
        /// Fail at start (exit code 1) if a service cannot serve, instead of waiting for its files.
        #[arg(long)]
        strict: bool,
        /// How the log is written. Default: entries of the journal where standard error is the
        /// journal, text on a terminal, json elsewhere.
        #[arg(long, value_enum)]
        log_format: Option<Format>,
        /// Give up no rights at the start: neither files nor ports nor system calls.
        #[arg(long)]
        no_sandbox: bool,
    },
    /// Read the configuration and every certificate, and show what would be used.
    ///
    /// Exit code 0: all good; 1: a certificate, key or CA cannot be used; 2: mistakes in the
    /// configuration. Credentials of systemd that cannot be seen from here are named and not
    /// judged; root sees those of a running tlsward.service.
    Check {
        #[command(flatten)]
        file: ConfigFile,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Make a real handshake with a service's upstream and its identity, and tell the verdict.
    ///
    /// Exit code 0: accepted; 1: not; 2: mistakes in the configuration.
    Probe {
        /// The service.
        #[arg(required_unless_present = "all")]
        service: Option<String>,
        /// Every service.
        #[arg(long, conflicts_with = "service")]
        all: bool,
        #[command(flatten)]
        file: ConfigFile,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Ask the running process to read configuration and certificates again, and wait for the end.
    ///
    /// Exit code 0: everything in the files is in use; 1: something was refused.
    Reload {
        #[command(flatten)]
        ask: Ask,
        /// The process, for when its admin endpoint cannot be asked (admin.listen is "off", or is
        /// another one than the process has): it gets SIGHUP then. For ExecReload= of a unit.
        #[arg(long, value_name = "PID")]
        pid: Option<i32>,
    },
    /// Show what the running process does.
    Status(Ask),
    /// Ask the running process to end, as SIGTERM does, and tell what that means.
    ///
    /// For the last command of a Job whose sidecar would outlive it. Exit code 0: it stops; 1: it
    /// could not be asked, or still runs.
    Stop {
        #[command(flatten)]
        ask: Ask,
        /// Return when the process has ended: no later than shutdown_delay and shutdown_timeout.
        #[arg(long)]
        wait: bool,
    },
    /// Print the Kubernetes roles that the configuration needs, and nothing more.
    ///
    /// Asks the cluster for the annotations of the Services that the configuration names or
    /// discovers, since they may name Secrets: as the pod's service account, or by what KUBECONFIG
    /// or ~/.kube/config says. Exit code 0: printed; 1: the cluster could not be asked; 2: mistakes
    /// in the configuration.
    Rbac {
        #[command(flatten)]
        file: ConfigFile,
        /// The ServiceAccount that tlsward runs as.
        #[arg(long, value_name = "NAME", default_value = "tlsward")]
        service_account: String,
        /// Its namespace, in which names without one are looked up too. Default: what the
        /// configuration or the pod says.
        #[arg(long, value_name = "NAMESPACE")]
        namespace: Option<String>,
        /// Ask nobody: print what the file alone says, and what is missing.
        #[arg(long)]
        offline: bool,
        /// Print JSON, a List for kubectl.
        #[arg(long)]
        json: bool,
    },
    /// See it work: a throw-away CA, an mTLS server, the proxy, traffic and a live rotation.
    Demo {
        /// Leave everything up at the end, until Ctrl-C.
        #[arg(long)]
        keep_running: bool,
        /// Where to write configuration and certificates. Default: ./tlsward-demo.
        #[arg(long, value_name = "DIR")]
        directory: Option<PathBuf>,
    },
    /// Turn another product's configuration into a config.toml.
    ///
    /// Reads the client side of it, and writes to standard output; what was less safe than it is now,
    /// what must be decided and what was left behind goes to standard error, and into the file as
    /// comments. Nothing is verified less than before: a service of which that cannot be written is
    /// written switched off. Exit code 0: carried whole; 1: written, and something is to be decided or
    /// was left behind; 2: a file cannot be understood, or nothing could be written.
    Convert {
        /// Whose configuration it is.
        #[arg(long, value_enum, value_name = "PRODUCT")]
        from: convert::Product,
        /// Its files; - is standard input.
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// Where to write the configuration. Default: standard output.
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
        /// Replace the file that --output names, if there is one.
        #[arg(long, requires = "output")]
        force: bool,
        /// Print JSON: the notes, and the configuration unless --output is given.
        #[arg(long)]
        json: bool,
    },
    /// Print the JSON Schema of the configuration, for editors.
    Schema,
    /// Print a completion script.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Write the manual's pages into a directory, for packages.
    #[command(hide = true)]
    Man {
        /// Where to; made if need be.
        directory: PathBuf,
    },
}

#[derive(Debug, Args)]
struct ConfigFile {
    /// The configuration file. Default: config.toml here if there is one, else
    /// /etc/tlsward/config.toml.
    #[arg(short, long, value_name = "FILE", env = "TLSWARD_CONFIG")]
    config: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct Ask {
    #[command(flatten)]
    file: ConfigFile,
    /// The admin endpoint, HOST:PORT or unix:PATH. Default: what the configuration says.
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Names the directory of credentials, systemd.exec(5); and the packaged unit's.
const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";
const OF_THE_SERVICE: &str = "/run/credentials/tlsward.service";

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Text,
    Json,
    Journal,
}

/// Runs the program with the process's arguments and environment.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // To standard output for --help, to standard error for mistakes; if that is closed,
            // nobody listens.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(BAD_CONFIGURATION));
        }
    };
    // Before anything is opened: what was passed is told from what is ours by its number.
    let given = match &arguments.command {
        Command::Run { .. } => Given::take(&environment()),
        _ => Ok(Given::default()),
    };
    let given = match given {
        Ok(given) => given,
        Err(why) => return complain(FAILED_TO_START, &format!("what systemd has passed: {why}")),
    };
    // Before any thread: it binds those that are started later.
    let confined = match &arguments.command {
        Command::Run {
            file, no_sandbox, ..
        } => Some(Confined::enter(&file.path(), *no_sandbox)),
        _ => None,
    };
    // One thread for whatever is no traffic; `run` starts others for that.
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            return complain(FAILED_TO_START, &format!("cannot start a runtime: {error}"));
        }
    };
    let code = runtime.block_on(carry_out(arguments.command, given, confined));
    // A look-up that hangs in the system's resolver must not keep the process.
    runtime.shutdown_background();
    code
}

/// What [`Command::Run`] gave up before it began.
struct Confined {
    sandbox: Sandbox,
    warnings: Vec<String>,
}

impl Confined {
    fn enter(path: &Path, no_sandbox: bool) -> Self {
        let mut warnings = Vec::new();
        if let Err(error) = sandbox::keep_memory_private() {
            warnings.push(format!(
                "core dumps and tracing cannot be switched off: {error}"
            ));
        }
        let config = outline(path);
        let sandbox = if no_sandbox {
            Sandbox::off("--no-sandbox")
        } else if !config.sandbox.enabled {
            Sandbox::off("sandbox.enabled = false")
        } else {
            Sandbox::enter(rules(&config, path))
        };
        Self { sandbox, warnings }
    }
}

/// The configuration as far as the file alone says it.
fn outline(path: &Path) -> Config {
    control::outline(path, &environment(), kubernetes::own_namespace())
}

/// What a sandbox for this configuration allows.
fn rules(config: &Config, path: &Path) -> sandbox::Rules {
    let environment = environment();
    let cluster = match sandbox::needs_kubernetes(config) {
        true => kubernetes::access(&config.kubernetes, &environment),
        false => sandbox::ClusterAccess::default(),
    };
    let facts = sandbox::Facts {
        path,
        environment: &environment,
        is_root: rustix::process::geteuid().is_root(),
        cluster,
    };
    sandbox::rules(config, &facts)
}

async fn carry_out(command: Command, given: Given, confined: Option<Confined>) -> ExitCode {
    match command {
        Command::Run {
            file,
            strict,
            log_format,
            no_sandbox: _,
        } => {
            let Confined { sandbox, warnings } =
                confined.expect("main has confined this command, and no other");
            let log_format = log_format.map(|format| match format {
                Format::Text => LogFormat::Text,
                Format::Json => LogFormat::Json,
                Format::Journal => LogFormat::Journal,
            });
            let options = RunOptions {
                config: file.path(),
                strict,
                log_format,
                environment: environment(),
                sandbox,
                warnings,
                given,
            };
            // In a box: it is large, and the other commands would carry it with them.
            Box::pin(app::run(options)).await
        }
        Command::Check { file, json } => match examine(file.path()).await {
            Ok(state) => {
                let path = file.path();
                let rules = rules(&outline(&path), &path);
                let report = check::Report::of(&state, &rules, clock::unix_now());
                let code = if report.is_good() { 0 } else { FAILED_TO_START };
                print(json, &report, || report.text(), code)
            }
            Err(refused) => refuse(&refused, json),
        },
        Command::Probe {
            service,
            all: _,
            file,
            json,
        } => match examine(file.path()).await {
            Ok(state) => probe(&state, service.as_deref(), json).await,
            Err(refused) => refuse(&refused, json),
        },
        Command::Reload { ask, pid } => reload(ask, pid).await,
        Command::Status(ask) => show_status(ask).await,
        Command::Stop { ask, wait } => stop(ask, wait).await,
        Command::Rbac {
            file,
            service_account,
            namespace,
            offline,
            json,
        } => rbac(file.path(), &service_account, namespace, offline, json).await,
        Command::Demo {
            keep_running,
            directory,
        } => {
            let now = UNIX_EPOCH + Duration::from_secs(clock::unix_now().as_secs());
            match demo::run(
                DemoOptions {
                    keep_running,
                    directory,
                },
                now,
            )
            .await
            {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => complain(FAILED_TO_START, &error.to_string()),
            }
        }
        Command::Convert {
            from,
            files,
            output,
            force,
            json,
        } => convert(from, &files, output.as_deref(), force, json),
        Command::Schema => {
            let schema = crate::config::schema();
            print(true, &schema, String::new, 0)
        }
        Command::Completions { shell } => {
            // Into memory first: the generator panics where it cannot write.
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "tlsward", &mut script);
            put(&script, 0)
        }
        Command::Man { directory } => match manual::write(Arguments::command(), &directory) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => complain(FAILED_TO_START, &error.to_string()),
        },
    }
}

fn convert(
    from: convert::Product,
    files: &[PathBuf],
    output: Option<&Path>,
    force: bool,
    json: bool,
) -> ExitCode {
    let here = std::path::absolute(".").unwrap_or_default();
    let converted = match convert::convert(from, files, &convert::Disk, &here) {
        Ok(converted) => converted,
        Err(mistake) => {
            tell(&format!("{mistake}\n"));
            return ExitCode::from(BAD_CONFIGURATION);
        }
    };
    if let Some(output) = output
        && let Err(error) = convert::write(output, &converted.config, force)
    {
        return complain(BAD_CONFIGURATION, &format!("{}: {error}", output.display()));
    }
    let code = u8::from(converted.needs_somebody());
    if json {
        let report = converted.json(output.is_none());
        return print(true, &report, String::new, code);
    }
    tell(&converted.report());
    match output {
        Some(_) => ExitCode::from(code),
        None => put(converted.config.as_bytes(), code),
    }
}

async fn examine(path: PathBuf) -> Result<State, Refused> {
    let mut environment = environment();
    // What the service was given, where it runs and may be looked at.
    if !environment.contains_key(CREDENTIALS) && Path::new(OF_THE_SERVICE).read_dir().is_ok() {
        environment.insert(CREDENTIALS.to_owned(), OF_THE_SERVICE.to_owned());
    }
    let cluster = Store::new(kubernetes::own_namespace());
    let provider = aws_lc_rs::default_provider();
    let following = kubernetes::run(
        Arc::clone(&cluster),
        Arc::new(provider.clone()),
        CancellationToken::new(),
    );
    tokio::select! {
        state = control::examine(path, &environment, provider, cluster) => state,
        () = following => unreachable!("nobody stops it"),
    }
}

async fn rbac(
    path: PathBuf,
    service_account: &str,
    namespace: Option<String>,
    offline: bool,
    json: bool,
) -> ExitCode {
    let environment = environment();
    let own = namespace.clone().or_else(kubernetes::own_namespace);
    let store = Store::new(own.clone());
    let following = kubernetes::run(
        Arc::clone(&store),
        Arc::new(aws_lc_rs::default_provider()),
        CancellationToken::new(),
    );
    let survey = tokio::select! {
        survey = control::survey(path.clone(), &environment, Arc::clone(&store), offline) => survey,
        () = following => unreachable!("nobody stops it"),
    };
    let Survey { config, unanswered } = match survey {
        Ok(survey) => survey,
        Err(refused) => return refuse(&refused, json),
    };
    if !unanswered.is_empty() {
        let why = format!(
            "the cluster could not be asked which Secrets annotations name:\n  {}\n\
             fix that, or print what the file alone says with --offline",
            unanswered.join("\n  ")
        );
        return complain(FAILED_TO_START, &why);
    }
    let needs = Needs::of(&config, offline);
    let home = namespace.or_else(|| config.kubernetes.namespace.clone());
    // Where nobody gets rights it does not matter who.
    let nobody = || needs.is_empty().then(String::new);
    let Some(home) = home.or(own).or_else(nobody) else {
        let why = "which namespace is the ServiceAccount in? say it with --namespace, or set namespace in [kubernetes]";
        return complain(BAD_CONFIGURATION, why);
    };
    let account = ObjectRef::new(home, service_account);
    let file = path.file_name().map_or_else(
        || path.display().to_string(),
        |name| name.display().to_string(),
    );
    let roles = Roles::new(&needs, account, &file);
    print(json, &roles.json(), || roles.yaml(), 0)
}

async fn probe(state: &State, service: Option<&str>, json: bool) -> ExitCode {
    let names: Vec<ServiceName> = match service {
        None => state.config.services.keys().cloned().collect(),
        Some(wanted) => {
            let found = state
                .config
                .services
                .keys()
                .find(|name| name.as_str() == wanted);
            let Some(name) = found else {
                let known: Vec<&str> = state
                    .config
                    .services
                    .keys()
                    .map(ServiceName::as_str)
                    .collect();
                let why = format!("no service {wanted:?}; there are: {}", known.join(", "));
                return complain(BAD_CONFIGURATION, &why);
            };
            vec![name.clone()]
        }
    };
    let mut reports = Vec::new();
    for name in &names {
        reports.extend(probe::probe(state, name).await);
    }
    let good = reports.iter().all(probe::Report::is_good);
    let now = clock::unix_now();
    let text = || {
        reports
            .iter()
            .map(|report| report.text(now))
            .collect::<Vec<_>>()
            .join("\n")
    };
    print(json, &reports, text, if good { 0 } else { FAILED_TO_START })
}

async fn reload(ask: Ask, pid: Option<i32>) -> ExitCode {
    let json = ask.json;
    let client = match (ask.endpoint(), pid) {
        (Ok(Some(client)), _) => client,
        (Ok(None), Some(pid)) => return hang_up(pid),
        (Ok(None), None) => return complain(BAD_CONFIGURATION, &ask.is_off()),
        (Err(code), _) => return code,
    };
    let outcome = match (client.reload().await, pid) {
        // The file may name another endpoint than the process has, until it has read the file.
        (Err(ClientError::NobodyAnswers { .. }), Some(pid)) => {
            let code = hang_up(pid);
            if code != ExitCode::SUCCESS {
                return code;
            }
            client.reload_when_there(TAKES_THE_ENDPOINT).await
        }
        (outcome, _) => outcome,
    };
    match outcome {
        Ok(outcome) => {
            let code = if ReloadOutcome::is_good(&outcome) {
                0
            } else {
                FAILED_TO_START
            };
            print(json, &outcome, || format!("{outcome}\n"), code)
        }
        Err(error) => complain(FAILED_TO_START, &error.to_string()),
    }
}

/// SIGHUP to a process that cannot be asked.
fn hang_up(pid: i32) -> ExitCode {
    let Some(process) = Pid::from_raw(pid).filter(|_| pid > 0) else {
        return complain(BAD_CONFIGURATION, &format!("--pid: {pid} is no process"));
    };
    match kill_process(process, Signal::HUP) {
        Ok(()) => {
            tell(&format!(
                "tlsward: no admin endpoint to ask, so process {pid} was sent SIGHUP; whether it took the configuration stands in its log, and in systemctl status\n"
            ));
            ExitCode::SUCCESS
        }
        Err(error) => complain(
            FAILED_TO_START,
            &format!("SIGHUP to process {pid}: {error}"),
        ),
    }
}

async fn stop(ask: Ask, wait: bool) -> ExitCode {
    let json = ask.json;
    let client = match ask.client() {
        Ok(client) => client,
        Err(code) => return code,
    };
    let report = match client.quit().await {
        Ok(report) => report,
        Err(error) => return complain(FAILED_TO_START, &error.to_string()),
    };
    let code = print(json, &report, || format!("{report}\n"), 0);
    if wait && let Err(error) = client.gone(report.longest()).await {
        return complain(FAILED_TO_START, &error.to_string());
    }
    code
}

async fn show_status(ask: Ask) -> ExitCode {
    let json = ask.json;
    let client = match ask.client() {
        Ok(client) => client,
        Err(code) => return code,
    };
    match client.status().await {
        Ok(value) => {
            let now = clock::unix_seconds();
            print(json, &value, || status::render_table(&value, now), 0)
        }
        Err(error) => complain(FAILED_TO_START, &error.to_string()),
    }
}

impl ConfigFile {
    /// Absolute, so that messages and relative paths in it mean the same wherever they are read.
    fn path(&self) -> PathBuf {
        let path = self.config.clone().unwrap_or_else(|| {
            let here = PathBuf::from("config.toml");
            if here.exists() {
                here
            } else {
                PathBuf::from("/etc/tlsward/config.toml")
            }
        });
        std::path::absolute(&path).unwrap_or(path)
    }
}

impl Ask {
    /// The client for the endpoint that the user, or else the configuration, names.
    fn client(&self) -> Result<Client, ExitCode> {
        match self.endpoint()? {
            Some(client) => Ok(client),
            None => Err(complain(BAD_CONFIGURATION, &self.is_off())),
        }
    }

    fn is_off(&self) -> String {
        let file = self.file.path();
        format!("{} says admin.listen = \"off\"", file.display())
    }

    /// As [`Self::client`]; `None` where there is no endpoint.
    fn endpoint(&self) -> Result<Option<Client>, ExitCode> {
        let refuse = |why: String| complain(BAD_CONFIGURATION, &why);
        if let Some(address) = &self.admin {
            let listen =
                Listen::of_argument(address).map_err(|why| refuse(format!("--admin: {why}")))?;
            return Ok(Some(Client::new(listen, "--admin")));
        }
        let path = self.file.path();
        #[expect(
            clippy::disallowed_methods,
            reason = "a command that ends at once; it wants one address and no consistent reading"
        )]
        let text = std::fs::read_to_string(&path)
            .map_err(|error| refuse(format!("{}: {error}; or name --admin", path.display())))?;
        // The file may be the very one that the running process refuses, so only this address is
        // asked of it.
        let listen = Config::admin_listen(&text, &path, &environment())
            .map_err(|why| refuse(format!("{}: {why}; or name --admin", path.display())))?;
        Ok(listen.map(|listen| Client::new(listen, path.display().to_string())))
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the one place that reads the environment; what is not UTF-8 cannot be meant for us"
)]
fn environment() -> BTreeMap<String, String> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

/// Prints a result in the form that was asked for.
fn print<T: Serialize>(json: bool, value: &T, text: impl FnOnce() -> String, code: u8) -> ExitCode {
    let text = if json {
        match serde_json::to_string_pretty(value) {
            Ok(text) => format!("{text}\n"),
            Err(error) => return complain(FAILED_TO_START, &error.to_string()),
        }
    } else {
        text()
    };
    put(text.as_bytes(), code)
}

/// Writes to standard output. A reader that has gone (a pager that was quit) is no failure; a
/// full disk is one.
fn put(bytes: &[u8], code: u8) -> ExitCode {
    let mut out = anstream::stdout();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            complain(FAILED_TO_START, &format!("standard output: {error}"))
        }
        Ok(()) | Err(_) => ExitCode::from(code),
    }
}

fn refuse(refused: &Refused, json: bool) -> ExitCode {
    if json {
        return print(true, &refused.problems, String::new, BAD_CONFIGURATION);
    }
    let mut text = String::new();
    for problem in &refused.problems {
        text.push_str(&format!("{problem}\n\n"));
    }
    let count = refused.problems.len();
    let plural = if count == 1 { "" } else { "s" };
    text.push_str(&format!("{count} mistake{plural} in the configuration\n"));
    tell(&text);
    ExitCode::from(BAD_CONFIGURATION)
}

fn complain(code: u8, why: &str) -> ExitCode {
    tell(&format!("tlsward: {why}\n"));
    ExitCode::from(code)
}

/// Writes to standard error. Where that cannot be written, the exit code says what can be said;
/// `eprintln!` would panic.
fn tell(text: &str) {
    let _ = anstream::stderr().write_all(text.as_bytes());
}
