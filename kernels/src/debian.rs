//! The kernels that Debian has, by the names that moat has for them.

use std::fmt;

/// A kind of processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// x86-64.
    Amd64,
}

impl fmt::Display for Architecture {
    /// As Debian names it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Amd64 => "amd64",
        })
    }
}

/// A kernel of Debian's.
#[derive(Debug, PartialEq, Eq)]
pub struct DebianKernel {
    /// What moat calls it.
    pub name: &'static str,
    /// What it is.
    pub description: &'static str,
    /// The suite that it is in, by its code name.
    pub suite: &'static str,
    /// The package that depends on the newest image, without its architecture.
    meta_package: &'static str,
}

impl DebianKernel {
    /// All of them, oldest first.
    pub const ALL: &'static [Self] = &[
        Self {
            name: "debian-5.10",
            description: "Debian 11",
            suite: "bullseye",
            meta_package: "linux-image",
        },
        Self {
            name: "debian-6.1",
            description: "Debian 12",
            suite: "bookworm",
            meta_package: "linux-image",
        },
        Self {
            name: "debian-6.1-cloud",
            description: "Debian 12, for virtual machines: few drivers",
            suite: "bookworm",
            meta_package: "linux-image-cloud",
        },
        Self {
            name: "debian-6.12",
            description: "Debian 12, from its security updates",
            suite: "bookworm",
            meta_package: "linux-image-6.12",
        },
        Self {
            name: "debian-6.12-cloud",
            description: "Debian 12, from its security updates, for virtual machines",
            suite: "bookworm",
            meta_package: "linux-image-6.12-cloud",
        },
        Self {
            name: "debian-newest",
            description: "the newest, from Debian's unstable suite",
            suite: "sid",
            meta_package: "linux-image",
        },
    ];

    /// The kernel of this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        Self::ALL.iter().find(|kernel| kernel.name == name)
    }

    /// The package that depends on the newest image.
    pub fn meta_package(&self, architecture: Architecture) -> String {
        format!("{}-{architecture}", self.meta_package)
    }

    /// The suite with its security updates. What is unstable has none of its own.
    pub fn security_suite(&self) -> Option<String> {
        (self.suite != "sid").then(|| format!("{}-security", self.suite))
    }
}

/// Every name, for a message.
pub fn names() -> String {
    DebianKernel::ALL.iter().map(|kernel| kernel.name).collect::<Vec<_>>().join(", ")
}
