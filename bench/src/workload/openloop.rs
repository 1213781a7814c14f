//! Requests at times that are fixed in advance, whether or not the earlier ones are answered.
//!
//! A generator that waits for answers asks less of a proxy that stalls, and so hides the stall.
//! Here every latency counts from the moment at which the request was *meant* to be sent: what the
//! generator itself is late is in it, for all proxies alike.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::upstream::command;

pub(super) const CONNECTIONS: usize = 64;
pub(super) const RATE: u32 = 2000;
const MESSAGE: usize = 64;

/// For the last answers, and for any progress at all.
const PATIENCE: Duration = Duration::from_secs(10);

/// Blocks for `length`, and then until all is answered; returns the latencies in the order of the
/// answers.
///
/// # Errors
/// A connection broke, or an answer did not come in time.
pub(super) fn run(proxy: SocketAddr, length: Duration) -> io::Result<Vec<Duration>> {
    // The kernel would else be up to 50 us late with each request.
    rustix::thread::set_current_timer_slack(NonZeroU64::new(1))?;
    let mut callers = (0..CONNECTIONS)
        .map(|_| Caller::connect(proxy))
        .collect::<io::Result<Vec<_>>>()?;
    let requests = u64::from(RATE) * length.as_millis() as u64 / 1000;
    let interval = Duration::from_secs(1) / RATE;
    let mut latencies = Vec::with_capacity(requests as usize);
    let start = Instant::now() + interval;
    let due = |request: u64| start + interval.mul_f64(request as f64);
    let deadline = due(requests) + PATIENCE;
    let mut sent = 0;
    while latencies.len() < requests as usize {
        let now = Instant::now();
        while sent < requests && due(sent) <= now {
            callers[sent as usize % CONNECTIONS].ask(due(sent))?;
            sent += 1;
        }
        let until = if sent < requests { due(sent) } else { deadline };
        for ready in wait(&callers, until.saturating_duration_since(Instant::now()))? {
            callers[ready].take(&mut latencies)?;
        }
        if Instant::now() > deadline {
            let missing = requests as usize - latencies.len();
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("{missing} of {requests} requests were not answered after {PATIENCE:?}"),
            ));
        }
    }
    Ok(latencies)
}

/// The value that `per_mille` of all are not above.
pub(super) fn percentile(sorted: &[Duration], per_mille: usize) -> Duration {
    let rank = (sorted.len() * per_mille).div_ceil(1000).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}

/// One connection, with what it has asked and not heard.
struct Caller {
    stream: TcpStream,
    asked: VecDeque<Instant>,
    /// Bytes of an answer that has not come whole.
    part: usize,
}

impl Caller {
    /// Returns when one request has been answered.
    fn connect(proxy: SocketAddr) -> io::Result<Self> {
        let mut stream = TcpStream::connect(proxy)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut message = [command::ECHO; MESSAGE];
        stream.write_all(&message)?;
        stream.read_exact(&mut message)?;
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            asked: VecDeque::new(),
            part: 0,
        })
    }

    fn ask(&mut self, meant: Instant) -> io::Result<()> {
        // A socket that takes no 64 bytes belongs to a proxy that has stood still for seconds.
        self.stream.write_all(&[command::ECHO; MESSAGE])?;
        self.asked.push_back(meant);
        Ok(())
    }

    fn take(&mut self, latencies: &mut Vec<Duration>) -> io::Result<()> {
        let mut bytes = [0; MESSAGE * 16];
        let came = match self.stream.read(&mut bytes) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(came) => came,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        };
        let now = Instant::now();
        self.part += came;
        while self.part >= MESSAGE {
            self.part -= MESSAGE;
            let meant = self.asked.pop_front().ok_or_else(|| {
                io::Error::new(io::ErrorKind::InvalidData, "an answer to no request")
            })?;
            latencies.push(now.saturating_duration_since(meant));
        }
        Ok(())
    }
}

/// Those of which something can be read, at the latest after `timeout`.
fn wait(callers: &[Caller], timeout: Duration) -> io::Result<Vec<usize>> {
    let mut watched: Vec<_> = callers
        .iter()
        .map(|caller| PollFd::new(&caller.stream, PollFlags::IN))
        .collect();
    let timeout = Timespec::try_from(timeout).map_err(io::Error::other)?;
    poll(&mut watched, Some(&timeout))?;
    let ready = watched.iter().enumerate();
    Ok(ready
        .filter(|(_, fd)| !fd.revents().is_empty())
        .map(|(number, _)| number)
        .collect())
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use super::*;

    #[test]
    fn a_percentile_is_a_value_that_occurred() {
        let sorted: Vec<_> = (1..=1000).map(Duration::from_micros).collect();
        assert_eq!(percentile(&sorted, 500), Duration::from_micros(500));
        assert_eq!(percentile(&sorted, 990), Duration::from_micros(990));
        assert_eq!(percentile(&sorted, 999), Duration::from_micros(999));
        assert_eq!(percentile(&sorted[..1], 999), Duration::from_micros(1));
        assert_eq!(percentile(&[], 500), Duration::ZERO);
    }

    #[test]
    fn a_server_that_stands_still_shows_in_the_requests_meant_for_that_time() {
        const STILL: Duration = Duration::from_millis(100);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || echo_with_a_pause(&listener, STILL));
            let mut latencies = run(address, Duration::from_millis(400)).unwrap();
            assert_eq!(latencies.len(), 800);
            latencies.sort();
            // 200 requests were meant for the pause, and 100 of them for its first half; a generator
            // that waits for answers would have sent one on each connection.
            let late = latencies.iter().filter(|l| **l >= STILL / 2).count();
            assert!(late > CONNECTIONS + 16, "{late} were late");
        });
    }

    /// One thread for all connections, so that all of them stand still.
    fn echo_with_a_pause(listener: &TcpListener, pause: Duration) {
        let mut callers: Vec<_> = (0..CONNECTIONS)
            .map(|_| {
                let mut stream = listener.accept().unwrap().0;
                let mut first = [0; MESSAGE];
                stream.read_exact(&mut first).unwrap();
                stream.write_all(&first).unwrap();
                Caller {
                    stream,
                    asked: VecDeque::new(),
                    part: 0,
                }
            })
            .collect();
        let mut paused = false;
        let mut answered = 0;
        while answered < 800 {
            for ready in wait(&callers, PATIENCE).unwrap() {
                if answered > 200 && !paused {
                    // The subject of the test is time: nothing else makes a server late.
                    std::thread::sleep(pause);
                    paused = true;
                }
                let mut bytes = [0; MESSAGE * 16];
                let came = callers[ready].stream.read(&mut bytes).unwrap();
                callers[ready].stream.write_all(&bytes[..came]).unwrap();
                answered += came / MESSAGE;
            }
        }
        // An end is no answer: the callers are to have theirs first, and close.
        for caller in &mut callers {
            assert_eq!(caller.stream.read(&mut [0; 1]).unwrap(), 0);
        }
    }
}
