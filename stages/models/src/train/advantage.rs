//! Advantages of a group: how much better than its group each response was.
//!
//! Paper, Eq. 4 and 5: `A_i = (r_i - mean) / std` over the group, the prior's reward taking part where there is one. The
//! standard deviation is unbiased and 1e-4 is added to it, as the authors' library does. A group whose rewards are all equal
//! teaches nothing: it is dead, its advantages are zero.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Added to the standard deviation.
const EPSILON: f64 = 1e-4;
/// A standard deviation below this is none.
const DEAD: f64 = 1e-6;

/// What differences to the group's mean are divided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scaling {
    /// The standard deviation of the group.
    #[default]
    Group,
    /// The standard deviation of all rewards of the step.
    Batch,
    /// Nothing.
    None,
}

/// Advantages of every group, in order, and which groups are dead.
pub fn advantages(groups: &[Vec<f64>], scaling: Scaling) -> (Vec<Vec<f64>>, Vec<bool>) {
    let all: Vec<f64> = groups.concat();
    let whole = deviation(&all);
    let dead: Vec<bool> = groups.iter().map(|group| deviation(group) < DEAD).collect();
    let one = |(group, dead): (&Vec<f64>, &bool)| {
        let divisor = match scaling {
            Scaling::Group => deviation(group) + EPSILON,
            Scaling::Batch => whole + EPSILON,
            Scaling::None => 1.0,
        };
        let mean = mean(group);
        group.iter().map(|reward| if *dead { 0.0 } else { (reward - mean) / divisor }).collect()
    };
    (groups.iter().zip(&dead).map(one).collect(), dead)
}

/// Arithmetic mean; 0 of nothing.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// Unbiased standard deviation; 0 of fewer than two.
pub fn deviation(values: &[f64]) -> f64 {
    let mean = mean(values);
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (squares / values.len().saturating_sub(1).max(1) as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_measured_against_itself() {
        let (found, dead) = advantages(&[vec![1.0, 2.0, 3.0], vec![2.0, 2.0]], Scaling::Group);
        assert!((found[0][2] - 1.0 / 1.0001).abs() < 1e-12 && found[0][1] == 0.0);
        assert_eq!((&found[1][..], &dead[..]), (&[0.0, 0.0][..], &[false, true][..]));
    }

    #[test]
    fn scaling_can_be_shared_or_left_out() {
        let groups = [vec![0.0, 1.0], vec![0.0, 3.0]];
        let (plain, _) = advantages(&groups, Scaling::None);
        assert_eq!(plain[1], [-1.5, 1.5]);
        let (batch, _) = advantages(&groups, Scaling::Batch);
        assert!((batch[1][1] / batch[0][1] - 3.0).abs() < 1e-12);
    }
}
