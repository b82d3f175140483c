//! Sizes in bytes, with units such as K, M and G.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A number of bytes. Written as `4096`, `64K`, `512M`, `1.5G`, `1T`; `8GiB` and `8gb` mean the
/// same. In JSON it is such a string, or a number of bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

const UNITS: [(char, u32); 4] = [('T', 40), ('G', 30), ('M', 20), ('K', 10)];

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "invalid size {text:?}: expected bytes, or a number with K, M, G or T, as in 1.5G"
            )
        };
        let is_digit = |c: char| c.is_ascii_digit() || c == '.';
        let digits = text.find(|c| !is_digit(c)).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let (number, fraction) = match number.split_once('.') {
            Some((number, fraction)) => (number, Some(fraction)),
            None => (number, None),
        };
        let places = fraction.map_or(0, str::len);
        // Enough places for any useful size, and few enough that `scale` does not overflow.
        if places > 12 {
            return Err(wrong());
        }
        let scale = 10_u128.pow(places as u32);
        let parse = |digits: &str| digits.parse::<u64>().map_err(|_| wrong());
        let whole: u128 = parse(number)?.into();
        let fraction: u128 = fraction.map_or(Ok(0), parse)?.into();
        let unit = unit.to_ascii_uppercase();
        let unit = unit.strip_suffix("IB").or(unit.strip_suffix('B')).unwrap_or(&unit);
        let shift = match unit.chars().collect::<Vec<_>>()[..] {
            [] => 0,
            [unit] => {
                UNITS.iter().find(|(name, _)| *name == unit).map(|(_, s)| *s).ok_or_else(wrong)?
            }
            _ => return Err(wrong()),
        };
        let too_large = || format!("invalid size {text:?}: it does not fit in 64 bits");
        let bytes = (whole * scale + fraction).checked_mul(1 << shift).ok_or_else(too_large)?;
        if !bytes.is_multiple_of(scale) {
            return Err(format!("invalid size {text:?}: it is no whole number of bytes"));
        }
        let bytes = u64::try_from(bytes / scale);
        bytes.map(Self).map_err(|_| too_large())
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = |shift: &u32| self.0 != 0 && self.0.is_multiple_of(1 << shift);
        match UNITS.iter().find(|(_, shift)| exact(shift)) {
            Some((unit, shift)) => write!(f, "{}{unit}", self.0 >> shift),
            None => write!(f, "{}", self.0),
        }
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "invalid size: expected bytes, or a string such as \"1.5G\"")]
        enum Spelling {
            Bytes(u64),
            Text(String),
        }
        match Spelling::deserialize(deserializer)? {
            Spelling::Bytes(bytes) => Ok(Self(bytes)),
            Spelling::Text(text) => text.parse().map_err(de::Error::custom),
        }
    }
}

impl JsonSchema for Size {
    fn schema_name() -> Cow<'static, str> {
        "Size".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["string", "integer"], "minimum": 0, "format": "size" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_parse_with_and_without_units() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("64K", 64 << 10),
            ("512m", 512 << 20),
            ("8G", 8 << 30),
            ("8GiB", 8 << 30),
            ("8gb", 8 << 30),
            ("1.5G", 3 << 29),
            ("0.5K", 512),
            ("2.25MiB", 9 << 18),
            ("4096.0", 4096),
            ("1T", 1 << 40),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for text in [
            "",
            "G",
            "-1",
            "1.G",
            ".5G",
            "1.5",
            "1.2.3G",
            "0.1K",
            "1X",
            "1GG",
            "1 G",
            "20000000T",
            "18446744073709551615.000000000000T",
            "99999999999999999999",
            "0.99999999999999999999999999999999999999999G",
        ] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    #[test]
    fn json_has_sizes_as_strings_or_in_bytes() {
        for json in ["\"1.5G\"", "1610612736"] {
            assert_eq!(serde_json::from_str::<Size>(json).unwrap(), Size(3 << 29));
        }
        assert_eq!(serde_json::to_string(&Size(3 << 29)).unwrap(), "\"1536M\"");
        for (json, reason) in [("\"1Q\"", "\"1Q\""), ("-1", "expected bytes"), ("true", "1.5G")] {
            let message = serde_json::from_str::<Size>(json).unwrap_err().to_string();
            assert!(message.contains(reason), "{message:?} should say {reason:?}");
        }
    }

    #[test]
    fn sizes_are_displayed_as_they_are_parsed() {
        for text in ["0", "4095", "4K", "512M", "1536M", "8G", "1T"] {
            assert_eq!(text.parse::<Size>().unwrap().to_string(), text);
        }
    }
}
