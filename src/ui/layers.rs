//! A drawing of a graph in layers, left to right: where each box goes and how each edge runs. Pure, and the same for the same graph.
//!
//! 1. *Layers.* A box lies one layer behind the last box it needs; one that needs nothing lies just before its first user.
//! 2. *Edges.* An edge that a longer way implies (`a -> c` beside `a -> b -> c`) is drawn pale and straight, and has no say in
//!    what follows. Any other edge passes through a point in each layer between its ends.
//! 3. *Order.* Each layer is sorted by the middle of its neighbours, up and down, a few times; the order with the fewest
//!    crossings is kept.
//! 4. *Height.* Each box and point is pulled to the mean of its neighbours, as far as the order and the gaps allow (the least
//!    squares answer: isotonic regression).

use std::collections::{BTreeMap, BTreeSet};

/// Sweeps over the layers that sort them, and that set heights.
const SWEEPS: usize = 12;

/// Room between two boxes of a layer.
const GAP: f64 = 14.0;

/// Room between two layers, in which edges bend.
const BETWEEN: f64 = 64.0;

/// Height that is kept free for an edge that passes a layer.
const PASSAGE: f64 = 2.0;

/// Width and height of a box.
pub(crate) type Size = (f64, f64);

/// A finished drawing. Places are of upper left corners and of points.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Layout {
    /// Where each box is.
    pub(crate) boxes: Vec<(f64, f64)>,
    /// The edges with the points they pass, from the right side of a box to the left side of another.
    pub(crate) edges: Vec<Edge>,
    /// Width and height of it all.
    pub(crate) size: Size,
}

/// A drawn edge.
#[derive(Debug, PartialEq)]
pub(crate) struct Edge {
    /// Where it passes: pairs of points, each pair a horizontal piece.
    pub(crate) points: Vec<(f64, f64)>,
    /// A longer way implies it.
    pub(crate) implied: bool,
}

/// What stands in a layer: a box, or a point of a passing edge.
struct Vertex {
    layer: usize,
    height: f64,
    left: Vec<usize>,
    right: Vec<usize>,
}

/// Draws boxes of these sizes; an edge (a, b) with a before b says that b needs a.
pub(crate) fn layout(sizes: &[Size], edges: &BTreeSet<(usize, usize)>) -> Layout {
    if sizes.is_empty() {
        return Layout::default();
    }
    let layers = layers(sizes.len(), edges);
    let implied = implied(sizes.len(), edges);
    let box_at =
        |(at, size): (usize, &Size)| Vertex { layer: layers[at], height: size.1, left: Vec::new(), right: Vec::new() };
    let mut vertices: Vec<Vertex> = sizes.iter().enumerate().map(box_at).collect();
    let mut ways: BTreeMap<(usize, usize), Vec<usize>> = BTreeMap::new();
    for &(from, to) in edges.difference(&implied) {
        ways.insert((from, to), pass(&mut vertices, from, to));
    }
    let order = sorted(&vertices);
    let heights = heights(&vertices, &order);
    drawn(sizes, &layers, edges, &ways, &heights)
}

/// The layer of each box.
fn layers(count: usize, edges: &BTreeSet<(usize, usize)>) -> Vec<usize> {
    let mut layers = vec![0; count];
    // Boxes are in topological order, so the edges, sorted by their beginnings, are too.
    for &(from, to) in edges {
        layers[to] = layers[to].max(layers[from] + 1);
    }
    for at in 0..count {
        let needs = edges.iter().any(|&(_, to)| to == at);
        let first = edges.range((at, 0)..(at + 1, 0)).map(|&(_, to)| layers[to]).min();
        if let (false, Some(first)) = (needs, first) {
            layers[at] = first - 1;
        }
    }
    layers
}

/// The edges that a longer way implies.
fn implied(count: usize, edges: &BTreeSet<(usize, usize)>) -> BTreeSet<(usize, usize)> {
    let after = |at: usize| edges.range((at, 0)..(at + 1, 0)).map(|&(_, to)| to);
    // What is below each box, from the last one up.
    let mut below: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); count];
    let mut implied = BTreeSet::new();
    for at in (0..count).rev() {
        for to in after(at) {
            if after(at).any(|other| below[other].contains(&to)) {
                implied.insert((at, to));
            }
        }
        let all: BTreeSet<usize> = after(at).flat_map(|to| below[to].iter().copied().chain([to])).collect();
        below[at] = all;
    }
    implied
}

/// Joins two boxes by way of a point in each layer between; the points.
fn pass(vertices: &mut Vec<Vertex>, from: usize, to: usize) -> Vec<usize> {
    let (mut last, mut points) = (from, Vec::new());
    for layer in vertices[from].layer + 1..vertices[to].layer {
        let point = vertices.len();
        vertices.push(Vertex { layer, height: PASSAGE, left: vec![last], right: Vec::new() });
        vertices[last].right.push(point);
        points.push(point);
        last = point;
    }
    vertices[last].right.push(to);
    vertices[to].left.push(last);
    points
}

/// The vertices of each layer, top to bottom.
fn sorted(vertices: &[Vertex]) -> Vec<Vec<usize>> {
    let count = vertices.iter().map(|vertex| vertex.layer + 1).max().unwrap_or(0);
    let mut order: Vec<Vec<usize>> = vec![Vec::new(); count];
    for (at, vertex) in vertices.iter().enumerate() {
        order[vertex.layer].push(at);
    }
    let mut best = (crossings(vertices, &order), order.clone());
    for sweep in 0..SWEEPS {
        let rightwards = sweep % 2 == 0;
        let mut columns: Vec<usize> = (0..count).collect();
        if !rightwards {
            columns.reverse();
        }
        for column in columns {
            let places = places(vertices.len(), &order);
            let middle = |at: usize| {
                let vertex = &vertices[at];
                let near = if rightwards { &vertex.left } else { &vertex.right };
                mean(near.iter().map(|&other| places[other] as f64)).unwrap_or(places[at] as f64)
            };
            order[column].sort_by(|&a, &b| middle(a).total_cmp(&middle(b)).then(places[a].cmp(&places[b])));
        }
        let crossed = crossings(vertices, &order);
        if crossed < best.0 {
            best = (crossed, order.clone());
        }
    }
    best.1
}

/// The place of each vertex in its layer.
fn places(count: usize, order: &[Vec<usize>]) -> Vec<usize> {
    let mut places = vec![0; count];
    for layer in order {
        for (place, &at) in layer.iter().enumerate() {
            places[at] = place;
        }
    }
    places
}

/// Pairs of edges between two layers that cross.
fn crossings(vertices: &[Vertex], order: &[Vec<usize>]) -> usize {
    let places = places(vertices.len(), order);
    let between = |layer: &Vec<usize>| {
        let mut ends = Vec::new();
        for &at in layer {
            let mut right: Vec<usize> = vertices[at].right.iter().map(|&to| places[to]).collect();
            right.sort_unstable();
            ends.extend(right);
        }
        inversions(ends).0
    };
    order.iter().map(between).sum()
}

/// How many pairs stand in the wrong order, and the list in the right one.
fn inversions(list: Vec<usize>) -> (usize, Vec<usize>) {
    if list.len() < 2 {
        return (0, list);
    }
    let (first, second) = list.split_at(list.len() / 2);
    let ((a, first), (b, second)) = (inversions(first.to_vec()), inversions(second.to_vec()));
    let (mut count, mut merged, mut at) = (a + b, Vec::with_capacity(list.len()), 0);
    for value in second {
        while at < first.len() && first[at] <= value {
            merged.push(first[at]);
            at += 1;
        }
        count += first.len() - at;
        merged.push(value);
    }
    merged.extend(&first[at..]);
    (count, merged)
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0usize), |(sum, count), value| (sum + value, count + 1));
    (count > 0).then(|| sum / count as f64)
}

/// The height of each vertex's middle.
fn heights(vertices: &[Vertex], order: &[Vec<usize>]) -> Vec<f64> {
    let mut heights = vec![0.0; vertices.len()];
    for layer in order {
        place(vertices, layer, &vec![0.0; layer.len()], &mut heights);
    }
    for sweep in 0..SWEEPS {
        let columns: Vec<&Vec<usize>> =
            if sweep % 2 == 0 { order.iter().collect() } else { order.iter().rev().collect() };
        for layer in columns {
            let wish = |&at: &usize| {
                let vertex = &vertices[at];
                let near: &[usize] = match sweep {
                    // At last both sides count.
                    _ if sweep + 2 >= SWEEPS => &[&vertex.left[..], &vertex.right[..]].concat(),
                    _ if sweep % 2 == 0 => &vertex.left,
                    _ => &vertex.right,
                };
                mean(near.iter().map(|&other| heights[other])).unwrap_or(heights[at])
            };
            let wishes: Vec<f64> = layer.iter().map(wish).collect();
            place(vertices, layer, &wishes, &mut heights);
        }
    }
    heights
}

/// Puts the vertices of a layer as near to their wishes as their order and sizes allow.
fn place(vertices: &[Vertex], layer: &[usize], wishes: &[f64], heights: &mut [f64]) {
    let mut offset = 0.0;
    let mut offsets = Vec::with_capacity(layer.len());
    for (place, &at) in layer.iter().enumerate() {
        if place > 0 {
            offset += (vertices[layer[place - 1]].height + vertices[at].height) / 2.0 + GAP;
        }
        offsets.push(offset);
    }
    // Blocks of vertices that touch: sum of their wishes, how many.
    let mut blocks: Vec<(f64, usize)> = Vec::new();
    for (wish, offset) in wishes.iter().zip(&offsets) {
        let mut block = (wish - offset, 1);
        while let Some(&(sum, count)) = blocks.last()
            && sum / count as f64 >= block.0 / block.1 as f64
        {
            blocks.pop();
            block = (sum + block.0, count + block.1);
        }
        blocks.push(block);
    }
    let settled = blocks.into_iter().flat_map(|(sum, count)| std::iter::repeat_n(sum / count as f64, count));
    for ((&at, offset), base) in layer.iter().zip(offsets).zip(settled) {
        heights[at] = base + offset;
    }
}

/// Turns layers and heights into places.
fn drawn(
    sizes: &[Size],
    layers: &[usize],
    edges: &BTreeSet<(usize, usize)>,
    ways: &BTreeMap<(usize, usize), Vec<usize>>,
    heights: &[f64],
) -> Layout {
    let count = layers.iter().max().map_or(0, |last| last + 1);
    let mut widths = vec![0.0f64; count];
    for (size, &layer) in sizes.iter().zip(layers) {
        widths[layer] = widths[layer].max(size.0);
    }
    let lefts: Vec<f64> = widths
        .iter()
        .scan(0.0, |at, width| {
            let left = *at;
            *at += width + BETWEEN;
            Some(left)
        })
        .collect();
    let top = sizes.iter().zip(heights).map(|(size, middle)| middle - size.1 / 2.0).fold(f64::INFINITY, f64::min);
    let top = heights.iter().copied().fold(top, f64::min);
    let middle = |at: usize| heights[at] - top;
    let boxes: Vec<(f64, f64)> =
        (0..sizes.len()).map(|at| (lefts[layers[at]], middle(at) - sizes[at].1 / 2.0)).collect();
    let edge = |&(from, to): &(usize, usize)| {
        let way = ways.get(&(from, to));
        let mut points = vec![(boxes[from].0 + sizes[from].0, middle(from))];
        for (step, &point) in way.into_iter().flatten().enumerate() {
            let layer = layers[from] + 1 + step;
            points.push((lefts[layer], middle(point)));
            points.push((lefts[layer] + widths[layer], middle(point)));
        }
        points.push((boxes[to].0, middle(to)));
        Edge { points, implied: way.is_none() }
    };
    let bottom = (0..sizes.len()).map(|at| middle(at) + sizes[at].1 / 2.0).fold(0.0, f64::max);
    let bottom = heights.iter().map(|height| height - top).fold(bottom, f64::max);
    let width = lefts.last().zip(widths.last()).map_or(0.0, |(left, width)| left + width);
    Layout { edges: edges.iter().map(edge).collect(), boxes, size: (width, bottom) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(count: usize, edges: &[(usize, usize)]) -> Layout {
        layout(&vec![(100.0, 40.0); count], &edges.iter().copied().collect())
    }

    #[test]
    fn a_chain_is_a_line() {
        let layout = drawn(3, &[(0, 1), (1, 2), (0, 2)]);
        assert_eq!(layout.boxes, [(0.0, 0.0), (164.0, 0.0), (328.0, 0.0)]);
        assert_eq!(layout.size, (428.0, 40.0));
        let implied: Vec<bool> = layout.edges.iter().map(|edge| edge.implied).collect();
        assert_eq!(implied, [false, true, false], "0 -> 2 says nothing new");
        assert_eq!(layout.edges[0].points, [(100.0, 20.0), (164.0, 20.0)]);
        assert_eq!(drawn(0, &[]), Layout::default());
    }

    #[test]
    fn crossings_are_untangled() {
        // Two chains, told in an order that crosses.
        let layout = drawn(4, &[(0, 3), (1, 2)]);
        let y = |at: usize| layout.boxes[at].1;
        assert_eq!((y(0) < y(1), y(3) < y(2)), (true, true), "{layout:?}");
        assert_eq!((y(0), y(1)), (y(3), y(2)), "edges are straight");
        assert_eq!(inversions(vec![3, 1, 2, 0]).0, 5);
    }

    #[test]
    fn boxes_of_a_layer_never_touch_and_long_edges_pass_between_them() {
        let edges = [(0, 1), (0, 2), (0, 3), (1, 4), (2, 4), (3, 5), (4, 6), (5, 6), (0, 7), (7, 6)];
        let layout = drawn(8, &edges);
        for a in 0..8 {
            for b in 0..a {
                let ((ax, ay), (bx, by)) = (layout.boxes[a], layout.boxes[b]);
                assert!(ax != bx || (ay - by).abs() >= 40.0 + GAP - 1e-6, "{a} and {b}: {layout:?}");
            }
        }
        let long = &layout.edges.iter().find(|edge| edge.points.len() == 4).unwrap().points;
        for (x, y) in &layout.boxes {
            let passes =
                long[1..3].iter().any(|(px, py)| (*x..=x + 100.0).contains(px) && (*y..=y + 40.0).contains(py));
            assert!(!passes, "an edge runs through a box: {layout:?}");
        }
        assert_eq!(layout, drawn(8, &edges));
    }
}
