//! The server in this process: its thread, its port, its connections, and a test's hand on them.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::access::Tokens;
use super::api;
use super::faults::{Ending, Fault, Faults, Hold};
use super::request::Asked;
use super::status::Refusal;
use super::store::{Frame, Store};
use crate::support::journal::Journal;
use crate::support::{net, until, within};

/// What the server's thread, its connections and the test's hand share.
pub(super) struct Shared {
    state: Mutex<State>,
    /// Every request, as soon as it has been read.
    pub(super) arrived: Journal<Asked>,
    /// The same with their status, as soon as they are answered; a watch, as it begins.
    pub(super) answered: Journal<Asked>,
    pub(super) complaints: Mutex<Vec<String>>,
    mode: watch::Sender<Mode>,
    /// The mode that the listener has taken on.
    reached: watch::Sender<Mode>,
    watches: watch::Sender<usize>,
}

pub(super) struct State {
    pub(super) store: Store,
    pub(super) tokens: Tokens,
    pub(super) faults: Faults,
    /// Whether ClusterTrustBundles are served.
    pub(super) trust_bundles: bool,
    /// A watch that begins too far back is refused with 410 instead of an event.
    pub(super) expired_by_status: bool,
    /// With the connections that they are on.
    watches: HashMap<u64, (Asked, u64)>,
    connections: HashMap<u64, oneshot::Sender<()>>,
    last_id: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Serving,
    /// Accepts, reads, and says nothing.
    Silent,
    /// The port is closed.
    Away,
    /// For good.
    Ended,
}

impl Shared {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Waits as long as the server is to be silent.
    pub(super) async fn speaking(&self) {
        let mut mode = self.mode.subscribe();
        // An error means that the server has gone, and whoever waits here too.
        let _ = mode.wait_for(|it| *it != Mode::Silent).await;
    }

    pub(super) fn watches_changed(&self) {
        let open = self.state().watches.len();
        self.watches.send_replace(open);
    }
}

impl State {
    pub(super) fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    pub(super) fn open_watch(&mut self, id: u64, asked: Asked, connection: u64) {
        self.watches.insert(id, (asked, connection));
    }

    pub(super) fn close_watch(&mut self, id: u64) {
        self.store.forget_watch(id);
        self.watches.remove(&id);
    }

    /// Resets a connection.
    pub(super) fn abort(&mut self, connection: u64) {
        if let Some(abort) = self.connections.remove(&connection) {
            // Whoever has ended already needs no word.
            let _ = abort.send(());
        }
    }

    fn abort_all(&mut self) {
        for (_, abort) in self.connections.drain() {
            let _ = abort.send(());
        }
    }
}

/// A test's hand on the server in its process.
pub(crate) struct Server {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    address: SocketAddr,
}

/// How a restarted server counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum History {
    /// The same objects under the same versions, but nothing is known of how they came about:
    /// an API server that was restarted. Versions before the newest are 410.
    Forgotten,
    /// Every object has a new version, beyond the old ones, which are 410: a cluster that was
    /// moved.
    Later,
    /// Every object has a new version, and counting has begun anew below the old ones, which are
    /// of the future now: an etcd restored from a backup. Lists from there are 504, a watch from
    /// there hears nothing.
    Earlier,
}

impl Server {
    /// Binds `address` on a thread of its own, so that a test that blocks does not stop it.
    pub(super) async fn start(
        address: SocketAddr,
        tls: Option<Arc<rustls::ServerConfig>>,
        admin_token: &str,
    ) -> Self {
        let mut tokens = Tokens::default();
        tokens.add_admin(admin_token);
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                store: Store::new(),
                tokens,
                faults: Faults::default(),
                trust_bundles: true,
                expired_by_status: false,
                watches: HashMap::new(),
                connections: HashMap::new(),
                last_id: 0,
            }),
            arrived: Journal::new(),
            answered: Journal::new(),
            complaints: Mutex::default(),
            mode: watch::Sender::new(Mode::Serving),
            reached: watch::Sender::new(Mode::Away),
            watches: watch::Sender::new(0),
        });
        let thread = std::thread::Builder::new()
            .name("kube-apiserver".to_owned())
            .spawn({
                let shared = Arc::clone(&shared);
                let tls = tls.map(TlsAcceptor::from);
                move || {
                    let runtime = tokio::runtime::Builder::new_current_thread()
                        .enable_all()
                        .build()
                        .unwrap();
                    runtime.block_on(serve(shared, address, tls));
                }
            })
            .unwrap();
        let server = Self {
            shared,
            thread: Some(thread),
            address,
        };
        server.reaches(Mode::Serving).await;
        server
    }

    // What has been asked of it.

    /// Every request so far, as they came.
    pub(crate) fn requests(&self) -> Vec<Asked> {
        self.shared.arrived.all()
    }

    /// The requests of all but the kit's own since this mark, see [`Self::mark`].
    pub(crate) fn requests_since(&self, mark: usize) -> Vec<Asked> {
        let mut all = self.requests().split_off(mark);
        all.retain(|asked| asked.user != "admin");
        all
    }

    pub(crate) fn mark(&self) -> usize {
        self.shared.arrived.mark()
    }

    /// Waits for an answered request, from the very beginning, that `which` accepts; a watch
    /// counts from its beginning.
    #[track_caller]
    pub(crate) fn answered(
        &self,
        what: impl Into<String>,
        mut which: impl FnMut(&Asked) -> bool,
    ) -> impl Future<Output = Asked> {
        let pick = move |asked: &Asked| which(asked).then(|| asked.clone());
        self.shared.answered.wait(what, pick)
    }

    /// The open watches.
    pub(crate) fn watches(&self) -> Vec<Asked> {
        let state = self.shared.state();
        let watches = state.watches.values();
        watches.map(|(asked, _)| asked.clone()).collect()
    }

    /// Waits for an open watch of this resource, in this namespace (`None`: of all namespaces or
    /// of the cluster), of this one name (`None`: of all).
    #[track_caller]
    pub(crate) fn watch_of(
        &self,
        resource: &str,
        namespace: Option<&str>,
        name: Option<&str>,
    ) -> impl Future<Output = Asked> {
        let what = format!("a watch of {resource} {namespace:?} {name:?}");
        let (resource, namespace) = (resource.to_owned(), namespace.map(str::to_owned));
        let name = name.map(str::to_owned);
        self.watches_until(what, move |open| {
            let found = open
                .iter()
                .find(|it| it.resource == resource && it.namespace == namespace && it.name == name);
            found.map(|it| (*it).clone())
        })
    }

    /// Waits until exactly so many watches are open.
    #[track_caller]
    pub(crate) fn open_watches(&self, count: usize) -> impl Future<Output = ()> {
        self.watches_until(format!("{count} open watches"), move |open| {
            (open.len() == count).then_some(())
        })
    }

    #[track_caller]
    fn watches_until<T>(
        &self,
        what: String,
        mut look: impl FnMut(&[&Asked]) -> Option<T>,
    ) -> impl Future<Output = T> {
        within(what, async move {
            let mut changed = self.shared.watches.subscribe();
            loop {
                changed.borrow_and_update();
                {
                    let state = self.shared.state();
                    let watches = state.watches.values();
                    let open: Vec<&Asked> = watches.map(|(asked, _)| asked).collect();
                    if let Some(found) = look(&open) {
                        return found;
                    }
                }
                changed.changed().await.expect("the server keeps a sender");
            }
        })
    }

    /// What clients other than the kit have asked wrongly, and forgets it.
    pub(crate) fn take_complaints(&self) -> Vec<String> {
        std::mem::take(&mut *self.shared.complaints.lock().unwrap())
    }

    // What goes wrong with it.

    /// Closes the port and resets every connection. Returns when connecting is refused.
    pub(crate) async fn go_away(&self) {
        self.enter(Mode::Away).await;
    }

    /// Open connections stay and new ones are accepted, but nothing is said any more: no answer,
    /// no event, no TLS handshake.
    pub(crate) async fn fall_silent(&self) {
        self.enter(Mode::Silent).await;
    }

    /// Ends [`Self::go_away`] (on the same port) or [`Self::fall_silent`] (what was asked
    /// meanwhile is answered now).
    pub(crate) async fn come_back(&self) {
        self.enter(Mode::Serving).await;
    }

    /// Goes away, counts anew, and comes back.
    pub(crate) async fn restart(&self, history: History) {
        self.go_away().await;
        {
            let state = &mut *self.shared.state();
            match history {
                History::Forgotten => state.store.compact(),
                History::Later => state.store.renumber(state.store.version() + 10_000),
                History::Earlier => state.store.renumber(1),
            }
        }
        self.come_back().await;
    }

    /// The next `times` requests that `which` accepts have this answer instead of theirs.
    pub(crate) fn fail(
        &self,
        times: usize,
        fault: Fault,
        which: impl Fn(&Asked) -> bool + Send + 'static,
    ) {
        let state = &mut *self.shared.state();
        state.faults.fail(Box::new(which), fault, times);
    }

    /// Requests that `which` accepts wait for the test from now on.
    pub(crate) fn hold(&self, which: impl Fn(&Asked) -> bool + Send + 'static) -> Hold {
        Hold::new(&mut self.shared.state().faults, Box::new(which))
    }

    /// Ends every open watch. Returns when none of them is open; what clients open meanwhile in
    /// their place may be.
    pub(crate) async fn end_watches(&self, how: Ending) {
        let ending: Vec<u64> = {
            let state = &mut *self.shared.state();
            match how {
                Ending::Closed => state.store.tell_watches(|_| Some(Frame::End)),
                Ending::Cut => state.store.tell_watches(|_| Some(Frame::Cut)),
                Ending::Reset => {
                    let connections: Vec<u64> = state.watches.values().map(|it| it.1).collect();
                    for connection in connections {
                        state.abort(connection);
                    }
                }
                Ending::HalfLine => {
                    let half = b"{\"type\":\"MODIFIED\",\"object\":{\"kind\":\"Sec";
                    state
                        .store
                        .tell_watches(|_| Some(Frame::Raw(half.to_vec())));
                    state.store.tell_watches(|_| Some(Frame::End));
                }
                Ending::Expired | Ending::InternalError => {
                    let refusal = match how {
                        Ending::Expired => Refusal::expired("too old resource version: 1 (100)"),
                        _ => Refusal::internal("etcd event received with PrevKv=nil"),
                    };
                    let failure = |_| Some(Frame::Failure(refusal.clone()));
                    state.store.tell_watches(failure);
                    state.store.tell_watches(|_| Some(Frame::End));
                }
            }
            state.watches.keys().copied().collect()
        };
        until("the watches to end", async || {
            let state = self.shared.state();
            let open = ending.iter().any(|id| state.watches.contains_key(id));
            (!open).then_some(())
        })
        .await;
    }

    /// Sends a line that is no event down every open watch.
    pub(crate) fn send_garbage(&self) {
        let garbage = b"\x00\x01 this is not JSON\n";
        let raw = |_| Some(Frame::Raw(garbage.to_vec()));
        self.shared.state().store.tell_watches(raw);
    }

    /// Sends a bookmark of the newest version down every open watch that takes bookmarks.
    pub(crate) fn send_bookmarks(&self) {
        let state = self.shared.state();
        let version = state.store.version();
        let bookmark = |takes: bool| takes.then_some(Frame::Bookmark(version));
        state.store.tell_watches(bookmark);
    }

    /// Forgets how the present state came about: watches and pages of lists that begin before
    /// are 410. Open watches go on.
    pub(crate) fn compact(&self) {
        self.shared.state().store.compact();
    }

    /// Whether a watch that begins too far back is refused with the status 410; without this it
    /// is accepted, and its first event is an `ERROR`. The real server does either.
    pub(crate) fn expire_by_status(&self, yes: bool) {
        self.shared.state().expired_by_status = yes;
    }

    /// Whether ClusterTrustBundles are served; without this their path is 404. Served at first.
    pub(crate) fn serve_trust_bundles(&self, yes: bool) {
        self.shared.state().trust_bundles = yes;
    }

    async fn enter(&self, mode: Mode) {
        self.shared.mode.send_replace(mode);
        self.reaches(mode).await;
    }

    async fn reaches(&self, mode: Mode) {
        let mut reached = self.shared.reached.subscribe();
        let what = format!("the API server at {} to be {mode:?}", self.address);
        within(what, reached.wait_for(|it| *it == mode))
            .await
            .expect("the server keeps a sender");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.mode.send_replace(Mode::Ended);
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed already.
            let _ = thread.join();
        }
    }
}

/// Accepts until the end, binding and unbinding as the mode says.
async fn serve(shared: Arc<Shared>, address: SocketAddr, tls: Option<TlsAcceptor>) {
    let mut mode = shared.mode.subscribe();
    let mut listener = None;
    let mut connections = JoinSet::new();
    loop {
        let wanted = *mode.borrow_and_update();
        match wanted {
            Mode::Serving | Mode::Silent if listener.is_none() => {
                let bound = TcpListener::bind(address).await;
                listener = Some(bound.unwrap_or_else(|error| panic!("{address}: {error}")));
            }
            Mode::Serving | Mode::Silent => {}
            Mode::Away | Mode::Ended => {
                listener = None;
                shared.state().abort_all();
                while connections.join_next().await.is_some() {}
            }
        }
        shared.reached.send_replace(wanted);
        if wanted == Mode::Ended {
            return;
        }
        loop {
            let accepted = async {
                match &listener {
                    Some(listener) => listener.accept().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = mode.changed() => {
                    changed.expect("the server keeps a sender");
                    break;
                }
                Some(_) = connections.join_next() => {}
                accepted = accepted => {
                    let (stream, _) = accepted.expect("the listener accepts");
                    let (abort, aborted) = oneshot::channel();
                    let id = {
                        let state = &mut *shared.state();
                        let id = state.next_id();
                        state.connections.insert(id, abort);
                        id
                    };
                    connections.spawn(connection(Arc::clone(&shared), id, stream, tls.clone(), aborted));
                }
            }
        }
    }
}

async fn connection(
    shared: Arc<Shared>,
    id: u64,
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    mut aborted: oneshot::Receiver<()>,
) {
    stream.set_nodelay(true).expect("an open socket");
    match tls {
        None => exchange(&shared, id, stream, aborted).await,
        Some(tls) => {
            let handshake = async {
                shared.speaking().await;
                tls.accept(stream).await
            };
            let stream = tokio::select! {
                stream = handshake => stream,
                _ = &mut aborted => return,
            };
            // A client that does not trust the certificate is no matter of the server's.
            if let Ok(stream) = stream {
                exchange(&shared, id, stream, aborted).await;
            }
        }
    }
    shared.state().connections.remove(&id);
}

/// Requests and answers on one connection, until it ends or is to be reset.
async fn exchange<S: Socket>(
    shared: &Arc<Shared>,
    id: u64,
    stream: S,
    aborted: oneshot::Receiver<()>,
) {
    let service = service_fn(|request| Box::pin(api::answer(Arc::clone(shared), request, id)));
    let mut exchange = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        // How it ended is the client's to judge.
        _ = &mut exchange => {}
        _ = aborted => exchange.into_parts().io.into_inner().reset(),
    }
}

trait Socket: AsyncRead + AsyncWrite + Unpin {
    fn reset(self);
}

impl Socket for TcpStream {
    fn reset(self) {
        net::reset(self);
    }
}

impl Socket for TlsStream<TcpStream> {
    fn reset(self) {
        net::reset(self.into_inner().0);
    }
}
