//! Before a proxy is measured it shows, by traffic, that it does the work that is compared: it
//! presents the client certificate, and no byte of a caller reaches a server of another CA or of
//! another name.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use crate::pki::Pki;
use crate::proxy::{Proxy, Running, Setup, one_byte};
use crate::upstream::{Guise, Policy, Upstream, command};

/// For a refusal to reach the caller, and for the server to notice it.
const PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(5);

/// What was seen.
#[derive(Clone, Copy, Debug)]
struct Evidence {
    /// The upstream was shown the certificate that the proxy was given.
    presented: bool,
    impostor: Encounter,
    misnamed: Encounter,
    /// With the genuine server back at the same address all is well again, so that what happened
    /// in between was about certificates.
    recovered: bool,
}

/// A caller's attempt while a wrong server stands at the upstream's address.
#[derive(Clone, Copy, Debug)]
struct Encounter {
    /// The proxy came to the server, and went away again. It may have finished the handshake: with
    /// OpenSSL some look at the certificate afterwards.
    left: bool,
    /// The caller's connection was ended.
    refused: bool,
    /// A caller's byte arrived at the server.
    leaked: bool,
}

/// Proves one proxy; `setup.upstream` must be free, servers stand there one after the other.
///
/// # Errors
/// What it fails in, or why it could not be tried.
pub(crate) async fn prove(
    proxy: &dyn Proxy,
    setup: &Setup,
    pki: &Pki,
    policy: Policy,
) -> io::Result<()> {
    let stand = |guise| Upstream::start_at(setup.upstream, pki, Policy { guise, ..policy });
    let genuine = stand(Guise::Genuine)?;
    let running = Running::start(proxy, setup).await?;
    let presented = genuine.client() == Some(&pki.client().leaf());
    drop(genuine);
    let impostor = encounter(&running, &stand(Guise::Impostor)?).await?;
    let misnamed = encounter(&running, &stand(Guise::Misnamed)?).await?;
    let _genuine = stand(Guise::Genuine)?;
    let again = timeout(PATIENCE, one_byte(running.listen)).await;
    let evidence = Evidence {
        presented,
        impostor,
        misnamed,
        recovered: matches!(again, Ok(Ok(()))),
    };
    judge(&evidence).map_err(io::Error::other)
}

async fn encounter(running: &Running, server: &Upstream) -> io::Result<Encounter> {
    let mut stream = TcpStream::connect(running.listen).await?;
    let mut byte = [command::ECHO];
    // Where the proxy has already hung up there is nothing more to see than that.
    let attempt = async {
        stream.write_all(&byte).await?;
        stream.read(&mut byte).await
    };
    let refused = matches!(timeout(PATIENCE, attempt).await, Ok(Ok(0) | Err(_)));
    // All that the proxy sent has been looked at when the server has seen the end.
    let deadline = Instant::now() + PATIENCE;
    while server.ended() == 0 && Instant::now() < deadline {
        sleep(POLL).await;
    }
    Ok(Encounter {
        left: server.ended() > 0,
        refused,
        leaked: server.spoken() > 0,
    })
}

fn judge(evidence: &Evidence) -> Result<(), String> {
    let Evidence {
        presented,
        impostor,
        misnamed,
        recovered,
    } = evidence;
    if !presented {
        return Err("it does not present the client certificate".to_owned());
    }
    for (encounter, server) in [
        (impostor, "a server of another CA"),
        (misnamed, "a server of another name"),
    ] {
        if encounter.leaked {
            return Err(format!("it sends a caller's data to {server}"));
        }
        if !encounter.refused {
            return Err(format!("it does not refuse {server}"));
        }
        if !encounter.left {
            return Err(format!("it was not seen to try {server}"));
        }
    }
    if !recovered {
        return Err("after it had refused others it no longer served".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const REFUSED: Encounter = Encounter {
        left: true,
        refused: true,
        leaked: false,
    };

    const GOOD: Evidence = Evidence {
        presented: true,
        impostor: REFUSED,
        misnamed: REFUSED,
        recovered: true,
    };

    fn objection(evidence: Evidence) -> String {
        judge(&evidence).expect_err("the evidence is bad")
    }

    #[test]
    fn a_proxy_that_refuses_and_presents_is_proven() {
        assert_eq!(judge(&GOOD), Ok(()));
    }

    #[test]
    fn trusting_an_impostor_or_another_name_is_seen() {
        let trusting = Encounter {
            refused: false,
            leaked: true,
            ..REFUSED
        };
        for bad in [
            trusting,
            Encounter {
                leaked: true,
                ..REFUSED
            },
            Encounter {
                refused: false,
                ..REFUSED
            },
        ] {
            let impostor = Evidence {
                impostor: bad,
                ..GOOD
            };
            assert!(objection(impostor).contains("another CA"));
            let misnamed = Evidence {
                misnamed: bad,
                ..GOOD
            };
            assert!(objection(misnamed).contains("another name"));
        }
    }

    #[test]
    fn a_proxy_that_never_came_to_the_impostor_has_not_refused_it() {
        let impostor = Encounter {
            left: false,
            ..REFUSED
        };
        assert!(objection(Evidence { impostor, ..GOOD }).contains("not seen to try"));
    }

    #[test]
    fn a_certificate_that_is_not_presented_is_seen() {
        assert!(
            objection(Evidence {
                presented: false,
                ..GOOD
            })
            .contains("client certificate")
        );
    }

    #[test]
    fn a_proxy_that_refuses_everything_is_not_proven() {
        assert!(
            objection(Evidence {
                recovered: false,
                ..GOOD
            })
            .contains("no longer served")
        );
    }
}
