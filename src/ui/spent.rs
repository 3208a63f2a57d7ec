//! What requests to served models came to, for people.

use mpcc_engine::stage::Spent;

/// `3 requests, 1,204 tokens, $0.01`; no money when nothing has a price.
pub(crate) fn text(spent: &Spent) -> String {
    let plural = |count: u64| if count == 1 { "" } else { "s" };
    let (requests, tokens) = (spent.requests, spent.tokens());
    let counts =
        format!("{} request{}, {} token{}", grouped(requests), plural(requests), grouped(tokens), plural(tokens));
    if spent.cost > 0.0 { format!("{counts}, {}", money(spent.cost)) } else { counts }
}

/// `1,204`.
pub(crate) fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `$0.01`; four digits of what is less than a cent.
pub(crate) fn money(dollars: f64) -> String {
    match dollars {
        0.0 => "$0".to_owned(),
        ..0.000_05 => "less than $0.0001".to_owned(),
        ..0.01 => format!("${dollars:.4}"),
        _ => format!("${dollars:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_is_one_phrase() {
        let spent = |requests, prompt_tokens, cost| Spent { requests, prompt_tokens, completion_tokens: 4, cost };
        assert_eq!(text(&spent(3, 1200, 0.0102)), "3 requests, 1,204 tokens, $0.01");
        assert_eq!(text(&spent(1, 1_234_563, 0.0)), "1 request, 1,234,567 tokens");
        for (dollars, said) in [(0.0, "$0"), (0.000_01, "less than $0.0001"), (0.0042, "$0.0042"), (12.345, "$12.35")] {
            assert_eq!(money(dollars), said);
        }
        for (count, said) in [(0, "0"), (999, "999"), (1000, "1,000"), (12_345, "12,345"), (1_000_000, "1,000,000")] {
            assert_eq!(grouped(count), said);
        }
    }
}
