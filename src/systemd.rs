//! What systemd gives to the process, and what it is told (sd_listen_fds(3), sd_notify(3)).
//!
//! In: sockets of `.socket` units and those that it kept for us ([`Sockets`]), and whether it wants
//! to hear of us. Out, all of it derived from the published status and from how the process ends
//! ([`announce()`]): that the service is ready, that it reloads and has reloaded, that it stops, that
//! its threads are alive, and one line for people.
//!
//! Where there is no systemd, all of this is silent.

use std::collections::BTreeMap;
use std::time::Duration;

mod announce;
mod environment;
mod notify;
mod sockets;
mod words;

pub(crate) use announce::announce;
use environment::Environment;
pub(crate) use notify::{Notifier, Reloading};
pub(crate) use sockets::Sockets;
pub(crate) use words::why;

/// What the process was started with.
#[derive(Debug, Default)]
pub(crate) struct Given {
    pub(crate) notifier: Notifier,
    pub(crate) sockets: Sockets,
    /// Without a sign of life for so long the process is killed.
    pub(crate) watchdog: Option<Duration>,
    /// What could not be made use of, for the log.
    pub(crate) notes: Vec<String>,
}

impl Given {
    /// Takes the descriptors that systemd has passed, and reads the variables that speak of them.
    /// To be called once, before any thread is started and before anything is opened.
    ///
    /// # Errors
    /// The variables and the descriptors do not fit together.
    pub(crate) fn take(environment: &BTreeMap<String, String>) -> Result<Self, String> {
        let own_pid = std::process::id();
        let Environment {
            descriptors,
            notify,
            watchdog,
            store,
            notes,
        } = Environment::read(environment, own_pid)?;
        let taken = tlsward_sys::take_inherited(descriptors.len())
            .map_err(|error| format!("LISTEN_FDS={}: {error}", descriptors.len()))?;
        let notifier = match notify {
            Some(address) => {
                Notifier::to(address).map_err(|error| format!("NOTIFY_SOCKET: {error}"))?
            }
            None => Notifier::default(),
        };
        let descriptors = descriptors.into_iter().zip(taken);
        let sockets = Sockets::new(descriptors, store, notifier.clone());
        Ok(Self {
            notifier,
            sockets,
            watchdog,
            notes,
        })
    }
}
