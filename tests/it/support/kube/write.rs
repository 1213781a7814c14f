//! POST, PUT, PATCH and DELETE.

use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::resources::Resource;
use super::status::{Mistake, Refusal};
use super::store::{Key, Store};
use super::validation;

/// What a request to write comes with.
pub(super) struct Write<'a> {
    pub(super) resource: &'static Resource,
    /// Of the path.
    pub(super) namespace: &'a str,
    pub(super) body: &'a [u8],
    /// `dryRun=All`.
    pub(super) dry_run: bool,
    /// `manager` of the managed fields.
    pub(super) manager: &'a str,
}

/// What became of it, as the store keeps it, and the fields that the schema does not know.
pub(super) struct Written {
    pub(super) object: Value,
    pub(super) dropped: Vec<String>,
}

impl Write<'_> {
    /// # Errors
    /// As the real server: 400, 404 for the namespace, 409, 422.
    pub(super) fn create(&self, store: &mut Store) -> Result<Written, Refusal> {
        let (object, dropped) = self.decode(self.json()?)?;
        let object = self.create_decoded(store, object)?;
        Ok(Written { object, dropped })
    }

    fn create_decoded(&self, store: &mut Store, object: Value) -> Result<Value, Refusal> {
        let mut object = self.resource.keep(object);
        self.in_namespace(&mut object)?;
        let meta = &mut object["metadata"];
        if let (None, Some(start)) = (meta["name"].as_str(), meta["generateName"].as_str()) {
            let end = format!("{:05x}", random() & 0xf_ffff);
            meta["name"] = json!(format!("{start}{end}"));
        }
        let name = meta["name"].as_str().unwrap_or_default().to_owned();
        if meta["resourceVersion"]
            .as_str()
            .is_some_and(|it| !it.is_empty())
        {
            return Err(Refusal::new(
                500,
                "",
                "resourceVersion should not be set on objects to be created",
            ));
        }
        self.namespace_is_there(store)?;
        validation::default(self.resource, &mut object, store.version());
        self.validate(&object, None)?;
        let key = self.key(&name);
        if store.get(&key).is_some() {
            return Err(Refusal::already_exists(self.resource, &name));
        }
        let meta = &mut object["metadata"];
        meta["uid"] = json!(uid());
        meta["creationTimestamp"] = json!(now());
        if self.resource.kind == "EndpointSlice" {
            meta["generation"] = json!(1);
        }
        self.manage(&mut object);
        Ok(match self.dry_run {
            true => object,
            false => store.put(key, object).value.clone(),
        })
    }

    /// # Errors
    /// As the real server: 400, 404, 409, 422.
    pub(super) fn update(&self, store: &mut Store, name: &str) -> Result<Written, Refusal> {
        let (mut object, dropped) = self.decode(self.json()?)?;
        let given = object["metadata"]["name"].as_str().unwrap_or(name);
        if given != name {
            return Err(Refusal::bad_request(format!(
                "the name of the object ({given}) does not match the name on the URL ({name})"
            )));
        }
        object["metadata"]["name"] = json!(name);
        if store.get(&self.key(name)).is_none() {
            if !self.resource.created_by_put {
                return Err(Refusal::not_found(self.resource, name));
            }
            let object = self.create_decoded(store, object)?;
            return Ok(Written { object, dropped });
        }
        let object = self.replace(store, name, object)?;
        Ok(Written { object, dropped })
    }

    /// A JSON merge patch (RFC 7386).
    ///
    /// # Errors
    /// As the real server: 400, 404, 409, 422.
    pub(super) fn patch(&self, store: &mut Store, name: &str) -> Result<Written, Refusal> {
        let patch: Value = serde_json::from_slice(self.body)
            .map_err(|error| Refusal::bad_request(format!("error decoding patch: {error}")))?;
        let key = self.key(name);
        let stored = store
            .get(&key)
            .ok_or_else(|| Refusal::not_found(self.resource, name))?;
        let mut object = self.resource.show(&stored.value);
        // What a patch does not say of the version is no condition.
        let version = patch["metadata"]["resourceVersion"].clone();
        merge(&mut object, &patch);
        object["metadata"]["resourceVersion"] = version;
        let whole = json!(object.to_string());
        let (object, dropped) = self.decode(object).map_err(|refusal| {
            let mistake = Mistake::invalid("patch", &whole, &refusal.message);
            Refusal::invalid(("", ""), "", &[mistake])
        })?;
        let object = self.replace(store, name, object)?;
        Ok(Written { object, dropped })
    }

    fn replace(&self, store: &mut Store, name: &str, object: Value) -> Result<Value, Refusal> {
        let key = self.key(name);
        let old = store
            .get(&key)
            .ok_or_else(|| Refusal::not_found(self.resource, name))?
            .value
            .clone();
        let mut new = self.resource.keep(object);
        self.in_namespace(&mut new)?;
        let meta = &mut new["metadata"];
        let old_meta = &old["metadata"];
        let version = meta["resourceVersion"].as_str().unwrap_or_default();
        if !version.is_empty() && old_meta["resourceVersion"] != version {
            return Err(Refusal::modified_meanwhile(self.resource, name));
        }
        if meta["uid"].is_string() && meta["uid"] != old_meta["uid"] {
            let why = format!(
                "Precondition failed: UID in precondition: {}, UID in object meta: {}",
                meta["uid"].as_str().unwrap_or_default(),
                old_meta["uid"].as_str().unwrap_or_default()
            );
            return Err(Refusal::conflict(self.resource, name, &why));
        }
        for field in [
            "uid",
            "creationTimestamp",
            "generation",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "resourceVersion",
            "managedFields",
        ] {
            meta[field] = old_meta[field].clone();
        }
        validation::inherit(self.resource, &mut new, &old);
        validation::default(self.resource, &mut new, store.version());
        without_null_meta(&mut new);
        self.validate(&new, Some(&old))?;
        if new == old {
            // Nothing is written, and no watch hears of it.
            return Ok(old);
        }
        if self.resource.kind == "EndpointSlice" && differs_beyond_meta(&new, &old) {
            let generation = old_meta["generation"].as_u64().unwrap_or_default();
            new["metadata"]["generation"] = json!(generation + 1);
        }
        self.manage(&mut new);
        if self.dry_run {
            return Ok(new);
        }
        let finalizers = new["metadata"]["finalizers"].as_array();
        let let_go = finalizers.is_none_or(Vec::is_empty);
        if let_go && new["metadata"]["deletionTimestamp"].is_string() {
            store.put(key.clone(), new);
            let last = store.remove(&key).expect("it has just been put there");
            return Ok(last.value.clone());
        }
        Ok(store.put(key, new).value.clone())
    }

    /// Answers with the object where it stays for its finalizers or is a Service, with a `Status`
    /// otherwise.
    ///
    /// # Errors
    /// 404, and 409 for preconditions.
    pub(super) fn delete(&self, store: &mut Store, name: &str) -> Result<Value, Refusal> {
        let options = match self.body {
            [] => json!({}),
            _ => self.json()?,
        };
        let key = self.key(name);
        let old = store
            .get(&key)
            .ok_or_else(|| Refusal::not_found(self.resource, name))?
            .value
            .clone();
        for (field, label) in [("uid", "UID"), ("resourceVersion", "ResourceVersion")] {
            let wanted = &options["preconditions"][field];
            if wanted.is_string() && *wanted != old["metadata"][field] {
                let text = |it: &Value| it.as_str().unwrap_or_default().to_owned();
                let why = format!(
                    "Precondition failed: {label} in precondition: {}, {label} in object meta: {}",
                    text(wanted),
                    text(&old["metadata"][field])
                );
                return Err(Refusal::conflict(self.resource, name, &why));
            }
        }
        let finalizers = old["metadata"]["finalizers"].as_array();
        if finalizers.is_some_and(|it| !it.is_empty()) {
            let mut dying = old;
            if dying["metadata"]["deletionTimestamp"].is_null() && !self.dry_run {
                dying["metadata"]["deletionTimestamp"] = json!(now());
                dying["metadata"]["deletionGracePeriodSeconds"] = json!(0);
                dying = store.put(key, dying).value.clone();
            }
            return Ok(self.resource.show(&dying));
        }
        let last = match self.dry_run {
            true => old,
            false => store.remove(&key).map_or(old, |it| it.value.clone()),
        };
        if self.resource.kind == "Service" {
            return Ok(self.resource.show(&last));
        }
        let mut details = json!({
            "name": name,
            "group": self.resource.group,
            "kind": self.resource.plural,
            "uid": last["metadata"]["uid"],
        });
        if let (true, Some(map)) = (self.resource.group.is_empty(), details.as_object_mut()) {
            map.remove("group");
        }
        Ok(json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Success",
            "details": details,
        }))
    }

    pub(super) fn key(&self, name: &str) -> Key {
        Key {
            collection: self.resource.collection(),
            namespace: self.namespace.to_owned(),
            name: name.to_owned(),
        }
    }

    fn json(&self) -> Result<Value, Refusal> {
        serde_json::from_slice(self.body).map_err(|error| {
            Refusal::bad_request(format!(
                "the object provided is unrecognized (must be of type {}): couldn't get \
                 version/kind; json parse error: {error}",
                self.resource.kind
            ))
        })
    }

    fn decode(&self, object: Value) -> Result<(Value, Vec<String>), Refusal> {
        self.resource.decode(object)
    }

    /// `EnsureObjectNamespaceMatchesRequestNamespace`.
    fn in_namespace(&self, object: &mut Value) -> Result<(), Refusal> {
        let meta = &mut object["metadata"];
        match meta["namespace"].as_str().unwrap_or_default() {
            given if given == self.namespace => {}
            "" => meta["namespace"] = json!(self.namespace),
            _ => {
                return Err(Refusal::bad_request(
                    "the namespace of the provided object does not match the namespace sent on \
                     the request",
                ));
            }
        }
        Ok(())
    }

    /// The admission plugin `NamespaceLifecycle`.
    fn namespace_is_there(&self, store: &Store) -> Result<(), Refusal> {
        if self.namespace.is_empty() {
            return Ok(());
        }
        let namespaces = super::resources::find("", "v1", "namespaces")
            .expect("namespaces are among the resources");
        let key = Key {
            collection: namespaces.collection(),
            namespace: String::new(),
            name: self.namespace.to_owned(),
        };
        match store.get(&key) {
            Some(_) => Ok(()),
            None => Err(Refusal::not_found(namespaces, self.namespace)),
        }
    }

    fn validate(&self, new: &Value, old: Option<&Value>) -> Result<(), Refusal> {
        let mistakes = validation::mistakes(self.resource, new, old);
        if mistakes.is_empty() {
            return Ok(());
        }
        let name = new["metadata"]["name"].as_str().unwrap_or_default();
        let kind = (self.resource.group_of_kind(), self.resource.kind);
        Err(Refusal::invalid(kind, name, &mistakes))
    }

    /// The bookkeeping of server-side apply, which makes up much of a real object's size.
    fn manage(&self, object: &mut Value) {
        let mut fields = json!({});
        for (key, value) in object.as_object().into_iter().flatten() {
            if !["apiVersion", "kind", "metadata", "status"].contains(&key.as_str()) {
                fields[format!("f:{key}")] = managed(value);
            }
        }
        for key in ["annotations", "labels"] {
            let value = &object["metadata"][key];
            if value.is_object() {
                fields["f:metadata"][format!("f:{key}")] = managed(value);
            }
        }
        if fields.as_object().is_none_or(Map::is_empty) {
            return;
        }
        object["metadata"]["managedFields"] = json!([{
            "manager": self.manager,
            "operation": "Update",
            "apiVersion": self.resource.api_version(),
            "time": now(),
            "fieldsType": "FieldsV1",
            "fieldsV1": fields,
        }]);
    }
}

fn managed(value: &Value) -> Value {
    let Some(map) = value.as_object() else {
        return json!({});
    };
    let mut out = Map::from_iter([(".".to_owned(), json!({}))]);
    for (key, value) in map {
        out.insert(format!("f:{key}"), managed(value));
    }
    Value::Object(out)
}

fn differs_beyond_meta(new: &Value, old: &Value) -> bool {
    ["endpoints", "ports", "addressType"]
        .iter()
        .any(|field| new[*field] != old[*field])
        || new["metadata"]["labels"] != old["metadata"]["labels"]
}

fn without_null_meta(object: &mut Value) {
    if let Some(meta) = object["metadata"].as_object_mut() {
        meta.retain(|_, value| !value.is_null());
    }
}

/// RFC 7386, section 2.
fn merge(target: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            target.as_object_mut().expect("made one above").remove(key);
        } else {
            merge(&mut target[key], value);
        }
    }
}

pub(super) fn now() -> String {
    let now = OffsetDateTime::now_utc().replace_nanosecond(0);
    now.expect("0 is a nanosecond")
        .format(&Rfc3339)
        .expect("a date of our days can be written")
}

/// A UUID of version 4.
pub(super) fn uid() -> String {
    let (a, b) = (random(), random());
    format!(
        "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
        a >> 32,
        a >> 16 & 0xffff,
        a & 0xfff,
        b >> 48 & 0x3fff | 0x8000,
        b & 0xffff_ffff_ffff,
    )
}

pub(super) fn random() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id())
}
