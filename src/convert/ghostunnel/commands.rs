//! Command lines of ghostunnel, wherever they stand: a shell script, a systemd unit, a Dockerfile,
//! lists of YAML, or a file with nothing but flags.

use std::collections::BTreeMap;
use std::path::Path;

use super::words::{self, Statement, Word};
use crate::convert::sources::{Mistake, Place, Source, Sources};

/// One start of ghostunnel.
#[derive(Clone, Debug)]
pub(super) struct CommandLine {
    pub(super) place: Place,
    /// What follows the program's name.
    pub(super) arguments: Vec<Word>,
    /// The variables that are set for it.
    pub(super) environment: Environment,
}

/// Variables with constant values, and where they are set.
pub(super) type Environment = BTreeMap<String, Word>;

/// Finds the command lines of a file.
///
/// # Errors
/// There is none, or the file is broken.
pub(super) fn find(
    source: &Source,
    sources: &mut Sources<'_>,
) -> Result<Vec<CommandLine>, Mistake> {
    let found = match form(source) {
        Form::Systemd => systemd(source, sources)?,
        Form::Dockerfile => dockerfile(source)?,
        Form::Yaml => yaml(source)?,
        Form::Shell => shell(source)?,
    };
    if found.is_empty() {
        return Err(Mistake::new(
            &source.at(0),
            "has no command line of ghostunnel",
            "name a shell script, a systemd unit, a Dockerfile, a YAML file with command and args, or a file with the flags",
        ));
    }
    Ok(found)
}

enum Form {
    Systemd,
    Dockerfile,
    Yaml,
    Shell,
}

fn form(source: &Source) -> Form {
    let name = source
        .path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    let mut lines = source.text.lines().map(str::trim);
    let extension = |extension: &str| {
        Path::new(name)
            .extension()
            .is_some_and(|it| it == extension)
    };
    if extension("service") || lines.clone().any(|line| line == "[Service]") {
        return Form::Systemd;
    }
    let first = lines
        .clone()
        .find(|line| !line.is_empty() && !line.starts_with('#'));
    let is_from = |line: &str| line.to_ascii_uppercase().starts_with("FROM ");
    if name.contains("Dockerfile") || name.contains("Containerfile") || first.is_some_and(is_from) {
        return Form::Dockerfile;
    }
    let is_list = |line: &str| {
        let line = line.strip_prefix("- ").unwrap_or(line);
        ["args:", "command:", "entrypoint:"]
            .iter()
            .any(|key| line.starts_with(key))
    };
    if extension("yaml") || extension("yml") || lines.any(is_list) {
        return Form::Yaml;
    }
    Form::Shell
}

/// Whether a word is the program, or an image of it.
fn is_program(word: &str) -> bool {
    let name = word.rsplit('/').next().unwrap_or(word);
    name.split([':', '@']).next() == Some("ghostunnel")
}

/// What follows the program's name in `words`.
fn behind_program(words: &[Word]) -> Option<&[Word]> {
    let at = words.iter().position(|word| is_program(&word.text))?;
    Some(&words[at + 1..])
}

// === shell ===

fn shell(source: &Source) -> Result<Vec<CommandLine>, Mistake> {
    let statements = words::statements(source)?;
    let mut variables = Environment::new();
    let mut found = Vec::new();
    for statement in &statements {
        let (own, command) = assignments(statement, &variables);
        if command.is_empty() {
            variables.extend(own);
            continue;
        }
        let command = resolve(command, &variables);
        if matches!(
            &*command[0].text,
            "export" | "readonly" | "declare" | "local"
        ) {
            let words = command.into_iter().skip(1).collect();
            let (own, _) = assignments(&Statement { words }, &variables);
            variables.extend(own);
            continue;
        }
        if let Some(arguments) = behind_program(&command) {
            let mut environment = variables.clone();
            environment.extend(own);
            found.push(CommandLine {
                place: command[0].place.clone(),
                arguments: arguments.to_vec(),
                environment,
            });
        }
    }
    // Nothing but flags, each on a line of its own, as `ghostunnel @FILE` takes them.
    let flags = |statement: &Statement| {
        statement
            .words
            .first()
            .is_some_and(|it| it.text.starts_with("--") || it.text == "client")
    };
    if found.is_empty() && statements.iter().all(flags) && !statements.is_empty() {
        let arguments: Vec<Word> = statements.into_iter().flat_map(|it| it.words).collect();
        found.push(CommandLine {
            place: arguments[0].place.clone(),
            arguments,
            environment: Environment::new(),
        });
    }
    Ok(found)
}

/// The leading `NAME=value` of a statement, and what is left of it.
fn assignments<'s>(statement: &'s Statement, variables: &Environment) -> (Environment, &'s [Word]) {
    let mut own = Environment::new();
    let mut words = &*statement.words;
    while let Some((word, rest)) = words.split_first() {
        let Some((name, value)) = word.text.split_once('=') else {
            break;
        };
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if name.is_empty() || !name.chars().all(is_name) {
            break;
        }
        let value = Word {
            text: value.to_owned(),
            ..word.clone()
        };
        own.insert(name.to_owned(), value.resolved(variables));
        words = rest;
    }
    (own, words)
}

fn resolve(words: &[Word], variables: &Environment) -> Vec<Word> {
    words.iter().map(|word| word.resolved(variables)).collect()
}

// === systemd ===

fn systemd(source: &Source, sources: &mut Sources<'_>) -> Result<Vec<CommandLine>, Mistake> {
    let mut environment = Environment::new();
    let mut commands: Vec<(String, Place)> = Vec::new();
    for (line, place) in logical_lines(source, &['#', ';']) {
        let Some((key, value)) = line.split_once('=') else {
            continue;
        };
        let (key, value) = (key.trim(), value.trim());
        match key {
            "ExecStart" if value.is_empty() => commands.clear(),
            "ExecStart" => commands.push((value.to_owned(), place)),
            "Environment" => {
                let words = words::of_line(&systemd_text(value), &place)?;
                let (own, _) = assignments(&Statement { words }, &Environment::new());
                environment.extend(own);
            }
            "EnvironmentFile" => {
                let optional = value.starts_with('-');
                let path = Path::new(value.trim_start_matches('-'));
                sources.begin_at(source);
                let read = sources.included(path, &place, |_, file| {
                    let statements = words::statements(&file)?;
                    Ok(statements
                        .iter()
                        .map(|statement| assignments(statement, &Environment::new()).0)
                        .collect::<Vec<_>>())
                });
                match read {
                    Ok(all) => environment.extend(all.into_iter().flatten()),
                    Err(_) if optional => {}
                    Err(mistake) => return Err(mistake),
                }
            }
            _ => {}
        }
    }
    let mut found = Vec::new();
    for (command, place) in commands {
        let command = command.trim_start_matches(['@', '-', ':', '+', '!', '|']);
        let words = words::of_line(&systemd_text(command), &place)?;
        let words = resolve(&words, &environment);
        if let Some(arguments) = behind_program(&words) {
            found.push(CommandLine {
                place,
                arguments: arguments.to_vec(),
                environment: environment.clone(),
            });
        }
    }
    Ok(found)
}

/// `%%` is a percent sign; any other specifier depends on the unit, and becomes a variable that
/// nobody knows.
fn systemd_text(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match (c, rest.peek().copied()) {
            ('%', Some('%')) => {
                rest.next();
                out.push('%');
            }
            ('%', Some(specifier)) if specifier.is_ascii_alphabetic() => {
                rest.next();
                out.push_str(&format!("${{specifier_{specifier}}}"));
            }
            _ => out.push(c),
        }
    }
    out
}

/// Lines with those joined that end in a backslash, without comments.
fn logical_lines(source: &Source, comments: &[char]) -> Vec<(String, Place)> {
    let mut joined: Vec<(String, Place)> = Vec::new();
    let mut open = false;
    for (number, line) in source.text.lines().enumerate() {
        let trimmed = line.trim();
        if trimmed.starts_with(comments) || (trimmed.is_empty() && !open) {
            continue;
        }
        let (text, goes_on) = match trimmed.strip_suffix('\\') {
            Some(text) => (text, true),
            None => (trimmed, false),
        };
        match joined.last_mut().filter(|_| open) {
            Some((whole, _)) => {
                whole.push(' ');
                whole.push_str(text);
            }
            None => joined.push((text.to_owned(), source.at(number + 1))),
        }
        open = goes_on;
    }
    joined
}

// === Dockerfile ===

fn dockerfile(source: &Source) -> Result<Vec<CommandLine>, Mistake> {
    let mut environment = Environment::new();
    let (mut entrypoint, mut command): (Option<Vec<Word>>, Option<Vec<Word>>) = (None, None);
    let mut from_image = false;
    let mut found = Vec::new();
    let mut end_of_stage = |from_image: bool,
                            entrypoint: &Option<Vec<Word>>,
                            command: &Option<Vec<Word>>,
                            environment: &Environment| {
        let words = entrypoint.iter().flatten().chain(command.iter().flatten());
        let words: Vec<Word> = words.map(|word| word.resolved(environment)).collect();
        let arguments = match behind_program(&words) {
            Some(arguments) => arguments,
            // The image's own entry point is the program.
            None if from_image && entrypoint.is_none() => &words,
            None => return,
        };
        if let Some(first) = arguments.first() {
            found.push(CommandLine {
                place: first.place.clone(),
                arguments: arguments.to_vec(),
                environment: environment.clone(),
            });
        }
    };
    for (line, place) in logical_lines(source, &['#']) {
        let (instruction, rest) = line.split_once(char::is_whitespace).unwrap_or((&line, ""));
        let rest = rest.trim();
        match &*instruction.to_ascii_uppercase() {
            "FROM" => {
                end_of_stage(from_image, &entrypoint, &command, &environment);
                (entrypoint, command) = (None, None);
                environment.clear();
                from_image = rest.split_whitespace().any(is_program);
            }
            "ENV" => {
                let words = match rest.split_once(char::is_whitespace) {
                    // The older form: ENV NAME value.
                    Some((name, value)) if !name.contains('=') => {
                        let text = format!("{name}={}", value.trim());
                        vec![Word {
                            text,
                            place: place.clone(),
                            is_literal: false,
                        }]
                    }
                    _ => words::of_line(rest, &place)?,
                };
                let (own, _) = assignments(&Statement { words }, &environment);
                environment.extend(own);
            }
            "ENTRYPOINT" => entrypoint = Some(exec_form(rest, &place)?),
            "CMD" => command = Some(exec_form(rest, &place)?),
            _ => {}
        }
    }
    end_of_stage(from_image, &entrypoint, &command, &environment);
    Ok(found)
}

/// `["a", "b"]`, or a line for the shell.
fn exec_form(text: &str, place: &Place) -> Result<Vec<Word>, Mistake> {
    match serde_json::from_str::<Vec<String>>(text) {
        Ok(texts) => Ok(texts
            .into_iter()
            .map(|text| Word {
                text,
                place: place.clone(),
                is_literal: true,
            })
            .collect()),
        Err(_) => words::of_line(text, place),
    }
}

// === YAML ===

/// Reads `command`, `entrypoint`, `args` and `env`, and nothing else of YAML: lists in both styles,
/// plain and quoted scalars.
fn yaml(source: &Source) -> Result<Vec<CommandLine>, Mistake> {
    let mut environment = Environment::new();
    let mut lists: Vec<(bool, Vec<Word>)> = Vec::new();
    let lines: Vec<&str> = source.text.lines().collect();
    let mut number = 0;
    while number < lines.len() {
        let place = source.at(number + 1);
        let (indent, text) = content(lines[number]);
        number += 1;
        let (_, text) = text
            .strip_prefix("- ")
            .map_or((false, text), |rest| (true, rest.trim_start()));
        let Some((key, value)) = text.split_once(':') else {
            continue;
        };
        let (key, value) = (key.trim().trim_matches('"'), value.trim());
        match key {
            "command" | "entrypoint" | "args" => {
                let mut words = Vec::new();
                if value.starts_with('[') {
                    // Up to the closing bracket, over several lines.
                    let mut flow = value.to_owned();
                    while !flow.trim_end().ends_with(']') && number < lines.len() {
                        flow.push(' ');
                        flow.push_str(content(lines[number]).1);
                        number += 1;
                    }
                    words.extend(flow_items(&flow, &place));
                } else if value.is_empty() {
                    while let Some(line) = lines.get(number) {
                        let (its_indent, item) = content(line);
                        if item.is_empty() {
                            number += 1;
                            continue;
                        }
                        let Some(item) = item.strip_prefix('-').filter(|_| its_indent >= indent)
                        else {
                            break;
                        };
                        words.push(scalar(item.trim(), &source.at(number + 1)));
                        number += 1;
                    }
                } else {
                    let line = scalar(value, &place).text;
                    words = words::of_line(&line, &place)?;
                }
                lists.push((key != "args", words));
            }
            "name" if TWINS.contains(&scalar(value, &place).text.as_str()) => {
                let name = scalar(value, &place).text;
                let next = lines.get(number).map(|line| content(line).1);
                if let Some(value) = next.and_then(|next| next.strip_prefix("value:")) {
                    environment.insert(name, scalar(value.trim(), &source.at(number + 1)));
                } else {
                    let text = "${from_elsewhere}".to_owned();
                    environment.insert(
                        name,
                        Word {
                            text,
                            place,
                            is_literal: false,
                        },
                    );
                }
            }
            key if TWINS.contains(&key) => {
                environment.insert(key.to_owned(), scalar(value, &place));
            }
            _ => {}
        }
    }
    Ok(containers(&lists, &environment))
}

/// `command` and the `args` next to it are one container's.
fn containers(lists: &[(bool, Vec<Word>)], environment: &Environment) -> Vec<CommandLine> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some((is_command, words)) = lists.get(at) {
        let mut words = words.clone();
        at += 1;
        if let Some((other, more)) = lists.get(at).filter(|(other, _)| other != is_command) {
            // Either may come first in the file; the command comes first in the container.
            words = match other {
                false => words.iter().chain(more).cloned().collect(),
                true => more.iter().chain(&words).cloned().collect(),
            };
            at += 1;
        }
        let looks_like_it = || {
            let has = |flag: &str| words.iter().any(|word| word.text.starts_with(flag));
            has("--listen") && has("--target")
        };
        let arguments = match behind_program(&words) {
            Some(arguments) => arguments,
            None if looks_like_it() => &words,
            None => continue,
        };
        if let Some(first) = arguments.first() {
            found.push(CommandLine {
                place: first.place.clone(),
                arguments: arguments.to_vec(),
                environment: environment.clone(),
            });
        }
    }
    found
}

/// Variables that stand for flags of ghostunnel.
pub(super) const TWINS: [&str; 9] = [
    "CACERT_PATH",
    "CERT_PATH",
    "KEYSTORE_PASS",
    "KEYSTORE_PATH",
    "KEY_PATH",
    "PKCS11_MODULE",
    "PKCS11_PIN",
    "PKCS11_TOKEN_LABEL",
    "SPIFFE_ENDPOINT_SOCKET",
];

/// Indentation, and the line without it and without a comment.
fn content(line: &str) -> (usize, &str) {
    let text = line.trim_start();
    let indent = line.len() - text.len();
    let text = match text.starts_with('#') {
        true => "",
        false => text.split_once(" #").map_or(text, |(before, _)| before),
    };
    (indent, text.trim_end())
}

/// A scalar without its quotes. `$(NAME)` is a variable of Kubernetes.
fn scalar(text: &str, place: &Place) -> Word {
    let quoted = |quote: char| {
        let inside = text.strip_prefix(quote)?.strip_suffix(quote)?;
        Some(inside.to_owned())
    };
    let text = match quoted('\'') {
        Some(inside) => inside.replace("''", "'"),
        None => serde_json::from_str(text)
            .unwrap_or_else(|_| quoted('"').unwrap_or_else(|| text.to_owned())),
    };
    Word {
        text,
        place: place.clone(),
        is_literal: false,
    }
}

/// The items of `[a, "b, c"]`.
fn flow_items(text: &str, place: &Place) -> Vec<Word> {
    let inside = text.trim().trim_start_matches('[').trim_end_matches(']');
    let mut items = Vec::new();
    let mut item = String::new();
    let mut quote = None;
    for c in inside.chars() {
        match (c, quote) {
            (',', None) => items.push(std::mem::take(&mut item)),
            (c @ ('"' | '\''), None) if item.trim().is_empty() => {
                quote = Some(c);
                item.push(c);
            }
            (c, Some(open)) if c == open => {
                quote = None;
                item.push(c);
            }
            (c, _) => item.push(c),
        }
    }
    items.push(item);
    items
        .iter()
        .map(|item| item.trim())
        .filter(|item| !item.is_empty())
        .map(|item| scalar(item, place))
        .collect()
}
