//! Reads single values of the file: their TOML type, the variables in them, and their place if
//! they are wrong.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::Path;

use toml::Spanned;
use toml::de::DeValue;

use super::Credential;
use super::document::{Slot, report_unknown};
use super::expand::expand;
use super::keys::{Key, Kind, Table, quoted};
use super::kubernetes::ObjectRef;
use super::kubernetes::names::{self, Named, PortRef};
use super::problem::{At, Findings, Wrong};
use super::syntax::Syntax;
use super::value::{self, Parsed};

/// The name of a key as written.
pub(super) type Name<'i> = Spanned<Cow<'i, str>>;
/// The value of a key as written.
pub(super) type Value<'i> = Spanned<DeValue<'i>>;

/// More elements than any list of ours needs.
const MAX_ELEMENTS: usize = 1_000;

/// Reads values and collects what is wrong with them.
pub(super) struct Reader<'a> {
    pub(super) findings: Findings<'a>,
    /// What relative paths count from.
    pub(super) base: &'a Path,
    /// Where objects of Kubernetes are that are named without a namespace.
    pub(super) home: Home,
    /// Whether this build speaks with Kubernetes.
    pub(super) kubernetes: bool,
    environment: &'a BTreeMap<String, String>,
    syntax: Syntax,
}

/// The namespace of what is named without one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Home {
    Known(String),
    /// Neither the file nor a pod says one.
    Unknown,
    /// The file says one that cannot be read: nothing that follows from it is worth a report.
    Unreadable,
}

/// A key of the table of keys with its value.
pub(super) struct Written<'a> {
    pub(super) key: &'static Key,
    pub(super) path: &'a str,
    pub(super) value: &'a Value<'a>,
}

impl Written<'_> {
    pub(super) fn at(&self) -> At {
        self.value.span().into()
    }
}

impl<'a> Reader<'a> {
    pub(super) fn new(
        mut findings: Findings<'a>,
        base: &'a Path,
        environment: &'a BTreeMap<String, String>,
        syntax: Syntax,
        own_namespace: Option<&str>,
        kubernetes: bool,
    ) -> Self {
        syntax.mark_lines(&mut findings);
        let home = match own_namespace {
            _ if syntax.is_broken() => Home::Unreadable,
            Some(own) => Home::Known(own.to_owned()),
            None => Home::Unknown,
        };
        Self {
            findings,
            base,
            home,
            kubernetes,
            environment,
            syntax,
        }
    }

    /// Ends the reading. Reports the syntax errors that belong to no value, and says whether they
    /// leave it certain which keys are there.
    pub(super) fn finish(mut self) -> (Findings<'a>, bool) {
        let intact = self.syntax.report_rest(&mut self.findings);
        (self.findings, intact)
    }

    /// A key of `table`; one that is unknown there is reported.
    pub(super) fn written<'w>(
        &mut self,
        table: Table,
        path: &'w str,
        name: &Name<'_>,
        value: &'w Value<'w>,
    ) -> Option<Written<'w>> {
        match table.key(name.get_ref()) {
            Some(key) => Some(Written { key, path, value }),
            None => {
                report_unknown(self, table, path, name);
                None
            }
        }
    }

    /// Whether this build can obey what asks for Kubernetes; if not, that is reported at `at`.
    pub(super) fn can_kubernetes(&mut self, at: At, path: &str) -> bool {
        if !self.kubernetes {
            let wrong = Wrong::new(
                "this build of tlsward has no Kubernetes support",
                "use a build with the feature \"kubernetes\", or remove what needs it: certificates can be files, and an upstream host:port",
            );
            self.findings.report(at, path, wrong);
        }
        self.kubernetes
    }

    /// A credential by its name.
    pub(super) fn credential(&mut self, written: &Written<'_>) -> Slot<Credential> {
        let environment = self.environment;
        self.text(written, |text| Credential::parse(text, environment))
    }

    /// An object by `name` or `namespace/name`; `kind` is `"a Secret"` or the like.
    pub(super) fn object(&mut self, written: &Written<'_>, kind: &str) -> Slot<ObjectRef> {
        match self.text(written, |text| names::named(text, kind)) {
            Slot::Set(named, at) => self.at_home(named, at, written.path),
            Slot::Absent => Slot::Absent,
            Slot::Invalid => Slot::Invalid,
        }
    }

    /// An object with the namespace that it has.
    pub(super) fn at_home(&mut self, named: Named, at: At, path: &str) -> Slot<ObjectRef> {
        let Named { namespace, name } = named;
        match (namespace, &self.home) {
            (Some(namespace), _) => Slot::Set(ObjectRef::new(namespace, name), at),
            (None, Home::Known(home)) => Slot::Set(ObjectRef::new(home.as_str(), name), at),
            (None, Home::Unreadable) => Slot::Invalid,
            (None, Home::Unknown) => {
                let wrong = Wrong::new(
                    format!("in which namespace {name:?} is cannot be known outside of a pod"),
                    "set namespace in [kubernetes], or name the namespace here: \"NAMESPACE/NAME\", or namespace = \"…\" beside service",
                );
                self.findings.report(at, path, wrong);
                Slot::Invalid
            }
        }
    }

    /// The entries of a table, one by one.
    pub(super) fn table<'v>(
        &mut self,
        path: &str,
        value: &'v Value<'v>,
        mut entry: impl FnMut(&mut Self, &'v Name<'v>, &'v Value<'v>),
    ) {
        match value.get_ref() {
            DeValue::Table(table) => {
                for (name, value) in table {
                    entry(self, name, value);
                }
            }
            other => {
                let fix = match other {
                    DeValue::Array(_) => format!("write [{path}] in single brackets"),
                    _ => format!("write [{path}] and the keys below it"),
                };
                let reason = format!("{path} is a table, not {}", name_of(other));
                self.findings
                    .report(value.span().into(), path, Wrong::new(reason, fix));
            }
        }
    }

    /// A string.
    pub(super) fn text<T>(
        &mut self,
        written: &Written<'_>,
        parse: impl FnOnce(&str) -> Parsed<T>,
    ) -> Slot<T> {
        if self.is_broken(written) {
            return Slot::Invalid;
        }
        let parsed = self
            .string(written.key, written.value)
            .and_then(|text| parse(&text));
        self.slot(written, parsed)
    }

    /// One of the words of a closed list.
    pub(super) fn choice<T: Copy>(
        &mut self,
        written: &Written<'_>,
        choices: &[(&str, T)],
    ) -> Slot<T> {
        self.text(written, |text| value::choice(text, choices))
    }

    /// A list of strings, none of them twice.
    pub(super) fn list<T: PartialEq>(
        &mut self,
        written: &Written<'_>,
        parse: impl Fn(&str) -> Parsed<T>,
    ) -> Slot<Vec<T>> {
        self.list_by(written, |reader, element| {
            reader
                .string(written.key, element)
                .and_then(|text| parse(&text))
        })
    }

    fn list_by<T: PartialEq>(
        &mut self,
        written: &Written<'_>,
        parse: impl Fn(&Self, &Value<'_>) -> Parsed<T>,
    ) -> Slot<Vec<T>> {
        if self.is_broken(written) {
            return Slot::Invalid;
        }
        let DeValue::Array(elements) = written.value.get_ref() else {
            return self.invalid(written, mismatch(written.key, written.value.get_ref()));
        };
        if elements.len() > MAX_ELEMENTS {
            let reason = format!(
                "the list has {} elements, at most {MAX_ELEMENTS} are taken",
                elements.len()
            );
            return self.invalid(written, Wrong::new(reason, "shorten the list"));
        }
        let mut list: Vec<T> = Vec::with_capacity(elements.len());
        let mut valid = true;
        for element in elements.iter() {
            let parsed = parse(self, element).and_then(|item| match list.contains(&item) {
                true => Err(Wrong::new(
                    "the list says this twice",
                    "remove one of the two",
                )),
                false => Ok(item),
            });
            match parsed {
                Ok(item) => list.push(item),
                Err(wrong) => {
                    valid = false;
                    self.findings
                        .report(element.span().into(), written.path, wrong);
                }
            }
        }
        match valid {
            true => Slot::Set(list, written.at()),
            false => Slot::Invalid,
        }
    }

    /// A list of ports, each a whole number or a string, none of them twice.
    pub(super) fn list_of_ports<T: PartialEq>(
        &mut self,
        written: &Written<'_>,
        parse: impl Fn(&str) -> Parsed<T>,
    ) -> Slot<Vec<T>> {
        self.list_by(written, |reader, element| match element.get_ref() {
            DeValue::Integer(number) => parse(number.as_str()),
            _ => reader
                .string(written.key, element)
                .and_then(|text| parse(&text)),
        })
    }

    /// A string, or a list of strings that is not empty.
    pub(super) fn one_or_more<T: PartialEq>(
        &mut self,
        written: &Written<'_>,
        parse: impl Fn(&str) -> Parsed<T>,
    ) -> Slot<Vec<T>> {
        match written.value.get_ref() {
            DeValue::Array(elements) if elements.is_empty() => self.invalid(
                written,
                Wrong::new(
                    format!("the list of {} is empty", written.key.name),
                    mismatch_fix(written.key),
                ),
            ),
            DeValue::Array(_) => self.list(written, parse),
            _ => self.text(written, |text| parse(text).map(|one| vec![one])),
        }
    }

    /// The name or the number of a port.
    pub(super) fn port(&mut self, written: &Written<'_>) -> Slot<PortRef> {
        match written.value.get_ref() {
            DeValue::Integer(number) => {
                let digits = u64::from_str_radix(number.as_str(), number.radix());
                let text = digits.map_or_else(|_| number.to_string(), |digits| digits.to_string());
                let parsed = names::port(&text);
                self.slot(written, parsed)
            }
            _ => self.text(written, names::port),
        }
    }

    /// `true` or `false`.
    pub(super) fn boolean(&mut self, written: &Written<'_>) -> Slot<bool> {
        if self.is_broken(written) {
            return Slot::Invalid;
        }
        let parsed = match written.value.get_ref() {
            DeValue::Boolean(value) => Ok(*value),
            other => Err(mismatch(written.key, other)),
        };
        self.slot(written, parsed)
    }

    /// A whole number within the bounds of the key.
    pub(super) fn integer<T: TryFrom<u64>>(&mut self, written: &Written<'_>) -> Slot<T> {
        if self.is_broken(written) {
            return Slot::Invalid;
        }
        let parsed = integer(written.key, written.value.get_ref());
        self.slot(written, parsed)
    }

    /// A whole number above zero: the key's bounds leave zero out.
    pub(super) fn above_zero(&mut self, written: &Written<'_>) -> Slot<NonZeroUsize> {
        match self.integer::<usize>(written) {
            Slot::Set(number, at) => match NonZeroUsize::new(number) {
                Some(number) => Slot::Set(number, at),
                None => Slot::Invalid,
            },
            Slot::Absent => Slot::Absent,
            Slot::Invalid => Slot::Invalid,
        }
    }

    /// A whole number above zero, or `"off"`.
    pub(super) fn integer_or_off(&mut self, written: &Written<'_>) -> Slot<Option<NonZeroUsize>> {
        if self.is_broken(written) {
            return Slot::Invalid;
        }
        let parsed = match written.value.get_ref() {
            DeValue::String(_) => match self.string(written.key, written.value) {
                Ok(text) if text == "off" => Ok(None),
                Ok(_) => Err(mismatch(written.key, written.value.get_ref())),
                Err(wrong) => Err(wrong),
            },
            other => integer(written.key, other).map(NonZeroUsize::new),
        };
        self.slot(written, parsed)
    }

    /// Reports a value as wrong.
    pub(super) fn invalid<T>(&mut self, written: &Written<'_>, wrong: Wrong) -> Slot<T> {
        if !self.is_broken(written) {
            self.findings.report(written.at(), written.path, wrong);
        }
        Slot::Invalid
    }

    fn slot<T>(&mut self, written: &Written<'_>, parsed: Parsed<T>) -> Slot<T> {
        match parsed {
            Ok(value) => Slot::Set(value, written.at()),
            Err(wrong) => self.invalid(written, wrong),
        }
    }

    /// Whether the value has a syntax error, which is then reported with what is known of the key.
    pub(super) fn is_broken(&mut self, written: &Written<'_>) -> bool {
        self.syntax.claim(written, &mut self.findings)
    }

    /// The text of a string value with its variables replaced.
    fn string<'v>(&self, key: &Key, value: &'v Value<'v>) -> Parsed<Cow<'v, str>> {
        match value.get_ref() {
            DeValue::String(text) => expand(text, self.environment),
            other => Err(mismatch(key, other)),
        }
    }
}

fn integer<T: TryFrom<u64>>(key: &Key, value: &DeValue<'_>) -> Parsed<T> {
    let DeValue::Integer(number) = value else {
        return Err(mismatch(key, value));
    };
    let Kind::Integer { min, max, .. } = key.kind else {
        unreachable!("{} is read as an integer and is none", key.name);
    };
    u64::from_str_radix(number.as_str(), number.radix())
        .ok()
        .filter(|number| (min..=max).contains(number))
        .and_then(|number| T::try_from(number).ok())
        .ok_or_else(|| {
            Wrong::new(
                format!("{number} is not a number from {min} to {max}"),
                mismatch_fix(key),
            )
        })
}

// === the wrong type ===

fn name_of(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

pub(super) fn mismatch(key: &Key, value: &DeValue<'_>) -> Wrong {
    let expected = match key.kind {
        Kind::Bool => "true or false".to_owned(),
        Kind::Integer { off: false, .. } => "an integer".to_owned(),
        Kind::Integer { off: true, .. } => "an integer or \"off\"".to_owned(),
        Kind::Duration { off: false } => "a duration in quotes".to_owned(),
        Kind::Duration { off: true } => "a duration in quotes or \"off\"".to_owned(),
        Kind::Choice(words) => quoted(words),
        Kind::Choices(_) => "a list of names".to_owned(),
        Kind::Text(what, _) => format!("{what}, in quotes"),
        Kind::TextsOrTable(what, ..) => {
            format!("{what} in quotes, a list of such, or a table of a Kubernetes Service")
        }
        Kind::TextOrTables(what, ..) => {
            format!("{what} in quotes, or a table of a Kubernetes object, or a list of such tables")
        }
        Kind::TextOrPort(what, _) => what.to_owned(),
        Kind::Texts(what, _) => format!("a list; each element is {what}"),
        Kind::Ports => "\"used\", \"any\" or a list of ports".to_owned(),
    };
    if let (Kind::TextsOrTable(what, ..), DeValue::Table(_)) = (&key.kind, value) {
        return Wrong::new(
            format!(
                "a list of {} holds {what}, and a Kubernetes Service stands alone",
                key.name
            ),
            "write the table without the brackets of a list",
        );
    }
    let fix = match (&key.kind, value) {
        (Kind::Duration { .. }, DeValue::Integer(seconds)) => {
            format!("write \"{seconds}s\" for seconds")
        }
        (Kind::Bool, DeValue::String(text)) => match text.as_ref() {
            "true" | "on" | "yes" => "write true without quotes".to_owned(),
            "false" | "off" | "no" => "write false without quotes".to_owned(),
            _ => mismatch_fix(key),
        },
        (Kind::Integer { .. }, DeValue::String(text)) if text.parse::<u64>().is_ok() => {
            format!("write {text} without quotes")
        }
        (Kind::Choice(words), DeValue::Float(number)) if words.contains(&number.as_str()) => {
            format!("write \"{}\" in quotes", number.as_str())
        }
        (Kind::Texts(..) | Kind::Choices(_), DeValue::String(text)) => format!("write [{text:?}]"),
        (Kind::Ports, DeValue::Integer(port)) => format!("write [{port}]"),
        _ => mismatch_fix(key),
    };
    Wrong::new(
        format!("{} is {expected}, not {}", key.name, name_of(value)),
        fix,
    )
}

/// How the key is written, by example.
fn mismatch_fix(key: &Key) -> String {
    let name = key.name;
    match key.kind {
        Kind::Bool => format!("write {name} = true or {name} = false"),
        Kind::Integer {
            min,
            max,
            off: false,
        } => format!("write a number from {min} to {max}"),
        Kind::Integer {
            min,
            max,
            off: true,
        } => format!("write a number from {min} to {max}, or \"off\""),
        Kind::Duration { off: false } => format!("write for example {name} = \"10s\""),
        Kind::Duration { off: true } => format!("write for example {name} = \"5m\", or \"off\""),
        Kind::Choice(words) => format!("write {}", quoted(words)),
        Kind::Choices(words) => format!("write for example {name} = [{:?}]", words[0]),
        Kind::Text(_, example)
        | Kind::TextsOrTable(_, example, _)
        | Kind::TextOrTables(_, example, _)
        | Kind::TextOrPort(_, example) => {
            format!("write for example {name} = {example:?}")
        }
        Kind::Texts(_, example) => format!("write for example {name} = [{example:?}]"),
        Kind::Ports => format!("write for example {name} = [8443, \"7000-7099\"]"),
    }
}
