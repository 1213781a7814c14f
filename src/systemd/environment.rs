//! The variables by which systemd says what it gives.

use std::collections::BTreeMap;
use std::time::Duration;

use rustix::net::SocketAddrUnix;

/// What the variables say.
#[derive(Debug)]
pub(super) struct Environment {
    /// The names of the descriptors 3, 4, …
    pub(super) descriptors: Vec<String>,
    pub(super) notify: Option<SocketAddrUnix>,
    pub(super) watchdog: Option<Duration>,
    /// How many descriptors are kept for us.
    pub(super) store: usize,
    /// What is not for us, or cannot be used.
    pub(super) notes: Vec<String>,
}

impl Environment {
    /// # Errors
    /// Descriptors were passed, and it cannot be said which.
    pub(super) fn read(
        environment: &BTreeMap<String, String>,
        own_pid: u32,
    ) -> Result<Self, String> {
        let mut notes = Vec::new();
        let get = |name: &str| environment.get(name).map(String::as_str);
        // Variables are inherited by whatever a process starts: each of these says whom it is for.
        let mut is_ours = |pid_of: &str, what: &str| match get(pid_of) {
            Some(pid) if pid.parse() != Ok(own_pid) => {
                notes.push(format!(
                    "{pid_of} is {pid:?} and this process is {own_pid}: {what} another one"
                ));
                false
            }
            _ => true,
        };
        let descriptors = match (get("LISTEN_PID"), get("LISTEN_FDS")) {
            (Some(_), Some(count)) if is_ours("LISTEN_PID", "the sockets were passed to") => {
                names(count, get("LISTEN_FDNAMES"))?
            }
            _ => Vec::new(),
        };
        let watchdog = match get("WATCHDOG_USEC") {
            Some(usec) if is_ours("WATCHDOG_PID", "the watchdog looks at") => {
                match usec.parse::<u64>() {
                    Ok(usec) if usec > 0 => Some(Duration::from_micros(usec)),
                    _ => {
                        notes.push(format!("WATCHDOG_USEC={usec:?} is not a time"));
                        None
                    }
                }
            }
            _ => None,
        };
        let notify = get("NOTIFY_SOCKET")
            .filter(|text| !text.is_empty())
            .and_then(|text| match address(text) {
                Some(address) => Some(address),
                None => {
                    notes.push(format!(
                        "NOTIFY_SOCKET={text:?} is not the address of a unix socket: systemd is told nothing"
                    ));
                    None
                }
            });
        let store = match get("FDSTORE").map(str::parse) {
            // Where nobody listens, nothing can be kept.
            Some(Ok(count)) if notify.is_some() => count,
            Some(Err(_)) => {
                notes.push("FDSTORE is not a number: listeners close with the process".to_owned());
                0
            }
            Some(Ok(_)) | None => 0,
        };
        Ok(Self {
            descriptors,
            notify,
            watchdog,
            store,
            notes,
        })
    }
}

/// The name of each descriptor; without names systemd's own word for that.
fn names(count: &str, names: Option<&str>) -> Result<Vec<String>, String> {
    /// More than a process may open is a mistake, and must not become memory.
    const MOST: usize = 1 << 20;
    let count = match count.parse() {
        Ok(count) if count <= MOST => count,
        _ => {
            return Err(format!(
                "LISTEN_FDS={count:?} is not a number of descriptors"
            ));
        }
    };
    let Some(names) = names else {
        return Ok(vec!["unknown".to_owned(); count]);
    };
    // No descriptor has no name, and one descriptor may have an empty one.
    let names: Vec<String> = match count {
        0 => Vec::new(),
        _ => names.split(':').map(str::to_owned).collect(),
    };
    if names.len() != count {
        return Err(format!(
            "LISTEN_FDNAMES has {} names for LISTEN_FDS={count} descriptors",
            names.len()
        ));
    }
    Ok(names)
}

/// A path, or `@` and an abstract name.
fn address(text: &str) -> Option<SocketAddrUnix> {
    let address = match text.strip_prefix('@') {
        Some(name) => SocketAddrUnix::new_abstract_name(name.as_bytes()),
        None if text.starts_with('/') => SocketAddrUnix::new(text),
        None => return None,
    };
    address.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Environment, String> {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Environment::read(&variables.iter().map(owned).collect(), 42)
    }

    #[test]
    fn without_systemd_there_is_nothing() {
        let nothing = read(&[]).unwrap();
        assert!(nothing.descriptors.is_empty());
        assert!(nothing.notify.is_none());
        assert_eq!((nothing.watchdog, nothing.store), (None, 0));
        assert!(nothing.notes.is_empty());
    }

    #[test]
    fn descriptors_have_their_names_and_without_names_systemd_s_word() {
        let names = |variables: &[(&str, &str)]| read(variables).unwrap().descriptors;
        let (pid, two) = (("LISTEN_PID", "42"), ("LISTEN_FDS", "2"));
        assert_eq!(
            names(&[pid, two, ("LISTEN_FDNAMES", "billing:tlsward.socket")]),
            ["billing", "tlsward.socket"]
        );
        assert_eq!(names(&[pid, two]), ["unknown", "unknown"]);
        assert!(names(&[pid, ("LISTEN_FDS", "0"), ("LISTEN_FDNAMES", "")]).is_empty());
        // As sd_listen_fds has it.
        assert!(names(&[two]).is_empty());
    }

    #[test]
    fn what_is_for_another_process_is_left_alone_and_said() {
        let given = read(&[
            ("LISTEN_PID", "41"),
            ("LISTEN_FDS", "1"),
            ("WATCHDOG_PID", "41"),
            ("WATCHDOG_USEC", "1000"),
        ])
        .unwrap();
        assert!(given.descriptors.is_empty());
        assert_eq!(given.watchdog, None);
        assert_eq!(given.notes.len(), 2, "{:?}", given.notes);
        assert!(given.notes[0].contains("LISTEN_PID is \"41\""));
        assert!(given.notes[1].contains("WATCHDOG_PID is \"41\""));
    }

    #[test]
    fn descriptors_that_cannot_be_told_apart_are_an_error() {
        let pid = ("LISTEN_PID", "42");
        for (variables, message) in [
            (vec![pid, ("LISTEN_FDS", "two")], "LISTEN_FDS=\"two\""),
            (vec![pid, ("LISTEN_FDS", "-1")], "LISTEN_FDS=\"-1\""),
            (vec![pid, ("LISTEN_FDS", "9999999999")], "LISTEN_FDS="),
            (
                vec![pid, ("LISTEN_FDS", "2"), ("LISTEN_FDNAMES", "billing")],
                "1 names for LISTEN_FDS=2",
            ),
        ] {
            let error = read(&variables).unwrap_err();
            assert!(error.contains(message), "{error}");
        }
    }

    #[test]
    fn a_watchdog_without_a_pid_is_ours_and_one_without_a_time_is_none() {
        let watchdog = |usec| read(&[("WATCHDOG_USEC", usec)]).unwrap();
        assert_eq!(watchdog("30000000").watchdog, Some(Duration::from_secs(30)));
        for bad in ["0", "30s", ""] {
            assert_eq!(watchdog(bad).watchdog, None);
            assert_eq!(watchdog(bad).notes.len(), 1);
        }
    }

    #[test]
    fn the_socket_is_a_path_or_an_abstract_name() {
        for good in ["/run/systemd/notify", "@/org/freedesktop/systemd1/notify/1"] {
            assert!(read(&[("NOTIFY_SOCKET", good)]).unwrap().notify.is_some());
        }
        assert!(read(&[("NOTIFY_SOCKET", "")]).unwrap().notes.is_empty());
        for bad in [
            "vsock:2:1234",
            "run/notify",
            &format!("/{}", "x".repeat(120)),
        ] {
            let given = read(&[("NOTIFY_SOCKET", bad)]).unwrap();
            assert!(given.notify.is_none());
            assert_eq!(given.notes.len(), 1, "{bad}");
        }
    }

    #[test]
    fn a_store_needs_a_socket_to_ask_it() {
        let notify = ("NOTIFY_SOCKET", "/run/systemd/notify");
        assert_eq!(read(&[notify, ("FDSTORE", "512")]).unwrap().store, 512);
        assert_eq!(read(&[notify]).unwrap().store, 0);
        assert_eq!(read(&[("FDSTORE", "512")]).unwrap().store, 0);
        let bad = read(&[notify, ("FDSTORE", "many")]).unwrap();
        assert_eq!((bad.store, bad.notes.len()), (0, 1));
    }
}
