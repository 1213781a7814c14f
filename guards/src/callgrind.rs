//! Instructions, counted by valgrind's callgrind in this program's own drivers.
//!
//! Only Rust's and libc's functions count. Those of the crypto library do not: it chooses its
//! code by what the processor can do, and valgrind's imitation can do less than most (no
//! AVX-512), so its counts say little and differ from machine to machine.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::process::Command;

use crate::drive::Driver;
use crate::meter::TOGGLES;

/// glibc chooses its copying and searching by the processor too; this is what every x86-64 has.
/// (Where the C library is another, or does not know the names, they change nothing.)
const TUNABLES: &str =
    "glibc.cpu.hwcaps=-AVX2,-AVX_Fast_Unaligned_Load,-AVX512F,-AVX512VL,-ERMS,-FSRM";

/// Instructions by function, each function's own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Profile(BTreeMap<String, u64>);

/// Runs `driver` under callgrind, which leaves its profile in `directory`.
///
/// # Errors
/// There is no valgrind, or it or the driver failed; what it said is part of the error.
pub(crate) fn run(driver: Driver, count: u64, directory: &Path) -> io::Result<Profile> {
    let program = std::env::current_exe()?;
    let profile = directory.join(format!("callgrind.{}.{count}", driver.name()));
    let mut valgrind = Command::new("valgrind");
    valgrind
        .args(["--tool=callgrind", "--demangle=no"])
        .args(["--compress-strings=no", "--compress-pos=no"])
        .args(TOGGLES.map(|pattern| format!("--toggle-collect={pattern}")))
        .arg(format!("--callgrind-out-file={}", profile.display()))
        .arg(&program)
        .args(["drive", driver.name(), &count.to_string()])
        .env("GLIBC_TUNABLES", TUNABLES);
    let said = valgrind.output().map_err(|error| {
        let what = format!("valgrind cannot be started ({error}): install it");
        io::Error::new(error.kind(), what)
    })?;
    if !said.status.success() {
        let why = String::from_utf8_lossy(&said.stderr);
        return Err(io::Error::other(format!(
            "valgrind: {}\n{why}",
            said.status
        )));
    }
    let text = std::fs::read_to_string(&profile)?;
    Profile::parse(&text, &program).ok_or_else(|| {
        let what = format!("{} is not a profile of callgrind", profile.display());
        io::Error::new(io::ErrorKind::InvalidData, what)
    })
}

impl Profile {
    /// Reads the format of callgrind's documentation ("Callgrind Format Specification"), without
    /// compressed names and positions. `None` where it is something else.
    fn parse(text: &str, program: &Path) -> Option<Self> {
        let program = program.to_str()?;
        let mut costs = BTreeMap::new();
        let (mut object, mut function) = ("", "");
        let mut of_callee = false;
        let mut body = text
            .lines()
            .skip_while(|line| !line.starts_with("events: Ir"));
        body.next()?;
        for line in body {
            if let Some(name) = line.strip_prefix("ob=") {
                object = name;
            } else if let Some(name) = line.strip_prefix("fn=") {
                function = name;
            } else if line.starts_with("calls=") {
                // The next line is what the called function cost, all included.
                of_callee = true;
            } else if line.starts_with(|first: char| first.is_ascii_digit()) {
                let cost: u64 = line.split(' ').nth(1)?.parse().ok()?;
                if !std::mem::take(&mut of_callee) && is_counted(object == program, function) {
                    *costs.entry(readable(function)).or_default() += cost;
                }
            }
        }
        Some(Self(costs))
    }

    /// What each of `per` times costs that `self` has and `shorter` has not, by function; the
    /// dearest first.
    pub(crate) fn slope(&self, shorter: &Self, per: u64) -> Vec<(String, f64)> {
        let mut functions: Vec<_> = self
            .0
            .iter()
            .map(|(name, cost)| {
                let before = shorter.0.get(name).copied().unwrap_or_default();
                (name.clone(), (*cost as f64 - before as f64) / per as f64)
            })
            .collect();
        functions.sort_by(|(_, a), (_, b)| b.total_cmp(a));
        functions
    }
}

/// In this program, everything that is not Rust is the crypto library. Other objects are the C
/// library and the loader.
fn is_counted(in_program: bool, function: &str) -> bool {
    let is_rust = function.starts_with("_ZN") || function.starts_with("_R");
    !in_program || is_rust
}

/// `_ZN7tlsward5proxy5relay4poll17h0123456789abcdefE` -> `tlsward::proxy::relay::poll`. The hash
/// changes with every build. Other manglings are left as they are.
fn readable(function: &str) -> String {
    let parse = |mangled: &str| {
        let mut rest = mangled.strip_prefix("_ZN")?;
        let mut segments = Vec::new();
        while !rest.starts_with('E') {
            let digits = rest.find(|it: char| !it.is_ascii_digit())?;
            let (len, after) = rest.split_at(digits);
            let (segment, after) = after.split_at_checked(len.parse().ok()?)?;
            segments.push(segment);
            rest = after;
        }
        segments.pop();
        Some(segments.join("::"))
    };
    // callgrind numbers the levels of a recursion.
    let (name, level) = function.split_once('\'').unwrap_or((function, ""));
    let mut name = parse(name).unwrap_or_else(|| name.to_owned());
    for (code, means) in [
        ("$LT$", "<"),
        ("$GT$", ">"),
        ("$C$", ","),
        ("$RF$", "&"),
        ("$u7b$", "{"),
        ("$u7d$", "}"),
        ("$u20$", " "),
        ("$LP$", "("),
        ("$RP$", ")"),
        ("..", "::"),
    ] {
        name = name.replace(code, means);
    }
    if level.is_empty() {
        name
    } else {
        format!("{name}'{level}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
version: 1
creator: callgrind-3.19.0
positions: line
events: Ir
summary: 1000

ob=/bin/guards
fl=src/relay.rs
fn=_ZN7tlsward5relay4poll17h0123456789abcdefE
10 7
fi=src/inlined.rs
11 5
cob=/lib/libc.so.6
cfi=???
cfn=malloc
calls=3 0
12 600
fn=aws_lc_aes_gcm
0 99

ob=/lib/libc.so.6
fl=???
fn=malloc
0 60
totals: 1000
";

    #[test]
    fn own_costs_are_summed_without_callees_and_without_the_crypto_library() {
        let profile = Profile::parse(TEXT, Path::new("/bin/guards")).unwrap();
        let expected = [
            ("malloc".to_owned(), 60),
            ("tlsward::relay::poll".to_owned(), 12),
        ];
        assert_eq!(profile, Profile(expected.into()));
    }

    #[test]
    fn a_slope_leaves_out_what_both_runs_have() {
        let shorter = Profile([("once".to_owned(), 500), ("each".to_owned(), 30)].into());
        let longer = Profile([("once".to_owned(), 500), ("each".to_owned(), 130)].into());
        let slope = longer.slope(&shorter, 10);
        assert_eq!(slope, [("each".to_owned(), 10.0), ("once".to_owned(), 0.0)]);
    }

    #[test]
    fn what_is_not_a_profile_is_not_taken_for_an_empty_one() {
        assert_eq!(
            Profile::parse("==1== error\n", Path::new("/bin/guards")),
            None
        );
    }
}
