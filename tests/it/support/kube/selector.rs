//! Label and field selectors, as a query carries them.

use serde_json::Value;

use super::resources::Resource;

/// What an object must be like to be listed.
#[derive(Clone, Debug, Default)]
pub(super) struct Selector {
    labels: Vec<Requirement>,
    fields: Vec<FieldTerm>,
}

#[derive(Clone, Debug)]
enum Requirement {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Absent(String),
}

#[derive(Clone, Debug)]
struct FieldTerm {
    path: String,
    equal: bool,
    value: String,
}

impl Selector {
    /// # Errors
    /// With the reason, when a text is no selector or a field cannot be selected by.
    pub(super) fn parse(
        resource: &Resource,
        labels: Option<&str>,
        fields: Option<&str>,
    ) -> Result<Self, String> {
        let labels = labels.map_or(Ok(Vec::new()), parse_labels)?;
        let mut fields = fields.map_or(Ok(Vec::new()), parse_fields)?;
        for term in &mut fields {
            term.path = resource.selectable(&term.path)?;
        }
        Ok(Self { labels, fields })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// The value that this field must have, if one is asked for: `RequiresExactMatch`.
    pub(super) fn exact<'a>(&'a self, path: &str) -> Option<&'a str> {
        exact(&self.fields, path)
    }

    pub(super) fn matches(&self, object: &Value) -> bool {
        let labels = &object["metadata"]["labels"];
        let labelled = self.labels.iter().all(|requirement| match requirement {
            Requirement::In(key, values) => labels[key]
                .as_str()
                .is_some_and(|value| values.iter().any(|it| it == value)),
            Requirement::NotIn(key, values) => labels[key]
                .as_str()
                .is_none_or(|value| values.iter().all(|it| it != value)),
            Requirement::Exists(key) => labels[key].is_string(),
            Requirement::Absent(key) => !labels[key].is_string(),
        });
        labelled
            && self.fields.iter().all(|term| {
                let value = term
                    .path
                    .split('.')
                    .fold(object, |object, name| &object[name]);
                (value.as_str().unwrap_or_default() == term.value) == term.equal
            })
    }
}

/// The name that a list or watch is restricted to: what RBAC's `resourceNames` are held against.
pub(super) fn name_in(fields: &str) -> Option<String> {
    exact(&parse_fields(fields).ok()?, "metadata.name").map(str::to_owned)
}

fn exact<'a>(fields: &'a [FieldTerm], path: &str) -> Option<&'a str> {
    let mut terms = fields.iter();
    let term = terms.find(|term| term.equal && term.path == path)?;
    Some(&term.value)
}

fn parse_fields(text: &str) -> Result<Vec<FieldTerm>, String> {
    let terms = text.split(',').filter(|term| !term.is_empty());
    terms
        .map(|term| {
            let (path, equal, value) = if let Some((path, value)) = term.split_once("!=") {
                (path, false, value)
            } else if let Some((path, value)) = term.split_once("==") {
                (path, true, value)
            } else if let Some((path, value)) = term.split_once('=') {
                (path, true, value)
            } else {
                return Err(format!(
                    "invalid selector: '{text}'; can't understand '{term}'"
                ));
            };
            Ok(FieldTerm {
                path: path.to_owned(),
                equal,
                value: value.to_owned(),
            })
        })
        .collect()
}

fn parse_labels(text: &str) -> Result<Vec<Requirement>, String> {
    let refuse = || format!("unable to parse requirement: found '{text}'");
    let mut requirements = Vec::new();
    for term in split_outside_parentheses(text) {
        let term = term.trim();
        if term.starts_with('(') {
            return Err("found '(', expected: !, identifier, or 'end of string'".to_owned());
        }
        let requirement = if let Some((head, values)) = term.split_once('(') {
            let values = values.strip_suffix(')').ok_or_else(refuse)?;
            let values = values.split(',').map(|it| it.trim().to_owned()).collect();
            let mut words = head.split_whitespace();
            match (words.next(), words.next(), words.next()) {
                (Some(key), Some("in"), None) => Requirement::In(key.to_owned(), values),
                (Some(key), Some("notin"), None) => Requirement::NotIn(key.to_owned(), values),
                _ => return Err(refuse()),
            }
        } else if let Some((key, value)) = term.split_once("!=") {
            Requirement::NotIn(key.trim().to_owned(), vec![value.trim().to_owned()])
        } else if let Some((key, value)) = term.split_once('=') {
            let value = value.strip_prefix('=').unwrap_or(value);
            Requirement::In(key.trim().to_owned(), vec![value.trim().to_owned()])
        } else if let Some(key) = term.strip_prefix('!') {
            Requirement::Absent(key.trim().to_owned())
        } else if term.is_empty() {
            continue;
        } else {
            Requirement::Exists(term.to_owned())
        };
        let (Requirement::In(key, _)
        | Requirement::NotIn(key, _)
        | Requirement::Exists(key)
        | Requirement::Absent(key)) = &requirement;
        if key.is_empty() || key.contains(char::is_whitespace) {
            return Err(refuse());
        }
        requirements.push(requirement);
    }
    Ok(requirements)
}

fn split_outside_parentheses(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0_i32;
    text.split(move |character| {
        match character {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        character == ',' && depth == 0
    })
}
