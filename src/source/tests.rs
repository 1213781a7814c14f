//! A watch, seen from the receiving end. No test sleeps: each waits for a batch,
//! and that a change is *not* reported is shown by a later change being the first to arrive.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use tempfile::TempDir;
use tokio::time::timeout;

use super::*;
use crate::config::CaSource;
use crate::failure::Reason;

/// Without a cluster.
fn read_now(sources: &SourceSet) -> Vec<Reading> {
    read_all(sources, &Store::new(None))
}

/// Longer than any loaded machine takes; only a failing test waits for it.
const GUARD: Duration = Duration::from_secs(60);

/// No check of contents within a test's life: what is seen is seen by notify.
const NOTIFY_ONLY: WatchOptions = WatchOptions {
    periodic: Duration::from_secs(3600),
    polling: Duration::from_secs(3600),
    quiet: Duration::from_millis(50),
    settle: Duration::from_millis(500),
    notify: true,
};

/// Only requests.
const BLIND: WatchOptions = WatchOptions {
    notify: false,
    ..NOTIFY_ONLY
};

mod rotation;

struct Watching {
    watch: Watch,
    batches: Batches,
}

impl Watching {
    /// Watches what is known, and returns once every watch is set.
    async fn start<const N: usize>(keys: [SourceKey; N], options: WatchOptions) -> Self {
        let sources = SourceSet::from(keys);
        let known = read_now(&sources);
        let (watch, batches) = watch(sources, &known, options, Store::new(None));
        let mut watching = Self { watch, batches };
        watching.armed().await;
        watching
    }

    /// After this, whatever was asked of the watch is done.
    async fn armed(&mut self) {
        let ticket = self.watch.request();
        let batch = self.next().await;
        assert_eq!(batch.answers, [ticket]);
        assert!(batch.readings.is_empty(), "{batch:?}");
    }

    async fn next(&mut self) -> Batch {
        timeout(GUARD, self.batches.recv())
            .await
            .expect("a batch must come")
            .expect("the watch goes on")
    }

    /// Takes batches until one says this of the source: a change that takes several steps may be
    /// reported in several.
    async fn until(&mut self, key: &SourceKey, expected: &str) -> Batch {
        loop {
            let batch = self.next().await;
            if text(&batch, key).as_deref() == Some(expected) {
                return batch;
            }
        }
    }
}

/// What a batch says of a source: its contents joined by `+`, or the reason of the error.
fn text(batch: &Batch, key: &SourceKey) -> Option<String> {
    let reading = batch.readings.iter().find(|r| r.key == *key)?;
    let parts = match &reading.material {
        Ok(Material::Config(part) | Material::Identity(IdentityMaterial::Bundle(part))) => {
            vec![part]
        }
        Ok(Material::Identity(IdentityMaterial::Pair { cert, key })) => vec![cert, key],
        Ok(Material::Trust(trust)) => trust.ca.iter().chain(trust.crl.iter().flatten()).collect(),
        Err(error) => return Some(error.reason.to_string()),
    };
    let texts = parts
        .iter()
        .map(|part| String::from_utf8_lossy(&part.bytes));
    Some(texts.collect::<Vec<_>>().join("+"))
}

fn config(path: impl Into<PathBuf>) -> SourceKey {
    SourceKey::Config(path.into())
}

fn bundle(path: impl Into<PathBuf>) -> SourceKey {
    SourceKey::Identity(IdentitySource::Bundle(path.into()))
}

fn pair(dir: &Path, cert: &str, key: &str) -> SourceKey {
    SourceKey::Identity(IdentitySource::Pair {
        cert: dir.join(cert),
        key: dir.join(key),
    })
}

fn trust(ca: impl Into<PathBuf>) -> SourceKey {
    SourceKey::Trust(TrustSource {
        ca: CaSource::Path(ca.into()),
        crl: None,
    })
}

fn tempdir() -> TempDir {
    tempfile::tempdir().expect("a place for temporary files")
}

fn write(path: impl AsRef<Path>, text: &str) {
    let path = path.as_ref();
    fs::write(path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

/// As programs do that replace files properly.
fn write_and_rename(path: &Path, text: &str) {
    let new = path.with_extension("new");
    write(&new, text);
    fs::rename(new, path).unwrap();
}

/// As the kubelet does: a new directory, then `..data` is pointed to it by rename.
fn project(dir: &Path, generation: u32, files: &[(&str, &str)]) {
    let name = format!("..2026_{generation}");
    let old = fs::read_link(dir.join("..data")).ok();
    fs::create_dir(dir.join(&name)).unwrap();
    for (file, text) in files {
        write(dir.join(&name).join(file), text);
        if old.is_none() {
            symlink(Path::new("..data").join(file), dir.join(file)).unwrap();
        }
    }
    symlink(&name, dir.join("..data_tmp")).unwrap();
    fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();
    if let Some(old) = old {
        fs::remove_dir_all(dir.join(old)).unwrap();
    }
}

fn make_fifo(path: &Path) {
    use rustix::fs::{CWD, FileType, Mode};
    rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
}

// What must not be reported, and what must.

#[tokio::test]
async fn equal_bytes_are_no_change_however_they_were_written() {
    let dir = tempdir();
    let (file, other) = (dir.path().join("tls.pem"), dir.path().join("config.toml"));
    write(&file, "same");
    write(&other, "1");
    let mut watching = Watching::start([bundle(&file), config(&other)], NOTIFY_ONLY).await;
    write_and_rename(&file, "same");
    watching.armed().await;
    write_and_rename(&file, "same");
    write_and_rename(&other, "2");
    let batch = watching.next().await;
    assert_eq!(text(&batch, &config(&other)).as_deref(), Some("2"));
    assert_eq!(batch.readings.len(), 1);
}

#[tokio::test]
async fn the_same_error_is_reported_once_a_different_one_and_recovery_are_reported() {
    let dir = tempdir();
    let (file, other) = (dir.path().join("tls.pem"), dir.path().join("config.toml"));
    make_fifo(&file);
    write(&other, "1");
    let mut watching = Watching::start([bundle(&file), config(&other)], NOTIFY_ONLY).await;

    let second = dir.path().join("second");
    make_fifo(&second);
    fs::rename(&second, &file).unwrap();
    write_and_rename(&other, "2");
    let batch = watching.next().await;
    assert_eq!(text(&batch, &config(&other)).as_deref(), Some("2"));
    assert_eq!(batch.readings.len(), 1, "{batch:?}");

    fs::remove_file(&file).unwrap();
    let batch = watching.next().await;
    assert_eq!(
        text(&batch, &bundle(&file)).as_deref(),
        Some("identity_missing")
    );
    write_and_rename(&file, "there");
    let batch = watching.next().await;
    assert_eq!(text(&batch, &bundle(&file)).as_deref(), Some("there"));
}

#[tokio::test]
async fn a_fifo_or_an_oversized_file_in_the_place_of_a_certificate_is_refused_and_left_again() {
    let dir = tempdir();
    let file = dir.path().join("ca.crt");
    write(&file, "1");
    let mut watching = Watching::start([trust(&file)], NOTIFY_ONLY).await;
    fs::remove_file(&file).unwrap();
    make_fifo(&file);
    watching.until(&trust(&file), Reason::BadPem.as_str()).await;
    write_and_rename(&file, "2");
    watching.until(&trust(&file), "2").await;
    let large = fs::File::create(&file).unwrap();
    large.set_len(file::read::MAX_FILE as u64 + 1).unwrap();
    watching.until(&trust(&file), Reason::BadPem.as_str()).await;
    write_and_rename(&file, "3");
    watching.until(&trust(&file), "3").await;
}

#[tokio::test]
async fn no_mixture_of_generations_is_reported_while_data_is_swapped_without_pause() {
    let dir = tempdir();
    let identity = pair(dir.path(), "tls.crt", "tls.key");
    project(dir.path(), 1, &[("tls.crt", "1"), ("tls.key", "1")]);
    let mut watching = Watching::start([identity.clone()], NOTIFY_ONLY).await;
    let base = dir.path().to_owned();
    let swaps = std::thread::spawn(move || {
        for n in 2..400_u32 {
            let generation = n.to_string();
            let name = format!("..g{n}");
            fs::create_dir(base.join(&name)).unwrap();
            write(base.join(&name).join("tls.crt"), &generation);
            write(base.join(&name).join("tls.key"), &generation);
            symlink(&name, base.join("..data_tmp")).unwrap();
            fs::rename(base.join("..data_tmp"), base.join("..data")).unwrap();
        }
    });
    loop {
        let batch = watching.next().await;
        let seen = text(&batch, &identity).expect("the only source");
        let (cert, key) = seen.split_once('+').expect("both files are there");
        assert_eq!(cert, key);
        if cert == "399" {
            break;
        }
    }
    swaps.join().unwrap();
}

#[tokio::test]
async fn a_file_that_never_holds_still_does_not_hold_back_another() {
    let dir = tempdir();
    let (wild, calm) = (dir.path().join("tls.pem"), dir.path().join("config.toml"));
    write(&wild, "0");
    write(&calm, "1");
    let mut watching = Watching::start([bundle(&wild), config(&calm)], NOTIFY_ONLY).await;
    let stop = Arc::new(AtomicBool::new(false));
    let writer = {
        let stop = Arc::clone(&stop);
        std::thread::spawn(move || {
            let mut n: u64 = 0;
            while !stop.load(Ordering::Relaxed) {
                n += 1;
                write_and_rename(&wild, &n.to_string());
            }
        })
    };
    write_and_rename(&calm, "2");
    watching.until(&config(&calm), "2").await;
    stop.store(true, Ordering::Relaxed);
    writer.join().unwrap();
}

// Without events.

#[tokio::test(start_paused = true)]
async fn the_periodic_check_alone_sees_a_change_that_keeps_length_and_time() {
    let dir = tempdir();
    let file = dir.path().join("tls.pem");
    write(&file, "1");
    let modified = fs::metadata(&file).unwrap().modified().unwrap();
    let options = WatchOptions {
        notify: false,
        ..WatchOptions::default()
    };
    let mut watching = Watching::start([bundle(&file)], options).await;
    for n in ["2", "3"] {
        write(&file, n);
        let open = fs::File::options().write(true).open(&file).unwrap();
        open.set_modified(modified).unwrap();
        let before = tokio::time::Instant::now();
        let batch = watching.next().await;
        assert_eq!(text(&batch, &bundle(&file)).as_deref(), Some(n));
        assert_eq!(batch.trigger, Trigger::Periodic);
        assert!(before.elapsed() <= options.polling + options.quiet * 2);
    }
    assert!(matches!(
        watching.watch.health().borrow().noticing,
        Noticing::Polling { every, .. } if every == options.polling
    ));
}

#[tokio::test]
async fn the_periodic_check_finds_what_no_event_tells() {
    let dir = tempdir();
    let certs = dir.path().join("certs");
    fs::create_dir(&certs).unwrap();
    let file = certs.join("tls.pem");
    write(&file, "1");
    // Written by another name, a file causes no event in its own directory.
    let elsewhere = dir.path().join("elsewhere");
    fs::hard_link(&file, &elsewhere).unwrap();
    let options = WatchOptions {
        periodic: Duration::from_millis(200),
        ..NOTIFY_ONLY
    };
    let mut watching = Watching::start([bundle(&file)], options).await;
    write(&elsewhere, "2");
    let batch = watching.until(&bundle(&file), "2").await;
    assert_eq!(batch.trigger, Trigger::Periodic);
}

// Requests.

#[tokio::test]
async fn a_request_is_answered_in_order_with_what_changed_or_with_nothing() {
    let dir = tempdir();
    let file = dir.path().join("tls.pem");
    write(&file, "1");
    let mut watching = Watching::start([bundle(&file)], BLIND).await;
    let first = watching.watch.request();
    let batch = watching.next().await;
    assert_eq!((batch.trigger, batch.readings.len()), (Trigger::Request, 0));
    assert_eq!(batch.answers, [first]);

    write(&file, "2");
    let (second, third) = (watching.watch.request(), watching.watch.request());
    let batch = watching.next().await;
    assert_eq!(batch.trigger, Trigger::Request);
    assert_eq!(text(&batch, &bundle(&file)).as_deref(), Some("2"));
    let mut answers = batch.answers;
    if answers.len() < 2 {
        answers.extend(watching.next().await.answers);
    }
    assert_eq!(answers, [second, third]);
}

// Another set.

#[tokio::test]
async fn a_source_that_is_added_and_known_is_watched_and_not_reported_again() {
    let dir = tempdir();
    let (old, new) = (dir.path().join("config.toml"), dir.path().join("tls.pem"));
    write(&old, "1");
    write(&new, "1");
    let mut watching = Watching::start([config(&old)], NOTIFY_ONLY).await;
    let known = read_now(&SourceSet::from([bundle(&new)]));
    let set = SourceSet::from([config(&old), bundle(&new)]);
    watching.watch.replace(set, &known);
    watching.armed().await;
    write_and_rename(&new, "2");
    let batch = watching.next().await;
    assert_eq!(text(&batch, &bundle(&new)).as_deref(), Some("2"));
}

#[tokio::test]
async fn what_changed_between_the_callers_reading_and_the_watch_is_reported() {
    let dir = tempdir();
    let file = dir.path().join("tls.pem");
    write(&file, "1");
    let set = SourceSet::from([bundle(&file)]);
    let known = read_now(&set);
    write(&file, "2");
    let (watch, batches) = watch(set, &known, BLIND, Store::new(None));
    let mut watching = Watching { watch, batches };
    let batch = watching.next().await;
    assert_eq!(text(&batch, &bundle(&file)).as_deref(), Some("2"));
}

#[tokio::test]
async fn a_source_that_is_not_known_is_reported_as_a_first_read() {
    let dir = tempdir();
    let file = dir.path().join("tls.pem");
    write(&file, "1");
    let (watch, batches) = watch(
        SourceSet::from([bundle(&file)]),
        &[],
        BLIND,
        Store::new(None),
    );
    let mut watching = Watching { watch, batches };
    let batch = watching.next().await;
    assert_eq!(batch.trigger, Trigger::Start);
    assert_eq!(text(&batch, &bundle(&file)).as_deref(), Some("1"));
}

#[tokio::test]
async fn a_removed_source_is_neither_reported_nor_watched() {
    let dir = tempdir();
    let other = tempdir();
    let (stays, goes) = (dir.path().join("config.toml"), other.path().join("tls.pem"));
    write(&stays, "1");
    write(&goes, "1");
    let mut watching = Watching::start([config(&stays), bundle(&goes)], NOTIFY_ONLY).await;
    let directories = |watching: &Watching| match watching.watch.health().borrow().noticing {
        Noticing::Notify { directories } => directories,
        ref other => panic!("{other}"),
    };
    let before = directories(&watching);
    watching
        .watch
        .replace(SourceSet::from([config(&stays)]), &[]);
    watching.armed().await;
    assert_eq!(directories(&watching), before - 1);
    write_and_rename(&goes, "2");
    write_and_rename(&stays, "2");
    let batch = watching.next().await;
    assert_eq!(text(&batch, &config(&stays)).as_deref(), Some("2"));
    assert_eq!(batch.readings.len(), 1);
}

#[tokio::test]
async fn a_batch_that_was_under_way_cannot_bring_back_what_the_caller_has_read_since() {
    let dir = tempdir();
    let file = dir.path().join("tls.pem");
    let set = SourceSet::from([bundle(&file)]);
    write(&file, "1");
    let mut watching = Watching::start([bundle(&file)], BLIND).await;
    write(&file, "2");
    let ticket = watching.watch.request();
    // The answer is on its way, with "2", when the caller reads "3" by itself.
    let mut held = watching.batches.batches.recv().await.unwrap();
    assert_eq!(text(&held, &bundle(&file)).as_deref(), Some("2"));
    write(&file, "3");
    watching.watch.replace(set.clone(), &read_now(&set));
    let (send, batches) = mpsc::channel(1);
    held.readings.truncate(1);
    send.send(held).await.unwrap();
    let mut late = Batches {
        batches,
        current: Arc::clone(&watching.batches.current),
    };
    let batch = late.recv().await.unwrap();
    assert!(batch.readings.is_empty(), "{batch:?}");
    assert_eq!(batch.answers, [ticket]);

    // And what was known is what later changes are measured by.
    watching.armed().await;
    write(&file, "2");
    watching.watch.request();
    watching.until(&bundle(&file), "2").await;
}

#[tokio::test]
async fn a_thousand_services_in_shared_directories_cost_one_watch_a_directory() {
    let dir = tempdir();
    let mut set = SourceSet::new();
    for n in 0..1000 {
        let certs = dir.path().join(format!("team-{}", n % 10));
        fs::create_dir_all(&certs).unwrap();
        for kind in ["crt", "key"] {
            write(certs.join(format!("{n}.{kind}")), "1");
        }
        set.insert(pair(&certs, &format!("{n}.crt"), &format!("{n}.key")));
    }
    let known = read_now(&set);
    let (watch, batches) = watch(set, &known, NOTIFY_ONLY, Store::new(None));
    let mut watching = Watching { watch, batches };
    watching.armed().await;
    let above = dir.path().components().count();
    match watching.watch.health().borrow().noticing {
        Noticing::Notify { directories } => assert!(directories <= 10 + above, "{directories}"),
        ref other => panic!("{other}"),
    }
    write_and_rename(&dir.path().join("team-7/777.crt"), "2");
    let batch = watching.next().await;
    assert_eq!(batch.readings.len(), 1);
    let key = pair(&dir.path().join("team-7"), "777.crt", "777.key");
    assert_eq!(text(&batch, &key).as_deref(), Some("2+1"));
}

// Health and end.

#[tokio::test]
async fn a_link_to_nothing_in_a_ca_directory_is_noted() {
    let dir = tempdir();
    write(dir.path().join("a.crt"), "a");
    symlink("gone", dir.path().join("b.crt")).unwrap();
    let watching = Watching::start([trust(dir.path())], NOTIFY_ONLY).await;
    let health = watching.watch.health();
    let notes = health.borrow().notes[&trust(dir.path())].clone();
    assert_eq!(notes.len(), 1, "{notes:?}");
    assert!(notes[0].contains("b.crt is a symbolic link to nothing"));
}

#[tokio::test]
async fn stopping_waits_for_the_task_and_ends_the_batches() {
    let dir = tempdir();
    let file = dir.path().join("tls.pem");
    write(&file, "1");
    let mut watching = Watching::start([bundle(&file)], NOTIFY_ONLY).await;
    timeout(GUARD, watching.watch.stop()).await.unwrap();
    assert!(watching.batches.recv().await.is_none());
}

#[tokio::test]
async fn dropping_the_watch_ends_the_batches_even_if_nobody_takes_them() {
    let dir = tempdir();
    let file = dir.path().join("tls.pem");
    write(&file, "1");
    let watching = Watching::start([bundle(&file)], BLIND).await;
    for n in 0..20 {
        write(&file, &n.to_string());
        watching.watch.request();
    }
    let Watching { watch, mut batches } = watching;
    drop(watch);
    let end = async { while batches.recv().await.is_some() {} };
    timeout(GUARD, end).await.unwrap();
}

#[test]
fn only_readings_of_the_present_set_and_no_older_than_it_are_wanted() {
    let mut current = Current::default();
    let (a, b) = (config("/a"), config("/b"));
    let both = SourceSet::from([a.clone(), b.clone()]);
    let first = current.replace(&both, &HashMap::new());
    assert!(current.wants(&a, first) && current.wants(&b, first));

    let known = HashMap::from([(a.clone(), Digest::default())]);
    let second = current.replace(&both, &known);
    assert!(!current.wants(&a, first), "superseded by what is known");
    assert!(current.wants(&a, second) && current.wants(&b, first));

    current.replace(&SourceSet::from([a.clone()]), &HashMap::new());
    assert!(!current.wants(&b, second), "removed");
    assert!(current.wants(&a, second));
}

#[test]
fn how_changes_are_noticed_reads_as_a_sentence() {
    let every = Duration::from_secs(5);
    let polling = Noticing::Polling {
        every,
        why: "switched off".into(),
    };
    assert_eq!(
        polling.to_string(),
        "no inotify (switched off): all files are read every 5s"
    );
    let partly = Noticing::Partly {
        directories: 3,
        polled: BTreeMap::from([("/a".into(), "permission denied".into())]),
        every,
    };
    assert_eq!(
        partly.to_string(),
        "inotify watches 3 directories; 1 more are read every 5s (/a: permission denied)"
    );
}
