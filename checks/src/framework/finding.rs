//! The result of something that is tried.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use testvm::guest::{
    Denial, Errno, File, GuestError, Ioas, Mapping, Observe as _, Outcome, Polled, VfioDevice,
    VfioGroup,
};

/// The result of something that is tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// It works. As an expectation it accepts any value read.
    Done,
    /// It works, and this is read.
    Read(u64),
    /// It happened so many times.
    Count(u64),
    /// The guest's kernel denies it.
    Denied(Denial),
    /// Something else, in words.
    Fact(String),
}

impl Finding {
    /// Whether this is what was expected.
    pub fn satisfies(&self, expected: &Self) -> bool {
        let is_open = matches!((self, expected), (Self::Read(_), Self::Done));
        is_open || self.to_string() == expected.to_string()
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done => f.write_str("OK"),
            Self::Read(value) => write!(f, "OK, {value:#x}"),
            Self::Count(count) => count.fmt(f),
            Self::Denied(denial) => denial.fmt(f),
            Self::Fact(fact) => f.write_str(fact),
        }
    }
}

impl Serialize for Finding {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// By its text. A denial or a count comes back as a fact of the same text, and that is how findings are compared.
impl<'de> Deserialize<'de> for Finding {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let read = text.strip_prefix("OK, 0x").and_then(|read| u64::from_str_radix(read, 16).ok());
        Ok(match read {
            Some(value) => Self::Read(value),
            None if text == "OK" => Self::Done,
            None => Self::Fact(text),
        })
    }
}

impl From<Denial> for Finding {
    fn from(denial: Denial) -> Self {
        Self::Denied(denial)
    }
}

impl From<Errno> for Finding {
    fn from(errno: Errno) -> Self {
        Self::Denied(errno.into())
    }
}

impl From<&str> for Finding {
    fn from(fact: &str) -> Self {
        Self::Fact(fact.to_owned())
    }
}

impl From<String> for Finding {
    fn from(fact: String) -> Self {
        Self::Fact(fact)
    }
}

impl<T: Into<Self>> From<Outcome<T>> for Finding {
    fn from(outcome: Outcome<T>) -> Self {
        match outcome {
            Outcome::Value(value) => value.into(),
            Outcome::Denied(denial) => denial.into(),
        }
    }
}

/// The result of the last access.
impl From<Polled> for Finding {
    fn from(polled: Polled) -> Self {
        polled.death.map_or(Self::Done, Self::Denied)
    }
}

macro_rules! done {
    ($($kind:ty)*) => {
        $(
            impl From<$kind> for Finding {
                fn from(_: $kind) -> Self {
                    Self::Done
                }
            }
        )*
    };
}

done!(() File Mapping Vec<u8> VfioDevice<Ioas> VfioGroup);

macro_rules! read {
    ($($number:ty)*) => {
        $(
            impl From<$number> for Finding {
                fn from(value: $number) -> Self {
                    Self::Read(value.into())
                }
            }
        )*
    };
}

read!(u8 u16 u32 u64);

/// What a finding can be made of: the result of a request to the guest, or a fact.
pub trait IntoFinding {
    /// The finding, unless there was none because the guest did not answer.
    fn into_finding(self) -> Result<Finding, GuestError>;
}

impl<T> IntoFinding for Result<T, GuestError>
where
    Finding: From<T>,
{
    fn into_finding(self) -> Result<Finding, GuestError> {
        Ok(self.outcome()?.into())
    }
}

impl<T> IntoFinding for Outcome<T>
where
    Finding: From<T>,
{
    fn into_finding(self) -> Result<Finding, GuestError> {
        Ok(self.into())
    }
}

impl IntoFinding for Finding {
    fn into_finding(self) -> Result<Finding, GuestError> {
        Ok(self)
    }
}

impl IntoFinding for &str {
    fn into_finding(self) -> Result<Finding, GuestError> {
        Ok(self.into())
    }
}

impl IntoFinding for String {
    fn into_finding(self) -> Result<Finding, GuestError> {
        Ok(self.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expected_ok_accepts_any_value_read() {
        assert!(Finding::from(0xaa_u8).satisfies(&Finding::Done));
        assert!(Finding::from(0xaa_u8).satisfies(&0xaa_u64.into()));
        assert!(!Finding::from(0xaa_u8).satisfies(&0xab_u8.into()));
        assert!(!Finding::Done.satisfies(&0xaa_u8.into()));
    }

    #[test]
    fn an_expected_denial_accepts_only_the_same_denial() {
        let sigbus = Finding::from(Denial::SIGBUS);
        assert!(sigbus.satisfies(&Denial::SIGBUS.into()));
        assert!(!sigbus.satisfies(&Errno::EPERM.into()) && !Finding::Done.satisfies(&sigbus));
        assert!(!sigbus.satisfies(&Finding::Done));
    }

    #[test]
    fn a_guest_that_does_not_answer_is_an_error_and_not_a_finding() {
        let asked = "mmap /dev/mem".to_owned();
        let denial = Errno::EPERM.into();
        let denied: Result<(), _> = Err(GuestError::Denied { asked: asked.clone(), denial });
        assert_eq!(denied.into_finding().unwrap().to_string(), "EPERM");
        let lost: Result<u32, _> = Err(GuestError::OtherAnswer { asked });
        assert!(lost.into_finding().is_err());
    }
}
