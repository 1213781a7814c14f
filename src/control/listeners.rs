//! The running listeners, by address.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::config::{Listen, Service};
use crate::failure::{Explained, Reason};
use crate::proxy::listener::Bound;
use crate::proxy::resolve::Resolver;
use crate::route::Route;
use crate::shutdown::Shutdown;
use crate::systemd::Sockets;
use crate::workers::Workers;

/// How soon a listener whose address turned out to be taken is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(5);

/// All listeners of the configuration in force. A listener is known by its address, without what
/// may change about it (a unix socket's mode).
pub(super) struct Listeners {
    by_address: BTreeMap<Listen, Listener>,
    tried_again: Instant,
    resolver: Arc<Resolver>,
    shutdown: Shutdown,
    /// `None` until the first configuration says how many.
    workers: Option<Workers>,
    sockets: Sockets,
}

enum Listener {
    /// Waits for its first route.
    Bound(Box<Bound>),
    /// Has a route, and could not listen.
    Failed(Box<Bound>, Option<Arc<Route>>, Explained),
    Serving {
        routes: watch::Sender<Option<Arc<Route>>>,
        stop: CancellationToken,
        /// Those that accept.
        tasks: Vec<JoinHandle<()>>,
    },
}

impl Listeners {
    pub(super) fn new(shutdown: Shutdown, sockets: Sockets) -> Self {
        Self {
            by_address: BTreeMap::new(),
            tried_again: Instant::now(),
            resolver: Arc::new(Resolver::here()),
            shutdown,
            workers: None,
            sockets,
        }
    }

    /// Takes a service's address: a name of systemd's, or a listener that an earlier process left,
    /// or a new one. Nothing is changed for what is held already.
    ///
    /// # Errors
    /// [`Reason::BindFailed`] with address, cause and fix.
    pub(super) fn take(&mut self, service: &Service) -> Result<Bound, Explained> {
        let listen = &service.listen;
        if let Listen::Systemd(name) = listen {
            let sockets = self.sockets.of_unit(name, service)?;
            return Bound::handed(listen, sockets, None);
        }
        if let Some((socket, file)) = self.sockets.take_kept(&listen.without_mode()) {
            return Bound::handed(listen, [socket], file);
        }
        Bound::bind(listen).map_err(|mut why| {
            if let Some(name) = self.sockets.holder(listen) {
                let fix = format!(
                    "; systemd holds it for this process: write listen = \"systemd:{name}\""
                );
                why.detail.push_str(&fix);
            }
            why
        })
    }

    /// Whether a service may have the sockets of systemd that it names.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub(super) fn check(&self, service: &Service) -> Result<(), Explained> {
        self.sockets.check(service)
    }

    /// What a listener is called in status: a name of systemd's with what it stands for.
    pub(super) fn words(&self, listen: &Listen) -> String {
        let addresses = match listen {
            Listen::Systemd(name) => self.sockets.addresses(name),
            Listen::Tcp(_) | Listen::Unix { .. } => None,
        };
        match addresses {
            Some(addresses) => format!("{listen} ({addresses})"),
            None => listen.to_string(),
        }
    }

    /// When a configuration has come into force and every route that there is was handed out: opens
    /// what has none, and gives up what nobody names.
    pub(super) fn settle<'c>(&mut self, services: impl Iterator<Item = &'c Service>) {
        self.sockets.give_up_the_rest();
        self.sockets.tell_unused(services);
        // A socket that listens already has callers that wait; without a route they are reset, as
        // they would be refused elsewhere.
        for listen in self.held() {
            match self.by_address.remove(&listen) {
                Some(Listener::Bound(bound)) if bound.listens() => {
                    let listener = self.begin(*bound, None);
                    self.by_address.insert(listen, listener);
                }
                Some(other) => drop(self.by_address.insert(listen, other)),
                None => {}
            }
        }
    }

    /// The threads that carry connections; started with the first call, as many as it asks for.
    ///
    /// # Errors
    /// If the system gives no threads.
    pub(super) fn workers(&mut self, count: Option<NonZeroUsize>) -> io::Result<&Workers> {
        match &mut self.workers {
            Some(workers) => Ok(workers),
            none => Ok(none.insert(Workers::start(count, self.shutdown.fault())?)),
        }
    }

    /// The addresses that are held.
    pub(super) fn held(&self) -> BTreeSet<Listen> {
        self.by_address.keys().cloned().collect()
    }

    pub(super) fn hold(&self, listen: &Listen) -> bool {
        self.by_address.contains_key(listen)
    }

    /// Takes over an address that was prepared.
    pub(super) fn add(&mut self, bound: Bound) {
        let key = bound.address().without_mode();
        self.by_address
            .insert(key, Listener::Bound(Box::new(bound)));
    }

    /// Gives an address up: whoever the kernel has let in is still served.
    pub(super) async fn close(&mut self, listen: &Listen) {
        let listener = self.by_address.remove(listen);
        if !self.shutdown.drain().is_cancelled() {
            self.sockets.give_up(listen).await;
        }
        if let Some(Listener::Serving { stop, tasks, .. }) = listener {
            stop.cancel();
            for task in tasks {
                // Short: it takes whoever waits, and closes. A panic has been reported.
                let _ = task.await;
            }
        }
    }

    /// Gives all addresses up. What was accepted goes on on the workers.
    pub(super) async fn close_all(mut self) -> Option<Workers> {
        for listen in self.held() {
            self.close(&listen).await;
        }
        self.workers
    }

    /// Hands a route to its listener, which begins to listen with its first one.
    pub(super) fn publish(&mut self, listen: Listen, route: Arc<Route>) {
        let Some(listener) = self.by_address.remove(&listen) else {
            return;
        };
        let listener = match listener {
            Listener::Serving {
                routes,
                stop,
                tasks,
            } => {
                routes.send_replace(Some(route));
                Listener::Serving {
                    routes,
                    stop,
                    tasks,
                }
            }
            Listener::Bound(bound) | Listener::Failed(bound, _, _) => {
                self.begin(*bound, Some(route))
            }
        };
        self.by_address.insert(listen, listener);
    }

    /// Takes the route from a listener: its callers are reset until there is one again.
    pub(super) fn withdraw(&self, listen: &Listen) {
        if let Some(Listener::Serving { routes, .. }) = self.by_address.get(listen) {
            routes.send_replace(None);
        }
    }

    fn begin(&mut self, bound: Bound, route: Option<Arc<Route>>) -> Listener {
        let Some(workers) = &self.workers else {
            let why = Explained::new(Reason::Internal, "no workers were started");
            return Listener::Failed(Box::new(bound), route, why);
        };
        match bound.listen() {
            Ok(mut listening) => {
                let listen = listening.address().without_mode();
                if let Some((socket, file)) = listening.own()
                    && self.sockets.keep(&listen, socket, file)
                {
                    listening.is_kept();
                }
                let (routes, receiver) = watch::channel(route);
                // The process's drain is the end of each listener too.
                let stop = self.shutdown.drain().child_token();
                let tasks = listening.serve(
                    receiver,
                    Arc::clone(&self.resolver),
                    workers.crew(),
                    &self.shutdown,
                    &stop,
                );
                Listener::Serving {
                    routes,
                    stop,
                    tasks,
                }
            }
            Err(failed) => {
                let (bound, why) = *failed;
                let service = route.as_ref().map(|route| route.service.as_str());
                error!(service, reason = %why.reason, detail = why.detail, hint = why.hint,
                    "cannot listen; trying again");
                Listener::Failed(Box::new(bound), route, why)
            }
        }
    }

    /// How long until [`Self::try_again`] is due; `None` while no listener has failed.
    pub(super) fn due(&self) -> Option<Duration> {
        let due = self.tried_again + TRY_AGAIN;
        (!self.failed().is_empty()).then(|| due.saturating_duration_since(Instant::now()))
    }

    /// Lets listeners that failed listen now, if that is due.
    pub(super) fn try_again(&mut self) {
        if self.tried_again.elapsed() < TRY_AGAIN {
            return;
        }
        self.tried_again = Instant::now();
        for listen in self.failed().into_keys() {
            if let Some(Listener::Failed(bound, route, _)) = self.by_address.remove(&listen) {
                let listener = self.begin(*bound, route);
                self.by_address.insert(listen, listener);
            }
        }
    }

    /// Listeners that could not listen, each with the reason.
    pub(super) fn failed(&self) -> BTreeMap<Listen, Explained> {
        self.by_address
            .iter()
            .filter_map(|(listen, listener)| match listener {
                Listener::Failed(_, _, why) => Some((listen.clone(), why.clone())),
                Listener::Bound(_) | Listener::Serving { .. } => None,
            })
            .collect()
    }
}
