//! Names of services.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use super::kubernetes::{ObjectRef, names};

/// The name of one service: the part after `services.` in the configuration, or of a discovered
/// Kubernetes Service `NAME.NAMESPACE`.
///
/// At most 63 characters (a discovered one 127) of `a-z A-Z 0-9 - _ .`, beginning with a letter or
/// digit, so that it is safe as a metric label, in a log line and in a URL. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct ServiceName(Arc<str>);

impl ServiceName {
    /// The longest name in a configuration, in bytes; the limit of a DNS label, so that a name can
    /// become one.
    pub const MAX_LEN: usize = 63;

    /// Proves that `text` is a service name.
    ///
    /// # Errors
    /// Says, in words for the operator, what is wrong with the name.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("a service name cannot be empty".into());
        }
        if text.len() > Self::MAX_LEN {
            return Err(format!(
                "a service name has at most {} characters, this one has {}",
                Self::MAX_LEN,
                text.len()
            ));
        }
        if !text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
            return Err("a service name begins with a letter or a digit".into());
        }
        match text
            .chars()
            .find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')))
        {
            Some(c) => Err(format!("a service name cannot contain {c:?}")),
            None => Ok(Self(text.into())),
        }
    }

    /// `NAME.NAMESPACE`: what a discovered Service is called. `None` where the object's names are
    /// none that the API server would take.
    pub(super) fn discovered(service: &ObjectRef) -> Option<Self> {
        let ObjectRef { namespace, name } = service;
        let known = names::is_label(name) && names::is_label(namespace);
        known.then(|| Self(format!("{name}.{namespace}").into()))
    }

    /// `NAME.NAMESPACE.svc`: another name for [`Self::discovered`], where the file uses that one.
    pub(super) fn in_full(&self) -> Self {
        Self(format!("{self}.svc").into())
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_safe_everywhere_is_taken() {
        for name in ["billing", "billing-v2", "9lives", "a.b_c"] {
            assert_eq!(ServiceName::parse(name).unwrap().as_str(), name);
        }
    }

    #[test]
    fn a_discovered_name_is_that_of_the_service_and_its_namespace() {
        let longest = "x".repeat(63);
        let name = |namespace: &str, name: &str| {
            let name = ServiceName::discovered(&ObjectRef::new(namespace, name));
            name.map(|name| name.to_string())
        };
        assert_eq!(
            name("payments", "billing").as_deref(),
            Some("billing.payments")
        );
        assert_eq!(name(&longest, &longest).map(|name| name.len()), Some(127));
        assert_eq!(name("a.b", "c"), None, "else a.b/c and b/c.a were one");
        assert_eq!(name("a", ""), None);
        assert_eq!(name("a", "B\""), None);
    }

    #[test]
    fn a_name_that_would_need_escaping_is_refused_with_its_reason() {
        for (name, reason) in [
            ("", "empty"),
            ("-billing", "begins with a letter"),
            ("bill ing", "cannot contain ' '"),
            ("bill\"ing", "cannot contain '\"'"),
            (&"x".repeat(64), "at most 63"),
        ] {
            let error = ServiceName::parse(name).unwrap_err();
            assert!(error.contains(reason), "{name:?}: {error}");
        }
    }
}
