//! Kubernetes quantities: `500m`, `2`, `1.5Gi`, `1e3` (apimachinery `resource.Quantity`).

/// Longest quantity, in bytes.
const MAX_LEN: usize = 64;

/// A non-negative number exactly as written: `mantissa * 10^ten * 2^two`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quantity {
    mantissa: u128,
    ten: i32,
    two: u32,
}

/// Why a text is not a usable quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// Not a number with one of the suffixes.
    #[error("is not a quantity")]
    Syntax,
    #[error("must not be negative")]
    Negative,
    /// More than fits into 63 bits of the wanted unit.
    #[error("is too large")]
    TooLarge,
}

impl Quantity {
    /// Reads a quantity: a decimal number, then one of `n u m k M G T P E Ki Mi Gi Ti Pi Ei` or an exponent (`e3`, `E-3`) or nothing.
    pub fn parse(text: &str) -> Result<Self, QuantityError> {
        if text.len() > MAX_LEN {
            return Err(QuantityError::Syntax);
        }
        let (negative, unsigned) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        let end = unsigned.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(unsigned.len());
        let (number, suffix) = unsigned.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if fraction.contains('.') || (whole.is_empty() && fraction.is_empty()) {
            return Err(QuantityError::Syntax);
        }
        let (ten, two) = scale(suffix).ok_or(QuantityError::Syntax)?;
        let fraction = fraction.trim_end_matches('0');
        let digits = format!("{whole}{fraction}");
        let digits = digits.trim_start_matches('0');
        let mantissa =
            if digits.is_empty() { 0 } else { digits.parse().map_err(|_| QuantityError::TooLarge)? };
        if negative && mantissa != 0 {
            return Err(QuantityError::Negative);
        }
        let places = i32::try_from(fraction.len()).map_err(|_| QuantityError::Syntax)?;
        Ok(Self { mantissa, ten: ten.saturating_sub(places), two })
    }

    /// Whether it is nothing at all.
    pub fn is_zero(self) -> bool {
        self.mantissa == 0
    }

    /// The value in whole units, rounded up as Kubernetes does.
    pub fn units(self) -> Result<u64, QuantityError> {
        self.scaled(0)
    }

    /// The value in thousandths, rounded up as Kubernetes does.
    pub fn millis(self) -> Result<u64, QuantityError> {
        self.scaled(3)
    }

    /// `self * 10^extra`, rounded up.
    fn scaled(self, extra: i32) -> Result<u64, QuantityError> {
        if self.mantissa == 0 {
            return Ok(0);
        }
        let too_large = QuantityError::TooLarge;
        let value = self.mantissa.checked_mul(1u128 << self.two).ok_or(too_large.clone())?;
        let ten = self.ten.saturating_add(extra);
        let power = 10u128.checked_pow(ten.unsigned_abs());
        let value = match (ten >= 0, power) {
            (true, Some(power)) => value.checked_mul(power).ok_or(too_large.clone())?,
            (true, None) => return Err(too_large),
            (false, Some(power)) => value.div_ceil(power),
            (false, None) => 1,
        };
        // Kubernetes counts in int64.
        i64::try_from(value).ok().and_then(|value| u64::try_from(value).ok()).ok_or(too_large)
    }
}

/// The powers of ten and two of a suffix.
fn scale(suffix: &str) -> Option<(i32, u32)> {
    let found = match suffix {
        "n" => (-9, 0),
        "u" => (-6, 0),
        "m" => (-3, 0),
        "" => (0, 0),
        "k" => (3, 0),
        "M" => (6, 0),
        "G" => (9, 0),
        "T" => (12, 0),
        "P" => (15, 0),
        "E" => (18, 0),
        "Ki" => (0, 10),
        "Mi" => (0, 20),
        "Gi" => (0, 30),
        "Ti" => (0, 40),
        "Pi" => (0, 50),
        "Ei" => (0, 60),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E'])?;
            let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
            if digits.is_empty() || digits.len() > 6 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
                return None;
            }
            (exponent.parse().ok()?, 0)
        }
    };
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn units(text: &str) -> Result<u64, QuantityError> {
        Quantity::parse(text).and_then(Quantity::units)
    }

    fn millis(text: &str) -> Result<u64, QuantityError> {
        Quantity::parse(text).and_then(Quantity::millis)
    }

    #[test]
    fn every_suffix_of_the_grammar_is_read() {
        let table: [(&str, u64); 26] = [
            ("0", 0),
            ("128Mi", 128 << 20),
            ("1Gi", 1 << 30),
            ("1.5Gi", 3 << 29),
            (".5Ki", 512),
            ("5.", 5),
            ("+7", 7),
            ("-0", 0),
            ("1k", 1000),
            ("1M", 1_000_000),
            ("2G", 2_000_000_000),
            ("1T", 1_000_000_000_000),
            ("1P", 1_000_000_000_000_000),
            ("1E", 1_000_000_000_000_000_000),
            ("1Ti", 1 << 40),
            ("1Pi", 1 << 50),
            ("1Ei", 1 << 60),
            ("1e3", 1000),
            ("1E3", 1000),
            ("1e+3", 1000),
            ("1500e-3", 2),
            ("400m", 1),
            ("1u", 1),
            ("1n", 1),
            ("0.000000000000000000000000000000000001", 1),
            ("1000000000000000000000e-20", 10),
        ];
        for (text, value) in table {
            assert_eq!(units(text), Ok(value), "{text}");
        }
    }

    #[test]
    fn thousandths_round_up() {
        for (text, value) in [
            ("500m", 500),
            ("2", 2000),
            ("0.1", 100),
            ("100u", 1),
            ("1n", 1),
            ("1500.1m", 1501),
            ("1k", 1_000_000),
        ] {
            assert_eq!(millis(text), Ok(value), "{text}");
        }
    }

    #[test]
    fn what_is_no_quantity_says_why() {
        for text in [
            "", "m", ".", "1.2.3", "1 Gi", "Gi", "1gi", "1KI", "1ki", "1K", "e3", "1e", "1e+", "1mm", "0x10",
            "1_000", "½", "--1", "1i",
        ] {
            assert_eq!(Quantity::parse(text), Err(QuantityError::Syntax), "{text}");
        }
        assert_eq!(Quantity::parse("-1"), Err(QuantityError::Negative));
        for text in ["8Ei", "1e19", "1e400", "99999999999999999999999999999999999999999"] {
            assert_eq!(units(text), Err(QuantityError::TooLarge), "{text}");
        }
        assert_eq!(Quantity::parse(&"1".repeat(65)), Err(QuantityError::Syntax));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in r"[-+]?[0-9]{0,30}\.?[0-9]{0,30}[a-zA-Z]{0,2}[-+]?[0-9]{0,8}") {
            if let Ok(quantity) = Quantity::parse(&text) {
                drop((quantity.units(), quantity.millis()));
            }
        }

        #[test]
        fn whole_numbers_are_themselves(value in 0u64..1 << 53, shift in 0usize..3) {
            prop_assert_eq!(units(&value.to_string()), Ok(value));
            let suffix = ["", "k", "M"][shift];
            let factor = [1, 1000, 1_000_000][shift];
            match value.checked_mul(factor).filter(|&value| i64::try_from(value).is_ok()) {
                Some(product) => prop_assert_eq!(units(&format!("{value}{suffix}")), Ok(product)),
                None => prop_assert_eq!(units(&format!("{value}{suffix}")), Err(QuantityError::TooLarge)),
            }
        }
    }
}
