//! The program under test: a configuration file, the running process, its log, status and
//! metrics.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output, Stdio};

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpStream, UnixStream};
use tokio::process::{Child, Command};

use super::journal::Journal;
use super::pki::{IdentityFiles, Pki, SERVER_NAME};
use super::{net, within};

/// The program.
pub(crate) const TLSWARD: &str = env!("CARGO_BIN_EXE_tlsward");

/// At the top of a file whose later versions use ports that are not known at the start: as an
/// operator would write it who expects that.
pub(crate) const ANY_PORTS: &str = "sandbox = { connect_ports = \"any\", bind_ports = \"any\" }";

/// Runs a command of tlsward to its end.
pub(crate) async fn tlsward<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Output {
    within("tlsward to end", clean_command().args(arguments).output())
        .await
        .expect("tlsward can be started")
}

/// The program without settings from this process's environment.
pub(crate) fn clean_command() -> Command {
    without_settings(Command::new(TLSWARD))
}

/// The program as the argument of another.
pub(crate) fn command_under(program: &[&str]) -> Command {
    let mut command = without_settings(Command::new(program[0]));
    command.args(&program[1..]).arg(TLSWARD);
    command
}

pub(crate) fn without_settings(mut command: Command) -> Command {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TLSWARD_") {
            command.env_remove(name);
        }
    }
    command
        .env_remove("RUST_LOG")
        .env_remove("CREDENTIALS_DIRECTORY")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

/// One `[services.NAME]` table.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    pub(crate) name: String,
    pub(crate) listen: String,
    keys: Vec<(String, String)>,
    tls: Vec<(String, String)>,
}

impl Service {
    /// With an address of its own to listen on, the test's CA and `server_name` set to the name
    /// in the test's server certificates.
    pub(crate) fn new(name: &str, upstream: SocketAddr, pki: &Pki) -> Self {
        let service = Self {
            name: name.to_owned(),
            listen: net::address().to_string(),
            keys: Vec::new(),
            tls: Vec::new(),
        };
        // The address is not 127.0.0.1 but it is of 127.0.0.0/8: loopback all the same.
        service
            .text("upstream", &upstream.to_string())
            .tls_text("ca", path_text(&pki.ca_file()))
            .tls_text("server_name", SERVER_NAME)
    }

    pub(crate) fn identity(self, files: &IdentityFiles) -> Self {
        self.tls_text("cert", path_text(&files.cert))
            .tls_text("key", path_text(&files.key))
    }

    pub(crate) fn listening_on(mut self, listen: impl ToString) -> Self {
        self.listen = listen.to_string();
        self
    }

    pub(crate) fn named(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// A key of the service; `value` is TOML as written.
    pub(crate) fn set(mut self, key: &str, value: &str) -> Self {
        put(&mut self.keys, key, value.to_owned());
        self
    }

    /// A key of the service with a string as value.
    pub(crate) fn text(mut self, key: &str, value: &str) -> Self {
        put(&mut self.keys, key, quoted(value));
        self
    }

    /// A key of the service's `tls` table; `value` is TOML as written.
    pub(crate) fn tls(mut self, key: &str, value: &str) -> Self {
        put(&mut self.tls, key, value.to_owned());
        self
    }

    pub(crate) fn tls_text(mut self, key: &str, value: &str) -> Self {
        put(&mut self.tls, key, quoted(value));
        self
    }

    /// Without this key of the `tls` table.
    pub(crate) fn without_tls(mut self, key: &str) -> Self {
        self.tls.retain(|(name, _)| name != key);
        self
    }

    /// The TCP address it listens on.
    pub(crate) fn address(&self) -> SocketAddr {
        self.listen.parse().expect("this service listens on TCP")
    }

    fn render(&self, out: &mut String) {
        let name = quoted(&self.name);
        let _ = writeln!(
            out,
            "\n[services.{name}]\nlisten = {}",
            quoted(&self.listen)
        );
        for (key, value) in &self.keys {
            let _ = writeln!(out, "{key} = {value}");
        }
        let _ = writeln!(out, "\n[services.{name}.tls]");
        for (key, value) in &self.tls {
            let _ = writeln!(out, "{key} = {value}");
        }
    }
}

fn put(keys: &mut Vec<(String, String)>, key: &str, value: String) {
    keys.retain(|(name, _)| name != key);
    keys.push((key.to_owned(), value));
}

/// A TOML string: JSON's escapes are a subset of TOML's.
pub(crate) fn quoted(text: &str) -> String {
    serde_json::to_string(text).expect("text is JSON")
}

pub(crate) fn path_text(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}

/// A configuration file in the making.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    admin: String,
    admin_keys: String,
    top: String,
    services: Vec<Service>,
}

impl Config {
    /// With an admin address of its own.
    pub(crate) fn new() -> Self {
        Self {
            admin: net::address().to_string(),
            admin_keys: String::new(),
            top: String::new(),
            services: Vec::new(),
        }
    }

    pub(crate) fn of(services: impl IntoIterator<Item = Service>) -> Self {
        services.into_iter().fold(Self::new(), Self::service)
    }

    pub(crate) fn service(mut self, service: Service) -> Self {
        self.services.push(service);
        self
    }

    /// The same file but for its services.
    pub(crate) fn with_services(&self, services: impl IntoIterator<Item = Service>) -> Self {
        Self {
            services: services.into_iter().collect(),
            ..self.clone()
        }
    }

    pub(crate) fn admin(mut self, listen: &str) -> Self {
        listen.clone_into(&mut self.admin);
        self
    }

    /// Where the admin endpoint listens.
    pub(crate) fn admin_address(&self) -> &str {
        &self.admin
    }

    pub(crate) fn services(&self) -> &[Service] {
        &self.services
    }

    /// A further key of the `admin` table; `value` is TOML as written.
    pub(crate) fn admin_key(mut self, key: &str, value: &str) -> Self {
        let _ = writeln!(self.admin_keys, "{key} = {value}");
        self
    }

    /// Lines for the top of the file, above the first table.
    pub(crate) fn top(mut self, lines: &str) -> Self {
        self.top.push_str(lines);
        self.top.push('\n');
        self
    }

    pub(crate) fn render(&self) -> String {
        let mut out = format!(
            "{}[admin]\nlisten = {}\n{}",
            self.top,
            quoted(&self.admin),
            self.admin_keys
        );
        for service in &self.services {
            service.render(&mut out);
        }
        out
    }
}

/// One line of the log.
#[derive(Clone)]
pub(crate) struct LogLine {
    pub(crate) raw: String,
    json: Option<Value>,
}

impl std::fmt::Debug for LogLine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.raw)
    }
}

impl LogLine {
    fn new(raw: String) -> Self {
        let json = serde_json::from_str(&raw).ok();
        Self { raw, json }
    }

    /// A field, wherever the JSON format puts it: at the top or under `fields`.
    pub(crate) fn get(&self, field: &str) -> Option<&Value> {
        let json = self.json.as_ref()?;
        json.get(field)
            .or_else(|| json.get("fields").and_then(|fields| fields.get(field)))
    }

    pub(crate) fn text(&self, field: &str) -> Option<&str> {
        self.get(field).and_then(Value::as_str)
    }

    pub(crate) fn has(&self, field: &str, value: &str) -> bool {
        self.text(field) == Some(value)
    }
}

/// The running program; killed when dropped.
pub(crate) struct Proxy {
    child: Child,
    config_file: PathBuf,
    admin: String,
    log: Journal<LogLine>,
}

impl Proxy {
    /// Writes the configuration next to the PKI's files, starts the program and waits until it is
    /// ready.
    pub(crate) async fn start(pki: &Pki, config: &Config) -> Self {
        let mut proxy = Self::launch(clean_command(), pki, config);
        proxy.wait_until_ready().await;
        proxy
    }

    /// As [`Self::start`], where some service cannot serve yet: waits until the admin endpoint
    /// answers.
    pub(crate) async fn start_degraded(pki: &Pki, config: &Config) -> Self {
        let mut proxy = Self::launch(clean_command(), pki, config);
        proxy.wait_until_alive().await;
        proxy
    }

    /// As [`Self::start`], through a shell that first runs `before` (a limit, a namespace).
    pub(crate) async fn start_after(before: &str, pki: &Pki, config: &Config) -> Self {
        let mut shell = without_settings(Command::new("/bin/sh"));
        shell
            .arg("-c")
            .arg(format!("{before}; exec \"$0\" \"$@\""))
            .arg(TLSWARD);
        let mut proxy = Self::launch(shell, pki, config);
        proxy.wait_until_ready().await;
        proxy
    }

    /// As [`Self::start`], as the argument of another program (`unshare`, for example).
    pub(crate) async fn start_under(program: &[&str], pki: &Pki, config: &Config) -> Self {
        let mut proxy = Self::launch(command_under(program), pki, config);
        proxy.wait_until_ready().await;
        proxy
    }

    /// Starts the program and waits for nothing.
    pub(crate) fn launch(command: Command, pki: &Pki, config: &Config) -> Self {
        Self::launch_file(command, pki, &config.admin, &config.render())
    }

    /// As [`Self::launch`], with a file from elsewhere; its admin endpoint is `admin` all the same.
    pub(crate) fn launch_text(mut command: Command, pki: &Pki, admin: &str, text: &str) -> Self {
        command.env("TLSWARD_ADMIN_LISTEN", admin);
        Self::launch_file(command, pki, admin, text)
    }

    fn launch_file(mut command: Command, pki: &Pki, admin: &str, text: &str) -> Self {
        let config_file = pki.write("config.toml", text);
        let mut child = command
            .arg("run")
            .arg("-c")
            .arg(&config_file)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("tlsward can be started");
        let log = Journal::new();
        let stderr = child.stderr.take().expect("stderr is piped");
        tokio::spawn(read_log(stderr, log.clone()));
        Self {
            child,
            config_file,
            admin: admin.to_owned(),
            log,
        }
    }

    pub(crate) async fn wait_until_ready(&mut self) {
        self.wait_for_answer("/readyz").await;
    }

    /// Until the admin endpoint answers, ready or not.
    pub(crate) async fn wait_until_alive(&mut self) {
        self.wait_for_answer("/livez").await;
    }

    async fn wait_for_answer(&mut self, path: &str) {
        let (log, admin, child) = (&self.log, &self.admin, &mut self.child);
        let found = tokio::time::timeout(super::GUARD, async {
            loop {
                if let Some(status) = child.try_wait().expect("a child can be waited for") {
                    return Err(format!("tlsward ended with {status}"));
                }
                if matches!(http(admin, "GET", path, "").await, Ok(answer) if answer.code == 200) {
                    return Ok(());
                }
                tokio::time::sleep(super::POLL).await;
            }
        })
        .await;
        match found {
            Ok(Ok(())) => {}
            Ok(Err(why)) => panic!("{why}; its log:\n{}", log.tail(30)),
            Err(_) => panic!("{path} never answered 200; the log:\n{}", log.tail(30)),
        }
    }

    pub(crate) fn log(&self) -> &Journal<LogLine> {
        &self.log
    }

    /// Waits for a line of the log, from the beginning on.
    #[track_caller]
    pub(crate) fn wait_for_log(
        &self,
        what: impl Into<String>,
        mut is_it: impl FnMut(&LogLine) -> bool,
    ) -> impl Future<Output = LogLine> {
        self.log
            .wait(what, move |line| is_it(line).then(|| line.clone()))
    }

    /// The line at the end of a failed connection of `service` with this reason.
    #[track_caller]
    pub(crate) fn failure_logged(
        &self,
        service: &str,
        reason: &str,
    ) -> impl Future<Output = LogLine> {
        let (service, reason) = (service.to_owned(), reason.to_owned());
        self.wait_for_log(
            format!("a line of {service} with reason {reason}"),
            move |line| line.has("service", &service) && line.has("reason", &reason),
        )
    }

    /// The first number among the process's `VmRSS` etc. of /proc/PID/status, in KiB.
    pub(crate) fn memory_kib(&self, field: &str) -> u64 {
        let file = format!("/proc/{}/status", self.pid());
        let text = std::fs::read_to_string(file).expect("the proxy runs");
        text.lines()
            .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
            .and_then(|rest| rest.split_whitespace().next())
            .and_then(|number| number.parse().ok())
            .unwrap_or_else(|| panic!("no {field} in the process's status"))
    }

    /// User and system time that the process has used, from /proc/PID/stat.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        let file = format!("/proc/{}/stat", self.pid());
        let text = std::fs::read_to_string(file).expect("the proxy runs");
        // After the name in parentheses, which may hold anything: fields 3 and on. utime and
        // stime are 14 and 15 (proc(5)), in hundredths of a second on every Linux.
        let (_, fields) = text.rsplit_once(')').expect("the name is in parentheses");
        let ticks: f64 = fields
            .split_whitespace()
            .skip(11)
            .take(2)
            .filter_map(|field| field.parse::<f64>().ok())
            .sum();
        ticks / 100.0
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id().expect("the proxy runs")
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.pid().cast_signed()).expect("not zero");
        rustix::process::kill_process(pid, signal).expect("the proxy can be signalled");
    }

    /// Waits for the process to end by itself.
    pub(crate) async fn exit(&mut self) -> ExitStatus {
        within("tlsward to end", self.child.wait())
            .await
            .expect("a child can be waited for")
    }

    /// SIGTERM, then waits.
    pub(crate) async fn stop(mut self) -> ExitStatus {
        self.signal(rustix::process::Signal::TERM);
        self.exit().await
    }

    /// Replaces the configuration file at once, as an editor or a deployment would.
    pub(crate) fn write_config(&self, config: &Config) {
        self.write_config_text(&config.render());
    }

    pub(crate) fn write_config_text(&self, text: &str) {
        let new = self.config_file.with_extension("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(&new, &self.config_file).unwrap();
    }

    pub(crate) fn config_file(&self) -> &Path {
        &self.config_file
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        http(&self.admin, "GET", path, "")
            .await
            .unwrap_or_else(|error| panic!("GET {path}: {error}; the log:\n{}", self.log.tail(30)))
    }

    /// `POST /reload`: the answer comes when the reload is done.
    pub(crate) async fn reload(&self) -> Answer {
        self.post("/reload").await
    }

    pub(crate) async fn post(&self, path: &str) -> Answer {
        http(&self.admin, "POST", path, "")
            .await
            .unwrap_or_else(|error| panic!("POST {path}: {error}; the log:\n{}", self.log.tail(30)))
    }

    /// Replaces the configuration and asks for a reload.
    pub(crate) async fn reconfigure(&self, config: &Config) -> Answer {
        self.write_config(config);
        self.reload().await
    }

    pub(crate) async fn status(&self) -> Value {
        let answer = self.get("/status").await;
        serde_json::from_str(&answer.body).unwrap_or_else(|error| {
            panic!("/status is not JSON: {error}\n{}", answer.body);
        })
    }

    /// One service's part of status.
    pub(crate) async fn service(&self, name: &str) -> Value {
        let status = self.status().await;
        find_service(&status, name)
            .cloned()
            .unwrap_or_else(|| panic!("no service {name} in {status:#}"))
    }

    /// Waits until status shows what `pick` looks for.
    #[track_caller]
    pub(crate) fn wait_for_status<R>(
        &self,
        what: impl Into<String>,
        pick: impl Fn(&Value) -> Option<R>,
    ) -> impl Future<Output = R> {
        within(what, async move {
            loop {
                if let Some(found) = pick(&self.status().await) {
                    return found;
                }
                tokio::time::sleep(super::POLL).await;
            }
        })
    }

    /// Waits until the part of `name` shows what `pick` looks for.
    #[track_caller]
    pub(crate) fn wait_for_service<R>(
        &self,
        name: &str,
        what: impl Into<String>,
        pick: impl Fn(&Value) -> Option<R>,
    ) -> impl Future<Output = R> {
        let name = name.to_owned();
        self.wait_for_status(what, move |status| {
            find_service(status, &name).and_then(&pick)
        })
    }

    /// The failure that status shows last for a service, once its reason is `reason`.
    #[track_caller]
    pub(crate) fn last_failure(&self, name: &str, reason: &str) -> impl Future<Output = Value> {
        let reason = reason.to_owned();
        self.wait_for_service(
            name,
            format!("{reason} as the last failure in status"),
            move |service| {
                let failure = traffic(service)?.get("last_failure")?;
                (failure["reason"] == reason.as_str()).then(|| failure.clone())
            },
        )
    }

    /// The sum over all series of the metric that carry these labels; 0 where there is none.
    pub(crate) async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let answer = self.get("/metrics").await;
        series(&answer.body, name, labels).iter().sum()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // A test that wants an orderly end calls `stop`; the child is killed when dropped.
        if std::thread::panicking() {
            eprintln!("the end of the proxy's log:\n{}", self.log.tail(40));
        }
    }
}

fn find_service<'a>(status: &'a Value, name: &str) -> Option<&'a Value> {
    status["services"]
        .as_array()?
        .iter()
        .find(|service| service["name"] == name)
}

/// The live counters of a service in status.
pub(crate) fn traffic(service: &Value) -> Option<&Value> {
    service.get("traffic")
}

/// The serial of the client certificate that a service uses, from its part of status.
pub(crate) fn serial_in_use(service: &Value) -> Option<&str> {
    service["identity"]["chain"][0]["serial"].as_str()
}

async fn read_log(stderr: impl AsyncRead + Unpin, log: Journal<LogLine>) {
    let mut lines = BufReader::new(stderr).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        log.push(LogLine::new(line));
    }
}

/// The values of all series of `name` that carry `labels`.
pub(crate) fn series(exposition: &str, name: &str, labels: &[(&str, &str)]) -> Vec<f64> {
    exposition
        .lines()
        .filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let (series, value) = match rest.strip_prefix('{') {
                Some(rest) => rest.rsplit_once("} ")?,
                None => ("", rest.strip_prefix(' ')?),
            };
            let carries = |(key, value): &(&str, &str)| {
                let label = format!("{key}=\"{value}\"");
                series.split(',').any(|one| one == label)
            };
            let number = value.split(' ').next()?;
            labels.iter().all(carries).then(|| number.parse().ok())?
        })
        .collect()
}

/// An answer of the admin endpoint.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) code: u16,
    pub(crate) body: String,
}

/// One HTTP/1.1 request on a connection of its own. `headers` are whole lines with their ends.
pub(crate) async fn http(
    admin: &str,
    method: &str,
    path: &str,
    headers: &str,
) -> std::io::Result<Answer> {
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n{headers}\r\n"
    );
    let exchange = async {
        match admin.strip_prefix("unix:") {
            Some(path) => {
                let path = path.split('?').next().unwrap_or(path);
                converse(UnixStream::connect(path).await?, &request).await
            }
            None => converse(TcpStream::connect(admin).await?, &request).await,
        }
    };
    within("an answer from the admin endpoint", exchange).await
}

async fn converse(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    request: &str,
) -> std::io::Result<Answer> {
    let malformed = |what: &str| std::io::Error::new(std::io::ErrorKind::InvalidData, what);
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let answer = String::from_utf8(answer).map_err(|_| malformed("not UTF-8"))?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .ok_or_else(|| malformed("no end of the header"))?;
    assert!(
        !head.to_ascii_lowercase().contains("transfer-encoding"),
        "this client reads answers of known length only"
    );
    let code = head
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .ok_or_else(|| malformed("no status code"))?;
    Ok(Answer {
        code,
        body: body.to_owned(),
    })
}
