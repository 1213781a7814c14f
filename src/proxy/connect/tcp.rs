//! TCP to one upstream: the look-up of its name, its addresses in turn, the options of the socket.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::config::{Host, UpstreamAddress};
use crate::failure::Failure;
use crate::proxy::outcome;
use crate::proxy::resolve::Resolver;

/// Head start of an address over the next one (RFC 8305 section 5: 250 ms recommended).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// The addresses of an upstream in the order in which they are tried; looked up where it has a
/// name.
pub(super) async fn addresses(
    upstream: &UpstreamAddress,
    resolver: &Arc<Resolver>,
) -> Result<Vec<SocketAddr>, Failure> {
    let addresses: Arc<[IpAddr]> = match &upstream.host {
        Host::Address(address) => [*address].into(),
        Host::Name(name) => resolver
            .look_up(name.as_ref())
            .await
            .map_err(outcome::look_up_failed)?,
    };
    Ok(alternate_families(&addresses)
        .map(|ip| SocketAddr::new(ip, upstream.port))
        .collect())
}

/// A connection to the first of `addresses` that takes one, ready for TLS.
pub(super) async fn open_any(
    addresses: &[SocketAddr],
    keepalive: Option<Duration>,
) -> Result<(TcpStream, SocketAddr), Failure> {
    let (stream, endpoint) = race(addresses).await.map_err(outcome::connect_failed)?;
    // A socket that was just opened takes these; and if it did not, it would still be right.
    let _ = stream.set_nodelay(true);
    if let Some(idle) = keepalive {
        let _ = SockRef::from(&stream).set_tcp_keepalive(&keepalive_after(idle));
    }
    Ok((stream, endpoint))
}

/// Keep-alive probes after `idle`, then every third of it; three lost ones (the usual default is
/// nine) end the connection.
pub(crate) fn keepalive_after(idle: Duration) -> TcpKeepalive {
    let interval = (idle / 3).max(Duration::from_secs(1));
    TcpKeepalive::new()
        .with_time(idle)
        .with_interval(interval)
        .with_retries(3)
}

/// Addresses in the resolver's order, but the families take turns (RFC 8305 section 4).
fn alternate_families(addresses: &[IpAddr]) -> impl Iterator<Item = IpAddr> {
    let first_is_v6 = addresses.first().is_some_and(IpAddr::is_ipv6);
    let (one, other): (Vec<IpAddr>, Vec<IpAddr>) = addresses
        .iter()
        .partition(|address| address.is_ipv6() == first_is_v6);
    let longer = one.len().max(other.len());
    (0..longer)
        .flat_map(move |n| [one.get(n).copied(), other.get(n).copied()])
        .flatten()
}

/// Happy Eyeballs (RFC 8305): the next address starts when the one before has failed or has had
/// its head start; the first connection wins and the others are closed.
async fn race(
    addresses: &[SocketAddr],
) -> Result<(TcpStream, SocketAddr), (SocketAddr, io::Error)> {
    let (first, rest) = match addresses {
        // The look-up never yields an empty list.
        [] => {
            let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
            return Err((nowhere, io::ErrorKind::AddrNotAvailable.into()));
        }
        [only] => return open(*only).await,
        [first, rest @ ..] => (*first, rest),
    };
    let mut waiting = rest.iter().copied();
    let mut attempts = JoinSet::new();
    attempts.spawn(open(first));
    let mut failed = None;
    loop {
        let next = async {
            if waiting.len() > 0 {
                tokio::time::sleep(ATTEMPT_DELAY).await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            biased;
            ended = attempts.join_next() => match ended {
                Some(Ok(Ok(opened))) => return Ok(opened),
                Some(Ok(Err(error))) => {
                    // The first address is the preferred one, and its failure the one to name.
                    failed.get_or_insert(error);
                    if let Some(address) = waiting.next() {
                        attempts.spawn(open(address));
                    }
                }
                Some(Err(_)) => {}
                None => {
                    return Err(failed.unwrap_or_else(|| (first, io::ErrorKind::Other.into())));
                }
            },
            () = next => {
                if let Some(address) = waiting.next() {
                    attempts.spawn(open(address));
                }
            }
        }
    }
}

async fn open(address: SocketAddr) -> Result<(TcpStream, SocketAddr), (SocketAddr, io::Error)> {
    match TcpStream::connect(address).await {
        Ok(stream) => Ok((stream, address)),
        Err(error) => Err((address, error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_take_turns_and_the_resolver_chooses_which_begins() {
        let addresses: Vec<IpAddr> = ["::1", "::2", "::3", "10.0.0.1", "10.0.0.2"]
            .map(|a| a.parse().unwrap())
            .into();
        let order: Vec<String> = alternate_families(&addresses)
            .map(|a| a.to_string())
            .collect();
        assert_eq!(order, ["::1", "10.0.0.1", "::2", "10.0.0.2", "::3"]);
        let order: Vec<IpAddr> = alternate_families(&addresses[3..]).collect();
        assert_eq!(order, addresses[3..]);
    }

    #[tokio::test]
    async fn a_refused_address_gives_way_to_the_next_at_once() {
        let closed = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let open = listener.local_addr().unwrap();
        let (_, reached) = race(&[closed, open]).await.unwrap();
        assert_eq!(reached, open);
        let (named, error) = race(&[closed, closed]).await.unwrap_err();
        assert_eq!(
            (named, error.kind()),
            (closed, io::ErrorKind::ConnectionRefused)
        );
    }
}
