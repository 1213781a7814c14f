//! Names in Kubernetes, as its API server takes them: labels and subdomains of RFC 1123, entries
//! of Secrets, label selectors.

use crate::config::problem::Wrong;
use crate::config::value::Parsed;

/// An object by its name and, if it was said, its namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::config) struct Named {
    pub(in crate::config) namespace: Option<String>,
    pub(in crate::config) name: String,
}

/// A port of a Service, as it is referred to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::config) enum PortRef {
    Name(String),
    /// Not 0.
    Number(u16),
}

/// The longest RFC 1123 label.
const LABEL: usize = 63;
/// The longest RFC 1123 subdomain, and the longest name of a Secret's entry.
const SUBDOMAIN: usize = 253;

/// The name of a namespace: an RFC 1123 label.
pub(in crate::config) fn namespace(text: &str) -> Parsed<String> {
    label(text, "a namespace", "kubectl get namespaces")
}

/// The name of a Service: a label, because it is a name in the cluster's DNS.
pub(in crate::config) fn service(text: &str) -> Parsed<String> {
    if let Some((namespace, name)) = text.split_once('/')
        && label(namespace, "", "").is_ok()
    {
        return Err(Wrong::new(
            format!("{text:?} names a namespace too"),
            format!("write service = {name:?}, namespace = {namespace:?}"),
        ));
    }
    label(text, "a Service", "kubectl get services")
}

/// Whether the text could be the name of a Service or a namespace.
pub(in crate::config) fn is_label(text: &str) -> bool {
    label(text, "", "").is_ok()
}

/// The name of a Secret or a ConfigMap: an RFC 1123 subdomain. `kind` is `"a Secret"` or the like.
pub(in crate::config) fn object(text: &str, kind: &str) -> Parsed<String> {
    let wrong = |why: String| {
        let kinds = kind.trim_start_matches("a ").to_ascii_lowercase();
        Wrong::new(
            format!("{text:?} is not the name of {kind}: {why}"),
            format!("write the name as `kubectl get {kinds}s` shows it"),
        )
    };
    if text.len() > SUBDOMAIN {
        let length = text.len();
        return Err(wrong(format!(
            "it has {length} characters, at most {SUBDOMAIN} are taken"
        )));
    }
    if let Some(why) = flaw(text, ".") {
        return Err(wrong(why));
    }
    if text.split('.').any(|part| flaw(part, "").is_some()) {
        return Err(wrong(
            "each part between dots begins and ends with a letter or a digit".to_owned(),
        ));
    }
    Ok(text.to_owned())
}

/// The name of a ClusterTrustBundle: a subdomain, after the name of its signer if it has one, as
/// in `example.com:ca:v1`.
pub(in crate::config) fn trust_bundle(text: &str) -> Parsed<String> {
    let parts_are_names = text.split(':').all(|part| object(part, "").is_ok());
    match parts_are_names && text.len() <= SUBDOMAIN {
        true => Ok(text.to_owned()),
        false => Err(Wrong::new(
            format!("{text:?} is not the name of a ClusterTrustBundle"),
            "write the name as `kubectl get clustertrustbundles` shows it; it has no namespace",
        )),
    }
}

/// `name` or `namespace/name`.
pub(in crate::config) fn named(text: &str, kind: &str) -> Parsed<Named> {
    match text.split_once('/') {
        None => Ok(Named {
            namespace: None,
            name: object(text, kind)?,
        }),
        Some((home, name)) => Ok(Named {
            namespace: Some(namespace(home)?),
            name: object(name, kind)?,
        }),
    }
}

/// The name of a zone or a node, or nothing, as `${ZONE:-}` gives it where the variable is not
/// set.
pub(in crate::config) fn place(text: &str) -> Parsed<Option<String>> {
    if text.is_empty() {
        return Ok(None);
    }
    // Zones are values of labels; names of nodes are subdomains, which may be longer.
    match label_value(text).is_ok() || object(text, "").is_ok() {
        true => Ok(Some(text.to_owned())),
        false => Err(Wrong::new(
            format!("{text:?} is not the name of a zone or a node"),
            "write the name as `kubectl get nodes --label-columns topology.kubernetes.io/zone` shows it, or nothing",
        )),
    }
}

/// The name of an entry of a Secret or a ConfigMap.
pub(in crate::config) fn entry(text: &str) -> Parsed<String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if !text.is_empty()
        && text.len() <= SUBDOMAIN
        && text.bytes().all(plain)
        && !["..", "."].contains(&text)
    {
        return Ok(text.to_owned());
    }
    Err(Wrong::new(
        format!("{text:?} is not an entry of a Secret or a ConfigMap"),
        "write its name, for example \"ca.crt\"; `kubectl describe` lists the entries",
    ))
}

/// The name or the number of a Service's port. Digits alone are a number.
pub(in crate::config) fn port(text: &str) -> Parsed<PortRef> {
    const FIX: &str = "write the port's name or number, as `kubectl describe service` shows it";
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return match text.parse() {
            Ok(0) | Err(_) => Err(Wrong::new(format!("there is no port {text}"), FIX)),
            Ok(number) => Ok(PortRef::Number(number)),
        };
    }
    match text.len() <= LABEL && flaw(text, "").is_none() {
        true => Ok(PortRef::Name(text.to_owned())),
        false => Err(Wrong::new(
            format!("{text:?} is neither the name nor the number of a port"),
            FIX,
        )),
    }
}

/// A label selector as kubectl takes it: `app=billing,tier in (a, b),!canary`.
pub(in crate::config) fn selector(text: &str) -> Parsed<String> {
    let wrong = |why: String| {
        Wrong::new(
            why,
            "write requirements with commas between them: key=value, key!=value, key in (a, b), key notin (a, b), key, !key",
        )
    };
    if text.trim().is_empty() {
        return Err(Wrong::new(
            "the selector is empty",
            "write for example \"tlsward=yes\", or remove the key to select every Service",
        ));
    }
    for requirement in requirements(text) {
        self::requirement(requirement.trim()).map_err(|why| {
            wrong(format!(
                "{:?} is not a label selector's requirement: {why}",
                requirement.trim()
            ))
        })?;
    }
    Ok(text.to_owned())
}

/// Cuts a selector at the commas outside of parentheses.
fn requirements(text: &str) -> Vec<&str> {
    let mut inside = false;
    text.split(|c| {
        inside = match c {
            '(' => true,
            ')' => false,
            _ => inside,
        };
        c == ',' && !inside
    })
    .collect()
}

/// One requirement of a selector, or what is wrong with it.
fn requirement(text: &str) -> Result<(), String> {
    if let Some(key) = text.strip_prefix('!') {
        return label_key(key.trim());
    }
    if let Some(at) = text.find(['=', '!']) {
        let (key, rest) = text.split_at(at);
        let value = ["==", "!=", "="]
            .iter()
            .find_map(|operator| rest.strip_prefix(operator))
            .ok_or("a \"!\" stands before a key, or in \"!=\"")?;
        label_key(key.trim())?;
        return label_value(value.trim());
    }
    let end = text.find(|c: char| c.is_whitespace() || c == '(');
    let (key, rest) = text.split_at(end.unwrap_or(text.len()));
    label_key(key)?;
    let rest = rest.trim();
    if rest.is_empty() {
        return Ok(());
    }
    let set = ["in", "notin"]
        .iter()
        .find_map(|operator| rest.strip_prefix(operator)?.trim_start().strip_prefix('('))
        .and_then(|set| set.strip_suffix(')'))
        .ok_or("behind a key stands nothing, =, ==, !=, in (…) or notin (…)")?;
    set.split(',')
        .try_for_each(|value| label_value(value.trim()))
}

/// A label's key: a name, with a domain and a slash before it if you like.
fn label_key(text: &str) -> Result<(), String> {
    let (prefix, name) = match text.rsplit_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, text),
    };
    if prefix.is_some_and(|prefix| object(prefix, "").is_err()) {
        return Err(format!("the key's prefix in {text:?} is not a domain"));
    }
    if name.is_empty() {
        return Err("there is no key".to_owned());
    }
    qualified(name).map_err(|why| format!("the key {text:?} {why}"))
}

fn label_value(text: &str) -> Result<(), String> {
    match text.is_empty() {
        true => Ok(()),
        false => qualified(text).map_err(|why| format!("the value {text:?} {why}")),
    }
}

/// At most 63 letters, digits, `-`, `_` and `.`, a letter or digit at both ends.
fn qualified(text: &str) -> Result<(), &'static str> {
    if text.len() > LABEL {
        return Err("has more than 63 characters");
    }
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if !text.bytes().all(inner) {
        return Err("has characters other than letters, digits, \"-\", \"_\" and \".\"");
    }
    match ends_in_word(text) {
        true => Ok(()),
        false => Err("does not begin and end with a letter or a digit"),
    }
}

fn label(text: &str, kind: &str, list: &str) -> Parsed<String> {
    let length = text.len();
    let why = match flaw(text, "") {
        Some(why) => why,
        None if length > LABEL => {
            format!("it has {length} characters, at most {LABEL} are taken")
        }
        None => return Ok(text.to_owned()),
    };
    Err(Wrong::new(
        format!("{text:?} is not the name of {kind}: {why}"),
        format!("write the name as `{list}` shows it"),
    ))
}

/// Why the text is no name of small letters, digits, `-` and `inner`, if it is none.
fn flaw(text: &str, inner: &str) -> Option<String> {
    let odd = |c: &char| {
        !(c.is_ascii_lowercase() || c.is_ascii_digit() || *c == '-' || inner.contains(*c))
    };
    match text.chars().find(odd) {
        _ if text.is_empty() => Some("it is empty".to_owned()),
        Some(c) if c.is_ascii_uppercase() => Some("it has capital letters".to_owned()),
        Some(c) => Some(format!("it cannot contain {c:?}")),
        None if ends_in_word(text) => None,
        None => Some("it does not begin and end with a letter or a digit".to_owned()),
    }
}

fn ends_in_word(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.ends_with(|c: char| c.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused<T: std::fmt::Debug>(parsed: Parsed<T>) -> String {
        let wrong = parsed.unwrap_err();
        format!("{} | {}", wrong.reason, wrong.fix)
    }

    #[test]
    fn names_are_those_that_the_api_server_takes() {
        let longest = "x".repeat(63);
        for text in ["a", "9lives", "billing-v2", longest.as_str()] {
            assert!(namespace(text).is_ok() && service(text).is_ok(), "{text}");
        }
        for text in ["a", "a.b-c.d", "1.2", &"x".repeat(253)] {
            assert_eq!(object(text, "a Secret").as_deref(), Ok(text));
        }
        for (text, why) in [
            ("", "it is empty"),
            ("Billing", "capital letters"),
            ("a_b", "cannot contain '_'"),
            ("a.b", "cannot contain '.'"),
            ("-a", "begin and end"),
            ("a-", "begin and end"),
            ("ü", "cannot contain 'ü'"),
            (&"x".repeat(64), "64 characters"),
        ] {
            assert!(refused(namespace(text)).contains(why), "{text}");
        }
        for (text, why) in [
            ("a..b", "each part between dots"),
            ("a.-b", "each part between dots"),
            (".a", "begin and end"),
            ("a b", "cannot contain ' '"),
            (&"x".repeat(254), "254 characters"),
        ] {
            assert!(refused(object(text, "a Secret")).contains(why), "{text}");
        }
        for text in ["a.b", "example.com:ca:v1", "example.com:ca.b:x"] {
            assert_eq!(trust_bundle(text).as_deref(), Ok(text));
        }
        for text in ["", ":", "a:", "a/b", "A", &"x".repeat(254)] {
            refused(trust_bundle(text));
        }
        assert!(refused(object("A", "a ConfigMap")).contains("kubectl get configmaps"));
        assert!(
            refused(service("payments/billing"))
                .contains("write service = \"billing\", namespace = \"payments\"")
        );
    }

    #[test]
    fn an_object_is_a_name_or_a_namespace_and_a_name() {
        let named = |text: &str| named(text, "a Secret").map(|named| (named.namespace, named.name));
        assert_eq!(named("a.b"), Ok((None, "a.b".into())));
        assert_eq!(named("ns/a"), Ok((Some("ns".into()), "a".into())));
        for text in ["", "/", "/a", "ns/", "ns/a/b", "n.s/a", "NS/a"] {
            refused(named(text));
        }
    }

    #[test]
    fn entries_and_ports_are_told_from_what_they_are_not() {
        for text in ["ca.crt", "CA_bundle-1", ".dot", "..x"] {
            assert!(entry(text).is_ok(), "{text}");
        }
        for text in ["", ".", "..", "a/b", "a b", &"x".repeat(254)] {
            refused(entry(text));
        }
        assert_eq!(port("443"), Ok(PortRef::Number(443)));
        assert_eq!(port("https"), Ok(PortRef::Name("https".into())));
        for text in ["", "0", "65536", "https!", "-x", "HTTPS", &"x".repeat(64)] {
            refused(port(text));
        }
    }

    #[test]
    fn a_place_may_be_empty_and_is_a_name_otherwise() {
        assert_eq!(place(""), Ok(None));
        for text in [
            "eu-central-1a",
            "Zone_1",
            "x.".repeat(50).trim_end_matches('.'),
        ] {
            assert_eq!(place(text), Ok(Some(text.to_owned())));
        }
        refused(place("a b"));
        refused(place("${ZONE}"));
    }

    #[test]
    fn a_selector_has_the_syntax_of_kubectl() {
        for text in [
            "app=billing",
            "app == billing , tier != web",
            "app in (a, b),tier notin (c),x",
            "app in(a)",
            "!canary",
            "! canary",
            "app.kubernetes.io/name=a.b_c-d",
            "empty=",
            "empty in ()",
            "a",
        ] {
            assert_eq!(selector(text).as_deref(), Ok(text));
        }
        for (text, why) in [
            ("", "empty"),
            (" ", "empty"),
            ("a,", "no key"),
            (",a", "no key"),
            ("=a", "no key"),
            ("a=b=c", "\"b=c\""),
            ("a in b", "in (…)"),
            ("a in (b", "in (…)"),
            ("a in (b) c", "in (…)"),
            ("a within (b)", "in (…)"),
            ("a b", "in (…)"),
            ("-a", "begin and end"),
            ("a=-b", "begin and end"),
            ("a!b", "before a key"),
            ("!a=b", "characters other"),
            ("x/y/z", "prefix"),
            ("X/y", "prefix"),
            ("a=ü", "characters other"),
            ("a > 5", "in (…)"),
            (&format!("a={}", "x".repeat(64)), "more than 63"),
        ] {
            assert!(
                refused(selector(text)).contains(why),
                "{text}: {}",
                refused(selector(text))
            );
        }
    }
}
