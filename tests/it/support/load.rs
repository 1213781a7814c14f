//! Connections without end while something is changed under them.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::pki::Issued;
use super::proxy::{Proxy, Service, serial_in_use};
use super::scene::{NAME, introduce, visit};
use super::within;

/// Puts one generation of the service's certificate after the other in place, each as soon as a
/// handshake has shown the one before, and expects that no connection fails meanwhile, that each
/// is made with a certificate that was current, and that one from before goes on. The first
/// generation is in place.
pub(crate) async fn rotation_loses_no_connection(
    proxy: &Proxy,
    service: &Service,
    generations: &[Issued],
    put: impl AsyncFn(usize, &Issued),
) {
    let rotations = generations.len() - 1;
    let (mut old, seen) = introduce(service).await;
    assert_eq!(seen.serial, generations[0].serial());

    let progress = Arc::new(Progress {
        generation_of: generations
            .iter()
            .enumerate()
            .map(|(number, issued)| (issued.serial(), number))
            .collect(),
        written: AtomicUsize::new(0),
        seen: watch::Sender::new(0),
        connections: AtomicU64::new(0),
        stop: AtomicBool::new(false),
    });
    let mut connecting = JoinSet::new();
    for _ in 0..2 {
        let (progress, service) = (Arc::clone(&progress), service.clone());
        connecting.spawn(async move { progress.connect_until_stopped(&service).await });
    }
    let rotating = async {
        let mut seen = progress.seen.subscribe();
        for (number, issued) in generations.iter().enumerate().skip(1) {
            progress.written.store(number, Ordering::SeqCst);
            put(number, issued).await;
            within(
                format!("generation {number} at the upstream"),
                seen.wait_for(|seen| *seen >= number),
            )
            .await
            .expect("progress keeps the sender");
        }
    };
    tokio::select! {
        () = rotating => {}
        failed = connecting.join_next() => {
            failed.expect("two tasks").expect("a connection failed");
        }
    }
    progress.stop.store(true, Ordering::Relaxed);
    connecting.join_all().await;

    old.echo(b"the connection from before goes on").await;
    let connections = progress.connections.load(Ordering::Relaxed);
    assert!(
        connections >= rotations as u64,
        "only {connections} connections"
    );
    let service = proxy.service(NAME).await;
    let identity = &service["identity"];
    assert_eq!(
        serial_in_use(&service),
        Some(&*generations[rotations].serial())
    );
    assert!(identity["refused"].is_null(), "{identity:#}");
    assert!(
        identity["generation"].as_u64() > Some(rotations as u64),
        "{identity:#}"
    );
    assert_eq!(proxy.counter(NAME, "failed").await, 0);
}

/// What the connecting tasks and the rotating one know of each other.
struct Progress {
    generation_of: HashMap<String, usize>,
    /// The newest generation that is being or has been written.
    written: AtomicUsize,
    /// The newest generation that an upstream handshake has shown.
    seen: watch::Sender<usize>,
    connections: AtomicU64,
    stop: AtomicBool,
}

impl Progress {
    /// Connects again and again. Each connection must succeed, and must be made with a
    /// certificate that was current when it was dialled: no older than one that a handshake had
    /// shown before, no newer than the newest written.
    async fn connect_until_stopped(&self, service: &Service) {
        while !self.stop.load(Ordering::Relaxed) {
            let oldest = *self.seen.borrow();
            let visited = visit(service).await;
            let newest = self.written.load(Ordering::SeqCst);
            let generation = self.generation_of[&visited.serial];
            assert!(
                (oldest..=newest).contains(&generation),
                "generation {generation} when {oldest} was in use and {newest} written"
            );
            self.connections.fetch_add(1, Ordering::Relaxed);
            self.seen.send_if_modified(|seen| {
                let newer = generation > *seen;
                *seen = generation.max(*seen);
                newer
            });
        }
    }
}
