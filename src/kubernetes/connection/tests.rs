use std::sync::Mutex;

use futures_util::future::BoxFuture;
use tokio::io::AsyncReadExt as _;
use tokio::task::JoinSet;

use super::*;
use crate::kubernetes::server::Dial;

/// A server whose connections answer with these bytes, one request after the other, and then close.
struct Script {
    connections: Mutex<Vec<Vec<&'static str>>>,
    tasks: Mutex<JoinSet<()>>,
}

impl Dial for Script {
    fn dial(&self) -> BoxFuture<'_, Result<Box<dyn Io>, String>> {
        Box::pin(async {
            let mut connections = self.connections.lock().unwrap();
            if connections.is_empty() {
                return Err("one connection too many".into());
            }
            let answers = connections.remove(0);
            let (ours, mut theirs) = tokio::io::duplex(64 * 1024);
            self.tasks.lock().unwrap().spawn(async move {
                for answer in answers {
                    let mut asked = Vec::new();
                    while !asked.ends_with(b"\r\n\r\n") {
                        asked.push(theirs.read_u8().await.unwrap());
                    }
                    theirs.write_all(answer.as_bytes()).await.unwrap();
                }
            });
            Ok(Box::new(ours) as Box<dyn Io>)
        })
    }
}

fn server(connections: &[&[&'static str]]) -> Server {
    let connections = connections.iter().map(|answers| answers.to_vec());
    let script = Script {
        connections: Mutex::new(connections.collect()),
        tasks: Mutex::default(),
    };
    Server::anonymous("https://api", script)
}

async fn ask(conversation: &mut Conversation, server: &Server) -> Result<String, String> {
    conversation
        .ask(server, Method::GET, "/", &[], Patience::FULL)
        .await?;
    let whole = conversation.whole(1000, Patience::FULL).await?;
    Ok(String::from_utf8(whole.to_vec()).unwrap())
}

const ONE: &str = "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\none";
const TWO: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\ntwo\r\n0\r\n\r\n";

#[tokio::test(start_paused = true)]
async fn one_connection_carries_one_request_after_the_other() {
    let server = server(&[&[ONE, TWO, ONE]]);
    let mut conversation = Conversation::default();
    for expected in ["one", "two", "one"] {
        assert_eq!(ask(&mut conversation, &server).await.unwrap(), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn another_is_made_where_the_first_cannot_be_used_again() {
    let closing = "HTTP/1.1 200 OK\r\ncontent-length: 3\r\nconnection: close\r\n\r\none";
    let surplus = "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\none, two";
    let old = "HTTP/1.0 200 OK\r\n\r\none";
    let wrong = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nwrong";
    for first in [&[closing, wrong][..], &[surplus, wrong], &[old], &[ONE]] {
        let server = server(&[first, &[TWO]]);
        let mut conversation = Conversation::default();
        assert_eq!(ask(&mut conversation, &server).await.unwrap(), "one");
        assert_eq!(
            ask(&mut conversation, &server).await.unwrap(),
            "two",
            "{first:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_was_not_read_is_no_answer_to_the_next_request() {
    // What is left of it looks like an answer.
    let head = "HTTP/1.1 200 OK\r\ncontent-length: 20000\r\n\r\n";
    let read = AT_ONCE - head.len();
    let long = format!(
        "{head}{}{ONE}{}",
        "x".repeat(read),
        "x".repeat(20_000 - read - ONE.len())
    );
    let server = server(&[&[long.leak(), ONE], &[TWO]]);
    let mut conversation = Conversation::default();
    let head = conversation
        .ask(&server, Method::GET, "/", &[], Patience::FULL)
        .await;
    assert_eq!(head.unwrap().status, 200);
    assert_eq!(ask(&mut conversation, &server).await.unwrap(), "two");
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_breaks_off_is_an_error_that_says_so() {
    for (answer, expected) in [
        ("", "closed without an answer"),
        ("HTTP/1.1 200 OK\r\ncontent-", "closed without an answer"),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\none",
            "closed within an answer",
        ),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\ntwo\r\n",
            "closed within an answer",
        ),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nno",
            "malformed",
        ),
        ("SSH-2.0-x\r\n", "not HTTP"),
    ] {
        let server = server(&[&[answer]]);
        let why = ask(&mut Conversation::default(), &server)
            .await
            .unwrap_err();
        assert!(why.contains(expected), "{answer:?}: {why}");
    }
}

#[tokio::test(start_paused = true)]
async fn more_than_is_to_be_taken_in_is_an_error() {
    let server = server(&[&["HTTP/1.1 200 OK\r\n\r\n0123456789"]]);
    let mut conversation = Conversation::default();
    let asked = conversation.ask(&server, Method::GET, "/", &[], Patience::FULL);
    asked.await.unwrap();
    let why = conversation.whole(5, Patience::FULL).await.unwrap_err();
    assert!(why.contains("more than 5 bytes"), "{why}");
}

#[test]
fn bytes_that_grow_leave_no_copy_behind_and_are_all_there() {
    let mut bytes = Zeroizing::default();
    for piece in ["a", "bc", "", "defghijk", "l"] {
        append(&mut bytes, piece.as_bytes());
    }
    assert_eq!(&bytes[..], b"abcdefghijkl");
}
