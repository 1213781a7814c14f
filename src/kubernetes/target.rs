//! What a watch asks the API server for, and what it means when the answer is no.

use std::time::Duration;

use hyper::StatusCode;

use super::wire::Status;
use crate::failure::{Explained, Reason};

/// A collection of objects, or one of them by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// As in roles: `secrets`.
    pub(super) resource: &'static str,
    /// As people write it: `Secrets`.
    pub(super) kind: &'static str,
    /// The API group's version, newest first, as paths: those that a server does not serve are
    /// passed over.
    pub(super) versions: &'static [&'static str],
    /// `None`: of every namespace, or of none.
    pub(super) namespace: Option<String>,
    pub(super) select: Select,
    /// At most so many in one page; 0: all in one.
    pub(super) page: u32,
}

/// Which objects of the collection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Select {
    All,
    /// The one of this name: a role can be limited to it by `resourceNames`.
    Name(String),
    Labels(String),
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    List,
    Watch,
}

impl Verb {
    fn as_str(self) -> &'static str {
        match self {
            Self::List => "list",
            Self::Watch => "watch",
        }
    }
}

impl Target {
    /// The path of a list's page, of the API version `version`.
    pub(super) fn list(&self, version: usize, continue_token: &str) -> String {
        let mut path = self.path(version);
        if self.page > 0 {
            path.push_str(&format!("limit={}&", self.page));
        }
        if !continue_token.is_empty() {
            path.push_str(&format!("continue={}&", encoded(continue_token)));
        }
        trimmed(path)
    }

    /// The path of a watch from `resource_version` on, which the server is to end after `lasts`.
    pub(super) fn watch(&self, version: usize, resource_version: &str, lasts: Duration) -> String {
        let mut path = self.path(version);
        path.push_str(&format!(
            "watch=true&allowWatchBookmarks=true&timeoutSeconds={}&resourceVersion={}",
            lasts.as_secs(),
            encoded(resource_version)
        ));
        path
    }

    fn path(&self, version: usize) -> String {
        let root = self.versions.get(version).copied().unwrap_or_default();
        let mut path = match &self.namespace {
            Some(namespace) => format!(
                "{root}/namespaces/{}/{}?",
                encoded(namespace),
                self.resource
            ),
            None => format!("{root}/{}?", self.resource),
        };
        match &self.select {
            Select::All => {}
            Select::Name(name) => {
                path.push_str(&format!(
                    "fieldSelector={}&",
                    encoded(&format!("metadata.name={name}"))
                ));
            }
            Select::Labels(selector) => {
                path.push_str(&format!("labelSelector={}&", encoded(selector)));
            }
        }
        path
    }

    /// `secrets "billing" in namespace payments`.
    fn words(&self) -> String {
        let mut words = self.resource.to_owned();
        if let Select::Name(name) = &self.select {
            words.push_str(&format!(" {name:?}"));
        }
        match &self.namespace {
            Some(namespace) => words.push_str(&format!(" in namespace {namespace}")),
            // Trust bundles have none.
            None if matches!(self.select, Select::Name(_)) => {}
            None => words.push_str(" in all namespaces"),
        }
        words
    }
}

fn trimmed(mut path: String) -> String {
    path.pop();
    path
}

/// For the query of a URL (RFC 3986, 2.3).
fn encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(byte.into());
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

/// Why there is no answer to go on with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The server is not there, or in no state to answer anybody. It wants to be left alone for
    /// `after`, if it said so.
    Away {
        why: Explained,
        after: Option<Duration>,
    },
    /// It answered, and the answer is no.
    Refused(Explained),
    /// It does not know us: who we are may have changed.
    Unknown(Explained),
    /// It does not serve this version of the resource.
    NotServed(Explained),
    /// Only a new list helps.
    Expired,
}

impl Trouble {
    pub(super) fn away(server: &str, why: &str) -> Self {
        Self::Away {
            why: Explained::new(Reason::ApiUnavailable, format!("{server}: {why}")),
            after: None,
        }
    }

    /// What was answered is not JSON of the right shape. The parser's own words are not shown:
    /// they may quote a Secret.
    pub(super) fn unreadable(server: &str, target: &Target, error: &serde_json::Error) -> Self {
        Self::Refused(Explained::new(
            Reason::ApiUnavailable,
            format!(
                "{server}: what it says of {} cannot be read ({:?} error in column {})",
                target.words(),
                error.classify(),
                error.column()
            ),
        ))
    }

    /// What a status says, as the head of an answer or in the middle of a watch.
    pub(super) fn of(
        server: &str,
        target: &Target,
        verb: Verb,
        code: StatusCode,
        retry_after: Option<Duration>,
        status: &Status,
    ) -> Self {
        let message = status.message.trim();
        match code {
            StatusCode::GONE => return Self::Expired,
            // A watch from a version that the server does not understand.
            StatusCode::BAD_REQUEST
                if verb == Verb::Watch && message.contains("resource version") =>
            {
                return Self::Expired;
            }
            _ if is_from_the_future(status) => return Self::Expired,
            _ => {}
        }
        let details = status.details.as_ref();
        let seconds = details.map_or(0, |details| details.retry_after_seconds);
        let after = retry_after.or_else(|| (seconds > 0).then(|| Duration::from_secs(seconds)));
        match code {
            StatusCode::UNAUTHORIZED => Self::Unknown(Explained::new(
                Reason::Forbidden,
                format!("{server}: the API server does not know our token (401)"),
            )),
            StatusCode::FORBIDDEN => {
                let by = user(message).map_or(String::new(), |user| format!(" as {user}"));
                let verb = verb.as_str();
                Self::Refused(Explained::new(
                    Reason::Forbidden,
                    format!("may not {verb} {}{by}", target.words()),
                ))
            }
            StatusCode::NOT_FOUND => Self::NotServed(Explained::new(
                Reason::ApiUnavailable,
                format!("{server}: this API server does not serve {}", target.kind),
            )),
            StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => Self::Away {
                why: Explained::new(
                    Reason::ApiUnavailable,
                    format!("{server}: {code}{}", quoted(message)),
                ),
                after,
            },
            _ => {
                let verb = verb.as_str();
                Self::Refused(Explained::new(
                    Reason::ApiUnavailable,
                    format!(
                        "{server}: {verb} {}: {code}{}",
                        target.words(),
                        quoted(message)
                    ),
                ))
            }
        }
    }
}

/// "Too large resource version": asked of a server that is behind the one that gave it to us, or
/// that was set back.
fn is_from_the_future(status: &Status) -> bool {
    let details = status.details.as_ref();
    let causes = details.and_then(|details| details.causes.as_ref());
    causes.is_some_and(|causes| {
        causes
            .iter()
            .any(|cause| cause.reason == "ResourceVersionTooLarge")
    }) || status.message.contains("Too large resource version")
}

/// Whom a refusal names: `User "…" cannot list …`.
fn user(message: &str) -> Option<&str> {
    let (_, rest) = message.split_once("User \"")?;
    let (user, _) = rest.split_once('"')?;
    Some(user)
}

/// Whatever stands between us and the server may answer with a page of HTML.
fn quoted(message: &str) -> String {
    const MOST: usize = 200;
    if message.is_empty() {
        return String::new();
    }
    let line = message.lines().next().unwrap_or_default();
    format!(": {}", line.chars().take(MOST).collect::<String>())
}
