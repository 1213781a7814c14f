//! What was measured, beside its limits.

use std::fmt::Write as _;

use crate::budget::{Budget, Limit};
use crate::guard::Measured;

/// Below this share of what was measured when the limit was set, the limit guards little.
const LOOSE: f64 = 0.9;

/// Parts that are named of what is over its budget.
const PARTS: usize = 12;

/// A line for each guard.
pub(crate) fn table(measured: &[Measured], budget: &Budget) -> String {
    let mut lines = String::new();
    for it in measured {
        let Some(Limit {
            limit, measured, ..
        }) = budget.of(it.guard)
        else {
            continue;
        };
        let verdict = match it.value {
            value if value > *limit => "OVER",
            value if value < measured * LOOSE => "ok, and far below: lower the limit",
            _ => "ok",
        };
        let _ = writeln!(
            lines,
            "{:32} {:>11} of {:>11} {:28} {verdict}",
            it.guard.name(),
            number(it.value),
            number(*limit),
            it.guard.unit(),
        );
    }
    lines
}

/// What is over its budget, by how much, and what to do. Empty where nothing is.
pub(crate) fn failures(measured: &[Measured], budget: &Budget) -> String {
    let mut text = String::new();
    for it in measured {
        match budget.of(it.guard) {
            Some(limit) if it.value > limit.limit => text.push_str(&failure(it, limit)),
            _ => {}
        }
    }
    text
}

fn failure(it: &Measured, limit: &Limit) -> String {
    let (name, unit) = (it.guard.name(), it.guard.unit());
    let over = it.value - limit.limit;
    let share = match limit.limit {
        0.0 => String::new(),
        limit => format!(" ({:.1} %)", over / limit * 100.0),
    };
    let mut text = format!(
        "\n{name} is over its budget by {}{share}: {} {unit}, and the limit is {} (it was {} when \
         that was set).\n  Make it cheaper. Or, where the price is worth it, write the new limit and \
         why into guards/budget.toml:\n    limit = {}\n  The reason now: {}\n",
        number(over),
        number(it.value),
        number(limit.limit),
        number(limit.measured),
        it.guard.limit_for(it.value),
        limit.reason,
    );
    let parts: Vec<_> = it.parts.iter().filter(|(_, cost)| *cost >= 0.005).collect();
    if !parts.is_empty() {
        text.push_str("  Most of it:\n");
    }
    for (part, cost) in parts.into_iter().take(PARTS) {
        let _ = writeln!(text, "  {:>11}  {part}", number(*cost));
    }
    text
}

/// The entries of the measured guards as they would have to be for what was measured.
pub(crate) fn proposal(measured: &[Measured], budget: &Budget) -> String {
    let mut text = String::new();
    for it in measured {
        let old = budget.of(it.guard);
        let why = old.and_then(|old| Some(old.reason.split_once(": ")?.1));
        let limit = it.guard.limit_for(it.value);
        let _ = writeln!(
            text,
            "[[guard]]\nname = \"{}\"\nlimit = {limit}\nunit = \"{}\"\nmeasured = {}\nreason = \"{limit}: {}\"\n",
            it.guard.name(),
            it.guard.unit(),
            (it.value.max(0.0) * 1e3).round() / 1e3,
            why.unwrap_or("?"),
        );
    }
    text
}

fn number(value: f64) -> String {
    if value.fract() == 0.0 || value.abs() >= 1000.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.2}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guard::Guard;

    fn measured(value: impl Fn(f64) -> f64) -> (Vec<Measured>, Budget) {
        let budget = Budget::read().unwrap();
        let guard = Guard::all()[0];
        let value = value(budget.of(guard).unwrap().limit);
        let measured = Measured {
            guard,
            value,
            parts: vec![("dear::function".to_owned(), value)],
        };
        (vec![measured], budget)
    }

    #[test]
    fn what_is_at_its_limit_is_within_it() {
        let (measured, budget) = measured(|limit| limit);
        assert_eq!(failures(&measured, &budget), "");
        assert!(table(&measured, &budget).trim_end().ends_with("ok"));
    }

    #[test]
    fn what_is_over_its_limit_is_named_with_its_excess_its_parts_and_what_to_do() {
        let (measured, budget) = measured(|limit| limit * 2.0);
        let text = failures(&measured, &budget);
        let name = measured[0].guard.name();
        for words in [&*name, "(100.0 %)", "guards/budget.toml", "dear::function"] {
            assert!(text.contains(words), "{words} is not in {text}");
        }
        assert!(table(&measured, &budget).contains("OVER"));
    }

    #[test]
    fn a_limit_far_above_what_is_measured_is_pointed_out() {
        let (measured, budget) = measured(|limit| limit / 2.0);
        assert_eq!(failures(&measured, &budget), "");
        assert!(table(&measured, &budget).contains("lower the limit"));
    }
}
