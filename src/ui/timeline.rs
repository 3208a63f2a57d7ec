//! A simulated run as a picture.

use std::collections::BTreeMap;
use std::fmt::Write;

use mpcc_engine::plan::Plan;
use mpcc_engine::simulate::{Span, Timeline};

/// Width of the time axis in pixels.
const WIDTH: f64 = 1200.0;
/// Height of a lane.
const LANE: usize = 14;
/// Room for the names of lanes.
const LEFT: usize = 90;
/// Lanes drawn at most; a cluster of thousands of devices makes no picture.
const LANES: usize = 400;

/// The lanes of a span: its devices, or its host when it has none.
fn lanes(span: &Span) -> Vec<(usize, Option<usize>)> {
    match span.devices.is_empty() {
        true => vec![(span.host, None)],
        false => span.devices.iter().map(|device| (span.host, Some(*device))).collect(),
    }
}

/// An SVG with a lane for each device and one a host for nodes without; nodes of one stage have one colour, and those that
/// share a device lie over each other, half transparent.
pub(crate) fn svg(plan: &Plan, timeline: &Timeline) -> String {
    let used: std::collections::BTreeSet<_> = timeline.spans.iter().flat_map(lanes).collect();
    let rows: BTreeMap<_, usize> = used.into_iter().take(LANES).enumerate().map(|(row, lane)| (lane, row)).collect();
    let scale = WIDTH / timeline.makespan_s.max(f64::MIN_POSITIVE);
    let (width, height) = (LEFT + WIDTH as usize + 10, rows.len() * LANE + 24);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"10\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for ((host, device), row) in &rows {
        let name = device.map_or(format!("host {host} CPUs"), |device| format!("host {host} GPU {device}"));
        let _ = writeln!(out, "<text x=\"2\" y=\"{}\">{name}</text>", row * LANE + LANE - 4);
    }
    for span in &timeline.spans {
        let node = plan.node(span.node);
        for row in lanes(span).iter().filter_map(|lane| rows.get(lane)) {
            let x = LEFT as f64 + span.start_s * scale;
            let _ = writeln!(
                out,
                "<rect x=\"{x:.2}\" y=\"{}\" width=\"{:.2}\" height=\"{}\" fill=\"hsl({}, 60%, 50%)\" fill-opacity=\"0.6\" \
                 stroke=\"white\" stroke-width=\"0.3\"><title>{} {:.1} s to {:.1} s</title></rect>",
                row * LANE + 1,
                ((span.end_s - span.start_s) * scale).max(0.5),
                LANE - 2,
                hue(&node.stage),
                escaped(&node.name),
                span.start_s,
                span.end_s,
            );
        }
    }
    let _ = writeln!(out, "<text x=\"{LEFT}\" y=\"{}\">0</text>", height - 8);
    let end = super::seconds(timeline.makespan_s);
    let _ = writeln!(out, "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{end}</text>\n</svg>", width - 10, height - 8);
    out
}

/// A colour that belongs to a name.
fn hue(name: &str) -> u32 {
    name.bytes().fold(7u32, |hash, byte| hash.wrapping_mul(31).wrapping_add(u32::from(byte))) % 360
}

/// A text as the content of an element.
pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
