//! `TLSWARD_` variables: they stand for keys of `[defaults]`, `[admin]` and `[log]`, and override
//! them, as Kong's guide to upstream mTLS configures it for all services at once.

use std::collections::BTreeMap;
use std::path::Path;

use super::Verify;
use super::document::{
    AdminTable, LogTable, ServiceTable, Slot, VERIFY, admin_listen, verify_depth,
};
use super::keys::nearest;
use super::problem::{At, Findings, Wrong};
use super::value::{self, Parsed};

const VERIFY_VARIABLE: &str = "TLSWARD_TLS_VERIFY";
const VERIFY_DEPTH: &str = "TLSWARD_TLS_VERIFY_DEPTH";
const CA: &str = "TLSWARD_TLS_CA";
const CERT: &str = "TLSWARD_TLS_CERT";
const KEY: &str = "TLSWARD_TLS_KEY";
const ADMIN_LISTEN: &str = "TLSWARD_ADMIN_LISTEN";
const LOG: &str = "TLSWARD_LOG";

/// Every variable, with the key that it stands for.
pub(super) const VARIABLES: [(&str, &str); 8] = [
    (VERIFY_VARIABLE, "defaults.tls.verify"),
    (VERIFY_DEPTH, "defaults.tls.verify_depth"),
    (CA, "defaults.tls.ca"),
    (CERT, "defaults.tls.cert"),
    (KEY, "defaults.tls.key"),
    (ADMIN_LISTEN, "admin.listen"),
    (LOG, "log.filter"),
    // Read by the command line: the path of the file.
    ("TLSWARD_CONFIG", ""),
];

/// Reads the variables: those of services into a table of their own, between a service's table
/// and `[defaults]`; the others over what the file says.
pub(super) fn read(
    environment: &BTreeMap<String, String>,
    base: &Path,
    admin: &mut AdminTable,
    log: &mut LogTable,
    findings: &mut Findings<'_>,
) -> ServiceTable {
    report_unknown(environment, findings);
    let mut reader = Variables {
        environment,
        findings,
    };
    reader.over(&mut admin.listen, ADMIN_LISTEN, |text| {
        admin_listen(text, base)
    });
    reader.over(&mut log.filter, LOG, value::log_filter);

    let mut table = ServiceTable::default();
    let tls = &mut table.tls;
    reader.over(&mut tls.verify, VERIFY_VARIABLE, verify);
    reader.over(&mut tls.verify_depth, VERIFY_DEPTH, verify_depth);
    reader.over(&mut tls.ca, CA, |text| value::ca(text, base));
    reader.over(&mut tls.cert, CERT, |text| value::path(text, base));
    reader.over(&mut tls.key, KEY, |text| value::path(text, base));
    table
}

/// The key that a variable stands for.
fn stands_for(variable: &str) -> &'static str {
    VARIABLES
        .iter()
        .find(|(name, _)| *name == variable)
        .map_or("", |(_, key)| key)
}

struct Variables<'r, 'f> {
    environment: &'r BTreeMap<String, String>,
    findings: &'r mut Findings<'f>,
}

impl Variables<'_, '_> {
    /// Replaces what is in the slot, if the variable is set.
    fn over<T>(
        &mut self,
        slot: &mut Slot<T>,
        variable: &'static str,
        parse: impl FnOnce(&str) -> Parsed<T>,
    ) {
        let Some(text) = self.environment.get(variable) else {
            return;
        };
        *slot = match parse(text) {
            Ok(value) => Slot::Set(value, At::Variable(variable)),
            Err(wrong) => {
                self.findings
                    .report_variable(variable, stands_for(variable), wrong);
                Slot::Invalid
            }
        };
    }
}

/// A variable with our prefix that nobody reads would be a setting that silently does nothing.
fn report_unknown(environment: &BTreeMap<String, String>, findings: &mut Findings<'_>) {
    let known = || VARIABLES.iter().map(|(name, _)| *name);
    for variable in environment
        .keys()
        .filter(|name| name.starts_with("TLSWARD_"))
    {
        if known().any(|name| name == variable) || is_service_link(variable) {
            continue;
        }
        let fix = match nearest(variable, known()) {
            Some(name) => format!("did you mean {name}?"),
            None => format!(
                "unset it; known are {}",
                known().collect::<Vec<_>>().join(", ")
            ),
        };
        findings.report_variable(variable, "", Wrong::new("no setting has this name", fix));
    }
}

/// Whether Kubernetes has set this variable: next to a Service called `tlsward` (or `tlsward-…`)
/// every container finds `TLSWARD_SERVICE_HOST`, `TLSWARD_PORT_443_TCP_ADDR` and the like.
fn is_service_link(variable: &str) -> bool {
    let protocol = ["_TCP", "_UDP", "_SCTP"];
    variable.ends_with("_SERVICE_HOST")
        || variable.contains("_SERVICE_PORT")
        || variable.ends_with("_PORT")
        || (variable.contains("_PORT_") && protocol.iter().any(|name| variable.contains(name)))
}

/// `verify`, and Kong's `on` and `off`.
fn verify(text: &str) -> Parsed<Verify> {
    match text {
        "on" | "true" => Ok(Verify::Full),
        "off" | "false" => Ok(Verify::None),
        _ => value::choice(text, &VERIFY),
    }
}
