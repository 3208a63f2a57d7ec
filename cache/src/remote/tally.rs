//! Counting while many transfers are under way.

use std::sync::Mutex;

/// How far a push or a pull is. Totals of a pull grow while it learns what its entries need.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Objects looked at: sent, fetched, or found to be there.
    pub objects: u64,
    /// Objects known to be needed.
    pub of_objects: u64,
    /// Bytes of the objects looked at.
    pub bytes: u64,
    /// Bytes of the objects known to be needed.
    pub of_bytes: u64,
}

/// What was done with objects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) objects: u64,
    pub(super) bytes: u64,
    pub(super) skipped: u64,
}

/// Counts and tells.
pub(super) struct Tally<'a> {
    state: Mutex<(Progress, Counts)>,
    tell: &'a (dyn Fn(Progress) + Send + Sync),
}

impl<'a> Tally<'a> {
    pub(super) fn new(tell: &'a (dyn Fn(Progress) + Send + Sync)) -> Self {
        Self { state: Mutex::new(Default::default()), tell }
    }

    fn change(&self, change: impl FnOnce(&mut Progress, &mut Counts)) {
        let progress = {
            let mut state = self.state.lock().expect("no panic while counts are held");
            let (progress, counts) = &mut *state;
            change(progress, counts);
            *progress
        };
        (self.tell)(progress);
    }

    /// So much more is needed.
    pub(super) fn need(&self, objects: u64, bytes: u64) {
        self.change(|progress, _| {
            progress.of_objects += objects;
            progress.of_bytes += bytes;
        });
    }

    /// An object was moved (`true`) or was there already.
    pub(super) fn done(&self, bytes: u64, moved: bool) {
        self.change(|progress, counts| {
            progress.objects += 1;
            progress.bytes += bytes;
            if moved {
                counts.objects += 1;
                counts.bytes += bytes;
            } else {
                counts.skipped += 1;
            }
        });
    }

    pub(super) fn counts(&self) -> Counts {
        self.state.lock().expect("no panic while counts are held").1
    }
}
