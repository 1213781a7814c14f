//! Holds what tlsward costs against `guards/budget.toml`. Only what a busy machine does not
//! change is measured: instructions, allocations, system calls, memory. See `guards/README.md`.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use clap::{Parser, Subcommand};
use rustix::process::{Resource, getrlimit, setrlimit};

use crate::budget::Budget;
use crate::drive::Driver;
use crate::guard::{Guard, built, measure};

mod budget;
mod callgrind;
mod drive;
mod guard;
mod meter;
mod outside;
mod peer;
mod pki;
mod program;
mod report;
mod upstream;

/// Something is over its budget.
const OVER: u8 = 1;
/// Nothing could be said: a tool is missing, or something does not work.
const FAILED: u8 = 2;

#[derive(Debug, Parser)]
#[command(
    about = "Holds what tlsward costs against guards/budget.toml",
    args_conflicts_with_subcommands = true,
    after_help = "Exit code: 0 within the budget, 1 over it, 2 not measured."
)]
struct Arguments {
    /// Only guards whose names begin so; may be repeated
    #[arg(long, value_name = "PREFIX")]
    only: Vec<String>,
    /// The tlsward to look at from outside; else cargo builds it
    #[arg(long, value_name = "FILE", overrides_with = "binary")]
    binary: Option<PathBuf>,
    /// Print entries for budget.toml with limits for what is measured now
    #[arg(long)]
    propose: bool,
    /// Print what each measurement consists of
    #[arg(long)]
    parts: bool,
    /// Set by this program for itself
    #[arg(long, hide = true)]
    in_namespace: bool,
    #[command(subcommand)]
    command: Option<Internal>,
}

#[derive(Debug, Subcommand)]
enum Internal {
    /// One driver by itself: what runs under valgrind
    Drive {
        /// Its name in budget.toml, after the dot
        driver: String,
        /// How often
        count: u64,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match &arguments.command {
        Some(Internal::Drive { driver, count }) => drive(driver, *count),
        None => guard(&arguments),
    };
    done.unwrap_or_else(|error| {
        eprintln!("tlsward-guards: {error}");
        ExitCode::from(FAILED)
    })
}

fn drive(name: &str, count: u64) -> io::Result<ExitCode> {
    let driver = Driver::named(name).ok_or_else(|| {
        let names: Vec<_> = Driver::ALL.iter().map(|driver| driver.name()).collect();
        io::Error::other(format!(
            "no driver `{name}`; there are {}",
            names.join(", ")
        ))
    })?;
    let heap = driver.run(count).map_err(io::Error::other)?;
    println!("{}", serde_json::to_string(&heap)?);
    Ok(ExitCode::SUCCESS)
}

fn guard(arguments: &Arguments) -> io::Result<ExitCode> {
    let budget = Budget::read().map_err(io::Error::other)?;
    let only = &arguments.only;
    let chosen = |guard: &Guard| {
        only.is_empty() || only.iter().any(|prefix| guard.name().starts_with(prefix))
    };
    let guards: Vec<_> = Guard::all().into_iter().filter(chosen).collect();
    if guards.is_empty() {
        let names: Vec<_> = Guard::all().iter().map(|guard| guard.name()).collect();
        let names = names.join("\n  ");
        return Err(io::Error::other(format!(
            "no guard is called so; there are\n  {names}"
        )));
    }
    let mut binary = arguments.binary.clone().unwrap_or_default();
    if guards.iter().any(|guard| guard.is_outside()) {
        if binary.as_os_str().is_empty() {
            binary = built()?;
        }
        if arguments.in_namespace {
            furnish_namespace()?;
        } else {
            let error = enter_namespace(&binary);
            eprintln!(
                "no network namespace of its own ({error}): where the default congestion control \
                 paces (BBR), system calls per 64 KiB are too many here"
            );
        }
        raise_open_files()?;
    }

    let measured = measure(&guards, &binary)?;
    if arguments.propose {
        print!("{}", report::proposal(&measured, &budget));
        return Ok(ExitCode::SUCCESS);
    }
    print!("{}", report::table(&measured, &budget));
    if arguments.parts {
        for it in &measured {
            println!("\n{}", it.guard.name());
            for (part, cost) in it.parts.iter().filter(|(_, cost)| cost.abs() >= 0.005) {
                println!("{cost:12.2}  {part}");
            }
        }
    }
    let failures = report::failures(&measured, &budget);
    print!("{failures}");
    Ok(match failures.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(OVER),
    })
}

/// Runs this program again in a network namespace of its own. Returns only if that cannot be
/// done, and says why.
fn enter_namespace(binary: &PathBuf) -> io::Error {
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => return error,
    };
    let unshare = || {
        let mut unshare = Command::new("unshare");
        unshare.arg("--net");
        if !rustix::process::geteuid().is_root() {
            unshare.arg("--map-root-user");
        }
        unshare
    };
    match unshare().arg("true").output() {
        Ok(tried) if tried.status.success() => {}
        Ok(tried) => {
            let why = String::from_utf8_lossy(&tried.stderr).trim().to_owned();
            return io::Error::other(why);
        }
        Err(error) => return io::Error::other(format!("unshare (util-linux): {error}")),
    }
    unshare()
        .arg(program)
        .arg("--in-namespace")
        .args(std::env::args_os().skip(1))
        // Built already; where it was named, the last one counts.
        .arg("--binary")
        .arg(binary)
        .exec()
}

/// Brings up loopback, with a congestion control that does not pace it: Reno is always allowed.
fn furnish_namespace() -> io::Result<()> {
    let up = Command::new("ip")
        .args(["link", "set", "lo", "up"])
        .output();
    let up = up.map_err(|error| io::Error::new(error.kind(), format!("ip (iproute2): {error}")))?;
    if !up.status.success() {
        let why = String::from_utf8_lossy(&up.stderr).trim().to_owned();
        return Err(io::Error::other(format!("ip link set lo up: {why}")));
    }
    fs::write("/proc/sys/net/ipv4/tcp_congestion_control", "reno")
}

/// Two descriptors for each connection that is held.
fn raise_open_files() -> io::Result<()> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    Ok(setrlimit(Resource::Nofile, limit)?)
}
