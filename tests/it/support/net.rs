//! Addresses that no other test uses, and callers that speak plain TCP as an application would.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicU16, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use super::within;

/// An address of 127.0.0.0/8 that belongs to this test process: made of its process id, so that
/// tests in other processes never meet it.
pub(crate) fn ip() -> IpAddr {
    let [_, b, c, d] = std::process::id().to_be_bytes();
    // 127.64.0.0 and up: away from what a machine's own services use. d + 1 would leave the
    // octet; .0 and .255 are ordinary addresses within a /8.
    IpAddr::V4(Ipv4Addr::new(127, 64 | (b & 0x3f), c, d))
}

/// An address and port that nothing else uses, below the range of ports that the kernel hands
/// out. Threads of one process are kept apart by a counter.
pub(crate) fn address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(20_000);
    SocketAddr::new(ip(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// How a stream ended for the one who reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// An ordinary end.
    Fin,
    /// ECONNRESET.
    Reset,
}

/// An application on the plain side.
#[derive(Debug)]
pub(crate) struct Caller {
    socket: Socket,
    /// Read beyond the line that was asked for.
    ahead: Vec<u8>,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Caller {
    pub(crate) async fn connect(to: SocketAddr) -> Self {
        let socket = within("a TCP connection to the listener", TcpStream::connect(to))
            .await
            .unwrap_or_else(|error| panic!("connecting to {to}: {error}"));
        Self::over(socket)
    }

    /// As [`Self::connect`], where the listener may refuse.
    pub(crate) async fn try_connect(to: SocketAddr) -> io::Result<Self> {
        within("a TCP connection or its refusal", TcpStream::connect(to))
            .await
            .map(Self::over)
    }

    pub(crate) async fn connect_unix(to: &Path) -> Self {
        let socket = within("a connection to the unix socket", UnixStream::connect(to))
            .await
            .unwrap_or_else(|error| panic!("connecting to {}: {error}", to.display()));
        Self {
            socket: Socket::Unix(socket),
            ahead: Vec::new(),
        }
    }

    fn over(socket: TcpStream) -> Self {
        socket.set_nodelay(true).unwrap();
        Self {
            socket: Socket::Tcp(socket),
            ahead: Vec::new(),
        }
    }

    /// The bare socket, for protocol clients. Nothing may have been read ahead.
    pub(crate) fn into_tcp(self) -> TcpStream {
        assert!(self.ahead.is_empty(), "bytes were read ahead");
        match self.socket {
            Socket::Tcp(socket) => socket,
            Socket::Unix(_) => panic!("this caller uses a unix socket"),
        }
    }

    pub(crate) async fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        within("the proxy to take bytes", async {
            match &mut self.socket {
                Socket::Tcp(socket) => socket.write_all(bytes).await,
                Socket::Unix(socket) => socket.write_all(bytes).await,
            }
        })
        .await
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.try_send(bytes).await.expect("the proxy takes bytes");
    }

    /// Half-closes: sends FIN and goes on reading.
    pub(crate) async fn finish_sending(&mut self) {
        match &mut self.socket {
            Socket::Tcp(socket) => socket.shutdown().await,
            Socket::Unix(socket) => socket.shutdown().await,
        }
        .expect("half-closing an open socket");
    }

    /// At most one buffer of what has come; empty at the end.
    pub(crate) async fn some(&mut self) -> io::Result<Vec<u8>> {
        if !self.ahead.is_empty() {
            return Ok(std::mem::take(&mut self.ahead));
        }
        let mut buffer = vec![0; 64 * 1024];
        let count = within("bytes from the proxy", async {
            match &mut self.socket {
                Socket::Tcp(socket) => socket.read(&mut buffer).await,
                Socket::Unix(socket) => socket.read(&mut buffer).await,
            }
        })
        .await?;
        buffer.truncate(count);
        Ok(buffer)
    }

    /// Up to and without the next line feed.
    ///
    /// # Errors
    /// The stream ended or broke first; an end is `UnexpectedEof`.
    pub(crate) async fn try_line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        loop {
            let mut bytes = self.some().await?;
            if bytes.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            match bytes.iter().position(|byte| *byte == b'\n') {
                Some(at) => {
                    self.ahead = bytes.split_off(at + 1);
                    bytes.pop();
                    line.extend(bytes);
                    return Ok(String::from_utf8(line).expect("the upstream speaks UTF-8"));
                }
                None => line.extend(bytes),
            }
        }
    }

    pub(crate) async fn line(&mut self) -> String {
        self.try_line().await.expect("a line from the upstream")
    }

    /// Exactly `count` bytes.
    pub(crate) async fn exactly(&mut self, count: usize) -> Vec<u8> {
        let mut gathered = Vec::with_capacity(count);
        while gathered.len() < count {
            let mut bytes = self.some().await.expect("more bytes from the upstream");
            assert!(
                !bytes.is_empty(),
                "the stream ended after {} of {count} bytes",
                gathered.len()
            );
            let missing = count - gathered.len();
            if bytes.len() > missing {
                self.ahead = bytes.split_off(missing);
            }
            gathered.extend(bytes);
        }
        gathered
    }

    /// Sends `bytes` and expects the same back.
    pub(crate) async fn echo(&mut self, bytes: &[u8]) {
        self.send(bytes).await;
        assert_eq!(self.exactly(bytes.len()).await, bytes, "the echo differs");
    }

    /// Everything that still comes, and how it ends.
    pub(crate) async fn rest(&mut self) -> (Vec<u8>, Ending) {
        let mut gathered = Vec::new();
        loop {
            match self.some().await {
                Ok(bytes) if bytes.is_empty() => return (gathered, Ending::Fin),
                Ok(bytes) => gathered.extend(bytes),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    return (gathered, Ending::Reset);
                }
                Err(error) => panic!("reading to the end: {error}"),
            }
        }
    }

    /// How the stream ends, when nothing more is expected on it.
    pub(crate) async fn ending(&mut self) -> Ending {
        let (rest, ending) = self.rest().await;
        assert_eq!(
            String::from_utf8_lossy(&rest),
            "",
            "bytes came before the end"
        );
        ending
    }

    /// Breaks the connection with RST.
    pub(crate) fn reset(self) {
        match self.socket {
            Socket::Tcp(socket) => reset(socket),
            Socket::Unix(_) => panic!("a unix socket has no RST"),
        }
    }
}

/// Connects and expects to be reset without a byte. The reset may be quicker than the return of
/// connect(2), which then reports it.
pub(crate) async fn is_reset(address: SocketAddr) {
    match Caller::try_connect(address).await {
        Ok(mut caller) => assert_eq!(caller.ending().await, Ending::Reset),
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}"),
    }
}

/// Closes with RST instead of FIN.
pub(crate) fn reset(socket: TcpStream) {
    socket2::SockRef::from(&socket)
        .set_linger(Some(std::time::Duration::ZERO))
        .expect("an open socket takes SO_LINGER");
}
