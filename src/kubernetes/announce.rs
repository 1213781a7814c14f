//! Events (events.k8s.io/v1) on Services and Secrets: what [`facts`] says stands, told once, and
//! again before the API server forgets it. Nothing waits for this.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::Duration;

use hyper::{Method, StatusCode};
use rustls::crypto::CryptoProvider;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};

use super::connection::Conversation;
use super::facts::{Fact, facts};
use super::gate::{Backoff, Patience, some_of};
use super::server::Server;
use super::wire::Status as Refusal;
use super::{changed, same_server};
use crate::clock;
use crate::cluster::{Store, Wanted};
use crate::config::kubernetes::ObjectRef;
use crate::status::Status;

/// An API server keeps an Event for an hour (`--event-ttl`).
const REPEAT: Duration = Duration::from_secs(45 * 60);
const REPEAT_MORE: Duration = Duration::from_secs(10 * 60);

/// On one object, so that one that flaps does not fill its list of Events.
const OBJECT_BURST: f64 = 5.0;
const OBJECT_EVERY: Duration = Duration::from_secs(60);

/// In all.
const TOTAL_BURST: f64 = 10.0;
const TOTAL_EVERY: Duration = Duration::from_millis(100);

/// How long a namespace is left alone whose Events we may not write.
const FORBIDDEN_FOR: Duration = Duration::from_secs(600);

/// Between attempts at a server that does not take them.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// A connection that is not needed for so long is closed.
const IDLE: Duration = Duration::from_secs(5);

const LARGEST_ANSWER: usize = 1 << 20;

/// Writes Events of what `status` says, as far as `kubernetes.events` allows, until it is dropped.
pub(crate) async fn announce(
    store: Arc<Store>,
    provider: Arc<CryptoProvider>,
    status: watch::Receiver<Arc<Status>>,
) -> Infallible {
    // Boxed, since most who run this tell nothing.
    Box::pin(announce_all(store, provider, status)).await
}

async fn announce_all(
    store: Arc<Store>,
    provider: Arc<CryptoProvider>,
    mut status: watch::Receiver<Arc<Status>>,
) -> Infallible {
    let mut wanted = store.wanted();
    let mut schedule = Schedule::default();
    loop {
        let now = Arc::clone(&wanted.borrow_and_update());
        if !is_asked_for(&now) {
            schedule = Schedule::default();
            changed(&mut wanted).await;
            continue;
        }
        let mut retries = Backoff::new(FIRST_RETRY, LONGEST_RETRY);
        let server = loop {
            match Server::find(&now.settings, &provider).await {
                Ok(server) => break server,
                // `run` has said so.
                Err(_) => tokio::time::sleep(retries.next()).await,
            }
        };
        let mut announcer = Announcer::new(server, std::mem::take(&mut schedule));
        tokio::select! {
            () = other_server(&mut wanted, &now) => {}
            () = announcer.run(&store, &mut status) => schedule = announcer.schedule,
        }
    }
}

fn is_asked_for(wanted: &Wanted) -> bool {
    wanted.settings.events && !wanted.is_empty()
}

/// Waits until Events are not asked for any more, or of another server.
async fn other_server(wanted: &mut watch::Receiver<Arc<Wanted>>, now: &Wanted) {
    loop {
        changed(wanted).await;
        let new = Arc::clone(&wanted.borrow_and_update());
        if !is_asked_for(&new) || !same_server(&new.settings, &now.settings) {
            return;
        }
    }
}

struct Announcer {
    server: Server,
    conversation: Conversation,
    schedule: Schedule,
    /// Of which namespaces it was said that Events are forbidden.
    said: BTreeSet<String>,
    instance: String,
}

/// What became of an attempt.
enum Outcome {
    /// It is written, or never will be.
    Done,
    Forbidden(String),
    /// The server does not know us: who we are may have changed.
    Unknown,
    Away(String),
}

impl Announcer {
    fn new(server: Server, schedule: Schedule) -> Self {
        Self {
            server,
            conversation: Conversation::default(),
            schedule,
            said: BTreeSet::new(),
            instance: instance(),
        }
    }

    /// Until the server is to be looked for anew.
    async fn run(&mut self, store: &Store, status: &mut watch::Receiver<Arc<Status>>) {
        let mut retries = Backoff::new(FIRST_RETRY, LONGEST_RETRY);
        let mut is_new = true;
        loop {
            if std::mem::take(&mut is_new) {
                let now = Arc::clone(&status.borrow_and_update());
                self.schedule.stand(facts(&now, store), Instant::now());
            }
            let due = match self.schedule.next(Instant::now()) {
                Next::Tell(fact) => {
                    let told = self.tell(&fact, &mut retries).await;
                    if !told {
                        return;
                    }
                    is_new = status.has_changed().unwrap_or(false);
                    continue;
                }
                Next::At(due) => Some(due),
                Next::Nothing => None,
            };
            if due.is_none_or(|due| due.duration_since(Instant::now()) > IDLE) {
                self.conversation.hang_up();
            }
            tokio::select! {
                () = until(due) => {}
                changed = status.changed() => match changed {
                    Ok(()) => is_new = true,
                    // Nobody publishes any more: what stands is repeated until the end.
                    Err(_) => until(due).await,
                },
            }
        }
    }

    /// Whether to go on with this server.
    async fn tell(&mut self, fact: &Arc<Fact>, retries: &mut Backoff) -> bool {
        let namespace = &fact.regarding.object.namespace;
        match self.write(fact).await {
            Outcome::Done => {
                retries.reset();
                self.schedule.told(fact, Instant::now());
                if self.said.remove(namespace) {
                    info!(namespace, "Events can be written again");
                }
            }
            Outcome::Forbidden(why) => {
                self.schedule.forbidden(namespace, Instant::now());
                if self.said.insert(namespace.clone()) {
                    warn!(
                        namespace,
                        why,
                        "may not create events.events.k8s.io in this namespace: what there is to \
                         say of Services and Secrets stands in log and status alone; tlsward rbac \
                         -c FILE prints the role, and events = false in [kubernetes] ends this"
                    );
                }
            }
            Outcome::Unknown => {
                tokio::time::sleep(LONGEST_RETRY).await;
                return false;
            }
            Outcome::Away(why) => {
                debug!(why, "an Event could not be written");
                self.conversation.hang_up();
                tokio::time::sleep(retries.next()).await;
            }
        }
        true
    }

    async fn write(&mut self, fact: &Fact) -> Outcome {
        let namespace = &fact.regarding.object.namespace;
        let path = format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events");
        let body = event(fact, &self.instance, clock::unix_seconds());
        let body = body.to_string();
        let asked = self.conversation.ask(
            &self.server,
            Method::POST,
            &path,
            body.as_bytes(),
            Patience::FULL,
        );
        let code = match asked.await {
            Ok(head) => head.status,
            Err(why) => return Outcome::Away(why),
        };
        let whole = self.conversation.whole(LARGEST_ANSWER, Patience::FULL);
        let answer = match whole.await {
            Ok(answer) => answer,
            Err(why) => return Outcome::Away(why),
        };
        let message = || Refusal::parse(&answer).message;
        match code {
            _ if code.is_success() => Outcome::Done,
            StatusCode::FORBIDDEN => Outcome::Forbidden(message()),
            StatusCode::UNAUTHORIZED => Outcome::Unknown,
            StatusCode::TOO_MANY_REQUESTS => Outcome::Away(code.to_string()),
            _ if code.is_server_error() => Outcome::Away(code.to_string()),
            // The namespace is gone, or it takes the Event for wrong: another time it would too.
            _ => {
                debug!(%code, why = message(), "an Event was refused");
                Outcome::Done
            }
        }
    }
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// The JSON of an Event.
fn event(fact: &Fact, instance: &str, now: i64) -> serde_json::Value {
    let ObjectRef { namespace, name } = &fact.regarding.object;
    let mut regarding = json!({
        "apiVersion": "v1",
        "kind": fact.regarding.kind,
        "namespace": namespace,
        "name": name,
    });
    if !fact.regarding.uid.is_empty() {
        regarding["uid"] = fact.regarding.uid.clone().into();
    }
    // To the microsecond, or the API server does not take it.
    let time = clock::rfc3339(now).replace('Z', ".000000Z");
    json!({
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": { "namespace": namespace, "name": event_name(name) },
        "eventTime": time,
        "reportingController": "tlsward",
        "reportingInstance": instance,
        "action": "Serve",
        "type": if fact.is_warning { "Warning" } else { "Normal" },
        "reason": fact.reason,
        "note": fact.note,
        "regarding": regarding,
    })
}

/// One that no other Event has: the object's, and random letters. An RFC 1123 subdomain.
fn event_name(object: &str) -> String {
    const LONGEST: usize = 253 - 17;
    let object = object.get(..LONGEST).unwrap_or(object);
    let object = object.trim_end_matches(['.', '-']);
    format!("{object}.{:016x}", RandomState::new().hash_one(object))
}

/// Which tlsward it was: the pod's name, which is its host's name too.
fn instance() -> String {
    #[expect(
        clippy::disallowed_methods,
        reason = "variables that Kubernetes sets, and not a user's"
    )]
    let name = ["POD_NAME", "HOSTNAME"]
        .into_iter()
        .find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()));
    let name = name.unwrap_or_else(|| "tlsward".to_owned());
    name.chars().take(128).collect()
}

/// When what is to be told.
#[derive(Debug)]
struct Schedule {
    /// What stands, and when it is to be told (again).
    standing: BTreeMap<Arc<Fact>, Instant>,
    /// The same in order of time.
    queue: BTreeSet<(Instant, Arc<Fact>)>,
    objects: BTreeMap<(&'static str, ObjectRef), Bucket>,
    total: Bucket,
    /// Namespaces in which nothing is to be told before then.
    forbidden: BTreeMap<String, Instant>,
}

/// What to do now.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Tell(Arc<Fact>),
    /// Nothing until then.
    At(Instant),
    /// Nothing until something else stands.
    Nothing,
}

impl Default for Schedule {
    fn default() -> Self {
        Self {
            standing: BTreeMap::new(),
            queue: BTreeSet::new(),
            objects: BTreeMap::new(),
            total: Bucket::new(TOTAL_BURST, TOTAL_EVERY),
            forbidden: BTreeMap::new(),
        }
    }
}

impl Schedule {
    /// These facts stand, and no others.
    fn stand(&mut self, facts: BTreeSet<Fact>, now: Instant) {
        let queue = &mut self.queue;
        self.standing.retain(|fact, due| {
            let stands = facts.contains(&**fact);
            if !stands {
                queue.remove(&(*due, Arc::clone(fact)));
            }
            stands
        });
        for fact in facts {
            if !self.standing.contains_key(&fact) {
                self.put(Arc::new(fact), now);
            }
        }
        self.objects.retain(|_, bucket| !bucket.is_full(now));
    }

    fn put(&mut self, fact: Arc<Fact>, due: Instant) {
        if let Some(before) = self.standing.insert(Arc::clone(&fact), due) {
            self.queue.remove(&(before, Arc::clone(&fact)));
        }
        self.queue.insert((due, fact));
    }

    fn next(&mut self, now: Instant) -> Next {
        loop {
            let Some((due, fact)) = self.queue.first() else {
                return Next::Nothing;
            };
            if *due > now {
                return Next::At(*due);
            }
            if let Some(ready) = self.total.ready(now) {
                return Next::At(ready);
            }
            let fact = Arc::clone(fact);
            let allowed = self.forbidden.get(&fact.regarding.object.namespace);
            let allowed = allowed.copied().filter(|allowed| *allowed > now);
            match allowed.or_else(|| self.bucket(&fact).ready(now)) {
                Some(later) => self.put(fact, later),
                None => return Next::Tell(fact),
            }
        }
    }

    fn bucket(&mut self, fact: &Fact) -> &mut Bucket {
        let object = (fact.regarding.kind, fact.regarding.object.clone());
        let bucket = self.objects.entry(object);
        bucket.or_insert_with(|| Bucket::new(OBJECT_BURST, OBJECT_EVERY))
    }

    /// It was told, which counts against the limits.
    fn told(&mut self, fact: &Arc<Fact>, now: Instant) {
        self.bucket(fact).take(now);
        self.total.take(now);
        if self.standing.contains_key(fact) {
            self.put(Arc::clone(fact), now + REPEAT + some_of(REPEAT_MORE));
        }
    }

    fn forbidden(&mut self, namespace: &str, now: Instant) {
        let until = now + FORBIDDEN_FOR;
        self.forbidden.insert(namespace.to_owned(), until);
    }
}

/// A token bucket.
#[derive(Debug)]
struct Bucket {
    tokens: f64,
    burst: f64,
    every: Duration,
    /// When `tokens` was right; `None`: never asked yet.
    at: Option<Instant>,
}

impl Bucket {
    fn new(burst: f64, every: Duration) -> Self {
        Self {
            tokens: burst,
            burst,
            every,
            at: None,
        }
    }

    fn fill(&mut self, now: Instant) {
        if let Some(at) = self.at.replace(now) {
            let new = now.duration_since(at).as_secs_f64() / self.every.as_secs_f64();
            self.tokens = (self.tokens + new).min(self.burst);
        }
    }

    fn is_full(&mut self, now: Instant) -> bool {
        self.fill(now);
        self.tokens >= self.burst
    }

    /// `None`: there is a token; else when there will be.
    fn ready(&mut self, now: Instant) -> Option<Instant> {
        self.fill(now);
        // What is left of a token after many sums is not to cost a round.
        let lacks = 1.0 - self.tokens;
        (lacks > 1e-9).then(|| now + self.every.mul_f64(lacks))
    }

    fn take(&mut self, now: Instant) {
        self.fill(now);
        self.tokens -= 1.0;
    }
}

#[cfg(test)]
mod tests;
