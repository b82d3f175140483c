//! Power Management (PCI Express Base 6.0, section 7.5.2): D0 and D3hot.

use super::{CapabilityList, id};
use crate::pci::config_space::ConfigSpace;
use crate::pci::state::PowerState;

/// Offset of the capability in every function, before all other capabilities.
pub(super) const OFFSET: usize = 0x40;
pub(super) const SIZE: usize = 8;

const CAPABILITIES: usize = OFFSET + 2;
const CONTROL: usize = OFFSET + 4;

/// PM Capabilities: PCI Power Management 1.2, without D1, D2 and PME.
const VERSION: u16 = 3;
/// PM Control: the state.
const POWER_STATE: u8 = 0b11;
const D0: u8 = 0b00;
const D3HOT: u8 = 0b11;
/// PM Control: the transition back to D0 resets nothing.
const NO_SOFT_RESET: u8 = 1 << 3;

/// Whether waking up from D3hot resets a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::pci) enum SoftReset {
    Yes,
    /// No_Soft_Reset is set.
    No,
}

/// Adds the capability.
pub(in crate::pci) fn add(
    list: &mut CapabilityList,
    config: &mut ConfigSpace,
    soft_reset: SoftReset,
) {
    list.link(config, id::POWER_MANAGEMENT, OFFSET);
    config.set(CAPABILITIES, &VERSION.to_le_bytes());
    config.allow(CONTROL, &[POWER_STATE]);
    if soft_reset == SoftReset::No {
        config.set(CONTROL, &[NO_SOFT_RESET]);
    }
}

/// The state that the function is in.
pub(in crate::pci) fn state(config: &ConfigSpace) -> PowerState {
    match config.u8(CONTROL) & POWER_STATE {
        D0 => PowerState::D0,
        _ => PowerState::D3hot,
    }
}

/// To be called after a write that may have changed the state, which was `before`. A state that the
/// function does not support is discarded (section 7.5.2.2). True if the function has woken up and has
/// to be reset.
pub(in crate::pci) fn written(config: &mut ConfigSpace, before: PowerState) -> bool {
    let control = config.u8(CONTROL);
    let after = control & POWER_STATE;
    if !matches!(after, D0 | D3HOT) {
        let before = if before == PowerState::D0 { D0 } else { D3HOT };
        config.set(CONTROL, &[control & !POWER_STATE | before]);
    }
    before == PowerState::D3hot && after == D0 && control & NO_SOFT_RESET == 0
}
