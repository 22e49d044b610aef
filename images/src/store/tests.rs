//! The store without registries: crashes between two writes, foreign versions, and holds under contention.

use std::fs;
use std::time::Duration;

use super::*;
use crate::config::Config;
use crate::image::ImageConfig;
use crate::unpack::Unpacked;

fn open(root: &Path) -> (Arc<Store>, Vec<Warning>) {
    Store::open(&Config {
        durability: Durability::None,
        ..Config::new(root)
    })
    .unwrap()
}

/// A layer with one file, without an archive.
fn layer(store: &Arc<Store>, content: &str) -> LayerHold {
    let new = NewLayer::begin(store).unwrap();
    fs::write(new.work.join("root/file"), content).unwrap();
    fs::write(new.work.join("sums"), "").unwrap();
    let diff_id = Digest::sha256_of(content.as_bytes());
    new.commit(
        &Unpacked {
            diff_id,
            bytes: 8192,
            inodes: 2,
            implicit: Vec::new(),
        },
        None,
    )
    .unwrap()
}

fn commit(store: &Arc<Store>, label: &str, tag: &str) -> Arc<Image> {
    let config_json = format!("{{\"created\":\"{label}\"}}");
    let draft = Draft {
        config: ImageConfig::parse(config_json.as_bytes()).unwrap(),
        config_json,
        tag: Some(format!("r/x:{tag}")),
        digest: format!("r/x@{}", Digest::sha256_of(label.as_bytes())),
        size: 1,
        layers: vec![Arc::new(layer(store, "shared")), Arc::new(layer(store, label))],
    };
    store.commit_image(draft).unwrap()
}

fn numbers(store: &Store) -> usize {
    let names = fs::read_dir(store.layers_dir())
        .unwrap()
        .map(|e| e.unwrap().file_name());
    names.filter(|n| !n.to_string_lossy().contains('.')).count()
}

#[test]
fn a_tag_belongs_to_the_record_written_last() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("s");
    let (store, _) = open(&root);
    let first = commit(&store, "first", "t");
    let path = store.image_path(&first.id);
    let before = fs::read(&path).unwrap();
    let second = commit(&store, "second", "t");
    assert!(store.by_id(&first.id).unwrap().repo_tags.is_empty());
    // As if the crash came after the new record and before the old one lost the tag.
    fs::write(&path, before).unwrap();
    let (store, warnings) = open(&root);
    assert_eq!(warnings, vec![]);
    assert_eq!(store.by_name("r/x:t").unwrap().id, second.id);
    assert!(store.by_id(&first.id).unwrap().repo_tags.is_empty());
    assert_eq!(store.by_id(&first.id).unwrap().repo_digests, first.repo_digests);
}

#[test]
fn foreign_records_are_quarantined() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("s");
    let (store, _) = open(&root);
    let kept = commit(&store, "kept", "a");
    let image = commit(&store, "image", "b");
    let path = store.image_path(&image.id);
    let text = fs::read_to_string(&path).unwrap();
    for broken in [
        text.replace("\"version\":1", "\"version\":2"),
        text.replace("image", "imagE"),
        text.replace("\"layers\":[", "\"layers\":[77,"),
        text[..text.len() / 2].to_owned(),
        String::new(),
    ] {
        fs::write(&path, &broken).unwrap();
        let (store, warnings) = open(&root);
        assert!(
            matches!(&warnings[..], [Warning::Quarantined { .. }]),
            "{broken}: {warnings:?}"
        );
        assert_eq!(store.list().iter().map(|i| &i.id).collect::<Vec<_>>(), [&kept.id]);
    }
    assert_eq!(fs::read_dir(root.join("quarantine")).unwrap().count(), 5);
}

#[test]
fn unused_layers_wait_for_the_grace_period() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("s");
    for (grace, left) in [(Duration::from_secs(600), 1), (Duration::ZERO, 0)] {
        let config = Config {
            unreferenced_grace: grace,
            durability: Durability::None,
            ..Config::new(&root)
        };
        let (store, _) = Store::open(&config).unwrap();
        let hold = layer(&store, "orphan");
        store.sweep(true);
        assert_eq!(numbers(&store), 1);
        drop(hold);
        store.sweep(false);
        assert_eq!(numbers(&store), left);
        assert_eq!(store.usage().inodes, 2 * left as u64);
    }
}

#[test]
fn holds_removals_and_commits_in_parallel_leak_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("s");
    let (store, _) = open(&root);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let store = &store;
            scope.spawn(move || {
                for round in 0..60 {
                    let label = format!("i{}", (thread + round) % 3);
                    let image = commit(store, &label, &label);
                    // Somebody may have removed it since; a hold that was given is good.
                    if let Some(hold) = store.hold_image(&image.id, false) {
                        if round % 2 == 0 {
                            store.remove_image(&image.id).unwrap();
                        }
                        for number in hold.layers() {
                            assert!(store.layers_dir().join(number.to_string()).join("file").exists());
                        }
                    }
                    store.remove_image(&image.id).unwrap();
                }
            });
        }
    });
    // The last holds are let go by threads of their own.
    for _ in 0..500 {
        store.sweep_all().unwrap();
        if numbers(&store) == 0 && fs::read_dir(root.join("tmp")).unwrap().count() == 0 {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!((numbers(&store), store.usage()), (0, Usage::default()));
    assert_eq!(fs::read_dir(root.join("images")).unwrap().count(), 0);
    let state = lock(&store.state);
    assert!(state.names.is_empty() && state.holds.is_empty() && state.removed.is_empty());
}
