//! Requests that join others in work: who joins when changes no answer, and whoever is short ends first.

mod common;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;

use common::{FAMILIES, fixtures};
use mpcc_models::chat::{Part, Role, Turn};
use mpcc_models::generate::{Completion, GenerateRequest, Watch};
use mpcc_models::sample::Sampling;
use mpcc_models::vlm::infer::EngineChoice;
use mpcc_models::vlm::{LoadOptions, Vlm};

fn load(family: &str) -> Vlm {
    load_on(family, EngineChoice::default())
}

fn load_on(family: &str, engine: EngineChoice) -> Vlm {
    let dir = fixtures().join(family);
    Vlm::load(&dir, &LoadOptions { engine, ..LoadOptions::default() }).unwrap()
}

/// A question, about a picture if `salt` is odd.
fn request(vlm: &Vlm, salt: u32, tokens: usize, seeds: &[u64]) -> GenerateRequest {
    let picture = image::RgbImage::from_fn(60, 90, |x, y| image::Rgb([(x * salt) as u8, (y * 3) as u8, salt as u8]));
    let pictures = if salt % 2 == 1 { vec![picture] } else { vec![] };
    let parts = pictures.iter().map(|_| Part::Image).chain([Part::Text(format!("Is it number {salt}?"))]).collect();
    let prompt = vlm.prompt(&[Turn { role: Role::User, parts }], &pictures, true).unwrap();
    GenerateRequest { prompt: Arc::new(prompt), sampling: Sampling::at(1.0, tokens), seeds: seeds.to_vec() }
}

/// Counts tokens of all, and lets no answer end by itself.
struct Counting<'a> {
    tokens: &'a Cell<usize>,
    ends: Vec<u32>,
}

impl Watch for Counting<'_> {
    fn token(&mut self, _: usize, _: usize, _: u32) -> ControlFlow<()> {
        self.tokens.set(self.tokens.get() + 1);
        ControlFlow::Continue(())
    }

    fn banned(&self) -> &[u32] {
        &self.ends
    }
}

/// Each request comes as soon as so many tokens were drawn. Answers by number, and the numbers as they ended.
fn joining(vlm: &Vlm, requests: &[(usize, GenerateRequest)]) -> (Vec<Vec<Completion>>, Vec<usize>) {
    let tokens = Cell::new(0);
    let mut waiting: VecDeque<_> = requests.iter().cloned().collect();
    let mut source = || {
        let due = waiting.front().is_some_and(|(at, _)| *at <= tokens.get());
        if due { waiting.pop_front().map(|(_, request)| request) } else { None }
    };
    let (mut found, mut order) = (vec![vec![]; requests.len()], vec![]);
    let mut watch = Counting { tokens: &tokens, ends: vlm.eos().to_vec() };
    vlm.generate_from(&mut source, &mut watch, &mut |number, completions| {
        found[number] = completions;
        order.push(number);
        ControlFlow::Continue(())
    })
    .unwrap();
    (found, order)
}

#[test]
fn who_joins_later_may_end_first_and_all_answer_as_alone() {
    for family in FAMILIES {
        let vlm = load(family);
        let long = (0, request(&vlm, 1, 60, &[1, 2]));
        let short = |at: usize, salt: u32| (at, request(&vlm, salt, 5, &[u64::from(salt)]));
        let requests = [long, short(20, 2), short(20, 3), short(21, 4), (50, request(&vlm, 5, 90, &[7])), short(90, 6)];
        let (together, order) = joining(&vlm, &requests);
        assert_eq!(order, [1, 2, 3, 5, 0, 4], "{family}");
        for (number, (_, request)) in requests.iter().enumerate() {
            let (alone, _) = joining(&load(family), &[(0, request.clone())]);
            assert_eq!(alone[0], together[number], "{family}, request {number}");
            let drawn: Vec<usize> = together[number].iter().map(|completion| completion.ids.len()).collect();
            assert_eq!(drawn, vec![request.sampling.max_new_tokens; request.seeds.len()], "{family}, {number}");
        }
    }
}

/// On tensors the last bits of an answer's numbers depend on its company, so only what was asked for is compared.
#[test]
fn who_joins_later_may_end_first_on_tensors_too() {
    for family in FAMILIES {
        let vlm = load_on(family, EngineChoice::Tensors);
        let requests = [(0, 1, 40), (10, 2, 4), (11, 3, 60), (60, 4, 3)];
        let requests = requests.map(|(at, salt, tokens)| (at, request(&vlm, salt, tokens, &[u64::from(salt)])));
        let (found, order) = joining(&vlm, &requests);
        let drawn: Vec<usize> = found.iter().map(|completions| completions[0].ids.len()).collect();
        assert_eq!((drawn, order), (vec![40, 4, 60, 3], vec![1, 3, 0, 2]), "{family}");
    }
}

#[test]
fn a_flood_of_requests_keeps_nobody_from_their_next_token() {
    let vlm = load("tiny");
    let one = request(&vlm, 2, 1, &[1]);
    let first = request(&vlm, 2, 30, &[1]);
    // Something new is there each time anybody asks, until the first has its answer.
    let (given, ended) = (Cell::new(0), Cell::new(false));
    let mut source = || {
        given.set(given.get() + 1);
        match given.get() {
            1 => Some(first.clone()),
            // One a step: the second look at a time finds nothing.
            count if count % 2 == 0 && !ended.get() => Some(one.clone()),
            _ => None,
        }
    };
    let mut watch = Counting { tokens: &Cell::new(0), ends: vlm.eos().to_vec() };
    vlm.generate_from(&mut source, &mut watch, &mut |number, _| {
        ended.set(ended.get() || number == 0);
        assert!(number < 40, "the first waits for ever");
        ControlFlow::Continue(())
    })
    .unwrap();
    assert!(ended.get());
}

#[test]
fn an_answered_request_is_let_go_and_a_senseless_one_is_an_error() {
    let vlm = load("tiny");
    let prompts: RefCell<Vec<std::sync::Weak<_>>> = RefCell::default();
    let source = || {
        let held = prompts.borrow().iter().filter(|prompt| prompt.strong_count() > 0).count();
        assert!(held <= 1, "{held} prompts are held");
        let number = prompts.borrow().len();
        let request = (number < 20).then(|| request(&vlm, 2 * number as u32, 1, &[1]))?;
        prompts.borrow_mut().push(Arc::downgrade(&request.prompt));
        // One at a time: the next comes when this one is answered.
        Some(request)
    };
    let (mut count, mut asked) = (0, false);
    let mut one_a_step = || {
        asked = !asked;
        if asked { source() } else { None }
    };
    let mut watch = Counting { tokens: &Cell::new(0), ends: vec![] };
    vlm.generate_from(&mut one_a_step, &mut watch, &mut |_, _| {
        count += 1;
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(count, 20);
    let mut senseless = request(&vlm, 2, 1, &[1]);
    senseless.sampling.top_p = -1.0;
    let mut once = Some(senseless);
    let failed = vlm.generate_from(&mut || once.take(), &mut watch, &mut |_, _| ControlFlow::Continue(()));
    assert!(failed.is_err());
}

/// Fills the room with one request for as long as it answers; who waits behind it may leave meanwhile.
struct Leaving<'a> {
    counting: Counting<'a>,
    gone: usize,
    started: Vec<usize>,
}

impl Watch for Leaving<'_> {
    fn token(&mut self, request: usize, sample: usize, id: u32) -> ControlFlow<()> {
        if !self.started.contains(&request) {
            self.started.push(request);
        }
        self.counting.token(request, sample, id)
    }

    fn wanted(&mut self, request: usize) -> bool {
        request != self.gone || self.counting.tokens.get() < 1000
    }

    fn banned(&self) -> &[u32] {
        self.counting.banned()
    }
}

#[test]
fn who_leaves_before_there_is_room_never_starts() {
    let vlm = load("tiny");
    let seeds: Vec<u64> = (0..250).collect();
    // The second does not fit beside the first; the third would.
    let requests = [request(&vlm, 2, 20, &seeds), request(&vlm, 4, 3, &seeds[..10]), request(&vlm, 6, 3, &[1])];
    for (gone, expected) in [(1, vec![2, 0]), (9, vec![0, 1, 2])] {
        let (tokens, mut order, mut rest) = (Cell::new(0), vec![], requests.iter().cloned());
        let counting = Counting { tokens: &tokens, ends: vlm.eos().to_vec() };
        let mut watch = Leaving { counting, gone, started: vec![] };
        vlm.generate_from(&mut || rest.next(), &mut watch, &mut |number, _| {
            order.push(number);
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!(order, expected);
        assert_eq!(watch.started.contains(&1), gone != 1);
    }
}

#[test]
fn whoever_fits_joins_though_most_of_the_room_is_taken() {
    let vlm = load("tiny");
    let seeds: Vec<u64> = (0..250).collect();
    let requests = [(0, request(&vlm, 2, 12, &seeds)), (500, request(&vlm, 4, 3, &[1, 2, 3, 4, 5, 6]))];
    assert_eq!(joining(&vlm, &requests).1, [1, 0]);
}
