//! A kill at every file operation: whatever was reached, the next process finds the truth or nothing, and goes on.
//!
//! A kill takes nothing back that reached the kernel, so everything the dead process was told is done must be there.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use mpcc_cache::{Faults, Op, Store, StoreOptions, Verdict};

use crate::support::{fast_dir, no_forks, quiet};
use crate::workload::{KEPT, Told, check, converge, copies, run};

/// Lets `left` operations pass and none after; the last write is torn in half.
struct Crash {
    left: AtomicU64,
}

impl Faults for Crash {
    fn before(&self, op: Op, _: &Path) -> Verdict {
        let left = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        match (left, op) {
            (Err(_), _) => Verdict::Fail(io::Error::other("dead")),
            (Ok(1), Op::Write(len)) => Verdict::Tear(len / 2),
            (Ok(_), _) => Verdict::Pass,
        }
    }
}

#[test]
fn a_kill_at_any_operation_leaves_the_truth_or_nothing() {
    let mut finished = false;
    let mut k = 0;
    while !finished {
        let (dir, _still) = (fast_dir(), no_forks());
        let top = dir.path();
        let mut told = Told::default();
        let faults: Arc<dyn Faults> = Arc::new(Crash { left: AtomicU64::new(k) });
        finished = run(top, StoreOptions { faults: Some(faults), ..quiet() }, &mut told).is_ok();
        let when = format!("killed after {k} operations");
        check(top, quiet(), &told.promise(), &when);
        let report = Store::open(&top.join("store"), quiet()).unwrap().verify().unwrap();
        assert!(report.is_clean(), "{when}: {report:?}");
        for (path, text) in KEPT.iter().flat_map(|name| copies(top, name)) {
            let copy = std::fs::read_to_string(&path);
            assert!(copy.is_err() || copy.unwrap() == text, "{when}: {} is partial", path.display());
        }
        converge(top, quiet(), &when);
        k += 1;
    }
    assert!(k > 300, "the workload has only {k} operations");
}
