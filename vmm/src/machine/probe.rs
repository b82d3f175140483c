//! The configuration of a probe device.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::board::pci::PciPlace;
use crate::size::Size;

/// A PCI device made to be probed (docs/probe.md).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "ProbeFields", into = "ProbeFields")]
pub struct ProbeConfig {
    /// Its place on PCI.
    pub place: PciPlace,
    /// How many functions it has, each a probe of its own.
    pub functions: u8,
    /// Bytes of the memory in its BAR 2, a power of two.
    pub memory: u32,
}

impl Default for ProbeConfig {
    fn default() -> Self {
        Self { place: PciPlace::default(), functions: 1, memory: 64 << 10 }
    }
}

/// A probe device as the command line and JSON spell it.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct ProbeFields {
    /// What is between the device and bus 0: nothing, a root port of its own, or the bridge to
    /// conventional PCI that all such devices share.
    behind: Behind,
    /// Whether the root port has Access Control Services.
    acs: Option<bool>,
    /// Number of functions, 1 to 8, each a probe of its own.
    functions: u8,
    /// Memory in BAR 2, a power of two from 4K to 2G.
    memory: Size,
}

#[derive(Clone, Copy, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum Behind {
    #[default]
    Nothing,
    RootPort,
    Bridge,
}

impl Default for ProbeFields {
    fn default() -> Self {
        ProbeConfig::default().into()
    }
}

impl From<ProbeConfig> for ProbeFields {
    fn from(config: ProbeConfig) -> Self {
        let ProbeConfig { place, functions, memory } = config;
        let (behind, acs) = match place {
            PciPlace::RootComplex => (Behind::Nothing, None),
            PciPlace::RootPort { access_control } => (Behind::RootPort, Some(access_control)),
            PciPlace::ConventionalBridge => (Behind::Bridge, None),
        };
        Self { behind, acs, functions, memory: Size(memory.into()) }
    }
}

/// Why the settings of a probe device are invalid.
#[derive(Debug, Error)]
enum ProbeError {
    #[error("acs is a property of the root port: specify behind=root-port too")]
    NoRootPort,
    #[error("{0} functions: a PCI device has 1 to 8")]
    Functions(u8),
    #[error("{0} of memory: expected a power of two from 4K to 2G")]
    Memory(Size),
}

impl TryFrom<ProbeFields> for ProbeConfig {
    type Error = ProbeError;

    fn try_from(fields: ProbeFields) -> Result<Self, ProbeError> {
        let ProbeFields { behind, acs, functions, memory } = fields;
        let place = match (behind, acs) {
            (Behind::RootPort, acs) => {
                PciPlace::RootPort { access_control: acs.unwrap_or_default() }
            }
            (_, Some(_)) => return Err(ProbeError::NoRootPort),
            (Behind::Nothing, None) => PciPlace::RootComplex,
            (Behind::Bridge, None) => PciPlace::ConventionalBridge,
        };
        if !(1..=8).contains(&functions) {
            return Err(ProbeError::Functions(functions));
        }
        let memory = u32::try_from(memory.0)
            .ok()
            .filter(|bytes| bytes.is_power_of_two() && *bytes >= 4096)
            .ok_or(ProbeError::Memory(memory))?;
        Ok(Self { place, functions, memory })
    }
}
