//! No two listeners may want the same address.

use std::collections::HashMap;
use std::path::PathBuf;

use super::problem::{At, Findings, Wrong};
use super::{Listen, ServiceName};

/// A listener and where it was asked for.
pub(super) struct Claim {
    pub(super) listen: Listen,
    /// The key, for example `services.billing.listen`.
    pub(super) key: String,
    /// `None` is the built-in default.
    pub(super) at: Option<At>,
    pub(super) owner: Owner,
}

/// Whose listener it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// An admin endpoint.
    Admin,
    Service(ServiceName),
}

/// The listeners that are given away. Only those with the same port, or the same path, can
/// overlap.
pub(super) struct Taken(HashMap<Group, Vec<Claim>>);

impl Taken {
    /// Gives the file's listeners to who asks for them. Each that overlaps one further up is
    /// reported at the lower of the two places.
    pub(super) fn by(mut claims: Vec<Claim>, findings: &mut Findings<'_>) -> Self {
        // Built-in first: it has no place at which it could be reported.
        claims.sort_by_key(|claim| match claim.at {
            None => (0, 0),
            Some(At::Span { start, .. }) => (1, start),
            Some(At::Variable(_) | At::Annotation(_) | At::Service) => (2, 0),
        });
        let mut taken = Self(HashMap::with_capacity(claims.len()));
        for claim in claims {
            if let (Some(other), Some(at)) = (taken.overlapping(&claim.listen), claim.at) {
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
            taken.add(claim);
        }
        taken
    }

    /// The claim that stands in the way of this listener.
    pub(super) fn overlapping(&self, listen: &Listen) -> Option<&Claim> {
        let group = self.0.get(&Group::of(listen))?;
        group.iter().find(|other| other.listen.overlaps(listen))
    }

    pub(super) fn add(&mut self, claim: Claim) {
        let group = self.0.entry(Group::of(&claim.listen)).or_default();
        group.push(claim);
    }
}

#[derive(PartialEq, Eq, Hash)]
enum Group {
    Port(u16),
    Path(PathBuf),
    Name(String),
}

impl Group {
    fn of(listen: &Listen) -> Self {
        match listen {
            Listen::Tcp(address) => Self::Port(address.port()),
            Listen::Unix { path, .. } => Self::Path(path.clone()),
            Listen::Systemd(name) => Self::Name(name.clone()),
        }
    }
}
