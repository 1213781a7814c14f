use std::time::Duration;

use super::draft::Kind;
use super::*;
use crate::config::{CaSource, IdentitySource, NamePattern};

const BASE: &str =
    "ghostunnel client --listen localhost:7001 --target billing.test:8443 --cacert /c/ca.pem";
const PAIR: &str = "--cert /c/me.crt --key /c/me.key";

fn command(flags: &str) -> Converted {
    file("source", &format!("{BASE} {flags}\n"))
}

/// A file of this name.
fn file(name: &str, text: &str) -> Converted {
    let files = Memory::default().with(&format!("/etc/app/{name}"), text);
    convert(
        Product::Ghostunnel,
        &[name.into()],
        &files,
        Path::new("/etc/app"),
    )
    .unwrap_or_else(|mistake| panic!("{mistake}"))
}

#[test]
fn a_command_line_is_carried_whole() {
    let done = command(&format!(
        "{PAIR} --override-server-name api.test --connect-timeout=5s --close-timeout 7s \
        --max-conn-lifetime 1h30m --max-concurrent-conns 9 --shutdown-timeout 2m --timed-reload 300s"
    ));
    assert!(!done.needs_somebody(), "{}", done.report());
    let service = done.service();
    assert_eq!(service.name.as_str(), "billing-test");
    assert_eq!(service.listen.to_string(), "127.0.0.1:7001");
    assert_eq!(service.upstream.words(), ["billing.test:8443"]);
    assert_eq!(service.ca(), Some(&CaSource::Path("/c/ca.pem".into())));
    assert_eq!(service.tls.verify, Verify::Full);
    let name = service.tls.server_name.map(|it| it.to_str().into_owned());
    assert_eq!(name.as_deref(), Some("api.test"));
    assert_eq!(service.timeouts.connect, Duration::from_secs(5));
    assert_eq!(service.timeouts.close, Duration::from_secs(7));
    assert_eq!(
        service.timeouts.max_lifetime,
        Some(Duration::from_secs(5400))
    );
    assert_eq!(service.max_connections.map(|it| it.get()), Some(9));
    assert_eq!(done.parsed().shutdown_timeout, Duration::from_secs(120));
    assert_eq!(done.note_on("--timed-reload").kind, Kind::Explained);
}

#[test]
fn what_ghostunnel_does_by_itself_is_written_out() {
    let done = command(PAIR);
    assert_eq!(done.parsed().shutdown_timeout, Duration::from_secs(300));
    assert_eq!(done.service().timeouts.connect, Duration::from_secs(10));
    assert_eq!(done.service().timeouts.close, Duration::from_secs(60));
    assert_eq!(done.service().timeouts.idle, None);
    let system = file(
        "source",
        &format!("ghostunnel client --listen localhost:1 --target a.test:1 {PAIR}"),
    );
    assert_eq!(system.service().ca(), Some(&CaSource::System));
}

#[test]
fn names_are_looked_for_as_before_and_what_is_no_name_is_not_lost() {
    let done = command(&format!(
        "{PAIR} --verify-dns=a.test --verify-uri spiffe://d/ns/*/sa/b"
    ));
    let names = [
        NamePattern::Dns("a.test".into()),
        NamePattern::Uri("spiffe://d/ns/*/sa/b".into()),
    ];
    assert_eq!(done.service().tls.allowed_names, names);
    assert!(!done.needs_somebody(), "{}", done.report());
    for flag in [
        "--verify-cn",
        "--verify-ou",
        "--verify-ip",
        "--verify-policy",
    ] {
        let done = command(&format!("{PAIR} {flag} x"));
        assert!(
            done.parsed().services.is_empty(),
            "{flag}: alone it cannot be kept"
        );
        assert!(done.note_on(flag).blocks);
        let done = command(&format!("{PAIR} --verify-dns a.test {flag} x"));
        assert_eq!(done.note_on(flag).kind, Kind::Decide, "fewer are taken");
        assert_eq!(done.parsed().services.len(), 1, "{flag}");
    }
    let digest = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";
    let done = command(&format!("{PAIR} --verify-spki-pin sha256:{digest}"));
    let service = done.service();
    assert_eq!(service.tls.pins.len(), 1);
    assert_eq!(service.tls.verify, Verify::Full, "in addition, not instead");
    assert_eq!(done.note_on("--verify-spki-pin").kind, Kind::Unsafe);
    let done = command(&format!("{PAIR} --verify-spki-pin sha384:{digest}"));
    assert!(done.parsed().services.is_empty());
}

#[test]
fn identities_are_files_or_none_and_all_else_switches_off() {
    let identity = |flags: &str| command(flags).service().identity;
    assert_eq!(
        identity("--keystore /c/me.pem"),
        Some(IdentitySource::Bundle("/c/me.pem".into()))
    );
    assert_eq!(identity("--disable-authentication"), None);
    assert!(identity(PAIR).is_some());
    for flags in [
        "",
        "--cert /c/me.crt",
        "--keystore /c/me.p12",
        "--keystore /c/me.pem --storepass hunter2",
        "--cert /c/me.crt --pkcs11-module /m --pkcs11-pin hunter2",
        "--use-workload-api",
        "--use-workload-api-addr unix:/s",
        "--keychain-identity me",
    ] {
        let done = command(flags);
        assert!(done.parsed().services.is_empty(), "{flags}");
        assert!(!done.config.contains("hunter2") && !done.report().contains("hunter2"));
    }
}

#[test]
fn listeners_are_carried_as_they_are_written() {
    let listen = |flags: &str| {
        let text = format!("ghostunnel client --target a.test:1 --cacert /c {PAIR} {flags}");
        file("source", &text)
    };
    assert_eq!(
        listen("--listen unix:/run/a.sock")
            .service()
            .listen
            .to_string(),
        "unix:/run/a.sock"
    );
    let done = listen("--listen 10.0.0.5:1 --unsafe-listen");
    assert_eq!(done.note_on("--listen").kind, Kind::Unsafe);
    assert_eq!(done.service().listen.to_string(), "10.0.0.5:1");
    assert_eq!(
        listen("--listen :1 --unsafe-listen")
            .service()
            .listen
            .to_string(),
        "0.0.0.0:1"
    );
    assert_eq!(
        listen("--listen :1").service().listen.to_string(),
        "127.0.0.1:1"
    );
    for flags in ["--listen launchd:x", "--listen nonsense", ""] {
        assert!(listen(flags).parsed().services.is_empty(), "{flags}");
    }
}

#[test]
fn what_changes_what_the_service_is_switches_it_off() {
    for (flags, directive) in [
        ("--proxy http://p.test:1", "--proxy"),
        ("--connect-proxy http://p.test:1", "--proxy"),
        ("--max-tls-version TLS1.1", "--max-tls-version"),
        ("--cacert $CA", "--cacert"),
        ("--cacert /c/$(hostname).pem", "--cacert"),
        ("--no-such-flag=1", "--no-such-flag"),
        ("\"$@\"", "ghostunnel"),
        ("--connect-timeout soon", "--connect-timeout"),
    ] {
        let done = command(&format!("{PAIR} {flags}"));
        assert!(
            done.parsed().services.is_empty(),
            "{flags}\n{}",
            done.config
        );
        assert!(
            done.notes_on(directive).iter().any(|note| note.blocks),
            "{flags}: {}",
            done.report()
        );
    }
    let done = command(&format!(
        "{PAIR} --status 0.0.0.0:6060 --enable-shutdown --quiet=conns 2>&1 >> /var/log/x"
    ));
    assert_eq!(done.note_on("--status").kind, Kind::NotCarried);
    assert_eq!(done.service().upstream.words(), ["billing.test:8443"]);
    assert!(!done.parsed().log.connections);
}

#[test]
fn a_script_with_variables_and_several_starts_is_read() {
    let text = "#!/bin/sh\nset -e\nCERTS=/etc/certs\nexport CACERT_PATH=\"$CERTS/ca.pem\"\n\
        exec /usr/bin/ghostunnel client \\\n  --listen localhost:1 \\\n  --target a.test:1 \\\n  --cert $CERTS/a.crt --key ${CERTS}/a.key &\n\
        ghostunnel server --listen :443 --target localhost:80 --keystore /s\n\
        KEYSTORE_PATH=/c/b.pem ghostunnel client --listen localhost:2 --target b.test:2\n";
    let done = file("run.sh", text);
    let services: Vec<Service> = done.parsed().services.into_values().collect();
    let [a, b] = &*services else {
        panic!("{}", done.config)
    };
    for service in [a, b] {
        assert_eq!(
            service.ca(),
            Some(&CaSource::Path("/etc/certs/ca.pem".into()))
        );
    }
    assert_eq!(b.identity, Some(IdentitySource::Bundle("/c/b.pem".into())));
    assert_eq!(done.note_on("ghostunnel server").kind, Kind::NotCarried);
}

#[test]
fn a_systemd_unit_is_read_with_its_environment() {
    let unit = "[Unit]\nDescription=x\n[Service]\nEnvironment=\"CERTS=/etc/my certs\" OTHER=1\nEnvironmentFile=-/nowhere\nEnvironmentFile=/etc/default/ghostunnel\n\
        # a comment\nExecStart=\nExecStart=-/usr/bin/ghostunnel client \\\n    --listen localhost:1 --target a.test:1 \\\n    --keystore ${CERTS}/me.pem\nUser=x\n";
    let files = Memory::default()
        .with("/etc/default/ghostunnel", "CACERT_PATH=/c/ca.pem\n")
        .with("/etc/app/ghostunnel.service", unit);
    let done = convert(
        Product::Ghostunnel,
        &["ghostunnel.service".into()],
        &files,
        Path::new("/etc/app"),
    )
    .unwrap();
    let service = done.service();
    assert_eq!(
        service.identity,
        Some(IdentitySource::Bundle("/etc/my certs/me.pem".into()))
    );
    assert_eq!(service.ca(), Some(&CaSource::Path("/c/ca.pem".into())));
    let text = unit
        .replace("EnvironmentFile=/etc/default/ghostunnel\n", "")
        .replace("a.test", "%i");
    assert!(
        file("ghostunnel@.service", &text)
            .parsed()
            .services
            .is_empty(),
        "nobody knows %i"
    );
}

#[test]
fn images_and_manifests_are_read() {
    let docker = "FROM ghostunnel/ghostunnel:v1.8\nENV CERT_PATH=/c/me.crt KEY_PATH=/c/me.key\n\
        CMD [\"client\", \"--listen=localhost:1\", \\\n \"--target=a.test:1\"]\n";
    assert!(file("Dockerfile", docker).service().identity.is_some());
    let docker = "FROM debian\nENTRYPOINT [\"/ghostunnel\"]\nCMD client --listen localhost:1 --target a.test:1 --keystore /c/k\n";
    assert!(file("Dockerfile", docker).service().identity.is_some());

    let flow = "spec:\n  containers:\n  - name: app\n    args: [\"serve\"]\n  - name: tunnel\n    image: ghostunnel/ghostunnel\n    args:\n    # our own\n    - client\n    - '--listen=localhost:1'  # here\n\n    - --target\n    - \"a.test:1\"\n    env:\n    - name: KEYSTORE_PATH\n      value: /c/me.pem\n    ports: []\n";
    assert_eq!(
        file("pod.yaml", flow).service().identity,
        Some(IdentitySource::Bundle("/c/me.pem".into()))
    );
    let flow = "command: [\"/usr/bin/ghostunnel\",\n  \"client\"]\nargs: [--listen=localhost:1, \"--target=a.test:1\", --keystore=/c/k]\n";
    assert!(file("pod.yaml", flow).service().identity.is_some());
    let compose = "services:\n  tunnel:\n    command: ghostunnel client --listen localhost:1 --target a.test:1\n    environment:\n      KEYSTORE_PATH: /c/k\n";
    assert!(file("compose.yml", compose).service().identity.is_some());
    let secret = "args: [client, --listen=localhost:1, --target=a.test:1]\nenv:\n- name: KEYSTORE_PATH\n  valueFrom:\n    secretKeyRef: {}\n";
    assert!(
        file("pod.yaml", secret).parsed().services.is_empty(),
        "nobody knows the path"
    );

    let flags = "client\n--listen=localhost:1\n--target=a.test:1\n--keystore=/c/k\n";
    assert!(file("flags", flags).service().identity.is_some());
}

#[test]
fn a_file_without_ghostunnel_is_refused() {
    for text in [
        "",
        "echo hello\n",
        "apiVersion: v1\nargs: [serve]\n",
        "[Service]\nExecStart=/bin/true\n",
    ] {
        let said = refused(Product::Ghostunnel, text, Memory::default());
        assert!(said.contains("no command line of ghostunnel"), "{said}");
    }
    let said = refused(
        Product::Ghostunnel,
        "ghostunnel client 'x",
        Memory::default(),
    );
    assert!(
        said.starts_with("source:1: the text that begins with '"),
        "{said}"
    );
}
