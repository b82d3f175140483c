//! Error numbers of Linux on x86, under their names.

use std::fmt;

use serde::{Deserialize, Serialize};

/// An error number as a system call returns it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Errno(pub i32);

macro_rules! errno_names {
    ($($name:ident = $number:literal,)*) => {
        impl Errno {
            $(
                #[doc = concat!("Error number ", stringify!($number), ".")]
                pub const $name: Self = Self($number);
            )*

            fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($number => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

errno_names! {
    EPERM = 1, ENOENT = 2, ESRCH = 3, EINTR = 4, EIO = 5, ENXIO = 6, E2BIG = 7, ENOEXEC = 8,
    EBADF = 9, ECHILD = 10, EAGAIN = 11, ENOMEM = 12, EACCES = 13, EFAULT = 14, ENOTBLK = 15,
    EBUSY = 16, EEXIST = 17, EXDEV = 18, ENODEV = 19, ENOTDIR = 20, EISDIR = 21, EINVAL = 22,
    ENFILE = 23, EMFILE = 24, ENOTTY = 25, ETXTBSY = 26, EFBIG = 27, ENOSPC = 28, ESPIPE = 29,
    EROFS = 30, EMLINK = 31, EPIPE = 32, EDOM = 33, ERANGE = 34, EDEADLK = 35, ENAMETOOLONG = 36,
    ENOLCK = 37, ENOSYS = 38, ENOTEMPTY = 39, ELOOP = 40, ENODATA = 61, EPROTO = 71, EBADMSG = 74,
    EOVERFLOW = 75, EOPNOTSUPP = 95, EADDRNOTAVAIL = 99, ETIMEDOUT = 110, EALREADY = 114,
    EINPROGRESS = 115, ENOKEY = 126, EKEYREJECTED = 129, EHWPOISON = 133,
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.pad(name),
            None => write!(f, "errno {}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_shown_and_unknown_numbers_survive() {
        assert_eq!(Errno::EPERM.to_string(), "EPERM");
        assert_eq!(Errno(14).to_string(), "EFAULT");
        assert_eq!(Errno(4095).to_string(), "errno 4095");
    }
}
