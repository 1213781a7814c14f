//! The admin endpoints as part of a reload: an address that changes is taken before the old one
//! is given up.

use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::{Bound, Reloads, Shared, Surface};
use crate::config::{Admin, Listen};
use crate::failure::Explained;
use crate::metrics::Metrics;
use crate::shutdown::Shutdown;
use crate::status::Status;
use crate::unix_socket;

/// The running endpoints.
pub(super) struct Endpoints {
    shared: Arc<Shared>,
    tasks: TaskTracker,
    admin: Option<Running>,
    public: Option<Running>,
}

struct Running {
    listen: Listen,
    stop: CancellationToken,
}

/// Addresses that were taken and are not served yet.
pub(super) struct Prepared {
    admin: Step,
    public: Step,
}

enum Step {
    Keep,
    /// The same unix socket with another mode.
    Mode(Listen),
    Close,
    Open(Listen, Bound),
}

impl Endpoints {
    pub(super) fn new(
        status: watch::Receiver<Arc<Status>>,
        metrics: Arc<Metrics>,
        reload: Reloads,
        shutdown: Shutdown,
    ) -> Self {
        let shared = Arc::new(Shared {
            status,
            metrics,
            reload,
            shutdown,
        });
        Self {
            shared,
            tasks: TaskTracker::new(),
            admin: None,
            public: None,
        }
    }

    /// Takes the addresses that `config` names and that are not held yet.
    pub(super) fn prepare(&self, config: &Admin) -> Result<Prepared, Vec<Explained>> {
        let admin = step(self.admin.as_ref(), config.listen.as_ref(), Surface::Admin);
        let public = step(
            self.public.as_ref(),
            config.public_listen.as_ref(),
            Surface::Public,
        );
        match (admin, public) {
            (Ok(admin), Ok(public)) => Ok(Prepared { admin, public }),
            (admin, public) => Err(admin.err().into_iter().chain(public.err()).collect()),
        }
    }

    /// Serves what was prepared. An endpoint that closes answers the requests that it has,
    /// among them the one that asked for this reload, so it is not waited for here.
    pub(super) fn commit(&mut self, prepared: Prepared) {
        let (admin, public) = (self.admin.take(), self.public.take());
        self.admin = self.carry_out(prepared.admin, admin);
        self.public = self.carry_out(prepared.public, public);
    }

    fn carry_out(&self, step: Step, old: Option<Running>) -> Option<Running> {
        let new = match step {
            Step::Keep => return old,
            Step::Mode(listen) => {
                if let Listen::Unix {
                    path,
                    mode: Some(mode),
                } = &listen
                {
                    unix_socket::set_mode(path, *mode);
                }
                return old.map(|old| Running { listen, ..old });
            }
            Step::Close => None,
            Step::Open(listen, bound) => {
                let stop = CancellationToken::new();
                self.tasks
                    .spawn(bound.serve(Arc::clone(&self.shared), stop.clone()));
                Some(Running { listen, stop })
            }
        };
        if let Some(old) = old {
            old.stop.cancel();
        }
        new
    }

    /// Stops and waits.
    pub(super) async fn stop(self) {
        for running in self.admin.iter().chain(&self.public) {
            running.stop.cancel();
        }
        self.tasks.close();
        self.tasks.wait().await;
    }
}

fn step(
    running: Option<&Running>,
    wanted: Option<&Listen>,
    surface: Surface,
) -> Result<Step, Explained> {
    match (running, wanted) {
        (None, None) => Ok(Step::Keep),
        (Some(running), Some(wanted)) if running.listen == *wanted => Ok(Step::Keep),
        (Some(running), Some(wanted)) if same_socket(&running.listen, wanted) => {
            Ok(Step::Mode(wanted.clone()))
        }
        (Some(_), None) => Ok(Step::Close),
        (_, Some(wanted)) => Ok(Step::Open(wanted.clone(), Bound::bind(wanted, surface)?)),
    }
}

fn same_socket(one: &Listen, other: &Listen) -> bool {
    matches!((one, other), (Listen::Unix { path: one, .. }, Listen::Unix { path: other, .. }) if one == other)
}
