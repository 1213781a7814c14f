//! A stopped thread is noticed.

use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};

use super::Stage;
use crate::support::scene::visit;
use crate::support::systemd::Systemd;
use crate::support::within;

/// Stops one thread by ptrace(2) until its standard input ends. A debugger would stop all of them.
const STOP_ONE_THREAD: &str = r#"
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long] * 4
PTRACE_SEIZE, PTRACE_INTERRUPT, PTRACE_DETACH, ALL = 0x4206, 0x4207, 17, 0x40000000
tid = int(sys.argv[1])
def ptrace(request):
    if libc.ptrace(request, tid, 0, 0) < 0:
        sys.exit("ptrace: " + os.strerror(ctypes.get_errno()))
ptrace(PTRACE_SEIZE)
ptrace(PTRACE_INTERRUPT)
os.waitpid(tid, ALL)
os.write(1, b"!")
sys.stdin.read()
ptrace(PTRACE_DETACH)
"#;

struct Stopped(Child);

impl Stopped {
    async fn thread(tid: u32) -> Self {
        let mut child = Command::new("python3")
            .args(["-c", STOP_ONE_THREAD, &tid.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("python3 is there: apt install python3");
        let mut stopped = [0];
        let stdout = child.stdout.as_mut().unwrap();
        within("the thread to stop", stdout.read_exact(&mut stopped))
            .await
            .expect("this process may trace what it starts");
        Self(child)
    }

    async fn go_on(mut self) {
        self.0.stdin.take().unwrap().shutdown().await.unwrap();
        let ended = within("the tracer to end", self.0.wait()).await.unwrap();
        assert!(ended.success());
    }
}

fn threads_called(name: &str, pid: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let is_it = |tid: &u32| {
        let comm = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/comm"));
        comm.is_ok_and(|comm| comm.trim() == name)
    };
    tasks
        .filter_map(|task| task.unwrap().file_name().to_str()?.parse().ok())
        .filter(is_it)
        .collect()
}

#[tokio::test]
async fn beats_come_twice_in_the_time_and_none_while_one_worker_hangs() {
    const WATCHDOG: Duration = Duration::from_secs(2);
    let stage = Stage::new().await;
    let systemd = Systemd::new(&stage.pki).with_watchdog(WATCHDOG);
    let config = stage.config.clone().top("workers = 2");
    let proxy = systemd.start(&stage.pki, &config).await;
    let beats = |from: usize| {
        let all = systemd.messages().all();
        let beats = all
            .into_iter()
            .skip(from)
            .filter(|it| it.says("WATCHDOG=1"));
        beats.map(|it| it.at).collect::<Vec<Instant>>()
    };
    let mark = systemd.messages().mark();
    crate::support::until("four beats", async || {
        (beats(mark).len() >= 4).then_some(())
    })
    .await;
    let four = beats(mark);
    for pair in four.windows(2) {
        let between = pair[1] - pair[0];
        assert!(between < WATCHDOG, "{between:?}");
        assert!(between > WATCHDOG / 4, "{between:?}");
    }

    let threads = threads_called("worker-1", proxy.pid());
    let stopped = Stopped::thread(threads[0]).await;
    let warned = proxy
        .wait_for_log("the worker that hangs", |line| {
            line.text("message")
                .is_some_and(|it| it.contains("a worker thread does not run"))
        })
        .await;
    assert_eq!(warned.get("worker"), Some(&serde_json::json!(1)));
    let silent = systemd.messages().mark();
    // The main thread answers all the while: its status is no sign of life.
    let until_killed = Instant::now() + WATCHDOG * 2;
    while Instant::now() < until_killed {
        assert_eq!(proxy.get("/livez").await.code, 200);
    }
    assert_eq!(beats(silent).len(), 0);

    stopped.go_on().await;
    systemd.told_after(silent, "WATCHDOG=1").await;
    proxy
        .wait_for_log("the worker to run again", |line| {
            line.has("message", "every worker thread runs again")
        })
        .await;
    visit(&stage.service).await;
}

#[tokio::test]
async fn a_control_that_waits_for_a_file_is_alive() {
    const WATCHDOG: Duration = Duration::from_millis(400);
    let stage = Stage::new().await;
    let systemd = Systemd::new(&stage.pki).with_watchdog(WATCHDOG);
    let proxy = systemd.start(&stage.pki, &stage.config).await;
    // Files are read on these threads; one that does not come back is a network file system that is
    // gone. They stay for ten seconds after they have read something.
    let mut stopped = Vec::new();
    let threads = threads_called("tokio-rt-worker", proxy.pid());
    assert!(!threads.is_empty(), "no thread has read a file");
    for thread in threads {
        stopped.push(Stopped::thread(thread).await);
    }
    let mark = systemd.messages().mark();
    proxy.signal(rustix::process::Signal::HUP);
    systemd.told_after(mark, "RELOADING=1").await;
    let during = systemd.messages().mark();
    for _ in 0..4 {
        let mark = systemd.messages().mark();
        systemd.told_after(mark, "WATCHDOG=1").await;
    }
    let all = systemd.messages().all();
    assert!(!all.iter().skip(during).any(|it| it.says("READY=1")));
    visit(&stage.service).await;
    for stopped in stopped {
        stopped.go_on().await;
    }
    systemd.told_after(during, "READY=1").await;
}
