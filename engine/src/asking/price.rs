//! What tokens cost: `price: { prompt: 2.5, completion: 10 }`, dollars a million tokens.

use serde_json::{Map, Value};

/// Prices of a served model, in dollars a million tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Price {
    /// For tokens sent.
    pub prompt: f64,
    /// For tokens received.
    pub completion: f64,
}

impl Price {
    /// The `price` among a model's settings; none when it states none.
    pub fn of(settings: &Map<String, Value>) -> Option<Self> {
        let price = settings.get("price")?;
        let number = |key: &str| price.get(key).and_then(Value::as_f64).unwrap_or(0.0);
        Some(Self { prompt: number("prompt"), completion: number("completion") })
    }

    /// The cost of so many tokens in 10^-9 dollars, rounded up: limits are never exceeded by rounding.
    pub fn nanodollars(&self, prompt_tokens: i64, completion_tokens: i64) -> i64 {
        let cost = self.prompt * prompt_tokens as f64 + self.completion * completion_tokens as f64;
        (cost * 1000.0).ceil() as i64
    }
}

/// An amount of money for people: cents where they tell something, more digits where they do not.
pub fn shown(dollars: f64) -> String {
    match dollars {
        d if d <= 0.0 => "$0".to_owned(),
        d if d < 0.0005 => "less than $0.001".to_owned(),
        d if d < 0.0095 => format!("${d:.3}"),
        d => format!("${d:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn tokens_cost_what_the_list_says() {
        let settings = json!({ "price": { "prompt": 2.5, "completion": 10 } });
        let price = Price::of(settings.as_object().unwrap()).unwrap();
        assert_eq!(price.nanodollars(1_000_000, 0), 2_500_000_000);
        assert_eq!(price.nanodollars(1000, 100), 3_500_000);
        assert_eq!(price.nanodollars(0, 1), 10_000);
        assert_eq!(Price::of(&Map::new()), None);
    }

    #[test]
    fn money_is_shown_with_the_digits_that_matter() {
        let shown: Vec<String> = [0.0, 0.0001, 0.004, 0.0096, 1.234, 20.0].into_iter().map(shown).collect();
        assert_eq!(shown, ["$0", "less than $0.001", "$0.004", "$0.01", "$1.23", "$20.00"]);
    }
}
