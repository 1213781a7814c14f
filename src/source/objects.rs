//! Kubernetes objects as sources: read out of the store of what is known of the cluster, as if
//! they were files in memory.

use std::collections::BTreeSet;

use crate::cluster::{DataKey, Entry, ObjectData, Store};
use crate::config::kubernetes::{CaKey, CaObject, ObjectRef};
use crate::config::{CaSource, IdentitySource};
use crate::failure::{Explained, Reason};
use crate::material::{IdentityMaterial, Part};

use super::SourceKey;

/// The entries of a Secret of type `kubernetes.io/tls`, whatever type it has.
const CERT: &str = "tls.crt";
const KEY: &str = "tls.key";
const CA: &str = "ca.crt";
/// What Kong's CA Secrets and ConfigMaps call it.
const KONG_CA: &str = "cert";

/// The objects that a source is read from.
pub(crate) fn objects(source: &SourceKey) -> BTreeSet<DataKey> {
    match source {
        SourceKey::Identity(IdentitySource::Secret(object)) => {
            BTreeSet::from([DataKey::Secret(object.clone())])
        }
        SourceKey::Trust(trust) => match &trust.ca {
            CaSource::Objects(objects) => objects.iter().map(data_key).collect(),
            CaSource::Path(_) | CaSource::System | CaSource::Credential(_) => BTreeSet::new(),
        },
        SourceKey::Config(_)
        | SourceKey::Identity(
            IdentitySource::Pair { .. } | IdentitySource::Bundle(_) | IdentitySource::Credential(_),
        ) => BTreeSet::new(),
    }
}

fn data_key(ca: &CaObject) -> DataKey {
    match ca {
        CaObject::Secret { object, .. } => DataKey::Secret(object.clone()),
        CaObject::ConfigMap { object, .. } => DataKey::ConfigMap(object.clone()),
        CaObject::TrustBundle { name } => DataKey::TrustBundle(name.clone()),
    }
}

/// Certificate and key of a Secret.
pub(super) fn identity(object: &ObjectRef, store: &Store) -> Result<IdentityMaterial, Explained> {
    let key = DataKey::Secret(object.clone());
    let data = existing(&key, store, Reason::IdentityMissing)?;
    let part = |name: &str| {
        let bytes = data.entries.get(name).filter(|bytes| !bytes.is_empty());
        bytes.map(|bytes| Part::new(place(&key, name), bytes.to_vec()))
    };
    match (part(CERT), part(KEY)) {
        (Some(cert), Some(key)) => Ok(IdentityMaterial::Pair { cert, key }),
        (cert, private) => {
            let lacks = match (cert.is_some(), private.is_some()) {
                (false, false) => format!("neither {CERT} nor {KEY}"),
                (false, true) => format!("no {CERT}"),
                (true, _) => format!("no {KEY}"),
            };
            Err(Explained::new(
                Reason::BadSecret,
                format!("{key} has {lacks}; it has {}", contents(&data)),
            ))
        }
    }
}

/// The CA certificates of one object.
pub(super) fn ca(ca: &CaObject, store: &Store) -> Result<Part, Explained> {
    let key = data_key(ca);
    let data = existing(&key, store, Reason::TrustMissing)?;
    let names: &[&str] = match ca {
        CaObject::Secret { key, .. } | CaObject::ConfigMap { key, .. } => match key {
            CaKey::Named(name) => &[name.as_str()],
            CaKey::CertOrCaCrt => &[KONG_CA, CA],
        },
        CaObject::TrustBundle { .. } => &[CA],
    };
    let found = names.iter().find_map(|name| {
        let bytes = data.entries.get(*name).filter(|bytes| !bytes.is_empty())?;
        Some(Part::new(place(&key, name), bytes.to_vec()))
    });
    found.ok_or_else(|| {
        let detail = format!(
            "{key} has no {}; it has {}",
            names.join(" and no "),
            contents(&data)
        );
        Explained::new(Reason::BadSecret, detail)
    })
}

fn place(key: &DataKey, entry: &str) -> String {
    format!("{key}, {entry}")
}

/// The names of what is in it, which are no secret.
fn contents(data: &ObjectData) -> String {
    let names: Vec<&str> = data.entries.keys().map(String::as_str).collect();
    let kind = match data.kind.as_str() {
        "" => String::new(),
        kind => format!(" (type {kind})"),
    };
    match names.as_slice() {
        [] => format!("no data{kind}"),
        names => format!("{}{kind}", names.join(", ")),
    }
}

fn existing(
    key: &DataKey,
    store: &Store,
    missing: Reason,
) -> Result<std::sync::Arc<ObjectData>, Explained> {
    match store.data(key) {
        Entry {
            value: Some(Some(data)),
            ..
        } => Ok(data),
        Entry {
            value: Some(None), ..
        } => Err(Explained::new(missing, format!("{key} does not exist"))),
        Entry {
            value: None,
            trouble: Some(why),
        } => Err(why),
        Entry {
            value: None,
            trouble: None,
        } => Err(Explained::new(
            Reason::ApiUnavailable,
            format!("the API server has not yet said what {key} holds"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use zeroize::Zeroizing;

    use super::*;
    use crate::cluster::{Subject, Wanted};

    fn secret() -> ObjectRef {
        ObjectRef::new("payments", "billing")
    }

    fn store() -> Arc<Store> {
        let store = Store::new(None);
        store.follow(Wanted {
            data: [
                DataKey::Secret(secret()),
                DataKey::ConfigMap(ObjectRef::new("payments", "ca")),
            ]
            .into(),
            ..Wanted::default()
        });
        store
    }

    fn holding(entries: &[(&str, &str)]) -> ObjectData {
        let entry = |(name, text): &(&str, &str)| {
            let bytes = Zeroizing::new(text.as_bytes().to_vec());
            ((*name).to_owned(), bytes)
        };
        ObjectData {
            uid: "1".into(),
            kind: "Opaque".into(),
            entries: entries.iter().map(entry).collect::<BTreeMap<_, _>>(),
        }
    }

    fn words<T>(result: Result<T, Explained>) -> (Reason, String) {
        let why = result.err().expect("refused");
        (why.reason, why.detail)
    }

    #[test]
    fn before_an_answer_the_secret_is_not_missing_but_unknown() {
        let store = store();
        let (reason, _) = words(identity(&secret(), &store));
        assert_eq!(reason, Reason::ApiUnavailable);
        let why = Explained::new(Reason::Forbidden, "may not");
        store.put_trouble(Subject::Data(DataKey::Secret(secret())), why.clone());
        assert_eq!(identity(&secret(), &store), Err(why));
        store.put_data(DataKey::Secret(secret()), None);
        let (reason, detail) = words(identity(&secret(), &store));
        assert_eq!(reason, Reason::IdentityMissing);
        assert_eq!(detail, "Secret payments/billing does not exist");
    }

    #[test]
    fn a_secret_without_the_entries_is_told_by_what_it_has() {
        let store = store();
        let put = |entries| store.put_data(DataKey::Secret(secret()), Some(holding(entries)));
        put(&[("tls.crt", "cert"), ("tls.key", "")]);
        assert_eq!(
            words(identity(&secret(), &store)),
            (
                Reason::BadSecret,
                "Secret payments/billing has no tls.key; it has tls.crt, tls.key (type Opaque)"
                    .to_owned()
            )
        );
        put(&[]);
        let (_, detail) = words(identity(&secret(), &store));
        assert!(
            detail.contains("neither tls.crt nor tls.key; it has no data"),
            "{detail}"
        );
        put(&[("tls.crt", "cert"), ("tls.key", "key")]);
        let Ok(IdentityMaterial::Pair { cert, key }) = identity(&secret(), &store) else {
            panic!("it has both");
        };
        assert_eq!((&**cert.bytes, &**key.bytes), (&b"cert"[..], &b"key"[..]));
        assert_eq!(cert.place, "Secret payments/billing, tls.crt");
        // Trouble with newer states does not take the last one away.
        let why = Explained::new(Reason::Forbidden, "no longer");
        store.put_trouble(Subject::Data(DataKey::Secret(secret())), why);
        assert!(identity(&secret(), &store).is_ok());
    }

    #[test]
    fn kongs_ca_objects_may_call_it_cert_or_ca_crt() {
        let store = store();
        let object = ObjectRef::new("payments", "ca");
        let ca_of = |key| {
            let object = object.clone();
            ca(&CaObject::ConfigMap { object, key }, &store).map(|part| part.bytes.to_vec())
        };
        let put = |entries| {
            let key = DataKey::ConfigMap(object.clone());
            store.put_data(key, Some(holding(entries)));
        };
        put(&[("ca.crt", "ca")]);
        assert_eq!(ca_of(CaKey::CertOrCaCrt), Ok(b"ca".to_vec()));
        put(&[("ca.crt", "ca"), ("cert", "kong")]);
        assert_eq!(ca_of(CaKey::CertOrCaCrt), Ok(b"kong".to_vec()));
        assert_eq!(ca_of(CaKey::Named("ca.crt".into())), Ok(b"ca".to_vec()));
        let (reason, detail) = words(ca_of(CaKey::Named("root.pem".into())));
        assert_eq!(reason, Reason::BadSecret);
        assert!(
            detail.contains("has no root.pem; it has ca.crt, cert"),
            "{detail}"
        );
    }
}
