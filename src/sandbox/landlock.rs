//! The rules as Landlock takes them (landlock(7)): files, TCP ports, and what lies outside of the
//! process's own domain.

use std::path::Path;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, LandlockStatus, NetPort, PathBeneath, PathFd,
    Ruleset, RulesetAttr as _, RulesetCreated, RulesetCreatedAttr as _, RulesetError,
    RulesetStatus, Scope, make_bitflags,
};

use super::ways::Identities;
use super::{Ports, Rules};

/// From which version on TCP ports are held to, and from which on signals and abstract sockets.
pub(super) const TCP: u8 = 4;
pub(super) const SCOPES: u8 = 6;

/// What the kernel was told.
#[derive(Debug)]
pub(super) struct Entered {
    /// The version of the interface.
    pub(super) abi: u8,
    pub(super) known: Known,
}

/// What Landlock holds to.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) read: Identities,
    pub(super) sockets: Identities,
    /// Held open so that the kernel does not forget it and make another one of the same name.
    _own_proc: Option<PathFd>,
}

/// Binds the calling thread, and those that it starts, to the rules.
///
/// # Errors
/// Why nothing is in force, in words.
pub(super) fn restrict(rules: &Rules) -> Result<Entered, String> {
    let mut known = Known::default();
    let status = apply(rules, &mut known).map_err(|error| format!("Landlock: {error}"))?;
    match (status.landlock, status.ruleset) {
        (LandlockStatus::NotImplemented, _) => {
            Err("this kernel has no Landlock (Linux 5.13, CONFIG_SECURITY_LANDLOCK)".to_owned())
        }
        (LandlockStatus::NotEnabled, _) => Err(
            "this kernel has Landlock switched off (add landlock to lsm= of its command line)"
                .to_owned(),
        ),
        (LandlockStatus::Available { .. }, RulesetStatus::NotEnforced) => {
            Err("Landlock enforces nothing of the rules".to_owned())
        }
        (LandlockStatus::Available { effective_abi, .. }, _) => Ok(Entered {
            abi: effective_abi as u8,
            known,
        }),
    }
}

fn apply(rules: &Rules, known: &mut Known) -> Result<landlock::RestrictionStatus, RulesetError> {
    // Every right that the fifth version knows; later ones would take what we use (the ninth: to
    // connect to sockets by path, as name services and journals are reached). Nothing is granted
    // but what follows: no write, no execution.
    let mut ruleset = Ruleset::default().handle_access(AccessFs::from_all(ABI::V5))?;
    if let Ports::These(_) = rules.bind {
        ruleset = ruleset.handle_access(AccessNet::BindTcp)?;
    }
    if let Ports::These(_) = rules.connect {
        ruleset = ruleset.handle_access(AccessNet::ConnectTcp)?;
    }
    ruleset = ruleset.scope(Scope::Signal)?;
    if !rules.abstract_sockets {
        ruleset = ruleset.scope(Scope::AbstractUnixSocket)?;
    }
    let mut ruleset = ruleset.create()?;
    for path in rules.read.iter().chain(&rules.system) {
        let rights = match path.is_dir() {
            true => make_bitflags!(AccessFs::{ReadFile | ReadDir}),
            false => AccessFs::ReadFile.into(),
        };
        ruleset = allow(ruleset, path, rights, &mut known.read)?;
    }
    for path in &rules.sockets {
        let rights = make_bitflags!(AccessFs::{MakeSock | RemoveFile});
        ruleset = allow(ruleset, path, rights, &mut known.sockets)?;
    }
    for (ports, right) in [
        (&rules.bind, AccessNet::BindTcp),
        (&rules.connect, AccessNet::ConnectTcp),
    ] {
        if let Ports::These(ports) = ports {
            for &port in ports {
                ruleset = ruleset.add_rule(NetPort::new(port, right))?;
            }
        }
    }
    known._own_proc = PathFd::new("/proc/self").ok();
    ruleset.restrict_self()
}

/// A rule for what is at `path`; none where nothing is.
fn allow(
    ruleset: RulesetCreated,
    path: &Path,
    rights: BitFlags<AccessFs>,
    identities: &mut Identities,
) -> Result<RulesetCreated, RulesetError> {
    let Ok(descriptor) = PathFd::new(path) else {
        return Ok(ruleset);
    };
    let ruleset = ruleset.add_rule(PathBeneath::new(descriptor, rights))?;
    // What it is was just opened; if it has gone since, nobody will ask for it.
    let _ = identities.add(path);
    Ok(ruleset)
}
