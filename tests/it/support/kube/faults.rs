//! What can go wrong with an API server, at a test's word.

use std::sync::{Arc, Mutex};

use tokio::sync::Semaphore;

use super::request::Asked;
use super::server::Shared;
use super::status::Refusal;
use crate::support::journal::Journal;

/// An answer in place of the right one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// 500 with a `Status`.
    InternalError,
    /// 503 with a `Status`.
    Unavailable,
    /// 429 with this `Retry-After`, in seconds.
    TooManyRequests(u32),
    /// 410, as for a resource version that has been forgotten.
    Expired,
    /// No answer: the connection is reset.
    Reset,
    /// 200, and a body that is no JSON.
    Garbage,
}

/// How open watches come to their end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// In good order, as at their timeout.
    Closed,
    /// Within the coding of the body: the last chunk never comes.
    Cut,
    /// RST of the connections that they are on.
    Reset,
    /// In good order, after the first half of an event's line.
    HalfLine,
    /// With an `ERROR` event: 410, `Expired`.
    Expired,
    /// With an `ERROR` event: 500, `InternalError`.
    InternalError,
}

type Pattern = Box<dyn Fn(&Asked) -> bool + Send>;

/// What is to go wrong from now on.
#[derive(Default)]
pub(super) struct Faults {
    failures: Vec<(Pattern, Fault, usize)>,
    gates: Vec<(Pattern, Arc<Gate>)>,
}

struct Gate {
    arrived: Journal<Asked>,
    permits: Semaphore,
}

impl Faults {
    pub(super) fn fail(&mut self, which: Pattern, fault: Fault, times: usize) {
        self.failures.push((which, fault, times));
    }

    /// The fault for this request, which is then used up.
    pub(super) fn take(&mut self, asked: &Asked) -> Option<Fault> {
        let matching =
            |(which, _, times): &&mut (Pattern, Fault, usize)| *times > 0 && which(asked);
        let (_, fault, times) = self.failures.iter_mut().find(matching)?;
        *times -= 1;
        Some(*fault)
    }

    fn gate(&self, asked: &Asked) -> Option<Arc<Gate>> {
        let mut gates = self.gates.iter();
        let (_, gate) = gates.find(|(which, gate)| !gate.permits.is_closed() && which(asked))?;
        Some(Arc::clone(gate))
    }
}

/// Keeps a request waiting as long as a test holds it.
pub(super) async fn wait_for_release(shared: &Shared, asked: &Asked) {
    let gate = shared.state().faults.gate(asked);
    if let Some(gate) = gate {
        gate.arrived.push(asked.clone());
        // A closed gate lets everyone through.
        if let Ok(permit) = gate.permits.acquire().await {
            permit.forget();
        }
    }
}

/// Requests that match are read and not answered until they are released, one by one, or this is
/// dropped.
pub(crate) struct Hold {
    gate: Arc<Gate>,
    seen: Mutex<usize>,
}

impl Hold {
    pub(super) fn new(faults: &mut Faults, which: Pattern) -> Self {
        let gate = Arc::new(Gate {
            arrived: Journal::new(),
            permits: Semaphore::new(0),
        });
        faults.gates.push((which, Arc::clone(&gate)));
        Self {
            gate,
            seen: Mutex::new(0),
        }
    }

    /// The next request that is held, each once, in their order.
    #[track_caller]
    pub(crate) fn arrived(&self) -> impl Future<Output = Asked> {
        let mark = {
            let mut seen = self.seen.lock().unwrap();
            *seen += 1;
            *seen - 1
        };
        let next = |asked: &Asked| Some(asked.clone());
        self.gate
            .arrived
            .wait_after(mark, "a request to hold", next)
    }

    /// How many have come so far.
    pub(crate) fn count(&self) -> usize {
        self.gate.arrived.mark()
    }

    /// Lets one request go on: the one that has waited longest, or the next to come.
    pub(crate) fn release_one(&self) {
        self.gate.permits.add_permits(1);
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.gate.permits.close();
    }
}

impl Fault {
    /// What is answered instead; `None` where nothing is.
    pub(super) fn refusal(self) -> Option<Refusal> {
        match self {
            Self::InternalError => Some(Refusal::internal("etcdserver: request timed out")),
            Self::Unavailable => Some(Refusal::unavailable()),
            Self::TooManyRequests(seconds) => Some(Refusal::too_many_requests(seconds)),
            Self::Expired => Some(Refusal::expired(
                "The resourceVersion for the provided watch is too old.",
            )),
            Self::Reset | Self::Garbage => None,
        }
    }
}
