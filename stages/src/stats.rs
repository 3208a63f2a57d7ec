//! Statistics of tables: intervals and paired tests.
//!
//! | what | method |
//! |---|---|
//! | share of n independent answers | Wilson's score interval |
//! | mean over items with several questions each, mean of group means | bootstrap over items within each group, 2,000 seeded draws, percentiles |
//! | two methods on the same questions | McNemar's exact test (two-sided binomial on the discordant pairs) |
//! | two shares on different questions | z test on the difference of two independent shares |

use rand::RngExt;

use crate::draw;

/// The 97.5th percentile of the standard normal.
const Z: f64 = 1.959_963_984_540_054;
/// Draws of a bootstrap.
const DRAWS: usize = 2000;

/// Wilson's 95 % score interval for `right` of `n`, as shares. (0, 1) for n = 0.
pub fn wilson(right: u64, n: u64) -> (f64, f64) {
    if n == 0 {
        return (0.0, 1.0);
    }
    let (n, share) = (n as f64, right as f64 / n as f64);
    let scale = 1.0 + Z * Z / n;
    let centre = (share + Z * Z / (2.0 * n)) / scale;
    let half = Z / scale * (share * (1.0 - share) / n + Z * Z / (4.0 * n * n)).sqrt();
    ((centre - half).max(0.0), (centre + half).min(1.0))
}

/// One item's contribution to a mean.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Unit {
    /// Sum over the item's questions.
    pub sum: f64,
    /// How many there are.
    pub count: f64,
}

/// The mean over all questions of a group.
pub fn mean(units: &[Unit]) -> f64 {
    units.iter().map(|unit| unit.sum).sum::<f64>() / units.iter().map(|unit| unit.count).sum::<f64>()
}

/// 95 % bootstrap interval of the mean of the groups' means, drawing items within each group. Every group must hold an item.
pub fn bootstrap(groups: &[&[Unit]], purpose: &str) -> (f64, f64) {
    let mut rng = draw::rng(0, "bootstrap", purpose);
    let mut draws: Vec<f64> = (0..DRAWS)
        .map(|_| {
            let means = groups.iter().map(|units| {
                let (mut sum, mut count) = (0.0, 0.0);
                for _ in 0..units.len() {
                    let unit = units[rng.random_range(0..units.len())];
                    sum += unit.sum;
                    count += unit.count;
                }
                sum / count
            });
            means.sum::<f64>() / groups.len() as f64
        })
        .collect();
    draws.sort_by(f64::total_cmp);
    (draws[DRAWS / 40], draws[DRAWS - 1 - DRAWS / 40])
}

/// Exact two-sided p of McNemar's test: `only_a` pairs that a alone got right, `only_b` that b alone did.
pub fn mcnemar(only_a: u64, only_b: u64) -> f64 {
    let n = only_a + only_b;
    let tail: f64 =
        (0..=only_a.min(only_b)).map(|k| (log_choose(n, k) - n as f64 * std::f64::consts::LN_2).exp()).sum();
    (2.0 * tail).min(1.0)
}

fn log_choose(n: u64, k: u64) -> f64 {
    (1..=k).map(|i| ((n - k + i) as f64).ln() - (i as f64).ln()).sum()
}

/// Two-sided p of the difference between `a` and `b`, means of independent samples with standard errors `se_a`, `se_b`.
pub fn difference(a: f64, se_a: f64, b: f64, se_b: f64) -> f64 {
    let se = (se_a * se_a + se_b * se_b).sqrt();
    if se == 0.0 {
        return if a == b { 1.0 } else { 0.0 };
    }
    2.0 * normal_tail((a - b).abs() / se)
}

/// The standard error behind a 95 % interval.
pub fn standard_error((low, high): (f64, f64)) -> f64 {
    (high - low) / (2.0 * Z)
}

/// P(Z > z) for z >= 0: Abramowitz and Stegun 26.2.17, absolute error below 7.5e-8.
fn normal_tail(z: f64) -> f64 {
    let t = 1.0 / (1.0 + 0.231_641_9 * z);
    let series = [0.319_381_530, -0.356_563_782, 1.781_477_937, -1.821_255_978, 1.330_274_429];
    let sum = series.iter().rev().fold(0.0, |sum, factor| (sum + factor) * t);
    (-z * z / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt() * sum
}

/// Cohen's kappa of two raters over the same subjects; `None` when chance alone agrees always.
pub fn cohen(pairs: &[(usize, usize)], categories: usize) -> Option<f64> {
    let n = pairs.len() as f64;
    let agree = pairs.iter().filter(|(a, b)| a == b).count() as f64 / n;
    let share = |category: usize, rater: fn(&(usize, usize)) -> usize| {
        pairs.iter().filter(|pair| rater(pair) == category).count() as f64 / n
    };
    let chance: f64 =
        (0..categories).map(|category| share(category, |pair| pair.0) * share(category, |pair| pair.1)).sum();
    kappa(agree, chance)
}

/// Fleiss' kappa: `counts[subject][category]` raters, the same number of raters (two or more) for every subject.
pub fn fleiss(counts: &[Vec<u32>]) -> Option<f64> {
    let raters = f64::from(counts.first()?.iter().sum::<u32>());
    let n = counts.len() as f64;
    let agreement = |row: &Vec<u32>| {
        row.iter().map(|k| f64::from(*k) * (f64::from(*k) - 1.0)).sum::<f64>() / (raters * (raters - 1.0))
    };
    let agree = counts.iter().map(agreement).sum::<f64>() / n;
    let share = |category: usize| counts.iter().map(|row| f64::from(row[category])).sum::<f64>() / (n * raters);
    let chance = (0..counts[0].len()).map(|category| share(category).powi(2)).sum();
    kappa(agree, chance)
}

fn kappa(agree: f64, chance: f64) -> Option<f64> {
    let value = (agree - chance) / (1.0 - chance);
    value.is_finite().then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-4
    }

    #[test]
    fn wilson_gives_the_known_intervals() {
        // R: prop.test(c(30), 40, correct = FALSE), prop.test(0, 10, correct = FALSE)
        for (right, n, low, high) in [(30, 40, 0.598_06, 0.858_13), (0, 10, 0.0, 0.277_53)] {
            let (a, b) = wilson(right, n);
            assert!(close(a, low) && close(b, high), "{right}/{n}: {a} {b}");
        }
    }

    #[test]
    fn mcnemar_is_the_binomial_test() {
        // R: binom.test(2, 12)$p.value, binom.test(5, 10)$p.value, binom.test(40, 100)$p.value
        for (a, b, p) in [(2, 10, 0.038_574), (5, 5, 1.0), (40, 60, 0.056_888), (0, 0, 1.0), (0, 1500, 0.0)] {
            assert!(close(mcnemar(a, b), p) && close(mcnemar(b, a), p), "{a} {b}: {}", mcnemar(a, b));
        }
    }

    #[test]
    fn the_bootstrap_agrees_with_wilson_on_plain_shares() {
        let units: Vec<Unit> = (0..400).map(|k| Unit { sum: f64::from(u8::from(k % 4 != 0)), count: 1.0 }).collect();
        let ((a, b), (low, high)) = (bootstrap(&[&units], "t"), wilson(300, 400));
        assert!((a - low).abs() < 0.01 && (b - high).abs() < 0.01, "{a} {b} against {low} {high}");
        assert_eq!(bootstrap(&[&units], "t"), (a, b));
    }

    #[test]
    fn a_difference_of_1_96_standard_errors_is_borderline() {
        assert!(close(difference(1.96, 1.0, 0.0, 0.0), 0.05));
        assert_eq!((difference(1.0, 0.0, 1.0, 0.0), difference(1.0, 0.0, 2.0, 0.0)), (1.0, 0.0));
    }

    #[test]
    fn kappas_match_the_textbooks() {
        // Cohen: 20 yes/yes, 5 yes/no, 10 no/yes, 15 no/no.
        let pairs = [(20, (0, 0)), (5, (0, 1)), (10, (1, 0)), (15, (1, 1))]
            .iter()
            .flat_map(|(k, pair)| vec![*pair; *k])
            .collect::<Vec<_>>();
        assert!(close(cohen(&pairs, 2).unwrap(), 0.4));
        // Fleiss (1971), the example with 14 raters and 10 subjects.
        let rows = [
            [0, 0, 0, 0, 14],
            [0, 2, 6, 4, 2],
            [0, 0, 3, 5, 6],
            [0, 3, 9, 2, 0],
            [2, 2, 8, 1, 1],
            [7, 7, 0, 0, 0],
            [3, 2, 6, 3, 0],
            [2, 5, 3, 2, 2],
            [6, 5, 2, 1, 0],
            [0, 2, 2, 3, 7],
        ];
        let rows: Vec<Vec<u32>> = rows.iter().map(|row| row.to_vec()).collect();
        assert!((fleiss(&rows).unwrap() - 0.210).abs() < 1e-3);
        assert_eq!(cohen(&[(0, 0), (0, 0)], 2), None);
    }
}
