//! The configuration as a whole: fixtures, the sample, the reference, the schema.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::keys::{Default as KeyDefault, Kind, Table};
use super::kubernetes::{Cluster, Known, ObjectRef, ServiceObject, ServicePort};
use super::*;

mod annotations;
mod discovery;
mod inheritance;
mod objects;
mod properties;
mod reference;

fn environment<const N: usize>(variables: [(&str, &str); N]) -> BTreeMap<String, String> {
    variables
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
}

fn parse_with<const N: usize>(
    text: &str,
    variables: [(&str, &str); N],
) -> Result<Config, Problems> {
    parse_in(text, variables, &Cluster::default())
}

/// As in a build with Kubernetes, whatever this one is.
fn parse_in<const N: usize>(
    text: &str,
    variables: [(&str, &str); N],
    cluster: &Cluster,
) -> Result<Config, Problems> {
    let path = Path::new("/etc/tlsward/config.toml");
    Config::read(text, path, &environment(variables), cluster, true)
}

fn parse(text: &str) -> Config {
    parse_with(text, []).unwrap_or_else(|problems| panic!("{problems}"))
}

/// A Service `namespace/name` with these ports (`"https 443"`, or `"443"` without a name).
fn service<const N: usize>(
    object: &str,
    ports: &[&str],
    annotations: [(&str, &str); N],
) -> ServiceObject {
    let (namespace, name) = object.split_once('/').unwrap();
    let port = |text: &&str| {
        let (name, number) = text.split_once(' ').unwrap_or(("", text));
        ServicePort {
            name: name.to_owned(),
            number: number.parse().unwrap(),
        }
    };
    ServiceObject {
        object: ObjectRef::new(namespace, name),
        uid: format!("uid of {object}"),
        created_at: 0,
        annotations: environment(annotations),
        ports: ports.iter().map(port).collect(),
        external_name: None,
    }
}

/// What is known where these Services exist.
fn cluster(services: impl IntoIterator<Item = ServiceObject>) -> Cluster {
    let known = |service: ServiceObject| {
        let object = service.object.clone();
        (object, Known::Exists(Arc::new(service)))
    };
    Cluster {
        services: services.into_iter().map(known).collect(),
        ..Cluster::default()
    }
}

/// The mistakes for which a service is not built.
fn mistakes_of<'c>(config: &'c Config, name: &str) -> &'c Problems {
    let unbuilt = config.unbuilt.get(&ServiceName::parse(name).unwrap());
    match unbuilt.map(|unbuilt| &unbuilt.obstacle) {
        Some(Obstacle::Mistakes(problems)) => problems,
        other => panic!("{name}: {other:?}"),
    }
}

fn only_service(config: &Config) -> &Service {
    assert_eq!(config.services.len(), 1);
    config.services.values().next().unwrap()
}

#[expect(
    clippy::disallowed_methods,
    reason = "tests read fixtures and documents of the repository"
)]
fn read(path: impl AsRef<Path>) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A fixture: a configuration whose comments say what is to come of it.
struct Fixture {
    path: PathBuf,
    text: String,
    variables: BTreeMap<String, String>,
    cluster: Cluster,
    expected: Vec<String>,
}

impl Fixture {
    /// `#! env NAME=value` sets a variable, `#! namespace NAME` says that of the pod; any other
    /// `#! …` is an expectation.
    fn all(directory: &str) -> Vec<Self> {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/config")
            .join(directory);
        let mut paths: Vec<PathBuf> = directory
            .read_dir()
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        paths.sort();
        assert!(paths.len() >= 3, "fixtures in {}", directory.display());
        paths
            .into_iter()
            .map(|path| {
                let text = read(&path);
                let (mut variables, mut expected) = (BTreeMap::new(), Vec::new());
                let mut cluster = Cluster::default();
                for line in text.lines().filter_map(|line| line.strip_prefix("#! ")) {
                    if let Some(own) = line.strip_prefix("namespace ") {
                        cluster.own_namespace = Some(own.to_owned());
                        continue;
                    }
                    match line
                        .strip_prefix("env ")
                        .and_then(|rest| rest.split_once('='))
                    {
                        Some((name, value)) => {
                            variables.insert(name.to_owned(), value.to_owned());
                        }
                        None => expected.push(line.to_owned()),
                    }
                }
                Self {
                    path,
                    text,
                    variables,
                    cluster,
                    expected,
                }
            })
            .collect()
    }

    fn parse(&self) -> Result<Config, Problems> {
        let name = self.path.file_name().unwrap();
        Config::read(
            &self.text,
            &Path::new("/etc/tlsward").join(name),
            &self.variables,
            &self.cluster,
            true,
        )
    }
}

#[test]
fn every_valid_fixture_is_taken_and_says_what_its_comments_say() {
    for fixture in Fixture::all("valid") {
        let config = fixture
            .parse()
            .unwrap_or_else(|problems| panic!("{problems}"));
        let model = format!("{config:?}");
        assert!(
            !fixture.expected.is_empty(),
            "{} expects nothing",
            fixture.path.display()
        );
        for expected in &fixture.expected {
            assert!(
                model.contains(expected),
                "{}: no {expected} in {model}",
                fixture.path.display()
            );
        }
    }
}

#[test]
fn every_invalid_fixture_has_the_problems_that_its_comments_name_and_no_others() {
    let mut complaints = String::new();
    for fixture in Fixture::all("invalid") {
        let Err(problems) = fixture.parse() else {
            panic!("{} was taken", fixture.path.display());
        };
        let mut expected = fixture.expected.clone();
        let mut unexpected = Vec::new();
        for problem in &problems {
            let place = match &problem.place {
                Place::File { line, column, .. } => format!("{line}:{column}: "),
                Place::Variable { variable } => format!("{variable}: "),
                Place::Service { .. } => panic!("{problem} is no mistake of the file"),
            };
            let said = format!(
                "{place}{}: {} | {}",
                problem.key, problem.reason, problem.fix
            );
            let met = expected.iter().position(|line| {
                line.strip_prefix(&place)
                    .is_some_and(|fragment| said.contains(fragment))
            });
            match met {
                Some(index) => drop(expected.remove(index)),
                None => unexpected.push(said),
            }
        }
        if !expected.is_empty() || !unexpected.is_empty() {
            complaints += &format!("\n{}\nmissing: {expected:#?}\n", fixture.path.display());
            for line in unexpected {
                complaints += &format!("#! {line}\n");
            }
        }
    }
    assert!(complaints.is_empty(), "{complaints}");
}

#[test]
fn a_problem_is_printed_with_its_source_line() {
    let text = "[services.a]\nlisten = \"127.0.0.1\"\nlog = 1\n";
    let problems = parse_with(text, []).unwrap_err().to_string();
    assert!(
        problems.contains(
            "/etc/tlsward/config.toml:2:10: services.a.listen: the address 127.0.0.1 has no port\n  \
             2 | listen = \"127.0.0.1\"\n    |          ^^^^^^^^^^^\n  \
             fix: write \"127.0.0.1:7001\"\n\n/etc/tlsward/config.toml:3:1: "
        ),
        "{problems}"
    );
}
