use proptest::prelude::*;

use super::*;

fn complete(text: &str) -> (Head, usize) {
    head(text.as_bytes()).unwrap().expect("it is complete")
}

/// The content of a body that is read in pieces of these lengths, and what is left over.
fn content(mut body: Body, bytes: &[u8], pieces: &[usize]) -> Result<(Vec<u8>, Vec<u8>), String> {
    let mut content = Vec::new();
    let mut rest = bytes;
    let mut pieces = pieces.iter().cycle();
    while !rest.is_empty() && !body.is_complete() {
        let length = pieces
            .next()
            .map_or(rest.len(), |length| (*length).clamp(1, rest.len()));
        let taken = body.read(&rest[..length], |part| content.extend_from_slice(part))?;
        if taken < length {
            assert!(body.is_complete(), "only a complete body leaves anything");
        }
        rest = &rest[taken..];
    }
    assert!(body.is_complete(), "{body:?}");
    Ok((content, rest.to_vec()))
}

const CHUNKED: Body = Body::Chunked(Chunk::Size { size: 0, digits: 0 });

#[test]
fn a_request_says_what_it_asks_for_and_how_long_its_body_is() {
    let mut headers = HeaderMap::new();
    headers.insert("host", HeaderValue::from_static("api"));
    headers.insert("authorization", HeaderValue::from_static("Bearer t"));
    let bytes = request(&Method::GET, "/api?x=1", &headers, b"");
    let text = String::from_utf8(bytes).unwrap();
    assert_eq!(
        text,
        "GET /api?x=1 HTTP/1.1\r\nhost: api\r\nauthorization: Bearer t\r\n\r\n"
    );
    let bytes = request(&Method::POST, "/events", &headers, b"{}");
    let text = String::from_utf8(bytes).unwrap();
    assert!(
        text.ends_with("\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"),
        "{text}"
    );
}

#[test]
fn a_head_is_read_once_it_is_complete() {
    let text = "HTTP/1.1 429 Too Many Requests\r\nRetry-After: 7\r\nContent-Length: 3\r\n\r\nabc";
    for end in 0..text.len() - 3 {
        assert!(head(&text.as_bytes()[..end]).unwrap().is_none(), "{end}");
    }
    let (head, length) = complete(text);
    assert_eq!(&text[length..], "abc");
    assert_eq!(head.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(head.headers["retry-after"], "7");
    assert_eq!(head.body, Body::Length(3));
    assert!(head.keeps_alive);
}

#[test]
fn informational_answers_are_passed_over() {
    let early = "HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n";
    assert!(head(early.as_bytes()).unwrap().is_none());
    let (head, length) = complete(&format!(
        "{early}{early}HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
    ));
    assert_eq!(head.status, StatusCode::OK);
    assert_eq!(length, 2 * early.len() + 38);
    let error =
        super::head(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c\r\n\r\n").unwrap_err();
    assert!(error.contains("another protocol"), "{error}");
}

#[test]
fn how_long_a_body_is_stands_in_the_head() {
    let body = |headers: &str| {
        let text = format!("HTTP/1.1 200 OK\r\n{headers}\r\n");
        head(text.as_bytes()).map(|head| head.unwrap().0.body)
    };
    assert_eq!(body("content-length: 0\r\n").unwrap(), Body::Length(0));
    assert_eq!(
        body("content-length: 5\r\ncontent-length: 5\r\n").unwrap(),
        Body::Length(5)
    );
    assert_eq!(body("transfer-encoding: Chunked\r\n").unwrap(), CHUNKED);
    // The coding counts where both are given (RFC 9112, 6.3).
    assert_eq!(
        body("content-length: 5\r\ntransfer-encoding: chunked\r\n").unwrap(),
        CHUNKED
    );
    assert_eq!(body("").unwrap(), Body::UntilClose);
    for bad in [
        "content-length: 5\r\ncontent-length: 6\r\n",
        "content-length: +5\r\n",
        "content-length: -5\r\n",
        "content-length: 5, 5\r\n",
        "content-length: \r\n",
        "content-length: 99999999999999999999\r\n",
        "transfer-encoding: gzip, chunked\r\n",
        "transfer-encoding: identity\r\n",
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
    ] {
        assert!(body(bad).is_err(), "{bad}");
    }
    for (status, expected) in [
        (204, Body::Length(0)),
        (304, Body::Length(0)),
        (200, Body::UntilClose),
    ] {
        let text = format!("HTTP/1.1 {status} x\r\n\r\n");
        assert_eq!(complete(&text).0.body, expected);
    }
}

#[test]
fn a_connection_is_used_again_only_where_that_is_sound() {
    let keeps = |version: &str, headers: &str| {
        complete(&format!("HTTP/{version} 200 OK\r\n{headers}\r\n"))
            .0
            .keeps_alive
    };
    let length = "content-length: 0\r\n";
    assert!(keeps("1.1", length));
    assert!(!keeps(
        "1.1",
        &format!("{length}connection: foo, Close\r\n")
    ));
    assert!(!keeps("1.0", length));
    assert!(keeps("1.0", &format!("{length}connection: keep-alive\r\n")));
    assert!(!keeps("1.1", ""), "its body ends with the connection");
}

#[test]
fn what_is_no_head_is_an_error_and_so_is_one_without_end() {
    for bad in [
        "\x16\x03\x01\x02\x00\x01\x00",
        "SSH-2.0-OpenSSH_9\r\n",
        "HTTP/2.0 200 OK\r\n\r\n",
        "HTTP/1.1 2000 x\r\n\r\n",
    ] {
        assert!(head(bad.as_bytes()).is_err(), "{bad:?}");
    }
    let endless = format!("HTTP/1.1 200 OK\r\nx: {}", "y".repeat(LONGEST_HEAD));
    assert!(head(endless.as_bytes()).unwrap_err().contains("more than"));
    let many: String = (0..=MOST_HEADERS)
        .map(|number| format!("x{number}: y\r\n"))
        .collect();
    assert!(head(format!("HTTP/1.1 200 OK\r\n{many}\r\n").as_bytes()).is_err());
}

#[test]
fn chunks_are_joined_however_they_arrive() {
    let bytes = b"5\r\nhello\r\n0C ;a=\"b;c\"\r\n, wonderful!\r\n0\r\nx-trailer: y\r\n\r\nrest";
    for pieces in [&[1][..], &[2, 3], &[1000], &[7, 1]] {
        let (content, rest) = content(CHUNKED, bytes, pieces).unwrap();
        assert_eq!(content, b"hello, wonderful!");
        assert_eq!(rest, b"rest");
    }
}

#[test]
fn malformed_chunks_are_errors() {
    for bad in [
        &b"\r\n"[..],
        b"x\r\n",
        b"-1\r\n",
        b"5x\r\nhello",
        b"5\r\nhelloo\r\n",
        b"5\r\nhello0\r\n",
        b"0x5\r\nhello",
        b"1234567890abcdef0\r\n",
    ] {
        let mut body = CHUNKED;
        assert!(body.read(bad, |_| {}).is_err(), "{bad:?}");
    }
    let mut body = CHUNKED;
    let aside = format!("5;{}", "x".repeat(LONGEST_ASIDE + 1));
    assert!(body.read(aside.as_bytes(), |_| {}).is_err());
    let mut body = CHUNKED;
    let aside = format!("0\r\n{}", "x: y\r\n".repeat(LONGEST_ASIDE / 4));
    assert!(body.read(aside.as_bytes(), |_| {}).is_err());
}

#[test]
fn a_body_of_a_length_leaves_what_follows() {
    let (content, rest) = content(Body::Length(5), b"hello, you", &[3]).unwrap();
    assert_eq!((&content[..], &rest[..]), (&b"hello"[..], &b", you"[..]));
}

proptest! {
    #[test]
    fn any_content_comes_out_of_any_chunks_in_any_pieces(
        chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..300), 0..8),
        pieces in proptest::collection::vec(1..500_usize, 1..6),
        bare in any::<bool>(),
    ) {
        let end = if bare { "\n" } else { "\r\n" };
        let mut bytes = Vec::new();
        for chunk in &chunks {
            bytes.extend_from_slice(format!("{:X}{end}", chunk.len()).as_bytes());
            bytes.extend_from_slice(chunk);
            bytes.extend_from_slice(end.as_bytes());
        }
        bytes.extend_from_slice(format!("0{end}{end}").as_bytes());
        let (content, rest) = content(CHUNKED, &bytes, &pieces).unwrap();
        prop_assert_eq!(content, chunks.concat());
        prop_assert!(rest.is_empty());
    }

    #[test]
    fn no_bytes_make_it_panic_or_take_more_than_there_is(
        bytes in proptest::collection::vec(any::<u8>(), 0..600),
    ) {
        let _ = head(&bytes);
        let mut body = CHUNKED;
        let mut content = 0;
        if let Ok(taken) = body.read(&bytes, |part| content += part.len()) {
            prop_assert!(content <= taken && taken <= bytes.len());
        }
    }
}
