//! Where proxies are proven and measured: each beside its own upstream, in turns.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use crate::machine;
use crate::pki::{Pki, PkiFiles, SERVER_NAME};
use crate::proof::prove;
use crate::proxy::peers::LeftOut;
use crate::proxy::{Proxy, Role, Running, Setup, Variants, free_address, keep_configuration};
use crate::report::{Round, Series};
use crate::upstream::{Guise, Policy, Upstream};
use crate::workload::{Form, Workload, World};
use crate::{Group, Suite};

/// Many times what the longest round takes on a busy machine; past that something hangs.
const ROUND_DEADLINE: Duration = Duration::from_secs(180);

/// More callers at once than a workload has: the last ones of an earlier round may still be
/// leaving.
const MORE_CONNECTIONS: usize = 64;

/// What all rounds share.
pub(crate) struct Stage<'a> {
    pub(crate) form: Form,
    pub(crate) suite: Suite,
    pub(crate) group: Group,
    pub(crate) pki: &'a Pki,
    pub(crate) files: PkiFiles,
    /// For the proxies' files.
    pub(crate) directory: &'a Path,
    /// Where the proxies' configurations are to be kept.
    pub(crate) keep: Option<&'a Path>,
}

/// A proxy in one workload.
struct Contender<'a> {
    proxy: &'a dyn Proxy,
    /// Nothing between two rounds of a workload that needs fresh proxies.
    started: Option<Started>,
    series: Series,
    /// Why it takes no further part.
    failed: Option<String>,
}

/// In this order they are dropped: the proxy first.
struct Started {
    running: Running,
    upstream: Upstream,
}

impl Stage<'_> {
    /// Those that have shown that they do the work, and why the others have not.
    pub(crate) async fn proven(&self, proxies: Variants) -> io::Result<(Variants, Vec<LeftOut>)> {
        let mut proven = Vec::new();
        let mut left_out = Vec::new();
        for proxy in proxies {
            // What has no TLS has nothing to prove.
            if proxy.role() != Role::Floor {
                let setup = self.setup(proxy.as_ref(), None, free_address()?)?;
                let policy = self.policy(None, Guise::Genuine);
                if let Err(error) = prove(proxy.as_ref(), &setup, self.pki, policy).await {
                    left_out.push(LeftOut {
                        name: proxy.name(),
                        workload: None,
                        reason: format!("not proven, so not measured: {}", one_line(&error)),
                    });
                    continue;
                }
            }
            proven.push(proxy);
        }
        Ok((proven, left_out))
    }

    /// The rounds of the proxies take turns, so that a slow phase of the machine meets all.
    ///
    /// A proxy that breaks is left out of the workload, and the others go on.
    ///
    /// # Errors
    /// The machine cannot be measured.
    pub(crate) async fn measure(
        &self,
        workload: Workload,
        proxies: &[Box<dyn Proxy>],
        rounds: usize,
    ) -> io::Result<(Vec<Series>, Vec<LeftOut>)> {
        let mut left_out = Vec::new();
        let mut leave_out = |name, reason| {
            left_out.push(LeftOut {
                name,
                workload: Some(workload.name()),
                reason,
            });
        };
        let mut contenders = Vec::new();
        for proxy in proxies {
            match self.sits_out(proxy.as_ref(), workload) {
                SitsOut::No => contenders.push(Contender::new(proxy.as_ref(), workload)),
                SitsOut::Silently => {}
                SitsOut::Because(reason) => leave_out(proxy.name(), reason.to_owned()),
            }
        }
        let mut copy = self.plain_copy()?;
        for number in 0..rounds {
            // Nobody always comes after the same neighbour.
            let turn = number % contenders.len().max(1);
            contenders.rotate_left(turn);
            for contender in contenders.iter_mut().filter(|c| c.failed.is_none()) {
                let outcome = self.round(workload, contender).await;
                let after = self.plain_copy()?;
                match outcome {
                    Ok(sample) => contender.series.rounds.push(Round {
                        sample,
                        plain_copy: copy.max(after),
                        load: machine::load(),
                    }),
                    Err(error) => contender.failed = Some(one_line(&error)),
                }
                copy = after;
            }
            contenders.rotate_right(turn);
        }
        let mut series = Vec::new();
        for contender in contenders {
            match contender.failed {
                Some(reason) => leave_out(contender.proxy.name(), format!("it broke: {reason}")),
                None => series.push(contender.series),
            }
        }
        Ok((series, left_out))
    }

    async fn round(
        &self,
        workload: Workload,
        contender: &mut Contender<'_>,
    ) -> io::Result<crate::workload::Sample> {
        let started = match contender.started.take() {
            Some(started) => started,
            None => self.start(workload, contender.proxy).await?,
        };
        let world = World {
            running: &started.running,
            upstream: &started.upstream,
        };
        let round = workload.round(&world, self.form);
        let sample = tokio::time::timeout(ROUND_DEADLINE, round)
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "a round hangs"))??;
        if !workload.needs_fresh_proxy() {
            contender.started = Some(started);
        }
        Ok(sample)
    }

    async fn start(&self, workload: Workload, proxy: &dyn Proxy) -> io::Result<Started> {
        let guise = match proxy.role() {
            Role::Subject | Role::Peer => Guise::Genuine,
            Role::Floor => Guise::Plain,
        };
        let upstream = Upstream::start(self.pki, self.policy(Some(workload), guise))?;
        let setup = self.setup(proxy, Some(workload), upstream.address)?;
        let running = Running::start(proxy, &setup).await?;
        if let Some(keep) = self.keep {
            keep_configuration(&setup, &keep.join(proxy.name()).join(workload.name()))?;
        }
        Ok(Started { running, upstream })
    }

    fn policy(&self, workload: Option<Workload>, guise: Guise) -> Policy {
        let resumes = workload.is_some_and(Workload::resumes);
        Policy {
            guise,
            suite: self.suite,
            group: self.group,
            tickets: if resumes { 2 } else { 0 },
        }
    }

    /// `workload` is nothing for the proof.
    fn setup(
        &self,
        proxy: &dyn Proxy,
        workload: Option<Workload>,
        upstream: SocketAddr,
    ) -> io::Result<Setup> {
        let directory = self.directory.join(proxy.name());
        if directory.exists() {
            fs::remove_dir_all(&directory)?;
        }
        fs::create_dir(&directory)?;
        let admin = workload == Some(Workload::LatencyAdmin);
        let connections = workload.map_or(0, |workload| workload.connections(self.form));
        Ok(Setup {
            directory,
            listen: free_address()?,
            admin: admin.then(free_address).transpose()?,
            upstream,
            server_name: SERVER_NAME,
            pki: self.files.clone(),
            group: self.group,
            resumption: workload.is_some_and(Workload::resumes),
            connections: connections + MORE_CONNECTIONS,
        })
    }

    fn sits_out(&self, proxy: &dyn Proxy, workload: Workload) -> SitsOut {
        let wanted = workload.is_only_for();
        if wanted.is_some_and(|role| role != proxy.role()) {
            return SitsOut::Silently;
        }
        match proxy.sits_out(workload) {
            // It is there for a few workloads only, and nobody expects it in the others.
            Some(_) if proxy.role() == Role::Floor => return SitsOut::Silently,
            Some(reason) => return SitsOut::Because(reason),
            None => {}
        }
        if self.form.quick && proxy.is_tuned() && !workload.is_bulk() {
            return SitsOut::Because("quick form: what is tuned is buffers");
        }
        SitsOut::No
    }

    fn plain_copy(&self) -> io::Result<f64> {
        machine::plain_copy(if self.form.quick {
            128 << 20
        } else {
            256 << 20
        })
    }
}

/// What a program said before it ended has several lines.
fn one_line(error: &io::Error) -> String {
    let text = error.to_string();
    let lines: Vec<_> = text.lines().map(str::trim).collect();
    lines.join("; ")
}

enum SitsOut {
    No,
    /// The workload is not for its kind.
    Silently,
    Because(&'static str),
}

impl<'a> Contender<'a> {
    fn new(proxy: &'a dyn Proxy, workload: Workload) -> Self {
        Self {
            proxy,
            started: None,
            series: Series {
                workload,
                proxy: proxy.name(),
                role: proxy.role(),
                rounds: Vec::new(),
            },
            failed: None,
        }
    }
}
