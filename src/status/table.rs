//! Status as people read it: a table, and under it what is wrong and what to do.
//!
//! It is made from the JSON of `/status` and not from [`Status`](super::Status), because the
//! process that answers may be older or newer than the command that asks: what is not there is
//! shown as `-`.

use std::fmt::Write as _;

use anstyle::{AnsiColor, Style};
use comfy_table::{Attribute, Cell, CellAlignment, Color, Table, presets};
use serde_json::Value;

use crate::clock;

const BOLD: Style = Style::new().bold();
const GOOD: Style = AnsiColor::Green.on_default();
const NOTICE: Style = AnsiColor::Yellow.on_default();
const BAD: Style = AnsiColor::Red.on_default().bold();

/// The text of `tlsward status`; `now` in seconds since 1970. It is always coloured: print it
/// through `anstream`, which takes the colours out where the output is no terminal or `NO_COLOR`
/// is set.
pub(crate) fn render_table(status: &Value, now: i64) -> String {
    let mut text = String::new();
    write_process(&mut text, status, now);
    let services = list(status, "/services");
    if services.is_empty() {
        line(&mut text, "\nno services are configured");
    } else {
        line(&mut text, "");
        text.push_str(&service_table(services, now));
    }
    write_problems(&mut text, status, services, now);
    text
}

/// The first lines: which program, how it is, since when, from which file.
fn write_process(text: &mut String, status: &Value, now: i64) {
    let state = word(status, "/state");
    let style = match state.as_str() {
        "ready" => GOOD,
        "starting" | "stopping" => NOTICE,
        _ => BAD,
    };
    let up = number(status, "/started_at").map_or_else(|| "-".into(), |at| span(now - at));
    line(
        text,
        &format!(
            "tlsward {} is {style}{state}{style:#}, up {up}",
            word(status, "/version")
        ),
    );
    let since = number(status, "/config/loaded_at").map_or_else(|| "-".into(), clock::rfc3339);
    line(
        text,
        &format!(
            "configuration {}, generation {}, in force since {since}",
            word(status, "/config/path"),
            word(status, "/config/generation")
        ),
    );
    if let Some(in_use) = number(status, "/memory/in_use_bytes")
        && let Some(limit) = number(status, "/memory/limit_bytes")
    {
        line(
            text,
            &format!("memory {} of {}", mebibytes(in_use), mebibytes(limit)),
        );
    }
    if status.pointer("/sandbox").is_some() {
        line(text, &sandbox(status));
    }
}

/// How much of the sandbox there is, of what parts, and why not more.
fn sandbox(status: &Value) -> String {
    let at = |place: &str| format!("/sandbox/{place}");
    let (style, state) = match word(status, "/sandbox/state").as_str() {
        "on" => (GOOD, "on"),
        "partly" => (NOTICE, "partly on"),
        _ => (NOTICE, "off"),
    };
    let parts = [
        ("files", "files"),
        ("tcp", "TCP ports"),
        ("signals", "signals"),
        ("abstract_sockets", "abstract sockets"),
        ("seccomp", "system calls"),
    ];
    let on = |place: &str| status.pointer(&at(place)) == Some(&Value::Bool(true));
    let parts: Vec<&str> = parts
        .into_iter()
        .filter_map(|(place, name)| on(place).then_some(name))
        .collect();
    let mut text = format!("sandbox {style}{state}{style:#}");
    if !parts.is_empty() {
        let _ = write!(text, ": {}", parts.join(", "));
    }
    if let Some(abi) = number(status, "/sandbox/landlock_abi") {
        let _ = write!(text, " (Landlock {abi})");
    }
    if let Some(why) = status.pointer("/sandbox/why").and_then(Value::as_str) {
        let _ = write!(text, " ({})", printable(why));
    }
    text
}

fn service_table(services: &[Value], now: i64) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).enforce_styling();
    table.set_header(
        [
            "SERVICE",
            "LISTEN",
            "UPSTREAM",
            "STATE",
            "IDENTITY",
            "LEFT",
            "OPEN",
            "FAILED",
            "LAST FAILURE",
        ]
        .map(|title| Cell::new(title).add_attribute(Attribute::Bold)),
    );
    for service in services {
        table.add_row(service_row(service, now));
    }
    crate::table::render(&table)
}

fn service_row(service: &Value, now: i64) -> [Cell; 9] {
    let upstream = list(service, "/upstream")
        .iter()
        .filter_map(Value::as_str)
        .map(printable)
        .collect::<Vec<_>>()
        .join(" ");
    let upstream = match number(service, "/kubernetes/endpoints") {
        Some(1) => format!("{upstream} (1 endpoint)"),
        Some(endpoints) => format!("{upstream} ({endpoints} endpoints)"),
        None => upstream,
    };
    let state = word(service, "/state");
    let state_colour = match state.as_str() {
        "ready" => Color::Green,
        "warming" => Color::Yellow,
        "draining" => Color::Grey,
        _ => Color::Red,
    };
    let identity = match service.pointer("/identity") {
        None | Some(Value::Null) => "none".into(),
        Some(_) => word(service, "/identity/chain/0/subject"),
    };
    let right = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
    [
        Cell::new(word(service, "/name")),
        Cell::new(word(service, "/listen")),
        Cell::new(upstream),
        Cell::new(state).fg(state_colour),
        Cell::new(identity),
        time_left(service, now).set_alignment(CellAlignment::Right),
        right(word(service, "/traffic/open")),
        right(word(service, "/traffic/failed")),
        Cell::new(word(service, "/traffic/last_failure/reason")),
    ]
}

/// How long the client certificate is still valid: red when it is not, yellow in the last tenth
/// of its life (by then whatever renews it should have acted).
fn time_left(service: &Value, now: i64) -> Cell {
    let Some(end) = number(service, "/identity/chain/0/not_after") else {
        return Cell::new("-");
    };
    let begin = number(service, "/identity/chain/0/not_before").unwrap_or(now);
    let left = end - now;
    let cell = Cell::new(if left < 0 {
        "expired".to_owned()
    } else {
        span(left)
    });
    if left < 0 {
        cell.fg(Color::Red)
    } else if left < (end - begin) / 10 {
        cell.fg(Color::Yellow)
    } else {
        cell
    }
}

fn write_problems(text: &mut String, status: &Value, services: &[Value], now: i64) {
    let mut problems = Vec::new();
    let mut warnings = Vec::new();
    let mut failures = Vec::new();
    problems
        .extend(explained(status, "/config/refused").map(|why| format!("configuration: {why}")));
    warnings.extend(
        list(status, "/config/warnings")
            .iter()
            .filter_map(Value::as_str)
            .map(|warning| format!("configuration: {}", printable(warning))),
    );
    warnings.extend(
        list(status, "/sandbox/left_out")
            .iter()
            .filter_map(Value::as_str)
            .map(|what| format!("sandbox: {}", printable(what))),
    );
    if status.pointer("/memory/callers_wait") == Some(&Value::Bool(true)) {
        warnings.push(
            "memory is nearly used up: new callers wait while connections are open\n    \
             raise the memory limit, or bound the connections with max_connections"
                .to_owned(),
        );
    }
    problems.extend(explained(status, "/discovery").map(|why| format!("discovery: {why}")));
    for service in services {
        let name = word(service, "/name");
        let whys: Vec<String> = ["/problem", "/identity/refused", "/trust/refused"]
            .into_iter()
            .filter_map(|place| explained(service, place))
            .collect();
        for (i, why) in whys.iter().enumerate() {
            // The service's problem is often the very one of its identity or trust.
            if !whys[..i].contains(why) {
                problems.push(format!("{name}: {why}"));
            }
        }
        warnings.extend(
            list(service, "/warnings")
                .iter()
                .filter_map(Value::as_str)
                .map(|warning| format!("{name}: {}", printable(warning))),
        );
        if let Some(why) = explained(service, "/traffic/last_failure") {
            let at = |place| word(service, &format!("/traffic/last_failure/{place}"));
            let ago = number(service, "/traffic/last_failure/at").unwrap_or(now);
            failures.push(format!(
                "{name}: {} ago, {} ({}): {why}",
                span(now - ago),
                at("phase"),
                at("side")
            ));
        }
    }
    for (title, style, items) in [
        ("Problems", BAD, problems),
        ("Warnings", NOTICE, warnings),
        ("Last failures", BOLD, failures),
    ] {
        if !items.is_empty() {
            line(text, &format!("\n{style}{title}{style:#}"));
            for item in items {
                line(text, &format!("  {item}"));
            }
        }
    }
}

/// A reason with its particulars, and the hint on a line of its own.
fn explained(value: &Value, place: &str) -> Option<String> {
    let value = value.pointer(place).filter(|value| value.is_object())?;
    let mut text = word(value, "/reason");
    for (place, before) in [("/detail", ": "), ("/alert", ", alert ")] {
        if let Some(more) = value.pointer(place).and_then(Value::as_str) {
            text.push_str(before);
            text.push_str(&printable(more));
        }
    }
    if let Some(hint) = value.pointer("/hint").and_then(Value::as_str) {
        text.push_str("\n    ");
        text.push_str(&printable(hint));
    }
    Some(text)
}

fn line(text: &mut String, line: &str) {
    writeln!(text, "{line}").expect("writing to a String cannot fail");
}

fn list<'a>(value: &'a Value, place: &str) -> &'a [Value] {
    value
        .pointer(place)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

fn number(value: &Value, place: &str) -> Option<i64> {
    value.pointer(place).and_then(Value::as_i64)
}

/// A text or number as a word; `-` where there is none.
fn word(value: &Value, place: &str) -> String {
    match value.pointer(place) {
        Some(Value::String(text)) => printable(text),
        Some(Value::Number(number)) => number.to_string(),
        _ => "-".into(),
    }
}

/// Names in certificates are written by strangers: they must not speak to the terminal.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

fn mebibytes(bytes: i64) -> String {
    format!("{:.1} MiB", bytes as f64 / (1 << 20) as f64)
}

/// A duration in its largest unit; two units where one would be coarse.
fn span(seconds: i64) -> String {
    let seconds = seconds.max(0);
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m"),
        (0, _, _) => format!("{hours}h{minutes:02}m"),
        (1..=9, _, _) => format!("{days}d{hours:02}h"),
        _ => format!("{days}d"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::tests::{service, status, traffic_with_failure, waiting};
    use crate::status::{MemoryStatus, ProcessState, ServiceStatus, Status, Traffic};

    fn render_json(status: &Status, traffic: impl Fn(&str) -> Option<Traffic>) -> Value {
        crate::status::render_json(status, &MemoryStatus::default(), traffic)
    }

    fn plain(services: Vec<ServiceStatus>, now: i64) -> String {
        let status = status(ProcessState::Degraded, services);
        let json = render_json(&status, |_| Some(traffic_with_failure()));
        anstream::adapter::strip_str(&render_table(&json, now)).to_string()
    }

    #[test]
    fn a_service_has_its_row_with_all_that_an_operator_asks_first() {
        let text = plain(vec![service("billing")], 36_000);
        let row = text.lines().find(|line| line.contains("7001")).unwrap();
        let cells: Vec<&str> = row.split_whitespace().collect();
        assert_eq!(
            cells,
            [
                "billing",
                "127.0.0.1:7001",
                "billing.internal:8443",
                "ready",
                "CN=billing",
                "10d",
                "2",
                "1",
                "untrusted_issuer"
            ]
        );
        assert!(text.starts_with("tlsward 1.2.3 is degraded, up 9h43m\n"));
        assert!(text.contains("generation 2, in force since 1970-01-01T00:33:20Z"));
    }

    #[test]
    fn a_problem_is_listed_once_with_its_hint_under_it() {
        let text = plain(vec![waiting("billing")], 36_000);
        let problem = "  billing: identity_missing: certs/tls.crt is not there\n    put the";
        assert_eq!(text.matches(problem).count(), 1, "{text}");
        assert!(
            text.contains("9h10m ago, handshake (upstream): untrusted_issuer: issuer CN=Rogue")
        );
    }

    #[test]
    fn nothing_is_listed_under_the_table_where_nothing_is_wrong() {
        let status = status(ProcessState::Ready, vec![service("billing")]);
        let text = render_table(&render_json(&status, |_| None), 36_000);
        assert!(!text.contains("Problems") && !text.contains("Last failures"));
    }

    #[test]
    fn a_warning_of_the_configuration_itself_is_listed_too() {
        let mut status = status(ProcessState::Ready, vec![service("billing")]);
        status.config.warnings = vec!["config.toml is mounted by subPath".into()];
        let text = render_table(&render_json(&status, |_| None), 36_000);
        let text = anstream::adapter::strip_str(&text).to_string();
        assert!(
            text.contains("Warnings\n  configuration: config.toml is mounted by subPath\n"),
            "{text}"
        );
    }

    #[test]
    fn memory_is_shown_against_its_limit_and_a_shortage_is_a_warning() {
        let status = status(ProcessState::Ready, vec![service("billing")]);
        let mut memory = MemoryStatus {
            in_use_bytes: 10_000_000,
            ..MemoryStatus::default()
        };
        let text = |memory: &MemoryStatus| {
            let json = crate::status::render_json(&status, memory, |_| None);
            anstream::adapter::strip_str(&render_table(&json, 36_000)).to_string()
        };
        assert!(!text(&memory).contains("memory"), "without a limit");
        memory.limit_bytes = Some(64 << 20);
        assert!(text(&memory).contains("\nmemory 9.5 MiB of 64.0 MiB\n"));
        assert!(!text(&memory).contains("Warnings"));
        memory.callers_wait = true;
        let text = text(&memory);
        assert!(text.contains("Warnings\n  memory is nearly used up: new callers wait"));
        assert!(text.contains("\n    raise the memory limit"));
    }

    #[test]
    fn a_certificate_near_its_end_is_yellow_and_past_it_red() {
        let json = |now| {
            let status = status(ProcessState::Ready, vec![service("billing")]);
            render_table(&render_json(&status, |_| None), now)
        };
        let (yellow, red) = ("\u{1b}[38;5;11m", "\u{1b}[38;5;9m");
        let (well, near, past) = (json(500_000), json(890_000), json(900_001));
        assert!(!well.contains(yellow) && !well.contains(red));
        assert!(near.contains(yellow) && near.contains("2h46m"));
        assert!(past.contains(red) && past.contains("expired"));
    }

    #[test]
    fn a_name_cannot_speak_to_the_terminal() {
        let mut service = service("billing");
        service.warnings = vec!["odd name \u{1b}]0;owned\u{7}\nCN=x".into()];
        let status = status(ProcessState::Ready, vec![service]);
        let text = render_table(&render_json(&status, |_| None), 36_000);
        assert!(text.contains("odd name \u{fffd}]0;owned\u{fffd}\u{fffd}CN=x"));
    }

    #[test]
    fn an_answer_of_another_version_is_shown_as_far_as_it_goes() {
        let json = serde_json::json!({ "services": [{ "name": "billing", "new": [1] }] });
        let text = anstream::adapter::strip_str(&render_table(&json, 0)).to_string();
        assert!(text.contains("tlsward - is -, up -"));
        assert!(
            text.lines()
                .any(|line| line.trim_start().starts_with("billing"))
        );
        assert!(render_table(&Value::Null, 0).contains("no services"));
    }
}
