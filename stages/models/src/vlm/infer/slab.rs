//! Keys and values of lanes on a device, side by side in slabs, and attention to them in few large products.
//!
//! A lane sees two things: what it shares with other lanes (the longest beginning of its chain of stretches that another lane has too)
//! and what is its own (the rest of its chain, and its new tokens). What lanes share lies there once a group of lanes; queries of
//! the whole group are multiplied with it in one product, the groups of a slab being one batch. What is a lane's own lies in its row of the
//! slab:
//!
//! ```text
//!             columns, oldest first                    used
//! row 0   ..  ..  own  own  own  own | new              |       capacity
//! row 1   own own own  own  own  own | new              |
//! ```
//!
//! Rows end together, so that a step writes the new tokens of all rows with one copy; shorter rows begin later. For every column a row
//! knows which token of its sequence lies there, if any: masks and sliding windows follow from that alone. Lanes whose sizes differ
//! too much go to different slabs, so that at most about half of what is stored and multiplied is padding.

use candle_core::{D, DType, Device, Result, Tensor};
use candle_nn::ops::softmax_last_dim;

use super::Joining;
use super::tensors::Stretch;
use crate::ops::HeadShape;
use crate::vlm::prefix::{Part, WORTH_SHARING};

/// Columns by which a slab grows.
const GROWTH: usize = 256;
/// The place of a column in which there is no token; behind every row.
const NOWHERE: f32 = 1e9;
/// Added to the score of what a row does not see.
const UNSEEN: f64 = -1e30;

/// What all keys and values of a model have in common.
#[derive(Debug, Clone)]
pub(super) struct Form {
    pub(super) layers: usize,
    pub(super) heads: HeadShape,
    pub(super) dtype: DType,
    pub(super) device: Device,
    /// Attention scores that are there at once, unless one query of each row has more.
    pub(super) scores: usize,
}

impl Form {
    fn zeros(&self, rows: usize, columns: usize) -> Result<Tensor> {
        let HeadShape { kv_heads, head_dim, .. } = self.heads;
        Tensor::zeros((2 * self.layers, rows, kv_heads, columns, head_dim), self.dtype, &self.device)
    }
}

/// Lanes on a device.
#[derive(Debug, Default)]
pub struct Lanes {
    slabs: Vec<Slab>,
    count: usize,
}

/// Lanes of like size.
#[derive(Debug)]
struct Slab {
    /// The lane of each row.
    lanes: Vec<usize>,
    /// What rows see before their own; all rows do or none.
    shared: Option<Shared>,
    /// Keys and values of a layer behind one another: `[2 layers, rows, kv_heads, capacity, head_dim]`.
    kv: Tensor,
    /// Columns that hold something in some row.
    used: usize,
    /// For every row and used column which token of the row's sequence it holds, or [`NOWHERE`].
    places: Vec<Vec<f32>>,
    /// Tokens of every row's sequence so far, shared ones included.
    tokens: Vec<usize>,
    /// Tokens that the latest extension brought to each row; they begin at the same column.
    latest: (usize, Vec<usize>),
}

/// What groups of rows see in common.
#[derive(Debug)]
struct Shared {
    /// `[2 layers, groups, kv_heads, tokens, head_dim]`, shorter ones padded at the end.
    kv: Tensor,
    /// Tokens of each group.
    tokens: Vec<usize>,
    /// The group of each row.
    of: Vec<usize>,
}

/// One extension of all lanes.
pub(super) struct Step {
    slabs: Vec<SlabStep>,
    /// For every packed row its place in the slabs' outputs; none where they lie alike.
    back: Option<Tensor>,
}

struct SlabStep {
    /// New columns, and the first of them.
    count: usize,
    start: usize,
    /// For every row and new column the packed row; none where the slab is all of them in order.
    spread: Option<Tensor>,
    /// Places of the new tokens `[rows, count, 1]` and of what they may see `[rows, 1, columns]`.
    asking: Tensor,
    seen: Tensor,
    /// Whether every row sees every column where there is no window.
    whole: bool,
    longest: usize,
    /// Masks of each window, where all queries are asked at once.
    masks: Vec<(Option<usize>, Option<Tensor>)>,
    /// Queries of each row that are asked at once.
    block: usize,
    groups: Option<Groups>,
}

/// How rows are brought together by group; `order` has a slot for every row of the largest group in each.
struct Groups {
    count: usize,
    /// Rows by slot and slots by row; none where there is one group.
    order: Option<(Tensor, Tensor)>,
}

/// The size of a lane: tokens of its own so far, new ones, shared ones.
type Size = [usize; 3];

/// Whether lanes of these sizes lie side by side without too much padding.
fn fits(sizes: &[Size]) -> bool {
    (0..3).all(|which| {
        let (sum, most) = sizes.iter().fold((0, 0), |(sum, most), size| (sum + size[which], most.max(size[which])));
        sizes.len() * most <= 2 * sum + 64 * sizes.len()
    })
}

/// A lane on its way into a slab.
struct Coming {
    lane: usize,
    shared: Vec<Part<Stretch>>,
    own: Vec<Part<Stretch>>,
    room: usize,
}

impl Coming {
    fn size(&self) -> Size {
        let tokens = |parts: &[Part<Stretch>]| parts.iter().map(|part| part.tokens).sum();
        [tokens(&self.own), self.room, tokens(&self.shared)]
    }
}

/// Divides the chains of lanes into what they share with others and what is their own.
fn coming(first: usize, more: Vec<Joining<Stretch>>) -> Vec<Coming> {
    let common = |a: &[Part<Stretch>], b: &[Part<Stretch>]| a.iter().zip(b).take_while(|(a, b)| a.is(b)).count();
    let shared: Vec<usize> = (0..more.len())
        .map(|index| {
            let others = more.iter().enumerate().filter(|(other, _)| *other != index);
            let most = others.map(|(_, other)| common(&more[index].context, &other.context)).max().unwrap_or(0);
            let tokens: usize = more[index].context[..most].iter().map(|part| part.tokens).sum();
            if tokens < WORTH_SHARING { 0 } else { most }
        })
        .collect();
    let lanes = more.into_iter().zip(shared).enumerate();
    lanes
        .map(|(index, (Joining { mut context, room }, shared))| {
            let own = context.split_off(shared);
            Coming { lane: first + index, shared: context, own, room }
        })
        .collect()
}

impl Lanes {
    /// Number of lanes.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// Adds lanes.
    pub(super) fn join(&mut self, form: &Form, more: Vec<Joining<Stretch>>) -> Result<()> {
        let first = self.count;
        self.count += more.len();
        let mut coming = coming(first, more);
        coming.sort_by_key(|lane| {
            let [own, room, shared] = lane.size();
            (shared > 0, own + room, shared, lane.lane)
        });
        let mut group: Vec<Coming> = Vec::new();
        let mut sizes: Vec<Size> = Vec::new();
        for lane in coming {
            sizes.push(lane.size());
            let alike = group.first().is_none_or(|first| first.shared.is_empty() == lane.shared.is_empty());
            if !alike || !fits(&sizes) {
                sizes = vec![lane.size()];
                self.add(Slab::new(form, std::mem::take(&mut group))?)?;
            }
            group.push(lane);
        }
        if !group.is_empty() {
            self.add(Slab::new(form, group)?)?;
        }
        Ok(())
    }

    /// Puts a slab beside one of like size, else behind the others.
    fn add(&mut self, slab: Slab) -> Result<()> {
        for other in &mut self.slabs {
            let sizes: Vec<Size> = other.sizes().chain(slab.sizes()).collect();
            if other.shared.is_some() == slab.shared.is_some() && fits(&sizes) {
                return other.merge(slab);
            }
        }
        self.slabs.push(slab);
        Ok(())
    }

    /// Drops lanes.
    pub(super) fn stay(&mut self, stays: &[bool]) -> Result<()> {
        if stays.iter().all(|stays| *stays) {
            return Ok(());
        }
        let mut next = 0;
        let number = |stays: &bool| {
            next += usize::from(*stays);
            stays.then(|| next - 1)
        };
        let numbers: Vec<Option<usize>> = stays.iter().map(number).collect();
        self.count = next;
        for slab in &mut self.slabs {
            slab.renumber(&numbers)?;
        }
        self.slabs.retain(|slab| !slab.lanes.is_empty());
        Ok(())
    }

    /// Makes room for new tokens, so many for each lane, and looks who sees what.
    pub(super) fn open(&mut self, form: &Form, counts: &[usize], windows: &[Option<usize>]) -> Result<Step> {
        let starts: Vec<usize> = counts
            .iter()
            .scan(0, |next, count| {
                *next += count;
                Some(*next - count)
            })
            .collect();
        let total = counts.iter().sum();
        let (mut slabs, mut back, mut slot) = (Vec::new(), vec![0u32; total], 0);
        for slab in &mut self.slabs {
            let own: Vec<usize> = slab.lanes.iter().map(|lane| counts[*lane]).collect();
            let count = own.iter().copied().max().unwrap_or(0);
            let mut spread = vec![0u32; own.len() * count];
            for (row, lane) in slab.lanes.iter().enumerate() {
                for offset in 0..counts[*lane] {
                    spread[row * count + offset] = (starts[*lane] + offset) as u32;
                    back[starts[*lane] + offset] = (slot + row * count + offset) as u32;
                }
            }
            slot += spread.len();
            slabs.push(slab.open(form, own, count, index(spread, total, &form.device)?, windows)?);
        }
        Ok(Step { slabs, back: index(back, slot, &form.device)? })
    }

    /// What the queries of packed rows gather in a layer, `[rows, heads * head_dim]`; new keys and values are stored. `qk`
    /// holds queries and keys, turned, `[rows, heads + kv_heads, head_dim]`, `v` values `[rows, kv_heads, head_dim]`.
    pub(super) fn attend(
        &self,
        form: &Form,
        step: &Step,
        layer: usize,
        window: Option<usize>,
        [qk, v]: [&Tensor; 2],
    ) -> Result<Tensor> {
        let mut all = Vec::with_capacity(self.slabs.len());
        for (slab, step) in self.slabs.iter().zip(&step.slabs) {
            let (qk, v) = (pick(qk, step.spread.as_ref())?, pick(v, step.spread.as_ref())?);
            slab.store(form, step, layer, &qk, &v)?;
            all.push(slab.attend(form, step, layer, window, &qk)?);
        }
        let all = if all.len() == 1 { all.remove(0) } else { Tensor::cat(&all, 0)? };
        pick(&all, step.back.as_ref())
    }

    /// What each lane got from the latest extension, lane by lane.
    pub(super) fn stretches(&self) -> Result<Vec<Stretch>> {
        let mut all: Vec<(usize, Stretch)> = Vec::with_capacity(self.count);
        for slab in &self.slabs {
            let (start, counts) = &slab.latest;
            for (row, lane) in slab.lanes.iter().enumerate() {
                let own = slab.kv.narrow(1, row, 1)?.squeeze(1)?.narrow(2, *start, counts[row])?;
                all.push((*lane, Stretch::new(own.force_contiguous()?)));
            }
        }
        all.sort_by_key(|(lane, _)| *lane);
        Ok(all.into_iter().map(|(_, stretch)| stretch).collect())
    }
}

/// An index as a tensor, unless it is all of `0..of` in order.
fn index(rows: Vec<u32>, of: usize, device: &Device) -> Result<Option<Tensor>> {
    if rows.len() == of && rows.iter().enumerate().all(|(at, row)| at == *row as usize) {
        return Ok(None);
    }
    let count = rows.len();
    Tensor::from_vec(rows, count, &Device::Cpu)?.to_device(device).map(Some)
}

fn pick(x: &Tensor, rows: Option<&Tensor>) -> Result<Tensor> {
    match rows {
        Some(rows) => x.contiguous()?.index_select(rows, 0),
        None => Ok(x.clone()),
    }
}

/// The tokens of parts behind one another, `[2 layers, kv_heads, tokens, head_dim]`; none where there is no part.
fn joined(parts: &[Part<Stretch>]) -> Result<Option<Tensor>> {
    let own = |part: &Part<Stretch>| part.stretch.kv().narrow(2, 0, part.tokens);
    let all: Vec<Tensor> = parts.iter().map(own).collect::<Result<_>>()?;
    Ok(match all.len() {
        0 => None,
        1 => Some(all[0].clone()),
        _ => Some(Tensor::cat(&all, 2)?),
    })
}

impl Shared {
    /// What lanes share, each group once.
    fn new(lanes: &[Coming]) -> Result<Shared> {
        let mut groups: Vec<&[Part<Stretch>]> = Vec::new();
        let mut of = Vec::with_capacity(lanes.len());
        for lane in lanes {
            let same = |group: &&[Part<Stretch>]| {
                group.len() == lane.shared.len() && group.iter().zip(&lane.shared).all(|(a, b)| a.is(b))
            };
            of.push(groups.iter().position(same).unwrap_or(groups.len()));
            if of.last() == Some(&groups.len()) {
                groups.push(&lane.shared);
            }
        }
        let tokens: Vec<usize> = groups.iter().map(|group| group.iter().map(|part| part.tokens).sum()).collect();
        let longest = tokens.iter().copied().max().unwrap_or(0);
        let mut all = Vec::with_capacity(groups.len());
        for (group, tokens) in groups.iter().zip(&tokens) {
            let kv = joined(group)?.expect("a group shares something");
            all.push(kv.pad_with_zeros(2, 0, longest - tokens)?.unsqueeze(1)?);
        }
        let kv = if all.len() == 1 { all.remove(0) } else { Tensor::cat(&all, 1)? };
        Ok(Shared { kv: kv.contiguous()?, tokens, of })
    }

    fn len(&self) -> usize {
        self.kv.dims()[3]
    }

    fn merge(&mut self, other: Shared) -> Result<()> {
        let longest = self.len().max(other.len());
        let wide = |shared: &Shared| shared.kv.pad_with_zeros(3, 0, longest - shared.len());
        self.kv = Tensor::cat(&[wide(self)?, wide(&other)?], 1)?.contiguous()?;
        self.of.extend(other.of.iter().map(|group| group + self.tokens.len()));
        self.tokens.extend(other.tokens);
        Ok(())
    }

    /// Keeps some rows, and the groups that they are of.
    fn keep(&mut self, rows: &[usize]) -> Result<()> {
        let of: Vec<usize> = rows.iter().map(|row| self.of[*row]).collect();
        let groups: Vec<usize> = (0..self.tokens.len()).filter(|group| of.contains(group)).collect();
        self.of = of.iter().map(|group| groups.iter().position(|kept| kept == group).expect("kept")).collect();
        if groups.len() < self.tokens.len() {
            let picks: Vec<u32> = groups.iter().map(|group| *group as u32).collect();
            self.tokens = groups.iter().map(|group| self.tokens[*group]).collect();
            let longest = self.tokens.iter().copied().max().unwrap_or(0);
            self.kv = self.kv.index_select(&Tensor::new(picks, self.kv.device())?, 1)?;
            self.kv = self.kv.narrow(3, 0, longest)?.contiguous()?;
        }
        Ok(())
    }

    fn groups(&self, device: &Device) -> Result<Groups> {
        let count = self.tokens.len();
        if count == 1 {
            return Ok(Groups { count, order: None });
        }
        let mut members: Vec<Vec<u32>> = vec![Vec::new(); count];
        self.of.iter().enumerate().for_each(|(row, group)| members[*group].push(row as u32));
        let most = members.iter().map(Vec::len).max().unwrap_or(0);
        let mut slots = vec![0u32; self.of.len()];
        let mut rows = vec![0u32; count * most];
        for (group, members) in members.iter().enumerate() {
            for (at, row) in members.iter().enumerate() {
                rows[group * most + at] = *row;
                slots[*row as usize] = (group * most + at) as u32;
            }
        }
        Ok(Groups { count, order: Some((Tensor::new(rows, device)?, Tensor::new(slots, device)?)) })
    }
}

impl Groups {
    /// `[rows, kv_heads, n, w]` to `[groups, kv_heads, slots * n, w]`.
    fn gather(&self, x: &Tensor) -> Result<Tensor> {
        let x = match &self.order {
            Some((rows, _)) => x.index_select(rows, 0)?,
            None => x.clone(),
        };
        let (slots, heads, n, width) = x.dims4()?;
        let own = slots / self.count;
        let x = x.reshape((self.count, own, heads, n, width))?.transpose(1, 2)?.contiguous()?;
        x.reshape((self.count, heads, own * n, width))
    }

    /// Back again, `n` rows a slot.
    fn part(&self, x: &Tensor, n: usize) -> Result<Tensor> {
        let (_, heads, all, width) = x.dims4()?;
        let own = all / n;
        let x = x.reshape((self.count, heads, own, n, width))?.transpose(1, 2)?.contiguous()?;
        let x = x.reshape((self.count * own, heads, n, width))?;
        match &self.order {
            Some((_, slots)) => x.index_select(slots, 0),
            None => Ok(x),
        }
    }
}

impl Slab {
    fn new(form: &Form, lanes: Vec<Coming>) -> Result<Slab> {
        let own: Vec<Option<Tensor>> = lanes.iter().map(|lane| joined(&lane.own)).collect::<Result<_>>()?;
        let lengths: Vec<usize> = lanes.iter().map(|lane| lane.size()[0]).collect();
        let used = lengths.iter().copied().max().unwrap_or(0);
        let room = lanes.iter().map(|lane| lane.room).max().unwrap_or(0).min(GROWTH);
        let kv = if used == 0 {
            form.zeros(lanes.len(), room)?
        } else {
            let row = |(own, length): (&Option<Tensor>, &usize)| match own {
                Some(own) => own.pad_with_zeros(2, used - length, 0)?.unsqueeze(1),
                None => form.zeros(1, used),
            };
            let rows: Vec<Tensor> = own.iter().zip(&lengths).map(row).collect::<Result<_>>()?;
            Tensor::cat(&rows, 1)?.pad_with_zeros(3, 0, room)?
        };
        let shared = if lanes[0].shared.is_empty() { None } else { Some(Shared::new(&lanes)?) };
        let before: Vec<usize> = lanes.iter().map(|lane| lane.size()[2]).collect();
        let places = before.iter().zip(&lengths).map(|(before, length)| {
            let nowhere = std::iter::repeat_n(NOWHERE, used - length);
            nowhere.chain((*before..before + length).map(|place| place as f32)).collect()
        });
        Ok(Slab {
            places: places.collect(),
            tokens: before.iter().zip(&lengths).map(|(before, length)| before + length).collect(),
            latest: (used, vec![0; lanes.len()]),
            lanes: lanes.iter().map(|lane| lane.lane).collect(),
            shared,
            // What is written to must be nobody else's: a single stretch would be the kept one itself.
            kv: if kv.is_contiguous() && room > 0 { kv } else { kv.force_contiguous()? },
            used,
        })
    }

    fn capacity(&self) -> usize {
        self.kv.dims()[3]
    }

    fn sizes(&self) -> impl Iterator<Item = Size> {
        (0..self.lanes.len()).map(|row| {
            let shared = self.shared.as_ref().map_or(0, |shared| shared.tokens[shared.of[row]]);
            [self.tokens[row] - shared, 0, shared]
        })
    }

    /// Takes in the rows of another slab; both end at one column then.
    fn merge(&mut self, mut other: Slab) -> Result<()> {
        let used = self.used.max(other.used);
        for slab in [&mut *self, &mut other] {
            let short = used - slab.used;
            slab.kv = slab.kv.narrow(3, 0, slab.used)?.pad_with_zeros(3, short, 0)?;
            slab.used = used;
            slab.latest.0 += short;
            for places in &mut slab.places {
                places.splice(0..0, std::iter::repeat_n(NOWHERE, short));
            }
        }
        self.kv = Tensor::cat(&[&self.kv, &other.kv], 1)?.pad_with_zeros(3, 0, GROWTH)?.contiguous()?;
        if let (Some(own), Some(others)) = (&mut self.shared, other.shared) {
            own.merge(others)?;
        }
        self.lanes.extend(other.lanes);
        self.places.extend(other.places);
        self.tokens.extend(other.tokens);
        self.latest = (used, vec![0; self.lanes.len()]);
        Ok(())
    }

    /// Keeps the rows of lanes that stay, under their new numbers, and drops columns that no row uses any more.
    fn renumber(&mut self, numbers: &[Option<usize>]) -> Result<()> {
        let rows: Vec<usize> = (0..self.lanes.len()).filter(|row| numbers[self.lanes[*row]].is_some()).collect();
        let lanes: Vec<usize> = rows.iter().filter_map(|row| numbers[self.lanes[*row]]).collect();
        if rows.len() == self.lanes.len() || rows.is_empty() {
            self.lanes = lanes;
            return Ok(());
        }
        let picks: Vec<u32> = rows.iter().map(|row| *row as u32).collect();
        self.kv = self.kv.index_select(&Tensor::new(picks, self.kv.device())?, 1)?;
        if let Some(shared) = &mut self.shared {
            shared.keep(&rows)?;
        }
        self.places = rows.iter().map(|row| std::mem::take(&mut self.places[*row])).collect();
        self.tokens = rows.iter().map(|row| self.tokens[*row]).collect();
        self.lanes = lanes;
        let empty = |places: &Vec<f32>| places.iter().take_while(|place| **place == NOWHERE).count();
        let lead = self.places.iter().map(empty).min().unwrap_or(0);
        if lead > 0 {
            self.kv = self.kv.narrow(3, lead, self.capacity() - lead)?.contiguous()?;
            self.used -= lead;
            self.places.iter_mut().for_each(|places| drop(places.drain(..lead)));
        }
        self.latest = (self.used, vec![0; self.lanes.len()]);
        Ok(())
    }

    fn open(
        &mut self,
        form: &Form,
        counts: Vec<usize>,
        count: usize,
        spread: Option<Tensor>,
        windows: &[Option<usize>],
    ) -> Result<SlabStep> {
        let (rows, start) = (self.lanes.len(), self.used);
        if start + count > self.capacity() {
            self.kv = self.kv.pad_with_zeros(3, 0, count.max(GROWTH))?;
        }
        let mut asking = Vec::with_capacity(rows * count);
        for ((places, tokens), own) in self.places.iter_mut().zip(&mut self.tokens).zip(&counts) {
            // What a padding row asks is of no use, but it must see something.
            asking.extend((0..count).map(|at| tokens.saturating_add(at.min(own.saturating_sub(1))) as f32));
            places.extend((0..count).map(|at| if at < *own { (*tokens + at) as f32 } else { NOWHERE }));
            *tokens += own;
        }
        self.used += count;
        self.latest = (start, counts);
        let seen = self.seen();
        let columns = seen.len() / rows;
        let whole = count == 1 && !seen.contains(&NOWHERE);
        let (asking, seen) = (Tensor::from_vec(asking, (rows, count, 1), &Device::Cpu)?, (rows, 1, columns, seen));
        let seen = Tensor::from_vec(seen.3, (seen.0, seen.1, seen.2), &Device::Cpu)?.to_device(&form.device)?;
        let mut step = SlabStep {
            count,
            start,
            spread,
            asking: asking.to_device(&form.device)?,
            seen,
            whole,
            longest: self.tokens.iter().copied().max().unwrap_or(0),
            masks: Vec::new(),
            block: (form.scores / (rows * form.heads.heads * columns)).clamp(1, count),
            groups: self.shared.as_ref().map(|shared| shared.groups(&form.device)).transpose()?,
        };
        if step.block == count {
            let masks = windows.iter().map(|window| Ok((*window, step.mask(0, *window)?)));
            step.masks = masks.collect::<Result<_>>()?;
        }
        Ok(step)
    }

    /// Which token each row finds in each column that it may see: shared ones, then its own.
    fn seen(&self) -> Vec<f32> {
        let mut seen = Vec::with_capacity(self.lanes.len() * self.used);
        for (row, places) in self.places.iter().enumerate() {
            if let Some(shared) = &self.shared {
                let tokens = shared.tokens[shared.of[row]];
                seen.extend((0..shared.len()).map(|at| if at < tokens { at as f32 } else { NOWHERE }));
            }
            seen.extend(places);
        }
        seen
    }

    /// Keys (0) or values (1) of a layer, `[rows, kv_heads, capacity, head_dim]`.
    fn layer(&self, layer: usize, which: usize) -> Result<Tensor> {
        self.kv.narrow(0, 2 * layer + which, 1)?.squeeze(0)
    }

    /// Writes the keys and values of the new tokens.
    fn store(&self, form: &Form, step: &SlabStep, layer: usize, qk: &Tensor, v: &Tensor) -> Result<()> {
        let HeadShape { heads, kv_heads, head_dim } = form.heads;
        let shape = (self.lanes.len(), step.count, kv_heads, head_dim);
        for (which, new) in [&qk.narrow(1, heads, kv_heads)?, v].into_iter().enumerate() {
            let new = new.reshape(shape)?.transpose(1, 2)?.contiguous()?;
            self.layer(layer, which)?.slice_set(&new, 2, step.start)?;
        }
        Ok(())
    }

    fn attend(&self, form: &Form, step: &SlabStep, layer: usize, window: Option<usize>, qk: &Tensor) -> Result<Tensor> {
        let HeadShape { heads, kv_heads, head_dim } = form.heads;
        let (rows, group) = (self.lanes.len(), form.heads.group());
        let q = qk.narrow(1, 0, heads)?.reshape((rows, step.count, kv_heads, group, head_dim))?.transpose(1, 2)?;
        let kv = [0, 1].map(|which| self.layer(layer, which)?.narrow(2, 0, self.used));
        let [keys, values] = kv;
        let (keys, values) = (keys?, values?);
        let mut all = Vec::new();
        for first in (0..step.count).step_by(step.block) {
            let count = step.block.min(step.count - first);
            let q = q.narrow(2, first, count)?.contiguous()?.reshape((rows, kv_heads, count * group, head_dim))?;
            let mask = match step.masks.iter().find(|(of, _)| *of == window) {
                Some((_, mask)) => mask.clone(),
                None => step.mask(first, window)?,
            };
            let seen = self.gathered(form, step, layer, &q, [&keys, &values], mask.as_ref())?;
            all.push(seen.reshape((rows, kv_heads, count, group, head_dim))?);
        }
        let all = if all.len() == 1 { all.remove(0) } else { Tensor::cat(&all, 2)? };
        all.transpose(1, 2)?.reshape((rows * step.count, heads * head_dim))
    }

    /// What queries `[rows, kv_heads, queries * group, head_dim]` gather.
    fn gathered(
        &self,
        form: &Form,
        step: &SlabStep,
        layer: usize,
        q: &Tensor,
        [keys, values]: [&Tensor; 2],
        mask: Option<&Tensor>,
    ) -> Result<Tensor> {
        let (rows, kv_heads, n, head_dim) = q.dims4()?;
        let own = q.matmul(&keys.t()?)?;
        let beside = self.shared.as_ref().zip(step.groups.as_ref());
        let scores = match beside {
            Some((shared, groups)) => {
                let keys = shared.kv.narrow(0, 2 * layer, 1)?.squeeze(0)?;
                Tensor::cat(&[groups.part(&groups.gather(q)?.matmul(&keys.t()?)?, n)?, own], 3)?
            }
            None => own,
        };
        let columns = scores.dim(3)?;
        let scores = (scores.to_dtype(DType::F32)? * (1.0 / (head_dim as f64).sqrt()))?;
        let scores = match mask {
            Some(mask) => {
                let group = form.heads.group();
                scores.reshape((rows, kv_heads, n / group, group, columns))?.broadcast_add(mask)?
            }
            None => scores,
        };
        let weights = softmax_last_dim(&scores)?.to_dtype(q.dtype())?.reshape((rows, kv_heads, n, columns))?;
        let Some((shared, groups)) = beside else { return weights.matmul(values) };
        let before = shared.len();
        let own = weights.narrow(D::Minus1, before, columns - before)?.contiguous()?.matmul(values)?;
        let weights = groups.gather(&weights.narrow(D::Minus1, 0, before)?.contiguous()?)?;
        let values = shared.kv.narrow(0, 2 * layer + 1, 1)?.squeeze(0)?;
        groups.part(&weights.matmul(&values)?, n)? + own
    }
}

impl SlabStep {
    /// What is added to the scores of a block of queries, `[rows, 1, queries, 1, columns]`; none where all see all.
    fn mask(&self, first: usize, window: Option<usize>) -> Result<Option<Tensor>> {
        let window = window.filter(|window| self.longest > *window);
        if self.whole && window.is_none() {
            return Ok(None);
        }
        let count = self.block.min(self.count - first);
        let behind = self.asking.narrow(1, first, count)?.broadcast_sub(&self.seen)?;
        let mut visible = behind.ge(0.0)?;
        if let Some(window) = window {
            visible = (visible * behind.lt(window as f64)?)?;
        }
        let (rows, count, columns) = visible.dims3()?;
        // 0 where a row sees, else UNSEEN.
        let bias = visible.to_dtype(DType::F32)?.affine(-UNSEEN, UNSEEN)?;
        bias.reshape((rows, 1, count, 1, columns)).map(Some)
    }
}
