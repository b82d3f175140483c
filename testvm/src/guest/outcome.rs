//! Whether a guest's kernel permits what was tried, or how it denies it.

use std::fmt;

use agent_protocol::{Errno, Signal};

use super::GuestError;

/// What was tried worked, or the kernel denied it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome<T> {
    /// It worked and returned this.
    Value(T),
    /// It was denied.
    Denied(Denial),
}

/// How a kernel denies something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Denial {
    /// A system call failed.
    Errno(Errno),
    /// A memory access raised a signal.
    Signal {
        /// Which.
        signal: Signal,
        /// `si_code`.
        code: i32,
    },
}

impl Denial {
    /// What access to a mapping that was torn down gives: SIGBUS with BUS_ADRERR.
    pub const SIGBUS: Self = Self::Signal { signal: Signal::SIGBUS, code: 2 };
}

impl From<Errno> for Denial {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
    }
}

impl<T> Outcome<T> {
    /// How it was denied, if it was.
    pub fn denial(&self) -> Option<Denial> {
        match self {
            Self::Value(_) => None,
            Self::Denied(denial) => Some(*denial),
        }
    }
}

impl<T> PartialEq<Denial> for Outcome<T> {
    fn eq(&self, denial: &Denial) -> bool {
        self.denial() == Some(*denial)
    }
}

impl<T> PartialEq<Errno> for Outcome<T> {
    fn eq(&self, errno: &Errno) -> bool {
        *self == Denial::Errno(*errno)
    }
}

/// Separates a denial, which is an observation, from an error, which is a failure to observe.
pub trait Observe<T> {
    /// The outcome, where there is one.
    fn outcome(self) -> Result<Outcome<T>, GuestError>;
}

impl<T> Observe<T> for Result<T, GuestError> {
    fn outcome(self) -> Result<Outcome<T>, GuestError> {
        match self {
            Ok(value) => Ok(Outcome::Value(value)),
            Err(GuestError::Denied { denial, .. }) => Ok(Outcome::Denied(denial)),
            Err(error) => Err(error),
        }
    }
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Errno(errno) => write!(f, "{errno}"),
            Self::Signal { signal, code } => write!(f, "{signal} code {code}"),
        }
    }
}

impl<T: Show> fmt::Display for Outcome<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(value) => value.show(f),
            Self::Denied(denial) => write!(f, "{denial}"),
        }
    }
}

/// How a value is shown in an outcome: numbers in hexadecimal, anything else as OK.
pub trait Show {
    /// Writes it.
    fn show(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OK")
    }
}

impl Show for () {}
impl Show for Vec<u8> {}

macro_rules! show_numbers {
    ($($number:ty)*) => {
        $(
            impl Show for $number {
                fn show(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    write!(f, "{self:#x}")
                }
            }
        )*
    };
}

show_numbers!(u8 u16 u32 u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_read_as_in_the_catalogue() {
        assert_eq!(Outcome::Value(0x1234_u32).to_string(), "0x1234");
        assert_eq!(Outcome::Value(()).to_string(), "OK");
        assert_eq!(Outcome::<()>::Denied(Errno::EPERM.into()).to_string(), "EPERM");
        assert_eq!(Outcome::<u8>::Denied(Denial::SIGBUS).to_string(), "SIGBUS code 2");
    }

    #[test]
    fn a_denial_is_observed_and_an_error_is_not() {
        let asked = "open /dev/mem".to_owned();
        let denied: Result<(), _> =
            Err(GuestError::Denied { asked: asked.clone(), denial: Errno::EPERM.into() });
        assert!(denied.outcome().unwrap() == Errno::EPERM);
        let refused: Result<(), _> = Err(GuestError::Refused { asked, why: String::new() });
        assert!(refused.outcome().is_err());
    }
}
