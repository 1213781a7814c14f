//! What a refusal looks like: `metav1.Status`, with the reasons and messages of
//! `k8s.io/apimachinery/pkg/api/errors`.

use serde_json::{Value, json};

use super::resources::Resource;

/// Whatever is not the thing that was asked for.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    pub(super) code: u16,
    reason: &'static str,
    pub(super) message: String,
    details: Option<Value>,
    /// Seconds, as the header says them.
    pub(super) retry_after: Option<u32>,
    /// The continue token of an expired list, with which a client may go on inconsistently.
    go_on: Option<String>,
    /// A bare text instead of a `Status`, as the mux answers for a path that nobody serves.
    plain: bool,
}

impl Refusal {
    pub(super) fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            reason,
            message: message.into(),
            details: None,
            retry_after: None,
            go_on: None,
            plain: false,
        }
    }

    pub(super) fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    pub(super) fn forbidden(resource: (&str, &str), name: Option<&str>, why: &str) -> Self {
        let (group, plural) = resource;
        let whole = qualified(group, plural);
        let message = match name {
            Some(name) => format!("{whole} {name:?} is forbidden: {why}"),
            None => format!("{whole} is forbidden: {why}"),
        };
        Self::new(403, "Forbidden", message).about(group, plural, name)
    }

    pub(super) fn forbidden_path(why: &str) -> Self {
        Self::new(403, "Forbidden", format!("forbidden: {why}")).with_details(json!({}))
    }

    /// Within the API, the path is nobody's: a resource that is not served, too.
    pub(super) fn no_such_resource() -> Self {
        let message = "the server could not find the requested resource";
        Self::new(404, "NotFound", message).with_details(json!({}))
    }

    /// The path is nobody's: that of an API group that nobody has heard of, too.
    pub(super) fn no_such_path() -> Self {
        Self {
            plain: true,
            ..Self::new(404, "NotFound", "404 page not found\n")
        }
    }

    pub(super) fn not_found(resource: &Resource, name: &str) -> Self {
        let message = format!("{} {name:?} not found", resource.qualified());
        Self::new(404, "NotFound", message).about(resource.group, resource.plural, Some(name))
    }

    pub(super) fn already_exists(resource: &Resource, name: &str) -> Self {
        let message = format!("{} {name:?} already exists", resource.qualified());
        Self::new(409, "AlreadyExists", message).about(resource.group, resource.plural, Some(name))
    }

    pub(super) fn conflict(resource: &Resource, name: &str, why: &str) -> Self {
        let message = format!(
            "Operation cannot be fulfilled on {} {name:?}: {why}",
            resource.qualified()
        );
        Self::new(409, "Conflict", message).about(resource.group, resource.plural, Some(name))
    }

    /// As [`Self::conflict`], for one who has changed an older state.
    pub(super) fn modified_meanwhile(resource: &Resource, name: &str) -> Self {
        let why = "the object has been modified; please apply your changes to the latest version \
                   and try again";
        Self::conflict(resource, name, why)
    }

    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    pub(super) fn not_acceptable(accepted: &str) -> Self {
        let message = format!("only the following media types are accepted: {accepted}");
        Self::new(406, "NotAcceptable", message)
    }

    /// As the router says it, before the request is anybody's.
    pub(super) fn unsupported_patch() -> Self {
        let message = "415: Unsupported Media Type";
        Self::new(415, "UnsupportedMediaType", message).with_details(json!({}))
    }

    pub(super) fn unsupported_media_type(accepted: &str) -> Self {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: \
             {accepted}"
        );
        Self::new(415, "UnsupportedMediaType", message)
    }

    pub(super) fn method_not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource";
        Self::new(405, "MethodNotAllowed", message).with_details(json!({}))
    }

    pub(super) fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// An expired list that could be gone on with at the newest state.
    pub(super) fn expired_list(go_on: String) -> Self {
        let message = "The provided continue parameter is too old to display a consistent list \
             result. You can start a new list without the continue parameter, or use the continue \
             token in this response to retrieve the remainder of the results. Continuing with the \
             provided token results in an inconsistent list - objects that were created, modified, \
             or deleted between the time the first chunk was returned and now may show up in the \
             list.";
        Self {
            go_on: Some(go_on),
            ..Self::expired(message)
        }
    }

    /// 422 with every mistake.
    pub(super) fn invalid(kind: (&str, &str), name: &str, mistakes: &[Mistake]) -> Self {
        let (group, kind) = kind;
        let whole = qualified(group, kind);
        let texts: Vec<String> = mistakes
            .iter()
            .map(|mistake| format!("{}: {}", mistake.field, mistake.body))
            .collect();
        let all = match texts.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let causes: Vec<Value> = mistakes
            .iter()
            .map(|it| json!({ "reason": it.reason, "message": it.body, "field": it.field }))
            .collect();
        let mut details = json!({ "group": group, "kind": kind, "name": name, "causes": causes });
        without_empty(&mut details);
        Self::new(
            422,
            "Invalid",
            format!("{whole} {name:?} is invalid: {all}"),
        )
        .with_details(details)
    }

    pub(super) fn too_large_version(asked: u64, current: u64) -> Self {
        let message = format!("Timeout: Too large resource version: {asked}, current: {current}");
        Self {
            retry_after: Some(1),
            ..Self::new(504, "Timeout", message).with_details(json!({
                "causes": [{
                    "reason": "ResourceVersionTooLarge",
                    "message": "Too large resource version",
                }],
                "retryAfterSeconds": 1,
            }))
        }
    }

    pub(super) fn too_many_requests(seconds: u32) -> Self {
        let message = "Too many requests, please try again later.";
        Self {
            retry_after: Some(seconds),
            ..Self::new(429, "TooManyRequests", message)
                .with_details(json!({ "retryAfterSeconds": seconds }))
        }
    }

    pub(super) fn internal(why: &str) -> Self {
        Self::new(
            500,
            "InternalError",
            format!("Internal error occurred: {why}"),
        )
        .with_details(json!({ "causes": [{ "message": why }] }))
    }

    pub(super) fn unavailable() -> Self {
        let message = "the server is currently unable to handle the request";
        Self::new(503, "ServiceUnavailable", message)
    }

    fn about(self, group: &str, plural: &str, name: Option<&str>) -> Self {
        let mut details = json!({ "name": name, "group": group, "kind": plural });
        without_empty(&mut details);
        self.with_details(details)
    }

    fn with_details(mut self, details: Value) -> Self {
        self.details = Some(details);
        self
    }

    /// The `Status` object.
    pub(super) fn status(&self) -> Value {
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "code": self.code,
        });
        if !self.reason.is_empty() {
            status["reason"] = json!(self.reason);
        }
        if let Some(details) = &self.details {
            status["details"] = details.clone();
        }
        if let Some(token) = &self.go_on {
            status["metadata"]["continue"] = json!(token);
        }
        status
    }

    /// Content type and body of the answer.
    pub(super) fn body(&self) -> (&'static str, Vec<u8>) {
        if self.plain {
            let text = self.message.clone().into_bytes();
            return ("text/plain; charset=utf-8", text);
        }
        let mut body = self.status().to_string().into_bytes();
        body.push(b'\n');
        ("application/json", body)
    }
}

/// One thing wrong with an object: `field.Error`.
#[derive(Clone, Debug)]
pub(super) struct Mistake {
    pub(super) field: String,
    reason: &'static str,
    body: String,
}

impl Mistake {
    pub(super) fn required(field: &str, why: &str) -> Self {
        Self::of(field, "FieldValueRequired", "Required value", why)
    }

    pub(super) fn invalid(field: &str, value: &Value, why: &str) -> Self {
        let start = format!("Invalid value: {value}");
        Self::of(field, "FieldValueInvalid", &start, why)
    }

    pub(super) fn forbidden(field: &str, why: &str) -> Self {
        Self::of(field, "FieldValueForbidden", "Forbidden", why)
    }

    pub(super) fn duplicate(field: &str, value: &Value) -> Self {
        let start = format!("Duplicate value: {value}");
        Self::of(field, "FieldValueDuplicate", &start, "")
    }

    pub(super) fn too_long(field: &str, most: usize) -> Self {
        let why = format!("may not be more than {most} bytes");
        Self::of(field, "FieldValueTooLong", "Too long", &why)
    }

    pub(super) fn not_supported(field: &str, value: &Value, supported: &[&str]) -> Self {
        let start = format!("Unsupported value: {value}");
        let quoted: Vec<String> = supported.iter().map(|it| format!("{it:?}")).collect();
        let why = format!("supported values: {}", quoted.join(", "));
        Self::of(field, "FieldValueNotSupported", &start, &why)
    }

    fn of(field: &str, reason: &'static str, start: &str, why: &str) -> Self {
        let body = match why {
            "" => start.to_owned(),
            why => format!("{start}: {why}"),
        };
        Self {
            field: field.to_owned(),
            reason,
            body,
        }
    }
}

/// `roles.rbac.authorization.k8s.io`; the core group adds nothing.
pub(super) fn qualified(group: &str, name: &str) -> String {
    match group {
        "" => name.to_owned(),
        group => format!("{name}.{group}"),
    }
}

/// Go leaves out what is empty.
fn without_empty(object: &mut Value) {
    if let Some(map) = object.as_object_mut() {
        map.retain(|_, value| !value.is_null() && value != "");
    }
}
