#![allow(clippy::indexing_slicing, reason = "a test may panic")]

use proptest::prelude::*;

use super::*;
use crate::tls::test_pki::{Ca, pair, pem};

fn bundle(text: impl Into<Vec<u8>>) -> Result<ChainAndKey, Explained> {
    chain_and_key(&IdentityMaterial::Bundle(Part::new("all.pem", text.into())))
}

#[track_caller]
fn assert_refused<T>(result: Result<T, Explained>, reason: Reason, parts: &[&str]) {
    let why = result.err().expect("should have been refused");
    assert_eq!(why.reason, reason, "{why}");
    for part in parts {
        assert!(why.detail.contains(part), "{part:?} is not in {why}");
    }
}

#[test]
fn a_bundle_may_hold_key_and_chain_in_either_order_with_text_between() {
    let ca = Ca::new("root");
    let leaf = ca.client();
    let (cert, key) = (leaf.pem() + &ca.pem(), leaf.key_pem());
    for text in [
        format!("{key}{cert}"),
        format!("{cert}{key}"),
        format!("# comment\n{cert}\nBag Attributes\n{key}\n").replace('\n', "\r\n"),
        format!("\u{feff}{cert}{key}"),
        format!("{cert}{key}").trim_end().to_owned(),
    ] {
        let read = bundle(text).ok().unwrap();
        assert_eq!(read.chain, [leaf.der.clone(), ca.der().clone()]);
        assert_eq!(read.key.into_der().secret_der(), leaf.key.serialized_der());
    }
}

#[test]
fn one_file_may_be_both_cert_and_key_but_a_key_in_cert_alone_is_warned_of() {
    let leaf = Ca::new("root").client();
    let both = leaf.pem() + &leaf.key_pem();
    let same = IdentityMaterial::Pair {
        cert: Part::new("all.pem", both.clone().into()),
        key: Part::new("all.pem", both.clone().into()),
    };
    assert!(chain_and_key(&same).ok().unwrap().warnings.is_empty());
    let apart = chain_and_key(&pair(&both, &leaf.key_pem())).ok().unwrap();
    assert!(apart.warnings[0].contains("tls.crt: holds a private key"));
}

#[test]
fn what_is_found_instead_of_a_certificate_is_said() {
    let leaf = Ca::new("root").client();
    let request = pem("CERTIFICATE REQUEST", b"0");
    assert_refused(
        chain_and_key(&pair(&request, &leaf.key_pem())),
        Reason::BadPem,
        &["tls.crt", "no certificate found, but CERTIFICATE REQUEST"],
    );
    assert_refused(
        chain_and_key(&pair(&leaf.key_pem(), &leaf.pem())),
        Reason::BadPem,
        &["tls.crt", "cert and key are swapped"],
    );
    assert_refused(
        chain_and_key(&pair(&leaf.pem(), &leaf.pem())),
        Reason::BadPem,
        &["tls.key", "no private key found, but CERTIFICATE"],
    );
    assert_refused(
        bundle(leaf.pem()),
        Reason::BadPem,
        &["all.pem", "no private key found"],
    );
    let part = Part::new("ca.crt", leaf.key_pem().into());
    let why = ca_certificates(&part).unwrap().unwrap_err();
    assert!(
        why.contains("no certificate found, but PRIVATE KEY"),
        "{why}"
    );
}

#[test]
fn encrypted_keys_are_named_as_such() {
    let leaf = Ca::new("root").client();
    let traditional = "-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: \
        AES-256-CBC,00\n\nAAAA\n-----END EC PRIVATE KEY-----\n";
    for key in [pem("ENCRYPTED PRIVATE KEY", b"0"), traditional.to_owned()] {
        for result in [
            chain_and_key(&pair(&leaf.pem(), &key)),
            bundle(leaf.pem() + &key),
            bundle(key + &leaf.pem()),
        ] {
            assert_refused(result, Reason::BadKey, &["encrypted", "openssl pkey -in"]);
        }
    }
}

#[test]
fn several_keys_are_refused() {
    let ca = Ca::new("root");
    let (one, two) = (ca.client(), ca.client());
    assert_refused(
        chain_and_key(&pair(&one.pem(), &(one.key_pem() + &two.key_pem()))),
        Reason::BadPem,
        &["tls.key", "2 private keys"],
    );
}

#[test]
fn files_that_are_not_pem_are_named_with_the_conversion() {
    let ca = Ca::new("root");
    let leaf = ca.client();
    let pkcs12 = [
        &[0x30, 0x82, 4, 0, 2, 1, 3, 0x30, 0x82, 3, 0, 6, 9],
        PKCS12_DATA,
    ]
    .concat();
    for (bytes, words) in [
        (Vec::new(), "the file is empty"),
        (b" \n\n".to_vec(), "the file is empty"),
        (leaf.der.to_vec(), "openssl x509 -inform der"),
        (leaf.key.serialize_der(), "openssl pkey -inform der"),
        (ca.crl(&[], 1_000), "openssl crl -inform der"),
        (pkcs12, "openssl pkcs12"),
        (b"\xff\xfe-\0-\0".to_vec(), "UTF-16"),
        (b"hello".to_vec(), "no PEM block found"),
    ] {
        let part = Part::new("x", bytes);
        let why = ca_certificates(&part).ok().unwrap().unwrap_err();
        assert!(why.contains(words), "{why}");
        let result = chain_and_key(&IdentityMaterial::Bundle(part));
        assert_refused(result, Reason::BadPem, &["x: ", words]);
    }
}

#[test]
fn blocks_that_would_be_lost_are_errors_with_their_line() {
    let leaf = Ca::new("root").client();
    let (cert, key) = (leaf.pem(), leaf.key_pem());
    let lines = cert.lines().count();
    let glued = cert.trim_end().to_owned() + &key;
    let cut = &cert[..cert.len() - 40];
    for (text, words) in [
        (glued, format!("line {lines}: this END does not match")),
        (
            format!("{key}{cut}"),
            "has no END: the file is cut short".into(),
        ),
        (format!("{cut}\n{key}"), "has no END before line".into()),
        (
            format!("{cert}  {key}"),
            "BEGIN does not stand at the start".into(),
        ),
        (
            format!("-----END CERTIFICATE-----\n{key}"),
            "line 1: END without BEGIN".into(),
        ),
        (format!("{cert}{key}\0\0"), "not text".into()),
        (
            cert.replace("-----\nMII", "-----\n!!!") + &key,
            "not valid base64".into(),
        ),
    ] {
        assert_refused(bundle(text), Reason::BadPem, &["all.pem", &words]);
    }
}

#[test]
fn revocation_lists_come_as_pem_or_der_and_never_as_none() {
    let ca = Ca::new("root");
    let (one, two) = (ca.crl(&[], 1_000), ca.crl(&[], 2_000));
    let read = |bytes: Vec<u8>| revocation_lists(&Part::new("x.crl", bytes));
    assert_eq!(read(one.clone()).unwrap().len(), 1);
    let both = pem("X509 CRL", &one) + &pem("X509 CRL", &two);
    assert_eq!(read(both.into()).unwrap().len(), 2);
    for bytes in [
        Vec::new(),
        b"x".to_vec(),
        [&one[..], b"x"].concat(),
        ca.pem().into(),
    ] {
        assert_refused(read(bytes), Reason::BadPem, &["x.crl"]);
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let part = Part::new("x", bytes);
        let _ = ca_certificates(&part);
        let _ = revocation_lists(&part);
        let _ = chain_and_key(&IdentityMaterial::Bundle(part));
    }

    /// Lines that look like PEM, in any order: no panic, and no message with a line of a key.
    #[test]
    fn no_arrangement_of_pem_lines_makes_it_panic_or_quote_the_file(
        lines in proptest::collection::vec(prop_oneof![
            Just("-----BEGIN CERTIFICATE-----"),
            Just("-----END CERTIFICATE-----"),
            Just("-----BEGIN PRIVATE KEY-----"),
            Just("-----END PRIVATE KEY-----"),
            Just("-----BEGIN PRIVATE KEY-----c2VjcmV0"),
            Just("-----BEGIN c2VjcmV0"),
            Just("c2VjcmV0c2VjcmV0"),
            Just("c2VjcmV0!"),
            Just("Proc-Type: 4,ENCRYPTED"),
            Just(" -----BEGIN X509 CRL-----"),
            Just("-----BEGIN X509 CRL-----"),
            Just("-----END X509 CRL-----"),
            Just(""),
        ], 0..12),
        newline in prop_oneof![Just("\n"), Just("\r\n"), Just("\r"), Just("")],
    ) {
        let part = Part::new("x", lines.join(newline).into());
        let mut messages = Vec::new();
        messages.extend(ca_certificates(&part).err());
        messages.extend(revocation_lists(&part).err());
        messages.extend(chain_and_key(&IdentityMaterial::Bundle(part)).err());
        for message in messages {
            prop_assert!(!message.detail.contains("c2VjcmV0"), "{message}");
        }
    }

    /// Keys are decoded here, and as the library would.
    #[test]
    fn a_key_is_read_as_the_library_reads_it(
        der in proptest::collection::vec(any::<u8>(), 0..200),
        width in 1usize..80,
        newline in prop_oneof![Just("\n"), Just("\r\n"), Just("\r"), Just(" \n\t")],
        padded in any::<bool>(),
        label in prop_oneof![Just("PRIVATE KEY"), Just("RSA PRIVATE KEY"), Just("EC PRIVATE KEY")],
        before in prop_oneof![Just(""), Just("text\n"), Just("text\r\rmore\r\n\n")],
        damage in proptest::option::of((any::<proptest::sample::Index>(), "[A-Za-z0-9=+/!. -]")),
    ) {
        use base64::Engine as _;
        let engine = match padded {
            true => base64::prelude::BASE64_STANDARD,
            false => base64::prelude::BASE64_STANDARD_NO_PAD,
        };
        let mut text = engine.encode(&der);
        if let (Some((at, piece)), false) = (damage, text.is_empty()) {
            let at = at.index(text.len());
            text.replace_range(at..=at, &piece);
        }
        let lines: Vec<&str> = text.as_bytes().chunks(width).map(|line| std::str::from_utf8(line).unwrap()).collect();
        let text = format!("{before}-----BEGIN {label}-----{newline}{}{newline}-----END {label}-----{newline}", lines.join(newline));
        // The library ends lines with LF alone, and knows no other.
        let theirs = <(SectionKind, Vec<u8>)>::from_pem_slice(text.replace('\r', "\n").as_bytes());
        let part = Part::new("x", text.clone().into());
        let ours = Blocks::read(&part).map(|blocks| blocks.keys);
        match (theirs, ours) {
            (Ok((kind, der)), Ok(mut keys)) => {
                let key = keys.pop().unwrap().into_der();
                prop_assert!(keys.is_empty());
                prop_assert_eq!(key.secret_der(), der.as_slice());
                let same = match key {
                    PrivateKeyDer::Pkcs8(_) => kind == SectionKind::PrivateKey,
                    PrivateKeyDer::Pkcs1(_) => kind == SectionKind::RsaPrivateKey,
                    PrivateKeyDer::Sec1(_) => kind == SectionKind::EcPrivateKey,
                    _ => false,
                };
                prop_assert!(same);
            }
            (Err(_), Err(_)) => {}
            // We are strict about bits that stand for nothing.
            (Ok((_, der)), Err(_)) => {
                let again = base64::prelude::BASE64_STANDARD_NO_PAD.encode(der);
                prop_assert!(!text.replace(char::is_whitespace, "").contains(&again), "{text}");
            }
            (Err(why), Ok(_)) => prop_assert!(false, "{why}: {text}"),
        }
    }

    #[test]
    fn a_damaged_byte_never_makes_a_certificate_or_the_key_vanish_in_silence(
        at in 0usize..2000, byte in any::<u8>(),
    ) {
        let leaf = Ca::new("root").client();
        let mut text = (leaf.pem() + &leaf.key_pem()).into_bytes();
        let at = at % text.len();
        if let Some(old) = text.get_mut(at) {
            *old = byte;
        }
        // Either refused, or read: one certificate and one key in each case.
        if let Ok(read) = bundle(text) {
            prop_assert_eq!(read.chain.len(), 1);
        }
    }
}
