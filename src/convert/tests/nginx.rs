use std::time::Duration;

use super::draft::Kind;
use super::*;
use crate::config::{CaSource, TlsVersion};

/// A server of `stream` with these further lines.
fn server(lines: &str) -> Converted {
    stream(&format!(
        "server {{ listen 127.0.0.1:7001; proxy_pass billing.test:8443; proxy_ssl on; {lines} }}"
    ))
}

fn stream(text: &str) -> Converted {
    converted(
        Product::Nginx,
        &format!("stream {{ {text} }}"),
        Memory::default(),
    )
}

/// What makes a server whole: nothing to decide.
const WHOLE: &str = "proxy_ssl_trusted_certificate /c/ca.pem; proxy_ssl_verify on; \
    proxy_ssl_certificate /c/me.crt; proxy_ssl_certificate_key /c/me.key; proxy_ssl_server_name on;";

#[test]
fn a_server_that_verifies_is_carried_whole() {
    let done = server(WHOLE);
    assert!(done.notes.is_empty(), "{}", done.report());
    let service = done.service();
    assert_eq!(service.name.as_str(), "billing-test");
    assert_eq!(service.listen.to_string(), "127.0.0.1:7001");
    assert_eq!(service.upstream.words(), ["billing.test:8443"]);
    assert_eq!(service.ca(), Some(&CaSource::Path("/c/ca.pem".into())));
    assert_eq!(service.tls.verify, Verify::Full);
    assert_eq!(service.tls.verify_depth, Some(1), "nginx's default");
    assert!(service.tls.sni);
    assert!(service.tls.server_name.is_none());
    assert_eq!(service.timeouts.connect, Duration::from_secs(60));
    assert_eq!(service.timeouts.idle, Some(Duration::from_secs(600)));
    assert!(service.identity.is_some());
}

#[test]
fn without_verification_the_result_verifies_all_the_same_and_says_what_is_missing() {
    let done = server("");
    let service = done.service();
    assert_eq!(service.tls.verify, Verify::Full);
    assert_eq!(service.ca(), Some(&CaSource::System));
    assert!(!service.tls.sni, "nginx sends none unless told");
    assert!(service.identity.is_none());
    assert_eq!(done.note_on("proxy_ssl_verify").kind, Kind::Unsafe);
    let missing = done.note_on("proxy_ssl_trusted_certificate");
    assert_eq!(missing.kind, Kind::Decide);
    assert!(done.needs_somebody());

    let done = server("proxy_ssl_trusted_certificate /c/ca.pem; proxy_ssl_verify off;");
    assert_eq!(done.note_on("proxy_ssl_verify").kind, Kind::Unsafe);
    assert!(!done.needs_somebody(), "{}", done.report());
}

#[test]
fn servers_inherit_from_stream_and_override() {
    let text = format!(
        "proxy_ssl on; {WHOLE} proxy_timeout 1h; proxy_ssl_name inherited.test; allow 10.0.0.0/8; deny all;
        server {{ listen 127.0.0.1:1; proxy_pass a.test:1; }}
        server {{ listen 127.0.0.1:2; proxy_pass b.test:2; proxy_ssl_name own.test; proxy_timeout 2h; allow 192.168.0.1; deny all; }}
        server {{ listen 127.0.0.1:3; proxy_pass c.test:3; proxy_ssl off; }}"
    );
    let done = stream(&text);
    let services: Vec<Service> = done.parsed().services.into_values().collect();
    let [a, b] = &*services else {
        panic!("{}", done.config)
    };
    let name = |it: &Service| {
        it.tls
            .server_name
            .as_ref()
            .map(|it| it.to_str().into_owned())
    };
    assert_eq!(name(a).as_deref(), Some("inherited.test"));
    assert_eq!(name(b).as_deref(), Some("own.test"));
    assert_eq!(a.timeouts.idle, Some(Duration::from_secs(3600)));
    assert_eq!(b.timeouts.idle, Some(Duration::from_secs(7200)));
    assert!(done.config.contains(r#"allow_callers = ["10.0.0.0/8"]"#));
    assert!(done.config.contains(r#"allow_callers = ["192.168.0.1"]"#));
    let plain = done.note_on("server");
    assert_eq!(plain.kind, Kind::NotCarried);
    assert!(plain.was.contains("no TLS"), "{plain}");
}

#[test]
fn groups_become_lists_with_backups_last() {
    let group = "upstream db { zone z 64k; server a.test:1 weight=5 max_fails=3; server b.test:2 down; \
        server [::1]:3 backup; server c.test:4 resolve; least_conn; }";
    let done = stream(&format!(
        "{group} server {{ listen 127.0.0.1:1; proxy_pass db; proxy_ssl on; {WHOLE} }}"
    ));
    let service = done.service();
    assert_eq!(service.name.as_str(), "db");
    assert_eq!(
        service.upstream.words(),
        ["a.test:1", "c.test:4", "[::1]:3"]
    );
    let name = service
        .tls
        .server_name
        .expect("nginx verifies the group's name");
    assert_eq!(name.to_str(), "db");
    for (directive, kind) in [
        ("upstream db", Kind::NotCarried),
        ("weight", Kind::NotCarried),
        ("least_conn", Kind::NotCarried),
        ("down", Kind::Explained),
        ("resolve", Kind::Explained),
        ("zone", Kind::Explained),
    ] {
        assert_eq!(done.note_on(directive).kind, kind, "{directive}");
    }

    let done = stream(&format!(
        "upstream db {{ server a.test:1 max_conns=7; }} server {{ listen 127.0.0.1:1; proxy_pass db; proxy_ssl on; {WHOLE} }}"
    ));
    assert_eq!(done.service().max_connections.map(|it| it.get()), Some(7));
    assert!(!done.needs_somebody(), "{}", done.report());

    // Unverified, its name is no name that anybody has looked for.
    let done = stream(
        "upstream db { server a.test:1; } server { listen 127.0.0.1:1; proxy_pass db; proxy_ssl on; }",
    );
    assert!(done.service().tls.server_name.is_none());
}

#[test]
fn constants_are_put_in_and_variables_switch_the_service_off() {
    let done = server(&format!(
        "{WHOLE} set $domain billing.test; set $name api.$domain; proxy_ssl_name $name;"
    ));
    let name = done.service().tls.server_name.expect("constant");
    assert_eq!(name.to_str(), "api.billing.test");
    for lines in [
        "proxy_ssl_name $ssl_preread_server_name;",
        "set $name $remote_addr; proxy_ssl_name $name;",
        "proxy_ssl_certificate /c/$hostname.crt;",
    ] {
        let done = server(&format!(
            "proxy_ssl_certificate_key /c/k; proxy_ssl_trusted_certificate /c; {lines}"
        ));
        assert!(done.parsed().services.is_empty(), "{lines}");
    }
    let done = stream("server { listen 127.0.0.1:1; proxy_ssl on; proxy_pass $target; }");
    assert!(done.parsed().services.is_empty());
    assert!(done.note_on("proxy_pass").blocks);
    let done = stream(
        "server { listen 127.0.0.1:1; proxy_ssl on; set $target db.test:5432; proxy_pass $target; }",
    );
    assert_eq!(done.service().upstream.words(), ["db.test:5432"]);
}

#[test]
fn what_cannot_be_carried_switches_the_service_off() {
    for (lines, directive) in [
        ("proxy_ssl_password_file /c/p;", "proxy_ssl_password_file"),
        ("proxy_protocol on;", "proxy_protocol"),
        ("proxy_ssl_verify_depth on;", "proxy_ssl_verify_depth"),
        ("proxy_ssl_protocols TLSv1;", "proxy_ssl_protocols"),
        (
            "proxy_ssl_conf_command VerifyCAFile /x;",
            "proxy_ssl_conf_command VerifyCAFile",
        ),
        ("deny 10.0.0.1; allow all;", "deny"),
        ("deny 10.0.0.1; allow 10.0.0.0/8; deny all;", "deny"),
        ("allow unix:; deny all;", "allow"),
        ("deny all;", "deny"),
        ("js_access main.access;", "js_access"),
    ] {
        let done = server(&format!("{WHOLE} {lines}"));
        assert!(
            done.parsed().services.is_empty(),
            "{lines}\n{}",
            done.config
        );
        assert!(done.note_on(directive).blocks, "{lines}");
    }
    for (listen, directive) in [
        ("127.0.0.1:1 ssl", "listen ssl"),
        ("127.0.0.1:1 proxy_protocol", "listen proxy_protocol"),
        ("127.0.0.1:1-9", "listen"),
        ("[::1]", "listen"),
        ("db.test:1", "listen"),
    ] {
        let done = stream(&format!(
            "server {{ listen {listen}; proxy_pass a.test:1; proxy_ssl on; {WHOLE} }}"
        ));
        assert!(done.parsed().services.is_empty(), "{listen}");
        assert!(done.note_on(directive).blocks, "{listen}");
    }
    for pass in ["unix:/run/db.sock", "db.test", ":1"] {
        let done = stream(&format!(
            "server {{ listen 127.0.0.1:1; proxy_pass {pass}; proxy_ssl on; {WHOLE} }}"
        ));
        assert!(done.parsed().services.is_empty(), "{pass}");
        assert!(done.note_on("proxy_pass").blocks, "{pass}");
    }
}

#[test]
fn each_listen_is_a_service() {
    let done = stream(&format!(
        "server {{ listen 7001; listen [::1]:7001 so_keepalive=30s::10; listen unix:/run/a.sock; listen 127.0.0.1:53 udp; \
         proxy_pass a.test:1; proxy_ssl on; {WHOLE} }}"
    ));
    let config = done.parsed();
    let mut listens: Vec<String> = config
        .services
        .values()
        .map(|it| it.listen.to_string())
        .collect();
    listens.sort();
    assert_eq!(
        listens,
        ["127.0.0.1:7001", "[::1]:7001", "unix:/run/a.sock"]
    );
    let kinds: Vec<Kind> = done.notes_on("listen").iter().map(|it| it.kind).collect();
    assert!(
        kinds.contains(&Kind::Decide),
        "of every address only loopback: {kinds:?}"
    );
    assert!(kinds.contains(&Kind::NotCarried), "udp: {kinds:?}");
    let keepalive = config
        .services
        .values()
        .filter(|it| it.keepalive == Some(Duration::from_secs(30)));
    assert_eq!(keepalive.count(), 1);
}

#[test]
fn versions_sessions_protocols_and_depth_are_carried() {
    let done = server(&format!(
        "{WHOLE} proxy_ssl_protocols TLSv1.1 TLSv1.2; proxy_ssl_session_reuse off; proxy_ssl_alpn h2 http/1.1; \
         proxy_ssl_verify_depth 3; proxy_ssl_crl /c/crl.pem; proxy_ssl_ciphers HIGH; \
         proxy_ssl_conf_command Groups X25519:P-256; proxy_connect_timeout 5s;"
    ));
    let service = done.service();
    assert_eq!(service.tls.max_version, TlsVersion::Tls12);
    assert!(!service.tls.resumption);
    assert_eq!(service.tls.alpn, ["h2", "http/1.1"]);
    assert_eq!(service.tls.verify_depth, Some(3));
    assert_eq!(service.timeouts.connect, Duration::from_secs(5));
    assert!(service.trust.is_some_and(|it| it.crl.is_some()));
    assert_eq!(done.note_on("proxy_ssl_protocols").kind, Kind::Unsafe);
    assert_eq!(done.note_on("proxy_ssl_ciphers").kind, Kind::NotCarried);
}

#[test]
fn includes_count_from_the_main_file_and_take_patterns() {
    let files = Memory::default()
        .with("/etc/app/stream.d/b.conf", &format!("server {{ listen 127.0.0.1:2; proxy_pass b.test:1; proxy_ssl on; {WHOLE} include tls.conf; }}"))
        .with("/etc/app/stream.d/a.conf", "upstream unused { server x.test:1; }")
        .with("/etc/app/stream.d/c.txt", "nonsense {")
        .with("/etc/app/tls.conf", "proxy_ssl_name from.include.test;");
    let main = "include modules/*.conf; stream { include stream.d/*.conf; }";
    let done = converted(Product::Nginx, main, files);
    let name = done.service().tls.server_name.expect("included");
    assert_eq!(name.to_str(), "from.include.test");
    assert_eq!(done.note_on("upstream unused").kind, Kind::Explained);
    assert_eq!(done.services.len(), 1);

    let said = refused(
        Product::Nginx,
        "stream { include gone.conf; }",
        Memory::default(),
    );
    assert!(
        said.starts_with("source:1: cannot read /etc/app/gone.conf"),
        "{said}"
    );
    let itself = Memory::default().with("/etc/app/a", "include a;");
    let said = refused(Product::Nginx, "stream { include a; }", itself);
    assert!(said.contains("includes itself"), "{said}");
}

#[test]
fn http_is_listed_and_what_cannot_be_read_of_it_is_no_obstacle() {
    let text = "events { worker_connections 512; } worker_processes auto; worker_shutdown_timeout 20s;
        http { include gone.types; server { listen 80; listen 443 ssl; location / { proxy_pass https://api.test:8443/x; } } }
        stream { }";
    let done = converted(Product::Nginx, text, Memory::default());
    assert!(done.services.is_empty());
    assert_eq!(done.note_on("http server").kind, Kind::NotCarried);
    assert!(done.note_on("http server").was.ends_with("on 80, 443"));
    assert!(done.note_on("proxy_pass").was.contains("api.test:8443"));
    assert_eq!(done.note_on("include").kind, Kind::NotCarried);
    assert_eq!(done.note_on("events").kind, Kind::Explained);
    assert_eq!(done.parsed().shutdown_timeout, Duration::from_secs(20));
}

#[test]
fn a_part_of_nginx_conf_can_be_converted_alone() {
    let text = format!(
        "server {{ listen 127.0.0.1:1; proxy_pass a.test:1; proxy_ssl on; {WHOLE} proxy_ssl_crl crl.pem; }}"
    );
    let done = converted(Product::Nginx, &text, Memory::default());
    assert_eq!(done.parsed().services.len(), 1);
    assert_eq!(done.note_on("proxy_ssl_crl").kind, Kind::Decide);
    let http = converted(
        Product::Nginx,
        "server { listen 80; location / { } }",
        Memory::default(),
    );
    assert!(http.note_on("server").was.contains("HTTP"));
}

#[test]
fn what_nginx_could_not_read_either_is_refused_with_its_place() {
    for (text, words) in [
        (
            "stream {\n server {\n",
            "source:2: the block is never closed",
        ),
        ("stream { }\n}", "source:2: this } closes nothing"),
        (
            "stream { proxy_ssl on }",
            "source:1: proxy_ssl does not end in ;",
        ),
        (";", "ends nothing"),
        ("{ }", "no name before it"),
        ("a \"b", "never ends"),
        ("user www;", "no stream"),
        ("stream { include a b; }", "one file or pattern"),
        ("stream { include */a.conf; }", "name of a directory"),
        ("http { content_by_lua_block { if { } ", "never closed"),
    ] {
        let said = refused(Product::Nginx, text, Memory::default());
        assert!(
            said.contains(words) && said.contains("fix: "),
            "{text}: {said}"
        );
    }
    let nested = "a {".repeat(100);
    let said = refused(Product::Nginx, &nested, Memory::default());
    assert!(said.contains("more than 64 deep"), "{said}");
    let lua = "http { content_by_lua_block { local t = { 1 } } } stream { }";
    assert!(
        converted(Product::Nginx, lua, Memory::default())
            .services
            .is_empty()
    );
}
