//! The units that are shipped, judged by systemd's own tools.

use std::path::{Path, PathBuf};
use std::process::Output;

use tokio::process::Command;

use crate::support::pki::Pki;
use crate::support::proxy::TLSWARD;

/// "The exposure level of the unit", which is to be no more.
const MOST_EXPOSED: f64 = 1.2;

/// A unit, with the program where it is here.
fn unit(pki: &Pki, name: &str) -> PathBuf {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("systemd")
        .join(name);
    let text = std::fs::read_to_string(shipped).unwrap();
    pki.write(name, text.replace("/usr/bin/tlsward", TLSWARD))
}

async fn analyze(arguments: &[&str]) -> Output {
    Command::new("systemd-analyze")
        .args(arguments)
        .env("SYSTEMD_COLORS", "0")
        .output()
        .await
        .expect("systemd-analyze is there: apt install systemd")
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[tokio::test]
async fn systemd_accepts_the_units() {
    let pki = Pki::new();
    unit(&pki, "tlsward.service");
    unit(&pki, "tlsward@.service");
    for name in ["tlsward.service", "tlsward@.service", "tlsward.socket"] {
        let file = unit(&pki, name);
        let output = analyze(&["verify", "--man=no", file.to_str().unwrap()]).await;
        let said = text(&output);
        assert!(output.status.success(), "{name}: {said}");
        // Older ones do not know notify-reload, and say so.
        let complaints = said.lines().filter(|line| !line.contains("notify-reload"));
        assert_eq!(complaints.collect::<Vec<_>>(), [""; 0], "{name}");
    }
}

#[tokio::test]
async fn systemd_finds_little_that_the_services_could_do() {
    let pki = Pki::new();
    for name in ["tlsward.service", "tlsward@.service"] {
        let file = unit(&pki, name);
        let output = analyze(&[
            "security",
            "--offline=true",
            "--no-pager",
            file.to_str().unwrap(),
        ])
        .await;
        let said = text(&output);
        let level = said
            .lines()
            .find_map(|line| {
                line.split_once("Overall exposure level for ")?
                    .1
                    .split_once(": ")
            })
            .and_then(|(_, level)| level.split(' ').next()?.parse::<f64>().ok())
            .unwrap_or_else(|| panic!("{name}: {said}"));
        assert!(level <= MOST_EXPOSED, "{name}: {said}");
    }
}

#[test]
fn the_instances_are_confined_as_the_one_is() {
    let lines = |name: &str| -> Vec<String> {
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("systemd")
            .join(name);
        let text = std::fs::read_to_string(shipped).unwrap();
        let keys = text
            .lines()
            .filter(|line| line.contains('=') && !line.starts_with('#'));
        keys.map(|line| {
            line.replace("tlsward-%i", "tlsward")
                .replace("/etc/tlsward/%i.toml", "/etc/tlsward/config.toml")
                .replace("tlsward instance %i", "tlsward")
        })
        .collect()
    };
    assert_eq!(lines("tlsward@.service"), lines("tlsward.service"));
}
