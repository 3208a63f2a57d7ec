//! A disk that is full, broken, or out of handles at every file operation: the operation may fail with an error that names a
//! path; afterwards everything visible is whole, nothing partial was accepted, nothing lies about, and a run without faults
//! ends with the same bytes.
//!
//! | fault | strikes | lasts |
//! |---|---|---|
//! | ENOSPC | what takes space: writes, creations, directories, links, copies, renames | once; or for good |
//! | EMFILE | what opens something: reads, lists, creations, copies, flushes | once; or for good |
//! | EIO | anything | once; or for good |
//! | short write | a write, which stops after no byte, one, half, or all but one | once |

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use mpcc_cache::{Faults, Op, Store, StoreOptions, Verdict};

use crate::support::{fast_dir, no_forks, quiet};
use crate::workload::{Told, check, converge, run};

#[derive(Clone, Copy, Debug)]
enum Kind {
    NoSpace,
    NoHandles,
    Broken,
    Short(fn(usize) -> usize),
}

impl Kind {
    fn strikes(self, op: Op) -> bool {
        match self {
            Self::Broken => true,
            Self::NoSpace => {
                matches!(op, Op::Write(_) | Op::Open | Op::MakeDir | Op::Link | Op::Copy | Op::Rename)
            }
            Self::NoHandles => matches!(op, Op::Read | Op::Hash | Op::List | Op::Open | Op::Copy | Op::Sync),
            Self::Short(_) => matches!(op, Op::Write(_)),
        }
    }

    fn verdict(self, op: Op) -> Verdict {
        let raw = match (self, op) {
            (Self::Short(part), Op::Write(len)) => return Verdict::Tear(part(len)),
            (Self::NoSpace, _) => 28,
            (Self::NoHandles, _) => 24,
            (Self::Broken | Self::Short(_), _) => 5,
        };
        Verdict::Fail(io::Error::from_raw_os_error(raw))
    }
}

/// Strikes at the `at`-th operation that the kind can strike, and at all later ones when it lasts.
struct Fault {
    kind: Kind,
    lasts: bool,
    at: u64,
    seen: AtomicU64,
    struck: AtomicBool,
}

impl Faults for Fault {
    fn before(&self, op: Op, _: &Path) -> Verdict {
        if !self.kind.strikes(op) {
            return Verdict::Pass;
        }
        let seen = self.seen.fetch_add(1, Ordering::SeqCst);
        if seen == self.at || (self.lasts && seen > self.at) {
            self.struck.store(true, Ordering::SeqCst);
            return self.kind.verdict(op);
        }
        Verdict::Pass
    }
}

/// Strikes at every operation in turn; returns at how many.
fn strike_everywhere(kind: Kind, lasts: bool) -> u64 {
    for at in 0.. {
        let (dir, _still) = (fast_dir(), no_forks());
        let fault = Arc::new(Fault { kind, lasts, at, seen: AtomicU64::new(0), struck: AtomicBool::new(false) });
        let mut told = Told::default();
        let result = run(dir.path(), StoreOptions { faults: Some(fault.clone()), ..quiet() }, &mut told);
        if !fault.struck.load(Ordering::SeqCst) {
            result.unwrap();
            return at;
        }
        let when = format!("{kind:?} at {at}, {}", if lasts { "for good" } else { "once" });
        if let Err(error) = result {
            let text = error.to_string();
            assert!(text.contains(&*dir.path().to_string_lossy()), "{when}: `{text}` names no path");
        }
        check(dir.path(), quiet(), &told.promise(), &when);
        let report = Store::open(&dir.path().join("store"), quiet()).unwrap().verify().unwrap();
        assert!(report.is_clean(), "{when}: {report:?}");
        converge(dir.path(), quiet(), &when);
    }
    unreachable!("every workload ends")
}

#[test]
fn a_full_disk_at_any_operation_costs_only_the_operation() {
    assert!(strike_everywhere(Kind::NoSpace, false) > 80);
    assert!(strike_everywhere(Kind::NoSpace, true) > 80);
}

#[test]
fn no_file_handles_at_any_operation_cost_only_the_operation() {
    assert!(strike_everywhere(Kind::NoHandles, false) > 100);
    assert!(strike_everywhere(Kind::NoHandles, true) > 100);
}

#[test]
fn a_broken_disk_at_any_operation_costs_only_the_operation() {
    assert!(strike_everywhere(Kind::Broken, false) > 300);
    assert!(strike_everywhere(Kind::Broken, true) > 300);
}

#[test]
fn a_short_write_anywhere_costs_only_the_operation() {
    let parts: [fn(usize) -> usize; 4] = [|_| 0, |_| 1, |len| len / 2, |len| len - 1];
    for part in parts {
        assert!(strike_everywhere(Kind::Short(part), false) > 15);
    }
}
