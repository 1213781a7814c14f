//! The table of keys, the code's defaults, the reference, the sample and the schema agree.

use toml::de::{DeTable, DeValue};

use super::*;

const SERVICE: &str = "[services.a]\nlisten = \"127.0.0.1:7001\"\nupstream = \"a.internal:443\"\n";
const IDENTITY: &str = "ca = \"ca.crt\"\ncert = \"c.crt\"\nkey = \"c.key\"\n";

/// A smallest configuration with one more line in one of its tables.
fn with_line(table: Table, line: &str) -> String {
    let at = |here: Table| if here == table { line } else { "" };
    let text = format!(
        "{}\n[admin]\n{}\n[log]\n{}\n[sandbox]\n{}\n[kubernetes]\nnamespace = \"shop\"\n{}\n[kubernetes.discovery]\n{}\n\
         {SERVICE}on_rotation = \"drain\"\n{}\n[services.a.tls]\n{IDENTITY}{}\n",
        at(Table::Top),
        at(Table::Admin),
        at(Table::Log),
        at(Table::Sandbox),
        at(Table::Kubernetes),
        at(Table::Discovery),
        at(Table::Service),
        at(Table::Tls),
    );
    // A line of an inline table stands in that.
    match table {
        Table::Kubernetes if line.starts_with("namespace ") => {
            text.replacen("namespace = \"shop\"\n", "", 1)
        }
        Table::Backend => text.replace(
            "upstream = \"a.internal:443\"",
            &format!("upstream = {{ service = \"x\", {line} }}").replace(",  }", " }"),
        ),
        Table::Ca if line.starts_with("key") || line.is_empty() => text.replace(
            "ca = \"ca.crt\"",
            &format!("ca = {{ secret = \"a\", {line} }}").replace(",  }", " }"),
        ),
        Table::Ca => text.replace("ca = \"ca.crt\"", &format!("ca = {{ {line} }}")),
        _ => text,
    }
}

/// Where there is a Service with two ports, and the variables of the examples are set.
fn in_cluster(text: &str) -> Config {
    let ports = ["http 80", "https 443"];
    let cluster = cluster([service("shop/x", &ports, [])]);
    parse_in(text, [("ZONE", "z"), ("NODE_NAME", "n")], &cluster)
        .unwrap_or_else(|problems| panic!("{text}\n{problems}"))
}

fn defaults() -> impl Iterator<Item = (Table, &'static str, &'static str)> {
    Table::ALL.into_iter().flat_map(|table| {
        table
            .keys()
            .iter()
            .filter_map(move |key| match key.default {
                KeyDefault::Is(value) => Some((table, key.name, value)),
                KeyDefault::Unset(_) | KeyDefault::Required => None,
            })
    })
}

#[test]
fn a_default_that_is_written_out_changes_nothing() {
    let mut seen = 0;
    for (table, name, value) in defaults() {
        let line = format!("{name} = {value}");
        let text = match name {
            // The line before sets it, so that drain_window counts.
            "on_rotation" => format!("{SERVICE}{line}\n[services.a.tls]\n{IDENTITY}"),
            _ => with_line(table, &line),
        };
        let plain = match name {
            "on_rotation" => format!("{SERVICE}\n[services.a.tls]\n{IDENTITY}"),
            _ => with_line(table, ""),
        };
        assert_eq!(parse(&text), parse(&plain), "{line}");
        seen += 1;
    }
    assert!(seen > 20);
}

#[test]
fn every_key_without_a_default_is_either_needed_or_changes_something() {
    for table in Table::ALL {
        for key in table.keys() {
            let KeyDefault::Unset(_) = key.default else {
                continue;
            };
            if table == Table::Tls && ["ca", "cert", "key"].contains(&key.name) {
                continue; // part of every configuration here
            }
            let value = match key.kind {
                Kind::Integer { min, .. } => min.to_string(),
                Kind::Text(_, example) => format!("{example:?}"),
                Kind::Texts(_, example) => format!("[{example:?}]"),
                Kind::TextOrPort(..) => "443".to_owned(),
                _ => panic!("{}: give this kind an example here", key.name),
            };
            let line = format!("{} = {value}", key.name);
            let identity = match key.name {
                "bundle" | "secret" | "credential" if table == Table::Tls => "ca = \"ca.crt\"\n",
                _ => IDENTITY,
            };
            let text = with_line(table, &line).replace(IDENTITY, identity);
            assert_ne!(
                in_cluster(&text),
                in_cluster(&with_line(table, "")),
                "{line}"
            );
        }
    }
}

// === docs/configuration.md ===

#[test]
fn the_reference_has_a_row_for_every_key_with_its_type_default_and_meaning() {
    let reference = read("docs/configuration.md");
    let mut missing = String::new();
    for table in Table::ALL {
        let heading = format!("## {}", table.heading());
        let section = reference
            .split_once(&format!("{heading}\n"))
            .map_or("", |(_, rest)| rest);
        let section = section.split("\n## ").next().unwrap();
        for key in table.keys() {
            let row = row(key);
            if !section.lines().any(|line| line == row) {
                missing += &format!("{row}\n");
            }
        }
        let rows = section
            .lines()
            .filter(|line| line.starts_with("| `"))
            .count();
        assert!(
            rows <= table.keys().len(),
            "{heading} has rows of keys that do not exist"
        );
    }
    assert!(
        missing.is_empty(),
        "rows that docs/configuration.md lacks:\n{missing}"
    );
}

fn row(key: &keys::Key) -> String {
    let entry = super::super::reference::Entry::of(key);
    let elsewhere: Vec<String> = entry
        .elsewhere
        .iter()
        .map(|(program, name)| format!("{program} `{name}`"))
        .collect();
    let elsewhere = match elsewhere.is_empty() {
        true => "–".to_owned(),
        false => elsewhere.join(", "),
    };
    format!(
        "| `{}` | {} | {} | {} | {elsewhere} |",
        entry.name, entry.value, entry.default, entry.meaning
    )
}

#[test]
fn the_reference_names_every_environment_variable() {
    let reference = read("docs/configuration.md");
    for (variable, key) in environment::VARIABLES {
        let row = format!("| `{variable}` | `{key}` |");
        let known = reference.lines().any(|line| line.starts_with(&row));
        assert!(known || key.is_empty(), "{row}");
        assert!(reference.contains(variable), "{variable}");
    }
}

// === config.toml ===

/// The lines of the sample that are switched off, `#key = value`, with their tables.
fn switched_off(sample: &str) -> Vec<(Table, String, String)> {
    let mut table = Table::Top;
    let mut found = Vec::new();
    for line in sample.lines() {
        match line.trim_end().trim_start_matches('#') {
            "[admin]" => table = Table::Admin,
            "[log]" => table = Table::Log,
            "[sandbox]" => table = Table::Sandbox,
            "[kubernetes]" => table = Table::Kubernetes,
            "[kubernetes.discovery]" => table = Table::Discovery,
            header if header.starts_with('[') && header.ends_with("tls]") => table = Table::Tls,
            header if header.starts_with('[') => table = Table::Service,
            _ => {
                let off = line.strip_prefix('#').filter(|rest| !rest.starts_with(' '));
                if let Some((name, rest)) = off.and_then(|rest| rest.split_once(" = ")) {
                    let value = rest.split("  #").next().unwrap_or_default().trim();
                    found.push((table, name.to_owned(), value.to_owned()));
                }
            }
        }
    }
    found
}

#[test]
fn the_sample_is_valid_and_its_switched_off_defaults_are_the_true_ones() {
    let sample = read("config.toml");
    let config = parse(&sample);
    for (table, name, value) in switched_off(&sample) {
        let key = table
            .key(&name)
            .unwrap_or_else(|| panic!("{name} is no key of {table:?}"));
        if let KeyDefault::Is(default) = key.default {
            assert_eq!(value, default, "{name}");
        }
    }
    // Switched on, they change nothing.
    let mut all_on = String::new();
    let mut table = Table::Top;
    for line in sample.lines() {
        if line.trim_start_matches('#').starts_with('[') {
            table = switched_off(&format!("{line}\n#x = 1"))[0].0;
        }
        let off = line.strip_prefix('#').filter(|rest| !rest.starts_with(' '));
        let name = off
            .and_then(|rest| rest.split_once(" = "))
            .map(|(name, _)| name);
        // Its header stays off: that would switch discovery on.
        let is_default = name
            .and_then(|name| table.key(name))
            .filter(|_| table != Table::Discovery)
            .is_some_and(|key| matches!(key.default, KeyDefault::Is(_)));
        let is_header = line == "#[kubernetes]";
        all_on += if is_default || is_header {
            &line[1..]
        } else {
            line
        };
        all_on.push('\n');
    }
    assert_ne!(all_on, sample);
    assert_eq!(parse(&all_on), config);
}

#[test]
fn the_sample_names_every_key() {
    let sample = read("config.toml");
    let off = switched_off(&sample);
    let on = DeTable::parse(&sample).unwrap();
    let written = |table: Table, name: &str| {
        let root = on.get_ref();
        let below = |path: &[&str]| {
            let mut value = root.get(*path.first()?)?.get_ref();
            for step in &path[1..] {
                value = value.get(*step)?.get_ref();
            }
            value.get(name).map(|_| ())
        };
        match table {
            Table::Top => root.contains_key(name),
            Table::Admin => below(&["admin"]).is_some(),
            Table::Log => below(&["log"]).is_some(),
            Table::Sandbox => below(&["sandbox"]).is_some(),
            Table::Service => below(&["services", "billing"]).is_some(),
            Table::Tls => below(&["defaults", "tls"]).is_some(),
            Table::Kubernetes | Table::Discovery | Table::Backend | Table::Ca => false,
        }
    };
    // Keys of inline tables stand in the examples of their tables.
    let inline = |table: Table, name: &str| {
        let key = match table {
            Table::Backend => "#upstream = {",
            Table::Ca => "#ca = {",
            _ => return false,
        };
        let examples = sample.lines().filter(|line| line.starts_with(key));
        let name = format!(" {name} = ");
        examples.into_iter().any(|example| example.contains(&name))
    };
    for table in Table::ALL {
        for key in table.keys() {
            let is_off = off
                .iter()
                .any(|(at, name, _)| *at == table && name == key.name);
            assert!(
                is_off || written(table, key.name) || inline(table, key.name),
                "{table:?} {} is not in config.toml",
                key.name
            );
        }
    }
}

// === schema ===

fn json(value: &DeValue<'_>) -> serde_json::Value {
    match value {
        DeValue::String(text) => text.as_ref().into(),
        DeValue::Boolean(on) => (*on).into(),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .unwrap()
            .into(),
        DeValue::Float(number) => number.as_str().parse::<f64>().unwrap().into(),
        DeValue::Datetime(date) => date.to_string().into(),
        DeValue::Array(list) => list.iter().map(|item| json(item.get_ref())).collect(),
        DeValue::Table(table) => table
            .iter()
            .map(|(name, value)| (name.get_ref().to_string(), json(value.get_ref())))
            .collect::<serde_json::Map<_, _>>()
            .into(),
    }
}

fn schema_errors(text: &str) -> Vec<String> {
    let validator = jsonschema::draft202012::new(&schema()).unwrap();
    let table = DeTable::parse(text).unwrap().into_inner();
    let document = json(&DeValue::Table(table));
    validator
        .iter_errors(&document)
        .map(|error| error.instance_path().to_string())
        .collect()
}

#[test]
fn the_schema_is_one_and_takes_the_sample_and_every_valid_fixture() {
    jsonschema::meta::validate(&schema()).unwrap();
    assert_eq!(schema_errors(&read("config.toml")), [""; 0]);
    for fixture in Fixture::all("valid") {
        assert_eq!(
            schema_errors(&fixture.text),
            [""; 0],
            "{}",
            fixture.path.display()
        );
    }
}

#[test]
fn the_schema_takes_every_default() {
    for (table, name, value) in defaults() {
        if name != "on_rotation" {
            assert_eq!(
                schema_errors(&with_line(table, &format!("{name} = {value}"))),
                [""; 0],
                "{name}"
            );
        }
    }
}

#[test]
fn the_schema_refuses_unknown_keys_wrong_types_and_wrong_words() {
    for (table, line) in [
        (Table::Top, "shutdown_timeout = 30"),
        (Table::Top, "shutdown_timeout = \"30\""),
        (Table::Top, "shutdown_timeout = \"off\""),
        (Table::Top, "colour = 1"),
        (Table::Admin, "colour = 1"),
        (Table::Log, "connections = \"yes\""),
        (Table::Service, "max_connections = 0"),
        (Table::Service, "unclean_close = \"FIN\""),
        (Table::Service, "allow_callers = \"10.0.0.0/8\""),
        (Table::Tls, "verify_depth = 7"),
        (Table::Tls, "verify_depth = \"on\""),
        (Table::Tls, "verify = \"on\""),
        (Table::Tls, "key_exchange = [\"x448\"]"),
        (Table::Tls, "secret = 1"),
        (Table::Tls, "credential = 1"),
        (Table::Kubernetes, "colour = 1"),
        (Table::Kubernetes, "secrets = \"all\""),
        (Table::Discovery, "colour = 1"),
        (Table::Discovery, "namespaces = \"*\""),
        (Table::Backend, "colour = 1"),
        (Table::Backend, "port = 0"),
        (Table::Ca, "key = \"x\", configmap = \"b\""),
        (Table::Ca, "credential = \"x\", configmap = \"b\""),
        (Table::Ca, "colour = 1"),
    ] {
        assert!(!schema_errors(&with_line(table, line)).is_empty(), "{line}");
    }
    assert!(
        !schema_errors("[services.a]\nlisten = \"127.0.0.1:1\"").is_empty(),
        "no upstream"
    );
    assert!(
        !schema_errors("[services.\"a b\"]\nlisten = \"127.0.0.1:1\"\nupstream = \"a:1\"")
            .is_empty()
    );
    assert!(
        !schema_errors("[defaults]\nlisten = \"127.0.0.1:1\"").is_empty(),
        "listen in defaults"
    );
    let nameless = SERVICE.replace("\"a.internal:443\"", "{ port = 443 }");
    assert!(!schema_errors(&nameless).is_empty(), "no service");
    assert!(schema_errors(&with_line(Table::Tls, "verify = \"${VERIFY}\"")).is_empty());
}
