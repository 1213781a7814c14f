//! From an HTTP request to its answer: authentication, authorisation, negotiation, the verbs.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::stream::{self, StreamExt};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame as BodyFrame, Incoming};
use hyper::{Method, Request, Response, header};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::access::Identity;
use super::discovery;
use super::faults::{Fault, wait_for_release};
use super::read::{self, Form};
use super::request::Asked;
use super::resources::{self, Resource};
use super::server::{Shared, State};
use super::status::Refusal;
use super::store::{Frame, Key};
use super::write::{self, Write};

pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// What the real server takes in one body.
const MOST_BYTES: usize = 3 * 1024 * 1024;

/// Parameters that any request may have.
const ANY: &[&str] = &["pretty"];
const READ: &[&str] = &["resourceVersion"];
const COLLECTION: &[&str] = &[
    "allowWatchBookmarks",
    "continue",
    "fieldSelector",
    "labelSelector",
    "limit",
    "resourceVersion",
    "resourceVersionMatch",
    "sendInitialEvents",
    "timeoutSeconds",
    "watch",
];
const WRITE: &[&str] = &["dryRun", "fieldManager", "fieldValidation"];
const DELETE: &[&str] = &[
    "dryRun",
    "gracePeriodSeconds",
    "orphanDependents",
    "propagationPolicy",
];

/// Answers, or fails where the connection is to be given up without an answer.
pub(super) async fn answer(
    shared: Arc<Shared>,
    request: Request<Incoming>,
    connection: u64,
) -> io::Result<Response<Body>> {
    let (parts, body) = request.into_parts();
    let mut asked = Asked::read(&parts.method, parts.uri.path(), parts.uri.query());
    let header = |name: header::HeaderName| {
        let value = parts.headers.get(name)?.to_str().ok()?;
        Some(value.to_owned())
    };
    let authorization = header(header::AUTHORIZATION);
    let identity = {
        let state = shared.state();
        let identity = state
            .tokens
            .identify(&state.store, authorization.as_deref());
        asked.user = identity
            .as_ref()
            .map_or(String::new(), |it| it.name.clone());
        identity
    };
    shared.arrived.push(asked.clone());
    shared.speaking().await;
    wait_for_release(&shared, &asked).await;
    let fault = shared.state().faults.take(&asked);
    if let Some(fault) = fault {
        return wrong(&shared, &asked, fault, connection);
    }
    let headers = Headers {
        accept: header(header::ACCEPT),
        content_type: header(header::CONTENT_TYPE),
        manager: header(header::USER_AGENT).unwrap_or_default(),
    };
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    let answer = Call {
        shared: &shared,
        asked: &asked,
        method: &parts.method,
        headers: &headers,
        body: &body,
        connection,
    }
    .answer(identity.as_ref());
    Ok(match answer {
        Ok(Answer::Object(code, value)) => {
            note(&shared, &asked, code);
            let mut text = value.to_string().into_bytes();
            text.push(b'\n');
            response(code, "application/json", text)
        }
        Ok(Answer::Text(text)) => {
            note(&shared, &asked, 200);
            response(200, "text/plain; charset=utf-8", text.into())
        }
        Ok(Answer::Watch(watch)) => {
            note(&shared, &asked, 200);
            watch.response(&shared)
        }
        Err(refusal) => refused(&shared, &asked, &refusal),
    })
}

enum Answer {
    Object(u16, Value),
    Text(&'static str),
    Watch(Streaming),
}

struct Headers {
    accept: Option<String>,
    content_type: Option<String>,
    manager: String,
}

struct Call<'a> {
    shared: &'a Arc<Shared>,
    asked: &'a Asked,
    method: &'a Method,
    headers: &'a Headers,
    body: &'a [u8],
    connection: u64,
}

impl Call<'_> {
    fn answer(&self, identity: Option<&Identity>) -> Result<Answer, Refusal> {
        let asked = self.asked;
        let identity = identity.ok_or_else(Refusal::unauthorized)?;
        let state = &mut *self.shared.state();
        if !identity.may(&state.store, asked) {
            return Err(forbidden(asked));
        }
        if asked.resource.is_empty() {
            return self.no_resource(state);
        }
        let found = resources::find(&asked.group, &asked.version, &asked.resource);
        let served = |it: &&Resource| state.trust_bundles || it.plural != "clustertrustbundles";
        let Some(resource) = found.filter(served) else {
            if found.is_none() {
                self.complain("this path is nobody's");
            }
            return Err(match discovery::is_group(&asked.group) {
                true => Refusal::no_such_resource(),
                false => Refusal::no_such_path(),
            });
        };
        self.check_parameters();
        if resource.review {
            return self.review(resource, state, identity);
        }
        if asked.subresource == "token" && resource.plural == "serviceaccounts" {
            return self.token(state);
        }
        self.routed(resource)?;
        let form = self.form()?;
        let namespace = match resource.namespaced {
            true => asked.namespace.clone().unwrap_or_default(),
            false => String::new(),
        };
        let name = asked.name.clone().unwrap_or_default();
        let write = Write {
            resource,
            namespace: &namespace,
            body: self.body,
            dry_run: asked.parameter("dryRun") == Some("All"),
            manager: self.manager(),
        };
        match asked.verb.as_str() {
            "get" => {
                let key = Key {
                    collection: resource.collection(),
                    namespace,
                    name,
                };
                let object = read::get(&state.store, resource, &key, asked, form)?;
                Ok(Answer::Object(200, object))
            }
            "list" => {
                let list = read::list(&state.store, resource, asked, form)?;
                Ok(Answer::Object(200, list))
            }
            "watch" => self.watch(resource, state, form),
            "create" => {
                self.typed("application/json")?;
                let written = write.create(&mut state.store)?;
                Ok(Answer::Object(201, self.written(written, form, resource)))
            }
            "update" => {
                self.typed("application/json")?;
                let before = state.store.get(&write.key(&name)).is_some();
                let written = write.update(&mut state.store, &name)?;
                let code = if before { 200 } else { 201 };
                Ok(Answer::Object(code, self.written(written, form, resource)))
            }
            "patch" => {
                self.patchable()?;
                let written = write.patch(&mut state.store, &name)?;
                Ok(Answer::Object(200, self.written(written, form, resource)))
            }
            "delete" => Ok(Answer::Object(200, write.delete(&mut state.store, &name)?)),
            "deletecollection" => {
                let scope = read::scope(resource, asked)?;
                let found = state.store.list_at(&scope, state.store.version())?;
                for (key, _) in &found {
                    state.store.remove(key);
                }
                let meta = json!({ "resourceVersion": state.store.version().to_string() });
                Ok(Answer::Object(
                    200,
                    read::listed(resource, form, &found, meta),
                ))
            }
            _ => Err(Refusal::method_not_allowed()),
        }
    }

    /// Whether there is a route for this verb on this path.
    fn routed(&self, resource: &Resource) -> Result<(), Refusal> {
        let asked = self.asked;
        let collection = asked.name.is_none() || ["list", "watch"].contains(&asked.verb.as_str());
        let everywhere = resource.namespaced && asked.namespace.is_none();
        if !asked.subresource.is_empty() || everywhere && !collection {
            self.complain("this path is nobody's");
            return Err(Refusal::no_such_resource());
        }
        let verbs: &[&str] = match (collection, everywhere) {
            (true, true) => &["list", "watch"],
            (true, false) => &["list", "watch", "create", "deletecollection"],
            (false, _) => &["get", "update", "patch", "delete"],
        };
        match verbs.contains(&asked.verb.as_str()) {
            true => Ok(()),
            false => Err(Refusal::method_not_allowed()),
        }
    }

    fn no_resource(&self, state: &State) -> Result<Answer, Refusal> {
        let known = discovery::answer(&self.asked.path, state.trust_bundles);
        match known {
            Some(_) if *self.method != Method::GET => Err(Refusal::method_not_allowed()),
            Some(discovery::Known::Object(value)) => Ok(Answer::Object(200, value)),
            Some(discovery::Known::Text(text)) => Ok(Answer::Text(text)),
            None => {
                self.complain("this path is nobody's");
                Err(Refusal::no_such_path())
            }
        }
    }

    fn watch(
        &self,
        resource: &'static Resource,
        state: &mut State,
        form: Form,
    ) -> Result<Answer, Refusal> {
        let wanted = read::watch(resource, self.asked)?;
        let id = state.next_id();
        let started = state
            .store
            .watch(id, wanted.scope, wanted.since, wanted.bookmarks);
        let frames = match started {
            Ok(frames) => frames,
            Err(refusal) if state.expired_by_status => return Err(refusal),
            // So does the watch cache: the request is accepted, and the first event is an error.
            Err(refusal) => {
                let (sink, frames) = mpsc::unbounded_channel();
                let _ = sink.send(Frame::Failure(refusal));
                let _ = sink.send(Frame::End);
                frames
            }
        };
        state.open_watch(id, self.asked.clone(), self.connection);
        Ok(Answer::Watch(Streaming {
            guard: OpenWatch {
                shared: Arc::clone(self.shared),
                id,
            },
            frames,
            deadline: Instant::now() + Duration::from_secs(wanted.seconds),
            resource,
            form,
            over: false,
        }))
    }

    /// `SelfSubjectAccessReview`: the question is whether the one who asks may do a thing.
    fn review(
        &self,
        resource: &'static Resource,
        state: &State,
        identity: &Identity,
    ) -> Result<Answer, Refusal> {
        if self.asked.verb != "create" {
            return Err(Refusal::method_not_allowed());
        }
        self.typed("application/json")?;
        let object = serde_json::from_slice(self.body)
            .map_err(|error| Refusal::bad_request(error.to_string()))?;
        let (mut object, dropped) = resource.decode(object)?;
        self.report_dropped(&dropped);
        let attributes = &object["spec"]["resourceAttributes"];
        let text = |field: &str| attributes[field].as_str().unwrap_or_default().to_owned();
        let given = |field: &str| Some(text(field)).filter(|it| !it.is_empty());
        let question = Asked {
            verb: text("verb"),
            group: text("group"),
            resource: text("resource"),
            subresource: text("subresource"),
            namespace: given("namespace"),
            name: given("name"),
            ..self.asked.clone()
        };
        let allowed = identity.may(&state.store, &question);
        object["status"] = json!({ "allowed": allowed });
        Ok(Answer::Object(201, object))
    }

    /// `TokenRequest`: bound to the ServiceAccount, and to a Secret where one is named.
    fn token(&self, state: &mut State) -> Result<Answer, Refusal> {
        let mut request: Value = serde_json::from_slice(self.body)
            .map_err(|error| Refusal::bad_request(error.to_string()))?;
        let namespace = self.asked.namespace.clone().unwrap_or_default();
        let name = self.asked.name.clone().unwrap_or_default();
        let reference = &request["spec"]["boundObjectRef"];
        let secret = reference["name"].as_str().map(|it| ("secrets", it));
        let mut bound = Vec::new();
        for (collection, name) in [Some(("serviceaccounts", name.as_str())), secret]
            .into_iter()
            .flatten()
        {
            let resource = resources::find("", "v1", collection).expect("a resource of the core");
            let key = Key {
                collection,
                namespace: namespace.clone(),
                name: name.to_owned(),
            };
            let found = state
                .store
                .get(&key)
                .ok_or_else(|| Refusal::not_found(resource, name))?;
            let uid = found.value["metadata"]["uid"].as_str().unwrap_or_default();
            bound.push((key, uid.to_owned()));
        }
        // It looks like a JSON Web Token, and is a name for a row of a table.
        let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let token = format!(
            "{}.{}.{}",
            part(json!({ "alg": "none" })),
            part(json!({ "sub": format!("system:serviceaccount:{namespace}:{name}") })),
            part(json!(write::uid()))
        );
        state
            .tokens
            .add_service_account(&token, &namespace, &name, bound);
        request["status"] = json!({ "token": token, "expirationTimestamp": write::now() });
        Ok(Answer::Object(201, request))
    }

    fn written(&self, written: write::Written, form: Form, resource: &Resource) -> Value {
        self.report_dropped(&written.dropped);
        form.of(resource, &written.object)
    }

    fn report_dropped(&self, dropped: &[String]) {
        for field in dropped {
            self.complain(&format!("unknown field {field:?}"));
        }
    }

    /// The first part of the user agent, as `managedFields` have it.
    fn manager(&self) -> &str {
        let given = self.asked.parameter("fieldManager");
        let agent = self.headers.manager.split('/').next().unwrap_or_default();
        match given.unwrap_or(agent) {
            "" => "unknown",
            manager => manager,
        }
    }

    /// The real server ignores parameters that it does not know.
    fn check_parameters(&self) {
        let asked = self.asked;
        let known: BTreeSet<&str> = match asked.verb.as_str() {
            "get" => [ANY, READ].concat(),
            "list" | "watch" => [ANY, COLLECTION].concat(),
            "delete" => [ANY, DELETE].concat(),
            "deletecollection" => [ANY, COLLECTION, DELETE].concat(),
            "patch" => [ANY, WRITE, &["force"]].concat(),
            _ => [ANY, WRITE].concat(),
        }
        .into_iter()
        .collect();
        for (name, _) in &asked.query {
            if !known.contains(name.as_str()) {
                self.complain(&format!("unknown parameter {name:?}"));
            }
        }
    }

    fn form(&self) -> Result<Form, Refusal> {
        const ACCEPTED: &str =
            "application/json, application/yaml, application/vnd.kubernetes.protobuf";
        let Some(accept) = &self.headers.accept else {
            return Ok(Form::Whole);
        };
        for choice in accept.split(',') {
            let mut parts = choice.split(';').map(str::trim);
            let kind = parts.next().unwrap_or_default();
            if !["application/json", "application/*", "*/*"].contains(&kind) {
                continue;
            }
            match parts.find_map(|part| part.strip_prefix("as=")) {
                None => return Ok(Form::Whole),
                Some("PartialObjectMetadata" | "PartialObjectMetadataList") => {
                    return Ok(Form::Metadata);
                }
                Some(_) => {}
            }
        }
        Err(Refusal::not_acceptable(ACCEPTED))
    }

    /// Holds the body's type and size.
    fn typed(&self, wanted: &str) -> Result<(), Refusal> {
        let given = self.headers.content_type.as_deref().unwrap_or(wanted);
        let given = given.split(';').next().unwrap_or_default().trim();
        if given != wanted {
            return Err(Refusal::unsupported_media_type(
                "application/json, application/yaml, application/vnd.kubernetes.protobuf",
            ));
        }
        if self.body.len() > MOST_BYTES {
            let message = format!("Request entity too large: limit is {MOST_BYTES}");
            return Err(Refusal::new(413, "RequestEntityTooLarge", message));
        }
        Ok(())
    }

    fn patchable(&self) -> Result<(), Refusal> {
        const PATCHES: [&str; 4] = [
            "application/json-patch+json",
            "application/merge-patch+json",
            "application/strategic-merge-patch+json",
            "application/apply-patch+yaml",
        ];
        let given = self.headers.content_type.as_deref().unwrap_or_default();
        let given = given.split(';').next().unwrap_or_default().trim();
        if given != PATCHES[1] && PATCHES.contains(&given) {
            self.complain("only merge patches are imitated here");
        }
        if given != PATCHES[1] {
            return Err(Refusal::unsupported_patch());
        }
        Ok(())
    }

    fn complain(&self, what: &str) {
        complain(self.shared, self.asked, what);
    }
}

/// Notes what a client should not have asked; the kit's own requests may try everything.
fn complain(shared: &Shared, asked: &Asked, what: &str) {
    if asked.user != "admin" {
        let query: Vec<String> = asked
            .query
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        shared.complaints.lock().unwrap().push(format!(
            "{} {}?{}: {what}",
            asked.verb,
            asked.path,
            query.join("&")
        ));
    }
}

fn forbidden(asked: &Asked) -> Refusal {
    let who = format!("User {:?} cannot {}", asked.user, asked.verb);
    if asked.resource.is_empty() {
        return Refusal::forbidden_path(&format!("{who} path {:?}", asked.path));
    }
    let whole = match asked.subresource.as_str() {
        "" => asked.resource.clone(),
        subresource => format!("{}/{subresource}", asked.resource),
    };
    let place = match &asked.namespace {
        Some(namespace) => format!("in the namespace {namespace:?}"),
        None => "at the cluster scope".to_owned(),
    };
    let why = format!(
        "{who} resource {whole:?} in API group {:?} {place}",
        asked.group
    );
    let resource = (asked.group.as_str(), asked.resource.as_str());
    Refusal::forbidden(resource, asked.name.as_deref(), &why)
}

fn note(shared: &Shared, asked: &Asked, code: u16) {
    // A request is answered once.
    let _ = asked.answer.set(code);
    shared.answered.push(asked.clone());
}

fn refused(shared: &Shared, asked: &Asked, refusal: &Refusal) -> Response<Body> {
    if [400, 405, 406, 413, 415, 422].contains(&refusal.code) {
        complain(shared, asked, &refusal.message);
    }
    note(shared, asked, refusal.code);
    said(refusal)
}

fn said(refusal: &Refusal) -> Response<Body> {
    let (kind, body) = refusal.body();
    let mut response = response(refusal.code, kind, body);
    if let Some(seconds) = refusal.retry_after {
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, seconds.into());
    }
    response
}

/// The wrong answer that a test has ordered.
fn wrong(
    shared: &Shared,
    asked: &Asked,
    fault: Fault,
    connection: u64,
) -> io::Result<Response<Body>> {
    if let Some(refusal) = fault.refusal() {
        note(shared, asked, refusal.code);
        return Ok(said(&refusal));
    }
    if fault == Fault::Reset {
        note(shared, asked, 0);
        shared.state().abort(connection);
        return Err(io::ErrorKind::ConnectionReset.into());
    }
    note(shared, asked, 200);
    let text = b"<html><body>It works!</body></html>\n".to_vec();
    Ok(response(200, "application/json", text))
}

fn response(code: u16, kind: &'static str, body: Vec<u8>) -> Response<Body> {
    let body = Full::new(Bytes::from(body)).map_err(|never: Infallible| match never {});
    let mut response = Response::new(body.boxed_unsync());
    *response.status_mut() = code.try_into().expect("the codes here are HTTP's");
    let kind = header::HeaderValue::from_static(kind);
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// A watch on its way.
struct Streaming {
    guard: OpenWatch,
    frames: mpsc::UnboundedReceiver<Frame>,
    deadline: Instant,
    resource: &'static Resource,
    form: Form,
    over: bool,
}

/// Takes the watch off the lists when the client or the server has ended it.
struct OpenWatch {
    shared: Arc<Shared>,
    id: u64,
}

impl Drop for OpenWatch {
    fn drop(&mut self) {
        self.shared.state().close_watch(self.id);
        self.shared.watches_changed();
    }
}

impl Streaming {
    fn response(self, shared: &Shared) -> Response<Body> {
        shared.watches_changed();
        let lines = stream::unfold(self, |mut watch| async move {
            let line = watch.line().await?;
            Some((line.map(|it| BodyFrame::data(Bytes::from(it))), watch))
        });
        let mut response = Response::new(StreamBody::new(lines.boxed()).boxed_unsync());
        let kind = header::HeaderValue::from_static("application/json");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        response
    }

    /// The next line; `None` at the end.
    async fn line(&mut self) -> Option<io::Result<Vec<u8>>> {
        if self.over {
            return None;
        }
        let frame = tokio::select! {
            biased;
            frame = self.frames.recv() => frame.unwrap_or(Frame::End),
            () = tokio::time::sleep_until(self.deadline) => {
                self.over = true;
                let last = self.guard.shared.state().store.last_bookmark(self.guard.id);
                last.map_or(Frame::End, Frame::Bookmark)
            }
        };
        self.guard.shared.speaking().await;
        let event = |kind: &str, object: Value| {
            let mut line = json!({ "type": kind, "object": object }).to_string();
            line.push('\n');
            Some(Ok(line.into_bytes()))
        };
        match frame {
            Frame::Event(kind, stored) => event(kind, self.form.of(self.resource, &stored.value)),
            Frame::Bookmark(version) => event("BOOKMARK", self.bookmark(version, json!({}))),
            Frame::InitialEnd(version) => {
                let end = json!({ "k8s.io/initial-events-end": "true" });
                event("BOOKMARK", self.bookmark(version, end))
            }
            Frame::Failure(refusal) => event("ERROR", refusal.status()),
            Frame::Raw(bytes) => Some(Ok(bytes)),
            Frame::End => None,
            Frame::Cut => {
                self.over = true;
                Some(Err(io::ErrorKind::ConnectionAborted.into()))
            }
        }
    }

    fn bookmark(&self, version: u64, annotations: Value) -> Value {
        let mut meta = json!({ "resourceVersion": version.to_string() });
        if annotations.as_object().is_some_and(|it| !it.is_empty()) {
            meta["annotations"] = annotations;
        }
        json!({
            "kind": self.form.kind(self.resource),
            "apiVersion": self.form.api_version(self.resource),
            "metadata": meta,
        })
    }
}
