use jiff::Timestamp;

use super::*;
use crate::event::{Event, VERSION, What};

fn begun(run: &str, version: u32) -> Event {
    let started = "2026-01-02T03:04:05Z".to_owned();
    let (pipeline, file) = ("demo".to_owned(), "/demo.yaml".into());
    Event {
        what: What::RunStarted {
            version,
            run: run.to_owned(),
            pipeline,
            file,
            profile: None,
            started,
            since: None,
            nodes: Vec::new(),
        },
        at_s: 0.0,
    }
}

#[test]
fn ids_are_times_and_runs_of_one_moment_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let at = Timestamp::from_millisecond(1_767_323_045_678).unwrap();
    let ids: Vec<_> = (0..11)
        .map(|_| {
            let mut journal = Journal::create(folder.path(), at).unwrap();
            let id = journal.id().to_owned();
            journal.write(&begun(&id, VERSION)).unwrap();
            id
        })
        .collect();
    assert_eq!(ids[0], "20260102-030405-678");
    assert_eq!(ids[10], "20260102-030405-678-11");
    assert_eq!(list(folder.path()).unwrap()[0], ids[10], "newest first");
    assert_eq!(latest(folder.path()).unwrap().unwrap().id, ids[10]);
    assert!(matches!(read(folder.path(), "2026"), Err(JournalError::NoRun { .. })), "it fits several");
    assert!(matches!(read(folder.path(), "../x"), Err(JournalError::NoRun { .. })));
}

#[test]
fn a_torn_tail_and_unknown_events_are_skipped() {
    let folder = tempfile::tempdir().unwrap();
    let at = Timestamp::from_second(1_767_323_045).unwrap();
    let mut journal = Journal::create(folder.path(), at).unwrap();
    journal.write(&begun("r", VERSION)).unwrap();
    let file = events_file(journal.folder());
    let append = |text: &str| {
        let mut all = std::fs::read_to_string(&file).unwrap();
        all.push_str(text);
        std::fs::write(&file, all).unwrap();
    };
    append("{\"event\":\"node.sang\",\"at_s\":1}\n{\"event\":\"node.canc");
    let record = read(folder.path(), journal.id()).unwrap();
    assert!(record.alive, "its writer lives");
    let id = journal.id().to_owned();
    drop(journal);
    assert!(!read(folder.path(), &id).unwrap().alive);
}

#[test]
fn what_is_no_journal_or_a_later_one_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let at = Timestamp::from_second(1_767_323_045).unwrap();
    let journal = Journal::create(folder.path(), at).unwrap();
    assert!(matches!(read(folder.path(), journal.id()), Err(JournalError::NoJournal { .. })));
    assert_eq!(latest(folder.path()).unwrap(), None, "it was killed before its first line");
    let mut later = Journal::create(folder.path(), at).unwrap();
    later.write(&begun("r", VERSION + 1)).unwrap();
    assert!(matches!(read(folder.path(), later.id()), Err(JournalError::Version { .. })));
}

#[test]
fn names_make_safe_file_names() {
    assert_eq!(file_name("sft[split=full]"), "sft[split=full]");
    assert_eq!(file_name("a/b c\n../ü"), "a%2fb%20c%0a..%2f%c3%bc");
    let long = file_name(&"x".repeat(900));
    assert!(long.len() < 220 && long != file_name(&"x".repeat(901)));
}
