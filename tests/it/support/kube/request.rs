//! A request, as `RequestInfo` of the real server reads it off path and query.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use hyper::Method;

use super::selector;

/// One request that reached the server, for tests to look at.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// When it had been read.
    pub(crate) at: Instant,
    /// `system:serviceaccount:NAMESPACE:NAME`, `admin`, `system:anonymous`; empty for a token
    /// that nobody has.
    pub(crate) user: String,
    /// As RBAC calls it: `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`,
    /// `deletecollection`; the lower-case method for paths that are no resources.
    pub(crate) verb: String,
    pub(crate) path: String,
    /// Empty for the core group, and for paths that are no resources.
    pub(crate) group: String,
    pub(crate) version: String,
    /// The plural; empty for paths that are no resources.
    pub(crate) resource: String,
    pub(crate) subresource: String,
    /// `None` for objects of the cluster, and for all namespaces.
    pub(crate) namespace: Option<String>,
    /// From the path, or from the field selector `metadata.name=…`.
    pub(crate) name: Option<String>,
    /// Decoded, in the order in which they came.
    pub(crate) query: Vec<(String, String)>,
    pub(super) answer: Arc<OnceLock<u16>>,
}

impl Asked {
    /// The first value of a parameter of the query.
    pub(crate) fn parameter(&self, name: &str) -> Option<&str> {
        let mut pairs = self.query.iter();
        let (_, value) = pairs.find(|(key, _)| key == name)?;
        Some(value)
    }

    /// The HTTP status, once there is one.
    pub(crate) fn status(&self) -> Option<u16> {
        self.answer.get().copied()
    }

    /// Whether it was this: a verb, a plural and a name (`*` for any, and for none).
    pub(crate) fn is(&self, verb: &str, resource: &str, name: &str) -> bool {
        let same = |pattern: &str, value: &str| pattern == "*" || pattern == value;
        same(verb, &self.verb)
            && same(resource, &self.resource)
            && same(name, self.name.as_deref().unwrap_or_default())
    }

    pub(super) fn read(method: &Method, path: &str, query: Option<&str>) -> Self {
        let query = decoded(query.unwrap_or_default());
        let mut asked = Self {
            at: Instant::now(),
            user: String::new(),
            verb: method.as_str().to_lowercase(),
            path: path.to_owned(),
            group: String::new(),
            version: String::new(),
            resource: String::new(),
            subresource: String::new(),
            namespace: None,
            name: None,
            query,
            answer: Arc::default(),
        };
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let rest = match parts.as_slice() {
            ["api", version, rest @ ..] if !rest.is_empty() => {
                (*version).clone_into(&mut asked.version);
                rest
            }
            ["apis", group, version, rest @ ..] if !rest.is_empty() => {
                (*group).clone_into(&mut asked.group);
                (*version).clone_into(&mut asked.version);
                rest
            }
            _ => return asked,
        };
        asked.verb = match *method {
            Method::POST => "create",
            Method::GET | Method::HEAD => "get",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE => "delete",
            _ => "",
        }
        .to_owned();
        let rest = match rest {
            ["namespaces", namespace, rest @ ..] => {
                asked.namespace = Some((*namespace).to_owned());
                if rest.is_empty() || ["status", "finalize"].contains(&rest[0]) {
                    &["namespaces", namespace][..]
                } else {
                    rest
                }
            }
            rest => rest,
        };
        rest[0].clone_into(&mut asked.resource);
        asked.name = rest.get(1).map(|it| percent_decoded(it, false));
        if let Some(subresource) = rest.get(2) {
            (*subresource).clone_into(&mut asked.subresource);
        }
        if asked.name.is_none() {
            asked.as_collection();
        }
        asked
    }

    /// No name in the path: it may be in the field selector, and the verb is another.
    fn as_collection(&mut self) {
        match self.verb.as_str() {
            "get" => {
                let watching = self
                    .parameter("watch")
                    .is_some_and(|it| it != "false" && it != "0");
                self.verb = if watching { "watch" } else { "list" }.to_owned();
                let fields = self.parameter("fieldSelector");
                self.name = fields.and_then(selector::name_in);
            }
            "delete" => self.verb = "deletecollection".to_owned(),
            _ => {}
        }
    }
}

fn decoded(query: &str) -> Vec<(String, String)> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (percent_decoded(key, true), percent_decoded(value, true))
        })
        .collect()
}

/// `%xx`, and in a query `+` for a space. What is no code stands for itself.
fn percent_decoded(text: &str, form: bool) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.as_bytes().iter();
    while let Some(&byte) = bytes.next() {
        let code = bytes.as_slice().get(..2).and_then(|code| {
            let code = std::str::from_utf8(code).ok()?;
            u8::from_str_radix(code, 16).ok()
        });
        match (byte, code) {
            (b'+', _) if form => out.push(b' '),
            (b'%', Some(code)) => {
                out.push(code);
                bytes.nth(1);
            }
            _ => out.push(byte),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}
