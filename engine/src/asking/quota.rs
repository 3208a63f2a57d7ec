//! Quotas: what a served model may still be asked, by all nodes of all runs on one store together.
//!
//! | limit | held by |
//! |---|---|
//! | `max_concurrency` | one byte lock a request under way; a killed process lets go of its own |
//! | `rpm`, `tpm` | the ledger's charges of the last minute |
//! | `budget` | the ledger's charges of all time: what the model may cost this store |
//! | `Retry-After` of the server | a line in the ledger that all read |
//!
//! Nothing is planned ahead, so whoever has something to ask asks, and a node whose answers are all known takes no part. A
//! request is charged before it is sent, by the most it may cost, so whoever is killed when, a budget is exceeded only by what
//! the requests under way take beyond their estimates. Two processes that look at the same moment may both take the last place of a minute: `rpm` can be exceeded by one a process.

use std::time::Duration;

use mpcc_cache::{ByteLock, Charge, Digest, Store};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Map, Value};

use super::price::{self, Price};
use crate::stage::{ModelInput, StageError};

/// Where a served model is that states no `base_url`.
pub const OPENAI: &str = "https://api.openai.com/v1";
/// Requests at once to a served model that states no `max_concurrency`.
pub const DEFAULT_SLOTS: u32 = 4;

const MINUTE_MS: i64 = 60_000;
/// How soon to look again for a slot.
const SLOT_POLL: Duration = Duration::from_millis(10);
/// How soon to look again at the latest: others may be charged less than they could have been.
const LONGEST_WAIT_MS: i64 = 1_000;

/// The limits that a model states.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Limits {
    slots: u32,
    rpm: Option<f64>,
    tpm: Option<f64>,
    budget: Option<f64>,
}

impl Limits {
    fn of(settings: &Map<String, Value>) -> Self {
        let number = |key: &str| settings.get(key).and_then(Value::as_f64);
        let slots = settings.get("max_concurrency").and_then(Value::as_u64);
        Self {
            slots: slots.map_or(DEFAULT_SLOTS, |slots| slots as u32),
            rpm: number("rpm"),
            tpm: number("tpm"),
            budget: number("budget"),
        }
    }
}

/// What one served model may be asked.
pub struct Quota {
    store: Option<Store>,
    name: String,
    account: Digest,
    limits: Limits,
    price: Option<Price>,
}

/// The right to send one request.
#[must_use = "the slot is held while this lives"]
pub struct Admitted {
    estimate: Charge,
    /// When it was charged, milliseconds since 1970.
    time_ms: i64,
    _slot: Option<ByteLock>,
}

impl Admitted {
    /// What it was charged.
    pub fn estimate(&self) -> Charge {
        self.estimate
    }
}

/// What is said to who wants to send a request.
pub enum Admission {
    /// Send it; then [`Quota::settle`].
    Go(Admitted),
    /// Ask again after this long.
    Wait(Duration),
    /// It could cost more than is left.
    Spent {
        /// What to tell.
        message: String,
    },
}

fn now_ms() -> i64 {
    let now = clock_gettime(ClockId::Realtime);
    now.tv_sec.saturating_mul(1000).saturating_add(now.tv_nsec / 1_000_000)
}

fn machine(error: mpcc_cache::StoreError) -> StageError {
    StageError::Machine(format!("the ledger: {error}"))
}

impl Quota {
    pub(super) fn new(store: Option<Store>, model: &ModelInput) -> Result<Self, StageError> {
        let text = |key: &str| model.settings.get(key).and_then(Value::as_str).unwrap_or_default();
        // However the same server is written.
        let base = Some(text("base_url").trim_end_matches('/')).filter(|base| !base.is_empty()).unwrap_or(OPENAI);
        let account = Digest::of(format!("{base}\n{}", text("model")).as_bytes());
        let limits = Limits::of(&model.settings);
        let price = Price::of(&model.settings);
        if limits.budget.is_some() && price.is_none() {
            let message =
                format!("model `{}` has a `budget` and no `price`, so nothing tells what it costs", model.name);
            return Err(StageError::invalid(message));
        }
        Ok(Self { store, name: model.name.clone(), account, limits, price })
    }

    /// How many requests may be under way at once.
    pub fn slots(&self) -> u32 {
        self.limits.slots
    }

    /// What so many tokens of one request cost.
    pub fn charge_of(&self, prompt_tokens: i64, completion_tokens: i64) -> Charge {
        let nanodollars = self.price.map_or(0, |price| price.nanodollars(prompt_tokens, completion_tokens));
        Charge { requests: 1, prompt_tokens, completion_tokens, nanodollars }
    }

    /// Whether tokens have a price.
    pub fn has_price(&self) -> bool {
        self.price.is_some()
    }

    /// The mean of what requests to this model took so far; none before the first.
    pub fn mean(&self) -> Result<Option<Charge>, StageError> {
        let Some(store) = &self.store else { return Ok(None) };
        let total = store.ledger().balance(&self.account, now_ms()).map_err(machine)?.total;
        let mean = |sum: i64| sum.checked_div(total.requests).unwrap_or(0);
        Ok((total.requests > 0).then(|| Charge {
            requests: 1,
            prompt_tokens: mean(total.prompt_tokens),
            completion_tokens: mean(total.completion_tokens),
            nanodollars: mean(total.nanodollars),
        }))
    }

    /// Whether a request that takes at most `estimate` may be sent now.
    ///
    /// # Errors
    /// The store cannot be read or written.
    pub fn admit(&self, estimate: Charge) -> Result<Admission, StageError> {
        let Some(store) = &self.store else { return Ok(Admission::Go(Admitted { estimate, time_ms: 0, _slot: None })) };
        // The slot first: it is what most wait for, and it costs the least to ask.
        let Some(slot) = store.slot(&self.account, self.limits.slots).map_err(machine)? else {
            return Ok(Admission::Wait(SLOT_POLL));
        };
        let now = now_ms();
        let balance = store.ledger().balance(&self.account, now).map_err(machine)?;
        if self.exceeds(balance.total.nanodollars + estimate.nanodollars) {
            return Ok(self.spent(balance.total.nanodollars, estimate));
        }
        let wait = |until_ms: i64| {
            Ok(Admission::Wait(Duration::from_millis((until_ms - now).clamp(10, LONGEST_WAIT_MS).unsigned_abs())))
        };
        if balance.not_before_ms > now {
            return wait(balance.not_before_ms);
        }
        // One request is always let through an empty minute, however small the limit.
        let full = |used: i64, more: i64, limit: Option<f64>| {
            used > 0 && limit.is_some_and(|limit| (used + more) as f64 > limit.max(1.0))
        };
        let minute = balance.minute;
        if full(minute.requests, 1, self.limits.rpm) || full(minute.tokens(), estimate.tokens(), self.limits.tpm) {
            return wait(balance.oldest_ms.unwrap_or(now) + MINUTE_MS);
        }
        self.charge(store, estimate, now)?;
        // Somebody may have charged since we looked: whoever finds the sum too high takes back its own.
        let total = store.ledger().balance(&self.account, now).map_err(machine)?.total.nanodollars;
        if self.exceeds(total) {
            self.charge(store, -estimate, now)?;
            return Ok(self.spent(total - estimate.nanodollars, estimate));
        }
        Ok(Admission::Go(Admitted { estimate, time_ms: now, _slot: Some(slot) }))
    }

    /// Corrects the charge of a request that is over: by what it `took`, or by nothing when it came to nothing.
    pub fn settle(&self, admitted: Admitted, took: Option<Charge>) -> Result<(), StageError> {
        let Some(store) = &self.store else { return Ok(()) };
        // At the time of the charge that it corrects, so that both leave the last minute together.
        self.charge(store, took.unwrap_or_default() + -admitted.estimate, admitted.time_ms)
    }

    /// Tells everybody that the server wants to be left alone for a while.
    pub fn hold(&self, pause: Duration) -> Result<(), StageError> {
        let Some(store) = &self.store else { return Ok(()) };
        let now = now_ms();
        let until = now.saturating_add(i64::try_from(pause.as_millis()).unwrap_or(i64::MAX));
        store.ledger().hold(&self.account, until, now).map_err(machine)
    }

    fn charge(&self, store: &Store, charge: Charge, now: i64) -> Result<(), StageError> {
        store.ledger().charge(&self.account, charge, now).map_err(machine)
    }

    fn exceeds(&self, nanodollars: i64) -> bool {
        self.limits.budget.is_some_and(|budget| nanodollars as f64 > budget * 1e9)
    }

    fn spent(&self, spent: i64, estimate: Charge) -> Admission {
        let dollars = |nanodollars: i64| price::shown(nanodollars as f64 * 1e-9);
        let message = format!(
            "the budget of model `{}` is used up: {} of {} is spent or promised in this store, and the next request may cost \
             {}; answers so far are kept. Raise `budget` and run again to go on",
            self.name,
            dollars(spent),
            price::shown(self.limits.budget.unwrap_or(0.0)),
            dollars(estimate.nanodollars),
        );
        Admission::Spent { message }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage::Provider;
    use mpcc_cache::StoreOptions;
    use serde_json::json;

    fn model(settings: Value) -> ModelInput {
        let Value::Object(settings) = settings else { panic!("settings are a map") };
        let (matrix, identity) = (Vec::new(), json!({}));
        ModelInput { name: "m".to_owned(), matrix, provider: Provider::Openai, dir: None, identity, settings }
    }

    fn quota(store: &Store, settings: Value) -> Quota {
        Quota::new(Some(store.clone()), &model(settings)).unwrap()
    }

    fn store(dir: &tempfile::TempDir) -> Store {
        Store::open(dir.path(), StoreOptions { sync: false, ..StoreOptions::default() }).unwrap()
    }

    fn go(quota: &Quota, estimate: Charge) -> Option<Admitted> {
        match quota.admit(estimate).unwrap() {
            Admission::Go(admitted) => Some(admitted),
            _ => None,
        }
    }

    #[test]
    fn slots_are_shared_by_all_who_have_the_store_open() {
        let dir = tempfile::tempdir().unwrap();
        let settings = json!({ "model": "gpt", "max_concurrency": 2 });
        let (ours, theirs) = (quota(&store(&dir), settings.clone()), quota(&store(&dir), settings));
        let one = ours.charge_of(1, 1);
        let held = go(&ours, one).unwrap();
        let _other = go(&theirs, one).unwrap();
        assert!(matches!(ours.admit(one).unwrap(), Admission::Wait(_)));
        ours.settle(held, Some(one)).unwrap();
        assert!(go(&theirs, one).is_some());
    }

    #[test]
    fn a_minute_has_its_limits_and_a_server_its_pause() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(&dir);
        let slow = quota(&store, json!({ "model": "slow", "rpm": 2, "max_concurrency": 9 }));
        for _ in 0..2 {
            slow.settle(go(&slow, slow.charge_of(5, 5)).unwrap(), Some(slow.charge_of(1, 1))).unwrap();
        }
        assert!(matches!(slow.admit(slow.charge_of(1, 1)).unwrap(), Admission::Wait(wait) if wait.as_millis() > 100));
        let small = quota(&store, json!({ "model": "small", "tpm": 10, "max_concurrency": 9 }));
        let first = go(&small, small.charge_of(50, 50)).expect("an empty minute takes anything");
        assert!(matches!(small.admit(small.charge_of(1, 1)).unwrap(), Admission::Wait(_)));
        small.settle(first, Some(small.charge_of(1, 1))).unwrap();
        assert!(go(&small, small.charge_of(4, 4)).is_some(), "what was not used is given back");
        let held = quota(&store, json!({ "model": "held" }));
        held.hold(Duration::from_secs(30)).unwrap();
        assert!(matches!(held.admit(held.charge_of(1, 1)).unwrap(), Admission::Wait(_)));
    }

    #[test]
    fn a_budget_is_never_exceeded_and_a_failed_request_costs_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(&dir);
        let settings = json!({ "model": "gpt", "price": { "prompt": 1000, "completion": 1000 }, "budget": 0.010 });
        let quota = quota(&store, settings);
        let most = quota.charge_of(2, 3);
        assert_eq!(most.nanodollars, 5_000_000);
        let first = go(&quota, most).unwrap();
        let second = go(&quota, most).unwrap();
        let Admission::Spent { message } = quota.admit(quota.charge_of(1, 0)).unwrap() else {
            panic!("all is promised")
        };
        assert!(message.contains("$0.01 of $0.01") && message.contains("Raise `budget`"), "{message}");
        quota.settle(first, Some(quota.charge_of(1, 1))).unwrap();
        quota.settle(second, None).unwrap();
        assert_eq!(quota.mean().unwrap().unwrap().nanodollars, 2_000_000);
        assert!(go(&quota, most).is_some());
    }

    #[test]
    fn a_budget_without_prices_is_refused() {
        assert!(Quota::new(None, &model(json!({ "budget": 3 }))).is_err());
    }
}
