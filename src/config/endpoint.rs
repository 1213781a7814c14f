//! Where connections come in and where they go to.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use rustls_pki_types::{DnsName, ServerName};

use super::problem::Wrong;
use super::value::{self, Parsed};

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
    /// The sockets that systemd passes under this name.
    Systemd(String),
}

impl Listen {
    /// The address without what may change about it (a unix socket's mode).
    pub(crate) fn without_mode(&self) -> Self {
        match self {
            Self::Tcp(address) => Self::Tcp(*address),
            Self::Unix { path, .. } => Self::Unix {
                path: path.clone(),
                mode: None,
            },
            Self::Systemd(name) => Self::Systemd(name.clone()),
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix { path, .. } => write!(f, "unix:{}", path.display()),
            Self::Systemd(name) => write!(f, "systemd:{name}"),
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

// === reading ===

/// The longest path of a unix socket: `sun_path` of Linux has 108 bytes and ends in a zero.
const MAX_SOCKET_PATH: usize = 107;

/// The longest name that systemd gives a descriptor.
const MAX_DESCRIPTOR_NAME: usize = 255;

impl Listen {
    /// Reads `127.0.0.1:7001`, `[::1]:7001`, `localhost:7001`, `unix:/path?mode=0660` or
    /// `systemd:NAME`; a relative path counts from `base`.
    pub(super) fn parse(text: &str, base: &Path) -> Parsed<Self> {
        match text.strip_prefix("systemd:") {
            Some(name) => descriptor_name(name),
            None => Self::parse_address(text, base),
        }
    }

    /// The same for listeners that systemd does not pass.
    pub(super) fn parse_address(text: &str, base: &Path) -> Parsed<Self> {
        if text.starts_with("systemd:") {
            return Err(Wrong::new(
                "sockets of systemd are for services; an admin endpoint opens its own",
                "write an address, for example \"127.0.0.1:9901\", or \"unix:/path\"",
            ));
        }
        match text.strip_prefix("unix:") {
            Some(socket) => unix_socket(socket, base),
            None => tcp_address(text),
        }
    }

    /// Whether only this machine can connect, as far as the text says: what systemd passes is
    /// looked at when it is taken.
    pub(super) fn is_local(&self) -> bool {
        match self {
            Self::Tcp(address) => address.ip().to_canonical().is_loopback(),
            Self::Unix { .. } | Self::Systemd(_) => true,
        }
    }

    /// Whether both cannot be open at the same time. An unspecified address takes its port of
    /// every address of its family: listeners of IPv6 take no IPv4 (`IPV6_V6ONLY`), whatever the
    /// system's default.
    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Unix { path: one, .. }, Self::Unix { path: two, .. }) => one == two,
            (Self::Systemd(one), Self::Systemd(two)) => one == two,
            (Self::Tcp(one), Self::Tcp(two)) => {
                let (a, b) = (one.ip().to_canonical(), two.ip().to_canonical());
                one.port() == two.port() && (a == b || covers(a, b) || covers(b, a))
            }
            _ => false,
        }
    }
}

/// Whether a listener on `wide` is one on `narrow` too.
fn covers(wide: IpAddr, narrow: IpAddr) -> bool {
    wide.is_unspecified() && wide.is_ipv4() == narrow.is_ipv4()
}

fn tcp_address(text: &str) -> Parsed<Listen> {
    const FORM: &str =
        "write an address and a port, for example \"127.0.0.1:7001\" or \"[::1]:7001\"";
    if let Ok(address) = text.parse::<SocketAddr>() {
        if address.port() == 0 {
            return Err(Wrong::new(
                "port 0 would be another port at every start",
                "name the port that callers connect to",
            ));
        }
        return Ok(Listen::Tcp(address));
    }
    if let Some((_, rest)) = text.split_once("://") {
        return Err(Wrong::new(
            "a listener is an address without a scheme",
            format!("write {:?}", rest.trim_end_matches('/')),
        ));
    }
    if let Ok(ip) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
        return Err(without_port(ip, 7001));
    }
    if let Ok(port) = port(text.strip_prefix(':').unwrap_or(text)) {
        return Err(Wrong::new(
            format!("{text:?} has no address"),
            format!("write \"127.0.0.1:{port}\""),
        ));
    }
    let Some((host, number)) = text.rsplit_once(':') else {
        return Err(Wrong::new(format!("{text:?} is not a listener"), FORM));
    };
    let port = port(number)?;
    match host {
        "localhost" => Ok(Listen::Tcp((Ipv4Addr::LOCALHOST, port).into())),
        "*" => Err(Wrong::new(
            "\"*\" is not an address",
            format!(
                "write \"0.0.0.0:{port}\" or \"[::]:{port}\" for every address of this machine"
            ),
        )),
        _ if value::dns_name(host).is_ok() => Err(Wrong::new(
            format!("{host:?} is a name; a listener needs an address of this machine"),
            format!("write \"127.0.0.1:{port}\", or the address that callers should reach"),
        )),
        _ => Err(Wrong::new(format!("{host:?} is not an IP address"), FORM)),
    }
}

/// What systemd allows for FileDescriptorName=.
fn descriptor_name(name: &str) -> Parsed<Listen> {
    const FIX: &str = "write the FileDescriptorName= of the .socket unit: \"systemd:billing\"";
    if name.is_empty() {
        return Err(Wrong::new("the name is empty", FIX));
    }
    if name.len() > MAX_DESCRIPTOR_NAME {
        let reason = format!(
            "the name has {} bytes; systemd allows {MAX_DESCRIPTOR_NAME}",
            name.len()
        );
        return Err(Wrong::new(reason, FIX));
    }
    let allowed = |byte: u8| (byte.is_ascii_graphic() || byte == b' ') && byte != b':';
    if !name.bytes().all(allowed) {
        let reason = format!("{name:?} is not a name that systemd can give to a socket");
        return Err(Wrong::new(reason, FIX));
    }
    Ok(Listen::Systemd(name.to_owned()))
}

fn unix_socket(text: &str, base: &Path) -> Parsed<Listen> {
    let (path, query) = match text.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (text, None),
    };
    if path.starts_with('@') {
        return Err(Wrong::new(
            "abstract sockets have no owner and no mode, so they are not supported",
            "write a path, for example \"unix:/run/tlsward/billing.sock?mode=0660\"",
        ));
    }
    let path = value::path(path, base)?;
    let length = path.as_os_str().len();
    if length > MAX_SOCKET_PATH {
        return Err(Wrong::new(
            format!("the socket's path has {length} bytes; the system allows {MAX_SOCKET_PATH}"),
            "choose a shorter path, for example below /run/tlsward",
        ));
    }
    let mode = query.map(socket_mode).transpose()?;
    Ok(Listen::Unix { path, mode })
}

fn socket_mode(query: &str) -> Parsed<u32> {
    let digits = query.strip_prefix("mode=").ok_or_else(|| {
        Wrong::new(
            format!("{query:?} is not an option of a unix listener"),
            "the only option is ?mode=0660",
        )
    })?;
    let octal = (3..=4).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
    match u32::from_str_radix(digits, 8) {
        Ok(mode) if octal && mode <= 0o777 => Ok(mode),
        _ => Err(Wrong::new(
            format!("{digits:?} is not a file mode"),
            "write three octal digits, with a zero before them if you like: ?mode=0660",
        )),
    }
}

impl UpstreamAddress {
    /// The name that a Service of type `ExternalName` stands for, which may end in a dot.
    pub(super) fn external(name: &str, port: u16) -> Parsed<Self> {
        let host = match name.parse::<Ipv4Addr>() {
            Ok(address) => Host::Address(address.into()),
            Err(_) => Host::Name(value::dns_name(name.strip_suffix('.').unwrap_or(name))?),
        };
        Ok(Self { host, port })
    }

    /// Reads `host:port`, where the host is a name, an IPv4 address or an IPv6 address in
    /// brackets.
    pub(super) fn parse(text: &str) -> Parsed<Self> {
        if let Some((scheme, rest)) = text.split_once("://") {
            return Err(scheme_of_upstream(scheme, rest));
        }
        if text.starts_with("unix:") {
            return Err(Wrong::new(
                "an upstream is reached over TCP; unix sockets are not supported",
                "write host:port",
            ));
        }
        if let Ok(ip) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
            return Err(without_port(ip, 443));
        }
        if let Some(bracketed) = text.strip_prefix('[') {
            let (address, number) = bracketed.split_once("]:").ok_or_else(|| {
                Wrong::new(
                    format!("{text:?} is not an address with a port"),
                    "write for example \"[2001:db8::1]:443\"",
                )
            })?;
            let address = address.parse::<Ipv6Addr>().map_err(|_| {
                Wrong::new(
                    format!("{address:?} is not an IPv6 address"),
                    "brackets are for IPv6 addresses only, for example \"[2001:db8::1]:443\"; a zone (%eth0) cannot be given",
                )
            })?;
            return Ok(Self {
                host: Host::Address(address.into()),
                port: port(number)?,
            });
        }
        let Some((host, number)) = text.rsplit_once(':') else {
            return Err(match value::dns_name(text) {
                Ok(_) => Wrong::new(
                    format!("{text:?} has no port"),
                    format!("write the server's TLS port too, for example \"{text}:443\""),
                ),
                Err(wrong) => wrong,
            });
        };
        let host = match host.parse::<Ipv4Addr>() {
            Ok(address) => Host::Address(address.into()),
            Err(_) => Host::Name(value::dns_name(host)?),
        };
        Ok(Self {
            host,
            port: port(number)?,
        })
    }
}

fn scheme_of_upstream(scheme: &str, rest: &str) -> Wrong {
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let with_port = match authority.rsplit_once(':') {
        Some((_, number)) if port(number).is_ok() => authority.to_owned(),
        _ => format!("{authority}:443"),
    };
    Wrong::new(
        format!(
            "an upstream is host:port without a scheme; tlsward speaks TLS to it, whatever protocol is inside ({scheme}://)"
        ),
        format!("write {with_port:?}"),
    )
}

fn without_port(ip: IpAddr, example: u16) -> Wrong {
    Wrong::new(
        format!("the address {ip} has no port"),
        format!("write \"{}\"", SocketAddr::new(ip, example)),
    )
}

fn port(text: &str) -> Parsed<u16> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(0) => Err(Wrong::new(
            "there is no port 0",
            "write a port from 1 to 65535",
        )),
        Ok(port) if digits => Ok(port),
        _ => Err(Wrong::new(
            format!("{text:?} is not a port"),
            "write a port from 1 to 65535 after the last colon",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listen(text: &str) -> Result<Listen, String> {
        Listen::parse(text, Path::new("/etc/tlsward"))
            .map_err(|wrong| format!("{} | {}", wrong.reason, wrong.fix))
    }

    fn upstream(text: &str) -> Result<String, String> {
        UpstreamAddress::parse(text)
            .map(|address| address.to_string())
            .map_err(|wrong| format!("{} | {}", wrong.reason, wrong.fix))
    }

    #[test]
    fn a_listener_is_an_address_with_port_localhost_or_a_unix_socket() {
        for (text, address) in [
            ("127.0.0.1:7001", "127.0.0.1:7001"),
            ("localhost:7001", "127.0.0.1:7001"),
            ("[::1]:7001", "[::1]:7001"),
            ("0.0.0.0:65535", "0.0.0.0:65535"),
        ] {
            assert_eq!(listen(text), Ok(Listen::Tcp(address.parse().unwrap())));
        }
        for (text, path, mode) in [
            ("unix:/run/a.sock", "/run/a.sock", None),
            ("unix:/run/a.sock?mode=0660", "/run/a.sock", Some(0o660)),
            (
                "unix:./run/a.sock?mode=600",
                "/etc/tlsward/run/a.sock",
                Some(0o600),
            ),
        ] {
            let path = path.into();
            assert_eq!(listen(text), Ok(Listen::Unix { path, mode }));
        }
    }

    #[test]
    fn a_listener_that_cannot_be_meant_is_refused_with_the_right_spelling() {
        for (text, message) in [
            ("127.0.0.1:0", "port 0 would be another port"),
            ("localhost:0", "no port 0"),
            ("127.0.0.1", "no port | write \"127.0.0.1:7001\""),
            ("::1", "no port | write \"[::1]:7001\""),
            ("7001", "no address | write \"127.0.0.1:7001\""),
            (":7001", "no address | write \"127.0.0.1:7001\""),
            ("*:7001", "\"0.0.0.0:7001\""),
            ("billing.internal:7001", "is a name"),
            ("tcp://127.0.0.1:7001", "write \"127.0.0.1:7001\""),
            ("127.0.0.1:70001", "\"70001\" is not a port"),
            ("127.0.0.1:+80", "\"+80\" is not a port"),
            ("300.0.0.1:80", "not an IP address"),
            ("", "\"\" is not a listener"),
            ("systemd:", "the name is empty"),
            ("systemd:a:b", "not a name that systemd can give"),
            ("systemd:b\u{fc}ro", "not a name that systemd can give"),
            ("unix:", "empty path"),
            ("unix:@billing", "abstract"),
            ("unix:/a?mod=0660", "not an option"),
            ("unix:/a?mode=0999", "\"0999\" is not a file mode"),
            ("unix:/a?mode=1777", "not a file mode"),
            ("unix:/a?mode=+66", "not a file mode"),
        ] {
            let error = listen(text).unwrap_err();
            assert!(error.contains(message), "{text}: {error}");
        }
    }

    #[test]
    fn a_name_of_systemd_is_as_systemd_allows_it_and_for_services_only() {
        for name in ["billing", "tlsward-billing.socket", "two words"] {
            let text = format!("systemd:{name}");
            assert_eq!(listen(&text), Ok(Listen::Systemd(name.to_owned())));
        }
        let longest = format!("systemd:{}", "x".repeat(MAX_DESCRIPTOR_NAME));
        assert!(listen(&longest).is_ok());
        assert!(
            listen(&format!("{longest}x"))
                .unwrap_err()
                .contains("256 bytes")
        );
        let wrong = Listen::parse_address("systemd:billing", Path::new("/")).unwrap_err();
        assert!(
            wrong.reason.contains("are for services"),
            "{}",
            wrong.reason
        );
    }

    #[test]
    fn a_unix_socket_path_may_be_as_long_as_the_system_allows_and_no_longer() {
        let longest = format!("unix:/{}", "x".repeat(MAX_SOCKET_PATH - 1));
        assert!(listen(&longest).is_ok());
        assert!(
            listen(&format!("{longest}x"))
                .unwrap_err()
                .contains("108 bytes")
        );
    }

    #[test]
    fn listeners_overlap_where_one_takes_the_others_connections() {
        for (one, two, expected) in [
            ("127.0.0.1:1", "127.0.0.1:1", true),
            ("127.0.0.1:1", "127.0.0.1:2", false),
            ("127.0.0.1:1", "127.0.0.2:1", false),
            ("127.0.0.1:1", "[::1]:1", false),
            ("0.0.0.0:1", "127.0.0.1:1", true),
            ("0.0.0.0:1", "[::1]:1", false),
            ("[::]:1", "127.0.0.1:1", false),
            ("[::]:1", "[::1]:1", true),
            ("0.0.0.0:1", "[::]:1", false),
            ("[::ffff:127.0.0.1]:1", "127.0.0.1:1", true),
            ("unix:/a", "unix:/a?mode=600", true),
            ("unix:/a", "unix:/b", false),
            ("unix:/a", "127.0.0.1:1", false),
            ("systemd:a", "systemd:a", true),
            ("systemd:a", "systemd:b", false),
            ("systemd:a", "127.0.0.1:1", false),
        ] {
            let (a, b) = (listen(one).unwrap(), listen(two).unwrap());
            assert_eq!(
                (a.overlaps(&b), b.overlaps(&a)),
                (expected, expected),
                "{one} {two}"
            );
        }
    }

    #[test]
    fn an_upstream_is_a_name_or_address_with_a_port() {
        for (text, shown) in [
            ("billing.internal:8443", "billing.internal:8443"),
            ("Billing.Internal:8443", "billing.internal:8443"),
            ("10.0.0.1:443", "10.0.0.1:443"),
            ("[2001:DB8::1]:443", "[2001:db8::1]:443"),
        ] {
            assert_eq!(upstream(text).as_deref(), Ok(shown));
        }
    }

    #[test]
    fn an_upstream_that_cannot_be_meant_is_refused_with_the_right_spelling() {
        for (text, message) in [
            ("https://a.internal", "write \"a.internal:443\""),
            ("https://a.internal:8443/path", "write \"a.internal:8443\""),
            ("postgres://db:5432", "(postgres://) | write \"db:5432\""),
            (
                "a.internal",
                "no port | write the server's TLS port too, for example \"a.internal:443\"",
            ),
            ("10.0.0.1", "no port | write \"10.0.0.1:443\""),
            ("2001:db8::1", "write \"[2001:db8::1]:443\""),
            ("[2001:db8::1]", "write \"[2001:db8::1]:443\""),
            ("[a.internal]:443", "not an IPv6 address"),
            ("[fe80::1%eth0]:443", "zone"),
            ("a.internal:0", "no port 0"),
            ("a.internal:https", "\"https\" is not a port"),
            ("a.internal:443/x", "\"443/x\" is not a port"),
            ("10.0.0.256:443", "\"10.0.0.256\" is not a host name"),
            ("a b:443", "\"a b\" is not a host name"),
            (":443", "empty"),
            ("unix:/run/db.sock", "unix sockets are not supported"),
        ] {
            let error = upstream(text).unwrap_err();
            assert!(error.contains(message), "{text}: {error}");
        }
    }
}
