//! One watch for as long as it is wanted: a list, then what changes from there on, and after
//! whatever goes wrong the same again from where it was.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::header::{HeaderMap, RETRY_AFTER};
use hyper::{Method, StatusCode};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};
use tracing::{debug, info, warn};
use zeroize::Zeroizing;

use super::collect::{Collect, Line};
use super::connection::{Conversation, append};
use super::gate::{Backoff, Gate, Pass, Patience, pause, some_of};
use super::server::Server;
use super::target::{Target, Trouble, Verb};
use super::wire::Status;
use crate::cluster::Store;
use crate::failure::Explained;

/// How long a watch lasts before the server ends it in order (`timeoutSeconds`): some 5 minutes,
/// each another time, so that thousands do not end together. In that time a server ought to have
/// sent a bookmark, so one that says nothing for longer has gone.
const WATCH_LASTS: Duration = Duration::from_secs(240);
const WATCH_LASTS_MORE: Duration = Duration::from_secs(120);
const GRACE: Duration = Duration::from_secs(10);

/// Between attempts at something that the server refuses: whoever corrects a role waits for us.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// Between watches that end as soon as they have begun.
const FIRST_RESTART: Duration = Duration::from_millis(100);
const LONGEST_RESTART: Duration = Duration::from_secs(10);
const LASTED: Duration = Duration::from_secs(1);

/// The most that is taken in of one page of a list, of one line of a watch, and of a refusal.
const LARGEST_PAGE: usize = 128 << 20;
const LARGEST_LINE: usize = 16 << 20;
const LARGEST_REFUSAL: usize = 64 << 10;

/// What all watches share.
#[derive(Debug)]
pub(super) struct Site {
    /// As we know it now, or as what we are to it now.
    server: Mutex<Arc<Server>>,
    pub(super) gate: Gate,
    pub(super) store: Arc<Store>,
    /// The server does not know us.
    pub(super) unknown: Notify,
    /// How often it came back with less than it had told before: what was watched from there is to
    /// be listed.
    set_back: AtomicU64,
}

impl Site {
    pub(super) fn new(server: Server, store: Arc<Store>) -> Self {
        Self {
            gate: Gate::new(server.name.clone()),
            server: Mutex::new(Arc::new(server)),
            store,
            unknown: Notify::new(),
            set_back: AtomicU64::new(0),
        }
    }

    pub(super) fn server(&self) -> Arc<Server> {
        let server = self.server.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&server)
    }

    /// It is the same server, and we are somebody else to it.
    pub(super) fn replace_server(&self, server: Server) {
        let mut current = self.server.lock().unwrap_or_else(PoisonError::into_inner);
        *current = Arc::new(server);
    }
}

/// One watch.
pub(super) struct Follower {
    site: Arc<Site>,
    target: Target,
    /// Which of the target's versions the server serves, as far as is known.
    version: usize,
    collect: Box<dyn Collect>,
    conversation: Conversation,
    /// From where to go on; `None`: a list is needed.
    resource_version: Option<String>,
    /// [`Site::set_back`] when that was last known to be right.
    set_back: u64,
    /// A list has been complete.
    listed: Arc<AtomicBool>,
    /// What was told last.
    trouble: Option<Explained>,
}

/// How a watch ended.
enum End {
    /// In order, or by a broken connection: it goes on from where it was.
    Over,
    /// With the server's words.
    Failed(Trouble),
}

impl Follower {
    /// `listed` becomes true once a list has been taken in whole.
    pub(super) fn new(
        site: Arc<Site>,
        target: Target,
        collect: Box<dyn Collect>,
        listed: Arc<AtomicBool>,
    ) -> Self {
        Self {
            site,
            target,
            version: 0,
            collect,
            conversation: Conversation::default(),
            resource_version: None,
            set_back: 0,
            listed,
            trouble: None,
        }
    }

    /// Follows until it is dropped.
    pub(super) async fn run(mut self) -> Infallible {
        let site = Arc::clone(&self.site);
        let mut retries = Backoff::new(FIRST_RETRY, LONGEST_RETRY);
        let mut restarts = Backoff::new(FIRST_RESTART, LONGEST_RESTART);
        loop {
            let pass = site.gate.pass(&site.store, |why| self.tell(why)).await;
            let lasts = WATCH_LASTS + some_of(WATCH_LASTS_MORE);
            let begun = Instant::now();
            let trouble = match self.begin(lasts, &pass).await {
                Ok(()) => {
                    pass.answered();
                    self.fine();
                    retries.reset();
                    match self.stream(lasts).await {
                        End::Over => None,
                        End::Failed(trouble) => Some(trouble),
                    }
                }
                Err(Trouble::Away { why, after }) => {
                    self.conversation.hang_up();
                    pass.failed(&why, after);
                    self.tell(&why);
                    continue;
                }
                Err(trouble) => {
                    pass.answered();
                    Some(trouble)
                }
            };
            match trouble {
                None | Some(Trouble::Expired | Trouble::Away { .. }) => {
                    if matches!(trouble, Some(Trouble::Expired)) {
                        debug!(target = ?self.target, "the version has expired: listed anew");
                        self.resource_version = None;
                    }
                    if begun.elapsed() > LASTED {
                        restarts.reset();
                    } else {
                        pause(restarts.next(), &site.store).await;
                    }
                }
                Some(Trouble::NotServed(_)) if self.version + 1 < self.target.versions.len() => {
                    self.version += 1;
                }
                Some(Trouble::NotServed(why) | Trouble::Refused(why)) => {
                    self.version = 0;
                    self.refused(&why);
                    pause(retries.next(), &site.store).await;
                }
                Some(Trouble::Unknown(why)) => {
                    // A connection may say who we are, too.
                    self.conversation.hang_up();
                    self.refused(&why);
                    site.unknown.notify_one();
                    pause(retries.next(), &site.store).await;
                }
            }
        }
    }

    fn refused(&mut self, why: &Explained) {
        if self.trouble.as_ref() != Some(why) {
            warn!(reason = %why.reason, detail = why.detail, hint = why.hint,
                "the Kubernetes API server refuses");
        }
        self.tell(why);
    }

    fn tell(&mut self, why: &Explained) {
        if self.trouble.as_ref() != Some(why) {
            self.trouble = Some(why.clone());
            self.collect.trouble(why);
        }
    }

    fn fine(&mut self) {
        if self.trouble.take().is_some() {
            self.collect.fine();
        }
    }

    /// A list, if one is needed, and the head of a watch from there on.
    async fn begin(&mut self, lasts: Duration, pass: &Pass<'_>) -> Result<(), Trouble> {
        let patience = pass.patience();
        let set_back = self.site.set_back.load(Ordering::Relaxed);
        let before = self
            .resource_version
            .as_ref()
            .filter(|_| self.set_back == set_back);
        let from = match before {
            // A server that was away may have come back with an older memory, in which a watch
            // from our version would say nothing until it is reached again. One list for all
            // shows that.
            Some(before) if pass.is_probe() => {
                let before = before.clone();
                let version = self.list(patience).await?;
                if is_older(&version, &before) {
                    info!(
                        version,
                        before, "the API server was set back: all is listed anew"
                    );
                    self.site.set_back.fetch_add(1, Ordering::Relaxed);
                }
                version
            }
            Some(before) => before.clone(),
            None => self.list(patience).await?,
        };
        self.set_back = self.site.set_back.load(Ordering::Relaxed);
        self.resource_version = Some(from.clone());
        let path = self.target.watch(self.version, &from, lasts);
        self.ask(Verb::Watch, &path, patience).await
    }

    /// All of it; says from which version on it is to be watched.
    async fn list(&mut self, patience: Patience) -> Result<String, Trouble> {
        self.collect.begin();
        let mut continue_token = String::new();
        loop {
            let path = self.target.list(self.version, &continue_token);
            self.ask(Verb::List, &path, patience).await?;
            let server = self.site.server();
            let page = self
                .conversation
                .whole(LARGEST_PAGE, patience)
                .await
                .map_err(|why| Trouble::away(&server.name, &why))?;
            let page = self.collect.page(&page);
            let page =
                page.map_err(|error| Trouble::unreadable(&server.name, &self.target, &error))?;
            if page.continue_token.is_empty() {
                self.collect.complete();
                self.listed.store(true, Ordering::Relaxed);
                return Ok(page.resource_version);
            }
            continue_token = page.continue_token;
        }
    }

    /// Asks, and returns once the answer has begun, if it is a yes.
    async fn ask(&mut self, verb: Verb, path: &str, patience: Patience) -> Result<(), Trouble> {
        let server = self.site.server();
        let away = |why: String| Trouble::away(&server.name, &why);
        let head = self
            .conversation
            .ask(&server, Method::GET, path, &[], patience)
            .await
            .map_err(away)?;
        if head.status.is_success() {
            return Ok(());
        }
        let retry_after = retry_after(&head.headers);
        let body = self
            .conversation
            .whole(LARGEST_REFUSAL, patience)
            .await
            .map_err(away)?;
        let status = Status::parse(&body);
        Err(Trouble::of(
            &server.name,
            &self.target,
            verb,
            head.status,
            retry_after,
            &status,
        ))
    }

    /// Takes in what a watch brings until it ends.
    async fn stream(&mut self, lasts: Duration) -> End {
        let ends = Instant::now() + lasts + GRACE;
        let mut rest: Zeroizing<Vec<u8>> = Zeroizing::default();
        loop {
            let piece = match timeout_at(ends, self.conversation.piece()).await {
                Ok(Ok(Some(piece))) => piece,
                Ok(Ok(None)) => return End::Over,
                Ok(Err(why)) => {
                    debug!(why, target = ?self.target, "a watch broke");
                    self.conversation.hang_up();
                    return End::Over;
                }
                Err(_) => {
                    self.conversation.hang_up();
                    return End::Over;
                }
            };
            let mut piece = &piece[..];
            while let Some(end) = piece.iter().position(|byte| *byte == b'\n') {
                let (line, after) = piece.split_at(end);
                piece = after.get(1..).unwrap_or_default();
                let taken = if rest.is_empty() {
                    self.line(line)
                } else {
                    append(&mut rest, line);
                    let whole = std::mem::take(&mut rest);
                    self.line(&whole)
                };
                if let Err(trouble) = taken {
                    // What comes after it is of no interest.
                    self.conversation.hang_up();
                    return End::Failed(trouble);
                }
            }
            append(&mut rest, piece);
            if rest.len() > LARGEST_LINE {
                self.conversation.hang_up();
                let why = format!("a line of more than {LARGEST_LINE} bytes");
                return End::Failed(Trouble::away(&self.site.server().name, &why));
            }
        }
    }

    fn line(&mut self, line: &[u8]) -> Result<(), Trouble> {
        if line.iter().all(u8::is_ascii_whitespace) {
            return Ok(());
        }
        match self.collect.line(line) {
            Ok(Line::Version(version)) => {
                let before = self.resource_version.as_deref();
                if is_older(&version, before.unwrap_or_default()) {
                    info!(target = ?self.target, version, before,
                        "the API server was set back: everything is listed anew");
                    return Err(Trouble::Expired);
                }
                if !version.is_empty() {
                    self.resource_version = Some(version);
                }
                Ok(())
            }
            Ok(Line::Failed(status)) => {
                let code = StatusCode::from_u16(status.code);
                let code = code.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
                let name = &self.site.server().name;
                let trouble = Trouble::of(name, &self.target, Verb::Watch, code, None, &status);
                Err(trouble)
            }
            Ok(Line::Other) => Ok(()),
            Err(error) => {
                self.resource_version = None;
                let name = &self.site.server().name;
                Err(Trouble::unreadable(name, &self.target, &error))
            }
        }
    }
}

/// Resource versions are numbers that grow (KEP-5504). If one shrinks, the server's memory was
/// restored from a copy, and a watch from the larger number would say nothing until it is reached
/// again.
fn is_older(version: &str, than: &str) -> bool {
    match (version.parse::<u128>(), than.parse::<u128>()) {
        (Ok(version), Ok(than)) => version < than,
        (_, _) => false,
    }
}

/// Seconds; the other form, a date, no API server sends.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    // A mistake there must not silence us for a day.
    Some(Duration::from_secs(seconds).min(LONGEST_RETRY))
}

#[cfg(test)]
mod tests;
