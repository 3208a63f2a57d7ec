//! The ledger: what was asked of served models, by whichever process, and what it cost.
//!
//! A charge is a fixed-size record in append-only logs (see [`crate::log`]), so nobody locks and a killed process loses
//! nothing it has said. A request is charged by what it may cost before it is sent, and by the difference once its answer is
//! there: a process that is killed in between has charged too much, never too little.
//!
//! | sum over | is |
//! |---|---|
//! | all charges of a model | what it has cost in this store, against its `budget` |
//! | those of the last minute | requests and tokens, against `rpm` and `tpm` |
//! | the latest `not_before` | how long the server asked everybody to wait |
//!
//! gc replaces all lines by one a model. Sums must not count twice what a killed gc left beside its result, so lines have a
//! generation: gc's are of the next one, and of a model only the latest generation counts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::io::Io;
use crate::log::{Log, Record};
use crate::statcache::word;
use crate::{Digest, StoreError};

type Result<T> = std::result::Result<T, StoreError>;

/// How far back a window can look, milliseconds.
const WINDOW_MS: i64 = 60_000;

/// How far ahead another host's clock may be.
const AHEAD_MS: i64 = 10_000;
/// The longest that a server's wish to be left alone is heeded.
const LONGEST_HOLD_MS: i64 = 600_000 + AHEAD_MS;

/// An amount of asking: of a request to come, of what it took, or of what was charged too much (negative).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Charge {
    /// Requests.
    pub requests: i64,
    /// Tokens sent, pictures included as the server counts them.
    pub prompt_tokens: i64,
    /// Tokens received.
    pub completion_tokens: i64,
    /// Money, in 10^-9 dollars.
    pub nanodollars: i64,
}

impl Charge {
    /// Tokens both ways.
    pub fn tokens(&self) -> i64 {
        self.prompt_tokens + self.completion_tokens
    }

    /// Money in dollars.
    pub fn dollars(&self) -> f64 {
        self.nanodollars as f64 * 1e-9
    }
}

impl std::ops::Add for Charge {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            requests: self.requests.saturating_add(other.requests),
            prompt_tokens: self.prompt_tokens.saturating_add(other.prompt_tokens),
            completion_tokens: self.completion_tokens.saturating_add(other.completion_tokens),
            nanodollars: self.nanodollars.saturating_add(other.nanodollars),
        }
    }
}

impl std::ops::Neg for Charge {
    type Output = Self;

    fn neg(self) -> Self {
        let Self { requests, prompt_tokens, completion_tokens, nanodollars } = self;
        Self {
            requests: -requests,
            prompt_tokens: -prompt_tokens,
            completion_tokens: -completion_tokens,
            nanodollars: -nanodollars,
        }
    }
}

impl std::iter::Sum for Charge {
    fn sum<I: Iterator<Item = Self>>(charges: I) -> Self {
        charges.fold(Self::default(), |sum, charge| sum + charge)
    }
}

/// A charge as logged.
#[derive(Clone, Copy)]
struct Line {
    model: u64,
    /// Milliseconds since 1970.
    time_ms: i64,
    charge: Charge,
    /// Nobody asks the model before this, milliseconds since 1970; 0 says nothing.
    not_before_ms: i64,
    generation: u64,
}

impl Record for Line {
    const TAG: [u8; 4] = *b"ledg";
    const SIZE: usize = 64;

    fn encode(&self, out: &mut Vec<u8>) {
        let Charge { requests, prompt_tokens, completion_tokens, nanodollars } = self.charge;
        let words = [self.time_ms, requests, prompt_tokens, completion_tokens, nanodollars, self.not_before_ms];
        out.extend(self.model.to_le_bytes());
        words.into_iter().for_each(|word| out.extend(word.to_le_bytes()));
        out.extend(self.generation.to_le_bytes());
    }

    fn decode(bytes: &[u8]) -> Self {
        let at = |index| word(bytes, index).cast_signed();
        let charge = Charge { requests: at(2), prompt_tokens: at(3), completion_tokens: at(4), nanodollars: at(5) };
        Self { model: word(bytes, 0), time_ms: at(1), charge, not_before_ms: at(6), generation: word(bytes, 7) }
    }
}

/// What is known of one model.
#[derive(Clone, Default)]
struct Account {
    generation: u64,
    total: Charge,
    /// Charges that may lie in the window.
    recent: Vec<(i64, Charge)>,
    not_before_ms: i64,
}

impl Account {
    fn book(&mut self, line: &Line) {
        if line.generation < self.generation {
            return;
        }
        if line.generation > self.generation {
            *self = Self { generation: line.generation, ..Self::default() };
        }
        self.total = self.total + line.charge;
        self.not_before_ms = self.not_before_ms.max(line.not_before_ms);
        self.recent.push((line.time_ms, line.charge));
    }

    fn forget_before(&mut self, since_ms: i64) {
        self.recent.retain(|(time, _)| *time >= since_ms);
    }
}

struct Books {
    log: Log<Line>,
    accounts: BTreeMap<u64, Account>,
    /// The latest of all lines; none before the first reading.
    generation: Option<u64>,
}

impl Books {
    fn refresh(&mut self) -> Result<()> {
        let Self { log, accounts, generation } = self;
        let latest = generation.get_or_insert(0);
        log.refresh(|line| {
            *latest = line.generation.max(*latest);
            accounts.entry(line.model).or_default().book(&line);
        })
    }
}

/// How a model stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Balance {
    /// All that was ever charged.
    pub total: Charge,
    /// What was charged in the last minute.
    pub minute: Charge,
    /// When the oldest charge of that minute was made, milliseconds since 1970.
    pub oldest_ms: Option<i64>,
    /// Nobody asks before this, milliseconds since 1970.
    pub not_before_ms: i64,
}

/// The ledger of an open store.
pub struct Ledger {
    books: Mutex<Books>,
}

fn account_of(model: &Digest) -> u64 {
    word(model.as_bytes(), 0)
}

impl Ledger {
    pub(crate) fn new(io: Io, dir: PathBuf, writer: &str) -> Self {
        let books = Books { log: Log::new(io, dir, writer), accounts: BTreeMap::new(), generation: None };
        Self { books: Mutex::new(books) }
    }

    fn books(&self) -> std::sync::MutexGuard<'_, Books> {
        self.books.lock().expect("no panic while the ledger is held")
    }

    /// Charges `model` at `time_ms`; it outlives a kill of this process once this returns.
    pub fn charge(&self, model: &Digest, charge: Charge, time_ms: i64) -> Result<()> {
        self.book(Line { model: account_of(model), time_ms, charge, not_before_ms: 0, generation: 0 })
    }

    /// Tells everybody not to ask `model` before `until_ms`.
    pub fn hold(&self, model: &Digest, until_ms: i64, time_ms: i64) -> Result<()> {
        let (model, charge) = (account_of(model), Charge::default());
        self.book(Line { model, time_ms, charge, not_before_ms: until_ms, generation: 0 })
    }

    fn book(&self, line: Line) -> Result<()> {
        let mut books = self.books();
        if books.generation.is_none() {
            books.refresh()?;
        }
        let line = Line { generation: books.generation.unwrap_or(0), ..line };
        books.log.append(&[line])?;
        books.accounts.entry(line.model).or_default().book(&line);
        Ok(())
    }

    /// How `model` stands at `now_ms`, charges of other processes included.
    pub fn balance(&self, model: &Digest, now_ms: i64) -> Result<Balance> {
        let mut books = self.books();
        books.refresh()?;
        let Some(account) = books.accounts.get_mut(&account_of(model)) else { return Ok(Balance::default()) };
        account.forget_before(now_ms - WINDOW_MS);
        // What a clock that was wrong has written for days to come must not stop everybody until then.
        let sane = |time: i64| time <= now_ms + AHEAD_MS;
        let recent = || account.recent.iter().filter(|(time, _)| sane(*time));
        Ok(Balance {
            total: account.total,
            minute: recent().map(|(_, charge)| *charge).sum(),
            oldest_ms: recent().map(|(time, _)| *time).min(),
            not_before_ms: Some(account.not_before_ms).filter(|time| *time <= now_ms + LONGEST_HOLD_MS).unwrap_or(0),
        })
    }

    /// One line a model. Only for a caller that has the store for itself: then no request is under way.
    pub(crate) fn compact(&self, temporary: &Path) -> Result<()> {
        let mut books = self.books();
        books.refresh()?;
        let generation = books.generation.unwrap_or(0) + 1;
        let line = |(model, account): (&u64, &Account)| Line {
            model: *model,
            // The sum is of all times: none of it counts as of the last minute.
            time_ms: 0,
            charge: account.total,
            not_before_ms: account.not_before_ms,
            generation,
        };
        let lines: Vec<Line> = books.accounts.iter().map(line).collect();
        books.log.rewrite(&lines, temporary)?;
        books.generation = Some(generation);
        books.accounts.values_mut().for_each(|account| account.generation = generation);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger(dir: &Path, writer: &str) -> Ledger {
        Ledger::new(Io::default(), dir.to_owned(), writer)
    }

    fn charge(requests: i64, tokens: i64, nanodollars: i64) -> Charge {
        Charge { requests, prompt_tokens: tokens, completion_tokens: 1, nanodollars }
    }

    #[test]
    fn charges_of_all_processes_count_and_only_the_last_minute_is_recent() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (ledger(dir.path(), "a"), ledger(dir.path(), "b"));
        let (model, other) = (Digest::of(b"gpt"), Digest::of(b"other"));
        assert_eq!(a.balance(&model, 0).unwrap(), Balance::default());
        a.charge(&model, charge(1, 10, 500), 1_000).unwrap();
        b.charge(&model, charge(1, 20, 700), 50_000).unwrap();
        b.charge(&model, -charge(0, 5, 200), 50_500).unwrap();
        b.hold(&other, 99_000, 50_000).unwrap();
        let at = |now| a.balance(&model, now).unwrap();
        assert_eq!((at(50_900).total.nanodollars, at(50_900).total.tokens()), (1_000, 26));
        assert_eq!((at(50_900).minute.requests, at(50_900).oldest_ms), (2, Some(1_000)));
        assert_eq!((at(61_500).minute.requests, at(61_500).oldest_ms), (1, Some(50_000)));
        assert_eq!(at(500_000).minute, Charge::default());
        assert_eq!((at(500_000).total.requests, at(500_000).not_before_ms), (2, 0));
        assert_eq!(a.balance(&other, 0).unwrap().not_before_ms, 99_000);
    }

    #[test]
    fn compaction_keeps_every_sum() {
        let dir = tempfile::tempdir().unwrap();
        let model = Digest::of(b"gpt");
        for writer in ["a", "b", "c"] {
            ledger(dir.path(), writer).charge(&model, charge(2, 3, 4), 7).unwrap();
        }
        let d = ledger(dir.path(), "d");
        d.hold(&model, 12, 8).unwrap();
        d.compact(&dir.path().join("t")).unwrap();
        let fresh = ledger(dir.path(), "e").balance(&model, 100).unwrap();
        assert_eq!((fresh.total, fresh.not_before_ms), (Charge { completion_tokens: 3, ..charge(6, 9, 12) }, 12));
        assert_eq!(d.balance(&model, 100).unwrap().total, fresh.total);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        d.charge(&model, charge(1, 0, 1), 90).unwrap();
        assert_eq!(ledger(dir.path(), "f").balance(&model, 100).unwrap().total.nanodollars, 13);
    }

    #[test]
    fn a_gc_killed_before_it_removed_the_old_lines_counts_nothing_twice() {
        let (dir, kept) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (model, other) = (Digest::of(b"gpt"), Digest::of(b"other"));
        let a = ledger(dir.path(), "a");
        a.charge(&model, charge(2, 3, 4), 7).unwrap();
        a.charge(&other, charge(1, 1, 1), 7).unwrap();
        std::fs::copy(dir.path().join("a-0.log"), kept.path().join("a-0.log")).unwrap();
        ledger(dir.path(), "b").compact(&dir.path().join("t")).unwrap();
        std::fs::copy(kept.path().join("a-0.log"), dir.path().join("a-0.log")).unwrap();
        let c = ledger(dir.path(), "c");
        c.charge(&model, charge(1, 1, 10), 8).unwrap();
        assert_eq!(c.balance(&model, 9).unwrap().total.nanodollars, 14);
        assert_eq!(ledger(dir.path(), "d").balance(&other, 9).unwrap().total.requests, 1);
    }
}
