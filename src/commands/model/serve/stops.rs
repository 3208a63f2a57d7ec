//! Stop strings in a text that grows.

/// Gives text out as far as no stop string can begin in it.
#[derive(Debug, Default)]
pub(super) struct Stops {
    list: Vec<String>,
    held: String,
}

impl Stops {
    /// Stops at any of `list`, none of them empty.
    pub(super) fn new(list: Vec<String>) -> Self {
        Self { list, held: String::new() }
    }

    /// Takes more text; what may be given out, and whether a stop string came behind it.
    pub(super) fn feed(&mut self, text: &str) -> (String, bool) {
        self.held.push_str(text);
        if let Some(at) = self.list.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let may_begin = |at: &usize| self.list.iter().any(|stop| stop.starts_with(&self.held[*at..]));
        let keep = self.held.char_indices().map(|(at, _)| at).find(may_begin).unwrap_or(self.held.len());
        let kept = self.held.split_off(keep);
        (std::mem::replace(&mut self.held, kept), false)
    }

    /// What is held when no more text comes.
    pub(super) fn rest(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::Stops;

    #[test]
    fn a_stop_string_is_found_across_pieces_and_never_shown() {
        let text = "ab\u{e9}</answer> and more";
        for cut in text.char_indices().map(|(at, _)| at) {
            let mut stops = Stops::new(vec!["zz".into(), "</answer>".into()]);
            let (first, early) = stops.feed(&text[..cut]);
            let (second, late) = if early { (String::new(), true) } else { stops.feed(&text[cut..]) };
            assert!(late && first + &second == "ab\u{e9}", "cut at {cut}");
        }
    }

    #[test]
    fn what_only_looks_like_a_stop_comes_out() {
        let mut stops = Stops::new(vec!["</s>".into()]);
        assert_eq!(stops.feed("a </"), ("a ".into(), false));
        assert_eq!(stops.feed("b> <"), ("</b> ".into(), false));
        assert_eq!(stops.rest(), "<");
        assert_eq!(Stops::default().feed("all"), ("all".into(), false));
    }
}
