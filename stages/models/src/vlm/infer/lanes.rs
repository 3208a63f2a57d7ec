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

use candle_core::{DType, Device, Result, Tensor};

use super::Joining;
use super::slab::{Slab, SlabStep};
use super::tensors::Stretch;
use crate::ops::HeadShape;
use crate::vlm::prefix::{Part, WORTH_SHARING};

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
    pub(super) fn zeros(&self, rows: usize, columns: usize) -> Result<Tensor> {
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

/// One extension of all lanes.
pub(super) struct Step {
    slabs: Vec<SlabStep>,
    /// For every packed row its place in the slabs' outputs; none where they lie alike.
    back: Option<Tensor>,
}

/// The size of a lane: tokens of its own so far, new ones, shared ones.
pub(super) type Size = [usize; 3];

/// Whether lanes of these sizes lie side by side without too much padding.
fn fits(sizes: &[Size]) -> bool {
    (0..3).all(|which| {
        let (sum, most) = sizes.iter().fold((0, 0), |(sum, most), size| (sum + size[which], most.max(size[which])));
        sizes.len() * most <= 2 * sum + 64 * sizes.len()
    })
}

/// A lane on its way into a slab.
pub(super) struct Coming {
    pub(super) lane: usize,
    pub(super) shared: Vec<Part<Stretch>>,
    pub(super) own: Vec<Part<Stretch>>,
    pub(super) room: usize,
}

impl Coming {
    pub(super) fn size(&self) -> Size {
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
        let all = self.slabs.iter().flat_map(Slab::stretches);
        let mut all: Vec<(usize, Tensor)> = all.collect::<Result<_>>()?;
        all.sort_by_key(|(lane, _)| *lane);
        Ok(all.into_iter().map(|(_, kv)| Stretch::new(kv)).collect())
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
