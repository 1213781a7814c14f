//! The sandbox's part in control: a configuration is held against what the process gave up at its
//! start, and a file that it may not read says so.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::Control;
use super::cluster::Hindered;
use super::text::{Refused, config_text, parse};
use crate::cluster::Store;
use crate::config::{Config, ServiceName};
use crate::failure::{Explained, Reason};
use crate::sandbox::Lacking;
use crate::source::{self, Reading, SourceKey};

/// The configuration as the file has it now, with nothing known of a cluster: what a sandbox is
/// planned for. Blocks. A file with mistakes is the empty configuration, since with it no service
/// starts; and should it be good a moment later, it is refused for what the sandbox does not hold.
pub(crate) fn outline(
    path: &Path,
    environment: &BTreeMap<String, String>,
    own_namespace: Option<String>,
) -> Config {
    let store = Store::new(own_namespace);
    let key = SourceKey::Config(path.to_owned());
    let readings = source::read_all(&BTreeSet::from([key]), &store);
    let text = config_text(readings.first());
    parse(&text, path, environment, &store.view()).unwrap_or_else(|_| Config::empty())
}

impl Control {
    /// What the sandbox does not allow: of a discovered Service, that service alone, which is taken
    /// out of `config`; of anything else, the whole.
    pub(super) fn confine(
        &self,
        config: &mut Config,
    ) -> Result<BTreeMap<ServiceName, Hindered>, Refused> {
        let mut outside = BTreeMap::new();
        let mut lacking = Vec::new();
        // What is lacking already keeps no other change from coming into force; and at the start a
        // directory that cannot be held is one service's trouble.
        let already = self.setup.sandbox.lacks(&self.state.config);
        let is_new = |lacks: &Lacking| {
            !already.contains(lacks) && (self.generation > 0 || !lacks.is_of_a_file())
        };
        for lacks in self.setup.sandbox.lacks(config).into_iter().filter(is_new) {
            let discovered = lacks
                .service
                .clone()
                .filter(|name| config.is_discovered(name))
                .and_then(|name| Some((config.backends.get(&name)?.clone(), name)));
            match discovered {
                Some((object, name)) => {
                    let service = config.services.get(&name);
                    let hindered = Hindered {
                        discovered: true,
                        listen: service.map(|service| service.listen.to_string()),
                        object,
                        why: lacks.explained(),
                    };
                    outside.entry(name).or_insert(hindered);
                }
                None => lacking.push(lacks),
            }
        }
        if lacking.is_empty() {
            config
                .services
                .retain(|name, _| !outside.contains_key(name));
            return Ok(outside);
        }
        let words: Vec<String> = lacking.iter().map(ToString::to_string).collect();
        Err(Refused {
            why: Explained::new(Reason::Sandboxed, words.join("; ")),
            problems: lacking.iter().map(Lacking::problem).collect(),
        })
    }

    /// The reading, or what the sandbox has to do with it that there is none.
    pub(super) fn explained<'r>(&self, reading: &'r Reading) -> Cow<'r, Reading> {
        let Err(why) = &reading.material else {
            return Cow::Borrowed(reading);
        };
        let files = files(&reading.key).into_iter();
        match self.setup.sandbox.explain(why, files) {
            Some(why) => Cow::Owned(Reading {
                key: reading.key.clone(),
                material: Err(why),
            }),
            None => Cow::Borrowed(reading),
        }
    }
}

fn files(key: &SourceKey) -> Vec<&Path> {
    let named = match key {
        SourceKey::Config(path) => return vec![path],
        SourceKey::Identity(source) => source.files(),
        SourceKey::Trust(source) => source.files(),
    };
    named.into_iter().map(|(_, path)| path).collect()
}
