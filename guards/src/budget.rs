//! `budget.toml`: the limits, and why they are what they are.

use std::path::Path;

use serde::Deserialize;

use crate::guard::Guard;

/// The limits of all guards, in the file's order.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Budget {
    #[serde(rename = "guard")]
    limits: Vec<Limit>,
}

/// One entry.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Limit {
    name: String,
    pub(crate) limit: f64,
    unit: String,
    /// What was measured when the limit was set.
    pub(crate) measured: f64,
    /// The limit, a colon, and why it is that. So nobody changes a limit without its reason.
    pub(crate) reason: String,
}

impl Budget {
    /// The file in the tree that this program was built from.
    ///
    /// # Errors
    /// What is wrong with it, by entry.
    pub(crate) fn read() -> Result<Self, String> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("budget.toml");
        std::fs::read_to_string(&path)
            .map_err(|error| error.to_string())
            .and_then(|text| Self::parse(&text))
            .map_err(|wrong| format!("{}:\n{wrong}", path.display()))
    }

    fn parse(text: &str) -> Result<Self, String> {
        let budget: Self = toml::from_str(text).map_err(|error| error.to_string())?;
        let mut wrong: Vec<String> = budget.limits.iter().filter_map(Limit::mistake).collect();
        for guard in Guard::all() {
            let name = guard.name();
            let entries = budget.limits.iter().filter(|limit| limit.name == name);
            match entries.count() {
                1 => {}
                0 => wrong.push(format!("{name}: has no entry")),
                _ => wrong.push(format!("{name}: has more than one entry")),
            }
        }
        match wrong.is_empty() {
            true => Ok(budget),
            false => Err(wrong.join("\n")),
        }
    }

    /// The limit of a guard. Every guard has one.
    pub(crate) fn of(&self, guard: Guard) -> Option<&Limit> {
        let name = guard.name();
        self.limits.iter().find(|limit| limit.name == name)
    }
}

impl Limit {
    fn mistake(&self) -> Option<String> {
        let Self {
            name,
            limit,
            unit,
            measured,
            reason,
        } = self;
        let Some(guard) = Guard::all().into_iter().find(|it| it.name() == *name) else {
            return Some(format!("{name}: no guard has this name; remove the entry"));
        };
        let expected = guard.unit();
        if *unit != expected {
            return Some(format!("{name}: the unit is `{expected}`, not `{unit}`"));
        }
        if !(0.0..=*limit).contains(measured) {
            return Some(format!("{name}: `measured` is not within the limit"));
        }
        let why = reason.split_once(": ").filter(|(for_limit, why)| {
            for_limit.parse() == Ok(*limit) && why.split_whitespace().count() > 2
        });
        why.is_none().then(|| {
            format!(
                "{name}: `reason` has to begin with the limit that it is for, \"{limit}: \", and to \
                 say why it is that"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = include_str!("../budget.toml");

    /// The first entry's first line that begins so, replaced.
    fn changed(key: &str, value: &str) -> String {
        let line = TEXT.lines().find(|line| line.starts_with(key)).unwrap();
        TEXT.replacen(line, &format!("{key} = {value}"), 1)
    }

    #[test]
    fn every_guard_has_a_limit_and_every_limit_a_reason() {
        if let Err(wrong) = Budget::read() {
            panic!("{wrong}");
        }
    }

    #[test]
    fn a_limit_that_was_changed_without_its_reason_is_refused() {
        let wrong = Budget::parse(&changed("limit", "99999999")).unwrap_err();
        assert!(wrong.contains("begin with the limit"), "{wrong}");
        let wrong = Budget::parse(&changed("reason", "\"\"")).unwrap_err();
        assert!(wrong.contains("begin with the limit"), "{wrong}");
    }

    #[test]
    fn an_entry_without_a_reason_or_without_a_guard_is_refused() {
        let line = TEXT
            .lines()
            .find(|line| line.starts_with("reason"))
            .unwrap();
        let wrong = Budget::parse(&TEXT.replacen(line, "", 1)).unwrap_err();
        assert!(wrong.contains("missing field `reason`"), "{wrong}");
        let wrong = Budget::parse(&changed("name", "\"instructions.nothing\"")).unwrap_err();
        assert!(wrong.contains("no guard has this name"), "{wrong}");
        assert!(wrong.contains("has no entry"), "{wrong}");
    }
}
