use std::time::Duration;

use super::*;
use crate::config::{CaSource, IdentitySource, NamePattern, TlsVersion, UncleanClose};

/// A client section with these further lines.
fn client(lines: &str) -> Converted {
    let text = format!(
        "[billing]\nclient = yes\naccept = 127.0.0.1:7001\nconnect = billing.test:8443\n{lines}\n"
    );
    converted(Product::Stunnel, &text, Memory::default())
}

/// What makes a section whole: nothing to decide.
const WHOLE: &str = "CAfile = /c/ca.pem\nverifyChain = yes\ncheckHost = billing.test\ncert = /c/me.pem\nsslVersionMin = TLSv1.2\n";

#[test]
fn a_section_that_verifies_is_carried_whole() {
    let done = client(WHOLE);
    assert!(!done.needs_somebody(), "{}", done.report());
    assert!(done.notes.is_empty(), "{}", done.report());
    let service = done.service();
    assert_eq!(service.listen.to_string(), "127.0.0.1:7001");
    assert_eq!(service.upstream.words(), ["billing.test:8443"]);
    assert_eq!(service.ca(), Some(&CaSource::Path("/c/ca.pem".into())));
    assert_eq!(
        service.identity,
        Some(IdentitySource::Bundle("/c/me.pem".into()))
    );
    assert_eq!(service.tls.verify, Verify::Full);
    assert_eq!(service.timeouts.idle, Some(Duration::from_secs(43_200)));
}

#[test]
fn comments_case_defaults_and_blanks_are_stunnel_s() {
    let text = "\u{feff}; a comment\n# another\nCLIENT = yes\n  CAfile=/c/ca.pem\n\n[billing]\n\tACCEPT = 7001\nconnect = 8443\n  ; client = no\n[other]\nclient = no\naccept = 1\n";
    let done = converted(Product::Stunnel, text, Memory::default());
    let service = done.service();
    assert_eq!(
        service.listen.to_string(),
        "127.0.0.1:7001",
        "nobody said that others may call"
    );
    assert_eq!(service.upstream.words(), ["localhost:8443"]);
    assert_eq!(service.ca(), Some(&CaSource::Path("/c/ca.pem".into())));
    assert_eq!(done.note_on("ACCEPT").kind, draft::Kind::Decide);
    assert_eq!(done.note_on("[other]").kind, draft::Kind::NotCarried);
}

#[test]
fn without_verification_the_result_verifies_all_the_same_and_says_what_is_missing() {
    let done = client("");
    let service = done.service();
    assert_eq!(service.tls.verify, Verify::Full);
    assert_eq!(service.ca(), Some(&CaSource::System));
    assert_eq!(done.note_on("verifyChain").kind, draft::Kind::Unsafe);
    assert_eq!(done.note_on("CAfile").kind, draft::Kind::Decide);
    assert_eq!(done.note_on("sslVersionMin").kind, draft::Kind::Unsafe);
    assert!(done.needs_somebody());

    let done = client("CAfile = /c/ca.pem\nverify = 2\n");
    assert_eq!(done.note_on("checkHost").kind, draft::Kind::Unsafe);
    assert!(!done.needs_somebody(), "{}", done.report());
}

#[test]
fn a_check_that_cannot_be_carried_switches_the_service_off() {
    for (lines, directive) in [
        ("verifyPeer = yes", "verifyPeer"),
        ("verify = 3", "verify"),
        ("verify = 4", "verify"),
        ("OCSPaia = yes", "OCSPaia"),
        ("OCSP = http://ocsp.test/", "OCSP"),
        ("checkEmail = a@b.test", "checkEmail"),
        ("checkHost = a.test\ncheckIP = 10.0.0.1", "checkIP"),
        ("checkIP = 10.0.0.1\ncheckIP = 10.0.0.2", "checkIP"),
        ("securityLevel = 3", "securityLevel"),
        ("CRLfile = /a\nCRLpath = /b", "CRLpath"),
        ("PSKsecrets = /s", "PSKsecrets"),
        ("protocol = smtp", "protocol"),
        ("exec = /bin/sh", "exec"),
        ("libwrap = yes", "libwrap"),
        ("engineId = pkcs11", "engineId"),
        ("cert = /c/me.p12", "cert"),
        ("sslVersionMax = TLSv1.1", "sslVersionMax"),
        ("config = VerifyCAFile:/x", "config VerifyCAFile"),
        ("noSuchThing = 1", "noSuchThing"),
    ] {
        let done = client(&format!("CAfile = /c/ca.pem\nverifyChain = yes\n{lines}"));
        assert!(
            done.parsed().services.is_empty(),
            "{lines}:\n{}",
            done.config
        );
        assert!(done.note_on(directive).blocks, "{lines}");
        assert!(done.needs_somebody(), "{lines}");
        assert!(
            done.config.contains("#[services.billing]"),
            "{}",
            done.config
        );
    }
}

#[test]
fn names_are_looked_for_as_before() {
    let chain = "CAfile = /c/ca.pem\nverifyChain = yes\n";
    let tls = |lines: &str| client(&format!("{chain}{lines}")).service().tls;
    let name = |tls: &crate::config::TlsPolicy| {
        tls.server_name.as_ref().map(|it| it.to_str().into_owned())
    };

    let one = tls("checkHost = a.test");
    assert_eq!(
        (one.verify, name(&one).as_deref()),
        (Verify::Full, Some("a.test"))
    );
    let sent = tls("sni = b.test");
    assert_eq!(
        (sent.verify, name(&sent).as_deref()),
        (Verify::Full, Some("b.test"))
    );
    let same = tls("checkHost = a.test\nsni = A.test");
    assert_eq!(
        (same.verify, name(&same).as_deref()),
        (Verify::Full, Some("a.test"))
    );
    assert!(!tls("sni =").sni);
    let address = tls("checkIP = 10.0.0.1");
    assert_eq!(name(&address).as_deref(), Some("10.0.0.1"));

    let pattern = |name: &str| NamePattern::Dns(name.into());
    let other = tls("checkHost = a.test\nsni = b.test");
    assert_eq!(
        (other.verify, name(&other).as_deref()),
        (Verify::Chain, Some("b.test"))
    );
    assert_eq!(other.allowed_names, [pattern("a.test")]);
    let any = tls("checkHost = a.test\ncheckHost = b.test");
    assert_eq!(any.verify, Verify::Chain);
    assert_eq!(any.allowed_names, [pattern("a.test"), pattern("b.test")]);
}

#[test]
fn times_versions_groups_and_sessions_are_carried() {
    let lines = "TIMEOUTconnect = 5\nTIMEOUTidle = 90\nTIMEOUTclose = 7\nsslVersion = TLSv1.3\ncurves = P-256:X25519:X448\nsessionResume = no\noptions = IGNORE_UNEXPECTED_EOF\nsocket = r:TCP_KEEPIDLE=60\ndelay = yes";
    let done = client(&format!("{WHOLE}{lines}"));
    let service = done.service();
    assert_eq!(service.timeouts.connect, Duration::from_secs(5));
    assert_eq!(service.timeouts.idle, Some(Duration::from_secs(90)));
    assert_eq!(service.timeouts.close, Duration::from_secs(7));
    assert_eq!(service.tls.min_version, TlsVersion::Tls13);
    assert!(!service.tls.resumption);
    assert_eq!(service.unclean_close, UncleanClose::Fin);
    assert_eq!(service.keepalive, Some(Duration::from_secs(60)));
    assert!(
        done.config
            .contains(r#"key_exchange = ["secp256r1", "X25519"]"#),
        "{}",
        done.config
    );
    assert_eq!(done.note_on("curves").kind, draft::Kind::NotCarried);
    assert_eq!(done.note_on("delay").kind, draft::Kind::Explained);
    assert_eq!(
        done.note_on("options IGNORE_UNEXPECTED_EOF").kind,
        draft::Kind::Unsafe
    );

    let done = client(&format!("{WHOLE}TIMEOUTclose = 0\nsslVersionMax = TLSv1.2"));
    assert_eq!(done.note_on("TIMEOUTclose").kind, draft::Kind::Decide);
    assert_eq!(done.service().tls.max_version, TlsVersion::Tls12);
}

#[test]
fn several_servers_are_tried_in_order_and_turns_are_named() {
    let done = client(&format!("{WHOLE}connect = [::1]:8444\n"));
    assert_eq!(
        done.service().upstream.words(),
        ["billing.test:8443", "[::1]:8444"]
    );
    assert!(!done.needs_somebody());
    let done = client(&format!("{WHOLE}connect = b.test:https\nfailover = rr\n"));
    assert_eq!(
        done.service().upstream.words(),
        ["billing.test:8443", "b.test:443"]
    );
    assert_eq!(done.note_on("failover").kind, draft::Kind::NotCarried);
}

#[test]
fn listeners_are_carried_as_they_are_written_and_no_further() {
    let listen = |accept: &str| {
        let text = format!("[a]\nclient=yes\naccept={accept}\nconnect=a:1\n{WHOLE}");
        converted(Product::Stunnel, &text, Memory::default())
    };
    for (accept, ours) in [
        ("127.0.0.1:25", "127.0.0.1:25"),
        ("localhost:imap", "127.0.0.1:143"),
        ("::1:25", "[::1]:25"),
        ("/run/a.sock", "unix:/run/a.sock"),
    ] {
        let done = listen(accept);
        assert_eq!(done.service().listen.to_string(), ours);
        assert!(!done.needs_somebody(), "{}", done.report());
    }
    for accept in ["10.0.0.5:25", "0.0.0.0:25", ":::25"] {
        let done = listen(accept);
        assert_eq!(done.note_on("accept").kind, draft::Kind::Unsafe);
        assert_eq!(done.parsed().services.len(), 1);
    }
    for accept in ["mail.test:25", "127.0.0.1:nonsense", "127.0.0.1:0"] {
        assert!(listen(accept).parsed().services.is_empty(), "{accept}");
    }
}

#[test]
fn included_files_stand_where_they_are_included_in_the_order_of_their_names() {
    let files = Memory::default()
        .with(
            "/d/2.conf",
            "[two]\nclient=yes\naccept=127.0.0.1:2\nconnect=b:2\n",
        )
        .with(
            "/d/1.conf",
            "CAfile = /c/from-1.pem\n[one]\nclient=yes\naccept=127.0.0.1:1\nconnect=a:1\n",
        );
    let done = converted(Product::Stunnel, "include = /d\nverifyChain = yes\n", files);
    let services = done.parsed().services;
    assert_eq!(services.len(), 2);
    for service in services.values() {
        assert_eq!(service.ca(), Some(&CaSource::Path("/c/from-1.pem".into())));
    }
    let places: Vec<String> = done
        .notes_on("verifyChain")
        .iter()
        .map(|it| it.place.to_string())
        .collect();
    assert_eq!(
        places,
        ["/d/1.conf:2"],
        "only the first lacks it: the line below the include is in [two]"
    );
}

#[test]
fn relative_files_count_from_the_file_s_directory_and_that_is_said() {
    let done = client("CAfile = ca.pem\nverifyChain = yes\ncheckHost = billing.test");
    assert_eq!(
        done.service().ca(),
        Some(&CaSource::Path("/etc/app/ca.pem".into()))
    );
    assert_eq!(done.note_on("CAfile").kind, draft::Kind::Decide);
}

#[test]
fn what_is_no_stunnel_conf_is_refused_with_its_place() {
    let refused = |text| refused(Product::Stunnel, text, Memory::default());
    assert!(refused("client = yes\nconnect = a:1\n").contains("source: has no [service]"));
    assert!(refused("[a]\nnonsense\n").contains("source:2: is neither"));
    assert!(refused("include = d\n[a]\n").contains("source:1: includes d"));
    assert!(refused("include = /nowhere\n[a]\n").contains("cannot list /nowhere"));
}

#[test]
fn no_secret_of_the_source_is_written_anywhere() {
    let secrets = "protocolPassword = hunter2\nprotocolUsername = hunter2\nPSKidentity = hunter2\nticketKeySecret = hunter2\nunknownPassword = hunter2\n";
    let done = client(secrets);
    assert!(!done.report().contains("hunter2"));
    assert!(!done.config.contains("hunter2"));
}
