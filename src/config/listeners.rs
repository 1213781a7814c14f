//! No two listeners may want the same address.

use std::collections::HashMap;
use std::path::Path;

use super::Listen;
use super::problem::{At, Findings, Wrong};

/// A listener and where it was asked for.
pub(super) struct Claim {
    pub(super) listen: Listen,
    /// The key, for example `services.billing.listen`.
    pub(super) key: String,
    /// `None` is the built-in default.
    pub(super) at: Option<At>,
}

/// Reports each listener that overlaps one further up, at the lower of the two places.
pub(super) fn report_overlaps(mut claims: Vec<Claim>, findings: &mut Findings<'_>) {
    // Built-in first: it has no place at which it could be reported.
    claims.sort_by_key(|claim| match claim.at {
        None => (0, 0),
        Some(At::Span { start, .. }) => (1, start),
        Some(At::Variable(_)) => (2, 0),
    });
    // Only listeners with the same port, or the same path, can overlap.
    let mut earlier: HashMap<Group<'_>, Vec<&Claim>> = HashMap::new();
    for claim in &claims {
        let group = earlier.entry(Group::of(&claim.listen)).or_default();
        let other = group
            .iter()
            .find(|other| other.listen.overlaps(&claim.listen));
        if let (Some(other), Some(at)) = (other, claim.at) {
            let place = match other.at {
                Some(at) => findings.describe(at),
                None => "the built-in default".to_owned(),
            };
            let reason = if other.listen == claim.listen {
                format!("{} is also {} ({place})", claim.listen, other.key)
            } else {
                format!(
                    "{} overlaps {} of {} ({place})",
                    claim.listen, other.listen, other.key
                )
            };
            findings.report(
                at,
                claim.key.as_str(),
                Wrong::new(reason, "give each its own port or path"),
            );
        }
        group.push(claim);
    }
}

#[derive(PartialEq, Eq, Hash)]
enum Group<'l> {
    Port(u16),
    Path(&'l Path),
}

impl<'l> Group<'l> {
    fn of(listen: &'l Listen) -> Self {
        match listen {
            Listen::Tcp(address) => Self::Port(address.port()),
            Listen::Unix { path, .. } => Self::Path(path),
        }
    }
}
