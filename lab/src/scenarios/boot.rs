//! The guests that scenarios are told in.

use std::fmt;

use serde::{Serialize, Serializer};

use super::MIB;

/// A guest: how its kernel is started, and what its virtio-mem device requests at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Boot {
    /// As most kernels run. What becomes of added memory is the kernel's own default.
    Plain,
    /// The checks of I/O memory relaxed. Added memory is for the kernel, and may stay for good.
    Relaxed,
    /// Added memory is for what can be moved away, so that it can be unplugged.
    Movable,
    /// Added memory waits for somebody to bring it online.
    Offline,
    /// Nobody may change the running kernel.
    Lockdown,
}

impl Boot {
    /// All of them, in the order in which they are started.
    pub const ALL: [Self; 5] =
        [Self::Plain, Self::Relaxed, Self::Movable, Self::Offline, Self::Lockdown];

    /// A word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Relaxed => "relaxed",
            Self::Movable => "movable",
            Self::Offline => "offline",
            Self::Lockdown => "lockdown",
        }
    }

    /// The kernel's parameters.
    pub fn parameters(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Relaxed => "iomem=relaxed memhp_default_state=online_kernel",
            Self::Movable => "memhp_default_state=online_movable",
            Self::Offline => "memhp_default_state=offline",
            Self::Lockdown => "lockdown=integrity",
        }
    }

    /// Bytes that the device requests when the guest starts.
    pub fn requested(self) -> u64 {
        match self {
            Self::Plain | Self::Relaxed | Self::Movable | Self::Lockdown => 256 * MIB,
            // So that VM6, which is told first there, sees a region in which nothing ever was.
            Self::Offline => 0,
        }
    }
}

impl fmt::Display for Boot {
    /// By its parameters.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.parameters() {
            "" => "no parameters",
            parameters => parameters,
        })
    }
}

impl Serialize for Boot {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
