//! The kernels that guests run: those of Debian, fetched and kept in the user's cache, and whatever else
//! `--kernel` may name.
//!
//! apt-get downloads packages and verifies them, with lists of its own, so that the machine's stay as they
//! are; dpkg-deb unpacks them, and depmod indexes the modules. Nothing is installed.

mod apt;
mod cache;
mod debian;
mod error;
mod packages;
mod program;
mod resolve;

pub use cache::KernelCache;
pub use debian::{Architecture, DebianKernel};
pub use error::{FetchError, FindError};
pub use resolve::{find_image, find_kernel, is_image};

/// Prints a line about what goes on, for what may take long.
pub type Say<'a> = &'a dyn Fn(&str);
