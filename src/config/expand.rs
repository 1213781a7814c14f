//! `${VAR}` and `${VAR:-default}` in string values.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::problem::Wrong;

/// Replaces `${VAR}` by the variable's value and `${VAR:-default}` by the value or, where the
/// variable is unset or empty (as in a shell), by the default. `$${` is a literal `${`; any other
/// `$` stands for itself. What was put in is not expanded again.
pub(super) fn expand<'t>(
    text: &'t str,
    environment: &BTreeMap<String, String>,
) -> Result<Cow<'t, str>, Wrong> {
    if !text.contains("${") {
        return Ok(Cow::Borrowed(text));
    }
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        if let Some(before) = rest[..at].strip_suffix('$') {
            expanded.push_str(before);
            expanded.push_str("${");
            rest = &rest[at + 2..];
            continue;
        }
        expanded.push_str(&rest[..at]);
        let Some((reference, after)) = rest[at + 2..].split_once('}') else {
            return Err(Wrong::new(
                format!("{:?} has no closing brace", &rest[at..]),
                "write ${NAME}, or $${ for a literal ${",
            ));
        };
        expanded.push_str(value_of(reference, environment)?);
        rest = after;
    }
    expanded.push_str(rest);
    Ok(Cow::Owned(expanded))
}

/// The value of what stands between the braces.
fn value_of<'v>(
    reference: &'v str,
    environment: &'v BTreeMap<String, String>,
) -> Result<&'v str, Wrong> {
    let (name, default) = match reference.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (reference, None),
    };
    if !is_variable_name(name) {
        return Err(Wrong::new(
            format!("{name:?} is not the name of an environment variable"),
            "a name has letters, digits and _, as in ${HOME} or ${HOME:-/root}; write $${ for a literal ${",
        ));
    }
    if let Some(default) = default.filter(|d| d.contains("${")) {
        return Err(Wrong::new(
            format!("the default {default:?} refers to a variable in turn, which is not supported"),
            "write the default in plain text",
        ));
    }
    match (environment.get(name), default) {
        (Some(value), None) => Ok(value),
        (Some(value), Some(_)) if !value.is_empty() => Ok(value),
        (_, Some(default)) => Ok(default),
        (None, None) => Err(Wrong::new(
            format!("the environment variable {name} is not set"),
            format!("set {name}, or give a default: ${{{name}:-default}}"),
        )),
    }
}

fn is_variable_name(name: &str) -> bool {
    !name.starts_with(|c: char| c.is_ascii_digit())
        && !name.is_empty()
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(text: &str) -> Result<String, String> {
        let environment = BTreeMap::from([
            ("HOST".to_owned(), "db.internal".to_owned()),
            ("EMPTY".to_owned(), String::new()),
            ("NESTED".to_owned(), "${HOST}".to_owned()),
        ]);
        expand(text, &environment)
            .map(Cow::into_owned)
            .map_err(|wrong| wrong.reason)
    }

    #[test]
    fn variables_defaults_and_escapes_are_replaced() {
        for (text, expected) in [
            ("plain $5 $ {x}", "plain $5 $ {x}"),
            ("${HOST}:5432", "db.internal:5432"),
            ("${HOST}${HOST}", "db.internaldb.internal"),
            ("a${EMPTY}b", "ab"),
            ("${UNSET:-x:-y}", "x:-y"),
            ("${EMPTY:-d}", "d"),
            ("${HOST:-d}", "db.internal"),
            ("${UNSET:-}", ""),
            ("$${HOST}", "${HOST}"),
            ("$$${HOST}", "$${HOST}"),
            ("${NESTED}", "${HOST}"),
        ] {
            assert_eq!(run(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_replaced_is_named() {
        for (text, reason) in [
            ("${UNSET}", "UNSET is not set"),
            ("a${HOST", "\"${HOST\" has no closing brace"),
            ("${}", "\"\" is not the name"),
            ("${1A}", "\"1A\" is not the name"),
            ("${HOST-x}", "\"HOST-x\" is not the name"),
            ("${UNSET:-${HOST}}", "refers to a variable in turn"),
        ] {
            let error = run(text).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
