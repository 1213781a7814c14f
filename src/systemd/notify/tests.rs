use std::os::unix::net::UnixDatagram;

use super::*;

/// A socket as systemd's, and the way to it.
pub(in crate::systemd) fn pair() -> (UnixDatagram, Notifier, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_nonblocking(true).unwrap();
    let notifier = Notifier::to(SocketAddrUnix::new(&path).unwrap()).unwrap();
    (socket, notifier, directory)
}

/// What has come, each message's first line.
pub(in crate::systemd) fn told(socket: &UnixDatagram) -> Vec<String> {
    let mut all = Vec::new();
    let mut bytes = [0; 4096];
    while let Ok(length) = socket.recv(&mut bytes) {
        let text = std::str::from_utf8(&bytes[..length]).unwrap();
        all.push(text.lines().next().unwrap().to_owned());
    }
    all
}

#[test]
fn of_overlapping_reloads_each_is_announced_and_the_last_end_is_the_end() {
    let (socket, notifier, _directory) = pair();
    notifier.ready();
    assert_eq!(told(&socket), ["READY=1"]);
    let one = notifier.reloading();
    let two = notifier.reloading();
    assert_eq!(told(&socket), ["RELOADING=1", "RELOADING=1"]);
    drop(one);
    assert_eq!(told(&socket), [""; 0]);
    let three = notifier.reloading();
    drop(two);
    drop(three);
    assert_eq!(told(&socket), ["RELOADING=1", "READY=1"]);
}

#[test]
fn a_reload_before_the_service_is_up_does_not_make_it_so() {
    let (socket, notifier, _directory) = pair();
    drop(notifier.reloading());
    assert_eq!(told(&socket), [""; 0]);
    let during = notifier.reloading();
    notifier.ready();
    // Up, and reloading.
    assert_eq!(told(&socket), ["READY=1", "RELOADING=1"]);
    drop(during);
    assert_eq!(told(&socket), ["READY=1"]);
}

#[test]
fn after_stopping_neither_readiness_nor_reloads_are_told() {
    let (socket, notifier, _directory) = pair();
    notifier.ready();
    let during = notifier.reloading();
    told(&socket);
    assert!(notifier.stopping(Duration::from_secs(15)));
    assert_eq!(
        told(&socket),
        ["STOPPING=1", "EXTEND_TIMEOUT_USEC=15000000"]
    );
    drop(during);
    drop(notifier.reloading());
    notifier.ready();
    assert!(!notifier.stopping(Duration::from_secs(15)));
    assert_eq!(told(&socket), [""; 0]);
}

#[test]
fn what_systemd_has_no_room_for_waits_in_its_order_and_what_can_be_repeated_is_left_out() {
    let (socket, notifier, _directory) = pair();
    notifier.ready();
    // The kernel queues so many datagrams (net.unix.max_dgram_qlen), and no more.
    let mut sent = 1;
    while notifier.flush() {
        drop(notifier.reloading());
        sent += 2;
        assert!(sent < 100_000, "the queue has no end");
    }
    notifier.beat();
    notifier.status("left out");
    let last = notifier.reloading();
    let mut all = Vec::new();
    while !notifier.flush() {
        all.extend(told(&socket));
    }
    all.extend(told(&socket));
    drop(last);
    all.extend(told(&socket));
    assert_eq!(all.len(), sent + 2);
    assert!(
        !all.iter()
            .any(|it| it == "WATCHDOG=1" || it.contains("left out"))
    );
    let (reloads, ends): (Vec<_>, Vec<_>) = all.chunks(2).map(|it| (&it[0], it.get(1))).unzip();
    assert!(reloads.iter().all(|it| *it == "READY=1"), "{all:?}");
    assert!(ends.iter().flatten().all(|it| *it == "RELOADING=1"));
}

#[test]
fn a_line_is_one_line_and_is_told_once() {
    let (socket, notifier, _directory) = pair();
    notifier.status("all well\nREADY=1");
    notifier.status("all well\nREADY=1");
    assert_eq!(told(&socket), ["STATUS=all well READY=1"]);
    notifier.status(&"ä".repeat(5_000));
    let long = &told(&socket)[0];
    assert!(long.len() < 700 && long.ends_with('…'), "{long}");
}

#[tokio::test(start_paused = true)]
async fn settling_waits_until_what_was_sent_is_read_and_no_longer_than_it_may() {
    let (socket, notifier, _directory) = pair();
    let began = tokio::time::Instant::now();
    // Nobody reads: the pipe's other end lies in the socket's queue.
    notifier.settle().await;
    assert!(began.elapsed() >= SETTLE);
    // Reading without taking the descriptor closes it.
    assert_eq!(told(&socket), ["BARRIER=1"]);
    let began = tokio::time::Instant::now();
    let ((), read) = tokio::join!(notifier.settle(), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        told(&socket)
    });
    assert_eq!(read, ["BARRIER=1"]);
    assert!((100..1_000).contains(&began.elapsed().as_millis()));
}

#[test]
fn where_nobody_listens_nothing_is_kept() {
    let (socket, notifier, directory) = pair();
    assert!(notifier.keep("name", socket.as_fd()));
    drop((socket, directory));
    let other = UnixDatagram::unbound().unwrap();
    assert!(!notifier.keep("name", other.as_fd()));
    assert!(!Notifier::default().keep("name", other.as_fd()));
}
