use super::draft::Kind;
use super::*;
use crate::config::{CaSource, IdentitySource};

/// The variables of Kong's guide, with a depth that is a number.
const GUIDE: &str = r#"KONG_NGINX_PROXY_PROXY_SSL_VERIFY="on"
KONG_NGINX_PROXY_PROXY_SSL_VERIFY_DEPTH="2"
KONG_NGINX_PROXY_PROXY_SSL_TRUSTED_CERTIFICATE="/etc/secrets/ca.crt"
KONG_NGINX_PROXY_PROXY_SSL_CERTIFICATE="/etc/secrets/tls.crt"
KONG_NGINX_PROXY_PROXY_SSL_CERTIFICATE_KEY="/etc/secrets/tls.key"
"#;

fn env(text: &str) -> Converted {
    converted(Product::KongEnv, text, Memory::default())
}

/// A service that has nothing of its own inherits what was written.
fn inherited(done: &Converted) -> Service {
    let text = format!(
        "{}\n[services.a]\nlisten = \"127.0.0.1:1\"\nupstream = \"a.test:1\"\n",
        done.config
    );
    let path = Path::new("/etc/tlsward/config.toml");
    let config = Config::parse(&text, path, &BTreeMap::new());
    let config = config.unwrap_or_else(|problems| panic!("{:?}\n{text}", problems.iter().next()));
    config.services.into_values().next().unwrap()
}

#[test]
fn the_guide_s_variables_become_defaults() {
    let done = env(GUIDE);
    let service = inherited(&done);
    assert_eq!(
        service.ca(),
        Some(&CaSource::Path("/etc/secrets/ca.crt".into()))
    );
    assert_eq!(service.tls.verify, Verify::Full);
    assert_eq!(service.tls.verify_depth, Some(2));
    assert!(
        matches!(&service.identity, Some(IdentitySource::Pair { cert, .. }) if cert == Path::new("/etc/secrets/tls.crt"))
    );
    let words: Vec<&str> = done
        .notes
        .iter()
        .map(|(_, note)| &*note.directive)
        .collect();
    assert_eq!(words, ["services"], "only the services are left to write");
    assert!(
        done.config.contains("#[services.billing]"),
        "{}",
        done.config
    );
}

#[test]
fn every_form_of_setting_a_variable_is_read() {
    for (before, between, after) in [
        ("export ", "=", ""),
        ("- ", "=", ""),
        ("- \"", "=", "\""),
        ("  ", ": ", ""),
        ("-e ", "=", " \\"),
        ("ENV ", "=", ""),
        ("- name: ", "\n  value: ", ""),
    ] {
        let lines = GUIDE
            .replace('"', "")
            .lines()
            .map(|line| {
                let (name, value) = line.split_once('=').unwrap();
                format!("{before}{name}{between}{value}{after}\n")
            })
            .collect::<String>();
        let done = env(&lines);
        assert_eq!(inherited(&done).tls.verify_depth, Some(2), "{lines}");
        assert!(inherited(&done).identity.is_some(), "{lines}");
    }
}

#[test]
fn without_verification_the_result_verifies_all_the_same_and_says_what_is_missing() {
    let done = env("KONG_CLIENT_SSL=off\n");
    let service = inherited(&done);
    assert_eq!(service.tls.verify, Verify::Full);
    assert_eq!(service.ca(), Some(&CaSource::System));
    assert!(service.identity.is_none());
    assert_eq!(
        done.note_on("KONG_NGINX_PROXY_PROXY_SSL_VERIFY").kind,
        Kind::Unsafe
    );
    assert_eq!(
        done.note_on("KONG_NGINX_PROXY_PROXY_SSL_TRUSTED_CERTIFICATE")
            .kind,
        Kind::Decide
    );
}

#[test]
fn a_depth_that_is_no_number_is_the_strictest_until_somebody_decides() {
    let done = env(&GUIDE.replace("\"2\"", "\"on\""));
    assert_eq!(inherited(&done).tls.verify_depth, Some(0));
    assert_eq!(
        done.note_on("KONG_NGINX_PROXY_PROXY_SSL_VERIFY_DEPTH").kind,
        Kind::Decide
    );
}

#[test]
fn client_ssl_and_the_list_for_lua_count_where_nothing_else_is_said() {
    let text = "KONG_CLIENT_SSL=on\nKONG_CLIENT_SSL_CERT=/c/me.crt\nKONG_CLIENT_SSL_CERT_KEY=/c/me.key\n\
        KONG_LUA_SSL_TRUSTED_CERTIFICATE=/c/ca.pem,system\n";
    let done = env(text);
    let service = inherited(&done);
    assert_eq!(service.ca(), Some(&CaSource::Path("/c/ca.pem".into())));
    assert!(service.identity.is_some());
    assert_eq!(
        done.note_on("KONG_LUA_SSL_TRUSTED_CERTIFICATE").kind,
        Kind::Decide
    );
    let done = env(&format!("{GUIDE}{text}"));
    assert_eq!(
        inherited(&done).ca(),
        Some(&CaSource::Path("/etc/secrets/ca.crt".into()))
    );
    assert_eq!(done.note_on("KONG_CLIENT_SSL_CERT").kind, Kind::Explained);
    let done = env("KONG_LUA_SSL_TRUSTED_CERTIFICATE=system\n");
    assert_eq!(inherited(&done).ca(), Some(&CaSource::System));
}

#[test]
fn an_identity_that_is_not_known_leaves_services_without_one_until_it_is_written() {
    for text in [
        "KONG_CLIENT_SSL=on\nKONG_CLIENT_SSL_CERT=/c/me.crt\n",
        "KONG_CLIENT_SSL=on\nKONG_CLIENT_SSL_CERT=LS0tLS1CRUdJTg==\nKONG_CLIENT_SSL_CERT_KEY=hunter2\n",
        "KONG_NGINX_PROXY_PROXY_SSL_CERTIFICATE=${DIR}/a\nKONG_NGINX_PROXY_PROXY_SSL_CERTIFICATE_KEY=/k\n",
        "- name: KONG_NGINX_PROXY_PROXY_SSL_CERTIFICATE\n  valueFrom:\n    secretKeyRef: x\n",
    ] {
        let done = env(text);
        assert!(done.needs_somebody());
        let presents_none = |line: &str| line.starts_with("client_auth");
        assert!(!done.config.lines().any(presents_none), "{}", done.config);
        assert!(
            !done
                .config
                .lines()
                .any(|line| line.starts_with("cert") || line.starts_with("key")),
            "{}",
            done.config
        );
        assert!(!done.report().contains("hunter2") && !done.config.contains("hunter2"));
    }
}

#[test]
fn the_rest_is_listed_and_no_value_of_it_is_shown() {
    let text = format!(
        "{GUIDE}KONG_PG_PASSWORD=hunter2\nKONG_NGINX_SPROXY_PROXY_SSL_VERIFY=off\nKONG_NGINX_PROXY_PROXY_SSL_CIPHERS=HIGH\nPATH=/bin\nKONG_NGINX_PROXY_PROXY_SSL_PROTOCOLS=TLSv1.1 TLSv1.2\nKONG_NGINX_PROXY_PROXY_SSL_PASSWORD_FILE=/p\n"
    );
    let done = env(&text);
    for (name, kind) in [
        ("KONG_PG_PASSWORD", Kind::Explained),
        ("KONG_NGINX_SPROXY_PROXY_SSL_VERIFY", Kind::NotCarried),
        ("KONG_NGINX_PROXY_PROXY_SSL_CIPHERS", Kind::NotCarried),
        ("KONG_NGINX_PROXY_PROXY_SSL_PROTOCOLS", Kind::Unsafe),
        ("KONG_NGINX_PROXY_PROXY_SSL_PASSWORD_FILE", Kind::Decide),
        ("other lines", Kind::Explained),
    ] {
        assert_eq!(done.note_on(name).kind, kind, "{name}");
    }
    assert!(!done.config.contains("hunter2") && !done.report().contains("hunter2"));
    let said = refused(Product::KongEnv, "PATH=/bin\n", Memory::default());
    assert!(
        said.contains("no variable that begins with KONG_"),
        "{said}"
    );
}

#[test]
fn several_files_are_one_environment() {
    let files = Memory::default()
        .with("/etc/app/a", GUIDE)
        .with("/etc/app/b", "KONG_NGINX_PROXY_PROXY_SSL_VERIFY_DEPTH=3\n");
    let named = ["a".into(), "b".into()];
    let done = convert(Product::KongEnv, &named, &files, Path::new("/etc/app")).unwrap();
    assert_eq!(
        inherited(&done).tls.verify_depth,
        Some(3),
        "the later file counts"
    );
    assert!(inherited(&done).identity.is_some());
    let of_b = "VERIFY_DEPTH, b:1";
    assert!(done.config.contains(of_b), "{}", done.config);
}
