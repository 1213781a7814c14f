//! What the built program costs, seen from outside: its system calls, as strace counts them, and
//! its memory.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use crate::pki::Pki;
use crate::program::Program;
use crate::upstream::Upstream;

/// System calls by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Calls(BTreeMap<String, u64>);

/// What one time costs, by system call; the most frequent first.
pub(crate) type Slope = Vec<(String, f64)>;

/// Connections in the shorter and in the longer run.
const CONNECTIONS: (u64, u64) = (20, 220);

/// 64 KiB pieces in the shorter and in the longer run. The shorter is long enough for the
/// sockets' buffers to have grown as far as they do.
const PIECES: (u64, u64) = (1024, 5120);
const PIECE: u64 = 64 * 1024;

/// Calls that come to less than this for each connection are no connection's: they are those of
/// timers and threads that come and go by the clock, and of a heap that grows.
const OWN: f64 = 0.2;

/// Connections held.
const HELD: (usize, usize) = (200, 1200);

/// What a connection costs.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Connection {
    /// Waiting for readiness apart.
    pub(crate) calls: Slope,
    /// How often it is waited: less often where more is found ready at once, so a busy machine
    /// does change it.
    pub(crate) waits: f64,
}

impl Connection {
    fn of(slope: Slope) -> Self {
        let (waits, calls): (Slope, Slope) = slope
            .into_iter()
            .filter(|(_, calls)| *calls >= OWN)
            .partition(|(name, _)| {
                ["epoll_wait", "epoll_pwait", "epoll_pwait2"].contains(&&**name)
            });
        Self {
            calls,
            waits: waits.iter().map(|(_, waits)| waits).sum(),
        }
    }
}

/// System calls of a connection with one byte each way and an orderly end, callers one after
/// another; each handshake resumed, or each a full one.
///
/// # Errors
/// As [`Program::start`]; or the upstream saw other handshakes.
pub(crate) fn connections(binary: &Path, resumed: bool) -> io::Result<Connection> {
    let tickets = if resumed { 2 } else { 0 };
    let run = |count: u64| {
        let (pki, upstream) = upstream(tickets)?;
        let program = Program::start(binary, &pki, upstream.address, true)?;
        let before = upstream.handshakes();
        for _ in 0..count {
            program.connection()?;
        }
        let after = upstream.handshakes();
        let seen = (after.0 - before.0, after.1 - before.1);
        if seen != (count, if resumed { count } else { 0 }) {
            let what = format!("of {count} connections the upstream saw {seen:?} (all, resumed)");
            return Err(io::Error::other(what));
        }
        Calls::parse(&program.stop()?)
    };
    let slope = slope(&run(CONNECTIONS.0)?, &run(CONNECTIONS.1)?, CONNECTIONS);
    Ok(Connection::of(slope))
}

/// System calls per 64 KiB of one large transfer.
///
/// # Errors
/// As [`Program::start`].
pub(crate) fn transfer(binary: &Path, up: bool) -> io::Result<Slope> {
    let run = |pieces: u64| {
        let (pki, upstream) = upstream(0)?;
        let program = Program::start(binary, &pki, upstream.address, true)?;
        if up {
            program.send(pieces * PIECE)?;
        } else {
            program.receive(pieces * PIECE)?;
        }
        Calls::parse(&program.stop()?)
    };
    Ok(slope(&run(PIECES.0)?, &run(PIECES.1)?, PIECES))
}

/// Bytes of user memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    /// After one connection that has ended.
    pub(crate) start: f64,
    /// The part of it that is no file's.
    pub(crate) start_anonymous: f64,
    /// Of each connection that is held and idle; none of it is a file's.
    pub(crate) connection: f64,
}

/// The middle one of three runs each: a handshake's memory may or may not find a gap that the one
/// before has left.
///
/// # Errors
/// As [`Program::start`].
pub(crate) fn memory(binary: &Path) -> io::Result<Memory> {
    let runs = [run_idle(binary)?, run_idle(binary)?, run_idle(binary)?];
    let middle = |of: fn(&Memory) -> f64| {
        let mut values = runs.each_ref().map(of);
        values.sort_by(f64::total_cmp);
        values[1]
    };
    Ok(Memory {
        start: middle(|memory| memory.start),
        start_anonymous: middle(|memory| memory.start_anonymous),
        connection: middle(|memory| memory.connection),
    })
}

fn run_idle(binary: &Path) -> io::Result<Memory> {
    let (pki, upstream) = upstream(0)?;
    let program = Program::start(binary, &pki, upstream.address, false)?;
    let start = program.memory()?;
    let mut held = Vec::new();
    let mut hold = |count| {
        while held.len() < count {
            held.push(program.hold()?);
        }
        program.memory()
    };
    let (fewer, more) = (hold(HELD.0)?, hold(HELD.1)?);
    let grown = more.anonymous as f64 - fewer.anonymous as f64;
    Ok(Memory {
        start: start.all as f64,
        start_anonymous: start.anonymous as f64,
        connection: grown / (HELD.1 - HELD.0) as f64,
    })
}

fn upstream(tickets: usize) -> io::Result<(Pki, Upstream)> {
    let pki = Pki::new().map_err(io::Error::other)?;
    let config = pki.server(tickets).map_err(io::Error::other)?;
    Ok((pki, Upstream::start(config)?))
}

impl Calls {
    /// Reads what `strace -c` writes: a table whose fourth column is the number of calls and whose
    /// last is the name.
    fn parse(summary: &str) -> io::Result<Self> {
        let parse = |line: &str| {
            let mut columns = line.split_whitespace();
            let calls = columns.nth(3)?.parse().ok()?;
            Some((columns.next_back()?.to_owned(), calls))
        };
        let calls: BTreeMap<_, _> = summary
            .lines()
            .filter_map(parse)
            .filter(|(name, _)| name != "total")
            .collect();
        match calls.is_empty() {
            false => Ok(Self(calls)),
            true => Err(io::Error::other(format!(
                "this is not a summary of strace:\n{summary}"
            ))),
        }
    }
}

fn slope(shorter: &Calls, longer: &Calls, counts: (u64, u64)) -> Slope {
    let mut slope: Slope = longer
        .0
        .iter()
        .map(|(name, calls)| {
            let before = shorter.0.get(name).copied().unwrap_or_default();
            let more = *calls as f64 - before as f64;
            (name.clone(), more / (counts.1 - counts.0) as f64)
        })
        .filter(|(_, calls)| *calls > 0.0)
        .collect();
    slope.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    slope
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_that_come_by_the_clock_are_not_a_connections_and_waiting_stands_apart() {
        let calls = |own, each| {
            let calls = [("mmap", own), ("read", each), ("epoll_wait", 3 * each)];
            Calls(calls.map(|(name, calls)| (name.to_owned(), calls)).into())
        };
        let slope = slope(&calls(5, 40), &calls(9, 240), (20, 120));
        let expected = Connection {
            calls: vec![("read".to_owned(), 2.0)],
            waits: 6.0,
        };
        assert_eq!(Connection::of(slope), expected);
    }

    #[test]
    fn a_summary_is_read_with_and_without_errors_and_without_its_total() {
        let summary = "\
% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 58.40    0.001001          10       100           epoll_wait
 10.00    0.000100           1        50        20 connect
------ ----------- ----------- --------- --------- ----------------
100.00    0.001714           7       150        20 total
";
        let calls = Calls::parse(summary).unwrap();
        let expected = [("connect".to_owned(), 50), ("epoll_wait".to_owned(), 100)];
        assert_eq!(calls, Calls(expected.into()));
        assert!(Calls::parse("strace: ptrace: not permitted\n").is_err());
    }
}
