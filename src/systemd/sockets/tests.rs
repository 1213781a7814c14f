use std::net::TcpListener;
use std::os::unix::net::UnixListener;

use super::super::notify::tests::{pair, told};
use super::*;

fn listener() -> (OwnedFd, Listen) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = Listen::Tcp(listener.local_addr().unwrap());
    (listener.into(), listen)
}

#[test]
fn what_is_kept_is_found_again_by_its_address_and_once() {
    let (socket, listen) = listener();
    let name = kept_name(&listen, None);
    assert!(name.starts_with("tlsward-kept-127.0.0.1_"), "{name}");
    let (_systemd, notifier, _directory) = pair();
    let mut sockets = Sockets::new([(name, socket)], 10, notifier);
    let other = Listen::Tcp("127.0.0.2:1".parse().unwrap());
    assert!(sockets.take_kept(&other).is_none());
    assert!(sockets.take_kept(&listen).is_some());
    assert!(sockets.take_kept(&listen).is_none());
}

#[test]
fn names_are_such_that_systemd_takes_them_and_differ_where_the_addresses_do() {
    let tcp = |text: &str| kept_name(&Listen::Tcp(text.parse().unwrap()), None);
    let names = [
        tcp("127.0.0.1:7001"),
        tcp("127.0.0.1:7002"),
        tcp("[::1]:7001"),
        tcp("[::]:7001"),
        tcp("[fe80::1%3]:7001"),
        kept_name(
            &Listen::Unix {
                path: "/a b:c".into(),
                mode: None,
            },
            Some((1, 2)),
        ),
    ];
    let different: BTreeSet<&String> = names.iter().collect();
    assert_eq!(different.len(), names.len(), "{names:?}");
    for name in &names {
        let fine = |byte: u8| byte.is_ascii_graphic() && byte != b':';
        assert!(name.bytes().all(fine) && name.len() < 256, "{name}");
    }
}

#[test]
fn a_unix_socket_is_taken_only_if_its_file_is_still_the_one() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.sock");
    let listen = Listen::Unix {
        path: path.clone(),
        mode: None,
    };
    let listener = UnixListener::bind(&path).unwrap();
    let file = SocketFile::at(&path).unwrap();
    let name = kept_name(&listen, Some(file.id()));
    file.stays(true);
    drop(file);
    let kept = || {
        let copy = listener.try_clone().unwrap();
        [(name.clone(), OwnedFd::from(copy))]
    };
    let (systemd, notifier, _directory) = pair();
    let mut sockets = Sockets::new(kept(), 10, notifier.clone());
    let (_, file) = sockets.take_kept(&listen).unwrap();
    file.unwrap().stays(true);
    // Another socket lies there now; the first one's file is still held, so that its number stays.
    std::fs::rename(&path, directory.path().join("elsewhere")).unwrap();
    let _other = UnixListener::bind(&path).unwrap();
    let mut sockets = Sockets::new(kept(), 10, notifier);
    assert!(sockets.take_kept(&listen).is_none());
    assert!(path.exists(), "another's file was removed");
    sockets.give_up_the_rest();
    assert_eq!(told(&systemd), ["FDSTOREREMOVE=1"]);
}

#[test]
fn no_more_is_kept_than_there_is_room_for() {
    let (systemd, notifier, _directory) = pair();
    let mut sockets = Sockets::new([], 2, notifier);
    let listeners: Vec<_> = (0..3).map(|_| listener()).collect();
    let kept = listeners
        .iter()
        .map(|(socket, listen)| sockets.keep(listen, socket.as_fd(), None));
    assert_eq!(kept.collect::<Vec<_>>(), [true, true, false]);
    assert_eq!(told(&systemd), ["FDSTORE=1", "FDSTORE=1"]);
    // Kept already.
    let (socket, listen) = &listeners[0];
    assert!(sockets.keep(listen, socket.as_fd(), None));
    assert_eq!(told(&systemd), [""; 0]);
}

#[test]
fn without_room_nothing_is_kept_and_nothing_is_said() {
    let (systemd, notifier, _directory) = pair();
    let mut sockets = Sockets::new([], 0, notifier);
    let (socket, listen) = listener();
    assert!(!sockets.keep(&listen, socket.as_fd(), None));
    assert_eq!(told(&systemd), [""; 0]);
}

#[test]
fn what_is_kept_and_useless_is_given_back_but_nothing_that_is_in_use() {
    let (systemd, notifier, _directory) = pair();
    let (used, listen) = listener();
    let name = kept_name(&listen, None);
    // A socket that does not listen has nothing to serve with.
    let dead = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let (left, _) = listener();
    let given = [
        (name, used),
        (format!("{OURS}dead"), dead.into()),
        (format!("{OURS}left"), left),
    ];
    let mut sockets = Sockets::new(given, 10, notifier);
    assert!(sockets.take_kept(&listen).is_some());
    sockets.give_up_the_rest();
    assert_eq!(told(&systemd), ["FDSTOREREMOVE=1", "FDSTOREREMOVE=1"]);
    sockets.give_up_the_rest();
    assert_eq!(told(&systemd), [""; 0]);
}
