//! The table of keys in words. `docs/configuration.md` is held against it, and the manual page of
//! the file is made from it.

use super::environment;
use super::keys::{Default, Key, Kind, Table};

/// One table of the file. In its strings and those of its keys, what stands between backticks is
/// written as it is.
#[derive(Debug)]
pub struct Section {
    /// How the table is called.
    pub heading: &'static str,
    /// Its keys, in the order of the reference.
    pub keys: Vec<Entry>,
}

/// One key.
#[derive(Debug)]
pub struct Entry {
    /// As it is written.
    pub name: &'static str,
    /// What it takes.
    pub value: String,
    /// What holds without it.
    pub default: String,
    /// What it is for.
    pub meaning: &'static str,
    /// What other programs call it: program, name.
    pub elsewhere: &'static [(&'static str, &'static str)],
}

/// Every table with its keys.
#[must_use]
pub fn reference() -> Vec<Section> {
    let section = |table: Table| Section {
        heading: table.heading(),
        keys: table.keys().iter().map(Entry::of).collect(),
    };
    Table::ALL.into_iter().map(section).collect()
}

/// Every environment variable, with the key that it sets; TLSWARD_CONFIG sets none.
#[must_use]
pub fn variables() -> &'static [(&'static str, &'static str)] {
    &environment::VARIABLES
}

impl Table {
    /// How the reference calls it.
    pub(super) fn heading(self) -> &'static str {
        match self {
            Self::Top => "Outside of any table",
            Self::Admin => "`[admin]`",
            Self::Log => "`[log]`",
            Self::Sandbox => "`[sandbox]`",
            Self::Service => "`[services.NAME]` and `[defaults]`",
            Self::Tls => "`[services.NAME.tls]` and `[defaults.tls]`",
            Self::Kubernetes => "`[kubernetes]`",
            Self::Discovery => "`[kubernetes.discovery]`",
            Self::Backend => "`upstream = { … }`",
            Self::Ca => "`ca = { … }`",
        }
    }
}

impl Entry {
    pub(super) fn of(key: &Key) -> Self {
        Self {
            name: key.name,
            value: value(&key.kind),
            default: match key.default {
                Default::Is(value) => format!("`{value}`"),
                Default::Unset(meaning) => meaning.to_owned(),
                Default::Required => "required".to_owned(),
            },
            meaning: key.doc,
            elsewhere: key.elsewhere,
        }
    }
}

fn value(kind: &Kind) -> String {
    let off = |off: bool| if off { " or `\"off\"`" } else { "" };
    let words = |words: &[&str]| {
        let words: Vec<String> = words.iter().map(|word| format!("`\"{word}\"`")).collect();
        words.join(", ")
    };
    match *kind {
        Kind::Bool => "`true` or `false`".to_owned(),
        Kind::Integer {
            min,
            max,
            off: allowed,
        } => format!("number from {min} to {max}{}", off(allowed)),
        Kind::Duration { off: allowed } => format!("duration{}", off(allowed)),
        Kind::Choice(choices) => words(choices),
        Kind::Choices(choices) => format!("list of {}", words(choices)),
        Kind::Text(what, _) | Kind::TextOrPort(what, _) => what.to_owned(),
        Kind::TextsOrTable(what, ..) => format!("{what}, a list, or a table"),
        Kind::TextOrTables(what, ..) => format!("{what}, a table, or a list of tables"),
        Kind::Texts(what, _) => format!("list; each: {what}"),
        Kind::Ports => {
            "`\"used\"`, `\"any\"`, or a list of ports and ranges such as `[8443, \"7000-7099\"]`"
                .to_owned()
        }
    }
}
