//! Look-up of upstream names with the system's resolver, off the threads that carry traffic.
//!
//! A name is asked for once at a time, however many connections want it, and the answer serves
//! for a moment: long enough for a burst, short enough that a changed record is followed by the
//! next connection a person makes.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinError;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

/// How long an answer serves.
const FRESH: Duration = Duration::from_secs(2);
/// How long a failure serves: only long enough that a burst asks once.
const FRESH_FAILURE: Duration = Duration::from_millis(500);

/// The addresses of a name in the resolver's order (RFC 6724), or why there are none.
pub(crate) type Answer = Result<Arc<[IpAddr]>, ResolveError>;

/// Why a look-up failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ResolveError {
    /// The name, or an address of it, does not exist.
    NotFound(String),
    /// The resolver failed.
    Failed(String),
}

/// Shared by all connections.
#[derive(Debug)]
pub(crate) struct Resolver {
    names: Mutex<HashMap<Box<str>, Name>>,
    look_ups: TaskTracker,
    /// Whose threads for blocking work wait for answers. One runtime's, so that each worker need
    /// not have such threads; that runtime itself has no part in it, and may be busy.
    threads: Handle,
}

#[derive(Debug)]
enum Name {
    Known { at: Instant, answer: Answer },
    Asked(watch::Receiver<Option<Answer>>),
}

impl Resolver {
    /// With the current runtime's threads for blocking work.
    pub(crate) fn here() -> Self {
        Self {
            names: Mutex::default(),
            look_ups: TaskTracker::new(),
            threads: Handle::current(),
        }
    }

    /// The addresses of `name`.
    ///
    /// # Cancellation
    /// The look-up goes on for whoever else asks; there is never more than one per name.
    pub(crate) async fn look_up(self: &Arc<Self>, name: &str) -> Answer {
        let ask = |name: Box<str>| {
            let asking = self.threads.spawn_blocking(move || system_addresses(&name));
            async {
                // Cancelled at the process's end, or a panic, which was reported.
                let failed = |error: JoinError| Err(ResolveError::Failed(error.to_string()));
                asking.await.unwrap_or_else(failed)
            }
        };
        self.look_up_with(name, ask).await
    }

    async fn look_up_with<F>(
        self: &Arc<Self>,
        name: &str,
        ask: impl FnOnce(Box<str>) -> F,
    ) -> Answer
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        let mut asked = {
            let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
            match names.get(name) {
                Some(Name::Known { at, answer }) if at.elapsed() < freshness(answer) => {
                    return answer.clone();
                }
                // Closed: that look-up was abandoned, and will never answer.
                Some(Name::Asked(asked)) if asked.has_changed().is_ok() => asked.clone(),
                Some(Name::Known { .. } | Name::Asked(_)) | None => {
                    let (tell, asked) = watch::channel(None);
                    names.insert(name.into(), Name::Asked(asked.clone()));
                    let (this, name) = (Arc::clone(self), Box::<str>::from(name));
                    let answer = ask(name.clone());
                    self.look_ups.spawn(async move {
                        let answer = answer.await;
                        let known = Name::Known {
                            at: Instant::now(),
                            answer: answer.clone(),
                        };
                        let mut names = this.names.lock().unwrap_or_else(PoisonError::into_inner);
                        names.insert(name, known);
                        tell.send_replace(Some(answer));
                    });
                    asked
                }
            }
        };
        let answer = match asked.wait_for(Option::is_some).await {
            Ok(answer) => answer.clone(),
            Err(_) => None,
        };
        answer.unwrap_or_else(|| Err(ResolveError::Failed("the look-up was abandoned".into())))
    }
}

fn freshness(answer: &Answer) -> Duration {
    if answer.is_ok() { FRESH } else { FRESH_FAILURE }
}

/// `getaddrinfo`, which blocks: it honours /etc/hosts, nsswitch.conf and search domains as every
/// other program on the machine does.
fn system_addresses(name: &str) -> Answer {
    match (name, 0).to_socket_addrs() {
        Ok(addresses) => {
            let mut found: Vec<IpAddr> = Vec::new();
            for address in addresses.map(|a| SocketAddr::ip(&a)) {
                if !found.contains(&address) {
                    found.push(address);
                }
            }
            if found.is_empty() {
                return Err(ResolveError::NotFound(format!("{name} has no address")));
            }
            Ok(found.into())
        }
        Err(error) => Err(classify(name, &error)),
    }
}

/// The resolver's errors reach us only as text: getaddrinfo(3) has codes of its own, and std
/// keeps their message alone.
fn classify(name: &str, error: &io::Error) -> ResolveError {
    let text = error.to_string();
    let not_found = [
        "not known",
        "No address associated",
        "nodename nor servname",
        // musl: EAI_NONAME and EAI_NODATA.
        "Name does not resolve",
        "Name has no usable address",
    ]
    .iter()
    .any(|phrase| text.contains(phrase));
    let detail = format!(
        "{name}: {}",
        text.trim_start_matches("failed to lookup address information: ")
    );
    if not_found {
        ResolveError::NotFound(detail)
    } else {
        ResolveError::Failed(detail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    fn one_address() -> Answer {
        Ok([IpAddr::from([127, 0, 0, 1])].into())
    }

    #[tokio::test]
    async fn a_burst_of_connections_asks_once() {
        let resolver = Arc::new(Resolver::here());
        let (tell, told) = oneshot::channel::<()>();
        let first = resolver.look_up_with("db", |_| async {
            told.await.unwrap();
            one_address()
        });
        let second = resolver.look_up_with("db", |_| async { panic!("asked twice") });
        let third = async {
            tell.send(()).unwrap();
        };
        let (first, second, ()) = tokio::join!(first, second, third);
        assert_eq!((first, second), (one_address(), one_address()));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_serves_for_two_seconds_and_a_failure_for_half_a_second() {
        let resolver = Arc::new(Resolver::here());
        let failure = || Err(ResolveError::NotFound("db".into()));
        assert!(
            resolver
                .look_up_with("db", |_| async move { failure() })
                .await
                .is_err()
        );
        assert!(
            resolver
                .look_up_with("db", |_| async { one_address() })
                .await
                .is_err()
        );
        tokio::time::advance(FRESH_FAILURE).await;
        assert!(
            resolver
                .look_up_with("db", |_| async { one_address() })
                .await
                .is_ok()
        );
        tokio::time::advance(FRESH - Duration::from_millis(1)).await;
        assert!(
            resolver
                .look_up_with("db", |_| async move { failure() })
                .await
                .is_ok()
        );
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(
            resolver
                .look_up_with("db", |_| async move { failure() })
                .await
                .is_err()
        );
    }

    #[tokio::test]
    async fn a_caller_that_leaves_does_not_stop_the_look_up_for_the_others() {
        let resolver = Arc::new(Resolver::here());
        let (tell, told) = oneshot::channel::<()>();
        {
            let first = resolver.look_up_with("db", |_| async {
                told.await.unwrap();
                one_address()
            });
            tokio::select! {
                biased;
                _ = first => panic!("answered too early"),
                () = std::future::ready(()) => {}
            }
        }
        tell.send(()).unwrap();
        let second = resolver.look_up_with("db", |_| async { panic!("asked twice") });
        assert_eq!(second.await, one_address());
    }

    #[tokio::test]
    async fn a_look_up_that_was_abandoned_is_asked_again() {
        let resolver = Arc::new(Resolver::here());
        let abandoned = resolver.look_up_with("db", |_| async { panic!("a bug") });
        abandoned.await.unwrap_err();
        let again = resolver.look_up_with("db", |_| async { one_address() });
        assert_eq!(again.await, one_address());
    }

    #[tokio::test]
    async fn the_system_resolver_knows_localhost_and_says_what_it_does_not_know() {
        let resolver = Arc::new(Resolver::here());
        let known = resolver.look_up("localhost").await.unwrap();
        assert!(known.iter().all(IpAddr::is_loopback));
        resolver.look_up("no-such-host.invalid").await.unwrap_err();
    }
}
