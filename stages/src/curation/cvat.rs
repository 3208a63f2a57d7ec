//! Decisions from a "CVAT for images 1.1" XML dump.
//!
//! Each `<box>` of an `<image>` is a ballot. Its attributes `decision`, `difficulty`, `annotation`, `curator` and `rev` say
//! what the columns of the same names say in a CSV file; without `decision` and `difficulty` the box's label decides. Without
//! `annotation` the annotation that overlaps the box best is meant. Other shapes are passed over.

use std::collections::BTreeMap;

use quick_xml::events::{BytesStart, Event};
use quick_xml::{Reader, XmlVersion};

use super::ballot::{Ballot, Reading, Target};

/// A box while it is read.
struct Open {
    place: String,
    label: String,
    bounds: [f64; 4],
    attributes: BTreeMap<String, String>,
}

/// Where the reader is.
#[derive(Default)]
struct State {
    image: Option<String>,
    shape: Option<Open>,
    attribute: Option<(String, String)>,
    ballots: Vec<Ballot>,
}

/// The ballots of a dump.
pub(super) fn read(text: &str, reading: &Reading<'_>) -> Result<Vec<Ballot>, String> {
    let mut xml = Reader::from_str(text);
    xml.config_mut().expand_empty_elements = true;
    let lines = Lines::new(text);
    let (mut state, mut root) = (State::default(), None);
    loop {
        let place = format!("{}:{}", reading.name, lines.at(xml.buffer_position()));
        match xml.read_event().map_err(|error| format!("{place}: {error}"))? {
            Event::Start(tag) => {
                root.get_or_insert_with(|| tag.name().as_ref().to_owned());
                state.open(&tag, &place)?;
            }
            Event::Text(text) => state.text(&text),
            Event::End(tag) => state.close(tag.name().as_ref(), reading)?,
            Event::Eof => break,
            _ => {}
        }
    }
    match root.as_deref() {
        Some("annotations") => Ok(state.ballots),
        _ => Err(format!("{}: no CVAT dump: the outermost element is not `annotations`", reading.name)),
    }
}

impl State {
    fn open(&mut self, tag: &BytesStart<'_>, place: &str) -> Result<(), String> {
        match tag.name().as_ref() {
            "image" => self.image = Some(attribute(tag, "name", place)?),
            "box" if self.image.is_some() => self.shape = Some(Open::new(tag, place)?),
            "attribute" if self.shape.is_some() => {
                self.attribute = Some((attribute(tag, "name", place)?, String::new()))
            }
            _ => {}
        }
        Ok(())
    }

    fn text(&mut self, text: &str) {
        if let Some((_, value)) = &mut self.attribute {
            value.push_str(text);
        }
    }

    fn close(&mut self, name: &str, reading: &Reading<'_>) -> Result<(), String> {
        match name {
            "image" => self.image = None,
            "attribute" => {
                if let (Some((name, value)), Some(shape)) = (self.attribute.take(), &mut self.shape) {
                    shape.attributes.insert(name, value.trim().to_owned());
                }
            }
            "box" => {
                if let (Some(shape), Some(image)) = (self.shape.take(), &self.image) {
                    self.ballots.push(shape.ballot(image, reading)?);
                }
            }
            _ => {}
        }
        Ok(())
    }
}

impl Open {
    fn new(tag: &BytesStart<'_>, place: &str) -> Result<Self, String> {
        let number = |name: &str| -> Result<f64, String> {
            let text = attribute(tag, name, place)?;
            text.parse().map_err(|_| format!("{place}: `{name}=\"{text}\"` is no number"))
        };
        let (left, top) = (number("xtl")?, number("ytl")?);
        let bounds = [left, top, number("xbr")? - left, number("ybr")? - top];
        Ok(Self {
            place: place.to_owned(),
            label: attribute(tag, "label", place)?,
            bounds,
            attributes: BTreeMap::new(),
        })
    }

    fn ballot(mut self, image: &str, reading: &Reading<'_>) -> Result<Ballot, String> {
        let mut take = |name: &str| self.attributes.remove(name).filter(|value| !value.is_empty());
        let target = match take("annotation") {
            Some(id) => {
                Target::Annotation(id.parse().map_err(|_| format!("{}: `annotation` is `{id}`, no id", self.place))?)
            }
            None => Target::Box(self.bounds),
        };
        let (decision, difficulty) = (take("decision"), take("difficulty"));
        let (curator, rev) = (take("curator"), take("rev"));
        let words: Vec<&str> = match (&decision, &difficulty) {
            (None, None) => vec![&self.label],
            (decision, difficulty) => decision.iter().chain(difficulty).map(String::as_str).collect(),
        };
        let vote = reading.vote(words).map_err(|what| format!("{}: {what}", self.place))?;
        let curator = curator.unwrap_or_else(|| reading.curator.to_owned());
        Ok(Ballot { place: self.place, curator, image: image.to_owned(), target, vote, rev })
    }
}

fn attribute(tag: &BytesStart<'_>, name: &str, place: &str) -> Result<String, String> {
    let found = tag.try_get_attribute(name).map_err(|error| format!("{place}: {error}"))?;
    let found = found.ok_or_else(|| format!("{place}: <{}> has no attribute `{name}`", tag.name().as_ref()))?;
    let value = found.normalized_value(XmlVersion::Implicit1_0).map_err(|error| format!("{place}: {error}"))?;
    Ok(value.into_owned())
}

/// Line numbers of byte positions.
struct Lines(Vec<usize>);

impl Lines {
    fn new(text: &str) -> Self {
        Self(text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at).collect())
    }

    fn at(&self, position: u64) -> usize {
        self.0.partition_point(|end| (*end as u64) < position) + 1
    }
}
