//! Logs cut at every byte: what was whole stays, what was torn never was.

use std::fs;
use std::path::PathBuf;

use mpcc_cache::{Digest, Store};

use crate::support::{World, below, quiet, recipe};

fn only(dir: PathBuf, extension: &str) -> PathBuf {
    let found = below(&dir).into_iter().find(|path| path.extension().is_some_and(|other| other == extension));
    found.expect("one such file")
}

#[test]
fn an_entry_log_cut_anywhere_keeps_its_whole_entries() {
    let World { dir, store } = World::new();
    let root = store.root().to_owned();
    for n in 0..3 {
        let artifact = crate::support::put(&store, &n.to_string());
        store.publish(&recipe(&n.to_string()), vec![("x".to_owned(), artifact)]).unwrap();
    }
    drop(store);
    let log = only(root.join("entries"), "log");
    let whole = fs::read(&log).unwrap();
    assert_eq!(whole.len(), 16 + 3 * 104);
    for len in 0..whole.len() {
        fs::write(&log, &whole[..len]).unwrap();
        let store = Store::open(&root, quiet()).unwrap();
        for n in 0..3 {
            let found = store.lookup(&recipe(&n.to_string()).digest()).unwrap();
            assert_eq!(found.is_some(), len >= 16 + (n + 1) * 104, "entry {n} at {len} bytes");
        }
        // A new writer is not disturbed by the torn tail.
        if len % 29 == 0 {
            let artifact = crate::support::put(&store, "new");
            store.publish(&recipe("new"), vec![("x".to_owned(), artifact)]).unwrap();
            let found = Store::open(&root, quiet()).unwrap().lookup(&recipe("new").digest()).unwrap();
            assert!(found.is_some());
        }
    }
    drop(dir);
}

#[test]
fn a_memo_cut_anywhere_gives_the_right_value_or_none() {
    let World { dir, store } = World::new();
    let root = store.root().to_owned();
    let values: Vec<_> = (0..4u8).map(|n| (Digest::of(&[n]), vec![n; 9])).collect();
    for (key, value) in &values {
        store.memo().put("vlm", key, value).unwrap();
    }
    drop(store);
    for extension in ["log", "data"] {
        let file = only(root.join("memo/vlm"), extension);
        let whole = fs::read(&file).unwrap();
        for len in 0..whole.len() {
            fs::write(&file, &whole[..len]).unwrap();
            let memo = Store::open(&root, quiet()).unwrap().memo();
            let kept = if extension == "log" { len.saturating_sub(16) / 72 } else { len / 9 };
            for (n, (key, value)) in values.iter().enumerate() {
                let expected = (n < kept).then_some(value);
                assert_eq!(memo.get("vlm", key).as_ref(), expected, "value {n}, {extension} cut to {len} bytes");
            }
        }
        fs::write(&file, &whole).unwrap();
    }
    drop(dir);
}
