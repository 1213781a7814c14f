//! No proxy at all: callers talk to the upstream, and that without TLS.

use std::io;
use std::process::Command;

use super::{Proxy, Role, Setup};
use crate::workload::Workload;

/// What generator and upstream alone take: the part of a latency that is no proxy's.
pub(super) struct Direct;

impl Proxy for Direct {
    fn name(&self) -> &'static str {
        "direct"
    }

    fn version(&self) -> String {
        "no proxy, no TLS".to_owned()
    }

    fn role(&self) -> Role {
        Role::Floor
    }

    fn sits_out(&self, workload: Workload) -> Option<&'static str> {
        (workload != Workload::Latency)
            .then_some("there is no process whose cost could be measured")
    }

    fn prepare(&self, _setup: &Setup) -> io::Result<Option<Command>> {
        Ok(None)
    }
}
