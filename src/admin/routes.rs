//! What each endpoint answers, and to whom it does not. No sockets here.

use std::error::Error;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::{Body, Bytes};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::http::uri::Authority;
use hyper::{Method, Request, Response, StatusCode, Uri};
use serde_json::{Value, json};

use super::{Quit, QuitReport, ReloadOutcome, Shared, Surface};
use crate::failure::Explained;
use crate::status::{self, ProcessState, Status};

/// No endpoint needs a body; this lets a client that sends one anyway have its answer.
const MAX_BODY: usize = 64 * 1024;

/// For the body of a request, after its head.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
/// Prometheus' own format.
const CLASSIC: &str = "text/plain; version=0.0.4; charset=utf-8";
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Where a request came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entrance {
    pub(super) surface: Surface,
    /// Over TCP, where a browser can be made to knock; a unix socket is out of its reach.
    pub(super) tcp: bool,
}

/// Answers one request. Never fails: a mistake of the client is an answer too.
pub(super) async fn respond<B>(
    request: Request<B>,
    entrance: Entrance,
    shared: &Shared,
) -> Response<Full<Bytes>>
where
    B: Body,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let (head, body) = request.into_parts();
    answer(&head, body, entrance, shared)
        .await
        .unwrap_or_else(|refusal| refusal)
        .into_response()
}

/// `Err` where a rule was broken; both are sent.
async fn answer<B>(
    head: &Parts,
    body: B,
    entrance: Entrance,
    shared: &Shared,
) -> Result<Answer, Answer>
where
    B: Body,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    if entrance
        == (Entrance {
            surface: Surface::Admin,
            tcp: true,
        })
    {
        refuse_foreign_host(head)?;
    }
    let endpoint = find(head, entrance.surface)?;
    if endpoint.changes_state() {
        refuse_cross_site(&head.headers)?;
        read_to_end(body).await?;
    }
    let status = || shared.status.borrow().clone();
    Ok(match endpoint {
        Endpoint::Index => Answer::text(StatusCode::OK, index(entrance.surface)),
        Endpoint::Livez => Answer::text(StatusCode::OK, "ok\n"),
        Endpoint::Readyz => readyz(&status(), &head.uri, entrance.surface),
        Endpoint::Metrics if wants_openmetrics(&head.headers) => Answer::new(
            StatusCode::OK,
            OPENMETRICS,
            shared.metrics.encode_openmetrics(),
        ),
        Endpoint::Metrics => Answer::new(StatusCode::OK, CLASSIC, shared.metrics.encode()),
        Endpoint::Status => {
            let memory = shared.metrics.memory();
            let traffic = |name: &str| shared.metrics.traffic(name);
            let value = status::render_json(&status(), &memory, traffic);
            Answer::json(StatusCode::OK, &value)
        }
        Endpoint::Reload => reload(shared).await?,
        Endpoint::Quit => quit(shared),
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Endpoint {
    Index,
    Livez,
    Readyz,
    Metrics,
    Status,
    Reload,
    Quit,
}

impl Endpoint {
    /// In the order of the list that people read.
    const ALL: [Self; 7] = [
        Self::Index,
        Self::Livez,
        Self::Readyz,
        Self::Metrics,
        Self::Status,
        Self::Reload,
        Self::Quit,
    ];

    fn path(self) -> &'static str {
        match self {
            Self::Index => "/",
            Self::Livez => "/livez",
            Self::Readyz => "/readyz",
            Self::Metrics => "/metrics",
            Self::Status => "/status",
            Self::Reload => "/reload",
            Self::Quit => "/quit",
        }
    }

    fn says(self) -> &'static str {
        match self {
            Self::Index => "this list",
            Self::Livez => "200 while the process runs",
            Self::Readyz => {
                "200 when every service can serve, else 503; ?verbose says why, as JSON"
            }
            Self::Metrics => "metrics for Prometheus",
            Self::Status => "everything about every service, as JSON",
            Self::Reload => "reads the configuration and all certificates again; answers when done",
            Self::Quit => "ends the process as SIGTERM does; answers when that has begun",
        }
    }

    fn is_on(self, surface: Surface) -> bool {
        match surface {
            Surface::Admin => true,
            Surface::Public => matches!(self, Self::Livez | Self::Readyz | Self::Metrics),
        }
    }

    fn changes_state(self) -> bool {
        matches!(self, Self::Reload | Self::Quit)
    }

    fn methods(self) -> &'static str {
        if self.changes_state() {
            "POST"
        } else {
            "GET, HEAD"
        }
    }

    fn takes(self, method: &Method) -> bool {
        if self.changes_state() {
            method == Method::POST
        } else {
            method == Method::GET || method == Method::HEAD
        }
    }
}

fn find(head: &Parts, surface: Surface) -> Result<Endpoint, Answer> {
    let path = head.uri.path();
    let endpoint = Endpoint::ALL
        .into_iter()
        .find(|endpoint| endpoint.path() == path && endpoint.is_on(surface))
        .ok_or_else(|| {
            let text = format!("there is no such endpoint; there are:\n{}", index(surface));
            Answer::text(StatusCode::NOT_FOUND, text)
        })?;
    if endpoint.takes(&head.method) {
        return Ok(endpoint);
    }
    let methods = endpoint.methods();
    let text = format!("{path} takes {methods} only\n");
    Err(Answer::text(StatusCode::METHOD_NOT_ALLOWED, text)
        .with(header::ALLOW, HeaderValue::from_static(methods)))
}

fn index(surface: Surface) -> String {
    Endpoint::ALL
        .into_iter()
        .filter(|endpoint| endpoint.is_on(surface))
        .map(|endpoint| {
            let method = if endpoint.changes_state() {
                "POST"
            } else {
                "GET"
            };
            format!("{method:4} {:9} {}\n", endpoint.path(), endpoint.says())
        })
        .collect()
}

/// A page whose own name was made to resolve to this address (DNS rebinding) would pass as the
/// same origin: its name in `Host` gives it away. People and tools name an address or `localhost`.
fn refuse_foreign_host(head: &Parts) -> Result<(), Answer> {
    let named = head
        .headers
        .get_all(header::HOST)
        .iter()
        .map(|host| host.to_str().unwrap_or("?"));
    for host in named.chain(head.uri.authority().map(Authority::as_str)) {
        if !host.is_empty() && !is_local_name(host) {
            return Err(Answer::text(
                StatusCode::FORBIDDEN,
                format!(
                    "this endpoint is not known as {host:?}: use its IP address or localhost; for \
                     probes and Prometheus by name there is admin.public_listen\n"
                ),
            ));
        }
    }
    Ok(())
}

/// An address with or without port, or `localhost`, and not a character more.
fn is_local_name(host: &str) -> bool {
    if host.parse::<SocketAddr>().is_ok() {
        return true;
    }
    if let Some(v6) = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
    {
        return v6.parse::<Ipv6Addr>().is_ok();
    }
    let (name, port) = host.split_once(':').unwrap_or((host, "0"));
    port.parse::<u16>().is_ok()
        && (name.eq_ignore_ascii_case("localhost") || name.parse::<Ipv4Addr>().is_ok())
}

/// Browsers say in `Sec-Fetch-Site` or, older ones, in `Origin` which page makes them ask; pages
/// cannot change either. Tools send neither.
fn refuse_cross_site(headers: &HeaderMap) -> Result<(), Answer> {
    let host = headers.get(header::HOST).map(HeaderValue::as_bytes);
    let foreign_site = headers
        .get_all("sec-fetch-site")
        .iter()
        .any(|site| site != "same-origin" && site != "none");
    let foreign_origin = headers
        .get_all(header::ORIGIN)
        .iter()
        .any(|origin| !is_origin_of(origin, host));
    if foreign_site || foreign_origin {
        return Err(Answer::text(
            StatusCode::FORBIDDEN,
            "another site's page may not do this\n",
        ));
    }
    Ok(())
}

fn is_origin_of(origin: &HeaderValue, host: Option<&[u8]>) -> bool {
    let origin = Uri::try_from(origin.as_bytes()).ok();
    match (origin.as_ref().and_then(Uri::authority), host) {
        (Some(origin), Some(host)) => origin.as_str().as_bytes().eq_ignore_ascii_case(host),
        // `null`, as sandboxed pages send it, has no authority.
        _ => false,
    }
}

async fn read_to_end<B>(body: B) -> Result<(), Answer>
where
    B: Body,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let body = std::pin::pin!(Limited::new(body, MAX_BODY).collect());
    match tokio::time::timeout(BODY_TIMEOUT, body).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Answer::text(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("a request's body may have {MAX_BODY} bytes\n"),
        )),
        Ok(Err(error)) => Err(Answer::text(
            StatusCode::BAD_REQUEST,
            format!("the request's body is broken: {error}\n"),
        )),
        Err(_) => Err(Answer::text(
            StatusCode::REQUEST_TIMEOUT,
            format!("the request's body took longer than {BODY_TIMEOUT:?}\n"),
        )),
    }
}

fn readyz(status: &Status, uri: &Uri, surface: Surface) -> Answer {
    let ready = status.state == ProcessState::Ready;
    let code = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let verbose = uri
        .query()
        .unwrap_or_default()
        .split('&')
        .any(|pair| pair == "verbose" || pair.starts_with("verbose="));
    if verbose {
        return Answer::json(code, &readiness(status, ready, surface));
    }
    Answer::text(code, if ready { "ready\n" } else { "not ready\n" })
}

fn readiness(status: &Status, ready: bool, surface: Surface) -> Value {
    let services: Vec<Value> = status
        .services
        .iter()
        .map(|service| {
            let mut value = json!({
                "name": service.name,
                "state": service.state,
                "ready": service.state.serves(),
            });
            add_why(&mut value, service.problem.as_ref(), surface);
            value
        })
        .collect();
    let mut config = json!({ "generation": status.config.generation });
    add_why(&mut config, status.config.refused.as_ref(), surface);
    json!({
        "ready": ready,
        "state": status.state,
        "config": config,
        "services": services,
    })
}

/// Particulars name files and addresses of this machine: they are for the admin listener only.
fn add_why(value: &mut Value, why: Option<&Explained>, surface: Surface) {
    let Some(why) = why else { return };
    value["reason"] = json!(why.reason);
    value["hint"] = json!(why.hint);
    if surface == Surface::Admin {
        value["detail"] = json!(why.detail);
    }
}

async fn reload(shared: &Shared) -> Result<Answer, Answer> {
    let stopping = || {
        Answer::text(
            StatusCode::SERVICE_UNAVAILABLE,
            "tlsward is stopping; nothing was reloaded\n",
        )
    };
    let outcome = shared.reload.ask().await.ok_or_else(stopping)?;
    let code = match outcome {
        ReloadOutcome::Applied(_) => StatusCode::OK,
        ReloadOutcome::Refused(_) => StatusCode::CONFLICT,
    };
    let value = serde_json::to_value(&outcome)
        .expect("plain structs with text keys can always be written as JSON");
    Ok(Answer::json(code, &value))
}

/// The same road as SIGTERM; but a second request changes nothing, since it may be a hook that is
/// run twice.
fn quit(shared: &Shared) -> Answer {
    let leaving = shared.shutdown.leaving();
    let outcome = match leaving.is_cancelled() {
        true => Quit::StoppingAlready,
        false => Quit::Stopping,
    };
    leaving.cancel();
    let terms = shared.shutdown.terms();
    let report = QuitReport {
        outcome,
        connections_open: shared.metrics.open(),
        shutdown_delay_seconds: terms.delay.as_secs_f64(),
        shutdown_timeout_seconds: terms.timeout.as_secs_f64(),
    };
    let value = serde_json::to_value(report)
        .expect("plain structs with text keys can always be written as JSON");
    Answer::json(StatusCode::ACCEPTED, &value)
}

/// Prometheus lists the formats that it takes with their weights; people's tools take anything,
/// and get what is most widely understood.
fn wants_openmetrics(headers: &HeaderMap) -> bool {
    let ranges: Vec<(&str, f32)> = headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(media_range)
        .collect();
    let weight = |kind: &str| {
        ranges
            .iter()
            .filter(|(name, _)| name.eq_ignore_ascii_case(kind))
            .map(|(_, weight)| *weight)
            .fold(0.0, f32::max)
    };
    let openmetrics = weight("application/openmetrics-text");
    openmetrics > 0.0 && openmetrics >= weight("text/plain")
}

/// The media type and its weight (RFC 9110 section 12.4.2).
fn media_range(range: &str) -> (&str, f32) {
    let mut parts = range.split(';').map(str::trim);
    let name = parts.next().unwrap_or_default();
    let weight = parts
        .find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")))
        .map_or(1.0, |weight| weight.parse().unwrap_or(0.0));
    (name, weight)
}

/// A response that is not complete yet: the headers that all have come last.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    content_type: &'static str,
    body: String,
    extra: Option<(HeaderName, HeaderValue)>,
}

impl Answer {
    fn new(status: StatusCode, content_type: &'static str, body: impl Into<String>) -> Self {
        Self {
            status,
            content_type,
            body: body.into(),
            extra: None,
        }
    }

    fn text(status: StatusCode, body: impl Into<String>) -> Self {
        Self::new(status, TEXT, body)
    }

    /// Indented, for people at a prompt.
    fn json(status: StatusCode, value: &Value) -> Self {
        Self::new(status, JSON, format!("{value:#}\n"))
    }

    fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.extra = Some((name, value));
        self
    }

    fn into_response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::from(self.body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static(self.content_type),
        );
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(
            header::X_CONTENT_TYPE_OPTIONS,
            HeaderValue::from_static("nosniff"),
        );
        headers.extend(self.extra);
        response
    }
}

#[cfg(test)]
mod tests;
