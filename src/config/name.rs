//! Names of services.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

/// The name of one service: the part after `services.` in the configuration.
///
/// At most 63 characters of `a-z A-Z 0-9 - _ .`, beginning with a letter or digit, so that it is
/// safe as a metric label, in a log line and in a URL. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct ServiceName(Arc<str>);

impl ServiceName {
    /// The longest name, in bytes; the limit of a DNS label, so that a name can become one.
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
