//! The cluster: fills [`Store`] from the API server, as [`Store::wanted`] says. The only module
//! that knows `kube`; what it hands on are plain values.
//!
//! `server` finds the API server and says who we are, by what kube makes of pods and kubeconfigs.
//! `plan` decides which watches follow what is wanted, without I/O. `follow` is one watch on a
//! `connection` of its own, let through by the `gate` that all share. What it brings is read by
//! `wire` and put into the store by `collect`; `target` knows what is asked for and what a refusal
//! means. The other way, `announce` writes Events of the `facts` that status holds. Why watches are made here and not by kube: docs/decisions/0018-watching-the-cluster.md.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustls::crypto::CryptoProvider;
use tokio::sync::watch;
use tokio::task::{AbortHandle, Id, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::cluster::{Store, Subject, Wanted};
use crate::config::kubernetes::Kubernetes;
use crate::failure::{Explained, Reason};
use crate::sandbox::ClusterAccess;
pub(crate) use announce::announce;
use collect::{Discovered, Filter};
use follow::{Follower, Site};
use gate::{Backoff, pause};
use plan::{Watch, plan, scopes};
use server::Server;

mod announce;
mod collect;
mod connection;
mod facts;
mod follow;
mod gate;
mod http;
mod plan;
mod server;
mod target;
#[cfg(test)]
mod test_api;
mod wire;

/// Where a pod finds the namespace that it runs in.
const NAMESPACE_FILE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/namespace";

/// Changes of what is wanted that come together are acted on together: each may begin a list
/// anew.
const SETTLE: Duration = Duration::from_millis(200);

/// Between attempts to find a server, or to become somebody whom it knows.
const FIRST_SEARCH: Duration = Duration::from_secs(1);
const LONGEST_SEARCH: Duration = Duration::from_secs(30);

/// The namespace of the pod that this process runs in; `None` outside of one.
pub(crate) fn own_namespace() -> Option<String> {
    #[expect(
        clippy::disallowed_methods,
        reason = "where this process runs does not change; not a source"
    )]
    let namespace = std::fs::read_to_string(NAMESPACE_FILE).ok()?;
    let namespace = namespace.trim();
    (!namespace.is_empty()).then(|| namespace.to_owned())
}

/// What the process needs to reach the API server, which a sandbox must leave it. Reads the
/// kubeconfig that would count; what is wrong with it, [`run`] says.
pub(crate) fn access(
    settings: &Kubernetes,
    environment: &BTreeMap<String, String>,
) -> ClusterAccess {
    server::access(settings, environment)
}

/// Follows what is wanted until `stop`. While nothing is, there is no client and no connection.
/// Every task has ended when it returns; dropped, it ends them too.
pub(crate) async fn run(store: Arc<Store>, provider: Arc<CryptoProvider>, stop: CancellationToken) {
    let mut tasks = JoinSet::new();
    // Boxed, since most who run this follow nothing.
    let following = Box::pin(follow_all(&store, &provider, &mut tasks));
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        never = following => match never {},
    }
    tasks.shutdown().await;
}

async fn follow_all(
    store: &Arc<Store>,
    provider: &Arc<CryptoProvider>,
    tasks: &mut JoinSet<Infallible>,
) -> Infallible {
    let found = Arc::new(Discovered::new(Arc::clone(store)));
    let mut wanted = store.wanted();
    let mut searches = Backoff::new(FIRST_SEARCH, LONGEST_SEARCH);
    loop {
        let now = Arc::clone(&wanted.borrow_and_update());
        if now.is_empty() {
            changed(&mut wanted).await;
            continue;
        }
        match Server::find(&now.settings, provider).await {
            Ok(server) => {
                searches.reset();
                info!(server = server.name, "following the Kubernetes API server");
                let site = Arc::new(Site::new(server, Arc::clone(store)));
                follow_at(&site, &found, provider, &mut wanted, tasks).await;
                tasks.shutdown().await;
            }
            Err(why) => {
                let why = Explained::new(Reason::ApiUnavailable, why);
                warn!(reason = %why.reason, detail = why.detail, hint = why.hint,
                    "the Kubernetes API server is not found");
                for subject in subjects(&now) {
                    store.put_trouble(subject, why.clone());
                }
                tokio::select! {
                    () = pause(searches.next(), store) => {}
                    () = changed(&mut wanted) => {}
                }
            }
        }
    }
}

/// A watch that is running.
struct Running {
    filter: Arc<Filter>,
    /// It has been listed once.
    listed: Arc<AtomicBool>,
    task: AbortHandle,
}

/// Follows what is wanted at one server, until another is wanted, or none.
async fn follow_at(
    site: &Arc<Site>,
    found: &Arc<Discovered>,
    provider: &Arc<CryptoProvider>,
    wanted: &mut watch::Receiver<Arc<Wanted>>,
    tasks: &mut JoinSet<Infallible>,
) {
    let mut running: BTreeMap<Watch, Running> = BTreeMap::new();
    let settings = wanted.borrow().settings.clone();
    let mut renewing = Box::pin(stay_known(site, &settings, provider));
    let mut selector = None;
    loop {
        let now = Arc::clone(&wanted.borrow_and_update());
        if now.is_empty() || !same_server(&now.settings, &settings) {
            return;
        }
        let discovery = now.settings.discovery.as_ref();
        let scopes = discovery.map_or_else(Default::default, |it| scopes(&it.namespaces));
        let new_selector = discovery.map(|it| it.selector.clone());
        if std::mem::replace(&mut selector, new_selector.clone()) != new_selector {
            found.forget();
        }
        found.cover(&scopes);
        adjust(site, found, &now, &mut running, tasks);
        tokio::select! {
            () = changed(wanted) => tokio::time::sleep(SETTLE).await,
            Some(ended) = tasks.join_next_with_id() => match ended {
                Ok((_, never)) => match never {},
                Err(error) if error.is_cancelled() => {}
                Err(error) => {
                    let why = Explained::new(Reason::Internal, error.to_string());
                    error!(reason = %why.reason, detail = why.detail, hint = why.hint,
                        "a watch has ended by a bug");
                    forget(&mut running, error.id());
                    tokio::time::sleep(FIRST_SEARCH).await;
                }
            },
            () = &mut renewing => return,
        }
    }
}

/// Looks who we are whenever the server does not know us: a token or certificate may have been
/// replaced. Returns if it is another server by now.
async fn stay_known(site: &Site, settings: &Kubernetes, provider: &Arc<CryptoProvider>) {
    let mut searches = Backoff::new(FIRST_SEARCH, LONGEST_SEARCH);
    loop {
        site.unknown.notified().await;
        match Server::find(settings, provider).await {
            Ok(server) if server.name != site.server().name => return,
            Ok(server) if server.who != site.server().who => {
                info!(
                    server = server.name,
                    "we are somebody else to the API server now"
                );
                site.replace_server(server);
                searches.reset();
                // Whoever was refused need not wait.
                site.store.hurry();
            }
            Ok(_) => pause(searches.next(), &site.store).await,
            Err(why) => {
                debug!(why, "who we are to the API server cannot be read");
                pause(searches.next(), &site.store).await;
            }
        }
    }
}

/// Begins what is new and ends what is gone.
fn adjust(
    site: &Arc<Site>,
    found: &Arc<Discovered>,
    wanted: &Wanted,
    running: &mut BTreeMap<Watch, Running>,
    tasks: &mut JoinSet<Infallible>,
) {
    let plan = plan(wanted, |watch| running.contains_key(watch));
    running.retain(|watch, running| {
        let stays = plan.get(watch).is_some_and(|filter| {
            // What was not wanted for a moment is forgotten there and not here.
            *filter == *running.filter
                && !(running.listed.load(Ordering::Relaxed)
                    && watch.subjects(filter).any(|it| !site.store.is_known(&it)))
        });
        if !stays {
            running.task.abort();
        }
        stays
    });
    for (watch, filter) in plan {
        running.entry(watch).or_insert_with_key(|watch| {
            let listed = Arc::new(AtomicBool::new(false));
            let filter = Arc::new(filter);
            let collect = watch.collect(Arc::clone(&filter), &site.store, found);
            let target = watch.target();
            let follower = Follower::new(Arc::clone(site), target, collect, Arc::clone(&listed));
            Running {
                filter,
                listed,
                task: tasks.spawn(follower.run()),
            }
        });
    }
}

fn forget(running: &mut BTreeMap<Watch, Running>, task: Id) {
    running.retain(|_, running| running.task.id() != task);
}

/// Whether both mean one server, and the same of us.
fn same_server(one: &Kubernetes, other: &Kubernetes) -> bool {
    (&one.kubeconfig, &one.context) == (&other.kubeconfig, &other.context)
}

async fn changed(wanted: &mut watch::Receiver<Arc<Wanted>>) {
    if wanted.changed().await.is_err() {
        // The store, and with it whoever could want something, is gone.
        std::future::pending().await
    }
}

/// All that is wanted.
fn subjects(wanted: &Wanted) -> Vec<Subject> {
    let data = wanted.data.iter().cloned().map(Subject::Data);
    let services = wanted.services.iter().cloned().map(Subject::Service);
    let endpoints = wanted.endpoints.iter().cloned().map(Subject::Endpoints);
    let discovery = wanted.settings.discovery.as_ref();
    data.chain(services)
        .chain(endpoints)
        .chain(discovery.map(|_| Subject::Discovery))
        .collect()
}

#[cfg(test)]
mod tests;
