//! GET, LIST and WATCH: the semantics of resource versions are those of
//! <https://kubernetes.io/docs/reference/using-api/api-concepts/#resource-versions>.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::request::Asked;
use super::resources::Resource;
use super::selector::Selector;
use super::status::{Mistake, Refusal};
use super::store::{Key, Listing, Scope, Since, Store};

/// Whole objects or their metadata alone, as the client accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Whole,
    Metadata,
}

/// What a watch is asked for.
pub(super) struct Watch {
    pub(super) scope: Scope,
    pub(super) since: Since,
    pub(super) bookmarks: bool,
    pub(super) seconds: u64,
}

/// # Errors
/// 404; 504 for a version that is not yet.
pub(super) fn get(
    store: &Store,
    resource: &Resource,
    key: &Key,
    asked: &Asked,
    form: Form,
) -> Result<Value, Refusal> {
    let at_least = version(asked.parameter("resourceVersion")).map_err(unread)?;
    not_in_the_future(store, at_least)?;
    let stored = store
        .get(key)
        .ok_or_else(|| Refusal::not_found(resource, &key.name))?;
    Ok(form.of(resource, &stored.value))
}

/// # Errors
/// 400, 410, 422 and 504, as documented.
pub(super) fn list(
    store: &Store,
    resource: &'static Resource,
    asked: &Asked,
    form: Form,
) -> Result<Value, Refusal> {
    let scope = scope(resource, asked)?;
    let go_on = asked.parameter("continue").filter(|it| !it.is_empty());
    let matching = asked.parameter("resourceVersionMatch").unwrap_or_default();
    list_options(asked, matching, go_on.is_some())?;
    let limit = match whole("limit", asked)? {
        // From the watch cache, which knows no pages.
        _ if asked.parameter("resourceVersion") == Some("0") => 0,
        limit => usize::try_from(limit).unwrap_or(0),
    };
    let wanted = version(asked.parameter("resourceVersion"))
        .map_err(|why| Refusal::bad_request(format!("invalid resource version: {why}")))?;
    let (at, after) = match (go_on, matching) {
        (Some(token), _) => {
            if wanted != 0 {
                return Err(Refusal::bad_request(
                    "specifying resource version is not allowed when using continue",
                ));
            }
            let (at, after) = decode_continue(token)?;
            (at.unwrap_or_else(|| store.version()), Some(after))
        }
        (None, "Exact") => (wanted, None),
        (None, _) => {
            not_in_the_future(store, wanted)?;
            (store.version(), None)
        }
    };
    let mut found = match store.list_at(&scope, at) {
        Ok(found) => found,
        Err(refusal) => {
            return Err(match after {
                Some(after) => Refusal::expired_list(encode_continue(None, &after)),
                None => refusal,
            });
        }
    };
    if let Some(after) = &after {
        found.retain(|(key, _)| place(key) > *after);
    }
    let mut meta = json!({ "resourceVersion": at.to_string() });
    if limit > 0 && found.len() > limit {
        let rest = found.split_off(limit);
        let (last, _) = found.last().expect("a limit of at least one leaves one");
        meta["continue"] = json!(encode_continue(Some(at), &place(last)));
        if scope.selector.is_empty() {
            meta["remainingItemCount"] = json!(rest.len());
        }
    }
    Ok(listed(resource, form, &found, meta))
}

/// A list of these objects, with this metadata.
pub(super) fn listed(resource: &Resource, form: Form, found: &Listing, meta: Value) -> Value {
    let items = found
        .iter()
        .map(|(_, stored)| form.item(resource, &stored.value));
    json!({
        "kind": form.list_kind(resource),
        "apiVersion": form.api_version(resource),
        "metadata": meta,
        "items": items.collect::<Vec<_>>(),
    })
}

/// # Errors
/// 400 and 422; that the version is too old is for the store to say.
pub(super) fn watch(resource: &'static Resource, asked: &Asked) -> Result<Watch, Refusal> {
    let scope = scope(resource, asked)?;
    let initial = asked.parameter("sendInitialEvents");
    let matching = asked.parameter("resourceVersionMatch").unwrap_or_default();
    let mut mistakes = Vec::new();
    if initial.is_some() && matching != "NotOlderThan" {
        let why = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
        mistakes.push(Mistake::forbidden("resourceVersionMatch", why));
    }
    if initial.is_none() && !matching.is_empty() {
        let why =
            "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
        mistakes.push(Mistake::forbidden("resourceVersionMatch", why));
    }
    refuse_options(&mistakes)?;
    // From nowhere, a watch is a streaming list even where nobody says so.
    let since = version(asked.parameter("resourceVersion")).map_err(unread)?;
    let initial_events = initial == Some("true") || initial.is_none() && since == 0;
    let since = match since {
        _ if initial_events => Since::Nothing,
        0 => Since::Now,
        since => Since::Version(since),
    };
    let seconds = whole("timeoutSeconds", asked)?;
    Ok(Watch {
        scope,
        since,
        bookmarks: asked.parameter("allowWatchBookmarks") == Some("true"),
        // Without one, --min-request-timeout.
        seconds: u64::try_from(seconds)
            .ok()
            .filter(|it| *it > 0)
            .unwrap_or(1800),
    })
}

/// What a request's path and selectors reach for.
///
/// # Errors
/// 400 for selectors that cannot be read, or fields that cannot be selected by.
pub(super) fn scope(resource: &'static Resource, asked: &Asked) -> Result<Scope, Refusal> {
    let labels = asked.parameter("labelSelector");
    let fields = asked.parameter("fieldSelector");
    let selector = Selector::parse(resource, labels, fields).map_err(Refusal::bad_request)?;
    Ok(Scope {
        resource,
        namespace: asked.namespace.clone(),
        selector,
    })
}

/// `ValidateListOptions`.
fn list_options(asked: &Asked, matching: &str, continued: bool) -> Result<(), Refusal> {
    let mut mistakes = Vec::new();
    let mut forbid = |field: &str, why: &str| mistakes.push(Mistake::forbidden(field, why));
    if !matching.is_empty() {
        let wanted = asked.parameter("resourceVersion").unwrap_or_default();
        if wanted.is_empty() {
            let why = "resourceVersionMatch is forbidden unless resourceVersion is provided";
            forbid("resourceVersionMatch", why);
        }
        if continued {
            let why = "resourceVersionMatch is forbidden when continue is provided";
            forbid("resourceVersionMatch", why);
        }
        if matching == "Exact" && wanted == "0" {
            let why = "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"";
            forbid("resourceVersionMatch", why);
        }
    }
    if asked.parameter("sendInitialEvents").is_some() {
        let why = "sendInitialEvents is forbidden for list";
        forbid("sendInitialEvents", why);
    }
    if !["", "Exact", "NotOlderThan"].contains(&matching) {
        let supported = ["Exact", "NotOlderThan", ""];
        let value = json!(matching);
        let mistake = Mistake::not_supported("resourceVersionMatch", &value, &supported);
        mistakes.push(mistake);
    }
    refuse_options(&mistakes)
}

fn refuse_options(mistakes: &[Mistake]) -> Result<(), Refusal> {
    if mistakes.is_empty() {
        return Ok(());
    }
    let kind = ("meta.k8s.io", "ListOptions");
    Err(Refusal::invalid(kind, "", mistakes))
}

fn version(text: Option<&str>) -> Result<u64, String> {
    let text = text.unwrap_or_default();
    if text.is_empty() {
        return Ok(0);
    }
    text.parse().map_err(|_| {
        format!(
            "resourceVersion: Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: \
             invalid syntax"
        )
    })
}

/// A GET and a watch have no better answer to a version that is none.
fn unread(why: String) -> Refusal {
    Refusal::new(500, "", why)
}

/// A parameter that is a number, 0 where there is none.
fn whole(name: &str, asked: &Asked) -> Result<i64, Refusal> {
    let text = asked.parameter(name).unwrap_or("0");
    text.parse().map_err(|_| {
        Refusal::bad_request(format!(
            "strconv.ParseInt: parsing {text:?}: invalid syntax"
        ))
    })
}

/// The real server waits three seconds for such a version; here nothing would come of it.
fn not_in_the_future(store: &Store, wanted: u64) -> Result<(), Refusal> {
    if wanted > store.version() {
        return Err(Refusal::too_large_version(wanted, store.version()));
    }
    Ok(())
}

fn place(key: &Key) -> String {
    format!("{}/{}", key.namespace, key.name)
}

/// Without a version: inconsistent, at whatever is newest.
fn encode_continue(version: Option<u64>, after: &str) -> String {
    let version = version.map_or_else(|| json!(-1), |it| json!(it));
    let token = json!({ "v": "meta.k8s.io/v1", "rv": version, "start": format!("{after}\0") });
    URL_SAFE_NO_PAD.encode(token.to_string())
}

fn decode_continue(token: &str) -> Result<(Option<u64>, String), Refusal> {
    let refuse = || {
        let why = "invalid continue token: continue key is not valid: illegal base64 data at \
             input byte 0";
        Refusal::bad_request(why)
    };
    let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| refuse())?;
    let token: Value = serde_json::from_slice(&bytes).map_err(|_| refuse())?;
    let after = token["start"].as_str().ok_or_else(refuse)?;
    let after = after.trim_end_matches('\0').to_owned();
    Ok((token["rv"].as_u64(), after))
}

impl Form {
    /// An object that stands alone: in an answer or an event.
    pub(super) fn of(self, resource: &Resource, stored: &Value) -> Value {
        let shown = resource.show(stored);
        match self {
            Self::Whole => shown,
            Self::Metadata => json!({
                "kind": "PartialObjectMetadata",
                "apiVersion": "meta.k8s.io/v1",
                "metadata": shown["metadata"],
            }),
        }
    }

    /// An object of a list: those of the built-in kinds do not say what they are.
    fn item(self, resource: &Resource, stored: &Value) -> Value {
        let mut item = self.of(resource, stored);
        if let (Self::Whole, Some(map)) = (self, item.as_object_mut()) {
            map.remove("kind");
            map.remove("apiVersion");
        }
        item
    }

    pub(super) fn kind(self, resource: &Resource) -> &'static str {
        match self {
            Self::Whole => resource.kind,
            Self::Metadata => "PartialObjectMetadata",
        }
    }

    fn list_kind(self, resource: &Resource) -> String {
        format!("{}List", self.kind(resource))
    }

    pub(super) fn api_version(self, resource: &Resource) -> String {
        match self {
            Self::Whole => resource.api_version(),
            Self::Metadata => "meta.k8s.io/v1".to_owned(),
        }
    }
}
