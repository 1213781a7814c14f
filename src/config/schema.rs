//! The JSON Schema of the configuration file, made from the table of keys.

use serde_json::{Map, Value, json};

use super::keys::{Default, Key, Kind, Table};
use super::name::ServiceName;

/// A variable in a string: where it stands, the value is known at start only.
const VARIABLE: &str = r"\$\{";
const DURATION: &str = r"^([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?([0-9]+ms)?$";

/// The JSON Schema (draft 2020-12) of the configuration file, for editors. It knows every key,
/// type, default and word; what concerns more than one key only [`Config::parse`] checks.
///
/// [`Config::parse`]: super::Config::parse
#[must_use]
pub fn schema() -> Value {
    let tls = object(Table::Tls, [], "TLS to the upstream.");
    let service = |whole: bool, doc: &str| {
        let mut schema = object(
            Table::Service,
            [("tls", json!({ "$ref": "#/$defs/tls" }))],
            doc,
        );
        if whole {
            schema["required"] = required(Table::Service);
        } else if let Some(properties) = schema["properties"].as_object_mut() {
            properties.retain(|name, _| {
                Table::Service
                    .key(name)
                    .is_none_or(|key| key.default != Default::Required)
            });
        }
        schema
    };
    let mut root = object(
        Table::Top,
        [
            ("admin", object(Table::Admin, [], "The admin endpoints.")),
            ("log", object(Table::Log, [], "What is logged.")),
            (
                "sandbox",
                object(
                    Table::Sandbox,
                    [],
                    "What the process keeps beside what it needs.",
                ),
            ),
            (
                "kubernetes",
                object(
                    Table::Kubernetes,
                    [(
                        "discovery",
                        object(
                            Table::Discovery,
                            [],
                            "Each Service that carries the annotation tlsward/listen is a service.",
                        ),
                    )],
                    "How the API server is reached, and what is read from it.",
                ),
            ),
            (
                "defaults",
                service(false, "What every service inherits, key by key."),
            ),
            (
                "services",
                json!({
                    "type": "object",
                    "description": "One table for each service.",
                    "propertyNames": {
                        "pattern": "^[a-zA-Z0-9][a-zA-Z0-9._-]*$",
                        "maxLength": ServiceName::MAX_LEN,
                    },
                    "additionalProperties": { "$ref": "#/$defs/service" },
                }),
            ),
        ],
        "The configuration of tlsward.",
    );
    root["$schema"] = "https://json-schema.org/draft/2020-12/schema".into();
    root["title"] = "tlsward config.toml".into();
    root["$defs"] = json!({
        "service": service(true, "One listener and the upstream that its callers reach."),
        "tls": tls,
    });
    root
}

/// A table that knows its keys and no others.
fn object<const N: usize>(table: Table, tables: [(&str, Value); N], doc: &str) -> Value {
    let properties: Map<String, Value> = table
        .keys()
        .iter()
        .map(|key| (key.name.to_owned(), property(key)))
        .chain(tables.map(|(name, schema)| (name.to_owned(), schema)))
        .collect();
    json!({
        "type": "object",
        "description": doc,
        "properties": properties,
        "additionalProperties": false,
    })
}

/// A table that is the value of a key.
fn inline(table: Table) -> Value {
    let mut schema = object(table, [], "A Kubernetes object.");
    let one_of = |names: &[&str]| -> Value {
        let alone = names.iter().map(|name| json!({ "required": [name] }));
        alone.collect()
    };
    match table {
        Table::Ca => {
            schema["oneOf"] = one_of(&["secret", "configmap", "cluster_trust_bundle", "credential"])
        }
        _ => schema["required"] = required(table),
    }
    schema
}

/// The keys that a table must have.
fn required(table: Table) -> Value {
    let keys = table.keys().iter();
    keys.filter(|key| key.default == Default::Required)
        .map(|key| key.name)
        .collect()
}

fn property(key: &Key) -> Value {
    let mut schema = match key.kind {
        Kind::Bool => json!({ "type": "boolean" }),
        Kind::Integer { min, max, off } => {
            let number = json!({ "type": "integer", "minimum": min, "maximum": max });
            match off {
                true => json!({ "anyOf": [number, { "const": "off" }, variable()] }),
                false => number,
            }
        }
        Kind::Duration { off } => {
            let mut forms = vec![json!({ "type": "string", "pattern": DURATION, "minLength": 2 })];
            forms.extend(off.then(|| json!({ "const": "off" })));
            forms.push(variable());
            json!({ "anyOf": forms })
        }
        Kind::Choice(words) => word(words),
        Kind::Choices(words) => {
            json!({ "type": "array", "items": word(words), "uniqueItems": true })
        }
        Kind::Text(_, example) => {
            json!({ "type": "string", "minLength": 1, "examples": [example] })
        }
        Kind::TextOrPort(_, example) => json!({
            "anyOf": [
                { "type": "string", "minLength": 1 },
                { "type": "integer", "minimum": 1, "maximum": u16::MAX },
            ],
            "examples": [example],
        }),
        Kind::TextsOrTable(_, example, table) => json!({
            "anyOf": [
                { "type": "string", "minLength": 1 },
                {
                    "type": "array", "minItems": 1, "uniqueItems": true,
                    "items": { "type": "string", "minLength": 1 },
                },
                inline(table),
            ],
            "examples": [example],
        }),
        Kind::TextOrTables(_, example, table) => json!({
            "anyOf": [
                { "type": "string", "minLength": 1 },
                inline(table),
                {
                    "type": "array", "minItems": 1, "uniqueItems": true,
                    "items": inline(table),
                },
            ],
            "examples": [example],
        }),
        Kind::Ports => json!({
            "anyOf": [
                { "enum": ["used", "any"] },
                {
                    "type": "array", "uniqueItems": true,
                    "items": { "anyOf": [
                        { "type": "integer", "minimum": 1, "maximum": u16::MAX },
                        { "type": "string", "minLength": 1 },
                    ] },
                },
                variable(),
            ],
            "examples": [[8443, "7000-7099"]],
        }),
        Kind::Texts(_, example) => json!({
            "type": "array", "uniqueItems": true,
            "items": { "type": "string", "minLength": 1 },
            "examples": [[example]],
        }),
    };
    schema["description"] = key.doc.into();
    if let Default::Is(value) = key.default {
        schema["default"] = default_of(value);
    }
    schema
}

fn word(words: &[&str]) -> Value {
    json!({ "anyOf": [{ "enum": words }, variable()] })
}

fn variable() -> Value {
    json!({ "type": "string", "pattern": VARIABLE })
}

/// Defaults are written in the part of TOML that is JSON too.
fn default_of(value: &str) -> Value {
    serde_json::from_str(value).expect("defaults are JSON: a test reads each")
}
