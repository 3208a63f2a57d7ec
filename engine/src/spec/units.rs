//! Sizes (`70GiB`) and durations (`10m`).

/// Bytes of `4096`, `512MiB`, `70GiB`, `1.5TB`; `None` when it is no size.
pub(crate) fn bytes(text: &str) -> Option<u64> {
    const UNITS: [(&str, f64); 9] = [
        ("kib", 1024.0),
        ("mib", 1_048_576.0),
        ("gib", 1_073_741_824.0),
        ("tib", 1_099_511_627_776.0),
        ("kb", 1e3),
        ("mb", 1e6),
        ("gb", 1e9),
        ("tb", 1e12),
        ("b", 1.0),
    ];
    scaled(text, &UNITS, 1.0)
}

/// Seconds of `90`, `30s`, `10m`, `2h`, `1d`, `1h30m`; `None` when it is no duration.
pub(crate) fn seconds(text: &str) -> Option<u64> {
    const UNITS: [(&str, f64); 4] = [("s", 1.0), ("m", 60.0), ("h", 3600.0), ("d", 86_400.0)];
    let text = text.trim();
    if text.chars().all(|c| c.is_ascii_digit()) {
        return text.parse().ok();
    }
    let parts = text.split_inclusive(|c: char| c.is_ascii_alphabetic());
    parts.map(|part| scaled(part, &UNITS, 0.0)).try_fold(0_u64, |sum, part| sum.checked_add(part?))
}

/// `plain` is the factor of a number without a unit; 0 refuses it.
fn scaled(text: &str, units: &[(&str, f64)], plain: f64) -> Option<u64> {
    let text = text.trim().to_ascii_lowercase();
    let unit = units.iter().find_map(|(name, factor)| text.strip_suffix(name).map(|rest| (rest, *factor)));
    let (number, factor) = unit.unwrap_or((&text, plain));
    let number: f64 = number.trim().parse().ok()?;
    let value = number * factor;
    let sound = factor > 0.0 && number >= 0.0 && value.fract() == 0.0 && value < 9e15;
    sound.then_some(value as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_sizes() {
        for (text, want) in [
            ("70GiB", Some(70 << 30)),
            ("512 MiB", Some(512 << 20)),
            ("1.5kb", Some(1500)),
            ("4096", Some(4096)),
            ("3b", Some(3)),
            ("GiB", None),
            ("-1GiB", None),
            ("1e300GiB", None),
            ("70 gigs", None),
            ("", None),
        ] {
            assert_eq!(bytes(text), want, "{text}");
        }
    }

    #[test]
    fn reads_durations() {
        for (text, want) in [
            ("90", Some(90)),
            ("30s", Some(30)),
            ("10m", Some(600)),
            ("2h", Some(7200)),
            ("1h30m", Some(5400)),
            ("1.5h", Some(5400)),
            ("h", None),
            ("10 minutes", None),
            ("-3s", None),
            ("", None),
        ] {
            assert_eq!(seconds(text), want, "{text}");
        }
    }
}
