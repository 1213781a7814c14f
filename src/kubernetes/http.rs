//! HTTP/1.1 (RFC 9112) as a client speaks it to an API server: heads and the framing of bodies.
//! Without I/O.
//!
//! hyper would do as well, but holds 26 KB for each connection: two buffers of 8 KB and a queue
//! for 32 requests, where a watch makes one request and then waits for five minutes.

use hyper::header::{CONNECTION, CONTENT_LENGTH, HeaderMap, TRANSFER_ENCODING};
use hyper::header::{HeaderName, HeaderValue};
use hyper::{Method, StatusCode, Version};

/// The most that a head may have; those of an API server have less than 1 KiB.
const LONGEST_HEAD: usize = 64 * 1024;
const MOST_HEADERS: usize = 100;

/// The most of a chunked body that is not content: what follows a chunk's size, and trailers.
const LONGEST_ASIDE: usize = 64 * 1024;

/// A request, ready to be sent. `headers` has all but what is said of the body, which is JSON.
pub(super) fn request(method: &Method, target: &str, headers: &HeaderMap, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(512 + body.len());
    let mut put = |text: &[u8]| bytes.extend_from_slice(text);
    put(method.as_str().as_bytes());
    put(b" ");
    put(target.as_bytes());
    put(b" HTTP/1.1\r\n");
    for (name, value) in headers {
        put(name.as_str().as_bytes());
        put(b": ");
        put(value.as_bytes());
        put(b"\r\n");
    }
    if !body.is_empty() {
        put(b"content-type: application/json\r\n");
        put(format!("content-length: {}\r\n", body.len()).as_bytes());
    }
    put(b"\r\n");
    put(body);
    bytes
}

/// The head of an answer, and how its body is framed.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Body,
    /// Whether another request may follow on the connection, once the body has been read.
    pub(super) keeps_alive: bool,
}

/// Reads the head at the beginning of `bytes`, and says where it ends. `None`: it is not complete.
/// Informational answers (1xx) are passed over.
///
/// # Errors
/// It is not the head of an HTTP/1 answer, or too long.
pub(super) fn head(bytes: &[u8]) -> Result<Option<(Head, usize)>, String> {
    let mut begins = 0;
    loop {
        let rest = bytes.get(begins..).unwrap_or_default();
        let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
        let mut response = httparse::Response::new(&mut headers);
        let parsed = response
            .parse(rest)
            .map_err(|error| format!("an answer that is not HTTP: {error}"))?;
        let httparse::Status::Complete(length) = parsed else {
            if bytes.len() > LONGEST_HEAD {
                return Err(format!("a head of more than {LONGEST_HEAD} bytes"));
            }
            return Ok(None);
        };
        begins += length;
        let head = Head::of(&response)?;
        match head.status {
            // What would follow is not HTTP any more, and nobody asked for it.
            StatusCode::SWITCHING_PROTOCOLS => return Err("another protocol than HTTP".into()),
            status if status.is_informational() => {}
            _ => return Ok(Some((head, begins))),
        }
    }
}

impl Head {
    fn of(response: &httparse::Response<'_, '_>) -> Result<Self, String> {
        let malformed = || "an answer whose head is malformed".to_owned();
        let status = response.code.unwrap_or_default();
        let status = StatusCode::from_u16(status).map_err(|_| malformed())?;
        let version = match response.version {
            Some(1) => Version::HTTP_11,
            _ => Version::HTTP_10,
        };
        let mut headers = HeaderMap::with_capacity(response.headers.len());
        for header in response.headers.iter() {
            let name = HeaderName::from_bytes(header.name.as_bytes()).map_err(|_| malformed())?;
            let value = HeaderValue::from_bytes(header.value).map_err(|_| malformed())?;
            headers.append(name, value);
        }
        let body = Body::of(status, &headers)?;
        let said = |word: &str| {
            let values = headers.get_all(CONNECTION).iter();
            let mut values = values.filter_map(|value| value.to_str().ok());
            values.any(|value| lists(value, word))
        };
        let keeps_alive = match version {
            Version::HTTP_11 => !said("close"),
            _ => said("keep-alive"),
        };
        Ok(Self {
            status,
            keeps_alive: keeps_alive && body != Body::UntilClose,
            headers,
            body,
        })
    }
}

/// Whether a list of words (RFC 9110, 5.6.1) has this one.
fn lists(list: &str, word: &str) -> bool {
    list.split(',')
        .any(|it| it.trim().eq_ignore_ascii_case(word))
}

/// A body, as far as it has been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Body {
    /// So many bytes are still to come; with none it is complete.
    Length(u64),
    Chunked(Chunk),
    /// It ends with the connection.
    UntilClose,
}

/// Where in a chunked body (RFC 9112, 7.1) the next byte stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chunk {
    /// In the digits of a chunk's size.
    Size {
        size: u64,
        digits: u8,
    },
    /// Between a chunk's size and the end of that line.
    Extension {
        size: u64,
        aside: usize,
    },
    Content {
        left: u64,
    },
    /// In the line end after a chunk's content.
    ContentEnd,
    /// At the beginning of a line of trailers, or of the empty line that ends all.
    Trailer {
        aside: usize,
    },
    TrailerLine {
        aside: usize,
    },
    Done,
}

impl Body {
    /// RFC 9112, 6.3, for answers to GET and POST.
    fn of(status: StatusCode, headers: &HeaderMap) -> Result<Self, String> {
        if status.is_informational()
            || [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED].contains(&status)
        {
            return Ok(Self::Length(0));
        }
        let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
        if let Some(coding) = codings.next() {
            let is_chunked = coding.as_bytes().eq_ignore_ascii_case(b"chunked");
            if !is_chunked || codings.next().is_some() {
                return Err("an answer in a transfer coding that nobody asked for".into());
            }
            return Ok(Self::Chunked(Chunk::Size { size: 0, digits: 0 }));
        }
        let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
        let Some(length) = lengths.next() else {
            return Ok(Self::UntilClose);
        };
        let text = length.to_str().unwrap_or_default();
        let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        match text.parse() {
            Ok(number) if is_number && lengths.all(|other| other == length) => {
                Ok(Self::Length(number))
            }
            _ => Err("an answer of no certain length".into()),
        }
    }

    /// Whether all of it has been read.
    pub(super) fn is_complete(&self) -> bool {
        matches!(self, Self::Length(0) | Self::Chunked(Chunk::Done))
    }

    /// Takes what belongs to the body off the beginning of `bytes`, and hands its content to
    /// `content`, in one or more pieces. Says how many bytes it took: all, unless it is complete.
    ///
    /// # Errors
    /// The framing is broken.
    pub(super) fn read<'b>(
        &mut self,
        bytes: &'b [u8],
        mut content: impl FnMut(&'b [u8]),
    ) -> Result<usize, String> {
        let mut at = 0;
        while at < bytes.len() && !self.is_complete() {
            let rest = bytes.get(at..).unwrap_or_default();
            at += match self {
                Self::UntilClose => {
                    content(rest);
                    rest.len()
                }
                Self::Length(left) => {
                    let piece = first(rest, *left);
                    content(piece);
                    *left -= piece.len() as u64;
                    piece.len()
                }
                Self::Chunked(Chunk::Content { left }) => {
                    let piece = first(rest, *left);
                    content(piece);
                    *left -= piece.len() as u64;
                    if *left == 0 {
                        *self = Self::Chunked(Chunk::ContentEnd);
                    }
                    piece.len()
                }
                Self::Chunked(chunk) => {
                    let byte = rest.first().copied().unwrap_or_default();
                    *chunk = chunk
                        .step(byte)
                        .ok_or("an answer whose chunks are malformed")?;
                    1
                }
            };
        }
        Ok(at)
    }
}

/// At most `most` bytes.
fn first(bytes: &[u8], most: u64) -> &[u8] {
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    bytes.get(..most).unwrap_or(bytes)
}

impl Chunk {
    /// After one byte outside of content; `None`: it cannot stand here.
    ///
    /// A line may end with LF alone, as RFC 9112 (2.2) allows a recipient. That cannot be used to
    /// smuggle anything here: one connection carries one answer at a time, of one server.
    fn step(self, byte: u8) -> Option<Self> {
        let asides = |aside: usize| (aside < LONGEST_ASIDE).then_some(aside + 1);
        Some(match (self, byte) {
            (Self::Size { size, digits }, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                let digit = char::from(byte).to_digit(16)?;
                // 15 digits are an exabyte, and cannot overflow.
                let digits = (digits < 15).then_some(digits + 1)?;
                let size = size * 16 + u64::from(digit);
                Self::Size { size, digits }
            }
            (Self::Size { digits: 0, .. }, _) => return None,
            (Self::Size { size, .. } | Self::Extension { size, .. }, b'\n') => match size {
                0 => Self::Trailer { aside: 0 },
                left => Self::Content { left },
            },
            (Self::Size { size, .. }, b';' | b' ' | b'\t' | b'\r') => {
                Self::Extension { size, aside: 0 }
            }
            (Self::Extension { size, aside }, _) => Self::Extension {
                size,
                aside: asides(aside)?,
            },
            (Self::ContentEnd, b'\r') => Self::ContentEnd,
            (Self::ContentEnd, b'\n') => Self::Size { size: 0, digits: 0 },
            (Self::Trailer { .. }, b'\n') => Self::Done,
            (Self::Trailer { aside }, b'\r') => Self::Trailer {
                aside: asides(aside)?,
            },
            (Self::Trailer { aside }, _) => Self::TrailerLine {
                aside: asides(aside)?,
            },
            (Self::TrailerLine { aside }, b'\n') => Self::Trailer { aside },
            (Self::TrailerLine { aside }, _) => Self::TrailerLine {
                aside: asides(aside)?,
            },
            (Self::Size { .. } | Self::Content { .. } | Self::ContentEnd | Self::Done, _) => {
                return None;
            }
        })
    }
}

#[cfg(test)]
mod tests;
