//! The keys of `[sandbox]`.

use super::{Default, Key, Kind};

pub(super) const SANDBOX: &[Key] = &[
    Key {
        name: "enabled",
        kind: Kind::Bool,
        default: Default::Is("true"),
        doc: "Whether the process gives up what it does not need (Landlock, seccomp). Counts from the next start on.",
        elsewhere: &[("HAProxy", "chroot")],
    },
    Key {
        name: "read",
        kind: Kind::Texts("a path", "/etc/pki/rotated"),
        default: Default::Is("[]"),
        doc: "Files and directories that may be read beside those that the configuration names. Counts from the next start on.",
        elsewhere: &[],
    },
    Key {
        name: "connect_ports",
        kind: Kind::Ports,
        default: Default::Is("\"used\""),
        doc: "TCP ports that may be dialled: those in use at the start (\"used\"), every port (\"any\"), or those in use and a list. Counts from the next start on.",
        elsewhere: &[],
    },
    Key {
        name: "bind_ports",
        kind: Kind::Ports,
        default: Default::Is("\"used\""),
        doc: "TCP ports that may be listened on, in the same words. Counts from the next start on.",
        elsewhere: &[],
    },
];
