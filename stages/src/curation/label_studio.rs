//! Decisions from a Label Studio JSON export.
//!
//! A task is a picture, an annotation of it one curator's work, a result one mark. Marks with the same id belong together:
//! a rectangle (x, y, width, height in per cent of the picture, rotated about its top left corner) and the choices made for
//! it. Choices without a rectangle decide about the task's own `data.annotation`. Cancelled annotations and marks of other
//! types (polygons, key points) are passed over.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::ballot::{Ballot, Reading, Target};

#[derive(Debug, Deserialize)]
struct Task {
    #[serde(default)]
    id: Option<u64>,
    data: serde_json::Map<String, Value>,
    #[serde(default)]
    annotations: Vec<Work>,
}

/// One curator's annotation of a task.
#[derive(Debug, Deserialize)]
struct Work {
    #[serde(default)]
    id: Option<u64>,
    #[serde(default)]
    completed_by: Value,
    #[serde(default)]
    was_cancelled: bool,
    #[serde(default)]
    result: Vec<Mark>,
}

#[derive(Debug, Deserialize)]
struct Mark {
    #[serde(default)]
    id: String,
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    original_width: f64,
    #[serde(default)]
    original_height: f64,
    value: Value,
}

/// A rectangle or nothing, and the words said about it.
#[derive(Default)]
struct Group {
    rectangle: Option<[f64; 4]>,
    words: Vec<String>,
}

/// The ballots of an export.
pub(super) fn read(text: &str, reading: &Reading<'_>) -> Result<Vec<Ballot>, String> {
    let tasks: Vec<Task> =
        serde_json::from_str(text).map_err(|error| format!("{}: no Label Studio export: {error}", reading.name))?;
    let mut ballots = Vec::new();
    for (number, task) in tasks.iter().enumerate() {
        for work in task.annotations.iter().filter(|work| !work.was_cancelled) {
            let show = |id: Option<u64>| id.map_or_else(|| format!("number {}", number + 1), |id| id.to_string());
            let place = format!("{}: task {}, annotation {}", reading.name, show(task.id), show(work.id));
            ballots.extend(work.ballots(task, &place, reading)?);
        }
    }
    Ok(ballots)
}

impl Task {
    fn image(&self) -> Option<&str> {
        let known = ["image", "img", "url", "image_url"].into_iter().find_map(|key| self.data.get(key));
        known.and_then(Value::as_str)
    }

    fn annotation(&self) -> Option<u64> {
        let value = self.data.get("annotation")?;
        value.as_u64().or_else(|| value.as_str()?.parse().ok())
    }
}

impl Work {
    fn ballots(&self, task: &Task, place: &str, reading: &Reading<'_>) -> Result<Vec<Ballot>, String> {
        let image = task.image().ok_or_else(|| format!("{place}: the task's `data` names no `image`"))?;
        let mut order: Vec<&str> = Vec::new();
        let mut groups: BTreeMap<&str, Group> = BTreeMap::new();
        for mark in
            self.result.iter().filter(|mark| matches!(mark.kind.as_str(), "rectanglelabels" | "rectangle" | "choices"))
        {
            if !groups.contains_key(mark.id.as_str()) {
                order.push(&mark.id);
            }
            let group = groups.entry(&mark.id).or_default();
            group.words.extend(mark.words());
            if mark.kind != "choices" {
                let rectangle = mark
                    .rectangle()
                    .ok_or_else(|| format!("{place}, mark {}: the rectangle has no size in per cent", mark.id))?;
                group.rectangle = Some(rectangle);
            }
        }
        let ballot = |id: &str| {
            let (group, place) = (&groups[id], format!("{place}, mark {id}"));
            let target = match group.rectangle {
                Some(rectangle) => Target::Box(rectangle),
                None => Target::Annotation(task.annotation().ok_or_else(|| {
                    format!("{place}: a choice without a rectangle, and the task's `data` names no `annotation`")
                })?),
            };
            let vote =
                reading.vote(group.words.iter().map(String::as_str)).map_err(|what| format!("{place}: {what}"))?;
            let rev = task.data.get("rev").and_then(Value::as_str).map(str::to_owned);
            Ok(Ballot { curator: self.curator(reading), image: image.to_owned(), target, vote, rev, place })
        };
        order.into_iter().map(ballot).collect()
    }

    fn curator(&self, reading: &Reading<'_>) -> String {
        match &self.completed_by {
            Value::Number(number) => format!("user {number}"),
            Value::String(name) => name.clone(),
            Value::Object(user) => {
                let email = user.get("email").and_then(Value::as_str).map(str::to_owned);
                email
                    .or_else(|| user.get("id").map(|id| format!("user {id}")))
                    .unwrap_or_else(|| reading.curator.to_owned())
            }
            _ => reading.curator.to_owned(),
        }
    }
}

impl Mark {
    fn words(&self) -> Vec<String> {
        let lists = ["rectanglelabels", "choices"].into_iter().filter_map(|key| self.value.get(key)?.as_array());
        lists.flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    }

    /// x, y, width, height in pixels of the smallest upright box around it.
    fn rectangle(&self) -> Option<[f64; 4]> {
        let number = |key: &str| self.value.get(key).and_then(Value::as_f64);
        let across = |share: f64| share / 100.0 * self.original_width;
        let down = |share: f64| share / 100.0 * self.original_height;
        let (x, y) = (across(number("x")?), down(number("y")?));
        let (width, height) = (across(number("width")?), down(number("height")?));
        let (sin, cos) = number("rotation").unwrap_or(0.0).to_radians().sin_cos();
        let corners = [(0.0, 0.0), (width, 0.0), (0.0, height), (width, height)]
            .map(|(u, v)| (x + u * cos - v * sin, y + u * sin + v * cos));
        let low = corners.iter().fold((f64::MAX, f64::MAX), |low, corner| (low.0.min(corner.0), low.1.min(corner.1)));
        let high =
            corners.iter().fold((f64::MIN, f64::MIN), |high, corner| (high.0.max(corner.0), high.1.max(corner.1)));
        let sides = (high.0 - low.0, high.1 - low.1);
        (sides.0 > 0.0 && sides.1 > 0.0).then_some([low.0, low.1, sides.0, sides.1])
    }
}
