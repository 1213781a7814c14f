//! The line of `systemctl status`. Whoever has an account may read it, so what stands in files does
//! not: words, names, places, dates.

use std::fmt::Write as _;

use crate::clock;
use crate::failure::{Explained, Reason};
use crate::status::{ProcessState, ServiceState, ServiceStatus, Status};

const DAY: i64 = 86_400;

/// While the process leaves.
pub(super) fn stopping(open: u64) -> String {
    format!("stopping: {} open", connections(open))
}

fn connections(open: u64) -> String {
    match open {
        1 => "1 connection".to_owned(),
        open => format!("{open} connections"),
    }
}

/// What is going on; `open` are the connections, `now` is in seconds since 1970.
pub(super) fn line(status: &Status, open: u64, now: i64) -> String {
    let mut line = match &status.config.refused {
        Some(why) => format!(
            "configuration refused ({}), the one from before goes on; ",
            self::why(why)
        ),
        None => String::new(),
    };
    if status.state == ProcessState::Degraded {
        line.push_str("degraded: ");
    }
    let services = &status.services;
    let ready = services.iter().filter(|it| it.state == ServiceState::Ready);
    let _ = write!(
        line,
        "{} of {} services ready, {}",
        ready.count(),
        services.len(),
        connections(open)
    );
    if let Some(trouble) = trouble(services, status.discovery.as_ref()) {
        let _ = write!(line, "; {trouble}");
    }
    if let Some(expiry) = nearest_expiry(services, now) {
        let _ = write!(line, "; nearest expiry: {expiry}");
    }
    line
}

/// Why something was refused. Of a mistake in the configuration its place and key, and not the text
/// that stands there.
pub(crate) fn why(why: &Explained) -> String {
    match why.reason {
        Reason::BadConfig => {
            let parts: Vec<&str> = why.detail.splitn(4, ": ").take(3).collect();
            format!("{}: {}", why.reason, parts.join(": "))
        }
        reason => format!("{reason}: {}", why.detail),
    }
}

/// The first service that something is wrong with, and how many more there are.
fn trouble(services: &[ServiceStatus], discovery: Option<&Explained>) -> Option<String> {
    let mut troubled = services.iter().filter_map(|service| {
        let why = service.problem.as_ref()?;
        Some(format!("{}: {}", service.name, why.reason))
    });
    let first = troubled
        .next()
        .or_else(|| Some(format!("discovery: {}", discovery?.reason)))?;
    Some(match troubled.count() {
        0 => first,
        more => format!("{first}, and {more} more"),
    })
}

/// Of the client certificates in use.
fn nearest_expiry(services: &[ServiceStatus], now: i64) -> Option<String> {
    let leaves = services.iter().filter_map(|service| {
        let leaf = service.identity.as_ref()?.chain.first()?;
        Some((leaf.not_after, &service.name))
    });
    let (not_after, name) = leaves.min()?;
    let date = clock::rfc3339(not_after);
    let date = date.split('T').next().unwrap_or_default();
    let left = match (not_after - now).div_euclid(DAY) {
        ..0 => "expired".to_owned(),
        0 => "less than a day".to_owned(),
        1 => "1 day".to_owned(),
        days => format!("{days} days"),
    };
    Some(format!("{name}, {date} ({left})"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::tests::{certificate, service, status, waiting};

    fn until(name: &str, not_after: i64) -> ServiceStatus {
        let mut service = service(name);
        if let Some(identity) = &mut service.identity {
            identity.chain = vec![certificate("CN=leaf", not_after)];
        }
        service
    }

    #[test]
    fn counts_and_the_nearest_expiry_are_said() {
        // 2026-12-01T00:00:00Z
        let soon = 1_796_083_200;
        let services = vec![until("audit", soon + DAY), until("billing", soon)];
        let status = status(ProcessState::Ready, services);
        assert_eq!(
            line(&status, 12, soon - 7 * DAY),
            "2 of 2 services ready, 12 connections; nearest expiry: billing, 2026-12-01 (7 days)"
        );
        for (now, left) in [
            (soon - DAY, "(1 day)"),
            (soon - 1, "(less than a day)"),
            (soon + 1, "(expired)"),
        ] {
            assert!(line(&status, 1, now).ends_with(left));
        }
        assert!(line(&status, 1, soon).contains(", 1 connection;"));
    }

    #[test]
    fn a_service_that_cannot_serve_is_named_with_its_reason() {
        let services = vec![service("a"), waiting("b"), waiting("c")];
        let status = status(ProcessState::Degraded, services);
        let line = line(&status, 0, 0);
        assert!(
            line.starts_with(
                "degraded: 1 of 3 services ready, 0 connections; b: identity_missing, and 1 more; "
            ),
            "{line}"
        );
    }

    #[test]
    fn a_refused_configuration_comes_first_with_its_place_and_without_its_text() {
        let mut status = status(ProcessState::Ready, vec![service("a")]);
        status.config.refused = Some(Explained::new(
            Reason::BadConfig,
            "2 mistakes; the first: /etc/tlsward/config.toml:2:10: services.a.listen: \"hunter2\" is not a listener",
        ));
        let line = line(&status, 0, 0);
        assert!(
            line.starts_with(
                "configuration refused (bad_config: 2 mistakes; the first: \
                 /etc/tlsward/config.toml:2:10: services.a.listen), the one from before goes on; \
                 1 of 1 services ready"
            ),
            "{line}"
        );
        assert!(!line.contains("hunter2"));
    }

    #[test]
    fn other_refusals_keep_their_particulars() {
        let why = why(&Explained::new(
            Reason::BindFailed,
            "cannot bind 127.0.0.1:1: Permission denied",
        ));
        assert_eq!(
            why,
            "bind_failed: cannot bind 127.0.0.1:1: Permission denied"
        );
    }

    #[test]
    fn the_end_is_told_with_what_is_still_open() {
        assert_eq!(stopping(3), "stopping: 3 connections open");
        assert_eq!(stopping(1), "stopping: 1 connection open");
    }
}
