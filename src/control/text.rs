//! The configuration's text: from what was read to a configuration, or to what is wrong with it.

use std::collections::BTreeMap;
use std::path::Path;

use crate::config::Config;
use crate::config::kubernetes::Cluster;
use crate::failure::{Explained, Reason};
use crate::material::Part;
use crate::source::{Material, Reading};
use crate::telemetry;

/// Why a configuration did not come into force.
#[derive(Clone, Debug)]
pub(crate) struct Refused {
    pub(crate) why: Explained,
    /// Every mistake, each with its place.
    pub(crate) problems: Vec<String>,
}

impl Refused {
    pub(super) fn of(why: Explained, fix: &str) -> Self {
        let problems = vec![format!("{}\n  fix: {fix}", why.detail)];
        Self { why, problems }
    }

    fn by_problems(problems: &crate::config::Problems) -> Self {
        let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
        let count = match problems.len() {
            1 => "1 mistake".to_owned(),
            n => format!("{n} mistakes"),
        };
        let first = problems
            .first()
            .map_or("", |first| first.lines().next().unwrap_or(""));
        let detail = format!("{count}; the first: {first}");
        Self {
            why: Explained::new(Reason::BadConfig, detail),
            problems,
        }
    }
}

/// Parses the text, with what is known of the cluster.
pub(super) fn parse(
    text: &Result<Part, Explained>,
    path: &Path,
    environment: &BTreeMap<String, String>,
    cluster: &Cluster,
) -> Result<Config, Refused> {
    let text = text.as_ref().map_err(|why| {
        let fix = match why.reason {
            Reason::BadConfig => "name the configuration file with -c FILE, or put it there",
            _ => why.hint,
        };
        Refused::of(why.clone(), fix)
    })?;
    let bad =
        |detail: String, fix: &str| Refused::of(Explained::new(Reason::BadConfig, detail), fix);
    let text = std::str::from_utf8(&text.bytes).map_err(|error| {
        let detail = format!("{} is not UTF-8: {error}", path.display());
        bad(detail, "save the file as UTF-8 text")
    })?;
    if text.trim().is_empty() {
        // Cut short by a full disk, or by a writer that is not done: nobody means "no services"
        // by it, and it must not end all of them.
        let detail = format!("{} is empty", path.display());
        return Err(bad(
            detail,
            "write the configuration; one without services needs a line such as [services]",
        ));
    }
    let config = Config::parse_with(text, path, environment, cluster)
        .map_err(|problems| Refused::by_problems(&problems))?;
    telemetry::check_filter(&config.log.filter)
        .map_err(|error| bad(error.to_string(), "correct log.filter"))?;
    Ok(config)
}

pub(super) fn config_text(reading: Option<&Reading>) -> Result<Part, Explained> {
    match reading.map(|reading| &reading.material) {
        Some(Ok(Material::Config(part))) => Ok(part.clone()),
        Some(Err(why)) => Err(why.clone()),
        Some(Ok(Material::Identity(_) | Material::Trust(_))) | None => Err(Explained::new(
            Reason::Internal,
            "the configuration was not read",
        )),
    }
}
