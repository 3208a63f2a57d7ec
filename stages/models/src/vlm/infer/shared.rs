//! What groups of rows see in common, once a group: see [`super::lanes`].

use candle_core::{Device, Result, Tensor};

use super::lanes::Coming;
use super::tensors::Stretch;
use crate::vlm::prefix::Part;

/// What groups of rows see in common.
#[derive(Debug)]
pub(super) struct Shared {
    /// `[2 layers, groups, kv_heads, tokens, head_dim]`, shorter ones padded at the end.
    pub(super) kv: Tensor,
    /// Tokens of each group.
    pub(super) tokens: Vec<usize>,
    /// The group of each row.
    pub(super) of: Vec<usize>,
}

/// How rows are brought together by group; `order` has a slot for every row of the largest group in each.
pub(super) struct Groups {
    count: usize,
    /// Rows by slot and slots by row; none where there is one group.
    order: Option<(Tensor, Tensor)>,
}

/// The tokens of parts behind one another, `[2 layers, kv_heads, tokens, head_dim]`; none where there is no part.
pub(super) fn joined(parts: &[Part<Stretch>]) -> Result<Option<Tensor>> {
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
    pub(super) fn new(lanes: &[Coming]) -> Result<Shared> {
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

    pub(super) fn len(&self) -> usize {
        self.kv.dims()[3]
    }

    pub(super) fn merge(&mut self, other: Shared) -> Result<()> {
        let longest = self.len().max(other.len());
        let wide = |shared: &Shared| shared.kv.pad_with_zeros(3, 0, longest - shared.len());
        self.kv = Tensor::cat(&[wide(self)?, wide(&other)?], 1)?.contiguous()?;
        self.of.extend(other.of.iter().map(|group| group + self.tokens.len()));
        self.tokens.extend(other.tokens);
        Ok(())
    }

    /// Keeps some rows, and the groups that they are of.
    pub(super) fn keep(&mut self, rows: &[usize]) -> Result<()> {
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

    pub(super) fn groups(&self, device: &Device) -> Result<Groups> {
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
    pub(super) fn gather(&self, x: &Tensor) -> Result<Tensor> {
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
    pub(super) fn part(&self, x: &Tensor, n: usize) -> Result<Tensor> {
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
