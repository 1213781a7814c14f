//! Doors into the data path for programs that count what it costs (`guards/`): a client of one
//! upstream, its handshake, its sessions' records, and the relay between two streams in memory.
//! Only with the feature `drivers`, which no ordinary build has.
//!
//! Nothing here waits: a stream that is not ready at once is an error, so that what is counted is
//! the same at every run.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::{self, IoSlice};
use std::path::Path;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use rustls::crypto::aws_lc_rs;
use rustls_pki_types::{ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::config::{Config, UncleanClose};
use crate::material::{IdentityMaterial, Part, TrustMaterial};
use crate::proxy::caller::Caller;
use crate::proxy::handshake::{LastFlight, handshake};
use crate::proxy::relay::{Limits, Relay};
use crate::proxy::scratch;
use crate::proxy::session::{Engine, Session as _};
use crate::tls::client_config::{Connector, client_config};
use crate::tls::identity::Identity;
use crate::tls::trust::Trust;

/// 2030-01-01: rcgen's certificates are valid from 1975 to 4096.
const NOW: UnixTime = UnixTime::since_unix_epoch(Duration::from_secs(1_893_456_000));

/// What a client is made of, as PEM.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// Certificates that the upstream's chain must lead to.
    pub ca: String,
    /// The client's certificate and its issuers.
    pub chain: String,
    /// The client's key.
    pub key: String,
}

/// The TLS client of one service, with every setting but `record_layer` at its default.
#[derive(Debug)]
pub struct Client {
    connector: Arc<Connector>,
    server_name: ServerName<'static>,
}

impl Client {
    /// # Errors
    /// The credentials or the name are not good, in words.
    pub fn new(
        credentials: &Credentials,
        server_name: &'static str,
        record_layer: &str,
    ) -> Result<Self, String> {
        let text = format!(
            "[services.driven]\nlisten = \"127.0.0.1:7001\"\nupstream = \"{server_name}:443\"\n\
             [services.driven.tls]\nca = \"ca\"\ncert = \"cert\"\nkey = \"key\"\n\
             record_layer = \"{record_layer}\"\n"
        );
        let config = Config::parse(&text, Path::new("/driven.toml"), &BTreeMap::new());
        let config = config.map_err(words)?;
        let mut services = config.services.into_values();
        let policy = services.next().ok_or("a configuration without a service")?;

        let part = |place: &str, text: &str| Part::new(place, text.as_bytes().to_vec());
        let identity = IdentityMaterial::Pair {
            cert: part("chain", &credentials.chain),
            key: part("key", &credentials.key),
        };
        let trust = TrustMaterial {
            ca: vec![part("ca", &credentials.ca)],
            crl: None,
        };
        let provider = aws_lc_rs::default_provider();
        let identity = Identity::parse(&identity, NOW, &provider).map_err(words)?;
        let trust = Arc::new(Trust::parse(&trust, NOW).map_err(words)?);
        let connector = client_config(&policy.tls, Some(&identity), Some(&trust), &provider);
        Ok(Self {
            connector: connector.map_err(words)?,
            server_name: ServerName::try_from(server_name).map_err(words)?,
        })
    }

    /// A handshake over a stream whose other end answers within the write, and the session.
    ///
    /// # Errors
    /// In words; a stream that is not ready at once among them.
    pub fn connect<S>(&self, stream: &mut S) -> Result<Session, String>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let established = {
            let handshake = pin!(handshake(
                stream,
                &self.connector,
                self.server_name.clone(),
                LastFlight::Written
            ));
            handshake.poll(&mut Context::from_waker(Waker::noop()))
        };
        match established {
            Poll::Ready(Ok(established)) => established.into_session().map(Session).map_err(words),
            Poll::Ready(Err(error)) => Err(format!("{error:?}")),
            Poll::Pending => Err("the stream was not ready".to_owned()),
        }
    }
}

/// An established session.
pub struct Session(Engine);

impl Session {
    /// Session tickets of TLS 1.3 that have come.
    pub fn tickets(&self) -> u32 {
        self.0.tickets()
    }

    /// Seals `plain` and writes all that is queued, as the relay does with what it has read.
    ///
    /// # Errors
    /// Those of `sink`, or the session cannot go on.
    pub fn send(&mut self, plain: &[u8], sink: &mut dyn io::Write) -> io::Result<()> {
        self.0
            .seal(plain)
            .map_err(|_| io::Error::other("the session's keys are used up"))?;
        while self.0.wants_write() {
            self.0.write(sink)?;
        }
        Ok(())
    }

    /// Opens what one read of `upstream` yields, as the relay does; returns how many bytes of
    /// plaintext that is.
    ///
    /// # Errors
    /// `upstream` fails or is not ready, or what it says is not TLS.
    pub fn receive<S>(&mut self, upstream: &mut S) -> io::Result<usize>
    where
        S: AsyncRead + Unpin,
    {
        scratch::borrow(|scratch| {
            let room = self.0.room();
            let mut read = ReadBuf::new(&mut scratch.wire[room..room + scratch::WIRE]);
            let cx = &mut Context::from_waker(Waker::noop());
            match Pin::new(upstream).poll_read(cx, &mut read) {
                Poll::Ready(result) => result?,
                Poll::Pending => return Err(io::ErrorKind::WouldBlock.into()),
            }
            let end = room + read.filled().len();
            scratch.pieces.clear();
            self.0
                .open(&mut scratch.wire[..end], &mut scratch.pieces)
                .map_err(io::Error::other)?;
            let mut opened = 0;
            while !scratch.pieces.is_empty() {
                let mut slices = [IoSlice::new(&[]); 32];
                let filled = scratch.pieces.fill(&scratch.wire, &mut slices);
                let taken = slices[..filled].iter().map(|slice| slice.len()).sum();
                scratch.pieces.advance(taken);
                opened += taken;
            }
            Ok(opened)
        })
    }

    /// Relays between `caller` and `upstream` until `enough`, asked after each wake.
    ///
    /// # Errors
    /// The relay broke off, or both streams stopped moving before there was enough.
    pub fn relay<S>(
        self,
        caller: &mut Application,
        upstream: &mut S,
        enough: impl Fn(Carried) -> bool,
    ) -> Result<(), String>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let limits = Limits {
            // Without limits of time a relay needs no clock.
            idle: None,
            end: None,
            close: Duration::MAX,
            unclean_close: UncleanClose::Reset,
        };
        let mut relay = Relay::new(caller, upstream, self.0, limits);
        relay.prime();
        let cx = &mut Context::from_waker(Waker::noop());
        let mut before = None;
        loop {
            if let Poll::Ready(ended) = relay.poll(cx) {
                return Err(format!("the relay ended early: {ended:?}"));
            }
            let transfer = relay.transfer();
            let carried = Carried {
                up: transfer.up,
                down: transfer.down,
            };
            if enough(carried) {
                return Ok(());
            }
            if before.replace(carried) == Some(carried) {
                return Err(format!("the relay stands still at {carried:?}"));
            }
        }
    }
}

/// Payload bytes that a relay has carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carried {
    /// From the caller.
    pub up: u64,
    /// To the caller.
    pub down: u64,
}

/// A caller that sends a number of bytes and takes all that it is given. It copies nothing, so
/// that what is counted is the relay's.
#[derive(Clone, Copy, Debug)]
pub struct Application {
    to_send: u64,
}

impl Application {
    /// One that sends `to_send` bytes and then keeps still.
    pub fn new(to_send: u64) -> Self {
        Self { to_send }
    }
}

impl AsyncRead for Application {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.to_send == 0 {
            return Poll::Pending;
        }
        let room = buffer.remaining();
        let len = usize::try_from(self.to_send).map_or(room, |left| left.min(room));
        // Whatever is there: the relay's buffers are initialised.
        buffer.initialize_unfilled_to(len);
        buffer.advance(len);
        self.to_send -= len as u64;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Application {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(slices.iter().map(|slice| slice.len()).sum()))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Caller for Application {
    fn is_broken(&self, _: bool) -> bool {
        false
    }

    fn broken(&self) -> impl Future<Output = ()> + Send {
        std::future::pending()
    }

    fn unacknowledged(&self) -> io::Result<usize> {
        Ok(0)
    }

    fn reset_on_close(&self) {}
}

fn words(error: impl Display) -> String {
    error.to_string()
}
