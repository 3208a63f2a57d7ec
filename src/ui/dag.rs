//! A pipeline as a picture: boxes coloured by what a run would do with them.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::layers::{Edge, Size, layout};
use super::timeline::escaped;

/// What a run would do with a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum State {
    /// Execute it.
    Run,
    /// Nobody knows yet.
    Unknown,
    /// Nothing.
    Hit,
}

/// Every state with what the legend calls it, its colour and that of its frame.
const STATES: [(State, &str, &str, &str); 3] = [
    (State::Hit, "up to date", "#d8f0de", "#2e7d4f"),
    (State::Run, "will run", "#fde5bd", "#b26a00"),
    (State::Unknown, "unknown until then", "#e9e9ef", "#77798a"),
];

/// A stage or a node.
#[derive(Debug)]
pub(crate) struct Card {
    /// Its name.
    pub(crate) name: String,
    /// Lines below the name.
    pub(crate) lines: Vec<String>,
    /// What a pointer on it shows.
    pub(crate) title: String,
    /// The states of its nodes.
    pub(crate) states: Vec<State>,
}

/// Room around everything.
const MARGIN: f64 = 20.0;
/// Room for the heading.
const TOP: f64 = 56.0;
/// Height of a line of text.
const LINE: f64 = 14.0;
/// Width of a character of the name and of the lines below it, as far as one can tell without the font.
const WIDE: (f64, f64) = (7.9, 6.0);

impl Card {
    fn size(&self) -> Size {
        let name = self.name.chars().count() as f64 * WIDE.0;
        let lines = self.lines.iter().map(|line| line.chars().count() as f64 * WIDE.1).fold(0.0, f64::max);
        (name.max(lines) + 20.0, LINE * (1 + self.lines.len()) as f64 + 16.0)
    }

    /// The state that the box is coloured by: what is to do shows before what is done.
    fn state(&self) -> State {
        self.states.iter().min().copied().unwrap_or(State::Unknown)
    }
}

/// The picture, the same bytes for the same pipeline and states. An edge (a, b) with a before b says that b needs a.
pub(crate) fn svg(heading: &str, cards: &[Card], edges: &BTreeSet<(usize, usize)>) -> String {
    let sizes: Vec<Size> = cards.iter().map(Card::size).collect();
    let drawn = layout(&sizes, edges);
    let (width, height) = ((drawn.size.0 + 2.0 * MARGIN).max(560.0), drawn.size.1 + TOP + 2.0 * MARGIN);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" viewBox=\"0 0 {width:.0} \
         {height:.0}\" font-family=\"sans-serif\" font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    legend(&mut out, heading);
    let _ = writeln!(out, "<g transform=\"translate({MARGIN} {})\" fill=\"none\">", TOP + MARGIN);
    let (pale, strong): (Vec<&Edge>, Vec<&Edge>) = drawn.edges.iter().partition(|edge| edge.implied);
    for (edges, colour, stroke) in [(pale, "#e4e4ea", 0.8), (strong, "#8a8c9c", 1.2)] {
        for edge in edges {
            let _ =
                writeln!(out, "<path d=\"{}\" stroke=\"{colour}\" stroke-width=\"{stroke}\"/>", curve(&edge.points));
        }
    }
    for ((card, size), at) in cards.iter().zip(&sizes).zip(&drawn.boxes) {
        draw(&mut out, card, *size, *at);
    }
    out + "</g>\n</svg>\n"
}

fn legend(out: &mut String, heading: &str) {
    let _ = writeln!(
        out,
        "<text x=\"{MARGIN}\" y=\"26\" font-size=\"15\" font-weight=\"bold\">{}</text>",
        escaped(heading)
    );
    let mut x = MARGIN;
    for (_, name, fill, frame) in STATES {
        let _ = writeln!(
            out,
            "<rect x=\"{x}\" y=\"38\" width=\"14\" height=\"10\" fill=\"{fill}\" stroke=\"{frame}\"/><text x=\"{}\" \
             y=\"47\">{name}</text>",
            x + 19.0
        );
        x += 40.0 + name.len() as f64 * WIDE.1;
    }
}

/// Bends between two points that are not on one horizontal piece.
fn curve(points: &[(f64, f64)]) -> String {
    let mut path = format!("M{:.1} {:.1}", points[0].0, points[0].1);
    for (step, pair) in points.windows(2).enumerate() {
        let [(x0, y0), (x1, y1)] = [pair[0], pair[1]];
        if step % 2 == 1 {
            let _ = write!(path, " L{x1:.1} {y1:.1}");
        } else {
            let middle = f64::midpoint(x0, x1);
            let _ = write!(path, " C{middle:.1} {y0:.1} {middle:.1} {y1:.1} {x1:.1} {y1:.1}");
        }
    }
    path
}

fn draw(out: &mut String, card: &Card, (width, height): Size, (x, y): (f64, f64)) {
    let (_, _, fill, frame) =
        STATES.into_iter().find(|(state, ..)| *state == card.state()).expect("every state is there");
    let _ = writeln!(
        out,
        "<g><title>{}</title><rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" rx=\"5\" \
         fill=\"{fill}\" stroke=\"{frame}\"/>",
        escaped(&card.title)
    );
    shares(out, card, (width, height), (x, y));
    let _ = writeln!(
        out,
        "<text x=\"{:.1}\" y=\"{:.1}\" font-size=\"12\" font-weight=\"bold\" fill=\"#1c1d24\">{}</text>",
        x + 10.0,
        y + LINE + 4.0,
        escaped(&card.name)
    );
    for (number, line) in card.lines.iter().enumerate() {
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" font-size=\"10\" fill=\"#4c4e5c\">{}</text>",
            x + 10.0,
            y + LINE * (number + 2) as f64 + 4.0,
            escaped(line)
        );
    }
    out.push_str("</g>\n");
}

/// A bar along the lower side that shows the shares of the states, when there are several.
fn shares(out: &mut String, card: &Card, (width, height): Size, (x, y): (f64, f64)) {
    let share =
        |state: State| card.states.iter().filter(|other| **other == state).count() as f64 / card.states.len() as f64;
    if STATES.iter().filter(|(state, ..)| share(*state) > 0.0).count() < 2 {
        return;
    }
    let mut left = x + 6.0;
    for (state, _, _, frame) in STATES {
        let long = share(state) * (width - 12.0);
        let top = y + height - 6.0;
        let _ =
            writeln!(out, "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{long:.1}\" height=\"3\" fill=\"{frame}\"/>");
        left += long;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_have_colours_titles_and_shares() {
        let card = |name: &str, states: &[State]| Card {
            name: name.to_owned(),
            lines: vec!["kind".to_owned()],
            title: format!("about {name}"),
            states: states.to_vec(),
        };
        let cards = [card("a<b", &[State::Hit]), card("c", &[State::Hit, State::Run])];
        let text = svg("demo", &cards, &BTreeSet::from([(0, 1)]));
        assert_eq!(text, svg("demo", &cards, &BTreeSet::from([(0, 1)])));
        assert!(text.contains("<title>about a&lt;b</title>") && text.matches("<path").count() == 1, "{text}");
        let bars = text.lines().filter(|line| line.contains("height=\"3\"")).count();
        assert_eq!(bars, 3, "of the mixed stage alone: {text}");
        assert!(text.matches("fill=\"#fde5bd\"").count() == 2, "the legend and the box that will run: {text}");
    }
}
