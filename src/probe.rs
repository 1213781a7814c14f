//! `tlsward probe`: one real handshake with a service's identity, and the server's verdict on it.

use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::UnixTime;
use serde::Serialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::config::{ServiceName, Verify};
use crate::control::State;
use crate::failure::{Explained, Failure, Phase, Reason, Side};
use crate::proxy::connect::{Connected, Dial, Progress, connect};
use crate::proxy::outcome;
use crate::proxy::relay::{Break, Transfer};
use crate::proxy::resolve::Resolver;
use crate::proxy::scratch::{self, Pieces};
use crate::proxy::session::{Engine, Session as _};
use crate::route::{Presented, Route};
use crate::tls::names::matched_name;
use crate::tls::summary::CertificateSummary;

/// How long a TLS 1.3 server may take to object to our certificate: it does so after the
/// handshake is over for us.
const VERDICT: Duration = Duration::from_millis(1500);

/// What a probe found.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) service: String,
    pub(crate) upstream: Vec<String>,
    /// SHA-256 of the client certificate that was presented; `None` if none was.
    pub(crate) presented: Option<String>,
    #[serde(flatten)]
    pub(crate) found: Option<Found>,
    /// What `found` says of the server's verdict, or why there is none.
    pub(crate) accepted: Option<&'static str>,
    pub(crate) failure: Option<Failure>,
    /// The service cannot dial at all.
    pub(crate) not_ready: Option<Explained>,
}

/// A handshake that was completed.
#[derive(Debug, Serialize)]
pub(crate) struct Found {
    pub(crate) address: String,
    pub(crate) version: Option<String>,
    pub(crate) cipher: Option<String>,
    pub(crate) group: Option<String>,
    pub(crate) alpn: Option<String>,
    /// Leaf first, as the server sent it.
    pub(crate) server_chain: Vec<CertificateSummary>,
    /// The name in the server's certificate that matched; `None` where names are not verified.
    pub(crate) matched: Option<String>,
}

impl Report {
    pub(crate) fn is_good(&self) -> bool {
        self.failure.is_none() && self.not_ready.is_none()
    }
}

/// Dials the service as the proxy would, waits for the server's verdict, and hangs up.
pub(crate) async fn probe(state: &State, name: &ServiceName) -> Option<Report> {
    let service = state.config.services.get(name)?;
    let mut report = Report {
        service: name.to_string(),
        upstream: service.upstream.words(),
        presented: None,
        found: None,
        accepted: None,
        failure: None,
        not_ready: None,
    };
    let route = match state.route_of(service) {
        Ok(route) => route,
        Err(why) => {
            report.not_ready = Some(why);
            return Some(report);
        }
    };
    if let Presented::Certificate { fingerprint, .. } = &route.identity {
        report.presented = Some(fingerprint.to_string());
    }
    let dial = Dial {
        resolver: Arc::new(Resolver::here()),
        accepted: Instant::now(),
        dialling: None,
    };
    match connect(&route, &dial, &Progress::new()).await {
        Err(failure) => report.failure = Some(failure),
        Ok(connected) => {
            report.found = Some(found(&connected, service.tls.verify));
            match verdict(connected, &route).await {
                Ok(accepted) => report.accepted = Some(accepted),
                Err(failure) => report.failure = Some(failure),
            }
        }
    }
    Some(report)
}

fn found(connected: &Connected, verify: Verify) -> Found {
    let session = connected.session.facts();
    let chain = session.peer_certificates().unwrap_or_default();
    Found {
        address: connected.endpoint.to_string(),
        version: session
            .protocol_version()
            .map(|version| format!("{version:?}").replace("TLSv1_", "1.")),
        cipher: session
            .negotiated_cipher_suite()
            .map(|suite| format!("{:?}", suite.suite()).replace("TLS13_", "TLS_")),
        group: session
            .negotiated_key_exchange_group()
            .map(|group| format!("{:?}", group.name())),
        alpn: session
            .alpn_protocol()
            .map(|name| String::from_utf8_lossy(name).into_owned()),
        server_chain: chain
            .iter()
            .filter_map(|der| CertificateSummary::of(der).ok())
            .collect(),
        matched: chain
            .first()
            .filter(|_| verify == Verify::Full)
            .and_then(|leaf| matched_name(leaf, &connected.server_name)),
    }
}

/// Waits for a sign that the server has taken our certificate (a session ticket, or data), for
/// its objection, or for [`VERDICT`] to pass in silence.
async fn verdict(connected: Connected, route: &Route) -> Result<&'static str, Failure> {
    let Connected {
        mut stream,
        session,
        ..
    } = connected;
    // Before TLS 1.3 the server judges our certificate within the handshake.
    let judged = session.facts().protocol_version() == Some(rustls::ProtocolVersion::TLSv1_2);
    let mut session = session.into_session().map_err(outcome::no_session)?;
    let result = if judged {
        Ok(Ok(
            "the server finished the handshake (TLS 1.2 judges our certificate in it)",
        ))
    } else {
        tokio::time::timeout(VERDICT, listen(&mut stream, &mut session, route)).await
    };
    session.close();
    let mut farewell = Vec::new();
    if session.write(&mut farewell).is_ok() {
        // The server may be gone, which the verdict says.
        let _ = stream.write_all(&farewell).await;
    }
    match result {
        Ok(result) => result,
        Err(_) => Ok("no objection within 1.5 s"),
    }
}

async fn listen(
    stream: &mut TcpStream,
    session: &mut Engine,
    route: &Route,
) -> Result<&'static str, Failure> {
    const READ: usize = 16 * 1024;
    let broke = |broken| outcome::relay_broke(broken, &Transfer::default(), &route.identity);
    // Our last flight, which a relay would send with the first data.
    let mut flight = Vec::new();
    while session.wants_write() {
        session
            .write(&mut flight)
            .map_err(|error| broke(Break::Upstream(error)))?;
    }
    // A server that takes no more may have said why before that.
    let _ = stream.write_all(&flight).await;
    let mut buffer = vec![0; scratch::HEADROOM + READ];
    let mut pieces = Pieces::default();
    let mut filled = 0;
    loop {
        // What came with the handshake is an answer too.
        let wire = &mut buffer[..session.room() + filled];
        session
            .open(wire, &mut pieces)
            .map_err(|error| broke(Break::Tls(Box::new(error))))?;
        if !pieces.is_empty() {
            return Ok("the server sent data");
        } else if session.peer_closed() {
            return Ok("the server ended the session in good order");
        } else if session.tickets() > 0 {
            return Ok("the server sent a session ticket");
        }
        let room = session.room();
        filled = stream
            .read(&mut buffer[room..room + READ])
            .await
            .map_err(|error| broke(Break::Upstream(error)))?;
        if filled == 0 {
            let detail = "the server closed the connection after the handshake without saying why";
            return Err(Failure::new(
                Phase::Handshake,
                Side::Upstream,
                Reason::ClosedInHandshake,
                detail,
            ));
        }
    }
}

/// For people.
impl Report {
    pub(crate) fn text(&self, now: UnixTime) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = self.write(&mut text, now);
        text
    }

    fn write(&self, f: &mut String, now: UnixTime) -> fmt::Result {
        let verdict = if self.is_good() { "ok" } else { "FAILED" };
        writeln!(f, "{}: {verdict}", self.service)?;
        writeln!(f, "  upstream    {}", self.upstream.join(", "))?;
        if let Some(found) = &self.found {
            let words = [&found.version, &found.cipher, &found.group];
            let words: Vec<&str> = words.into_iter().flatten().map(String::as_str).collect();
            writeln!(f, "  address     {}", found.address)?;
            writeln!(f, "  TLS         {}", words.join(", "))?;
            if let Some(alpn) = &found.alpn {
                writeln!(f, "  ALPN        {alpn}")?;
            }
            for (n, certificate) in found.server_chain.iter().enumerate() {
                let label = if n == 0 { "server" } else { "issuer" };
                let days = certificate.days_left(now);
                writeln!(
                    f,
                    "  {label}      {} ({days} days left)",
                    certificate.subject
                )?;
                if n == 0 {
                    writeln!(f, "              names {}", certificate.names.join(", "))?;
                    writeln!(f, "              {}", certificate.pin)?;
                }
            }
            if let Some(name) = &found.matched {
                writeln!(f, "  name        {name} matched")?;
            }
        }
        match (&self.presented, &self.not_ready) {
            (Some(fingerprint), _) => writeln!(f, "  we are      sha256 {fingerprint}")?,
            (None, None) => writeln!(f, "  we are      nobody (client_auth = false)")?,
            // It did not come to presenting anything.
            (None, Some(_)) => {}
        }
        if let Some(accepted) = self.accepted {
            writeln!(f, "  accepted    {accepted}")?;
        }
        if let Some(why) = &self.not_ready {
            writeln!(f, "  not ready   {why}\n  what to do  {}", why.hint)?;
        }
        if let Some(failure) = &self.failure {
            writeln!(
                f,
                "  failed in   {} ({})",
                failure.phase.as_str(),
                failure.side.as_str()
            )?;
            writeln!(
                f,
                "  reason      {}\n  what to do  {}",
                failure.why, failure.why.hint
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::test_pki::now;

    fn report(not_ready: Option<Explained>) -> Report {
        Report {
            service: "billing".into(),
            upstream: vec!["billing.internal:8443".into()],
            presented: None,
            found: None,
            accepted: None,
            failure: None,
            not_ready,
        }
    }

    #[test]
    fn only_a_service_that_dialled_without_a_certificate_is_called_nobody() {
        let why = Explained::new(Reason::IdentityMissing, "tls.crt does not exist");
        let text = report(Some(why)).text(now());
        assert!(!text.contains("client_auth"), "{text}");
        assert!(
            text.contains("not ready   identity_missing: tls.crt"),
            "{text}"
        );
        assert!(report(None).text(now()).contains("client_auth = false"));
    }
}
