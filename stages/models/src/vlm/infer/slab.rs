//! Lanes of like size side by side: see [`super::lanes`].

use candle_core::{D, DType, Device, Result, Tensor};
use candle_nn::ops::softmax_last_dim;

use super::lanes::{Coming, Form, Size};
use super::shared::{Groups, Shared, joined};
use crate::ops::HeadShape;

/// Columns by which a slab grows.
const GROWTH: usize = 256;
/// The place of a column in which there is no token; behind every row.
const NOWHERE: f32 = 1e9;
/// Added to the score of what a row does not see.
const UNSEEN: f64 = -1e30;

/// Lanes of like size.
#[derive(Debug)]
pub(super) struct Slab {
    /// The lane of each row.
    pub(super) lanes: Vec<usize>,
    /// What rows see before their own; all rows do or none.
    pub(super) shared: Option<Shared>,
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

pub(super) struct SlabStep {
    /// New columns, and the first of them.
    count: usize,
    start: usize,
    /// For every row and new column the packed row; none where the slab is all of them in order.
    pub(super) spread: Option<Tensor>,
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

impl Slab {
    pub(super) fn new(form: &Form, lanes: Vec<Coming>) -> Result<Slab> {
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

    /// The lanes of the rows, and what each got from the latest extension.
    pub(super) fn stretches(&self) -> impl Iterator<Item = Result<(usize, Tensor)>> {
        let (start, counts) = &self.latest;
        self.lanes.iter().zip(counts).enumerate().map(|(row, (lane, count))| {
            let own = self.kv.narrow(1, row, 1)?.squeeze(1)?.narrow(2, *start, *count)?;
            Ok((*lane, own.force_contiguous()?))
        })
    }

    fn capacity(&self) -> usize {
        self.kv.dims()[3]
    }

    pub(super) fn sizes(&self) -> impl Iterator<Item = Size> {
        (0..self.lanes.len()).map(|row| {
            let shared = self.shared.as_ref().map_or(0, |shared| shared.tokens[shared.of[row]]);
            [self.tokens[row] - shared, 0, shared]
        })
    }

    /// Takes in the rows of another slab; both end at one column then.
    pub(super) fn merge(&mut self, mut other: Slab) -> Result<()> {
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
    pub(super) fn renumber(&mut self, numbers: &[Option<usize>]) -> Result<()> {
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

    pub(super) fn open(
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
    pub(super) fn store(&self, form: &Form, step: &SlabStep, layer: usize, qk: &Tensor, v: &Tensor) -> Result<()> {
        let HeadShape { heads, kv_heads, head_dim } = form.heads;
        let shape = (self.lanes.len(), step.count, kv_heads, head_dim);
        for (which, new) in [&qk.narrow(1, heads, kv_heads)?, v].into_iter().enumerate() {
            let new = new.reshape(shape)?.transpose(1, 2)?.contiguous()?;
            self.layer(layer, which)?.slice_set(&new, 2, step.start)?;
        }
        Ok(())
    }

    pub(super) fn attend(
        &self,
        form: &Form,
        step: &SlabStep,
        layer: usize,
        window: Option<usize>,
        qk: &Tensor,
    ) -> Result<Tensor> {
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
