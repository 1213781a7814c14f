//! Every style of rotation, each several times: many a watch sees only the first.

use super::*;

#[tokio::test]
async fn writing_a_file_in_place_is_seen() {
    let dir = tempdir();
    let file = dir.path().join("tls.pem");
    write(&file, "1");
    let mut watching = Watching::start([bundle(&file)], NOTIFY_ONLY).await;
    for n in ["2", "3", "4"] {
        write(&file, n);
        let batch = watching.until(&bundle(&file), n).await;
        assert_eq!(batch.trigger, Trigger::Notify);
    }
}

#[tokio::test]
async fn renaming_a_file_over_another_is_seen() {
    let dir = tempdir();
    let file = dir.path().join("config.toml");
    write(&file, "1");
    let mut watching = Watching::start([config(&file)], NOTIFY_ONLY).await;
    for n in ["2", "3", "4"] {
        write_and_rename(&file, n);
        let batch = watching.next().await;
        assert_eq!(text(&batch, &config(&file)).as_deref(), Some(n));
    }
}

#[tokio::test]
async fn sources_that_one_data_swap_changes_arrive_in_one_batch() {
    let dir = tempdir();
    let (identity, ca) = (
        pair(dir.path(), "tls.crt", "tls.key"),
        trust(dir.path().join("ca.crt")),
    );
    let files = ["tls.crt", "tls.key", "ca.crt"];
    project(dir.path(), 1, &files.map(|file| (file, "1")));
    let mut watching = Watching::start([identity.clone(), ca.clone()], NOTIFY_ONLY).await;
    for n in 2..5 {
        let generation = n.to_string();
        project(dir.path(), n, &files.map(|file| (file, &*generation)));
        let batch = watching.next().await;
        assert_eq!(text(&batch, &identity), Some(format!("{n}+{n}")));
        assert_eq!(text(&batch, &ca), Some(generation));
    }
}

#[tokio::test]
async fn a_directory_of_ca_certificates_follows_a_data_swap_and_new_files() {
    let dir = tempdir();
    let ca = trust(dir.path());
    project(dir.path(), 1, &[("a.crt", "a1"), ("b.crt", "b1")]);
    let mut watching = Watching::start([ca.clone()], NOTIFY_ONLY).await;
    project(dir.path(), 2, &[("a.crt", "a2"), ("b.crt", "b2")]);
    watching.until(&ca, "a2+b2").await;
    write(dir.path().join("c.crt"), "c");
    watching.until(&ca, "a2+b2+c").await;
    fs::remove_file(dir.path().join("a.crt")).unwrap();
    watching.until(&ca, "b2+c").await;
}

#[tokio::test]
async fn certbots_links_from_live_to_archive_are_followed() {
    let dir = tempdir();
    let live = dir.path().join("live/billing");
    let archive = dir.path().join("archive/billing");
    fs::create_dir_all(&live).unwrap();
    fs::create_dir_all(&archive).unwrap();
    let renew = |n: u32| {
        for file in ["cert", "privkey"] {
            write(archive.join(format!("{file}{n}.pem")), &n.to_string());
        }
        for file in ["cert", "privkey"] {
            let link = live.join(format!("{file}.pem"));
            let _ = fs::remove_file(&link);
            symlink(format!("../../archive/billing/{file}{n}.pem"), link).unwrap();
        }
    };
    renew(1);
    let identity = pair(&live, "cert.pem", "privkey.pem");
    let mut watching = Watching::start([identity.clone()], NOTIFY_ONLY).await;
    for n in 2..5 {
        renew(n);
        watching.until(&identity, &format!("{n}+{n}")).await;
    }
    write(archive.join("cert4.pem"), "in place");
    watching.until(&identity, "in place+4").await;
}

#[tokio::test]
async fn a_file_that_is_deleted_and_created_again_is_seen() {
    let dir = tempdir();
    let file = dir.path().join("tls.pem");
    write(&file, "1");
    let mut watching = Watching::start([bundle(&file)], NOTIFY_ONLY).await;
    for n in ["2", "3"] {
        fs::remove_file(&file).unwrap();
        watching.until(&bundle(&file), "identity_missing").await;
        write(&file, n);
        watching.until(&bundle(&file), n).await;
    }
    fs::remove_file(&file).unwrap();
    write(&file, "at once");
    watching.until(&bundle(&file), "at once").await;
}

#[tokio::test]
async fn a_directory_that_is_deleted_and_created_again_is_seen_and_watched_again() {
    let dir = tempdir();
    let certs = dir.path().join("certs");
    let file = certs.join("tls.pem");
    fs::create_dir(&certs).unwrap();
    write(&file, "1");
    let mut watching = Watching::start([bundle(&file)], NOTIFY_ONLY).await;
    for n in 2..5 {
        fs::remove_dir_all(&certs).unwrap();
        if n == 3 {
            watching.until(&bundle(&file), "identity_missing").await;
        }
        fs::create_dir(&certs).unwrap();
        write(&file, &n.to_string());
        watching.until(&bundle(&file), &n.to_string()).await;
        write(&file, "in the new directory");
        watching.until(&bundle(&file), "in the new directory").await;
    }
}

#[tokio::test]
async fn a_directory_that_another_one_replaces_is_seen_also_above_the_files_own() {
    let dir = tempdir();
    let certs = dir.path().join("certs");
    let key = bundle(certs.join("billing/tls.pem"));
    fs::create_dir_all(certs.join("billing")).unwrap();
    write(certs.join("billing/tls.pem"), "1");
    let mut watching = Watching::start([key.clone()], NOTIFY_ONLY).await;
    for n in ["2", "3", "4"] {
        let new = dir.path().join(format!("certs.{n}"));
        fs::create_dir_all(new.join("billing")).unwrap();
        write(new.join("billing/tls.pem"), n);
        fs::rename(&certs, dir.path().join(format!("certs.before.{n}"))).unwrap();
        fs::rename(&new, &certs).unwrap();
        watching.until(&key, n).await;
    }
    write(certs.join("billing/tls.pem"), "in place");
    watching.until(&key, "in place").await;
}

#[tokio::test]
async fn files_that_appear_later_in_directories_that_appear_later_are_seen() {
    let dir = tempdir();
    let certs = dir.path().join("a/b/c");
    let identity = pair(&certs, "tls.crt", "tls.key");
    let mut watching = Watching::start([identity.clone()], NOTIFY_ONLY).await;
    fs::create_dir_all(&certs).unwrap();
    write(certs.join("tls.crt"), "1");
    write(certs.join("tls.key"), "1");
    watching.until(&identity, "1+1").await;
    write(certs.join("tls.key"), "2");
    watching.until(&identity, "1+2").await;
}

#[tokio::test]
async fn the_target_of_a_dangling_link_is_seen_when_it_appears() {
    let dir = tempdir();
    let file = dir.path().join("tls.pem");
    symlink("gone/tls.pem", &file).unwrap();
    let mut watching = Watching::start([bundle(&file)], NOTIFY_ONLY).await;
    fs::create_dir(dir.path().join("gone")).unwrap();
    write(dir.path().join("gone/tls.pem"), "there");
    watching.until(&bundle(&file), "there").await;
}

#[tokio::test]
async fn a_key_that_is_written_before_its_certificate_is_reported_and_then_both() {
    let dir = tempdir();
    let identity = pair(dir.path(), "tls.crt", "tls.key");
    write(dir.path().join("tls.crt"), "1");
    write(dir.path().join("tls.key"), "1");
    let mut watching = Watching::start([identity.clone()], NOTIFY_ONLY).await;
    write_and_rename(&dir.path().join("tls.key"), "2");
    watching.until(&identity, "1+2").await;
    write_and_rename(&dir.path().join("tls.crt"), "2");
    watching.until(&identity, "2+2").await;
}
