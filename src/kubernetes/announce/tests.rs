use serde_json::Value;
use tokio::task::JoinSet;

use super::*;
use crate::config::kubernetes::ObjectRef;
use crate::kubernetes::facts::Regarding;
use crate::kubernetes::test_api::{Api, api};
use crate::status::tests::{service, status, waiting};
use crate::status::{KubernetesStatus, ProcessState, ServiceStatus};

const EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/payments/events";

fn fact(object: &str, note: &str) -> Fact {
    Fact {
        regarding: Regarding {
            kind: "Service",
            object: ObjectRef::new("payments", object),
            uid: "u1".into(),
        },
        is_warning: true,
        reason: "IdentityMissing".into(),
        note: note.into(),
    }
}

fn behind(object: &ObjectRef, service: ServiceStatus) -> ServiceStatus {
    ServiceStatus {
        kubernetes: Some(KubernetesStatus {
            service: Some(object.clone()),
            ..KubernetesStatus::default()
        }),
        ..service
    }
}

fn billing(service: ServiceStatus) -> Arc<Status> {
    let object = ObjectRef::new("payments", "billing");
    let service = behind(&object, service);
    Arc::new(status(ProcessState::Ready, vec![service]))
}

/// An announcer of what a status says, and the server that it tells.
struct Scene {
    api: Api,
    status: watch::Sender<Arc<Status>>,
    _tasks: JoinSet<()>,
}

impl Scene {
    fn of(first: Arc<Status>) -> Self {
        let (server, api) = api();
        let (status, mut receiver) = watch::channel(first);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let store = Store::new(None);
            Announcer::new(server, Schedule::default())
                .run(&store, &mut receiver)
                .await;
        });
        Self {
            api,
            status,
            _tasks: tasks,
        }
    }

    /// The next Event, taken.
    async fn event(&mut self) -> Value {
        let asked = self.api.expect(EVENTS, &[]).await;
        let event = serde_json::from_slice(&asked.body).unwrap();
        asked.status(201, &[], &event);
        event
    }

    /// That none comes for so long.
    async fn silence(&mut self, time: Duration) {
        tokio::time::sleep(time).await;
        assert!(self.api.try_next().is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn an_event_says_what_stands_in_the_form_that_the_api_takes() {
    let mut scene = Scene::of(billing(waiting("billing")));
    let event = scene.event().await;
    assert_eq!(event["apiVersion"], "events.k8s.io/v1");
    assert_eq!(event["kind"], "Event");
    assert_eq!(event["type"], "Warning");
    assert_eq!(event["reason"], "IdentityMissing");
    assert_eq!(event["action"], "Serve");
    assert_eq!(event["reportingController"], "tlsward");
    assert_ne!(event["reportingInstance"], "");
    let note = event["note"].as_str().unwrap();
    assert!(
        note.starts_with("billing: identity_missing: certs/tls.crt is not there; what to do: "),
        "{note}"
    );
    let regarding = serde_json::json!({
        "apiVersion": "v1", "kind": "Service", "namespace": "payments", "name": "billing",
    });
    assert_eq!(
        event["regarding"], regarding,
        "without a uid that nobody knows"
    );
    assert_eq!(event["metadata"]["namespace"], "payments");
    let name = event["metadata"]["name"].as_str().unwrap();
    assert!(
        name.starts_with("billing.") && name.len() == 8 + 16,
        "{name}"
    );
    // The API server's own type takes it.
    let typed: k8s_openapi::api::events::v1::Event = serde_json::from_value(event.clone()).unwrap();
    assert_eq!(
        typed.reporting_instance.as_deref(),
        event["reportingInstance"].as_str()
    );
    let time = event["eventTime"].as_str().unwrap();
    assert!(time.ends_with(".000000Z") && time.len() == 27, "{time}");
}

#[tokio::test(start_paused = true)]
async fn what_stands_is_told_once_and_again_before_it_is_forgotten() {
    let mut scene = Scene::of(billing(service("billing")));
    let first = scene.event().await;
    assert_eq!(
        (&first["type"], &first["reason"]),
        (&"Normal".into(), &"CertificateInUse".into())
    );
    let told = Instant::now();
    // Status is published again for other reasons.
    scene.status.send(billing(service("billing"))).unwrap();
    let again = scene.event().await;
    assert_eq!(again["note"], first["note"]);
    assert_ne!(again["metadata"]["name"], first["metadata"]["name"]);
    let minutes = told.elapsed().as_secs() / 60;
    assert!((45..=55).contains(&minutes), "{minutes}");
}

#[tokio::test(start_paused = true)]
async fn a_change_is_told_at_once_and_what_is_over_is_not_told_again() {
    let mut scene = Scene::of(billing(waiting("billing")));
    assert_eq!(scene.event().await["reason"], "IdentityMissing");
    scene.silence(Duration::from_secs(60)).await;
    scene.status.send(billing(service("billing"))).unwrap();
    let begun = Instant::now();
    assert_eq!(scene.event().await["reason"], "CertificateInUse");
    assert_eq!(begun.elapsed(), Duration::ZERO);
    // An hour later only what stands now.
    assert_eq!(scene.event().await["reason"], "CertificateInUse");
}

#[tokio::test(start_paused = true)]
async fn one_object_that_flaps_is_told_five_times_and_then_once_a_minute() {
    let mut scene = Scene::of(billing(waiting("billing")));
    let begun = Instant::now();
    let mut times = Vec::new();
    for round in 0..8 {
        let event = scene.event().await;
        times.push(begun.elapsed().as_secs());
        let expected = if round % 2 == 0 {
            "IdentityMissing"
        } else {
            "CertificateInUse"
        };
        assert_eq!(event["reason"], expected);
        let next = if round % 2 == 0 {
            service("billing")
        } else {
            waiting("billing")
        };
        scene.status.send(billing(next)).unwrap();
    }
    assert_eq!(times, [0, 0, 0, 0, 0, 60, 120, 180]);
}

#[tokio::test(start_paused = true)]
async fn a_thousand_facts_are_told_ten_a_second() {
    let services = (0..1000).map(|number| {
        let object = ObjectRef::new("payments", format!("s{number}"));
        behind(&object, service(&format!("s{number}")))
    });
    let mut scene = Scene::of(Arc::new(status(ProcessState::Ready, services.collect())));
    let begun = Instant::now();
    let mut told = BTreeSet::new();
    for _ in 0..1000 {
        let event = scene.event().await;
        told.insert(event["regarding"]["name"].as_str().unwrap().to_owned());
    }
    assert_eq!(told.len(), 1000, "each once");
    assert_eq!(begun.elapsed().as_secs(), 99);
}

#[tokio::test(start_paused = true)]
async fn where_events_are_forbidden_nothing_is_asked_for_ten_minutes() {
    let mut scene = Scene::of(billing(waiting("billing")));
    let asked = scene.api.expect(EVENTS, &[]).await;
    asked.refuse(403, "Forbidden", "events.events.k8s.io is forbidden");
    scene.status.send(billing(service("billing"))).unwrap();
    scene.silence(Duration::from_secs(599)).await;
    let begun = Instant::now();
    assert_eq!(scene.event().await["reason"], "CertificateInUse");
    assert_eq!(begun.elapsed(), Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_away_is_tried_again_and_hears_of_what_stands_then() {
    let (server, api) = api();
    api.line.cut();
    let (status, mut receiver) = watch::channel(billing(waiting("billing")));
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let store = Store::new(None);
        Announcer::new(server, Schedule::default())
            .run(&store, &mut receiver)
            .await;
    });
    let line = Arc::clone(&api.line);
    let mut scene = Scene {
        api,
        status,
        _tasks: tasks,
    };
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert!((10..30).contains(&line.dials()), "{}", line.dials());
    scene.status.send(billing(service("billing"))).unwrap();
    line.restore();
    assert_eq!(scene.event().await["reason"], "CertificateInUse");
    scene.silence(Duration::from_secs(60)).await;
}

#[tokio::test(start_paused = true)]
async fn an_event_that_is_taken_for_wrong_is_not_sent_for_ever() {
    let mut scene = Scene::of(billing(waiting("billing")));
    let asked = scene.api.expect(EVENTS, &[]).await;
    asked.refuse(422, "Invalid", "note: too long");
    scene.silence(Duration::from_secs(600)).await;
}

#[tokio::test(start_paused = true)]
async fn the_connection_is_closed_when_there_is_nothing_more_to_tell() {
    let mut scene = Scene::of(billing(service("billing")));
    scene.event().await;
    scene.event().await;
    assert_eq!(scene.api.line.dials(), 2);
}

#[test]
fn names_of_events_are_names_whatever_the_object_is_called() {
    let long = format!("{}.-b", "a".repeat(234));
    for object in ["billing", long.as_str()] {
        let name = event_name(object);
        assert!(name.len() <= 253, "{name}");
        assert!(!name.contains("..") && !name.contains("-."), "{name}");
    }
    assert_ne!(event_name("billing"), event_name("billing"));
}

#[tokio::test(start_paused = true)]
async fn buckets_of_objects_that_are_quiet_are_not_kept() {
    let mut schedule = Schedule::default();
    let now = Instant::now();
    schedule.stand([fact("a", "one")].into(), now);
    let Next::Tell(fact) = schedule.next(now) else {
        panic!("it is due");
    };
    schedule.told(&fact, now);
    schedule.stand(BTreeSet::new(), now);
    assert_eq!(schedule.objects.len(), 1, "it may come back in a moment");
    schedule.stand(BTreeSet::new(), now + OBJECT_EVERY);
    assert!(schedule.objects.is_empty());
}
