//! Where connections come in and where they go to.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use rustls_pki_types::{DnsName, ServerName};

/// The address on which callers of one service connect. A listener *is* its address: two
/// configurations that name the same address speak of the same listener, whatever the service is
/// called.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Listen {
    /// A TCP address; the port is never 0.
    Tcp(SocketAddr),
    /// A unix stream socket.
    Unix {
        /// Absolute path of the socket.
        path: PathBuf,
        /// File mode of the socket, for example `0o660`; `None` leaves it to the umask.
        mode: Option<u32>,
    },
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix { path, .. } => write!(f, "unix:{}", path.display()),
        }
    }
}

/// The host part of an upstream.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// A name, looked up anew for each connection.
    Name(DnsName<'static>),
    /// An address.
    Address(IpAddr),
}

impl Host {
    /// The name by which TLS knows this host, unless the service says otherwise.
    #[must_use]
    pub fn server_name(&self) -> ServerName<'static> {
        match self {
            Self::Name(name) => ServerName::DnsName(name.clone()),
            Self::Address(address) => ServerName::IpAddress((*address).into()),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name.as_ref()),
            Self::Address(IpAddr::V4(address)) => address.fmt(f),
            Self::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
        }
    }
}

/// One `host:port` of an upstream; the port is never 0.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UpstreamAddress {
    /// The host.
    pub host: Host,
    /// The TCP port.
    pub port: u16,
}

impl fmt::Display for UpstreamAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}
