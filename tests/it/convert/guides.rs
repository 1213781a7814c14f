//! The examples in the guides are what the converter does.

use std::collections::BTreeMap;
use std::path::Path;

use tlsward::config::Config;

use super::{convert, text};

/// The fenced block behind a comment, without its fences.
fn block<'p>(page: &'p str, mark: &str) -> &'p str {
    let comment = format!("<!-- {mark} -->\n");
    let (_, rest) = page
        .split_once(&comment)
        .unwrap_or_else(|| panic!("no {comment}"));
    let (_, rest) = rest.split_once('\n').expect("a fence below the comment");
    rest.split_once("```").expect("the fence is closed").0
}

#[tokio::test]
async fn the_examples_of_the_guides_are_what_the_converter_writes_and_says() {
    for (product, page, file) in [
        ("stunnel", "from-stunnel.md", "stunnel.conf"),
        ("nginx", "from-nginx.md", "nginx.conf"),
        ("ghostunnel", "from-ghostunnel.md", "ghostunnel.service"),
        ("kong-env", "from-kong-env.md", "kong.env"),
    ] {
        let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
        let guide = std::fs::read_to_string(docs.join(page)).unwrap();
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join(file), block(&guide, "before")).unwrap();
        let output = convert(home.path(), &["--from", product, file]).await;
        let (config, said) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(
            block(&guide, "after"),
            config,
            "{page}: the converter writes\n{config}"
        );
        assert_eq!(
            block(&guide, "said"),
            said,
            "{page}: the converter says\n{said}"
        );
        let code = output.status.code().unwrap();
        let words = format!("Exit code {code}");
        assert!(guide.contains(&words), "{page}: {words} is not in it");
    }
}

#[test]
fn the_example_for_haproxy_which_nobody_converts_is_without_mistakes() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    let guide = std::fs::read_to_string(docs.join("from-haproxy.md")).unwrap();
    let place = Path::new("/etc/tlsward/config.toml");
    let config = Config::parse(block(&guide, "after"), place, &BTreeMap::new());
    let config = config.unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(config.services.len(), 2);
}
