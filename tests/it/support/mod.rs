//! What the tests are made of: a throw-away PKI, a programmable mTLS upstream, real servers, the
//! proxy under test, and callers that speak plain TCP.
//!
//! Nothing here sleeps: every wait is for an event, with a guard that turns "never" into a
//! readable failure. Where an outside program offers no event, its condition is polled.

pub(crate) mod journal;
#[cfg(feature = "kubernetes")]
pub(crate) mod kube;
pub(crate) mod load;
pub(crate) mod net;
pub(crate) mod pki;
pub(crate) mod proxy;
pub(crate) mod scene;
pub(crate) mod servers;
pub(crate) mod systemd;
pub(crate) mod upstream;

use std::future::Future;
use std::time::Duration;

/// How long an awaited event may take before the test fails. Generous: the machine may be busy,
/// and a test that passes never waits for it.
pub(crate) const GUARD: Duration = Duration::from_secs(30);

/// Between two looks at a condition that nothing announces.
pub(crate) const POLL: Duration = Duration::from_millis(20);

/// Awaits `future`, and fails with `what` in the message if it takes longer than [`GUARD`].
#[track_caller]
pub(crate) fn within<T>(
    what: impl Into<String>,
    future: impl Future<Output = T>,
) -> impl Future<Output = T> {
    let what = what.into();
    let place = std::panic::Location::caller();
    async move {
        match tokio::time::timeout(GUARD, future).await {
            Ok(value) => value,
            Err(_) => panic!("{place}: waited {GUARD:?} in vain for {what}"),
        }
    }
}

/// Looks again and again until `look` gives a value.
#[track_caller]
pub(crate) fn until<T>(
    what: impl Into<String>,
    mut look: impl AsyncFnMut() -> Option<T>,
) -> impl Future<Output = T> {
    within(what, async move {
        loop {
            if let Some(value) = look().await {
                return value;
            }
            tokio::time::sleep(POLL).await;
        }
    })
}
